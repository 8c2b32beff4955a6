"""A tiny student with four heads, a plain teacher for each, and partly labelled examples."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    PreTrainedModel,
)

from hf_distill import MultiHead, MultiTaskCollator

SEQUENCES, TOKENS = "sequence_classification", "token_classification"
HEADS: dict[str, dict[str, Any]] = {
    "topic": {"task": SEQUENCES, "num_labels": 3},
    "tags": {"task": TOKENS, "num_labels": 4},
    "stars": {"task": SEQUENCES, "num_labels": 1},
    "themes": {
        "task": SEQUENCES,
        "num_labels": 2,
        "problem_type": "multi_label_classification",
    },
}
AUTO: dict[str, Any] = {
    SEQUENCES: AutoModelForSequenceClassification,
    TOKENS: AutoModelForTokenClassification,
}


def bert(layers: int = 2, dropout: float = 0.0, **more: Any) -> BertConfig:
    """A tiny configuration."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    places = {"max_position_embeddings": 16, "pad_token_id": 0, "vocab_size": 40}
    return BertConfig(num_hidden_layers=layers, **sizes, **rates, **places, **more)


def plain(name: str, seed: int, **more: Any) -> PreTrainedModel:
    """A plain model of one head, with logits that are not all alike."""
    torch.manual_seed(seed)
    head = {**HEADS[name], **more}
    task = head.pop("task")
    if "id2label" in head:
        del head["num_labels"]
    model: PreTrainedModel = AUTO[task].from_config(bert(**head)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


def student(dtype: torch.dtype = torch.float64) -> MultiHead:
    """The heads of four plain models on the encoder of the first."""
    return MultiHead.from_heads({n: plain(n, 7 + i) for i, n in enumerate(HEADS)}).to(dtype).eval()


def teachers(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """A plain teacher for each head."""
    return {name: plain(name, 20 + i).to(dtype) for i, name in enumerate(HEADS)}


def examples(rows: int = 12) -> list[dict[str, Any]]:
    """Ragged examples: a third with all labels, a third of one task, a third with one label."""
    generator = torch.Generator().manual_seed(3)
    found: list[dict[str, Any]] = []
    for index in range(rows):
        ids = torch.randint(5, 40, (3 + index % 4,), generator=generator).tolist()
        row: dict[str, Any] = {"input_ids": ids}
        if index % 3 == 0:
            tags = [-100, *(token % 4 for token in ids[1:])]
            row |= {"topic_labels": index % 2, "tags_labels": tags, "stars_labels": 0.25 * index}
        elif index % 3 == 1:
            row |= {"task": "topic", "labels": index % 3}
        else:
            row |= {"themes_labels": [1.0, float(index % 2)], "tags_labels": None}
        found.append(row)
    return found


def pad(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad token ids, with their mask."""
    length = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [0] * (length - len(row["input_ids"])) for row in rows]
    mask = [[1] * len(r["input_ids"]) + [0] * (length - len(r["input_ids"])) for r in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def collator() -> MultiTaskCollator:
    """The collator of `examples`."""
    return MultiTaskCollator(pad, student().config.heads)


def reference(
    model: MultiHead, taught: dict[str, Any], rows: list[dict[str, Any]], temperature: float = 2.0
) -> dict[str, float]:
    """The components by a loop over single examples with plain models: no padding, no batches."""
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}

    def add(name: str, values: torch.Tensor) -> None:
        sums[name] = sums.get(name, 0.0) + float(values.sum())
        counts[name] = counts.get(name, 0) + values.numel()

    for head in HEADS:
        alone, teacher = model.export_head(head), taught[head]
        for row in rows:
            if row.get("task", head) != head:
                continue
            ids = torch.tensor([row["input_ids"]])
            with torch.no_grad():
                ours, theirs = alone(input_ids=ids).logits[0], teacher(input_ids=ids).logits[0]
            label = row.get("labels") if "task" in row else row.get(f"{head}_labels")
            _add_example(head, ours, theirs, label, temperature, add)
    return {name: total / counts[name] for name, total in sums.items()}


def _add_example(
    head: str, ours: torch.Tensor, theirs: torch.Tensor, label: Any, t: float, add: Any
) -> None:
    if head == "stars":
        add(f"{head}_forward_kl", 0.5 * (ours - theirs) ** 2)
        if label is not None:
            add(f"{head}_hard_labels", (ours - label) ** 2)
        return
    if head == "themes":
        pairs = [torch.stack([x / t, torch.zeros_like(x)], -1) for x in (ours, theirs)]
        log_s, log_t = (x.log_softmax(-1) for x in pairs)
        add(f"{head}_forward_kl", ((log_t.exp() * (log_t - log_s)).sum() * t * t)[None])
        if label is not None:
            target = torch.tensor(label, dtype=ours.dtype)
            add(
                f"{head}_hard_labels",
                F.binary_cross_entropy_with_logits(ours, target, reduction="sum")[None],
            )
        return
    ours, theirs = (x.reshape(-1, x.shape[-1]) for x in (ours, theirs))
    labels = None if label is None else torch.tensor(label).reshape(-1)
    kept = torch.ones(len(ours), dtype=torch.bool) if labels is None else labels != -100
    log_s, log_t = ((x / t).log_softmax(-1) for x in (ours, theirs))
    add(f"{head}_forward_kl", (log_t.exp() * (log_t - log_s)).sum(-1)[kept] * t * t)
    if labels is not None:
        add(f"{head}_hard_labels", F.cross_entropy(ours[kept], labels[kept], reduction="none"))


def close(one: float, other: float) -> bool:
    """Equal up to the rounding of double precision."""
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
