"""A cache after a kill, a full disk, a changed byte: what is whole is used, the rest is named."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import killed_cache_writer
import numpy as np
import pytest
import torch

from hf_distill.teachers.cache.checked_json import (
    FORMAT_VERSION,
    DiskFullError,
    partial_name,
    read_manifest,
    write_manifest,
    write_sealed,
)
from hf_distill.teachers.cache.formats import Full
from hf_distill.teachers.cache.records import (
    DamagedCacheError,
    ShardRecords,
    arrow_path,
    record_path,
)
from hf_distill.teachers.cache.shards import read_keys, remove_stale, write_shard
from hf_distill.teachers.cache.store import ExampleStore

pytestmark = pytest.mark.xdist_group("cache_faults")  # fixtures that are expensive are made once

SPEC = Full("float32", 2)
FULL = Path("/dev/full")
SHARDS, KILLS = 16, 20


def keys(index: int) -> list[bytes]:
    return [bytes([index, i]) + bytes(14) for i in range(5)]


def write(path: Path, index: int) -> None:
    logits = [torch.tensor([[float(index), float(i)]]) for i in range(5)]
    rows = [{"key": k, **SPEC.encode(x)} for k, x in zip(keys(index), logits, strict=True)]
    write_shard(path, index, rows, SPEC.columns())


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Three shards, of five examples each."""
    for index in range(3):
        write(tmp_path, index)
    write_manifest(tmp_path, {"shards": 3})
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ---- kill -9 --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, killed_cache_writer.__file__, str(folder), str(SHARDS), str(KILLS)]
    subprocess.run(command, check=True, timeout=120)
    return folder


def test_resumed_after_a_kill_it_is_the_same_cache(killed: Path) -> None:
    """A shard that was lost or written differently would be missed in training, or never."""
    whole = contents(killed / "whole")
    assert len(whole) == 2 * SHARDS + 1
    for number in range(KILLS):
        assert contents(killed / str(number)) == whole


def test_what_a_kill_leaves_is_whole_or_unfinished(killed: Path) -> None:
    """Half a shard that counts as finished would never be written again."""
    whole, partly, stale = contents(killed / "whole"), 0, 0
    for folder in killed.glob("*.killed"):
        done = ShardRecords(folder).finished()
        assert ShardRecords(folder).damaged() == {}
        found = contents(folder)
        for index in done:
            for path in (arrow_path("", index), record_path("", index)):
                assert found[str(path)] == whole[str(path)]
        if (folder / "cache.json").exists():
            store = ExampleStore(folder, partial=True)
            assert store.shards == tuple(sorted(done))
            for index in done:
                rows = store.rows([row["key"] for row in killed_cache_writer.rows(index)])
                for row, wanted in zip(rows, killed_cache_writer.rows(index), strict=True):
                    assert np.array_equal(row["ids"], wanted["ids"])
        partly += 0 < len(done) < SHARDS
        stale += bool(remove_stale(folder))
        assert not any(path.name.startswith(".") for path in folder.rglob("*"))
    assert partly >= KILLS / 4, "the kills came too early or too late to say anything"
    assert stale, "no kill came while a file was written"


# ---- a full disk ----------------------------------------------------------------------------


def assert_usable(cache: Path) -> None:
    """The finished shards can be read, and the same command completes the cache."""
    assert ShardRecords(cache).finished() >= {0, 1}
    store = ExampleStore(cache, partial=True)
    logits = SPEC.decode_batch(store.rows(keys(1))).logits
    assert logits.tolist() == [[1.0, float(i)] for i in range(5)]
    assert not list(cache.rglob("*.partial"))
    write(cache, 2)
    assert len(ExampleStore(cache)) == 15


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, a device without any space")
@pytest.mark.parametrize("path_of", [arrow_path, record_path])
def test_full_disk(tmp_path: Path, path_of) -> None:
    """Without a word on it, the user deletes the cache and begins anew."""
    for index in range(2):
        write(tmp_path, index)
    write_manifest(tmp_path, {"shards": 3})
    partial_name(path_of(tmp_path, 2)).symlink_to(FULL)  # the kernel itself refuses the bytes
    with pytest.raises(DiskFullError) as raised:
        write(tmp_path, 2)
    assert raised.value.errno == errno.ENOSPC
    said = str(raised.value)
    assert str(tmp_path / "data") in said
    assert "are free now" in said
    assert "finished shards are kept" in said
    assert "run the same command again" in said
    assert 2 not in ShardRecords(tmp_path).finished()
    assert_usable(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_space_may_end_at_any_call(
    cache: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """Some file systems find space only when a file is flushed, or count a quota."""

    def fails(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(f"hf_distill.teachers.cache.checked_json.os.{call}", fails)
        with pytest.raises(
            DiskFullError, match=r"shard-00002.arrow: [1-9][0-9,]* bytes of it were"
        ):
            write(cache, 2)
    assert_usable(cache)


def test_other_errors_leave_nothing_half_written(cache: Path) -> None:
    """The teacher may fail in the middle of a shard, whose rows it makes."""

    def rows():
        yield {"key": keys(2)[0], **SPEC.encode(torch.zeros(1, 2))}
        raise RuntimeError("the teacher failed")

    before = contents(cache)
    with pytest.raises(RuntimeError, match="the teacher failed"):
        write_shard(cache, 2, rows(), SPEC.columns())
    assert contents(cache) == before
    assert_usable(cache)


# ---- changed bytes --------------------------------------------------------------------------


@pytest.mark.parametrize("path_of", [arrow_path, record_path])
def test_any_changed_byte_is_found(cache: Path, path_of) -> None:
    """A changed logit is a wrong target, and a changed offset another example's."""
    path, random = path_of(cache, 1), np.random.default_rng(0)
    content = path.read_bytes()
    for offset in range(len(content)):
        changed = bytearray(content)
        changed[offset] ^= int(random.integers(1, 256))
        path.write_bytes(changed)
        assert list(ShardRecords(cache).damaged()) == [1], offset
    path.write_bytes(content)
    assert ShardRecords(cache).damaged() == {}


def test_any_changed_byte_of_the_manifest_is_found(cache: Path) -> None:
    """It says of which teacher the cache is, and at which temperature."""
    path, random = cache / "cache.json", np.random.default_rng(0)
    content = path.read_bytes()
    for offset in range(len(content)):
        changed = bytearray(content)
        changed[offset] ^= int(random.integers(1, 256))
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"its checksum differs. It was edited or damaged"):
            read_manifest(cache)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "path_of", "reason"),
    [
        (cut, arrow_path, "truncated: [0-9,]+ bytes instead of"),
        (lengthen, arrow_path, "too long"),
        (flip, arrow_path, "its content was changed"),
        (Path.unlink, arrow_path, "missing"),
        (flip, record_path, "its record was changed"),
        (cut, record_path, "its record was changed"),
    ],
)
def test_only_the_damaged_shard_is_rebuilt(cache: Path, harm, path_of, reason: str) -> None:
    """Named wrongly, a whole cache is thrown away, or trained on."""
    before = contents(cache)
    harm(path_of(cache, 1))
    for reading in (
        lambda: ShardRecords(cache).verify(),
        lambda: ShardRecords(cache).verify([0, 1]),
        lambda: ExampleStore(cache),
    ):
        with pytest.raises(DamagedCacheError, match=rf"shard-00001.arrow \({reason}") as raised:
            reading()
        assert list(raised.value.shards) == [1]
        assert "Delete nothing: `hf-distill cache RECIPE` rebuilds only" in str(raised.value)
    ShardRecords(cache).verify([0, 2])
    assert set(ShardRecords(cache).damaged()) == {1}
    write(cache, 1)
    assert contents(cache) == before
    assert len(ExampleStore(cache)) == 15


def test_a_shard_that_was_asked_for_and_is_not_there(cache: Path) -> None:
    """Without its record a shard is unfinished; who counts on it must hear of it."""
    record_path(cache, 1).unlink()
    assert ShardRecords(cache).finished() == {0, 2}
    assert ShardRecords(cache).damaged() == {}
    with pytest.raises(DamagedCacheError, match=r"shard-00001.arrow \(no record"):
        ShardRecords(cache).verify([1])


def test_unverified_reading_still_needs_a_readable_file(cache: Path) -> None:
    """Who skips the checksums sees at least a broken structure, by the name of its shard."""
    path = arrow_path(cache, 1)
    content = bytearray(path.read_bytes())
    content[:8] = b"\xff" * 8
    path.write_bytes(content)
    for reading in (lambda: ExampleStore(cache, verify=False), lambda: read_keys(cache, 1)):
        with pytest.raises(DamagedCacheError, match=r"shard-00001.arrow \(it cannot be read"):
            reading()


def test_changed_keys_are_found(cache: Path) -> None:
    """A resumed writer reads the keys alone, to see that the data are the same."""
    path = arrow_path(cache, 1)
    assert read_keys(cache, 1) == keys(1)
    path.write_bytes(path.read_bytes().replace(keys(1)[3], keys(7)[3]))
    with pytest.raises(DamagedCacheError, match="keys are not those of its record"):
        read_keys(cache, 1)


def test_a_shard_is_found_damaged_on_refresh(cache: Path) -> None:
    """A run that takes in new shards must check them as it did the first ones."""
    store = ExampleStore(cache)
    write(cache, 3)
    flip(arrow_path(cache, 3))
    with pytest.raises(DamagedCacheError, match="shard-00003"):
        store.refresh()
    assert len(store) == 15
    assert SPEC.decode_batch(store.rows(keys(2))).logits[4].tolist() == [2.0, 4.0]


# ---- what is no cache -----------------------------------------------------------------------


def test_a_folder_without_a_cache(tmp_path: Path) -> None:
    """A mistyped path would else read as an empty cache."""
    with pytest.raises(ValueError, match=r"found no cache.json there. `hf-distill cache RECIPE`"):
        ExampleStore(tmp_path / "nothing")
    assert ShardRecords(tmp_path / "nothing").finished() == set()
    assert remove_stale(tmp_path / "nothing") == []


def test_another_version_is_refused(cache: Path) -> None:
    """A later layout, read as this one, would give other numbers."""
    write_sealed(cache / "cache.json", {"format_version": FORMAT_VERSION + 1})
    with pytest.raises(ValueError, match=f"format version {FORMAT_VERSION} .*got"):
        ExampleStore(cache)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"key": b"short", "logits": np.zeros(2, np.float32)}, "key of 16 bytes in row 0"),
        ({"key": bytes(16)}, r"columns \['key', 'logits'\] in row 0, got \['key'\]"),
        ({"key": bytes(16), "logits": np.zeros(2)}, "flat float32 array as logits in row 0"),
        ({"key": bytes(16), "logits": np.zeros((1, 2), np.float32)}, "flat float32 array"),
        ({"key": bytes(16), "logits": [0.0, 1.0]}, "flat float32 array as logits .*'list'"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, row: dict, message: str) -> None:
    """Arrow would convert some of them, and the reader take them for something else."""
    with pytest.raises(ValueError, match=message):
        write_shard(tmp_path, 0, [row], SPEC.columns())
    assert ShardRecords(tmp_path).finished() == set()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
