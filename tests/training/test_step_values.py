"""One step and one evaluation, computed a second time by other means."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from batch_splits import WHOLE, alone, measure
from tiny_models import BLANK, CASES, OBJECTIVES, Case, Example, collate
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from hf_distill import HiddenStates, WeightDecay, WeightedSum

RELATIVE = 1e-9

# ---- each example alone, without padding -----------------------------------------------------
# One model's logits (N, C) for the items of one example, and their labels (N,).

Read = Callable[[Any, Example], tuple[Tensor, Tensor]]


def _ask(model: Any, output_hidden_states: bool = False, **inputs: Any) -> Any:
    batched = {key: torch.as_tensor(value)[None] for key, value in inputs.items()}
    with torch.no_grad():
        return model.eval()(**batched, output_hidden_states=output_hidden_states)


def _one(model: Any, row: Example) -> tuple[Tensor, Tensor]:
    key = next(key for key in row if key != "labels")
    return _ask(model, **{key: row[key]}).logits, torch.as_tensor(row["labels"])[None]


def _labelled(logits: Tensor, labels: Any, ignored: int = -100) -> tuple[Tensor, Tensor]:
    labels = torch.as_tensor(labels)
    return logits[labels != ignored], labels[labels != ignored]


def _tokens(model: Any, row: Example) -> tuple[Tensor, Tensor]:
    return _labelled(_ask(model, input_ids=row["input_ids"]).logits[0], row["labels"])


def _next_tokens(model: Any, row: Example) -> tuple[Tensor, Tensor]:
    logits = _ask(model, input_ids=row["input_ids"]).logits[0]
    return _labelled(logits[:-1], row["labels"][1:])


def _span(model: Any, row: Example) -> tuple[Tensor, Tensor]:
    logits, labels = _padded_span(model, row)
    return logits[:, torch.tensor(row["attention_mask"]).bool()], labels


def _padded_span(model: Any, row: Example) -> tuple[Tensor, Tensor]:
    """As the loss of the labels sees them: transformers lets padding be an answer."""
    out = _ask(model, input_ids=row["input_ids"], attention_mask=row["attention_mask"])
    labels = torch.tensor([row["start_positions"], row["end_positions"]])
    return torch.cat([out.start_logits, out.end_logits]), labels


def _choices(model: Any, row: Example) -> tuple[Tensor, Tensor]:
    scores = [_ask(model, input_ids=[ids]).logits for ids in row["input_ids"]]
    return torch.cat(scores, dim=1), torch.tensor([row["labels"]])


def _decoded(model: Any, row: Example) -> tuple[Tensor, Tensor]:
    key = next(key for key in row if key != "labels")
    start = model.config.decoder_start_token_id
    out = _ask(model, **{key: row[key]}, decoder_input_ids=[start, *row["labels"][:-1]])
    return out.logits[0], torch.tensor(row["labels"])


def _pixels(model: Any, row: Example) -> tuple[Tensor, Tensor]:
    small = _ask(model, pixel_values=row["pixel_values"]).logits
    logits = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)[0]
    return _labelled(logits.flatten(1).T, row["labels"].flatten(), ignored=255)


def _frames(model: Any, row: Example) -> tuple[Tensor, Tensor]:
    return _ask(model, input_values=row["input_values"]).logits[0], torch.tensor(row["labels"])


READ: dict[str, Read] = {
    "sequence_classification": _one,
    "multi_label": _one,
    "regression": _one,
    "token_classification": _tokens,
    "question_answering": _span,
    "multiple_choice": _choices,
    "masked_lm": _tokens,
    "causal_lm": _next_tokens,
    "seq2seq_lm": _decoded,
    "image_classification": _one,
    "semantic_segmentation": _pixels,
    "audio_classification": _one,
    "ctc": _frames,
    "speech_seq2seq": _decoded,
}

LABEL_READ: dict[str, Read] = {**READ, "question_answering": _padded_span}
"""What the loss of the labels reads."""

# ---- the formulas, over all items at once ----------------------------------------------------


def _hard_labels(head: str, logits: Tensor, labels: Tensor) -> Tensor:
    if head == "ctc":
        logs = logits.log_softmax(-1)
        lengths = torch.tensor([len(logs)]), torch.tensor([len(labels)])
        return F.ctc_loss(logs, labels, *lengths, blank=BLANK, reduction="sum")
    if head == "multi_label":
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    if head == "regression":
        return F.mse_loss(logits[:, 0], labels, reduction="sum")
    return F.cross_entropy(logits, labels, reduction="sum")


def _probabilities(head: str, logits: Tensor) -> Tensor:
    if head != "multi_label":
        return logits.softmax(-1)
    return torch.stack([logits.sigmoid(), 1 - logits.sigmoid()], dim=-1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum()


def _alignments(head: str, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """With the settings of `zoo.OBJECTIVES`: T = 2, beta = 0.3."""
    squares = (student - teacher).square().sum()
    if head == "regression":
        normal = kl_divergence(Normal(teacher, 1.0), Normal(student, 1.0)).sum()
        return {"forward_kl": normal, "reverse_kl": normal, "logit_mse": squares}
    p, q = _probabilities(head, teacher / 2), _probabilities(head, student / 2)
    middle = 0.3 * p + 0.7 * q
    return {
        "forward_kl": 4 * _kl(p, q),
        "reverse_kl": 4 * _kl(q, p),
        "jensen_shannon": 4 * (0.3 * _kl(p, middle) + 0.7 * _kl(q, middle)),
        "logit_mse": squares,
    }


def _ece(student: list[Tensor], labels: list[Tensor]) -> float:
    """15 bins of equal width: mean of |accuracy - confidence|, weighted by their sizes."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for logits, truth in zip(student, labels, strict=True):
        confidence, choice = logits.softmax(-1).max(-1)
        for c, right in zip(confidence.tolist(), (choice == truth).tolist(), strict=True):
            bins.setdefault(min(14, int(c * 15)), []).append((c, right))
    gaps = [abs(sum(right - c for c, right in members)) for members in bins.values()]
    return sum(gaps) / sum(len(members) for members in bins.values())


@pytest.mark.parametrize("head", READ)
def test_step_equals_a_computation_by_hand(head: str) -> None:
    """Padding that leaks, a label shifted once too often, a mean of means: all look like a loss."""
    case = CASES[head]
    student, teacher = case.models()
    sums: dict[str, float] = {}
    items = labels_seen = 0
    for row in case.data():
        ours, labels = READ[head](student, row)
        theirs, _ = READ[head](teacher, row)
        items, labels_seen = items + len(ours), labels_seen + len(labels)
        values = _alignments(head, ours, theirs)
        values["hard_labels"] = _hard_labels(head, *LABEL_READ[head](student, row))
        sums = {name: sums.get(name, 0.0) + float(value) for name, value in values.items()}
    figures, _ = alone(head, WHOLE)
    for name, value in sums.items():
        expected = value / (labels_seen if name == "hard_labels" else items)
        assert figures[f"{name}: {name}"] == pytest.approx(expected, rel=RELATIVE), name


@pytest.mark.parametrize("head", READ)
def test_evaluation_equals_a_computation_by_hand(head: str) -> None:
    """Agreement or calibration over padding, or a mean of batch means, is a wrong report."""
    case = CASES[head]
    student, teacher = case.models()
    rows = case.data(7)
    ours, labels = zip(*(READ[head](student, row) for row in rows), strict=True)
    theirs = [READ[head](teacher, row)[0] for row in rows]
    figures, _ = alone(head, WHOLE)
    hard = sum(_hard_labels(head, *LABEL_READ[head](student, row)) for row in rows)
    counted = sum(map(len, labels))
    assert figures["eval_hard_labels"] == pytest.approx(float(hard) / counted, rel=RELATIVE)
    if head == "regression":
        return
    both = zip(ours, theirs, strict=True)
    pairs = [(_probabilities(head, s), _probabilities(head, t)) for s, t in both]
    items = sum(map(len, ours))
    forward, backward = sum(_kl(t, s) for s, t in pairs), sum(_kl(s, t) for s, t in pairs)
    assert figures["eval_forward_kl_divergence"] == pytest.approx(
        float(forward) / items, rel=RELATIVE
    )
    assert figures["eval_reverse_kl_divergence"] == pytest.approx(
        float(backward) / items, rel=RELATIVE
    )
    same = [(s.argmax(-1) == t.argmax(-1)).double().flatten() for s, t in pairs]
    assert figures["eval_agreement"] == pytest.approx(float(torch.cat(same).mean()), rel=1e-6)
    if head not in ("multi_label", "ctc"):
        assert figures["eval_ece"] == pytest.approx(_ece(list(ours), list(labels)), rel=1e-6)


@pytest.mark.parametrize("head", [*READ, "dual_encoder"])
def test_hard_labels_equal_transformers_own_loss(head: str) -> None:
    """On one whole batch transformers is right, and whoever switches expects the same loss."""
    case = CASES[head]
    student: Any = case.models()[0]
    batch: Any = collate(case.data())
    student.config.ctc_loss_reduction = "sum"
    asked = {"return_loss": True} if head == "dual_encoder" else {}
    with torch.no_grad():
        loss = float(student(**batch, **asked).loss)
    if head == "multi_label":  # there a mean over the classes too
        loss *= batch["labels"].shape[-1]
    if head == "ctc":
        loss /= int((batch["labels"] >= 0).sum())
    found = alone(head, WHOLE)[0]["hard_labels: hard_labels"]
    assert found == pytest.approx(loss, rel=1e-6)  # some of theirs are computed in float32


def test_hidden_states_and_weights_by_hand() -> None:
    """The layer map, the projections' seed and the names without decay: nobody sees them."""
    case = CASES["sequence_classification"]
    student, teacher = case.models()
    torch.manual_seed(42)
    projections = [nn.Linear(16, 24, dtype=torch.float64) for _ in range(2)]
    total, tokens = 0.0, 0
    for row in case.data():
        ours, theirs = (
            _ask(model, input_ids=row["input_ids"], output_hidden_states=True).hidden_states
            for model in (student, teacher)
        )
        for projection, s, t in zip(projections, (1, 2), (2, 4), strict=True):
            with torch.no_grad():
                total += float((projection(ours[s]) - theirs[t]).square().sum()) / 24 / 2
        tokens += len(row["input_ids"])
    decayed = sum(
        float(p.detach().square().sum())
        for name, p in student.named_parameters()
        if not name.endswith("bias") and "LayerNorm" not in name
    )
    figures, _ = alone("sequence_classification", WHOLE)
    hidden, decay = figures["hidden_states: hidden_states"], figures["weight_decay: weight_decay"]
    assert hidden == pytest.approx(total / tokens, rel=RELATIVE)
    assert decay == pytest.approx(0.01 * decayed, rel=RELATIVE)


# ---- zero at equality ------------------------------------------------------------------------


class Equal(Case):
    """The teacher is a copy of the student."""

    def models(self, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
        student, _ = super().models(dtype)
        return student, copy.deepcopy(student)


@pytest.mark.parametrize("head", CASES)
def test_zero_at_equality(head: str) -> None:
    """A student that is its teacher must stay so: a rest of gradient would pull it away."""
    names = [n for n in CASES[head].objectives if n not in ("hard_labels", "weight_decay")]
    objectives = {name: 1.0 * OBJECTIVES[name] for name in names}
    objectives["cosine"] = 1.0 * HiddenStates(distance="cosine")
    objectives["init"] = 1.0 * WeightDecay(0.01, target="init")
    objectives["all"] = sum(objectives.values(), WeightedSum(()))
    figures, gradients = measure(Equal(**vars(CASES[head])), WHOLE, objectives)
    for name, gradient in gradients.items():
        assert abs(figures[f"{name}: loss"]) < 1e-11, name  # float64, rounding of two forwards
        assert gradient.abs().max() < 1e-11, name
