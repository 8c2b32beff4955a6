"""All that ``hf_distill`` exports by name; the package imports it when a name is asked for."""

from hf_distill import objectives
from hf_distill.cache import push_cache, write_cache
from hf_distill.config import DistillationConfig, Seq2SeqDistillationConfig
from hf_distill.initialise import student_from_teacher
from hf_distill.joint import JointTrainer
from hf_distill.language import LanguageCollator, pack, tokenize
from hf_distill.language_eval import lm_eval, side_by_side_samples
from hf_distill.layers import layer_map
from hf_distill.objectives import *  # noqa: F403 (every objective by its name)
from hf_distill.on_policy import (
    Generator,
    ModelGenerator,
    OnPolicyConfig,
    OnPolicyDistillationTrainer,
    Sampling,
    generate_dataset,
)
from hf_distill.schedules import Schedule
from hf_distill.seq2seq import Seq2SeqDistillationTrainer
from hf_distill.signals import Items, Needs, Signal, Sparse
from hf_distill.tasks import register_task
from hf_distill.teachers import (
    AdaptersOff,
    CachedTeacher,
    Ensemble,
    ModelTeacher,
    PastStudent,
    RemoteTeacher,
    ServerTeacher,
    Teacher,
    TranslatedTeacher,
)
from hf_distill.temperature import AdaptiveTemperature, LearnedTemperature
from hf_distill.terms import Objective, Sum, Term
from hf_distill.trainer import DistillationTrainer
from hf_distill.views import Views
from hf_distill.weights import Share

__all__ = [
    "AdaptersOff",
    "AdaptiveTemperature",
    "CachedTeacher",
    "DistillationConfig",
    "DistillationTrainer",
    "Ensemble",
    "Generator",
    "Items",
    "JointTrainer",
    "LanguageCollator",
    "LearnedTemperature",
    "ModelGenerator",
    "ModelTeacher",
    "Needs",
    "Objective",
    "OnPolicyConfig",
    "OnPolicyDistillationTrainer",
    "PastStudent",
    "RemoteTeacher",
    "Sampling",
    "Schedule",
    "Seq2SeqDistillationConfig",
    "Seq2SeqDistillationTrainer",
    "ServerTeacher",
    "Share",
    "Signal",
    "Sparse",
    "Sum",
    "Teacher",
    "Term",
    "TranslatedTeacher",
    "Views",
    "generate_dataset",
    "layer_map",
    "lm_eval",
    "pack",
    "push_cache",
    "register_task",
    "side_by_side_samples",
    "student_from_teacher",
    "tokenize",
    "write_cache",
]
__all__ += objectives.__all__
