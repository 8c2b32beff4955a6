"""Ensemble weights that maximise the likelihood of held-out labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hf_distill.models.signals import BatchItems
from hf_distill.teachers.ensemble.mixing import MemberProbs

GAP = 1e-8
"""Tolerance of the mean log-likelihood per observation, in nats."""


def observations(probs: MemberProbs, average: str, items: BatchItems) -> tuple[Tensor, Tensor]:
    """Outputs of a member for every label, and the labels.

    Returns:
        ``(n,)`` the log-likelihoods of the labels, or for ``average="logits"`` ``(n, S)`` logits;
        for regression ``(n,)`` outputs. And ``(n,)`` the labels: int64, or targets of a regression.

    Raises:
        ValueError: the batch has no labels, or they belong to no item (CTC).
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
    """The best weights for the `observations` of all members, ``(n, K, …)``."""
    if kind == "regression":
        return mean_output_weights(table, target)
    return mean_logit_weights(table, target) if average == "logits" else mixture_weights(table)


def mixture_weights(likelihoods: Tensor, steps: int = 100_000) -> Tensor:
    """argmax_w sum_n log sum_i w_i exp(likelihoods)_ni over the simplex, by EM.

    w_i <- w_i * g_i with g_i = mean_n p_ni / sum_j w_j p_nj, which never lowers the likelihood
    (Dempster, Laird and Rubin 1977). The function is concave, so that the mean gain that is still
    possible is at most log max_i g_i: it ends where that is below `GAP`.

    Args:
        likelihoods: ``(N, K)`` log-likelihoods; an observation with probability 0 under all members
            is ignored.
        steps: Largest number of steps.

    Returns:
        ``(K,)`` weights in float64.
    """
    table = likelihoods.double()
    table = table[(table > -torch.inf).any(-1)]
    chances = (table - table.amax(-1, keepdim=True)).exp()
    weights = table.new_full((table.shape[-1],), 1 / table.shape[-1])
    for _ in range(steps if len(table) else 0):
        gains = (chances / (chances @ weights)[:, None]).mean(0)
        if gains.max().log() <= GAP:
            break
        weights = weights * gains
    return weights / weights.sum()


def mean_logit_weights(logits: Tensor, labels: Tensor) -> Tensor:
    """argmax_w sum_n log softmax(sum_i w_i z_ni)[y_n] over the simplex.

    Args:
        logits: ``(N, K, S)``.
        labels: ``(N,)`` int64.

    Returns:
        ``(K,)`` weights in float64.
    """
    logits = logits.double()

    def loss(weights: Tensor) -> Tensor:
        mean = torch.einsum("k,nks->ns", weights, logits)
        return torch.nn.functional.cross_entropy(mean, labels)

    return _least(loss, logits.shape[1], logits.device)


def mean_output_weights(outputs: Tensor, targets: Tensor) -> Tensor:
    """argmin_w of the mean of (sum_i w_i z_ni - y_n)² over the simplex.

    Args:
        outputs: ``(N, K)``.
        targets: ``(N,)``.

    Returns:
        ``(K,)`` weights in float64.
    """
    outputs, targets = outputs.double(), targets.double()

    def loss(weights: Tensor) -> Tensor:
        return (outputs @ weights - targets).square().mean()

    return _least(loss, outputs.shape[1], outputs.device)


@torch.enable_grad()
def _least(loss: Callable[[Tensor], Tensor], count: int, device: torch.device) -> Tensor:
    """Minimise a convex function over the simplex, with points softmax(p).

    For a convex loss, w · grad - min(grad) bounds what can still be won (Frank and Wolfe 1956).
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
