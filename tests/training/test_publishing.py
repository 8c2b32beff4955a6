"""`trainer.push_to_hub()` and pushes during training, against a Hub on the loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer
from safetensors.torch import load, load_file

from hf_distill.hub import validate

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
STUDENT = ["README.md", "config.json", "model.safetensors"]
CHECKPOINT = [
    "checksums.json",
    "config.json",
    "distillation.safetensors",
    "log-00000.safetensors",
    "model.safetensors",
    "trainer_state.json",
    "training_state.json",
    "training_state.safetensors",
]

TRAINING = """
import sys, warnings
from pathlib import Path
from huggingface_hub import snapshot_download
from tiny_trainers import accuracy, config, trainer
from hf_distill import ForwardKL, HiddenStates

out, strategy, resume, *more = sys.argv[1:]
during = strategy != "never"
args = config(
    Path(out), max_steps=4, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=2,
    save_strategy="steps", save_steps=2, save_total_limit=1, lr_scheduler_type="cosine",
    push_to_hub=during, hub_model_id="tester/student", hub_private_repo=True,
    hub_strategy=strategy if during else "every_save", hub_always_push=True,
    hub_revision=more[0] if more else None,
)
ours = trainer(Path(out), args=args, compute_metrics=accuracy,
               objective=1.0 * ForwardKL() + HiddenStates())
if resume != "no":
    folder = snapshot_download("tester/student", allow_patterns=f"{resume}/*", local_dir=out)
    ours.train(resume_from_checkpoint=f"{folder}/{resume}")
    ours.save_model()
else:
    ours.train()
if not during:
    ours.push_to_hub(commit_message="The student", private=True, dataset="some reviews")
    request = ours.push_to_hub(create_pr=True, license="mit")
    print(request.pr_url)
"""


def train(
    out: Path, hub: HubServer, *arguments: str, code: str = TRAINING
) -> subprocess.CompletedProcess[str]:
    """A training in a process of its own: its output folder, its strategy, what to resume from."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFO"))}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    done = subprocess.run(
        [sys.executable, "-c", code, str(out), *arguments],
        cwd=out.parent,
        env=variables | hub.environment(out.parent / "home") | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def same(files: dict[str, bytes], kept: Path, folder: str = "") -> bool:
    """Whether published weights are bit-equal to those of a folder."""
    ours, theirs = load(files[f"{folder}model.safetensors"]), load_file(kept / "model.safetensors")
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_the_plain_student_and_its_card_go_up(tmp_path: Path) -> None:
    """transformers' own push adds training_args.bin (a pickle), event files and a stock card."""
    out = tmp_path / "out"
    with HubServer() as hub:
        done = train(out, hub, "never", "no")
        files, repo = hub.files("tester/student"), hub.repos["tester/student"]
        asked = hub.files("tester/student", "refs/pr/1")["README.md"].decode()
    assert sorted(files) == STUDENT
    assert same(files, out)
    card = files["README.md"].decode()
    validate(card)
    assert "accuracy" in card
    assert "ForwardKL" in card
    assert "some reviews" in card
    assert repo.private
    assert repo.messages[1:] == ["The student", "End of training"]
    assert done.stdout.strip().endswith("/tester/student/discussions/1")
    assert "license: mit" in asked
    assert "license: mit" not in card


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_what_each_strategy_pushes_while_it_trains(tmp_path: Path, strategy: str) -> None:
    """A strategy that pushes too little loses a run; one that pushes too much publishes pickles,
    event files, the hub_token within training_args.bin, or this machine's paths."""
    out = tmp_path / "out"
    with HubServer() as hub:
        done = train(out, hub, strategy, "no", "v2")
        repo = hub.repos["tester/student"]
        if strategy == "end":
            assert repo.messages == [""]
            return
        files = hub.files("tester/student", "v2")
    folders = {
        "every_save": [],
        "checkpoint": ["last-checkpoint"],
        "all_checkpoints": ["checkpoint-2", "checkpoint-4"],
    }[strategy]
    wanted = [*STUDENT, *(f"{folder}/{name}" for folder in folders for name in CHECKPOINT)]
    assert sorted(files) == sorted(wanted)
    assert hub.files("tester/student", "main") == {}
    assert same(files, out / "checkpoint-4")
    if folders:
        state: dict[str, Any] = json.loads(files[f"{folders[-1]}/trainer_state.json"])
        assert state["global_step"] == 4
        assert same(files, out / "checkpoint-4", f"{folders[-1]}/")
    steps = [f"Training in progress, step {step}" for step in (2, 4)]
    kinds = ["", ", checkpoint"] if folders else [""]
    assert [m for m in repo.messages if m] == [step + kind for step in steps for kind in kinds]
    assert not [name for name, data in files.items() if str(tmp_path).encode() in data]
    assert not (out / "_pushing/checkpoint-4").exists()
    assert "not pushed" not in done.stderr


def test_a_checkpoint_of_the_hub_resumes_exactly(tmp_path: Path) -> None:
    """Without optimizer, schedule and random states a resumed run would go another way."""
    with HubServer() as hub:
        train(tmp_path / "one", hub, "all_checkpoints", "no")
        again = tmp_path / "two"
        again.mkdir()
        train(again, hub, "never", "checkpoint-2")
    ends = [tmp_path / f"{name}/checkpoint-4" for name in ("one", "two")]
    straight, resumed = (load_file(end / "model.safetensors") for end in ends)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    a, b = (json.loads((end / "trainer_state.json").read_text()) for end in ends)
    rates = [[row["learning_rate"] for row in s["log_history"] if "loss" in row] for s in (a, b)]
    assert rates[0] == rates[1]


def test_a_failed_push_does_not_end_the_training(tmp_path: Path) -> None:
    """A Hub that is down for a minute would cost the run; in silence, the user's student."""
    with HubServer() as hub:
        hub.fault("POST .*/commit/", times=1000, value=400)
        done = train(tmp_path / "out", hub, "checkpoint", "no")
    assert "Training in progress, step 2: this push to tester/student failed" in done.stderr
    assert (tmp_path / "out/checkpoint-4").is_dir()


MODULE = """
import sys
from pathlib import Path
from plain_modules import Recurrent
from tiny_trainers import trainer
from hf_distill import register_task

register_task(Recurrent, "sequence_classification")
ours = trainer(Path(sys.argv[1]), model=Recurrent(), teacher_model=Recurrent(width=12),
               hub_model_id="tester/module")
ours.train()
ours.push_to_hub(license="mit")
"""


def test_a_module_without_a_config_goes_up(tmp_path: Path) -> None:
    """Nothing but its weights and its card can be published of it, and that must be enough."""
    out = tmp_path / "out"
    with HubServer() as hub:
        train(out, hub, code=MODULE)
        files = hub.files("tester/module")
    assert sorted(files) == ["README.md", "model.safetensors"]
    assert same(files, out)
    assert 'model_id = "tester/module"' in files["README.md"].decode()
