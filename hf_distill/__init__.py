"""Knowledge distillation as a Hugging Face Trainer.

A name is imported when it is first used: ``hf-distill --help``, or one module of the package, does
not wait for all of it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; the same names as in _EXPORTS
    from hf_distill.data.language import LanguageCollator as LanguageCollator
    from hf_distill.data.language import pack as pack
    from hf_distill.data.language import tokenize as tokenize
    from hf_distill.data.multi_task import MultiTaskCollator as MultiTaskCollator
    from hf_distill.data.views import Views as Views
    from hf_distill.data.views import drop_tokens as drop_tokens
    from hf_distill.data.views import flip as flip
    from hf_distill.data.views import mixup as mixup
    from hf_distill.data.views import shift as shift
    from hf_distill.evaluation.curves import CurvesCallback as CurvesCallback
    from hf_distill.evaluation.generation import lm_eval as lm_eval
    from hf_distill.evaluation.generation import side_by_side_samples as side_by_side_samples
    from hf_distill.evaluation.metrics import load_metric as load_metric
    from hf_distill.evaluation.multi_task import metrics_of_heads as metrics_of_heads
    from hf_distill.evaluation.speculative import measured_acceptance as measured_acceptance
    from hf_distill.models.initialise import importance as importance
    from hf_distill.models.initialise import student_from_teacher as student_from_teacher
    from hf_distill.models.multi_head import MultiHead as MultiHead
    from hf_distill.models.multi_head import MultiHeadConfig as MultiHeadConfig
    from hf_distill.models.signals import BatchItems as BatchItems
    from hf_distill.models.signals import Needs as Needs
    from hf_distill.models.signals import Signal as Signal
    from hf_distill.models.signals import SparseProbs as SparseProbs
    from hf_distill.models.tasks import register_task as register_task
    from hf_distill.objectives import *  # noqa: F403 (every objective)
    from hf_distill.objectives.base.layers import layer_map as layer_map
    from hf_distill.objectives.base.loss_weights import LossShare as LossShare
    from hf_distill.objectives.base.objective import Objective as Objective
    from hf_distill.objectives.base.objective import Term as Term
    from hf_distill.objectives.base.objective import WeightedSum as WeightedSum
    from hf_distill.objectives.base.schedules import Schedule as Schedule
    from hf_distill.objectives.base.temperature import AdaptiveTemperature as AdaptiveTemperature
    from hf_distill.objectives.base.temperature import LearnedTemperature as LearnedTemperature
    from hf_distill.teachers import BaseModelTeacher as BaseModelTeacher
    from hf_distill.teachers import CachedTeacher as CachedTeacher
    from hf_distill.teachers import ColumnTeacher as ColumnTeacher
    from hf_distill.teachers import CrossTokenizerTeacher as CrossTokenizerTeacher
    from hf_distill.teachers import EMATeacher as EMATeacher
    from hf_distill.teachers import Ensemble as Ensemble
    from hf_distill.teachers import HTTPTeacher as HTTPTeacher
    from hf_distill.teachers import ModelTeacher as ModelTeacher
    from hf_distill.teachers import TaskTeachers as TaskTeachers
    from hf_distill.teachers import Teacher as Teacher
    from hf_distill.teachers import VLLMTeacher as VLLMTeacher
    from hf_distill.teachers import add_teacher_columns as add_teacher_columns
    from hf_distill.teachers.cache import AllViews as AllViews
    from hf_distill.teachers.cache import RecordedViews as RecordedViews
    from hf_distill.teachers.cache import push_cache as push_cache
    from hf_distill.teachers.cache import record_views as record_views
    from hf_distill.teachers.cache import write_cache as write_cache
    from hf_distill.training.config import DistillationConfig as DistillationConfig
    from hf_distill.training.config import Seq2SeqDistillationConfig as Seq2SeqDistillationConfig
    from hf_distill.training.joint import OnlineDistillationTrainer as OnlineDistillationTrainer
    from hf_distill.training.on_policy import Generator as Generator
    from hf_distill.training.on_policy import ModelGenerator as ModelGenerator
    from hf_distill.training.on_policy import OnPolicyConfig as OnPolicyConfig
    from hf_distill.training.on_policy import (
        OnPolicyDistillationTrainer as OnPolicyDistillationTrainer,
    )
    from hf_distill.training.on_policy import Sampling as Sampling
    from hf_distill.training.on_policy import generate_dataset as generate_dataset
    from hf_distill.training.seq2seq import Seq2SeqDistillationTrainer as Seq2SeqDistillationTrainer
    from hf_distill.training.trainer import DistillationTrainer as DistillationTrainer

__version__ = "0.1.0"
_EXPORTS = {
    "data.language": "LanguageCollator pack tokenize",
    "data.multi_task": "MultiTaskCollator",
    "data.views": "Views drop_tokens flip mixup shift",
    "evaluation.curves": "CurvesCallback",
    "evaluation.generation": "lm_eval side_by_side_samples",
    "evaluation.metrics": "load_metric",
    "evaluation.multi_task": "metrics_of_heads",
    "evaluation.speculative": "measured_acceptance",
    "models.initialise": "importance student_from_teacher",
    "models.multi_head": "MultiHead MultiHeadConfig",
    "models.signals": "BatchItems Needs Signal SparseProbs",
    "models.tasks": "register_task",
    "objectives.base.layers": "layer_map",
    "objectives.base.loss_weights": "LossShare",
    "objectives.base.objective": "Objective Term WeightedSum",
    "objectives.base.schedules": "Schedule",
    "objectives.base.temperature": "AdaptiveTemperature LearnedTemperature",
    "teachers": (
        "BaseModelTeacher CachedTeacher ColumnTeacher CrossTokenizerTeacher EMATeacher Ensemble"
        " HTTPTeacher ModelTeacher TaskTeachers Teacher VLLMTeacher add_teacher_columns"
    ),
    "teachers.cache": "AllViews RecordedViews push_cache record_views write_cache",
    "training.config": "DistillationConfig Seq2SeqDistillationConfig",
    "training.joint": "OnlineDistillationTrainer",
    "training.on_policy": (
        "Generator ModelGenerator OnPolicyConfig OnPolicyDistillationTrainer Sampling"
        " generate_dataset"
    ),
    "training.seq2seq": "Seq2SeqDistillationTrainer",
    "training.trainer": "DistillationTrainer",
}
"""Module -> the names that it exports here; all of `hf_distill.objectives` besides."""
_PACKAGES = {
    *("cli", "data", "evaluation", "export", "hub", "losses", "models", "objectives", "recipe"),
    *("robustness", "teachers", "training", "utils"),
}
_MODULE = {name: module for module, names in _EXPORTS.items() for name in names.split()}


def _objectives() -> list[str]:
    names: list[str] = importlib.import_module("hf_distill.objectives").__all__
    return names


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return [*_MODULE, *_objectives()]
    if name in _MODULE:
        return getattr(importlib.import_module(f"hf_distill.{_MODULE[name]}"), name)
    if not name.startswith("_"):
        if name in _PACKAGES:
            return importlib.import_module(f"hf_distill.{name}")
        if name in _objectives():
            return getattr(importlib.import_module("hf_distill.objectives"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
