"""Processes that share a work, or its folder: none does it twice, none breaks another's.

Nothing here tells accelerate that there are CPUs alone: `torchrun` and Ray do not either.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from tally import Tally
from tiny_models import CASES, collate
from tiny_trainers import config, data, models, trainer, weights
from transformers import TrainerCallback

from hf_distill import CachedTeacher, ModelTeacher, write_cache
from hf_distill.teachers.cache.checked_json import ABANDONED, partial_name
from hf_distill.teachers.cache.records import ShardRecords
from hf_distill.teachers.cache.shards import remove_stale
from hf_distill.training.on_policy import Sampling, generate_dataset
from hf_distill.utils.processes import process_state

ROWS, SIZE = 18, 3
NAME = "sequence_classification"
SHARED = {
    "torchrun": {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
    "a Ray worker": {"WORLD_SIZE": "2"},
    "a process group": {},
    "no launch": {},
}


@pytest.fixture(autouse=True)
def _plain() -> Iterator[None]:
    """No state of accelerate's from another test, and none for the next one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def pair(work: Callable[..., None], *arguments: Any, launch: str = "torchrun") -> None:
    """Call ``work(rank, *arguments)`` in two forked processes with a launcher's variables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def begin(rank: int) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ.pop("ACCELERATE_USE_CPU", None)
        if SHARED[launch]:
            os.environ.update({**SHARED[launch], **place, "RANK": str(rank)})
        if launch == "a process group":
            address = f"tcp://127.0.0.1:{port}"
            torch.distributed.init_process_group("gloo", address, rank=rank, world_size=2)
        if launch == "torchrun":
            os.environ["LOCAL_RANK"] = str(rank)
        work(rank, *arguments)
        os._exit(0)  # without this process's tests' own cleaning up

    started = [multiprocessing.get_context("fork").Process(target=begin, args=(r,)) for r in (0, 1)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    assert codes == [0, 0], f"exit codes {codes}"


class Slow(ModelTeacher):
    """A teacher that counts its questions, and takes a moment for each."""

    asked = 0
    pause = 0.0

    def __call__(self, batch: Any, needs: Any, items: Any) -> Any:
        self.asked += len(items.masks["samples"])
        time.sleep(self.pause)
        return super().__call__(batch, needs, items)


def write(rank: int, folder: Path, pause: float = 0.0, seed: int | None = None) -> None:
    teacher = Slow(models(NAME)[1])
    moments = random.Random(None if seed is None else (seed << 1) + rank)
    teacher.pause = pause
    time.sleep(moments.random() * pause * 4)
    options: dict[str, Any] = {"batch_size": SIZE, "shard_size": SIZE, "say": lambda line: None}
    write_cache(folder, teacher, data(NAME, ROWS), collate, **options)
    (folder.parent / f"asked-{rank}").write_text(str(teacher.asked))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def complete(folder: Path) -> None:
    CachedTeacher(folder)
    assert not ShardRecords(folder).damaged()
    assert not list(folder.rglob(".*"))


def test_processes_share_a_cache(tmp_path: Path) -> None:
    """Each process would ask the teacher everything, and they would rename each other's files."""
    write(0, tmp_path / "alone" / "cache")
    with Tally("processes: one cache") as attacks:
        for launch in ("torchrun", "a Ray worker", "a process group"):
            with attacks.attack(launch):
                own = tmp_path / launch
                pair(write, own / "cache", launch=launch)
                asked = [int((own / f"asked-{rank}").read_text()) for rank in (0, 1)]
                looks = 2  # each process looks at two examples before
                assert sum(asked) == ROWS + 2 * looks
                assert min(asked) == ROWS // 2 + looks
                assert contents(own / "cache") == contents(tmp_path / "alone" / "cache")
                complete(own / "cache")


def race(folder: Path, rounds: range) -> None:
    with Tally("processes: two writers of one folder") as attacks:
        for number in rounds:
            with attacks.attack(f"round {number}"):
                own = folder / str(number)
                own.mkdir()
                pair(write, own / "cache", 0.01, number, launch="no launch")
                complete(own / "cache")


def test_two_writers_that_do_not_know_each_other(tmp_path: Path) -> None:
    """The second would remove what the first is writing, or write into the very same file."""
    race(tmp_path, range(2))


@pytest.mark.slow
def test_many_writers_that_do_not_know_each_other(tmp_path: Path) -> None:
    """As above, at more moments."""
    race(tmp_path, range(3, 15))


def add(rank: int, folder: Path) -> None:
    """Read examples that are not in the cache, half of them in each process, and add them."""
    live = ModelTeacher(models(NAME)[1])
    cached, rows = CachedTeacher(folder, live=live), data(NAME, 12 + ROWS)[ROWS + rank :: 2]
    batch = collate(rows)
    cached(batch, cached.provides, live.task_model.items(batch))
    while len(list(folder.parent.glob("ready-*"))) < 2:  # both know the same shards
        (folder.parent / f"ready-{rank}").touch()
        time.sleep(0.01)
    cached.save()


def test_what_two_runs_add_to_a_cache_is_kept(tmp_path: Path) -> None:
    """Both would write the shard of the same number: half of it lost, or one's record beside
    the other's data."""
    write(0, tmp_path / "cache")
    with Tally("processes: two runs add to a cache") as attacks, attacks.attack("at once"):
        pair(add, tmp_path / "cache", launch="no launch")
        assert len(CachedTeacher(tmp_path / "cache")._store) == ROWS + 12
        complete(tmp_path / "cache")


def test_unfinished_files_of_others(tmp_path: Path) -> None:
    """A file that somebody writes on another machine is not to be told from a dead one's."""
    (tmp_path / "data").mkdir()
    own = partial_name(tmp_path / "data" / "shard-00000.arrow")
    assert str(os.getpid()) in own.name
    with Tally("processes: unfinished files") as attacks:
        for name, age, stays in (
            (own.name, 0, False),
            (".shard-00001.arrow.partial", 0, False),  # of an earlier version
            (".shard-00001.arrow.elsewhere-7.partial", 0, True),
            (".shard-00001.arrow.elsewhere-7.partial", ABANDONED + 60, False),
        ):
            with attacks.attack(f"{name}, {age:.0f} s old"):
                path = own.with_name(name)
                path.write_bytes(b"torn")
                os.utime(path, (time.time() - age,) * 2)
                assert remove_stale(tmp_path) == ([] if stays else [name])
                assert path.exists() == stays


def train(rank: int, folder: Path, batch: int, cpu: bool = False) -> None:
    ours = trainer(
        folder / "out",
        NAME,
        train_dataset=data(NAME, 8),
        args=config(
            folder / "out",
            per_device_train_batch_size=batch,
            train_sampling_strategy="sequential",
            optim="sgd",
            use_cpu=cpu,
        ),
    )
    assert ours.args.world_size * batch == 8
    ours.train()
    save_file(weights(ours.model), folder / f"{rank}.safetensors")


def test_processes_train_one_student(tmp_path: Path) -> None:
    """Each process would train a student of its own, and overwrite the other's checkpoints."""
    train(0, tmp_path, 8, cpu=True)
    whole = load_file(tmp_path / "0.safetensors")
    with Tally("processes: one student") as attacks, attacks.attack("torchrun"):
        pair(train, tmp_path, 4)
        found = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
        for name, value in whole.items():
            assert torch.equal(found[0][name], found[1][name]), name
            torch.testing.assert_close(found[0][name], value, rtol=1e-4, atol=1e-6)


def resume(rank: int, folder: Path) -> None:
    """Resume from a checkpoint of one process; then from one of two, of which a file is damaged."""
    options = {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2}
    ours = trainer(folder / "two", max_steps=3, **options)
    ours.train(resume_from_checkpoint=str(folder / "one" / "checkpoint-1"))
    last = folder / "two" / "checkpoint-3"
    if rank == 0:
        (last / "rng_state_1.pth").write_bytes(b"torn")
    ours.accelerator.wait_for_everyone()
    with pytest.raises(ValueError, match=r"rng_state_1\.pth .*Resume from .*checkpoint-2") as error:
        trainer(folder / "two", max_steps=4, **options).train(resume_from_checkpoint=str(last))
    (folder / f"{rank}.txt").write_text(str(error.value))


def test_processes_agree_about_a_checkpoint(tmp_path: Path) -> None:
    """One process would go on alone, and wait for the others for ever."""
    trainer(tmp_path / "one", max_steps=1, save_strategy="steps", save_steps=1).train()
    with Tally("processes: one checkpoint") as attacks, attacks.attack("a damaged random state"):
        pair(resume, tmp_path)
        told = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
        assert told[0] == told[1]


class Waiting(TrainerCallback):
    """Tells that the first step is done, and holds the run there."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def on_step_end(self, *args: Any, **options: Any) -> None:
        self.mark.touch()
        time.sleep(120)


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    """Two runs write one checkpoint together, of one's weights and the other's optimizer."""
    saving = {"save_strategy": "steps", "save_steps": 1}

    def hold() -> None:
        trainer(tmp_path / "out", callbacks=[Waiting(tmp_path / "mark")], **saving).train()

    first = multiprocessing.get_context("fork").Process(target=hold)
    with Tally("processes: two runs in one folder") as attacks:
        first.start()
        while not (tmp_path / "mark").exists():
            assert first.is_alive()
            time.sleep(0.02)
        with attacks.attack("at once"):
            with pytest.raises(ValueError, match=rf"out is in use: .*{first.pid}"):
                trainer(tmp_path / "out", **saving).train()
            trainer(tmp_path / "out").train()  # which writes no checkpoint
        first.kill()
        first.join(30)
        with attacks.attack("after a kill"):
            trainer(tmp_path / "out", **saving).train()
            assert not list((tmp_path / "out").glob(".*"))


def texts(rank: int, folder: Path) -> None:
    """A teacher's texts, and how many shards of them this process wrote."""
    case = CASES["causal_lm"]
    prompts = [{"input_ids": list(row["input_ids"])[:4]} for row in case.data(8, torch.float32)]
    model = case.models(torch.float32)[1]
    generate, calls = model.generate, []
    model.generate = lambda *args, **options: calls.append(1) or generate(*args, **options)
    rows = datasets.Dataset.from_list(prompts)
    found = generate_dataset(model, rows, None, folder, sampling=Sampling(3), shard_size=2)
    assert len(found) == 8
    (folder.parent / f"texts-{rank}").write_text(str(len(calls)))


@pytest.mark.slow
def test_processes_share_the_texts(tmp_path: Path) -> None:
    """Each process would write all texts."""
    with Tally("processes: texts") as attacks, attacks.attack("torchrun"):
        pair(texts, tmp_path / "texts")
        assert [(tmp_path / f"texts-{rank}").read_text() for rank in (0, 1)] == ["2", "2"]


def test_processes_that_cannot_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would do everything alone, or all would wait for ever."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    with Tally("processes: refusals") as attacks:
        with attacks.attack("no address"), pytest.raises(ValueError, match="RANK and MASTER_ADDR"):
            process_state()
        with attacks.attack("arguments"), pytest.raises(ValueError, match="RANK and MASTER_ADDR"):
            config(Path("never made"), use_cpu=False)
        PartialState()
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        with attacks.attack("too late"), pytest.raises(ValueError, match="Expected 2 processes"):
            process_state()
