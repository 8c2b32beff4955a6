"""``hf-distill recipes``."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from hf_distill.cli.base import EXIT_CODES, Parser, Say, UsageError, add_command, near_hint
from hf_distill.utils.files import write_bytes

HELP = "list, show and copy the recipes of the package"
DESCRIPTION = "Recipes of the package."
EPILOG = f"""examples:
  hf-distill recipes list
  hf-distill recipes show text_classification/movie_reviews
  hf-distill recipes copy text_classification/movie_reviews my_recipes
  hf-distill train my_recipes/text_classification/movie_reviews.yaml --dry-run

{EXIT_CODES}"""
WIDTH = 100
"""Characters of a description in the list."""
_BESIDE = re.compile(r"(?<![\w/.])(\.\.?/[\w./-]+\.py):")
"""Files that a recipe names, relative to its own folder."""


def add_arguments(command: Parser) -> None:
    """Add the arguments."""
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    add_command(actions, "list", "one line for each", "One line for each recipe.")
    show = add_command(actions, "show", "print one", "Print a recipe.")
    told = "Copy a recipe into a folder, with the files it references; nothing is overwritten."
    copy = add_command(
        actions, "copy", "copy one into a folder, with the files it references", told
    )
    for action in (show, copy):
        action.add_argument("name", metavar="NAME", help="name in `hf-distill recipes list`")
    copy.add_argument("folder", metavar="DIR", help="created if it does not exist")


def run(args: argparse.Namespace, say: Say) -> int:
    """List, show or copy."""
    root = shipped()
    if args.action == "list":
        names = recipes(root)
        width = max(map(len, names))
        for name, path in names.items():
            say(f"{name:{width}}  {textwrap.shorten(_about(path), WIDTH, placeholder=' …')}")
    elif args.action == "show":
        say(_found(args.name, root).read_text(encoding="utf-8").rstrip("\n"))
    else:
        path = _found(args.name, root)
        for copied in copy(path, root, Path(args.folder)):
            say(f"copied: {copied}")
        target = Path(args.folder) / path.relative_to(root)
        launch = f"accelerate launch --config_file {target} -m hf_distill train RECIPE"
        of_launch = path.parent.name == "accelerate_configs"
        say(f"next: {launch if of_launch else f'hf-distill train {target} --dry-run'}")
    return 0


def shipped() -> Path:
    """Folder of the recipes: inside the package in a wheel, next to it in a checkout (and ``-e``).

    Raises:
        UsageError: the installation lacks them.
    """
    package = Path(__file__).parent.parent
    for folder in (package / "recipes", package.parent / "recipes"):
        if (folder / "sources.py").is_file():
            return folder
    raise UsageError(f"expected recipes in {package} or beside it: install hf_distill again")


def recipes(root: Path) -> dict[str, Path]:
    """Name -> file, of recipes and of configurations for `accelerate launch`."""
    paths = sorted(root.rglob("*.yaml"))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in paths}


def copy(path: Path, root: Path, folder: Path) -> Iterator[Path]:
    """Write a recipe and the files that it names; the folder takes the place of ``root``.

    Raises:
        UsageError: a file is there with other content.
    """
    beside = {(path.parent / name).resolve() for name in _BESIDE.findall(path.read_text("utf-8"))}
    files = [path.resolve(), *sorted(beside)]
    pairs = [(file, folder / file.relative_to(root.resolve())) for file in files]
    for file, target in pairs:
        if target.exists() and target.read_bytes() != file.read_bytes():
            raise UsageError(f"{target} is there with other content; move it, or name another DIR")
    for file, target in pairs:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, file.read_bytes())
        yield target


def shipped_hint(path: str) -> str:
    """Hint for a missing recipe with the name of a shipped one."""
    name = _name(path)
    known = name in recipes(shipped())
    return f" The package has it: hf-distill recipes copy {name} DIR" if known else ""


def _name(path: str) -> str:
    return path.removesuffix(".yaml").removeprefix("recipes/")


def _found(name: str, root: Path) -> Path:
    known, wanted = recipes(root), _name(name)
    found = [key for key in known if wanted in (key, key.rpartition("/")[2])]
    if len(found) == 1:
        return known[found[0]]
    if found:
        raise UsageError(f"{name!r} may be {' or '.join(found)}: give the whole name")
    close = near_hint(wanted, known) or "; see `hf-distill recipes list`"
    raise UsageError(f"there is no recipe {name!r}{close}")


def _about(path: Path) -> str:
    """The first sentence of a recipe's first comment."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text or text.startswith("accelerate launch"):
            break
        lines.append(text)
    return re.split(r"(?<=[\w)]{3}\.)\s", " ".join(lines))[0]  # not at "al."
