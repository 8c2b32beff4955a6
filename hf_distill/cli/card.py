"""``hf-distill card``."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_distill.cli.base import EXIT_CODES, Parser, Say, add_command, complain

HELP = "check a student's card and folder before they are published"
DESCRIPTION = "Model cards."
EPILOG = f"""examples:
  hf-distill card check runs/movie-reviews/final
  hf-distill card check README.md

`check` exits with 0 if there are no problems, with 2 otherwise.

{EXIT_CODES}"""
CHECK = """Check what would be published, offline, one line per problem. Of a folder the files and
the card are checked, of a file the card with its images.
"""


def add_arguments(command: Parser) -> None:
    """Add the arguments."""
    parts = command.add_subparsers(dest="part", required=True, metavar="check")
    check = add_command(parts, "check", "check a card, offline", CHECK, epilog=EPILOG)
    check.add_argument("path", metavar="DIR|FILE", help="a student's folder, or a card")


def run(args: argparse.Namespace, say: Say) -> int:
    """Check a card."""
    from hf_distill.hub.check import card_problems
    from hf_distill.hub.files import folder_problems, images_of
    from hf_distill.hub.leaks import read_text

    path = Path(args.path)
    if path.is_file():
        try:
            text = read_text(args.path, path.read_bytes())
        except ValueError as error:
            complain(str(error))
            return 2
        lacking = [name for name in images_of(text) if not (path.parent / name).is_file()]
        problems = [
            *card_problems(text),
            *(f"shows {name}, which is not there" for name in lacking),
        ]
    elif path.is_dir():
        problems = folder_problems(path)
    else:
        complain(f"expected a student's folder or a card, got {args.path}, which does not exist")
        return 2
    for problem in problems:
        say(problem)
    if not problems:
        say(f"{args.path}: no problems")
    return 2 if problems else 0
