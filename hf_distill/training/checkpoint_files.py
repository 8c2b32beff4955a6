"""Files of a checkpoint: their list with checksums, its comparison before a resume, rotation."""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import json
import logging
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import TrainerState
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_distill.teachers.cache.checked_json import read_sealed, sealed
from hf_distill.teachers.cache.records import checksum
from hf_distill.training.safe_state import STATES, packed
from hf_distill.utils.files import write_bytes

logger = logging.getLogger(__name__)

SAVING, REPLACED = "_saving", "replaced"
"""Folder in the output folder of a checkpoint that is being written or removed."""
LIST = "checksums.json"
"""Name of the list: ``files``, each with its ``bytes`` and ``xxh3_128``."""
STATE = "trainer_state.json"
MISSING = "missing"
UNREAD = ("training_args.bin", "README.md")
"""Files that a resume does not read."""
WEIGHTS = (
    *("model*.safetensors", "pytorch_model*", "adapter_model.*", "*/adapter_model.*"),
    *("global_step*", "*/*.distcp"),
)
"""Patterns of whole weights, adapters and shards (DeepSpeed, FSDP); one of them is enough."""
OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer_*", "rank*-optimizer.pt", "global_step*")
PARTS = {
    "optimizer.pt": OPTIMIZERS,
    "scheduler.pt": ("scheduler.pt", "global_step*"),
    "rng_state.pth": ("rng_state*.pth",),
}
"""Parts that a resume reads besides weights and `STATE`, each with the patterns of its files."""
DISPENSABLE = ("replay-*",)
"""Files without which a trainer resumes with a warning."""
READ_ANEW = (*STATES, *OPTIMIZERS, "training_state.*", "replay-*", STATE)
"""Patterns of files that loading the best model does not read."""


class CheckpointError(ValueError):
    """Damaged or changed checkpoint; the message contains the files and a remedy."""


def write_list(folder: Path, names: Iterable[str] | None = None) -> None:
    """List the files of a checkpoint (relative POSIX paths; default: all) in `LIST`, atomically."""
    found = _files(folder) if names is None else names
    listed = sorted(n for n in found if n not in UNREAD and n != LIST)
    with ThreadPoolExecutor(4) as pool:  # reading and hashing leave the interpreter's lock
        sums = pool.map(lambda name: checksum(folder / name), listed)
        files = {
            name: {"bytes": (folder / name).stat().st_size, "xxh3_128": digest}
            for name, digest in zip(listed, sums, strict=True)
        }
    write_bytes(folder / LIST, sealed({"files": files}))


def _files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def check_checkpoint(folder: Path, states: bool = True, anew: bool = False) -> int:
    """Check a checkpoint against its list of files; return its number of optimizer steps.

    One without a list (of `transformers.Trainer`, or of an earlier version) must hold all parts,
    and files that are whole by their own formats.

    Args:
        folder: The checkpoint.
        states: A run is to go on from it; else its model alone is read.
        anew: Let optimizer, schedule and random states be missing.

    Raises:
        CheckpointError: with the files and a remedy.
    """
    problems = dict(_problems(folder, states, anew))
    if problems:
        raise CheckpointError(_complaint(folder, problems, states))
    if states and (absent := _absent(folder, packed(folder))):
        both = "optimizer and learning-rate schedule, which are loaded together, begin anew"
        what = "the random states begin anew" if absent == ["rng_state.pth"] else both
        logger.warning("%s holds no %s: %s.", folder, " and ".join(absent), what)
    return TrainerState.load_from_json(str(folder / STATE)).global_step if states else 0


def _problems(folder: Path, states: bool, anew: bool) -> Iterator[tuple[str, str]]:
    """Problems by file name."""
    if not folder.is_dir():
        yield str(folder), "no such folder"
        return
    unread = () if states else READ_ANEW
    if (folder / LIST).exists():
        try:
            listed: Mapping[str, Any] = read_sealed(folder / LIST)["files"]
            names = set(listed) - set(_matching(listed, unread))
            found = {n: _difference(folder / n, listed[n]) for n in sorted(names)}
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            yield LIST, "the list itself was changed or cut"
            return
    else:
        names = set(_files(folder))
        names -= set(_matching(names, (*unread, *UNREAD)))
        found = {n: _unreadable(folder / n) for n in sorted(names)}
    if not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        found["model.safetensors"] = "missing, with all other forms of weights"
    held = packed(folder)
    if states:
        pickles = (p.name for pattern in STATES for p in folder.glob(pattern))
        found |= {n: _unsafe(folder / n) for n in pickles if not found.get(n)}
        found[STATE] = found.get(STATE) or _no_state(folder / STATE)
        found |= dict.fromkeys(_absent(folder, held), MISSING)
    for name, why in found.items():
        allowed = (_is_state(name) and (anew or name in held)) or _matching([name], DISPENSABLE)
        if why and not (why == MISSING and allowed):
            yield name, why


def _absent(folder: Path, held: Iterable[str]) -> list[str]:
    """`PARTS` that are missing from a checkpoint in every form."""
    there = [*held, *(path.name for path in folder.iterdir())]
    return [part for part, forms in PARTS.items() if not _matching(there, forms)]


def _matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    return [n for n in names if any(fnmatch.fnmatch(n, p) for p in patterns)]


def _is_state(name: str) -> bool:
    return bool(_matching([name], (*STATES, *OPTIMIZERS)))


def _difference(path: Path, record: Mapping[str, Any]) -> str:
    """Difference of a file from its record; empty if there is none."""
    if not path.is_file():
        return MISSING
    size, wanted = path.stat().st_size, record["bytes"]
    if size != wanted:
        word = "cut short" if size < wanted else "too long"
        return f"{word}, {size:,} bytes instead of {wanted:,}"
    return "" if checksum(path) == record["xxh3_128"] else "its content was changed"


def _unreadable(path: Path) -> str:
    """Reason why a file is incomplete in its format; empty if it is complete or unknown."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):  # checks the header and the length
                pass
        elif path.suffix == ".json":
            json.loads(path.read_bytes())
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        return f"damaged ({str(error)[:80]})"
    return ""


def _unsafe(path: Path) -> str:
    """Reason to refuse a pickled state, found without running its code; empty if there is none."""
    try:
        with safe_globals(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                torch.load(path, map_location="cpu", weights_only=True)  # an older format
    except Exception as error:  # a damaged archive or pickle raises what its bytes lead to
        if isinstance(error, pickle.UnpicklingError):
            named = re.search(r"GLOBAL (\w[\w.]*\.\w+)", str(error))
            what = f"calls {named[1]}" if named else "holds more than tensors and numbers"
            return f"a pickle that {what}, or is damaged: it was not run"
        return f"damaged ({type(error).__name__})"
    return ""


def _no_state(path: Path) -> str:
    if not path.is_file():
        return MISSING
    try:
        step = TrainerState.load_from_json(str(path)).global_step
    except (ValueError, TypeError, AttributeError, OSError, RecursionError) as error:
        return f"damaged ({str(error)[:80]})"
    return "" if isinstance(step, int) and step >= 0 else f"damaged (global_step is {step!r})"


def _complaint(folder: Path, problems: Mapping[str, str], states: bool) -> str:
    shown = [f"{name} ({why})" for name, why in list(problems.items())[:6]]
    more = f" and {len(problems) - 6} more" if len(problems) > 6 else ""
    said = [f"Expected the checkpoint {folder} as it was written, got {', '.join(shown)}{more}."]
    before = _sound_before(folder)
    if before is not None and states:
        said.append(
            f"Resume from {before}, which is whole: name it as resume_from_checkpoint, or delete "
            "the damaged folder, and recipes and resume_from_checkpoint=True go on from there."
        )
    elif before is not None:
        said.append(f"Take {before}, which is whole, or resume from it to make this one again.")
    else:
        said.append(
            "No whole checkpoint from before it lies beside it: start anew, without "
            "resume_from_checkpoint (of a recipe: delete the folder)."
        )
    if states and any(map(_is_state, problems)):
        said.append(
            "To go on with a new optimizer, schedule and random state on purpose, delete what is "
            "left of them and pass save_only_model=True."
        )
    if (folder / LIST).exists():
        said.append(
            f"If the files were changed on purpose, delete {LIST}: they are then taken as they are."
        )
    return " ".join(said)


def _sound_before(folder: Path) -> Path | None:
    """Newest complete checkpoint before a damaged one."""
    beside, own = steps_of(folder.parent), _step(folder.name)
    for step in sorted((s for s in beside if own is None or s < own), reverse=True):
        if beside[step] != folder and not dict(_problems(beside[step], True, False)):
            return beside[step]
    return None


def _step(name: str) -> int | None:
    match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", name)
    return None if match is None else int(match[1])


def steps_of(run: Path) -> dict[int, Path]:
    """Checkpoints of a folder by step; folders with similar names are ignored."""
    found = {}
    for path in run.iterdir() if run.is_dir() else ():
        step = _step(path.name)
        if step is not None and not path.is_symlink() and (path / STATE).is_file():
            found[step] = path
    return found


def superseded(run: Path, limit: int | None, newest: int, best: Path | None) -> list[Path]:
    """Checkpoints over the limit, in the order of their removal: by step, not by file times.

    Those of more steps than `newest`, which was just written and stays like `best`, were left by
    a run that was resumed from an earlier checkpoint, and are removed first. A limit of None or 0
    keeps all.
    """
    if not limit or limit < 0:
        return []
    there = steps_of(run)
    kept = {path for step, path in there.items() if step == newest or path == best}
    order = sorted(there, key=lambda step: (step <= newest, step))
    gone = [there[step] for step in order if there[step] not in kept]
    return gone[: max(0, len(there) - max(limit, len(kept)))]


def clear_staging(staging: Path) -> None:
    """Remove leftovers of interrupted checkpoints; a FileExistsError for any other content."""
    foreign = [p.name for p in staging.glob("*") if p.name != REPLACED and _step(p.name) is None]
    if foreign:
        raise FileExistsError(
            f"Expected {staging} to be free for checkpoints that are being written, found "
            f"{sorted(foreign)[:4]} there. Move them, or choose another output_dir."
        )
    shutil.rmtree(staging, ignore_errors=True)


def make_way(place: Path, staging: Path) -> None:
    """Move an earlier checkpoint of this name into ``staging``; anything else is renamed."""
    if (place / STATE).is_file():
        os.replace(place, staging / REPLACED)
    elif place.exists():
        names = (f"{place.name}.kept-{n}" for n in itertools.count(1))
        kept = next(path for name in names if not (path := place.with_name(name)).exists())
        os.replace(place, kept)
        logger.warning("%s was no checkpoint: it is now %s.", place, kept.name)


def remove_whole(folders: Iterable[Path], staging: Path) -> None:
    """Remove folders after moving them into ``staging``, so that none is left half deleted."""
    for folder in folders:
        staging.mkdir(exist_ok=True)
        shutil.rmtree(staging / folder.name, ignore_errors=True)
        os.replace(folder, staging / folder.name)
        shutil.rmtree(staging / folder.name, ignore_errors=True)
        with contextlib.suppress(OSError):
            staging.rmdir()
