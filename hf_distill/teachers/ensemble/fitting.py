"""Ensemble weights that maximise the likelihood of held-out labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hf_distill.models.signals import BatchItems
from hf_distill.teachers.ensemble.mixing import MemberProbs

GAP = 1e-8
"""Tolerance of the mean log-likelihood per observation, in nats."""
STEPS = 100_000


def observations(probs: MemberProbs, average: str, items: BatchItems) -> tuple[Tensor, Tensor]:
    """Outputs of a member for every label, and the labels ``(n,)``: int64, or targets of a
    regression.

    The outputs are ``(n,)`` log-likelihoods of the labels, for ``average="logits"`` ``(n, S)``
    logits, for regression ``(n,)`` outputs. ValueError for a batch whose labels are missing, or
    belong to no item (CTC).
    """
    mask, labels = items.masks.get("labels"), items.labels
    if mask is None or labels is None or probs.kind in ("ctc", "none"):
        raise ValueError(
            f"Expected batches with a label for each item, got none (a {probs.kind} head). Weights "
            "are fitted to the labels of held-out data; give them by hand, or use 'confidence'."
        )
    if probs.kind == "softmax":
        items.class_ids("Ensemble.fit")
    if probs.joined is not None and average == "probabilities":
        return probs.likelihood(items)[mask], labels[mask]
    values = probs.values(average)
    if probs.kind == "softmax":
        table, target = values[mask], labels[mask]
    else:
        wide = (
            values.shape[:-1] if probs.kind == "sigmoid" and average != "logits" else values.shape
        )
        labels = labels.view(wide)
        real = mask.view(*mask.shape, *[1] * (labels.dim() - mask.dim())).expand(wide)
        real = real & ~labels.isnan()
        if probs.kind == "regression":
            return values[real], labels[real]
        real = real & (labels >= 0)
        if average == "logits":
            values = torch.stack([values, torch.zeros_like(values)], -1)
        table, target = values[real], (labels[real] < 0.5).long()
    if average == "logits":
        return table, target
    return table.gather(-1, target[:, None]).squeeze(-1), target


def fitted_weights(table: Tensor, target: Tensor, kind: str, average: str) -> Tensor:
    """The best weights ``(K,)``, float64, for the `observations` ``(n, K, …)`` of all members:
    those of the least squared error, of the least cross-entropy, or of a mixture."""
    if kind != "regression" and average != "logits":
        return mixture_weights(table)
    table = table.double()

    def loss(weights: Tensor) -> Tensor:
        if kind == "regression":
            return (table @ weights - target.double()).square().mean()
        mean = torch.einsum("k,nks->ns", weights, table)
        return torch.nn.functional.cross_entropy(mean, target)

    return _least(loss, table.shape[1], table.device)


def mixture_weights(likelihoods: Tensor) -> Tensor:
    """argmax_w sum_n log sum_i w_i exp(likelihoods)_ni over the simplex, by EM, ``(K,)`` float64.

    w_i <- w_i * g_i with g_i = mean_n p_ni / sum_j w_j p_nj, which never lowers the likelihood
    (Dempster, Laird and Rubin 1977). The function is concave: the mean gain that is still possible
    is at most log max_i g_i, and it ends where that is below `GAP`. ``likelihoods`` ``(N, K)`` are
    logs; an observation with probability 0 under all members is ignored.
    """
    table = likelihoods.double()
    table = table[(table > -torch.inf).any(-1)]
    chances = (table - table.amax(-1, keepdim=True)).exp()
    weights = table.new_full((table.shape[-1],), 1 / table.shape[-1])
    for _ in range(STEPS if len(table) else 0):
        gains = (chances / (chances @ weights)[:, None]).mean(0)
        if gains.max().log() <= GAP:
            break
        weights = weights * gains
    return weights / weights.sum()


@torch.enable_grad()
def _least(loss: Callable[[Tensor], Tensor], count: int, device: torch.device) -> Tensor:
    """Minimise a convex function over the simplex, with points softmax(p).

    w · grad - min(grad) bounds what can still be won (Frank and Wolfe 1956).
    """
    p = torch.zeros(count, dtype=torch.float64, device=device, requires_grad=True)
    best = torch.optim.LBFGS([p], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=0.0)

    def closure() -> Tensor:
        best.zero_grad()
        value = loss(p.softmax(-1))
        value.backward()
        return value

    for _ in range(20):
        best.step(closure)
        weights = p.detach().softmax(-1).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(weights), weights)
        if torch.dot(weights.detach(), gradient) - gradient.min() <= GAP:
            break
    return p.detach().softmax(-1)
