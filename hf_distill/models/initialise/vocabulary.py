"""Vocabulary: the tokens that a student keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_distill.models.initialise.weights import Weights, cut, init_empty

SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")
"""Lists of tokens in a generation config; removed tokens are left out."""
OTHERS = ("forced_decoder_ids", "lang_to_id", "task_to_id", "bad_words_ids", "sequence_bias")
"""Settings of generation that contain tokens in other forms."""


def pick_tokens(vocabulary: int | Sequence[int], config: Any) -> list[int]:
    """The ids to keep.

    Raises:
        ValueError: no vocabulary; ids that are not there or named twice.
    """
    count = getattr(config.get_text_config(), "vocab_size", None)
    if count is None:
        raise ValueError(f"Expected a model with a vocabulary, got a {config.model_type} without.")
    tokens = list(range(vocabulary)) if isinstance(vocabulary, int) else list(vocabulary)
    if not tokens or len(set(tokens)) < len(tokens) or min(tokens) < 0 or max(tokens) >= count:
        raise ValueError(
            f"Expected a vocabulary of different ids between 0 and {count - 1}, or a number of "
            f"them up to {count}, got {vocabulary!s:.60}."
        )
    return tokens


def cut_vocabulary(
    kind: type[PreTrainedModel], config: Any, weights: Weights, tokens: list[int]
) -> Weights:
    """Keep some tokens in every weight with a row per token: embeddings, head, the head's bias.

    Raises:
        ValueError: a special token that is not kept; a vocabulary that is not a plain axis.
    """
    text = config.get_text_config()
    count = text.vocab_size
    for part in {id(part): part for part in (config, text)}.values():
        rename_tokens(part, tokens, count)
    text.vocab_size = len(tokens)

    def index(name: str, axis: int, old: int, new: int) -> Tensor:
        if (old, new) != (count, len(tokens)):
            raise ValueError(
                f"Expected {name} to have one row for each of {count} tokens, got {old} that "
                f"become {new}. Leave the vocabulary of {kind.__name__} whole."
            )
        return torch.tensor(tokens)

    return cut(weights, init_empty(kind, config), index)


def rename_tokens(settings: Any, tokens: list[int], count: int) -> None:
    """Give the special tokens of a config their new ids.

    Args:
        settings: A model's config, or one for generation.
        tokens: The old ids, in their new order.
        count: How many ids there were; what lies beyond was no token before.

    Raises:
        ValueError: a special token that is not kept; settings that cannot be translated.
    """
    new = {old: position for position, old in enumerate(tokens)}
    values = vars(settings)
    for name in [name for name in values if name.endswith("_token_id")]:
        value = values[name]
        ids = value if isinstance(value, list) else [value]
        gone = [i for i in ids if isinstance(i, int) and 0 <= i < count and i not in new]
        if gone:
            raise ValueError(
                f"Expected the vocabulary to keep the special tokens, but {gone} of {name} are "
                "not in it. Add them, or set this field of the teacher to None."
            )
        renamed = [new.get(i, i) for i in ids]
        setattr(settings, name, renamed if isinstance(value, list) else renamed[0])
    for name in SUPPRESSED:
        if values.get(name):
            setattr(settings, name, [new.get(i, i) for i in values[name] if i in new or i < 0])
    untold = [name for name in OTHERS if values.get(name)]
    if untold:
        raise ValueError(
            f"Expected settings whose tokens can be translated, got {untold}. Set them to None in "
            "the teacher, and to the new ids in the student."
        )
