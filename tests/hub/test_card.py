"""The model card: true numbers, metadata that the Hub reads, and what is never written."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results
from transformers.modelcard import TrainingSummary

from hf_distill.hub import StudentCard, hub_id, render, validate, write
from hf_distill.hub.card import BEGIN, END, with_repo_id
from hf_distill.hub.metadata import TAGS

ROOT = Path(__file__).resolve().parents[2]
FACTS: dict[str, Any] = {
    "model_name": "me/tiny-reviews",
    "task": "text-classification",
    "license": "apache-2.0",
    "language": "no",  # Norwegian: YAML 1.1 reads a bare `no` as false
    "base_model": "org/mini",
    "teacher": {"name": "org/large", "revision": "abc123", "parameters": 22_700_000, "layers": 6},
    "student": {"parameters": 9_080_000, "layers": 2, "hidden_size": 384},
    "objective": [
        {"name": "hard_labels", "weight": 0.3},
        {
            "name": "forward_kl",
            "weight": 0.7,
            "settings": {"temperature": 2.0},
            "citation": "@article{hinton2015distilling}",
        },
    ],
    "formula": "0.3 CE + 0.7 T² KL(p ‖ q)",
    "data": {
        "name": "org/films",
        "license": "mit",
        "splits": {"train": 7605, "test": 2000},
        "labels_used": True,
        "config": "en",
        "test_split": "test",
    },
    "results": {
        "student": {"accuracy": {"mean": 0.8, "std": 0.0021}, "agreement": 0.91, "loss": 0.5},
        "baseline": {"accuracy": 0.75, "agreement": 0.88},
        "teacher": {"accuracy": 0.84, "loss": 0.4},
    },
    "test_examples": 2000,
    "seeds": 3,
    "training": {"learning_rate": 3e-5, "seed": 1, "components": {"forward_kl": 0.1234}},
    "environment": {"torch": "2.13", "hardware": "2 CPU cores"},
    "reproduce": {"command": "hf-distill train films.yaml", "recipe": "epochs: 3"},
    "limitations": ["Only film reviews."],
    "plots": ["plots/curves.png"],
    "tags": ["films"],
}


def _card(**changes: Any) -> StudentCard:
    return StudentCard(**(copy.deepcopy(FACTS) | changes))


def _metadata(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def _table(text: str, label: str) -> list[str]:
    """The cells of the row that starts with ``label``."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def test_metadata_is_what_the_hub_understands() -> None:
    """A list in base_model reads as a merge; the teacher's numbers would rank the student."""
    metadata = _metadata(render(_card()))
    assert metadata["base_model"] == "org/mini"
    assert metadata["base_model_relation"] == "finetune"
    assert metadata["teacher_model"] == "org/large"
    assert metadata["datasets"] == ["org/films"]
    assert metadata["language"] == "no"
    assert metadata["metrics"] == ["accuracy", "loss"]
    assert metadata["pipeline_tag"] == "text-classification"
    assert metadata["tags"] == [*TAGS, "hard_labels", "forward_kl", "films"]
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == "tiny-reviews"
    assert [(r.metric_type, r.metric_value) for r in results] == [("accuracy", 0.8), ("loss", 0.5)]
    assert {(r.dataset_type, r.dataset_config, r.dataset_split) for r in results} == {
        ("org/films", "en", "test")
    }
    validate(render(_card()))


def test_an_adapter_is_declared_as_one() -> None:
    """An adapter that says `finetune` gets a loading snippet that fails."""
    metadata = _metadata(render(_card(library_name="peft")))
    assert (metadata["library_name"], metadata["base_model_relation"]) == ("peft", "adapter")


def test_the_table_and_the_claim_hold_the_numbers() -> None:
    """A column swapped or a share of the wrong model would be believed by everyone."""
    text = render(_card())
    assert _table(text, "") == ["Student", "Baseline (no teacher)", "Teacher"]
    assert _table(text, "Parameters") == ["9.08 M", "9.08 M", "22.7 M"]
    assert _table(text, "Layers") == ["2", "2", "6"]
    assert _table(text, "Hidden size") == ["384", "384", "–"]
    assert _table(text, "accuracy") == ["0.8000 ± 0.0021", "0.7500", "0.8400"]
    assert _table(text, "agreement") == ["0.9100", "0.8800", "–"]
    # 0.80 / 0.84 = 0.95238, 0.75 / 0.84 = 0.89286
    assert _table(text, "accuracy, retention") == ["95.2 %", "89.3 %", "100.0 %"]
    assert "loss, share" not in text  # less is better: a share would flatter the worse student
    claim = (
        "**tiny-reviews** retains 95.2 % of the accuracy of its teacher "
        "[org/large](https://huggingface.co/org/large) (0.8000 ± 0.0021 against 0.8400 on 2,000 "
        "test examples). It has 40 % of the teacher's parameters (9.08 M against 22.7 M). "
        "The baseline (the same student without a teacher) reaches 0.7500."
    )
    assert claim in text
    assert "mean ± standard deviation over 3 seeds" in text


def test_every_fact_is_in_the_card() -> None:
    """A section lost in the template is not missed by anyone who reads the card."""
    text = render(_card())
    for fact in (
        'model_id = "me/tiny-reviews"',
        "at revision `abc123`",
        "started from [org/mini](https://huggingface.co/org/mini)",
        "0.3 CE + 0.7 T² KL(p ‖ q)",
        "| forward_kl | 0.7 | temperature = 2 |",
        "[org/films](https://huggingface.co/datasets/org/films), configuration `en`",
        "- Licence of the data: mit",
        "- Examples: 7,605 train, 2,000 test",
        "- Labels: used in training",
        "| learning_rate | 3e-05 |",
        "| components: forward_kl | 0.1234 |",
        "- Only film reviews.",
        "- hardware: 2 CPU cores",
        "hf-distill train films.yaml",
        "epochs: 3",
        "@article{hinton2015distilling}",
        "![curves](plots/curves.png)",
    ):
        assert fact in text, fact


def test_sections_without_facts_are_left_out() -> None:
    """'More information needed' and empty tables are the mark of a card nobody wrote."""
    text = render(StudentCard("me/bare"))
    assert "##" not in text
    assert "|" not in text
    assert set(_metadata(text)) == {"library_name", "tags"}
    validate(text)


def test_each_section_can_be_missing_alone() -> None:
    """A template that assumes another section's facts fails on the first unusual run."""
    for key, value in FACTS.items():
        if key != "model_name":
            facts = {name: fact for name, fact in FACTS.items() if name != key}
            validate(render(StudentCard(**facts)))
            validate(render(StudentCard("me/x", **{key: value})))


def test_missing_numbers_are_left_out() -> None:
    """A NaN in the model-index makes the Hub reject the push."""
    nan = float("nan")
    results = {
        "student": {"accuracy": {"mean": nan, "std": nan}, "f1": None, "recall": 0.5},
        "teacher": {"accuracy": nan},
    }
    text = render(_card(results=results, training={"loss": nan, "seed": None, "steps": 3}))
    validate(text)
    assert _metadata(text)["metrics"] == ["recall"]
    assert not re.search(r"nan|None", text, re.IGNORECASE)
    assert "| steps | 3 |" in text


def test_a_metric_where_less_is_better_has_no_share() -> None:
    """'Keeps 125 % of the perplexity' reads as praise for a worse student."""
    results = {"student": {"perplexity": 25.0}, "teacher": {"perplexity": 20.0}}
    text = render(_card(results=results))
    assert "reaches perplexity 25.00 (lower is better) on 2,000 test examples; its teacher" in text
    assert "share" not in text


def test_nothing_of_this_machine_is_written(tmp_path: Path) -> None:
    """A path tells who trained where, and a local path as base_model breaks the push."""
    secret = "hf_" + "aB3x" * 9
    local = tmp_path / "runs" / "teacher"
    text = render(
        _card(
            model_name=str(tmp_path / "student"),
            base_model="./checkpoints/base",
            teacher={"name": str(local), "parameters": 10},
            data={"name": "C:\\data\\films"},
            training={"output": str(tmp_path), "key": secret},
            reproduce={"command": f"train --teacher {local}", "recipe": f"teacher: {local}"},
        )
    )
    validate(text)
    metadata = _metadata(text)
    assert not {"base_model", "base_model_relation", "teacher_model", "datasets"} & metadata.keys()
    assert metadata["model-index"][0]["name"] == "student"
    assert str(tmp_path) not in text
    assert secret not in text
    assert "of its teacher `teacher`" in text
    assert "started from `base`" in text
    assert "- Data set: films" in text


def test_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`out/teacher` looks like an id, and is somebody else's model when it is a folder here."""
    monkeypatch.chdir(tmp_path)
    assert hub_id("out/teacher") == "out/teacher"
    (tmp_path / "out/teacher").mkdir(parents=True)
    assert hub_id("out/teacher") is None
    assert hub_id("gpt2", revision="607a30d") == "gpt2"
    for name in ("gpt2", "/a/b", "./a", "~/a", "a\\b", "a/b/c", "a b/c", "", None):
        assert hub_id(name) is None, name


@pytest.mark.parametrize("plot", ["/home/me/a.png", "../a.png", "plots\\a.png"])
def test_a_plot_outside_the_folder_is_refused(plot: str) -> None:
    """The picture would be broken for everyone but its author."""
    with pytest.raises(ValueError, match="relative to the published folder"):
        render(_card(plots=[plot]))


def test_rewriting_keeps_what_a_person_wrote(tmp_path: Path) -> None:
    """Stock create_model_card overwrites the file: an afternoon of prose is gone."""
    path = write(_card(), tmp_path)
    first = path.read_text(encoding="utf-8")
    assert write(_card(), tmp_path).read_text(encoding="utf-8") == first
    mine = first.replace(BEGIN, f"> Read this first.\n\n{BEGIN}") + "\n## Thanks\n\nTo Ada.\n"
    path.write_text(mine.replace("license:", "thumbnail: t.png\nlicense:"), encoding="utf-8")
    for _ in range(2):
        write(_card(limitations=["Another limit."]), tmp_path)
    text = path.read_text(encoding="utf-8")
    assert _metadata(text)["thumbnail"] == "t.png"
    assert f"\n> Read this first.\n\n{BEGIN}\n" in text
    assert text.endswith(f"{END}\n\n## Thanks\n\nTo Ada.\n")
    assert "Another limit." in text
    assert "Only film reviews." not in text
    assert text.count(BEGIN) == text.count(END) == 1
    validate(text)
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]  # no temporary file is left


def test_a_card_by_hand_is_left_alone(tmp_path: Path) -> None:
    """Even a card that began as Trainer's, once its comment is gone, is somebody's work."""
    mine = "---\ntags: [generated_from_trainer]\n---\n# Mine\n\nTrained with PEFT.\n"
    (tmp_path / "README.md").write_text(mine)
    with pytest.warns(UserWarning, match="left as it is.*hf_distill:begin.*or delete the file"):
        write(_card(), tmp_path)
    assert (tmp_path / "README.md").read_text() == mine


def _trainer_card() -> str:
    return TrainingSummary(model_name="x", hyperparameters={"lr": 1}).to_model_card()


def _peft_card() -> str:
    card = ModelCard.from_template(ModelCardData(library_name="peft"))
    return f"{card}\n### Framework versions\n\n- PEFT 0.21.2"


@pytest.mark.parametrize("stock", [_trainer_card, _peft_card])
def test_a_stock_card_is_replaced(tmp_path: Path, stock: Any) -> None:
    """Trainer and PEFT save a card full of blanks: keeping it would publish the blanks."""
    (tmp_path / "README.md").write_text(stock(), encoding="utf-8")
    write(_card(), tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == render(_card())


@pytest.mark.parametrize(
    "damage", [f"{BEGIN}\nx", f"{END}\nx\n{BEGIN}", "---\na: [\n---\n" + BEGIN + END]
)
def test_a_damaged_card_is_refused(tmp_path: Path, damage: str) -> None:
    """Guessing where our part ends would delete the text after it."""
    (tmp_path / "README.md").write_text(damage)
    with pytest.raises(ValueError, match="repair"):
        write(_card(), tmp_path)
    assert (tmp_path / "README.md").read_text() == damage


def test_an_invalid_card_is_not_written(tmp_path: Path) -> None:
    """The mistake would show only at the push, long after the facts are gone."""
    with pytest.raises(ValueError, match="does not know 'free'"):
        write(_card(license="free"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_repo_id_is_set_in_our_part_only() -> None:
    """A quick start that names the training folder runs for nobody."""
    theirs = '\n```python\nmodel_id = "mine"\n```\n'
    text = with_repo_id(render(_card()) + theirs, "org/other")
    assert text == render(_card()).replace('"me/tiny-reviews"', '"org/other"') + theirs
