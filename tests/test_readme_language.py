"""The README's snippets about language models, typed in order by a newcomer."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import language_models
import pytest
import torch
from datasets import Dataset
from tokenizer_families import family, model

README = Path(__file__).parent.parent / "README.md"
CHATS = [
    {"messages": language_models.CHAT},
    {"messages": language_models.CHAT[:3]},
    {"messages": language_models.CHAT[1:]},
] * 4


def snippets() -> list[str]:
    text = README.read_text(encoding="utf-8")
    section = text[text.index("\n## Language models\n") :]
    section = section[: section.index("\n## Robustness\n")]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


class SamplingParams:
    """Stands in for vLLM's, which needs a GPU to be installed."""

    def __init__(self, *, temperature: float, max_tokens: int, seed: int):
        assert 0 <= seed < 2**63
        self.max_tokens, self.seed = max_tokens, seed


class LLM:
    """Stands in for vLLM's: of its interface what TRL 1.16 calls too, under the same names."""

    made: ClassVar[list[Any]] = []

    def __init__(
        self, model: str, *, distributed_executor_backend: str, gpu_memory_utilization: float
    ):
        assert distributed_executor_backend == "external_launcher"  # its model is in this process
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
        assert self.weights, "it writes before it has the student's weights"
        assert len({settings.seed for settings in sampling_params}) == len(prompts)
        assert all(prompt["prompt_token_ids"] for prompt in prompts)
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=(5, 6))]) for _ in prompts]


@pytest.mark.slow
def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snippet with a name or an argument that is no more is the first thing that users meet."""
    monkeypatch.chdir(tmp_path)
    vllm = SimpleNamespace(LLM=LLM, SamplingParams=SamplingParams)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    tokenizer = language_models.tokenizer()
    names: dict[str, Any] = {
        "dataset": Dataset.from_list(CHATS),
        "tokenizer": tokenizer,
        "student": model(len(tokenizer), 0),
        "teacher": model(len(tokenizer), 1, 24),
    }
    found = snippets()
    assert len(found) == 4
    names["other_tokenizer"] = family("byte_level")
    names["other"] = model(len(names["other_tokenizer"]), 2, 24)
    quick = {"max_steps": 1, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    written = ", ".join(f"{key}={value!r}" for key, value in quick.items())
    for snippet in found:
        code = re.sub(r'(Config\(\s*"out")', rf"\1, {written}", snippet)
        code = code.replace("max_completion_length=128", "max_completion_length=4")
        exec(compile(code, "README.md", "exec"), names)
        if "import vllm" in code:  # after the last step it has the student's weights
            told, own = LLM.made[-1].weights, dict(names["student"].named_parameters())
            assert told.keys() == own.keys()
            assert all(torch.equal(told[name], own[name]) for name in own)
            assert LLM.made[-1].resets == 2
    names["trainer"].train()
    assert names["trainer"].step.lazy_logits
