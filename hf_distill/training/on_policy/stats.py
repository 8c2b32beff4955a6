"""Log figures of a training on generated text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_distill.training.on_policy.config import OnPolicyConfig
from hf_distill.training.on_policy.generating import Tokens
from hf_distill.training.on_policy.prompts import PromptCompletion

_COUNTS = ("windows", "own", "replayed", "texts", "tokens", "finished")


class OnPolicyStats:
    """Counts of windows and completions since the last log entry: the `ExtraCounts` of
    `OnPolicyDistillationTrainer`.

    Attributes:
        windows: Optimizer steps; ``own`` of these on the student's own text, ``replayed`` of those
            on text from the buffer.
        texts: Completions generated on this process, with ``tokens`` in all, ``finished`` of them
            by an end token.
        shown: The last completions, to be printed.
    """

    def __init__(
        self,
        args: OnPolicyConfig,
        reduce: Callable[[Tensor], Tensor],
        labelled: Callable[[], Collection[str]],
    ):
        self._args = args
        self._reduce = reduce
        self._labelled = labelled
        self.clear()

    def clear(self) -> None:
        """Start anew, after a log entry or with a new training."""
        self.windows = self.own = self.replayed = self.texts = self.tokens = self.finished = 0
        self.shown: list[PromptCompletion] = []

    def add(self, pairs: Sequence[PromptCompletion], ends: Collection[int]) -> None:
        """Count generated completions."""
        completions: list[Tokens] = [completion for _, completion in pairs]
        show = self._args.log_completions
        self.texts += len(completions)
        self.tokens += sum(map(len, completions))
        self.finished += sum(bool(c) and c[-1] in ends for c in completions)
        self.shown = [*self.shown, *pairs][-show:] if show else []

    def state(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint, by name."""
        return {f"tally.{name}": torch.tensor(getattr(self, name)) for name in _COUNTS}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`; other names in it are ignored."""
        for name in _COUNTS:
            if (count := state.get(f"tally.{name}")) is not None:
                setattr(self, name, int(count))

    def figures(self) -> dict[str, float]:
        """Entries for the log, over all processes."""
        if not (self.windows and (self._args.lmbda > 0 or self._args.adaptive_lmbda)):
            return {}
        sums = torch.tensor([self.texts, self.tokens, self.finished], device=self._args.device)
        texts, tokens, finished = self._reduce(sums).tolist()
        found = {"on_policy": self.own / self.windows}
        if self.replayed:
            found["replayed"] = self.replayed / self.own
        if texts:
            found["completion_length"] = tokens / texts
            found["completions_finished"] = finished / texts
        return found

    def adjust(self, means: dict[str, float]) -> dict[str, float]:
        """Correct the means of label losses: over the windows that have labels."""
        data = self.windows - self.own
        labelled = self._labelled() if self.own else ()
        found = dict(means)
        for name in means:
            if any(name == n or name.startswith(f"{n}_") for n in labelled):
                value = found.pop(name)
                if data:
                    found[name] = value * self.windows / data
        return found


def completion_lines(shown: Sequence[PromptCompletion], tokenizer: Any) -> str:
    """Completions to be read, one a line; as tokens where the tokenizer has no ``decode``."""
    decode = getattr(tokenizer, "decode", list)
    return "\n".join(f"{decode(one)!r} -> {decode(other)!r}" for one, other in shown)
