"""``hf-distill robustness``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_distill.robustness.comparing import check_requirements
from hf_distill.robustness.examples import Examples
from hf_distill.robustness.plan import ATTACKS, Plan
from hf_distill.robustness.report import Report, evaluate_robustness
from hf_distill.robustness.subject import Subject
from hf_distill.robustness.tables import AXES, sentences, verdict_table

EXAMPLES = """examples:
  hf-distill robustness --model runs/student --dataset org/reviews --split test
  hf-distill robustness --model runs/student --reference runs/alone --teacher runs/teacher \\
      --dataset recipes/sources.py:movie_reviews --shifted tweets=recipes/sources.py:tweets
  hf-distill robustness --model runs/student/seed-* --reference runs/alone/seed-* \\
      --dataset data.py:pictures --attacks pgd,square --epsilon 0.0314 \\
      --require 'robustness.noise>=0' --require 'robustness.attacked>=-0.01'

--reference is the student that was trained without a teacher; of several models the first is
compared with the first, and so on: name same-seed pairs in one order. With one pair nothing is said
about the method, with fewer than six no axis is called better or worse.

A requirement is AXIS OPERATOR NUMBER. The axes, as the difference of --model and --reference:
"""
Split = Callable[..., Dataset]


def add_parser(commands: Any, exit_codes: str) -> None:
    """Add ``robustness`` to the subcommands of a command line.

    Args:
        commands: What ``add_subparsers`` gave.
        exit_codes: What they mean, for the help.
    """
    axes = "; ".join(f"{axis} ({name.lower()})" for axis, name in AXES.items())
    also = "and by itself student.noise, ….\n\n"
    command = commands.add_parser(
        "robustness",
        help="perturb, attack and compare finished models",
        description=(
            "Ask models the same questions, perturbed and attacked, and judge a student against\n"
            "the same student without a teacher, axis by axis: better, worse, or neither."
        ),
        epilog=f"{EXAMPLES}  {axes};\n  {also}{exit_codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    folders: dict[str, Any] = {"nargs": "+", "metavar": "DIR", "default": []}
    add = command.add_argument
    add("--model", **{**folders, "required": True}, help="folders or Hub ids, one per seed")
    add("--reference", **folders, help="the same student without a teacher, one per seed")
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
        ("attacks", f"default: {_usual()}; `none` for none"),
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


def run(args: argparse.Namespace, split_of: Split, say: Callable[[str], None]) -> int:
    """Write the report.

    Args:
        args: The parsed command line.
        split_of: ``(source, split, config) -> data set``.
        say: Prints a line.

    Returns:
        The exit code: 0; 2 for a wrong command line; 3 where a requirement is not met.
    """
    try:
        report = _report(args, split_of, say)
        failures = report.require(args.require)
    except (ValueError, ImportError) as error:
        _complain(str(error))
        return 2
    except OSError as error:
        _complain(str(error))
        return 1
    report.write(args.output, f"Robustness of {_name(args.model)}")
    for other, verdicts in report.facts["verdicts"].items():
        level = report.facts["plan"]["level"]
        say(f"\n{verdict_table(verdicts, other, level)}\n\n{sentences(verdicts, other)}")
    for note in report.facts["notes"]:
        say(f"note: {note}")
    say(f"report: {Path(args.output) / 'robustness.md'}")
    for failure in failures:
        _complain(failure)
    return 3 if failures else 0


def _report(args: argparse.Namespace, split_of: Split, say: Callable[[str], None]) -> Report:
    plan = _plan(args)
    columns = (args.input_column, args.label_column)
    whole = split_of(args.dataset, args.split, args.config)
    data = Examples.read(whole, *columns, args.groups)
    plan.perturbations_for(data.modality)
    plan.attacks_for(data.modality)
    shifted = {}
    for pair in args.shifted:
        name, equals, source = pair.partition("=")
        if not equals:
            raise ValueError(f"Expected --shifted NAME=ID, got {pair!r}.")
        shifted[name] = Examples.read(split_of(source, args.split), *columns)
    check_requirements(args.require, plan, data.modality, shifted)
    if args.require and not args.reference:
        own = [text for text in args.require if "student." not in text]
        if own:
            raise ValueError(
                f"Expected --reference for the requirement {own[0]!r}, which is on a difference. "
                "Without it, name the model's own figure: student.noise>=0.8."
            )
    if args.examples is not None:
        data = data.take(data.sample(args.examples, plan.seed))
    validation = None
    if args.validation_split is not None:
        held_out = split_of(args.dataset, args.validation_split, args.config)
        validation = Examples.read(held_out, *columns)
    return evaluate_robustness(
        _models(args),
        data,
        plan=plan,
        validation=validation,
        shifted=shifted,
        folder=args.output,
        say=say,
    )


def _plan(args: argparse.Namespace) -> Plan:
    given = {f.name: getattr(args, f.name, None) for f in dataclasses.fields(Plan)}
    return Plan(**{name: value for name, value in given.items() if value is not None})


def _models(args: argparse.Namespace) -> dict[str, Any]:
    roles = {"student": args.model, "alone": args.reference, "control": args.control}
    for role, sources in roles.items():
        if sources and len(sources) != len(args.model):
            raise ValueError(
                f"Expected as many models as --model ({len(args.model)}) for the role {role!r}, "
                f"which are compared in pairs, got {len(sources)}."
            )
    found: dict[str, Any] = {}
    for role, sources in {**roles, "teacher": args.teacher}.items():
        loaded = [_loaded(source, args) for source in sources]
        if len(loaded) > 1:
            found[role] = loaded if role == "teacher" else dict(enumerate(loaded))
        elif loaded:
            found[role] = loaded[0]
    return found


def _loaded(source: str, args: argparse.Namespace) -> Subject:
    return dataclasses.replace(Subject.load(source), max_length=args.max_length)


def _listed(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(part.strip() for part in text.split(",") if part.strip())


def _usual() -> str:
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in ATTACKS.items() if names)


def _name(models: list[str]) -> str:
    return Path(models[0]).name or models[0]


def _complain(message: str) -> None:
    print(f"hf-distill: {message}", file=sys.stderr, flush=True)
