"""Static students: the teacher's vector of every token alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_distill.models.embedding import SentenceModel, StaticConfig, StaticModel
from hf_distill.models.embedding.tokens import PlainTokenizer

UNUSED = re.compile(r"\[unused\d+\]")
"""Tokens of BERT that stand for nothing; they are left out of the principal components."""


def static_from_teacher(
    teacher: PreTrainedModel,
    tokenizer: Any,
    *,
    hidden_size: int | None = 256,
    sif: float | None = 1e-4,
    counts: Mapping[int, int] | None = None,
    batch_size: int = 512,
) -> StaticModel:
    """Make a static student: every token of the vocabulary alone through the teacher.

    Each token is embedded with the special tokens that the tokenizer puts around a text, by the
    teacher's own pooling and dense layers; the vectors are centred and reduced to their principal
    components, and each token gets the weight a / (a + p) of its probability p (smooth inverse
    frequency, Arora et al. 2017). The method is that of model2vec (Tulkens and van Dongen, 2024,
    https://github.com/MinishLab/model2vec).

    Args:
        teacher: A `SentenceModel`, or an encoder, whose last states are averaged.
        tokenizer: Its fast tokenizer, which becomes the student's.
        hidden_size: Number of components; None: as many as the teacher's vectors have.
        sif: The constant a; None: all weights are 1.
        counts: Occurrences of each token in texts (`token_counts`); None: p by Zipf's law, from the
            order of the ids, which in most vocabularies is that of frequency.
        batch_size: Number of tokens at a time.

    Returns:
        The student, in float32.

    Raises:
        ValueError: a hidden_size above that of the teacher's vectors, or a sif that is not above 0.
    """
    if sif is not None and not sif > 0:
        raise ValueError(f"Expected a constant of the token weights above 0, got {sif}.")
    model = teacher if isinstance(teacher, SentenceModel) else SentenceModel(teacher)
    vectors = _vectors(model, tokenizer, batch_size)
    special = sorted({*tokenizer.all_special_ids} & {*range(len(vectors))})
    names = tokenizer.convert_ids_to_tokens(list(range(len(vectors))))
    counted = torch.tensor([not UNUSED.fullmatch(name or "") for name in names])
    counted[special] = False
    width = vectors.shape[1] if hidden_size is None else hidden_size
    table = _components(vectors.double(), counted, width).float()
    weights = _weights(counted, sif, counts)
    weights[special] = 0.0
    config = StaticConfig(
        vocab_size=len(table),
        hidden_size=width,
        ignored_tokens=special,
    )
    config.pad_token_id = tokenizer.pad_token_id
    student = StaticModel(config)
    with torch.no_grad():
        student.embeddings.copy_(table)
        student.weights.copy_(weights)
    return student


def token_counts(texts: Iterable[str], tokenizer: Any) -> dict[int, int]:
    """Occurrences of each token in texts, without special tokens around them."""
    ids, _ = PlainTokenizer(tokenizer)(list(texts))
    found = np.unique(ids, return_counts=True)
    return dict(zip(*(each.tolist() for each in found), strict=True))


@torch.no_grad()
def _vectors(model: SentenceModel, tokenizer: Any, batch_size: int) -> Tensor:
    """The teacher's vector of each token alone, ``(V, D)``, before its normalisation."""
    before, after = _around(tokenizer)
    normalize, training = model.normalize, model.training
    model.normalize = False
    model.eval()
    found = []
    for start in range(0, len(tokenizer), batch_size):
        own = torch.arange(start, min(start + batch_size, len(tokenizer)), device=model.device)
        parts = [torch.tensor(ids).to(own).expand(len(own), -1) for ids in (before, after)]
        ids = torch.cat([parts[0], own[:, None], parts[1]], 1)
        outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        found.append(outputs.sentence_embedding.float().cpu())
    model.normalize = normalize
    model.train(training)
    return torch.cat(found)


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text."""
    text = "a"
    whole = tokenizer(text)["input_ids"]
    alone = tokenizer(text, add_special_tokens=False)["input_ids"]
    for start in range(len(whole) - len(alone) + 1):
        if whole[start : start + len(alone)] == alone:
            return whole[:start], whole[start + len(alone) :]
    return [], []


def _components(vectors: Tensor, counted: Tensor, width: int) -> Tensor:
    """Centred vectors in their first principal components; the largest entry of each axis is
    positive."""
    if not 0 < width <= vectors.shape[1]:
        raise ValueError(
            f"Expected a hidden_size from 1 to {vectors.shape[1]}, as many dimensions as the "
            f"teacher's vectors have, got {width}."
        )
    own = vectors[counted]
    centred = own - own.mean(0)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :width]
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return (vectors - own.mean(0)) @ (axes * signs)


def _weights(counted: Tensor, sif: float | None, counts: Mapping[int, int] | None) -> Tensor:
    """The weight of each token, ``(V,)``; those that do not count have no rank in Zipf's law."""
    if sif is None:
        return torch.ones(len(counted))
    if counts is None:
        p = counted / (counted.cumsum(0) + 1.0).double()
    else:
        p = torch.tensor([counts.get(token, 0) + 1.0 for token in range(len(counted))]).double()
    return (sif / (sif + p / p.sum())).float()
