"""The arguments of a distillation: those of `transformers` and a handful of scalars."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from hf_distill.objectives import (
    Divergence,
    ForwardKL,
    HardLabels,
    JensenShannon,
    ReverseKL,
    WeightDecay,
)
from hf_distill.objectives.base.objective import Objective, WeightedSum
from hf_distill.utils.directions import higher_is_better
from hf_distill.utils.processes import launched_on_cpus


def option(default: Any, text: str) -> Any:
    """A field of a config, with its text for the command line."""
    return field(default=default, metadata={"help": text})


@dataclass
class DistillationConfig(TrainingArguments):
    r"""`transformers.TrainingArguments` with the scalars of the default objective.

    Without an objective of its own the trainer minimises ``(1 - alpha) * HardLabels() + alpha * D``
    where D is ``ForwardKL(temperature)``, or another divergence by ``beta``, plus
    ``gamma * WeightDecay()`` if gamma is above 0. For a student whose head the table does not know
    (object detection, masked autoencoders, …) it is ``(1 - alpha) * ModelLoss() + alpha *
    HiddenStates()``.

    Args:
        alpha: Share of the teacher, between 0 (labels alone) and 1 (teacher alone).
        temperature: Softens both distributions; above 0.
        beta: As in TRL: 0 is forward KL, 1 reverse KL, between them generalised Jensen-Shannon.
        gamma: Strength of the explicit L2 term.
        check_label_loss: Compare, in the constructor, the loss of the labels with the one that the
            student's own forward gives for one or two examples, and refuse a difference.
        log_gradient_norms: Log the norm of each component's gradient too, ``grad_norm_forward_kl``:
            unweighted, of the last micro-batch before each log, on the first process. It costs one
            backward per component in the steps that are logged.
        eval_teacher: Measure the teacher too in an evaluation, and compare the student with it.
        teacher_model_init_kwargs: Passed to ``from_pretrained`` when the teacher is given by name:
            dtype, quantization_config, revision, attn_implementation, ….

    ``greater_is_better`` is set for the metrics of which `directions` knows it, and for
    the components of the loss, unless it is given; so is the ``mode`` of a scheduler that follows
    ``metric_for_best_model``.

    On the command line (`HfArgumentParser`) a dataclass of one's own beside this one must have no
    field of the same name ("conflicting option string: --temperature").

    Raises:
        ValueError: a value out of its range.
    """

    _VALID_DICT_FIELDS = [  # noqa: RUF012 (as in the base class)
        *TrainingArguments._VALID_DICT_FIELDS,
        "teacher_model_init_kwargs",
    ]

    alpha: float = option(0.5, "Share of the teacher in the loss: 0 labels, 1 teacher.")
    temperature: float = option(2.0, "Temperature of the default objective's divergence.")
    beta: float = option(0.0, "0: forward KL, 1: reverse KL, between: Jensen-Shannon.")
    gamma: float = option(0.0, "Strength of the explicit L2 term.")
    check_label_loss: bool = option(True, "Compare our label loss with the model's own, once.")
    log_gradient_norms: bool = option(False, "Log the norm of each component's gradient.")
    eval_teacher: bool = option(True, "Measure the teacher too in evaluations.")
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "from_pretrained arguments of a teacher given by name."}
    )

    def __post_init__(self) -> None:
        self.direction_given = self.greater_is_better is not None
        self._check_numbers()
        if not self.deepspeed and launched_on_cpus():
            self.use_cpu = True  # or each process would train alone
        super().__post_init__()
        self._direction = self.greater_is_better
        self.settle_direction()
        for name in ("alpha", "beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Expected {name} between 0 and 1, got {getattr(self, name)}.")
        self._check_sizes()
        self._divergence()  # checks the temperature
        self.objective()  # checks gamma
        parallelism = self.parallelism_config
        if parallelism is not None and max(parallelism.cp_size, parallelism.sp_size) > 1:
            raise ValueError(
                "Expected whole sequences on every process, got context or sequence parallelism "
                f"(cp_size={parallelism.cp_size}, sp_size={parallelism.sp_size}): the teacher and "
                "the item counts need whole sequences. Use data parallelism, FSDP2 or ZeRO."
            )

    @property
    def reads_data(self) -> bool:
        """True if the targets come from the data, not only from generated texts."""
        return True

    def settle_direction(
        self, components: Collection[str] = (), sets: Collection[str] = ()
    ) -> bool:
        """Set ``greater_is_better`` for ``metric_for_best_model``, unless it was given.

        Args:
            components: Names of the parts of the loss, of which less is better.
            sets: Names of evaluation sets, which stand before a metric's.

        Returns:
            True if the direction is known; else it stays as `transformers` has it.
        """
        if self.metric_for_best_model is None:
            return False
        if self.greater_is_better != self._direction:  # given since then
            self.direction_given = True
        metric = self.metric_for_best_model.removeprefix("eval_")
        ahead = [f"{name}_" for name in sets if metric.startswith(f"{name}_")]
        metric = metric.removeprefix(max(ahead, key=len, default=""))
        known = False if metric in components else higher_is_better(metric)
        if known is None and metric.startswith(tuple(f"{name}_" for name in components)):
            known = False
        if not self.direction_given:
            by_name = not metric.endswith("loss")
            self.greater_is_better = by_name if known is None else known
        self._direction = self.greater_is_better
        return self.direction_given or known is not None

    def _check_numbers(self) -> None:
        """Refuse NaN in any argument of `transformers`."""
        for part in fields(TrainingArguments):
            value = getattr(self, part.name, None)
            if isinstance(value, float) and math.isnan(value):
                raise ValueError(f"Expected {part.name} to be a number, got nan.")

    def _check_sizes(self) -> None:
        sizes = ("per_device_train_batch_size", "per_device_eval_batch_size")
        for name in (*sizes, "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"Expected {name} of at least 1, got {getattr(self, name)}. To train nothing "
                    "leave train() out."
                )
        if not math.isfinite(self.num_train_epochs):
            raise ValueError(
                f"Expected num_train_epochs to be a number, got {self.num_train_epochs}. Give the "
                "number of epochs, or of steps (max_steps)."
            )

    def to_dict(self) -> dict[str, Any]:
        """As in `transformers.TrainingArguments`; trackers show it, so that no token is in it."""
        values: dict[str, Any] = super().to_dict()
        given = values["teacher_model_init_kwargs"]
        if isinstance(given, dict) and "token" in given:
            values["teacher_model_init_kwargs"] = {**given, "token": "<TOKEN>"}
        return values

    def objective(
        self, labels: Objective | None = None, teaching: Objective | None = None
    ) -> WeightedSum:
        """The default objective, as these scalars describe it.

        Args:
            labels: In place of `HardLabels`.
            teaching: In place of the divergence.
        """
        total = WeightedSum(())
        if self.alpha < 1:
            total = total + (1 - self.alpha) * (labels or HardLabels())
        if self.alpha > 0:
            total = total + self.alpha * (teaching or self._divergence())
        if self.gamma != 0:
            total = total + WeightDecay(self.gamma)
        return total

    def _divergence(self) -> Divergence:
        if self.beta == 0:
            return ForwardKL(self.temperature)
        if self.beta == 1:
            return ReverseKL(self.temperature)
        return JensenShannon(self.temperature, self.beta)


@dataclass
class Seq2SeqDistillationConfig(DistillationConfig, Seq2SeqTrainingArguments):
    """`DistillationConfig` with the generation arguments of `Seq2SeqTrainingArguments`."""
