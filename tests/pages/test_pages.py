"""Blocks of the manual: Python is executed as printed, commands go through the parser."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import re
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

if not (Path(__file__).parents[2] / "README.md").exists():
    pytest.skip("an installed package comes without its README", allow_module_level=True)

HERE = Path(__file__).parent


def load(name: str) -> ModuleType:
    """A module of this folder, loaded from its file."""
    full = f"page_setups.{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, HERE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


page_blocks, stand_ins = load("page_blocks"), load("stand_ins")
ROOT = page_blocks.ROOT
PAGES = page_blocks.pages()
EXECUTED = [
    page
    for page in PAGES
    if page != ROOT / "README.md" and any(b.language == "python" for b in page_blocks.blocks(page))
]


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
    for block in page_blocks.blocks(page):
        if block.language != "python" or block.skipped:
            continue
        for file, function in block.setups:
            setup = getattr(load(file), function)
            given = {"names": names, "folder": tmp_path, "monkeypatch": monkeypatch}
            names.update(setup(**{key: given[key] for key in inspect.signature(setup).parameters}))
        code = "\n" * block.line + block.code  # errors and `inspect` then show the page's lines
        exec(compile(code, str(page), "exec"), names)


@pytest.mark.parametrize("page", named(PAGES))
def test_commands_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option that was renamed fails for whoever copies the line."""
    from hf_distill.cli import parser as cli
    from hf_distill.cli.overrides import split_overrides

    for block in page_blocks.blocks(page):
        if block.language not in ("bash", "sh", "console") or block.skipped:
            continue
        for words in page_blocks.commands(block):
            if words[:1] in (["train"], ["cache"]):
                words, _ = split_overrides(words)
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
