"""A recipe: one YAML file, checked as a whole before anything is downloaded or trained."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hf_distill.config import DistillationConfig
from hf_distill.objectives import OBJECTIVES, objective_from
from hf_distill.recipe.casting import RecipeError, cast, cast_fields, parse_yaml, unknown

ROLES = ("teacher", "baseline", "student")

DEFAULTS: dict[str, Any] = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "logging_steps": 10,
}
"""Training arguments of a recipe that says nothing else."""

MANAGED = {
    "output_dir": "set `output_dir` at the top level",
    "seed": "set `seed` or `seeds` at the top level",
    "data_seed": "set `seed` or `seeds` at the top level",
    "push_to_hub": "set `push_to_hub` at the top level",
    "hub_model_id": "set `hub_model_id` at the top level",
    "hub_private_repo": "set `hub_private_repo` at the top level",
    "hub_strategy": "a recipe pushes once, when everything is written",
    "hub_token": "log in with `hf auth login`, or set HF_TOKEN",
    "resume_from_checkpoint": "running the same command again resumes",
    "save_only_model": "without the optimizer's state an interrupted run could not resume",
    "teacher_model_init_kwargs": "a recipe loads its teacher itself",
    "remove_unused_columns": "the recipe keeps the columns that its task needs",
    "label_names": "the recipe's task knows its labels",
}
"""Training arguments that a recipe may not set, and what to do instead."""


@dataclass(frozen=True)
class Data:
    """Where the examples come from: a Hub data set, or a function in a Python file."""

    source: str
    config: str | None = None
    revision: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    text_column: str = "text"
    text_pair_column: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    train_split: str = "train"
    validation_split: str | None = "validation"
    test_split: str = "test"
    max_train_examples: int | None = None
    max_eval_examples: int | None = None
    max_test_examples: int | None = None
    max_length: int | None = None
    processor: str | dict[str, Any] | None = None


@dataclass(frozen=True)
class TeacherSection:
    """A model to fine-tune first, or one that is ready (``fine_tuned: true``)."""

    model: str | None = None
    config: dict[str, Any] | None = None
    fine_tuned: bool = False
    hub_id: str | None = None
    license: str | None = None
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StudentSection:
    """A part of the teacher's model before its fine-tuning, another model, or a new one."""

    from_teacher_layers: int | str | list[int] | None = None
    hidden_size: int | None = None
    model: str | None = None
    config: dict[str, Any] | None = None
    hub_id: str | None = None
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BaselineSection:
    """The same student, trained on the labels alone."""

    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CardSection:
    """What only a person can say about the student."""

    license: str | None = None
    language: str | list[str] | None = None
    limitations: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Recipe:
    """A whole recipe; `recipes/README.md` says what each key means."""

    name: str
    task: str
    data: Data
    teacher: TeacherSection
    student: StudentSection
    output_dir: str = ""
    baseline: BaselineSection = field(default_factory=BaselineSection)
    objective: list[dict[str, Any]] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    seeds: list[int] | None = None
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool | None = None
    card: CardSection = field(default_factory=CardSection)
    file: Path = field(default=Path(), init=False, compare=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            raise RecipeError(
                f"`name`: expected letters, digits, '-', '_' and '.', got {self.name!r}: it names "
                "the student on its card and the default output folder."
            )
        if not self.output_dir:
            object.__setattr__(self, "output_dir", f"runs/{self.name}")
        _check_models(self)
        if self.seeds is not None and (not self.seeds or len(set(self.seeds)) != len(self.seeds)):
            raise RecipeError(f"`seeds`: expected different whole numbers, got {self.seeds}.")
        for key, count in vars(self.data).items():
            if key.startswith("max_") and count is not None and count < 1:
                raise RecipeError(f"`data.{key}`: expected at least 1, got {count}.")
        if self.push_to_hub and not self.hub_model_id:
            raise RecipeError("`push_to_hub` needs `hub_model_id: namespace/name`, got none.")

    @property
    def student_seeds(self) -> list[int]:
        """One baseline and one student are trained for each of these."""
        return [self.seed] if self.seeds is None else self.seeds

    def training_of(self, role: str) -> dict[str, Any]:
        """The training arguments of a stage: the shared ones, then its own."""
        return {**DEFAULTS, **self.training, **getattr(self, role).training}

    def to_yaml(self) -> str:
        """The recipe with all overrides applied, as a recipe file; defaults are left out."""
        values = _changed(self)
        values["training"] = {**DEFAULTS, **self.training}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _changed(section: Any) -> dict[str, Any]:
    """The fields of a section that are not the default."""
    values: dict[str, Any] = {}
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        default = item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        if item.init and value != default:
            values[item.name] = _plain(value)
    return values


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return _changed(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _check_models(recipe: Recipe) -> None:
    for name, section, keys in (
        ("teacher", recipe.teacher, ("model", "config")),
        ("student", recipe.student, ("from_teacher_layers", "model", "config")),
    ):
        given = [key for key in keys if getattr(section, key) is not None]
        if len(given) != 1:
            wanted = " or ".join(f"`{name}.{key}`" for key in keys)
            raise RecipeError(
                f"`{name}`: expected one of {wanted}, got "
                f"{' and '.join(f'`{name}.{key}`' for key in given) or 'none'}. An override takes "
                f"one away with `--{name}.{keys[0]} null`."
            )
    if recipe.student.hidden_size is not None and recipe.student.from_teacher_layers is None:
        raise RecipeError(
            "`student.hidden_size` cuts the width of `student.from_teacher_layers`, got none. Give "
            "the layers, or set the width in `student.config`."
        )
    if recipe.teacher.fine_tuned and recipe.teacher.model is None:
        raise RecipeError("`teacher.fine_tuned` needs `teacher.model`: a new model knows nothing.")


def load_recipe(path: str | Path, overrides: Sequence[tuple[str, str]] = ()) -> Recipe:
    """Read, override, cast and check a recipe.

    Args:
        path: The YAML file.
        overrides: Pairs of a dotted key and its value in YAML: ``("training.max_steps", "2")``.
            One of ``training`` holds for every stage, whatever the file says of single ones.

    Raises:
        RecipeError: anything that is wrong with the file or an override, with the remedy.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(
            f"there is no recipe {path}; expected the path of a YAML file. The shipped ones are "
            "under recipes/."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as a recipe: {error}") from error
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: expected a recipe (lines `key: value`), got {values!r:.60}.")
    # What the command line says of all stages is stronger than what the file says of one.
    for key, value in sorted(overrides, key=lambda pair: not pair[0].startswith("training.")):
        if key.startswith("training."):
            _forget(values, key.removeprefix("training."))
        _override(values, key, parse_yaml(value, f"--{key}"))
    try:
        return _recipe(values, path)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def _forget(values: dict[str, Any], argument: str) -> None:
    """Take a training argument out of the sections of single stages."""
    for role in ROLES:
        section = values.get(role)
        training = section.get("training") if isinstance(section, dict) else None
        if isinstance(training, dict):
            training.pop(argument, None)


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents):
        inner = values.get(parent)
        if inner is None:
            inner = values[parent] = {}
        if not isinstance(inner, dict):
            name = ".".join(parents[: depth + 1])
            raise RecipeError(
                f"--{key}: `{name}` is no section but {inner!r:.60}. "
                f"Give it as a whole: --{name} '…'."
            )
        values = inner
    values[last] = value


def _recipe(values: dict[str, Any], path: Path) -> Recipe:
    values = {
        key: ({} if item is None and key in (*ROLES, "data", "training", "card") else item)
        for key, item in values.items()
    }
    fields = cast_fields(Recipe, values)
    if fields.get("objective") is not None:
        fields["objective"] = [_row(row, i) for i, row in enumerate(fields["objective"])]
    fields["training"] = _training(fields.get("training", {}), "training.")
    for role in ROLES:
        if role in fields:
            section = fields[role]
            training = _training(section.training, f"{role}.training.")
            fields[role] = dataclasses.replace(section, training=training)
    recipe = Recipe(**fields)
    object.__setattr__(recipe, "file", path)
    return recipe


def _training(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Check and cast training arguments: the fields of `DistillationConfig`, and our own one."""
    hints = typing.get_type_hints(DistillationConfig)
    known = {f.name: hints[f.name] for f in dataclasses.fields(DistillationConfig) if f.init}
    known["early_stopping_patience"] = int | None
    checked = {}
    for key, value in values.items():
        if key in MANAGED:
            raise RecipeError(f"`{prefix}{key}` cannot be set: {MANAGED[key]}.")
        if key not in known:
            raise unknown(str(key), known.keys() - MANAGED.keys(), prefix)
        checked[key] = cast(value, known[key], prefix + key)
    return checked


def _row(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Check and cast one row of the objective."""
    where = f"objective[{index}]."
    name = row.get("name")
    if name not in OBJECTIVES:
        raise RecipeError(
            f"`{where}name`: {unknown(str(name), OBJECTIVES)}"
            if name is not None
            else f"`{where}name` is missing: expected one of {', '.join(sorted(OBJECTIVES))}."
        )
    settings = {key: value for key, value in row.items() if key not in ("name", "weight")}
    fields = {f.name for f in dataclasses.fields(OBJECTIVES[name])}
    for key in settings:
        if key not in fields:
            raise unknown(str(key), fields | {"weight"}, where)
    plans = {
        k: v
        for k, v in settings.items()
        if k == "temperature" and isinstance(v, (Mapping, list, tuple))
    }
    plain = {k: v for k, v in settings.items() if k not in plans}  # objective_from reads a plan
    checked = {"name": name, **cast_fields(OBJECTIVES[name], plain, where), **plans}
    if "weight" in row:
        weight = row["weight"]
        checked["weight"] = cast(weight, float | dict[str, Any], f"{where}weight")
    try:
        objective_from([checked])
    except ValueError as error:
        raise RecipeError(f"`objective[{index}]` ({name}): {error}") from error
    return checked
