"""One official script in a process of its own: as it is, or with two names changed."""

from __future__ import annotations

import copy
import inspect
import json
import os
import re
import runpy
import shutil
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import shims
from .cases import Case
from .reference import KINDS, first_loss

STEPS = 6
ALPHA, TEMPERATURE = 0.3, 3.0
NAMES = {
    "Seq2SeqTrainer": "Seq2SeqDistillationTrainer",
    "Seq2SeqTrainingArguments": "Seq2SeqDistillationConfig",
    "Trainer": "DistillationTrainer",
    "TrainingArguments": "DistillationConfig",
}
COMMON = (
    f"--do_train --do_eval --max_steps {STEPS} --per_device_train_batch_size 4 "
    "--per_device_eval_batch_size 4 --learning_rate 1e-3 --logging_steps 1 --save_strategy no "
    "--report_to none --seed 7 --use_cpu --disable_tqdm True"
)


def changed(text: str, teacher: Path) -> str:
    """A script with ``Trainer`` and ``TrainingArguments`` (and their Seq2Seq forms) replaced.

    Args:
        text: The script, or a file beside it with a subclass of the trainer.
        teacher: What the constructor of the trainer gets as its ``teacher_model``.
    """
    used = []
    for old, new in NAMES.items():
        pattern = re.compile(rf"(?<![\w.]){old}(?=[,():\]])")
        lines = text.splitlines(keepends=True)
        kept = [line for line in lines if line.strip() != f"{old},"]  # in the list of imports
        one_line = f"from transformers import {old}, "
        kept = [line.replace(one_line, "from transformers import ") for line in kept]
        text, count = pattern.subn(new, "".join(kept))
        if count:
            used.append(new)
    start = re.compile(r"(trainer = \w*Trainer\()")
    text = start.sub(rf"\1teacher_model={str(teacher)!r}, ", text)
    imports = f"from hf_distill import {', '.join(sorted(used))}\n"
    first = re.search(r"^(import|from) transformers", text, re.MULTILINE)
    if not used or first is None:
        return text
    return text[: first.start()] + imports + text[first.start() :]


def prepare(case: Case, source: Path, folder: Path, teacher: Path | None) -> Path:
    """Write a script and its helpers to a folder, repaired, and changed if there is a teacher."""
    folder.mkdir(parents=True)
    path = source / case.script
    for file in (path, *(path.parent / helper for helper in case.helpers)):
        text = file.read_text()
        if file == path:
            for old, new, _ in case.repairs:
                if old not in text:
                    raise ValueError(f"Expected {old!r} in {file}, to be repaired.")
                text = text.replace(old, new)
        text = text if teacher is None else changed(text, teacher)
        (folder / file.name).write_text(text)
    return folder / path.name


def make_teacher(trained: Path, teacher: Path) -> None:
    """A copy of a finished student with noise on its matrices: label names and files are those
    that a user has, and the two models disagree."""
    shutil.copytree(trained, teacher)
    weights = load_file(teacher / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name, value in weights.items():
        if value.is_floating_point() and value.dim() > 1:
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float32)
            weights[name] = value + 0.5 * noise.to(value.dtype)
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})


@dataclass
class FirstStep:
    """What the first training step got and gave.

    Attributes:
        batch: The collated batch, with the noise that the student's forward was given (ViTMAE).
        student: A copy of the student before the step.
        trained: The student itself.
        random: torch's random state at the student's forward (losses that sample points).
        loss: What the step gave.
    """

    batch: dict[str, Any] | None = None
    student: Any = None
    trained: Any = None
    random: Tensor | None = None
    loss: float | None = None

    def watch(self) -> None:
        """Look on at the first step of whatever trainer is run in this process."""
        step = transformers.Trainer.training_step

        def watched(trainer: Any, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
            if self.loss is not None:
                return step(trainer, model, inputs, *more, **named)
            self.batch = copy.deepcopy(dict(inputs))
            self.student, self.trained = copy.deepcopy(model).train(), model

            def look(_: Any, positional: Any, given: dict[str, Any]) -> None:
                if self.random is None:
                    self.random = torch.get_rng_state()
                    self.batch |= {k: v for k, v in given.items() if k == "noise"}

            handle = model.register_forward_pre_hook(look, with_kwargs=True)
            loss = step(trainer, model, inputs, *more, **named)
            handle.remove()
            self.loss = float(loss)
            return loss

        transformers.Trainer.training_step = watched

    def moved(self) -> float:
        """How far the training has moved a weight, at most."""
        pairs = zip(self.student.parameters(), self.trained.parameters(), strict=True)
        return max(float((a - b).abs().max()) for a, b in pairs if a.numel())

    def in_plain_torch(self, kind: str, teacher: Path) -> float | None:
        """The same loss, computed by `reference`; None where no reference is known."""
        if kind not in KINDS or self.batch is None:
            return None
        known = inspect.signature(type(self.student).forward).parameters
        batch = {k: v for k, v in self.batch.items() if k in known}
        model = type(self.student).from_pretrained(teacher).eval()
        torch.set_rng_state(self.random)
        return first_loss(kind, batch, self.student, model, ALPHA, TEMPERATURE)


def run(case: Case, script: Path, arguments: list[str], where: Path, teacher: Path | None) -> None:
    """Run a script in this process, a child of `in_child`; write what came out as JSON."""
    os.chdir(where)  # run_xnli loads the data set "xnli"
    log = os.open(where / f"{script.parent.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    first = FirstStep()
    result: dict[str, Any] = {"error": ""}
    try:
        shims.install(script)
        first.watch()
        sys.path.insert(0, str(script.parent))
        sys.argv = [str(script), *arguments]
        runpy.run_path(str(script), run_name="__main__")
        result |= {"loss": first.loss, "moved": first.moved()}
        if teacher is not None:
            result["plain"] = first.in_plain_torch(case.kind, teacher)
    except BaseException as error:
        traceback.print_exc()
        result["error"] = f"{type(error).__name__}: {error}"
    (where / f"{script.parent.name}.json").write_text(json.dumps(result))


def in_child(
    case: Case, script: Path, arguments: list[str], where: Path, teacher: Path | None
) -> Any:
    """`run` in a fork of this process, in which everything heavy is imported already."""
    child = os.fork()
    if child == 0:
        try:
            run(case, script, arguments, where, teacher)
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.waitpid(child, 0)
    written = where / f"{script.parent.name}.json"
    if not written.is_file():
        return {"error": "the process died"}
    return json.loads(written.read_text())
