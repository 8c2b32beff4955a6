"""What the attacks on a `TeacherServer` share: a counted teacher, and the bytes of requests."""

from __future__ import annotations

import time
from typing import Any

import torch

from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.teachers import ModelTeacher
from hf_distill.teachers.remote.wire import to_bytes

OWN = "Host: localhost\r\n"
GOOD = f"GET /health HTTP/1.1\r\n{OWN}\r\n".encode()
IDS = torch.full((2, 5), 7)


class Counted(ModelTeacher):
    """Counts its calls, and how many are under way at once; takes its time where that is asked."""

    calls, under_way, most, seconds = 0, 0, 0, 0.0

    def __call__(self, batch: Any, needs: Needs, items: BatchItems) -> Signal:
        self.calls += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        time.sleep(self.seconds)
        try:
            return super().__call__(batch, needs, items)
        finally:
            self.under_way -= 1


def posted(fields: str, body: str = "xx", version: str = "1.1") -> bytes:
    return f"POST /signal HTTP/{version}\r\n{OWN}{fields}\r\n{body}".encode("latin-1")


def signal_body(batch: dict[str, Any], **changes: Any) -> bytes:
    rows = 2
    items = {"masks": {"samples": torch.ones(rows, dtype=torch.bool)}, "labels": None}
    needs = {"logits": True}
    return to_bytes({"batch": batch, "items": items, "needs": needs, "top_k": None, **changes})
