"""`evaluate` module: how far a classifier's confidence is from its accuracy."""

import datasets
import evaluate
import torch

from hf_distill.evaluation.metrics import functional

_DESCRIPTION = (
    "Expected calibration error (ECE): the items are sorted into bins of equal width by the "
    "confidence of the prediction, and the distances between accuracy and mean confidence of the "
    "bins are averaged, weighted by the number of items."
)

_INPUTS = """
Args:
    predictions: logits, (N, C).
    references: class ids, (N). Items labelled -100 are left out.
    bins (int): number of bins of equal width. Default 15.

Returns:
    calibration_error: in [0, 1], 0 is best; 0 when no item is left. Its expectation is above 0
        for a perfectly calibrated model too, the more so the fewer items.

Raises:
    ValueError: bins below 1.
"""

_CITATION = """@inproceedings{guo2017calibration,
  title={On Calibration of Modern Neural Networks},
  author={Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
  booktitle={International Conference on Machine Learning},
  year={2017},
  url={https://arxiv.org/abs/1706.04599}
}"""


class CalibrationError(evaluate.Metric):
    """ECE; see `hf_distill.evaluation.metrics.functional.calibration_sums`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                predictions=datasets.List(datasets.Value("float64")),
                references=datasets.Value("int64"),
            ),
        )

    def _compute(
        self, predictions: list[list[float]], references: list[int], bins: int = 15
    ) -> dict[str, float]:
        logits = torch.tensor(predictions, dtype=torch.float64)
        labels = torch.tensor(references)
        sums = functional.calibration_sums(logits, labels, labels != -100, bins)
        return {"calibration_error": functional.calibration_error(sums).item()}
