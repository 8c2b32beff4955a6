"""Problem type of classifiers: determined once, from configs and labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import align_special_tokens

from hf_distill.models.modules import has_config, mentions, text_config
from hf_distill.models.special_tokens import PADDING, special_tokens
from hf_distill.models.task_model import MULTI_LABEL, TaskModel
from hf_distill.models.tasks import has_task, inner_model, task_of

SINGLE, REGRESSION = "single_label_classification", "regression"
NEAR = 1e-3
"""Largest distance of the sum of a label's probabilities from 1."""


def task_models_of(teacher: Any) -> Iterator[TaskModel]:
    """The models of a teacher: its own, those of its members, that of a cache's live teacher."""
    yield from (getattr(teacher, "task_models", None) or {}).values()
    if isinstance(getattr(teacher, "task_model", None), TaskModel):
        yield teacher.task_model
    for member in (getattr(teacher, "teachers", None) or {}).values():
        yield from task_models_of(member)
    if getattr(teacher, "live", None) is not None:
        yield from task_models_of(teacher.live)


def settle(student: TaskModel, teacher: Any, labels: Any) -> None:
    """Determine the problem type and apply it to all models, also to the configs of trained ones.

    The student's config decides, then the teacher's, then the labels, as transformers' own forward
    decides by them: floats are several labels per example, integers are one, and one class is a
    regression. With one label per example in a config, rows of probabilities are soft labels.

    Args:
        student: The student.
        teacher: The teacher; None: there is none.
        labels: Labels of a first batch; None: it has none.

    Raises:
        ValueError: two of them disagree, or the labels have another shape than the head expects.
    """
    if student.task.kind is not None:
        return
    heads = [head for head in task_models_of(teacher) if head.task.kind is None]
    configs = [(head.who, head.config) for head in (student, *heads)]
    if not heads and getattr(teacher, "config", None) is not None:  # a cache, a server
        configs.append(("the teacher", teacher.config))
    stated = [(who, getattr(config, "problem_type", None)) for who, config in configs]
    stated = [(who, problem) for who, problem in stated if problem is not None]
    who, problem = stated[0] if stated else ("", None)
    for other, its in stated:
        if its != problem:
            raise ValueError(
                f"Expected all models to solve one kind of problem, got problem_type={problem!r} "
                f"of {who} and {its!r} of {other}. Set the same one in both configs, or choose a "
                "teacher of the same task."
            )
    if labels is not None:
        problem = _by_labels(student, who, problem, labels)
    if problem is None:
        return
    trained = (getattr(teacher, "task_models", None) or {}).values()
    for head in (student, *heads):
        head.problem = problem
        if head is student or head in trained:
            _write(head, problem)


def _write(task_model: TaskModel, problem: str) -> None:
    """Write the problem type into the config, as transformers' own forward does; audio classifiers
    whose forward ignores it are always softmax."""
    writes = mentions(task_model.model, "problem_type", "loss_function(")
    if getattr(task_model.config, "problem_type", None) is None and (writes or problem != SINGLE):
        task_model.config.problem_type = problem


def _by_labels(student: TaskModel, who: str, problem: str | None, labels: Any) -> str:
    classes = student.config.num_labels
    if not isinstance(labels, Tensor):
        raise ValueError(_wrong(student, "a tensor", type(labels).__name__, problem))
    shape, floats = tuple(labels.shape), labels.is_floating_point()
    known = labels[~_missing(labels)] if labels.dim() < 3 else labels
    if problem is None:
        single = floats and labels.dim() == 1 and not has_config(student.model)
        problem = REGRESSION if classes == 1 or single else MULTI_LABEL if floats else SINGLE
        if problem == MULTI_LABEL and labels.dim() == 2 and _soft(known):
            raise ValueError(
                f"Expected to know whether labels {shape} of probabilities that add up to 1 are "
                f"soft labels (mixup, cutmix) or answers to {shape[1]} questions, as transformers "
                f"reads floats; the config of {student.who} does not say it. Set its problem_type "
                f"to {SINGLE!r} or to {MULTI_LABEL!r}: student.config.problem_type = …."
            )
    size = classes or (shape[-1] if len(shape) > 1 else 1)
    wide = {(len(labels), size)} | ({(len(labels),)} if size == 1 else set())
    if problem == SINGLE and floats:
        if shape not in wide or not _distributions(known):
            raise ValueError(
                f"Expected one label per example, as the config of {who} says "
                f"(problem_type={SINGLE!r}): integers of shape ({len(labels)},), or rows of "
                f"{size} probabilities that add up to 1; got floats {shape}. If an example may "
                f"have several labels, set problem_type={MULTI_LABEL!r} in the configs of all "
                "models."
            )
        if who != student.who and not _soft(known):
            raise ValueError(
                f"Expected labels that agree with the config of {who} (problem_type={SINGLE!r}), "
                f"got floats {shape} of 0 and 1, which transformers reads as several labels per "
                f"example. Set student.config.problem_type={SINGLE!r} if each row has a single 1; "
                f"else choose a teacher with problem_type={MULTI_LABEL!r}."
            )
        return problem
    if problem == SINGLE:
        wide = {(len(labels),), (len(labels), 1)}
    if shape not in wide:
        wanted = f"integers ({len(labels)},)" if problem == SINGLE else f"{min(wide, key=len)}"
        raise ValueError(_wrong(student, wanted, f"{labels.dtype} {shape}", problem))
    return problem


def _wrong(student: TaskModel, expected: str, given: Any, problem: str | None) -> str:
    remedy = {
        SINGLE: "Several labels per example are floats (B, C) of 0 and 1.",
        MULTI_LABEL: "A label is 0 or 1 for each class (floats); one class per example is an "
        "integer, with problem_type='single_label_classification'.",
        REGRESSION: "A target is a float for each output; for classes set num_labels (or "
        "problem_type) in the student's config.",
    }.get(problem or "", "Let the data collator stack them.")
    kind = "" if problem is None else f" ({problem})"
    return (
        f"Expected labels of the shape that {student.who} has as {student.task.name}{kind}: "
        f"{expected}; got {given}. {remedy}"
    )


def _missing(labels: Tensor) -> Tensor:
    """Mask ``(B,)`` of examples without any label."""
    missing = labels < 0
    missing = missing | labels.isnan() if labels.is_floating_point() else missing
    return missing.flatten(1).all(-1) if labels.dim() > 1 else missing


def _distributions(rows: Tensor) -> bool:
    if rows.dim() != 2:
        return False
    sums = rows.double().sum(-1)
    return bool((rows >= 0).all()) and bool(((sums - 1).abs() < NEAR).all())


def _soft(rows: Tensor) -> bool:
    """True if rows are probabilities, not all of them 0 or 1."""
    hard = (rows == 0) | (rows == 1)
    return rows.numel() > 0 and _distributions(rows) and not bool(hard.all())


def heads_of(model: nn.Module) -> list[nn.Module]:
    """The heads of a model with several, each of which has a config of its own."""
    return list(task_of(inner_model(model)).heads.values()) if has_task(model) else []


def share_padding(processor: Any, *models: nn.Module) -> None:
    """Align the configs of trained models with the tokenizer, as `Trainer` does when the training
    begins; here before the first batch is read, and for peers too."""
    tokenizer = getattr(processor, "tokenizer", processor)
    heads = [head for model in models for head in heads_of(model)]
    for model in (*models, *heads):
        if isinstance(tokenizer, PreTrainedTokenizerBase) and hasattr(model, "config"):
            align_special_tokens(model, tokenizer)


def tell_tokens(teacher: Any, holder: Any) -> None:
    """Set the padding and end tokens of the data in a teacher's models: a classifier finds the
    position of its logits by them, and its own config may name others.

    Args:
        teacher: The teacher.
        holder: The tokenizer, or the config of a model that matches the data; None: unknown.
    """
    for head in task_models_of(teacher):
        own = head.own_processor
        head.tokens.from_data = special_tokens(holder if own is None else own)


def check_unmasked(batch: Mapping[str, Any], student: TaskModel, teacher: Any) -> None:
    """Raise on a remote teacher with another padding token than the student's, for texts without a
    mask.

    Raises:
        ValueError: see above.
    """
    config = getattr(teacher, "config", None)
    if config is None or "input_ids" not in batch or batch.get("attention_mask") is not None:
        return
    ours, theirs = (getattr(text_config(c), PADDING, None) for c in (student.config, config))
    if student.tokens.finds_padding and ours != theirs and not any(task_models_of(teacher)):
        raise ValueError(
            f"Expected an attention_mask, or one padding token for {student.who} and the teacher: "
            f"they find the last token of a text by pad_token_id {ours} and {theirs}. Let the data "
            "collator give the mask."
        )


def check_kinds(student: str, teacher: str, who: str) -> None:
    """Raise if the teacher's logits have another form than the student's.

    Raises:
        ValueError: see above.
    """
    if teacher != student and "none" not in (student, teacher):
        raise ValueError(
            f"Expected {who or 'the teacher'} to be read as the student is ({student}), got a "
            f"teacher whose outputs are read as {teacher}: its config does not say what it solves. "
            "Set teacher.config.problem_type as in the student's config (of a served model before "
            "it is served; of a cache before it is written)."
        )
