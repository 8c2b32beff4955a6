"""Teacher whose outputs are read from an on-disk cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import TrainerCallback

from hf_distill.models.batches import Batch, rows_of
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.models.tasks import TASKS
from hf_distill.teachers.cache import manifest
from hf_distill.teachers.cache.checked_json import MANIFEST, alone_in, bindings, read_manifest
from hf_distill.teachers.cache.keys import ExampleSlice, example_slices, text_fingerprint
from hf_distill.teachers.cache.packing import Row
from hf_distill.teachers.cache.publish import local_cache
from hf_distill.teachers.cache.records import arrow_path, read_records
from hf_distill.teachers.cache.shards import write_shard
from hf_distill.teachers.cache.store import ExampleStore
from hf_distill.teachers.collating import inputs_of
from hf_distill.teachers.own_inputs import OwnInputs
from hf_distill.teachers.protocol import Teacher
from hf_distill.utils.processes import process_state

Slices = Sequence[ExampleSlice]


class CachedTeacher(Teacher, TrainerCallback):
    """Outputs from a cache of `write_cache`; no model is in memory.

    An example is found by the content of its model inputs: order, batch size, epochs, processes and
    packing do not matter. Logits in float32 are bit-equal to those at the time of writing; the
    errors of smaller formats are in `formats`. A live teacher's last bits depend on the shape of
    the batch and, with some kernels, on the position in it.

    Args:
        path: The folder of the cache, or a downloaded data set of the Hub that is one.
        live: The teacher itself, for missing examples. They are added to the cache at the end of
            the training.
        processing_class: The tokenizer or processor of the training, compared with the one that the
            cache was written with.
        verify: Compare the checksum of every file; without it, damage is only found if it breaks
            the Arrow structure. A downloaded cache is always verified.

    Raises:
        ValueError: a cache that is unfinished or damaged, or that does not match ``live`` and
            ``processing_class``; the message names the difference.
    """

    provides: Needs

    def __init__(
        self,
        path: str | Path,
        live: Teacher | None = None,
        processing_class: Any = None,
        verify: bool = True,
    ):
        self.path = local_cache(path)
        facts = read_manifest(self.path)
        self.content = manifest.check_facts(self.path, facts)
        wanted = {
            "teacher": None if live is None else manifest.teacher_fingerprint(live),
            "preprocessing": manifest.preprocessing_fingerprint(processing_class),
        }
        manifest.refuse_changes(self.path, facts, wanted)
        self.inputs = frozenset(facts["inputs"])
        raw = facts.get("raw_columns") or {}
        keys = [
            OwnInputs(None, tuple(names), prefix=prefix, keys_only=True)
            for prefix, names in raw.items()
        ]
        self.own_inputs = list(inputs_of(live)) or keys
        self.config = manifest.config_from(facts["config"], self.path / MANIFEST)
        self.provides = self.content.provides
        self.live = live
        self._facts, self.task = facts, TASKS[facts["task"]]
        self._tokens = manifest.read_vocabulary(self.path, facts)
        downloaded = self.path != Path(path)
        self._store = ExampleStore(self.path, verify or downloaded, features=self.content.features)
        self._added: dict[bytes, Row] = {}

    def __call__(self, batch: Batch, needs: Needs, items: BatchItems) -> Signal:
        found = example_slices(batch, items, self.inputs, self.content.axis)
        rows = self._rows(found, batch, items)
        try:
            return self.content.decode(rows, found, items, needs)
        except ValueError as error:
            raise ValueError(self._refusal(found, error)) from error

    def _rows(self, found: Slices, batch: Batch, items: BatchItems) -> list[Row]:
        absent = set(self._store.missing([p.key for p in found if p.key not in self._added]))
        missing = [piece for piece in found if piece.key in absent]
        if missing and self.live is None:
            raise ValueError(self._complaint(missing, found, batch))
        if missing and self.live is not None:
            self._ask(self.live, missing, found, batch, items)
        stored = [p.key for p in found if p.key not in self._added]
        rows = dict(zip(stored, self._store.rows(stored), strict=True))
        return [self._added.get(p.key) or rows[p.key] for p in found]

    def _ask(
        self, live: Teacher, missing: Slices, found: Slices, batch: Batch, items: BatchItems
    ) -> None:
        """Run the live teacher on the missing examples, and keep its outputs."""
        wanted = sorted({piece.row for piece in missing})
        part, own = rows_of(batch, items, wanted, self.content.axis)
        signal = live(part, self.provides, own)
        place = {row: index for index, row in enumerate(wanted)}
        slices = [replace(p, row=place[p.row]) for p in found if p.row in place]
        self._added.update({row["key"]: row for row in self.content.encode(signal, slices, own)})

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Add the outputs of the live teacher to the cache."""
        self.save()

    def save(self) -> None:
        """Write the missing examples as a further shard of the cache."""
        if not self._added:
            return
        with alone_in(self.path):  # other processes and runs may add shards concurrently
            process, there = process_state(), read_records(self.path)
            index = self._facts["shards"] + process.process_index
            while index in there:
                index += process.num_processes
            rows = list(self._added.values())
            write_shard(self.path, index, rows, self.content.features, self._facts)
        self._added = {}
        self._store.refresh()

    def _refusal(self, found: Slices, error: ValueError) -> str:
        held = self._store.shards_of([p.key for p in found if p.key not in self._added])
        names = ", ".join(arrow_path("", index).name for index in held)
        return (
            f"Expected outputs as cache.json describes them in the cache {self.path}, got others "
            f"in {names or 'what the live teacher gave'}: {error} Somebody changed them and made "
            "the checksum anew. Do not use a cache from there; if it is yours, move these "
            "shards and their records (.json) away, and run the command that wrote it again."
        )

    def _complaint(self, missing: Slices, found: Slices, batch: Batch) -> str:
        first = missing[0]
        shown = next((n for n in sorted(batch) if n in self.inputs and n != "attention_mask"), "")
        begins = batch[shown][first.row].flatten()[:8].tolist() if shown else []
        who = f"row {first.row} of the batch, whose {shown} begins {begins}"
        if len(missing) < len(found):
            return (
                f"Expected {len(found)} examples of this batch in the cache {self.path}, got "
                f"{len(missing)} that are not there; the first is {who} (key {first.key.hex()}). "
                "Add the data to the cache (write_cache with all of them, in another folder), or "
                "give the teacher for those that are missing: CachedTeacher(path, live=…). If "
                "examples are augmented at random, record the views (hf_distill.teachers.cache."
                "record_views)."
            )
        return (
            f"Expected the examples of this batch in the cache {self.path}, got none of "
            f"{len(found)}; the first is {who} (key {first.key.hex()}). Either the cache is of "
            "other data or another preprocessing (tokenizer, length, image size, which tokens are "
            "labelled), or something changes the examples at random (augmentation, masking): "
            "outputs of other inputs would be wrong. Record the views (hf_distill.teachers.cache."
            "record_views), or use the live teacher."
        )

    @property
    def fingerprint(self) -> str:
        """Hash of the cache's contents."""
        return text_fingerprint([bindings(self._facts)])

    def columns(self) -> set[str]:
        return set(self.inputs).union(*(own.columns for own in self.own_inputs))

    def tokens(self) -> Mapping[str, int] | None:
        return self._tokens

    def place(self, accelerator: Accelerator) -> None:
        if self.live is not None:
            self.live.place(accelerator)

    def describe(self) -> dict[str, Any]:
        logits = self.content.to_json()["logits"]
        kept = {"logits": logits, "examples": len(self._store), "bytes": self._store.nbytes}
        return {**self._facts["describe"], "cache": kept}
