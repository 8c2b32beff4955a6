"""Accuracy by group of examples."""

from collections.abc import Hashable, Iterable
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

    `correct` is ``(N,)``, 0 or 1; `groups` are N strings, integers, tuples, ...

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
    found = {}
    for name in _ordered(members):
        right, n = sum(members[name]), len(members[name])
        found[name] = GroupAccuracy(right / n, n, *wilson(right, n))
    return found


def worst_group(
    correct: ArrayLike, groups: Iterable[Hashable], min_count: int = 30
) -> tuple[Hashable, GroupAccuracy] | None:
    """The group with the lowest accuracy among those with at least ``min_count`` examples.

    The lowest accuracy of smaller groups is mostly noise. Arguments and errors are those of
    :func:`group_accuracies`.

    Returns:
        The name and its accuracy; of equal ones, the first by name. None if no group is large
        enough.

    Reference: Sagawa et al., 2020, "Distributionally Robust Neural Networks for Group Shifts",
        arXiv:1911.08731; Koh et al., 2021, "WILDS", arXiv:2012.07421.

    >>> worst_group([1, 0, 1], ["a", "a", "b"], min_count=2)[0]
    'a'
    """
    eligible = [(k, v) for k, v in group_accuracies(correct, groups).items() if v.n >= min_count]
    return min(eligible, key=lambda item: item[1].accuracy, default=None)


def _ordered(names: Iterable[Any]) -> list[Any]:
    try:
        return sorted(names)
    except TypeError:  # names of several types
        return sorted(names, key=lambda name: (type(name).__name__, str(name)))
