"""Caveats of a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_distill.robustness.comparing import MASKED
from hf_distill.robustness.runner import ModelAnswers, Runner

FEW = 1000
"""Number of examples below which the ECE is unreliable."""


def notes_of(
    runner: Runner, outcomes: Mapping[str, ModelAnswers], roles: Mapping[str, Any]
) -> list[str]:
    """Sentences: a control that is missing, a teacher with nothing to teach, gates that failed."""
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
