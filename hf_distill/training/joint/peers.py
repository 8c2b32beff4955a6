"""The models that are trained with the student."""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn

from hf_distill.models.batches import Batch
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.models.task_model import TaskModel, describe_model, local_vocabulary

STUDENT = "student"


class Peers:
    """Models in training, by name, as the trainer's `Teacher`; the first is compared with the
    student. An `ensemble` teaches by the mean of the probabilities alone."""

    def __init__(self, models: Mapping[str, nn.Module], ensemble: bool = False):
        self.models = nn.ModuleDict(models)
        self.task_models = {
            name: TaskModel(model, role=f"peer {name!r}") for name, model in models.items()
        }
        self.first = next(iter(models))
        self.config = self.task_models[self.first].config
        common = functools.reduce(operator.and_, (t.provides for t in self.task_models.values()))
        logits = Needs(logits=True, unsampled=True, full_vocabulary=True)
        # not `inputs`: their graph would let the student's loss change its teacher
        offered = Needs(hidden_states=True, attentions=True, qkv=True, modules=common.modules)
        self.provides = common & (logits if ensemble else logits | offered)
        self._autocast: Any = contextlib.nullcontext
        self._mixed = False

    def __call__(self, batch: Batch, needs: Needs, items: BatchItems) -> Signal:
        self.models.eval()
        with torch.no_grad():
            return self.ask(self.first, batch, needs, items).detach()

    def ask(self, name: str, batch: Batch, needs: Needs, items: BatchItems) -> Signal:
        """Outputs of a peer, with its graph, in its current mode."""
        model, head = self.models[name], self.task_models[name]

        def run(**inputs: Any) -> Any:
            with self._autocast():
                return model(**inputs)

        call = convert_outputs_to_fp32(run) if self._mixed else run
        return head.ask(call, batch, needs & head.provides, items)[1]

    def columns(self) -> set[str]:
        return set().union(*(head.columns for head in self.task_models.values()))

    def tokens(self) -> Mapping[str, int] | None:
        return self.tokens_of(self.first)

    def tokens_of(self, name: str) -> Mapping[str, int] | None:
        """The vocabulary of the tokenizer in a model's local folder, if there is one."""
        return local_vocabulary(self.task_models[name])

    def place(self, accelerator: Accelerator) -> None:
        for model in self.models.values():
            if getattr(model, "hf_device_map", None) is None:
                model.to(accelerator.device)
        self._autocast, self._mixed = accelerator.autocast, accelerator.native_amp

    def tensors(self) -> Mapping[str, Tensor]:
        return {}  # the trainer keeps them, with what else it trains

    def describe(self) -> dict[str, Any]:
        return {**describe_model(self.task_models[self.first].model), "trained": "with the student"}


def named_peers(peers: Any, student: nn.Module) -> dict[str, nn.Module]:
    """Name the peers, and refuse models that cannot be trained with the student.

    Raises:
        ValueError: no model, a name that cannot be one, weights that two models share or none.
    """
    if isinstance(peers, nn.Module):
        peers = [peers]
    if not isinstance(peers, Mapping):
        peers = {f"teacher_{n}" if n > 1 else "teacher": peer for n, peer in enumerate(peers, 1)}
    if not peers:
        raise ValueError("Expected one peer or more, got none. Pass peers=teacher.")
    owners = {id(p): STUDENT for p in student.parameters()}
    for name, peer in peers.items():
        taken = name == STUDENT or hasattr(nn.ModuleDict, str(name))
        if not (isinstance(name, str) and name.isidentifier()) or taken:
            raise ValueError(f"Expected a peer's name such as 'teacher', got {name!r}.")
        if not isinstance(peer, nn.Module):
            raise ValueError(
                f"Expected peers to be models, got {type(peer).__name__} for {name!r}. Load it "
                "first (AutoModelFor….from_pretrained); a Teacher that does not learn goes to "
                "DistillationTrainer(teacher_model=…)."
            )
        if not any(p.requires_grad for p in peer.parameters()):
            raise ValueError(
                f"The peer {name!r} has no trainable weights. Let it learn "
                "(model.requires_grad_(True)), or use DistillationTrainer(teacher_model=…)."
            )
        for parameter in peer.parameters():
            owner = owners.setdefault(id(parameter), name)
            if owner != name:
                raise ValueError(
                    f"The peer {name!r} shares weights with {owner!r}, and both would train them. "
                    "Pass a copy: copy.deepcopy(model)."
                )
    return dict(peers)
