"""The loss of a first step, in a few lines of plain torch and without the package under test.

Each function gets a batch and both models' outputs, and gives the loss of the labels and the
divergence, as the README's table of heads defines them: means over items, sums over classes, T²
applied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = Mapping[str, Any]
Pair = tuple[Tensor, Tensor]
Loss = Callable[[Batch, Any, Any, float, nn.Module], Pair]


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher || student) of the last dimension."""
    ours, theirs = (F.log_softmax(x / temperature, -1) for x in (student, teacher))
    return temperature**2 * F.kl_div(ours, theirs, log_target=True, reduction="none").sum(-1)


def classes(batch: Batch, ours: Any, theirs: Any, temperature: float, model: nn.Module) -> Pair:
    """Examples with one class each; multiple choice too."""
    divergence = kl(ours.logits, theirs.logits, temperature).mean()
    return F.cross_entropy(ours.logits, batch["labels"]), divergence


def number(batch: Batch, ours: Any, theirs: Any, temperature: float, model: nn.Module) -> Pair:
    """Regression; half the squared difference as the divergence."""
    labels = F.mse_loss(ours.logits.squeeze(-1), batch["labels"].float())
    return labels, 0.5 * F.mse_loss(ours.logits, theirs.logits)


def labels(batch: Batch, ours: Any, theirs: Any, temperature: float, model: nn.Module) -> Pair:
    """Several classes at once: sums over the classes, each a variable of two values."""
    hard = F.binary_cross_entropy_with_logits(ours.logits, batch["labels"], reduction="none")
    both = [torch.stack([x.logits, torch.zeros_like(x.logits)], -1) for x in (ours, theirs)]
    return hard.sum(-1).mean(), kl(*both, temperature).sum(-1).mean()


def tokens(batch: Batch, ours: Any, theirs: Any, temperature: float, model: nn.Module) -> Pair:
    """Labelled tokens in place: token classification, masked and encoder-decoder models."""
    return _labelled(ours.logits, theirs.logits, batch["labels"], temperature)


def next_tokens(batch: Batch, ours: Any, theirs: Any, temperature: float, model: nn.Module) -> Pair:
    """Each position's label is the next token."""
    after = batch["labels"][:, 1:]
    return _labelled(ours.logits[:, :-1], theirs.logits[:, :-1], after, temperature)


def pixels(batch: Batch, ours: Any, theirs: Any, temperature: float, model: nn.Module) -> Pair:
    """Segmentation at the labels' resolution; 255 is no class."""
    size = batch["labels"].shape[-2:]
    maps = [
        F.interpolate(x.logits, size, mode="bilinear", align_corners=False).movedim(1, -1)
        for x in (ours, theirs)
    ]
    return _labelled(*maps, batch["labels"].masked_fill(batch["labels"] == 255, -100), temperature)


def _labelled(ours: Tensor, theirs: Tensor, labels: Tensor, temperature: float) -> Pair:
    kept = labels != -100
    hard = F.cross_entropy(ours[kept], labels[kept])
    return hard, kl(ours[kept], theirs[kept], temperature).mean()


def spans(batch: Batch, ours: Any, theirs: Any, temperature: float, model: nn.Module) -> Pair:
    """Question answering: the model's own loss; the divergence without padding, start and end."""
    hidden = ~batch["attention_mask"].bool()
    divergences = []
    for name in ("start_logits", "end_logits"):
        logits = (getattr(x, name).masked_fill(hidden, -1e30) for x in (ours, theirs))
        divergences.append(kl(*logits, temperature).mean())
    hard = [
        F.cross_entropy(ours.start_logits, batch["start_positions"]),
        F.cross_entropy(ours.end_logits, batch["end_positions"]),
    ]
    return sum(hard) / 2, sum(divergences) / 2


def frames(batch: Batch, ours: Any, theirs: Any, temperature: float, model: nn.Module) -> Pair:
    """CTC with the model's blank, per target token; the divergence over the frames."""
    config: Any = model.config
    to_frames: Any = model._get_feat_extract_output_lengths
    lengths = to_frames(batch["attention_mask"].sum(-1))
    kept = batch["labels"] >= 0
    hard = F.ctc_loss(
        ours.logits.log_softmax(-1).transpose(0, 1),
        batch["labels"][kept],
        lengths,
        kept.sum(-1),
        blank=config.pad_token_id,
        reduction="sum",
    )
    real = torch.arange(ours.logits.shape[1]) < lengths[:, None]
    divergence = kl(ours.logits[real], theirs.logits[real], temperature).mean()
    return hard / kept.sum(), divergence


def matches(batch: Batch, ours: Any, theirs: Any, temperature: float, model: nn.Module) -> Pair:
    """Dual encoders: pictures against the batch's texts and the reverse."""
    truth = torch.arange(len(ours.logits_per_text))
    names = ("logits_per_image", "logits_per_text")
    hard = [F.cross_entropy(getattr(ours, name), truth) for name in names]
    soft = [kl(getattr(ours, name), getattr(theirs, name), temperature).mean() for name in names]
    return sum(hard) / 2, sum(soft) / 2


def own(batch: Batch, ours: Any, theirs: Any, temperature: float, model: nn.Module) -> Pair:
    """A head without comparable logits: the model's own loss, and squared differences of all
    hidden states above the embeddings, over the real tokens where there is a mask. (Of states with
    the examples first: Mask2Former gives others with the queries first, which are left out.)"""
    size = len(next(value for value in batch.values() if isinstance(value, Tensor)))
    mask, total = batch.get("attention_mask"), torch.zeros(())
    for name, states in ours.items():
        layers = states if name.endswith("hidden_states") and isinstance(states, tuple) else ()
        if layers and all(len(layer) == size for layer in layers):
            gaps = [
                (a - b).square().movedim(1, -1) if a.dim() == 4 else (a - b).square()
                for a, b in zip(states[1:], theirs[name][1:], strict=True)
            ]
            total = total + sum(map(partial(_real_mean, mask=mask), gaps)) / len(gaps)
    return ours.loss, total


def _real_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    return values.mean() if mask is None else values.mean(-1)[mask.bool()].mean()


KINDS: dict[str, Loss] = {
    function.__name__: function
    for function in (
        classes,
        frames,
        labels,
        matches,
        next_tokens,
        number,
        own,
        pixels,
        spans,
        tokens,
    )
}


def first_loss(
    kind: str,
    batch: dict[str, Any],
    student: nn.Module,
    teacher: nn.Module,
    alpha: float,
    temperature: float,
) -> float:
    """``(1 - alpha) * labels + alpha * T² KL`` of one batch, in plain torch.

    Args:
        kind: A name of `KINDS`.
        batch: What the models are given.
        student: As it was before the step.
        teacher: In eval mode.
        alpha: The teacher's share.
        temperature: Of the divergence.
    """
    more = {"output_hidden_states": True} if kind == "own" else {}
    with torch.no_grad():
        ours, theirs = student(**batch, **more), teacher(**batch, **more)
        hard, soft = KINDS[kind](batch, ours, theirs, temperature, student)
    return float((1 - alpha) * hard + alpha * soft)
