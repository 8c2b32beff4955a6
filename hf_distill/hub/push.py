"""Push of a finished student to the Hub: checked before the first request, in one commit."""

import os
from dataclasses import replace
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_distill.hub.commits import Push
from hf_distill.hub.leaks import Checked, check_files
from hf_distill.utils.files import write_text

from .card import with_repo_id
from .files import STALE, examine, missing_files


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
    """Push a finished student to the Hub in one commit.

    The folder is checked before the first request. The repository and the branch ``revision`` are
    created if they do not exist. Only ``published_files(folder)`` are uploaded; weights of an
    earlier push that are not replaced are deleted. An unchanged folder creates no commit. Failed
    requests (5xx, timeouts) are repeated; large files that were uploaded are not sent again.

    Args:
        folder: Output folder of ``save_model``, with its README.md, whose quick start is changed to
            name ``repo_id``.
        repo_id: ``namespace/name``, or ``name`` for the account of the token.
        token: Default: the token stored by ``hf auth login``, or the variable HF_TOKEN.
        private: Visibility of a new repository; default: that of the account.
        revision: Branch to push to; default: main.
        create_pr: Open a pull request against main instead of pushing to it.
        commit_message: First line of the commit message.

    Raises:
        FileNotFoundError: no finished student or no README.md in the folder.
        ValueError: malformed arguments, or any other of `folder_problems`.
        PermissionError: not logged in, or the Hub rejects the token (401, 403, gated).
        ConnectionError: the Hub was not reached, or still fails after `commits.ATTEMPTS` attempts.
    """
    root = Path(folder)
    check_request(repo_id, revision, create_pr)
    files, problems = examine(root)
    if problems and missing_files(root):
        raise FileNotFoundError(problems[0])
    _refuse(root, problems)

    def named(file: Checked, repo_id: str) -> Checked:
        """Write the repository's name into the quick start of the card."""
        if file.name != "README.md" or isinstance(file.content, str):
            return file
        text = with_repo_id(file.content.decode("utf-8"), repo_id)
        if text.encode("utf-8") != file.content:
            write_text(root / "README.md", text)
        return replace(file, content=text.encode("utf-8"))

    api = HfApi(token=token)
    push = Push(api, repo_id, commit_message, STALE, private, revision, create_pr)
    return push.send(lambda repo_id: [named(file, repo_id) for file in files])


def push_checkpoint(
    folder: str | os.PathLike[str],
    files: list[str],
    repo_id: str,
    path_in_repo: str,
    *,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a checkpoint",
) -> CommitInfo:
    """Push ``files`` of a checkpoint to the folder ``path_in_repo``, whose other files are deleted;
    errors as in `push_folder`."""
    root = Path(folder)
    checked, problems = check_files(root, files)
    _refuse(root, problems)
    checked = [replace(file, name=f"{path_in_repo}/{file.name}") for file in checked]
    stale = (f"{path_in_repo}/*",)
    push = Push(HfApi(token=token), repo_id, commit_message, stale, revision=revision)
    return push.send(lambda _: checked)


def _refuse(root: Path, problems: list[str]) -> None:
    if problems:
        raise ValueError(f"{root} cannot be published:\n- " + "\n- ".join(problems))


def check_request(repo_id: str, revision: str | None, create_pr: bool) -> None:
    """Raise ValueError for a request that the Hub would reject with a bare 400."""
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
