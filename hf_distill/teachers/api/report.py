"""Validity report of an annotated data set."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hf_distill.teachers.api import answers as read
from hf_distill.teachers.api.budget import Ledger
from hf_distill.teachers.api.endpoint import ChatEndpoint
from hf_distill.teachers.api.task import Task

SHOWN, CHARACTERS = 3, 200
"""Number of unreadable answers in a report, and characters of each."""


def validity(
    endpoint: ChatEndpoint,
    prompt: Sequence[Mapping[str, str]],
    task: Task,
    found: Sequence[Sequence[Mapping[str, Any]]],
    columns: Mapping[str, Sequence[Any]],
    ledger: Ledger,
    gold: Sequence[int | None] | None,
) -> dict[str, Any]:
    """Counts of readable, unreadable, refused and truncated answers, and agreement with labels.

    Args:
        endpoint: The endpoint.
        prompt: The templates.
        task: Settings of the annotation.
        found: The answers to each example.
        columns: Values of the new columns.
        ledger: Tokens and money spent, over all answers in the folder.
        gold: Given label of each example.

    Returns:
        ``examples``, ``readable`` and ``unreadable`` (examples with and without a value);
        ``answers``, ``refused``, ``rejected`` (by the server), ``truncated`` (at the limit of
        tokens); ``unreadable_answers`` (some of them); tokens and cost; of labels their counts, and
        of given labels ``agreement`` (share of the readable examples with one) and
        ``agreement_of_all`` (an unreadable answer counts as wrong); of votes ``unanimous`` (share
        of examples).
    """
    values = next(iter(columns.values()))
    unreadable = [index for index, value in enumerate(values) if value is None]
    answers = list({one["key"]: one for row in found for one in row}.values())
    report: dict[str, Any] = {
        **endpoint.describe(),
        "hosts": sorted({str(one["host"]) for one in answers}),
        "served_models": sorted({str(one["model"]) for one in answers if one.get("model")}),
        "prompt": [dict(message) for message in prompt],
        "parameters": task.fields(0),
        "samples": task.samples,
        "rationale": task.rationale,
        "examples": len(values),
        "readable": len(values) - len(unreadable),
        "unreadable": len(unreadable),
        "answers": len(answers),
        "refused": sum(map(read.is_refusal, (found[i][0] for i in unreadable))),
        "rejected": sum("rejected" in one for one in answers),
        "truncated": sum(one.get("finish") == "length" for one in answers),
        "unreadable_answers": [
            str(one.get("text") or one.get("rejected") or "")[:CHARACTERS]
            for one in (found[i][0] for i in unreadable[:SHOWN])
        ],
        "prompt_tokens": ledger.prompt_tokens,
        "answer_tokens": ledger.answer_tokens,
    }
    if ledger.prices is not None:
        report |= {"prices": list(ledger.prices), "cost": ledger.cost()}
    if not task.names:
        return report
    labels = columns["teacher_label"]
    counts = Counter(labels)
    report["labels"] = {name: counts[index] for index, name in enumerate(task.names)}
    if task.samples is not None and task.samples > 1:
        same = [len({task.label(answer) for answer in row}) == 1 for row in found]
        report["unanimous"] = statistics.fmean(same) if same else None
    if gold is not None:
        pairs = [(one, given) for one, given in zip(labels, gold, strict=True) if given is not None]
        readable = [one == given for one, given in pairs if one is not None]
        report["with_given_label"] = len(pairs)
        report["agreement"] = statistics.fmean(readable) if readable else None
        every = [one == given for one, given in pairs]
        report["agreement_of_all"] = statistics.fmean(every) if every else None
    return report
