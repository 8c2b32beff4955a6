"""``hf-distill export``."""

from __future__ import annotations

import argparse
from typing import Any

from hf_distill.cli.base import EXIT_CODES, Parser, Say, failed

HELP = "export a finished student to ONNX and int8"
DESCRIPTION = "Write a finished student as ONNX, run both on the same examples and compare."
EPILOG = f"""examples:
  hf-distill export runs/movie-reviews/final
  hf-distill export runs/movie-reviews/final --int8 \\
      --dataset recipes/sources.py:movie_reviews --split test
  hf-distill export runs/squad/final --dataset data.py:questions --label-column none

The files are written to DIR/onnx, with their metadata in export.json, and listed on cards that are
written afterwards. A file with other outputs than the student's is not kept (exit code 1). Requires
pip install 'hf_distill[export]'.

{EXIT_CODES}"""


def add_arguments(command: Parser) -> None:
    """Add the arguments."""
    add = command.add_argument
    add("folder", metavar="DIR", help="a student's folder, such as final/ of `train`")
    add("--int8", action="store_true", help="also with int8 weights of the linear layers")
    add("--int8-embeddings", action="store_true", help="also of the embeddings")
    add("--reduce-range", action="store_true", help="7 bits of 8, for CPUs without VNNI")
    add("--dataset", metavar="ID", help="data set of the Hub, or file.py:function; default: random")
    add("--config", help="configuration of the data set")
    add("--split", default="test", help="default: test")
    add("--input-column", metavar="NAME", help="default: text, sentence, image, img or audio")
    add("--label-column", metavar="NAME", help="default: label or labels; `none`: no accuracy")
    add("--examples", type=int, metavar="N", help="largest number of examples")
    add("--opset", type=int, metavar="N", help="default: 20")
    add("--atol", type=float, metavar="X", help="largest difference of an output; default: 1e-4")


def run(args: argparse.Namespace, say: Say) -> int:
    """Export a folder."""
    from hf_distill.export import ExportError, export_onnx, quantize_int8, read_exports
    from hf_distill.hub.exported import add_exports

    options = {key: getattr(args, key) for key in ("opset", "atol")}
    given = {key: value for key, value in options.items() if value is not None}
    try:
        examples = _examples(args)
        say(_line(export_onnx(args.folder, examples=examples, **given)))
        if args.int8 or args.int8_embeddings:
            more = {"embeddings": args.int8_embeddings, "reduce_range": args.reduce_range}
            say(_line(quantize_int8(args.folder, examples=examples, **more)))
        add_exports(args.folder, read_exports(args.folder))
    except (ValueError, ImportError, OSError, ExportError) as error:
        return failed(error)
    return 0


def _examples(args: argparse.Namespace) -> Any:
    if args.dataset is None:
        return None
    from hf_distill.evaluation.examples import Examples
    from hf_distill.recipe.examples import split_of

    split, column = split_of(args.dataset, args.split, args.config), args.label_column
    if column == "none":
        column = "no label"
        split = split.add_column(column, [0] * len(split))
    found = Examples.read(split, args.input_column, column)
    if args.examples is not None:
        found = found.take(found.sample(args.examples))
    return list(found.values) if args.label_column == "none" else found


def _line(row: Any) -> str:
    from hf_distill.hub.comparison import weight

    what = "random examples" if row.generated else "examples"
    parts = [
        f"{row.file}: {row.format}, {weight(row.size_bytes)}",
        f"largest difference {row.max_difference:.2g} on {row.examples} {what}",
    ]
    if row.same_argmax is not None:
        parts.append(f"same decision {row.same_argmax:.2%}")
    if row.metric is not None:
        parts.append(f"{row.metric} {row.value:.4f} (student in PyTorch: {row.float_value:.4f})")
    return "; ".join(parts)
