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
  hf-distill robustness --model runs/student --baseline runs/alone --teacher runs/teacher \\
      --dataset recipes/sources.py:movie_reviews --shifted tweets=recipes/sources.py:tweets
  hf-distill robustness --model runs/student/seed-* --baseline runs/baseline/seed-* \\
      --dataset data.py:pictures --attacks pgd,square --epsilon 0.0314 \\
      --require 'robustness.noise>=0' --require 'robustness.attacked>=-0.01'

--baseline is the student that was trained without a teacher; of several models the first is
compared with the first, and so on: name same-seed pairs in one order. With one pair nothing is said
about the method, with fewer than six no axis is called better or worse.

A requirement is AXIS OPERATOR NUMBER. The axes, as the difference of --model and --baseline:
{_AXES}
and by itself student.noise, ….

{EXIT_CODES}"""


def add_parser(commands: Any) -> None:
    """Add ``robustness`` to the commands."""
    command = add_command(
        commands,
        "robustness",
        "perturb, attack and compare finished models",
        "Ask models the same questions, perturbed and attacked, and judge a student against\n"
        "the same student without a teacher, axis by axis: better, worse, or neither.",
        epilog=EPILOG,
    )
    folders: dict[str, Any] = {"nargs": "+", "metavar": "DIR", "default": []}
    add = command.add_argument
    add("--model", **{**folders, "required": True}, help="folders or Hub ids, one per seed")
    add("--baseline", **folders, help="the same student without a teacher, one per seed")
    add("--control", **folders, help="likewise, trained on the same noise or attack")
    add("--teacher", **folders, help="the teacher, or several")
    add("--dataset", required=True, metavar="ID", help="of the Hub, or file.py:function")
    add("--config", help="of the data set")
    add("--split", default="test", help="default: test")
    add("--validation-split", metavar="SPLIT", help="fit one temperature per model on it")
    add("--input-column", "--text-column", "--image-column", metavar="NAME", help="the examples")
    add("--label-column", metavar="NAME", help="default: label or labels")
    add("--groups", metavar="NAME", help="column with the group of each example")
    add("--shifted", action="append", default=[], metavar="NAME=ID", help="another test set")
    for name, what in (
        ("perturbations", "default: the core set for the kind of examples"),
        ("seen", "perturbations of the training, left out of the means"),
        ("attacks", f"default: {_USUAL}; `none` for none"),
        ("invariance", "tests for text; `none` for none"),
    ):
        add(f"--{name}", type=_listed, metavar="A,B", help=what)
    add("--epsilon", type=float, help="default: 8/255 in pictures; see Plan for others")
    add("--norm", choices=("linf", "l2"))
    add("--steps", type=int, help="of PGD")
    add("--restarts", type=int, help="of PGD")
    add("--queries", type=int, help="of Square and of searches in text")
    add("--examples", type=int, metavar="N", help="use no more than these of the split")
    add("--perturbed-examples", type=int, metavar="N")
    add("--attacked-examples", type=int, metavar="N")
    add("--robust-objective", action="store_true", default=None, help="so a control is due")
    add("--max-length", type=int, metavar="N", help="tokens at which texts are cut")
    add("--batch-size", type=int, metavar="N")
    add("--seed", type=int)
    add("--require", action="append", default=[], metavar="EXPR", help="see below; exit code 3")
    add("--output", default="runs/robustness", metavar="DIR", help="default: runs/robustness")


def run(args: argparse.Namespace, say: Say) -> int:
    """Write the report."""
    from hf_distill.cli.robustness_command import run
    from hf_distill.recipe.examples import split_of

    return run(args, split_of, say)


def _listed(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(part.strip() for part in text.split(",") if part.strip())
