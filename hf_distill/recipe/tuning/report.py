"""Report of a study: tables, sentences, and the recipe with the best settings."""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.evaluation.statistics import paired_t
from hf_distill.evaluation.verdicts import judge, no_word_yet, tests_of
from hf_distill.recipe.loading import load_recipe
from hf_distill.recipe.resolve import is_function
from hf_distill.recipe.schedule import TEACHER
from hf_distill.recipe.schema import Recipe
from hf_distill.recipe.tuning.bench import LEARNING, SECONDS
from hf_distill.recipe.tuning.confirmation import Confirmation
from hf_distill.recipe.tuning.journal import REASON, SETTINGS, counted
from hf_distill.recipe.tuning.search import SAME, Search
from hf_distill.recipe.tuning.space import Settings, overrides
from hf_distill.training.run_facts import environment
from hf_distill.utils.directions import lower_is_better
from hf_distill.utils.files import write_json, write_text
from hf_distill.utils.markdown import table as markdown_table

if TYPE_CHECKING:
    from optuna.study import Study

NAMES = {"student": "distilled", "baseline": "alone"}
PAIRS = (
    ("distilled tuned", "alone tuned"),
    ("distilled default", "alone default"),
    ("distilled tuned", "distilled default"),
    ("alone tuned", "alone default"),
)
"""Rows that are compared, where both are there."""
LEVEL = 0.05
TRIAL_SIZE = "train of a trial"


def summary(
    search: Search, confirmation: Confirmation, tested: Mapping[str, Any]
) -> dict[str, Any]:
    """The report as plain values; ``tested`` holds the figures on the test split of each model of
    the confirmation."""
    bench, seeds, scores = search.bench, confirmation.seeds, confirmation.scores()
    metric, sizes = bench.metric, bench.run.examples.sizes
    rows = {}
    for arm, which in dict.fromkeys((arm, which) for arm, which, *_ in confirmation.trainings()):
        keys = [f"{arm}-{which}-{seed}" for seed in seeds]
        rows[f"{NAMES[arm]} {which}"] = {
            "validation": [scores[key].value for key in keys],
            "test": [tested[key][metric] for key in keys],
            "figures": {key: tested[key] for key in keys},
            "seconds": [scores[key].user_attrs[LEARNING] for key in keys],
        }
    limit = bench.section.data.max_train_examples
    return {
        "name": bench.recipe.name,
        "metric": metric,
        "seeds": seeds,
        "trials": {arm: _trials(search.studies[arm]) for arm in search.spaces},
        "examples": {**sizes, TRIAL_SIZE: min(limit or sizes["train"], sizes["train"])},
        "settings": confirmation.arms,
        "space": {arm: space.describe() for arm, space in search.spaces.items()},
        "rows": rows,
        "teacher": tested.get(TEACHER, {}).get(metric),
        "differences": _differences(rows, metric),
        "environment": environment(),
    }


def _trials(study: Study) -> dict[str, Any]:
    """Numbers and outcomes of an arm's trials."""
    trials = counted(study)
    states = [one.state.name for one in trials]
    return {
        "number": len(trials),
        "completed": states.count("COMPLETE"),
        "stopped": states.count("PRUNED"),
        "failed": states.count("FAIL"),
        "repeated": sum(SAME in one.user_attrs for one in trials),
        "seconds": round(sum(one.user_attrs.get(SECONDS, 0.0) for one in trials), 1),
        "all": [
            {
                "number": one.number,
                "state": one.state.name.lower(),
                "value": one.value,
                "settings": one.user_attrs[SETTINGS],
                **{k: one.user_attrs[k] for k in (REASON, SAME) if k in one.user_attrs},
            }
            for one in trials
        ],
    }


def _differences(rows: Mapping[str, Any], metric: str) -> list[dict[str, Any]]:
    """Differences between rows over the same seeds, on the test split."""
    axes = {
        f"{one} − {other}": (rows[one]["test"], rows[other]["test"])
        for one, other in PAIRS
        if one in rows and other in rows
    }
    if not axes:
        return []
    upwards = dict.fromkeys(axes, not lower_is_better(metric))
    found = judge(axes, LEVEL, upwards)
    plain = [dataclasses.asdict(verdict) for verdict in found.values()]
    return [{k: None if v != v else v for k, v in row.items()} for row in plain]


# ---- in Markdown ---------------------------------------------------------------------------------


def table(facts: Mapping[str, Any]) -> str:
    """Scores of default and tuned settings of each arm."""
    metric, seeds = facts["metric"], len(facts["seeds"])
    header = ["", f"{metric}, validation", f"{metric}, test", "95 % interval of the test mean"]
    header += ["Trials", "Training, s"]
    body = []
    for name, row in facts["rows"].items():
        mean, low, high, _ = paired_t(row["test"], 1 - LEVEL)
        arm = next(arm for arm, word in NAMES.items() if name.startswith(word))
        tried = facts["trials"][arm]["number"] if name.endswith("tuned") else 0
        cells = [name, _spread(row["validation"]), _spread(row["test"])]
        cells += [f"{low:.4f} to {high:.4f}" if low != high else f"{mean:.4f}"]
        body.append([*cells, str(tried), f"{statistics.mean(row['seconds']):.0f}"])
    if facts["teacher"] is not None:
        body.append(["teacher", "–", f"{facts['teacher']:.4f}", "–", "–", "–"])
    caption = f"Means ± standard deviations over {seeds} seeds that no trial had, at full data."
    return f"{markdown_table(header, body)}\n\n{caption}"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def _difference_table(facts: Mapping[str, Any]) -> str:
    body = []
    for row in facts["differences"]:
        interval = "–" if row["low"] is None else f"{row['low']:+.4f} to {row['high']:+.4f}"
        p = "–" if row["p_adjusted"] is None else f"{row['p_adjusted']:.3g}"
        body.append([row["axis"], f"{row['difference']:+.4f}", interval, p, row["word"]])
    header = [f"Difference in {facts['metric']}, test", "Mean", "95 % interval", "p (Holm)", ""]
    seeds = len(facts["seeds"])
    why = f"; {no_word_yet(seeds)}" if seeds < 6 else ""
    return f"{markdown_table(header, body, left=(0, 4))}\n\n{tests_of(seeds)}{why}."


def sentences(facts: Mapping[str, Any]) -> str:
    """Numbers of trials, and which settings were found."""
    found = [_equal(facts)]
    for arm, counts in facts["trials"].items():
        parts = [f"{counts['number']} trials in {counts['seconds']:.0f} s"]
        parts += [
            f"{counts[key]} {key}" for key in ("stopped", "failed", "repeated") if counts[key]
        ]
        found.append(f"{NAMES[arm].capitalize()}: {', '.join(parts)}.")
        if facts["settings"][arm]["is_default"]:
            found.append(f"No trial of {NAMES[arm]} was better than the recipe's own settings.")
    sizes = facts["examples"]
    found.append(
        f"Trials were trained on {sizes[TRIAL_SIZE]:,} of {sizes['train']:,} examples and "
        "scored on the validation split. The test split was read once, after the choice."
    )
    return " ".join(found)


def _equal(facts: Mapping[str, Any]) -> str:
    numbers = {arm: counts["number"] for arm, counts in facts["trials"].items()}
    if len(numbers) == 1:
        (arm,) = numbers
        other = next(name for one, name in NAMES.items() if one != arm)
        return (
            f"Only one arm ({NAMES[arm]}) was tuned: a comparison with the arm {other} would "
            "be one of tuned settings with untuned ones."
        )
    if len(set(numbers.values())) == 1:
        return f"Both arms had the same number of trials, {next(iter(numbers.values()))} each."
    return f"The arms had different numbers of trials: {numbers}."


def _settings_table(facts: Mapping[str, Any]) -> str:
    body = []
    for arm, chosen in facts["settings"].items():
        for key, own in chosen["own"].items():
            cells = [NAMES[arm], f"`{key}`", str(own), str(chosen["best"][key])]
            body.append([*cells, facts["space"][arm].get(key, "–")])
    return markdown_table(["Arm", "Key", "Default", "Tuned", "Space"], body, left=(0, 1, 4))


def _trial_table(facts: Mapping[str, Any], arm: str) -> str:
    keys = list(facts["settings"][arm]["own"])
    body = []
    for one in facts["trials"][arm]["all"]:
        value = "–" if one["value"] is None else f"{one['value']:.4f}"
        settings = [str(one["settings"].get(key, "–")) for key in keys]
        word = {"complete": "", "pruned": "stopped", "fail": "failed"}[one["state"]]
        word = f"as {one['same_as']}" if "same_as" in one else word
        body.append([str(one["number"]), value, *settings, word])
    return markdown_table(["Trial", facts["metric"], *keys, ""], body)


def write(facts: Mapping[str, Any], recipe: Recipe, root: Path) -> None:
    """Write ``report.json``, ``report.md`` and ``tuned.yaml`` into a folder."""
    write_json(root / "report.json", facts)
    parts = [f"# Tuning of {facts['name']}", table(facts), sentences(facts)]
    if facts["differences"]:
        parts += ["## Differences", _difference_table(facts)]
    parts += ["## Settings", _settings_table(facts)]
    for arm in facts["trials"]:
        parts += [f"## Trials, {NAMES[arm]}", _trial_table(facts, arm)]
        failures = [f"- {one['number']}: {one[REASON]}" for one in _failures(facts, arm)]
        parts += ["Failed:\n\n" + "\n".join(failures)] if failures else []
    write_text(root / "report.md", "\n\n".join(parts) + "\n")
    best = {arm: chosen["best"] for arm, chosen in facts["settings"].items()}
    text = tuned_recipe(recipe, best, told(facts), root).to_yaml()
    write_text(root / "tuned.yaml", f"# Made by hf-distill tune; see report.md.\n\n{text}")


def _failures(facts: Mapping[str, Any], arm: str) -> list[Mapping[str, Any]]:
    return [one for one in facts["trials"][arm]["all"] if REASON in one]


def told(facts: Mapping[str, Any]) -> str:
    """Sentence for the model card."""
    numbers = " and ".join(
        f"{counts['number']} trials of the student "
        f"{'with' if arm == 'student' else 'without'} its teacher"
        for arm, counts in facts["trials"].items()
    )
    return (
        f"Settings were chosen by hf-distill tune, from {numbers}, by {facts['metric']} on the "
        f"validation split, trained on {facts['examples'][TRIAL_SIZE]:,} examples."
    )


# ---- the recipe ----------------------------------------------------------------------------------


def tuned_recipe(recipe: Recipe, best: Mapping[str, Settings], note: str, folder: Path) -> Recipe:
    """The recipe with the best settings of its arms, to be written to a folder.

    Its ``tune`` is gone, and ``note`` is among the limitations on the card. A model of the student
    is that of the student's settings.
    """
    own = list(recipe.overrides)
    for arm in sorted(best):  # the student's last
        own += overrides(recipe, arm, best[arm])
    found = load_recipe(recipe.file, own)
    card = dataclasses.replace(found.card, limitations=[*found.card.limitations, note])
    before = recipe.file.parent.resolve()

    def moved(value: Any) -> Any:
        """A source that is relative to the recipe's folder, or several, from the new one."""
        if isinstance(value, Mapping):
            return {key: moved(one) for key, one in value.items()}
        if isinstance(value, list):
            return [moved(one) for one in value]
        if not value or not isinstance(value, str) or Path(value).is_absolute():
            return value
        local = value.startswith(".") or is_function(value) or any(before.glob(value))
        if not local:
            return value
        path = os.path.relpath(before / value, folder.resolve())
        return path if path.startswith(".") else f"./{path}"

    def section(one: Any, *names: str) -> Any:
        return dataclasses.replace(one, **{name: moved(getattr(one, name)) for name in names})

    robustness = found.robustness
    if robustness is not None:
        shifted = {name: moved(source) for name, source in robustness.shifted.items()}
        robustness = dataclasses.replace(robustness, shifted=shifted)
    return dataclasses.replace(
        found,
        tune=None,
        card=card,
        data=section(found.data, "source", "processor"),
        teacher=section(found.teacher, "model", "processor"),
        student=section(found.student, "model"),
        assistants=[section(one, "model") for one in found.assistants],
        robustness=robustness,
    )
