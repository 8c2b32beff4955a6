"""Metrics of recipes: their choice, values that do not exist, teachers that cannot be measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef, roc_auc_score
from tiny_recipes import recipe
from transformers import AutoModelForSequenceClassification, AutoTokenizer, EvalPrediction

from hf_distill.recipe import RecipeError, Run, load_recipe
from hf_distill.recipe.labels import VALUE, Labels
from hf_distill.recipe.scoring import Scorer
from hf_distill.recipe.tasks import RECIPE_TASKS, Split

pytestmark = pytest.mark.xdist_group("recipes")
ONE_CLASS = """
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value


def one_class() -> DatasetDict:
    features = Features(text=Value("string"), label=ClassLabel(names=["a", "b"]))
    parts = {"train": [0, 1, 0, 1], "validation": [0, 0], "test": [0, 1]}
    return DatasetDict({
        name: Dataset.from_dict({"text": [f"film {name} {i}" for i in range(len(y))], "label": y},
                                features=features)
        for name, y in parts.items()
    })
"""


def silent(line: str) -> None:
    """For lines that nobody needs to see."""


def test_chosen_metrics_are_those_of_scikit_learn(tmp_path: Path) -> None:
    """A name that is accepted and measured as another one; the first one chooses the student."""
    names = ["matthews_correlation", "macro_f1", "macro_auc"]
    run = Run(load_recipe(recipe(tmp_path, metric=names)), silent)
    final = run()
    facts = run.stages["evaluation"].results()
    assert facts is not None
    model = AutoModelForSequenceClassification.from_pretrained(final).eval()
    tokenizer = AutoTokenizer.from_pretrained(final)
    test = run.examples.raw["test"]
    logits = model(**tokenizer(test["text"][:], padding=True, return_tensors="pt")).logits
    scores, labels = logits.softmax(-1)[:, 1].detach().numpy(), test["labels"][:]
    chosen = scores > 0.5
    expected = [matthews_corrcoef(labels, chosen), f1_score(labels, chosen, average="macro")]
    found = facts["student/seed-0"]
    assert [found[name] for name in names] == pytest.approx(
        [*expected, roc_auc_score(labels, scores)], abs=1e-6
    )
    report = (tmp_path / "out/report.md").read_text()
    assert report.index("Matthews") < report.index("Macro F1")


def test_a_metric_without_a_value_is_refused_before_training(tmp_path: Path) -> None:
    """The run would end at its first evaluation, after the teacher's epoch."""
    path = recipe(tmp_path, metric="macro_auc", data={"source": "one.py:one_class"})
    (tmp_path / "one.py").write_text(ONE_CLASS)
    with pytest.raises(
        RecipeError, match="`metric`: macro_auc has no value for split 'validation'"
    ):
        Run(load_recipe(path), silent)
    run = Run(load_recipe(path, (("metric", "macro_f1"),)), silent)  # the remedy
    assert run.metrics == ("macro_f1",)


def test_constant_predictions_are_the_worst_and_not_the_best_for_good() -> None:
    """Trainer keeps NaN as the best value: the first checkpoint would be published."""
    nothing: Any = None
    split = Split(nothing, nothing, Labels(VALUE), nothing, nothing)
    scorer = Scorer(RECIPE_TASKS["text_classification"], ("pearson", "mse"), split)
    labels = np.array([0.0, 1.0, 3.0])
    found = scorer(EvalPrediction(np.ones((3, 1)), labels))
    assert found == {"pearson": -math.inf, "mse": pytest.approx(np.mean((labels - 1) ** 2))}
    assert set(scorer.intervals()) == {"mse"}


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        ({"seeds": [0, 1], "config": None, "model": "org/a"}, "`teacher.seeds`: expected one"),
        (
            {"config": None, "columns": {"embedding": "vector"}, "training": {}},
            "`teacher`: expected a model",
        ),
    ],
)
def test_teachers_that_cannot_be_measured_are_refused_at_once(
    tmp_path: Path, teacher: dict[str, Any], expected: str
) -> None:
    """The error came with the evaluation, after all trainings."""
    from hf_distill.recipe.planning import PreparedRecipe

    changes: Any = {"student": {"from_teacher_layers": None, "model": "org/b"}}
    path = recipe(tmp_path, task="bi_encoder", objective=None, teacher=teacher, **changes)
    plan: Any = object.__new__(PreparedRecipe)
    plan.recipe = load_recipe(path)
    plan.task = RECIPE_TASKS["bi_encoder"]
    with pytest.raises(RecipeError, match=expected):
        plan._check_teacher()
