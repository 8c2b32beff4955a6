"""The arguments of a distillation on generated text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers.trainer_utils import IntervalStrategy

from hf_distill.training.config import DistillationConfig, option
from hf_distill.training.on_policy.continuous import check_continuous
from hf_distill.training.on_policy.generating import Sampling, check_number, check_switch

RAISE, TOLERANCE = 0.1, 0.1
"""Increment of ``lmbda`` by `OnPolicyConfig.adaptive_lmbda`, and the rise of the loss that triggers
it."""


@dataclass
class OnPolicyConfig(DistillationConfig):
    """`DistillationConfig` with generation settings; names as in TRL.

    A window is all that one optimizer step sees, over all micro-batches and processes.

    Args:
        lmbda: Share of the windows whose completions the student writes; 0: none, 1: all.
        adaptive_lmbda: Raise ``lmbda`` by 0.1, up to 1, whenever ``eval_loss`` is at least 0.1
            above the first one, or above that of the last raise (DistiLLM, Ko et al. 2024, arXiv
            2402.03898).
        seq_kd: Let the teacher write a completion for every prompt of train_dataset before
            training, and train on those in place of the given ones (Kim and Rush 2016, arXiv
            1606.07947).
        seq_kd_folder: Where to keep them; default: ``seq_kd`` in the output folder.
        prompt_length: So many first tokens of a text are its prompt; default: what is before its
            first learned token.
        max_completion_length: Tokens that are generated at most, the end token among them.
        generation_temperature: Temperature of the sampling; 0: the likeliest token.
        top_p: Sample from the fewest tokens that have this probability together.
        top_k: Sample from the so many likeliest tokens; 0: from all.
        min_p: Leave out tokens with less than this share of the likeliest one's probability.
        repetition_penalty: Above 1 makes tokens less likely that were there already.
        generation_kwargs: Other fields of `transformers.GenerationConfig`.
        generation_batch_size: Prompts per call of ``generate``; default: all of a window.
        continuous_batching: Generate with transformers' continuous batching, for many texts of
            different lengths by a student with flash attention. The likeliest tokens are those of
            plain generation; a seed gives other draws.
        replay_capacity: How many generated completions are kept on each process; 0: none.
        replay_ratio: Share of the student's windows that are drawn from these in place of
            generating, once there are as many as fit (DistiLLM).
        log_completions: How many completions are printed with each log entry.

    Raises:
        ValueError: a value out of its range.
    """

    _VALID_DICT_FIELDS = [  # noqa: RUF012 (as in the base class)
        *DistillationConfig._VALID_DICT_FIELDS,
        "generation_kwargs",
    ]

    lmbda: float = option(0.5, "Share of the windows with the student's own completions.")
    adaptive_lmbda: bool = option(False, "Raise lmbda whenever eval_loss has risen.")
    seq_kd: bool = option(False, "Train on completions that the teacher wrote before.")
    seq_kd_folder: str | None = option(None, "Where the teacher's completions are kept.")
    prompt_length: int | None = option(None, "So many first tokens are the prompt.")
    max_completion_length: int = option(128, "Tokens that are generated at most.")
    generation_temperature: float = option(1.0, "Of the sampling, not of the loss; 0: greedy.")
    top_p: float = option(1.0, "Nucleus sampling.")
    top_k: int = option(0, "Sample from so many; 0: from all.")
    min_p: float | None = option(None, "Least share of the best token.")
    repetition_penalty: float = option(1.0, "1: none.")
    generation_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Other fields of transformers.GenerationConfig."}
    )
    generation_batch_size: int | None = option(
        None, "Prompts per call of generate; default: all of a window."
    )
    continuous_batching: bool = option(False, "Generate with transformers' continuous batching.")
    replay_capacity: int = option(0, "How many generated completions each process keeps.")
    replay_ratio: float = option(0.0, "Share of the student's windows that are drawn from them.")
    log_completions: int = option(0, "How many completions are printed with each log entry.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("adaptive_lmbda", "seq_kd", "continuous_batching"):
            check_switch(name, getattr(self, name))
        for name in ("lmbda", "replay_ratio"):
            check_number(name, getattr(self, name), 0, 1)
        for name in ("prompt_length", "generation_batch_size"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 1, whole=True)
        for name in ("replay_capacity", "log_completions"):
            check_number(name, getattr(self, name), 0, whole=True)
        if self.replay_ratio > 0 and self.replay_capacity == 0:
            raise ValueError(
                f"Expected a replay_capacity for replay_ratio={self.replay_ratio}, got 0: nothing "
                "would be kept to draw from. Set replay_capacity=1000, say."
            )
        if self.adaptive_lmbda and self.eval_strategy == IntervalStrategy.NO:
            raise ValueError(
                "adaptive_lmbda follows eval_loss, and eval_strategy is 'no'. Set "
                "eval_strategy='steps' or 'epoch'."
            )
        sampling = self.sampling()  # checks the rest
        if self.continuous_batching:
            check_continuous(sampling.repetition_penalty, sampling.others)

    @property
    def reads_data(self) -> bool:
        return not (self.seq_kd or self.lmbda > 0)

    def sampling(self) -> Sampling:
        """Sampling settings of completions."""
        if not isinstance(self.generation_kwargs, dict | None):
            raise ValueError(
                f"Expected generation_kwargs as a dict, or as JSON of one, got "
                f"{self.generation_kwargs!r}."
            )
        return Sampling(
            self.max_completion_length,
            self.generation_temperature,
            self.top_p,
            self.top_k,
            self.min_p,
            self.repetition_penalty,
            dict(self.generation_kwargs or {}),
        )


def raised(lmbda: float, losses: Sequence[float]) -> float:
    """The share of the student's windows that the losses of all evaluations so far lead to."""
    reference = None
    for loss in losses:
        if reference is not None and loss >= reference + TOLERANCE:
            lmbda, reference = min(1.0, lmbda + RAISE), loss
        reference = loss if reference is None else reference
    return lmbda
