"""``hf-distill tune``."""

from __future__ import annotations

import argparse
from typing import Any

from hf_distill.cli.base import EXIT_CODES, Parser, Say, failed
from hf_distill.cli.train import with_recipe

HELP = "search for a recipe's settings, for student and baseline alike"
DESCRIPTION = """Try settings of the student and of the baseline, the same number of each, score
them on the validation split, confirm the best and the recipe's own on fresh seeds, and write a
report and the tuned recipe. Start the same command several times for several workers; an
interrupted one resumes."""
EPILOG = f"""examples:
  hf-distill tune recipe.yaml --dry-run
  hf-distill tune recipe.yaml --trials 20 --tune.data.max_train_examples 2000
  hf-distill tune recipe.yaml --tune.space '{{objective.0.temperature: [1, 2, 4]}}'
  srun --array=0-7 hf-distill tune recipe.yaml

OUTPUT/tune/ holds report.md, report.json, tuned.yaml and the journal of the trials.

{EXIT_CODES}"""


def add_arguments(command: Parser) -> None:
    """Add the arguments."""
    command.usage = "hf-distill tune RECIPE [--arms LIST] [--trials N] [--dry-run] [--key value]..."
    add = command.add_argument
    add("recipe", metavar="RECIPE", help="the recipe's YAML file")
    add("--arms", metavar="LIST", help="default: student,baseline (tune.arms)")
    add("--trials", metavar="N", help="trials of each arm (tune.trials)")
    add("--dry-run", action="store_true", help="show the space and the plan")


def run(args: argparse.Namespace, say: Say) -> int:
    """Tune a recipe, or print the plan."""
    from hf_distill.recipe.tuning.tuner import Tuner

    if args.trials is not None:
        args.overrides.append(("tune.trials", args.trials))
    if args.arms is not None:
        args.overrides.append(("tune.arms", f"[{args.arms}]"))

    def work(tuner: Any) -> None:
        if args.dry_run:
            say(tuner.plan())
        else:
            tuner()

    try:
        return with_recipe(args, say, work, Tuner)
    except (ImportError, ValueError) as error:
        return failed(error)
