"""A data set of completions that a teacher wrote once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xxhash
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from torch import nn
from transformers import AutoModelForCausalLM

from hf_distill.models.batches import IGNORE
from hf_distill.models.task_model import TaskModel
from hf_distill.teachers import ModelTeacher
from hf_distill.teachers.cache import manifest
from hf_distill.teachers.cache.checked_json import read_sealed, replacing, write_sealed
from hf_distill.teachers.cache.keys import text_fingerprint
from hf_distill.teachers.cache.shards import remove_stale
from hf_distill.training.on_policy.generating import ModelGenerator, Sampling, Tokens
from hf_distill.training.on_policy.prompts import Prompts, longest_prompt, start_token
from hf_distill.utils.processes import process_state

SETTINGS = "settings.json"
FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})


def generate_dataset(
    teacher_model: str | Path | nn.Module | ModelTeacher,
    dataset: Dataset,
    tokenizer: Any,
    folder: str | Path,
    *,
    sampling: Sampling | None = None,
    prompt_length: int | None = None,
    batch_size: int = 8,
    shard_size: int = 256,
    seed: int = 0,
) -> Dataset:
    """Complete every prompt with a teacher, once, and keep that as a data set.

    It is written shard by shard; an interrupted run continues after its last whole shard and gives
    the same texts. Several processes share the work.

    Args:
        teacher_model: A model (or its name or folder: a causal language model).
        dataset: Rows of ``input_ids`` and, where they have them, ``labels``, -100 on the prompt.
        tokenizer: Its tokenizer; None: the end tokens are those of the model's generation config.
        folder: Folder of the data set.
        sampling: Sampling of completions.
        prompt_length: As in `OnPolicyConfig`.
        batch_size: Prompts per call of ``generate``.
        shard_size: Rows per shard.
        seed: Seed of the sampling.

    Returns:
        Rows of ``input_ids`` and ``labels``, in the order of the prompts.

    Raises:
        ValueError: the folder holds another data set; the data has no length or no ``input_ids``.
    """
    if batch_size < 1 or shard_size < 1:
        raise ValueError(
            f"Expected a batch_size and shard_size of at least 1, got {batch_size}, {shard_size}."
        )
    check_rows(dataset)
    teacher = _teacher(teacher_model)
    settings = Sampling() if sampling is None else sampling
    generator = ModelGenerator(teacher.model, settings, tokenizer, batch_size)
    longest = longest_prompt(settings.max_completion_length, [teacher.config])
    start = start_token(tokenizer, teacher.config)
    prompts = Prompts(teacher.task_model, prompt_length, longest, start)
    facts = {
        "teacher": manifest.teacher_fingerprint(teacher),
        "tokenizer": manifest.preprocessing_fingerprint(tokenizer),
        "prompts": _fingerprint(prompts, dataset),
        "sampling": {**vars(settings), "others": dict(settings.others)},
        "seed": seed,
        "batch_size": batch_size,  # what is drawn together shares a random state
        "shard_size": shard_size,
    }
    root, state = Path(folder), process_state()
    if state.is_main_process:
        _begin(root, facts)
    state.wait_for_everyone()
    shards = range(-(-len(dataset) // shard_size))
    of = text_fingerprint([json.dumps(facts, sort_keys=True)])
    there = {shard for shard in shards if _path(root, shard).exists()}
    _refuse_foreign(root, sorted(there), of)
    for shard in shards[state.process_index :: state.num_processes]:
        if shard not in there:
            rows = range(shard * shard_size, min(len(dataset), (shard + 1) * shard_size))
            asked = list(_prompts(prompts, dataset, rows))
            _write(_path(root, shard), asked, generator, seed, f"{of}-{shard}")
    state.wait_for_everyone()
    return concatenate_datasets([Dataset.from_file(str(_path(root, shard))) for shard in shards])


def check_rows(dataset: Any) -> None:
    """Raise ValueError unless these are rows of tokens that can be read by their number."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__") or not len(dataset):
        raise ValueError(
            f"Expected prompts with a length, read by their number, got {type(dataset).__name__}. "
            "Load the data without streaming, or take a part of it: "
            "Dataset.from_list(list(stream.take(10_000)))."
        )
    if "input_ids" not in dataset[0]:
        raise ValueError(
            f"Expected tokenised rows with `input_ids`, got {sorted(dataset[0])}. Tokenise them "
            "first (hf_distill.tokenize)."
        )


def _teacher(given: Any) -> ModelTeacher:
    if isinstance(given, (str, Path)):
        given = AutoModelForCausalLM.from_pretrained(str(given))
    if isinstance(given, nn.Module):
        given = ModelTeacher(given)
    if not isinstance(given, ModelTeacher):
        raise ValueError(
            f"Expected a model that generates, got {type(given).__name__}. Give the model itself, "
            "its name or its folder."
        )
    if given.task_model.task.name not in ("causal_lm", "seq2seq_lm"):
        raise ValueError(
            f"Expected a language model, got a model for {given.task_model.task.name}."
        )
    state = process_state()
    if next(given.model.parameters()).device.type != state.device.type:
        given.model.to(state.device)
    return given


def _prompts(prompts: Prompts, dataset: Any, rows: range) -> Iterator[Tokens]:
    for index in rows:
        row = dataset[index]
        names = ("input_ids", "attention_mask", "labels", "position_ids")
        batch = {n: torch.as_tensor(row[n])[None] for n in names if row.get(n) is not None}
        yield from prompts.of(batch)


def _fingerprint(prompts: Prompts, dataset: Any) -> str:
    digest = xxhash.xxh3_128()
    for prompt in _prompts(prompts, dataset, range(len(dataset))):
        digest.update(np.asarray([len(prompt), *prompt], dtype=np.int64).tobytes())
    return digest.hexdigest()


def _begin(folder: Path, facts: dict[str, Any]) -> None:
    path = folder / SETTINGS
    remove_stale(folder)
    if not path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(
                f"Expected an empty folder or a data set begun before, got {folder}, which holds "
                "other files. Choose another folder."
            )
        write_sealed(path, facts)
        return
    held = read_sealed(path)
    differing = sorted(name for name in facts if held.get(name) != facts[name])
    if differing:
        shown = "; ".join(f"{n}: {held.get(n)} there, {facts[n]} here" for n in differing)
        raise ValueError(
            f"The texts in {folder} are of something else: {shown}. Use what they were made with, "
            "or another folder (or delete this one)."
        )


def _refuse_foreign(folder: Path, shards: Sequence[int], of: str) -> None:
    """Raise ValueError for shards that were written for another data set, or other rows of it."""
    for shard in shards:
        path = _path(folder, shard)
        try:
            with pa.ipc.open_stream(pa.memory_map(str(path))) as reader:
                notes = json.loads((reader.schema.metadata or {}).get(b"huggingface", b"{}"))
        except (OSError, ValueError, pa.ArrowException):
            notes = {}
        if notes.get("fingerprint") != f"{of}-{shard}":
            raise ValueError(
                f"Expected texts of this teacher, prompts and settings in {path}, got those of "
                "others, of an earlier version, or a damaged file. Move it away, and run the same "
                "command again: it makes these texts anew."
            )


def _path(folder: Path, shard: int) -> Path:
    return folder / "data" / f"shard-{shard:05d}.arrow"


def _write(
    path: Path, prompts: list[Tokens], generator: ModelGenerator, seed: int, fingerprint: str
) -> None:
    number = int(path.stem.rpartition("-")[2])
    own_seed = int(np.random.default_rng((seed, number)).integers(2**63))
    completions = generator(prompts, own_seed)
    decoder_only = not TaskModel(generator.model).config.is_encoder_decoder
    with replacing(path) as file:
        writer = ArrowWriter(features=FEATURES, stream=file, fingerprint=fingerprint)
        for prompt, labels in zip(prompts, completions, strict=True):
            if decoder_only:
                prompt, labels = prompt + labels, [IGNORE] * len(prompt) + labels
            writer.write({"input_ids": prompt, "labels": labels})
        writer.finalize(close_stream=False)
