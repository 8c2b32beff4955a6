"""Stand-ins for the pages on teachers and data: language models, chats and images."""

from __future__ import annotations

import threading
from typing import Any

import chat_server
import datasets
import language_models as chat_models
import pytest
import tokenizer_families
import torch
import transformers

from tests.pages import stand_ins

LINES = ["the end of the thing", "there and then the other thing ends", "an end and another"]


def text_classifiers() -> dict[str, Any]:
    """Those of `stand_ins`, with a student of three layers, for exits at inner ones."""
    found: dict[str, Any] = stand_ins.text_classifiers()
    return {**found, "student": stand_ins.bert(3, seed=1), "teacher": stand_ins.bert(4)}


def doubtful(request: dict[str, Any]) -> dict[str, Any]:
    """`chat_server.sentiment`, but for the last of four samples."""
    answer = chat_server.sentiment(request)
    return chat_server.says("positive") if request["seed"] == 3 else answer


def chat_endpoint(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A chat endpoint at ``base_url``, ``dataset``, ``student`` and ``tokenizer``."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("PROVIDER_KEY", "a key")
    server = chat_server.ChatServer(doubtful)
    threading.Thread(target=server.httpd.serve_forever, daemon=True).start()
    texts = ["a good film", "a bad film", "so good", "not much"]
    found: dict[str, Any] = stand_ins.text_classifiers()
    rows = {"text": texts, "label": [1, 0, 1, 0]}
    return {**found, "base_url": server.url, "dataset": datasets.Dataset.from_dict(rows)}


def language_models() -> dict[str, Any]:
    """``student``, ``teacher``, ``tokenizer`` and ``dataset``: chats, prompts with completions."""
    tokenizer = chat_models.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    chat = [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "2."}]
    return {
        "tokenizer": tokenizer,
        "teacher": tokenizer_families.model(len(tokenizer), seed=1, width=32),
        "student": tokenizer_families.model(len(tokenizer)),
        "dataset": datasets.Dataset.from_dict({"messages": [chat] * 8}),
    }


def two_tokenizers() -> dict[str, Any]:
    """A student and a teacher of other tokenizers: ``student_tokenizer``, ``teacher_tokenizer``."""
    student = tokenizer_families.byte_level()
    teacher = tokenizer_families.byte_level(
        tokenizer_families.OTHERS, ("<|stop|>",), eos="<|stop|>"
    )
    return {
        "student_tokenizer": student,
        "teacher_tokenizer": teacher,
        "student": tokenizer_families.model(len(student)),
        "teacher": tokenizer_families.model(len(teacher), seed=1, width=32),
        "dataset": datasets.Dataset.from_dict({"text": LINES * 3}),
    }


def image_classifiers() -> dict[str, Any]:
    """``student``, ``teacher``, and ``train``: a list of 8 x 8 images with labels."""

    def model(layers: int, seed: int) -> Any:
        torch.manual_seed(seed)
        config = transformers.ViTConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=2,
            image_size=8, patch_size=4, num_labels=3,
        )  # fmt: skip
        return transformers.ViTForImageClassification(config)

    teacher, student = model(2, 0), model(1, 1)
    images = torch.randn(8, 3, 8, 8)
    train = [{"pixel_values": image, "labels": i % 3} for i, image in enumerate(images)]
    return {"teacher": teacher, "student": student, "train": train}
