"""Attacks on runs: damaged records, two at once, kills, disks and paths that cannot be written,
Ctrl-C where Python drops it, trainings that train nothing.

The judges are the operating system (what lies in a folder before and after, exit codes, signals,
`flock`) and the weights of a run that was left alone.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tally import Tally
from tiny_recipes import recipe
from tiny_runs import ROOT, SHORT, refused, spawn, train, tree, weights
from transformers import TrainerCallback

from hf_distill.cli import main
from hf_distill.hub.exported import weights_of
from hf_distill.recipe.resolve import identity
from hf_distill.training.trainer import DistillationTrainer
from hf_distill.utils import interrupts
from hf_distill.utils.folders import LOCK, FolderError, held


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny recipe in a folder of its own."""
    return recipe(tmp_path_factory.mktemp("project"), training=SHORT)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a recipe that was run."""
    folder = tmp_path_factory.mktemp("finished")
    assert train(recipe(folder, training=SHORT)) == 0
    return folder / "out"


# ---- records -------------------------------------------------------------------------------------

DAMAGED = ("", "{", "[]", "null", '{"finished": true}', '{"fingerprint": 1}', "\x00" * 9)


@pytest.mark.parametrize("long", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_damaged_records(
    long: bool, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bare traceback for a `stage.json` that a full disk cut, and nobody knows what to delete."""
    path, out = finished.parent / "recipe.yaml", tmp_path / "out"
    shutil.copytree(finished, out)
    stages = ("teacher", "student/seed-0", "speed") if long else ("student/seed-0",)
    with Tally("runs: damaged stage.json") as attacks:
        for stage in stages:
            record = out / stage / "stage.json"
            whole = record.read_bytes()
            for text in DAMAGED if long else DAMAGED[:5]:
                record.write_text(text)
                with attacks.attack(f"{stage}: {text!r}"):
                    refused(path, out, str(record), capsys)
            record.write_bytes(whole)
        if long:
            (out / "student/seed-0/stage.json").write_text("{")
            with attacks.attack("what the message advises"):
                (out / "student/seed-0").rename(tmp_path / "aside")
                assert train(path, "--output_dir", str(out)) == 0
                assert weights(out) == weights(finished)


# ---- places --------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs of its own, where this process may mount one."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("no right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # a file may still be mapped


def test_places_that_cannot_be_written(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bare traceback, after the data were prepared, for a path that no file system takes."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = tree(tmp_path)
    places = {
        "a file": str(tmp_path / "file"),
        "below a file": str(tmp_path / "file/out"),
        "a device": "/dev/null",
        "below a device": "/dev/null/x",
        "/proc": "/proc/x",
        "a dangling link": str(tmp_path / "dangling"),
        "below a dangling link": str(tmp_path / "dangling/out"),
        "a link to itself": str(tmp_path / "loop"),
        "a component of 300 characters": str(tmp_path / ("x" * 300)),
        "half an emoji": '"\\ud83d"',
        "a zero byte": '"a\\0b"',
    }
    with Tally("runs: places that cannot be written") as attacks:
        for what, place in places.items():
            with attacks.attack(what):
                assert train(project, "--output_dir", place) == 2
                errors = capsys.readouterr().err.strip().splitlines()
                assert errors[-1].startswith("hf-distill: ")
                assert tree(tmp_path) == before
        with attacks.attack("an emoji that is escaped as in JSON is one"):
            words = ["--output_dir", f'"{tmp_path}/\\ud83d\\ude00"', "--dry-run"]
            assert train(project, *words) == 0
            assert "😀" in capsys.readouterr().out


@pytest.mark.slow
def test_full_disks(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A full disk would end in a traceback, or leave half a file that the next run believes."""
    path = finished.parent / "recipe.yaml"
    with Tally("runs: full disks") as attacks:
        for options in ("size=60k", "size=300k", "nr_inodes=12"):
            with small_disk(tmp_path / options, options) as disk:
                words = ["--output_dir", str(disk / "out")]
                with attacks.attack(options):
                    assert train(path, *words) == 2
                    told = capsys.readouterr().err
                    assert "no space, or no room for another file" in told, told
                kind = options.partition("=")[0]
                more = f"remount,{kind}={'32m' if kind == 'size' else 4000}"
                subprocess.run(["mount", "-o", more, str(disk)], check=True)
                with attacks.attack(f"{options}, and then space"):
                    assert train(path, *words) == 0
                    assert weights(disk / "out") == weights(finished)
        with small_disk(tmp_path / "read-only", "ro") as disk, attacks.attack("read-only"):
            assert train(path, "--output_dir", str(disk / "out")) == 2
            assert "Read-only file system" in capsys.readouterr().err


# ---- one at a time -------------------------------------------------------------------------------

HOLDER = """
import os, sys, time
from pathlib import Path
from hf_distill.utils.folders import held
with held(Path(sys.argv[1])):
    if sys.argv[2] == "alone" or os.fork() == 0:  # what a fork lets go of is gone when it begins
        print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def holder(folder: Path, how: str = "alone") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), how],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def alone(folder: Path) -> None:
    """Hold a folder for a moment."""
    with held(folder):
        assert (folder / LOCK).exists()


def test_the_second_run_is_told_of_the_first(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs in one folder delete each other's checkpoints, and both end with 0."""
    out, link = tmp_path / "out", tmp_path / "link"
    link.symlink_to(out)
    with Tally("runs: two at once") as attacks:
        with holder(out) as other:
            for place in (out, link, out / "../out"):
                with attacks.attack(str(place)):
                    assert train(project, "--output_dir", str(place)) == 2
                    told = capsys.readouterr().err
                    assert f"process {other.pid} on {os.uname().nodename}, since 20" in told
            with attacks.attack("cache"):
                assert main(["cache", str(project), "--output_dir", str(link)]) == 2
                assert f"process {other.pid}" in capsys.readouterr().err
        assert (out / LOCK).exists(), "a kill leaves the file"
        with attacks.attack("after a kill"):
            alone(link)
        with attacks.attack("nothing is left"):
            assert tree(tmp_path) == {"link": f"-> {out}", "out": "folder"}
        with holder(out, "fork") as other, attacks.attack("a worker outlives its killed run"):
            other.kill()
            other.wait()
            alone(link)
        own = pytest.raises(FolderError, match=f"process {os.getpid()} ")
        with attacks.attack("twice in one process"), held(out), own:
            alone(link)
        with attacks.attack("a link in place of the lock"):
            (tmp_path / "mine").write_text("mine")
            (out / LOCK).symlink_to(tmp_path / "mine")
            assert train(project, "--output_dir", str(out)) == 2
            assert (tmp_path / "mine").read_text() == "mine"


def test_systems_without_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On Windows, or a disk that knows no `flock`, nothing would run; or a lock be believed in."""

    def unknown(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with Tally("runs: two at once") as attacks:
        for what, patch in {
            "no fcntl": ("hf_distill.utils.folders.fcntl", None),
            "a disk without locks": ("fcntl.flock", unknown),
        }.items():
            with attacks.attack(what), monkeypatch.context() as patched:
                caplog.clear()
                patched.setattr(*patch)
                alone(tmp_path / "out")
                assert "start no second run in it" in caplog.text
                assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_runs_at_once(finished: Path, tmp_path: Path) -> None:
    """One must do the work and the other refuse, whichever comes first, and the weights are those
    of a run alone."""
    path = recipe(tmp_path, training=SHORT)
    with Tally("runs: two at once") as attacks:
        runs = [spawn(path), spawn(path, "--training.learning_rate", "3e-3")]
        told = [run.communicate(timeout=120)[1] for run in runs]
        codes = [run.returncode for run in runs]
        with attacks.attack("both start together"):
            assert sorted(codes) == [0, 2], told
            assert "is in use: process" in told[codes.index(2)]
        with attacks.attack("and then the same alone"):
            assert train(path) == 0
            assert weights(tmp_path / "out") == weights(finished)


# ---- kills ---------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL at one instant: nothing of ours may catch it."""


def killed_at(number: int, path: Path, patch: pytest.MonkeyPatch) -> bool:
    """Run a finished recipe once more and stop it before its rename of this number."""
    replace, count = os.replace, 0

    def counted(*args: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if count > number:  # of a killed process nothing goes on
            raise Killed
        replace(*args, **options)

    with patch.context() as patched:
        patched.setattr(os, "replace", counted)
        with contextlib.suppress(Killed):
            train(path)
    return count > number


def renames(path: Path, patch: pytest.MonkeyPatch) -> int:
    """How many renames a finished recipe takes once more."""
    replace, count = os.replace, 0

    def counted(*args: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        replace(*args, **options)

    with patch.context() as patched:
        patched.setattr(os, "replace", counted)
        assert train(path) == 0
    return count


@pytest.mark.parametrize("long", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_kill_at_each_rename_keeps_the_words_of_a_person(
    long: bool, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two renames the old card is aside: the next run would write one without the words,
    and delete the old."""
    path, readme = finished.parent / "recipe.yaml", finished / "final/README.md"
    with Tally("runs: kills at each rename of `final`") as attacks:
        last = renames(path, monkeypatch)  # one before it, `final` is aside
        for number in range(0, last, 2) if long else (last - 2, last - 1):
            words = f"Words of a person, before kill {number}."
            text = readme.read_text().partition("\nWords of a person")[0]
            readme.write_text(f"{text}\n{words}\n")
            with attacks.attack(f"before rename {number + 1}"):
                assert killed_at(number, path, monkeypatch)
                kept = [one.read_text() for one in finished.glob("**/README.md")]
                assert any(words in one for one in kept)
                assert readme.exists() == (number != last - 1)
                if not readme.exists():
                    assert train(path) == 0
                assert words in readme.read_text()
        assert last > 5, "renames were not counted"
        assert train(path) == 0
        assert words in readme.read_text()
        assert not [one for one in finished.iterdir() if one.name.startswith(".")]


@pytest.mark.slow
def test_kills_at_random_moments(finished: Path, tmp_path: Path) -> None:
    """What a kill leaves would be taken for finished, or the run go on elsewhere than it was."""
    path, chance = recipe(tmp_path, training=SHORT), random.Random(5)
    out = tmp_path / "out"
    marks = ("teacher/stage.json", "student/seed-0/stage.json")
    with Tally("runs: kills at random moments") as attacks:
        for how, mark in zip((signal.SIGKILL, signal.SIGTERM), marks, strict=True):
            run = spawn(path)
            deadline = time.monotonic() + 120
            while not (out / mark).exists() and run.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(chance.random() * 0.3)
            run.send_signal(how)
            told = run.communicate(timeout=60)[1]
            with attacks.attack(f"{how.name} in {mark}"):
                assert run.returncode == -how, told
                assert "Traceback" not in told
        with attacks.attack("the run that is left alone at last"):
            assert train(path) == 0
            assert weights(out) == weights(finished)
            hidden = [one.name for one in out.rglob(".*") if one.name != ".git"]
            assert not hidden


# ---- Ctrl-C --------------------------------------------------------------------------------------


class Closing:
    """Something whose end takes a moment, in which Ctrl-C comes."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def in_del() -> None:
    Closing()


def in_garbage_collection() -> None:
    one, other = Closing(), Closing()
    one.other, other.other = other, one  # type: ignore[attr-defined]
    del one, other
    gc.collect()


def in_weakref_callback() -> None:
    held = type("Held", (), {})()
    reference = weakref.ref(held, lambda _: signal.raise_signal(signal.SIGINT))
    del held
    assert reference() is None


def in_bare_except() -> None:
    with contextlib.suppress(BaseException):
        signal.raise_signal(signal.SIGINT)


def waiting(press: Callable[[], None]) -> None:
    """Go on for a while after Ctrl-C was dropped."""
    with interrupts.heard():
        press()
        time.sleep(5)


DROPPED: list[Callable[[], None]] = [in_del, in_garbage_collection, in_weakref_callback]


class AtStep(TrainerCallback):
    """Presses Ctrl-C in the second step of a training."""

    def __init__(self, press: Callable[[], None]) -> None:
        self.press, self.steps = press, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1
        if self.steps == 2:
            self.press()


@pytest.mark.parametrize("long", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ctrl_c_is_never_dropped(
    long: bool,
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Python writes "Exception ignored" where Ctrl-C comes within a `__del__`: the run would go on
    to its end and leave with 0."""
    began: list[AtStep] = []
    make = DistillationTrainer.__init__
    press: Callable[[], None] = in_del

    def watched(self: DistillationTrainer, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        began.append(AtStep(press))
        self.add_callback(began[-1])

    monkeypatch.setattr(DistillationTrainer, "__init__", watched)
    with Tally("runs: Ctrl-C where Python drops it") as attacks:
        for press in DROPPED:
            with attacks.attack(press.__name__), pytest.raises(KeyboardInterrupt):
                waiting(press)
        with attacks.attack("in_bare_except"), interrupts.heard():
            in_bare_except()
            with pytest.raises(KeyboardInterrupt):
                interrupts.check()
        for press in [*DROPPED, in_bare_except] if long else [in_del, in_bare_except]:
            out = tmp_path / press.__name__
            with attacks.attack(f"{press.__name__} of a training"):
                began.clear()
                assert train(project, "--output_dir", str(out)) == 130
                shown = capsys.readouterr()
                assert "the same command again resumes" in shown.err
                assert "done in" not in shown.out
                assert max(one.steps for one in began) <= 3
        with attacks.attack("the handler is gone afterwards"):
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with attacks.attack("ignored, as by nohup, it stays ignored"):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                with interrupts.heard():
                    signal.raise_signal(signal.SIGINT)
            finally:
                signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_push_that_fails_is_a_sentence(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything is trained and written, and a bare traceback hides that the card was refused."""
    errors = {
        ValueError("a secret in config.json"): 2,
        ConnectionError("the Hub does not answer"): 1,
        OSError(errno.ENOSPC, "No space left on device"): 2,
    }
    words = ["--push_to_hub", "true", "--hub_model_id", "me/tiny"]
    with Tally("runs: a push that fails at the end") as attacks:
        for error, code in errors.items():

            def push(*args: Any, error: Exception = error, **options: Any) -> None:
                raise error

            monkeypatch.setattr("hf_distill.recipe.runner.push_folder", push)
            with attacks.attack(repr(error)):
                assert train(finished.parent / "recipe.yaml", *words) == code
                assert str(error) in capsys.readouterr().err


# ---- what a run trains, and from what ------------------------------------------------------------


def test_a_run_that_trains_nothing_is_refused(
    project: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Untrained weights would be published with a card that calls them distilled."""
    early = {
        "max_steps": ["0"],
        "num_train_epochs": ["0", "-3", ".nan"],
        "learning_rate": ["0", "-1", ".nan"],
    }
    out = tmp_path / "out"
    with Tally("runs: nothing is trained") as attacks:
        for key, values in early.items():
            for value in values:
                for role in ("training", "student.training"):
                    with attacks.attack(f"{role}.{key}={value}"):
                        words = [f"--{role}.{key}", value, "--output_dir", str(out)]
                        assert train(project, *words) == 2
                        told = capsys.readouterr().err
                        assert key in told.replace("learning rate", "learning_rate")
                        assert not out.exists()
        with attacks.attack("one step, and that one of the warm-up"):
            shutil.copytree(finished, out)
            before = tree(out / "final")
            words = ["--student.training.max_steps", "1", "--student.training.warmup_steps", "1"]
            words += ["--student.training.save_steps", "1"]
            words += ["--output_dir", str(out)]
            for _ in range(2):  # the second goes on from the checkpoint of the first
                assert train(finished.parent / "recipe.yaml", *words) == 2
                assert "student/seed-0 has learned nothing" in capsys.readouterr().err
                assert tree(out / "final") == before


def test_a_stage_goes_on_at_the_step_of_its_checkpoint(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained weights with a state of step 0 would be trained once more: weights of no run."""
    out = tmp_path / "out"

    def at_three(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt

    words = ["--output_dir", str(out)]
    with pytest.MonkeyPatch.context() as patch, Tally("runs: checkpoints of another step") as tally:
        patch.setattr("hf_distill.recipe.training.Heard.on_step_end", at_three)
        assert train(project, *words) == 130
        patch.undo()
        checkpoint = out / "teacher/checkpoints/checkpoint-2"
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        before = (out / "teacher/stage.json").read_bytes()
        with tally.attack("changed, and its list of files tells so"):
            (checkpoint / "trainer_state.json").write_text(json.dumps({**state, "global_step": 1}))
            assert train(project, *words) == 2
            assert "delete checksums.json" in capsys.readouterr().err
        (checkpoint / "checksums.json").unlink()  # as the message says
        for step in (0, 1, 4):
            text = json.dumps({**state, "global_step": step})
            (checkpoint / "trainer_state.json").write_text(text)
            with tally.attack(f"step {step}"):
                assert train(project, *words) == 2
                assert f"got step {step}" in capsys.readouterr().err
                assert not (out / "teacher/model").exists()
                assert (out / "teacher/stage.json").read_bytes() == before
        capsys.readouterr()


MODEL_FILES = (
    *("config.json", "model.safetensors", "model-00001-of-00002.safetensors"),
    *("model.safetensors.index.json", "pytorch_model.bin", "pytorch_model-00001-of-00002.bin"),
    *("pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack", "model.gguf"),
    *("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "vocab.txt"),
    *("merges.txt", "tokenizer.json", "tokenizer.model", "spiece.model", "chat_template.jinja"),
    *("modeling_own.py", "1_Pooling/config.json", "2_Dense/pytorch_model.bin", "vae/model.pt"),
)
BESIDE = (
    *("README.md", "curves.png", "optimizer.pt", "scheduler.pt", "rng_state.pth", ".cache/x.json"),
    *("training_args.bin", "checkpoint-5/model.safetensors", "runs/events.bin", ".git/config.txt"),
)


def test_every_file_that_is_loaded_counts(tmp_path: Path) -> None:
    """A teacher in `pytorch_model.bin` that is replaced would leave its old students finished."""
    for name in (*MODEL_FILES, *BESIDE):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    known = identity(str(tmp_path))
    with Tally("runs: changed files of a teacher") as attacks:
        for name in MODEL_FILES:
            path = tmp_path / name
            for how in ("a byte", "gone", "renamed"):
                with attacks.attack(f"{name}: {how}"):
                    content = path.read_bytes()
                    if how == "a byte":
                        path.write_bytes(content[:-1] + b"!")
                    elif how == "gone":
                        path.unlink()
                    else:
                        path.rename(path.with_name(f"x{path.name}"))
                    assert identity(str(tmp_path)) != known
                    path.with_name(f"x{path.name}").unlink(missing_ok=True)
                    path.write_bytes(content)
                    assert identity(str(tmp_path)) == known
        for name in BESIDE:
            with attacks.attack(f"{name} does not count"):
                (tmp_path / name).write_text("other")
                assert identity(str(tmp_path)) == known
        for name in ("pytorch_model.bin", "adapter_model.bin", "model.safetensors"):
            with attacks.attack(f"{name}, for what was exported from it"):
                before, content = weights_of(tmp_path), (tmp_path / name).read_bytes()
                (tmp_path / name).write_bytes(b"other")
                assert weights_of(tmp_path) != before
                (tmp_path / name).write_bytes(content)
        with attacks.attack("a link to a file, a folder that holds itself"):
            (tmp_path / "round").symlink_to(tmp_path)
            content = (tmp_path / "vocab.txt").read_bytes()
            (tmp_path / "vocab.txt").unlink()
            (tmp_path / ".git/real.txt").write_bytes(content)
            (tmp_path / "vocab.txt").symlink_to(tmp_path / ".git/real.txt")
            assert identity(str(tmp_path)) == known
