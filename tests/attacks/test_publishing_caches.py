"""Attacks on the push of a cache: what lies in its folder, its manifest, its vocabulary."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hub_server import HubServer
from leaking import BODY, FORMS, TOKENS, loopback, put, refused
from tally import Tally
from tiny_models import collate
from tiny_trainers import data, models

from hf_distill import ModelTeacher, push_cache, write_cache
from hf_distill.hub.leaks import check_files
from hf_distill.teachers.cache.checked_json import read_manifest, write_manifest

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
NAME = "sequence_classification"


class Words:
    """A tokenizer as far as a cache reads it."""

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0, "b": 1}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with loopback(tmp_path_factory.mktemp("home")) as found:
        yield found


def written(folder: Path, **of_config: Any) -> Path:
    """A cache of two shards, its teacher's configuration with further entries."""
    model = models(NAME)[1]
    for key, value in of_config.items():
        setattr(model.config, key, value)
    teacher = ModelTeacher(model, processor=Words())
    write_cache(folder, teacher, data(NAME, 4), collate, shard_size=2, say=lambda line: None)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("cache") / "whole")


def push(folder: Path, repo: str = "tester/outputs") -> None:
    push_cache(folder, repo, token="dummy")


def test_the_manifest_carries_no_secret(hub: HubServer, whole: Path, tmp_path: Path) -> None:
    """The teacher's configuration is copied into `cache.json`, with the token that stands in it."""
    with Tally("publishing: secrets in a cache's manifest") as attacks:
        with attacks.attack("written by write_cache"):
            folder = written(tmp_path / "told", note=TOKENS["Hub token"])
            assert TOKENS["Hub token"] in (folder / "cache.json").read_text()
            with refused(hub, r"cache\.json holds an access token"):
                push(folder)
        folder = shutil.copytree(whole, tmp_path / "copy")
        facts = read_manifest(folder)
        for what, text in FORMS.items():
            with attacks.attack(what):
                config = {**facts["config"], "note": text}
                write_manifest(folder, {**facts, "config": config})
                with refused(hub, r"cache\.json holds"):
                    push(folder)


def test_only_files_of_the_cache_go_up(hub: HubServer, whole: Path, tmp_path: Path) -> None:
    """`data/*` took notes, foreign shards, unfinished files: all that lay there."""
    folder = shutil.copytree(whole, tmp_path / "cache")
    own = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
    strange = ["data/notes.json", "data/other.arrow", "data/shard-00009.arrow", "data/.x.partial"]
    strange += [
        "notes.txt",
        ".env",
        "config.json",
        "data/sub/shard-00000.arrow",
        "data/shard-1.json",
    ]
    for name in strange:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(TOKENS["Hub token"])
    push(folder, "tester/strange")
    assert set(hub.files("tester/strange")) == own
    assert not [body for body in hub.bodies if BODY[:20].encode() in body]


def test_the_remedy_for_a_token_works(hub: HubServer, tmp_path: Path) -> None:
    """A cache of weeks must not be written anew for a token in a configuration."""
    folder = written(tmp_path / "told", note=TOKENS["Hub token"])
    shards = {path: path.stat().st_mtime_ns for path in (folder / "data").iterdir()}
    with refused(hub, "delete the manifest, and write the cache again; its shards are kept"):
        push(folder)
    (folder / "cache.json").unlink()
    written(folder)
    assert shards == {path: path.stat().st_mtime_ns for path in (folder / "data").iterdir()}
    push(folder, "tester/mended")
    assert "cache.json" in hub.files("tester/mended")


def _link(path: Path, target: Path) -> None:
    shutil.move(path, target)
    path.symlink_to(target)


def test_no_link_of_a_cache_is_followed(hub: HubServer, whole: Path, tmp_path: Path) -> None:
    """A shard, a folder of shards or a README that is a link to a file outside."""
    names = [path.relative_to(whole).as_posix() for path in sorted(whole.rglob("*"))]
    assert "data" in names
    with Tally("publishing: links in a cache") as attacks:
        (tmp_path / "vocabulary.json.gz").symlink_to("nothing is there")
        with attacks.attack("a dangling link"):
            folder = shutil.copytree(whole, tmp_path / "cache")
            (folder / "vocabulary.json.gz").unlink()
            shutil.move(tmp_path / "vocabulary.json.gz", folder)
            with refused(hub, r"vocabulary\.json\.gz is a link"):
                push(folder)
        for number, name in enumerate([*names, "views.jsonl"]):
            with attacks.attack(name):
                folder = shutil.copytree(whole, tmp_path / f"cache-{number}")
                outside = tmp_path / f"outside-{number}"
                if name == "views.jsonl":
                    (folder / name).symlink_to("/etc/passwd")
                else:
                    _link(folder / name, outside)
                with refused(hub, rf"{re.escape(name)} is a link"):
                    push(folder)


def test_files_beside_the_manifest(hub: HubServer, whole: Path, tmp_path: Path) -> None:
    """Its README, its vocabulary and the recorded views are searched as well."""
    token = TOKENS["Hub token"]
    folder = shutil.copytree(whole, tmp_path / "cache")
    card = (folder / "README.md").read_text()
    unescaped = json.dumps({"a": 0, token: 1}).replace("_", "\\u005f")
    cases: list[tuple[str, str, bytes]] = [
        ("README.md", "token", (card + token).encode()),
        ("README.md", "local", (card + "\nmade in /home/agent47/films\n").encode()),
        ("README.md", "UTF-16", card.encode("utf-16")),
        ("vocabulary.json.gz", "token", gzip.compress(unescaped.encode())),
        ("vocabulary.json.gz", "local", gzip.compress(b'{"/home/agent47/films": 0}')),
        ("views.jsonl", "token", json.dumps({"note": token}).encode() + b"\n"),
    ]
    with Tally("publishing: files of a cache") as attacks:
        for name, words, content in cases:
            with attacks.attack(f"{name}: {words}"), put(folder / name, content):
                with refused(hub, re.escape(name)):
                    push(folder)
                _, problems = check_files(folder, [name])
                assert any(name in problem and words in problem for problem in problems)


def test_the_schema_of_a_shard_is_searched(tmp_path: Path) -> None:
    """Arrow keeps notes beside the columns; `pandas` and `datasets` write there."""
    schema = pa.schema([("key", pa.binary())], metadata={"note": TOKENS["Hub token"]})
    with pa.OSFile(str(tmp_path / "shard.arrow"), "w") as sink, pa.ipc.new_stream(sink, schema):
        pass
    _, problems = check_files(tmp_path, ["shard.arrow"])
    assert "access token" in problems[0]


def test_a_clean_cache_goes_up_unchanged(hub: HubServer, whole: Path) -> None:
    """A check that refuses what it should not is as useless as none."""
    push(whole, "tester/clean")
    found = {
        path.relative_to(whole).as_posix(): path.read_bytes()
        for path in whole.rglob("*")
        if path.is_file()
    }
    assert hub.files("tester/clean") == found
