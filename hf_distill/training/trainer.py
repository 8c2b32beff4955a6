"""`transformers.Trainer`, with a teacher."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer_utils import (
    PREFIX_CHECKPOINT_DIR,
    EvalLoopOutput,
    get_last_checkpoint,
    set_seed,
)

from hf_distill.evaluation.running_metrics import OTHER
from hf_distill.hub import StudentCard
from hf_distill.models.batches import WEIGHTS
from hf_distill.models.modules import ANY, opened, unwrapped
from hf_distill.models.places import task_columns
from hf_distill.models.problems import share_padding
from hf_distill.models.redirect import redirected_forward
from hf_distill.models.sharding import choose_blocks, gathered_parameters, shardable
from hf_distill.models.signals import LOGITS, Needs, Signal
from hf_distill.models.task_model import TaskModel
from hf_distill.objectives.base.objective import Objective, WeightedSum
from hf_distill.objectives.base.schedules import Progress
from hf_distill.teachers import Teacher
from hf_distill.teachers.collating import with_own_inputs
from hf_distill.training.checkpoint_files import SAVING, clear_staging
from hf_distill.training.checkpoints import (
    CheckpointInUse,
    add_to_optimizer,
    attached,
    check_finite,
    complete_load,
    detached,
    finish_checkpoint,
    load_extras,
    plain_state,
    point_to_best,
    remove_others,
    rotate,
    save_extras,
    saves_shards,
    shard_for_evaluation,
)
from hf_distill.training.checks import (
    check_arguments,
    check_gradient_norms,
    check_signature,
    find_teacher,
    warn_of_own_loss,
    with_adapter,
    without_smoothing,
)
from hf_distill.training.component_log import ComponentLog, LossSums
from hf_distill.training.config import DistillationConfig
from hf_distill.training.data_checks import check_batch, check_data
from hf_distill.training.evaluation_loop import (
    Comparison,
    Evaluation,
    predictions_of,
    scheduler_settings,
    teacher_predictions,
    warn_of_entropy_gap,
)
from hf_distill.training.idle import (
    check_batches,
    check_trainable,
    warn_if_nothing_counted,
    warn_of_no_steps,
)
from hf_distill.training.inputs import settle_inputs
from hf_distill.training.model_card import student_card, write_card
from hf_distill.training.publishing import Publisher
from hf_distill.training.reduction import AccumulationWindow, Counts, StepResult, gradient_norms
from hf_distill.training.resuming import (
    check_on_all,
    check_step,
    hold_folder,
    warn_of_later_checkpoints,
)
from hf_distill.training.run_facts import run_facts
from hf_distill.training.safe_state import unpack_states
from hf_distill.training.samples import (
    check_evaluation_data,
    check_labels_count,
    first_batch,
    run_unseen_modules,
)
from hf_distill.training.setup import StepSetup, compare_label_losses, settle_models
from hf_distill.training.step import DistillationStep, StepBatch
from hf_distill.training.trackers import (
    keep_trackers_offline,
    tracker_callbacks,
    write_curves,
)

OPTIONAL = ("shift_labels", "return_loss")
"""Keys of labels that a batch may leave out."""


class DistillationTrainer(Trainer):
    """`transformers.Trainer` with a teacher.

    Each micro-batch goes through a `DistillationStep`: read the batch, ask the teacher, run the
    student and the objective inside the wrapped model's forward, divide sums by the counts of the
    whole accumulation window.

    ``evaluate()`` adds to the metrics of `transformers.Trainer` each component of the objective,
    agreement and both divergences with the teacher, the calibration error, and the teacher's own
    metrics on the same data with the share of them that the student keeps. Sums and counts run over
    the whole set, so that neither batch size nor number of processes changes a figure.
    `compute_metrics` is called twice: with the teacher's predictions, then with the student's. A
    name that it shares with the trainer's figures is its own. ``eval_teacher=False`` leaves the
    teacher out of an evaluation, but for the loss.

    A subclass whose `compute_loss` does not call ``super()`` is evaluated by its own loss, as in
    `transformers.Trainer`, and without what belongs to the objective.

    Args:
        model: The student.
        args: A `DistillationConfig`.
        data_collator: As `transformers.Trainer`, like all that are not listed here.
        teacher_model: Hub id, folder, model, or any `Teacher`; for a `MultiHead` student one
            for each head, by name; None if the objective needs none.
        objective: The objective to minimise; by default that of the scalars of ``args``.
        peft_config: Train an adapter of the student instead of all of it.

    Raises:
        ValueError: anything that cannot work, before training starts, with the remedy.
    """

    config_class: type[DistillationConfig] = DistillationConfig
    args: DistillationConfig
    setup = StepSetup()
    step: DistillationStep
    current_gradient_accumulation_steps = 1
    _compiled: nn.Module | None = None
    _own_loss = False  # whether the last loss came from a subclass alone
    _evaluation: Evaluation | None = None
    _recorder: list[StepResult] | None = None

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: DistillationConfig | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        compute_loss_func: Callable[..., Tensor] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        teacher_model: str | Path | nn.Module | Teacher | Mapping[str, Any] | None = None,
        objective: Objective | WeightedSum | None = None,
        peft_config: PeftConfig | None = None,
    ):
        args = self.config_class("tmp_trainer") if args is None else args
        check_arguments(args, self.config_class, compute_loss_func)
        check_signature(type(self))
        if peft_config is not None:
            set_seed(args.seed)  # of the adapter's initial weights; Trainer sets it after this
            model = with_adapter(model, peft_config)
        self._own_objective = 1.0 * objective if isinstance(objective, Objective) else objective
        self._comparison = Comparison()
        model, self._compiled = opened(model)
        # Seq2SeqTrainer does not take this one
        rare = {"optimizer_cls_and_kwargs": optimizer_cls_and_kwargs}
        with without_smoothing(args, model):
            super().__init__(
                model,
                args,
                data_collator,
                train_dataset,
                eval_dataset,
                processing_class,
                model_init,
                None,
                compute_metrics,
                callbacks,
                optimizers,
                preprocess_logits_for_metrics=preprocess_logits_for_metrics,
                **({} if optimizer_cls_and_kwargs is None else rare),
            )
        keep_trackers_offline(self.args)
        for callback in tracker_callbacks(self.args, self.run_facts, self.callback_handler):
            self.add_callback(callback)
        share_padding(self.processing_class, self._student)
        task_model = TaskModel(self._student, role="student")
        own_labels = [key for key in task_model.task.label_keys if key not in OPTIONAL]
        self.label_names = self.label_names or own_labels
        teacher = find_teacher(teacher_model, task_model, args.teacher_model_init_kwargs)
        if teacher is not None:
            teacher.place(self.accelerator)
        data = self.eval_dataset if self.train_dataset is None else self.train_dataset
        settle_inputs(teacher, task_model, self.processing_class, data)
        self.component_log = ComponentLog(self._over_processes, type(teacher).__name__)
        if isinstance(teacher, TrainerCallback):  # one that follows the training
            self.add_callback(teacher)
        self.step = self.make_step(task_model, teacher)
        collate: Any = self.data_collator
        own: Any = with_own_inputs(collate, teacher, self._kept_columns())
        self.data_collator = own
        self._first_batch = first_batch(self)
        run_unseen_modules(self.step, self._first_batch)
        self._set_objective(warn=True)
        self._direction_known = self._settle_direction()
        self.setup.match_classes(self.step)
        settle_models(self.step, self._first_batch)
        for step, batch in self.step.by_head(self._first_batch):
            check_data(self.train_dataset, batch, step.objective, step.task_model)
            check_batch(batch, step.task_model, step.teacher, step.needs_labels)
        if self.args.reads_data:
            check_labels_count(self, self._first_batch)
        self._bind()
        check_evaluation_data(self)

    # ---- the step ----------------------------------------------------------------------------

    def make_step(self, task_model: TaskModel, teacher: Teacher | None) -> DistillationStep:
        """The step of this trainer; a subclass may return a `DistillationStep` of another class."""
        return DistillationStep(task_model, teacher, self.processing_class)

    @property
    def teacher(self) -> Teacher | None:
        return self.step.teacher if "step" in self.__dict__ else None

    @property
    def training_objective(self) -> WeightedSum:
        """The objective that is minimised (``self.objective`` is the score of a search)."""
        return self.step.objective

    @property
    def projections(self) -> nn.ModuleDict:
        """The learned parts of the objective."""
        return self.step.projections

    @property
    def _student(self) -> nn.Module:
        student = self.model
        if student is None:
            raise ValueError("Expected a model, got None. Pass model=… or model_init=….")
        return student

    def _set_objective(self, warn: bool = False) -> None:
        """Read the objective from the arguments anew: a hyper-parameter search changes them."""
        sharded = self.is_fsdp_enabled or is_deepspeed_zero3_enabled()
        self.setup.set_objective(self.step, self.args, self._own_objective, sharded, warn)
        check_gradient_norms(self.args.log_gradient_norms, sharded)

    def _bind(self) -> None:
        """Build what belongs to this very student: projections, copies of its weights."""
        share_padding(self.processing_class, self._student)
        self.step.task_model = TaskModel(self._student, role="student")
        settle_models(self.step, self._first_batch)
        if self.accelerator.is_fsdp2:
            choose_blocks(self.accelerator.state.fsdp_plugin, self._student)
        self.setup.keep_parameters(self.step, self.get_decay_parameter_names, self.args.device)
        with gathered_parameters(self._student.parameters()):
            if self.args.check_label_loss:
                compare_label_losses(self.step, self._first_batch)
            self.setup.build(self.step, self._first_batch, self.args.device, self.args.seed)

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Mapping[str, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The objective on one micro-batch.

        Args:
            model: The student, wrapped or not.
            inputs: The batch, on the device.
            return_outputs: Also return the student's outputs.
            num_items_in_batch: The counts by unit (`hf_distill.models.signals.Unit`), summed over
                the processes: of the accumulation window (see `training_step`), or in an evaluation
                of the batch. None: those that the trainer counted itself.
        """
        result = self._run_step(model, inputs, return_outputs, num_items_in_batch)
        if self._student.training:
            self._add_to_log(result)
        elif self._evaluation is not None:
            self._evaluation.add(result)
        if self._recorder is not None:
            self._recorder.append(result)
        return (result.loss, result.outputs) if return_outputs else result.loss

    def _run_step(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool, counts: Any
    ) -> StepResult:
        """One micro-batch; the student and the objective run inside the wrapped model's forward."""
        step, student, training = self.step, self._callable_student(), self._student.training
        evaluation = None if training else self._evaluation
        counts, parts = self._counted(counts, training)
        lazy = step.lazy_logits and not (return_outputs or self._logs_gradients())
        measured = evaluation is not None and self.args.eval_teacher
        more = step.task_model.logit_needs if measured else None
        batch = step.prepare(inputs, self._real_rows(inputs))
        teacher = step.ask_teacher(batch, step.teacher_needs(more, lazy_logits=lazy))
        results: list[StepResult] = []

        def run() -> tuple[Tensor, Mapping[str, Tensor], Any]:
            result = step.student_loss(
                model if _is_compiled(model) else student,
                batch,
                teacher,
                counts,
                scale=1.0 if counts is None else self._loss_scale(),
                parts=parts,
                progress=self._progress(),
                lazy_logits=lazy,
                with_outputs=not training,
                observer=None if evaluation is None else evaluation.metrics.add_signals,
                call_again=student,
            )
            results.append(self._follow(result) if training else result)
            return result.loss, result.components, result.outputs if return_outputs else None

        wrapped = model is not self.model and not _is_compiled(model)
        # DDP and FSDP look at what a forward returns, and may return other tensors for it
        found = redirected_forward(model, self._student, run) if wrapped else run()
        loss, components, outputs = found
        return dataclasses.replace(results[0], loss=loss, components=components, outputs=outputs)

    def _callable_student(self) -> nn.Module:
        """The student, or what `torch.compile` made of it."""
        student = self._student
        if self._compiled is not None and unwrapped(self._compiled) is unwrapped(student):
            return self._compiled
        return student

    def _add_to_log(self, result: StepResult) -> None:
        """Add a micro-batch to the running sums."""
        step, sums = self.state.global_step, self.component_log.sums
        if step == 1 and sums.values:  # report at once what is broken from the start
            self.component_log.mean(step)
        sums.add(step, result)

    def _follow(self, result: StepResult) -> StepResult:
        """Update weights that follow the losses, within the wrapped model's forward."""
        self.step.observe(result, self.accelerator.sync_gradients, self._over_processes)
        if not self._logs_gradients():
            return result
        parameters = [p for p in self._student.parameters() if p.requires_grad]
        norms = gradient_norms(result.terms, result.items.counts(), parameters)
        return dataclasses.replace(result, gradient_norms=norms)

    def _logs_gradients(self) -> bool:
        """Tell whether this step's gradient norms are logged: the last step before a log."""
        every = max(1, int(self.state.logging_steps))
        due = (self.state.global_step + 1) % every == 0 and self.accelerator.sync_gradients
        return self.args.log_gradient_norms and due

    def _progress(self) -> Progress:
        state = self.state
        return Progress(state.global_step, state.epoch or 0.0, state.max_steps)

    def _real_rows(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """False for the examples that are repeated to fill the last batch of an evaluation."""
        state = self.accelerator.gradient_state
        if self._student.training or self.accelerator.num_processes == 1:
            return None
        if not state.end_of_dataloader or state.remainder <= 0:
            return None
        task_model = self.step.task_model
        batch = task_model.task.share(inputs, task_model.model)
        rows = task_model.items(batch).masks["samples"]
        first = self.accelerator.process_index * len(rows)
        return torch.arange(first, first + len(rows), device=rows.device) < state.remainder

    # ---- columns and models ------------------------------------------------------------------

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            known: Any = self._signature_columns
            read = self._columns() | task_columns(self._student)
            read |= {WEIGHTS, *self.step.task_model.label_keys}
            read |= (self._own_objective or self.args.objective()).columns
            self._signature_columns = known + sorted(read - set(known))

    def _kept_columns(self) -> set[str] | None:
        """The columns that the student's collator receives; None: all of the data."""
        task_model = self.step.task_model
        if not self.args.remove_unused_columns or task_model.takes_all:
            return None
        return task_model.columns | task_model.label_keys

    def _columns(self) -> set[str]:
        """The columns that both models read, without labels."""
        theirs = set() if self.teacher is None else self.teacher.columns()
        return self.step.task_model.columns | theirs

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        keep = ANY in self._columns()
        return dataset if keep else super()._remove_unused_columns(dataset, description)

    def _get_collator_with_removed_columns(self, collator: Any, description: Any = None) -> Any:
        keep = ANY in self._columns()
        return collator if keep else super()._get_collator_with_removed_columns(collator)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        model, self._compiled = opened(super().call_model_init(trial))
        assert model is not None
        return model

    # ---- training ----------------------------------------------------------------------------

    def _inner_training_loop(self, *args: Any, **options: Any) -> Any:
        self._set_objective()
        if self._student is not self.step.task_model.given:  # model_init made a new student
            self._bind()
        if self.teacher is not None:
            self.teacher.place(self.accelerator)
        folder = options.get("resume_from_checkpoint")
        self.component_log.clear()
        if folder is not None:
            self._load_extras(folder)
            self.component_log.load(Path(folder), self.accelerator)
        self.window.clear()
        check_trainable(self._student, self.step.learned)
        check_batches(self.args, self.train_dataset)
        warn_of_no_steps(self.args)
        try:
            with attached(self.model, self.projections):
                output = super()._inner_training_loop(*args, **options)
        except BaseException:  # an interrupt, too: what was logged until then is of use
            write_curves(self.callback_handler, self.args, self.state)
            raise
        warn_if_nothing_counted(self.step.objective, self.window.total)
        return output._replace(training_loss=output.metrics["train_loss"])

    def _maybe_log_save_evaluate(self, *args: Any, **options: Any) -> None:
        if self.window.stepped and not self.window.objective_ran:  # once
            self.window.objective_ran = self._own_loss = True
            warn_of_own_loss(type(self).__name__, self.step.objective, self.teacher)
        super()._maybe_log_save_evaluate(*args, **options)

    # ---- evaluation --------------------------------------------------------------------------

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        if not self.is_in_train:
            self._set_objective()
        compute, preprocess = self.compute_metrics, self.preprocess_logits_for_metrics
        evaluation = self._evaluation = Evaluation.of(self, metric_key_prefix)
        if compute is not None:
            self.compute_metrics = evaluation.compute(compute, self._comparison)
        if preprocess is not None and evaluation.both:
            self.preprocess_logits_for_metrics = evaluation.preprocess(preprocess)
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            return evaluation.finish(output, self._comparison, self.accelerator)
        finally:
            self._evaluation = None
            self.compute_metrics, self.preprocess_logits_for_metrics = compute, preprocess

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **options: Any,
    ) -> tuple[Tensor | None, Any, Any]:
        inputs = self._prepare_inputs(inputs)
        labels: Any = tuple(inputs.get(key) for key in self.label_names)
        labels = None if not labels or any(label is None for label in labels) else labels
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs, teacher = self._evaluate_batch(model, inputs, not prediction_loss_only)
        if prediction_loss_only:
            return loss, None, None
        task_model = self.step.task_model
        ours = predictions_of(task_model, outputs, ignore_keys)
        if self._evaluation is not None and self._evaluation.both:
            ours = (ours, teacher_predictions(task_model, teacher, inputs, ours))
        return loss, ours, labels[0] if labels is not None and len(labels) == 1 else labels

    def _evaluate_batch(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool
    ) -> tuple[Tensor | None, Any, Signal | None]:
        """The loss, the student's outputs and the teacher's signal; no loss of unlabelled data."""
        step, evaluation = self.step, self._evaluation
        batch = step.task_model.task.share(inputs, step.task_model.model)
        items, loss, outputs, teacher = step.task_model.items(batch), None, None, None
        ours: StepResult | None = None
        if not (not items.labelled and (step.needs_labels or self._own_loss)):
            counts = Counts({unit: n * self._loss_scale() for unit, n in items.counts().items()})
            compute: Any = self.compute_loss
            with self._recording() as results:
                found = compute(model, dict(inputs), return_outputs, num_items_in_batch=counts)
            loss, outputs = found if isinstance(found, tuple) else (found, None)
            loss = loss.detach().mean()
            ours = results[-1] if results else None
            self._own_loss = ours is None
        if ours is not None:
            teacher = ours.teacher
            if evaluation is not None and loss is not None:
                rows = step.task_model.items(batch, self._real_rows(inputs)).masks["samples"]
                evaluation.add_other(loss, ours.loss.detach(), rows)
        elif evaluation is not None and evaluation.both and return_outputs:
            teacher = step.ask_teacher(StepBatch(batch, items), LOGITS)
        if outputs is None and return_outputs:
            outputs, _ = step.task_model.ask(model, batch, Needs(), items)
        return loss, outputs, teacher

    @contextmanager
    def _recording(self) -> Iterator[list[StepResult]]:
        """Collect the results of `compute_loss`, which a subclass may or may not call."""
        before, self._recorder = self._recorder, []
        try:
            yield self._recorder
        finally:
            self._recorder = before

    def _settle_direction(self) -> bool:
        """Set the direction of ``metric_for_best_model``, unless the arguments do."""
        sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else ()
        heads = self.step.task_model.heads
        found = [n for step, _ in self.step.by_head() for n, _, _ in step.objective.named()]
        own = [n for n, _, _ in self.step.objective.named() if n not in heads]
        known = self.args.settle_direction((OTHER, *own, *found), (*sets, *heads))
        warn_of_entropy_gap(self.args)
        return known

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """As in `transformers`; one that follows a metric follows it the way it is better."""
        given = self.args.lr_scheduler_kwargs
        if self._direction_known:
            self.args.lr_scheduler_kwargs = scheduler_settings(self.args)
        try:
            return super().create_scheduler(num_training_steps, optimizer)
        finally:
            self.args.lr_scheduler_kwargs = given

    def hyperparameter_search(
        self, hp_space: Any = None, compute_objective: Any = None, *rest: Any, **options: Any
    ) -> Any:
        """As in `transformers`; the default score sums what `compute_metrics` gives, no more."""
        score = self._comparison.score if compute_objective is None else compute_objective
        return super().hyperparameter_search(hp_space, score, *rest, **options)

    # ---- accumulation ------------------------------------------------------------------------

    @cached_property
    def window(self) -> AccumulationWindow:
        """Counts of the items of the present accumulation window."""
        return AccumulationWindow()

    def _get_num_items_in_batch(  # type: ignore[override]
        self, batch_samples: list, device: torch.device
    ) -> Counts | None:
        """Count the items of every unit over the accumulation window, and over all ranks."""
        if not batch_samples:
            return None
        counts = [self.step.task_model.items(batch).counts() for batch in batch_samples]
        return self.window.count(counts, device, self._over_ranks)

    def _over_ranks(self, counts: Tensor) -> Tensor:
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, "sum")
        tensor_parallel = self.get_tp_size()  # these ranks hold the same batch
        return counts / tensor_parallel if tensor_parallel > 1 else counts

    @property
    def loss_is_scaled_for_ga(self) -> bool:
        """False in `training_step`, True for a caller of `compute_loss` without it; or the value
        that a subclass sets."""
        return self.window.is_scaled

    @loss_is_scaled_for_ga.setter
    def loss_is_scaled_for_ga(self, value: bool | None) -> None:
        self.window.scaled = value

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """One micro-batch, whose loss is divided by the number of micro-batches of the window.

        `compute_loss` therefore receives the counts of the window divided by that number, and a
        term that a subclass adds may be a mean over the batch or a sum over these counts.
        """
        with self.window.step():
            if num_items_in_batch is not None and not self.loss_is_scaled_for_ga:
                parts = self.current_gradient_accumulation_steps
                num_items_in_batch = Counts(num_items_in_batch).over(parts)
            return super().training_step(model, inputs, num_items_in_batch)

    def _counted(self, given: Any, training: bool) -> tuple[Mapping[str, Tensor] | None, int]:
        """The divisor of a micro-batch's loss, and the further one of its components."""
        self.window.objective_ran |= training
        if not (training and self.is_in_train):
            return given, 1
        parts = self.current_gradient_accumulation_steps
        return self.window.divisor(given, self.loss_is_scaled_for_ga, parts)

    def _loss_scale(self) -> float:
        """Gradients are averaged over ranks; sums over global counts must be added up."""
        if not self.args.average_tokens_across_devices:
            return 1.0
        return self.accelerator.num_processes / self.get_tp_size()

    def _over_processes(self, values: Tensor) -> Tensor:
        """Reduce values over all processes as the losses are: a sum, or a mean."""
        summed = self.args.average_tokens_across_devices
        reduced: Tensor = self.accelerator.reduce(values, "sum" if summed else "mean")
        return reduced

    # ---- logging -----------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self.component_log.figures(self.state.global_step))
        if "train_loss" in logs and self.component_log.resumed:  # else of the steps since then
            total: Any = self._total_loss_scalar
            logs["train_loss"] = total / self.state.global_step
        super().log(logs, start_time)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.component_log.save(Path(output_dir), LossSums.of(self), self.accelerator)

    def _add_resumed_losses(self) -> None:
        losses = self.component_log.resumed_losses()
        if losses is not None:
            losses.restore(self)

    def _run_epoch(self, *args: Any, **options: Any) -> Any:
        self._add_resumed_losses()
        return super()._run_epoch(*args, **options)

    # ---- checkpoints -------------------------------------------------------------------------

    @cached_property
    def _checkpoint(self) -> CheckpointInUse:
        return CheckpointInUse()

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """As in `transformers.Trainer`; a checkpoint is first compared with the list of its files,
        and a run that saves locks its output folder until it ends.

        Raises:
            FolderError: another run saves in the output folder.
            CheckpointError: a file of the checkpoint is missing or was changed; the message names
                it, and a remedy. Optimizer, schedule and random states may be missing with
                ``save_only_model``.
        """
        found: Any = resume_from_checkpoint
        saves = self.args.save_strategy != "no" and trial is None
        folder, self._checkpoint.step = Path(str(self.args.output_dir)), None
        with hold_folder(folder, saves and self.args.should_save, self.accelerator):
            if found is True and folder.is_dir():
                found = get_last_checkpoint(str(folder))
            if isinstance(found, str | os.PathLike):
                anew = self.args.save_only_model
                self._checkpoint.step = check_on_all(Path(found), self.accelerator, anew=anew)
            if saves and self.is_world_process_zero():
                warn_of_later_checkpoints(folder, self._checkpoint.step or 0)
            found = resume_from_checkpoint if found is None else found
            return super().train(found, trial, ignore_keys_for_eval)

    def _init_training_state(self, *args: Any, **options: Any) -> Any:
        begun = super()._init_training_state(*args, **options)
        check_step(self._checkpoint.step, self.state.global_step)
        return begun

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Add the projections to an optimizer that was made before there were any."""
        brought = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if brought:
            add_to_optimizer(optimizer, self.projections.parameters())
        return optimizer

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> Any:
        if not training and self.accelerator.is_fsdp2 and not self.accelerator._models:
            with attached(self.model, self.projections):
                model = shard_for_evaluation(self.accelerator, model)
        return super()._wrap_model(model, training, dataloader)

    def _prepare_for_training(self, *args: Any, **options: Any) -> Any:
        if not self.accelerator.is_fsdp2:
            return super()._prepare_for_training(*args, **options)
        with shardable(self.accelerator.state.fsdp_plugin, self._student):
            return super()._prepare_for_training(*args, **options)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in `transformers.Trainer`; under FSDP with SHARDED_STATE_DICT the whole student too,
        except in checkpoints that are not pushed."""
        shards_suffice = self._checkpoint.staging is not None and not self.args.push_to_hub
        if saves_shards(self.accelerator) and not shards_suffice:
            state = self.accelerator.get_state_dict(self.model)  # all processes take part
            if self.args.should_save:
                self._save(output_dir, state)
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        state_dict = plain_state(self.model, state_dict)
        with detached(self.model):
            super()._save(output_dir, state_dict)

    def _get_output_dir(self, trial: Any) -> str:
        staging = self._checkpoint.staging
        return super()._get_output_dir(trial) if staging is None else str(staging)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save under another name and rename, so that every ``checkpoint-N`` is complete."""
        step, writes = self.state.global_step, self.args.should_save
        self.component_log.mean(step)  # broken weights must not replace a good checkpoint
        check_finite(self._student, self.accelerator, step)
        run_dir = Path(self._get_output_dir(trial))
        place = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        staged = run_dir / SAVING / place.name
        if writes:
            clear_staging(staged.parent)
        self.accelerator.wait_for_everyone()
        with self._checkpoint.writing(staged.parent):
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        point_to_best(self.state, run_dir, place.name)
        with gathered_parameters(self.projections.parameters()):
            save_extras(staged, self.step.tensors(), writes)
        if writes:
            finish_checkpoint(staged, place, self.state)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(place))
        if writes:
            rotate(run_dir, self.args.save_total_limit, self.state)

    def _load_extras(self, folder: str) -> None:
        with gathered_parameters(self.projections.parameters(), changed=True):
            load_extras(folder, self.step.tensors())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._checkpoint.source = resume_from_checkpoint
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = self._checkpoint.source = str(self.state.best_model_checkpoint)
        anew = self.args.save_only_model
        check_on_all(Path(best), self.accelerator, states=False, anew=anew)
        super()._load_best_model()
        self._load_extras(best)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        complete_load(load_result, self.model, self._checkpoint.source)
        super()._issue_warnings_after_load(load_result)

    def _finalize_training(self, trial: Any, *args: Any, **options: Any) -> Any:
        """As in `Trainer`; ``save_total_limit=1`` removes checkpoints only, where `Trainer` removes
        every folder whose name begins with ``checkpoint``."""
        self._add_resumed_losses()  # of a run that was at its end
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            output = super()._finalize_training(trial, *args, **options)
        finally:
            self.args.save_total_limit = limit
        best = self.state.best_model_checkpoint
        if self.args.should_save and limit == 1 and best is not None:
            remove_others(Path(self._get_output_dir(trial)), best)
        return output

    # ---- publishing --------------------------------------------------------------------------

    @cached_property
    def _publisher(self) -> Publisher:
        return Publisher(self.args)

    def student_card(self) -> StudentCard:
        """Fill a model card with the facts of this run; edit it, then pass it to `hub.write`."""
        return student_card(self, self.step)

    def run_facts(self) -> dict[str, Any]:
        """Metadata of this run for trackers: plain values, without local paths and tokens."""
        return run_facts(self.step)

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the student's card to ``output_dir/README.md``; arguments as in `Trainer`.

        Values that the Hub does not accept are corrected (``en_XX`` to ``en``, ``Apache-2.0`` to
        ``apache-2.0``), replaced by facts of the run, or left out, with one warning that lists
        them. `hf_distill.hub.write`, ``hf-distill card check`` and ``hf-distill push`` raise.
        """
        given = {name: value for name, value in locals().items() if name != "self"}
        if self.is_world_process_zero():
            write_card(self.student_card, Path(str(self.args.output_dir)), given)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        create_pr: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Publish the plain student with its card, and nothing else; arguments as in `Trainer`.

        ``create_pr`` opens a pull request against main instead.

        Returns:
            The commit, or with ``blocking=False`` a future; None on the other processes.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        repo_id = str(self.hub_model_id)
        job = self._publisher.push(repo_id, commit_message, token, revision, create_pr)
        return job.result() if blocking else job

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._checkpoint.staging is not None:  # the checkpoint is not complete yet
            return
        if self.is_world_process_zero() and self._publisher.pushes_checkpoints:
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            self.create_model_card()
            folder, step = Path(checkpoint_folder), self.state.global_step
            self._publisher.push_checkpoint(str(self.hub_model_id), folder, step)
            self.push_in_progress = self._publisher.queue  # `Trainer` waits for it at the end

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            unpack_states(checkpoint)  # one from the Hub
        super()._load_optimizer_and_scheduler(checkpoint)


def _is_compiled(model: nn.Module) -> bool:
    inner = getattr(model, "_orig_mod", None)
    return inner is not None and not isinstance(inner, DistributedDataParallel)
