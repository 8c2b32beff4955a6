"""Remedies that error messages name, followed: what is advised must work."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from class_verdicts import Case
from every_class import build
from task_values import value
from tiny_models import CASES, LABELS, _wide, collate
from tiny_trainers import config, data, models, trainer
from torch import nn
from unknown_heads import rows_for, unknown
from unknown_heads import stacked as listed

from hf_distill import (
    DistillationTrainer,
    ForwardKL,
    HardLabels,
    HiddenStates,
    ModelLoss,
    ModelTeacher,
    register_task,
)
from hf_distill.models.tasks import CUSTOM_TASKS, task_of
from tests.models.test_every_class import CLASSES
from tests.models.test_forward_errors import first_loss, kl, vit
from tests.models.test_wrapped import Pooled
from tests.training.test_model_loss import WIDE, boxes, detector, stacked

tf: Any = transformers


@pytest.fixture(autouse=True)
def _heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_distill.models.tasks.CUSTOM_TASKS", dict(CUSTOM_TASKS))


class OwnFeatures(ModelTeacher):
    """Reads another number of mel bins than the student, from a column of its own."""

    def columns(self) -> set[str]:
        return {"teacher_input_features", "decoder_input_ids", "labels"}

    def __call__(self, batch: Any, needs: Any, items: Any) -> Any:
        own = {**batch, "input_features": batch["teacher_input_features"]}
        return super().__call__(own, needs, items)


def test_a_teacher_class_of_ones_own_is_asked_through_itself(tmp_path: Path) -> None:
    """The look for what follows the output layer asked the model inside, with the student's
    column, and refused it."""
    student, _ = models("speech_seq2seq")
    wide = _wide(CASES["speech_seq2seq"].config(), num_mel_bins=16)
    torch.manual_seed(3)
    teacher = tf.WhisperForConditionalGeneration(wide)
    rows = [
        {**row, "teacher_input_features": torch.cat([row["input_features"]] * 2)}
        for row in data("speech_seq2seq", 4)
    ]
    own = {"train_dataset": rows, "eval_dataset": rows, "objective": ForwardKL()}
    args = config(tmp_path, remove_unused_columns=False)
    ours = trainer(
        tmp_path,
        "speech_seq2seq",
        model=student,
        teacher_model=OwnFeatures(teacher),
        args=args,
        **own,
    )
    assert ours.step.lazy_logits
    batch = collate(rows)
    with torch.no_grad():
        features = batch.pop("teacher_input_features")
        s = copy.deepcopy(student).eval()(**batch).logits
        t = teacher(**{**batch, "input_features": features}).logits
    real = batch["labels"] != -100
    assert first_loss(ours)["forward_kl"] == pytest.approx(kl(s[real], t[real]), rel=1e-4)


def test_a_config_of_the_datas_sizes(tmp_path: Path) -> None:
    """What a student of another picture size is told."""
    with pytest.raises(ValueError, match="give it a config of the data's sizes"):
        trainer(tmp_path, "image_classification", model=vit(64))
    trainer(tmp_path, "image_classification", model=vit(32)).train()


def test_boxes_are_no_labels_of_a_classifier(tmp_path: Path) -> None:
    """A detector that was registered as one is taken out of the table, and learns its own loss."""
    register_task("YolosForObjectDetection", "image_classification")
    args = config(tmp_path, remove_unused_columns=False)

    def build_trainer(**options: Any) -> Any:
        teacher = detector(1, **WIDE)
        return DistillationTrainer(
            detector(), args, stacked, boxes(), teacher_model=teacher, **options
        )

    with pytest.raises(ValueError, match=r"del CUSTOM_TASKS\['YolosForObjectDetection'\]"):
        build_trainer()
    from hf_distill.models import tasks

    del tasks.CUSTOM_TASKS["YolosForObjectDetection"]
    ours = build_trainer(objective=0.5 * ModelLoss() + 0.5 * HiddenStates())
    ours.train()
    assert "model_loss" in ours.state.log_history[0]


def module_path(model: nn.Module, end: str) -> str:
    """The first module whose path ends so."""
    return next(path for path, _ in model.named_modules() if path.endswith(end))


@pytest.mark.parametrize(
    ("name", "end", "said"),
    [
        ("PegasusXForConditionalGeneration", "encoder.layers.0", "a tensor a layer"),
        ("FlavaModel", "text_model.encoder.layer.0", "none has a row for each example"),
        ("CanineModel", "encoder.layer.0", "which of them are padding"),
        ("SEWModel", "encoder.layers.0", "which of them are padding"),
    ],
)
def test_modules_by_their_paths_where_states_cannot_be_had(
    tmp_path: Path, name: str, end: str, said: str
) -> None:
    """The states of these classes are no tensors, not there, or of other lengths than the batch."""
    case = Case(CLASSES[name], *build(CLASSES[name]), tmp_path)
    with pytest.raises(ValueError, match=rf"{said}(?s:.*)by their paths"):
        case.ours(case.model, copy.deepcopy(case.model), objective=HiddenStates())
    try:
        path = module_path(case.model, end)
    except StopIteration:
        path = module_path(case.model, "layers.0")
    teacher = copy.deepcopy(case.model)
    ours = case.ours(case.model, teacher, objective=HiddenStates(f"{path}:{path}"))
    assert ours.evaluate()["eval_hidden_states"] == pytest.approx(0, abs=1e-9)


def test_places_without_an_order_are_not_compared(tmp_path: Path) -> None:
    """ViLT shuffles its patches in every forward: state t of both models is of other patches. The
    pooled vector is of the first token, and can be compared."""
    student, teacher = unknown("visual answers").eval(), unknown("visual answers", 1).eval()
    rows, args = rows_for("visual answers"), config(tmp_path, remove_unused_columns=False)

    def build_trainer(*layers: str) -> Any:
        goal = HiddenStates(*layers)
        data = {"train_dataset": rows, "eval_dataset": rows}
        return DistillationTrainer(
            student, args, listed, teacher_model=teacher, objective=goal, **data
        )

    with pytest.raises(ValueError, match=r"HiddenStates\('<of the teacher>:<of the student>'\)"):
        build_trainer()
    with pytest.raises(ValueError, match=r"shuffles the patches.*'vilt\.pooler:vilt\.pooler'"):
        build_trainer("vilt.encoder.layer.1:vilt.encoder.layer.1")
    found = build_trainer("vilt.pooler:vilt.pooler").evaluate()["eval_hidden_states"]
    batch = {k: v for k, v in listed(rows).items() if k != "labels"}
    with torch.no_grad():
        ours, theirs = (model.vilt(**batch).pooler_output for model in (student, teacher))
    expected = (ours - theirs).square().mean(-1).mean()
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_the_model_in_a_wrapper_that_only_passes_on(tmp_path: Path) -> None:
    """Where a wrapper changes the answer it is not read as its body; the body itself works."""
    wrapper = Pooled(tf.BertModel(CASES["encoder"].config()))
    with pytest.raises(ValueError, match=r"inputs on to `\.body`, pass that model"):
        trainer(tmp_path, "encoder", model=wrapper, objective=HiddenStates())
    trainer(tmp_path, "encoder", model=wrapper.body, objective=HiddenStates()).train()


class Renamed(nn.Module):
    """A classifier with two outputs, of which none is called logits."""

    def __init__(self, name: str):
        super().__init__()
        self.name, self.words, self.scores = name, nn.Embedding(40, 8), nn.Linear(8, LABELS)

    def forward(self, input_ids: Any) -> dict[str, Any]:
        states = self.words(input_ids)
        return {self.name: self.scores(states.mean(1)), "states": states}


def test_outputs_returned_under_the_name_that_is_read(tmp_path: Path) -> None:
    """The shorter of the two ways that the message names."""
    register_task(Renamed, "sequence_classification")
    with pytest.raises(ValueError, match=r"return them as \{'logits': …\}"):
        trainer(tmp_path, model=Renamed("scores"), objective=HardLabels())
    student = Renamed("logits")
    ours = trainer(tmp_path, model=student, objective=HardLabels())
    batch = collate(data())
    with torch.no_grad():
        logits = student(batch["input_ids"])["logits"]
    expected = nn.functional.cross_entropy(logits, batch["labels"])
    ours.args.per_device_eval_batch_size = 8
    assert ours.evaluate()["eval_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_a_teacher_whose_class_no_config_names_is_passed_as_a_model(tmp_path: Path) -> None:
    """`Load it yourself and pass the model.`"""
    teacher = detector(1, **WIDE)
    teacher.save_pretrained(tmp_path / "teacher")
    file = tmp_path / "teacher" / "config.json"
    file.write_text(file.read_text().replace("YolosForObjectDetection", "Unknown"))
    args = config(tmp_path, remove_unused_columns=False)
    goal = ModelLoss() + HiddenStates()

    def build_trainer(teacher: Any) -> Any:
        own = {"teacher_model": teacher, "objective": goal}
        return DistillationTrainer(detector(), args, stacked, boxes(), **own)

    with pytest.raises(ValueError, match="Load it yourself and pass the model"):
        build_trainer(str(tmp_path / "teacher"))
    build_trainer(tf.YolosForObjectDetection.from_pretrained(tmp_path / "teacher")).train()


def test_classes_that_the_mappings_list_elsewhere_are_read_as_what_they_give() -> None:
    """A voice or an actor is no encoder, and a reader of tables finds no spans."""
    with torch.device("meta"):
        found = {
            name: task_of(getattr(tf, name)(getattr(tf, name).config_class())).name
            for name in ("ClapModel", "TapasForQuestionAnswering", "VitsModel", "SamModel")
        }
    assert found.pop("ClapModel") == "audio_dual_encoder"
    assert set(found.values()) == {"other"}


def test_sounds_and_texts_are_judged_in_pairs() -> None:
    """CLAP's own loss, which its table row was never compared with."""
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 40, "intermediate_size": 24, "max_position_embeddings": 20}
    sound = {
        "hidden_size": 16,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [1, 2],
        "window_size": 2,
        "spec_size": 32,
        "num_mel_bins": 8,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "num_classes": 3,
        "projection_dim": 8,
    }
    torch.manual_seed(0)
    made = tf.ClapConfig(text_config=text, audio_config=sound, projection_dim=8)
    model = tf.ClapModel(made).eval()
    batch = {
        "input_ids": torch.randint(3, 40, (3, 6)),
        "attention_mask": torch.ones(3, 6, dtype=torch.long),
        "input_features": torch.randn(3, 1, 128, 8),
        "is_longer": torch.zeros(3, 1, dtype=torch.bool),
    }
    with torch.no_grad():
        own = float(model(**batch, return_loss=True).loss)
    assert value(HardLabels(), model, batch) == pytest.approx(own, rel=1e-5)
