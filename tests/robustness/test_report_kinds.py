"""Reports on sounds and pictures, and with the attacks of other libraries."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL.Image import fromarray
from report_models import listener, pictures, sounds, viewer

from hf_distill.cli import main
from hf_distill.models.input_space import input_space
from hf_distill.robustness import (
    Examples,
    Predictor,
    RobustnessConfig,
    evaluate_robustness,
    perturb,
)
from hf_distill.robustness.attacks.gradient import Attack, attack_batch
from hf_distill.robustness.perturbations import CORE

pytestmark = pytest.mark.xdist_group("robustness")
LABELS = np.array([0, 1, 2, 0, 1, 2])
SOURCE = """
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

def pictures() -> DatasetDict:
    features = Features(image=Image(), label=ClassLabel(names=["LABEL_0", "LABEL_1", "LABEL_2"]))
    rows = {"image": FILES, "label": [0, 1, 2, 0, 1, 2]}
    return DatasetDict(test=Dataset.from_dict(rows, features=features))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of pictures and a file with data."""
    folder = tmp_path_factory.mktemp("kinds")
    for seed in range(2):
        subject: Any = viewer(seed)
        subject.model.save_pretrained(folder / f"m{seed}")
        subject.processor.save_pretrained(folder / f"m{seed}")
    files = [str(folder / f"{n}.png") for n, _ in enumerate(LABELS)]
    for file, array in zip(files, pictures(len(LABELS)), strict=True):
        fromarray(array).save(file)
    (folder / "data.py").write_text(f"FILES = {files!r}\n{SOURCE}")
    return folder


def test_sounds_are_perturbed_and_attacked() -> None:
    """Speech students would have no report; one that pads clips would attack the padding."""
    values = sounds()
    data = Examples(tuple(values), np.array([0, 1, 1, 0, 1]))
    plan = RobustnessConfig(severities=(1, 5), epsilon=0.3, steps=3, gate_examples=3, batch_size=2)
    models = {"student": listener(0), "baseline": listener(1)}
    facts = evaluate_robustness(models, data, plan=plan).facts
    for role, subject in models.items():
        found = facts["models"][role]
        assert set(found["severities"]) == set(CORE["audio"])
        for name, severities in found["severities"].items():
            for severity, measured in zip(plan.severities, severities, strict=True):
                said = subject.logits(perturb(values, name, severity, plan.seed)).argmax(-1)
                assert measured == pytest.approx((said == data.labels).mean()), name
        kept = np.zeros(len(values), bool)
        space = input_space(subject.task_model, subject.processor)
        for rows, batch, labels in subject.batches(values, data.labels, 1):
            attack = Attack("pgd", 0.3, "linf", 3)
            keys = [data.keys[row] for row in rows]
            held = attack_batch(subject.model, batch, labels, attack, space, plan.seed, keys)
            kept[rows] = held.correct.numpy()
        assert found["figures"]["attack.pgd"] == pytest.approx(kept.mean())


def test_pictures_on_the_command_line(folder: Path) -> None:
    """Half of the students that people publish look at pictures."""
    words = ["robustness", "--model", str(folder / "m0"), "--baseline", str(folder / "m1")]
    words += ["--dataset", f"{folder / 'data.py'}:pictures", "--output", str(folder / "out")]
    words += ["--attacks", "pgd,square", "--steps", "2", "--queries", "5", "--epsilon", "0.1"]
    assert main([*words, "--perturbations", "brightness,contrast"]) == 0
    facts = json.loads((folder / "out/robustness.json").read_text())
    subject = Predictor.load(folder / "m0")
    said = subject.logits(pictures(len(LABELS))).argmax(-1)
    figures = facts["models"]["student"]["figures"]
    assert figures["accuracy"] == pytest.approx((said == LABELS).mean())
    assert max(figures["attack.pgd"], figures["attack.square"]) <= figures["accuracy"]
    shown = (folder / "out/robustness.md").read_text()
    assert "epsilon 0.1" in shown
    assert "norm linf" in shown
    assert (folder / "out/severity.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("library", "attack"),
    [("foolbox", "foolbox-LinfPGD"), ("pyautoattack", "autoattack")],
)
def test_attacks_of_other_libraries_in_a_report(library: str, attack: str) -> None:
    """Whoever installs the extra expects them where the others are: on the card."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own imports
        pytest.importorskip(library)
    subject, data = viewer(0), Examples(tuple(pictures(6)), LABELS)
    plan = RobustnessConfig(
        perturbations=("brightness",), severities=(1,), attacks=(attack,), epsilon=0.5, steps=5
    )
    facts = evaluate_robustness(subject, data, plan=plan).facts
    (model,) = facts["models"].values()
    assert model["figures"][f"attack.{attack}"] <= model["figures"]["accuracy"]
    assert model["figures"]["attacked"] == model["figures"][f"attack.{attack}"]
    assert facts["attacks"][attack]["epsilon"] == 0.5
