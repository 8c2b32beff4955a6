"""Accuracy by group of examples."""

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from hf_distill.evaluation.measures import correctness
from hf_distill.evaluation.statistics import wilson


class GroupAccuracy(NamedTuple):
    """The accuracy on the ``n`` examples of a group, with its 95 % Wilson interval."""

    accuracy: float
    n: int
    low: float
    high: float


def group_accuracies(
    correct: ArrayLike, groups: Iterable[Hashable]
) -> dict[Hashable, GroupAccuracy]:
    """Accuracy, size and 95 % Wilson interval of each group, in the order of their names.

    Args:
        correct: ``(N,)``, 0 or 1.
        groups: the name of each example's group: N strings, integers, tuples, ...

    Raises:
        ValueError: not one group per example, or an example without a group (None or NaN).

    >>> group_accuracies([1, 0, 1], ["a", "a", "b"])["a"][:2]
    (0.5, 2)
    """
    hits = correctness(correct)
    names = groups.tolist() if isinstance(groups, np.ndarray) else list(groups)
    if len(names) != len(hits):
        raise ValueError(
            f"Expected one group for each of the {len(hits)} examples, got {len(names)}. Give the "
            "group column of the very examples that were evaluated, in their order."
        )
    without = [i for i, name in enumerate(names) if name is None or name != name]
    if without:
        raise ValueError(
            f"Expected a group for every example, got {names[without[0]]} for example {without[0]} "
            f"({len(without)} in all). Give them a group of their own, or leave them out."
        )
    members: dict[Hashable, list[bool]] = {}
    for name, hit in zip(names, hits.tolist(), strict=True):
        members.setdefault(name, []).append(hit)
    return {
        name: GroupAccuracy(
            sum(members[name]) / len(members[name]),
            len(members[name]),
            *wilson(sum(members[name]), len(members[name])),
        )
        for name in _ordered(members)
    }


def worst_group(
    correct: ArrayLike, groups: Iterable[Hashable], min_count: int = 30
) -> tuple[Hashable, GroupAccuracy] | None:
    """The group with the lowest accuracy among those with at least ``min_count`` examples.

    Smaller groups are left out, since their lowest accuracy is mostly noise;
    :func:`group_accuracies` shows them.

    Args:
        correct: ``(N,)``, 0 or 1.
        groups: the name of each example's group.
        min_count: the least number of examples of an eligible group.

    Returns:
        The name and what :func:`group_accuracies` has for it; of equal ones, the first by name.
        None if no group is large enough.

    Raises:
        ValueError: as for :func:`group_accuracies`.

    Reference: Sagawa et al., 2020, "Distributionally Robust Neural Networks for Group Shifts",
        arXiv:1911.08731; Koh et al., 2021, "WILDS", arXiv:2012.07421.

    >>> worst_group([1, 0, 1], ["a", "a", "b"], min_count=2)[0]
    'a'
    """
    eligible = [(k, v) for k, v in group_accuracies(correct, groups).items() if v.n >= min_count]
    return min(eligible, key=lambda item: item[1].accuracy, default=None)


def adjusted_average(
    accuracies: Mapping[Any, GroupAccuracy], train_counts: Mapping[Any, int]
) -> float:
    """The average accuracy with the groups weighted by their numbers of training examples.

    sum_g m_g accuracy_g / sum_g m_g: comparable with the training distribution where the test set
    has the groups in other shares. Training groups without test examples do not count.

    Args:
        accuracies: what :func:`group_accuracies` gave for the test set.
        train_counts: training examples m_g of each of these groups, 0 or more.

    Returns:
        The average; NaN if no group of the test set was seen in training.

    Raises:
        ValueError: a group of the test set has no count, or one below 0.

    Reference: Koh et al., 2021, "WILDS", arXiv:2012.07421 (Waterbirds' adjusted average).

    >>> a, b = GroupAccuracy(1.0, 5, 0.6, 1.0), GroupAccuracy(0.5, 5, 0.2, 0.8)
    >>> adjusted_average({"a": a, "b": b}, {"a": 30, "b": 10})
    0.875
    """
    missing = [name for name in accuracies if not train_counts.get(name, -1) >= 0]
    if missing:
        raise ValueError(
            f"Expected the number of training examples of every group, got none for {missing} "
            f"among {sorted(map(str, train_counts))}. Give 0 for a group that is new in the test."
        )
    weights = sum(train_counts[name] for name in accuracies)
    total = sum(train_counts[name] * group.accuracy for name, group in accuracies.items())
    return total / weights if weights else math.nan


def _ordered(names: Iterable[Any]) -> list[Any]:
    try:
        return sorted(names)
    except TypeError:  # names of several types
        return sorted(names, key=lambda name: (type(name).__name__, str(name)))
