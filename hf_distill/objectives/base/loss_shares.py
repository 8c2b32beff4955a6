"""State of weights that adapt: running means of the components, and losses of groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

DECAY = 0.95
"""Decay of a component's running mean per optimizer step."""


class LossShares(nn.Module):
    """Running means of the components, and the weights that follow from them.

    With the weighted means of the parts of fixed weight adding up to F and shares adding up to S,
    the total is F / (1 - S), and a part of share s and mean m gets the weight s * total / |m|. If
    all parts are shares the total is 1. ``shares`` has the share of each part, or None where the
    weight is fixed.
    """

    means: Tensor
    steps: Tensor

    def __init__(self, shares: Mapping[str, float | None]):
        super().__init__()
        self.shares = dict(shares)
        fixed = [share is None for share in shares.values()]
        total = sum(share for share in shares.values() if share is not None)
        if (any(fixed) and total >= 1) or (not any(fixed) and abs(total - 1) > 1e-6):
            raise ValueError(
                f"Expected shares that add up to 1, or to less beside parts of fixed weight, got "
                f"{total:g}. Lower the shares."
            )
        self.register_buffer("means", torch.zeros(len(shares), dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64))
        # no buffer: DDP would overwrite it, and it is 0 at saves
        self._window: Tensor | float = 0.0

    def weights(self) -> dict[str, Tensor]:
        """Current weights of the objectives with a share, as numbers without a graph."""
        fixed = torch.tensor([s is None for s in self.shares.values()], device=self.means.device)
        means = self.means / (1 - DECAY**self.steps).clamp(min=1e-12)
        shares = sum(s for s in self.shares.values() if s is not None)
        total = (
            (means * fixed).sum() / (1 - shares)
            if shares < 1 - 1e-6
            else torch.ones_like(self.steps)
        )
        weights = torch.where(means > 0, total / means.clamp(min=1e-30), 0.0)
        return {
            name: share * weight
            for (name, share), weight in zip(self.shares.items(), weights.unbind(), strict=True)
            if share is not None
        }

    @torch.no_grad()
    def observe(
        self, values: Mapping[str, Tensor], last: bool, over_ranks: Callable[[Tensor], Tensor]
    ) -> None:
        """Add the components of one micro-batch, and after the last one of a window update the
        means.

        ``values`` has for each part its share of the window's value, with fixed weights in it;
        ``over_ranks`` adds up over the processes.
        """
        added = [
            values[name].double() if name in values else self.steps * 0 for name in self.shares
        ]
        self._window = self._window + torch.stack(added)
        if last:
            self.means.mul_(DECAY).add_((1 - DECAY) * over_ranks(self._window).abs())
            self.steps += 1
            self._window = 0.0


class GroupDROState(nn.Module):
    """Group weights that follow the losses (Group DRO), and the counts of the groups.

    After each optimizer step, with L_g the mean loss of group g over the whole window and all
    processes (0 for a group that is not in it), q_g <- q_g exp(step L_g), divided by their sum. A
    loss counts with q_g / p_g, where p_g is the share of the group among the items of the steps
    before, one more item of each counted, so that the mean over items estimates the sum of q_g L_g.
    """

    q: Tensor
    seen: Tensor

    def __init__(self, groups: int, step: float):
        super().__init__()
        self.step = step
        self.register_buffer("q", torch.full((groups,), 1 / groups, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(groups, dtype=torch.float64))
        self._latest: Tensor | None = None  # no buffers, as in `LossShares`
        self._window: Tensor | float = 0.0

    def weights(self) -> Tensor:
        """Weights ``(groups,)`` of the losses, from before this step."""
        return self.q * (self.seen.sum() + len(self.seen)) / (self.seen + 1)

    @torch.no_grad()
    def keep(self, sums: Tensor, counts: Tensor) -> None:
        """Store the values of a micro-batch for `observe`.

        ``sums`` and ``counts`` ``(groups,)`` are the sum of the losses of each group, and of how
        many.
        """
        self._latest = torch.stack([sums, counts]).double()

    @torch.no_grad()
    def observe(self, last: bool, over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Add the stored values, and after the last micro-batch of a window update q."""
        if self._latest is not None:
            self._window, self._latest = self._window + self._latest, None
        if last and isinstance(self._window, Tensor):
            sums, counts = over_ranks(self._window).unbind()
            self.q.mul_((self.step * sums / counts.clamp(min=1e-30)).exp())
            self.q.div_(self.q.sum())
            self.seen.add_(counts)
            self._window = 0.0
