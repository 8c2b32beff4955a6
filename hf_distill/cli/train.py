"""``hf-distill train``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from hf_distill.cli.base import EXIT_CODES, Parser, Say, complain
from hf_distill.cli.recipes import shipped_hint

HELP = "run a recipe: teacher, baseline, student, report, card"
DESCRIPTION = """Run a recipe. Finished stages are skipped unless their inputs have changed; an
interrupted run resumes with the same command."""
EPILOG = f"""examples:
  hf-distill train recipes/text_classification/movie_reviews.yaml
  hf-distill train recipe.yaml --dry-run
  hf-distill train recipe.yaml --seed 1 --training.learning_rate 2e-5
  accelerate launch -m hf_distill train recipe.yaml

--key value sets a key of the recipe; nested keys have dots, values are YAML:
  --seed 1 --training.learning_rate 2e-5 --data.max_train_examples null
recipes/README.md explains every key. Recipes execute the Python functions they reference
(file.py:function), also with --dry-run: run only recipes you trust.

{EXIT_CODES}"""


def add_arguments(command: Parser) -> None:
    """Add the arguments."""
    command.usage = "hf-distill train RECIPE [--dry-run] [--key value]..."
    add = command.add_argument
    add("recipe", metavar="RECIPE", help="the recipe's YAML file")
    add("--dry-run", action="store_true", help="show the resolved recipe and the plan")


def run(args: argparse.Namespace, say: Say) -> int:
    """Run a recipe, or print its plan."""

    def work(run: Any) -> None:
        if args.dry_run:
            run.say(f"{run.recipe.to_yaml()}\n{run.plan()}")
        else:
            run()

    return with_recipe(args, say, work)


def with_recipe(
    args: argparse.Namespace,
    say: Say,
    work: Callable[[Any], None],
    made: Callable[..., Any] | None = None,
) -> int:
    """Do something with what ``made`` makes of a command line's recipe, by default a
    `hf_distill.recipe.Run`; gives the exit code."""
    from huggingface_hub.errors import HfHubHTTPError

    from hf_distill.cli.progress import progress_callback
    from hf_distill.recipe import RecipeError, Run, load_recipe
    from hf_distill.robustness import RequirementError

    try:
        recipe = load_recipe(args.recipe, args.overrides)
        work((made or Run)(recipe, say, progress_callback()))
    except RecipeError as error:
        complain(f"{error}{'' if os.path.exists(args.recipe) else shipped_hint(args.recipe)}")
        return 2
    except RequirementError as error:
        complain(str(error))
        return 3
    except (FloatingPointError, HfHubHTTPError, ConnectionError) as error:
        complain(str(error))
        return 1
    return 0
