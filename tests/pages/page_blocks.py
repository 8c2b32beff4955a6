"""Fenced code blocks of the Markdown pages, with the directives in HTML comments before them."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
DIRECTIVE = re.compile(r"<!--\s*(setup|not executed|slow)\s*(?::\s*(.*?))?\s*-->")
COMMAND = re.compile(r"\b(?:hf-distill|-m hf_distill)\s+(.*)")


@dataclass(frozen=True)
class Block:
    """One fenced block: ``setups`` are ``(module, function)`` names to call before it."""

    page: Path
    line: int
    language: str
    code: str
    setups: list[tuple[str, str]] = field(default_factory=list)
    skipped: str = ""


def pages() -> list[Path]:
    """The pages of the manual whose blocks are executed."""
    below = sorted((ROOT / "hf_distill").rglob("README.md"))
    return [ROOT / "README.md", *below, ROOT / "recipes" / "README.md"]


def is_slow(page: Path) -> bool:
    """Whether the page has the directive ``<!-- slow -->``."""
    return any(found[1] == "slow" for found in DIRECTIVE.finditer(page.read_text("utf-8")))


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found: list[Block] = []
    setups: list[tuple[str, str]] = []
    skipped = ""
    for token in MarkdownIt("commonmark").parse(page.read_text("utf-8")):
        if token.type == "html_block":
            for kind, value in DIRECTIVE.findall(token.content):
                if kind == "setup":
                    setups += [_function(page, name) for name in re.split(r"[,\s]+", value) if name]
                elif kind == "not executed":
                    assert value, f"{page}: `<!-- not executed: REASON -->` needs a reason"
                    skipped = value
        elif token.type == "fence":
            language = token.info.split()[0] if token.info else ""
            assert token.map is not None
            found.append(Block(page, token.map[0] + 1, language, token.content, setups, skipped))
            setups, skipped = [], ""
    return found


def _function(page: Path, name: str) -> tuple[str, str]:
    module, dot, function = name.rpartition(".")
    if not dot:
        raise ValueError(f"{page}: expected `<!-- setup: module.function -->`, got {name!r}")
    return module, function


def commands(block: Block) -> list[list[str]]:
    """The words after ``hf-distill`` in every command of a shell block."""
    lines = block.code.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        for command in re.split(r"&&|\|\||;(?=\s)", line.partition(" #")[0]):
            match = COMMAND.search(command)
            if match:
                found.append(shlex.split(match[1]))
    return found


def definition(page: str, name: str) -> Any:
    """A class that a page defines, compiled with the page's imports and nothing else of it."""
    wanted: list[ast.stmt] = []
    for block in blocks(ROOT / page):
        if block.language == "python":
            for node in ast.parse("\n" * block.line + block.code).body:
                is_import = isinstance(node, ast.Import | ast.ImportFrom)
                if is_import or (isinstance(node, ast.ClassDef) and node.name == name):
                    wanted.append(node)
    module = sys.modules[f"page.{name}"] = ModuleType(f"page.{name}")
    exec(compile(ast.Module(wanted, []), str(ROOT / page), "exec"), module.__dict__)
    return getattr(module, name)
