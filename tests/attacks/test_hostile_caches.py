"""Caches that somebody made to harm: with checksums made anew, they are refused before they crash.

What may kill a process or its memory runs in forked ones, see `caches.outcomes`.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from caches import (
    FORMATS,
    MISSING,
    SHARDS,
    Asking,
    arrow,
    change,
    copied,
    outcomes,
    rewritten,
    seal,
    write,
)
from tally import Tally

from hf_distill import CachedTeacher
from hf_distill.teachers.cache.checked_json import bindings, read_manifest

pytestmark = [
    pytest.mark.xdist_group("hostile_caches"),  # fixtures that are expensive are made once
    pytest.mark.usefixtures("no_waiting_for_disks"),
]

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("hostile")
    for name, options in FORMATS.items():
        write(base / name, **options)
    return base


def bound(folder: Path) -> None:
    """Bind all shards to the manifest as it is now."""
    own = bindings(read_manifest(folder))
    for index in range(SHARDS):
        seal(folder, index, of=own)


# ---- shards, sealed anew ---------------------------------------------------------------------


def edits(folder: Path, name: str, count: int) -> list[tuple[int, bytes]]:
    """Shards with one byte, or up to eight, of another value."""
    chance, found = random.Random(f"edits {name} {count}"), []
    for number in range(count):
        index = chance.randrange(SHARDS)
        content = bytearray(arrow(folder / name, index).read_bytes())
        for _ in range(1 if number % 3 else chance.randrange(2, 9)):
            content[chance.randrange(len(content))] = chance.choice((0, 1, 127, 193, 210, 255))
        found.append((index, bytes(content)))
    return found


def judged(ask: Asking, own: Path, index: int) -> str:
    """``same``, ``other`` or ``refused``; whatever else is a fall."""
    try:
        return "same" if ask.same(own) else "other"
    except ValueError as error:
        named = f"shard-{index:05d}" in str(error) and str(own) in str(error)
        return "refused" if named or "are not there" in str(error) else f"unnamed: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


def attacked(
    area: str, ask: Asking, source: Path, own: Path, cases: list[tuple[int, bytes]]
) -> list[str]:
    copied(source, own)
    right = [arrow(source, index).read_bytes() for index in range(SHARDS)]

    def attempt(number: int) -> str:
        index, content = cases[number]
        seal(own, index, content)
        said = judged(ask, own, index)
        seal(own, index, right[index])
        return said

    found = []
    with Tally(area) as attacks:
        for number, said in enumerate(outcomes(len(cases), attempt)):
            found.append(said)
            with attacks.attack(f"{source.name}, edit {number} of shard {cases[number][0]}"):
                assert said in ("same", "other", "refused"), said
            if said.startswith("signal"):
                copied(source, own)
    assert len(found) == len(cases)
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_of_a_shard_sealed_anew(
    folder: Path, asking: dict[str, Asking], tmp_path: Path, name: str
) -> None:
    """pyarrow takes offsets in a mapped file as they are: one byte killed the process."""
    cases = edits(folder, name, 40)
    area = "caches: bytes of shards, sealed anew"
    found = attacked(area, asking[name], folder / name, tmp_path / "own", cases)
    assert found.count("refused") > len(cases) / 5, "the edits hit nothing"


def test_headers_of_a_batch_sealed_anew(
    folder: Path, asking: dict[str, Asking], tmp_path: Path
) -> None:
    """Each byte of the lengths and offsets of the columns: one of them is what crashed."""
    content = arrow(folder / "float32", 0).read_bytes()
    messages = pa.ipc.MessageReader.open_stream(pa.BufferReader(content))
    start = messages.read_next_message().serialize().size
    size = messages.read_next_message().metadata.size
    places = range(start, start + 8 + size)
    cases = [(0, content[:i] + b"\x7f" + content[i + 1 :]) for i in places]
    area = "caches: bytes of shards, sealed anew"
    found = attacked(area, asking["float32"], folder / "float32", tmp_path / "own", cases)
    assert found.count("refused") > len(cases) / 2, "the edits hit nothing"


def test_messages_of_a_shard_in_another_order(
    folder: Path, asking: dict[str, Asking], tmp_path: Path
) -> None:
    """pyarrow reads whatever comes first as a schema."""
    content = arrow(folder / "float32", 0).read_bytes()
    messages = pa.ipc.MessageReader.open_stream(pa.BufferReader(content))
    schema, batch = (bytes(messages.read_next_message().serialize()) for _ in range(2))
    end = b"\xff" * 4 + bytes(4)
    orders = [batch + end, batch + schema + end, schema + schema + batch + end, end, schema + end]
    orders += [b"", schema + batch + schema + end, schema + batch + batch + end]
    area = "caches: bytes of shards, sealed anew"
    cases = [(0, order) for order in orders]
    found = attacked(area, asking["float32"], folder / "float32", tmp_path / "own", cases)
    assert found == ["refused"] * len(orders)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_bytes_of_a_shard_sealed_anew(
    folder: Path, asking: dict[str, Asking], tmp_path: Path, name: str
) -> None:
    """Every second byte, at another value: no single one may kill the process. (Of a file that is
    mostly numbers every sixth.)"""
    content, chance = arrow(folder / name, 0).read_bytes(), random.Random(0)
    cases: list[tuple[int, bytes]] = []
    for place in range(0, len(content), 2 if len(content) < 2000 else 6):
        value = chance.choice([v for v in (127, 255 - content[place]) if v != content[place]])
        cases.append((0, content[:place] + bytes([value]) + content[place + 1 :]))
    area = "caches: bytes of shards, sealed anew"
    attacked(area, asking[name], folder / name, tmp_path / "own", cases)


Change = Callable[[pa.Table], pa.Table]


def _replaced(name: str, values: Any, kind: pa.DataType | None = None) -> Change:
    def change_table(table: pa.Table) -> pa.Table:
        column = pa.array(values(table[name].to_pylist()), kind or table.schema.field(name).type)
        return table.set_column(table.schema.get_field_index(name), name, column)

    return change_table


def _numbers(value: float) -> Callable[[list[list[float]]], Any]:
    return lambda rows: [[value, *row[1:]] for row in rows]


def _shortened(rows: list[list[float]]) -> Any:
    return [row[:-1] for row in rows]


def _one_missing(rows: list[Any]) -> Any:
    return [None, *rows[1:]]


def _same(rows: list[Any]) -> Any:
    return rows


LISTS = pa.list_(pa.float32())
TABLES: dict[str, tuple[str, Change]] = {
    "NaN in logits": ("float32", _replaced("logits", _numbers(float("nan")))),
    "inf in logits": ("float32", _replaced("logits", _numbers(float("inf")))),
    "inf in half logits": ("int8 states", _replaced("logits", _numbers(np.float16("inf")))),
    "NaN in log_probs": ("top-k", _replaced("log_probs", _numbers(np.float16("nan")))),
    "inf in log_probs": ("top-k", _replaced("log_probs", _numbers(np.float16("inf")))),
    "NaN in tail": ("top-k", _replaced("tail", _numbers(float("nan")))),
    "a tail above 1": ("top-k", _replaced("tail", _numbers(0.5))),
    "ids of no class": ("top-k", _replaced("ids", _numbers(3))),
    "fewer ids": ("top-k", _replaced("ids", _shortened)),
    "fewer log_probs": ("top-k", _replaced("log_probs", _shortened)),
    "fewer tails": ("top-k", _replaced("tail", _shortened)),
    "no counts": ("sampled", _replaced("counts", _numbers(0))),
    "more counts": ("sampled", _replaced("counts", _numbers(9))),
    "fewer counts": ("sampled", _replaced("counts", _shortened)),
    "drawn ids of no class": ("sampled", _replaced("ids", _numbers(40_000))),
    "fewer logits": ("float32", _replaced("logits", _shortened)),
    "twice the items": ("float32", _replaced("logits", lambda rows: [r + r for r in rows])),
    "no logits": ("float32", _replaced("logits", lambda rows: [[] for _ in rows])),
    "a missing row": ("float32", _replaced("logits", _one_missing)),
    "a missing number": ("float32", _replaced("logits", lambda r: [[None, *x[1:]] for x in r])),
    "a missing key": ("float32", _replaced("key", _one_missing)),
    "short keys": ("float32", _replaced("key", lambda rows: [key[:8] for key in rows])),
    "long keys": ("float32", _replaced("key", lambda rows: [key * 2 for key in rows])),
    "empty keys": ("float32", _replaced("key", lambda rows: [b"" for _ in rows])),
    "doubles": ("float32", _replaced("logits", _same, pa.list_(pa.float64()))),
    "large lists": ("float32", _replaced("logits", _same, pa.large_list(pa.float32()))),
    "lists of one length": ("float32", _replaced("logits", _same, pa.list_(pa.float32(), 3))),
    "lists of lists": ("float32", _replaced("logits", lambda r: [[x] for x in r], pa.list_(LISTS))),
    "texts": ("float32", _replaced("logits", lambda r: [str(x) for x in r], pa.string())),
    "keys as texts": ("float32", _replaced("key", lambda r: [k.hex() for k in r], pa.string())),
    "a dictionary": (
        "float32",
        lambda table: table.set_column(0, "key", table["key"].dictionary_encode()),
    ),
    "no column": ("float32", lambda table: table.drop_columns(["logits"])),
    "no keys": ("float32", lambda table: table.drop_columns(["key"])),
    "one column more": ("float32", lambda table: table.append_column("more", table["logits"])),
    "a column twice": ("float32", lambda table: table.append_column("logits", table["logits"])),
    "another name": ("float32", lambda table: table.rename_columns(["key", "logit"])),
    "fewer rows": ("float32", lambda table: table.slice(0, 1)),
    "no rows": ("float32", lambda table: table.slice(0, 0)),
    "negative scales": ("int8 states", _replaced("hidden.hidden.1.scale", _numbers(-1.0))),
    "NaN in scales": ("int8 states", _replaced("hidden.hidden.1.scale", _numbers(float("nan")))),
    "fewer scales": ("int8 states", _replaced("hidden.hidden.1.scale", _shortened)),
    "fewer states": ("int8 states", _replaced("hidden.hidden.1", _shortened)),
    "states of one place": ("int8 states", lambda table: _one_place(table)),
}


def _one_place(table: pa.Table) -> pa.Table:
    width = 24
    table = _replaced("hidden.hidden.1", lambda rows: [row[:width] for row in rows])(table)
    return _replaced("hidden.hidden.1.scale", lambda rows: [row[:1] for row in rows])(table)


def test_tables_that_do_not_fit(folder: Path, asking: dict[str, Asking], tmp_path: Path) -> None:
    """Written by pyarrow itself, with a right checksum: tracebacks, or numbers of other rows."""
    with Tally("caches: other tables in a shard, sealed anew") as attacks:
        for what, (name, change_table) in TABLES.items():
            own = copied(folder / name, tmp_path / "own")
            content = rewritten(own, 1, change_table)
            seal(own, 1, content)
            with attacks.attack(what):
                said = judged(asking[name], own, 1)
                assert said == "refused", said
            rows = pa.ipc.open_stream(content).read_all().num_rows
            seal(own, 1, rows=rows)
            with attacks.attack(f"{what}, rows counted anew"):
                said = judged(asking[name], own, 1)
                assert said == "refused", said


def test_compressed_columns_are_refused(folder: Path, tmp_path: Path) -> None:
    """25 kB unpacked to 2.7 GB before anything was looked at."""
    own = copied(folder / "float32", tmp_path / "own")

    def large(table: pa.Table) -> pa.Table:
        logits = np.zeros(len(table) * 2**26, np.float32)
        offsets = pa.array(np.arange(len(table) + 1, dtype=np.int32) * 2**26)
        column = pa.ListArray.from_arrays(offsets, pa.array(logits))
        return table.set_column(1, "logits", column)

    contents = [rewritten(own, 1, large, compression="zstd")]
    contents += [rewritten(own, 1, lambda table: table, compression=c) for c in ("zstd", "lz4")]
    assert len(contents[0]) < 100_000

    def attempt(number: int) -> str:
        seal(own, 1, contents[number])
        try:
            CachedTeacher(own, verify=number > 0)
        except ValueError as error:
            return str(error)
        return "accepted"

    with Tally("caches: compressed columns") as attacks:
        for said in outcomes(len(contents), attempt, memory=200 * MEGABYTE):
            with attacks.attack("a compressed column"):
                assert "shard-00001.arrow" in said, said
                assert "a compressed column" in said, said


# ---- manifests, sealed anew ------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    *(MISSING, None, True, 0, -1, 3, 10**8, 10**30, 1.5, "", "x", "softmax", "../x"),
    *([], {}, [1], [[]], ["x"], [None], {"kind": "full"}, {"kind": []}, {"kind": "states"}),
    *({"a": 1}, {"kind": "top_k", "k": 10**12}, {"hidden.hidden": 10**9}),
)
FIELDS = (
    *("teacher", "task", "inputs", "tokenizer", "preprocessing", "content", "views", "describe"),
    *("config", "examples", "shard_size", "shards", "format_version"),
    *(f"content__{name}" for name in ("kind", "logits", "states", "layers", "axis", "more")),
    *(f"content__logits__{name}" for name in ("kind", "dtype", "width", "k", "more")),
    *("content__states__shapes", "content__states__dtype"),
    *("content__states__shapes__hidden.hidden.1", "content__layers__hidden.hidden"),
    *("config__model_type", "config__num_labels", "config__num_hidden_layers", "config__id2label"),
    *("config__hidden_size", "config__vocab_size", "config__auto_map", "config__layer_types"),
)


def manifests() -> Iterator[tuple[str, str, Any]]:
    for field in FIELDS:
        for value in VALUES:
            states = "states" in field or field.startswith("content__layers")
            yield "int8 states" if states else "float32", field, value
    for model_type in ("qwen2", "llama", "vit", "t5", "no such", "auto"):
        yield "float32", "config", {"model_type": model_type, "num_hidden_layers": 10**9}
        yield "float32", "config", {"model_type": model_type, "num_labels": 3_000_000}
        yield "float32", "config", {"model_type": model_type, "auto_map": {"AutoConfig": "x.Y"}}


@pytest.mark.parametrize(
    "count", [150, pytest.param(None, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_manifests_of_other_types(
    folder: Path, asking: dict[str, Asking], tmp_path: Path, count: int | None
) -> None:
    """10**8 shards took 22 s and 4 GB, three million labels 63 s, and the rest was tracebacks.

    What is accepted answers as before, or differs in nothing but what is told of the teacher."""
    cases, chance = list(manifests()), random.Random(0)
    chance.shuffle(cases)
    first = [case for case in cases if case[1] in ("shards", "config") or case[2] == 10**8]
    cases = [*first, *(case for case in cases if case not in first)][:count]
    own = {name: copied(folder / name, tmp_path / name) for name in FORMATS}

    def attempt(number: int) -> str:
        name, field, value = cases[number]
        before = (own[name] / "cache.json").read_bytes()
        try:
            change(own[name], **{field: value})
            if field != "format_version":
                bound(own[name])
            return "same" if asking[name].same(own[name]) else "other"
        except ValueError as error:
            return "refused" if str(own[name]) in str(error) else f"unnamed: {error}"
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
        finally:
            (own[name] / "cache.json").write_bytes(before)

    found = []
    with Tally("caches: manifests, sealed anew") as attacks:
        for number, said in enumerate(outcomes(len(cases), attempt, memory=400 * MEGABYTE)):
            found.append(said)
            with attacks.attack(f"{cases[number]}"):
                assert said in ("same", "refused"), said
    assert found.count("refused") > len(found) / 2


# ---- vocabularies ----------------------------------------------------------------------------


def _bomb(size: int) -> bytes:
    packed = gzip.compress(bytes([32]) * MEGABYTE, mtime=0)
    return packed * (size // MEGABYTE)


def vocabularies(right: bytes) -> dict[str, bytes]:
    texts = {
        "a list": b'["a", "b"]',
        "no JSON": b"a b",
        "deep": b"[" * 200_000 + b"]" * 200_000,
        "deep mappings": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "ids as texts": b'{"a": "0", "b": "1"}',
        "ids with a comma": b'{"a": 0.5, "b": 1}',
        "ids of NaN": b'{"a": NaN, "b": 1}',
        "a long id": b'{"a": ' + b"1" * 5000 + b"}",
        "no UTF-8": b'{"\xff": 0}',
        "empty text": b"",
    }
    found = {what: gzip.compress(text, mtime=0) for what, text in texts.items()}
    found |= {"no gzip": b'{"a": 0, "b": 1}', "nothing": b"", "cut": right[:-9]}
    found |= {"a bomb of 1.5 GB": _bomb(1536 * MEGABYTE), "two files": right + right}
    found |= {"garbage behind": right + b"garbage"}
    for number in range(60):
        changed = bytearray(right)
        changed[number * len(right) // 60] ^= 1 << number % 8
        found[f"flipped bit {number}"] = bytes(changed)
    return found


def test_vocabularies_are_bounded(folder: Path, asking: dict[str, Asking], tmp_path: Path) -> None:
    """1.5 MB unpacked to 1.5 GB; what is no gzip, or cut short, was a traceback."""
    own = copied(folder / "float32", tmp_path / "own")
    path = own / "vocabulary.json.gz"
    cases = vocabularies(path.read_bytes())

    def attempt(number: int) -> str:
        path.write_bytes(list(cases.values())[number])
        try:
            return "same" if asking["float32"].same(own) else "other"
        except ValueError as error:
            return "refused" if str(path) in str(error) else f"unnamed: {error}"
        except BaseException as error:
            return f"{type(error).__name__}: {error}"

    with Tally("caches: vocabularies") as attacks:
        said = list(outcomes(len(cases), attempt, memory=600 * MEGABYTE))
        for what, outcome in zip(cases, said, strict=True):
            with attacks.attack(what):
                wanted = ("refused", "same") if what.startswith("flipped") else ("refused",)
                assert outcome in wanted, outcome
