"""Recipes of question answering: windows, spans, and figures per question, not per window."""

from __future__ import annotations

import collections
import importlib.util
import json
import re
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from answered_questions import questions
from datasets import Dataset
from launch import launch
from transformers import EvalPrediction

from hf_distill.recipe import RecipeError, Run, load_recipe
from hf_distill.recipe.data_section import Data
from hf_distill.recipe.labels import Labels
from hf_distill.recipe.tasks import Split
from hf_distill.recipe.tasks.questions import answered

tf: Any = transformers
pytestmark = pytest.mark.xdist_group("recipes")
MODELS = {"teacher": "teacher/model", "baseline": "baseline/seed-0/model", "student": "final"}


def silent(line: str) -> None:
    """For lines that nobody needs to see."""


def rows_of_test(folder: Path, **arguments: Any) -> Any:
    spec = importlib.util.spec_from_file_location("asked", folder / "asked.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.asked(**arguments)["test"]


def test_no_answer_needs_every_window_to_have_none() -> None:
    """A long text has an answer in one window, and none in all others."""
    context = {"context": ["abcdef", "abcdef"], "answers": [{"text": ["cd"]}, {"text": []}]}
    offsets = [[[-1, -1], [0, 2], [2, 4]], [[-1, -1], [2, 4], [4, 6]]]
    rows = Dataset.from_dict({"example": [0, 0, 1], "offsets": [*offsets, offsets[0]]})
    data: Any = Data("rows")
    split = Split(Dataset.from_dict(context), rows, Labels(), data, None)
    start = np.array([[9.0, 0, 0], [-9, 5, 0], [9, 1, 1]])  # [CLS] wins in one window of two
    end = np.array([[9.0, 0, 0], [-9, 5, 0], [9, 1, 1]])
    found, right = answered(EvalPrediction((start, end), None), split)
    assert found == ["cd", ""]
    assert right == [["cd"], []]


@torch.no_grad()
def answer(model: Any, tokenizer: Any, row: Any, refusable: bool, stride: int) -> str:
    """The best span of all windows by plain loops in float64, windows cut by hand."""
    question = tokenizer(row["question"], add_special_tokens=False)["input_ids"]
    text = tokenizer(row["context"], add_special_tokens=False, return_offsets_mapping=True)
    room, size = 24 - len(question) - 3, len(text["input_ids"])
    best, nothing, at = (-1e9, ""), 1e9, 0
    while True:
        part = text["input_ids"][at : at + room]
        cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        ids = [cls, *question, sep, *part, sep]
        kinds = [0] * (len(question) + 2) + [1] * (len(part) + 1)
        out = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([kinds]))
        start, end = out.start_logits[0].tolist(), out.end_logits[0].tolist()
        nothing = min(nothing, start[0] + end[0])
        first = len(question) + 2
        for i in range(len(part)):
            for j in range(i, min(len(part), i + 30)):
                span = text["offset_mapping"][at + i][0], text["offset_mapping"][at + j][1]
                score = start[first + i] + end[first + j]
                best = max(best, (score, row["context"][slice(*span)]), key=lambda one: one[0])
        if at + room >= size:
            return "" if refusable and nothing > best[0] else best[1]
        at += room - stride


def words(text: str) -> list[str]:
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def figures(found: list[str], test: Any) -> dict[str, float]:
    """Exact match and F1 of SQuAD as plain loops."""
    exact, f1 = [], []
    for ours, row in zip(found, test, strict=True):
        scores = []
        for right in row["answers"]["text"] or [""]:
            a, b = words(ours), words(right)
            common = sum((collections.Counter(a) & collections.Counter(b)).values())
            both = 2 * common / (len(a) + len(b)) if a and b else float(a == b)
            scores.append((float(a == b), both))
        exact.append(max(score[0] for score in scores))
        f1.append(max(score[1] for score in scores))
    return {
        "squad_exact_match": sum(exact) / len(exact),
        "squad_f1": sum(f1) / len(f1),
    }


def check_figures(folder: Path, stride: int = 6, **arguments: Any) -> None:
    test = rows_of_test(folder, **arguments)
    report = json.loads((folder / "out/report.json").read_text())["models"]
    for role, place in MODELS.items():
        path = folder / "out" / place
        tokenizer = tf.AutoTokenizer.from_pretrained(path)
        model = tf.AutoModelForQuestionAnswering.from_pretrained(path).double().eval()
        refusable = bool(arguments.get("without"))
        found = [answer(model, tokenizer, row, refusable, stride) for row in test]
        for name, value in figures(found, test).items():
            assert report[role]["test"][name] == pytest.approx(value), (role, name)


def test_figures_are_those_of_questions(tmp_path: Path) -> None:
    """A mean over windows, in most of which a long context has no answer; answers in two parts."""
    Run(load_recipe(questions(tmp_path)), silent)()
    check_figures(tmp_path)
    card = (tmp_path / "out/final/README.md").read_text()
    assert "pipeline_tag: question-answering" in card
    assert "squad_f1" in card


def test_positions_are_those_of_the_answers(tmp_path: Path) -> None:
    """Learned spans that are not the answers, or windows of another question."""
    run = Run(load_recipe(questions(tmp_path)), silent)
    raw, labelled = run.examples.raw["train"], 0
    for window in run.data["train"]:
        row = raw[window["example"]]
        text = run.processor.decode(
            window["input_ids"][window["start_positions"] : window["end_positions"] + 1]
        )
        if window["start_positions"]:
            assert text == row["answers"]["text"][0]
            labelled += 1
        else:
            assert text == run.processor.cls_token
    assert labelled >= len(raw), "an answer is in no window"
    assert len(run.data["train"]) > len(raw)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_no_answers_caches_and_processes(tmp_path: Path, processes: int) -> None:
    """Questions without an answer counted as wrong, or windows in another order."""
    questions(
        tmp_path,
        data={"source": "asked.py:asked", "arguments": {"without": 5}, "stride": 4},
        teacher={"cache": {}},
        training={"per_device_train_batch_size": 8 // processes, "per_device_eval_batch_size": 5},
    )
    launch(_run, str(tmp_path), processes=processes)
    check_figures(tmp_path, 4, without=5)


def _run(folder: str) -> None:
    Run(load_recipe(Path(folder) / "recipe.yaml"), silent)()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"arguments": {"wrong": 3}}}, "got others in 3 of 48 examples"),
        ({"data": {"stride": 19}}, "48 of 48 too long. Set a smaller `data.stride`"),
        ({"data": {"answers_column": "spans"}}, "no column 'spans'"),
        ({"robustness": {}}, "question_answering is none"),
        ({"metric": "accuracy"}, "metric"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Answers cut out of other words would be learned; the rest would fail in the middle."""
    with pytest.raises(RecipeError, match=message):
        Run(load_recipe(questions(tmp_path, **changes)), silent)


def test_a_tokenizer_that_pads_on_the_left_is_saved_as_the_message_says(tmp_path: Path) -> None:
    """Positions would be those of other tokens in a batch of windows of different lengths."""
    path = questions(tmp_path, data={"processor": "./left"})
    name = next(p for p in ("tokenizer", "pieces") if (tmp_path / p).is_dir())
    tf.AutoTokenizer.from_pretrained(tmp_path / name, padding_side="left").save_pretrained(
        tmp_path / "left"
    )
    with pytest.raises(
        RecipeError, match=r'AutoTokenizer\.from_pretrained\(…, padding_side="right"'
    ):
        Run(load_recipe(path), silent)
    tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path / "left", padding_side="right")
    tokenizer.save_pretrained(tmp_path / "left")
    assert Run(load_recipe(path), silent).processor.padding_side == "right"
