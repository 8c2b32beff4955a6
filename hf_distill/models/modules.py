"""Access to any `nn.Module`: the model inside wrappers, its config, its inputs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from peft import PeftModel
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import PretrainedConfig, PreTrainedModel

TOLD = ("num_labels", "id2label", "problem_type", "vocab_size", "_name_or_path", "pad_token_id")
"""Fields taken over from a config that is not of transformers."""

_CONFIGS: WeakKeyDictionary[nn.Module, PretrainedConfig] = WeakKeyDictionary()
_FIELDS: WeakKeyDictionary[nn.Module, frozenset[str]] = WeakKeyDictionary()


def without_parallel(model: nn.Module) -> nn.Module:
    """The model inside DataParallel or DistributedDataParallel."""
    while isinstance(model, DataParallel | DistributedDataParallel):
        model = model.module
    return model


def opened(model: nn.Module | None) -> tuple[nn.Module | None, nn.Module | None]:
    """The model inside DataParallel, DistributedDataParallel and ``torch.compile``, which can be
    saved; and its compiled form, if there is one."""
    model = None if model is None else without_parallel(model)
    inner = getattr(model, "_orig_mod", None)
    return (without_parallel(inner), model) if isinstance(inner, nn.Module) else (model, None)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside wrappers that pass everything on: DataParallel, DistributedDataParallel,
    ``torch.compile``, an adapter of PEFT."""
    while True:
        if isinstance(model, PeftModel):
            model = model.get_base_model()
        elif isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def held(module: nn.Module) -> PreTrainedModel | None:
    """The transformers model that holds all the weights of a custom wrapper, if there is one."""
    if isinstance(module, PreTrainedModel):
        return None
    parts = (m for m in module.modules() if m is not module)
    inner = next((m for m in parts if isinstance(m, PreTrainedModel)), None)
    if inner is None:
        return None
    own, theirs = ({id(p) for p in m.parameters()} for m in (module, inner))
    return inner if own == theirs else None


def doubles_of(model: nn.Module) -> set[str]:
    """The further names of tied weights, which would be saved as separate weights."""
    first: dict[int, str] = {}
    named = list(model.named_parameters(remove_duplicate=False))
    return {name for name, p in named if first.setdefault(id(p), name) != name}


def config_of(model: nn.Module) -> Any:
    """The config of a model; a substitute config where a module has none.

    A substitute has no number of labels (None) and no vocabulary until `learn` sets them.
    """
    config = getattr(model, "config", None)
    if isinstance(config, PretrainedConfig):
        return config
    if model not in _CONFIGS:
        stand_in: Any = PretrainedConfig()
        stand_in.id2label = stand_in.label2id = None
        for name in TOLD:
            value = getattr(config, name, None)
            if value is not None:
                setattr(stand_in, name, value)
        _CONFIGS[model] = stand_in
    return _CONFIGS[model]


def text_config(config: Any) -> Any:
    """The text part of a config, or the config."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def has_config(model: nn.Module) -> bool:
    """True if a model has a config of transformers."""
    return isinstance(getattr(model, "config", None), PretrainedConfig)


def learn(model: nn.Module, fields: frozenset[str], classes: str, count: int | None) -> None:
    """Store output names and classes from the first forward of a module without a config.

    Args:
        model: The module.
        fields: The names of its outputs.
        classes: Their meaning: ``labels``, ``vocabulary`` or something else.
        count: Number of classes.
    """
    config, _FIELDS[model] = config_of(model), fields
    if count is not None and classes == "labels" and config.num_labels is None:
        config.num_labels = count
    if count is not None and classes == "vocabulary" and getattr(config, "vocab_size", 0) == 0:
        config.vocab_size = count


def seen_fields(model: nn.Module) -> frozenset[str] | None:
    """Output names of a module without a config, after its first run."""
    return _FIELDS.get(model)


def mentions(model: nn.Module, *words: str) -> bool:
    """True if the source of a model's ``forward``, or of one of its base classes, contains one of
    these words, or if there is no source."""
    forwards = (vars(kind).get("forward") for kind in type(model).__mro__ if kind is not nn.Module)
    sources = [_source(forward) for forward in forwards if inspect.isfunction(forward)]
    return not all(sources) or any(word in source for word in words for source in sources)


@functools.cache
def _source(forward: Any) -> str:
    try:
        return inspect.getsource(forward)
    except (OSError, TypeError):
        return ""


ANY = "*"
"""Marker among a model's columns: it reads all of them."""


def forward_inputs(outer: nn.Module, inner: nn.Module) -> tuple[set[str], bool]:
    """The names that a model's ``forward`` takes.

    A ``forward`` that takes any name (``**kwargs``) takes what that of its base classes does, and
    what the model inside takes.

    Args:
        outer: The model, or a custom wrapper.
        inner: The model that it passes its inputs to, or the same.

    Returns:
        The names, and True if switches of outputs (``output_hidden_states``) reach the inner model.
    """
    names: set[str] = set()
    for model in (outer, inner) if inner is not outer else (outer,):
        for parameters in _signatures(model):
            kinds = {p.kind for p in parameters.values()}
            named = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
            names |= {name for name, p in parameters.items() if p.kind not in named}
            if inspect.Parameter.VAR_KEYWORD not in kinds:
                return names, model is inner
    return names, True


def _signatures(model: nn.Module) -> Iterator[Any]:
    """Parameters of a model's ``forward``, then those of its base classes."""
    own = inspect.signature(model.forward).parameters
    yield own
    for kind in type(model).__mro__:
        forward = vars(kind).get("forward")
        if forward is not None and kind is not nn.Module:
            parameters = dict(inspect.signature(forward).parameters)
            parameters.pop("self", None)
            if list(parameters) != list(own):
                yield parameters
