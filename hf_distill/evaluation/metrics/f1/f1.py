"""`evaluate` module: macro-averaged F1, for where the Hub's module cannot be reached."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = (
    "F1, the harmonic mean of precision and recall, of each class, averaged over the classes that "
    "occur among predictions or references, each with the same weight (macro average)."
)

_INPUTS = """
Args:
    predictions: class ids, (N).
    references: the true class ids, (N). Items labelled -100 are left out.

Returns:
    f1: in [0, 1]. A class that is never predicted correctly contributes 0.

Raises:
    ValueError: no labelled item.
"""

_CITATION = """@book{vanrijsbergen1979information,
  title={Information Retrieval},
  author={van Rijsbergen, C. J.},
  edition={2nd},
  publisher={Butterworths},
  year={1979}
}"""


class F1(evaluate.Metric):
    """1/C sum_c 2 TP_c / (2 TP_c + FP_c + FN_c)."""

    def _info(self) -> evaluate.MetricInfo:
        classes = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(predictions=classes, references=classes),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        predicted, true = np.array(predictions), np.array(references)
        labelled = true != -100
        if not labelled.any():
            raise ValueError(
                f"f1 needs at least one labelled item, got {len(true)} items, all of them "
                "labelled -100 (or none at all). Evaluate on labelled data."
            )
        predicted, true = predicted[labelled], true[labelled]
        scores = []
        for c in np.union1d(predicted, true):
            hits = np.sum((predicted == c) & (true == c))
            # 2 TP + FP + FN, never 0 for a class that occurs
            occurrences = np.sum(predicted == c) + np.sum(true == c)
            scores.append(2 * hits / occurrences)
        return {"f1": float(np.mean(scores))}
