"""Loss mathematics: pure functions of (student, teacher) tensors, one value per item."""

from hf_distill.losses.distribution import forward_kl, jensen_shannon, logit_mse, reverse_kl
from hf_distill.losses.features import hidden_cosine, hidden_mse

__all__ = [
    "forward_kl",
    "hidden_cosine",
    "hidden_mse",
    "jensen_shannon",
    "logit_mse",
    "reverse_kl",
]
