"""The plot of a run's curves."""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_recipes import recipe
from tiny_trainers import accuracy, trainer
from transformers import TrainerCallback, TrainerState

from hf_distill.evaluation import curves
from hf_distill.evaluation.curves import (
    COLOURS,
    PICTURE,
    WORTH_DRAWING,
    CurvesCallback,
    Line,
    Panel,
    draw,
    logged,
    panels_of,
    write_curves,
)
from hf_distill.recipe import Run, load_recipe


def history(steps: int = 6, **more: float) -> list[dict[str, float]]:
    """What a trainer logs: training at every step, evaluation at every second."""
    found: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        own = {"loss": 1 / step, "forward_kl": 2 / step, "hard_labels": 3.0, "weight_decay": 0.5}
        norms = {"grad_norm": 4.0 + step, "grad_norm_forward_kl": 5.0, "learning_rate": 1e-5 * step}
        found.append({**own, **norms, **more, "epoch": step / 2, "seconds": 9.0, "step": step})
        if step % 2 == 0:
            measured = {
                "loss": 0.3,
                "forward_kl": 0.7,
                "forward_kl_divergence": 0.2,
                "agreement": 0.8,
            }
            theirs = {"accuracy": 0.7, "teacher_accuracy": 0.9, "retention_accuracy": 0.78}
            speed = {"ece": 0.1, "runtime": 1.0, "samples_per_second": 8.0, "perplexity": 12.0}
            entry = {f"eval_{k}": v for k, v in {**measured, **theirs, **speed}.items()}
            found.append({**entry, "epoch": step / 2, "step": step})
    return [*found, {"train_runtime": 3.0, "train_loss": 0.4, "total_flos": 1.0, "step": steps}]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved, as matplotlib has them."""
    found: list[Any] = []
    original = curves.save_figure
    monkeypatch.setattr(
        curves, "save_figure", lambda figure, path: (found.append(figure), original(figure, path))
    )
    return found


def lines(figure: Any, panel: str) -> dict[str, list[tuple[float, float]]]:
    """Label in the legend -> points, of the panel whose title begins so."""
    (axes,) = [axes for axes in figure.axes if axes.get_title().startswith(panel)]
    legend = axes.get_legend() or figure.legends[0]
    labels = [text.get_text() for text in legend.get_texts()]
    drawn = [line.get_xydata() for line in axes.lines]
    return {
        label: [tuple(map(float, p)) for p in part]
        for label, part in zip(labels, drawn, strict=False)
    }


# ---- what is shown -------------------------------------------------------------------------------


def test_panels_show_what_belongs_together() -> None:
    """A component among the metrics, or a metric of another scale, makes a panel unreadable."""
    planned = {"forward_kl_weight": 0.5, "forward_kl_temperature": 2.0}
    panels = {p.title: p for p in panels_of(*logged(history(**planned)))}
    shown = {title: [line.label for line in panel.lines] for title, panel in panels.items()}
    assert shown == {
        "Training loss, components unweighted": [
            *("total", "forward kl", "hard labels", "weight decay")
        ],
        "Validation loss and divergence": ["total", "forward kl divergence"],
        "Validation metrics": ["agreement", "accuracy", "teacher accuracy"],
        "Gradient norm and learning rate": ["total", "forward kl", "learning rate"],
        "Weights and temperatures": ["forward kl temperature", "forward kl weight"],
    }
    _, student, teacher = panels["Validation metrics"].lines
    assert (student.colour, student.style) == (teacher.colour, "solid")
    assert teacher.style == "dashed"
    total = panels["Training loss, components unweighted"].lines[0]
    assert total.points == [(step, 1 / step) for step in range(1, 7)]
    assert len(panels_of(*logged(history(1)[:1]))) == 2, "no panel without a curve"


def test_many_components_stay_readable() -> None:
    """Twenty lines in one panel, or two that look the same, tell nothing."""
    many = {f"exit_{number:02}": 1.0 for number in range(20)}
    panel = panels_of(*logged(history(**many)))[0]
    assert panel.title.endswith("(8 of 24)")
    assert len({(line.colour, line.style) for line in panel.lines}) == len(panel.lines) == 8


def test_values_that_are_no_numbers() -> None:
    """One NaN makes matplotlib lose a curve, and a page claim it as the lowest value."""
    entries = [
        {"loss": 1.0, "step": 1},
        {"loss": float("nan"), "step": 2},
        {"loss": "x", "step": 3},
    ]
    training, evaluation = logged(entries)
    assert training == {"loss": [(1, 1.0)]}
    assert evaluation == {}


@pytest.mark.usefixtures("whole_figures")
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_nothing_covers_anything(count: int) -> None:
    """A legend over the lines, or a label over another panel, hides what the picture is for."""
    planned = {"forward_kl_weight": 0.5, **{f"some_long_name_{n}": 1.0 + n for n in range(9)}}
    figure = draw(panels_of(*logged(history(**planned)))[:count])
    figure.savefig("/dev/null", format="png", dpi=60)
    whole, axes = figure.bbox, [ax for ax in figure.axes if ax.get_visible()]
    legends = [ax.get_legend() for ax in axes if ax.get_legend()]
    assert len(legends) == count
    taken = [legend.get_window_extent() for legend in legends]
    for box, ax in itertools.product(taken, axes):
        assert not box.overlaps(ax.get_window_extent())
    titles = [ax.title.get_window_extent() for ax in axes if ax.get_title()]
    for one, other in itertools.combinations([*taken, *titles], 2):
        assert not one.overlaps(other)
    for box in [*taken, *titles]:
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1


def test_runs_side_by_side_share_a_legend() -> None:
    """A report names each model once per seed and panel."""
    lines = [
        Line(name, [(1, 2.0), (2, 1.0)], COLOURS[0]) for name in ("student", "student", "alone")
    ]
    figure = draw([Panel("Training loss", lines), Panel("Validation accuracy", lines)])
    assert [ax.get_legend() for ax in figure.axes] == [None, None]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["student", "alone"]
    assert len(figure.axes[0].lines) == 3


def test_few_points_are_marked() -> None:
    """A single point without a marker is an empty panel."""
    figures = [draw(panels_of(*logged(history(steps)))) for steps in (1, 40)]
    marked = [figure.axes[0].lines[0].get_marker() for figure in figures]
    assert marked == ["o", "None"]


def test_scales_of_components() -> None:
    """A hidden-state loss of thousands flattens a divergence to the axis."""
    near, far = (draw([Panel("", [Line("a", [(1, 1.0), (2, high)], "k")])]) for high in (99, 101))
    assert [figure.axes[0].get_yscale() for figure in (near, far)] == ["linear", "log"]


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("whole_figures")
def test_the_file_is_a_picture(tmp_path: Path) -> None:
    """A half-written file, or one beside it, is taken for a result."""
    write_curves(history(), tmp_path / "new")
    assert (tmp_path / "new" / PICTURE).read_bytes().startswith(b"\x89PNG")
    assert files(tmp_path / "new") == {PICTURE}


def test_nothing_logged_nothing_written(tmp_path: Path) -> None:
    """An empty picture in the folder of a run that logs nothing looks like a failure."""
    write_curves([{"train_runtime": 1.0, "step": 3}], tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- runs ----------------------------------------------------------------------------------------


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ({}, True),
        ({"max_steps": 2}, False),
        ({"report_to": ["tensorboard"]}, False),
        ({"report_to": ["tensorboard"], "callbacks": [CurvesCallback()]}, True),
        ({"max_steps": 1, "callbacks": [CurvesCallback()]}, True),
    ],
    ids=["untracked", "short", "tracked", "asked", "asked for one step"],
)
def test_who_gets_curves(
    tmp_path: Path, figures: list[Any], options: dict[str, Any], drawn: bool
) -> None:
    """Who has no tracker has nothing to look at; who has one finds files that nobody asked for."""
    ours = trainer(tmp_path, **{"max_steps": WORTH_DRAWING, **options})
    ours.train()
    assert (PICTURE in files(tmp_path)) is drawn
    if drawn:
        shown = lines(figures[-1], "Training loss")
        steps = [e for e in ours.state.log_history if "loss" in e]
        assert shown["forward kl"][-1] == (
            steps[-1]["step"],
            pytest.approx(steps[-1]["forward_kl"]),
        )
        assert len(shown["total"]) == len(steps)


def test_curves_can_be_switched_off(tmp_path: Path) -> None:
    """Files that nobody wants come back with every training."""
    ours = trainer(tmp_path, max_steps=WORTH_DRAWING)
    ours.remove_callback(CurvesCallback)
    ours.train()
    assert files(tmp_path) == set()


class Stop(TrainerCallback):
    """Someone presses Ctrl-C."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_an_interrupted_run_shows_how_far_it_came(tmp_path: Path, figures: list[Any]) -> None:
    """What led to the interrupt is lost, or a resumed run shows its second half alone."""
    options: dict[str, Any] = {
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "compute_metrics": accuracy,
    }
    callback = CurvesCallback(tmp_path / "pictures")
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "out", callbacks=[callback, Stop(5)], **options).train()
    steps = [step for step, _ in lines(figures[-1], "Gradient norm")["total"]]
    assert steps == [1, 2, 3, 4, 5]
    resumed = trainer(tmp_path / "out", callbacks=[callback], **options)
    resumed.train(resume_from_checkpoint=True)
    norms = lines(figures[-1], "Gradient norm")["total"]
    assert [step for step, _ in norms] == list(range(1, 9))
    assert len(lines(figures[-1], "Validation metrics")["agreement"]) == 4
    saved = json.loads((tmp_path / "out/checkpoint-8/trainer_state.json").read_text())
    first = next(e for e in saved["log_history"] if "loss" in e)
    assert norms[0][1] == pytest.approx(first["grad_norm"])


def test_a_picture_that_fails_costs_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk at the last moment throws away ten hours, for a picture."""
    (tmp_path / "taken").write_text("no folder")
    ours = trainer(tmp_path / "out", callbacks=[CurvesCallback(tmp_path / "taken")])
    assert ours.train().global_step == 2
    assert re.search(r"curves could not be drawn: \w*Exist\w*", caplog.text)


def test_one_process_writes(tmp_path: Path) -> None:
    """Two processes that write one file leave half of each."""
    ours = trainer(tmp_path)
    state = TrainerState(log_history=history(20), is_world_process_zero=False)
    CurvesCallback(tmp_path / "other").write(ours.args, state)
    assert not (tmp_path / "other").exists()


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An optional library that is missing must not stop a training that never asked for it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    trainer(tmp_path, max_steps=WORTH_DRAWING).train()
    assert files(tmp_path) == set()
    with pytest.raises(ImportError, match="needs matplotlib: pip install"):
        CurvesCallback()


@pytest.mark.slow
def test_every_stage_of_a_recipe_has_its_curves(tmp_path: Path) -> None:
    """The checkpoints of a finished stage are deleted, and with them what lay beside them."""
    path = recipe(tmp_path, training={"logging_steps": 1})
    Run(load_recipe(path), lambda line: None)()
    trained = [folder.parent for folder in (tmp_path / "out").rglob("model") if folder.is_dir()]
    assert len(trained) == 3  # teacher, baseline, student
    for stage in trained:
        assert (stage / PICTURE).is_file()
