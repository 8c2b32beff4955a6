"""Output layer of a language model, as factors of its logits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from hf_distill.losses.fused import LazyLogits
from hf_distill.models.redirect import calling, redirected_forward
from hf_distill.models.sharding import full_tensor, is_partitioned
from hf_distill.models.signals import Signal

LARGE = 60.0
"""Typical bound of a trained model's logits."""


class OutputEmbedding:
    """A model's output layer, and the model's processing of its output.

    Args:
        model: A transformers model whose classes are its vocabulary.
    """

    def __init__(self, model: nn.Module):
        owner: Any = model
        config = owner.config.get_text_config()
        self._model, self.layer = model, owner.get_output_embeddings()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.scale = float(getattr(config, "logit_scale", 1.0) or 1.0)
        self.scale *= float(getattr(config, "lm_head_multiplier", 1.0) or 1.0)
        self.scale /= float(getattr(config, "logits_scaling", 1.0) or 1.0)
        self._added: Tensor | None = getattr(owner, "final_logits_bias", None)

    @property
    def known(self) -> bool:
        """True if the layer's product can be computed outside it: a linear layer with unsharded
        floating weights, also with a low-rank adapter."""
        base = self.layer.base_layer if isinstance(self.layer, LoraLinear) else self.layer
        if not isinstance(base, nn.Linear) or not base.weight.is_floating_point():
            return False
        if type(base).forward is not nn.Linear.forward:  # an output layer with its own scale (Dory)
            return False
        if is_deepspeed_zero3_enabled() and (base is not self.layer or self._added is not None):
            return False  # several modules would have to be put together at once
        return base is self.layer or self._plain_adapter()

    def _plain_adapter(self) -> bool:
        layer = self.layer
        variants = getattr(layer, "lora_variant", {})  # DoRA and its like
        biased = getattr(layer, "lora_bias", {})
        active = [name for name in layer.active_adapters if name in layer.lora_A]
        return not any(name in variants or biased.get(name) for name in active)

    def of(self, hidden: Tensor) -> LazyLogits:
        """Lazy logits of hidden states ``(..., H)``."""
        layer = self.layer
        if not isinstance(layer, LoraLinear):
            return self._linear((hidden,), (layer.weight,), layer.bias)
        base: Any = layer.base_layer
        inputs, weights = [hidden], [base.weight]
        if not (layer.disable_adapters or layer.merged):
            for name in layer.active_adapters:
                if name in layer.lora_A:
                    down, up = layer.lora_A[name], layer.lora_B[name]
                    low = down(layer.lora_dropout[name](hidden).to(down.weight.dtype))
                    inputs.append(low * layer.scaling[name])
                    weights.append(up.weight)
        return self._linear(tuple(inputs), tuple(weights), base.bias)

    def _linear(
        self, hidden: tuple[Tensor, ...], weight: tuple[Tensor, ...], bias: Tensor | None
    ) -> LazyLogits:
        weight = tuple(map(full_tensor, weight))
        if any(isinstance(module, FSDPModule) for module in self._model.modules()):
            weight = tuple(w.clone() for w in weight)  # they are gathered only for this forward
            bias = None if bias is None else bias.clone()
        if self._added is not None:
            added = self._added.flatten()
            bias = added if bias is None else bias + added
        if not is_partitioned(weight[0]):
            return LazyLogits(hidden, weight, bias, self.scale, self.softcap)
        spread: Any = weight[0]
        classes = int(spread.ds_shape[0])
        within = functools.partial(redirected_forward, self.layer, self.layer)
        return LazyLogits(hidden, weight, bias, self.scale, self.softcap, classes, within)

    def is_last(self, run: Callable[[], Tensor | None]) -> bool:
        """Return whether the model computes from the layer's output as `LazyLogits` does.

        The comparison uses outputs as large as a trained model's: with those of a fresh model a
        zero bias or a soft cap would have no visible effect.

        Args:
            run: Runs the model and returns its logits.
        """
        made: list[Tensor] = []

        def layer(hidden: Tensor) -> Tensor:
            base = getattr(self.layer, "base_layer", self.layer)
            row = torch.linspace(-LARGE, LARGE, base.out_features).to(hidden)
            made.append(row.expand(*hidden.shape[:-1], -1).clone())
            return made[-1]

        with calling(self.layer, layer), torch.enable_grad():
            logits = run()
        if not made or logits is None:  # only its weights are used (MobileBERT)
            return False
        added = None if self._added is None else self._added.flatten()
        expected = LazyLogits((), (), added, self.scale, self.softcap).finished(made[-1])
        return not logits.requires_grad and _alike(expected, logits)


def same_logits(linear: Signal | None, logits: Signal | None) -> bool:
    """True if a model's `LazyLogits` reproduce its logits."""
    if linear is None or logits is None or linear.lazy_logits is None or logits.logits is None:
        return False
    return _alike(linear.lazy_logits.logits(), logits.logits)


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    """Compare up to rounding, also that of half precision and TF32."""
    if ours.shape != theirs.shape:
        return False
    most = 1e-2 * float(theirs.abs().max())
    close: bool = torch.allclose(ours.float(), theirs.float(), rtol=1e-2, atol=most)
    return close
