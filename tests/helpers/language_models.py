"""Tiny tokenizers, conversations and language models: no files, no network."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

from hf_distill.data.language import tokenize

tf: Any = transformers  # its configs take more than their declared fields

VOCAB = 40
LENGTHS = (9, 4, 7, 2, 8, 3, 6, 5)
SENTENCES = (
    "The cat sat on the mat. user: What is 1 + 1?",
    "assistant: It is 2. And what is 2 + 2? I thought about it.",
    "Questions are asked by users, and the assistant answers them.",
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETFUL = (  # only the last answer keeps its thoughts
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
    "<think>\n</think>\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT = [
    {"role": "system", "content": "The assistant answers."},
    {"role": "user", "content": "What is 1 + 1?"},
    {"role": "assistant", "content": "It is 2."},
    {"role": "user", "content": "And 2 + 2?"},
    {"role": "assistant", "content": "\n\nThe answer: 4. "},
]


@cache
def _bpe() -> Tokenizer:
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    special = ["<|bos|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    found.train_from_iterator(SENTENCES * 20, trainer)
    return found


def tokenizer(template: str | None = CHATML, bos: bool = False) -> Any:
    """A byte-level BPE; its end token is the end of a turn, as in chat models."""
    backend = Tokenizer.from_str(_bpe().to_str())
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", 0)]
        )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|bos|>" if bos else None,
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"],
        chat_template=template,
    )


SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "head_dim": 8,
}
CONFIGS: dict[str, Any] = {
    "llama": lambda: tf.LlamaConfig(**SIZES),
    "qwen2": lambda: tf.Qwen2Config(**SIZES),
    "qwen2_windows": lambda: tf.Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=3, max_window_layers=1
    ),
    "gemma2": lambda: tf.Gemma2Config(**SIZES, sliding_window=3, query_pre_attn_scalar=8),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **SIZES,
        sliding_window=3,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=VOCAB,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=10,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
}


KINDS = [
    (name, attention)
    for name in CONFIGS
    for attention in ("eager", "sdpa")
    if (name, attention) != ("gemma2", "sdpa")  # its soft cap is none of sdpa's
]


def model(name: str = "llama", attention: str | None = None, seed: int = 0) -> Any:
    """A causal language model in float64, whose outputs are far from uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found: nn.Module = tf.AutoModelForCausalLM.from_config(
            CONFIGS[name](), attn_implementation=attention
        )
        for parameter in found.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(6)
    return found.double().eval()


def examples(weighted: bool = False) -> Dataset:
    """Eight examples of 2 to 9 tokens, the first third of each a prompt."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for length in LENGTHS:
        ids = torch.randint(3, VOCAB, (length,), generator=generator).tolist()
        prompt = max(1, length // 3)
        row: dict[str, Any] = {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}
        if weighted:
            halves = torch.randint(1, 4, (length,), generator=generator) / 2
            row["token_weights"] = [0.0] * prompt + halves.tolist()[prompt:]
        rows.append(row)
    return Dataset.from_list(rows)


def rows(data: list[dict[str, Any]], tok: Any = None, **options: Any) -> list[dict[str, Any]]:
    """Tokenised, map-style and streamed, which must be the same."""
    tok = tokenizer() if tok is None else tok
    found = [dict(row) for row in tokenize(Dataset.from_list(data), tok, **options)]
    stream = tokenize(Dataset.from_list(data).to_iterable_dataset(), tok, **options)
    assert [dict(row) for row in stream] == found
    return found


def learned(row: dict[str, Any], tok: Any = None) -> list[str]:
    """The runs of learned tokens of a row, as text."""
    tok = tokenizer() if tok is None else tok
    runs: list[list[int]] = [[]]
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        assert label in (token, -100)
        if label == token:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tok.decode(run) for run in runs if run]
