"""Modules of a sentence-transformers folder: reading and writing their files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import cached_file

MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"
"""Files of a sentence-transformers folder: the list of its modules; its prompts."""


KINDS = ("Transformer", "Pooling", "Dense", "Normalize", "StaticEmbedding", "Dropout")
"""Classes of modules that are read."""
POOLING_KEYS = {
    "cls": ("first", "pooling_mode_cls_token"),
    "max": ("max", "pooling_mode_max_tokens"),
    "mean": ("mean", "pooling_mode_mean_tokens"),
    "mean_sqrt_len_tokens": ("mean_sqrt", "pooling_mode_mean_sqrt_len_tokens"),
    "weightedmean": ("position_weighted", "pooling_mode_weightedmean_tokens"),
    "lasttoken": ("last", "pooling_mode_lasttoken"),
}
"""sentence-transformers' name of a pooling -> its name here, and its key in older files. Several
poolings are concatenated in this order."""


class Dense(nn.Module):
    """A linear layer with an activation, as sentence-transformers puts behind the pooling.

    Args:
        linear: The layer.
        activation: A class of `torch.nn`, by name: ``Tanh``, ``Identity``, ….
        residual: Add the input; through the layer ``residual`` where the widths differ.

    Raises:
        ValueError: an activation that `torch.nn` does not have.
    """

    def __init__(self, linear: nn.Linear, activation: str = "Tanh", residual: bool = False):
        super().__init__()
        kind = getattr(nn, activation, None)
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise ValueError(f"Expected an activation of torch.nn ('Tanh'), got {activation!r}.")
        self.linear, self.activation, self.adds = linear, activation, residual
        self.function: nn.Module = kind()
        if residual and linear.in_features != linear.out_features:
            self.residual = nn.Linear(linear.in_features, linear.out_features, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        """``(B, in) -> (B, out)``."""
        found: Tensor = self.function(self.linear(values))
        if not self.adds:
            return found
        return found + (self.residual(values) if hasattr(self, "residual") else values)

    def settings(self) -> dict[str, Any]:
        """Its settings, as sentence-transformers writes them."""
        kind = type(self.function)
        found = {
            "in_features": self.linear.in_features,
            "out_features": self.linear.out_features,
            "bias": self.linear.bias is not None,
            "activation_function": f"{kind.__module__}.{kind.__name__}",
        }
        return {**found, "use_residual": True} if self.adds else found


def read_parts(name: str | Path, **kwargs: Any) -> dict[str, Any]:
    """Read the folder of a `SentenceTransformer` with an encoder.

    Args:
        name: Hub id or folder.
        kwargs: As `AutoModel.from_pretrained` takes them.

    Returns:
        The arguments of `SentenceModel`.

    Raises:
        ValueError: other modules, or an activation that is not of `torch.nn`.
        OSError: a file that is missing.
    """
    where = hub_options(kwargs)
    listed = listed_modules(name, where)
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
    limits = folder_file(
        name, inside(transformer, "sentence_bert_config.json"), where, required=False
    )
    limit = {} if limits is None else read_json(limits)
    if limit.get("do_lower_case"):
        raise ValueError(
            f"Expected {name} to leave upper case to its tokenizer, got do_lower_case in "
            "sentence_bert_config.json. Set it to false there, and lower-case the texts."
        )
    found = folder_file(name, SETTINGS, where, required=False)
    settings = {} if found is None else read_json(found)
    how = read_json(folder_file(name, inside(pooling, "config.json"), where))
    encoder: PreTrainedModel = AutoModel.from_pretrained(name, **kwargs)
    layers = [_dense(name, path, where) for kind, path in listed if kind == "Dense"]
    return {
        "encoder": encoder,
        "pooling": _poolings(how),
        "dense": [layer.to(encoder.device, encoder.dtype) for layer in layers],
        "normalize": kinds[-1] == "Normalize",
        "prompts": settings.get("prompts"),
        "default_prompt": settings.get("default_prompt_name"),
        "include_prompt": how.get("include_prompt", True),
        "max_length": limit.get("max_seq_length"),
    }


def _poolings(settings: Mapping[str, Any]) -> list[str]:
    named = settings.get("pooling_mode")
    if named is not None:
        names = [named] if isinstance(named, str) else list(named)
        return [POOLING_KEYS[each][0] if each in POOLING_KEYS else each for each in names]
    return [own for own, key in POOLING_KEYS.values() if settings.get(key)] or ["mean"]


def _dense(name: str | Path, path: str, where: Mapping[str, Any]) -> Dense:
    settings = read_json(folder_file(name, inside(path, "config.json"), where))
    activation = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    if not activation.startswith("torch.nn."):
        raise ValueError(f"Expected an activation of torch.nn in {path}, got {activation!r}.")
    sizes = (int(settings["in_features"]), int(settings["out_features"]))
    linear = nn.Linear(*sizes, bias=bool(settings.get("bias", True)))
    layer = Dense(linear, activation.rpartition(".")[2], bool(settings.get("use_residual")))
    weights = folder_file(name, inside(path, "model.safetensors"), where)
    layer.load_state_dict(load_file(weights))
    return layer


def listed_modules(name: str | Path, where: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Class and subfolder of each module.

    Raises:
        ValueError: none, or a class that is not read.
        OSError: no list of modules.
    """
    modules = read_json(folder_file(name, MODULES, where))
    found = [(str(m["type"]).rpartition(".")[2], str(m["path"]).strip("./")) for m in modules]
    unknown = sorted({kind for kind, _ in found} - set(KINDS))
    if unknown or not found:
        raise ValueError(
            f"Expected modules of {list(KINDS)} in {MODULES} of {name}, got {unknown or 'none'}."
        )
    return found


def hub_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments of `from_pretrained` that the Hub needs to find a file."""
    return {key: kwargs[key] for key in ("revision", "token") if key in kwargs}


def inside(path: str, file: str) -> str:
    """Name of a file of a module, from the module's subfolder."""
    return f"{path}/{file}" if path else file


def folder_file(
    name: str | Path, file: str, where: Mapping[str, Any], required: bool = True
) -> Any:
    """Path of a file of a folder or repository; None if it is not required and missing."""
    if required:
        return cached_file(str(name), file, **where)
    quiet = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
        "_raise_exceptions_for_gated_repo": False,
    }
    return cached_file(str(name), file, **where, **quiet)


def read_json(path: Any) -> Any:
    """The content of a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


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
