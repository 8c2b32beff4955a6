"""Commits of checked files to the Hub, with retries and error messages that name a remedy."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from hf_distill.hub.leaks import Checked

T = TypeVar("T")
ATTEMPTS = 4  # attempts at a request before it fails
# The client itself repeats uploads and reads; the other calls (creating, committing) fail at the
# first answer with one of these. 412: another push was committed in between.
_PASSING = (408, 412, 500, 502, 503, 504)
# errors of the connection have no other public name: httpx in huggingface_hub 1, httpx2 in 2
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]


@dataclass
class Push:
    """One push in one commit to ``repo_id``, which is created; requests are repeated where that is
    safe.

    Args:
        api: The client, with the token.
        repo_id: ``namespace/name``, or ``name``.
        message: First line of the commit message.
        stale: Patterns of files in the repository that are deleted unless they are replaced.
        private: Visibility of a new repository; default: that of the account.
        revision: Branch to push to, created if it does not exist; default: main.
        create_pr: Open a pull request against main instead.
        repo_type: "model" or "dataset".
        sign: A file without which a repository with other files of ``stale`` is left unchanged.
    """

    api: HfApi
    repo_id: str
    message: str
    stale: tuple[str, ...]
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False
    repo_type: str = "model"
    sign: str | None = None

    def send(self, files: Callable[[str], list[Checked]]) -> CommitInfo:
        """Commit the files that ``files`` returns for the repository's full id.

        Raises:
            PermissionError, ConnectionError: see `explained`.
            ValueError: a file was changed since it was checked, or the repository contains
                something else (see ``sign``).
        """
        if self.api.token is None and get_token() is None:
            raise PermissionError(
                "Publishing needs a Hub token with write access, and none was found: run "
                "`hf auth login`, set HF_TOKEN, or pass token=."
            )
        with explained(self.repo_id):
            if self.create_pr:  # a pull request whose answer was lost would be opened twice
                parent, operations = retry(self._upload, files)
                return self._commit(parent, operations)
            return retry(lambda: self._commit(*self._upload(files)))

    def _upload(
        self, files: Callable[[str], list[Checked]]
    ) -> tuple[str | None, list[CommitOperationAdd | CommitOperationDelete]]:
        """Create repository and branch and upload the large files; returns the branch's last commit
        and the operations of the new one."""
        kind: Any = {"repo_type": self.repo_type}
        branch = kind | {"revision": self.revision}
        self.repo_id = self.api.create_repo(
            self.repo_id, private=self.private, exist_ok=True, **kind
        ).repo_id
        if self.revision not in (None, "main"):
            self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True, **kind)
        checked = files(self.repo_id)
        adding = [file.upload() for file in checked]
        found: Any = self.api.repo_info(self.repo_id, **branch)
        there = {file.rfilename for file in found.siblings or []}
        earlier = {n for n in there if any(fnmatchcase(n, pattern) for pattern in self.stale)}
        others = sorted(earlier - {"README.md"})
        if self.sign is not None and self.sign not in there and others:
            raise ValueError(
                f"Expected a new repository or a cache at {self.repo_id}, got a data set that is "
                f"none: it has {others[0]} and no {self.sign}. Its files would be replaced: push "
                "to another repository, or empty this one first."
            )
        names = {file.path_in_repo for file in adding}
        deleting = [CommitOperationDelete(name) for name in sorted(earlier - names)]
        self.api.preupload_lfs_files(
            self.repo_id, adding, create_pr=self.create_pr, free_memory=False, **branch
        )
        for file in checked:
            file.verify()
        return found.sha, [*deleting, *adding]

    def _commit(
        self, parent: str | None, operations: list[CommitOperationAdd | CommitOperationDelete]
    ) -> CommitInfo:
        return self.api.create_commit(
            self.repo_id,
            operations,
            commit_message=self.message,
            repo_type=self.repo_type,
            revision=self.revision,
            create_pr=self.create_pr,
            parent_commit=parent,
        )


def retry(ask: Callable[..., T], *arguments: Any) -> T:
    """Call a request until it succeeds, is rejected, or has failed `ATTEMPTS` times."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return ask(*arguments)
        except (_HTTP_ERROR, json.JSONDecodeError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code not in _PASSING:
                raise
        time.sleep(2.0**attempt)
    return ask(*arguments)


@contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """Turn errors of the Hub's client into errors that name a remedy: PermissionError if it rejects
    the token, ConnectionError if it was not reached, or still fails after `ATTEMPTS` attempts."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise PermissionError(
                f"The Hub refused to publish to {repo_id} ({status}). The token needs write access "
                "to that namespace: check the id, log in with `hf auth login` (or HF_TOKEN, "
                "token=), and for a gated repository ask its owner for access on its page. "
                f"The Hub said: {error.server_message or error}"
            ) from error
        if status not in _PASSING:
            raise
        raise _unreached(repo_id, f"answered {status} again and again") from error
    except (_HTTP_ERROR, json.JSONDecodeError) as error:
        raise _unreached(repo_id, f"did not answer ({type(error).__name__}: {error})") from error
    except RuntimeError as error:  # the client has given up a large file
        if not isinstance(error.__cause__, _HTTP_ERROR):
            raise
        raise _unreached(repo_id, f"did not take a file ({error} {error.__cause__})") from error


def _unreached(repo_id: str, what: str) -> ConnectionError:
    return ConnectionError(
        f"The Hub {what}; nothing was committed to {repo_id}. Run the same push again: large files "
        "that have arrived are not sent again. https://status.huggingface.co says whether the Hub "
        "is in trouble."
    )
