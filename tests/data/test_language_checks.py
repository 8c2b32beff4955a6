"""What is tried of a model before training: its context, and whether it keeps texts apart."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import CONFIGS, KINDS, VOCAB, examples, model, tf, tokenizer
from peft import LoraConfig, get_peft_model

from hf_distill import DistillationConfig, DistillationTrainer, ForwardKL, LanguageCollator, pack
from hf_distill.data.language import check_context, check_packing


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (tf.GPT2Config(n_positions=64), 64),
        (tf.LlamaConfig(max_position_embeddings=64), 64),
        (
            tf.Qwen2Config(
                max_position_embeddings=32768,
                rope_parameters={
                    "rope_type": "yarn",
                    "rope_theta": 1e6,
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                },
            ),
            131072,
        ),
        (
            tf.LlamaConfig(  # as Llama 3.1: its context is the scaled one already
                max_position_embeddings=131072,
                rope_parameters={
                    "rope_type": "llama3",
                    "rope_theta": 5e5,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            ),
            131072,
        ),
        (
            tf.LlamaConfig(
                max_position_embeddings=64,
                rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            ),
            128,
        ),
        (tf.Gemma3TextConfig(max_position_embeddings=64), 64),
    ],
)
def test_texts_longer_than_the_context_are_refused(config: Any, limit: int) -> None:
    """Rotary positions beyond the context give noise as targets; learned ones an index error."""
    check_context(config, limit, "the teacher")
    with pytest.raises(
        ValueError, match=rf"at most {limit} tokens.* of the teacher .*got {limit + 1}"
    ):
        check_context(config, limit + 1, "the teacher")


def test_models_without_positions_have_no_limit() -> None:
    """A model that reads on for ever would be refused."""
    check_context(tf.MambaConfig(), 10**6, "the teacher")
    check_context(tf.BloomConfig(), 10**6, "the teacher")


@pytest.mark.parametrize(("name", "attention"), KINDS)
def test_models_that_keep_texts_apart_pass(name: str, attention: str) -> None:
    """A model that could be trained packed would be refused."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        lm = model(name, attention).to(dtype).train()
        check_packing(lm)
        check_packing(lm, rows=1)
        assert lm.training


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft
def test_adapters_are_looked_through() -> None:
    """The forward of an adapter names no inputs; every LoRA student would be refused."""
    adapter = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    check_packing(get_peft_model(model(), adapter))


MIXING: dict[str, Any] = {
    "mamba": lambda: tf.MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2),
    "bloom": lambda: tf.BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=2),
    "qwen3_next": lambda: tf.Qwen3NextConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        mlp_only_layers=[0, 1],
    ),
}


@pytest.mark.parametrize("name", MIXING)
def test_models_that_mix_texts_are_refused(name: str) -> None:
    """They train without a word on texts that see each other."""
    lm = tf.AutoModelForCausalLM.from_config(MIXING[name]())
    for parameter in lm.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(3)
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(
            ValueError, match=r"does not keep the texts of a packed row apart.*pack"
        ):
            check_packing(lm.to(dtype))


def trained(student: Any, teacher: Any, data: Any, folder: Path) -> DistillationTrainer:
    return DistillationTrainer(
        student,
        DistillationConfig(str(folder), use_cpu=True, report_to="none"),
        LanguageCollator(tokenizer()),
        data,
        teacher_model=teacher,
        objective=ForwardKL(),
    )


def test_the_trainer_looks_at_the_length_of_texts(tmp_path: Path) -> None:
    """Positions beyond a teacher's context are noise to it, or an index error deep in a forward."""
    config = copy.deepcopy(CONFIGS["llama"]())
    config.max_position_embeddings = 8
    short = tf.LlamaForCausalLM(config).double()
    data = examples()
    longest = max(len(row["input_ids"]) for row in data)
    with pytest.raises(ValueError, match=rf"at most 8 tokens.*the teacher.*got {longest}"):
        trained(model(), copy.deepcopy(short), data, tmp_path)
    with pytest.raises(ValueError, match=rf"at most 8 tokens.*the student.*got {longest}"):
        trained(short, model(), data, tmp_path)
    trained(model(seed=1), model(), data, tmp_path)


def test_the_trainer_looks_at_the_tokens(tmp_path: Path) -> None:
    """Data of another tokenizer end in "index out of range in self", deep in a forward."""
    config = copy.deepcopy(CONFIGS["llama"]())
    config.vocab_size = highest = max(max(row["input_ids"]) for row in examples())
    few = tf.LlamaForCausalLM(config).double()
    wanted = rf"from 0 to {highest - 1}, as many as the student .*resize_token_embeddings"
    with pytest.raises(ValueError, match=wanted):
        trained(few, copy.deepcopy(few), examples(), tmp_path)


def test_packed_rows_are_as_long_as_their_texts(tmp_path: Path) -> None:
    """Rows of many short texts would be refused though no position is beyond the context."""
    config = copy.deepcopy(CONFIGS["llama"]())
    config.max_position_embeddings = max(len(row["input_ids"]) for row in examples())
    student, teacher = (tf.LlamaForCausalLM(config).double() for _ in range(2))
    trained(student, teacher, pack(examples(), 32), tmp_path)


def test_the_trainer_refuses_a_model_that_mixes_packed_texts(tmp_path: Path) -> None:
    """A student whose state runs through a row would learn from its neighbours' texts."""
    config = tf.MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, state_size=4)
    config.eos_token_id, config.pad_token_id = (
        model().config.eos_token_id,
        model().config.pad_token_id,
    )
    with pytest.raises(ValueError, match=r"Mamba.*position_ids"):
        trained(tf.MambaForCausalLM(config).double(), model(), pack(examples(), 32), tmp_path)
    with pytest.raises(ValueError, match=r"Mamba.*position_ids"):
        trained(model(), tf.MambaForCausalLM(config).double(), pack(examples(), 32), tmp_path)
