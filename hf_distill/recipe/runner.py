"""Runs a recipe: teacher, baseline, student, evaluation, report, card, push."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_distill.config import DistillationConfig
from hf_distill.heads import describe_model
from hf_distill.hub.push import push_folder
from hf_distill.objectives import HardLabels, objective_from
from hf_distill.recipe import report
from hf_distill.recipe.casting import RecipeError
from hf_distill.recipe.examples import Examples, fingerprints, load_examples, prepared
from hf_distill.recipe.models import Models
from hf_distill.recipe.publish import FINAL, publish
from hf_distill.recipe.schema import ROLES, Recipe
from hf_distill.recipe.stages import Stage, run_stage, versions
from hf_distill.recipe.tasks import compute_metrics, load_processor, recipe_task
from hf_distill.recipe.training import arguments, callbacks, figures, validated
from hf_distill.terms import Sum
from hf_distill.trainer import DistillationTrainer

NEUTRAL = (
    *("alpha", "temperature", "beta", "gamma"),  # part of the objective, which counts by itself
    *("report_to", "run_name", "project", "disable_tqdm", "log_level", "save_total_limit"),
)
"""Training arguments that a finished stage does not depend on."""


class Run:
    """A recipe with its data and models at hand. Every process of a launch makes one.

    Args:
        recipe: The recipe.
        say: Prints a line.

    Raises:
        RecipeError: anything in the recipe that cannot work, before anything is trained.
    """

    def __init__(self, recipe: Recipe, say: Callable[[str], None] = print):
        self.recipe, self.task = recipe, recipe_task(recipe)
        self.root = Path(recipe.output_dir)
        student = arguments(self.recipe, "student", recipe.student_seeds[0], self.root)
        for role in ROLES:  # wrong arguments are told now, not after an hour
            arguments(self.recipe, role, recipe.seed, self.root)
        self.state = PartialState()
        self.say = say if self.state.is_main_process else lambda line: None
        with self.state.main_process_first():
            self.examples: Examples = load_examples(recipe)
            self.models = Models(recipe, self.examples.labels)
            self.processor = load_processor(recipe, self.models.paths.get("teacher"))
            self.data = prepared(self.examples, recipe, self.processor)
        rows = recipe.objective
        self.objective: Sum = student.objective() if rows is None else objective_from(rows)
        self.stages = self._stages()

    # ---- what there is to do -------------------------------------------------------------------

    def _stages(self) -> dict[str, Stage]:
        """The stages by name, each with exactly what it depends on."""
        data, models = fingerprints(self.data, self.processor), self.models.identities()
        splits = {name: data[name] for name in ("train", "validation")}
        common = {
            "task": self.recipe.task,
            "labels": self.examples.labels,
            "data": splits,
            "versions": versions(),
        }
        stages: dict[str, Stage] = {}

        def add(key: str, role: str, seed: int, **inputs: Any) -> None:
            training = self.recipe.training_of(role)
            training = {k: v for k, v in training.items() if k not in NEUTRAL}
            inputs = {**common, **inputs, "training": training, "seed": seed}
            stages[key] = Stage(key, self.root / key, inputs)

        if self.recipe.teacher.fine_tuned:
            teacher = {"given": models["teacher"]}
        else:
            add("teacher", "teacher", self.recipe.seed, model=models["teacher"])
            teacher = {"trained": stages["teacher"].fingerprint}
        objective = [
            {key: value for key, value in row.items() if key != "citation"}
            for row in self.objective.describe()
        ]
        hard = self._hard_labels().describe()
        for seed in self.recipe.student_seeds:
            key = f"baseline/seed-{seed}"
            add(key, "baseline", seed, model=models["student"], objective=hard)
            key = f"student/seed-{seed}"
            model = models["student"]
            add(key, "student", seed, model=model, objective=objective, teacher=teacher)
        inputs = {
            "models": {key: stage.fingerprint for key, stage in stages.items()} | teacher,
            "data": data["test"],
            "versions": versions(),
        }
        stages["evaluation"] = Stage("evaluation", self.root / "evaluation", inputs)
        return stages

    def _hard_labels(self) -> HardLabels:
        """The labels' part of the objective (label smoothing, class weights), for the baseline."""
        own = [part for _, part in self.objective.parts if isinstance(part, HardLabels)]
        return own[0] if own else HardLabels()

    # ---- doing it ------------------------------------------------------------------------------

    def __call__(self) -> Path:
        """Do all that is not done yet.

        Returns:
            The folder of the finished student, ready to be pushed.
        """
        self.check()
        results = {}
        for key, stage in self.stages.items():
            role, _, seed = key.partition("/seed-")
            if key == "evaluation":
                results[key] = run_stage(stage, self._evaluate, self.say)
            else:
                number = int(seed) if seed else self.recipe.seed
                results[key] = run_stage(stage, self._training(role, number, stage), self.say)
        final = self.root / FINAL
        if self.state.is_main_process:
            self._report(results)
            if self.recipe.push_to_hub:
                commit = push_folder(
                    final, str(self.recipe.hub_model_id), private=self.recipe.hub_private_repo
                )
                self.say(f"pushed: {commit.commit_url}")
        self.state.wait_for_everyone()
        return final

    def _report(self, results: dict[str, dict[str, Any]]) -> None:
        """Cheap, so done every time: a change of how things are shown repeats no training."""
        outcome = report.Outcome(
            self.recipe, results, self.objective, self.examples.sizes, self.task.metric
        )
        facts = report.summary(outcome)
        report.write(facts, self.root)
        final = publish(self.recipe, self.task, self.examples, facts, self.root)
        self.say(f"\n{report.table(facts)}\n\n{report.verdict(facts)}")
        self.say(f"report: {self.root / 'report.md'}; student with its card: {final}")

    def teacher(self) -> PreTrainedModel:
        """The fine-tuned teacher."""
        stage = self.stages.get("teacher")
        return self.models.trained(
            str(stage.model) if stage is not None else self.models.paths["teacher"]
        )

    def _training(self, role: str, seed: int, stage: Stage) -> Callable[[], dict[str, Any]]:
        def work() -> dict[str, Any]:
            if role == "teacher":
                return self._train(role, seed, stage, self.models.teacher(seed), HardLabels())
            student = self.models.student(seed)
            if role == "baseline":
                return self._train(role, seed, stage, student, self._hard_labels())
            return self._train(role, seed, stage, student, self.objective, self.teacher())

        return work

    def _train(
        self,
        role: str,
        seed: int,
        stage: Stage,
        model: PreTrainedModel,
        objective: Sum | HardLabels,
        teacher: PreTrainedModel | None = None,
    ) -> dict[str, Any]:
        args = arguments(self.recipe, role, seed, stage.checkpoints)
        trainer = self._trainer(model, args, objective, teacher, callbacks(self.recipe, role))
        last = get_last_checkpoint(str(stage.checkpoints)) if stage.checkpoints.is_dir() else None
        if last is not None:
            self.say(f"{stage.name}: resumes from {Path(last).name}")
        trainer.train(resume_from_checkpoint=last)
        seconds = trainer.state.log_history[-1]["seconds"]
        trainer.save_model(str(stage.model))
        if self.state.is_main_process:  # a pickle of paths and settings; the report has them
            (stage.model / "training_args.bin").unlink(missing_ok=True)
        return {
            "seconds": seconds,
            "steps": trainer.state.global_step,
            "processes": self.state.num_processes,
            "validation": validated(trainer, self.task.metric),
            "history": trainer.state.log_history,
        }

    def _trainer(
        self,
        model: PreTrainedModel,
        args: DistillationConfig,
        objective: Sum | HardLabels,
        teacher: PreTrainedModel | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> DistillationTrainer:
        try:
            return DistillationTrainer(
                model=model,
                args=args,
                teacher_model=teacher,
                objective=objective,
                train_dataset=self.data["train"],
                eval_dataset=self.data["validation"],
                processing_class=self.processor,
                data_collator=self.task.collator(self.processor),
                compute_metrics=compute_metrics(self.task),
                callbacks=list(callbacks),
            )
        except ValueError as error:
            raise RecipeError(str(error)) from error

    def _evaluate(self) -> dict[str, Any]:
        """All models on the test split: the teacher by itself, the others against the teacher."""
        teacher, stage = self.teacher(), self.stages["evaluation"]
        # As plain transformers will run the student, and on every example.
        whole = {"bf16": False, "fp16": False, "dataloader_drop_last": False}
        measured: dict[str, Any] = {}
        for key in ("teacher", *(k for k in self.stages if "/" in k)):
            itself = key == "teacher"
            model = teacher if itself else self.models.trained(str(self.stages[key].model))
            args = arguments(self.recipe, "student", self.recipe.seed, stage.folder, **whole)
            trainer = self._trainer(model, args, HardLabels(), None if itself else teacher)
            metrics = trainer.evaluate(self.data["test"])
            measured[key] = {
                **figures(metrics),
                **describe_model(model),
            }
        return measured

    # ---- before doing it -----------------------------------------------------------------------

    def check(self) -> None:
        """Put the student's trainer together once, before the teacher takes its hours.

        Raises:
            RecipeError: an objective, layer map or model that does not fit.
        """
        todo = [k for k, s in self.stages.items() if k.startswith("student") and not s.results()]
        if not todo:
            return
        seed, given = self.recipe.seed, self.recipe.teacher.fine_tuned
        teacher = self.teacher() if given else self.models.teacher(seed)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an untrained teacher has nothing to teach yet
            args = arguments(self.recipe, "student", seed, Path(folder))
            self._trainer(self.models.student(seed), args, self.objective, teacher)

    def plan(self) -> str:
        """What would be done: models, steps, and what is done already."""
        self.check()
        lines = [f"{name}: {size:,} examples" for name, size in self.examples.sizes.items()]
        sizes = {
            "teacher": self.models.teacher(self.recipe.seed).num_parameters(),
            "student": self.models.student(self.recipe.seed).num_parameters(),
        }
        lines += [f"{name}: {size:,} parameters" for name, size in sizes.items()]
        for key, stage in self.stages.items():
            what = "done before" if stage.results() is not None else "to do"
            role = key.split("/")[0]
            if role in ROLES:
                what += f", {self._steps(role):,} steps"
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
