"""Tuning of a recipe: equal numbers of trials, their order, outcomes, and what is confirmed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from launch import ENVIRONMENT
from sklearn.metrics import accuracy_score
from tiny_recipes import held_out, language, probabilities, recipe

from hf_distill import DistillationTrainer
from hf_distill.recipe import Recipe, RecipeError, load_recipe
from hf_distill.recipe.tuning.journal import counted
from hf_distill.recipe.tuning.runs import StudyRun, Watch
from hf_distill.recipe.tuning.trial import Job, Pruned, TrialError, in_process
from hf_distill.recipe.tuning.tuner import Tuner

ROOT = Path(__file__).resolve().parents[2]
ONE_KEY = {
    **dict.fromkeys(("training.num_train_epochs", "training.weight_decay")),
    **dict.fromkeys(("training.warmup_steps", "objective.1.temperature", "objective.1.weight")),
}
"""A space without all default keys but the learning rate."""


def silent(line: str) -> None:
    """For lines that nobody needs to see."""


class Bench:
    """A runner that trains nothing: scores are a function of its learning rate."""

    def __init__(self, score: Callable[[float], float]):
        self.score, self.jobs = score, list[Job]()
        self.tested: list[str] = []

    def __call__(self, job: Job, watch: Watch) -> dict[str, Any]:
        self.jobs.append(job)
        score = self.score(rate_of(job))
        if watch(1, score) or watch(2, score):
            raise Pruned
        return {"score": score, "seconds": 2.0}

    def trials(self, arm: str) -> list[Job]:
        return [job for job in self.jobs if f"/{arm}/trial" in job.folder]

    def confirmed(self) -> list[Job]:
        return [job for job in self.jobs if "confirmation" in job.folder]


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs a study without a training; gives its report."""

    def test(self: StudyRun, folders: dict[str, Path]) -> dict[str, Any]:
        return {name: {"accuracy": 0.5, "perplexity": 9.0} for name in folders}

    monkeypatch.setattr(StudyRun, "prepare", lambda self: None)
    monkeypatch.setattr(StudyRun, "test", test)

    def run(path: Path, bench: Bench, say: Callable[[str], None] = silent) -> dict[str, Any]:
        root = Tuner(load_recipe(path), say, runner=bench)()
        found: dict[str, Any] = json.loads((root / "report.json").read_text())
        return found

    return run


def rate_of(job: Job) -> float:
    """The learning rate of a job."""
    arm = job.stage.split("/")[0]
    return float(dict(job.overrides).get(f"{arm}.training.learning_rate", 1e-3))


def resolved(job: Job) -> Recipe:
    return load_recipe(job.recipe, job.overrides)


def best_at(rate: float) -> float:
    """A score that is best at a learning rate of 3e-3."""
    return 1 - abs(rate - 3e-3) * 100


def test_both_arms_have_equal_trials_and_begin_with_the_recipe(
    tmp_path: Path, tune: Callable[..., Any]
) -> None:
    """A student tuned more often than its baseline wins by the tuning."""
    path = recipe(tmp_path, tune={"trials": 4, "data": {"max_train_examples": 20}}, seeds=[3, 5])
    bench, base = Bench(best_at), load_recipe(path)
    facts = tune(path, bench)
    for arm in ("student", "baseline"):
        trials = [resolved(job) for job in bench.trials(arm)]
        assert len(trials) == facts["trials"][arm]["number"] == 4
        assert trials[0].training_of(arm).items() >= base.training_of(arm).items()
        assert trials[0].objective == base.objective
        assert {one.data.max_train_examples for one in trials} == {20}
        assert {tuple(one.student_seeds) for one in trials} == {(3,)}
        rates = [one.training_of(arm)["learning_rate"] for one in trials]
        tuned = load_recipe(tmp_path / "out/tune/tuned.yaml")
        assert tuned.training_of(arm)["learning_rate"] == max(rates, key=best_at)
    assert all(one.objective == base.objective for one in trials), "of the baseline"
    for job in bench.confirmed():
        found = resolved(job)
        assert found.data.max_train_examples is None, "confirmed at a part of the data"
        assert found.student_seeds[0] in (6, 7, 8), "a seed that chose the settings"
    assert tuned.seeds == [3, 5]
    assert "4 trials of the student without its teacher" in tuned.card.limitations[-1]
    assert Tuner(tuned, silent).run.examples.sizes["train"] == 40, "its sources are not found"
    text = (tmp_path / "out/tune/report.md").read_text()
    assert "Both arms had the same number of trials, 4 each." in text
    assert "| distilled tuned |" in text


def test_the_lower_perplexity_is_better(tmp_path: Path, tune: Callable[..., Any]) -> None:
    """A search in the wrong direction keeps the worst settings."""
    bench = Bench(lambda rate: -best_at(rate))
    facts = tune(language(tmp_path, tune={"trials": 3}), bench)
    values = [-best_at(rate_of(job)) for job in bench.trials("student")]
    assert facts["metric"] == "perplexity"
    assert facts["settings"]["student"]["value"] == min(values) < max(values)


def test_settings_are_not_run_twice(tmp_path: Path, tune: Callable[..., Any]) -> None:
    """Half of a small space's trials would be spent on what is known."""
    space = {**ONE_KEY, "training.learning_rate": [1e-3, 3e-3]}
    bench = Bench(best_at)
    facts = tune(recipe(tmp_path, tune={"trials": 5, "space": space}), bench)
    for arm in ("student", "baseline"):
        rates = [rate_of(job) for job in bench.trials(arm)]
        assert sorted(rates) == [1e-3, 3e-3]
        assert facts["trials"][arm]["number"] == 5
        assert facts["trials"][arm]["repeated"] == 3
        for one in facts["trials"][arm]["all"]:
            assert one["value"] == best_at(one["settings"]["training.learning_rate"])


def test_failed_trials_count_and_do_not_stop_the_study(
    tmp_path: Path, tune: Callable[..., Any]
) -> None:
    """One setting that runs out of memory would end a night's search."""

    def score(rate: float) -> float:
        if rate > 1e-3:
            raise TrialError("out of memory")
        return best_at(rate)

    path = recipe(tmp_path, tune={"trials": 6})
    facts = tune(path, Bench(score))
    failed = [one for one in facts["trials"]["student"]["all"] if one["state"] == "fail"]
    assert failed
    assert {one["reason"] for one in failed} == {"out of memory"}
    assert facts["trials"]["student"]["number"] == 6
    assert "out of memory" in (tmp_path / "out/tune/report.md").read_text()


def test_a_study_of_failures_ends_with_the_last_reason(
    tmp_path: Path, tune: Callable[..., Any]
) -> None:
    """ "No trials are completed yet" tells nobody what to change."""

    def score(rate: float) -> float:
        raise TrialError("no such optimizer")

    path = recipe(tmp_path, tune={"trials": 2})
    with pytest.raises(RecipeError, match=r"all 2 have failed.*no such optimizer"):
        tune(path, Bench(score))


def test_pruned_trials_count(tmp_path: Path, tune: Callable[..., Any]) -> None:
    """Trials that are stopped and do not count make one arm's search longer."""
    count = iter(range(1000))
    bench = Bench(lambda rate: -float(next(count)))  # each is worse than all before
    facts = tune(recipe(tmp_path, tune={"trials": 7}), bench)
    for arm in ("student", "baseline"):
        counts = facts["trials"][arm]
        assert counts["stopped"] >= 1
        assert counts["completed"] + counts["stopped"] == counts["number"] == 7
        assert facts["settings"][arm]["is_default"], "the first was the best"
    assert {job.stage.split("/")[0] for job in bench.confirmed()} == {"student", "baseline"}
    assert len(bench.confirmed()) == 6, "default and tuned are the same"


def test_interrupted_trials_begin_again(tmp_path: Path, tune: Callable[..., Any]) -> None:
    """A trial that is lost leaves its arm one short, or its half a value."""
    path, calls = recipe(tmp_path, tune={"trials": 3}), iter(range(1000))

    def interrupted(rate: float) -> float:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return best_at(rate)

    first = Bench(interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(path, first)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "out/tune/journal.log"))
    )
    study = optuna.load_study(study_name="student", storage=storage)
    killed = study.ask()  # by a worker that has ended since
    found = {"host": socket.gethostname(), "pid": ended.pid, "began": 0.0, "at": 0.0}
    killed.set_user_attr("worker", found)
    second, said = Bench(best_at), list[str]()
    facts = tune(path, second, said.append)
    assert any("student: 1 interrupted trial(s) begin again" in line for line in said)
    for arm in ("student", "baseline"):
        done = [*first.trials(arm), *second.trials(arm)]
        assert facts["trials"][arm]["number"] == 3
        assert len(done) == 3 + (arm == first.jobs[3].stage.split("/")[0])
    assert len(counted(study)) == 3
    again = Bench(best_at)
    assert tune(path, again) == facts, "a finished study changes"
    assert not again.jobs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "eval_loss"}, "`tune.metric`: expected a metric of the task, got eval_loss"),
        ({"metric": "forward_kl"}, "the least loss shows the smallest scale"),
        ({"metric": "runtime"}, "expected a metric with a known direction"),
        ({"trials": 0}, "`tune.trials`: expected at least 1, got 0"),
        ({"arms": ["teacher"]}, "'student' or 'baseline'"),
        ({"arms": []}, "`tune.arms`: expected student, baseline or both"),
        ({"seeds": [1, 2]}, "`tune.seeds`: expected at least 3 different seeds"),
        ({"seeds": [0, 1, 2]}, "expected seeds that are not used before, got [0]"),
        ({"space": {"training.learning_rat": [1.0]}}, "did you mean"),
        ({"space": {"objective.1.temprature": [1.0]}}, "did you mean"),
        ({"space": {"objective.7.weight": [1.0]}}, "objective.0 (hard_labels), objective.1"),
        ({"space": {"data.max_length": [8]}}, "the same in all trials"),
        ({"space": {"teacher.dtype": ["float32"]}}, "the same in all trials"),
        ({"space": {"training.learning_rate": {"low": 1e-3, "high": 1e-4}}}, "expected low < high"),
        ({"space": {"training.learning_rate": 1e-3}}, "a list of choices, or null"),
        ({"space": {"training.optim": ["adamw_torch", 3]}}, "`tune.space` of the student"),
        (
            {"space": {"training.weight_decay": {"low": 1e-3, "high": 0.1, "log": True}}},
            "expected a number above 0 in the recipe",
        ),
        (
            {"space": {"student.from_teacher_layers": [[0, 1], [0]]}},
            "expected choices with one number of layers",
        ),
    ],
)
def test_what_cannot_be_tuned_is_refused_at_once(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """A search by the loss, or of a key that does not exist, ends in the morning with nothing."""
    with pytest.raises(RecipeError) as caught:
        Tuner(load_recipe(recipe(tmp_path, tune=changes)), silent)
    assert message in str(caught.value)


def test_a_study_belongs_to_one_recipe(tmp_path: Path, tune: Callable[..., Any]) -> None:
    """Trials of another learning rate, or more trials after the test, pass as this search's."""
    path = recipe(tmp_path, tune={"trials": 1})
    tune(path, Bench(best_at))
    for key, value, message in (
        ("training.num_train_epochs", "5", "got those of another: recipe"),
        ("tune.data.max_train_examples", "9", "got those of another: data"),
        ("tune.trials", "2", "`tune.trials`: expected 1, got 2"),
    ):
        with pytest.raises(RecipeError, match=message):
            Tuner(load_recipe(path, [(key, value)]), silent, runner=Bench(best_at))()


def test_a_trial_reads_no_test_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that were chosen with the test split in view make its figures too good."""
    path = recipe(tmp_path, teacher={"training": {"num_train_epochs": 1}})
    sizes: list[int] = []
    evaluate = DistillationTrainer.evaluate

    def seen(self: DistillationTrainer, *args: Any, **options: Any) -> Any:
        data = args[0] if args else self.eval_dataset
        sizes.append(len(data))
        return evaluate(self, *args, **options)

    monkeypatch.setattr(DistillationTrainer, "evaluate", seen)
    base = StudyRun(load_recipe(path), silent, cached=True)
    base.prepare()
    scores: list[float] = []
    job = Job(
        str(path), [("seeds", "[4]")], "student/seed-4", str(tmp_path / "t"), "accuracy", True
    )
    job = Job(**{**vars(job), "keep": True})

    def watch(number: int, score: float) -> bool:
        scores.append(score)
        return False

    found = in_process(job, watch)
    assert set(sizes) == {12}, "the validation split has 12 examples, the test split 16"
    assert scores[-1] == found["score"]
    texts, labels = held_out(tmp_path)
    tested = base.test({"one": job.model})["one"]["accuracy"]
    assert tested == pytest.approx(
        accuracy_score(labels, probabilities(job.model, texts).argmax(-1))
    )
    assert not StudyRun(load_recipe(path), silent).seal().examples.raw.keys() & {"test"}
    pruned = Job(**{**vars(job), "folder": str(tmp_path / "p")})
    with pytest.raises(Pruned):
        in_process(pruned, lambda number, score: True)
    assert not pruned.work.exists()


# ---- processes -----------------------------------------------------------------------------------


def _start(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hf_distill", "tune", str(path)],
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_killed_interrupted_and_two_workers_at_once(tmp_path: Path) -> None:
    """A second teacher, a trial too many, or a study that cannot go on after a kill."""
    space = {**ONE_KEY, "training.learning_rate": [1e-3, 3e-3]}
    path = recipe(tmp_path, tune={"trials": 2, "space": space})
    root, told = tmp_path / "out/tune", ""
    for how in (signal.SIGKILL, signal.SIGINT):
        worker = _start(path)
        late = time.monotonic() + 200
        while not list(root.glob("*/trial-*/scores.jsonl")):
            assert worker.poll() is None, worker.communicate()
            assert time.monotonic() < late
            time.sleep(0.05)
        (job,) = (json.loads(p.read_text()) for p in root.glob("*/trial-*/job.json"))
        assert job["parent"] == worker.pid
        worker.send_signal(how)
        output, errors = worker.communicate(timeout=60)
        told += output
        assert worker.returncode == (130 if how is signal.SIGINT else -signal.SIGKILL)
        assert "Traceback" not in errors
        for left in root.glob("*/trial-*/scores.jsonl"):
            left.unlink()
        for left in root.glob("*/trial-*/job.json"):
            left.unlink()
    workers = [_start(path), _start(path)]
    for worker in workers:
        output, errors = worker.communicate(timeout=900)
        assert worker.returncode == 0, errors
        told += output
    assert told.count("teacher: begins") == 1
    assert told.count("cache: begins") == 1
    assert told.count("interrupted trial(s) begin again") == 1  # Ctrl-C says so by itself
    facts = json.loads((root / "report.json").read_text())
    for arm in ("student", "baseline"):
        assert facts["trials"][arm]["number"] == 2
        assert facts["trials"][arm]["failed"] == 0
    confirmed = sum(1 if one["is_default"] else 2 for one in facts["settings"].values())
    assert told.count("confirmation: ") == 3 * confirmed
    assert not list(root.rglob("*.safetensors"))
    assert not list(root.rglob("checkpoint-*"))
    assert yaml.safe_load((root / "tuned.yaml").read_text())["name"] == "tiny"
