"""A published folder needs nothing of this package: plain transformers loads it, bit for bit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, TaskType
from tiny_models import CASES, collate
from tiny_recipes import recipe
from tiny_trainers import data, models, same, trainer, weights
from transformers import TrainerCallback

from hf_distill import ForwardKL, HardLabels, HiddenStates
from hf_distill.hub import StudentCard, render
from hf_distill.recipe.loading import load_recipe
from hf_distill.recipe.runner import Run

HEADS = ["sequence_classification", "causal_lm", "seq2seq_lm", "image_classification"]

STRANGER = """
import sys
sys.modules["hf_distill"] = None  # any import of it now raises
try:
    import hf_distill
    raise SystemExit("hf_distill could be imported")
except ImportError:
    pass
from pathlib import Path
import numpy, torch, transformers

torch.set_num_threads(1)
for folder in sorted(Path(sys.argv[1]).iterdir()):
    facts = dict(numpy.load(folder / "expected.npz"))
    wanted, name = facts.pop("logits"), str(facts.pop("class"))
    if (folder / "adapter_config.json").exists():
        from peft import AutoPeftModelForSequenceClassification
        model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    else:
        cls = getattr(transformers, name)
        model, info = cls.from_pretrained(folder, output_loading_info=True)
        for problem, keys in info.items():
            assert not keys, (folder.name, problem, keys)
    inputs = {key: torch.from_numpy(value) for key, value in facts.items()}
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    assert logits.numpy().tobytes() == wanted.tobytes(), folder.name
    print("same:", folder.name)
ours = [name for name in sys.modules if name.split(".")[0] == "hf_distill"]
loaded = [name for name in ours if sys.modules[name]]
assert not loaded, loaded
"""


def _expect(ours: Any, folder: Path, head: str) -> None:
    """Write beside the student what it says about the data."""
    case = CASES[head]
    batch = collate(data(head))
    inputs = {key: value for key, value in batch.items() if key not in case.label_keys}
    if head == "seq2seq_lm":
        inputs["decoder_input_ids"] = batch["labels"].clamp(min=0)
    with torch.no_grad():
        logits = ours.model.eval()(**inputs).logits.numpy()
    facts: Any = {key: value.numpy() for key, value in inputs.items()}
    facts.update({"logits": logits, "class": np.array(type(models(head)[0]).__name__)})
    np.savez(folder / "expected.npz", **facts)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_published_folder_loads_without_this_package(tmp_path: Path) -> None:
    """Leftover projections, a wrapper's prefix or a class of ours would show only elsewhere."""
    shelf = tmp_path / "shelf"
    for head in HEADS:
        ours = trainer(
            tmp_path / head,
            head,
            objective=0.5 * HardLabels() + 0.5 * ForwardKL() + HiddenStates(),
            save_strategy="steps",
            save_steps=2,
        )
        ours.train()
        ours.save_model(str(shelf / head))
        checkpoint = shelf / f"{head}, checkpoint"
        (tmp_path / head / "checkpoint-2").rename(checkpoint)
        for folder in (shelf / head, checkpoint):
            _expect(ours, folder, head)
    student, _ = models()
    student.save_pretrained(tmp_path / "base")
    student = type(student).from_pretrained(tmp_path / "base")
    ours = trainer(
        tmp_path / "lora",
        model=student,
        peft_config=LoraConfig(task_type=TaskType.SEQ_CLS, r=4),
        objective=1.0 * ForwardKL() + HiddenStates(),
    )
    ours.train()
    ours.save_model(str(shelf / "adapter"))
    _expect(ours, shelf / "adapter", "sequence_classification")

    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    stranger = subprocess.run(
        [sys.executable, "-c", STRANGER, str(shelf)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert stranger.returncode == 0, stranger.stderr[-3000:]
    assert stranger.stdout.count("same:") == 2 * len(HEADS) + 1


class SaveInTheMiddle(TrainerCallback):
    """What many scripts do at the end of an epoch."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        model.save_pretrained(self.folder)


def test_a_student_saved_by_a_callback_is_plain(tmp_path: Path) -> None:
    """While it trains the projections hang on it, and save_pretrained would write them down."""
    saving = SaveInTheMiddle(tmp_path / "saved")
    ours = trainer(tmp_path, objective=1.0 * HiddenStates(), callbacks=[saving])
    ours.train()
    back, info = type(ours.model).from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info.values())
    assert same(weights(back), weights(ours.model))
    assert ours.model._keys_to_ignore_on_save == set()


def test_the_card_of_a_recipe_tells_this_very_run(tmp_path: Path) -> None:
    """A command without its overrides makes another student; figures that change whenever the card
    is written again make nobody believe in them."""
    path = recipe(tmp_path)
    overrides = [("training.max_steps", "3"), ("seeds", "[0, 1]")]
    final = Run(load_recipe(path, overrides), lambda line: None)()
    text = (final / "README.md").read_text(encoding="utf-8")
    assert "\\\n  --training.max_steps 3 \\\n  --seeds '[0, 1]'\n```" in text
    size = (final / "model.safetensors").stat().st_size
    rows = {line.split(" | ")[0]: line.split(" | ") for line in text.splitlines()}
    assert rows["| Size on disk"][1] == rows["| Size on disk"][2] == f"{size / 1000:.3g} kB"
    latency = [re.findall(r"[\d.]+", cell) for cell in rows["| Latency, ms per batch"][1:]]
    assert len(latency) == 3
    for median, low, high in latency:
        assert 0 < float(low) <= float(median) <= float(high)
    assert "10th and 90th percentile of 20 runs" in text
    assert "Student's t over 2 pairs of seeds" in text
    assert "no p: with exact sign-flip over 2 pairs of seeds the least is 0.5" in text
    assert "| optimizer steps | 3 |" in text
    assert "| loss | " in text.split("| Loss component |")[1]
    facts = json.loads((final.parent / "card.json").read_text(encoding="utf-8"))
    assert render(StudentCard(**facts)) == text
    assert Run(load_recipe(path, overrides), lambda line: None)() == final  # all of it is done
    assert (final / "README.md").read_text(encoding="utf-8") == text
