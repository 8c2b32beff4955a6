"""A checkpoint's states without pickles: what comes back is what was there, to the bit."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_trainers import same, trainer, weights

from hf_distill import ForwardKL, HiddenStates
from hf_distill.training.safe_state import STRUCTURE, TENSORS, pack_states, unpack_states

PICKLES = ("optimizer.pt", "rng_state.pth", "scheduler.pt")


def equal(one: Any, other: Any) -> bool:
    """Equality of nested states: types and every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and bool((one == other).all())
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def test_a_run_goes_on_from_states_without_pickles(tmp_path: Path) -> None:
    """An optimizer that begins anew, or another order of the data, ends with other weights."""
    options: dict[str, Any] = {
        "objective": 1.0 * ForwardKL() + HiddenStates(),
        **{"max_steps": 4, "save_strategy": "steps", "save_steps": 2},
        "lr_scheduler_type": "cosine",
    }
    straight = trainer(tmp_path / "one", **options)
    straight.train()
    folder = tmp_path / "one/checkpoint-2"
    before = {name: torch.load(folder / name, weights_only=False) for name in PICKLES}
    assert sorted(pack_states(folder)) == list(PICKLES)
    for name in PICKLES:
        (folder / name).unlink()
    again = trainer(tmp_path / "two", **options)
    again.train(resume_from_checkpoint=str(folder))
    assert same(weights(straight.model), weights(again.model))
    after = {name: torch.load(folder / name, weights_only=False) for name in PICKLES}
    assert equal(before, after)


def test_what_only_a_pickle_can_hold_is_named(tmp_path: Path) -> None:
    """A state that was left out in silence would be missed when the run is taken up."""
    kept = {1: (torch.ones(2, dtype=torch.bfloat16), [None, True, 0.1])}
    torch.save(kept, tmp_path / "scaler.pt")
    torch.save({"k": {"a", "set"}}, tmp_path / "optimizer.pt")
    torch.save({"k": Path("an object")}, tmp_path / "scheduler.pt")
    assert pack_states(tmp_path) == ["scaler.pt"]
    assert list(json.loads((tmp_path / STRUCTURE).read_text())) == ["scaler.pt"]
    assert list(load_file(tmp_path / TENSORS)) == ["scaler.pt/1/0"]


def test_random_states_keep_their_types(tmp_path: Path) -> None:
    """Python and numpy refuse a state of which a tuple has become a list."""
    state = {
        **{"python": random.getstate(), "numpy": np.random.get_state()},
        "cpu": torch.random.get_rng_state(),
    }
    torch.save(state, tmp_path / "rng_state_1.pth")
    pack_states(tmp_path)
    (tmp_path / "rng_state_1.pth").unlink()
    unpack_states(tmp_path)
    assert equal(torch.load(tmp_path / "rng_state_1.pth", weights_only=False), state)


def test_states_of_a_stranger_stay_in_their_folder(tmp_path: Path) -> None:
    """A checkpoint from the Hub could write anywhere, by the names in its JSON."""
    torch.save({}, tmp_path / "scaler.pt")
    pack_states(tmp_path)
    (tmp_path / STRUCTURE).write_text('{"../scaler.pt": {"dict": []}}')
    with pytest.raises(ValueError, match=r"the names of files, got '../scaler.pt'"):
        unpack_states(tmp_path)
