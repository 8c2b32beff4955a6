"""Readers of the folders of sentence-transformers and model2vec."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoTokenizer

from hf_distill.models.embedding.parts import (
    MODULES,
    folder_file,
    hub_options,
    inside,
    listed_modules,
    read_json,
)
from hf_distill.models.embedding.sentence import SentenceModel
from hf_distill.models.embedding.static import (
    StaticConfig,
    StaticForSequenceClassification,
    StaticModel,
)

STATIC = StaticConfig.model_type


def own_class(name: str) -> Any:
    """The model class of this name in transformers or here; None if there is none."""
    own = {kind.__name__: kind for kind in (StaticModel, StaticForSequenceClassification)}
    return own.get(name) or getattr(transformers, name, None)


def is_embedder(name: str | Path, **where: Any) -> bool:
    """True if a folder or repository is one that `load_embedder` reads.

    Args:
        name: Hub id or folder.
        where: ``revision`` and ``token`` of the Hub.
    """
    if folder_file(name, MODULES, where, required=False) is not None:
        return True
    config = folder_file(name, "config.json", where, required=False)
    return config is not None and read_json(config).get("model_type") in ("model2vec", STATIC)


def load_embedder(name: str | Path, **kwargs: Any) -> SentenceModel | StaticModel:
    """Load a text embedder from a folder of sentence-transformers or model2vec.

    Pooling, dense layers, normalisation and prompts are those that it was trained with. The
    tokenizer is loaded as usual, with ``AutoTokenizer.from_pretrained(name)``.

    Args:
        name: Hub id or folder.
        kwargs: As `AutoModel.from_pretrained` takes them.

    Raises:
        ValueError: neither of the two, or modules that are not read; nothing is executed that
            comes from the folder.
        OSError: a file that is missing.
    """
    where = hub_options(kwargs)
    config = folder_file(name, "config.json", where, required=False)
    kind = None if config is None else read_json(config).get("model_type")
    if kind == STATIC:
        return StaticModel.from_pretrained(name, **kwargs)
    if kind == "model2vec":
        return _static(name, "", bool(read_json(config).get("normalize")), where)
    listed = listed_modules(name, where)
    if listed[0][0] == "StaticEmbedding":
        if [kind for kind, _ in listed[1:]] not in ([], ["Normalize"]):
            raise ValueError(
                f"Expected Normalize or nothing behind the static embeddings of {name}, got "
                f"{[kind for kind, _ in listed[1:]]}."
            )
        return _static(name, listed[0][1], len(listed) > 1, where)
    return SentenceModel.from_pretrained(name, **kwargs)


def _static(name: str | Path, path: str, normalize: bool, where: Mapping[str, Any]) -> StaticModel:
    """A static embedder from the files of model2vec or sentence-transformers."""
    tensors = load_file(folder_file(name, inside(path, "model.safetensors"), where))
    table = tensors["embeddings"] if "embeddings" in tensors else tensors["embedding.weight"]
    if "mapping" in tensors:
        table = table[tensors["mapping"].long()]
    weights = tensors.get("weights")
    tokenizer = AutoTokenizer.from_pretrained(name, **({"subfolder": path} if path else {}))
    special = sorted({*tokenizer.all_special_ids} & {*range(len(table))})
    config = StaticConfig(
        vocab_size=table.shape[0],
        hidden_size=table.shape[1],
        normalize=normalize,
        ignored_tokens=special,
    )
    model = StaticModel(config)
    with torch.no_grad():
        model.embeddings.copy_(table)
        model.weights.copy_(torch.ones(len(table)) if weights is None else weights)
        model.weights[special] = 0.0
    return model.eval()
