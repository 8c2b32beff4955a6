"""Report of a recipe: report.json, a Markdown table and a plot of the curves."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_distill.evaluation.curves import Line, Panel, draw
from hf_distill.evaluation.metrics import retention
from hf_distill.evaluation.scoring import METRICS
from hf_distill.hub.comparison import MODELS
from hf_distill.objectives.base.objective import WeightedSum
from hf_distill.recipe.robustness import ROBUSTNESS, in_report
from hf_distill.recipe.schedule import TEACHER, generations
from hf_distill.recipe.schema import CONTROL, Recipe
from hf_distill.robustness.report import write_report
from hf_distill.training.run_facts import environment
from hf_distill.utils.directions import lower_is_better
from hf_distill.utils.files import save_figure, write_json, write_text
from hf_distill.utils.markdown import table as markdown_table

FIGURES = (
    *("accuracy", "perplexity", "agreement", "forward_kl_divergence", "reverse_kl_divergence"),
    *("acceptance_rate", "entropy", "entropy_gap", "nll", "ece"),
)
"""Reported figures of every model on the test split, as far as they apply."""
PERPLEXITIES = ("perplexity", "token_perplexity")
SIZES = ("parameters", "architecture", "layers", "hidden_size", "num_labels")
NAMES = {
    **{role: MODELS[role] for role in ("teacher", "baseline", "control")},
    "student": "Distilled student",
}
COLOURS = {"teacher": "#555555", "baseline": "#e08214", "control": "#8073ac", "student": "#2166ac"}
MORE_COLOURS = ("#1b7837", "#762a83", "#b2182b", "#35978f", "#8c510a", "#c51b7d")
"""Colours of assistants and earlier generations, in turn."""


@dataclass(frozen=True)
class RecipeResults:
    """Results of a recipe: by stage, with the student's objective, the number of examples of each
    split, and the metrics, of which the first decides."""

    recipe: Recipe
    results: Mapping[str, Mapping[str, Any]]
    objective: WeightedSum
    examples: Mapping[str, int]
    metrics: Sequence[str]
    watch: str

    @property
    def metric(self) -> str:
        """The metric that decides."""
        return self.metrics[0]

    @property
    def roles(self) -> list[str]:
        """Compared roles: teacher, assistants, baseline, control, generations of students."""
        recipe = self.recipe
        control = [] if recipe.control is None else [CONTROL]
        return [TEACHER, *recipe.assistant_roles, "baseline", *control, *generations(recipe)]

    def keys(self, role: str) -> list[str]:
        """The runs of a role: one teacher and assistant, a baseline and a student per seed."""
        found = [key for key in self.results["evaluation"] if key.split("/")[0] == role]
        return [role] if role in found else found  # of several teachers, all of them together

    def seconds(self, role: str) -> list[float]:
        """Training time of each run of a role; of several teachers the sum."""
        runs = [run for key, run in self.results.items() if key.split("/")[0] == role]
        seconds = [run["seconds"] for run in runs]
        return [sum(seconds)] if role == TEACHER and seconds else seconds

    def tested(self, role: str, figure: str) -> list[float]:
        """A figure on the test split, one value per seed; empty where it does not apply."""
        rows = [self.results["evaluation"][key] for key in self.keys(role)]
        return [row[figure] for row in rows if figure in row]

    @property
    def best_seed(self) -> int:
        """The seed of the student that is published: the best on the validation split."""
        seeds = self.recipe.student_seeds
        scores = [self.results[f"student/seed-{s}"]["validation"][self.metric] for s in seeds]
        return seeds[scores.index((min if lower_is_better(self.metric) else max)(scores))]


def summary(outcome: RecipeResults) -> dict[str, Any]:
    """The report as plain values, without anything of this machine but its kind."""
    recipe, models, found = outcome.recipe, {}, outcome.results
    unlabelled = recipe.data.unlabelled
    for role in outcome.roles:
        keys = outcome.keys(role)
        first = found["evaluation"][keys[0]]
        figures = dict.fromkeys([*outcome.metrics, *FIGURES, f"retention_{outcome.metric}"])
        test = {f: spread(values) for f in figures if (values := outcome.tested(role, f))}
        models[role] = {**{key: first[key] for key in SIZES}, "test": test}
        if "members" in first:
            models[role]["members"] = first["members"]
        if len(keys) == 1 and "intervals" in first:
            models[role]["intervals"] = first["intervals"]
        if seconds := outcome.seconds(role):
            models[role]["train_seconds"] = spread(seconds)
        runs = [found[key] for key in keys if key in found]
        if runs:
            models[role]["train_steps"] = runs[0]["steps"]
            if "examples_seen" in runs[0]:
                models[role]["examples_seen"] = runs[0]["examples_seen"]
        if role in ("baseline", CONTROL):
            models[role]["unlike"] = unlike_student(recipe, role)
    return {
        "name": recipe.name,
        "task": recipe.task,
        "metric": outcome.metric,
        "metrics": list(outcome.metrics),
        "watch": outcome.watch,
        "seed": recipe.seed,
        "student_seeds": recipe.student_seeds,
        "published_seed": outcome.best_seed,
        "examples": dict(outcome.examples),
        "unlabelled": None if unlabelled is None else unlabelled.share,
        "teacher_outputs": "computed in each step" if recipe.teacher.cache is None else "cached",
        "formula": str(outcome.objective),
        "objective": outcome.objective.describe(),
        "models": models,
        "runs": {
            key: {
                "test": {
                    f: row[f] for f in dict.fromkeys([*outcome.metrics, *FIGURES]) if f in row
                },
                "validation": found.get(key, {}).get("validation", {}),
            }
            for key, row in found["evaluation"].items()
        },
        "curves": {
            key: curves(found[key], outcome.watch) for key in found["evaluation"] if key in found
        },
        "environment": environment(),
        **({ROBUSTNESS: found[ROBUSTNESS]} if ROBUSTNESS in found else {}),
    }


def unlike_student(recipe: Recipe, role: str) -> dict[str, list[Any]]:
    """The training arguments in which a role differs from the student: its own, the student's."""
    own, ours = recipe.training_of(role), recipe.training_of("student")
    pairs = {name: [own.get(name), ours.get(name)] for name in {**ours, **own}}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def unlike(model: Mapping[str, Any]) -> str:
    """The training arguments of a baseline that are not the student's, in words.

    >>> unlike({"unlike": {"learning_rate": [0.0001, 0.0002]}})
    'learning_rate = 0.0001 in place of 0.0002'
    """
    rows = model.get("unlike", {}).items()
    return ", ".join(f"{name} = {own} in place of {ours}" for name, (own, ours) in rows)


def spread(values: Sequence[float]) -> float | dict[str, float]:
    """Single value unchanged; of several, mean and sample standard deviation."""
    if len(values) == 1:
        return values[0]
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values)}


def curves(results: Mapping[str, Any], metric: str) -> dict[str, list[list[float]]]:
    """``[step, value]`` pairs of the training loss and of the validation metric."""
    keys, history = {"loss": "loss", metric: f"eval_{metric}"}, results["history"]
    return {name: [[e["step"], e[k]] for e in history if k in e] for name, k in keys.items()}


# ---- the table -----------------------------------------------------------------------------------


def show(value: float | dict[str, float] | None, digits: int = 4, unit: str = "") -> str:
    """A figure with its spread, if it has one, and its unit; of ``" %"`` the value is a share."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    scale = 100 if unit == " %" else 1
    parts = (value["mean"], value["std"]) if isinstance(value, dict) else (value,)
    return " ± ".join(f"{part * scale:.{digits}f}" for part in parts) + unit


def name_of(role: str, model: Mapping[str, Any]) -> str:
    """Label of a role: ``Assistant 1``, ``Student, generation 1``, ``Teacher (mean of 2)``."""
    if role.startswith("generation-"):
        return f"Student, {role.replace('-', ' ')}"
    name = NAMES.get(role, role.replace("-", " ").capitalize())
    return f"{name} (mean of {model['members']})" if "members" in model else name


def between(facts: Mapping[str, Any]) -> list[str]:
    """The models of a report between the teacher and the student: assistants and generations."""
    return [role for role in facts["models"] if role not in NAMES]


def table(facts: Mapping[str, Any]) -> str:
    """Teacher, assistants, baseline and students in a Markdown table; of a single seed the metric
    that decides has its interval."""
    metric, more = facts["metric"], facts["metrics"][1:]
    kl = "forward_kl_divergence" if metric in PERPLEXITIES else f"retention_{metric}"
    share = " %" if kl.startswith("retention") else ""
    columns = {
        "agreement": ("Agreement", 4, ""),
        kl: ("Retention", 1, " %") if share else ("KL to it", 4, ""),
        "ece": ("ECE", 4, ""),
    }
    tests = [model["test"] for model in facts["models"].values()]
    columns = {key: how for key, how in columns.items() if any(key in test for test in tests)}
    header = ["", "Parameters", *map(title, (metric, *more))]
    rows = []
    for role, model in facts["models"].items():
        test = model["test"]
        rows.append(
            [
                name_of(role, model),
                "–" if model["parameters"] is None else f"{model['parameters']:,}",
                *(_measured(model, name) for name in (metric, *more)),
                *(show(test.get(key), digits, unit) for key, (_, digits, unit) in columns.items()),
                show(model.get("train_seconds"), 0, " s"),
            ]
        )
    return markdown_table([*header, *(how[0] for how in columns.values()), "Training"], rows)


def title(metric: str) -> str:
    """The name of a metric in a table.

    >>> title("macro_f1"), title("perplexity")
    ('Macro-F1', 'Perplexity')
    """
    return METRICS[metric].title if metric in METRICS else metric.replace("_", " ").capitalize()


def _measured(model: Mapping[str, Any], metric: str) -> str:
    digits = 2 if metric in PERPLEXITIES else 4
    told = show(model["test"].get(metric), digits)
    if interval := model.get("intervals", {}).get(metric):
        told += f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
    return told


def add_retention(measured: Mapping[str, dict[str, Any]], metrics: Sequence[str]) -> None:
    """Add the share of the teacher's value that every other model keeps, for generated text."""
    theirs = {name: measured[TEACHER][name] for name in metrics}
    for key, found in measured.items():
        if key != TEACHER:
            found |= retention({name: found[name] for name in metrics}, theirs)


def verdict(facts: Mapping[str, Any]) -> str:
    """Effect of distillation as a sentence."""
    metric, runs, seeds = facts["metric"], facts["runs"], facts["student_seeds"]
    parts = []
    first = runs[f"student/seed-{seeds[0]}"]["test"]
    for figure in (name for name in (metric, "agreement") if name in first):
        gains = [
            runs[f"student/seed-{s}"]["test"][figure] - runs[f"baseline/seed-{s}"]["test"][figure]
            for s in seeds
        ]
        lower = lower_is_better(figure)
        better = sum(gain < 0 if lower else gain > 0 for gain in gains)
        part = f"{statistics.fmean(gains):+.4f} in {figure}"
        if lower:
            part += ", where less is better"
        if len(seeds) > 1:
            part += f" ({'below' if lower else 'above'} it for {better} of {len(seeds)} seeds)"
        parts.append(part)
    said = f"Distilled against the same student without a teacher: {', '.join(parts)}."
    for role in ("baseline", CONTROL):
        if told := unlike(facts["models"].get(role, {})):
            said += f" {NAMES[role]}: trained with {told}."
    return said


def accounting(facts: Mapping[str, Any]) -> str:
    """Examples that each model saw in training, so that a gain is not that of more training."""
    seen = {
        role: f"{name_of(role, model).lower()} {model['examples_seen']:,}"
        for role, model in facts["models"].items()
        if "examples_seen" in model
    }
    if "student" in seen and facts["unlabelled"] is not None:
        seen["student"] += f" ({100 * facts['unlabelled']:g} % without labels)"
    if not seen:
        return ""
    return f"Examples seen in training: {', '.join(seen.values())}; the teacher's outputs were " + (
        f"{facts['teacher_outputs']}."
    )


def write(facts: Mapping[str, Any], root: Path) -> None:
    """Write report.json, report.md, curves.png, and the files of a report on robustness."""
    write_json(root / "report.json", facts)
    seeds = len(facts["student_seeds"])
    note = f"; mean ± standard deviation over {seeds} seeds" if seeds > 1 else ""
    write_text(
        root / "report.md",
        f"# {facts['name']}\n\n{table(facts)}\n\n{verdict(facts)}\n\n"
        f"{facts['examples']['test']:,} test examples{note}. {_explained(facts)}\n\n"
        f"{accounting(facts)}\n\n"
        + "".join(f"{told}\n\n" for told in facts["notes"])
        + "![training loss and validation curves](curves.png)\n"
        + (f"\n{in_report(facts[ROBUSTNESS])}" if ROBUSTNESS in facts else ""),
    )
    plot(facts, root / "curves.png")
    if ROBUSTNESS in facts:
        write_report(facts[ROBUSTNESS], root, f"Robustness of {facts['name']}")


def _explained(facts: Mapping[str, Any]) -> str:
    metric, tests = facts["metric"], [model["test"] for model in facts["models"].values()]
    told = []
    if any("agreement" in test for test in tests):
        told.append(
            "Agreement: the share of tokens for which a model and the teacher think the same one "
            "likeliest."
            if metric in PERPLEXITIES
            else "Agreement: the share of examples on which a model and the teacher choose the "
            "same class."
        )
    if metric in PERPLEXITIES:
        told.insert(0, "Perplexity: less is better.")
        told.append("KL to it: KL(teacher ‖ model), nats a token.")
    elif any(f"retention_{metric}" in test for test in tests):
        told.append(f"Retention: student's / teacher's {metric}.")
    if any("ece" in test for test in tests):
        told.append("ECE: expected calibration error, 15 bins.")
    if any("intervals" in model for model in facts["models"].values()):
        told.append("In brackets: 95 % bootstrap interval over the test examples.")
    return " ".join(told)


def plot(facts: Mapping[str, Any], path: Path) -> None:
    """Training loss and validation metric against the step, one colour per model.

    Raises:
        ImportError: matplotlib is missing.
    """
    more = dict(zip(between(facts), itertools.cycle(MORE_COLOURS), strict=False))
    colours = {**COLOURS, **more}

    def lines(curve: str) -> list[Line]:
        runs = [(key.split("/")[0], run[curve]) for key, run in facts["curves"].items()]
        named = {role: name_of(role, facts["models"][role]) for role, _ in runs}
        return [Line(named[role], points, colours[role]) for role, points in runs if points]

    metric = facts["watch"]
    loss = Panel("Training loss", lines("loss"), "loss (each model's own objective)")
    save_figure(draw([loss, Panel(f"Validation {metric}", lines(metric), metric)]), path)
