"""Models in wrappers and compiled ones: what they hold teaches and learns as it is."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import collate
from tiny_trainers import Recorder, config, data, models, same, trainer, weights
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from hf_distill import (
    AttentionMaps,
    DistillationTrainer,
    EMATeacher,
    ForwardKL,
    HardLabels,
    HiddenStates,
    ModelTeacher,
    register_task,
)
from hf_distill.models.tasks import CUSTOM_TASKS

GOAL = ForwardKL(2.0) + HiddenStates() + 0.5 * HardLabels()


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_distill.models.tasks.CUSTOM_TASKS", dict(CUSTOM_TASKS))


class Wrapper(nn.Module):
    """Passes everything on."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, **inputs: Any) -> Any:
        return self.inner(**inputs)


class Sharper(nn.Module):
    """Passes two inputs on, and gives logits of its own."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = 2 * self.inner(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


class Pooled(nn.Module):
    """A head of its own on a model of transformers."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body
        self.classifier = nn.Linear(24, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.body(input_ids, attention_mask).last_hidden_state
        logits: Tensor = self.classifier(states[:, 0])
        return logits


class Parallel(nn.parallel.DistributedDataParallel):
    """DDP without its processes."""

    def __init__(self, module: nn.Module):
        nn.Module.__init__(self)
        self.module = module


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


WRAPPERS = {
    "compiled": compiled,
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": Parallel,
    "own": Wrapper,
    "own, compiled": lambda model: compiled(Wrapper(model)),
    "compiled in DataParallel": lambda model: nn.DataParallel(compiled(model)),
}
SLOW = [
    pytest.param(name, marks=[pytest.mark.slow] if "compiled in" in name else [])
    for name in WRAPPERS
]


def first_steps(ours: Any) -> list[float]:
    recorder = Recorder()
    ours.add_callback(recorder)
    ours.train()
    return [step["loss"] for step in recorder.steps]


@pytest.mark.filterwarnings("ignore::UserWarning")  # DataParallel without devices
@pytest.mark.parametrize("name", SLOW)
def test_a_wrapped_teacher_says_what_it_holds(tmp_path: Path, name: str) -> None:
    """Its class is not the model's, its forward names no input, and its config is not there."""
    teacher = models()[1]
    objective = GOAL if name != "compiled" else 1.0 * ForwardKL()
    objective = objective + AttentionMaps(heads="mean") if "own" in name else objective
    plain = trainer(tmp_path, teacher_model=copy.deepcopy(teacher), objective=objective)
    wrapped = trainer(tmp_path, teacher_model=WRAPPERS[name](teacher), objective=objective)
    assert first_steps(wrapped) == pytest.approx(first_steps(plain), rel=1e-6)
    facts = wrapped.teacher.describe()
    assert facts["architecture"] == "BertForSequenceClassification"
    assert facts["num_labels"] == 3


@pytest.mark.slow
def test_modules_of_a_compiled_teacher(tmp_path: Path) -> None:
    """Compiled code does not see a hook that comes later: the layer's outputs would be missing."""
    teacher = compiled(models()[1])
    batch = collate(data()[:4])
    batch.pop("labels")
    teacher(**batch)  # compiled before there is a hook
    goal = 1.0 * HiddenStates("bert.encoder.layer.3:bert.encoder.layer.1")
    wrapped = trainer(tmp_path, teacher_model=teacher, objective=goal)
    plain = trainer(tmp_path, objective=goal)
    assert first_steps(wrapped) == pytest.approx(first_steps(plain), rel=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [each for each in SLOW if "own" not in str(each.values)])
def test_a_wrapped_student_is_saved_as_what_it_holds(tmp_path: Path, name: str) -> None:
    """Weights under the names of a wrapper load into nothing: the student would be lost."""
    calls: list[int] = []

    def counting(graph: Any, inputs: Any) -> Any:
        def run(*arguments: Any) -> Any:
            calls.append(1)
            return graph(*arguments)

        return run

    goal = 1.0 * ForwardKL()
    plain = trainer(tmp_path / "plain", objective=goal)
    inner = models()[0]
    wrapper = WRAPPERS[name](inner)
    if name == "compiled":
        wrapper = torch.compile(inner, backend=counting)
    wrapped = trainer(tmp_path / "out", model=wrapper, objective=goal)
    assert first_steps(wrapped) == pytest.approx(first_steps(plain), rel=1e-6)
    assert calls or name != "compiled"  # its compiled form runs
    wrapped.save_model()
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert same(weights(again), weights(inner))
    assert wrapped.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_wrapper_that_changes_the_logits(tmp_path: Path, role: str) -> None:
    """Called inside of it, a model would say something else than what its owner gave."""
    student, teacher = models()
    batch = collate(data()[:4])
    batch.pop("labels")
    factors = (2, 1) if role == "student" else (1, 2)
    both = zip(factors, (student, teacher), strict=True)
    s, t = (f * m.eval()(**batch).logits.double() for f, m in both)
    kl = (t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum(-1).mean().item()
    own = Sharper(student if role == "student" else teacher)
    given = {"model": own} if role == "student" else {"teacher_model": own, "model": student}
    ours = trainer(
        tmp_path, objective=1.0 * ForwardKL(1.0), train_sampling_strategy="sequential", **given
    )
    assert first_steps(ours)[0] == pytest.approx(kl, rel=1e-5)
    with pytest.raises(ValueError, match=rf"this {role} does not provide"):
        trainer(tmp_path, objective=1.0 * HiddenStates(), **given)


def test_a_wrapper_with_a_head_of_its_own(tmp_path: Path) -> None:
    """It is no BertModel: read so, it has no logits; and as a student it has to be named."""
    teacher = Pooled(models()[1].bert)
    teacher.classifier.weight.data.mul_(5)
    student = models()[0]
    ours = trainer(
        tmp_path,
        model=student,
        teacher_model=teacher,
        objective=1.0 * ForwardKL(1.0),
        train_sampling_strategy="sequential",
    )
    batch = collate(data()[:4])
    batch.pop("labels")
    with torch.no_grad():
        s, t = student.eval()(**batch).logits.double(), teacher.eval()(**batch).double()
    kl = (t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum(-1).mean().item()
    assert first_steps(ours)[0] == pytest.approx(kl, rel=1e-5)
    message = r"got Pooled.*register_task\('Pooled', .*only passes its inputs on to `\.body`"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, model=Pooled(models()[1].bert))
    register_task(Pooled, "sequence_classification")
    assert first_steps(trainer(tmp_path, model=Pooled(models()[1].bert)))[0] > 0


def test_labels_of_a_wrapped_teacher_are_matched_by_name(tmp_path: Path) -> None:
    """Without the config inside, a teacher with its labels in another order teaches wrong ones."""
    student, teacher = models()
    names = ["red", "green", "blue"]
    student.config.id2label = dict(enumerate(names))
    teacher.config.id2label = dict(enumerate(reversed(names)))
    plain = trainer(tmp_path, model=copy.deepcopy(student), teacher_model=copy.deepcopy(teacher))
    wrapped = trainer(tmp_path, model=student, teacher_model=Wrapper(teacher))
    assert first_steps(wrapped) == pytest.approx(first_steps(plain), rel=1e-6)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft
def test_quantised_and_adapted_teachers(tmp_path: Path) -> None:
    """What works must go on working: int8 layers have no parameters, adapters a model inside."""
    student, teacher = models()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = torch.ao.quantization.quantize_dynamic(
            copy.deepcopy(teacher).eval(), {nn.Linear}, dtype=torch.qint8
        )
    adapted = get_peft_model(
        copy.deepcopy(teacher), LoraConfig(target_modules=["query"], task_type="SEQ_CLS")
    )
    batch = collate(data()[:4])
    batch.pop("labels")
    for each in (small, adapted):
        with torch.no_grad():
            s, t = (m.eval()(**batch).logits.double() for m in (student, each))
        kl = (t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum(-1).mean().item()
        ours = trainer(
            tmp_path,
            model=copy.deepcopy(student),
            teacher_model=each,
            objective=1.0 * ForwardKL(1.0),
            train_sampling_strategy="sequential",
        )
        assert first_steps(ours)[0] == pytest.approx(kl, rel=1e-4)


@pytest.mark.slow
def test_a_new_compiled_student_for_each_run(tmp_path: Path) -> None:
    """`model_init` may give a compiled model as well."""
    ours = DistillationTrainer(
        None,
        config(tmp_path),
        teacher_model=models()[1],
        model_init=lambda: compiled(models()[0]),
        train_dataset=data(),
        data_collator=collate,
    )
    plain = trainer(tmp_path)
    assert first_steps(ours) == pytest.approx(first_steps(plain), rel=1e-6)


def test_other_teachers_of_wrapped_models(tmp_path: Path) -> None:
    """A teacher that holds a model opens it as the trainer does."""
    past = EMATeacher(compiled(models()[0]))
    assert past.describe()["architecture"] == "BertForSequenceClassification"
    named = ModelTeacher(Sharper(models()[1]), task="sequence_classification")
    assert named.describe()["num_labels"] == 3
    with pytest.raises(ValueError, match=r"Expected one of the tasks .*got 'classes'"):
        ModelTeacher(models()[1], task="classes")
