"""The command line: ``hf-distill`` and ``python -m hf_distill``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from huggingface_hub.errors import HfHubHTTPError

from hf_distill import __version__, serving
from hf_distill.cache import push_cache
from hf_distill.hub.push import push_folder
from hf_distill.initialise import write_student
from hf_distill.recipe import RecipeError, Run, load_recipe
from hf_distill.recipe.examples import split_of
from hf_distill.robustness import command as robustness
from hf_distill.robustness.report import RequirementError

EXAMPLES = """examples:
  hf-distill train recipes/text_classification/movie_reviews.yaml
  hf-distill train recipes/text_classification/movie_reviews.yaml --dry-run
  hf-distill train recipe.yaml --training.num_train_epochs 1 --data.max_train_examples 1500
  hf-distill train recipe.yaml --objective '[{name: forward_kl, temperature: 4}]'
  accelerate launch -m hf_distill train recipe.yaml
  hf-distill push runs/movie-reviews/final --repo me/movie-reviews-student
  hf-distill init-student google-bert/bert-base-uncased --layers 6 --output runs/student
  hf-distill cache recipe.yaml
  hf-distill robustness --model runs/student --reference runs/alone --dataset data.py:reviews
  hf-distill serve-teacher Qwen/Qwen3-8B --task causal_lm --dtype bfloat16
"""
INIT_EXAMPLES = """examples:
  hf-distill init-student google-bert/bert-base-uncased --layers 6 --output runs/student
  hf-distill init-student openai/whisper-small --layers encoder=12 decoder=2 --output runs/student
  hf-distill init-student Qwen/Qwen3-0.6B --layers 0,9,18,27 --hidden-size 512 --output runs/student

--layers is a number (evenly spaced, the first and the last among them), a list of indices from 0,
or uniform:N, first:N, last:N; for a model of several stacks once for each, by name; for ResNet and
the like the number of blocks of each stage (2,2,2,2). The student is for `student.model` of a
recipe, or for DistillationTrainer.
"""
EXIT_CODES = """exit codes: 0 done; 1 training or publishing failed; 2 something is wrong with the
recipe or the command line; 3 a requirement on robustness is not met; 130 interrupted (the same
command again resumes).
"""
FLAGS = {"help", "version", "dry-run", "push"}


def parser() -> argparse.ArgumentParser:
    """The parser of everything but a recipe's overrides."""
    raw = argparse.RawDescriptionHelpFormatter
    main = argparse.ArgumentParser(
        prog="hf-distill",
        description="Distil a Hugging Face model from a recipe, and publish the student.",
        epilog=EXAMPLES + "\n" + EXIT_CODES,
        formatter_class=raw,
    )
    main.add_argument("--version", action="version", version=f"hf_distill {__version__}")
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="run a recipe: teacher, baseline, student, report, card",
        description=(
            "Run a recipe. Finished stages are not run again unless what they depend on has\n"
            "changed; an interrupted run resumes when the same command is given again."
        ),
        usage="hf-distill train RECIPE [--dry-run] [--key value]...",
        epilog=(
            "--key value sets a key of the recipe; nested keys have dots, values are YAML:\n"
            "  --seed 1 --training.learning_rate 2e-5 --data.max_train_examples null\n"
            "recipes/README.md explains every key.\n\n" + EXIT_CODES
        ),
        formatter_class=raw,
    )
    train.add_argument("recipe", metavar="RECIPE", help="the recipe's YAML file")
    train.add_argument(
        "--dry-run", action="store_true", help="show the resolved recipe and what would be done"
    )
    _add_cache(commands)
    push = commands.add_parser(
        "push",
        help="publish a finished student with its card",
        description="Publish a finished student's folder on the Hugging Face Hub, in one commit.",
    )
    push.add_argument("folder", metavar="DIR", help="what `train` left under final/")
    push.add_argument("--repo", required=True, metavar="ID", help="namespace/name")
    push.add_argument("--private", action="store_true", default=None, help="if it is created")
    push.add_argument("--revision", help="branch to push to, created when missing")
    _add_init_student(commands)
    robustness.add_parser(commands, EXIT_CODES)
    serving.add_parser(commands)
    return main


def _add_cache(commands: Any) -> None:
    cache = commands.add_parser(
        "cache",
        help="run a recipe's teacher over its data, and keep what it says",
        description=(
            "Train the teacher if need be, run it once over the training and validation data and\n"
            "keep its outputs; `train` with a section `teacher.cache` then needs no teacher in\n"
            "memory. Interrupted, the same command goes on; damaged files alone are made again."
        ),
        usage="hf-distill cache RECIPE [--push ID] [--key value]...",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cache.add_argument("recipe", metavar="RECIPE", help="the recipe's YAML file")
    cache.add_argument("--push", metavar="ID", help="publish it as a data set, namespace/name")


def _add_init_student(commands: Any) -> None:
    init = commands.add_parser(
        "init-student",
        help="make a student out of a teacher's layers, width and vocabulary",
        description="Write a smaller model made of a teacher's weights, with its tokenizer.",
        epilog=INIT_EXAMPLES + "\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    init.add_argument("teacher", metavar="TEACHER", help="a model: Hub id or folder")
    init.add_argument("--output", required=True, metavar="DIR", help="a new or empty folder")
    init.add_argument("--layers", nargs="+", default=[], metavar="LAYERS", help="see below")
    init.add_argument("--hidden-size", type=int, metavar="N", help="width, in whole heads")
    init.add_argument(
        "--intermediate-size", type=int, metavar="N", help="default: in proportion to the width"
    )
    init.add_argument("--vocabulary-size", type=int, metavar="N", help="keep the first N tokens")


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Take the ``--key value`` and ``--key=value`` of a recipe out of a command line.

    Raises:
        RecipeError: a key without a value.
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
                raise RecipeError(f"--{name} needs a value: --{name} VALUE (in YAML).")
            value = following
        overrides.append((name, value))
    return rest, overrides


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        The exit code, see ``hf-distill --help``.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    overrides: list[tuple[str, str]] = []
    try:
        if words[:1] in (["train"], ["cache"]):
            words, overrides = split_overrides(words)
        args = parser().parse_args(words)
        if args.command == "push":
            return _push(args)
        if args.command == "init-student":
            return _init_student(args)
        if args.command == "serve-teacher":
            return serving.run(args)
        if args.command == "robustness":
            return robustness.run(args, split_of, _say)
        run = Run(load_recipe(args.recipe, overrides), _say)
        if args.command == "cache":
            return _cache(run, args.push)
        if args.dry_run:
            run.say(f"{run.recipe.to_yaml()}\n{run.plan()}")
        else:
            run()
    except RecipeError as error:
        _complain(str(error))
        return 2
    except RequirementError as error:
        _complain(str(error))
        return 3
    except FloatingPointError as error:
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        _complain("interrupted; the same command again resumes from the last checkpoint")
        return 130
    return 0


def _cache(run: Run, repo: str | None) -> int:
    try:
        folder = run.write_cache()
        if repo is not None and run.state.is_main_process:
            run.say(f"pushed: {push_cache(folder, repo).commit_url}")
    except RecipeError:
        raise
    except (OSError, ValueError, HfHubHTTPError) as error:
        _complain(str(error))
        return 1
    return 0


def _push(args: argparse.Namespace) -> int:
    try:
        commit = push_folder(args.folder, args.repo, private=args.private, revision=args.revision)
    except (OSError, ValueError, HfHubHTTPError) as error:
        _complain(str(error))
        return 1
    _say(f"pushed: {commit.commit_url}")
    return 0


def _init_student(args: argparse.Namespace) -> int:
    try:
        write_student(
            args.teacher,
            args.output,
            _say,
            layers=args.layers,
            hidden_size=args.hidden_size,
            intermediate_size=args.intermediate_size,
            vocabulary=args.vocabulary_size,
        )
    except (OSError, ValueError) as error:
        _complain(str(error))
        return 2 if isinstance(error, ValueError) else 1
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _complain(message: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # once, not by every process of a launch
        print(f"hf-distill: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
