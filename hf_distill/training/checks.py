"""Validation at construction time; every error contains a remedy."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import warnings
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from hf_distill.evaluation.running_metrics import FIGURES
from hf_distill.models.modules import unwrapped
from hf_distill.models.signals import Needs
from hf_distill.models.task_model import TaskModel
from hf_distill.models.tasks import has_task, unknown_head
from hf_distill.objectives import RouterBalance, WeightDecay
from hf_distill.objectives.base.objective import Objective, WeightedSum
from hf_distill.objectives.features import FeatureObjective
from hf_distill.teachers import ModelTeacher, TaskTeachers, Teacher
from hf_distill.training.checkpoint_files import LIST, check_checkpoint


def check_arguments(args: Any, wanted: type, compute_loss_func: Any = None) -> None:
    """Refuse arguments of another kind, two losses at once, and DataParallel."""
    if not isinstance(args, wanted):
        raise ValueError(
            f"Expected args to be a {wanted.__name__}, got {type(args).__name__}. It takes the "
            f"same arguments: {wanted.__name__}('out', …)."
        )
    if compute_loss_func is not None:
        raise ValueError(
            "compute_loss_func and an objective would both be the loss. Write an Objective (see "
            "the README), or override compute_loss in a subclass."
        )
    devices: int = getattr(args, "n_gpu", 1)
    if devices > 1:
        raise ValueError(
            f"Expected one device per process, got {devices} in this one: DataParallel cannot "
            "normalise the loss. Start one process per device (`accelerate launch …` or "
            "`torchrun …`), or let this one see a single device (CUDA_VISIBLE_DEVICES)."
        )


def with_adapter(model: Any, config: PeftConfig) -> nn.Module:
    """Put an adapter on the student."""
    if isinstance(model, PeftModel):
        raise ValueError(
            "The student has an adapter already, and peft_config would add another. Leave "
            "peft_config out, or merge the adapter first (model.merge_and_unload())."
        )
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"peft_config needs a transformers model, got {type(model).__name__}.")
    adapted: nn.Module = get_peft_model(model, config)
    return adapted


@contextlib.contextmanager
def without_smoothing(args: Any, model: Any) -> Iterator[None]:
    """Disable label smoothing while `Trainer` is built for a module without a config."""
    factor = args.label_smoothing_factor
    able = any(
        hasattr(model, f"{which}_checkpointing_enable") for which in ("activation", "gradient")
    )
    if model is not None and args.gradient_checkpointing and not able:
        raise ValueError(
            f"Activation checkpointing is for models of transformers; {type(model).__name__} has "
            "no method activation_checkpointing_enable. Leave it out (torch.utils.checkpoint in "
            "the module's forward does the same)."
        )
    if model is not None and not hasattr(model, "config"):
        args.label_smoothing_factor = 0.0
    try:
        yield
    finally:
        args.label_smoothing_factor = factor


def find_teacher(teacher: Any, student: TaskModel, init_kwargs: Any) -> Teacher | None:
    """Make a `Teacher` of an id, a folder, a model, a teacher, or None."""
    if isinstance(teacher, (str, Path)):
        if (Path(teacher) / LIST).is_file():  # a checkpoint of ours
            check_checkpoint(Path(teacher), states=False)
        return ModelTeacher.load(teacher, student.task, dict(init_kwargs or {}))
    if init_kwargs:
        raise ValueError(
            "teacher_model_init_kwargs are for a teacher given by name or path; this one is a "
            f"{type(teacher).__name__} already. Pass them to its from_pretrained instead."
        )
    if isinstance(teacher, nn.Module) and not student.heads:
        shared = {id(p) for p in student.model.parameters()}
        if any(id(p) in shared for p in teacher.parameters()):
            raise ValueError(
                "The teacher shares weights with the student, and freezing it would freeze both. "
                "Pass a copy: copy.deepcopy(model)."
            )
        known = has_task(teacher) or type(unwrapped(teacher)).__module__.startswith("transformers.")
        return ModelTeacher(teacher, task=None if known else student.task)
    if isinstance(teacher, Mapping):
        return _task_teachers(teacher, student)
    if student.heads and teacher is not None and not isinstance(teacher, TaskTeachers):
        raise ValueError(
            f"Expected a teacher for each head of {student.who}, got one for all. Name them: "
            f"teacher_model={{{next(iter(student.heads))!r}: …}}; of another MultiHead the heads "
            "as plain models: {name: model.export_head(name) for name in model.heads}."
        )
    if teacher is not None and not isinstance(teacher, Teacher):
        raise ValueError(
            "Expected teacher_model to be a Hub id, a folder, a model or a Teacher, got "
            f"{type(teacher).__name__}."
        )
    return teacher


def _task_teachers(teachers: Mapping[str, Any], student: TaskModel) -> TaskTeachers:
    """Make a `TaskTeachers` of teachers by the names of the student's heads."""
    unknown = [name for name in teachers if name not in student.heads]
    if unknown or not teachers:
        raise ValueError(
            f"Expected teachers by the names of heads of {student.who}, {list(student.heads)}, got "
            f"{list(teachers)}. Pass a MultiHead as the student; several teachers of one task are "
            "an Ensemble({…})."
        )
    shared = {id(p) for p in student.model.parameters()}
    found: dict[str, Teacher] = {}
    for name, teacher in teachers.items():
        if isinstance(teacher, nn.Module) and any(id(p) in shared for p in teacher.parameters()):
            raise ValueError(
                f"The teacher of {name!r} shares weights with the student. Pass a copy: "
                "copy.deepcopy(model)."
            )
        made = find_teacher(teacher, student.heads[name], None)
        if made is None:
            raise ValueError(f"Expected a teacher for {name!r}, got None. Leave the head out.")
        found[name] = made
    return TaskTeachers(found)


def check_objective(
    objective: WeightedSum, teacher: Teacher | None, student: TaskModel, batch: int | None = None
) -> None:
    """Refuse an objective that does not fit this teacher, student or batch size per device."""
    for name, _, part in objective.named():
        if name in FIGURES:
            raise ValueError(
                f"The objective {type(part).__name__} is called {name!r}, as is one of the figures "
                f"of every log or evaluation, and they would mix. Call it {name + '_loss'!r}."
            )
    logits = any((part.needs | part.student_needs).logits for _, part in objective.parts)
    if logits and student.task.name == "other":
        raise ValueError(unknown_head(student.model))
    weights = [weight for weight, _ in objective.parts]
    if weights and all(isinstance(w, int | float) and w == 0 for w in weights):
        raise ValueError(
            f"Expected an objective with a weight above 0, got 0 for all of {objective}. Give one "
            "of them a weight: 1.0 * HardLabels()."
        )
    names = [name for name, _, part in objective.named() if part.needs]
    if teacher is None:
        if names:
            raise ValueError(
                f"Expected a teacher_model for {names}, got none. Pass teacher_model=…, or an "
                "objective that needs none (alpha=0 trains on the labels alone)."
            )
    else:
        for name, _, part in objective.named():
            theirs = getattr(teacher, "task_model", None)
            model = theirs.model if isinstance(theirs, TaskModel) else None
            _check_provided(name, part, part.needs, teacher.provides, ("teacher", model))
            own = dataclasses.replace(part.student_needs, logits=False)  # `Objective.check` says it
            _check_provided(name, part, own, student.provides, ("student", student.model))
    together = [  # routers compare tokens, of which one example has many
        name
        for name, _, part in objective.named()
        if part.compares_examples and not isinstance(part, RouterBalance)
    ]
    if together and batch == 1:
        raise ValueError(
            f"The objective {together} compares the examples of a batch, and "
            "per_device_train_batch_size is 1. Raise it (accumulation does not help: each "
            "micro-batch is compared within itself)."
        )


def _check_provided(
    name: str, part: Objective, needs: Needs, provides: Needs, of: tuple[str, nn.Module | None]
) -> None:
    (who, model), missing = of, needs.missing_from(provides)
    if not missing:
        return
    near = [m for n in missing for m in get_close_matches(n, provides.modules, 2)]
    remedy = f"Choose another objective or {who}, or other layers."
    by_path = isinstance(part, FeatureObjective) and provides.modules
    if "hidden_states" in missing and model is not None and by_path:
        some = sorted(n for n, _ in model.named_children())
        remedy = (
            f"The forward of {type(model).__name__} takes no `output_hidden_states`. Take the "
            f"outputs of modules, by their paths: {type(part).__name__}('<module of the teacher>:"
            f"<module of the student>'); this {who} has {some} and what is in them."
        )
    raise ValueError(
        f"The objective {[name]} needs {missing}, which this {who} does not provide. "
        + (f"Near names are {near}. " if near else "")
        + remedy
    )


def check_gradient_norms(asked: bool, sharded: bool) -> None:
    """Refuse norms of gradients with respect to weights that are not there in the backward."""
    if asked and sharded:
        raise ValueError(
            "log_gradient_norms needs whole weights on every process, and FSDP and ZeRO-3 shard "
            "them. Set it to False; the norm of the whole gradient is logged all the same."
        )


def check_weight_decay(objective: WeightedSum, sharded: bool, decoupled: float) -> None:
    """Refuse an explicit L2 term on shards; warn where weights are pulled twice."""
    if not any(isinstance(part, WeightDecay) for _, part in objective.parts):
        return
    if sharded:
        raise ValueError(
            "WeightDecay needs whole weights on every process, and FSDP and ZeRO-3 shard them. "
            "Use the optimizer's weight_decay argument instead."
        )
    if decoupled > 0:
        warnings.warn(
            "Both the WeightDecay objective and the optimizer's weight_decay are on; weights are "
            "pulled twice. Set one of them to 0.",
            stacklevel=2,
        )


def check_weights_are_here(model: nn.Module) -> None:
    """Raise if the student's weights are on the meta device."""
    empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if empty:
        raise ValueError(
            f"The student's {empty[:4]} have no values on this process, and HiddenStates and its "
            "like look at its layers before it is sharded: with FSDP's cpu_ram_efficient_loading "
            "new weights are made on the first process alone. Set fsdp_cpu_ram_efficient_loading "
            "to false."
        )


def check_signature(trainer: type) -> None:
    """Raise if a subclass's `compute_loss` does not accept the arguments of the training loop."""
    given: Any = trainer.compute_loss  # type: ignore[attr-defined]
    parameters = inspect.signature(given).parameters.values()
    taken = any(p.name == "num_items_in_batch" or p.kind is p.VAR_KEYWORD for p in parameters)
    if not taken:
        raise ValueError(
            f"compute_loss of {trainer.__name__} has no argument num_items_in_batch, which "
            "transformers gives it in training. Write `def compute_loss(self, model, inputs, "
            "return_outputs=False, num_items_in_batch=None)`, and hand it on to super()."
        )


def warn_of_own_loss(trainer: str, objective: WeightedSum, teacher: Teacher | None) -> None:
    """Warn once that a subclass trains on a loss without the objective."""
    unused = "is not used" if teacher is None else "and the teacher are not used"
    warnings.warn(
        f"compute_loss of {trainer} did not call super(): the objective ({objective}) {unused}, "
        "and what trains is its own loss alone. Class weights are "
        "HardLabels(class_weights=...) in the objective, and other losses an Objective; or call "
        "super().compute_loss(model, inputs, True, num_items_in_batch) and add to its loss.",
        stacklevel=2,
    )
