"""A program that writes caches and is killed while it does (for test_cache_faults.py).

Usage: cache_writer.py FOLDER SHARDS KILLS. It writes FOLDER/whole undisturbed, then KILLS times
FOLDER/<n>: a forked process is killed with SIGKILL at a random moment of its work, what is there is
copied to FOLDER/<n>.killed, and another process goes on to the end. The imports are made once.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
import types
from pathlib import Path

import numpy as np

if __name__ == "__main__":  # the storage alone, without models and trainers
    ROOT = Path(__file__).resolve().parents[2]
    for name in ("hf_distill", "hf_distill.teachers", "hf_distill.teachers.cache"):
        package = types.ModuleType(name)
        package.__path__ = [str(ROOT / name.replace(".", "/"))]
        sys.modules[name] = package

import datasets

from hf_distill.teachers.cache.checked_json import write_manifest
from hf_distill.teachers.cache.records import ShardRecords
from hf_distill.teachers.cache.shards import remove_stale, write_shard

FEATURES = datasets.Features({"ids": datasets.List(datasets.Value("uint16"))})


def rows(shard: int) -> list[dict]:
    made = np.random.default_rng(shard).integers(0, 2**16, (40, 50)).astype(np.uint16)
    return [
        {"key": bytes([shard, i]) + bytes(14), "ids": row[: 10 + i]} for i, row in enumerate(made)
    ]


def write(folder: Path, shards: int) -> None:
    """What every start of a writer does."""
    write_manifest(folder, {"shards": shards})
    remove_stale(folder)
    done = ShardRecords(folder).finished()
    for index in range(shards):
        if index not in done:
            write_shard(folder, index, rows(index), FEATURES)


def start(folder: Path, shards: int) -> int:
    child = os.fork()
    if child == 0:
        try:
            write(folder, shards)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return child


def main(folder: Path, shards: int, kills: int) -> None:
    moments = random.Random(0)
    write(folder / "first", shards)  # warm
    begin = time.perf_counter()
    assert os.waitpid(start(folder / "whole", shards), 0)[1] == 0
    lasts = time.perf_counter() - begin
    for number in range(kills):
        own = folder / str(number)
        child = start(own, shards)
        time.sleep(lasts * moments.uniform(0.02, 0.9))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if own.exists():
            shutil.copytree(own, folder / f"{number}.killed")
        assert os.waitpid(start(own, shards), 0)[1] == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
