"""Writing a cache: one pass of a teacher over a data set."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
from accelerate.utils import send_to_device
from torch.utils.data import ConcatDataset

from hf_distill.models.batch_checks import check_teacher_signal
from hf_distill.models.batches import Batch
from hf_distill.models.modules import ANY
from hf_distill.models.problems import tell_tokens
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.models.task_model import TaskModel
from hf_distill.teachers.cache import checked_json, formats, manifest
from hf_distill.teachers.cache.content import Content, Wanted, content_of
from hf_distill.teachers.cache.keys import ExampleSlice, example_slices
from hf_distill.teachers.cache.packing import Row
from hf_distill.teachers.cache.records import ShardRecords
from hf_distill.teachers.cache.shards import read_keys, remove_stale, usable, write_shard
from hf_distill.teachers.collating import inputs_of, with_own_inputs
from hf_distill.teachers.own_inputs import KEY
from hf_distill.utils.processes import make_accelerator

Collator = Callable[[list[Any]], Mapping[str, Any]]
Examples = ConcatDataset[Any]


def write_cache(
    path: str | Path,
    teacher: Any,
    data: Any,
    data_collator: Collator,
    *,
    format: Mapping[str, Any] | None = None,
    hidden_states: Wanted = False,
    attentions: bool = False,
    dtype: str = "float16",
    batch_size: int = 32,
    shard_size: int = 1024,
    task_model: TaskModel | None = None,
    processing_class: Any = None,
    views: Any = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Run a teacher over data and store its outputs, for `CachedTeacher`.

    Every process of a launch calls this; they share the shards. An interrupted call is simply
    repeated: finished shards are kept, damaged ones are written again.

    Args:
        path: The folder of the cache, which is returned.
        teacher: A `Teacher`: a model, an ensemble, a server, ….
        data: A data set with a length, or a list of them; collated as training will collate them.
        data_collator: Makes a batch of examples. It must not change them at random.
        format: Format of logits, by ``kind``: ``full`` (``dtype``), ``top_k`` (``k``, ``dtype``,
            ``temperature``), ``sampled`` (``draws``, ``temperature``, ``seed``), ``none``; see
            `hf_distill.teachers.cache.formats`. By default all logits in float32.
        hidden_states: Store hidden states: all, or ``{group: [layers]}``.
        attentions: Store attention maps.
        dtype: Dtype of hidden states and attention maps: float32, float16, bfloat16, int8.
        batch_size: Examples per forward.
        shard_size: Examples per file.
        task_model: The task model that reads the batches; by default the teacher's own.
        processing_class: The tokenizer or processor, for later comparison.
        views: The result of `record_views`, if ``data`` are those views.
        say: Receives lines of progress, on the main process.

    Raises:
        ValueError: the folder holds a cache of another teacher, tokenizer, preprocessing or format;
            data that change from one reading to the next; a head that cannot be cached.
        OSError: the disk is full; finished shards are kept.
    """
    maker = TeacherRunner(teacher, task_model, data, data_collator, batch_size)
    tell_tokens(teacher, getattr(processing_class, "tokenizer", processing_class))
    examples = len(maker.source)
    folder, shards = Path(path), -(-examples // shard_size)
    settings = {"kind": "full"} if format is None else dict(format)
    spec: Any = None if settings["kind"] == "none" else formats.from_json(settings)
    on = spec is not None
    states = bool(hidden_states)
    needs = Needs(
        logits=on, unsampled=on, full_vocabulary=on, hidden_states=states, attentions=attentions
    )
    if missing := needs.missing_from(teacher.provides):
        raise ValueError(f"Expected a teacher that gives {missing}; this one does not.")
    signal, found, items = maker.ask([maker.source[i] for i in range(min(examples, 2))], needs)
    rows = len(items.masks["samples"])
    content = content_of(signal, found, spec, hidden_states, dtype, maker.axis, rows)
    facts = {
        "teacher": manifest.teacher_fingerprint(teacher),
        "task": maker.task_model.task.name,
        "inputs": sorted(maker.inputs),
        "raw_columns": {own.prefix: list(own.columns) for own in maker.own} or None,
        "tokenizer": manifest.tokenizer_fingerprint(teacher.tokens()),
        "preprocessing": manifest.preprocessing_fingerprint(processing_class),
        "content": content.to_json(),
        "views": None if views is None else views.to_json(),
        "describe": manifest.public(teacher.describe()),
        "config": manifest.config_values(teacher.config),
        "examples": examples,
        "shard_size": shard_size,
        "shards": shards,
    }
    accelerator = maker.accelerator
    if accelerator.is_main_process:
        _begin(folder, facts, teacher.tokens())
    accelerator.wait_for_everyone()
    held = checked_json.read_manifest(folder)
    done = {i for i in usable(folder, held, content.features) if i < shards}
    maker.refuse_other_data(folder, shard_size, done)
    accelerator.wait_for_everyone()  # before anything is added
    todo = [i for i in range(shards) if i not in done]
    if accelerator.is_main_process:
        say(f"cache {folder}: {len(done)} of {shards} shards are there")
    # the missing ones in turn, so that after an interruption too all processes have work
    for number, index in enumerate(todo):
        if number % accelerator.num_processes == accelerator.process_index:
            chosen = range(index * shard_size, min(examples, (index + 1) * shard_size))
            write_shard(folder, index, maker.rows(chosen, content, needs), content.features, held)
            if accelerator.is_main_process:
                say(f"cache {folder}: shard {number + 1} of {len(todo)}")
    accelerator.wait_for_everyone()
    return folder


class TeacherRunner:
    """Runs the teacher and encodes its outputs as rows."""

    def __init__(
        self, teacher: Any, task_model: Any, data: Any, collate: Collator, batch_size: int
    ):
        if not hasattr(teacher, "provides"):
            raise ValueError(
                f"Expected a Teacher, got a {type(teacher).__name__}. Pass ModelTeacher(model)."
            )
        self.teacher, self.batch_size = teacher, batch_size
        self.own = list(inputs_of(teacher))
        found = getattr(teacher, "task_model", None) if task_model is None else task_model
        if not isinstance(found, TaskModel):
            raise ValueError(
                f"Expected a teacher with a model to read the batches by, got a "
                f"{type(teacher).__name__}. Pass task_model=TaskModel(student)."
            )
        self.task_model = found
        read = None if found.takes_all else found.columns | found.label_keys
        self.collate = with_own_inputs(collate, teacher, read)
        if self.task_model.task.axis is None:
            raise ValueError(
                f"Expected a head that judges examples one by one, got "
                f"{self.task_model.task.name}: what it says of an example depends on the batch. "
                "Train with the live teacher."
            )
        self.axis = self.task_model.task.axis
        labels = set(self.task_model.task.label_keys)
        self.inputs = (self.task_model.columns | teacher.columns()) - labels
        self.source = _joined(data, self.inputs | labels)
        if not len(self.source):
            raise ValueError("Expected data with examples, got none.")
        if self.own:  # the raw examples are the keys
            self.inputs = {f"{own.prefix}{KEY}" for own in self.own}
        self.accelerator = make_accelerator()
        teacher.place(self.accelerator)
        if ANY in self.inputs:  # a model that takes any column: all columns
            self.inputs = {str(name) for name in self._batch([self.source[0]])} - labels

    def ask(
        self, examples: list[Any], needs: Needs
    ) -> tuple[Signal, list[ExampleSlice], BatchItems]:
        """The teacher's signal on some examples, and their places in the batch."""
        batch, items = self.collated(examples)
        if needs.hidden_states or needs.attentions or self.axis == 1:
            _check_places(batch, items)
        who = f"the teacher ({type(self.teacher).__name__})"
        signal = check_teacher_signal(self.teacher(batch, needs, items), items, who)
        return signal, example_slices(batch, items, self.inputs, self.axis), items

    def collated(self, examples: list[Any]) -> tuple[Batch, BatchItems]:
        """A batch of some examples on the device, and its items."""
        batch = self._batch(examples)
        return batch, self.task_model.items(batch)

    def rows(self, indices: range, content: Content, needs: Needs) -> Iterator[Row]:
        """The rows of a shard; texts of similar length share a batch, to limit padding."""
        examples = sorted((self.source[i] for i in indices), key=_length)
        for start in range(0, len(examples), self.batch_size):
            chosen = examples[start : start + self.batch_size]
            signal, found, items = self.ask(chosen, needs)
            yield from content.encode(signal, found, items)

    def refuse_other_data(self, folder: Path, size: int, done: set[int]) -> None:
        """Raise ValueError if existing shards do not hold the first example of theirs in this data
        set, or if examples change from one reading to the next."""
        first, again = ([p.key for p in self._pieces(0)] for _ in range(2))
        if first != again:
            raise ValueError(
                "Expected the same example each time it is read, got another one: the data or the "
                "collator change it at random, and training would find nothing in the cache. "
                "Record the views (hf_distill.record_views), or leave the augmentation out."
            )
        for index in sorted(done):
            held = set(read_keys(folder, index))
            begins = index * size
            if begins >= len(self.source) or self._pieces(begins)[0].key not in held:
                raise ValueError(
                    f"The cache {folder} is of other data: shard {index} does not hold example "
                    f"{begins}. Use the data, order and preprocessing it was begun with, or write "
                    "another cache (another folder, or delete this one)."
                )

    def _pieces(self, index: int) -> list[ExampleSlice]:
        batch, items = self.collated([self.source[index]])
        return example_slices(batch, items, self.inputs, self.axis)

    def _batch(self, examples: list[Any]) -> Batch:
        batch = send_to_device(dict(self.collate(examples)), self.accelerator.device)
        return self.task_model.task.share(batch, self.task_model.model)


def _check_places(batch: Batch, items: BatchItems) -> None:
    """Raise on states with positions behind the padding, which depend on the batch."""
    ids, mask = batch.get("input_ids"), items.masks.get("hidden")
    if ids is not None and mask is not None and ids.shape[-1] != mask.shape[-1]:
        raise ValueError(
            f"Expected states of the {ids.shape[-1]} tokens of a batch to keep, got "
            f"{mask.shape[-1]} places: those of an image stand behind the padding, which another "
            "batch has elsewhere. Keep the logits alone of a head with fixed classes, or train "
            "with the live teacher."
        )


def _joined(data: Any, columns: set[str]) -> Examples:
    """The examples of one or several data sets, one after the other, with the models' columns."""
    several = isinstance(data, (list, tuple)) and data and not isinstance(data[0], Mapping)
    parts = data if several else [data]
    for part in parts:
        if not hasattr(part, "__len__") or not hasattr(part, "__getitem__"):
            raise ValueError(
                f"Expected data with a length, read by index, got {type(part).__name__}. Save "
                "a stream as a data set first (datasets.Dataset.from_generator)."
            )
    return ConcatDataset([_selected(part, columns) for part in parts])


def _selected(part: Any, columns: set[str]) -> Any:
    """Remove the columns that no model takes, as `Trainer` does."""
    if not isinstance(part, datasets.Dataset) or part.format["type"] == "custom":
        return part
    kept = [name for name in part.column_names if name in columns or ANY in columns]
    return part.select_columns(kept)


def _length(example: Any) -> int:
    ids = example.get("input_ids") if isinstance(example, Mapping) else None
    return 0 if ids is None else len(ids)


def _begin(folder: Path, facts: Mapping[str, Any], tokens: Mapping[str, int] | None) -> None:
    """Write the files of a cache besides its shards, or check existing ones; a file that is missing
    is made again. ValueError for another cache, shards of one, or a card that is none of a cache.
    """
    checked_json.make_folder(folder)
    if (folder / checked_json.MANIFEST).exists():
        held = checked_json.read_manifest(folder)
        manifest.check_facts(folder, held)
        manifest.refuse_changes(folder, held, facts)
        ShardRecords(folder, held).refuse_foreign()
        if (held["shard_size"], held["examples"]) != (facts["shard_size"], facts["examples"]):
            raise ValueError(
                f"The cache {folder} is of {held['examples']} examples, {held['shard_size']} to a "
                f"shard, and this one would be of {facts['examples']}, {facts['shard_size']} to a "
                "shard. Write another cache, or use these sizes."
            )
        manifest.complete(folder, facts, tokens)
    else:
        facts = json.loads(json.dumps(facts))  # as they are read
        shards = ShardRecords(folder, facts)
        shards.refuse_foreign()
        manifest.refuse_other_card(folder)
        # with own shards present, only the manifest was lost
        manifest.complete(folder, facts, tokens, anew=not shards.known)
        checked_json.write_manifest(
            folder, dict(facts)
        )  # last: a cache with a README has all other files
    remove_stale(folder)
