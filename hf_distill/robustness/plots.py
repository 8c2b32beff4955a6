"""Plots of a report: accuracy over severity, accuracy over confidence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hf_distill.robustness.tables import COLUMNS
from hf_distill.utils.files import save_figure

_COLOURS = {
    "teacher": "#555555",
    "baseline": "#e08214",
    "control": "#1b7837",
    "student": "#2166ac",
}


def severity(facts: Mapping[str, Any], path: Path) -> None:
    """Accuracy over severity, one panel per family of perturbations.

    A line is the mean over the models of a role and the perturbations of the family, with a band of
    a standard deviation over the models. Raises an ImportError without matplotlib.
    """
    families: dict[str, list[str]] = {}
    for name, family in facts["perturbations"].items():
        families.setdefault(family, []).append(name)
    levels = [0, *facts["plan"]["severities"]]
    columns = len(families) if len(families) <= 4 else 3
    rows = math.ceil(len(families) / columns)
    figure = _figure(3.1 * columns + 0.6, 2.7 * rows + 0.6)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, (family, names) in zip(panels, families.items(), strict=False):
        for role in facts["roles"]:
            curves = _curves(facts, role, names)
            middle = curves.mean(0)
            panel.plot(levels, middle, "o-", color=_COLOURS[role], markersize=3, linewidth=1.4)
            if len(curves) > 1:
                spread = curves.std(0, ddof=1)
                low, high = middle - spread, middle + spread
                panel.fill_between(levels, low, high, color=_COLOURS[role], alpha=0.18, linewidth=0)
        title = family if len(names) > 1 else names[0].replace("_", " ")
        panel.set_title(f"{title} ({len(names)})" if len(names) > 1 else title, fontsize=10)
        panel.set_xticks(levels, ["clean", *map(str, levels[1:])])
    for panel in panels[len(families) :]:
        panel.set_visible(False)
    for place, panel in enumerate(panels[: len(families)]):
        _tidy(panel)
        if place + columns >= len(families):
            panel.set_xlabel("severity")
            panel.tick_params(labelbottom=True)
        if place % columns == 0:
            panel.set_ylabel("accuracy")
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=_COLOURS[role], marker="o", markersize=4, label=COLUMNS[role])
        for role in facts["roles"]
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    save_figure(figure, path)


def reliability(facts: Mapping[str, Any], path: Path) -> None:
    """Accuracy over confidence, one panel per role, one line per model."""
    roles = list(facts["roles"])
    figure = _figure(2.9 * len(roles) + 0.4, 3.2)
    panels = figure.subplots(1, len(roles), sharex=True, sharey=True, squeeze=False).ravel()
    low = 1 / max(2, len(facts["classes"]))
    for panel, role in zip(panels, roles, strict=True):
        panel.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--")
        for model in (m for m in facts["models"].values() if m["role"] == role):
            confidence, right, count = np.array(model["reliability"]).T
            sizes = 8 + 60 * count / count.sum()
            panel.plot(confidence, right, color=_COLOURS[role], linewidth=1.1, alpha=0.7)
            panel.scatter(confidence, right, sizes, color=_COLOURS[role], alpha=0.8, linewidth=0)
        ece = facts["roles"][role]["ece"]["mean"]
        panel.set_title(f"{COLUMNS[role]}\nECE {ece:.3f}", fontsize=10)
        panel.set(xlim=(max(0.0, low - 0.1), 1.02), ylim=(-0.02, 1.02), xlabel="confidence")
        _tidy(panel)
    panels[0].set_ylabel("accuracy")
    save_figure(figure, path)


def _curves(facts: Mapping[str, Any], role: str, names: list[str]) -> np.ndarray:
    """``(models, severities + 1)``: clean accuracy first."""
    return np.array(
        [
            [model["unperturbed"], *np.mean([model["severities"][n] for n in names], axis=0)]
            for model in facts["models"].values()
            if model["role"] == role
        ]
    )


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "The pictures of a report need matplotlib: pip install 'hf_distill[recipes]'."
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def _tidy(panel: Any) -> None:
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
