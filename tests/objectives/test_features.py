"""Data, logs, best checkpoints and searches: what an existing `Trainer` script relies on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tiny_models import VOCAB
from tiny_trainers import Recorder, accuracy, config, data, models, same, trainer, weights
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.utils.data import IterableDataset
from transformers import (
    BertForSequenceClassification,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from transformers.trainer_utils import HPSearchBackend

from hf_distill import ForwardKL, HardLabels, HiddenStates, ModelTeacher, Schedule, WeightDecay

EVERYTHING = 0.5 * HardLabels() + 0.5 * ForwardKL(2.0) + HiddenStates()


def tokenizer() -> PreTrainedTokenizerFast:
    """Words "0", "1", … are their own ids; the first three are special."""
    model = Tokenizer(WordLevel({str(i): i for i in range(VOCAB)}, unk_token="1"))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="0", unk_token="1", mask_token="2", eos_token="1"
    )


# ---- data --------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __init__(self, rows: list[dict[str, Any]]):
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


def _stream_of_datasets(rows: list[dict[str, Any]]) -> datasets.IterableDataset:
    """Without features, so that its column names are unknown, as for any generator."""
    return datasets.IterableDataset.from_generator(lambda: iter(rows))


@pytest.mark.parametrize("make", [Stream, _stream_of_datasets])
def test_streamed_training_data(tmp_path: Path, make: Any) -> None:
    """A look at the first example, for the projections, must not take it from the training."""
    rows = [{**row, "text": "not for the model"} for row in data()]
    losses = []
    for dataset in (make(rows), rows):
        record = Recorder()
        ours = trainer(
            tmp_path,
            train_dataset=dataset,
            objective=EVERYTHING,
            callbacks=[record],
            train_sampling_strategy="sequential",
        )
        ours.train()
        losses.append([step["loss"] for step in record.steps])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_extra_columns_are_dropped_and_the_data_left_alone(tmp_path: Path) -> None:
    rows = [{**row, "text": "a film", "idx": i} for i, row in enumerate(data())]
    dataset = datasets.Dataset.from_list(rows)
    columns = list(dataset.column_names)
    ours = trainer(
        tmp_path,
        train_dataset=dataset,
        eval_dataset=dataset,
        data_collator=DataCollatorWithPadding(tokenizer()),
        processing_class=tokenizer(),
        objective=EVERYTHING,
        compute_metrics=accuracy,
    )
    ours.train()
    assert ours.evaluate()["eval_loss"] > 0
    assert dataset.column_names == columns


class Asking(ModelTeacher):
    """A teacher that reads a column which the student does not know."""

    def columns(self) -> set[str]:
        return super().columns() | {"row"}

    def __call__(self, batch: Any, needs: Any, items: Any) -> Any:
        assert batch["row"].dtype == torch.long
        return super().__call__(batch, needs, items)


def test_columns_of_the_teacher_are_kept(tmp_path: Path) -> None:
    """remove_unused_columns knows the student alone, and would starve the teacher."""
    rows = [{**row, "row": i, "text": "a"} for i, row in enumerate(data())]
    _, teacher = models()
    trainer(
        tmp_path,
        teacher_model=Asking(teacher),
        train_dataset=datasets.Dataset.from_list(rows),
        data_collator=DataCollatorWithPadding(tokenizer()),
    ).train()


def _collators() -> dict[str, tuple[str, Any]]:
    words = tokenizer()
    return {
        "masking": ("masked_lm", DataCollatorForLanguageModeling(words, mlm_probability=0.4)),
        "causal": ("causal_lm", DataCollatorForLanguageModeling(words, mlm=False)),
        "seq2seq": ("seq2seq_lm", DataCollatorForSeq2Seq(words)),
        "tagging": ("token_classification", DataCollatorForTokenClassification(words)),
    }


@pytest.mark.filterwarnings("ignore:Student and teacher (end|pad)")
@pytest.mark.parametrize("name", _collators())
def test_collators_of_transformers(tmp_path: Path, name: str) -> None:
    """They pad, mask and shift in ways of their own, and draw random numbers."""
    head, collator = _collators()[name]
    rows = [dict(row) for row in data(head)]
    if name in ("masking", "causal"):
        rows = [{"input_ids": row["input_ids"]} for row in rows]
    record = Recorder()
    ours = trainer(
        tmp_path,
        head,
        data_collator=collator,
        train_dataset=datasets.Dataset.from_list(rows),
        eval_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer(),
        objective=EVERYTHING,
        callbacks=[record],
        max_steps=6,
    )
    ours.train()
    assert record.steps[-1]["loss"] < record.steps[0]["loss"]
    assert np.isfinite(ours.evaluate()["eval_loss"])


def test_seq2seq_collator_with_a_model_makes_the_decoder_inputs(tmp_path: Path) -> None:
    """Then the batch holds decoder_input_ids beside the labels; both models must use them."""
    losses = []
    for with_model in (True, False):
        student, teacher = models("seq2seq_lm")
        collator = DataCollatorForSeq2Seq(tokenizer(), model=student if with_model else None)
        record = Recorder()
        trainer(
            tmp_path,
            "seq2seq_lm",
            model=student,
            teacher_model=teacher,
            data_collator=collator,
            callbacks=[record],
        ).train()
        losses.append([step["loss"] for step in record.steps])
    assert losses[0] == losses[1]


# ---- logs --------------------------------------------------------------------------------------


def test_components_add_up_to_the_loss(tmp_path: Path) -> None:
    """A component logged per micro-batch, or weighted twice, misleads whoever tunes the weights."""
    record = Recorder()
    weighted = {"hard_labels": 0.3, "forward_kl": 0.7, "hidden_states": 2.0, "weight_decay": 1.0}
    trainer(
        tmp_path,
        objective=0.3 * HardLabels()
        + 0.7 * ForwardKL(2.0)
        + 2.0 * HiddenStates()
        + WeightDecay(1e-3),
        callbacks=[record],
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        max_steps=6,
        logging_steps=2,
    ).train()
    assert len(record.steps) == 3
    for step in record.steps:
        total = sum(weight * step[name] for name, weight in weighted.items())
        assert step["loss"] == pytest.approx(total, rel=1e-5)


def test_scheduled_weights_show_in_the_loss(tmp_path: Path) -> None:
    record = Recorder()
    objective = 1.0 * HardLabels() + Schedule("linear", 1.0, 0.0) * HiddenStates()
    trainer(tmp_path, objective=objective, callbacks=[record], max_steps=4).train()
    for step, logged in enumerate(record.steps):
        total = logged["hard_labels"] + (1 - step / 4) * logged["hidden_states"]
        assert logged["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("report_to", ["tensorboard", ["tensorboard"]])
def test_tensorboard_shows_each_component(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report_to: Any
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    record = Recorder()
    _, teacher = models()
    teacher.save_pretrained(tmp_path / "teacher")
    ours = trainer(
        tmp_path,
        teacher_model=tmp_path / "teacher",
        teacher_model_init_kwargs={"dtype": torch.float32},
        callbacks=[record],
        report_to=report_to,
        eval_strategy="epoch",
        compute_metrics=accuracy,
        objective=EVERYTHING,
    )
    ours.train()
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    for name in ("loss", "hard_labels", "forward_kl", "hidden_states"):
        assert {f"train/{name}", f"eval/{name}"} <= tags
        values = [event.value for event in events.Scalars(f"train/{name}")]
        assert values == pytest.approx([step[name] for step in record.steps], rel=1e-6)
    assert {"eval/agreement", "eval/ece", "eval/teacher_accuracy"} <= tags


def test_arguments_with_a_dtype_can_be_written(tmp_path: Path) -> None:
    """Every reporter writes the arguments as JSON when training starts."""
    args = config(tmp_path, teacher_model_init_kwargs={"dtype": torch.bfloat16})
    written = json.loads(args.to_json_string())
    assert written["teacher_model_init_kwargs"] == {"dtype": "bfloat16"}


# ---- best checkpoints --------------------------------------------------------------------------


class Keep(TrainerCallback):
    """Keeps the weights and projections of every evaluation with its figures."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.kept: list[tuple[dict[str, float], dict[str, Any], dict[str, Any]]] = []

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any
    ) -> None:
        self.trainer.model._modules.pop("distillation", None)
        kept = weights(self.trainer.model), weights(self.trainer.projections)
        self.trainer.model.add_module("distillation", self.trainer.projections)
        self.kept.append((dict(metrics), *kept))


@pytest.mark.parametrize(
    ("metric", "greater"), [("accuracy", True), ("eval_agreement", True), ("loss", False)]
)
def test_the_best_step_comes_back_whole(tmp_path: Path, metric: str, greater: bool) -> None:
    """The best weights with the last projections would be a model that never was."""
    keep = Keep()
    ours = keep.trainer = trainer(
        tmp_path,
        objective=EVERYTHING,
        callbacks=[keep],
        compute_metrics=accuracy,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=greater,
        max_steps=8,
        learning_rate=0.3,
        lr_scheduler_type="constant",
    )
    ours.train()
    key = metric if metric.startswith("eval_") else f"eval_{metric}"
    values = [figures[key] for figures, _, _ in keep.kept]
    best = values.index(max(values) if greater else min(values))
    assert best != len(values) - 1
    assert ours.state.best_metric == values[best]
    assert ours.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best + 1}")
    _, student, projections = keep.kept[best]
    assert same(weights(ours.model), student)
    assert same(weights(ours.projections), projections)
    folders = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert folders == {f"checkpoint-{best + 1}", "checkpoint-8"}


def test_early_stopping_and_saving_the_best_alone(tmp_path: Path) -> None:
    ours = trainer(
        tmp_path,
        objective=EVERYTHING,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="best",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        max_steps=30,
        learning_rate=1.0,
        lr_scheduler_type="constant",
    )
    ours.train()
    assert ours.state.global_step < 30
    best = ours.state.best_global_step
    assert ours.state.global_step == best + 2
    assert ours.evaluate()["eval_loss"] == pytest.approx(ours.state.best_metric, rel=1e-6)
    assert ours.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")


# ---- searches ----------------------------------------------------------------------------------


def _fresh() -> BertForSequenceClassification:
    return models()[0]


def test_a_trial_changes_the_objective_and_makes_new_projections(tmp_path: Path) -> None:
    """A trial sets arguments and calls model_init; what was read before it is stale."""
    given = []
    for temperature, alpha in ((1.0, 0.25), (4.0, 0.75)):
        record = Recorder()
        ours = trainer(tmp_path, model_init=_fresh, callbacks=[record], max_steps=1)
        ours.hp_search_backend = HPSearchBackend.WANDB
        ours.objective = None  # as a search does before a trial,
        ours._hp_search_setup({"temperature": temperature, "alpha": alpha})
        ours.train()
        assert ours.objective is None  # and reads after it
        logged = record.steps[0]
        total = (1 - alpha) * logged["hard_labels"] + alpha * logged["forward_kl"]
        assert logged["loss"] == pytest.approx(total, rel=1e-5)
        given.append(logged["forward_kl"])
    assert given[0] != pytest.approx(given[1], rel=1e-3)


def test_every_student_of_model_init_gets_projections_of_its_own(tmp_path: Path) -> None:
    record = Recorder()
    ours = trainer(tmp_path, model_init=_fresh, callbacks=[record], objective=EVERYTHING)
    first = ours.projections
    before = weights(first)
    ours.train()
    second = ours.projections
    ours.train()
    assert len({id(first), id(second), id(ours.projections)}) == 3
    assert same(before, weights(first))
    half = len(record.steps) // 2
    losses = [step["loss"] for step in record.steps]
    assert losses[:half] == losses[half:]


@pytest.mark.parametrize("metric", [None, accuracy])
def test_the_default_score_of_a_search_is_the_stock_trainers(tmp_path: Path, metric: Any) -> None:
    """It sums all metrics: with the teacher's figures among them it would mean nothing."""
    ours = trainer(tmp_path, compute_metrics=metric, objective=EVERYTHING)
    figures = ours.evaluate()
    figures.pop("eval_model_preparation_time")
    wanted = figures["eval_loss"] if metric is None else figures["eval_accuracy"]
    assert ours._comparison.score(figures) == wanted


@pytest.mark.filterwarnings("ignore")  # those of optuna
@pytest.mark.parametrize("evaluated", ["steps", "no"])
def test_search_with_optuna(tmp_path: Path, evaluated: str) -> None:
    """transformers keeps the score of a trial in `trainer.objective`: the name is taken."""
    pytest.importorskip("optuna")
    ours = trainer(
        tmp_path,
        model_init=_fresh,
        objective=None,
        max_steps=2,
        eval_strategy=evaluated,
        eval_steps=1,
    )
    best = ours.hyperparameter_search(
        lambda trial: {"alpha": trial.suggest_float("alpha", 0.1, 0.9)},
        compute_objective=lambda metrics: metrics["eval_loss"],
        n_trials=3,
        direction="minimize",
        backend="optuna",
    )
    assert isinstance(best.objective, float)
    assert 0.1 <= best.hyperparameters["alpha"] <= 0.9
