"""The lowest and the newest versions of what the project depends on, and the core tests with them.

``python tests/versions.py`` makes an environment in which each dependency that ``pyproject.toml``
declares has its lowest version, and runs the core tests there; with ``--newest`` all have the
newest that pip finds. An environment that is there is used again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable, Sequence
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("recipes", "trackers", "dev")
"""Of the optional dependencies these; of the last two what the core tests import."""
TOOLS = ("tensorboard", "pytest", "pytest-xdist", "hypothesis", "markdown-it-py", "ruamel.yaml")
CORE = (
    "data/test_chat.py",
    "evaluation/test_metrics.py",
    "evaluation/test_statistics.py",
    "models/test_peft.py",
    "models/test_problems.py",
    "models/test_task_model.py",
    "objectives/test_features.py",
    "objectives/test_objective_contracts.py",
    "recipe/test_recipes.py",
    "teachers/cache/test_cached_teacher.py",
    "teachers/remote/test_vllm_teacher.py",
    "training/test_chunked.py",
    "training/test_invariance.py",
    "training/test_own_loss.py",
    "training/test_resuming.py",
    "training/test_trainer.py",
)
"""Test files that between them use every dependency and every kind of head."""
LOWEST, NEWEST = "lowest", "newest"


def declared() -> dict[str, Requirement]:
    """Each dependency that the core tests need, by name, as ``pyproject.toml`` has it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [Requirement(line) for line in project["dependencies"]]
    for extra in EXTRAS:
        more = [Requirement(line) for line in project["optional-dependencies"][extra]]
        found += [one for one in more if extra == "recipes" or one.name in TOOLS]
    return {one.name: one for one in found}


def lowest(requirement: Requirement) -> str:
    """The lowest version that a requirement allows.

    Raises:
        ValueError: it names none, so that nobody tests one.
    """
    bounds = [one.version for one in requirement.specifier if one.operator == ">="]
    if len(bounds) != 1:
        raise ValueError(f"Expected a lowest version (name>=version), got {requirement}.")
    return bounds[0]


def wanted(which: str, fixed: Iterable[str] = ()) -> list[str]:
    """What pip installs: ``torch==2.6``, … or ``torch>=2.6``, ….

    Args:
        which: `LOWEST` or `NEWEST`.
        fixed: ``name==version``, in place of what is declared.
    """
    pinned = {Requirement(line).name: line for line in fixed}
    return [
        pinned.get(name, f"{name}=={lowest(one)}" if which == LOWEST else str(one))
        for name, one in declared().items()
    ]


def make(folder: Path, which: str, fixed: Sequence[str] = ()) -> Path:
    """Make an environment with the project in it, unless it is there; return its Python."""
    python = folder / "bin" / "python"
    done = folder / f"{which}.txt"
    asked = "\n".join(wanted(which, fixed))
    if done.is_file() and done.read_text(encoding="utf-8") == asked:
        return python
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    newest = ["--upgrade"] if which == NEWEST else []
    subprocess.run([*pip, *newest, *wanted(which, fixed)], check=True)
    subprocess.run([*pip, "--no-deps", "--editable", str(ROOT)], check=True)
    subprocess.run([str(python), "-m", "pip", "check"], check=True)
    done.write_text(asked, encoding="utf-8")
    return python


def run(python: Path, files: Sequence[str], options: Sequence[str] = ()) -> int:
    """Run test files with an environment's Python; gives pytest's exit code."""
    paths = [str(ROOT / "tests" / name) for name in files]
    command = [str(python), "-m", "pytest", "-p", "no:cacheprovider", *options, *paths]
    return subprocess.call(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def main() -> int:
    """Make the environment and run the core tests."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--newest", action="store_true", help="in place of the lowest versions")
    parser.add_argument("--folder", type=Path, help="default: .venv-lowest, .venv-newest")
    parser.add_argument(
        "--fix",
        action="append",
        default=[],
        metavar="NAME==VERSION",
        help="another version of one dependency, as torch==2.13.0",
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="in place of the core tests")
    args = parser.parse_args()
    which = NEWEST if args.newest else LOWEST
    python = make((args.folder or ROOT / f".venv-{which}").absolute(), which, args.fix)
    return run(python, args.files or CORE)


if __name__ == "__main__":
    sys.exit(main())
