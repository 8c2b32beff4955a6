"""Checkpoints: whole or absent, exact to resume from, and nothing in them that does not belong."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import safetensors.torch
import torch
from launch import launch
from safetensors.torch import load_file
from tiny_models import CASES, collate, quiet_arguments
from torch import nn
from transformers.trainer_utils import get_last_checkpoint

from hf_distill import (
    BatchItems,
    DistillationTrainer,
    ForwardKL,
    HardLabels,
    HiddenStates,
    Needs,
    Objective,
    Schedule,
    Signal,
    Term,
    WeightDecay,
    WeightedSum,
)
from hf_distill.objectives.base.objective import Context
from hf_distill.training.checkpoints import EXTRAS

pytestmark = pytest.mark.xdist_group("resume")  # fixtures that are expensive are made once

CASE = CASES["token_classification"]
STEPS = 6  # two epochs of ten rows: windows of 4, 4 and 2 on one process
EVERYTHING = (
    Schedule("linear", 1.0, 0.2) * HardLabels()
    + Schedule("cosine", 0.0, 1.0, over=1.5, by="epoch") * ForwardKL(2.0)
    + HiddenStates()
    + WeightDecay(0.01, target="init")
)


def trainer_for(
    folder: Path | str,
    seed: int = 0,
    objective: Objective | WeightedSum = EVERYTHING,
    teacher: nn.Module | None = None,
    cls: type[DistillationTrainer] = DistillationTrainer,
    **options: Any,
) -> DistillationTrainer:
    """A small run with a checkpoint at every step, and everything in it that has a state.

    Args:
        folder: The output directory.
        seed: Of the student's first weights.
        objective: What to minimise.
        teacher: By default that of the case.
        cls: The trainer.
        **options: Arguments.
    """
    config = CASE.config()
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.2
    torch.manual_seed(seed)
    student = CASE.model(config).double()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    settings = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2 // processes,
        "num_train_epochs": 2,
        "learning_rate": 0.01,
        "save_strategy": "steps",
        "save_steps": 1,
        "train_sampling_strategy": "random",
    }
    return cls(
        student,
        quiet_arguments(folder, **{**settings, **options}),
        collate,
        CASE.data(10),
        teacher_model=CASE.models()[1] if teacher is None else teacher,
        objective=objective,
    )


def state_of(checkpoint: Path) -> dict[str, Any]:
    """Weights, projections and initial weights, optimizer, logs."""
    logs = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return {
        "model": load_file(checkpoint / "model.safetensors"),
        "extras": load_file(checkpoint / EXTRAS),
        "optimizer": torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"],
        "logs": logs,
    }


def same(found: Path, expected: Path) -> None:
    torch.testing.assert_close(state_of(found), state_of(expected), rtol=0, atol=0)


# ---- resume ----------------------------------------------------------------------------------


def stop_and_resume(folder: str) -> None:
    """Train once without a stop, then once from each checkpoint, with another student each."""
    whole = Path(folder, "whole")
    trainer_for(whole).train()
    for step in range(1, STEPS):
        checkpoint = str(whole / f"checkpoint-{step}")
        trainer = trainer_for(Path(folder, f"from_{step}"), seed=step)
        trainer.train(resume_from_checkpoint=checkpoint)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_resume_is_exact(tmp_path: Path, processes: int) -> None:
    """A run that was stopped would silently be another run: another dropout, order, weight, pull.

    Each resumed student starts from other weights, so that all of them, those that `WeightDecay`
    pulls towards included, must come from the checkpoint.
    """
    if processes == 1:
        stop_and_resume(str(tmp_path))
    else:
        launch(stop_and_resume, tmp_path, processes=processes)
    last = tmp_path / "whole" / f"checkpoint-{STEPS}"
    assert len(list(last.glob("rng_state*.pth"))) == processes
    for step in range(1, STEPS):
        same(tmp_path / f"from_{step}" / last.name, last)


@pytest.mark.parametrize("logging_steps", [1, 4])
def test_figures_go_on_within_an_interval(tmp_path: Path, logging_steps: int) -> None:
    """The first entry after a resume would be the mean of a part of its steps, and `train_loss`
    that of the steps since then: 0 after the last one."""
    options: dict[str, Any] = {"logging_steps": logging_steps}
    whole = trainer_for(tmp_path / "whole", **options)
    expected = whole.train()
    for step in (1, 3, 6):
        ours = trainer_for(tmp_path / str(step), seed=step, **options)
        found = ours.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert found.training_loss == expected.training_loss
        assert found.metrics["train_loss"] == expected.metrics["train_loss"]
        entries, wanted = ours.state.log_history[:-1], whole.state.log_history[:-1]
        assert [{**e, "grad_norm": 0} for e in entries] == [{**e, "grad_norm": 0} for e in wanted]


# ---- kill -9 ---------------------------------------------------------------------------------

CHANGES = ("os.rename", "os.remove", "os.rmdir")


class Struck(DistillationTrainer):
    """Is killed at the n-th change that it makes to the disk while it saves its second step."""

    arm: Callable[[bool], None]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.arm(self.state.global_step == 2)
        super()._save_checkpoint(model, trial)
        self.arm(False)


def die_at(moment: int) -> Callable[[bool], None]:
    """Watch this process, and kill it; a file that was to be written is left torn."""
    left, armed = moment, False

    def arm(on: bool) -> None:
        nonlocal armed
        armed = on

    def see(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left, armed
        writes = event == "open" and bool(set(str(args[1])) & set("wax+"))
        if not armed or not (writes or event in CHANGES):
            return
        left -= 1
        if left == 0:
            armed = False
            if writes:
                Path(args[0]).write_bytes(b"torn")
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(see)
    for owner, name in ((torch, "save"), (safetensors.torch, "serialize_file")):
        setattr(owner, name, _announced(getattr(owner, name)))
    return arm


def _announced(write: Callable[..., Any]) -> Callable[..., Any]:
    """These open their files outside Python, where no audit hook sees it."""

    def announced(what: Any, path: Any, *args: Any, **options: Any) -> Any:
        sys.audit("open", str(path), "w", 0)
        return write(what, path, *args, **options)

    return announced


def kill_everywhere(folder: str) -> None:
    """Fork a trainer for each moment of a save, until one survives.

    Once with a new checkpoint that replaces the one before, and once with a checkpoint of that
    name in the way, as when somebody goes back to an earlier one.
    """
    for scenario in ("new", "again"):
        for moment in itertools.count(1):
            run = Path(folder, scenario, str(moment))
            child = os.fork()
            if child == 0:
                start = None
                if scenario == "again":
                    for name in ("checkpoint-1", "checkpoint-2"):
                        shutil.copytree(Path(folder, "whole", name), run / name)
                    start = str(run / "checkpoint-1")
                limit = 1 if scenario == "new" else None
                trainer: Any = trainer_for(run, cls=Struck, save_total_limit=limit)
                trainer.arm = die_at(moment)
                trainer.train(resume_from_checkpoint=start)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            if os.WIFEXITED(status):
                assert os.WEXITSTATUS(status) == 0, (scenario, moment)
                break
            assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("killed") / "whole"
    trainer_for(folder).train()
    launch(kill_everywhere, folder.parent)
    return folder


@pytest.mark.parametrize("scenario", ["new", "again"])
def test_a_kill_within_a_save_loses_that_save_alone(whole: Path, scenario: str) -> None:
    """Half a checkpoint looks like the newest one, and is found when the job is started again."""
    newest = []
    runs = sorted((whole.parent / scenario).iterdir(), key=lambda run: int(run.name))
    for run in runs[:-1]:  # the last one survived
        found = get_last_checkpoint(str(run))
        assert found is not None, f"nothing to resume from after a kill at moment {run.name}"
        newest.append(Path(found).name)
        same(Path(found), whole / newest[-1])
        if scenario == "new":
            trainer = trainer_for(run, seed=1, save_steps=STEPS)
            trainer.train(resume_from_checkpoint=found)
            last = f"checkpoint-{STEPS}"
            same(run / last, whole / last)
            assert not (run / "_saving").exists()
    assert len(newest) > 15
    assert set(newest) == {"checkpoint-1", "checkpoint-2"}, "before the renaming and after"


# ---- what is never saved ---------------------------------------------------------------------


def test_a_broken_loss_is_named_and_not_saved(tmp_path: Path) -> None:
    """transformers logs NaN as the mean of the other losses, and saves what came of it."""
    teacher: Any = CASE.models()[1]
    trainer = trainer_for(tmp_path, teacher=teacher)
    unlogged = trainer_for(tmp_path, teacher=teacher, logging_steps=100)
    teacher.classifier.bias.data[1] = torch.nan  # the constructor would refuse it
    with pytest.raises(FloatingPointError, match=r"not finite at step 1: \['forward_kl'\] of"):
        trainer.train()
    assert get_last_checkpoint(str(tmp_path)) is None
    with pytest.raises(FloatingPointError, match=r"\['forward_kl'\]"):
        unlogged.train()
    assert get_last_checkpoint(str(tmp_path)) is None


@dataclass(frozen=True)
class Steep(Objective):
    """A root at 0: the value is finite, its gradient is not."""

    name: ClassVar[str] = "steep"
    student_needs: ClassVar[Needs] = Needs(logits=True)

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        assert student.logits is not None
        return [Term(self.name, (student.logits * 0).abs().sum(-1).sqrt(), "items")]


def test_broken_weights_are_not_saved(tmp_path: Path) -> None:
    """A finite loss can have a broken gradient; the checkpoint of that step would be worthless."""
    trainer = trainer_for(tmp_path, objective=HardLabels() + Steep())
    with pytest.raises(FloatingPointError, match="weights are not finite after step 1"):
        trainer.train()
    assert get_last_checkpoint(str(tmp_path)) is None


def test_checkpoints_hold_no_more_than_they_must(tmp_path: Path) -> None:
    """A projection in the student's file is an unexpected key for everybody who loads it."""
    trainer: Any = trainer_for(tmp_path / "run", max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "published"))
    checkpoint = tmp_path / "run" / "checkpoint-2"
    plain = set(CASE.models()[0].state_dict())
    for folder in (checkpoint, tmp_path / "published"):
        assert set(load_file(folder / "model.safetensors")) == plain
    assert not (tmp_path / "published" / EXTRAS).exists()
    assert set(trainer.model.state_dict()) == plain
    extras = load_file(checkpoint / EXTRAS)
    assert {name.split(".")[0] for name in extras} == {"projections", "initial"}
    projected = [name for name in extras if name.startswith("projections.")]
    adam = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    assert len(adam) == len(list(CASE.models()[0].parameters())) + len(projected)
    model: Any = CASE.model
    loaded, report = model.from_pretrained(tmp_path / "published", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, trainer.model.state_dict()[name])


def test_no_extra_file_without_extras(tmp_path: Path) -> None:
    """And a checkpoint without it must not resume a run that needs one, with new projections."""
    trainer_for(tmp_path, objective=ForwardKL(2.0), max_steps=1).train()
    checkpoint = tmp_path / "checkpoint-1"
    assert not (checkpoint / EXTRAS).exists()
    with pytest.raises(ValueError, match=f"Expected {EXTRAS} in"):
        trainer_for(tmp_path).train(resume_from_checkpoint=str(checkpoint))


# ---- weights that are saved under other names --------------------------------------------------


def test_weights_under_older_names_are_loaded_again(tmp_path: Path) -> None:
    """ViT is saved under the names of older releases; `Trainer` alone finds none of them, says so
    in a log line, and goes on from the first weights: resumed, or as the best model."""
    case = CASES["image_classification"]
    student, teacher = case.models(torch.float32)
    keys = set(student.state_dict())
    trainer = DistillationTrainer(
        student,
        quiet_arguments(
            tmp_path,
            max_steps=3,
            learning_rate=0.05,
            save_strategy="steps",
            save_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="loss",
            greater_is_better=True,
        ),
        collate,
        case.data(8, torch.float32),
        case.data(4, torch.float32),
        teacher_model=teacher,
    )
    trainer.train()
    best = str(trainer.state.best_model_checkpoint)
    assert keys - set(load_file(Path(best) / "model.safetensors")), "nothing is renamed any more"
    expected = type(student).from_pretrained(best).state_dict()
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
