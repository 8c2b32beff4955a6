"""Setups of the pages on models."""

from __future__ import annotations

from typing import Any

import pytest

from hf_distill.models import tasks


def own_tables(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Keep the tasks that a page registers out of other tests."""
    monkeypatch.setattr(tasks, "TASKS", dict(tasks.TASKS))
    monkeypatch.setattr(tasks, "CUSTOM_TASKS", dict(tasks.CUSTOM_TASKS))
    return {}
