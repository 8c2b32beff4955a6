"""``hf-distill eval``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_distill.cli.base import EXIT_CODES, Say, add_command, complain

EPILOG = f"""examples:
  hf-distill eval runs/movie-reviews/final --dataset org/reviews --split test
  hf-distill eval runs/student --teacher runs/teacher --baseline runs/alone \\
      --dataset recipes/sources.py:movie_reviews --max-length 64
  hf-distill eval runs/small-lm --teacher runs/lm --dataset data.py:books --text-column text

Classifiers of texts, pictures and sounds with one class per example: accuracy, macro F1, NLL.
Causal language models, on raw texts: perplexity and next-token accuracy. With --teacher also
agreement, KL(teacher‖model) and the share of the teacher's accuracy that is kept. All models run
in turn while their speed is measured, so that other load hits all of them alike.

{EXIT_CODES}"""


def add_parser(commands: Any) -> None:
    """Add ``eval`` to the commands."""
    command = add_command(
        commands,
        "eval",
        "measure a finished model: metrics with intervals, likeness to its teacher, speed, size",
        "Measure a finished model on labelled examples, beside its teacher and the same student\n"
        "without a teacher; print a table and write eval.json and eval.md.",
        epilog=EPILOG,
    )
    add = command.add_argument
    add("model", metavar="MODEL", help="a folder or Hub id")
    add("--teacher", metavar="DIR", help="its teacher, a folder or Hub id")
    add("--baseline", metavar="DIR", help="the same student, trained without a teacher")
    add("--dataset", required=True, metavar="ID", help="of the Hub, or file.py:function")
    add("--config", help="of the data set")
    add("--split", default="test", help="default: test")
    add("--input-column", "--text-column", "--image-column", metavar="NAME", help="the examples")
    add("--label-column", metavar="NAME", help="default: label or labels")
    add("--examples", type=int, metavar="N", help="use no more than these of the split")
    add("--max-length", type=int, metavar="N", help="tokens at which texts are cut")
    add("--batch-size", type=int, default=32, metavar="N", help="default: 32")
    add("--device", default="cpu", help="cpu (default), cuda, mps, …")
    add("--repeats", type=int, default=20, metavar="N", help="of each speed; default: 20")
    add("--output", default="runs/eval", metavar="DIR", help="default: runs/eval")


def run(args: argparse.Namespace, say: Say) -> int:
    """Measure the models, print the table and write the files."""
    from hf_distill.finished import markdown, write

    try:
        facts = _facts(args, say)
        write(facts, args.output)
    except (ValueError, ImportError) as error:
        complain(str(error))
        return 2
    except OSError as error:
        complain(str(error))
        return 1
    say(f"\n{markdown(facts)}\n")
    say(f"report: {Path(args.output) / 'eval.md'}, and eval.json beside it")
    return 0


def _facts(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    import dataclasses

    from hf_distill.finished import LANGUAGE_MODEL, evaluate, move, read_texts, task_of_all
    from hf_distill.recipe.examples import split_of
    from hf_distill.robustness import Examples, Subject

    sources = {"model": args.model, "baseline": args.baseline, "teacher": args.teacher}
    subjects = {
        role: dataclasses.replace(Subject.load(source), max_length=args.max_length)
        for role, source in sources.items()
        if source is not None
    }
    for subject in subjects.values():
        move(subject, args.device)
    whole = split_of(args.dataset, args.split, args.config)
    if task_of_all(subjects) == LANGUAGE_MODEL:
        data = read_texts(whole, args.input_column)
    else:
        data = Examples.read(whole, args.input_column, args.label_column)
    if args.examples is not None:
        data = data.take(data.sample(args.examples))
    facts = evaluate(subjects, data, batch_size=args.batch_size, repeats=args.repeats, say=say)
    name = Path(args.dataset).name if ".py:" in args.dataset else args.dataset
    return {"dataset": {"name": name, "config": args.config, "split": args.split}, **facts}
