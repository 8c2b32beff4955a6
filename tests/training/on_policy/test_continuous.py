"""Generating with transformers' continuous batching: the same texts, and nothing else changes."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_models import KINDS
from language_models import model as language_model
from on_policy_runs import END, trainer
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from scipy import stats
from tiny_models import CASES, VOCAB
from tiny_trainers import log_softmax, same, weights
from torch.distributed.fsdp import FSDPModule

from hf_distill import ModelGenerator, Sampling

PROMPT = [3, 4, 5]
GREEDY = Sampling(9, 0.0)


def student(attention: str = "sdpa") -> Any:
    model = CASES["causal_lm"].models(torch.float32)[0].eval()
    model.set_attn_implementation(attention)
    return model


def prompts() -> list[list[int]]:
    """Of other lengths, some of them twice."""
    rows = [row["input_ids"] for row in CASES["causal_lm"].data(6)]
    found = [ids[:n] for n, ids in enumerate(rows, start=1)]
    return [*found, found[2], found[0]]


@pytest.mark.parametrize(("name", "attention"), KINDS)
def test_the_likeliest_texts_are_those_of_generate(name: str, attention: str) -> None:
    """Answers come in the order in which they end, a text would see another one's tokens, or a
    sliding window be read as a whole text."""
    model = language_model(name, attention).float()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        given = torch.randint(0, model.config.vocab_size, (8, 5)).tolist()
    given = [row[: 1 + n % 5] for n, row in enumerate(given)]
    sampling = Sampling(5, 0.0)
    expected = ModelGenerator(model, sampling)(given, 0)
    assert ModelGenerator(model, sampling, continuous=True)(given, 0) == expected
    assert ModelGenerator(model, sampling, batch_size=3, continuous=True)(given, 0) == expected
    assert model.config._attn_implementation == attention


def test_every_end_token_ends_a_text() -> None:
    """With several of them a text would go on, or its end token be lost."""
    sampling = Sampling(20, 2.0, others={"eos_token_id": [END, 9, 7]})
    texts = ModelGenerator(student(), sampling, continuous=True)([PROMPT] * 60, 1)
    ended = [text for text in texts if len(text) < 20]
    assert {text[-1] for text in ended} == {END, 9, 7}
    assert not {END, 9, 7} & {token for text in texts for token in text[:-1]}
    assert max(map(len, texts)) <= 20


def test_samples_follow_the_students_distribution() -> None:
    """Another temperature, or a filter that is left out: the texts would not be the student's."""
    model = student()
    model.lm_head.weight.data.mul_(8)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT])).logits[0, -1].double().numpy()
    chances = np.exp(log_softmax(logits / 0.6))
    kept = chances >= 0.05 * chances.max()
    sampling = Sampling(1, 0.6, min_p=0.05)
    texts = ModelGenerator(model, sampling, batch_size=500, continuous=True)([PROMPT] * 2000, 7)
    found = np.bincount([text[0] for text in texts], minlength=VOCAB)
    assert 3 < kept.sum() < VOCAB
    assert found[~kept].sum() == 0
    expected = 2000 * chances[kept] / chances[kept].sum()
    assert float(stats.chisquare(found[kept], expected).pvalue) > 1e-4


def test_a_seed_gives_its_texts_and_no_state_moves() -> None:
    """The prompts are queued from another thread than they are read from: a resumed run would
    write other texts. What was drawn here would move the training's dropout."""
    model = student("eager").train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    generator = ModelGenerator(model, Sampling(6), continuous=True)
    first, again, other = (generator([PROMPT] * 40, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "gradient checkpointing"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_training_is_that_with_plain_generation(
    tmp_path: Path, attention: str, checkpointed: bool
) -> None:
    """A student left in eval mode, with paged attention or without checkpoints, or dropout drawn
    from another place: it would train otherwise."""
    trained = []
    for continuous in (False, True):
        model = student(attention)
        ours = trainer(
            tmp_path,
            model=model,
            teacher_model=CASES["causal_lm"].models(torch.float32)[1],
            dropout=0.3,
            learning_rate=0.01,
            generation_temperature=0.0,
            activation_checkpointing=checkpointed,
            continuous_batching=continuous,
            max_steps=3,
        )
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.3
        ours.train()
        assert model.training
        assert model.is_activation_checkpointing == checkpointed
        assert model.config._attn_implementation == attention
        trained.append((weights(model), [e for e in ours.state.log_history if "loss" in e]))
    (plain, log), (found, other) = trained
    assert same(plain, found)
    assert log == other
    assert log[0]["on_policy"] == 1
    assert log[0]["completion_length"] > 0


# peft 0.21 reads an attribute that transformers 5.23 has renamed
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_writes_too() -> None:
    """The text would be that of the base model."""
    lora = LoraConfig(task_type=TaskType.CAUSAL_LM, r=4, init_lora_weights=False)
    model = get_peft_model(student(), lora).eval()
    expected = ModelGenerator(model, GREEDY)(prompts(), 0)
    assert ModelGenerator(model, GREEDY, continuous=True)(prompts(), 0) == expected
    with model.disable_adapter():
        assert ModelGenerator(model, GREEDY, continuous=True)(prompts(), 0) != expected


def test_a_failure_is_told_and_leaves_the_model_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts that are missing would be left out of the window, and the student stay paged."""
    model = student("eager")

    forward = model.model.forward

    def fail(*args: Any, **options: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            return forward(*args, **options)
        raise MemoryError("all of it is taken")

    monkeypatch.setattr(model.model, "forward", fail)
    with pytest.raises(RuntimeError, match="8 of 8 prompts: all of it is taken"):
        ModelGenerator(model, GREEDY, continuous=True)(prompts(), 0)
    assert model.config._attn_implementation == "eager"
    with pytest.raises(RuntimeError, match="set continuous_batching=False"):  # before training
        trainer(tmp_path, model=model, continuous_batching=True)


@pytest.mark.parametrize(
    ("options", "lost"),
    [
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"generation_kwargs": {"no_repeat_ngram_size": 2}}, "no_repeat_ngram_size"),
        ({"generation_kwargs": {"min_new_tokens": 2, "eos_token_id": 2}}, r"\['min_new_tokens'\]"),
    ],
)
def test_what_it_would_ignore_is_refused(
    tmp_path: Path, options: dict[str, Any], lost: str
) -> None:
    """transformers leaves these out with a warning in the log: the texts would repeat themselves
    all the same."""
    with pytest.raises(ValueError, match=f"{lost}.*continuous_batching=False"):
        trainer(tmp_path, continuous_batching=True, **options)
    trainer(tmp_path, continuous_batching=False, **options)


# peft 0.21, as above
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_models_that_it_does_not_fit_are_refused(tmp_path: Path) -> None:
    """Processes of a sharded student would wait for each other for ever; learned prompts would not
    be read."""
    ours = trainer(tmp_path, lmbda=0.5)
    ours.args = dataclasses.replace(ours.args, continuous_batching=True)
    ours.is_fsdp_enabled = True
    with pytest.raises(ValueError, match=r"shards.*continuous_batching=False"):
        ours._check_on_policy()
    model = student()
    tuned: Any = get_peft_model(
        student(), PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2)
    )
    with pytest.raises(ValueError, match="learned prompts"):
        ModelGenerator(tuned, GREEDY, continuous=True)
    model.__class__ = type("Sharded", (FSDPModule, type(model)), {})
    with pytest.raises(ValueError, match="shards"):
        ModelGenerator(model, GREEDY, continuous=True)
