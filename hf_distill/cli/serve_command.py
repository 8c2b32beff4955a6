"""Implementation of ``hf-distill robustness``."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import torch
import transformers

from hf_distill.models.tasks import TASKS
from hf_distill.teachers import ModelTeacher
from hf_distill.teachers.cache.manifest import public
from hf_distill.teachers.serving.server import TeacherServer, check_token


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted.

    Returns:
        The exit code: 0 ended by Ctrl-C; 1 the model or the address cannot be had; 2 a wrong
        command line.
    """
    token = None if args.token_env is None else os.environ.get(args.token_env, "")
    if token == "":
        return _complain(f"the variable {args.token_env} is empty; put the token there", 2)
    try:
        check_token(args.host, token, args.no_token)  # before the model is loaded
        teacher, tokenizer = _load(args)
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
    except (OSError, OverflowError) as error:  # OverflowError: no such port
        return _complain(str(error), 1)
    except (ValueError, RuntimeError) as error:
        return _complain(str(error), 2 if isinstance(error, ValueError) else 1)
    try:
        _say(f"serving {args.model} ({args.task}) at {server.url}; Ctrl-C ends it")
        server.serve_forever()
    except KeyboardInterrupt:
        _say("ended")
    finally:
        server.close()
    return 0


def _load(args: argparse.Namespace) -> tuple[ModelTeacher, Any]:
    task = TASKS[args.task]
    model: Any = ModelTeacher.load(args.model, task, {"dtype": args.dtype}).model
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if getattr(model, "hf_quantizer", None) is None:
        model.to(device)
    tokenizer = None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    except (OSError, ValueError, KeyError):
        _say(f"{args.model} has no tokenizer: vocabularies cannot be compared")
    return ModelTeacher(model, tokenizer, task), tokenizer


def _say(line: str) -> None:
    print(line, flush=True)


def _complain(message: str, code: int) -> int:
    print(f"hf-distill: {message}", file=sys.stderr, flush=True)
    return code
