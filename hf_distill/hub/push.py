"""Publishing a finished student: an allow-list of files, checked before anything is sent."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from .card import replace_text, with_repo_id
from .check import LOCAL_PATH, TOKEN, is_local, validate

# Everything a student's folder may publish, by name: no pickle, optimizer, event file or note can
# match. The patterns are anchored at the root, also as `allow_patterns` of `upload_folder`.
PUBLISHED: tuple[str, ...] = (
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("adapter_model.safetensors", "adapter_config.json", "config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "vocab-src.json", "vocab-tgt.json", "target_vocab.json"),
    *("entity_vocab.json", "merges.txt", "bpe.codes", "dict.txt", "byte_maps.json", "emoji.json"),
    *("spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model"),
    *("spm_char.model", "tokenizer.model", "tiktoken.model", "source.spm", "target.spm"),
    *("prophetnet.tokenizer", "word_shape.json", "word_pronunciation.json", "normalizer.json"),
    *("chat_template.jinja", "chat_template.json", "preprocessor_config.json"),
    *("processor_config.json", "video_preprocessor_config.json", "audio_tokenizer_config.json"),
    # the Hub asks for the licence's text where the card says `license: other`
    *("README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt"),
    *("report.json", "recipe.yaml", "*.png", "plots/*.png"),
)
# A weight file of an earlier push would be loaded instead of the shards of this one.
_STALE = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json", "adapter_*")
_TEXTS = ("*config.json", "chat_template.*", "report.json", "recipe.yaml", "README.md")
_IMAGE = re.compile(r"!\[[^\]]*\]\((?!https?:)([^)\s]+)\)")


def published_files(folder: str | os.PathLike[str]) -> list[str]:
    """The files of ``folder`` that may be published, as sorted relative POSIX paths."""
    root = Path(folder)
    files = [path for path in (*root.glob("*"), *root.glob("plots/*")) if path.is_file()]
    names = [path.relative_to(root).as_posix() for path in files if path.name[0] not in "._"]
    return sorted(n for n in names if any(fnmatchcase(n, pattern) for pattern in PUBLISHED))


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload the distilled student",
) -> CommitInfo:
    """Publish a finished student in one commit, and return it.

    The folder is checked before any network. The repository and the branch ``revision`` are created
    when missing. Only ``published_files(folder)`` go up; weights of an earlier push that this one
    does not replace are deleted. Pushing an unchanged folder makes no new commit.

    Args:
        folder: what ``save_model`` wrote, with its README.md. The quick start of a card of ours is
            made to name ``repo_id``.
        repo_id: ``namespace/name``, or ``name`` for the account of the token.
        token: default: what ``hf auth login`` stored, or the variable HF_TOKEN.
        private: visibility of a repository that is created; default: the account's.
        revision: branch to push to; default: main.
        create_pr: open a pull request against main instead of pushing to it.
        commit_message: first line of the commit.

    Raises:
        FileNotFoundError: no finished student or no README.md in the folder.
        ValueError: malformed ``repo_id``, ``create_pr`` with a ``revision``, unreadable weights, a
            card that is not valid, a local path or token in a file to be published.
        PermissionError: not logged in, or the Hub refuses the token (401, 403, gated).
    """
    root = Path(folder)
    _check_request(repo_id, revision, create_pr)
    _check_student(root)
    problems = list(_problems(root))
    if problems:
        raise ValueError(f"{root} cannot be published:\n- " + "\n- ".join(problems))
    if token is None and get_token() is None:
        raise PermissionError(
            "Publishing needs a Hub token with write access, and none was found: run "
            "`hf auth login`, set HF_TOKEN, or pass token=."
        )
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision not in (None, "main"):
            api.create_branch(repo_id, branch=str(revision), exist_ok=True)
        card = root / "README.md"
        text = card.read_text(encoding="utf-8")
        if with_repo_id(text, repo_id) != text:
            replace_text(card, with_repo_id(text, repo_id))
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=root,
            allow_patterns=[glob.escape(name) for name in published_files(root)],
            delete_patterns=list(_STALE),
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            raise
        raise PermissionError(
            f"The Hub refused to publish to {repo_id} ({error.response.status_code}). The token "
            "needs write access to that namespace: check the id, log in with `hf auth login` (or "
            "HF_TOKEN, token=), and for a gated repository ask its owner for access on its page. "
            f"The Hub said: {error.server_message or error}"
        ) from error


def _check_request(repo_id: str, revision: str | None, create_pr: bool) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"expected a Hub id `namespace/name` of letters, digits, '-', '_' and '.', "
            f"got {repo_id!r} ({error})"
        ) from error
    if create_pr and revision not in (None, "main"):
        raise ValueError(
            "a pull request is opened against main, got create_pr=True with "
            f"revision={revision!r}: give one of the two"
        )


def _check_student(root: Path) -> None:
    """Refuse a folder that plain transformers or PEFT could not load.

    Raises:
        FileNotFoundError: files of a finished student are missing.
        ValueError: a weight file is cut short.
    """
    index = root / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        shards = {"model.safetensors"}
    model = ["config.json", *sorted(shards)]
    adapter = ["adapter_config.json", "adapter_model.safetensors"]
    wanted = adapter if (root / adapter[0]).is_file() else model
    missing = [name for name in (*wanted, "README.md") if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"expected a finished student in {root}: {', '.join(model)} (or {', '.join(adapter)}) "
            f"and README.md; missing: {', '.join(missing)}. Save it with trainer.save_model() and "
            "write its card with hf_distill.hub.write(card, folder) first."
        )
    for name in wanted:
        if name.endswith(".safetensors"):
            try:
                with safe_open(root / name, framework="np"):
                    pass  # opening checks the header and the length
            except SafetensorError as error:
                raise ValueError(f"{name} in {root} is cut short ({error}): save again") from error


def _problems(root: Path) -> Iterator[str]:
    """What must not be published, file by file."""
    names = published_files(root)
    for name in names:
        if not any(fnmatchcase(name, pattern) for pattern in _TEXTS):
            continue
        text = (root / name).read_text(encoding="utf-8")
        if name == "README.md":
            try:
                validate(text)
            except ValueError as error:
                yield f"README.md: {error}"
            for image in _IMAGE.findall(text):
                if image not in names:
                    yield f"README.md shows {image}, which is not among the published files"
            continue
        for path in LOCAL_PATH.findall(text):
            yield f"{name} holds the local path {path}: give a Hub id, or take it out"
        if TOKEN.search(text):
            yield f"{name} holds an access token: revoke it, and take it out"
    if "adapter_config.json" in names:
        config = json.loads((root / "adapter_config.json").read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path")
        if not base or is_local(base):
            yield (
                f"adapter_config.json names the base model {base!r}, which nobody else can load: "
                "publish the base and set base_model_name_or_path to its Hub id, or merge the "
                "adapter into the student (merge_and_unload)"
            )
