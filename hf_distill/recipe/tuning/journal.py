"""Optuna's studies in one journal file, shared by all workers."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from hf_distill.recipe.errors import RecipeError

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

JOURNAL = "journal.log"
LEASE = 600.0
"""Seconds without a sign of life after which a trial of another machine is given up."""
BEAT = 15.0
"""Seconds between two signs of life."""
REASON, SETTINGS, WORKER, IDENTITY = "reason", "settings", "worker", "identity"
"""User attributes of trials and studies."""


def optuna() -> Any:
    """The library.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError("Tuning needs Optuna: pip install 'hf_distill[tune]'.") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Journal:
    """The studies in a folder. Each worker has one of these on the same file."""

    def __init__(self, folder: Path):
        storages = optuna().storages
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / JOURNAL
        backend = storages.journal.JournalFileBackend(str(self.path))
        self.storage = storages.JournalStorage(backend)
        self._lock = storages.journal.JournalFileSymlinkLock(str(folder / "next"))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other worker take or count trials; for moments, also on network disks."""
        self._lock.acquire()
        try:
            yield
        finally:
            with contextlib.suppress(RuntimeError):  # held for over 30 s: another one has taken it
                self._lock.release()

    def study(self, name: str, identity: Mapping[str, Any], **options: Any) -> Study:
        """A study, made if need be.

        Raises:
            RecipeError: the one of this name has other settings.
        """
        made: Study = optuna().create_study(
            storage=self.storage, study_name=name, load_if_exists=True, **options
        )
        with self.alone():
            before = made.user_attrs.get(IDENTITY)
            if before is None:
                made.set_user_attr(IDENTITY, dict(identity))
        if before is not None and before != dict(identity):
            keys = [key for key in identity if before.get(key) != identity[key]]
            raise RecipeError(
                f"expected the trials in {self.path} to be of this recipe, got those of another: "
                f"{', '.join(keys)} of the {name} differ. Move the folder {self.path.parent} away, "
                "or set another `output_dir`."
            )
        return made


def counted(study: Study) -> list[FrozenTrial]:
    """Trials that count: finished, running, and failed with a reason; not those that were lost."""
    return [
        one
        for one in study.get_trials(deepcopy=False)
        if one.state.name != "WAITING" and (one.state.name != "FAIL" or REASON in one.user_attrs)
    ]


def running(study: Study) -> list[FrozenTrial]:
    return [one for one in study.get_trials(deepcopy=False) if one.state.name == "RUNNING"]


def give_up_lost(study: Study, folder: Path) -> int:
    """Fail the running trials whose worker has ended; gives their number. Call it `alone`.

    ``folder`` holds the signs of life, see `sign_of_life`.
    """
    fail, count = optuna().trial.TrialState.FAIL, 0
    for trial in running(study):
        if _lost(trial, folder):
            study.tell(trial.number, state=fail, skip_if_finished=True)
            count += 1
    return count


def this_worker() -> dict[str, Any]:
    """Host, process and its start, by which others recognise that it has ended."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "began": psutil.Process(pid).create_time(),
        "at": time.time(),
    }


def _lost(trial: FrozenTrial, folder: Path) -> bool:
    worker = trial.user_attrs.get(WORKER)
    if worker is None:  # killed while it took the trial
        return True
    if worker["host"] == socket.gethostname():
        try:
            return abs(psutil.Process(worker["pid"]).create_time() - worker["began"]) > 1
        except psutil.Error:
            return True
    try:
        seen = _beat(folder, trial.number).stat().st_mtime
    except OSError:
        seen = worker["at"]
    return time.time() - seen > LEASE


def _beat(folder: Path, number: int) -> Path:
    return folder / f".alive-{number}"


@contextlib.contextmanager
def sign_of_life(folder: Path, number: int) -> Iterator[None]:
    """Touch a file for the trial of this number every `BEAT` seconds."""
    path, ended = _beat(folder, number), threading.Event()
    folder.mkdir(parents=True, exist_ok=True)

    def touch() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):
                path.touch()
            ended.wait(BEAT)

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        path.unlink(missing_ok=True)
