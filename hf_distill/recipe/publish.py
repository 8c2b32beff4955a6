"""The folder of the finished student: weights, processor, card, report, picture and recipe."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_distill.card_facts import PIPELINES, TOLD
from hf_distill.hub.card import StudentCard
from hf_distill.hub.card import write as write_card
from hf_distill.hub.check import scrub
from hf_distill.recipe import sources
from hf_distill.recipe.examples import Examples
from hf_distill.recipe.report import NAMES, SIZES, between, name_of, show, verdict
from hf_distill.recipe.robustness import ROBUSTNESS, on_card
from hf_distill.recipe.schema import Recipe
from hf_distill.recipe.stages import write_text
from hf_distill.recipe.tasks import RecipeTask

FINAL = "final"


def publish(
    recipe: Recipe, task: RecipeTask, examples: Examples, facts: Mapping[str, Any], root: Path
) -> Path:
    """Put the published student together, all of it or nothing.

    Args:
        recipe: The recipe.
        task: Its row of the table.
        examples: Its data.
        facts: The report, as `report.summary` gives it.
        root: The output folder.

    Returns:
        The folder ``final``.
    """
    final, staging, old = root / FINAL, root / f".{FINAL}.tmp", root / f".{FINAL}.old"
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(root / f"student/seed-{facts['published_seed']}" / "model", staging)
    if (final / "README.md").is_file():  # what a person wrote into the card is kept
        shutil.copy2(final / "README.md", staging / "README.md")
    more = on_card(facts[ROBUSTNESS])["plots"] if ROBUSTNESS in facts else []
    for name in ("report.json", "curves.png", *more):
        shutil.copy2(root / name, staging / name)
    resolved = scrub(recipe.to_yaml())
    write_text(staging / "recipe.yaml", resolved)
    write_text(root / "recipe.yaml", recipe.to_yaml())
    write_card(student_card(recipe, task, examples, facts, resolved), staging)
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.replace(old)
    staging.replace(final)
    shutil.rmtree(old, ignore_errors=True)
    return final


def student_card(
    recipe: Recipe,
    task: RecipeTask,
    examples: Examples,
    facts: Mapping[str, Any],
    resolved: str,
) -> StudentCard:
    """The facts of the card, all of them from this run or from what the sources say."""
    teacher, base = _origins(recipe)
    data = _data(recipe, examples, facts)
    named = teacher["name"]
    if not recipe.teacher.fine_tuned:
        how = "fine-tuned" if recipe.teacher.model is not None else "trained"
        named += f" {how} on {data['name']}"
    if "members" in facts["models"]["teacher"]:
        named += f" with {facts['models']['teacher']['members']} seeds, their mean"
    models = facts["models"]
    derived = recipe.student.from_teacher_layers is not None
    return StudentCard(
        model_name=recipe.hub_model_id or recipe.name,
        task=PIPELINES[task.task.name],
        license=recipe.card.license or (teacher["license"] if derived else None),
        language=recipe.card.language,
        base_model=base,
        teacher={"name": named, **_size(models["teacher"])},
        student=_size(models["student"]),
        objective=list(facts["objective"]),
        formula=facts["formula"],
        data=data,
        results={role: _results(models[role]["test"]) for role in NAMES if role in models},
        test_examples=facts["examples"]["test"],
        seeds=len(facts["student_seeds"]),
        training=_training(recipe, facts),
        environment=dict(facts["environment"]),
        reproduce={"command": f"hf-distill train {_shown(recipe.file)}", "recipe": resolved},
        limitations=_limitations(recipe, examples, facts),
        plots=["curves.png"],
        robustness=on_card(facts[ROBUSTNESS]) if ROBUSTNESS in facts else {},
    )


def _origins(recipe: Recipe) -> tuple[dict[str, Any], str | None]:
    """The teacher's name and licence, and the name of what the student's weights began as."""
    folder, section = recipe.file.parent, recipe.teacher
    known = sources.facts(section.model or "", folder, "teacher.model")
    if section.model is None:
        name = str((section.config or {})["model_type"])
    else:
        name = section.hub_id or known.get("hub_id") or section.model
    teacher = {"name": name, "license": section.license or known.get("license")}
    student = recipe.student
    if student.from_teacher_layers is not None:
        return teacher, name if section.model is not None else None
    return teacher, student.hub_id or student.model


def _data(recipe: Recipe, examples: Examples, facts: Mapping[str, Any]) -> dict[str, Any]:
    known, data = examples.facts, recipe.data
    function = data.source.rpartition(":")[2]
    return {
        "name": known.get("hub_id") or function.replace("_", " "),
        "config": data.config,
        "revision": data.revision,
        "license": known.get("license"),
        "splits": dict(facts["examples"]),
        "test_split": data.test_split,
        "labels_used": any(row["name"] == "hard_labels" for row in facts["objective"]),
    }


def _size(model: Mapping[str, Any]) -> dict[str, Any]:
    return {key: model[key] for key in SIZES}


def _results(test: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in test.items() if not key.startswith("retained_")}


def _training(recipe: Recipe, facts: Mapping[str, Any]) -> dict[str, Any]:
    own = {k: v for k, v in recipe.training_of("student").items() if k in TOLD}
    model, seed = facts["models"]["student"], facts["published_seed"]
    rows = {**own, "optimizer steps": model["train_steps"], "seed of these weights": seed}
    if len(facts["student_seeds"]) > 1:
        metric = facts["metric"]
        value = facts["runs"][f"student/seed-{seed}"]["test"][metric]
        rows["seed of these weights"] = (
            f"{seed}, the best of {facts['student_seeds']} on the validation split; "
            f"its own test {metric} is {value:.4f}"
        )
    for role in between(facts):
        rows[name_of(role, facts["models"][role])] = _in_words(facts, role)
    return rows


def _in_words(facts: Mapping[str, Any], role: str) -> str:
    """A model between teacher and student in one line."""
    model, metric = facts["models"][role], facts["metric"]
    return (
        f"{model['parameters']:,} parameters, test {metric} {show(model['test'][metric])}, "
        f"agreement with the teacher {show(model['test'].get('agreement'))}, trained for "
        f"{show(model['train_seconds'], 0)} s"
    )


def _limitations(recipe: Recipe, examples: Examples, facts: Mapping[str, Any]) -> list[str]:
    lines = list(recipe.card.limitations)
    if "description" in examples.facts:
        lines.append(f"All figures are for one data set: {examples.facts['description']}")
    lines.append(
        "The student learned from its teacher's outputs, mistakes and biases included. "
        + verdict(facts)
    )
    return lines


def _shown(file: Path) -> str:
    """The recipe's path as a user would type it, never one of this machine."""
    try:
        return file.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return file.name
