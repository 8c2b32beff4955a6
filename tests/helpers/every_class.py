"""A tiny model and a tiny batch for every class in transformers' auto mappings, by rules."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from tiny_batches import BATCHES, Batch, Maker
from tiny_configs import tiny
from tiny_sizes import LABELS, LAYERS, TOKENS
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_distill.models.tasks import TASKS, task_of

LARGEST = 30_000_000
"""Parameters of a model that still is tiny."""

Built = tuple[nn.Module, Batch]


@dataclass(frozen=True)
class Listed:
    """A class as the auto mappings list it.

    Attributes:
        name: The class.
        mapping: The task whose mapping names it (``encoder`` for `AutoModel` alone).
        model_type: The configuration's.
    """

    name: str
    mapping: str
    model_type: str


def listed() -> list[Listed]:
    """Every class that a row of the task table names, once, in the order of the table."""
    found: dict[str, Listed] = {}
    for task in TASKS.values():
        if not task.mapping and task.name != "encoder":
            continue
        name = f"MODEL_FOR_{task.mapping}_MAPPING_NAMES" if task.mapping else "MODEL_MAPPING_NAMES"
        for model_type, value in getattr(modeling_auto, name).items():
            for cls in [value] if isinstance(value, str) else value:
                found.setdefault(cls, Listed(cls, task.name, model_type))
    return list(found.values())


class NotBuiltError(Exception):
    """No tiny model can be made of a class, or it does not run; the message says why."""


def model_of(entry: Listed) -> Any:
    """A tiny model of a class, with seeded weights, on the CPU and in float32.

    Raises:
        NotBuiltError: a library is missing, or no rule makes a configuration that it takes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights without a number: sizes are tiny
        return _model_of(entry)


def _model_of(entry: Listed) -> Any:
    try:
        cls = getattr(transformers, entry.name)
        config = tiny(cls.config_class or CONFIG_MAPPING[entry.model_type])
        for path, value in BY_CLASS.get(entry.name, {}).items():
            *parts, field = path.split(".")
            setattr(functools.reduce(getattr, parts, config), field, value)
        _complete(config, entry)
        with torch.device("meta"):
            large = sum(p.numel() for p in cls(config).parameters())
        if large > LARGEST:
            raise NotBuiltError(f"not tiny: {large} parameters")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = cls(config)
        for module in model.modules():  # some classes have dropout that no field names
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
        return model
    except ImportError as error:
        raise NotBuiltError(f"needs a library: {_line(error)}") from None
    except NotBuiltError:
        raise
    except Exception as error:
        raise NotBuiltError(f"{type(error).__name__}: {_line(error)}") from None


def _complete(config: Any, entry: Listed) -> None:
    """What a class needs in its configuration, and does not have by default."""
    if "Classification" in entry.name or "SemanticSegmentation" in entry.name:
        config.num_labels = LABELS
    if config.is_encoder_decoder:
        text = config.get_text_config(decoder=True)
        known = getattr(text, "decoder_start_token_id", None)
        if known is None or not hasattr(config, "text_config"):
            config.decoder_start_token_id = TOKENS["decoder_start"]
        if known is None:
            text.decoder_start_token_id = TOKENS["decoder_start"]
    for part in ("encoder", "decoder"):
        if getattr(config, part, None) is not None:
            config.decoder_start_token_id, config.pad_token_id = (
                TOKENS["decoder_start"],
                TOKENS["pad"],
            )
    if hasattr(config, "ctc_loss_reduction"):
        config.ctc_loss_reduction = "sum"
    for name in ("image_token_id", "image_token_index"):
        if getattr(config, name, 0) is None:
            setattr(config, name, 20)
    for name in ("vision_start_token_id", "vision_end_token_id"):
        if "Omni" in entry.name and not hasattr(config, name):
            setattr(config, name, 30)


BY_CLASS: dict[str, dict[str, Any]] = {
    "Blip2ForImageTextRetrieval": {"qformer_config.use_qformer_text_input": True},
    "BltForCausalLM": {"num_hidden_layers": LAYERS},
    "BltModel": {"num_hidden_layers": LAYERS},
    "MoonshineStreamingForConditionalGeneration": {"num_key_value_heads": 2},
    "MoonshineStreamingModel": {"num_key_value_heads": 2},
    "Step3p7Model": {"text_config.sliding_window": 4},
    "Step3p7ForConditionalGeneration": {"text_config.sliding_window": 4},
    "ReformerModelWithLMHead": {"is_decoder": True},
}
"""Fields that only one of the classes of a configuration needs."""


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]


def build(entry: Listed) -> Built:
    """A tiny model and a batch that it runs on.

    Raises:
        NotBuiltError: with the reason.
    """
    model = model_of(entry).eval()
    pairs = task_of(model).name.endswith("dual_encoder")
    return model, BATCHES["dual_encoder" if pairs else entry.mapping](Maker(model))
