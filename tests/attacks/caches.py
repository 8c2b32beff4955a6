"""Small caches to be attacked: written by `write_cache`, judged by what pyarrow read before."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xxhash
from tiny_models import collate
from tiny_trainers import data, models

from hf_distill import CachedTeacher, ModelTeacher, write_cache
from hf_distill.models.batches import Batch
from hf_distill.models.signals import BatchItems
from hf_distill.teachers.cache.checked_json import read_sealed, write_sealed

NAME = "sequence_classification"
ROWS, SIZE = 12, 2
SHARDS = ROWS // SIZE
FORMATS: dict[str, dict[str, Any]] = {
    "float32": {"format": {"kind": "full"}},
    "top-k": {"format": {"kind": "top_k", "k": 2}},
    "sampled": {"format": {"kind": "sampled", "draws": 5}},
    "int8 states": {
        "format": {"kind": "full", "dtype": "float16"},
        "hidden_states": True,
        "dtype": "int8",
    },
}
"""How the attacked caches are kept."""


class Words:
    """A tokenizer, as far as a vocabulary goes."""

    def __init__(self, **tokens: int) -> None:
        self.tokens = tokens or {"a": 0, "b": 1}

    def get_vocab(self) -> dict[str, int]:
        return self.tokens


def teacher(changed: bool = False, words: Words | None = None) -> ModelTeacher:
    """The teacher, or the same one with other weights."""
    model = models(NAME)[1]
    if changed:
        with torch.no_grad():
            model.classifier.weight[0].add_(1.0)
    return ModelTeacher(model, processor=words or Words())


def examples(rows: int = ROWS) -> list[Any]:
    return list(data(NAME, rows))


def write(folder: Path, asked: Any = None, rows: int = ROWS, **options: Any) -> Path:
    options = {"shard_size": SIZE, "say": lambda line: None, **options}
    return write_cache(folder, asked or teacher(), examples(rows), collate, **options)


class Asking:
    """Asks caches for the same examples, and knows what they hold."""

    def __init__(self, folder: Path) -> None:
        task_model = ModelTeacher(models(NAME)[1]).task_model
        batch: Any = collate(examples())
        self.batch: Batch = batch
        self.items: BatchItems = task_model.items(batch)
        self.right = self.answers(folder)

    def answers(self, folder: Path, **options: Any) -> list[np.ndarray]:
        """Every number that a cache gives for the examples; errors are its own."""
        cached = CachedTeacher(folder, **options)
        signal_ = cached(self.batch, cached.provides, self.items)
        tensors = [signal_.logits, *signal_.hidden_states.get("hidden", ())]
        if signal_.sparse is not None:
            tensors += [signal_.sparse.ids, signal_.sparse.log_probs, signal_.sparse.log_rest]
        return [tensor.numpy() for tensor in tensors if tensor is not None]

    def same(self, folder: Path, **options: Any) -> bool:
        """Whether a cache answers as it did; False: with other numbers."""
        found = self.answers(folder, **options)
        pairs = zip(found, self.right, strict=True)
        return all(a.shape == b.shape and np.array_equal(a, b) for a, b in pairs)


def stored(folder: Path) -> dict[bytes, dict[str, Any]]:
    """The rows of all shards by key, read by pyarrow alone."""
    found = {}
    for path in sorted(folder.glob("data/*.arrow")):
        with pa.ipc.open_stream(path.read_bytes()) as reader:
            found.update({row["key"]: row for row in reader.read_all().to_pylist()})
    return found


def copied(source: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(source, to))


def arrow(folder: Path, index: int) -> Path:
    return folder / "data" / f"shard-{index:05d}.arrow"


def record(folder: Path, index: int) -> Path:
    return folder / "data" / f"shard-{index:05d}.json"


def seal(folder: Path, index: int, content: bytes | None = None, **fields: Any) -> None:
    """Put another content into a shard, with a record that fits it: xxh3 is no signature."""
    path = arrow(folder, index)
    if content is not None:
        path.write_bytes(content)
    held = read_sealed(record(folder, index))
    own = {"bytes": path.stat().st_size, "file": xxhash.xxh3_128_hexdigest(path.read_bytes())}
    write_sealed(record(folder, index), {**held, **own, **fields})


def change(folder: Path, name: str = "cache.json", **fields: Any) -> None:
    """Set fields of a sealed file and seal it again; a field with a dot is one further in."""
    path = folder / name
    values = read_sealed(path)
    for key, value in fields.items():
        *outer, last = key.split("__")
        inner = values
        for part in outer:
            inner = inner[part]
        if value is MISSING:
            inner.pop(last, None)
        else:
            inner[last] = value
    write_sealed(path, values)


MISSING = object()


def rewritten(
    folder: Path, index: int, change_table: Callable[[pa.Table], pa.Table], **options: Any
) -> bytes:
    """A shard's content after a change that pyarrow itself writes."""
    with pa.ipc.open_stream(arrow(folder, index).read_bytes()) as reader:
        table = change_table(reader.read_all())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def outcomes(
    count: int, attempt: Callable[[int], str], *, memory: int | None = None
) -> Iterator[str]:
    """What each of several attempts gave, made in forked processes: ``signal N`` where one died.

    Args:
        count: How many attempts.
        attempt: Called with the number of each; what it gives has no line breaks.
        memory: How many bytes more than now a process may have.
    """
    done = 0
    while done < count:
        said = _forked(range(done, count), attempt, memory)
        assert said, "a process ended without a word"
        done += len(said)
        yield from said


def _forked(numbers: range, attempt: Callable[[int], str], memory: int | None) -> list[str]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            signal.alarm(300)
            if memory is not None:
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                limit = pages * resource.getpagesize() + memory
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            for number in numbers:
                os.write(writer, attempt(number).replace("\n", " ").encode()[:2000] + b"\n")
        except BaseException as error:
            os.write(writer, f"{type(error).__name__} outside: {error!r:.300}\n".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        said = file.read().decode(errors="replace").splitlines()
    status = os.waitpid(child, 0)[1]
    return [*said, f"signal {os.WTERMSIG(status)}"] if os.WIFSIGNALED(status) else said
