"""Cards of runs with the strangest metadata: valid for the Hub and as Markdown, or refused."""

from __future__ import annotations

import math
import re
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hub_store import metadata_errors
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from hf_distill.hub import StudentCard, card_problems, render, write
from hf_distill.hub.card import BEGIN, END

SECRET = "hf_" + "aB3x" * 9
HOSTILE = [
    *("", " ", "\n", "\t", "---", "...", "# Title", "## Data", "- item", "> quote", "1. one"),
    *("|", "a | b", "\\|", "`", "``", "```", "```yaml\n", "~~~", "$$", "$x$", "\\", "\\\\"),
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<!--", "-->", "--!>", "<b>"),
    *("&lt;", "&#60;script&#62;", "{{ 7 * 7 }}", "{% raw %}", "{#", "${HOME}", "%s", "{0}"),
    *("[]()", "[x]()", "[](x)", "![x](y.png)", "[x](javascript:alert(1))", "http://a.b/c?d=e"),
    *("null", "~", "no", "yes", "on", "0", "1e5", "1_000", "2024-01-01", "12:30", "None", "nan"),
    *("- a\n- b", "a: b", "a:\n  b", "'", '"', "''", "&anchor", "*alias", "!tag", "!!python/x"),
    *("@", "%", "? x", "[a, b]", "{a: b}", "key: [", "\x00", "\x07", "\x1b[31m", "\x7f", "\x85"),
    *("\u2028", "\u200b", "\u202e", "\ufeff", "\ud800", "é", "ß", "日本語", "🤗", "e\u0301", "ﷺ"),
    *(BEGIN, END, "hf_distill:end", "More information needed", SECRET, f"HF_TOKEN={SECRET}"),
    *(
        "/home/me/x",
        "~/x",
        "C:\\Users\\me\\x",
        "file:///etc/passwd",
        "\\\\host\\share",
        "../..",
        ".",
    ),
    *("me/x", "a/b/c", "me/x y", "-a/b", "model.safetensors", "_" * 50, "word " * 2000, "x" * 5000),
]

texts = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=30),
    st.lists(st.sampled_from(HOSTILE), max_size=4).map("".join),
)
numbers = st.one_of(st.floats(), st.floats(0, 1), st.integers(-(10**30), 10**30), st.just(10**400))
maybe = st.none() | numbers
values = st.recursive(
    st.one_of(texts, numbers, st.booleans(), st.none()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
results = st.dictionaries(
    st.sampled_from(["accuracy", "f1", "loss", "agreement"]) | texts,
    numbers | st.fixed_dictionaries({"mean": numbers, "std": numbers}),
    max_size=4,
)
models = st.fixed_dictionaries(
    {},
    optional={
        **{"name": texts, "revision": texts, "architecture": texts, "license": texts},
        **{"parameters": st.integers(0, 10**30), "layers": st.integers(0, 10**6), "quote": texts},
    },
)
terms = st.fixed_dictionaries(
    {"name": texts},
    optional={
        "weight": numbers | texts,
        "settings": st.dictionaries(texts, values, max_size=3),
        "citation": texts,
    },
)
papers = st.fixed_dictionaries(
    {},
    optional={
        **{"name": texts, "revision": texts, "config": texts, "license": texts, "url": texts},
        **{"test_split": texts, "splits": st.dictionaries(texts, st.integers(0, 10**12))},
        **{"labels_used": st.booleans()},
    },
)
roles = st.sampled_from(["student", "teacher", "baseline"]) | texts
samples = st.fixed_dictionaries({"prompt": texts, "texts": st.dictionaries(roles, texts)})
runs = st.fixed_dictionaries(
    {"model_name": texts},
    optional={
        "task": st.sampled_from(["text-classification", "text-generation", "fill-mask"]) | texts,
        "license": st.sampled_from(["mit", "apache-2.0", "other"]) | texts,
        "license_name": texts,
        "language": texts | st.lists(texts, max_size=3) | st.just(["en", "de"]),
        "base_model": texts,
        "base_model_revision": texts,
        "base_model_relation": st.sampled_from(["finetune", "quantized"]) | texts,
        "teacher": models,
        "student": models,
        "objective": st.lists(terms, max_size=3),
        "formula": texts,
        "data": papers,
        "results": st.dictionaries(st.sampled_from(["student", "teacher", "baseline"]), results),
        "test_examples": st.integers(0, 10**9),
        "seeds": st.integers(0, 100),
        "training": st.dictionaries(texts, values, max_size=4),
        "environment": st.dictionaries(texts, texts, max_size=3),
        "reproduce": st.fixed_dictionaries({}, optional={"command": texts, "recipe": texts}),
        "limitations": st.lists(texts, max_size=3),
        "samples": st.lists(samples, max_size=7),
        "tags": st.lists(texts, max_size=3),
    },
)

HEADINGS = {
    *("Quick start", "Student and teacher", "Distillation", "Data", "Training"),
    *("Limitations", "Licences", "Environment", "Reproduce", "Citation", "Citations", "Robustness"),
    *("Other formats", "Environmental impact", "Samples"),
}


def tokens_of(body: str) -> list[Token]:
    """All tokens of Markdown, those within lines too, as CommonMark with tables has them."""
    found = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    return [t for token in found for t in (token, *(token.children or []))]


def check(text: str, run: dict[str, Any]) -> None:
    """What must hold for every card that is given out."""
    text.encode()
    assert metadata_errors(text) == []
    assert card_problems(text) == []
    assert (text.count(BEGIN), text.count(END)) == (1, 1)
    assert SECRET not in text
    assert not re.search(r"(?<![\w.\\-])/home/me|\b[A-Za-z]:\\+Users\\+me|file://", text)
    card = ModelCard(text)  # raises on a model-index that it cannot read
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    kept = run.get("results", {}).get("student", {})
    for result in card.data.eval_results or []:
        value = kept.get(result.metric_type, result.metric_value)
        assert result.metric_value == (value["mean"] if isinstance(value, dict) else value)
        assert math.isfinite(result.metric_value)
    tokens = tokens_of(card.text)
    html = [t.content.strip() for t in tokens if t.type in ("html_block", "html_inline")]
    assert set(html) == {BEGIN, END}
    opened = [a.tag if a.nesting == 1 else "" for a in tokens]
    titles = [tokens[n + 1].content for n, tag in enumerate(opened) if tag == "h2"]
    assert set(titles) <= HEADINGS
    assert len(titles) == len(set(titles))
    assert opened.count("h1") == 1
    links = [str(token.attrs["href"]) for token in tokens if token.type == "link_open"]
    assert {urlsplit(link).scheme for link in links} <= {"", "http", "https"}
    assert not [token for token in tokens if token.type == "image"]


def fuzz(run: dict[str, Any], counts: dict[str, int]) -> None:
    """Write the card of a run, and check it, or the error."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = write(StudentCard(**run), folder)
        except ValueError as error:
            refusal: ValueError | None = error
        else:
            refusal, text = None, Path(path).read_text(encoding="utf-8")
    counts["refused" if refusal else "valid"] += 1
    if refusal is None:
        check(text, run)
        assert render(StudentCard(**run)) == text
    else:
        assert type(refusal) is ValueError, refusal
        assert any(word in str(refusal) for word in ("expected", "cannot be published")), refusal


def fuzzed(examples: int) -> dict[str, int]:
    counts = {"valid": 0, "refused": 0}

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(runs)
    def some(run: dict[str, Any]) -> None:
        fuzz(run, counts)

    some()
    return counts


def test_strange_runs_give_valid_cards_or_clear_errors() -> None:
    """A run that took days would end in a traceback, or in a card that the Hub refuses."""
    assert fuzzed(60)["valid"] > 10


@pytest.mark.slow
def test_hundreds_of_strange_runs() -> None:
    """What only one run of hundreds has: control characters, our markers, bits of YAML, HTML."""
    counts = fuzzed(600)
    assert counts["valid"] > 120, counts


@pytest.mark.parametrize("text", HOSTILE)
def test_each_hostile_text_everywhere(text: str) -> None:
    """Where one value alone breaks the card, the random mixture may hide it."""
    words = {"name": text, "revision": text, "architecture": text}
    run: dict[str, Any] = {
        **{"model_name": text or "x", "task": "text-classification", "formula": text},
        **{"teacher": words, "student": words, "base_model": text or None},
        **{"objective": [{"name": text, "weight": 0.5, "settings": {text: text}}]},
        **{"data": {"name": text, "license": text, "splits": {text: 3}}, "limitations": [text]},
        **{"results": {"student": {"accuracy": 0.5}}, "training": {text: text, "x": {text: text}}},
        **{"environment": {text: text}, "reproduce": {"command": text, "recipe": text}},
    }
    fuzz(run, {"valid": 0, "refused": 0})
