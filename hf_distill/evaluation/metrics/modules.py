"""The metrics of `load_metric`, as modules of `evaluate`; each is named after its class."""

import inspect
import math
from typing import ClassVar

import datasets
import evaluate
import numpy as np
import torch

from hf_distill.evaluation.metrics import functional
from hf_distill.losses import forward_kl, reverse_kl

NUMBER, CLASS = datasets.Value("float64"), datasets.Value("int64")
LOGITS = datasets.List(NUMBER)


def _of(kind: datasets.Value | datasets.List, other: object = None) -> datasets.Features:
    return datasets.Features(predictions=kind, references=other or kind)


class _Module(evaluate.Metric):
    """A metric with its docstring as description, BibTeX, and the form(s) of its inputs."""

    bibtex: ClassVar[str]
    forms: ClassVar[datasets.Features | list[datasets.Features]]

    def _info(self) -> evaluate.MetricInfo:
        about, _, inputs = inspect.cleandoc(str(self.__doc__)).partition("\n\n")
        return evaluate.MetricInfo(
            " ".join(about.split()), self.bibtex, self.forms, inputs_description=f"\n{inputs}\n"
        )


class Agreement(_Module):
    """The share of items for which student and teacher choose the same class.

    Inputs:
        predictions: the student's logits, (N, C), or its class ids, (N).
        references: the teacher's, in the same form, for the same items.

    Outputs:
        agreement: the mean over the items, in [0, 1].

    Raises:
        ValueError: the shapes differ.
    """

    bibtex = """@inproceedings{stanton2021does,
  title={Does Knowledge Distillation Really Work?},
  author={Stanton, Samuel and Izmailov, Pavel and Kirichenko, Polina and Alemi, Alexander A. and
          Wilson, Andrew Gordon},
  booktitle={Advances in Neural Information Processing Systems},
  year={2021},
  url={https://arxiv.org/abs/2106.05945}
}"""
    forms: ClassVar[list[datasets.Features]] = [_of(LOGITS), _of(CLASS)]

    def _compute(
        self, predictions: list[list[float]] | list[int], references: list[list[float]] | list[int]
    ) -> dict[str, float]:
        # Through numpy, which keeps float64: rounding logits would make ties.
        student, teacher = (torch.from_numpy(np.array(x)) for x in (predictions, references))
        if student.is_floating_point():
            return {"agreement": functional.agreement(student, teacher).mean().item()}
        return {"agreement": (student == teacher).float().mean().item()}


class CalibrationError(_Module):
    """Expected calibration error (ECE): the items are sorted into bins of equal width by the
    confidence of the prediction, and the distances between accuracy and mean confidence of the bins
    are averaged, weighted by the number of items.

    Inputs:
        predictions: logits, (N, C).
        references: class ids, (N). Items labelled -100 are left out.
        bins (int): number of bins of equal width. Default 15.

    Outputs:
        calibration_error: in [0, 1], 0 is best; 0 when no item is left. Its expectation is above 0
            for a perfectly calibrated model too, the more so the fewer items.

    Raises:
        ValueError: bins below 1.
    """

    bibtex = """@inproceedings{guo2017calibration,
  title={On Calibration of Modern Neural Networks},
  author={Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
  booktitle={International Conference on Machine Learning},
  year={2017},
  url={https://arxiv.org/abs/1706.04599}
}"""
    forms = _of(LOGITS, CLASS)

    def _compute(
        self, predictions: list[list[float]], references: list[int], bins: int = 15
    ) -> dict[str, float]:
        logits = torch.tensor(predictions, dtype=torch.float64)
        labels = torch.tensor(references)
        sums = functional.calibration_sums(logits, labels, labels != -100, bins)
        return {"calibration_error": functional.calibration_error(sums).item()}


class KLDivergence(_Module):
    """Kullback-Leibler divergence between the classes' probabilities under teacher (t) and student
    (s), in nats, averaged over the items: forward KL(p_t || p_s), which is large where the student
    misses what the teacher holds possible, and reverse KL(p_s || p_t), which is large where the
    student holds possible what the teacher does not.

    Inputs:
        predictions: the student's logits, (N, C), finite.
        references: the teacher's logits, (N, C), finite, for the same items.
        temperature (float): the probabilities are softmax(logits / temperature). Default 1. The
            value is the divergence itself, without the training loss's factor temperature**2.

    Outputs:
        forward_kl: >= 0, 0 is best.
        reverse_kl: >= 0, 0 is best.

    Raises:
        ValueError: the shapes differ, or temperature is not above 0.
    """

    bibtex = """@article{hinton2015distilling,
  title={Distilling the Knowledge in a Neural Network},
  author={Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  journal={arXiv preprint arXiv:1503.02531},
  year={2015},
  url={https://arxiv.org/abs/1503.02531}
}"""
    forms = _of(LOGITS)

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


class Retention(_Module):
    """The share of the teacher's result that the student keeps: student / teacher, averaged over
    the results (accuracies on several tasks, say). For results of which more is better.

    Inputs:
        predictions: the student's results, (N): one number for each task or data set.
        references: the teacher's results, (N), on the same tasks in the same order.

    Outputs:
        retention: the mean of student / teacher; 1: as good as the teacher.

    Raises:
        ValueError: a result of the teacher is not a positive finite number.
    """

    bibtex = """@article{sanh2019distilbert,
  title={DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter},
  author={Sanh, Victor and Debut, Lysandre and Chaumond, Julien and Wolf, Thomas},
  journal={arXiv preprint arXiv:1910.01108},
  year={2019},
  url={https://arxiv.org/abs/1910.01108}
}"""
    forms = _of(NUMBER)

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        if not references or not all(0 < value < math.inf for value in references):
            raise ValueError(
                "retention divides by the teacher's results, so each must be a positive finite "
                f"number, got {list(references)}. Leave the others out."
            )
        shares = [ours / theirs for ours, theirs in zip(predictions, references, strict=True)]
        return {"retention": sum(shares) / len(shares)}


MODULES = {
    "agreement": Agreement,
    "calibration_error": CalibrationError,
    "kl_divergence": KLDivergence,
    "retention": Retention,
}
