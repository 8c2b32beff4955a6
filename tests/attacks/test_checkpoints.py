"""Checkpoints that are damaged, incomplete, hostile, or rotated by a wrong clock."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType
from tally import Tally
from tiny_recipes import recipe
from tiny_trainers import same, trainer, weights
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_distill import ForwardKL, HardLabels, HiddenStates
from hf_distill.cli import main
from hf_distill.teachers.cache.checked_json import sealed
from hf_distill.training.checkpoint_files import LIST, check_checkpoint, write_list
from hf_distill.training.safe_state import STRUCTURE, TENSORS, pack_states
from tests.training import test_joint
from tests.training.on_policy import test_on_policy

# peft 0.21 reads an attribute that transformers 5.23 has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

OBJECTIVE = 0.5 * HardLabels() + 0.5 * ForwardKL(2.0) + HiddenStates()
PICKLES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
UNREAD = ("training_args.bin",)
LOG = "log-00000.safetensors"
STEPS, FROM = 4, 3


def run(folder: Path, **options: Any) -> Any:
    """Four steps with a checkpoint at each, and everything in it that has a state."""
    settings = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1, **options}
    return trainer(folder, objective=OBJECTIVE, **settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that nothing disturbed; final.pt holds its weights."""
    folder = tmp_path_factory.mktemp("whole")
    ours = run(folder)
    ours.train()
    torch.save(weights(ours.model), folder / "final.pt")
    return folder


def copied(whole: Path, place: Path, *names: str) -> Path:
    """A copy of a run with some of its checkpoints; gives the one that is attacked."""
    for name in names or (f"checkpoint-{FROM}",):
        shutil.copytree(whole / name, place / name)
    return place / f"checkpoint-{FROM}"


def resumed(checkpoint: Path, **options: Any) -> Any:
    ours = run(checkpoint.parent, **options)
    ours.train(resume_from_checkpoint=str(checkpoint))
    return ours


def goes_on_equally(whole: Path, checkpoint: Path, **options: Any) -> None:
    final = torch.load(whole / "final.pt", weights_only=True)
    assert same(weights(resumed(checkpoint, **options).model), final)


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path, seed: int = 0) -> None:
    content = bytearray(path.read_bytes())
    place = random.Random(f"{path.name} {seed}").randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


DAMAGES: tuple[Callable[[Path], None], ...] = (remove, cut, flip)


def files(checkpoint: Path) -> list[str]:
    return sorted(p.relative_to(checkpoint).as_posix() for p in checkpoint.rglob("*.*"))


def refused(checkpoint: Path, name: str, resume: Callable[[Path], Any]) -> None:
    """A refusal names the checkpoint, the file, and something to do."""
    with pytest.raises(ValueError, match=r"start anew|Resume from") as error:
        resume(checkpoint)
    assert str(checkpoint) in str(error.value)
    assert name in str(error.value)


# ---- damage ------------------------------------------------------------------------------------


def damage_each(whole: Path, place: Path, attacks: Tally, resume: Callable[[Path], Any]) -> None:
    """Every file of a checkpoint, missing, cut to half, and with one bit flipped."""
    step = int(whole.name.rpartition("-")[2])
    for name in files(whole):
        for damage in DAMAGES:
            with attacks.attack(f"{name}: {damage.__name__}"):
                checkpoint = place / f"{name.replace('/', '_')} {damage.__name__}" / whole.name
                shutil.copytree(whole, checkpoint)
                damage(checkpoint / name)
                if name in UNREAD or (name, damage) == (LIST, remove):
                    assert check_checkpoint(checkpoint) == step
                else:  # a whole trainer for each is a matter of time
                    refused(checkpoint, name, resume if damage is flip else check_checkpoint)
                shutil.rmtree(checkpoint)


def test_damage(whole: Path, tmp_path: Path) -> None:
    """One bit of the weights, or a schedule that begins anew, silently ends in another student."""
    with Tally("checkpoints: damage") as attacks:
        damage_each(whole / f"checkpoint-{FROM}", tmp_path, attacks, resumed)
        assert attacks.tried == 30
        for name in (*UNREAD, LIST):
            with attacks.attack(f"{name} is not read"):
                checkpoint = copied(whole, tmp_path / name)
                remove(checkpoint / name)
                goes_on_equally(whole, checkpoint)


def test_damage_without_a_list(whole: Path, tmp_path: Path) -> None:
    """A checkpoint of the stock trainer, or of an earlier version: what is gone or cut."""
    with Tally("checkpoints: damage without a list") as attacks:
        for name in sorted({*files(whole / f"checkpoint-{FROM}")} - {LIST, *UNREAD}):
            for damage in (remove, cut):
                with attacks.attack(f"{name}: {damage.__name__}"):
                    checkpoint = copied(whole, tmp_path / f"{name} {damage.__name__}")
                    remove(checkpoint / LIST)
                    damage(checkpoint / name)
                    if name in ("config.json", LOG) and damage is remove:  # a version; figures
                        goes_on_equally(whole, checkpoint)
                    else:
                        own = (
                            name == "distillation.safetensors"
                        )  # the trainer knows that it must be
                        with pytest.raises(ValueError, match=name):
                            (resumed if own else check_checkpoint)(checkpoint)


def flips(whole: Path, place: Path, seeds: range) -> None:
    checkpoint = copied(whole, place)
    with Tally("checkpoints: random bits") as attacks:
        for name in sorted(set(files(checkpoint)) - set(UNREAD)):
            content = (checkpoint / name).read_bytes()
            for seed in seeds:
                with attacks.attack(f"{name}, seed {seed}"):
                    flip(checkpoint / name, seed)
                    refused(checkpoint, name, check_checkpoint)
                    (checkpoint / name).write_bytes(content)


def test_random_bits(whole: Path, tmp_path: Path) -> None:
    """A format notices some changed bytes, and reads other numbers from the rest."""
    flips(whole, tmp_path, range(4))


@pytest.mark.slow
def test_many_random_bits(whole: Path, tmp_path: Path) -> None:
    """As above, at more places."""
    flips(whole, tmp_path, range(4, 50))


def test_what_other_trainers_keep(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Peers and a replay buffer are part of a run as the optimizer is; adapters are its weights."""
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, lora_dropout=0.0)
    saving = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    own = {"generator": test_on_policy.Fixed(), "lmbda": 1.0, "replay_capacity": 4, **saving}
    made: dict[str, tuple[Callable[[Path], Any], str]] = {
        "joint": (lambda out: test_joint.joint(out, **saving), "distillation.safetensors"),
        "on-policy": (lambda out: test_on_policy.trainer(out, **own), "replay-00000.safetensors"),
        "adapter": (lambda out: run(out, peft_config=lora, **saving), "adapter_model.safetensors"),
    }
    with Tally("checkpoints: other trainers") as attacks:
        for kind, (make, name) in made.items():
            make(tmp_path / kind).train()
            checkpoint = tmp_path / kind / "checkpoint-1"
            assert (checkpoint / name).is_file()

            def resume(folder: Path, make: Callable[[Path], Any] = make) -> None:
                make(folder.parent).train(resume_from_checkpoint=str(folder))

            for damage in DAMAGES:
                with attacks.attack(f"{kind}: {damage.__name__}"):
                    copy = tmp_path / f"{kind} {damage.__name__}" / "checkpoint-1"
                    shutil.copytree(checkpoint, copy)
                    damage(copy / name)
                    if (kind, damage) == ("on-policy", remove):
                        resume(copy)
                        assert "the replay buffer starts empty" in caplog.text
                    else:
                        refused(copy, name, resume)


class DamagesTheBest(TrainerCallback):
    """Damages the best checkpoint when all steps are done, before it is loaded."""

    def __init__(self, damage: Callable[[Path], None] | None):
        self.damage = damage

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "train_loss" not in logs:
            return
        found = Path(state.best_model_checkpoint)
        if self.damage is None:
            shutil.rmtree(found)
        else:
            remove(found / "optimizer.pt")  # which nobody reads here
            self.damage(found / "model.safetensors")


def test_the_best_checkpoint(tmp_path: Path) -> None:
    """The student that is published would be another one than the one that was measured."""
    best = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "loss",
        "load_best_model_at_end": True,
    }
    with Tally("checkpoints: the best") as attacks:
        for damage in (*DAMAGES, None):
            word = "whole folder" if damage is None else damage.__name__
            with attacks.attack(word):
                ours = run(tmp_path / word, **best)
                ours.add_callback(DamagesTheBest(damage))
                named = "no such folder" if damage is None else "model.safetensors"
                with pytest.raises(ValueError, match=named):
                    ours.train()


def test_a_checkpoint_as_the_teacher(whole: Path, tmp_path: Path) -> None:
    """One bit of its weights, and the student silently learns from another teacher."""
    with Tally("checkpoints: as a teacher") as attacks:
        for damage in DAMAGES:
            with attacks.attack(damage.__name__):
                checkpoint = copied(whole, tmp_path / damage.__name__)
                remove(checkpoint / "optimizer.pt")  # which no teacher needs
                trainer(tmp_path / "out", teacher_model=str(checkpoint))
                damage(checkpoint / "model.safetensors")
                with pytest.raises(ValueError, match=r"model\.safetensors \("):
                    trainer(tmp_path / "out", teacher_model=checkpoint)


# ---- remedies ----------------------------------------------------------------------------------


def test_the_remedies_work(whole: Path, tmp_path: Path) -> None:
    """A message whose advice cannot be followed costs the run it wanted to save."""
    with Tally("checkpoints: remedies") as attacks:
        with attacks.attack("the checkpoint before"):
            checkpoint = copied(whole, tmp_path / "a", *(f"checkpoint-{n}" for n in (1, 2, 3)))
            flip(checkpoint / "model.safetensors")
            remove(checkpoint.with_name("checkpoint-2") / "scheduler.pt")
            before = checkpoint.with_name("checkpoint-1")
            with pytest.raises(ValueError, match=f"Resume from {before}"):
                run(checkpoint.parent).train(resume_from_checkpoint=True)
            goes_on_equally(whole, before)
        with attacks.attack("delete the damaged folder"):
            checkpoint = copied(whole, tmp_path / "b", *(f"checkpoint-{n}" for n in (2, 3)))
            cut(checkpoint / "rng_state.pth")
            refused(checkpoint, "rng_state.pth", resumed)
            shutil.rmtree(checkpoint)
            found = get_last_checkpoint(str(checkpoint.parent))
            assert found is not None
            goes_on_equally(whole, Path(found))
        with attacks.attack("changed on purpose"):
            checkpoint = copied(whole, tmp_path / "c")
            state = json.loads((checkpoint / "trainer_state.json").read_text())
            (checkpoint / "trainer_state.json").write_text(json.dumps(state))
            refused(checkpoint, f"delete {LIST}", resumed)
            remove(checkpoint / LIST)
            goes_on_equally(whole, checkpoint)
        for name in PICKLES:
            with attacks.attack(f"without {name} on purpose"):
                checkpoint = copied(whole, tmp_path / name)
                cut(checkpoint / name)
                refused(checkpoint, "pass save_only_model=True", resumed)
                remove(checkpoint / name)
                refused(checkpoint, name, resumed)
                assert resumed(checkpoint, save_only_model=True).state.global_step == STEPS


def test_checkpoints_of_models_alone(tmp_path: Path) -> None:
    """A run with `save_only_model` goes on, as in transformers; another run must not, silently."""
    with Tally("checkpoints: models alone") as attacks, attacks.attack("save_only_model"):
        run(tmp_path, save_only_model=True, max_steps=FROM).train()
        checkpoint = tmp_path / f"checkpoint-{FROM}"
        assert not (checkpoint / "optimizer.pt").exists()
        refused(checkpoint, "optimizer.pt", resumed)
        assert resumed(checkpoint, save_only_model=True).state.global_step == STEPS


def test_packed_states(whole: Path, tmp_path: Path) -> None:
    """What comes from the Hub has its states as safetensors and JSON, in a list of its own."""
    with Tally("checkpoints: packed states") as attacks:
        packed = copied(whole, tmp_path / "packed")
        assert set(pack_states(packed)) == set(PICKLES)
        for name in PICKLES:
            remove(packed / name)
        with attacks.attack("with the list of the other files"):
            shutil.copytree(packed, tmp_path / "own" / packed.name)
            goes_on_equally(whole, tmp_path / "own" / packed.name)
        write_list(packed, files(packed))
        for name in (STRUCTURE, TENSORS):
            for damage in DAMAGES:
                with attacks.attack(f"{name}: {damage.__name__}"):
                    place = tmp_path / f"{name} {damage.__name__}" / packed.name
                    shutil.copytree(packed, place)
                    damage(place / name)
                    refused(place, name, resumed)


def test_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A traceback, and a folder full of checkpoints of stages that are done."""
    path = recipe(tmp_path / "project")
    stage = tmp_path / "project/out/teacher"

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with Tally("checkpoints: recipes") as attacks:
        with monkeypatch.context() as patched, attacks.attack("killed at its end"):
            patched.setattr(Trainer, "_finalize_training", killed)
            assert main(["cache", str(path)]) == 130
        (checkpoint,) = (stage / "checkpoints").glob("checkpoint-*")
        with attacks.attack("damaged"):
            flip(checkpoint / "optimizer.pt")
            assert main(["cache", str(path)]) == 2
            assert f"{checkpoint} as it was written" in (said := capsys.readouterr().err)
            assert "optimizer.pt (its content was changed)" in said
            assert "(of a recipe: delete the folder)" in said
        with attacks.attack("the remedy"):
            shutil.rmtree(checkpoint)
            assert main(["cache", str(path)]) == 0
            assert not (stage / "checkpoints").exists()
        with attacks.attack("killed after the record"):
            (stage / "checkpoints" / checkpoint.name).mkdir(parents=True)
            assert main(["cache", str(path)]) == 0
            assert not (stage / "checkpoints").exists()


# ---- code --------------------------------------------------------------------------------------


class Code:
    """A pickle that makes a file where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_pickles_that_are_programs(whole: Path, tmp_path: Path) -> None:
    """A stranger's checkpoint would run as a program; what torch says of it is no sentence."""
    with Tally("checkpoints: code") as attacks:
        for name in (*PICKLES, "scaler.pt"):
            for archive in (False, True):
                for listed in (False, True):
                    what = f"{name}, {archive=}, {listed=}"
                    with attacks.attack(what):
                        checkpoint = copied(whole, tmp_path / what)
                        mark = tmp_path / f"{what} ran"
                        if archive:
                            torch.save({"state": Code(mark)}, checkpoint / name)
                        else:
                            (checkpoint / name).write_bytes(pickle.dumps(Code(mark)))
                        write_list(checkpoint)
                        if not listed:
                            remove(checkpoint / LIST)
                        resume = resumed if archive and listed else check_checkpoint
                        refused(checkpoint, f"{name} (a pickle", resume)
                        assert not mark.exists()


def test_lists_of_a_stranger(whole: Path, tmp_path: Path) -> None:
    """A list of other types, or with other folders in it, would end in a traceback."""
    checkpoint = copied(whole, tmp_path)
    record = {"bytes": 1, "xxh3_128": "00"}
    lists: tuple[Any, ...] = (
        {},
        {"files": 5},
        {"files": {"config.json": 5}},
        {"files": {"config.json": {"bytes": "a"}}},
        {"files": {"../final.pt": record}},
        {"files": {"/dev/zero": {"bytes": 0, "xxh3_128": ""}}},
        {"files": {"x" * 5000: record}},
    )
    with Tally("checkpoints: hostile lists") as attacks:
        for values in lists:
            with attacks.attack(str(values)[:60]):
                (checkpoint / LIST).write_bytes(sealed(values))
                refused(checkpoint, "", check_checkpoint)
        for raw in (b"", b"[]", b"null", b"{" * 100_000, b"\xff\xfe"):
            with attacks.attack(str(raw[:20])):
                (checkpoint / LIST).write_bytes(raw)
                refused(checkpoint, LIST, check_checkpoint)


# ---- rotation ----------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is set back an hour after each checkpoint: earlier ones are of the future."""
    replace, back = os.replace, [0]

    def moved(source: Any, target: Any) -> None:
        replace(source, target)
        if Path(target).name.startswith("checkpoint-"):
            back[0] += 3600
            moment = time.time() - back[0]
            os.utime(target, (moment, moment))

    monkeypatch.setattr(os, "replace", moved)


@pytest.mark.usefixtures("clock")
def test_rotation_by_a_clock_that_is_set_back(tmp_path: Path) -> None:
    """Each new checkpoint would be deleted at once: a kill then loses hours."""
    with Tally("checkpoints: rotation") as attacks:
        for limit in (1, 2, 3):
            with attacks.attack(f"limit {limit}"):
                run(tmp_path / str(limit), save_total_limit=limit).train()
                kept = sorted(path.name for path in (tmp_path / str(limit)).glob("check*"))
                assert kept == [f"checkpoint-{n}" for n in range(STEPS - limit + 1, STEPS + 1)]


def test_rotation_keeps_the_best_and_what_is_not_ours(tmp_path: Path) -> None:
    """transformers removes every folder whose name begins like a checkpoint's."""
    best = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}
    theirs = ("checkpoint-notes", "checkpoint-2-backup", "checkpoint-0", "checkpoint-3")
    with Tally("checkpoints: rotation") as attacks:
        for ends in (False, True):
            with attacks.attack(f"load_best_model_at_end={ends}"):
                out = tmp_path / str(ends)
                for name in theirs:
                    (out / name).mkdir(parents=True)
                    (out / name / "precious.txt").write_text("mine")
                options = {**best, "learning_rate": 10.0, "load_best_model_at_end": ends}
                ours = run(out, save_total_limit=1, greater_is_better=True, **options)
                ours.train()
                assert ours.state.best_global_step == 3
                found = [path.parent.name for path in out.glob("checkpoint-*/trainer_state.json")]
                assert found == ["checkpoint-3"]
                kept = sorted(path.parent.name for path in out.glob("*/precious.txt"))
                assert kept == sorted({*theirs[:3], "checkpoint-3.kept-1"})


def test_going_back_to_an_earlier_checkpoint(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By step alone, the checkpoints of the abandoned steps would outlive each new one."""
    with Tally("checkpoints: rotation") as attacks:
        with attacks.attack("resumed from the second of four"):
            out = tmp_path / "out"
            for step in range(1, 5):
                shutil.copytree(whole / f"checkpoint-{step}", out / f"checkpoint-{step}")
            ours = run(out, save_total_limit=1, max_steps=3)
            ours.train(resume_from_checkpoint=str(out / "checkpoint-2"))
            assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-3"]
            assert "checkpoints of other steps, up to 4, and this run begins at 2" in caplog.text
        with attacks.attack("an earlier run's checkpoints"):
            other = tmp_path / "other"
            shutil.copytree(whole / "checkpoint-4", other / "checkpoint-400")
            run(other, save_total_limit=1, max_steps=2).train()
            assert [path.name for path in other.glob("checkpoint-*")] == ["checkpoint-2"]
            assert "up to 400, and this run begins at 0" in caplog.text


def test_a_folder_of_the_name_in_which_checkpoints_are_written(tmp_path: Path) -> None:
    """A person's folder would be removed by the first save."""
    with Tally("checkpoints: a person's folders") as attacks, attacks.attack("_saving"):
        (tmp_path / "_saving").mkdir()
        (tmp_path / "_saving" / "precious.txt").write_text("mine")
        with pytest.raises(FileExistsError, match=r"_saving.*precious\.txt"):
            run(tmp_path).train()
        assert (tmp_path / "_saving" / "precious.txt").read_text() == "mine"
