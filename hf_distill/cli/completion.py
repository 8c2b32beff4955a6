"""``hf-distill completion``."""

from __future__ import annotations

import argparse
from typing import Any

from hf_distill.cli.base import EXIT_CODES, Parser, Say, complain

HELP = "print a shell completion script"
DESCRIPTION = "Print a script for the completion of commands and options."
EPILOG = f"""examples:
  hf-distill completion bash > ~/.local/share/bash-completion/completions/hf-distill
  hf-distill completion zsh > ~/.zfunc/_hf-distill    # with `fpath+=~/.zfunc` before `compinit`
  hf-distill completion fish > ~/.config/fish/completions/hf-distill.fish

Requires pip install 'hf_distill[completion]'; the script itself has no requirements.

{EXIT_CODES}"""
FILES = ("RECIPE", "DIR|FILE")
FOLDERS = ("DIR", "MODEL", "TEACHER", "RUN")
"""Names of path arguments in the help."""


def add_arguments(command: Parser) -> None:
    """Add the arguments."""
    command.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(args: argparse.Namespace, say: Say) -> int:
    """Print a script."""
    from hf_distill.cli.parser import parser

    try:
        import shtab
    except ImportError:
        complain("completion needs shtab: pip install 'hf_distill[completion]'")
        return 1
    main = parser()
    _complete_paths(main, {**dict.fromkeys(FILES, shtab.FILE), **dict.fromkeys(FOLDERS, shtab.DIR)})
    say(shtab.complete(main, shell=args.shell))
    return 0


def _complete_paths(parser: argparse.ArgumentParser, kinds: dict[str, Any]) -> None:
    """Mark path arguments for shtab."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_paths(command, kinds)
        elif action.metavar in kinds:
            vars(action)["complete"] = kinds[action.metavar]
