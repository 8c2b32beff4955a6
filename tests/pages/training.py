"""Stand-ins for the blocks of the pages about training."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch


class SamplingParams:
    """vLLM's class of this name, as far as the page calls it."""

    def __init__(self, *, temperature: float, max_tokens: int, seed: int):
        assert 0 <= seed < 2**63
        self.max_tokens, self.seed = max_tokens, seed


class LLM:
    """vLLM's class of this name: the part of its interface that TRL 1.16 calls too."""

    made: ClassVar[list[LLM]] = []

    def __init__(
        self, model: str, *, distributed_executor_backend: str, gpu_memory_utilization: float
    ):
        assert distributed_executor_backend == "external_launcher"  # the model is in this process
        self.weights: dict[str, torch.Tensor] = {}
        self.resets = 0
        inner = SimpleNamespace(load_weights=self._load)
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=inner))
        executor = SimpleNamespace(driver_worker=worker)
        self.llm_engine = SimpleNamespace(model_executor=executor)
        self.made.append(self)

    def _load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.weights = {name: weight.clone() for name, weight in weights}

    def reset_prefix_cache(self) -> None:
        self.resets += 1

    def generate(
        self, prompts: list[dict[str, list[int]]], sampling_params: list[Any], *, use_tqdm: bool
    ) -> list[Any]:
        assert self.weights, "texts are generated before the student's weights are loaded"
        assert len({settings.seed for settings in sampling_params}) == len(prompts)
        assert all(prompt["prompt_token_ids"] for prompt in prompts)
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=(5, 6))]) for _ in prompts]


def vllm(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A module ``vllm`` without the GPU that its installation needs."""
    module = SimpleNamespace(LLM=LLM, SamplingParams=SamplingParams)
    monkeypatch.setitem(sys.modules, "vllm", module)
    return {}


def check_vllm(names: dict[str, Any]) -> None:
    """After the last step the engine has the student's weights, under their names."""
    loaded, student = LLM.made[-1].weights, dict(names["student"].named_parameters())
    assert loaded.keys() == student.keys()
    assert all(torch.equal(loaded[name], student[name]) for name in student)
    assert LLM.made[-1].resets > 1
