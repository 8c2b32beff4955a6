"""Drafts for speculative decoding: what is expected of them, and what assisted generation does."""

import doctest
from typing import Any

import pytest
import torch
import transformers as tf
from report_models import tokenizer
from tiny_recipes import WORDS
from torch import Tensor

from hf_distill.evaluation import speculative
from hf_distill.evaluation.metrics import acceptance, functional
from hf_distill.evaluation.speculative import Drafts, measured_acceptance

TOKENIZER = tokenizer()
PROMPTS = [" ".join(WORDS[i : i + 3]) for i in range(6)]


def model(seed: int, layers: int = 1, spread: float = 3.0) -> Any:
    """A tiny language model; a larger spread makes its choices sharper."""
    torch.manual_seed(seed)
    config = tf.LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=None,
    )
    made = tf.LlamaForCausalLM(config).eval()
    made.generation_config.eos_token_id = None
    for parameter in made.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(spread)
    return made


def near(teacher: Any, noise: float) -> Any:
    """A student that often says what its teacher says."""
    student = model(0)
    student.load_state_dict(teacher.state_dict())
    torch.manual_seed(5)
    for parameter in student.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=noise)
    return student


def greedy(teacher: Any, prompt: str, count: int) -> Tensor:
    """The teacher's own text token by token, without a cache: ``(prompt + count,)``."""
    ids = TOKENIZER(prompt, return_tensors="pt")["input_ids"]
    for _ in range(count):
        with torch.no_grad():
            ids = torch.cat([ids, teacher(ids).logits[:, -1:].argmax(-1)], 1)
    return ids[0]


def by_hand(student: Any, teacher: Any, drafted: int, count: int, end: int | None) -> Drafts:
    """Speculative decoding of greedy texts, from which tokens student and teacher agree on."""
    total = Drafts()
    for prompt in PROMPTS:
        text = greedy(teacher, prompt, count)
        start = len(text) - count
        with torch.no_grad():
            guesses = student(text[None]).logits[0].argmax(-1)[start - 1 : -1]
        agreed = (guesses == text[start:]).tolist()
        words = text[start:].tolist()
        stop = words.index(end) + 1 if end in words else count
        place = 0
        while place < stop:
            accepted = examined = 0
            while examined < min(drafted, count - place - 1):
                examined += 1
                if not agreed[place + examined - 1]:
                    break
                accepted += 1
            left = stop - place
            done = min(accepted + 1, left)
            total = total + Drafts(min(accepted, left), min(examined, left), 1, done)
            place += done
    return total


@pytest.mark.parametrize("drafted", [1, 3])
@pytest.mark.parametrize("ends", [False, True])
def test_greedy_acceptance_is_agreement(drafted: int, ends: bool) -> None:
    """Drafts behind a rejected one, or beyond the end, that count make every student look worse
    than it is."""
    teacher = model(1)
    student = near(teacher, 0.02)
    end = int(greedy(teacher, PROMPTS[0], 12)[-1]) if ends else None
    teacher.generation_config.eos_token_id = end
    found = measured_acceptance(
        student, teacher, PROMPTS, TOKENIZER, max_new_tokens=24, drafted=drafted
    )
    expected = by_hand(student, teacher, drafted, 24, end)
    assert found == expected
    assert 0.2 < found.acceptance_rate < 0.98  # both happen
    assert found.tokens < 24 * len(PROMPTS) if ends else found.tokens == 24 * len(PROMPTS)


def test_the_same_model_drafts_perfectly() -> None:
    """A settings file of the student that stops its drafts early would be measured instead."""
    teacher = model(1)
    student = near(teacher, 0.0)
    student.generation_config.assistant_confidence_threshold = 0.9
    student.generation_config.repetition_penalty = 2.0
    kept = student.generation_config
    student.train()
    found = measured_acceptance(student, teacher, PROMPTS, TOKENIZER, max_new_tokens=25, drafted=4)
    assert found.acceptance_rate == 1.0
    assert found.tokens / found.calls == 5.0
    assert student.generation_config is kept
    assert student.training


@pytest.mark.parametrize("temperature", [pytest.param(1.0, marks=pytest.mark.slow), 0.6])
def test_sampled_acceptance_is_the_expected_one(temperature: float) -> None:
    """A rate at another temperature (as a setting, transformers applies it to drafts twice), or of
    cut distributions (top-k 50 is a default), says nothing about the training's own figure."""
    teacher, student = model(1, spread=6.0), model(2, spread=6.0)
    found = measured_acceptance(
        student,
        teacher,
        PROMPTS * 100,
        TOKENIZER,
        max_new_tokens=2,  # one draft per prompt: nothing else is random than what is measured
        drafted=1,
        temperature=temperature,
    )
    rates = []
    for prompt in PROMPTS:
        ids = TOKENIZER(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            ours, theirs = (m(ids).logits[0, -1] for m in (student, teacher))
        rates.append(acceptance(ours, theirs, temperature).item())
    expected = sum(rates) / len(rates)
    assert found.examined == 600
    assert 0.5 < expected < 0.9
    assert abs(found.acceptance_rate - expected) < 3 * (0.25 / 600) ** 0.5


def test_acceptance_by_brute_force() -> None:
    """Any other overlap of two distributions is also 1 for equals and 0 for strangers."""
    ours, theirs = (torch.randn(5, 7, dtype=torch.float64) * 3 for _ in range(2))
    for temperature in (1.0, 0.5, 2.0):
        found = acceptance(ours, theirs, temperature)
        for row in range(5):
            q, p = (
                [value / sum(values) for value in values]
                for values in ((x[row] / temperature).exp().tolist() for x in (ours, theirs))
            )
            expected = sum(min(a, b) for a, b in zip(p, q, strict=True))
            assert found[row].item() == pytest.approx(expected, rel=1e-12)
    assert acceptance(ours, ours).tolist() == pytest.approx([1.0] * 5)
    far = torch.tensor([[200.0, 0.0]])
    assert acceptance(far, far.flip(-1)).item() == 0.0
    with pytest.raises(ValueError, match="shape"):
        acceptance(ours, theirs[:, :3])


def test_what_cannot_be_measured() -> None:
    """transformers' own messages name neither of the two models."""
    teacher, student = model(1), model(2)
    with pytest.raises(ValueError, match="got 0 prompts"):
        measured_acceptance(student, teacher, [], TOKENIZER)
    with pytest.raises(ValueError, match="at least one token, got an empty one"):
        measured_acceptance(student, teacher, [""], TOKENIZER)
    student.resize_token_embeddings(len(TOKENIZER) + 8)
    with pytest.raises(ValueError, match=r"one vocabulary .*resize_token_embeddings\("):
        measured_acceptance(student, teacher, PROMPTS, TOKENIZER)


def test_doctests() -> None:
    """An example that no longer holds misleads."""
    assert doctest.testmod(speculative).failed == 0
    assert doctest.testmod(functional).failed == 0
