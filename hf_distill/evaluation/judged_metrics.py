"""Judged metrics and default attacks of robustness reports; help texts import nothing else."""

AXES = {
    "clean": "Clean accuracy",
    "noise": "Accuracy under perturbation (mean)",
    "attacked": "Accuracy under attack (worst of all)",
    "shifted": "Accuracy on shifted sets",
    "worst_group": "Worst-group accuracy",
    "nll": "NLL",
}
ATTACKS: dict[str, tuple[str, ...]] = {
    "text": ("pgd", "characters"),
    "image": ("pgd", "square", "noise"),
    "audio": ("pgd", "noise"),
    "tabular": (),
}
