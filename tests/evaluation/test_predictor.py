"""A model asked about raw examples, the examples themselves, and the parts that are kept."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from PIL.Image import fromarray
from report_models import (
    NAMES,
    Linear,
    classifier,
    linear,
    listener,
    pictures,
    reader,
    rows,
    saved,
    sounds,
    texts,
    tokenizer,
    viewer,
)

from hf_distill.robustness import Examples, Predictor
from hf_distill.robustness.store import ReportStore


def numpy_state() -> list[int]:
    state: Any = np.random.get_state()
    return list(state[1])


# ---- what a model says ---------------------------------------------------------------------------


def test_texts_are_asked_as_plain_transformers_would() -> None:
    """Padding, truncation or a shuffled order would give every figure of another model."""
    subject, examples = reader(0), texts(11)
    model, words = classifier(0), tokenizer()
    with torch.no_grad():
        expected = [
            model(**words(text, truncation=True, max_length=16, return_tensors="pt")).logits[0]
            for text in examples.values
        ]
    found = subject.logits(examples.values, batch_size=4)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, torch.stack(expected).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("subject", "values"),
    [(reader(1), texts(9).values), (viewer(), pictures()), (listener(), sounds())],
    ids=["text", "image", "audio"],
)
def test_results_depend_neither_on_batch_size_nor_on_order(subject: Predictor, values: Any) -> None:
    """Sounds padded without a mask, say, would be judged by whoever shares their batch."""
    one = subject.logits(values, batch_size=1)
    np.testing.assert_allclose(subject.logits(values, batch_size=64), one, atol=1e-6)
    turned = subject.logits(list(values)[::-1], batch_size=3)
    np.testing.assert_allclose(turned[::-1], one, atol=1e-6)


def test_pictures_in_all_forms_are_the_same_picture() -> None:
    """A float array would be divided by 255 once more, and be black."""
    subject, arrays = viewer(), pictures()
    whole = subject.logits([fromarray(array) for array in arrays])
    np.testing.assert_array_equal(subject.logits(arrays), whole)
    np.testing.assert_array_equal(
        subject.logits([a.astype(np.float32) / 255 for a in arrays]), whole
    )
    pixels = (arrays[0].astype(np.float64) / 255).mean()
    assert not np.allclose(subject.logits([np.full((9, 9, 3), pixels)]), whole[:1])


def test_rows_of_numbers_need_no_transformers_model() -> None:
    """Tables and recommenders could not be asked at all."""
    examples, weight = rows(20)
    expected = np.stack(examples.values).astype(np.float64) @ weight.T
    np.testing.assert_allclose(linear(weight).logits(examples.values), expected, atol=1e-5)
    assert linear(weight).modality == "tabular"


def test_the_model_is_left_as_it_was() -> None:
    """A training that is evaluated in between would go on without dropout, or with other noise."""
    subject = reader(0)
    subject.model.train()
    model: Any = subject.model
    model.bert.encoder.layer[0].eval()
    modes = [module.training for module in subject.model.modules()]
    states = (torch.random.get_rng_state(), numpy_state(), random.getstate())
    subject.logits(texts(5).values)
    assert [module.training for module in subject.model.modules()] == modes
    assert all(p.grad is None for p in subject.model.parameters())
    assert torch.equal(states[0], torch.random.get_rng_state())
    assert states[1:] == (numpy_state(), random.getstate())


def test_classes_are_matched_by_name() -> None:
    """A model that numbers the classes otherwise would be wrong on everything."""
    plain = reader(0)
    turned = Predictor("turned", classifier(0, NAMES[::-1]), tokenizer()).aligned(NAMES)
    examples = texts(6)
    np.testing.assert_array_equal(
        turned.logits(examples.values), plain.logits(examples.values)[:, ::-1]
    )
    asked = [labels[0].item() for _, _, labels in turned.batches(examples.values, [0] * 6, 1)]
    assert asked == [1] * 6, "labels of attacks are in the model's own order"
    assert plain.aligned(("Positive", "NEGATIVE")).order == (1, 0)
    assert plain.aligned(("bad", "good")).order is None
    with pytest.raises(ValueError, match="the 3 classes of the data"):
        plain.aligned(("a", "b", "c"))


def test_fingerprint_is_of_the_content() -> None:
    """A report would show the figures of another model, or never find its own again."""
    subject = reader(0)
    before = subject.fingerprint
    subject.logits(texts(4).values)
    assert reader(0).fingerprint == before
    assert Predictor("other name", subject.model, subject.processor).fingerprint == before
    assert reader(1).fingerprint != before
    assert Predictor("short", subject.model, subject.processor, max_length=4).fingerprint != before
    words = tokenizer()
    words.add_tokens(["wonderful"])
    assert Predictor("words", subject.model, words).fingerprint != before


def test_loads_a_folder(tmp_path: Path) -> None:
    """The command line names folders."""
    subject = Predictor.load(saved(tmp_path / "m", 3))
    assert (subject.name, subject.modality) == ("m", "text")
    examples = texts(4)
    expected = reader(3).logits(examples.values)
    np.testing.assert_allclose(subject.logits(examples.values), expected, atol=1e-6)
    with pytest.raises(ValueError, match="Expected a folder or Hub id of a transformers model"):
        Predictor.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("subject", "values", "message"),
    [
        (reader(0), pictures(), "Expected examples for a model of text, got image"),
        (viewer(), ["a text"], "Expected examples for a model of image, got text"),
        (reader(0), [], "at least one example"),
        (linear(np.zeros((1, 3))), [np.zeros(3)], "at least 2 classes"),
        (linear(np.zeros((2, 3))), [3.0], "Expected examples that are texts, pictures"),
    ],
)
def test_what_cannot_be_asked_is_refused(subject: Predictor, values: Any, message: str) -> None:
    """It would fail deep inside of a processor, or give figures without a meaning."""
    with pytest.raises(ValueError, match=message):
        subject.logits(values)
    assert isinstance(linear(np.zeros((2, 3))).model, Linear)


# ---- examples ------------------------------------------------------------------------------------


def test_a_sample_is_chosen_by_content() -> None:
    """Shuffled data would give another sample, and two reports could not be compared."""
    examples = texts(30)
    chosen = examples.take(examples.sample(10, seed=1))
    turned = examples.take(list(range(30))[::-1])
    again = turned.take(turned.sample(10, seed=1))
    assert again.values == chosen.values
    assert again.labels.tolist() == chosen.labels.tolist()
    assert examples.sample(4, seed=1) == examples.sample(10, seed=1)[:4]
    assert examples.sample(10, seed=2) != examples.sample(10, seed=1)
    assert examples.sample(99, seed=1) != list(range(30))
    assert sorted(examples.sample(99, seed=1)) == list(range(30))


def test_examples_are_read_from_a_data_set() -> None:
    """Labels as names, in the data's own order, would be numbered by chance."""
    plain = Dataset.from_dict({"sentence": ["a", "b", "c"], "label": ["no", "yes", "no"]})
    found = Examples.read(plain)
    assert (found.values, found.names) == (("a", "b", "c"), ("no", "yes"))
    assert found.labels.tolist() == [0, 1, 0]
    features = Features(t=Value("string"), y=ClassLabel(names=["yes", "no"]), g=Value("string"))
    named = Dataset.from_dict({"t": ["a", "b"], "y": [1, 0], "g": ["u", "v"]}, features=features)
    other = Examples.read(named, "t", "y", "g")
    assert (other.names, other.groups) == (("yes", "no"), ("u", "v"))
    assert other.renamed(found.names).labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="Expected the classes no, maybe, got yes, no"):
        other.renamed(("no", "maybe"))


@pytest.mark.parametrize(
    ("columns", "groups", "message"),
    [
        ({"words": ["a"], "label": [0]}, None, "a column with the examples"),
        ({"text": ["a"], "answer": [0]}, None, "a column with the labels"),
        ({"text": ["a", "b"], "label": [0, None]}, None, "without labels|got none for some"),
        ({"text": ["a", "b"], "label": [0, -1]}, None, "cannot be measured without labels"),
        ({"text": ["a", "b"], "label": [0, 1], "g": ["u", None]}, "g", "Expected a group for each"),
        ({"text": ["a", "b"], "label": [0, 1]}, "g", "a column with the groups, 'g'"),
        ({"text": ["a", "b"], "label": [0.5, 1.5]}, None, "Expected a class id"),
    ],
)
def test_data_of_no_use_are_refused(columns: Any, groups: str | None, message: str) -> None:
    """Hours later, or never, one would learn that the labels of a test split are withheld."""
    with pytest.raises(ValueError, match=message):
        Examples.read(Dataset.from_dict(columns), groups_column=groups)


# ---- parts that are kept -------------------------------------------------------------------------


def test_a_part_is_computed_once_for_each_key(tmp_path: Path) -> None:
    """Another model's figures would be taken for this one's."""
    lines: list[str] = []

    def get(key: int) -> float:
        store = ReportStore(tmp_path, lines.append)
        made = store.get("a: part", {"key": key}, lambda: {"x": np.array([float(key)])})
        return float(made["x"][0])

    assert [get(1), get(1), get(2), get(1)] == [1.0, 1.0, 2.0, 1.0]
    assert lines == ["a: part"] * 2


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half a file"])
def test_a_damaged_part_is_made_again(tmp_path: Path, damage: bytes) -> None:
    """A full disk would stop the report for ever."""
    ReportStore(tmp_path, print).get("p", {}, lambda: {"x": np.ones(2)})
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage)
    again = ReportStore(tmp_path, print).get("p", {}, lambda: {"x": np.zeros(2)})
    assert again["x"].tolist() == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "no temporary file is left"
