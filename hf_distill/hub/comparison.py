"""The card's claim and its table of the models, from facts already cleaned."""

import re
from typing import Any

from hf_distill.utils.directions import lower_is_better

from .markup import cell, linked, show

_NO_RESULT = re.compile(
    r"agreement|retention|retained|teacher|kept|(^|_)kl(_|$)|acceptance|(?<!cross_)entropy"
)
"""Figures about student and teacher, or that are neither good nor bad: none is a result."""
_MEANINGS = {
    "perplexity": "exp of the mean negative log-likelihood per token",
    "forward_kl_divergence": "KL(teacher‖model), nats per token",
    "reverse_kl_divergence": "KL(model‖teacher), nats per token",
    "entropy": "of the model's own distribution, nats per token",
    "entropy_gap": "the model's entropy minus the teacher's",
    "acceptance_rate": "the expected share of draft tokens that the teacher accepts in "
    "speculative decoding",
}
"""Explanations of the rows of a language model."""
MODELS = {
    "student": "Student",
    "baseline": "Baseline (no teacher)",
    "control": "Control (baseline on the student's noise)",
    "teacher": "Teacher",
}
_SIZES = {
    "parameters": "Parameters",
    "layers": "Layers",
    "hidden_size": "Hidden size",
    "architecture": "Architecture",
}
_MEASURED = {
    "size_bytes": "Size on disk",
    "latency_ms": "Latency, ms per batch",
    "throughput": "Throughput, examples per second",
}
_WORDS = {
    "preliminary": "fewer than 6 seeds, no claim about the method",
    "checkpoint only": "one seed, no claim about the method",
}
"""Verdicts without a p, and the reason if the evidence has none."""


def is_result(metric: str) -> bool:
    return not _NO_RESULT.search(metric.rpartition("/")[2])


def mean(result: Any) -> float:
    """The number of a result: itself, or its ``mean`` over seeds."""
    return result["mean"] if isinstance(result, dict) else result


def size(parameters: int) -> str:
    """A number of parameters in three digits: ``22.7 M``."""
    return _in_units(parameters, {10**9: " B", 10**6: " M", 10**3: " k", 1: ""})


def weight(size_bytes: float) -> str:
    """Bytes in three digits: ``90.9 MB`` (10^6 bytes)."""
    return _in_units(size_bytes, {10**9: " GB", 10**6: " MB", 10**3: " kB", 1: " B"})


def _in_units(value: float, units: dict[int, str]) -> str:
    """Value in the largest unit of which it is at least one after rounding."""
    unit = next((unit for unit in units if value >= 0.9995 * unit), 1)
    shown = f"{value / unit:.3g}" if value < 999.5 * unit else f"{value / unit:,.0f}"
    return shown + units[unit]


def main_metric(facts: dict[str, Any]) -> str:
    """The metric of the claim: the one of its evidence, else the first that the teacher has too."""
    results = facts.get("results", {})
    ours, theirs = results.get("student", {}), results.get("teacher", {})
    named = facts.get("claim", {}).get("metric")
    if named in ours:
        return str(named)
    metrics = [metric for metric in ours if is_result(metric)]
    return next((m for m in metrics if m in theirs), metrics[0] if metrics else "")


def claim(facts: dict[str, Any]) -> str:
    """Summary of the card: the main results in a few sentences."""
    results = facts.get("results", {})
    ours, theirs = results.get("student", {}), results.get("teacher", {})
    name = f"**{cell(facts['model_name'].split('/')[-1])}**"
    teacher = facts.get("teacher", {})
    source = f" {linked(teacher)}" if "name" in teacher else ""
    metric = main_metric(facts)
    shown = cell(metric)
    examples = facts.get("test_examples")
    where = f" on {examples:,} test examples" if examples else ""
    where += _interval(facts.get("claim", {}).get("interval"))
    share = _share(metric, ours, theirs)
    if share:
        numbers = f"{_result(ours[metric])} against {_result(theirs[metric])}{where}"
        text = f"{name} retains {share} of the {shown} of its teacher{source} ({numbers})"
    elif metric in theirs:
        less = " (lower is better)" if lower_is_better(metric) else ""
        text = f"{name} reaches {shown} {_result(ours[metric])}{less}{where}"
        text += f"; its teacher{source} reaches {_result(theirs[metric])}"
    else:
        text = f"{name} was distilled" + (f" from{source}" if source else "")
        text += f"; it reaches {shown} {_result(ours[metric])}{where}" if metric else ""
    return text + "." + _smaller(facts) + _against_alone(facts, metric)


def _interval(found: dict[str, Any] | None) -> str:
    """``; 95 % interval 0.7818 to 0.8170 over the examples, Wilson``."""
    if not found or "low" not in found or "high" not in found:
        return ""
    text = f"; {100 * found.get('level', 0.95):g} % interval {found['low']:.4f} to "
    return f"{text}{found['high']:.4f}, {cell(found.get('method', 'method not stated'))}"


def _smaller(facts: dict[str, Any]) -> str:
    small, large = (facts.get(m, {}).get("parameters") for m in ("student", "teacher"))
    one, other = (facts.get("measured", {}).get(m, {}) for m in ("student", "teacher"))
    fast, slow = one.get("latency_ms"), other.get("latency_ms")
    parts = []
    if small and large:
        share = f"{100 * small / large:.0f} % of the teacher's parameters"
        parts.append(f"has {share} ({size(small)} against {size(large)})")
    if fast and slow:
        times = f"{_latency(one)} against {_latency(other)} per batch"
        apart = "" if _apart(one, other) else ", not distinguishable with these spreads"
        parts.append(f"takes {100 * fast / slow:.0f} % of its time: {times}{apart}")
    return f" It {' and '.join(parts)}." if parts else ""


def _latency(row: dict[str, float]) -> str:
    """Median and, where it was measured, spread: ``12.3 ms (11.9 to 14.0)``."""
    spread = f" ({row['p10_ms']:.3g} to {row['p90_ms']:.3g})" if _spread(row) else ""
    return f"{row['latency_ms']:.3g} ms{spread}"


def _spread(row: dict[str, float]) -> bool:
    return "p10_ms" in row and "p90_ms" in row


def _apart(one: dict[str, float], other: dict[str, float]) -> bool:
    """True unless the spreads of both latencies are known and overlap."""
    if not (_spread(one) and _spread(other)):
        return True
    return one["p90_ms"] < other["p10_ms"] or other["p90_ms"] < one["p10_ms"]


def _against_alone(facts: dict[str, Any], metric: str) -> str:
    """The effect of the teacher, with its test; one that was not tested is called so."""
    alone = facts.get("results", {}).get("baseline", {})
    if metric not in alone:
        return ""
    claimed = facts.get("claim", {})
    gain = claimed.get("gain", {})
    how = f", with {cell(claimed['arguments'])}" if claimed.get("arguments") else ""
    text = (
        f" The baseline (the same student without a teacher{how}) reaches {_result(alone[metric])}"
    )
    if "value" not in gain:
        return f"{text}."
    details = []
    if "low" in gain and "high" in gain:
        level = f"{100 * gain.get('level', 0.95):g} % interval"
        details.append(f"{level} {gain['low']:+.4f} to {gain['high']:+.4f}")
    if "method" in gain:
        details.append(cell(gain["method"]))
    word = gain.get("word", "not tested")
    if "p" in gain and word not in _WORDS:
        adjusted = gain.get("p_adjusted", gain["p"])
        also = f", after Holm {adjusted:.2g}" if adjusted != gain["p"] else ""
        details.append(f"p = {gain['p']:.2g}{also}")
    why = gain.get("why", _WORDS.get(word))
    details.append(cell(f"{word}: {why}" if why else word))
    return f"{text}: a difference of {gain['value']:+.4f} ({', '.join(details)})."


def comparison(facts: dict[str, Any]) -> list[list[str]]:
    """The table of the models, a header row first; empty when there is nothing to compare."""
    results, measured = facts.get("results", {}), facts.get("measured", {})
    sizes = {model: facts.get(model, {}) for model in ("student", "teacher")}
    models = [
        m for m in MODELS if m in results or m in measured or _SIZES.keys() & sizes.get(m, {})
    ]
    for alone in ("baseline", "control"):  # the same model, trained without the teacher
        sizes[alone] = sizes["student"]
        bytes_of = {k: v for k, v in measured.get("student", {}).items() if k == "size_bytes"}
        if alone in models and bytes_of:
            measured = {**measured, alone: {**bytes_of, **measured.get(alone, {})}}
    rows = []
    for key, label in _SIZES.items():
        if any(sizes[model].get(key) is not None for model in models):
            rows.append([label, *(_told(key, sizes[model].get(key)) for model in models)])
    for key, label in _MEASURED.items():
        if any(key in measured.get(model, {}) for model in models):
            rows.append([label, *(_measured(key, measured.get(model, {})) for model in models)])
    rows += _metric_rows(results, models)
    for label, values in facts.get("robustness", {}).get("rows", {}).items():
        rows.append([cell(label), *(_result(values.get(model)) for model in models)])
    return [["", *(MODELS[model] for model in models)], *rows] if rows else []


def _metric_rows(results: dict[str, Any], models: list[str]) -> list[list[str]]:
    teacher = results.get("teacher", {})
    metrics = dict.fromkeys(metric for model in models for metric in results.get(model, {}))
    rows = [
        [cell(metric), *(_result(results.get(model, {}).get(metric)) for model in models)]
        for metric in metrics
    ]
    for metric in metrics:
        shares = [_share(metric, results.get(model, {}), teacher) for model in models]
        if any(shares):
            rows.append([f"{cell(metric)}, retention", *(share or "–" for share in shares)])
    return rows


def explained(facts: dict[str, Any]) -> str:
    """Explanation of a language model's figures in the table; empty for other models."""
    rows = facts.get("results", {}).values()
    if not any("perplexity" in metrics for metrics in rows):
        return ""
    found = [name for name in _MEANINGS if any(name in metrics for metrics in rows)]
    return f"{'; '.join(f'{cell(name)}: {_MEANINGS[name]}' for name in found)}."


def _told(key: str, value: Any) -> str:
    if not value:
        return "–"
    if key == "architecture":  # the head is the task's: without it the columns are narrow
        return cell(re.sub(r"(?<=\w)(For[A-Z]\w*|LMHeadModel|Model)$", "", value))
    return size(value) if key == "parameters" else show(value)


def _measured(key: str, row: dict[str, float]) -> str:
    if key not in row:
        return "–"
    if key == "size_bytes":
        return weight(row[key])
    if key == "latency_ms":
        return _latency(row).replace(" ms", "")
    return f"{row[key]:.3g}" if row[key] < 1000 else f"{row[key]:,.0f}"


def _result(value: Any) -> str:
    if value is None:
        return "–"
    spread = value.get("std") if isinstance(value, dict) else None
    digits = 4 if abs(mean(value)) < 10 else 2
    return f"{mean(value):.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")


def _share(metric: str, student: dict[str, Any], teacher: dict[str, Any]) -> str | None:
    if metric not in student or metric not in teacher or not is_result(metric):
        return None
    if lower_is_better(metric) or mean(teacher[metric]) <= 0:
        return None
    return f"{100 * mean(student[metric]) / mean(teacher[metric]):.1f} %"
