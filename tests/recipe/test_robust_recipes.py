"""Recipes of robust students: noisy texts, a robust teacher, a control, dropout, methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_recipes import recipe, record
from torch import nn

from hf_distill.recipe import RecipeError, Run, load_recipe
from hf_distill.recipe.tasks import IDS
from hf_distill.robustness.perturbations import perturb

pytestmark = pytest.mark.xdist_group("recipes")
SEEN = ["character_drops", "keyboard_typos"]
SHOWN = {"name": "on_perturbed", "weight": 0.5, "by": {"name": "columns"}}
ALONE = [{"name": "hard_labels", "weight": 0.5}, {**SHOWN, "objective": {"name": "hard_labels"}}]


def robust(folder: Path, noisy: dict[str, Any] | None = None, **sections: Any) -> Path:
    """A tiny recipe whose student, teacher and control see misspelt texts."""
    path = recipe(folder)
    values = yaml.safe_load(path.read_text())
    values["data"]["noisy"] = {"perturbations": SEEN, "versions": 3} if noisy is None else noisy
    values["teacher"]["objective"] = ALONE
    values["control"] = {"objective": ALONE, "training": {"learning_rate": 5e-4}}
    values["objective"] = [
        {"name": "forward_kl", "weight": 0.5},
        {**SHOWN, "objective": {"name": "forward_kl", "temperature": 2}},
    ]
    values["student"]["dropout"] = 0.25
    values["training"]["num_train_epochs"] = 1
    for name, section in sections.items():
        values[name] = {**values[name], **section} if isinstance(section, dict) else section
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_control_stands_beside_the_student_in_report_and_robustness(tmp_path: Path) -> None:
    """Without its column the gain of training on noise reads as the teacher's."""
    section = {
        "perturbations": ["spacing"],
        "severities": [3],
        "attacks": [],
        "invariance": [],
        "gate_examples": 0,
    }
    path = robust(tmp_path)
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**values, "robustness": section}))
    Run(load_recipe(path), lambda line: None)()
    facts = record(tmp_path, "robustness")["results"]
    assert set(facts["models"]) == {
        "teacher",
        "baseline/seed-0",
        "control/seed-0",
        "student/seed-0",
    }
    assert set(facts["verdicts"]) == {"baseline", "control"}
    assert not any("no control" in note.lower() for note in facts["notes"])
    text = (tmp_path / "out/report.md").read_text()
    assert "| Control (baseline on the student's noise) |" in text
    own = record(tmp_path, "control/seed-0")["inputs"]["training"]
    assert own["learning_rate"] == 5e-4


def test_roles_have_their_objectives_and_dropout(tmp_path: Path) -> None:
    """A control that learns from a teacher, or begins elsewhere, controls for nothing."""
    made = Run(load_recipe(robust(tmp_path)), lambda line: None)
    goals = {lesson.role: str(lesson.objective) for lesson in made.lessons.values()}
    assert goals["control"] == goals["teacher"]
    assert "OnPerturbed(HardLabels()" in goals["control"]
    assert "OnPerturbed(ForwardKL(temperature=2.0)" in goals["student"]
    assert {lesson.role for lesson in made.lessons.values() if lesson.teacher} == {"student"}
    student, control = (
        made.models.learner(made.lessons[f"{role}/seed-0"].model, 0)
        for role in ("student", "control")
    )
    for ours, theirs in zip(student.parameters(), control.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert {m.p for m in student.modules() if isinstance(m, nn.Dropout)} == {0.25}
    assert student.config.hidden_dropout_prob == 0.25
    teacher = made.models.teacher(0)
    assert {m.p for m in teacher.modules() if isinstance(m, nn.Dropout)} != {0.25}


def test_versions_are_of_the_text_and_one_is_drawn(tmp_path: Path) -> None:
    """A version of another text, or one and the same at each epoch, teaches something else."""
    made = Run(load_recipe(robust(tmp_path)), lambda line: None)
    texts, tokenizer = made.examples.raw["train"]["text"][:], made.processor
    data = made.data["train"]
    for index in range(4):
        possible = {
            tuple(tokenizer(perturb([texts[index]], name, severity, seed=version)[0])["input_ids"])
            for name in SEEN
            for severity in (1, 2, 3, 4)
            for version in range(3)
        }
        versions = data[index][IDS]
        assert len(versions) == 3
        assert {tuple(version) for version in versions} <= possible
    assert len(made.data["validation"][0][IDS]) == 1
    assert IDS not in made.data["test"].column_names
    collate = made.task.collator(tokenizer)
    state = torch.get_rng_state()
    batch = collate([data[i] for i in range(4)])
    assert batch["noisy_input_ids"].shape == batch["noisy_attention_mask"].shape
    assert not torch.equal(state, torch.get_rng_state()), "drawn from what a checkpoint holds"
    for row, mask, i in zip(
        *(batch[f"noisy_{k}"] for k in ("input_ids", "attention_mask")), range(4), strict=True
    ):
        assert row[mask.bool()].tolist() in data[i][IDS]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noisy": {"perturbations": ["keybord_typos"]}}, "keyboard_typos"),
        ({"noisy": {"perturbations": []}}, "`data.noisy`"),
        ({"control": {"objective": [{"name": "forward_kl"}]}}, "`control.objective`"),
        ({"teacher": {"objective": [{"name": "forward_kl"}]}}, "`teacher.objective`"),
        ({"student": {"dropout": 1.5}}, "`student.dropout`"),
        ({"objective": [{"name": "rslad"}]}, "rslad"),
        ({"objective": [{"name": "rsladd", "epsilon": 0.1}]}, "rslad"),
        ({"objective": [{"name": "on_perturbed", "by": {"name": "again"}}]}, "on_perturbed"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """After the teacher's hours is too late for a misspelt name."""

    def start() -> None:
        made = Run(load_recipe(robust(tmp_path, **changes)), lambda line: None)
        made.models.learner("student", 0)

    with pytest.raises(RecipeError) as caught:
        start()
    assert message in str(caught.value)


def test_a_method_is_named_like_an_objective(tmp_path: Path) -> None:
    """A published method that only a script can use is no recipe."""
    rows = [{"name": "rslad", "epsilon": "1e-1", "steps": 2}]
    made = Run(load_recipe(robust(tmp_path, objective=rows)), lambda line: None)
    assert "PGD(epsilon=0.1, steps=2" in str(made.objective)
    made.check()


def test_a_teacher_may_see_more_examples_than_the_student(tmp_path: Path) -> None:
    """A student that sees them as well is compared with a student alone on other data."""
    path = robust(tmp_path, data={"max_train_examples": 12})
    values = yaml.safe_load(path.read_text())
    values["teacher"]["max_train_examples"] = 24
    path.write_text(yaml.safe_dump(values))
    made = Run(load_recipe(path), lambda line: None)
    texts = {name: set(rows["text"]) for name, rows in made.examples.raw.items()}
    assert made.examples.sizes["train (teacher)"] == 24
    assert texts["train"] < texts["train (teacher)"]
    made()
    steps = {key: record(tmp_path, key)["results"]["steps"] for key in made.lessons}
    assert steps.pop("teacher") == 3
    assert set(steps.values()) == {2}
    assert "24 train (teacher)" in (tmp_path / "out/final/README.md").read_text()
    ready = [("teacher.fine_tuned", "true"), ("teacher.config", "null"), ("teacher.model", "x")]
    with pytest.raises(RecipeError, match="is for teachers that are trained"):
        load_recipe(path, ready)
