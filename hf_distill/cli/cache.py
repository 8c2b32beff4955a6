"""``hf-distill cache``."""

from __future__ import annotations

import argparse
from typing import Any

from hf_distill.cli.base import EXIT_CODES, Say, add_command, failed
from hf_distill.cli.train import with_recipe

EPILOG = f"""examples:
  hf-distill cache recipe.yaml
  hf-distill cache recipe.yaml --push me/teacher-outputs --teacher.cache.format full

{EXIT_CODES}"""


def add_parser(commands: Any) -> None:
    """Add ``cache`` to the commands."""
    cache = add_command(
        commands,
        "cache",
        "run a recipe's teacher over its data and store the outputs",
        "Train the teacher if necessary, run it once over the training and validation data and\n"
        "store its outputs; `train` with a section `teacher.cache` reads them. An interrupted\n"
        "command resumes; only missing and damaged files are written.",
        usage="hf-distill cache RECIPE [--push ID] [--key value]...",
        epilog=EPILOG,
    )
    cache.add_argument("recipe", metavar="RECIPE", help="the recipe's YAML file")
    cache.add_argument("--push", metavar="ID", help="publish it as a data set, namespace/name")


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
