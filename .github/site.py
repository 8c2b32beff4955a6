"""The HTML site: the tree's Markdown pages, and the docstrings of each package.

``python .github/site.py`` writes it into ``build/site``; a warning of MkDocs is an error.
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "hf_distill"
SECTIONS = {
    "Manual": (f"{PACKAGE}/**/*.md",),
    "Recipes": ("recipes/*.md",),
    "Model cards": ("model_cards/COMPARISON.md", "model_cards/examples/*/README.md"),
    "Tests": ("tests/**/*.md",),
    "Project": (".github/[!P]*.md",),
}
"""Title in the navigation -> patterns of pages, in the order of the navigation."""
LINK = re.compile(r"(?<=\]\()([^)\s#]+)")
"""Target of a Markdown link, without its anchor."""
ROW = re.compile(r"^\|.*$", re.MULTILINE)
"""Row of a table."""
HEADING = re.compile(r"^# (.+)$", re.MULTILINE)
ABOUT = "    options: {members: false, show_root_heading: false}"
"""What is shown of a package itself: its docstring, without the names that it imports."""
STYLE = """\
.md-grid { max-width: 76rem; }
.md-typeset table:not([class]) { font-size: .68rem; }
.md-typeset table:not([class]) :is(td, th) { padding: .4em .8em; min-width: 0; }
.md-typeset td code { overflow-wrap: normal; word-break: normal; }
"""


def pages() -> dict[str, list[str]]:
    """Section -> its Markdown files, relative to the root."""
    seen: set[str] = set()
    found: dict[str, list[str]] = {}
    for section, patterns in SECTIONS.items():
        paths = [path for pattern in patterns for path in sorted(ROOT.glob(pattern), key=order)]
        names = dict.fromkeys(path.relative_to(ROOT).as_posix() for path in paths)
        found[section] = [name for name in names if name not in seen]
        seen |= names.keys()
    return found


def order(path: Path) -> tuple[Any, ...]:
    """Key that sorts pages: a folder's README, its other pages, the folders below it."""
    return path.parent.parts, path.name != "README.md", path.name


def packages() -> dict[str, list[str]]:
    """Package -> its modules, by dotted name."""
    found: dict[str, list[str]] = {}
    for init in sorted((ROOT / PACKAGE).rglob("__init__.py")):
        package = ".".join(init.parent.relative_to(ROOT).parts)
        modules = [path.stem for path in sorted(init.parent.glob("*.py"))]
        found[package] = [f"{package}.{name}" for name in modules if name[0] != "_"]
    return found


def place(path: str) -> str:
    """Place within the site of a file of the tree; of a folder, its first page."""
    if (ROOT / path).is_dir():
        found = sorted((ROOT / path).rglob("README.md"), key=lambda page: len(page.parts))
        path = found[0].relative_to(ROOT).as_posix() if found else path
    if path.endswith(".md"):
        return path.replace("README.md", "index.md").replace(".github/", "project/")
    folder = path if (ROOT / path).is_dir() else posixpath.dirname(path)
    if path.endswith((".py", folder)) and (ROOT / folder / "__init__.py").is_file():
        return reference(folder.replace("/", "."))
    return path


def reference(package: str) -> str:
    """Place within the site of the docstrings of a package."""
    return f"reference/{package}.md"


def linked(link: str, page: str) -> str | None:
    """Path of what a link in a page leads to, relative to the root; None if it is elsewhere."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return None if ":" in link or not (ROOT / path).exists() else path


def write_pages(folder: Path) -> list[Any]:
    """Write all pages and the files that they link to; return the navigation."""
    shutil.rmtree(folder, ignore_errors=True)
    sections = pages()
    every = ["README.md", *(name for names in sections.values() for name in names)]
    for name in every:

        def lead(match: re.Match[str], name: str = name) -> str:
            path = linked(match[0], name)
            if path is None:
                return match[0]
            if place(path) == path and path not in every and (ROOT / path).is_file():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / path, folder / path)
            return posixpath.relpath(place(path), posixpath.dirname(place(name)) or ".")

        text = (ROOT / name).read_text(encoding="utf-8")
        write(folder / place(name), LINK.sub(lead, ROW.sub(unescaped, text)))
    for package, modules in packages().items():
        parts = [f"# {package}", f"::: {package}\n{ABOUT}", *(f"::: {one}" for one in modules)]
        text = "\n\n".join(parts)
        write(folder / reference(package), text)
    write(folder / "site.css", STYLE)
    nav: list[Any] = [{"Home": "index.md"}]
    nav += [{section: [{title(n): place(n)} for n in names]} for section, names in sections.items()]
    short = {package.removeprefix(f"{PACKAGE}."): reference(package) for package in packages()}
    return [*nav, {"Reference": [{name: page} for name, page in short.items()]}]


def unescaped(row: re.Match[str]) -> str:
    """A row of a table without the escapes that GitHub needs within code, and MkDocs shows."""
    return re.sub(r"`[^`]*`", lambda code: code[0].replace("\\|", "|"), row[0])


def title(name: str) -> str:
    """First heading of a page, for the navigation."""
    found = HEADING.search((ROOT / name).read_text(encoding="utf-8"))
    return found[1].replace("`", "") if found else name


def write(path: Path, text: str) -> None:
    """Write a text file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def main(folder: Path = ROOT / "build") -> int:
    """Build the site; return the exit code of MkDocs."""
    config = yaml.safe_load((ROOT / ".github/mkdocs.yml").read_text(encoding="utf-8"))
    config["nav"] = write_pages(folder / "pages")
    config["docs_dir"], config["site_dir"] = "pages", "site"
    python = config["plugins"][1]["mkdocstrings"]["handlers"]["python"]
    python["paths"] = [str(ROOT)]
    python["options"]["extensions"] = [str(ROOT / ".github/docstrings.py")]
    write(folder / "mkdocs.yml", yaml.safe_dump(config, sort_keys=False))
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(folder / "mkdocs.yml")]
    return subprocess.call(command, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})


if __name__ == "__main__":
    sys.exit(main())
