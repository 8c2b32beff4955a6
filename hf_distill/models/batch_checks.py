"""Checks of batches: numbers out of range, or of another type.

On a CPU every batch is looked at. On a GPU only shapes and types are, and the first examples in the
constructor: to read a number there is to wait for the device, and an index that is out of range
ends the process.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from hf_distill.models.batches import check_readable
from hf_distill.models.signals import BatchItems, Signal

PLACEHOLDER = re.compile(r"(image|video|audio|vision|speech).*token_(id|index)")
"""Config fields of placeholder tokens, which need no embedding."""
TABLES = ("position_embeddings", "position_embedding", "embed_positions", "wpe")
"""Names of position embeddings in models."""
CLASSES = (
    "Number the classes from 0 on (dataset.class_encode_column('label')), mark what has no label "
    "with -100, or give the model as many classes as the data have (num_labels=…)."
)
TOKENS = (
    "Tokenize with its own tokenizer, mark what is to be left out (padding) with -100, or give it "
    "the new tokens first (resize_token_embeddings(len(tokenizer)))."
)
LEAVE_OUT = "Leave them out: dataset.filter(lambda row: len(row['input_ids']) > 0)."
NOT_OF_TEXT = ("vis", "video", "image", "audio", "pixel", "patch")


# ---- labels --------------------------------------------------------------------------------------


def check_labels(
    items: BatchItems,
    kind: str,
    classes: int | None,
    who: str,
    axis: int = 0,
    vocabulary: bool = False,
) -> None:
    """Raise on labels that are not a class of a head, before a loss uses them as an index.

    Args:
        items: The items of a batch, with its labels.
        kind: Form of the head's logits, see `Signal`.
        classes: Number of classes; None: unknown.
        who: The model, for messages.
        axis: The dimension of the labels that is the batch.
        vocabulary: True if the classes are tokens.

    Raises:
        ValueError: labels below 0 (but -100, which stands for none) or above the last class; for
            several labels at once above 1; for regression infinite; numbers with a fraction where
            a class is expected.
    """
    labels, mask = items.labels, items.masks.get("labels")
    if labels is None or mask is None or kind == "none":
        return
    single = labels.dim() == mask.dim()
    if labels.is_floating_point() and single and kind != "regression" and (classes or 2) > 1:
        seen = f", the first is {labels.flatten()[0].item()}" if labels.numel() else ""
        raise ValueError(
            f"Expected whole numbers as labels, one class of {classes} for each item, for {who}, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}{seen}. Make them integers "
            "(dataset.cast_column('label', datasets.Value('int64'))), give one number per class "
            "(several labels at once), or set problem_type='regression' and num_labels=1 in the "
            "student's config."
        )
    if classes is None and kind in ("softmax", "ctc"):
        return
    if kind == "regression":
        wrong, wanted = labels.isinf(), "finite labels (or NaN, which stands for none)"
        remedy = "Look at the data, or clip them."
    elif kind == "sigmoid":
        wrong, wanted = labels > 1, "labels from 0 to 1 for each class"
        remedy = "Give each class its own 0 or 1: the columns are classes, not numbers of classes."
    else:
        if labels.is_floating_point():  # one share for each class
            return
        known = classes or 0
        wrong = (labels < 0) | (labels >= known)
        wanted = f"labels from 0 to {known - 1} (or -100, which stands for none)"
        remedy = TOKENS if vocabulary else CLASSES
    wrong = wrong & (mask if single else mask[..., None])
    if not bool(wrong.any()):
        return
    places = wrong.nonzero()
    value = labels[tuple(places[0].tolist())].item()
    raise ValueError(
        f"Expected {wanted} for {who}, got {value:g} in row {int(places[0, axis])} of the batch "
        f"({len(places)} such label(s) in it). {remedy}"
    )


def check_weights(items: BatchItems, wait: bool = False) -> None:
    """Raise on token weights that are negative or not finite; on a GPU only if waiting for it is
    permitted.

    Raises:
        ValueError: a weight below 0, NaN or infinite.
    """
    weights, mask = items.weights, items.masks.get("items")
    if weights is None or not (wait or check_readable(weights)):
        return
    if mask is not None and mask.shape == weights.shape:
        weights = weights.where(mask, 0.0)
    wrong = ~((weights >= 0) & weights.isfinite())
    if bool(wrong.any()):
        place = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"Expected weights (token_weights) of 0 or more, got {weights[tuple(place)].item():g} "
            f"in row {place[0]} of the batch. What is not to be learned has the weight 0."
        )


# ---- inputs --------------------------------------------------------------------------------------


def check_inputs(who: str, model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Raise on texts that a model cannot read: empty ones, tokens without an embedding, more tokens
    than it has positions for. It waits for the device.

    Args:
        who: Whose forward it will be.
        model: The model.
        inputs: A batch.

    Raises:
        ValueError: such texts, with what was expected, what came and the remedy.
    """
    fault = _empty(who, inputs) or _strange(who, model, inputs) or _long(who, model, inputs, True)
    if fault is not None:
        raise ValueError(fault)


def explain_error(error: Exception, who: str, model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Raise the cause of an error of a model's forward, where the inputs show one.

    Raises:
        ValueError: as `check_inputs`.
    """
    if "out of memory" in str(error).lower():
        return
    texts = [v for k, v in inputs.items() if k.endswith("input_ids") and isinstance(v, Tensor)]
    fault = _empty(who, inputs) or _masked(who, inputs)
    if fault is None and all(map(check_readable, texts)):
        fault = _strange(who, model, inputs)
    fault = fault or _long(who, model, inputs, False)
    if fault is not None:
        raise ValueError(fault) from error


@contextlib.contextmanager
def explained_errors(who: str, model: nn.Module, inputs: Mapping[str, Any]) -> Iterator[None]:
    """Context in which `explain_error` applies to errors."""
    try:
        yield
    except (IndexError, RuntimeError, ValueError) as error:
        explain_error(error, who, model, inputs)
        raise


@contextlib.contextmanager
def collated(examples: Sequence[Any]) -> Iterator[None]:
    """Name the example that made a data collator fail: an empty text, or a value that is not a
    number.

    Raises:
        ValueError: one of the examples has no tokens, no value, or text in a column; or the
            collator fails for another reason, with what it was given.
    """
    try:
        yield
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        for index, example in enumerate(examples):
            ids = example.get("input_ids") if isinstance(example, Mapping) else None
            if ids is not None and len(ids) == 0:
                raise ValueError(
                    f"Expected texts with tokens, got an empty one (example {index}), which the "
                    f"data collator cannot pad ({type(error).__name__}: {error}). {LEAVE_OUT}"
                ) from error
        if isinstance(error, ValueError) and str(error).startswith("Expected"):
            raise
        raise ValueError(
            f"Expected examples of which the data collator makes a batch, got "
            f"{_foreign(examples)} ({type(error).__name__}: {error}). Look at train_dataset[0]: "
            "it needs columns of numbers (tokenize texts, leave rows without a value out), of one "
            "kind and number in all rows unless the collator pads them."
        ) from error


def _foreign(examples: Sequence[Any]) -> str:
    """Describe the first value of the examples that cannot become a tensor, or their columns."""
    for index, example in enumerate(examples):
        if not isinstance(example, Mapping):
            return f"a {type(example).__name__} as example {index}, and not columns by name"
        for name, value in example.items():
            while isinstance(value, list | tuple) and value:
                value = value[0]
            if value is None or isinstance(value, str | bytes):
                return f"{value!r:.40} in {name!r} of example {index}"
    sizes: dict[str, set[int]] = {}
    for example in examples:
        for name, value in example.items():
            sizes.setdefault(str(name), set()).add(len(value) if hasattr(value, "__len__") else 1)
    shapes = {name: sorted(found) for name, found in sizes.items()}
    return f"{len(examples)} examples with these numbers of values: {shapes}"


def _texts(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    names = ("input_ids", "decoder_input_ids")
    return {name: inputs[name] for name in names if isinstance(inputs.get(name), Tensor)}


def _empty(who: str, inputs: Mapping[str, Any]) -> str | None:
    for name, ids in _texts(inputs).items():
        if ids.numel() == 0:
            return (
                f"Expected texts with tokens for {who}, got {name} of shape {tuple(ids.shape)}: "
                f"all texts of the batch are empty. {LEAVE_OUT}"
            )
    return None


def _masked(who: str, inputs: Mapping[str, Any]) -> str | None:
    """Describe a mask or another column that is not of its text's size; None if there is none."""
    for name, ids in _texts(inputs).items():
        prefix = name.removesuffix("input_ids")
        for column in ("attention_mask", "token_type_ids", "position_ids"):
            values = inputs.get(f"{prefix}{column}")
            if isinstance(values, Tensor) and values.dim() == 2 and values.shape != ids.shape:
                return (
                    f"Expected {prefix}{column} of the shape of {name} for {who}, "
                    f"{tuple(ids.shape)}, got {tuple(values.shape)}. Make them of the same texts, "
                    "in one call of the tokenizer, and cut them together."
                )
    return None


def _strange(who: str, model: nn.Module, inputs: Mapping[str, Any]) -> str | None:
    """Describe tokens that have no embedding; None if all have one."""
    for name, ids in _texts(inputs).items():
        known = _embeddings(model, name)
        if known is None or ids.is_floating_point():
            continue
        wrong = (ids < 0) | (ids >= known)
        for token in _placeholders(model):
            wrong &= ids != token
        if bool(wrong.any()):
            first = wrong.nonzero()[0].tolist()
            return (
                f"Expected {name} from 0 to {known - 1}, as many as {who} has embeddings, got "
                f"{int(ids[tuple(first)])} in row {first[0]} of the batch. Tokenize with its own "
                "tokenizer, or give it the new tokens first (resize_token_embeddings("
                "len(tokenizer)))."
            )
    kinds, types = inputs.get("token_type_ids"), token_table(model, ("token_type_embeddings",))
    known = getattr(types, "num_embeddings", None)
    if isinstance(kinds, Tensor) and known is not None and kinds.numel():
        lowest, highest = int(kinds.min()), int(kinds.max())
        if lowest < 0 or highest >= known:
            strange = lowest if lowest < 0 else highest
            return (
                f"Expected token_type_ids from 0 to {known - 1}, as many as {who} has, got "
                f"{strange}. Leave them out: tokenizer(…, return_token_type_ids=False)."
            )
    return None


def _embeddings(model: nn.Module, name: str) -> int | None:
    """Number of tokens with an embedding; None if unknown."""
    owner: Any = model
    with contextlib.suppress(AttributeError, NotImplementedError, TypeError):
        if name.startswith("decoder"):
            owner = owner.get_decoder()
            owner = getattr(owner, "embed_tokens", None) or owner.get_input_embeddings()
        else:
            owner = owner.get_input_embeddings()
        return getattr(owner, "num_embeddings", None)
    return None


def _placeholders(model: nn.Module) -> set[int]:
    config = getattr(model, "config", None)
    values = vars(config).items() if config is not None else ()
    return {v for k, v in values if isinstance(v, int) and PLACEHOLDER.fullmatch(k)}


def _long(who: str, model: nn.Module, inputs: Mapping[str, Any], before: bool) -> str | None:
    """Describe texts with more tokens than positions; None if there are none.

    ``before`` its forward only what is certain to fail is meant: padding may need no position, and
    a table that is computed may grow.
    """
    texts = _texts(inputs)
    for name, ids in texts.items():
        stack = None if len(texts) == 1 else name.startswith("decoder")
        table = token_table(model, TABLES, stack)
        if table is None or (before and "Sinusoidal" in type(table).__name__):
            continue
        limit, length = _positions(table), int(ids.shape[-1])
        if before:
            length = _reach(ids, inputs, "decoder_" if name.startswith("decoder") else "")
        if length > limit:
            return (
                f"Expected {name} of at most {limit} tokens, the positions of {who}, got {length}. "
                f"Cut the texts (tokenizer(…, truncation=True, max_length={limit})), or choose a "
                "model with more positions."
            )
    return None


def _positions(table: Any) -> int:
    padding = table.padding_idx
    skipped = getattr(table, "offset", 0 if padding is None else padding + 1)
    return int(table.num_embeddings) - int(skipped)


def position_limit(model: nn.Module) -> int | None:
    """The most tokens of a text that a model has positions for; None: unknown."""
    table = token_table(model, TABLES)
    if table is not None:
        return _positions(table)
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _reach(ids: Tensor, inputs: Mapping[str, Any], prefix: str) -> int:
    """Number of positions that the longest text needs."""
    positions, mask = (inputs.get(f"{prefix}{n}") for n in ("position_ids", "attention_mask"))
    if isinstance(positions, Tensor) and positions.numel():
        return int(positions.max()) + 1
    if isinstance(mask, Tensor) and mask.shape == ids.shape:
        return int(mask.sum(-1).max())
    return int(ids.shape[-1])


def token_table(model: nn.Module, names: tuple[str, ...], decoder: bool | None = None) -> Any:
    """Find the token embedding among these names; None if there is none.

    Args:
        model: The model.
        names: What it may be called, the last part of its path.
        decoder: Of the decoder (true), of anything else (false), or of any stack.
    """
    for path, module in model.named_modules():
        parts = path.split(".")
        if parts[-1] not in names or not isinstance(module, nn.Embedding):
            continue
        if any(word in part for part in parts for word in NOT_OF_TEXT):
            continue
        if decoder is None or ("decoder" in parts) == decoder:
            return module
    return None


# ---- the teacher's signal ------------------------------------------------------------------------


def check_teacher_signal(signal: Any, items: BatchItems, who: str) -> Signal:
    """Raise if a teacher's signal cannot be read by a loss. Only types and shapes are checked.

    Args:
        signal: The teacher's signal.
        items: The items of the batch.
        who: The teacher, for messages.

    Raises:
        ValueError: not a `Signal`; fields that are not floating tensors; logits of another number
            of items.
    """
    if not isinstance(signal, Signal):
        raise ValueError(
            f"Expected a Signal from {who}, got a {type(signal).__name__}. Return "
            "hf_distill.Signal(logits)."
        )
    groups = (*signal.hidden_states.items(), *signal.attentions.items())
    layers = {f"{name} {i}": v for name, own in groups for i, v in enumerate(_plain(own))}
    for name, values in {"logits": signal.logits, **layers}.items():
        if values is None:
            continue
        if not isinstance(values, Tensor):
            raise ValueError(
                f"Expected the {name} of {who} as a tensor, got a {type(values).__name__}. Make "
                "one of it: torch.as_tensor(values)."
            )
        if not values.is_floating_point():
            own = "values.real" if values.is_complex() else "values.float()"
            raise ValueError(
                f"Expected the {name} of {who} as floating numbers, got {values.dtype}. Give "
                f"scores, not decisions, as such numbers: {own}."
            )
    mask = items.masks.get("items")
    scores = signal.logits if signal.sparse is None else signal.sparse.ids
    if scores is not None and mask is not None and scores.shape[:-1] != mask.shape:
        raise ValueError(
            f"Expected logits {(*mask.shape, 'classes')} of {who}, one row for each item of the "
            f"batch, got {tuple(scores.shape)}. Return a row for each of them, in their order; "
            "rows that do not count may hold anything."
        )
    return signal


def _plain(layers: Any) -> Iterator[Any]:
    """Layers of a cache that may be missing."""
    return tuple.__iter__(layers) if isinstance(layers, tuple) else iter(layers)
