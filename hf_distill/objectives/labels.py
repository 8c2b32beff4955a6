"""Label losses: from the logits, and the model's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.objectives.base.objective import Context, Objective, Term


@dataclass(frozen=True)
class HardLabels(Objective):
    """Label loss, on the items that have a label.

    Cross-entropy, also of soft labels (probabilities, for a head whose config has one label per
    example); for multi-label heads the binary cross-entropies summed over the classes (transformers
    divides them by the number of classes); for regression the squared error; for CTC the negative
    log-likelihood, divided by the number of target tokens, with the blank that the student's config
    names (``pad_token_id``). It is the loss of the model's own forward, up to these factors; the
    trainer compares the two once (`hf_distill.training.own_loss`).

    Args:
        label_smoothing: Between 0 and 1, as in `torch.nn.functional.cross_entropy`; None: the
            trainer's ``label_smoothing_factor``.
        class_weights: A factor per class. Weighted values are averaged over the items, not over
            the sum of the weights, so that the split into batches does not matter.
    """

    label_smoothing: float | None = None
    class_weights: tuple[float, ...] | None = None
    name: ClassVar[str] = "hard_labels"
    student_needs: ClassVar[Needs] = Needs(logits=True)
    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.label_smoothing is not None and not 0 <= self.label_smoothing < 1:
            raise ValueError(f"Expected label_smoothing in [0, 1), got {self.label_smoothing}.")
        if self.class_weights is not None:
            object.__setattr__(self, "class_weights", tuple(map(float, self.class_weights)))

    @property
    def is_itemwise(self) -> bool:
        return True

    def check(self, kind: str, classes: int | None = None) -> None:
        if kind == "none":
            raise ValueError(
                "HardLabels needs a head with labels; a plain encoder has none. Align its hidden "
                "states instead: objective=HiddenStates()."
            )
        if kind in ("regression", "ctc") and (self.label_smoothing or self.class_weights):
            raise ValueError(f"Label smoothing and class weights do not apply to a {kind} head.")
        if classes is not None:
            self._check_weights(classes)

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        logits, mask = student.logits, items.masks.get(items.own_labels)
        if items.labels is None or mask is None or logits is None:
            raise ValueError(
                "HardLabels needs labels, and this batch has none. Drop it from the objective "
                "(alpha=1.0 trains on the teacher alone) or give the data a label column."
            )
        logits = at_least_float(logits if student.label_logits is None else student.label_logits)
        if student.kind == "ctc":
            values = self._ctc(student, logits, items.labels, mask, items.masks["items"])
            return [Term(self.name, values, "labels", mask.any(-1))]
        losses = {"sigmoid": self._binary, "regression": _squared, "softmax": self._cross_entropy}
        values = losses[student.kind](logits, items.labels, mask)
        return [Term(self.name, values, items.own_labels, mask)]

    def _check_weights(self, count: int) -> None:
        if self.class_weights is not None and len(self.class_weights) != count:
            raise ValueError(
                f"Expected {count} class_weights, got {len(self.class_weights)}. Give one factor "
                "per class, in the order of the student's `config.id2label`."
            )

    def _weights(self, logits: Tensor) -> Tensor | None:
        self._check_weights(logits.shape[-1])
        return None if self.class_weights is None else logits.new_tensor(self.class_weights)

    def _cross_entropy(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        if labels.is_floating_point():  # soft labels: probabilities
            targets = labels.masked_fill(~mask[..., None], 0.0).flatten(0, -2).to(logits.dtype)
        else:
            targets = labels.long().masked_fill(~mask, -100).flatten()
        values = F.cross_entropy(
            logits.flatten(0, -2),
            targets,
            self._weights(logits),
            reduction="none",
            label_smoothing=self.label_smoothing or 0.0,
        )
        return values.view(mask.shape)

    def _binary(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        if labels.dim() < logits.dim():
            labels = labels[..., None]
        labels = labels.to(logits.dtype)
        missing = torch.isnan(labels) | (labels < 0)
        smoothing = self.label_smoothing or 0.0
        targets = labels.masked_fill(missing, 0.0) * (1 - smoothing) + smoothing / 2
        values = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        weights = self._weights(logits)
        values = values if weights is None else values * weights
        return values.masked_fill(missing, 0.0).sum(-1)

    @staticmethod
    def _ctc(
        student: Signal, logits: Tensor, labels: Tensor, mask: Tensor, frames: Tensor
    ) -> Tensor:
        return F.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1),
            labels[mask],  # concatenated: masked items may be anywhere
            frames.sum(-1),
            mask.sum(-1),
            blank=student.blank,
            reduction="none",
            zero_infinity=student.zero_infinity,
        )


@dataclass(frozen=True)
class ModelLoss(Objective):
    """The loss that the student's own forward computes from the labels of the batch.

    For every `transformers` model, in the table of tasks or not, with whatever labels its forward
    takes: object detection, instance segmentation, masked autoencoders, time series, …. Together
    with objectives on hidden states or named modules it distils models whose logits cannot be
    compared.

    It is one number per forward. Over several forwards (accumulation, processes, an evaluation)
    these are averaged over labels, or over examples where the form of the labels is specific to the
    model: there, and for CTC, the split into batches matters as it does in `Trainer`.
    """

    name: ClassVar[str] = "model_loss"
    student_needs: ClassVar[Needs] = Needs(own_loss=True)
    needs_labels: ClassVar[bool] = True

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        loss = student.own_loss
        if loss is None:
            raise ValueError(
                "ModelLoss needs the loss of the student's own forward, and it gave none for this "
                "batch. Give the data the labels that its forward takes (`transformers.utils."
                "generic.find_labels(type(model))`), or drop it from the objective."
            )
        known = student.kind not in ("none", "ctc") and "labels" in items.masks
        unit = items.own_labels if known else "samples"
        mask = items.masks[unit]
        shaped = (
            loss if loss.shape == mask.shape else at_least_float(loss).mean().expand(mask.shape)
        )
        return [Term(self.name, shaped, unit, mask)]


def _squared(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    targets = labels.to(logits.dtype).view(logits.shape)
    return torch.where(targets.isnan(), 0.0, logits - targets).square().sum(-1)


def at_least_float(x: Tensor) -> Tensor:
    """Convert half precision to float32; float32 and float64 are unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
