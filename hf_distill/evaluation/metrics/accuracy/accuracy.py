"""`evaluate` module: accuracy, for where the Hub's module of that name cannot be reached."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = "The share of items of which the class was predicted correctly."

_INPUTS = """
Args:
    predictions: class ids, (N).
    references: the true class ids, (N). Items labelled -100 are left out.

Returns:
    accuracy: in [0, 1].

Raises:
    ValueError: no labelled item.
"""

_CITATION = """@article{scikit-learn,
  title={Scikit-learn: Machine Learning in {P}ython},
  author={Pedregosa, F. and Varoquaux, G. and Gramfort, A. and Michel, V. and Thirion, B. and
          Grisel, O. and Blondel, M. and Prettenhofer, P. and Weiss, R. and Dubourg, V. and
          Vanderplas, J. and Passos, A. and Cournapeau, D. and Brucher, M. and Perrot, M. and
          Duchesnay, E.},
  journal={Journal of Machine Learning Research},
  volume={12},
  pages={2825--2830},
  year={2011}
}"""


class Accuracy(evaluate.Metric):
    """#(prediction = reference) / #items."""

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
                f"accuracy needs at least one labelled item, got {len(true)} items, all of them "
                "labelled -100 (or none at all). Evaluate on labelled data."
            )
        return {"accuracy": float((predicted == true)[labelled].mean())}
