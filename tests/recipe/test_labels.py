"""Labels of recipes: encoded alike in all splits, for each kind of column."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, List
from sklearn.preprocessing import LabelBinarizer, MultiLabelBinarizer

from hf_distill.recipe import RecipeError
from hf_distill.recipe.data_section import Data
from hf_distill.recipe.labels import CLASS, MULTI_LABEL, TAGS, VALUE, read_labels

KINDS = (CLASS, VALUE, MULTI_LABEL)
LISTS = [["red", "blue"], [], ["green"], ["blue", "green", "red"]]


def splits(values: list[Any], test: list[Any], feature: Any = None) -> DatasetDict:
    found = DatasetDict(
        {
            name: Dataset.from_dict({"label": rows})
            for name, rows in (("train", values), ("test", test))
        }
    )
    return found if feature is None else found.cast_column("label", feature)


@pytest.mark.parametrize("feature", [None, List(ClassLabel(names=["blue", "green", "red"]))])
def test_several_labels_are_those_of_scikit_learn(feature: Any) -> None:
    """A class that only the test split has shifts the columns of the others."""
    lists = LISTS if feature is None else [[feature.feature.str2int(x) for x in r] for r in LISTS]
    found, labels = read_labels(splits(lists[:3], lists[3:], feature), Data("d"), KINDS)
    judge = MultiLabelBinarizer(classes=["blue", "green", "red"]).fit(LISTS)
    assert (labels.kind, labels.names) == (MULTI_LABEL, list(judge.classes_))
    np.testing.assert_array_equal(found["train"]["label"][:], judge.transform(LISTS[:3]))
    np.testing.assert_array_equal(found["test"]["label"][:], judge.transform(LISTS[3:]))
    assert labels.head["problem_type"] == "multi_label_classification"


def test_names_are_numbered_alike_in_all_splits() -> None:
    """Numbered by each split alone, "b" would be 1 in training and 0 in the test."""
    found, labels = read_labels(splits(["b", "a", "b"], ["b", "c"]), Data("d"), KINDS)
    names = LabelBinarizer().fit(["a", "b", "c"]).classes_.tolist()
    assert labels.names == names
    for split, expected in (("train", ["b", "a", "b"]), ("test", ["b", "c"])):
        assert [names[i] for i in found[split]["label"][:]] == expected


def test_numbers_are_values_only_on_demand() -> None:
    """Grades 0, 1, 2 may be classes or values; 0.5 is no class."""
    _, labels = read_labels(splits([0, 1, 2], [1]), Data("d"), KINDS)
    assert labels.kind == CLASS
    found, labels = read_labels(splits([0, 1, 2], [1]), Data("d", problem="regression"), KINDS)
    assert (labels.kind, found["train"]["label"][:]) == (VALUE, [0.0, 1.0, 2.0])
    _, labels = read_labels(splits([0.5, 1.0], [2.0]), Data("d"), KINDS)
    assert labels.head == {"num_labels": 1, "problem_type": "regression"}
    _, labels = read_labels(splits([[0.5, 1.0]], [[2.0, 3.0]]), Data("d"), KINDS)
    assert (labels.kind, labels.width) == (VALUE, 2)


def test_tags_are_a_number_for_each_word() -> None:
    """Of several labels the order does not count, of tags it does."""
    found, labels = read_labels(splits([["B", "O"], ["O"]], [["I", "B"]]), Data("d"), (TAGS,))
    assert labels.names == ["B", "I", "O"]
    assert found["test"]["label"][:] == [[1, 0]]


@pytest.mark.parametrize(
    ("values", "problem", "kinds", "expected"),
    [
        ([{"a": 1}], None, KINDS, "expected one class per example.*or a number per example"),
        ([["a"]], "single_label", KINDS, "expected one class per example"),
        ([[1.0, 2.0], [1.0]], None, KINDS, "equally many numbers"),
        ([0, 2], None, KINDS, "classes 0 to 1"),
        ([0, 1], "regression", (CLASS,), "`data.problem`: regression is not for this task"),
    ],
)
def test_other_columns_are_refused(values: Any, problem: Any, kinds: Any, expected: str) -> None:
    """They would be read as classes by their text."""
    with pytest.raises(RecipeError, match=expected):
        read_labels(splits(values, values), Data("d", problem=problem), kinds)
