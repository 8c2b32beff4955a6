"""What a run on generated text tells of it in the log."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_distill.training.on_policy.generating import Tokens
from hf_distill.training.on_policy.prompts import PromptCompletion


@dataclass
class OnPolicyStats:
    """Counts since the last log entry.

    Attributes:
        windows: How many optimizer steps began.
        own: Of these, those on the student's own text.
        replayed: Of these, those on text from the buffer.
        texts: Completions that were generated on this process.
        tokens: Their tokens.
        finished: How many of them ended by themselves.
        shown: The last ones, to be printed.
    """

    windows: int = 0
    own: int = 0
    replayed: int = 0
    texts: int = 0
    tokens: int = 0
    finished: int = 0
    shown: list[PromptCompletion] = field(default_factory=list)

    def add(self, pairs: Sequence[PromptCompletion], ends: Collection[int], show: int) -> None:
        """Count completions that were generated."""
        completions: list[Tokens] = [completion for _, completion in pairs]
        self.texts += len(completions)
        self.tokens += sum(map(len, completions))
        self.finished += sum(bool(c) and c[-1] in ends for c in completions)
        self.shown = [*self.shown, *pairs][-show:] if show else []

    def counts(self) -> dict[str, int]:
        """The counts, by their names."""
        return {name: n for name, n in vars(self).items() if name != "shown"}

    def figures(self, reduce: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """For the log.

        Args:
            reduce: Adds up over all processes.
            device: Where it does.
        """
        sums = torch.tensor([self.texts, self.tokens, self.finished], device=device)
        texts, tokens, finished = reduce(sums).tolist()
        found = {"on_policy": self.own / max(1, self.windows)}
        if self.replayed:
            found["replayed"] = self.replayed / self.own
        if texts:
            found["completion_length"] = tokens / texts
            found["completions_finished"] = finished / texts
        return found

    def of_data(self, means: Mapping[str, float], labelled: Collection[str]) -> dict[str, float]:
        """The means of components, those of label losses over the windows that have labels."""
        data = self.windows - self.own
        found = dict(means)
        for name in means:
            if self.own and any(name == n or name.startswith(f"{n}_") for n in labelled):
                value = found.pop(name)
                if data:
                    found[name] = value * self.windows / data
        return found

    def text(self, tokenizer: Any) -> str:
        """The completions that are to be printed, one a line."""
        lines = []
        for prompt, completion in self.shown:
            parts: list[Any] = [prompt, completion]
            if hasattr(tokenizer, "decode"):
                parts = [tokenizer.decode(part) for part in parts]
            lines.append(f"{parts[0]!r} -> {parts[1]!r}")
        return "\n".join(lines)
