"""Shared parts of the commands: parser with suggestions, exit codes, output.

A command is a module of this package with ``HELP`` (one line for the list of commands),
``DESCRIPTION``, ``EPILOG`` (examples and exit codes) and ``add_arguments(command)``, which import
nothing heavy, and ``run(args, say) -> int``, which imports what it needs and gives an exit code.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from hf_distill.utils.folders import trouble
from hf_distill.utils.suggest import nearest

EXIT_CODES = """exit codes: 0 done; 1 training or publishing failed; 2 wrong command line, recipe or
input, or a folder or disk that cannot be written; 3 a requirement on robustness is not met;
130 interrupted (the same command resumes).
"""
Say = Callable[[str], None]


class UsageError(ValueError):
    """Invalid command line; the message contains the remedy."""


class Parser(argparse.ArgumentParser):
    """Argument parser that suggests the nearest option."""

    _words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; unknown options are refused here, where suggestions are known."""
        self._words = sys.argv[1:] if args is None else list(args)
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse an invalid choice with the nearest valid one."""
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            message = f"{str(value)!r} is unknown{near_hint(str(value), names)}"
            raise argparse.ArgumentError(action, f"{message} (expected one of {', '.join(names)})")

    def error(self, message: str) -> NoReturn:
        """Print the error with suggestions; exit code 2."""
        options = self._option_string_actions
        for word in self._words:
            name = word.partition("=")[0]
            if name.startswith("--") and not any(known.startswith(name) for known in options):
                message += f"; {name} is unknown{near_hint(name, options)}"
        super().error(message)


def near_hint(word: str, names: Iterable[str]) -> str:
    """``, did you mean 'train'?``, or nothing where no name is near."""
    found = nearest(word, names)
    return f", did you mean {found!r}?" if found else ""


def add_command(commands: Any, name: str, help: str, description: str, **options: Any) -> Parser:
    """Add a command to what ``add_subparsers`` gave; the texts keep their layout."""
    layout = argparse.RawDescriptionHelpFormatter
    added: Parser = commands.add_parser(
        name, help=help, description=description, formatter_class=layout, **options
    )
    return added


def add_columns(command: Parser) -> None:
    """Add the columns of labelled examples."""
    names = ("--input-column", "--text-column", "--image-column")
    command.add_argument(*names, metavar="NAME", help="column of the inputs")
    command.add_argument("--label-column", metavar="NAME", help="default: label or labels")


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)


def complain(message: str) -> None:
    """Print an error on stderr, once per launch."""
    if os.environ.get("RANK", "0") == "0":
        print(f"hf-distill: {message}", file=sys.stderr, flush=True)


def failed(error: Exception) -> int:
    """Print a failure; gives the exit code: 2 for what the user can change, disks included."""
    told = trouble(error)
    complain(told or str(error))
    return 2 if told or isinstance(error, (ValueError, ImportError)) else 1
