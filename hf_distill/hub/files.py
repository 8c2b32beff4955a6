"""Publishable files of a folder, and the checks that a folder must pass."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from hf_distill.hub.leaks import Checked, check_files, lies_inside, read_text

from .check import card_problems, is_local

# By name, all files of a student's folder that are published: no pickle, optimizer state, event
# file or note matches. `*` matches no slash, and no name that begins with a dot or `_`.
_NAMES = """
model.safetensors model-*-of-*.safetensors model.safetensors.index.json
adapter_model.safetensors adapter_config.json config.json generation_config.json
tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json
vocab.json vocab.txt vocab-src.json vocab-tgt.json target_vocab.json entity_vocab.json
merges.txt bpe.codes dict.txt byte_maps.json emoji.json spiece.model sentencepiece.bpe.model
sentencepiece.model spm.model spm_char.model tokenizer.model tiktoken.model source.spm
target.spm prophetnet.tokenizer word_shape.json word_pronunciation.json normalizer.json
chat_template.jinja chat_template.json preprocessor_config.json processor_config.json
video_preprocessor_config.json audio_tokenizer_config.json
README.md LICENSE LICENSE.txt LICENSE.md NOTICE NOTICE.txt
report.json recipe.yaml *.png plots/*.png .eval_results/*.yaml
onnx/*.onnx onnx/*.onnx_data onnx/*.onnx.data onnx/*.json
quantized/*.safetensors quantized/*.json
modules.json config_sentence_transformers.json sentence_bert_config.json 1_Pooling/config.json
2_Dense/*.safetensors 2_Dense/config.json 3_Dense/*.safetensors 3_Dense/config.json
"""
PUBLISHED = tuple(_NAMES.split())
# Left in the repository, weights of an earlier push would be loaded instead of the new ones.
STALE = (
    *("model.safetensors", "model-*.safetensors", "model.safetensors.index.json", "adapter_*"),
    *("onnx/*", "quantized/*"),
)
_LIBRARY = re.compile(r"\A---\n(?:(?!---\n).*\n)*?library_name: pytorch\n")
"""Front matter of a plain PyTorch module's card."""
_FENCED = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1", re.MULTILINE | re.DOTALL)
_IMAGE = re.compile(
    r"(?<!\\)!\[[^\]]*\]\((?!https?:)([^)\s]+)\)|<img\s[^>]*src=\"(?!https?:)([^\"]+)\""
)


def published_files(folder: str | os.PathLike[str]) -> list[str]:
    root = Path(folder)
    return [name for name in listed_files(root) if lies_inside(root, name)]


def missing_files(folder: str | os.PathLike[str]) -> list[str]:
    """List the files without which transformers, PEFT or a reader cannot use the student.

    A plain module (``library_name: pytorch`` in its card) needs only its weights and the card.
    """
    root = Path(folder)
    return [name for name in (*_model_files(root), "README.md") if not os.path.lexists(root / name)]


def folder_problems(folder: str | os.PathLike[str]) -> list[str]:
    """List the reasons why a folder cannot be published as a student, without network access.

    These are missing files, links, truncated weights, the problems of README.md (`card_problems`),
    images it shows that are not published, and in any published file a local path, a token, a
    password, or text that is not UTF-8.
    """
    return examine(folder)[1]


def examine(folder: str | os.PathLike[str]) -> tuple[list[Checked], list[str]]:
    root = Path(folder)
    if missing := missing_files(root):
        return [], [
            f"expected a finished student in {root} (config.json and model.safetensors, or "
            f"adapter_config.json and adapter_model.safetensors) and README.md; missing: "
            f"{', '.join(missing)}. Save it with trainer.save_model() and write its card with "
            "hf_distill.hub.write(card, folder) first."
        ]
    files, problems = check_files(root, listed_files(root))
    held = {file.name: file.content for file in files}
    card = list(_card_problems(held))  # with line numbers, unlike the check of all texts
    told = {f"README.md holds {problem.partition(': ')[2].partition(': ')[2]}" for problem in card}
    problems = [problem for problem in problems if problem not in told] + card
    if {"model.safetensors", "model.safetensors.index.json"} <= set(held):
        problems.append(
            "model.safetensors lies beside model.safetensors.index.json, and transformers reads "
            "only the first: delete the older of the two"
        )
    return files, problems + list(_adapter_problems(held))


def images_of(card: str) -> list[str]:
    found = _IMAGE.findall(_FENCED.sub("", card))
    return [markdown or html for markdown, html in found]


def listed_files(root: Path) -> list[str]:
    """List the entries whose names match `PUBLISHED`, links included; a subfolder that is a link is
    listed by its own name."""
    found = set()
    for pattern in PUBLISHED:
        folder, _, name = pattern.rpartition("/")
        if folder and (root / folder).is_symlink():
            found.add(folder)
        elif (root / folder).is_dir():
            held = [n for n in os.listdir(root / folder) if fnmatchcase(n, name)]
            found |= {f"{folder}/{n}" if folder else n for n in held if n[0] not in "._"}
    return sorted(found)


def _model_files(root: Path) -> list[str]:
    if os.path.lexists(root / "adapter_config.json"):
        return ["adapter_config.json", "adapter_model.safetensors"]
    index = root / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            shards = set()  # the check of the file's content reports it
        return ["config.json", *sorted(shards)]
    weights = os.path.lexists(root / "model.safetensors")
    card = root / "README.md"
    text = card.read_bytes().decode("utf-8", "replace") if card.is_file() else ""
    module = weights and _LIBRARY.search(text) is not None
    return ["model.safetensors"] if module else ["config.json", "model.safetensors"]


def _card_problems(held: Mapping[str, bytes | str]) -> Iterator[str]:
    content = held.get("README.md")
    if not isinstance(content, bytes):
        return
    try:
        text = read_text("README.md", content)
    except ValueError:
        return  # the check of the file's content reports it
    yield from (f"README.md: {problem}" for problem in card_problems(text))
    for image in sorted(set(images_of(text)) - set(held)):
        yield f"README.md shows {image}, which is not among the published files"


def _adapter_problems(held: Mapping[str, bytes | str]) -> Iterator[str]:
    try:
        settings = json.loads(held.get("adapter_config.json", b"{}"))
    except ValueError:
        return  # the check of the file's content reports it
    base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    if "adapter_config.json" in held and (not base or is_local(str(base))):
        yield (
            f"adapter_config.json names the base model {base!r}, which nobody else can load: "
            "publish the base and set base_model_name_or_path to its Hub id, or merge the "
            "adapter into the student (merge_and_unload)"
        )
