"""A cache on the Hub, as a data set."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    snapshot_download,
)

from hf_distill.cache.facts import check_facts
from hf_distill.cache.records import arrow_path, record_path, records, verify
from hf_distill.cache.sealed import MANIFEST, read_manifest

FILES = (MANIFEST, "vocabulary.json.gz", "views.jsonl", "README.md")
SHARDS = ("data/*.arrow", "data/*.json")
OURS = (*FILES, "data/*")
"""What an earlier push may have left on the Hub."""


def cache_files(path: str | Path) -> list[str]:
    """The files that make up a cache, as relative POSIX paths; whatever else lies there is none.

    Raises:
        ValueError: the cache is unfinished, damaged, or holds shards of another one.
    """
    facts, known = read_manifest(path), records(path)
    check_facts(path, facts)
    missing = next((i for i in range(facts["shards"]) if i not in known), None)
    verify(path, [*known, *([] if missing is None else [missing])], facts, known)
    names = [name for name in FILES if (Path(path) / name).is_file()]
    shards = [where("", index).as_posix() for index in known for where in (arrow_path, record_path)]
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

    One commit adds its files and removes those of an earlier cache: the shards of another teacher
    would answer for examples that this one does not hold.

    Args:
        path: The folder that `write_cache` wrote.
        repo_id: ``namespace/name``.
        token: Default: what ``hf auth login`` stored, or the variable HF_TOKEN.
        private: Visibility of a repository that is created.
        revision: Branch to push to, created when missing.

    Raises:
        ValueError: the cache is unfinished or damaged, or holds shards of another one; the
            repository holds a data set that is no cache.
    """
    names = cache_files(path)
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, repo_type="dataset", exist_ok=True)
    found = api.dataset_info(repo_id, revision=revision)
    there = {file.rfilename for file in found.siblings or []}
    earlier = {name for name in there if any(fnmatchcase(name, pattern) for pattern in OURS)}
    if MANIFEST not in there and (others := sorted(earlier - {"README.md"})):
        raise ValueError(
            f"Expected a new repository or a cache at {repo_id}, got a data set that is none: it "
            f"has {others[0]} and no {MANIFEST}. Its files would be replaced: push to another "
            "repository, or empty this one first."
        )
    stale = [CommitOperationDelete(name) for name in sorted(earlier - set(names))]
    adding = [CommitOperationAdd(name, Path(path) / name) for name in names]
    return api.create_commit(
        repo_id,
        [*stale, *adding],
        commit_message="Upload a teacher's outputs",
        repo_type="dataset",
        revision=revision,
        parent_commit=found.sha,
    )


def local_cache(path: str | Path) -> Path:
    """The folder of a cache, downloaded from the Hub if it is not one of this machine.

    Raises:
        FileNotFoundError: there is no such folder, and it cannot be downloaded.
    """
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
