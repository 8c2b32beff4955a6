"""Distances between the self-attention of student and teacher.

Each function gives one value per query token, ``(B, T)``: summed over the keys, averaged over the
heads. ``mask`` (B, T) marks the real tokens with 1: padded keys are left out, padded queries give
0, and nothing that stands in padded places has an effect. ``causal`` leaves out the keys after the
query, as a decoder does. Nothing is detached; values are computed in float32 at least.

Heads are compared a few at a time and computed again in the backward pass once they are large, so
that no more than the maps themselves (or, for relations, not even those) is held for it.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_distill.losses.distribution.kl import kl
from hf_distill.losses.numerics import compute_dtype, no_autocast

__all__ = ["attention_ce", "attention_kl", "attention_mse", "relation_kl"]

Heads = Literal["each", "mean", "sum"]
# (student, teacher) with some of the heads -> values (B, heads, T)
Rows = Callable[[Tensor, Tensor], Tensor]

# How many entries of a map (64 MiB in float32) are compared at a time.
_CHUNK = 2**24


def attention_mse(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    heads: Heads = "each",
    causal: bool = False,
) -> Tensor:
    """1/h Σ_head Σ_key (A_s - A_t)², for maps before or after the softmax.

    TextBrewer's ``att_mse_loss`` (``att_mse_sum_loss`` with ``heads="sum"``) is Σ over tokens of
    our values / Σ_b length_b²; TinyBERT's, with padding and all, is the mean over tokens of our
    values / T. Both set entries below about 0 to 0 to be rid of masked scores, and with them
    negative scores; here scores of padded keys need the mask.

    Args:
        student: maps (B, h, T, T), probabilities or scores.
        teacher: maps (B, h, T, T), of the same kind.
        mask: (B, T), 1 = real; None = all.
        heads: compare ``each`` head with its own, or the ``mean`` or ``sum`` over the heads (h may
            differ then).
        causal: leave out the keys after the query (scores of decoders).

    Returns: (B, T), >= 0.
    Raises: ValueError: shapes or mask do not fit; heads is unknown.
    Source: Jiao et al. 2019, arXiv:1909.10351; TextBrewer: Yang et al. 2020, arXiv:2002.12620.

    >>> s, t = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]]), torch.tensor([[[[1.0, 0], [1, 0]]]])
    >>> attention_mse(s, t)
    tensor([[0.0000, 0.5000]])
    """
    return _over_maps("attention_mse", _squared, student, teacher, mask, heads, causal)


def attention_kl(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    heads: Heads = "each",
    causal: bool = False,
) -> Tensor:
    """1/h Σ_head KL(a_t ‖ a_s), for probabilities a, scaled to sum to 1 over the real keys.

    MiniLM's attention term is the mean over tokens of our value. Probabilities below the smallest
    normal number of their dtype (float16: 6e-5) count as that number in the logarithm: a student
    that gives 0 where the teacher does not pays a finite value.

    Arguments as in :func:`attention_mse`, with attention probabilities (B, h, T, T);
    ``heads="sum"`` gives the same as ``mean``.

    Returns: (B, T), >= 0 up to rounding.
    Raises: ValueError: shapes or mask do not fit; heads is unknown.
    Source: Wang et al. 2020, "MiniLM", arXiv:2002.10957.

    >>> s, t = torch.tensor([[[[0.5, 0.5], [0.5, 0.5]]]]), torch.tensor([[[[0.5, 0.5], [1, 0]]]])
    >>> attention_kl(s, t)
    tensor([[0.0000, 0.6931]])
    """
    smallest = max(torch.finfo(student.dtype).tiny, torch.finfo(teacher.dtype).tiny)
    rows = partial(_kl_of_probabilities, smallest=smallest)
    return _over_maps("attention_kl", rows, student, teacher, mask, heads, causal)


def attention_ce(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    heads: Heads = "each",
    causal: bool = False,
    form: Literal["masked", "code"] = "masked",
) -> Tensor:
    """-1/h Σ_head Σ_key a_t log a_s, a = softmax of the raw scores over the real keys.

    At equality this is the entropy of the teacher's attention, not 0; the gradient is that of the
    KL divergence. TextBrewer's ``att_ce_loss`` (``att_ce_mean_loss`` with ``heads="mean"``) is the
    mean over real tokens of our value if the scores of padded keys already are about -1e4, as its
    BERT gives them. Its softmax runs over all keys before it drops the padded ones: ``form="code"``
    does that for any scores, and then depends on what stands in the padding. Without a mask it also
    drops the teacher's negative scores; we do not.

    Arguments as in :func:`attention_mse`, with attention scores before the softmax (B, h, T, T);
    ``form``: softmax over the real keys (``masked``) or over all (``code``).

    Returns: (B, T), >= 0.
    Raises: ValueError: shapes or mask do not fit; heads or form is unknown.
    Source: TextBrewer: Yang et al. 2020, arXiv:2002.12620.

    >>> s, t = torch.tensor([[[[0.0, 0.0], [0.0, 0.0]]]]), torch.tensor([[[[0.0, 1], [9, 9]]]])
    >>> attention_ce(s, t)
    tensor([[0.6931, 0.6931]])
    """
    if form not in ("masked", "code"):
        raise ValueError(
            f"attention_ce: expected form 'masked' or 'code', got {form!r}; 'masked' does not "
            "depend on the padding"
        )
    rows = partial(_cross_entropy, everywhere=form == "code")
    return _over_maps("attention_ce", rows, student, teacher, mask, heads, causal)


def relation_kl(
    student: Tensor,
    teacher: Tensor,
    relation_heads: int,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """1/A Σ_a KL(softmax(R_t) ‖ softmax(R_s)), R = x xᵀ / sqrt(d), x cut into A relation heads.

    MiniLMv2's relation loss for queries, keys or values is the mean over tokens of our value. With
    as many relation heads as attention heads and x the values, it is MiniLM's value relation.
    Widths and numbers of attention heads may differ.

    Args:
        student: queries, keys or values (B, T, D) of all heads side by side.
        teacher: the same of the teacher (B, T, D').
        relation_heads: A, divides D and D'; d is D / A (D' / A).
        mask: (B, T), 1 = real; None = all.
        causal: leave out the relations with later positions (decoders).

    Returns: (B, T), >= 0 up to rounding.
    Raises: ValueError: the tokens of both differ, a width is not a multiple of relation_heads, or
    the mask does not fit.
    Source: Wang et al. 2020, "MiniLMv2", arXiv:2012.15828.

    >>> s, t = torch.zeros(1, 2, 2), torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]])
    >>> relation_kl(s, t, relation_heads=1)
    tensor([[0.0303, 0.0303]])
    """
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            "relation_kl: expected student and teacher vectors of one shape (B, T, ...), got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}; give both the same tokens, with "
            "all heads side by side in the last dimension"
        )
    widths = student.shape[-1], teacher.shape[-1]
    if relation_heads < 1 or any(width % relation_heads for width in widths):
        raise ValueError(
            f"relation_kl: expected relation_heads that divide both widths {widths[0]} and "
            f"{widths[1]}, got {relation_heads}; a common divisor is {math.gcd(*widths)}"
        )
    batch, tokens = student.shape[:2]
    dtype = compute_dtype(student, teacher)
    hidden = _hidden("relation_kl", (batch, tokens, tokens), mask, causal, student.device)
    if mask is not None:  # NaN in padding would come back as 0 · NaN in the backward pass
        student, teacher = (
            x.masked_fill(~mask.bool().unsqueeze(-1), 0) for x in (student, teacher)
        )
    student, teacher = (
        x.unflatten(-1, (relation_heads, -1)).transpose(1, 2) for x in (student, teacher)
    )
    rows = partial(_kl_of_relations, hidden=hidden, dtype=dtype)
    return _visible(_over_heads(rows, student, teacher, batch * tokens * tokens), mask)


def _over_maps(
    name: str,
    rows: Callable[..., Tensor],
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    heads: str,
    causal: bool,
) -> Tensor:
    """The mean over heads of `rows`, checked, padding left out."""
    if heads not in ("each", "mean", "sum"):
        raise ValueError(
            f"{name}: expected heads 'each', 'mean' or 'sum', got {heads!r}; 'mean' and 'sum' "
            "compare models with different numbers of heads"
        )
    shapes = [
        x.shape if heads == "each" else (*x.shape[:1], *x.shape[2:]) for x in (student, teacher)
    ]
    if shapes[0] != shapes[1] or student.ndim != 4 or teacher.ndim != 4:
        raise ValueError(
            f"{name}: expected student and teacher maps of one shape (B, heads, T, T), got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}; give both the same tokens, and if "
            "the numbers of heads differ use heads='mean'"
        )
    dtype = compute_dtype(student, teacher)
    batch, _, queries, keys = student.shape
    hidden = _hidden(name, (batch, queries, keys), mask, causal, student.device)
    if heads != "each":
        reduce = torch.mean if heads == "mean" else torch.sum
        student, teacher = (reduce(x.to(dtype), dim=1, keepdim=True) for x in (student, teacher))
    rows = partial(rows, hidden=hidden, dtype=dtype)
    return _visible(_over_heads(rows, student, teacher, batch * queries * keys), mask)


def _over_heads(rows: Rows, student: Tensor, teacher: Tensor, entries: int) -> Tensor:
    """The mean over heads (dim 1) of `rows`, for maps with many entries per head."""
    heads, step = student.shape[1], max(_CHUNK // max(entries, 1), 1)
    if step >= heads:
        return rows(student, teacher).mean(1)
    total = torch.zeros((), device=student.device)
    for s, t in zip(student.split(step, 1), teacher.split(step, 1), strict=True):
        values: Tensor = checkpoint(rows, s, t, use_reentrant=False, preserve_rng_state=False)
        total = total + values.sum(1)
    return total / heads


def _squared(student: Tensor, teacher: Tensor, hidden: Tensor | None, dtype: torch.dtype) -> Tensor:
    return _fill(student.to(dtype) - teacher.to(dtype), hidden, 0.0).square().sum(-1)


def _kl_of_probabilities(
    student: Tensor, teacher: Tensor, hidden: Tensor | None, dtype: torch.dtype, smallest: float
) -> Tensor:
    student, teacher = (_fill(x.to(dtype), hidden, 0.0) for x in (student, teacher))
    mass_s, mass_t = (x.sum(-1, keepdim=True).clamp(min=smallest) for x in (student, teacher))
    log_s = student.clamp(min=smallest).log() - mass_s.log()
    log_t = teacher.clamp(min=smallest).log() - mass_t.log()
    return (teacher / mass_t * (log_t - log_s)).sum(-1)


def _cross_entropy(
    student: Tensor, teacher: Tensor, hidden: Tensor | None, dtype: torch.dtype, everywhere: bool
) -> Tensor:
    student, teacher = student.to(dtype), teacher.to(dtype)
    if not everywhere:
        student, teacher = (_fill(x, hidden, torch.finfo(dtype).min) for x in (student, teacher))
    per_key = -teacher.softmax(-1) * F.log_softmax(student, -1)
    return _fill(per_key, hidden, 0.0).sum(-1)


def _kl_of_relations(
    student: Tensor, teacher: Tensor, hidden: Tensor | None, dtype: torch.dtype
) -> Tensor:
    log_s, log_t = (_log_relations(x.to(dtype), hidden) for x in (student, teacher))
    return kl(log_t, log_s)


def _log_relations(vectors: Tensor, hidden: Tensor | None) -> Tensor:
    vectors = vectors / vectors.shape[-1] ** 0.25  # both factors, so that none overflows early
    with no_autocast(vectors):
        relations = vectors @ vectors.transpose(-1, -2)
    return F.log_softmax(_fill(relations, hidden, torch.finfo(relations.dtype).min), -1)


def _hidden(
    name: str,
    shape: tuple[int, int, int],
    mask: Tensor | None,
    causal: bool,
    device: torch.device,
) -> Tensor | None:
    """Mask (B or 1, 1, Q, K) of the pairs of query and key that are left out."""
    batch, queries, keys = shape
    hidden = None
    if mask is not None:
        if mask.shape != (batch, queries) or queries != keys:
            raise ValueError(
                f"{name}: expected a mask {(batch, queries)} for {queries} queries and {keys} "
                f"keys, got {tuple(mask.shape)}; give the attention mask (B, T) of these tokens"
            )
        real = mask.bool()
        hidden = ~(real[:, None, :, None] & real[:, None, None, :])
    if causal:
        later = torch.ones(queries, keys, dtype=torch.bool, device=device).triu(1)[None, None]
        hidden = later if hidden is None else hidden | later
    return hidden


def _fill(maps: Tensor, hidden: Tensor | None, value: float) -> Tensor:
    return maps if hidden is None else maps.masked_fill(hidden, value)


def _visible(values: Tensor, mask: Tensor | None) -> Tensor:
    """(B, T), padded queries set to 0."""
    return values if mask is None else values.masked_fill(~mask.bool(), 0.0)
