"""``hf-distill serve-teacher``."""

from __future__ import annotations

import argparse
from typing import Any

from hf_distill.cli.base import Say, add_command

TASKS = (
    "audio_classification",
    "audio_dual_encoder",
    "audio_text_to_text",
    "causal_lm",
    "ctc",
    "dual_encoder",
    "encoder",
    "image_classification",
    "image_seq2seq",
    "image_text_to_text",
    "masked_lm",
    "multiple_choice",
    "other",
    "question_answering",
    "semantic_segmentation",
    "seq2seq_lm",
    "sequence_classification",
    "sigmoid_dual_encoder",
    "speech_seq2seq",
    "token_classification",
    "video_classification",
    "video_dual_encoder",
)
"""The keys of `hf_distill.models.tasks.TASKS`, whose import takes seconds; a test compares them."""
PORT = 8300
MAX_TOKENS, MAX_ELEMENTS = 1 << 17, 1 << 29
"""Those of `hf_distill.teachers.serving.limits.Limits`; a test compares them too."""
EPILOG = """examples:
  hf-distill serve-teacher Qwen/Qwen3-8B --task causal_lm --dtype bfloat16
  HF_DISTILL_TOKEN=… hf-distill serve-teacher google/vit-large-patch16-224 \\
      --task image_classification --host 0.0.0.0 --token-env HF_DISTILL_TOKEN

A training asks it with HTTPTeacher("http://HOST:8300", token=…), a language model also with
VLLMTeacher or any client of the OpenAI completion protocol. Other machines are served with a
token alone (or --no-token). There is no encryption: over an untrusted network, put it behind a TLS
proxy (--allow-host with the name that it passes on) or an SSH tunnel.

exit codes: 0 ended by Ctrl-C; 1 the model or the address cannot be had; 2 something is wrong with
the command line.
"""


def add_parser(commands: Any) -> None:
    """Add ``serve-teacher`` to the commands."""
    serve = add_command(
        commands,
        "serve-teacher",
        "let trainings ask one teacher over HTTP",
        "Serve a teacher to any number of trainings, until Ctrl-C.",
        epilog=EPILOG,
    )
    serve.add_argument("model", metavar="MODEL", help="a model: Hub id or folder")
    serve.add_argument("--task", required=True, choices=TASKS, metavar="TASK", help=_tasks())
    serve.add_argument("--host", default="127.0.0.1", help="default: this machine alone")
    serve.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}; 0: a free one")
    serve.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16")
    )
    serve.add_argument("--device", help="default: a GPU if there is one")
    serve.add_argument("--max-pending", type=int, default=16, help="requests that run or wait")
    serve.add_argument(
        "--max-tokens", type=int, default=MAX_TOKENS, help=f"of a request; default: {MAX_TOKENS}"
    )
    serve.add_argument(
        "--max-elements",
        type=int,
        default=MAX_ELEMENTS,
        help=f"numbers in an answer, logits and maps included; default: {MAX_ELEMENTS}",
    )
    serve.add_argument("--token-env", metavar="NAME", help="variable with the clients' token")
    serve.add_argument(
        "--no-token", action="store_true", help="serve other machines without a token"
    )
    serve.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="another name by which it may be asked on this machine: a proxy's; repeatable",
    )


def run(args: argparse.Namespace, say: Say) -> int:
    """Serve until interrupted."""
    from hf_distill.cli.serve_command import run

    return run(args)


def _tasks() -> str:
    return f"its head: {', '.join(TASKS)}"
