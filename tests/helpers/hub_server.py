"""A small Hub on the loopback: enough of the HTTP API to push a model and load it again.

Only the standard library. Repositories live in memory. Git objects are not kept: a commit is a
mapping from path to bytes. Files that the real Hub would keep with LFS go through the LFS calls,
and come back from another host name (`localhost`), as from its CDN.
Tokens: ``dummy`` may write, ``readonly`` may not, others are unknown.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections import Counter
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hub_http import LargeFiles
from hub_store import LFS, USER, Collection, Fault, Refused, Repo, card_data, metadata_errors, oid


class HubServer:
    """``with HubServer() as hub``: serves until the block ends.

    ``multipart``: size in bytes of the parts in which larger LFS files are to be sent.
    ``sent``: bytes of LFS content that arrived, by oid, in whole or cut-off requests.
    ``bodies``: the body of every request.
    """

    def __init__(self, multipart: int | None = None) -> None:
        self.multipart = multipart
        self.repos: dict[str, Repo] = {}
        self.collections: dict[str, Collection] = {}
        self.lfs: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.sent: Counter[str] = Counter()
        self.requests: list[str] = []
        self.bodies: list[bytes] = []
        self.faults: list[Fault] = []
        self.writers = {"dummy"}
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fault(self, pattern: str, times: int = 1, kind: str = "status", value: int = 500) -> None:
        """Plan a `Fault`; a client may do so too, with ``POST /control/fault``."""
        self.faults.append(Fault(pattern, times, kind, value))

    def environment(self, home: Path, token: str | None = "dummy") -> dict[str, str]:
        """Variables for a client process: they are read when huggingface_hub is imported."""
        variables = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
        }
        return variables | ({"HF_TOKEN": token} if token else {})

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a repository, but for the one that the Hub itself makes."""
        repo = self.repos[repo_id]
        files = repo.commits[repo.resolve(revision)]
        return {path: data for path, data in files.items() if path != ".gitattributes"}


class _Handler(LargeFiles):
    def route(self, parts: list[str]) -> None:
        if parts[:2] == ["api", "datasets"]:  # kept as models are
            parts[1] = "models"
        if parts[0] == "datasets":
            parts = parts[1:]
        match parts:
            case ["control", "fault"]:
                self.server_hub.fault(**json.loads(self.body))
                self.send({})
            case ["control", "calm"]:
                self.server_hub.faults.clear()
                self.send({})
            case ["api", "repos", "create"]:
                self._create()
            case ["api", "validate-yaml"]:
                self._validate_yaml()
            case ["api", "whoami-v2"]:
                self.writer()
                self.send({"type": "user", "name": USER, "orgs": []})
            case ["api", "collections", *rest]:
                self._collection("/".join(rest[:2]), rest[2:])
            case ["api", "models", owner, name, *rest]:
                self._api(f"{owner}/{name}", rest)
            case ["lfs", sha, *part]:
                self.store(sha, part)
            case ["cdn", sha]:
                self.serve(sha)
            case [owner, git, "info", "lfs", "objects", "batch"] if git.endswith(".git"):
                self.batch()
            case [owner, name, "resolve", revision, *path]:
                self._file(self._repo(f"{owner}/{name}", reading=True), revision, "/".join(path))
            case _:
                raise Refused(404, "NotFound", f"this Hub has no {self.command} {self.path}")

    def _api(self, repo_id: str, rest: list[str]) -> None:
        repo = self._repo(repo_id)
        match rest:
            case [] | ["revision", _]:
                self._about(repo_id, repo, rest[1] if rest else "main")
            case ["tree", revision, *path]:
                self._tree(repo.commits[repo.resolve(revision)], "/".join(path))
            case ["branch", branch]:
                self.writer()
                if branch in repo.branches:
                    raise Refused(409, "", "the branch exists")
                repo.commit(branch, repo.commits[repo.resolve("main")])
                self.send({})
            case ["preupload", revision]:
                self._preupload(repo.commits[repo.resolve(revision)])
            case ["commit", revision]:
                self._commit(repo_id, repo, revision)
            case _:
                raise Refused(404, "NotFound", f"this Hub has no {self.command} {self.path}")

    def _about(self, repo_id: str, repo: Repo, revision: str) -> None:
        sha = repo.resolve(revision)
        data = card_data(repo.commits[sha])
        siblings = [{"rfilename": path} for path in repo.commits[sha]]
        about = {"id": repo_id, "modelId": repo_id, "sha": sha, "siblings": siblings}
        about |= {"private": repo.private, "gated": repo.gated, "cardData": data}
        about |= {key: data[key] for key in ("pipeline_tag", "library_name") if key in data}
        self.send(about | {"tags": data.get("tags", []), "model-index": data.get("model-index")})

    def _create(self) -> None:
        self.writer()
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or USER}/{asked['name']}"
        known = repo_id in self.server_hub.repos
        if not known:
            repo = Repo(private=asked.get("visibility") == "private")
            repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
            self.server_hub.repos[repo_id] = repo
        url = f"{self.server_hub.url}/{repo_id}"
        self.send({"url": url, "name": repo_id, "id": repo_id}, 409 if known else 200)

    def _validate_yaml(self) -> None:
        errors = [{"message": error} for error in metadata_errors(json.loads(self.body)["content"])]
        self.send({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _collection(self, slug: str, rest: list[str]) -> None:
        if self.command != "GET":
            self.writer()
        known = self.server_hub.collections
        asked = json.loads(self.body or b"{}")
        if not slug:
            slug = f"{asked['namespace']}/{re.sub(r'[^a-z0-9]+', '-', asked['title'].lower())}-64f9"
            if slug in known:
                raise Refused(409, "", "the collection exists", slug=slug)
            given = (asked["title"], asked["namespace"], asked["private"], asked.get("description"))
            known[slug] = Collection(slug, *given)
        if slug not in known:
            raise Refused(404, "", f"no collection {slug}")
        match rest:
            case ["items"]:
                self._repo(asked["item"]["id"])
                known[slug].add(asked)
            case ["items", item]:
                entry = next(entry for entry in known[slug].items if entry["_id"] == item)
                entry["note"] = {"text": asked["note"]}
        self.send(known[slug].describe())

    def _preupload(self, files: dict[str, bytes]) -> None:
        self.writer()
        answer = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            mode = "lfs" if path.endswith(LFS) else "regular"
            same = {"oid": oid(path, files[path])} if path in files else {}
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **same})
        self.send({"files": answer})

    def _commit(self, repo_id: str, repo: Repo, branch: str) -> None:
        self.writer()
        request = "create_pr" in parse_qs(urlsplit(self.path).query)
        files = dict(repo.commits[repo.resolve(branch)])
        message = ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, repo.resolve(branch)):
                    raise Refused(412, "", "A commit has happened since. Please refresh.")
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.server_hub.lfs:
                    raise Refused(400, "", f"{value['path']} was not uploaded")
                files[value["path"]] = self.server_hub.lfs[value["oid"]]
            elif item["key"] == "deletedFile" and files.pop(value["path"], None) is None:
                raise Refused(404, "EntryNotFound", "A file with this name doesn't exist")
        number = 1 + sum(name.startswith("refs/pr/") for name in repo.branches)
        sha = repo.commit(f"refs/pr/{number}" if request else branch, files, message)
        url = f"{self.server_hub.url}/{repo_id}"
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{url}/commit/{sha}"}
        self.send(answer | ({"pullRequestUrl": f"{url}/discussions/{number}"} if request else {}))

    def _tree(self, files: dict[str, bytes], folder: str) -> None:
        start = f"{folder}/" if folder else ""
        found = {path: data for path, data in files.items() if path.startswith(start)}
        entries: list[dict[str, Any]] = []
        if "recursive=true" not in urlsplit(self.path).query.lower():
            inner = {p.removeprefix(start).partition("/") for p in found}
            names = sorted({start + name for name, slash, _ in inner if slash})
            entries += [
                {"type": "directory", "path": name, "oid": oid(name, b"")} for name in names
            ]
            found = {p: d for p, d in found.items() if "/" not in p.removeprefix(start)}
        entries += [
            {"type": "file", "path": path, "size": len(data), "oid": oid(path, data)}
            for path, data in found.items()
        ]
        if folder and not entries:
            raise Refused(404, "EntryNotFound", f"no folder {folder}")
        self.send(entries)

    def _file(self, repo: Repo, revision: str, path: str) -> None:
        sha = repo.resolve(revision)
        if path not in repo.commits[sha]:
            raise Refused(404, "EntryNotFound", f"no file {path}")
        data = repo.commits[sha][path]
        name = oid(path, data)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{name}"'}
        if path.endswith(LFS):
            headers |= {"X-Linked-Etag": f'"{name}"', "X-Linked-Size": str(len(data))}
            headers |= {"Location": f"http://localhost:{self.server_hub.port}/cdn/{name}"}
            self.send(b"", 302, headers)
        else:
            self.send(data, headers=headers)

    def _repo(self, repo_id: str, reading: bool = False) -> Repo:
        repo = self.server_hub.repos.get(repo_id)
        if repo is None or (repo.private and self.token() is None):
            raise Refused(401, "RepoNotFound", f"no repository {repo_id}")
        if repo.gated and reading:
            raise Refused(403, "GatedRepo", f"{repo_id} is gated")
        return repo
