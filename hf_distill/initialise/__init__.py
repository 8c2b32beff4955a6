"""Students made of parts of their teacher: some of its layers, of its width, of its vocabulary."""

from hf_distill.initialise.depth import Layers, kept_layers
from hf_distill.initialise.dropout import with_dropout
from hf_distill.initialise.folder import write_student
from hf_distill.initialise.student import student_from_teacher

__all__ = ["Layers", "kept_layers", "student_from_teacher", "with_dropout", "write_student"]
