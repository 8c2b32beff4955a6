"""Some classes and one bucket for the rest: on what sparse probabilities are compared."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_distill.losses import forward_kl
from hf_distill.losses.distribution.sparse import coarsened


def inputs(k: int = 3, classes: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, classes, generator=generator, dtype=torch.float64) * 2
    log_p, ids = teacher.log_softmax(-1).topk(k, -1)
    rest = torch.log1p(-log_p.exp().sum(-1))
    return student, log_p, ids, rest


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_brute_force(temperature: float) -> None:
    """A class counted twice, or left out of both, would shift every probability."""
    student, log_p, ids, rest = inputs()
    ours, theirs = coarsened(student, log_p, ids, rest, temperature)
    for item in range(len(student)):
        q = (student[item] / temperature).exp()
        q = q / q.sum()
        chosen = ids[item].tolist()
        expected = [float(q[c]) for c in chosen]
        expected.append(sum(float(q[c]) for c in range(len(q)) if c not in chosen))
        assert ours[item].exp().tolist() == pytest.approx(expected, rel=1e-12)
        assert theirs[item].exp().sum().item() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("drawn", [False, True])
def test_gradients(drawn: bool) -> None:
    """By finite differences, of the divergence that is minimised."""
    student, log_p, ids, rest = inputs()
    if drawn:
        log_p = log_p - log_p.logsumexp(-1, keepdim=True)

    def loss(logits: Tensor) -> Tensor:
        return forward_kl(*coarsened(logits, log_p, ids, None if drawn else rest))

    assert torch.autograd.gradcheck(loss, student.requires_grad_())


def test_draws_are_the_expectation_of_the_log_probabilities() -> None:
    """Without a bucket of the teacher's, KL is sum p (log p - log q) over what was drawn."""
    student, log_p, ids, _ = inputs()
    log_p = log_p - log_p.logsumexp(-1, keepdim=True)
    expected = (log_p.exp() * (log_p - student.log_softmax(-1).gather(-1, ids))).sum(-1)
    torch.testing.assert_close(forward_kl(*coarsened(student, log_p, ids)), expected)


@pytest.mark.parametrize("drawn", [False, True])
def test_unused_slots_are_ignored(drawn: bool) -> None:
    """What pads a batch of draws would take a class away from the rest."""
    student, log_p, ids, rest = inputs()
    padded = torch.cat([log_p, torch.full_like(log_p[..., :1], -torch.inf)], -1)
    for other in (0, 6):
        more = torch.cat([ids, torch.full_like(ids[..., :1], other)], -1)
        given = None if drawn else rest
        plain = forward_kl(*coarsened(student, log_p, ids, given))
        torch.testing.assert_close(forward_kl(*coarsened(student, padded, more, given)), plain)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_far_logits_stay_finite(scale: float) -> None:
    """A NaN in one item of a cache would end the training."""
    student, log_p, ids, rest = (x.float() if x.is_floating_point() else x for x in inputs())
    logits = (student * scale).requires_grad_()
    for given in (rest, None):
        values = forward_kl(*coarsened(logits, log_p, ids, given))
        (gradient,) = torch.autograd.grad(values.sum(), logits)
        assert values.isfinite().all()
        assert gradient.isfinite().all()


def test_all_classes_leave_no_rest() -> None:
    """With every class by itself it is the divergence on all classes."""
    student, log_p, ids, _ = inputs(k=7)
    teacher = torch.zeros_like(student).scatter(-1, ids, log_p)
    rest = torch.full(log_p.shape[:-1], -torch.inf, dtype=torch.float64)
    for given in (rest, None):
        ours = forward_kl(*coarsened(student, log_p, ids, given))
        torch.testing.assert_close(ours, forward_kl(student, teacher))
