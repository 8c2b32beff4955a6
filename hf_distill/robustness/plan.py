"""Settings of a report: perturbations, attacks, sizes and seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_distill.evaluation.judged_metrics import ATTACKS
from hf_distill.robustness.invariance import TESTS
from hf_distill.robustness.perturbations import CORE, SEVERITIES, perturbation
from hf_distill.utils.suggest import suggestion

KNOWN: dict[str, tuple[str, ...]] = {
    "text": ("fgsm", "pgd", "noise", "characters", "words"),
    "image": ("fgsm", "pgd", "square", "noise", "autoattack"),
    "audio": ("fgsm", "pgd", "noise"),
    "tabular": (),
}
TEXT_SEARCH = ("characters", "words")
"""Attacks that change the text itself, not its embeddings."""
BUDGETS: dict[str, tuple[float, str]] = {
    "text": (0.05, "l2"),
    "image": (8 / 255, "linf"),
    "audio": (0.01, "linf"),
}
"""Radius and norm by default: parts of each token's embedding length; grey levels from 0 to 1;
units of the samples that the model gets."""
INVARIANCE = ("names in front", "places in front")


@dataclass(frozen=True)
class RobustnessConfig:
    """Settings of a robustness report.

    Args:
        perturbations: Names of perturbations; default: the core set of the modality.
        severities: Severities from 1 to 5; mCE needs all five.
        seen: Perturbations used in training: reported, but not included in means.
        attacks: Names of attacks; default: those of the modality; empty: none.
        epsilon: Radius of the attacks; default: 8/255 for images, 0.05 of a token's embedding
            length, 0.01 for sounds.
        norm: ``linf`` or ``l2``; default: linf, for embeddings l2.
        steps: Steps of PGD.
        restarts: Restarts of PGD.
        queries: Queries per example of Square and of the text attacks.
        perturbed_examples: Number of perturbed examples.
        attacked_examples: Number of attacked examples.
        gate_examples: Examples for the check for masked gradients; 0: no check.
        groups: Column with the group of each example, for worst-group accuracy.
        invariance: Names of invariance tests for text; default: names and places; empty: none.
        robust_objective: True if a robust objective was used; a missing control is then noted.
        level: Significance level over all metrics.
        batch_size: Examples per batch; does not change results.
        seed: Seed of examples, perturbations and attacks.

    Raises:
        ValueError: a number out of range.
    """

    perturbations: tuple[str, ...] | None = None
    severities: tuple[int, ...] = SEVERITIES
    seen: tuple[str, ...] = ()
    attacks: tuple[str, ...] | None = None
    epsilon: float | None = None
    norm: Literal["linf", "l2"] | None = None
    steps: int = 20
    restarts: int = 1
    queries: int = 200
    perturbed_examples: int = 300
    attacked_examples: int = 200
    gate_examples: int = 32
    groups: str | None = None
    invariance: tuple[str, ...] | None = None
    robust_objective: bool = False
    level: float = 0.05
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        ones = ("steps", "restarts", "perturbed_examples", "attacked_examples", "batch_size")
        for name in (*ones, "queries", "gate_examples"):
            if (value := getattr(self, name)) < (least := int(name in ones)):
                raise ValueError(f"Expected `{name}` of at least {least}, got {value}.")
        if not self.severities or set(self.severities) - set(SEVERITIES):
            raise ValueError(
                f"Expected `severities` out of {list(SEVERITIES)}, got {list(self.severities)}."
            )
        if not 0 < self.level < 1:
            raise ValueError(f"Expected a `level` such as 0.05, got {self.level}.")
        if self.epsilon is not None and not self.epsilon >= 0:
            raise ValueError(f"Expected `epsilon` of at least 0, got {self.epsilon}.")

    def perturbations_for(self, modality: str) -> tuple[str, ...]:
        """Checked names; a ValueError for an unknown one, or one of another modality."""
        wanted = CORE[modality] if self.perturbations is None else self.perturbations
        for name in (*wanted, *self.seen):
            perturbation(name, modality)
        return wanted

    def attacks_for(self, modality: str) -> tuple[str, ...]:
        """Checked names; a ValueError for an unknown one, or one of another modality."""
        wanted = ATTACKS[modality] if self.attacks is None else self.attacks
        for name in wanted:
            foolbox = modality == "image" and name.startswith("foolbox-")
            if name not in KNOWN[modality] and not foolbox:
                raise ValueError(_no_attack(name, modality))
        return wanted

    def invariance_for(self, modality: str) -> tuple[str, ...]:
        """Checked names of the tests; a ValueError for an unknown one, or for no text."""
        if modality == "text":
            for name in self.invariance or ():
                if name not in TESTS:
                    raise ValueError(
                        f"Expected the name of an invariance test, got {name!r}. "
                        f"{suggestion(name, TESTS)}"
                    )
            return INVARIANCE if self.invariance is None else self.invariance
        if self.invariance:
            raise ValueError(
                f"Expected invariance tests for text only, got {list(self.invariance)} for "
                f"{modality}."
            )
        return ()

    def budget(self, modality: str) -> tuple[float, str]:
        """Radius and norm of the attacks."""
        epsilon, norm = BUDGETS[modality]
        return (epsilon if self.epsilon is None else self.epsilon, self.norm or norm)


def _no_attack(name: str, modality: str) -> str:
    for other, names in KNOWN.items():
        if name in names:
            return (
                f"Expected attacks for {modality}, got {name!r}, which is for {other}. For "
                f"{modality} there are: {', '.join(KNOWN[modality]) or 'none'}."
            )
    return f"Expected the name of an attack, got {name!r}. {suggestion(name, KNOWN[modality])}"
