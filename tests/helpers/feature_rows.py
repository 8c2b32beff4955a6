"""Rows for features/.

The brute forces are loops over Python floats, written from the papers and from what the originals
document; they share nothing with the functions.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from loss_contracts import Loss, by_vector, normal, original, pair
from torch import Tensor

from hf_distill.losses import features

Row = Sequence[float]
Map = list[list[float]]  # channels, or tokens


def dot(a: Row, b: Row) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def minus(a: Row, b: Row) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def unit(a: Row) -> list[float]:
    norm = math.sqrt(dot(a, a))
    return [x / norm if norm > 1e-12 else 0.0 for x in a]


def squared(a: Row, b: Row) -> float:
    return dot(minus(a, b), minus(a, b))


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def flat(table: Map) -> list[float]:
    return [x for row in table for x in row]


def as_values(items: Any) -> Tensor:
    return torch.tensor(items, dtype=torch.float64)


def by_map(one: Callable[..., float]) -> Callable[..., Tensor]:
    """The brute force over maps (B, C, *positions) from that of one: lists of C lists."""

    def brute(student: Tensor, teacher: Tensor, **settings: Any) -> Tensor:
        s, t = (x.double().flatten(2).tolist() for x in (student, teacher))
        return as_values([one(a, b, **settings) for a, b in zip(s, t, strict=True)])

    return brute


# States.
def brute_hidden_mse(s: Row, t: Row) -> float:
    return squared(s, t) / len(s)


def brute_cosine(s: Row, t: Row) -> float:
    return 1 - dot(s, t) / (math.hypot(*s) * math.hypot(*t))


def brute_pkd(student: Tensor, teacher: Tensor) -> Tensor:
    firsts = [(x if x.ndim == 2 else x[:, 0]).double().tolist() for x in (student, teacher)]
    return as_values([squared(unit(a), unit(b)) for a, b in zip(*firsts, strict=True)])


# Maps.
def brute_hint(s: Map, t: Map) -> float:
    return squared(flat(s), flat(t)) / len(flat(s))


def brute_attention_transfer(s: Map, t: Map, p: float = 2, form: str = "code") -> float:
    def attention(channels: Map) -> list[float]:
        every = range(len(channels[0]))
        return unit([math.fsum(abs(c[n]) ** p for c in channels) / len(channels) for n in every])

    distance = squared(attention(s), attention(t))
    return math.sqrt(distance) if form == "paper" else distance / len(s[0])


def brute_nst(s: Map, t: Map) -> float:
    def kernel(xs: Map, ys: Map) -> float:
        return mean([dot(unit(x), unit(y)) ** 2 for x in xs for y in ys])

    return kernel(s, s) + kernel(t, t) - 2 * kernel(s, t)


def pooled(picture: Map, height: int, width: int) -> Map:
    """Averaged to height x width; the cells overlap where the sizes do not divide."""

    def cell(size: int, cells: int, index: int) -> range:
        return range(index * size // cells, -(-(index + 1) * size // cells))

    rows, columns = len(picture), len(picture[0])
    return [
        [
            mean([picture[y][x] for y in cell(rows, height, i) for x in cell(columns, width, j)])
            for j in range(width)
        ]
        for i in range(height)
    ]


def brute_review_hcl(student: Tensor, teacher: Tensor) -> Tensor:
    result = []
    for s, t in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        levels = [(1.0, s, t)]
        for size in (4, 2, 1):
            if size < len(s[0]):
                small = [[pooled(c, size, size) for c in picture] for picture in (s, t)]
                levels.append((levels[-1][0] / 2, *small))
        parts = (
            weight * brute_hint([flat(c) for c in a], [flat(c) for c in b])
            for weight, a, b in levels
        )
        result.append(math.fsum(parts) / math.fsum(weight for weight, _, _ in levels))
    return as_values(result)


def brute_activation_boundary(s: Map, t: Map, margin: float = 1.0) -> float:
    total = 0.0
    for a, b in zip(flat(s), flat(t), strict=True):
        if b > 0 and a <= margin:
            total += (a - margin) ** 2
        if b <= 0 and a > -margin:
            total += (a + margin) ** 2
    return total / len(flat(s))


# Tokens.
def real_tokens(states: Tensor, mask: Tensor | None) -> list[Map]:
    """Of each example its tokens that are not padding."""
    kept = torch.ones(states.shape[:2]) if mask is None else mask
    return [
        [token for token, real in zip(tokens, reals, strict=True) if real]
        for tokens, reals in zip(states.double().tolist(), kept.tolist(), strict=True)
    ]


def map_positions(first: Tensor, second: Tensor) -> tuple[list[Map], list[Map]]:
    """Of each example the vectors at the positions of the smaller map."""
    height, width = (min(first.shape[d], second.shape[d]) for d in (2, 3))
    result = []
    for maps in (first, second):
        small = [[pooled(c, height, width) for c in picture] for picture in maps.double().tolist()]
        result.append([list(map(list, zip(*[flat(c) for c in p], strict=True))) for p in small])
    return result[0], result[1]


def flow(xs: Map, ys: Map) -> list[float]:
    every = range(len(xs))
    return [
        math.fsum(xs[n][h] * ys[n][k] for n in every) / len(xs)
        for h in range(len(xs[0]))
        for k in range(len(ys[0]))
    ]


def brute_fsp(
    student: Tensor,
    teacher: Tensor,
    student_other: Tensor,
    teacher_other: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    flows = []
    for first, second in ((student, student_other), (teacher, teacher_other)):
        if first.ndim == 4:
            xs, ys = map_positions(first, second)
        else:
            xs, ys = real_tokens(first, mask), real_tokens(second, mask)
        flows.append([flow(x, y) for x, y in zip(xs, ys, strict=True)])
    return as_values([squared(a, b) / len(a) for a, b in zip(*flows, strict=True)])


def brute_mmd(
    student: Tensor,
    teacher: Tensor,
    student_other: Tensor | None = None,
    teacher_other: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    states = (
        (student, student if student_other is None else student_other),
        (teacher, teacher if teacher_other is None else teacher_other),
    )
    (xs, ys), (xt, yt) = ([x.double().tolist() for x in both] for both in states)
    tokens = range(student.shape[1])
    result = torch.zeros(student.shape[:2], dtype=torch.float64)
    for b in range(len(student)):
        real = [n for n in tokens if mask is None or mask[b, n]]
        for i in real:
            differences = (
                dot(xs[b][i], ys[b][j]) / student.shape[-1]
                - dot(xt[b][i], yt[b][j]) / teacher.shape[-1]
                for j in real
            )
            result[b, i] = math.fsum(d * d for d in differences) / len(real)
    return result


# Examples.
def vectors(tensor: Tensor) -> Map:
    rows: Map = tensor.double().flatten(1).tolist()
    return rows


def brute_pkt(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    def affinities(rows: Map) -> Map:
        rows = [[x / (math.hypot(*row) + eps) for x in row] for row in rows]
        table = [[(dot(a, b) + 1) / 2 for b in rows] for a in rows]
        return [[x / math.fsum(row) for x in row] for row in table]

    pairs = zip(affinities(vectors(student)), affinities(vectors(teacher)), strict=True)
    return as_values(
        [
            mean([q * math.log((q + eps) / (p + eps)) for p, q in zip(s, t, strict=True)])
            for s, t in pairs
        ]
    )


def brute_correlation_congruence(
    student: Tensor, teacher: Tensor, form: str = "code", gamma: float = 0.4, order: int = 2
) -> Tensor:
    s, t = vectors(student), vectors(teacher)
    size = len(s)

    def kernel(a: Row, b: Row) -> float:
        terms = ((2 * gamma * dot(unit(a), unit(b))) ** p / math.factorial(p) for p in range(99))
        return math.exp(-2 * gamma) * math.fsum(x for p, x in enumerate(terms) if p <= order)

    if form == "paper":
        differences = [
            [kernel(s[i], s[j]) - kernel(t[i], t[j]) for j in range(size)] for i in range(size)
        ]
        return as_values([mean([d * d for d in row]) for row in differences])
    deltas = [[abs(x) for x in minus(a, b)] for a, b in zip(s, t, strict=True)]
    products = [dot(a, b) * size / (size - 1) for a, b in itertools.pairwise(deltas)]
    return as_values([*products, 0.0])


def brute_cka(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    real = [i for i in range(len(student)) if mask is None or mask[i]]

    def kernel(rows: Map) -> Map:
        rows = [rows[i] for i in real]
        centre = [mean(column) for column in zip(*rows, strict=True)]
        rows = [minus(row, centre) for row in rows]
        table = [[dot(a, b) for b in rows] for a in rows]
        norm = math.sqrt(math.fsum(x * x for x in flat(table)))
        return [[x / norm for x in row] for row in table]

    result = torch.zeros(len(student), dtype=torch.float64)
    pairs = zip(kernel(vectors(student)), kernel(vectors(teacher)), strict=True)
    for i, (s, t) in zip(real, pairs, strict=True):
        result[i] = len(real) / 2 * squared(s, t)
    return result


# Learned.
def brute_vid(student: Tensor, teacher: Tensor, log_scale: Tensor, eps: float = 1e-5) -> Tensor:
    variances = [math.log1p(math.exp(x)) + eps for x in log_scale.double().tolist()]
    maps = zip(*(x.double().flatten(2).tolist() for x in (student, teacher)), strict=True)
    return as_values(
        [
            mean(
                [
                    0.5 * ((x - y) ** 2 / variance + math.log(variance))
                    for a, b, variance in zip(s, t, variances, strict=True)
                    for x, y in zip(a, b, strict=True)
                ]
            )
            for s, t in maps
        ]
    )


def brute_info_nce(student: Tensor, teacher: Tensor, temperature: float = 0.07) -> Tensor:
    s, t = ([unit(row) for row in vectors(x)] for x in (student, teacher))
    result = []
    for i, anchor in enumerate(s):
        scores = [dot(anchor, other) / temperature for other in t]
        top = max(scores)
        result.append(top + math.log(math.fsum(math.exp(x - top) for x in scores)) - scores[i])
    return as_values(result)


MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1]])  # padding on either side


def other_channels(seed: int) -> dict[str, Tensor]:
    """Maps with more positions than channels, or fewer; student and teacher differ in channels."""
    wide = seed % 2
    student = normal(3, 5 if wide else 2, 2, 2 if wide else 3)(seed)["student"]
    teacher = normal(3, 3, 2, 2 if wide else 3)(seed)["teacher"]
    return {"student": student, "teacher": teacher}


def two_layers(seed: int) -> dict[str, Tensor]:
    student, teacher = pair(3, 4, 3, seed=seed, scale=1.0)
    student_other, teacher_other = pair(3, 4, 2, seed=seed + 100, scale=1.0)
    others = {"student_other": student_other, "teacher_other": teacher_other}
    return {"student": student, "teacher": teacher, **others, "mask": MASK}


def two_like_layers(seed: int) -> dict[str, Tensor]:
    """Of the same width within a model, of another between the models."""
    student, student_other = pair(3, 4, 3, seed=seed, scale=1.0)
    teacher, teacher_other = pair(3, 4, 5, seed=seed + 100, scale=1.0)
    others = {"student_other": student_other, "teacher_other": teacher_other}
    return {"student": student, "teacher": teacher, **others, "mask": MASK}


def other_widths(seed: int) -> dict[str, Tensor]:
    return {"student": normal(4, 5)(seed)["student"], "teacher": normal(4, 3)(seed)["teacher"]}


def some_examples(seed: int) -> dict[str, Tensor]:
    inputs = {"student": normal(5, 4)(seed)["student"], "teacher": normal(5, 3)(seed)["teacher"]}
    return {**inputs, "mask": torch.tensor([1, 1, 0, 1, 1])}


def with_scale(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    log_scale = torch.randn(4, generator=generator, dtype=torch.float64)
    return {**normal(3, 4, 2)(seed), "log_scale": log_scale}


ROWS = [
    Loss(
        features.hidden_mse,
        by_vector(brute_hidden_mse),
        normal(2, 3, 5),
        target="features.hidden_mse",
    ),
    Loss(features.cosine, by_vector(brute_cosine), normal(2, 3, 5), target="features.cosine"),
    Loss(features.pkd, brute_pkd, normal(3, 4, 5), target="features.pkd"),
    Loss(features.hint_mse, by_map(brute_hint), normal(3, 4, 2, 2), target="features.hint_mse"),
    Loss(
        features.attention_transfer,
        by_map(brute_attention_transfer),
        other_channels,
        settings=({}, {"p": 1}, {"p": 4}, {"p": 2.5}, {"form": "paper"}),
        target="features.attention_transfer",
    ),
    Loss(features.nst, by_map(brute_nst), other_channels, target="features.nst"),
    Loss(features.review_hcl, brute_review_hcl, normal(2, 2, 5, 6), target="features.review_hcl"),
    Loss(
        features.activation_boundary,
        by_map(brute_activation_boundary),
        normal(3, 4, 2, 2),
        settings=({}, {"margin": 3.0}),
        zero_at_equality=False,
    ),
    Loss(features.fsp, brute_fsp, two_layers, target="features.fsp"),
    Loss(features.mmd, brute_mmd, two_like_layers, target="features.mmd", broadcasts=True),
    Loss(
        features.pkt,
        brute_pkt,
        other_widths,
        settings=({}, {"eps": 1e-3}),
        target="features.pkt",
        zero_at_equality=False,  # its gradient is about eps: test_pkt_at_equality
        decomposable=False,
        broadcasts=True,
    ),
    Loss(
        features.correlation_congruence,
        brute_correlation_congruence,
        normal(4, 5),
        settings=({}, {"form": "paper"}, {"form": "paper", "gamma": 1.5, "order": 3}),
        target="features.correlation_congruence",
        decomposable=False,
        order_invariant=False,  # by definition: neighbours in the batch
        broadcasts=True,  # the paper's form; test_shapes_of_correlation_congruence
    ),
    Loss(features.cka, brute_cka, some_examples, decomposable=False, broadcasts=True),
    Loss(
        features.vid,
        brute_vid,
        with_scale,
        zero_at_equality=False,
        non_negative=False,
        decomposable=False,  # log_scale belongs to no item: test_vid_of_each_example
        order_invariant=False,
    ),
    Loss(
        features.info_nce,
        brute_info_nce,
        normal(4, 5),
        settings=({}, {"temperature": 1.0}),
        zero_at_equality=False,
        decomposable=False,
    ),
]


def over_pairs(ours: Tensor, parameters: dict[str, Any], arrays: dict[str, Tensor]) -> Tensor:
    """TextBrewer divides by the number of real pairs of tokens, Σ length²."""
    mask = arrays.get("mask", torch.ones_like(ours))
    lengths = mask.sum(-1).to(ours.dtype)
    return (ours.sum(-1) * lengths).sum() / lengths.square().sum()


ORIGINALS = {
    "HintLoss": original(),
    "Attention.at_loss": original(),
    "NSTLoss.nst_loss": original(),
    "PKT": original(),
    "Correlation": original(),
    "FSP": original(),
    "VIDLoss": original(),
    "ABLoss": original(lambda p, a: 0.003 * a["student"][0].numel()),
    "hcl_loss": original(),
    "hid_mse_loss": original(),
    "cos_loss": original(),
    "pkd_loss": original(),
    "fsp_loss": original(),
    "gram_loss": original(),
    "mmd_loss": over_pairs,
}
