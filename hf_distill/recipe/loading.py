"""Reading a recipe: YAML and overrides in, a checked `Recipe` out."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_distill.objectives import (
    INPUT_PERTURBATIONS,
    METHODS,
    OBJECTIVES,
    InputPerturbation,
    objective_from,
    settings_of,
)
from hf_distill.objectives.base.objective import Objective
from hf_distill.recipe.errors import RecipeError, check_keys, refusing, shown, unknown
from hf_distill.recipe.schema import CONTROL, ROLES, Recipe
from hf_distill.recipe.yaml12 import DEEPEST, parse_yaml
from hf_distill.recipe.yaml_types import cast, cast_fields
from hf_distill.training.config import DistillationConfig
from hf_distill.training.on_policy import OnPolicyConfig

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
"""Training arguments that a recipe must not set -> the alternative."""
LARGEST = 1_000_000
"""Largest size of a recipe in bytes."""


def load_recipe(path: str | Path, overrides: Sequence[tuple[str, str]] = ()) -> Recipe:
    """Read, override, cast and check a recipe.

    Args:
        path: The YAML file.
        overrides: Pairs of a dotted key and its value in YAML: ``("training.max_steps", "2")``.
            An override of ``training`` holds for every stage, also over sections in the file.

    Raises:
        RecipeError: anything that is wrong with the file or an override, with the remedy.
    """
    path = Path(path)
    values = parse_yaml(_text_of(path), str(path))
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: expected a recipe (lines `key: value`), got {shown(values)}.")
    # What the command line says of all stages is stronger than what the file says of one.
    for key, value in sorted(overrides, key=lambda pair: not pair[0].startswith("training.")):
        if key.startswith("training."):
            _forget(values, key.removeprefix("training."))
        _override(values, key, parse_yaml(value, f"--{key}"))
    try:
        recipe = _recipe(values, path)
        object.__setattr__(recipe, "overrides", tuple(overrides))
        return recipe
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def _text_of(path: Path) -> str:
    """The text of a recipe's file of at most `LARGEST` bytes."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(
            f"there is no recipe {path}; expected the path of a YAML file. The shipped ones are "
            "under recipes/."
        ) from None
    except (OSError, ValueError) as error:  # also names that no file can have
        raise RecipeError(f"{path} cannot be read as a recipe: {error}") from error
    if len(content) > LARGEST:
        raise RecipeError(
            f"{path}: expected a recipe of at most {LARGEST:,} bytes, got more. Examples belong "
            "into files of their own, which `data.source` reads."
        )
    return text


def _forget(values: dict[str, Any], argument: str) -> None:
    """Take a training argument out of the sections of single stages."""
    assistants = values.get("assistants")
    sections = [values.get(role) for role in (*ROLES, CONTROL)]
    for section in [*sections, *(assistants if isinstance(assistants, list) else [])]:
        training = section.get("training") if isinstance(section, dict) else None
        if isinstance(training, dict):
            training.pop(argument, None)


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    if len(parents) > DEEPEST:
        raise RecipeError(f"--{key[:60]}…: expected at most {DEEPEST} dots in a key.")
    for depth, parent in enumerate(parents):
        inner = values.get(parent)
        if inner is None:
            inner = values[parent] = {}
        if not isinstance(inner, dict):
            name = ".".join(parents[: depth + 1])
            raise RecipeError(
                f"--{key}: `{name}` is no section but {shown(inner)}. "
                f"Give it as a whole: --{name} '…'."
            )
        values = inner
    values[last] = value


def _recipe(values: dict[str, Any], path: Path) -> Recipe:
    for key in (*ROLES, "data", "training", "card"):
        if key in values and values[key] is None:
            values[key] = {}
    if values.get("assistants", ()) is None:  # an override takes them away
        del values["assistants"]
    fields = cast_fields(Recipe, values)
    if fields.get("objective") is not None:
        fields["objective"] = _rows(fields["objective"], "objective")
    if fields.get("on_policy") is not None:
        fields["on_policy"] = _on_policy(fields["on_policy"], fields["task"])
    fields["training"] = _training(fields.get("training", {}), "training.")
    for role in (*ROLES, CONTROL):
        if fields.get(role) is not None:
            fields[role] = _trained(fields[role], role)
    for index, section in enumerate(fields.get("assistants", ())):
        fields["assistants"][index] = _trained(section, f"assistants[{index}]")
    recipe = Recipe(**fields)
    object.__setattr__(recipe, "file", path)
    return recipe


def _trained(section: Any, key: str) -> Any:
    """A section with its training arguments and objective checked and cast."""
    changes: dict[str, Any] = {"training": _training(section.training, f"{key}.training.")}
    if getattr(section, "objective", None) is not None:
        changes["objective"] = _rows(section.objective, f"{key}.objective")
    return dataclasses.replace(section, **changes)


def _training(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Check and cast training arguments: the fields of `DistillationConfig`, and our own one."""
    hints = typing.get_type_hints(DistillationConfig)
    known = {f.name: hints[f.name] for f in dataclasses.fields(DistillationConfig) if f.init}
    known["early_stopping_patience"] = int | None
    for key in values:
        if key in MANAGED:
            raise RecipeError(f"`{prefix}{key}` cannot be set: {MANAGED[key]}.")
    check_keys(values, known.keys() - MANAGED.keys(), prefix)
    return {key: cast(value, known[key], prefix + key) for key, value in values.items()}


def _on_policy(values: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Check and cast the fields of `OnPolicyConfig` that are not training arguments."""
    if task != "causal_lm":
        raise RecipeError(f"`on_policy` is for `task: causal_lm`; {task} writes no text.")
    hints = typing.get_type_hints(OnPolicyConfig)
    inherited = {f.name for f in dataclasses.fields(DistillationConfig)}
    known = {f.name for f in dataclasses.fields(OnPolicyConfig) if f.init} - inherited
    check_keys(values, known, "on_policy.")
    return {key: cast(value, hints[key], f"on_policy.{key}") for key, value in values.items()}


def _rows(rows: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """Check and cast the rows of an objective."""
    if not rows:
        raise RecipeError(f"`{key}`: expected at least one row with a `name`, got an empty list.")
    return [_row(row, f"{key}[{index}]") for index, row in enumerate(rows)]


def _row(row: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Check and cast one row of an objective."""
    where = f"{key}."
    name = row.get("name")
    names = [*OBJECTIVES, *METHODS]
    if name is None:
        raise RecipeError(f"`{where}name` is missing: expected one of {', '.join(sorted(names))}.")
    if not isinstance(name, str) or name not in names:
        raise RecipeError(f"`{where}name`: {unknown(name, names)}")
    settings = {key: value for key, value in row.items() if key not in ("name", "weight")}
    check_keys(settings, settings_of(name), where, "weight")
    hints = typing.get_type_hints(OBJECTIVES.get(name) or METHODS[name])
    plans = {
        k: _nested(v, hints[k], where + k) for k, v in settings.items() if _is_plan(v, hints[k])
    }
    plain = {k: v for k, v in settings.items() if k not in plans}
    if plans or name in METHODS:  # missing settings are an error of `objective_from` then
        plain = {k: cast(v, hints[k], where + k) for k, v in plain.items()}
    else:
        plain = cast_fields(OBJECTIVES[name], plain, where)
    checked = {"name": name, **plain, **plans}
    if "weight" in row:
        checked["weight"] = cast(row["weight"], float | dict[str, Any], f"{where}weight")
    with refusing(f"`{key}` ({name})", ArithmeticError, LookupError, TypeError, ValueError):
        objective_from([checked])
    return checked


def _classes(hint: Any) -> list[type]:
    """The classes that a hint allows."""
    options = [typing.get_origin(option) or option for option in typing.get_args(hint) or (hint,)]
    return [option for option in options if isinstance(option, type)]


def _is_plan(value: Any, hint: Any) -> bool:
    """True for settings that `objective_from` reads: schedules, objectives within this one, …"""
    structured = any(dataclasses.is_dataclass(option) for option in _classes(hint))
    return structured and isinstance(value, (Mapping, list, tuple))


def _nested(value: Any, hint: Any, key: str) -> Any:
    """Check and convert an objective or perturbation inside an objective."""
    kinds = _classes(hint)
    if not isinstance(value, Mapping):
        return value
    if Objective in kinds:
        return _row(value, key)
    if InputPerturbation in kinds and (kind := INPUT_PERTURBATIONS.get(str(value.get("name")))):
        settings = {k: v for k, v in value.items() if k != "name"}
        return {"name": value["name"], **cast_fields(kind, settings, f"{key}.")}
    return value
