"""Bad examples: refused with their rows, or left out with a sentence for the card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset

from hf_distill.recipe.errors import RecipeError

SHOWN = 5
"""Number of rows that a message names."""
SKIP = "`data.skip_bad: true` leaves them out."


@dataclass
class Findings:
    """Facts about the data that are printed at the start, and sentences for the card.

    Attributes:
        skip_bad: True: bad examples are left out; else they are refused.
        lines: Lines to print.
        limitations: Sentences for the card.
    """

    skip_bad: bool = False
    lines: list[str] = field(default_factory=list)
    limitations: list[str] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        """Add what another check has found."""
        self.lines += other.lines
        self.limitations += other.limitations

    def without(
        self,
        dataset: Dataset,
        split: str,
        bad: np.ndarray,
        expected: str,
        got: str,
        remedy: str,
        names: Sequence[str] = (),
    ) -> Dataset:
        """The split without its bad rows.

        Args:
            dataset: The split.
            split: Its name.
            bad: Numbers of the bad rows, from 0.
            expected: Noun of what is expected.
            got: Noun of what the bad rows hold.
            remedy: Sentences; another one about `skip_bad` is added.
            names: Descriptions of the bad rows, in place of their numbers.

        Raises:
            RecipeError: there are bad rows, and they are not to be left out, or no other is left.
        """
        if not len(bad):
            return dataset
        rows = list(names)[:SHOWN] or [f"row {row + 1}" for row in bad[:SHOWN].tolist()]
        more = "" if len(bad) <= len(rows) else ", …"
        count = f"{len(bad):,} of {len(dataset):,} examples"
        where = f"split {split!r} has {got} in {count}: {', '.join(rows)}{more}"
        if not self.skip_bad:
            raise RecipeError(f"`data`: expected {expected}; {where}. {remedy} {SKIP}")
        if len(bad) == len(dataset):
            raise RecipeError(f"`data`: expected {expected}; {where}: none is left. {remedy}")
        self.lines.append(f"left out (`data.skip_bad`): {where}")
        self.limitations.append(f"{count} of the split {split} were left out: they had {got}.")
        kept = np.setdiff1d(np.arange(len(dataset)), bad)
        return dataset.select(kept)
