"""Recipes as dataclasses, validated before anything is downloaded or trained."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_distill.recipe.data_section import Data
from hf_distill.recipe.errors import RecipeError, shown
from hf_distill.recipe.sections import (
    AssistantSection,
    BaselineSection,
    CardSection,
    ControlSection,
    RobustnessSection,
    StudentSection,
    TeacherSection,
    path_of,
)
from hf_distill.recipe.tune_section import TuneSection
from hf_distill.recipe.yaml12 import to_yaml

ROLES = ("teacher", "baseline", "student")
ASSISTANT = "assistant-"
CONTROL = "control"

DEFAULTS: dict[str, Any] = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "logging_steps": 10,
}
"""Training arguments of a recipe, unless it sets others."""
SEEDS = 2**32
"""Upper bound of seeds, exclusive."""
MOST_TRAININGS = 1_000
"""Largest number of trainings of one recipe."""


@dataclass(frozen=True)
class Recipe:
    """A whole recipe.

    Args:
        name: Name of the student on its card.
        task: Kind of examples and models, a name in ``recipes/tasks.md``.
        data: Source, columns and splits of the examples.
        teacher: The model that is fine-tuned first, or used unchanged.
        student: The model that is distilled.
        output_dir: Folder on this machine, relative to the working directory; default:
            ``runs/NAME``.
        assistants: Models between teacher and student (Mirzadeh et al. 2020, arXiv 1902.03393),
            each with the keys of ``student`` and its own ``objective``.
        generations: Number of students in sequence, each taught by the one before (born-again
            networks, Furlanello et al. 2018, arXiv 1805.04770).
        baseline: Training arguments of the same student without a teacher.
        control: A fourth model: the baseline trained on the noise or attack of a robust objective.
        metric: Name of the metric that decides, or several, of which the first decides; default:
            the task's.
        objective: Weighted sum of objectives: rows of ``name``, ``weight`` and settings; default:
            by ``alpha``, ``temperature``, ``beta`` and ``gamma`` of ``training``.
        training: Arguments of `DistillationConfig` for every training, and
            ``early_stopping_patience``.
        on_policy: Of ``causal_lm``: arguments of `OnPolicyConfig`, to train on text that the
            student generates.
        seed: Seed of the teacher, and of the students without ``seeds``.
        seeds: One baseline and one student per seed; the best student on the validation split is
            published. Default: ``[seed]``.
        push_to_hub: Publish ``final`` at the end.
        hub_model_id: ``namespace/name`` of the published student.
        hub_private_repo: Visibility of a repository that is created; default: the account's.
        robustness: Evaluate the robustness of all models.
        card: Facts for the model card that cannot be derived from the run.
        tune: Search for settings by ``hf-distill tune``.
    """

    name: str
    task: str
    data: Data
    teacher: TeacherSection
    student: StudentSection
    output_dir: str = ""
    assistants: list[AssistantSection] = field(default_factory=list)
    generations: int = 1
    baseline: BaselineSection = field(default_factory=BaselineSection)
    control: ControlSection | None = None
    metric: str | list[str] | None = None
    objective: list[dict[str, Any]] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    on_policy: dict[str, Any] | None = None
    seed: int = 0
    seeds: list[int] | None = None
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool | None = None
    robustness: RobustnessSection | None = None
    card: CardSection = field(default_factory=CardSection)
    tune: TuneSection | None = None
    file: Path = field(default=Path(), init=False, compare=False)
    overrides: tuple[tuple[str, str], ...] = field(default=(), init=False, compare=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            raise RecipeError(
                f"`name`: expected letters, digits, '-', '_' and '.', got {self.name!r}: it names "
                "the student on its card and the default output folder."
            )
        if not self.output_dir:
            object.__setattr__(self, "output_dir", f"runs/{self.name}")
        check_folder(self.output_dir, "output_dir")
        _check_models(self)
        _check_seeds(self)
        for name, section in (("data", self.data), ("teacher", self.teacher)):
            for key, count in vars(section).items():
                if key.startswith("max_") and isinstance(count, int) and count < 1:
                    raise RecipeError(f"`{name}.{key}`: expected at least 1, got {count}.")
        if self.on_policy is not None and self.teacher.cache is not None:
            raise RecipeError(
                "`on_policy` and `teacher.cache`: the student writes texts that no cache knows. "
                "Take one of them away (`--teacher.cache null`)."
            )
        if self.push_to_hub and not self.hub_model_id:
            raise RecipeError("`push_to_hub` needs `hub_model_id: namespace/name`, got none.")

    @property
    def root(self) -> Path:
        """The output folder."""
        return path_of(self.output_dir)

    @property
    def student_seeds(self) -> list[int]:
        """One baseline and one student are trained for each of these."""
        return [self.seed] if self.seeds is None else self.seeds

    @property
    def roles(self) -> list[str]:
        """Roles with training arguments."""
        return [*ROLES, *([] if self.control is None else [CONTROL]), *self.assistant_roles]

    @property
    def assistant_roles(self) -> list[str]:
        """``assistant-1``, …: as many as there are, in their order."""
        return [f"{ASSISTANT}{number}" for number, _ in enumerate(self.assistants, 1)]

    def section(self, role: str) -> Any:
        """Section of a role: teacher, assistant-1, baseline, student."""
        if role.startswith(ASSISTANT):
            return self.assistants[int(role.removeprefix(ASSISTANT)) - 1]
        return getattr(self, role)

    def training_of(self, role: str) -> dict[str, Any]:
        """The training arguments of a stage: the shared ones, then its own."""
        return {**DEFAULTS, **self.training, **self.section(role).training}

    def to_yaml(self) -> str:
        """The recipe with all overrides applied, as a recipe file; defaults are left out."""
        values = _changed(self)
        values["training"] = {**DEFAULTS, **self.training}
        return to_yaml(values)


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


def key_of(role: str) -> str:
    """Key of a role in a recipe, for messages: ``assistants[0]`` for assistant-1."""
    if not role.startswith(ASSISTANT):
        return role
    return f"assistants[{int(role.removeprefix(ASSISTANT)) - 1}]"


def _check_models(recipe: Recipe) -> None:
    for role in ("teacher", *recipe.assistant_roles, "student"):
        name, section = key_of(role), recipe.section(role)
        parts = () if role == "teacher" else ("from_teacher_layers", "static")
        keys = (*parts, "model", "config", *(("api", "columns") if role == "teacher" else ()))
        given = [key for key in keys if getattr(section, key) is not None]
        if len(given) != 1:
            wanted = " or ".join(f"`{name}.{key}`" for key in keys)
            raise RecipeError(
                f"`{name}`: expected one of {wanted}, got "
                f"{' and '.join(f'`{name}.{key}`' for key in given) or 'none'}. An override takes "
                f"one away with `--{name}.{keys[0]} null`."
            )
        if parts and section.hidden_size is not None and section.from_teacher_layers is None:
            raise RecipeError(
                f"`{name}.hidden_size` cuts the width of `{name}.from_teacher_layers`, got none. "
                f"Give the layers, or set the width in `{name}.config`."
            )
        if section.revision is not None and section.model is None:
            raise RecipeError(f"`{name}.revision` is for `{name}.model` of the Hub, got none.")
        if parts and section.layers is not None and section.model is None:
            raise RecipeError(
                f"`{name}.layers` are those of `{name}.model`, got none. Of the teacher: "
                f"`{name}.from_teacher_layers`."
            )
        if parts:
            _check_importance(section, name)
            if section.static is not None and recipe.task != "bi_encoder":
                raise RecipeError(
                    f"`{name}.static` is for `task: bi_encoder`, got {recipe.task}. Give "
                    f"`{name}.model`: a folder that `hf-distill init-student --static` wrote."
                )
    if recipe.teacher.cache is not None and recipe.teacher.cache.path is not None:
        check_folder(recipe.teacher.cache.path, "teacher.cache.path")
    _check_inputs(recipe)
    if not recipe.teacher.is_model:
        _check_stored(recipe)
    elif recipe.teacher.fine_tuned and recipe.teacher.model is None:
        raise RecipeError("`teacher.fine_tuned` needs `teacher.model`: a new model knows nothing.")
    for key in ("seeds", "max_train_examples"):
        if recipe.teacher.fine_tuned and getattr(recipe.teacher, key) is not None:
            raise RecipeError(
                f"`teacher.{key}` is for teachers that are trained, and `teacher.fine_tuned` "
                "trains none. Take one of them away."
            )


def _check_inputs(recipe: Recipe) -> None:
    """Check that the teacher's own inputs are for the task."""
    teacher, language = recipe.teacher, recipe.task == "causal_lm"
    for key in ("processor", "inputs"):
        if getattr(teacher, key) is not None and language:
            raise RecipeError(
                f"`teacher.{key}` is for classifiers: positions of two tokenizers do not match. "
                "Leave it out; a longer prompt of the teacher is `teacher.prompt`."
            )
    if len(teacher.raw_columns) == 2 and recipe.task != "text_classification":
        raise RecipeError("`teacher.inputs`: expected one column, got two, which are for texts.")
    if teacher.prompt is None:
        return
    if not language:
        raise RecipeError(
            f"`teacher.prompt` is for `task: causal_lm`, got {recipe.task}. Name a column with the "
            "teacher's texts: `teacher.inputs`."
        )
    reason = None
    if not teacher.fine_tuned:
        reason = "`teacher.fine_tuned: true`, since the teacher is not trained on its prompt"
    elif recipe.on_policy is not None or recipe.data.packing is not None:
        key = "on_policy" if recipe.on_policy is not None else "data.packing"
        reason = f"data without `{key}`: one row of the data for each prompt (`--{key} null`)"
    if reason is not None:
        raise RecipeError(f"`teacher.prompt`: expected {reason}.")


def _check_stored(recipe: Recipe) -> None:
    """Check that nothing in the recipe needs the model of the teacher."""
    key = "api" if recipe.teacher.api is not None else "columns"
    if key == "columns" and (recipe.task == "causal_lm" or recipe.robustness is not None):
        raise RecipeError(
            "`teacher.columns` is for classifiers without `robustness`, got "
            f"{recipe.task}{' with it' if recipe.robustness else ''}. For language models use a "
            "ColumnTeacher in a script."
        )
    if key == "api" and (recipe.task != "text_classification" or recipe.robustness is not None):
        raise RecipeError(
            "`teacher.api` is for `task: text_classification` without `robustness`, got "
            f"{recipe.task}. For language models annotate the data in a script "
            "(hf_distill.teachers.api), and train on its column `messages`."
        )
    for role in (*recipe.assistant_roles, "student"):
        for part in ("from_teacher_layers", "static"):
            if getattr(recipe.section(role), part) is not None:
                raise RecipeError(
                    f"`{key_of(role)}.{part}`: the weights of `teacher.{key}` are not at hand. "
                    f"Give `{key_of(role)}.model`."
                )


def _check_importance(section: Any, name: str) -> None:
    """Check that `importance` has an effect."""
    count, layers = section.importance, section.from_teacher_layers
    if count is None:
        return
    if count < 1:
        raise RecipeError(
            f"`{name}.importance` is a number of training examples, 32 say, got {count}."
        )
    if section.hidden_size is None and not isinstance(layers, int):
        raise RecipeError(
            f"`{name}.importance` decides which layers stay where `{name}.from_teacher_layers` is "
            f"a number, got {layers!r}. Give a number (10 for uniform:10), or leave it out."
        )


def _check_seeds(recipe: Recipe) -> None:
    """Check number and range of the seeds, and the number of trainings."""
    teachers = recipe.teacher.seeds
    for key, seeds in (("seeds", recipe.seeds), ("teacher.seeds", teachers)):
        if seeds is not None and (not seeds or len(set(seeds)) != len(seeds)):
            raise RecipeError(f"`{key}`: expected different whole numbers, got {shown(seeds)}.")
    for seed in (recipe.seed, *recipe.student_seeds, *(teachers or ())):
        if not 0 <= seed < SEEDS:
            raise RecipeError(
                f"a seed: expected a whole number from 0 to below 2**32, got {seed}: NumPy takes "
                "no other."
            )
    if recipe.generations < 1:
        raise RecipeError(f"`generations`: expected at least 1, got {recipe.generations}.")
    trainings = len(recipe.student_seeds) * (1 + recipe.generations) + len(teachers or ())
    if trainings > MOST_TRAININGS:
        raise RecipeError(
            f"`seeds` and `generations`: expected at most {MOST_TRAININGS:,} trainings of one "
            f"recipe, got {trainings:,}. Split the seeds over several recipes."
        )


def check_folder(path: str, key: str) -> None:
    """Raise RecipeError for an address, or an invalid name, in place of a folder."""
    if address := re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", path):
        raise RecipeError(
            f"`{key}`: expected a folder on this machine, got the address {path}: "
            f"{address.group()}/ would become folders of that name. Give a path; to publish, set "
            "`push_to_hub` and `hub_model_id`, or run hf-distill push."
        )
    if "\0" in path:
        raise RecipeError(f"`{key}`: expected a folder, got a name with a NUL in it.")
