"""The plan of a run: models, memory, steps, time, and finished stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from peft import get_peft_model
from transformers import PreTrainedModel

from hf_distill.recipe import estimate
from hf_distill.recipe.caching import CACHE
from hf_distill.recipe.errors import refusing
from hf_distill.recipe.estimate import ESTIMATED, Memory, Outlook, together_of
from hf_distill.recipe.planning import PreparedRecipe
from hf_distill.recipe.schedule import TEACHER, TrainingJob


def plan_of(run: PreparedRecipe) -> str:
    """The plan, a line for each fact.

    Of models that are not on this machine, the configs alone are downloaded.

    Raises:
        RecipeError: anything that cannot work, see `PreparedRecipe.check`.
    """
    run.models.light = True
    run.check()
    with refusing("the run cannot be estimated"):
        return "\n".join(_lines(run))


def _lines(run: PreparedRecipe) -> Iterator[str]:
    yield from run.examples.lines
    needs: dict[str, Memory] = {}
    first = (TEACHER,) if run.recipe.teacher.is_model else ()
    for role in (*first, *run.recipe.assistant_roles, "student"):
        model = run.models.learner(role, run.recipe.seed)
        yield f"{role}: {model.num_parameters():,} parameters"
        needs |= _memory(run, role, model, needs)
    learners = dict.fromkeys(lesson.role for lesson in run.lessons.values())
    yield from (f"memory of {role}: {needs[role]}" for role in learners)
    outlooks: dict[str, Outlook] = {}
    for key, stage in run.stages.items():
        done, outlook = stage.results() is not None, ""
        if key in run.lessons:
            found = _outlook(run, run.lessons[key], needs)
            outlook = f", {found.steps:,} steps" if done else f", {found}"
            outlooks |= {} if done else {key: found}
        yield f"stage {key}: {'done before' if done else 'to do'}{outlook}"
    if outlooks:
        yield together_of(outlooks.values())
        yield ESTIMATED


def _memory(
    run: PreparedRecipe, model_of: str, model: PreTrainedModel, before: Mapping[str, Memory]
) -> dict[str, Memory]:
    """Memory of each role that starts from this model."""
    found = {model_of: estimate.memory(model)}
    own = [lesson for lesson in run.lessons.values() if lesson.model == model_of]
    for role in dict.fromkeys(lesson.role for lesson in own):
        args = run.arguments(role, run.recipe.seed, run.root)
        known, alike = {**found, **before}, [one for one in own if one.role == role]
        peft: Any = run.adapter(alike[0])
        model = model if peft is None else get_peft_model(model, peft)
        teacher = max(_teacher_bytes(run, lesson, known) for lesson in alike)
        found[role] = estimate.memory(model, args, teacher)
    return found


def _teacher_bytes(run: PreparedRecipe, lesson: TrainingJob, known: Mapping[str, Memory]) -> int:
    """Size of a training's teachers in memory."""
    stored = CACHE in run.stages or not run.recipe.teacher.is_model
    if lesson.teacher is None or (lesson.teacher == TEACHER and stored):
        return 0
    if lesson.teacher == TEACHER:
        return known[TEACHER].weights * max(1, len(run.teacher_keys))
    return known[run.lessons[lesson.teacher].model].weights


def _outlook(run: PreparedRecipe, lesson: TrainingJob, needs: Mapping[str, Memory]) -> Outlook:
    args = run.arguments(lesson.role, lesson.seed, run.root)
    examples = len(run.trained_on(lesson.role))  # `max_steps` of a mixture is set
    alike = [run.stages[o.key] for o in run.lessons.values() if o.role == lesson.role]
    own = run.stages[lesson.key]
    return Outlook(
        steps=estimate.steps(examples, args, run.state.num_processes),
        memory=needs[lesson.role],
        disk=estimate.disk(needs[lesson.role], examples, args),
        rate=estimate.rate_of([own, *alike], lesson.role, run.root),
    )
