"""Publishing a student: its model card and the push to the Hub."""

from .card import StudentCard, render, write
from .check import hub_id, validate
from .push import PUBLISHED, published_files, push_folder

__all__ = [
    "PUBLISHED",
    "StudentCard",
    "hub_id",
    "published_files",
    "push_folder",
    "render",
    "validate",
    "write",
]
