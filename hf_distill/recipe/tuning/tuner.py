"""Search for the settings of a recipe: trials of both arms, their confirmation, and the report."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from transformers import ProgressCallback, TrainerCallback

from hf_distill.recipe import estimate
from hf_distill.recipe.errors import RecipeError
from hf_distill.recipe.schema import Recipe
from hf_distill.recipe.tune_section import TuneSection, check_metric
from hf_distill.recipe.tuning import journal, report
from hf_distill.recipe.tuning.bench import Bench
from hf_distill.recipe.tuning.confirmation import Confirmation, confirmation_seeds
from hf_distill.recipe.tuning.journal import Journal
from hf_distill.recipe.tuning.runs import base_run, cacheable
from hf_distill.recipe.tuning.search import Search
from hf_distill.recipe.tuning.space import Space, make_space
from hf_distill.recipe.tuning.trial import Runner, in_subprocess

FOLDER = "tune"


class Tuner:
    """A worker of the search for a recipe's settings; several may work on one folder.

    Args:
        recipe: The recipe, whose section ``tune`` may be absent.
        say: Function that prints a line.
        progress: The callback that shows the progress of the teacher's training.
        runner: Carries a trial out; default: in a process of its own.

    Raises:
        RecipeError: anything in the recipe that cannot work, before anything is trained.
        ImportError: Optuna is not installed.
    """

    def __init__(
        self,
        recipe: Recipe,
        say: Callable[[str], None] = print,
        progress: type[TrainerCallback] = ProgressCallback,
        runner: Runner = in_subprocess,
    ):
        journal.optuna()
        _check(recipe)
        self.recipe, self.say, self.runner = recipe, say, runner
        self.section = recipe.tune or TuneSection()
        self.root = recipe.root / FOLDER
        self.spaces: dict[str, Space] = {arm: make_space(recipe, arm) for arm in self.section.arms}
        self.seeds = confirmation_seeds(recipe)
        self.run, self.cached = base_run(recipe, say, progress, cacheable(recipe))
        self.metric = (self.section.metric or self.run.metrics[0]).removeprefix("eval_")
        check_metric(self.metric)

    def __call__(self) -> Path:
        """Do all that is not done yet; gives the folder of the report.

        Raises:
            RecipeError: all trials of an arm fail, or a training of the confirmation.
        """
        bench = self._bench()
        search = Search(bench, self.spaces)
        confirmation = Confirmation(bench, search)
        with bench.one_worker("the teacher"):
            self.run.prepare()
        bench.work(search.following)
        confirmation.decide()
        bench.work(confirmation.following)
        with bench.one_worker("the evaluation"):
            facts = report.summary(search, confirmation, confirmation.test())
            report.write(facts, self.recipe, self.root)
        self.say(f"\n{report.table(facts)}\n\n{report.sentences(facts)}")
        self.say(f"report: {self.root / 'report.md'}; recipe: {self.root / 'tuned.yaml'}")
        return self.root

    def _bench(self) -> Bench:
        return Bench(
            recipe=self.recipe,
            section=self.section,
            metric=self.metric,
            root=self.root,
            run=self.run,
            cached=self.cached,
            runner=self.runner,
            say=self.say,
            journal=Journal(self.root),
        )

    def plan(self) -> str:
        """Space, number of trials and, where a step was measured, time."""
        trials, lines = self.section.trials, list[str]()
        for arm, space in self.spaces.items():
            lines.append(f"{arm}: {trials} trials, the first with the recipe's own settings")
            lines += [
                f"  {key}: {kind} (own: {space.own[key]})" for key, kind in space.keys.items()
            ]
        seeds = ", ".join(map(str, self.seeds))
        lines.append(f"score: {self.metric} on the validation split")
        lines.append(f"confirmation: default and best settings of each arm, seeds {seeds}")
        left = [key for key, stage in self.run.before.items() if stage.results() is None]
        lines.append(f"before the trials: {', '.join(left) or 'nothing'} to do")
        return "\n".join([*lines, *map(self._outlook, self.spaces)])

    def _outlook(self, arm: str) -> str:
        recipe, whole = self.recipe, self.run.examples.sizes["train"]
        size = min(self.section.data.max_train_examples or whole, whole)
        args = self.run.arguments(arm, recipe.seed, self.root)
        steps, more = (estimate.steps(count, args) for count in (size, whole))
        trials, last = self.section.trials, 2 * len(self.seeds)
        total = f"{arm}: about {trials} x {steps:,} and {last} x {more:,} steps"
        stages = [self.run.stages[f"{arm}/seed-{seed}"] for seed in recipe.student_seeds]
        rate = estimate.rate_of(stages, arm, recipe.root)
        if rate is None:
            return f"{total}, time unknown until the recipe has run once"
        seconds = rate.seconds * (trials * steps + last * more)
        return f"{total}, about {estimate.duration(seconds)} on one worker ({rate.source})"


def _check(recipe: Recipe) -> None:
    """Refuse recipes that cannot be tuned."""
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise RecipeError(
            "hf-distill tune: expected one process, got a launch of several. Start the same "
            "command once for each device; the workers share the trials."
        )
    if recipe.generations > 1:
        raise RecipeError(
            f"`generations`: expected 1 for tuning, got {recipe.generations}. Tune the first "
            "student: `--generations 1`."
        )
    if recipe.teacher.api is not None:
        raise RecipeError(
            "`teacher.api`: tuning reads the teacher's answers many times, for parts of the data. "
            "Store them as columns of the data, and use `teacher.columns`."
        )
