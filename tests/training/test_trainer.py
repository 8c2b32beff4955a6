"""The teacher stays out of the way, and the switches of `TrainingArguments` keep their meaning."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trainers import Recorder, accuracy, config, data, finite, models, same, trainer, weights
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, Trainer

from hf_distill import (
    DistillationTrainer,
    ForwardKL,
    HardLabels,
    HiddenStates,
    ModelTeacher,
    Needs,
    OnlineDistillationTrainer,
    OnPolicyDistillationTrainer,
    Signal,
    Teacher,
)
from hf_distill.models.signals import BatchItems

EVERYTHING = 0.5 * HardLabels() + 0.5 * ForwardKL(2.0) + HiddenStates()

# ---- the teacher -----------------------------------------------------------------------------


class Table:
    """A teacher without a model: logits looked up by the first token."""

    config = None
    provides = Needs(logits=True, unsampled=True, full_vocabulary=True)

    def __init__(self, rows: dict[int, list[float]]):
        self.rows = rows

    def __call__(self, batch: Mapping[str, Any], needs: Needs, items: BatchItems) -> Signal:
        first = batch["input_ids"][:, 0].tolist()
        return Signal(torch.tensor([self.rows[token] for token in first]))

    def columns(self) -> set[str]:
        return {"input_ids"}

    def tokens(self) -> Mapping[str, int] | None:
        return None

    def place(self, accelerator: Any) -> None:
        """Nothing to move."""

    def tensors(self) -> Mapping[str, torch.Tensor]:
        return {}

    def describe(self) -> dict[str, Any]:
        return {"name": "table"}


def test_teacher_of_ones_own(tmp_path: Path) -> None:
    """The seam for caches and servers: whatever gives logits teaches, and is asked for no more."""
    examples = data()
    rows = {e["input_ids"][0]: [float(i), 1.0, -float(i)] for i, e in enumerate(examples)}
    table = Table(rows)
    assert isinstance(table, Teacher)
    record = Recorder()
    ours = trainer(tmp_path, teacher_model=table, callbacks=[record], compute_metrics=accuracy)
    ours.train()
    figures = ours.evaluate()
    wanted = [
        float(torch.tensor(rows[e["input_ids"][0]]).argmax() == e["labels"]) for e in examples
    ]
    assert figures["eval_teacher_accuracy"] == pytest.approx(sum(wanted) / len(wanted))
    assert len(record.steps) == 2
    assert finite(record.steps[-1])


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_teacher_by_folder(tmp_path: Path, dtype: str | None) -> None:
    """A teacher that is silently cast to the student's dtype doubles its memory."""
    _, teacher = models()
    teacher.save_pretrained(tmp_path / "teacher")
    kwargs: Any = {} if dtype is None else {"teacher_model_init_kwargs": {"dtype": dtype}}
    record = Recorder()
    ours = trainer(
        tmp_path,
        teacher_model=str(tmp_path / "teacher"),
        objective=EVERYTHING,
        callbacks=[record],
        **kwargs,
    )
    ours.train()
    assert finite(record.steps[-1])
    assert isinstance(ours.teacher, ModelTeacher)
    assert isinstance(ours.teacher.model, BertForSequenceClassification)
    assert {p.dtype for p in ours.teacher.model.parameters()} == {
        torch.float32 if dtype is None else torch.bfloat16
    }
    assert {p.dtype for p in ours.model.parameters()} == {torch.float32}
    if dtype is None:
        assert same(weights(ours.teacher.model), weights(teacher))


def test_teacher_as_model_and_as_model_teacher_agree(tmp_path: Path) -> None:
    logs = []
    for wrap in (lambda m: m, ModelTeacher):
        record = Recorder()
        _, teacher = models()
        trainer(tmp_path, teacher_model=wrap(teacher), callbacks=[record]).train()
        logs.append([step["loss"] for step in record.steps])
    assert logs[0] == logs[1]


class Spy(Recorder):
    """Looks at the teacher in the middle of training."""

    def __init__(self, teacher: nn.Module):
        super().__init__()
        self.teacher = teacher
        self.training: list[bool] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.training.append(any(m.training for m in self.teacher.modules()))


def test_teacher_is_frozen_and_in_nothing_that_is_saved(tmp_path: Path) -> None:
    """A teacher in train mode teaches noise; one in the optimizer costs memory."""
    _, teacher = models()
    for module in teacher.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    teacher.train()
    before, spy = weights(teacher), Spy(teacher)
    ours = trainer(
        tmp_path,
        teacher_model=teacher,
        callbacks=[spy],
        objective=EVERYTHING,
        save_strategy="steps",
        save_steps=2,
        weight_decay=0.1,
    )
    ours.train()
    ours.evaluate()
    assert spy.training == [False, False]
    assert not any(m.training for m in teacher.modules())
    assert same(before, weights(teacher))
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    known = {id(p) for p in (*ours.model.parameters(), *ours.projections.parameters())}
    assert ours.optimizer is not None
    optimized = {id(p) for group in ours.optimizer.param_groups for p in group["params"]}
    assert optimized == known
    student, _ = models()
    assert ours.model.state_dict().keys() == student.state_dict().keys()
    checkpoint = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "checkpoint-2", output_loading_info=True
    )[1]
    assert not checkpoint["missing_keys"]
    assert not checkpoint["unexpected_keys"]
    files = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    assert "distillation.safetensors" in files


class Dtypes(BertForSequenceClassification):
    """Remembers in which dtype its classifier answered."""

    seen: torch.dtype | None = None

    def __init__(self, config: Any):
        super().__init__(config)
        self.classifier.register_forward_hook(self._look)

    def _look(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.seen = output.dtype


def test_evaluate_before_train_prepares_the_student(tmp_path: Path) -> None:
    """A teacher registered with the accelerator makes it skip the student: fp32 without a word."""
    student, teacher = models()
    spy = Dtypes(student.config)
    spy.load_state_dict(student.state_dict())
    ours = trainer(tmp_path, model=spy, teacher_model=teacher, bf16=True)
    first = ours.evaluate()
    assert spy.seen == torch.bfloat16
    assert ours.accelerator._models == [spy]
    args = config(tmp_path, bf16=True)
    stock_model = Dtypes(student.config)
    stock_model.load_state_dict(student.state_dict())
    collator, examples = ours.data_collator, data()
    stock = Trainer(stock_model, args, collator, eval_dataset=examples)
    theirs = stock.predict(examples)
    assert stock_model.seen == torch.bfloat16
    assert (ours.predict(examples).predictions == theirs.predictions).all()
    assert first["eval_hard_labels"] == pytest.approx(_mean_nll(theirs), rel=1e-6)


def _mean_nll(output: Any) -> float:
    logits = torch.from_numpy(output.predictions).double()
    labels = torch.from_numpy(output.label_ids)
    return float(-logits.log_softmax(-1).gather(-1, labels[:, None]).mean())


def test_two_trainings_in_a_row_and_evaluation_after(tmp_path: Path) -> None:
    """The second call goes on with the student, the projections and the optimizer of the first."""
    record = Recorder()
    ours = trainer(
        tmp_path,
        objective=EVERYTHING,
        callbacks=[record],
        max_steps=4,
        lr_scheduler_type="constant",
    )
    ours.train()
    projected = weights(ours.projections)
    ours.train()
    assert len(record.steps) == 8
    assert not same(projected, weights(ours.projections))
    assert record.steps[4]["loss"] < record.steps[0]["loss"]
    assert ours.evaluate()["eval_loss"] < record.steps[0]["loss"]
    assert not hasattr(ours.model, "distillation")


# ---- precision, memory, compilation ----------------------------------------------------------


def _losses(folder: Path, **options: Any) -> tuple[list[float], dict[str, Tensor]]:
    """The logged losses and gradient norms, and the weights after training."""
    record = Recorder()
    options.setdefault("objective", EVERYTHING)
    ours = trainer(folder, callbacks=[record], **options)
    ours.train()
    figures = [step[key] for step in record.steps for key in ("loss", "grad_norm")]
    return figures, weights(ours.model)


def test_bf16_autocast_trains_close_to_float32(tmp_path: Path) -> None:
    exact, _ = _losses(tmp_path, max_steps=4)
    half, trained = _losses(tmp_path, max_steps=4, bf16=True)
    assert half != exact
    assert half == pytest.approx(exact, rel=0.05)
    assert {v.dtype for v in trained.values() if v.is_floating_point()} == {torch.float32}


def test_full_bf16_evaluation_serves_the_projections(tmp_path: Path) -> None:
    """`bf16_full_eval` casts the student alone; projections in float32 then meet bfloat16."""
    ours = trainer(tmp_path, objective=EVERYTHING)
    exact = ours.evaluate()["eval_loss"]
    ours = trainer(tmp_path, objective=EVERYTHING, bf16_full_eval=True)
    assert ours.evaluate()["eval_loss"] == pytest.approx(exact, rel=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_on_a_gpu(tmp_path: Path, precision: str) -> None:
    """Loss scaling must see the projections too."""
    exact, _ = _losses(tmp_path, max_steps=4, use_cpu=False)
    half, _ = _losses(tmp_path, max_steps=4, use_cpu=False, **{precision: True})
    assert half[::2] == pytest.approx(exact[::2], rel=0.05)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("switch", ["activation_checkpointing", "gradient_checkpointing"])
def test_checkpointed_activations_change_nothing(tmp_path: Path, switch: str) -> None:
    """Recomputed layers must give the hidden states that are aligned, with their gradients."""
    plain, after = _losses(tmp_path)
    checkpointed, then = _losses(tmp_path, **{switch: True})
    assert checkpointed == pytest.approx(plain, rel=1e-6)
    for name, value in after.items():
        torch.testing.assert_close(then[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("default")  # torch.compile warns about itself
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_student_gives_the_same_numbers(tmp_path: Path, backend: str) -> None:
    plain, after = _losses(tmp_path, max_steps=1)
    record = Recorder()
    ours = trainer(
        tmp_path,
        objective=EVERYTHING,
        callbacks=[record],
        max_steps=1,
        torch_compile=True,
        torch_compile_backend=backend,
    )
    called: list[type] = []
    inner = ours.step.ask_student

    def spying(*rest: Any) -> Any:
        called.append(type(rest[0]))
        return inner(*rest)

    ours.step.ask_student = spying
    ours.train()
    compiled = [step[key] for step in record.steps for key in ("loss", "grad_norm")]
    assert {kind.__name__ for kind in called} == {"OptimizedModule"}
    assert compiled == pytest.approx(plain, rel=1e-5)
    assert ours.evaluate().keys() >= {"eval_loss", "eval_agreement"}
    ours.save_model(str(tmp_path / "compiled"))
    back = BertForSequenceClassification.from_pretrained(tmp_path / "compiled")
    assert same(weights(back), weights(ours.model))
    for name, value in after.items():
        torch.testing.assert_close(weights(back)[name], value, rtol=1e-4, atol=1e-5)


def test_label_smoothing_is_that_of_the_stock_trainer(tmp_path: Path) -> None:
    """A trainer with a loss of its own drops `label_smoothing_factor` without a word."""
    record, stock_record = Recorder(), Recorder()
    options: Any = {"label_smoothing_factor": 0.2, "alpha": 0.0}
    ours = trainer(tmp_path, callbacks=[record], **options)
    ours.train()
    student, _ = models()
    stock = Trainer(
        student, config(tmp_path, **options), ours.data_collator, data(), callbacks=[stock_record]
    )
    stock.train()
    for key in ("loss", "grad_norm"):
        ours_logged = [step[key] for step in record.steps]
        assert ours_logged == pytest.approx([step[key] for step in stock_record.steps], rel=1e-5)


def test_a_label_loss_with_smoothing_of_its_own_keeps_it(tmp_path: Path) -> None:
    own, _ = _losses(tmp_path, objective=1.0 * HardLabels(0.1), label_smoothing_factor=0.3)
    alone, _ = _losses(tmp_path, objective=1.0 * HardLabels(0.1))
    assert own == alone


# ---- the optimizer that a script brings along --------------------------------------------------


def test_an_optimizer_of_ones_own_trains_the_projections_too(tmp_path: Path) -> None:
    """It was made before there were projections; left out, they stay random, and so the target."""
    student, teacher = models()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    ours = trainer(
        tmp_path,
        model=student,
        teacher_model=teacher,
        objective=EVERYTHING,
        optimizers=(optimizer, None),
    )
    before = weights(ours.projections)
    ours.train()
    assert not same(before, weights(ours.projections))
    ours.train()
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))


# ---- the other switches ------------------------------------------------------------------------

SWITCHES: dict[str, dict[str, Any]] = {
    "auto_find_batch_size": {"auto_find_batch_size": True},
    "eval_accumulation_steps": {"eval_accumulation_steps": 1},
    "eval_on_start": {"eval_on_start": True},
    "tokens_seen": {"include_num_input_tokens_seen": "all"},
    "length_sampling": {"train_sampling_strategy": "group_by_length"},
    "max_grad_norm": {"max_grad_norm": 0.0},
    "neftune": {"neftune_noise_alpha": 5.0},
    "optim": {"optim": "adafactor"},
    "plateau": {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "loss"},
    "prediction_loss_only": {"prediction_loss_only": True},
    "save_only_model": {"save_strategy": "steps", "save_steps": 1, "save_only_model": True},
    "workers": {"dataloader_num_workers": 1, "dataloader_persistent_workers": False},
}


@pytest.mark.parametrize("name", SWITCHES)
def test_other_switches_work(tmp_path: Path, name: str) -> None:
    """Each takes another path through the loop of transformers."""
    record = Recorder()
    switch = {"eval_strategy": "steps", "eval_steps": 1, **SWITCHES[name]}
    ours = trainer(
        tmp_path, objective=EVERYTHING, callbacks=[record], compute_metrics=accuracy, **switch
    )
    ours.train()
    assert len(record.steps) == 2
    losses = [logs["eval_loss"] for logs in record.logs if "eval_loss" in logs]
    assert losses[-1] < record.steps[0]["loss"]


@pytest.mark.parametrize(
    "kind", [DistillationTrainer, OnlineDistillationTrainer, OnPolicyDistillationTrainer]
)
def test_the_constructor_takes_the_arguments_of_the_stock_trainer(kind: Any) -> None:
    """An argument of a newer `Trainer`, or another order, would break a script that adds a
    teacher to what it has."""
    stock = list(inspect.signature(Trainer.__init__).parameters)
    ours = inspect.signature(kind.__init__).parameters
    assert list(ours)[: len(stock)] == stock
    assert all(p.kind is p.KEYWORD_ONLY for p in list(ours.values())[len(stock) :])
