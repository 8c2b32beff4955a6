"""`validate`: what the Hub rejects after the upload, and what no card should say."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_distill.cli import main
from hf_distill.hub import StudentCard, render, validate
from tests.hub.test_card import FACTS

GOOD = render(StudentCard(**FACTS))
BAD: dict[str, tuple[str, str, str]] = {
    "no front matter": ("---\n", "", "expected front matter.*got NoneType"),
    "no YAML": ("---\nlanguage: 'no'", "---\n- language", "front matter is no YAML"),
    "null tag": ("- films", "- null", r"`tags\[6\]` is None"),
    "null value": ("license: apache-2.0", "license:", "`license` is None"),
    "number in a list": ("- films", "- 2024", "`tags` must hold strings, got 2024"),
    "unquoted no": ("language: 'no'", "language: no", "`language` must hold strings, got False"),
    "licence type": ("license: apache-2.0", "license: [mit]", "`license` must be a string"),
    "licence": (
        "apache-2.0",
        "Apache 2.0",
        "not know 'Apache 2.0'; did you mean 'apache-2.0'",
    ),
    "other licence": ("license: apache-2.0", "license: other", "needs `license_name`"),
    "pipeline tag": ("pipeline_tag: text-", "pipeline_tag: texts-", "did you mean 'text-class"),
    "relation": ("relation: finetune", "relation: distilled", "known: adapter, finetune"),
    "base gone": ("base_model: org/mini\n", "", "`base_model_relation` without `base_model`"),
    "no id": ("base_model: org/mini", "base_model: a/b/c", "'a/b/c' is no Hub id"),
    "local base": ("base_model: org/mini", "base_model: /home/me/mini", "path /home/me/mini"),
    "home path": ("epochs: 3", "out: ~/runs/x", "local path ~/runs/x"),
    "windows path": ("epochs: 3", "out: C:\\Users\\me", r"local path C:\\Users\\me"),
    "token": ("epochs: 3", "key: hf_" + "aB3x" * 9, "an access token: revoke it"),
    "empty target": ("Only film reviews.", "See [this]().", "a link without text or target"),
    "empty text": ("Only film", "[](https://a.org) film", "a link without text or target"),
    "link to nothing": ("film reviews.", "[x](https://huggingface.co/)", "a link without text"),
    "NaN cell": ("| 0.7500 |", "| nan |", r"a missing value \(None or NaN\)"),
    "None value": ("2 CPU cores", "None", "a missing value"),
    "NaN result": ("value: 0.8\n", "value: .nan\n", r"metrics\[0\].value` is nan"),
    "filler": ("Only film reviews.", "[More Information Needed]", "say it or leave the section"),
    "no metric type": ("- type: accuracy\n      value", "- value", "cannot be read back: KeyError"),
    "config type": ("config: en", "config: 3", "dataset.config must be a string, got 3"),
    "data set's type": ("type: org/films", "type: films and more", "dataset.type 'films and more'"),
    "name of letters": ("type: org/films", "type: filmé", "neither a data set's Hub id nor a word"),
    "rows alike": (
        "    - type: accuracy\n",
        "    - type: accuracy\n      value: 0.7\n    - type: accuracy\n",
        "holds 2 rows of 'accuracy' that nothing tells apart",
    ),
    "empty tag": ("- films", "- ''", "`tags` holds an empty string"),
    "empty licence": ("license: apache-2.0", "license: ''", "`license` is empty: leave it out"),
    "one tag": ("tags:\n", "tags: films\nothers:\n", "`tags` must be a list, got 'films'"),
    "language's name": ("language: 'no'", "language: english", "'english' is no ISO 639 code"),
    "language's script": ("language: 'no'", "language: zh-Hans", "goes into `language_bcp47`"),
    "no date": ("language: 'no'", "created: 2024-13-01", "front matter is no YAML: month must"),
    "link to None": ("Only film", "[x](None) film", "a link without text or target"),
    "infinite": ("| 0.7500 |", "| inf |", r"a missing value \(None or NaN\)"),
    "password": ("epochs: 3", "DB_PASSWORD=hunter2hunter2", "a secret, DB_PASSWORD: revoke it"),
    "login": ("epochs: 3", "https://me:hunter2@a.org/b", "a URL with a password"),
    "two models": (
        "model-index:\n",
        "model-index:\n- name: x\n  results: []\n",
        "`model-index` does not round-trip",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_validate_refuses(case: str) -> None:
    """Each of these the Hub rejects after the upload, or publishes for everyone to see."""
    old, new, words = BAD[case]
    assert GOOD.count(old) >= 1, "the case no longer changes the card"
    with pytest.raises(ValueError, match=words):
        validate(GOOD.replace(old, new, 1))


def test_validate_refuses_front_matter_that_is_no_mapping() -> None:
    """`- a` is valid YAML: reading a key of it would raise AttributeError."""
    with pytest.raises(ValueError, match=r"a YAML mapping.*got list"):
        validate("---\n- a\n---\n# Title\n")


def test_validate_lists_every_problem_with_its_line() -> None:
    """One problem a run would take as many failed pushes as there are problems."""
    text = GOOD.replace("apache-2.0", "apache").replace("Only film reviews.", "[x]() /home/me/x")
    with pytest.raises(ValueError) as caught:
        validate(text)
    line = text[: text.index("[x]()")].count("\n") + 1
    assert str(caught.value).count("\n- ") == 3
    assert f"line {line}: the local path /home/me/x" in str(caught.value)


def test_validate_lets_ordinary_prose_pass() -> None:
    """A check that cries wolf gets switched off."""
    prose = (
        "None of the classes and/or splits. See https://a.org/home/me/x and [a](../b). `x=None`\n\n"
        "- [ ] todo (1/2/3), T²/N, hf_distill\n\n```python\nlimit = None\n```\n"
    )
    validate(GOOD + prose)


def test_the_command_tells_one_problem_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A workflow that checks a card before it publishes goes by the exit code."""
    card = tmp_path / "README.md"
    card.write_text(GOOD.replace("plots/", "pictures/"))
    assert main(["card", "check", str(card)]) == 2
    told = capsys.readouterr().out.splitlines()
    assert told == ["shows pictures/curves.png, which is not there"]
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/curves.png").write_bytes(b"picture")
    assert main(["card", "check", str(card)]) == 0
    assert "no problems" in capsys.readouterr().out
    card.write_text(GOOD.replace("apache-2.0", "apache").replace("Only film", "[x]() film"))
    assert main(["card", "check", str(card)]) == 2
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in told[:1]] == ["`license`"]
    assert len(told) == 3
    assert main(["card", "check", str(tmp_path)]) == 2
    assert "missing: config.json, model.safetensors" in capsys.readouterr().out
    assert main(["card", "check", str(tmp_path / "nowhere")]) == 2
    assert "which does not exist" in capsys.readouterr().err
