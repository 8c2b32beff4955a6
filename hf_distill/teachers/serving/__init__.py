"""HTTP server of one teacher for many trainings."""

from hf_distill.teachers.serving.server import TeacherServer

__all__ = ["TeacherServer"]
