"""Robustness in a recipe: its stage, its place in report and card, its requirements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_recipes import pictures, recipe, record

from hf_distill.cli import main
from hf_distill.hub import published_files, validate
from hf_distill.recipe import RecipeError, Run, load_recipe

pytestmark = pytest.mark.xdist_group("recipes")
SECTION: dict[str, Any] = {
    "perturbations": ["keyboard_typos", "spacing"],
    "severities": [1, 5],
    "attacks": ["pgd", "characters"],
    "steps": 2,
    "queries": 8,
    "attacked_examples": 6,
    "gate_examples": 0,  # seven more attacks: see test_report.py
    "invariance": [],
    "shifted": {"again": "lines.py:lines"},
}
QUICK = {"training": {"num_train_epochs": 1}}


def robust(folder: Path, section: dict[str, Any], **changes: Any) -> Path:
    """Write a tiny recipe with a section on robustness; return the YAML's path."""
    path = recipe(folder, **changes)
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**values, "robustness": section}))
    return path


def run(path: Path, *overrides: tuple[str, str]) -> list[str]:
    lines: list[str] = []
    Run(load_recipe(path, overrides), lines.append)()
    return lines


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("robust")
    run(robust(folder, SECTION, **QUICK))
    return folder


def test_report_and_card_show_the_stages_numbers(finished: Path) -> None:
    """A card with figures of another run, or none, is what users of other projects complain of."""
    out = finished / "out"
    facts = record(finished, "robustness")["results"]
    assert set(facts["models"]) == {"teacher", "baseline/seed-0", "student/seed-0"}
    report = json.loads((out / "report.json").read_text())
    assert report["robustness"] == facts
    runs = report["runs"]
    for ours, theirs in (("student", "student"), ("baseline", "baseline")):
        # measured by asking about raw texts, and by the trainer
        figures = facts["models"][f"{ours}/seed-0"]["figures"]
        test = runs[f"{theirs}/seed-0"]["test"]
        assert figures["accuracy"] == pytest.approx(test["accuracy"])
        assert figures["nll"] == pytest.approx(test["nll"], rel=1e-4)
        assert figures["loyalty.label"] == pytest.approx(test["agreement"])
    noise = facts["verdicts"]["baseline"]["noise"]
    row = f"| {noise['baseline']:.4f} | {noise['student']:.4f} | {noise['difference']:+.4f} |"
    assert row in (out / "report.md").read_text()
    assert row in (out / "robustness.md").read_text()

    text = (out / "final/README.md").read_text()
    validate(text)
    assert row in text
    assert "## Robustness" in text
    (model,) = yaml.safe_load(text.split("---")[1])["model-index"]
    rows = [metric for result in model["results"] for metric in result["metrics"]]
    names = [metric["name"] for metric in rows if "name" in metric]
    assert len(names) == len(set(names)) > 5
    by_name = {metric["name"]: metric for metric in rows if "name" in metric}
    for name, figure in (
        ("Accuracy under attack: pgd", "attack.pgd"),
        ("Mean accuracy under perturbation", "noise"),
        ("Accuracy on again", "shifted.again"),
        ("mCE, baseline = 1", "mce"),
    ):
        assert by_name[name]["value"] == facts["roles"]["student"][figure]["mean"], name
    told = by_name["Accuracy under attack: pgd"]["args"]
    assert {told[key] for key in ("epsilon", "norm", "steps", "n")} == {0.05, "l2", 2, 6}
    told = by_name["Mean accuracy under perturbation"]["args"]
    assert told["delta_vs_no_teacher"] == noise["difference"]
    assert told["verdict"] == "checkpoint only"
    for name in ("severity.png", "reliability.png"):
        assert name in published_files(out / "final")


def test_the_stage_is_done_once(finished: Path) -> None:
    """Every look at a finished run would take hours; a new model would show old figures."""
    path = finished / "recipe.yaml"
    lines = run(path)
    assert "robustness: done before, nothing it depends on has changed" in lines
    assert not [line for line in lines if line.startswith("robustness: student")]
    lines = run(path, ("robustness.steps", "3"))
    assert "robustness: changed: plan.steps 2 -> 3" in lines
    assert "student/seed-0: done before, nothing it depends on has changed" in lines
    lines = run(path, ("robustness", "null"))
    assert not [line for line in lines if line.startswith("robustness")]
    assert "## Robustness" not in (finished / "out/report.md").read_text()


def test_a_requirement_that_is_not_met_fails_the_run(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The student would be pushed all the same."""
    monkeypatch.setattr(
        "hf_distill.recipe.runner.push_folder", lambda *a, **k: pytest.fail("pushed")
    )
    path = str(finished / "recipe.yaml")
    more = ["--push_to_hub", "true", "--hub_model_id", "me/tiny"]
    assert main(["train", path, "--robustness.require", "[noise>=2]", *more]) == 3
    assert "required noise>=2, measured" in capsys.readouterr().err
    assert main(["train", path, "--robustness.require", "[noise>=-1]"]) == 0


@pytest.mark.slow  # test_report.py has the same without a recipe
def test_an_interrupted_stage_goes_on(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill at the last attack would repeat all perturbations."""
    path, settings = finished / "recipe.yaml", ("robustness.seed", "5")
    from hf_distill.robustness.runner import Runner

    plain = Runner.attack
    asked: list[None] = []

    def dies(self: Runner, *arguments: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        plain(self, *arguments)
        asked.append(None)

    monkeypatch.setattr(Runner, "attack", dies)
    with pytest.raises(KeyboardInterrupt):
        run(path, settings)
    monkeypatch.setattr(Runner, "attack", plain)
    lines = run(path, settings)
    assert not [line for line in lines if "keyboard_typos" in line], "perturbed before"
    assert [line for line in lines if line == "robustness: student/seed-0: pgd"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"perturbation": ["spacing"]}, "did you mean `robustness.perturbations`?"),
        ({"perturbations": ["spacin"]}, "Did you mean 'spacing'?"),
        ({"attacks": ["square"]}, "'square', which is for image"),
        ({"severities": [0]}, "`robustness`: Expected `severities` out of"),
        ({"groups": "genre"}, "`robustness.groups`: split 'test' of lines.py:lines has no column"),
        ({"require": ["noize>=0"]}, "Did you mean 'noise'?"),
        ({"shifted": {"x": "lines.py:nothing"}}, "unknown key `lines.py:nothing`"),
        ({"shifted": {"x": 3}}, "`robustness.shifted.x`"),
        ({"epsilon": "much"}, "`robustness.epsilon`: expected a number"),
    ],
)
def test_a_wrong_section_is_refused_before_training(
    tmp_path: Path, section: dict[str, Any], message: str
) -> None:
    """After hours of training is too late for a misspelt name."""
    with pytest.raises(RecipeError) as caught:
        Run(load_recipe(robust(tmp_path, section)), print)
    assert message in str(caught.value)


def test_a_robust_objective_is_seen(tmp_path: Path) -> None:
    """Without a control, what noise in training gave would be credited to the teacher."""
    rows = [{"name": "on_perturbed", "objective": {"name": "forward_kl"}, "by": {"name": "again"}}]
    made = Run(load_recipe(robust(tmp_path, {}, objective=rows)), print)
    assert made.robustness is not None
    assert made.robustness.plan.robust_objective
    plain = Run(load_recipe(robust(tmp_path / "plain", {})), print)
    assert plain.robustness is not None
    assert not plain.robustness.plan.robust_objective
    assert "stage robustness: to do" in plain.plan()


@pytest.mark.slow
def test_pictures(tmp_path: Path) -> None:
    """Pictures are stored as PIL images and shown to the models on the fly."""
    section = {
        "perturbations": ["contrast"],
        "severities": [3],
        "attacks": ["pgd"],
        "steps": 2,
        "gate_examples": 0,
    }
    path = pictures(tmp_path)
    values = yaml.safe_load(path.read_text())
    values |= {"robustness": section}
    values["training"] |= {"num_train_epochs": 1}
    path.write_text(yaml.safe_dump(values))
    run(path)
    facts = record(tmp_path, "robustness")["results"]
    runs = json.loads((tmp_path / "out/report.json").read_text())["runs"]
    for role, key in (("teacher", "teacher"), ("student", "student/seed-0")):
        figures = next(m for m in facts["models"].values() if m["role"] == role)["figures"]
        assert figures["accuracy"] == pytest.approx(runs[key]["test"]["accuracy"])
        assert "transfer.pgd" in figures
