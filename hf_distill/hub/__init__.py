"""Publishing a student: its model card, the push to the Hub, a family's collection."""

from .card import StudentCard, render, write
from .check import card_problems, hub_id, validate
from .collection import push_to_collection
from .files import PUBLISHED, folder_problems, published_files
from .push import push_folder
from .samples import Sample, read_samples, write_samples

__all__ = [
    "PUBLISHED",
    "Sample",
    "StudentCard",
    "card_problems",
    "folder_problems",
    "hub_id",
    "published_files",
    "push_folder",
    "push_to_collection",
    "read_samples",
    "render",
    "validate",
    "write",
    "write_samples",
]
