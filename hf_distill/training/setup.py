"""Construction of a `DistillationStep`: objective, order of classes, projections."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from hf_distill.data.random_states import same_randomness
from hf_distill.models.batches import by_row, rows_of, without_places
from hf_distill.models.class_order import (
    ClassOrder,
    align_classes,
    match_heads,
    warn_of_conventions,
)
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
from hf_distill.models.signals import LOGITS, Needs, Signal
from hf_distill.models.task_model import TaskModel
from hf_distill.models.tasks import TASKS, unknown_head
from hf_distill.objectives import HiddenStates, ModelLoss, WeightDecay
from hf_distill.objectives.base.objective import Objective, WeightedSum
from hf_distill.objectives.base.schedules import Progress
from hf_distill.objectives.heads import on_heads
from hf_distill.objectives.routing import with_router_balance
from hf_distill.teachers import ModelTeacher
from hf_distill.training.checks import (
    check_objective,
    check_weight_decay,
    check_weights_are_here,
)
from hf_distill.training.chunked import StepInputs, reduce_chunked
from hf_distill.training.config import DistillationConfig
from hf_distill.training.data_checks import check_targets
from hf_distill.training.own_loss import check_label_loss
from hf_distill.training.samples import LOOK
from hf_distill.training.step import DistillationStep, StepBatch

Sample = Mapping[str, Any]


class StepSetup:
    """The construction of a `DistillationStep`, in the order of the methods.

    A subclass builds the step of several models in training.
    """

    def set_objective(
        self,
        step: DistillationStep,
        args: DistillationConfig,
        own: WeightedSum | None,
        sharded: bool,
        warn: bool = False,
    ) -> None:
        """Set the objective, and check it.

        Args:
            step: The step.
            args: The trainer's arguments.
            own: The objective that was passed to the trainer.
            sharded: Whether the weights are spread over the processes.
            warn: See `objective_of`.
        """
        objective = objective_of(args, own, step.task_model, warn)
        if step.task_model.heads:
            taught = getattr(step.teacher, "teachers", None)
            objective = on_heads(objective, list(step.task_model.heads), taught)
        step.objective = objective
        size = args.per_device_train_batch_size
        check_objective(objective, step.teacher, step.task_model, size)
        check_weight_decay(objective, sharded, args.weight_decay)

    def match_classes(self, step: DistillationStep) -> None:
        """Bring both models' classes into one order.

        Raises:
            ValueError: a teacher whose classes or tokens do not fit the student's.
        """
        teacher = step.teacher
        step.student_order, step.teacher_order = None, None
        if step.task_model.heads and teacher is not None:
            orders: tuple[dict[str, ClassOrder], dict[str, ClassOrder]] = ({}, {})
            for name, (head, _) in zip(step.task_model.heads, step.by_head(), strict=True):
                self.match_classes(head)
                found: Any = (head.student_order, head.teacher_order)
                orders[0][name], orders[1][name] = found
            step.student_order, step.teacher_order = orders
            return
        if teacher is None or teacher.config is None:
            return
        read = teacher.columns()
        step.student_order, step.teacher_order = match_heads(
            step.task_model,
            teacher.config,
            tokens_of(step.processor),
            teacher.tokens(),
            same_inputs=not read or bool({"input_ids", ANY} & read),
        )
        if not teacher.provides.cross_tokenizer:
            warn_of_conventions(step.task_model, teacher.config)
        by_labels = getattr(teacher, "weights", None) == "labels"
        if by_labels and isinstance(step.teacher_order, Tensor):
            raise ValueError(
                "weights='labels' reads the labels in the order of the ensemble's first member, "
                "which is not the student's. List a member with the student's id2label first."
            )

    def keep_parameters(
        self,
        step: DistillationStep,
        decayed: Callable[[nn.Module], Iterable[str]],
        device: torch.device,
    ) -> None:
        """Keep the parameters that a `WeightDecay` reads, see `decayed_parameters`."""
        step.parameters, step.initial = decayed_parameters(
            step.task_model.given, step.objective, decayed, device
        )

    def build(
        self, step: DistillationStep, sample: Sample | None, device: torch.device, seed: int
    ) -> None:
        """Build the projections, and decide whether logits may remain uncomputed."""
        step.lazy_logits = can_be_lazy(step, sample, device)
        step.projections = build_projections(step, sample, device, seed)


def objective_of(
    args: DistillationConfig, own: WeightedSum | None, task_model: TaskModel, warn: bool = False
) -> WeightedSum:
    """The objective of a model: its own or that of the arguments, with smoothing and routing.

    Args:
        args: Read anew each time, since a hyper-parameter search changes them.
        own: The objective that was passed to the trainer.
        task_model: The model that learns.
        warn: Warn where a model's own loss and hidden states are chosen.

    Raises:
        ValueError: a model of unknown outputs without an objective.
    """
    objective = own or _default_objective(args, task_model, warn)
    factor = args.label_smoothing_factor
    if factor:
        objective = objective.mapped(lambda part: _smoothed(part, factor))
    return with_router_balance(objective, task_model)


def _default_objective(args: DistillationConfig, task_model: TaskModel, warn: bool) -> WeightedSum:
    if task_model.task is not TASKS["other"]:
        return args.objective()
    model = task_model.model
    if not type(model).__module__.startswith("transformers."):
        raise ValueError(unknown_head(model))
    if warn:
        warnings.warn(
            f"The logits of {type(model).__name__} are not known here: its own loss and the "
            "teacher's hidden states are learned. To choose what is learned, pass objective=…, "
            "for example 0.5 * ModelLoss() + 0.5 * HiddenStates(), which this is.",
            stacklevel=4,
        )
    return args.objective(ModelLoss(), HiddenStates())


def _smoothed(objective: Objective, factor: float) -> Objective:
    """Apply the trainer's label smoothing to a loss of labels that has none itself."""
    if getattr(objective, "label_smoothing", factor) is not None:
        return objective
    changes: dict[str, Any] = {"label_smoothing": factor}
    return dataclasses.replace(objective, **changes)


def tokens_of(processor: Any) -> Mapping[str, int] | None:
    """The vocabulary of a tokenizer, or of a processor's tokenizer."""
    tokenizer: Any = getattr(processor, "tokenizer", processor)
    return tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else None


def settle_models(step: DistillationStep, sample: Sample | None) -> None:
    """Set the problem that all models solve (one label, several, regression), and their padding."""
    if step.task_model.heads:
        for head, own in step.by_head(sample):
            settle_models(head, own)
        return
    models = getattr(step.teacher, "task_models", None) or {}
    share_padding(step.processor, *(task_model.given for task_model in models.values()))
    tell_tokens(step.teacher, text_config(step.task_model.config))
    check_unmasked(sample or {}, step.task_model, step.teacher)
    settle(step.task_model, step.teacher, (sample or {}).get("labels"))


def decayed_parameters(
    model: nn.Module,
    objective: WeightedSum,
    decayed: Callable[[nn.Module], Iterable[str]],
    device: torch.device,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parameters subject to `WeightDecay` by name, and copies of their present values.

    Args:
        model: The model that learns.
        objective: Its objective; without a `WeightDecay` nothing is kept.
        decayed: Names the parameters of a model that weight decay applies to.
        device: The device of the copies.
    """
    parameters: dict[str, Tensor] = {}
    if any(isinstance(part, WeightDecay) for _, part in objective.parts):
        names = set(decayed(model))
        found = model.named_parameters()
        parameters = {n: p for n, p in found if p.requires_grad and n in names}
    keep = parameters if objective.needs_initial else {}
    return parameters, {n: p.detach().to(device, copy=True) for n, p in keep.items()}


def compare_label_losses(step: DistillationStep, sample: Sample | None) -> None:
    """Compare our label loss with the models' own loss on one or two examples."""
    if step.task_model.heads:
        for head, own in step.by_head(sample):
            compare_label_losses(head, own)
        return
    for task_model, objective in step.learners():
        ours = [p for _, p in objective.parts if p.needs_labels and not isinstance(p, ModelLoss)]
        model = task_model.given
        parameter = next(model.parameters())
        if sample is None or not ours or parameter.is_meta:
            continue
        with torch.no_grad(), same_randomness(), evaluating(model):
            check_label_loss(model, task_model, send_to_device(sample, parameter.device))


def can_be_lazy(step: DistillationStep, sample: Sample | None, device: torch.device) -> bool:
    """Tell whether the logits of a whole batch may remain uncomputed.

    They may if the objective reads items one by one, and hidden states times output weights give
    the models' own logits (compared at a few positions of the first example).
    """
    task_model, needs = step.task_model, step.objective.student_needs
    if needs.own_loss or not (step.objective.is_itemwise and task_model.provides.lazy_logits):
        return False
    if sample is None:
        return False
    batch, items = dict(sample), task_model.items(sample)
    if by_row(sample):
        batch, items = rows_of(sample, items, [0])
    items = without_places(items)  # only the last positions are computed
    if "logits_to_keep" in task_model.accepts:
        batch["logits_to_keep"] = LOOK
    model, teacher = task_model.given, step.teacher
    asked: list[tuple[TaskModel | None, Callable[[Needs], Signal]]] = []
    if next(model.parameters()).device.type == device.type:  # else FSDP or ZeRO will place it
        asked.append((task_model, lambda needs: task_model.ask(model, batch, needs, items)[1]))
    if teacher is not None and teacher.provides.lazy_logits:
        own = teacher.task_model if isinstance(teacher, ModelTeacher) else None
        asked.append((own, lambda needs: teacher(batch, needs, items)))
    with torch.no_grad(), same_randomness(), evaluating(model):
        return all(_projects(own, ask) for own, ask in asked)


def _projects(task_model: TaskModel | None, ask: Callable[[Needs], Signal]) -> bool:
    """Tell whether a model's logits are what its output layer computes from hidden states."""
    if task_model is not None and not task_model.projects_last(lambda: ask(LOGITS).logits):
        return False
    return same_logits(ask(Needs(lazy_logits=True)), ask(LOGITS))


def build_projections(
    step: DistillationStep, sample: Sample | None, device: torch.device, seed: int
) -> nn.ModuleDict:
    """Build the learned parts of the objective, sized by both models' outputs on a few examples.

    The objective is computed once on them, so that a mismatch raises now.

    Raises:
        ValueError: projections are needed and there is no sample; or of the objective.
    """
    objective, task_model = step.objective, step.task_model
    looked_at = objective.needs | objective.student_needs
    inside = looked_at.hidden_states or bool(looked_at.modules)
    if sample is None or (step.teacher is None and not inside):
        if inside:
            raise ValueError(
                "HiddenStates and its like size their projections on a few examples, and there "
                "is no data yet. Pass train_dataset or eval_dataset to the constructor."
            )
        return objective.build(None, None).to(device)
    model = task_model.given
    if inside:
        check_weights_are_here(model)
    # FSDP, ZeRO and bf16_full_eval move the student to the device later than this
    at = next(model.parameters()).device
    placed = at.type == device.type
    batch = StepBatch(sample, task_model.items(sample))
    with evaluating(model), torch.no_grad(), same_randomness(), warnings.catch_warnings():
        theirs = step.ask_teacher(batch, step.teacher_needs(lazy_logits=step.lazy_logits))
        if theirs is not None:
            check_targets(theirs, batch.items)
        warnings.simplefilter("ignore")  # a last batch of one is not meant by these few
        ours = None
        if placed or inside:
            own, needs = send_to_device(sample, at), objective.student_needs
            needs = needs.with_lazy_logits(task_model.provides) if step.lazy_logits else needs
            _, signal = task_model.ask(model, own, needs, task_model.items(own))
            ours = align_classes(signal, step.student_order)
            wanted = objective.needs
            if theirs is not None and (wanted.logits or wanted.lazy_logits):
                check_kinds(ours.kind, theirs.kind, theirs.who)
            taught = {} if theirs is None else theirs.members
            for name in ours.members.keys() & taught.keys():
                check_kinds(ours.members[name].kind, taught[name].kind, taught[name].who)
        torch.manual_seed(seed)
        built = objective.build(ours, theirs).to(device)
        if placed and ours is not None:
            context = step.context(batch, model, Progress(), built)
            if ours.lazy_logits is None:
                objective.terms(ours, theirs, batch.items, context)
            else:
                inputs = StepInputs(ours, theirs, batch.items, context)
                reduce_chunked(objective, inputs, batch.items.counts())
    return built
