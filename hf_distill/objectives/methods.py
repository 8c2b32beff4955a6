"""Published methods as sums of objectives; a recipe names them like one objective.

Values are means over items of sums over classes, whatever a method's code divides by: ARD's and
RSLAD's code takes the mean over the classes too, so that their weights and learning rates are not
ours (RSLAD's 10 classes make a factor of 10). For all of them a teacher that is not robust itself
has little to teach; compare with `adversarial_training` and `trades`, which have none.

Defensive distillation (Papernot et al. 2016, arXiv 1511.04508), ``ForwardKL(100.0)``, is not among
them: saturated logits hide the gradient of the cross-entropy, and an attack on the margin succeeds
as on any student (Carlini and Wagner 2016, arXiv 1607.04311).
"""

from __future__ import annotations

from hf_distill.objectives.adversaries import PGD, VirtualAdversary
from hf_distill.objectives.base.objective import Objective, WeightedSum
from hf_distill.objectives.distributions import ForwardKL
from hf_distill.objectives.input_perturbations import SecondDropout
from hf_distill.objectives.labels import HardLabels
from hf_distill.objectives.nested import one_objective
from hf_distill.objectives.perturbed import OnPerturbed, Smoothness


def adversarial_training(
    epsilon: float, steps: int = 10, step_size: float | None = None, norm: str = "linf"
) -> WeightedSum:
    """CE(S(x'), y) with x' that maximises it (Madry et al. 2018, arXiv 1706.06083). No teacher.

    All settings are those of `PGD`.
    """
    return 1.0 * OnPerturbed(HardLabels(), PGD(epsilon, steps, step_size, norm))


def trades(
    epsilon: float,
    beta: float = 6.0,
    steps: int = 10,
    step_size: float | None = None,
    norm: str = "linf",
) -> WeightedSum:
    """CE(S(x), y) + beta KL(S(x) || S(x')), x' maximising the second (Zhang et al. 2019,
    arXiv 1901.08573). No teacher.

    ``beta`` is the weight of smoothness; the other settings are those of `PGD`.
    """
    by = PGD(epsilon, steps, step_size, norm, "gaussian", "itself")
    return HardLabels() + beta * Smoothness(by)


def ard(
    epsilon: float,
    alpha: float = 1.0,
    temperature: float = 30.0,
    steps: int = 10,
    step_size: float | None = None,
    norm: str = "linf",
) -> WeightedSum:
    """Adversarially robust distillation (Goldblum et al. 2020, arXiv 1905.09747).

    alpha T² KL(T(x) || S(x')) + (1 - alpha) CE(S(x), y), x' maximising CE(S(x'), y). The teacher
    sees only the clean input, so that its outputs may be cached. ``temperature`` is T; the other
    settings are those of `PGD`.
    """
    by = PGD(epsilon, steps, step_size, norm)
    return _mixed(alpha, OnPerturbed(ForwardKL(temperature), by), HardLabels())


def rslad(
    epsilon: float,
    alpha: float = 5 / 6,
    steps: int = 10,
    step_size: float | None = None,
    norm: str = "linf",
) -> WeightedSum:
    """Robust soft label adversarial distillation (Zi et al. 2021, arXiv 2108.07969).

    alpha KL(T(x) || S(x')) + (1 - alpha) KL(T(x) || S(x)), x' maximising the first. No labels; the
    teacher sees only the clean input, so that its outputs may be cached. The settings besides alpha
    are those of `PGD`.
    """
    by = PGD(epsilon, steps, step_size, norm, "gaussian", "teacher")
    return _mixed(alpha, OnPerturbed(ForwardKL(), by), ForwardKL())


def adaad(
    epsilon: float,
    alpha: float = 1.0,
    steps: int = 10,
    step_size: float | None = None,
    norm: str = "linf",
) -> WeightedSum:
    """Adaptive adversarial distillation (Huang et al. 2023, arXiv 2306.16170).

    alpha KL(T(x') || S(x')) + (1 - alpha) KL(T(x) || S(x)), x' maximising the first, by the input
    of both models. Needs the teacher itself, and for text none works: embeddings differ. The
    settings besides alpha are those of `PGD`.
    """
    by = PGD(epsilon, steps, step_size, norm, "gaussian", "adaptive")
    return _mixed(alpha, OnPerturbed(ForwardKL(), by, teacher="perturbed"), ForwardKL())


def r_drop(alpha: float = 1.0, objective: Objective | None = None) -> WeightedSum:
    """Agreement of two passes with different dropout masks (Liang et al. 2021, arXiv 2106.14448).

    (L(S1) + L(S2)) / 2 + alpha (KL(S1 || S2) + KL(S2 || S1)) / 2, where L is the ``objective``: the
    loss of the labels (None) or, with ``ForwardKL()``, the divergence from the teacher. alpha is 5
    in the paper for translation, .3 for images.
    """
    part = HardLabels() if objective is None else one_objective(objective, "r_drop")
    halves = 0.5 * part + 0.5 * OnPerturbed(part, SecondDropout())
    return halves + alpha * Smoothness(SecondDropout(), symmetric=True)


def vat(epsilon: float, alpha: float = 1.0, steps: int = 1) -> WeightedSum:
    """CE(S(x), y) + alpha KL(S(x) || S(x')) with the virtual adversary x' and S(x) fixed (Miyato et
    al. 2018, arXiv 1704.03976). No teacher; examples without a label count in the second part.

    ``epsilon`` and the power iterations ``steps`` are those of `VirtualAdversary`.
    """
    return HardLabels() + alpha * Smoothness(VirtualAdversary(epsilon, steps=steps), detach=True)


def smart(
    epsilon: float, weight: float = 1.0, steps: int = 1, step_size: float | None = None
) -> WeightedSum:
    """CE(S(x), y) + weight (KL(S(x) || S(x')) + KL(S(x') || S(x))), x' within epsilon of x (Jiang
    et al. 2020, arXiv 1911.03437): the smoothness of SMART, without its proximal point steps.

    The divergence is the textbook one, x' stays in the ball and padding is not changed: in the
    authors' code neither holds. The ascent starts near x, at random; its settings are
    those of `PGD`.
    """
    by = PGD(epsilon, steps, step_size, "linf", "gaussian", "itself")
    return HardLabels() + 2 * weight * Smoothness(by, symmetric=True)


def _mixed(alpha: float, perturbed: Objective, plain: Objective) -> WeightedSum:
    """Mix two objectives by alpha; one with weight 0 is left out."""
    if not 0 < alpha <= 1:
        raise ValueError(f"Expected alpha in (0, 1], got {alpha}.")
    return alpha * perturbed + (1 - alpha) * plain if alpha < 1 else 1.0 * perturbed
