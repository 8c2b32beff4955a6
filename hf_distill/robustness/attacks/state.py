"""State of an attack on a batch, shared by all attacks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from hf_distill.data.random_states import same_randomness
from hf_distill.models.batches import Batch
from hf_distill.models.input_space import EMBEDDINGS, InputSpace, embedded
from hf_distill.models.modes import evaluating
from hf_distill.models.signals import Needs
from hf_distill.models.task_model import TaskModel
from hf_distill.robustness.attacks.attack import LOSSES, Attack, AttackResult, margin


class AttackState:
    """Batch under attack: examples still classified correctly, the worst input found for each.

    Arguments and errors are those of `attack_batch`, within `undisturbed`.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        labels: Tensor,
        attack: Attack,
        space: InputSpace,
        seed: int = 0,
        keys: Sequence[Any] | None = None,
    ):
        self.model, self.batch, self.space, self.seed = model, batch, space, seed
        self.task_model = TaskModel(model)
        point = space.point(self.task_model, batch)
        self.dtype = point.dtype  # what the model is given; the search itself is not in half
        self.center = point.to(torch.promote_types(point.dtype, torch.float32))
        self.size = len(self.center)
        self._check_labels(labels)
        self.labels = labels.to(self.center.device).long()
        self.ball = space.ball(batch, self.center, attack.epsilon, attack.norm)
        self._check_bounds(self.center)
        self.keys = self._contents() if keys is None else [repr(key).encode() for key in keys]
        if len(self.keys) != self.size:
            got = len(self.keys)
            raise ValueError(f"Expected a key for each of {self.size} examples, got {got}.")

        self.queries = torch.zeros_like(self.labels)
        self.correct = torch.ones_like(self.labels, dtype=torch.bool)
        self.adversarial = self.center.clone()
        self.worst = torch.full_like(self.labels, -torch.inf, dtype=self.center.dtype)
        with torch.no_grad():
            everyone = torch.arange(self.size, device=self.center.device)
            logits = self.logits(everyone, self.center)
        self.classes = logits.shape[-1]
        self.offer(everyone, self.center, logits)
        self.clean_correct = self.correct.clone()

    def result(self) -> AttackResult:
        """Result of the attack so far."""
        return AttackResult(
            self.correct, self.adversarial, self.clean_correct, self.queries, self.classes
        )

    def standing(self) -> Tensor:
        """Indices of the examples that are still classified correctly."""
        return self.correct.nonzero()[:, 0]

    def logits(self, rows: Tensor, x: Tensor) -> Tensor:
        """Logits ``(n, C)`` of the examples at ``rows`` ``(n,)`` for the input ``x`` ``(n, ...)``,
        in float32."""
        whole = len(rows) == self.size
        batch = {
            name: value[rows]
            if not whole and isinstance(value, Tensor) and value.shape[:1] == (self.size,)
            else value
            for name, value in self.batch.items()
        }
        x = x.to(self.dtype)
        if self.space.key == EMBEDDINGS and "input_ids" in batch:
            shown: contextlib.AbstractContextManager[None] = embedded(self.task_model, x)
        else:
            shown, batch = contextlib.nullcontext(), self.space.replaced(batch, x)
        with shown:
            outputs = self.model(**self.task_model.inputs(batch, Needs(logits=True)))
        read = self.task_model.task.read
        logits = None if read is None else read(outputs, batch)
        self._check_logits(logits)
        assert logits is not None
        self.queries[rows] += 1
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def climb(self, rows: Tensor, x: Tensor, loss: str) -> tuple[Tensor, Tensor]:
        """Logits, and the gradient of a loss with respect to the input."""
        x = x.detach().requires_grad_()
        logits = self.logits(rows, x)
        value = LOSSES[loss](logits, self.labels[rows]).sum()
        (gradient,) = torch.autograd.grad(value, x)
        return logits.detach(), gradient

    def on_levels(self, levels: Tensor) -> Tensor:
        """Logits of images with grey levels from 0 to 1; not counted as queries."""
        inputs = self.space.replaced({}, self.space.from_unit(levels).to(self.dtype))
        logits: Tensor = self.model(**inputs).logits
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def margin(self, rows: Tensor, logits: Tensor) -> Tensor:
        """The margin of some examples."""
        return margin(logits, self.labels[rows]).to(self.worst.dtype)

    def offer(self, rows: Tensor, x: Tensor, logits: Tensor) -> Tensor:
        """Keep inputs that are worse than all before; mask ``(n,)`` of correct predictions."""
        labels = self.labels[rows]
        held = logits.argmax(-1) == labels
        height = self.margin(rows, logits)
        take = ~held | (height >= self.worst[rows])
        self.adversarial[rows[take]] = x.detach()[take]
        self.worst[rows[take]] = height[take]
        self.correct[rows] &= held
        return held

    def generators(self, rows: Tensor, restart: int) -> list[torch.Generator]:
        """One generator per example, seeded by its key: the same in any batch."""
        seeds = (
            xxhash.xxh3_64_intdigest(f"{self.seed}/{restart}/".encode() + self.keys[row]) >> 1
            for row in rows.tolist()
        )
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def start(self, rows: Tensor, restart: int) -> Tensor:
        """A random point of each example's ball."""
        drawn = zip(rows.split(1), self.generators(rows, restart), strict=True)
        return torch.cat([self.ball.rows(row).start(generator) for row, generator in drawn])

    def _contents(self) -> list[bytes]:
        """Content of each example without padding."""
        value = self.center
        if self.space.key == EMBEDDINGS and "input_ids" in self.batch:
            value = self.batch["input_ids"]
        mask = self.ball.mask
        found = []
        for row in range(self.size):
            own = value[row]
            if mask is not None:
                real = mask[row] if own.dim() == mask.dim() - 1 else mask[row, ..., 0]
                own = own[real.expand_as(own)]
            found.append(own.cpu().contiguous().numpy().tobytes())
        return found

    def _check_labels(self, labels: Tensor) -> None:
        if labels.shape != (self.size,) or labels.is_floating_point():
            raise ValueError(
                f"Expected one class id for each of {self.size} examples, got labels of shape "
                f"{tuple(labels.shape)} and {labels.dtype}. Attacks are for classifiers."
            )
        if bool((labels < 0).any()):
            raise ValueError(
                "Expected a label for every example, got some below 0: leave them out."
            )

    def _check_logits(self, logits: Tensor | None) -> None:
        fits = logits is not None and logits.dim() == 2 and logits.shape[-1] > 1
        kind = self.task_model.kind(self.batch.get("labels"))
        if not fits or kind != "softmax":
            shape = None if logits is None else tuple(logits.shape)
            raise ValueError(
                f"Expected a classifier with one label per example and logits (B, C), C >= 2, got "
                f"{type(self.task_model.model).__name__} with logits {shape} read as {kind}."
            )
        assert logits is not None
        if (highest := int(self.labels.max())) >= logits.shape[-1]:
            raise ValueError(
                f"Expected labels below {logits.shape[-1]}, the number of classes of the model, "
                f"got {highest}. Are the labels in the model's own order?"
            )

    def _check_bounds(self, x: Tensor) -> None:
        """Check that the ball's bounds are within those of the input space."""
        if self.space.key == "pixel_values" and self.space.low is not None:
            levels = self.space.to_unit(x)
            if bool((levels < -0.01).any() | (levels > 1.01).any()):
                raise ValueError(
                    f"Expected pictures of grey levels from 0 to 1 once the processor's mean and "
                    f"deviation are undone, got {levels.min():.3g} to {levels.max():.3g}. Give "
                    "`space_of` the processor that made the batch."
                )


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a model in evaluation mode, without gradients of parameters but with those of the input;
    modes, ``requires_grad`` and the global random states are restored.

    Raises:
        ValueError: within ``torch.inference_mode``, whose tensors never have gradients.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("Expected torch.no_grad() or none, got torch.inference_mode(): leave it.")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with evaluating(model), torch.enable_grad(), same_randomness(devices):
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)
