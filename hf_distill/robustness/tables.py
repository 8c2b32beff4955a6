"""Report in Markdown: verdicts, figures by role, attack settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_distill.evaluation.judged_metrics import AXES
from hf_distill.evaluation.verdicts import no_word_yet
from hf_distill.utils.markdown import table

COLUMNS = {role: role.capitalize() for role in ("teacher", "baseline", "control", "student")}
"""Roles in the order of the columns."""
NAMES = {
    "accuracy": "Accuracy",
    "noise": "Mean accuracy under perturbation",
    "worst_case": "Accuracy in the worst case over all perturbations",
    "mce": "mCE, baseline = 1",
    "relative_mce": "Relative mCE, baseline = 1",
    "attacked": "Accuracy under attack (worst of all)",
    "shifted": "Accuracy on shifted sets",
    "worst_group": "Worst-group accuracy",
    "nll": "NLL",
    "brier": "Brier score",
    "ece": "ECE, 15 bins",
    "ece_floor": "ECE of a calibrated model with as many examples",
    "adaptive_ece": "ECE, bins of equal mass",
    "risk_coverage_area": "Area under risk and coverage",
    "temperature": "Temperature fitted on validation",
    "nll_scaled": "NLL at that temperature",
    "ece_scaled": "ECE at that temperature",
    "ece_floor_scaled": "ECE of a calibrated model at that temperature",
}
_PREFIXES = {
    "attack": "Accuracy under attack: {}",
    "transfer": "Accuracy on adversarial examples of the baseline: {}",
    "shifted": "Accuracy on {}",
    "invariance": "Invariance failures: {}",
    "selective_accuracy": "Accuracy on the most confident {}",
    "loyalty": "Agreement with the teacher: {}",
}


def name_of(figure: str) -> str:
    """Label of a figure: ``attack.pgd`` is "Accuracy under attack: pgd"."""
    if figure in NAMES:
        return NAMES[figure]
    prefix, _, rest = figure.partition(".")
    if prefix == "attack" and "." in rest:
        attack, _, what = rest.partition(".")
        return f"{what.replace('_', ' ').capitalize()}: {attack}"
    if prefix == "selective_accuracy":
        rest = f"{float(rest):.0%}"
    return _PREFIXES.get(prefix, "{}").format(rest or prefix)


def show(row: Mapping[str, Any] | None, digits: int = 4) -> str:
    """Mean with standard deviation over seeds, if there are several."""
    if row is None:
        return "–"
    spread = "" if row["std"] is None else f" ± {row['std']:.{digits}f}"
    return f"{row['mean']:.{digits}f}{spread}"


def markdown(facts: Mapping[str, Any], title: str = "Robustness") -> str:
    """The whole report."""
    parts = [f"# {title}", _about(facts)]
    for other, verdicts in facts["verdicts"].items():
        parts += [
            f"## Student against the {other}",
            verdict_table(verdicts, other, facts["plan"]["level"]),
            sentences(verdicts, other),
        ]
    parts += ["## Figures", figure_table(facts)]
    if facts["perturbations"]:
        parts += ["## Perturbations", perturbation_table(facts), "![accuracy](severity.png)"]
    if facts["attacks"]:
        parts += ["## Attacks", attack_table(facts)]
    if any(model["groups"] for model in facts["models"].values()):
        parts += ["## Groups", group_table(facts)]
    parts += ["## Calibration", "![reliability](reliability.png)"]
    if facts["notes"]:
        parts += ["## Notes", "\n".join(f"- {note}" for note in facts["notes"])]
    return "\n\n".join(parts) + "\n"


def _about(facts: Mapping[str, Any]) -> str:
    sizes, plan = facts["examples"], facts["plan"]
    text = f"{sizes['clean']:,} test examples ({facts['modality']})"
    if facts["perturbations"]:
        levels = ", ".join(map(str, plan["severities"]))
        text += f"; {sizes['perturbed']:,} of them perturbed at severities {levels}"
    if facts["attacks"]:
        text += f"; {sizes['attacked']:,} attacked"
    runs = [f"{len(_keys(facts, role))} × {COLUMNS[role].lower()}" for role in facts["roles"]]
    return (
        f"{text}. Models: {', '.join(runs)}. Examples, perturbations and seed "
        f"({plan['seed']}) are the same for all."
    )


def _keys(facts: Mapping[str, Any], role: str) -> list[str]:
    return [key for key, model in facts["models"].items() if model["role"] == role]


def verdict_table(verdicts: Mapping[str, Any], other: str, level: float) -> str:
    """Table of verdicts: both means, difference, interval, p, p after Holm, verdict."""
    interval_name = f"{100 * (1 - level):g} % interval"
    header = ["Axis", COLUMNS[other], COLUMNS["student"], "Difference", interval_name, "p"]
    rows = []
    for axis, row in verdicts.items():
        interval = "–"
        if row["low"] is not None:
            interval = f"{row['low']:+.4f} to {row['high']:+.4f}"
        rows.append(
            [
                AXES.get(axis, axis) + ("" if row["higher_is_better"] else " (less is better)"),
                f"{row[other]:.4f}",
                f"{row['student']:.4f}",
                f"{row['difference']:+.4f}",
                interval,
                *(_p(row[key]) for key in ("p", "p_adjusted")),
                f"**{row['word']}**",
            ]
        )
    return table([*header, "p (Holm)", "Verdict"], rows, left=(0, 7))


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def sentences(verdicts: Mapping[str, Any], other: str) -> str:
    """Verdicts as sentences."""
    by_word: dict[str, list[str]] = {}
    for axis, row in verdicts.items():
        by_word.setdefault(row["word"], []).append(AXES.get(axis, axis))
    seeds = max((row["seeds"] for row in verdicts.values()), default=0)
    claim = f"Over {seeds} pairs of seeds the student is {{}} than the {other}: {{}}."
    forms = {
        "better": claim,
        "worse": claim,
        "not distinguishable": f"Not distinguishable from the {other} over {seeds} pairs: {{1}}.",
        "preliminary": f"Preliminary, no claim ({no_word_yet(seeds)}): {{1}}.",
        "checkpoint only": "One pair: a comparison of two checkpoints, not of methods ({1}).",
    }
    return " ".join(
        forms[word].format(word, "; ".join(axes))
        if word in forms
        else f"{word.capitalize()}, no claim: {'; '.join(axes)}."
        for word, axes in by_word.items()
    )


def figure_table(facts: Mapping[str, Any]) -> str:
    """Table of all figures by role."""
    roles = facts["roles"]
    figures = dict.fromkeys(figure for role in roles.values() for figure in role)
    rows = [
        [name_of(figure), *(show(role.get(figure)) for role in roles.values())]
        for figure in figures
    ]
    return table(["", *(COLUMNS[role] for role in roles)], rows)


def perturbation_table(facts: Mapping[str, Any]) -> str:
    """Accuracy under each perturbation, the mean over severities."""
    roles, seen, rows = list(facts["roles"]), facts["plan"]["seen"], []
    for name, family in facts["perturbations"].items():
        cells = []
        for role in roles:
            curves = [facts["models"][key]["severities"][name] for key in _keys(facts, role)]
            values = [value for curve in curves for value in curve]
            cells.append(f"{sum(values) / len(values):.4f}")
        label = name.replace("_", " ") + (" (seen in training)" if name in seen else "")
        rows.append([label, family, *cells])
    return table(["", "Family", *(COLUMNS[role] for role in roles)], rows, left=(0, 1))


def attack_table(facts: Mapping[str, Any]) -> str:
    """Table of attack settings, sufficient to repeat them."""
    size = facts["examples"]["attacked"]
    rows = []
    for name, settings in facts["attacks"].items():
        told = {k: v for k, v in settings.items() if k not in ("name", "attack")}
        said = "; ".join(f"{key.replace('_', ' ')} {_told(value)}" for key, value in told.items())
        rows.append([name, said, str(size)])
    return table(["Attack", "Settings", "Examples"], rows, left=(0, 1))


def _told(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def group_table(facts: Mapping[str, Any]) -> str:
    """Accuracy by group of the first model of each role, with Wilson's interval."""
    roles = list(facts["roles"])
    models = [facts["models"][_keys(facts, role)[0]]["groups"] for role in roles]
    rows = []
    for group, (_, size, *_rest) in models[0].items():
        small = "" if size >= 30 else " (too few to be the worst)"
        cells = [f"{m[group][0]:.3f} ({m[group][2]:.3f} to {m[group][3]:.3f})" for m in models]
        rows.append([f"{group}{small}", f"{size:,}", *cells])
    return table(["Group", "Examples", *(COLUMNS[role] for role in roles)], rows)
