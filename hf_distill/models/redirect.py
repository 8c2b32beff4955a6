"""Redirected forwards: a function run inside a module's forward, or in its place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

Result = TypeVar("Result")


def redirected_forward(wrapper: nn.Module, module: nn.Module, run: Callable[[], Result]) -> Result:
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


@contextlib.contextmanager
def calling(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace a module's computation between its hooks."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
