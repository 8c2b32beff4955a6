"""Whether a model rounds an example's output by the company it is asked in.

Kernels add in an order that depends on the shape of a product (one row is a product of matrix and
vector), and some also on the place of a row in it or on the alignment of what they read. Where they
do, a live teacher differs from itself in the last bits from one shuffle to the next.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from tiny_models import collate
from torch import Tensor, nn

OFFSETS = (1, 3, 4, 8, 15)
"""In numbers of 4 bytes: memory from torch itself begins at multiples of 64 bytes."""


def moved(tensor: Tensor, offset: int) -> Tensor:
    """The same numbers, beginning elsewhere in memory."""
    buffer = torch.empty(tensor.numel() + offset, dtype=tensor.dtype)
    own = buffer[offset:].view(tensor.shape)
    own.copy_(tensor)
    return own


def moved_model(model: nn.Module, offset: int) -> nn.Module:
    """A copy with its weights elsewhere in memory."""
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data = moved(parameter.data, offset)
    return other


def rounds_by_company(
    model: Any, examples: Sequence[Any], sizes: Sequence[int], orders: int = 20
) -> bool:
    """Whether any example's logits change bits with its batch or with the memory it lies in.

    Args:
        model: Gives ``logits (B, ...)`` of a collated batch.
        examples: All of one length.
        sizes: The batch sizes that occur.
        orders: How many random batches of each size are asked for.
    """

    def ask(rows: Sequence[int], own: Any = model, offset: int = 0) -> Tensor:
        batch = collate([examples[row] for row in rows])
        batch.pop("labels")
        if offset:
            numbers = {k: v for k, v in batch.items() if v.is_floating_point()}
            batch |= {k: moved(v, offset) for k, v in numbers.items()}
        with torch.no_grad():
            logits: Tensor = own.eval()(**batch).logits
        return logits

    random = torch.Generator().manual_seed(0)
    rows = [
        torch.randperm(len(examples), generator=random)[:size].tolist()
        for size in sizes
        for _ in range(orders)
    ]
    first: dict[int, Tensor] = {}
    for chosen in rows:
        for row, found in zip(chosen, ask(chosen), strict=True):
            if not torch.equal(first.setdefault(row, found), found):
                return True
    whole = ask(rows[0])
    return not all(
        torch.equal(whole, ask(rows[0], moved_model(model, offset), offset)) for offset in OFFSETS
    )
