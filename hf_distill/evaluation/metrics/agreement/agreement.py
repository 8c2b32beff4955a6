"""`evaluate` module: how often a student chooses the same class as its teacher."""

import datasets
import evaluate
import numpy as np
import torch

from hf_distill.evaluation.metrics import functional

_DESCRIPTION = "The share of items for which student and teacher choose the same class."

_INPUTS = """
Args:
    predictions: the student's logits, (N, C), or its class ids, (N).
    references: the teacher's, in the same form, for the same items.

Returns:
    agreement: the mean over the items, in [0, 1].

Raises:
    ValueError: the shapes differ.
"""

_CITATION = """@inproceedings{stanton2021does,
  title={Does Knowledge Distillation Really Work?},
  author={Stanton, Samuel and Izmailov, Pavel and Kirichenko, Polina and Alemi, Alexander A. and
          Wilson, Andrew Gordon},
  booktitle={Advances in Neural Information Processing Systems},
  year={2021},
  url={https://arxiv.org/abs/2106.05945}
}"""


class Agreement(evaluate.Metric):
    """Top-1 agreement; see `hf_distill.evaluation.metrics.functional.agreement`."""

    def _info(self) -> evaluate.MetricInfo:
        logits = datasets.List(datasets.Value("float64"))
        classes = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=[
                datasets.Features(predictions=logits, references=logits),
                datasets.Features(predictions=classes, references=classes),
            ],
        )

    def _compute(
        self,
        predictions: list[list[float]] | list[int],
        references: list[list[float]] | list[int],
    ) -> dict[str, float]:
        # Through numpy, which keeps float64: rounding logits would make ties.
        student, teacher = (torch.from_numpy(np.array(x)) for x in (predictions, references))
        if student.is_floating_point():
            same = functional.agreement(student, teacher)
        else:
            same = (student == teacher).float()
        return {"agreement": same.mean().item()}
