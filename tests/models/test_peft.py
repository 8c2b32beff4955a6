"""Adapted students: only the adapter trains, is saved, and comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file
from tiny_models import collate
from tiny_trainers import Recorder, accuracy, data, models, same, trainer, weights
from torch import Tensor, nn

from hf_distill import ForwardKL, HardLabels, HiddenStates

# peft 0.21 reads an attribute that transformers 5.23 has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

EVERYTHING = 0.5 * HardLabels() + 0.5 * ForwardKL(2.0) + HiddenStates()
TASKS = {
    "sequence_classification": TaskType.SEQ_CLS,
    "token_classification": TaskType.TOKEN_CLS,
    "causal_lm": TaskType.CAUSAL_LM,
}


def lora(head: str, **options: Any) -> LoraConfig:
    return LoraConfig(task_type=TASKS[head], r=4, lora_dropout=0.0, **options)


def based(folder: Path, head: str) -> Any:
    """The student, loaded from a folder, as an adapter names its base by its folder."""
    student, _ = models(head)
    student.save_pretrained(folder / "base")
    return type(student).from_pretrained(folder / "base")


def logits(model: nn.Module, head: str) -> Tensor:
    batch = {k: v for k, v in collate(data(head)).items() if k != "labels"}
    model.eval()
    with torch.no_grad():
        found: Tensor = model(**batch).logits
    return found


@pytest.mark.parametrize("head", TASKS)
def test_only_the_adapter_trains_and_is_saved(tmp_path: Path, head: str) -> None:
    """A saved adapter with full weights, or with projections, is no adapter to anybody else."""
    student = based(tmp_path, head)
    before, base = weights(student), student
    record = Recorder()
    ours = trainer(
        tmp_path / "out",
        head,
        model=student,
        peft_config=lora(head),
        objective=EVERYTHING,
        callbacks=[record],
        max_steps=4,
        save_strategy="steps",
        save_steps=4,
    )
    ours.train()
    assert record.steps[-1]["loss"] < record.steps[0]["loss"]
    assert isinstance(ours.model, PeftModel)
    assert ours.optimizer is not None
    trained = {n for n, p in ours.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    sizes = sum(p.numel() for g in ours.optimizer.param_groups for p in g["params"])
    projected = sum(p.numel() for p in ours.projections.parameters())
    assert projected > 0
    assert sizes == projected + sum(p.numel() for p in ours.model.parameters() if p.requires_grad)
    for name, value in ours.model.get_base_model().state_dict().items():
        plain = name.replace("base_layer.", "").replace("original_module.", "")
        if plain in before:
            assert torch.equal(value, before[plain]), name

    ours.save_model(str(tmp_path / "saved"))
    for folder in (tmp_path / "saved", tmp_path / "out" / "checkpoint-4"):
        files = {path.name for path in folder.iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors"} <= files
        assert not any(name.startswith(("model", "pytorch_model")) for name in files)
        adapter = load_file(folder / "adapter_model.safetensors")
        assert not any("distillation" in key for key in adapter)
        assert len(adapter) == len(trained)
        fresh = type(base).from_pretrained(tmp_path / "base")
        back = PeftModel.from_pretrained(fresh, folder)
        assert torch.equal(logits(back, head), logits(ours.model, head))
    assert not (tmp_path / "saved" / "distillation.safetensors").exists()


def test_an_adapter_loads_by_its_auto_class(tmp_path: Path) -> None:
    student = based(tmp_path, "causal_lm")
    ours = trainer(tmp_path, "causal_lm", model=student, peft_config=lora("causal_lm"))
    ours.train()
    ours.save_model(str(tmp_path / "saved"))
    back = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(back, "causal_lm"), logits(ours.model, "causal_lm"))


def test_a_model_that_has_an_adapter_already(tmp_path: Path) -> None:
    """A script may call get_peft_model itself; that must be the same training."""
    losses = []
    for ready in (False, True):
        torch.manual_seed(42)  # that of TrainingArguments
        student, _ = models()
        config = lora("sequence_classification")
        record = Recorder()
        options: dict[str, Any] = {"callbacks": [record], "objective": EVERYTHING}
        if ready:
            options["model"] = get_peft_model(student, config)
        else:
            options.update(model=student, peft_config=config)
        trainer(tmp_path, **options).train()
        losses.append([step["loss"] for step in record.steps])
    assert losses[0] == losses[1]


def test_the_seed_decides_the_adapter(tmp_path: Path) -> None:
    """An adapter made before the seed is set is another one in every run."""
    made = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        student, _ = models()
        ours = trainer(tmp_path, model=student, peft_config=lora("sequence_classification"))
        made.append(weights(ours.model))
    assert same(made[0], made[1])


def _run(folder: Path, steps: int, **options: Any) -> Any:
    return trainer(
        folder,
        peft_config=lora("sequence_classification"),
        objective=EVERYTHING,
        compute_metrics=accuracy,
        max_steps=steps,
        lr_scheduler_type="constant",
        **options,
    )


def test_resuming_is_exact(tmp_path: Path) -> None:
    """The adapter, the projections and the optimizer must come from one and the same step."""
    saving = {"save_strategy": "steps", "save_steps": 3}
    whole = _run(tmp_path, 6, **saving)
    whole.train()
    resumed = _run(tmp_path, 6, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 6
    assert same(weights(whole.model), weights(resumed.model))
    assert same(weights(whole.projections), weights(resumed.projections))


def test_the_best_adapter_comes_back(tmp_path: Path) -> None:
    ours = _run(
        tmp_path,
        6,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        learning_rate=1.0,
    )
    ours.train()
    best = load_file(f"{ours.state.best_model_checkpoint}/adapter_model.safetensors")
    held = ours.model.state_dict()
    for key, value in best.items():
        name = key.replace(".weight", ".default.weight") if "lora_" in key else key
        name = name.replace("classifier.", "classifier.modules_to_save.default.")
        assert torch.equal(held[name], value), key
    assert ours.evaluate()["eval_loss"] == pytest.approx(ours.state.best_metric, rel=1e-6)


@pytest.mark.parametrize("adapted", [False, True])
def test_checkpointed_activations_with_an_adapter(tmp_path: Path, adapted: bool) -> None:
    """Frozen embeddings cut the graph of reentrant checkpointing: no gradient, no error."""
    figures = []
    for switch in (False, True):
        record = Recorder()
        options: dict[str, Any] = {}
        if adapted:
            options["peft_config"] = lora("sequence_classification")
        trainer(
            tmp_path,
            objective=EVERYTHING,
            callbacks=[record],
            activation_checkpointing=switch,
            **options,
        ).train()
        figures.append([step[key] for step in record.steps for key in ("loss", "grad_norm")])
    assert figures[0] == pytest.approx(figures[1], rel=1e-6)
    assert figures[0][1] > 0
