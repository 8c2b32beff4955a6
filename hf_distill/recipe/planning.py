"""What a recipe makes: data, models, stages; all of it tried out before anything is trained."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import PartialState
from transformers import PreTrainedModel, TrainerCallback

from hf_distill.config import DistillationConfig
from hf_distill.objectives import HardLabels
from hf_distill.recipe.caching import CACHE, CacheStage, check_given
from hf_distill.recipe.casting import RecipeError
from hf_distill.recipe.chain import TEACHER, Lesson, lessons, make_stages, objectives
from hf_distill.recipe.examples import Examples, fingerprints, load_examples, prepared
from hf_distill.recipe.judging import Compute, together
from hf_distill.recipe.models import Models
from hf_distill.recipe.noise import OneVersion
from hf_distill.recipe.robustness import Robustness, stage_of
from hf_distill.recipe.schema import Recipe, key_of
from hf_distill.recipe.stages import Stage, versions
from hf_distill.recipe.tasks import compute_metrics, load_processor, recipe_task
from hf_distill.recipe.training import arguments
from hf_distill.teachers import ModelTeacher, Teacher
from hf_distill.terms import Sum
from hf_distill.trainer import DistillationTrainer


class Plan:
    """A recipe with its data and models at hand, and the stages it consists of.

    Args:
        recipe: The recipe.
        say: Prints a line.

    Raises:
        RecipeError: anything in the recipe that cannot work, before anything is trained.
    """

    def __init__(self, recipe: Recipe, say: Callable[[str], None] = print):
        self.recipe, self.task = recipe, recipe_task(recipe)
        self.root = Path(recipe.output_dir)
        for role in recipe.roles:  # wrong ones are told now, not in an hour
            arguments(recipe, role, recipe.seed, self.root)
        self.state = PartialState()
        self.say = say if self.state.is_main_process else lambda line: None
        with self.state.main_process_first():
            self.examples: Examples = load_examples(recipe)
            self.models = Models(recipe, self.examples.labels)
            self.processor = load_processor(recipe, self.models.paths.get(TEACHER))
            self.data = prepared(self.examples, recipe, self.processor)
        self.robustness: Robustness | None = None
        if recipe.robustness is not None:
            self.robustness = Robustness(recipe, self.examples, self.say)
        goals = objectives(recipe)
        self.objective: Sum = goals["student"]
        self.lessons = {lesson.key: lesson for lesson in lessons(recipe, goals)}
        self._data = fingerprints(self.data, self.processor)
        self._common = {
            "task": recipe.task,
            "labels": self.examples.labels,
            "data": {name: self._data[name] for name in ("train", "validation")},
            "versions": versions(),
        }
        self.stages = self.stages_of(recipe)

    def stages_of(self, recipe: Recipe) -> dict[str, Stage]:
        """The stages of a recipe with these data and lessons."""
        plan, test = list(self.lessons.values()), self._data["test"]
        stages = make_stages(recipe, plan, self._common, self.models.identities(), test)
        return stages | stage_of(self.robustness, stages)

    # ---- the teacher ---------------------------------------------------------------------------

    @property
    def teacher_keys(self) -> list[str]:
        """The lessons that make the teacher; none where the recipe brings it."""
        return [key for key, lesson in self.lessons.items() if lesson.role == TEACHER]

    def teachers(self) -> dict[str, PreTrainedModel]:
        """The fine-tuned teacher, or all of them, by the names of their stages."""
        folders = {key: str(self.stages[key].model) for key in self.teacher_keys}
        folders = folders or {TEACHER: self.models.paths[TEACHER]}
        return {key: self.models.trained(folder) for key, folder in folders.items()}

    def make_trainer(
        self,
        model: PreTrainedModel,
        args: DistillationConfig,
        objective: Sum | HardLabels,
        teacher: Teacher | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        compute: Compute | None = None,
    ) -> DistillationTrainer:
        """The trainer of a lesson, or of an evaluation."""
        try:
            return DistillationTrainer(
                model=model,
                args=args,
                teacher_model=teacher,
                objective=objective,
                train_dataset=self.data["train"],
                eval_dataset=self.data["validation"],
                processing_class=self.processor,
                data_collator=OneVersion(self.task.collator(self.processor)),
                compute_metrics=compute or compute_metrics(self.task),
                callbacks=list(callbacks),
            )
        except ValueError as error:
            raise RecipeError(str(error)) from error

    # ---- before doing it -----------------------------------------------------------------------

    def check(self) -> None:
        """Put the trainer of every kind of learner together once, before a teacher takes its hours.

        Raises:
            RecipeError: an objective, layer map or model that does not fit.
        """
        stage = self.stages.get(CACHE)
        if isinstance(stage, CacheStage) and stage.results() is None:
            self.check_cache(stage)
        kinds: dict[tuple[str, str], Lesson] = {}  # a learner and its teacher, by their roles
        for lesson in self.lessons.values():
            if lesson.teacher is not None and not self.stages[lesson.key].results():
                above = self.lessons.get(lesson.teacher)
                kinds.setdefault((lesson.role, TEACHER if above is None else above.role), lesson)
        for (role, by), lesson in kinds.items():
            try:
                self._check(lesson, by)
            except RecipeError as error:
                if role == "student" and by == TEACHER:
                    raise
                raise RecipeError(
                    f"`{key_of(role)}`, taught by {lesson.teacher}: {error}"
                ) from error

    def _check(self, lesson: Lesson, by: str) -> None:
        seed = self.recipe.seed
        by_teacher = by == TEACHER
        teacher = self._untrained() if by_teacher else ModelTeacher(self.models.learner(by, seed))
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an untrained teacher has nothing to teach yet
            args = arguments(self.recipe, lesson.role, seed, Path(folder))
            student = self.models.learner(lesson.model, seed)
            self.make_trainer(student, args, lesson.objective, teacher)

    def _untrained(self) -> Teacher:
        """The teacher as it is before the first stage."""
        if self.recipe.teacher.fine_tuned:
            return together(self.teachers())
        learners = [self.lessons[key] for key in self.teacher_keys]
        return together({lesson.key: self.models.teacher(lesson.seed) for lesson in learners})

    def check_cache(self, stage: CacheStage) -> None:
        """See that the teacher has what is to be kept."""
        check_given(stage, self._untrained().provides)

    def plan(self) -> str:
        """What would be done: models, steps, and what is done already."""
        self.check()
        lines = [f"{name}: {size:,} examples" for name, size in self.examples.sizes.items()]
        for role in (TEACHER, *self.recipe.assistant_roles, "student"):
            size = self.models.learner(role, self.recipe.seed).num_parameters()
            lines.append(f"{role}: {size:,} parameters")
        for key, stage in self.stages.items():
            what = "done before" if stage.results() is not None else "to do"
            if key in self.lessons:
                what += f", {self._steps(self.lessons[key].role):,} steps"
            lines.append(f"stage {key}: {what}")
        return "\n".join(lines)

    def _steps(self, role: str) -> int:
        args = arguments(self.recipe, role, self.recipe.seed, self.root)
        if args.max_steps > 0:
            return args.max_steps
        batch = args.train_batch_size * self.state.num_processes
        batches = -(-len(self.data["train"]) // batch)
        per_epoch = max(1, -(-batches // args.gradient_accumulation_steps))
        return math.ceil(args.num_train_epochs * per_epoch)
