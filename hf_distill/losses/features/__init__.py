"""Distances between features of student and teacher: hidden states, maps, embeddings.

The functions take features ``(student, teacher)`` as they come from the models (or from a
projection to the teacher's width) and return one value per item: states (..., H) give ``(...)``,
maps (B, C, *positions) give ``(B,)``, token Gram matrices ``(B, T)``, and what compares the
examples of a batch gives one per anchor example, ``(B,)``. Nothing is reduced over items, and
nothing is detached. Values are computed in float32 at least (float16 and bfloat16 are upcast,
float64 stays), also under autocast.
"""

from hf_distill.losses.features.examples import cka, correlation_congruence, info_nce, pkt
from hf_distill.losses.features.maps import (
    activation_boundary,
    attention_transfer,
    hint_mse,
    nst,
    review_hcl,
    vid,
)
from hf_distill.losses.features.states import cosine, hidden_mse, pkd
from hf_distill.losses.features.tokens import fsp, mmd

__all__ = ["cka", "correlation_congruence", "info_nce", "pkt"]
__all__ += ["activation_boundary", "attention_transfer", "hint_mse", "nst", "review_hcl", "vid"]
__all__ += ["cosine", "fsp", "hidden_mse", "mmd", "pkd"]
