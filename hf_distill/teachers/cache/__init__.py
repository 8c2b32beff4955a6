"""Teacher outputs on disk: written once, found by the content of the example."""

from hf_distill.teachers.cache.publish import push_cache
from hf_distill.teachers.cache.recorded_views import (
    AllViews,
    AugmentationLog,
    RecordedViews,
    record_views,
)
from hf_distill.teachers.cache.store import ExampleStore, MissingExample
from hf_distill.teachers.cache.writer import write_cache

__all__ = [
    "AllViews",
    "AugmentationLog",
    "ExampleStore",
    "MissingExample",
    "RecordedViews",
    "push_cache",
    "record_views",
    "write_cache",
]
