"""Forward hooks for intermediate outputs, attention maps and input gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from transformers import PreTrainedModel

from hf_distill.losses.fused import LazyLogits
from hf_distill.models.redirect import calling

QUERY = ("query", "q_proj", "q_lin", "query_proj", "q")
KEY = ("key", "k_proj", "k_lin", "key_proj", "k")
VALUE = ("value", "v_proj", "v_lin", "value_proj", "v")
FUSED = ("c_attn", "Wqkv", "qkv")
"""Names of matrices that compute queries, keys and values together."""
CROSS = ("cross", "encoder_attn", "EncDecAttention")
"""Name parts of cross-attention, which has no relations within a sequence."""
LAYERS = nn.TransformerEncoderLayer | nn.TransformerDecoderLayer

Projections = tuple[str, ...]
"""Paths of one layer's query, key and value modules, or of their joint module."""


@contextlib.contextmanager
def captured(
    model: nn.Module, paths: Sequence[str], length: int | None = None
) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of modules while a model runs.

    Args:
        model: The model.
        paths: Paths of its modules, as ``named_modules`` gives them.
        length: Places of the batch, to which packed sequences are padded; None: their longest.

    Yields:
        Path -> output, see `features_of`, filled by the forward. A module that runs several times
        leaves its last output.
    """
    outputs: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            outputs[path] = features_of(module, output, length)

        return hook

    handles = [model.get_submodule(path).register_forward_hook(keep(path)) for path in paths]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def features_of(module: nn.Module, output: Any, length: int | None = None) -> Tensor:
    """The output of a module, with the examples first.

    Args:
        module: The module; its class determines the batch dimension.
        output: A tensor, or a tuple, list or dict whose first entry is used: an LSTM's
            ``(states, (h, c))``. Packed sequences are padded with zeros.
        length: Padded length; None: the longest.
    """
    while not isinstance(output, Tensor | PackedSequence):
        output = next(iter(output.values())) if isinstance(output, Mapping) else output[0]
    if isinstance(output, PackedSequence):
        return pad_packed_sequence(output, batch_first=True, total_length=length)[0]
    return output.transpose(0, 1) if output.dim() == 3 and _examples_second(module) else output


def _examples_second(module: nn.Module) -> bool:
    layers = isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder)
    owner: Any = module.layers[0] if layers else module  # type: ignore[index]
    owner = getattr(owner, "self_attn", owner) if isinstance(owner, LAYERS) else owner
    return isinstance(owner, nn.RNNBase | nn.MultiheadAttention) and not owner.batch_first


@contextlib.contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Switch a model to eager attention, which returns attention maps."""
    if not isinstance(model, PreTrainedModel):  # any other implementation returns them on request
        yield
        return
    inner = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    before = [(module.config, module.config._attn_implementation) for module in inner]
    if all(implementation == "eager" for _, implementation in before):
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation


@contextlib.contextmanager
def traced_input(
    model: nn.Module, key: str | None, inputs: dict[str, Any]
) -> Iterator[list[Tensor]]:
    """Make the logits differentiable with respect to a model's input.

    Args:
        model: The model.
        key: The floating input (pixels, samples, features); None: the output of the embeddings.
        inputs: What the model is called with; changed in place.

    Yields:
        A list that holds the input once the model has run.
    """
    if key is not None:
        inputs[key] = inputs[key].detach().requires_grad_()
        yield [inputs[key]]
        return
    found: list[Tensor] = []

    def hook(module: Any, arguments: Any, output: Tensor) -> Tensor:
        output = output if output.requires_grad else output.detach().requires_grad_()
        found.append(output)
        return output

    owner: Any = model
    owner = owner.get_encoder() if owner.config.is_encoder_decoder else owner
    handle = owner.get_input_embeddings().register_forward_hook(hook)
    try:
        yield found
    finally:
        handle.remove()


@contextlib.contextmanager
def skipped_lm_head(
    head: nn.Module, weights: Callable[[Tensor], LazyLogits]
) -> Iterator[list[LazyLogits]]:
    """Skip a model's output layer, whose product would be as wide as the vocabulary.

    The layer's hooks run (sharded weights are gathered in them), its ``forward`` does not; what
    follows it in the model gets logits of no position.

    Args:
        head: The output layer.
        weights: Makes the `LazyLogits` of its input; called where the layer would run.

    Yields:
        A list that holds the `LazyLogits` once the model has run.
    """
    found: list[LazyLogits] = []

    def skipped(hidden: Tensor) -> Tensor:
        linear = weights(hidden)
        found.append(linear)
        return hidden.new_zeros(*hidden.shape[:-2], 0, linear.weight[0].shape[0])

    with calling(head, skipped):
        yield found


def attention_projections(model: nn.Module, groups: Sequence[str]) -> dict[str, list[Projections]]:
    """Find the modules that compute queries, keys and values, layer by layer.

    Args:
        model: The model.
        groups: The names of its stacks of layers (``hidden``; ``encoder`` and ``decoder``; …).

    Returns:
        For each group with self-attention the paths of every layer.
    """
    found: dict[str, list[Projections]] = {group: [] for group in groups}
    for path, module in model.named_modules():
        children = dict(module.named_children())
        names = [next((n for n in kind if n in children), "") for kind in (QUERY, KEY, VALUE)]
        fused = next((n for n in FUSED if n in children), "")
        names = names if all(names) else [fused]
        group = _group_of(path, groups)
        if all(names) and group is not None and not any(part in path for part in CROSS):
            found[group].append(tuple(f"{path}.{name}" for name in names))
    return {group: layers for group, layers in found.items() if layers}


def _group_of(path: str, groups: Sequence[str]) -> str | None:
    if len(groups) == 1:
        return groups[0]
    parts = {part.removesuffix("_model") for part in path.split(".")}
    return next((group for group in groups if group in parts), None)


def queries_keys_values(
    outputs: Mapping[str, Tensor], paths: Projections, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer's queries, keys and values, each ``(B, heads, T, d)``.

    Args:
        outputs: What was captured.
        paths: Of the query, key and value modules, or of the fused one.
        heads: The number of query heads; keys and values may have fewer.
    """
    parts = [outputs[path] for path in paths]
    queries, keys, values = parts if len(parts) == 3 else parts[0].chunk(3, -1)
    size = queries.shape[-1] // heads
    q, k, v = (x.unflatten(-1, (-1, size)).transpose(1, 2) for x in (queries, keys, values))
    return q, k, v
