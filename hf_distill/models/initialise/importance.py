"""Importance of a model's parts on data: layers, heads, units, channels, tokens."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_distill.models.batches import Batch
from hf_distill.models.hooks import CROSS, KEY, QUERY, VALUE
from hf_distill.models.initialise.depth import Stack, stacks_of
from hf_distill.models.initialise.width import MIXED
from hf_distill.models.modes import evaluating
from hf_distill.models.signals import BatchItems, Needs
from hf_distill.models.task_model import TaskModel, vocabulary_size

ATTENTION = re.compile("attn|attention", re.I)
IMAGES = re.compile("vision|visual")
TEXTS = ("input_ids", "decoder_input_ids")


@dataclass(frozen=True)
class Importance:
    """Importances of a model's parts; higher is more important. Fields are not comparable with one
    another.

    Attributes:
        layers: Path of a stack of layers -> ``(L,)``: the mean over tokens of 1 - cos(input,
            output) of a layer: the block influence of ShortGPT (Men et al., 2024, arXiv
            2403.03853).
        heads: Path -> ``(L, heads)``: the mean norm of what a query head adds to the residual
            stream. Stacks whose heads cannot be separated are left out.
        units: Path -> ``(L, units)``: the same for the units of the feed-forward layers: the
            absolute activation times the norm of the weights that read it.
        channels: ``(H,)``: the mean absolute value of each channel behind the norms of all layers;
            None if the model has no single width.
        tokens: ``(V,)``: how often each token occurs; None without a vocabulary.

    Heads, units and channels are those of Minitron (Muralidharan et al., 2024, arXiv 2407.14679),
    which takes the activations without the weights behind them.
    """

    layers: Mapping[str, Tensor]
    heads: Mapping[str, Tensor]
    units: Mapping[str, Tensor]
    channels: Tensor | None = None
    tokens: Tensor | None = None


def importance(model: PreTrainedModel, batches: Iterable[Batch]) -> Importance:
    """Measure the importance of a model's parts on data, for pruning.

    Args:
        model: Any model whose layers `student_from_teacher` can pick.
        batches: Collated batches, as for its training; labels are not needed. A few hundred
            examples are enough for the means to settle (Minitron takes 1024).

    Returns:
        The importances, for ``student_from_teacher(…, importance=…)``.

    Raises:
        ValueError: no batches; a model whose layers are not in one list per stack.
    """
    head, sums = TaskModel(model), _Sums()
    stacks = stacks_of(head.model)
    tokens = _no_tokens(head)
    with evaluating(model), contextlib.ExitStack() as hooks, torch.no_grad():
        for handle in _hooks(head, stacks.values(), sums):
            hooks.callback(handle.remove)
        for batch in batches:
            batch = send_to_device(dict(batch), head.model.device)
            batch = dict(head.task.share(batch, head.model))
            sums.items = head.items(batch)
            model(**head.inputs(batch, Needs()))
            tokens = tokens if tokens is None else tokens + _count(batch, len(tokens))
    if not sums.totals:
        raise ValueError("Expected batches to measure the importance on, got none.")
    found: dict[str, dict[str, Tensor]] = {"layers": {}, "heads": {}, "units": {}}
    for stack in stacks.values():
        for what, values in found.items():
            rows = [sums.mean((what, stack.path, index)) for index in range(stack.count)]
            kept = [row for row in rows if row is not None]
            if len(kept) == stack.count:
                values[stack.path] = torch.stack(kept)
    layers = {path: values.squeeze(-1) for path, values in found["layers"].items()}
    return Importance(layers, found["heads"], found["units"], sums.mean(("channels",)), tokens)


@dataclass
class _Sums:
    """Sums over tokens and their counts, by quantity."""

    totals: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    counts: dict[tuple[Any, ...], float] = field(default_factory=dict)
    items: BatchItems | None = None

    def add(self, name: tuple[Any, ...], path: str, values: Tensor) -> None:
        """Add ``(B, T, K)``, or ``(N, K)`` of flattened tokens, without padding."""
        mask = self._mask(path, values)
        kept = values.flatten(0, -2) if mask is None else values[mask]
        total = kept.float().sum(0).cpu().double()
        self.totals[name] = self.totals[name] + total if name in self.totals else total
        self.counts[name] = self.counts.get(name, 0.0) + len(kept)

    def _mask(self, path: str, values: Tensor) -> Tensor | None:
        masks = {} if self.items is None or IMAGES.search(path) else self.items.masks
        decodes = "decoder" in path.split(".") and "decoder" in masks
        names = ("decoder",) if decodes else ("hidden", "encoder", "text")
        found = (masks[name] for name in names if name in masks)
        return next((m for m in found if m.shape == values.shape[:-1]), None)

    def mean(self, name: tuple[Any, ...]) -> Tensor | None:
        total = self.totals.get(name)
        return None if total is None else total / max(1.0, self.counts[name])


# ---- where it is measured --------------------------------------------------------------------


def _hooks(task_model: TaskModel, stacks: Iterable[Stack], sums: _Sums) -> Iterator[Any]:
    config: Any = task_model.config
    hidden = getattr(config, "hidden_size", None)
    for stack in stacks:
        part = getattr(config, stack.part) if stack.part else config
        layers: Any = task_model.model.get_submodule(stack.path)
        for index, layer in enumerate(layers):
            name = (stack.path, index)
            yield layer.register_forward_hook(_influence(sums, name), with_kwargs=True)
            attention, feed_forward = writers(layer)
            count = getattr(part, "num_attention_heads", None)
            if attention is not None and isinstance(count, int) and not config.is_encoder_decoder:
                hook = _head_norms(sums, name, attention, count)
                yield attention.register_forward_pre_hook(hook)
            if feed_forward is not None:
                hook = _unit_norms(sums, name, feed_forward)
                yield feed_forward.register_forward_pre_hook(hook)
    for path, module in task_model.model.named_modules():
        weight: Any = getattr(module, "weight", None)
        is_norm = "norm" in type(module).__name__.lower() and isinstance(weight, Tensor)
        if is_norm and isinstance(hidden, int) and weight.shape == (hidden,):
            yield module.register_forward_hook(_channels(sums, path))


def writers(layer: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """Matrices from attention and feed-forward layer to the residual stream.

    Returns:
        Each of them; None where there is not exactly one (cross-attention, experts).
    """
    matrices = {p: m for p, m in layer.named_modules() if _sizes(m) is not None}
    readers = (*QUERY, *KEY, *VALUE)
    attention, others = [], []
    for path, module in matrices.items():
        if not ATTENTION.search(path):
            others.append(module)
        elif not (
            (name := path.split(".")[-1]) in readers
            or MIXED.search(name)
            or any(part in path for part in CROSS)
        ):
            attention.append(module)
    width = None if len(attention) != 1 else (_sizes(attention[0]) or (0, 0))[1]
    down = [m for m in others if (s := _sizes(m)) is not None and s[1] == width != s[0]]
    return (
        attention[0] if len(attention) == 1 else None,
        down[0] if len(down) == 1 else None,
    )


def _sizes(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a matrix."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or isinstance(module, nn.Embedding):
        return None
    out, into = weight.shape
    return (out, into) if type(module).__name__ == "Conv1D" else (into, out)


def _rows(module: nn.Module) -> Tensor:
    """Weight of each input of a matrix for its output, ``(in, out)``."""
    weight: Any = module.weight
    return weight.float() if type(module).__name__ == "Conv1D" else weight.float().T


# ---- what is measured ------------------------------------------------------------------------

Hook = Callable[..., None]


def _influence(sums: _Sums, name: tuple[str, int]) -> Hook:
    def hook(module: Any, arguments: Any, named: Any, output: Any) -> None:
        given = arguments[0] if arguments else named["hidden_states"]
        result = output if isinstance(output, Tensor) else output[0]
        turned = 1 - F.cosine_similarity(given.float(), result.float(), dim=-1)
        sums.add(("layers", *name), name[0], turned[..., None])

    return hook


def _head_norms(sums: _Sums, name: tuple[str, int], writer: nn.Module, count: int) -> Hook:
    rows = _rows(writer).unflatten(0, (count, -1))
    grams = rows @ rows.transpose(1, 2)  # |z W|² = z (W Wᵀ) zᵀ, without the output of every head

    def hook(module: Any, arguments: Any) -> None:
        z = arguments[0].float().unflatten(-1, (count, -1))
        squares = torch.einsum("...hd,hde,...he->...h", z, grams, z)
        sums.add(("heads", *name), name[0], squares.clamp(min=0).sqrt())

    return hook


def _unit_norms(sums: _Sums, name: tuple[str, int], writer: nn.Module) -> Hook:
    norms = _rows(writer).norm(dim=1)

    def hook(module: Any, arguments: Any) -> None:
        sums.add(("units", *name), name[0], arguments[0].float().abs() * norms)

    return hook


def _channels(sums: _Sums, path: str) -> Hook:
    def hook(module: Any, arguments: Any, output: Tensor) -> None:
        sums.add(("channels",), path, output.float().abs())

    return hook


def _no_tokens(task_model: TaskModel) -> Tensor | None:
    count = vocabulary_size(task_model.config)
    known = count is not None and bool(set(TEXTS) & task_model.accepts)
    return torch.zeros(count or 0, dtype=torch.long) if known else None


def _count(batch: Batch, vocabulary: int) -> Tensor:
    """Counts of the tokens in a batch, without padding."""
    total = torch.zeros(vocabulary, dtype=torch.long)
    for name in TEXTS:
        ids, mask = batch.get(name), batch.get(name.replace("input_ids", "attention_mask"))
        if ids is not None:
            kept = ids if mask is None else ids[mask.bool()]
            total += torch.bincount(kept.flatten().cpu(), minlength=vocabulary)[:vocabulary]
    return total
