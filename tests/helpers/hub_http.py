"""The plumbing of the loopback Hub: requests in, answers out, and what is to go wrong."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from hub_store import Fault, Refused

if TYPE_CHECKING:
    from hub_server import HubServer


class Plumbing(BaseHTTPRequestHandler):
    """Reads a request, spoils it if that was planned, and has `route` answer it."""

    protocol_version = "HTTP/1.1"
    server_hub: HubServer
    body: bytes
    lost: bool

    def route(self, parts: list[str]) -> None:
        raise NotImplementedError

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        hub = self.server_hub
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        said = f"{self.command} {'/'.join(parts)}"
        hub.requests.append(said)
        fault = next((f for f in hub.faults if f.times and re.search(f.pattern, said)), None)
        if fault is not None:
            fault.times -= 1
        self.lost = fault is not None and fault.kind == "lose"
        if fault is not None and fault.kind == "cut":
            self._cut(fault, parts)
            return
        self.body = self._read()
        hub.bodies.append(self.body)
        if fault is not None and fault.kind == "status":
            page = {"Content-Type": "text/html"}
            self.send(b"<html>Something broke</html>", fault.value, page)
            return
        if fault is not None and fault.kind == "race":
            repo = hub.repos["/".join(parts[2:4])]
            repo.commit("main", repo.commits[repo.resolve("main")] | {"other.txt": b"theirs"})
        try:
            self.route(parts)
        except Refused as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)}
            self.send({"error": str(refusal)} | refusal.more, refusal.status, headers)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815 - names that http.server asks for

    def _cut(self, fault: Fault, parts: list[str]) -> None:
        got = self.rfile.read(min(fault.value, int(self.headers.get("Content-Length") or 0)))
        if parts[0] == "lfs":
            self.server_hub.sent[parts[1]] += len(got)
        self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def writer(self) -> None:
        """Raises: Refused (401, 403)."""
        if self.token() not in (*self.server_hub.writers, "readonly"):
            raise Refused(401, "", "Invalid credentials in Authorization header")
        if self.token() == "readonly":
            raise Refused(403, "", "this token may only read")

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def send(self, answer: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if self.lost:
            self._hang_up()
            return
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(answer, bytes) else "application/json"
        for name, value in {"Content-Type": kind, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


class LargeFiles(Plumbing):
    """The Git LFS calls: in one piece or in parts, checked by hash, and served by the CDN."""

    def batch(self) -> None:
        self.writer()
        hub, objects = self.server_hub, []
        for asked in json.loads(self.body)["objects"]:
            href, size = f"{hub.url}/lfs/{asked['oid']}", asked["size"]
            upload: dict[str, Any] = {"href": href}
            if hub.multipart is not None and size > hub.multipart:
                count = -(-size // hub.multipart)
                urls = {f"{n:05}": f"{href}/{n}" for n in range(1, count + 1)}
                upload = {"href": f"{href}/complete", "header": {"chunk_size": str(hub.multipart)}}
                upload["header"] |= urls
            actions = {"upload": upload, "verify": {"href": f"{href}/verify"}}
            objects.append(asked | ({} if asked["oid"] in hub.lfs else {"actions": actions}))
        self.send({"transfer": "basic", "objects": objects})

    def store(self, sha: str, part: list[str]) -> None:
        hub, data = self.server_hub, self.body
        match part:
            case ["verify"]:
                self.writer()
                if sha not in hub.lfs or len(hub.lfs[sha]) != json.loads(data)["size"]:
                    raise Refused(422, "", "the object is not what was announced")
            case ["complete"]:
                asked = json.loads(data)["parts"]
                parts = hub.parts.pop(sha)
                if [p["etag"] for p in asked] != [f'"{n}"' for n in sorted(parts)]:
                    raise Refused(400, "", "parts are missing")
                self._keep(sha, b"".join(parts[n] for n in sorted(parts)))
            case [number]:
                hub.sent[sha] += len(data)
                hub.parts.setdefault(sha, {})[int(number)] = data
                self.send({}, headers={"ETag": f'"{number}"'})
                return
            case _:
                hub.sent[sha] += len(data)
                self._keep(sha, data)
        self.send({})

    def _keep(self, sha: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != sha:
            raise Refused(400, "", "the content has another hash")
        self.server_hub.lfs[sha] = data

    def serve(self, sha: str) -> None:
        if self.token() is not None:
            raise Refused(403, "", "a token was sent to another host")
        self.send(self.server_hub.lfs[sha], headers={"ETag": f'"{sha}"'})
