"""Conversion of batch signals to stored examples and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Features
from torch import Tensor

from hf_distill.models.signals import BatchItems, Needs, Signal, SparseProbs
from hf_distill.teachers.cache import formats, placing
from hf_distill.teachers.cache.formats import PREFIXES, Full, Sampled, States, TopK
from hf_distill.teachers.cache.keys import ExampleSlice
from hf_distill.teachers.cache.packing import Row

LogitFormat = Full | TopK | Sampled
KINDS = ("softmax", "sigmoid", "regression", "ctc", "none")
"""Forms of logits, see `Signal`."""
MOST_LAYERS = 2**14
"""Largest number of layers of a group."""
Wanted = bool | Mapping[str, Sequence[int] | bool]
"""Selection of hidden states: all, none, or by group all or the layers with these indices."""


@dataclass(frozen=True)
class Content:
    """Stored outputs of every example.

    Attributes:
        kind: Form of the logits, see `Signal`.
        logits: Format of logits; None: not stored.
        states: Format of hidden states and attention maps; None: not stored.
        layers: Number of layers of each group of the teacher, ``hidden.<group>`` and
            ``attention.<group>``.
        axis: The dimension of the items that is the batch.
    """

    kind: str
    logits: LogitFormat | None
    states: States | None
    layers: Mapping[str, int]
    axis: int = 0

    @property
    def trimmed(self) -> bool:
        """True if the classes are positions of a text, padding included (question answering)."""
        return self.axis == 1

    @property
    def features(self) -> Features:
        """The columns of a shard."""
        parts = [part.columns() for part in (self.logits, self.states) if part is not None]
        return Features({name: value for part in parts for name, value in part.items()})

    @property
    def provides(self) -> Needs:
        """Outputs that can be read from it."""
        kept = self.states.shapes if self.states is not None else {}
        return Needs(
            logits=self.logits is not None,
            unsampled=self.logits is not None and not isinstance(self.logits, Sampled),
            full_vocabulary=isinstance(self.logits, Full),
            hidden_states=any(name.startswith("hidden.") for name in kept),
            attentions=any(name.startswith("attention.") for name in kept),
        )

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON, see `from_json`."""
        parts = {"logits": self.logits, "states": self.states}
        plain = {name: part and formats.to_json(part) for name, part in parts.items()}
        return dataclasses.asdict(self) | plain

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Content:
        """Inverse of `to_json`; ValueError for missing or additional fields, or fields of other
        types."""
        return cls(**{**values, **_checked_parts(values)})

    # ---- writing -----------------------------------------------------------------------------

    def encode(
        self, signal: Signal, found: Sequence[ExampleSlice], items: BatchItems
    ) -> Iterator[Row]:
        """Rows of the examples of a batch, in order, each with its key."""
        logits = mask = None
        if self.logits is not None and signal.logits is not None:
            logits = signal.logits.movedim(self.axis, 0)
            mask = items.masks["items"].movedim(self.axis, 0).cpu().numpy()
        tensors = dict(placing.named_states(signal))
        for piece in found:
            row: dict[str, Any] = {"key": piece.key}
            if self.logits is not None and logits is not None and mask is not None:
                own = logits[piece.row]
                if self.trimmed:
                    own = own[..., slice(*piece.ranges["hidden"])]
                chosen = placing.cut(mask[piece.row], piece)
                own = own[torch.from_numpy(np.asarray(chosen)).to(own.device)]
                row |= self.logits.encode(own.reshape(-1, own.shape[-1]), piece.key)
            if self.states is not None:
                kept = {n: placing.part_of(n, tensors[n], piece) for n in self.states.shapes}
                row |= self.states.encode(kept, piece.key)
            yield row

    # ---- reading -----------------------------------------------------------------------------

    def decode(
        self, rows: Sequence[Row], found: Sequence[ExampleSlice], items: BatchItems, needs: Needs
    ) -> Signal:
        """The signal of a batch, float32, padded like the batch; 0 where nothing is counted.
        ``rows`` are from `encode`, in the order of ``found``, the examples; ValueError for others.
        """
        device = items.masks["samples"].device
        whole = sparse = None
        if needs.logits and self.logits is not None and found:
            whole, sparse = self._classes(rows, found, items, device)
        elif needs.logits and self.logits is not None:
            whole, sparse = self._no_classes(items)
        groups: dict[str, dict[str, tuple[Tensor, ...]]] = {"hidden": {}, "attention": {}}
        if self.states is not None and (needs.hidden_states or needs.attentions):
            prefixes = [p for p, on in zip(groups, (needs.hidden_states, needs.attentions)) if on]  # noqa: B905
            names = [n for n in self.states.shapes if n.split(".")[0] in prefixes]
            if found:
                decoded = self.states.decode_batch(rows, names)
                full = {n: placing.padded(n, decoded[n], found, items).to(device) for n in names}
            else:
                full = {n: placing.nothing_of(n, self.states.shapes[n], items) for n in names}
            for name, count in self.layers.items():
                prefix, _, group = name.partition(".")
                layers = [full.get(f"{name}.{index}") for index in range(count)]
                if any(layer is not None for layer in layers):
                    groups[prefix][group] = placing.Layers(layers, name)
        hidden, maps = groups["hidden"], groups["attention"]
        return Signal(whole, self.kind, hidden_states=hidden, attentions=maps, sparse=sparse)

    def _classes(
        self, rows: Sequence[Row], found: Sequence[ExampleSlice], items: BatchItems, device: Any
    ) -> tuple[Tensor | None, SparseProbs | None]:
        mask = items.masks["items"].movedim(self.axis, 0).cpu().numpy()
        places = torch.from_numpy(mask)
        spec: Any = self.logits
        read = spec.decode_batch(rows)
        for piece, size in zip(found, read.sizes, strict=True):
            own = mask[piece.row] if piece.items is None else mask[piece.row][slice(*piece.items)]
            if own.sum() != size:
                raise ValueError(
                    f"Expected {own.sum()} items of the example {piece.key.hex()}, got {size}."
                )
        if isinstance(spec, Full):
            if self.trimmed:
                return self._spans(read.logits, read.sizes, found, items).to(device), None
            out = read.logits.new_zeros((*places.shape, read.logits.shape[-1]))
            out[places] = read.logits
            return out.movedim(0, self.axis).contiguous().to(device), None
        ids = read.ids.new_zeros((*places.shape, read.ids.shape[-1]))
        log_probs = read.log_probs.new_full(ids.shape, -torch.inf)
        rest = read.log_rest.new_zeros(places.shape)
        ids[places], log_probs[places], rest[places] = read.ids, read.log_probs, read.log_rest
        parts = (ids, log_probs, rest)
        ids, log_probs, rest = (part.movedim(0, self.axis).to(device) for part in parts)
        exact = not isinstance(spec, Sampled)
        return None, SparseProbs(ids, log_probs, rest, spec.width, spec.temperature, exact)

    def _no_classes(self, items: BatchItems) -> tuple[Tensor | None, SparseProbs | None]:
        """Empty signal for a batch of repeated examples, at the end of a distributed evaluation."""
        mask, spec = items.masks["items"], self.logits
        if spec is None or isinstance(spec, Full):
            width = items.masks["hidden"].shape[-1] if self.trimmed else getattr(spec, "width", 1)
            return torch.zeros(*mask.shape, width, device=mask.device), None
        ids = torch.zeros(*mask.shape, 1, dtype=torch.int64, device=mask.device)
        nothing = torch.full(ids.shape, -torch.inf, device=mask.device)
        rest, exact = torch.zeros(mask.shape, device=mask.device), not isinstance(spec, Sampled)
        return None, SparseProbs(ids, nothing, rest, spec.width or 1, spec.temperature, exact)

    def _spans(
        self, logits: Tensor, sizes: Sequence[int], found: Sequence[ExampleSlice], items: BatchItems
    ) -> Tensor:
        """Logits over positions, with padding masked as by the model itself."""
        length = items.masks["hidden"].shape[-1]
        shape = items.masks["items"].movedim(self.axis, 0).shape
        out = logits.new_full((*shape, length), torch.finfo(logits.dtype).min / 4)
        for own, piece in zip(logits.split(list(sizes)), found, strict=True):
            start, stop = piece.ranges["hidden"]
            place = out[piece.row, :, start:stop]
            if len(own) != len(place) or own.shape[-1] < stop - start:
                raise ValueError(f"Expected logits over {stop - start} places, got {own.shape[-1]}")
            place.copy_(own[:, : stop - start])
        return out.movedim(0, self.axis).contiguous()  # as the live teacher's


def content_of(
    signal: Signal,
    found: Sequence[ExampleSlice],
    logits: LogitFormat | None,
    hidden_states: Wanted,
    dtype: str,
    axis: int,
    rows: int,
) -> Content:
    """Determine the stored outputs from the teacher's signal on a first batch of ``rows`` examples.
    ValueError for probabilities of single classes for a head that has none, a layer that is not
    there, and states that are not one per example.
    """
    odd = signal.kind not in ("softmax", "ctc") or axis == 1
    if logits is not None and not isinstance(logits, Full) and odd:
        raise ValueError(
            f"Expected one softmax over fixed classes for {type(logits).__name__}, got a "
            f"{signal.kind} head{' over positions' if axis == 1 else ''}. Keep all its logits: "
            "format={'kind': 'full'}."
        )
    if logits is not None and signal.logits is not None:
        width = None if axis == 1 else signal.logits.shape[-1]
        logits = dataclasses.replace(logits, width=width)
    layers: dict[str, int] = {}
    for prefix, groups in (("hidden", signal.hidden_states), ("attention", signal.attentions)):
        layers.update({f"{prefix}.{group}": len(own) for group, own in groups.items()})
    shapes: dict[str, tuple[int | None, ...]] = {}
    for name, tensor in placing.named_states(signal):
        prefix, group, index = name.split(".")
        if prefix == "hidden" and not _is_wanted(hidden_states, group, int(index), layers):
            continue
        if len(tensor) != rows:
            raise ValueError(
                f"Expected {name} of {rows} examples, got {len(tensor)} rows: several choices to "
                "an example cannot be kept. Keep the logits alone."
            )
        shape: list[int | None] = list(placing.part_of(name, tensor, found[0]).shape)
        if placing.ranged(name, tensor, found[0]):
            where = slice(1, 3) if prefix == "attention" else slice(0, 1)
            shape[where] = [None] * len(shape[where])
        shapes[name] = tuple(shape)
    states = States(dtype, shapes) if shapes else None
    return Content(signal.kind, logits, states, layers, axis)


def _checked_parts(values: Mapping[str, Any]) -> dict[str, Any]:
    """The formats of logits and states; ValueError for other fields."""
    names = {field.name for field in dataclasses.fields(Content)}
    if set(values) != names:
        raise ValueError(f"Expected the fields {sorted(names)}, got {sorted(values)}.")
    kind, layers, axis = values["kind"], values["layers"], values["axis"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"Expected a kind of {', '.join(KINDS)}, got {kind!r}.")
    if type(axis) is not int or axis not in (0, 1):
        raise ValueError(f"Expected an axis of 0 or 1, got {axis!r}.")
    right = isinstance(layers, Mapping) and all(
        name.startswith(PREFIXES) and type(count) is int and 0 <= count <= MOST_LAYERS
        for name, count in layers.items()
    )
    if not right:
        raise ValueError(
            f"Expected layers by group, hidden.<group> or attention.<group>, 0 to {MOST_LAYERS:,} "
            f"each, got {layers!s:.200}."
        )
    parts: dict[str, Any] = {
        name: None if values[name] is None else formats.from_json(values[name])
        for name in ("logits", "states")
    }
    logits, states = parts["logits"], parts["states"]
    if isinstance(logits, States) or not isinstance(states, (States, type(None))):
        raise ValueError("Expected a format of logits and one of states, got them exchanged.")
    if logits is not None and (logits.width is None) != (axis == 1):
        raise ValueError(f"Expected a number of classes unless they are places, got {logits}.")
    for name in states.shapes if states is not None else ():
        group, _, index = name.rpartition(".")
        if not index.isdecimal() or int(index) >= layers.get(group, 0):
            raise ValueError(f"Expected states of the layers {dict(layers)}, got {name}.")
    return parts


def _is_wanted(wanted: Wanted, group: str, index: int, layers: Mapping[str, int]) -> bool:
    if isinstance(wanted, bool):
        return wanted
    own = wanted.get(group, False)
    if isinstance(own, bool):
        return own
    count = layers[f"hidden.{group}"]
    if bad := [i for i in own if not -count <= i < count]:
        raise ValueError(f"Expected layers of {group!r} from {-count} to {count - 1}, got {bad}.")
    return index in {i % count for i in own}
