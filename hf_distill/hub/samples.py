"""Generated samples of several models, stored with a model and shown on its card."""

import json
import os
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_distill.utils.files import write_text

from .comparison import MODELS
from .markup import code, fenced

FILE = "samples.json"
SHOWN = 5  # prompts that a card shows
LONGEST = 800  # characters of a prompt or text that a card shows
CUT, NOTHING = " […]", "(nothing)"


@dataclass(frozen=True)
class Sample:
    """A prompt and its continuations.

    Attributes:
        prompt: The prompt of all models.
        texts: Role (``teacher``, ``baseline``, ``student``, …) -> text without the prompt; ``[…]``
            at its end: it was cut; ``(nothing)``: it ended at once.
    """

    prompt: str
    texts: Mapping[str, str]


def write_samples(samples: Sequence[Sample], folder: str | os.PathLike[str]) -> Path:
    """Write ``samples.json`` into a student's folder, for the card that is written after it.

    The file itself is never published; a card shows its first prompts, without secrets and paths.
    """
    path = Path(folder) / FILE
    rows = [{"prompt": one.prompt, "texts": dict(one.texts)} for one in samples]
    write_text(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    return path


def read_samples(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Samples stored by `write_samples`; empty without a file, or with a warning if it holds
    something else."""
    path = Path(folder) / FILE
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [asdict(Sample(str(row["prompt"]), dict(row["texts"]))) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(
            f"The card leaves the samples out: expected in {path} a list of objects with `prompt` "
            f"and `texts`, got something else ({error!r}). Write it with write_samples.",
            stacklevel=2,
        )
        return []


def section(samples: Sequence[Mapping[str, Any]]) -> str:
    """The section of a card, from facts already cleaned; empty without samples."""
    parts = []
    for number, sample in enumerate(samples[:SHOWN], start=1):
        texts = sample.get("texts", {})
        blocks = [_block(f"**Prompt {number}**", sample.get("prompt", ""))]
        for role in sorted(texts, key=_place):
            title = MODELS.get(role) or code(re.sub(r"\W+", " ", role).strip()[:40])
            blocks.append(_block(title, texts[role]))
        parts.append("\n\n".join(blocks))
    if not parts:
        return ""
    told = (
        "What the models write after the same prompts, always the likeliest token, for the same "
        f"number of tokens at most;{CUT} marks where a text was cut. It may be false."
    )
    if len(samples) > SHOWN:
        told += f" These are the first {SHOWN} of {len(samples)} prompts."
    return "\n\n".join(["## Samples", told, *parts])


def _place(role: str) -> float:
    """Place of a model: the teacher first, the student last, others before it."""
    known = list(reversed(MODELS))
    return known.index(role) if role in known else len(known) - 1.5


def _block(title: str, text: str) -> str:
    """List item with a text in a fence, shortened; the text cannot end the fence or the markers."""
    shown = text if len(text) <= LONGEST else text[: LONGEST - len(CUT)].rstrip() + CUT
    shown = fenced(shown.replace("```", "'''") or NOTHING, "text")
    return f"- {title}:\n\n{textwrap.indent(shown, '  ')}"
