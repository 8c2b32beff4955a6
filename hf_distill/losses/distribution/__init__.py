"""Distances between the output distributions of student and teacher.

Each function takes logits ``(student, teacher)`` of one shape ``(..., C)`` and returns ``(...)``:
one value per item, summed over the C classes. Nothing is masked or averaged here (but for
:func:`dist`, whose items mix), and nothing is detached unless stated: pass a frozen teacher's
logits without gradient.

Values are in nats. They are computed in log space, in float32 at least (float16 and bfloat16 are
upcast, float64 stays), so saturated logits give finite values and gradients, and a class that each
side masks with the ``torch.finfo(dtype).min`` of its own dtype contributes exactly 0 (but for
:func:`logit_standardized_kl` and :func:`dist`, which take means over the classes: cut it off).

The temperature is one number, or a tensor of one per item; above 1 it softens both distributions.
The values carry Hinton's T², which keeps the size of their gradient about the same for every
temperature; sources that leave it out (TRL, TextBrewer, DSKD) give our value / T², which is
``t_squared=False``.
"""

from hf_distill.losses.distribution.correlation import dist
from hf_distill.losses.distribution.families import adaptive_kl, alpha_beta, renyi, total_variation
from hf_distill.losses.distribution.kl import forward_kl, reverse_kl
from hf_distill.losses.distribution.labelled import decoupled_kd, nkd
from hf_distill.losses.distribution.logits import (
    binary_kl,
    logit_mse,
    logit_standardized_kl,
    soft_cross_entropy,
)
from hf_distill.losses.distribution.mixtures import (
    jeffreys,
    jensen_shannon,
    mutual,
    skew_kl,
    skew_reverse_kl,
)
from hf_distill.losses.distribution.sparse import top_k_kl

__all__ = ["forward_kl", "jeffreys", "mutual", "reverse_kl", "soft_cross_entropy"]
__all__ += ["adaptive_kl", "alpha_beta", "jensen_shannon", "renyi", "skew_kl", "skew_reverse_kl"]
__all__ += ["binary_kl", "decoupled_kd", "dist", "nkd", "top_k_kl", "total_variation"]
__all__ += ["logit_mse", "logit_standardized_kl"]
