"""Students made from a teacher's weights: depth, width and vocabulary."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_distill.models.embedding import BiEncoder, SentenceModel
from hf_distill.models.initialise.choosing import choose_by, kept_tokens
from hf_distill.models.initialise.depth import (
    DepthPlan,
    Layers,
    kept_layers,
    set_depth,
    take_layers,
)
from hf_distill.models.initialise.importance import Importance
from hf_distill.models.initialise.vocabulary import cut_vocabulary, pick_tokens, rename_tokens
from hf_distill.models.initialise.weights import Weights
from hf_distill.models.initialise.width import cut_width


def student_from_teacher(
    teacher: PreTrainedModel,
    layers: Layers | Mapping[str, Layers] | None = None,
    *,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    vocabulary: int | Sequence[int] | None = None,
    importance: Importance | None = None,
) -> PreTrainedModel:
    """Make a student from a teacher's weights, the usual start of a distillation.

    Depth: the layers named by `layers` are copied, everything else is kept. This is the start of
    DistilBERT (Sanh et al., 2019, arXiv 1910.01108: every second layer), BERT-PKD (Sun et al.,
    2019, arXiv 1908.09355: the first ones) and distil-whisper (Gandhi et al., 2023, arXiv
    2311.00430: evenly spaced, including the first and the last).

    Width: the first `hidden_size` channels between the layers, the first attention heads, whole and
    in proportion, and the first units of each feed-forward layer: the weight subcloning of Samragh
    et al. (2023, arXiv 2312.09299) without its sorting by importance. Such a student does not
    approximate its teacher before training.

    With `importance`, measured on data (`importance`), the most important
    parts stay instead of the first: layers where a number is given without a rule, channels, and in
    every layer its own heads and units (Muralidharan et al., 2024, arXiv 2407.14679); and the most
    frequent tokens, see `hf_distill.models.initialise.kept_tokens`.

    Args:
        teacher: A model of `transformers`, or an embedder, whose encoder is cut; it is not changed.
        layers: How many layers (evenly spaced, as "uniform:3"), their indices from 0, or "first:3",
            "last:3". A model of several stacks takes them by name: ``{"encoder": 6, "decoder":
            2}``, ``{"text": 3, "vision": 6}``; a stack without a name stays whole. A model with
            ``config.depths`` (ResNet, ConvNeXt, Swin) takes the number of blocks of each stage.
        hidden_size: The student's width, such that its attention heads are whole ones.
        intermediate_size: Units of each feed-forward layer; in proportion to the width by default.
        vocabulary: The tokens to keep, by id and in their new order, or how many of the first. The
            tokenizer is not changed: ids are the caller's to translate.
        importance: Importances by which parts are kept.

    Returns:
        A model of the teacher's class with copied weights in the teacher's dtype and a matching
        config. All weights are trainable, also if the teacher was frozen.

    Raises:
        ValueError: layers, sizes or tokens that the teacher does not have; a teacher whose weights
            cannot be identified by their names and shapes; a student that could not be loaded
            again.
    """
    if isinstance(teacher, BiEncoder | SentenceModel):
        if importance is not None:
            raise ValueError(
                "Expected no importance of an embedder's parts, got some. Measure that of its "
                "encoder, and cut that: embedder.with_encoder(student_from_teacher(encoder, …))."
            )
        cut = student_from_teacher(
            teacher.encoder,
            layers,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            vocabulary=vocabulary,
        )
        return teacher.with_encoder(cut)
    config, kind = copy.deepcopy(teacher.config), type(teacher)
    influence = None if importance is None else importance.layers
    plan = {} if layers is None else kept_layers(teacher, layers, influence)
    set_depth(config, teacher, plan)
    weights = take_layers(teacher, config, plan)
    tokens: list[int] | None = None
    if vocabulary is not None:
        if isinstance(vocabulary, int) and importance is not None:
            vocabulary = kept_tokens(teacher, vocabulary, importance)
        tokens = pick_tokens(vocabulary, config)
        weights = cut_vocabulary(kind, config, weights, tokens)
    if hidden_size is not None or intermediate_size is not None:
        choose = None if importance is None else choose_by(importance, plan)
        weights = cut_width(kind, config, weights, hidden_size, intermediate_size, choose)
    student = _build(teacher, config, weights)
    generation = copy.deepcopy(getattr(teacher, "generation_config", None))
    if generation is not None:
        _keep_alignment_heads(generation, plan)
        if tokens is not None:
            rename_tokens(generation, tokens, teacher.config.get_text_config().vocab_size)
        student.generation_config = generation
    return student


def _build(teacher: PreTrainedModel, config: Any, weights: Weights) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):  # the caller's random state is kept
        student: PreTrainedModel = type(teacher)(config)
    for name, own in itertools.chain(student.named_parameters(), student.named_buffers()):
        own.data = weights.get(name, own.to(teacher.device)).detach().clone()
    untied = [name for name, own in student.state_dict().items() if not _equal(own, weights[name])]
    if untied:
        raise ValueError(
            f"Expected the weights of {type(teacher).__name__} that its config ties to be equal, "
            f"but {untied} differ. Set tie_word_embeddings in the teacher's config to what it is."
        )
    return student.train(teacher.training)


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    return ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def _keep_alignment_heads(generation: Any, plan: DepthPlan) -> None:
    """Keep Whisper's alignment heads, which are named by decoder layer and head."""
    heads = getattr(generation, "alignment_heads", None)
    for path, kept in plan.items():
        if heads and "decoder" in path.split("."):
            generation.alignment_heads = [
                [kept.index(layer), head] for layer, head in heads if layer in kept
            ] or None
