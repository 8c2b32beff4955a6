"""``hf-distill recipes``: the recipes that come with the package, in a checkout and in a wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_distill.cli import main
from hf_distill.cli.recipes import recipes, shipped
from hf_distill.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(path.relative_to(ROOT / "recipes") for path in ROOT.glob("recipes/**/*.yaml"))
RECIPES = [path for path in SHIPPED if path.parts[0] != "accelerate_configs"]


def test_all_are_listed_in_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    """A recipe that is not listed is not found; one without a description is not chosen."""
    assert main(["recipes", "list"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in lines] == [str(path.with_suffix("")) for path in SHIPPED]
    about = dict(lines)["image_classification/fashion_mnist"]
    assert about == (
        "Fashion-MNIST, 8,000 training pictures: a small ResNet teaches a small MobileNet."
    )


@pytest.mark.parametrize(
    "name",
    ["image_classification/fashion_mnist", "recipes/image_classification/fashion_mnist.yaml"],
)
def test_show_prints_the_file(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`show > my.yaml` must be the recipe and nothing else."""
    assert main(["recipes", "show", name]) == 0
    file = ROOT / "recipes/image_classification/fashion_mnist.yaml"
    assert capsys.readouterr().out == file.read_text()


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_a_copy_loads(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A copied recipe that names `../sources.py` fails without that file beside it."""
    assert main(["recipes", "copy", str(path), str(tmp_path / "mine")]) == 0
    copied = tmp_path / "mine" / path
    assert copied.read_bytes() == (ROOT / "recipes" / path).read_bytes()
    assert load_recipe(copied, []).name == load_recipe(ROOT / "recipes" / path, []).name
    shown = capsys.readouterr().out
    assert f"copied: {copied}\n" in shown
    if "../sources.py" in copied.read_text():
        source = tmp_path / "mine/sources.py"
        assert source.read_bytes() == (ROOT / "recipes/sources.py").read_bytes()
        assert f"copied: {source}\n" in shown
    assert f"next: hf-distill train {copied} --dry-run" in shown


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An afternoon of changes to a recipe would be gone."""
    words = ["recipes", "copy", "image_classification/fashion_mnist", str(tmp_path)]
    assert main(words) == main(words) == 0
    changed = tmp_path / "sources.py"
    changed.write_text("mine = 1\n")
    (tmp_path / "image_classification/fashion_mnist.yaml").unlink()
    assert main(words) == 2
    assert f"{changed} is there with other content" in capsys.readouterr().err
    assert changed.read_text() == "mine = 1\n"
    assert not (tmp_path / "image_classification/fashion_mnist.yaml").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("robust/movie_revews", "did you mean 'robust/movie_reviews'?"),
        ("movie_reviews", "may be robust/movie_reviews or text_classification/movie_reviews"),
        ("../secrets", "see `hf-distill recipes list`"),
    ],
)
def test_an_unknown_name(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A stack trace, or the wrong recipe, for a typo."""
    assert main(["recipes", "show", name]) == 2
    assert message in capsys.readouterr().err


def test_a_launch_configuration_is_no_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever is told to `train` it is told next that it has a hundred unknown keys."""
    assert main(["recipes", "copy", "ddp", str(tmp_path)]) == 0
    target = tmp_path / "accelerate_configs/ddp.yaml"
    assert f"--config_file {target} -m hf_distill train RECIPE" in capsys.readouterr().out


def test_a_checkout_has_them() -> None:
    """An editable installation has them beside the package."""
    assert shipped() == ROOT / "recipes"
    assert len(recipes(shipped())) == len(SHIPPED)
