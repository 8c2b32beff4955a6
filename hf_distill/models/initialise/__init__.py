"""Students made of their teacher: some of its layers, width and vocabulary; or static."""

from hf_distill.models.initialise.choosing import kept_tokens
from hf_distill.models.initialise.depth import Layers, kept_layers
from hf_distill.models.initialise.dropout import with_dropout
from hf_distill.models.initialise.folder import write_student
from hf_distill.models.initialise.importance import Importance, importance
from hf_distill.models.initialise.static import static_from_teacher
from hf_distill.models.initialise.student import student_from_teacher

__all__ = [
    "Importance",
    "Layers",
    "importance",
    "kept_layers",
    "kept_tokens",
    "static_from_teacher",
    "student_from_teacher",
    "with_dropout",
    "write_student",
]
