"""Metrics: the functions, and the `evaluate` modules loaded without a network."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_distill.evaluation import metrics
from hf_distill.evaluation.metrics import (
    agreement,
    calibration_error,
    calibration_sums,
    decision_agreement,
    modules,
    retention,
)

pytestmark = pytest.mark.xdist_group("metrics")  # fixtures that are expensive are made once

REPOSITORY = Path(metrics.__file__).parents[2]


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def ece_by_loop(logits: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Guo et al. (2017), equations 3 and 5, item by item in float64."""
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(softmax(logits.astype(np.float64)), labels, strict=True):
        confidence = max(row)
        for b in range(1, bins + 1):
            if (b - 1) / bins < confidence <= b / bins:
                members[b - 1].append((confidence, list(row).index(confidence) == label))
    error = 0.0
    for items in members:
        if items:
            confidence = sum(c for c, _ in items) / len(items)
            accuracy = sum(hit for _, hit in items) / len(items)
            error += len(items) / len(labels) * abs(accuracy - confidence)
    return error


def random_items(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits spread over all confidences, and labels that are right about half of the time."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * rng.uniform(0.1, 6, size=(n, 1))
    guess = rng.integers(classes, size=n)
    return logits, np.where(rng.random(n) < 0.5, logits.argmax(-1), guess)


# --- agreement -----------------------------------------------------------------------------------


def test_agreement_matches_a_loop() -> None:
    """A wrong dimension would still give plausible shares for square batches."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 3, 3, 3))
    result = agreement(torch.tensor(student), torch.tensor(teacher))
    assert result.shape == (3, 3)
    for i, j in np.ndindex(3, 3):
        same = list(student[i, j]).index(max(student[i, j])) == list(teacher[i, j]).index(
            max(teacher[i, j])
        )
        assert result[i, j].item() == float(same)
    assert 0 < result.mean() < 1, "the data decide nothing"


def test_decision_agreement_matches_a_loop() -> None:
    """With argmax instead of signs, a multi-label student would look right on one class only."""
    rng = np.random.default_rng(1)
    student, teacher = rng.normal(size=(2, 5, 4))
    student[0, 0] = 0.0  # a probability of exactly 1/2 is a no
    teacher[0, 0] = -1.0
    result = decision_agreement(torch.tensor(student), torch.tensor(teacher))
    expected = [
        sum((s > 0) == (t > 0) for s, t in zip(rows, teachers, strict=True)) / 4
        for rows, teachers in zip(student, teacher, strict=True)
    ]
    assert result.shape == (5,)
    assert result.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("function", [agreement, decision_agreement])
def test_agreement_refuses_shapes_that_would_broadcast(function: Any) -> None:
    """One teacher row would silently be compared with every student row."""
    with pytest.raises(ValueError, match=r"one shape, got \(4, 3\) and \(1, 3\)"):
        function(torch.zeros(4, 3), torch.zeros(1, 3))


# --- calibration ---------------------------------------------------------------------------------


def logits_of(probabilities: list[float]) -> torch.Tensor:
    """Two-class float64 logits that choose class 1 with these confidences."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([(1 - p).log(), p.log()], dim=-1)


def everything(labels: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(labels, dtype=torch.bool)


def test_calibration_error_by_hand() -> None:
    """Four bins, by hand: (0.5, 0.75] holds .6 right and .7 wrong, gap |.5 - .65| = .15;
    (0.75, 1] holds .8 right and .9 right, gap |1 - .85| = .15; each has half of the items."""
    labels = torch.tensor([1, 0, 1, 1])
    sums = calibration_sums(logits_of([0.6, 0.7, 0.8, 0.9]), labels, everything(labels), bins=4)
    assert sums[0].tolist() == [0, 0, 2, 2]
    assert sums[1].tolist() == pytest.approx([0, 0, 1.3, 1.7])
    assert sums[2].tolist() == [0, 0, 1, 2]
    assert calibration_error(sums).item() == pytest.approx(0.15)


def test_confidence_of_one_is_in_the_last_bin() -> None:
    """A bin of its own for confidence 1 (torchmetrics 1.9) gives 0.525: |.95 - 1| / 2 + |1 - 0| / 2
    instead of |.975 - .5|."""
    labels = torch.tensor([1, 0])
    logits = torch.cat([logits_of([0.95]), torch.tensor([[0.0, 1000.0]])])
    sums = calibration_sums(logits, labels, everything(labels))
    assert sums[0].tolist() == [0] * 14 + [2]
    assert calibration_error(sums).item() == pytest.approx(0.475)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_confidence_on_an_edge_is_in_the_lower_bin(dtype: torch.dtype) -> None:
    """Bins are open below: undecided binary items (1/2) belong to (0.4, 0.5], not to (0.5, 0.6]."""
    labels = torch.zeros(3, dtype=torch.long)
    logits = torch.tensor([[0.0, 0.0], [7.0, 7.0], [-0.1, -0.1]], dtype=dtype)
    sums = calibration_sums(logits, labels, everything(labels), bins=10)
    assert sums[0].tolist() == [0, 0, 0, 0, 3, 0, 0, 0, 0, 0]
    assert sums[1, 4].item() == 1.5


@pytest.mark.parametrize("bins", [1, 2, 10, 15])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_calibration_error_matches_a_loop(bins: int, dtype: torch.dtype) -> None:
    """An error in the edges or in the weights still gives a number that looks like an ECE."""
    values, labels = random_items(400, 4)
    logits = torch.tensor(values, dtype=dtype)
    expected = ece_by_loop(logits.double().numpy(), labels, bins)
    target = torch.tensor(labels)
    sums = calibration_sums(logits, target, everything(target), bins)
    assert sums.shape == (3, bins)
    assert expected > 0.05
    assert calibration_error(sums).item() == pytest.approx(expected, rel=1e-6)


def test_calibration_sums_add_up_over_batches() -> None:
    """A mean over batches would weigh a ragged last batch like a full one."""
    values, labels = random_items(101, 3)
    logits, target = torch.tensor(values), torch.tensor(labels)
    mask = torch.tensor(np.random.default_rng(2).random(101) < 0.7)
    whole = calibration_sums(logits, target, mask)
    batches = zip(logits.split(8), target.split(8), mask.split(8), strict=True)
    parts = torch.stack([calibration_sums(*batch) for batch in batches]).sum(0)
    torch.testing.assert_close(parts, whole, rtol=1e-14, atol=0)
    assert torch.equal(parts[[0, 2]], whole[[0, 2]])  # the counts, exactly


def test_masked_items_add_nothing() -> None:
    """Padding, often NaN or enormous and labelled -100, must not move the error."""
    values, labels = random_items(40, 3)
    logits, target = torch.tensor(values).view(8, 5, 3), torch.tensor(labels).view(8, 5)
    mask = torch.arange(5) < torch.tensor([5, 1, 0, 3, 2, 5, 4, 1])[:, None]
    expected = calibration_sums(logits[mask], target[mask], everything(target[mask]))
    for garbage in (0.0, 1e30, math.inf, -math.inf, math.nan):
        padded = torch.where(mask[..., None], logits, garbage)
        for kind in (torch.bool, torch.long, torch.float32):
            # also masked items whose label is the class that is chosen
            for labelled in (target.where(mask, -100), target.where(mask, padded.argmax(-1))):
                sums = calibration_sums(padded, labelled, mask.to(kind))
                assert torch.equal(sums, expected)


def test_nothing_counted_is_no_error() -> None:
    """An evaluation without labels would log NaN."""
    for n in (0, 4):
        labels = torch.full((n,), -100)
        sums = calibration_sums(torch.randn(n, 3), labels, labels != -100)
        assert not sums.any()
        assert calibration_error(sums).item() == 0.0


def test_counting_goes_on_beyond_float32() -> None:
    """In float32, 2**24 + 1 == 2**24: with many tokens or pixels the count would stand still."""
    labels = torch.tensor([1])
    sums = calibration_sums(torch.tensor([[0.0, 5.0]]), labels, everything(labels))
    running = torch.zeros_like(sums)
    running[0] = 2**24
    assert (running + sums)[0].sum().item() == 15 * 2**24 + 1


def test_nothing_looks_at_values_on_the_host() -> None:
    """A host sync in every evaluation batch, which only a profiler would show; tensors on the meta
    device have no values, so .item() and boolean indexing raise."""
    logits = torch.empty(4, 6, 3, device="meta")
    labels = torch.empty(4, 6, dtype=torch.long, device="meta")
    assert agreement(logits, logits).shape == (4, 6)
    assert decision_agreement(logits, logits).shape == (4, 6)
    assert calibration_error(calibration_sums(logits, labels, labels != -100)).shape == ()


def test_calibration_sums_refuses_what_does_not_fit() -> None:
    """Labels of a shifted language model, one too many, would broadcast or be misaligned."""
    logits, labels = torch.zeros(2, 4, 3), torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"labels are \(2, 5\) and the mask is \(2, 4\)"):
        calibration_sums(logits, torch.zeros(2, 5), labels)
    with pytest.raises(ValueError, match=r"labels are \(2, 4\) and the mask is \(4,\)"):
        calibration_sums(logits, labels, labels[0])
    with pytest.raises(ValueError, match="at least 1 bin, got bins=0"):
        calibration_sums(logits, labels, labels, bins=0)


# --- retained ------------------------------------------------------------------------------------


def test_retention_is_the_share_of_the_teacher() -> None:
    """Turned around, a student worse than its teacher would be reported above 100 %."""
    student = {"accuracy": 0.6, "f1": 0.9, "only_student": 1.0}
    teacher = {"accuracy": 0.8, "f1": 0.6, "only_teacher": 1.0}
    assert retention(student, teacher) == pytest.approx(
        {"retention_accuracy": 0.75, "retention_f1": 1.5}
    )


LOWER_IS_BETTER = """
    loss eval_loss logloss perplexity eval_ppl wer cer wer_ortho error top1_error mse mae rmse MSE
    mean_squared_error ece ece15 ece_15 calibration_error brier brier_score nll eval/Loss kl
    forward_kl kl_divergence cross_entropy epoch step total_flos eval_runtime eval_steps_per_second
    eval_samples_per_second eval_model_preparation_time
"""
HIGHER_IS_BETTER = """
    accuracy eval_accuracy top5_accuracy f1 answer_f1 exact_match matthews_correlation recall r2
    precision roc_auc mean_iou intersection bleu rougeL spearmanr piece_f1 soccer_f1 silhouette
    certainty character_accuracy agreement
"""


@pytest.mark.parametrize("name", LOWER_IS_BETTER.split())
def test_lower_is_better_is_not_retained(name: str) -> None:
    """A student with half of the teacher's accuracy would "retain 200 %" of its loss."""
    assert retention({name: 2.0}, {name: 1.0}) == {}


@pytest.mark.parametrize("name", HIGHER_IS_BETTER.split())
def test_higher_is_better_is_retained(name: str) -> None:
    """ "answer_f1" contains "wer", "piece_f1" "ece" and "character" "ter": searched for as mere
    letters they would vanish from the report."""
    assert retention({name: 1.0}, {name: 2.0}) == {f"retention_{name}": 0.5}


@pytest.mark.parametrize("value", [0.0, -0.1, math.nan, math.inf])
def test_no_share_of_a_teacher_without_a_result(value: float) -> None:
    """A division by zero would end the evaluation; a negative share says nothing."""
    assert retention({"accuracy": 0.5}, {"accuracy": value}) == {}


# --- the `evaluate` modules ----------------------------------------------------------------------

# Raising is not enough: libraries catch errors of the network and go on. So attempts are recorded.
# (urllib3 opens a socket when it is imported, bound to the loopback address: not the network.)
SCRIPT = """
import json
import socket
import sys

attempts = []
CONTACTS = ("socket.connect", "socket.get", "socket.send", "urllib.Request", "http.client")


def forbid(event, arguments):
    if event.startswith(CONTACTS):
        attempts.append(event)
        raise OSError(f"{event}: there is no network in this test")


sys.addaudithook(forbid)

import numpy as np
import torch

from hf_distill.evaluation import metrics

data = dict(np.load(sys.argv[1]))
results = {}


def record(key, function, *arguments, **keywords):
    try:
        results[key] = function(*arguments, **keywords)
    except ValueError as error:
        results[key] = str(error)


student, teacher, labels = data["student"], data["teacher"], data["labels"]
names = ["agreement", "calibration_error", "kl_divergence", "retention"]
loaded = {name: metrics.load_metric(name) for name in names}
about = {k: [m.name, m.description, m.citation, str(m.features)] for k, m in loaded.items()}
run = {name: module.compute for name, module in loaded.items()}
logits = dict(predictions=student, references=teacher)
record("agreement", run["agreement"], **logits)
record("agreement ids", run["agreement"], predictions=student.argmax(-1),
       references=teacher.argmax(-1).tolist())
record("agreement bf16", run["agreement"], predictions=torch.tensor(student).bfloat16(),
       references=torch.tensor(student).bfloat16())
record("agreement near tie", run["agreement"], predictions=[[1.0, 1.0 + 1e-12]],
       references=[[0.0, 1.0]])
for start in (0, 32):
    part = slice(start, start + 32)
    loaded["agreement"].add_batch(predictions=student[part], references=teacher[part])
record("agreement batches", run["agreement"])
record("kl", run["kl_divergence"], **logits)
record("kl at 2", run["kl_divergence"], **logits, temperature=2.0)
record("ece", run["calibration_error"], predictions=student, references=labels)
record("ece of 10", run["calibration_error"], predictions=student, references=labels, bins=10)
record("retention", run["retention"], predictions=[0.6, 0.9], references=[0.8, 0.9])
record("retention of 0", run["retention"], predictions=[0.5, 0.5], references=[0.5, 0.0])
record("agreement shapes", run["agreement"], predictions=student, references=teacher[:, :2])
record("kl shapes", run["kl_divergence"], predictions=student, references=teacher[:, :2])
record("kl at 0", run["kl_divergence"], **logits, temperature=0.0)
record("bins 0", run["calibration_error"], predictions=student, references=labels, bins=0)
record("agreement after errors", run["agreement"], **logits)
attempts_of_modules = list(attempts)
try:
    socket.create_connection(("127.0.0.1", 9))
except OSError as error:
    trap = str(error)
print(json.dumps(dict(results=results, about=about, attempts=attempts_of_modules, trap=trap)))
"""


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    """64 items, 5 classes; the last four are labelled -100."""
    student, labels = random_items(64, 5, seed=3)
    noise = np.random.default_rng(4).normal(size=student.shape)
    labels[-4:] = -100
    return {"student": student, "teacher": student + 2 * noise, "labels": labels}


@pytest.fixture(
    scope="module",
    params=[pytest.param("offline variables", marks=pytest.mark.slow), "no variables"],
)
def offline(
    request: pytest.FixtureRequest,
    inputs: dict[str, np.ndarray],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What the modules gave in a process without network, with warnings as errors, whose cache is
    empty; with HF_HUB_OFFLINE=1, and as a user has it who never set it."""
    folder = tmp_path_factory.mktemp("metrics")
    np.savez(
        folder / "inputs.npz",
        student=inputs["student"],
        teacher=inputs["teacher"],
        labels=inputs["labels"],
    )
    caches = ("HF_HOME", "HF_MODULES_CACHE", "HF_METRICS_CACHE", "HF_EVALUATE_CACHE")
    switches = ("HF_HUB_OFFLINE", "HF_EVALUATE_OFFLINE", "HF_DATASETS_OFFLINE")
    hidden = (*caches, *switches, "TRANSFORMERS_OFFLINE", "HF_UPDATE_DOWNLOAD_COUNTS")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment |= {
        "HF_HOME": str(folder / "home"),
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
    }
    if request.param == "offline variables":
        environment["HF_HUB_OFFLINE"] = "1"
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(folder / "inputs.npz")],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_modules_never_try_the_network(offline: dict[str, Any]) -> None:
    """On a cluster without internet, evaluate would hang in retries or fail after the training."""
    assert "there is no network in this test" in offline["trap"], "nothing would be recorded"
    assert offline["attempts"] == []


def test_modules_say_what_they_are(offline: dict[str, Any]) -> None:
    """The model card quotes descriptions and citations; `evaluate` takes the name from the class,
    and the first class in the file, which an import may be."""
    for name, (shown, description, citation, features) in offline["about"].items():
        assert shown == name
        assert description
        assert citation.startswith("@")
        assert "predictions" in features
        assert "references" in features


def test_agreement_module(offline: dict[str, Any], inputs: dict[str, np.ndarray]) -> None:
    """Classes, logits and batches must count the same items; logits must not be rounded to ties."""
    results = offline["results"]
    hits = [
        list(s).index(max(s)) == list(t).index(max(t))
        for s, t in zip(inputs["student"], inputs["teacher"], strict=True)
    ]
    expected = pytest.approx({"agreement": sum(hits) / 64})
    assert 0 < sum(hits) < 64
    for case in ("", " ids", " batches", " after errors"):
        assert results[f"agreement{case}"] == expected
    assert results["agreement bf16"] == {"agreement": 1.0}
    assert results["agreement near tie"] == {"agreement": 1.0}


@pytest.mark.parametrize(("case", "temperature"), [("kl", 1.0), ("kl at 2", 2.0)])
def test_kl_module(
    offline: dict[str, Any], inputs: dict[str, np.ndarray], case: str, temperature: float
) -> None:
    """Directions exchanged, or the T**2 of the training loss left in, give plausible numbers."""
    s = softmax(inputs["student"] / temperature)
    t = softmax(inputs["teacher"] / temperature)
    pairs = list(zip(s.flatten().tolist(), t.flatten().tolist(), strict=True))
    forward = math.fsum(q * math.log(q / p) for p, q in pairs) / 64
    reverse = math.fsum(p * math.log(p / q) for p, q in pairs) / 64
    assert abs(forward - reverse) > 0.01
    assert offline["results"][case] == pytest.approx(
        {"forward_kl": forward, "reverse_kl": reverse}, rel=1e-9
    )


def test_calibration_module(offline: dict[str, Any], inputs: dict[str, np.ndarray]) -> None:
    """Items labelled -100 would count as wrong."""
    for case, bins in (("ece", 15), ("ece of 10", 10)):
        expected = ece_by_loop(inputs["student"][:-4], inputs["labels"][:-4], bins)
        assert offline["results"][case] == pytest.approx({"calibration_error": expected})


def test_retention_module(offline: dict[str, Any]) -> None:
    """0.6 / 0.8 and 0.9 / 0.9; a ratio of the sums would be 0.882."""
    assert offline["results"]["retention"] == pytest.approx({"retention": 0.875})


def test_modules_say_what_is_wrong(offline: dict[str, Any]) -> None:
    """A NaN, or a number from half of the data, instead of the reason."""
    results = offline["results"]
    assert "must be a positive finite number, got [0.5, 0.0]" in results["retention of 0"]
    assert "one shape, got (64, 5) and (64, 2)" in results["agreement shapes"]
    assert "(64, 5)" in results["kl shapes"]
    assert "(64, 2)" in results["kl shapes"]
    assert "temperature" in results["kl at 0"]
    assert "at least 1 bin" in results["bins 0"]


def test_load_knows_exactly_the_modules_there_are() -> None:
    """A module left out of load's list could not be reached; its name would be refused."""
    classes = {value for value in vars(modules).values() if isinstance(value, type)}
    classes -= {modules._Module}
    with pytest.raises(ValueError, match="no metric named 'acuracy'") as caught:
        metrics.load_metric("acuracy")
    listed = str(caught.value).split("Known: ")[1].split(".")[0]
    assert {type(metrics.load_metric(name)) for name in listed.split(", ")} == classes
