"""A teacher in a process of its own, from which many trainings request outputs."""

from hf_distill.teachers.serving.server import TeacherServer

__all__ = ["TeacherServer"]
