"""New columns of a data set from the answers of a chat endpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets
from datasets import Sequence as ListOf
from tqdm.auto import tqdm

from hf_distill.teachers.api import answers as read
from hf_distill.teachers.api.asking import ask_all
from hf_distill.teachers.api.budget import Budget, Ledger
from hf_distill.teachers.api.endpoint import ChatEndpoint
from hf_distill.teachers.api.journal import Journal
from hf_distill.teachers.api.prompts import PromptTemplate
from hf_distill.teachers.api.report import validity
from hf_distill.teachers.api.task import MARKER, Task
from hf_distill.utils.files import write_json

PROBABILITIES, LABEL, RATIONALE = "label_probabilities", "teacher_label", "rationale"
COMPLETION, MESSAGES = "completion", "messages"
REPORT = "report.json"


@dataclass(frozen=True)
class Annotation:
    """An annotated data set.

    Attributes:
        dataset: The data set with its new columns.
        report: Validity report, as `hf_distill.teachers.api.report.validity` returns it.
    """

    dataset: Dataset
    report: dict[str, Any]


def annotate(
    dataset: Dataset,
    endpoint: ChatEndpoint,
    prompt: str | Sequence[Mapping[str, str]],
    *,
    folder: str | Path,
    labels: Sequence[str] | Mapping[str, str] | None = None,
    samples: int | None = None,
    rationale: bool = False,
    parameters: Mapping[str, Any] | None = None,
    budget: Budget | None = None,
    gold: str | None = None,
    min_mass: float = 0.5,
    marker: str = MARKER,
    report: str = REPORT,
    progress: bool = True,
) -> Annotation:
    """Add the answers of a chat endpoint to a data set as columns.

    Every answer is on the disk before the next request of its worker is sent. A call that was
    interrupted is repeated as it is: no request that was answered is sent again. Equal requests are
    sent once. Columns, with K labels:

    - ``labels``: ``label_probabilities`` (K numbers, in the order of the class names of the column
      ``teacher_label``, the likeliest label). Without ``samples`` they are the probabilities of the
      answer words by ``top_logprobs``, divided by their sum; with it, shares of votes.
    - ``rationale=True`` (distilling step by step, Hsieh et al. 2023, arXiv 2305.02301): also
      ``rationale``, of the first sample that voted for the likeliest label.
    - no ``labels`` (sequence-level distillation, Kim and Rush 2016, arXiv 1606.07947):
      ``completion``, and ``messages`` with the prompt and the completion as a chat.

    Examples without a readable answer have None in the new columns. A validity report is returned
    and written into the folder.

    Args:
        dataset: The examples.
        endpoint: The endpoint.
        prompt: A Jinja template over the columns, ``"Review: {{ text }}"``, or messages of such.
        folder: Folder of the answers.
        labels: Names of the labels, which are the answer words too, or name -> answer word.
        samples: Number of samples per example, each of which votes; with ``rationale`` default 1.
        rationale: Read a rationale, ``marker`` and the label.
        parameters: Further fields of the requests, or others in place of the defaults
            (``max_tokens``, ``temperature``, ``seed``, …); None leaves a field out.
        budget: Limits, over all answers in the folder.
        gold: Column with labels to compare with: class names or indices.
        min_mass: Smallest total probability of the answer words; below it an answer is unreadable.
        marker: Text between rationale and label; the prompt must contain it.
        report: File name of the validity report in the folder.
        progress: Show a progress bar.

    Raises:
        ValueError: settings that do not fit, a damaged file of answers, or no log-probabilities.
        BudgetError: the budget is used up; all answers are kept.
        EndpointError: the endpoint does not answer; all answers are kept.
    """
    task = _task(labels, samples, rationale, parameters or {}, min_mass, marker)
    template = PromptTemplate(prompt, dataset.column_names, task.words)
    _check(dataset, task, template, gold)
    rendered = [template(example) for example in dataset.select_columns(template.columns)]
    wanted = [list(task.requests(endpoint.model, messages)) for messages in rendered]
    every = {request.key: request for requests in wanted for request in requests}
    with Journal(folder) as journal:
        ledger = Ledger(budget, endpoint.prices)
        for answer in journal.answers.values():
            ledger.settle(answer["key"], answer["tokens"])
        left = len(every.keys() - journal.answers.keys())
        with tqdm(total=len(every), initial=len(every) - left, disable=not progress) as bar:
            bar.set_description(endpoint.model[-30:])
            ask_all(list(every.values()), endpoint, journal, ledger, bar.update)
        found = [[journal.answers[r.key] for r in requests] for requests in wanted]
        columns = _columns(task, rendered, found)
        facts = validity(
            endpoint, template.source, task, found, columns, ledger, _gold(dataset, gold, task)
        )
        write_json(journal.path.parent / report, facts)
    own = Dataset.from_dict(columns, features=_features(task))
    return Annotation(concatenate_datasets([dataset, own], axis=1), facts)


def _task(
    labels: Sequence[str] | Mapping[str, str] | None,
    samples: int | None,
    rationale: bool,
    parameters: Mapping[str, Any],
    min_mass: float,
    marker: str,
) -> Task:
    if labels is None:
        if samples is not None or rationale:
            raise ValueError("Expected labels with samples or rationale, got none. Pass labels=….")
        return Task([], [], None, False, parameters, min_mass, marker)
    names = [str(name) for name in labels]
    words = list(labels.values()) if isinstance(labels, Mapping) else names
    if len(names) < 2 or len({str(word).casefold() for word in words}) < len(names):
        raise ValueError(
            f"Expected at least two labels with different answer words, got {list(words)}. Pass "
            "labels={NAME: WORD, …}."
        )
    if samples is not None and samples < 1:
        raise ValueError(f"Expected samples >= 1, got {samples}.")
    if rationale and samples is None:
        samples = 1
    return Task(
        names, [str(word) for word in words], samples, rationale, parameters, min_mass, marker
    )


def _check(dataset: Dataset, task: Task, template: PromptTemplate, gold: str | None) -> None:
    taken = [name for name in _features(task) if name in dataset.column_names]
    if taken:
        raise ValueError(
            f"Expected a data set without the columns {taken}, which are added, got one with them. "
            "Rename them, or remove them with dataset.remove_columns."
        )
    if task.rationale and not any(task.marker in m["content"] for m in template.source):
        raise ValueError(
            f"Expected a prompt that asks for a last line {task.marker!r} with the label, got one "
            "without it. Add it, or pass the marker=… that the prompt names."
        )
    if gold is not None and gold not in dataset.column_names:
        raise ValueError(f"Expected gold as a column of {dataset.column_names}, got {gold!r}.")


def _features(task: Task) -> Features:
    """Types of the new columns."""
    if not task.names:
        turn = {"role": Value("string"), "content": Value("string")}
        return Features({COMPLETION: Value("string"), MESSAGES: [turn]})
    own = {PROBABILITIES: ListOf(Value("float64")), LABEL: ClassLabel(names=task.names)}
    return Features(own | ({RATIONALE: Value("string")} if task.rationale else {}))


def _columns(
    task: Task,
    rendered: Sequence[Sequence[Mapping[str, str]]],
    found: Sequence[Sequence[Mapping[str, Any]]],
) -> dict[str, list[Any]]:
    """Values of the new columns."""
    columns: dict[str, list[Any]] = {name: [] for name in _features(task)}
    for messages, answers in zip(rendered, found, strict=True):
        if not task.names:
            text = read.without_thoughts(answers[0].get("text") or "").strip()
            usable = bool(text) and not read.is_refusal({**answers[0], "text": ""})
            chat = [*messages, {"role": "assistant", "content": text}]
            columns[COMPLETION].append(text if usable else None)
            columns[MESSAGES].append(chat if usable else None)
            continue
        read_as = task.distribution(answers)
        values = None if read_as is None else read_as[0]
        label = None if values is None else max(range(len(values)), key=values.__getitem__)
        columns[PROBABILITIES].append(values)
        columns[LABEL].append(label)
        if task.rationale:
            given = None if label is None else task.best_rationale(answers, label)
            columns[RATIONALE].append(given)
    return columns


def _gold(dataset: Dataset, column: str | None, task: Task) -> list[int | None] | None:
    """Index of the label of each example by a column; None where it is not one of the labels."""
    if column is None or not task.names:
        return None
    feature, values = dataset.features[column], dataset[column][:]
    if isinstance(feature, ClassLabel):
        values = [None if v is None or v < 0 else feature.int2str(v) for v in values]
    places = {name: index for index, name in enumerate(task.names)}
    if all(isinstance(value, int) for value in values):
        return [value if 0 <= value < len(places) else None for value in values]
    return [places.get(str(value)) for value in values]
