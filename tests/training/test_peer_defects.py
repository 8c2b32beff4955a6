"""Defects of other libraries that a trainer could have; those of loss functions are in losses/.

D5 was seen in torchdistill, D10 and D11 in KD_Lib, D21 in timm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as tf
from objective_table import MODELS
from tiny_models import CASES, collate
from tiny_trainers import Recorder, trainer
from transformers import TrainerCallback

from hf_distill import ForwardKL, HardLabels, HiddenStates, Jacobian, MiniLMv2, Needs
from hf_distill.models.task_model import TaskModel

EVERYTHING = HardLabels() + ForwardKL(2.0) + HiddenStates() + MiniLMv2() + Jacobian(saliency=True)


class Modes(TrainerCallback):
    def __init__(self) -> None:
        self.training: list[bool] = []

    def on_pre_optimizer_step(self, *args: Any, model: Any = None, **others: Any) -> None:
        self.training.append(model.training)


def test_d10_the_student_trains_in_training_mode(tmp_path: Path) -> None:
    """After the first evaluation KD_Lib trains without dropout and with frozen batch norm."""
    modes = Modes()
    ours = trainer(
        tmp_path,
        objective=EVERYTHING,
        callbacks=[modes],
        eval_strategy="steps",
        eval_steps=1,
        max_steps=3,
    )
    ours.train()
    assert modes.training == [True] * 3
    assert not ours.teacher.model.training


def test_d11_the_teacher_has_no_graph_and_no_gradient(tmp_path: Path) -> None:
    ours = trainer(tmp_path, objective=EVERYTHING)
    before = {n: p.clone() for n, p in ours.teacher.model.named_parameters()}
    ours.train()
    for name, parameter in ours.teacher.model.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


def test_d21_each_model_runs_once_a_step(tmp_path: Path) -> None:
    """Two forwards of a head draw two dropout masks, and cost twice."""
    ours = trainer(tmp_path, objective=EVERYTHING, callbacks=[Recorder()], max_steps=3)
    runs = {"student": 0, "teacher": 0}

    def count(who: str) -> Any:
        def hook(*arguments: Any) -> None:
            runs[who] += 1

        return hook

    ours.model.register_forward_hook(count("student"))
    ours.teacher.model.register_forward_hook(count("teacher"))
    ours.train()
    assert runs == {"student": 3, "teacher": 3}


def test_d5_hooks_belong_to_one_call() -> None:
    """Hooks set on a class, or left behind, mix up two models of one kind."""
    case = MODELS["text"]
    student, teacher = case.models()
    batch = collate(case.data(3))
    needs = Needs(qkv=True, modules=frozenset({"bert.encoder.layer.0"}), inputs=True)
    heads = TaskModel(student), TaskModel(teacher)
    items = heads[0].items(batch)
    signals = [head.ask(head.model, batch, needs, items)[1] for head in heads]
    assert [s.modules["bert.encoder.layer.0"].shape[-1] for s in signals] == [16, 24]
    for head in heads:
        assert not any(m._forward_hooks for m in head.model.modules())


def test_modules_of_mixtures_and_towers() -> None:
    """Blocks of experts and vision towers by path; outputs that are tuples give their first."""
    config = tf.MixtralConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        bos_token_id=1,
        eos_token_id=1,
    )
    model = tf.MixtralForCausalLM(config).eval()
    ids = torch.randint(3, 40, (2, 5))
    task_model = TaskModel(model)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    needs = Needs(modules=frozenset({"model.layers.0.mlp", "model.layers.1.self_attn"}))
    found = task_model.ask(model, batch, needs, task_model.items(batch))[1].modules
    assert {output.shape for output in found.values()} == {torch.Size([2, 5, 16])}

    clip = CASES["dual_encoder"].models()[0].eval()
    task_model = TaskModel(clip)
    batch = collate(CASES["dual_encoder"].data(3))
    path = "vision_model.encoder.layers.1"
    signal = task_model.ask(
        clip, batch, Needs(hidden_states=True, modules=frozenset({path})), task_model.items(batch)
    )[1]
    assert torch.equal(signal.modules[path], signal.hidden_states["vision"][-1])
