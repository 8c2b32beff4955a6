"""A cache on the Hub, as a data set."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, snapshot_download

from hf_distill.cache.sealed import read_manifest
from hf_distill.cache.shards import verify

FILES = ("cache.json", "vocabulary.json.gz", "views.jsonl", "README.md", "data/*.arrow")
RECORDS = "data/*.json"


def push_cache(
    path: str | Path,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
) -> CommitInfo:
    """Publish a cache as a data set; `datasets.load_dataset(repo_id, streaming=True)` reads it.

    Args:
        path: The folder that `write_cache` wrote.
        repo_id: ``namespace/name``.
        token: Default: what ``hf auth login`` stored, or the variable HF_TOKEN.
        private: Visibility of a repository that is created.
        revision: Branch to push to, created when missing.

    Raises:
        ValueError: the cache is unfinished or damaged.
    """
    verify(path, range(read_manifest(path)["shards"]))
    verify(path)  # and what was added since
    api = HfApi(token=token)
    api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(repo_id, branch=revision, repo_type="dataset", exist_ok=True)
    return api.upload_folder(
        repo_id=repo_id,
        repo_type="dataset",
        folder_path=path,
        revision=revision,
        allow_patterns=[*FILES, RECORDS],
        commit_message="Upload a teacher's outputs",
    )


def local_cache(path: str | Path) -> Path:
    """The folder of a cache, downloaded from the Hub if it is not one of this machine.

    Raises:
        FileNotFoundError: there is no such folder, and it cannot be downloaded.
    """
    if Path(path).is_dir():
        return Path(path)
    try:
        found = snapshot_download(str(path), repo_type="dataset", allow_patterns=[*FILES, RECORDS])
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"Expected a folder that write_cache wrote, or a data set of the Hub that is one, got "
            f"{str(path)!r}: {error}"
        ) from error
    return Path(found)
