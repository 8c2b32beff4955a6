"""A report: its figures, its verdicts, and what it says of them."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from report_models import NAMES, linear, reader, rows, texts
from scipy.spatial.distance import jensenshannon
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, log_loss
from torch import nn

from hf_distill.models.input_space import input_space
from hf_distill.robustness import (
    Examples,
    Predictor,
    Report,
    RobustnessConfig,
    evaluate_robustness,
    perturb,
)
from hf_distill.robustness.attacks.gradient import Attack, attack_batch
from hf_distill.robustness.attacks.text import TextAttack, attack_texts
from hf_distill.robustness.comparing import MASKED, check_requirements
from hf_distill.robustness.invariance import invariance
from hf_distill.robustness.tables import markdown, sentences

tf: Any = transformers
pytestmark = pytest.mark.xdist_group("robustness")
NOISES = ("keyboard_typos", "spacing", "character_drops")
PLAN = RobustnessConfig(
    perturbations=NOISES[:2],
    seen=NOISES[2:],
    severities=(1, 3, 5),
    attacks=("pgd", "characters"),
    invariance=("places in front",),
    steps=2,
    queries=12,
    perturbed_examples=12,
    attacked_examples=8,
    gate_examples=4,
    batch_size=5,
)
DATA = dataclasses.replace(texts(40), groups=tuple("ab"[n % 2] for n in range(30)) + ("b",) * 10)


def models() -> dict[str, Any]:
    return {
        "teacher": reader(9),
        "baseline": {0: reader(0), 1: reader(1)},
        "student": {0: reader(2), 1: reader(3)},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return evaluate_robustness(
        models(),
        DATA,
        plan=PLAN,
        validation=texts(20, 1),
        shifted={"b": texts(15, 2)},
        folder=folder,
    )


def same(one: Any, other: Any) -> None:
    """Equal figures, but for the rounding of float32 sums."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    else:
        assert one == other


# ---- figures -------------------------------------------------------------------------------------


def probabilities(subject: Predictor, values: Sequence[Any]) -> np.ndarray:
    logits = subject.logits(values, batch_size=1)
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(raised / raised.sum(-1, keepdims=True))


def test_figures_are_those_of_the_models(report: Report) -> None:
    """A report of another sample, model or definition would look just as good."""
    subject, teacher, alone = reader(2), reader(9), reader(0)
    figures = report.facts["models"]["student/seed-0"]["figures"]
    p, labels = probabilities(subject, DATA.values), DATA.labels
    q = probabilities(teacher, DATA.values)
    loyalty = 1 - np.mean([jensenshannon(a, b, base=2) for a, b in zip(p, q, strict=True)])
    some = DATA.take(DATA.sample(12, 0))

    def right(who: Predictor) -> dict[str, np.ndarray]:
        return {
            name: np.array(
                [
                    who.logits(perturb(some.values, name, s, 0)).argmax(-1) == some.labels
                    for s in (1, 3, 5)
                ]
            )
            for name in NOISES[:2]
        }

    ours, theirs = right(subject), right(alone)
    clean = probabilities(subject, some.values).argmax(-1) == some.labels
    by_group = [
        accuracy_score(labels[rows], p.argmax(-1)[rows])
        for rows in ([n for n, g in enumerate(DATA.groups or ()) if g == "b"],)
    ]
    expected = {
        "accuracy": accuracy_score(labels, p.argmax(-1)),
        "nll": log_loss(labels, p),
        "brier": ((p - np.eye(2)[labels]) ** 2).sum(-1).mean(),
        "noise": np.mean([hit.mean() for hit in ours.values()]),
        "worst_case": np.mean(clean & np.all(np.concatenate(list(ours.values())), axis=0)),
        "mce": np.mean([(~ours[n]).sum() / (~theirs[n]).sum() for n in NOISES[:2]]),
        "loyalty.label": np.mean(p.argmax(-1) == q.argmax(-1)),
        "loyalty.probability": loyalty,
    }
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    groups = report.facts["models"]["student/seed-0"]["groups"]
    assert groups["b"][:2] == [pytest.approx(by_group[0]), 25]
    assert "worst_group" not in figures, "no group has 30 examples"
    shifted = texts(15, 2)
    hits = subject.logits(shifted.values).argmax(-1) == shifted.labels
    assert figures["shifted.b"] == figures["shifted"] == pytest.approx(hits.mean())


def test_figures_of_attacks_are_those_of_the_attacks(report: Report) -> None:
    """The plan's budget would be printed, and another one have run."""
    few, subject = DATA.take(DATA.sample(8, 0)), reader(2)
    figures = report.facts["models"]["student/seed-0"]["figures"]

    def predict(values: Sequence[str]) -> np.ndarray:
        return subject.logits(values)

    search = TextAttack("characters", "character", max_queries=12)
    found = attack_texts(predict, few.values, few.labels, search)
    assert figures["attack.characters"] == found.attacked_correct.mean()
    pgd = Attack("pgd", epsilon=0.05, norm="l2", steps=2)
    standing = np.zeros(8, bool)
    for places, batch, labels in subject.batches(few.values, few.labels, 1):
        keys = [few.keys[place] for place in places]
        result = attack_batch(
            subject.model, batch, labels, pgd, input_space(subject.task_model), 0, keys
        )
        standing[places] = result.correct.numpy()
    assert figures["attack.pgd"] == standing.mean()
    assert figures["attacked"] == (standing & found.attacked_correct).mean()
    alone = reader(0)
    moved = attack_texts(alone.logits, few.values, few.labels, search).texts
    right = subject.logits(moved).argmax(-1) == few.labels
    assert figures["transfer.characters"] == right.mean()
    assert "transfer.pgd" not in figures, "embeddings of one model mean nothing to another"
    rate = invariance(predict, few.values, "places in front").failure_rate
    assert figures["invariance.places in front"] == rate
    assert report.facts["attacks"]["pgd"] == pgd.describe()
    assert report.facts["attacks"]["characters"]["max_queries"] == 12


def test_temperature_is_fitted_on_validation(report: Report) -> None:
    """Fitted on the test examples, every model would be calibrated."""
    held_out, subject = texts(20, 1), reader(2)
    logits = subject.logits(held_out.values)
    rows = np.arange(20)

    def loss(temperature: float) -> float:
        z = logits / temperature
        return float(np.mean(np.logaddexp.reduce(z, axis=1) - z[rows, held_out.labels]))

    figures = report.facts["models"]["student/seed-0"]["figures"]
    best = figures["temperature"]
    assert loss(best) <= min(loss(best * 1.01), loss(best / 1.01))
    p = probabilities(subject, DATA.values) ** (1 / best)
    p = p / p.sum(-1, keepdims=True)
    assert figures["nll_scaled"] == pytest.approx(log_loss(DATA.labels, p), rel=1e-5)


def test_roles_and_differences_are_over_pairs_of_seeds(report: Report) -> None:
    """Means over other models would hide who was measured."""
    facts = report.facts
    values = [facts["models"][f"student/seed-{s}"]["figures"]["noise"] for s in (0, 1)]
    theirs = [facts["models"][f"baseline/seed-{s}"]["figures"]["noise"] for s in (0, 1)]
    row = facts["roles"]["student"]["noise"]
    assert row == {"mean": np.mean(values), "std": np.std(values, ddof=1), "values": values}
    verdict = facts["verdicts"]["baseline"]["noise"]
    assert verdict["difference"] == pytest.approx(np.mean(values) - np.mean(theirs))
    assert facts["differences"]["noise"]["difference"] == pytest.approx(verdict["difference"])
    assert (verdict["word"], verdict["seeds"]) == ("preliminary", 2)
    assert list(facts["verdicts"]["baseline"]) == ["clean", "noise", "attacked", "shifted", "nll"]
    alone = facts["models"]["baseline/seed-1"]["figures"]
    assert alone["mce"] == pytest.approx(1.0), "the reference against itself"


# ---- parts ---------------------------------------------------------------------------------------


def test_nothing_is_computed_twice(report: Report, folder: Path) -> None:
    """A report of hours would begin anew for a change of its layout."""
    lines: list[str] = []
    options: dict[str, Any] = {"validation": texts(20, 1), "shifted": {"b": texts(15, 2)}}
    again = evaluate_robustness(
        models(), DATA, plan=PLAN, folder=folder, say=lines.append, **options
    )
    assert lines == []
    assert again.facts == report.facts
    other = {**models(), "teacher": reader(8)}
    evaluate_robustness(other, DATA, plan=PLAN, folder=folder, say=lines.append, **options)
    assert {line.split(":")[0] for line in lines} == {"teacher"}
    del lines[:]
    plan = dataclasses.replace(PLAN, steps=3)
    evaluate_robustness(models(), DATA, plan=plan, folder=folder, say=lines.append, **options)
    assert {line.split(": ")[1] for line in lines} == {"pgd", "gates"}


def test_an_interrupted_report_goes_on(tmp_path: Path) -> None:
    """A kill after hours would lose them all, or leave half a part that is taken for a whole."""
    plan = dataclasses.replace(PLAN, attacks=("characters",), invariance=())
    pair = {"baseline": reader(0), "student": reader(2)}
    done: list[str] = []

    def until(count: int) -> None:
        lines: list[str] = []

        def say(line: str) -> None:
            if len(lines) == count:
                raise KeyboardInterrupt
            lines.append(line)

        try:
            evaluate_robustness(pair, DATA, plan=plan, folder=tmp_path, say=say)
        finally:
            done.extend(lines)

    for count in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            until(count)
    until(99)
    whole: list[str] = []
    fresh = evaluate_robustness(pair, DATA, plan=plan, say=whole.append)
    assert sorted(done) == sorted(whole)
    assert len(set(done)) == len(done)
    kept = evaluate_robustness(pair, DATA, plan=plan, folder=tmp_path)
    assert kept.facts == fresh.facts


def test_neither_batch_size_nor_order_of_the_data_matters(report: Report) -> None:
    """The figures could not be compared with those of another machine."""
    order = np.random.default_rng(0).permutation(len(DATA)).tolist()
    turned = evaluate_robustness(
        {"baseline": {0: reader(0), 1: reader(1)}, "student": {0: reader(2), 1: reader(3)}},
        DATA.take(order),
        plan=dataclasses.replace(PLAN, batch_size=64),
        shifted={"b": texts(15, 2)},
    )
    for key, model in turned.facts["models"].items():
        before = copy.deepcopy(report.facts["models"][key])
        for name in set(before["figures"]) - set(model["figures"]):
            del before["figures"][name]  # what needs the teacher or validation examples
        before["gates"], model["gates"] = [], []
        same(model, before)


# ---- verdicts ------------------------------------------------------------------------------------


def noisy(weight: np.ndarray, seed: int, size: float) -> Predictor:
    return linear(weight + size * np.random.default_rng(seed).normal(size=weight.shape))


TABULAR = RobustnessConfig(severities=(1, 5), perturbed_examples=150)


def test_the_same_model_is_not_distinguishable_from_itself() -> None:
    """A report that praises a distillation which changed nothing is worth nothing."""
    data, weight = rows(200)
    alone = {seed: noisy(weight, seed, 0.8) for seed in range(8)}
    again = {seed: noisy(weight, seed, 0.8) for seed in range(8)}
    facts = evaluate_robustness({"baseline": alone, "student": again}, data, plan=TABULAR).facts
    verdicts = facts["verdicts"]["baseline"]
    assert {row["word"] for row in verdicts.values()} == {"not distinguishable"}
    assert {row["difference"] for row in verdicts.values()} == {0.0}
    text = markdown(facts)
    assert not {"better", "worse"} & set(text.replace("less is better", "").split())
    assert "**better**" not in text
    assert "**worse**" not in text


@pytest.mark.parametrize(("ours", "theirs", "word"), [(0.3, 2.0, "better"), (2.0, 0.3, "worse")])
def test_a_clear_difference_is_said_in_both_directions(
    ours: float, theirs: float, word: str
) -> None:
    """Losses that are told less plainly than gains make an advertisement."""
    data, weight = rows(200)
    students = {seed: noisy(weight, seed, ours) for seed in range(8)}
    alone = {seed: noisy(weight, 50 + seed, theirs) for seed in range(8)}
    report = evaluate_robustness({"baseline": alone, "student": students}, data, plan=TABULAR)
    verdicts = report.facts["verdicts"]["baseline"]
    assert {verdicts[axis]["word"] for axis in ("clean", "noise")} == {word}
    assert f"the student is {word} than the baseline" in markdown(report.facts)
    assert bool(report.require(["robustness.noise>=0"])) == (word == "worse")


def test_at_most_six_axes_are_judged() -> None:
    """With more, Holm leaves eight pairs of seeds no way to any word: 2 / 2^8 * 7 is above .05."""
    data, weight = rows(200)
    grouped = dataclasses.replace(data, groups=tuple(n % 2 for n in range(200)))
    subjects = {role: noisy(weight, n, 1.0) for n, role in enumerate(("baseline", "student"))}
    shifted = {name: rows(50, seed=n)[0] for n, name in enumerate("uvw")}
    facts = evaluate_robustness(subjects, grouped, plan=TABULAR, shifted=shifted).facts
    verdicts = facts["verdicts"]["baseline"]
    assert list(verdicts) == ["clean", "noise", "shifted", "worst_group", "nll"]
    assert {row["word"] for row in verdicts.values()} == {"checkpoint only"}
    assert verdicts["worst_group"]["p"] is None
    assert "not of methods" in sentences(verdicts, "baseline")


def digits(model: nn.Module) -> Predictor:
    processor = tf.ViTImageProcessorPil(
        do_resize=False, image_mean=[0.5], image_std=[0.5], size={"height": 8, "width": 8}
    )
    return Predictor("digits", model, processor)


def trained(seed: int, pictures: torch.Tensor, labels: torch.Tensor) -> Any:
    torch.manual_seed(seed)
    config = tf.ViTConfig(
        image_size=8,
        patch_size=8,
        num_channels=1,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=24,
        num_labels=10,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )
    model = tf.ViTForImageClassification(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(pixel_values=pictures).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def test_a_saturated_student_does_not_come_out_as_better() -> None:
    """Logits a hundred times as large, as defensive distillation at T = 100 leaves them, have no
    gradient of the cross-entropy: an attack by it alone calls such a student robust."""
    sets = load_digits()
    grey = np.rint(sets.images / 16 * 255).astype(np.uint8)
    pictures = torch.tensor(grey[:200] / 127.5 - 1, dtype=torch.float32)[:, None]
    labels = torch.tensor(sets.target[:200])
    alone = {seed: digits(trained(seed, pictures, labels)) for seed in range(6)}
    students: dict[int, Predictor] = {}
    for seed, one in alone.items():
        model: Any = copy.deepcopy(one.model)
        with torch.no_grad():
            model.classifier.weight *= 100
            model.classifier.bias *= 100
        students[seed] = digits(model)
    data = Examples(tuple(grey[200:240]), sets.target[200:240])

    def by_cross_entropy(subject: Predictor) -> float:
        attack = Attack("pgd", 0.15, steps=5, losses=("ce",))
        space = input_space(subject.task_model, subject.processor)
        _, batch, answers = next(subject.batches(data.values, data.labels))
        return float(
            attack_batch(subject.model, batch, answers, attack, space).correct.float().mean()
        )

    fake = np.mean([by_cross_entropy(students[s]) - by_cross_entropy(alone[s]) for s in range(6)])
    assert fake > 0.1, "the fixture has the effect"
    plan = RobustnessConfig(
        epsilon=0.15,
        attacks=("pgd",),
        steps=5,
        perturbations=("brightness",),
        severities=(3,),
        attacked_examples=40,
        gate_examples=30,
    )
    report = evaluate_robustness({"baseline": alone, "student": students}, data, plan=plan)
    verdict = report.facts["verdicts"]["baseline"]["attacked"]
    assert verdict["difference"] < 0.1, "the margin sees what the cross-entropy does not"
    assert verdict["word"] != "better"
    if verdict["difference"] > 0:
        assert verdict["word"] == MASKED
        assert math.isnan(report.figures["attacked"])
        assert report.require(["robustness.attacked>=0"])
    assert any(MASKED in note for note in report.facts["notes"])
    assert report.facts["models"]["baseline/seed-0"]["figures"]["transfer.pgd"] <= 1


# ---- what is said --------------------------------------------------------------------------------


def notes(subjects: Mapping[str, Any], **options: Any) -> str:
    data, _ = rows(200)
    plan = dataclasses.replace(TABULAR, **options)
    return "\n".join(evaluate_robustness(subjects, data, plan=plan).facts["notes"])


def test_a_robust_objective_needs_a_control_and_a_robust_teacher() -> None:
    """What noise in training gave would be credited to the teacher."""
    _, weight = rows(200)
    good, bad = linear(weight), noisy(weight, 0, 5.0)
    pair = {"baseline": good, "student": good}
    assert "without a control" in notes(pair, robust_objective=True)
    assert "without a control" not in notes(pair)
    with_control = {**pair, "control": good, "teacher": bad}
    told = notes(with_control, robust_objective=True)
    assert "without a control" not in told
    assert "The teacher is less robust than the baseline (noise" in told
    assert "less robust" not in notes({**pair, "teacher": good}, robust_objective=True)


def test_what_was_seen_in_training_is_left_out_of_the_means() -> None:
    """A student trained on typos would be praised for typos."""
    data, weight = rows(200)
    plan = dataclasses.replace(TABULAR, seen=("feature_noise",))
    facts = evaluate_robustness(linear(weight), data, plan=plan).facts
    (model,) = facts["models"].values()
    mean = np.mean(model["severities"]["missing_values"])
    assert model["figures"]["noise"] == pytest.approx(mean)
    assert "| feature noise (seen in training) |" in markdown(facts)
    assert any("Used in training" in note for note in facts["notes"])


def test_one_model_alone_has_figures_and_no_verdict() -> None:
    """Most users begin with the one model that they have."""
    data, weight = rows(200)
    report = evaluate_robustness(linear(weight), data, plan=TABULAR)
    assert report.facts["verdicts"] == {}
    assert "Distilled student against" not in markdown(report.facts)
    assert report.require(["student.accuracy>=0.9"]) == []
    assert report.require(["student.noise>=1.1"]) != []


@pytest.mark.usefixtures("whole_figures")
def test_markdown_and_pictures_are_written(report: Report, tmp_path: Path) -> None:
    """The tables are what people read: a figure in them that is not the report's is a lie."""
    report.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("robustness.json", "robustness.md", "severity.png", "reliability.png")
    }
    text = (tmp_path / "robustness.md").read_text()
    row = report.facts["roles"]["student"]["worst_case"]
    assert f"{row['mean']:.4f} ± {row['std']:.4f}" in text
    for told in ("epsilon 0.05", "norm l2", "steps 2", "restarts 1", "max queries 12", "**prelim"):
        assert told in text
    assert "|  | Teacher | Baseline | Student |" in text
    assert (tmp_path / "severity.png").read_bytes()[:4] == b"\x89PNG"


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"perturbations": ("keybord_typos",)}, "'keyboard_typos'"),
        ({"perturbations": ("fog",)}, "which is for image"),
        ({"attacks": ("charcters",)}, "'characters'"),
        ({"attacks": ("square",)}, "Expected attacks for text, got 'square', which is for image"),
        ({"invariance": ("names in frnt",)}, "names in front"),
    ],
)
def test_unknown_names_are_refused_before_anything_runs(
    changes: dict[str, Any], message: str
) -> None:
    """An hour later is too late for a misspelt name."""
    lines: list[str] = []
    plan = dataclasses.replace(PLAN, **changes)
    with pytest.raises(ValueError, match=message):
        evaluate_robustness(reader(0), DATA, plan=plan, say=lines.append)
    assert lines == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pupil": reader(0)}, "Expected models by role"),
        ({"student": {0: reader(0)}, "baseline": {1: reader(1), 2: reader(2)}}, "equal seeds"),
        ({"student": linear(np.ones((2, 3)))}, "a model of tabular, got text"),
    ],
)
def test_models_that_do_not_fit_are_refused(given: Any, message: str) -> None:
    """Seeds that are no pairs would be compared as if they were."""
    lines: list[str] = []
    with pytest.raises(ValueError, match=message):
        evaluate_robustness(given, DATA, plan=PLAN, say=lines.append)
    assert lines == []


def test_a_text_attack_on_pictures_is_refused() -> None:
    """Letters of a picture cannot be swapped."""
    with pytest.raises(ValueError, match="Expected attacks for image, got 'characters'"):
        RobustnessConfig(attacks=("characters",)).attacks_for("image")
    with pytest.raises(ValueError, match="invariance tests for text only"):
        RobustnessConfig(invariance=("names in front",)).invariance_for("image")


def test_requirements_are_checked_beforehand() -> None:
    """A misspelt axis would be found when everything has run."""
    check_requirements(["robustness.noise>=0", "student.attack.pgd>.5", "mce<1"], PLAN, "text")
    for wrong, message in (
        ("robustness.noize>=0", "Did you mean 'noise'"),
        ("noise", "Expected a requirement"),
        ("worst_group>=0", "there is no axis 'worst_group'"),
    ):
        with pytest.raises(ValueError, match=message):
            check_requirements([wrong], PLAN, "text")
    assert DATA.names == NAMES
