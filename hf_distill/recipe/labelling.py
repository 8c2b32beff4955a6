"""Labels from a chat endpoint in a recipe: the stage, and the columns that it adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetDict

from hf_distill.recipe.api_section import ApiSection
from hf_distill.recipe.errors import RecipeError, told
from hf_distill.recipe.kept import on_main
from hf_distill.recipe.stages import Stage
from hf_distill.teachers import ColumnTeacher, Teacher
from hf_distill.teachers.api import BudgetError, EndpointError, annotate
from hf_distill.teachers.api.annotate import PROBABILITIES

ANNOTATIONS = "annotations"
SPLITS = ("train", "validation", "test")
SMOOTHING = 1e-3
"""Share of the probability that is spread over all classes: a class without votes would have an
infinite divergence, and no temperature would soften it."""
ON_CARD = ("examples", "readable", "agreement", "agreement_of_all")


def teacher_of(section: ApiSection, labels: Sequence[str]) -> Teacher:
    """Teacher that reads the annotated column."""
    model = section.endpoint().describe()["model"]
    return ColumnTeacher(probabilities=PROBABILITIES, labels=labels, name=model)


def label_splits(
    section: ApiSection, raw: DatasetDict, labels: Sequence[str], stage: Stage, progress: bool
) -> dict[str, Any]:
    """Annotate all splits, on the main process; every process calls this.

    Returns:
        Split -> ``probabilities`` (None where an answer is not readable) and ``report``.

    Raises:
        RecipeError: the budget is used up, the endpoint does not answer, or its answers cannot be
            read. What was answered is kept.
    """
    found: dict[str, Any] = {}

    def work() -> None:
        try:
            for split in SPLITS:
                done = annotate(
                    raw[split],
                    section.endpoint(),
                    section.prompt,
                    folder=stage.folder,
                    labels=section.words(labels),
                    samples=section.samples,
                    rationale=section.rationale,
                    parameters=section.parameters,
                    budget=section.limits(),
                    gold="labels",
                    min_mass=section.min_mass,
                    report=f"report-{split}.json",
                    progress=progress,
                )
                values = done.dataset[PROBABILITIES][:]
                found[split] = {"probabilities": values, "report": done.report}
        except (BudgetError, EndpointError, ValueError, OSError) as error:
            raise RecipeError(f"`teacher.api`: {told(error)}") from error

    on_main(work)
    return found


def with_probabilities(
    data: Mapping[str, Dataset], found: Mapping[str, Any] | None, classes: int
) -> dict[str, Dataset]:
    """The splits with the annotated column, smoothed by `SMOOTHING`.

    Examples without a readable answer are left out of the training split; in the other splits
    their probabilities are equal.

    Args:
        data: The splits.
        found: As `label_splits` returns it; None: before the annotation.
        classes: Number of classes.
    """
    even, added = [1.0 / classes] * classes, dict[str, Dataset]()
    for split, rows in data.items():
        values = [None] * len(rows) if found is None else found[split]["probabilities"]
        if found is not None and split == "train":
            kept = [index for index, value in enumerate(values) if value is not None]
            rows, values = rows.select(kept), [values[index] for index in kept]
        values = [even if value is None else _smooth(value) for value in values]
        added[split] = rows.remove_columns(
            [PROBABILITIES] if PROBABILITIES in rows.column_names else []
        ).add_column(PROBABILITIES, values)
    if found is not None and not len(added["train"]):
        raise RecipeError(
            "`teacher.api`: expected readable answers for the training split, got none. See "
            f"report-train.json in the folder {ANNOTATIONS}, and correct `teacher.api.prompt`."
        )
    return added


def _smooth(values: Sequence[float]) -> list[float]:
    return [(1 - SMOOTHING) * value + SMOOTHING / len(values) for value in values]


def summary(section: ApiSection, found: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of the annotations for the report and the card."""
    reports = {split: found[split]["report"] for split in SPLITS}
    last = reports[SPLITS[-1]]
    return {
        **section.endpoint().describe(),
        "samples": section.samples,
        "splits": {
            split: {key: report[key] for key in ON_CARD if key in report}
            for split, report in reports.items()
        },
        "tokens": last["prompt_tokens"] + last["answer_tokens"],
        **({"cost": last["cost"]} if "cost" in last else {}),
    }


def sentences(facts: Mapping[str, Any]) -> list[str]:
    """Limitations of a student of a chat endpoint, for its card."""
    train, test = facts["splits"]["train"], facts["splits"]["test"]
    terms = facts.get("terms")
    how = "`top_logprobs`" if facts["samples"] is None else f"{facts['samples']} sampled answers"
    return [
        f"The labels of the teacher were obtained from {facts['model']}, run by "
        f"{facts['provider']}, by {how} per example. "
        + (
            f"Its terms for the use of answers: {terms}"
            if terms
            else "The provider's terms may restrict training on its answers: check them."
        ),
        f"{train['examples'] - train['readable']} of {train['examples']} training examples had no "
        "readable answer and were left out; in the test split "
        f"{test['examples'] - test['readable']} of {test['examples']} count as undecided. The "
        f"readable training answers agree with the given labels for "
        f"{100 * (train.get('agreement') or 0):.1f} %.",
    ]
