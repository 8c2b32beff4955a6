"""Tiny tokenizers, models and data of the official scripts for text.

Everything is random and small: a vocabulary of 60 words with its special tokens **after** them (so
that no padding, mask or blank token is 0), models of two layers of 32, two dozen rows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = [
    f"{first}{second}"
    for first in ("ba", "co", "di", "fu", "ga", "ki", "lo", "me", "nu", "po", "ra", "se")
    for second in ("n", "r", "st", "l", "m")
]
SPECIAL = {
    "bert": ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"],
    "xlnet": ["<unk>", "<pad>", "<cls>", "<sep>", "<mask>", "<s>", "</s>"],
    "xlm": ["<unk>", "<pad>", "<s>", "</s>", "<mask>"],
    "decoder": ["<unk>", "<s>", "</s>"],
    "seq2seq": ["<unk>", "<pad>", "<s>", "</s>", "<mask>"],
}
SIZE = 80
"""Every model's vocabulary; a few tokens are never used, as in many published models."""


def sentence(dice: random.Random, least: int = 6, most: int = 14) -> str:
    return " ".join(dice.choices(WORDS, k=dice.randint(least, most)))


def rows(count: int, seed: int, make: Callable[[random.Random, int], Any]) -> list[Any]:
    """Rows made by a function of a random generator and the row's number."""
    dice = random.Random(seed)
    return [make(dice, number) for number in range(count)]


def write_rows(
    folder: Path, make: Callable[[random.Random, int], Any], field: str = ""
) -> list[str]:
    """Write 24 rows to train on and 10 to evaluate on as JSON; return the scripts' arguments."""
    arguments = []
    for seed, (name, count) in enumerate({"train": 24, "validation": 10}.items()):
        found, path = rows(count, seed, make), folder / f"{name}.json"
        if field:
            path.write_text(json.dumps({field: found}))
        else:
            path.write_text("\n".join(map(json.dumps, found)))
        arguments += [f"--{name}_file", str(path)]
    return arguments


def tokenizer(kind: str, **options: Any) -> tf.PreTrainedTokenizerFast:
    """Whole words as tokens, with the special tokens and templates of a family of models."""
    tokens = WORDS + SPECIAL[kind]
    ids = {token: number for number, token in enumerate(tokens)}
    inner = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL[kind][0]))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    single, pair = {
        "bert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
        "xlnet": ("$A <sep> <cls>:2", "$A <sep> $B:1 <sep>:1 <cls>:2"),
        "xlm": ("<s> $A </s>", "<s> $A </s> $B:1 </s>:1"),
        "decoder": ("<s> $A", "<s> $A $B:1"),
        "seq2seq": ("$A </s>", "$A </s> $B:1 </s>:1"),
    }[kind]
    used = [(token, ids[token]) for token in SPECIAL[kind] if token in pair]
    inner.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=used
    )
    roles = {
        "unk_token": ("[UNK]", "<unk>"),
        "pad_token": ("[PAD]", "<pad>"),
        "cls_token": ("[CLS]", "<cls>"),
        "sep_token": ("[SEP]", "<sep>"),
        "mask_token": ("[MASK]", "<mask>"),
        "bos_token": ("<s>",),
        "eos_token": ("</s>",),
    }
    given = {role: token for role, names in roles.items() for token in names if token in ids}
    if kind == "xlm":
        given |= {"cls_token": "<s>", "sep_token": "</s>"}
    inputs = ["input_ids", "attention_mask"]
    if kind in ("bert", "xlnet"):
        inputs.insert(1, "token_type_ids")
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=64, model_input_names=inputs, **given, **options
    )


def without_dropout(config: tf.PreTrainedConfig) -> tf.PreTrainedConfig:
    """Set every probability of a dropout to 0, in the configurations inside it too."""
    for name, value in vars(config).items():
        if isinstance(value, tf.PreTrainedConfig):
            without_dropout(value)
        elif "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def save(folder: Path, model: type[tf.PreTrainedModel], config: tf.PreTrainedConfig) -> None:
    """A model with random weights, without dropout."""
    torch.manual_seed(0)
    model(without_dropout(config)).save_pretrained(folder)


def bert(folder: Path, head: str = "Model", **options: Any) -> None:
    """A BERT and its tokenizer, without a head or with one (``ForMaskedLM``)."""
    words = tokenizer("bert")
    words.save_pretrained(folder)
    config = tf.BertConfig(
        vocab_size=SIZE,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=words.pad_token_id,
        **options,
    )
    save(folder, getattr(tf, f"Bert{head}"), config)


def llama(folder: Path) -> None:
    words = tokenizer("decoder")
    words.save_pretrained(folder)
    config = tf.LlamaConfig(
        vocab_size=SIZE,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    save(folder, tf.LlamaForCausalLM, config)


def gpt2(folder: Path) -> None:
    words = tokenizer("decoder")
    words.save_pretrained(folder)
    config = tf.GPT2Config(
        vocab_size=SIZE,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    save(folder, tf.GPT2LMHeadModel, config)


def xlm(folder: Path) -> None:
    words = tokenizer("xlm")
    words.save_pretrained(folder)
    config = tf.XLMConfig(
        vocab_size=SIZE,
        emb_dim=32,
        n_layers=2,
        n_heads=2,
        max_position_embeddings=64,
        pad_index=words.pad_token_id,
        pad_token_id=words.pad_token_id,
        mask_index=words.mask_token_id,
        mask_token_id=words.mask_token_id,
        unk_index=words.unk_token_id,
    )
    save(folder, tf.XLMWithLMHeadModel, config)


def xlnet(folder: Path, model: type[tf.PreTrainedModel]) -> None:
    pieces = ["<unk>", *(f"▁{word}" for word in WORDS), *SPECIAL["xlnet"][1:], "<eop>", "<eod>"]
    words = tf.XLNetTokenizer(vocab=[(p, -float(p[0] == "▁")) for p in pieces], model_max_length=64)
    words.save_pretrained(folder)
    config = tf.XLNetConfig(
        vocab_size=SIZE,
        d_model=32,
        n_layer=2,
        n_head=2,
        d_inner=64,
        start_n_top=2,
        end_n_top=2,
        pad_token_id=words.pad_token_id,
    )
    save(folder, model, config)


def bart(folder: Path) -> None:
    words = tokenizer("seq2seq")
    words.save_pretrained(folder)
    save(folder, tf.BartForConditionalGeneration, bart_config(tf.BartConfig, words))


def bart_config(kind: type[tf.PreTrainedConfig], words: Any) -> tf.PreTrainedConfig:
    return kind(
        vocab_size=len(words) if len(words) > SIZE else SIZE,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        decoder_start_token_id=words.eos_token_id,
        forced_eos_token_id=words.eos_token_id,
    )


def t5(folder: Path) -> None:
    words = tokenizer("seq2seq")
    words.save_pretrained(folder)
    config = tf.T5Config(
        vocab_size=SIZE,
        d_model=32,
        num_layers=2,
        num_heads=2,
        d_kv=16,
        d_ff=64,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
        decoder_start_token_id=words.pad_token_id,
    )
    save(folder, tf.T5ForConditionalGeneration, config)


def mbart(folder: Path) -> None:
    """With transformers' own mBART tokenizer, whose language codes the script reads."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    words = tf.MBartTokenizer(vocab=pieces + [(f"▁{word}", -1.0) for word in WORDS])
    words.save_pretrained(folder)
    save(folder, tf.MBartForConditionalGeneration, bart_config(tf.MBartConfig, words))


# ---- data ------------------------------------------------------------------------------------


def pairs(label: Callable[[random.Random, int], Any]) -> Callable[[random.Random, int], Any]:
    """Two sentences and a label."""

    def make(dice: random.Random, number: int) -> dict[str, Any]:
        return {
            "sentence1": sentence(dice),
            "sentence2": sentence(dice),
            "label": label(dice, number),
        }

    return make


def texts(label: Callable[[random.Random, int], Any]) -> Callable[[random.Random, int], Any]:
    """A sentence and a label."""
    return lambda dice, number: {"sentence": sentence(dice), "label": label(dice, number)}


def tagged(dice: random.Random, number: int) -> dict[str, Any]:
    tokens = sentence(dice).split()
    names = ["O", "B-PER", "I-PER", "B-LOC"]
    return {"tokens": tokens, "ner_tags": [names[WORDS.index(word) % 4] for word in tokens]}


def question(dice: random.Random, number: int, unanswered: bool = False) -> dict[str, Any]:
    """A question with its answer in the text; every third answer is the text's last word."""
    context = sentence(dice, 12, 40).split()
    place = len(context) - 1 if number % 3 == 0 else dice.randrange(len(context) - 1)
    start = len(" ".join([*context[:place], ""]))
    answers = {"text": [context[place]], "answer_start": [start]}
    if unanswered and number % 4 == 1:
        answers = {"text": [], "answer_start": []}
    return {
        "id": str(number),
        "question": sentence(dice, 4, 6),
        "context": " ".join(context),
        "answers": answers,
    }


def situation(dice: random.Random, number: int) -> dict[str, Any]:
    row: dict[str, Any] = {"sent1": sentence(dice), "sent2": sentence(dice, 2, 3)}
    return {**row, **{f"ending{n}": sentence(dice) for n in range(4)}, "label": number % 4}


def plain_text(dice: random.Random, number: int) -> dict[str, Any]:
    return {"text": sentence(dice, 30, 60)}


def summary(dice: random.Random, number: int) -> dict[str, Any]:
    text = sentence(dice, 12, 30)
    return {"text": text, "summary": " ".join(text.split()[:5])}


def translation(dice: random.Random, number: int) -> dict[str, Any]:
    text = sentence(dice)
    return {"translation": {"en": text, "ro": " ".join(reversed(text.split()))}}
