"""Robustness stage of a recipe, and its part of report and card."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_distill.evaluation import examples as raw
from hf_distill.evaluation.predictor import Predictor
from hf_distill.objectives import IAD, FreeLB, OnPerturbed, Smoothness
from hf_distill.recipe.data_section import Data
from hf_distill.recipe.errors import RecipeError, refusing
from hf_distill.recipe.examples import RecipeExamples, load_source
from hf_distill.recipe.labels import CLASS, NONE
from hf_distill.recipe.schedule import TEACHER, objectives
from hf_distill.recipe.schema import CONTROL, Recipe
from hf_distill.recipe.sections import RobustnessSection
from hf_distill.recipe.stages import Stage, versions
from hf_distill.robustness import tables
from hf_distill.robustness.comparing import check_requirements
from hf_distill.robustness.plan import RobustnessConfig
from hf_distill.robustness.report import evaluate_robustness

ROBUSTNESS = "robustness"
FILES = ("severity.png", "reliability.png")
"""Published plots."""
_MODALITIES = {"text_classification": "text", "image_classification": "image"}
_ROLES = ("baseline", CONTROL, "student", TEACHER)
_NEUTRAL = ("require", "batch_size", "shifted")
_ROBUST = (FreeLB, IAD, OnPerturbed, Smoothness)
"""Objectives that make robust: with one of them a control is due."""


class Robustness:
    """The stage that measures robustness, of a recipe with a section ``robustness``.

    Raises:
        RecipeError: perturbations, attacks or requirements that do not exist or are not for the
            recipe's kind of examples; shifted sets that cannot be loaded or have other classes.
    """

    def __init__(self, recipe: Recipe, data: RecipeExamples, say: Callable[[str], None]):
        assert recipe.robustness is not None
        self.recipe, self.say = recipe, say
        self.section: RobustnessSection = recipe.robustness
        if data.labels.kind not in (CLASS, NONE) and recipe.task in _MODALITIES:
            raise RecipeError(
                "`robustness` measures classifiers with one class per example, and the labels are "
                f"{data.labels.kind}. Take it away."
            )
        with refusing("`robustness`", ValueError):
            self._check()
            self.test = self._read(data, "test", self.section.groups)
            self.validation = self._read(data, "validation", None)
            shifted = self.section.shifted.items()
            self.shifted = {name: self._shifted(name, source) for name, source in shifted}

    def _check(self) -> None:
        if self.recipe.task not in _MODALITIES:
            raise RecipeError(
                f"`robustness` measures classifiers, and {self.recipe.task} is none. Take it away."
            )
        modality, section = _MODALITIES[self.recipe.task], self.section
        if self.recipe.data.text_pair_column is not None:
            raise RecipeError("`robustness` is for single texts: pairs cannot be perturbed yet.")
        section.perturbations_for(modality)
        section.attacks_for(modality)
        section.invariance_for(modality)
        check_requirements(section.require, section, modality, section.shifted)

    @property
    def _input(self) -> str:
        data = self.recipe.data
        return data.text_column if self.recipe.task == "text_classification" else data.image_column

    def _read(self, data: RecipeExamples, split: str, groups: str | None) -> raw.Examples:
        found = raw.Examples.read(data.raw[split], self._input, "labels", groups)
        return replace(found, names=tuple(data.names))

    def _shifted(self, name: str, source: str) -> raw.Examples:
        data = self.recipe.data
        loaded, _ = load_source(Data(source), self.recipe.file.parent)
        split = data.test_split if data.test_split in loaded else next(iter(loaded))
        with refusing(f"`robustness.shifted.{name}`", ValueError):
            found = raw.Examples.read(loaded[split], self._input, data.label_column)
            return found.renamed(self.test.names)

    def stage(self, models: Stage) -> Stage:
        """The stage, with all its inputs; ``models`` is that of the evaluation."""
        plan = dataclasses.asdict(self.section).items()
        inputs = {
            "models": models.inputs["models"],
            "data": {
                "test": self.test.fingerprint,
                "groups": self.test.groups_fingerprint,
                "validation": self.validation.fingerprint,
                "shifted": {name: one.fingerprint for name, one in self.shifted.items()},
            },
            "plan": {key: value for key, value in plan if key not in _NEUTRAL},
            "versions": versions(),
        }
        return Stage(ROBUSTNESS, self.recipe.root / ROBUSTNESS, inputs)

    def measure(
        self,
        models: Mapping[str, Callable[[], PreTrainedModel]],
        processors: Mapping[str, Any],
        folder: Path,
    ) -> dict[str, Any]:
        """The report's facts.

        Of each stage (``teacher``, ``baseline/seed-0``, …) ``models`` loads the model. Parts are
        kept in the folder, from which an interrupted report goes on.
        """
        limit = self.recipe.data.max_length
        roles: dict[str, dict[int, Predictor]] = {}
        for key, load in models.items():
            role, _, seed = key.partition("/seed-")
            if role in _ROLES:
                subject = Predictor(key, load(), processors[key], max_length=limit)
                roles.setdefault(role, {})[int(seed or self.recipe.seed)] = subject
        teachers = list(roles.pop(TEACHER).values())
        return evaluate_robustness(
            {**roles, TEACHER: teachers[0] if len(teachers) == 1 else teachers},
            self.test,
            plan=self.plan,
            validation=self.validation,
            shifted=self.shifted,
            folder=folder,
            say=lambda line: self.say(f"{ROBUSTNESS}: {line}"),
        ).facts

    @property
    def plan(self) -> RobustnessConfig:
        """Settings of the section; a robust objective of the student is detected."""
        section = self.section
        fields = {f.name: getattr(section, f.name) for f in dataclasses.fields(RobustnessConfig)}
        parts = objectives(self.recipe)["student"].parts
        if any(isinstance(part, _ROBUST) for _, part in parts):
            fields["robust_objective"] = True
        return RobustnessConfig(**fields)


def in_report(facts: Mapping[str, Any]) -> str:
    """The verdicts in Markdown, for the recipe's report."""
    verdicts = facts["verdicts"]["baseline"]
    return (
        f"## Robustness\n\n{tables.verdict_table(verdicts, 'baseline', facts['plan']['level'])}\n\n"
        f"{tables.sentences(verdicts, 'baseline')}\n\nAll figures, settings and plots: "
        "[robustness.md](robustness.md).\n"
    )


def on_card(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Robustness section of the card as plain values."""
    verdicts = facts["verdicts"]["baseline"]
    return {
        "verdicts": tables.verdict_table(verdicts, "baseline", facts["plan"]["level"]),
        "sentences": tables.sentences(verdicts, "baseline"),
        "figures": tables.figure_table(facts),
        "attacks": tables.attack_table(facts) if facts["attacks"] else "",
        "notes": list(facts["notes"]),
        "metrics": _metrics(facts),
        "plots": [name for name in FILES if name != "severity.png" or facts["perturbations"]],
    }


_AXES = {"accuracy": "clean"}
"""Figure -> judged metric, where the names differ."""
_TYPES = ("nll", "brier", "ece", "mce")


def _metrics(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the card's model-index: type, unique name, value, arguments."""
    student, verdicts = facts["roles"]["student"], facts["verdicts"]["baseline"]
    seeds, rows = len(student["accuracy"]["values"]), []
    for figure in _listed(student):
        arguments: dict[str, Any] = {"train_seeds": seeds, "seed": facts["plan"]["seed"]}
        arguments |= _circumstances(figure, facts)
        verdict = verdicts.get(_AXES.get(figure, figure))
        if verdict is not None:
            arguments["delta_vs_no_teacher"] = verdict["difference"]
            if verdict["low"] is not None:
                arguments["ci95"] = [verdict["low"], verdict["high"]]
            arguments["verdict"] = verdict["word"]
        kind, value = figure if figure in _TYPES else "accuracy", student[figure]["mean"]
        name = tables.name_of(figure)
        rows.append({"type": kind, "name": name, "value": value, "args": arguments})
    return rows


def _listed(student: Mapping[str, Any]) -> Sequence[str]:
    plain = ("noise", "worst_case", "mce", "attacked", "shifted", "worst_group", *_TYPES[:3])
    return [
        figure
        for figure in student
        if figure in plain
        or (figure.split(".")[0] in ("attack", "transfer", "shifted") and figure.count(".") == 1)
    ]


def _circumstances(figure: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    kind, _, which = figure.partition(".")
    sizes = facts["examples"]
    if kind in ("noise", "worst_case", "mce"):
        names = [n for n in facts["perturbations"] if n not in facts["plan"]["seen"]]
        levels = list(facts["plan"]["severities"])
        return {"n": sizes["perturbed"], "perturbations": names, "severities": levels}
    if kind in ("attack", "transfer"):
        made_on = {"made_on": "the student without a teacher"} if kind == "transfer" else {}
        return {"n": sizes["attacked"], **facts["attacks"][which], **made_on}
    if kind == "attacked":
        return {"n": sizes["attacked"], "attacks": list(facts["attacks"])}
    if kind == "shifted":
        shifted = sizes["shifted"]
        return {"n": shifted[which] if which else sum(shifted.values())}
    return {"n": sizes["clean"]}
