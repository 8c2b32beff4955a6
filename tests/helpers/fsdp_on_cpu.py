"""FSDP2 on two CPU processes: accelerate shards where there is an accelerator, here everywhere."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType


def allow_cpu() -> None:
    """Let accelerate do on CPUs (gloo) what it does on GPUs: for the rest of this process.

    `AcceleratorState` leaves an FSDP plugin aside where there is no accelerator, silently, and the
    run is one under DDP. What shards, clips, saves and loads is accelerate's and transformers' own.
    """
    made = AcceleratorState.__init__

    @functools.wraps(made)
    def init(self: Any, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        plugin = options.get("fsdp_plugin")
        if plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin
            if self._mixed_precision != "no":
                plugin.set_mixed_precision(self._mixed_precision)
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    mock.patch.object(AcceleratorState, "__init__", init).start()
