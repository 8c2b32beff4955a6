"""Student and teachers that are trained together."""

from hf_distill.joint.trainer import JointTrainer

__all__ = ["JointTrainer"]
