"""``hf-distill doctor``: what it finds, and what it keeps to itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from hf_distill import __version__
from hf_distill.cli import doctor, main

TOKEN = "hf_" + "s3cr3t" * 5


class Hub(BaseHTTPRequestHandler):
    """Knows one token, and keeps what it was asked."""

    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        given = self.headers.get("Authorization")
        type(self).asked.append((self.path, given))
        known = given == f"Bearer {TOKEN}"
        body = json.dumps({"name": "ada"} if known else {"error": "who are you?"}).encode()
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""


@pytest.fixture
def hub() -> Iterator[str]:
    """A hub's address."""
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


HUB = "import json; from hf_distill.cli.doctor import _hub; print(json.dumps(_hub()))"


def process(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: the hub's library reads its variables once."""
    ours = {"HF_HUB_OFFLINE", "HF_TOKEN", "HF_ENDPOINT", "HF_HOME"}
    rest = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        [sys.executable, *words],
        env={**rest, "NO_PROXY": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def of_hub(**environment: str) -> dict[str, Any]:
    done = process("-c", HUB, **environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_what_is_shown_is_so(hub: str, tmp_path: Path) -> None:
    """A wrong version in a report of a bug costs a day; a token in it, an account."""
    variables = {"HF_ENDPOINT": hub, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path)}
    done = process("-m", "hf_distill", "doctor", "--json", **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["versions"]["hf_distill"] == __version__
    assert found["versions"]["torch"] == version("torch")
    assert found["versions"]["huggingface_hub"] == version("huggingface-hub")
    assert found["optional"]["sklearn"] == version("scikit-learn")
    assert found["devices"]["cpu cores"] == len(os.sched_getaffinity(0))
    assert found["disk"]["cache"].endswith(f"free in {tmp_path}")
    assert found["hub"] == {"endpoint": hub, "token": True, "answers": True, "user": "ada"}
    assert found["problems"] == []
    assert ("/api/whoami-v2", f"Bearer {TOKEN}") in Hub.asked
    assert TOKEN not in done.stdout + done.stderr


def test_a_token_that_is_not_accepted(hub: str) -> None:
    """The push fails after the training, where it could have been known before."""
    found = of_hub(HF_ENDPOINT=hub, HF_TOKEN="hf_wrong")
    assert found["answers"] is True
    assert found["user"] == "the token is not accepted: status 401"


def test_offline_asks_nobody(hub: str) -> None:
    """Who says HF_HUB_OFFLINE is on a machine where a request hangs or is reported."""
    found = of_hub(HF_ENDPOINT=hub, HF_HUB_OFFLINE="1")
    assert found["answers"] == "not asked, HF_HUB_OFFLINE is set"
    assert Hub.asked == []


def test_a_hub_that_does_not_answer() -> None:
    """Local models need none, so it is no problem; but a password in its address would show."""
    found = of_hub(HF_ENDPOINT="http://user:password@127.0.0.1:1")
    assert found["endpoint"] == "http://127.0.0.1:1"
    assert found["answers"].startswith("no: ")
    assert "password" not in str(found)


BROKEN = """
import sys
from importlib.metadata import version as real
import importlib.metadata
importlib.metadata.version = lambda name: "4.0.0" if name == "transformers" else real(name)
sys.modules["peft"] = None
from hf_distill.cli import main
sys.exit(main(["doctor"]))
"""


def test_what_is_broken_is_named() -> None:
    """ "Something is wrong" sends a user to reinstall everything."""
    done = subprocess.run(
        [sys.executable, "-c", BROKEN],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    problems = [line for line in done.stdout.splitlines() if line.startswith("problem: ")]
    assert len(problems) == 2
    assert problems[0].startswith("problem: import peft fails: ModuleNotFoundError")
    assert problems[1].startswith("problem: transformers 4.0.0 is installed, transformers>=")
    assert "ready" not in done.stdout


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The first checkpoint fails, after an hour."""
    monkeypatch.setattr(doctor, "_hub", dict)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("\nready\n")
    monkeypatch.setattr(doctor, "ROOM", 2**80)
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert f"GiB are free in {Path.cwd()}" in shown.partition("problem: ")[2]
    assert "ready" not in shown
