"""Data made worse or even on purpose: exact counts, nothing else touched, the same every time."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, Image, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.robustness.bias import (
    balanced,
    imbalanced,
    with_label_noise,
    with_spurious_patch,
    with_spurious_token,
)

NAMES = ["negative", "neutral", "positive"]


def texts(counts: tuple[int, ...] = (40, 30, 10), named: bool = True) -> Dataset:
    """Rows in a mixed order, with a running number."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    random.Random(5).shuffle(labels)
    label = ClassLabel(names=NAMES[: len(counts)]) if named else Value("int64")
    return Dataset.from_dict(
        {
            "id": list(range(len(labels))),
            "text": [f"text {i}" for i in range(len(labels))],
            "label": labels,
        },
        features=Features(id=Value("int32"), text=Value("string"), label=label),
    )


def pictures(channels: int = 1) -> Dataset:
    """Six classes; class 0 has 12 pictures, the others 6."""
    from PIL.Image import fromarray

    labels = [0] * 6 + list(range(6)) * 6
    shape = (9, 7) if channels == 1 else (9, 7, channels)
    draw = np.random.default_rng(1)
    images = [fromarray(draw.integers(0, 256, shape, dtype=np.uint8)) for _ in labels]
    features = Features(image=Image(), label=Value("int64"))
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


# ---- imbalance and label noise ---------------------------------------------------------------


def test_imbalance_keeps_exact_shares() -> None:
    """The class that is to be rare would be less rare than the table says, or the rows change."""
    data = texts()
    found = imbalanced(data, "label", {0: 0.1, 2: 0.55})
    assert Counter(found["label"]) == {0: 4, 1: 30, 2: 6}  # 5.5 is rounded to the even number
    assert found["id"] == sorted(found["id"])
    for row in found:
        assert row == data[row["id"]]
    assert Counter(data["label"]) == {0: 40, 1: 30, 2: 10}
    assert imbalanced(data, "label", {0: 0.0})["label"] == [x for x in data["label"] if x]
    assert imbalanced(data, "label", {0: 1.0}).to_dict() == data.to_dict()


@pytest.mark.parametrize("named", [True, False], ids=["names", "numbers"])
@pytest.mark.parametrize("rate", [0.0, 0.2, 0.37, 1.0])
def test_label_noise_is_exact(named: bool, rate: float) -> None:
    """A label drawn anew may be right by luck: 40 % noise would be 27 % with three classes."""
    data = texts(named=named)
    found = with_label_noise(data, "label", rate)
    noisy, clean = np.array(found["label"]), np.array(found["clean_label"])
    assert clean.tolist() == data["label"]
    assert (noisy != clean).sum() == round(rate * 80)
    assert set(noisy) <= {0, 1, 2}
    assert found.remove_columns(["clean_label", "label"]).to_dict() == (
        data.remove_columns("label").to_dict()
    )
    assert found.features["label"] == found.features["clean_label"] == data.features["label"]


def test_label_noise_is_symmetric() -> None:
    """Noise that goes from each class to the next one is another, harder kind of noise."""
    found = with_label_noise(texts((1000, 1000, 1000)), "label", 0.6)
    pairs = Counter(
        (a, b) for a, b in zip(found["clean_label"], found["label"], strict=True) if a != b
    )
    assert sum(pairs.values()) == 1800
    expected = 1800 / 6
    assert len(pairs) == 6
    assert max(abs(n - expected) for n in pairs.values()) < 5 * expected**0.5


def test_classes_that_no_row_has() -> None:
    """A class that is missing from a small sample would never be a wrong label."""
    found = with_label_noise(texts((30, 30), named=False), "label", 1.0, classes=5)
    assert set(found["label"]) == {0, 1, 2, 3, 4}


# ---- shortcuts -------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 1 / 3, 0.9, 1.0])
def test_a_token_tells_the_class_at_the_rate(rate: float) -> None:
    """A shortcut weaker than stated makes every method look good at avoiding it."""
    data = texts()
    tokens = ["alpha", "beta", "gamma"]
    found = with_spurious_token(data, "text", "label", rate, tokens)
    told = [tokens.index(text.split()[0]) for text in found["text"]]
    assert [text.split(" ", 1)[1] for text in found["text"]] == data["text"]
    assert found["label"] == data["label"]
    assert found["id"] == data["id"]
    for label, count in enumerate((40, 30, 10)):
        right = sum(t == label for t, c in zip(told, data["label"], strict=True) if c == label)
        assert right == round(rate * count)
        pairs = zip(told, data["label"], strict=True)
        others = Counter(t for t, c in pairs if c == label and t != label)
        assert max(others.values(), default=0) - min(others.values(), default=0) <= 1
        assert len(others) == (2 if rate < 1 else 0) or count - right < 2
    names = found.features["group"].names
    assert len(names) == 9
    for row, token in zip(found, told, strict=True):
        assert row["group"] == 3 * row["label"] + token
        assert names[row["group"]] == f"{NAMES[row['label']]}/{tokens[token]}"


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])
def test_a_patch_tells_the_class_at_the_rate(channels: int) -> None:
    """A patch that JPEG or rounding has changed, or that spills over, is no clean shortcut."""
    data = pictures(channels)
    found = with_spurious_patch(data, "image", "label", 0.5, classes=6, size=2)
    levels = [42, 85, 128, 170, 212, 255]  # 255 (c + 1) / 6, .5 to the even number
    right = Counter()
    for before, after in zip(data, found, strict=True):
        old, new = np.array(before["image"]), np.array(after["image"])
        corner = np.unique(new[:2, :2])
        assert len(corner) == 1
        patch = levels.index(corner[0])
        assert after["group"] == 6 * before["label"] + patch
        right[before["label"]] += patch == before["label"]
        new[:2, :2] = old[:2, :2]
        np.testing.assert_array_equal(old, new)
    assert right == {0: 6, 1: 3, 2: 3, 3: 3, 4: 3, 5: 3}
    assert found.features["group"].names[8] == "1/128"
    assert found.features["image"] == data.features["image"]


# ---- balance ---------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 60))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_balanced_is_balanced(counts: list[int], extra: int) -> None:
    """The baseline that group-robust methods must beat would itself be biased or wasteful."""
    groups = [f"g{i}" for i, count in enumerate(counts) for _ in range(count)]
    data = Dataset.from_dict({"id": range(len(groups)), "kind": groups})
    size = len(counts) + extra
    found = balanced(data, "kind", size=size)
    assert set(Counter(found["kind"]).values()) == {size // len(counts)}
    for group, count in enumerate(counts):
        used = Counter(
            i for i, k in zip(found["id"], found["kind"], strict=True) if k == f"g{group}"
        )
        each = size // len(counts)
        assert len(used) == min(count, each)
        assert max(used.values()) - min(used.values()) <= 1
        assert each < count or max(used.values()) == -(-each // count)


def test_balanced_keeps_the_number_of_steps() -> None:
    """A baseline with fewer training steps loses for that reason."""
    found = balanced(texts(), "label")
    assert Counter(found["label"]) == {0: 26, 1: 26, 2: 26}
    assert found["label"] != sorted(found["label"])


# ---- determinism, errors ---------------------------------------------------------------------

MAKERS = [
    lambda seed: imbalanced(texts(), "label", {0: 0.5, 1: 0.5}, seed),
    lambda seed: with_label_noise(texts(), "label", 0.3, seed),
    lambda seed: with_spurious_token(texts(), "text", "label", 0.5, ["a", "b", "c"], seed),
    lambda seed: with_spurious_patch(pictures(), "image", "label", 0.5, 6, 3, seed),
    lambda seed: balanced(texts(), "label", seed),
]


@pytest.mark.parametrize("make", MAKERS, ids=["imbalance", "noise", "token", "patch", "balanced"])
def test_the_seed_decides_and_nothing_else(make: Any) -> None:
    """Two arms of a comparison would be trained on different data."""
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    first = make(3)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert make(3).to_dict() == first.to_dict()
    assert make(4).to_dict() != first.to_dict()


def test_more_takes_the_same_rows_and_more() -> None:
    """Points of one curve over rates would differ by luck as well as by rate."""
    wrong, kept, told = [], [], []
    for rate in (0.1, 0.3, 0.8):
        noisy = with_label_noise(texts(), "label", rate)
        wrong.append(
            {(row["id"], row["label"]) for row in noisy if row["label"] != row["clean_label"]}
        )
        kept.append(set(imbalanced(texts(), "label", {0: rate, 1: rate})["id"]))
        token = with_spurious_token(texts(), "text", "label", rate, ["0", "1", "2"])
        told.append({row["id"] for row in token if row["text"][0] == str(row["label"])})
    for less, more in itertools.chain.from_iterable(map(itertools.pairwise, (wrong, kept, told))):
        assert less < more


def test_a_format_set_on_the_data_changes_nothing() -> None:
    """Data prepared for torch would crash, or write tensors in place of texts."""
    plain = with_spurious_token(texts(), "text", "label", 0.5, ["a", "b", "c"])
    formatted = with_spurious_token(
        texts().with_format("torch"), "text", "label", 0.5, ["a", "b", "c"]
    )
    assert formatted.to_dict() == plain.to_dict()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: imbalanced(texts(), "lable", {0: 0.5}), "columns id, text, label, got 'lable'"),
        (lambda: imbalanced(texts(), "label", {7: 0.5}), "column 'label', 0, 1, 2, got 7"),
        (lambda: imbalanced(texts(), "label", {0: 1.5}), "from 0 to 1, got 1.5"),
        (lambda: with_label_noise(texts(), "label", -0.1), "from 0 to 1, got -0.1"),
        (lambda: with_label_noise(texts(), "text", 0.1), r"class ids \(integers\) in 'text'"),
        (lambda: with_label_noise(texts(), "label", 0.1, classes=2), "with 2 classes"),
        (lambda: with_label_noise(texts((9,), named=False), "label", 0.1), "C of at least 2"),
        (
            lambda: with_label_noise(with_label_noise(texts(), "label", 0.1), "label", 0.1),
            "no column 'clean_label'",
        ),
        (
            lambda: with_spurious_token(texts(), "text", "label", 0.5, ["a", "b"]),
            "labels from 0 to 1, got 0, 1, 2",
        ),
        (
            lambda: with_spurious_token(texts(), "text", "label", 0.5, ["a", "a", "b"]),
            "different token",
        ),
        (
            lambda: with_spurious_token(pictures(), "image", "label", 0.5, list("abcdef")),
            "texts in the column 'image'.*with_spurious_patch",
        ),
        (lambda: with_spurious_patch(pictures(), "image", "label", 0.5, 6, 7), "patch of 7 pixels"),
        (
            lambda: with_spurious_patch(texts(), "text", "label", 0.5, 3),
            "Expected pictures.*in 'text'",
        ),
        (lambda: balanced(texts(), "label", size=2), "each of the 3 groups in 'label', got 2"),
        (
            lambda: balanced(Dataset.from_dict({"g": [0, None, 1]}), "g"),
            "every row of 'g', got 0, 1, None",
        ),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    """A misspelt class or column would leave the data as it was, and the table say otherwise."""
    with pytest.raises(ValueError, match=message):
        call()


def test_images_of_other_depth_are_refused() -> None:
    """A patch of 255 on 16 bits is nearly black."""
    data = Dataset.from_dict(
        {"image": [[[0] * 9] * 9] * 4, "label": [0, 1] * 2},
        features=Features(image=Array2D((9, 9), "uint16"), label=Value("int64")),
    )
    with pytest.raises(ValueError, match="Expected pictures"):
        with_spurious_patch(data, "image", "label", 0.5)
