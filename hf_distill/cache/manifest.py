"""What a cache says of itself: whose outputs it holds, of what, and how they are kept."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import PretrainedConfig

from hf_distill.cache.keys import model_fingerprint, text_fingerprint
from hf_distill.cache.sealed import replacing

VOCABULARY = "vocabulary.json.gz"
CARD = "README.md"
PARTS = {
    "teacher": "the teacher's weights",
    "task": "the task",
    "inputs": "the teacher's inputs",
    "tokenizer": "the tokenizer",
    "preprocessing": "the preprocessing",
    "content": "what is kept, and how",
    "views": "the recorded views",
}
"""The parts of a manifest that two runs must share to share a cache."""


def teacher_fingerprint(teacher: Any) -> str:
    """A hash of a teacher: its weights, or for one without weights what it says of itself."""
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
    """A hash of a vocabulary."""
    if tokens is None:
        return None
    return text_fingerprint([f"{token}\t{index}" for token, index in sorted(tokens.items())])


def preprocessing_fingerprint(processor: Any) -> str | None:
    """A hash of the settings of a tokenizer, image processor or feature extractor."""
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
    """Refuse a cache that was made of something else.

    Args:
        where: The folder of the cache.
        held: Its manifest.
        wanted: The parts that it should have; a part that is None is not known, and not compared.

    Raises:
        ValueError: some parts differ; the message names them.
    """
    wanted = json.loads(json.dumps(wanted))  # as what is there has come back from a file
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


def config_from(values: Mapping[str, Any] | None) -> Any:
    """The teacher's configuration, without its weights; None if there is none."""
    if values is None:
        return None
    known = values.get("model_type") in transformers.CONFIG_MAPPING  # its get() finds none
    kind: Any = transformers.CONFIG_MAPPING[values["model_type"]] if known else PretrainedConfig
    return kind.from_dict(dict(values))


def config_values(config: Any) -> dict[str, Any] | None:
    """A configuration as plain values, without paths of this machine."""
    if config is None:
        return None
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in values.items() if key != "_name_or_path"}


def public(value: Any) -> Any:
    """What a teacher says of itself, without the folders of this machine."""
    if isinstance(value, Mapping):
        return {str(key): public(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [public(item) for item in value]
    if isinstance(value, str) and (os.path.isabs(value) or os.path.exists(value)):
        return os.path.basename(os.path.normpath(value))
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def write_vocabulary(folder: Path, tokens: Mapping[str, int]) -> None:
    """Keep a vocabulary, for matching it with the student's."""
    text = json.dumps(tokens, ensure_ascii=False).encode()
    with replacing(folder / VOCABULARY) as file:
        file.write(gzip.compress(text, mtime=0))


def read_vocabulary(folder: Path, facts: Mapping[str, Any]) -> dict[str, int] | None:
    """The vocabulary that is kept, if there is one.

    Args:
        folder: Of the cache.
        facts: Its manifest.

    Raises:
        ValueError: it is missing, or not the one of the manifest: tokens would be matched wrongly.
    """
    path = folder / VOCABULARY
    there = path.is_file()
    tokens: dict[str, int] | None = (
        json.loads(gzip.decompress(path.read_bytes())) if there else None
    )
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

# What a teacher says: {examples:,} examples

Outputs of {teacher}, written by [hf_distill](https://pypi.org/project/hf-distill/). They take the
teacher's place in a training:

```python
from hf_distill import CachedTeacher, DistillationTrainer

trainer = DistillationTrainer(student, args, teacher_model=CachedTeacher("PATH OR HUB ID"), ...)
```

An example is found by its `key`, a hash of the inputs as the models see them. The texts or pictures
themselves are not in here. Kept is:

```json
{content}
```
"""


def write_readme(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the card of the cache as a data set."""
    told = facts["describe"]
    parts = [str(told[key]) for key in ("architecture", "name") if told.get(key)]
    name = f"{parts[0]} ({parts[1]})" if len(parts) == 2 else (parts or ["a teacher"])[0]
    kept = {key: facts["content"][key] for key in ("kind", "logits", "states")}
    text = README.format(
        examples=facts["examples"], teacher=name, content=json.dumps(kept, indent=1)
    )
    with replacing(folder / CARD) as file:
        file.write(text.encode())


def complete(
    folder: Path, facts: Mapping[str, Any], tokens: Mapping[str, int] | None, anew: bool = False
) -> None:
    """Write the files of a cache besides its manifest and shards, each whole or not at all.

    Args:
        folder: Of the cache.
        facts: Its manifest.
        tokens: The teacher's vocabulary, if it has one.
        anew: Also those that are there, which may be of something else while there is no manifest.
    """
    if tokens is not None and (anew or not (folder / VOCABULARY).is_file()):
        write_vocabulary(folder, tokens)
    if anew or not (folder / CARD).is_file():
        write_readme(folder, facts)
