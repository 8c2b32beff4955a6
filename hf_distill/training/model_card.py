"""What a run knows of itself, for the card of its student."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.models.auto import modeling_auto

from hf_distill.evaluation.metrics.functional import number
from hf_distill.hub import StudentCard
from hf_distill.hub.inherit import local_card
from hf_distill.hub.mending import CARD_ARGUMENTS, write_mended
from hf_distill.hub.samples import read_samples
from hf_distill.hub.values import inherited
from hf_distill.models.modules import doubles_of
from hf_distill.models.task_model import TaskModel, describe_model
from hf_distill.objectives.base.objective import WeightedSum
from hf_distill.teachers import Teacher
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
}
"""Task -> the Hub's pipeline tag, where there is one."""
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
"""The same for heads without a row of their own: ``MODEL_FOR_…_MAPPING_NAMES`` -> tag."""

_PER_EXAMPLE = ("sequence_classification", "image_classification", "audio_classification")
"""Tasks whose accuracy is a share of the examples."""

SPEED = ("runtime", "_per_second", "preparation_time", "epoch", "step")
COMPARED = ("teacher_", "retained_")


def pipeline_of(task_model: TaskModel) -> str | None:
    """The Hub's pipeline tag of a model, if it has one."""
    name = type(task_model.model).__name__
    for mapping, tag in OTHERS.items() if task_model.task.name == "other" else ():
        if name in getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES", {}).values():
            return tag
    return PIPELINES.get(task_model.task.name)


class CardFacts(Trainer):
    """The part of the trainer that writes the model card."""

    teacher: Teacher | None
    training_objective: WeightedSum
    _task_model: TaskModel

    @property
    def _student(self) -> nn.Module:
        raise NotImplementedError

    def student_card(self) -> StudentCard:
        """The facts of this run, as far as the trainer knows them; change what you know better."""
        student: Any = self._student
        adapted = isinstance(student, PeftModel)
        module = not isinstance(student, PreTrainedModel | PeftModel)
        folder = Path(str(self.args.output_dir))
        config = self._task_model.config
        base = getattr(config, "_name_or_path", None) or None
        revision = getattr(config, "_commit_hash", None)
        base_license = local_card(base, revision).get("license")
        results = self._last_results()
        terms = [name for name, _, _ in self.training_objective.named()]
        return StudentCard(
            model_name=self.args.hub_model_id or folder.absolute().name,
            task=pipeline_of(self._task_model),
            library_name="peft" if adapted else "pytorch" if module else "transformers",
            license=inherited(base_license),
            base_model=base,
            base_model_revision=revision,
            base_model_license=base_license,
            teacher={} if self.teacher is None else teacher_facts(self.teacher),
            student={
                **describe_model(self._task_model.model if not module else student),
                "labels": label_names(config),
                **({"tied": True} if module and doubles_of(student) else {}),
            },
            objective=self.training_objective.describe(),
            formula=str(self.training_objective),
            components=last_components(self.state.log_history, terms),
            history=log_rows(self.state.log_history),
            data={
                "labels_used": self.training_objective.needs_labels,
                "splits": self._split_sizes(),
            },
            samples=read_samples(folder),
            exports=exports_of(folder),
            preprocessing=describe_processor(self.processing_class),
            results=results,
            claim=self._evidence(results),
            training=self._training_facts(),
            carbon=measured_carbon(folder),
            environment=environment(),
            plots=["curves.png"] if (folder / "curves.png").is_file() else [],
            tags=["lora"] * (adapted and "LORA" in str(student.peft_config["default"].peft_type)),
        )

    def _split_sizes(self) -> dict[str, int]:
        splits: dict[str, Any] = {"train": self.train_dataset, "evaluation": self.eval_dataset}
        sizes = {}
        for name, split in splits.items():
            if hasattr(split, "__len__") and not isinstance(split, dict):
                with contextlib.suppress(TypeError, NotImplementedError):  # streams have no length
                    sizes[name] = len(split)
        return sizes

    def _evidence(self, results: dict[str, dict[str, float]]) -> dict[str, Any]:
        """The interval of an accuracy over the evaluation examples."""
        accuracy: Any = results.get("student", {}).get("accuracy")
        examples = self._split_sizes().get("evaluation")
        if not examples or self._task_model.task.name not in _PER_EXAMPLE:
            return {}
        if not isinstance(accuracy, int | float) or not 0 <= accuracy <= 1:  # percent, NaN, a list
            return {}
        return {"metric": "accuracy", "interval": accuracy_interval(accuracy, examples)}

    def _last_results(self) -> dict[str, dict[str, float]]:
        """The numbers of the last evaluation: the student's figures, and the teacher's own."""
        last: dict[str, Any] = {}
        for row in self.state.log_history:
            if any(key.startswith("eval_") for key in row):
                last = row
        figures = {
            key.removeprefix("eval_"): value
            for key, value in last.items()
            if key.startswith("eval_") and not key.endswith(SPEED) and number(value) is not None
        }
        terms = ("loss", "other", *(name for name, _, _ in self.training_objective.named()))
        student = {k: v for k, v in figures.items() if not k.startswith((*COMPARED, *terms))}
        theirs = {k: v for k, v in figures.items() if k.startswith("teacher_")}
        teacher = {k.removeprefix("teacher_"): v for k, v in theirs.items()}
        return {model: rows for model, rows in (("student", student), ("teacher", teacher)) if rows}

    def _training_facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        for field in dataclasses.fields(self.args):
            value = getattr(self.args, field.name)
            changed = value != field.default and (value is not False or bool(field.default))
            if field.name in ALWAYS or (changed and is_on_card(field.name, value)):
                facts[field.name] = plain(value)
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        facts["effective batch size"] = batch * self.args.world_size
        facts["seed"] = self.args.seed
        facts["optimizer steps"] = self.state.global_step
        return facts

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the student's card to ``output_dir/README.md``; arguments as in `Trainer`.

        A value that the Hub does not know ends no finished training: it is brought to what the Hub
        knows (``en_XX`` to ``en``, ``Apache-2.0`` to ``apache-2.0``), replaced by what the trainer
        knows, or left out, and one warning names each. `hf_distill.hub.write`, ``hf-distill card
        check`` and ``hf-distill push`` refuse such values.
        """
        given = locals()
        if not self.is_world_process_zero():
            return
        folder, notes = Path(str(self.args.output_dir)), []
        with warnings.catch_warnings(record=True, action="always", category=UserWarning) as caught:
            try:
                card = self.student_card()
            except Exception as error:  # the student is finished: its card is no reason to lose it
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                notes.append(f"the facts of the run: left out, gathering them failed ({reason})")
                card = StudentCard(folder.absolute().name)
        notes += [str(warning.message) for warning in caught]
        folder.mkdir(parents=True, exist_ok=True)
        notes += write_mended(card, folder, {name: given[name] for name in CARD_ARGUMENTS})
        if notes:
            listed = "\n- ".join(notes)
            warnings.warn(
                f"The model card in {folder} does not say all that it was given:\n- {listed}",
                stacklevel=2,
            )
