"""The counts of an accumulation window, and what a micro-batch's loss is divided by."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from hf_distill.models.task_model import TaskModel
from hf_distill.training.reduction import Counts


class Windows(Trainer):
    """The part of the trainer that counts.

    The loss of a window is a sum over its items divided by their number. In `training_step` that is
    the mean over the micro-batches of their sums divided by the mean number, so that what a
    subclass adds, or has in its place, may be the mean of its batch.
    """

    current_gradient_accumulation_steps = 1
    _task_model: TaskModel
    _window: Counts | None = None
    _so_far: Mapping[str, Tensor] = MappingProxyType({})
    _in_step = False
    _stepped = False
    _scaled: bool | None = None

    def _get_num_items_in_batch(  # type: ignore[override]
        self, batch_samples: list, device: torch.device
    ) -> Counts | None:
        """Count the items of every unit over the accumulation window, and over all ranks."""
        if not batch_samples:
            return None
        counts = [self._task_model.items(batch).counts() for batch in batch_samples]
        units = sorted(counts[0])
        total = torch.stack([torch.stack([c[u] for u in units]).to(device) for c in counts]).sum(0)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.reduce(total, "sum")
        if self.get_tp_size() > 1:  # these ranks hold the same batch
            total = total / self.get_tp_size()
        self._window = Counts(zip(units, total.unbind(), strict=True))
        self._so_far = {u: n + self._so_far.get(u, 0) for u, n in self._window.items()}
        return self._window

    @property
    def loss_is_scaled_for_ga(self) -> bool:
        """False in `training_step`, True for whoever calls `compute_loss` instead of it; or what a
        subclass says."""
        return not self._in_step if self._scaled is None else self._scaled

    @loss_is_scaled_for_ga.setter
    def loss_is_scaled_for_ga(self, value: bool | None) -> None:
        self._scaled = value

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """One micro-batch, whose loss is divided by the number of those in the window.

        So `compute_loss` is given the counts of the window divided by that number, and what a
        subclass adds to its loss may be a mean over the batch or a sum over these counts.
        """
        self._in_step = self._stepped = True
        try:
            if num_items_in_batch is not None and not self.loss_is_scaled_for_ga:
                parts = self.current_gradient_accumulation_steps
                num_items_in_batch = Counts(num_items_in_batch).over(parts)
            return super().training_step(model, inputs, num_items_in_batch)
        finally:
            self._in_step = False

    def _counted(self, given: Any, training: bool) -> tuple[Mapping[str, Tensor] | None, int]:
        """The divisor of a micro-batch, and of its components besides.

        Without counts its loss is a mean in `training_step` or out of it, as in `transformers`.
        """
        if not (training and self.is_in_train):
            return given, 1
        summed = self.loss_is_scaled_for_ga if self._in_step else given is not None
        parts = 1 if summed else self.current_gradient_accumulation_steps
        if given is None and self._window is not None:
            given = self._window.over(parts)
        return given, parts

    def _loss_scale(self) -> float:
        """Gradients are averaged over ranks; sums over global counts must be added up."""
        if not self.args.average_tokens_across_devices:
            return 1.0
        return self.accelerator.num_processes / self.get_tp_size()
