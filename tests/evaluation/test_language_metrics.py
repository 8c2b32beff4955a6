"""What evaluation says of language models, against brute force in float64."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from launch import launch
from tiny_trainers import config, data, log_softmax, models, trainer
from torch import Tensor

from hf_distill import ForwardKL, HardLabels
from hf_distill.evaluation.running_metrics import RunningMetrics
from hf_distill.models.signals import BatchItems, Signal, SparseProbs

FIGURES = (
    *("perplexity", "teacher_perplexity", "entropy", "teacher_entropy", "entropy_gap"),
    *("acceptance_rate", "agreement", "forward_kl_divergence", "reverse_kl_divergence", "ece"),
)


def brute_force(student: np.ndarray, teacher: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Token by token in float64, from the definitions.

    Args:
        student: ``(N, V)`` logits of the tokens that count.
        teacher: The same of the teacher.
        labels: ``(N,)``.
    """
    rows: dict[str, list[float]] = {name: [] for name in FIGURES}
    bins = np.zeros((15, 3))
    for s, t, label in zip(log_softmax(student), log_softmax(teacher), labels, strict=True):
        p, q = np.exp(s), np.exp(t)
        kept_p, kept_q = p > 0, q > 0
        rows["perplexity"].append(-s[label])
        rows["teacher_perplexity"].append(-t[label])
        rows["entropy"].append(-(p[kept_p] * s[kept_p]).sum())
        rows["teacher_entropy"].append(-(q[kept_q] * t[kept_q]).sum())
        rows["entropy_gap"].append(rows["entropy"][-1] - rows["teacher_entropy"][-1])
        rows["acceptance_rate"].append(sum(map(min, zip(p, q, strict=True))))
        rows["agreement"].append(s.argmax() == t.argmax())
        rows["forward_kl_divergence"].append((q[kept_q] * (t - s)[kept_q]).sum())
        rows["reverse_kl_divergence"].append((p[kept_p] * (s - t)[kept_p]).sum())
        place = math.ceil(p.max() * 15) - 1
        bins[place] += (1, p.max(), p.argmax() == label)
    means = {name: float(np.mean(values)) for name, values in rows.items() if values}
    for name in ("perplexity", "teacher_perplexity"):
        means[name] = math.exp(means[name])
    means["ece"] = float(np.abs(bins[:, 1] - bins[:, 2]).sum() / len(labels))
    return means


def signals(size: int = 60, classes: int = 11, seed: int = 0) -> tuple[Tensor, Tensor, BatchItems]:
    """Logits of both in float32, and items of which a third have no label."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (4 * torch.randn(size, classes, generator=generator) for _ in range(2))
    labels = torch.randint(classes, (size,), generator=generator)
    mask = torch.rand(size, generator=generator) > 1 / 3
    return (
        student,
        teacher,
        BatchItems({"items": mask, "labels": mask}, labels.masked_fill(~mask, -100)),
    )


def summed(
    student: Tensor, teacher: Tensor, items: BatchItems, parts: int = 1, vocabulary: bool = True
) -> dict[str, float]:
    """The figures of logits ``(N, V)`` that come in parts."""
    evaluation = RunningMetrics(vocabulary)
    assert items.labels is not None
    for rows in torch.arange(len(student)).tensor_split(parts):
        masks = {unit: mask[rows] for unit, mask in items.masks.items()}
        part = BatchItems(masks, items.labels[rows])
        evaluation.add_signals(Signal(student[rows]), Signal(teacher[rows]), part)
    return evaluation.result(Accelerator(cpu=True))[0]


# ---- the figures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 3, 60, 77])
def test_figures_are_those_of_the_definitions(parts: int) -> None:
    """A perplexity of another mean than over all tokens cannot be compared with any paper's."""
    student, teacher, items = signals()
    assert items.labels is not None
    mask = items.masks["items"].numpy()
    wanted = brute_force(student.numpy()[mask], teacher.numpy()[mask], items.labels.numpy()[mask])
    found = summed(student, teacher, items, parts)
    assert found.keys() == wanted.keys()
    assert found == pytest.approx(wanted, rel=2e-6)


def test_how_the_set_is_cut_changes_nothing() -> None:
    """A mean of batch means would change with the batch size, and with the number of processes."""
    student, teacher, items = (x.double() if isinstance(x, Tensor) else x for x in signals(400))
    whole = summed(student, teacher, items)
    for parts in (2, 7, 400, 451):
        assert summed(student, teacher, items, parts) == pytest.approx(whole, rel=1e-13)


def test_the_teacher_itself() -> None:
    """Figures that are not at their best for the teacher's own copy would punish a perfect one."""
    _, teacher, items = signals()
    found = summed(teacher, teacher, items)
    assert (
        found["forward_kl_divergence"]
        == found["reverse_kl_divergence"]
        == found["entropy_gap"]
        == 0
    )
    assert found["agreement"] == 1
    assert found["acceptance_rate"] == pytest.approx(1, abs=1e-6)
    assert found["perplexity"] == found["teacher_perplexity"]


def test_tokens_that_cannot_be_said() -> None:
    """Models mask tokens with -inf or the lowest number: 0 times infinity would be NaN for all."""
    student, teacher, items = signals()
    assert items.labels is not None
    mask = items.masks["items"].numpy()
    keep = items.labels != 3
    masks = {unit: mask & keep for unit, mask in items.masks.items()}
    lowest = torch.finfo(torch.float32).min
    columns = np.arange(student.shape[1]) != 3
    mask = masks["items"].numpy()
    labels = items.labels.numpy()[mask]
    wanted = brute_force(
        student.numpy()[mask][:, columns], teacher.numpy()[mask][:, columns], labels - (labels > 3)
    )
    for ours, theirs in ((-torch.inf, -torch.inf), (lowest, -torch.inf), (lowest, lowest)):
        student[:, 3], teacher[:, 3] = ours, theirs
        found = summed(student, teacher, BatchItems(masks, items.labels))
        assert found == pytest.approx(wanted, rel=2e-6)


def test_a_label_without_probability_ends_nothing() -> None:
    """A perplexity too large for a float would end a training of days with an OverflowError."""
    student, teacher, items = signals()
    assert items.labels is not None
    item = int(items.masks["items"].nonzero()[0])
    student[item, items.labels[item]] = -torch.inf
    found = summed(student, teacher, items)
    assert found["perplexity"] == math.inf
    assert math.isfinite(found["teacher_perplexity"])
    assert not any(math.isnan(value) for value in found.values())


def test_masked_tokens_say_nothing() -> None:
    """What padding holds, NaN after a fully masked attention row for one, would spoil all."""
    student, teacher, items = signals()
    wanted = summed(student, teacher, items)
    student[~items.masks["items"]] = teacher[~items.masks["items"]] = torch.nan
    assert summed(student, teacher, items) == wanted


def test_a_classifier_has_no_perplexity() -> None:
    """Figures that mean nothing for three classes would fill its tables and its card."""
    student, teacher, items = signals()
    found = summed(student, teacher, items, vocabulary=False)
    assert found.keys() == {"agreement", "forward_kl_divergence", "reverse_kl_divergence", "ece"}


def test_a_student_alone_has_its_own_figures() -> None:
    """Plain fine-tuning would have no perplexity to compare the distilled student with."""
    student, teacher, items = signals()
    evaluation = RunningMetrics(True)
    evaluation.add_signals(Signal(student), None, items)
    found = evaluation.result(Accelerator(cpu=True))[0]
    both = summed(student, teacher, items)
    assert found == pytest.approx({name: both[name] for name in ("perplexity", "entropy", "ece")})


def likeliest(teacher: Tensor, k: int, exact: bool = True) -> SparseProbs:
    """The k likeliest classes of each item, and the rest."""
    logs = teacher.log_softmax(-1)
    top, ids = logs.topk(k, -1)
    rest = (1 - top.exp().sum(-1)).clamp(min=1e-30).log()
    return SparseProbs(ids, top, rest, teacher.shape[-1], unsampled=exact)


def test_what_some_classes_of_the_teacher_tell() -> None:
    """With a cache of the likeliest tokens an evaluation would be empty, or pretend to be exact."""
    student, teacher, items = (x.double() if isinstance(x, Tensor) else x for x in signals())
    whole = summed(student, teacher, items)

    def found(k: int, exact: bool = True) -> dict[str, float]:
        evaluation = RunningMetrics(True)
        evaluation.add_signals(Signal(student), Signal(sparse=likeliest(teacher, k, exact)), items)
        return evaluation.result(Accelerator(cpu=True))[0]

    own = {"perplexity", "entropy", "ece", "agreement"}
    compared = {"forward_kl_divergence", "reverse_kl_divergence", "acceptance_rate"}
    assert found(4, exact=False).keys() == own
    some, nearly = found(4), found(10)  # of 11: the rest is one class
    assert some.keys() == nearly.keys() == own | compared
    for name in own | compared:
        assert nearly[name] == pytest.approx(whole[name], rel=1e-9)
    assert some["forward_kl_divergence"] < whole["forward_kl_divergence"]
    assert some["acceptance_rate"] > whole["acceptance_rate"]


# ---- within the trainer --------------------------------------------------------------------------

LANGUAGE = ("causal_lm", "seq2seq_lm", "masked_lm", "speech_seq2seq")


def tokens_of(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of both and labels of all tokens that count, row by row, in plain transformers."""
    pair = [model.double().eval() for model in models(name)]
    found: list[list[np.ndarray]] = [[], [], []]
    for row in data(name):
        batch = {k: torch.as_tensor(v)[None] for k, v in row.items()}
        batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
        labels = batch["labels"][0]
        with torch.no_grad():
            logits = [model(**batch).logits[0] for model in pair]
        if name == "causal_lm":
            labels, logits = labels[1:], [rows[:-1] for rows in logits]
        for place, rows in enumerate((*logits, labels)):
            found[place].append(rows[labels != -100].numpy())
    student, teacher, labels = (np.concatenate(rows) for rows in found)
    return student, teacher, labels


@pytest.mark.parametrize("name", LANGUAGE)
def test_the_trainer_gives_them_for_language_models(tmp_path: Path, name: str) -> None:
    """A shift of the labels by one, or padding that counts, gives numbers that look plausible."""
    wanted = brute_force(*tokens_of(name))
    objective = 0.5 * HardLabels() + 0.5 * ForwardKL()
    for batch in (1, 3):
        options = {"objective": objective, "per_device_eval_batch_size": batch}
        figures = trainer(tmp_path, name, **options).evaluate()
        found = {key: figures[f"eval_{key}"] for key in FIGURES}
        assert found == pytest.approx(wanted, rel=1e-4)


def evaluate_alone(folder: str) -> None:
    """Write down the figures of seven examples, batches of two per process."""
    case: Any = data("causal_lm")[:7]
    ours = trainer(
        Path(folder),
        "causal_lm",
        eval_dataset=case,
        args=config(Path(folder), per_device_eval_batch_size=2),
    )
    figures = ours.evaluate()
    if ours.is_world_process_zero():
        found = {key: figures[f"eval_{key}"] for key in FIGURES}
        (Path(folder) / "figures.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_two_processes_find_the_same(tmp_path: Path) -> None:
    """Each rank's own perplexity, or their mean, is another number than that of the set."""
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        launch(evaluate_alone, folder, processes=processes)
        found.append(json.loads((folder / "figures.json").read_text()))
    assert found[1] == pytest.approx(found[0], rel=1e-6)
