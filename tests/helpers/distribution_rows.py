"""The rows of `hf_distill.losses.distribution`, with a brute force for each."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from loss_contracts import Loss, by_vector, normal, original, pair
from torch import Tensor

from hf_distill.losses import distribution

Row = Sequence[float]


# Brute force: one item, Python floats, explicit loops.
def log_probs(logits: Row, temperature: float) -> list[float]:
    scaled = [x / temperature for x in logits]
    top = max(scaled)
    log_sum = top + math.log(sum(math.exp(x - top) for x in scaled))
    return [x - log_sum for x in scaled]


def probs(logits: Row, temperature: float) -> list[float]:
    return [math.exp(x) for x in log_probs(logits, temperature)]


def kl(log_p: Row, log_q: Row) -> float:
    return sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True) if math.exp(p) > 0)


def tempered(one: Callable[..., float], default: float = 1.0) -> Callable[..., float]:
    """one(student, teacher, temperature, ...) without T² -> the same with T² and t_squared."""

    def with_t_squared(
        s: Row, t: Row, temperature: float = default, t_squared: bool = True, **settings: float
    ) -> float:
        return one(s, t, temperature, **settings) * (temperature**2 if t_squared else 1)

    return with_t_squared


def forward_kl(s: Row, t: Row, temperature: float) -> float:
    return kl(log_probs(t, temperature), log_probs(s, temperature))


def reverse_kl(s: Row, t: Row, temperature: float) -> float:
    return kl(log_probs(s, temperature), log_probs(t, temperature))


def jeffreys(s: Row, t: Row, temperature: float) -> float:
    log_s, log_t = log_probs(s, temperature), log_probs(t, temperature)
    return sum((math.exp(b) - math.exp(a)) * (b - a) for a, b in zip(log_s, log_t, strict=True))


def soft_cross_entropy(s: Row, t: Row, temperature: float) -> float:
    log_s, p_t = log_probs(s, temperature), probs(t, temperature)
    return -sum(p * a for p, a in zip(p_t, log_s, strict=True) if p > 0)


def jensen_shannon(s: Row, t: Row, temperature: float, beta: float = 0.5) -> float:
    if beta == 0:
        return forward_kl(s, t, temperature)
    if beta == 1:
        return reverse_kl(s, t, temperature)
    total = 0.0
    for a, b in zip(log_probs(s, temperature), log_probs(t, temperature), strict=True):
        p_s, p_t = math.exp(a), math.exp(b)
        mixed = (1 - beta) * p_s + beta * p_t
        if p_t > 0:
            total += beta * p_t * (b - math.log(mixed))
        if p_s > 0:
            total += (1 - beta) * p_s * (a - math.log(mixed))
    return total


def skew_kl(s: Row, t: Row, temperature: float, alpha: float = 0.1) -> float:
    log_s, log_t = log_probs(s, temperature), log_probs(t, temperature)
    if alpha == 0:
        return kl(log_t, log_s)
    total = 0.0
    for a, b in zip(log_s, log_t, strict=True):
        if math.exp(b) > 0:
            mixed = alpha * math.exp(b) + (1 - alpha) * math.exp(a)
            total += math.exp(b) * (b - math.log(mixed))
    return total


def skew_reverse_kl(s: Row, t: Row, temperature: float, alpha: float = 0.1) -> float:
    return skew_kl(t, s, temperature, alpha)


def adaptive_kl(s: Row, t: Row, temperature: float, head: float = 0.5) -> float:
    p_s, p_t = probs(s, temperature), probs(t, temperature)
    if p_s == p_t:
        return 0.0
    in_head, mass, gap_head = set(), 0.0, 0.0
    for c in sorted(range(len(t)), key=lambda c: -p_t[c]):
        # Into the head until what remains outside is less than 1 - head.
        if sum(p_t[d] for d in range(len(t)) if d not in in_head) < 1 - head:
            break
        in_head.add(c)
        mass += p_t[c]
        gap_head += abs(p_t[c] - p_s[c])
    weight = gap_head / sum(abs(a - b) for a, b in zip(p_s, p_t, strict=True))
    return weight * forward_kl(s, t, temperature) + (1 - weight) * reverse_kl(s, t, temperature)


def total_variation(s: Row, t: Row, temperature: float) -> float:
    pairs = zip(probs(s, temperature), probs(t, temperature), strict=True)
    return sum(max(b - a, 0.0) for a, b in pairs)


def alpha_beta(s: Row, t: Row, temperature: float, alpha: float = 0.2, beta: float = 0.7) -> float:
    total, both = 0.0, alpha + beta
    for v, u in zip(log_probs(s, temperature), log_probs(t, temperature), strict=True):
        p, q = math.exp(u), math.exp(v)
        if alpha == 0:
            total += ((q**beta * beta * (v - u) if q > 0 else 0) - q**beta + p**beta) / beta**2
        elif beta == 0:
            term = p**alpha * alpha * (u - v) if p > 0 else 0
            total += (term - p**alpha + q**alpha) / alpha**2
        else:
            mean = alpha / both * p**both + beta / both * q**both
            total += (mean - p**alpha * q**beta) / (alpha * beta)
    return total


def renyi(s: Row, t: Row, temperature: float, alpha: float = 0.5) -> float:
    log_s, log_t = log_probs(s, temperature), log_probs(t, temperature)
    if alpha == 1:
        return kl(log_t, log_s)
    exponents = [alpha * u + (1 - alpha) * v for v, u in zip(log_s, log_t, strict=True)]
    top = max(exponents)
    return (top + math.log(sum(math.exp(e - top) for e in exponents))) / (alpha - 1)


def logit_mse(s: Row, t: Row) -> float:
    return sum((a - b) ** 2 for a, b in zip(s, t, strict=True))


def standardized(x: Row) -> list[float]:
    mean = sum(x) / len(x)
    std = math.sqrt(sum((a - mean) ** 2 for a in x) / (len(x) - 1))
    return [(a - mean) / (1e-7 + std) for a in x]


def logit_standardized_kl(s: Row, t: Row, temperature: float) -> float:
    return forward_kl(standardized(s), standardized(t), temperature)


def binary_kl(s: Row, t: Row, temperature: float) -> float:
    # The softmax of (x, 0) is (sigmoid(x), 1 - sigmoid(x)).
    return sum(forward_kl([a, 0.0], [b, 0.0], temperature) for a, b in zip(s, t, strict=True))


def top_k_kl(s: Row, t: Row, temperature: float, k: int = 8) -> float:
    p_s, p_t = probs(s, temperature), probs(t, temperature)
    log_s, log_t = log_probs(s, temperature), log_probs(t, temperature)
    order = sorted(range(len(t)), key=lambda c: -log_t[c])
    total = kl([log_t[c] for c in order[:k]], [log_s[c] for c in order[:k]])
    rest_s, rest_t = (sum(p[c] for c in order[k:]) for p in (p_s, p_t))
    if rest_t > 0:
        top = max(log_s[c] for c in order[k:])
        log_rest_s = top + math.log(sum(math.exp(log_s[c] - top) for c in order[k:]))
        total += rest_t * (math.log(rest_t) - (math.log(rest_s) if rest_s > 0 else log_rest_s))
    return total


def mutual(student: Tensor, teacher: Tensor, **settings: Any) -> Tensor:
    one = by_vector(tempered(forward_kl))
    if teacher.ndim == student.ndim:
        return one(student, teacher, **settings)
    return sum(one(student, peer, **settings) for peer in teacher) / len(teacher)


def labelled(one: Callable[..., float]) -> Callable[..., Tensor]:
    """The brute force over (..., C) and labels (...) from that of one item."""

    def brute(student: Tensor, teacher: Tensor, labels: Tensor, **settings: Any) -> Tensor:
        width = student.shape[-1]
        values = [
            0.0 if y == -100 else one(s, t, y, **settings)
            for s, t, y in zip(
                student.double().reshape(-1, width).tolist(),
                teacher.double().reshape(-1, width).tolist(),
                labels.flatten().tolist(),
                strict=True,
            )
        ]
        return torch.tensor(values, dtype=torch.float64).reshape(labels.shape)

    return brute


def decoupled_kd(
    s: Row,
    t: Row,
    y: int,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    t_squared: bool = True,
) -> float:
    others = [c for c in range(len(s)) if c != y]
    binary, rest = [], []
    for x in (s, t):
        log_p = log_probs(x, temperature)
        top = max(log_p[c] for c in others)
        log_rest = top + math.log(sum(math.exp(log_p[c] - top) for c in others))
        binary.append([log_p[y], log_rest])
        rest.append(log_probs([x[c] for c in others], temperature))
    value = alpha * kl(binary[1], binary[0]) + beta * kl(rest[1], rest[0])
    return value * (temperature**2 if t_squared else 1)


def nkd(
    s: Row,
    t: Row,
    y: int,
    gamma: float = 1.5,
    temperature: float = 1.0,
    t_squared: bool = True,
) -> float:
    target = -probs(t, 1.0)[y] * log_probs(s, 1.0)[y]
    rest_s, rest_t = ([x[c] for c in range(len(x)) if c != y] for x in (s, t))
    others = soft_cross_entropy(rest_s, rest_t, temperature)
    return target + gamma * others * (temperature**2 if t_squared else 1)


def unit(x: Row) -> list[float]:
    """Centred, of length 1; 0 if constant."""
    mean = sum(x) / len(x)
    length = math.hypot(*(a - mean for a in x))
    return [0.0] * len(x) if length < 1e-12 else [(a - mean) / length for a in x]


def distances(s: Row, t: Row, eps: float) -> list[float]:
    """Terms that add up to 1 - s·t / (‖s‖ ‖t‖ + eps) of the centred s and t."""
    unit_s, unit_t = unit(s), unit(t)
    if unit_s == unit_t:
        return [0.0] * len(s)
    lengths = [math.hypot(*(a - sum(x) / len(x) for a in x)) for x in (s, t)]
    product = lengths[0] * lengths[1] if any(unit_s) and any(unit_t) else 0.0
    ratio = product / (product + eps) if product else 0.0
    terms = [(a - b) ** 2 / 2 for a, b in zip(unit_s, unit_t, strict=True)]
    return [ratio * term + (1 - ratio) / len(s) for term in terms]


def dist(
    student: Tensor,
    teacher: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    eps: float = 1e-8,
    mask: Tensor | None = None,
    t_squared: bool = True,
) -> Tensor:
    width, shape = student.shape[-1], student.shape[:-1]
    kept = [True] * shape.numel() if mask is None else mask.bool().flatten().tolist()
    rows = [i for i, k in enumerate(kept) if k]
    p_s, p_t = (
        [probs(row, temperature) for row in x.double().reshape(-1, width).tolist()]
        for x in (student, teacher)
    )
    values = [0.0] * len(kept)
    for i in rows:
        values[i] += beta * sum(distances(p_s[i], p_t[i], eps))
    for c in range(width):
        shares = distances([p_s[i][c] for i in rows], [p_t[i][c] for i in rows], eps)
        for i, share in zip(rows, shares, strict=True):
            values[i] += gamma * len(rows) * share / width
    factor = temperature**2 if t_squared else 1
    return factor * torch.tensor(values, dtype=torch.float64).reshape(shape)


# Inputs
def with_labels(*shape: int) -> Callable[[int], dict[str, Tensor]]:
    def inputs(seed: int) -> dict[str, Tensor]:
        labels = torch.arange(math.prod(shape[:-1])).reshape(shape[:-1]) % shape[-1]
        labels[-1] = -100
        return {**normal(*shape)(seed), "labels": labels}

    return inputs


def with_mask(seed: int) -> dict[str, Tensor]:
    return {**normal(5, 4)(seed), "mask": torch.tensor([1, 0, 1, 1, 0])}


def peers(seed: int) -> dict[str, Tensor]:
    student, first = pair(4, 5, seed=seed)
    return {"student": student, "teacher": torch.stack([first, pair(4, 5, seed=seed + 100)[0]])}


def vectors(one: Callable[..., float], default: float = 1.0) -> Callable[..., Tensor]:
    return by_vector(tempered(one, default))


TEMPERATURES = ({"temperature": 1.0}, {"temperature": 4.0}, {"temperature": 0.5})
NO_T_SQUARED = {"temperature": 3.0, "t_squared": False}
BETAS = tuple({"beta": b, "temperature": t} for b in (0.0, 0.1, 0.5, 0.7, 1.0) for t in (1.0, 3.0))
SKEWS = tuple({"alpha": a, "temperature": t} for a, t in ((0.1, 1.0), (0.0, 3.0), (0.9, 0.5)))
POWERS = tuple(
    {"alpha": a, "beta": b}
    for a, b in ((0.2, 0.7), (0.5, 0.5), (1, 0), (0, 1), (0.3, 0), (0, 2.0), (1.5, 0.5), (0.01, 1))
)
ORDERS = tuple({"alpha": a} for a in (0.5, 1, 2.0, 0.01, 1 + 1e-4, 10.0))
ROWS = [
    *(
        Loss(
            function,
            vectors(one),
            normal(2, 2, 5),
            (*TEMPERATURES, NO_T_SQUARED),
            target=f"distribution.{function.__name__}",
            takes_logits=True,
        )
        for function, one in (
            (distribution.forward_kl, forward_kl),
            (distribution.reverse_kl, reverse_kl),
            (distribution.jeffreys, jeffreys),
            (distribution.binary_kl, binary_kl),
        )
    ),
    Loss(
        distribution.mutual,
        mutual,
        normal(4, 5),
        TEMPERATURES,
        target="distribution.mutual",
        takes_logits=True,
    ),
    Loss(
        distribution.soft_cross_entropy,
        vectors(soft_cross_entropy),
        normal(4, 5),
        (*TEMPERATURES, NO_T_SQUARED),
        target="distribution.soft_cross_entropy",
        takes_logits=True,
        zero_at_equality=False,
    ),
    Loss(
        distribution.jensen_shannon,
        vectors(jensen_shannon),
        normal(4, 5),
        (*BETAS, {"beta": 0.3, "temperature": 0.5}),
        target="distribution.jensen_shannon",
        takes_logits=True,
    ),
    Loss(
        distribution.skew_kl,
        vectors(skew_kl),
        normal(4, 5),
        SKEWS,
        target="distribution.skew_kl",
        takes_logits=True,
    ),
    Loss(
        distribution.skew_reverse_kl,
        vectors(skew_reverse_kl),
        normal(4, 5),
        SKEWS,
        target="distribution.skew_reverse_kl",
        takes_logits=True,
    ),
    Loss(
        distribution.adaptive_kl,
        vectors(adaptive_kl),
        normal(4, 5),
        ({}, {"head": 0.2, "temperature": 4.0}, {"head": 0.9, "temperature": 0.5}),
        target="distribution.adaptive_kl",
        takes_logits=True,
        smooth=False,  # its weights are detached
    ),
    Loss(
        distribution.total_variation,
        vectors(total_variation),
        normal(4, 5),
        (*TEMPERATURES, NO_T_SQUARED),
        takes_logits=True,
    ),
    Loss(
        distribution.alpha_beta,
        vectors(alpha_beta),
        normal(4, 5),
        ({"temperature": 4.0}, *POWERS),
        takes_logits=True,
    ),
    Loss(
        distribution.renyi,
        vectors(renyi),
        normal(4, 5),
        ({"temperature": 4.0}, *ORDERS),
        takes_logits=True,
    ),
    Loss(
        distribution.logit_mse,
        by_vector(logit_mse),
        normal(4, 5),
        target="distribution.logit_mse",
        takes_logits=True,
    ),
    Loss(
        distribution.logit_standardized_kl,
        vectors(logit_standardized_kl, 2.0),
        normal(4, 5),
        ({}, *TEMPERATURES, NO_T_SQUARED),
        target="distribution.logit_standardized_kl",
        takes_logits=True,
        phantoms=False,
    ),
    Loss(
        distribution.decoupled_kd,
        labelled(decoupled_kd),
        with_labels(4, 5),
        ({}, {"alpha": 0.5, "beta": 2.0, "temperature": 1.0}, {"temperature": 0.5}),
        target="distribution.decoupled_kd",
        takes_logits=True,
    ),
    Loss(
        distribution.nkd,
        labelled(nkd),
        with_labels(4, 5),
        ({}, {"gamma": 0.5, "temperature": 4.0}, {"temperature": 0.5, "t_squared": False}),
        target="distribution.nkd",
        takes_logits=True,
        zero_at_equality=False,
    ),
    Loss(
        distribution.dist,
        dist,
        with_mask,
        ({}, {"beta": 2.0, "gamma": 0.0}, {"beta": 0.0, "temperature": 4.0}, {"eps": 0.0}),
        target="distribution.dist",
        takes_logits=True,
        phantoms=False,
        decomposable=False,
    ),
    Loss(
        distribution.top_k_kl,
        vectors(top_k_kl),
        normal(4, 5),
        ({}, {"k": 1}, {"k": 2, "temperature": 4.0}, {"k": 4}, {"k": 5, "temperature": 0.5}),
        takes_logits=True,
    ),
]


def per_temperature(parameters: dict[str, Any], arrays: dict[str, Tensor]) -> float:
    return 1 / parameters["temperature"] ** 2


def per_class(parameters: dict[str, Any], arrays: dict[str, Tensor]) -> float:
    return per_temperature(parameters, arrays) / arrays["student"].shape[-1]


ORIGINALS = {
    "DistillKL": original(),
    "kd_mse_loss": original(per_class),
    "kd_ce_loss": original(per_temperature),
    "dkd_loss": original(),
    "kd_loss": original(),
    "DIST": original(),
    "NKDLoss": original(),
    "DML": original(),
    "generalized_jsd_loss": original(per_temperature),
    **{
        f"VariousDivergence.{name}": original(per_temperature, mean=False)
        for name in (
            "forward_kl",
            "reverse_kl",
            "js_divergence",
            "adaptive_kl",
            "skewed_forward_kl",
            "skewed_reverse_kl",
        )
    },
}
