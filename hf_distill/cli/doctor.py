"""``hf-distill doctor``."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hf_distill import __version__
from hf_distill.cli.base import Parser, Say

HELP = "check this machine: versions, devices, disk, Hub"
DESCRIPTION = "Show versions, devices, memory, free disk, trackers, and access to the Hub."
EPILOG = """examples:
  hf-distill doctor
  hf-distill doctor --json > doctor.json     # for a bug report; contains no token
  HF_HUB_OFFLINE=1 hf-distill doctor         # without network

exit codes: 0 usable; 1 a required package is broken, see `problem:`.
"""
ESSENTIAL = ("torch", "transformers", "accelerate", "datasets", "peft", "huggingface_hub")
OPTIONAL = (
    *("matplotlib", "sklearn", "PIL", "onnx", "onnxruntime", "foolbox", "shtab", "codecarbon"),
    *("tensorboard", "trackio", "wandb", "mlflow"),
)
"""Modules by the names that are imported."""
PACKAGES = {"sklearn": "scikit-learn", "PIL": "pillow", "huggingface_hub": "huggingface-hub"}
ROOM = 100 * 2**20
"""Bytes without which not even a small student can be kept."""
TIMEOUT = 5.0
"""Seconds."""


def add_arguments(command: Parser) -> None:
    """Add the arguments."""
    command.add_argument("--json", action="store_true", help="as JSON, for bug reports")


def run(args: argparse.Namespace, say: Say) -> int:
    """Print the findings."""
    problems: list[str] = []
    found = {
        "versions": _versions(problems),
        "optional": {name: _version(name) for name in OPTIONAL},
        "devices": _devices(),
        "disk": _disk(problems),
        "hub": _hub(),
        "problems": problems,
    }
    say(json.dumps(found, indent=1) if args.json else _text(found))
    return 1 if problems else 0


def _text(found: dict[str, Any]) -> str:
    lines = []
    for section, facts in found.items():
        if section != "problems":
            lines.append(section)
            lines += [f"  {name}: {_shown(value)}" for name, value in facts.items()]
    return "\n".join([*lines, *([f"problem: {one}" for one in found["problems"]] or ["ready"])])


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    return str(value)


def _version(name: str) -> str | None:
    """Version of an installed package; None if it is missing."""
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.metadata.version(PACKAGES.get(name, name))
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"


def _versions(problems: list[str]) -> dict[str, str | None]:
    """Versions of required packages, which are imported: an installed one may be broken."""
    from packaging.requirements import Requirement

    found: dict[str, str | None] = {
        "hf_distill": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for name in ESSENTIAL:
        found[name] = _version(name)
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a broken installation raises
            first = next(iter(str(error).splitlines()), "")
            problems.append(f"import {name} fails: {type(error).__name__}: {first}")
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # a checkout
        for needed in map(Requirement, importlib.metadata.requires("hf_distill") or []):
            name = needed.name.replace("-", "_")
            version = found.get(name)
            fits = not version or needed.specifier.contains(version, prereleases=True)
            if needed.marker is None and not fits:
                problems.append(f"{name} {version} is installed, {needed} is needed")
    return found


def _devices() -> dict[str, Any]:
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    free = f"{_size(memory.available)} of {_size(memory.total)}"
    found: dict[str, Any] = {"cpu cores": cores, "available memory": free}
    try:
        import torch
    except Exception:  # told among the problems
        return found
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    gpus = map(torch.cuda.get_device_properties, cuda)
    found["cuda"] = [
        f"{g.name} ({_size(g.total_memory)}, {'bf16' if g.major >= 8 else 'no bf16'})" for g in gpus
    ]
    found["mps"] = torch.backends.mps.is_available()
    return found


def _disk(problems: list[str]) -> dict[str, str]:
    caches = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    cache = os.environ.get("HF_HOME") or caches / "huggingface"
    found = {}
    for name, folder in (("cache", Path(cache).expanduser()), ("here", Path.cwd())):
        existing = next(path for path in (folder, *folder.parents) if path.is_dir())
        free = shutil.disk_usage(existing).free
        found[name] = f"{_size(free)} free in {folder}"
        if not os.access(existing, os.W_OK):
            problems.append(f"{existing} cannot be written")
        elif free < ROOM:
            problems.append(f"{_size(free)} are free in {folder}, {_size(ROOM)} are needed")
    return found


def _hub() -> dict[str, Any]:
    """Availability of the Hub and the account of the token; the token is not shown."""
    try:
        from huggingface_hub import constants, get_session, get_token
        from huggingface_hub.utils import build_hf_headers
    except Exception:  # told among the problems
        return {}
    token = get_token()
    found = {"endpoint": _without_login(constants.ENDPOINT), "token": token is not None}
    if constants.HF_HUB_OFFLINE:
        return {**found, "answers": "not asked, HF_HUB_OFFLINE is set"}
    try:
        answer = get_session().get(
            f"{constants.ENDPOINT}/api/whoami-v2", headers=build_hf_headers(), timeout=TIMEOUT
        )
        name = answer.json().get("name") if answer.status_code == 200 else None
    except Exception as error:  # of whichever client the version of the hub's library has
        return {**found, "answers": f"no: {type(error).__name__} within {TIMEOUT:.0f} s"}
    found["answers"] = answer.status_code < 500 or f"no: status {answer.status_code}"
    if token is not None:
        found["user"] = name or f"the token is not accepted: status {answer.status_code}"
    return found


def _without_login(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
