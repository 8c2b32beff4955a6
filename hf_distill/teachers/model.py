"""A frozen model as the teacher."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from hf_distill.models.batch_checks import position_limit
from hf_distill.models.batches import Batch
from hf_distill.models.embedding import is_embedder, load_embedder, own_class
from hf_distill.models.embedding.parts import hub_options
from hf_distill.models.modules import without_parallel
from hf_distill.models.raw_inputs import token_limit
from hf_distill.models.sharding import is_partitioned, zero3_inference_engine
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.models.task_model import (
    TaskModel,
    base_of,
    describe_model,
    load_processor,
    local_processor,
)
from hf_distill.models.tasks import Task, task_of
from hf_distill.teachers.own_inputs import PREFIX, OwnInputs, own_inputs
from hf_distill.teachers.privileged import PromptInputs, Template
from hf_distill.teachers.protocol import Teacher


class ModelTeacher(Teacher):
    """A frozen model, in its own dtype and quantisation.

    It is in eval mode and computes no gradients; it is not a submodule of the student, so that it
    is in no checkpoint, no optimizer and no ``train()`` call. Independent of the student's
    distribution, every process holds a full copy of the teacher, unless it is sharded.

    With a ``processor`` that is not the student's, the teacher reads inputs of its own
    (`hf_distill.teachers.own_inputs.OwnInputs`), which the trainer's data collator makes of a raw
    column of the data: a text, words, an image, a sound.

    Args:
        model: A model of transformers or any module, also inside a PEFT adapter, ``torch.compile``
            or DataParallel.
        processor: Its tokenizer, image processor or feature extractor; found in the model's local
            folder when not given.
        inputs: The raw column that it reads with its processor, or two for pairs of texts (the
            second may hold lists of texts, each of which is paired with the first); or columns of
            its own inputs, ``teacher_input_ids``, …. By default the trainer compares both
            processors, and takes the only column that fits.
        prompt: A prompt of its own for a causal language model that holds more than the student's:
            see `hf_distill.teachers.privileged.PromptInputs`.
        max_length: Tokens after which its own texts are cut; default: the tokenizer's or the
            model's limit.
        task: Its task, or the task's name, if its class does not determine it.
        shard: Spread the weights over all processes with PyTorch's FSDP2 (`fully_shard`), block by
            block, whether the student is under DDP, FSDP2 or ZeRO. Each block is gathered for its
            forward, so all processes must call it equally often, as a training does.

    Raises:
        ValueError: the weights are quantised or on several devices already, and cannot be sharded.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any = None,
        task: Task | str | None = None,
        *,
        inputs: str | Sequence[str] | None = None,
        prompt: Template | None = None,
        max_length: int | None = None,
        shard: bool = False,
    ):
        self.model = without_parallel(model).requires_grad_(False).eval()
        self.task_model = TaskModel(self.model, task, "teacher")
        self.config = self.task_model.config
        self._processor = processor
        self._max_length = max_length
        self.own_inputs: OwnInputs | None = None
        if inputs is not None:
            self.read_own_inputs(inputs)
        if prompt is not None:
            self.own_inputs = self._with_prompt(prompt)
        self._autocast: Any = contextlib.nullcontext
        self._shard = shard
        self._engine: Any = None
        if shard and self._placed:
            raise ValueError(
                "Expected a teacher on one device to shard, got one that is quantised or has a "
                "device map. Load it without them, or leave shard=True out."
            )

    @classmethod
    def load(cls, name: str | Path, task: Task, init_kwargs: Mapping[str, Any]) -> ModelTeacher:
        """Load a teacher by Hub id or folder with the auto class of a task; OSError if there is no
        such model."""
        try:
            model = _loaded(str(name), task, init_kwargs)
        except (OSError, ValueError) as error:
            raise type(error)(
                f"The teacher {str(name)!r} could not be loaded with "
                f"{task.auto_class or 'the class that its config names'}: {error}\n"
                "teacher_model takes a Hub id, a folder, a model or a Teacher."
            ) from error
        teacher = cls(model)
        if not Path(name).exists():  # a repository of the Hub; a folder is looked at when needed
            where = {key: init_kwargs[key] for key in ("revision", "token") if key in init_kwargs}
            with contextlib.suppress(ImportError, OSError, ValueError):
                teacher._processor = load_processor(teacher.task_model, str(name), **where)
        return teacher

    @property
    def provides(self) -> Needs:
        given = self.task_model.provides
        if self.own_inputs is None:
            return given
        return replace(given, attentions=False, qkv=False, inputs=False, lazy_logits=False)

    @property
    def processor(self) -> Any:
        """Its tokenizer, image processor or feature extractor; None: unknown."""
        if self._processor is None:
            self._processor = local_processor(self.task_model)
        return self._processor

    def read_own_inputs(self, inputs: str | Sequence[str] | None = None) -> OwnInputs:
        """Read raw columns with its own processor from now on.

        Raises:
            ValueError: it has no processor, or classes at positions, which would not match.
        """
        names = [inputs] if isinstance(inputs, str) else list(inputs or ())
        given = bool(names) and all(name.startswith(PREFIX) for name in names)
        if self.processor is None and not given:
            raise ValueError(
                f"Expected the processor of {self.task_model.who}, which is to read "
                f"{inputs or 'raw columns'}, got none. Pass it: ModelTeacher(model, processor)."
            )
        found = own_inputs(self.processor, names, self.task_model, self._max_length)
        self.own_inputs, self.task_model.own_processor = found, self.processor
        return found

    def _with_prompt(self, prompt: Template) -> PromptInputs:
        if self.processor is None or self.task_model.task.name != "causal_lm":
            raise ValueError(
                f"Expected a causal language model and its tokenizer for prompt=…, got "
                f"{self.task_model.task.name} and {type(self.processor).__name__}. Pass "
                "ModelTeacher(model, tokenizer, prompt=…)."
            )
        limit = self._max_length or token_limit(self.processor, position_limit(self.model))
        return PromptInputs(self.processor, max_length=limit, template=prompt)

    def __call__(self, batch: Batch, needs: Needs, items: BatchItems) -> Signal:
        if self.own_inputs is None:
            return self._ask(batch, needs, items)
        own = self.own(batch)
        rows = self.own_inputs.rows(batch, items)
        signal = self._ask(own, needs, self.task_model.items(own, rows))
        return self.own_inputs.of_student(signal, batch, items, self.task_model.who)

    def own(self, batch: Batch) -> dict[str, Any]:
        """The batch that its model reads."""
        own, task_model = self.own_inputs, self.task_model
        return dict(batch) if own is None else own.own(batch, task_model.label_keys, task_model.who)

    def _ask(self, batch: Batch, needs: Needs, items: BatchItems) -> Signal:
        with torch.no_grad(), self._autocast():
            _, signal = self.task_model.ask(self.model, batch, needs, items)
        return signal.detach() if needs.inputs else signal  # which alone have a graph

    def columns(self) -> set[str]:
        return self.task_model.columns if self.own_inputs is None else self.own_inputs.names

    def tokens(self) -> Mapping[str, int] | None:
        processor = self.processor
        return processor.get_vocab() if hasattr(processor, "get_vocab") else None

    def place(self, accelerator: Accelerator) -> None:
        # Not accelerator.prepare_model: that registers the teacher as a model of the accelerator,
        # and a later evaluate() then skips preparing the student.
        if any(map(is_partitioned, self.model.parameters())):
            self._engine = self._engine or zero3_inference_engine(self.model, accelerator)
        elif self._shard and accelerator.num_processes > 1:
            _sharded(self.model, accelerator)
        elif not self._placed:
            self.model.to(accelerator.device)
        self._autocast = accelerator.autocast

    @property
    def _placed(self) -> bool:
        """True if transformers has placed it."""
        own = ("hf_quantizer", "hf_device_map")
        return any(getattr(self.task_model.model, name, None) is not None for name in own)

    def describe(self) -> dict[str, Any]:
        dtypes = (p.dtype for p in self.task_model.model.parameters() if p.is_floating_point())
        dtype = getattr(self.task_model.model, "dtype", None) or next(dtypes, None)
        facts = describe_model(self.task_model.model)
        return facts if dtype is None else {**facts, "dtype": str(dtype).removeprefix("torch.")}


def _loaded(name: str, task: Task, init_kwargs: Mapping[str, Any]) -> Any:
    """A teacher by the auto class of its task or, where there is none or it does not list a model
    of this task (VisionTextDualEncoder), by the class that the teacher's config names; embedders
    of sentence-transformers and model2vec with their pooling."""
    if task.name == "encoder" and is_embedder(name, **hub_options(init_kwargs)):
        return load_embedder(name, **init_kwargs)
    if not task.auto_class:
        return _named(name, init_kwargs).from_pretrained(name, **init_kwargs)
    try:
        return getattr(transformers, task.auto_class).from_pretrained(name, **init_kwargs)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        with contextlib.suppress(OSError, ValueError):
            model = _named(name, init_kwargs).from_pretrained(name, **init_kwargs)
            if task_of(model).name == task.name:
                return model
        raise


def _named(name: str, init_kwargs: Mapping[str, Any]) -> Any:
    """The class that a model's config names."""
    config = transformers.AutoConfig.from_pretrained(name, **hub_options(init_kwargs))
    known = [own_class(each) for each in config.architectures or ()]
    if not known or known[0] is None:
        raise ValueError(
            f"its config names the classes {config.architectures}, and none is in transformers. "
            "Load it yourself and pass the model."
        )
    return known[0]


def _sharded(model: nn.Module, accelerator: Accelerator) -> None:
    """Spread a model over all processes, in place; once."""
    if isinstance(model, FSDPModule):
        return
    device = accelerator.device.type
    mesh = init_device_mesh(device, (accelerator.num_processes,))
    names = set(getattr(base_of(model), "_no_split_modules", None) or ())
    blocks = [m for m in model.modules() if type(m).__name__ in names and m is not model]
    if device != "cpu":
        model.to("cpu")  # the whole model need not fit on one device
    for block in [*blocks, model]:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
