"""Mixtures of experts: the balancing loss of their routers is kept, and they teach and learn."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from objective_table import MODELS
from safetensors.torch import load_file
from task_values import components
from tiny_models import CASES, collate
from tiny_trainers import Recorder, config
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_distill import DistillationTrainer, ForwardKL, HardLabels, HiddenStates, RouterBalance
from hf_distill.models.task_model import TaskModel
from hf_distill.objectives.routing import with_router_balance
from hf_distill.training.joint import OnlineDistillationTrainer

CASE = MODELS["experts"]
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "output_router_logits": True,
    "router_aux_loss_coef": 0.05,
}


def qwen() -> Any:
    sizes = {"moe_intermediate_size": 12, "shared_expert_intermediate_size": 12}
    return tf.Qwen2MoeForCausalLM(tf.Qwen2MoeConfig(**SIZES, **sizes, decoder_sparse_step=1))


def olmoe() -> Any:
    return tf.OlmoeForCausalLM(tf.OlmoeConfig(**SIZES, pad_token_id=0))


def mixtral() -> Any:
    return CASE.models(torch.float32)[0]


def trainer(folder: Path, student: Any, objective: Any = None, **options: Any) -> Any:
    dtype = torch.float32
    return DistillationTrainer(
        student,
        config(folder, **{"alpha": 0.0, **options}),
        collate,
        CASE.data(8, dtype),
        CASE.data(4, dtype),
        teacher_model=CASE.models(dtype)[1],
        objective=objective,
        callbacks=[Recorder()],
    )


def own_gradient(student: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Of the loss that transformers computes itself, labels passed, on one batch."""
    model = copy.deepcopy(student).train()
    loss = model(**collate(CASE.data(4, torch.float32))).loss
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore:Student and teacher (end|pad)")
@pytest.mark.parametrize("make", [mixtral, qwen, olmoe])
def test_the_loss_is_that_of_transformers(tmp_path: Path, make: Any) -> None:
    """Without labels transformers adds no balancing loss: the routers collapse on a few experts,
    and no figure says so."""
    student = make()
    loss, gradients = own_gradient(student)
    ours = trainer(tmp_path, student, lr_scheduler_type="constant", max_steps=1)
    assert [name for name, _, _ in ours.training_objective.named()][-1] == "router_balance"
    ours.model.train()
    batch = ours._prepare_inputs(collate(CASE.data(4, torch.float32)))
    found = ours.compute_loss(ours.model, batch)
    found.backward()
    assert found.item() == pytest.approx(loss, rel=1e-6)
    routers = 0
    for name, parameter in ours.model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-7)
            routers += ".gate." in name
    assert routers >= 2  # those of all layers were compared


def test_padding_does_not_count() -> None:
    """Routers that are balanced over padding are not balanced over text."""
    student = CASE.models()[0].eval()
    batch = collate(CASE.data())
    longer = {
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 7)),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, 7)),
    }
    expected = components(RouterBalance(), student, batch)["router_balance"]
    assert components(RouterBalance(), student, longer)["router_balance"] == pytest.approx(expected)
    assert expected > 2.0  # two experts per token: what perfect balance gives


def test_balance_by_brute_force() -> None:
    """transformers' own function is what is called; a change of its scale would pass unseen."""
    student: Any = CASE.models()[0].eval()
    batch = collate(CASE.data())
    with torch.no_grad():
        routed = student(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            output_router_logits=True,
        ).router_logits
    real = batch["attention_mask"].flatten().bool().tolist()
    shares, chances, count = [0.0] * 4, [0.0] * 4, 0
    for layer in routed:
        for row, counted in zip(layer.double().softmax(-1).tolist(), real, strict=True):
            if counted:
                count += 1
                for expert in sorted(range(4), key=lambda e, row=row: -row[e])[:2]:
                    shares[expert] += 1
                chances = [c + r for c, r in zip(chances, row, strict=True)]
    expected = 4 * sum(s * c for s, c in zip(shares, chances, strict=True)) / count**2
    found = components(RouterBalance(), student, batch)["router_balance"]
    assert found == pytest.approx(expected, rel=1e-5)  # transformers sums in float32


def test_accumulation_does_not_multiply_it(tmp_path: Path) -> None:
    """Added to every micro-batch and never divided, its weight would grow with the accumulation
    steps, as in transformers' own trainer."""
    student = mixtral()
    ours = trainer(
        tmp_path,
        student,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        max_steps=1,
        learning_rate=0.0,
        train_sampling_strategy="sequential",
    )
    ours.train()
    logged = ours.state.log_history[0]["router_balance"]
    parts = [
        components(RouterBalance(), student, collate(CASE.data(8, torch.float32)[i : i + 2]))
        for i in (0, 2, 4, 6)
    ]
    assert logged == pytest.approx(sum(p["router_balance"] for p in parts) / 4, rel=1e-5)


def test_when_it_is_added(tmp_path: Path) -> None:
    """Asked for by nobody it would change a training; asked for twice it would count twice."""
    student = mixtral()
    objective = 1.0 * HardLabels()
    task_model = TaskModel(student)
    assert with_router_balance(objective, task_model) == objective + 0.02 * RouterBalance()
    own = objective + 0.5 * RouterBalance()
    assert with_router_balance(own, task_model) == own
    student.config.output_router_logits = False
    assert with_router_balance(objective, task_model) == objective
    student.config.output_router_logits, student.router_aux_loss_coef = True, 0.0
    assert with_router_balance(objective, task_model) == objective
    for name in ("causal_lm", "sequence_classification", "dual_encoder"):
        assert with_router_balance(objective, TaskModel(CASES[name].models()[0])) == objective
    with pytest.raises(ValueError, match=r"router_balance.*router_loss.*this student does not"):
        DistillationTrainer(
            CASES["causal_lm"].models(torch.float32)[0],
            config(tmp_path),
            collate,
            CASE.data(4, torch.float32),
            teacher_model=student,
            objective=ForwardKL() + RouterBalance(),
        )


@pytest.mark.parametrize("student_name", ["experts", "causal_lm"])
def test_experts_and_dense_models_teach_each_other(tmp_path: Path, student_name: str) -> None:
    """The balancing loss of a teacher says nothing about its student, and its routers must not be
    asked of a dense one."""
    other = "causal_lm" if student_name == "experts" else "experts"
    student = MODELS[student_name].models(torch.float32)[0]
    teacher = MODELS[other].models(torch.float32)[1]
    recorder = Recorder()
    ours = DistillationTrainer(
        student,
        config(tmp_path, per_device_train_batch_size=1, max_steps=3, save_strategy="steps"),
        collate,
        CASE.data(8, torch.float32),
        CASE.data(4, torch.float32),
        teacher_model=teacher,
        objective=HardLabels() + ForwardKL(2.0) + HiddenStates(),
        compute_metrics=lambda p: {"width": float(p.predictions.shape[-1])},
        callbacks=[recorder],
    )
    ours.train()
    figures = ours.evaluate()
    assert ("router_balance" in recorder.steps[0]) == (student_name == "experts")
    assert ("eval_router_balance" in figures) == (student_name == "experts")
    assert figures["eval_width"] == figures["eval_teacher_width"] == 40
    ours.save_model(str(tmp_path / "student"))
    loaded, told = type(student).from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(told.values())
    for (name, p), q in zip(loaded.named_parameters(), ours.model.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert not any("teacher" in key for key in load_file(tmp_path / "student/model.safetensors"))


# ---- among peers that learn together --------------------------------------------------------


def balance_alone(model: Any, rows: list[Any]) -> torch.Tensor:
    """Its definition, from the router logits of every layer: E * sum_e f_e * P_e, in float64."""
    batch = collate(rows)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    routed = torch.cat(list(model(**inputs, output_router_logits=True).router_logits)).double()
    real = (
        batch["attention_mask"].flatten().bool().repeat(len(routed) // batch["input_ids"].numel())
    )
    chances = routed[real].softmax(-1)
    chosen = torch.zeros_like(chances).scatter(-1, chances.topk(2).indices, 1.0)
    return chances.shape[-1] * (chosen.mean(0) * chances.mean(0)).sum()


def cross_entropy_alone(model: Any, rows: list[Any]) -> torch.Tensor:
    batch = collate(rows)
    labels = batch.pop("labels")[:, 1:].flatten()
    logits = model(**batch).logits[:, :-1].flatten(0, 1).double()
    return torch.nn.functional.cross_entropy(logits, labels)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_each_peer_keeps_its_own_balance(tmp_path: Path, accumulation: int) -> None:
    """The routers of a teacher that learns along would collapse on a few experts; added to every
    micro-batch and never divided, the weight would grow with the accumulation steps."""
    dtype = torch.float32
    dense, unwatched = CASES["causal_lm"].models(dtype)[0], mixtral()
    unwatched.config.output_router_logits = False
    student, teacher = CASE.models(dtype)
    teacher.router_aux_loss_coef = 0.3
    rows, gradients = CASE.data(8, dtype), {}

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, model: Any = None, **others: Any) -> None:
            named = model.named_parameters()
            gradients.update({n: p.grad.clone() for n, p in named if p.grad is not None})

    options: dict[str, Any] = {
        "per_device_train_batch_size": 8 // accumulation,
        "gradient_accumulation_steps": accumulation,
        "max_steps": 1,
        "learning_rate": 0.0,
        "max_grad_norm": 1e9,
        "train_sampling_strategy": "sequential",
    }
    ours = OnlineDistillationTrainer(
        student,
        config(tmp_path, alpha=0.0, **options),
        collate,
        rows,
        peers={"dense": dense, "teacher": teacher, "unwatched": unwatched},
        objective=1.0 * HardLabels(),
        callbacks=[Gradients()],
    )
    ours.train()
    logged = ours.state.log_history[0]
    balances = {name for name in logged if name.endswith("router_balance")}
    assert balances == {"router_balance", "teacher_router_balance"}
    size = 8 // accumulation
    parts = [rows[start : start + size] for start in range(0, 8, size)]
    prefixes = {"": student, "teacher_": teacher}
    for prefix, model in prefixes.items():
        factor = model.router_aux_loss_coef
        model.zero_grad()
        balance = torch.stack([balance_alone(model, part) for part in parts]).mean()
        (cross_entropy_alone(model, rows) + factor * balance).backward()
        assert logged[f"{prefix}router_balance"] == pytest.approx(balance.item(), rel=1e-5)
        place = "distillation.peers.teacher." if prefix else ""
        for name, parameter in model.named_parameters():
            if ".gate." in name:
                found = gradients[place + name]
                torch.testing.assert_close(found, parameter.grad, rtol=1e-3, atol=1e-7)


def test_the_stock_trainer_multiplies_it(tmp_path: Path) -> None:
    """What `test_accumulation_does_not_multiply_it` guards against is real. If this fails because
    transformers was mended, drop it; ours must hold all the same."""
    options: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "max_steps": 1,
        "learning_rate": 0.0,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "remove_unused_columns": False,
        "train_sampling_strategy": "sequential",
    }
    rows: Any = CASE.data(8, torch.float32)
    losses = []
    for factor in (0.0, 10.0):
        student = mixtral()
        student.router_aux_loss_coef = factor
        collator: Any = collate
        stock = Trainer(student, TrainingArguments(str(tmp_path), **options), collator, rows)
        stock.train()
        losses.append(stock.state.log_history[0]["loss"])
    parts = [
        components(RouterBalance(), mixtral(), collate(rows[i : i + 2]))["router_balance"]
        for i in (0, 2, 4, 6)
    ]
    assert losses[1] - losses[0] == pytest.approx(10 * sum(parts), rel=1e-3)
