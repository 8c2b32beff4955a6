"""Metrics of a distillation: as functions on tensors, and as `evaluate` modules (`load_metric`)."""

from typing import TYPE_CHECKING

from hf_distill.evaluation.metrics.functional import (
    acceptance,
    agreement,
    calibration_error,
    calibration_sums,
    decision_agreement,
    retention,
)

if TYPE_CHECKING:
    import evaluate

__all__ = [
    "acceptance",
    "agreement",
    "calibration_error",
    "calibration_sums",
    "decision_agreement",
    "load_metric",
    "retention",
]


def load_metric(name: str) -> "evaluate.EvaluationModule":
    """A metric of this package as an `evaluate` module; nothing is downloaded.

    What is added stays in memory: no process waits for another one's lock on a file.

    Args:
        name: ``agreement``, ``calibration_error``, ``kl_divergence`` or ``retention``.

    Raises:
        ValueError: there is no metric of that name here.
    """
    from hf_distill.evaluation.metrics.modules import MODULES  # imports evaluate, so on use

    if name not in MODULES:
        raise ValueError(
            f"hf_distill has no metric named {name!r}. Known: {', '.join(MODULES)}. For metrics "
            "of the Hub use evaluate.load."
        )
    return MODULES[name](keep_in_memory=True)
