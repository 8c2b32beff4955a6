"""Evaluation of every model on the same examples, with stored intermediate results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np

from hf_distill import __version__
from hf_distill.evaluation.examples import Examples
from hf_distill.evaluation.predictor import Predictor
from hf_distill.robustness.attacking import attack_examples, check_gates, search_for, settings_of
from hf_distill.robustness.invariance import invariance
from hf_distill.robustness.perturbations import perturb
from hf_distill.robustness.plan import TEXT_SEARCH, RobustnessConfig
from hf_distill.robustness.store import Arrays, ReportStore

FORMAT = 1
"""Version of stored parts; raise it when their content changes."""


@dataclass
class ModelAnswers:
    """Outputs of one model.

    Attributes:
        clean: ``(N, C)`` logits of all examples.
        validation: Logits of the validation examples; None: there are none.
        perturbed: Perturbation -> ``(severities, n, C)`` logits.
        shifted: Name of a shifted set -> its logits.
        attacks: Attack -> ``original_correct``, ``attacked_correct``, ``queries`` and more.
        transfer: Attack made on the student alone -> ``(n,)`` right in spite of it.
        invariance: Test -> ``rows`` it applies to, ``failed``.
        gates: Results of `run_gates`, as plain values.
    """

    clean: np.ndarray
    validation: np.ndarray | None = None
    perturbed: dict[str, np.ndarray] = field(default_factory=dict)
    shifted: dict[str, np.ndarray] = field(default_factory=dict)
    attacks: dict[str, Arrays] = field(default_factory=dict)
    transfer: dict[str, np.ndarray] = field(default_factory=dict)
    invariance: dict[str, Arrays] = field(default_factory=dict)
    gates: list[dict[str, Any]] = field(default_factory=list)
    masked: bool = False


class Runner:
    """A checked `RobustnessConfig` carried out model by model, with parts kept in a store."""

    def __init__(
        self,
        plan: RobustnessConfig,
        data: Examples,
        validation: Examples | None,
        shifted: Mapping[str, Examples],
        store: ReportStore,
    ):
        self.plan, self.data, self.validation, self.shifted = plan, data, validation, shifted
        self.store = store
        self.modality = data.modality
        self.rows = data.sample(plan.perturbed_examples, plan.seed)
        self.some = data.take(self.rows)
        self.few = data.take(data.sample(plan.attacked_examples, plan.seed))

    def clean(self, subject: Predictor) -> ModelAnswers:
        """Evaluate clean, validation and shifted examples."""
        logits = self._logits(subject, "clean", self.data)
        found = ModelAnswers(logits)
        if self.validation is not None:
            found.validation = self._logits(subject, "validation", self.validation)
        for name, examples in self.shifted.items():
            found.shifted[name] = self._logits(subject, f"shifted {name}", examples)
        return found

    def perturb(
        self, subjects: Mapping[str, Predictor], outcomes: Mapping[str, ModelAnswers]
    ) -> None:
        """Evaluate every perturbation; perturbed once for all models."""
        plan = self.plan
        for name in dict.fromkeys((*plan.perturbations_for(self.modality), *plan.seen)):
            at = cache(partial(perturb, tuple(self.some.values), name, seed=plan.seed))
            facts = {"perturbation": name, "severities": plan.severities, "seed": plan.seed}
            for key, subject in subjects.items():

                def compute(subject: Predictor = subject, at: Callable[..., Any] = at) -> Arrays:
                    levels = [subject.logits(at(s), plan.batch_size) for s in plan.severities]
                    return {"logits": np.stack(levels)}

                part = self._part(subject, name, self.some, facts, compute)
                outcomes[key].perturbed[name] = part["logits"]

    def attack(self, subject: Predictor, outcome: ModelAnswers, reference: Predictor) -> None:
        """Run every attack on a model; the embeddings of `reference` define neighbouring words."""
        plan = self.plan
        for name in plan.attacks_for(self.modality):
            facts = {"attack": name, "seed": plan.seed, **settings_of(name, plan, self.modality)}
            if name == "words":
                facts["reference"] = reference.fingerprint

            def compute(name: str = name) -> Arrays:
                if name in TEXT_SEARCH:
                    return search_for(subject, self.few, name, plan, reference)
                return attack_examples(subject, self.few, name, plan)

            outcome.attacks[name] = self._part(subject, name, self.few, facts, compute)

    def transfer(
        self, subject: Predictor, outcome: ModelAnswers, origin: ModelAnswers, made_on: str
    ) -> None:
        """Evaluate the adversarial examples of another model."""
        for name, attacked in origin.attacks.items():
            if "texts" not in attacked and "pictures" not in attacked:
                continue  # embeddings are no input that another model could be given
            texts = "texts" in attacked
            values = list(map(str, attacked["texts"]) if texts else attacked["pictures"])
            facts = {"transfer": name, "made on": made_on, "seed": self.plan.seed}
            facts |= settings_of(name, self.plan, self.modality)
            logits = self._logits(subject, f"transfer {name}", self.few, facts, values)
            outcome.transfer[name] = logits.argmax(-1) == self.few.labels

    def invariance(self, subject: Predictor, outcome: ModelAnswers) -> None:
        """Run the invariance tests."""
        for test in self.plan.invariance_for(self.modality):

            def compute(test: str = test) -> Arrays:
                predict = partial(subject.logits, batch_size=self.plan.batch_size)
                found = invariance(predict, self.few.values, test, self.plan.seed)
                return {"rows": found.rows, "failed": found.failed}

            facts = {"invariance": test, "seed": self.plan.seed}
            outcome.invariance[test] = self._part(subject, test, self.few, facts, compute)

    def gates(self, subject: Predictor, outcome: ModelAnswers) -> None:
        """Check for masked gradients on a small sample."""
        plan = self.plan
        by_gradient = set(plan.attacks_for(self.modality)) - set(TEXT_SEARCH)
        if not by_gradient or not plan.gate_examples or not plan.budget(self.modality)[0]:
            return
        sample = self.data.take(self.data.sample(plan.gate_examples, plan.seed))
        name = "fgsm" if "fgsm" in by_gradient and "pgd" not in by_gradient else "pgd"
        facts = {"gates": name, "seed": plan.seed, **settings_of(name, plan, self.modality)}
        found = self._part(
            subject, "gates", sample, facts, lambda: check_gates(subject, sample, name, plan)
        )
        names = ("name", "passed", "figures", "message")
        columns = [found[column].tolist() for column in names]
        outcome.gates = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        outcome.masked = bool(found["masked"])

    def _logits(
        self,
        subject: Predictor,
        name: str,
        examples: Examples,
        facts: Mapping[str, Any] | None = None,
        values: Sequence[Any] | None = None,
    ) -> np.ndarray:
        """Logits of the examples, or of `values` made of them."""
        shown = examples.values if values is None else values

        def compute() -> Arrays:
            return {"logits": subject.logits(shown, self.plan.batch_size)}

        return self._part(subject, name, examples, facts or {}, compute)["logits"]

    def _part(
        self,
        subject: Predictor,
        name: str,
        examples: Examples,
        facts: Mapping[str, Any],
        compute: Callable[[], Arrays],
    ) -> Arrays:
        key = {
            "model": subject.fingerprint,
            "data": examples.fingerprint,
            "version": [__version__, FORMAT],
            **facts,
        }
        return self.store.get(f"{subject.name}: {name}", key, compute)
