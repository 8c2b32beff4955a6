"""The students of `cards.py` that no recipe makes: what they learn from, and how large they are."""

from __future__ import annotations

import hashlib
import io
import math
import tarfile
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hf_distill import ForwardKL, HardLabels, HiddenStates


@dataclass
class Study:
    """What a student of a script is made of.

    ``make`` gives a new teacher (``True``) or student; ``card`` is what only a person can say.
    """

    key: str
    name: str
    make: Callable[[bool], tf.PreTrainedModel]
    train: list[dict[str, Any]]
    test: list[dict[str, Any]]
    collate: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]
    processor: Any
    objective: Any
    metric: str
    shape: str
    epochs: int
    rate: float
    card: dict[str, Any]


# ---- sounds --------------------------------------------------------------------------------------

RATE = 8000
LANGUAGES = {
    "en": "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
    "es": "9283a09a6d56fccdcc2bcfe86c48f0f844289cfbd46a3184d8785a6f7f569903",
    "fr": "8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e",
    "it": "5a26638089e134b8ac39363fe249c5c93c50cd8bfdc9b2499ae61ec4a35e2fcb",
}
"""Language -> sha256 of its Debian package."""


def spoken(sources: Any) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Language -> name of the prompt and its samples, of Debian's asterisk-core-sounds."""
    found: dict[str, list[tuple[str, np.ndarray]]] = {}
    for language, digest in LANGUAGES.items():
        package = f"asterisk-core-sounds-{language}-wav"
        archive = sources.Archive(package, "1.6.1-1", f"{package}_1.6.1-1_all.deb", digest)

        def unpack(deb: bytes, folder: Path) -> None:
            with tarfile.open(fileobj=io.BytesIO(sources._deb_data(deb))) as tar:
                for member in tar:
                    file = tar.extractfile(member) if member.name.endswith(".wav") else None
                    if file is not None:
                        name = "_".join(Path(member.name).parts[5:])
                        (folder / name).write_bytes(file.read())

        folder = sources.cached(f"asterisk_{language}", archive, unpack)
        found[language] = [(p.name, _samples(p)) for p in sorted(folder.glob("*.wav"))]
    return found


def _samples(path: Path) -> np.ndarray:
    with wave.open(str(path), "rb") as sound:
        return np.frombuffer(sound.readframes(sound.getnframes()), np.int16) / np.float32(32768)


def _clip(name: str, samples: np.ndarray) -> np.ndarray:
    """The second from where the voice begins, with white noise of the same power as the voice."""
    loud = np.flatnonzero(np.abs(samples) > 0.02)
    voice = samples[loud[0] : loud[0] + RATE] if len(loud) else samples[:RATE]
    voice = np.pad(voice, (0, RATE - len(voice)))
    rng = np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
    power = math.sqrt(float(np.square(voice).mean()) + 1e-12)
    return (voice + power * rng.standard_normal(RATE)).astype(np.float32)


def audio(sources: Any) -> Study:
    """Which of four languages a second of a spoken prompt is in, under noise."""
    extractor = tf.ASTFeatureExtractor(sampling_rate=RATE, num_mel_bins=64, max_length=96)
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for label, (language, clips) in enumerate(spoken(sources).items()):
        for name, samples in clips:
            if len(samples) > RATE // 2:  # prompts of one name say the same: into one part
                part = "test" if hashlib.sha256(name.encode()).digest()[0] < 64 else "train"
                values = extractor(_clip(language + name, samples), sampling_rate=RATE)
                parts[part].append({"input_values": values["input_values"][0], "labels": label})

    def make(teacher: bool) -> tf.PreTrainedModel:
        width, layers = (96, 3) if teacher else (32, 1)
        config = tf.ASTConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=2 * width,
            num_mel_bins=64,
            max_length=96,
            frequency_stride=16,
            time_stride=16,
            id2label=dict(enumerate(LANGUAGES)),
            label2id={name: number for number, name in enumerate(LANGUAGES)},
        )
        return tf.ASTForAudioClassification(config)

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        values = torch.tensor(np.stack([row["input_values"] for row in rows]))
        return {"input_values": values, "labels": torch.tensor([row["labels"] for row in rows])}

    description = (
        "All figures are for four speakers, one a language: what it hears may be the voice and not "
        "the language, and of other voices nothing is known."
    )
    facts = {
        "license": "cc-by-sa-3.0",
        "language": list(LANGUAGES),
        "data": {
            "name": "Asterisk core sounds",
            "url": "https://downloads.asterisk.org/pub/telephony/sounds/",
            "license": "cc-by-sa-3.0",
            "test_split": "test",
        },
        "limitations": [description],
        "preprocessing": {"max_seconds": 1.0, "noise": "white, as loud as the voice"},
    }
    objective = 0.5 * HardLabels() + 0.5 * ForwardKL(temperature=2.0)
    made = (make, parts["train"], parts["test"], collate, extractor, objective)
    return Study("audio", "spoken-prompts-ast-l1", *made, "accuracy", "1 s", 8, 1e-3, facts)


# ---- texts that go on ----------------------------------------------------------------------------

BLOCK, VOCABULARY = 48, 1000


def language_model(sources: Any) -> Study:
    """Film reviews in a vocabulary of 1,000 pieces."""
    reviews = sources.movie_reviews()
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    trained.train_from_iterator(reviews["train"]["text"], trainer)
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=trained, eos_token="<|endoftext|>", model_max_length=2 * BLOCK
    )

    def blocks(split: str, count: int) -> list[dict[str, Any]]:
        ids = [i for text in reviews[split]["text"] for i in [*tokenizer.encode(text), 0]]
        assert len(ids) >= count * BLOCK
        return [{"input_ids": ids[n * BLOCK : (n + 1) * BLOCK]} for n in range(count)]

    def make(teacher: bool) -> tf.PreTrainedModel:
        width, layers = (128, 3) if teacher else (48, 1)
        config = tf.GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=2 * BLOCK,
            n_embd=width,
            n_layer=layers,
            n_head=4,
            bos_token_id=0,
            eos_token_id=0,
        )
        return tf.GPT2LMHeadModel(config)

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": ids.clone()}

    facts = {
        "license": "mit",
        "language": "en",
        "data": {
            "name": "movie reviews",
            "license": sources.CARDS["movie_reviews"]["license"],
            "test_split": "test",
        },
        "limitations": [
            f"It has read {3000 * BLOCK:,} tokens about films and no more: it knows their tone, "
            "not their facts.",
            f"All figures are for one data set: {sources.CARDS['movie_reviews']['description']}",
        ],
        "preprocessing": {"max_length": BLOCK},
    }
    objective = 0.5 * HardLabels() + 0.5 * ForwardKL(temperature=2.0) + 0.1 * HiddenStates("last")
    made = (make, blocks("train", 3000), blocks("test", 500), collate, tokenizer, objective)
    return Study(
        "language_model",
        "film-reviews-gpt2-l1",
        *made,
        "perplexity",
        f"{BLOCK} tokens",
        5,
        3e-3,
        facts,
    )
