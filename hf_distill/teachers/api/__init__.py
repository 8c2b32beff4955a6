"""Language models behind chat endpoints as teachers: labels, rationales and completions."""

from hf_distill.teachers.api.annotate import Annotation, annotate
from hf_distill.teachers.api.budget import Budget, BudgetError
from hf_distill.teachers.api.endpoint import ChatEndpoint, EndpointError

__all__ = ["Annotation", "Budget", "BudgetError", "ChatEndpoint", "EndpointError", "annotate"]
