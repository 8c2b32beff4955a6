"""Manifest of a cache: teacher, data and formats."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import transformers
from transformers import PretrainedConfig

from hf_distill.teachers.cache.checked_json import PARTS, refuse_no_file, replacing
from hf_distill.teachers.cache.keys import model_fingerprint, text_fingerprint

VOCABULARY = "vocabulary.json.gz"
CARD = "README.md"
MOST_TEXT = 2**26
"""Largest vocabulary in bytes of JSON; existing ones have up to about 2^25."""
MOST_LISTED = 2**17
"""Largest accepted number of labels, layers, … of a configuration."""
_COUNTS = re.compile("^n_|num_|layer|block|stage|depth")


def teacher_fingerprint(teacher: Any) -> str:
    """Hash of a teacher: its own fingerprint, that of its weights or, without these, of its
    description."""
    own = getattr(teacher, "fingerprint", None)
    if isinstance(own, str):
        return own
    inner = getattr(teacher, "teacher", None)
    if inner is not None:  # a teacher with its own fingerprint
        description = json.dumps(teacher.describe(), sort_keys=True, default=str)
        return text_fingerprint([teacher_fingerprint(inner), description])
    members = getattr(teacher, "teachers", None)
    if members is not None:  # an ensemble
        own = {name: teacher_fingerprint(member) for name, member in members.items()}
        return text_fingerprint(
            [json.dumps([own, teacher.describe()], sort_keys=True, default=str)]
        )
    model = getattr(teacher, "model", None)
    if model is not None and hasattr(model, "state_dict"):
        return model_fingerprint(model.state_dict())
    return text_fingerprint([json.dumps(teacher.describe(), sort_keys=True, default=str)])


def tokenizer_fingerprint(tokens: Mapping[str, int] | None) -> str | None:
    """Hash of a vocabulary."""
    if tokens is None:
        return None
    return text_fingerprint([f"{token}\t{index}" for token, index in sorted(tokens.items())])


def preprocessing_fingerprint(processor: Any) -> str | None:
    """Hash of the settings of a tokenizer, image processor or feature extractor."""
    if processor is None:
        return None
    if hasattr(processor, "backend_tokenizer"):
        rules = json.loads(processor.backend_tokenizer.to_str())
        for key in ("truncation", "padding"):  # left behind by the last call
            rules.pop(key, None)
        return text_fingerprint([json.dumps(rules, sort_keys=True)])
    settings = processor.to_dict() if hasattr(processor, "to_dict") else vars(processor)
    private = {"_name_or_path", "name_or_path", "_processor_class", "transformers_version"}
    settings = {key: value for key, value in settings.items() if key not in private}
    return text_fingerprint([json.dumps(settings, sort_keys=True, default=str)])


def refuse_changes(where: Path, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise if a cache belongs to another teacher, tokenizer, preprocessing or format.

    Args:
        where: The folder of the cache.
        held: Its manifest.
        wanted: The parts that it should have; a part that is None is not known, and not compared.

    Raises:
        ValueError: some parts differ; the message names them.
    """
    wanted = json.loads(json.dumps(wanted))  # normalised like values read from a file
    pairs = {part: (held.get(part), wanted.get(part)) for part in PARTS if part in wanted}
    known = {part: pair for part, pair in pairs.items() if None not in pair}
    differing = [part for part, (own, other) in known.items() if own != other]
    if differing:
        shown = "; ".join(f"{PARTS[part]}: {_difference(*known[part])}" for part in differing)
        raise ValueError(
            f"The cache {where} is of something else: {shown}. Use the teacher, tokenizer and "
            "settings it was made with, or write another cache (another folder, or delete this "
            "one)."
        )


def _difference(held: Any, wanted: Any) -> str:
    if isinstance(held, Mapping) and isinstance(wanted, Mapping):
        keys = [k for k in {**held, **wanted} if held.get(k) != wanted.get(k)]
        return ", ".join(f"{key} {_difference(held.get(key), wanted.get(key))}" for key in keys)
    return f"{str(held)[:80]} there, {str(wanted)[:80]} here"


def config_from(values: Mapping[str, Any] | None, source: str | Path = "the manifest") -> Any:
    """The teacher's configuration, without its weights; None if there is none.

    Args:
        values: As `config_values` gives them.
        source: Where they are from, for messages.

    Raises:
        ValueError: values that make no configuration, or a very large one.
    """
    if values is None:
        return None
    try:
        _refuse_large(values)
        known = values.get("model_type") in transformers.CONFIG_MAPPING  # its get() finds none
        kind: Any = transformers.CONFIG_MAPPING[values["model_type"]] if known else PretrainedConfig
        return kind.from_dict(dict(values))
    except Exception as error:  # a class may raise anything on foreign values
        raise ValueError(
            f"Expected the configuration of a model in {source}, got values that make none "
            f"({type(error).__name__}: {error!s:.300})."
        ) from error


def _refuse_large(value: Any, name: str = "") -> None:
    """Raise ValueError for excessive numbers of labels, layers and the like."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_large(inner, str(key))
    elif isinstance(value, list):
        for inner in value:
            _refuse_large(inner, name)
    elif isinstance(value, int) and value > MOST_LISTED and _COUNTS.search(name):
        raise ValueError(f"{name} of at most {MOST_LISTED:,} expected, got {value:,}")


def config_values(config: Any) -> dict[str, Any] | None:
    """A configuration as plain values, without paths of this machine."""
    if config is None:
        return None
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in values.items() if key != "_name_or_path"}


def public(value: Any) -> Any:
    """A teacher's description without local paths."""
    if isinstance(value, Mapping):
        return {str(key): public(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [public(item) for item in value]
    if isinstance(value, str) and (os.path.isabs(value) or os.path.exists(value)):
        return os.path.basename(os.path.normpath(value))
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def write_vocabulary(folder: Path, tokens: Mapping[str, int]) -> None:
    """Write a vocabulary, for comparison with the student's.

    Raises:
        ValueError: one that `unpack_vocabulary` would refuse.
    """
    text = json.dumps(tokens, ensure_ascii=False).encode()
    if len(text) > MOST_TEXT:
        raise ValueError(
            f"Expected a vocabulary of at most {MOST_TEXT:,} bytes, got {len(text):,}."
        )
    with replacing(folder / VOCABULARY) as file:
        file.write(gzip.compress(text, mtime=0))


def unpack_vocabulary(file: BinaryIO, source: str, most: int = MOST_TEXT) -> dict[str, int]:
    """Token -> id from JSON that is packed with gzip.

    Args:
        file: With the packed bytes.
        source: Where it is from, for messages.
        most: The bytes that are unpacked at most.

    Raises:
        ValueError: it is not packed, cut short, damaged, too large, or no such mapping.
    """
    try:
        with gzip.GzipFile(fileobj=file) as packed:
            text = packed.read(most + 1)
        if len(text) > most:
            raise ValueError(f"more than {most:,} bytes when unpacked")
        tokens = json.loads(text)
        if not isinstance(tokens, dict) or not all(type(i) is int for i in tokens.values()):
            raise ValueError("no mapping from tokens to ids")
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise ValueError(
            f"Expected a vocabulary, JSON packed with gzip, in {source}, got something else "
            f"({type(error).__name__}: {error!s:.200})."
        ) from error
    return tokens


def read_vocabulary(folder: Path, facts: Mapping[str, Any]) -> dict[str, int] | None:
    """Read the stored vocabulary, if there is one.

    Args:
        folder: Folder of the cache.
        facts: Its manifest.

    Raises:
        ValueError: it is missing, or not the one of the manifest: tokens would be matched wrongly.
    """
    path = folder / VOCABULARY
    refuse_no_file(path)
    there, tokens = path.is_file(), None
    if there:
        try:
            with open(path, "rb") as file:
                tokens = unpack_vocabulary(file, str(path))
        except ValueError as error:
            raise ValueError(
                f"{error} If the cache is yours, delete this file, and run the command that wrote "
                "the cache again: finished shards stay."
            ) from error
    if tokenizer_fingerprint(tokens) != facts["tokenizer"]:
        raise ValueError(
            f"Expected {path} as it was written, {'it is another one' if there else 'it is gone'}. "
            f"{'Delete it, and run' if there else 'Run'} the command that wrote the cache again: "
            "finished shards stay."
        )
    return tokens


README = """---
tags:
- hf_distill
- knowledge-distillation
configs:
- config_name: default
  data_files: data/*.arrow
---

# Outputs of a teacher: {examples:,} examples

Outputs of {teacher}, written by the Python package hf_distill. They take the teacher's place in a
training:

```python
from hf_distill import CachedTeacher, DistillationTrainer

trainer = DistillationTrainer(student, args, teacher_model=CachedTeacher("PATH OR HUB ID"), ...)
```

An example is found by its `key`, a hash of the inputs as the models see them. The texts or images
themselves are not in here. Kept is:

```json
{content}
```
"""


def write_readme(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the card of the cache as a data set."""
    description = facts["describe"]
    parts = [str(description[key]) for key in ("architecture", "name") if description.get(key)]
    name = f"{parts[0]} ({parts[1]})" if len(parts) == 2 else (parts or ["a teacher"])[0]
    name = " ".join(name.split())  # one line, so that no further Markdown can follow
    kept = {key: facts["content"][key] for key in ("kind", "logits", "states")}
    text = README.format(
        examples=facts["examples"], teacher=name, content=json.dumps(kept, indent=1)
    )
    with replacing(folder / CARD) as file:
        file.write(text.encode())


def refuse_other_card(folder: Path) -> None:
    """Raise if writing a cache would replace another README.

    Raises:
        ValueError: there is a README.md that no cache's card begins like.
    """
    path = folder / CARD
    refuse_no_file(path)
    if path.is_file() and not path.read_bytes().startswith(
        README[: README.index("configs")].encode()
    ):
        raise ValueError(
            f"Expected an empty folder for a new cache, or a cache, at {folder}, got one with a "
            f"{CARD} that is not a cache's: it would be replaced. Use another folder."
        )


def complete(
    folder: Path, facts: Mapping[str, Any], tokens: Mapping[str, int] | None, anew: bool = False
) -> None:
    """Write the further files of a cache atomically.

    Args:
        folder: Folder of the cache.
        facts: Its manifest.
        tokens: The teacher's vocabulary, if it has one.
        anew: Also existing ones, which may belong to other data while there is no manifest.
    """
    if tokens is not None and (anew or not (folder / VOCABULARY).is_file()):
        write_vocabulary(folder, tokens)
    if anew or not (folder / CARD).is_file():
        write_readme(folder, facts)
