"""Prompts from a batch, and log-probabilities from vLLM's ``prompt_logprobs``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_distill.models.batches import Batch
from hf_distill.models.signals import BatchItems

IMPOSSIBLE = -9999.0
"""vLLM's number for a log-probability of -inf, which JSON cannot represent."""
ABOVE_ONE = 1e-3
"""Tolerance above 1 of the sum of probabilities from float16 and bfloat16 servers."""
COMPARED = 64
"""Number of tokens of the first text that are compared as text."""


class Prompt(NamedTuple):
    """A text of a batch: its tokens, and where the first of them is."""

    row: int
    start: int
    ids: list[int]


class Answered(NamedTuple):
    """Log-probabilities of a text of n tokens: ``(n - 1, k)`` twice and ``(n - 1)``."""

    ids: Tensor
    log_probs: Tensor
    log_rest: Tensor


# ---- the texts of a batch --------------------------------------------------------------------


def prompts_of(batch: Batch, items: BatchItems) -> tuple[list[Prompt], tuple[int, int]]:
    """Texts of a batch with at least one item, and the shape of the items.

    ``attention_mask`` (B, T) may have padding on either side; ``position_ids`` (B, T) start anew
    where another text is packed into the row of ``input_ids``. ValueError without token ids, for
    padding inside a text, and for an item that has no prediction.
    """
    ids = batch.get("input_ids")
    if ids is None or ids.dim() != 2:
        raise ValueError(
            f"Expected input_ids (B, T) for a server, got the keys {sorted(batch)}. A server reads "
            "token ids; with embeddings or images ask the model itself, or HTTPTeacher."
        )
    mask = batch.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    if mask.shape != ids.shape:
        raise ValueError(
            f"Expected an attention_mask {tuple(ids.shape)} like input_ids, got "
            f"{tuple(mask.shape)}: which token sees which cannot be said to a server."
        )
    counted = items.masks["items"].cpu()
    firsts = _firsts(batch.get("position_ids"), ids)
    reached = torch.zeros_like(counted)
    found = []
    for row, (tokens, real) in enumerate(zip(ids.tolist(), mask.bool().tolist(), strict=True)):
        for start, stop in _texts(row, real, firsts[row]):
            place = (row, slice(start, stop - 1))
            reached[place] = True
            if counted[place].any():
                found.append(Prompt(row, start, tokens[start:stop]))
    if (counted & ~reached).any():
        row, position = (counted & ~reached).nonzero()[0].tolist()
        raise ValueError(
            f"Expected to count only what a token of its own text follows, got position {position} "
            f"of row {row}: a server says nothing of what comes after a text. Mask its label "
            "(-100), or ask the model itself or HTTPTeacher."
        )
    return found, (counted.shape[0], counted.shape[1])


def _firsts(positions: Tensor | None, ids: Tensor) -> Any:
    """Starts of texts within a row, after the first."""
    firsts = torch.zeros_like(ids, dtype=torch.bool)
    if positions is not None:
        if positions.dim() != 2 or positions.shape[-1] != ids.shape[-1]:
            raise ValueError(
                f"Expected position_ids {tuple(ids.shape)} like input_ids, got "
                f"{tuple(positions.shape)}: a server counts the tokens of a text itself."
            )
        positions = positions.expand_as(ids)
        firsts[:, 1:] = positions[:, 1:] != positions[:, :-1] + 1
    return firsts.tolist()


def _texts(row: int, real: Sequence[bool], firsts: Sequence[bool]) -> list[tuple[int, int]]:
    """The ranges of the texts of one row that have at least two tokens."""
    if True not in real:
        return []
    begin, end = real.index(True), len(real) - list(reversed(real)).index(True)
    if not all(real[begin:end]):
        raise ValueError(
            f"Expected padding before or after a text, got some inside that of row {row}. A server "
            "is sent texts without padding, and would see the tokens nearer to each other."
        )
    starts = [begin, *(i for i in range(begin + 1, end) if firsts[i])]
    ranges = zip(starts, [*starts[1:], end], strict=True)
    return [(start, stop) for start, stop in ranges if stop - start > 1]


# ---- vLLM's answer ---------------------------------------------------------------------------


def read_prompt(prompt: Prompt, entries: Any, top_k: int, classes: int) -> Answered:
    """Read the ``prompt_logprobs`` of one text, or raise ValueError.

    ``entries`` has one for each token: null for the first, then
    ``{token id: {"logprob": …, "rank": …, "decoded_token": …}}`` with the ``top_k`` most likely
    tokens and, in any case, the token itself. Probabilities of tokens that are not below
    ``classes`` are added to the rest.
    """
    if not isinstance(entries, list) or len(entries) != len(prompt.ids):
        got = len(entries) if isinstance(entries, list) else repr(entries)[:80]
        raise ValueError(
            f"Expected prompt_logprobs of {len(prompt.ids)} tokens for row {prompt.row}, got "
            f"{got}. The server must know vLLM's prompt_logprobs and must not truncate or add "
            "tokens."
        )
    k = min(top_k, classes)
    ids = torch.zeros(len(entries) - 1, k + 1, dtype=torch.int64)
    values = torch.full((len(entries) - 1, k + 1), -torch.inf, dtype=torch.float64)
    for position, entry in enumerate(entries[1:], 1):
        known = _entry(prompt, position, entry, k)
        ids[position - 1, : len(known)] = torch.tensor(list(known))
        values[position - 1, : len(known)] = torch.tensor(list(known.values()), dtype=torch.float64)
    _check_probabilities(prompt, values)
    rest = _log_rest(values, k, classes)
    phantom = (ids >= classes) | (values <= IMPOSSIBLE)
    rest = torch.logaddexp(rest, values.masked_fill(ids < classes, -torch.inf).logsumexp(-1))
    ids, values = ids.masked_fill(phantom, 0), values.masked_fill(phantom, -torch.inf)
    width = min(k + 1, classes)
    order = values.argsort(-1, descending=True)[:, :width]
    return Answered(ids.gather(-1, order), values.gather(-1, order).float(), rest.float())


def _entry(prompt: Prompt, position: int, entry: Any, k: int) -> dict[int, float]:
    """The log-probabilities by token of one position, of which there are k or k + 1."""
    where = f"position {position} of row {prompt.row}"
    if not isinstance(entry, dict) or not entry:
        raise ValueError(
            f"Expected log-probabilities at {where}, got {entry!r:.120}. A vLLM server that keeps "
            "prefixes gives none for them: start it with --no-enable-prefix-caching."
        )
    try:
        known = {_token(token): _number(value["logprob"]) for token, value in entry.items()}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"Expected {{token id: {{'logprob': number}}}} at {where}, got {str(entry)[:120]} "
            f"({type(error).__name__}: {str(error)[:120]})."
        ) from error
    if prompt.ids[position] not in known:
        raise ValueError(
            f"Expected token {prompt.ids[position]} at {where}, which was sent, among those of the "
            f"answer, got {sorted(known)[:8]}. The server reads other tokens than were sent: its "
            "tokenizer is another one, or it adds or truncates tokens."
        )
    if not k <= len(known) <= k + 1:
        raise ValueError(
            f"Expected the {k} likeliest tokens at {where} (and the token itself), got "
            f"{len(known)}. If it gives fewer, start it with a higher limit (vLLM: --max-logprobs "
            f"{k}), or lower top_k."
        )
    return known


def _token(name: Any) -> int:
    if not (isinstance(name, str) and name.isascii() and name.isdigit() and len(name) < 10):
        raise ValueError(f"the token {name!r:.40}")
    return int(name)


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"the logprob {value!r:.40}")
    return float(value)


def _check_probabilities(prompt: Prompt, values: Tensor) -> None:
    sums = values.logsumexp(-1).exp()
    wrong = values.isnan().any(-1) | ~(sums <= 1 + ABOVE_ONE)
    if wrong.any():
        position = int(wrong.nonzero()[0]) + 1
        raise ValueError(
            f"Expected log-probabilities at position {position} of row {prompt.row}, got "
            f"{values[position - 1].tolist()[:4]} …, which add up to {float(sums[position - 1]):g} "
            "as probabilities. A vLLM server must run with --logprobs-mode raw_logprobs (its "
            "default), and with finite weights and outputs."
        )


def _log_rest(values: Tensor, k: int, classes: int) -> Tensor:
    """log(1 - Σ p) in float64. The sums of float32 numbers leave noise where little is left: the
    classes that are not listed have at most their number times the mass of the k-th."""
    listed = (values > -torch.inf).sum(-1)
    least = values.sort(-1, descending=True).values[:, k - 1]
    rest = -torch.expm1(values.logsumexp(-1).clamp(max=0.0))
    most = (classes - listed).clamp(min=0) * least.exp()
    return torch.minimum(rest, most).log()


# ---- tokens as texts -------------------------------------------------------------------------


def check_decoded(entries: Sequence[Any], tokenizer: Any, url: str) -> None:
    """Compare the texts of ids on the server and of a tokenizer here; ValueError where they
    differ."""
    found: dict[int, str] = {}
    for entry in entries[1:]:
        for token, value in entry.items():
            text = value.get("decoded_token")
            if isinstance(text, str) and len(found) < COMPARED:
                found.setdefault(int(token), text)
    for token, theirs in found.items():
        if not theirs or "\ufffd" in theirs or theirs.startswith("token_id:"):
            continue  # a part of a character, or no text at all
        entry = tokenizer.convert_ids_to_tokens(token)
        ours = [str(tokenizer.decode([token])), "" if entry is None else str(entry)]
        if _plain(theirs) not in {_plain(name) for name in ours}:
            raise ValueError(
                f"The tokenizer of {url} is another one: token {token} is {theirs!r} there and "
                f"{ours[0]!r} here. Serve a teacher with the student's tokenizer, or pass the one "
                "it has and a student that shares it."
            )


def _plain(text: str) -> str:
    """Remove marks of a word's beginning, which some decoders drop."""
    return text.replace("▁", " ").replace("Ġ", " ").strip()
