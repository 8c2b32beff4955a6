"""Bit-by-bit comparison of tiny trainings under two commits.

    python tests/benchmarks/same_results.py --against CHECKOUT

Runs the trainings of `same_runs.py` twice, offline and with the same seeds: with the package of
CHECKOUT and with the one of this checkout. Compares the students' weights, the logs, the model
cards and the files of teacher caches, and prints a Markdown table. Names that changed between the
two are mapped by `WORDS`; timings are left out. The exit status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
WORDS = {
    "kl_forward": "forward_kl_divergence",
    "kl_reverse": "reverse_kl_divergence",
    "retained": "retention",
    "reconstruction": "probability_mse",
    "multi_scale": "review_kd",
    "introspection": "iad",
    "Again": "SecondDropout",
    "Columns": "PerturbedColumns",
    "From": "FromTeacher",
    "Introspection": "IAD",
    "MultiScale": "ReviewKD",
    "Reconstruction": "ProbabilityMSE",
    "Share": "LossShare",
    "Sum": "WeightedSum",
    "Virtual": "VirtualAdversary",
    "AdaptersOff": "BaseModelTeacher",
    "PastStudent": "EMATeacher",
    "TranslatedTeacher": "CrossTokenizerTeacher",
}
"""Older name -> newer name, in keys of logs, in cards and in manifests."""
TIMINGS = ("_runtime", "_per_second")
SEALS = {"checksum"}
"""Keys of a JSON file that depend on the names in it."""
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")
Answer = tuple[str, str]
"""``equal``, ``words`` (the numbers are equal, the prose is not) or ``DIFFERS``; and details."""


def newer(text: str) -> str:
    """A text with the newer names in place of the older ones."""
    names = "|".join(sorted(WORDS, key=len, reverse=True))
    pattern = rf"(?<![A-Za-z])(?:{names})(?![A-Za-z])"
    return re.sub(pattern, lambda found: WORDS[found.group()], text)


def record(checkout: Path, out: Path, only: str) -> None:
    """Run the trainings with the package and the tests of a checkout."""
    paths = (checkout, checkout / "tests", checkout / "tests" / "helpers")
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    environment = {
        **os.environ,
        **offline,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
    }
    script = Path(__file__).with_name("same_runs.py")
    out.mkdir(parents=True)
    subprocess.run(
        [sys.executable, str(script), str(out), str(checkout), only],
        env=environment,
        cwd=out,
        stdout=subprocess.DEVNULL,
        check=True,
    )


# ---- comparisons ---------------------------------------------------------------------------------


def weights(one: Path, other: Path) -> Answer:
    a, b = load_file(one / "weights.safetensors"), load_file(other / "weights.safetensors")
    if a.keys() != b.keys():
        return "DIFFERS", f"names {sorted(a.keys() ^ b.keys())[:3]}"
    bits = [name for name in a if a[name].numpy().tobytes() != b[name].numpy().tobytes()]
    return ("DIFFERS", f"{len(bits)} of {len(a)} tensors, as {bits[0]}") if bits else ("equal", "")


def log(one: Path, other: Path) -> Answer:
    def rows(folder: Path) -> list[dict[str, Any]]:
        history = json.loads(newer((folder / "log.json").read_text()))
        return [{k: v for k, v in row.items() if not k.endswith(TIMINGS)} for row in history]

    a, b = rows(one), rows(other)
    if len(a) != len(b):
        return "DIFFERS", f"{len(a)} and {len(b)} entries"
    for x, y in zip(a, b, strict=True):
        keys = [k for k in {**x, **y} if repr(x.get(k)) != repr(y.get(k))]  # NaN is equal to NaN
        if keys:
            found = f"{keys[0]} {x.get(keys[0])} and {y.get(keys[0])}"
            return "DIFFERS", f"step {x.get('step')}: {found}"
    return "equal", ""


def card(one: Path, other: Path) -> Answer:
    a, b = (newer((folder / "card.md").read_text()) for folder in (one, other))
    if sorted(a.splitlines()) == sorted(b.splitlines()):  # rows are sorted by their names
        return "equal", ""
    facts = [_values(yaml.safe_load(text.split("---\n")[1])) for text in (a, b)]
    if facts[0] != facts[1]:
        return "DIFFERS", f"metadata {_both(facts)}"
    numbers = [Counter(NUMBER.findall(text)) for text in (a, b)]
    if numbers[0] != numbers[1]:
        return "DIFFERS", f"numbers {_both(numbers)}"
    changed = sorted(set(b.splitlines()) - set(a.splitlines()))
    return "words", f"{len(changed)} lines, as {changed[0][:60]!r}" if changed else ""


def _both(found: list[Counter[str]]) -> str:
    return f"{list(found[0] - found[1])[:4]} and {list(found[1] - found[0])[:4]}"


def _values(tree: Any) -> Counter[str]:
    """The leaves of a tree of dicts and lists, in any order."""
    if isinstance(tree, dict):
        return sum((_values({}) + _values(v) for v in tree.values()), Counter(map(str, tree)))
    if isinstance(tree, list):
        return sum((_values(v) for v in tree), Counter())
    return Counter([str(tree)])


def cache(one: Path, other: Path) -> Answer:
    a, b = (_files(folder / "cache") for folder in (one, other))
    if a.keys() != b.keys():
        return "DIFFERS", f"files {sorted(a.keys() ^ b.keys())[:3]}"
    prose = ""
    for name in sorted(a):
        x, y = a[name].read_bytes(), b[name].read_bytes()
        if x == y:
            continue
        if name.endswith(".md"):
            prose = name
        elif not name.endswith(".json") or _manifest(a[name]) != _manifest(b[name]):
            return "DIFFERS", name
    return ("words", prose) if prose else ("equal", "")


def _files(folder: Path) -> dict[str, Path]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path for path in found}


def _manifest(path: Path) -> Any:
    facts = json.loads(newer(path.read_text()))
    return {k: v for k, v in facts.items() if k not in SEALS and v is not None}  # new, not set


def compare(one: Path, other: Path) -> dict[str, Answer]:
    """What two runs of the same name left."""
    failed = [folder for folder in (one, other) if not (folder / "card.md").is_file()]
    if failed:
        last = [(f / "error.txt").read_text().strip().splitlines()[-1][:160] for f in failed]
        return {"run": ("DIFFERS", f"{len(failed)} failed: {last[-1]}")}
    checks = {"weights": weights, "log": log, "card": card}
    if (one / "cache").is_dir() or (other / "cache").is_dir():
        checks["cache"] = cache
    return {name: check(one, other) for name, check in checks.items()}


def table(a: Path, b: Path) -> Iterator[tuple[str, dict[str, Answer]]]:
    """Every run, under its newer name."""
    runs = [{newer(path.name): path for path in side.iterdir()} for side in (a, b)]
    for name in {**runs[0], **runs[1]}:
        if name not in runs[0] or name not in runs[1]:
            yield name, {"run": ("DIFFERS", f"only {'after' if name in runs[1] else 'before'}")}
        else:
            yield name, compare(runs[0][name], runs[1][name])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, required=True, help="a checkout of another commit")
    parser.add_argument("--only", default="", help="runs whose name contains this text")
    parser.add_argument("--keep", type=Path, help="folder for the records of both; default: none")
    parser.add_argument("--details", action="store_true", help="print what differs, for each run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.keep or Path(temporary)).resolve()
        sides = {"before": arguments.against.resolve(), "after": ROOT}
        for name, checkout in sides.items():
            if not (folder / name).is_dir():  # kept of an earlier comparison
                record(checkout, folder / name, arguments.only)
        found = dict(sorted(table(folder / "before", folder / "after")))
    print("| head | run | weights | log | card | cache |\n| :-- | :-- | :-- | :-- | :-- | :-- |")
    for name, answers in found.items():
        head, _, run = name.partition("; ")
        if "run" in answers:
            print(f"| {head} | {run} | {answers['run'][1]} | | | |")
            continue
        cells = (answers.get(part, ("–", ""))[0] for part in ("weights", "log", "card", "cache"))
        print(f"| {head} | {run} | {' | '.join(cells)} |")
    counts = Counter(answer for answers in found.values() for answer, _ in answers.values())
    print(f"\n{len(found)} runs: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    for name, answers in found.items() if arguments.details else ():
        for part, (answer, details) in answers.items():
            if answer != "equal":
                print(f"- {name}: {part} {answer}: {details}")
    return int(counts["DIFFERS"] > 0)


if __name__ == "__main__":
    sys.exit(main())
