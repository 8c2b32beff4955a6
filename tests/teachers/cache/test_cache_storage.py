"""A teacher's outputs on disk: every format is read as it was written, and found by its key."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import xxhash
from torch import Tensor
from torch.utils.data import DataLoader

from hf_distill.teachers.cache.checked_json import FORMAT_VERSION, read_manifest, write_manifest
from hf_distill.teachers.cache.formats import Full, Sampled, States, TopK, from_json, to_json
from hf_distill.teachers.cache.records import ShardRecords, arrow_path
from hf_distill.teachers.cache.shards import read_keys, write_shard
from hf_distill.teachers.cache.store import ExampleStore, MissingExample

BOUNDS = {
    "float32": lambda x: np.zeros_like(x),
    "float16": lambda x: np.maximum(np.abs(x) * 2.0**-11, 2.0**-25),
    "bfloat16": lambda x: np.abs(x) * 2.0**-8,
    "int8": lambda x: np.abs(x).max(-1, keepdims=True) / 254 * (1 + 1e-5),
}
"""The largest error that each type may have, from its number of bits."""
README = "---\nconfigs:\n- config_name: default\n  data_files: data/*.arrow\n---\n"


def key(number: int) -> bytes:
    return xxhash.xxh3_128_digest(str(number).encode())


def on_disk(tmp_path: Path, spec: Any, examples: Sequence[dict[str, Any]]) -> list[Any]:
    """What a store gives back for encoded examples: read from a file, not from memory."""
    rows = [{"key": key(i), **row} for i, row in enumerate(examples)]
    write_shard(tmp_path, 0, rows, spec.columns())
    write_manifest(tmp_path, {"shards": 1})
    return ExampleStore(tmp_path).rows([key(i) for i in range(len(rows))])


def softmax(logits: Tensor, temperature: float = 1.0) -> np.ndarray:
    x = logits.double().numpy() / temperature
    p = np.exp(x - x.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


# ---- whole logits ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("width", [2, 7, 65537])
def test_full_logits_come_back(tmp_path: Path, dtype: str, width: int) -> None:
    """An error above the rounding of the type would teach another distribution."""
    logits = torch.randn(3, width) * torch.tensor([[1e-3], [3.0], [90.0]])
    spec = Full(dtype, width)
    [row] = on_disk(tmp_path, spec, [spec.encode(logits)])
    wanted = logits.double().numpy()
    found = spec.decode_batch([row]).logits
    assert found.dtype == torch.float32
    assert (np.abs(found.double().numpy() - wanted) <= BOUNDS[dtype](wanted)).all()


@pytest.mark.parametrize("dtype", BOUNDS)
def test_masked_logits_stay_masked(tmp_path: Path, dtype: str) -> None:
    """A class that the teacher excludes would get probability, or make the scale infinite."""
    logits = torch.tensor([[1.0, -torch.inf, -2.0], [-torch.inf] * 3, [0.0, 0.0, 0.0]])
    spec = Full(dtype, 3)
    [row] = on_disk(tmp_path, spec, [spec.encode(logits)])
    found = spec.decode_batch([row]).logits
    assert (found.isinf() == logits.isinf()).all()
    assert (found[logits.isinf()] < 0).all()
    assert torch.allclose(found[0, [0, 2]], logits[0, [0, 2]], atol=2 / 254)
    assert found[2].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", BOUNDS)
def test_examples_of_any_number_of_items(tmp_path: Path, dtype: str) -> None:
    """Read together, the items of one example would become those of the next; none is common."""
    examples = [torch.randn(n, 5) for n in (2, 0, 1, 3, 0)]
    spec = Full(dtype, 5)
    rows = on_disk(tmp_path, spec, [spec.encode(e) for e in examples])
    logits, sizes = spec.decode_batch(rows)
    assert sizes == [2, 0, 1, 3, 0]
    for row, wanted, found in zip(rows, examples, logits.split(sizes), strict=True):
        own = spec.decode_batch([row]).logits
        assert found.shape == own.shape == wanted.shape
        assert torch.equal(found, own)
        if len(wanted):
            error = np.abs(found.double().numpy() - wanted.double().numpy())
            assert (error <= BOUNDS[dtype](wanted.double().numpy())).all()


@pytest.mark.parametrize("dtype", BOUNDS)
def test_width_may_differ_between_examples(tmp_path: Path, dtype: str) -> None:
    """A question-answering head has as many classes as the example has tokens."""
    examples = [torch.randn(2, 4), torch.randn(2, 9), torch.randn(0, 3), torch.randn(1, 9)]
    spec = Full(dtype)
    rows = on_disk(tmp_path, spec, [spec.encode(e) for e in examples])
    logits, sizes = spec.decode_batch(rows)
    assert logits.shape == (5, 9)
    assert sizes == [2, 2, 0, 1]
    for row, wanted, found in zip(rows, examples, logits.split(sizes), strict=True):
        own = spec.decode_batch([row]).logits
        assert own.shape == wanted.shape
        assert torch.equal(found[:, : wanted.shape[-1]], own)
        assert (found[:, wanted.shape[-1] :] == -torch.inf).all()
        if len(wanted):
            error = np.abs(own.double().numpy() - wanted.double().numpy())
            assert (error <= BOUNDS[dtype](wanted.double().numpy())).all()


def test_a_row_is_a_copy() -> None:
    """A view of the teacher's output would change with it, and hold the whole batch in memory."""
    logits = torch.zeros(2, 3)
    row = Full("float32", 3).encode(logits)
    logits += 1
    assert row["logits"].tolist() == [0.0] * 6


@pytest.mark.parametrize("spec", [Full("int8", 3), TopK(2, width=3), Sampled(width=3)])
def test_logits_with_a_graph_are_kept(spec: Any) -> None:
    """A teacher that is trained beside the student gives its logits with their graph."""
    logits = torch.randn(2, 3)
    wanted = spec.encode(logits, key(0))
    found = spec.encode((logits.clone().requires_grad_() * 1.0), key(0))
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("spec", "logits", "message"),
    [
        (Full("float32", 3), torch.tensor([[0.0, torch.nan, 1.0]]), "got nan in 1 of 3.*broken"),
        (Full("int8", 3), torch.tensor([[0.0, torch.inf, 1.0]]), "got inf .*broken"),
        (Full("float16", 2), torch.tensor([[7e4, 0.0]]), "float16 cannot hold it"),
        (Full("float16", 2), torch.tensor([[-7e4, 0.0]]), "got -70000.0 .*float16 cannot"),
        (Full("float32", 3), torch.zeros(2, 4), r"with 3 classes, got .*\(2, 4\)"),
        (Full("float32", 3), torch.zeros(3), r"\(items, classes\)"),
        (Full("float32", 3), torch.zeros(1, 3, dtype=torch.int64), "floating-point"),
        (TopK(2, width=3), torch.tensor([[0.0, torch.nan, 1.0]]), "without a softmax"),
        (TopK(2, width=3), torch.full((1, 3), -torch.inf), "all its classes are masked"),
        (Sampled(width=3), torch.tensor([[0.0, torch.nan, 1.0]]), "without a softmax"),
        (Sampled(width=3), torch.tensor([[0.0, torch.inf, 1.0]]), "without a softmax"),
        (Sampled(width=3), torch.full((1, 3), -torch.inf), "all its classes are masked"),
        (Sampled(), torch.zeros(1, 3), "Expected the number of classes as width of Sampled"),
    ],
)
def test_what_cannot_be_kept_is_refused(spec: Any, logits: Tensor, message: str) -> None:
    """Written silently, it would be read as numbers when the teacher is long gone."""
    with pytest.raises(ValueError, match=message):
        spec.encode(logits, key(0))


# ---- the likeliest classes ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("width", "k"), [(2, 1), (5, 5), (5, 9), (300, 20), (65537, 3)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_top_k(tmp_path: Path, dtype: str, width: int, k: int, temperature: float) -> None:
    """A wrong class, log-probability or tail is a wrong target for the student."""
    examples = [torch.randn(n, width) * 4 for n in (3, 0, 2)]
    spec = TopK(k, dtype, temperature, width=width)
    rows = on_disk(tmp_path, spec, [spec.encode(e) for e in examples])
    ids, log_probs, rest, sizes = spec.decode_batch(rows)
    assert sizes == [3, 0, 2]
    p = softmax(torch.cat(examples), temperature)
    k = min(k, width)
    assert ids.shape == log_probs.shape == (5, k)
    for item in range(5):
        order = np.argsort(-p[item])
        assert set(ids[item].tolist()) == set(order[:k].tolist())
        tail = p[item][order[k:]].sum()
        assert rest[item].exp().double().item() == pytest.approx(tail, rel=1e-5, abs=1e-30)
        if tail:  # to the rounding of the logarithm in float32, however small
            assert rest[item].item() == pytest.approx(np.log(tail), rel=2e-7, abs=2e-7)
        wanted = np.log(p[item][ids[item].numpy()])
        bound = 2 * BOUNDS[dtype](wanted).max() + 1e-6  # its own rounding and that of the sum
        assert np.abs(log_probs[item].double().numpy() - wanted).max() <= bound
    total = log_probs.double().exp().sum(-1) + rest.double().exp()
    assert torch.allclose(total, torch.ones(5).double(), atol=1e-6)


def test_top_k_of_a_certain_teacher(tmp_path: Path) -> None:
    """The mass of the others is far below the rounding of 1, and still what the student learns."""
    logits = torch.tensor([[60.0, 0.0, 1.0, -torch.inf]])
    spec = TopK(1, width=4)
    [row] = on_disk(tmp_path, spec, [spec.encode(logits)])
    _, log_probs, rest, _ = spec.decode_batch([row])
    assert rest.item() == pytest.approx(np.logaddexp(-60.0, -59.0), rel=1e-6)
    assert log_probs.item() == pytest.approx(0.0, abs=1e-9)


def test_top_k_marks_masked_classes_as_unused(tmp_path: Path) -> None:
    """A class without probability among the k must not become a NaN."""
    logits = torch.tensor([[0.0, -torch.inf, -torch.inf, -3e4]])
    spec = TopK(3, width=4)
    [row] = on_disk(tmp_path, spec, [spec.encode(logits)])
    ids, log_probs, rest, _ = spec.decode_batch([row])
    assert ids[0, 0] == 0
    assert log_probs[0].tolist() == [0.0, -torch.inf, -torch.inf]
    assert rest.tolist() == [-torch.inf]


def test_top_k_without_tail_is_renormalised(tmp_path: Path) -> None:
    """The form kept for comparison: k probabilities that sum to 1 and nothing for the others."""
    logits = torch.randn(4, 10)
    spec = TopK(3, "float32", tail=False, width=10)
    [row] = on_disk(tmp_path, spec, [spec.encode(logits)])
    assert "tail" not in row
    ids, log_probs, rest, _ = spec.decode_batch([row])
    p = np.take_along_axis(softmax(logits), ids.numpy(), -1)
    assert np.allclose(log_probs.exp().numpy(), p / p.sum(-1, keepdims=True), rtol=1e-5)
    assert (rest == -torch.inf).all()


# ---- draws ----------------------------------------------------------------------------------


def counts_of(spec: Sampled, row: Any, items: int) -> np.ndarray:
    """How often each class was drawn, from what is on disk and not through `decode`."""
    ids = row["ids"].astype(int) + (row["ids_high"].astype(int) << 16 if "ids_high" in row else 0)
    item = (np.cumsum(row["counts"], dtype=int) - 1) // spec.draws
    counts = np.zeros((items, spec.width or 0), int)
    np.add.at(counts, (item, ids), row["counts"])
    return counts


def test_draws_are_unbiased() -> None:
    """The reason for drawing: the mean over seeds is the teacher's distribution itself."""
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -5.0, -torch.inf]])
    seen = []
    for seed in range(300):
        spec = Sampled(7, 1.5, seed, 6)
        row = spec.encode(logits.expand(40, 6), key(seed % 3))
        seen.append(counts_of(spec, row, 40) / 7)
    estimates = np.concatenate(seen)
    p = softmax(logits, 1.5)[0]
    error = estimates.std(0) / np.sqrt(len(estimates))
    assert (np.abs(estimates.mean(0) - p) <= 4 * error).all()
    assert estimates[:, 5].max() == 0
    independent = np.sqrt(p * (1 - p) / 7)  # of so many independent draws
    assert (estimates.std(0)[:3] < 0.8 * independent[:3]).all()


def test_draws_are_stratified() -> None:
    """Of each seventh of the probability one draw: no count is 2 or more away from its mean."""
    logits = torch.randn(50, 30) * 2
    spec = Sampled(7, width=30)
    counts = counts_of(spec, spec.encode(logits, key(1)), 50)
    assert (counts.sum(-1) == 7).all()
    assert (np.abs(counts - 7 * softmax(logits)) < 2).all()


def test_draws_depend_on_seed_and_key_alone() -> None:
    """Else a resumed, reordered or parallel writing would make another cache."""
    logits = torch.randn(20, 50)
    spec = Sampled(width=50)
    first = spec.encode(logits, key(1))
    torch.manual_seed(5)
    torch.rand(3)
    wide = torch.randn(20, 80)
    wide[:, 10:60] = logits
    for same in (logits.clone(), wide[:, 10:60], logits.double()):
        again = spec.encode(same, key(1))
        assert all(np.array_equal(first[name], again[name]) for name in first)
    for other in (spec.encode(logits, key(2)), replace(spec, seed=1).encode(logits, key(1))):
        assert not np.array_equal(counts_of(spec, first, 20), counts_of(spec, other, 20))


def test_draws_of_a_long_example_are_those_of_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long examples are worked on a few items at a time; each must get its own uniforms."""
    logits = torch.randn(20, 50)
    formats = Sampled(width=50), TopK(4, width=50)
    whole = [spec.encode(logits, key(1)) for spec in formats]
    monkeypatch.setattr("hf_distill.teachers.cache.sparse.BLOCK", {True: 150, False: 150})
    for spec, wanted in zip(formats, whole, strict=True):
        found = spec.encode(logits, key(1))
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("width", [2, 65536, 65537, 2**24])
def test_draws_come_back(tmp_path: Path, width: int) -> None:
    """The last class and the third byte of an id are where an id is cut off."""
    logits = torch.full((2, width), -torch.inf)
    logits[0, width - 1] = 0.0
    logits[1, [0, width - 1]] = 0.0
    spec = Sampled(width=width)
    [row] = on_disk(tmp_path, spec, [spec.encode(logits, key(0))])
    ids, log_probs, rest, _ = spec.decode_batch([row])
    assert ids.tolist() == [[width - 1, width - 1], [0, width - 1]]
    assert log_probs[0].tolist() == [0.0, -torch.inf]
    assert log_probs[1].exp().tolist() == pytest.approx([0.5, 0.5])
    assert rest.tolist() == [-torch.inf] * 2


@pytest.mark.parametrize("draws", [1, 12, 255])
def test_draws_of_several_examples(tmp_path: Path, draws: int) -> None:
    """No length is stored: one slot too many, and every later item has its neighbour's classes."""
    examples = [torch.randn(n, 400) * 3 for n in (5, 0, 1, 8)]
    spec = Sampled(draws, width=400)
    rows = on_disk(tmp_path, spec, [spec.encode(e, key(i)) for i, e in enumerate(examples)])
    ids, log_probs, rest, sizes = spec.decode_batch(rows)
    assert sizes == [5, 0, 1, 8]
    assert rest.shape == (14,)
    counts = np.concatenate(
        [counts_of(spec, row, len(e)) for row, e in zip(rows, examples, strict=True)]
    )
    for item in range(14):
        used = log_probs[item] > -torch.inf
        found = dict(zip(ids[item][used].tolist(), log_probs[item][used].tolist(), strict=True))
        wanted = {c: np.log(counts[item, c] / draws) for c in np.flatnonzero(counts[item])}
        assert found == pytest.approx(wanted, abs=1e-6)
        assert (ids[item][~used] == ids[item][0]).all()


@pytest.mark.parametrize(("width", "most"), [(50_000, 36), (100_000, 48)])
def test_twelve_draws_take_at_most_48_bytes(width: int, most: int) -> None:
    """The promise, at its worst: a flat distribution, where every draw is another class."""
    spec = Sampled(12, width=width)
    row = spec.encode(torch.zeros(20, width), key(0))
    assert len(row["counts"]) == 12 * 20
    assert sum(column.nbytes for column in row.values()) == most * 20


def test_file_of_draws_is_small(tmp_path: Path) -> None:
    """Keys, offsets and padding count too: of texts of 64 tokens, each with 100 likely classes."""
    spec, sets, tokens = Sampled(12, width=70_000), [], 64
    for i in range(16):
        logits = torch.full((tokens, 70_000), -12.0)
        logits[:, torch.randperm(70_000)[:100]] = torch.randn(tokens, 100) * 3
        sets.append(spec.encode(logits, key(i)))
    on_disk(tmp_path, spec, sets)
    assert arrow_path(tmp_path, 0).stat().st_size <= 48 * tokens * 16


# ---- hidden states and attentions -----------------------------------------------------------


SHAPES = {
    "hidden.hidden.0": (None, 8),
    "hidden.pooled.0": (8,),
    "hidden.maps.2": (3, None, None),
    "attention.self.1": (2, None, None),
}


@pytest.mark.parametrize("dtype", BOUNDS)
def test_states_come_back(tmp_path: Path, dtype: str) -> None:
    """A transposed or misplaced state would be aligned with the wrong position."""
    spec = States(dtype, SHAPES)
    examples = [
        {
            "hidden.hidden.0": torch.randn(t, 8) * 5,
            "hidden.pooled.0": torch.randn(8),
            "hidden.maps.2": torch.randn(3, h, w),
            "attention.self.1": torch.rand(2, t, t),
        }
        for t, h, w in ((4, 2, 5), (0, 1, 1), (7, 3, 3))
    ]
    rows = on_disk(tmp_path, spec, [spec.encode(e) for e in examples])
    found = spec.decode_batch(rows)
    assert set(spec.decode_batch(rows, ["hidden.pooled.0"])) == {"hidden.pooled.0"}
    for i, wanted in enumerate(examples):
        own = {name: one for name, [one] in spec.decode_batch([rows[i]]).items()}
        for name, tensor in wanted.items():
            assert torch.equal(own[name], found[name][i])
            assert own[name].shape == tensor.shape
            if tensor.numel():
                exact = tensor.double().numpy()
                assert (np.abs(own[name].double().numpy() - exact) <= BOUNDS[dtype](exact)).all()


def test_states_of_another_shape_are_refused() -> None:
    """Reshaped on reading, they would be other numbers in the right shape."""
    spec = States("float32", {"hidden.a.0": (None, 8)})
    with pytest.raises(ValueError, match=r"hidden.a.0 of shape \(None, 8\) .*got \(8, 4\)"):
        spec.encode({"hidden.a.0": torch.zeros(8, 4)})
    with pytest.raises(ValueError, match=r"Expected \['hidden.a.0'\], got \[\]"):
        spec.encode({})


# ---- settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        Full("int8", 5),
        Full(),
        TopK(8, "bfloat16", 2.0, False, 100),
        Sampled(20, 0.5, 3),
        States("int8", SHAPES),
    ],
)
def test_settings_survive_json(tmp_path: Path, spec: Any) -> None:
    """The manifest holds them; read otherwise, every number would be decoded otherwise."""
    write_manifest(tmp_path, {"spec": to_json(spec)})
    assert from_json(read_manifest(tmp_path)["spec"]) == spec


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "dense"}, "a kind of full, top_k, sampled, states, got"),
        ({}, "a kind of full"),
        ([], "a kind of full"),
        ({"kind": "sampled", "samples": 3}, "'samples'.* of sampled; known are draws, temper"),
        ({"kind": "top_k"}, r"setting\(s\) \['k'\] of top_k"),
        ({"kind": "full", "dtype": "float8"}, "'float8'; known are float32, float16, bfloat16"),
        ({"kind": "top_k", "k": 3, "dtype": "int8"}, "'int8'; known are float32"),
        ({"kind": "top_k", "k": 0}, "k to be an integer of at least 1, got 0"),
        ({"kind": "top_k", "k": 3, "tail": 1}, "tail to be true or false"),
        ({"kind": "sampled", "draws": 256}, "at most 255, got 256"),
        ({"kind": "sampled", "draws": True}, "draws to be an integer"),
        ({"kind": "sampled", "width": 2**24 + 1}, "at most 16777216"),
        ({"kind": "sampled", "temperature": 0}, "temperature above 0, got 0"),
        ({"kind": "sampled", "temperature": float("nan")}, "temperature above 0, got nan"),
        ({"kind": "sampled", "seed": -1}, "seed to be an integer from 0 on"),
        ({"kind": "states", "shapes": {"x": [3]}}, "names hidden.<group>.<layer>"),
        ({"kind": "states", "shapes": {"hidden.a.0": [0]}}, "sizes of at least 1"),
        ({"kind": "states", "shapes": {"hidden.a.0": 3}}, "sizes of at least 1"),
    ],
)
def test_bad_settings_are_refused(settings: Any, message: str) -> None:
    """A setting that is passed over is noticed when the cache is written, hours later."""
    with pytest.raises(ValueError, match=message):
        from_json(settings)


# ---- the store ------------------------------------------------------------------------------


FULL = Full("float32", 2)


def cache(path: Path, keys: Sequence[Sequence[bytes]], shards: int | None = None) -> None:
    """A cache with these keys in its shards; the logits of key i, counted through, are (i, -i)."""
    number = 0
    for index, own in enumerate(keys):
        rows = []
        for one in own:
            logits = torch.tensor([[number, -number]], dtype=torch.float32)
            rows.append({"key": one, **FULL.encode(logits)})
            number += 1
        write_shard(path, index, rows, FULL.columns())
    write_manifest(path, {} if shards is None else {"shards": shards})


def numbers(rows: Sequence[Any]) -> list[float]:
    return FULL.decode_batch(rows).logits[:, 0].tolist()


def test_examples_are_found_wherever_they_are(tmp_path: Path) -> None:
    """The wrong row for a key is a plausible target, and nothing would show it."""
    keys = [key(i) for i in range(500)]
    cache(tmp_path, [keys[:200], [], keys[200:201], keys[201:]], 4)
    store = ExampleStore(tmp_path)
    assert len(store) == 500
    order = np.random.default_rng(0).permutation(500).tolist()
    assert numbers(store.rows([keys[i] for i in order])) == order
    assert numbers(store.rows([keys[3], keys[3]])) == [3, 3]
    assert store.missing([*keys, key(501)]) == [key(501)]
    assert store.missing([keys[1], key(501), keys[2], key(502)]) == [key(501), key(502)]
    assert store.nbytes == sum(p.stat().st_size for p in tmp_path.glob("data/*.arrow"))
    assert read_keys(tmp_path, 3) == keys[201:]


def test_keys_that_agree_in_one_half_are_told_apart(tmp_path: Path) -> None:
    """The index compares 8 bytes first; those of a hash rarely agree, and then it must be right."""
    parts = [bytes(8), b"\xff" * 8, b"\x00" * 7 + b"\x01", b"\x80" + bytes(7)]
    keys = [a + b for a in parts for b in parts][::-1]
    cache(tmp_path, [keys[:3], keys[3:12]])
    store = ExampleStore(tmp_path)
    assert numbers(store.rows(keys[:12])) == list(range(12))
    assert store.missing(keys) == keys[12:]


def test_a_key_twice_is_found(tmp_path: Path) -> None:
    """The same example in a data set twice, or written by two processes."""
    cache(tmp_path, [[key(0), key(1)], [key(1), key(2)]])
    found = numbers(ExampleStore(tmp_path).rows([key(0), key(1), key(2)]))
    assert found in ([0, 1, 3], [0, 2, 3])


def test_rows_are_views_of_the_file(tmp_path: Path) -> None:
    """Copied into memory, a cache larger than it could not be used."""
    cache(tmp_path, [[key(i) for i in range(8)]])
    row = ExampleStore(tmp_path).rows([key(2)])[0]
    assert not row["logits"].flags.owndata
    assert not row["logits"].flags.writeable


def test_missing_examples_are_named(tmp_path: Path) -> None:
    """Without the key nobody could say which example it is."""
    cache(tmp_path, [[key(0)]])
    with pytest.raises(MissingExample, match=f"3 example.* 2 of them .*{key(8).hex()}"):
        ExampleStore(tmp_path).rows([key(0), key(8), key(9)])
    with pytest.raises(ValueError, match="keys of 16 bytes"):
        ExampleStore(tmp_path).rows([b"short"])


def test_an_unfinished_cache_says_so(tmp_path: Path) -> None:
    """Half a cache would be half a data set, and training on it would look fine."""
    cache(tmp_path, [[key(0)], [key(1)], [key(2)]], shards=5)
    arrow_path(tmp_path, 1).with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r"Expected 5 shards .* 2 are finished \(shard-00001"):
        ExampleStore(tmp_path)
    store = ExampleStore(tmp_path, partial=True)
    assert store.shards == (0, 2)
    assert numbers(store.rows([key(2), key(0)])) == [2, 0]


def test_an_empty_cache_holds_nothing(tmp_path: Path) -> None:
    """A writer that starts looks what is there before the first shard."""
    write_manifest(tmp_path, {"shards": 3})
    store = ExampleStore(tmp_path, partial=True)
    assert len(store) == 0
    assert store.missing([key(0)]) == [key(0)]


def test_new_shards_are_taken_in(tmp_path: Path) -> None:
    """A run that adds examples to a cache must find them without starting anew."""
    cache(tmp_path, [[key(0), key(1)]])
    store = ExampleStore(tmp_path)
    assert store.missing([key(5)]) == [key(5)]
    rows = [{"key": key(5), **FULL.encode(torch.tensor([[5.0, -5.0]]))}]
    write_shard(tmp_path, 7, rows, FULL.columns())
    store.refresh()
    assert numbers(store.rows([key(5), key(1)])) == [5, 1]
    assert store.shards == (0, 7)


class _Reading(torch.utils.data.Dataset):
    def __init__(self, store: ExampleStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> float:
        return numbers(self.store.rows([key(index)]))[0]


def test_data_loader_workers_read_the_same(tmp_path: Path) -> None:
    """A handle shared between forked workers would give one the bytes that another asked for."""
    cache(tmp_path, [[key(i) for i in range(25)], [key(i) for i in range(25, 40)]], 2)
    store = ExampleStore(tmp_path)
    loader = DataLoader(_Reading(store), batch_size=5, num_workers=2)
    assert torch.cat(list(loader)).tolist() == list(range(40))
    again = pickle.loads(pickle.dumps(store))  # as spawned workers get it
    assert numbers(again.rows([key(39), key(0)])) == [39, 0]


def test_many_batches_in_one_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large shard is written in parts; a row must be looked up in the right one."""
    monkeypatch.setattr("hf_distill.teachers.cache.shards.BATCH_BYTES", 64)
    keys = [key(i) for i in range(50)]
    cache(tmp_path, [keys[:31], keys[31:]])
    store = ExampleStore(tmp_path)
    assert numbers(store.rows(keys[::-1])) == list(range(50))[::-1]
    assert len(datasets.Dataset.from_file(str(arrow_path(tmp_path, 0)))) == 31


# ---- plain `datasets` -----------------------------------------------------------------------


def test_datasets_reads_a_cache(tmp_path: Path) -> None:
    """Who has no hf_distill, or streams from the Hub, must read the same numbers."""
    folder = tmp_path / "cache"
    spec = States("float16", {"hidden.a.0": (None, 4)})
    sampled = Sampled(width=70_000)
    columns = {**spec.columns(), **sampled.columns(), **Full("bfloat16", 3).columns()}
    tensors, rows = [torch.randn(i + 1, 4) for i in range(6)], []
    for i, tensor in enumerate(tensors):
        row = spec.encode({"hidden.a.0": tensor}) | Full("bfloat16", 3).encode(torch.ones(1, 3))
        row |= sampled.encode(torch.randn(2, 70_000) * 5, key(i))
        rows.append({"key": key(i), **row})
    for index in range(2):
        write_shard(folder, index, rows[index::2], datasets.Features(columns))
    write_manifest(folder, {"shards": 2})
    (folder / "README.md").write_text(README)
    before = sorted(folder.rglob("*"))
    options = {"split": "train", "cache_dir": str(tmp_path / "hf")}
    plain = datasets.load_dataset(str(folder), **options)
    streamed = datasets.load_dataset(str(folder), streaming=True, **options)
    files = str(folder / "data" / "*.arrow")
    direct = datasets.load_dataset("arrow", data_files=files, streaming=True, **options)
    for found in (plain, streamed, direct):
        seen = {row["key"]: row for row in found}
        assert set(seen) == {row["key"] for row in rows}
        for row in rows:
            for name in columns:
                assert np.array_equal(np.array(seen[row["key"]][name]), row[name]), name
        assert dict(found.features) == {"key": datasets.Value("binary"), **columns}
    assert sorted(folder.rglob("*")) == before


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    """A rebuilt shard must be the one that was lost, and its checksum show it."""
    for part in ("a", "b"):
        cache(tmp_path / part, [[key(i) for i in range(20)], [key(30)]], 2)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 5
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_manifest_has_the_version(tmp_path: Path) -> None:
    """A later layout, read as this one, would give other numbers."""
    write_manifest(tmp_path, {"shards": 1, "what": [1.5, None, "ü"]})
    wanted = {"shards": 1, "what": [1.5, None, "ü"], "format_version": FORMAT_VERSION}
    assert read_manifest(tmp_path) == wanted
    assert ShardRecords(tmp_path).finished() == set()
    assert os.listdir(tmp_path) == ["cache.json"]
