"""Teachers with a longer prompt than the student, against the models' own forward on each text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from two_tokenizers import PAIRS, SIZES, kl, made, randomised

from hf_distill import (
    CachedTeacher,
    ForwardKL,
    HardLabels,
    LanguageCollator,
    ModelTeacher,
    OnPolicyConfig,
    OnPolicyDistillationTrainer,
    tokenize,
    write_cache,
)

tf: Any = transformers
RULES = ["no brown words", "be lazy", "the fox was honestly boring, results or not"]
ASKED = ["what is the dog?", "who jumps?", "yes or no"]
ANSWERS = ["a lazy fox", "the quick student", "unbelievable"]
CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def llama(seed: int, layers: int = 2) -> Any:
    sizes = {k: v for k, v in SIZES.items() if "dropout" not in k}
    sizes |= {"vocab_size": len(PAIRS), "max_position_embeddings": 160, "pad_token_id": 1}
    sizes |= {"num_hidden_layers": layers, "bos_token_id": 0, "eos_token_id": 2}
    return randomised(tf.LlamaForCausalLM(tf.LlamaConfig(**sizes, num_key_value_heads=2)), seed)


def conversations() -> Dataset:
    turns = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        for asked, answer in zip(ASKED, ANSWERS, strict=True)
    ]
    return Dataset.from_dict({"rule": RULES, "messages": turns})


@pytest.fixture
def tokenizer() -> Any:
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=PAIRS.backend_tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )
    found.chat_template = CHAT
    return found


def expected(student: Any, teacher: Any, rows: Any, prompts: list[list[int]]) -> float:
    """The mean KL at the tokens of the completions, each text by itself."""
    values = []
    for row, prompt in zip(rows, prompts, strict=True):
        places = [n for n, label in enumerate(row["labels"]) if label != -100]
        completion = [row["input_ids"][n] for n in places]
        with torch.no_grad():
            ours = student(torch.tensor([row["input_ids"]])).logits[0]
            theirs = teacher(torch.tensor([prompt + completion])).logits[0]
        values += [
            kl(ours[place - 1], theirs[len(prompt) - 1 + n]) for n, place in enumerate(places)
        ]
    return float(np.mean(values))


@pytest.mark.parametrize("batch", [1, 3])
def test_messages_in_front_of_the_students(tmp_path: Path, tokenizer: Any, batch: int) -> None:
    """The teacher's tokens of the answer are at other places than the student's."""
    student, teacher = llama(1), llama(2, 3)
    rows = tokenize(conversations(), tokenizer, keep=("rule", "messages"))
    template = [{"role": "system", "content": "Rule: {rule}"}]
    ours = made(
        tmp_path,
        student,
        ModelTeacher(teacher, tokenizer, prompt=template),
        rows,
        objective=1.0 * ForwardKL(2.0),
        data_collator=LanguageCollator(tokenizer),
        processing_class=tokenizer,
        per_device_eval_batch_size=batch,
    )
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "system", "content": f"Rule: {rule}"}, {"role": "user", "content": asked}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )["input_ids"]
        for rule, asked in zip(RULES, ASKED, strict=True)
    ]
    found = ours.evaluate()["eval_forward_kl"]
    assert found == pytest.approx(expected(student, teacher, rows, prompts), rel=1e-9)


def test_a_text_with_fields_and_a_cache(tmp_path: Path, tokenizer: Any) -> None:
    """A cache that is keyed by the student's tokens would mix up two contexts."""
    student, teacher = llama(1), llama(2)
    data = Dataset.from_dict({"rule": RULES, "prompt": ASKED, "completion": ANSWERS})
    rows: Any = tokenize(data, tokenizer, keep=("rule", "prompt"))
    taught = ModelTeacher(teacher, tokenizer, prompt="{rule}\n{prompt}")
    options: dict[str, Any] = {
        "objective": HardLabels() + ForwardKL(2.0),
        "data_collator": LanguageCollator(tokenizer),
        "processing_class": tokenizer,
    }
    live = made(tmp_path, student, taught, rows, **options)
    prompts = [
        tokenizer(f"{rule}\n{asked}")["input_ids"] for rule, asked in zip(RULES, ASKED, strict=True)
    ]
    wanted = expected(student, teacher, rows, prompts)
    assert live.evaluate()["eval_forward_kl"] == pytest.approx(wanted, rel=1e-9)
    path = write_cache(tmp_path / "cache", taught, rows, LanguageCollator(tokenizer), say=len)
    cached = made(tmp_path, student, CachedTeacher(path), rows, **options)
    assert cached.evaluate()["eval_forward_kl"] == pytest.approx(wanted, rel=1e-5)
    turned = rows.remove_columns("rule").add_column("rule", RULES[::-1])
    with pytest.raises(ValueError, match="not there"):
        made(tmp_path, student, CachedTeacher(path), turned, **options).evaluate()


def test_rows_without_one_completion_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    """Of a conversation with two answers the second prompt holds the first, and does not match."""
    student, teacher = llama(1), llama(2)
    template = [{"role": "system", "content": "{rule}"}]
    options: dict[str, Any] = {
        "objective": 1.0 * ForwardKL(2.0),
        "data_collator": LanguageCollator(tokenizer),
        "processing_class": tokenizer,
    }
    data = conversations()
    twice = data.map(lambda row: {"messages": row["messages"] * 2})
    rows: Any = tokenize(twice, tokenizer, keep=("rule", "messages"))
    taught = ModelTeacher(teacher, tokenizer, prompt=template)
    with pytest.raises(ValueError, match="labels on one completion"):
        made(tmp_path, student, taught, rows, **options)
    rows = tokenize(data, tokenizer, keep=("messages",))
    taught = ModelTeacher(teacher, tokenizer, prompt=template)
    with pytest.raises(ValueError, match="the raw column 'rule'"):
        made(tmp_path, student, taught, rows, **options)
    short = ModelTeacher(teacher, tokenizer, prompt=template, max_length=8)
    rows = tokenize(data, tokenizer, keep=("rule", "messages"))
    with pytest.raises(ValueError, match="at most 8 tokens for the teacher"):
        made(tmp_path, student, short, rows, **options)
    with pytest.raises(ValueError, match="causal language model and its tokenizer"):
        ModelTeacher(teacher, prompt=template)
    with pytest.raises(ValueError, match="known types to keep"):
        tokenize(data, tokenizer, keep=("context",))


def test_text_that_the_student_writes_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    """The teacher's tokens of the data would be compared with those of another text."""
    rows = tokenize(conversations(), tokenizer, keep=("rule", "messages"))

    def trainer(lmbda: float) -> Any:
        args = OnPolicyConfig(
            str(tmp_path), report_to="none", use_cpu=True, lmbda=lmbda, max_steps=1
        )
        return OnPolicyDistillationTrainer(
            llama(1),
            args,
            LanguageCollator(tokenizer),
            rows,
            teacher_model=ModelTeacher(llama(2), tokenizer, prompt=[]),
            processing_class=tokenizer,
        )

    with pytest.raises(ValueError, match=r"not made for text that the student writes.*lmbda=0"):
        trainer(1.0)
    trainer(0.0).train()  # the remedy
