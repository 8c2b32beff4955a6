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
    whitening: float = 0.0,
    random_size: int = 0,
    batch_size: int = 512,
) -> StaticModel:
    """Make a static student: every token of the vocabulary alone through the teacher.

    Each token is embedded with the special tokens that the tokenizer puts around a text, by the
    teacher's own pooling and dense layers; the vectors are centred and reduced to their principal
    components, and each token gets the weight a / (a + p) of its probability p (smooth inverse
    frequency, Arora et al. 2017). The method is that of model2vec (Tulkens and van Dongen, 2024,
    https://github.com/MinishLab/model2vec). Two options go beyond it: partial whitening, after
    which a few directions common to most tokens no longer hide the others, and random vectors
    beside the teacher's (random indexing, Sahlgren 2005), which keep tokens apart that are alike
    for the teacher, as names are, so that equal words count as in a search by words.

    Args:
        teacher: A `SentenceModel`, or an encoder, whose last states are averaged.
        tokenizer: Its fast tokenizer, which becomes the student's.
        hidden_size: Number of components; None: as many as the teacher's vectors have.
        sif: The constant a; None: all weights are 1.
        counts: Occurrences of each token in texts (`token_counts`); None: p by Zipf's law, from the
            order of the ids, which in most vocabularies is that of frequency.
        whitening: Power of its standard deviation by which each component is divided: 0 leaves the
            components as they are, 1 makes all of them equally large.
        random_size: Number of random dimensions after the components, as long on average as these.
        batch_size: Number of tokens at a time.

    Returns:
        The student, in float32, of ``hidden_size + random_size`` dimensions.

    Raises:
        ValueError: a hidden_size above that of the teacher's vectors, a sif that is not above 0, a
            whitening that is not from 0 to 1, or a negative random_size.
    """
    if sif is not None and not sif > 0:
        raise ValueError(f"Expected a constant of the token weights above 0, got {sif}.")
    if not (0 <= whitening <= 1 and random_size >= 0):
        raise ValueError(
            "Expected a whitening from 0 to 1 and a random_size of at least 0, got "
            f"{whitening} and {random_size}."
        )
    model = teacher if isinstance(teacher, SentenceModel) else SentenceModel(teacher)
    vectors = _vectors(model, tokenizer, batch_size)
    special = sorted({*tokenizer.all_special_ids} & {*range(len(vectors))})
    names = tokenizer.convert_ids_to_tokens(list(range(len(vectors))))
    counted = torch.tensor([not UNUSED.fullmatch(name or "") for name in names])
    counted[special] = False
    width = vectors.shape[1] if hidden_size is None else hidden_size
    table = _components(vectors.double(), counted, width, whitening)
    table = torch.cat([table, _random(table[counted], len(table), random_size)], 1).float()
    weights = _weights(counted, sif, counts)
    weights[special] = 0.0
    config = StaticConfig(
        vocab_size=len(table),
        hidden_size=table.shape[1],
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


def _components(vectors: Tensor, counted: Tensor, width: int, whitening: float) -> Tensor:
    """Centred vectors in their first principal components; the largest entry of each axis is
    positive."""
    if not 0 < width <= vectors.shape[1]:
        raise ValueError(
            f"Expected a hidden_size from 1 to {vectors.shape[1]}, as many dimensions as the "
            f"teacher's vectors have, got {width}."
        )
    own = vectors[counted]
    centred = own - own.mean(0)
    values, axes = (each.flip(-1)[..., :width] for each in torch.linalg.eigh(centred.T @ centred))
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    table = (vectors - own.mean(0)) @ (axes * signs)
    if whitening:
        spread = (values / len(own)).clamp(min=1e-8 * float(values[0]) / len(own)).sqrt()
        table = table / spread**whitening
    return table


def _random(components: Tensor, count: int, size: int) -> Tensor:
    """Random vectors ``(count, size)``, as long on average as the components; always the same."""
    drawn = torch.randn(
        count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    return drawn * components.norm(dim=1).mean() / max(size, 1) ** 0.5


def _weights(counted: Tensor, sif: float | None, counts: Mapping[int, int] | None) -> Tensor:
    """The weight of each token, ``(V,)``; those that do not count have no rank in Zipf's law."""
    if sif is None:
        return torch.ones(len(counted))
    if counts is None:
        p = counted / (counted.cumsum(0) + 1.0).double()
    else:
        p = torch.tensor([counts.get(token, 0) + 1.0 for token in range(len(counted))]).double()
    return (sif / (sif + p / p.sum())).float()
