"""Implementation of ``hf-distill robustness``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_distill.evaluation.examples import Examples
from hf_distill.evaluation.predictor import Predictor
from hf_distill.robustness.comparing import check_requirements
from hf_distill.robustness.plan import RobustnessConfig
from hf_distill.robustness.report import Report, check_report, evaluate_robustness
from hf_distill.robustness.tables import sentences, verdict_table
from hf_distill.utils.folders import held, trouble

Split = Callable[..., Dataset]


def run(args: argparse.Namespace, split_of: Split, say: Callable[[str], None]) -> int:
    """Write the report.

    Args:
        args: The parsed command line.
        split_of: ``(source, split, config) -> data set``.
        say: Function that prints a line.

    Returns:
        The exit code: 0; 2 for a wrong command line; 3 where a requirement is not met.
    """
    try:
        with held(Path(args.output)):
            check_report(Path(args.output))
            report = _report(args, split_of, say)
            failures = report.require(args.require)
            report.write(args.output, f"Robustness of {_name(args.model)}")
    except (ValueError, ImportError, OSError) as error:
        told = trouble(error)
        _complain(told or str(error))
        return 1 if told is None and isinstance(error, OSError) else 2
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
    if args.require and not args.baseline:
        own = [text for text in args.require if "student." not in text]
        if own:
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


def _plan(args: argparse.Namespace) -> RobustnessConfig:
    given = {f.name: getattr(args, f.name, None) for f in dataclasses.fields(RobustnessConfig)}
    return RobustnessConfig(**{name: value for name, value in given.items() if value is not None})


def _models(args: argparse.Namespace) -> dict[str, Any]:
    roles = {"student": args.model, "baseline": args.baseline, "control": args.control}
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


def _loaded(source: str, args: argparse.Namespace) -> Predictor:
    return dataclasses.replace(Predictor.load(source), max_length=args.max_length)


def _name(models: list[str]) -> str:
    return Path(models[0]).name or models[0]


def _complain(message: str) -> None:
    print(f"hf-distill: {message}", file=sys.stderr, flush=True)
