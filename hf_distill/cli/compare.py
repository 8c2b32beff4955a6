"""``hf-distill compare``."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_distill.cli.base import EXIT_CODES, Parser, Say, failed

HELP = "compare several runs: tables, a plot, tests over common seeds"
DESCRIPTION = (
    "Compare runs of recipes; print tables, write compare.md, compare.png and compare.json."
)
EPILOG = f"""examples:
  hf-distill compare runs/kl runs/kl_and_features
  hf-distill compare runs/*/ --output runs/compare

RUN is the output folder of a finished recipe, or its final/. The students of each run are compared
with those of the first, seed by seed; with fewer than six common seeds there is no verdict. Runs
with other test examples or another metric are listed with a warning and not compared.

{EXIT_CODES}"""


def add_arguments(command: Parser) -> None:
    """Add the arguments."""
    add = command.add_argument
    add("runs", nargs="+", metavar="RUN", help="a recipe's output folder")
    add("--output", default="runs/compare", metavar="DIR", help="default: runs/compare")


def run(args: argparse.Namespace, say: Say) -> int:
    """Compare the runs, print the tables and write the files."""
    from hf_distill.recipe.compare_report import check, markdown, write
    from hf_distill.recipe.compare_runs import compare, read_runs
    from hf_distill.utils.folders import held

    try:
        with held(Path(args.output)):
            check(args.output)
            facts = compare(read_runs(args.runs))
            write(facts, args.output)
    except (ValueError, ImportError, OSError) as error:
        return failed(error)
    say(markdown(facts))
    say(f"\nreport: {Path(args.output) / 'compare.md'}, with compare.png and compare.json")
    return 0
