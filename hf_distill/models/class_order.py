"""Alignment of the classes of two models."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hf_distill.losses.fused import LazyLogits
from hf_distill.models.modules import text_config
from hf_distill.models.signals import Signal, SparseProbs
from hf_distill.models.special_tokens import END, PADDING, special_tokens
from hf_distill.models.task_model import TaskModel, vocabulary_size

ClassOrder = int | Tensor | None
"""Mapping of logits to the common order of classes: None (unchanged), n (the first n classes: the
rest is padding of the vocabulary), or an index per class: of a teacher with more classes those of
the student, over which the softmax is then taken."""


def reorder(logits: Tensor, order: ClassOrder) -> Tensor:
    """Apply an `ClassOrder` to the last dimension."""
    if order is None:
        return logits
    if isinstance(order, int):
        return logits[..., :order]
    return logits.index_select(-1, order.to(logits.device))


def reorder_sparse(sparse: SparseProbs, order: ClassOrder) -> SparseProbs:
    """Apply an `ClassOrder` to the classes of sparse probabilities.

    The mass of classes that are cut off (phantom entries of a vocabulary) goes to the rest.
    """
    if order is None or (isinstance(order, int) and order >= sparse.classes):
        return sparse
    if isinstance(order, int):
        cut = sparse.ids >= order
        lost = sparse.log_probs.masked_fill(~cut, -torch.inf).logsumexp(-1)
        return replace(
            sparse,
            ids=sparse.ids.masked_fill(cut, 0),
            log_probs=sparse.log_probs.masked_fill(cut, -torch.inf),
            log_rest=torch.logaddexp(sparse.log_rest, lost),
            classes=order,
        )
    if len(order) != sparse.classes:
        raise ValueError(
            f"Expected all logits of a teacher with {sparse.classes} classes, of which the student "
            f"has {len(order)}, got its likeliest ones. Keep all logits in the cache "
            "(format={'kind': 'full'}), or use the live teacher."
        )
    return replace(sparse, ids=order.to(sparse.ids.device).argsort()[sparse.ids])


def reorder_lazy(linear: LazyLogits, order: ClassOrder) -> LazyLogits:
    """Apply an `ClassOrder` to logits that are not computed."""
    if isinstance(order, Tensor):
        order = order.to(linear.weight[0].device)
        weight = tuple(w.index_select(0, order) for w in linear.weight)
        bias = None if linear.bias is None else linear.bias.index_select(0, order)
        return replace(linear, weight=weight, bias=bias)
    return linear if order is None else replace(linear, classes=order)


def align_classes(signal: Signal, order: ClassOrder | Mapping[str, ClassOrder]) -> Signal:
    """The signal with its classes in another order; of several heads in one each."""
    if order is None:
        return signal
    if isinstance(order, Mapping):
        members = signal.members.items()
        return replace(signal, members={n: align_classes(m, order.get(n)) for n, m in members})
    with torch.enable_grad():
        traced = signal.traced and (reorder(signal.traced[0], order), signal.traced[1])
    return replace(
        signal,
        logits=None if signal.logits is None else reorder(signal.logits, order),
        sparse=None if signal.sparse is None else reorder_sparse(signal.sparse, order),
        lazy_logits=None if signal.lazy_logits is None else reorder_lazy(signal.lazy_logits, order),
        traced=traced,
        members={name: align_classes(member, order) for name, member in signal.members.items()},
    )


def match_heads(
    student: TaskModel,
    teacher: Any,
    student_tokens: Mapping[str, int] | None = None,
    teacher_tokens: Mapping[str, int] | None = None,
    same_inputs: bool = True,
) -> tuple[ClassOrder, ClassOrder]:
    """Find the orders that align the teacher's classes with the student's.

    Args:
        student: The student's head.
        teacher: The teacher's config.
        student_tokens: The student's tokenizer vocabulary, token -> id, if known.
        teacher_tokens: The teacher's.
        same_inputs: True if the teacher reads the student's ``input_ids``, and no separate column.

    Returns:
        The order for the student's logits and the one for the teacher's.

    Raises:
        ValueError: other label sets, another tokenizer, other kinds of problem.
    """
    _same_problem(student.config, teacher)
    if student.task.kind == "ctc":
        _same_blank(student, teacher)
    classes, padded = student.task.classes, None
    if classes == "vocabulary" or (same_inputs and "input_ids" in student.accepts):
        sizes = vocabulary_size(student.config), vocabulary_size(teacher)
        padded = _same_tokens(sizes, student_tokens, teacher_tokens, student.task)
    if classes == "vocabulary":
        return padded, padded
    if classes == "labels":
        return None, _label_order(student.config, teacher)
    return None, None


def warn_of_conventions(student: TaskModel, teacher: Any) -> None:
    """Warn if two language models of one tokenizer end or pad texts by different tokens.

    Args:
        student: The student.
        teacher: The teacher's config.
    """
    if student.task.name not in ("causal_lm", "seq2seq_lm"):
        return
    ours = special_tokens(text_config(student.config))
    theirs = special_tokens(text_config(teacher))
    for name, what in ((END, "end a text"), (PADDING, "pad texts")):
        pair = ours.get(name), theirs.get(name)
        if None not in pair and pair[0] != pair[1]:
            warnings.warn(
                f"Student and teacher {what} by different tokens: {name} is {pair[0]} for "
                f"{student.who} and {pair[1]} for the teacher. A student that learns from the "
                "teacher's probabilities learns the teacher's; set both configs (and the "
                "generation configs) alike if that is not meant.",
                stacklevel=4,
            )


def _same_problem(student: Any, teacher: Any) -> None:
    kinds = [getattr(config, "problem_type", None) for config in (student, teacher)]
    if None not in kinds and kinds[0] != kinds[1]:
        raise ValueError(
            f"Expected student and teacher to solve one kind of problem, got problem_type "
            f"{kinds[0]!r} for the student and {kinds[1]!r} for the teacher. Set the same one in "
            "both configs, or choose a teacher of the same task."
        )


def _same_blank(student: TaskModel, teacher: Any) -> None:
    """Raise if the blank classes differ: blank frames would be aligned with a letter."""
    name = type(student.model).__name__
    blanks = [getattr(config, "pad_token_id", None) or 0 for config in (student.config, teacher)]
    if blanks[0] != blanks[1]:
        raise ValueError(
            f"Expected student ({name}) and teacher to have one blank, got pad_token_id "
            f"{blanks[0]} for the student and {blanks[1]} for the teacher. Create the student with "
            "the teacher's tokenizer and pad_token_id, or choose a teacher that has the student's."
        )


FOREIGN = {
    "causal_lm": "or let this one read the texts with its own: teacher = CrossTokenizerTeacher("
    "teacher_model, tokenizer, student_tokenizer), and train with data_collator=teacher.collator("
    "<your collator>); or make the student from the teacher, whose tokenizer it then has "
    "(`hf-distill init-student`), and tokenize the data with that.",
    "labels": "or let this one read the texts with its own: keep the text column in the data, and "
    "pass teacher_model=ModelTeacher(model, tokenizer, inputs='text'), with the column's name.",
}
"""Remedies for another tokenizer: for causal language models, and for heads with one output per
example."""


def _same_tokens(
    sizes: tuple[int | None, int | None],
    student: Mapping[str, int] | None,
    teacher: Mapping[str, int] | None,
    task: Any,
) -> int | None:
    """Return the number of real classes where the vocabularies differ only by padding."""
    more = FOREIGN.get(task.name, "")
    if task.name.endswith("_classification") or task.name == "encoder":
        more = FOREIGN["labels"]
    remedy = f"Choose a teacher that uses the student's tokenizer{'; ' if more else '.'}{more}"
    if student is not None and teacher is not None and dict(student) != dict(teacher):
        differing = len(set(student.items()) ^ set(teacher.items()))
        raise ValueError(
            f"Expected student and teacher to share one tokenizer, got vocabularies of "
            f"{len(student)} and {len(teacher)} tokens that differ in {differing} entries. {remedy}"
        )
    if None in sizes or sizes[0] == sizes[1]:
        return None
    if student is None or teacher is None:
        raise ValueError(
            f"Expected student and teacher to share one vocabulary, got {sizes[0]} entries for the "
            f"student and {sizes[1]} for the teacher. If they are one tokenizer family and differ "
            "only by padding, let both tokenizers be seen: pass `processing_class` and a teacher "
            f"whose folder holds its tokenizer, or `ModelTeacher(model, tokenizer)`. {remedy}"
        )
    return max(student.values()) + 1


def _label_order(student: Any, teacher: Any) -> Tensor | None:
    if None in (student.num_labels, teacher.num_labels):
        return None  # a module without a config that has not run yet
    ours, theirs = _names(student), _names(teacher)
    unique = all(len(set(names)) == len(names) for names in (ours, theirs))
    part = len(ours) < len(theirs) and set(ours) <= set(theirs)
    if part and unique and not _unnamed(ours):
        return torch.tensor([theirs.index(name) for name in ours])
    if student.num_labels != teacher.num_labels:
        raise ValueError(
            f"Expected the teacher to have the student's {student.num_labels} labels "
            f"{_some(ours)}, got {teacher.num_labels}: {_some(theirs)}. A teacher with more labels "
            "is read at those that the student's config names in id2label. Name them as the "
            "teacher does, fine-tune the teacher on the student's labels, or create the student "
            "with the teacher's `id2label` (a module without a config: with as many outputs)."
        )
    if ours == theirs or _unnamed(ours) or _unnamed(theirs):
        return None
    if sorted(ours) != sorted(theirs) or len(set(ours)) != len(ours):
        raise ValueError(
            f"Expected student and teacher to have the same labels, got {_some(ours)} and "
            f"{_some(theirs)}. If they mean the same, set the teacher's `config.id2label` to the "
            "student's names; if not, this teacher cannot teach this task."
        )
    return torch.tensor([theirs.index(name) for name in ours])


def _names(config: Any) -> list[str]:
    labels = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    return [labels[index].strip().lower() for index in sorted(labels)]


def _unnamed(names: Sequence[str]) -> bool:
    """True for the default label names of transformers."""
    return list(names) == [f"label_{index}" for index in range(len(names))]


def _some(names: Sequence[str]) -> str:
    return str(list(names[:8])) + (" …" if len(names) > 8 else "")
