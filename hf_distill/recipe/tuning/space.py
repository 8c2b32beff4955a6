"""Search space of an arm: the keys of a recipe that are tuned, with their ranges and choices."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hf_distill.objectives import OBJECTIVES
from hf_distill.recipe.errors import RecipeError, shown
from hf_distill.recipe.loading import load_recipe
from hf_distill.recipe.schema import Recipe
from hf_distill.recipe.tasks import recipe_task
from hf_distill.recipe.yaml_types import cast_fields
from hf_distill.training.config import DistillationConfig

Settings = dict[str, Any]
"""Dotted key -> value."""
AROUND = 5.0
"""Factor to both sides of a learning rate or weight."""
DIGITS = 3
"""Digits of a sampled number."""


class Sampler(Protocol):
    """The part of an `optuna.Trial` that samples."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = ...) -> int: ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = ...) -> float: ...

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; ``log``: uniform in the logarithm."""

    low: float
    high: float
    log: bool = False

    def including(self, own: Any, key: str) -> Range:
        """The range widened to the recipe's own value.

        Raises:
            RecipeError: that is no number, or none of a logarithmic range.
        """
        number = isinstance(own, (int, float)) and not isinstance(own, bool)
        if not number or (self.log and own <= 0):
            kind = "number above 0" if self.log else "number"
            raise RecipeError(
                f"`tune.space.{key}`: expected a {kind} in the recipe, as its own value is the "
                f"first trial of a {'logarithmic ' if self.log else ''}range, got {shown(own)}. "
                "Set it in the recipe, or give choices: `[0, 0.1]`."
            )
        ends = min(self.low, own), max(self.high, own)
        if isinstance(own, int):
            return Range(math.floor(ends[0]), math.ceil(ends[1]), self.log)
        return Range(float(ends[0]), float(ends[1]), self.log)

    def sample(self, trial: Sampler, key: str) -> Any:
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(key, self.low, self.high, log=self.log)
        value = trial.suggest_float(key, self.low, self.high, log=self.log)
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def encoded(self, value: Any) -> Any:
        return value

    @property
    def ends(self) -> list[Any]:
        return [self.low, self.high]

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', logarithmic' if self.log else ''}"


@dataclass(frozen=True)
class Choices:
    """Values of any kind, each as JSON."""

    values: tuple[str, ...]

    def including(self, own: Any, key: str) -> Choices:
        """The choices with the recipe's own value, first."""
        return Choices(tuple(dict.fromkeys([json.dumps(own), *self.values])))

    def sample(self, trial: Sampler, key: str) -> Any:
        return json.loads(trial.suggest_categorical(key, list(self.values)))

    def encoded(self, value: Any) -> str:
        return json.dumps(value)

    @property
    def ends(self) -> list[Any]:
        return [json.loads(value) for value in self.values]

    def __str__(self) -> str:
        return ", ".join(self.values)


@dataclass(frozen=True)
class Space:
    """Keys that are tuned in one arm; `own` holds the recipe's own values of them.

    Keys of training arguments are ``training.…`` for either arm.
    """

    arm: str
    keys: Mapping[str, Range | Choices]
    own: Settings

    def sample(self, trial: Sampler) -> Settings:
        """Settings that a trial suggests."""
        return {key: kind.sample(trial, key) for key, kind in self.keys.items()}

    def encoded(self, settings: Settings) -> Settings:
        """Settings as the parameters of a trial."""
        return {key: self.keys[key].encoded(value) for key, value in settings.items()}

    def describe(self) -> dict[str, str]:
        return {key: str(kind) for key, kind in self.keys.items()}


def make_space(recipe: Recipe, arm: str) -> Space:
    """Default space of an arm with the changes of ``tune.space``, checked against the recipe.

    Raises:
        RecipeError: an unknown key, or one that all trials share; a value that is none of the key.
    """
    given = {} if recipe.tune is None else recipe.tune.space
    kinds: dict[str, Range | Choices] = dict(_defaults(recipe, arm))
    for key in sorted(given, key=lambda key: key.startswith(f"{arm}.")):  # its own win
        if (name := _name(key, arm)) is None:
            continue
        kind = given[key]
        if kind is None:
            kinds.pop(name, None)
        else:
            kinds[name] = _kind(key, kind)
    values = {name: own_value(recipe, arm, name) for name in kinds}
    kinds = {name: kind.including(values[name], name) for name, kind in kinds.items()}
    for name, kind in kinds.items():
        if name.startswith("student."):
            _check_sizes(name, kind)
    for place in range(max((len(kind.ends) for kind in kinds.values()), default=0)):
        ends = {name: kind.ends[min(place, len(kind.ends) - 1)] for name, kind in kinds.items()}
        try:
            load_recipe(recipe.file, [*recipe.overrides, *overrides(recipe, arm, ends)])
        except RecipeError as error:
            raise RecipeError(f"`tune.space` of the {arm}: {error}") from error
    return Space(arm, kinds, values)


def _kind(key: str, given: Any) -> Range | Choices:
    if isinstance(given, Mapping):
        found = Range(**cast_fields(Range, given, f"tune.space.{key}."))
        if not found.low < found.high or (found.log and found.low <= 0):
            raise RecipeError(
                f"`tune.space.{key}`: expected low < high{', both above 0' * found.log}, got "
                f"{shown(dict(given))}."
            )
        return found
    if isinstance(given, (list, tuple)) and given:
        return Choices(tuple(json.dumps(value) for value in given))
    raise RecipeError(
        f"`tune.space.{key}`: expected {{low: …, high: …, log: true}}, a list of choices, or null, "
        f"got {shown(given)}."
    )


def _name(key: str, arm: str) -> str | None:
    """Name of a key within an arm; None: it is not of this arm."""
    head, _, rest = key.partition(".")
    if head == "training" and rest:
        return key
    if head in ("student", "baseline") and rest.startswith("training."):
        return rest if head == arm else None
    if head == "student" and rest in ("from_teacher_layers", "layers", "dropout"):
        return key  # the baseline is the same model
    if head == "objective":
        return key if arm == "student" else None
    raise RecipeError(
        f"`tune.space.{key}`: expected a key of `training`, `student.training`, "
        "`baseline.training`, `objective` (objective.0.temperature), or one of "
        f"student.from_teacher_layers, student.layers, student.dropout, got {key}. Data, seeds and "
        "the teacher are the same in all trials: set it in the recipe."
    )


def _check_sizes(name: str, kind: Range | Choices) -> None:
    """Refuse layers of different numbers: the arms would be compared at different sizes."""
    if name == "student.dropout":
        return
    counts = {_count(value) for value in kind.ends}
    if len(counts) > 1 or isinstance(kind, Range):
        raise RecipeError(
            f"`tune.space.{name}`: expected choices with one number of layers, such as [[0, 1], "
            f"[0, 5]], got {kind}. The arms are compared at one size: tune one recipe per size."
        )


def _count(value: Any) -> Any:
    if isinstance(value, str):
        return value.rpartition(":")[2]
    return str(len(value) if isinstance(value, list) else value)


# ---- the recipe's own values ---------------------------------------------------------------------


def own_value(recipe: Recipe, arm: str, key: str) -> Any:
    """Value of a key in the recipe, its default included.

    Raises:
        RecipeError: there is no such key.
    """
    head, _, rest = key.partition(".")
    if head == "training":
        fields = {f.name: f for f in dataclasses.fields(DistillationConfig) if f.init}
        default = fields[rest].default if rest in fields else None
        return getattr(value := recipe.training_of(arm).get(rest, default), "value", value)
    if head == "student":
        return getattr(recipe.student, rest)
    if not rest:
        return _rows(recipe)
    row, name = _row(recipe, key)
    if name == "weight":
        return row.get(name, 1.0)
    known = {f.name: f for f in dataclasses.fields(OBJECTIVES.get(row["name"], _NoFields))}
    default = known[name].default if name in known else None
    return row.get(name, None if default is dataclasses.MISSING else default)


@dataclass(frozen=True)
class _NoFields:
    """Stands for a method, whose rows have to state their settings."""


def _rows(recipe: Recipe) -> list[dict[str, Any]] | None:
    """The rows of the student's objective; None: it is made of scalars."""
    return recipe_task(recipe).objective if recipe.objective is None else recipe.objective


def _row(recipe: Recipe, key: str) -> tuple[dict[str, Any], str]:
    """The row of an objective that a key such as ``objective.0.temperature`` names, and the name of
    the setting in it."""
    _, number, *name = key.split(".", 2)
    rows = _rows(recipe) or []
    if not (number.isdecimal() and int(number) < len(rows) and name):
        names = [f"objective.{index} ({row['name']})" for index, row in enumerate(rows)]
        raise RecipeError(
            f"`tune.space.{key}`: expected objective.NUMBER.SETTING, got {key}. Rows of the recipe:"
            f" {', '.join(names) or 'none; tune training.alpha and training.temperature'}."
        )
    return rows[int(number)], name[0]


def overrides(recipe: Recipe, arm: str, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings of an arm as overrides of the recipe."""
    found, rows = [], None
    for key, value in settings.items():
        head, _, rest = key.partition(".")
        if head == "training":
            found.append((f"{arm}.{key}", json.dumps(value)))
        elif head == "objective" and rest:
            _, name = _row(recipe, key)
            if rows is None:
                rows = [dict(row) for row in _rows(recipe) or []]
            rows[int(rest.partition(".")[0])][name] = value
        else:
            found.append((key, json.dumps(value)))
    return found if rows is None else [*found, ("objective", json.dumps(rows))]


# ---- the default space ---------------------------------------------------------------------------


def _defaults(recipe: Recipe, arm: str) -> Iterator[tuple[str, Range | Choices]]:
    own: Callable[[str], Any] = lambda key: own_value(recipe, arm, key)  # noqa: E731
    rate = own("training.learning_rate")
    yield "training.learning_rate", Range(*_around(rate), log=True)
    yield _length(own("training.max_steps"), own("training.num_train_epochs"))
    yield "training.weight_decay", Range(0.0, 0.1)
    if (own("training.warmup_steps") or 0) < 1:  # below 1 it is a share of all steps
        yield "training.warmup_steps", Choices(("0.0", "0.06", "0.1", "0.2"))
    if arm != "student":
        return
    rows = _rows(recipe)
    if rows is None:
        yield "training.alpha", Range(0.1, 0.9)
        yield "training.temperature", Range(1.0, 8.0, log=True)
        return
    for index, row in enumerate(rows):
        if _plain(own(f"objective.{index}.temperature"), row):
            yield f"objective.{index}.temperature", Range(1.0, 8.0, log=True)
        weight = own(f"objective.{index}.weight")
        if index and isinstance(weight, (int, float)) and weight > 0:  # relative to the first
            yield f"objective.{index}.weight", Range(*_around(weight), log=True)


def _around(value: float) -> tuple[float, float]:
    """A range around a value, its ends rounded."""
    low, high = (float(f"{end:.{DIGITS}g}") for end in (value / AROUND, value * AROUND))
    return low, high


def _plain(value: Any, row: Mapping[str, Any]) -> bool:
    return isinstance(value, (int, float)) and value > 0 and row["name"] in OBJECTIVES


def _length(steps: int, epochs: float) -> tuple[str, Choices]:
    """Half, all, and one and a half of the recipe's steps or epochs."""
    key, own = ("max_steps", steps) if steps > 0 else ("num_train_epochs", epochs)
    lengths: Sequence[float] = [max(1, math.ceil(own * part)) for part in (0.5, 1, 1.5)]
    kept = dict.fromkeys([type(own)(length) for length in lengths])
    return f"training.{key}", Choices(tuple(json.dumps(length) for length in kept))
