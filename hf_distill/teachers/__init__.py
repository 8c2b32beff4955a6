"""Teachers: whatever gives a `Signal` for a batch."""

from hf_distill.teachers.adapters import AdaptersOff
from hf_distill.teachers.cached import CachedTeacher
from hf_distill.teachers.ensemble import Ensemble
from hf_distill.teachers.model import ModelTeacher
from hf_distill.teachers.past import PastStudent
from hf_distill.teachers.protocol import Teacher
from hf_distill.teachers.remote import RemoteTeacher
from hf_distill.teachers.server import ServerTeacher
from hf_distill.teachers.translated import TranslatedTeacher

__all__ = [
    "AdaptersOff",
    "CachedTeacher",
    "Ensemble",
    "ModelTeacher",
    "PastStudent",
    "RemoteTeacher",
    "ServerTeacher",
    "Teacher",
    "TranslatedTeacher",
]
