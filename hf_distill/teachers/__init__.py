"""Teachers: sources of a `Signal` for a batch."""

from hf_distill.teachers.add_columns import add_teacher_columns
from hf_distill.teachers.cache.teacher import CachedTeacher
from hf_distill.teachers.columns import ColumnTeacher
from hf_distill.teachers.cross_tokenizer.teacher import CrossTokenizerTeacher
from hf_distill.teachers.ensemble.teacher import Ensemble
from hf_distill.teachers.model import ModelTeacher
from hf_distill.teachers.protocol import Teacher
from hf_distill.teachers.remote.http_teacher import HTTPTeacher
from hf_distill.teachers.remote.vllm_teacher import VLLMTeacher
from hf_distill.teachers.self_teachers import BaseModelTeacher, EMATeacher
from hf_distill.teachers.tasks import TaskTeachers

__all__ = [
    "BaseModelTeacher",
    "CachedTeacher",
    "ColumnTeacher",
    "CrossTokenizerTeacher",
    "EMATeacher",
    "Ensemble",
    "HTTPTeacher",
    "ModelTeacher",
    "TaskTeachers",
    "Teacher",
    "VLLMTeacher",
    "add_teacher_columns",
]
