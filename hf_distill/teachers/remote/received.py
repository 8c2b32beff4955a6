"""Validation of a server's answers: facts, vocabularies and signals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_distill.models.modules import text_config
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.models.tasks import TASKS
from hf_distill.teachers.cache.content import KINDS
from hf_distill.teachers.cache.manifest import config_from
from hf_distill.teachers.remote.http import printable
from hf_distill.teachers.remote.sizes import CLASSES
from hf_distill.teachers.remote.wire import needs_from_json, signal_from_tree

LABELS = 1 << 16
"""Largest accepted number of labels without names."""
ABOVE_ONE = 1e-3
"""Tolerance above 1 of the sum of probabilities in bfloat16."""
PER_TOKEN = 512
"""Bytes of JSON for each token of a vocabulary: escaped Cyrillic and Thai ones have up to 200."""


class Facts(NamedTuple):
    """The facts of a server before the first batch: ``classes`` of the logits (None: the batch
    size), ``entries`` of the model's vocabulary, and all whole ``numbers`` of its config, of which
    the width of its states is one."""

    describe: dict[str, Any]
    fingerprint: str
    columns: frozenset[str]
    vocabulary: str | None
    config: Any
    provides: Needs
    classes: int | None
    entries: int | None
    numbers: frozenset[int]


def facts_from(found: Mapping[str, Any], url: str) -> Facts:
    """Read the facts of the `TeacherServer` at ``url`` from ``GET /teacher``, or raise
    ValueError."""
    wanted = ("describe", "fingerprint", "columns", "vocabulary", "config", "provides")
    if missing := [key for key in wanted if key not in found]:
        raise ValueError(
            f"Expected a server of `hf-distill serve-teacher` at {url}, got {str(found)[:200]} "
            f"without {missing}. A vLLM server is asked with VLLMTeacher."
        )
    describe, columns = found["describe"], found["columns"]
    if not isinstance(describe, dict) or not all(map(_is_plain, describe.values())):
        raise _wrong(url, "describe", "a mapping of names to printable values", describe)
    if not isinstance(columns, list) or not all(isinstance(c, str) for c in columns):
        raise _wrong(url, "columns", "a list of names", columns)
    if not isinstance(found["fingerprint"], str):
        raise _wrong(url, "fingerprint", "a text", found["fingerprint"])
    if not isinstance(found["vocabulary"], str | None):
        raise _wrong(url, "vocabulary", "a fingerprint or null", found["vocabulary"])
    if not isinstance(found["provides"], dict):
        raise _wrong(url, "provides", "a mapping of true and false", found["provides"])
    try:
        provides = needs_from_json(found["provides"])
    except ValueError as error:
        raise _wrong(url, "provides", "needs", str(error)) from error
    config = _config(found["config"], url)
    return Facts(
        describe,
        found["fingerprint"],
        frozenset(columns),
        found["vocabulary"],
        config,
        provides,
        *_classes(found.get("task"), config),
        frozenset() if config is None else _numbers(config.to_dict()),
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return value.isprintable()
    return isinstance(value, int | float | None)


def _wrong(url: str, what: str, expected: str, got: Any) -> ValueError:
    shown = printable(repr(got)[:200])
    return ValueError(
        f"Expected {expected} as {what!r} of the teacher at {url}, got {shown}. Check that this is "
        "the url of `hf-distill serve-teacher`, of the same version as here."
    )


def _config(values: Any, url: str) -> Any:
    """The configuration of the served model, without its weights; None if it has none."""
    if values is None:
        return None
    if not isinstance(values, dict):
        raise _wrong(url, "config", "a mapping", values)
    if not isinstance(values.get("model_type"), str | None):
        raise _wrong(url, "config: model_type", "a name", values["model_type"])
    for part in _mappings(values):
        names = part.get("id2label")
        labels = len(names) if isinstance(names, dict) else 0
        for key, most in (("num_labels", max(LABELS, labels)), ("vocab_size", CLASSES)):
            value = part.get(key)
            if value is not None and not (type(value) is int and 0 <= value <= most):
                raise _wrong(url, f"config: {key}", f"a number from 0 to {most}", value)
    try:
        return config_from(values, url)
    except ValueError as error:  # it may repeat what the server sent
        raise ValueError(printable(str(error))) from error


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    """All mappings in nested values, however deep."""
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            yield part
            left.extend(part.values())
        elif isinstance(part, list):
            left.extend(part)


def _numbers(values: Any) -> frozenset[int]:
    known = (v for part in _mappings(values) for v in part.values())
    return frozenset(v for v in known if type(v) is int and v > 1)


def _classes(task: Any, config: Any) -> tuple[int | None, int | None]:
    """The classes of a task's logits, and the entries of the vocabulary."""
    known = TASKS.get(task) if isinstance(task, str) else None
    labels = getattr(config, "num_labels", None)
    tokens = getattr(text_config(config), "vocab_size", None)
    kind = None if known is None else known.classes
    return {"labels": labels, "vocabulary": tokens}.get(str(kind)), tokens


def vocabulary_bytes(entries: int | None) -> int:
    """Largest accepted vocabulary in bytes of JSON, for a number of entries."""
    return (1 << 20) + PER_TOKEN * (entries or LABELS)


# ---- signals -------------------------------------------------------------------------------------


def check_signal(tree: Any, facts: Facts, items: BatchItems, needs: Needs, who: str) -> None:
    """Check a signal ``tree`` on the CPU against its request; ValueError if it is not one for this
    batch."""
    try:
        if not isinstance(tree, Mapping):
            raise ValueError(f"Expected a signal, got a {type(tree).__name__}.")
        signal = signal_from_tree(tree)
        _check_parts(signal)
        _check_logits(signal, facts, items, needs)
        _check_states(signal, facts, items, needs)
    except (ValueError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"The answer of {who} cannot be read: {printable(str(error))} Check that both sides "
            "have the same version of hf_distill."
        ) from error


def _check_parts(signal: Signal) -> None:
    """Check the types of fields other than logits and states."""
    if signal.kind not in KINDS:
        raise ValueError(f"Expected a kind of {KINDS}, got {signal.kind!r:.80}.")
    never = signal.lazy_logits is not None or signal.cross_tokenizer is not None
    if signal.members or never:
        raise ValueError("Expected the signal of one model, got members or what is never sent.")
    if type(signal.blank) is not int or type(signal.zero_infinity) is not bool:
        raise ValueError(
            f"Expected blank as a class and zero_infinity as true or false, got {signal.blank!r} "
            f"and {signal.zero_infinity!r}."
        )
    if not isinstance(signal.who, str) or not signal.who.isprintable():
        raise ValueError(f"Expected a name of who says it, got {signal.who!r:.80}.")
    for name in ("router_loss", "own_loss", "label_logits"):
        if (value := getattr(signal, name)) is not None:
            _floating(value, name)


def _floating(value: Any, name: str, dims: tuple[int, ...] | None = None) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"Expected {name} as a tensor of floating numbers, got {got}.")
    if dims is not None and value.dim() not in dims:
        raise ValueError(
            f"Expected {name} with {' or '.join(map(str, dims))} dimensions, got shape "
            f"{tuple(value.shape)}."
        )
    return value


def _check_logits(signal: Signal, facts: Facts, items: BatchItems, needs: Needs) -> None:
    mask, classes = items.masks.get("items"), facts.classes
    if signal.sparse is not None:
        _check_sparse(signal, mask, classes)
    elif needs.logits and signal.logits is None:
        raise ValueError("Expected logits, which were asked for, got none.")
    if signal.logits is None:
        return
    logits = _floating(signal.logits, "logits")
    if mask is not None and logits.shape[:-1] != mask.shape:
        raise ValueError(
            f"Expected logits {(*mask.shape, classes or 'classes')}, one row for each item of the "
            f"batch, got {tuple(logits.shape)}."
        )
    if logits.dim() < 1 or (classes is not None and logits.shape[-1] != classes):
        raise ValueError(
            f"Expected logits of {classes} classes, as its config says, got shape "
            f"{tuple(logits.shape)}."
        )


def _check_sparse(signal: Signal, mask: Tensor | None, classes: int | None) -> None:
    sparse: Any = signal.sparse
    log_probs = _floating(sparse.log_probs, "sparse log_probs")
    log_rest = _floating(sparse.log_rest, "sparse log_rest")
    ids = sparse.ids
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
        raise ValueError(f"Expected sparse ids as int64, got {getattr(ids, 'dtype', type(ids))}.")
    known = classes or sparse.classes
    if type(sparse.classes) is not int or sparse.classes != known or sparse.classes < 1:
        raise ValueError(f"Expected {known} classes, got {sparse.classes!r:.80}.")
    wanted = ids.shape if mask is None else (*mask.shape, *ids.shape[-1:])
    shapes = [tuple(t.shape) for t in (ids, log_probs, log_rest)]
    if shapes != [tuple(wanted), tuple(wanted), tuple(wanted[:-1])] or not 1 <= wanted[-1] <= known:
        raise ValueError(f"Expected ids and log_probs (…, k) and log_rest (…), got {shapes}.")
    if sparse.temperature != 1.0 or sparse.unsampled is not True:
        raise ValueError("Expected exact probabilities at temperature 1, got something else.")
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= known):
        raise ValueError(f"Expected classes from 0 to {known - 1}, got others.")
    whole = torch.cat([log_probs, log_rest[..., None].to(log_probs)], -1).logsumexp(-1).exp()
    if mask is not None and not bool((whole[mask] <= 1 + ABOVE_ONE).all()):
        raise ValueError("Expected log-probabilities, got what adds up to more than 1, or NaN.")


def _check_states(signal: Signal, facts: Facts, items: BatchItems, needs: Needs) -> None:
    for name in ("hidden_states", "attentions", "qkv"):
        groups = getattr(signal, name)
        named = isinstance(groups, Mapping)
        if not named or not all(isinstance(g, tuple) for g in groups.values()):
            raise ValueError(f"Expected {name} as layers by group, got {type(groups).__name__}.")
        if getattr(needs, name) and not any(groups.values()):
            raise ValueError(f"Expected {name}, which were asked for, got none.")
    if not isinstance(signal.modules, Mapping) or set(signal.modules) != set(needs.modules):
        raise ValueError(f"Expected the modules {sorted(needs.modules)}, got others.")
    for path, value in signal.modules.items():
        _floating(value, path)
    for group, layers in signal.hidden_states.items():
        for value in layers:
            _floating(value, f"{group} states", (2, 3, 4, 5))
        widths = {int(value.shape[-1]) for value in layers if value.dim() == 3}
        width = max(widths, default=0)  # several: feature maps, or stages that grow
        wrong = width < 2 or (facts.numbers and width not in facts.numbers)
        if len(widths) == 1 and wrong:  # refused before a projection is made for them
            raise ValueError(
                f"Expected states as wide as the teacher's config says, got {width} numbers in "
                f"shape {tuple(layers[0].shape)}."
            )
        mask = items.masks.get(group)
        if mask is not None and any(v.shape[0] != mask.shape[0] for v in layers):
            raise ValueError(f"Expected {group} states of {mask.shape[0]} rows, got others.")
    for group, layers in signal.attentions.items():
        for value in layers:
            _floating(value, f"{group} attentions", (4,))
    for group, parts in signal.qkv.items():
        for layer in parts:
            if not isinstance(layer, tuple) or len(layer) != 3:
                raise ValueError(f"Expected queries, keys and values of each {group} layer.")
            for value in layer:
                _floating(value, f"{group} queries, keys or values", (4,))
