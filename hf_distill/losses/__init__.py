"""Loss mathematics: pure functions of (student, teacher) tensors, one value per item.

By what they compare: `distribution` (the outputs as distributions), `decision` (what they decide),
`features` (hidden states, maps, embeddings), `attention`, `relations` (between the examples of a
batch) and `gradients` (with respect to the input).
"""

from hf_distill.losses import attention, decision, distribution, features, gradients, relations
from hf_distill.losses.attention import *  # noqa: F403
from hf_distill.losses.decision import *  # noqa: F403
from hf_distill.losses.distribution import *  # noqa: F403
from hf_distill.losses.features import *  # noqa: F403
from hf_distill.losses.gradients import *  # noqa: F403
from hf_distill.losses.relations import *  # noqa: F403

__all__ = [
    *attention.__all__,
    *decision.__all__,
    *distribution.__all__,
    *features.__all__,
    *gradients.__all__,
    *relations.__all__,
]
