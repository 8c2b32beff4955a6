"""Teachers that learn with the student: each its own loss, no leak, and nothing lost on disk."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import launch
from safetensors.torch import load_file, save_file
from tiny_models import CASES, ROWS, collate, quiet_arguments
from tiny_trainers import Recorder, accuracy, config, log_softmax, same, weights
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerCallback

from hf_distill import (
    HardLabels,
    HiddenStates,
    LossShare,
    ModelTeacher,
    Mutual,
    WeightDecay,
    WeightedSum,
)
from hf_distill.objectives.base.objective import BALANCE
from hf_distill.training.checkpoint_files import LIST
from hf_distill.training.checkpoints import EXTRAS
from hf_distill.training.joint import OnlineDistillationTrainer

pytestmark = pytest.mark.xdist_group("joint")  # fixtures that are expensive are made once

HEAD = "sequence_classification"
MUTUAL = HardLabels() + Mutual()


def trio(head: str = HEAD, dtype: torch.dtype = torch.float64) -> tuple[Any, Any, Any]:
    """A student and two peers of other sizes and other weights."""
    student, teacher = CASES[head].models(dtype)
    third = copy.deepcopy(teacher)
    for parameter in third.parameters():
        parameter.data.mul_(0.7)
    return student, teacher, third


def joint(folder: Path, head: str = HEAD, models: Any = None, **options: Any) -> Any:
    """A `OnlineDistillationTrainer` in float64 on the eight examples of a head, in one step."""
    student, *peers = trio(head) if models is None else models
    names: tuple[str, ...] = (
        "peers",
        "objective",
        "peer_objective",
        "peer_learning_rate",
        "targets",
    )
    names += ("callbacks", "compute_metrics", "optimizers", "eval_dataset", "train_dataset")
    given = {key: options.pop(key) for key in names if key in options}
    given.setdefault("peers", peers)
    given.setdefault("train_dataset", CASES[head].data())
    given.setdefault("eval_dataset", CASES[head].data(7))
    settings: dict[str, Any] = {"per_device_train_batch_size": ROWS, "max_steps": 1}
    settings |= {"learning_rate": 0.0, "optim": "sgd", "max_grad_norm": 1e9, **options}
    return OnlineDistillationTrainer(student, quiet_arguments(folder, **settings), collate, **given)


class Gradients(TrainerCallback):
    """Keeps the gradients of all that is trained, by name."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **others: Any) -> None:
        named = model.named_parameters()
        self.found = {n: p.grad.detach().clone() for n, p in named if p.grad is not None}


# ---- who learns from whom --------------------------------------------------------------------


def labels_only(own: Tensor, others: list[Tensor], labels: Tensor) -> Tensor:
    return F.cross_entropy(own, labels)


def mutual(own: Tensor, others: list[Tensor], labels: Tensor) -> Tensor:
    """Equation 5 of arXiv 1706.00384 with the mean over the other models."""
    target = [F.softmax(x.detach(), -1) for x in others]
    kls = [F.kl_div(F.log_softmax(own, -1), p, reduction="batchmean") for p in target]
    return F.cross_entropy(own, labels) + sum(kls) / len(kls)


def together(own: Tensor, others: list[Tensor], labels: Tensor) -> Tensor:
    target = torch.stack([F.softmax(x.detach(), -1) for x in (own, *others)]).mean(0)
    kl = F.kl_div(F.log_softmax(own, -1), target, reduction="batchmean")
    return F.cross_entropy(own, labels) + kl


Loss = Callable[[Tensor, list[Tensor], Tensor], Tensor]
WAYS: dict[str, tuple[dict[str, Any], Loss, Loss]] = {
    "joint": ({"objective": MUTUAL}, mutual, labels_only),
    "mutual": ({"objective": MUTUAL, "peer_objective": MUTUAL}, mutual, mutual),
    "ensemble": (
        {"objective": MUTUAL, "peer_objective": MUTUAL, "targets": "ensemble"},
        together,
        together,
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_model_follows_its_own_loss_alone(tmp_path: Path, way: str) -> None:
    """A target that is not fixed lets each model pull its teacher down to itself."""
    options, *losses = WAYS[way]
    keep = Gradients()
    ours = joint(tmp_path, callbacks=[keep], **options)
    ours.train()
    models = trio()
    batch = collate(CASES[HEAD].data())
    labels = batch.pop("labels")
    said = [model.train()(**batch).logits for model in models]
    prefixes = ("", "distillation.peers.teacher.", "distillation.peers.teacher_2.")
    logged = ours.state.log_history[0]
    for index, (model, prefix) in enumerate(zip(models, prefixes, strict=True)):
        others = said[:index] + said[index + 1 :]
        loss = losses[min(index, 1)](said[index], others, labels)
        own = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        for (name, _), gradient in zip(model.named_parameters(), own, strict=True):
            torch.testing.assert_close(keep.found[prefix + name], gradient, rtol=1e-9, atol=1e-12)
        name = ("", "teacher_", "teacher_2_")[index]
        total = logged[f"{name}hard_labels"] + logged.get(f"{name}mutual", 0.0)
        assert total == pytest.approx(loss.item(), rel=1e-9)
    assert len(keep.found) == sum(len(list(m.parameters())) for m in models)


def test_a_peer_with_its_labels_in_another_order(tmp_path: Path) -> None:
    """Class 0 of one model would be taught as class 0 of another, whatever they are called."""
    found = []
    for order in ([0, 1, 2], [2, 0, 1]):
        models = trio()
        for model in models:
            model.config.id2label = {0: "no", 1: "maybe", 2: "yes"}
        names = [["no", "maybe", "yes"][i] for i in order]
        models[1].config.id2label = dict(enumerate(names))
        for parameter in models[1].classifier.parameters():
            parameter.data = parameter.data[order]
        keep = Gradients()
        options = {"objective": MUTUAL, "peer_objective": MUTUAL}
        ours = joint(tmp_path, models=models, callbacks=[keep], **options)
        ours.train()
        head = [n for n in keep.found if n.startswith("distillation.peers.teacher.classifier")]
        back = torch.argsort(torch.tensor(order))
        found.append({n: g[back] if n in head else g for n, g in keep.found.items()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("head", "kind"), [("multi_label", "sigmoid"), ("regression", "regression"), ("ctc", "ctc")]
)
def test_the_ensemble_of_other_heads(tmp_path: Path, head: str, kind: str) -> None:
    """The mean of the chances of independent labels is not that of one softmax."""
    keep = {"objective": 1.0 * Mutual(), "peer_objective": 1.0 * Mutual(), "targets": "ensemble"}
    ours = joint(tmp_path, head, **keep)
    ours.train()
    batch = collate(CASES[head].data())
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    models = [model.train() for model in trio(head)]
    z = np.stack([model(**inputs).logits.detach().numpy() for model in models])
    if kind == "regression":
        values = 0.5 * (z[0] - z.mean(0)) ** 2
    elif kind == "sigmoid":
        p = 1 / (1 + np.exp(-z))
        t = p.mean(0)
        values = t * np.log(t / p[0]) + (1 - t) * np.log((1 - t) / (1 - p[0]))
    else:
        logs = log_softmax(z)
        t = np.exp(logs).mean(0)
        student: Any = models[0]
        lengths = student._get_feat_extract_output_lengths(batch["attention_mask"].sum(-1))
        real = np.arange(z.shape[2]) < lengths.numpy()[:, None]
        values = (t * (np.log(t) - logs[0])).sum(-1)[real]
    expected = values.sum(-1).mean() if kind == "sigmoid" else values.mean()
    assert ours.state.log_history[0]["mutual"] == pytest.approx(float(expected), rel=1e-6)


# ---- the split changes nothing ---------------------------------------------------------------

EVERYTHING = HardLabels() + Mutual() + HiddenStates()


def measure(folder: str, batch: str, accumulation: str) -> None:
    """One step at a learning rate of 0, then a real one, and an evaluation; written down."""
    keep, record = Gradients(), Recorder()
    ours = joint(
        Path(folder),
        callbacks=[keep, record],
        objective=EVERYTHING,
        peer_objective=EVERYTHING,
        peer_learning_rate=0.02,
        compute_metrics=accuracy,
        per_device_train_batch_size=int(batch),
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=int(accumulation),
        label_smoothing_factor=0.1,
        learning_rate=0.05,
        max_steps=2,
        max_grad_norm=0.5,
        optim="adamw_torch",
    )
    ours.train()
    ignored = ("runtime", "per_second", "preparation_time", "flos", "epoch")
    figures = [
        {k: v for k, v in logs.items() if not k.endswith(ignored)}
        for logs in (*record.steps, ours.evaluate())
    ]
    name = f"{folder}/{ours.args.process_index}"
    kept = {f"after.{k}": v for k, v in weights(ours.model).items()}
    kept |= {f"after.{k}": v for k, v in weights(ours.projections).items()}
    save_file({**keep.found, **kept}, f"{name}.safetensors")
    Path(f"{name}.json").write_text(json.dumps(figures))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    measure(str(folder), "8", "1")
    return folder


@pytest.mark.parametrize("split", [(2, 4, 1), (4, 1, 2)], ids=str)
def test_the_split_changes_nothing(
    tmp_path: Path, whole: Path, split: tuple[int, int, int]
) -> None:
    """A peer outside DDP's sight drifts apart between the processes; a mean per micro-batch
    weighs its examples otherwise."""
    batch, accumulation, processes = split
    if processes == 1:
        measure(str(tmp_path), str(batch), str(accumulation))
    else:
        launch(measure, tmp_path, str(batch), str(accumulation), processes=processes)
        one, other = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
        assert same(one, other)
    expected, found = (json.loads((f / "0.json").read_text()) for f in (whole, tmp_path))
    assert {"teacher_2_mutual", "teacher_hidden_states", "hard_labels"} <= expected[0].keys()
    for one, two in zip(expected, found, strict=True):
        assert two == pytest.approx(one, rel=1e-6, abs=1e-9)
    tensors = load_file(tmp_path / "0.safetensors")
    for name, value in load_file(whole / "0.safetensors").items():
        bound = 1e-6 * max(value.norm().item(), 1e-3)
        assert (tensors[name] - value).norm().item() <= bound, name


# ---- evaluation ------------------------------------------------------------------------------


def right(model: nn.Module, rows: list[Any]) -> float:
    batch = collate(rows)
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    return float((logits.argmax(-1) == labels).double().mean())


def test_evaluation_measures_the_student_against_the_first_peer_of_now(tmp_path: Path) -> None:
    """In train mode a peer's figures would be those of its dropout."""
    models = trio()
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.5
    rows = CASES[HEAD].data(7)
    options: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "learning_rate": 0.1,
        "max_steps": 2,
    }
    options |= {"objective": MUTUAL, "peer_objective": MUTUAL, "compute_metrics": accuracy}
    ours = joint(tmp_path, models=models, **options)
    first = ours.evaluate()
    teacher = copy.deepcopy(models[1])
    assert first["eval_teacher_accuracy"] == pytest.approx(right(teacher, rows))
    ours.train()
    last = [log for log in ours.state.log_history if "eval_loss" in log][-1]
    assert last["eval_teacher_accuracy"] == pytest.approx(right(models[1], rows))
    assert last["eval_accuracy"] == pytest.approx(right(models[0], rows))
    batch = collate(rows)
    labels = batch.pop("labels").numpy()
    said = [log_softmax(model.eval()(**batch).logits.detach()) for model in models]
    kls = [(np.exp(t) * (t - said[0])).sum(-1).mean() for t in said[1:]]
    assert last["eval_forward_kl_divergence"] == pytest.approx(kls[0], rel=1e-6)
    assert last["eval_mutual"] == pytest.approx(np.mean(kls), rel=1e-6)
    hard = -said[0][np.arange(7), labels].mean()
    assert last["eval_loss"] == pytest.approx(hard + np.mean(kls), rel=1e-6)
    assert not any(key.startswith("eval_teacher_hard") for key in last)
    assert ours.evaluate()["eval_loss"] == pytest.approx(last["eval_loss"], rel=1e-9)


# ---- checkpoints -----------------------------------------------------------------------------


def moving(folder: Path, seed: int = 0, **options: Any) -> Any:
    """Two epochs of three steps with dropout, everything in it that has a state."""
    models = []
    for index, sizes in enumerate(({}, {"hidden_size": 24})):
        settings = {**CASES[HEAD].config().to_diff_dict(), **sizes}
        settings |= {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
        torch.manual_seed(10 * seed + index)
        models.append(CASES[HEAD].model(type(CASES[HEAD].config())(**settings)).double())
    defaults: dict[str, Any] = {
        "objective": EVERYTHING,
        "peer_objective": EVERYTHING + WeightDecay(0.01, target="init"),
        "peer_learning_rate": 0.03,
        "train_dataset": CASES[HEAD].data(6),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "max_steps": -1,
        "learning_rate": 0.01,
        "optim": "adamw_torch",
        "max_grad_norm": 1.0,
        "save_strategy": "steps",
        "save_steps": 1,
        "train_sampling_strategy": "random",
    }
    return joint(folder, models=models, **{**defaults, **options})


def state_of(checkpoint: Path) -> dict[str, Any]:
    return {
        "model": load_file(checkpoint / "model.safetensors"),
        "extras": load_file(checkpoint / EXTRAS),
        "optimizer": torch.load(checkpoint / "optimizer.pt", weights_only=True),
        "logs": json.loads((checkpoint / "trainer_state.json").read_text())["log_history"],
    }


def test_resume_is_exact(tmp_path: Path) -> None:
    """A peer that starts anew, or its momentum, makes a resumed run another one."""
    moving(tmp_path / "whole").train()
    expected = state_of(tmp_path / "whole" / "checkpoint-6")
    parts = {name.split(".")[0] for name in expected["extras"]}
    assert parts == {"peers", "lessons", "initial_teacher"}
    for step in (1, 3):
        ours = moving(tmp_path / f"from_{step}", seed=step)
        ours.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        found = state_of(tmp_path / f"from_{step}" / "checkpoint-6")
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_checkpoint_without_the_peers_is_refused(tmp_path: Path) -> None:
    """The student would go on with peers that have learned nothing."""
    plain = moving(tmp_path / "one", max_steps=1, objective=1.0 * HardLabels())
    plain.train()
    with pytest.raises(ValueError, match=r"instead of .* more\. Resume with the objective"):
        moving(tmp_path).train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-1"))
    for name in (EXTRAS, LIST):  # as an earlier version left it
        os.remove(tmp_path / "one" / "checkpoint-1" / name)
    with pytest.raises(ValueError, match="made without the initial_teacher and lessons and peers"):
        moving(tmp_path).train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-1"))


class Saves(TrainerCallback):
    """Publishes the student in the middle of training, as a callback may."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_step_end(self, *_: Any, model: Any = None, **others: Any) -> None:
        model.save_pretrained(self.folder)


def test_student_and_peers_are_published_apart(tmp_path: Path) -> None:
    """A peer in the student's file is an unexpected key for everybody who loads it. (The weights of
    a masked language model are tied: two names of one tensor.)"""
    models = trio("masked_lm")
    plain = set(models[0].state_dict())
    saves = Saves(tmp_path / "callback")
    options = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 0.1}
    ours = joint(tmp_path / "run", "masked_lm", models, callbacks=[saves], **options)
    ours.train()
    ours.save_model(str(tmp_path / "saved"))
    models[0].save_pretrained(tmp_path / "student")
    expected = set(load_file(tmp_path / "student" / "model.safetensors"))
    for folder in ("callback", "run/checkpoint-1", "saved"):
        assert set(load_file(tmp_path / folder / "model.safetensors")) == expected, folder
    assert set(ours.model.state_dict()) == plain
    assert not (tmp_path / "saved" / EXTRAS).exists()
    extras = load_file(tmp_path / "run" / "checkpoint-1" / EXTRAS)
    for name, model in zip(("teacher", "teacher_2"), models[1:], strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("kept")
        ours.save_peer(name, tmp_path / name)
        loaded, report = type(model).from_pretrained(
            tmp_path / name, output_loading_info=True, dtype=torch.float64
        )
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert same(weights(loaded), weights(model))
        assert (tmp_path / name / "notes.txt").read_text() == "kept"
        saved = {n.removeprefix(f"peers.{name}."): t for n, t in extras.items() if f".{name}." in n}
        assert all(torch.equal(model.state_dict()[n], t) for n, t in saved.items())
        assert {n for n, _ in model.named_parameters()} <= set(saved)
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(ValueError, match=r"a peer of \['teacher', 'teacher_2'\], got 'x'"):
        ours.save_peer("x", tmp_path / "x")


def test_the_peers_of_the_best_checkpoint(tmp_path: Path) -> None:
    """The best student beside the last peers would be a pair that never was."""
    ours = moving(
        tmp_path,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,
        learning_rate=0.05,
    )
    ours.train()
    assert ours.state.best_global_step < 6
    best = load_file(Path(str(ours.state.best_model_checkpoint)) / EXTRAS)
    held = {f"peers.{n}": t for n, t in ours.projections["peers"].state_dict().items()}
    assert all(torch.equal(held[n], t) for n, t in best.items() if n in held)
    assert {n for n in best if n.startswith("peers.")} <= held.keys()


# ---- the optimizer ---------------------------------------------------------------------------


def test_the_peers_have_a_learning_rate_of_their_own(tmp_path: Path) -> None:
    """One step of SGD per model: its own rate, the schedule and the weight decay of the student."""
    keep = Gradients()
    models = trio()
    before = [weights(model) for model in models]
    rates: dict[str, Any] = {"learning_rate": 0.1, "peer_learning_rate": 0.02, "weight_decay": 0.5}
    ours = joint(tmp_path, models=models, callbacks=[keep], max_steps=2, **rates)
    ours.train()
    joined = joint(tmp_path, models=trio(), learning_rate=0.1)
    joined.train()
    assert [g["initial_lr"] for g in joined.optimizer.param_groups] == [0.1] * 4
    groups = ours.optimizer.param_groups
    assert [g["initial_lr"] for g in groups] == [0.1, 0.1, 0.02, 0.02]
    assert [g["weight_decay"] for g in groups] == [0.5, 0.0, 0.5, 0.0]
    plain = [[n for n, _ in m.named_parameters() if "bias" not in n] for m in models]
    sizes = [sum("Norm" not in n for n in names) for names in plain]
    assert [len(groups[0]["params"]), len(groups[2]["params"])] == [sizes[0], sum(sizes[1:])]
    ours.train()  # once more: the groups are not split again
    assert len(ours.optimizer.param_groups) == 4
    fixed = joint(tmp_path, models=trio(), learning_rate=0.1, peer_learning_rate=0.0)
    fixed.train()
    assert same(weights(fixed.projections["peers"]["teacher"]), before[1])
    assert not same(weights(fixed.model), before[0])


def test_shares_follow_each_model(tmp_path: Path) -> None:
    """The running means of one model would be those of another, or counted once per peer."""
    shared: WeightedSum = LossShare(0.5) * HardLabels() + LossShare(0.5) * Mutual()
    ours = joint(tmp_path, objective=shared, peer_objective=shared)
    ours.train()
    logged = ours.state.log_history[0]
    for name, prefix in (("student", ""), ("teacher", "teacher_"), ("teacher_2", "teacher_2_")):
        lessons = ours.projections["lessons"][name].values()
        for balance in (lesson[BALANCE] for lesson in lessons):
            assert balance.steps.item() == 1
            ratio = balance.means[1] / balance.means[0]
            expected = logged[f"{prefix}mutual"] / logged[f"{prefix}hard_labels"]
            assert ratio.item() == pytest.approx(expected, rel=1e-9)


# ---- what is refused -------------------------------------------------------------------------


def sharing(folder: Path) -> Any:
    student, teacher, _ = trio()
    teacher.bert.embeddings = student.bert.embeddings
    return joint(folder, models=(student, teacher))


def scheduled(folder: Path) -> Any:
    models = trio()
    optimizer = torch.optim.SGD(models[0].parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    both = (optimizer, schedule)
    return joint(folder, models=models, optimizers=both, peer_learning_rate=0.1)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "shared weights": (sharing, r"'teacher' shares weights with 'student'.*copy\.deepcopy"),
    "one model twice": (
        lambda p: joint(p, peers=[trio()[1]] * 2),
        r"'teacher_2' shares weights with 'teacher'",
    ),
    "frozen": (
        lambda p: joint(p, peers=trio()[1].requires_grad_(False)),
        r"'teacher' has no trainable weights.*DistillationTrainer\(teacher_model",
    ),
    "a frozen teacher": (
        lambda p: joint(p, peers=[ModelTeacher(trio()[1])]),
        "Expected peers to be models, got ModelTeacher for 'teacher'",
    ),
    "none": (lambda p: joint(p, peers=[]), "Expected one peer or more"),
    "a bad name": (lambda p: joint(p, peers={"a.b": trio()[1]}), "peer's name .* got 'a.b'"),
    "a taken name": (lambda p: joint(p, peers={"keys": trio()[1]}), "got 'keys'"),
    "a name like a part": (
        lambda p: joint(p, peers={"hard": trio()[1]}, objective=MUTUAL),
        "'hard_labels' is one of the student's",
    ),
    "targets": (lambda p: joint(p, targets="all"), r"targets of \['others', 'ensemble'\]"),
    "states of an ensemble": (
        lambda p: joint(p, targets="ensemble", objective=1.0 * HiddenStates()),
        r"\['hidden_states'\] needs \['hidden_states'\], which this teacher does not provide",
    ),
    "states of an ensemble for a peer": (
        lambda p: joint(p, targets="ensemble", peer_objective=1.0 * HiddenStates()),
        "which this teacher does not provide",
    ),
    "other labels": (
        lambda p: joint(p, peers=_four_labels()),
        "to have the student's 3 labels",
    ),
    "a scheduler": (scheduled, "groups that a given scheduler does not know"),
    "no student": (
        lambda p: OnlineDistillationTrainer(args=config(p), peers=trio()[1]),
        "takes the student as model=",
    ),
    "no data": (
        lambda p: joint(p, train_dataset=None, eval_dataset=None),
        "Pass train_dataset or eval_dataset",
    ),
}


def _four_labels() -> nn.Module:
    config = CASES[HEAD].config()
    config.num_labels = 4
    return CASES[HEAD].model(config)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_at_once(tmp_path: Path, case: str) -> None:
    """It would fail after hours, or train two models into one."""
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make(tmp_path)


def test_a_brought_optimizer_learns_the_peers_too(tmp_path: Path) -> None:
    """A script's own optimizer holds the student alone: the peers would silently stand still."""
    models = trio()
    before = weights(models[1])
    optimizer = torch.optim.SGD(models[0].parameters(), lr=0.1)
    ours = joint(tmp_path, models=models, optimizers=(optimizer, None), peer_learning_rate=0.3)
    ours.train()
    assert not same(weights(models[1]), before)
    assert [g["initial_lr"] for g in ours.optimizer.param_groups] == [0.1, 0.3]
