"""Masks of recipes of masked language models: how many, which, and when they are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_text_tasks
from tiny_text_tasks import ROWS, splits

from hf_distill.recipe import RecipeError, Run, load_recipe

pytestmark = pytest.mark.xdist_group("recipes")


def prepared(path: Path, *overrides: tuple[str, str]) -> Run:
    return Run(load_recipe(path, overrides), lambda line: None)


def masks_of(rows: Any) -> list[list[int]]:
    return [[int(label) for label in row["labels"]] for row in rows]


def test_masks_of_training_change_and_those_of_the_test_do_not(tmp_path: Path) -> None:
    """Perplexities of other masks for each model, or one and the same mask in all epochs."""
    row = ROWS["masked_lm"]
    first = prepared(tiny_text_tasks.recipe(row, tmp_path / "a"))
    second = prepared(tiny_text_tasks.recipe(row, tmp_path / "b"))
    other = prepared(tiny_text_tasks.recipe(row, tmp_path / "c"), ("data.masking.seed", "1"))
    assert masks_of(first.data["test"]) == masks_of(first.data["test"])
    assert masks_of(first.data["test"]) == masks_of(second.data["test"])
    assert masks_of(first.data["test"]) != masks_of(other.data["test"])
    assert masks_of(first.data["train"]) != masks_of(first.data["train"])
    prints = [run.stages["student/seed-0"].fingerprint for run in (first, other)]
    assert prints[0] != prints[1], "a finished training of other masks would be taken"


@pytest.mark.parametrize("whole", [True, False])
def test_masked_tokens_are_as_many_as_asked_for(tmp_path: Path, whole: bool) -> None:
    """Padding, separators or parts of words masked; or hardly anything."""
    options = {"whole_word": whole, "probability": 0.4}
    path = tiny_text_tasks.recipe(ROWS["masked_lm"], tmp_path, data={"masking": options})
    run = prepared(path, ("data.masking.fixed", "true"))
    raw, tokenizer = splits(ROWS["masked_lm"], tmp_path)["train"], run.processor
    chosen, total = 0, 0
    for text, row in zip(raw["text"], run.data["train"], strict=True):
        tokens = tokenizer(text, truncation=True)
        words = tokens.word_ids()
        seen = [label != -100 for label in row["labels"]]
        for at, (label, token) in enumerate(zip(row["labels"], tokens["input_ids"], strict=True)):
            assert label in (-100, token)
            assert not (seen[at] and words[at] is None), "a special token is masked"
            assert seen[at] or row["input_ids"][at] == token
        of_words = [{s for s, w in zip(seen, words, strict=True) if w == n} for n in set(words)]
        if whole:
            assert all(len(found) == 1 for found in of_words), "a part of a word is masked"
            inputs = [i for i, s in zip(row["input_ids"], seen, strict=True) if s]
            assert set(inputs) <= {tokenizer.mask_token_id}
        chosen += sum(seen)
        total += sum(word is not None for word in words)
    assert 0.3 < chosen / total < 0.5


def test_packed_texts_are_the_same_tokens(tmp_path: Path) -> None:
    """Text lost or repeated between the texts and the sequences."""
    row = ROWS["packed_masked_lm"]
    run = prepared(tiny_text_tasks.recipe(row, tmp_path))
    texts = splits(row, tmp_path)["train"]["text"]
    whole = [token for text in texts for token in run.processor(text)["input_ids"]]
    found = [
        label if label != -100 else token
        for one in run.data["train"]
        for label, token in zip(one["labels"], one["input_ids"], strict=True)
    ]
    assert found == whole[: len(found)]
    assert len(whole) - len(found) < row.longest


def test_outputs_of_masks_that_change_are_not_cached(tmp_path: Path) -> None:
    """A cache in which no example of the second epoch is found, after the teacher's hour."""
    path = tiny_text_tasks.recipe(ROWS["masked_lm"], tmp_path, teacher={"cache": {}})
    with pytest.raises(RecipeError, match=r"Set `data.masking.fixed: true`"):
        prepared(path).check()
    prepared(path, ("data.masking.fixed", "true")).check()
