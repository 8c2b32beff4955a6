"""Size and shape of the package, and the files that one training step enters.

    python tests/benchmarks/structure.py [--against CHECKOUT]

Prints a Markdown table for this checkout, next to the one of another commit where one is given.
A step is measured with a profile hook around ``compute_loss`` on the second micro-batch: files of
`hf_distill` that are entered, different functions, calls, and moves (calls in another file than the
call before). Models and data are tiny ones of the tests.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LONG = 300
CLAUSES = re.compile(r"\s*(What|Whether|How|Where|Which)\b")
Facts = dict[str, str]


# ---- files ---------------------------------------------------------------------------------------


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def docstrings(tree: ast.AST) -> Iterator[str]:
    """Those of modules, classes and functions, and the strings after an assignment."""
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value.value


def private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def private_names(tree: ast.AST) -> Iterator[str]:
    """The private names that a file defines."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


def accesses(tree: ast.AST) -> Iterator[str]:
    """The private attributes that a file reads or sets on other objects than ``self``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            owner = node.value
            if not (isinstance(owner, ast.Name) and owner.id in ("self", "cls")):
                yield node.attr


def ranks(test: Path) -> int:
    """The number of layers in the architecture test."""
    for node in ast.walk(ast.parse(test.read_text())):
        names = [t.id for t in getattr(node, "targets", ()) if isinstance(t, ast.Name)]
        if {"RANKS", "LAYERS"} & set(names) and isinstance(node, ast.Assign):
            layers = ast.literal_eval(node.value)
            return len(layers.split("|") if isinstance(layers, str) else layers)
    raise ValueError(f"Expected a table RANKS in {test}, got none.")


def layout(checkout: Path) -> Facts:
    """Counts that need nothing but the files."""
    package, tests = checkout / "hf_distill", checkout / "tests"
    entries = [p for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()]
    texts = [path.read_text() for path in files(package)]
    trees = [ast.parse(text) for text in texts]
    strings = [text for tree in trees for text in docstrings(tree)]
    clauses = [text for text in strings if CLAUSES.match(text)]
    ours = {name for tree in trees for name in private_names(tree) if private(name)}
    poked = [n for p in files(tests) for n in accesses(ast.parse(p.read_text())) if n in ours]
    lines = [len(text.splitlines()) for text in texts]
    architecture = next(tests.rglob("test_architecture.py"))
    return {
        "entries at the top of `hf_distill/`": f"{len(entries)}",
        "ranks in the architecture test": f"{ranks(architecture)}",
        "files of the package": f"{len(lines):,}",
        "lines of the package": f"{sum(lines):,}",
        f"files of more than {LONG} lines": f"{sum(n > LONG for n in lines)}",
        "lines of the tests": f"{sum(len(p.read_text().splitlines()) for p in files(tests)):,}",
        "words of README.md": f"{len((checkout / 'README.md').read_text().split()):,}",
        "lines of README.md": f"{len((checkout / 'README.md').read_text().splitlines()):,}",
        "docstrings that begin with What, Whether, How, Where or Which": f"{len(clauses):,}",
        "docstrings": f"{len(strings):,}",
        "private attributes of the package that tests access": f"{len(poked):,}",
    }


# ---- calls ---------------------------------------------------------------------------------------


class Walk:
    """The calls of functions of the package, recorded in a ``with`` block."""

    def __init__(self, package: Path) -> None:
        self.package = f"{package}{os.sep}"
        self.calls: list[str] = []
        self.functions: set[Any] = set()

    def hook(self, frame: Any, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(self.package):
            self.calls.append(name)
            self.functions.add(frame.f_code)

    def __enter__(self) -> Walk:
        sys.setprofile(self.hook)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def __str__(self) -> str:
        moves = sum(a != b for a, b in zip(self.calls, self.calls[1:], strict=False))
        counts = (len(set(self.calls)), len(self.functions), len(self.calls), moves)
        return " / ".join(f"{count:,}" for count in counts)


def walks(checkout: Path) -> Facts:
    """Constructor, step, evaluation and cache; in a process with the checkout's package."""
    from same_runs import QUIET
    from same_settings import Setting, hd, zoo_setting

    package = checkout / "hf_distill"
    found: Facts = {}

    def trainer(at: Setting, teacher: Any, walk: Any) -> Any:
        class Second(hd.DistillationTrainer):
            batches = 0

            def compute_loss(self, *args: Any, **options: Any) -> Any:
                self.batches += 1
                with walk if self.batches == 2 else contextlib.nullcontext():
                    return super().compute_loss(*args, **options)

        return Second(
            at.student,
            hd.DistillationConfig("student", **{**QUIET, "eval_strategy": "no"}),
            data_collator=at.collate,
            train_dataset=at.data,
            eval_dataset=at.data,
            teacher_model=teacher,
        )

    def measure(name: str, act: Callable[[], Any]) -> Any:
        walk = Walk(package)
        with walk:
            result = act()
        found[name] = str(walk)
        return result

    def step(name: str, at: Setting, teacher: Any) -> Any:
        walk = Walk(package)
        ours = trainer(at, teacher, walk)
        ours.train()
        found[f"step of {name}"] = str(walk)
        return ours

    text = zoo_setting("sequence_classification")
    ours = step("a classifier", text, text.teacher)
    measure("evaluation of a classifier, 3 batches", ours.evaluate)
    text = zoo_setting("sequence_classification")
    nothing = contextlib.nullcontext()
    measure("constructor, for a classifier", lambda: trainer(text, text.teacher, nothing))
    teacher = hd.ModelTeacher(text.teacher)
    write = lambda: hd.write_cache("cache", teacher, text.data, text.collate)  # noqa: E731
    measure("`write_cache` of 8 examples", write)
    text = zoo_setting("sequence_classification")
    step("a classifier with a cached teacher", text, hd.CachedTeacher("cache"))
    words = zoo_setting("causal_lm")
    step("a causal language model", words, words.teacher)
    order = sorted(found, key=lambda name: not name.startswith("step"))
    return {f"{name}: files / functions / calls / moves": found[name] for name in order}


def measured(checkout: Path) -> Facts:
    paths = (checkout, checkout / "tests", checkout / "tests" / "helpers")
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    environment = {**os.environ, **offline, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, "--walks", str(checkout)],
            env=environment,
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    counted: Facts = json.loads(done.stdout.splitlines()[-1])
    return {**layout(checkout), **counted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="a checkout of another commit")
    parser.add_argument("--walks", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.walks is not None:
        warnings.simplefilter("ignore")
        print(json.dumps(walks(arguments.walks)))
        return
    sides = {"here": measured(ROOT)}
    if arguments.against is not None:
        sides = {"before": measured(arguments.against.resolve()), "now": sides["here"]}
    print(f"| | {' | '.join(sides)} |\n| :-- |{' --: |' * len(sides)}")
    for name in next(iter(sides.values())):
        print(f"| {name} | {' | '.join(side[name] for side in sides.values())} |")


if __name__ == "__main__":
    main()
