"""Seeded trainings of tiny students, the same under an older and a newer layout of the package.

`same_results.py` runs this file once for each checkout, with ``PYTHONPATH`` set to the checkout and
its tests. Each training leaves a folder: the student's weights, the log, the model card, and the
files of a cache where one was written.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import save_file
from same_settings import (
    BUILT,
    Setting,
    built_setting,
    helper,
    other,
    public,
    two_tokenizers,
    unknown_setting,
    zoo,
    zoo_setting,
)

import hf_distill as hd

QUIET: dict[str, Any] = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "max_steps": 3,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "per_device_eval_batch_size": 3,
    "remove_unused_columns": False,
    "dataloader_pin_memory": False,
}


# ---- trainings -----------------------------------------------------------------------------------


def trained(
    at: Setting,
    trainer_class: str = "DistillationTrainer",
    objective: Any = None,
    resume: str | None = None,
    teacher: Any = None,
    **arguments: Any,
) -> Any:
    """A trainer after three steps and its evaluations."""
    kind = public(trainer_class)
    teacher = at.teacher if teacher is None else teacher
    joint = trainer_class == "OnlineDistillationTrainer"
    models = {"peers": [teacher]} if joint else {"teacher_model": teacher}
    trainer = kind(
        at.student,
        kind.config_class("student", **{**QUIET, **arguments}),
        data_collator=at.collate,
        train_dataset=at.data,
        eval_dataset=at.data[:5],
        objective=objective,
        **models,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def cached(at: Setting, temperature: float = 2.0, **options: Any) -> Any:
    """A training on the files that `write_cache` leaves in ``cache/``."""
    teacher = hd.ModelTeacher(at.teacher)
    hd.write_cache("cache", teacher, at.data, at.collate, batch_size=3, shard_size=5, **options)
    objective = hd.HardLabels() + hd.ForwardKL(temperature)
    if options.get("hidden_states"):
        objective = objective + hd.HiddenStates()
    return trained(at, teacher=hd.CachedTeacher("cache"), objective=objective)


def ensemble(at: Setting, **options: Any) -> Any:
    members = [hd.ModelTeacher(at.teacher), hd.ModelTeacher(other(at.teacher))]
    return trained(at, teacher=hd.Ensemble(members, **options))


def moving_average(at: Setting) -> Any:
    return trained(at, teacher=public("EMATeacher")(at.student, decay=0.5))


def base_model(at: Setting) -> Any:
    """An adapter that learns from the model below it."""
    torch.manual_seed(3)
    settings = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, lora_dropout=0.1)
    at.student = get_peft_model(at.student, settings)
    return trained(at, teacher=public("BaseModelTeacher")(at.student))


def resumed(at: Setting) -> Any:
    """The last of three steps, from a checkpoint of the second."""
    objective, fresh = hd.ForwardKL(2.0) + hd.HiddenStates(), copy.deepcopy(at.student)
    trained(at, objective=objective, save_strategy="steps", save_steps=2)
    at.student = fresh
    return trained(at, objective=objective, resume="student/checkpoint-2")


Run = tuple[str, str, Callable[[], Setting], Callable[[Setting], Any]]


def heads() -> Iterator[Run]:
    """Every row of the task table."""
    for head in zoo.CASES:
        make = partial(zoo_setting, head)
        if head != "encoder":  # it has no logits
            yield head, "default", make, trained
        if head not in ("encoder", "dual_encoder"):  # whose outputs depend on the batch
            yield head, "cache", make, cached
        states = 0.5 * hd.HiddenStates() + hd.WeightDecay(0.01)
        yield head, "hidden states", make, partial(trained, objective=states)
    for head, name in BUILT.items():
        make = partial(built_setting, name)
        yield head, "default", make, trained
        if name != "XCLIPModel":  # its vision model gives no states
            states = hd.HiddenStates() + hd.ForwardKL(2.0)
            yield head, "hidden states", make, partial(trained, objective=states)
    yield "other", "own loss", unknown_setting, partial(trained, objective=1.0 * hd.ModelLoss())
    both = 0.5 * hd.ModelLoss() + 0.5 * hd.HiddenStates()
    yield "other", "hidden states", unknown_setting, partial(trained, objective=both)


def methods() -> Iterator[Run]:
    """Adversaries, other trainers and other teachers."""
    text, image, words = "sequence_classification", "image_classification", "causal_lm"
    make = {head: partial(zoo_setting, head) for head in zoo.CASES}
    for head, name, objective in (
        (image, "RSLAD", hd.HardLabels() + hd.rslad(0.1, steps=2)),
        (image, "TRADES", hd.trades(0.1, steps=2)),
        (text, "R-Drop", hd.r_drop()),
        (text, "VAT", hd.HardLabels() + hd.vat(0.1)),
        (words, "SMART", hd.HardLabels() + hd.smart(0.1)),
    ):
        yield head, name, make[head], partial(trained, objective=objective)
    joint = partial(trained, trainer_class="OnlineDistillationTrainer")
    for head in (text, image, words, "seq2seq_lm"):
        yield head, "online distillation", make[head], joint
        yield head, "ensemble", make[head], ensemble
        yield head, "EMA teacher", make[head], moving_average
        yield head, "resumed", make[head], resumed
    yield text, "base model as teacher", make[text], base_model
    yield text, "weighted ensemble", make[text], partial(ensemble, weights=[0.3, 0.7])
    yield text, "cache of states", make[text], partial(cached, hidden_states=True)
    for settings in ({"kind": "top_k", "k": 4}, {"kind": "sampled", "draws": 6, "seed": 1}):
        sparse = partial(cached, temperature=1.0, format=settings)
        yield words, f"{settings['kind']} cache", make[words], sparse
    writing = {"max_completion_length": 5, "lmbda": 1.0, "eval_strategy": "no"}
    writing["objective"] = hd.HardLabels() + hd.JensenShannon(1.0, beta=0.3)
    on_policy = partial(trained, trainer_class="OnPolicyDistillationTrainer", **writing)
    for head in (words, "seq2seq_lm"):
        yield head, "on-policy", make[head], on_policy
    for objective in (hd.ForwardKL(), hd.PrefixKL(), hd.UniversalLogitDistance()):
        name = f"another tokenizer, {type(objective).__name__}"
        yield words, name, two_tokenizers, partial(trained, objective=objective)


def objectives() -> Iterator[Run]:
    """Every objective of the table of contract tests, on the first kind of model it applies to."""
    table = helper("objective_table")
    for name, row in {**table.ROWS, **table.VARIANTS}.items():
        for kind in row.models[:1]:
            make = partial(zoo_setting, kind, table.MODELS[kind])
            yield f"objective {name}", kind, make, partial(trained, objective=row.objective)


# ---- what a run leaves ---------------------------------------------------------------------------


def leave(trainer: Any, folder: Path) -> None:
    """Write the weights, the log and the card of a training."""
    state = trainer.accelerator.unwrap_model(trainer.model).state_dict()
    weights = {name: value.detach().clone().contiguous() for name, value in state.items()}
    save_file(weights, folder / "weights.safetensors")
    (folder / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1))
    trainer.create_model_card()
    os.replace("student/README.md", folder / "card.md")


def main(out: str, checkout: str, only: str) -> None:
    if not Path(hd.__file__).is_relative_to(checkout):
        raise RuntimeError(f"Expected the package of {checkout}, got {hd.__file__}.")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    root = Path(out).resolve()
    for head, name, make, train in (*heads(), *methods(), *objectives()):
        key = f"{head}; {name}"
        if only not in key:
            continue
        folder, start = root / key.replace("/", "_"), time.perf_counter()
        folder.mkdir(parents=True)
        os.chdir(folder)
        transformers.set_seed(0)
        try:
            leave(train(make()), folder)
        except Exception:
            (folder / "error.txt").write_text(traceback.format_exc())
        print(f"{key}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
