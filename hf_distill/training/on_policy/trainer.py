"""A trainer that replaces windows of data by the student's own text."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from peft import PeftConfig
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import EvalPrediction, PreTrainedModel, TrainerCallback

from hf_distill.models.batches import GENERATED
from hf_distill.models.signals import Needs, Signal
from hf_distill.models.task_model import TaskModel
from hf_distill.objectives.base.objective import Objective, WeightedSum
from hf_distill.teachers import CachedTeacher, ModelTeacher, Teacher
from hf_distill.training.on_policy.checks import (
    check_batching,
    check_goal,
    check_inputs,
    check_teacher,
    check_writer,
)
from hf_distill.training.on_policy.config import OnPolicyConfig, raised
from hf_distill.training.on_policy.dataset import check_rows, generate_dataset
from hf_distill.training.on_policy.generating import Generator, ModelGenerator, Tokens, until_end
from hf_distill.training.on_policy.prompts import (
    PromptCompletion,
    Prompts,
    ReplayBuffer,
    assemble,
    longest_prompt,
    start_token,
)
from hf_distill.training.on_policy.stats import OnPolicyStats, completion_lines
from hf_distill.training.step import DistillationStep, StepBatch
from hf_distill.training.trainer import DistillationTrainer

logger = logging.getLogger(__name__)

OWN, REPLAY, DRAW, SAMPLE = range(4)
"""Purposes of random numbers."""


class OnPolicyStep(DistillationStep):
    """Step in which generated text goes to the live model of a cached teacher."""

    def ask_teacher(self, batch: StepBatch, needs: Needs | None = None) -> Signal | None:
        cached = self.teacher
        if GENERATED not in batch.inputs or not isinstance(cached, CachedTeacher):
            return super().ask_teacher(batch, needs)
        live = copy.copy(self)
        live.teacher = cached.live
        return live.ask_teacher(batch, needs)


class OnPolicyDistillationTrainer(DistillationTrainer):
    """`DistillationTrainer` in which the student writes a share of the texts itself (GKD, Agarwal
    et al. 2024, arXiv 2306.13649).

    For each optimizer step it is drawn whether its whole window, on all processes, keeps the
    completions of the data or has the student write them anew. The denominators count the tokens
    that were written.

    - Labels count on completions of the data alone. In a window of the student's text these parts
      are 0 and the others keep their weights; logged is their mean over the other windows.
    - A prompt is all before a text's first learned token, see `OnPolicyConfig`; its front is cut to
      the contexts of student and teacher.
    - Weights of single tokens do not count on generated text.
    - Evaluation is on the data as it is, so that ``eval_loss`` is comparable.
    - A data collator with ``text_columns(batch)`` (`CrossTokenizerTeacher.collator`) adds these to
      a batch of generated texts.

    Logged besides: ``on_policy`` (share of such windows), ``replayed`` (share of those drawn from
    the buffer), ``completion_length`` (mean, in tokens), ``completions_finished`` (share that ends
    by itself).

    Args:
        model: The student: a causal language model, or an encoder-decoder of text.
        args: An `OnPolicyConfig`.
        generator: `Generator` in place of the student's ``generate``, with its own sampling.
        data_collator: As `DistillationTrainer`, like all that are not listed here.

    Raises:
        ValueError: anything that cannot work, before training starts, with the remedy.
    """

    config_class = OnPolicyConfig
    args: OnPolicyConfig

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: OnPolicyConfig | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        compute_loss_func: Callable[..., Tensor] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        generator: Generator | None = None,
        teacher_model: str | Path | nn.Module | Teacher | None = None,
        objective: Objective | WeightedSum | None = None,
        peft_config: PeftConfig | None = None,
    ):
        self.generator = generator
        self._buffer = ReplayBuffer(0)
        self._given_dataset: Any = None
        self._written_dataset: Any = None
        super().__init__(
            *(model, args, data_collator, train_dataset, eval_dataset, processing_class),
            *(model_init, compute_loss_func, compute_metrics, callbacks, optimizers),
            *(optimizer_cls_and_kwargs, preprocess_logits_for_metrics),
            teacher_model=teacher_model,
            objective=objective,
            peft_config=peft_config,
        )
        self._stats = OnPolicyStats(self.args, self._summed, self._labelled_terms)
        self.component_log.extra = self._stats
        if isinstance(generator, TrainerCallback):
            self.add_callback(generator)
        if self.args.seq_kd:
            check_writer(self.teacher)
            check_rows(self.train_dataset)
        if self.args.lmbda > 0 or self.args.adaptive_lmbda:
            self._check_on_policy()

    def make_step(self, task_model: TaskModel, teacher: Teacher | None) -> OnPolicyStep:
        return OnPolicyStep(task_model, teacher, self.processing_class)

    def _check_on_policy(self) -> None:
        check_teacher(self.teacher)
        if self._first_batch is not None:
            check_inputs(self._first_batch, self.step.task_model, self.args, self.data_collator)
        check_goal(self.training_objective)
        if self.args.adaptive_lmbda and isinstance(self.eval_dataset, dict):
            raise ValueError(
                "adaptive_lmbda follows eval_loss, which several evaluation sets do not have. "
                "Give one eval_dataset."
            )
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and plugin.fsdp_version != 2:
            raise ValueError(
                "A student under FSDP version 1 cannot generate between its steps. Use version 2 "
                "(fsdp_config={'version': 2}), DDP or ZeRO."
            )
        self._prompts()  # checks the length of completions
        if self.generator is None:
            own = self._model_generator()
            if self.args.continuous_batching:
                check_batching(own, self.is_fsdp_enabled)

    # ---- the windows -------------------------------------------------------------------------

    def get_batch_samples(  # type: ignore[override]
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Mapping[str, Tensor] | None]:
        """The batches of a window, of the data or generated, and what there is to count in them."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        if batches:
            self._stats.windows += 1
            if self._random(OWN).random() < self.lmbda:
                self._stats.own += 1
                batches = self._own_text(batches)
        found: Any = super().get_batch_samples(iter(batches), num_batches, device)
        return found

    @property
    def lmbda(self) -> float:
        """The share of the student's windows at this moment."""
        if not self.args.adaptive_lmbda:
            return self.args.lmbda
        losses = [entry["eval_loss"] for entry in self.state.log_history if "eval_loss" in entry]
        return raised(self.args.lmbda, losses)

    def _random(self, purpose: int, *more: int) -> np.random.Generator:
        """Random numbers that follow from the seed and the step alone, on all processes alike."""
        return np.random.default_rng((self.args.seed, self.state.global_step, purpose, *more))

    def _own_text(self, batches: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The same batches, with what the student writes, or wrote, instead of the data."""
        prompts = [self._prompts().of(batch) for batch in batches]
        flat = [prompt for own in prompts for prompt in own]
        pairs = iter(self._replayed(len(flat)) or self._generated(flat))
        padding = self._model_generator().padding
        written = [
            assemble(list(itertools.islice(pairs, len(own))), self.step.task_model, padding)
            for own in prompts
        ]
        device = batches[0]["input_ids"].device
        add: Any = getattr(self.data_collator, "text_columns", lambda batch: {})
        return [send_to_device({**batch, **add(batch)}, device) for batch in written]

    def _replayed(self, count: int) -> list[PromptCompletion]:
        """Texts from the buffer, or none if this window is not one of those."""
        if self._random(REPLAY).random() >= self.args.replay_ratio:
            return []
        room = torch.tensor(float(not self._buffer.full), device=self.args.device)
        if self.accelerator.reduce(room, "sum") > 0:  # on one process at least
            return []
        self._stats.replayed += 1
        return self._buffer.draw(count, self._random(DRAW, self.args.process_index))

    def _generated(self, prompts: list[Tokens]) -> list[PromptCompletion]:
        own = self._model_generator()
        seed = int(self._random(SAMPLE, self.args.process_index).integers(2**63))
        completions = (own if self.generator is None else self.generator)(prompts, seed)
        self._check_completions(completions, prompts)
        longest = self.args.max_completion_length
        completions = [until_end(list(c)[:longest], own.ends) for c in completions]
        pairs = list(zip(prompts, completions, strict=True))
        self._stats.add(pairs, own.ends)
        self._buffer.add(pairs)
        return pairs

    def _check_completions(self, completions: list[Tokens], prompts: list[Tokens]) -> None:
        if len(completions) != len(prompts):
            raise ValueError(
                f"Expected a completion for each of {len(prompts)} prompts, got "
                f"{len(completions)}. Look at the generator."
            )
        classes = self.step.task_model.classes
        wrong = [t for c in completions for t in c if t < 0 or (classes and t >= classes)]
        if wrong:
            raise ValueError(
                f"Expected tokens of the student's vocabulary of {classes}, got {wrong[:4]}. Does "
                "the generator have another tokenizer, or return text with its prompt?"
            )

    @property
    def _tokenizer(self) -> Any:
        return getattr(self.processing_class, "tokenizer", self.processing_class)

    def _prompts(self) -> Prompts:
        teacher = None if self.teacher is None else self.teacher.config
        own = self.step.task_model.config
        configs = [config for config in (own, teacher) if config is not None]
        longest = longest_prompt(self.args.max_completion_length, configs)
        start = start_token(self._tokenizer, own)
        return Prompts(self.step.task_model, self.args.prompt_length, longest, start)

    def _model_generator(self) -> ModelGenerator:
        args = self.args
        size, continuous = args.generation_batch_size, args.continuous_batching
        return ModelGenerator(self._student, args.sampling(), self._tokenizer, size, continuous)

    # ---- training ----------------------------------------------------------------------------

    def train(self, *args: Any, **options: Any) -> Any:
        """As in `transformers.Trainer`; with ``seq_kd`` the teacher writes its texts first."""
        if self.args.seq_kd and isinstance(self.teacher, ModelTeacher):
            folder = self.args.seq_kd_folder or Path(str(self.args.output_dir)) / "seq_kd"
            if self.train_dataset is not self._written_dataset:
                self._given_dataset = self.train_dataset
            self.train_dataset = self._written_dataset = generate_dataset(
                self.teacher,
                self._given_dataset,
                self._tokenizer,
                folder,
                sampling=self.args.sampling(),
                prompt_length=self.args.prompt_length,
                batch_size=self.args.generation_batch_size or 8,
                seed=self.args.seed,
            )
        return super().train(*args, **options)

    def _inner_training_loop(self, *args: Any, **options: Any) -> Any:
        self._buffer = ReplayBuffer(self.args.replay_capacity)
        folder = options.get("resume_from_checkpoint")
        if folder is not None and self.args.replay_capacity:
            path = self._replay_path(folder)
            if path.is_file():
                self._buffer.load(path)
            else:
                logger.warning("No %s to resume from: the replay buffer starts empty.", path)
        return super()._inner_training_loop(*args, **options)

    def _replay_path(self, folder: str) -> Path:
        return Path(folder) / f"replay-{self.args.process_index:05d}.safetensors"

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the replay buffer of this process too: its content belongs to the random state."""
        super()._save_rng_state(output_dir)
        if self.args.replay_capacity:
            self._buffer.save(self._replay_path(output_dir))

    # ---- logging -----------------------------------------------------------------------------

    def run_facts(self) -> dict[str, Any]:
        """As `DistillationTrainer`, with the share of the student's text and how it is drawn."""
        args, names = self.args, ("lmbda", "seq_kd", "replay_ratio", "generation_temperature")
        return {**super().run_facts(), "on_policy": {name: getattr(args, name) for name in names}}

    def _labelled_terms(self) -> set[str]:
        return {name for name, _, part in self.training_objective.named() if part.needs_labels}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        shown = self._stats.shown if "loss" in logs else []
        super().log(logs, start_time)
        if shown and self.is_world_process_zero():
            tqdm.write(completion_lines(shown, self._tokenizer))

    def _summed(self, values: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(values, "sum")
        return total
