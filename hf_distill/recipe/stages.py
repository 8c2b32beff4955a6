"""Stages: work that is done once, resumed, and done again when its inputs have changed."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from accelerate.utils import broadcast_object_list
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

import hf_distill
from hf_distill.training.checkpoint_files import SAVING
from hf_distill.utils import interrupts
from hf_distill.utils.files import write_json
from hf_distill.utils.folders import FolderError, contents, json_object, refuse_foreign
from hf_distill.utils.processes import process_state

RECORD = "stage.json"
CHECKPOINTS = "checkpoints"
MODEL = "model"


def versions() -> dict[str, str]:
    """Major versions of libraries, which are inputs of every stage."""
    libraries = (hf_distill, torch, transformers)
    return {one.__name__: one.__version__.split(".")[0] for one in libraries}


@dataclass(frozen=True)
class Stage:
    """One step of a recipe with its folder.

    ``stage.json`` in the folder holds the inputs and, once it is finished, the results; it is
    written last. Of a folder without it, and of files other than `made`, nothing is removed.

    Args:
        name: Its name in the output.
        folder: The folder of its files.
        inputs: Plain values: everything the results depend on, and nothing else.
    """

    made: ClassVar[tuple[str, ...]] = (
        *(CHECKPOINTS, MODEL, "curves.png", "parts"),
        *(f".{RECORD}.tmp", ".curves.png.tmp"),
    )
    """Patterns of the names that a stage makes in its folder, besides its record."""

    name: str
    folder: Path
    inputs: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(_canonical(self.inputs).encode()).hexdigest()

    @property
    def model(self) -> Path:
        return self.folder / MODEL

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    def results(self) -> dict[str, Any] | None:
        """The results, if the stage is finished with these very inputs."""
        record = read_record(self.folder)
        if record.get("finished") and record["fingerprint"] == self.fingerprint:
            return dict(record["results"])
        return None

    def changes(self) -> list[str]:
        """Inputs that differ from those of the record: ``training.learning_rate 1e-4 -> 2e-4``."""
        record = read_record(self.folder)
        if not record:
            return []
        before, now = _flat(record["inputs"]), _flat(_json(self.inputs))
        return [
            f"{key} {_short(before.get(key))} -> {_short(now.get(key))}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]

    def check(self) -> None:
        """Raise FolderError unless the folder is absent, empty, or made by a stage."""
        check_folder(self.folder)
        if self.folder.is_symlink() and self.changes():
            raise FolderError(
                f"Expected {self.folder} to be a folder, got a link to {self.folder.resolve()}, "
                "where a stage with other inputs was done. What lies behind a link is not "
                "removed: remove the link."
            )

    def begin(self) -> None:
        """Check the folder and remove results of other inputs; a matching checkpoint is kept."""
        self.check()
        record = read_record(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if record and record["fingerprint"] != self.fingerprint:
            # first, so that what a kill leaves is taken neither for these inputs nor for the old
            write_json(self.folder / RECORD, {**record, "finished": False, "fingerprint": ""})
            for name in contents(self.folder):
                if any(fnmatchcase(name, pattern) for pattern in self.made):
                    remove(self.folder / name)
        self._write(finished=False)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Record the results."""
        self._write(finished=True, results=dict(results))
        self.remove_checkpoints()

    def once(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The results; of work that is not done yet, after doing it. For the main process."""
        results = self.results()
        if results is None:
            self.begin()
            results = work()
            self.finish(results)
        return results

    def remove_checkpoints(self) -> None:
        """Remove the checkpoints; files of trackers are kept."""
        for path in self.checkpoints.glob("*"):
            if path.name == SAVING or path.name.startswith(PREFIX_CHECKPOINT_DIR):
                remove(path)
        if self.checkpoints.is_dir() and not any(self.checkpoints.iterdir()):
            self.checkpoints.rmdir()

    def _write(self, **facts: Any) -> None:
        record = {"name": self.name, "fingerprint": self.fingerprint, **facts}
        write_json(self.folder / RECORD, {**record, "inputs": _json(self.inputs)})


def read_record(folder: Path) -> dict[str, Any]:
    """The record in a stage's folder; empty where there is none.

    Raises:
        FolderError: the file is damaged.
    """
    path = folder / RECORD
    if not path.exists():
        return {}
    record = json_object(path)
    kinds = {"fingerprint": str, "finished": bool, "inputs": dict}
    if record is not None and record.get("finished"):
        kinds["results"] = dict
    if record is None or not all(isinstance(record.get(k), kind) for k, kind in kinds.items()):
        raise FolderError(
            f"Expected {path} as a stage wrote it, got a damaged or foreign file. Move the folder "
            f"{folder} away, and run the same command again: this stage is done anew."
        )
    return record


def check_folder(folder: Path) -> None:
    """Raise FolderError for a folder with content but no record of a stage, or a damaged one; and
    for a file or a dangling link of this name."""
    names = contents(folder, (f".{RECORD}.tmp",))
    if names and not read_record(folder):  # `teacher/seed-0` of a run with other seeds may be there
        others = [name for name in names if not read_record(folder / name)]
        refuse_foreign(folder, others, f"with a {RECORD}")


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def run_stage(
    stage: Stage,
    work: Callable[[], dict[str, Any]],
    say: Callable[[str], None],
    again: bool = False,
) -> dict[str, Any]:
    """Do a stage unless it is done. Every process calls this; the main one writes.

    ``work`` runs on every process and gives the results on the main one; with ``again`` it runs
    even if it is done, and resumes by itself.
    """
    interrupts.check()
    state = process_state()
    done = [stage.results() if state.is_main_process and not again else None]
    if state.num_processes > 1:
        broadcast_object_list(done)
    if done[0] is not None:
        if state.is_main_process:  # left by a kill between the record and their removal
            stage.remove_checkpoints()
        say(f"{stage.name}: done before, nothing it depends on has changed")
        return done[0]
    if state.is_main_process:
        for change in stage.changes():
            say(f"{stage.name}: changed: {change}")
        stage.begin()
    state.wait_for_everyone()
    say(f"{stage.name}: begins")
    start = time.perf_counter()
    results = [work()]
    if state.is_main_process:
        stage.finish(results[0])
    if state.num_processes > 1:
        broadcast_object_list(results)
    say(f"{stage.name}: done in {time.perf_counter() - start:.0f} s")
    return results[0]


def _json(value: Any) -> Any:
    """A value as it comes back from JSON."""
    return json.loads(_canonical(value))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    parts = (_flat(item, f"{prefix}.{key}" if prefix else key) for key, item in value.items())
    return {key: item for part in parts for key, item in part.items()}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
