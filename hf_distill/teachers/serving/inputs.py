"""Validation of a client's batch before the model runs: an index out of range is an error on a CPU,
and on a GPU a device assertion, after which every later call of the process fails."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hf_distill.data.language.checks import check_context
from hf_distill.models.batch_checks import TABLES, check_inputs, token_table
from hf_distill.models.modules import ANY, text_config
from hf_distill.models.signals import BatchItems, Needs
from hf_distill.models.task_model import vocabulary_size
from hf_distill.teachers import ModelTeacher
from hf_distill.teachers.remote.sizes import HEADS, TEXTS, elements, largest
from hf_distill.teachers.serving.limits import BadRequest, Limits

CONTROLS = re.compile(
    r"(use_|past_|return_|output_).*|(.*_)?cache(_.*)?|.*logits_to_keep|.*_outputs"
)
"""Arguments of a forward that are not data: caches and switches of outputs."""
INDEX = (torch.int32, torch.int64)
DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, *INDEX),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)
POSITIONS = re.compile(r"(decoder_)?position_ids")
LOOKED_UP = {
    "token_type_ids": ("token_type_embeddings",),
    "langs": ("lang_embeddings",),
    "task_type_ids": ("task_type_embeddings",),
    "bbox": ("x_position_embeddings",),
}
"""Embedding tables indexed by inputs, besides tokens and positions."""


def check_batch(
    teacher: ModelTeacher, batch: Any, items: BatchItems, needs: Needs, limits: Limits
) -> list[str]:
    """Raise BadRequest on a batch that a model cannot read, or that exceeds the limits. Returns the
    integer inputs without a known table, see `Indices`."""
    _check_tensors(teacher, batch)
    tokens = sum(batch[name].numel() for name in TEXTS if name in batch)
    if tokens > limits.max_tokens:
        raise BadRequest(
            f"Expected at most {limits.max_tokens} tokens in a request, got {tokens}: send fewer "
            "or shorter texts at once (or serve with --max-tokens)."
        )
    for name in TEXTS:
        if name in batch:
            _check_ids(name, batch[name], vocabulary_size(teacher.config))
    try:
        check_inputs(teacher.task_model.who, teacher.task_model.model, batch)
        _check_lengths(teacher, batch, limits)
    except ValueError as error:
        raise BadRequest(str(error)) from error
    size = elements(teacher.config, teacher.task_model.classes, batch, items, needs)
    if size > limits.max_elements:
        raise BadRequest(
            f"Expected an answer of at most {limits.max_elements} numbers, got a request for about "
            f"{size}: send fewer or shorter examples at once, ask for less (attention maps are as "
            "large as the square of a text), or serve with --max-elements."
        )
    return [name for name, value in batch.items() if not _checked(teacher, name, value, batch)]


def _check_ids(name: str, ids: Tensor, classes: int | None) -> None:
    """Refuse token ids that are not in the vocabulary."""
    if ids.dtype not in INDEX:
        raise BadRequest(f"Expected {name} as int64, got {ids.dtype}.")
    if ids.dim() < 2:
        raise BadRequest(f"Expected {name} (B, T), got shape {tuple(ids.shape)}.")
    if classes is not None and ids.numel():  # `check_inputs` reports empty ones
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= classes:
            wrong = low if low < 0 else high
            raise BadRequest(
                f"Expected {name} from 0 to {classes - 1}, got {wrong}: the tokenizer has more "
                "tokens than this model."
            )


def _check_tensors(teacher: ModelTeacher, batch: Any) -> None:
    if not isinstance(batch, dict) or not any(isinstance(v, Tensor) for v in batch.values()):
        raise BadRequest("Expected a batch with tensors.")
    columns = teacher.columns()
    unknown = [n for n in batch if CONTROLS.fullmatch(n) or not (n in columns or ANY in columns)]
    if unknown:
        read = sorted(name for name in columns if not CONTROLS.fullmatch(name))
        raise BadRequest(f"Expected a batch of {read} at most, got {sorted(unknown)} too.")
    for name, value in batch.items():
        if not isinstance(value, Tensor) or value.dtype not in DTYPES:
            got = value.dtype if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise BadRequest(f"Expected {name} as a tensor of numbers, got {got}.")
        if value.dim() == 0 or value.shape[0] == 0:
            raise BadRequest(
                f"Expected {name} with a row per example, got shape {tuple(value.shape)}."
            )


def _check_lengths(teacher: ModelTeacher, batch: Mapping[str, Tensor], limits: Limits) -> None:
    """Raise on texts longer than the model's context or, without one, than its attention maps
    allow."""
    config, heads = teacher.config, largest(teacher.config, HEADS, 16)
    limit = getattr(text_config(config), "max_position_embeddings", None)
    known = isinstance(limit, int) and limit > 0 and not getattr(config, "relative_attention", 0)
    for name in (name for name in TEXTS if name in batch):
        length = int(batch[name].shape[-1])
        if known:
            positions = batch.get(name.replace("input", "position"))
            if positions is not None and positions.numel():  # several texts in a row
                length = int(positions.max()) + 1
            check_context(config, length, teacher.task_model.who)
        elif heads * length**2 > limits.max_elements:
            raise ValueError(
                f"Expected texts with at most {limits.max_elements} pairs of tokens in {heads} "
                f"heads of {teacher.task_model.who}, got {length} tokens. Cut the texts, or serve "
                "with --max-elements."
            )


def _checked(teacher: ModelTeacher, name: str, value: Tensor, batch: Mapping[str, Tensor]) -> bool:
    """Compare one input with the table that it indexes, or with its texts. True if no further check
    is needed: not an integer, or compared already."""
    if name in TEXTS:
        return True
    ids = batch.get("decoder_input_ids" if name.startswith("decoder_") else "input_ids")
    if name in ("attention_mask", "decoder_attention_mask"):
        shape, rows = tuple(value.shape), value.shape if ids is None else ids.shape
        square = len(shape) == 4 and shape[-2:] == (rows[-1],) * 2 and shape[0] in (1, rows[0])
        if shape != rows and not square:  # another one would be broadcast
            raise BadRequest(
                f"Expected {name} of shape {tuple(rows)} like the tokens, got {shape}."
            )
        return True
    if POSITIONS.fullmatch(name):
        table = token_table(teacher.task_model.model, TABLES, name.startswith("decoder_") or None)
        limit = None if table is None else table.num_embeddings - int(getattr(table, "offset", 0))
    elif name in LOOKED_UP:
        table = token_table(teacher.task_model.model, LOOKED_UP[name])
        limit = None if table is None else table.num_embeddings
    elif name == "lengths" and ids is not None:
        limit = int(ids.shape[-1]) + 1
    else:
        return value.is_floating_point() or value.dtype == torch.bool
    if value.dtype not in INDEX:
        raise BadRequest(f"Expected {name} as int64, got {value.dtype}.")
    if ids is not None and name != "lengths":
        _check_places(name, value, ids)
    low, high = (int(value.min()), int(value.max())) if value.numel() else (0, 0)
    if low < 0 or (limit is not None and high >= limit):
        most = "" if limit is None else f" to {limit - 1}"
        raise BadRequest(
            f"Expected {name} from 0{most}, as {teacher.task_model.who} has them, got "
            f"{low if low < 0 else high}."
        )
    return limit is not None and name != "bbox"  # whose differences are used as indices too


def _check_places(name: str, value: Tensor, ids: Tensor) -> None:
    """Check positions: one number (or four: a box) per token, per row or common to all."""
    several = value.dim() > ids.dim() and name in LOOKED_UP
    shape, rows = tuple(value.shape[:-1] if several else value.shape), tuple(ids.shape)
    if shape[-len(rows) :] not in (rows, (1, *rows[1:])) and shape != rows[-1:]:
        raise BadRequest(
            f"Expected {name} of shape {rows} like the tokens, got {tuple(value.shape)}."
        )


class Indices(TorchFunctionMode):
    """Check of every index during a forward, which raises IndexError for one out of range. For
    inputs whose embedding table is unknown: a check waits for the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func in (F.embedding, torch.embedding):
            first = [*args, *options.values()]
            pair = [t for t in first if isinstance(t, Tensor)][:2]
            ids, table = pair if func is F.embedding else pair[::-1]
            _check_range(ids, 0, table.shape[0])
        elif func in (torch.gather, Tensor.gather, torch.index_select, Tensor.index_select):
            values, dim, ids = [*args, *options.values()][:3]
            _check_range(ids, 0, values.shape[dim])
        elif func is Tensor.__getitem__ and isinstance(args[1], Tensor):
            if args[1].dtype in (torch.int8, torch.int16, *INDEX):
                _check_range(args[1], -args[0].shape[0], args[0].shape[0])
        elif func is F.one_hot:
            ids, classes = [*args, *options.values(), -1][:2]
            _check_range(ids, 0, 1 << 31 if classes == -1 else classes)
        return func(*args, **options)


def _check_range(ids: Tensor, low: int, limit: int) -> None:
    if ids.numel() and (int(ids.min()) < low or int(ids.max()) >= limit):
        raise IndexError(
            f"Expected indices from {low} to {limit - 1}, got some from {int(ids.min())} to "
            f"{int(ids.max())}"
        )
