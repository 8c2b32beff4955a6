"""Recipes whose teacher is a language model behind a chat endpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_recipes
import torch
from chat_server import chat_server, says, sentiment
from scipy.special import rel_entr, softmax
from sklearn.metrics import accuracy_score

from hf_distill.recipe import load_recipe
from hf_distill.recipe.errors import RecipeError
from hf_distill.recipe.runner import Run
from hf_distill.recipe.training import arguments

KEY = "sk-not-for-the-card"
PROMPT = "Is this {{ labels | join(' or ') }}? {{ text }}"


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def recipe(folder: Path, url: str, student: Any = None, **api: Any) -> Path:
    """A tiny recipe whose teacher is the server at this address."""
    own = {"model": "org/model", "base_url": url, "prompt": PROMPT, "samples": 2, **api}
    teacher = {"config": None, "training": {}, "api": own, "license": "mit"}
    student = student or {"from_teacher_layers": None, "config": tiny_recipes.bert(1)}
    return tiny_recipes.recipe(folder, teacher=teacher, student=student, seed=3)


def run(path: Path) -> tuple[Path, list[str]]:
    """The finished student's folder, and what was printed."""
    said: list[str] = []
    return Run(load_recipe(path), said.append)(), said


def reply(request: dict[str, Any]) -> dict[str, Any]:
    """As `sentiment`; undecided about "very", unreadable for "plot"."""
    text = request["messages"][-1]["content"]
    if "plot" in text:
        return says("I cannot say.")
    if "very" in text and request["seed"]:
        return says("negative")
    return sentiment(request)


def test_a_recipe_labels_trains_and_tells_who_labelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student learns from other labels than the endpoint gave; its card conceals the source."""
    monkeypatch.setenv("KEY_OF_A_TEST", KEY)
    with chat_server(reply) as server:
        named = {"terms": "https://example.org/terms", "provider": "Example"}
        path = recipe(tmp_path, server.url, **named, api_key_env="KEY_OF_A_TEST")
        final, _ = run(path)
        count = len(server.requests)
        assert len({json.dumps(r, sort_keys=True) for r in server.requests}) == count
        _, said = run(path)  # everything is there
        assert len(server.requests) == count
    assert any("annotations: done before" in line for line in said)
    found = tiny_recipes.record(tmp_path, "annotations")["results"]
    texts, given = tiny_recipes.held_out(tmp_path)
    expected = [
        None if "plot" in t else [0.5, 0.5] if "very" in t and "good" in t
        else [0.0, 1.0] if "good" in t else [1.0, 0.0]
        for t in texts
    ]  # fmt: skip
    assert found["test"]["probabilities"] == expected
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    teacher = report["models"]["teacher"]["test"]
    labels = [np.argmax(row or [0.5, 0.5]) for row in expected]
    assert teacher["accuracy"] == pytest.approx(accuracy_score(given, labels))
    ours = tiny_recipes.probabilities(final, texts).argmax(-1)
    agreement = report["models"]["student"]["test"]["agreement"]
    assert agreement == pytest.approx(accuracy_score(labels, ours))
    card = (final / "README.md").read_text()
    assert "org/model" in card
    assert "https://example.org/terms" in card
    assert "obtained from the chat endpoint of Example" in card
    published = [p.read_bytes() for p in final.rglob("*") if p.is_file()]
    assert not [content for content in published if KEY.encode() in content]


def test_the_loss_is_that_of_the_labels(tmp_path: Path) -> None:
    """The column is read in another order of the classes, or for other rows than those it is of."""
    with chat_server(reply) as server:
        own = Run(load_recipe(recipe(tmp_path, server.url)), lambda line: None)
        stage = own.stages["annotations"]
        own.annotate(own._label(stage))
    rows = own.data["train"]
    raw = [t for t in own.examples.raw["train"]["text"] if "plot" not in t]
    assert len(rows) == len(raw) < len(own.examples.raw["train"])
    assert [p == pytest.approx([0.0005, 0.9995]) for p in rows["label_probabilities"]] == [
        "good" in t and "very" not in t for t in raw
    ]
    rows = rows.select(range(8))
    student = own.models.learner("student", 3)
    args = arguments(own.recipe, "student", 3, tmp_path / "evaluated")
    goal = own.lessons["student/seed-3"].objective
    found = own.make_trainer(student, args, goal, own.given_teacher({})).evaluate(rows)
    p = np.array(rows["label_probabilities"][:]) ** 0.5  # at the temperature 2
    p /= p.sum(-1, keepdims=True)
    batch = own.task.collator(own.processor)([rows[i] for i in range(8)])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        logits = student.double().eval()(**inputs).logits.numpy()
    expected = 4 * rel_entr(p, softmax(logits / 2, -1)).sum(-1).mean()
    assert found["eval_forward_kl"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"api": {"prompt": "{{ review }}"}}, "`teacher.api.prompt`: .*review"),
        ({"api": {"base_url": "ftp://x"}}, "`teacher.api`: Expected base_url"),
        ({"api": {"budget": {"money": 1.0}}}, "budget.money` needs `teacher.api.prices`"),
        ({"api": {"labels": {"good": "yes"}}}, "an answer word for each of"),
        ({"api": {"promt": "x"}}, "did you mean `teacher.api.prompt`"),
        ({"student": {"from_teacher_layers": 1}}, "Give `student.model`"),
        ({"teacher": {"cache": {}}}, "`teacher.cache` is for teachers that are models"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    """A mistake is found after the labels were paid for."""
    with chat_server() as server:
        path = recipe(tmp_path, server.url, change.get("student"), **change.get("api", {}))
        more = [(f"teacher.{k}", json.dumps(v)) for k, v in change.get("teacher", {}).items()]
        with pytest.raises(RecipeError, match=told):
            Run(load_recipe(path, more), lambda line: None).check()
        assert not server.requests


def test_a_dry_run_sends_nothing(tmp_path: Path) -> None:
    """Looking at a recipe costs money."""
    with chat_server() as server:
        plan = Run(load_recipe(recipe(tmp_path, server.url)), lambda line: None).plan()
        assert not server.requests
    assert "stage annotations: to do" in plan


@pytest.mark.slow
def test_a_budget_ends_a_run_which_goes_on_with_a_larger_one(tmp_path: Path) -> None:
    """The answers that were paid for are lost with the run."""
    with chat_server(reply) as server:
        with pytest.raises(RecipeError, match=r"`teacher\.api`: The budget ends here"):
            run(recipe(tmp_path, server.url, budget={"tokens": 400}))
        count = len(server.requests)
        assert count > 3
        run(recipe(tmp_path, server.url))
        requests = [json.dumps(r, sort_keys=True) for r in server.requests]
        assert len(set(requests)) == len(requests) > count
