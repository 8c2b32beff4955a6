"""Modules without a config as students and teachers, against plain torch."""

from __future__ import annotations

import copy
import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_modules import (
    FORMS,
    Convolutional,
    Packed,
    Perceptron,
    Recurrent,
    Tagger,
    Writer,
    rows_of_numbers,
)
from safetensors.torch import load_file
from tiny_models import collate
from tiny_trainers import Recorder, accuracy, config, data, models, same, trainer, weights
from torch import nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from hf_distill import (
    RKD,
    CachedTeacher,
    EarlyExits,
    EMATeacher,
    Ensemble,
    ForwardKL,
    Gaussian,
    HardLabels,
    HiddenStates,
    Jacobian,
    LogitMSE,
    ModelLoss,
    ModelTeacher,
    OnlineDistillationTrainer,
    OnPerturbed,
    register_task,
    write_cache,
)
from hf_distill.hub import folder_problems, published_files, validate
from hf_distill.models.tasks import CUSTOM_TASKS

PICTURES = "image_classification"


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_distill.models.tasks.CUSTOM_TASKS", dict(CUSTOM_TASKS))
    register_task(Recurrent, "sequence_classification")
    register_task(Labelled, "sequence_classification")
    register_task(Packed, "sequence_classification")
    register_task(Tagger, "token_classification")
    register_task(Writer, "causal_lm")
    register_task("Convolutional", "image_classification")
    register_task(Perceptron, "sequence_classification")


def first_loss(ours: Any) -> float:
    """What the first training step logs."""
    recorder = Recorder()
    ours.add_callback(recorder)
    ours.train()
    return recorder.steps[0]["loss"]


def logits_of(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    known = inspect.signature(model.forward).parameters
    taken = {k: v for k, v in batch.items() if k in known and k != "labels"}
    found: Any = model.eval()(**taken)
    if isinstance(found, dict):
        found = found["logits"]
    return (found if isinstance(found, torch.Tensor) else found[0]).detach()


def mixture(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> float:
    """(1 - alpha) CE + alpha T^2 KL of the default arguments, alpha 0.5 and T 2, by hand."""
    t, s = ((x.double() / 2).log_softmax(-1) for x in (teacher, student))
    kl = (t.exp() * (t - s)).sum(-1).mean() * 4
    return float(0.5 * F.cross_entropy(student.double(), labels) + 0.5 * kl)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("role", ["student", "teacher", "both"])
def test_every_form_of_answer(tmp_path: Path, form: str, role: str) -> None:
    """A tuple's or dict's logits that are not found are an AttributeError about `logits`."""
    student, teacher = models()
    student = Recurrent(form) if role != "teacher" else student
    teacher = Recurrent(form, width=12) if role != "student" else teacher
    batch = collate(data()[:4])
    expected = mixture(logits_of(student, batch), logits_of(teacher, batch), batch["labels"])
    ours = trainer(
        tmp_path,
        model=student,
        teacher_model=teacher,
        alpha=0.5,
        temperature=2.0,
        train_sampling_strategy="sequential",
    )
    assert first_loss(ours) == pytest.approx(expected, abs=1e-6)
    assert 0 <= ours.evaluate()["eval_agreement"] <= 1


@pytest.mark.parametrize("name", ["tokens", "language", "pictures", "numbers"])
def test_every_kind_of_module(tmp_path: Path, name: str) -> None:
    """Items, classes or labels that are read wrongly give another number than plain torch."""
    student, teacher, rows = {
        "tokens": lambda: (Tagger(), Tagger(width=12), data("token_classification")),
        "language": lambda: (Writer(), Writer(12), data("causal_lm")),
        "pictures": lambda: (Convolutional(), Convolutional(channels=6), data(PICTURES)),
        "numbers": lambda: (Perceptron(), Perceptron(width=12), rows_of_numbers()),
    }[name]()
    batch = collate(rows[:4])
    ours, theirs = logits_of(student, batch), logits_of(teacher, batch)
    labels = batch["labels"]
    if name == "language":
        ours, theirs, labels = ours[:, :-1], theirs[:, :-1], labels[:, 1:]
    objective = 0.25 * HardLabels() + 0.75 * LogitMSE()
    if name == "numbers":
        label_loss = float(F.mse_loss(ours.double(), labels.double()))
        distance = float(F.mse_loss(ours.double(), theirs.double()))
    else:
        counted = labels != -100
        ours, theirs, labels = ours[counted].double(), theirs[counted].double(), labels[counted]
        label_loss = float(F.cross_entropy(ours, labels))
        distance = float(((ours - theirs) ** 2).sum(-1).mean())
    found = trainer(
        tmp_path,
        model=student,
        teacher_model=teacher,
        objective=objective,
        train_dataset=rows,
        eval_dataset=rows,
        train_sampling_strategy="sequential",
    )
    assert first_loss(found) == pytest.approx(0.25 * label_loss + 0.75 * distance, abs=1e-5)
    assert found.predict(rows).predictions.shape[0] == len(rows)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([0.0, 1.0, 1.0], "several"),
        (0.5, "regression"),
        (2, "classes"),
    ],
)
def test_the_labels_say_what_the_problem_is(tmp_path: Path, labels: Any, problem: str) -> None:
    """Without a config, a yes or no for each class would be read as one class, or as numbers."""
    model = Recurrent(classes=1 if problem == "regression" else 3)
    rows = [{"input_ids": row["input_ids"], "labels": labels} for row in data()]
    batch = collate(rows[:4])
    ours = logits_of(model, batch).double()
    if problem == "several":
        expected = F.binary_cross_entropy_with_logits(ours, batch["labels"].double()) * 3
    elif problem == "regression":
        expected = F.mse_loss(ours[:, 0], batch["labels"].double())
    else:
        expected = F.cross_entropy(ours, batch["labels"])
    found = trainer(
        tmp_path,
        model=model,
        teacher_model=copy.deepcopy(model),
        objective=1.0 * HardLabels(),
        train_dataset=rows,
        eval_dataset=rows,
        train_sampling_strategy="sequential",
    )
    assert first_loss(found) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_other_numbers_of_classes(tmp_path: Path, role: str) -> None:
    """Seen at the first step, a difference is an error of broadcasting; not seen, it is a loss."""
    student, teacher = Recurrent(classes=3), Recurrent(classes=4)
    if role == "teacher":
        teacher = models()[1]
        student = Recurrent(classes=4)
    with pytest.raises(ValueError, match=r"student's \d labels.*got \d"):
        trainer(tmp_path, model=student, teacher_model=teacher)


def test_resumed_is_as_not_stopped(tmp_path: Path) -> None:
    """A checkpoint of a state dict that is not loaded back starts anew with the old step."""

    def run(folder: Path) -> Any:
        torch.manual_seed(3)
        return trainer(
            folder,
            model=Recurrent("tuple"),
            teacher_model=Recurrent(width=12),
            objective=ForwardKL() + HiddenStates("lstm:lstm") + HardLabels(),
            max_steps=4,
            save_strategy="steps",
            save_steps=2,
        )

    whole, parts = run(tmp_path / "whole"), run(tmp_path / "parts")
    whole.train()
    parts.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert same(weights(whole.model), weights(parts.model))
    assert same(weights(whole.projections), weights(parts.projections))
    saved = load_file(tmp_path / "whole" / "checkpoint-4" / "model.safetensors")
    assert same(saved, weights(whole.model))


def test_saved_as_the_stock_trainer_saves(tmp_path: Path) -> None:
    """A student that only we can read back is no student."""
    model = Recurrent()
    ours = trainer(tmp_path / "ours", model=model, teacher_model=Recurrent(width=12))
    ours.train()
    ours.save_model()
    arguments = TrainingArguments(str(tmp_path / "stock"), use_cpu=True, report_to="none")
    Trainer(ours.model, arguments).save_model()
    files = [{p.name for p in (tmp_path / n).iterdir()} for n in ("ours", "stock")]
    assert files[0] - {"curves.png", "README.md", "log.csv"} == files[1]
    one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("ours", "stock"))
    assert same(one, other)
    again = Recurrent()
    again.load_state_dict(one)
    batch = collate(data()[:4])
    assert torch.equal(logits_of(again, batch), logits_of(ours.model, batch))


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    """safetensors holds a weight once: a model with its embeddings as output layer would not be
    saved at the end of its training."""
    rows = data("causal_lm")
    ours = trainer(
        tmp_path,
        model=Writer(),
        teacher_model=Writer(12),
        train_dataset=rows,
        eval_dataset=rows,
        save_strategy="steps",
        save_steps=1,
    )
    ours.train()
    again = Writer()
    missing, unexpected = again.load_state_dict(
        load_file(tmp_path / "checkpoint-2" / "model.safetensors"), strict=False
    )
    assert not unexpected
    assert len(missing) <= 1
    assert same(weights(again), weights(ours.model))
    assert ours.evaluate()["eval_perplexity"] > 1


def test_metrics_are_those_of_the_predictions(tmp_path: Path) -> None:
    """Without a config and without labels in its forward, a student would have no metric."""
    ours = trainer(
        tmp_path,
        model=Recurrent("dict"),
        teacher_model=models()[1],
        compute_metrics=accuracy,
    )
    batch = collate(data())
    right = (logits_of(ours.model, batch).argmax(-1) == batch["labels"]).double().mean()
    found = ours.evaluate()
    assert found["eval_accuracy"] == pytest.approx(float(right))
    assert "eval_teacher_accuracy" in found
    assert np.asarray(ours.predict(data()).label_ids).tolist() == batch["labels"].tolist()


def test_hidden_states_are_asked_for_by_module(tmp_path: Path) -> None:
    """`output_hidden_states` given to a module that does not know it is a TypeError in training;
    the remedy that is named instead must work, and compare what it says."""
    student, teacher = Recurrent("tuple"), models()[1]
    with pytest.raises(ValueError, match=r"Recurrent takes no `output_hidden_states`.*'lstm'"):
        trainer(tmp_path, model=student, teacher_model=teacher, objective=1.0 * HiddenStates())
    with pytest.raises(ValueError, match=r"this teacher does not provide.*'lstm'"):
        trainer(tmp_path, teacher_model=student, objective=1.0 * HiddenStates())
    objective = HiddenStates("bert.encoder.layer.3:lstm")
    ours = trainer(
        tmp_path,
        model=student,
        teacher_model=teacher,
        objective=objective,
        train_sampling_strategy="sequential",
    )
    projection = copy.deepcopy(ours.projections)
    batch = collate(data()[:4])
    mask = batch["attention_mask"].bool()
    states = student.lstm(student.embeddings(batch["input_ids"]))[0]
    linear = next(m for m in projection.modules() if isinstance(m, nn.Linear))
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    theirs = teacher.eval()(**inputs, output_hidden_states=True).hidden_states[-1]
    expected = ((linear(states) - theirs)[mask].double() ** 2).mean().item()
    assert first_loss(ours) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("first", [True, False])
def test_packed_sequences(tmp_path: Path, first: bool) -> None:
    """States that end with the longest text, or have the examples second, would be compared with
    other places, or with padding."""
    student, teacher = Packed(first), models()[1]
    rows = data()[1:5]  # of 4 to 8 tokens: no row is as long as the batch

    def padded(examples: list[Any]) -> dict[str, Any]:
        batch = collate(examples)
        for key in ("input_ids", "attention_mask"):
            batch[key] = F.pad(batch[key], (0, 3))
        return batch

    ours = trainer(
        tmp_path,
        model=student,
        teacher_model=teacher,
        objective=1.0 * HiddenStates("bert.encoder.layer.3:lstm"),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=padded,
        train_sampling_strategy="sequential",
    )
    linear = next(m for m in copy.deepcopy(ours.projections).modules() if isinstance(m, nn.Linear))
    total, count = 0.0, 0
    for row in rows:  # one by one: nothing is padding
        ids = torch.tensor([row["input_ids"]])
        states = student.lstm(
            student.embeddings(ids) if first else student.embeddings(ids).transpose(0, 1)
        )[0]
        states = states if first else states.transpose(0, 1)
        theirs = teacher.eval()(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        total += float(((linear(states) - theirs).double() ** 2).mean(-1).sum().detach())
        count += ids.shape[1]
    assert first_loss(ours) == pytest.approx(total / count, abs=1e-5)


def test_members_of_an_ensemble(tmp_path: Path) -> None:
    """A member that nobody names the task of must be named so, and then be averaged as others."""

    class Unnamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Recurrent("tuple", width=12)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            return self.inner(input_ids, attention_mask)

    own, bert = Unnamed(), models()[1]
    with pytest.raises(ValueError, match=r"got Unnamed.*register_task\('Unnamed'"):
        Ensemble([own, bert])
    members = Ensemble([ModelTeacher(own, task="sequence_classification"), bert])
    ours = trainer(
        tmp_path,
        model=Recurrent(),
        teacher_model=members,
        objective=1.0 * ForwardKL(1.0),
        train_sampling_strategy="sequential",
    )
    batch = collate(data()[:4])
    theirs = [logits_of(m, batch).double().softmax(-1) for m in (own, bert)]
    mean, student = (theirs[0] + theirs[1]) / 2, logits_of(ours.model, batch).double()
    expected = float((mean * (mean.log() - student.log_softmax(-1))).sum(-1).mean())
    assert first_loss(ours) == pytest.approx(expected, abs=1e-6)


def test_the_past_of_a_module(tmp_path: Path) -> None:
    """A moving average of a module is as little known as the module; at first it is the same."""
    student = Recurrent("dict")
    past = EMATeacher(student, 0.9)
    ours = trainer(tmp_path, model=student, teacher_model=past, objective=1.0 * ForwardKL())
    assert first_loss(ours) == pytest.approx(0, abs=1e-7)


def test_modules_that_learn_together(tmp_path: Path) -> None:
    """A peer without a config would end in an AttributeError of the trainer of several models."""
    student, peer = Recurrent("dict"), Recurrent("tuple", width=12)
    rows = data()
    ours = OnlineDistillationTrainer(
        student,
        config(tmp_path, train_sampling_strategy="sequential"),
        peers=peer,
        train_dataset=rows,
        data_collator=collate,
    )
    assert math.isfinite(first_loss(ours))


def test_the_cache_of_a_module(tmp_path: Path) -> None:
    """What was written must be what the live module says."""
    teacher = Recurrent("tuple", width=12)
    losses = []
    folder = write_cache(tmp_path / "cache", ModelTeacher(teacher), data(), collate, say=len)
    for each in (teacher, CachedTeacher(folder)):
        torch.manual_seed(0)
        student = Recurrent("dict")
        ours = trainer(tmp_path / "out", model=student, teacher_model=each)
        losses.append(first_loss(ours))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_smoothed_labels(tmp_path: Path) -> None:
    """`Trainer` asks the config of a model about label smoothing, and a module has none."""
    student = Recurrent("dict")
    batch = collate(data()[:4])
    expected = F.cross_entropy(logits_of(student, batch), batch["labels"], label_smoothing=0.3)
    ours = trainer(
        tmp_path,
        model=student,
        teacher_model=Recurrent(width=12),
        objective=1.0 * HardLabels(),
        label_smoothing_factor=0.3,
        train_sampling_strategy="sequential",
    )
    assert first_loss(ours) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_published_loads_again(
    tmp_path: Path, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push that asks for config.json fails after the training; a card that shows a pipeline for
    weights that none can load is wrong."""
    rows = data("causal_lm") if tied else data()
    model, teacher = (Writer(), Writer(12)) if tied else (Recurrent(), Recurrent(width=12))
    ours = trainer(
        tmp_path, model=model, teacher_model=teacher, train_dataset=rows, eval_dataset=rows
    )
    ours.train()
    ours.save_model()
    ours.create_model_card(license="mit")
    assert folder_problems(tmp_path) == []
    assert published_files(tmp_path) == ["README.md", "model.safetensors"]
    card = (tmp_path / "README.md").read_text()
    validate(card)
    assert "library_name: pytorch" in card
    code = card.split("```python\n")[1].split("```")[0]
    assert "pipeline" not in code
    weights_file = str(tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name: weights_file)
    space: dict[str, Any] = {"Writer": Writer, "Recurrent": Recurrent}
    exec(code.replace("(...)", "()"), space)
    assert same(weights(space["model"]), weights(model))
    (tmp_path / "model.safetensors").unlink()
    assert "missing: config.json, model.safetensors" in folder_problems(tmp_path)[0]


class Labelled(Recurrent):
    """Gives its own loss when it is given labels."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> Any:
        form, self.form = self.form, "tensor"
        logits = super().forward(input_ids, attention_mask)
        self.form = form
        loss = None if labels is None else F.cross_entropy(logits, labels, label_smoothing=0.1)
        if form == "tuple":
            return (logits,) if loss is None else (loss, logits)
        return {"loss": loss, "logits": logits}


@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_a_loss_of_its_own(tmp_path: Path, form: str) -> None:
    """With labels a tuple begins with the loss, as `Trainer` has it: read as logits, or not found,
    `ModelLoss` could not be learned from a module."""
    student = Labelled(form)
    batch = collate(data()[:4])
    own = F.cross_entropy(logits_of(student, batch), batch["labels"], label_smoothing=0.1)
    options: dict[str, Any] = {"model": student, "teacher_model": Recurrent(width=12)}
    options["train_sampling_strategy"] = "sequential"
    ours = trainer(tmp_path, objective=1.0 * ModelLoss(), **options)
    assert first_loss(ours) == pytest.approx(float(own), abs=1e-6)
    with pytest.raises(ValueError, match=r"loss of the labels to be the student's own"):
        trainer(tmp_path, objective=1.0 * HardLabels(), **options)


def test_one_logit_is_no_class(tmp_path: Path) -> None:
    """Integers are classes: as numbers, a yes or no would be learned by squared differences."""
    with pytest.raises(ValueError, match=r"two logits or more of the student \(Recurrent\)"):
        trainer(tmp_path, model=Recurrent(classes=1), teacher_model=Recurrent(classes=1))
    rows = [{**row, "labels": float(row["labels"])} for row in data()]
    ours = trainer(
        tmp_path,
        model=Recurrent(classes=1),
        teacher_model=Recurrent(classes=1),
        train_dataset=rows,
        eval_dataset=rows,
    )
    assert first_loss(ours) > 0


def test_perturbed_images_of_a_module(tmp_path: Path) -> None:
    """What is perturbed is found by the name of the input, which says it as well as a class."""
    ours = trainer(
        tmp_path,
        PICTURES,
        model=Convolutional(),
        teacher_model=Convolutional(channels=6),
        objective=OnPerturbed(HardLabels(), Gaussian(0.1)) + Jacobian(),
    )
    assert math.isfinite(first_loss(ours))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")
def test_checkpointing_of_a_module_is_refused(tmp_path: Path) -> None:
    """`Trainer` would end in an AttributeError when training starts."""
    with pytest.raises(ValueError, match=r"Recurrent has no method activation_checkpointing_e"):
        trainer(tmp_path, model=Recurrent(), gradient_checkpointing=True)


def test_objectives_on_modules(tmp_path: Path) -> None:
    """The refusal names the objective's own class with paths, and that works."""
    options: dict[str, Any] = {"model": Convolutional(), "teacher_model": Convolutional(channels=6)}
    with pytest.raises(ValueError, match=r"RKD\('<module of the teacher>:<module of the student>'"):
        trainer(tmp_path, PICTURES, objective=1.0 * RKD(), **options)
    ours = trainer(tmp_path, PICTURES, objective=1.0 * RKD("features:features"), **options)
    assert first_loss(ours) > 0
    with pytest.raises(ValueError, match=r"'early_exits'.*Choose another objective"):
        trainer(tmp_path, PICTURES, objective=1.0 * EarlyExits(), **options)


class Telling(Convolutional):
    """Gives its hidden states without being asked."""

    def forward(self, pixel_values: torch.Tensor) -> dict[str, Any]:
        states = self.features(pixel_values)
        logits = self.classifier(states.mean((-1, -2)))
        return {"logits": logits, "hidden_states": (pixel_values, states)}


def test_states_that_are_always_given(tmp_path: Path) -> None:
    """A module that returns its states need not be asked for them, and can be compared by them."""
    register_task(Telling, "image_classification")
    student, teacher = Telling(), Telling()
    ours = trainer(
        tmp_path,
        PICTURES,
        model=student,
        teacher_model=teacher,
        objective=1.0 * HiddenStates("1:1"),
        train_sampling_strategy="sequential",
    )
    pictures = collate(data(PICTURES)[:4])["pixel_values"]
    one, other = (m.eval()(pictures)["hidden_states"][1].double() for m in (student, teacher))
    assert first_loss(ours) == pytest.approx(((one - other) ** 2).mean().item(), rel=1e-5)


class Listener(nn.Module):
    """Spells sounds: a row of letters for each frame, or for each second one."""

    def __init__(self, step: int = 1):
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True)
        self.letters = nn.Linear(8, 6)
        self.step = step

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.letters(self.lstm(features)[0])
        return logits[:, :: self.step]


def test_frames_of_a_module(tmp_path: Path) -> None:
    """The column of a module's sounds has any name; how it shortens them it cannot say, and labels
    would fall on other frames."""
    register_task(Listener, "ctc")
    generator = torch.Generator().manual_seed(2)
    rows = [
        {"features": torch.randn(12, 4, generator=generator), "labels": torch.tensor([1, 2, 3])}
        for _ in range(8)
    ]
    options: dict[str, Any] = {"train_dataset": rows, "eval_dataset": rows}
    student = Listener()
    ours = trainer(
        tmp_path,
        model=student,
        teacher_model=Listener(),
        objective=1.0 * HardLabels(),
        train_sampling_strategy="sequential",
        **options,
    )
    batch = collate(rows[:4])
    logs = student(batch["features"]).detach().double().log_softmax(-1).transpose(0, 1)
    lengths = torch.full((4,), 12), torch.full((4,), 3)
    expected = F.ctc_loss(logs, batch["labels"], *lengths, reduction="sum") / 12
    assert first_loss(ours) == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(
        ValueError, match=r"items \(4, 12\) .*Listener.*got \(4, 6, 6\).*_get_feat_ex"
    ):
        trainer(tmp_path, model=Listener(2), teacher_model=Listener(2), **options)

    class Telling(Listener):
        def _get_feat_extract_output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
            return (lengths + 1) // 2

    register_task(Telling, "ctc")
    assert first_loss(trainer(tmp_path, model=Telling(2), teacher_model=Telling(2), **options)) > 0


class Reader(nn.Module):
    """Marks answers in a text, with a tuple of two."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(40, 8)
        self.ends = nn.Linear(8, 2)

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.ends(self.embeddings(input_ids)).unbind(-1)


def test_a_tuple_of_several_logits(tmp_path: Path) -> None:
    """The entries of a tuple have the order of the task's fields: start and end."""
    register_task(Reader, "question_answering")
    rows = data("question_answering")
    student = Reader()
    ours = trainer(
        tmp_path,
        "question_answering",
        model=student,
        objective=1.0 * HardLabels(),
        train_sampling_strategy="sequential",
    )
    batch = collate(rows[:4])
    start, end = (x.detach().double() for x in student(batch["input_ids"]))
    expected = F.cross_entropy(start, batch["start_positions"])
    expected = (expected + F.cross_entropy(end, batch["end_positions"])) / 2
    assert first_loss(ours) == pytest.approx(float(expected), rel=1e-5)
