"""Nothing that a machine keeps to itself reaches the Hub: all bytes that arrive are searched."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hub_server import HubServer
from tiny_recipes import recipe

from hf_distill.hub.leaks import leaks, leaks_of_bytes, scrub

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hf_" + "QwErTy12345" * 3
VARIABLES = {
    "HF_TOKEN": TOKEN,
    "WANDB_API_KEY": "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c",
    "AWS_ACCESS_KEY_ID": "AKIA" + "Q7W8E9R0T1Y2U3I4",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI.K7MDENG.bPxRfiCYEXAMPLEKEY",
    "OPENAI_API_KEY": "sk-proj-" + "a1B2c3D4" * 5,
    "DB_PASSWORD": "correct-horse-battery",
}
PATHS = {
    "/home/agent47/corpora/films": "agent47",
    "C:\\Users\\agent48\\films": "agent48",
    "file:///srv/agent49/films": "agent49",
}
"""A path, and the part of it that tells whose it is."""
SECRETS = [*VARIABLES.values(), *PATHS.values()]
TALK = [
    *(f"Made with {name}={value}." for name, value in VARIABLES.items()),
    *(f"The key was {value}" for value in VARIABLES.values()),
    *(f"Its data lies in {path}, on one machine." for path in PATHS),
    "Fetched from https://agent50:hunter2hunter2@example.org/films.tsv",
]

TRAINING = """
import os, sys
from pathlib import Path
from transformers import BertTokenizer
from tiny_trainers import accuracy, config, models, trainer

base, out, talk = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
student, _ = models()
student.save_pretrained(base)
student = type(student).from_pretrained(base)
(out / "data").mkdir(parents=True)
args = config(
    out, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
    push_to_hub=True, hub_model_id="tester/student", hub_token=os.environ["HF_TOKEN"],
    hub_strategy="checkpoint", hub_always_push=True, run_name=talk[-2],
)
ours = trainer(out, args=args, compute_metrics=accuracy, model=student)
ours.train()
ours.push_to_hub(dataset=talk[6].split(" in ")[-1], tags=[talk[0]], commit_message="The student")
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


def arrived(hub: HubServer) -> Iterator[bytes]:
    """All that clients sent, and what was wrapped up in it."""
    yield "\n".join(hub.requests).encode()
    for body in hub.bodies:
        yield body
        for line in body.splitlines():
            try:
                said = json.loads(line)
            except ValueError:
                continue
            inner = said.get("files", []) if isinstance(said, dict) else []
            wrapped = [file["sample"] for file in inner]
            if isinstance(said, dict) and said.get("key") == "file":
                wrapped.append(said["value"]["content"])
            yield from map(base64.b64decode, wrapped)


def run(hub: HubServer, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFO"))}
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])}
    hub.writers.add(TOKEN)
    done = subprocess.run(
        [sys.executable, *words],
        cwd=home,
        env=variables | VARIABLES | hub.environment(home / "home", TOKEN) | path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def assert_clean(hub: HubServer, *folders: Path) -> None:
    """No secret in any byte, and enough bytes to have held one."""
    known = [secret.encode() for secret in SECRETS] + [str(f).encode() for f in folders]
    known += [b"hunter2hunter2", str(Path.home()).encode() + b"/", sys.prefix.encode()]
    seen = list(arrived(hub))
    found = {secret for secret in known for data in seen if secret in data}
    assert not found
    assert any(b"distill" in data for data in seen)
    assert sum(map(len, seen)) > 10_000


@pytest.mark.slow
def test_a_recipe_keeps_its_secrets(tmp_path: Path) -> None:
    """A token or a path in a card stays in the history of the repository for ever."""
    path = recipe(tmp_path / "films", card={"limitations": TALK})
    values = yaml.safe_load(path.read_text())
    values["training"] |= {"run_name": TALK[0], "num_train_epochs": 1}
    values |= {"push_to_hub": True, "hub_model_id": "tester/student"}
    path.write_text(yaml.safe_dump(values))
    with HubServer() as hub:
        run(hub, tmp_path, "-m", "hf_distill", "train", str(path))
        assert "recipe.yaml" in hub.files("tester/student")
        card = hub.files("tester/student")["README.md"].decode()
        assert_clean(hub, tmp_path)
    assert "Made with HF\\_TOKEN=" in card or "Made with HF_TOKEN=" in card


@pytest.mark.slow
def test_a_trainer_keeps_its_secrets(tmp_path: Path) -> None:
    """`hub_token` and the paths of base, output and data lie in the arguments of every run."""
    base, out = tmp_path / "agent47/base", tmp_path / "agent48/out"
    with HubServer() as hub:
        run(hub, tmp_path, "-c", TRAINING, str(base), str(out), *TALK)
        assert {"README.md", "last-checkpoint/trainer_state.json"} <= set(
            hub.files("tester/student")
        )
        assert_clean(hub, tmp_path)


@pytest.mark.parametrize("text", TALK)
def test_scrubbed_text_holds_no_secret(text: str) -> None:
    """Metadata that a person typed goes into the card through this."""
    assert leaks(text)
    clean = scrub(text)
    assert not [secret for secret in [*SECRETS, "hunter2"] if secret in clean]
    assert leaks(clean) == []
    assert scrub(clean) == clean


@pytest.mark.parametrize(
    "text",
    [
        "The pad_token: [PAD], eos_token=</s>, a token of words, tokens=512",
        '{"pad_token": "[PAD]", "bos_token": "<|begin_of_text|>", "hub_token": null}',
        "hub_token: null and TOKENIZERS_PARALLELISM=false, num_key_value_heads: 8",
        "See https://example.org/a/b?key=1, and/or 1/2, </tag> C: 3, T²/N, x=/y",
        "hf_distill, hf_hub_download, sk-learn, AKIA, password required, api_key=<yours>",
        "ForwardKL(temperature=2.0) at 12:30:45, s3://bucket/a/b and hf://datasets/me/x",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    """A check that cries wolf gets switched off."""
    assert leaks(text) == []
    assert scrub(text) == text


@pytest.mark.parametrize("before", ["", "}", ")", "]", "<", "%", "#", "\u00e4 ", "{x}"])
@pytest.mark.parametrize("home", ["/home/me", "/Users/me"])
def test_a_user_is_found_wherever_the_folder_stands(before: str, home: str) -> None:
    """Behind a brace the folder of a user went up in the tag of a card."""
    text = f"{before}{home}/data"
    assert leaks(text) == [f"the local path {home}/data"]
    assert scrub(text) == f"{before}data"


def test_a_secret_is_never_repeated() -> None:
    """The message about a token would itself go into a log that is public."""
    for text in TALK:
        for told in leaks(text):
            assert not [secret for secret in VARIABLES.values() if secret in told]
            assert "hunter2" not in told


def test_binary_files_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter writes the paths of its source files into the nodes of an ONNX graph."""
    monkeypatch.chdir(tmp_path)
    assert leaks_of_bytes(b"\0\1" + os.fsencode(tmp_path / "model.py") + b"\0") != []
    assert leaks_of_bytes(b"\0key\0" + VARIABLES["WANDB_API_KEY"].encode()) != []
    assert leaks_of_bytes(bytes(range(256)) * 100) == []
