"""Work of a study that several workers share: jobs, their outcomes, and waiting for one another."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hf_distill.recipe.schema import Recipe
from hf_distill.recipe.tune_section import TuneSection
from hf_distill.recipe.tuning import journal
from hf_distill.recipe.tuning.journal import REASON, Journal
from hf_distill.recipe.tuning.runs import StudyRun, Watch
from hf_distill.recipe.tuning.trial import Job, Pruned, Runner, TrialError
from hf_distill.utils.directions import lower_is_better
from hf_distill.utils.folders import lock

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial

POLL = 1.0
"""Seconds between two looks at the trials of other workers."""
SECONDS, LEARNING = "seconds", "training_seconds"
"""User attributes of trials: of the whole job, and of its training alone."""
Work = Callable[[], None]


@dataclass(frozen=True)
class Bench:
    """One worker's view of a study.

    Attributes:
        recipe: The recipe.
        section: Its section ``tune``.
        metric: The score.
        root: The folder of the study.
        run: The run with the teacher, at full data.
        cached: True if it keeps the teacher's outputs without a section of the recipe.
        runner: Carries a job out.
        say: Function that prints a line.
        journal: The journal in ``root``.
    """

    recipe: Recipe
    section: TuneSection
    metric: str
    root: Path
    run: StudyRun
    cached: bool
    runner: Runner
    say: Callable[[str], None]
    journal: Journal

    @property
    def seed(self) -> int:
        """The seed of all trials."""
        return self.recipe.student_seeds[0]

    @property
    def direction(self) -> str:
        return "minimize" if lower_is_better(self.metric) else "maximize"

    def job(
        self, arm: str, seed: int, own: list[tuple[str, str]], folder: Path, keep: bool = False
    ) -> Job:
        """The training of an arm with some overrides."""
        found = [*self.recipe.overrides, *own, ("seeds", f"[{seed}]")]
        stage, file = f"{arm}/seed-{seed}", str(self.recipe.file)
        return Job(file, found, stage, str(folder), self.metric, self.cached, keep)

    def carry_out(self, study: Study, trial: Trial, job: Job, watch: Watch) -> None:
        """Run a job and record its outcome; an interrupted one does not count."""
        states = journal.optuna().trial.TrialState
        start = time.perf_counter()
        try:
            with journal.sign_of_life(Path(job.folder).parent, trial.number):
                found = self.runner(job, watch)
        except Pruned:
            trial.set_user_attr(SECONDS, time.perf_counter() - start)
            study.tell(trial, state=states.PRUNED, skip_if_finished=True)
        except TrialError as error:
            trial.set_user_attr(REASON, str(error))
            study.tell(trial, state=states.FAIL, skip_if_finished=True)
        except BaseException:
            study.tell(trial, state=states.FAIL, skip_if_finished=True)
            raise
        else:
            trial.set_user_attr(SECONDS, time.perf_counter() - start)
            trial.set_user_attr(LEARNING, found["seconds"])
            study.tell(trial, found["score"], skip_if_finished=True)

    def work(self, following: Callable[[], Work | bool]) -> None:
        """Carry out jobs: ``following`` gives the next one, True to wait for other workers, or
        False where none is left. It is called by one worker at a time."""
        told = False
        while True:
            with self.journal.alone():
                job = following()
            if callable(job):
                job()
            elif not job:
                return
            else:
                if not told:
                    self.say("waiting for the trials of other workers")
                told = True
                time.sleep(POLL)

    @contextlib.contextmanager
    def one_worker(self, what: str) -> Iterator[None]:
        """Let one worker at a time do a part that is done once."""
        handle = os.open(self.root / ".one.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                lock(handle, wait=False)
            except BlockingIOError:
                self.say(f"waiting for another worker, which is at {what}")
                lock(handle)
            yield
        finally:
            os.close(handle)
