"""Which files of a folder may be published, and what speaks against publishing it."""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .check import card_problems, is_local
from .secrets import leaks, leaks_of_bytes

# Everything a student's folder may publish, by name: no pickle, optimizer, event file or note can
# match. A `*` stands for no slash, and nothing whose name begins with a dot or `_` is published.
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
    *("report.json", "recipe.yaml", "*.png", "plots/*.png", ".eval_results/*.yaml"),
    *("onnx/*.onnx", "onnx/*.onnx_data", "onnx/*.onnx.data", "onnx/*.json"),
    *("quantized/*.safetensors", "quantized/*.json"),
)
# Weights of an earlier push would be loaded instead of, or taken for, those of this one.
STALE = (
    *("model.safetensors", "model-*.safetensors", "model.safetensors.index.json", "adapter_*"),
    *("onnx/*", "quantized/*"),
)
_TEXTS = (
    *("*config.json", "chat_template.*", "report.json", "recipe.yaml", "README.md", "LICENSE*"),
    *("NOTICE*", ".eval_results/*.yaml", "onnx/*.json", "quantized/*.json"),
)
_LIBRARY = re.compile(r"\A---\n(?:(?!---\n).*\n)*?library_name: pytorch\n")
"""In the card of a module that no library can load by its config."""
_FENCED = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1", re.MULTILINE | re.DOTALL)
_IMAGE = re.compile(
    r"(?<!\\)!\[[^\]]*\]\((?!https?:)([^)\s]+)\)|<img\s[^>]*src=\"(?!https?:)([^\"]+)\""
)


def replace_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it: never half a file."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def published_files(folder: str | os.PathLike[str]) -> list[str]:
    """The files of ``folder`` that may be published, as sorted relative POSIX paths."""
    root = Path(folder)
    found = {path for pattern in PUBLISHED for path in root.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(root).as_posix() for path in found if path.name[0] not in "._")


def missing_files(folder: str | os.PathLike[str]) -> list[str]:
    """List what transformers or PEFT would miss in ``folder``, and the card; of a module whose
    card says ``library_name: pytorch`` the weights are enough."""
    root = Path(folder)
    return [name for name in (*_model_files(root), "README.md") if not (root / name).is_file()]


def folder_problems(folder: str | os.PathLike[str]) -> list[str]:
    """What speaks against publishing ``folder`` as a student, one line each; asks no network.

    Missing files, weights that are cut short, all that `card_problems` finds in README.md, pictures
    it shows that are not published, and in any published file a local path, a token, a password.
    """
    root = Path(folder)
    if missing := missing_files(root):
        return [
            f"expected a finished student in {root} (config.json and model.safetensors, or "
            f"adapter_config.json and adapter_model.safetensors) and README.md; missing: "
            f"{', '.join(missing)}. Save it with trainer.save_model() and write its card with "
            "hf_distill.hub.write(card, folder) first."
        ]
    names = published_files(root)
    problems = [problem for name in names for problem in _file_problems(root, name)]
    if {"model.safetensors", "model.safetensors.index.json"} <= set(names):
        problems.append(
            "model.safetensors lies beside model.safetensors.index.json, and transformers reads "
            "only the first: delete the older of the two"
        )
    return problems + list(_adapter_problems(root))


def pictures_of(card: str) -> list[str]:
    """The pictures that a card shows, without those of other sites."""
    found = _IMAGE.findall(_FENCED.sub("", card))
    return [markdown or html for markdown, html in found]


def _model_files(root: Path) -> list[str]:
    if (root / "adapter_config.json").is_file():
        return ["adapter_config.json", "adapter_model.safetensors"]
    index = root / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return ["config.json", *sorted(shards)]
    module = (root / "model.safetensors").is_file() and _LIBRARY.search(_card(root)) is not None
    return ["model.safetensors"] if module else ["config.json", "model.safetensors"]


def _card(root: Path) -> str:
    path = root / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _file_problems(root: Path, name: str) -> Iterator[str]:
    path = root / name
    if name == "README.md":
        text = path.read_text(encoding="utf-8")
        yield from (f"README.md: {problem}" for problem in card_problems(text))
        for picture in set(pictures_of(text)) - set(published_files(root)):
            yield f"README.md shows {picture}, which is not among the published files"
    elif name.endswith(".safetensors"):
        try:
            with safe_open(path, framework="np") as file:  # checks the header and the length
                notes = json.dumps(file.metadata() or {}, ensure_ascii=False)
        except SafetensorError as error:
            yield f"{name} is cut short ({error}): save it again"
        else:
            yield from (f"{name} holds in its metadata {leak}" for leak in leaks(notes))
    elif any(fnmatchcase(name, pattern) for pattern in _TEXTS):
        yield from (f"{name} holds {leak}" for leak in leaks(path.read_text(encoding="utf-8")))
    elif path.stat().st_size:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield from (f"{name} holds {leak}" for leak in leaks_of_bytes(data))


def _adapter_problems(root: Path) -> Iterator[str]:
    path = root / "adapter_config.json"
    if not path.is_file():
        return
    base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base or is_local(base):
        yield (
            f"adapter_config.json names the base model {base!r}, which nobody else can load: "
            "publish the base and set base_model_name_or_path to its Hub id, or merge the "
            "adapter into the student (merge_and_unload)"
        )
