"""`trainer.push_to_hub()` and pushes during training, against a Hub on the loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import HubServer
from safetensors.torch import load, load_file

from hf_distill.hub import validate

ROOT = Path(__file__).resolve().parents[1]

TRAINING = """
import sys
from pathlib import Path
from small import accuracy, config, trainer

out, strategy = Path(sys.argv[1]), sys.argv[2]
during = strategy != "never"
args = config(
    out, num_train_epochs=1, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=1,
    save_strategy="steps", save_steps=1, push_to_hub=during, hub_model_id="tester/student",
    hub_strategy=strategy if during else "every_save", hub_always_push=True,
)
ours = trainer(out, args=args, compute_metrics=accuracy)
ours.train()
if not during:
    ours.push_to_hub(commit_message="The student", private=True, dataset="some reviews")
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["never", "every_save"])
def test_the_plain_student_and_its_card_go_up(tmp_path: Path, strategy: str) -> None:
    """transformers' own push adds training_args.bin (a pickle), event files and a stock card."""
    out = tmp_path / "out"
    with HubServer() as hub:
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFO"))}
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        done = subprocess.run(
            [sys.executable, "-c", TRAINING, str(out), strategy],
            cwd=tmp_path,
            env=variables | hub.environment(tmp_path / "home") | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        files = hub.files("tester/student")
        private = hub.repos["tester/student"].private
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    kept = load_file(out / "model.safetensors")
    for name, tensor in load(files["model.safetensors"]).items():
        assert torch.equal(tensor, kept[name]), name
    card = files["README.md"].decode()
    validate(card)
    assert "accuracy" in card
    assert "ForwardKL" in card
    assert private == (strategy == "never")
    assert ("some reviews" in card) == (strategy == "never")
