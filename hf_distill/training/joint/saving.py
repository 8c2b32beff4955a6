"""Parameter groups and folders of the models that are trained with the student."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def split_groups(
    optimizer: torch.optim.Optimizer, peers: Iterable[Tensor], rate: float | None
) -> None:
    """Move the peers' weights to separate parameter groups after all others.

    Args:
        optimizer: Changed in place; groups that were split before are left alone.
        peers: The peers' weights.
        rate: Their learning rate; None: as their old group's.
    """
    theirs, groups = {id(p) for p in peers}, optimizer.param_groups
    for group in [g for g in groups if not g.get("peers")]:
        moved = [p for p in group["params"] if id(p) in theirs]
        if moved:
            group["params"] = [p for p in group["params"] if id(p) not in theirs]
            lr = group["lr"] if rate is None else rate
            groups.append({**group, "params": moved, "lr": lr, "peers": True})
    groups[:] = [group for group in groups if group["params"]]


def write_model(model: Any, processor: Any, folder: Path) -> None:
    """Write a model, and a processor if there is one, as `from_pretrained` reads them.

    All is written beside the folder first, and then put in the place of files of the same names.
    """
    staging = folder.with_name(f".{folder.name}.saving")
    shutil.rmtree(staging, ignore_errors=True)
    for part in (model, processor):
        if part is not None:
            part.save_pretrained(staging)
    for file in sorted(path for path in staging.rglob("*") if path.is_file()):
        with file.open("rb") as written:
            os.fsync(written.fileno())
        place = folder / file.relative_to(staging)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)
    shutil.rmtree(staging)
