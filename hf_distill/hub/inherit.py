"""Metadata inherited from the teacher's card, if it is on this machine."""

import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import REGEX_YAML_BLOCK

LONGEST = 600  # characters of a section that are quoted
_HEADING = re.compile(r"^#+\s*(?P<title>.*\S)\s*$", re.MULTILINE)
_WANTED = re.compile(r"limitation|bias|risk|out.of.scope|ethical", re.IGNORECASE)
_FILLER = re.compile(r"more information needed", re.IGNORECASE)


def local_card(name: str | None, revision: str | None = None) -> dict[str, Any]:
    """Metadata of a model's card in its folder or (at a revision) in the Hub's cache, without a
    request.

    Any of ``license`` (the identifier), ``language`` and ``quote`` (the beginning of its section on
    limitations, biases and risks, as plain text).
    """
    path = _path(name, revision)
    try:
        text = path.read_text(encoding="utf-8") if path is not None else ""
    except (OSError, UnicodeDecodeError):
        return {}
    match = REGEX_YAML_BLOCK.match(text)
    found: dict[str, Any] = {}
    try:
        metadata = yaml.safe_load(match.group(2)) if match else {}
    except (yaml.YAMLError, ValueError):  # ValueError: a date such as 2024-13-01
        metadata = {}
    if isinstance(metadata, dict):
        found = {k: metadata[k] for k in ("license", "language") if metadata.get(k)}
    if not isinstance(found.get("license", ""), str):
        del found["license"]
    quote = _quote(text[match.end() :] if match else text)
    return {**found, "quote": quote} if quote else found


def _path(name: str | None, revision: str | None) -> Path | None:
    if not name:
        return None
    if Path(name).is_dir():
        path = Path(name) / "README.md"
        return path if path.is_file() else None
    try:
        cached = try_to_load_from_cache(name, "README.md", revision=revision)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def _quote(body: str) -> str:
    """The first section on limits with something in it, without markup, cut at a sentence."""
    body = re.sub(r"```.*?(```|\Z)", "", body, flags=re.DOTALL)
    headings = list(_HEADING.finditer(body))
    for number, heading in enumerate(headings):
        after = headings[number + 1 :]
        end = after[0].start() if after else len(body)
        text = _plain(body[heading.end() : end])
        if _WANTED.search(heading["title"]) and text and not _FILLER.search(text):
            if len(text) <= LONGEST:
                return text
            end = text.rfind(". ", 0, LONGEST) + 1
            return f"{text[: end if end > LONGEST // 2 else LONGEST]} …"
    return ""


def _plain(markdown: str) -> str:
    text = re.sub(r"<!--.*?-->|!\[[^\]]*\]\([^)]*\)|<[^>]*>", " ", markdown, flags=re.DOTALL)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^[\s>*+-]+|[*`|]", " ", text, flags=re.MULTILINE)
    return " ".join(text.split())
