"""A student that is its own teacher: its past, itself without adapters, its deeper layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file
from tiny_models import CASES, _resnet, collate
from tiny_trainers import (
    Recorder,
    config,
    data,
    finite,
    log_softmax,
    models,
    same,
    trainer,
    weights,
)
from torch import Tensor
from transformers import TrainerCallback

from hf_distill import DistillationTrainer, ForwardKL, HardLabels, HiddenStates, Teacher
from hf_distill.models.signals import Needs
from hf_distill.models.task_model import TaskModel
from hf_distill.objectives.base.objective import Context
from hf_distill.objectives.exits import EarlyExits
from hf_distill.teachers.self_teachers import BaseModelTeacher, EMATeacher
from hf_distill.training.checkpoints import EXTRAS

# peft 0.21 reads an attribute that transformers 5.23 has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

BOTH = 0.5 * HardLabels() + 0.5 * ForwardKL(2.0)


class Steps(TrainerCallback):
    """Keeps the student's weights of every moment."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Tensor]] = []

    def on_train_begin(self, *_: Any, model: Any = None, **others: Any) -> None:
        self.kept = [weights(model)]

    def on_step_end(self, *_: Any, model: Any = None, **others: Any) -> None:
        self.kept.append(weights(model))


def numpy(state: dict[str, Tensor]) -> dict[str, Any]:
    return {name: value.double().numpy() for name, value in state.items()}


# ---- the student's past ----------------------------------------------------------------------

PASTS: dict[str, dict[str, Any]] = {
    "every step": {"decay": 0.9},
    "every second step": {"decay": 0.8, "every": 2},
    "warm": {"decay": 0.999, "warmup": True},
    "snapshot": {"decay": 0.0, "every": 3},
}


@pytest.mark.parametrize("how", PASTS)
def test_the_past_is_a_moving_average(tmp_path: Path, how: str) -> None:
    """Batch normalisation has running means: averaged twice they lag, left out they stay 0."""
    student = tf.ResNetForImageClassification(_resnet())
    pictures = data("image_classification")
    past, keep = EMATeacher(student, **PASTS[how]), Steps()
    assert isinstance(past, Teacher)
    student.classifier[1].bias.data.add_(1.0)  # before training; the past starts from here
    ours = trainer(
        tmp_path,
        model=student,
        teacher_model=past,
        objective=BOTH,
        callbacks=[keep],
        train_dataset=pictures,
        eval_dataset=pictures,
        max_steps=4,
    )
    ours.train()
    decay, every = PASTS[how]["decay"], PASTS[how].get("every", 1)
    learned = {name for name, _ in student.named_parameters()}
    expected, latest = numpy(keep.kept[0]), {}
    for step, state in enumerate(keep.kept[1:], start=1):
        if step % every == 0:
            done, latest = step // every, numpy(state)
            share = min(decay, (1 + done) / (10 + done)) if PASTS[how].get("warmup") else decay
            for name in learned:
                expected[name] = share * expected[name] + (1 - share) * latest[name]
    found = numpy(past.model.state_dict())
    for name, value in found.items():
        wanted = expected[name] if name in learned else latest[name]
        np.testing.assert_allclose(value, wanted, rtol=2e-6, atol=1e-7, err_msg=name)
    if how == "snapshot":
        assert same(weights(past.model), keep.kept[3])
    assert not any(p.requires_grad for p in past.model.parameters())
    assert not any(m.training for m in past.model.modules())


def test_a_half_precision_student_has_a_past_in_full(tmp_path: Path) -> None:
    """In bfloat16 a thousandth of a small change is nothing: the past would never move."""
    student = models()[0].bfloat16()
    past = EMATeacher(student, decay=0.999)
    before = weights(past.model)
    ours = trainer(tmp_path, model=student, teacher_model=past, learning_rate=1e-2)
    ours.train()
    moved = [n for n, p in past.model.state_dict().items() if not torch.equal(p, before[n])]
    assert {p.dtype for p in past.model.parameters()} == {torch.float32}
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}
    assert len(moved) > len(before) / 2


def with_past(folder: Path, seed: int, **options: Any) -> Any:
    torch.manual_seed(seed)
    student = tf.BertForSequenceClassification(CASES["sequence_classification"].config())
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, **options}
    past = EMATeacher(student, decay=0.5, every=2)
    return trainer(folder, model=student, teacher_model=past, objective=BOTH, **settings)


def test_resume_is_exact(tmp_path: Path) -> None:
    """A past that starts again from the resumed student is another teacher."""
    whole = with_past(tmp_path / "whole", 0)
    whole.train()
    for step in (1, 3):
        checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
        resumed = with_past(tmp_path / "resumed", 1)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        assert same(weights(resumed.model), weights(whole.model))
        assert same(weights(resumed.teacher.model), weights(whole.teacher.model))
        assert resumed.state.log_history[-2]["loss"] == whole.state.log_history[-2]["loss"]
    saved = load_file(checkpoint / EXTRAS)
    assert set(saved) == {f"teacher.{name}" for name in whole.model.state_dict()}
    assert not any("teacher" in name for name in load_file(checkpoint / "model.safetensors"))
    plain = trainer(
        tmp_path / "plain",
        teacher_model=models()[1],
        max_steps=1,
        save_strategy="steps",
        save_steps=1,
    )
    plain.train()
    with pytest.raises(ValueError, match="made without the teacher of the present objective"):
        with_past(tmp_path, 1).train(resume_from_checkpoint=str(tmp_path / "plain/checkpoint-1"))


def test_a_new_run_starts_from_the_student_again(tmp_path: Path) -> None:
    """A second training of one trainer would be taught by the past of the first."""
    ours, keep = with_past(tmp_path, 0, save_strategy="no"), Steps()
    ours.train()
    assert not same(weights(ours.teacher.model), weights(ours.model))
    ours.args.max_steps = 1  # too early for the past to follow
    ours.add_callback(keep)
    ours.train()
    assert same(weights(ours.teacher.model), keep.kept[0])


def adapted(**options: Any) -> Any:
    torch.manual_seed(3)
    settings = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, lora_dropout=0.5, **options)
    student = get_peft_model(models()[0], settings)
    for name, parameter in student.named_parameters():
        if "lora_B" in name:  # 0 at first, so that the adapter would change nothing
            parameter.data.normal_()
    return student


def test_the_past_of_an_adapter(tmp_path: Path) -> None:
    """The base is the same; the adapter and the new classifier are averaged."""
    student, keep = adapted(), Steps()
    past = EMATeacher(student, decay=0.5)
    ours = trainer(tmp_path, model=student, teacher_model=past, callbacks=[keep], max_steps=1)
    ours.train()
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    first, last = (numpy(state) for state in keep.kept)
    assert any(name.endswith("lora_A.default.weight") for name in trained)
    for name, value in numpy(past.model.state_dict()).items():
        wanted = 0.5 * first[name] + 0.5 * last[name] if name in trained else first[name]
        np.testing.assert_allclose(value, wanted, rtol=1e-6, atol=1e-8)
    late = LoraConfig(task_type=TaskType.SEQ_CLS, r=4)
    plain = models()[0]
    wrong = trainer(tmp_path, model=plain, teacher_model=EMATeacher(plain), peft_config=late)
    with pytest.raises(ValueError, match="get_peft_model instead of peft_config"):
        wrong.train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1.0}, "decay of at least 0 and below 1, got 1.0"),
        ({"decay": -0.1}, "got -0.1"),
        ({"every": 0}, "after 1 step or more, got every=0"),
    ],
)
def test_a_past_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EMATeacher(models()[0], **settings)


def test_an_earlier_checkpoint_teaches(tmp_path: Path) -> None:
    """The folder of a checkpoint holds more than a model; it must be the model of that step."""
    keep = Steps()
    options = {"save_strategy": "steps", "save_steps": 1, "callbacks": [keep]}
    trainer(tmp_path / "first", objective=HiddenStates() + HardLabels(), **options).train()
    folder = tmp_path / "first" / "checkpoint-1"
    assert (folder / EXTRAS).exists()
    record = Recorder()
    ours = trainer(tmp_path, teacher_model=folder, objective=BOTH, callbacks=[record])
    kept = {n: t for n, t in keep.kept[1].items() if not n.startswith("distillation.")}
    assert same(weights(ours.teacher.model), kept)
    ours.train()
    assert finite(record.steps[-1])


# ---- adapters off ----------------------------------------------------------------------------


def test_without_its_adapters_a_student_is_its_base(tmp_path: Path) -> None:
    """Bit for bit, in eval mode, and nothing of the student is changed by it."""
    base, student = models()[0], adapted()
    frozen = next(p for n, p in student.named_parameters() if "lora_A" in n)
    frozen.requires_grad_(False)  # a choice of the user, which PEFT alone would undo
    student.train()
    student.base_model.model.dropout.eval()
    teacher = BaseModelTeacher(student)
    assert isinstance(teacher, Teacher)
    before = weights(student)
    flags = [m.training for m in student.modules()], [p.requires_grad for p in student.parameters()]
    batch = collate(data())
    items = teacher.task_model.items(batch)
    wanted = Needs(logits=True, hidden_states=True)
    said = teacher(batch, wanted, items)
    _, expected = TaskModel(base.eval()).ask(base, batch, wanted, items)
    assert said.logits is not None
    assert expected.logits is not None
    assert torch.equal(said.logits, expected.logits.detach())
    for ours, theirs in zip(
        said.hidden_states["hidden"], expected.hidden_states["hidden"], strict=True
    ):
        assert torch.equal(ours, theirs)
    assert not said.logits.requires_grad
    student.eval()
    with_adapters = student(**{k: v for k, v in batch.items() if k != "labels"}).logits
    assert not torch.allclose(with_adapters, said.logits)
    student.train()
    student.base_model.model.dropout.eval()
    with pytest.raises(ValueError, match="exactly one of input_ids"):
        teacher({"input_ids": None, "labels": batch["labels"]}, wanted, items)
    assert flags == (
        [m.training for m in student.modules()],
        [p.requires_grad for p in student.parameters()],
    )
    assert same(weights(student), before)
    assert teacher.tensors() == {}


def test_a_student_learns_from_itself_without_adapters(tmp_path: Path) -> None:
    """The losses are those with a second copy of the base as the teacher."""
    steps = []
    for alone in (True, False):
        student, record = adapted(), Recorder()
        teacher: Any = BaseModelTeacher(student) if alone else models()[0]
        options = {"objective": BOTH + HiddenStates(), "callbacks": [record], "max_steps": 3}
        ours = trainer(tmp_path, model=student, teacher_model=teacher, **options)
        ours.train()
        ignored = ("runtime", "per_second")
        steps.append(
            [{k: v for k, v in s.items() if not k.endswith(ignored)} for s in record.steps]
        )
        evaluated = ours.evaluate()
        steps[-1].append({k: v for k, v in evaluated.items() if not k.endswith(ignored)})
    assert steps[0] == steps[1]
    with pytest.raises(ValueError, match=r"student with adapters .*got BertForSequence"):
        BaseModelTeacher(models()[0])


# ---- early exits -----------------------------------------------------------------------------


def alone(folder: Path, head: str, **options: Any) -> Any:
    """A trainer without any teacher."""
    given = {k: options.pop(k) for k in ("callbacks", "objective") if k in options}
    rows = options.pop("rows", None) or data(head)
    model = options.pop("model", None) or models(head)[0]
    args = config(folder, **options)
    return DistillationTrainer(model, args, collate, rows, rows, **given)


def exits_of(ours: Any) -> dict[str, Any]:
    return dict(ours.projections["early_exits"].items())


def expected_logits(head: str, linear: Any, states: Tensor, batch: Any, last: Tensor) -> Any:
    """An exit's logits with numpy, one example and one position after the other."""
    w, b = linear.weight.detach().numpy(), linear.bias.detach().numpy()
    x = states.detach().numpy()
    if head == "image_classification":
        return np.stack([row.mean(0) @ w.T + b for row in x])
    mask = batch["attention_mask"].numpy().astype(bool)
    if head == "sequence_classification":
        return np.stack([row[m].mean(0) @ w.T + b for row, m in zip(x, mask, strict=True)])
    if head == "multiple_choice":
        found = [r[m].mean(0) @ w.T + b for r, m in zip(x, mask.reshape(len(x), -1), strict=True)]
        return np.stack(found).reshape(last.shape)
    every = np.stack([[v @ w.T + b for v in row] for row in x])
    if head == "question_answering":
        found = np.moveaxis(every, -1, 0)
        return np.where(mask, found, last.detach().numpy())
    return every


@pytest.mark.parametrize(
    "head",
    [
        "sequence_classification",
        "image_classification",
        "token_classification",
        "causal_lm",
        "question_answering",
        "multiple_choice",
    ],
)
def test_exits_learn_from_the_last_layer(tmp_path: Path, head: str) -> None:
    """An exit on another position or another layer, or a last layer that follows its exits."""
    student = models(head)[0].double()
    goal = HardLabels() + 2.0 * EarlyExits(temperature=2.0)
    rows = CASES[head].data()
    ours = alone(
        tmp_path,
        head,
        model=student,
        objective=goal,
        rows=rows,
    )
    (layer,) = exits_of(ours)
    assert layer == "1"
    student.eval()
    batch = collate(rows)
    own = TaskModel(student)
    items = own.items(batch)
    _, signal = own.ask(student, batch, goal.student_needs, items)
    (states,) = (group[1] for group in signal.hidden_states.values())
    last = signal.logits
    assert last is not None
    linear = exits_of(ours)["1"].linear
    z = expected_logits(head, linear, states, batch, last) / 2.0
    t = log_softmax(last.detach() / 2.0)
    values = 4.0 * (np.exp(t) * (t - log_softmax(z))).sum(-1)
    mean = values[items.masks["items"].numpy()].mean()
    (term,) = EarlyExits(temperature=2.0).terms(
        signal, None, items, Context(ours.projections["early_exits"])
    )
    found = term.values[items.masks["items"]].mean()
    assert found.item() == pytest.approx(float(mean), rel=1e-6)
    found.backward()
    moved = {n for n, p in student.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(".layer.0." in n or ".layers.0." in n for n in moved)
    assert not any(n.startswith(("classifier", "lm_head", "qa_outputs")) for n in moved)
    assert not any(".layer.1." in n or ".layers.1." in n for n in moved)
    assert linear.weight.grad.any()


@pytest.mark.parametrize("head", ["semantic_segmentation", "seq2seq_lm", "ctc", "masked_lm"])
def test_exits_of_other_heads(tmp_path: Path, head: str) -> None:
    """Train, resume-ready, and never in what is published."""
    record = Recorder()
    first = 0 if head == "semantic_segmentation" else 1  # two stages, and no embeddings
    goal = HardLabels() + EarlyExits((first,), labels=0.5)
    options = {"save_strategy": "steps", "save_steps": 2, "callbacks": [record]}
    ours = alone(tmp_path, head, objective=goal, **options)
    before = weights(ours.projections)
    keys = set(ours.model.state_dict())
    ours.train()
    assert {"early_exits", "early_exits_labels", "hard_labels"} <= record.steps[0].keys()
    assert finite(record.steps[-1])
    assert finite(ours.evaluate())
    assert not same(weights(ours.projections), before)
    assert set(ours.model.state_dict()) == keys
    assert {n.split(".")[0] for n in load_file(tmp_path / "checkpoint-2" / EXTRAS)} == {
        "projections"
    }


@pytest.mark.parametrize(
    ("head", "objective", "message"),
    [
        ("sequence_classification", lambda: EarlyExits((2,)), r"from 0 to 1 .*got \(2,\)"),
        ("sequence_classification", lambda: EarlyExits((-1,)), "layers from 0 on"),
        ("sequence_classification", lambda: EarlyExits(pooling="median"), "pooling"),
        ("sequence_classification", lambda: EarlyExits(temperature=0.0), "emperature"),
        ("sequence_classification", lambda: EarlyExits(labels=-1.0), "weight of at least 0"),
        ("encoder", lambda: 1.0 * EarlyExits(), "a plain encoder has none"),
        ("dual_encoder", lambda: 1.0 * EarlyExits(), "one stack of layers"),
    ],
)
def test_exits_that_cannot_be(tmp_path: Path, head: str, objective: Any, message: str) -> None:
    """At construction, not in the first step."""
    with pytest.raises(ValueError, match=f"(?s){message}"):
        alone(tmp_path, head, objective=objective())
