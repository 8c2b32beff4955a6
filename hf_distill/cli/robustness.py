"""``hf-distill robustness``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from hf_distill.cli.base import EXIT_CODES, Parser, Say, add_columns, complain, failed
from hf_distill.evaluation.judged_metrics import ATTACKS, AXES

_AXES = "\n".join(f"  robustness.{axis:13}{name}" for axis, name in AXES.items())
_USUAL = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in ATTACKS.items() if names)
HELP = "perturb, attack and compare finished models"
DESCRIPTION = """Evaluate models on the same perturbed and attacked examples, and compare a student
with its baseline per metric: better, worse, or not distinguishable."""
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


def add_arguments(command: Parser) -> None:
    """Add the arguments."""
    folders: dict[str, Any] = {"nargs": "+", "metavar": "DIR", "default": []}
    add = command.add_argument
    add("--model", **{**folders, "required": True}, help="folders or Hub ids, one per seed")
    add("--baseline", **folders, help="the same student without a teacher, one per seed")
    told = "the baseline trained on the same noise or attack, one per seed"
    add("--control", **folders, help=told)
    add("--teacher", **folders, help="the teacher, or several")
    add("--dataset", required=True, metavar="ID", help="data set of the Hub, or file.py:function")
    add("--config", help="configuration of the data set")
    add("--split", default="test", help="default: test")
    add("--validation-split", metavar="SPLIT", help="fit one temperature per model on it")
    add_columns(command)
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
    told = "see below; exit code 3 if not met"
    add("--require", action="append", default=[], metavar="EXPR", help=told)
    add("--output", default="runs/robustness", metavar="DIR", help="default: runs/robustness")


def run(args: argparse.Namespace, say: Say) -> int:
    """Write the report; exit code 3 where a requirement is not met."""
    from hf_distill.robustness.report import check_report
    from hf_distill.robustness.tables import sentences, verdict_table
    from hf_distill.utils.folders import held

    output = Path(args.output)
    try:
        with held(output):
            check_report(output)
            report = _report(args, say)
            failures = report.require(args.require)
            name = Path(args.model[0]).name or args.model[0]
            report.write(args.output, f"Robustness of {name}")
    except (ValueError, ImportError, OSError) as error:
        return failed(error)
    for other, verdicts in report.facts["verdicts"].items():
        level = report.facts["plan"]["level"]
        say(f"\n{verdict_table(verdicts, other, level)}\n\n{sentences(verdicts, other)}")
    for note in report.facts["notes"]:
        say(f"note: {note}")
    say(f"report: {output / 'robustness.md'}")
    for failure in failures:
        complain(failure)
    return 3 if failures else 0


def _report(args: argparse.Namespace, say: Say) -> Any:
    from hf_distill.evaluation.examples import Examples
    from hf_distill.recipe.examples import split_of
    from hf_distill.robustness.comparing import check_requirements
    from hf_distill.robustness.plan import RobustnessConfig
    from hf_distill.robustness.report import evaluate_robustness

    given = {f.name: getattr(args, f.name, None) for f in dataclasses.fields(RobustnessConfig)}
    plan = RobustnessConfig(**{name: value for name, value in given.items() if value is not None})
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
    own = [text for text in args.require if "student." not in text]
    if own and not args.baseline:
        raise ValueError(
            f"Expected --baseline for the requirement {own[0]!r}, which is on a difference. "
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


def _models(args: argparse.Namespace) -> dict[str, Any]:
    """The models by role; several students by number, several teachers in a list."""
    from hf_distill.evaluation.predictor import Predictor

    roles = {"student": args.model, "baseline": args.baseline, "control": args.control}
    for role, sources in roles.items():
        if sources and len(sources) != len(args.model):
            raise ValueError(
                f"Expected as many models as --model ({len(args.model)}) for the role {role!r}, "
                f"which are compared in pairs, got {len(sources)}."
            )
    found: dict[str, Any] = {}
    for role, sources in {**roles, "teacher": args.teacher}.items():
        loaded = [Predictor.load(source) for source in sources]
        loaded = [dataclasses.replace(one, max_length=args.max_length) for one in loaded]
        if loaded:
            several = loaded if role == "teacher" else dict(enumerate(loaded))
            found[role] = several if len(loaded) > 1 else loaded[0]
    return found


def _listed(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(part.strip() for part in text.split(",") if part.strip())
