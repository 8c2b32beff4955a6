"""Runs of recipes side by side: the tables, the sentences and the picture of a comparison."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_distill.evaluation.judged_metrics import AXES
from hf_distill.evaluation.verdicts import no_word_yet
from hf_distill.recipe.report import COLOURS, FIGURES, MORE_COLOURS, NAMES, name_of, show
from hf_distill.utils.files import save_figure, write_json, write_text
from hf_distill.utils.folders import refuse_foreign_files
from hf_distill.utils.markdown import table

WORDS = {
    "accuracy": "Accuracy",
    "perplexity": "Perplexity",
    "agreement": "Agreement",
    "forward_kl_divergence": "KL(teacher‖model)",
    "reverse_kl_divergence": "KL(model‖teacher)",
    "nll": "NLL",
    "ece": "ECE",
    "entropy": "Entropy",
    "entropy_gap": "Entropy gap",
    "acceptance_rate": "Acceptance rate",
}
DIFFERENCE = "student − baseline"
CAPTION = (
    "Points: means over the seeds, with a standard deviation to either side. Differences of the "
    "student and baseline have their interval instead."
)
_MARKERS = {"teacher": "D", "baseline": "s", "control": "^", "student": "o"}
_VERDICTS = {
    "better": "better over {seeds} same-seed pairs.",
    "worse": "worse over {seeds} same-seed pairs.",
    "not distinguishable": "not distinguishable over {seeds} same-seed pairs.",
    "preliminary": "preliminary, no claim ({why}).",
}


def check(folder: str | Path) -> None:
    """Raise FolderError for a folder with files of these names that are no comparison's."""
    files = ["compare.md", "compare.png"]
    refuse_foreign_files(Path(folder), files, "compare.json", {"runs", "against"})


def write(facts: Mapping[str, Any], folder: str | Path) -> None:
    """Write ``compare.json``, ``compare.md`` and ``compare.png``.

    Raises:
        FolderError: one of them is there that was not written here.
        ImportError: matplotlib is missing.
    """
    check(folder)
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    write_json(root / "compare.json", facts)
    text = f"{markdown(facts)}\n\n![the figures](compare.png)\n\n{CAPTION}\n"
    write_text(root / "compare.md", text)
    plot(facts, root / "compare.png")


# ---- in Markdown ---------------------------------------------------------------------------------


def markdown(facts: Mapping[str, Any]) -> str:
    """Tables and verdicts in Markdown."""
    parts = ["## Runs", _run_table(facts), "## Figures", _figure_table(facts)]
    if any(run["robustness"] for run in facts["runs"].values()):
        parts += ["## Robustness: student, and its difference from the baseline"]
        parts += [_robustness_table(facts)]
    parts += [f"## Students against those of {facts['against']}", _difference_table(facts)]
    return "\n\n".join(part for part in [*parts, sentences(facts)] if part)


def _run_table(facts: Mapping[str, Any]) -> str:
    header = ["Run", "Objective", "Teacher", "Student", "Seeds", "Train / test", "Warnings"]
    rows = []
    for label, run in facts["runs"].items():
        seeds, sizes = run["student_seeds"], run["examples"]
        models = (_size(run["models"][role]) for role in ("teacher", "student"))
        rows.append(
            [
                _cell(label),
                f"`{_cell(run['formula'])}`",
                *models,
                f"{len(seeds)} ({', '.join(map(str, seeds))})",
                f"{sizes['train']:,} / {sizes['test']:,}",
                "; ".join(run["warnings"]) or "–",
            ]
        )
    return table(header, rows, left=(0, 1, 2, 3, 6))


def _size(model: Mapping[str, Any]) -> str:
    layers = "" if model["layers"] is None else f", {model['layers']} layers"
    return f"{model['architecture']}, {model['parameters']:,}{layers}"


def _figure_table(facts: Mapping[str, Any]) -> str:
    runs = facts["runs"]
    metrics = dict.fromkeys(run["metric"] for run in runs.values())
    tests = [model["test"] for run in runs.values() for model in run["models"].values()]
    figures = [f for f in dict.fromkeys((*metrics, *FIGURES)) if any(f in test for test in tests)]
    rows = []
    for label, run in runs.items():
        for role, model in run["models"].items():
            test, kept = model["test"], model["test"].get(f"retention_{run['metric']}")
            rows.append(
                [
                    _cell(label),
                    name_of(role, model),
                    f"{model['parameters']:,}",
                    *(show(test.get(figure)) for figure in figures),
                    show(kept),
                    f"{show(model.get('train_seconds'), 0)}",
                ]
            )
    named = [WORDS.get(figure, figure.capitalize()) for figure in figures]
    header = ["Run", "Model", "Parameters", *named, "Retention", "Training, s"]
    return table(header, rows, left=(0, 1))


def _robustness_table(facts: Mapping[str, Any]) -> str:
    runs = facts["runs"]
    axes = dict.fromkeys(axis for run in runs.values() for axis in run["robustness"])
    rows = []
    for label, run in runs.items():
        judged = [run["robustness"].get(axis) for axis in axes]
        cells = [
            f"{row['student']:.4f} ({row['difference']:+.4f}, {row['word']})" if row else "–"
            for row in judged
        ]
        rows.append([_cell(label), *cells])
    return table(["Run", *(AXES.get(axis, axis) for axis in axes)], rows)


def _difference_table(facts: Mapping[str, Any]) -> str:
    level = f"{1 - facts['level']:.0%} interval"
    header = ["Run", "Figure", "Difference", level, "p", "p (Holm)", "Seeds", "Verdict"]
    rows = []
    for row in facts["differences"]:
        interval = "–" if row["low"] is None else f"{row['low']:+.4f} to {row['high']:+.4f}"
        p = ("–" if row[key] is None else f"{row[key]:.3g}" for key in ("p", "p_adjusted"))
        first = [_cell(row["run"]), row["figure"], f"{row['difference']:+.4f}", interval]
        rows.append([*first, *p, str(row["seeds"]), f"**{row['word']}**"])
    return table(header, rows, left=(0, 1, 7)) if rows else ""


def sentences(facts: Mapping[str, Any]) -> str:
    """Verdicts as sentences."""
    said, against = [], facts["against"]
    compared = {row["run"] for row in facts["differences"]}
    for label, run in facts["runs"].items():
        if label not in compared and label != against:
            why = "; ".join(run["warnings"]) or "no seed in common"
            said.append(f"{label} is not compared with {against}: {why}.")
    for row in facts["differences"]:
        what, seeds = f"{row['run']} against {against} in {row['figure']}", row["seeds"]
        verdict = _VERDICTS.get(row["word"], "one pair of files, no claim about the methods.")
        said.append(f"{what}: {verdict.format(seeds=seeds, why=no_word_yet(seeds))}")
    return " ".join(said)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# ---- the picture ---------------------------------------------------------------------------------


def plot(facts: Mapping[str, Any], path: Path) -> None:
    """Plot of metric, agreement, retention and judged robustness metrics; one row per run.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "The picture of a comparison needs matplotlib: pip install 'hf_distill[recipes]'."
        ) from error
    panels = _panels(facts)
    labels = ["\n".join(textwrap.wrap(label, 26)) for label in facts["runs"]]
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    height = sum(0.5 + 0.18 * label.count("\n") for label in labels) + 0.9
    figure = Figure(figsize=(2.2 + 3.1 * columns, rows * height + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    colours = _colours(facts)
    for axis, (title, points) in zip(axes, panels.items(), strict=False):
        shown = [role for role in colours if any(of == role for of, _ in points)]
        for role in shown:
            _draw(axis, points, role, shown, colours[role])
        if DIFFERENCE in title:
            axis.axvline(0, color="#999999", linewidth=1, linestyle="--")
        axis.set_title(title, fontsize=10)
        axis.set_yticks(range(len(labels)), labels, fontsize=9)
        axis.set_ylim(len(labels) - 0.5, -0.5)  # the first run at the top
        axis.grid(axis="x", alpha=0.3)
        axis.locator_params(axis="x", nbins=5)
        axis.spines[["top", "right"]].set_visible(False)
        for edge in range(1, len(labels)):
            axis.axhline(edge - 0.5, color="#dddddd", linewidth=0.8)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    handles = dict[str, Any]()
    for axis in axes[: len(panels)]:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False
    )
    save_figure(figure, path)


Points = Mapping[tuple[str, int], tuple[float, float, float]]
"""Role and place of the run -> value, and how far the bar reaches to the left and right."""


def _panels(facts: Mapping[str, Any]) -> dict[str, Points]:
    """Title -> plotted values; figures without any value are left out."""
    runs = list(facts["runs"].values())
    found = dict[str, Points]()
    for metric in dict.fromkeys(run["metric"] for run in runs):
        own = [metric if run["metric"] == metric else "" for run in runs]
        found[WORDS.get(metric, metric.capitalize())] = _points(runs, own)
    found["Agreement with the teacher"] = _points(runs, ["agreement"] * len(runs))
    kept = [f"retention_{run['metric']}" for run in runs]
    found["Share of the teacher kept"] = _points(runs, kept)
    for axis in dict.fromkeys(axis for run in runs for axis in run["robustness"]):
        title = f"{AXES.get(axis, axis)}:\n{DIFFERENCE}"
        points = {}
        for place, run in enumerate(runs):
            if row := run["robustness"].get(axis):
                value = row["difference"]
                low, high = (value if row[end] is None else row[end] for end in ("low", "high"))
                points["student", place] = (value, value - low, high - value)
        found[title] = points
    return {title: points for title, points in found.items() if points}


def _points(runs: Sequence[Mapping[str, Any]], figures: Sequence[str]) -> Points:
    """A figure of each run, by role."""
    points = {}
    for place, (run, figure) in enumerate(zip(runs, figures, strict=True)):
        for role, model in run["models"].items():
            value = model["test"].get(figure)
            if isinstance(value, dict):
                points[role, place] = (value["mean"], value["std"], value["std"])
            elif value is not None:
                points[role, place] = (value, 0.0, 0.0)
    return points


def _draw(axis: Any, points: Points, role: str, roles: list[str], colour: str) -> None:
    """The points of a role, a little above or below the middle of their rows."""
    own = {place: point for (of, place), point in points.items() if of == role}
    shift = (roles.index(role) - (len(roles) - 1) / 2) * 0.6 / max(1, len(roles) - 1)
    values, lefts, rights = zip(*own.values(), strict=True)
    axis.errorbar(
        values,
        [place + shift for place in own],
        xerr=(lefts, rights),
        fmt=_MARKERS.get(role, "v"),
        color=colour,
        markersize=5,
        linewidth=1.3,
        capsize=2.5,
        label=NAMES.get(role, role.replace("-", " ").capitalize()),
    )


def _colours(facts: Mapping[str, Any]) -> dict[str, str]:
    """The roles of all runs, the teacher first and the student last, with their colours."""
    roles = dict.fromkeys(role for run in facts["runs"].values() for role in run["models"])
    ordered = sorted(roles, key=lambda role: (role == "student", role != "teacher"))
    more = itertools.cycle(MORE_COLOURS)
    return {role: COLOURS.get(role) or next(more) for role in ordered}
