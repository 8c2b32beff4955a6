"""Sparse classes of every item: the most likely, or random samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from datasets import Features, List, Value
from torch import Tensor

from hf_distill.teachers.cache import packing

BLOCK = {True: 2**18, False: 2**24}
"""Number of float64 numbers per block, on a CPU (2 MiB: its cache) and elsewhere."""
NONE = -1e4
"""Log-probabilities below are stored as -inf: their exp is 0 in every floating type."""


class SparseClasses(NamedTuple):
    """The classes of several examples' items, concatenated.

    Attributes:
        ids: ``(N, k)`` int64; an unused slot repeats the first id of its item.
        log_probs: ``(N, k)`` float32, log softmax(logits / temperature); -inf: an unused slot.
        log_rest: ``(N,)`` float32, log of the mass of all other classes; -inf: none.
        sizes: Number of items of each example.
    """

    ids: Tensor
    log_probs: Tensor
    log_rest: Tensor
    sizes: list[int]


@dataclass(frozen=True)
class TopK:
    """The k most likely classes and the mass of all others.

    Attributes:
        k: Number of classes of each item (all of them if there are fewer).
        dtype: Dtype of their log-probabilities: ``float16``, ``float32`` or ``bfloat16``. On
            reading they are normalised to 1 minus the mass of the others, kept in float32.
        temperature: Temperature of the softmax.
        tail: Keep the mass of the others. Without it the k classes are normalised as if they were
            all, which is another distribution; only for comparison.
        width: The number of classes C; needed for reading and writing.
    """

    k: int
    dtype: str = "float16"
    temperature: float = 1.0
    tail: bool = True
    width: int | None = None

    def __post_init__(self) -> None:
        packing.check_count("k", self.k)
        packing.check_dtype(self.dtype, [name for name in packing.STORED if name != "int8"])
        check_temperature(self.temperature)
        if not isinstance(self.tail, bool):
            raise ValueError(f"Expected tail to be true or false, got {self.tail!r}.")
        if self.width is not None:
            packing.check_count("width", self.width, packing.MOST)

    def columns(self) -> Features:
        """``ids``, ``log_probs`` (both flat) and ``tail``."""
        own = {"tail": List(Value("float32"))} if self.tail else {}
        return Features(
            packing.id_columns(width_of(self))
            | packing.number_columns("log_probs", self.dtype)
            | own
        )

    def encode(self, logits: Tensor, key: bytes = b"") -> dict[str, Any]:
        """The columns of one example's logits ``(n, C)``; n may be 0. float64 inside. ValueError
        for another shape, NaN or +inf, or an item without any possible class."""
        width = width_of(self)
        packing.check_logits(logits, width)
        logits, k = logits.detach(), min(self.k, width)
        ids = logits.new_empty((len(logits), k), dtype=torch.int64)
        log_probs = logits.new_empty(ids.shape, dtype=torch.float64)
        tail = logits.new_empty(len(logits), dtype=torch.float64)
        for part in blocks(logits):
            top, ids[part] = logits[part].topk(k, dim=-1)
            others = logits[part].to(torch.float64, copy=True).div_(self.temperature)
            rest = others.scatter_(-1, ids[part], -torch.inf).logsumexp(-1)
            top = top.to(torch.float64) / self.temperature
            total = checked(torch.logaddexp(top.logsumexp(-1), rest), logits)
            log_probs[part], tail[part] = top - total.unsqueeze(-1), rest - total
        log_probs.masked_fill_(log_probs < NONE, -torch.inf)
        own = packing.pack("tail", "float32", tail) if self.tail else {}
        flat = ids.cpu().numpy().reshape(-1)
        return (
            packing.pack_ids(flat, width) | packing.pack("log_probs", self.dtype, log_probs) | own
        )

    def decode_batch(self, rows: Sequence[packing.Row]) -> SparseClasses:
        """The classes of several examples' items; ValueError for rows that are not from
        `encode`."""
        width = width_of(self)
        k = min(self.k, width)
        sizes = [packing.split_evenly("ids", row, k) for row in rows]
        for row, size in zip(rows, sizes, strict=True):
            if len(row["log_probs"]) != size * k or (self.tail and len(row["tail"]) != size):
                raise ValueError(f"Expected {k} log_probs for each of {size} items and one tail.")
        ids = torch.from_numpy(packing.unpack_ids(rows, width)).view(-1, k)
        log_probs = packing.unpack("log_probs", self.dtype, rows).view(-1, k)
        if self.tail:
            rest = packing.check_read("tail", torch.from_numpy(packing.joined(rows, "tail")))
            if bool((rest > 0).any()):
                raise ValueError("Expected log-probabilities of at most 0 in tail.")
        else:
            rest = log_probs.new_full((len(ids),), -torch.inf)
        mass = torch.log(-torch.expm1(rest))
        log_probs += (mass - log_probs.logsumexp(-1)).unsqueeze(-1)
        return SparseClasses(ids, packing.check_read("log_probs", log_probs), rest, sizes)


@dataclass(frozen=True)
class Sampled:
    """Random classes of the distribution, with their counts.

    count / draws estimates p without bias: the draws are stratified, u_i = (i + U_i) / draws for i
    = 0 … draws - 1 with U uniform, each the class where the cumulated p passes it. U depends only
    on the seed and the example's key. (Anshumann et al., 2025, arXiv:2503.16870, draw
    independently; strata have the same mean and a smaller variance.) An item takes 3 to 4 bytes for
    each class that was drawn.

    Attributes:
        draws: Draws per item, at most 255.
        temperature: Temperature of the softmax that is drawn from.
        seed: Seed of the draws.
        width: The number of classes C; needed for reading and writing.
    """

    draws: int = 12
    temperature: float = 1.0
    seed: int = 0
    width: int | None = None

    def __post_init__(self) -> None:
        packing.check_count("draws", self.draws, 255)
        check_temperature(self.temperature)
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**64:
            raise ValueError(f"Expected seed to be an integer from 0 on, got {self.seed!r}.")
        if self.width is not None:
            packing.check_count("width", self.width, packing.MOST)

    def columns(self) -> Features:
        """``ids`` and ``counts``, both flat; the counts of each item sum to `draws`."""
        return Features(packing.id_columns(width_of(self)) | {"counts": List(Value("uint8"))})

    def encode(self, logits: Tensor, key: bytes) -> dict[str, Any]:
        """The columns of one example's logits ``(n, C)``; see `TopK.encode`."""
        width = width_of(self)
        packing.check_logits(logits, width)
        logits = logits.detach()
        generator = torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(key, self.seed))
        uniform = torch.rand(
            (len(logits), self.draws), generator=generator, dtype=torch.float64, device="cpu"
        )
        points = ((uniform + torch.arange(self.draws)) / self.draws).to(logits.device)
        drawn = torch.empty_like(points, dtype=torch.int64)
        for part in blocks(logits):
            cumulated = logits[part].to(torch.float64, copy=True)
            cumulated -= cumulated.amax(-1, keepdim=True)
            cumulated.div_(self.temperature).exp_().cumsum_(-1)
            total = checked(cumulated[:, -1:], logits)
            here = (points[part] * total).minimum(total.nextafter(torch.zeros_like(total)))
            drawn[part] = torch.searchsorted(cumulated, here, right=True)
        ids = drawn.cpu().numpy()  # ascending in each item
        first = np.ones(ids.shape, bool)
        first[:, 1:] = ids[:, 1:] != ids[:, :-1]
        ends = np.append(np.flatnonzero(first), ids.size)
        return packing.pack_ids(ids[first], width) | {"counts": np.diff(ends).astype(np.uint8)}

    def decode_batch(self, rows: Sequence[packing.Row]) -> SparseClasses:
        """The classes of several examples' items; k is the largest of any. ValueError as in
        `TopK`."""
        flat, counts = packing.unpack_ids(rows, width_of(self)), packing.joined(rows, "counts")
        upto = np.append(0, np.cumsum(counts, dtype=np.int64))
        self._check_counts(rows, counts, upto)
        items = (upto[1:] - 1) // self.draws
        firsts = np.flatnonzero(np.diff(items, prepend=-1))
        slots = np.arange(len(flat)) - np.repeat(firsts, np.diff(np.append(firsts, len(flat))))
        shape = (len(firsts), int(slots.max(initial=0)) + 1)
        ids = np.repeat(flat[firsts], shape[1]).reshape(shape)
        ids[items, slots] = flat
        log_probs = np.full(shape, -np.inf, np.float32)
        log_probs[items, slots] = np.log(np.arange(1, 256) / self.draws)[counts - 1]
        ends = np.cumsum([0, *(len(row["counts"]) for row in rows)])
        sizes = np.diff(upto[ends] // self.draws).tolist()
        rest = torch.full(shape[:1], -torch.inf)
        return SparseClasses(torch.from_numpy(ids), torch.from_numpy(log_probs), rest, sizes)

    def _check_counts(
        self, rows: Sequence[packing.Row], counts: np.ndarray, upto: np.ndarray
    ) -> None:
        """Check that the counts of each item, and of each example, add up to its draws."""
        if any(len(row["ids"]) != len(row["counts"]) for row in rows):
            raise ValueError("Expected as many counts as ids.")
        ends = np.cumsum([0, *(len(row["counts"]) for row in rows)])
        across = upto[:-1] // self.draws != (upto[1:] - 1) // self.draws
        if (counts == 0).any() or across.any() or (upto[ends] % self.draws).any():
            raise ValueError(f"Expected counts that sum to {self.draws} for each item.")


def check_temperature(value: Any) -> None:
    """Raise ValueError unless the temperature is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < np.inf:
        raise ValueError(f"Expected a temperature above 0, got {value!r}.")


def width_of(spec: TopK | Sampled) -> int:
    """The number of classes of a format that needs it."""
    if spec.width is None:
        raise ValueError(
            f"Expected the number of classes as width of {type(spec).__name__}, got None: take "
            "dataclasses.replace(spec, width=…)."
        )
    return spec.width


def blocks(logits: Tensor) -> Iterator[slice]:
    """Blocks of items, always the same for the same shape."""
    step = max(1, BLOCK[logits.device.type == "cpu"] // logits.shape[-1])
    return (slice(start, start + step) for start in range(0, len(logits), step))


def checked(total: Tensor, logits: Tensor) -> Tensor:
    """Return the normalisers, or raise ValueError if they are not numbers."""
    if not bool(total.isfinite().all()):
        raise ValueError(
            "Expected for each item at least one finite logit, and no NaN or +inf, got items "
            f"without a softmax among logits of shape {tuple(logits.shape)}. The model is broken "
            "on this example, or all its classes are masked."
        )
    return total
