"""A first recipe for a task, with comments: what a user names, and settings to begin with."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_distill.recipe.errors import RecipeError, unknown
from hf_distill.recipe.labels import CLASS
from hf_distill.recipe.tasks import RECIPE_TASKS, RecipeTask
from hf_distill.recipe.yaml12 import to_yaml

FINE_TUNED = ("bi_encoder", "causal_lm", "dual_encoder")
"""Tasks whose teachers are mostly used as they are published."""
RATES = {"AutoTokenizer": (2e-5, 1e-4), "AutoImageProcessor": (5e-4, 1e-3)}
"""Processor -> learning rate of the teacher's fine-tuning, and of the students."""
OTHER_RATES = (5e-5, 2e-4)
WIDTH = 96


@dataclass(frozen=True)
class NewRecipe:
    """The choices of a new recipe.

    Args:
        name: Name of the student.
        task: A key of `RECIPE_TASKS`.
        teacher: Hub id or folder.
        student: Hub id or folder; None: layers of the teacher.
        layers: Number of the teacher's layers.
        data: Source, as ``data.source`` of a recipe.
        columns: Key of a column without ``_column`` (``text``, ``label``) -> its name.
        fine_tuned: True: the teacher is not trained; None: as usual for the task.

    Raises:
        RecipeError: no such task or column, or neither or both of student and layers.
    """

    name: str
    task: str
    teacher: str
    data: Any
    student: str | None = None
    layers: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    fine_tuned: bool | None = None

    def __post_init__(self) -> None:
        if self.task not in RECIPE_TASKS:
            raise RecipeError(f"`task`: {unknown(self.task, RECIPE_TASKS)}")
        if (self.student is None) == (self.layers is None):
            raise RecipeError(
                "expected one of a student (a model) and a number of the teacher's layers, got "
                f"{'both' if self.layers is not None else 'none'}."
            )
        known = columns_of(self.row)
        for key in self.columns:
            if key not in known:
                raise RecipeError(f"a column: {unknown(key, known)}")

    @property
    def row(self) -> RecipeTask:
        """The row of the task."""
        return RECIPE_TASKS[self.task]

    def text(self) -> str:
        """The recipe as commented YAML."""
        given = self.fine_tuned
        trained = self.task not in FINE_TUNED if given is None else not given
        rates = RATES.get(self.row.processor, OTHER_RATES)
        columns = {f"{key}_column": name for key, name in self.columns.items()}
        student: dict[str, Any] = {"model": self.student}
        if self.layers is not None:
            student = {"from_teacher_layers": self.layers}
        blocks: list[tuple[str, dict[str, Any]]] = [
            (self._head(), {"name": self.name, "task": self.task}),
            (
                "Where the examples are: a data set of the Hub, local files, or file.py:function. "
                f"Columns of this task: {self._columns()}. The test split is read once, at the "
                "end.",
                {"data": {"source": self.data, **columns}},
            ),
            (
                "It is fine-tuned on the data first. A model that was trained for this task "
                "already is used as it is with `fine_tuned: true`."
                if trained
                else "It is used as it is. `fine_tuned: false` trains it on the data first.",
                {
                    "teacher": {
                        "model": self.teacher,
                        **({} if trained else {"fine_tuned": True}),
                        **({"training": {"learning_rate": rates[0]}} if trained else {}),
                    }
                },
            ),
            (
                "A baseline with the same weights at the start and the same settings is trained "
                "without the teacher, for comparison.",
                {"student": student},
            ),
        ]
        if self.row.objective is None:
            rows = [
                {"name": "hard_labels", "weight": 0.5},
                {"name": "forward_kl", "weight": 0.5, "temperature": 2.0},
            ]
        else:
            rows = self.row.objective
        blocks += [
            (
                "What the student learns; all objectives: hf_distill/objectives/README.md.",
                {"objective": rows},
            ),
            (
                "Any argument of transformers' TrainingArguments. The first epochs show whether "
                "the learning rate fits.",
                {
                    "training": {
                        "learning_rate": rates[1],
                        "num_train_epochs": 3,
                        "warmup_steps": 0.1,
                        "per_device_train_batch_size": 16,
                        "per_device_eval_batch_size": 32,
                    }
                },
            ),
            (
                "More seeds give intervals: `seeds: [0, 1, 2]`. To publish: `push_to_hub: true` "
                "and `hub_model_id: namespace/name`.",
                {"seed": 0},
            ),
        ]
        return "\n".join(f"{_comment(told)}{to_yaml(values)}" for told, values in blocks)

    def _head(self) -> str:
        metrics = ", ".join(self.row.metrics.get(CLASS) or next(iter(self.row.metrics.values())))
        return (
            f"{self.task}: {self.teacher} teaches "
            f"{self.student or f'{self.layers} of its layers'}. Metrics: {metrics}."
        )

    def _columns(self) -> str:
        return ", ".join(f"`{key}_column`" for key in columns_of(self.row)) or "see language models"


def columns_of(row: RecipeTask) -> list[str]:
    """Keys of a task's columns, without ``_column``: ``text``, ``label``."""
    keys = [*row.columns, *(["label_column"] if row.labelled else [])]
    return [key.removesuffix("_column") for key in keys]


def _comment(text: str) -> str:
    return "".join(f"# {line}\n" for line in textwrap.wrap(text, WIDTH))
