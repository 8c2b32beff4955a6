"""Files that a run replaces in its output folder, besides stages; those of others are kept."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from accelerate.utils import broadcast_object_list

from hf_distill.hub.card import BEGIN, END
from hf_distill.hub.exported import FACTS, weights_of
from hf_distill.hub.files import PUBLISHED
from hf_distill.recipe.errors import RecipeError
from hf_distill.recipe.robustness import FILES as PICTURES
from hf_distill.recipe.schema import Recipe
from hf_distill.recipe.stages import RECORD, Stage, check_folder
from hf_distill.utils.folders import FolderError, contents, refuse_foreign, refuse_foreign_files
from hf_distill.utils.processes import process_state

FINAL, EXPORTS = "final", "onnx"
STAGED, REPLACED = f".{FINAL}.tmp", f".{FINAL}.old"
RECIPE, REPORT = "recipe.yaml", "report.json"
REPORTS = (
    *(RECIPE, REPORT, "report.md", "card.json", "curves.png"),
    *("robustness.json", "robustness.md", *PICTURES),
)
"""Files that a run writes into its output folder, besides the stages' folders and `FINAL`."""
_MADE = (RECIPE, REPORT, "curves.png", *PICTURES)
_BY_OTHERS = ("LICENSE*", "NOTICE*", "*.png", f"{EXPORTS}/*", "quantized/*")
"""Published files that a user may add to a student's folder."""


def on_main(do: Callable[[], object]) -> None:
    """Run a function on the main process; its errors are raised on all processes.

    Raises:
        RecipeError: with the message of a ValueError.
    """
    state = process_state()
    refusal: list[str | None] = [None]
    if state.is_main_process:
        try:
            do()
        except ValueError as error:
            refusal = [str(error)]
    if state.num_processes > 1:
        broadcast_object_list(refusal)
    if refusal[0] is not None:
        raise RecipeError(refusal[0])


def check_folders(recipe: Recipe, stages: Iterable[Stage], more: Iterable[str]) -> None:
    """Raise FolderError if the run would replace other people's files in the output folder: with
    its stages, later ones of the names ``more``, or its report."""
    check_places(recipe.root, recipe.file)
    for stage in stages:
        stage.check()
    for name in more:
        check_folder(recipe.root / name)


def check_places(root: Path, recipe: Path) -> None:
    """Raise FolderError if `publish` or the report would replace files of others in ``root``; the
    file ``recipe`` itself is never replaced."""
    given = is_file_of(root / RECIPE, recipe)
    written = [name for name in REPORTS if not (given and name == RECIPE)]
    refuse_foreign_files(root, written, REPORT, {"published_seed", "models", "runs"})
    for name in (FINAL, REPLACED):
        folder = root / name
        names = contents(folder)
        if folder.is_symlink():
            raise FolderError(
                f"Expected {folder} to be a folder, or absent, got a link to {folder.resolve()}. "
                "What lies behind a link is not replaced: remove the link."
            )
        if names and BEGIN not in _text(folder / "README.md"):
            refuse_foreign(folder, names, f"with the lines {BEGIN} and {END} in its README.md")
    staged = root / STAGED
    names = contents(staged, (f".{RECORD}.tmp",))
    if not (staged / RECORD).is_file() and BEGIN not in _text(staged / "README.md"):
        refuse_foreign(staged, names, f"with a {RECORD}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def is_file_of(path: Path, other: Path) -> bool:
    """True if two paths are one file."""
    return path.exists() and other.exists() and path.samefile(other)


def keep_additions(final: Path, staging: Path) -> None:
    """Copy files that neither a run nor an export has written (a licence, an image) to the folder
    that replaces ``final``."""
    exported = (final / FACTS).is_file()
    kept = []
    for path in sorted(final.rglob("*")):
        name = path.relative_to(final).as_posix()
        made = name in _MADE or (exported and name.startswith(f"{EXPORTS}/"))
        added = not made and any(fnmatchcase(name, one) for one in _BY_OTHERS)
        ours = not added and any(fnmatchcase(name, one) for one in PUBLISHED)
        if (path.is_symlink() or path.is_file()) and not ours and not (staging / name).exists():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, staging / name, follow_symlinks=False)
            kept.append(name)
    made_of_weights = [name for name in kept if name.startswith((f"{EXPORTS}/", "quantized/"))]
    if made_of_weights and weights_of(final) != weights_of(staging):
        warnings.warn(
            f"The student's weights have changed, and {', '.join(made_of_weights)} in {final} are "
            "of earlier ones: they were not made here, and are kept. Make them anew before you "
            "publish the folder.",
            stacklevel=2,
        )
