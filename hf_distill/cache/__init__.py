"""A teacher's outputs on disk: written once, found by the content of the example."""

from hf_distill.cache.publish import push_cache
from hf_distill.cache.recorded import AllViews, RecordedViews, Records, record_views
from hf_distill.cache.store import MissingExample, Store
from hf_distill.cache.writer import write_cache

__all__ = [
    "AllViews",
    "MissingExample",
    "RecordedViews",
    "Records",
    "Store",
    "push_cache",
    "record_views",
    "write_cache",
]
