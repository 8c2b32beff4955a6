"""Robustness as evidence: perturbations, attacks, calibration, groups, and a verdict per axis.

    models = {"teacher": …, "alone": {0: …, 1: …}, "student": {0: …, 1: …}}
    report = evaluate_robustness(models, test)
    report.write("runs/robustness")

Same examples, perturbations and seeds for every model; `Subject` is a model asked about raw texts,
pictures, sounds or rows of numbers, `Plan` says what is measured.
"""

from hf_distill.robustness.examples import Examples
from hf_distill.robustness.perturbations import CORE, PERTURBATIONS, perturb, perturbation
from hf_distill.robustness.plan import Plan
from hf_distill.robustness.report import Report, RequirementError, evaluate_robustness
from hf_distill.robustness.subject import Subject
from hf_distill.robustness.verdicts import Verdict, judge

__all__ = [
    "CORE",
    "PERTURBATIONS",
    "Examples",
    "Plan",
    "Report",
    "RequirementError",
    "Subject",
    "Verdict",
    "evaluate_robustness",
    "judge",
    "perturb",
    "perturbation",
]
