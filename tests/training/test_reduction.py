"""Counts of an accumulation window."""

from __future__ import annotations

import pytest
import torch

from hf_distill.training.reduction import AccumulationWindow

BATCHES = [
    {"labels": torch.tensor(3), "samples": torch.tensor(2)},
    {"labels": torch.tensor(5), "samples": torch.tensor(2)},
]


def counted(window: AccumulationWindow) -> dict[str, float]:
    """The counts of a window on two processes."""
    found = window.count(BATCHES, torch.device("cpu"), lambda counts: 2 * counts)
    return {unit: float(count) for unit, count in found.items()}


def test_counts_are_of_the_window_and_of_the_training() -> None:
    """A loss divided by the counts of one micro-batch, or of one process, is too high."""
    window = AccumulationWindow()
    assert counted(window) == counted(window) == {"labels": 16, "samples": 8}
    assert window.total == {"labels": 32, "samples": 16}
    window.clear()
    assert not window.total


def test_divisors() -> None:
    """A loss that `Trainer` or a subclass divides as well would be scaled twice."""
    window = AccumulationWindow()
    counted(window)
    given = {"labels": torch.tensor(4.0)}
    assert window.is_scaled
    assert window.divisor(given, scaled=True, micro_batches=2) == (given, 1)
    with window.step():
        assert not window.is_scaled
        counts, parts = window.divisor(None, window.is_scaled, 2)  # of the window, as a mean
        assert counts == {"labels": 8, "samples": 4}
        assert parts == 2
        window.scaled = True  # by a subclass
        assert window.is_scaled
        assert window.divisor(None, window.is_scaled, 2) == ({"labels": 16, "samples": 8}, 1)
    assert window.stepped
    with pytest.raises(ZeroDivisionError), window.step():
        raise ZeroDivisionError
    assert not window.in_step, "a later evaluation would be scaled as a step"
