"""`create_model_card` and `push_to_hub`: no value of a card's field ends a finished training."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_trainers import config, trainer
from transformers import Trainer

from hf_distill import DistillationTrainer
from hf_distill.hub import StudentCard, card_problems, folder_problems, render, validate, write
from hf_distill.hub.check import LICENSES
from hf_distill.hub.mending import mended
from hf_distill.hub.values import languages, licence
from hf_distill.training import publishing
from tests.hub.test_card_fuzz import check, runs

NAME = "README.md"


@functools.cache
def made(name: str) -> Any:
    """A trainer of a head, made once: its folder is set for each card."""
    return trainer(Path("unused"), name)


def written(
    tmp_path: Path, name: str = "sequence_classification", **arguments: Any
) -> tuple[dict[str, Any], list[str]]:
    """The front matter of a card that a trainer wrote with these arguments, and its warnings."""
    ours = made(name)
    ours.args.output_dir = str(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours.create_model_card(**arguments)
    text = (tmp_path / NAME).read_text(encoding="utf-8")
    validate(text)
    told = [str(w.message) for w in caught if "model card" in str(w.message)]
    return yaml.safe_load(text.split("---\n")[1]), told


# ---- the arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value", "field", "expected"),
    [
        ("language", ["en_XX", "ro_RO"], "language", ["en", "ro"]),  # run_translation, mBART
        ("language", "pt-br", "language", "pt"),
        ("language", "zh-CN", "language", "zh"),
        ("language", "English", "language", "en"),
        ("language", "eng_Latn", "language", "eng"),
        ("language", "Klingon!", "language", None),
        ("language", 3, "language", None),
        ("language", {"en": 1}, "language", None),
        ("language", [None, "de_DE.UTF-8"], "language", ["de"]),
        ("license", "Apache-2.0", "license", "apache-2.0"),
        ("license", "MIT License", "license", "mit"),
        ("license", ["CC BY-SA 4.0"], "license", "cc-by-sa-4.0"),
        ("license", "our own terms", "license", "other"),
        ("license", "other", "license", None),
        ("license", 2.0, "license", None),
        ("tasks", "language-modeling", "pipeline_tag", "text-classification"),
        ("tasks", "contrastive-image-text-modeling", "pipeline_tag", "text-classification"),
        ("tasks", "masked-auto-encoding", "pipeline_tag", "text-classification"),
        ("tasks", ["masked-image-modeling"], "pipeline_tag", "text-classification"),
        ("tasks", "causal-lm", "pipeline_tag", "text-classification"),
        ("tasks", {"x"}, "pipeline_tag", "text-classification"),
        ("tasks", 7, "pipeline_tag", "text-classification"),
        ("tasks", ["no task", "Text Ranking"], "pipeline_tag", "text-ranking"),
        ("model_name", "", "model-index", None),
        ("finetuned_from", ["org/base", "org/other"], "base_model", "org/base"),
        ("finetuned_from", {"a": 1}, "base_model", None),
        ("dataset", {"a": 1}, "datasets", None),
        ("dataset", ["org/first", "org/second"], "datasets", ["org/first"]),
        ("dataset_tags", 0.5, "datasets", None),
    ],
)
def test_a_value_that_the_hub_does_not_know(
    tmp_path: Path, argument: str, value: Any, field: str, expected: Any
) -> None:
    """The last line of an official script: exit code 1 after days, no card, and nothing pushed."""
    front_matter, told = written(tmp_path, **{argument: value})
    assert front_matter.get(field) == expected
    if argument == "dataset_tags":  # a number is a name too
        assert told == []
    else:
        assert len(told) == 1
        assert f"`{argument}`: got " in told[0]
        assert repr(value) in told[0] or str(value) in told[0]
    if expected == "other":
        assert front_matter["license_name"] == value


@pytest.mark.parametrize(
    ("name", "task", "expected"),
    [
        ("causal_lm", "causal-lm", "text-generation"),
        ("causal_lm", "language-modeling", "text-generation"),
        ("dual_encoder", "contrastive-image-text-modeling", "zero-shot-image-classification"),
        ("masked_lm", "masked-language-modeling", "fill-mask"),
    ],
)
def test_an_unknown_task_is_the_trainers_own(
    tmp_path: Path, name: str, task: str, expected: str
) -> None:
    """Left out, the Hub shows no way to use the student; wrong, it shows one that fails."""
    front_matter, told = written(tmp_path, name, tasks=task)
    assert front_matter["pipeline_tag"] == expected
    assert f"'{expected}' written" in told[0]


def test_all_of_them_at_once_give_one_warning(tmp_path: Path) -> None:
    """Seven warnings between the lines of a log are none."""
    front_matter, told = written(
        tmp_path,
        language=["en_XX", "ro_RO"],
        license="Apache-2.0",
        tags=["mine", None, 3, ""],
        model_name="  ",
        finetuned_from=[None, "/home/me/base"],
        tasks="language-modeling",
        dataset=[],
        dataset_args={"a": 1},
    )
    (text,) = told
    named = ("language", "license", "tags", "model_name", "finetuned_from", "tasks", "dataset_args")
    assert all(f"`{name}`: got " in text for name in named)
    assert front_matter["tags"][-2:] == ["mine", "3"]
    assert "/home/me" not in (tmp_path / NAME).read_text(encoding="utf-8")


def test_what_the_hub_knows_is_written_without_a_word(tmp_path: Path) -> None:
    """A warning for good values teaches people to read none."""
    front_matter, told = written(
        tmp_path,
        language=["en", "de"],
        license="mit",
        tags="mine",
        model_name="A name",
        finetuned_from="org/base",
        tasks=["text-classification"],
        dataset_tags="org/films",
        dataset="Films",
        dataset_args="small",
    )
    assert told == []
    assert front_matter["language"] == ["en", "de"]
    assert (front_matter["license"], front_matter["base_model"]) == ("mit", "org/base")
    assert front_matter["datasets"] == ["org/films"]


def test_every_licence_of_the_hub_is_itself() -> None:
    """Two licences with the same words would be taken for each other."""
    assert {known: licence(known) for known in LICENSES} == {known: known for known in LICENSES}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Apache License, Version 2.0", "apache-2.0"),
        ("The MIT License (MIT)", "mit"),
        ("GNU General Public License v3.0", "gpl-3.0"),
        ("LGPLv2.1", "lgpl-2.1"),
        ("AGPL-3.0-or-later", "agpl-3.0"),
        ("3-clause BSD", "bsd-3-clause"),
        ("CC0", "cc0-1.0"),
        ("Creative Commons Attribution-ShareAlike 4.0 International", "cc-by-sa-4.0"),
        ("Llama 3.1 Community License Agreement", "llama3.1"),
        ("GPL", "gpl"),
        ("CC BY", None),
        ("cc-by-sa", None),  # of which version?
        ("ours", None),
        ("", None),
    ],
)
def test_licences_as_people_write_them(text: str, expected: str | None) -> None:
    """A licence read as another one is a false statement about rights."""
    assert licence(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("EN", ["en"]),
        ("sr@latin", ["sr"]),
        ("zh-Hans, Brazilian Portuguese", ["zh", "pt"]),
        ("Norwegian Nynorsk", ["nn", "no"]),
        ("iw", ["he"]),  # withdrawn in 1989
        ("Twi", ["tw"]),
        ("multilingual", ["multilingual"]),
        ("jp", []),
        ("Python", []),
        ("the web", []),
        ("", []),
    ],
)
def test_languages_as_people_write_them(text: str, expected: list[str]) -> None:
    """A guess that is wrong files the model under a language it does not know."""
    assert languages(text) == expected


# ---- what the run knows --------------------------------------------------------------------------


METRICS = {
    "list": [0.1, 0.2],
    "dict": {"a": 1.0},
    "nan": float("nan"),
    "infinite": float("inf"),
    "none": None,
    "text": "0.5",
    "single": np.float32(0.5),
    "tensor": torch.tensor(0.25),
    "accuracy": 85.0,  # percent
}


def test_figures_that_are_no_numbers(tmp_path: Path) -> None:
    """Whatever `compute_metrics` gives, training ends with a card, and numbers stay numbers."""
    ours = trainer(tmp_path)
    row = {f"eval_{name}": value for name, value in METRICS.items()} | {"eval_loss": 1.0, "step": 2}
    ours.state.log_history.append(row)
    with pytest.warns(UserWarning, match="`results.student.nan`: got ") as caught:
        ours.create_model_card(dataset="films")
    text = (tmp_path / NAME).read_text(encoding="utf-8")
    validate(text)
    (told,) = (str(w.message) for w in caught)
    assert "`results.student.infinite`: got inf: no number, left out" in told
    for name in ("list", "dict", "none", "text"):  # what no table holds goes without a word
        assert name not in told
    metrics = yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"][0]["metrics"]
    assert {m["type"]: m["value"] for m in metrics} == {
        "single": 0.5,
        "tensor": 0.25,
        "accuracy": 85.0,
    }


@pytest.mark.parametrize("accuracy", [85.0, float("nan"), [0.5], None, "0.5", -0.1])
def test_an_accuracy_that_is_no_share(tmp_path: Path, accuracy: Any) -> None:
    """Wilson's interval of 85 % of 100, given as 85.0, is an error of 8,500 successes."""
    ours = trainer(tmp_path)
    ours.eval_dataset = ours.train_dataset
    ours.state.log_history.append({"eval_accuracy": accuracy, "eval_loss": 1.0, "step": 2})
    assert ours.student_card().claim == {}


def test_facts_that_cannot_be_gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A custom teacher whose `describe` fails would lose the push of its student."""
    ours = trainer(tmp_path)

    def fails() -> Any:
        raise KeyError("name")

    monkeypatch.setattr(ours.teacher, "describe", fails)
    with pytest.warns(UserWarning, match="facts of the run: left out.*KeyError: 'name'"):
        ours.create_model_card(language="en")
    text = (tmp_path / NAME).read_text(encoding="utf-8")
    validate(text)
    assert "language: en" in text


def test_one_bad_fact_leaves_the_others(tmp_path: Path) -> None:
    """An objective of one's own without a name would cost the card all that it says."""

    class Ours(type(trainer(tmp_path))):  # type: ignore[misc]
        def student_card(self) -> StudentCard:
            card = super().student_card()
            card.objective = [{"weight": 0.5}]
            card.plots, card.limitations = ["/tmp/x.png"], ["None of it is real."]
            return card

    ours = trainer(tmp_path, cls=Ours)
    with pytest.warns(UserWarning, match=r"`objective`: got .*left out") as caught:
        ours.create_model_card(license="mit")
    (told,) = (str(w.message) for w in caught)
    assert "`plots`: got ['/tmp/x.png']: left out" in told
    text = (tmp_path / NAME).read_text(encoding="utf-8")
    validate(text)
    assert "license: mit" in text
    assert "None of it is real." in text
    assert "## Training" in text


def test_files_beside_the_student_that_cannot_be_read(tmp_path: Path) -> None:
    """emissions.csv of a killed run, an export's record by another version, bad samples."""
    ours = trainer(tmp_path)
    (tmp_path / "emissions.csv").write_text("emissions,country_name\nmuch,Norway\n")
    (tmp_path / "samples.json").write_text("[1]")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "exports.json").write_text("{}")
    with pytest.warns(UserWarning, match="The card leaves the emissions out") as caught:
        ours.create_model_card()
    assert len(caught) == 1
    validate((tmp_path / NAME).read_text(encoding="utf-8"))


def test_the_base_models_own_card_is_broken(tmp_path: Path) -> None:
    """`2024-13-01` in somebody's front matter is no YAML date, and no YAMLError either."""
    base = tmp_path / "base"
    base.mkdir()
    (base / NAME).write_text("---\nlicense: mit\ncreated: 2024-13-01\n---\n# Base\n")
    ours = trainer(tmp_path / "out")
    ours.model.config._name_or_path = str(base)
    ours.create_model_card()
    text = (tmp_path / "out" / NAME).read_text(encoding="utf-8")
    validate(text)
    assert str(base) not in text


# ---- the card that stands there ------------------------------------------------------------------


OLD = {
    "no text": b"\xff\xfe\x00caf\xe9",
    "broken markers": b"<!-- hf_distill:begin -->\nmine\n",
    "broken front matter": b"---\na: [\n---\n<!-- hf_distill:begin -->\n<!-- hf_distill:end -->\n",
    "by hand, no front matter": b"# Mine\n\nWritten by me.\n",
    "by hand, a licence of no kind": b"---\nlicense: Apache 2.0\n---\n# Mine\n",
    "by hand, a lost picture": b"---\nlicense: mit\n---\n# Mine\n\n![x](images/x.jpg)\n",
    "a local path around ours": b"---\nlicense: mit\n---\nSee /home/me/notes.\n"
    b"<!-- hf_distill:begin -->\n<!-- hf_distill:end -->\n",
}


@pytest.mark.parametrize("case", [*OLD, "a folder"])
def test_a_card_that_cannot_be_published_is_set_aside(tmp_path: Path, case: str) -> None:
    """It would end the push, or be overwritten with what a person wrote in it."""
    ours = made("sequence_classification")
    ours.args.output_dir = str(tmp_path)
    ours.save_model(str(tmp_path))
    if case == "a folder":
        (tmp_path / NAME).unlink(missing_ok=True)
        (tmp_path / NAME).mkdir()
    else:
        (tmp_path / NAME).write_bytes(OLD[case])
    (tmp_path / "README.old.md").write_text("of a run before")
    with pytest.warns(UserWarning, match="kept as README.old-2.md, and written anew") as caught:
        ours.create_model_card()
    assert len(caught) == 1
    assert folder_problems(tmp_path) == []
    kept = tmp_path / "README.old-2.md"
    assert kept.is_dir() if case == "a folder" else kept.read_bytes() == OLD[case]


def test_a_good_card_by_hand_stays(tmp_path: Path) -> None:
    """Overwriting it is what the stock Trainer does."""
    mine = "---\nlicense: mit\n---\n# Mine\n\nWritten by me.\n"
    (tmp_path / NAME).write_text(mine)
    with pytest.warns(UserWarning, match="left as it is"):
        trainer(tmp_path).create_model_card()
    assert (tmp_path / NAME).read_text() == mine


# ---- pushing -------------------------------------------------------------------------------------


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cards that were pushed: all of the push but the network."""
    cards: list[str] = []

    def push(folder: Any, repo: str, **_: Any) -> str:
        assert folder_problems(folder) == []
        cards.append((Path(folder) / NAME).read_text(encoding="utf-8"))
        return "pushed"

    monkeypatch.setattr(publishing, "push_folder", push)
    return cards


def test_the_student_is_pushed_all_the_same(tmp_path: Path, pushed: list[str]) -> None:
    """`push_to_hub(**kwargs)` of an official script raised before it pushed."""
    ours = trainer(tmp_path)
    ours.hub_model_id = "me/student"
    (tmp_path / NAME).write_bytes(OLD["no text"])
    ours.state.log_history.append({"eval_f1": [1], "eval_recall": math.nan, "step": 2})
    with pytest.warns(UserWarning, match="`language`: got") as caught:
        said = ours.push_to_hub(language="en_XX", tasks="causal-lm", license="Free", tags=[None])
    assert said == "pushed"
    assert len(caught) == 1
    validate(pushed[0])
    assert (tmp_path / "model.safetensors").is_file()


def test_a_push_during_training_goes_on(tmp_path: Path, pushed: list[str]) -> None:
    """One evaluation without a number, and no checkpoint would ever go up."""
    ours = trainer(tmp_path, args=config(tmp_path, hub_strategy="every_save"))
    ours.hub_model_id = "me/student"
    ours.state.log_history.append({"eval_f1": math.nan, "eval_loss": 1.0, "step": 2})
    ours.save_model(str(tmp_path / "checkpoint-1"))
    with pytest.warns(UserWarning, match="`results.student.f1`: got nan"):
        ours._push_from_checkpoint(str(tmp_path / "checkpoint-1"))  # as `Trainer` calls it
    ours.push_in_progress.wait_until_done()
    assert len(pushed) == 1


# ---- strictness, and all the rest ----------------------------------------------------------------


def test_writing_and_pushing_by_hand_stay_strict(tmp_path: Path) -> None:
    """Whoever calls `hub.write` or `hf-distill push` has time to set it right."""
    for wrong in ({"language": "en_XX"}, {"license": "Apache-2.0"}, {"task": "causal-lm"}):
        with pytest.raises(ValueError, match="cannot be published"):
            write(StudentCard("student", **wrong), tmp_path)
    assert card_problems(render(StudentCard("student", language="English")))


def test_strange_runs_always_give_a_card() -> None:
    """Control characters, YAML, HTML, our own markers, numbers without end: no traceback."""

    @settings(
        max_examples=40,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(runs, st.dictionaries(st.sampled_from(["language", "tasks", "tags", "license"]), words))
    def some(run: dict[str, Any], arguments: dict[str, Any]) -> None:
        card, _ = mended(StudentCard(**run), arguments)
        check(render(card), run)

    some()


words = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def test_the_arguments_are_those_of_the_stock_trainer() -> None:
    """A script that names one of them would end in a TypeError."""
    ours, stock = (
        set(inspect.signature(cls.create_model_card).parameters)
        for cls in (DistillationTrainer, Trainer)
    )
    assert ours == stock
