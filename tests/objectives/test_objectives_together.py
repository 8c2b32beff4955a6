"""Hooks, switched attention, second derivatives, learned plans and shares on two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launch import launch
from tiny_trainers import Recorder, trainer

from hf_distill import (
    AttentionMaps,
    ForwardKL,
    HardLabels,
    HiddenStates,
    Jacobian,
    LearnedTemperature,
    LossShare,
    MiniLMv2,
    TinyBERT,
)

EVERYTHING = (
    HardLabels()
    + ForwardKL(LearnedTemperature(1.0, 5.0))
    + HiddenStates("emd")
    + HiddenStates("bert.encoder.layer.3:bert.encoder.layer.1")
    + AttentionMaps(distance="kl")
    + MiniLMv2()
    + TinyBERT(prediction=0.0)
    + Jacobian("teacher", saliency=True)
    + LossShare(0.2) * HiddenStates("last", "cosine")
)


def figures(folder: str, batch: str, accumulation: str) -> None:
    """Three steps of eight examples, and an evaluation of seven, written down."""
    record = Recorder()
    ours = trainer(
        Path(folder),
        objective=EVERYTHING,
        callbacks=[record],
        per_device_train_batch_size=int(batch),
        gradient_accumulation_steps=int(accumulation),
        per_device_eval_batch_size=int(batch),
        max_steps=3,
        learning_rate=1e-3,
        max_grad_norm=1e9,
        train_sampling_strategy="sequential",
        log_gradient_norms=False,
    )
    ours.train()
    logs = [*record.steps, ours.evaluate()]
    kept = [
        {k: v for k, v in log.items() if not k.endswith(("runtime", "second", "epoch", "_time"))}
        for log in logs
    ]
    if ours.is_world_process_zero():
        (Path(folder) / "figures.json").write_text(json.dumps(kept))


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    """What runs inside DDP's forward, or keeps a state per process, would differ by rank: weights
    drift apart silently, or the reducer waits for a gradient that never comes."""
    found = []
    for name, batch, accumulation, processes in (
        ("one", "8", "1", 1),
        ("two", "4", "1", 2),
        ("windows", "2", "2", 2),
    ):
        folder = tmp_path / name
        folder.mkdir()
        launch(figures, folder, batch, accumulation, processes=processes)
        found.append(json.loads((folder / "figures.json").read_text()))
    for other in found[1:]:
        for ours, expected in zip(other, found[0], strict=True):
            assert set(ours) == set(expected)
            for key, value in expected.items():
                assert ours[key] == pytest.approx(value, rel=2e-3, abs=1e-6), key
