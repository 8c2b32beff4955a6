"""`transformers.Trainer`, with a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_utils import set_seed

from hf_distill.hub import StudentCard
from hf_distill.models.batch_checks import check_teacher_signal, check_weights
from hf_distill.models.batches import WEIGHTS
from hf_distill.models.class_order import align_classes
from hf_distill.models.modules import ANY, opened, unwrapped
from hf_distill.models.places import task_columns
from hf_distill.models.problems import share_padding
from hf_distill.models.redirect import redirected_forward
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.models.task_model import TaskModel
from hf_distill.objectives.base.models_in_step import ModelsInStep
from hf_distill.objectives.base.objective import Context, Objective, Term, WeightedSum
from hf_distill.objectives.base.schedules import Progress
from hf_distill.teachers import Teacher
from hf_distill.training.checkpoints import Checkpoints
from hf_distill.training.checks import (
    check_arguments,
    check_batch,
    check_data,
    check_labels_of,
    check_signature,
    find_teacher,
    warn_of_own_loss,
    with_adapter,
    without_smoothing,
)
from hf_distill.training.chunked import StepInputs, reduce_chunked
from hf_distill.training.config import DistillationConfig
from hf_distill.training.evaluation_loop import Measuring
from hf_distill.training.idle import (
    check_batches,
    check_trainable,
    warn_if_nothing_counted,
    warn_of_no_steps,
)
from hf_distill.training.model_card import student_card, write_card
from hf_distill.training.publishing import Publisher
from hf_distill.training.reduction import gradient_norms, reduce
from hf_distill.training.run_facts import run_facts
from hf_distill.training.safe_state import unpack_states
from hf_distill.training.setup import Setup
from hf_distill.training.tracking import Tracking, scheduled_values
from hf_distill.training.windows import Windows

OPTIONAL = ("shift_labels", "return_loss")
"""Keys of labels that a batch may leave out."""


class DistillationTrainer(Tracking, Setup, Checkpoints, Windows, Measuring):
    """`transformers.Trainer` with a teacher.

    One step: count the items of the whole accumulation window; ask the teacher; run the student,
    the projections and the objective inside the wrapped model's forward; divide sums by counts.

    Args:
        model: The student.
        args: A `DistillationConfig`.
        teacher_model: Hub id, folder, model, or any `Teacher`; None if the objective needs none.
        objective: What to minimise; by default what the scalars of ``args`` say.
        peft_config: Train an adapter of the student instead of all of it.
        *positional: As `transformers.Trainer`, in the same order.
        **options: As `transformers.Trainer`: train_dataset, eval_dataset, processing_class, ….

    Raises:
        ValueError: anything that cannot work, before training starts, with the remedy.
    """

    config_class: type[DistillationConfig] = DistillationConfig
    args: DistillationConfig
    _compiled: nn.Module | None = None
    _objective_ran = False

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: DistillationConfig | None = None,
        *positional: Any,
        teacher_model: str | Path | nn.Module | Teacher | None = None,
        objective: Objective | WeightedSum | None = None,
        peft_config: PeftConfig | None = None,
        **options: Any,
    ):
        args = self.config_class("tmp_trainer") if args is None else args
        check_arguments(args, self.config_class, options)
        check_signature(type(self))
        if peft_config is not None:
            set_seed(args.seed)  # of the adapter's initial weights; Trainer sets it after this
            model = with_adapter(model, peft_config)
        self.teacher = None
        self._own_objective = 1.0 * objective if isinstance(objective, Objective) else objective
        model, self._compiled = opened(model)
        with without_smoothing(args, model):
            super().__init__(model, args, *positional, **options)
        share_padding(self.processing_class, self._student)
        self._task_model = TaskModel(self._student, role="student")
        own_labels = [key for key in self._task_model.task.label_keys if key not in OPTIONAL]
        self.label_names = self.label_names or own_labels
        self.teacher = find_teacher(teacher_model, self._task_model, args.teacher_model_init_kwargs)
        if self.teacher is not None:
            self.teacher.place(self.accelerator)
        if isinstance(self.teacher, TrainerCallback):  # one that follows the training
            self.add_callback(self.teacher)
        self._look()
        self._look_at_modules()
        self._refresh_objective()
        self._settle_direction()
        self._match()
        self._settle()
        check_data(self.train_dataset, self._first_batch, self.training_objective, self._task_model)
        check_batch(self._first_batch, self._task_model, self.teacher, self._learns_labels)
        self._look_for_labels()
        self._bind()
        self._look_at_evaluation()

    # ---- one step ----------------------------------------------------------------------------

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            known: Any = self._signature_columns
            read = self._columns() | task_columns(self._student)
            read |= {WEIGHTS, *self._task_model.label_keys}
            read |= (self._own_objective or self.args.objective()).columns
            self._signature_columns = known + sorted(read - set(known))

    def _columns(self) -> set[str]:
        """List what both models read, without labels."""
        return self._task_model.columns | (
            set() if self.teacher is None else self.teacher.columns()
        )

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
            num_items_in_batch: The counts by unit (`Unit`), summed over the
                processes: of the accumulation window (see `training_step`), or in an evaluation of
                the batch. None: those that the trainer counted itself.
        """
        batch = self._task_model.task.share(inputs, self._task_model.model)
        items = self._task_model.items(batch, self._real_rows(batch))
        if self._learns_labels:
            check_labels_of(batch, items, self._task_model)
        check_weights(items)
        training = self._student.training  # DeepSpeed's wrapper says True always
        self._objective_ran = self._objective_ran or training
        window, parts = self._counted(num_items_in_batch, training)
        counts = items.counts() if window is None else window
        measuring = None if training else self._evaluation
        measured = measuring is not None and self.args.eval_teacher
        wanted = self.training_objective.needs | Needs(
            logits=measured, unsampled=measured, full_vocabulary=measured
        )
        lean = self._lean and not (return_outputs or self._logs_gradients())
        teacher = self._teach(batch, self._unprojected(wanted) if lean else wanted, items)
        scale = 1.0 if window is None else self._loss_scale()

        def run() -> tuple[Tensor, dict[str, Tensor], Any]:
            asked, outputs, student = self._asked(), None, Signal()
            if lean:
                asked = asked.with_lazy_logits(self._task_model.provides)
            if asked or not training:  # else nothing is read of the answer to the batch
                outputs, student = self._ask_student(batch, items, asked, model)
            watch = None if measuring is None else measuring.add_signals
            if student.lazy_logits is not None:
                said = StepInputs(student, teacher, items, self._context_of(batch, items))
                terms, loss, components, sums = reduce_chunked(
                    self.training_objective, said, counts, scale, watch, parts
                )
            else:
                terms = self._terms(student, teacher, batch, items)
                loss, components, sums = reduce(terms, counts, scale, parts)
                if watch is not None:
                    watch(student, teacher, items)
            if training:
                self._follow(terms, components, items)
            if measuring is not None:
                measuring.add_terms(terms, sums, items.counts())
            return loss, components, outputs if return_outputs else None

        wrapped = model is not self.model and not _is_compiled(model)
        loss, components, outputs = (
            redirected_forward(model, self._student, run) if wrapped else run()
        )
        if training:
            self._keep_components(components, teacher)
        else:  # in training a teacher's logits need not outlive their step
            self._step_teacher, self._step_loss = teacher, loss.detach()
        return (loss, outputs) if return_outputs else loss

    def _ask_student(
        self,
        batch: Mapping[str, Any],
        items: BatchItems,
        needs: Needs,
        model: nn.Module | None = None,
    ) -> tuple[Any, Signal]:
        call = self._student
        if model is not None and _is_compiled(model):
            call = model
        elif self._compiled is not None and unwrapped(self._compiled) is unwrapped(call):
            call = self._compiled
        outputs, signal = self._task_model.ask(call, batch, needs, items)
        return outputs, align_classes(signal, self._student_order)

    def _asked(self) -> Needs:
        """What the student is asked for."""
        return self.training_objective.student_needs

    def _terms(
        self, student: Signal, teacher: Signal | None, batch: Mapping[str, Any], items: BatchItems
    ) -> list[Term]:
        """What is minimised on one micro-batch; called within the wrapped model's forward."""
        return self.training_objective.terms(
            student, teacher, items, self._context_of(batch, items)
        )

    def _context_of(self, batch: Mapping[str, Any], items: BatchItems) -> Context:
        return self._context(self.projections, self._pair(batch, items))

    def _follow(
        self, terms: list[Term], components: Mapping[str, Tensor], items: BatchItems
    ) -> None:
        """What a micro-batch of training gave, for weights that are shares and for the log."""
        self._moving = scheduled_values(
            self.training_objective, dict(self._learned().items()), self._progress()
        )
        self._observe(self.training_objective, terms, components, self.projections)
        if self._logs_gradients():
            parameters = [p for p in self._student.parameters() if p.requires_grad]
            self._gradients = gradient_norms(terms, items.counts(), parameters)

    def _observe(
        self,
        goal: WeightedSum,
        terms: list[Term],
        components: Mapping[str, Tensor],
        modules: nn.ModuleDict,
    ) -> None:
        summed = "sum" if self.args.average_tokens_across_devices else "mean"
        goal.observe(
            terms,
            components,
            modules,
            self.accelerator.sync_gradients,
            lambda values: self.accelerator.reduce(values, summed),
        )

    def _teach(self, batch: Mapping[str, Any], needs: Needs, items: BatchItems) -> Signal | None:
        if self.teacher is None:
            return None
        needs = needs & self.teacher.provides
        if not needs:
            return None
        who = f"the teacher ({type(self.teacher).__name__})"
        said = check_teacher_signal(self.teacher(batch, needs, items), items, who)
        return align_classes(said, self._teacher_order)

    @property
    def _learns_labels(self) -> bool:
        return self.training_objective.needs_labels

    def _logs_gradients(self) -> bool:
        """Whether this step's gradient norms are wanted: the last step before a log."""
        every = max(1, int(self.state.logging_steps))
        due = (self.state.global_step + 1) % every == 0 and self.accelerator.sync_gradients
        return self.args.log_gradient_norms and due

    def _context(self, modules: nn.ModuleDict, pair: ModelsInStep | None = None) -> Context:
        return Context(modules, self._parameters, self._initial, self._progress(), pair)

    def _progress(self) -> Progress:
        state = self.state
        return Progress(state.global_step, state.epoch or 0.0, state.max_steps)

    def _learned(self) -> nn.ModuleDict:
        """What the student's own objective has built."""
        return self.projections

    def _pair(self, batch: Mapping[str, Any], items: BatchItems) -> ModelsInStep:
        """Both models, for objectives that ask them about more than the batch."""

        def ask_teacher(other: Mapping[str, Any], needs: Needs) -> Signal:
            signal = self._teach(other, needs, items)
            return Signal() if signal is None else signal

        return ModelsInStep(
            batch,
            self._task_model,
            lambda other, needs: self._ask_student(other, items, needs)[1],
            None if self.teacher is None else ask_teacher,
            self.processing_class,
        )

    def _real_rows(self, batch: Mapping[str, Any]) -> Tensor | None:
        """False for the examples that are repeated to fill the last batch of an evaluation."""
        state = self.accelerator.gradient_state
        if self._student.training or self.accelerator.num_processes == 1:
            return None
        if not state.end_of_dataloader or state.remainder <= 0:
            return None
        rows = self._task_model.items(batch).masks["samples"]
        first = self.accelerator.process_index * len(rows)
        return torch.arange(first, first + len(rows), device=rows.device) < state.remainder

    # ---- training ----------------------------------------------------------------------------

    def _inner_training_loop(self, *args: Any, **options: Any) -> Any:
        self._refresh_objective()
        if self.model is not self._bound:  # model_init made a new student
            self._bind()
        if self.teacher is not None:
            self.teacher.place(self.accelerator)
        if options.get("resume_from_checkpoint") is not None:
            self._load_extras(options["resume_from_checkpoint"])
        self._components, self._taught = {}, None
        self._objective_ran, self._stepped, self._so_far = False, False, {}
        check_trainable(self._student, self._learned())
        check_batches(self.args, self.train_dataset)
        warn_of_no_steps(self.args)
        with self._attached():
            output = super()._inner_training_loop(*args, **options)
        warn_if_nothing_counted(self.training_objective, self._so_far)
        return output

    def _maybe_log_save_evaluate(self, *args: Any, **options: Any) -> None:
        if self._stepped and not self._objective_ran:  # told once
            self._objective_ran = self._own_loss = True
            warn_of_own_loss(type(self).__name__, self.training_objective, self.teacher)
        super()._maybe_log_save_evaluate(*args, **options)

    # ---- publishing --------------------------------------------------------------------------

    @cached_property
    def _publisher(self) -> Publisher:
        return Publisher(self.args)

    def student_card(self) -> StudentCard:
        """Fill a model card with the facts of this run; edit it, then pass it to `hub.write`."""
        return student_card(self, self._task_model, self.training_objective, self.teacher)

    def run_facts(self) -> dict[str, Any]:
        """Metadata of this run for trackers: plain values, without local paths and tokens."""
        return run_facts(self.training_objective, self.teacher, self._task_model)

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
        if self._saving is not None:  # `Trainer` calls this before the checkpoint is complete
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
