"""Selection of the teacher's parts by importance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_distill.models.initialise.depth import DepthPlan
from hf_distill.models.initialise.importance import Importance
from hf_distill.models.initialise.vocabulary import pick_tokens
from hf_distill.models.initialise.weights import most_important
from hf_distill.models.initialise.width import Choose, Keep, Width


def choose_by(importance: Importance, plan: DepthPlan) -> Choose:
    """Keep the most important channels, and in every layer its own heads and units.

    Heads that share their keys stay or go together, by the sum of their importances.

    Args:
        importance: What was measured of the teacher.
        plan: Which of its layers the student has.
    """

    def choose(before: Width, after: Width) -> Keep:
        def keep(part: str, name: str, new: int) -> Tensor:
            if part == "channels" and importance.channels is not None:
                return torch.tensor(most_important(importance.channels, new))
            if part == "feed_forward":
                return torch.tensor(most_important(_row(importance.units, name, plan), new))
            if part not in ("queries", "keys"):
                raise ValueError(
                    f"Expected every shortened axis to be channels, heads or units, to choose them "
                    f"by importance, but one of {name} is not. Cut this width without importance."
                )
            heads = _heads(_row(importance.heads, name, plan), before, after)[part]
            return (heads[:, None] * before.head_dim + torch.arange(before.head_dim)).flatten()

        return keep

    return choose


def _row(values: Mapping[str, Tensor], name: str, plan: DepthPlan) -> Tensor:
    """Importance of the layer that a weight of the student comes from."""
    for path, rows in values.items():
        if name.startswith(f"{path}."):
            index = int(name.removeprefix(f"{path}.").partition(".")[0])
            return rows[plan[path][index] if path in plan else index]
    raise ValueError(
        f"Expected the importance of the parts of {name}, which was not measured: its layer has "
        "not one matrix behind the attention and one behind the feed-forward units. Cut this "
        "width without importance."
    )


def _heads(values: Tensor, before: Width, after: Width) -> dict[str, Tensor]:
    """The heads that stay: of the queries, and of the keys and values."""
    if before.key_heads == 1:  # shared by all queries
        kept = torch.tensor(most_important(values, after.heads))
        return {"queries": kept, "keys": torch.zeros(1, dtype=torch.long)}
    shared = before.heads // before.key_heads
    groups = most_important(values.unflatten(0, (-1, shared)).sum(1), after.key_heads)
    keys = torch.tensor(groups)
    return {"queries": (keys[:, None] * shared + torch.arange(shared)).flatten(), "keys": keys}


def kept_tokens(teacher: PreTrainedModel, count: int, importance: Importance) -> list[int]:
    """Ids kept in a smaller vocabulary: the special tokens, and the most frequent of the others; in
    their order, so that the new id of a token is its place here.

    Args:
        teacher: The model, whose config and generation settings name the special tokens.
        count: How many ids to keep.
        importance: What counted the tokens.

    Raises:
        ValueError: tokens that were not counted; fewer ids than special tokens; and as
            `student_from_teacher` for a vocabulary.
    """
    pick_tokens(count, teacher.config)
    counts = importance.tokens
    if counts is None:
        raise ValueError("Expected an importance with counted tokens, got one without.")
    settings = (teacher.config, teacher.config.get_text_config(), teacher.generation_config)
    special = sorted({i for s in settings for i in _special(s) if 0 <= i < len(counts)})
    if len(special) > count:
        raise ValueError(
            f"Expected a vocabulary for the {len(special)} special tokens at least, got {count}."
        )
    counts = counts.clone()
    counts[special] = counts.max() + 1
    return most_important(counts, count)


def _special(settings: Any) -> list[int]:
    values = (v for name, v in vars(settings).items() if name.endswith("_token_id"))
    lists = (value if isinstance(value, list) else [value] for value in values if value is not None)
    return [token for tokens in lists for token in tokens]
