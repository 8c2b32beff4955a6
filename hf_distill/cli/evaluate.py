"""``hf-distill eval``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_distill.cli.base import EXIT_CODES, Parser, Say, add_columns, failed, near_hint

HELP = "evaluate a finished model: metrics with intervals, agreement with the teacher, speed"
DESCRIPTION = """Evaluate a finished model on labelled examples, with its teacher and its baseline;
print a table and write eval.json and eval.md."""
EPILOG = f"""examples:
  hf-distill eval runs/movie-reviews/final --dataset org/reviews --split test
  hf-distill eval runs/student --teacher runs/teacher --baseline runs/baseline \\
      --dataset recipes/sources.py:movie_reviews --max-length 64
  hf-distill eval runs/small-lm --teacher runs/lm --data books.txt
  hf-distill eval runs/small-lm --teacher runs/lm --data held_out.jsonl --text-column text

Classifiers of texts, images and sounds with one class per example: accuracy, macro F1, NLL.
Causal language models, on raw texts: perplexity, next-token accuracy, entropy, calibration error.
With --teacher also agreement, KL(teacher‖model) and retention of the teacher's accuracy; for
language models also KL(model‖teacher), the entropy gap and the acceptance rate of draft tokens.
--data is a file with one text (.txt) or one JSON object (.jsonl) per line. Latency is measured on
all models in alternation, so that other load affects all of them.

{EXIT_CODES}"""


def add_arguments(command: Parser) -> None:
    """Add the arguments."""
    add = command.add_argument
    add("model", metavar="MODEL", help="a folder or Hub id")
    add("--teacher", metavar="DIR", help="the teacher, a folder or Hub id")
    add("--baseline", metavar="DIR", help="the same student without a teacher")
    source = command.add_mutually_exclusive_group(required=True)
    told = "data set of the Hub, or file.py:function, which is executed"
    source.add_argument("--dataset", metavar="ID", help=told)
    source.add_argument("--data", metavar="FILE", help="a .txt or .jsonl file on this machine")
    add("--config", help="configuration of the data set")
    add("--split", help="split; default: test")
    add_columns(command)
    add("--examples", type=int, metavar="N", help="largest number of examples")
    add("--max-length", type=int, metavar="N", help="tokens after which texts are cut")
    add("--batch-size", type=int, default=32, metavar="N", help="default: 32")
    add("--device", default="cpu", help="cpu (default), cuda, mps, …")
    add("--repeats", type=int, default=20, metavar="N", help="runs per latency; default: 20")
    add("--output", default="runs/eval", metavar="DIR", help="default: runs/eval")


def run(args: argparse.Namespace, say: Say) -> int:
    """Measure the models, print the table and write the files."""
    from hf_distill.evaluation.evaluate_models import check, markdown, write
    from hf_distill.utils.folders import held

    try:
        with held(Path(args.output)):
            check(args.output)
            facts = _facts(args, say)
            write(facts, args.output)
    except (ValueError, ImportError, OSError) as error:
        return failed(error)
    say(f"\n{markdown(facts)}\n")
    say(f"report: {Path(args.output) / 'eval.md'}, and eval.json beside it")
    return 0


def _facts(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    import dataclasses

    from hf_distill.evaluation.evaluate_models import (
        LANGUAGE_MODEL,
        evaluate,
        move,
        read_texts,
        task_of_all,
    )
    from hf_distill.recipe.examples import split_of
    from hf_distill.robustness import Examples, Predictor

    if args.data and (args.split or args.config):
        raise ValueError("--split and --config are of a --dataset: a --data file is read whole.")
    split = args.split or "test"
    sources = {"model": args.model, "baseline": args.baseline, "teacher": args.teacher}
    subjects = {
        role: dataclasses.replace(Predictor.load(source), max_length=args.max_length)
        for role, source in sources.items()
        if source is not None
    }
    for subject in subjects.values():
        move(subject, args.device)
    whole = _read(args.data) if args.data else split_of(args.dataset, split, args.config)
    if task_of_all(subjects) == LANGUAGE_MODEL:
        data = read_texts(whole, args.input_column)
    else:
        data = Examples.read(whole, args.input_column, args.label_column)
    if args.examples is not None:
        data = data.take(data.sample(args.examples))
    facts = evaluate(subjects, data, batch_size=args.batch_size, repeats=args.repeats, say=say)
    if args.data:
        return {"dataset": {"name": Path(args.data).name}, **facts}
    name = Path(args.dataset).name if ".py:" in args.dataset else args.dataset
    return {"dataset": {"name": name, "config": args.config, "split": split}, **facts}


def _read(file: str) -> Any:
    """A data set of the lines of a file, texts or JSON objects, without empty ones."""
    from datasets import Dataset

    path = Path(file)
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(
            f"--data: expected a .txt file (a text in each line) or a .jsonl file (an object in "
            f"each line), got {file}. Data sets of other kinds: --dataset."
        )
    if not path.is_file():
        beside = [one.name for one in path.parent.glob("*") if one.suffix == path.suffix]
        raise ValueError(f"--data: there is no file {file}{near_hint(path.name, beside)}")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"--data: expected {file} to be UTF-8: {error}") from None
    rows = [_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ValueError(f"--data: {file} is empty.")
    return Dataset.from_list(rows)


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    if path.suffix == ".txt":
        return {"text": line.removesuffix("\r")}
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"--data: line {number} of {path} is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"--data: line {number} of {path} is no JSON object: {line:.40}")
    return row
