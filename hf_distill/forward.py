"""Running code inside a wrapped model's forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

Result = TypeVar("Result")


def inside_forward(wrapper: nn.Module, module: nn.Module, run: Callable[[], Result]) -> Result:
    """Call ``run`` from inside ``wrapper``'s forward, where it may call ``module``.

    DDP, FSDP2 and ZeRO prepare and watch what happens within their forward. A loss computed
    outside uses parameters (projections, a head called on its own) that they then miss.

    Args:
        wrapper: What `accelerate` made of the module.
        module: The module inside.
        run: Called once, with the module's own forward in place again.
    """
    own = module.__dict__.get("forward")

    def restore() -> None:
        if own is None:
            module.__dict__.pop("forward", None)
        else:
            module.forward = own

    def redirected(*args: Any, **kwargs: Any) -> Result:
        restore()
        return run()

    module.forward = redirected
    try:
        return wrapper()
    finally:
        restore()
