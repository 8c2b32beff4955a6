"""What is refused before a training on generated text, each with its remedy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch.distributed.fsdp import FSDPModule

from hf_distill.heads import Head
from hf_distill.on_policy.config import OnPolicyConfig
from hf_distill.on_policy.continuous import check_batchable
from hf_distill.on_policy.generating import ModelGenerator, Sampling
from hf_distill.reading import ALIGNED, Batch
from hf_distill.tasks import shifts_labels
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


def check_inputs(batch: Batch, head: Head, args: OnPolicyConfig, collator: Any) -> None:
    """Refuse a student that does not write text, or not from tokens alone."""
    if "input_ids" not in batch or head.task.name not in ("causal_lm", "seq2seq_lm"):
        raise ValueError(
            "Text is generated from `input_ids` by causal language models and encoder-decoders; "
            f"this is a student for {head.task.name}, and the batch has {sorted(batch)}. Use "
            "DistillationTrainer, or lmbda=0."
        )
    if head.task.name == "causal_lm" and not shifts_labels(head.model):
        raise ValueError(
            f"The student ({type(head.model).__name__}) takes labels that its data have shifted, "
            "and those of a generated text are not. Use DistillationTrainer, or lmbda=0."
        )
    if others := sorted((set(batch) & head.accepts) - READ):
        raise ValueError(
            f"The student reads {others} besides the tokens, which a generated text would lack. "
            "Use DistillationTrainer, or lmbda=0."
        )
    if ALIGNED in batch and not hasattr(collator, "text_columns"):
        raise ValueError(
            "The teacher has another tokenizer, and its collator, which must read what the student "
            f"writes too, is hidden in another one: got {type(collator).__name__}. Let it be the "
            "outermost: data_collator=teacher.collator(<the other one>)."
        )
    if head.config.is_encoder_decoder and (args.prompt_length or args.continuous_batching):
        raise ValueError(
            "prompt_length and continuous_batching are for causal language models; the prompt of "
            "an encoder-decoder is what its encoder reads. Leave them out."
        )


def check_batching(generator: ModelGenerator, sharded: bool) -> None:
    """Refuse a student that continuous batching does not work with; only a try can tell, as that
    depends on its attention and its cache."""
    check_batchable(generator.model, sharded)
    dataclasses.replace(generator, sampling=Sampling(1, 0.0))([[0]], 0)


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
    if teacher is not None and teacher.provides.foreign:
        raise ValueError(
            "seq_kd keeps the tokens that the teacher writes, and these are of another tokenizer "
            "(with a chat template of their own). Let it write text: hf_distill.generate_dataset("
            "model, tokenize(dataset, its_tokenizer), its_tokenizer, folder), decode prompts and "
            "completions, tokenize those with the student's tokenizer, give that as "
            "train_dataset, and leave seq_kd out."
        )
    sharded = isinstance(teacher, ModelTeacher) and isinstance(teacher.model, FSDPModule)
    if not isinstance(teacher, ModelTeacher) or sharded:
        raise ValueError(
            "seq_kd needs a whole model as the teacher, to write the texts. Write them first with "
            "hf_distill.generate_dataset(model, train_dataset, tokenizer, folder), give the result "
            "as train_dataset, and leave seq_kd out."
        )
