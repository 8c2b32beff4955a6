"""Checks of a model against the data, before training."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

TEXTS = (5, 4)  # tokens of the two texts that `check_packing` packs


def check_context(config: Any, length: int, who: str) -> None:
    """Raise a ValueError if texts are longer than a model's context, scaled positions included.

    ``length`` is that of the longest text (of packed rows, of their longest example), ``who`` the
    model in messages.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return
    limit = max([limit, *_scaled(limit, getattr(text, "rope_parameters", None) or {})])
    if length > limit:
        raise ValueError(
            f"Expected texts of at most {limit} tokens, the context of {who} "
            f"({getattr(config, 'model_type', 'model')}, max_position_embeddings), got {length}. "
            f"Cut them (tokenize(…, max_length={limit})), or choose a model with a longer context."
        )


def _scaled(limit: int, rope: dict[str, Any]) -> list[int]:
    """Context length after scaling of rotary positions; some models have one per layer type."""
    if nested := [part for part in rope.values() if isinstance(part, dict)]:
        return [reach for part in nested for reach in _scaled(limit, part)]
    factor = rope.get("factor")
    if not factor:
        return []
    return [int(factor * (rope.get("original_max_position_embeddings") or limit))]


def check_packing(model: nn.Module, rows: int = 2) -> None:
    """Raise a ValueError if the logits of a text depend on the texts before it in a packed row.

    Two short texts are read packed (``rows`` to a batch) and separately, and once more with the
    first of them changed, without gradients.
    """
    unwrapped: Any = getattr(model, "get_base_model", None)
    base = model if unwrapped is None else unwrapped()
    if "position_ids" not in inspect.signature(base.forward).parameters:
        raise ValueError(_mixes(base, "it takes no position_ids"))
    trained = base.training
    base.eval()
    try:
        with torch.no_grad():
            _try(base, rows)
    finally:
        base.train(trained)


def _try(model: Any, rows: int) -> None:
    device = next(model.parameters()).device
    first, second = (torch.arange(1, n + 1, device=device) for n in TEXTS)
    positions = torch.cat([torch.arange(n, device=device) for n in (*TEXTS, 1)])

    def ask(*parts: Tensor, **others: Tensor) -> Tensor:
        ids = torch.cat(parts).expand(rows, -1)
        logits: Tensor = model(input_ids=ids, use_cache=False, **others).logits
        return logits.double()[-1]

    where = slice(TEXTS[0], sum(TEXTS))
    packed_at = {"position_ids": positions.expand(rows, -1)}
    padding = first[:1]
    alone = ask(second)
    packed = ask(first, second, padding, **packed_at)[where]
    other = ask(first.flip(0), second, padding, **packed_at)[where]
    scale = (alone - alone.mean(-1, keepdim=True)).abs().amax()
    rounding = torch.finfo(model.dtype).eps * scale
    if (packed - other).abs().amax() > min(100 * rounding, 0.02 * scale):
        raise ValueError(_mixes(model, "a text changes what it says about the next one"))
    if (packed - alone).abs().amax() > min(1000 * rounding, 0.2 * scale):
        raise ValueError(_mixes(model, "its positions do not begin anew with each text"))


def _mixes(model: Any, why: str) -> str:
    attention = getattr(model.config, "_attn_implementation", None)
    flash = "flash" in str(attention)
    return (
        f"{type(model).__name__} does not keep the texts of a packed row apart: {why} (attention: "
        f"{attention}). Train it on rows that are not packed (leave out hf_distill.pack)"
        + (", with one packed row per device and step, or with attn_implementation='sdpa'." * flash)
        + "." * (not flash)
    )
