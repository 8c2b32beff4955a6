"""Figures of a report and per-example scores for its verdicts, from model outputs; mCE."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_distill.evaluation.examples import Examples
from hf_distill.evaluation.measures import (
    Floats,
    accuracy,
    attack_summary,
    brier,
    label_loyalty,
    log_softmax,
    nll,
    probability_loyalty,
    risk_coverage_area,
    selective_accuracy,
)
from hf_distill.robustness.calibration import (
    adaptive_ece,
    ece,
    ece_floor,
    fit_temperature,
    reliability,
)
from hf_distill.robustness.groups import group_accuracies, worst_group
from hf_distill.robustness.plan import TEXT_SEARCH
from hf_distill.robustness.runner import ModelAnswers, Runner

Errors = Mapping[str, Sequence[float]]
"""Name of a corruption -> its error rates in [0, 1], one per severity."""


def figures_of(
    runner: Runner,
    outcome: ModelAnswers,
    teacher: ModelAnswers | None,
    reference: ModelAnswers | None,
) -> dict[str, float]:
    """All figures of a model, by plain names; loyalty to the teacher, mCE by the reference."""
    labels, found = runner.data.labels, {"accuracy": accuracy(outcome.clean, runner.data.labels)}
    found |= {name: float(np.mean(values)) for name, values in _means(runner, outcome).items()}
    if outcome.perturbed and reference is not None:
        found |= _corruption_errors(runner, outcome, reference)
    for name, attacked in outcome.attacks.items():
        found[f"attack.{name}"] = float(attacked["attacked_correct"].mean())
        if name in TEXT_SEARCH:
            columns = ("original_correct", "attacked_correct", "queries", "words_changed")
            original, correct, queries, changed = (attacked[column] for column in columns)
            summary = attack_summary(original, correct, queries, changed)
            for key in ("success_rate", "mean_queries", "words_perturbed"):
                found[f"attack.{name}.{key}"] = summary[key]
    found |= {f"transfer.{name}": float(hit.mean()) for name, hit in outcome.transfer.items()}
    for name, logits in outcome.shifted.items():
        found[f"shifted.{name}"] = accuracy(logits, runner.shifted[name].labels)
    found |= _worst_group(runner, outcome)
    for name, result in outcome.invariance.items():
        if len(result["failed"]):
            found[f"invariance.{name}"] = float(result["failed"].mean())
    found |= _calibration(outcome, labels)
    if teacher is not None and teacher is not outcome:
        found |= _loyalty(outcome, teacher)
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def scores_of(runner: Runner, outcome: ModelAnswers) -> dict[str, Any]:
    """Scores of the judged metrics: one per example, or one value.

    At most six, in a fixed order: with eight pairs of seeds, more could not be distinguished.
    """
    found: dict[str, Any] = {"clean": _right(outcome.clean, runner.data).astype(float)}
    means = _means(runner, outcome)
    found |= {name: means[name] for name in ("noise", "attacked", "shifted") if name in means}
    found |= _worst_group(runner, outcome)
    rows = np.arange(len(runner.data))
    found["nll"] = -log_softmax(outcome.clean)[rows, runner.data.labels]
    return found


def unperturbed(runner: Runner, outcome: ModelAnswers) -> float:
    """Clean accuracy on the examples that are also perturbed."""
    return float(_right(outcome.clean, runner.data)[runner.rows].mean())


def severities(runner: Runner, outcome: ModelAnswers) -> dict[str, list[float]]:
    """Perturbation -> accuracy at each severity."""
    labels = runner.some.labels
    return {
        name: (logits.argmax(-1) == labels).mean(-1).tolist()
        for name, logits in outcome.perturbed.items()
    }


def groups(runner: Runner, outcome: ModelAnswers) -> dict[str, list[float]]:
    """Group -> accuracy, size and 95 % Wilson interval."""
    if runner.data.groups is None:
        return {}
    found = group_accuracies(_right(outcome.clean, runner.data), runner.data.groups)
    return {str(name): list(row) for name, row in found.items()}


def diagram(runner: Runner, outcome: ModelAnswers) -> list[list[float]]:
    """Confidence, accuracy and number of each bin that holds any example."""
    count, confidence, right = reliability(outcome.clean, runner.data.labels)
    rows = np.stack([confidence, right, count], axis=1)[count > 0]
    return [list(map(float, row)) for row in rows]


def _worst_group(runner: Runner, outcome: ModelAnswers) -> dict[str, float]:
    """Worst-group accuracy; empty without groups or without a large enough one."""
    if runner.data.groups is None:
        return {}
    worst = worst_group(_right(outcome.clean, runner.data), runner.data.groups)
    return {} if worst is None else {"worst_group": worst[1].accuracy}


def _right(logits: np.ndarray, examples: Examples) -> np.ndarray:
    return np.asarray(logits.argmax(-1) == examples.labels)


def _means(runner: Runner, outcome: ModelAnswers) -> dict[str, np.ndarray]:
    """Scores per example whose means are figures: noise, worst case, attacked, shifted."""
    found = {}
    hits = [
        logits.argmax(-1) == runner.some.labels
        for name, logits in outcome.perturbed.items()
        if name not in runner.plan.seen
    ]
    if hits:
        levels = np.concatenate(hits)
        clean = _right(outcome.clean, runner.data)[runner.rows]
        found["noise"] = levels.mean(0)
        found["worst_case"] = (levels.all(0) & clean).astype(float)
    if outcome.attacks:
        survived = [attacked["attacked_correct"] for attacked in outcome.attacks.values()]
        found["attacked"] = np.all(survived, axis=0).astype(float)
    if outcome.shifted:
        every = [_right(v, runner.shifted[name]) for name, v in outcome.shifted.items()]
        found["shifted"] = np.concatenate(every).astype(float)
    return found


def _corruption_errors(
    runner: Runner, outcome: ModelAnswers, reference: ModelAnswers
) -> dict[str, float]:
    seen = runner.plan.seen

    def rates(said: ModelAnswers) -> dict[str, list[float]]:
        curves = severities(runner, said).items()
        return {name: [1 - a for a in curve] for name, curve in curves if name not in seen}

    ours, theirs = rates(outcome), rates(reference)
    if not ours:
        return {}
    own, other = (1 - accuracy(said.clean, runner.data.labels) for said in (outcome, reference))
    return {
        "mce": mean_corruption_error(ours, theirs),
        "relative_mce": mean_corruption_error(ours, theirs, (own, other)),
    }


def _calibration(outcome: ModelAnswers, labels: np.ndarray) -> dict[str, float]:
    logits = outcome.clean
    found = {
        "nll": nll(logits, labels),
        "brier": brier(logits, labels),
        "ece": ece(logits, labels),
        "ece_floor": ece_floor(logits),
        "adaptive_ece": adaptive_ece(logits, labels),
        "risk_coverage_area": risk_coverage_area(logits, labels),
    }
    for coverage, right in selective_accuracy(logits, labels).items():
        if coverage < 1:
            found[f"selective_accuracy.{coverage:g}"] = right
    return found


def scaled(runner: Runner, outcome: ModelAnswers, found: Mapping[str, float]) -> dict[str, float]:
    """NLL and ECE after one temperature, fitted on the validation examples."""
    if outcome.validation is None or runner.validation is None:
        return dict(found)
    temperature = fit_temperature(outcome.validation, runner.validation.labels)
    logits, labels = outcome.clean / temperature, runner.data.labels
    return {
        **found,
        "temperature": temperature,
        "nll_scaled": nll(logits, labels),
        "ece_scaled": ece(logits, labels),
        "ece_floor_scaled": ece_floor(logits),
    }


def _loyalty(outcome: ModelAnswers, teacher: ModelAnswers) -> dict[str, float]:
    found = {
        "loyalty.label": label_loyalty(outcome.clean, teacher.clean),
        "loyalty.probability": probability_loyalty(outcome.clean, teacher.clean),
    }
    if outcome.perturbed:
        ours, theirs = (
            np.concatenate([v.reshape(-1, v.shape[-1]) for v in said.perturbed.values()])
            for said in (outcome, teacher)
        )
        found["loyalty.label perturbed"] = label_loyalty(ours, theirs)
        found["loyalty.probability perturbed"] = probability_loyalty(ours, theirs)
    return found


def mean_corruption_error(
    errors: Errors, reference: Errors, clean: tuple[float, float] = (0.0, 0.0)
) -> float:
    """mCE, the mean over c of CE_c = sum_s E_{s,c} / sum_s R_{s,c}; papers print 100 times this.

    E and R are the error rates of the model and of the reference at severity s. With their clean
    error rates in `clean` it is the relative mCE, of sum_s (E_{s,c} - E_clean) and
    sum_s (R_{s,c} - R_clean): what corruption costs. NaN if the reference makes no errors under a
    corruption (or, for the relative one, loses nothing).

    Raises:
        ValueError: the two do not cover the same, or a rate is outside [0, 1].

    Reference: Hendrycks and Dietterich, 2019, "Benchmarking Neural Network Robustness to Common
        Corruptions and Perturbations", arXiv:1903.12261. Their reference is AlexNet.

    >>> mean_corruption_error({"fog": [0.1, 0.3]}, {"fog": [0.2, 0.6]})
    0.5
    """
    ours, theirs = _rates(errors, "errors"), _rates(reference, "reference")
    own, other = _rates({"clean": clean}, "clean")["clean"]
    if {n: len(v) for n, v in ours.items()} != {n: len(v) for n, v in theirs.items()}:
        raise ValueError(
            "mean_corruption_error needs the same corruptions at the same severities for both, got "
            f"{sorted((n, len(v)) for n, v in ours.items())} and for the reference "
            f"{sorted((n, len(v)) for n, v in theirs.items())} (name, number of severities)."
        )
    ratios = []
    for name, rates in ours.items():
        cost = (theirs[name] - other).sum()
        # Not 0 up to rounding: sums of a few rates.
        ratios.append((rates - own).sum() / cost if abs(cost) > 1e-12 else math.nan)
    return float(np.mean(ratios))


def _rates(errors: Errors, name: str) -> dict[str, Floats]:
    rates = {n: np.asarray(values, dtype=float) for n, values in errors.items()}
    bad = [
        n for n, v in rates.items() if v.ndim != 1 or not v.size or not ((v >= 0) & (v <= 1)).all()
    ]
    if bad or not rates:
        raise ValueError(
            f"Expected {name} by name: a list of error rates in [0, 1] each (not percentages), got "
            f"{ {n: errors[n] for n in bad} or 'no corruption at all' }."
        )
    return rates
