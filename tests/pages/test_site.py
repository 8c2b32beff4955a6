"""The HTML site: every page is in it, links lead somewhere, warnings are errors."""

from __future__ import annotations

import html.parser
import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def site() -> ModuleType:
    """The script that builds the site."""
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name)
    spec = importlib.util.spec_from_file_location("site_builder", ROOT / ".github/site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Links(html.parser.HTMLParser):
    """Targets of the links and images of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        wanted = {"a": "href", "img": "src", "link": "href", "script": "src"}.get(tag)
        self.found += [value for name, value in attrs if name == wanted and value]


def broken(folder: Path) -> list[tuple[str, str]]:
    """Page and target of each link within the site that leads nowhere."""
    found = []
    for page in sorted(folder.rglob("*.html")):
        for link in Links(page.read_text(encoding="utf-8")).found:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or not parts.path or page.name == "404.html":
                continue
            target = (page.parent / unquote(parts.path)).resolve()
            if not target.exists() or not target.is_relative_to(folder.resolve()):
                found.append((str(page.relative_to(folder)), link))
    return found


@pytest.mark.slow
def test_the_site_has_every_page(site: ModuleType, tmp_path: Path, capfd) -> None:
    """A page that no link reaches is read by nobody; a docstring that warns is shown wrongly."""
    assert site.main(tmp_path) == 0, capfd.readouterr()
    folder = tmp_path / "site"
    readmes = [*ROOT.glob("hf_distill/**/README.md"), ROOT / "recipes/README.md"]
    readmes += [ROOT / "README.md", ROOT / "tests/README.md"]
    for path in readmes:
        assert (folder / path.relative_to(ROOT).parent / "index.html").is_file(), path
    for name in ("contributing", "changelog", "security"):
        assert any(path.parent.name.lower() == name for path in folder.glob("project/*/index.html"))
    shown = (folder / "reference/hf_distill.objectives/index.html").read_text(encoding="utf-8")
    assert "hf_distill.objectives.distributions.ForwardKL" in shown
    assert "&gt;&gt;&gt;" in (folder / "reference/hf_distill.losses/index.html").read_text()
    assert not broken(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "docstring", "code"),
    [
        ("[module](hf_distill/one.py) [text](LICENSE)", "One argument.", 0),
        ("[gone](nowhere.md)", "One argument.", 1),
        ("text", "One argument.\n\n    Args:\n        gone: Not a parameter.\n    ", 1),
    ],
    ids=["clean", "link", "docstring"],
)
def test_a_warning_is_an_error(
    site: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    page: str,
    docstring: str,
    code: int,
) -> None:
    """`mkdocs build --quiet --strict` succeeds whatever is broken."""
    tree = tmp_path / "tree"
    (tree / "hf_distill").mkdir(parents=True)
    shutil.copytree(ROOT / ".github", tree / ".github")
    for path in (tree / ".github").glob("*.md"):
        path.unlink()
    (tree / ".github/SECURITY.md").write_text("# Security\n")
    (tree / "README.md").write_text(f"# Tree\n\n{page}\n")
    (tree / "LICENSE").write_text("text")
    (tree / "hf_distill/__init__.py").write_text('"""Package."""\n')
    (tree / "hf_distill/README.md").write_text("# Package\n\n[up](../README.md)\n")
    (tree / "hf_distill/one.py").write_text(
        f'"""Module."""\n\n\ndef one(x: int) -> int:\n    """{docstring}"""\n    return x\n'
    )
    monkeypatch.setattr(site, "ROOT", tree)
    assert site.main(tmp_path / "build") == code
    if code == 0:
        assert not broken(tmp_path / "build/site")


def test_sections_name_every_page_once(site: ModuleType) -> None:
    """A page in two sections is shown in one; a package without a page of docstrings is missing."""
    names = [name for names in site.pages().values() for name in names]
    assert len(names) == len(set(names))
    assert {"hf_distill/README.md", "recipes/README.md", ".github/CONTRIBUTING.md"} <= set(names)
    assert all((ROOT / name).is_file() for name in names)
    modules = [name for names in site.packages().values() for name in names]
    files = [path for path in ROOT.glob("hf_distill/**/*.py") if path.stem[0] != "_"]
    scripts = [path for path in files if not (path.parent / "__init__.py").is_file()]
    assert len(modules) == len(files) - len(scripts)
    assert sys.modules.get("site") is not site  # the standard library has one of this name
