"""Several teachers as one."""

from hf_distill.teachers.ensemble.teacher import Ensemble

__all__ = ["Ensemble"]
