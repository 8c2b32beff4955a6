"""Section of a recipe for a teacher whose outputs are columns of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_distill.recipe.errors import RecipeError, refusing, shown
from hf_distill.teachers import ColumnTeacher
from hf_distill.utils.suggest import did_you_mean

SCORES = ("logits", "log_probs", "probabilities", "votes")
FORMS = (*SCORES, "top_k", "embedding", "labels")
"""Keys on which a student depends."""


@dataclass(frozen=True)
class ColumnsSection:
    """Outputs of a teacher in columns of all splits: one of the first four or ``top_k``, and
    ``embedding``.

    Args:
        logits: Column of logits.
        log_probs: Column of log-probabilities.
        probabilities: Column of probabilities.
        votes: Column of votes per class.
        top_k: Columns of class ids and of their log-probabilities.
        embedding: Column of vectors.
        labels: Names of the classes in the order of the columns; default: the order of the data.
        name: Source of the columns, for the card.
    """

    logits: str | None = None
    log_probs: str | None = None
    probabilities: str | None = None
    votes: str | None = None
    top_k: list[str] | None = None
    embedding: str | None = None
    labels: list[str] | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None and len(self.top_k) != 2:
            raise RecipeError(
                "`teacher.columns.top_k`: expected two columns, of class ids and of their "
                f"log-probabilities, got {shown(self.top_k)}."
            )
        with refusing("`teacher.columns`", ValueError):
            self.teacher(self.labels or ["any"])

    def teacher(self, labels: Sequence[str]) -> ColumnTeacher:
        """The teacher, for data with these classes."""
        given: dict[str, Any] = {key: getattr(self, key) for key in SCORES}
        kind: Any = ColumnTeacher
        teacher: ColumnTeacher = kind(
            **given,
            top_k=None if self.top_k is None else tuple(self.top_k),
            embedding=self.embedding,
            labels=None if self.form is None else self.labels or labels,
            name=self.name,
        )
        return teacher

    @property
    def form(self) -> str | None:
        """The kind of scores; None: embeddings alone."""
        return next((key for key in (*SCORES, "top_k") if getattr(self, key) is not None), None)

    @property
    def names(self) -> list[str]:
        """The columns that are read."""
        single = [getattr(self, key) for key in (*SCORES, "embedding")]
        return [*(name for name in single if name is not None), *(self.top_k or ())]

    def check(self, labels: Sequence[str]) -> None:
        """Check the names of the classes.

        Raises:
            RecipeError: a class of the data is missing.
        """
        given = self.labels if self.labels is not None else labels
        for name in labels:
            if name not in given:
                hint = did_you_mean(name, given, 0.5)
                raise RecipeError(
                    f"`teacher.columns.labels`: expected all classes of the data "
                    f"({', '.join(map(repr, labels))}), got {shown(list(given))} without "
                    f"{name!r}.{hint}"
                )

    def __str__(self) -> str:
        """The columns in words, for the card."""
        forms = [form for form in (self.form, "embedding" if self.embedding else None) if form]
        kinds = " and ".join(
            {"log_probs": "log-probabilities", "top_k": "likeliest classes"}.get(form, form)
            for form in forms
        ).replace("embedding", "embeddings")
        return f"read from columns of the data: {', '.join(self.names)} ({kinds})"
