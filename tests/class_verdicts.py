"""What the trainer does with one class, judged by the class itself and by the stock `Trainer`."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from every_class import ROWS, Batch, Listed, NotBuiltError, build
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_distill import (
    DistillationConfig,
    DistillationTrainer,
    ForwardKL,
    HardLabels,
    HiddenStates,
    LogitMSE,
)
from hf_distill.signals import Needs
from hf_distill.tasks import task_of

CLOSE = 1e-6
ARGUMENTS: dict[str, Any] = {
    "per_device_train_batch_size": ROWS,
    "per_device_eval_batch_size": ROWS,
    "max_steps": 1,
    "learning_rate": 1e-2,
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "save_strategy": "no",
    "logging_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "report_to": "none",
}


@dataclass(frozen=True)
class Verdict:
    """One row of the table.

    Attributes:
        name: The class.
        head: The row of the task table that reads it, or whose mapping names it.
        verdict: ``same``, ``refused``, ``DIFFERS``, ``CRASH`` or ``not built``.
        detail: The refusal, the difference, or the reason.
        own: The loss that the class itself gives for its batch.
        ours: The label loss of the trainer for the same.
        inputs: The names of what the batch holds.
    """

    name: str
    head: str
    verdict: str
    detail: str = ""
    own: float | None = None
    ours: float | None = None
    inputs: str = ""


class DiffersError(Exception):
    """Ours is not what the judge says."""


@dataclass
class Case:
    """A built class, and how the stock and our trainer are made for it."""

    entry: Listed
    model: nn.Module
    batch: Batch
    folder: Path

    def options(self) -> dict[str, Any]:
        def collate(rows: Any) -> Batch:
            return {name: value.clone() for name, value in self.batch.items()}

        data = [{"row": row} for row in range(ROWS)]
        return {"train_dataset": data, "eval_dataset": data, "data_collator": collate}

    def ours(self, model: nn.Module, teacher: nn.Module | None = None, **given: Any) -> Any:
        arguments = {name: given.pop(name) for name in list(given) if name in ("alpha", *ARGUMENTS)}
        args = DistillationConfig(str(self.folder / "ours"), **{**ARGUMENTS, **arguments})
        made: Any = DistillationTrainer
        return made(model, args, teacher_model=teacher, **given, **self.options())

    def stock(self, model: nn.Module, rate: float) -> Any:
        arguments = {**ARGUMENTS, "learning_rate": rate}
        args = TrainingArguments(str(self.folder / "stock"), **arguments)
        made: Any = Trainer
        return made(model, args, **self.options())


def judge(entry: Listed, folder: Path) -> Verdict:
    """Build a class, and put the trainer to it."""
    head = entry.mapping
    try:
        model, batch = build(entry)
        own = own_loss(model, batch)
    except NotBuiltError as reason:
        return Verdict(entry.name, head, "not built", str(reason))
    case, head, inputs = Case(entry, model, batch, folder), task_of(model).name, " ".join(batch)
    say = lambda verdict, detail="", ours=None: Verdict(  # noqa: E731
        entry.name, head, verdict, detail, own, ours, inputs
    )
    ours: float | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if head == "encoder":
                hidden_states(case)
                return say("same")
            ours, refused = equal_teacher(case)
            factor = documented(head, batch)
            if own is None:
                raise DiffersError(f"the class gives no loss of its own, ours is {ours:.4f}")
            if abs(own * factor - ours) > CLOSE * max(1.0, abs(ours)):
                raise DiffersError(f"loss {own * factor:.5f}, ours {ours:.5f}")
            one_step(case, factor)
            return say("same", f"hidden states refused: {refused}" if refused else "", ours)
    except DiffersError as difference:
        return say("DIFFERS", str(difference), ours)
    except ValueError as refusal:
        text = " ".join(str(refusal).split())
        return say("refused" if entry.name in text else "CRASH", text[:80], ours)
    except Exception as error:
        return say("CRASH", f"{type(error).__name__}: {' '.join(str(error).split())}"[:80], ours)


def own_loss(model: nn.Module, batch: Batch) -> float | None:
    """The loss of the class itself; None where it has none.

    Raises:
        NotBuiltError: the class does not run on its batch.
    """
    try:
        with torch.no_grad():
            loss = getattr(model(**batch), "loss", None)
    except Exception as error:
        text = " ".join(str(error).split())
        raise NotBuiltError(f"does not run: {type(error).__name__}: {text}"[:160]) from None
    if loss is not None and not torch.isfinite(loss).all():
        raise NotBuiltError(f"its own loss is {float(loss)}")
    return None if loss is None else float(loss)


def documented(head: str, batch: Batch) -> float:
    """What ours is of the class's own: CTC is divided by the number of target tokens."""
    return 1.0 / int((batch["labels"] >= 0).sum()) if head == "ctc" else 1.0


def equal_teacher(case: Case) -> tuple[float, str]:
    """With a teacher equal to the student nothing is left to learn.

    Returns:
        The label loss, and why hidden states were refused, if they were.
    """
    objective, refused = HardLabels() + ForwardKL() + LogitMSE(), ""
    teacher = copy.deepcopy(case.model)
    try:
        trainer = case.ours(case.model, teacher, objective=objective + HiddenStates())
    except ValueError as error:
        refused = " ".join(str(error).split())[:80]
        trainer = case.ours(case.model, teacher, objective=objective)
    figures = trainer.evaluate()
    for name, value in figures.items():
        if name.startswith(("eval_forward_kl", "eval_logit_mse", "eval_hidden")) and value > CLOSE:
            raise DiffersError(f"{name} is {value:.2e} with an equal teacher")
    if not refused:
        check_lengths(case, trainer._head)
    return float(figures["eval_hard_labels"]), refused


def one_step(case: Case, factor: float) -> None:
    """One step of SGD, with `alpha=0`, moves the weights where the stock `Trainer` moves them."""
    plain, student = copy.deepcopy(case.model), copy.deepcopy(case.model)
    stock = case.stock(plain, ARGUMENTS["learning_rate"] * factor)
    ours = case.ours(student, alpha=0.0)
    for trainer in (stock, ours):
        trainer.train()
    theirs = plain.state_dict()
    start = case.model.state_dict()
    apart = moved = 0.0
    for name, value in student.state_dict().items():
        if value.is_floating_point():
            apart = max(apart, _most(value - theirs[name]))
            moved = max(moved, _most(theirs[name] - start[name]))
    if moved == 0:
        raise DiffersError("the stock Trainer moves no weight")
    if apart > CLOSE * max(1.0, moved):
        raise DiffersError(f"weights are {apart:.1e} apart after a step of {moved:.1e}")
    files = []
    for trainer in (stock, ours):
        trainer.save_model(trainer.args.output_dir)
        files.append((Path(trainer.args.output_dir) / "config.json").read_text())
    if files[0] != files[1]:
        raise DiffersError("config.json is not the stock Trainer's")


def _most(difference: Tensor) -> float:
    return float(difference.abs().max()) if difference.numel() else 0.0


def hidden_states(case: Case) -> None:
    """A plain encoder has nothing else to teach."""
    trainer = case.ours(case.model, copy.deepcopy(case.model), objective=HiddenStates(), alpha=1.0)
    figures = trainer.evaluate()
    if figures["eval_loss"] > CLOSE:
        raise DiffersError(f"hidden states are {figures['eval_loss']:.2e} from an equal teacher's")
    check_lengths(case, trainer._head)


def check_lengths(case: Case, head: Any) -> None:
    """Every layer is as long as the mask of its group."""
    batch = dict(head.task.share(case.batch, case.model))
    items = head.items(batch)
    with torch.no_grad():
        _, signal = head.ask(case.model, batch, Needs(hidden_states=True), items)
    for group, layers in signal.hidden_states.items():
        mask = items.masks.get(group)
        lengths = {layer.shape[1] for layer in layers if layer.dim() == 3}
        if mask is not None and mask.dim() == 2 and lengths - {mask.shape[1]}:
            raise DiffersError(f"{group} has layers of {sorted(lengths)}, its mask {mask.shape[1]}")
