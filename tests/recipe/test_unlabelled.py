"""Unlabelled examples of a recipe: who is trained on them, for how long, and without labels."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, List, Value
from tiny_recipes import recipe, record
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from hf_distill.objectives import ForwardKL, HardLabels
from hf_distill.recipe import RecipeError, Run, load_recipe
from hf_distill.recipe.data_section import Data
from hf_distill.recipe.labels import CLASS, MULTI_LABEL, TAGS, VALUE, Labels
from hf_distill.recipe.unlabelled import mixture, without_labels

pytestmark = pytest.mark.xdist_group("recipes")
DATA = {"source": "lines.py:lines", "processor": "./tokenizer", "max_train_examples": 12}


def silent(line: str) -> None:
    """For lines that nobody needs to see."""


def run_of(folder: Path, unlabelled: dict[str, Any] | None, **changes: Any) -> Run:
    data = {**DATA, **({} if unlabelled is None else {"unlabelled": unlabelled})}
    return Run(load_recipe(recipe(folder, data=data, **changes)), silent)


def test_students_alone_see_them_for_equally_many_steps(tmp_path: Path) -> None:
    """More steps for the student, or labels of the rest, would make any comparison void."""
    run = run_of(tmp_path, {"share": 0.75})
    train, mixed = run.data["train"], run.trained_on("student")
    assert len(train) == 12
    unlabelled = [row["input_ids"] for row in mixed if row["labels"] == -100]
    assert len(unlabelled) == 28, "the examples beyond the first 12 of 40"
    assert len(mixed) == 28 + 9, "28 of 37 are three quarters, rounded"
    for role in ("baseline", "teacher"):
        assert run.trained_on(role)["labels"][:] == train["labels"][:]
    run()
    stages = {
        role: record(tmp_path, f"{role}/seed-0")["results"] for role in ("baseline", "student")
    }
    assert stages["baseline"]["steps"] == stages["student"]["steps"] == 4
    evaluated = [
        [entry["step"] for entry in stages[role]["history"] if "eval_accuracy" in entry]
        for role in ("baseline", "student")
    ]
    assert evaluated[0] == evaluated[1] == [2, 4]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["models"]["student"]["examples_seen"] == 32
    assert "32 (75 % without labels)" in (tmp_path / "out" / "report.md").read_text()


def test_the_loss_counts_labels_only_where_there_are_some(tmp_path: Path) -> None:
    """Examples without a label would be learned as some class, or shrink the label loss."""
    run = run_of(tmp_path, {"share": 0.5})
    student, teacher = (run.models.learner(role, 0).eval() for role in ("student", "teacher"))
    rows = [run.trained_on("student")[i] for i in range(8)]
    batch = run.collator()(rows)
    labels = batch["labels"]
    assert 0 < (labels == -100).sum() < 8
    args = run.arguments("student", 0, tmp_path / "x")
    trainer = run.make_trainer(
        student, args, HardLabels() + 2.0 * ForwardKL(1.0), run.given_teacher({"t": teacher})
    )
    loss = trainer.compute_loss(student, dict(batch))
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    ours, theirs = (model(**inputs).logits.double() for model in (student, teacher))
    hard = F.cross_entropy(ours[labels != -100], labels[labels != -100])
    soft = F.kl_div(ours.log_softmax(-1), theirs.softmax(-1), reduction="batchmean")
    torch.testing.assert_close(loss.double(), hard + 2 * soft, rtol=1e-5, atol=1e-6)


def test_a_cached_teacher_knows_the_unlabelled_examples(tmp_path: Path) -> None:
    """Training would stop at the first example that the cache lacks; weights must not differ."""
    logits = []
    for name, teacher in (("live", {}), ("cached", {"cache": {}})):
        run_of(tmp_path / name, {"share": 0.6}, teacher=teacher)()
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / name / "out/final")
        logits.append(model.eval()(torch.tensor([[4, 5, 6, 7]])).logits)
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


def test_other_examples_train_the_students_again_and_nobody_else(tmp_path: Path) -> None:
    """A finished student of other examples would be reported as that of these."""
    before = run_of(tmp_path, None).stages
    after = run_of(tmp_path, {"share": 0.5}).stages
    changed = {key for key, stage in after.items() if stage.inputs != before[key].inputs}
    assert changed == {"student/seed-0", "evaluation"}


@pytest.mark.parametrize(
    ("labels", "feature", "value", "missing"),
    [
        (Labels(CLASS, ["a", "b"]), ClassLabel(names=["a", "b"]), 1, -100),
        (Labels(VALUE), Value("float32"), 0.5, math.nan),
        (Labels(VALUE, width=2), List(Value("float32")), [0.5, 1.0], [math.nan] * 2),
        (Labels(MULTI_LABEL, ["a", "b"]), List(Value("float32")), [0.0, 1.0], [math.nan] * 2),
        (Labels(TAGS, ["a", "b"]), List(Value("int64")), [0, 1], [-100, -100]),
    ],
)
def test_every_kind_of_labels_has_a_mark_for_none(
    labels: Labels, feature: Any, value: Any, missing: Any
) -> None:
    """A 0 in place of the mark is a label."""
    rows = Dataset.from_dict({"words": [["x", "y"]] * 3, "labels": [value] * 3})
    rows = rows.cast_column("labels", feature)
    data = Data("rows", tokens_column="words")
    others = without_labels(rows.remove_columns("labels"), labels, data)
    mixed = mixture(rows, others, labels.kind, 0.5)["labels"][:]
    marks = [row for row in mixed if json.dumps(row) == json.dumps(missing)]
    assert len(mixed) == 6
    assert len(marks) == 3
    assert mixed.count(value) == 3


@pytest.mark.parametrize(
    ("unlabelled", "expected"),
    [
        ({"share": 1.0}, "above 0 and below 1"),
        ({"source": "lines.py:lines", "split": "tests"}, "has no split 'tests'"),
        ({"source": "more.py:other"}, "has no column 'text'"),
        ({"sahre": 0.5}, "share"),
    ],
)
def test_bad_settings_are_refused(
    tmp_path: Path, unlabelled: dict[str, Any], expected: str
) -> None:
    """A typing error would train without the examples."""
    tmp_path.joinpath("more.py").write_text(
        "from datasets import Dataset, DatasetDict\n"
        "def other():\n    return DatasetDict(train=Dataset.from_dict({'words': ['a']}))\n"
    )
    with pytest.raises(RecipeError, match=expected):
        run_of(tmp_path, unlabelled)


def test_the_default_needs_examples_that_are_left(tmp_path: Path) -> None:
    """With all examples labelled nothing is left to be taught without labels."""
    data = {**DATA, "max_train_examples": None, "unlabelled": {}}
    with pytest.raises(RecipeError, match=r"got none.*max_train_examples"):
        Run(load_recipe(recipe(tmp_path, data=data)), silent)
