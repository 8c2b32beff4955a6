"""``hf-distill init-student``."""

from __future__ import annotations

import argparse

from hf_distill.cli.base import EXIT_CODES, Parser, Say, failed

HELP = "make a student from a teacher's layers, width and vocabulary"
DESCRIPTION = "Write a smaller model made of a teacher's weights, with its tokenizer."
EPILOG = f"""examples:
  hf-distill init-student google-bert/bert-base-uncased --layers 6 --output runs/student
  hf-distill init-student openai/whisper-small --layers encoder=12 decoder=2 --output runs/student
  hf-distill init-student Qwen/Qwen3-0.6B --layers 0,9,18,27 --hidden-size 512 --output runs/student
  hf-distill init-student Qwen/Qwen3-0.6B --layers 14 --importance texts.jsonl --output runs/student
  hf-distill init-student sentence-transformers/all-MiniLM-L6-v2 --static --output runs/student

--layers is a number (evenly spaced, first and last included), a list of indices from 0, or
uniform:N, first:N, last:N; for several stacks one per stack, by name; for ResNets the number of
blocks of each stage (2,2,2,2). Use the result as `student.model` of a recipe, or with
DistillationTrainer.

With --importance the most important layers, channels, heads and units are kept instead of the
first. The file has one text per line, or one JSON object per line with text, messages, or prompt
and completion.

With --static the student is one vector per token, the teacher's of each token alone, reduced to
--hidden-size principal components (256) and weighted by the frequency of the token: in the texts
of --importance, or by Zipf's law. --whitening 0.5 and --random-size 384 make retrieval better at
twice the size. Its folder is read by transformers (after import hf_distill),
model2vec and sentence-transformers.

{EXIT_CODES}"""


def add_arguments(command: Parser) -> None:
    """Add the arguments."""
    add = command.add_argument
    add("teacher", metavar="TEACHER", help="a model: Hub id or folder")
    add("--output", required=True, metavar="DIR", help="a new or empty folder")
    add("--layers", nargs="+", default=[], metavar="LAYERS", help="see below")
    add("--hidden-size", type=int, metavar="N", help="width, in whole heads")
    add("--intermediate-size", type=int, metavar="N", help="default: proportional to the width")
    add("--vocabulary-size", type=int, metavar="N", help="keep the first N tokens")
    add("--static", action="store_true", help="a vector per token instead of a network")
    add("--whitening", type=float, default=0.0, metavar="P", help="of --static: from 0 to 1")
    add("--random-size", type=int, default=0, metavar="N", help="of --static: random dimensions")
    add("--importance", metavar="FILE", help="texts (.txt, .jsonl) to measure importance on")


def run(args: argparse.Namespace, say: Say) -> int:
    """Write a student."""
    from hf_distill.models.initialise import write_student

    try:
        write_student(
            args.teacher,
            args.output,
            say,
            layers=args.layers,
            hidden_size=args.hidden_size,
            intermediate_size=args.intermediate_size,
            vocabulary=args.vocabulary_size,
            importance=args.importance,
            static=args.static,
            whitening=args.whitening,
            random_size=args.random_size,
        )
    except (OSError, ValueError) as error:
        return failed(error)
    return 0
