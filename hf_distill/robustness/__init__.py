"""Robustness reports: perturbations, attacks, calibration, groups and a verdict per metric.

    models = {"teacher": …, "baseline": {0: …, 1: …}, "student": {0: …, 1: …}}
    report = evaluate_robustness(models, test)
    report.write("runs/robustness")

Same examples, perturbations and seeds for every model. `Predictor` applies a model to raw texts,
images, sounds or rows of numbers; `RobustnessConfig` sets the measurements.
"""

from hf_distill.evaluation.examples import Examples
from hf_distill.evaluation.predictor import Predictor
from hf_distill.evaluation.verdicts import Verdict, judge
from hf_distill.robustness.perturbations import CORE, PERTURBATIONS, perturb, perturbation
from hf_distill.robustness.plan import RobustnessConfig
from hf_distill.robustness.report import Report, RequirementError, evaluate_robustness

__all__ = [
    "CORE",
    "PERTURBATIONS",
    "Examples",
    "Predictor",
    "Report",
    "RequirementError",
    "RobustnessConfig",
    "Verdict",
    "evaluate_robustness",
    "judge",
    "perturb",
    "perturbation",
]
