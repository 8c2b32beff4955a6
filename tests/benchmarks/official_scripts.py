"""transformers' official example scripts, with two names changed.

    python tests/benchmarks/official_scripts.py FOLDER [--only run_glue] [--jobs 2] [--keep DIR]

FOLDER is ``examples/pytorch`` of a checkout of transformers near the installed version; nothing of
it is in this repository. Every script is run as it is and with ``Trainer`` and
``TrainingArguments`` replaced by ours and a ``teacher_model``, for six steps on tiny data, models
and tokenizers that are made here, without network. It prints a Markdown table:

- **two names enough?** The changed script ran to its last line.
- **first loss**: that of the first training step (alpha 0.3, temperature 3, a teacher that
  disagrees) less the same in a few lines of plain torch (`official/reference.py`).
- **weights**: the largest difference of any weight between the plain script and ours with
  ``--alpha 0``, beside the largest that any weight has moved.

It needs, beside the package: evaluate, scikit-learn, soundfile, seqeval, rouge-score, sacrebleu,
jiwer, albumentations, torchmetrics, pycocotools. torchvision, torchaudio and torchcodec are not
needed (`official/shims.py` says what stands in their place).
"""

# ruff: noqa: E402 (the environment is set before anything reads it)
from __future__ import annotations

import os

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
os.environ.update(OFFLINE)

import argparse
import json
import multiprocessing
import platform
import re
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from official.cases import CASES
from official.running import ALPHA, COMMON, TEMPERATURE, in_child, make_teacher, prepare
from safetensors.torch import load_file

BY_NAME = {case.name: case for case in CASES}
NOT_COMPARED = re.compile("loss|perplexity|runtime|per_second|flos")


def compare(name: str, source: Path, work: Path) -> dict[str, Any]:
    """Run one script as it is, with ``alpha=0`` and with a teacher; return its row."""
    case = BY_NAME[name]
    began, where = time.monotonic(), work / re.sub(r"\W+", "-", case.name).strip("-")
    done = where / "row.json"
    if done.is_file():
        return json.loads(done.read_text())
    where.mkdir(parents=True)
    datasets.config.HF_DATASETS_CACHE = where / "cache"
    teacher, row = where / "teacher", {"name": name}
    try:
        own = [*case.make(where), *COMMON.split()]
    except Exception as error:
        return row | {"plain": {"error": f"no data: {error!r}"}, "seconds": 0.0}
    ways: dict[str, list[str]] = {
        "plain": [],
        "labels": ["--alpha", "0", *case.alone],
        "distilled": ["--alpha", str(ALPHA), "--temperature", str(TEMPERATURE)],
    }
    for way, more in ways.items():
        changed = None if way == "plain" else teacher
        script = prepare(case, source, where / way, changed)
        output = where / f"{way}-out"
        arguments = [*own, "--output_dir", str(output), *more]
        row[way] = in_child(case, script, arguments, where, changed)
        if way == "plain" and row[way]["error"]:
            break
        if way == "plain":
            make_teacher(output, teacher)
    if not row["plain"]["error"]:
        row |= parity(where)
    row |= {"seconds": time.monotonic() - began}
    done.write_text(json.dumps(row))
    return row


def parity(where: Path) -> dict[str, Any]:
    """How the weights and metrics of ``alpha=0`` differ from those of the plain script."""
    paths = [where / folder / "model.safetensors" for folder in ("plain-out", "labels-out")]
    if not all(path.is_file() for path in paths):
        return {}
    plain, ours = map(load_file, paths)
    gaps = ((plain[name] - ours[name]).abs() for name in plain if plain[name].numel())
    found: dict[str, Any] = {"weights": max(float(gap.max()) for gap in gaps)}
    files = [where / f"{way}-out" / "all_results.json" for way in ("plain", "labels")]
    if all(file.is_file() for file in files):
        theirs, mine = (json.loads(file.read_text()) for file in files)
        found["metrics"] = [
            name
            for name, value in theirs.items()
            if not NOT_COMPARED.search(name) and mine.get(name) != value
        ]
    return found


def line(row: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    case = BY_NAME[row["name"]]
    reasons = [reason for *_, reason in case.repairs if reason]
    remarks = [f"upstream {'; '.join(reasons)}: repaired in both"] if reasons else []
    remarks = ([case.remark] if case.remark else []) + remarks
    if row["plain"]["error"]:
        why = f"the plain script fails: {short(row['plain']['error'])}"
        return f"| {case.name} | – | – | – | {why} |"
    error = row["distilled"]["error"] or row["labels"]["error"]
    enough, loss, weights = "no" if error else "yes", "–", "–"
    if error:
        remarks.insert(0, short(error))
    if row["distilled"].get("plain") is not None:
        mine = row["distilled"]["plain"]
        loss = f"{difference(row['distilled']['loss'] - mine)} of {mine:.3f}"
    if "weights" in row:
        weights = f"{difference(row['weights'])} of {row['plain']['moved']:.0e}"
    if row.get("metrics"):
        remarks.append(f"other than plain with alpha=0: {', '.join(row['metrics'])}")
    return f"| {case.name} | {enough} | {loss} | {weights} | {'; '.join(remarks)} |"


def difference(value: float) -> str:
    return f"{value:.0e}" if value else "0"


def short(error: str) -> str:
    """The beginning of an error's text, in one line of a table."""
    words = " ".join(error.replace("|", "/").split())
    return words if len(words) < 200 else words[:200] + " …"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="transformers' examples/pytorch")
    parser.add_argument("--only", default="", help="a regular expression for rows")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--keep",
        type=Path,
        help="a folder for scripts, logs and rows; finished rows are not run again",
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in BY_NAME if re.search(given.only, name)]
    with tempfile.TemporaryDirectory() as temporary:
        work = (given.keep or Path(temporary)).resolve()
        run = partial(compare, source=given.folder.resolve(), work=work)
        with multiprocessing.get_context("fork").Pool(given.jobs, maxtasksperchild=1) as pool:
            rows = []
            for row in pool.imap(run, names):
                rows.append(row)
                print(line(row), file=sys.stderr, flush=True)
    print(f"{platform.processor() or platform.machine()}, {given.jobs} at a time, ", end="")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}, datasets {datasets.__version__}, ", end="")
    print(f"{sum(row['seconds'] for row in rows) / 60:.0f} minutes, rows added up\n")
    print("| script (model) | two names enough? | first loss − plain torch | weights, alpha=0 | |")
    print("| :-- | :-- | :-- | :-- | :-- |")
    for row in rows:
        print(line(row))


if __name__ == "__main__":
    main()
