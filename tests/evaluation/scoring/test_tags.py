"""Entity and token metrics, against values of seqeval 1.2.2 (`tests/data/seqeval_1_2_2.json`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_distill.evaluation.scoring import METRICS
from hf_distill.evaluation.scoring.tags import entities

CASES = json.loads((Path(__file__).parents[2] / "data/seqeval_1_2_2.json").read_text())
NAMES = ("entity_f1", "entity_precision", "entity_recall", "token_accuracy")


def value(name: str, predictions: Any, references: Any) -> float:
    metric = METRICS[name]
    return metric.value(metric.units(predictions, references))


def test_values_are_those_of_seqeval() -> None:
    """Another convention for entities that begin with I changes F1 by several points."""
    assert {case["scheme"] for case in CASES} == {"IOB2", "IOE2", "IOBES"}
    for case in CASES:
        ours, theirs = ([row.split() for row in case[k]] for k in ("predictions", "references"))
        spans = [[list(span) for span in entities(row)] for row in theirs]
        assert spans == case["entities"], case["references"]
        for name in NAMES:
            assert value(name, ours, theirs) == pytest.approx(case[name], abs=1e-12), name


def test_other_tags() -> None:
    """Tags without prefix or type are in use; BILOU calls the end L and a single word U."""
    assert entities(["B-A", "L-A", "U-A", "I-A", "L-A", "O"]) == [
        ("A", 0, 1),
        ("A", 2, 2),
        ("A", 3, 4),
    ]
    assert entities(["B", "I", "O", "B"]) == [("_", 0, 1), ("_", 3, 3)]
    assert entities(["PER", "PER", "O", "PERSON"]) == [("PER", 0, 1), ("PERSON", 3, 3)]
    assert entities([]) == []


def test_a_model_that_finds_nothing() -> None:
    """An untrained tagger outputs O for all words: 0, and no error."""
    for name in NAMES[:3]:
        assert value(name, [["O", "O"]], [["B-A", "O"]]) == 0.0
    assert value("entity_recall", [["B-A"], []], [["B-A"], []]) == 1.0


@pytest.mark.parametrize(
    ("name", "predictions", "references", "message"),
    [
        ("entity_f1", [["O"]], [["B-A"], ["O"]], "1 predictions and 2 references"),
        ("entity_f1", [["O"]], [["B-A", "O"]], "1 predicted tags and 2 references for text 0"),
        ("entity_f1", [["B-A"]], [["O"]], "Expected entities among the references, got 1 texts"),
        ("entity_f1", [["X-A"]], [["B-A"]], "got 'X-A'"),
        ("entity_f1", [[1]], [["B-A"]], "got 1 in text 0. .*id2label"),
        ("token_accuracy", [[]], [[]], "1 references that are all empty"),
        ("token_accuracy", [], [], "at least one example for token_accuracy"),
    ],
)
def test_bad_inputs(name: str, predictions: Any, references: Any, message: str) -> None:
    """Words that are paired wrongly, or ids in place of names, would give some figure."""
    with pytest.raises(ValueError, match=message):
        value(name, predictions, references)
