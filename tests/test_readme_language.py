"""The README's snippets about language models, typed in order by a newcomer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import language_zoo
import pytest
from crossing_zoo import family, model
from datasets import Dataset

README = Path(__file__).parent.parent / "README.md"
CHATS = [
    {"messages": language_zoo.CHAT},
    {"messages": language_zoo.CHAT[:3]},
    {"messages": language_zoo.CHAT[1:]},
] * 4


def snippets() -> list[str]:
    text = README.read_text(encoding="utf-8")
    section = text[text.index("\n## Language models\n") :]
    section = section[: section.index("\n## Robustness\n")]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@pytest.mark.slow
def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snippet with a name or an argument that is no more is the first thing that users meet."""
    monkeypatch.chdir(tmp_path)
    tokenizer = language_zoo.tokenizer()
    names: dict[str, Any] = {
        "dataset": Dataset.from_list(CHATS),
        "tokenizer": tokenizer,
        "student": model(len(tokenizer), 0),
        "teacher": model(len(tokenizer), 1, 24),
    }
    found = snippets()
    assert len(found) == 3
    names["other_tokenizer"] = family("byte_level")
    names["other"] = model(len(names["other_tokenizer"]), 2, 24)
    quick = {"max_steps": 1, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    written = ", ".join(f"{key}={value!r}" for key, value in quick.items())
    for snippet in found:
        code = re.sub(r'(Config\(\s*"out")', rf"\1, {written}", snippet)
        code = code.replace("max_completion_length=128", "max_completion_length=4")
        exec(compile(code, "README.md", "exec"), names)
    names["trainer"].train()
    assert names["trainer"]._lean
