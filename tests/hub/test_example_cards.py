"""The example cards: valid, as today's templates write them, and every snippet in them runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hf_distill.hub import StudentCard, render, validate
from tests.hub.test_quick_start import tokenizer_of

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {path.parent.name: path.parent for path in ROOT.glob("model_cards/examples/*/card.json")}
AUTO = {"text": "SequenceClassification", "vision": "ImageClassification"}
AUTO |= {"audio": "AudioClassification", "language_model": "CausalLM"}


def _card(name: str) -> str:
    return (EXAMPLES[name] / "README.md").read_text(encoding="utf-8")


def _snippets(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", _card(name), re.DOTALL | re.MULTILINE)


def test_there_is_one_of_each_kind() -> None:
    """A modality whose template nobody looks at breaks first."""
    assert EXAMPLES.keys() == AUTO.keys()


@pytest.mark.parametrize("name", AUTO)
def test_the_card_is_valid_and_whole(name: str) -> None:
    """An example that could not be pushed, or shows a broken picture, is a bad advertisement."""
    text = _card(name)
    validate(text)
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert pictures
    for picture in pictures:
        assert (EXAMPLES[name] / picture).is_file(), picture


@pytest.mark.parametrize("name", AUTO)
def test_the_card_is_what_the_templates_write_today(name: str) -> None:
    """Whoever changes a template would not see what becomes of a whole card.

    `python tests/benchmarks/cards.py --render` renders them again: look at the difference.
    """
    facts = json.loads((EXAMPLES[name] / "card.json").read_text(encoding="utf-8"))
    assert render(StudentCard(**facts)) == _card(name)


def test_the_comparison_shows_what_the_cards_hold() -> None:
    """A table of our own virtues that nobody checks is an advertisement."""
    table = (ROOT / "model_cards" / "COMPARISON.md").read_text(encoding="utf-8").splitlines()
    cards = "\n".join(_card(name) for name in EXAMPLES)
    rows = [line.split(" | ")[-1] for line in table if line.startswith("| ")]
    claimed = [word for row in rows for word in re.findall(r"`([^`]+)`", row)]
    assert len(claimed) > 40
    missing = [word for word in claimed if word not in cards]
    assert missing == ["hf-distill card check"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what the pipelines of transformers warn about
@pytest.mark.parametrize("name", AUTO)
def test_the_quick_start_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The first lines anybody copies. A model of the student's very config with random weights
    stands in for it; where the student reads text, a tokenizer of a few words for its own."""
    config = transformers.AutoConfig.from_pretrained(EXAMPLES[name])
    torch.manual_seed(0)
    auto: Any = getattr(transformers, f"AutoModelFor{AUTO[name]}")
    (first,) = (text for text in _snippets(name, "python") if "model_id" in text)
    folder = tmp_path / re.search(r'model_id = "([^"]+)"', first)[1]
    auto.from_config(config).save_pretrained(folder)
    if name in ("text", "language_model"):
        tokenizer_of(folder)
    else:
        (folder / "preprocessor_config.json").write_bytes(
            (EXAMPLES[name] / "preprocessor_config.json").read_bytes()
        )
    if name == "vision":
        from PIL import Image

        Image.new("RGB", (40, 30)).save(tmp_path / "image.png")
    if name == "audio":
        with wave.open(str(tmp_path / "speech.wav"), "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", ""))
            sound.writeframes(b"\0\1" * 4000)
    monkeypatch.chdir(tmp_path)
    exec(first, {})


@pytest.mark.parametrize("name", AUTO)
def test_the_formula_in_python_is_an_objective(name: str) -> None:
    """Who pastes it into a script gets a NameError."""
    (formula,) = (text for text in _snippets(name, "python") if "model_id" not in text)
    import hf_distill

    objective = eval(
        formula, vars(hf_distill) | {n: getattr(hf_distill, n) for n in hf_distill.__all__}
    )
    assert str(objective) == formula.strip()


@pytest.mark.slow
@pytest.mark.parametrize("name", AUTO)
def test_the_command_runs(tmp_path: Path, name: str) -> None:
    """The line under Reproduce: run to its end, with two steps of training instead of all."""
    (command,) = _snippets(name, "bash")
    words = shlex.split(command.replace("\\\n", " "))
    short = ["--training.max_steps", "2", "--data.max_train_examples", "80", "--seeds", "[0]"]
    short += ["--robustness", "null", "--output_dir", str(tmp_path)]
    if words[0] == "python":
        words[0], short = sys.executable, ["--smoke", "--folder", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*words, *short], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(tmp_path.glob("**/final/README.md"))
