"""The balancing loss of a mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.models.task_model import TaskModel
from hf_distill.objectives.base.objective import Context, Objective, Term, WeightedSum, bibtex
from hf_distill.objectives.labels import ModelLoss


@dataclass(frozen=True)
class RouterBalance(Objective):
    """Load-balancing loss of a mixture of experts: ``E * sum_e f_e * P_e``.

    f_e is the share of the tokens that go to expert e, P_e the mean probability that its router
    gives it, over all layers and all real tokens of a micro-batch; E is the number of experts. Its
    minimum, the number of experts per token, is reached at uniform use. `transformers` computes it,
    and adds it to the label loss with the model's factor (``router_aux_loss_coef``). It is computed
    per micro-batch, so it depends on how the data is split into them.

    It is added for every student whose config has ``output_router_logits``, with that factor.
    """

    name: ClassVar[str] = "router_balance"
    compares_examples: ClassVar[bool] = True
    student_needs: ClassVar[Needs] = Needs(router_loss=True)
    citation: ClassVar[str] = bibtex("fedus2021switch")

    def terms(
        self, student: Signal, teacher: Signal | None, items: BatchItems, context: Context
    ) -> list[Term]:
        if student.router_loss is None:
            raise ValueError(
                "RouterBalance needs a student with routers, and this one gives no balancing loss. "
                "Drop it from the objective, or take a mixture of experts."
            )
        return [Term(self.name, student.router_loss, "batches")]


def with_router_balance(objective: WeightedSum, student: TaskModel) -> WeightedSum:
    """Add the balancing loss to an objective where `transformers` would add it to the label loss.

    That is the case if the student's config has ``output_router_logits`` and a factor. An objective
    that contains a `RouterBalance` or a `ModelLoss` is not changed.

    Raises:
        ValueError: the config has it, and the student returns no balancing loss (encoder-decoders
            only add it to their own loss).
    """
    given = any(isinstance(part, (RouterBalance, ModelLoss)) for _, part in objective.parts)
    config: Any = student.config.get_text_config()
    wanted = any(getattr(c, "output_router_logits", False) for c in (student.config, config))
    if given or not wanted or "output_router_logits" not in student.accepts:
        return objective
    if not student.provides.router_loss:
        raise ValueError(
            "Expected a student whose forward gives a balancing loss (aux_loss), as its config "
            f"says output_router_logits; {type(student.model).__name__} adds it to its own loss "
            "alone. Use that: ModelLoss() in place of HardLabels(); or train without it: "
            "student.config.output_router_logits = False."
        )
    default = getattr(config, "router_aux_loss_coef", None)  # most read it once, when built
    factor = float(getattr(student.model, "router_aux_loss_coef", default) or 0.0)
    return objective + factor * RouterBalance() if factor else objective
