"""Values as Markdown holds them: escaped, one line, no table broken."""

import re
from collections.abc import Mapping
from typing import Any

_SPECIAL = re.compile(r"([\\`*\[\]<>|$])")
# In the order in which Markdown reads a line: escapes, code spans, what is left.
_INLINE = re.compile(
    r"(?P<escape>\\[!-/:-@\[-`{-~])|(?P<run>`+)(?!`).*?(?<!`)(?P=run)(?!`)|`+|!(?=\[)|<"
)
_BLOCK = re.compile(r"^(\d*)(#|>|[-+*.)](?=\s|$)|[-_]{3}|~{3})")  # what opens a block


def cell(value: Any) -> str:
    """A plain value for prose and for the cell of a table: one line, nothing read as markup."""
    return _BLOCK.sub(r"\1\\\2", _SPECIAL.sub(r"\\\1", " ".join(str(value).split())))


def sentence(markdown: str) -> str:
    """Markdown of one paragraph: links and emphasis, but no HTML, picture, heading or list."""
    text = _INLINE.sub(_harmless, " ".join(markdown.split()))
    return _BLOCK.sub(r"\1\\\2", text)


def _harmless(match: re.Match[str]) -> str:
    """Part of a paragraph; backticks that open no code span here could open one further on."""
    if match["escape"] or match["run"]:
        return match[0]
    return "".join(f"\\{sign}" for sign in match[0])


def show(value: Any) -> str:
    """`cell` of any value: four digits, yes and no, ``name = value`` of a mapping."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{cell(key)} = {show(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(f"({show(v)})" if isinstance(v, list | tuple) else show(v) for v in value)
    return cell(value)


def code(value: Any) -> str:
    """A code span; plain text where there is a pipe, which would end the cell of a table."""
    text = " ".join(str(value).split()).replace("`", chr(39))
    return f"`{text}`" if text and "|" not in text else cell(value)


def fenced(text: str, language: str) -> str:
    """A block of code, in a fence longer than any in it."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.strip()}\n{fence}"


def linked(source: Mapping[str, Any]) -> str:
    """A model or data set by name, as a link if it is on the Hub or has an address."""
    name, kind = source["name"], source.get("kind", "")
    address = str(source.get("url", ""))
    if source.get("id"):
        text = f"[{cell(name)}](https://huggingface.co/{kind}{source['id']})"
    elif re.fullmatch(r"https?://[^\s()<>|`\\]+", address):
        text = f"[{cell(name)}]({address})"
    else:
        text = cell(name) if kind else code(name)
    return f"{text} {cell(source['how'])}" if "how" in source else text


def flat(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of a table; of a mapping within it one row for each of its entries."""
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            rows += [(f"{cell(name)}: {cell(key)}", show(item)) for key, item in value.items()]
        else:
            rows.append((cell(name), show(value)))
    return rows
