"""Training state without pickles: tensors as safetensors, everything else as JSON.

`Trainer` saves optimizer, scheduler, scaler and random states as pickles. A published checkpoint
contains none and still resumes exactly.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer_pt_utils import safe_globals

from hf_distill.utils.files import replacing

STATES = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth")
"""Patterns of the pickles that resuming reads."""
TENSORS, STRUCTURE = "training_state.safetensors", "training_state.json"


def pack_states(folder: str | os.PathLike[str]) -> list[str]:
    """Write the states of a checkpoint to `TENSORS` and `STRUCTURE`; return their pickles' names.

    A pickle with anything but numbers, text, tensors, arrays and containers of them is not packed.
    """
    root = Path(folder)
    tensors: dict[str, Tensor] = {}
    structure: dict[str, Any] = {}
    for path in sorted(path for pattern in STATES for path in root.glob(pattern)):
        found: dict[str, Tensor] = {}
        try:
            with safe_globals():
                state = torch.load(path, map_location="cpu", weights_only=True)
            structure[path.name] = _encode(state, path.name, found)
        except (TypeError, pickle.UnpicklingError):
            continue
        tensors |= found
    if structure:
        save_file(tensors, root / TENSORS)
        (root / STRUCTURE).write_text(json.dumps(structure), encoding="utf-8")
    return list(structure)


def packed(folder: str | os.PathLike[str]) -> list[str]:
    """List the states that `pack_states` packed in a checkpoint; empty if they cannot be read."""
    root = Path(folder)
    if not ((root / STRUCTURE).is_file() and (root / TENSORS).is_file()):
        return []
    try:
        return list(json.loads((root / STRUCTURE).read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError):
        return []


def unpack_states(folder: str | os.PathLike[str]) -> None:
    """Restore the pickles that `pack_states` packed, if they are missing.

    Raises:
        ValueError: `TENSORS` and `STRUCTURE` do not belong together, or a name is a path.
    """
    root = Path(folder)
    if not (root / STRUCTURE).is_file():
        return
    tensors = load_file(root / TENSORS)
    for name, state in json.loads((root / STRUCTURE).read_text(encoding="utf-8")).items():
        if Path(name).name != name:
            raise ValueError(f"expected in {root / STRUCTURE} the names of files, got {name!r}")
        if not (root / name).exists():
            try:
                decoded = _decode(state, tensors)
            except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
                raise ValueError(
                    f"expected in {root / STRUCTURE} the states that {TENSORS} belongs to, got "
                    f"another {name} ({type(error).__name__}: {error}); download both again"
                ) from error
            with replacing(root / name, shared=True) as temporary:
                torch.save(decoded, temporary)


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Convert ``value`` to JSON; add its tensors to ``tensors``, named by their path in it."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().clone().contiguous()
        return {"tensor": path}
    if isinstance(value, np.ndarray):
        tensors[path] = torch.from_numpy(value.copy())
        return {"array": path}
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{path}/{n}", tensors) for n, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict):  # as pairs: JSON would make strings of the keys
        return {"dict": [[key, _encode(v, f"{path}/{key}", tensors)] for key, v in value.items()]}
    raise TypeError(f"expected numbers, text, tensors and containers of them, got {type(value)}")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "array":
        return tensors[held].numpy()
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in held)
    return {key: _decode(item, tensors) for key, item in held}
