"""Multi-task students: one teacher for each head, losses and figures for each task."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import launch
from multi_task_models import HEADS, close, collator, examples, plain, reference, student, teachers
from tiny_trainers import Recorder, config
from transformers import BertForSequenceClassification, Trainer

from hf_distill import (
    CachedTeacher,
    DistillationTrainer,
    Ensemble,
    ForwardKL,
    HardLabels,
    HiddenStates,
    LossShare,
    ModelTeacher,
    MultiHead,
    OnHead,
    metrics_of_heads,
    write_cache,
)

BOTH = 0.5 * HardLabels() + 0.5 * ForwardKL(2.0)
SPLITS = {"whole": (12, 1), "halves": (6, 2), "quarters": (3, 4)}


def made(folder: Path, model: MultiHead | None = None, **options: Any) -> DistillationTrainer:
    """A trainer of one step over all examples with plain SGD."""
    size, parts = options.pop("split", (12, 1))
    arguments = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
    arguments |= {"max_steps": 1, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
    arguments |= options.pop("arguments", {})
    given: dict[str, Any] = {"teacher_model": teachers(), "objective": BOTH}
    given |= {"data_collator": collator(), "train_dataset": examples(), "callbacks": [Recorder()]}
    model = student() if model is None else model
    return DistillationTrainer(model, config(folder, **arguments), **{**given, **options})


def first(trainer: DistillationTrainer) -> dict[str, float]:
    """The figures of the first step."""
    found = (c for c in trainer.callback_handler.callbacks if isinstance(c, Recorder))
    return next(found).steps[0]


def test_losses_are_those_of_a_loop_over_examples_for_any_split(tmp_path: Path) -> None:
    """A task with few labels would count less in one split of the window than in another, or a
    missing label, or an example of another task, would be counted."""
    expected = reference(student(), teachers(), examples())
    weights = []
    for split in SPLITS.values():
        trainer = made(tmp_path, split=split)
        trainer.train()
        logs = first(trainer)
        assert len(expected) == 8
        assert [n for n, value in expected.items() if not close(logs[n], value)] == []
        assert math.isclose(logs["loss"], 0.5 * sum(expected.values()), rel_tol=1e-6)  # float32
        weights.append(dict(trainer.model.named_parameters()))
    for other in weights[1:]:
        for name, weight in weights[0].items():
            torch.testing.assert_close(other[name], weight, rtol=1e-9, atol=1e-12)


def test_a_step_is_that_of_the_stock_trainer(tmp_path: Path) -> None:
    """The gradient of a task would be another than that of the plain model of the head."""
    model, rows = student(), [row for row in examples() if row.get("task") == "topic"]
    alone = model.export_head("topic")
    trainer = made(
        tmp_path,
        model,
        teacher_model=None,
        train_dataset=rows,
        objective=OnHead("topic", HardLabels()),
    )
    trainer.train()
    inputs = [{"input_ids": r["input_ids"], "labels": r["labels"]} for r in rows]

    def stack(batch: list[dict[str, Any]]) -> dict[str, Any]:
        padded = trainer.data_collator.collate([{"input_ids": r["input_ids"]} for r in batch])
        return {**padded, "labels": torch.tensor([r["labels"] for r in batch])}

    args = trainer.args
    Trainer(alone, args, stack, inputs).train()
    learned = trainer.model.export_head("topic")
    for (name, ours), theirs in zip(learned.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=name)


def test_figures_of_each_task_are_its_own(tmp_path: Path) -> None:
    """An evaluation would mix the tasks, or count examples of another task."""
    model, rows, taught = student(), examples(), teachers()
    count = {"count": lambda p: {"count": len(p.label_ids)}}["count"]
    compute = metrics_of_heads(list(HEADS), dict.fromkeys(HEADS, count))
    trainer = made(tmp_path, model, eval_dataset=rows, compute_metrics=compute)
    found = trainer.evaluate()
    own, same = [r for r in rows if r.get("task", "themes") == "themes"], []
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            pair = [m(input_ids=ids).logits for m in (model.export_head("topic"), taught["topic"])]
        same.append(bool(pair[0].argmax() == pair[1].argmax()))
    expected = reference(model, taught, rows)
    assert close(found["eval_topic_agreement"], float(np.mean(same)))
    assert all(close(found[f"eval_{name}"], value) for name, value in expected.items())
    assert close(found["eval_loss"], 0.5 * sum(expected.values()))
    counts = {name: found[f"eval_{name}_count"] for name in HEADS}
    assert counts == {"topic": 8, "tags": 4, "stars": 4, "themes": 4}
    assert len(own) == 8
    assert {"eval_tags_agreement", "eval_themes_agreement", "eval_topic_ece"} <= found.keys()
    trainer.args.metric_for_best_model = "topic_agreement"
    assert trainer._settle_direction()
    assert trainer.args.greater_is_better


def test_uncertainty_weighs_the_losses_of_tasks(tmp_path: Path) -> None:
    """The weight of a task would not be learned, or the published student would contain it."""
    parts = [OnHead(name, HardLabels(), uncertainty=True) for name in HEADS]
    objective = sum(parts[1:], 1.0 * parts[0])
    trainer = made(tmp_path, teacher_model=None, objective=objective)
    expected = reference(student(), teachers(), examples())
    trainer.train()
    logs, learned = first(trainer), trainer.projections.state_dict()
    for name in HEADS:
        factor = 0.5 if name == "stars" else 1.0
        loss = expected[f"{name}_hard_labels"]
        assert close(logs[f"{name}_hard_labels"], loss)
        # d/ds (factor · exp(-s) · L + s / 2) at s = 0
        value = float(learned[f"{name}.uncertainty.bias"])
        assert math.isclose(value, -0.1 * (0.5 - factor * loss), rel_tol=1e-5)
    total = sum(expected[f"{n}_hard_labels"] * (0.5 if n == "stars" else 1.0) for n in HEADS)
    assert math.isclose(logs["loss"], total, rel_tol=1e-6)
    trainer.save_model(str(tmp_path / "saved"))
    again = MultiHead.from_pretrained(tmp_path / "saved")
    assert again.state_dict().keys() == student().state_dict().keys()


def test_members_of_any_kind_teach(tmp_path: Path) -> None:
    """An ensemble, a cache or features of one task would be refused or read for another."""
    rows = [{"input_ids": row["input_ids"], "task": "topic", "labels": 1} for row in examples(4)]
    rows += [{"input_ids": row["input_ids"], "task": "stars", "labels": 0.5} for row in examples(5)]
    taught = teachers()
    plain_rows = [{"input_ids": row["input_ids"], "labels": 1} for row in rows[:4]]

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        padded = collator().collate([{"input_ids": r["input_ids"]} for r in batch])
        return {**padded, "labels": torch.tensor([r["labels"] for r in batch])}

    write_cache(tmp_path / "cache", ModelTeacher(taught["topic"]), plain_rows, collate)
    pair = Ensemble({"one": taught["stars"], "two": plain("stars", 50).double()})
    objective = OnHead("topic", ForwardKL(2.0)) + OnHead("stars", ForwardKL(2.0))
    found = {}
    for kind, topic in (("live", taught["topic"]), ("cache", CachedTeacher(tmp_path / "cache"))):
        trainer = made(
            tmp_path / kind,
            train_dataset=rows,
            split=(3, 3),
            objective=objective,
            teacher_model={"topic": topic, "stars": pair},
        )
        trainer.train()
        found[kind] = first(trainer)
    assert math.isclose(found["live"]["loss"], found["cache"]["loss"], rel_tol=1e-4)
    share = LossShare(0.5) * OnHead("tags", HiddenStates("last")) + OnHead("topic", BOTH)
    trainer = made(tmp_path / "states", objective=share, arguments={"max_steps": 2})
    trainer.train()
    assert math.isfinite(trainer.state.log_history[-2]["tags_hidden_states"])


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    """A teacher of no head, one for all heads, or a head without a lesson would train nothing."""
    taught, five = teachers(), {index: str(index) for index in range(5)}
    with pytest.raises(ValueError, match=r"by the names of heads .* got \['genre'\]"):
        made(tmp_path, teacher_model={"genre": taught["topic"]})
    with pytest.raises(ValueError, match=r"a teacher for each head .* got one for all"):
        made(tmp_path, teacher_model=taught["topic"])
    with pytest.raises(ValueError, match="something to learn for the head 'tags'"):
        made(tmp_path, teacher_model={"topic": taught["topic"]}, objective=ForwardKL())
    with pytest.raises(ValueError, match="to have the student's 3 labels"):
        made(tmp_path, teacher_model={**taught, "topic": plain("topic", 1, id2label=five)})
    with pytest.raises(ValueError, match=r"one of the heads .* got OnHead"):
        made(tmp_path, objective=OnHead("genre", HardLabels()))
    with pytest.raises(ValueError, match=r"A share is that of a task: LossShare\(0.3\)"):
        OnHead("topic", HardLabels() + LossShare(0.3) * ForwardKL())
    model = BertForSequenceClassification(plain("topic", 1).config)
    with pytest.raises(ValueError, match="Pass a MultiHead as the student"):
        DistillationTrainer(model, config(tmp_path), teacher_model={"topic": taught["topic"]})


def train_part(folder: str, size: str) -> None:
    """One step over all examples; the first process writes the figures down."""
    trainer = made(Path(folder), split=(int(size), 2), eval_dataset=examples(11))
    trainer.train()
    figures = {**first(trainer), **trainer.evaluate()}
    if trainer.is_world_process_zero():
        weights = {n: p.double().sum().item() for n, p in trainer.model.named_parameters()}
        text = json.dumps({**figures, **weights})
        (Path(folder) / f"{trainer.args.world_size}.json").write_text(text)


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """The counts of a task would be those of one process."""
    launch(train_part, tmp_path, "6", processes=1)
    launch(train_part, tmp_path, "3", processes=2)
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    names = [n for n in one if not n.endswith(("runtime", "per_second", "grad_norm"))]
    assert len(names) > 40
    assert all(math.isclose(one[n], two[n], rel_tol=1e-9, abs_tol=1e-9) for n in names)
