"""A cache on the Hub, as a data set."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, snapshot_download

from hf_distill.hub.commits import Push
from hf_distill.hub.leaks import check_files
from hf_distill.teachers.cache.checked_json import MANIFEST, read_manifest
from hf_distill.teachers.cache.manifest import check_facts
from hf_distill.teachers.cache.records import ShardRecords, arrow_path, record_path

FILES = (MANIFEST, "vocabulary.json.gz", "views.jsonl", "README.md")
SHARDS = ("data/*.arrow", "data/*.json")
OURS = (*FILES, "data/*")
"""Files of an earlier push that may be on the Hub."""


def cache_files(path: str | Path) -> list[str]:
    """Files of a whole cache, as relative POSIX paths; ValueError for an unfinished or damaged
    one."""
    facts = read_manifest(path)
    check_facts(path, facts)
    found = ShardRecords(path, facts)
    known = found.known
    found.verify([*known, *[i for i in range(facts["shards"]) if i not in known][:1]])
    names = [name for name in FILES if os.path.lexists(Path(path) / name)]
    shards = [where("", i).as_posix() for i in known for where in (arrow_path, record_path)]
    return [*names, *shards]


def push_cache(
    path: str | Path,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
) -> CommitInfo:
    """Publish a cache as a data set; `datasets.load_dataset(repo_id, streaming=True)` reads it.

    One commit adds its files and removes those of an earlier cache.

    Args:
        path: The folder that `write_cache` wrote.
        repo_id: ``namespace/name``.
        token: Default: that of ``hf auth login``, or the variable HF_TOKEN.
        private: Visibility of a repository that is created.
        revision: Branch to push to, created when missing.

    Raises:
        ValueError: the cache is unfinished or damaged, or holds shards of another one, a file of it
            is a link, or holds a token or a local path; the repository holds a data set that is not
            a cache.
        PermissionError: not logged in, or the Hub refuses the token.
        ConnectionError: the Hub could not be reached, or kept returning errors.
    """
    files, problems = check_files(Path(path), cache_files(path))
    if problems:
        raise ValueError(
            f"The cache {path} cannot be published:\n- " + "\n- ".join(problems) + f"\n{MANIFEST} "
            "repeats the teacher's configuration: take a secret out there, delete the manifest, "
            "and write the cache again; its shards are kept."
        )
    push = Push(
        *(HfApi(token=token), repo_id, "Upload a teacher's outputs", OURS),
        private=private,
        revision=revision,
        repo_type="dataset",
        sign=MANIFEST,
    )
    return push.send(lambda _: files)


def local_cache(path: str | Path) -> Path:
    """The folder of a cache, downloaded from the Hub unless it is local; FileNotFoundError if there
    is none."""
    if Path(path).is_dir():
        return Path(path)
    try:
        found = snapshot_download(str(path), repo_type="dataset", allow_patterns=[*FILES, *SHARDS])
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"Expected a folder that write_cache wrote, or a data set of the Hub that is one, got "
            f"{str(path)!r}: {error}"
        ) from error
    return Path(found)
