"""Caches whose files were changed, mixed up or replaced: found and named, or as they were."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from caches import (
    FORMATS,
    ROWS,
    SHARDS,
    Asking,
    Words,
    arrow,
    change,
    copied,
    record,
    seal,
    stored,
    teacher,
    write,
)
from tally import Tally
from tiny_models import collate
from tiny_trainers import data

from hf_distill import CachedTeacher, write_cache
from hf_distill.teachers.cache.checked_json import read_sealed, write_sealed

pytestmark = [
    pytest.mark.xdist_group("attacked_caches"),  # fixtures that are expensive are made once
    pytest.mark.usefixtures("no_waiting_for_disks"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches of each format, of one teacher and, in ``other``, of another; and of other data."""
    base = tmp_path_factory.mktemp("caches")
    for name, options in FORMATS.items():
        write(base / name, **options)
        write(base / "other" / name, teacher(changed=True), **options)
    kept = {"shard_size": 2, "say": quiet}
    write_cache(base / "data", teacher(), data("sequence_classification", 24)[12:], collate, **kept)
    return base


def quiet(line: str) -> None:
    """Nothing is printed."""


# ---- accidents -------------------------------------------------------------------------------

Harm = Callable[[bytes, random.Random], bytes]


def _flipped(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _zeroed(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(content))
    length = min(chance.randrange(1, 64), len(content) - start)
    return content[:start] + bytes(length) + content[start + length :]


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def _inserted(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(content))
    return content[:start] + chance.randbytes(chance.randrange(1, 9)) + content[start:]


def _deleted(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(content))
    return content[:start] + content[start + chance.randrange(1, 9) :]


def _emptied(content: bytes, chance: random.Random) -> bytes:
    return b""


HARMS: dict[str, Harm] = {
    "a bit flipped": _flipped,
    "zeros": _zeroed,
    "cut": _cut,
    "bytes inserted": _inserted,
    "bytes deleted": _deleted,
    "emptied": _emptied,
}


def _accidents(times: int) -> Iterator[tuple[str, str, str, random.Random]]:
    """Format, kind of file, harm, and the chance that decides the rest."""
    for name in FORMATS:
        for number in range(times):
            for file in ("arrow", "record", "cache.json", "vocabulary.json.gz", "README.md"):
                for harm in HARMS:
                    yield name, file, harm, random.Random(f"{name} {number} {file} {harm}")


def held(ask: Asking, folder: Path, *names: str) -> None:
    """Either every number is right, or a ValueError names the cache (and one of the files)."""
    try:
        found = ask.same(folder)
    except ValueError as error:
        said = str(error)
        assert str(folder) in said, said
        assert not names or any(name in said for name in names), said
        return
    assert found, "other numbers without a word"


def accidents(folder: Path, asking: dict[str, Asking], tmp_path: Path, times: int) -> None:
    with Tally("caches: accidental changes") as attacks:
        for name, file, harm, chance in _accidents(times):
            own = copied(folder / name, tmp_path / "own")
            index = chance.randrange(SHARDS)
            places = {"arrow": arrow(own, index), "record": record(own, index)}
            path = places.get(file, own / file)
            path.write_bytes(HARMS[harm](path.read_bytes(), chance))
            with attacks.attack(f"{harm}: {file} of {name}"):
                held(asking[name], own, path.stem)


def test_accidental_changes(folder: Path, asking: dict[str, Asking], tmp_path: Path) -> None:
    """A changed byte is a wrong target; a traceback is not known for a damaged file."""
    accidents(folder, asking, tmp_path, 1)


@pytest.mark.slow
def test_many_accidental_changes(folder: Path, asking: dict[str, Asking], tmp_path: Path) -> None:
    """The same, eight times as often as the default suite."""
    accidents(folder, asking, tmp_path, 8)


def _in_the_way(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind == "a dangling link":
        path.symlink_to(path.with_name("nothing"))
    else:
        os.mkfifo(path)


def test_something_else_in_place_of_a_file(
    folder: Path, asking: dict[str, Asking], tmp_path: Path
) -> None:
    """Opened or written over, it ends in a traceback, or waits for ever. Moved away, as the message
    wants it, the same command completes the cache."""
    files = ("data/shard-00001.arrow", "data/shard-00001.json", "cache.json", "vocabulary.json.gz")
    with Tally("caches: no file in place of one") as attacks:
        for file in (*files, "README.md"):
            for kind in ("a folder", "a dangling link", "a pipe"):
                own = copied(folder / "float32", tmp_path / "own")
                _in_the_way(own / file, kind)
                with attacks.attack(f"{kind} for {file}, read"):
                    held(asking["float32"], own)
                with attacks.attack(f"{kind} for {file}, written"):
                    try:
                        write(own)
                    except ValueError as error:
                        assert file.rpartition("/")[2] in str(error)  # noqa: PT017
                        shutil.move(own / file, tmp_path / f"{kind} {file.replace('/', ' ')}")
                        write(own)
                    assert asking["float32"].same(own)
        for file in ("data", ""):
            own = copied(folder / "float32", tmp_path / "own")
            shutil.rmtree(own / file)
            (own / file).write_bytes(b"mine")
            with attacks.attack(f"a file for the folder {file!r}"):
                with pytest.raises(ValueError, match=r"Expected a folder .*own"):
                    write(own)
                assert (own / file).read_bytes() == b"mine"


def test_linked_shards_are_as_good(folder: Path, asking: dict[str, Asking], tmp_path: Path) -> None:
    """A cache on another disk, linked, and the Hub's own folder of links are caches."""
    with Tally("caches: links to the same bytes") as attacks:
        own = copied(folder / "float32", tmp_path / "own")
        for path in (arrow(own, 0), record(own, 1), own / "cache.json"):
            away = tmp_path / path.name
            path.rename(away)
            path.symlink_to(away)
            with attacks.attack(f"a linked {path.name}"):
                assert asking["float32"].same(own)
        (tmp_path / "link").symlink_to(own)
        with attacks.attack("a linked folder"):
            assert asking["float32"].same(tmp_path / "link")


# ---- shards of other caches ------------------------------------------------------------------


def mixed(source: Path, own: Path, index: int, to: int, *ends: str) -> None:
    for end in ends:
        name = f"data/shard-{index:05d}.{end}"
        shutil.copy(source / name, own / f"data/shard-{to:05d}.{end}")


def test_shards_of_another_teacher_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    """Their records fit them: the students would learn another teacher's numbers."""
    with Tally("caches: shards of another teacher") as attacks:
        for name in FORMATS:
            for index in range(SHARDS):
                for to in (index, SHARDS + index):
                    own = copied(folder / name, tmp_path / "own")
                    mixed(folder / "other" / name, own, index, to, "arrow", "json")
                    with attacks.attack(f"{name}: shard {index} as {to}"):
                        match = rf"shard-{to:05d}\.arrow \(of other things: the teacher's weights\)"
                        for verify in (True, False):
                            with pytest.raises(ValueError, match=match):
                                CachedTeacher(own, verify=verify)
                        if index == 0:
                            with pytest.raises(ValueError, match=match):
                                write(own, **FORMATS[name])


def test_half_a_shard_of_another_cache(
    folder: Path, asking: dict[str, Asking], tmp_path: Path
) -> None:
    """The file without its record, the record without its file, and another cache's manifest."""
    with Tally("caches: parts of other caches") as attacks:
        for name in FORMATS:
            others = [folder / "other" / name, folder / "data"]
            others += [folder / other for other in FORMATS if other != name]
            for source in others:
                for end in ("arrow", "json"):
                    own = copied(folder / name, tmp_path / "own")
                    mixed(source, own, 1, 1, end)
                    with attacks.attack(f"{name}: {end} of {source.name}"):
                        held(asking[name], own, "shard-00001")
                own = copied(folder / name, tmp_path / "own")
                shutil.copy(source / "cache.json", own / "cache.json")
                with attacks.attack(f"{name}: manifest of {source.name}"):
                    held(asking[name], own, "shard-00000.arrow (of other things")


def test_shards_of_other_formats_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    """Read as this one, they end in a KeyError, or in numbers of another kind."""
    with Tally("caches: shards of other formats") as attacks:
        for name in FORMATS:
            for other in FORMATS:
                if other == name:
                    continue
                own = copied(folder / name, tmp_path / "own")
                mixed(folder / other, own, 2, 2, "arrow", "json")
                with attacks.attack(f"{other} in {name}"):
                    with pytest.raises(ValueError, match=r"shard-00002\.arrow .*what is kept"):
                        CachedTeacher(own)
                    seal(own, 2, of=read_sealed(record(own, 1))["of"])
                    with pytest.raises(ValueError, match=r"shard-00002\.arrow .*columns of"):
                        CachedTeacher(own, verify=False)


def test_shards_that_belong_to_it_may_be_moved(
    folder: Path, asking: dict[str, Asking], tmp_path: Path
) -> None:
    """Examples are found by content: the order of shards, one twice, and a merge of two caches of
    one teacher are no damage; refused, hours of a GPU would be lost for nothing."""
    with Tally("caches: own shards elsewhere") as attacks:
        for name in FORMATS:
            own = copied(folder / name, tmp_path / "own")
            for end in ("arrow", "json"):
                mixed(folder / name, own, 0, 3, end)
                mixed(folder / name, own, 3, 0, end)
            with attacks.attack(f"{name}: two exchanged"):
                assert asking[name].same(own)
            mixed(folder / name, own, 5, 6, "arrow", "json")
            with attacks.attack(f"{name}: one twice"):
                assert asking[name].same(own)
        own = copied(folder / "float32", tmp_path / "merged")
        for index in range(SHARDS):
            mixed(folder / "data", own, index, SHARDS + index, "arrow", "json")
        with attacks.attack("two caches of one teacher"):
            merged = CachedTeacher(own)
            assert len(merged._store) == 2 * ROWS
            wanted = {**stored(folder / "float32"), **stored(folder / "data")}
            assert merged._store.missing(list(wanted)) == []
            for row in merged._store.rows(list(wanted)):
                assert row["logits"].dtype == "float32"
            assert asking["float32"].same(own)


# ---- stale caches ----------------------------------------------------------------------------


def test_a_deleted_manifest_does_not_hand_over_the_shards(folder: Path, tmp_path: Path) -> None:
    """The retrained teacher's manifest beside the old one's shards: all its numbers were the old
    ones. Refused, nothing is changed; with the shards moved away, they are made anew."""
    with Tally("caches: the manifest deleted") as attacks:
        for name, options in FORMATS.items():
            own = copied(folder / name, tmp_path / "own")
            (own / "cache.json").unlink()
            before = stored(own)
            with attacks.attack(f"{name}: a retrained teacher"):
                with pytest.raises(ValueError, match=r"shard-00000\.arrow .*teacher's weights"):
                    write(own, teacher(changed=True), **options)
                assert stored(own) == before
                assert not (own / "cache.json").exists()
            with attacks.attack(f"{name}: the same teacher"):
                card = (own / "README.md").read_text() + "\nWhat a person wrote.\n"
                (own / "README.md").write_text(card)
                write(own, **options)
                assert stored(own) == before
                assert (own / "README.md").read_text() == card
            with attacks.attack(f"{name}: the remedy"):
                (own / "cache.json").unlink()
                (own / "data").rename(tmp_path / f"away {name}")
                write(own, teacher(changed=True), **options)
                assert stored(own) == stored(folder / "other" / name) != before


def test_the_remedy_for_a_foreign_shard(
    folder: Path, asking: dict[str, Asking], tmp_path: Path
) -> None:
    """Moved away as the message wants it, the shard alone is made again."""
    own = copied(folder / "float32", tmp_path / "own")
    mixed(folder / "other" / "float32", own, 1, 1, "arrow", "json")
    for path in (arrow(own, 1), record(own, 1)):
        path.rename(tmp_path / path.name)
    lines: list[str] = []
    write(own, say=lines.append)
    assert lines[0].endswith(f"{SHARDS - 1} of {SHARDS} shards are there")
    assert asking["float32"].same(own)


def test_other_parts_of_a_manifest_are_bound_too(folder: Path, tmp_path: Path) -> None:
    """A temperature, an input or a tokenizer that was set by hand, and sealed anew."""
    shard = r"shard-00000\.arrow \(of other things: "
    changes: dict[str, dict[str, Any]] = {
        f"{shard}the teacher's weights": {"teacher": "0" * 32},
        f"{shard}the teacher's inputs": {"inputs": ["input_ids"]},
        r"vocabulary\.json\.gz as it was": {"tokenizer": "0" * 32},
        f"{shard}the preprocessing": {"preprocessing": "0" * 32},
        f"{shard}what is kept": {"content__logits__temperature": 7.0},
        f"{shard}the recorded views": {"views": {"views": ["flip()"], "count": 1, "seed": 0}},
    }
    with Tally("caches: manifest edited and sealed anew") as attacks:
        for match, fields in changes.items():
            own = copied(folder / "top-k", tmp_path / "own")
            change(own, **fields)
            with attacks.attack(match), pytest.raises(ValueError, match=match):
                CachedTeacher(own)


def test_shards_of_an_earlier_version_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    """They do not tell whose they are."""
    own = copied(folder / "float32", tmp_path / "own")
    held_ = read_sealed(record(own, 3))
    write_sealed(record(own, 3), {key: held_[key] for key in held_ if key != "of"})
    for attempt in (lambda: CachedTeacher(own), lambda: write(own)):
        with pytest.raises(ValueError, match=r"shard-00003\.arrow \(by an earlier version"):
            attempt()
    manifest = read_sealed(own / "cache.json")
    write_sealed(own / "cache.json", {**manifest, "format_version": 1})
    for attempt in (lambda: CachedTeacher(own), lambda: write(own)):
        with pytest.raises(ValueError, match=r"format version 2 .*, got 1: .*another folder"):
            attempt()


def test_added_examples_stay_with_the_cache_that_was_opened(folder: Path, tmp_path: Path) -> None:
    """The folder was written anew by another teacher in the meantime: what the first one was asked
    for does not become the second one's."""
    own = copied(folder / "float32", tmp_path / "own")
    cached = CachedTeacher(own, live=teacher())
    batch: Any = collate(data("sequence_classification", 24)[12:16])
    cached(batch, cached.provides, teacher().task_model.items(batch))
    copied(folder / "other" / "float32", own)
    with pytest.raises(ValueError, match="got another one that was written there since"):
        cached.save()
    with pytest.raises(ValueError, match=rf"shard-{SHARDS:05d}\.arrow .*teacher's weights"):
        CachedTeacher(own)


def test_a_folder_with_a_card_of_its_own_is_not_written_over(tmp_path: Path) -> None:
    """`write_cache(".")` in a project: its README.md would be gone."""
    (tmp_path / "README.md").write_text("# My project\n")
    with pytest.raises(ValueError, match=r"README\.md that is not a cache's"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "# My project\n"


def test_the_vocabulary_is_compared(folder: Path, tmp_path: Path) -> None:
    """Tokens of another tokenizer would be matched with the student's."""
    with Tally("caches: vocabulary of another tokenizer") as attacks:
        for words in (Words(a=1, b=0), Words(a=0), Words(a=0, b=1, c=2), Words(A=0, b=1)):
            own = copied(folder / "float32", tmp_path / "own")
            write(tmp_path / "w", teacher(words=words), rows=2)
            shutil.copy(tmp_path / "w" / "vocabulary.json.gz", own)
            shutil.rmtree(tmp_path / "w")
            with (
                attacks.attack(str(words.tokens)),
                pytest.raises(ValueError, match=r"vocabulary\.json\.gz as it was written"),
            ):
                CachedTeacher(own)
