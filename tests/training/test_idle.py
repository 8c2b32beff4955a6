"""A training that would train nothing is refused, or says so; what only evaluates goes on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from tiny_models import CASES, collate
from tiny_recipes import recipe
from tiny_trainers import data, models, same, trainer, weights
from transformers import Trainer

from hf_distill import ForwardKL, HardLabels
from hf_distill.recipe import RecipeError, Run, load_recipe

SEQUENCES = "sequence_classification"


def edited(name: str, key: str, change: Callable[[Any], Any], rows: Any = None) -> list[Any]:
    """The data of a head with another value in some rows."""
    found = copy.deepcopy(data(name))
    for index, row in enumerate(found):
        if rows is None or index in rows:
            row[key] = change(row[key])
    return found


SPAN = ("start_positions", "end_positions")
NOTHING: dict[str, tuple[str, Callable[[], list[Any]], Any]] = {
    "no label": (SEQUENCES, lambda: edited(SEQUENCES, "labels", lambda _: -100), HardLabels()),
    "no label of a token": (
        "token_classification",
        lambda: edited("token_classification", "labels", lambda x: [-100] * len(x)),
        HardLabels(),
    ),
    "no answer in the text": (
        "question_answering",
        lambda: [{**r, **dict.fromkeys(SPAN, 99)} for r in data("question_answering")],
        HardLabels(),
    ),
    "no token": (
        "causal_lm",
        lambda: edited("causal_lm", "labels", lambda x: [-100] * len(x)),
        0.5 * HardLabels() + 0.5 * ForwardKL(),
    ),
    "no weight": (
        "causal_lm",
        lambda: [{**r, "token_weights": [0.0] * len(r["input_ids"])} for r in data("causal_lm")],
        0.5 * HardLabels() + 0.5 * ForwardKL(),
    ),
}


@pytest.mark.parametrize("name", NOTHING)
def test_data_in_which_nothing_counts(tmp_path: Path, name: str) -> None:
    """Hours of training with a loss of 0, and a student that is published as it was."""
    head, made, objective = NOTHING[name]
    rows = made()
    with pytest.raises(ValueError, match=r"counts for .*HardLabels.*, got none in 8 of 8 examples"):
        trainer(tmp_path, head, objective=objective, train_dataset=rows)
    columns = {*CASES[head].label_keys, "token_weights"}  # the remedy
    plain = [{k: v for k, v in row.items() if k not in columns} for row in rows]
    mended = trainer(tmp_path, head, alpha=1.0, train_dataset=plain, eval_dataset=plain)
    before = weights(mended.model)
    mended.train()
    assert not same(before, weights(mended.model))


def test_one_example_that_counts_is_enough(tmp_path: Path) -> None:
    """The first ones alone say nothing about the rest."""
    rows = edited(SEQUENCES, "labels", lambda _: -100, range(7))
    trainer(tmp_path, objective=HardLabels(), train_dataset=rows, max_steps=2).train()
    many = edited(SEQUENCES, "labels", lambda _: -100) * 40 + data()
    with pytest.warns(UserWarning, match=r"Nothing would be learned .* got none in 256 of 328"):
        trainer(tmp_path, objective=HardLabels(), train_dataset=many)


def test_data_without_anything_are_told_at_the_end(tmp_path: Path) -> None:
    """A stream cannot be looked through before."""

    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(edited(SEQUENCES, "labels", lambda _: -100))

    ours = trainer(tmp_path, objective=HardLabels(), train_dataset=Stream(), max_steps=2)
    before = weights(ours.model)
    with pytest.warns(UserWarning, match=r"Nothing was learned: in 2 batches nothing in the"):
        ours.train()
    assert same(before, weights(ours.model))


@pytest.mark.parametrize("steps", [{"max_steps": 0}, {"max_steps": -1, "num_train_epochs": 0}])
def test_a_training_without_steps(tmp_path: Path, steps: dict[str, Any]) -> None:
    """A script that only evaluates goes on, as with stock Trainer; what trains nothing says so."""
    ours = trainer(tmp_path, **steps)
    first = ours.evaluate()
    before = weights(ours.model)
    with pytest.warns(UserWarning, match=r"Nothing is learned in this training: .*call evaluate"):
        ours.train()
    assert same(before, weights(ours.model))
    assert ours.evaluate()["eval_loss"] == first["eval_loss"]
    stock = Trainer(
        models()[0],
        tf.TrainingArguments(
            str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, **steps
        ),
        train_dataset=data(),
        data_collator=collate,
    )
    stock.train()  # nor does it refuse


def test_a_student_that_is_frozen(tmp_path: Path) -> None:
    """The message of torch is about element 0 of tensors."""
    student = models()[0].requires_grad_(False)
    ours = trainer(tmp_path, model=student)
    assert ours.evaluate()["eval_loss"] > 0  # which needs no gradient
    with pytest.raises(ValueError, match=r"BertFor.* frozen: .*requires_grad_\(True\)"):
        ours.train()
    student.requires_grad_(True)
    before = weights(student)
    trainer(tmp_path, model=student).train()
    assert not same(before, weights(student))


def test_an_objective_of_weight_0(tmp_path: Path) -> None:
    """A sum of nothing: its loss is 0."""
    with pytest.raises(ValueError, match=r"a weight above 0, got 0 for all of .*HardLabels"):
        trainer(tmp_path, objective=0.0 * HardLabels() + 0.0 * ForwardKL())
    trainer(tmp_path, objective=1.0 * HardLabels() + 0.0 * ForwardKL()).train()


@pytest.mark.parametrize("steps", [{"max_steps": 0}, {"num_train_epochs": -3}])
def test_a_recipe_without_steps_is_refused(tmp_path: Path, steps: dict[str, Any]) -> None:
    """An untrained student would be published with a card that says "distilled"."""
    plain = {"max_steps": -1, "num_train_epochs": 1}
    with pytest.raises(RecipeError, match=r"of the .* train nothing: .*Give a number above 0"):
        Run(load_recipe(recipe(tmp_path, training={**plain, **steps})), lambda _: None)
    Run(load_recipe(recipe(tmp_path / "right", training=plain)), lambda _: None)
