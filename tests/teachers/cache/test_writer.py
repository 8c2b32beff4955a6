"""Writing a cache: killed at any moment, on several processes, on a full disk, onto the Hub."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import torch
from hub_server import HubServer
from launch import launch
from tiny_models import collate
from tiny_trainers import data, models

from hf_distill import CachedTeacher, ModelTeacher, Needs, push_cache, write_cache
from hf_distill.teachers.cache import ExampleStore
from hf_distill.teachers.cache.records import ShardRecords

pytestmark = pytest.mark.xdist_group("cache_writing")  # fixtures that are expensive are made once

NAME = "sequence_classification"
ROWS = 60
FORM: dict[str, Any] = {"hidden_states": True, "batch_size": 4, "shard_size": 6}


LOGITS = Needs(logits=True, unsampled=True, full_vocabulary=True)


def quiet(line: str) -> None:
    """Nothing is printed."""


def write(folder: str | Path, **options: Any) -> None:
    options = {**FORM, "say": quiet, **options}
    write_cache(folder, ModelTeacher(models(NAME)[1]), data(NAME, ROWS), collate, **options)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write(folder)
    return folder


def test_a_kill_at_any_moment_loses_one_shard_at_most(tmp_path: Path, whole: Path) -> None:
    """Ten kills in a row, each in another place; what is there in the end is the same."""
    chance = random.Random(0)
    folder, counts, kills = tmp_path / "cache", [0], 0
    start = time.perf_counter()
    write(tmp_path / "timed")
    duration = time.perf_counter() - start
    while kills < 10:
        child = os.fork()
        if child == 0:
            try:
                write(folder)
            finally:
                os._exit(0)
        time.sleep(chance.uniform(0.0, 0.5 * duration))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
        there = len(list((folder / "data").glob("shard-*.json"))) if folder.is_dir() else 0
        assert there >= counts[-1]  # nothing is lost
        counts.append(there)
        assert not ShardRecords(folder).damaged()
        if there == ROWS // FORM["shard_size"]:  # done: once more from the start
            assert files(folder).keys() >= files(whole).keys()
            folder, counts = tmp_path / f"cache {kills}", [0]
    write(folder)
    assert files(folder) == files(whole)


class Words:
    """A tokenizer as far as a cache reads it."""

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0, "b": 1}


@pytest.fixture(scope="module")
def few() -> Callable[[Path], None]:
    """Write a cache of two shards, with every file that a cache can have."""
    teacher = ModelTeacher(models(NAME)[1], processor=Words())
    return lambda folder: _write_few(folder, teacher)


def _write_few(folder: Path, teacher: ModelTeacher) -> None:
    write_cache(folder, teacher, data(NAME, 4), collate, shard_size=2, say=quiet)


def killed_at(moment: int, work: Callable[[], None]) -> bool:
    """Whether a process was killed before its n-th change of what is on the disk."""
    child = os.fork()
    if child == 0:
        count = 0

        def dying(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                if count == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                return real(*arguments, **options)

            return call

        for name in ("fsync", "replace"):  # three states of each file
            setattr(os, name, dying(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_kill_at_each_moment_leaves_what_the_next_call_completes(
    tmp_path: Path, few: Callable[[Path], None]
) -> None:
    """Not by chance: before each change of what is on the disk. A card, a vocabulary or a shard
    that is made in the first call alone would be missing for ever."""
    few(tmp_path / "whole")
    whole = files(tmp_path / "whole")
    assert {"README.md", "cache.json", "vocabulary.json.gz"} < set(whole)
    moments = 0
    while True:
        folder = tmp_path / str(moments)
        if not killed_at(moments, lambda folder=folder: few(folder)):  # type: ignore[misc]
            break
        few(folder)
        assert files(folder) == whole, moments
        moments += 1
    assert moments == 3 * len(whole)


@pytest.mark.parametrize("name", ["README.md", "vocabulary.json.gz"])
def test_a_file_that_is_gone_is_made_again(
    tmp_path: Path, few: Callable[[Path], None], name: str
) -> None:
    """Caches whose writer was killed by an earlier version lack their card."""
    few(tmp_path)
    whole = files(tmp_path)
    (tmp_path / name).unlink()
    few(tmp_path)
    assert files(tmp_path) == whole


def test_what_a_person_wrote_into_the_card_stays(
    tmp_path: Path, few: Callable[[Path], None]
) -> None:
    """It would be lost with the next call, which completes what is there."""
    few(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    few(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_nothing_is_done_twice(tmp_path: Path) -> None:
    """A second call asks the teacher about no shard that is there."""
    teacher, calls = ModelTeacher(models(NAME)[1]), []
    ask = teacher.task_model.ask

    def counted(*arguments: Any) -> Any:
        calls.append(len(arguments[1]["input_ids"]))
        return ask(*arguments)

    teacher.task_model.ask = counted
    options: dict[str, Any] = {**FORM, "say": quiet}
    write_cache(tmp_path, teacher, data(NAME, ROWS), collate, **options)
    assert sum(calls) == ROWS + 2  # a look at two of them first
    calls.clear()
    shard = tmp_path / "data" / "shard-00003.arrow"
    before = files(tmp_path)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-00003\.arrow"):
        CachedTeacher(tmp_path)
    write_cache(tmp_path, teacher, data(NAME, ROWS), collate, **options)
    assert sum(calls) == FORM["shard_size"] + 2  # it alone is made again
    assert files(tmp_path) == before


def write_together(folder: str) -> None:
    write(folder)


@pytest.mark.slow
def test_two_processes_write_the_same_cache(tmp_path: Path, whole: Path) -> None:
    """A shard that is written twice, or by none, would be seen months later."""
    launch(write_together, tmp_path / "cache", processes=2)
    assert files(tmp_path / "cache") == files(whole)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is finished stays and can be read; the message says what to do."""
    real, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"(?s)disk|space") as error:
        write(tmp_path)
    assert str(tmp_path) in str(error.value)
    monkeypatch.undo()
    there = ExampleStore(tmp_path, partial=True)
    assert len(there) > 0
    assert not list(tmp_path.rglob("*.partial"))
    with pytest.raises(ValueError, match=r"Expected 10 shards"):
        CachedTeacher(tmp_path)
    write(tmp_path)
    assert len(CachedTeacher(tmp_path)._store) == ROWS


def test_order_and_batches_of_the_training_do_not_matter(whole: Path) -> None:
    """The same example has the same outputs wherever it stands."""
    cached, live = CachedTeacher(whole), ModelTeacher(models(NAME)[1])
    examples = data(NAME, ROWS)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0)).tolist()
    for size in (1, 7):
        for start in range(0, ROWS, size):
            batch = collate([examples[i] for i in order[start : start + size]])
            items = live.task_model.items(batch)
            ours, theirs = (t(batch, LOGITS, items).logits for t in (cached, live))
            assert ours is not None
            assert theirs is not None
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# huggingface_hub's own way of uploading, which httpx finds old
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_cache_is_a_data_set_of_the_hub(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes up is the whole cache, without a path of this machine; what comes down works."""
    (whole / "notes.txt").write_text("mine")
    with HubServer() as hub, monkeypatch.context() as patch:
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        patch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        push_cache(whole, "tester/outputs", token="dummy")
        sent = hub.files("tester/outputs")
        cached = CachedTeacher("tester/outputs")
    (whole / "notes.txt").unlink()
    assert sent == files(whole)
    for name, content in sent.items():
        assert name.endswith(".arrow") or str(whole.parent).encode() not in content
    assert len(cached._store) == ROWS
    rows = datasets.load_dataset(str(whole), split="train", streaming=True)
    first = next(iter(rows))
    assert {"key", "logits"} <= first.keys()
    assert len(first["key"]) == 16


STREAM = """
import sys
import datasets
from hf_distill import push_cache
push_cache(sys.argv[1], "tester/outputs")
rows = datasets.load_dataset("tester/outputs", split="train", streaming=True)
print("streamed", sum(len(row["key"]) == 16 and len(row["logits"]) == 3 for row in rows))
"""


@pytest.mark.slow
def test_it_is_streamed_from_the_hub(whole: Path, tmp_path: Path) -> None:
    """In a process of its own: `datasets` reads where the Hub is when it is imported."""
    with HubServer() as hub:
        environment = {**os.environ, **hub.environment(tmp_path), "HF_DATASETS_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", STREAM, str(whole)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"streamed {ROWS}" in done.stdout
