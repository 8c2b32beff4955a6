"""Student and teachers that are trained together."""

from hf_distill.training.joint.trainer import OnlineDistillationTrainer

__all__ = ["OnlineDistillationTrainer"]
