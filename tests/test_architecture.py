"""What holds for the package as a whole: who imports whom, lint and types, a quiet import."""

import ast
import graphlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
RANKS = (
    "losses data utils",
    "models hub",
    "objectives teachers",
    "evaluation",
    "training robustness export",
    "recipe",
    "cli",
    "__main__",
)
"""Lowest first."""
RANK = {part: rank for rank, parts in enumerate(RANKS) for part in parts.split()}
ALONE = {
    "losses": set(),
    "utils": set(),
    "hub": {"utils"},
    "evaluation.metrics": {"losses", "utils"},
}
"""Parts that import nothing else of the package: they are useful without it."""


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


def test_modules_import_only_lower_ranks() -> None:
    """An import upwards makes the parts inseparable, and later ends in an import cycle."""
    known = modules()
    assert len(known) > 20
    for name, path in known.items():
        part = f"{name}.".split(".")[1]
        for target in imports(name, path, known) if part else ():
            other = target.split(".")[1]
            if other != part:  # imports within a package: see the cycles below
                assert RANK[other] < RANK[part], f"{name} imports {target}, which is not lower"
            for alone, allowed in ALONE.items():
                if name.startswith(f"hf_distill.{alone}.") and not target.startswith(
                    f"hf_distill.{alone}"
                ):
                    assert other in allowed, f"{name} imports {target}; {alone} stands alone"


def test_top_level_stays_small() -> None:
    """A drawer in which everything lies is no drawer: each module belongs to a package."""
    found = {p.name for p in (ROOT / "hf_distill").iterdir() if not p.name.startswith("__pyc")}
    assert {p for p in found if p.endswith(".py")} == {"__init__.py", "__main__.py"}
    assert {p for p in found if (ROOT / "hf_distill" / p).is_dir()} == {*RANK} - {"__main__"}


def test_the_trainer_imports_neither_robustness_nor_export() -> None:
    """Each process of a training would wait for code that only reports use."""
    code = (
        "import sys; from hf_distill import DistillationTrainer, OnlineDistillationTrainer;"
        "print([m for m in sys.modules if m.startswith(('hf_distill.robustness', "
        "'hf_distill.export', 'hf_distill.recipe', 'hf_distill.cli'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_import_cycle() -> None:
    """A cycle works or fails by which module is imported first."""
    known = modules()
    graph = {name: imports(name, path, known) for name, path in known.items()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("hf_distill.hub.card", "from .check import x", {"hf_distill.hub.check"}),
        (
            "hf_distill.training.trainer",
            "from hf_distill.models import tasks, y",
            {"hf_distill.models.tasks", "hf_distill.models"},
        ),
        ("hf_distill.training.trainer", "def f():\n    import hf_distill.hub", {"hf_distill.hub"}),
        (
            "hf_distill.teachers.model",
            "from ..models.hooks import captured",
            {"hf_distill.models.hooks"},
        ),
        ("hf_distill.objectives.base.objective", "import torch\nfrom typing import Any", set()),
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


def test_names_for_type_checkers_are_those_at_run_time() -> None:
    """A name in one of the two lists alone is missing for the editor, or for the program."""
    import hf_distill

    tree = ast.parse((ROOT / "hf_distill" / "__init__.py").read_text())
    static = {
        (node.module.removeprefix("hf_distill."), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("hf_distill.")
        for alias in node.names
        if alias.name != "*" and node.module
    }
    lazy = {(m, name) for m, names in hf_distill._EXPORTS.items() for name in names.split()}
    assert static == lazy
    assert all(hasattr(hf_distill, name) for _, name in lazy)


def test_a_step_of_a_classifier_enters_ten_files(tmp_path: Path) -> None:
    """Whoever follows a step through more files than that loses the thread."""
    from tiny_trainers import trainer  # this file is also imported by a script

    from hf_distill import DistillationTrainer

    entered: set[str] = set()
    package = f"{ROOT / 'hf_distill'}{os.sep}"

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(package):
            entered.add(frame.f_code.co_filename.removeprefix(package))

    class Profiled(DistillationTrainer):
        def compute_loss(self, *args: Any, **options: Any) -> Any:
            if self.state.global_step == 0:  # which reads facts of the models once
                return super().compute_loss(*args, **options)
            sys.setprofile(note)
            try:
                return super().compute_loss(*args, **options)
            finally:
                sys.setprofile(None)

    trainer(tmp_path, cls=Profiled).train()
    assert 5 < len(entered) <= 10, sorted(entered)


def test_docstrings_begin_with_a_noun_phrase_or_an_imperative() -> None:
    """A question word first, and the reader has to find out what the thing is."""
    found = [
        f"{name}: {text.splitlines()[0]}"
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(text := node.value.value, str)
        and re.match(r"\s*(What|Whether|How|Where|Which)\b", text)
    ]
    assert not found
