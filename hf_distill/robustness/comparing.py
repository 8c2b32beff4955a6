"""Student against baseline: same-seed pairs, verdicts, differences, requirements, caveats."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hf_distill.evaluation.judged_metrics import AXES
from hf_distill.evaluation.statistics import paired_t
from hf_distill.evaluation.verdicts import judge, require
from hf_distill.robustness.figures import scores_of
from hf_distill.robustness.plan import RobustnessConfig
from hf_distill.robustness.runner import ModelAnswers, Runner
from hf_distill.robustness.tables import NAMES
from hf_distill.utils.directions import lower_is_better

FEW = 1000
"""Number of examples below which the ECE is unreliable."""
MASKED = "masked gradients suspected"
"""Verdict used when masked gradients make accuracy under attack unreliable."""


def role_of(key: str) -> str:
    """Role of a key: ``baseline`` of ``baseline/seed-0``."""
    return key.split("/")[0]


def pairs_of(keys: Sequence[str], one: str, other: str) -> list[tuple[str, str]]:
    """Same-seed pairs of two roles; single models of both roles are paired whatever their seeds."""
    ours, theirs = ([k for k in keys if role_of(k) == role] for role in (one, other))
    if len(ours) == len(theirs) == 1:
        return [(ours[0], theirs[0])]
    found = [(k, k.replace(one, other)) for k in ours if k.replace(one, other) in theirs]
    if not found:
        raise ValueError(
            f"Expected {one} and {other} with equal seeds, which are compared in pairs, got "
            f"{ours} and {theirs}."
        )
    return found


def verdicts_against(
    runner: Runner, outcomes: Mapping[str, ModelAnswers], other: str
) -> dict[str, dict[str, Any]]:
    """Verdict per metric as plain values, with the means of the student and of the `other` role."""
    pairs = pairs_of(list(outcomes), "student", other)
    scores = {key: scores_of(runner, outcomes[key]) for pair in pairs for key in pair}
    shared = [axis for axis in scores[pairs[0][0]] if all(axis in row for row in scores.values())]

    def stacked(axis: str, side: int) -> np.ndarray:
        return np.stack([scores[pair[side]][axis] for pair in pairs])

    axes = {axis: (stacked(axis, 0), stacked(axis, 1)) for axis in shared}
    upwards = {axis: not lower_is_better(axis) for axis in axes}
    found = judge(axes, runner.plan.level, upwards)
    masked = any(outcomes[ours].masked for ours, _ in pairs)
    rows = {}
    for axis, verdict in found.items():
        row = {**dataclasses.asdict(verdict), "higher_is_better": upwards[axis]}
        row["student"], row[other] = (float(np.mean(axes[axis][side])) for side in (0, 1))
        if masked and axis == "attacked" and verdict.difference > 0:
            row["word"] = MASKED
        rows[axis] = {k: None if v != v else v for k, v in row.items()}
    return rows


def differences_of(rows: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Figure -> mean over pairs of student - baseline with Student's t interval; no verdict."""
    pairs, found = pairs_of(list(rows), "student", "baseline"), {}
    for name in rows[pairs[0][0]]:
        if all(name in rows[key] for pair in pairs for key in pair):
            values = [rows[ours][name] - rows[theirs][name] for ours, theirs in pairs]
            low = high = None
            if len(values) > 1:
                _, low, high, _ = paired_t(values)
            found[name] = {"difference": statistics.fmean(values), "low": low, "high": high}
    return found


def check_requirements(
    expressions: Sequence[str], plan: RobustnessConfig, modality: str, shifted: Iterable[str] = ()
) -> None:
    """Check requirements before a report is computed; a ValueError names the nearest axis."""
    attacks = plan.attacks_for(modality)
    kinds = {
        **{"attack": attacks, "transfer": attacks, "shifted": shifted},
        **{"invariance": plan.invariance_for(modality), "loyalty": ("label", "probability")},
    }
    names = {*AXES, *NAMES, *(f"{kind}.{name}" for kind, of in kinds.items() for name in of)}
    given = {"shifted": shifted, "worst_group": plan.groups, "attacked": attacks}
    absent = {name for name, values in given.items() if not values}
    known = sorted(names - absent)
    require(expressions, dict.fromkeys([*known, *(f"student.{name}" for name in known)], 0.0))


def notes_of(
    runner: Runner, outcomes: Mapping[str, ModelAnswers], roles: Mapping[str, Any]
) -> list[str]:
    """Caveats: a missing control, a teacher with nothing to teach, failed gates …"""
    notes, plan = [], runner.plan
    if plan.robust_objective:
        if "control" not in roles:
            notes.append(
                "A robust objective was used without a control (the baseline trained on the same "
                "noise or attack): the effects of noise or attack and of the teacher cannot be "
                "separated."
            )
        for axis in ("noise", "attacked"):
            if {"teacher", "baseline"} <= set(roles) and axis in roles["teacher"]:
                teacher, baseline = (roles[role][axis]["mean"] for role in ("teacher", "baseline"))
                if teacher < baseline:
                    notes.append(
                        f"The teacher is less robust than the baseline ({axis}: {teacher:.3f} "
                        f"against {baseline:.3f}): it cannot make the student more robust."
                    )
    if plan.seen:
        notes.append(f"Used in training, and not included in the means: {', '.join(plan.seen)}.")
    if len(runner.data) < FEW:
        notes.append(
            f"The ECE of {len(runner.data):,} examples is mostly its floor; use NLL and Brier."
        )
    if runner.validation is None:
        notes.append("No validation examples, so no temperature was fitted.")
    for key, outcome in outcomes.items():
        failed = [gate["message"] for gate in outcome.gates if not gate["passed"]]
        notes += [f"{key}: {message}" for message in failed]
        if outcome.masked:
            notes.append(f"{key}: {MASKED}; its accuracy under attack is not reliable.")
    return notes
