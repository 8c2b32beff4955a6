"""Fixtures that several files of attacks share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_trainers
from caches import FORMATS, Asking
from strangers import Counted

from hf_distill.teachers.serving import TeacherServer
from tests.teachers.remote.test_vllm_teacher import tokenizer


@pytest.fixture
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def asking(folder: Path) -> dict[str, Asking]:
    """Processes that read the caches of the module's ``folder``."""
    return {name: Asking(folder / name) for name in FORMATS}


@pytest.fixture(scope="module")
def teacher() -> Counted:
    return Counted(tiny_trainers.models()[1])


@pytest.fixture(scope="module")
def url(teacher: Counted) -> Iterator[str]:
    """A server with small limits."""
    with TeacherServer(teacher, max_bytes=1 << 20, max_tokens=256, max_elements=50_000) as server:
        yield server.url


@pytest.fixture(scope="module")
def writer() -> Counted:
    return Counted(tiny_trainers.models("causal_lm")[1])


@pytest.fixture(scope="module")
def texts(writer: Counted) -> Iterator[str]:
    """A server of a language model."""
    with TeacherServer(writer, tokenizer=tokenizer(), name="tiny") as server:
        yield server.url
