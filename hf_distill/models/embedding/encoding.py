"""Outputs of text embedders, and the files by which sentence-transformers finds their parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput

MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"
"""Files of a sentence-transformers folder: the list of its modules; its prompts."""


@dataclass
class SentenceOutput(ModelOutput):
    """Outputs of a text embedder.

    Attributes:
        sentence_embedding: ``(B, D)``.
        last_hidden_state: ``(B, T, H)``; None for a static model.
        hidden_states: Outputs of the embeddings and of each layer, on request.
        attentions: Attention maps of each layer, on request.
    """

    sentence_embedding: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def write_modules(
    folder: Path,
    modules: Sequence[tuple[str, str]],
    prompts: Mapping[str, str] | None = None,
    default_prompt: str | None = None,
) -> None:
    """Write the files by which sentence-transformers finds the modules of a folder.

    Args:
        folder: The folder.
        modules: The name of each module's class, and its subfolder.
        prompts: Texts to put in front of a text, by name.
        default_prompt: The name of the prompt that is used if none is named.
    """
    listed = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path) in enumerate(modules)
    ]
    settings = {
        "model_type": "SentenceTransformer",
        "prompts": dict(prompts or {}),
        "default_prompt_name": default_prompt,
        "similarity_fn_name": "cosine",
    }
    write_json(folder / MODULES, listed)
    write_json(folder / SETTINGS, settings)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON; the folder is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
