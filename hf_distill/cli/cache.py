"""``hf-distill cache``."""

from __future__ import annotations

import argparse
from typing import Any

from hf_distill.cli.base import EXIT_CODES, Parser, Say, failed
from hf_distill.cli.train import with_recipe

HELP = "run a recipe's teacher over its data and store the outputs"
DESCRIPTION = """Train the teacher if necessary, run it once over the training and validation data
and store its outputs; `train` with a section `teacher.cache` reads them. An interrupted command
resumes; only missing and damaged files are written."""
EPILOG = f"""examples:
  hf-distill cache recipe.yaml
  hf-distill cache recipe.yaml --push me/teacher-outputs --teacher.cache.format full

{EXIT_CODES}"""


def add_arguments(command: Parser) -> None:
    """Add the arguments."""
    command.usage = "hf-distill cache RECIPE [--push ID] [--key value]..."
    command.add_argument("recipe", metavar="RECIPE", help="the recipe's YAML file")
    command.add_argument("--push", metavar="ID", help="publish it as a data set, namespace/name")


def run(args: argparse.Namespace, say: Say) -> int:
    """Write a recipe's cache and publish it if requested."""
    from huggingface_hub.errors import HfHubHTTPError

    from hf_distill.teachers.cache import push_cache

    def work(run: Any) -> None:
        folder = run.write_cache()
        if args.push is not None and run.state.is_main_process:
            run.say(f"pushed: {push_cache(folder, args.push).commit_url}")

    try:
        return with_recipe(args, say, work)
    except (OSError, ValueError, HfHubHTTPError) as error:
        return failed(error)
