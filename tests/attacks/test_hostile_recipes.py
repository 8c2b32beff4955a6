"""Hostile recipes: exit code 2 and one sentence, within seconds; no code but what is named runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile
import pytest
import yaml
from hostile import told, write
from tally import Tally
from tiny_recipes import bert, recipe

HOSTILE_SOURCES = """
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value


def key():
    return {}["nothing"]


def name():
    return nothing


def leaves():
    raise SystemExit(0)


def exits():
    import sys
    sys.exit("bye")


def asserts():
    assert False


def recurses():
    return recurses()


def gives_none():
    return None


def needs(what):
    return what


def annotated(rows: "Nothing" = 3):
    return rows


def odd() -> DatasetDict:
    part = Dataset.from_dict({"text": [1, 2], "label": [0.5, 0.7]})
    return DatasetDict(train=part, validation=part, test=part)


def untold() -> DatasetDict:
    features = Features(text=Value("string"), label=ClassLabel(names=["a", "b"]))
    part = Dataset.from_dict({"text": [None, "x"], "label": [0, 1]}, features=features)
    return DatasetDict(train=part, validation=part, test=part)
"""
BROKEN_FILES = {
    "name_error.py": "nothing",
    "leaves.py": "raise SystemExit(0)",
    "key_error.py": "{}['x']",
    "syntax.py": "def (",
    "nul.py": "x = '\0'",
    "imports.py": "import nothing_like_this",
    "zero.py": "1 / 0",
}
DEEP = 100_000
NAMED: list[tuple[str, str, str]] = [
    # what the report lists: a key, a value in YAML, and what the message says of it
    *[("seed", "9" * digits, "seed") for digits in (30, 5_000)],
    *[("data.arguments.x", "[" * depth + "]" * depth, "levels") for depth in (3_000, DEEP)],
    ("seeds", f"[{', '.join(map(str, range(100_000)))}]", "values"),
    ("seeds", f"[{', '.join(map(str, range(5_000)))}]", "trainings"),
    ("generations", "1000000000", "trainings"),
    ("seed", "-1", "seed"),
    ("seed", "4294967296", "seed"),
    ("teacher.config.hidden_size", "0", "teacher.config"),
    ("teacher.config.hidden_size", "x", "teacher.config"),
    ("teacher.config.hidden_size", "[1]", "teacher.config"),
    ("teacher.config.hidden_size", "-4", "teacher.config"),
    ("teacher.config.num_attention_heads", "0", "teacher.config"),
    ("teacher.config.num_hidden_layers", "1000000000", "layers"),
    ("teacher.config.vocab_size", "1000000000000", "teacher.config"),
    ("teacher.config.vocab_size", "3", "input_ids from 0 to 2"),
    ("teacher.config.hidden_act", "x", "teacher.config"),
    ("teacher.config.model_type", "[]", "teacher.config.model_type"),
    ("teacher.config.model_type", "{}", "teacher.config.model_type"),
    ("teacher.config.model_type", "3", "teacher.config.model_type"),
    ("teacher.config.1", "3", "unknown key"),
    ("training.accelerator_config", "x", "training arguments"),
    ("training.num_train_epochs", ".nan", "num_train_epochs"),
    ("training.num_train_epochs", ".inf", "train nothing|num_train_epochs"),
    ("training.logging_steps", ".nan", "logging_steps"),
    ("training.logging_steps", ".inf", "training arguments"),
    ("training.warmup_steps", ".nan", "warmup_steps"),
    ("training.log_level", "-1", "log_level"),
    ("training.log_level", "'-1'", "training arguments"),
    ("training.optim_args", "x", "training arguments"),
    ("training.lr_scheduler_kwargs", "{x: 1}", "training arguments"),
    ("training.learning_rate", "-1", "training arguments"),
    ("training.parallelism_config", "{}", "parallelism_config"),
    ("training.parallelism_config", "{tp_size: 2}", "parallelism_config"),
    ("training.per_device_train_batch_size", "1e308", "64 bits"),
    ("training.per_device_train_batch_size", "0", "batch"),
    ("training.gradient_accumulation_steps", "0", "accumulation"),
    ("training.early_stopping_patience", "-1", "at least 1"),
    ("objective", "[{name: mutual, temperature: 1e308}]", "temperature"),
    ("objective", "[{name: forward_kl, temperature: 1e-30}]", "temperature"),
    ("objective", "[{name: forward_kl, weight: 0}, {name: hard_labels, weight: 0}]", "above 0"),
    ("objective", "[{name: forward_kl, weight: {}}]", "schedule"),
    ("objective", "[{name: forward_kl, weight: {schedule: linear, start: .nan}}]", "number"),
    ("objective", "[{name: forward_kl, weight: {schedule: linear, over: .nan}}]", "number"),
    ("objective", "[{name: forward_kl, weight: {schedule: linear, start: true}}]", "number"),
    ("objective", "[{name: forward_kl, weight: {share: {}}}]", "share"),
    ("objective", "[{name: forward_kl, temperature: {}}]", "temperature"),
    ("objective", "[{name: forward_kl, temperature: {rule: cwsm, power: .nan}}]", "number"),
    ("objective", "[{name: forward_kl, temperature: []}]", "temperature"),
    ("objective", "[{name: forward_kl, t_squared: {}}]", "true or false"),
    (
        "objective",
        "[{name: forward_kl, t_squared: {schedule: linear, start: .nan, end: .nan}}]",
        "true or false",
    ),
    ("objective", "[{name: correlation_congruence, groups: []}]", "groups"),
    ("objective", "[{name: attention_transfer, groups: []}]", "groups"),
    ("objective", "[{name: hidden_states, layers: {}}]", "layers"),
    ("objective", "[{name: hidden_states, layers: []}]", "layer"),
    ("objective", "[{name: rkd, angle_weight: {}}]", "a number"),
    ("objective", "[{name: [forward_kl]}]", "name"),
    ("objective", "[{name: forward_kl, 1: 2}]", "unknown key"),
    ("output_dir", "hf://x/y", "a folder on this machine"),
    ("output_dir", "s3://x/y", "a folder on this machine"),
    ("output_dir", "file:///tmp/x", "a folder on this machine"),
    ("output_dir", '"a\\0b"', "NUL"),
    ("teacher.cache.path", "s3://x", "a folder on this machine"),
    ("teacher.cache.path", "hf://x/y", "a folder on this machine"),
    ("teacher.revision", "v2", "of the Hub"),
    ("student.revision", "v2", "of the Hub"),
    ("data.source", "'\\0.py:lines'", "data.source"),
    ("data.source", "x" * 5_000 + ".py:lines", "data.source"),
]
SOURCES = {
    "hostile.py:key": "KeyError",
    "hostile.py:name": "NameError",
    "hostile.py:leaves": "SystemExit",
    "hostile.py:exits": "SystemExit: bye",
    "hostile.py:asserts": "AssertionError",
    "hostile.py:recurses": "RecursionError|maximum recursion",
    "hostile.py:gives_none": "DatasetDict",
    "hostile.py:needs": "missing",
    "hostile.py:annotated": "NameError|DatasetDict",
    "hostile.py:odd": "expected texts in the column",
    "hostile.py:untold": "empty texts in 'text' in 1 of 2",
    "hostile.py:HOSTILE": "unknown key",
    "'hostile.py:'": "unknown key",
    **{f"{file}:lines": "cannot be imported" for file in BROKEN_FILES},
}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A tiny recipe in a folder that is the working directory, with hostile sources beside it."""
    monkeypatch.chdir(tmp_path)
    for name, text in {"hostile.py": HOSTILE_SOURCES, **BROKEN_FILES}.items():
        (tmp_path / name).write_text(text)
    yield recipe(tmp_path)
    assert not list(tmp_path.glob("*:*")), "an address became a folder"


def refused(words: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A command ends with 2 and a sentence that has one of these parts (`a|b`)."""
    code, said = told(words, capfd)
    assert code == 2, "accepted"
    assert any(part in said for part in message.split("|")), said


def test_values_that_cannot_be_meant(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A traceback in place of a sentence, an hour of training on something else, or no end."""
    with Tally("recipes: values that cannot be meant") as attacks:
        for key, value, message in NAMED:
            with attacks.attack(f"{key}: {value[:60]}"):
                refused(["train", str(path), "--dry-run", f"--{key}={value}"], message, capfd)


def test_sources_that_fail(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A source that exits with 0 ended the run as if it were done."""
    with Tally("recipes: sources that fail") as attacks:
        for source, message in SOURCES.items():
            override = f"--data.source={source}"
            for words in (["train", str(path), override], ["cache", str(path), override]):
                with attacks.attack(f"{words[0]} {source}"):
                    refused(words, message, capfd)
        for source in ("hostile.py:key", "hostile.py:leaves", "leaves.py:lines"):
            with attacks.attack(f"eval {source}"):
                refused(["eval", str(path.parent), "--dataset", source], "", capfd)
    assert not (path.parent / "out").exists()


@pytest.mark.parametrize("command", ["train", "cache"])
def test_every_command_refuses(path: Path, command: str, capfd: pytest.CaptureFixture[str]) -> None:
    """`--dry-run` alone would be told, and the run itself fail with a traceback."""
    some = [row for row in NAMED if row[0].startswith(("training", "teacher.config", "output"))]
    with Tally(f"recipes: {command} refuses") as attacks:
        for key, value, message in some[::4]:
            with attacks.attack(f"{key}: {value[:60]}"):
                refused([command, str(path), f"--{key}={value}"], message, capfd)
    assert not (path.parent / "out").exists()


def whole_files() -> dict[str, str | bytes]:
    """Recipes that are hostile as a whole."""
    good = yaml.safe_dump({"name": "tiny", "teacher": {"config": bert(1)}})
    tags = ("python/name:os.system", "python/object/apply:os.system ['touch ran']")
    more = ("python/object/new:os.system ['touch ran']", "python/module:antigravity", "binary '*'")
    return {
        **{tag: f"{good}seed: !!{tag}\n" for tag in (*tags, *more)},
        "verbatim": f"{good}seed: !<tag:yaml.org,2002:python/object/apply:os.system> ['touch ran']",
        "renamed tag": "%TAG !x! tag:yaml.org,2002:python/\n"
        f"---\n{good}seed: !x!name:os.system x\n",
        "empty": "",
        "null": "null",
        "list": "- 1",
        "text": "hello",
        "number": "9" * 5_000,
        "keys": "".join(f"k{n}: 1\n" for n in range(20_000)),
        "twice": good + good,
        "itself": "&a\nname: *a\n",
        "deep": "[" * DEEP,
        "large": f"name: {'x' * 2_000_000}\n",
        "long key": f"{'x' * 500_000}: 1\n",
        "control": "name: \x01\n",
        "latin-1": "name: é".encode("latin-1"),
        "utf-16": good.encode("utf-16"),
        "nul": b"\0" * 100,
        "random": bytes(range(256)),
        "crlf": good.replace("\n", "\r\n") + "seed: [\r\n",
        "colon": "a: b: c",
        "other": yaml.safe_dump({"name": "x", "task": "text_classification", "models": []}),
        "merges": "m0: &m0 {k: 1}\n"
        + "".join(f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}]}}\n" for n in range(1, 60)),
        "laughs": "a: &a [x, x]\n"
        + "".join(f"b{n}: &b{n} [*{'a' if n == 0 else f'b{n - 1}'}" + "]\n" for n in range(30))
        + "seed: *b29\n",
    }


def test_whole_files(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Code that a tag names would run; a bomb would fill the memory."""
    with Tally("recipes: whole files") as attacks:
        for name, text in whole_files().items():
            with attacks.attack(name):
                file = path.with_name("hostile.yaml")
                file.write_bytes(text if isinstance(text, bytes) else text.encode())
                refused(["train", str(file), "--dry-run"], "hostile.yaml", capfd)
        for name in (".", "nothing.yaml", "\0", "x" * 300, "/dev/null"):
            with attacks.attack(f"file {name!r:.20}"):
                refused(["train", name, "--dry-run"], "", capfd)
    assert not (path.parent / "ran").exists()


def test_any_value_of_any_key(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What nobody thought of: every outcome is a plan, or 2 and a sentence."""
    cases = hostile.overrides(hostile.keys(), 30, seed=0)
    cases += hostile.overrides(hostile.training_keys(), 20, seed=0) + hostile.objectives(20, seed=0)
    _try(cases, path, capfd, "recipes: any value of any key")


@pytest.mark.slow
def test_any_value_of_any_key_at_length(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The same, more of it."""
    cases = hostile.overrides(hostile.keys(), 70, seed=1)
    cases += hostile.overrides(hostile.training_keys(), 60, seed=1)
    cases += hostile.objectives(70, seed=1)
    _try(cases, path, capfd, "recipes: any value of any key, at length")


def _try(
    cases: list[tuple[str, str]], path: Path, capfd: pytest.CaptureFixture[str], area: str
) -> None:
    with Tally(area) as attacks:
        for key, value in cases:
            with attacks.attack(f"--{key}={value[:80]}"):
                told(["train", str(path), "--dry-run", f"--{key}={value}"], capfd)


def test_messages_are_short(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A value of a megabyte, repeated in the message, hides what is wrong."""
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    with Tally("recipes: messages are short") as attacks:
        for key in ("seed", "task", "objective", "training", "x" * 100_000):
            with attacks.attack(key[:20]):
                file = write(path.with_name("long.yaml"), {**values, key: "x" * 300_000})
                code, said = told(["train", str(file), "--dry-run"], capfd)
                assert code == 2
                assert len(said) < 3_000 + len(os.fspath(file)), len(said)
