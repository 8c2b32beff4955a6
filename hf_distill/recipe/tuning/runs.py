"""Trainings of a study: the stages of a recipe's `Run` in folders of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback

from hf_distill.recipe import training
from hf_distill.recipe.caching import CACHE, CacheStage
from hf_distill.recipe.errors import RecipeError
from hf_distill.recipe.runner import Run
from hf_distill.recipe.schedule import TEACHER
from hf_distill.recipe.schema import ASSISTANT, Recipe
from hf_distill.recipe.sections import CacheSection
from hf_distill.recipe.stages import Stage, read_record, run_stage
from hf_distill.recipe.tasks import recipe_task
from hf_distill.training.trainer import DistillationTrainer

Watch = Callable[[int, float], bool]
"""``(number of the evaluation, score)``: True stops the training."""
TEST = "test"


class StudyRun(Run):
    """A `Run` of which single trainings are carried out.

    Args:
        recipe: The recipe.
        say: Function that prints a line.
        progress: The callback that shows the progress of a training.
        cached: Keep the teacher's outputs even if the recipe has no section for that.
    """

    def __init__(
        self,
        recipe: Recipe,
        say: Callable[[str], None],
        progress: type[TrainerCallback] = ProgressCallback,
        cached: bool = False,
    ):
        if cached:
            teacher = dataclasses.replace(recipe.teacher, cache=CacheSection())
            file, recipe = recipe.file, dataclasses.replace(recipe, teacher=teacher)
            object.__setattr__(recipe, "file", file)
        super().__init__(recipe, say, progress)
        self._watchers: list[TrainerCallback] = []

    def seal(self) -> StudyRun:
        """Remove the test split, so that no training or choice can read it."""
        splits: list[Any] = [self.data, self.examples.raw]
        splits += [] if self.own is None else [self.own.splits]
        for one in splits:
            one.pop(TEST, None)
        return self

    def make_trainer(self, *args: Any, **options: Any) -> DistillationTrainer:
        """See `PreparedRecipe`; with the callbacks of a trial."""
        trainer = super().make_trainer(*args, **options)
        for watcher in self._watchers:
            trainer.add_callback(watcher)
        return trainer

    @property
    def before(self) -> dict[str, Stage]:
        """The stages that all trials share: teachers, their cache, assistants."""
        return {
            key: stage
            for key, stage in self.stages.items()
            if isinstance(stage, CacheStage)
            or (key in self.lessons and self.lessons[key].role.startswith((TEACHER, ASSISTANT)))
        }

    def prepare(self) -> None:
        """Do the stages that all trials share.

        Raises:
            RecipeError: another run works in the output folder, or as `check`.
        """
        if all(stage.results() is not None for stage in self.before.values()):
            return
        with self._alone():
            self.check()
            for key, stage in self.before.items():
                if isinstance(stage, CacheStage):
                    run_stage(stage, partial(self._cache, stage), self.say)
                else:
                    run_stage(stage, partial(self._train, self.lessons[key]), self.say)

    def learn(self, key: str, folder: Path, watch: Watch, metric: str) -> dict[str, Any]:
        """Train one student or baseline in a folder; its model is ``folder/model`` then.

        Args:
            key: Of a stage: ``student/seed-0``.
            folder: An empty or absent folder.
            watch: Receives the score of each evaluation.
            metric: The score.

        Returns:
            ``score``, ``validation``, ``seconds`` and ``steps``.

        Raises:
            RecipeError: the training fails, or its evaluation lacks the score.
        """
        stage = dataclasses.replace(self.stages[key], folder=folder)
        self.stages[key] = stage
        self._drop_other_cache()
        self._watchers = [_Scores(metric, watch)]
        found = self._train(self.lessons[key])
        shutil.rmtree(stage.checkpoints, ignore_errors=True)
        score = scored(found["validation"], metric)
        kept = {name: found[name] for name in ("validation", "seconds", "steps")}
        return {"score": score, **kept}

    def _drop_other_cache(self) -> None:
        """Use the live teacher where the objective needs more than the cache holds."""
        stage = self.stages.get(CACHE)
        if isinstance(stage, CacheStage):
            kept = read_record(stage.folder).get("inputs", {}).get("kept")
            if kept != stage.inputs["kept"]:
                del self.stages[CACHE]

    def test(self, folders: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
        """Figures on the test split of the models in some folders, and of the teacher."""
        found = {}
        for name, folder in folders.items():
            model = self.models.trained(str(folder))
            found[name] = self._judged(model, None)
        if self.recipe.teacher.is_model:
            teachers = self.teachers()
            alone = self.given_teacher(teachers, alone=True)
            judged = self._judged_teacher(teachers, alone)
            found[TEACHER] = {k: v for k, v in judged.items() if isinstance(v, float)}
        return found


def cacheable(recipe: Recipe) -> bool:
    """True for a recipe without a cache of whose teacher all outputs may be kept: those of
    classifiers are small, and those of language models are not."""
    alone = recipe.teacher.cache is None and recipe.on_policy is None and recipe.teacher.is_model
    return alone and recipe_task(recipe).labelled


def base_run(
    recipe: Recipe, say: Callable[[str], None], progress: type[TrainerCallback], cached: bool
) -> tuple[StudyRun, bool]:
    """The run that trains the teacher; and True if it keeps the outputs by itself."""
    if cached:
        with contextlib.suppress(RecipeError):  # an objective that needs the live teacher
            return StudyRun(recipe, say, progress, cached=True), True
    return StudyRun(recipe, say, progress), False


def scored(figures: Mapping[str, float], metric: str) -> float:
    """The score among the figures of an evaluation.

    Raises:
        RecipeError: it is not there, or no number.
    """
    if metric not in figures:
        raise RecipeError(
            f"`tune.metric`: expected one of {', '.join(sorted(figures))}, got {metric}, which the "
            "evaluation does not measure."
        )
    value = float(figures[metric])
    if value != value:
        raise RecipeError(f"the {metric} is not a number: the training has diverged.")
    return value


class _Scores(TrainerCallback):
    """Hands the score of each evaluation on, and stops the training on request."""

    def __init__(self, metric: str, watch: Watch):
        self._metric, self._watch, self._number = metric, watch, 0

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._number += 1
        figures = training.figures(kwargs["metrics"])
        if self._metric not in figures:  # of generated text, which is measured at the end
            return
        if self._watch(self._number, scored(figures, self._metric)):
            control.should_training_stop = True
