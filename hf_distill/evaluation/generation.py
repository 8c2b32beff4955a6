"""Generated samples of several models, and tasks of the lm-eval harness."""

import contextlib
import copy
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hf_distill.data.random_states import same_randomness
from hf_distill.hub.samples import CUT, NOTHING, Sample
from hf_distill.models.modes import evaluating
from hf_distill.models.sharding import is_sharded
from hf_distill.utils.suggest import did_you_mean

Prompt = str | Sequence[Mapping[str, str]]
"""A text, or messages (dicts of ``role`` and ``content``) for models with a chat template."""


def side_by_side_samples(
    models: Mapping[str, Any], tokenizer: Any, prompts: Sequence[Prompt], max_new_tokens: int = 40
) -> list[Sample]:
    """Greedy continuations of the same prompts by several generative models.

    Keep it with `hf_distill.hub.write_samples` in the student's folder, and its card shows it. The
    models' modes and all random states are as before.

    Args:
        models: Role (``teacher``, ``baseline``, ``student``) -> causal or encoder-decoder model.
        tokenizer: Of all models, or role -> tokenizer.
        prompts: With at least one token; of messages the last one's content is kept as the prompt.
        max_new_tokens: Length of a continuation; a text that it cuts ends with ``[…]``.

    >>> side_by_side_samples({"teacher": big, "student": small}, tokenizer, ["It was"])
    ... # doctest: +SKIP
    [Sample(prompt='It was', texts={'teacher': 'the best of times […]', 'student': 'a the […]'})]
    """
    if max_new_tokens < 1:
        raise ValueError(f"Expected at least 1 new token, got max_new_tokens={max_new_tokens}.")
    readers = tokenizer if isinstance(tokenizer, Mapping) else dict.fromkeys(models, tokenizer)
    if missing := models.keys() - readers.keys():
        raise ValueError(f"Expected a tokenizer for each model, got none for {sorted(missing)}.")
    return [
        Sample(
            prompt if isinstance(prompt, str) else str(prompt[-1]["content"]),
            {
                role: _written(model, readers[role], prompt, max_new_tokens, role)
                for role, model in models.items()
            },
        )
        for prompt in prompts
    ]


def _written(model: Any, tokenizer: Any, prompt: Prompt, new: int, role: str) -> str:
    if isinstance(prompt, str):
        inputs = tokenizer(prompt, return_tensors="pt")
    else:
        inputs = tokenizer.apply_chat_template(
            list(prompt), add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
    size = inputs["input_ids"].shape[-1]
    _check_room(model, size, new, prompt, role)
    settings = copy.deepcopy(model.generation_config)
    settings.update(
        **{"do_sample": False, "num_beams": 1, "max_new_tokens": new, "max_length": None},
        **dict.fromkeys(("temperature", "top_k", "top_p", "min_p", "typical_p")),
        **{"return_dict_in_generate": False, "num_return_sequences": 1},
    )
    ends = (
        settings.eos_token_id
        if isinstance(settings.eos_token_id, list)
        else [settings.eos_token_id]
    )
    if settings.pad_token_id is None:  # one row is never padded, but generate() requires it
        settings.pad_token_id = ends[0]
    given = {k: inputs[k].to(model.device) for k in ("input_ids", "attention_mask") if k in inputs}
    together = is_sharded(model)  # by itself transformers believes so wherever ZeRO-3 is on
    with torch.no_grad(), evaluating(model):
        (row,) = model.generate(**given, generation_config=settings, synced_gpus=together)
    written = row.tolist()[1 if model.config.is_encoder_decoder else size :]
    done = bool(written) and written[-1] in ends
    text = str(tokenizer.decode(written, skip_special_tokens=True)).strip()
    return (text or NOTHING) + ("" if done else CUT)


def _check_room(model: Any, size: int, new: int, prompt: Prompt, role: str) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    needed = size if model.config.is_encoder_decoder else size + new
    if size == 0:
        raise ValueError(
            f"Expected prompts of at least one token, got none of {prompt!r} for {role}. Begin it "
            "with a word, or with the tokenizer's bos_token."
        )
    if limit is not None and needed > limit:
        raise ValueError(
            f"Expected a prompt and {new} new tokens to fit into the {limit} positions of {role}, "
            f"got a prompt of {size} tokens. Shorten it, or lower max_new_tokens."
        )


def lm_eval(
    model: Any,
    tasks: Sequence[str],
    *,
    tokenizer: Any = None,
    batch_size: int = 8,
    num_fewshot: int | None = None,
    limit: int | None = None,
    device: str | None = None,
    chat: bool = False,
    tasks_folder: str | Path | None = None,
) -> dict[str, float]:
    """Tasks of EleutherAI's evaluation harness (``pip install lm-eval``), which it downloads.

    Random states and the model's mode are as before. The result may be added to a card:
    ``card.results["student"] |= lm_eval(...)``.

    Args:
        model: A causal or encoder-decoder model, or its folder or Hub id.
        tasks: Names, as ``lm-eval ls tasks`` lists them.
        tokenizer: Of a model that is given as an object.
        batch_size: Requests at a time.
        num_fewshot: Solved examples in front of each; None: the task's own number.
        limit: Use no more than these examples of each task: for a try, and no result.
        device: Of a model from a folder or the Hub; default: ``cpu``.
        chat: Put the requests into the tokenizer's chat template.
        tasks_folder: Further task files of your own, which may hold Python.

    Returns:
        ``{"hellaswag/acc_norm": 0.42, "gsm8k/exact_match,strict-match": 0.1}``, with the filter's
        name where the task has several, without standard errors. Empty on the other processes.

    Raises:
        ImportError: lm-eval is not installed.
        ValueError: no or unknown tasks, or a model without its tokenizer, or one that neither
            begins nor ends texts.
    """
    harness = _harness()
    options: dict[str, Any] = {"batch_size": batch_size}
    loaded = isinstance(model, str | Path)
    if loaded:
        options |= {"pretrained": str(model), "device": device or "cpu"}
    elif tokenizer is None:
        raise ValueError("Expected the tokenizer of a model that is no folder or Hub id, got None.")
    else:
        options |= {"pretrained": model, "device": str(model.device)}
    if tokenizer is not None:
        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise ValueError(
                "Expected a tokenizer with a bos_token or eos_token, which the harness puts in "
                "front of texts, got one with neither: set tokenizer.eos_token."
            )
        options["tokenizer"] = tokenizer
    folders = None if tasks_folder is None else [tasks_folder]
    manager = harness.tasks.TaskManager(include_path=folders)
    _check_tasks(tasks, manager)
    # The harness seeds the generators of Python, NumPy and torch for the whole process.
    with same_randomness(), contextlib.nullcontext() if loaded else evaluating(model):
        found = harness.simple_evaluate(
            model=harness.models.huggingface.HFLM(**options),
            tasks=list(tasks),
            num_fewshot=num_fewshot,
            limit=limit,
            apply_chat_template=chat,
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=0,
        )
    return {} if found is None else _flat({**found["results"], **found.get("groups", {})})


def _harness() -> Any:
    try:
        for part in ("tasks", "models.huggingface"):
            importlib.import_module(f"lm_eval.{part}")
        return importlib.import_module("lm_eval")
    except ImportError as error:
        raise ImportError(
            f"The evaluation harness is not there ({error}): pip install 'lm-eval[hf]>=0.4.13'. "
            "Perplexity, divergences and agreement need no harness: hf-distill eval MODEL "
            "--teacher TEACHER --data texts.txt."
        ) from error


def _check_tasks(tasks: Sequence[str], manager: Any) -> None:
    if isinstance(tasks, str) or not tasks:
        raise ValueError(f"Expected a list of names of tasks, got {tasks!r}.")
    for task in tasks:
        if task not in manager.task_index:
            meant = did_you_mean(task, manager.task_index)
            raise ValueError(f"lm-eval has no task {task!r}.{meant} `lm-eval ls tasks` lists all.")


def _flat(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {
        f"{task}/{name.removesuffix(',none')}": float(value)
        for task, metrics in results.items()
        for name, value in metrics.items()
        if isinstance(value, int | float) and "," in name and "_stderr," not in name
    }
