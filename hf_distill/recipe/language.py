"""Language models in a recipe: data, checks and samples."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel

from hf_distill.data.language import check_context, pack, tokenize
from hf_distill.recipe.data_section import Data
from hf_distill.recipe.errors import RecipeError, refusing

COLUMNS = ("messages", "prompt", "completion", "tools")
"""Columns that may take the place of a plain text."""
SAMPLES, WORDS = 3, 12
"""Number of samples on a card, and words of a text used as a prompt."""


def length_of(data: Data, tokenizer: Any) -> int:
    """Maximum length of texts in tokens; a `RecipeError` if nothing sets it."""
    length: int = data.max_length or tokenizer.model_max_length
    if length > 1_000_000:
        raise RecipeError(
            "`data.max_length` is missing: this tokenizer does not say how long a text may be. "
            "Give the number of tokens at which texts are cut."
        )
    return length


def columns_of(dataset: Dataset, split: str, data: Data) -> list[str]:
    """The columns that are read; a `RecipeError` if there are none."""
    known = dataset.column_names
    if "messages" in known or {"prompt", "completion"} <= set(known):
        return [name for name in COLUMNS if name in known]
    if data.text_column in known:
        return [data.text_column]
    raise RecipeError(
        f"`data`: split {split!r} of {data.source} has neither a column `messages`, nor `prompt` "
        f"and `completion`, nor {data.text_column!r}, but {known}. Name the column of plain texts "
        "with `data.text_column`."
    )


def tokenized(dataset: Dataset, data: Data, tokenizer: Any, keep: Collection[str] = ()) -> Any:
    """Tokens and labels beside the columns to keep, packed if the recipe sets `packing`."""
    length = length_of(data, tokenizer)
    with refusing("`data`", TypeError, ValueError):
        rows: Any = tokenize(
            dataset,
            tokenizer,
            max_length=None if data.packing == "wrapped" else length,
            text_column=data.text_column,
            assistant_only=data.assistant_only,
            completion_only=data.completion_only,
            chat_template_kwargs=data.chat_template_kwargs,
            keep=tuple(keep),
        )
        return rows if data.packing is None else pack(rows, length, strategy=data.packing)


def check_fit(model: PreTrainedModel, who: str, data: Data, tokenizer: Any) -> None:
    """Raise RecipeError for a model whose context is shorter than the texts may be."""
    with refusing("`data`", ValueError):
        check_context(model.config, length_of(data, tokenizer), who)


def merge(base: PreTrainedModel, folder: Path) -> None:
    """Replace the adapter in a folder by the untrained ``base`` with the adapter merged into it."""
    merged: Any = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
    merged.save_pretrained(folder)
    for path in folder.glob("adapter_*"):
        path.unlink()


def prompt_of(row: Mapping[str, Any], data: Data) -> Any:
    """Prompt of an example: its own, the messages before the last answer, or its first words."""
    if row.get("messages"):
        messages = list(row["messages"])
        return messages[:-1] if messages[-1]["role"] == "assistant" else messages
    if "prompt" in row:
        return row["prompt"]
    return " ".join(row[data.text_column].split()[:WORDS])
