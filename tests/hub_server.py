"""A small Hub on the loopback: enough of the HTTP API to push a model and load it again.

Only the standard library. Repositories live in memory. Git objects are not kept: a commit is a
mapping from path to bytes. Files that the real Hub would keep with LFS go through the LFS calls.
Tokens: ``dummy`` may write, ``readonly`` may not, others are unknown.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub.repocard import REGEX_YAML_BLOCK

USER = "tester"
_LFS = (".safetensors", ".png", ".bin", ".arrow")


@dataclass
class Repo:
    """One repository: what each branch points at, and the files of each commit."""

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        listing = json.dumps([len(self.commits), *sorted(files)]).encode()
        sha = hashlib.sha1(listing).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str:
        """The commit of a branch or of a commit's own name. Raises: Refused (404)."""
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refused(404, "RevisionNotFound", f"no revision {revision}")
        return sha


class Refused(Exception):  # noqa: N818 - an answer, not an error of the server
    """An HTTP answer other than success."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def oid(path: str, data: bytes) -> str:
    """What names a file's content: sha256 for LFS, git's own sha1 otherwise."""
    if path.endswith(_LFS):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubServer:
    """``with HubServer() as hub``: serves until the block ends."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

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


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - names that http.server asks for

    def _answer(self) -> None:
        self.body = self._read()
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        self.server_hub.requests.append(f"{self.command} {'/'.join(parts)}")
        try:
            self._route(parts)
        except Refused as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)}
            self._send({"error": str(refusal)}, refusal.status, headers)

    def _route(self, parts: list[str]) -> None:
        if parts[:2] == ["api", "datasets"]:  # kept as models are
            parts[1] = "models"
        if parts[0] == "datasets":
            parts = parts[1:]
        match parts:
            case ["api", "repos", "create"]:
                self._create()
            case ["api", "validate-yaml"]:
                self._validate_yaml()
            case ["api", "whoami-v2"]:
                self._writer()
                self._send({"type": "user", "name": USER, "orgs": []})
            case ["api", "models", owner, name, *rest]:
                self._api(f"{owner}/{name}", rest)
            case ["lfs", sha]:
                self.server_hub.lfs[sha] = self.body
                self._send({})
            case [owner, git, "info", "lfs", "objects", "batch"] if git.endswith(".git"):
                self._batch()
            case [owner, name, "resolve", revision, *path]:
                self._file(self._repo(f"{owner}/{name}", reading=True), revision, "/".join(path))
            case _:
                raise Refused(404, "NotFound", f"this Hub has no {self.command} {self.path}")

    def _api(self, repo_id: str, rest: list[str]) -> None:
        repo = self._repo(repo_id)
        match rest:
            case [] | ["revision", _]:
                sha = repo.resolve(rest[1] if rest else "main")
                siblings = [{"rfilename": path} for path in repo.commits[sha]]
                about = {"sha": sha, "siblings": siblings, "private": repo.private, "tags": []}
                self._send({"id": repo_id, "modelId": repo_id, **about})
            case ["tree", revision, *path]:
                self._tree(repo.commits[repo.resolve(revision)], "/".join(path))
            case ["branch", branch]:
                self._writer()
                if branch in repo.branches:
                    raise Refused(409, "", "the branch exists")
                repo.commit(branch, repo.commits[repo.resolve("main")])
                self._send({})
            case ["preupload", revision]:
                self._preupload(repo.commits[repo.resolve(revision)])
            case ["commit", revision]:
                self._commit(repo_id, repo, revision)
            case _:
                raise Refused(404, "NotFound", f"this Hub has no {self.command} {self.path}")

    def _create(self) -> None:
        self._writer()
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or USER}/{asked['name']}"
        known = repo_id in self.server_hub.repos
        if not known:
            repo = Repo(private=asked.get("visibility") == "private")
            repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
            self.server_hub.repos[repo_id] = repo
        url = f"{self.server_hub.url}/{repo_id}"
        self._send({"url": url, "name": repo_id, "id": repo_id}, 409 if known else 200)

    def _validate_yaml(self) -> None:
        if not REGEX_YAML_BLOCK.match(json.loads(self.body)["content"]):
            raise Refused(400, "", "no metadata")
        self._send({"errors": [], "warnings": []})

    def _preupload(self, files: dict[str, bytes]) -> None:
        self._writer()
        answer = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            mode = "lfs" if path.endswith(_LFS) else "regular"
            same = {"oid": oid(path, files[path])} if path in files else {}
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **same})
        self._send({"files": answer})

    def _batch(self) -> None:
        self._writer()
        objects = []
        for asked in json.loads(self.body)["objects"]:
            href = f"{self.server_hub.url}/lfs/{asked['oid']}"
            missing = asked["oid"] not in self.server_hub.lfs
            objects.append(asked | ({"actions": {"upload": {"href": href}}} if missing else {}))
        self._send({"transfer": "basic", "objects": objects})

    def _commit(self, repo_id: str, repo: Repo, branch: str) -> None:
        self._writer()
        request = "create_pr=1" in self.path
        files = dict(repo.commits[repo.resolve(branch)])
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server_hub.lfs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.commit("refs/pr/1" if request else branch, files)
        url = f"{self.server_hub.url}/{repo_id}"
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{url}/commit/{sha}"}
        self._send(answer | ({"pullRequestUrl": f"{url}/discussions/1"} if request else {}))

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
        self._send(entries)

    def _file(self, repo: Repo, revision: str, path: str) -> None:
        sha = repo.resolve(revision)
        if path not in repo.commits[sha]:
            raise Refused(404, "EntryNotFound", f"no file {path}")
        data = repo.commits[sha][path]
        self._send(data, headers={"X-Repo-Commit": sha, "ETag": f'"{oid(path, data)}"'})

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _writer(self) -> None:
        if self._token() not in ("dummy", "readonly"):
            raise Refused(401, "", "Invalid credentials in Authorization header")
        if self._token() == "readonly":
            raise Refused(403, "", "this token may only read")

    def _repo(self, repo_id: str, reading: bool = False) -> Repo:
        repo = self.server_hub.repos.get(repo_id)
        if repo is None or (repo.private and self._token() is None):
            raise Refused(401, "RepoNotFound", f"no repository {repo_id}")
        if repo.gated and reading:
            raise Refused(403, "GatedRepo", f"{repo_id} is gated")
        return repo

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, answer: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(answer, bytes) else "application/json"
        for name, value in {"Content-Type": kind, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
