"""Prompts out of batches, completions of prompts, and data sets and buffers of them."""

from __future__ import annotations

import copy
import random
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from on_policy_runs import END, LONGEST, trainer
from scipy import stats
from tiny_models import CASES, VOCAB, collate
from tiny_trainers import log_softmax
from torch import Tensor, nn

from hf_distill import (
    CachedTeacher,
    ModelGenerator,
    ModelTeacher,
    Sampling,
    generate_dataset,
    write_cache,
)
from hf_distill.models.task_model import TaskModel
from hf_distill.training.on_policy.dataset import SETTINGS
from hf_distill.training.on_policy.prompts import Prompts, ReplayBuffer, longest_prompt

PROMPT = [3, 4, 5]


def student(head: str = "causal_lm") -> Any:
    return CASES[head].models()[0].eval()


def rows(count: int = 8, head: str = "causal_lm") -> datasets.Dataset:
    return datasets.Dataset.from_list(CASES[head].data(count))


def next_token(model: nn.Module, ids: list[int]) -> np.ndarray:
    """Logits of what comes after some tokens."""
    with torch.no_grad():
        return np.asarray(model(torch.tensor([ids])).logits[0, -1])


# ---- sampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_samples_follow_the_students_distribution(temperature: float) -> None:
    """What a model's own generation config says (top_k, a temperature) would narrow the texts, and
    training on them would not be on-policy."""
    model = student()
    model.lm_head.weight.data.mul_(8)
    model.generation_config.update(do_sample=True, top_k=3, top_p=0.5, temperature=0.1)
    draws = 4000
    texts = ModelGenerator(model, Sampling(1, temperature))([PROMPT] * draws, 7)
    assert all(len(text) == 1 for text in texts)
    found = np.bincount([text[0] for text in texts], minlength=VOCAB)
    logits = next_token(model, PROMPT)
    assert p_value(found, log_softmax(logits / temperature)) > 1e-4
    assert p_value(found, log_softmax(logits / 0.8)) < 1e-4


def p_value(found: np.ndarray, log_probs: np.ndarray) -> float:
    """Of the chi-square test; the rare tokens, expected less than 5 times, are one."""
    expected = found.sum() * np.exp(log_probs)
    often = expected >= 5
    assert 5 < often.sum() < len(found)
    observed, wanted = (np.append(x[often], x[~often].sum()) for x in (found, expected))
    return float(stats.chisquare(observed, wanted).pvalue)


def test_the_likeliest_text_is_the_argmax_token_by_token() -> None:
    """Left padding would shift the positions, or the prompt be read in another order: each prompt
    must be completed as if it were alone."""
    model = student()
    prompts = [row["input_ids"][:n] for n, row in enumerate(CASES["causal_lm"].data(), start=1)]
    found = ModelGenerator(model, Sampling(LONGEST, 0.0), batch_size=3)(prompts, 0)
    for prompt, text in zip(prompts, found, strict=True):
        expected: list[int] = []
        while len(expected) < LONGEST and END not in expected:
            expected.append(int(next_token(model, prompt + expected).argmax()))
        assert text == expected


def test_an_encoder_decoder_completes_what_its_encoder_reads() -> None:
    """The start token of the decoder would be learned as the first token of the text."""
    model = student("seq2seq_lm")
    prompts = [row["input_ids"] for row in CASES["seq2seq_lm"].data(3)]
    found = ModelGenerator(model, Sampling(4, 0.0))(prompts, 0)
    for prompt, text in zip(prompts, found, strict=True):
        decoded = [model.config.decoder_start_token_id]
        while len(decoded) < 5 and model.config.eos_token_id not in decoded[1:]:
            inputs = {"input_ids": torch.tensor([prompt])}
            with torch.no_grad():
                logits = model(**inputs, decoder_input_ids=torch.tensor([decoded])).logits
            decoded.append(int(logits[0, -1].argmax()))
        assert text == decoded[1:]


def test_what_follows_the_end_is_cut() -> None:
    """The padding of texts that end earlier would be learned."""
    model = student()
    texts = ModelGenerator(model, Sampling(20, 2.0))([PROMPT] * 50, 1)
    ended = [text for text in texts if END in text]
    assert ended
    assert all(text.index(END) == len(text) - 1 for text in ended)
    assert all(len(text) == 20 for text in texts if END not in text)


def test_the_tokenizers_end_ends_a_text_too() -> None:
    """A base model's config knows no end of turn: its texts would go on into the next turn."""

    class Tokenizer:
        pad_token_id, eos_token_id = 0, 9

    model = student()
    texts = ModelGenerator(model, Sampling(20, 2.0), Tokenizer())([PROMPT] * 50, 1)
    assert {text[-1] for text in texts if len(text) < 20} == {END, 9}
    given = Sampling(20, 2.0, others={"eos_token_id": [7]})
    texts = ModelGenerator(model, given, Tokenizer())([PROMPT] * 50, 1)
    assert {text[-1] for text in texts if len(text) < 20} == {7}


def test_padding_is_a_token_of_the_model() -> None:
    """A tokenizer without a padding token, and an end token of a vocabulary that was cut: the
    embedding would end with an index error."""

    class Tokenizer:
        pad_token_id, eos_token_id = None, VOCAB + 7

    model = student()
    model.generation_config.update(pad_token_id=VOCAB, eos_token_id=[VOCAB + 10, 9])
    generator = ModelGenerator(model, Sampling(LONGEST, 0.0), Tokenizer())
    assert generator.padding == 9
    assert generator([PROMPT, PROMPT[:1]], 0)[1] == generator([PROMPT[:1]], 0)[0]
    model.generation_config.update(pad_token_id=None, eos_token_id=None)
    assert ModelGenerator(model, Sampling(LONGEST)).padding == 0


def test_a_seed_gives_its_texts_and_no_state_moves() -> None:
    """Resuming would give other texts; dropout would be drawn from another place; modules that are
    frozen in eval mode would train."""
    model = student().train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    generator = ModelGenerator(model, Sampling(LONGEST))
    first, again, other = (generator([PROMPT] * 8, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


# ---- prompts -------------------------------------------------------------------------------------


def tokens(*lists: list[int]) -> Tensor:
    return torch.tensor(lists)


RIGHT = {
    "input_ids": tokens([5, 6, 7, 8, 0], [9, 10, 11, 12, 13]),
    "attention_mask": tokens([1, 1, 1, 1, 0], [1, 1, 1, 1, 1]),
    "labels": tokens([-100, -100, 7, 8, -100], [-100, -100, -100, 12, 13]),
}
LEFT = {
    "input_ids": tokens([0, 5, 6, 7, 8], [9, 10, 11, 12, 13]),
    "attention_mask": tokens([0, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
    "labels": tokens([-100, -100, -100, 7, 8], [-100, -100, -100, 12, 13]),
}


@pytest.mark.parametrize(
    ("batch", "options", "expected"),
    [
        (RIGHT, {}, [[5, 6], [9, 10, 11]]),
        (LEFT, {}, [[5, 6], [9, 10, 11]]),
        (RIGHT, {"length": 1}, [[5], [9]]),
        (RIGHT, {"length": 9}, [[5, 6, 7, 8], [9, 10, 11, 12, 13]]),
        (RIGHT, {"longest": 2}, [[5, 6], [10, 11]]),
        # all is learned: the first token cannot be
        ({"input_ids": tokens([5, 6, 7]), "labels": tokens([5, 6, 7])}, {}, [[5]]),
        ({"input_ids": tokens([5, 6, 7])}, {}, [[5]]),
        # nothing is: prompts alone
        ({"input_ids": tokens([5, 6, 7]), "labels": tokens([-100] * 3)}, {}, [[5, 6, 7]]),
        # shifted by the collator
        ({"input_ids": tokens([5, 6, 7]), "shift_labels": tokens([-100, 7, -100])}, {}, [[5, 6]]),
        # no token at all
        (
            {"input_ids": tokens([0, 0]), "attention_mask": tokens([0, 0])},
            {"start": 1},
            [[1]],
        ),
        # packed, and padded at the end as LanguageCollator does
        (
            {
                "input_ids": tokens([5, 6, 7, 8, 9, 10, 0, 0]),
                "position_ids": tokens([0, 1, 2, 0, 1, 2, 0, 0]),
                "labels": tokens([-100, 6, 7, -100, -100, 10, -100, -100]),
            },
            {},
            [[5], [8, 9]],
        ),
    ],
)
def test_a_prompt_is_what_is_before_the_first_learned_token(
    batch: dict[str, Tensor], options: dict[str, Any], expected: list[list[int]]
) -> None:
    """The student would be shown a part of the answer, or padding, or be asked half a question."""
    assert Prompts(TaskModel(student()), **options).of(batch) == expected


def test_a_row_without_tokens_is_told() -> None:
    """An empty prompt is an index error somewhere in `generate`."""
    batch = {"input_ids": tokens([0, 0]), "attention_mask": tokens([0, 0])}
    with pytest.raises(ValueError, match="bos_token"):
        Prompts(TaskModel(student())).of(batch)


def test_prompt_and_completion_fit_into_both_contexts() -> None:
    """Learned positions (GPT-2) end with an index error, others with nonsense."""
    ours, theirs = (CASES["causal_lm"].config() for _ in range(2))
    theirs.max_position_embeddings = 24
    assert longest_prompt(10, [ours, theirs]) == 14
    assert longest_prompt(10, [CASES["seq2seq_lm"].config()]) is None


# ---- the buffer ----------------------------------------------------------------------------------


def test_the_buffer_keeps_the_newest_and_comes_back(tmp_path: Path) -> None:
    """A resumed run would draw other texts, or an empty prompt or completion be lost."""
    buffer = ReplayBuffer(4)
    pairs = [([n, n + 1], [n] * n) for n in range(6)]
    buffer.add(pairs[:3])
    assert not buffer.full
    buffer.add(pairs[3:])
    assert buffer.full
    once = buffer.draw(4, np.random.default_rng(0))
    assert sorted(once) == pairs[2:]
    assert len(buffer.draw(9, np.random.default_rng(0))) == 9
    buffer.add([([1], [])])
    buffer.save(tmp_path / "buffer.safetensors")
    other = ReplayBuffer(4)
    other.load(tmp_path / "buffer.safetensors")
    for seed in range(5):
        assert other.draw(3, np.random.default_rng(seed)) == buffer.draw(
            3, np.random.default_rng(seed)
        )


# ---- data sets that a teacher wrote --------------------------------------------------------------


class Silent:
    """In place of ``generate``: must not be called."""

    def __call__(self, *args: Any, **options: Any) -> None:
        raise AssertionError("generated again")


def test_a_teachers_texts_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was killed would lose hours of generation, or go on with other texts."""
    teacher = CASES["causal_lm"].models()[1]
    options: dict[str, Any] = {"sampling": Sampling(LONGEST), "shard_size": 3, "seed": 5}
    whole = generate_dataset(teacher, rows(), None, tmp_path / "whole", **options)
    assert len(whole) == 8
    for row, given in zip(whole, rows(), strict=True):
        first = next(i for i, label in enumerate(given["labels"]) if label != -100)
        assert row["input_ids"][:first] == given["input_ids"][:first]
        assert row["labels"] == [-100] * first + row["input_ids"][first:]
        assert 0 < len(row["input_ids"]) - first <= LONGEST

    killed = tmp_path / "killed"
    generate_dataset(teacher, rows(), None, killed, **options)
    (killed / "data" / "shard-00001.arrow").unlink()
    (killed / "data" / ".shard-00001.arrow.tmp").write_bytes(b"torn")
    assert generate_dataset(teacher, rows(), None, killed, **options)[:] == whole[:]

    begun = tmp_path / "begun"  # killed before its first file had its name
    begun.mkdir()
    (begun / f".{SETTINGS}.partial").write_bytes(b"torn")
    assert generate_dataset(teacher, rows(), None, begun, **options)[:] == whole[:]

    monkeypatch.setattr(type(teacher), "generate", Silent())
    assert generate_dataset(teacher, rows(), None, killed, **options)[:] == whole[:]
    changes: list[tuple[str, dict[str, Any]]] = [
        ("sampling", {"sampling": Sampling(LONGEST, 0.5)}),
        ("seed", {"seed": 6}),
        ("prompts", {"prompt_length": 1}),
        ("shard_size", {"shard_size": 4}),
    ]
    for what, change in changes:
        with pytest.raises(ValueError, match=f"something else: {what}"):
            generate_dataset(teacher, rows(), None, killed, **{**options, **change})
    other = copy.deepcopy(teacher)
    other.lm_head.weight.data.mul_(2)
    with pytest.raises(ValueError, match="something else: teacher"):
        generate_dataset(other, rows(), None, killed, **options)
    monkeypatch.undo()
    foreign = tmp_path / "foreign"
    generate_dataset(other, rows(), None, foreign, **options)
    shards = [folder / "data" / "shard-00001.arrow" for folder in (killed, foreign, tmp_path)]
    for source, to in ((1, 0), (0, 1)):  # another teacher's texts in the place of its own
        content = shards[to].read_bytes()
        shutil.copy(shards[source], shards[to])
        with pytest.raises(ValueError, match=r"those of others.*Move it away") as raised:
            generate_dataset((teacher, other)[to], rows(), None, shards[to].parents[1], **options)
        assert str(shards[to]) in str(raised.value)
        shards[to].unlink()
        generate_dataset((teacher, other)[to], rows(), None, shards[to].parents[1], **options)
        assert shards[to].read_bytes() == content
    shutil.copy(shards[0].with_name("shard-00000.arrow"), shards[0])  # other rows of its own
    with pytest.raises(ValueError, match=r"those of others"):
        generate_dataset(teacher, rows(), None, killed, **options)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("the only copy")
    with pytest.raises(ValueError, match="other files"):
        generate_dataset(teacher, rows(), None, tmp_path / "taken", **options)


def test_seq_kd_trains_on_the_teachers_texts(tmp_path: Path) -> None:
    """The run would train on the data's completions, or write them anew for every epoch.

    The texts are the likeliest, so that they can be told by hand, and their loss too.
    """
    ours, teacher = CASES["causal_lm"].models()
    data = CASES["causal_lm"].data(4)
    losses: list[float] = []
    for row in data:
        first = next(i for i, label in enumerate(row["labels"]) if label != -100)
        ids = row["input_ids"][:first]
        while len(ids) < first + LONGEST and END not in ids[first:]:
            ids = [*ids, int(next_token(teacher.eval(), ids).argmax())]
            chances = log_softmax(next_token(ours.eval(), ids[:-1]))
            losses.append(-float(chances[ids[-1]]))
    options: dict[str, Any] = {
        "train_dataset": data,
        "seq_kd": True,
        "lmbda": 0.0,
        "alpha": 0.0,
        "generation_temperature": 0.0,
        "max_steps": 1,
    }
    trained = trainer(tmp_path, **options)
    trained.train()
    assert trained.state.log_history[0]["hard_labels"] == pytest.approx(np.mean(losses), rel=1e-9)
    shards = list((tmp_path / "seq_kd" / "data").glob("*.arrow"))
    times = [shard.stat().st_mtime_ns for shard in shards]
    trainer(tmp_path, **options).train()
    assert [shard.stat().st_mtime_ns for shard in shards] == times


def test_a_teachers_texts_can_be_cached(tmp_path: Path) -> None:
    """Sequence-level distillation with the teacher's distribution, without the teacher in memory:
    the examples would not be found again."""
    teacher = CASES["causal_lm"].models()[1]
    texts = generate_dataset(
        teacher, rows(4), None, tmp_path / "texts", sampling=Sampling(LONGEST, 0.0)
    )
    known = ModelTeacher(teacher)
    write_cache(tmp_path / "cache", known, texts, collate, say=lambda line: None)
    options: dict[str, Any] = {"lmbda": 0.0, "train_dataset": texts, "max_steps": 1}
    cached = trainer(tmp_path, teacher_model=CachedTeacher(tmp_path / "cache"), **options)
    cached.train()
    live = trainer(tmp_path, teacher_model=known, **options)
    live.train()
    one, other = (t.state.log_history[0]["forward_kl"] for t in (cached, live))
    assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (iter([{"input_ids": [3]}]), "without streaming"),
        ([], "without streaming"),
        ([{"text": "Good morning"}], "Tokenise"),
    ],
)
def test_data_without_prompts_is_refused(tmp_path: Path, data: Any, message: str) -> None:
    """A key error in the middle, after the teacher was loaded."""
    with pytest.raises(ValueError, match=message):
        generate_dataset(CASES["causal_lm"].models()[1], data, None, tmp_path / "texts")


def test_an_encoder_decoders_texts_are_labels(tmp_path: Path) -> None:
    """The teacher's answer would be put behind the question, into the encoder."""
    teacher = CASES["seq2seq_lm"].models()[1]
    found = generate_dataset(
        teacher, rows(4, "seq2seq_lm"), None, tmp_path / "texts", sampling=Sampling(4, 0.0)
    )
    assert found["input_ids"][:] == [row["input_ids"] for row in rows(4, "seq2seq_lm")]
    assert all(1 <= len(row["labels"]) <= 4 for row in found)
