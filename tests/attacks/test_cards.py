"""Attacks on cards: names, labels and limitations that are Markdown, HTML, YAML, or end a table.

The judge is markdown-it, a CommonMark renderer with tables, and a copy of the Hub's own checks.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from markdown_it import MarkdownIt
from tally import Tally

from hf_distill.hub.markup import cell, code, fenced, sentence
from tests.hub import test_card_fuzz as cards

RENDERER = MarkdownIt("commonmark", {"html": True}).enable("table")
PIECES = (
    *("`", "``", "```", "````", "~~~", "\\", "\\\\", "|", "\\|", "!", " ", "\n", "*", "_", "#"),
    *("<b>", "</b>", "<script>", '<a href="`">', "<!--", "-->", "<style>", "&lt;", "<x:y>"),
    *("[x](y)", "![x](y)", "[x]: y", "- ", "> ", "1. ", "---", "===", "$x$", "a", '"', "'", "<"),
)
KNOWN = {
    "a fence as a code span": {
        "limitations": ["```\n<script>x</script>```\n<script>x</script>"],
    },
    "a pipe in a code span": {"teacher": {"name": "<style>x</style>a | b"}},
    "an escaped backtick": {"limitations": ["\\`<script>x</script>`"]},
    "an escaped backslash": {"limitations": ["\\<script>x</script>"]},
    "a pipe in an address": {"data": {"name": "x", "url": "https://a.b/`|<b>`|"}},
}


def _injected(body: str) -> list[str]:
    """What a renderer makes of text that was to be a paragraph, an item or a cell."""
    parsed = RENDERER.parse(body)
    kinds = [t.type for token in parsed for t in (token, *(token.children or []))]
    bad = ("html_block", "html_inline", "image", "heading_open", "hr", "blockquote_open")
    return [kind for kind in kinds if kind in (*bad, "code_block", "fence")]


def _mixtures(number: int, seed: int) -> Iterator[str]:
    draw = random.Random(seed)
    for _ in range(number):
        yield "".join(draw.choice(PIECES) for _ in range(draw.randint(1, 9)))


def _attack_markup(number: int, seed: int) -> None:
    with Tally("cards: markup in a value") as attacks:
        for text in _mixtures(number, seed):
            with attacks.attack(repr(text)):
                assert _injected(f"- one\n- {sentence(text)}\n- {sentence(text)} end\n") == []
                assert _injected(f"- Teacher: {code(text)} at {cell(text)}\n") == []
                table = f"| a | b |\n| --- | --- |\n| {code(text)} | {cell(text)} |\n"
                parsed = [token.type for token in RENDERER.parse(table)]
                assert (parsed.count("td_open"), parsed[0]) == (2, "table_open")
                assert _injected(table) == []
                assert _injected(f"{fenced(text, 'yaml')}\n\nend\n") == ["fence"]


def test_no_value_injects_markup() -> None:
    """HTML of a teacher's name runs in the page of whoever renders the card without a filter."""
    _attack_markup(1_000, seed=0)


@pytest.mark.slow
def test_no_value_injects_markup_long() -> None:
    """The long form: what only some mixtures of nine pieces do."""
    _attack_markup(4_000, seed=1)


def _run(draw: random.Random) -> dict[str, Any]:
    """The facts of a run, each of them hostile."""

    def text() -> str:
        if draw.random() < 0.5:
            return draw.choice(cards.HOSTILE)
        return "".join(draw.choice(PIECES) for _ in range(draw.randint(1, 9)))

    words = {"name": text(), "revision": text(), "architecture": text()}
    return {
        **{"model_name": text() or "x", "task": "text-classification", "formula": text()},
        **{"teacher": {**words, "how": text(), "license": text()}, "student": words},
        **{"objective": [{"name": text(), "weight": 0.5, "settings": {text(): text()}}]},
        **{"data": {"name": text(), "license": text(), "url": text(), "splits": {text(): 3}}},
        **{"limitations": [text(), text()], "results": {"student": {"accuracy": 0.5}}},
        **{"training": {text(): text(), "x": {text(): text()}}, "environment": {text(): text()}},
        **{"reproduce": {"command": text(), "recipe": text()}, "tags": [text()]},
        **{"samples": [{"prompt": text(), "texts": {text(): text()}}]},
    }


def _attack_cards(number: int, seed: int) -> None:
    draw, counts = random.Random(seed), {"valid": 0, "refused": 0}
    with Tally("cards: hostile facts") as attacks:
        for what, facts in KNOWN.items():
            with attacks.attack(what):
                cards.fuzz({"model_name": "x", **facts}, counts)
        assert counts["valid"] == len(KNOWN)
        for index in range(number):
            with attacks.attack(f"{seed}: {index}"):
                cards.fuzz(_run(draw), counts)
    assert counts["valid"] > number / 10, counts


def test_hostile_facts_make_valid_cards_or_errors() -> None:
    """Front matter that breaks, a heading, a picture, a link that runs code."""
    _attack_cards(60, seed=0)


@pytest.mark.slow
def test_hostile_facts_long() -> None:
    """More cards, of other facts than the default form has."""
    _attack_cards(300, seed=1)
