"""Texts made of texts: summaries, translations, pronunciations."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, PreTrainedModel

from hf_distill.data.language import check_context
from hf_distill.models.tasks import TASKS
from hf_distill.recipe import language
from hf_distill.recipe.data_section import Data
from hf_distill.recipe.errors import RecipeError, refusing
from hf_distill.recipe.labels import NONE
from hf_distill.recipe.tasks.base import RecipeTask, Split
from hf_distill.recipe.tasks.generating import (
    NEW_TOKENS,
    check_decoder,
    check_generation,
    configure,
    generated_texts,
)


def with_targets(
    dataset: Dataset, data: Data, tokenizer: Any, keep: Collection[str] = ()
) -> Dataset:
    """Tokens of each text behind the prefix, and of its target as labels.

    Raises:
        RecipeError: settings of generation that do not work.
    """
    check_generation(data)
    length, new = language.length_of(data, tokenizer), data.max_target_length or NEW_TOKENS

    def tokenize(batch: Mapping[str, list[str]]) -> dict[str, Any]:
        texts = [data.prefix + text for text in batch[data.text_column]]
        inputs = tokenizer(texts, truncation=True, max_length=length)
        targets = tokenizer(text_target=batch[data.target_column], truncation=True, max_length=new)
        kept = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        return {**kept, "labels": targets["input_ids"]}

    others = [name for name in dataset.column_names if name not in keep]
    return dataset.map(tokenize, batched=True, remove_columns=others, desc="Tokenizing")


def written(model: PreTrainedModel, split: Split, args: Any) -> tuple[list[str], list[str]]:
    """Generated texts and targets of a split."""
    texts = generated_texts(
        model, split, args, DataCollatorForSeq2Seq, lambda row: len(row["input_ids"])
    )
    return texts, split.raw[split.data.target_column][:]


def check_fit(model: PreTrainedModel, who: str, data: Data, tokenizer: Any) -> None:
    """Check that a model can read the texts and generate the targets.

    Raises:
        RecipeError: it cannot.
    """
    new = data.max_target_length or NEW_TOKENS
    check_decoder(model, who, new, tokenizer(text_target="a")["input_ids"][-1:])
    with refusing("`data`", ValueError):
        check_context(model.config, language.length_of(data, tokenizer), who)
    table: Any = model.get_input_embeddings()
    held = table.weight.shape[0]
    if len(tokenizer) > held:
        raise RecipeError(
            f"{who}: expected a tokenizer of at most {held} tokens, the rows of its embeddings, "
            f"got {len(tokenizer)}. Use the model's own tokenizer, or a larger `vocab_size`."
        )


TEXT_TO_TEXT = RecipeTask(
    TASKS["seq2seq_lm"],
    "AutoTokenizer",
    ("text_column", "target_column"),
    with_targets,
    DataCollatorForSeq2Seq,
    metrics={NONE: ("chrf", "rougeL", "exact_match")},
    generate=written,
    watch="perplexity",
    check=check_fit,
    configure=configure,
    prompt=lambda row, data: data.prefix + row[data.text_column],
    reads_raw=False,
)
