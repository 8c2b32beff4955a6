"""A folder with a student made of its teacher: the work of ``hf-distill init-student``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer, PreTrainedModel
from transformers.utils import cached_file

from hf_distill.models.embedding import is_embedder, load_embedder, own_class
from hf_distill.models.embedding.tokens import PlainTokenizer
from hf_distill.models.initialise.depth import Layers, kept_layers
from hf_distill.models.initialise.static import static_from_teacher, token_counts
from hf_distill.models.initialise.student import student_from_teacher
from hf_distill.models.initialise.texts import Row, measure, read_texts, text_of

Say = Callable[[str], None]
PROCESSOR_FILES = (
    *("tokenizer_config.json", "tokenizer.json", "preprocessor_config.json"),
    *("processor_config.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model"),
)
"""Files of a tokenizer; without any, transformers makes an empty one for some models."""


def write_student(
    source: str,
    output: str | Path,
    say: Say,
    *,
    layers: Sequence[str] = (),
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    vocabulary: int | None = None,
    importance: str | Path | None = None,
    static: bool = False,
    whitening: float = 0.0,
    random_size: int = 0,
) -> None:
    """Load a teacher, make its student, and write it with the teacher's tokenizer or processor.

    The folder appears at the end, complete, or not at all.

    Args:
        source: The teacher: a Hub id or a folder.
        output: A new or empty folder.
        say: Receives a line of progress.
        layers: One word as `student_from_teacher` reads it, or ``name=word`` for several stacks.
        hidden_size: As `student_from_teacher` takes it, like the sizes that follow.
        intermediate_size: Units of each feed-forward layer.
        vocabulary: Number of the first tokens to keep.
        importance: Texts on which the importance of the teacher's parts is measured, to keep the
            most important ones: a file with one text a line (``.txt``), or as JSON (``.jsonl``),
            in the columns of `hf_distill.data.language.tokenize`. For a static student: texts in
            which tokens are counted, in place of Zipf's law (column ``text``).
        static: Make a static embedder (`static_from_teacher`); ``hidden_size`` is its number of
            dimensions, 256 by default, and ``layers``, ``intermediate_size`` and ``vocabulary`` do
            not apply.
        whitening: Of a static student, as `static_from_teacher` takes it.
        random_size: Of a static student, as `static_from_teacher` takes it.

    Raises:
        ValueError: nothing to change, sizes that do not apply, a folder in use, a tokenizer with
            more tokens than the student, a file without texts; and as `student_from_teacher` or
            `static_from_teacher`.
        OSError: a teacher that cannot be loaded, a folder that cannot be written.
    """
    output = Path(output)
    parts = bool(layers) or (intermediate_size, vocabulary) != (None, None)
    if static and parts:
        raise ValueError(
            "Expected only --hidden-size, --importance, --whitening and --random-size with "
            "--static, got --layers, --intermediate-size or --vocabulary-size: a static student "
            "has one vector per token."
        )
    if not static and (whitening, random_size) != (0.0, 0):
        raise ValueError(
            "Expected --whitening and --random-size with --static alone, got them without it: a "
            "network keeps the teacher's vectors."
        )
    if (
        not static
        and not layers
        and (hidden_size, intermediate_size, vocabulary) == (None, None, None)
    ):
        raise ValueError(
            "Expected --layers, --hidden-size, --intermediate-size or --vocabulary-size, got none: "
            "the student would be the teacher."
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(
            f"Expected a new or empty folder, got {output}, which is in use. Name another one, or "
            "remove it."
        )
    rows = None if importance is None else read_texts(Path(importance))
    if static:
        options = {"whitening": whitening, "random_size": random_size}
        _write_static(source, output, say, hidden_size, rows, options)
        return
    processor = _processor(source, vocabulary, say)
    teacher = _teacher(source, say)
    wanted = None if not layers else _by_name(layers)
    measured = None if rows is None else measure(teacher, processor, rows)
    if rows is not None:
        say(f"importance: measured on {len(rows)} texts")
    student = student_from_teacher(
        teacher,
        wanted,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        vocabulary=vocabulary,
        importance=measured,
    )
    influence = None if measured is None else measured.layers
    before, after = (sum(p.numel() for p in m.parameters()) for m in (teacher, student))
    say(f"teacher: {source}, {type(teacher).__name__}, {before:,} parameters")
    for path, kept in ({} if wanted is None else kept_layers(teacher, wanted, influence)).items():
        count = len(teacher.get_submodule(path))  # type: ignore[arg-type]
        say(f"kept: layers {', '.join(map(str, kept))} of {count} in {path}")
    for line in _changes(teacher.config.to_dict(), student.config.to_dict()):
        say(f"config: {line}")
    _write(output, student, processor)
    say(f"student: {output}, {after:,} parameters ({after / before:.0%})")


def _write_static(
    source: str,
    output: Path,
    say: Say,
    hidden_size: int | None,
    rows: list[Row] | None,
    options: dict[str, Any],
) -> None:
    teacher = load_embedder(source) if is_embedder(source) else AutoModel.from_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    PlainTokenizer(tokenizer)
    counts = None
    if rows is not None:
        counts = token_counts([text_of(row) for row in rows], tokenizer)
        say(f"weights: of the tokens of {len(rows)} texts")
    size = 256 if hidden_size is None else hidden_size
    say(f"teacher: {source}, {len(tokenizer)} tokens one by one")
    student = static_from_teacher(teacher, tokenizer, hidden_size=size, counts=counts, **options)
    _write(output, student, tokenizer)
    count = sum(p.numel() for p in student.parameters())
    say(f"student: {output}, static, {student.config.hidden_size} dimensions, {count:,} parameters")


def _by_name(words: Sequence[str]) -> Layers | dict[str, Layers]:
    if len(words) == 1 and "=" not in words[0]:
        return words[0]
    pairs = [word.partition("=") for word in words]
    named: dict[str, Layers] = {name: which for name, _, which in pairs}
    if len(named) < len(words) or not all(equals for _, equals, _ in pairs):
        raise ValueError(
            "Expected --layers once ('3', '0,2,5', 'first:3') or by the name of each stack "
            f"('encoder=6 decoder=2'), got {' '.join(words)!r}."
        )
    return named


def _teacher(source: str, say: Say) -> PreTrainedModel:
    names = AutoConfig.from_pretrained(source).architectures or ["none"]
    kind = own_class(names[0])
    if kind is None:
        raise ValueError(
            f"Expected the config of {source} to name a model class of transformers under "
            f"`architectures`, got {names[0]}. Load it in Python and use student_from_teacher."
        )
    model, report = kind.from_pretrained(source, dtype="auto", output_loading_info=True)
    if report["missing_keys"]:
        say(f"new: {', '.join(sorted(report['missing_keys']))}, which the teacher's file lacks")
    loaded: PreTrainedModel = model
    return loaded


def _processor(source: str, vocabulary: int | None, say: Say) -> Any:
    missing = {"_raise_exceptions_for_missing_entries": False}
    if not any(cached_file(source, name, **missing) for name in PROCESSOR_FILES):
        say(f"no tokenizer or processor: {source} has no {PROCESSOR_FILES[0]} or the like")
        return None
    try:
        processor = AutoProcessor.from_pretrained(source)
    except (OSError, ValueError, ImportError) as error:
        say(f"no tokenizer or processor: {str(error).strip().splitlines()[0]}")
        return None
    tokenizer = getattr(processor, "tokenizer", processor)
    tokens = len(tokenizer) if hasattr(tokenizer, "__len__") else 0
    if vocabulary is not None and tokens > vocabulary:
        raise ValueError(
            f"Expected a vocabulary for all {tokens} tokens of the teacher's tokenizer, got "
            f"{vocabulary}. To drop tokens, call student_from_teacher(vocabulary=[…]) and make a "
            "tokenizer with the new ids."
        )
    return processor


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], at: str = "") -> Iterator[str]:
    for name, old in before.items():
        new = after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changes(old, new, f"{at}{name}.")
        elif old != new and (isinstance(old, int) or name == "depths"):
            yield f"{at}{name} {old} → {new}"


def _write(output: Path, student: PreTrainedModel, processor: Any) -> None:
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        student.save_pretrained(partial)
        if processor is not None:
            processor.save_pretrained(partial)
        partial.replace(output)  # fails if somebody else has filled it meanwhile
    finally:
        shutil.rmtree(partial, ignore_errors=True)
