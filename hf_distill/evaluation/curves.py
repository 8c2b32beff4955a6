"""Plots of logged curves, for runs without a tracker."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_distill.utils.files import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

PICTURE = "curves.png"
WORTH_DRAWING = 10  # number of logged points from which curves are drawn without being requested
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colour-blind safe colours (Okabe and Ito 2008), without the yellow."""
MAIN = "#222222"
_MOST = 8  # largest number of lines of a panel
_MARKED = 30  # largest number of points of a line with markers

Curves = Mapping[str, Sequence[tuple[float, float]]]  # name -> ``(step, value)`` pairs


class Line(NamedTuple):
    """One curve of a panel; ``right``: on the right axis."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: str
    style: str = "solid"
    right: bool = False


class Panel(NamedTuple):
    """Curves with common axes."""

    title: str
    lines: Sequence[Line]
    label: str = ""
    right_label: str = ""


def need_matplotlib() -> None:
    """Raise ImportError if matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            "The picture of the curves needs matplotlib: pip install 'hf_distill[recipes]'."
        )


def draw(panels: Sequence[Panel]) -> Figure:
    """Panels over the optimizer step, side by side; those with the same labels share one legend.

    Raises:
        ImportError: matplotlib is missing.
    """
    need_matplotlib()
    from matplotlib.figure import Figure

    columns = min(len(panels), 2 if len(panels) <= 4 else 3)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5.5 * columns, 4.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    handles = [_draw_panel(ax, panel) for ax, panel in zip(axes, panels, strict=False)]
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    if len(panels) > 1 and len({tuple(found) for found in handles if found}) == 1:
        found = max(handles, key=len)
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": min(4, len(found))}
        figure.legend(found.values(), found.keys(), frameon=False, **place)
        return figure
    for ax, found in zip(axes, handles, strict=False):
        ncols = 2 if max(map(len, found), default=0) > 20 else 3
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15), "fontsize": 9}
        ax.legend(found.values(), found.keys(), frameon=False, ncols=ncols, **place)
    return figure


def _draw_panel(ax: Any, panel: Panel) -> dict[str, Any]:
    """Draw the lines of a panel; returns one line of each label, for the legend."""
    sides = {False: ax}
    if any(line.right for line in panel.lines):
        sides[True] = ax.twinx()
        sides[True].set_ylabel(panel.right_label)
        sides[True].spines[["top", "left"]].set_visible(False)
    handles: dict[str, Any] = {}
    for line in panel.lines:
        (drawn,) = sides[line.right].plot(
            *zip(*line.points, strict=True),
            color=line.colour,
            linestyle=line.style,
            linewidth=1.4,
            marker="o" if len(line.points) <= _MARKED else None,
            markersize=3.5,
        )
        handles.setdefault(line.label, drawn)
    ax.set(title=panel.title, xlabel="optimizer step", ylabel=panel.label)
    ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    values = [value for line in panel.lines if not line.right for _, value in line.points]
    if values and 0 < 100 * min(values) < max(values):
        ax.set_yscale("log")
    return handles


_NO_CURVE = re.compile(r"epoch|step|seconds|total_flos|num_input_tokens_seen")
_SPEED = re.compile(r"(.*_)?(runtime|\w+_per_second|model_preparation_time)")
_LOSS = re.compile(r"(.*_)?(loss|forward_kl_divergence|reverse_kl_divergence)")
_MAIN = {"loss": "total", "grad_norm": "total"}


def logged(log_history: Iterable[Mapping[str, Any]]) -> tuple[Curves, Curves]:
    """Curves of training and evaluation in ``trainer_state.json``, without the prefix ``eval_``."""
    parts: tuple[dict[str, dict[float, float]], ...] = ({}, {})
    for entry in log_history:
        for key, value in entry.items():
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            name = key.removeprefix("eval_")
            if name != key and not _SPEED.fullmatch(name):
                parts[1].setdefault(name, {})[entry["step"]] = value
            elif name == key and "loss" in entry and not _NO_CURVE.fullmatch(name):
                parts[0].setdefault(name, {})[entry["step"]] = value
    training, evaluation = ({n: sorted(p.items()) for n, p in part.items()} for part in parts)
    return training, evaluation


def panels_of(training: Curves, evaluation: Curves) -> list[Panel]:
    """Non-empty panels of one run."""
    norms = [n for n in training if n.startswith("grad_norm")]
    moving = [n for n in training if n.endswith(("_weight", "_temperature"))]
    rates = training.get("learning_rate", ())
    rate = [Line("learning rate", rates, "#888888", "dashed", right=True)] if rates else []
    components = sorted(training.keys() - {"loss", "learning_rate", *norms, *moving})
    losses = [n for n in evaluation if _LOSS.fullmatch(n)]
    shares = [
        name
        for name, points in evaluation.items()
        if name not in {*losses, *components, "ece"} and not name.startswith("retention_")
        if all(0 <= value <= 1 for _, value in points)  # such as accuracy: they share an axis
    ]
    shares.sort(key=lambda name: name != "agreement")
    panels = [
        _panel("Training loss, components unweighted", training, ["loss", *components]),
        _panel("Validation loss and divergence", evaluation, losses),
        _panel("Validation metrics", evaluation, shares),
        _panel("Gradient norm and learning rate", training, sorted(norms), rate),
        _panel("Weights and temperatures", training, sorted(moving)),
    ]
    return [panel for panel in panels if panel.lines]


def _panel(title: str, curves: Curves, names: Iterable[str], more: Sequence[Line] = ()) -> Panel:
    """Panel of some curves; the teacher's are dashed in the colour of the student's."""
    chosen = [name for name in names if name in curves]
    looks = itertools.product(("solid", "dashed"), COLOURS)
    own = {n: ("solid", MAIN) if n in _MAIN else next(looks) for n in chosen[:_MOST]}
    lines = []
    for name, (style, colour) in own.items():
        student = name.removeprefix("teacher_")
        if student != name and student in own:
            style, colour = "dashed", own[student][1]
        label = _MAIN.get(name, name.removeprefix("grad_norm_").replace("_", " "))
        lines.append(Line(label, curves[name], colour, style))
    title += f" ({_MOST} of {len(chosen)})" if len(chosen) > _MOST else ""
    label = "" if not more else f"norm{', components unweighted' * (len(lines) > 1)}"
    return Panel(title, [*lines, *more], label, "learning rate")


def write_curves(log_history: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write ``curves.png`` of one run; nothing if nothing was logged. The folder is created."""
    panels = panels_of(*logged(log_history))
    if panels:
        folder.mkdir(parents=True, exist_ok=True)
        save_figure(draw(panels), folder / PICTURE)


class CurvesCallback(TrainerCallback):
    """Draw the curves of a run when it ends, also after an interruption or an error.

    `DistillationTrainer` adds one if ``report_to`` is ``none``. A resumed run continues its curves.
    (A plain `transformers.Trainer` does not call its callbacks after an interruption.)

    Args:
        folder: Folder of ``curves.png``; default: ``output_dir``.
        at_least: Least number of logged points.
    """

    def __init__(self, folder: str | Path | None = None, at_least: int = 1):
        need_matplotlib()
        self.folder, self.at_least = folder, at_least

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.write(args, state)

    def write(self, args: TrainingArguments, state: TrainerState) -> None:
        """Draw the curves logged so far, on the main process."""
        if not state.is_world_process_zero or len(state.log_history) < self.at_least:
            return
        folder = Path(str(self.folder or args.output_dir))
        try:
            write_curves(state.log_history, folder)
        except Exception as error:  # a plot must not end a training
            logger.warning(f"The curves could not be drawn: {type(error).__name__}: {error}")
