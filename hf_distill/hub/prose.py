"""The body of the card: sentences, the comparison and the template, from facts already cleaned."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2

ABOUT_THE_TEACHER = re.compile(r"agreement|retention|retained|teacher|kept|(^|_)kl(_|$)")
_LOWER_IS_BETTER = re.compile(
    r"loss|perplexity|error|(^|_)(ece|brier|nll|wer|cer|mse|mae|rmse)(_|$)"
)
_MODELS = {
    "student": "Student",
    "baseline": "Same student, no teacher",
    "control": "The same, on the student's noise",
    "teacher": "Teacher",
}
_SIZES = {
    "parameters": "Parameters",
    "layers": "Layers",
    "hidden_size": "Hidden size",
    "architecture": "Architecture",
}


def body(facts: dict[str, Any]) -> str:
    """The card's Markdown after the front matter, from ``model_cards/model_card.md``."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_templates()), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"show": show, "flat": _flat, "linked": _linked}
    citations = [term["citation"] for term in facts.get("objective", []) if "citation" in term]
    text = environment.get_template("model_card.md").render(
        facts,
        claim=_claim(facts),
        comparison=_comparison(facts),
        citations=list(dict.fromkeys(citations)),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _templates() -> Path:
    """``model_cards``: inside the package in a wheel, beside it in a checkout (and ``-e``)."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "model_cards", package.parent / "model_cards"):
        if (folder / "model_card.md").is_file():
            return folder
    raise FileNotFoundError(
        f"expected model_cards/model_card.md in {package} or beside it: install hf_distill again"
    )


def mean(result: Any) -> float:
    """The number of a result: itself, or its ``mean`` over seeds."""
    return result["mean"] if isinstance(result, dict) else result


def show(value: Any) -> str:
    """A value as a table's cell holds it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} = {show(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(show, value))
    return str(value).replace("|", "\\|").replace("\n", " ")


def _flat(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        if isinstance(value, dict):
            rows += [(f"{name}: {key}", show(item)) for key, item in value.items()]
        else:
            rows.append((name, show(value)))
    return rows


def _linked(source: dict[str, Any]) -> str:
    """A model by name, as a link where it is on the Hub."""
    name = source["name"]
    return f"[{name}](https://huggingface.co/{source['id']})" if source["id"] else f"`{name}`"


def _result(value: Any) -> str:
    spread = value.get("std") if isinstance(value, dict) else None
    digits = 4 if abs(mean(value)) < 10 else 2
    return f"{mean(value):.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")


def _size(parameters: int) -> str:
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.3g} {name}"
    return str(parameters)


def _share(metric: str, student: dict[str, Any], teacher: dict[str, Any]) -> str | None:
    """The share of the teacher's metric that is kept; None where a share says nothing."""
    if metric not in student or metric not in teacher or ABOUT_THE_TEACHER.search(metric):
        return None
    if _LOWER_IS_BETTER.search(metric) or mean(teacher[metric]) <= 0:
        return None
    return f"{100 * mean(student[metric]) / mean(teacher[metric]):.1f} %"


def _claim(facts: dict[str, Any]) -> str:
    """One or two sentences with the numbers that matter; what is unknown is not mentioned."""
    results = facts.get("results", {})
    ours, theirs = results.get("student", {}), results.get("teacher", {})
    name = f"**{facts['model_name'].split('/')[-1]}**"
    teacher = facts.get("teacher", {})
    source = f" {_linked(teacher)}" if "name" in teacher else ""
    metrics = [metric for metric in ours if not ABOUT_THE_TEACHER.search(metric)]
    metric = next((m for m in metrics if m in theirs), metrics[0] if metrics else "")
    examples = facts.get("test_examples")
    where = f" on {examples:,} test examples" if examples else ""
    share = _share(metric, ours, theirs)
    if share:
        numbers = f"{_result(ours[metric])} against {_result(theirs[metric])}{where}"
        text = f"{name} keeps {share} of the {metric} of its teacher{source} ({numbers})"
    elif metric in theirs:
        text = (
            f"{name} reaches {metric} {_result(ours[metric])}{where}; its teacher {source}".rstrip()
        )
        text += f" reaches {_result(theirs[metric])}"
    else:
        text = f"{name} was distilled" + (f" from{source}" if source else "")
        text += f"; it reaches {metric} {_result(ours[metric])}{where}" if metric else ""
    small, large = facts.get("student", {}).get("parameters"), teacher.get("parameters")
    if small and large:
        part = f"{100 * small / large:.0f} % of the teacher's parameters"
        text += f". It has {part} ({_size(small)} against {_size(large)})"
    text += "."
    if metric in results.get("baseline", {}):
        text += (
            f" The same student trained without the teacher reaches "
            f"{_result(results['baseline'][metric])}."
        )
    return text


def _comparison(facts: dict[str, Any]) -> list[list[str]]:
    """The table of the models, a header row first; empty when there is nothing to compare."""
    results = facts.get("results", {})
    sizes = {model: facts.get(model, {}) for model in ("student", "teacher")}
    models = [m for m in _MODELS if m in results or _SIZES.keys() & sizes.get(m, {})]
    for alone in ("baseline", "control"):  # the same model, trained without the teacher
        sizes[alone] = sizes["student"]
    rows: list[list[str]] = []
    for key, label in _SIZES.items():
        values = [sizes[model].get(key) for model in models]
        if any(value is not None for value in values):
            cells = [_size(v) if key == "parameters" and v else show(v or "–") for v in values]
            rows.append([label, *cells])
    metrics = dict.fromkeys(metric for model in models for metric in results.get(model, {}))
    for metric in metrics:
        values = [results.get(model, {}).get(metric) for model in models]
        rows.append([metric, *("–" if value is None else _result(value) for value in values)])
    for metric in metrics:
        teacher = results.get("teacher", {})
        shares = [_share(metric, results.get(model, {}), teacher) for model in models]
        if any(shares):
            rows.append([f"{metric}, share of the teacher's", *(share or "–" for share in shares)])
    return [["", *(_MODELS[model] for model in models)], *rows] if rows else []
