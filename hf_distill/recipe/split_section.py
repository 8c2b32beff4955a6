"""Section `data.split` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from hf_distill.recipe.errors import RecipeError


@dataclass(frozen=True)
class SplitSection:
    """Test and validation examples that are set aside where the source has no such split.

    Args:
        test: Share of the examples for testing.
        validation: Share of the examples for validation.
        seed: Seed of the choice; the seeds of the trainings do not change it.
        by: Column whose values are never divided over two splits, such as a patient or speaker.
    """

    test: float = 0.2
    validation: float = 0.1
    seed: int = 0
    by: str | None = None

    def __post_init__(self) -> None:
        shares = (self.test, self.validation)
        if min(shares) < 0 or sum(shares) >= 1 or self.seed < 0:
            raise RecipeError(
                "`data.split`: expected shares of 0 or more whose sum is below 1, and a seed of 0 "
                f"or more, got test {self.test:g}, validation {self.validation:g} and seed "
                f"{self.seed}. For example {{test: 0.2, validation: 0.1}}."
            )
