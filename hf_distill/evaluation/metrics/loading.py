"""Loads the `evaluate` modules that lie next to this file, without the Hub."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import evaluate

# Each is the folder of a module for `evaluate`. None has an __init__.py: a subpackage `agreement`
# would take the place of the function of that name in this package when it is imported.
_MODULES = ("agreement", "calibration_error", "kl_divergence", "retention")


def load_metric(name: str) -> "evaluate.EvaluationModule":
    """Load a metric of this package as an `evaluate` module; nothing is downloaded.

    `evaluate` copies the module's source into its cache (``HF_HOME``, or ``HF_MODULES_CACHE``) and
    imports that copy. What is added stays in memory, so that processes that evaluate at the same
    time do not wait for each other's lock on one file.

    Args:
        name: ``agreement``, ``calibration_error``, ``kl_divergence`` or ``retention``.

    Raises:
        ValueError: there is no metric of that name here.
    """
    if name not in _MODULES:
        raise ValueError(
            f"hf_distill has no metric named {name!r}. Known: {', '.join(_MODULES)}. For metrics "
            "of the Hub use evaluate.load."
        )
    # Imported on use: the functions of this package do not need it.
    import evaluate

    script = Path(__file__).parent / name / f"{name}.py"
    return evaluate.load(str(script), keep_in_memory=True)
