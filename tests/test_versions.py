"""The declared versions: that each is what `versions.py` installs, and that the lowest work."""

from __future__ import annotations

import ast
import importlib.metadata
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytest.importorskip("tomllib")  # Python 3.11

import versions
from versions import LOWEST, NEWEST, ROOT, declared, lowest, wanted

BY_WAY_OF = {"pyarrow": "datasets", "tokenizers": "transformers", "tqdm": "transformers"}
"""Packages that the library imports without declaring them, and who brings them in a version of
its own choice."""
AS_HERE = ("torch=", "numpy", "matplotlib", "scikit-learn", "pillow", "pytest", "tensorboard")
"""What the short form does not install: gigabytes, and what others here are compiled against."""
SMOKE = {
    "test_recipes.py": "report_tells_what",
    "test_peft.py": "resuming_is_exact or the_best_adapter",
    "test_language_chat.py": "templates_of_all_kinds",
    "test_cached_teacher.py": "cached_and_live_training",
    "test_trainer.py": "checkpointed_activations",
}
"""File -> which of its tests."""


def test_each_lowest_version_is_installed_and_tested() -> None:
    """`safetensors>=0.4.3` could not be installed, and nothing failed."""
    for which in (LOWEST, NEWEST):
        made = {Requirement(line).name: Requirement(line) for line in wanted(which)}
        assert made.keys() == declared().keys()
        for name, one in declared().items():
            assert made[name].specifier.contains(lowest(one)), made[name]
            assert made[name].specifier.contains("99") == (
                which == NEWEST and one.specifier.contains("99")
            )
    fixed = wanted(LOWEST, ["torch==2.13.0"])
    assert "torch==2.13.0" in fixed
    assert len(fixed) == len(declared())
    files = {path.name for path in (ROOT / "tests").glob("test_*.py")}
    assert {*versions.CORE, *SMOKE} <= files


def test_a_dependency_without_a_lowest_version_is_refused() -> None:
    """Any version would do, which nobody has tried."""
    with pytest.raises(ValueError, match="Expected a lowest version"):
        lowest(Requirement("torch"))


def test_what_is_imported_is_declared() -> None:
    """NumPy came along with others, in whatever version they take."""
    names = importlib.metadata.packages_distributions()
    known = {one.replace("_", "-").lower() for one in declared()}
    for path in (ROOT / "hf_distill").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:  # optional ones come later
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [str(node.module)]
            else:
                continue
            for module in {name.partition(".")[0] for name in modules}:
                if module in sys.stdlib_module_names or module == "hf_distill":
                    continue
                found = {name.replace("_", "-").lower() for name in names.get(module, [module])}
                by = BY_WAY_OF.get(module)
                if by is not None:
                    needs = [Requirement(line) for line in importlib.metadata.requires(by) or []]
                    assert any(one.name == module and one.marker is None for one in needs)
                assert by in known or found & known, f"{path} imports {module}"


def test_installed_versions_are_declared_ones() -> None:
    """The suite would pass with what nobody is told to install."""
    for name, one in declared().items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a tool of a developer's
            continue
        assert one.specifier.contains(version, prereleases=True), f"{one}, and {version} is here"


@pytest.mark.slow
def test_the_lowest_versions_work(tmp_path: Path) -> None:
    """A short form of `python tests/versions.py`: what is compiled against NumPy stays as here."""
    venv.create(tmp_path / "lowest", with_pip=False)
    python = tmp_path / "lowest/bin/python"
    (own,) = (tmp_path / "lowest/lib").glob("python*/site-packages")
    here = [*site.getsitepackages(), *(path for path in sys.path if path.endswith("-packages"))]
    (own / "here.pth").write_text("\n".join(dict.fromkeys(here)) + "\n", encoding="utf-8")
    packages = [line for line in wanted(LOWEST) if not line.startswith(AS_HERE)]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    made = subprocess.run(
        [*pip, "--target", str(own), *packages], capture_output=True, text=True, timeout=300
    )
    if "(from versions: none)" in made.stderr:
        pytest.skip("pip finds no package index here")
    assert made.returncode == 0, made.stderr
    for name in ("transformers", "accelerate", "datasets", "peft"):
        asked = f"import {name}; print({name}.__version__)"
        said = subprocess.run([str(python), "-c", asked], capture_output=True, text=True)
        assert said.stdout.startswith(lowest(declared()[name])), said
    options = ["-q", "-k", " or ".join(SMOKE.values())]
    assert versions.run(python, list(SMOKE), options) == 0
