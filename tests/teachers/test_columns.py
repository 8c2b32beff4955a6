"""Teachers whose outputs are columns of the data, against float64 arithmetic on these columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    default_data_collator,
)
from two_tokenizers import PIECES, TAGS, TEXTS, bert, kl, logits, made

from hf_distill import ColumnTeacher, ForwardKL, HiddenStates, LogitMSE, ModelTeacher
from hf_distill.teachers import add_teacher_columns

tf: Any = transformers
LABELS = [0, 1, 2, 0, 1, 2]
NAMES = {0: "bad", 1: "good", 2: "mixed"}
ORDER = ("good", "mixed", "bad")
"""The order of the classes in the columns: not the student's."""
SCORES = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double()
VOTES = [[3, 0, 1], [1, 1, 1], [0, 5, 0], [2, 2, 0], [1, 0, 0], [0, 1, 4]]


def rows(**columns: Any) -> Dataset:
    data = Dataset.from_dict({"text": TEXTS, "labels": LABELS, **columns})
    return data.map(lambda row: PIECES(row["text"])).remove_columns("text")


def classifier(seed: int = 1, **extra: Any) -> Any:
    return bert("ForSequenceClassification", seed, id2label=NAMES, **extra)


def expected(student: Any, scores: torch.Tensor, t: float = 2.0) -> float:
    """The mean KL to scores in the columns' order of classes."""
    place = [ORDER.index(NAMES[index]) for index in range(3)]
    pairs = zip(TEXTS, scores, strict=True)
    return float(np.mean([kl(logits(student, PIECES, text), z[place], t) for text, z in pairs]))


FORMS: dict[str, tuple[Any, torch.Tensor]] = {
    "logits": (SCORES.tolist(), SCORES),
    "log_probs": (SCORES.log_softmax(-1).tolist(), SCORES),
    "probabilities": (SCORES.softmax(-1).tolist(), SCORES),
    "votes": (VOTES, torch.tensor(VOTES).double().log().clamp(min=-1e30)),
}


@pytest.mark.parametrize("form", sorted(FORMS))
def test_a_column_is_the_teacher(tmp_path: Path, form: str) -> None:
    """Columns in another order of classes, or logs taken twice, teach something else."""
    values, scores = FORMS[form]
    student, column = classifier(), {form: "stored"}
    ours = made(
        tmp_path,
        student,
        ColumnTeacher(**column, labels=ORDER),  # type: ignore[arg-type]
        rows(stored=values),
        objective=1.0 * ForwardKL(2.0),
        processing_class=PIECES,
        per_device_eval_batch_size=4,
    )
    found = ours.evaluate()["eval_forward_kl"]
    assert found == pytest.approx(expected(student, scores), rel=1e-6 if form == "votes" else 1e-7)


def test_the_likeliest_classes_and_their_rest(tmp_path: Path) -> None:
    """The rest of an API's likeliest answers would be lost, or counted as one of them."""
    student, logs = classifier(), SCORES.log_softmax(-1)
    best, ids = logs.topk(2, dim=-1)
    ours = made(
        tmp_path,
        student,
        ColumnTeacher(top_k=("ids", "logs"), labels=ORDER),
        rows(ids=ids.tolist(), logs=best.tolist()),
        objective=1.0 * ForwardKL(1.0),
        processing_class=PIECES,
    )
    # of three classes two and the rest are all of them
    assert ours.evaluate()["eval_forward_kl"] == pytest.approx(
        expected(student, SCORES, 1.0), rel=1e-5
    )


def test_embeddings_are_a_column(tmp_path: Path) -> None:
    """Vectors of an API would need a class of one's own."""
    student = bert("Model", 1)
    vectors = torch.randn(6, 16, generator=torch.Generator().manual_seed(1)).tolist()
    data = rows(vector=vectors).remove_columns("labels")
    ours = made(
        tmp_path,
        student,
        ColumnTeacher(embedding="vector"),
        data,
        objective=1.0 * HiddenStates(groups=("embedding",)),
        processing_class=PIECES,
    )
    (linear,) = [m for m in ours.projections.modules() if isinstance(m, torch.nn.Linear)] or [None]
    values = []
    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.no_grad():
            pooled = student(**PIECES(text, return_tensors="pt")).last_hidden_state[0].mean(0)
            pooled = pooled if linear is None else linear(pooled)
            other = torch.tensor(vector, dtype=pooled.dtype)
            values.append(float((pooled - other).square().mean()))
    assert ours.evaluate()["eval_hidden_states"] == pytest.approx(np.mean(values), rel=1e-5)


def test_scores_of_tokens_are_placed_at_the_tokens(tmp_path: Path) -> None:
    """Ragged lists of lists cannot be padded by the student's collator."""
    student = bert("ForTokenClassification", 1, num_labels=3)
    generator, data = torch.Generator().manual_seed(2), []
    for text, tags in zip(TEXTS, TAGS, strict=True):
        encoded = PIECES(text.split(), is_split_into_words=True)
        places = encoded.word_ids()
        labels = [-100 if word is None else tags[word] for word in places]
        scores = torch.randn(len(places), 3, generator=generator).tolist()
        data.append({"labels": labels, "stored": scores, **encoded})
    ours = made(
        tmp_path,
        student,
        ColumnTeacher(logits="stored"),
        Dataset.from_list(data),
        objective=1.0 * ForwardKL(2.0),
        data_collator=DataCollatorForTokenClassification(PIECES),
        processing_class=PIECES,
        per_device_eval_batch_size=3,
    )
    values = []
    for text, row in zip(TEXTS, data, strict=True):
        every = logits(student, PIECES, text.split(), is_split_into_words=True)
        stored = torch.tensor(row["stored"]).double()
        counted = [place for place, label in enumerate(row["labels"]) if label != -100]
        values += [kl(every[place], stored[place]) for place in counted]
    assert ours.evaluate()["eval_forward_kl"] == pytest.approx(np.mean(values), rel=1e-6)


def test_a_regression_column(tmp_path: Path) -> None:
    """One number per example is no list of classes."""
    student = bert("ForSequenceClassification", 1, num_labels=1)
    data = rows(score=[0.5, -1.0, 2.0, 0.0, 1.5, 3.0])
    data = data.map(lambda row: {"labels": float(row["labels"])})
    ours = made(
        tmp_path,
        student,
        ColumnTeacher(logits="score", kind="regression"),
        data,
        objective=1.0 * LogitMSE(),
        processing_class=PIECES,
    )
    values = [
        float((logits(student, PIECES, text)[0] - score) ** 2)
        for text, score in zip(TEXTS, data["score"], strict=True)
    ]
    assert ours.evaluate()["eval_logit_mse"] == pytest.approx(np.mean(values), rel=1e-6)


WRONG: dict[str, tuple[dict[str, Any], Any, str]] = {
    "NaN": ({"logits": "c"}, [[0.0, float("nan"), 1.0]] * 6, "got NaN"),
    "two classes": ({"logits": "c"}, [[0.0, 1.0]] * 6, r"3 numbers.*shape \(2,\)"),
    "a sum of 2": ({"probabilities": "c"}, [[1.0, 0.5, 0.5]] * 6, "a sum of 2"),
    "below 0": ({"votes": "c"}, [[2, -1, 1]] * 6, "at least 0.*got -1"),
    "no vote": ({"votes": "c"}, [[0, 0, 0]] * 6, "a vote.*none"),
    "above 1": ({"log_probs": "c"}, [[0.5, -1.0, -2.0]] * 6, "at most 0.*0.5"),
    "ragged": ({"logits": "c"}, [[0.0, float(n), 2.0] for n in range(5)] + [[1.0]], "3 numbers"),
    "absent": ({"logits": "d"}, [[0.0, 1.0, 2.0]] * 6, "the teacher's column 'd'"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_columns_that_cannot_be_learned_from(tmp_path: Path, case: str) -> None:
    """A loss of NaN after hours, or a distribution that is none."""
    given, values, message = WRONG[case]
    options: dict[str, Any] = {"objective": 1.0 * ForwardKL(2.0), "processing_class": PIECES}
    with pytest.raises(ValueError, match=message):
        made(
            tmp_path, classifier(), ColumnTeacher(**given, labels=ORDER), rows(c=values), **options
        ).evaluate()


def test_settings_are_checked() -> None:
    """Two columns of scores: one of them would be ignored."""
    with pytest.raises(ValueError, match=r"one of logits.*\['logits', 'votes'\]"):
        ColumnTeacher(logits="a", votes="b")
    with pytest.raises(ValueError, match="the name of a column, got none"):
        ColumnTeacher()
    with pytest.raises(ValueError, match="number of classes"):
        ColumnTeacher(top_k=("a", "b"))
    with pytest.raises(ValueError, match="kind"):
        ColumnTeacher(logits="a", kind="ctc")
    assert default_data_collator([{"labels": 1}])  # what a plain script passes


@pytest.mark.parametrize("top_k", [None, 2])
def test_columns_of_a_teacher_are_its_outputs(tmp_path: Path, top_k: int | None) -> None:
    """Rows in another order than the examples': each would learn from its neighbour's teacher."""
    teacher, data = classifier(2), rows()
    collate = DataCollatorWithPadding(PIECES)
    options: dict[str, Any] = {"top_k": top_k, "batch_size": 4, "say": len}
    found = add_teacher_columns(data, ModelTeacher(teacher), collate, tmp_path / "c", **options)
    every = torch.stack([logits(teacher, PIECES, text) for text in TEXTS])
    if top_k is None:
        assert np.allclose(found["teacher_logits"], every, atol=1e-5)
    else:
        best, ids = every.log_softmax(-1).topk(2, dim=-1)
        assert np.asarray(found["teacher_ids"]).tolist() == ids.tolist()
        assert np.allclose(found["teacher_log_probs"], best, atol=1e-5)
    with pytest.raises(ValueError, match="which would be overwritten"):
        add_teacher_columns(found, ModelTeacher(teacher), collate, tmp_path / "d", **options)

    again = add_teacher_columns(
        data, ModelTeacher(teacher), collate, tmp_path / "c", prefix="again_", **options
    )
    names = [name for name in again.column_names if name.startswith("again_")]
    assert all(again[n] == found[n.replace("again_", "teacher_")] for n in names)


def test_columns_of_token_classifiers_and_encoders(tmp_path: Path) -> None:
    """Lists of lists of the counted items have to find their tokens again."""
    teacher, student = (bert("ForTokenClassification", seed, num_labels=3) for seed in (2, 1))
    data = []
    for text, tags in zip(TEXTS, TAGS, strict=True):
        encoded = PIECES(text.split(), is_split_into_words=True)
        labels = [-100 if word is None else tags[word] for word in encoded.word_ids()]
        data.append({"labels": labels, **encoded})
    collate = DataCollatorForTokenClassification(PIECES)
    whole = Dataset.from_list(data)
    stored = add_teacher_columns(whole, ModelTeacher(teacher), collate, tmp_path / "c", say=len)
    options: dict[str, Any] = {"objective": 1.0 * ForwardKL(2.0), "data_collator": collate}
    by_column, live = (
        made(tmp_path, student, taught, given, processing_class=PIECES, **options).evaluate()
        for taught, given in (
            (ColumnTeacher(logits="teacher_logits"), stored),
            (ModelTeacher(teacher), whole),
        )
    )
    assert by_column["eval_forward_kl"] == pytest.approx(live["eval_forward_kl"], rel=1e-5)
    encoder, texts = bert("Model", 2), rows().remove_columns("labels")
    found = add_teacher_columns(
        texts,
        ModelTeacher(encoder),
        DataCollatorWithPadding(PIECES),
        tmp_path / "e",
        embedding=True,
        say=len,
    )
    for text, vector in zip(TEXTS, found["teacher_embedding"], strict=True):
        with torch.no_grad():
            pooled = encoder(**PIECES(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert np.allclose(vector, pooled, atol=1e-5)
