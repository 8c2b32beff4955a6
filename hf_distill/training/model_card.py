"""The student's model card, filled from the trainer."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, Trainer
from transformers.models.auto import modeling_auto

from hf_distill.evaluation.metrics.functional import number
from hf_distill.evaluation.running_metrics import FIGURES, OTHER
from hf_distill.hub import StudentCard
from hf_distill.hub.inherit import local_card
from hf_distill.hub.mending import write_mended
from hf_distill.hub.samples import read_samples
from hf_distill.hub.values import inherited
from hf_distill.models.modules import doubles_of
from hf_distill.models.task_model import TaskModel, describe_model
from hf_distill.training.run_facts import (
    ALWAYS,
    accuracy_interval,
    describe_processor,
    environment,
    exports_of,
    is_on_card,
    label_names,
    last_components,
    log_rows,
    measured_carbon,
    plain,
    teacher_facts,
)
from hf_distill.training.step import DistillationStep

PIPELINES = {
    "sequence_classification": "text-classification",
    "image_classification": "image-classification",
    "audio_classification": "audio-classification",
    "video_classification": "video-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
    "multiple_choice": "multiple-choice",
    "masked_lm": "fill-mask",
    "causal_lm": "text-generation",
    "image_text_to_text": "image-text-to-text",
    "seq2seq_lm": "text2text-generation",
    "semantic_segmentation": "image-segmentation",
    "ctc": "automatic-speech-recognition",
    "speech_seq2seq": "automatic-speech-recognition",
    "dual_encoder": "zero-shot-image-classification",
    "sigmoid_dual_encoder": "zero-shot-image-classification",
    "encoder": "feature-extraction",
    "bi_encoder": "sentence-similarity",
}
"""Task -> the Hub's pipeline tag, if there is one."""
OTHERS = {
    "OBJECT_DETECTION": "object-detection",
    "ZERO_SHOT_OBJECT_DETECTION": "zero-shot-object-detection",
    "IMAGE_SEGMENTATION": "image-segmentation",
    "INSTANCE_SEGMENTATION": "image-segmentation",
    "UNIVERSAL_SEGMENTATION": "image-segmentation",
    "MASK_GENERATION": "mask-generation",
    "DEPTH_ESTIMATION": "depth-estimation",
    "KEYPOINT_DETECTION": "keypoint-detection",
    "IMAGE_TO_IMAGE": "image-to-image",
    "VISUAL_QUESTION_ANSWERING": "visual-question-answering",
    "DOCUMENT_QUESTION_ANSWERING": "document-question-answering",
    "TABLE_QUESTION_ANSWERING": "table-question-answering",
    "TIME_SERIES_PREDICTION": "time-series-forecasting",
}
"""The same for models of the task "other": ``MODEL_FOR_…_MAPPING_NAMES`` -> pipeline tag."""

_PER_EXAMPLE = ("sequence_classification", "image_classification", "audio_classification")
"""Tasks whose accuracy is a proportion of the examples."""

SPEED = ("runtime", "_per_second", "preparation_time", "epoch", "step")
"""Endings of the evaluation's keys that are not results."""
COMPARED = ("teacher_", "retention_")
"""Beginnings of the evaluation's keys that are not the student's own results."""


def pipeline_of(task_model: TaskModel) -> str | None:
    """The Hub's pipeline tag of a model, if it has one."""
    name = type(task_model.model).__name__
    for mapping, tag in OTHERS.items() if task_model.task.name == "other" else ():
        if name in getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES", {}).values():
            return tag
    return PIPELINES.get(task_model.task.name)


def student_card(trainer: Trainer, step: DistillationStep) -> StudentCard:
    """Fill a model card with the facts of a run."""
    task_model, objective, teacher = step.task_model, step.objective, step.teacher
    args, history = trainer.args, trainer.state.log_history
    student: Any = trainer.model
    adapted = isinstance(student, PeftModel)
    module = not isinstance(student, PreTrainedModel | PeftModel)
    folder = Path(str(args.output_dir))
    config = task_model.config
    base = getattr(config, "_name_or_path", None) or None
    revision = getattr(config, "_commit_hash", None)
    base_license = local_card(base, revision).get("license")
    terms = [name for name, _, _ in objective.named()]
    results, splits = _last_results(history, terms), _split_sizes(trainer)
    return StudentCard(
        model_name=args.hub_model_id or folder.absolute().name,
        task=pipeline_of(task_model),
        library_name="peft" if adapted else "pytorch" if module else "transformers",
        license=inherited(base_license),
        base_model=base,
        base_model_revision=revision,
        base_model_license=base_license,
        teacher={} if teacher is None else teacher_facts(teacher),
        student={
            **describe_model(task_model.model if not module else student),
            "labels": label_names(config),
            **({"tied": True} if module and doubles_of(student) else {}),
        },
        objective=objective.describe(),
        formula=str(objective),
        components=last_components(history, terms),
        history=log_rows(history),
        data={"labels_used": objective.needs_labels, "splits": splits},
        samples=read_samples(folder),
        exports=exports_of(folder),
        preprocessing=describe_processor(trainer.processing_class),
        results=results,
        claim=_claim(results, task_model.task.name, splits.get("evaluation")),
        training=_training_facts(trainer),
        carbon=measured_carbon(folder),
        environment=environment(),
        plots=["curves.png"] if (folder / "curves.png").is_file() else [],
        tags=["lora"] * (adapted and "LORA" in str(student.peft_config["default"].peft_type)),
    )


def write_card(
    make_card: Callable[[], StudentCard], folder: Path, arguments: Mapping[str, Any]
) -> None:
    """Write a model card that the Hub accepts to ``folder/README.md``.

    A finished training does not fail over its card: facts and arguments (of
    `Trainer.create_model_card`) that the Hub does not accept are corrected or left out, with one
    warning that lists them. If `make_card` raises, the card holds the arguments alone.
    """
    notes = []
    with warnings.catch_warnings(record=True, action="always", category=UserWarning) as caught:
        try:
            card = make_card()
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            notes.append(f"the facts of the run: left out, gathering them failed ({reason})")
            card = StudentCard(folder.absolute().name)
    notes += [str(warning.message) for warning in caught]
    folder.mkdir(parents=True, exist_ok=True)
    notes += write_mended(card, folder, arguments)
    if notes:
        listed = "\n- ".join(notes)
        warnings.warn(
            f"The model card in {folder} does not say all that it was given:\n- {listed}",
            stacklevel=3,
        )


def _split_sizes(trainer: Trainer) -> dict[str, int]:
    splits: dict[str, Any] = {"train": trainer.train_dataset, "evaluation": trainer.eval_dataset}
    sizes = {}
    for name, split in splits.items():
        if hasattr(split, "__len__") and not isinstance(split, dict):
            with contextlib.suppress(TypeError, NotImplementedError):  # streams have no length
                sizes[name] = len(split)
    return sizes


def _claim(
    results: Mapping[str, Mapping[str, float]], task: str, examples: int | None
) -> dict[str, Any]:
    """The confidence interval of an accuracy over the evaluation examples."""
    accuracy: Any = results.get("student", {}).get("accuracy")
    if not examples or task not in _PER_EXAMPLE:
        return {}
    if not isinstance(accuracy, int | float) or not 0 <= accuracy <= 1:  # percent, NaN, a list
        return {}
    return {"metric": "accuracy", "interval": accuracy_interval(accuracy, examples)}


def _last_results(history: list[dict[str, Any]], terms: list[str]) -> dict[str, dict[str, float]]:
    """Metrics of the last evaluation, of ``student`` and ``teacher``; losses are left out."""
    evaluations = (row for row in reversed(history) if any(k.startswith("eval_") for k in row))
    last: dict[str, Any] = next(evaluations, {})
    figures = {
        key.removeprefix("eval_"): value
        for key, value in last.items()
        if key.startswith("eval_") and not key.endswith(SPEED) and number(value) is not None
    }
    losses = ("loss", OTHER, *terms)
    measured = FIGURES - {"loss", OTHER}  # forward_kl_divergence, next to a term forward_kl
    own = {k: v for k, v in figures.items() if not k.startswith(COMPARED)}
    student = {k: v for k, v in own.items() if k in measured or not k.startswith(losses)}
    theirs = {k: v for k, v in figures.items() if k.startswith("teacher_")}
    teacher = {k.removeprefix("teacher_"): v for k, v in theirs.items()}
    return {model: rows for model, rows in (("student", student), ("teacher", teacher)) if rows}


def _training_facts(trainer: Trainer) -> dict[str, Any]:
    """The training arguments that belong on the card, seed, batch size and optimizer steps."""
    args, facts = trainer.args, dict[str, Any]()
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        changed = value != field.default and (value is not False or bool(field.default))
        if field.name in ALWAYS or (changed and is_on_card(field.name, value)):
            facts[field.name] = plain(value)
    batch = args.train_batch_size * args.gradient_accumulation_steps
    facts["effective batch size"] = batch * args.world_size
    facts["seed"] = args.seed
    facts["optimizer steps"] = trainer.state.global_step
    return facts
