"""``hf-distill robustness``."""

from __future__ import annotations

import argparse
from typing import Any

from hf_distill.cli.base import EXIT_CODES, Say, add_command
from hf_distill.evaluation.judged_metrics import ATTACKS, AXES

_AXES = "\n".join(f"  robustness.{axis:13}{name}" for axis, name in AXES.items())
_USUAL = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in ATTACKS.items() if names)
EPILOG = f"""examples:
  hf-distill robustness --model runs/student --dataset org/reviews --split test
  hf-distill robustness --model runs/student --baseline runs/baseline --teacher runs/teacher \\
      --dataset recipes/sources.py:movie_reviews --shifted tweets=recipes/sources.py:tweets
  hf-distill robustness --model runs/student/seed-* --baseline runs/baseline/seed-* \\
      --dataset data.py:images --attacks pgd,square --epsilon 0.0314 \\
      --require 'robustness.noise>=0' --require 'robustness.attacked>=-0.01'

--baseline is the same student without a teacher. Several models are compared in pairs, in their
order: name same-seed models in the same order. With one pair there is no claim about the method,
with fewer than six no verdict.

A requirement is METRIC OPERATOR NUMBER. Metrics, as the difference of --model and --baseline:
{_AXES}
and the student's own values: student.noise, ….

{EXIT_CODES}"""


def add_parser(commands: Any) -> None:
    """Add ``robustness`` to the commands."""
    command = add_command(
        commands,
        "robustness",
        "perturb, attack and compare finished models",
        "Evaluate models on the same perturbed and attacked examples, and compare a student with\n"
        "its baseline per metric: better, worse, or not distinguishable.",
        epilog=EPILOG,
    )
    folders: dict[str, Any] = {"nargs": "+", "metavar": "DIR", "default": []}
    add = command.add_argument
    add("--model", **{**folders, "required": True}, help="folders or Hub ids, one per seed")
    add("--baseline", **folders, help="the same student without a teacher, one per seed")
    add(
        "--control",
        **folders,
        help="the baseline trained on the same noise or attack, one per seed",
    )
    add("--teacher", **folders, help="the teacher, or several")
    add("--dataset", required=True, metavar="ID", help="data set of the Hub, or file.py:function")
    add("--config", help="configuration of the data set")
    add("--split", default="test", help="default: test")
    add("--validation-split", metavar="SPLIT", help="fit one temperature per model on it")
    add(
        "--input-column",
        "--text-column",
        "--image-column",
        metavar="NAME",
        help="column of the inputs",
    )
    add("--label-column", metavar="NAME", help="default: label or labels")
    add("--groups", metavar="NAME", help="column with the group of each example")
    add("--shifted", action="append", default=[], metavar="NAME=ID", help="another test set")
    for name, what in (
        ("perturbations", "default: the core set of the modality"),
        ("seen", "perturbations used in training, not included in means"),
        ("attacks", f"default: {_USUAL}; `none` for none"),
        ("invariance", "tests for text; `none` for none"),
    ):
        add(f"--{name}", type=_listed, metavar="A,B", help=what)
    add("--epsilon", type=float, help="default: 8/255 for images; others: RobustnessConfig")
    add("--norm", choices=("linf", "l2"))
    add("--steps", type=int, help="steps of PGD")
    add("--restarts", type=int, help="restarts of PGD")
    add("--queries", type=int, help="queries of Square and of text attacks")
    add("--examples", type=int, metavar="N", help="largest number of examples")
    add("--perturbed-examples", type=int, metavar="N")
    add("--attacked-examples", type=int, metavar="N")
    add("--robust-objective", action="store_true", default=None, help="note a missing control")
    add("--max-length", type=int, metavar="N", help="tokens after which texts are cut")
    add("--batch-size", type=int, metavar="N")
    add("--seed", type=int)
    add(
        "--require",
        action="append",
        default=[],
        metavar="EXPR",
        help="see below; exit code 3 if not met",
    )
    add("--output", default="runs/robustness", metavar="DIR", help="default: runs/robustness")


def run(args: argparse.Namespace, say: Say) -> int:
    """Write the report."""
    from hf_distill.cli.robustness_command import run
    from hf_distill.recipe.examples import split_of

    return run(args, split_of, say)


def _listed(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(part.strip() for part in text.split(",") if part.strip())
