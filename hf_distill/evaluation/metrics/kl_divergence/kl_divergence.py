"""`evaluate` module: Kullback-Leibler divergence between teacher and student, both ways."""

import datasets
import evaluate
import torch

from hf_distill.losses import forward_kl, reverse_kl

_DESCRIPTION = (
    "Kullback-Leibler divergence between the classes' probabilities under teacher (t) and student "
    "(s), in nats, averaged over the items: forward KL(p_t || p_s), which is large where the "
    "student misses what the teacher holds possible, and reverse KL(p_s || p_t), which is large "
    "where the student holds possible what the teacher does not."
)

_INPUTS = """
Args:
    predictions: the student's logits, (N, C), finite.
    references: the teacher's logits, (N, C), finite, for the same items.
    temperature (float): the probabilities are softmax(logits / temperature). Default 1. The value
        is the divergence itself, without the factor temperature**2 that the training loss has.

Returns:
    forward_kl: >= 0, 0 is best.
    reverse_kl: >= 0, 0 is best.

Raises:
    ValueError: the shapes differ, or temperature is not above 0.
"""

_CITATION = """@article{hinton2015distilling,
  title={Distilling the Knowledge in a Neural Network},
  author={Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  journal={arXiv preprint arXiv:1503.02531},
  year={2015},
  url={https://arxiv.org/abs/1503.02531}
}"""


class KLDivergence(evaluate.Metric):
    """Forward and reverse KL; see `hf_distill.losses.distribution`."""

    def _info(self) -> evaluate.MetricInfo:
        logits = datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(predictions=logits, references=logits),
        )

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[list[float]],
        temperature: float = 1.0,
    ) -> dict[str, float]:
        student = torch.tensor(predictions, dtype=torch.float64)
        teacher = torch.tensor(references, dtype=torch.float64)
        forward = forward_kl(student, teacher, temperature).mean() / temperature**2
        reverse = reverse_kl(student, teacher, temperature).mean() / temperature**2
        return {"forward_kl": forward.item(), "reverse_kl": reverse.item()}
