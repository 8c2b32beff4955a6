"""Size estimates of answers, from the model and the requested outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from hf_distill.models.modules import text_config
from hf_distill.models.signals import BatchItems, Needs

TEXTS = ("input_ids", "decoder_input_ids")
WIDTHS = ("hidden_size", "d_model", "n_embd", "projection_dim", "embedding_size")
DEPTHS = ("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers", "n_layer")
HEADS = ("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads", "n_head")
CLASSES = 1 << 24
"""Largest accepted number of classes or tokens; the largest vocabularies have about 2**20."""
LARGEST = 1 << 20
"""Largest accepted number of layers, heads or dimensions of a config."""
USUAL, UTMOST = 2, 16
"""Numbers of a layer per number of an image or audio input: ViT-B 1, Whisper-large and the stem of
a ResNet 8."""


def configs(config: Any) -> Iterator[Any]:
    """A config and those in it."""
    yield config
    for name in getattr(type(config), "sub_configs", None) or ():
        if (inner := getattr(config, name, None)) is not None:
            yield from configs(inner)


def largest(config: Any, names: tuple[str, ...], default: int) -> int:
    """The largest of a config's numbers of these names, its parts' included."""
    values = [getattr(part, name, None) for part in configs(config) for name in names]
    found = [v for v in values if type(v) is int and 0 < v <= LARGEST]
    return max(found, default=default)


def elements(
    config: Any,
    classes: int | None,
    batch: Mapping[str, Any],
    items: BatchItems,
    needs: Needs,
    per_input: int = USUAL,
) -> int:
    """Estimate the number of elements of a signal: logits (one row for each item, and for each
    token where the classes are tokens), hidden states, attention maps, queries, keys and values,
    and modules, all of them together. ``classes`` None: the batch size; ``per_input``: numbers of a
    layer per number of an image or audio input."""
    texts = [batch[name] for name in TEXTS if isinstance(batch.get(name), Tensor)]
    tokens = sum(ids.numel() for ids in texts)
    others = [v for v in batch.values() if isinstance(v, Tensor) and v.is_floating_point()]
    numbers = sum(value.numel() for value in others)
    mask = items.masks.get("items")
    rows = 0 if mask is None else mask.numel()
    if classes == getattr(text_config(config), "vocab_size", None):
        rows = max(rows, tokens)
    found = rows * max(classes or 0, *(mask.shape if mask is not None else ()), 1)
    layers = largest(config, DEPTHS, 24) + 1
    width = largest(config, WIDTHS, 1024)
    layer = tokens * width + per_input * numbers
    found += layer * layers * (needs.hidden_states + 3 * needs.qkv)
    widest = tokens * max(4 * width, classes or 0) + per_input * numbers
    found += widest * len(needs.modules)
    if needs.attentions:
        heads = largest(config, HEADS, 16)
        squares = sum(ids.numel() * int(ids.shape[-1]) for ids in texts if ids.dim())
        found += layers * heads * (squares + _patch_squares(config, others, layer, heads))
    return found


def _patch_squares(config: Any, others: list[Tensor], layer: int, heads: int) -> int:
    """Pairs of patches of all images; for other models, a map is assumed as large as a layer."""
    sizes = [getattr(part, "patch_size", None) for part in configs(config)]
    patch = next((size for size in sizes if type(size) is int and size > 0), None)
    if not others:
        return 0
    if patch is None:
        return layer // heads
    found = 0
    for pixels in others:
        if pixels.dim() >= 4:
            places = (int(pixels.shape[-1]) // patch) * (int(pixels.shape[-2]) // patch) + 8
            found += int(pixels.shape[0]) * places**2
    return found


def most_bytes(estimate: int) -> int:
    """Largest answer in bytes for a number of elements: float64, and 32 MiB for its description."""
    return (1 << 25) + 8 * estimate
