"""Pushes through trouble: the real client against a Hub on the loopback that misbehaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import HubServer
from hub_store import oid
from safetensors.numpy import save_file

from hf_distill.hub import StudentCard, write

pytestmark = pytest.mark.xdist_group("hub_faults")  # the pushes are made once

ROOT = Path(__file__).resolve().parents[2]
SIZE = 2**14

PUBLISHER = """
import json, os, sys, time, urllib.request
from pathlib import Path
from hf_distill.hub import push_folder

time.sleep = lambda seconds: None  # the waits between attempts
student, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
weights = student / "model.safetensors"

def control(what, **fault):
    url = f"{os.environ['HF_ENDPOINT']}/control/{what}"
    urllib.request.urlopen(urllib.request.Request(url, json.dumps(fault).encode())).read()

out = {}
for number, (name, case) in enumerate(cases.items()):
    if weights.exists():
        data = bytearray(weights.read_bytes())
        data[-1] = number  # other weights, so that they are sent
        weights.write_bytes(data)
    options = case.pop("options", {})
    for _ in range(1 + case.pop("again", False)):
        if case:
            control("fault", **case)
        said = out.setdefault(name, [])
        try:
            commit = push_folder(student, f"tester/{name}", **options)
            said.append(commit.pr_url or commit.oid)
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
        control("calm")
        case.clear()
print(json.dumps(out))
"""

ASKED = {
    "create": "POST api/repos/create",
    "branch": "POST api/models/.*/branch/",
    "look": "GET api/models/.*/revision/",
    "preupload": "POST .*/preupload/",
    "batch": "POST .*/objects/batch",
    "upload": "PUT lfs/",
    "verify": "POST lfs/.*/verify",
    "validate": "POST api/validate-yaml",
    "commit": "POST .*/commit/",
}
"""All the requests that a push is made of."""
V1 = {"revision": "v1"}
CASES: dict[str, dict[str, Any]] = {
    **{
        f"two-{name}": {"pattern": asked, "times": 2, "options": V1}
        for name, asked in ASKED.items()
    },
    "ten-commits": {"pattern": ASKED["commit"], "times": 10, "again": True},
    "ten-uploads": {"pattern": ASKED["upload"], "times": 10, "again": True},
    "no-hub": {"pattern": " (?!control)", "times": 100, "kind": "cut", "value": 0},
    "cut": {"pattern": ASKED["upload"], "times": 1, "kind": "cut", "value": SIZE},
    "lost": {"pattern": ASKED["commit"], "times": 1, "kind": "lose"},
    "race": {"pattern": ASKED["commit"], "times": 1, "kind": "race"},
    "lost-request": {
        **{"pattern": ASKED["commit"], "times": 1, "kind": "lose"},
        "options": {"create_pr": True},
    },
    "busy-request": {
        **{"pattern": ASKED["preupload"], "times": 2},
        "options": {"create_pr": True},
    },
    "refused": {"pattern": ASKED["commit"], "times": 1, "value": 403},
    "no-room": {"pattern": ASKED["commit"], "times": 1, "value": 413},
}


def student(folder: Path, parts: int = 1) -> Path:
    """A finished student as far as the Hub is concerned, in so many weight files."""
    folder.mkdir()
    names = ["model.safetensors"]
    if parts > 1:
        names = [f"model-{n:05}-of-{parts:05}.safetensors" for n in range(1, parts + 1)]
        index = {"weight_map": {f"w{n}": name for n, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for n, name in enumerate(names):
        save_file({f"w{n}": np.full(SIZE // 2, n, np.float32)}, folder / name)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    write(StudentCard("student", task="text-classification"), folder)
    return folder


def run(hub: HubServer, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFO"))}
    return subprocess.run(
        [sys.executable, *words],
        cwd=home,
        env=variables | hub.environment(home / "home") | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def publish(hub: HubServer, folder: Path, cases: dict[str, Any]) -> dict[str, list[str]]:
    """What each push gave: the commit, the request, or the error."""
    done = run(hub, folder.parent, "-c", PUBLISHER, str(folder), json.dumps(cases))
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, list[str]] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return said


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    root = tmp_path_factory.mktemp("faults")
    with HubServer() as hub:
        said = publish(hub, student(root / "out"), CASES)
        yield {"said": said, "hub": hub}


@pytest.mark.parametrize("asked", ASKED)
def test_two_errors_of_the_hub_are_survived(pushed: dict[str, Any], asked: str) -> None:
    """The client asks some things once only: a gateway's 500 there loses a finished student."""
    repo = pushed["hub"].repos[f"tester/two-{asked}"]
    assert pushed["said"][f"two-{asked}"] == [repo.branches["v1"]]
    assert repo.messages == ["", "", "Upload the distilled student"]


@pytest.mark.parametrize("name", ["ten-commits", "ten-uploads"])
def test_ten_errors_end_it_with_nothing_committed(pushed: dict[str, Any], name: str) -> None:
    """Half a student on the Hub loads, or fails to, without anybody knowing why."""
    error, commit = pushed["said"][name]
    assert error.startswith("ConnectionError: The Hub ")
    assert f"nothing was committed to tester/{name}. Run the same push again" in error
    repo = pushed["hub"].repos[f"tester/{name}"]
    assert repo.messages == ["", "Upload the distilled student"]  # the second push, in calm
    assert commit == repo.branches["main"]


def test_a_hub_that_is_not_there_is_told(pushed: dict[str, Any]) -> None:
    """A traceback of the HTTP library says nothing about what to do."""
    (error,) = pushed["said"]["no-hub"]
    assert error.startswith("ConnectionError: The Hub did not answer")


def test_a_connection_cut_in_an_upload_is_taken_up(pushed: dict[str, Any]) -> None:
    """Weights of which the end is missing would be committed."""
    hub: HubServer = pushed["hub"]
    files = hub.files("tester/cut")
    data = files["model.safetensors"]
    assert len(data) > 2 * SIZE
    assert hub.sent[oid("model.safetensors", data)] == SIZE + len(data)


def test_a_lost_answer_makes_no_second_commit(pushed: dict[str, Any]) -> None:
    """The Hub has committed and the connection breaks: asking again must find that out."""
    repo = pushed["hub"].repos["tester/lost"]
    assert pushed["said"]["lost"] == [repo.branches["main"]]
    assert repo.messages == ["", "Upload the distilled student"]


def test_a_commit_of_somebody_else_is_kept(pushed: dict[str, Any]) -> None:
    """The Hub refuses a commit on a stale parent (412); without one it would be unnoticed."""
    files = pushed["hub"].files("tester/race")
    assert files["other.txt"] == b"theirs"
    assert "model.safetensors" in files
    assert (
        sum(
            request == "POST api/models/tester/race/commit/main"
            for request in pushed["hub"].requests
        )
        == 2
    )


def test_a_request_is_opened_once(pushed: dict[str, Any]) -> None:
    """Asked again after a lost answer, the Hub opens the same pull request twice."""
    hub: HubServer = pushed["hub"]
    branches = [name for name in hub.repos["tester/lost-request"].branches if name != "main"]
    assert branches == ["refs/pr/1"]
    assert pushed["said"]["lost-request"][0].startswith("ConnectionError: The Hub did not answer")
    assert pushed["said"]["busy-request"][0].endswith("/tester/busy-request/discussions/1")


def test_a_refusal_is_final(pushed: dict[str, Any]) -> None:
    """Four attempts at what is forbidden, or too large, only make the user wait."""
    assert pushed["said"]["refused"][0].startswith("PermissionError: The Hub refused")
    assert "413" in pushed["said"]["no-room"][0]
    for name in ("refused", "no-room"):
        asked = f"POST api/models/tester/{name}/commit/main"
        assert pushed["hub"].requests.count(asked) == 1


def test_an_interrupted_upload_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Hours of upload would begin anew because the last file did not arrive."""
    folder = student(tmp_path / "out", parts=3)
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    parts = {name: (folder / name).read_bytes() for name in names}
    oids = {name: oid(name, data) for name, data in parts.items()}
    first, _, last = parts
    with HubServer() as hub:
        cases = {
            "student": {"pattern": f"PUT lfs/{oids[last]}", "times": 99, "kind": "cut", "value": 9}
        }
        (error,) = publish(hub, folder, cases)["student"]
        assert "did not take a file" in error
        assert hub.files("tester/student") == {}
        before = dict(hub.sent)
        assert before[oids[first]] == len(parts[first])
        publish(hub, folder, {"student": {}})
        sent = {name: hub.sent[oids[name]] - before.get(oids[name], 0) for name in parts}
        assert sent == dict.fromkeys(parts, 0) | {last: len(parts[last])}
        files = hub.files("tester/student")
    assert {name: files[name] for name in parts} == parts


def test_large_files_go_up_in_parts(tmp_path: Path) -> None:
    """Files of more than 5 GB go up in parts: one in the wrong place makes other weights."""
    folder = student(tmp_path / "out")
    with HubServer(multipart=5000) as hub:
        hub.fault("PUT lfs/.*/2", times=2)
        publish(hub, folder, {"student": {}})
        files = hub.files("tester/student")
        parts = {request.rpartition("/")[2] for request in hub.requests if "PUT lfs" in request}
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert parts == {str(n) for n in range(1, len(files["model.safetensors"]) // 5000 + 2)}


def test_the_command_line_pushes_and_collects(tmp_path: Path) -> None:
    """A family of students is found together; one whose note is old misleads."""
    folder = student(tmp_path / "out")
    push = ["-m", "hf_distill", "push", str(folder), "--repo", "tester/student"]
    with HubServer() as hub:
        dry = run(hub, tmp_path, *push, "--dry-run")
        assert (dry.returncode, hub.requests) == (0, [])
        size = f"{(folder / 'model.safetensors').stat().st_size:,}"
        assert [size, "model.safetensors"] in [line.split() for line in dry.stdout.splitlines()]
        assert dry.stdout.endswith("no problems\n")
        title = ["--collection", "Students of reviews", "--message", "Another one"]
        for claim in ("It was good.", "It is better."):
            card = folder / "README.md"
            card.write_text(card.read_text().replace("# student\n", f"# student\n\n{claim}\n"))
            done = run(hub, tmp_path, *push, *title)
            assert done.returncode == 0, done.stderr
        assert "pushed: " in done.stdout
        assert f"in the collection: {hub.url}/collections/tester/students-of-rev" in done.stdout
        assert hub.repos["tester/student"].messages == ["", "Another one", "Another one"]
        (collection,) = hub.collections.values()
        assert (collection.title, collection.owner) == ("Students of reviews", "tester")
        items = [(item["id"], item["note"]["text"]) for item in collection.items]
        assert items == [("tester/student", "It is better.")]
        done = run(hub, tmp_path, *push, "--collection", "tester/nothing-1")
        assert done.returncode == 1
        assert "404" in done.stderr
        hub.repos["tester/student"].gated = True
        shutil.rmtree(tmp_path / "home")  # with the card in its cache
        done = run(hub, tmp_path, *push, "--collection", collection.slug)
        assert done.returncode == 1
        assert "for a gated repository ask its owner" in done.stderr
    (folder / "config.json").unlink()
    broken = run(hub, tmp_path, *push, "--dry-run")
    assert broken.returncode == 2
    assert "missing: config.json" in broken.stderr
