"""Trainings of a recipe in their order, with teachers and stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_distill.objectives import HardLabels, objective_from
from hf_distill.objectives.base.objective import WeightedSum
from hf_distill.recipe.caching import CACHE, CacheStage, cache_format
from hf_distill.recipe.errors import RecipeError
from hf_distill.recipe.schema import CONTROL, Recipe
from hf_distill.recipe.sections import CacheSection
from hf_distill.recipe.stages import Stage, versions
from hf_distill.recipe.tasks import recipe_task
from hf_distill.recipe.training import arguments

TEACHER = "teacher"
EVALUATION = "evaluation"
AVERAGE = "probabilities"
"""Averaging of several teachers."""

SCALARS = ("alpha", "temperature", "beta", "gamma")
"""Training arguments of which the default objective is made."""
NEUTRAL = (
    *SCALARS,  # part of the objective, which counts by itself
    *("report_to", "run_name", "project", "disable_tqdm", "log_level", "save_total_limit"),
)
"""Training arguments that a finished stage does not depend on."""


@dataclass(frozen=True)
class TrainingJob:
    """One training.

    Attributes:
        key: The name of its stage: ``teacher``, ``assistant-1``, ``student/seed-0``, ….
        role: The section of the recipe with its training arguments.
        seed: Its seed.
        objective: Its objective.
        teacher: The training of its teacher; `TEACHER`: the teacher of the recipe, also one that
            is not trained; None: it learns from the labels alone.
    """

    key: str
    role: str
    seed: int
    objective: WeightedSum | HardLabels
    teacher: str | None = None

    @property
    def model(self) -> str:
        """The role of the model that it begins with."""
        return "student" if self.role in ("baseline", CONTROL) else self.role


def objectives(recipe: Recipe) -> dict[str, WeightedSum]:
    """Objectives of assistants, student, and, if set, teacher and control.

    Rows of their own, else those of the recipe, else the scalars of the training arguments.

    Raises:
        RecipeError: an objective that needs a teacher, of a model that has none.
    """
    found = {}
    for role in (TEACHER, CONTROL):
        rows = getattr(recipe.section(role), "objective", None)
        if rows is not None:
            found[role] = objective_from(rows)
            if found[role].needs:
                raise RecipeError(
                    f"`{role}.objective`: expected objectives without a teacher, got "
                    f"{found[role]}. HardLabels, alone or in OnPerturbed, Smoothness, … need none."
                )
    for role in (*recipe.assistant_roles, "student"):
        rows = getattr(recipe.section(role), "objective", None) or recipe.objective
        own = recipe_task(recipe).objective
        if rows is None and own is not None:
            _refuse_scalars(recipe, role, own)
            rows = own
        args = arguments(recipe, role, recipe.seed, recipe.root)
        found[role] = args.objective() if rows is None else objective_from(rows)
    return found


def _refuse_scalars(recipe: Recipe, role: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse weights that have no effect on the default objective of a task."""
    for key in SCALARS:
        if key in recipe.training_of(role):
            raise RecipeError(
                f"`training.{key}` is for objectives on logits, and that of {recipe.task} is by "
                f"default {list(rows)}. Give the weights in `objective`."
            )


def training_jobs(recipe: Recipe, goals: Mapping[str, WeightedSum]) -> list[TrainingJob]:
    """All trainings: teachers, assistants, and for each seed baseline, control and students.

    A student of the last generation is called ``student``, whatever the number of generations.
    """
    own, seeds = goals.get(TEACHER, HardLabels()), recipe.teacher.seeds or ()
    found = [TrainingJob(f"{TEACHER}/seed-{seed}", TEACHER, seed, own) for seed in seeds]
    if not seeds and not recipe.teacher.fine_tuned:
        found.append(TrainingJob(TEACHER, TEACHER, recipe.seed, own))
    last = TEACHER
    for role in recipe.assistant_roles:
        found.append(TrainingJob(role, role, recipe.seed, goals[role], last))
        last = role
    goal = goals["student"]
    labels = [part for _, part in goal.parts if isinstance(part, HardLabels)]  # with its settings
    alone = labels[0] if labels else HardLabels()
    for seed in recipe.student_seeds:
        found.append(TrainingJob(f"baseline/seed-{seed}", "baseline", seed, alone))
        if CONTROL in goals:
            found.append(TrainingJob(f"{CONTROL}/seed-{seed}", CONTROL, seed, goals[CONTROL]))
        before = last
        for name in generations(recipe):
            key = f"{name}/seed-{seed}"
            found.append(TrainingJob(key, "student", seed, goal, before))
            before = key
    return found


def generations(recipe: Recipe) -> list[str]:
    """The students that teach one another: ``generation-1``, …, and at last ``student``."""
    return [*(f"generation-{number}" for number in range(1, recipe.generations)), "student"]


def make_stages(
    recipe: Recipe,
    plan: Sequence[TrainingJob],
    common: Mapping[str, Any],
    models: Mapping[str, Any],
    test: str,
    of_teacher: Mapping[str, str],
    inputs_of_teacher: Mapping[str, str] | None = None,
    metrics: Sequence[str] = (),
    more_data: Mapping[str, str] | None = None,
) -> dict[str, Stage]:
    """Stages by name, each with its exact inputs.

    Those of every training are in ``common``; ``models`` holds the identity of each role's model
    before training, ``test`` and ``of_teacher`` the hashes of the test split and of the splits that
    the teacher is trained on, ``inputs_of_teacher`` those of what the teacher alone reads;
    ``metrics`` are the chosen ones, ``more_data`` the hash of the students' further examples.
    """
    root, stages = recipe.root, dict[str, Stage]()
    first = [lesson for lesson in plan if lesson.role == TEACHER]
    own = {**common, "data": dict(of_teacher)}
    for lesson in first:
        stages[lesson.key] = _stage(recipe, lesson, {**own, "model": models[TEACHER]})
    teacher, extra = _teacher(recipe, stages, models), inputs_of_teacher
    if extra is not None:
        teacher["inputs"] = {name: extra[name] for name in ("train", "validation")}
    taught = {TEACHER: teacher}
    if recipe.teacher.cache is not None:
        inputs = {**common, "teacher": teacher, **(more_data or {})}
        stages[CACHE] = _cache_stage(recipe, plan, recipe.teacher.cache, inputs)
        taught[TEACHER] = {"cached": stages[CACHE].fingerprint}
    for lesson in plan[len(first) :]:
        inputs = {**common, "model": models[lesson.model], "objective": _described(lesson)}
        if lesson.teacher is not None:
            inputs["teacher"] = taught[lesson.teacher]
            inputs |= more_data or {}
        stages[lesson.key] = _stage(recipe, lesson, inputs)
        taught[lesson.key] = {"trained": stages[lesson.key].fingerprint}
    prints = {lesson.key: stages[lesson.key].fingerprint for lesson in plan}
    inputs = {"models": prints | teacher, "data": test, "versions": versions()}
    if extra is not None:
        inputs["teacher_data"] = extra["test"]
    if metrics:
        inputs["metrics"] = list(metrics)
    stages[EVALUATION] = Stage(EVALUATION, root / EVALUATION, inputs)
    return stages


def _cache_stage(
    recipe: Recipe, plan: Sequence[TrainingJob], section: CacheSection, inputs: Mapping[str, Any]
) -> CacheStage:
    """Stage of the cache; the teacher computes in the precision of the first training."""
    learners = [lesson for lesson in plan if lesson.teacher == TEACHER]
    kept = cache_format(section, [(lesson.key, lesson.objective) for lesson in learners])
    training = recipe.training_of(learners[0].role)
    precision = next((name for name in ("bf16", "fp16") if training.get(name)), "no")
    inputs = {**inputs, "kept": kept, "precision": precision}
    return CacheStage(CACHE, recipe.root / CACHE, inputs, section)


def _teacher(
    recipe: Recipe, stages: Mapping[str, Stage], models: Mapping[str, Any]
) -> dict[str, Any]:
    """Description of the teacher for the fingerprints of its students."""
    if recipe.teacher.fine_tuned:
        return {"given": models[TEACHER]}
    if recipe.teacher.seeds is None:
        return {"trained": stages[TEACHER].fingerprint}
    members = {key: stage.fingerprint for key, stage in stages.items()}
    return {"trained": members, "average": AVERAGE}


def _stage(recipe: Recipe, lesson: TrainingJob, inputs: Mapping[str, Any]) -> Stage:
    training = recipe.training_of(lesson.role)
    training = {k: v for k, v in training.items() if k not in NEUTRAL}
    if recipe.on_policy is not None and lesson.teacher is not None:
        training |= recipe.on_policy
    inputs = {**inputs, "training": training, "seed": lesson.seed}
    return Stage(lesson.key, recipe.root / lesson.key, inputs)


def _described(lesson: TrainingJob) -> Any:
    """Description of an objective for a fingerprint, without citations."""
    if isinstance(lesson.objective, HardLabels):
        return lesson.objective.describe()
    rows = lesson.objective.describe()
    return [{key: value for key, value in row.items() if key != "citation"} for row in rows]
