"""One encoder with several named heads, for multi-task students."""

from hf_distill.models.multi_head.config import MultiHeadConfig
from hf_distill.models.multi_head.model import MultiHead
from hf_distill.models.multi_head.task import multi_task
from hf_distill.models.tasks import CUSTOM_TASKS

CUSTOM_TASKS[MultiHead.__name__] = multi_task

__all__ = ["MultiHead", "MultiHeadConfig"]
