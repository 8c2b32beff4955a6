"""What is refused before a training on generated text, each with its remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.distributed.fsdp import FSDPModule

from hf_distill.heads import Head
from hf_distill.on_policy.config import OnPolicyConfig
from hf_distill.reading import ALIGNED, Batch
from hf_distill.teachers import CachedTeacher, ModelTeacher
from hf_distill.terms import Sum

READ = {
    "input_ids",
    "attention_mask",
    "position_ids",
    "token_type_ids",
    "labels",
    "shift_labels",
    "decoder_input_ids",
    "decoder_attention_mask",
}
"""The inputs of a model that are made anew for a generated text, or can be left out."""


def check_inputs(batch: Batch, head: Head, args: OnPolicyConfig) -> None:
    """Refuse a student that does not write text, or not from tokens alone."""
    if "input_ids" not in batch or head.task.name not in ("causal_lm", "seq2seq_lm"):
        raise ValueError(
            "Text is generated from `input_ids` by causal language models and encoder-decoders; "
            f"this is a student for {head.task.name}, and the batch has {sorted(batch)}. Use "
            "DistillationTrainer, or lmbda=0."
        )
    if others := sorted((set(batch) & head.accepts) - READ):
        raise ValueError(
            f"The student reads {others} besides the tokens, which a generated text would lack. "
            "Use DistillationTrainer, or lmbda=0."
        )
    if ALIGNED in batch:
        raise ValueError(
            "The teacher has another tokenizer, and a text that the student wrote is not aligned "
            "with it. Train on the data (lmbda=0)."
        )
    if head.config.is_encoder_decoder and (args.prompt_length or args.continuous_batching):
        raise ValueError(
            "prompt_length and continuous_batching are for causal language models; the prompt of "
            "an encoder-decoder is what its encoder reads. Leave them out."
        )


def check_goal(goal: Sum) -> None:
    """Refuse an objective that says nothing about the student's own text."""
    if not any(part.needs and not part.needs_labels for _, part in goal.parts):
        raise ValueError(
            "Expected an objective by which a teacher judges the student's own text, without "
            f"labels, got {goal}. Use alpha above 0, add a divergence, or set lmbda=0."
        )


def check_teacher(teacher: Any) -> None:
    """Refuse a teacher that cannot be asked about new text."""
    if isinstance(teacher, CachedTeacher) and teacher.live is None:
        raise ValueError(
            f"The cache {teacher.path.name!r} knows the outputs for its own data alone, and the "
            "student will write new text. Give the teacher itself too (CachedTeacher(path, "
            "live=…)), or set lmbda=0."
        )
    members = getattr(teacher, "teachers", None)
    for name, member in members.items() if isinstance(members, Mapping) else ():
        if isinstance(member, CachedTeacher):
            raise ValueError(
                f"The teacher {name!r} of the ensemble is a cache, and the student will write new "
                "text. Take the model itself as the member, or set lmbda=0."
            )
        check_teacher(member)


def check_writer(teacher: Any) -> None:
    """Refuse a teacher that cannot write the texts for ``seq_kd``."""
    sharded = isinstance(teacher, ModelTeacher) and isinstance(teacher.model, FSDPModule)
    if not isinstance(teacher, ModelTeacher) or sharded:
        raise ValueError(
            "seq_kd needs a whole model as the teacher, to write the texts. Write them first with "
            "hf_distill.generate_dataset(model, train_dataset, tokenizer, folder), give the result "
            "as train_dataset, and leave seq_kd out."
        )
