"""`evaluate` module: the share of the teacher's result that the student keeps."""

import math

import datasets
import evaluate

_DESCRIPTION = (
    "The share of the teacher's result that the student keeps: student / teacher, averaged over "
    "the results (accuracies on several tasks, say). For results of which more is better."
)

_INPUTS = """
Args:
    predictions: the student's results, (N): one number for each task or data set.
    references: the teacher's results, (N), on the same tasks in the same order.

Returns:
    retention: the mean of student / teacher; 1 says as good as the teacher.

Raises:
    ValueError: a result of the teacher is not a positive finite number.
"""

_CITATION = """@article{sanh2019distilbert,
  title={DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter},
  author={Sanh, Victor and Debut, Lysandre and Chaumond, Julien and Wolf, Thomas},
  journal={arXiv preprint arXiv:1910.01108},
  year={2019},
  url={https://arxiv.org/abs/1910.01108}
}"""


class Retention(evaluate.Metric):
    """Mean of student / teacher; see `hf_distill.evaluation.metrics.retention`."""

    def _info(self) -> evaluate.MetricInfo:
        result = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(predictions=result, references=result),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        if not references or not all(0 < value < math.inf for value in references):
            raise ValueError(
                "retention divides by the teacher's results, so each must be a positive finite "
                f"number, got {list(references)}. Leave the others out."
            )
        shares = [ours / theirs for ours, theirs in zip(predictions, references, strict=True)]
        return {"retention": sum(shares) / len(shares)}
