"""hf_distill.robustness: figures of one model (measures, calibration, figures, groups)."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.spatial.distance import jensenshannon
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from hf_distill.evaluation.measures import (
    accuracy,
    attack_summary,
    brier,
    label_loyalty,
    nll,
    probability_loyalty,
    risk_coverage_area,
    selective_accuracy,
)
from hf_distill.robustness.calibration import (
    adaptive_ece,
    ece,
    ece_floor,
    fit_temperature,
    reliability,
)
from hf_distill.robustness.figures import (
    mean_corruption_error,
)
from hf_distill.robustness.groups import (
    group_accuracies,
    worst_group,
)

SATURATED = np.array([[math.log(0.05), math.log(0.95)], [-np.inf, 0.0]])
"""Two classes, p = .95 and 1."""


def items(n: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits spread over all confidences, and labels that are right about half of the time."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * rng.uniform(0.1, 6, size=(n, 1))
    guess = rng.random(n) < 0.5
    return logits, np.where(guess, logits.argmax(-1), rng.integers(classes, size=n))


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


# ---- classification ------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 5])
def test_accuracy_nll_and_brier_match_scikit_learn(classes: int) -> None:
    """A sum over classes that became a mean, or bits for nats, still looks like a good score."""
    logits, labels = items(300, classes, seed=1)
    p, names = softmax(logits), list(range(classes))
    assert accuracy(logits, labels) == pytest.approx(accuracy_score(labels, logits.argmax(-1)))
    assert nll(logits, labels) == pytest.approx(log_loss(labels, p, labels=names))
    assert brier(logits, labels) == pytest.approx(
        brier_score_loss(np.eye(classes)[labels], p, scale_by_half=False)
    )


def test_scores_are_exact_for_large_logits() -> None:
    """exp(1000) is infinite: NLL and Brier would become NaN for a model trained at T = 100."""
    logits = [[1000.0, 0.0], [1000.0, 999.0]]
    assert nll(logits, [1, 0]) == pytest.approx((1000 + math.log1p(math.exp(-1))) / 2)
    p = 1 / (1 + math.exp(-1))
    assert brier(logits, [1, 0]) == pytest.approx((2 + 2 * (1 - p) ** 2) / 2)


def test_selective_accuracy_and_area_average_over_the_orders_of_ties() -> None:
    """With ties cut in the order of the data, sorting the test set by label would change both."""
    logits = np.array([[0.0, 3.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.5]])
    labels = np.array([1, 0, 1, 0, 0])
    selected, areas = [], []
    for tied in itertools.permutations([1, 2, 3]):  # all orders of the equal confidences
        hits = np.array([logits[i].argmax() == labels[i] for i in (0, *tied, 4)])
        selected.append(hits[:3].mean())
        areas.append(np.mean([1 - hits[:k].mean() for k in range(1, 6)]))
    assert np.std(areas) > 0, "the order must matter for this test to say something"
    for order in (np.arange(5), np.arange(5)[::-1]):
        got = selective_accuracy(logits[order], labels[order], coverages=(0.6, 1.0))
        assert got == pytest.approx({0.6: np.mean(selected), 1.0: 3 / 5})
        assert risk_coverage_area(logits[order], labels[order]) == pytest.approx(np.mean(areas))


def test_coverage_is_not_rounded_up_by_float_error() -> None:
    """0.07 · 100 = 7.000000000000001 in floats: one item too many, and the wrong one."""
    logits = np.stack([np.zeros(100), np.linspace(9, 1, 100)], axis=1)
    labels = (np.arange(100) < 7).astype(int)
    assert selective_accuracy(logits, labels, coverages=(0.07,)) == {0.07: 1.0}
    assert selective_accuracy(logits, labels, coverages=(0.071,)) == {0.071: 7 / 8}


@pytest.mark.parametrize("coverage", [0.0, 1.1])
def test_coverage_outside_its_range_is_refused(coverage: float) -> None:
    """The mean over no items is NaN, which is neither good nor bad in a table."""
    with pytest.raises(ValueError, match="above 0 and up to 1"):
        selective_accuracy([[0.0, 1.0]], [1], coverages=(coverage,))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[0.0, 1.0]], [1, 0], r"logits of shape \(1, 2\) want \(1,\)"),
        ([[0.0, 1.0]], [2], "from 0 to 1, got int64 from 2 to 2"),
        ([[0.0, 1.0]], [-100], "items without a label"),
        ([[0.0, 1.0]], [1.0], "float64"),
        ([0.0, 1.0], [1], r"\(items, classes\)"),
        (np.zeros((0, 2)), [], "at least one of each"),
        ([[0.0, 1.0], [np.nan, 1.0]], [1, 0], "for item 1 "),
        ([[np.inf, 1.0]], [1], "overflow"),
    ],
)
def test_bad_items_are_refused(logits: list, labels: list, message: str) -> None:
    """-100 would index the last class from behind, and NaN count as class 0."""
    for function in (accuracy, nll, brier, ece, adaptive_ece, fit_temperature, risk_coverage_area):
        with pytest.raises(ValueError, match=message):
            function(logits, labels)


# ---- calibration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "classes", "seed", "bins", "expected"),
    [
        (500, 3, 0, 15, 0.20487637089171748),
        (500, 3, 0, 10, 0.1970724705346483),
        (1000, 10, 1, 15, 0.2603196569552279),
    ],
)
def test_ece_matches_netcal(n: int, classes: int, seed: int, bins: int, expected: float) -> None:
    """Another edge rule or weight gives a number that looks like an ECE (netcal 1.4.0)."""
    assert ece(*items(n, classes, seed), bins=bins) == pytest.approx(expected, abs=1e-12)


def test_confidence_of_one_is_in_the_last_bin() -> None:
    """A phantom bin for confidence 1 (torchmetrics 1.9) gives .525; netcal 1.4.0 gives .475."""
    assert ece(SATURATED, [1, 0]) == pytest.approx(0.475)


def test_reliability_matches_scikit_learn_and_sums_to_the_ece() -> None:
    """A diagram whose points belong to other bins than the ECE contradicts the number above it."""
    logits, labels = items(700, 3, seed=3)
    count, confidence, hit_rate = reliability(logits, labels, bins=10)
    top = softmax(logits).max(-1)
    observed, predicted = calibration_curve(logits.argmax(-1) == labels, top, n_bins=10)
    filled = count > 0
    assert count.sum() == 700
    assert not filled[:3].any(), "no confidence below 1/3 with three classes"
    np.testing.assert_allclose(confidence[filled], predicted)
    np.testing.assert_allclose(hit_rate[filled], observed)
    assert np.isnan(confidence[~filled]).all()
    assert np.isnan(hit_rate[~filled]).all()
    gaps = np.nansum(count * np.abs(hit_rate - confidence)) / 700
    assert ece(logits, labels, bins=10) == pytest.approx(gaps)


def test_adaptive_ece_matches_scikit_learn_quantile_bins() -> None:
    """Edges from a grid instead of quantiles would repeat the plain ECE under another name."""
    logits, labels = items(600, 4, seed=4)
    observed, predicted = calibration_curve(
        logits.argmax(-1) == labels, softmax(logits).max(-1), n_bins=15, strategy="quantile"
    )
    assert len(observed) == 15  # 600 items without ties: 40 in each
    expected = np.mean(np.abs(observed - predicted))
    assert adaptive_ece(logits, labels) == pytest.approx(expected)
    assert adaptive_ece(logits, labels) != pytest.approx(ece(logits, labels))


def test_adaptive_ece_keeps_equal_confidences_together() -> None:
    """Equal confidences over two bins: sorting the data by correctness would raise the error."""
    logits = np.tile([[0.0, math.log(3)]], (40, 1))  # p = 3/4
    labels = np.arange(40) < 30  # three of four are right
    assert adaptive_ece(logits, labels.astype(int)) == pytest.approx(0)
    assert adaptive_ece(SATURATED, [1, 0]) == pytest.approx((0.05 + 1) / 2)  # fewer items than bins


@pytest.mark.parametrize("n", [1000, 20000])
def test_floor_matches_the_normal_approximation(n: int) -> None:
    """Without its floor, a perfect model with few items is reported as badly calibrated.

    The gap of a bin is the mean of independent centred terms: E|gap| is √(2/π) of its deviation.
    """
    p = np.random.default_rng(0).uniform(size=n)
    top = np.maximum(p, 1 - p)
    index = np.ceil(top * 15)
    variances = [np.sum((top * (1 - top))[index == b]) for b in range(1, 16)]
    expected = math.sqrt(2 / math.pi) * np.sqrt(variances).sum() / n
    floor = ece_floor(np.log(np.stack([1 - p, p], axis=1)), draws=400)
    assert floor == pytest.approx(expected, rel=0.06)  # 0.3 / √400, four times


def test_floor_is_the_ece_of_labels_drawn_from_the_model() -> None:
    """A floor from other bins or labels is one that a calibrated model does not reach."""
    logits, _ = items(200, 4, seed=5)
    p, rng = softmax(logits), np.random.default_rng(1)
    drawn = [ece(logits, [rng.choice(4, p=row) for row in p]) for _ in range(60)]
    error = np.std(drawn) / math.sqrt(60)
    assert ece_floor(logits) == pytest.approx(np.mean(drawn), abs=4 * error)


def test_floor_depends_on_the_seed_alone() -> None:
    """A floor that moves with the order of the data cannot be reproduced; a global seed leaks."""
    logits, _ = items(100, 3, seed=6)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    floor = ece_floor(logits, draws=20)
    assert ece_floor(logits[::-1], draws=20) == floor != ece_floor(logits, draws=20, seed=1)
    assert states == (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("scale", [0.2, 1.0, 30.0])
def test_temperature_has_the_least_likelihood_loss(scale: float) -> None:
    """A temperature that stopped early makes the fitted ECE of one model look worse."""
    logits, labels = items(400, 4, seed=7)
    logits = logits * scale

    def loss(log_t: float) -> float:
        return log_loss(labels, softmax(logits / math.exp(log_t)), labels=[0, 1, 2, 3])

    best = minimize_scalar(loss, bounds=(-5, 7), method="bounded", options={"xatol": 1e-7}).x
    assert fit_temperature(logits, labels) == pytest.approx(math.exp(best), rel=1e-4)


def test_temperature_is_bounded_and_says_so() -> None:
    """All right: the best T is 0, and dividing by it makes every test score NaN."""
    logits, labels = items(50, 3, seed=8)
    assert fit_temperature(logits, logits.argmax(-1)) == 1.0
    assert fit_temperature(logits, logits.argmin(-1)) == pytest.approx(1000.0)
    assert fit_temperature(np.zeros((4, 3)), [0, 1, 2, 0]) == 1.0
    ruled_out = np.array([[0.0, 8.0, -np.inf]] * 4)
    assert fit_temperature(ruled_out, [1, 1, 1, 0]) == pytest.approx(8 / math.log(3))
    with pytest.raises(ValueError, match="-inf"):
        fit_temperature(ruled_out, [1, 1, 1, 2])
    nearly = np.array([[0.0, 1.0]] * 10**3 + [[0.0, 1e-99]])
    labels = np.array([1] * 10**3 + [0])
    assert fit_temperature(nearly, labels) == pytest.approx(0.01)


@pytest.mark.parametrize("function", [ece, adaptive_ece, reliability])
def test_no_bins_are_refused(function: object) -> None:
    """No bin has no gap: every model would be perfectly calibrated."""
    with pytest.raises(ValueError, match="at least 1 bin"):
        function([[0.0, 1.0]], [1], bins=0)
    with pytest.raises(ValueError, match="at least 1 bin and 1 draw"):
        ece_floor([[0.0, 1.0]], draws=0)


# ---- loyalty -------------------------------------------------------------------------------------


def test_loyalty_matches_scipy() -> None:
    """In nats, two models with nothing in common would still be 17 % loyal."""
    student, teacher = items(60, 4, seed=9)[0], items(60, 4, seed=10)[0]
    expected = 1 - jensenshannon(softmax(student), softmax(teacher), base=2, axis=-1).mean()
    assert probability_loyalty(student, teacher) == pytest.approx(expected)
    assert label_loyalty(student, teacher) == np.mean(student.argmax(-1) == teacher.argmax(-1))
    assert probability_loyalty([[0.0, 99.0]], [[99.0, 0.0]]) == pytest.approx(0, abs=1e-9)
    assert probability_loyalty(student, student) == 1.0


@pytest.mark.parametrize("function", [label_loyalty, probability_loyalty])
def test_loyalty_refuses_other_items(function: object) -> None:
    """One row of the teacher would be compared with every row of the student."""
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        function(np.zeros((2, 3)), np.zeros((1, 3)))


# ---- corruption ----------------------------------------------------------------------------------

ALEXNET = [0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816]
ALEXNET += [0.826572, 0.819324, 0.564592, 0.853204, 0.646056, 0.717840, 0.606500]
"""Mean errors over the 5 severities of the 15 corruptions of ImageNet-C, as published."""
RESNET_50 = [80, 82, 83, 75, 89, 78, 80, 78, 75, 66, 57, 71, 85, 77, 77]
"""CE of ResNet-50 in % of AlexNet's, rounded (Hendrycks and Dietterich, 2019, table 1)."""


def test_published_figures_are_reproduced() -> None:
    """Subtracting the clean error once instead of at every severity gives .80 instead of 1.05."""
    reference = {str(c): [e] * 5 for c, e in enumerate(ALEXNET)}
    errors = {str(c): [e * RESNET_50[c] / 100] * 5 for c, e in enumerate(ALEXNET)}
    assert mean_corruption_error(errors, reference) == pytest.approx(0.767, abs=0.003)
    relative = mean_corruption_error(errors, reference, clean=(0.239, 0.435))
    assert relative == pytest.approx(1.05, abs=0.005)
    for c, percent in enumerate(RESNET_50):
        one = mean_corruption_error({"c": errors[str(c)]}, {"c": reference[str(c)]})
        assert one == pytest.approx(percent / 100)


def test_the_reference_itself_is_at_one() -> None:
    """mCE < 1 is the promise itself: any other zero point would turn it around."""
    errors = {"fog": [0.1, 0.2, 0.4], "blur": [0.3, 0.3, 0.9]}
    assert mean_corruption_error(errors, errors) == 1.0
    assert mean_corruption_error(errors, errors, clean=(0.05, 0.05)) == 1.0


def test_sums_are_divided_not_severities() -> None:
    """The mean of ratios by severity is ruled by severity 1, where errors are few."""
    errors, reference = {"fog": [0.0, 0.6]}, {"fog": [0.1, 0.5]}
    assert mean_corruption_error(errors, reference) == pytest.approx(1.0)
    relative = mean_corruption_error(errors, reference, clean=(0.0, 0.1))
    assert relative == pytest.approx(0.6 / 0.4)


def test_a_reference_without_errors_gives_no_ratio() -> None:
    """A crash at the end of a report, or inf, or a mean that leaves out the hardest corruption."""
    errors, reference = {"fog": [0.1], "blur": [0.2]}, {"fog": [0.0], "blur": [0.2]}
    assert math.isnan(mean_corruption_error(errors, reference))
    assert math.isnan(mean_corruption_error(errors, reference, clean=(0.1, 0.2)))
    assert mean_corruption_error({"blur": [0.2]}, {"blur": [0.2]}) == 1.0


@pytest.mark.parametrize(
    ("errors", "reference", "message"),
    [
        ({"fog": [0.1]}, {"blur": [0.1]}, "same corruptions"),
        ({"fog": [0.1, 0.2]}, {"fog": [0.1]}, "same severities"),
        ({"fog": [70.0]}, {"fog": [0.7]}, "not percentages"),
        ({"fog": [math.nan]}, {"fog": [0.7]}, "fog"),
        ({}, {}, "no corruption at all"),
    ],
)
def test_errors_that_do_not_fit_are_refused(errors: dict, reference: dict, message: str) -> None:
    """Another set of corruptions or severities gives an mCE that looks like any other."""
    with pytest.raises(ValueError, match=message):
        mean_corruption_error(errors, reference)


# ---- attacks on text -----------------------------------------------------------------------------


def test_attack_summary_by_hand() -> None:
    """A wrong original counted as a success makes the weakest model the easiest to attack."""
    result = attack_summary(
        original_correct=[1, 1, 1, 0, 0],
        attacked_correct=[0, 0, 1, 0, 1],  # the last was wrong before: skipped, and still wrong
        queries=[10, 20, 60, 1, 1],
        words_changed=[0.1, 0.3, 0.5, 0.0, 0.0],
    )
    assert result == pytest.approx(
        {
            "accuracy": 3 / 5,
            "accuracy_under_attack": 1 / 5,
            "success_rate": 2 / 3,
            "mean_queries": 30,
            "words_perturbed": 0.2,
        }
    )


def test_attack_summary_without_anything_to_attack() -> None:
    """The mean of nothing warns, and a warning is an error in CI; 0 would be a claim."""
    result = attack_summary([0, 0], [0, 0], [1, 1], [0, 0])
    assert result["accuracy_under_attack"] == 0
    assert all(math.isnan(result[k]) for k in ("success_rate", "mean_queries", "words_perturbed"))
    with pytest.raises(ValueError, match="one value per example in all four"):
        attack_summary([1, 1], [1, 1], [1], [0, 0])
    with pytest.raises(ValueError, match="shares"):
        attack_summary([1, 1], [1, 1], [1, 1], [0, 25])


# ---- groups --------------------------------------------------------------------------------------


def test_group_accuracies_match_statsmodels() -> None:
    """Groups paired with other examples still average to the right accuracy (statsmodels 0.15)."""
    groups = np.array([1] * 10 + [0] * 60)
    correct = np.array([1] * 3 + [0] * 7 + [1] * 50 + [0] * 10)
    order = np.random.default_rng(0).permutation(70)
    result = group_accuracies(correct[order], groups[order])
    assert list(result) == [0, 1]
    assert result[0] == pytest.approx((50 / 60, 60, 0.7196838684, 0.9068682302))
    assert result[1] == pytest.approx((0.3, 10, 0.1077912674, 0.6032218525))


def test_small_groups_are_shown_but_cannot_be_the_worst() -> None:
    """The lowest of many small groups is the unluckiest one: the axis would measure noise."""
    groups = ["small"] * 29 + ["large"] * 30 + ["good"] * 40
    correct = [0] * 29 + [1] * 15 + [0] * 15 + [1] * 40
    assert group_accuracies(correct, groups)["small"].accuracy == 0
    worst = worst_group(correct, groups)
    assert worst is not None
    assert worst[0] == "large"
    assert worst[1][:2] == (0.5, 30)
    worst = worst_group(correct, groups, min_count=29)
    assert worst is not None
    assert worst[0] == "small"
    assert worst_group(correct, groups, min_count=41) is None


def test_groups_of_several_types() -> None:
    """Names that cannot be sorted, or label x attribute as a tuple, would end the report."""
    assert list(group_accuracies([1, 0, 1], ["b", 1, "a"])) == [1, "a", "b"]
    assert group_accuracies([1, 0, 1], [(0, "x"), (0, "x"), (1, "y")])[(0, "x")].n == 2


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a", "b"], "each of the 3 examples, got 2"),
        (["a", None, "b"], "got None for example 1"),
        (np.array([0.0, 1.0, np.nan]), "got nan for example 2"),
    ],
)
def test_groups_that_do_not_cover_the_data_are_refused(groups: list, message: str) -> None:
    """The examples without a group may be the hardest, and would drop out unseen."""
    with pytest.raises(ValueError, match=message):
        group_accuracies([1, 0, 1], groups)
    with pytest.raises(ValueError, match=message):
        worst_group([1, 0, 1], groups)


@pytest.mark.parametrize("correct", [[0.5, 1.0], [[1, 0]], [], ["yes"], [2, 1]])
def test_correctness_must_be_zero_or_one(correct: list) -> None:
    """Probabilities or class ids taken for correctness give plausible accuracies."""
    with pytest.raises(ValueError, match=r"1 \(correct\) or 0"):
        group_accuracies(correct, ["a"] * len(correct))
