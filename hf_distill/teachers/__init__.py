"""Teachers: whatever gives a `Signal` for a batch."""

from hf_distill.teachers.model import ModelTeacher
from hf_distill.teachers.protocol import Teacher

__all__ = ["ModelTeacher", "Teacher"]
