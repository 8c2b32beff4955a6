"""Knowledge distillation as a Hugging Face Trainer."""

from hf_distill.config import DistillationConfig, Seq2SeqDistillationConfig
from hf_distill.layers import layer_map, take_layers
from hf_distill.objectives import (
    OBJECTIVES,
    ForwardKL,
    HardLabels,
    HiddenStates,
    JensenShannon,
    LogitMSE,
    ReverseKL,
    WeightDecay,
    objective_from,
)
from hf_distill.schedules import Schedule
from hf_distill.seq2seq import Seq2SeqDistillationTrainer
from hf_distill.signals import Items, Needs, Signal
from hf_distill.teachers import ModelTeacher, Teacher
from hf_distill.terms import Objective, Sum, Term
from hf_distill.trainer import DistillationTrainer

__version__ = "0.1.0"

__all__ = [
    "OBJECTIVES",
    "DistillationConfig",
    "DistillationTrainer",
    "ForwardKL",
    "HardLabels",
    "HiddenStates",
    "Items",
    "JensenShannon",
    "LogitMSE",
    "ModelTeacher",
    "Needs",
    "Objective",
    "ReverseKL",
    "Schedule",
    "Seq2SeqDistillationConfig",
    "Seq2SeqDistillationTrainer",
    "Signal",
    "Sum",
    "Teacher",
    "Term",
    "WeightDecay",
    "layer_map",
    "objective_from",
    "take_layers",
]
