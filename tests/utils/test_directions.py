"""Which way a metric is better: by name, and what best checkpoints, early stopping and schedulers
make of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tiny_models import collate
from tiny_trainers import accuracy, config, data, models, same, trainer, weights
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

from hf_distill import ForwardKL, HardLabels, HiddenStates, LabelAgreement
from hf_distill.utils.directions import higher_is_better

LOWER = """
    forward_kl_divergence reverse_kl_divergence ece entropy_gap perplexity teacher_perplexity wer
    cer loss eval_loss nll
    cross_entropy bits_per_byte word_perplexity,none eval_error_rate mse brier_score
    relative_mce risk_coverage_area adaptive_ece
"""
HIGHER = """
    agreement acceptance_rate retention_loss retention_wer accuracy teacher_accuracy f1 f1_macro
    overall_f1 exact_match HasAns_exact rouge1 rougeLsum sacrebleu mean_iou meanIoU eval_mAP roc_auc
    matthews_correlation spearmanr combined_score acc_norm,none top5_accuracy pass@1 imdb/acc
"""
NEITHER = """
    gen_len entropy teacher_entropy runtime samples_per_second steps_per_second total HasAns_total
    support sys_len ref_len acc_stderr,none best_exact_thresh epoch num_samples my_own
    model_preparation_time prediction_count
"""


@pytest.mark.parametrize("name", (LOWER + HIGHER + NEITHER).split())
def test_the_direction_of_a_name(name: str) -> None:
    """The worst checkpoint would be the best one."""
    expected = None if name in NEITHER.split() else name in HIGHER.split()
    assert higher_is_better(name) is expected


COMPONENTS = ("hard_labels", "forward_kl", "hidden_states", "hidden_states_2", "label_agreement")
OBJECTIVE = HardLabels() + ForwardKL() + HiddenStates() + HiddenStates("last") + LabelAgreement()


@pytest.mark.parametrize("prefix", ["", "eval_", "eval_error_set_", "error_set_", "eval_second_"])
def test_the_metric_of_the_best_checkpoint(tmp_path: Path, prefix: str) -> None:
    """By the name of a set ("error_set"), or without its objective (`hidden_states` is like
    accuracy to transformers), it would be turned around."""
    sets = {"error_set": data(), "second": data()} if "se" in prefix else data()
    ours = trainer(tmp_path, objective=OBJECTIVE, eval_dataset=sets)
    for name in (
        "forward_kl_divergence",
        "reverse_kl_divergence",
        "ece",
        "loss",
        "accuracy",
        "agreement",
        *COMPONENTS,
    ):
        ours.args = config(tmp_path, metric_for_best_model=prefix + name)
        ours._settle_direction()
        assert ours.args.greater_is_better == (name in ("accuracy", "agreement")), name


def test_what_is_given_stays(tmp_path: Path) -> None:
    """Also what transformers itself would set: the user knows better."""
    for given in (True, False):
        for name in ("forward_kl_divergence", "accuracy", "hidden_states", "my_own"):
            options: Any = {"metric_for_best_model": name, "greater_is_better": given}
            ours = trainer(tmp_path, objective=OBJECTIVE, **options)
            assert ours.args.greater_is_better is given


def test_what_is_given_later_stays(tmp_path: Path) -> None:
    """As an attribute of the arguments, which scripts set after parsing."""
    for name, greater in (("error_free_rate", True), ("hidden_states", False), ("accuracy", False)):
        args = config(tmp_path)
        args.metric_for_best_model, args.greater_is_better = name, greater
        for _ in range(2):
            assert trainer(tmp_path, args=args).args.greater_is_better is greater
    args = config(tmp_path, metric_for_best_model="error_free_rate")
    assert args.greater_is_better is False
    args.greater_is_better = True
    assert trainer(tmp_path, args=args).args.greater_is_better is True


@pytest.mark.parametrize("name", ["my_own", "my_own_loss", "gen_len", None])
def test_what_is_not_known_is_as_in_transformers(tmp_path: Path, name: str | None) -> None:
    """Two trainers that share their arguments included."""
    stock = TrainingArguments(str(tmp_path), metric_for_best_model=name)
    args = config(tmp_path, metric_for_best_model=name)
    assert args.greater_is_better == stock.greater_is_better
    for objective in (OBJECTIVE, 1.0 * HardLabels()):
        ours = trainer(tmp_path, objective=objective, args=args)
        assert ours.args.greater_is_better == stock.greater_is_better


def test_arguments_that_are_shared(tmp_path: Path) -> None:
    """The name of a component is a metric of the user's where the objective lacks it."""
    args = config(tmp_path, metric_for_best_model="hidden_states")
    assert trainer(tmp_path, objective=OBJECTIVE, args=args).args.greater_is_better is False
    assert trainer(tmp_path, args=args).args.greater_is_better is True


# ---- what follows from it ------------------------------------------------------------------------


def history(ours: Any, key: str) -> list[float]:
    return [entry[key] for entry in ours.state.log_history if key in entry]


@pytest.mark.parametrize(
    "name", ["forward_kl_divergence", "ece", "forward_kl", "hidden_states", "agreement"]
)
def test_the_best_checkpoint_is_loaded(tmp_path: Path, name: str) -> None:
    """The note's history, 0.0263, 0.0198, 0.0101, 0.0067, ended with the first, worst one."""
    ours = trainer(
        tmp_path,
        objective=ForwardKL() + HiddenStates(),
        metric_for_best_model=name,
        load_best_model_at_end=True,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        max_steps=4,
        report_to="none",
    )
    ours.train()
    values = history(ours, f"eval_{name}")
    best = max(values) if name == "agreement" else min(values)
    assert len(values) == 4
    assert ours.state.best_metric == best
    assert ours.evaluate()[f"eval_{name}"] == pytest.approx(best, rel=1e-5)
    if name in ("forward_kl_divergence", "forward_kl"):
        assert values.index(best) > 0, "the first is the worst here"


def test_saving_the_best_alone(tmp_path: Path) -> None:
    """With `save_strategy="best"` a better checkpoint would not be written at all."""
    ours = trainer(
        tmp_path,
        objective=1.0 * ForwardKL(),
        metric_for_best_model="forward_kl_divergence",
        eval_strategy="steps",
        save_strategy="best",
        eval_steps=1,
        max_steps=4,
        learning_rate=3e-3,
    )
    ours.train()
    values = history(ours, "eval_forward_kl_divergence")
    falling = [i for i, v in enumerate(values) if v == min(values[: i + 1])]
    saved = sorted(int(path.name.split("-")[1]) - 1 for path in tmp_path.glob("checkpoint-*"))
    assert saved == falling
    assert len(saved) > 1
    state = json.loads((tmp_path / f"checkpoint-{saved[-1] + 1}/trainer_state.json").read_text())
    assert state["best_metric"] == min(values)


@pytest.mark.parametrize("name", ["forward_kl_divergence", "forward_kl"])
def test_early_stopping(tmp_path: Path, name: str) -> None:
    """It would stop because the divergence falls."""
    ours = trainer(
        tmp_path,
        objective=1.0 * ForwardKL(),
        metric_for_best_model=name,
        load_best_model_at_end=True,
        callbacks=[EarlyStoppingCallback(1)],
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        max_steps=5,
        learning_rate=1e-3,
    )
    ours.train()
    values = history(ours, f"eval_{name}")
    assert values == sorted(values, reverse=True), "it falls all the time"
    assert ours.state.global_step == 5


@pytest.mark.parametrize(
    ("name", "given", "mode"),
    [
        ("forward_kl_divergence", {}, "min"),
        ("forward_kl", {}, "min"),
        ("agreement", {}, "max"),
        ("accuracy", {"lr_scheduler_kwargs": {"patience": 3}}, "max"),
        ("accuracy", {"lr_scheduler_kwargs": {"mode": "min"}}, "min"),
        ("my_own", {}, "min"),  # as in transformers
        ("my_own", {"greater_is_better": True}, "max"),
    ],
)
@pytest.mark.parametrize("kind", ["reduce_lr_on_plateau", "greedy"])
def test_a_scheduler_that_follows_the_metric(
    tmp_path: Path, name: str, given: dict[str, Any], mode: str, kind: str
) -> None:
    """It would lower the rate because the agreement rises."""
    ours = trainer(
        tmp_path, metric_for_best_model=name, lr_scheduler_type=kind, eval_strategy="steps", **given
    )
    ours.create_optimizer_and_scheduler(2)
    assert ours.lr_scheduler.mode == mode
    assert ours.args.lr_scheduler_kwargs == given.get("lr_scheduler_kwargs")


def test_the_gap_between_entropies_is_spoken_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is best at 0, which no best checkpoint can mean."""
    with caplog.at_level(logging.WARNING):
        ours = trainer(tmp_path, "causal_lm", metric_for_best_model="entropy_gap")
    assert ours.args.greater_is_better is False
    assert "forward_kl_divergence" in caplog.text


def test_the_best_checkpoint_is_that_of_the_stock_trainer(tmp_path: Path) -> None:
    """By the loss of the labels, or by accuracy, both keep the same weights."""
    for name in ("loss", "accuracy"):
        found = []
        for kind in ("ours", "stock"):
            options: Any = {
                "metric_for_best_model": name,
                "load_best_model_at_end": True,
                "eval_strategy": "steps",
                "save_strategy": "steps",
                "eval_steps": 1,
                "save_steps": 1,
                "max_steps": 3,
                "alpha": 0.0,
                "per_device_eval_batch_size": 8,
            }
            folder = tmp_path / kind / name
            if kind == "ours":
                made = trainer(folder, compute_metrics=accuracy, **options)
            else:
                rows: Any = data()
                made = Trainer(
                    models()[0],
                    config(folder, **options),
                    collate,
                    rows,
                    rows,
                    compute_metrics=accuracy,
                )
            made.train()
            found.append(weights(made.model))
        assert same(*found)
