"""A `TeacherServer` against malformed HTTP, other names, and clients without the token."""

from __future__ import annotations

import random

import pytest
from raw_http import answers, get, opened, post
from strangers import GOOD, OWN, Counted, posted
from tally import Tally

from hf_distill.teachers.serving import TeacherServer

TOKEN = "t0ken-of-16-chars"


MALFORMED: list[tuple[str, bytes, int]] = [
    ("two lengths", posted("Content-Length: 2\r\nContent-Length: 40\r\n"), 400),
    ("two equal lengths", posted("Content-Length: 2\r\nContent-Length: 2\r\n"), 400),
    ("two lengths of other case", posted("Content-Length: 2\r\ncontent-LENGTH: 3\r\n"), 400),
    ("a list of lengths", posted("Content-Length: 2, 2\r\n"), 400),
    ("a blank before the colon", posted("Content-Length : 2\r\n"), 400),
    ("a tab before the colon", posted("Content-Length\t: 2\r\n"), 400),
    ("a coding with a blank", posted("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"), 400),
    ("a coding and a length", posted("Transfer-Encoding: chunked\r\nContent-Length: 2\r\n"), 400),
    ("a length and a coding", posted("Content-Length: 2\r\nTransfer-Encoding: identity\r\n"), 400),
    ("two codings", posted("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"), 400),
    ("chunked", posted("Transfer-Encoding: chunked\r\n", "0\r\n\r\n"), 411),
    ("a folded line", posted("X: a\r\n Content-Length: 2\r\n"), 400),
    ("a folded length", posted("Content-Length:\r\n 2\r\n"), 400),
    ("a blank line with a blank", posted("Content-Length: 2\r\n \r\n"), 400),
    ("a first line that is folded", f"GET /health HTTP/1.1\r\n {OWN}\r\n".encode(), 400),
    ("a length of 10,000 digits", posted(f"Content-Length: {'9' * 10_000}\r\n"), 400),
    ("a length of 19 digits", posted(f"Content-Length: {'9' * 19}\r\n"), 400),
    ("a negative length", posted("Content-Length: -1\r\n"), 400),
    ("a length with a sign", posted("Content-Length: +2\r\n"), 400),
    ("a hexadecimal length", posted("Content-Length: 0x2\r\n"), 400),
    ("a length with a line", posted("Content-Length: 1_0\r\n"), 400),
    ("a length with another digit", posted("Content-Length: 2\xb2\r\n"), 400),
    ("no length", posted("Content-Length: \r\n"), 400),
    ("a carriage return in a field", posted("X: a\rContent-Length: 2\r\n"), 400),
    ("a zero byte in a field", posted("X: a\x00b\r\n"), 400),
    ("a field without a name", posted(": a\r\n"), 400),
    ("a field without a colon", posted("nothing\r\n"), 400),
    ("a name in brackets", posted("X[0]: a\r\n"), 400),
    ("no Host", b"GET /health HTTP/1.1\r\n\r\n", 400),
    ("two Hosts", f"GET /health HTTP/1.1\r\n{OWN}{OWN}\r\n".encode(), 400),
    ("nonsense", b"nonsense\r\n\r\n", 400),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n", 400),
    ("an SSH greeting", b"SSH-2.0-OpenSSH_9.6\r\n\r\n", 400),
    ("HTTP/0.9", b"GET /health\r\n", 400),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("a version with letters", f"GET /health HTTP/1.x\r\n{OWN}\r\n".encode(), 400),
    ("a blank in the path", f"GET /he alth HTTP/1.1\r\n{OWN}\r\n".encode(), 400),
    ("a tab in the line", f"GET\t/health HTTP/1.1\r\n{OWN}\r\n".encode(), 400),
    ("an unfinished address", f"GET http://[::1 HTTP/1.1\r\n{OWN}\r\n".encode(), 400),
    ("a path of 100 kB", f"GET /{'a' * 100_000} HTTP/1.1\r\n{OWN}\r\n".encode(), 400),
    ("a field of 100 kB", f"GET /health HTTP/1.1\r\n{OWN}X: {'a' * 100_000}\r\n\r\n".encode(), 431),
    ("10,000 fields", f"GET / HTTP/1.1\r\n{OWN}{'X: aaaaaaa' * 1}\r\n".encode()
     + b"Y: aaaaaa\r\n" * 10_000 + b"\r\n", 431),
    ("200 fields", f"GET /health HTTP/1.1\r\n{OWN}".encode() + b"Y: a\r\n" * 200 + b"\r\n", 431),
    ("a path upwards", f"GET /../../etc/passwd HTTP/1.1\r\n{OWN}\r\n".encode(), 404),
    ("escapes in the path", f"GET /%1b[31m HTTP/1.1\r\n{OWN}\r\n".encode(), 404),
    ("HEAD", f"HEAD /health HTTP/1.1\r\n{OWN}\r\n".encode(), 405),
    ("DELETE", f"DELETE /signal HTTP/1.1\r\n{OWN}\r\n".encode(), 405),
    ("CONNECT", f"CONNECT a:1 HTTP/1.1\r\n{OWN}\r\n".encode(), 404),
    ("a body too large", posted(f"Content-Length: {1 << 21}\r\n", ""), 413),
    ("a proxy's address", f"GET http://localhost/health HTTP/1.1\r\n{OWN}\r\n".encode(), 200),
    ("HTTP/1.0", b"GET /health HTTP/1.0\r\n\r\n", 200),
    ("a line feed alone", b"GET /health HTTP/1.1\nHost: localhost\n\n", 200),
]  # fmt: skip


def test_malformed_http(url: str, teacher: Counted, caplog: pytest.LogCaptureFixture) -> None:
    """What a proxy in front takes for one request and the server for two lets one client put
    requests into another's connection."""
    before = teacher.calls
    with Tally("server: malformed HTTP") as attacks:
        for what, request, expected in MALFORMED:
            with attacks.attack(what):
                found = answers(url, request)
                assert [status for status, _ in found] == [expected], found
        with attacks.attack("a body that waits to be asked for"), opened(url) as sock:
            sock.sendall(posted("Content-Length: 2\r\nExpect: 100-continue\r\n", ""))
            assert sock.recv(1 << 16).startswith(b"HTTP/1.1 100 ")
            sock.sendall(b"xx")
            assert sock.recv(1 << 16).startswith(b"HTTP/1.1 400 ")
        with attacks.attack("a body that would wait, and is too large"), opened(url) as sock:
            sock.sendall(posted(f"Content-Length: {1 << 21}\r\nExpect: 100-continue\r\n", ""))
            assert sock.recv(1 << 16).startswith(b"HTTP/1.1 413 ")
        with attacks.attack("51 requests at once"):
            assert [status for status, _ in answers(url, GOOD * 51)] == [200] * 51
        with attacks.attack("a body that looks like a request"):
            inner = f"GET /nowhere HTTP/1.1\r\n{OWN}\r\n".encode()
            head = f"GET /health HTTP/1.1\r\n{OWN}Content-Length: {len(inner)}\r\n\r\n".encode()
            assert [status for status, _ in answers(url, head + inner)] == [200]
    assert teacher.calls == before
    assert not [r for r in caplog.records if r.levelname == "ERROR"], caplog.text


def test_requests_with_random_changes(url: str) -> None:
    """A form that nobody thought of must not end in a hanging connection or a dead thread."""
    drawn = random.Random(0)
    base = posted("Content-Length: 2\r\nAccept: */*\r\n")
    with Tally("server: malformed HTTP") as attacks:
        for index in range(60):
            changed = bytearray(base)
            for _ in range(drawn.randint(1, 3)):
                changed[drawn.randrange(len(changed) - 6)] = drawn.randrange(256)
            with attacks.attack(f"{index}: {bytes(changed)!r}"), opened(url, 5) as sock:
                sock.sendall(changed)
                sock.shutdown(1)
                found = sock.recv(1 << 16)
                assert found[:12] in (b"", b"HTTP/1.1 505") or found[9:10] == b"4", found
        with attacks.attack("health after all"):
            assert get(url, "/health")[0] == 200


def test_other_names_and_origins(teacher: Counted) -> None:
    """A page of another site, to whose name the loopback's address was bound, would read all that
    the teacher knows."""
    own = ["localhost", "LOCALHOST:80", "127.0.0.1", "127.8.8.8:1", "[::1]", "[::1]:9"]
    strange = ["evil.example", "localhost.evil.example", "evil.example:8300", "127.0.0.1.nip.io",
               "10.0.0.1", "0.0.0.0", "localhost@evil.example", "", "[::1", "localhost:x",
               "localhost/x", "evil.example#localhost", "[::2]"]  # fmt: skip
    with TeacherServer(teacher) as server, Tally("server: names and tokens") as attacks:
        for host in own:
            with attacks.attack(f"own {host}"):
                assert get(server.url, "/health", f"Host: {host}\r\n")[0] == 200
        for host in strange:
            with attacks.attack(f"Host: {host}"):
                status, told = get(server.url, "/health", f"Host: {host}\r\n")
                assert (status, "allow-host" in told["error"]["message"]) == (403, True)
        for origin in ["http://evil.example", "null", "https://localhost.evil.example"]:
            with attacks.attack(f"Origin: {origin}"):
                plain = f"Origin: {origin}\r\nContent-Type: text/plain\r\n"
                assert post(server.url, "/signal", b"", plain)[0] == 403
        with attacks.attack("the page of this machine"):
            fields = f"{OWN}Origin: http://localhost:3000\r\n"
            assert get(server.url, "/health", fields)[0] == 200
    with TeacherServer(teacher, allowed_hosts=["Teacher.example"]) as server:  # the remedy
        assert get(server.url, "/health", "Host: teacher.example\r\n")[0] == 200
        assert get(server.url, "/health", "Host: evil.example\r\n")[0] == 403


def test_tokens(teacher: Counted) -> None:
    """A server for other machines without a token is open to all of them."""
    with Tally("server: names and tokens") as attacks:
        for host in ["0.0.0.0", "", "::", "192.0.2.1"]:
            refused = pytest.raises(ValueError, match="Give one")
            with attacks.attack(f"{host!r} without a token"), refused:
                TeacherServer(teacher, host)
        for empty in ["", " "]:
            refused = pytest.raises(ValueError, match="empty token")
            with attacks.attack("an empty token"), refused:
                TeacherServer(teacher, "0.0.0.0", token=empty)
        with TeacherServer(teacher, token=TOKEN) as server:
            fields = ["", TOKEN, "Bearer", f"Bearer {TOKEN[:-1]}", "Basic eDp5", f"Bearer  {TOKEN}",
                      f"bearer {TOKEN}", "Bearer \xff"]  # fmt: skip
            for path in ("/health", "/teacher", "/nowhere"):
                for value in fields:
                    with attacks.attack(f"{path} {value!r}"):
                        given = f"{OWN}Authorization: {value}\r\n"
                        assert get(server.url, path, given)[0] == 401
            with attacks.attack("100 kB without a token"):
                assert post(server.url, "/signal", b"x" * 100_000)[0] == 401
            assert (
                get(server.url, "/health", f"{OWN}Authorization: Bearer t0ken-of-16-chars\r\n")[0]
                == 200
            )
    with TeacherServer(teacher, "0.0.0.0", no_token=True) as server:  # the remedies
        assert get(server.url.replace("0.0.0.0", "127.0.0.1"), "/health")[0] == 200
    with TeacherServer(teacher, "0.0.0.0", token=TOKEN) as server:
        assert get(server.url.replace("0.0.0.0", "127.0.0.1"), "/health")[0] == 401
