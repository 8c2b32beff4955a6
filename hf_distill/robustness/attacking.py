"""Attacks of a `RobustnessConfig` on a `Predictor`, with results as arrays."""

from __future__ import annotations

import dataclasses
import json
from functools import lru_cache, partial
from typing import Any

import numpy as np

from hf_distill.evaluation.examples import Examples
from hf_distill.evaluation.predictor import Predictor
from hf_distill.models.input_space import input_space
from hf_distill.robustness.attacks.gradient import Attack, attack_batch
from hf_distill.robustness.attacks.sanity_checks import masked, run_gates
from hf_distill.robustness.attacks.text import TextAttack, attack_texts
from hf_distill.robustness.attacks.words import embedding_neighbours
from hf_distill.robustness.plan import TEXT_SEARCH, RobustnessConfig
from hf_distill.robustness.store import Arrays


def attack_of(name: str, plan: RobustnessConfig, modality: str) -> Attack:
    """Gradient or score-based attack with the configured budget."""
    epsilon, norm = plan.budget(modality)
    steps = {"square": max(1, plan.queries), "fgsm": 1}.get(name, plan.steps)
    return Attack(name, epsilon, norm, steps, restarts=plan.restarts)


def text_attack(
    name: str, plan: RobustnessConfig, neighbours: dict[str, Any] | None = None
) -> TextAttack:
    """Text search attack with the configured budget."""
    level = "character" if name == "characters" else "word"
    return TextAttack(name, level, max_queries=plan.queries, neighbours=neighbours)


def settings_of(name: str, plan: RobustnessConfig, modality: str) -> dict[str, Any]:
    """Settings of an attack for the report, as plain values."""
    if name not in TEXT_SEARCH:
        return dict(attack_of(name, plan, modality).describe())
    attack = text_attack(name, plan, {} if name == "words" else None)
    facts = dataclasses.asdict(attack)
    del facts["neighbours"]
    return {**facts, "edits": list(facts["edits"])}


def attack_examples(
    subject: Predictor, examples: Examples, name: str, plan: RobustnessConfig
) -> Arrays:
    """An attack on the model's inputs: ``original_correct``, ``attacked_correct`` and ``queries``,
    ``(n,)``, and for pictures ``pictures``, ``(n, H, W, C)``, grey levels from 0 to 1.
    """
    attack = attack_of(name, plan, subject.modality)
    space = input_space(subject.task_model, subject.processor)
    size = len(examples)
    right, before = np.zeros(size, bool), np.zeros(size, bool)
    asked, pictures = np.zeros(size, np.int64), list[Any]([None] * size)
    for rows, batch, labels in subject.batches(examples.values, examples.labels, plan.batch_size):
        keys = [examples.keys[row] for row in rows]
        found = attack_batch(subject.model, batch, labels, attack, space, plan.seed, keys)
        right[rows], before[rows] = found.correct.cpu().numpy(), found.clean_correct.cpu().numpy()
        asked[rows] = found.queries.cpu().numpy()
        if space.key == "pixel_values":
            for row, unit in zip(rows, space.to_unit(found.adversarial), strict=True):
                pictures[row] = np.moveaxis(unit.float().cpu().numpy(), 0, -1)
    arrays: Arrays = {
        "original_correct": before,
        "attacked_correct": right & before,
        "queries": asked,
    }
    if space.key == "pixel_values":
        arrays["pictures"] = np.stack(pictures)
    return arrays


def search_for(
    subject: Predictor, examples: Examples, name: str, plan: RobustnessConfig, reference: Predictor
) -> Arrays:
    """A search in the text, with the fields of a `TextAttackResult`."""
    attack = text_attack(name, plan, _neighbours(reference) if name == "words" else None)
    predict = partial(subject.logits, batch_size=plan.batch_size)
    found = attack_texts(predict, examples.values, examples.labels, attack, plan.seed)
    return {**vars(found), "texts": np.array(found.texts)}


@lru_cache(maxsize=2)
def _neighbours(reference: Predictor) -> dict[str, Any]:
    model: Any = reference.model
    return embedding_neighbours(reference.processor, model.get_input_embeddings().weight)


def check_gates(
    subject: Predictor, examples: Examples, name: str, plan: RobustnessConfig
) -> Arrays:
    """Check for masked gradients: ``masked``, and the fields of the checks as columns."""
    attack = attack_of(name, plan, subject.modality)
    space = input_space(subject.task_model, subject.processor)
    batches = subject.batches(examples.values, examples.labels, plan.batch_size)
    gates = run_gates(
        subject.model, [batch[1:] for batch in batches], attack, space, seed=plan.seed
    )
    return {
        "name": np.array([gate.name for gate in gates]),
        "passed": np.array([gate.passed for gate in gates], bool),
        "figures": np.array([json.dumps(gate.figures) for gate in gates]),
        "message": np.array([gate.message for gate in gates]),
        "masked": np.array(masked(gates)),
    }
