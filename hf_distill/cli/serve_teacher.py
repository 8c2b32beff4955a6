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

Clients: HTTPTeacher("http://HOST:8300", token=…); for language models also VLLMTeacher or any
client of the OpenAI completion protocol. Requests from other machines need a token (or
--no-token). There is no encryption: in an untrusted network use a TLS proxy (--allow-host with its
host name) or an SSH tunnel.

exit codes: 0 ended by Ctrl-C; 1 the model or the address is not available; 2 wrong command line.
"""


def add_parser(commands: Any) -> None:
    """Add ``serve-teacher`` to the commands."""
    serve = add_command(
        commands,
        "serve-teacher",
        "serve a teacher to trainings over HTTP",
        "Serve a teacher to any number of trainings, until Ctrl-C.",
        epilog=EPILOG,
    )
    serve.add_argument("model", metavar="MODEL", help="a model: Hub id or folder")
    serve.add_argument("--task", required=True, choices=TASKS, metavar="TASK", help=_tasks())
    serve.add_argument("--host", default="127.0.0.1", help="default: this machine only")
    serve.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}; 0: a free one")
    serve.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16")
    )
    serve.add_argument("--device", help="default: a GPU if there is one")
    serve.add_argument(
        "--max-pending", type=int, default=16, help="largest number of running and waiting requests"
    )
    serve.add_argument(
        "--max-tokens",
        type=int,
        default=MAX_TOKENS,
        help=f"tokens per request; default: {MAX_TOKENS}",
    )
    serve.add_argument(
        "--max-elements",
        type=int,
        default=MAX_ELEMENTS,
        help=f"numbers per response; default: {MAX_ELEMENTS}",
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
        help="further accepted host name, such as a proxy's; repeatable",
    )


def run(args: argparse.Namespace, say: Say) -> int:
    """Serve until interrupted."""
    from hf_distill.cli.serve_command import run

    return run(args)


def _tasks() -> str:
    return f"its head: {', '.join(TASKS)}"
