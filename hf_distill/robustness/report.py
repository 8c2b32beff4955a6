"""Robustness reports: same examples for every model, figures, and a verdict per metric."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_distill.evaluation.examples import Examples
from hf_distill.evaluation.predictor import Predictor, aligned
from hf_distill.evaluation.verdicts import require
from hf_distill.robustness import figures as measured
from hf_distill.robustness import plots, tables
from hf_distill.robustness.attacking import settings_of
from hf_distill.robustness.comparing import (
    MASKED,
    differences_of,
    notes_of,
    pairs_of,
    role_of,
    verdicts_against,
)
from hf_distill.robustness.perturbations import perturbation
from hf_distill.robustness.plan import RobustnessConfig
from hf_distill.robustness.runner import ModelAnswers, Runner
from hf_distill.robustness.store import ReportStore
from hf_distill.utils.files import write_json, write_text
from hf_distill.utils.folders import refuse_foreign_files

Models = Mapping[str, "Predictor | Mapping[int, Predictor] | Sequence[Predictor]"]


class RequirementError(Exception):
    """Unmet requirement on robustness."""


@dataclass(frozen=True)
class Report:
    """Results of `evaluate_robustness`: figures, plan and verdicts as plain values in `facts`."""

    facts: dict[str, Any]

    @property
    def figures(self) -> dict[str, float]:
        """Figures that requirements may name: differences of the student from the baseline
        (``noise``) and the student's own (``student.noise``); NaN where gradients seem masked.
        """
        own = self.facts["roles"].get("student", {})
        found = {f"student.{name}": row["mean"] for name, row in own.items()}
        found |= {k: row["difference"] for k, row in self.facts["differences"].items()}
        judged = self.facts["verdicts"].get("baseline", {})
        return found | {
            axis: math.nan if row["word"] == MASKED else row["difference"]
            for axis, row in judged.items()
        }

    def require(self, expressions: Sequence[str]) -> list[str]:
        """Messages for the unmet requirements; a ValueError for one that cannot be read."""
        return require(expressions, self.figures)

    def write(self, folder: str | Path, title: str = "Robustness") -> None:
        """Write ``robustness.json``, ``robustness.md``, ``severity.png``, ``reliability.png``.

        Raises:
            FolderError: one of them is there that was not written here.
            ImportError: matplotlib is missing.
        """
        check_report(Path(folder))
        write_report(self.facts, Path(folder), title)


def check_report(folder: Path) -> None:
    """Raise a FolderError for a folder with files of a report's names not written here."""
    files = ["robustness.md", "severity.png", "reliability.png"]
    refuse_foreign_files(folder, files, "robustness.json", {"roles", "verdicts", "plan"})


def write_report(facts: Mapping[str, Any], folder: Path, title: str = "Robustness") -> None:
    """Write the files of `Report.write`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "robustness.json", facts)
    write_text(folder / "robustness.md", tables.markdown(facts, title))
    if facts["perturbations"]:
        plots.severity(facts, folder / "severity.png")
    plots.reliability(facts, folder / "reliability.png")


def evaluate_robustness(
    models: Models | Predictor,
    dataset: Examples | Dataset,
    *,
    plan: RobustnessConfig | None = None,
    validation: Examples | Dataset | None = None,
    shifted: Mapping[str, Examples | Dataset] | None = None,
    folder: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Evaluate all models on the same examples, and compare the student with the baseline.

    Args:
        models: By role: ``teacher`` (one, or several), ``baseline`` (the student trained without a
            teacher), ``control`` (alone, with the same noise or attack in training), ``student``;
            the last three may be mappings seed -> model, whose equal seeds are pairs. Or one model.
        dataset: Test examples; a `Dataset` with usual column names is read by `Examples.read`.
        plan: Measurements; by default those of the kind of examples.
        validation: Examples on which one temperature per model is fitted.
        shifted: Test sets of other origins, by name.
        folder: Folder of the stored parts, from which a second or interrupted run continues.
        say: Function that prints a line of progress.

    Raises:
        ValueError: an unknown role, perturbation or attack, attacks or perturbations of another
            modality, examples that do not fit the models or have no labels.
    """
    plan = plan or RobustnessConfig()
    subjects = _named({"student": models} if isinstance(models, Predictor) else models)
    data = _examples(dataset, plan.groups)
    others = {
        name: _examples(given, None).renamed(data.names) for name, given in (shifted or {}).items()
    }
    valid = None if validation is None else _examples(validation, None)
    notes: list[str] = []
    subjects = aligned(subjects, data, notes)
    plan.perturbations_for(data.modality)
    plan.attacks_for(data.modality)
    plan.invariance_for(data.modality)
    for other in ("baseline", "control"):
        if {"student", other} <= set(map(role_of, subjects)):
            pairs_of(list(subjects), "student", other)
    store = ReportStore(None if folder is None else Path(folder) / "parts", say)
    runner = Runner(plan, data, valid, others, store)
    outcomes = _asked(runner, subjects)
    return Report(_facts(runner, subjects, outcomes, notes))


def _examples(given: Examples | Dataset, groups: str | None) -> Examples:
    return given if isinstance(given, Examples) else Examples.read(given, groups_column=groups)


def _named(models: Models) -> dict[str, Predictor]:
    """Models by unique key (``teacher``, ``baseline/seed-0``), with their roles."""
    found: dict[str, Predictor] = {}
    roles = tables.COLUMNS
    unknown = [role for role in models if role not in roles]
    if unknown or not models:
        raise ValueError(f"Expected models by role, out of {', '.join(roles)}, got {unknown}.")
    for role in (role for role in roles if role in models):
        given = models[role]
        if isinstance(given, Predictor):
            found[role] = given
        elif isinstance(given, Mapping):
            found |= {f"{role}/seed-{seed}": one for seed, one in given.items()}
        else:
            found |= {f"{role}/{number}": one for number, one in enumerate(given, 1)}
    return {
        key: dataclasses.replace(one, name=key, role=role_of(key)) for key, one in found.items()
    }


def _asked(runner: Runner, subjects: Mapping[str, Predictor]) -> dict[str, ModelAnswers]:
    outcomes = {key: runner.clean(subject) for key, subject in subjects.items()}
    runner.perturb(subjects, outcomes)
    first = _first(subjects)
    reference = subjects[first.get("baseline", first.get("student", next(iter(subjects))))]
    for key, subject in subjects.items():
        runner.attack(subject, outcomes[key], reference)
        runner.invariance(subject, outcomes[key])
    for key in (first[role] for role in ("baseline", "student") if role in first):
        runner.gates(subjects[key], outcomes[key])
    if "baseline" in first:
        for key, subject in subjects.items():
            origin = key.replace(role_of(key), "baseline")
            origin = origin if origin in outcomes else first["baseline"]
            runner.transfer(subject, outcomes[key], outcomes[origin], subjects[origin].fingerprint)
    return outcomes


def _first(subjects: Mapping[str, Any]) -> dict[str, str]:
    """First model of each role."""
    found: dict[str, str] = {}
    for key in subjects:
        found.setdefault(role_of(key), key)
    return found


def _facts(
    runner: Runner,
    subjects: Mapping[str, Predictor],
    outcomes: Mapping[str, ModelAnswers],
    notes: list[str],
) -> dict[str, Any]:
    plan, first = runner.plan, _first(subjects)
    rows: dict[str, dict[str, float]] = {}
    for key, outcome in outcomes.items():
        pair = key.replace(role_of(key), "baseline")
        reference = outcomes.get(pair) or outcomes.get(first.get("baseline", ""))
        teacher = outcomes.get(first.get("teacher", ""))
        found = measured.figures_of(runner, outcome, teacher, reference)
        rows[key] = measured.scaled(runner, outcome, found)
    verdicts = {
        other: verdicts_against(runner, outcomes, other)
        for other in ("baseline", "control")
        if other in first and "student" in first
    }
    roles = {role: _spread([rows[k] for k in rows if role_of(k) == role]) for role in first}
    facts: dict[str, Any] = {
        "modality": runner.modality,
        "classes": list(runner.data.names),
        "examples": {
            "clean": len(runner.data),
            "perturbed": len(runner.some),
            "attacked": len(runner.few),
            "validation": 0 if runner.validation is None else len(runner.validation),
            "shifted": {name: len(examples) for name, examples in runner.shifted.items()},
            "fingerprint": runner.data.fingerprint,
        },
        "plan": {
            **dataclasses.asdict(plan),
            "versions": {name: version(name) for name in ("numpy", "torch", "transformers")},
        },
        "perturbations": {
            name: perturbation(name).family for name in next(iter(outcomes.values())).perturbed
        },
        "attacks": {
            name: settings_of(name, plan, runner.modality)
            for name in plan.attacks_for(runner.modality)
        },
        "models": {
            key: _model_facts(runner, subject, outcomes[key], rows[key])
            for key, subject in subjects.items()
        },
        "roles": roles,
        "verdicts": verdicts,
        "differences": differences_of(rows) if "baseline" in first and "student" in first else {},
    }
    facts["notes"] = [*notes, *notes_of(runner, outcomes, roles)]
    plain: dict[str, Any] = json.loads(json.dumps(facts))  # as it comes back from a file
    return plain


def _model_facts(
    runner: Runner, subject: Predictor, outcome: ModelAnswers, figures: Mapping[str, float]
) -> dict[str, Any]:
    return {
        "role": subject.role,
        "parameters": subject.parameters,
        "fingerprint": subject.fingerprint,
        "figures": figures,
        "unperturbed": measured.unperturbed(runner, outcome),
        "severities": measured.severities(runner, outcome),
        "groups": measured.groups(runner, outcome),
        "reliability": measured.diagram(runner, outcome),
        "gates": outcome.gates,
    }


def _spread(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Figure -> mean, sample deviation and values over the models of a role."""
    found = {}
    for name in (name for name in rows[0] if all(name in row for row in rows)):
        values = [row[name] for row in rows]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        found[name] = {"mean": statistics.fmean(values), "std": deviation, "values": values}
    return found
