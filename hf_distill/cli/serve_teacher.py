"""``hf-distill serve-teacher``."""

from __future__ import annotations

import argparse
import os
from typing import Any

from hf_distill.cli.base import Parser, Say, complain

TASKS = (
    *("audio_classification", "audio_dual_encoder", "audio_text_to_text", "bi_encoder"),
    *("causal_lm", "ctc", "dual_encoder", "encoder", "image_classification", "image_seq2seq"),
    *("image_text_to_text", "masked_lm", "multiple_choice", "other", "question_answering"),
    *("semantic_segmentation", "seq2seq_lm", "sequence_classification", "sigmoid_dual_encoder"),
    *("speech_seq2seq", "token_classification", "video_classification", "video_dual_encoder"),
)
"""The keys of `hf_distill.models.tasks.TASKS`, whose import takes seconds; a test compares them."""
PORT = 8300
MAX_TOKENS, MAX_ELEMENTS = 1 << 17, 1 << 29
"""Those of `hf_distill.teachers.serving.limits.Limits`; a test compares them too."""
HELP = "serve a teacher to trainings over HTTP"
DESCRIPTION = "Serve a teacher to any number of trainings, until Ctrl-C."
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


def add_arguments(command: Parser) -> None:
    """Add the arguments."""
    add = command.add_argument
    add("model", metavar="MODEL", help="a model: Hub id or folder")
    told = f"its head: {', '.join(TASKS)}"
    add("--task", required=True, choices=TASKS, metavar="TASK", help=told)
    add("--host", default="127.0.0.1", help="default: this machine only")
    add("--port", type=int, default=PORT, help=f"default: {PORT}; 0: a free one")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    add("--device", help="default: a GPU if there is one")
    told = "largest number of running and waiting requests"
    add("--max-pending", type=int, default=16, help=told)
    told = f"tokens per request; default: {MAX_TOKENS}"
    add("--max-tokens", type=int, default=MAX_TOKENS, help=told)
    told = f"numbers per response; default: {MAX_ELEMENTS}"
    add("--max-elements", type=int, default=MAX_ELEMENTS, help=told)
    add("--token-env", metavar="NAME", help="variable with the clients' token")
    add("--no-token", action="store_true", help="serve other machines without a token")
    told = "further accepted host name, such as a proxy's; repeatable"
    add("--allow-host", metavar="NAME", action="append", default=[], help=told)


def run(args: argparse.Namespace, say: Say) -> int:
    """Serve until interrupted."""
    from hf_distill.teachers.cache.manifest import public
    from hf_distill.teachers.serving.server import TeacherServer, check_token

    token = None if args.token_env is None else os.environ.get(args.token_env, "")
    if token == "":
        complain(f"the variable {args.token_env} is empty; put the token there")
        return 2
    try:
        check_token(args.host, token, args.no_token)  # before the model is loaded
        teacher, tokenizer = _load(args, say)
        server = TeacherServer(
            teacher,
            args.host,
            args.port,
            args.max_pending,
            tokenizer=tokenizer,
            name=public(args.model),
            token=token,
            max_tokens=args.max_tokens,
            max_elements=args.max_elements,
            no_token=args.no_token,
            allowed_hosts=args.allow_host,
        )
    except (OSError, OverflowError, RuntimeError, ValueError) as error:  # OverflowError: no port
        complain(str(error))
        return 2 if isinstance(error, ValueError) and not isinstance(error, OSError) else 1
    try:
        say(f"serving {args.model} ({args.task}) at {server.url}; Ctrl-C ends it")
        server.serve_forever()
    except KeyboardInterrupt:
        say("ended")
    finally:
        server.close()
    return 0


def _load(args: argparse.Namespace, say: Say) -> tuple[Any, Any]:
    """The teacher and its tokenizer."""
    import torch
    import transformers

    from hf_distill.models.tasks import TASKS
    from hf_distill.teachers import ModelTeacher

    task = TASKS[args.task]
    model: Any = ModelTeacher.load(args.model, task, {"dtype": args.dtype}).model
    if getattr(model, "hf_quantizer", None) is None:
        model.to(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    tokenizer = None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    except (OSError, ValueError, KeyError):
        say(f"{args.model} has no tokenizer: vocabularies cannot be compared")
    return ModelTeacher(model, tokenizer, task), tokenizer
