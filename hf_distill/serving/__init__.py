"""A teacher as a process of its own, which many trainings can ask."""

from hf_distill.serving.command import run
from hf_distill.serving.server import TeacherServer

__all__ = ["TeacherServer", "run"]
