"""Rows for relations.py, attention.py, decision.py and gradients.py.

The brute forces are loops over Python floats, written from the papers and from what the originals
document; they share nothing with the functions.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from loss_contracts import Loss, by_vector, kept, normal, original
from torch import Tensor

from hf_distill.losses import attention, decision, gradients, relations

Row = Sequence[float]


# Plain arithmetic.
def flat(tensor: Tensor) -> list[list[float]]:
    return tensor.double().flatten(1).tolist()


def dot(a: Row, b: Row) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def minus(a: Row, b: Row) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def length(a: Row) -> float:
    return math.sqrt(dot(a, a))


def unit(a: Row) -> list[float]:
    norm = length(a)
    return [x / norm if norm > 1e-12 else 0.0 for x in a]


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def log_softmax(logits: Row, temperature: float = 1.0) -> list[float]:
    scaled = [x / temperature for x in logits]
    top = max(scaled)
    log_sum = top + math.log(math.fsum(math.exp(x - top) for x in scaled))
    return [x - log_sum for x in scaled]


def kl(log_p: Row, log_q: Row) -> float:
    return math.fsum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))


def values(items: Any) -> Tensor:
    return torch.tensor(items, dtype=torch.float64)


# Between examples.
def brute_rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    def scaled(rows: list[list[float]]) -> list[list[float]]:
        table = [[length(minus(a, b)) for b in rows] for a in rows]
        size = len(rows)
        mean = sum(table[i][j] for i in range(size) for j in range(size) if i != j)
        mean /= size * (size - 1)
        return [[x / mean for x in row] for row in table]

    pairs = zip(scaled(flat(student)), scaled(flat(teacher)), strict=True)
    return values([sum(huber(x) for x in minus(s, t)) / len(s) for s, t in pairs])


def brute_rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    def cosine(rows: list[list[float]], i: int, j: int, k: int) -> float:
        return dot(unit(minus(rows[j], rows[i])), unit(minus(rows[k], rows[i])))

    s, t = flat(student), flat(teacher)
    every = range(len(s))
    return values(
        [
            sum(huber(cosine(s, i, j, k) - cosine(t, i, j, k)) for j in every for k in every)
            / len(s) ** 2
            for i in every
        ]
    )


def brute_rkd(
    student: Tensor, teacher: Tensor, distance_weight: float = 25, angle_weight: float = 50
) -> Tensor:
    distances, angles = brute_rkd_distance(student, teacher), brute_rkd_angle(student, teacher)
    return distance_weight * distances + angle_weight * angles


def brute_similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    def gram(rows: list[list[float]]) -> list[list[float]]:
        return [unit([dot(a, b) for b in rows]) for a in rows]

    pairs = zip(gram(flat(student)), gram(flat(teacher)), strict=True)
    return values([dot(minus(s, t), minus(s, t)) / len(s) for s, t in pairs])


def brute_in_batch_similarity(
    student: Tensor, teacher: Tensor, temperature: float = 0.05, t_squared: bool = False
) -> Tensor:
    def neighbours(rows: list[list[float]], i: int) -> list[float]:
        others = [unit(rows[j]) for j in range(len(rows)) if j != i]
        return log_softmax([dot(unit(rows[i]), other) for other in others], temperature)

    s, t = flat(student), flat(teacher)
    factor = temperature**2 if t_squared else 1.0
    return values([factor * kl(neighbours(t, i), neighbours(s, i)) for i in range(len(s))])


def brute_margin_mse(s: Row, t: Row) -> float:
    return sum(((s[0] - x) - (t[0] - y)) ** 2 for x, y in zip(s[1:], t[1:], strict=True)) / (
        len(s) - 1
    )


# Decisions.
def choice(t: Row) -> int:
    return max(range(len(t)), key=lambda c: (t[c], -c))


def brute_hard_teacher_labels(s: Row, t: Row) -> float:
    return -log_softmax(s)[choice(t)]


def brute_confidence_weighted_kl(
    s: Row, t: Row, temperature: float = 1.0, power: float = 1.0, t_squared: bool = True
) -> float:
    confidence = math.exp(max(log_softmax(t))) ** power
    factor = temperature**2 if t_squared else 1.0
    return factor * confidence * kl(log_softmax(t, temperature), log_softmax(s, temperature))


def brute_label_agreement(s: Row, t: Row) -> float:
    others = (math.exp(x) for c, x in enumerate(log_softmax(s)) if c != choice(t))
    return math.fsum(others)


def brute_margin(s: Row, t: Row) -> float:
    a, b = sorted(range(len(t)), key=lambda c: -t[c])[:2]
    return ((s[a] - s[b]) - (t[a] - t[b])) ** 2


def brute_boundary(s: Row, t: Row, margin: float = 1.0) -> float:
    y, total = choice(t), 0.0
    for c in range(len(t)):
        if c != y:
            total += max(0.0, min(margin, t[y] - t[c]) - (s[y] - s[c])) ** 2
    return total


def brute_reconstruction(s: Row, t: Row, temperature: float = 1.0, t_squared: bool = True) -> float:
    pairs = zip(log_softmax(s, temperature), log_softmax(t, temperature), strict=True)
    squares = math.fsum((math.exp(a) - math.exp(b)) ** 2 for a, b in pairs)
    return squares * temperature**2 if t_squared else squares


# Attention: `one` gets the entries of a query's real keys.
def reduced(maps: list[Any], heads: str) -> list[Any]:
    """(h, T, T) as nested lists -> its heads, or one head that is their mean or sum."""
    if heads == "each":
        return maps
    every = range(len(maps[0]))
    total = [[sum(m[q][k] for m in maps) for k in every] for q in every]
    scale = len(maps) if heads == "mean" else 1
    return [[[x / scale for x in row] for row in total]]


def over_queries(
    student: list[Any],
    teacher: list[Any],
    mask: Tensor | None,
    causal: bool,
    one: Callable[[Row, Row, list[int]], float],
) -> Tensor:
    result = []
    for b, (maps_s, maps_t) in enumerate(zip(student, teacher, strict=True)):
        tokens = len(maps_s[0])
        real = [True] * tokens if mask is None else [bool(x) for x in mask[b].tolist()]
        row = []
        for q in range(tokens):
            keys = [k for k in range(tokens) if real[k] and not (causal and k > q)]
            pairs = zip(maps_s, maps_t, strict=True)
            total = sum(one(s[q], t[q], keys) for s, t in pairs) if real[q] else 0.0
            row.append(total / len(maps_s))
        result.append(row)
    return values(result)


def maps_brute(one: Callable[[Row, Row, list[int]], float]) -> Callable[..., Tensor]:
    def brute(
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None = None,
        heads: str = "each",
        causal: bool = False,
        form: str = "masked",
    ) -> Tensor:
        s, t = ([reduced(x, heads) for x in maps.double().tolist()] for maps in (student, teacher))
        return over_queries(s, t, mask, causal, one if form == "masked" else code_cross_entropy)

    return brute


def squared(s: Row, t: Row, keys: list[int]) -> float:
    return sum((s[k] - t[k]) ** 2 for k in keys)


def kl_of_probabilities(s: Row, t: Row, keys: list[int]) -> float:
    mass_s, mass_t = (sum(x[k] for k in keys) for x in (s, t))
    ratios = ((t[k] / mass_t, s[k] / mass_s) for k in keys)
    return sum(p * math.log(p / q) for p, q in ratios if p > 0)


def cross_entropy(s: Row, t: Row, keys: list[int]) -> float:
    log_s, log_t = log_softmax([s[k] for k in keys]), log_softmax([t[k] for k in keys])
    return -sum(math.exp(p) * q for p, q in zip(log_t, log_s, strict=True))


def code_cross_entropy(s: Row, t: Row, keys: list[int]) -> float:
    log_s, log_t = log_softmax(s), log_softmax(t)
    return -sum(math.exp(log_t[k]) * log_s[k] for k in keys)


def brute_relation_kl(
    student: Tensor,
    teacher: Tensor,
    relation_heads: int,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    def scores(tokens: list[list[float]]) -> list[Any]:
        size = len(tokens[0]) // relation_heads
        heads = [[x[a * size : (a + 1) * size] for x in tokens] for a in range(relation_heads)]
        return [[[dot(x, y) / math.sqrt(size) for y in h] for x in h] for h in heads]

    def one(s: Row, t: Row, keys: list[int]) -> float:
        return kl(log_softmax([t[k] for k in keys]), log_softmax([s[k] for k in keys]))

    s, t = ([scores(x) for x in vectors.double().tolist()] for vectors in (student, teacher))
    return over_queries(s, t, mask, causal, one)


MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1]])  # padding on either side


def scores(seed: int) -> dict[str, Tensor]:
    return {**normal(3, 2, 4, 4)(seed), "mask": MASK}


def probabilities(seed: int) -> dict[str, Tensor]:
    maps = normal(3, 2, 4, 4)(seed)
    return {**{name: x.softmax(-1) for name, x in maps.items()}, "mask": MASK}


def vectors(seed: int) -> dict[str, Tensor]:
    return {**normal(3, 4, 6, scale=1.0)(seed), "mask": MASK}


# Gradients.
def brute_jacobian(
    student: Tensor, teacher: Tensor, normalize: bool = True, mask: Tensor | None = None
) -> Tensor:
    result = []
    for b in range(len(student)):
        rows = []
        for gradient in (student[b], teacher[b]):
            parts = gradient if mask is None else gradient[mask[b] == 1]
            row = parts.double().flatten().tolist()
            rows.append(unit(row) if normalize else row)
        result.append(dot(minus(*rows), minus(*rows)) / len(rows[0]))
    return values(result)


def model(weight: Tensor, images: Tensor) -> Tensor:
    """The models of the reference cases."""
    return torch.tanh(images.flatten(1) @ weight)


def model_gradients(parameters: dict[str, Any], arrays: dict[str, Tensor]) -> dict[str, Any]:
    """The case gives the models' weights; the gradients of their labels' outputs are compared."""
    images = arrays["images"].detach().clone().requires_grad_()
    student, teacher = (
        gradients.input_gradient(model(arrays[name], images), images, arrays["labels"])
        for name in ("student", "teacher_weight")
    )
    return {"student": student, "teacher": teacher, **parameters}


TEMPERATURES = (
    {},
    {"temperature": 4.0},
    {"temperature": 0.5},
    {"temperature": 2.0, "t_squared": False},
)
HEADS = ({}, {"heads": "mean"}, {"heads": "sum"}, {"causal": True})

ROWS = [
    Loss(
        relations.rkd,
        brute_rkd,
        normal(4, 5),
        settings=(
            {},
            {"distance_weight": 1.0, "angle_weight": 0.0},
            {"distance_weight": 0.0, "angle_weight": 1.0},
        ),
        target="relations.rkd",
        decomposable=False,
        broadcasts=True,
    ),
    Loss(
        relations.similarity_preserving,
        brute_similarity_preserving,
        normal(4, 2, 3),
        target="relations.similarity_preserving",
        decomposable=False,
        broadcasts=True,
    ),
    Loss(
        relations.in_batch_similarity,
        brute_in_batch_similarity,
        normal(4, 6),
        settings=({}, {"temperature": 0.5}, {"temperature": 0.2, "t_squared": True}),
        decomposable=False,
        broadcasts=True,
    ),
    Loss(relations.margin_mse, by_vector(brute_margin_mse), normal(4, 5)),
    Loss(
        decision.hard_teacher_labels,
        by_vector(brute_hard_teacher_labels),
        normal(4, 5),
        takes_logits=True,
        zero_at_equality=False,
    ),
    Loss(
        decision.confidence_weighted_kl,
        by_vector(brute_confidence_weighted_kl),
        normal(4, 5),
        settings=(*TEMPERATURES, {"power": 0.0}, {"power": 2.0}),
        takes_logits=True,
        smooth=False,  # the weight is detached; test_confidence_is_detached
    ),
    Loss(
        decision.label_agreement,
        by_vector(brute_label_agreement),
        normal(4, 5),
        takes_logits=True,
        zero_at_equality=False,
    ),
    Loss(decision.margin, by_vector(brute_margin), normal(4, 5), takes_logits=True),
    Loss(
        decision.boundary,
        by_vector(brute_boundary),
        normal(4, 5),
        settings=({}, {"margin": 5.0}),
        # its gradient sums over classes: at +-1e4 it is beyond float16; test_saturated_boundary
    ),
    Loss(
        decision.probability_mse,
        by_vector(brute_reconstruction),
        normal(4, 5),
        settings=TEMPERATURES,
        takes_logits=True,
    ),
    Loss(
        attention.attention_mse,
        maps_brute(squared),
        scores,
        settings=HEADS,
        target="attention.attention_mse",
    ),
    Loss(attention.attention_kl, maps_brute(kl_of_probabilities), probabilities, settings=HEADS),
    Loss(
        attention.attention_ce,
        maps_brute(cross_entropy),
        scores,
        settings=(*HEADS, {"form": "code"}),
        target="attention.attention_ce",
        zero_at_equality=False,
    ),
    Loss(
        attention.relation_kl,
        brute_relation_kl,
        vectors,
        settings=tuple({"relation_heads": a, "causal": c} for a in (1, 3) for c in (False, True)),
        broadcasts=True,
    ),
    Loss(
        gradients.jacobian,
        brute_jacobian,
        lambda seed: {**normal(3, 4, 2)(seed), "mask": MASK},
        settings=({}, {"normalize": False}),
        target="gradients.jacobian",
    ),
]


def over_pairs(ours: Tensor, parameters: dict[str, Any], arrays: dict[str, Tensor]) -> Tensor:
    """TextBrewer divides by the number of real pairs of query and key, Σ length²."""
    return ours[kept(arrays, ours)].sum() / arrays["mask"].sum(-1).square().sum()


ORIGINALS = {
    "RKDLoss": original(),
    "Similarity.similarity_loss": original(),
    "att_mse_loss": over_pairs,
    "att_mse_sum_loss": over_pairs,
    "att_ce_loss": original(),
    "att_ce_mean_loss": original(),
    "Sobolev": original(),
}
# what prepares gradients for jacobian
NO_ROW = ("input_gradient", "projection", "saliency")
PARAMETERS = {
    "gradients.jacobian": model_gradients,
    # TextBrewer's softmax runs over the padded keys too
    "attention.attention_ce": lambda parameters, arrays: {
        "form": "code",
        **parameters,
        **{name: arrays[name] for name in ("student", "teacher", "mask") if name in arrays},
    },
}
