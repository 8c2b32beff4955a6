"""Claim of a recipe's card with its tests, sizes and speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_distill.evaluation.generation import side_by_side_samples
from hf_distill.evaluation.latency import measure_speeds, size_on_disk
from hf_distill.evaluation.verdicts import SEEDS, judge, no_word_yet, tests_of
from hf_distill.hub.comparison import mean
from hf_distill.recipe.report import NAMES, unlike
from hf_distill.recipe.robustness import ROBUSTNESS
from hf_distill.recipe.stages import Stage, read_record, versions
from hf_distill.training.run_facts import accuracy_interval, last_components, log_rows
from hf_distill.utils.directions import lower_is_better

SPEED, SAMPLES = "speed", "samples"
EQUAL = "equal training arguments"
BATCH = 8
"""Examples in the batch whose time is measured."""


def claim(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The evidence for the card's first sentence, as `StudentCard.claim` has it, of a report."""
    metric, runs, seeds = facts["metric"], facts["runs"], facts["student_seeds"]
    ours, alone = (
        [runs[f"{role}/seed-{seed}"]["test"][metric] for seed in seeds]
        for role in ("student", "baseline")
    )
    better = not lower_is_better(metric)
    evidence = {"metric": metric, "gain": gain(metric, ours, alone, higher_is_better=better)}
    evidence["arguments"] = unlike(facts["models"]["baseline"]) or EQUAL
    if metric == "accuracy" and ROBUSTNESS in facts and len(seeds) > 1:  # one verdict, not two
        judged = facts[ROBUSTNESS]["verdicts"]["baseline"]["clean"]
        kept = ("low", "high", "p", "p_adjusted", "word")
        evidence["gain"] |= {key: judged[key] for key in kept if judged[key] is not None}
    if metric == "accuracy":
        value = mean(facts["models"]["student"]["test"][metric])
        evidence["interval"] = accuracy_interval(value, facts["examples"]["test"])
    return evidence


def gain(
    metric: str, ours: Sequence[float], alone: Sequence[float], higher_is_better: bool = True
) -> dict[str, Any]:
    """Difference of a metric from the baseline with its test; one value per seed of each."""
    found = judge({metric: (ours, alone)}, higher_is_better={metric: higher_is_better})[metric]
    facts: dict[str, Any] = {"value": found.difference}
    if found.seeds > 1:
        facts |= {"low": found.low, "high": found.high, "level": 0.95}
        facts |= {"method": tests_of(found.seeds), "word": found.word}
        early = found.seeds < SEEDS
        facts |= {"why": no_word_yet(found.seeds)} if early else {"p": found.p}
    return facts


def training_log(facts: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The published student's ``components`` and ``history``, as `StudentCard` has them, and the
    number of ``processes`` that trained it; from the record of its stage."""
    results = read_record(root / f"student/seed-{facts['published_seed']}")["results"]
    names = [row["name"] for row in facts["objective"]]
    return {
        "components": last_components(results["history"], names),
        "history": log_rows(results["history"]),
        "processes": results["processes"],
    }


def robustness_rows(facts: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Rows of the table of the models, of a report on robustness: label -> role -> value."""
    labels = {
        "noise": "accuracy under noise, mean",
        "worst_case": "accuracy under noise, worst",
        "attacked": "accuracy under all attacks",
        "shifted": "accuracy on shifted data",
    }
    rows: dict[str, dict[str, float]] = {}
    for role, figures in facts["roles"].items():
        for figure, label in labels.items():
            if role in NAMES and figure in figures:
                rows.setdefault(label, {})[role] = figures[figure]["mean"]
    return rows


def measured(
    evaluation: Stage,
    models: Mapping[str, Callable[[], nn.Module]],
    folders: Mapping[str, Path],
    batches: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Sizes on disk, and the time of a forward pass of each model in turn; measured once.

    The stage of the evaluation depends on the same models. Of each role, ``models`` loads the
    model, the weights lie in its folder, and its batch has no labels.

    Returns:
        ``measured`` and ``measured_on``, as `StudentCard` has them.
    """

    def work() -> dict[str, Any]:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        speeds = measure_speeds(
            {role: (load().to(device), batches[role]) for role, load in models.items()}
        )
        found = {
            role: {"size_bytes": size_on_disk(folders[role]), **speed.on_card()[0]}
            for role, speed in speeds.items()
        }
        _, on = speeds["student"].on_card()
        return {"measured": found, "measured_on": {**on, "input": _shape(batches["student"])}}

    return _once(evaluation, SPEED, work, batch=BATCH)


def written(
    evaluation: Stage,
    models: Mapping[str, Callable[[], PreTrainedModel]],
    tokenizer: Any,
    prompts: Sequence[Any],
) -> list[dict[str, Any]]:
    """Generated samples of all models, as `StudentCard.samples` has them; done once. Prompts are
    texts, or lists of messages."""

    def work() -> dict[str, Any]:
        device: Any = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = {role: load().to(device) for role, load in models.items()}
        found = side_by_side_samples(loaded, tokenizer, prompts)
        return {"samples": [dataclasses.asdict(sample) for sample in found]}

    found = _once(evaluation, SAMPLES, work, prompts=list(prompts))
    return list(found["samples"])


def _once(
    evaluation: Stage, name: str, work: Callable[[], dict[str, Any]], **inputs: Any
) -> dict[str, Any]:
    """The results of a stage beside the evaluation, with its models and these inputs."""
    inputs |= {"models": evaluation.inputs["models"], "versions": versions()}
    return Stage(name, evaluation.folder.parent / name, inputs).once(work)


def _shape(batch: Mapping[str, Any]) -> str:
    """Size of one example of a batch: ``41 tokens``, ``3 x 28 x 28 values``."""
    for name, unit in (("input_ids", "tokens"), ("pixel_values", "values")):
        if name in batch:
            return f"{' x '.join(map(str, batch[name].shape[1:]))} {unit}"
    return "the test split"
