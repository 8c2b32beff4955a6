"""Configuration of a model with several heads."""

from __future__ import annotations

import copy
import keyword
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

KINDS = ("sequence_classification", "token_classification")
"""Tasks that a head can have."""
SINGLE = "single_label_classification"


class MultiHeadConfig(PreTrainedConfig):
    """Configuration of `MultiHead`: that of the encoder, and the settings of each head.

    Attributes:
        base_config: Configuration of the encoder.
        heads: Name -> ``{"task": …, "num_labels": …}``: the task (`KINDS`), and whatever the
            configuration of the plain model of this task has beside that of the encoder
            (``id2label``, ``problem_type``, ``classifier_dropout``). Without a problem type a
            classifier of examples with one label is a regression, another one has a single label.

    Raises:
        ValueError: no head, a name that cannot be one, a task that no head can have.
    """

    model_type = "multi_head"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "base_config": SubConfigSpec(config_class=AutoConfig, model_type="bert")
    }

    base_config: dict | PreTrainedConfig | None = None
    heads: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.base_config, dict):
            given = dict(self.base_config)
            self.base_config = AutoConfig.for_model(given.pop("model_type"), **given)
        elif self.base_config is None:
            self.base_config = AutoConfig.for_model("bert")  # transformers compares with a default
        self.heads = {name: _checked(name, head) for name, head in (self.heads or {}).items()}
        kwargs.setdefault("pad_token_id", getattr(self.base_config, "pad_token_id", None))
        super().__post_init__(**kwargs)

    def head_config(self, name: str) -> PreTrainedConfig:
        """Configuration of the plain model of one head.

        Raises:
            ValueError: there is no such head.
        """
        config: Any = copy.deepcopy(self.base_config)
        for key, value in self.settings(name).items():
            if key == "id2label":
                value = {int(index): label for index, label in value.items()}
            if key != "task":
                setattr(config, key, value)
        return config

    def settings(self, name: str) -> dict[str, Any]:
        """Settings of one head; ValueError: there is no such head."""
        heads: dict[str, dict[str, Any]] = self.heads or {}
        if name not in heads:
            raise ValueError(f"Expected one of the heads {list(heads)}, got {name!r}.")
        return heads[name]


def _checked(name: Any, head: Mapping[str, Any]) -> dict[str, Any]:
    usable = isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)
    if not usable or hasattr(nn.ModuleDict, name):
        raise ValueError(
            f"Expected the name of a head (letters, digits and '_', no method of a dict), got "
            f"{name!r}. Choose another, such as 'rating'."
        )
    settings = dict(head)
    if settings.get("task") not in KINDS:
        raise ValueError(
            f"Expected the task of the head {name!r} to be one of {list(KINDS)}, got "
            f"{settings.get('task')!r}. Name it: heads={{{name!r}: {{'task': {KINDS[0]!r}, "
            "'num_labels': 3}}."
        )
    if "id2label" in settings:
        names = {int(index): label for index, label in settings["id2label"].items()}
        settings["id2label"] = names
        settings.setdefault("label2id", {label: index for index, label in names.items()})
    count = len(settings["id2label"]) if "id2label" in settings else settings.get("num_labels")
    if not isinstance(count, int) or settings.get("num_labels", count) != count or count < 1:
        raise ValueError(
            f"Expected num_labels or id2label of the head {name!r}, which agree, got "
            f"{settings.get('num_labels')} and {settings.get('id2label')}. Give one of them."
        )
    settings["num_labels"] = count
    if settings["task"] == KINDS[0] and settings.get("problem_type") is None:
        settings["problem_type"] = "regression" if count == 1 else SINGLE
    return settings


AutoConfig.register(MultiHeadConfig.model_type, MultiHeadConfig)
