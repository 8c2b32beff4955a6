"""One training of a study, in this process or in one of its own.

``python -m hf_distill.recipe.tuning.trial FOLDER`` carries out ``FOLDER/job.json``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_distill.recipe.errors import told
from hf_distill.recipe.loading import load_recipe
from hf_distill.recipe.tuning.runs import StudyRun, Watch
from hf_distill.utils.files import write_json

JOB, RESULT, ERROR, LOG, SCORES = "job.json", "result.json", "error.json", "log.txt", "scores.jsonl"
WORK = "work"
"""Folder of the training within that of the job."""
POLL = 0.2
"""Seconds between two looks at a process."""
GRACE = 10.0
"""Seconds that a process has to end."""


class TrialError(Exception):
    """A training that failed; the message is its reason."""


class Pruned(Exception):  # noqa: N818
    """A training that was stopped on account of its scores."""


@dataclass(frozen=True)
class Job:
    """One training.

    Args:
        recipe: The file of the recipe.
        overrides: Pairs of key and value, those of the trial last.
        stage: Key of the stage: ``student/seed-0``.
        folder: Folder of its files.
        metric: The score.
        cached: See `StudyRun`.
        keep: Leave the model in ``WORK/model``.
    """

    recipe: str
    overrides: list[tuple[str, str]]
    stage: str
    folder: str
    metric: str
    cached: bool = False
    keep: bool = False

    @property
    def work(self) -> Path:
        return Path(self.folder) / WORK

    @property
    def model(self) -> Path:
        return self.work / "model"


Runner = Callable[[Job, Watch], dict[str, Any]]
"""Carries a job out; gives the results of `StudyRun.learn`, or raises `TrialError` or `Pruned`."""


def in_process(job: Job, watch: Watch) -> dict[str, Any]:
    """Carry a job out in this process."""
    stopped: list[bool] = []

    def watched(number: int, score: float) -> bool:
        if watch(number, score):
            stopped.append(True)
        return bool(stopped)

    with _folder(job):
        try:
            found = _learn(job, watched)
        except Exception as error:
            raise TrialError(told(error)) from error
        if stopped:
            raise Pruned
    return found


def in_subprocess(job: Job, watch: Watch) -> dict[str, Any]:
    """Carry a job out in a process of its own, which ends with this one."""
    folder = Path(job.folder)
    with _folder(job):
        write_json(folder / JOB, {**dataclasses.asdict(job), "parent": os.getpid()})
        command = [sys.executable, "-m", __name__, str(folder)]
        with open(folder / LOG, "wb") as log:
            # A session of its own: Ctrl-C reaches this process, which ends the other.
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            seen = 0
            while child.poll() is None:
                for score in _scores(folder, seen):
                    seen += 1
                    if watch(seen, score):
                        raise Pruned
                time.sleep(POLL)
        finally:
            _end(child)
    if not (folder / RESULT).is_file():
        raise TrialError(_reason(folder, child.returncode))
    found: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    for number, score in enumerate(_scores(folder, seen), seen + 1):
        watch(number, score)
    return found


@contextlib.contextmanager
def _folder(job: Job) -> Iterator[None]:
    """An empty folder for a job; what the training leaves is removed, unless a model is kept."""
    shutil.rmtree(job.folder, ignore_errors=True)
    Path(job.folder).mkdir(parents=True)
    kept = False
    try:
        yield
        kept = job.keep
    finally:
        if not kept:
            shutil.rmtree(job.work, ignore_errors=True)


def _learn(job: Job, watch: Watch, say: Callable[[str], None] = lambda line: None) -> Any:
    from transformers import PrinterCallback

    recipe = load_recipe(job.recipe, job.overrides)
    run = StudyRun(recipe, say, PrinterCallback, cached=job.cached).seal()
    return run.learn(job.stage, job.work, watch, job.metric)


def _scores(folder: Path, after: int) -> Iterator[float]:
    """Scores in the file of a job, after the first ones."""
    try:
        lines = (folder / SCORES).read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return
    for line in lines[after:]:
        yield float(json.loads(line))


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _reason(folder: Path, code: int) -> str:
    if (folder / ERROR).is_file():
        return str(json.loads((folder / ERROR).read_text(encoding="utf-8"))["error"])
    if code < 0:
        killed = " (the system ends processes so where memory runs out)" if code == -9 else ""
        return f"its process was ended by signal {-code}{killed}"
    lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "no output")
    return f"its process ended with {code}: {last}"


def main(folder: str) -> int:
    """Inside the process of a job."""
    import datasets
    from transformers.utils import logging

    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    values = json.loads((Path(folder) / JOB).read_text(encoding="utf-8"))
    parent = values.pop("parent")
    pairs = [(key, value) for key, value in values.pop("overrides")]
    job = Job(**values, overrides=pairs)
    _end_with(parent)

    def watch(number: int, score: float) -> bool:
        with open(Path(folder) / SCORES, "a", encoding="utf-8") as file:
            file.write(f"{json.dumps(score)}\n")
        return False

    try:
        write_json(Path(folder) / RESULT, _learn(job, watch, print))
    except Exception as error:
        write_json(Path(folder) / ERROR, {"error": told(error)})
        raise
    return 0


def _end_with(parent: int) -> None:
    """End this process as soon as its parent has ended."""
    import threading

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
