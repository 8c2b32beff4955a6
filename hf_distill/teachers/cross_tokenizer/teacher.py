"""A teacher with another tokenizer than the student's."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from hf_distill.losses.distribution.cross_tokenizer import summed_over_spans
from hf_distill.losses.distribution.kl import check_temperature, over_temperature
from hf_distill.losses.numerics import compute_dtype
from hf_distill.models.batches import ALIGNED, Batch, next_tokens
from hf_distill.models.signals import BatchItems, CrossTokenizerLogits, Needs, Signal, SparseProbs
from hf_distill.teachers.cross_tokenizer import AligningCollator, ByteTokens, Retokenizer
from hf_distill.teachers.cross_tokenizer.collator import (
    STUDENT_SPANS,
    TEACHER_IDS,
    TEACHER_MASK,
    TEACHER_SPANS,
)
from hf_distill.teachers.cross_tokenizer.shared_vocabulary import shared_tokens
from hf_distill.teachers.model import ModelTeacher
from hf_distill.teachers.protocol import Teacher

WHOLE = Needs(logits=True, unsampled=True, full_vocabulary=True)


class CrossTokenizerTeacher:
    """A causal language model with another tokenizer than the student's.

    Its `collator` tokenizes every text with the teacher's tokenizer too, and marks the positions
    where both have a boundary at the same byte: these are the items. It provides the probabilities
    of the shared tokens, and that of all its others as one, so that a divergence on these
    (`ForwardKL`, …) is a lower bound of one over all texts; `PrefixKL`, `SpanKL` and
    `UniversalLogitDistance` use more. Both read the same text without the special tokens that one
    of them lacks; the teacher's chat template is not applied.

    Args:
        teacher: The model, or a teacher with logits.
        tokenizer: The teacher's tokenizer.
        student_tokenizer: The student's.
        temperature: Temperature of its probabilities: the objective's.
        top: Keep only this many most likely shared tokens, and add the others to the rest: much
            less memory, and a smaller lower bound.
        specials: See `hf_distill.teachers.cross_tokenizer.Retokenizer`.
        folder: Cache of the shared tokens, see `shared_tokens`.

    Raises:
        ValueError: tokenizers without a byte form or without shared tokens; not a causal language
            model.
    """

    def __init__(
        self,
        teacher: nn.Module | Teacher,
        tokenizer: Any,
        student_tokenizer: Any,
        *,
        temperature: float = 1.0,
        top: int | None = None,
        specials: Mapping[str, str] | None = None,
        folder: str | Path | None = None,
    ):
        check_temperature(temperature)
        if top is not None and top < 1:
            raise ValueError(f"Expected at least 1 likeliest token, got top={top}.")
        self.teacher = _causal(teacher)
        spellings = ByteTokens(student_tokenizer), ByteTokens(tokenizer)
        self.translator = Retokenizer(*spellings, specials)
        self.shared = shared_tokens(self.translator, folder)
        self.temperature, self.top = float(temperature), top
        self.provides = Needs(logits=True, unsampled=True, cross_tokenizer=True)
        self.config = copy.deepcopy(self.teacher.config)
        if self.config is not None:
            self.config.get_text_config().vocab_size = len(spellings[0])
        used = set(self.shared.teacher.tolist())
        self._others = torch.tensor([i for i in range(len(spellings[1])) if i not in used]).long()
        self._classes = self.shared.classes
        self._all_shared = len(self.shared.student) == len(spellings[0])

    def collator(self, collate: Callable[[list[Any]], Mapping[str, Any]]) -> AligningCollator:
        """Data collator for the training, from the student's: it returns ``input_ids``,
        ``attention_mask`` and ``labels``."""
        config = self.teacher.config and self.teacher.config.get_text_config()
        longest = getattr(config, "max_position_embeddings", None)
        padding = self.translator.teacher.roles.get("pad", 0)
        return AligningCollator(collate, self.translator, padding, longest)

    def __call__(self, batch: Batch, needs: Needs, items: BatchItems) -> Signal:
        _check_batch(batch)
        own = {"input_ids": batch[TEACHER_IDS], "attention_mask": batch[TEACHER_MASK]}
        rows = torch.ones(len(own["input_ids"]), dtype=torch.bool, device=own["input_ids"].device)
        counted = next_tokens(own, nn.Identity(), rows)
        logits = self.teacher(own, WHOLE, counted).logits
        if logits is None:
            raise ValueError("Expected logits of the teacher with another tokenizer, got none.")
        with torch.no_grad():
            logits = logits[..., : len(self.translator.teacher)]  # the rest is padding
            positions = batch[ALIGNED].clamp(min=0)[..., None].expand(-1, -1, logits.shape[-1])
            here = logits.gather(1, positions)
            foreign = self._foreign(batch, logits, here) if needs.cross_tokenizer else None
            return Signal(sparse=self._sparse(here), cross_tokenizer=foreign)

    def _sparse(self, logits: Tensor) -> SparseProbs:
        """Probabilities of the shared tokens, and of all others together."""
        dtype = compute_dtype(logits)
        scaled = over_temperature(logits, self.temperature, dtype)
        log_probs = F.log_softmax(scaled, -1, dtype=dtype)
        ids = self.shared.student
        rest = log_probs.index_select(-1, self._others).logsumexp(-1)
        log_probs = log_probs.index_select(-1, self.shared.teacher)
        if self._all_shared:  # the student has no token for the rest
            log_probs, rest = log_probs.log_softmax(-1), torch.full_like(rest, -torch.inf)
        if self.top is not None and self.top < len(ids):
            kept, best = log_probs.topk(self.top, dim=-1)
            left = log_probs.scatter(-1, best, -torch.inf).logsumexp(-1)
            log_probs, rest, ids = kept, torch.logaddexp(rest, left), ids[best]
        classes = len(self.translator.student)
        rest = rest.clamp(min=math.log(torch.finfo(dtype).tiny))  # as in `coarsened`
        return SparseProbs(ids.expand(log_probs.shape), log_probs, rest, classes, self.temperature)

    def _foreign(self, batch: Batch, logits: Tensor, here: Tensor) -> CrossTokenizerLogits:
        """Inputs of the objectives for two tokenizers."""
        dtype = compute_dtype(logits)
        following = batch[TEACHER_IDS].roll(-1, 1)[..., None]
        log_probs = logits.gather(-1, following).squeeze(-1).to(dtype)
        log_probs = log_probs - logits.to(dtype).logsumexp(-1)
        spans: Tensor = batch[STUDENT_SPANS]
        last = len(self.translator.student) - 1  # a student may generate padding entries
        return CrossTokenizerLogits(
            here,
            self.shared.student_classes,
            self.shared.teacher_classes,
            self._classes,
            batch["input_ids"].roll(-1, 1).clamp(max=last),
            spans,
            summed_over_spans(log_probs, batch[TEACHER_SPANS], spans.shape[1]),
        )

    def columns(self) -> set[str]:
        return {"input_ids", "attention_mask", "position_ids"}

    def tokens(self) -> Mapping[str, int]:
        """The student's vocabulary, in which its outputs are."""
        return self.translator.student.vocabulary

    def place(self, accelerator: Accelerator) -> None:
        self.teacher.place(accelerator)
        self.shared = self.shared.to(accelerator.device)
        self._others = self._others.to(accelerator.device)

    def tensors(self) -> Mapping[str, Tensor]:
        return self.teacher.tensors()

    def describe(self) -> dict[str, Any]:
        own = {"tokens": len(self.translator.teacher), "shared": len(self.shared.student)}
        return {**self.teacher.describe(), "tokenizer": own}


def _causal(teacher: Any) -> Teacher:
    found: Any = ModelTeacher(teacher) if isinstance(teacher, nn.Module) else teacher
    if not isinstance(found, Teacher):
        raise ValueError(
            f"Expected a model or a Teacher, got {type(teacher).__name__}. Load the model first: "
            "AutoModelForCausalLM.from_pretrained(…)."
        )
    head: Any = getattr(found, "task_model", None)
    if head is not None and head.task.name != "causal_lm":
        raise ValueError(
            f"Expected a causal language model, got {head.task.name}: only of those the texts of "
            "two tokenizers can be aligned."
        )
    if missing := WHOLE.missing_from(found.provides):
        raise ValueError(
            f"Expected a teacher that gives {missing}, which this one does not; take the model "
            "itself."
        )
    return found


def _check_batch(batch: Batch) -> None:
    missing = [key for key in (TEACHER_IDS, ALIGNED) if key not in batch]
    if missing:
        raise ValueError(
            f"Expected {missing} in the batch, got {sorted(batch)}. The collator adds them: "
            "data_collator=teacher.collator(<your data collator>)."
        )
    if batch[ALIGNED].shape != batch["input_ids"].shape:
        raise ValueError(
            f"Expected {ALIGNED} for each of the tokens {tuple(batch['input_ids'].shape)}, got "
            f"{tuple(batch[ALIGNED].shape)}. Something changed the tokens after the collator that "
            "aligned them: add its columns again (AligningCollator.text_columns)."
        )
