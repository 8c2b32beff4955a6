"""Recorded views: augmentation with cached teacher outputs.

A cache finds the outputs of an example by its content, and under random augmentation every example
is new. So k views of every example are drawn once, their parameters are stored, and training
repeats these views: arXiv 2303.08983 (dataset reinforcement), 2311.17049 (MobileCLIP).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from hf_distill.data.views import Example, Parameters, RandomView, Views, plain_key
from hf_distill.teachers.cache.checked_json import replacing

FILE = "views.jsonl"
"""File in the folder of the cache: a line of settings, a line for each example, a checksum."""
VERSION = 1
KEY = len('{"key": "') + np.arange(32)
"""Position of the key in the line of an example."""


class AugmentationLog:
    """Parameters of the recorded views of every example; made by `record_views` or `load`.

    ``views`` are the views with their settings, as ``flip(chance=0.5)``; ``count`` is the number of
    views of each example, ``seed`` that of the parameters.
    """

    def __init__(self, body: np.ndarray):
        """Take ``body``, the bytes of all lines but the last; a line is parsed on access."""
        self._body = body
        self._ends = np.flatnonzero(body == ord("\n"))
        header = json.loads(body[: self._ends[0]].tobytes())
        if header["version"] != VERSION:
            raise ValueError(
                f"Expected recorded views of version {VERSION}, got {header['version']}. Record "
                "them again with this hf_distill."
            )
        self.views: tuple[str, ...] = tuple(header["views"])
        self.count, self.seed = int(header["count"]), int(header["seed"])
        places = self._ends[:-1, None] + 1 + KEY
        self._keys = body[places].view("S32")[:, 0]
        self._order = np.argsort(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def to_json(self) -> dict[str, Any]:
        """Settings that, with the data, determine the views."""
        return {"views": list(self.views), "count": self.count, "seed": self.seed}

    def place(self, key: str) -> int | None:
        """Index of an example in the recorded data, or None."""
        found = int(np.searchsorted(self._keys, key.encode(), sorter=self._order))
        if found == len(self) or self._keys[self._order[found]] != key.encode():
            return None
        return int(self._order[found])

    def parameters(self, place: int) -> list[list[Parameters]]:
        """Parameters of each recorded view of an example, one set for each of ``views``; ValueError
        for a line of another form."""
        line = self._body[self._ends[place] + 1 : self._ends[place + 1]].tobytes()
        try:
            found = json.loads(line)["views"]
            fits = len(found) == self.count and {len(drawn) for drawn in found} == {len(self.views)}
        except (KeyError, TypeError, ValueError, RecursionError):
            fits = False
        if not fits:
            raise ValueError(
                f"Expected {self.count} recorded views of example {place} in {FILE}, got "
                f"{line[:80]!r}. Record the views again."
            )
        return found

    def save(self, folder: str | Path) -> Path:
        """Write ``views.jsonl`` into a folder, atomically."""
        path = Path(folder) / FILE
        with replacing(path) as file:
            file.write(self._body.data)
            file.write(_checksum(self._body))
        return path

    @classmethod
    def load(cls, folder: str | Path) -> AugmentationLog:
        """Read ``views.jsonl`` from the folder of a cache; it is mapped, not held in memory.
        ValueError if there is none, or not a byte for byte whole one."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise ValueError(
                f"Expected {FILE} in {folder}, found none: this cache has no recorded views. Use "
                "`record_views(data, views).save(folder)`, and write the cache of `AllViews`."
            )
        found = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        body = found[: max(0, len(found) - len(_checksum(found[:0])))]
        if found[len(body) :].tobytes() != _checksum(body):
            raise ValueError(
                f"{path} is truncated or damaged: its checksum is not that of its content. "
                "Record the views again with the same data and seed: they will be the same."
            )
        try:
            return cls(body)
        except (IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"Expected recorded views in {path}, got lines that are none "
                f"({type(error).__name__}: {error}). Record the views again."
            ) from error


def _checksum(body: np.ndarray) -> bytes:
    return f'{{"xxh3_128": "{xxhash.xxh3_128(body.data).hexdigest()}"}}\n'.encode()


def record_views(data: Any, views: Sequence[Any], count: int = 4, seed: int = 0) -> AugmentationLog:
    """Draw views of every example, from the seed and its content only, not its position.

    The global generator is not changed, and every process draws the same.

    Args:
        data: Examples by index.
        views: Applied to an example in turn; each a `RandomView`.
        count: Number of views of an example.
        seed: Another one gives other views.

    Raises:
        ValueError: a view cannot be recorded or repeated exactly, or the data are random.
    """
    if count < 1:
        raise ValueError(f"Expected at least one view of each example, got count={count}.")
    plain = Views(data, *views)
    header = {"version": VERSION, "views": _settings(views), "count": count, "seed": seed}
    lines, own = [_line(header)], torch.default_generator  # manual_seed() would seed GPUs too
    with torch.random.fork_rng(devices=[]):
        for index in range(len(plain)):
            example = dict(data[index])
            if index == 0:
                _check_repeatable(plain, example)
            key = plain_key(example)
            drawn = []
            for number in range(count):
                own.manual_seed(xxhash.xxh3_64_intdigest(f"{seed} {key} {number}".encode()))
                drawn.append(_drawn(plain, example))
            lines.append(_line({"key": key, "views": drawn}))
    return AugmentationLog(np.frombuffer(b"".join(lines), np.uint8))


def _line(content: Any) -> bytes:
    return json.dumps(content, allow_nan=False).encode() + b"\n"


def _drawn(data: Views, example: Example) -> list[Parameters]:
    """One set of parameters for each view, as JSON will return them."""
    drawn: list[Parameters] = []
    views: Any = data.views
    for number, view in enumerate(views):
        if number:
            example = views[number - 1].apply(example, drawn[-1], data)
        parameters = view.draw(example, data)
        try:
            drawn.append(json.loads(_line(parameters)))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Expected plain JSON values from {view!r}.draw, got {parameters}: {error}."
            ) from error
    return drawn


def _applied(data: Views, example: Example, drawn: Sequence[Parameters]) -> Example:
    views: Any = data.views
    for view, parameters in zip(views, drawn, strict=True):
        example = view.apply(example, parameters, data)
    return example


def _check_repeatable(data: Views, example: Example) -> None:
    """Raise ValueError if the same parameters do not make the same view of the first example."""
    if plain_key(example) != plain_key(data.data[0]):
        raise ValueError(
            "Expected data whose examples are the same each time they are read, got another first "
            "example. Take the random transform off the data, and make it a view."
        )
    drawn = _drawn(data, example)
    if len({plain_key(_applied(data, example, drawn)) for _ in range(2)}) > 1:
        raise ValueError(
            f"Expected views that depend on their parameters alone, got two different ones of the "
            f"same: {', '.join(map(repr, data.views))} with {drawn}. Whatever is random belongs "
            "into `draw`, not into `apply`."
        )


def _settings(views: Sequence[Any]) -> list[str]:
    """The views with their settings; ValueError if one of them cannot be recorded."""
    for view in views:
        name = getattr(view, "__name__", type(view).__name__)
        if isinstance(view, type) or not (hasattr(view, "draw") and hasattr(view, "apply")):
            raise ValueError(
                f"Expected views that can be recorded, got {name}, which has no draw/apply. Make "
                "it a frozen dataclass that derives from `hf_distill.data.views.RandomView`."
            )
        if type(view).__repr__ is object.__repr__:
            raise ValueError(
                f"Expected a view whose repr tells its settings, got {name}, whose repr is "
                "different in every process. Make it a frozen dataclass."
            )
    return [repr(view) for view in views]


# ---- data with recorded views ----------------------------------------------------------------


class _Recorded(Views):
    def __init__(self, data: Any, records: Any, *views: RandomView):
        super().__init__(data, *views)
        loaded = isinstance(records, AugmentationLog)
        self.records = records if loaded else AugmentationLog.load(records)
        given = tuple(_settings(views))
        if given != self.records.views:
            raise ValueError(
                f"These views are not the recorded ones: recorded with "
                f"{', '.join(self.records.views)}, given {', '.join(given)}. Give the same views "
                "in the same order, or record these and write a cache of them."
            )
        if len(data):
            self._find(0)

    def find(self, key: str) -> Example:
        place = self.records.place(key)  # its index, unless the data were shuffled since
        if self._places is None and place is not None and place < len(self.data):
            example = dict(self.data[place])
            if plain_key(example) == key:
                return example
        return super().find(key)

    def _find(self, index: int) -> tuple[Example, int]:
        """An original example, and its index in the records."""
        example = dict(self.data[index])
        place = self.records.place(plain_key(example))
        if place is None:
            raise ValueError(
                f"Expected recorded views of example {index}, found none: its content (columns "
                f"{sorted(example)}) is none of the {len(self.records)} that were recorded. Either "
                "it was changed or added since (record the views again, and write the cache of "
                "what is new), or the data are random below the views."
            )
        return example, place

    def _view(self, index: int, number: int) -> Example:
        example, place = self._find(index)
        return _applied(self, example, self.records.parameters(place)[number])


class RecordedViews(_Recorded):
    """A data set that returns one of the recorded views of an example at each reading.

    The view is drawn from torch's global generator, like `Views`. Records are found by content:
    shuffling, selecting and filtering the data do not matter. (After a reordering `mixup`, whose
    other image has an index, reads all of them once in every worker.)

    Args:
        data: Examples by index.
        records: The result of `record_views`, or the folder where it was saved.
        *views: The views that were recorded.

    Raises:
        ValueError: other views than the recorded ones, or an example without records, by its index;
            the first example is looked up at once, the others when they are read.
    """

    def __getitem__(self, index: int) -> Example:
        return self._view(index, int(torch.randint(self.records.count, ())))


class AllViews(_Recorded):
    """Every recorded view of every example, for `write_cache`: view ``j`` of example ``i`` is at
    ``i * count + j``. Arguments and errors are those of `RecordedViews`."""

    def __len__(self) -> int:
        return len(self.data) * self.records.count

    def __getitem__(self, index: int) -> Example:
        return self._view(*divmod(index, self.records.count))
