"""What must not reach the Hub, made up at run time, and a student that is ready to be pushed."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from hub_server import HubServer
from safetensors.numpy import save_file

from hf_distill.hub import StudentCard, push_folder, write

BODY = "aB3x9Q" * 8
TOKENS = {
    "Hub token": "hf_" + BODY[:34],
    "Hub organisation": "api_org_" + BODY[:34],
    **{f"GitHub {kind}": f"gh{kind}_" + BODY[:36] for kind in "pousr"},
    "GitHub fine-grained": "github_" + "pat_" + BODY[:22] + "_" + BODY[:40],
    "GitLab": "glpat" + "-" + BODY[:20],
    "AWS": "AKIA" + "Q7W8E9R0T1Y2U3I4",
    "OpenAI": "sk-" + "proj-" + BODY[:40],
    "Slack": "xoxb" + "-1234567890-" + BODY[:24],
    "Slack webhook": "https://hooks.slack.com/services/" + f"T0AAAAAAA/B0AAAAAAA/{BODY[:24]}",
    "Google": "AIza" + BODY[:35],
    "JSON Web Token": ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "HS256", "typ": "JWT"}, {"sub": "1234567890"}, "signature of it")
    ),
    "PyPI": "pypi-" + "AgEIcHlwaS5vcmc" + BODY,
    "npm": "npm_" + BODY[:36],
    "Stripe": "sk_" + "live_" + BODY[:24],
    "SendGrid": "SG." + BODY[:22] + "." + BODY[:43],
    "Azure storage": base64.b64encode(bytes(range(190, 254))).decode(),
    "private key": "-----BEGIN " + "OPENSSH PRIVATE KEY-----",
    "PGP key": "-----BEGIN " + "PGP PRIVATE KEY BLOCK-----",
    "variable": "WANDB_API" + "_KEY=" + BODY[:40],
    "password": "postgres://" + "me:hunter2hunter2@db.example.org/films",
    "?token=": "https://example.org/data.tsv?" + "token=" + BODY[:20],
    "signed URL": "https://x.blob.core.windows.net/d?sv=2022&" + "sig=" + BODY[:43] + "%3D",
    "bearer": "Authorization: " + "Bearer " + BODY[:40],
    "basic": "Authorization: " + "Basic " + BODY[:40] + "=",
}
HOMES = {
    "Linux home": "/home/agent47/films",
    "macOS home": "/Users/agent47/films",
    "Windows home": "C:\\Users\\agent47\\films",
}
PLACES = {
    "40 digits": "da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "file URL": "file:///srv/agent49/films",
    "UNC path": "\\\\fileserver\\agent47\\films",
    "S3": "s3://agent47-private/films",
    "private network": "http://10.1.2.3/films",
    "intranet": "https://wiki.agent47.internal/films",
    "e-mail": "agent47@agency.gov",
    "SSH": "git@git.agency.gov:agent47/films.git",
}
FORMS = {**TOKENS, **HOMES, **PLACES}
"""Everything that no settings written by a program may hold."""


def student(folder: Path) -> Path:
    """A finished student with its card: nothing speaks against publishing it."""
    (folder / "plots").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert", "hidden_size": 16}')
    save_file({"w": np.zeros(4, np.float32)}, folder / "model.safetensors", {"format": "np"})
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\nfilm\n")
    (folder / "plots/curves.png").write_bytes(png())
    facts: dict[str, Any] = {"task": "text-classification", "plots": ["plots/curves.png"]}
    write(StudentCard("student", **facts), folder)
    return folder


def png(*chunks: tuple[bytes, bytes], after: bytes = b"") -> bytes:
    """A picture of one pixel with further chunks (their kind and content), and bytes after it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0"))
    middle = b"".join(chunk(kind, data) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + head + middle + pixels + chunk(b"IEND", b"") + after


@contextmanager
def loopback(home: Path) -> Iterator[HubServer]:
    """A Hub of this process's own, to which huggingface_hub talks meanwhile."""
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        patch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
        yield hub


def push(folder: Path, repo: str = "tester/student") -> None:
    push_folder(folder, repo, token="dummy")


@contextmanager
def refused(hub: HubServer, words: str) -> Iterator[None]:
    """The body is refused with these words, before the Hub was asked for anything at all."""
    asked = len(hub.requests)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        yield
    assert hub.requests[asked:] == []


@contextmanager
def put(path: Path, content: bytes) -> Iterator[None]:
    """A file with this content, and after the block what was there before."""
    before = path.read_bytes() if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    try:
        yield
    finally:
        path.unlink() if before is None else path.write_bytes(before)
