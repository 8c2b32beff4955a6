"""Losses from hidden states and heads, against the same losses of whole logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from hf_distill.losses import distribution
from hf_distill.losses.fused import LazyLogits, linear_loss

N, V, H, THEIRS = 13, 29, 6, 10
DIVERGENCES: dict[str, Any] = {
    "forward_kl": lambda s, t, heat: distribution.forward_kl(s, t, heat),
    "reverse_kl": lambda s, t, heat: distribution.reverse_kl(s, t, heat),
    "jensen_shannon": lambda s, t, heat: distribution.jensen_shannon(s, t, 0.3, heat),
    "skew_kl": lambda s, t, heat: distribution.skew_kl(s, t, 0.1, heat),
    "skew_reverse_kl": lambda s, t, heat: distribution.skew_reverse_kl(s, t, 0.2, heat),
    "total_variation": lambda s, t, heat: distribution.total_variation(s, t, heat),
    "logit_mse": lambda s, t, heat: distribution.logit_mse(s, t),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 3.0, "scale": 1.5},
    "padding": {"classes": 21, "bias": True},
    "adapter": {"rank": 2},
    "everything": {"classes": 21, "bias": True, "rank": 2, "softcap": 2.0, "scale": 0.5},
}
ONE_ROW = 8
"""A budget of less than one item: one is held at a time."""
Parts = dict[str, Tensor]


def softened(name: str, temperature: float) -> Any:
    return lambda s, t: DIVERGENCES[name](s, t, temperature)


def parts(seed: int, width: int, dtype: torch.dtype = torch.float64, rank: int = 0) -> Parts:
    """Hidden states, weights, a bias and, with a rank, an adapter."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    found = {"hidden": normal(N, width), "weight": normal(V, width), "bias": normal(V)}
    if rank:
        found |= {"low": normal(N, rank), "up": normal(V, rank)}
    return {name: value.requires_grad_() for name, value in found.items()}


def linear(own: Parts, bias: bool = False, rank: int = 0, **settings: Any) -> LazyLogits:
    adapter = ("low", "up") if rank else ()
    return LazyLogits(
        (own["hidden"], *(own[name] for name in adapter[:1])),
        (own["weight"], *(own[name] for name in adapter[1:])),
        own["bias"] if bias else None,
        **settings,
    )


def dense(own: Parts, bias: bool = False, rank: int = 0, **settings: Any) -> Tensor:
    """The same logits, written out."""
    z = own["hidden"] @ own["weight"].T
    z = z + own["low"] @ own["up"].T if rank else z
    z = z + own["bias"] if bias else z
    z = z * settings.get("scale", 1.0)
    cap = settings.get("softcap")
    z = z if cap is None else cap * torch.tanh(z / cap)
    return z[:, : settings.get("classes")]


def both(
    value: Any, settings: dict[str, Any], budget: int | None = None, dtype: Any = torch.float64
) -> list[tuple[Tensor, Parts]]:
    """Value and gradients of a weighted sum over the items: fused, then plain."""
    weights = torch.linspace(0.0, 2.0, N, dtype=torch.float64).to(dtype)
    found = []
    for fused in (True, False):
        ours = parts(0, H, dtype, settings.get("rank", 0))
        theirs = parts(1, THEIRS, dtype, settings.get("rank", 0))
        if fused:
            pair = linear(ours, **settings), linear(theirs, **settings).detach()
            loss = linear_loss(
                *pair, lambda s, t, rows: (weights[rows] * value(s, t)).sum(), budget
            )
        else:
            with torch.no_grad():
                said = dense(theirs, **settings)
            loss = (weights * value(dense(ours, **settings), said)).sum()
        (2 * loss).backward()
        found.append((loss.detach(), {k: p.grad for k, p in ours.items() if p.grad is not None}))
    return found


def close(found: list[tuple[Tensor, Parts]], tolerance: float) -> None:
    (value, gradients), (wanted, expected) = found
    assert value.item() == pytest.approx(wanted.item(), rel=tolerance)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0
        assert (gradients[name] - gradient).norm() <= tolerance * gradient.norm(), name


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_value_and_gradients_are_those_of_whole_logits(name: str, settings: dict[str, Any]) -> None:
    """A cap, a bias or padding that is left out trains another objective, silently."""
    for temperature in (1.0, 2.5):
        for budget in (ONE_ROW, 5 * V * 16, None):
            close(both(softened(name, temperature), settings, budget), 1e-9)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_single_precision(name: str) -> None:
    """Sums over chunks in the wrong order or dtype lose digits that the plain path keeps."""
    close(both(softened(name, 2.0), {"bias": True}, ONE_ROW, torch.float32), 1e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_half_precision_is_no_worse_than_the_plain_path(name: str) -> None:
    """Gradients that add up in bfloat16 stall after a few chunks."""
    settings = {"scale": 0.5}
    exact = both(softened(name, 2.0), settings)[1]
    half = both(softened(name, 2.0), settings, ONE_ROW, torch.bfloat16)
    for part in exact[1]:
        errors = [(found[1][part].double() - exact[1][part]).norm() for found in half]
        assert errors[0] <= 1.05 * errors[1] + 1e-3 * exact[1][part].norm(), part


def test_autocast_computes_products_as_it_says() -> None:
    """Products in float32 under autocast would be slow; losses in bfloat16 would be wrong."""
    kinds = []

    def loss(student: Tensor, teacher: Tensor | None, rows: slice) -> Tensor:
        kinds.append((student.dtype, torch.is_autocast_enabled("cpu")))
        return distribution.forward_kl(student, teacher).sum()

    ours, theirs = parts(0, H, torch.float32), parts(1, THEIRS, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        linear_loss(linear(ours), linear(theirs).detach(), loss).backward()
    assert kinds == [(torch.bfloat16, False)]
    assert ours["weight"].grad is not None
    assert ours["weight"].grad.dtype == ours["hidden"].grad.dtype == torch.float32
    again = parts(0, H, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = again["hidden"] @ again["weight"].T
        said = (theirs["hidden"] @ theirs["weight"].T).detach()
    distribution.forward_kl(z, said).sum().backward()
    assert again["weight"].grad is not None
    distance = (ours["weight"].grad - again["weight"].grad).norm() / again["weight"].grad.norm()
    assert distance < 1e-2


def test_tied_weights_get_both_gradients() -> None:
    """A head that is the embedding too has a gradient from each; one of them would be lost."""
    found = []
    for fused in (True, False):
        own = parts(0, H)
        embedded = own["weight"][torch.arange(N)] * 0.5
        if fused:
            loss = linear_loss(
                LazyLogits((embedded,), (own["weight"],)),
                None,
                lambda z, _, rows: z.logsumexp(-1).sum(),
            )
        else:
            loss = (embedded @ own["weight"].T).logsumexp(-1).sum()
        loss.backward()
        assert own["weight"].grad is not None
        found.append(own["weight"].grad)
    assert torch.allclose(*found, rtol=1e-12)


def head_products(train: str, labels: bool = False) -> float:
    """How many products of the head's size a step takes."""
    own, theirs = parts(0, H), parts(1, H)
    for name in own:
        own[name].requires_grad_(name in train)
    inplace = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=inplace) as counter:
        loss = linear_loss(
            linear(own),
            None if labels else linear(theirs).detach(),
            lambda s, t, rows: (
                s.logsumexp(-1) if t is None else distribution.forward_kl(s, t)
            ).sum(),
            ONE_ROW,
        )
        if loss.requires_grad:
            loss.backward()
    return counter.get_total_flops() / (2 * N * V * H)


def test_nothing_is_projected_twice() -> None:
    """Recomputing logits in the backward costs half as much again, and nobody would see it."""
    assert head_products("hidden weight") == 4
    assert head_products("hidden") == 3
    assert head_products("weight") == 3
    assert head_products("") == 2
    assert head_products("hidden weight", labels=True) == 3


class Largest(TorchDispatchMode):
    """The most elements of any tensor that was made."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.most = max(self.most, *sizes, 0)
        return result


def test_no_logits_of_all_items_exist() -> None:
    """One temporary of [N, V] is the memory that all this is meant to save."""
    ours, theirs = parts(0, H), parts(1, THEIRS)
    with Largest() as largest:
        linear_loss(
            linear(ours),
            linear(theirs).detach(),
            lambda s, t, rows: distribution.jensen_shannon(s, t).sum(),
            2 * V * 16,
        ).backward()
    assert largest.most == V * THEIRS  # the teacher's weight, of which this is a view


def test_every_item_is_seen_once_and_in_order() -> None:
    """A chunk that is cut wrongly drops the last items of a batch."""
    for budget in (ONE_ROW, 3 * V * 8, 10**9):
        seen: list[int] = []

        def loss(z: Tensor, _: Tensor | None, rows: slice, seen: list[int] = seen) -> Tensor:
            seen.extend(range(rows.start, rows.stop))
            assert len(z) == rows.stop - rows.start
            return z.sum()

        linear_loss(linear(parts(0, H)), None, loss, budget)
        assert seen == list(range(N))


def test_no_items_give_a_connected_zero() -> None:
    """A batch whose tokens are all masked must not be NaN, nor leave a rank without gradients."""
    own = parts(0, H)
    empty = replace(linear(own), hidden=(own["hidden"][:0],))
    none = torch.zeros(0, dtype=torch.long)
    loss = linear_loss(
        empty, None, lambda z, _, rows: F.cross_entropy(z, none, reduction="none").sum()
    )
    loss.backward()
    assert loss.item() == 0
    for name in ("hidden", "weight"):
        gradient = own[name].grad
        assert gradient is not None
        assert gradient.abs().sum() == 0


def test_what_does_not_fit_is_refused() -> None:
    """Two vocabularies of different size would be compared by position."""
    short = replace(linear(parts(1, THEIRS)).detach(), classes=V - 1)
    with pytest.raises(ValueError, match=r"same items and classes.*cut both vocabularies"):
        linear_loss(linear(parts(0, H)), short, lambda s, t, rows: s.sum())


def test_a_second_backward_is_refused() -> None:
    """The gradients are used up by the first: a second one would give zeros."""
    loss = linear_loss(linear(parts(0, H)), None, lambda z, _, rows: z.sum())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_without_gradients_nothing_is_kept() -> None:
    """An evaluation would hold a gradient of the size of the head."""
    with torch.no_grad():
        value = linear_loss(linear(parts(0, H)), None, lambda z, _, rows: z.logsumexp(-1).sum())
    own = parts(0, H)
    assert value.item() == pytest.approx(
        (own["hidden"] @ own["weight"].T).logsumexp(-1).sum().item(), rel=1e-12
    )
    assert not value.requires_grad
