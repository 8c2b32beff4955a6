"""Blocks of the manual: Python is executed as printed, commands go through the parser."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.benchmarks import headline
from tests.pages import page_blocks, stand_ins

ROOT = page_blocks.ROOT
README = ROOT / "README.md"
if not README.exists():
    pytest.skip("an installed package comes without its README", allow_module_level=True)
PAGES = page_blocks.pages()
EXECUTED = [page for page in PAGES if any(b.language == "python" for b in page_blocks.blocks(page))]


def named(pages: list[Path]) -> list[Any]:
    """Parameters named after the pages' paths; slow pages carry the mark."""
    marks = {page: [pytest.mark.slow] if page_blocks.is_slow(page) else [] for page in pages}
    return [pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks[page]) for page in pages]


@pytest.mark.parametrize("page", named(EXECUTED))
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name or an argument that no longer exists is the first thing that a newcomer meets."""
    monkeypatch.chdir(tmp_path)
    stand_ins.short_training(monkeypatch)
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where dataclasses look for annotations
    names = module.__dict__
    given = {"names": names, "folder": tmp_path, "monkeypatch": monkeypatch}

    def call(function: Callable[..., dict[str, Any]]) -> dict[str, Any]:
        return function(**{key: given[key] for key in inspect.signature(function).parameters})

    for block in page_blocks.blocks(page):
        if block.language != "python" or block.skipped:
            continue
        setups = [(importlib.import_module(f"tests.pages.{file}"), f) for file, f in block.setups]
        for where, function in setups:
            names.update(call(getattr(where, function)))
        code = "\n" * block.line + block.code  # errors and `inspect` then show the page's lines
        exec(compile(code, str(page), "exec"), names)
        for where, function in setups:
            if check := getattr(where, f"check_{function}", None):
                call(check)


def test_readme_results_are_those_of_the_committed_run() -> None:
    """A figure that was typed by hand, or that stayed when the run was made anew."""
    text = " ".join(README.read_text("utf-8").split())
    found = json.loads(headline.RESULTS.read_text("utf-8"))
    gains = [headline.gain(found, arm) for arm in ("distilled", "same")]
    for part in (headline.table(found), *gains):
        assert " ".join(part.split()) in text


def test_pages_are_short() -> None:
    """Nobody reads a manual on the front page."""
    text = README.read_text("utf-8")
    assert len(text.split()) <= 1200
    for page in PAGES:
        assert len(page.read_text("utf-8").splitlines()) <= 200, page


@pytest.mark.parametrize("page", named(PAGES))
def test_commands_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option that was renamed fails for whoever copies the line."""
    from hf_distill.cli import parser as cli

    for block in page_blocks.blocks(page):
        if block.language not in ("bash", "sh", "console") or block.skipped:
            continue
        for words in page_blocks.commands(block):
            if words[:1] in (["train"], ["cache"]):
                words, _ = cli.split_overrides(words)
            with suppress(SystemExit):  # of --help; a wrong option raises a UsageError
                cli.parser().parse_args(words, argparse.Namespace(overrides=[]))
            for word in words:
                if word.startswith("recipes/") and word.endswith(".yaml"):
                    assert (ROOT / word).is_file(), f"{page}:{block.line}: no {word}"


@pytest.mark.parametrize("page", named(PAGES))
def test_links_lead_somewhere(page: Path) -> None:
    """A page or a picture that was moved leaves a dead link behind."""
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in targets:
        path, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        found = (page.parent / path) if path else page
        assert found.exists(), f"{page}: {target}"
        if anchor and found.suffix == ".md":
            heads = re.findall(r"^#+ +(.*)$", found.read_text("utf-8"), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, f"{page}: {target}"
