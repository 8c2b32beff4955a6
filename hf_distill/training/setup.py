"""What is settled before the first step: the objective, the order of classes, the learned parts."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from hf_distill.data.streams import same_randomness
from hf_distill.models.batches import by_row, rows_of, without_places
from hf_distill.models.class_order import align_classes, match_heads
from hf_distill.models.lm_head import same_logits
from hf_distill.models.modes import evaluating
from hf_distill.models.modules import ANY, text_config
from hf_distill.models.problems import (
    check_kinds,
    check_unmasked,
    settle,
    share_padding,
    tell_tokens,
)
from hf_distill.models.sharding import choose_blocks, gathered_parameters
from hf_distill.models.signals import LOGITS, BatchItems, Needs, Signal
from hf_distill.models.task_model import TaskModel
from hf_distill.models.tasks import TASKS, unknown_head
from hf_distill.objectives import HiddenStates, ModelLoss, WeightDecay
from hf_distill.objectives.base.models_in_step import ModelsInStep
from hf_distill.objectives.base.objective import Context, Objective, WeightedSum
from hf_distill.objectives.routing import with_router_balance
from hf_distill.teachers import ModelTeacher
from hf_distill.training.checks import (
    check_gradient_norms,
    check_objective,
    check_targets,
    check_weight_decay,
    check_weights_are_here,
)
from hf_distill.training.chunked import StepInputs, reduce_chunked
from hf_distill.training.looking import LOOK, Looking
from hf_distill.training.own_loss import check_label_loss


class Setup(Looking):
    """The part of the trainer that fits objective, teacher and student together."""

    projections: nn.ModuleDict
    _own_objective: WeightedSum | None
    _student_order: int | Tensor | None = None
    _teacher_order: int | Tensor | None = None
    _lean: bool

    def _context(self, modules: nn.ModuleDict, pair: ModelsInStep | None = None) -> Context:
        raise NotImplementedError

    def _pair(self, batch: Mapping[str, Any], items: BatchItems) -> ModelsInStep:
        raise NotImplementedError

    def _refresh_objective(self) -> None:
        """Read the objective from the arguments anew: a hyper-parameter search changes them.

        (The search keeps the score of a trial in ``self.objective``, so that name is taken.)
        """
        objective = self._smoothed(self._own_objective or self._default_objective())
        objective = self.training_objective = with_router_balance(objective, self._task_model)
        check_objective(
            objective, self.teacher, self._task_model, self.args.per_device_train_batch_size
        )
        sharded = self.is_fsdp_enabled or is_deepspeed_zero3_enabled()
        check_gradient_norms(self.args.log_gradient_norms, sharded)
        check_weight_decay(objective, sharded, self.args.weight_decay)

    def _default_objective(self) -> WeightedSum:
        """The objective of the arguments, or one of the student's own loss and hidden states."""
        if self._task_model.task is not TASKS["other"]:
            return self.args.objective()
        model = self._task_model.model
        if not type(model).__module__.startswith("transformers."):
            raise ValueError(unknown_head(model))
        if not hasattr(self, "training_objective"):
            warnings.warn(
                f"The logits of {type(model).__name__} are not known here: its own loss and the "
                "teacher's hidden states are learned. To choose what is learned, pass objective=…, "
                "for example 0.5 * ModelLoss() + 0.5 * HiddenStates(), which this is.",
                stacklevel=4,
            )
        return self.args.objective(ModelLoss(), HiddenStates())

    def _smoothed(self, objective: WeightedSum) -> WeightedSum:
        """The objective with the label smoothing of the arguments."""
        factor = self.args.label_smoothing_factor
        return objective.mapped(lambda part: _smoothed(part, factor)) if factor else objective

    def _match(self) -> None:
        """Bring both models' classes into one order, or refuse the teacher."""
        self._student_order, self._teacher_order = None, None
        if self.teacher is None or self.teacher.config is None:
            return
        tokenizer: Any = getattr(self.processing_class, "tokenizer", self.processing_class)
        tokens = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else None
        read = self.teacher.columns()
        self._student_order, self._teacher_order = match_heads(
            self._task_model,
            self.teacher.config,
            tokens,
            self.teacher.tokens(),
            same_inputs=not read or bool({"input_ids", ANY} & read),
        )
        by_labels = getattr(self.teacher, "weights", None) == "labels"
        if by_labels and isinstance(self._teacher_order, Tensor):
            raise ValueError(
                "weights='labels' reads the labels in the order of the ensemble's first member, "
                "which is not the student's. List a member with the student's id2label first."
            )

    def _settle(self) -> None:
        """Settle for all models what they solve, and what is padding."""
        heads = getattr(self.teacher, "task_models", None) or {}
        share_padding(self.processing_class, *(head.given for head in heads.values()))
        tell_tokens(self.teacher, text_config(self._task_model.config))
        check_unmasked(self._first_batch or {}, self._task_model, self.teacher)
        settle(self._task_model, self.teacher, (self._first_batch or {}).get("labels"))

    def _bind(self) -> None:
        """Make what belongs to this very student: projections, initial weights."""
        share_padding(self.processing_class, self._student)
        self._task_model, self._bound = TaskModel(self._student, role="student"), self._student
        self._settle()
        if self.accelerator.is_fsdp2:
            choose_blocks(self.accelerator.state.fsdp_plugin, self._student)
        self._parameters: dict[str, Tensor] = {}
        if any(isinstance(part, WeightDecay) for _, part in self.training_objective.parts):
            decayed = set(self.get_decay_parameter_names(self._student))
            named = self._student.named_parameters()
            self._parameters = {n: p for n, p in named if p.requires_grad and n in decayed}
        keep, device = (
            self._parameters if self.training_objective.needs_initial else {},
            self.args.device,
        )
        self._initial = {name: p.detach().to(device, copy=True) for name, p in keep.items()}
        with gathered_parameters(self._student.parameters()):
            self._check_label_loss()
            self._lean = self._can_be_lean()
            self.projections = self._build_projections()

    def _learners(self) -> list[tuple[nn.Module, TaskModel, WeightedSum]]:
        """Every model that is trained, its head and what it minimises."""
        return [(self._student, self._task_model, self.training_objective)]

    def _check_label_loss(self) -> None:
        """Let the own loss of each model judge ours, on one or two examples."""
        sample = self._first_batch if self.args.check_label_loss else None
        for model, head, goal in self._learners():
            ours = [p for _, p in goal.parts if p.needs_labels and not isinstance(p, ModelLoss)]
            parameter = next(model.parameters())
            if sample is None or not ours or parameter.is_meta:
                continue
            with torch.no_grad(), same_randomness(), evaluating(model):
                check_label_loss(model, head, send_to_device(sample, parameter.device))

    def _unprojected(self, needs: Needs) -> Needs:
        """What the teacher is asked for where no logits of a whole batch are wanted."""
        return needs if self.teacher is None else needs.with_lazy_logits(self.teacher.provides)

    def _can_be_lean(self) -> bool:
        """Whether the logits of a whole batch may remain uncomputed: the objective looks at items
        one by one, and from hidden states and heads the models' own logits come out (seen on a few
        positions of the first example)."""
        sample, needs = self._first_batch, self.training_objective.student_needs
        if needs.own_loss or not (
            self.training_objective.is_itemwise and self._task_model.provides.lazy_logits
        ):
            return False
        if sample is None:
            return False
        batch, items = dict(sample), self._task_model.items(sample)
        if by_row(sample):
            batch, items = rows_of(sample, items, [0])
        items = without_places(items)  # it is asked for the last of them alone
        if "logits_to_keep" in self._task_model.accepts:
            batch["logits_to_keep"] = LOOK
        student = next(self._student.parameters()).device.type == self.args.device.type
        asked: list[tuple[TaskModel | None, Callable[[Needs], Signal]]] = []
        if student:  # else FSDP or ZeRO will place it; it is what its config says
            own = self._task_model.ask
            asked.append(
                (self._task_model, lambda needs: own(self._student, batch, needs, items)[1])
            )
        teacher = self.teacher
        if teacher is not None and teacher.provides.lazy_logits:
            head = teacher.task_model if isinstance(teacher, ModelTeacher) else None
            asked.append((head, lambda needs: teacher(batch, needs, items)))
        training = self._student.training
        self._student.eval()
        try:
            with torch.no_grad(), same_randomness():
                return all(_projects(head, ask) for head, ask in asked)
        finally:
            self._student.train(training)

    def _build_projections(self) -> nn.ModuleDict:
        """Make the learned parts from what the models say about a few examples.

        The objective is computed once on them, so that what does not fit is told now.
        """
        sample, goal = self._first_batch, self.training_objective
        looked_at = goal.needs | goal.student_needs
        inside = looked_at.hidden_states or bool(looked_at.modules)
        if sample is None or (self.teacher is None and not inside):
            if inside:
                raise ValueError(
                    "HiddenStates and its like size their projections on a few examples, and there "
                    "is no data yet. Pass train_dataset or eval_dataset to the constructor."
                )
            return goal.build(None, None).to(self.args.device)
        if inside:
            check_weights_are_here(self._student)
        items = self._task_model.items(sample)
        # FSDP, ZeRO and bf16_full_eval move the student to the device later than this
        device = next(self._student.parameters()).device
        placed = device.type == self.args.device.type
        training = self._student.training
        self._student.eval()
        with torch.no_grad(), same_randomness(), warnings.catch_warnings():
            wanted = self._unprojected(goal.needs) if self._lean else goal.needs
            theirs = self._teach(sample, wanted, items)
            if theirs is not None:
                check_targets(theirs, items)
            warnings.simplefilter("ignore")  # a last batch of one is not meant by these few
            ours = None
            if placed or inside:
                own, needs = send_to_device(sample, device), goal.student_needs
                needs = needs.with_lazy_logits(self._task_model.provides) if self._lean else needs
                _, asked = self._task_model.ask(
                    self._student, own, needs, self._task_model.items(own)
                )
                ours = align_classes(asked, self._student_order)
                if theirs is not None and (goal.needs.logits or goal.needs.lazy_logits):
                    check_kinds(ours.kind, theirs.kind, theirs.who)
            torch.manual_seed(self.args.seed)
            built = goal.build(ours, theirs).to(self.args.device)
            if placed and ours is not None:
                context = self._context(built, self._pair(sample, items))
                if ours.lazy_logits is None:
                    goal.terms(ours, theirs, items, context)
                else:
                    reduce_chunked(goal, StepInputs(ours, theirs, items, context), items.counts())
        self._student.train(training)
        return built


def _projects(task_model: TaskModel | None, ask: Callable[[Needs], Signal]) -> bool:
    """Tell whether a model's logits are what its output layer makes of hidden states."""
    if task_model is not None and not task_model.projects_last(lambda: ask(LOGITS).logits):
        return False
    return same_logits(ask(Needs(lazy_logits=True)), ask(LOGITS))


def _smoothed(objective: Objective, factor: float) -> Objective:
    """Give the trainer's label smoothing to a loss of labels that has none of its own."""
    if getattr(objective, "label_smoothing", factor) is not None:
        return objective
    changes: dict[str, Any] = {"label_smoothing": factor}
    return dataclasses.replace(objective, **changes)
