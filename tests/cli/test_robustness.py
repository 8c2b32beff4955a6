"""``hf-distill robustness``: exit codes, what is printed, and what is refused at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from report_models import reader, saved, texts

from hf_distill.cli import main
from hf_distill.robustness import Examples

pytestmark = pytest.mark.xdist_group("robustness")
SOURCE = """
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value


def reviews() -> DatasetDict:
    label = ClassLabel(names=["negative", "positive"])
    features = Features(text=Value("string"), label=label, group=Value("string"))
    rows = {"text": TEXTS, "label": LABELS, "group": ["u", "v"] * (len(TEXTS) // 2)}
    test = Dataset.from_dict(rows, features=features)
    holes = Dataset.from_dict({**rows, "group": [None] * len(TEXTS)}, features=features)
    hidden = Dataset.from_dict({"text": TEXTS, "label": [-1] * len(TEXTS)})
    return DatasetDict(test=test, validation=test, holes=holes, hidden=hidden)
"""
QUICK = [
    *("--perturbations", "keyboard_typos", "--attacks", "characters", "--queries", "6"),
    *("--perturbed-examples", "8", "--attacked-examples", "4", "--invariance", "none"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models and a file with data."""
    folder = tmp_path_factory.mktemp("command")
    for seed in range(3):
        saved(folder / f"m{seed}", seed)
    examples = texts(20)
    head = f"TEXTS = {list(examples.values)!r}\nLABELS = {examples.labels.tolist()!r}\n"
    (folder / "data.py").write_text(head + SOURCE)
    return folder


def words(folder: Path, *more: str) -> list[str]:
    data = ["--dataset", f"{folder / 'data.py'}:reviews", "--output", str(folder / "out")]
    return ["robustness", "--model", str(folder / "m0"), *data, *QUICK, *more]


def test_report_of_two_models(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The figures of a folder must be those of the model in it, on the split that was named."""
    more = ["--baseline", str(folder / "m1"), "--teacher", str(folder / "m2")]
    more += ["--groups", "group", "--validation-split", "validation"]
    more += ["--shifted", f"again={folder / 'data.py'}:reviews"]
    assert main(words(folder, *more, "--require", "robustness.noise>=-1")) == 0
    shown = capsys.readouterr().out
    assert "| Clean accuracy |" in shown
    assert "checkpoint only" in shown
    assert "student: keyboard_typos" in shown
    facts = json.loads((folder / "out/robustness.json").read_text())
    examples = texts(20)
    for role, seed in (("student", 0), ("baseline", 1), ("teacher", 2)):
        right = reader(seed).logits(examples.values).argmax(-1) == examples.labels
        figures = facts["models"][role]["figures"]
        assert figures["accuracy"] == pytest.approx(right.mean())
        assert figures["shifted.again"] == figures["accuracy"]
    assert set(facts["models"]["student"]["groups"]) == {"u", "v"}
    assert "temperature" in facts["roles"]["student"]
    assert list(facts["attacks"]) == ["characters"]


def test_a_requirement_that_is_not_met_is_exit_code_3(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipeline would publish what its owner forbade."""
    more = ["--baseline", str(folder / "m1"), "--require", "robustness.noise>=2"]
    assert main(words(folder, *more)) == 3
    assert "hf-distill: required robustness.noise>=2, measured " in capsys.readouterr().err
    assert main(words(folder, "--require", "student.noise>=2")) == 3
    assert main(words(folder, "--require", "student.noise>=0")) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--perturbations", "keybord_typos"], "Did you mean 'keyboard_typos'?"),
        (["--attacks", "square"], "got 'square', which is for image"),
        (["--split", "tset"], "has no split 'tset', but"),
        (["--split", "hidden"], "cannot be measured without labels"),
        (["--split", "holes", "--groups", "group"], "Expected a group for each of the 20"),
        (["--groups", "grp"], "Expected a column with the groups, 'grp'"),
        (["--text-column", "sentence"], "'sentence'"),
        (["--require", "robustness.noise>=0"], "Expected --baseline for the requirement"),
        (["--require", "robustness.noize>=0"], "Did you mean 'noise'?"),
        (["--require", "noise"], "Expected a requirement such as"),
        (["--baseline", "a", "b"], "Expected as many models as --model (1)"),
        (["--shifted", "tweets"], "Expected --shifted NAME=ID"),
        (["--model", "nowhere"], "Expected a folder or Hub id of a transformers model"),
        (["--epsilon", "-1"], "Expected `epsilon` of at least 0"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    folder: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback hides the sentence that helps; an hour of computing before it is lost."""
    assert main(words(folder, *more)) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert "student:" not in shown.out, "nothing was computed"


def test_help_names_axes_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """What can be required is nowhere else to be seen on a command line."""
    with pytest.raises(SystemExit) as caught:
        main(["robustness", "--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for told in ("robustness.noise>=0", "worst_group", "3 a requirement", "pgd, square, noise"):
        assert told in shown


def test_a_limit_of_examples_takes_the_same_ones_for_all(folder: Path) -> None:
    """The first N of a sorted split would be of one class."""
    assert main(words(folder, "--examples", "7", "--attacks", "none")) == 0
    facts = json.loads((folder / "out/robustness.json").read_text())
    assert facts["examples"]["clean"] == 7
    examples = texts(20)
    chosen = examples.take(examples.sample(7))
    assert facts["examples"]["fingerprint"] == chosen.fingerprint
    assert isinstance(chosen, Examples)
    assert np.unique(chosen.labels).size == 2
