"""Texts and completions become tokens and labels; what teaches nothing is dropped and counted."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from language_models import CHAT, CHATML, MARKED, learned, rows, tokenizer

from hf_distill.data.language import tokenize

END = "<|im_end|>"
FINAL = f"\n\nThe answer: 4. {END}"


# ---- prompts and completions -------------------------------------------------------------------


@pytest.mark.parametrize("bos", [False, True])
def test_completions_are_learned_to_the_end_token(bos: bool) -> None:
    """A token on both sides of the border is none that the student ever writes after the prompt."""
    tok = tokenizer(bos=bos)
    data = [
        {"prompt": "What is 1 + 1?", "completion": " It is 2."},
        {"prompt": "What is 1 + 1? ", "completion": "It is 2."},
        {"prompt": "What is 1 + 1?", "completion": f" It is 2.{END}"},
        {"prompt": "What is 1 + 1?", "completion": ""},
        {"prompt": "", "completion": "It is 2."},
        {"prompt": "<|bos|>What is 1 + 1?", "completion": " It is 2."},
    ]
    found = rows(data, tok)
    first = (
        [f"It is 2.{END}"] if bos else [f"t is 2.{END}"]
    )  # else nothing predicts the first token
    expected = [[f" It is 2.{END}"], [f"It is 2.{END}"], [f" It is 2.{END}"], [END], first]
    assert [learned(row, tok) for row in found[:5]] == expected
    for row, given in zip(found, data, strict=True):
        prompt = tok(given["prompt"], add_special_tokens=not given["prompt"].startswith("<|bos|>"))
        assert row["input_ids"][: len(prompt["input_ids"])] == prompt["input_ids"]
        assert row["input_ids"].count(0) == (bos or given["prompt"].startswith("<|bos|>"))
    (row,) = rows(data[:1], tok, completion_only=False)
    assert row["labels"] == [-100, *row["input_ids"][1:]]


def test_completions_of_messages() -> None:
    """Answers in the prompt are given, not taught."""
    data = [{"prompt": CHAT[:4], "completion": CHAT[4:]}]
    for template in (CHATML, MARKED):
        (row,) = rows(data, tokenizer(template))
        assert learned(row) == [FINAL]
        (row,) = rows(data, tokenizer(template), completion_only=False)
        assert learned(row) == [f"It is 2.{END}", FINAL]


# ---- texts, lengths, rows that are dropped -----------------------------------------------------


def test_texts_end_with_the_end_token() -> None:
    """Packed texts without an end run into each other when the student writes."""
    tok = tokenizer(bos=True)
    (row,) = rows([{"story": "The cat sat."}], tok, text_column="story")
    assert row["input_ids"] == [0, *tok("The cat sat.", add_special_tokens=False)["input_ids"], 2]
    assert row["labels"] == [-100, *row["input_ids"][1:]]
    ending = tokenizer()
    ending.eos_token = None
    (row,) = rows([{"text": "The cat sat."}], ending)
    assert tok.decode(row["input_ids"]) == "The cat sat."


def test_cuts_and_drops_are_counted_once() -> None:
    """Rows that vanish in silence are found when the figures of two runs differ."""
    tok = tokenizer()
    data = [
        {"messages": CHAT[1:3]},
        {"messages": CHAT[1:2]},
        {"messages": [{"role": "user", "content": "What is " * 40}, CHAT[2]]},
        {"messages": []},
    ]
    with pytest.warns(UserWarning, match="They are dropped") as caught:
        found = tokenize(Dataset.from_list(data), tok, max_length=30)
    (warning,) = caught
    for words in ("Of 4 rows, 3 have", "2 are empty", "what 1 would", "max_length=30"):
        assert words in str(warning.message)
    assert [learned(dict(row)) for row in found] == [[f"It is 2.{END}"]]
    ids, labels = found[0]["input_ids"], found[0]["labels"]
    (short,) = rows(data[:1], tok, max_length=len(ids) - 3)
    assert (short["input_ids"], short["labels"]) == (ids[:-3], labels[:-3])
    with pytest.warns(UserWarning, match="said once") as caught:
        stream = list(tokenize(Dataset.from_list(data).to_iterable_dataset(), tok, max_length=30))
    assert len(caught) == 1
    assert stream == list(found)


def test_empty_texts_are_dropped() -> None:
    """An end token alone, a hundred thousand times, teaches to say nothing."""
    data = [{"text": text} for text in ("The cat", "", " \n", None)]
    with pytest.warns(UserWarning, match="Of 4 rows, 3 .* 3 are empty"):
        assert len(tokenize(Dataset.from_list(data), tokenizer())) == 1
    with pytest.raises(ValueError, match=r"Of 3 rows, 3 .*Check the columns"):
        tokenize(Dataset.from_list(data[1:]), tokenizer())


def test_processes_give_the_same(tmp_path: Any) -> None:
    """What cannot be sent to another process makes a day of one core of it."""
    data = Dataset.from_list([{"messages": CHAT}, {"messages": CHAT[1:3]}])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork, where threads are
        found = tokenize(data, tokenizer(), num_proc=2)
    assert list(found) == list(tokenize(data, tokenizer()))


# ---- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        ([{"messages": CHAT}], {"template": None}, ["chat template", "chat_template_kwargs"]),
        (
            [{"prompt": CHAT[:2], "completion": CHAT[2:3]}],
            {"template": None},
            ["chat template", "'completion' strings"],
        ),
        ([{"txt": "a"}], {}, ["['text']", "got ['txt']", "text_column"]),
        ([{"prompt": "a"}], {}, ["'completion'", "got ['prompt']"]),
        ([{"prompt": "a", "completion": CHAT[2:3]}], {}, ["both", "str and list"]),
        (
            [{"messages": [CHAT[1], {**CHAT[2], "weight": -1.0}]}],
            {},
            ["weight of a message", "-1.0"],
        ),
        (
            [{"messages": [CHAT[1], {**CHAT[2], "weight": 0.5}]}],
            {"assistant_only": False},
            ["assistant_only=False"],
        ),
    ],
)
def test_what_is_not_understood_is_refused(
    data: list[dict[str, Any]], options: dict[str, Any], words: list[str]
) -> None:
    """A column of the wrong name is found here, or in the student's answers."""
    options = {**options}
    tok = tokenizer(options.pop("template", CHATML))
    for given in (Dataset.from_list(data), Dataset.from_list(data).to_iterable_dataset()):
        with pytest.raises(ValueError) as error:
            list(tokenize(given, tok, **options))
        for word in words:
            assert word in str(error.value)


def test_other_containers_are_refused() -> None:
    """The error of a missing method names nothing that the user has written."""
    data = Dataset.from_list([{"text": "a"}])
    for given in (DatasetDict(train=data), [{"text": "a"}]):
        with pytest.raises(TypeError, match=r"Expected a datasets\.Dataset .*data\['train'\]"):
            tokenize(given, tokenizer())
    with pytest.raises(ValueError, match="empty one"):
        tokenize(data.select([]), tokenizer())


def test_weights_that_come_late_in_a_stream_are_refused() -> None:
    """Left out in silence, the bad answers of all later rows would be taught."""

    def stream() -> Any:
        yield {"messages": CHAT[1:3]}
        yield {"messages": [CHAT[1], {**CHAT[2], "weight": 0.5}]}

    rows = tokenize(IterableDataset.from_generator(stream), tokenizer())
    with pytest.raises(ValueError, match="first row"):
        list(rows)
