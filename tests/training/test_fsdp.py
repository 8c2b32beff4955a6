"""FSDP2 on two processes: what is sharded trains, measures, saves and resumes as what is not."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from fsdp_on_cpu import allow_cpu
from launch import launch
from on_policy_runs import config as on_policy_config
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import CASES, collate
from tiny_trainers import Recorder, accuracy, config, trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    TrainerCallback,
)

from hf_distill import (
    BaseModelTeacher,
    CachedTeacher,
    ForwardKL,
    FreeLB,
    HardLabels,
    HiddenStates,
    ModelTeacher,
    OnlineDistillationTrainer,
    OnPolicyDistillationTrainer,
    WeightDecay,
    write_cache,
)
from hf_distill.models.sharding import full_tensor
from hf_distill.training.checkpoint_files import SAVING
from hf_distill.training.publishing import stage_student

TEXT, LANGUAGE = "sequence_classification", "causal_lm"
LOGITS = 0.5 * HardLabels() + 0.5 * ForwardKL(2.0)
EVERYTHING = LOGITS + HiddenStates()
FSDP: dict[str, Any] = {"fsdp": True, "fsdp_config": {"version": 2}}
SHARDS = {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}
SAVED = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}
BEST = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
}


def tied(case: Any) -> tuple[Any, Any]:
    settings = {**case.config().to_diff_dict(), "tie_word_embeddings": True}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = case.model(type(case.config())(**settings)).double()
    return student, case.models()[1]


def single(case: Any) -> tuple[Any, Any]:
    return case.models(torch.float32)


@dataclass(frozen=True)
class Run:
    """What is trained, and with which arguments."""

    head: str
    objective: Any = LOGITS
    options: dict[str, Any] = field(default_factory=dict)
    fsdp: dict[str, Any] = field(default_factory=dict)
    models: Callable[[Any], tuple[Any, Any]] = lambda case: case.models()
    teacher: str = "whole"
    lean: bool = False
    on_policy: bool = False
    close: float = 1e-6


RUNS: dict[str, Run] = {
    "text": Run(
        TEXT,
        EVERYTHING,
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1, "weight_decay": 0.1},
    ),
    "pictures": Run("image_classification", EVERYTHING),
    "language": Run(LANGUAGE, lean=True),
    "language, hidden states": Run(LANGUAGE, EVERYTHING, lean=True),
    "language, whole logits": Run(LANGUAGE),
    "tied head": Run(LANGUAGE, lean=True, models=tied),
    "masked": Run("masked_lm", lean=True),
    "translation": Run("seq2seq_lm", lean=True),
    "sharded teacher": Run(LANGUAGE, EVERYTHING, teacher="sharded", lean=True),
    "cached teacher": Run(TEXT, teacher="cached"),
    "adapter": Run(
        TEXT, EVERYTHING, {"peft_config": LoraConfig(task_type=TaskType.SEQ_CLS, r=4), **SAVED}
    ),
    "adapter, shards": Run(
        TEXT,
        EVERYTHING,
        {"peft_config": LoraConfig(task_type=TaskType.SEQ_CLS, r=4), **SAVED},
        SHARDS,
    ),
    "its own teacher": Run(LANGUAGE, teacher="adapters off", lean=True),
    "sent by the first": Run(TEXT, EVERYTHING, {}, {"cpu_ram_efficient_loading": True}),
    "checkpointed": Run(LANGUAGE, EVERYTHING, {}, {"activation_checkpointing": True}, lean=True),
    "asked twice": Run(TEXT, LOGITS + FreeLB(HardLabels(), 0.1, start="none")),
    "half precision": Run(
        LANGUAGE, EVERYTHING, {"bf16": True}, models=single, lean=True, close=2e-2
    ),
    "on policy": Run(LANGUAGE, lean=True, on_policy=True),
    "whole states": Run(TEXT, EVERYTHING, {**SAVED, **BEST}),
    "shards": Run(TEXT, EVERYTHING, {**SAVED, **BEST}, SHARDS),
    "tied, shards": Run(LANGUAGE, EVERYTHING, SAVED, SHARDS, models=tied, lean=True),
}
"""Eight examples a step and micro-batch, or four where they are accumulated, over all processes."""
STAGED = "tied, shards"
BESTS = ("whole states", "shards")
RESUMED = [name for name, run in RUNS.items() if "save_steps" in run.options]


class Sharded(TrainerCallback):
    """Sees that every process holds its half: DDP would pass every other test."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        parameters = list(model.parameters())
        assert all(isinstance(p, DTensor) for p in parameters)
        held = sum(p.to_local().numel() for p in parameters)
        assert held < 0.7 * sum(p.numel() for p in parameters)


def made(
    folder: Path, name: str, processes: int, *callbacks: TrainerCallback, other: bool = False
) -> Any:
    """The trainer of a run; of an ``other`` one, from other weights."""
    run = RUNS[name]
    case = CASES[run.head]
    student, model = run.models(case)
    if run.teacher == "cached":
        teacher: Any = CachedTeacher(folder / "cache")
    elif run.teacher == "adapters off":
        torch.manual_seed(0)
        student = get_peft_model(
            student, LoraConfig(task_type=TaskType.CAUSAL_LM, init_lora_weights=False)
        )
        teacher = BaseModelTeacher(student)
    else:
        teacher = ModelTeacher(model, shard=run.teacher == "sharded")
    options = dict(run.options)
    adapter = options.pop("peft_config", None)
    if other and adapter is None:
        for parameter in student.parameters():
            parameter.data.mul_(0.5)
    batch = 8 // processes // options.get("gradient_accumulation_steps", 1)
    sharded = {"fsdp": True, "fsdp_config": {"version": 2, **run.fsdp}} if processes > 1 else {}
    arguments = {
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": 2,
        "train_sampling_strategy": "sequential",
        "max_steps": 3,
        **sharded,
        **options,
    }
    kind: dict[str, Any] = {}
    if run.on_policy:
        kind["cls"] = OnPolicyDistillationTrainer
        arguments |= {"generation_temperature": 0.0, "learning_rate": 0.01, "lmbda": 0.7}
    args = (on_policy_config if run.on_policy else config)(folder / name, **arguments)
    ours = trainer(
        folder / name,
        model=student,
        teacher_model=teacher,
        objective=run.objective,
        train_dataset=case.data(),
        eval_dataset=case.data(7),
        callbacks=[*callbacks, *([Sharded()] if processes > 1 else [])],
        peft_config=adapter,
        compute_metrics=accuracy if run.head == TEXT else None,
        args=args,
        **kind,
    )
    assert ours.step.lazy_logits or not run.lean
    ours.step.lazy_logits = run.lean
    return ours


def figures(record: Recorder) -> list[dict[str, float]]:
    ignored = ("runtime", "per_second", "preparation_time", "flos")
    return [{k: v for k, v in log.items() if not k.endswith(ignored)} for log in record.logs]


def keep(ours: Any, folder: Path, name: str) -> None:
    """What the user gets, and the projections."""
    ours.save_model(str(folder / name / "final"))
    held = {
        k: full_tensor(v).detach().contiguous() for k, v in ours.projections.state_dict().items()
    }
    if ours.is_world_process_zero():
        save_file(held, folder / f"{name}.projections")


def stage(ours: Any, folder: Path) -> None:
    """Put aside what each checkpoint would bring to the Hub, and publish nothing."""
    ours.args.push_to_hub = True

    def push(path: str) -> None:
        checkpoint = Path(path)
        if checkpoint.parent.name != SAVING and ours.is_world_process_zero():
            stage_student(Path(ours.args.output_dir), checkpoint, folder / checkpoint.name)

    ours._push_from_checkpoint = push


def train_all(folder: str, processes: str) -> None:
    """Every run: evaluate, train, evaluate, save; go on from a checkpoint in the middle."""
    where, count = Path(folder), int(processes)
    if count > 1:
        allow_cpu()
    for name in RUNS:
        record = Recorder()
        ours = made(where, name, count, record)
        ours.evaluate()
        if name == STAGED:
            stage(ours, where / "staged")
        ours.train()
        ours.args.push_to_hub = False
        ours.evaluate()
        keep(ours, where, name)
        if ours.is_world_process_zero():
            (where / f"{name}.json").write_text(json.dumps(figures(record)))
            ours.create_model_card()
    for name in RESUMED:
        other = made(where / "resumed", name, count, other=True)
        other.train(resume_from_checkpoint=str(where / name / "checkpoint-2"))
        keep(other, where / "resumed", name)
    if count > 1:
        refused(where)


def refused(folder: Path) -> None:
    """What cannot work on shards is told before training starts."""
    with pytest.raises(ValueError, match="WeightDecay needs whole weights"):
        trainer(folder, objective=LOGITS + WeightDecay(0.1), **FSDP)
    with pytest.raises(ValueError, match="log_gradient_norms needs whole weights"):
        trainer(folder, log_gradient_norms=True, **FSDP)
    student = CASES[TEXT].models(torch.float32)[0]
    student.classifier.to("meta")
    with pytest.raises(ValueError, match="cpu_ram_efficient_loading to false"):
        trainer(folder, model=student, objective=EVERYTHING, **FSDP)
    student, teacher = CASES[TEXT].models()
    with pytest.raises(ValueError, match="OnlineDistillationTrainer holds whole models"):
        OnlineDistillationTrainer(
            student,
            config(folder, **FSDP),
            collate,
            CASES[TEXT].data(),
            peers={"other": teacher},
            objective=LOGITS,
        )


# peft 0.21 reads an attribute that transformers 5.23 has renamed
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("fsdp"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of the same runs by one process and by two under FSDP2."""
    alone, together = (tmp_path_factory.mktemp(name) for name in ("alone", "together"))
    teacher, data = ModelTeacher(CASES[TEXT].models()[1]), CASES[TEXT].data()
    write_cache(alone / "cache", teacher, data, collate, say=lambda text: None)
    shutil.copytree(alone / "cache", together / "cache")
    train_all(str(alone), "1")
    launch(train_all, together, "2", processes=2)
    return alone, together


def student(folder: Path) -> dict[str, Tensor]:
    """What `save_model` has left."""
    names = ("adapter_model.safetensors", "model.safetensors")
    (path,) = (folder / name for name in names if (folder / name).is_file())
    return load_file(path)


def differ_at_most(found: dict[str, Tensor], expected: dict[str, Tensor], close: float) -> None:
    """Adam makes noise of a gradient that is zero (the attention's key bias), hence the atol."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=10 * close, atol=close)


@pytest.mark.parametrize("name", RUNS)
def test_losses_and_evaluation(runs: tuple[Path, Path], name: str) -> None:
    """Losses, components, gradient norms and the metrics on 7 rows, before and after training,
    would be those of one process's shard or rows."""
    alone, together = (json.loads((folder / f"{name}.json").read_text()) for folder in runs)
    assert len(alone) == len(together)
    for one, two in zip(alone, together, strict=True):
        assert two == pytest.approx(one, rel=RUNS[name].close, abs=RUNS[name].close)


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run.close < 1e-3])
def test_the_saved_student(runs: tuple[Path, Path], name: str) -> None:
    """What is saved would be shards, miss weights, or hold projections and tied weights twice."""
    alone, together = runs
    close = RUNS[name].close
    differ_at_most(student(together / name / "final"), student(alone / name / "final"), close)
    projections = [load_file(folder / f"{name}.projections") for folder in runs]
    differ_at_most(projections[1], projections[0], close)


@pytest.mark.parametrize("name", RESUMED)
def test_resume(runs: tuple[Path, Path], name: str) -> None:
    """A run that was stopped would go on from other weights, projections or moments: it starts
    from another student, so that all must come from the checkpoint."""
    together = runs[1]
    found, expected = (
        student(folder / name / "final") for folder in (together / "resumed", together)
    )
    differ_at_most(found, expected, 0.0)
    projections = [load_file(f / f"{name}.projections") for f in (together / "resumed", together)]
    assert projections[1]
    differ_at_most(projections[0], projections[1], 0.0)


@pytest.mark.parametrize("name", BESTS)
def test_the_best_student_comes_back(runs: tuple[Path, Path], name: str) -> None:
    """The last student would be published as the best one, or with the last one's projections."""
    losses = [
        log["eval_loss"]
        for log in json.loads((runs[1] / f"{name}.json").read_text())
        if "eval_loss" in log
    ]
    steps = losses[1:-1]  # before training; with the weights that are kept
    assert losses[-1] == pytest.approx(min(steps), rel=1e-9)
    assert min(steps) != steps[-1]
    best = runs[1] / name / f"checkpoint-{steps.index(min(steps)) + 1}"
    kept = load_file(runs[1] / f"{name}.projections")
    saved = load_file(best / "distillation.safetensors")
    assert {f"projections.{key}" for key in kept} == saved.keys()
    assert all(torch.equal(saved[f"projections.{key}"], value) for key, value in kept.items())


def test_it_loads_without_this_library(runs: tuple[Path, Path]) -> None:
    """transformers would find weights missing, or projections it does not know."""
    for name, auto in (
        (BESTS[1], AutoModelForSequenceClassification),
        (STAGED, AutoModelForCausalLM),
    ):
        _, found = auto.from_pretrained(runs[1] / name / "final", output_loading_info=True)
        assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys"))
    base = CASES[TEXT].models()[0]
    adapted = PeftModel.from_pretrained(copy.deepcopy(base), runs[1] / "adapter" / "final")
    saved = student(runs[1] / "adapter" / "final")
    key = next(key for key in saved if key.endswith("lora_B.weight"))
    loaded = adapted.state_dict()[key.replace("lora_B", "lora_B.default")]
    assert loaded.abs().max() > 0
    assert torch.equal(loaded, saved[key].to(loaded.dtype))


def test_a_checkpoint_that_is_pushed_holds_the_student(runs: tuple[Path, Path]) -> None:
    """With SHARDED_STATE_DICT, transformers saves no weights that a reader of the Hub can load."""
    pushed = sorted(path.name for path in (runs[1] / "staged").iterdir())
    assert pushed == [f"checkpoint-{step}" for step in (1, 2, 3, 4)]
    differ_at_most(
        student(runs[1] / "staged" / "checkpoint-4"), student(runs[1] / STAGED / "final"), 0.0
    )
    assert not (runs[1] / "shards" / "checkpoint-4" / "model.safetensors").exists()
