"""Labels, weight decay, objectives by name, and what configs make of scalars."""

import argparse
import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_models import CASES, OBJECTIVES, collate, quiet_arguments
from torch import Tensor
from torch.nn import functional as F
from transformers import HfArgumentParser

from hf_distill import OBJECTIVES as BY_NAME
from hf_distill import (
    AuxiliaryHead,
    BatchItems,
    DistillationConfig,
    DistillationTrainer,
    EarlyExits,
    Ensemble,
    ForwardKL,
    FreeLB,
    FromTeacher,
    Gaussian,
    GroupDRO,
    GroupWeights,
    HardLabels,
    HiddenStates,
    JensenShannon,
    OnPerturbed,
    ReverseKL,
    Schedule,
    Seq2SeqDistillationConfig,
    Signal,
    TrustedLabels,
    WeightDecay,
    WeightedSum,
    adversarial_training,
    objective_from,
    r_drop,
    trades,
)
from hf_distill.objectives.base.objective import Context
from hf_distill.training.reduction import reduce

# ---- labels ----------------------------------------------------------------------------------


def labelled(kind: str, logits: Tensor, labels: Tensor, mask: Tensor, **settings: Any) -> float:
    """HardLabels on given logits, divided by the number of labelled items."""
    items = BatchItems({"labels": mask, "items": mask}, labels)
    terms = HardLabels(**settings).terms(Signal(logits, kind), None, items, Context())
    return float(reduce(terms, items.counts())[0])


LOGITS = torch.linspace(-2, 3, 40, dtype=torch.float64).view(2, 5, 4).sin() * 3
CLASSES = torch.tensor([[0, 3, -100, 1, 2], [2, -100, -100, 0, 0]])
WEIGHTS = (0.5, 1.0, 2.0, 4.0)


@pytest.mark.parametrize("smoothing", [None, 0.0, 0.1, 0.5])
def test_label_smoothing_of_classes(smoothing: float | None) -> None:
    """Smoothing towards C-1 instead of C classes, or over masked items, is a few percent off."""
    expected = F.cross_entropy(
        LOGITS.flatten(0, 1), CLASSES.flatten(), label_smoothing=smoothing or 0.0
    )
    ours = labelled("softmax", LOGITS, CLASSES, CLASSES != -100, label_smoothing=smoothing)
    assert ours == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("smoothing", [None, 0.2])
def test_class_weights_are_averaged_over_items(smoothing: float | None) -> None:
    """torch divides by the sum of the weights of the batch, which depends on the split."""
    summed = F.cross_entropy(
        LOGITS.flatten(0, 1),
        CLASSES.flatten(),
        LOGITS.new_tensor(WEIGHTS),
        reduction="sum",
        label_smoothing=smoothing or 0.0,
    )
    settings = {"class_weights": WEIGHTS, "label_smoothing": smoothing}
    ours = labelled("softmax", LOGITS, CLASSES, CLASSES != -100, **settings)
    assert ours == pytest.approx(float(summed) / 7, rel=1e-12)


def test_options_of_multi_label() -> None:
    """Multi-label smoothing goes to 1/2 per class, not to 1/C; weights go by class."""
    logits, labels = LOGITS[0], (LOGITS[1] > 0).double()
    some = torch.ones(5, dtype=torch.bool)
    targets = labels * 0.8 + 0.1
    per_class = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    expected = (per_class * logits.new_tensor(WEIGHTS)).sum() / 5
    ours = labelled(
        "sigmoid", logits, labels, some, label_smoothing=0.2, class_weights=list(WEIGHTS)
    )
    assert ours == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("kind", ["regression", "ctc"])
def test_options_without_meaning_are_refused(kind: str) -> None:
    """A smoothing that is asked for and silently not done."""
    for options in ({"label_smoothing": 0.1}, {"class_weights": (1.0, 2.0)}):
        with pytest.raises(ValueError, match=f"do not apply to a {kind} head"):
            HardLabels(**options).check(kind)
    HardLabels().check(kind)


def test_half_precision_is_computed_in_float32() -> None:
    """Cross-entropy in bfloat16 has two digits."""
    half, mask = LOGITS.bfloat16(), CLASSES != -100
    expected = F.cross_entropy(half.float().flatten(0, 1), CLASSES.flatten())
    assert labelled("softmax", half, CLASSES, mask) == pytest.approx(float(expected), rel=1e-6)


def trainer(folder: Path, objective: Any = None, head: str = "masked_lm", **options: Any) -> Any:
    """A trainer of one case of the zoo, on its 8 examples."""
    case = CASES[head]
    student, teacher = case.models()
    arguments = {"per_device_train_batch_size": 8, "max_steps": 1, **options}
    return DistillationTrainer(
        student,
        quiet_arguments(folder, **arguments),
        teacher_model=teacher,
        objective=objective,
        train_dataset=case.data(),
        eval_dataset=case.data(),
        data_collator=collate,
    )


def test_label_smoothing_factor_reaches_hard_labels(tmp_path: Path) -> None:
    """An argument of Trainer that a compute_loss of one's own silently drops."""
    head = "sequence_classification"
    ours = trainer(tmp_path, 0.5 * HardLabels() + ForwardKL(), head, label_smoothing_factor=0.3)
    batch = collate(CASES[head].data())
    labels = batch.pop("labels")
    logits = ours.model.eval()(**batch).logits.detach()
    expected = F.cross_entropy(logits, labels, label_smoothing=0.3)
    assert ours.evaluate()["eval_hard_labels"] == pytest.approx(float(expected), rel=1e-9)

    by_default = trainer(tmp_path, None, head, label_smoothing_factor=0.3)
    assert by_default.evaluate()["eval_hard_labels"] == pytest.approx(float(expected), rel=1e-9)
    own = trainer(tmp_path, HardLabels(label_smoothing=0.0), head, label_smoothing_factor=0.3)
    plain = F.cross_entropy(logits, labels)
    assert own.evaluate()["eval_hard_labels"] == pytest.approx(float(plain), rel=1e-9)


AT_NOTHING = Gaussian(0.0)
"""Perturbs by nothing: what is measured is the objective itself."""
NESTED = {
    "on_perturbed": 1.0 * OnPerturbed(HardLabels(), AT_NOTHING),
    "from": 1.0 * OnPerturbed(FromTeacher("one", TrustedLabels(0.0)), AT_NOTHING),
    "group_dro": 1.0 * GroupDRO(HardLabels(), 2),
    "group_weights": 1.0 * GroupWeights(OnPerturbed(HardLabels(), AT_NOTHING), (4, 4)),
    "free_lb": 1.0 * FreeLB(HardLabels(), epsilon=1e-12, steps=2),
    "adversarial_training": adversarial_training(epsilon=1e-12, steps=1),
    "trades": trades(epsilon=1e-12, steps=1),
    "r_drop": r_drop(objective=HardLabels()),
    "trusted_labels": 1.0 * TrustedLabels(0.0),
    "auxiliary_head": 1.0 * AuxiliaryHead("classifier", HardLabels()),
}


@pytest.mark.parametrize("name", NESTED)
def test_label_smoothing_factor_reaches_label_losses_within_others(
    tmp_path: Path, name: str
) -> None:
    """Wrapped in another objective the same loss would silently be another one."""
    head = "sequence_classification"
    case = CASES[head]
    student, teacher = case.models()
    rows = [{**row, "group": number % 2} for number, row in enumerate(case.data())]
    ours = DistillationTrainer(
        student,
        quiet_arguments(tmp_path, label_smoothing_factor=0.3, per_device_eval_batch_size=8),
        teacher_model=Ensemble({"one": teacher, "two": copy.deepcopy(teacher)}),
        objective=NESTED[name],
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collate,
    )
    batch = collate(case.data())
    labels = batch.pop("labels")
    logits = student.eval()(**batch).logits.detach()
    expected = float(F.cross_entropy(logits, labels, label_smoothing=0.3))
    assert expected != pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-4)
    found = ours.evaluate()
    parts = [part for part, _, part_of in ours.training_objective.named() if part_of.needs_labels]
    assert parts
    for part in parts:
        assert found[f"eval_{part}"] == pytest.approx(expected, rel=1e-6)
    assert "label_smoothing=0.3" in str(ours.training_objective), "the card's formula"


def test_label_smoothing_factor_reaches_early_exits(tmp_path: Path) -> None:
    """Against the head of the exit and torch's cross-entropy."""
    head = "sequence_classification"
    exits = EarlyExits(layers=(1,), labels=1.0, pooling="first")
    ours = trainer(tmp_path, exits, head, label_smoothing_factor=0.3)
    batch = collate(CASES[head].data())
    labels = batch.pop("labels")
    states = ours.model.eval()(**batch, output_hidden_states=True).hidden_states[1][:, 0]
    exit_head: Any = ours.projections["early_exits"]["1"]
    logits = exit_head.linear(states).detach()
    expected = float(F.cross_entropy(logits, labels, label_smoothing=0.3))
    found = ours.evaluate()["eval_early_exits_labels"]
    assert found == pytest.approx(expected, rel=1e-6)
    assert found != pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-4)


# ---- weight decay ----------------------------------------------------------------------------


def decayed_squares(ours: Any, initial: dict[str, Tensor] | None = None) -> float:
    """The sum of squares over Trainer's own decayed names, in plain loops over tensors."""
    names = set(ours.get_decay_parameter_names(ours.model))
    start = initial or {}
    return sum(
        ((p - start.get(name, 0)) ** 2).sum().item()
        for name, p in ours.model.named_parameters()
        if name in names and p.requires_grad
    )


def test_weight_decay_is_the_sum_of_squares_of_the_decayed_weights(tmp_path: Path) -> None:
    """Decayed norms and biases pull the scale of every layer to 0."""
    ours = trainer(tmp_path, WeightDecay(0.5))
    assert ours.evaluate()["eval_weight_decay"] == pytest.approx(
        0.5 * decayed_squares(ours), rel=1e-12
    )
    names = ours.step.parameters
    assert names
    assert not any(n.endswith(".bias") or "LayerNorm" in n for n in names)
    frozen = next(iter(names.values()))
    frozen.requires_grad_(False)
    less = 0.5 * (decayed_squares(ours))
    ours._bind()
    assert ours.evaluate()["eval_weight_decay"] == pytest.approx(less, rel=1e-12)


def test_weight_decay_towards_the_initial_weights(tmp_path: Path) -> None:
    """A target that is a reference to the weights moves with them, and the term is always 0."""
    objective = 1e-3 * ForwardKL() + WeightDecay(2.0, target="init")
    ours = trainer(tmp_path, objective, learning_rate=1e-2, max_steps=2)
    assert ours.evaluate()["eval_weight_decay"] == 0
    initial = {n: p.detach().clone() for n, p in ours.model.named_parameters()}
    ours.train()
    moved = decayed_squares(ours, initial)
    assert moved > 1e-6
    assert ours.evaluate()["eval_weight_decay"] == pytest.approx(2.0 * moved, rel=1e-9)


@pytest.mark.parametrize("target", ["zero", "init"])
def test_weight_decay_counts_once_per_optimizer_step(tmp_path: Path, target: str) -> None:
    """Added to every micro-batch, the term is 4 times as strong at accumulation 4."""
    logs, norms = [], []
    for batch, accumulation in ((8, 1), (2, 4)):
        ours = trainer(
            tmp_path,
            WeightDecay(0.5, target=target),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=2,
            max_grad_norm=1e9,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
        )
        value = 0.5 * decayed_squares(ours)
        ours.train()
        rows = [row for row in ours.state.log_history if "loss" in row]
        logs.append([row["weight_decay"] for row in rows])
        norms.append([row["grad_norm"] for row in rows])
        first = value if target == "zero" else 0.0
        assert logs[-1][0] == pytest.approx(first, rel=1e-9)
        assert norms[-1][0] == pytest.approx(math.sqrt(4 * 0.5 * first), rel=1e-6)  # |2 g w|
    assert logs[0] == pytest.approx(logs[1], rel=1e-9)
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_the_founding_objective_is_one_line(tmp_path: Path) -> None:
    """L = alpha * L_recon + (1 - alpha) * gamma * ||w||^2, computed here from its parts."""
    alpha, gamma = 0.6, 0.02
    ours = trainer(tmp_path, alpha * ForwardKL() + (1 - alpha) * gamma * WeightDecay())
    batch = collate(CASES["masked_lm"].data())
    mask = batch.pop("labels") != -100
    student, teacher = ours.model.eval(), ours.teacher.model
    log_p = teacher(**batch).logits[mask].log_softmax(-1)
    log_q = student(**batch).logits[mask].log_softmax(-1)
    recon = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    expected = alpha * recon.item() + (1 - alpha) * gamma * decayed_squares(ours)
    assert ours.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-9)


# ---- by name and by scalars ------------------------------------------------------------------


def test_objectives_from_rows() -> None:
    """YAML 1.1 reads 1e-4 as a string, and a string as a number compares as it pleases."""
    rows = yaml.safe_load("""
    - {name: hard_labels, weight: 3e-1, label_smoothing: 0.1, class_weights: [1, 2]}
    - {name: forward_kl, weight: 0.7, temperature: 2}
    - {name: hidden_states, layers: [[1, 2], [2, 4]], distance: cosine, groups: [encoder]}
    - {name: jensen_shannon, beta: 3e-1}
    - {name: weight_decay, strength: 1e-4, target: init}
    """)
    assert objective_from(rows) == (
        0.3 * HardLabels(label_smoothing=0.1, class_weights=(1.0, 2.0))
        + 0.7 * ForwardKL(2)
        + HiddenStates(((1, 2), (2, 4)), "cosine", groups=("encoder",))
        + JensenShannon(beta=0.3)
        + WeightDecay(1e-4, "init")
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"at least one objective of \[.*'forward_kl', .*'weight_decay'\]"),
        ([{"name": "forwardkl"}], r"of \[.*'forward_kl', .*\], got 'forwardkl'"),
        ([{"weight": 1.0}], "got None"),
        (
            [{"name": "forward_kl", "temprature": 2}],
            r"\['temprature'\] of objective 'forward_kl'; known are .*weight, teacher and head",
        ),
        (
            [{"name": "forward_kl", "weight": {"schedule": "linear", "until": 3}}],
            r"\['until'\].*known are schedule, start, end, over, by",
        ),
        ([{"name": "forward_kl", "temperature": "0"}], "temperature above 0, got 0"),
        ([{"name": "hidden_states", "distance": "l2"}], r"\['cosine', 'mse'\], got 'l2'"),
        ([{"name": "weight_decay", "target": "teacher"}], "'zero' or 'init', got 'teacher'"),
        ([{"name": "hard_labels", "label_smoothing": "1e0"}], r"in \[0, 1\), got 1"),
    ],
)
def test_bad_rows_are_refused(rows: list[dict[str, Any]], message: str) -> None:
    """A setting with a typo that is ignored leaves the default in force."""
    with pytest.raises(ValueError, match=message):
        objective_from(rows)


def test_descriptions_are_plain_data() -> None:
    """What a card or a log cannot write is missing from it, or ends a run at its end."""
    objective = sum(OBJECTIVES.values(), WeightedSum(()))
    objective += Schedule("cosine", 1.0, 0.0) * HiddenStates(((1, 1),))
    described = json.loads(json.dumps(objective.describe()))
    assert [row["name"] for row in described] == [*OBJECTIVES, "hidden_states"]
    assert described[1]["settings"] == {"temperature": 2.0, "t_squared": True}
    assert described[-1]["weight"]["shape"] == "cosine"
    assert "Hinton" in described[1]["citation"]
    assert set(OBJECTIVES) <= set(BY_NAME)


@pytest.mark.parametrize(
    ("scalars", "expected"),
    [
        ({}, 0.5 * HardLabels() + 0.5 * ForwardKL(2.0)),
        ({"alpha": 0.0}, 1.0 * HardLabels()),
        ({"alpha": 1.0, "temperature": 3.0}, 1.0 * ForwardKL(3.0)),
        ({"alpha": 0.75}, 0.25 * HardLabels() + 0.75 * ForwardKL(2.0)),
        ({"alpha": 1.0, "beta": 1.0}, 1.0 * ReverseKL(2.0)),
        ({"alpha": 1.0, "beta": 0.5}, 1.0 * JensenShannon(2.0, 0.5)),
        ({"alpha": 1.0, "gamma": 1e-4}, 1.0 * ForwardKL(2.0) + WeightDecay(1e-4)),
        ({"alpha": 0.0, "gamma": 0.1}, HardLabels() + WeightDecay(0.1)),
    ],
)
def test_default_objective(
    tmp_path: Path, scalars: dict[str, float], expected: WeightedSum
) -> None:
    """alpha the wrong way round trains on the labels alone, and nothing looks wrong."""
    arguments = quiet_arguments(tmp_path, **scalars)
    assert arguments.objective() == expected
    again = DistillationConfig(**json.loads(json.dumps(_plain(arguments))))
    assert again.objective() == expected


def _plain(arguments: DistillationConfig) -> dict[str, Any]:
    """The arguments as `transformers` writes them, without those that only tell what it found."""
    plain = json.loads(arguments.to_json_string())
    fields = {f for f, d in type(arguments).__dataclass_fields__.items() if d.init}
    return {name: value for name, value in plain.items() if name in fields}


@pytest.mark.parametrize("kind", [DistillationConfig, Seq2SeqDistillationConfig])
def test_command_line(tmp_path: Path, kind: Any) -> None:
    """A field without a type that argparse knows breaks every script that parses the config."""
    line = (
        f"--output_dir {tmp_path} --alpha 0.9 --temperature 4 --beta 1 --gamma 1e-3 --use_cpu "
        '--learning_rate 1e-4 --teacher_model_init_kwargs {"dtype":"bfloat16"}'
    )
    parser = HfArgumentParser(kind)
    (arguments,) = parser.parse_args_into_dataclasses(line.split())
    assert type(arguments) is kind
    assert arguments.objective() == (1 - 0.9) * HardLabels() + 0.9 * ReverseKL(4.0) + WeightDecay(
        1e-3
    )
    assert arguments.teacher_model_init_kwargs == {"dtype": "bfloat16"}
    assert "Temperature of the default objective" in parser.format_help()


def test_a_dataclass_of_ones_own_beside_the_config() -> None:
    """What the docstring says of two fields of one name, and the remedy that it names."""

    @dataclass
    class Own:
        temperature: float = 1.0

    @dataclass
    class Renamed:
        sampling_temperature: float = 1.0

    with pytest.raises(argparse.ArgumentError, match="conflicting option string: --temperature"):
        HfArgumentParser((DistillationConfig, Own))
    command = ["--output_dir", "out", "--temperature", "3", "--sampling_temperature", "0.5"]
    parser = HfArgumentParser((DistillationConfig, Renamed))
    args, own = parser.parse_args_into_dataclasses(command)
    assert (args.temperature, own.sampling_temperature) == (3.0, 0.5)
