"""Readers of the folders of sentence-transformers and model2vec."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import cached_file

from hf_distill.models.embedding.encoding import MODULES, SETTINGS
from hf_distill.models.embedding.sentence import POOLING_KEYS, Dense, SentenceModel
from hf_distill.models.embedding.static import (
    StaticConfig,
    StaticForSequenceClassification,
    StaticModel,
)

KINDS = ("Transformer", "Pooling", "Dense", "Normalize", "StaticEmbedding", "Dropout")
"""Classes of modules that are read."""
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
    if _file(name, MODULES, where, required=False) is not None:
        return True
    config = _file(name, "config.json", where, required=False)
    return config is not None and _json(config).get("model_type") in ("model2vec", STATIC)


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
    where = {key: kwargs[key] for key in ("revision", "token") if key in kwargs}
    config = _file(name, "config.json", where, required=False)
    kind = None if config is None else _json(config).get("model_type")
    if kind == STATIC:
        return StaticModel.from_pretrained(name, **kwargs)
    if kind == "model2vec":
        return _static(name, "", bool(_json(config).get("normalize")), where)
    listed = _listed(name, where)
    if listed[0][0] == "StaticEmbedding":
        if [kind for kind, _ in listed[1:]] not in ([], ["Normalize"]):
            raise ValueError(
                f"Expected Normalize or nothing behind the static embeddings of {name}, got "
                f"{[kind for kind, _ in listed[1:]]}."
            )
        return _static(name, listed[0][1], len(listed) > 1, where)
    return load_sentence_model(name, **kwargs)


def load_sentence_model(name: str | Path, **kwargs: Any) -> SentenceModel:
    """Load the folder of a `SentenceTransformer` with an encoder; as `load_embedder`."""
    where = {key: kwargs[key] for key in ("revision", "token") if key in kwargs}
    listed = _listed(name, where)
    kinds = [kind for kind, _ in listed if kind != "Dropout"]
    dense = kinds[2:-1] if kinds[-1] == "Normalize" else kinds[2:]
    if kinds[:2] != ["Transformer", "Pooling"] or set(dense) - {"Dense"}:
        raise ValueError(
            f"Expected in {MODULES} of {name} a Transformer, a Pooling, any number of Dense and at "
            f"most one Normalize, in this order, got {kinds}. Load it with sentence-transformers, "
            "and give its vectors to the trainer as columns."
        )
    transformer, pooling = listed[0][1], listed[1][1]
    if transformer:
        kwargs["subfolder"] = transformer
    limits = _file(name, _in(transformer, "sentence_bert_config.json"), where, required=False)
    limit = {} if limits is None else _json(limits)
    if limit.get("do_lower_case"):
        raise ValueError(
            f"Expected {name} to leave upper case to its tokenizer, got do_lower_case in "
            "sentence_bert_config.json. Set it to false there, and lower-case the texts."
        )
    found = _file(name, SETTINGS, where, required=False)
    settings = {} if found is None else _json(found)
    how = _json(_file(name, _in(pooling, "config.json"), where))
    encoder: PreTrainedModel = AutoModel.from_pretrained(name, **kwargs)
    layers = [_dense(name, path, where) for kind, path in listed if kind == "Dense"]
    return SentenceModel(
        encoder,
        _poolings(how),
        [layer.to(encoder.device, encoder.dtype) for layer in layers],
        kinds[-1] == "Normalize",
        prompts=settings.get("prompts"),
        default_prompt=settings.get("default_prompt_name"),
        include_prompt=how.get("include_prompt", True),
        max_length=limit.get("max_seq_length"),
    ).eval()


def _poolings(settings: Mapping[str, Any]) -> list[str]:
    named = settings.get("pooling_mode")
    if named is not None:
        names = [named] if isinstance(named, str) else list(named)
        return [POOLING_KEYS[each][0] if each in POOLING_KEYS else each for each in names]
    return [own for own, key in POOLING_KEYS.values() if settings.get(key)] or ["mean"]


def _dense(name: str | Path, path: str, where: Mapping[str, Any]) -> Dense:
    settings = _json(_file(name, _in(path, "config.json"), where))
    activation = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    if not activation.startswith("torch.nn."):
        raise ValueError(f"Expected an activation of torch.nn in {path}, got {activation!r}.")
    sizes = (int(settings["in_features"]), int(settings["out_features"]))
    linear = nn.Linear(*sizes, bias=bool(settings.get("bias", True)))
    layer = Dense(linear, activation.rpartition(".")[2], bool(settings.get("use_residual")))
    weights = _file(name, _in(path, "model.safetensors"), where)
    layer.load_state_dict(load_file(weights))
    return layer


def _static(name: str | Path, path: str, normalize: bool, where: Mapping[str, Any]) -> StaticModel:
    """A static embedder from the files of model2vec or sentence-transformers."""
    tensors = load_file(_file(name, _in(path, "model.safetensors"), where))
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


def _listed(name: str | Path, where: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Class and subfolder of each module.

    Raises:
        ValueError: none, or a class that is not read.
        OSError: no list of modules.
    """
    modules = _json(_file(name, MODULES, where))
    found = [(str(m["type"]).rpartition(".")[2], str(m["path"]).strip("./")) for m in modules]
    unknown = sorted({kind for kind, _ in found} - set(KINDS))
    if unknown or not found:
        raise ValueError(
            f"Expected modules of {list(KINDS)} in {MODULES} of {name}, got {unknown or 'none'}."
        )
    return found


def _in(path: str, file: str) -> str:
    return f"{path}/{file}" if path else file


def _file(name: str | Path, file: str, where: Mapping[str, Any], required: bool = True) -> Any:
    """Path of a file of a folder or repository; None if it is not required and missing."""
    if required:
        return cached_file(str(name), file, **where)
    quiet = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
        "_raise_exceptions_for_gated_repo": False,
    }
    return cached_file(str(name), file, **where, **quiet)


def _json(path: Any) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))
