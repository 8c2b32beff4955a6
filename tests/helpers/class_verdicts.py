"""What the trainer does with one class, judged by the class itself and by the stock `Trainer`."""

from __future__ import annotations

import contextlib
import copy
import csv
import gc
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from every_class import Listed, NotBuiltError, build, listed
from tiny_batches import ROWS, Batch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_distill import (
    DistillationConfig,
    DistillationTrainer,
    ForwardKL,
    HardLabels,
    HiddenStates,
    LogitMSE,
    ModelLoss,
)
from hf_distill.models.signals import Needs
from hf_distill.models.tasks import task_of

CLOSE = 1e-6
TABLE = Path(__file__).with_name("every_class.csv")
"""The committed verdicts, made with transformers 5.24.0."""
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, batch = build(entry)
            own = own_loss(model, batch)
    except NotBuiltError as reason:
        return Verdict(entry.name, head, "not built", str(reason)[:120])
    case, head, inputs = Case(entry, model, batch, folder), task_of(model).name, " ".join(batch)

    def say(verdict: str, detail: str = "", ours: float | None = None) -> Verdict:
        return Verdict(entry.name, head, verdict, detail[:80], own, ours, inputs)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return say("same", *agreement(case, head, own))
    except DiffersError as difference:
        return say("DIFFERS", str(difference))
    except ValueError as error:
        refusal = " ".join(str(error).split())
        if entry.name not in refusal:
            return say("CRASH", refusal)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                follow(case, refusal, own)
        except Exception as failure:
            return say("CRASH", f"its remedy: {type(failure).__name__}: {failure}")
        return say("refused", refusal)
    except Exception as error:
        return say("CRASH", f"{type(error).__name__}: {' '.join(str(error).split())}")


def agreement(case: Case, head: str, own: float | None) -> tuple[str, float | None]:
    """Put the trainer to a class; gives a remark, and the trainer's label loss.

    Raises:
        DiffersError: ours is not what the class or the stock `Trainer` has.
        ValueError: the trainer's refusal.
    """
    if head in ("encoder", "other"):
        if own is not None:
            one_step(case, 1.0, objective=ModelLoss())
        hidden_states(case)
        return "hidden states" if own is None else "its own loss and hidden states", None
    ours, refused = equal_teacher(case)
    remark = f"hidden states refused: {refused}" if refused else ""
    expected = plain_loss(case) if own is None else own * documented(head, case.batch)
    if abs(expected - ours) > CLOSE * max(1.0, abs(ours)):
        raise DiffersError(f"loss {expected:.5f}, ours {ours:.5f}")
    if own is None:  # the stock Trainer cannot train it
        return f"no loss of its own{'; ' if remark else ''}{remark}", ours
    one_step(case, documented(head, case.batch), alpha=0.0)
    return remark, ours


def follow(case: Case, refusal: str, own: float | None) -> None:
    """Do what a refusal advises, where it is the class's own loss."""
    if "ModelLoss()" in refusal and own is not None:
        one_step(case, 1.0, objective=ModelLoss())


def own_loss(model: nn.Module, batch: Batch) -> float | None:
    """The loss of the class itself; None where it has none for these labels.

    Raises:
        NotBuiltError: the class does not run on its batch.
    """
    without = {name: value for name, value in batch.items() if name != "labels"}
    loss = None
    with torch.no_grad():
        try:
            loss = getattr(model(**batch), "loss", None)
        except Exception as error:
            try:
                model(**without)
            except Exception:
                text = " ".join(str(error).split())
                raise NotBuiltError(f"does not run: {type(error).__name__}: {text}") from None
    if loss is not None and loss.numel() > 1:  # no number that anything could minimise (DAC)
        return None
    if loss is not None and not torch.isfinite(loss).all():
        raise NotBuiltError(f"its own loss is {loss}")
    return None if loss is None else float(loss)


def plain_loss(case: Case) -> float:
    """What the labels cost by the book, for a class that gives no loss: cross-entropy."""
    inputs = {name: value for name, value in case.batch.items() if name != "labels"}
    with torch.no_grad():
        outputs = case.model(**inputs)
    if "labels" in case.batch:
        return float(nn.functional.cross_entropy(outputs.logits, case.batch["labels"]))
    pairs, own = outputs.logits_per_text, torch.arange(ROWS)
    both = (nn.functional.cross_entropy(logits, own) for logits in (pairs, pairs.t()))
    return float(sum(both)) / 2


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
        check_lengths(case, trainer.step.task_model)
    return float(figures["eval_hard_labels"]), refused


def one_step(case: Case, factor: float, **given: Any) -> None:
    """One step of SGD on the labels moves the weights where the stock `Trainer` moves them."""
    plain, student = copy.deepcopy(case.model), copy.deepcopy(case.model)
    stock = case.stock(plain, ARGUMENTS["learning_rate"] * factor)
    stock.train()
    ours = case.ours(student, **given)  # seeds anew, as the stock one has
    ours.train()
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
    check_lengths(case, trainer.step.task_model)


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


# ---- the table -------------------------------------------------------------------------------


def several(entries: Sequence[Listed], folder: Path) -> Iterator[Verdict]:
    """The verdicts of some classes, one after the other.

    Each `Trainer` collects garbage: what the imports made is left out of that.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for entry in entries:
            with contextlib.suppress(Exception):
                getattr(transformers, entry.name)
    gc.collect()
    gc.freeze()
    for entry in entries:
        yield judge(entry, folder)


def row(verdict: Verdict) -> dict[str, str]:
    """A row of the table."""
    losses = {n: getattr(verdict, n) for n in ("own", "ours")}
    return {
        "class": verdict.name,
        "head": verdict.head,
        "verdict": verdict.verdict,
        **{name: "" if loss is None else f"{loss:.4f}" for name, loss in losses.items()},
        "inputs": verdict.inputs,
        "detail": verdict.detail,
    }


def read_table() -> dict[str, dict[str, str]]:
    """The committed verdicts by class."""
    with TABLE.open(newline="") as file:
        return {each["class"]: each for each in csv.DictReader(file)}


def write_table(rows: Iterable[dict[str, str]]) -> None:
    """Write the verdicts, in the order of the auto mappings."""
    rows = list(rows)
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":  # make the table anew: python tests/class_verdicts.py
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        write_table([row(verdict) for verdict in several(listed(), Path(place))])
