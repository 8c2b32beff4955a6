"""``hf-distill compare``: finished runs side by side."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import permutation_test, ttest_rel
from tiny_recipes import recipe

from hf_distill.cli import main
from hf_distill.recipe import Run, load_recipe

pytestmark = pytest.mark.xdist_group("compare")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of a tiny recipe that differ in the objective alone."""
    folder = tmp_path_factory.mktemp("compare")
    path = recipe(folder, seeds=[0, 1])
    quick = [("training.num_train_epochs", "1"), ("name", "mixed")]
    Run(load_recipe(path, quick), lambda line: None)()
    shutil.copytree(folder / "out", folder / "other")
    other = [("name", "kl-alone"), ("output_dir", str(folder / "other"))]
    other.append(("objective", "[{name: forward_kl, temperature: 3.0}]"))
    Run(load_recipe(path, [*quick, *other]), lambda line: None)()
    return folder / "out", folder / "other"


def compared(out: Path, *folders: Path) -> dict[str, Any]:
    assert main(["compare", *map(str, folders), "--output", str(out)]) == 0
    facts: dict[str, Any] = json.loads((out / "compare.json").read_text())
    return facts


def changed(run: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a run's report and of its record of the evaluation, with something changed."""
    facts = json.loads((run / "report.json").read_text())
    change(facts)
    (folder / "evaluation").mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(facts))
    shutil.copy(run / "evaluation/stage.json", folder / "evaluation")
    return folder


def with_scores(facts: dict[str, Any], scores: list[float]) -> None:
    """Give a report these accuracies of its students, one for each seed."""
    seeds = list(range(len(scores)))
    row = facts["runs"]["student/seed-0"]
    for seed, score in zip(seeds, scores, strict=True):
        facts["runs"][f"student/seed-{seed}"] = copy.deepcopy(row)
        facts["runs"][f"student/seed-{seed}"]["test"]["accuracy"] = score
    mean, std = float(np.mean(scores)), float(np.std(scores, ddof=1))
    facts["models"]["student"]["test"]["accuracy"] = {"mean": mean, "std": std}
    facts["student_seeds"] = seeds


def test_tables_of_two_runs(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Figures under the wrong run's name decide which method is used from then on."""
    facts = compared(tmp_path, *runs)
    shown = capsys.readouterr().out
    assert facts["runs"]["mixed"]["warnings"] == []
    assert facts["runs"]["kl-alone"]["warnings"] == []
    assert "`0.3 * HardLabels() + 0.7 * ForwardKL(temperature=2.0)`" in shown
    assert "`ForwardKL(temperature=3.0)`" in shown
    for label, folder in zip(("mixed", "kl-alone"), runs, strict=True):
        test = json.loads((folder / "report.json").read_text())["models"]["student"]["test"]
        row = next(o for o in shown.splitlines() if o.startswith(f"| {label} | Distilled student"))
        for figure in ("accuracy", "agreement", "nll", "ece", "retention_accuracy"):
            assert f"{test[figure]['mean']:.4f} ± {test[figure]['std']:.4f}" in row
    assert "preliminary, no claim (no p: with exact sign-flip over 2 pairs of seeds" in shown
    assert (tmp_path / "compare.md").read_text().startswith("## Runs")


@pytest.mark.usefixtures("whole_figures")
def test_picture_holds_every_run_and_role(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """A picture without a run, or with half of its labels cut off, is worse than none."""
    compared(tmp_path, *runs)
    with Image.open(tmp_path / "compare.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in ((0x55, 0x55, 0x55), (0xE0, 0x82, 0x14), (0x21, 0x66, 0xAC)):
        assert (pixels == colour).all(1).any(), f"nothing is drawn in {colour}"
    assert not list(tmp_path.glob(".*")), "no temporary file is left"


@pytest.mark.parametrize(("gap", "word"), [(0.05, "better"), (-0.05, "worse")])
def test_six_seeds_with_a_clear_difference(
    runs: tuple[Path, Path], tmp_path: Path, gap: float, word: str
) -> None:
    """The word decides what is published: it must come from the tests, with its direction."""
    base = [0.70, 0.72, 0.69, 0.73, 0.71, 0.70, 0.74, 0.72]
    noise = [0.002, -0.001, 0.0, 0.001, -0.002, 0.001, 0.0, 0.002]
    ours = [b + gap + n for b, n in zip(base, noise, strict=True)]
    first = changed(runs[0], tmp_path / "a", lambda facts: with_scores(facts, base))
    second = changed(runs[1], tmp_path / "b", lambda facts: with_scores(facts, ours))
    facts = compared(tmp_path / "out", first, second)
    row = next(o for o in facts["differences"] if o["figure"] == "accuracy")
    assert (row["word"], row["seeds"]) == (word, 8)
    assert row["difference"] == pytest.approx(np.mean(ours) - np.mean(base))
    t = ttest_rel(ours, base)
    flips = permutation_test(
        (ours, base), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    )
    assert row["p"] == pytest.approx(max(t.pvalue, flips.pvalue))
    interval, gaps = t.confidence_interval(0.95), np.subtract(ours, base)
    picks = [[n for n in range(8) if pick >> n & 1] for pick in range(1, 2**8)]
    means = sorted(float(gaps[pick].mean()) for pick in picks)  # Hartigan: the 6th from either end
    wider = min(interval.low, means[5]), max(interval.high, means[-6])
    assert (row["low"], row["high"]) == pytest.approx(wider)


@pytest.mark.parametrize(("gap", "word"), [(-3.0, "better"), (3.0, "worse")])
def test_less_perplexity_is_better(
    runs: tuple[Path, Path], tmp_path: Path, gap: float, word: str
) -> None:
    """The worse of two language models would be published as the better one."""
    base = np.array([30.0, 31.0, 29.5, 30.2, 30.8, 29.9, 30.1, 31.2])
    noise = np.array([0.1, -0.1, 0.0, 0.1, -0.2, 0.1, 0.0, 0.2])

    def of_language(scores: np.ndarray) -> Callable[[dict[str, Any]], None]:
        def change(facts: dict[str, Any]) -> None:
            with_scores(facts, list(scores))
            facts["metric"] = "perplexity"
            for row in (*facts["runs"].values(), *facts["models"].values()):
                row["test"]["perplexity"] = row["test"].pop("accuracy")

        return change

    first = changed(runs[0], tmp_path / "a", of_language(base))
    second = changed(runs[1], tmp_path / "b", of_language(base + gap + noise))
    facts = compared(tmp_path / "out", first, second)
    row = next(o for o in facts["differences"] if o["figure"] == "perplexity")
    assert (row["word"], row["difference"] > 0) == (word, gap > 0)
    assert f"in perplexity: {word} over 8" in (tmp_path / "out/compare.md").read_text()


def test_seeds_that_are_not_shared(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Runs of different seeds are no pairs, and their order in the file says nothing."""

    def moved(facts: dict[str, Any]) -> None:
        facts["student_seeds"] = [1, 7]
        facts["runs"]["student/seed-7"] = facts["runs"].pop("student/seed-0")

    facts = compared(tmp_path / "out", runs[0], changed(runs[1], tmp_path / "b", moved))
    test = [json.loads((run / "report.json").read_text())["runs"] for run in runs]
    ours, theirs = (one["student/seed-1"]["test"]["accuracy"] for one in reversed(test))
    row = next(o for o in facts["differences"] if o["figure"] == "accuracy")
    assert (row["seeds"], row["word"]) == (1, "checkpoint only")
    assert row["difference"] == pytest.approx(ours - theirs)


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda f: f["examples"].update(test=99), "other test examples: 99, not 16"),
        (lambda f: f.update(metric="nll"), "another metric: nll, not accuracy"),
        (lambda f: f.update(task="image_classification"), "another task"),
    ],
)
def test_what_cannot_be_compared_is_not(
    runs: tuple[Path, Path],
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    warning: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Accuracies on two test sets side by side look like a result."""
    facts = compared(tmp_path / "out", runs[0], changed(runs[1], tmp_path / "b", change))
    assert warning in " ".join(facts["runs"]["kl-alone"]["warnings"])
    assert facts["differences"] == []
    assert "kl-alone is not compared with mixed" in capsys.readouterr().out


def test_other_examples_of_the_same_number(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Two sets of 2,000 examples are told apart by their content alone."""
    other = changed(runs[1], tmp_path / "b", lambda facts: None)
    path = other / "evaluation/stage.json"
    record = json.loads(path.read_text())
    record["inputs"]["data"] = "0" * 64
    path.write_text(json.dumps(record))
    facts = compared(tmp_path / "out", runs[0], other)
    assert facts["runs"]["kl-alone"]["warnings"] == ["other test examples, though as many"]
    assert facts["differences"] == []
    path.unlink()
    facts = compared(tmp_path / "out", runs[0], other)
    assert "is not recorded" in facts["runs"]["kl-alone"]["warnings"][0]
    assert facts["differences"]


def test_another_teacher_and_other_training_data_are_told(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    """The objective would get the credit for a better teacher or for more data."""

    def change(facts: dict[str, Any]) -> None:
        facts["models"]["teacher"]["test"]["accuracy"] += 0.01
        facts["examples"]["train"] = 400

    facts = compared(tmp_path / "out", runs[0], changed(runs[1], tmp_path / "b", change))
    warnings = facts["runs"]["kl-alone"]["warnings"]
    assert warnings[0] == "400 training examples, not 40"
    assert warnings[1].startswith("another teacher")


def test_published_folder_and_equal_names(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """One run would overwrite the other in the table."""
    facts = compared(tmp_path, runs[0] / "final", runs[0], runs[0])
    assert list(facts["runs"]) == ["mixed (final)", "mixed (out)", "mixed (out) #2"]
    assert facts["runs"]["mixed (out)"]["warnings"] == []
    assert {row["difference"] for row in facts["differences"]} == {0.0}
    assert str(runs[0].parent) not in (tmp_path / "compare.json").read_text()


def test_robustness_stands_beside(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A student that is better on clean data alone would be chosen."""
    row = {"student": 0.81, "baseline": 0.75, "difference": 0.06, "low": 0.01, "high": 0.11}
    verdicts = {"noise": {**row, "word": "better"}}

    def change(facts: dict[str, Any]) -> None:
        facts["robustness"] = {"verdicts": {"baseline": verdicts}}

    compared(tmp_path / "out", runs[0], changed(runs[1], tmp_path / "b", change))
    shown = capsys.readouterr().out
    assert "| kl-alone | 0.8100 (+0.0600, better) |" in shown
    assert "| mixed | – |" in shown


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (None, "written when `hf-distill train` has come to its end"),
        ("{", "cannot be read"),
        ("[]", "lacks name"),
        ('{"name": "x"}', "lacks task"),
    ],
)
def test_a_folder_without_a_report(
    runs: tuple[Path, Path],
    tmp_path: Path,
    report: str | None,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A traceback hides the sentence that helps."""
    if report is not None:
        (tmp_path / "report.json").write_text(report)
    assert main(["compare", str(runs[0]), str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_one_run_alone(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A shell pattern that matches one folder would print a table of nothing."""
    assert main(["compare", str(runs[0])]) == 2
    assert "at least two runs" in capsys.readouterr().err
