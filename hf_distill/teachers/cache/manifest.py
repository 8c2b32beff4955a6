"""Manifest of a cache: teacher, data and formats."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import transformers
from transformers import PretrainedConfig

from hf_distill.models.tasks import TASKS
from hf_distill.teachers.cache.checked_json import MANIFEST, PARTS, refuse_no_file, replacing
from hf_distill.teachers.cache.content import Content
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
    if (inner := getattr(teacher, "teacher", None)) is not None:
        return text_fingerprint([teacher_fingerprint(inner), _sorted_json(teacher.describe())])
    if (members := getattr(teacher, "teachers", None)) is not None:  # an ensemble
        own = {name: teacher_fingerprint(member) for name, member in members.items()}
        return text_fingerprint([_sorted_json([own, teacher.describe()])])
    model = getattr(teacher, "model", None)
    if model is not None and hasattr(model, "state_dict"):
        return model_fingerprint(model.state_dict())
    return text_fingerprint([_sorted_json(teacher.describe())])


def _sorted_json(values: Any) -> str:
    return json.dumps(values, sort_keys=True, default=str)


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
    return text_fingerprint([_sorted_json(settings)])


def refuse_changes(where: Path, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise ValueError if a cache belongs to another teacher, tokenizer, preprocessing or format.

    ``wanted`` are the parts that its manifest ``held`` should have; a part that is None is not
    known, and not compared.
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
    """The teacher's configuration, without its weights, from `config_values`; None if there is
    none. ValueError for values that make no configuration, or a very large one."""
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


def unpack_vocabulary(file: BinaryIO, source: str, most: int = MOST_TEXT) -> dict[str, int]:
    """Token -> id from JSON that is packed with gzip, of at most ``most`` bytes when unpacked;
    ValueError for anything else."""
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
    """Read the stored vocabulary, if there is one; ValueError if it is missing, or not the one of
    the manifest ``facts``."""
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


def _write_readme(folder: Path, facts: Mapping[str, Any]) -> None:
    description = facts["describe"]
    parts = [str(description[key]) for key in ("architecture", "name") if description.get(key)]
    name = f"{parts[0]} ({parts[1]})" if len(parts) == 2 else (parts or ["a teacher"])[0]
    name = " ".join(name.split())  # one line, so that no further Markdown can follow
    kept = {key: facts["content"][key] for key in ("kind", "logits", "states")}
    shown = json.dumps(kept, indent=1)
    text = README.format(examples=facts["examples"], teacher=name, content=shown)
    with replacing(folder / CARD) as file:
        file.write(text.encode())


def refuse_other_card(folder: Path) -> None:
    """Raise ValueError for a README.md that no cache's card begins like: it would be replaced."""
    path = folder / CARD
    refuse_no_file(path)
    begin = README[: README.index("configs")].encode()
    if path.is_file() and not path.read_bytes().startswith(begin):
        raise ValueError(
            f"Expected an empty folder for a new cache, or a cache, at {folder}, got one with a "
            f"{CARD} that is not a cache's: it would be replaced. Use another folder."
        )


def complete(
    folder: Path, facts: Mapping[str, Any], tokens: Mapping[str, int] | None, anew: bool = False
) -> None:
    """Write the further files of a cache atomically, existing ones only if ``anew``: these may
    belong to other data while there is no manifest."""
    if tokens is not None and (anew or not (folder / VOCABULARY).is_file()):
        text = json.dumps(tokens, ensure_ascii=False).encode()
        if (size := len(text)) > MOST_TEXT:
            raise ValueError(f"Expected a vocabulary of at most {MOST_TEXT:,} bytes, got {size:,}.")
        with replacing(folder / VOCABULARY) as file:
            file.write(gzip.compress(text, mtime=0))
    if anew or not (folder / CARD).is_file():
        _write_readme(folder, facts)


# ---- validation: a manifest may be untrusted input --------------------------------------------


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _are_names_by_prefix(value: Any) -> bool:
    named = isinstance(value, Mapping) and all(map(_is_text, value))
    return named and all(map(_are_names, value.values()))


TASK = f"one of {', '.join(sorted(TASKS))}"
FORMS: dict[str, Callable[[Any], Any]] = {
    "a hash": _is_text,
    TASK: lambda value: _is_text(value) and value in TASKS,
    "a list of names": _are_names,
    "lists of names by prefix,": _are_names_by_prefix,
    "a mapping": lambda value: isinstance(value, Mapping),
    "a number from 1 on": lambda value: type(value) is int and value > 0,
}
FIELDS = {
    "teacher": "a hash",
    "task": TASK,
    "inputs": "a list of names",
    "raw_columns": "lists of names by prefix, or null",
    **dict.fromkeys(("tokenizer", "preprocessing"), "a hash or null"),
    **dict.fromkeys(("content", "describe"), "a mapping"),
    **dict.fromkeys(("views", "config"), "a mapping or null"),
    **dict.fromkeys(("examples", "shard_size", "shards"), "a number from 1 on"),
}
"""Fields of a manifest, with the expected form."""


def check_facts(folder: str | Path, facts: Mapping[str, Any]) -> Content:
    """The content that a manifest describes; ValueError if a field is missing or of another type,
    or the fields do not fit together."""
    for name, wanted in FIELDS.items():
        form = wanted.removesuffix(" or null")
        there = name in facts or name == "raw_columns"  # which caches of before lack
        null = form != wanted and there and facts.get(name) is None
        if not null and not FORMS[form](facts.get(name)):
            got = f"{facts[name]!r:.80}" if name in facts else "nothing"
            raise ValueError(_refusal(folder, f"{wanted} as {name}", got))
    shards = -(-facts["examples"] // facts["shard_size"])
    if facts["shards"] != shards:
        wanted = f"{shards} shards of {facts['examples']} examples, {facts['shard_size']} each"
        raise ValueError(_refusal(folder, wanted, str(facts["shards"])))
    try:
        return Content.from_json(facts["content"])
    except ValueError as error:
        raise ValueError(_refusal(folder, "content that can be read", str(error))) from error


def _refusal(folder: str | Path, wanted: str, got: str) -> str:
    return (
        f"Expected {wanted} in {Path(folder) / MANIFEST}, got {got}. It was not written by this "
        "hf_distill, or changed since. Restore it from a copy, or write the cache anew in another "
        "folder."
    )
