"""`validate`: what the Hub rejects after the upload, and what no card should say."""

from __future__ import annotations

import pytest
from test_card import FACTS

from hf_distill.hub import StudentCard, render, validate

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
    assert f"line {line}: local path /home/me/x" in str(caught.value)


def test_validate_lets_ordinary_prose_pass() -> None:
    """A check that cries wolf gets switched off."""
    prose = (
        "None of the classes and/or splits. See https://a.org/home/me/x and [a](../b). `x=None`\n\n"
        "- [ ] todo (1/2/3), T²/N, hf_distill\n\n```python\nlimit = None\n```\n"
    )
    validate(GOOD + prose)
