"""The card's front matter, and the student's results as the Hub reads them."""

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from .comparison import is_result, main_metric, mean

TAGS = ("distillation", "knowledge-distillation", "hf_distill", "generated_from_trainer")
_KEYS = """
language license license_name license_link library_name pipeline_tag base_model base_model_relation
teacher_model datasets metrics tags co2_eq_emissions model-index
"""
KEYS = tuple(_KEYS.split())
"""The order of the front matter. Other keys, which a person added, are kept by `write`."""


def metadata(facts: dict[str, Any]) -> dict[str, Any]:
    """The front matter. The model-index holds the student's results, never the teacher's."""
    base, data = facts.get("base", {}).get("id"), facts.get("data", {})
    teacher = facts.get("teacher", {})
    relation = "adapter" if facts["library_name"] == "peft" else "finetune"
    student = facts.get("results", {}).get("student", {})
    metrics = [metric for metric in student if is_result(metric)]
    results = _results(facts, metrics)
    methods = [term["name"] for term in facts.get("objective", [])]
    found = ModelCardData(
        language=facts.get("language"),
        license=facts.get("license"),
        license_name=facts.get("license_name"),
        license_link=facts.get("license_link"),
        library_name=facts["library_name"],
        pipeline_tag=facts.get("task"),
        base_model=base,
        base_model_relation=facts.get("base_model_relation", relation) if base else None,
        teacher_model=None if "how" in teacher else teacher.get("id"),
        datasets=[data["id"]] if data.get("id") else None,
        metrics=metrics,
        tags=list(dict.fromkeys([*TAGS, *methods, *facts.get("tags", [])])),
        co2_eq_emissions=_emissions(facts),
        model_name=facts["model_name"].split("/")[-1],
        eval_results=results,
    ).to_dict()
    if not results:
        del found["model-index"]
    return {key: found[key] for key in KEYS if found.get(key)}


def eval_entries(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The main result for ``.eval_results/*.yaml``, by which the Hub ranks models on a benchmark.

    Raises:
        ValueError: the data set is not one of the Hub's, or there is no result.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    data, metric = facts.get("data", {}), main_metric(facts)
    if not data.get("id") or not metric:
        raise ValueError(
            "`.eval_results` needs a result of the student on a data set of the Hub, got "
            f"{metric or 'no metric'} on {data.get('name', 'no data set')}: give "
            "`data={'name': 'namespace/name'}`, or write the card without eval_results."
        )
    notes = [metric, f"split {data['test_split']}" if "test_split" in data else ""]
    notes.append(f"{facts['test_examples']:,} examples" if "test_examples" in facts else "")
    entry = EvalResultEntry(
        dataset_id=data["id"],
        task_id=data.get("task_id") or data.get("config") or "default",
        value=mean(facts["results"]["student"][metric]),
        dataset_revision=data.get("revision"),
        notes=", ".join(filter(None, notes)),
    )
    return eval_result_entries_to_yaml([entry])


def _results(facts: dict[str, Any], metrics: list[str]) -> list[EvalResult]:
    data = facts.get("data", {})
    if "task" not in facts or "name" not in data:
        return []
    student = facts.get("results", {}).get("student", {})
    rows: list[dict[str, Any]] = [{"type": m, "value": mean(student[m])} for m in metrics]
    rows += facts.get("robustness", {}).get("metrics", [])
    slug = re.sub(r"\W+", "-", data["name"].lower()).strip("-") or "dataset"
    return [
        EvalResult(
            task_type=facts["task"],
            dataset_type=data["id"] or slug,
            dataset_name=data["name"],
            dataset_config=data.get("config"),
            dataset_split=data.get("test_split"),
            dataset_revision=data.get("revision"),
            metric_type=row["type"],
            metric_name=row.get("name"),
            metric_value=row["value"],
            metric_args=row.get("args"),
        )
        for row in rows
    ]


def _emissions(facts: dict[str, Any]) -> dict[str, Any] | None:
    carbon = facts.get("carbon", {})
    if "kg" not in carbon:
        return None
    told = {
        "emissions": 1000 * carbon["kg"],
        "source": carbon.get("tool"),
        "training_type": "fine-tuning",
        "geographical_location": carbon.get("country"),
        "hardware_used": carbon.get("hardware"),
    }
    return {key: value for key, value in told.items() if value is not None}
