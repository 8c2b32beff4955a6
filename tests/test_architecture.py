"""What holds for the package as a whole: who imports whom, lint and types, a quiet import."""

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = (
    "losses ascent axes directions folders forward interrupts sharding places modules outputs "
    "streams processes portable leaks | language special_tokens commits | "
    "signals | batch_checks capture reading projection | tasks crossing | states | "
    "heads layers schedules | "
    "spaces problems | pair | matching alignment balance initialise temperature views noisy "
    "weights speed | cache | terms checkpoint_files | reduction objectives | teachers | metrics | "
    "config | evaluation robustness | hub export speculative | run_facts language_eval resuming | "
    "checkpoints checks idle own_loss measuring windows pieces card_facts curves | "
    "publishing tracking looking | binding | trainer | seq2seq joint on_policy | api scores | "
    "serving finished | recipe | comparison | side_by_side | cli | __main__"
)
"""Lowest first."""
RANK = {part: rank for rank, layer in enumerate(LAYERS.split("|")) for part in layer.split()}
ALONE = {
    "losses": set(),
    "metrics": {"losses", "directions"},
    "hub": {"directions", "leaks", "commits"},
    "leaks": set(),
    "commits": {"leaks"},
    "forward": set(),
    "directions": set(),
}
"""Parts that may know nothing else of the package: they are useful without it."""


def modules() -> dict[str, Path]:
    """Dotted name -> file."""
    files = {p.relative_to(ROOT).with_suffix(""): p for p in ROOT.glob("hf_distill/**/*.py")}
    return {".".join(name.parts).removesuffix(".__init__"): p for name, p in files.items()}


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a module imports, wherever in its code."""
    found = set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            full = {f"{base}.{alias.name}" for alias in node.names}
            found |= {f if f in known else base for f in full}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {f for f in found if f.startswith("hf_distill.")}


def test_modules_import_only_lower_layers() -> None:
    """An import upwards makes the parts inseparable, and later ends in an import cycle."""
    known = modules()
    assert len(known) > 20
    for name, path in known.items():
        part = f"{name}.".split(".")[1]
        for target in imports(name, path, known) if part else ():
            other = target.split(".")[1]
            if other != part:  # a package's own modules: see the cycles below
                where = f"{name} imports {target}"
                assert other in ALONE.get(part, {other}), f"{where}; {part} stands alone"
                assert RANK[other] < RANK[part], f"{where}, which is not in a lower layer"


def test_no_import_cycle() -> None:
    """A cycle works or fails by which module is imported first."""
    known = modules()
    graph = {name: imports(name, path, known) for name, path in known.items()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("hf_distill.hub.card", "from .check import x", {"hf_distill.hub.check"}),
        ("hf_distill.trainer", "from hf_distill import tasks, y", {"hf_distill.tasks"}),
        ("hf_distill.trainer", "def f():\n    import hf_distill.hub", {"hf_distill.hub"}),
        ("hf_distill.teachers.model", "from ..heads import Head", {"hf_distill.heads"}),
        ("hf_distill.terms", "import torch\nfrom typing import Any", set()),
    ],
)
def test_imports_are_read(tmp_path: Path, module: str, source: str, expected: set[str]) -> None:
    """A form of import that is not read would let every wrong import of this form pass."""
    path = tmp_path / "module.py"
    path.write_text(source)
    assert imports(module, path, modules()) == expected


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "check", "."], id="ruff check"),
        pytest.param(["ruff", "format", "--check", "."], id="ruff format"),
        pytest.param(["mypy"], id="mypy", marks=pytest.mark.slow),  # minutes without its cache
    ],
)
def test_tools_are_content(command: list[str]) -> None:
    """What lint and types would have found comes back as a bug of some run."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


QUIET = """
import socket, sys
def refuse(*args, **kwargs):
    raise SystemExit(f"network: {args}")
socket.getaddrinfo = socket.create_connection = refuse
socket.socket.connect = socket.socket.connect_ex = refuse
from hf_distill import *
heavy = {"matplotlib", "sklearn", "torchvision", "evaluate", "tensorboard"} & set(sys.modules)
assert not heavy, heavy
"""


def test_import_is_quiet() -> None:
    """A network call at import hangs a cluster without internet; a heavy import makes each of its
    processes start late, and an optional one makes the package fail where it is not installed."""
    offline = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"}
    environment = {k: v for k, v in os.environ.items() if k not in offline}
    done = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", QUIET],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_objective_is_exported_by_name() -> None:
    """Type checkers read `__all__` as it stands; an objective left out has no attribute there."""
    from hf_distill import objectives

    names = {kind.__name__ for kind in objectives.OBJECTIVES.values()} | set(objectives.METHODS)
    assert names <= set(objectives.__all__)
    assert all(hasattr(objectives, name) for name in objectives.__all__)
