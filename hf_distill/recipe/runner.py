"""Runs a recipe: teachers, cache, assistants, baselines, students, evaluation, report, card."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint

from hf_distill.hub.push import push_folder
from hf_distill.models.batches import decoder_inputs
from hf_distill.models.task_model import describe_model
from hf_distill.objectives import HardLabels
from hf_distill.recipe import labelling, report, training
from hf_distill.recipe.caching import CACHE, CacheStage, write
from hf_distill.recipe.claims import BATCH, measured, written
from hf_distill.recipe.dry_run import plan_of
from hf_distill.recipe.errors import RecipeError
from hf_distill.recipe.estimate import examples_seen
from hf_distill.recipe.kept import FINAL, on_main
from hf_distill.recipe.labelling import ANNOTATIONS
from hf_distill.recipe.language import SAMPLES, merge
from hf_distill.recipe.models import describe_ensemble
from hf_distill.recipe.planning import PreparedRecipe
from hf_distill.recipe.publish import publish
from hf_distill.recipe.robustness import ROBUSTNESS
from hf_distill.recipe.schedule import EVALUATION, TEACHER, TrainingJob
from hf_distill.recipe.sections import CacheSection
from hf_distill.recipe.stages import Stage, run_stage
from hf_distill.recipe.unlabelled import MIXED
from hf_distill.robustness.report import Report, RequirementError
from hf_distill.teachers import Teacher
from hf_distill.training.checkpoint_files import CheckpointError
from hf_distill.training.trainer import DistillationTrainer
from hf_distill.utils.folders import held


class Run(PreparedRecipe):
    """A `PreparedRecipe` that is carried out. Every process of a launch makes one."""

    def __call__(self) -> Path:
        """Do all that is not done yet; gives the folder of the finished student.

        Raises:
            RecipeError: another run works in the output folder, or as `check`.
        """
        with self._alone():
            self.check()
            for line in self.examples.lines:
                self.say(line)
            return self._run()

    def plan(self) -> str:
        """Plan of the run, see `hf_distill.recipe.dry_run.plan_of`."""
        return plan_of(self)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the output folder on the main process; the others go with it."""
        with contextlib.ExitStack() as lock:
            on_main(lambda: lock.enter_context(held(self.root)))
            yield

    def _run(self) -> Path:
        results = {}
        for key, stage in self.stages.items():
            if key == ANNOTATIONS:
                results[key] = run_stage(stage, partial(self._label, stage), self.say)
                self.annotate(results[key])
            elif key == EVALUATION:
                results[key] = run_stage(stage, self._evaluate, self.say)
            elif key == ROBUSTNESS:
                results[key] = run_stage(stage, self._attack, self.say)
            elif isinstance(stage, CacheStage):  # unless all that learn from it are done
                taught = [o.key for o in self.lessons.values() if o.teacher == TEACHER]
                if any(self.stages[one].results() is None for one in taught):
                    run_stage(stage, partial(self._cache, stage), self.say)
            else:
                results[key] = run_stage(stage, partial(self._train, self.lessons[key]), self.say)
        final = self.root / FINAL
        if self.state.is_main_process:
            self._report(results)
            self._require(results)
            if self.recipe.push_to_hub:
                self._push(final)
        self.state.wait_for_everyone()
        return final

    def _push(self, final: Path) -> None:
        recipe = self.recipe
        try:
            commit = push_folder(final, str(recipe.hub_model_id), private=recipe.hub_private_repo)
        except ValueError as error:
            raise RecipeError(f"{final} is not pushed: {error}") from error
        self.say(f"pushed: {commit.commit_url}")

    def write_cache(self) -> Path:
        """Train the teacher if need be, and write its outputs to disk; gives the folder.

        The cache is that of ``teacher.cache``, by default of all logits. Interrupted, it goes on
        where it was; of a finished cache, damaged shards are made again.
        """
        with self._alone():
            recipe = self.recipe
            if recipe.teacher.cache is None:
                section = dataclasses.replace(recipe.teacher, cache=CacheSection())
                recipe = dataclasses.replace(recipe, teacher=section)
            stage: Any = self.stages_of(recipe)[CACHE]
            before = [*(self.stages[key] for key in self.teacher_keys), stage]
            on_main(lambda: [one.check() for one in before])
            self.check_cache(stage)
            for key in self.teacher_keys:
                run_stage(self.stages[key], partial(self._train, self.lessons[key]), self.say)
            run_stage(stage, partial(self._cache, stage), self.say, again=True)
        return Path(stage.path)

    def _report(self, results: dict[str, dict[str, Any]]) -> None:
        """Write report and card; cheap, so done every time."""
        outcome = report.RecipeResults(
            self.recipe, results, self.objective, self.examples.sizes, self.metrics, self.watch
        )
        facts = {**report.summary(outcome), "notes": self.notes}
        if self.recipe.teacher.api is not None:
            found = results[ANNOTATIONS]
            facts[ANNOTATIONS] = labelling.summary(self.recipe.teacher.api, found)
        report.write(facts, self.root)
        more = self._measured(facts)
        final = publish(self.recipe, self.task, self.examples, facts, self.root, more)
        self.say(f"\n{report.table(facts)}\n\n{report.verdict(facts)}")
        self.say(f"report: {self.root / 'report.md'}; student with its card: {final}")

    def _measured(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Size and speed of teacher, baseline and student, and other facts for the card."""
        seed = facts["published_seed"]
        folders = {
            role: self.stages[f"{role}/seed-{seed}"].model for role in ("baseline", "student")
        }
        at_hand = self.recipe.teacher.is_model
        if at_hand and len(self.teacher_keys) <= 1:  # an ensemble has no one folder
            own = [self.stages[key].model for key in self.teacher_keys]
            folders[TEACHER] = own[0] if own else Path(self.models.paths[TEACHER])
        size = BATCH if self.task.reads_raw else 1  # of tokens there are many in an example
        batches = {role: self._batch(role, size) for role in folders}
        models = {
            role: partial(self.models.trained, str(folder)) for role, folder in folders.items()
        }
        found = measured(self.stages[EVALUATION], models, folders, batches)
        given = self.models.paths.get(TEACHER)
        samples = self._written(models)
        inputs = {"processor": self.processor, "own": self.own}
        return {**found, **inputs, "samples": samples, "teacher": given}

    def _batch(self, role: str, size: int) -> dict[str, Any]:
        """Test examples as the model of a role reads them, without labels."""
        data, processor = self.view(role)
        rows = data["test"].select(range(min(size, len(data["test"]))))
        same = data is self.data
        batch = (self.collator() if same else self.task.collator(processor))(list(rows))
        left = {"labels", *self.task.task.label_keys}
        if self.task.task.share is decoder_inputs:  # whose tokens do not change the time
            batch.setdefault("decoder_input_ids", batch["labels"].clamp(min=0))
        return {key: value for key, value in batch.items() if key not in left}

    def _written(self, models: Mapping[str, Callable[[], PreTrainedModel]]) -> list[dict[str, Any]]:
        """Generated continuations of a few test examples."""
        if self.task.prompt is None:
            return []
        raw = self.examples.raw["test"]
        if self.own is not None:  # without its own prompt it is not the teacher
            models = {role: load for role, load in models.items() if role != TEACHER}
        prompts = [
            self.task.prompt(raw[i], self.recipe.data) for i in range(min(SAMPLES, len(raw)))
        ]
        try:
            return written(self.stages[EVALUATION], models, self.processor, prompts)
        except ValueError as error:  # a long prompt is no reason to lose the run
            self.say(f"no samples on the card: {error}")
            return []

    def _teacher_of(self, lesson: TrainingJob) -> Teacher | None:
        """Teacher of a training, as it is at its start."""
        if lesson.teacher is None:
            return None
        if lesson.teacher != TEACHER:
            above = self.models.trained(str(self.stages[lesson.teacher].model))
            return self.reader(above, lesson.teacher)
        stage = self.stages.get(CACHE)
        if isinstance(stage, CacheStage):
            return stage.teacher(self.processor)
        return self.given_teacher(self.teachers())

    def _label(self, stage: Stage) -> dict[str, Any]:
        section = self.recipe.teacher.api
        assert section is not None
        progress = not self.recipe.training.get("disable_tqdm")
        raw, labels = self.examples.raw, self.examples.names
        return labelling.label_splits(section, raw, labels, stage, progress)

    def _cache(self, stage: CacheStage) -> dict[str, Any]:
        models = self.teachers()
        first, teacher = next(iter(models.values())), self.given_teacher(models)
        learner = next(o for o in self.lessons.values() if o.teacher == TEACHER)
        args = self.arguments(learner.role, learner.seed, stage.folder)
        data = [self.data[name] for name in (MIXED, "train", "validation") if name in self.data]
        collator = self.collator()
        with contextlib.ExitStack() as lock:
            if stage.path != stage.folder:  # where other runs may write as well
                on_main(lambda: lock.enter_context(held(stage.path)))
            return write(stage, teacher, first, data, collator, self.processor, args, self.say)

    def _train(self, lesson: TrainingJob) -> dict[str, Any]:
        stage, role = self.stages[lesson.key], lesson.role
        model = self.models.learner(lesson.model, lesson.seed)
        teacher = self._teacher_of(lesson)
        args = self.arguments(role, lesson.seed, stage.checkpoints)
        last = get_last_checkpoint(str(stage.checkpoints)) if stage.checkpoints.is_dir() else None
        called = training.callbacks(self.recipe, role, stage.folder)
        peft = self.adapter(lesson)
        trainer = self.make_trainer(
            model, args, lesson.objective, teacher, called, role=role, peft=peft
        )
        began: Any = trainer.model
        before = training.weights_of(began)  # also of a run that is resumed: they are drawn anew
        if last is not None:
            trainer.add_callback(training.Resumed(last))
            self.say(f"{stage.name}: resumes from {Path(last).name}")
        try:
            trainer.train(resume_from_checkpoint=last)
        except CheckpointError as error:
            raise RecipeError(f"{stage.name}: {error}") from error
        training.check_learned(before, began, stage.name)
        seconds = trainer.state.log_history[-1]["seconds"]
        trainer.save_model(str(stage.model))
        if self.state.is_main_process:  # a pickle of paths and settings; the report has them
            (stage.model / "training_args.bin").unlink(missing_ok=True)
            if peft is not None:
                merge(self.models.learner(lesson.model, lesson.seed), stage.model)
        return {
            "seconds": seconds,
            "steps": trainer.state.global_step,
            "processes": self.state.num_processes,
            "examples_seen": examples_seen(
                trainer.state.global_step,
                len(self.trained_on(role)),
                args,
                self.state.num_processes,
            ),
            "validation": self._validated(trainer, role),
            "history": trainer.state.log_history,
        }

    def _evaluate(self) -> dict[str, Any]:
        """All models on the test split: the teacher by itself, the others against the teacher."""
        teachers = self.teachers()
        teacher = self.given_teacher(teachers)
        alone = self.given_teacher(teachers, alone=True)
        measured: dict[str, Any] = {TEACHER: self._judged_teacher(teachers, alone)}
        compared = "agreement" not in self.task.without
        for key in self.lessons:
            if key in teachers and key != TEACHER:  # one of several
                model = teachers[key]
                found = self._judged(model, alone, role=TEACHER)
            elif key != TEACHER:
                model = self.models.trained(str(self.stages[key].model))
                found = self._judged(model, teacher if compared else None)
            else:
                continue
            measured[key] = {**found, **describe_model(model)}
        if self.task.generate is not None:
            report.add_retention(measured, self.metrics)
        return measured

    def _attack(self) -> dict[str, Any]:
        """Robustness of all models, on the main process."""
        assert self.robustness is not None
        if not self.state.is_main_process:
            return {}
        keys = [key for key in self.lessons if key not in self.teacher_keys]
        models: dict[str, Callable[[], PreTrainedModel]] = {
            key: partial(self.models.trained, str(self.stages[key].model)) for key in keys
        }
        models |= {key: partial(lambda one: one, one) for key, one in self.teachers().items()}
        processors = {key: self.view(key.partition("/")[0])[1] for key in models}
        return self.robustness.measure(models, processors, self.stages[ROBUSTNESS].folder)

    def _require(self, results: dict[str, dict[str, Any]]) -> None:
        """Raise if requirements of the recipe are not met, so that nothing is published."""
        section = self.recipe.robustness
        failures = section and Report(dict(results[ROBUSTNESS])).require(section.require)
        if failures:
            raise RequirementError("; ".join(failures))

    def _judged_teacher(
        self, teachers: dict[str, PreTrainedModel], teacher: Teacher
    ) -> dict[str, Any]:
        """The figures of the teacher; those of several, or with another prompt, are measured beside
        one of them, and those of none beside the student before its training."""
        first = next(iter(teachers.values()), None)
        prompted = self.own is not None and self.own.prompt is not None
        if first is not None and len(teachers) == 1 and not prompted:
            return {**self._judged(first, None, role=TEACHER), **describe_model(first)}
        other = first or self.models.learner("student", self.recipe.seed)
        role = TEACHER if first else "student"
        beside = self._judged(other, teacher, role, of_teacher=True)
        found = {
            name.removeprefix("teacher_"): value
            for name, value in beside.items()
            if name.startswith("teacher_")
        }
        sizes = dict.fromkeys(report.SIZES)
        if first is not None:
            sizes = describe_model(first) if len(teachers) == 1 else describe_ensemble(teachers)
        return {**found, **sizes}

    def _judged(
        self,
        model: PreTrainedModel,
        teacher: Teacher | None,
        role: str = "student",
        of_teacher: bool = False,
    ) -> dict[str, Any]:
        """The figures of a model on the test split, with the intervals of its metrics."""
        folder, scorer = self.stages[EVALUATION].folder, self.scorer("test", role, of_teacher)
        args = training.evaluation_arguments(self.recipe, folder, self.watch)
        compute = None if self.task.generate is not None or not scorer.metrics else scorer
        trainer = self.make_trainer(model, args, HardLabels(), teacher, compute=compute, role=role)
        figures = training.figures(trainer.evaluate(self.view(role)[0]["test"]))
        found: dict[str, Any] = {k: v for k, v in figures.items() if k not in self.task.without}
        if self.task.generate is not None:
            found |= scorer.score(*self.task.generate(model, scorer.split, args))
        return found | ({"intervals": scorer.intervals()} if scorer.units else {})

    def _validated(self, trainer: DistillationTrainer, role: str) -> dict[str, float]:
        """The figures of a trained model on the validation split."""
        found = training.validated(trainer, self.watch)
        if self.task.generate is not None:
            scorer, model = self.scorer("validation", role), cast(PreTrainedModel, trainer.model)
            found |= scorer.score(*self.task.generate(model, scorer.split, trainer.args))
        return found
