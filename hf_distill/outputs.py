"""A model's outputs by name: `ModelOutput`, dict, tuple or tensor, as `Trainer` takes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput


class Named(dict[str, Any]):
    """Outputs by name, as attributes too."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)


def by_name(outputs: Any, fields: Sequence[str], labelled: bool = False) -> Any:
    """A model's outputs with names.

    Args:
        outputs: What its ``forward`` returned.
        fields: What the entries of a tuple are called, in their order; a tensor is the first.
        labelled: Whether it was given labels: a tuple then begins with the loss, as in `Trainer`.

    Returns:
        A `ModelOutput` as it is; of anything else a `Named`. A dict that holds nothing but one
        tensor (and a loss) holds it under the first name, whatever it called it.
    """
    if isinstance(outputs, ModelOutput):
        return outputs
    if hasattr(outputs, "_asdict"):
        outputs = outputs._asdict()
    elif dataclasses.is_dataclass(outputs):
        outputs = vars(outputs)
    if isinstance(outputs, Tensor):
        return Named({fields[0]: outputs})
    if isinstance(outputs, Mapping):
        rest = [value for name, value in outputs.items() if name != "loss"]
        if len(rest) == 1 == len(fields) and isinstance(rest[0], Tensor):
            return Named({"loss": outputs.get("loss"), fields[0]: rest[0]})
        return Named(outputs)
    if isinstance(outputs, tuple | list):
        if labelled and isinstance(outputs[0], Tensor) and outputs[0].dim() == 0:
            fields = ["loss", *fields]
        names = [*fields, *(f"output_{index}" for index in range(len(fields), len(outputs)))]
        return Named(zip(names, outputs, strict=False))
    return outputs


def entry(outputs: Any, path: str) -> Any:
    """The output at a path (``text_model_output.hidden_states``); None if there is none."""
    for name in path.split("."):
        outputs = getattr(outputs, name, None)
    return outputs


def check_fields(outputs: Any, fields: Sequence[str], who: str, task: str) -> None:
    """Refuse outputs without what a head reads.

    Args:
        outputs: What `by_name` gave.
        fields: The names that are read.
        who: The model, for the message.
        task: The name of its task.

    Raises:
        ValueError: one of them is missing, naming what there is, with the remedy.
    """
    missing = [name for name in fields if not isinstance(entry(outputs, name), Tensor)]
    if not missing:
        return
    named = isinstance(outputs, Mapping)
    given = sorted(outputs) if named else type(outputs).__name__
    kind = who.rpartition(" ")[2].strip("()")
    raise ValueError(
        f"Expected {list(fields)} from {who}, which is read as {task}; it gives {given}. If it is "
        f"another kind of head, say which: hf_distill.register_task({kind!r}, …). If it has these "
        f"outputs under other names, return them as {{{fields[0]!r}: …}}, or pass register_task a "
        f"row that reads them: dataclasses.replace(hf_distill.tasks.TASKS[{task!r}], read=…, "
        f"fields=(…,))."
    )
