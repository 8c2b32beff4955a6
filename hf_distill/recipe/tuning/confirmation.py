"""Confirmation of a study: default and best settings of each arm on seeds that no trial had."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.recipe.errors import RecipeError
from hf_distill.recipe.schedule import EVALUATION
from hf_distill.recipe.schema import Recipe
from hf_distill.recipe.stages import Stage
from hf_distill.recipe.tune_section import LEAST_SEEDS
from hf_distill.recipe.tuning import journal
from hf_distill.recipe.tuning.bench import LEARNING, SECONDS, Bench, Work
from hf_distill.recipe.tuning.journal import REASON, SETTINGS, WORKER
from hf_distill.recipe.tuning.search import Search
from hf_distill.recipe.tuning.space import Settings, overrides

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

NAME, DECISION = "confirmation", "decision"
DEFAULT, TUNED = "default", "tuned"


class Confirmation:
    """The trainings of the confirmation, at full data.

    Raises:
        RecipeError: the trials were confirmed before, and their number has changed.
    """

    def __init__(self, bench: Bench, search: Search):
        self.bench, self.search = bench, search
        self.seeds = confirmation_seeds(bench.recipe)
        identity = {"seeds": self.seeds, "arms": list(search.spaces)}
        self.study = bench.journal.study(NAME, identity, direction=bench.direction)
        before, trials = self.study.user_attrs.get(DECISION), bench.section.trials
        if before is not None and before["trials"] != trials:
            raise RecipeError(
                f"`tune.trials`: expected {before['trials']}, got {trials}: these trials are "
                "confirmed, and more of them would choose anew after that. Set the number back, or "
                "another `output_dir`."
            )

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        """The settings that are confirmed, by arm."""
        return dict(self.study.user_attrs[DECISION]["arms"])

    def decide(self) -> None:
        """Choose the settings, once: by the first worker that comes here.

        Raises:
            RecipeError: all trials of an arm failed.
        """
        with self.bench.journal.alone():
            if DECISION not in self.study.user_attrs:
                chosen = {arm: self.search.chosen(arm) for arm in self.search.spaces}
                decision = {"trials": self.bench.section.trials, "arms": chosen}
                self.study.set_user_attr(DECISION, decision)

    def trainings(self) -> Iterator[tuple[str, str, int, Settings]]:
        """Arm, ``default`` or ``tuned``, seed and settings of each."""
        arms = self.arms
        for seed in self.seeds:
            for arm, chosen in arms.items():
                yield arm, DEFAULT, seed, chosen["own"]
                if not chosen["is_default"]:
                    yield arm, TUNED, seed, chosen["best"]

    def following(self) -> Work | bool:
        """The next training, for `Bench.work`; those that failed in an earlier run come again."""
        journal.give_up_lost(self.study, self.bench.root / NAME)
        trials = self.study.get_trials(deepcopy=False)
        taken = {_key(one): one for one in trials if one.state.name != "FAIL"}
        for arm, which, seed, settings in self.trainings():
            if f"{arm}-{which}-{seed}" not in taken:
                trial = self.study.ask()
                trial.set_user_attr(SETTINGS, [arm, which, seed])
                trial.set_user_attr(WORKER, journal.this_worker())
                return partial(self._train, trial, arm, which, seed, settings)
        return any(not one.state.is_finished() for one in taken.values())

    def _train(self, trial: Trial, arm: str, which: str, seed: int, settings: Settings) -> None:
        bench = self.bench
        own = [] if which == DEFAULT else overrides(bench.recipe, arm, settings)
        job = bench.job(arm, seed, own, self._folder(arm, which, seed), keep=True)
        bench.carry_out(self.study, trial, job, lambda number, score: False)
        done = self.study.get_trials(deepcopy=False)[trial.number]
        name = f"confirmation: {arm}, {which} settings, seed {seed}"
        if done.value is None:
            raise RecipeError(
                f"{name}: {done.user_attrs.get(REASON, 'given up by another worker')}"
            )
        seconds = done.user_attrs[SECONDS]
        bench.say(f"{name}: {bench.metric} {done.value:.4f} in {seconds:.0f} s")

    def _folder(self, arm: str, which: str, seed: int) -> Path:
        return self.bench.root / NAME / f"{arm}-{which}-{seed}"

    def scores(self) -> dict[str, FrozenTrial]:
        """Finished trainings by ``ARM-WHICH-SEED``."""
        trials = self.study.get_trials(deepcopy=False)
        return {_key(one): one for one in trials if one.state.name == "COMPLETE"}

    def test(self) -> dict[str, Any]:
        """Figures on the test split, which is read here for the first time, once."""
        bench, scores = self.bench, self.scores()
        inputs = {
            "models": {key: [one.value, one.user_attrs[LEARNING]] for key, one in scores.items()},
            "metric": bench.metric,
            "data": bench.run.stages[EVALUATION].inputs["data"],
        }
        folders = {
            f"{arm}-{which}-{seed}": self._folder(arm, which, seed) / "work" / "model"
            for arm, which, seed, _ in self.trainings()
        }
        stage = Stage("test of the confirmation", bench.root / "test", inputs)
        found = stage.once(lambda: dict(bench.run.test(folders)))
        for folder in folders.values():  # measured: they are of no further use
            shutil.rmtree(folder.parent, ignore_errors=True)
        for left in bench.root.glob("*/trial-*/work"):  # of trials that were killed
            shutil.rmtree(left, ignore_errors=True)
        return found


def confirmation_seeds(recipe: Recipe) -> list[int]:
    """Seeds that no other training of the recipe has.

    Raises:
        RecipeError: a given one is of another training.
    """
    used = {recipe.seed, *recipe.student_seeds, *(recipe.teacher.seeds or ())}
    given = None if recipe.tune is None else recipe.tune.seeds
    if given is None:
        return [max(used) + 1 + number for number in range(LEAST_SEEDS)]
    if again := sorted(used.intersection(given)):
        raise RecipeError(
            f"`tune.seeds`: expected seeds that are not used before, got {again}, which the recipe "
            "has. The settings were chosen with these."
        )
    return list(given)


def _key(trial: FrozenTrial) -> str:
    return "-".join(map(str, trial.user_attrs.get(SETTINGS, [])))
