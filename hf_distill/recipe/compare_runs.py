"""Comparison of several recipe runs: results, tests and warnings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_distill.evaluation.verdicts import judge
from hf_distill.recipe.kept import FINAL
from hf_distill.recipe.report import unlike
from hf_distill.recipe.schedule import EVALUATION
from hf_distill.recipe.stages import RECORD
from hf_distill.utils.directions import lower_is_better

REPORT = "report.json"
NEEDED = ("name", "task", "metric", "student_seeds", "examples", "formula", "models", "runs")
LEVEL = 0.05
_JUDGED = ("agreement",)
"""Compared figures besides the metric."""


@dataclass(frozen=True)
class Recorded:
    """A finished run: its name in tables, its report, the hash of its test examples if known."""

    label: str
    facts: Mapping[str, Any]
    data: str | None

    @property
    def metric(self) -> str:
        return str(self.facts["metric"])

    def of_students(self, figure: str) -> dict[int, float]:
        """A figure on the test split, by seed."""
        runs = self.facts["runs"]
        rows = {seed: runs[f"student/seed-{seed}"]["test"] for seed in self.facts["student_seeds"]}
        return {seed: row[figure] for seed, row in rows.items() if figure in row}


def read_runs(folders: Sequence[str | Path]) -> list[Recorded]:
    """The runs in at least two output folders of recipes, or their ``final``.

    Raises:
        ValueError: fewer than two, or a folder without a report.
    """
    if len(folders) < 2:
        raise ValueError(f"Expected at least two runs to compare, got {len(folders)}.")
    found = [_read(Path(folder)) for folder in folders]
    names, labels = [str(run.facts["name"]) for run in found], list[str]()
    for name, folder in zip(names, folders, strict=True):
        label = name if names.count(name) == 1 else f"{name} ({Path(folder).resolve().name})"
        again = sum(other == label or other.startswith(f"{label} #") for other in labels)
        labels.append(f"{label} #{again + 1}" if again else label)
    return [dataclasses.replace(run, label=label) for run, label in zip(found, labels, strict=True)]


def _read(folder: Path) -> Recorded:
    path = folder / REPORT
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in NEEDED if key not in facts]
    except FileNotFoundError:
        raise ValueError(
            f"Expected the output folder of a recipe with its {REPORT}, got {folder}. It is "
            "written when `hf-distill train` has come to its end."
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"Expected a recipe's report, but {path} cannot be read: {error}"
        ) from None
    if missing:
        raise ValueError(f"Expected a recipe's report, but {path} lacks {', '.join(missing)}.")
    return Recorded("", facts, _data(folder))


def _data(folder: Path) -> str | None:
    """The hash of the test split, from the record of the evaluation."""
    root = folder.resolve()
    root = root.parent if root.name == FINAL else root
    try:
        record = json.loads((root / EVALUATION / RECORD).read_text(encoding="utf-8"))
        return str(record["inputs"]["data"])
    except (OSError, ValueError, KeyError):
        return None


def compare(runs: Sequence[Recorded]) -> dict[str, Any]:
    """All runs as plain values, and the students of each against those of the first.

    Returns:
        ``against``: the first run's label; ``runs``: label -> its facts, its verdicts of
        ``robustness``, and ``warnings``; ``differences``: a `Verdict` for each comparable run and
        figure, with its ``run`` and ``figure``.
    """
    first = runs[0]
    return {
        "against": first.label,
        "metric": first.metric,
        "level": LEVEL,
        "runs": {run.label: {**_kept(run), "warnings": _warnings(run, first)} for run in runs},
        "differences": _differences(runs),
    }


def _kept(run: Recorded) -> dict[str, Any]:
    verdicts = run.facts.get("robustness", {}).get("verdicts", {}).get("baseline", {})
    keys = ("student", "baseline", "difference", "low", "high", "word")
    judged = {axis: {key: row[key] for key in keys} for axis, row in verdicts.items()}
    return {**{key: run.facts[key] for key in NEEDED if key != "runs"}, "robustness": judged}


def _warnings(run: Recorded, first: Recorded) -> list[str]:
    """Differences in data or settings that limit a comparison with the first run."""
    found, ours, theirs = _other_ground(run, first), run.facts, first.facts
    if not found and run is not first and None in (run.data, first.data):
        found.append("the test examples are as many, whether they are the same is not recorded")
    one, other = (facts["examples"]["train"] for facts in (ours, theirs))
    if one != other:
        found.append(f"{one:,} training examples, not {other:,}")
    one, other = (facts["models"]["teacher"] for facts in (ours, theirs))
    if any(one[key] != other[key] for key in ("parameters", "test")):
        found.append("another teacher: agreement and retention refer to it")
    if told := unlike(ours["models"].get("baseline", {})):
        found.append(f"its baseline was trained with {told} for the student")
    return found


def _other_ground(run: Recorded, first: Recorded) -> list[str]:
    """Differences that exclude a comparison."""
    found = [
        f"another {key}: {run.facts[key]}, not {first.facts[key]}"
        for key in ("task", "metric")
        if run.facts[key] != first.facts[key]
    ]
    ours, theirs = (one.facts["examples"]["test"] for one in (run, first))
    if ours != theirs:
        found.append(f"other test examples: {ours:,}, not {theirs:,}")
    elif run.data != first.data and None not in (run.data, first.data):
        found.append("other test examples, though as many")
    return found


def _differences(runs: Sequence[Recorded]) -> list[dict[str, Any]]:
    """Same-seed students of each run against the first, with Holm over all that is compared."""
    first, axes = runs[0], dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]()
    for run in runs[1:]:
        if _other_ground(run, first):
            continue
        for figure in (first.metric, *_JUDGED):
            ours, theirs = run.of_students(figure), first.of_students(figure)
            seeds = [seed for seed in ours if seed in theirs]
            if seeds:
                one, other = (np.array([of[seed] for seed in seeds]) for of in (ours, theirs))
                axes[run.label, figure] = (one, other)
    named = {f"{label}\n{figure}": pair for (label, figure), pair in axes.items()}
    upwards = {f"{label}\n{figure}": not lower_is_better(figure) for label, figure in axes}
    found = judge(named, LEVEL, upwards) if named else {}
    rows = []
    for (label, figure), verdict in zip(axes, found.values(), strict=True):
        row = {**dataclasses.asdict(verdict), "run": label, "figure": figure}
        rows.append({k: None if v != v else v for k, v in row.items() if k != "axis"})
    return rows
