"""Stages: work that is done once, resumed when it was interrupted, and done again when its
inputs have changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from hf_distill.processes import process_state

RECORD = "stage.json"
CHECKPOINTS = "checkpoints"
MODEL = "model"


def write_text(path: Path, text: str) -> None:
    """Write under another name and rename: never half a file."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def versions() -> dict[str, str]:
    """The libraries whose major version is an input of every stage."""
    names = ("hf_distill", "torch", "transformers")
    return {name: _version(name).split(".")[0] for name in names}


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError

    try:
        return version(name)
    except PackageNotFoundError:  # a checkout that is not installed
        import hf_distill

        return hf_distill.__version__


@dataclass(frozen=True)
class Stage:
    """One step of a recipe, with a folder of its own.

    ``stage.json`` in the folder holds the inputs and, once it is finished, the results; it is
    written last, so what it says is there is there.

    Args:
        name: What is printed.
        folder: Where its files lie; nothing else may write there.
        inputs: Plain values: everything the results depend on, and nothing else.
    """

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

    def record(self) -> dict[str, Any]:
        """What ``stage.json`` says; empty where there is none."""
        try:
            record: dict[str, Any] = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return record

    def results(self) -> dict[str, Any] | None:
        """The results, if the stage is finished with these very inputs."""
        record = self.record()
        if record.get("finished") and record["fingerprint"] == self.fingerprint:
            return dict(record["results"])
        return None

    def changes(self) -> list[str]:
        """Which inputs differ from those of the record, ``training.learning_rate 1e-4 -> 2e-4``."""
        record = self.record()
        if not record:
            return []
        before, now = _flat(record["inputs"]), _flat(_json(self.inputs))
        return [
            f"{key} {_short(before.get(key))} -> {_short(now.get(key))}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]

    def begin(self) -> None:
        """Make the folder ready: what other inputs left there goes, a checkpoint of ours stays."""
        if self.record().get("fingerprint") != self.fingerprint:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(finished=False)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Record the results; the checkpoints are of no more use."""
        self._write(finished=True, results=dict(results))
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _write(self, **facts: Any) -> None:
        record = {"name": self.name, "fingerprint": self.fingerprint, **facts}
        write_json(self.folder / RECORD, {**record, "inputs": _json(self.inputs)})


def run_stage(
    stage: Stage,
    work: Callable[[], dict[str, Any]],
    say: Callable[[str], None],
    again: bool = False,
) -> dict[str, Any]:
    """Do a stage unless it is done. Every process calls this; the main one writes.

    Args:
        stage: The stage.
        work: Does it, on every process, and gives the results on the main one.
        say: Prints a line, on the main process only.
        again: Do it even if it is done: the work itself knows what is left.
    """
    state = process_state()
    done = [stage.results() if state.is_main_process and not again else None]
    if state.num_processes > 1:
        broadcast_object_list(done)
    if done[0] is not None:
        if state.is_main_process:  # left by a kill between the record and their removal
            shutil.rmtree(stage.checkpoints, ignore_errors=True)
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
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flat(item, f"{prefix}.{key}" if prefix else key))
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
