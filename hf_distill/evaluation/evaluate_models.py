"""Finished models on raw examples: figures with intervals, size on disk, and speed.

Nothing here trains, and the models are loaded as a user of the published student would load them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from huggingface_hub import snapshot_download

from hf_distill.data.values import length_of
from hf_distill.evaluation.example_scores import (
    LEVEL,
    intervals,
    score_classifiers,
    score_language_models,
)
from hf_distill.evaluation.examples import Examples
from hf_distill.evaluation.latency import Speed, measure_speeds, size_on_disk
from hf_distill.evaluation.predictor import Predictor, aligned
from hf_distill.evaluation.verdicts import checkpoint
from hf_distill.hub.comparison import weight
from hf_distill.utils.files import write_json, write_text
from hf_distill.utils.folders import refuse_foreign_files
from hf_distill.utils.markdown import table

LANGUAGE_MODEL = "causal_lm"
DECIDING = {
    "sequence_classification": "accuracy",
    "image_classification": "accuracy",
    "audio_classification": "accuracy",
    LANGUAGE_MODEL: "log-likelihood per token, mean over the texts",
}
"""Heads that can be evaluated -> the score of an example by which two models are compared."""
NAMES = {
    "accuracy": "Accuracy",
    "f1_macro": "F1 (macro)",
    "perplexity": "Perplexity",
    "nll": "NLL (nats)",
    "next_token": "Next-token accuracy",
    "agreement": "Agreement with the teacher",
    "entropy": "Entropy, nats",
    "ece": "ECE, 15 bins",
    "forward_kl_divergence": "KL(teacher‖model), nats",
    "reverse_kl_divergence": "KL(model‖teacher), nats",
    "acceptance_rate": "Drafts that the teacher would accept",
    "entropy_gap": "Entropy less the teacher's, nats",
    "retention": "Retention of the teacher's accuracy",
}


def evaluate(
    subjects: Mapping[str, Predictor],
    data: Examples,
    *,
    batch_size: int = 32,
    repeats: int = 20,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure finished models on the same examples and, in turn, their speed.

    Args:
        subjects: ``model``, and perhaps ``baseline`` (the same student without a teacher) and
            ``teacher``; all with one kind of head.
        data: Labelled examples; for causal language models as from `read_texts`.
        batch_size: Examples at a time.
        repeats: Runs by which the speed is measured.
        say: Function that prints a line of progress.

    Returns:
        Plain values: ``task``, ``examples``, ``notes``, ``comparison`` (with the baseline, or None)
        and ``models``: role -> ``name``, ``architecture``, ``parameters``, ``size_bytes``,
        ``figures`` (name -> ``value``, ``low``, ``high``) and ``speed`` (``single`` and ``batch``).
    """
    task, notes = task_of_all(subjects), list[str]()
    if task == LANGUAGE_MODEL:
        for subject in subjects.values():
            _pad_on_the_right(subject)
    else:
        subjects = aligned(subjects, data, notes)
    say(f"measures the speed of {', '.join(subjects)}, {repeats} times")
    single, batch = _speeds(subjects, data.values, batch_size, repeats)
    say(f"asks them about {len(data):,} examples")
    if task == LANGUAGE_MODEL:
        scored = score_language_models(subjects, data.values, batch_size)
    else:
        scored = score_classifiers(subjects, data, batch_size)
    measured = intervals({role: one.figures for role, one in scored.items()}, len(data))
    comparison = None
    if "baseline" in scored:
        ours, theirs = (scored[role].deciding for role in ("model", "baseline"))
        comparison = dataclasses.asdict(checkpoint(ours, theirs, DECIDING[task]))
    return {
        "task": task,
        "examples": len(data),
        "notes": notes,
        "comparison": comparison,
        "models": {
            role: {
                "name": subject.name,
                "architecture": type(subject.model).__name__,
                "parameters": subject.parameters,
                "size_bytes": size_on_disk(_folder(subject)),
                "figures": measured[role],
                "speed": {
                    "single": dataclasses.asdict(single[role]),
                    "batch": dataclasses.asdict(batch[role]),
                },
            }
            for role, subject in subjects.items()
        },
    }


def read_texts(dataset: Dataset, column: str | None = None) -> Examples:
    """Texts of a split, from a column (default: ``text`` or ``sentence``), as examples of one
    class."""
    usual = (column,) if column else ("text", "sentence")
    found = next((name for name in usual if name in dataset.column_names), None)
    if found is None:
        raise ValueError(
            f"Expected a column with texts, {' or '.join(map(repr, usual))}, got "
            f"{dataset.column_names}. Name the column."
        )
    texts = tuple(dataset[found][:])
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"Expected texts in the column {found!r}, got other values.")
    return Examples(texts, np.zeros(len(texts), np.int64))


def move(subject: Predictor, device: str) -> None:
    """Put a model on a device: cpu, cuda, mps, …; ValueError if there is none such here."""
    try:
        subject.model.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"Expected a device of torch, got {device!r}: {reason:.200}") from error


def task_of_all(subjects: Mapping[str, Predictor]) -> str:
    """The one kind of head that all models have; ValueError for another one, or several."""
    kinds = {role: subject.task_model.task.name for role, subject in subjects.items()}
    for role, kind in kinds.items():
        if kind not in DECIDING or _several_labels(subjects[role]):
            what = "regression or several labels" if kind in DECIDING else kind
            raise ValueError(
                f"Expected a classifier of texts, pictures or sounds with one class per example, "
                f"or a causal language model, got {what} ({role}: "
                f"{type(subjects[role].model).__name__}). Others are evaluated by "
                "DistillationTrainer.evaluate() in a script."
            )
    if len(set(kinds.values())) > 1:
        raise ValueError(f"Expected models with one kind of head, got {kinds}.")
    return next(iter(kinds.values()))


def _several_labels(subject: Predictor) -> bool:
    config: Any = subject.model.config
    one = (None, "single_label_classification")
    return getattr(config, "problem_type", None) not in one or config.num_labels == 1


def _pad_on_the_right(subject: Predictor) -> None:
    """Pad on the right: with left padding, positions would differ from those of training."""
    tokenizer = subject.processor
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:  # masked: any token will do
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)


def _speeds(
    subjects: Mapping[str, Predictor], values: Sequence[Any], batch_size: int, repeats: int
) -> tuple[dict[str, Speed], dict[str, Speed]]:
    """Latency of an example of median length, and of a batch."""
    ordered = sorted(values, key=length_of)
    spaced = np.linspace(0, len(ordered) - 1, min(batch_size, len(ordered))).round().astype(int)
    single, batch = (
        measure_speeds(
            {role: (one.model, one.encoded(chosen)) for role, one in subjects.items()},
            repeats=repeats,
        )
        for chosen in ([ordered[len(ordered) // 2]], [ordered[place] for place in spaced])
    )
    return single, batch


def _folder(subject: Predictor) -> Path:
    config: Any = subject.model.config
    source = str(config._name_or_path)
    local = Path(source)
    return local if local.is_dir() else Path(snapshot_download(source, local_files_only=True))


def check(folder: str | Path) -> None:
    """Raise FolderError if an ``eval.json`` or ``eval.md`` in a folder was not written here."""
    refuse_foreign_files(Path(folder), ["eval.md"], "eval.json", {"models", "examples", "notes"})


def write(facts: Mapping[str, Any], folder: str | Path) -> None:
    """Write ``eval.json`` and ``eval.md``; FolderError: see `check`."""
    check(folder)
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_json(Path(folder) / "eval.json", facts)
    write_text(Path(folder) / "eval.md", markdown(facts) + "\n")


def markdown(facts: Mapping[str, Any]) -> str:
    """Results of `evaluate` as a Markdown table with its explanation."""
    models: Mapping[str, Any] = facts["models"]
    figures = dict.fromkeys(name for model in models.values() for name in model["figures"])
    rows = [
        [NAMES[name], *(_shown(model["figures"].get(name), name) for model in models.values())]
        for name in figures
    ]
    rows += [
        ["Parameters", *(f"{model['parameters']:,}" for model in models.values())],
        ["Weights on disk", *(weight(model["size_bytes"]) for model in models.values())],
    ]
    speeds = [model["speed"] for model in models.values()]
    rates = [f"{speed['batch']['throughput']:,.1f} /s" for speed in speeds]
    rows.append(["Latency, 1 example", *(_latency(speed["single"]) for speed in speeds)])
    rows.append([f"Throughput, batches of {speeds[0]['batch']['batch_size']}", *rates])
    header = ["", *(f"{role.capitalize()}: {model['name']}" for role, model in models.items())]
    return "\n\n".join([table(header, rows), _explained(facts), *_compared(facts)])


def _shown(figure: Mapping[str, float | None] | None, name: str) -> str:
    if figure is None or figure["value"] is None:
        return "–"
    scale, digits, unit = (100, 1, " %") if name == "retention" else (1, 4, "")
    value, low, high = (
        None if figure[key] is None else f"{scale * float(figure[key] or 0):.{digits}f}"
        for key in ("value", "low", "high")
    )
    return f"{value}{unit}" + ("" if low is None else f" ({low} to {high})")


def _latency(speed: Mapping[str, Any]) -> str:
    return f"{speed['latency_ms']:.2f} ms ({speed['p10_ms']:.2f} to {speed['p90_ms']:.2f})"


def _explained(facts: Mapping[str, Any]) -> str:
    batch = next(iter(facts["models"].values()))["speed"]["batch"]
    threads = "" if batch["threads"] is None else f", {batch['threads']} threads"
    return (
        f"{facts['examples']:,} examples; in brackets the {LEVEL:.0%} interval over the choice of "
        "examples (Wilson's for shares, else the bootstrap's). Speed: the median of "
        f"{batch['repeats']} forward passes, all models in turn, with the 10th and 90th "
        f"percentile; {batch['hardware']}{threads}, {batch['dtype']}."
    )


def _compared(facts: Mapping[str, Any]) -> list[str]:
    notes = [f"Note: {note}" for note in facts["notes"]]
    if (found := facts["comparison"]) is None:
        return notes
    verdict = "different" if found["p"] <= 1 - LEVEL else "not distinguishable"
    sentence = (
        f"Model against baseline: {found['difference']:+.4f} in {found['axis']} "
        f"({found['low']:+.4f} to {found['high']:+.4f}, p = {found['p']:.3g}): the two files "
        f"are {verdict} on these examples, which is no claim about the methods that made them."
    )
    return [sentence, *notes]
