"""Layer maps."""

from typing import Any

import pytest

from hf_distill import layer_map


@pytest.mark.parametrize(
    ("spec", "student", "teacher", "expected"),
    [
        ("uniform", 2, 6, ((1, 3), (2, 6))),
        ("uniform", 4, 12, ((1, 3), (2, 6), (3, 9), (4, 12))),  # TinyBERT 4, 12: g(m) = 3m
        ("uniform", 3, 3, ((1, 1), (2, 2), (3, 3))),
        ("uniform", 1, 5, ((1, 5),)),
        ("uniform", 4, 2, ((1, 1), (2, 1), (3, 2), (4, 2))),
        ("skip", 3, 12, ((1, 4), (2, 8))),  # PKD-skip
        ("skip", 2, 4, ((1, 2),)),
        ("last", 2, 6, ((1, 5), (2, 6))),  # PKD-last
        ("last", 3, 3, ((1, 1), (2, 2), (3, 3))),
        (((0, 0), (1, 2)), 2, 6, ((0, 0), (1, 2))),
        ([[-1, -1], [-3, -7]], 2, 6, ((2, 6), (0, 0))),
        ("uniform", 0, 0, ((0, 0),)),  # a pooled embedding
    ],
)
def test_layer_map(spec: Any, student: int, teacher: int, expected: Any) -> None:
    """Off by one, every layer learns from its neighbour's teacher, and training looks normal."""
    assert layer_map(spec, student, teacher) == expected


@pytest.mark.parametrize(
    ("spec", "student", "teacher", "message"),
    [
        (
            "first",
            2,
            6,
            r"\['uniform', 'skip', 'last', 'emd'\], a string .* or pairs \(.*\), got 'first'",
        ),
        ("skip", 1, 6, "student with 1 layer.*Use 'uniform' or explicit pairs"),
        ("last", 4, 2, "at least as many layers as the student, got 2 and 4.*Use 'uniform'"),
        ([(3, 1)], 2, 6, r"pair \(3, 1\): the student has layers 0 \(embeddings\) to 2, got 3"),
        ([(1, 7)], 2, 6, r"pair \(1, 7\): the teacher has layers 0 \(embeddings\) to 6, got 7"),
        ([(-4, 1)], 2, 6, "the student has layers .* to 2, got -4"),
        ([(1, 1), (1, -8)], 2, 6, "the teacher has layers .* to 6, got -8"),
    ],
)
def test_bad_layer_maps(spec: Any, student: int, teacher: int, message: str) -> None:
    """The papers count layers from 0, from 1, with and without embeddings."""
    with pytest.raises(ValueError, match=message):
        layer_map(spec, student, teacher)


@pytest.mark.parametrize("pair", [(1,), (1, 2, 3)])
def test_pairs_are_pairs(pair: tuple[int, ...]) -> None:
    """A triple read as a pair would leave a layer out."""
    with pytest.raises(ValueError, match="pairs"):
        layer_map([pair], 2, 6)
