"""Keys of examples: the same content, and only the same, has the same key."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import CASES, collate
from tiny_trainers import data, models
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    BertConfig,
    BertModel,
    DataCollatorWithFlattening,
    PreTrainedTokenizerFast,
)

from hf_distill.data.candidates import CandidateCollator
from hf_distill.models.batches import Batch
from hf_distill.models.embedding import BiEncoder
from hf_distill.models.task_model import TaskModel
from hf_distill.teachers.cache.keys import (
    ExampleSlice,
    example_slices,
    model_fingerprint,
    text_fingerprint,
)

HEADS = sorted(set(CASES) - {"dual_encoder"})


def keys_of(name: str, batch: Batch, task_model: TaskModel | None = None) -> list[ExampleSlice]:
    task_model = TaskModel(models(name)[1]) if task_model is None else task_model
    batch = task_model.task.share(batch, task_model.model)
    inputs = task_model.accepts - set(task_model.task.label_keys)
    assert task_model.task.axis is not None
    return example_slices(batch, task_model.items(batch), inputs, task_model.task.axis)


@pytest.mark.parametrize("name", HEADS)
def test_keys_do_not_depend_on_the_batch(name: str) -> None:
    """With padding or position in the key, the second epoch would find nothing of the first."""
    head, examples = TaskModel(models(name)[1]), data(name)
    alone = [keys_of(name, collate([e]), head)[0].key for e in examples]
    assert len(set(alone)) == len(examples)
    order = [3, 0, 7, 5, 1, 2, 6, 4]
    together = keys_of(name, collate([examples[i] for i in order]), head)
    assert [p.key for p in together] == [alone[i] for i in order]
    assert [p.row for p in together] == list(range(8))


@pytest.mark.parametrize("name", HEADS)
def test_every_input_is_in_the_key(name: str) -> None:
    """An input that is left out would give an example the outputs of another one."""
    head, example = TaskModel(models(name)[1]), data(name)[0]
    batch = head.task.share(collate([example]), head.model)
    plain = keys_of(name, batch, head)[0].key
    inputs = head.accepts - set(head.task.label_keys) - {"attention_mask", "position_ids"}
    changed = 0
    for key, value in batch.items():
        if key in inputs and not key.endswith("attention_mask"):
            other = value.clone()
            other.view(-1)[0] += 1
            assert keys_of(name, {**batch, key: other}, head)[0].key != plain
            changed += 1
    assert changed


def test_padding_on_the_left_and_other_integers() -> None:
    """Another collator would make the cache worthless."""
    ids = [[5, 6, 7], [8, 9, 10, 11, 12]]
    right = {
        "input_ids": torch.tensor([[5, 6, 7, 0, 0], ids[1]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1] * 5]),
        "labels": torch.tensor([[5, 6, 7, -100, -100], ids[1]]),
    }
    left = {
        "input_ids": torch.tensor([[0, 0, 5, 6, 7], ids[1]], dtype=torch.int32),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1] * 5]).bool(),
        "labels": torch.tensor([[-100, -100, 5, 6, 7], ids[1]]),
    }
    one, other = (keys_of("causal_lm", batch) for batch in (right, left))
    assert [p.key for p in one] == [p.key for p in other]
    assert one[0].ranges["hidden"] == (0, 3)
    assert other[0].ranges["hidden"] == (2, 5)


def test_labels_say_which_items_and_nothing_else() -> None:
    """A cache of answers alone must not serve prompts; another label changes no output."""
    ids = torch.tensor([[5, 6, 7, 8]])
    mask = torch.ones_like(ids)
    every = keys_of("causal_lm", {"input_ids": ids, "attention_mask": mask, "labels": ids})
    answer = torch.tensor([[-100, -100, 7, 8]])
    part = keys_of("causal_lm", {"input_ids": ids, "attention_mask": mask, "labels": answer})
    none = keys_of("causal_lm", {"input_ids": ids, "attention_mask": mask})
    assert every[0].key == none[0].key != part[0].key
    other = torch.tensor([[-100, -100, 9, 9]])
    again = keys_of("causal_lm", {"input_ids": ids, "attention_mask": mask, "labels": other})
    assert again[0].key == part[0].key


def test_packed_texts_are_found_one_by_one() -> None:
    """Packing changes rows, not texts: a cache written without it serves it."""
    texts = [[5, 6, 7], [8, 9, 10, 11], [12, 13]]
    examples: list[dict[str, Any]] = [{"input_ids": t, "labels": list(t)} for t in texts]
    alone = [keys_of("causal_lm", collate([e]))[0].key for e in examples]
    packed = dict(DataCollatorWithFlattening(return_tensors="pt")(examples))
    assert packed["input_ids"].shape == (1, 9)
    found = keys_of("causal_lm", packed)
    assert [p.key for p in found] == alone
    assert [p.items for p in found] == [(0, 3), (3, 7), (7, 9)]


def test_repeated_rows_are_left_out() -> None:
    """The rows that fill the last batch of a distributed evaluation count for nothing."""
    name = "sequence_classification"
    head, batch = TaskModel(models(name)[1]), collate(data(name)[:3])
    rows = torch.tensor([True, False, True])
    found = example_slices(batch, head.items(batch, rows), head.accepts)
    assert [p.row for p in found] == [0, 2]


def test_fingerprints() -> None:
    """Changed weights under the same name would teach with the outputs of the old ones."""
    state = {"a": torch.zeros(2, 3), "b": torch.zeros((), dtype=torch.bfloat16)}
    same = {"b": torch.zeros((), dtype=torch.bfloat16), "a": torch.zeros(2, 3)}
    plain = model_fingerprint(state)
    assert model_fingerprint(same) == plain
    assert model_fingerprint({**state, "a": torch.zeros(3, 2)}) != plain
    assert (
        model_fingerprint({**state, "a": torch.zeros(2, 3).index_fill(1, torch.tensor(0), 1)})
        != plain
    )
    assert model_fingerprint({**state, "b": torch.zeros(())}) != plain
    assert text_fingerprint(["ab", "c"]) != text_fingerprint(["a", "bc"])


def test_candidates_are_padded_by_themselves() -> None:
    """Passages are padded to the longest of a batch: their keys would be found in it alone."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    encoder = BertModel(BertConfig(vocab_size=30, num_hidden_layers=1, **sizes))
    head = TaskModel(BiEncoder(encoder), role="student")
    words = {"[PAD]": 0, **{f"w{i}": i for i in range(1, 30)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words)), pad_token="[PAD]"
    )
    rows = [
        {
            "input_ids": [*range(1, 3 + n)],
            "candidate_input_ids": [[*range(2, 4 + 3 * n)], [*range(9, 11 + n)]],
        }
        for n in range(4)
    ]
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = CandidateCollator(tokenizer)
        alone = [keys_of("", batch([row]), head)[0].key for row in rows]
        assert [p.key for p in keys_of("", batch(rows), head)] == alone
        assert len(set(alone)) == 4
    other = {**rows[0], "candidate_input_ids": rows[0]["candidate_input_ids"][::-1]}
    assert keys_of("", batch([other]), head)[0].key != alone[0], "the order is that of the scores"
