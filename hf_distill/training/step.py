"""One distillation step, without a trainer: read a batch, ask the teacher, compute the loss."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hf_distill.models.batch_checks import check_teacher_signal, check_weights
from hf_distill.models.batches import batch_of
from hf_distill.models.class_order import ClassOrder, align_classes
from hf_distill.models.signals import NOTHING, BatchItems, Needs, Signal, Unit
from hf_distill.models.task_model import TaskModel
from hf_distill.objectives.base.models_in_step import ModelsInStep
from hf_distill.objectives.base.objective import Context, Term, WeightedSum
from hf_distill.objectives.base.scheduled_values import scheduled_values
from hf_distill.objectives.base.schedules import Progress
from hf_distill.objectives.heads import of_head
from hf_distill.teachers import Teacher
from hf_distill.training.chunked import Observer, StepInputs, reduce_chunked
from hf_distill.training.reduction import StepResult, reduce


@dataclass(frozen=True)
class StepBatch:
    """A batch, and the items that count in it.

    Attributes:
        inputs: The columns for both models, on the device.
        items: The masks, labels and weights.
    """

    inputs: Mapping[str, Any]
    items: BatchItems


class DistillationStep:
    """One distillation step: `prepare` a batch, `ask_teacher`, compute the `student_loss`.

    A subclass may change each of them; `hf_distill.training.setup` builds the attributes.

    Attributes:
        task_model: The student, with its row of the task table.
        teacher: Any `Teacher`, or None.
        objective: The weighted sum of objectives to minimise.
        processor: The student's tokenizer or processor.
        projections: The learned parts of the objective, trained with the student.
        parameters: The student's parameters subject to weight decay, by name.
        initial: Their values before training, where the objective needs them.
        student_order, teacher_order: The classes of each model in their common order.
        lazy_logits: Whether the logits of a whole batch may remain uncomputed.
    """

    objective: WeightedSum

    def __init__(
        self, task_model: TaskModel, teacher: Teacher | None = None, processor: Any = None
    ):
        self.task_model, self.teacher, self.processor = task_model, teacher, processor
        self.projections = nn.ModuleDict()
        self.parameters: dict[str, Tensor] = {}
        self.initial: dict[str, Tensor] = {}
        self.student_order: ClassOrder | dict[str, ClassOrder] = None
        self.teacher_order: ClassOrder | dict[str, ClassOrder] = None
        self.lazy_logits = False

    # ---- a step ------------------------------------------------------------------------------

    def prepare(self, inputs: Mapping[str, Any], real_rows: Tensor | None = None) -> StepBatch:
        """Read a batch: the inputs that both models share, and the items that count.

        Args:
            inputs: The batch, on the device.
            real_rows: Boolean ``(B,)``, False for rows that only fill up the batch; None: all real.

        Raises:
            ValueError: labels or weights that the objective cannot be computed from.
        """
        batch = self.task_model.task.share(inputs, self.task_model.model)
        items = self.task_model.items(batch, real_rows)
        if self.needs_labels:
            self.task_model.check_labels(batch, items)
        if items.weights is not None:
            check_weights(items)
        return StepBatch(batch, items)

    def ask_teacher(self, batch: StepBatch, needs: Needs | None = None) -> Signal | None:
        """The teacher's outputs for a batch, its classes in the common order.

        Args:
            batch: From `prepare`.
            needs: The requested outputs; by default those of the objective.

        Returns:
            None without a teacher, or where nothing is requested of it.
        """
        if self.teacher is None:
            return None
        needs = _both(self.objective.needs if needs is None else needs, self.teacher.provides)
        if needs == NOTHING:
            return None
        signal = self.teacher(batch.inputs, needs, batch.items)
        if not _is_plain(signal, batch.items):
            who = f"the teacher ({type(self.teacher).__name__})"
            signal = check_teacher_signal(signal, batch.items, who)
        return signal if self.teacher_order is None else align_classes(signal, self.teacher_order)

    def ask_student(self, call: nn.Module, batch: StepBatch, needs: Needs) -> tuple[Any, Signal]:
        """The student's raw outputs, and its signal in the common order of classes.

        Args:
            call: The student as it is to be called: itself, wrapped or compiled.
            batch: From `prepare`.
            needs: The requested outputs.
        """
        outputs, signal = self.task_model.ask(call, batch.inputs, needs, batch.items)
        if self.student_order is not None:
            signal = align_classes(signal, self.student_order)
        return outputs, signal

    def student_loss(
        self,
        call: nn.Module,
        batch: StepBatch,
        teacher: Signal | None,
        counts: Mapping[Unit, Tensor] | None = None,
        *,
        scale: float = 1.0,
        parts: int = 1,
        progress: Progress | None = None,
        lazy_logits: bool = False,
        with_outputs: bool = False,
        observer: Observer | None = None,
        call_again: nn.Module | None = None,
    ) -> StepResult:
        """Run the student and reduce the objective's terms to a loss.

        Args:
            call: As `ask_student`.
            batch: From `prepare`.
            teacher: From `ask_teacher`.
            counts: The divisors by unit; by default the counts of this batch.
            scale: A factor of the loss, see `reduce`.
            parts: The number of micro-batches that share the counts, see `reduce`.
            progress: The present step and epoch, for schedules.
            lazy_logits: Compute the logits of a few items at a time.
            with_outputs: Run the student even if the objective reads none of its outputs.
            observer: Called with both signals and the items, piece by piece.
            call_again: The student for objectives that run it on other inputs; default: ``call``.
        """
        items, needs = batch.items, self.student_needs
        if lazy_logits:
            needs = needs.with_lazy_logits(self.task_model.provides)
        outputs, student = None, Signal()
        if needs != NOTHING or with_outputs:
            outputs, student = self.ask_student(call, batch, needs)
        counts = items.counts() if counts is None else counts
        progress = progress or Progress()
        context = self.context(batch, call if call_again is None else call_again, progress)
        if student.lazy_logits is not None:
            terms, loss, components, sums = reduce_chunked(
                self.objective,
                StepInputs(student, teacher, items, context),
                counts,
                scale,
                observer,
                parts,
            )
        else:
            terms = self.terms(student, teacher, batch, context)
            loss, components, sums = reduce(terms, counts, scale, parts)
            if observer is not None:
                observer(student, teacher, items)
        scheduled: dict[str, float | Tensor] = {}
        if self.training and self.objective.is_scheduled:
            scheduled = scheduled_values(self.objective, dict(self.learned.items()), progress)
        return StepResult(loss, components, sums, terms, items, outputs, teacher, scheduled)

    def terms(
        self, student: Signal, teacher: Signal | None, batch: StepBatch, context: Context
    ) -> list[Term]:
        """The values per item of every component on one micro-batch."""
        return self.objective.terms(student, teacher, batch.items, context)

    def observe(
        self, result: StepResult, last: bool, over_ranks: Callable[[Tensor], Tensor]
    ) -> None:
        """Update weights that follow the losses: `LossShare`, Group DRO.

        Args:
            result: From `student_loss`.
            last: Whether this micro-batch ends the accumulation window.
            over_ranks: Adds up a tensor over the processes.
        """
        self.objective.observe(result.terms, result.components, self.projections, last, over_ranks)

    def by_head(
        self, sample: Mapping[str, Any] | None = None
    ) -> Iterator[tuple[DistillationStep, Mapping[str, Any] | None]]:
        """This step with a sample of data; of a student with several heads the step of each head
        as a plain model, with its teacher, objective and part of the sample."""
        if not self.task_model.heads:
            yield self, sample
        for name, task_model in self.task_model.heads.items():
            teachers = getattr(self.teacher, "teachers", {})
            step = DistillationStep(task_model, teachers.get(name), self.processor)
            step.objective = of_head(self.objective, name)
            yield step, None if sample is None else batch_of(sample, name)

    # ---- its facts ---------------------------------------------------------------------------

    @property
    def training(self) -> bool:
        return self.task_model.given.training

    @property
    def needs_labels(self) -> bool:
        return self.objective.needs_labels

    @property
    def student_needs(self) -> Needs:
        """The outputs requested of the student."""
        return self.objective.student_needs

    @property
    def learned(self) -> nn.ModuleDict:
        """The learned parts of the student's own objective."""
        return self.projections

    def learners(self) -> list[tuple[TaskModel, WeightedSum]]:
        """Every model in training, with its objective."""
        return [(self.task_model, self.objective)]

    def teacher_needs(self, more: Needs | None = None, *, lazy_logits: bool = False) -> Needs:
        """The outputs requested of the teacher, and ``more`` for an evaluation."""
        needs = self.objective.needs if more is None else self.objective.needs | more
        if lazy_logits and self.teacher is not None:
            needs = needs.with_lazy_logits(self.teacher.provides)
        return needs

    def context(
        self,
        batch: StepBatch | None,
        call: nn.Module,
        progress: Progress,
        modules: nn.ModuleDict | None = None,
    ) -> Context:
        """Everything an objective may need besides the two signals."""
        modules = self.projections if modules is None else modules
        models = None if batch is None else self._models(batch, call)
        return Context(modules, self.parameters, self.initial, progress, models)

    def _models(self, batch: StepBatch, call: nn.Module) -> ModelsInStep:
        """Both models, for objectives that run them on other inputs than the batch."""

        def ask_student(other: Mapping[str, Any], needs: Needs) -> Signal:
            return self.ask_student(call, StepBatch(other, batch.items), needs)[1]

        def ask_teacher(other: Mapping[str, Any], needs: Needs) -> Signal:
            signal = self.ask_teacher(StepBatch(other, batch.items), needs)
            return Signal() if signal is None else signal

        teacher = None if self.teacher is None else ask_teacher
        return ModelsInStep(batch.inputs, self.task_model, ask_student, teacher, self.processor)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint besides the student's, by name, not copied."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "projections": self.projections.state_dict(),
            "initial": self.initial,
            "teacher": {} if self.teacher is None else self.teacher.tensors(),
        }
        return {f"{part}.{name}": t for part, found in parts.items() for name, t in found.items()}


@functools.lru_cache(maxsize=256)
def _both(first: Needs, second: Needs) -> Needs:
    return first & second


def _is_plain(signal: Any, items: BatchItems) -> bool:
    """True for valid logits and nothing else that `check_teacher_signal` reads."""
    if not isinstance(signal, Signal) or signal.hidden_states or signal.attentions:
        return False
    logits, mask = signal.logits, items.masks.get("items")
    if not isinstance(logits, Tensor) or signal.sparse is not None or mask is None:
        return False
    return logits.is_floating_point() and logits.shape[:-1] == mask.shape
