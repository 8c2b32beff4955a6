"""Caches that outlive what they were made of: on the Hub, in shared folders, of other teachers."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from caches import change, copied, examples, stored, teacher, write
from hub_server import HubServer
from leaking import loopback
from peft import LoraConfig, get_peft_model
from tally import Tally
from tiny_models import collate

from hf_distill import BaseModelTeacher, CachedTeacher, Ensemble, HTTPTeacher, push_cache
from hf_distill.recipe.caching import CacheStage
from hf_distill.recipe.sections import CacheSection
from hf_distill.teachers.cache.checked_json import bindings, read_manifest
from hf_distill.teachers.cache.manifest import teacher_fingerprint
from hf_distill.teachers.cache.recorded_views import AugmentationLog
from hf_distill.teachers.serving import TeacherServer

# huggingface_hub's own way of uploading, which httpx finds old
pytestmark = [
    pytest.mark.usefixtures("no_waiting_for_disks"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # of PEFT
]
REPO = "tester/outputs"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with loopback(tmp_path / "home") as found:
        yield found


def on_disk(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def ask(cached: CachedTeacher, rows: list[Any]) -> np.ndarray:
    batch: Any = collate(rows)
    logits = cached(batch, cached.provides, teacher().task_model.items(batch)).logits
    assert logits is not None
    return logits.numpy()


# ---- on the Hub ------------------------------------------------------------------------------


def test_a_push_leaves_nothing_of_an_earlier_cache(hub: HubServer, tmp_path: Path) -> None:
    """The shards of another teacher, from more examples, lay on the Hub and answered for examples
    that the new one does not hold. One commit adds and removes."""
    larger, smaller = tmp_path / "a", tmp_path / "b"
    write(larger)
    (larger / "views.jsonl").write_text("{}\n")
    push_cache(larger, REPO, token="dummy")
    assert hub.files(REPO) == on_disk(larger)
    write(smaller, teacher(changed=True), rows=6)
    (smaller / "vocabulary.json.gz").unlink()  # of a teacher without a tokenizer
    manifest = read_manifest(smaller)
    shutil.rmtree(smaller)
    plain = teacher(changed=True)
    plain._processor = None
    write(smaller, plain, rows=6)
    assert read_manifest(smaller)["tokenizer"] is None is not manifest["tokenizer"]
    commits = len(hub.repos[REPO].commits)
    push_cache(smaller, REPO, token="dummy")
    assert len(hub.repos[REPO].commits) == commits + 1
    assert hub.files(REPO) == on_disk(smaller)
    cached = CachedTeacher(REPO)
    wanted = stored(smaller)
    assert (len(cached._store), cached._store.missing(list(wanted))) == (len(wanted), [])
    found = {tuple(row) for row in ask(cached, examples(6)).tolist()}
    assert found == {tuple(row["logits"]) for row in wanted.values()}
    with pytest.raises(ValueError, match="examples of this batch in the cache"):
        ask(cached, examples()[6:])


def test_a_data_set_of_another_kind_is_not_replaced(hub: HubServer, tmp_path: Path) -> None:
    """A mistyped name: the files of somebody's data set would be deleted."""
    write(tmp_path / "a", rows=2)
    push_cache(tmp_path / "a", REPO, token="dummy")
    repo = hub.repos[REPO]
    theirs = {"data/train-00000.parquet": b"theirs", "README.md": b"theirs"}
    repo.commit("main", theirs)
    with pytest.raises(ValueError, match=r"has data/train-00000\.parquet and no cache\.json"):
        push_cache(tmp_path / "a", REPO, token="dummy")
    assert hub.files(REPO) == theirs


def test_an_unfinished_or_mixed_cache_is_not_pushed(hub: HubServer, tmp_path: Path) -> None:
    """Others would find out only in training."""
    write(tmp_path / "a")
    write(tmp_path / "b", teacher(changed=True))
    with Tally("caches: pushes of what is none") as attacks:
        for what in ("a foreign shard", "a missing one", "a missing record", "a huge count"):
            own = copied(tmp_path / "a", tmp_path / "own")
            if what == "a foreign shard":
                for end in ("arrow", "json"):
                    shutil.copy(tmp_path / "b/data" / f"shard-00002.{end}", own / "data")
            elif what == "a huge count":
                change(own, shards=10**8, examples=2 * 10**8)
            else:
                (own / f"data/shard-00002.{'json' if 'record' in what else 'arrow'}").unlink()
            with attacks.attack(what), pytest.raises(ValueError, match="shard-0000"):
                push_cache(own, REPO, token="dummy")
            assert REPO not in hub.repos


def test_a_downloaded_cache_is_always_verified(hub: HubServer, tmp_path: Path) -> None:
    """`verify=False` is for one's own disk; what others sent may be anything."""
    write(tmp_path / "a", rows=2)
    push_cache(tmp_path / "a", REPO, token="dummy")
    files = hub.files(REPO)
    content = bytearray(files["data/shard-00000.arrow"])
    logits = next(iter(stored(tmp_path / "a").values()))["logits"]
    content[content.rindex(np.float32(logits[0]).tobytes())] ^= 1
    hub.lfs[hashlib.sha256(content).hexdigest()] = bytes(content)
    hub.repos[REPO].commit("main", {**files, "data/shard-00000.arrow": bytes(content)})
    with pytest.raises(ValueError, match=r"shard-00000\.arrow \(its content was changed"):
        CachedTeacher(REPO, verify=False)
    (tmp_path / "a/data/shard-00000.arrow").write_bytes(content)
    assert len(CachedTeacher(tmp_path / "a", verify=False)._store) == 2


def test_the_card_of_a_cache_links_to_nothing(tmp_path: Path) -> None:
    """Its link led to a page of a package index that does not exist."""
    write(tmp_path / "a", rows=2)
    card = (tmp_path / "a/README.md").read_text()
    assert "http" not in card
    assert "](" not in card
    assert "2 examples" in card


# ---- other teachers --------------------------------------------------------------------------


def test_each_kind_of_teacher_is_told_apart_by_its_weights(tmp_path: Path) -> None:
    """By its name alone the cache of last week's teacher would be taken for this week's."""

    def adapted(changed: bool) -> BaseModelTeacher:
        model = teacher(changed).model
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        torch.manual_seed(0)
        config = LoraConfig(target_modules=["query"], modules_to_save=["classifier"])
        return BaseModelTeacher(get_peft_model(model, config))

    kinds: dict[str, Any] = {
        "a model": teacher,
        "a model below adapters": adapted,
        "an ensemble": lambda changed: Ensemble([teacher(), teacher(changed)]),
        "a cache": lambda changed: CachedTeacher(tmp_path / str(changed)),
        "an ensemble of caches": lambda changed: Ensemble(
            [CachedTeacher(tmp_path / "False"), CachedTeacher(tmp_path / str(changed))]
        ),
    }
    for changed in (False, True):
        write(tmp_path / str(changed), teacher(changed))
    with Tally("caches: fingerprints of teachers") as attacks:
        for kind, make in kinds.items():
            with attacks.attack(kind):
                first, again, other = (teacher_fingerprint(make(c)) for c in (False, False, True))
                assert first == again != other
        with attacks.attack("a server"):
            found = []
            for changed in (False, True):
                with TeacherServer(teacher(changed)) as server:
                    remote = HTTPTeacher(server.url)
                    found.append(teacher_fingerprint(remote))
                    remote.close()
            assert found == [teacher_fingerprint(teacher(changed)) for changed in (False, True)]
        with attacks.attack("trained adapters"):
            taught = adapted(False)
            before = teacher_fingerprint(taught)
            with torch.no_grad():
                for parameter in taught.student.parameters():
                    if parameter.requires_grad:
                        parameter.add_(1.0)
            assert teacher_fingerprint(taught) == before


def test_a_recipe_notices_another_cache_in_a_shared_folder(tmp_path: Path) -> None:
    """Two recipes with one `teacher.cache.path`: the stage was done, and its cache another's."""
    shared = tmp_path / "shared"
    stage = CacheStage("cache", tmp_path / "out", {"kept": 1}, CacheSection(path=str(shared)))
    stage.folder.mkdir()
    write(shared)
    own = bindings(read_manifest(shared))
    stage.finish({"path": str(shared), "examples": 12, "bytes": 1, "of": own})
    assert stage.results() is not None
    (shared / "cache.json").rename(tmp_path / "cache.json")
    assert stage.results() is None
    shutil.rmtree(shared)
    write(shared, teacher(changed=True))
    assert stage.results() is None
    shutil.rmtree(shared)
    write(shared)
    assert stage.results() is not None


# ---- recorded views --------------------------------------------------------------------------


def test_recorded_views_that_are_none(tmp_path: Path) -> None:
    """Lines of something else, with a right checksum: tracebacks in a worker, epochs later."""
    head = {"version": 1, "views": ["flip()"], "count": 1, "seed": 0}
    line = {"key": "0" * 32, "views": [[{}]]}
    heads: list[Any] = [head, {}, [], None, {**head, "count": "x"}, {**head, "views": 5}]
    lines: list[Any] = [line, {}, [], {**line, "views": []}, {**line, "views": 1}]
    lines += [{**line, "views": [[{}], [{}]]}, {**line, "views": [[]]}]
    with Tally("caches: recorded views, sealed anew") as attacks:
        for first, second in [(h, line) for h in heads[1:]] + [(head, x) for x in lines[1:]]:
            with attacks.attack(f"{first} {second}"):
                _save(tmp_path, first, second)
                with pytest.raises(ValueError, match=r"views\.jsonl"):
                    AugmentationLog.load(tmp_path).parameters(0)
        with attacks.attack("no lines"):
            (tmp_path / "views.jsonl").write_bytes(_sealed(b""))
            with pytest.raises(ValueError, match=r"views\.jsonl"):
                AugmentationLog.load(tmp_path)
        _save(tmp_path, head, line)
        assert AugmentationLog.load(tmp_path).parameters(0) == [[{}]]


def _save(folder: Path, *lines: Any) -> None:
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    (folder / "views.jsonl").write_bytes(_sealed(body))


def _sealed(body: bytes) -> bytes:
    return body + f'{{"xxh3_128": "{xxhash.xxh3_128_hexdigest(body)}"}}\n'.encode()
