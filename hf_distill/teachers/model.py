"""A frozen model as the teacher."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from torch import nn

from hf_distill.heads import Head, describe_model
from hf_distill.reading import Batch
from hf_distill.signals import Items, Needs, Signal
from hf_distill.tasks import Task


class ModelTeacher:
    """A frozen transformers model, in its own dtype and quantisation.

    It is in eval mode and asks for no gradients; it is no part of the student, so that it is in no
    checkpoint, no optimizer and no ``train()`` call. Under DDP, FSDP and ZeRO every process holds
    its own whole copy.

    Args:
        model: The model; `PeftModel` too.
        tokenizer: Its tokenizer, to make sure that it is the student's; found in the model's local
            folder when not given.
        task: Its row of the task table, if its class does not say it.
    """

    def __init__(self, model: nn.Module, tokenizer: Any = None, task: Task | None = None):
        self.model = model.requires_grad_(False).eval()
        self.head = Head(model, task)
        self.config = self.head.config
        self.provides = self.head.provides
        self._tokenizer = tokenizer
        self._autocast: Any = contextlib.nullcontext

    @classmethod
    def load(cls, name: str | Path, task: Task, init_kwargs: Mapping[str, Any]) -> ModelTeacher:
        """Load a teacher by Hub id or folder with the auto class of a task.

        Raises:
            OSError: there is no such model; the message says how `teacher_model` is given.
        """
        auto: Any = getattr(transformers, task.auto_class)
        try:
            model = auto.from_pretrained(str(name), **init_kwargs)
        except (OSError, ValueError) as error:
            raise type(error)(
                f"The teacher {str(name)!r} could not be loaded with {task.auto_class}: {error}\n"
                "teacher_model takes a Hub id, a folder, a model or a Teacher."
            ) from error
        return cls(model)

    def __call__(self, batch: Batch, needs: Needs, items: Items) -> Signal:
        with torch.no_grad(), self._autocast():
            _, signal = self.head.ask(self.model, batch, needs, items)
        return signal.detach()

    def columns(self) -> set[str]:
        return self.head.accepts - set(self.head.task.label_keys)

    def tokens(self) -> Mapping[str, int] | None:
        if self._tokenizer is None and "input_ids" in self.head.accepts:
            folder = Path(str(self.config._name_or_path))
            if any(
                (folder / name).is_file()
                for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
            ):
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        return None if self._tokenizer is None else self._tokenizer.get_vocab()

    def place(self, accelerator: Accelerator) -> None:
        # Not accelerator.prepare_model: that registers the teacher as a model of the accelerator,
        # and a later evaluate() then skips preparing the student.
        quantized = getattr(self.model, "hf_quantizer", None) is not None
        if not quantized and getattr(self.model, "hf_device_map", None) is None:
            self.model.to(accelerator.device)
        self._autocast = accelerator.autocast

    def describe(self) -> dict[str, Any]:
        return {
            **describe_model(self.head.model),
            "dtype": str(self.head.model.dtype).removeprefix("torch."),
        }
