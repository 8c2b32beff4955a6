"""Loaded data of a recipe: checks, missing splits, names of classes, and their sizes in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from datasets import Dataset, DatasetDict

from hf_distill.recipe import bad_data, label_names, language, sources
from hf_distill.recipe.data_section import Data
from hf_distill.recipe.findings import Findings
from hf_distill.recipe.schema import Recipe
from hf_distill.recipe.splitting import divided
from hf_distill.recipe.tasks import recipe_task

MOST_CLASSES = 20
"""Largest number of classes whose counts are printed."""


def inputs_of(recipe: Recipe) -> list[str]:
    """The input columns of the recipe's task."""
    keys = recipe_task(recipe).columns
    return [name for key in keys if (name := getattr(recipe.data, key)) is not None]


def _compared(recipe: Recipe) -> list[str]:
    """The columns by which examples are equal."""
    return inputs_of(recipe) or [recipe.data.text_column, *language.COLUMNS]


def checked(loaded: DatasetDict, recipe: Recipe) -> tuple[DatasetDict, Data, Findings]:
    """The loaded splits without bad examples, and those that the source lacks.

    Returns:
        The splits, the section of the recipe with their names, and what is to be printed.

    Raises:
        RecipeError: bad examples that are not to be left out.
    """
    data, inputs = recipe.data, inputs_of(recipe)
    findings, labelled = Findings(data.skip_bad), recipe_task(recipe).labelled
    loaded = bad_data.check_tables(loaded, data, inputs, labelled, findings)
    if bad_data.uses_all(data):  # with the rows of the source
        loaded = bad_data.check_media(loaded, inputs, findings)
    if labelled:
        loaded = label_names.named(loaded, data, findings)
    local = sources.is_local(data.source, recipe.file.parent)
    loaded, data, lines = divided(loaded, data, _compared(recipe), local)
    findings.lines += lines
    return loaded, data, findings


def check_used(found: DatasetDict, recipe: Recipe, train: str, findings: Findings) -> DatasetDict:
    """The splits that are used, with readable files; ``train`` is the larger training split.

    Raises:
        RecipeError: files that cannot be read and are not to be left out.
    """
    if not bad_data.uses_all(recipe.data):  # of a large set the random subset alone is read
        found = bad_data.check_media(found, inputs_of(recipe), findings)
    findings.add(bad_data.leaks(found, train, _compared(recipe)))
    return found


def size_of(split: str, dataset: Dataset, names: Sequence[str]) -> str:
    """A line with the size of a split, and the counts of the named classes."""
    counts = ""
    if names:
        found = Counter(dataset["labels"][:])
        shown = [f"{name} {found[place]:,}" for place, name in enumerate(names[:MOST_CLASSES])]
        rest = len(names) - len(shown)
        counts = f" ({', '.join(shown)}{f' and {rest} classes more' if rest else ''})"
    return f"{split}: {len(dataset):,} examples{counts}"
