"""What is measured for every head, objective and split of the same eight examples."""

from __future__ import annotations

import tempfile
from functools import cache
from typing import Any

import torch
from tiny_models import CASES, OBJECTIVES, ROWS, Case, Example, collate, quiet_arguments
from torch import Tensor
from transformers import TrainerCallback

from hf_distill import DistillationTrainer, WeightedSum

Split = tuple[int, int, int]
"""(batch, accumulation, processes)"""
WHOLE: Split = (8, 1, 1)
Measured = tuple[dict[str, float], dict[str, Tensor]]
"""Figures and gradients, by name."""


def _unlabel(example: Example, keys: tuple[str, ...]) -> Example:
    """The same example with every label marked as missing."""
    missing: Example = {}
    for key in keys:
        value = example[key]
        if isinstance(value, list):
            missing[key] = [-100] * len(value)
        elif isinstance(value, Tensor):
            missing[key] = torch.full_like(value, torch.nan if value.is_floating_point() else -100)
        else:
            missing[key] = -100
    return {**example, **missing}


class Partly(Case):
    """Half of the rows have no label: whole micro-batches, and all of the second process."""

    def data(self, rows: int = ROWS, dtype: torch.dtype = torch.float64) -> list[Example]:
        examples = super().data(rows, dtype)
        return [
            _unlabel(e, self.label_keys) if i in (1, 4, 5, 6, 7) else e
            for i, e in enumerate(examples)
        ]


class Unlabelled(Case):
    """No label column at all; a decoder is given its inputs instead."""

    def data(self, rows: int = ROWS, dtype: torch.dtype = torch.float64) -> list[Example]:
        found = []
        for example in super().data(rows, dtype):
            labels = {key: example.pop(key) for key in self.label_keys}
            if self.config().is_encoder_decoder:
                example["decoder_input_ids"] = labels["labels"]
                example["decoder_attention_mask"] = [1] * len(labels["labels"])
            found.append(example)
        return found


def _variant(kind: type[Case], case: Case, *objectives: str) -> Case:
    return kind(**{**vars(case), "objectives": objectives})


LABELLED = {head: case for head, case in CASES.items() if case.label_keys}
SEQ2SEQ = ("seq2seq_lm", "speech_seq2seq")  # without labels such a row has nothing to learn from
TABLE: dict[str, Case] = {
    **CASES,
    **{
        f"{head}, partly labelled": _variant(Partly, case, "hard_labels", "forward_kl")
        for head, case in LABELLED.items()
        if head not in SEQ2SEQ
    },
    **{
        f"{head}, unlabelled": _variant(Unlabelled, case, "forward_kl")
        for head, case in LABELLED.items()
    },
}


EACH = ("sequence_classification", "causal_lm", "dual_encoder")
"""Heads whose objectives are measured alone at each split."""


def objectives_of(case: Case, split: Split = WHOLE) -> dict[str, WeightedSum]:
    """Each alone, where nothing is split, and the sum of all.

    The sum logs the value of each, and its gradient holds those of all: what a split changes in one
    of them is seen there.
    """
    alone = {name: 1.0 * OBJECTIVES[name] for name in case.objectives}
    total = WeightedSum(())
    for index, part in enumerate(alone.values(), start=1):
        total = total + index / 4 * part
    each = split == WHOLE or case in (CASES[head] for head in EACH)
    return {**(alone if each else {}), "all": total}


class Watch(TrainerCallback):
    """Takes another objective for every step and keeps the gradient it gives."""

    def __init__(self, objectives: dict[str, WeightedSum]):
        self.objectives = objectives
        self.gradients: dict[str, Tensor] = {}
        self.trainer: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.trainer.step.objective = list(self.objectives.values())[state.global_step]

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **others: Any
    ) -> None:
        name = list(self.objectives)[state.global_step]
        gradients = [
            torch.zeros_like(p) if p.grad is None else p.grad
            for p in self.trainer.model.parameters()
        ]
        self.gradients[name] = torch.cat([g.flatten() for g in gradients])


def measure(case: Case, split: Split, objectives: dict[str, WeightedSum] | None = None) -> Measured:
    """Every logged figure and every gradient, for each objective of a case.

    Eight examples are one optimizer step; the learning rate is 0, so that each step finds the same
    student. The objectives take turns. Seven rows are evaluated, which no split divides evenly.

    Args:
        case: The models and the data.
        split: Into what; the processes are those that call this.
        objectives: Instead of those of the case; ``all`` is the one that is evaluated.
    """
    batch, accumulation, _ = split
    student, teacher = case.models()
    objectives = objectives_of(case, split) if objectives is None else objectives
    watch = Watch(objectives)
    with tempfile.TemporaryDirectory() as folder:
        trainer = watch.trainer = DistillationTrainer(
            student,
            quiet_arguments(
                folder,
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=accumulation,
                per_device_eval_batch_size=batch,
                max_steps=len(objectives),
                learning_rate=0.0,
                optim="sgd",
                max_grad_norm=1e9,
            ),
            collate,
            case.data(),
            case.data(ROWS if case.compares_examples else 7),
            teacher_model=teacher,
            objective=objectives["all"],
            callbacks=[watch],
        )
        trainer.train()
        evaluated = trainer.evaluate()
    figures = {}
    for name, logs in zip(objectives, trainer.state.log_history, strict=False):
        figures.update({f"{name}: {key}": value for key, value in logs.items()})
    figures.update(evaluated)
    ignored = ("runtime", "per_second", "epoch", "step", "learning_rate")
    return {k: v for k, v in figures.items() if not k.endswith(ignored)}, watch.gradients


@cache
def alone(head: str, split: Split) -> Measured:
    """In this process."""
    return measure(TABLE[head], split)
