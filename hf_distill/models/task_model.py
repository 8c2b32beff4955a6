"""A model with its task: inputs from a batch, outputs to a signal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import ModelOutput
from transformers.utils.generic import find_labels

from hf_distill.losses.fused import LazyLogits
from hf_distill.models.batch_checks import check_labels, explain_error
from hf_distill.models.batches import RAW_COLUMNS, Batch, batch_of, batch_size, check_readable
from hf_distill.models.hooks import (
    attention_projections,
    captured,
    eager_attention,
    queries_keys_values,
    skipped_lm_head,
    traced_input,
)
from hf_distill.models.lm_head import OutputEmbedding
from hf_distill.models.modules import (
    ANY,
    config_of,
    forward_inputs,
    has_config,
    learn,
    opened,
    seen_fields,
    text_config,
    unwrapped,
)
from hf_distill.models.outputs import Named, by_name, check_fields, plain
from hf_distill.models.places import NO_PROMPT, Prompt, check_order, needs_labels, task_columns
from hf_distill.models.sharding import remote_numel
from hf_distill.models.signals import (
    LOGITS,
    BatchItems,
    Needs,
    Signal,
    for_member,
    of_member,
    of_members,
)
from hf_distill.models.special_tokens import SpecialTokens
from hf_distill.models.states import attentions_of, layers_of, other_items, stacks
from hf_distill.models.tasks import Task, inner_model, named_task, output_fields, task_of

MULTI_LABEL = "multi_label_classification"
PREPROCESSING = ("preprocessor_config.json", "processor_config.json")
FLOATING = ("pixel_values", "input_values", "input_features")


def base_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model below an adapter or a wrapper, or the model itself."""
    return inner_model(model)  # type: ignore[return-value]


class TaskModel:
    """A model that is fed its part of a batch and whose outputs are read into a `Signal`.

    Args:
        model: A model of transformers or any module, also inside a PEFT adapter, ``torch.compile``
            or a wrapper.
        task: Its task, or the task's name; found by the class when not given.
        role: Its role in messages: ``student``, ``teacher``, ….
    """

    def __init__(self, model: nn.Module, task: Task | str | None = None, role: str = "model"):
        self.given = opened(model)[0] or model  # an adapter too, but nothing compiled around it
        self._adapted = isinstance(self.given, PeftModel)
        self.model, self.role = base_of(model), role
        self.who = f"the {role} ({type(self.model).__name__})"
        task = named_task(task) if isinstance(task, str) else task
        self.task = task_of(self.model) if task is None else task
        self.config: Any = config_of(self.model)
        self._has_config = has_config(self.model)
        self.accepts, self._asks = forward_inputs(unwrapped(model), self.model)
        self.accepts |= task_columns(model)
        heads = self.task.heads.items()
        self.heads = {n: TaskModel(head, role=f"{role}'s {n}") for n, head in heads}
        for head in self.heads.values():
            self.accepts |= head.columns | {*RAW_COLUMNS}
        self._read = False
        self._known: Needs | None = None
        self.own_processor: Any = None  # of a teacher that does not read the student's inputs
        self.problem: str | None = None  # what was settled, see `hf_distill.models.problems`
        reads = self.task.name == "sequence_classification"
        self.tokens = SpecialTokens(self.model, self.config, self.who, reads)
        self._projection = OutputEmbedding(self.model) if self._projects else None
        self._projections = attention_projections(self.model, list(self.task.attentions))
        if any(not isinstance(self._heads(group), int) for group in self._projections):
            self._projections = {}  # stages of different numbers of heads, over windows (Swin)

    @property
    def takes_all(self) -> bool:
        """True if its ``forward`` names no input (``**kwargs`` only)."""
        return not self.accepts

    def takes(self, column: str, labels: bool = False) -> bool:
        """True if this column of a batch is passed to the model, labels on request."""
        wanted = labels or column not in self.label_keys
        return wanted and (self.takes_all or column in self.accepts)

    @property
    def columns(self) -> set[str]:
        """The columns that its ``forward`` names, without labels; `ANY` if it names none."""
        return {ANY} if self.takes_all else self.accepts - self.label_keys

    @property
    def unseen(self) -> bool:
        """True for a module without a config that has not run yet."""
        return not self._has_config and seen_fields(self.model) is None

    def _gives(self, what: str) -> bool:
        """True if it returns ``hidden_states`` or ``attentions``, always or on request."""
        return self._listens(what) or what in (seen_fields(self.model) or ())

    def _listens(self, what: str) -> bool:
        """True if its ``forward`` takes the switch of an output (``output_hidden_states``)."""
        through = isinstance(self.model, PreTrainedModel) and self._asks
        return through or f"output_{what}" in self.accepts

    @property
    def provides(self) -> Needs:
        """The outputs it can provide; those of a plain module are complete after its first run."""
        if self._known is None:
            self._known = self._provided()
        return self._known

    def _provided(self) -> Needs:
        if self.heads:
            return self._provided_by_heads()
        fields = output_fields(self.model)
        paths = {path.split(".")[0] for path in self.task.attentions.values()}
        logits = self.task.read is not None
        return Needs(
            logits=logits,
            unsampled=logits,
            full_vocabulary=logits,
            lazy_logits=self._projection is not None
            and self._projection.known
            and not needs_labels(self.given),  # its loss would read the logits
            hidden_states=self._gives("hidden_states"),
            attentions=self._gives("attentions") and (not fields or bool(paths & set(fields))),
            qkv=bool(self._projections),
            inputs=logits and (self.floating is not None or "inputs_embeds" in self.accepts),
            router_loss="aux_loss" in fields and "output_router_logits" in self.accepts,
            own_loss="loss" in fields or not fields,
            modules=frozenset(name for name, _ in self.model.named_modules() if name),
        )

    def _provided_by_heads(self) -> Needs:
        """Hidden states, maps and modules of the shared encoder; logits of each head."""
        first = next(iter(self.heads.values())).provides
        states = Needs(hidden_states=first.hidden_states, attentions=first.attentions)
        modules = frozenset(name for name, _ in self.model.named_modules() if name)
        found = states | Needs(modules=modules)
        for name, head in self.heads.items():
            found |= of_member(name, head.provides & (states | LOGITS))
        return found

    @property
    def logit_needs(self) -> Needs:
        """The logits of its head, or of every head."""
        return of_members(self.heads, LOGITS) if self.heads else LOGITS

    @property
    def classes(self) -> int | None:
        """Number of classes of the logits; None if it varies from batch to batch."""
        if self.task.classes == "labels":
            return None if self.config.num_labels is None else int(self.config.num_labels)
        return vocabulary_size(self.config) if self.task.classes == "vocabulary" else None

    @property
    def _projects(self) -> bool:
        """True if its logits are one product of hidden states and a matrix."""
        owner: Any = self.model
        known = self.task.classes == "vocabulary" and self.task.kind == "softmax"
        known = known and isinstance(owner, PreTrainedModel)
        return known and owner.get_output_embeddings() is not None

    @property
    def floating(self) -> str | None:
        """The floating input of this model, if it has one."""
        first = next((name for name in FLOATING if name in self.accepts), "")
        name = str(getattr(self.model, "main_input_name", first))
        return name if name in self.accepts and name in FLOATING else None

    @property
    def label_keys(self) -> set[str]:
        """The batch keys that hold labels."""
        if self.task.read is None:  # an encoder, or a head without a task
            return {*self.task.label_keys, *find_labels(type(self.model))}
        return set(self.task.label_keys)

    def _heads(self, group: str) -> Any:
        config = getattr(self.config, f"{group}_config", self.config)
        own = getattr(config, f"{group}_attention_heads", None)
        return getattr(config, "num_attention_heads", None) if own is None else own

    def ask(
        self, call: Callable[..., Any], batch: Batch, needs: Needs, items: BatchItems
    ) -> tuple[Any, Signal]:
        """Run the model on its part of a batch and read its outputs.

        Args:
            call: The model itself, or its wrapper.
            batch: The collated batch.
            needs: Requested outputs.
            items: The items of the batch.

        Returns:
            The model's outputs, and the signal.

        Raises:
            ValueError: the model does not return a requested output.
        """
        asked = needs
        needs = self._own_needs(needs)
        inputs = self.inputs(batch, needs)
        layers = [p for layers in self._projections.values() for p in layers] if needs.qkv else []
        paths = sorted({*needs.modules, *(path for paths in layers for path in paths)})
        if paths or needs.attentions or needs.inputs:  # compiled code runs no new hooks
            call = getattr(call, "_orig_mod", call)
        with contextlib.ExitStack() as stack:
            real = items.masks.get("hidden")
            length = None if real is None else real.shape[-1]
            taken = stack.enter_context(captured(self.model, paths, length)) if paths else {}
            if needs.attentions:
                stack.enter_context(eager_attention(self.model))
            traced: list[Tensor] = []
            if needs.inputs:
                stack.enter_context(torch.enable_grad())
                stack.enter_context(
                    sdpa_kernel(SDPBackend.MATH)
                )  # the one with a second derivative
                key = self.floating
                traced = stack.enter_context(traced_input(self.model, key, inputs))
            linear: list[LazyLogits] = []
            if needs.lazy_logits and self._projection is not None:
                projection = self._projection
                linear = stack.enter_context(skipped_lm_head(projection.layer, projection.of))
            for own in (self, *self.heads.values()):
                if own.tokens.names:
                    stack.enter_context(own.tokens.in_config())
            try:
                outputs = call(**inputs) if self._read else self._first(call, inputs, batch)
                signal = self.signal(outputs, batch, needs, items, taken, traced)
                if self.heads:
                    members = self._members(outputs, batch, asked, items)
                    signal = replace(signal, members=members)
            except (IndexError, RuntimeError, ValueError) as error:
                explain_error(error, self.who, self.model, inputs)
                raise
            if linear:
                prompt = Prompt.of(self.given, batch)
                behind = replace(linear[0], hidden=tuple(map(prompt.after, linear[0].hidden)))
                self._check_rows(behind.shape, items)
                signal = replace(signal, logits=None, lazy_logits=behind)
            return outputs, signal

    def _own_needs(self, needs: Needs) -> Needs:
        """Outputs that the forward returns for the needs of itself and of its heads."""
        if not self.heads:
            return needs
        own = replace(needs, modules=frozenset(p for p in needs.modules if "/" not in p))
        for name in self.heads:
            theirs = for_member(name, needs)
            own |= Needs(hidden_states=theirs.hidden_states, attentions=theirs.attentions)
        return own

    def _members(
        self, outputs: Any, batch: Batch, needs: Needs, items: BatchItems
    ) -> dict[str, Signal]:
        """The signal of every head; hidden states are those of the shared encoder."""
        found = {}
        for name, head in self.heads.items():
            view = Named({**outputs, "logits": outputs[f"{name}_logits"]})
            own = for_member(name, needs)
            found[name] = head.signal(view, batch_of(batch, name), own, items.members[name])
        return found

    def inputs(self, batch: Batch, needs: Needs) -> dict[str, Any]:
        """Inputs of this model from a batch, with the switches of requested outputs; labels only if
        its own loss is requested.

        Floating inputs get the dtype of its weights: that of the student under DeepSpeed (`Trainer`
        casts the batch) need not be the teacher's.
        """
        taken = [key for key in batch if self.takes(key, labels=needs.own_loss)]
        taken = [key for key in taken if not (self.heads and key in RAW_COLUMNS)]
        inputs = {key: batch[key] for key in taken}
        dtypes = (p.dtype for p in self.model.parameters() if p.is_floating_point())
        dtype = next(dtypes, None)  # a student may be any module, also without a dtype
        for key, value in inputs.items():
            if isinstance(value, Tensor) and value.is_floating_point() and dtype is not None:
                inputs[key] = value.to(dtype)
        if self.tokens.names:
            inputs = self.tokens.placed(inputs)
        if self._adapted and needs_labels(self.given):
            inputs.pop("decoder_input_ids", None)
            inputs["labels"] = batch["labels"]
        if {"use_cache", "cache"} & self.accepts:
            inputs["use_cache"] = False
        if needs.own_loss and "return_loss" in self.accepts:
            inputs["return_loss"] = True
        for what in ("hidden_states", "attentions"):
            if getattr(needs, what) and self._listens(what):
                inputs[f"output_{what}"] = True
        routed = needs.own_loss and getattr(self.config, "output_router_logits", False)
        if needs.router_loss or (routed and "output_router_logits" in self.accepts):
            inputs["output_router_logits"] = True
        if isinstance(self.model, PreTrainedModel) and not self.config.return_dict:
            inputs["return_dict"] = True
        return inputs

    def _first(self, call: Callable[..., Any], inputs: Mapping[str, Any], batch: Batch) -> Any:
        """First forward of this model; errors get its name."""
        try:
            outputs = call(**inputs)
        except Exception as error:
            if isinstance(error, RuntimeError) and "out of memory" in str(error).lower():
                raise  # which `auto_find_batch_size` has to see
            raise ValueError(self._unreadable(error, batch)) from error
        self._read = True
        return outputs

    def _unreadable(self, error: Exception, batch: Batch) -> str:
        shapes = {key: tuple(getattr(value, "shape", ())) for key, value in batch.items()}
        remedy = (
            "Prepare the data in the columns and sizes that its config names, or give it a config "
            "of the data's sizes."
        )
        if self.role == "teacher":
            remedy = (
                "Prepare the data so that both models read them (all columns, one image size, "
                "one number of features), or choose another teacher"
            )
            if self.task.kind is None:  # one row of logits per example
                remedy += (
                    "; or let this one read a raw column with its own processor: "
                    "ModelTeacher(model, processor, inputs='image'), with the column's name"
                )
            remedy += "."
        what = f"{type(error).__name__}: {error}".rstrip(". ")
        takes = "any column" if self.takes_all else sorted(self.accepts)
        return (
            f"Expected {self.who} to read the batch {shapes}, got {what}. "
            f"It takes {takes}. {remedy}"
        )

    def projects_last(self, run: Callable[[], Tensor | None]) -> bool:
        """True if `LazyLogits` reproduce its logits (`OutputEmbedding.is_last`).

        Args:
            run: Runs the model and returns its logits.
        """
        return self._projection is None or self._projection.is_last(run)

    def check_labels(self, batch: Mapping[str, Any], items: BatchItems, wait: bool = False) -> None:
        """Raise ValueError for labels out of range; on a GPU only with ``wait``."""
        for name, head in self.heads.items():
            head.check_labels(batch_of(batch, name), items.members[name], wait)
        labels, mask = items.labels, items.masks.get("labels")
        if labels is None or mask is None or not (wait or check_readable(labels)):
            return
        several = self.task.name == "multiple_choice"
        classes = batch["input_ids"].shape[1] if several else self.classes
        kind, single = self.kind(labels), labels.shape == mask.shape
        if kind in ("softmax", "ctc") and classes and single and not labels.is_floating_point():
            counted = labels[mask]
            if not bool(((counted < 0) | (counted >= classes)).any()):
                return
        tokens = self.task.classes == "vocabulary"
        check_labels(items, kind, classes, self.who, self.task.axis or 0, tokens)

    def items(self, batch: Batch, rows: Tensor | None = None) -> BatchItems:
        """Items of a batch.

        Args:
            batch: The collated batch.
            rows: ``(B,)`` boolean, false for examples that must not count (the repeated examples
                with which a distributed evaluation fills its last batch); default: all.
        """
        if rows is None:
            size = batch_size(batch)
            device = next(v.device for v in batch.values() if isinstance(v, Tensor))
            rows = torch.ones(size, dtype=torch.bool, device=device)
        items = self.task.items(batch, self.model, rows)
        return replace(items, own_labels="spans") if "spans" in items.masks else items

    def kind(self, labels: Tensor | None) -> str:
        """Form of this head's logits, as transformers determines it."""
        if self.task.kind is not None:
            return "sigmoid" if self._binary_map() else self.task.kind
        problem = getattr(self.config, "problem_type", None) or self.problem
        if problem == "regression" or (problem is None and self.config.num_labels == 1):
            return "regression"
        several = labels is not None and labels.is_floating_point()
        if several and labels is not None and labels.dim() == 1 and not self._has_config:
            return "regression"
        return "sigmoid" if problem == MULTI_LABEL or (problem is None and several) else "softmax"

    def _binary_map(self) -> bool:
        return self.task.name == "semantic_segmentation" and self.config.num_labels == 1

    def signal(
        self,
        outputs: Any,
        batch: Batch,
        needs: Needs,
        items: BatchItems,
        taken: Mapping[str, Tensor] | None = None,
        traced: Sequence[Tensor] = (),
    ) -> Signal:
        """Read a model's outputs: classes last, in this model's own order."""
        if not isinstance(outputs, ModelOutput):
            outputs = by_name(outputs, self.task.fields, needs.own_loss)
        prompt, taken = NO_PROMPT, taken or {}
        if self._adapted:
            prompt = Prompt.of(self.given, batch)
            taken = {path: prompt.module(path, v) for path, v in taken.items()}
            outputs = prompt.outputs(outputs)
        logits = self._logits(outputs, batch, needs, items)
        if self.unseen:
            classes = None if logits is None else logits.shape[-1]
            learn(self.model, frozenset(outputs), self.task.classes, classes)
            self._known = None
        hidden: dict[str, tuple[Tensor, ...]] = {}
        if needs.hidden_states:
            for group, path in (self.task.hidden or stacks(outputs, items)).items():
                hidden[group] = layers_of(outputs, group, path, items, self.who)
            if not hidden:
                raise ValueError(
                    f"Expected hidden states from {self.who}, got {sorted(outputs.keys())}, of "
                    "which none has a row for each example. Take modules by their paths "
                    "(layers='<of the teacher>:<of the student>')."
                )
        attentions: dict[str, tuple[Tensor, ...]] = {}
        if needs.attentions:
            for group, path in self.task.attentions.items():
                attentions[group] = attentions_of(outputs, path, self.who)
                prompt.check_maps(self.who, attentions[group])
        qkv = {}
        if needs.qkv:
            for group, layers in self._projections.items():
                heads = self._heads(group)
                qkv[group] = tuple(queries_keys_values(taken, paths, heads) for paths in layers)
        modules = {path: taken[path] for path in needs.modules if path in taken}
        for path, values in modules.items():
            check_order(self.model, path, values, batch)
        if missing := needs.modules - set(modules):
            raise ValueError(
                f"Expected the modules {sorted(missing)} of {type(self.model).__name__} to run, "
                "and they did not. Name modules that this head uses (`model.named_modules()`)."
            )
        graph = (logits, traced[0]) if traced and logits is not None else None
        label_read, known = self.task.label_read, self.task.read is not None
        return Signal(
            logits,
            self.kind(items.labels),
            hidden,
            attentions,
            qkv,
            modules,
            graph,
            router_loss=outputs.aux_loss if needs.router_loss else None,
            label_logits=label_read(outputs, batch) if label_read and known else None,
            own_loss=getattr(outputs, "loss", None) if needs.own_loss else None,
            blank=int(getattr(self.config, "pad_token_id", None) or 0),
            zero_infinity=bool(getattr(self.config, "ctc_zero_infinity", True)),
            who=self.who,
        )

    def _logits(self, outputs: Any, batch: Batch, needs: Needs, items: BatchItems) -> Tensor | None:
        if self.task.read is None:
            return None
        fields = (getattr(outputs, name, None) for name in self.task.fields)
        if not all(isinstance(value, Tensor) for value in fields):
            check_fields(outputs, self.task.fields, self.who, self.task.name)
        read, mask = self.task.read, items.masks.get("items")
        logits = outputs.logits if read is plain else read(outputs, batch)
        if mask is not None and logits.shape == mask.shape and mask.dim() == 1:
            logits = logits.unsqueeze(-1)  # a module that gives one number for an example
        wanted = needs.logits or needs.inputs
        if not needs.lazy_logits and mask is not None and tuple(logits.shape[:-1]) != mask.shape:
            if wanted:
                self._check_rows(logits.shape, items)
            return None
        return logits

    def _check_rows(self, shape: Sequence[int], items: BatchItems) -> None:
        """Raise if logits ``(..., C)`` do not match the items of the batch."""
        mask = items.masks.get("items")
        if mask is not None and tuple(shape[:-1]) != mask.shape:
            raise ValueError(other_items(self.model, shape, mask, self.task, self.role))


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Facts for logs and model cards."""
    config: Any = config_of(model)
    own = isinstance(model, PreTrainedModel)  # counts 4-bit weights correctly
    owner: Any = model
    count = owner.num_parameters() if own else sum(p.numel() for p in model.parameters())
    return {
        "name": config._name_or_path or None,
        "revision": getattr(config, "_commit_hash", None),
        "architecture": type(model).__name__.removeprefix("FSDP"),  # fully_shard renames it
        "parameters": count + remote_numel(model),
        "layers": getattr(config, "num_hidden_layers", None),
        "hidden_size": getattr(config, "hidden_size", None),
        "num_labels": config.num_labels,
    }


def vocabulary_size(config: Any) -> int | None:
    """The number of entries of a model's vocabulary, its padding included."""
    return getattr(text_config(config), "vocab_size", None)


def local_processor(task_model: TaskModel) -> Any:
    """The tokenizer, image processor or feature extractor in a model's local folder; None: there is
    none."""
    name = str(task_model.config._name_or_path or "")
    texts, others = ("tokenizer.json", "vocab.txt", "tokenizer_config.json"), PREPROCESSING
    folder, files = Path(name), texts if "input_ids" in task_model.accepts else others
    if not name or not any((folder / file).is_file() for file in files):
        return None
    if "input_ids" in task_model.accepts:
        return load_processor(task_model, folder)
    with contextlib.suppress(ImportError, OSError, ValueError):  # of one with missing packages
        return load_processor(task_model, folder)
    return None


def load_processor(task_model: TaskModel, name: str | Path, **where: Any) -> Any:
    """The tokenizer, image processor or feature extractor of a model, from a folder or the Hub."""
    kind: Any = AutoTokenizer
    if "input_ids" not in task_model.accepts:
        kind = AutoImageProcessor if "pixel_values" in task_model.accepts else AutoFeatureExtractor
    return kind.from_pretrained(name, **where)


def local_vocabulary(task_model: TaskModel) -> dict[str, int] | None:
    """The vocabulary of the tokenizer in a model's local folder, if there is one."""
    processor = local_processor(task_model)
    return processor.get_vocab() if hasattr(processor, "get_vocab") else None
