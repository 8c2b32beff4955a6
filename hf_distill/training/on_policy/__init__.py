"""Distillation on text that the models write themselves."""

from hf_distill.training.on_policy.config import OnPolicyConfig
from hf_distill.training.on_policy.dataset import generate_dataset
from hf_distill.training.on_policy.generating import Generator, ModelGenerator, Sampling
from hf_distill.training.on_policy.trainer import OnPolicyDistillationTrainer

__all__ = [
    "Generator",
    "ModelGenerator",
    "OnPolicyConfig",
    "OnPolicyDistillationTrainer",
    "Sampling",
    "generate_dataset",
]
