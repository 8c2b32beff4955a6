"""Section of a recipe for the search of its settings (``hf-distill tune``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from hf_distill.objectives import METHODS, OBJECTIVES
from hf_distill.recipe.errors import RecipeError
from hf_distill.utils.directions import higher_is_better

LEAST_SEEDS = 3


@dataclass(frozen=True)
class TuneDataSection:
    """Sizes of the data of a trial; the confirmation uses all of the recipe's.

    Args:
        max_train_examples: Size of a random subset of the training split.
        max_eval_examples: Size of a random subset of the validation split.
    """

    max_train_examples: int | None = None
    max_eval_examples: int | None = None


@dataclass(frozen=True)
class TuneSection:
    """Search for the settings of a recipe.

    Args:
        trials: Trials of each arm, over all workers; the first has the recipe's own settings.
        arms: The trainings that are tuned, each with the same number of trials: ``student`` (with
            the teacher) and ``baseline`` (without).
        space: Dotted key -> ``{low, high, log}``, a list of choices, or null, which takes a key out
            of the default space.
        data: Sizes of the data of a trial; default: the recipe's.
        metric: The score on the validation split; default: the task's.
        seeds: Seeds of the confirmation, at least 3 that no other training has; default: the next
            three after the recipe's.
        prune: Stop trials that are worse than the median at the same evaluation.
    """

    trials: int = 15
    arms: list[Literal["student", "baseline"]] = field(
        default_factory=lambda: ["student", "baseline"]
    )
    space: dict[str, Any] = field(default_factory=dict)
    data: TuneDataSection = field(default_factory=TuneDataSection)
    metric: str | None = None
    seeds: list[int] | None = None
    prune: bool = True

    def __post_init__(self) -> None:
        for key, count in (("trials", self.trials), *_sizes(self.data)):
            if count is not None and count < 1:
                raise RecipeError(f"`tune.{key}`: expected at least 1, got {count}.")
        if not self.arms or len(set(self.arms)) != len(self.arms):
            raise RecipeError(
                f"`tune.arms`: expected student, baseline or both, each once, got {self.arms}."
            )
        if self.seeds is not None and len(set(self.seeds)) < LEAST_SEEDS:
            raise RecipeError(
                f"`tune.seeds`: expected at least {LEAST_SEEDS} different seeds, as the spread of "
                f"fewer cannot be estimated, got {self.seeds}."
            )
        if self.metric is not None:
            check_metric(self.metric)


def _sizes(data: TuneDataSection) -> list[tuple[str, int | None]]:
    return [(f"data.{key}", value) for key, value in vars(data).items()]


def check_metric(metric: str) -> None:
    """Refuse scores that a search cannot compare.

    Raises:
        RecipeError: a loss, or a figure without a direction.
    """
    name = metric.removeprefix("eval_")
    if name == "loss" or name.endswith("_loss") or name in {*OBJECTIVES, *METHODS}:
        raise RecipeError(
            f"`tune.metric`: expected a metric of the task, got {metric}, which is a loss. The "
            "temperature and the weights of an objective change the scale of its loss: the least "
            "loss shows the smallest scale, and not the best student. Leave `tune.metric` out for "
            "the metric of the task."
        )
    if higher_is_better(name) is None:
        raise RecipeError(
            f"`tune.metric`: expected a metric with a known direction, such as accuracy or "
            f"perplexity, got {metric}. Leave `tune.metric` out for the metric of the task."
        )
