"""What a recipe's text says: the core schema of YAML 1.2, within bounds."""

from __future__ import annotations

import io
import math
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_recipes import recipe

from hf_distill.recipe import RecipeError, load_recipe
from hf_distill.recipe.yaml12 import DEEPEST, MOST_VALUES, parse_yaml, to_yaml

CORE = [
    *[(text, None) for text in ("", "~", "null", "Null", "NULL")],
    *[(text, True) for text in ("true", "True", "TRUE")],
    *[(text, False) for text in ("false", "False", "FALSE")],
    *[("0", 0), ("-19", -19), ("+12", 12), ("010", 10), ("-010", -10), ("08", 8), ("0o14", 12)],
    *[("0o10", 8), ("0x3A", 58), ("0xff", 255), ("685230", 685230)],
    *[("0.", 0.0), ("-0.0", -0.0), (".5", 0.5), ("+12e03", 12000.0), ("-2E+05", -200000.0)],
    *[("1e-5", 1e-5), ("6.8523015e+5", 685230.15), ("-.5e1", -5.0), ("1.", 1.0)],
    *[(".inf", math.inf), ("-.Inf", -math.inf), ("+.INF", math.inf)],
    *[(".nan", math.nan), (".NaN", math.nan), (".NAN", math.nan)],
]
"""Section 10.3.2 of the specification 1.2.2: its examples and its table."""
TEXT = [
    *("yes", "no", "Yes", "NO", "on", "off", "y", "n", "nULL", "tRUE", "True.", "nil", "None"),
    *("1_000", "0b11", "-0o10", "+0x1F", "0o8", "0xG", "0O10", "0X10", "190:20:30", "2:1", "1:0"),
    *("1.2.3", "1e", "e5", "1e5.0", "+", "-.", "..", "1,000", "inf", "nan", "-inf", ".iNF"),
    *("685_230.15", "190:20:30.15", "-.nan", "+.nan", "=", "<", "2001-12-14", "2024-01-01T00:00Z"),
    *("2001-12-14 21:59:43.10 -5", "x: y"[:1], "١٢", "½"),
]
"""Readers of YAML 1.1 make numbers, truth values and dates of many of these."""


def same(one: Any, other: Any) -> bool:
    """Equal and of one type; NaN is itself."""
    nan = isinstance(one, float) and isinstance(other, float) and one != one and other != other
    return type(one) is type(other) and (nan or one == other)


@pytest.mark.parametrize(("text", "value"), CORE)
def test_scalars_of_the_core_schema(text: str, value: Any) -> None:
    """`seed: 010` was 8."""
    assert same(parse_yaml(f"key: {text}", "here")["key"], value)
    if text:
        assert same(parse_yaml(f"[{text}]", "here")[0], value)


@pytest.mark.parametrize("text", TEXT)
def test_everything_else_is_text(text: str) -> None:
    """`layers: 2:1`, one pair, was the number 121."""
    assert parse_yaml(f"key: {text}", "here")["key"] == text


def test_agrees_with_another_reader() -> None:
    """The tables above could be wrong in the same way as the patterns."""
    ruamel = pytest.importorskip("ruamel.yaml")
    reader = ruamel.YAML(typ="safe", pure=True)
    reader.version = (1, 2)
    drawn = random.Random(0)
    letters = "0123456789abefnoxNI.+-:~"
    made = ["".join(drawn.choices(letters, k=drawn.randint(1, 5))) for _ in range(500)]
    told = 0
    for text in [*(text for text, _ in CORE), *TEXT, *made]:
        if KEPT_FROM_1_1.match(text):
            continue
        try:
            theirs = reader.load(io.StringIO(f"key: {text}\n"))["key"]
        except ruamel.error.YAMLError:
            with pytest.raises(RecipeError, match="is not valid YAML"):
                parse_yaml(f"key: {text}\n", "here")
            continue
        ours = parse_yaml(f"key: {text}\n", "here")["key"]
        assert same(ours, theirs), (text, ours, theirs)
        told += 1
    assert told > 450


KEPT_FROM_1_1 = re.compile(r".*_|[-+]?0b|[-+]0[ox]|=$|\d{4}-|[-+]\.\d")
"""What that reader still takes as version 1.1 did: underscores, binary numbers, signs before other
bases, dates, ``=``; and a sign before a point, which it reads as text."""


MERGED = """
base: &base {a: 1, b: 2}
more: &more {<<: *base, b: 3}
all: {<<: [{c: 9}, *more], a: 4}
"""


def test_merges_mappings() -> None:
    """A shared section that is left out, or wins over what stands beside it, trains otherwise."""
    expected = {"a": 4, "b": 3, "c": 9}
    assert parse_yaml(MERGED, "here")["all"] == expected
    first = "a: &a {k: 1, long: 1}\nb: &b {k: 2, long: 2}\nc: {<<: [*a, *b]}"
    assert parse_yaml(first, "here")["c"] == {"k": 1, "long": 1}, "of several the first wins"
    with pytest.raises(RecipeError, match="expected a section, or a list of sections"):
        parse_yaml("<<: [1]", "here")
    ruamel = pytest.importorskip("ruamel.yaml")
    for text in (MERGED, first):
        theirs = ruamel.YAML(typ="safe", pure=True).load(io.StringIO(text))
        assert parse_yaml(text, "here") == theirs


@pytest.mark.parametrize(
    "text",
    ["a: 1\na: 2", "{1: x, 01: y}", "{0o10: x, 8: y}", "a: {b: 1, 'b': 2}", "<<: {}\n<<: {}"],
)
def test_keys_stand_once(text: str) -> None:
    """The second of two keys would silently win, also where they are written differently."""
    with pytest.raises(RecipeError, match="given twice"):
        parse_yaml(text, "here")


@pytest.mark.parametrize(
    "text", ["!!int 1_000", "!!float x", "!!bool yes", "!!null x", "!!int 0b1"]
)
def test_a_tag_changes_no_scalar(text: str) -> None:
    """A tag would bring version 1.1 back, or end in Python's own error."""
    with pytest.raises(RecipeError, match="is no "):
        parse_yaml(f"key: {text}", "here")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "!!timestamp 2001-13-45",
            "!!binary x",
            "!!set {a}",
            "!!omap [a: 1]",
            "!!python/name:os.x",
        ),
        *("!!python/object/apply:os.system [id]", "!local x", "!<tag:yaml.org,2002:value> =", "[a"),
        *('"\\UFFFFFFFF"', '"\\ud83d"', "{[a]: 1}", "{? {a: 1} : 2}", "a: b: c", "\x07", "*x"),
        *(
            "- a\n- &x [*x]",
            "--- 1\n--- 2",
            "%YAML 9.9\n--- 1",
            "\tx: 1\n\ty",
            "a: !!int " + "9" * 5_000,
        ),
        *("9" * 5_000, "1e400", "-1e400"),
    ],
)
def test_what_is_no_core_yaml_is_refused(text: str) -> None:
    """A bare error of the reader, of Python's numbers or of its code points."""
    with pytest.raises(RecipeError, match=r"^here"):
        parse_yaml(text, "here")


def test_escaped_halves_of_a_character_are_one() -> None:
    """JSON, of which YAML 1.2 is a superset, writes characters beyond 16 bits in two halves."""
    assert parse_yaml('key: "\\ud83d\\ude00"', "here") == {"key": "\U0001f600"}


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGE_BOMB = "m0: &m0 {k: 1}\n" + "".join(
    f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}]}}\n" for n in range(1, 60)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 3_000 + "]" * 3_000, "levels"),
        ("{a: " * 100_000 + "}" * 100_000, "levels"),
        ("\n".join(" " * n + "- " * 1 + "a:" for n in range(0, 300, 2)), "levels"),
        ("- " * 3_000 + "x", "levels"),
        (BOMB, "values"),
        (MERGE_BOMB, "values"),
        ("\n".join(f"k{n}: {n}" for n in range(20_000)), "values"),
        (f"seeds: [{', '.join(map(str, range(100_000)))}]", "values"),
        ("a: &a {b: *a}", "that it stands in"),
        ("&a [[*a]]", "that it stands in"),
    ],
    ids=[
        "flow",
        "mappings",
        "block",
        "dashes",
        "laughs",
        "merges",
        "keys",
        "seeds",
        "itself",
        "within",
    ],
)
def test_size_and_depth_are_bounded(text: str, message: str) -> None:
    """A few hundred bytes would take minutes, all memory, or Python's stack."""
    begun = time.monotonic()
    with pytest.raises(RecipeError, match=message):
        parse_yaml(text, "here")
    assert time.monotonic() - begun < 10


def test_what_is_within_the_bounds_is_read() -> None:
    """A bound that is met too early refuses a recipe that is right."""
    deep = "[" * (DEEPEST - 1) + "1" + "]" * (DEEPEST - 1)
    value = parse_yaml(deep, "here")
    for _ in range(DEEPEST - 1):
        (value,) = value
    assert value == 1
    many = parse_yaml(f"[{', '.join('7' for _ in range(MOST_VALUES - 1))}]", "here")
    assert many == [7] * (MOST_VALUES - 1)


@pytest.mark.parametrize(
    "value",
    [
        *TEXT,
        *(text for text, _ in CORE),
        "a\nb",
        "\U0001f600",
        " x ",
        "#",
        "a: b",
        "!x",
        "%",
        "-",
        "1e5",
    ],
)
def test_text_survives_being_written(value: str) -> None:
    """`revision: "1e5"` was written without quotes and came back as a number."""
    written = to_yaml({"key": value})
    assert parse_yaml(written, "here") == {"key": value}
    assert yaml.safe_load(written) == {"key": value}, "readers of 1.1 see the same"


@pytest.mark.parametrize(
    "value", [0, -3, 2**62, 1e-5, 1e16, 0.1, math.inf, True, None, [], {}, [[1]]]
)
def test_values_survive_being_written(value: Any) -> None:
    """The resolved recipe beside a student would not repeat its run."""
    assert parse_yaml(to_yaml({"key": value}), "here") == {"key": value}
    assert yaml.safe_load(to_yaml({"key": value})) == {"key": value}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [("seed", "010", 10), ("seed", "0o10", 8), ("seed", "0x10", 16), ("seed", "1e3", 1000)],
)
def test_numbers_of_a_recipe(tmp_path: Path, key: str, value: str, expected: int) -> None:
    """A seed that is another number cannot be repeated by whoever reads the recipe."""
    path = recipe(tmp_path)
    assert getattr(load_recipe(path, [(key, value)]), key) == expected
    path.write_text(path.read_text() + f"{key}: {value}\n")
    assert getattr(load_recipe(path), key) == expected
    assert getattr(load_recipe(path, [(key, f"'{value}'")]), key) == expected, "in quotes"


@pytest.mark.parametrize(
    "value", ["1_000", "'1_000'", "190:20:30", "2:1", "0b11", "' 12 '", "'nan'"]
)
def test_what_is_no_number_is_refused_as_one(tmp_path: Path, value: str) -> None:
    """Python's own readers of numbers take blanks, underscores and words."""
    with pytest.raises(RecipeError, match="`seed`: expected a whole number"):
        load_recipe(recipe(tmp_path), [("seed", value)])
    with pytest.raises(RecipeError, match=r"`training.learning_rate`: expected a number"):
        load_recipe(recipe(tmp_path), [("training.learning_rate", value)])


@pytest.mark.parametrize("value", ["1e5", "2024", "010", "0x1f"])
def test_a_number_is_no_text(tmp_path: Path, value: str) -> None:
    """A commit such as 12e4567 became the text `inf`; the remedy is followed."""
    path = recipe(tmp_path)
    with pytest.raises(RecipeError, match="in quotes"):
        load_recipe(path, [("hub_model_id", value)])
    assert load_recipe(path, [("hub_model_id", f"'{value}'")]).hub_model_id == value
