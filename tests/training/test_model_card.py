"""Facts of a run on its student's card."""

from __future__ import annotations

from pathlib import Path

from tiny_trainers import trainer

from hf_distill import ForwardKL, HardLabels, ReverseKL


def test_divergences_are_results_and_components_are_not(tmp_path: Path) -> None:
    """A metric whose name begins like a loss term (``forward_kl``) is lost from the card."""
    ours = trainer(tmp_path, objective=HardLabels() + ForwardKL() + ReverseKL())
    student = {"accuracy": 0.75, "forward_kl_divergence": 0.25, "reverse_kl_divergence": 0.5}
    others = {"forward_kl": 3.0, "hard_labels": 4.0, "loss": 7.0, "retention_accuracy": 0.9}
    logged = {**student, **others, "teacher_accuracy": 0.8, "runtime": 1.0}
    ours.state.log_history.append({f"eval_{name}": value for name, value in logged.items()})
    assert ours.student_card().results == {"student": student, "teacher": {"accuracy": 0.8}}
