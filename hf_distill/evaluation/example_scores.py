"""Scores per example that can be resampled: task metrics and agreement with the teacher."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_distill.evaluation.examples import Examples
from hf_distill.evaluation.measures import Floats, checked, log_softmax
from hf_distill.evaluation.metrics.functional import agreement
from hf_distill.evaluation.predictor import Predictor
from hf_distill.evaluation.scoring.classes import class_counts, macro_f1
from hf_distill.evaluation.statistics import wilson
from hf_distill.losses import forward_kl
from hf_distill.losses.distribution.kl import cross_entropy, kl
from hf_distill.models.batches import IGNORE
from hf_distill.models.signals import Needs

LEVEL = 0.95
DRAWS = 2000
BINS = 15  # bins of confidence for the calibration error of language models
LIKENESS = ("agreement", "forward_kl_divergence", "reverse_kl_divergence", "acceptance_rate")
TOKENS = ("tokens", "nll", "hits", "entropy", *LIKENESS)
"""Quantities summed over the tokens of a text."""
Weighted = Callable[[Floats], float]
"""A figure as a function of how often each example counts ``(N,)``; all ones: the figure itself."""


@dataclass(frozen=True)
class Ratio:
    """Σ numerators / Σ denominators ``(N,)`` over the examples; denominators None: 1 for each."""

    numerators: Floats
    denominators: Floats | None = None

    def __call__(self, times: Floats) -> float:
        below = times.sum() if self.denominators is None else times @ self.denominators
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.divide(times @ self.numerators, below))

    @property
    def proportion(self) -> bool:
        return self.denominators is None and bool(np.isin(self.numerators, (0, 1)).all())


@dataclass(frozen=True)
class Scored:
    """Figures of one model by name, and ``deciding`` ``(N,)``, by which two models are compared."""

    figures: Mapping[str, Weighted]
    deciding: Floats


def score_classifiers(
    subjects: Mapping[str, Predictor], data: Examples, batch_size: int
) -> dict[str, Scored]:
    """Accuracy, macro F1 and NLL of each model, and its likeness to ``teacher`` if that is there.

    ``subjects``: role -> model, its classes in the order of the data.
    """
    logits = {role: one.logits(data.values, batch_size) for role, one in subjects.items()}
    return {role: _classified(role, logits, data.labels) for role in subjects}


def _classified(role: str, logits: Mapping[str, Floats], labels: np.ndarray) -> Scored:
    scores, classes = checked(logits[role], labels)
    chosen = scores.argmax(-1)
    hits = (chosen == classes).astype(float)
    nll = -log_softmax(scores)[np.arange(len(classes)), classes]
    found: dict[str, Weighted] = {
        "accuracy": Ratio(hits),
        "f1_macro": lambda times: macro_f1(class_counts(chosen, classes, times)),
        "nll": Ratio(nll),
    }
    if role != "teacher" and "teacher" in logits:
        ours, theirs = (torch.as_tensor(logits[one]) for one in (role, "teacher"))
        found["agreement"] = Ratio(agreement(ours, theirs).double().numpy())
        found["forward_kl_divergence"] = Ratio(forward_kl(ours, theirs).numpy())
        found["retention"] = Ratio(hits, (theirs.argmax(-1).numpy() == classes).astype(float))
    return Scored(found, hits)


def score_language_models(
    subjects: Mapping[str, Predictor], texts: Sequence[str], batch_size: int
) -> dict[str, Scored]:
    """Perplexity, next-token accuracy, entropy and calibration error of each model, and its
    likeness to ``teacher``.

    Every token but the first of each text counts; texts are cut at the models' length. Vocabulary
    entries that one of the models lacks (padding of the vocabulary) are left out for all.

    Raises:
        ValueError: models with different tokenizers, or texts too short to predict anything.
    """
    names = list(subjects)
    first = subjects[names[0]]
    for role in names[1:]:
        if subjects[role].processor.get_vocab() != first.processor.get_vocab():
            raise ValueError(
                f"Expected models with one tokenizer, got another one for {role} than for "
                f"{names[0]}: their perplexities count other tokens. Evaluate them one by one."
            )
    sums = {role: np.zeros((len(TOKENS) + BINS, len(texts))) for role in names}
    for rows, batch, _ in first.batches(texts, [0] * len(texts), batch_size):
        for role, found in _on_tokens(subjects, batch).items():
            sums[role][:, rows] = found
    if not sums[names[0]][0].sum():
        raise ValueError("Expected texts of at least two tokens, got none.")
    named = {role: dict(zip(TOKENS, found, strict=False)) for role, found in sums.items()}
    return {role: _modelled(role, named, sums[role][len(TOKENS) :]) for role in names}


def _modelled(role: str, sums: Mapping[str, Mapping[str, Floats]], gaps: Floats) -> Scored:
    own, tokens = sums[role], sums[role]["tokens"]
    mean = Ratio(own["nll"], tokens)
    found: dict[str, Weighted] = {
        "perplexity": lambda times: float(np.exp(mean(times))),
        "nll": mean,
        "next_token": Ratio(own["hits"], tokens),
        "entropy": Ratio(own["entropy"], tokens),
        "ece": lambda times: float(np.abs(gaps @ times).sum() / (times @ tokens)),
    }
    if role != "teacher" and "teacher" in sums:
        found |= {name: Ratio(own[name], tokens) for name in LIKENESS}
        found["entropy_gap"] = Ratio(own["entropy"] - sums["teacher"]["entropy"], tokens)
        found["retention"] = Ratio(own["hits"], sums["teacher"]["hits"])
    return Scored(found, -own["nll"] / np.maximum(tokens, 1))


def _on_tokens(subjects: Mapping[str, Predictor], batch: Mapping[str, Any]) -> dict[str, Floats]:
    """Per text, the sums of `TOKENS` and, for each bin of confidence, correct minus expected
    predictions; ``(len(TOKENS) + BINS, B)`` per role."""
    labels = batch["input_ids"].masked_fill(~batch["attention_mask"].bool(), IGNORE)
    labels = F.pad(labels[:, 1:], (0, 1), value=IGNORE)  # whether or not the class shifts them
    found, said = dict[str, Floats](), dict[str, Tensor]()
    for role, subject in subjects.items():
        head, own = subject.task_model, {k: v.to(subject.device) for k, v in batch.items()}
        items = head.items({**own, "shift_labels": labels.to(subject.device)})
        with torch.no_grad():
            output = head.model.eval()(**head.inputs(own, Needs()))
        assert head.task.read is not None
        said[role] = head.task.read(output, own).cpu()
    assert items.labels is not None
    mask, targets = items.masks["labels"].cpu(), items.labels.cpu()
    size = min(logits.shape[-1] for logits in said.values())
    wanted, texts = targets[mask], mask.nonzero()[:, 0].numpy()
    logs = {role: logits[mask][:, :size].float().log_softmax(-1) for role, logits in said.items()}
    for role, ours in logs.items():
        theirs, hits = logs.get("teacher", ours), (ours.argmax(-1) == wanted).float()
        confidence = ours.amax(-1).exp()
        place = (confidence.double() * BINS).ceil().long().clamp(1, BINS) - 1
        gaps = torch.zeros(BINS, len(wanted)).scatter_(0, place[None], (hits - confidence)[None])
        columns = [
            torch.ones(len(wanted)),
            -ours.gather(-1, wanted[:, None])[:, 0],
            hits,
            cross_entropy(ours, ours),
            agreement(ours, theirs),
            kl(theirs, ours),
            kl(ours, theirs),
            torch.minimum(ours, theirs).exp().sum(-1),
            *gaps,
        ]
        counted = [np.bincount(texts, column.double().numpy(), len(mask)) for column in columns]
        found[role] = np.stack(counted).astype(float)
    return found


def intervals(
    figures: Mapping[str, Mapping[str, Weighted]], size: int
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Figures with their intervals: Wilson's for shares of the examples, else the bootstrap's.

    All figures of all models see the same resamples, one at a time: many of them are large.
    ``figures``: role -> name -> figure, as the result, whose bounds are None where there are none.
    """
    drawn: dict[tuple[str, str], list[float]] = {}
    rng = np.random.default_rng(0)
    for _ in range(DRAWS):
        times = np.bincount(rng.integers(size, size=size), minlength=size).astype(float)
        for role, own in figures.items():
            for name, figure in own.items():
                drawn.setdefault((role, name), []).append(figure(times))
    return {
        role: {name: _interval(figure, drawn[role, name], size) for name, figure in own.items()}
        for role, own in figures.items()
    }


def _interval(figure: Weighted, drawn: Sequence[float], size: int) -> dict[str, float | None]:
    value, low, high = figure(np.ones(size)), None, None
    if isinstance(figure, Ratio) and figure.proportion:
        low, high = wilson(int(figure.numerators.sum()), size, LEVEL)
    elif np.isfinite(drawn).all():  # not: a teacher without a hit, of whose hits no share exists
        low, high = map(float, np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    else:
        return {"value": value if np.isfinite(value) else None, "low": None, "high": None}
    return {"value": value, "low": low, "high": high}
