"""Publishing a finished student: checked before anything is sent, sent in one commit."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from .card import replace_text, with_repo_id
from .files import STALE, folder_problems, missing_files, published_files

T = TypeVar("T")
ATTEMPTS = 4
# The client itself sends again what it uploads and asks; of the other calls (creating, committing)
# one answer of these is enough for it to give up. 412: somebody else has pushed meanwhile.
_PASSING = (408, 412, 500, 502, 503, 504)
# errors of the connection have no other public name: httpx in huggingface_hub 1, httpx2 in 2
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload the distilled student",
) -> CommitInfo:
    """Publish a finished student in one commit, and return it.

    The folder is checked before any network. The repository and the branch ``revision`` are created
    when missing. Only ``published_files(folder)`` go up; weights of an earlier push that this one
    does not replace are deleted. Pushing an unchanged folder makes no new commit. What the Hub
    answers to a request in trouble (500 and the like) is asked again; large files that have
    arrived are not sent again, not even by a later push.

    Args:
        folder: what ``save_model`` wrote, with its README.md. The quick start of a card of ours is
            made to name ``repo_id``.
        repo_id: ``namespace/name``, or ``name`` for the account of the token.
        token: default: what ``hf auth login`` stored, or the variable HF_TOKEN.
        private: visibility of a repository that is created; default: the account's.
        revision: branch to push to; default: main.
        create_pr: open a pull request against main instead of pushing to it.
        commit_message: first line of the commit.

    Raises:
        FileNotFoundError: no finished student or no README.md in the folder.
        ValueError: malformed ``repo_id``, ``create_pr`` with a ``revision``, or any other of
            `folder_problems`.
        PermissionError: not logged in, or the Hub refuses the token (401, 403, gated).
        ConnectionError: the Hub was not reached, or went on answering with errors of its own.
    """
    root = Path(folder)
    check_request(repo_id, revision, create_pr)
    problems = folder_problems(root)
    if problems and missing_files(root):
        raise FileNotFoundError(problems[0])
    if problems:
        raise ValueError(f"{root} cannot be published:\n- " + "\n- ".join(problems))

    def operations(repo_id: str) -> list[CommitOperationAdd]:
        card = root / "README.md"
        text = card.read_text(encoding="utf-8")
        if with_repo_id(text, repo_id) != text:
            replace_text(card, with_repo_id(text, repo_id))
        return [CommitOperationAdd(name, root / name) for name in published_files(root)]

    push = _Push(HfApi(token=token), repo_id, private, revision, create_pr, commit_message, STALE)
    return push.send(operations)


def push_checkpoint(
    folder: str | os.PathLike[str],
    files: list[str],
    repo_id: str,
    path_in_repo: str,
    *,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a checkpoint",
) -> CommitInfo:
    """Publish ``files`` of a checkpoint under ``path_in_repo``, in place of what lies there.

    Raises:
        PermissionError, ConnectionError: as of `push_folder`.
    """
    root = Path(folder)

    def operations(_: str) -> list[CommitOperationAdd]:
        return [CommitOperationAdd(f"{path_in_repo}/{name}", root / name) for name in files]

    stale = (f"{path_in_repo}/*",)
    push = _Push(HfApi(token=token), repo_id, None, revision, False, commit_message, stale)
    return push.send(operations)


def check_request(repo_id: str, revision: str | None, create_pr: bool) -> None:
    """Raise ValueError for what the Hub would answer with a bare 400."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"expected a Hub id `namespace/name` of letters, digits, '-', '_' and '.', "
            f"got {repo_id!r} ({error})"
        ) from error
    if create_pr and revision not in (None, "main"):
        raise ValueError(
            "a pull request is opened against main, got create_pr=True with "
            f"revision={revision!r}: give one of the two"
        )


class _Push:
    """One push: the requests that it is made of, asked again where that is safe."""

    def __init__(
        self,
        api: HfApi,
        repo_id: str,
        private: bool | None,
        revision: str | None,
        create_pr: bool,
        message: str,
        stale: tuple[str, ...],
    ) -> None:
        self.api, self.repo_id, self.private, self.revision = api, repo_id, private, revision
        self.create_pr, self.message, self.stale = create_pr, message, stale

    def send(self, files: Callable[[str], list[CommitOperationAdd]]) -> CommitInfo:
        if self.api.token is None and get_token() is None:
            raise PermissionError(
                "Publishing needs a Hub token with write access, and none was found: run "
                "`hf auth login`, set HF_TOKEN, or pass token=."
            )
        with explained(self.repo_id):
            if self.create_pr:  # a request whose answer was lost would be opened twice
                parent, operations = insist(self._upload, files)
                return self._commit(parent, operations)
            return insist(lambda: self._commit(*self._upload(files)))

    def _upload(
        self, files: Callable[[str], list[CommitOperationAdd]]
    ) -> tuple[str | None, list[CommitOperationAdd | CommitOperationDelete]]:
        """All but the commit: the repository, the branch, the large files.

        Returns:
            The commit that was found, and what is to be done to it.
        """
        self.repo_id = self.api.create_repo(
            self.repo_id, private=self.private, exist_ok=True
        ).repo_id
        if self.revision not in (None, "main"):
            self.api.create_branch(self.repo_id, branch=str(self.revision), exist_ok=True)
        adding = files(self.repo_id)
        found = self.api.model_info(self.repo_id, revision=self.revision)
        names = {file.path_in_repo for file in adding}
        deleting = [
            CommitOperationDelete(file.rfilename)
            for file in found.siblings or []
            if file.rfilename not in names
            and any(fnmatchcase(file.rfilename, pattern) for pattern in self.stale)
        ]
        self.api.preupload_lfs_files(
            self.repo_id,
            adding,
            revision=self.revision,
            create_pr=self.create_pr,
            free_memory=False,
        )
        return found.sha, [*deleting, *adding]

    def _commit(
        self, parent: str | None, operations: list[CommitOperationAdd | CommitOperationDelete]
    ) -> CommitInfo:
        return self.api.create_commit(
            self.repo_id,
            operations,
            commit_message=self.message,
            revision=self.revision,
            create_pr=self.create_pr,
            parent_commit=parent,
        )


def insist(ask: Callable[..., T], *arguments: Any) -> T:
    """Ask until the Hub answers; give up after ``ATTEMPTS``, or when it refuses."""
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
    """Errors of the client in words that say what to do.

    Raises:
        PermissionError: the Hub refuses the token.
        ConnectionError: the Hub was not reached, or went on answering with errors of its own.
    """
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
