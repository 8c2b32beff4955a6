"""Batches and signals as bytes: safetensors, with their structure as JSON in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from hf_distill.models.signals import BatchItems, Needs, Signal, SparseProbs

KEY = "hf_distill"
PROTOCOL = 2
"""Version of the bytes and of the server's paths; raised when either changes."""
CONTENT_TYPE = "application/x-safetensors"
HEADER = 16 << 20
"""Largest JSON header in bytes; parsed, it takes about 20 times as much."""
UNREADABLE = (
    *(SafetensorError, ValueError, KeyError, TypeError, AttributeError),
    *(RuntimeError, OverflowError),
)
"""Errors of reading untrusted bytes."""
NOT_SENT = ("traced",)
"""Fields of a signal with a graph, which are not sent."""


def to_bytes(content: Mapping[str, Any]) -> bytes:
    """Nested mappings and sequences of tensors and plain values, as one safetensors file;
    ValueError for something else in it."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_flatten(content, tensors), allow_nan=False)
    return safetensors.torch.save(tensors, {KEY: tree})


def from_bytes(body: bytes) -> dict[str, Any]:
    """Inverse of `to_bytes`, or ValueError; sequences become tuples."""
    try:
        size = int.from_bytes(body[:8], "little")
        if size > HEADER:
            raise ValueError(f"a header of {size} bytes, more than {HEADER}")
        tree = json.loads(json.loads(body[8 : 8 + size])["__metadata__"][KEY])
        found = _restore(tree, safetensors.torch.load(body))
    except UNREADABLE as error:
        raise ValueError(
            f"Expected safetensors with {KEY!r} in the header, got {len(body)} bytes that are not "
            f"({type(error).__name__}: {error})."
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"Expected a mapping, got a {type(found).__name__}.")
    return found


def _flatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        whole = value.detach().to("cpu")
        tensors[name] = whole.clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"mapping": {str(key): _flatten(item, tensors) for key, item in value.items()}}
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, (Sequence, frozenset, set)):
        ordered = sorted(value) if isinstance(value, (frozenset, set)) else value
        return [_flatten(item, tensors) for item in ordered]
    raise ValueError(f"Expected tensors and plain values to send, got a {type(value).__name__}.")


def _restore(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return tuple(_restore(item, tensors) for item in tree)
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    return {key: _restore(item, tensors) for key, item in tree["mapping"].items()}


def needs_to_json(needs: Needs) -> dict[str, Any]:
    """Convert needs to plain values."""
    found = {f.name: getattr(needs, f.name) for f in fields(needs)}
    return {**found, "modules": sorted(needs.modules)}


def needs_from_json(values: Mapping[str, Any]) -> Needs:
    """Inverse of `needs_to_json`, or ValueError; unknown names are ignored."""
    switches = {f.name: values.get(f.name, False) for f in fields(Needs) if f.name != "modules"}
    modules = values.get("modules", ())
    right = isinstance(modules, (list, tuple)) and all(isinstance(m, str) for m in modules)
    if not right or not all(isinstance(value, bool) for value in switches.values()):
        raise ValueError(f"Expected needs: true or false, and the names of modules, got {values}.")
    return Needs(**switches, modules=frozenset(modules))


def signal_to_tree(signal: Signal) -> dict[str, Any]:
    """Convert to nested mappings, for `to_bytes`."""
    tree = {f.name: getattr(signal, f.name) for f in fields(signal) if f.name not in NOT_SENT}
    sparse = signal.sparse
    tree["sparse"] = sparse and {f.name: getattr(sparse, f.name) for f in fields(sparse)}
    tree["members"] = {name: signal_to_tree(member) for name, member in signal.members.items()}
    return tree


def signal_from_tree(tree: Mapping[str, Any]) -> Signal:
    """Inverse of `signal_to_tree`, or ValueError."""
    try:
        sparse = tree["sparse"] and SparseProbs(**tree["sparse"])
        members = {name: signal_from_tree(member) for name, member in tree["members"].items()}
        return Signal(**{**tree, "sparse": sparse, "members": members})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"Expected a signal, got {sorted(tree)} ({error}).") from error


def items_to_tree(items: BatchItems) -> dict[str, Any]:
    """Convert to nested mappings, for `to_bytes`."""
    return {"masks": items.masks, "labels": items.labels}


def items_from_tree(tree: Any) -> BatchItems:
    """Inverse of `items_to_tree`, or ValueError."""
    masks = tree.get("masks") if isinstance(tree, dict) else None
    if not isinstance(masks, dict) or not all(
        isinstance(mask, Tensor) and mask.dtype == torch.bool for mask in masks.values()
    ):
        raise ValueError("Expected the items' masks as boolean tensors by unit.")
    labels = tree.get("labels")
    if labels is not None and not isinstance(labels, Tensor):
        raise ValueError("Expected the items' labels as a tensor.")
    return BatchItems(masks, labels, own_labels="spans" if "spans" in masks else "labels")
