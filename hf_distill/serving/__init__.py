"""A teacher as a process of its own, which many trainings can ask."""

from hf_distill.serving.command import add_parser, run
from hf_distill.serving.server import TeacherServer

__all__ = ["TeacherServer", "add_parser", "run"]
