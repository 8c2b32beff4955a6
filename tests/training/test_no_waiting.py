"""A training step never reads a value out of a tensor: a GPU would have to finish its queue."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trainers import trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import hf_distill
from hf_distill import DistillationTrainer, ForwardKL, HardLabels, HiddenStates, WeightDecay

PACKAGE = str(Path(hf_distill.__file__).parent)
OPERATIONS = (
    torch.ops.aten._local_scalar_dense.default,  # item(), bool(), float(), int()
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
)
INDEX = torch.ops.aten.index.Tensor
METHODS = ("tolist", "numpy", "cpu")  # these do not pass through the dispatcher on a CPU


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype == torch.bool


class Reads(TorchDispatchMode):
    """Collects the lines of hf_distill that read a value, not those of the models it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def __enter__(self) -> Reads:
        self.methods = {name: getattr(Tensor, name) for name in METHODS}
        for name, method in self.methods.items():
            setattr(Tensor, name, self._reporting(method))
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for name, method in self.methods.items():
            setattr(Tensor, name, method)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in OPERATIONS or (func is INDEX and any(map(_is_mask, args[1]))):
            self._note()
        return func(*args, **(kwargs or {}))

    def _reporting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def read(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._note()
            return method(tensor, *args, **kwargs)

        return read

    def _note(self) -> None:
        for frame in reversed(traceback.extract_stack(sys._getframe(2))):
            if "transformers" in Path(frame.filename).parts:
                return
            if frame.filename.startswith(PACKAGE):
                self.lines.append(f"{Path(frame.filename).name}:{frame.lineno}: {frame.line}")
                return


class Watched(DistillationTrainer):
    """Watches what this package does in the third and fourth step, before anything is logged.

    (In the second the trainer looks whether the loss is finite, once per training.)
    """

    lines: list[str]
    calls: list[str]

    def _get_num_items_in_batch(self, *args: Any, **kwargs: Any) -> Any:
        return self._watch("count", super()._get_num_items_in_batch, *args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return self._watch("loss", super().compute_loss, *args, **kwargs)

    def _watch(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step < 2:
            return function(*args, **kwargs)
        with pytest.MonkeyPatch.context() as patch, Reads() as reads:
            patch.setattr(
                "hf_distill.models.task_model.check_readable", lambda values: False
            )  # as on a GPU
            result = function(*args, **kwargs)
        self.lines = [*getattr(self, "lines", []), *reads.lines]
        self.calls = [*getattr(self, "calls", []), name]
        return result


HEADS = (
    "sequence_classification",
    "token_classification",
    "question_answering",
    "causal_lm",
    "seq2seq_lm",
    "semantic_segmentation",
)


@pytest.mark.parametrize("head", HEADS)
def test_a_step_reads_nothing_from_the_device(tmp_path: Path, head: str) -> None:
    """One `.item()` per micro-batch is enough to leave a GPU idle between kernels."""
    objective = 0.5 * HardLabels() + 0.5 * ForwardKL(2.0) + HiddenStates() + WeightDecay(1e-3)
    ours: Any = trainer(
        tmp_path,
        head,
        cls=Watched,
        objective=objective,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=4,
        logging_steps=9,
    )
    ours.train()
    assert ours.calls == ["count", "loss", "loss"] * 2
    chosen = [line for line in ours.lines if line.startswith("chunked.py")]
    assert ours.lines == chosen, "\n".join(ours.lines)
    # The items to project are chosen by the mask: their number has to be known, once a batch.
    assert len(chosen) == (4 if head in ("causal_lm", "seq2seq_lm") else 0)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: float(x.sum()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
    ],
)
def test_the_watch_sees_a_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Tensor], Any]
) -> None:
    """Or the test above would pass whatever a step does."""
    code = compile("def counts(self):\n    read(x)\n    return {}\n", PACKAGE + "/x.py", "exec")
    scope: dict[str, Any] = {"read": read, "x": torch.ones(3)}
    exec(code, scope)
    with Reads() as reads:
        scope["counts"](None)
    assert len(reads.lines) == 1
