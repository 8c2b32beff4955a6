"""What a student is trained towards: a frozen dataclass of settings per objective.

Adding one takes three edits: the function in `losses/`, its dataclass and `OBJECTIVES` entry here,
its row in the table of contract tests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_distill.layers import layer_map
from hf_distill.losses import (
    forward_kl,
    hidden_cosine,
    hidden_mse,
    jensen_shannon,
    logit_mse,
    reverse_kl,
)
from hf_distill.schedules import check_weight, weight_from
from hf_distill.signals import Items, Needs, Signal
from hf_distill.terms import Context, Objective, Sum, Term, built_modules

# ---- labels ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class HardLabels(Objective):
    """The loss of the labels, on the items that have one.

    Cross-entropy; for multi-label heads the binary cross-entropies summed over the classes
    (transformers divides them by the number of classes); for regression the squared error; for CTC
    the negative log-likelihood, divided by the number of target tokens.

    Args:
        label_smoothing: Between 0 and 1, as in `torch.nn.functional.cross_entropy`; None: the
            trainer's ``label_smoothing_factor``.
        class_weights: A factor per class. Weighted values are averaged over the items, not over
            the sum of the weights, so that the split into batches does not matter.
    """

    label_smoothing: float | None = None
    class_weights: tuple[float, ...] | None = None
    name: ClassVar[str] = "hard_labels"
    needs: ClassVar[Needs] = Needs()
    student_needs: ClassVar[Needs] = Needs(logits=True)
    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.label_smoothing is not None and not 0 <= self.label_smoothing < 1:
            raise ValueError(f"Expected label_smoothing in [0, 1), got {self.label_smoothing}.")
        if self.class_weights is not None:
            object.__setattr__(self, "class_weights", tuple(map(float, self.class_weights)))

    def check(self, kind: str) -> None:
        if kind == "none":
            raise ValueError(
                "HardLabels needs a head with labels; a plain encoder has none. Align its hidden "
                "states instead: objective=HiddenStates()."
            )
        if kind in ("regression", "ctc") and (self.label_smoothing or self.class_weights):
            raise ValueError(f"Label smoothing and class weights do not apply to a {kind} head.")

    def terms(
        self, student: Signal, teacher: Signal | None, items: Items, context: Context
    ) -> list[Term]:
        logits, mask = student.logits, items.masks.get("labels")
        if items.labels is None or mask is None or logits is None:
            raise ValueError(
                "HardLabels needs labels, and this batch has none. Drop it from the objective "
                "(alpha=1.0 trains on the teacher alone) or give the data a label column."
            )
        logits = at_least_float(logits)
        if student.kind == "ctc":
            values = self._ctc(logits, items.labels, mask, items.masks["items"])
            return [Term(self.name, values, "labels", mask.any(-1))]
        losses = {"sigmoid": self._binary, "regression": _squared, "softmax": self._cross_entropy}
        values = losses[student.kind](logits, items.labels, mask)
        return [Term(self.name, values, "labels", mask)]

    def check_classes(self, count: int) -> None:
        """Refuse weights for another number of classes."""
        if self.class_weights is not None and len(self.class_weights) != count:
            raise ValueError(
                f"Expected {count} class_weights, got {len(self.class_weights)}. Give one factor "
                "per class, in the order of the student's `config.id2label`."
            )

    def _weights(self, logits: Tensor) -> Tensor | None:
        self.check_classes(logits.shape[-1])
        return None if self.class_weights is None else logits.new_tensor(self.class_weights)

    def _cross_entropy(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        values = F.cross_entropy(
            logits.flatten(0, -2),
            labels.masked_fill(~mask, -100).flatten(),
            self._weights(logits),
            reduction="none",
            label_smoothing=self.label_smoothing or 0.0,
        )
        return values.view(mask.shape)

    def _binary(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        if labels.dim() < logits.dim():
            labels = labels[..., None]
        labels = labels.to(logits.dtype)
        missing = torch.isnan(labels) | (labels < 0)
        smoothing = self.label_smoothing or 0.0
        targets = labels.masked_fill(missing, 0.0) * (1 - smoothing) + smoothing / 2
        values = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        weights = self._weights(logits)
        values = values if weights is None else values * weights
        return values.masked_fill(missing, 0.0).sum(-1)

    @staticmethod
    def _ctc(logits: Tensor, labels: Tensor, mask: Tensor, frames: Tensor) -> Tensor:
        return F.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1),
            labels.masked_fill(~mask, 0),
            frames.sum(-1),
            mask.sum(-1),
            reduction="none",
            zero_infinity=True,
        )


def _squared(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    targets = labels.to(logits.dtype).view(logits.shape)
    return torch.where(targets.isnan(), 0.0, logits - targets).square().sum(-1)


def at_least_float(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


# ---- distributions ---------------------------------------------------------------------------

HINTON = (
    "@article{hinton2015distilling, title={Distilling the Knowledge in a Neural Network}, "
    "author={Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff}, "
    "journal={arXiv preprint arXiv:1503.02531}, year={2015}}"
)
GKD = (
    "@inproceedings{agarwal2024onpolicy, title={On-Policy Distillation of Language Models: "
    "Learning from Self-Generated Mistakes}, author={Agarwal, Rishabh and Vieillard, Nino and "
    "Zhou, Yongchao and Stanczyk, Piotr and Ramos, Sabela and Geist, Matthieu and Bachem, "
    "Olivier}, booktitle={ICLR}, year={2024}, eprint={2306.13649}}"
)


@dataclass(frozen=True)
class Divergence(Objective):
    """Base of the divergences between the two models' distributions, scaled by T squared.

    For multi-label heads every class is a Bernoulli variable and the classes are summed. For
    regression both outputs are means of normal distributions of variance 1, whose divergence, in
    both directions, is half the squared difference.

    Args:
        temperature: Softens both distributions; the value is multiplied by its square (Hinton).
    """

    temperature: float = 1.0
    needs: ClassVar[Needs] = Needs(logits=True)
    citation: ClassVar[str] = HINTON

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"Expected a temperature above 0, got {self.temperature}.")

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """``(..., C)`` logits to ``(...)``."""
        raise NotImplementedError

    def check(self, kind: str) -> None:
        _refuse_encoder(self, kind)

    def terms(
        self, student: Signal, teacher: Signal | None, items: Items, context: Context
    ) -> list[Term]:
        ours, theirs = _both_logits(student, teacher)
        if student.kind == "regression":
            values = 0.5 * logit_mse(ours, theirs)
        elif student.kind == "sigmoid":
            values = self.divergence(_bernoulli(ours), _bernoulli(theirs)).sum(-1)
        else:
            values = self.divergence(ours, theirs)
        return [Term(self.name, values, "items", items.masks["items"])]


def _refuse_encoder(objective: Objective, kind: str) -> None:
    if kind == "none":
        raise ValueError(
            f"{type(objective).__name__} compares logits, and a plain encoder has none. Align its "
            "hidden states or embeddings instead: objective=HiddenStates()."
        )


def _bernoulli(logits: Tensor) -> Tensor:
    """softmax([z, 0]) is (sigmoid(z), 1 - sigmoid(z)): one implementation serves both."""
    return torch.stack([logits, torch.zeros_like(logits)], dim=-1)


def _both_logits(student: Signal, teacher: Signal | None) -> tuple[Tensor, Tensor]:
    if teacher is None or teacher.logits is None or student.logits is None:
        raise ValueError("Expected logits of student and teacher; this teacher gave none.")
    ours, theirs = student.logits, teacher.logits
    if ours.shape != theirs.shape:
        raise ValueError(
            f"Expected student and teacher logits of one shape, got {tuple(ours.shape)} and "
            f"{tuple(theirs.shape)}. Both models must see the same inputs and give one row per "
            "item (the same resolution, frame rate and sequence length)."
        )
    return ours, theirs


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """KL(teacher || student): the classical distillation loss (Hinton et al. 2015, 1503.02531)."""

    name: ClassVar[str] = "forward_kl"

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        return forward_kl(student, teacher, self.temperature)


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """KL(student || teacher): seeks the teacher's modes (Gu et al. 2023, arXiv 2306.08543)."""

    name: ClassVar[str] = "reverse_kl"

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        return reverse_kl(student, teacher, self.temperature)


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """Generalised Jensen-Shannon divergence (Agarwal et al. 2024, arXiv 2306.13649).

    Args:
        temperature: As in every divergence.
        beta: 0 is forward KL, 1 reverse KL, as in TRL.
    """

    beta: float = 0.5
    name: ClassVar[str] = "jensen_shannon"
    citation: ClassVar[str] = GKD

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise ValueError(f"Expected beta between 0 and 1, got {self.beta}.")

    def check(self, kind: str) -> None:
        super().check(kind)
        if kind == "regression" and 0 < self.beta < 1:
            raise ValueError(
                "The Jensen-Shannon divergence of two normal distributions has no closed form; "
                "for a regression head use LogitMSE or ForwardKL."
            )

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        return jensen_shannon(student, teacher, self.beta, self.temperature)


@dataclass(frozen=True)
class LogitMSE(Objective):
    """Squared differences of the logits, summed over the classes (Ba & Caruana 2014, 1312.6184)."""

    name: ClassVar[str] = "logit_mse"
    needs: ClassVar[Needs] = Needs(logits=True)
    citation: ClassVar[str] = (
        "@inproceedings{ba2014deep, title={Do Deep Nets Really Need to be Deep?}, author={Ba, "
        "Jimmy and Caruana, Rich}, booktitle={NeurIPS}, year={2014}, eprint={1312.6184}}"
    )

    def check(self, kind: str) -> None:
        _refuse_encoder(self, kind)

    def terms(
        self, student: Signal, teacher: Signal | None, items: Items, context: Context
    ) -> list[Term]:
        values = logit_mse(*_both_logits(student, teacher))
        return [Term(self.name, values, "items", items.masks["items"])]


# ---- features --------------------------------------------------------------------------------


@dataclass(frozen=True)
class HiddenStates(Objective):
    """Distance of hidden states, averaged over the features and over the pairs of layers.

    Where the widths differ, a learned linear projection takes the student's states to the
    teacher's width; it is trained with the student and never published. Padding does not count;
    groups without padding (images) are averaged over their positions first.

    Args:
        layers: A layer map or explicit pairs, see `hf_distill.layers.layer_map`.
        distance: ``mse`` (FitNets, arXiv 1412.6550) or ``cosine`` (DistilBERT, arXiv 1910.01108).
        groups: Which stacks to align (``encoder``, ``decoder``, ``text``, …); None: all.
    """

    layers: str | tuple[tuple[int, int], ...] = "uniform"
    distance: str = "mse"
    groups: tuple[str, ...] | None = None
    name: ClassVar[str] = "hidden_states"
    needs: ClassVar[Needs] = Needs(hidden_states=True)
    citation: ClassVar[str] = (
        "@inproceedings{romero2015fitnets, title={FitNets: Hints for Thin Deep Nets}, author="
        "{Romero, Adriana and Ballas, Nicolas and Kahou, Samira Ebrahimi and Chassang, Antoine and "
        "Gatta, Carlo and Bengio, Yoshua}, booktitle={ICLR}, year={2015}, eprint={1412.6550}}"
    )

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise ValueError(f"Expected a distance of {sorted(DISTANCES)}, got {self.distance!r}.")
        if not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(tuple(pair) for pair in self.layers))
        if self.groups is not None:
            object.__setattr__(self, "groups", tuple(self.groups))

    def pairs(
        self, student: Signal, teacher: Signal
    ) -> dict[str, list[tuple[str, Tensor, Tensor]]]:
        """For each group the aligned layers: key, student's states, teacher's states."""
        groups = tuple(student.hidden_states) if self.groups is None else self.groups
        found = {}
        for group in groups:
            if group not in student.hidden_states or group not in teacher.hidden_states:
                raise ValueError(
                    f"Expected hidden-state groups of {sorted(student.hidden_states)} (student) "
                    f"and {sorted(teacher.hidden_states)} (teacher), got {group!r}."
                )
            ours, theirs = student.hidden_states[group], teacher.hidden_states[group]
            mapping = layer_map(self.layers, len(ours) - 1, len(theirs) - 1)
            found[group] = [(f"{group}_{s}_{t}", ours[s], theirs[t]) for s, t in mapping]
        return found

    def build(self, student: Signal, teacher: Signal) -> nn.Module | None:
        projections = {}
        for aligned in self.pairs(student, teacher).values():
            for key, ours, theirs in aligned:
                if ours.shape[:-1] != theirs.shape[:-1]:
                    raise ValueError(
                        f"Expected as many positions in the student's hidden states as in the "
                        f"teacher's, got {tuple(ours.shape)} and {tuple(theirs.shape)} at {key}. "
                        "Choose layers of one resolution (explicit pairs)."
                    )
                if ours.shape[-1] != theirs.shape[-1]:
                    projections[key] = nn.Linear(ours.shape[-1], theirs.shape[-1], dtype=ours.dtype)
        return nn.ModuleDict(projections) if projections else None

    def terms(
        self, student: Signal, teacher: Signal | None, items: Items, context: Context
    ) -> list[Term]:
        if teacher is None:
            raise ValueError("Expected hidden states of a teacher, got no teacher.")
        projections = built_modules(context)
        aligned = self.pairs(student, teacher)
        terms = []
        for group, pairs in aligned.items():
            values = []
            for key, ours, theirs in pairs:
                if key in projections:  # bf16_full_eval casts the student, not the projections
                    weight = next(projections[key].parameters())
                    ours = projections[key](ours.to(weight.dtype))
                values.append(DISTANCES[self.distance](ours, theirs))
            value = torch.stack(values).mean(0)
            name = self.name if len(aligned) == 1 else f"{self.name}_{group}"
            if group in items.masks:
                terms.append(Term(name, value, group, items.masks[group]))
            else:
                value = value.flatten(1).mean(1) if value.dim() > 1 else value
                terms.append(Term(name, value, "samples", items.masks["samples"]))
        return terms


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": hidden_mse,
    "cosine": hidden_cosine,
}


# ---- weights ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class WeightDecay(Objective):
    """An explicit L2 term: ``strength * sum(||w - w0||^2)``, counted once per optimizer step.

    It acts through the gradient, so an adaptive optimizer rescales it; the optimizer's own
    ``weight_decay`` (AdamW) is decoupled from the loss. Use one of the two. Biases and norms are
    left out, by the same names as in `transformers.Trainer`.

    Args:
        strength: The factor gamma.
        target: ``zero``, or ``init`` for the distance to the weights before training (L2-SP,
            Li et al. 2018, arXiv 1802.01483).
    """

    strength: float = 1.0
    target: str = "zero"
    name: ClassVar[str] = "weight_decay"
    citation: ClassVar[str] = (
        "@inproceedings{li2018explicit, title={Explicit Inductive Bias for Transfer Learning with "
        "Convolutional Networks}, author={Li, Xuhong and Grandvalet, Yves and Davoine, Franck}, "
        "booktitle={ICML}, year={2018}, eprint={1802.01483}}"
    )

    def __post_init__(self) -> None:
        check_weight(self.strength)
        if self.target not in ("zero", "init"):
            raise ValueError(f"Expected a target of 'zero' or 'init', got {self.target!r}.")

    @property
    def needs_initial(self) -> bool:  # type: ignore[override]
        return self.target == "init"

    def terms(
        self, student: Signal, teacher: Signal | None, items: Items, context: Context
    ) -> list[Term]:
        squares = [
            (p - context.initial[name] if self.needs_initial else p).square().sum()
            for name, p in context.parameters.items()
        ]
        if not squares:
            raise ValueError("WeightDecay found no trainable weights (biases and norms are out).")
        return [Term(self.name, self.strength * torch.stack(squares).sum(), "batches")]


# ---- by name ---------------------------------------------------------------------------------

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective
    for objective in (
        HardLabels,
        ForwardKL,
        ReverseKL,
        JensenShannon,
        LogitMSE,
        HiddenStates,
        WeightDecay,
    )
}
"""Name in a recipe -> class."""


def objective_from(rows: Sequence[Mapping[str, Any]]) -> Sum:
    """Build an objective from a recipe's rows: ``[{name: forward_kl, weight: 0.7, …}, …]``.

    Raises:
        ValueError: an unknown name or setting (the known ones are listed), or a bad value.
    """
    if not rows:
        raise ValueError(f"Expected at least one objective of {sorted(OBJECTIVES)}, got none.")
    parts = []
    for row in rows:
        settings = dict(row)
        name, weight = settings.pop("name", None), settings.pop("weight", 1.0)
        if name not in OBJECTIVES:
            raise ValueError(f"Expected an objective of {sorted(OBJECTIVES)}, got {name!r}.")
        fields = {f.name: f for f in dataclasses.fields(OBJECTIVES[name])}
        unknown = set(settings) - set(fields)
        if unknown:
            raise ValueError(
                f"Unknown setting(s) {sorted(unknown)} of objective {name!r}; "
                f"known are {sorted(fields)} and weight."
            )
        for key, value in settings.items():  # YAML reads 1e-4 as a string
            if isinstance(value, str) and fields[key].type in ("float", "float | None"):
                settings[key] = float(value)
        parts.append((weight_from(weight), OBJECTIVES[name](**settings)))
    return Sum(tuple(parts))
