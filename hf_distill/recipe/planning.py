"""Preparation of a recipe: data, models and stages, checked before anything is trained."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig, PeftConfig, TaskType
from transformers import PreTrainedModel, ProgressCallback, TrainerCallback

from hf_distill.models.batches import Batch
from hf_distill.objectives import HardLabels
from hf_distill.objectives.base.objective import WeightedSum
from hf_distill.recipe import labelling
from hf_distill.recipe.caching import CACHE, CacheStage, check_given
from hf_distill.recipe.claims import SAMPLES, SPEED
from hf_distill.recipe.errors import RecipeError, refusing
from hf_distill.recipe.examples import OF_TEACHER, SPLITS, fingerprints, load_examples, prepared
from hf_distill.recipe.kept import check_folders, on_main
from hf_distill.recipe.labelling import ANNOTATIONS
from hf_distill.recipe.labels import CLASS, NONE
from hf_distill.recipe.models import Models, teacher_of
from hf_distill.recipe.robustness import ROBUSTNESS, Robustness
from hf_distill.recipe.schedule import (
    EVALUATION,
    TEACHER,
    TrainingJob,
    make_stages,
    objectives,
    training_jobs,
)
from hf_distill.recipe.schema import Recipe, key_of
from hf_distill.recipe.scoring import Scorer, metrics_of
from hf_distill.recipe.stages import Stage, versions
from hf_distill.recipe.tasks import Split, first_output, recipe_task
from hf_distill.recipe.teacher_inputs import processors, teacher_inputs
from hf_distill.recipe.training import Heard, arguments
from hf_distill.recipe.unlabelled import MIXED, equal_steps
from hf_distill.teachers import ModelTeacher, Teacher
from hf_distill.training.config import DistillationConfig
from hf_distill.training.on_policy import OnPolicyConfig, OnPolicyDistillationTrainer
from hf_distill.training.trainer import DistillationTrainer
from hf_distill.utils.processes import process_state

GROUPED = "group_by_length"
MEASURED_TOGETHER = 8
"""Examples of a batch on which the importance of a teacher's parts is measured."""


class PreparedRecipe:
    """A recipe with its data, models and stages.

    Args:
        recipe: The recipe.
        say: Function that prints a line.
        progress: The callback that shows the progress of each training.

    Raises:
        RecipeError: anything in the recipe that cannot work, before anything is trained.
    """

    def __init__(
        self,
        recipe: Recipe,
        say: Callable[[str], None] = print,
        progress: type[TrainerCallback] = ProgressCallback,
    ):
        self.recipe, self.task = recipe, recipe_task(recipe)
        self.progress = progress
        self.root = recipe.root
        for role in recipe.roles:  # wrong ones are told now, not in an hour
            arguments(recipe, role, recipe.seed, self.root)
        self.state = process_state()
        self.say = say if self.state.is_main_process else lambda line: None
        with self.state.main_process_first(), refusing("the recipe cannot be prepared"):
            self.examples = load_examples(recipe)
            self.models = Models(recipe, self.examples.labels)
            self.processor, theirs = processors(recipe, self.models)
            self.models.processor = self.processor
            self.data = prepared(self.examples, recipe, self.processor)
            self.own = teacher_inputs(recipe, self.examples, self.processor, theirs)
        self._check_teacher()
        self.metrics = metrics_of(recipe, self.task, self.examples.labels)
        self.notes = self._inspected()
        self.models.batches = self._batches
        self.robustness: Robustness | None = None
        if recipe.robustness is not None:
            self.robustness = Robustness(recipe, self.examples, self.say)
        goals = objectives(recipe)
        self.objective: WeightedSum = goals["student"]
        self.lessons = {lesson.key: lesson for lesson in training_jobs(recipe, goals)}
        self._data = fingerprints(self.data, self.processor)
        if self.own is not None:
            self.data = prepared(self.examples, recipe, self.processor, self.own.columns)
        if recipe.teacher.api is not None:
            columns = self.examples.raw["train"].column_names
            recipe.teacher.api.check(columns, self.examples.names)
            self.annotate(None)
        self._common: dict[str, Any] = {
            "task": recipe.task,
            "labels": self.examples.names,
            "data": {name: self._data[name] for name in ("train", "validation")},
            "versions": versions(),
        }
        if self.examples.labels.kind not in (CLASS, NONE):
            self._common["problem"] = self.examples.labels.kind
        if self.task.drawn is not None:
            self._common["masking"] = vars(recipe.data.masking)
        if recipe.data.max_seconds is not None:  # sounds are cut when they are read
            self._common["max_seconds"] = recipe.data.max_seconds
        if recipe.metric is not None:  # by which checkpoints are compared
            self._common["metric"] = self.watch
        if self.task.configure is not None:  # settings by which the validation split is measured
            self._common["generation"] = {
                "max_target_length": recipe.data.max_target_length,
                **recipe.data.generation,
            }
        self.stages = self.stages_of(recipe)

    def _check_teacher(self) -> None:
        """Refuse teachers that cannot generate what the task measures."""
        section = self.recipe.teacher
        if self.task.generate is None:
            return
        if len(section.seeds or ()) > 1:
            raise RecipeError(
                f"`teacher.seeds`: expected one teacher for {self.recipe.task}, which is measured "
                f"on what a single model generates or embeds, got {len(section.seeds or ())}. "
                "Leave it out."
            )
        if not section.is_model:
            raise RecipeError(
                f"`teacher`: expected a model for {self.recipe.task}, which is measured on what it "
                "generates or embeds, got stored outputs. Give `teacher.model`; in a script a "
                "ColumnTeacher can teach."
            )

    def _inspected(self) -> list[str]:
        """Sentences about the data, of the task's own checks."""
        for name in SPLITS[1:]:
            self.scorer(name).check(name)
        if self.task.inspect is None:
            return []
        splits = {name: self.scorer(name).split for name in SPLITS}
        notes = self.task.inspect(splits, self.metrics)
        for note in notes:
            self.say(note)
        return notes

    def stages_of(self, recipe: Recipe) -> dict[str, Stage]:
        """The stages of a recipe with these data and lessons."""
        plan, test = list(self.lessons.values()), self._data["test"]
        identities, own = self.models.identities(), None if self.own is None else self.own.prints
        read: Mapping[str, str] = self._data
        if self.own is not None and self.own.splits:
            read = self.own.prints
        of_teacher = {
            "train": read.get(OF_TEACHER, read["train"]),
            "validation": read["validation"],
        }
        metrics = [] if recipe.metric is None else self.metrics
        more = {"unlabelled": self._data[MIXED]} if MIXED in self._data else {}
        stages = make_stages(
            recipe, plan, self._common, identities, test, of_teacher, own, metrics, more
        )
        if recipe.teacher.api is not None:
            inputs: dict[str, Any] = {"data": {name: self._data[name] for name in labelling.SPLITS}}
            inputs |= {"labels": self.examples.names, **identities[TEACHER]}
            first = Stage(ANNOTATIONS, recipe.root / ANNOTATIONS, inputs)
            stages = {ANNOTATIONS: first, **stages}
        if self.robustness is not None:
            stages[ROBUSTNESS] = self.robustness.stage(stages[EVALUATION])
        return stages

    def _batches(self, count: int) -> Iterator[Batch]:
        """Training examples spread over the data."""
        data, collate = self.data["train"], self.collator()
        number = min(count, len(data))
        for start in range(0, number, MEASURED_TOGETHER):
            part = range(start, min(start + MEASURED_TOGETHER, number))
            yield collate([data[i * len(data) // number] for i in part])

    @property
    def teacher_keys(self) -> list[str]:
        """The lessons that make the teacher; none where the recipe brings it."""
        return [key for key, lesson in self.lessons.items() if lesson.role == TEACHER]

    def teachers(self) -> dict[str, PreTrainedModel]:
        """The models of the teacher, by the names of their stages; none of a chat endpoint or of
        columns."""
        if not self.recipe.teacher.is_model:
            return {}
        folders = {key: str(self.stages[key].model) for key in self.teacher_keys}
        folders = folders or {TEACHER: self.models.paths[TEACHER]}
        return {key: self.models.trained(folder) for key, folder in folders.items()}

    def given_teacher(self, models: Mapping[str, PreTrainedModel], alone: bool = False) -> Teacher:
        """The recipe's teacher, of these models; ``alone``: for the data of its own `view`."""
        if self.recipe.teacher.api is not None:
            return labelling.teacher_of(self.recipe.teacher.api, self.examples.names)
        if self.recipe.teacher.columns is not None:
            return self.recipe.teacher.columns.teacher(self.examples.names)
        if alone and self.own is not None and self.own.splits:
            processor = self.own.processor
            return teacher_of({key: ModelTeacher(one, processor) for key, one in models.items()})
        return teacher_of({key: self.reader(model) for key, model in models.items()})

    def reader(self, model: PreTrainedModel, role: str = TEACHER) -> ModelTeacher:
        """A model that teaches: the recipe's teacher, or one that reads the student's inputs."""
        if role == TEACHER and self.own is not None:
            return self.own.teacher(model)
        tokens = self.task.task.classes == "vocabulary"  # those of its own folder are compared
        return ModelTeacher(model, None if tokens else self.processor)

    @property
    def watch(self) -> str:
        """The figure by which the checkpoints of a training are compared."""
        return self.task.watch or self.metrics[0]

    def arguments(self, role: str, seed: int, folder: Path, **changes: Any) -> DistillationConfig:
        """The training arguments of a role."""
        args = arguments(self.recipe, role, seed, folder, self.watch, **changes)
        if args.dataloader_drop_last and self.task.outputs is not first_output:
            raise RecipeError(
                f"`dataloader_drop_last`: the metrics of {self.recipe.task} need all examples of "
                "the validation split, and it leaves some out. Leave it out."
            )
        if not self.takes_unlabelled(role):
            return args
        count, processes = len(self.data["train"]), self.state.num_processes
        changes = {**equal_steps(args, count, processes), **changes}
        return arguments(self.recipe, role, seed, folder, self.watch, **changes)

    def takes_unlabelled(self, role: str) -> bool:
        """True if a role is trained on unlabelled examples as well."""
        return MIXED in self.data and role in ("student", *self.recipe.assistant_roles)

    def scorer(self, split: str, role: str = "student", of_teacher: bool = False) -> Scorer:
        """The metrics of a split, as a role reads it."""
        data, processor = self.view(role)
        raw, labels = self.examples.raw[split], self.examples.labels
        part = Split(raw, data[split], labels, self.recipe.data, processor)
        return Scorer(self.task, self.metrics, part, of_teacher)

    def collator(self) -> Callable[[list[Any]], dict[str, Any]]:
        """The collator of the student's data."""
        return self.task.collator(self.processor, () if self.own is None else self.own.columns)

    def view(self, role: str) -> tuple[Mapping[str, Dataset], Any]:
        """The splits that a role is trained and evaluated on, and their processor."""
        if role == TEACHER and self.own is not None and self.own.splits:
            return self.own.splits, self.own.processor
        return self.data, self.processor

    def annotate(self, found: Mapping[str, Any] | None) -> None:
        """Add the labels of a chat endpoint to the data; None: equal probabilities."""
        count = len(self.examples.names)
        self.data = labelling.with_probabilities(self.data, found, count)

    def adapter(self, lesson: TrainingJob) -> PeftConfig | None:
        """The adapter that a lesson trains in place of its whole model."""
        section = getattr(self.recipe.section(lesson.model), "lora", None)
        return section and LoraConfig(task_type=TaskType.CAUSAL_LM, **vars(section))

    def trained_on(self, role: str) -> Dataset:
        """The training examples of a role."""
        data, _ = self.view(role)
        own = data.get(OF_TEACHER) if role == TEACHER else None
        if self.takes_unlabelled(role):
            own = data[MIXED]
        return data["train"] if own is None else own

    def make_trainer(
        self,
        model: PreTrainedModel,
        args: DistillationConfig,
        objective: WeightedSum | HardLabels,
        teacher: Teacher | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        compute: Scorer | None = None,
        role: str = "student",
        peft: PeftConfig | None = None,
    ) -> DistillationTrainer:
        """The trainer of a lesson, or of an evaluation."""
        if args.train_sampling_strategy == GROUPED and self.task.outputs is not first_output:
            raise RecipeError(
                f"`train_sampling_strategy`: {GROUPED} changes the order of evaluations as well, "
                f"and the metrics of {self.recipe.task} need that of the data. Leave it out."
            )
        on_policy = isinstance(args, OnPolicyConfig)
        kind: Any = OnPolicyDistillationTrainer if on_policy else DistillationTrainer
        data, processor = self.view(role)
        collator = self.collator() if data is self.data else self.task.collator(processor)
        try:
            trainer: DistillationTrainer = kind(
                model=model,
                args=args,
                teacher_model=teacher,
                objective=objective,
                train_dataset=self.trained_on(role),
                eval_dataset=data["validation"],
                processing_class=processor,
                data_collator=collator,
                compute_metrics=compute or self.computed(role),
                preprocess_logits_for_metrics=self.task.reduce,
                callbacks=[Heard(), *callbacks],
                peft_config=peft,
            )
        except ValueError as error:
            raise RecipeError(str(error)) from error
        if trainer.pop_callback(ProgressCallback) is not None:  # unless `disable_tqdm` is set
            trainer.add_callback(self.progress)
        return trainer

    def computed(self, role: str) -> Scorer | None:
        """The metrics that a trainer measures during training."""
        scorer = self.scorer("validation", role)
        return scorer if scorer.metrics and self.task.generate is None else None

    def check(self) -> None:
        """Put the trainer of every kind of learner together once.

        Raises:
            RecipeError: an objective, layer map or model that does not fit, or files of others in
                the output folder.
        """
        more = [SPEED] if self.task.prompt is None else [SPEED, SAMPLES]
        on_main(lambda: check_folders(self.recipe, self.stages.values(), more))
        stage = self.stages.get(CACHE)
        if isinstance(stage, CacheStage) and stage.results() is None:
            self.check_cache(stage)
        kinds: dict[tuple[str, str], TrainingJob] = {}  # a learner and its teacher, by their roles
        for lesson in self.lessons.values():
            if lesson.teacher is not None and not self.stages[lesson.key].results():
                above = self.lessons.get(lesson.teacher)
                kinds.setdefault((lesson.role, TEACHER if above is None else above.role), lesson)
        for (role, by), lesson in kinds.items():
            told = f"`{key_of(role)}`, taught by {lesson.teacher}: "
            try:
                with refusing("the training cannot begin"):
                    self._check(lesson, by)
            except RecipeError as error:
                plain = role == "student" and by == TEACHER
                raise RecipeError(f"{'' if plain else told}{error}") from error

    def _check(self, lesson: TrainingJob, by: str) -> None:
        seed = self.recipe.seed
        by_teacher = by == TEACHER
        model = None if by_teacher else self.models.learner(by, seed)
        teacher = self._untrained() if model is None else self.reader(model, by)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an untrained teacher has nothing to teach yet
            args = self.arguments(lesson.role, seed, Path(folder))
            student = self.models.learner(lesson.model, seed)
            self._fits(student, f"`{key_of(lesson.model)}`")
            peft = self.adapter(lesson)
            self.make_trainer(student, args, lesson.objective, teacher, peft=peft)

    def _fits(self, model: PreTrainedModel, who: str) -> None:
        """Check that a model can read the data."""
        if self.task.check is not None:
            self.task.check(model, who, self.recipe.data, self.processor)

    def _untrained(self) -> Teacher:
        """Teacher before the first stage."""
        if self.recipe.teacher.fine_tuned:
            models = self.teachers()
        else:
            learners = [self.lessons[key] for key in self.teacher_keys]
            models = {lesson.key: self.models.teacher(lesson.seed) for lesson in learners}
        for model in list(models.values())[:1]:
            self._fits(model, "`teacher`")
        return self.given_teacher(models)

    def check_cache(self, stage: CacheStage) -> None:
        """See `check_given`; examples must be the same at each reading."""
        if self.task.drawn is not None and self.data["train"].format["type"] == "custom":
            raise RecipeError(
                f"`teacher.cache`: the masks of {self.recipe.task} are drawn at each reading, so "
                "that stored outputs do not fit. Set `data.masking.fixed: true`, or leave the "
                "cache out."
            )
        check_given(stage, self._untrained().provides)
