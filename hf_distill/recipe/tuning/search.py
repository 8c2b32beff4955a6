"""Trials of both arms: the same number of each, the first with the recipe's own settings."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from hf_distill.recipe.errors import RecipeError
from hf_distill.recipe.tuning import journal
from hf_distill.recipe.tuning.bench import SECONDS, Bench, Work
from hf_distill.recipe.tuning.journal import REASON, SETTINGS, WORKER, counted
from hf_distill.recipe.tuning.space import Space, overrides

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

DEFAULT, SAME = "default", "same_as"
"""User attributes of trials: of the recipe's own settings; the earlier trial with the same."""
REPEATS = 20
"""Most samples in a row that another worker is trying just now."""


class Search:
    """The search of all arms by one worker.

    Raises:
        RecipeError: the journal holds trials of another recipe.
    """

    def __init__(self, bench: Bench, spaces: dict[str, Space]):
        self.bench, self.spaces = bench, spaces
        self.studies = {arm: self._study(arm) for arm in spaces}

    def _study(self, arm: str) -> Study:
        bench, pruners = self.bench, journal.optuna().pruners
        pruner: Any = pruners.NopPruner()
        if bench.section.prune:  # the first evaluation of a training stops none
            pruner = pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2)
        identity = {
            "recipe": bench.run.stages[f"{arm}/seed-{bench.seed}"].fingerprint,
            "space": self.spaces[arm].describe(),
            "data": vars(bench.section.data),
            "metric": bench.metric,
        }
        return bench.journal.study(arm, identity, direction=bench.direction, pruner=pruner)

    def following(self) -> Work | bool:
        """The next trial of the arm with the fewest, for `Bench.work`."""
        for arm, study in self.studies.items():
            if lost := journal.give_up_lost(study, self.bench.root / arm):
                self.bench.say(f"{arm}: {lost} interrupted trial(s) begin again")
        counts = {arm: len(counted(study)) for arm, study in self.studies.items()}
        arm = min(counts, key=lambda one: counts[one])
        if counts[arm] >= self.bench.section.trials:
            return any(journal.running(study) for study in self.studies.values())
        trial = self._sampled(arm)
        return (lambda: None) if trial is None else partial(self._try, arm, trial)

    def _sampled(self, arm: str) -> Trial | None:
        """A new trial with its settings; None: they were tried before, and it has their value."""
        study, space = self.studies[arm], self.spaces[arm]
        states, samplers = journal.optuna().trial.TrialState, journal.optuna().samplers
        for repeat in range(REPEATS):
            before = counted(study)
            if first := not any(DEFAULT in one.user_attrs for one in before):
                waiting = study.get_trials(deepcopy=False, states=(states.WAITING,))
                if not waiting:  # of a worker that was killed just here
                    study.enqueue_trial(space.encoded(space.own))
            trial = study.ask()
            seed, random = self.bench.recipe.seed, max(3, self.bench.section.trials // 3)
            study.sampler = samplers.TPESampler(
                seed=1000 * seed + trial.number, n_startup_trials=random
            )
            settings = space.sample(trial)
            if first:  # not rounded
                settings = dict(space.own)
                trial.set_user_attr(DEFAULT, True)
            trial.set_user_attr(SETTINGS, settings)
            twins = [one for one in before if one.user_attrs.get(SETTINGS) == settings]
            if twins and twins[0].state.is_finished():
                self._repeat(arm, trial, twins[0])
                return None
            if not twins or repeat == REPEATS - 1:
                trial.set_user_attr(WORKER, journal.this_worker())
                return trial
            study.tell(trial, state=states.FAIL)  # another worker is at it: not counted
        raise AssertionError("the last repeat returns")

    def _repeat(self, arm: str, trial: Trial, twin: FrozenTrial) -> None:
        """Give a trial the outcome of an earlier one with the same settings."""
        trial.set_user_attr(SAME, twin.number)
        if REASON in twin.user_attrs:
            trial.set_user_attr(REASON, twin.user_attrs[REASON])
        for number, score in twin.intermediate_values.items():
            trial.report(score, number)
        value = twin.value if twin.state.name == "COMPLETE" else None
        self.studies[arm].tell(trial, value, state=twin.state)
        told = f"trial {trial.number} has the settings of trial {twin.number}, and is not run"
        self.bench.say(f"{arm}: {told}")

    def _try(self, arm: str, trial: Trial) -> None:
        bench, study = self.bench, self.studies[arm]
        whole = DEFAULT in trial.user_attrs

        def watch(number: int, score: float) -> bool:
            trial.report(score, number)
            return not whole and trial.should_prune()

        own = overrides(bench.recipe, arm, trial.user_attrs[SETTINGS])
        sizes = vars(bench.section.data).items()
        own += [(f"data.{key}", str(size)) for key, size in sizes if size is not None]
        folder = bench.root / arm / f"trial-{trial.number}"
        bench.carry_out(study, trial, bench.job(arm, bench.seed, own, folder), watch)
        self._tell(arm, study.get_trials(deepcopy=False)[trial.number])

    def _tell(self, arm: str, trial: FrozenTrial) -> None:
        outcome = {
            "COMPLETE": f"{self.bench.metric} {trial.value or 0.0:.4f}",
            "PRUNED": "stopped, worse than the median",
            "FAIL": f"failed: {trial.user_attrs.get(REASON, 'given up by another worker')}",
        }[trial.state.name]
        count = sum(one.state.is_finished() for one in counted(self.studies[arm]))
        told = ", ".join(f"{key} {value}" for key, value in trial.user_attrs[SETTINGS].items())
        of = f"{count} of {self.bench.section.trials} trials"
        seconds = trial.user_attrs.get(SECONDS, 0.0)
        self.bench.say(f"{arm}: {of}: {outcome} in {seconds:.0f} s ({told})")

    def chosen(self, arm: str) -> dict[str, Any]:
        """Own and best settings of an arm, and the number and value of the best trial.

        Raises:
            RecipeError: all its trials failed.
        """
        study, own = self.studies[arm], self.spaces[arm].own
        trials = counted(study)
        if not any(one.state.name == "COMPLETE" for one in trials):
            reason = [one.user_attrs[REASON] for one in trials if REASON in one.user_attrs][-1]
            raise RecipeError(
                f"expected a trial of the {arm} that works, and all {len(trials)} have failed. The "
                f"last one: {reason} Change the recipe or `tune.space`, and move "
                f"{self.bench.root} away."
            )
        best = study.best_trial
        settings = best.user_attrs[SETTINGS]
        found = {"own": own, "best": settings, "trial": best.number, "value": best.value}
        return {**found, "is_default": settings == own}
