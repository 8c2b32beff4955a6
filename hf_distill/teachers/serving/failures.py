"""Errors of a forward: the request's, this machine's memory, or a device that is lost."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator

import torch

from hf_distill.teachers.serving.limits import BadRequest

logger = logging.getLogger(__name__)

LOST = re.compile(
    r"(CUDA|HIP|XPU|MPS|cuBLAS|CUBLAS|cuDNN|CUDNN|NCCL)[ _]*(backend |kernel )?(error|STATUS)"
    r"|device-side assert|illegal memory access|unspecified launch failure",
    re.IGNORECASE,
)
ACCELERATOR: tuple[type[BaseException], ...] = tuple(
    filter(None, [getattr(torch, "AcceleratorError", None)])  # since PyTorch 2.8
)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_device_failure(error: BaseException) -> bool:
    """Return True if an error means that the device of this process is lost: later calls fail
    too."""
    return any(_is_lost(each) for each in causes(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if memory ran out, of which there may be enough for another request."""
    return any(
        isinstance(each, MemoryError) or "out of memory" in str(each).lower()
        for each in causes(error)
    )


def _is_lost(error: BaseException) -> bool:
    text = str(error)
    if "out of memory" in text.lower():
        return False
    known = isinstance(error, RuntimeError) and LOST.search(text) is not None
    return known or (bool(ACCELERATOR) and isinstance(error, ACCELERATOR))


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Context of a forward that attributes errors to the request or to the machine.

    Raises:
        Refused: 400, where what it reads made it fail.
    """
    try:
        yield
    except BadRequest:
        raise
    except Exception as error:
        if isinstance(error, OSError) or is_device_failure(error) or is_out_of_memory(error):
            raise
        logger.info("a batch could not be read", exc_info=True)
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise BadRequest(400, f"The model cannot read this batch: {text}"[:2000]) from error
