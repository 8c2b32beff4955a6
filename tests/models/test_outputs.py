"""Heads whose outputs are named otherwise, against the models' own outputs and plain torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import LABELS, VOCAB, collate
from tiny_trainers import Recorder, data, models, trainer
from torch import Tensor, nn
from torch.nn import functional as F

from hf_distill import (
    CKA,
    RKD,
    AttentionMaps,
    ForwardKL,
    HardLabels,
    HiddenStates,
    MiniLMv2,
    ModelLoss,
    Objective,
    register_task,
)
from hf_distill.models import tasks
from hf_distill.models.tasks import CUSTOM_TASKS, TASKS, task_of

tf: Any = transformers
BOTH = ("encoder", "decoder")


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_distill.models.tasks.CUSTOM_TASKS", dict(CUSTOM_TASKS))
    monkeypatch.setattr("hf_distill.models.tasks.TASKS", dict(TASKS))


def bart(layers: int = 2, kind: str = "BartForSequenceClassification") -> Any:
    settings = dict.fromkeys(("encoder_layers", "decoder_layers"), layers)
    settings |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    settings |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 24)
    config = tf.BartConfig(
        vocab_size=VOCAB,
        d_model=16,
        dropout=0.0,
        num_labels=LABELS,
        max_position_embeddings=32,
        pad_token_id=1,
        eos_token_id=2,
        **settings,
    )
    model = getattr(tf, kind)(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # away from the near-uniform outputs of a fresh model
            parameter.data.mul_(5)
    return model.eval()


def t5(layers: int = 2, kind: str = "T5ForSequenceClassification") -> Any:
    config = tf.T5Config(
        vocab_size=VOCAB,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=layers,
        num_heads=2,
        dropout_rate=0.0,
        num_labels=2 if kind.endswith("Answering") else LABELS,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
        classifier_dropout=0.0,
    )
    return getattr(tf, kind)(config).eval()


def padded(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Each text ends with the token 2, by which these heads find its end, and is padded with 1."""
    batch = collate([{**row, "input_ids": [*row["input_ids"][:-1], 2]} for row in rows])
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 1)
    return batch


def first_loss(ours: Any) -> dict[str, float]:
    recorder = Recorder()
    ours.add_callback(recorder)
    ours.train()
    return recorder.steps[0]


def states_of(model: nn.Module, batch: dict[str, Tensor], **asked: bool) -> Any:
    labels = {"labels", "start_positions", "end_positions"}
    return model(**{k: v for k, v in batch.items() if k not in labels}, **asked)


def built(folder: Path, make: Any, objective: Objective, head: str = "", **more: Any) -> Any:
    name = {"": "sequence_classification", "qa": "question_answering"}[head]
    kinds = {
        "": ("BartForSequenceClassification", "T5ForSequenceClassification"),
        "qa": ("BartForQuestionAnswering", "T5ForQuestionAnswering"),
    }
    kind = next(k for k in kinds[head] if k.lower().startswith(make.__name__))
    return trainer(
        folder,
        name,
        model=make(2, kind),
        teacher_model=make(4, kind),
        objective=1.0 * objective,
        data_collator=padded,
        train_sampling_strategy="sequential",
        **more,
    )


@pytest.mark.parametrize("head", ["", "qa"])
@pytest.mark.parametrize("make", [bart, t5])
@pytest.mark.parametrize("groups", [None, ("encoder",), ("decoder",)])
def test_hidden_states_of_both_stacks(
    tmp_path: Path, make: Any, head: str, groups: tuple[str, ...] | None
) -> None:
    """The classifiers of encoder-decoders give no `hidden_states`, and padding of both stacks that
    counts makes the loss depend on the other texts of the batch."""
    ours = built(tmp_path, make, HiddenStates(groups=groups), head)
    batch = padded(ours.train_dataset[:4])
    mask = batch["attention_mask"].bool()
    both = [
        states_of(m, batch, output_hidden_states=True) for m in (ours.model, ours.teacher.model)
    ]
    expected = 0.0
    for group in groups or BOTH:
        one, other = (getattr(out, f"{group}_hidden_states") for out in both)
        pairs = [(one[1], other[2]), (one[2], other[4])]
        values = [((s.double() - t.double()) ** 2).mean(-1)[mask].mean() for s, t in pairs]
        expected += sum(values).item() / 2
    assert first_loss(ours)["loss"] == pytest.approx(expected, rel=1e-5)


def test_padding_of_both_stacks_does_not_count(tmp_path: Path) -> None:
    """The same texts with other neighbours must have the same relations and states."""
    losses = []
    for more in (0, 5):

        def longer(rows: list[dict[str, Any]], more: int = more) -> dict[str, Tensor]:
            batch = padded(rows)
            width = {"input_ids": 1, "attention_mask": 0}
            return {
                k: F.pad(v, (0, more), value=width[k]) if k in width else v
                for k, v in batch.items()
            }

        torch.manual_seed(0)
        found = trainer(
            tmp_path,
            model=bart(),
            teacher_model=bart(4),
            objective=HiddenStates() + RKD() + MiniLMv2() + AttentionMaps(),
            data_collator=longer,
            train_sampling_strategy="sequential",
        )
        losses.append(first_loss(found))
    for name, value in losses[0].items():
        if name.startswith(("hidden", "rkd", "minilm", "attention")):
            assert losses[1][name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("objective", [RKD(), CKA(), MiniLMv2(), AttentionMaps(heads="mean")])
def test_objectives_of_both_stacks(tmp_path: Path, objective: Objective) -> None:
    """An objective that knows one stack alone ends in an AttributeError."""
    for groups in (None, ("decoder",)):
        kind = type(objective)
        settings = {"heads": "mean"} if kind is AttentionMaps else {}
        ours = built(tmp_path, bart, kind(groups=groups, **settings))
        names = {n for n in first_loss(ours) if n.startswith(objective.name)}
        assert len(names) >= (2 if groups is None else 1)


BEAM = {
    "XLNetForQuestionAnswering": tf.XLNetConfig(
        vocab_size=VOCAB, d_model=16, n_layer=2, n_head=2, d_inner=24, dropout=0.0
    ),
    "XLMForQuestionAnswering": tf.XLMConfig(vocab_size=VOCAB, emb_dim=16, n_layers=2, n_heads=2),
    "FlaubertForQuestionAnswering": tf.FlaubertConfig(
        vocab_size=VOCAB, emb_dim=16, n_layers=2, n_heads=2
    ),
}


@pytest.mark.parametrize("name", BEAM)
def test_a_head_that_is_only_called_so(tmp_path: Path, name: str) -> None:
    """Read as spans, a beam search over answers is an AttributeError; its own loss is to be had."""
    make = getattr(tf, name)
    student, teacher = make(BEAM[name]), make(BEAM[name])
    assert task_of(student).name == "other"
    with pytest.raises(ValueError, match=rf"got {name}, .*'start_top_log_probs'.*ModelLoss"):
        trainer(
            tmp_path,
            "question_answering",
            model=student,
            teacher_model=teacher,
            objective=1.0 * ForwardKL(),
        )
    ours = trainer(
        tmp_path,
        "question_answering",
        model=student,
        teacher_model=teacher,
        objective=0.5 * ModelLoss() + 0.5 * HiddenStates(),
    )
    assert first_loss(ours)["loss"] > 0


def test_a_picture_question_is_a_class(tmp_path: Path) -> None:
    """ViLT answers questions by a class: its name makes it a head of spans, and its labels would be
    asked for as positions."""
    config = tf.ViltConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        image_size=32,
        patch_size=16,
        num_labels=LABELS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    student, teacher = (tf.ViltForQuestionAnswering(config) for _ in "st")
    rows = [
        {**row, "pixel_values": torch.randn(3, 32, 32), "labels": torch.rand(LABELS).round()}
        for row in data()
    ]
    options: dict[str, Any] = {"model": student, "teacher_model": teacher, "train_dataset": rows}
    options |= {"eval_dataset": rows, "train_sampling_strategy": "sequential"}
    with pytest.raises(ValueError, match=r"register_task\('ViltForQuestionAnswering'"):
        trainer(tmp_path, objective=1.0 * HardLabels(), **options)
    register_task("ViltForQuestionAnswering", "sequence_classification")
    ours = trainer(tmp_path, objective=1.0 * HardLabels(), **options)
    batch = collate(rows[:4])
    own = student.eval()(**batch).loss.item()  # of a mean over classes, times their number
    assert first_loss(ours)["loss"] == pytest.approx(own, rel=1e-5)
    divergence = trainer(tmp_path, objective=1.0 * ForwardKL(1.0), **options)
    ours_, theirs = (states_of(m.eval(), batch).logits.double() for m in (student, teacher))
    p, q = theirs.sigmoid(), ours_.sigmoid()
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert first_loss(divergence)["loss"] == pytest.approx(kl.sum(-1).mean().item(), rel=1e-4)


def test_a_detector_is_no_classifier(tmp_path: Path) -> None:
    """Its logits are of queries: read as those of pictures, the loss is four times the mean and
    the agreement 2.0."""
    config = tf.YolosConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=[32, 32],
        patch_size=16,
        num_detection_tokens=4,
        num_labels=LABELS,
    )
    register_task("YolosForObjectDetection", "image_classification")
    rows = [{"pixel_values": row["pixel_values"]} for row in data("image_classification")]

    def detector(objective: Objective) -> Any:
        return trainer(
            tmp_path,
            "image_classification",
            model=tf.YolosForObjectDetection(config),
            teacher_model=tf.YolosForObjectDetection(config),
            objective=1.0 * objective,
            train_dataset=rows,
            eval_dataset=rows,
        )

    with pytest.raises(
        ValueError,
        match=r"items \(4,\) .*YolosForObjectDetection.*got \(4, 4, 4\).*del CUSTOM",
    ):
        detector(ForwardKL())
    del tasks.CUSTOM_TASKS["YolosForObjectDetection"]
    ours = detector(HiddenStates())
    assert first_loss(ours)["loss"] > 0
    assert "eval_agreement" not in ours.evaluate()


def test_a_config_that_asks_for_tuples(tmp_path: Path) -> None:
    """With `return_dict=False` a model answers with a tuple, which has no `logits`."""
    losses = []
    for asked in (True, False):
        torch.manual_seed(0)
        student, teacher = models()
        student.config.return_dict = teacher.config.return_dict = asked
        ours = trainer(
            tmp_path, model=student, teacher_model=teacher, objective=ForwardKL() + HiddenStates()
        )
        losses.append(first_loss(ours)["loss"])
    assert losses[0] == losses[1]


class Scored(nn.Module):
    """Its logits are called otherwise, beside another output."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = models()[0]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        logits = self.inner(input_ids, attention_mask).logits
        return {"scores": logits, "confidence": logits.amax(-1)}


def test_outputs_of_other_names(tmp_path: Path) -> None:
    """Both remedies of the refusal are followed: a row that reads them, and another name."""
    register_task(Scored, "sequence_classification")
    with pytest.raises(
        ValueError, match=r"'logits'\].*Scored.*gives \['confidence', 'scores'\].*register_task"
    ):
        trainer(tmp_path, model=Scored())
    row = dataclasses.replace(
        TASKS["sequence_classification"],
        read=lambda outputs, batch: outputs["scores"],
        fields=("scores",),
    )
    register_task(Scored, row)
    torch.manual_seed(0)
    ours = trainer(tmp_path, model=Scored(), objective=1.0 * ForwardKL())
    plain = trainer(tmp_path, model=models()[0], objective=1.0 * ForwardKL())
    assert first_loss(ours)["loss"] == first_loss(plain)["loss"]
