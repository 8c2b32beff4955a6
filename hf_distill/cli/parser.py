"""All commands in one parser, and `main`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from hf_distill import __version__
from hf_distill.cli.base import (
    EXIT_CODES,
    Parser,
    UsageError,
    add_command,
    complain,
    failed,
    near_hint,
    say,
)
from hf_distill.utils import interrupts
from hf_distill.utils.folders import FolderError, trouble

COMMANDS = (
    *("train", "tune", "eval", "cache", "robustness", "compare", "card", "push", "export"),
    *("recipes", "new", "init-student", "serve-teacher", "doctor", "completion"),
)
"""In the order of the help."""
EXAMPLES = """examples:
  hf-distill recipes copy text_classification/movie_reviews.yaml my_recipes
  hf-distill train my_recipes/text_classification/movie_reviews.yaml --dry-run
  hf-distill train recipe.yaml --training.num_train_epochs 1 --data.max_train_examples 1500
  hf-distill train recipe.yaml --objective '[{name: forward_kl, temperature: 4}]'
  accelerate launch -m hf_distill train recipe.yaml
  hf-distill push runs/movie-reviews/final --repo me/movie-reviews-student
  hf-distill COMMAND --help     more examples, of each command
"""


FLAGS = {"help", "version", "dry-run", "push", "arms", "trials"}
"""Options of `train`, `cache` and `tune` that are not keys of a recipe."""


def module_of(command: str) -> ModuleType:
    """The module that carries out a command; its import is light."""
    name = "evaluate" if command == "eval" else command.replace("-", "_")
    return importlib.import_module(f"hf_distill.cli.{name}")


def parser() -> argparse.ArgumentParser:
    """The parser of everything but a recipe's overrides."""
    main = Parser(
        prog="hf-distill",
        description="Distil a Hugging Face model from a recipe, and publish the student.",
        epilog=EXAMPLES + "\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main.add_argument("--version", action="version", version=f"hf_distill {__version__}")
    commands = main.add_subparsers(
        title="commands", dest="command", required=True, metavar="COMMAND"
    )
    for name in COMMANDS:
        module = module_of(name)
        texts = (module.HELP, module.DESCRIPTION)
        module.add_arguments(add_command(commands, name, *texts, epilog=module.EPILOG))
    return main


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Take the ``--key value`` and ``--key=value`` of a recipe out of a command line.

    Raises:
        UsageError: a key without a value.
    """
    rest: list[str] = []
    overrides: list[tuple[str, str]] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name in FLAGS:
            rest.append(word)
            continue
        if not equals:
            following = next(words, None)
            if following is None or following.startswith("--"):
                hint = near_hint(f"--{name}", [f"--{flag}" for flag in FLAGS])
                raise UsageError(f"--{name} needs a value{hint or f': --{name} VALUE (in YAML).'}")
            value = following
        overrides.append((name, value))
    return rest, overrides


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; gives the exit code, see ``hf-distill --help``."""
    words = list(sys.argv[1:] if argv is None else argv)
    overrides: list[tuple[str, str]] = []
    try:
        if words[:1] in (["train"], ["cache"], ["tune"]):
            words, overrides = split_overrides(words)
        args = parser().parse_args(words, argparse.Namespace(overrides=overrides))
        with interrupts.heard():
            code: int = module_of(args.command).run(args, say)
            if args.command != "serve-teacher":  # which Ctrl-C ends as it should
                interrupts.check()
        return code
    except (UsageError, FolderError) as error:
        complain(str(error))
        return 2
    except BrokenPipeError:  # `hf-distill … | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if trouble(error) is None:
            raise
        return failed(error)
    except KeyboardInterrupt:
        complain("interrupted; the same command again resumes from the last checkpoint")
        return 130
