"""What scripts do to `compute_loss`: leave out `super()`, drop the counts, add to the loss."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import launch
from tiny_models import CASES, collate
from tiny_trainers import Recorder, accuracy, config, data, models, same, trainer, weights
from torch import nn
from transformers import Trainer

from hf_distill import (
    DistillationTrainer,
    ForwardKL,
    HardLabels,
    OnlineDistillationTrainer,
    OnPolicyConfig,
    OnPolicyDistillationTrainer,
    Seq2SeqDistillationConfig,
    Seq2SeqDistillationTrainer,
)

WEIGHTS = (1.0, 2.0, 4.0)
OWN = r"compute_loss of Weighted\w* did not call super\(\): the objective .* and the teacher are"


class Weighted:
    """The class weights of many a script: no `super()`."""

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss_fct = nn.CrossEntropyLoss(weight=torch.tensor(WEIGHTS))
        loss = loss_fct(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss


class WeightedStock(Weighted, Trainer):
    loss_is_scaled_for_ga = False  # as transformers asks of such a subclass


class WeightedTrainer(Weighted, DistillationTrainer):
    """`Trainer` -> `DistillationTrainer`."""


def stock(folder: Path, cls: type[Trainer] = WeightedStock, **options: Any) -> tuple[Any, Any]:
    student, _ = models()
    record = Recorder()
    args = config(folder, **options)
    rows: Any = data()
    made = cls(
        student,
        args,
        collate,
        rows,
        rows,
        compute_metrics=accuracy,
        callbacks=[record],
    )
    return made, record


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_loss_of_its_own_is_said_and_trains_as_in_transformers(
    tmp_path: Path, accumulation: int
) -> None:
    """Without a word the commonest subclass trains without its teacher, and four times as fast."""
    options: dict[str, Any] = {
        "per_device_train_batch_size": 8 // accumulation,
        "gradient_accumulation_steps": accumulation,
    }
    theirs, their_record = stock(tmp_path, **options)
    theirs.train()
    record = Recorder()
    ours = trainer(
        tmp_path, cls=WeightedTrainer, callbacks=[record], compute_metrics=accuracy, **options
    )
    with pytest.warns(UserWarning, match=OWN + r".*HardLabels\(class_weights"):
        ours.train()
    assert same(weights(ours.model), weights(theirs.model))
    for step, their_step in zip(record.steps, their_record.steps, strict=True):
        assert step["loss"] == their_step["loss"]
        assert step["grad_norm"] == their_step["grad_norm"]
        assert "hard_labels" not in step, "no component is invented"


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("eval_teacher", [False, True])
def test_evaluation_of_a_loss_of_its_own(tmp_path: Path, trained: bool, eval_teacher: bool) -> None:
    """It ended with `no attribute '_step_loss'`, maybe hours later."""
    theirs, _ = stock(tmp_path)
    ours = trainer(
        tmp_path, cls=WeightedTrainer, compute_metrics=accuracy, eval_teacher=eval_teacher
    )
    if trained:
        theirs.train()
        with pytest.warns(UserWarning, match=OWN):
            ours.train()
    rows = data()
    expected, found = theirs.evaluate(), ours.evaluate()
    assert found["eval_loss"] == expected["eval_loss"]
    assert found["eval_accuracy"] == expected["eval_accuracy"]
    added = found.keys() - expected.keys()
    both = {"eval_teacher_accuracy", "eval_retention_accuracy"} if eval_teacher else set()
    assert added - {"eval_model_preparation_time"} <= both
    assert both <= added
    if eval_teacher:
        teacher = Trainer(models()[1], config(tmp_path), collate, compute_metrics=accuracy)
        expected_of_teacher = teacher.evaluate(rows)["eval_accuracy"]
        assert found["eval_teacher_accuracy"] == pytest.approx(expected_of_teacher)
    unlabelled = [{"input_ids": row["input_ids"]} for row in rows]
    for examples in (rows, unlabelled):
        one, other = ours.predict(examples), theirs.predict(examples)
        np.testing.assert_array_equal(one.predictions, other.predictions)
    assert ours.evaluate()["eval_loss"] == expected["eval_loss"], "after unlabelled data too"


def test_the_remedy_of_the_message(tmp_path: Path) -> None:
    """`HardLabels(class_weights=…)` has no warning, and the gradient of the weighted loss: both
    divide by another number, so that they are compared by direction."""
    directions = []
    for objective, cls in (
        (1.0 * HardLabels(class_weights=WEIGHTS), DistillationTrainer),
        (None, WeightedTrainer),
    ):
        ours = trainer(tmp_path, cls=cls, objective=objective, max_steps=1, optim="sgd")
        before = weights(ours.model)
        with warnings.catch_warnings():
            if cls is WeightedTrainer:
                warnings.simplefilter("ignore")
            ours.train()
        moved = [(after - before[name]).flatten() for name, after in weights(ours.model).items()]
        directions.append(torch.cat([m.double() for m in moved]))
    one, other = directions
    assert float(torch.cosine_similarity(one, other, dim=0)) == pytest.approx(1, abs=1e-4)


# ---- the counts ----------------------------------------------------------------------------------


class Drops(DistillationTrainer):
    """Does not hand the counts on."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        return (loss, outputs) if return_outputs else loss


class Doubles(DistillationTrainer):
    """Multiplies, and does not hand the counts on."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        return (2 * loss, outputs) if return_outputs else 2 * loss


class AddsMean(DistillationTrainer):
    """Hands the counts on, and adds a mean over the batch."""

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = loss + outputs.logits.square().mean()
        return (loss, outputs) if return_outputs else loss


class DropsAndAddsMean(Drops):
    """Does both."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        loss = loss + outputs.logits.square().mean()
        return (loss, outputs) if return_outputs else loss


class AddsSum(DistillationTrainer):
    """Adds a sum over the batch, divided by the counts that it is given."""

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        squares = outputs.logits.square().mean(-1)
        count = len(squares) if num_items_in_batch is None else num_items_in_batch["samples"]
        loss = loss + squares.sum() / count
        return (loss, outputs) if return_outputs else loss


class Divided:
    """A sum of its own over the batch, divided by what transformers counts; no `super()`."""

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        labels = inputs["labels"]
        outputs = model(**{k: v for k, v in inputs.items() if k != "labels"})
        logits = outputs.logits.flatten(0, -2)
        loss = nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum")
        loss = loss / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


class DividedTrainer(Divided, DistillationTrainer):
    """In the place of `DividedStock`."""


class DividedStock(Divided, Trainer):
    loss_is_scaled_for_ga = True  # as transformers asks of such a subclass


@pytest.mark.parametrize("head", ["sequence_classification", "token_classification"])
def test_a_loss_of_its_own_divided_by_the_counts(tmp_path: Path, head: str) -> None:
    """There are counts of several units; a script divides by the number of labels."""
    options: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    found = []
    for cls in (DividedStock, DividedTrainer):
        record = Recorder()
        rows: Any = data(head)
        args = config(tmp_path, **options, alpha=0.0, per_device_eval_batch_size=4)
        made = cls(models(head)[0], args, collate, rows, rows, callbacks=[record])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made.train()
        steps = [(step["loss"], step["grad_norm"]) for step in record.steps]
        found.append((steps, made.evaluate()["eval_loss"]))
    (expected, expected_loss), (ours, loss) = found
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    assert loss == pytest.approx(expected_loss, rel=1e-5)


class Scalar(DistillationTrainer):
    """Returns a number whatever it is asked for."""

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        return super().compute_loss(model, inputs, False, num_items_in_batch)


class AddsItself(DistillationTrainer):
    """Says itself that its loss is a sum over the window, and hands the counts on."""

    loss_is_scaled_for_ga = True

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        return super().compute_loss(model, inputs, return_outputs, **kwargs)


class SaysSo(DropsAndAddsMean):
    """Says of its loss what transformers asks a subclass to say."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.loss_is_scaled_for_ga = False


class Simple(DistillationTrainer):
    """A step of its own: the counts are handed on, and nothing is divided."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        model.train()
        inputs = self._prepare_inputs(inputs)
        loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        self.accelerator.backward(loss)
        return loss.detach()


class Older(DistillationTrainer):
    """As transformers had it before it counted."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs))
        loss = loss / self.args.gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()


class Copied(DistillationTrainer):
    """As transformers has it today."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        if not self.loss_is_scaled_for_ga:
            loss = loss / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()


class Twice(DistillationTrainer):
    """Adds a second gradient to that of the step, as adversarial training by hand does."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        loss = super().training_step(model, inputs, num_items_in_batch)
        again = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        self.accelerator.backward(again)
        return loss + again.detach()


def steps(folder: Path, cls: Any, batch: int, accumulation: int, **options: Any) -> list[Any]:
    """What the steps log: in float64, so that the split into batches is all that differs."""
    record = Recorder()
    ours = trainer(
        folder,
        cls=cls,
        callbacks=[record],
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        train_sampling_strategy="sequential",
        max_steps=3,
        **options,
    )
    ours.train()
    return [{k: v for k, v in step.items() if k != "learning_rate"} for step in record.steps]


@pytest.mark.parametrize("accumulation", [4, 3])
@pytest.mark.parametrize(
    "cls",
    [
        *(DistillationTrainer, Drops, Doubles, AddsMean, DropsAndAddsMean, AddsSum, AddsItself),
        *(SaysSo, Simple, Older, Copied, Twice),
    ],
)
def test_accumulation_changes_nothing_for_a_subclass(
    tmp_path: Path, cls: Any, accumulation: int
) -> None:
    """A dropped count made the gradient as many times too large as there are micro-batches."""
    rows = data()[: 2 * accumulation]
    whole = steps(tmp_path, cls, 2 * accumulation, 1, train_dataset=rows)
    split = steps(tmp_path, cls, 2, accumulation, train_dataset=rows)
    for one, other in zip(whole, split, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert other[key] == pytest.approx(value, rel=1e-5), key


@pytest.mark.parametrize("cls", [Drops, Scalar])
def test_a_subclass_that_changes_nothing(tmp_path: Path, cls: Any) -> None:
    """Steps and evaluation are those of the trainer itself, ragged windows included."""
    found = []
    for kind in (DistillationTrainer, cls):
        record = Recorder()
        ours = trainer(
            tmp_path,
            "token_classification",
            cls=kind,
            callbacks=[record],
            compute_metrics=accuracy,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=4,
            num_train_epochs=1,
            max_steps=-1,
            train_dataset=data("token_classification")[:6],  # the last window has two
        )
        ours.train()
        figures = {k: v for k, v in ours.evaluate().items() if "per_second" not in k}
        found.append([record.steps, {k: v for k, v in figures.items() if "time" not in k}])
    (one_steps, one), (other_steps, other) = found
    assert len(one_steps) == 2
    for step, same_step in zip(one_steps, other_steps, strict=True):
        assert step == pytest.approx(same_step)
    assert one == pytest.approx(other)


def test_a_signature_without_the_counts_is_refused(tmp_path: Path) -> None:
    """transformers gives them by keyword: it would end with a TypeError at the first step."""

    class Old(DistillationTrainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
            return super().compute_loss(model, inputs, return_outputs)

    with pytest.raises(ValueError, match=r"compute_loss of Old has no argument num_items_in_batch"):
        trainer(tmp_path, cls=Old)


# ---- the other trainers --------------------------------------------------------------------------


class WeightedJoint(Weighted, OnlineDistillationTrainer):
    """The same in a joint training."""


class Tokens:
    """A loss of its own on text."""

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        labels = inputs["labels"]
        outputs = model(**inputs)
        logits = outputs.logits[:, :-1].flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, labels[:, 1:].flatten())
        return (loss, outputs) if return_outputs else loss


class WeightedTokens(Tokens, OnPolicyDistillationTrainer):
    """The same where the student writes a share of the texts."""


class TokensStock(Tokens, Trainer):
    loss_is_scaled_for_ga = False


QUIET = (
    *("per_device_train_batch_size", "per_device_eval_batch_size", "max_steps", "learning_rate"),
    *("logging_steps", "save_strategy", "use_cpu", "disable_tqdm", "dataloader_pin_memory"),
)


def test_a_loss_of_its_own_in_a_joint_training(tmp_path: Path) -> None:
    student, peer = models()
    theirs, _ = stock(tmp_path)
    theirs.train()
    before = weights(peer)
    ours = WeightedJoint(
        student,
        config(tmp_path),
        collate,
        data(),
        data(),
        peers=peer,
        compute_metrics=accuracy,
    )
    with pytest.warns(UserWarning, match=OWN):
        ours.train()
    assert same(weights(ours.model), weights(theirs.model))
    assert same(weights(peer), before), "nothing teaches the peer, and it does not decay"
    expected, found = theirs.evaluate(), ours.evaluate()
    for key in ("eval_loss", "eval_accuracy"):
        assert found[key] == expected[key]
    assert not [key for key in found if "hard_labels" in key or "kl" in key]


def test_a_loss_of_its_own_on_policy(tmp_path: Path) -> None:
    student, teacher = models("causal_lm")
    rows: Any = data("causal_lm")
    plain = config(tmp_path)
    quiet: Any = {name: getattr(plain, name) for name in QUIET}
    args = OnPolicyConfig(str(tmp_path), lmbda=0.0, report_to="none", **quiet)
    ours = WeightedTokens(student, args, collate, rows, rows, teacher_model=teacher)
    with pytest.warns(UserWarning, match="did not call super"):
        ours.train()
    theirs = TokensStock(models("causal_lm")[0], plain, collate, rows, rows)
    theirs.train()
    assert same(weights(ours.model), weights(theirs.model))
    assert ours.evaluate()["eval_loss"] == theirs.evaluate()["eval_loss"]


class DropsJoint(Drops, OnlineDistillationTrainer):
    """Does not hand the counts on, in a joint training."""


def test_dropped_counts_in_a_joint_training(tmp_path: Path) -> None:
    """The student's and the peer's gradients are those without accumulation."""
    found = []
    for batch, accumulation in ((8, 1), (2, 4)):
        student, peer = models()
        record = Recorder()
        args = config(
            tmp_path,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential",
        )
        rows: Any = data()
        DropsJoint(student, args, collate, rows, peers=peer, callbacks=[record]).train()
        found.append(record.steps)
    for one, other in zip(*found, strict=True):
        assert other == pytest.approx(one, rel=1e-5)


class TokensSeq2Seq(Tokens, Seq2SeqDistillationTrainer):
    """A loss of its own, and metrics on generated text."""


@pytest.mark.parametrize("eval_teacher", [True, False])
def test_a_loss_of_its_own_and_generated_text(tmp_path: Path, eval_teacher: bool) -> None:
    case = CASES["seq2seq_lm"]
    student, teacher = case.models(torch.float32)
    rows = case.data(4, torch.float32)
    plain = config(tmp_path)
    quiet: Any = {name: getattr(plain, name) for name in QUIET}
    args = Seq2SeqDistillationConfig(
        str(tmp_path),
        predict_with_generate=True,
        generation_max_length=5,
        eval_teacher=eval_teacher,
        report_to="none",
        **quiet,
    )
    ours = TokensSeq2Seq(
        student,
        args,
        collate,
        rows,
        rows,
        teacher_model=teacher,
        compute_metrics=lambda p: {"rouge": 0.5},
    )
    found = ours.evaluate()
    losses = []
    for batch in (rows[:3], rows[3:]):
        inputs = collate(batch)
        with torch.no_grad():
            outputs = student.eval()(**inputs)
            logits = outputs.logits[:, :-1].flatten(0, 1)
            own = nn.functional.cross_entropy(logits, inputs["labels"][:, 1:].flatten())
        losses += [float(own)] * 3  # transformers repeats it, whatever the size of the batch
    assert found["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert ("eval_teacher_rouge" in found) == eval_teacher
    assert not [key for key in found if "hard_labels" in key or "kl" in key]


def several(folder: str, cls: str) -> None:
    """Train and evaluate on this process and write what came out."""
    record = Recorder()
    options: Any = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    args = config(Path(folder), alpha=0.0, **options)
    rows: Any = data()
    made = globals()[cls](
        models()[0], args, collate, rows, rows, compute_metrics=accuracy, callbacks=[record]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.train()
    found = made.evaluate()
    steps = [[step["loss"], step["grad_norm"]] for step in record.steps]
    if args.process_index == 0:
        figures = [found["eval_loss"], found["eval_accuracy"]]
        Path(folder, f"{cls}.json").write_text(json.dumps([*steps, figures]))


@pytest.mark.slow
@pytest.mark.parametrize("own", ["Weighted", "Divided"])
def test_losses_of_their_own_in_two_processes(tmp_path: Path, own: str) -> None:
    """Eight examples in evaluation batches of 2 x 3: the last one has to be filled."""
    for cls in (f"{own}Stock", f"{own}Trainer"):
        launch(several, tmp_path, cls, processes=2)
    expected, found = (
        json.loads((tmp_path / f"{own}{kind}.json").read_text()) for kind in ("Stock", "Trainer")
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# ---- what it returns besides the loss ------------------------------------------------------------


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict"])
def test_outputs_of_another_form(tmp_path: Path, form: str) -> None:
    """As a script of torch's own gives them."""

    class Loose(WeightedTrainer):
        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            loss, outputs = super().compute_loss(model, inputs, True)
            logits = outputs.logits
            forms = {"tensor": logits, "tuple": (loss, logits), "dict": {"logits": logits}}
            return (loss, forms[form]) if return_outputs else loss

    theirs, _ = stock(tmp_path)
    ours = trainer(tmp_path, cls=Loose, compute_metrics=accuracy)
    found, expected = ours.predict(data()), theirs.predict(data())
    np.testing.assert_array_equal(found.predictions, expected.predictions)
    metrics: Any = found.metrics
    assert metrics["test_loss"] == expected.metrics["test_loss"]


def test_labels_alone_and_no_teacher(tmp_path: Path) -> None:
    """The warning speaks of a teacher only where there is one."""
    student, _ = models()
    ours = WeightedTrainer(student, config(tmp_path, alpha=0.0), collate, data())
    with pytest.warns(UserWarning, match="did not call super") as said:
        ours.train()
    (message,) = {str(w.message) for w in said if "super" in str(w.message)}
    assert "teacher" not in message
    assert str(1.0 * HardLabels()) in message


def test_a_subclass_that_calls_super_is_not_spoken_to(tmp_path: Path) -> None:
    """Warnings are errors here."""
    for cls in (Drops, AddsMean):
        trainer(tmp_path, cls=cls, objective=1.0 * ForwardKL(), eval_strategy="steps").train()


class Squares(DistillationTrainer):
    """Adds the mean of the squared logits to the objective."""

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = loss + outputs.logits.square().sum(-1).mean()
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("size", [3, 8])
def test_the_evaluation_loss_has_what_a_subclass_adds(tmp_path: Path, size: int) -> None:
    """Counted twice, or as a mean of batches of other sizes, it would choose another checkpoint."""
    student, teacher = models()
    args = config(tmp_path, alpha=0.3, temperature=1.0, per_device_eval_batch_size=size)
    rows: Any = data()
    options: dict[str, Any] = {"data_collator": collate, "eval_dataset": rows}
    ours, theirs = (Trainer(model, args, **options).predict(rows) for model in (student, teacher))
    s, t = (
        torch.from_numpy(found.predictions).double().log_softmax(-1) for found in (ours, theirs)
    )
    labels = torch.from_numpy(ours.label_ids).long()
    hard = nn.functional.nll_loss(s, labels)
    divergence = (t.exp() * (t - s)).sum(-1).mean()
    added = np.square(ours.predictions.astype(np.float64)).sum(-1).mean()
    expected = 0.7 * float(hard) + 0.3 * float(divergence) + added
    found = Squares(student, args, teacher_model=teacher, **options).evaluate()
    assert found["eval_loss"] == pytest.approx(expected, rel=1e-5)
