"""Width: the first channels, whole attention heads and units of each layer."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_distill.models.initialise.weights import Weights, cut, init_empty

HEADS = ("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads")
FEED_FORWARD = (
    *("intermediate_size", "d_ff", "hidden_dim", "n_inner", "ffn_dim"),
    *("encoder_ffn_dim", "decoder_ffn_dim"),
)
LIKE_HIDDEN = ("pooler_output_size", "pooler_hidden_size", "word_embed_proj_dim", "embedding_size")
"""Fields that equal the width in some models, and are reduced with it there."""
FUSED = {
    ("gpt2", "c_attn"): ("queries", "queries", "queries"),
    ("phi3", "qkv_proj"): ("queries", "keys", "keys"),
    ("phi3", "gate_up_proj"): ("feed_forward", "feed_forward"),
    ("gpt_neox", "query_key_value"): ("head_by_head",),
}
"""(model type, module) -> the parts, in order, of an axis that several matrices share."""
MIXED = re.compile(r"qkv|query_key|key_value|c_attn|in_proj|kv_|_kv|gate_up|up_gate", re.I)
"""Modules that may hold several matrices; outside `FUSED` their order is not known."""


@dataclasses.dataclass(frozen=True)
class Width:
    """The sizes that depend on each other."""

    hidden: int
    heads: int
    key_heads: int
    head_dim: int
    feed_forward: tuple[int, ...]

    def size(self, part: str) -> int:
        """Length of an axis or a part of it."""
        return {
            "queries": self.heads * self.head_dim,
            "keys": self.key_heads * self.head_dim,
            "head_by_head": 3 * self.heads * self.head_dim,
            "feed_forward": max(self.feed_forward, default=0),
        }[part]

    def axes(self) -> tuple[int, ...]:
        """All plain axes."""
        heads = (self.heads, self.key_heads, self.size("queries"), self.size("keys"))
        return (self.hidden, *heads, *self.feed_forward)


Keep = Callable[[str, str, int], Tensor]
"""(part, name of a weight, size after) -> kept indices of this part of an axis. The part is
``queries``, ``keys``, ``feed_forward``, ``channels``, or nothing where it is not known."""
Choose = Callable[[Width, Width], Keep]


def cut_width(
    kind: type[PreTrainedModel],
    config: Any,
    weights: Weights,
    hidden_size: int | None,
    intermediate_size: int | None,
    choose: Choose | None = None,
) -> Weights:
    """Keep the first channels, whole heads and units of every weight, or the chosen ones.

    Args:
        kind: The class of the model.
        config: Its config, which gets the new sizes.
        weights: Its weights.
        hidden_size: The new width; None: unchanged.
        intermediate_size: The new number of units; None: in proportion.
        choose: Selects the parts to keep, given the sizes before and after.

    Raises:
        ValueError: a width that would split heads; weights whose axes cannot be identified.
    """
    before = _width(config, kind)
    after = _smaller(before, hidden_size or before.hidden, intermediate_size)
    keep = _first if choose is None else choose(before, after)
    parts_of = {} if choose is None else _parts_of(kind, config, before, after)
    _set_width(config, before, after)
    model = init_empty(kind, config)
    _check_groups(model, weights)
    pairs = set(zip(before.axes(), after.axes(), strict=True))
    saved = set(model.state_dict())

    def index(name: str, axis: int, old: int, new: int) -> Tensor:
        module = name.split(".")[-2] if "." in name else name
        parts = FUSED.get((config.model_type, module), ())
        if parts and sum(map(before.size, parts)) == old and old != before.hidden:
            starts = torch.tensor([0, *map(before.size, parts)]).cumsum(0).tolist()
            kept = [keep(part, name, after.size(part)) for part in parts]
            return torch.cat([k + start for k, start in zip(kept, starts, strict=False)])
        plain = {(before.hidden, after.hidden)} if MIXED.search(module) else pairs
        if (old, new) not in plain or name not in saved:
            raise ValueError(
                f"Expected every axis of {kind.__name__} to be its width, heads or feed-forward "
                f"units, but {name} has one of {old} that becomes {new}. Cut its depth only, or "
                "build this student from a config instead."
            )
        return keep(parts_of.get((name, axis), ""), name, new)

    return cut(weights, model, index)


def _first(part: str, name: str, new: int) -> Tensor:
    return torch.arange(new)


def _parts_of(
    kind: type[PreTrainedModel], config: Any, before: Width, after: Width
) -> dict[tuple[str, int], str]:
    """Meaning of each axis of each weight; found by changing one config field at a time.

    Raises:
        ValueError: a model whose heads are tied to its width.
    """
    channels = after.hidden != before.hidden
    if channels and (getattr(config, "head_dim", None) is None or config.is_encoder_decoder):
        raise ValueError(
            f"Expected a decoder whose config has a head_dim, to tell heads from channels, got "
            f"{kind.__name__}. Choose its layers and units by importance (layers=…, "
            "intermediate_size=…), or cut its width without importance."
        )
    double = dataclasses.replace(before, heads=2 * before.heads, key_heads=2 * before.key_heads)
    wide = dataclasses.replace(before, hidden=2 * before.hidden)
    more = dataclasses.replace(before, feed_forward=tuple(n + 1 for n in before.feed_forward))
    probes = {"feed_forward": more, **({"heads": double, "channels": wide} if channels else {})}
    own, found = init_empty(kind, config).state_dict(), {}
    for part, sizes in probes.items():
        other = copy.deepcopy(config)
        _set_width(other, before, sizes)
        for name, tensor in init_empty(kind, other).state_dict().items():
            for axis, (old, new) in enumerate(zip(own[name].shape, tensor.shape, strict=True)):
                if old != new:
                    is_query = part == "heads" and old == before.size("queries")
                    found[name, axis] = {"heads": "queries" if is_query else "keys"}.get(part, part)
    return found


def _width(config: Any, kind: type[PreTrainedModel]) -> Width:
    hidden = getattr(config, "hidden_size", None)
    heads = [getattr(config, name) for name in HEADS if hasattr(config, name)]
    count = heads[0] if heads else None
    if not isinstance(hidden, int) or not isinstance(count, int) or heads.count(count) < len(heads):
        raise ValueError(
            f"Expected {kind.__name__} to have one hidden_size and one number of attention heads, "
            f"got {hidden} and {heads}. Cut its depth only."
        )
    return Width(
        hidden,
        count,
        getattr(config, "num_key_value_heads", None) or count,
        getattr(config, "head_dim", None) or hidden // count,
        tuple(
            getattr(config, name) or 4 * hidden for name in FEED_FORWARD if hasattr(config, name)
        ),
    )


def _smaller(before: Width, hidden: int, feed_forward: int | None) -> Width:
    group = 1 if before.key_heads == 1 else before.heads // before.key_heads
    possible = [
        before.hidden * heads // before.heads
        for heads in range(group, before.heads + 1, group)
        if before.hidden * heads % before.heads == 0
    ]
    if hidden not in possible:
        raise ValueError(
            f"Expected a hidden_size that keeps whole heads of the teacher's {before.heads} "
            f"(in groups of {group}): one of {possible}, got {hidden}."
        )
    heads = before.heads * hidden // before.hidden
    if feed_forward and not before.feed_forward:
        raise ValueError(
            f"Expected none of an intermediate_size, got {feed_forward}: no such field."
        )
    units = tuple(feed_forward or n * hidden // before.hidden for n in before.feed_forward)
    exact = all(n * hidden % before.hidden == 0 for n in before.feed_forward)
    if not all(
        1 <= new <= old for new, old in zip(units, before.feed_forward, strict=True)
    ) or not (exact or feed_forward):
        raise ValueError(
            f"Expected an intermediate_size between 1 and the teacher's {before.feed_forward}, got "
            f"{feed_forward or 'none, and the proportion to hidden_size is no whole number'}."
        )
    keys = 1 if before.key_heads == 1 else heads // group
    return Width(hidden, heads, keys, before.head_dim, units)


def _set_width(config: Any, before: Width, after: Width) -> None:
    for name in LIKE_HIDDEN:
        if getattr(config, name, None) == before.hidden:
            setattr(config, name, after.hidden)
    config.hidden_size = after.hidden
    if getattr(config, "num_key_value_heads", None) is not None:
        config.num_key_value_heads = after.key_heads
    for name in HEADS:
        if hasattr(config, name):
            setattr(config, name, after.heads)
    names = [name for name in FEED_FORWARD if hasattr(config, name)]
    for name, units in zip(names, after.feed_forward, strict=True):
        setattr(config, name, units)


def _check_groups(model: PreTrainedModel, weights: Weights) -> None:
    """Raise on grouped layers: a channel's position within its group matters, so the first ones
    cannot be kept."""
    for path, module in model.named_modules():
        grouped = getattr(module, "groups", 1) > 1 or isinstance(module, nn.GroupNorm)
        changed = any(
            f"{path}.{name}" in weights and weights[f"{path}.{name}"].shape != parameter.shape
            for name, parameter in module.named_parameters()
        )
        if changed and (grouped or hasattr(module, "parametrizations")):
            raise ValueError(
                f"Expected no grouped or reparametrised layer in the width, got {path} "
                f"({type(module).__name__}). Cut the depth of this model only, or build this "
                "student from a config instead."
            )
