"""What the loopback Hub keeps and checks: repositories, collections, metadata, planned faults.

The checks of metadata are written from the messages that people got from the real Hub (issues of
huggingface_hub, transformers and mteb), without looking at `hf_distill.hub.check`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

USER = "tester"
LFS = (".safetensors", ".png", ".bin", ".arrow", ".onnx", ".gz")
_FRONT = re.compile(r"\A---\s*\n(.*?\n)---\s*(?:\n|\Z)", re.DOTALL)


class Refused(Exception):  # noqa: N818 - an answer, not an error of the server
    """An HTTP answer other than success."""

    def __init__(self, status: int, code: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.more = status, code, more


@dataclass
class Repo:
    """One repository: what each branch points at, and the files of each commit."""

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str = "") -> str:
        listing = json.dumps([len(self.commits), *sorted(files)]).encode()
        sha = hashlib.sha1(listing).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def resolve(self, revision: str) -> str:
        """The commit of a branch or of a commit's own name. Raises: Refused (404)."""
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refused(404, "RevisionNotFound", f"no revision {revision}")
        return sha


@dataclass
class Collection:
    """A collection: models with notes."""

    slug: str
    title: str
    owner: str
    private: bool
    description: str | None = None
    items: list[dict[str, Any]] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        told = {"slug": self.slug, "title": self.title, "owner": {"name": self.owner}}
        told |= {"private": self.private, "description": self.description, "items": self.items}
        return told | {
            "lastUpdated": "2026-01-01T00:00:00.000Z",
            "position": 0,
            "theme": "blue",
            "upvotes": 0,
        }

    def add(self, asked: dict[str, Any]) -> None:
        """Raises: Refused (400, 409)."""
        item, note = asked["item"], asked.get("note")
        if note is not None and len(note) > 500:
            raise Refused(400, "", "a note holds at most 500 characters")
        if any(old["id"] == item["id"] for old in self.items):
            raise Refused(409, "", "the item is in the collection")
        entry = {"_id": f"item-{len(self.items)}", "position": len(self.items), **item}
        self.items.append(entry | ({"note": {"text": note}} if note else {}))


@dataclass
class Fault:
    """What goes wrong with requests whose ``METHOD path`` matches ``pattern``, ``times`` times.

    ``kind``: "status" answers ``value`` with a page of HTML, as a gateway does; "cut" closes the
    connection after ``value`` bytes of the body; "lose" does what is asked and closes it then;
    "race" lets somebody else commit to the repository first.
    """

    pattern: str
    times: int = 1
    kind: str = "status"
    value: int = 500


def oid(path: str, data: bytes) -> str:
    """What names a file's content: sha256 for LFS, git's own sha1 otherwise."""
    if path.endswith(LFS):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def card_data(files: dict[str, bytes]) -> dict[str, Any]:
    """The front matter of the README.md among ``files``."""
    match = _FRONT.match(files.get("README.md", b"").decode())
    return (yaml.safe_load(match.group(1)) if match else None) or {}


def metadata_errors(content: str) -> list[str]:
    """What the Hub says of a card's front matter; empty when it takes it."""
    match = _FRONT.match(content)
    try:
        data = yaml.safe_load(match.group(1)) if match else None
    except yaml.YAMLError as error:
        return [f"invalid YAML: {error}"]
    if not isinstance(data, dict):
        return ["empty or missing yaml metadata in repo card"]
    return [*_type_errors(data), *_index_errors(data.get("model-index", []))]


def _type_errors(data: dict[str, Any]) -> Iterator[str]:
    for key in ("tags", "datasets", "metrics", "language", "base_model"):
        value = data.get(key, [])
        for n, item in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(item, str):
                yield f'"{key}[{n}]" must be a string'
            elif not item:
                yield f'"{key}[{n}]" is not allowed to be empty'
            elif key in ("datasets", "base_model") and not re.fullmatch(
                r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*", item, re.ASCII
            ):
                yield f'"{key}[{n}]" with value "{item}" is not valid'
            elif key == "language" and not re.fullmatch("[a-z]{2,3}|code|multilingual", item):
                yield f'"{key}[{n}]" with value "{item}" is not valid. It must be an ISO 639 code'
    for key in ("license", "license_name", "library_name", "pipeline_tag"):
        if key in data and not (isinstance(data[key], str) and data[key]):
            yield f'"{key}" must be a string'
    if data.get("base_model_relation", "finetune") not in (
        *("finetune", "adapter", "merge", "quantized"),
    ):
        yield '"base_model_relation" is not one of the known'


def _index_errors(index: Any) -> Iterator[str]:
    if not isinstance(index, list):
        yield '"model-index" must be an array'
        return
    for m, model in enumerate(index):
        if not (isinstance(model, dict) and isinstance(model.get("name"), str) and model["name"]):
            yield f'"model-index[{m}].name" is required'
            continue
        for r, result in enumerate(model.get("results", [])):
            where = f"model-index[{m}].results[{r}]"
            yield from _result_errors(where, result)


def _result_errors(where: str, result: dict[str, Any]) -> Iterator[str]:
    dataset = result.get("dataset", {})
    if not isinstance(dataset.get("name"), str) or not dataset["name"]:
        yield f'"{where}.dataset.name" is required'
    if not re.fullmatch(r"(?:[\w-]+/)?[\w.-]+", str(dataset.get("type", "")), re.ASCII):
        yield f'"{where}.dataset.type" fails to match the required pattern'
    for key in ("config", "split", "revision"):
        if key in dataset and not isinstance(dataset[key], str):
            yield f'"{where}.dataset.{key}" must be a string'
    for n, metric in enumerate(result.get("metrics", [])):
        if not isinstance(metric.get("type"), str) or "value" not in metric:
            yield f'"{where}.metrics[{n}]" needs a type and a value'
