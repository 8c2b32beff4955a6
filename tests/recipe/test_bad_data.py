"""Splits made of one table, names of classes, and bad examples: refused, or left out on demand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_recipes
from datasets import Dataset, DatasetDict
from local_files import write_csv, write_picture, write_sound

from hf_distill.recipe import RecipeError, load_recipe
from hf_distill.recipe.bad_data import check_media
from hf_distill.recipe.data_section import Data
from hf_distill.recipe.examples import RecipeExamples, load_examples, load_source
from hf_distill.recipe.findings import Findings
from hf_distill.recipe.spans import bad_spans, check_spans
from hf_distill.recipe.split_section import SplitSection
from hf_distill.recipe.splitting import divided

pytestmark = pytest.mark.xdist_group("recipes")
ALL = ("train", "validation", "test")


def table(count: int = 100, **columns: Any) -> list[dict[str, Any]]:
    """Different texts of two classes, one of them three times as frequent."""
    rows = [{"text": f"text {n}", "label": "no" if n % 4 else "yes"} for n in range(count)]
    return [{**row, **{k: v[n] for k, v in columns.items()}} for n, row in enumerate(rows)]


def examples(folder: Path, rows: list[dict[str, Any]], *keys: tuple[str, Any]) -> RecipeExamples:
    """Examples of a recipe whose data is one csv file of these rows."""
    path = tiny_recipes.recipe(folder, data={"source": "table.csv"})
    write_csv(folder / "table.csv", rows)
    overrides = [(f"data.{key}", json.dumps(value)) for key, value in keys]
    return load_examples(load_recipe(path, overrides))


def texts(found: RecipeExamples, split: str) -> set[str]:
    return set(found.raw[split]["text"][:])


# ---- splits of one table -------------------------------------------------------------------------


def test_default_shares_with_equal_classes(tmp_path: Path) -> None:
    """A test split of one class, or one that shares rows with training, has no meaning."""
    found = examples(tmp_path, table())
    assert found.sizes == {"train": 70, "validation": 10, "test": 20}
    assert set.union(*(texts(found, split) for split in ALL)) == {f"text {n}" for n in range(100)}
    for split, size in found.sizes.items():
        yes = found.raw[split]["labels"][:].count(found.names.index("yes"))
        assert abs(yes - size / 4) <= 1, split


def test_the_seed_of_the_split_alone_changes_it(tmp_path: Path) -> None:
    """Students of other seeds would be tested on other rows."""
    first = texts(examples(tmp_path, table()), "test")
    path = tmp_path / "recipe.yaml"
    assert texts(load_examples(load_recipe(path, [("seed", "5")])), "test") == first
    assert texts(load_examples(load_recipe(path, [("data.split", "{seed: 5}")])), "test") != first


def test_groups_and_copies_stay_together(tmp_path: Path) -> None:
    """A speaker in training and test is recognised by the voice."""
    people = [f"p{n % 23}" for n in range(100)]
    found = examples(tmp_path, table(person=people), ("split", {"by": "person", "test": 0.3}))
    by = dict(zip((row["text"] for row in table()), people, strict=True))
    groups = [{by[text] for text in texts(found, split)} for split in ALL]
    assert sum(map(len, groups)) == 23, "each person is in one split"
    assert 20 <= found.sizes["test"] <= 40
    copies = table(40) * 3
    again = examples(tmp_path / "copies", copies)
    assert sum(len(texts(again, split)) for split in ALL) == 40
    assert sum(again.sizes.values()) == 120
    assert not again.findings.limitations


def test_only_missing_splits_are_made(tmp_path: Path) -> None:
    """A given test split must not be replaced by training rows."""
    whole, test = Dataset.from_list(table(50)), Dataset.from_list([{"text": "x", "label": "no"}])
    given = DatasetDict(train=whole, test=test)
    data = Data("org/name", split=SplitSection(validation=0.2), validation_split=None)
    found, settings, lines = divided(given, data, ["text"], local=False)
    assert found["test"]["text"][:] == ["x"]
    assert len(found[settings.validation_split or ""]) == 10
    assert "10 for validation" in lines[0]
    unchanged, _, lines = divided(given, Data("org/name"), ["text"], local=False)
    assert (unchanged, lines) == (given, [])
    crossed = Data("org/name", split=SplitSection(by="label"))
    assert "1 values of 'label'" in divided(given, crossed, ["text"], False)[2][0]


@pytest.mark.parametrize(
    ("split", "told"),
    [
        ({"test": 0.9, "validation": 0.1}, "sum is below 1"),
        ({"by": "lable"}, "has no column 'lable'.*Did you mean 'label'"),
        ({"by": "label"}, "more than 2 values of label to divide, got 2. Name another column"),
        ({"tset": 0.2}, "did you mean `data.split.test`"),
    ],
)
def test_wrong_splits_are_refused(tmp_path: Path, split: dict[str, Any], told: str) -> None:
    """A share that is ignored is found when the test split turns out empty."""
    with pytest.raises(RecipeError, match=told):
        examples(tmp_path, table(), ("split", split))


# ---- names of classes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        (["yes", "no"], ["no", "yes"], [1, 0]),
        ([0, 1], ["neg", "pos"], [0, 1]),
        ([5, 1], ["1", "2", "5"], [2, 0]),
        (["True", "False"], ["false", "true"], [1, 0]),
        (["True", "False"], ["neg", "pos"], [1, 0]),
        (["None", "NA"], ["NA", "None"], [1, 0]),
    ],
)
def test_labels_have_the_names_in_their_order(
    tmp_path: Path, values: list[Any], names: list[str], expected: list[int]
) -> None:
    """A model whose classes are exchanged has the accuracy of its errors."""
    rows = [{"text": f"text {n}", "label": values[n % 2]} for n in range(40)]
    found = examples(tmp_path, rows, ("labels", names))
    assert found.names == names
    for split in ALL:
        for row in found.raw[split]:
            assert row["labels"] == expected[int(row["text"].split()[1]) % 2]


def test_a_label_outside_the_names(tmp_path: Path) -> None:
    """Followed remedies: both leave the same number of classes."""
    rows = table(100)
    for n in (3, 7, 8):
        rows[n]["label"] = "yess"
    with pytest.raises(RecipeError) as caught:
        examples(tmp_path, rows, ("labels", ["no", "yes"]))
    for part in ("'yess'", "3 of 100", "row 4, row 8, row 9", "Did you mean 'yes'", "skip_bad"):
        assert part in str(caught.value)
    found = examples(tmp_path, rows, ("labels", ["no", "yes"]), ("skip_bad", True))
    assert sum(found.sizes.values()) == 97
    assert examples(tmp_path, rows, ("labels", ["no", "yes", "yess"])).names[2] == "yess"


# ---- bad examples --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("text", "", "a text in every row of 'text'; split 'train' has empty texts"),
        ("text", "  ", "Fill them in"),
        ("label", "", "no label in 'label'"),
    ],
)
def test_gaps_are_refused_or_left_out(tmp_path: Path, column: str, value: str, told: str) -> None:
    """An empty text is trained with its label, and nobody sees it."""
    rows = table()
    for n in (1, 30):
        rows[n][column] = value
    with pytest.raises(RecipeError, match=f"{told}") as caught:
        examples(tmp_path, rows)
    assert "2 of 100 examples: row 2, row 31" in str(caught.value)
    assert "`data.skip_bad: true`" in str(caught.value)
    found = examples(tmp_path, rows, ("skip_bad", True))
    everything = set.union(*(texts(found, split) for split in ALL))
    assert everything == {f"text {n}" for n in range(100) if n not in (1, 30)}
    assert any(line.startswith("left out") and "2 of 100" in line for line in found.lines)
    assert "2 of 100 examples of the split train were left out" in found.findings.limitations[0]


def test_a_gap_among_numbered_classes(tmp_path: Path) -> None:
    """One missing label makes pandas read 1.0, which is no class."""
    rows: list[dict[str, Any]] = [{"text": f"text {n}", "label": n % 3} for n in range(60)]
    rows[4]["label"] = ""
    with pytest.raises(RecipeError, match="no label in 'label' in 1 of 60 examples: row 5"):
        examples(tmp_path, rows)
    found = examples(tmp_path, rows, ("skip_bad", True))
    assert found.names == ["0", "1", "2"]


def test_duplicate_ids(tmp_path: Path) -> None:
    """The same patient twice counts twice."""
    ids = [f"id{n}" for n in range(100)]
    ids[9] = "id3"
    rows = table(number=ids)
    with pytest.raises(RecipeError, match=r"1 of 100 examples: row 10 \('id3'\)"):
        examples(tmp_path, rows, ("id_column", "number"))
    found = examples(tmp_path, rows, ("id_column", "number"), ("skip_bad", True))
    assert sum(found.sizes.values()) == 99
    assert sum(examples(tmp_path, rows).sizes.values()) == 100
    with pytest.raises(RecipeError, match=r"no column 'numbr'.*Did you mean 'number'"):
        examples(tmp_path, rows, ("id_column", "numbr"))


def test_an_id_in_two_splits_stays_in_the_test_split(tmp_path: Path) -> None:
    """Left out of the test split, the example would still be learned, and another one measured."""
    source = {"train": "table.csv", "validation": "second.csv", "test": "third.csv"}
    for name, ids in (("second", [7, 8]), ("third", [8, 3])):
        write_csv(
            tmp_path / f"{name}.csv",
            [{"text": f"{name} {n}", "label": "no", "number": n} for n in ids],
        )
    rows = table(number=list(range(100)))
    found = examples(
        tmp_path, rows, ("source", source), ("id_column", "number"), ("skip_bad", True)
    )
    assert found.sizes == {"train": 97, "validation": 1, "test": 2}
    assert texts(found, "test") == {"third 8", "third 3"}
    assert texts(found, "validation") == {"second 7"}
    assert not {"text 3", "text 7", "text 8"} & texts(found, "train")


def test_test_rows_in_the_training_set(tmp_path: Path) -> None:
    """The figure of a test set that was trained on is no figure."""
    write_csv(tmp_path / "more.csv", [*table(6)[:3], {"text": "new", "label": "no"}])
    source = {"train": "table.csv", "test": "more.csv"}
    found = examples(tmp_path, table(), ("source", source))
    warning = next(line for line in found.lines if line.startswith("warning"))
    assert "3 of the 4 test examples are in the training set too" in warning
    assert "3 of the 4 test examples" in found.findings.limitations[0]
    joined = [*table(), *table(6)[:3]]  # the remedy: one table
    assert not examples(tmp_path, joined).findings.limitations


def test_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    """A truncated file ends the run in its third epoch, or is read as grey."""
    for n in range(8):
        write_picture(tmp_path / "p" / "ab"[n % 2] / f"{n}.png", 20 * n)
        write_picture(tmp_path / "p" / "ab"[n % 2] / f"{n}.jpg", 20 * n)
    (tmp_path / "p" / "a" / "2.png").write_bytes(b"no picture")
    whole = (tmp_path / "p" / "b" / "3.jpg").read_bytes()
    (tmp_path / "p" / "b" / "3.jpg").write_bytes(whole[: len(whole) - 60])
    loaded = load_source(Data("p"), tmp_path)[0]
    with pytest.raises(RecipeError) as caught:
        check_media(DatasetDict(loaded), ["image"], Findings())
    for part in ("2 of 16 examples", "(2.png), not readable", "(3.jpg), not readable"):
        assert part in str(caught.value)
    findings = Findings(skip_bad=True)
    kept = check_media(loaded, ["image"], findings)["train"]
    assert len([row["image"].load() for row in kept]) == 14
    assert "unreadable images" in findings.limitations[0]


def test_sounds_that_cannot_be_read(tmp_path: Path) -> None:
    """A sound of 0 s has a mean of nan."""
    for n in range(4):
        write_sound(tmp_path / "s" / "ab"[n % 2] / f"{n}.wav", samples=50 * (n != 2))
    (tmp_path / "s" / "b" / "5.wav").write_bytes(b"RIFF")
    loaded = load_source(Data("s"), tmp_path)[0]
    with pytest.raises(RecipeError) as caught:
        check_media(DatasetDict(loaded), ["audio"], Findings())
    for part in ("2 of 5 examples", "(2.wav), a sound of 0 s", "(5.wav), not readable"):
        assert part in str(caught.value)
    assert len(check_media(loaded, ["audio"], Findings(skip_bad=True))["train"]) == 3


def test_spans_that_do_not_match_the_text() -> None:
    """An answer that is one character off teaches another span."""
    contexts = ["one two three"] * 6
    answers: list[Any] = [
        {"text": ["two"], "answer_start": [4]},
        {"text": [], "answer_start": []},
        {"text": ["two"], "answer_start": [5]},
        {"text": ["three", "one"], "answer_start": [8, -1]},
        None,
        {"text": ["two"], "answer_start": []},
    ]
    assert bad_spans(contexts, answers) == [2, 3, 4, 5]
    with pytest.raises(RecipeError) as caught:
        check_spans(contexts, answers)
    for part in ("4 of 6", "row 3 ('two' expected at 5, there is 'wo ')", "row 4 ('one'", "row 5"):
        assert part in str(caught.value)
    check_spans(contexts[:2], answers[:2])


def test_a_large_table_is_checked_fast() -> None:
    """Checks in a Python loop over a million rows would take longer than the training."""
    import time

    from hf_distill.recipe.bad_data import check_tables

    count = 200_000
    rows = {"text": [f"text {n}" for n in range(count)], "label": [n % 5 for n in range(count)]}
    loaded = DatasetDict(train=Dataset.from_dict(rows))
    begin = time.process_time()
    check_tables(loaded, Data("x"), ["text"], True, Findings())
    assert time.process_time() - begin < 2
    assert np.array(loaded["train"].num_rows) == count
