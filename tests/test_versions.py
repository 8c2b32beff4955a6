"""The declared versions: that each is what `versions.py` installs, and that the lowest work."""

from __future__ import annotations

import ast
import importlib.metadata
import site
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import versions
from packaging.requirements import Requirement
from versions import LOWEST, NEWEST, ROOT, declared, lowest, wanted

BY_WAY_OF = {
    "onnx_ir": "onnxscript",
    "packaging": "transformers",
    "psutil": "accelerate",
    "pyarrow": "datasets",
    "tokenizers": "transformers",
    "tqdm": "transformers",
}
"""Modules that the library imports without declaring them, and the dependency that requires them in
a version that it chooses."""
NOT_HERE = {"imagecorruptions": "imagecorruptions-imaug"}
"""Module -> distribution, of an extra that the tests do not install."""
BROUGHT = {"deepspeed", "lm_eval", "mlflow"}
"""Modules of users' own environments: imported only where a run asks for them."""
AS_HERE = (
    *("torch=", "numpy", "scipy", "scikit-learn", "matplotlib", "pillow"),
    *("pytest", "tensorboard"),
)
"""What the short form does not install: gigabytes, and what others here are compiled against."""
SMOKE = {
    "recipe/test_recipes.py": "report_tells_what",
    "models/test_peft.py": "resuming_is_exact or the_best_adapter",
    "data/test_chat.py": "templates_of_all_kinds",
    "teachers/cache/test_cached_teacher.py": "cached_and_live_training",
    "training/test_trainer.py": "checkpointed_activations",
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
    assert all((ROOT / "tests" / name).is_file() for name in (*versions.CORE, *SMOKE))


def test_a_dependency_without_a_lowest_version_is_refused() -> None:
    """Any version would do, which nobody has tried."""
    with pytest.raises(ValueError, match="Expected a lowest version"):
        lowest(Requirement("torch"))


def imported() -> Iterator[tuple[Path, str, bool]]:
    """File, module and whether importing the file imports it, of each import of another library."""
    for path in sorted((ROOT / "hf_distill").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [str(node.module)]
            else:
                continue
            for module in {name.partition(".")[0] for name in names}:
                if module not in {*sys.stdlib_module_names, "hf_distill"}:
                    yield path, module, node in tree.body


def distributions(module: str, known: Mapping[str, Sequence[str]]) -> set[str]:
    """Names of the distributions that hold a module, or of the one that requires its own."""
    by = BY_WAY_OF.get(module)
    if by is None:
        return {
            name.replace("_", "-").lower()
            for name in known.get(module, [NOT_HERE.get(module, module)])
        }
    try:
        lines = importlib.metadata.requires(by) or []
    except importlib.metadata.PackageNotFoundError:  # of an extra that is not installed
        return {by}
    needs = [Requirement(line) for line in lines]
    assert any(one.name.replace("-", "_") == module and one.marker is None for one in needs), module
    return {by}


def test_what_is_imported_is_declared() -> None:
    """SciPy came along with scikit-learn, in whatever version that takes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core = {Requirement(line).name for line in project["dependencies"]}
    extras = project["optional-dependencies"].items()
    optional = {Requirement(line).name for name, lines in extras if name != "dev" for line in lines}
    known = importlib.metadata.packages_distributions()
    needed = set()
    for path, module, always in imported():
        if module in BROUGHT and not always:
            continue
        found = distributions(module, known)
        allowed = core if always else core | optional
        assert found & allowed, f"{path} imports {module}, which pyproject.toml does not declare"
        needed |= found & core
    assert needed == core, f"declared and never imported: {core - needed}"


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
