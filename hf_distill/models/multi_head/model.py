"""An encoder with several named heads."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from hf_distill.models.multi_head.config import KINDS, MultiHeadConfig

AUTO = dict(
    zip(KINDS, (AutoModelForSequenceClassification, AutoModelForTokenClassification), strict=True)
)
"""Task of a head -> the auto class of its plain model."""
NOT_OF_HEADS = ("loss", "logits", "past_key_values")


class SharedEncoder:
    """The encoder as the heads call it: it runs once for all that pass it the same inputs.

    It is no module, so that the encoder's weights are in no head's.
    """

    def __init__(self, encoder: nn.Module):
        self.encoder = encoder
        self._names = list(inspect.signature(encoder.forward).parameters)
        self._calls: list[tuple[dict[str, Any], Any]] | None = None

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        named = {**dict(zip(self._names, args, strict=False)), **inputs}
        named = {name: value for name, value in named.items() if value is not None}
        for given, outputs in self._calls or ():
            if given.keys() == named.keys() and all(_same(given[n], named[n]) for n in given):
                return outputs
        outputs = self.encoder(*args, **inputs)
        if self._calls is not None:
            self._calls.append((named, outputs))
        return outputs

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "encoder" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["encoder"], name)

    @contextlib.contextmanager
    def remembered(self) -> Iterator[None]:
        """Keep the outputs of each call until the end."""
        before, self._calls = self._calls, []
        try:
            yield
        finally:
            self._calls = before


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    return bool(one is other or one == other)


class MultiHead(PreTrainedModel):
    """One encoder with several named heads, each a classifier of examples or of tokens.

    Each head is the plain `transformers` model of its task without its encoder: its modules and its
    forward are those of that class. ``model.heads[name]`` can be called like that model; its
    encoder is the shared one. Outputs are ``<name>_logits`` of each head, and hidden states and
    attention maps of the encoder on request. `export_head` makes a plain model.

    Raises:
        ValueError: no head, or an architecture without a plain model of one of the tasks.
    """

    config_class = MultiHeadConfig
    base_model_prefix = "base"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MultiHeadConfig):
        super().__init__(config)
        if not config.heads:
            raise ValueError(
                "Expected at least one head, got none. Give MultiHeadConfig(heads={'rating': "
                "{'task': 'sequence_classification', 'num_labels': 5}})."
            )
        plain = {name: _plain(config, name) for name in config.heads}
        encoders = [model.base_model for model in plain.values()]
        self.base = max(encoders, key=lambda encoder: len(list(encoder.parameters())))
        shared = SharedEncoder(self.base)
        self.heads = nn.ModuleDict({n: _without_encoder(m, shared) for n, m in plain.items()})
        self.__dict__["shared"] = shared
        self.post_init()

    def forward(
        self,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> ModelOutput:
        """Run the encoder once, and every head on its outputs.

        Args:
            output_hidden_states: Return the encoder's hidden states.
            output_attentions: Return the encoder's attention maps.
            return_dict: Has no effect.
            inputs: Those of the plain models, without labels.
        """
        asked = {
            "output_hidden_states": output_hidden_states,
            "output_attentions": output_attentions,
        }
        inputs |= {name: value for name, value in asked.items() if value is not None}
        found: dict[str, Any] = {}
        logits: dict[str, Any] = {}
        shared: Any = self.shared
        with shared.remembered():
            for name, head in self.heads.items():
                outputs = head(**inputs, return_dict=True)
                found = found or {k: v for k, v in outputs.items() if k not in NOT_OF_HEADS}
                logits[f"{name}_logits"] = outputs.logits
        return ModelOutput({**logits, **found})

    # ---- from models, and back ---------------------------------------------------------------

    @classmethod
    def from_base(
        cls,
        base: str | Path | PreTrainedModel,
        heads: Mapping[str, Mapping[str, Any]],
        **kwargs: Any,
    ) -> MultiHead:
        """Put new heads on an encoder.

        Args:
            base: A model, of which the encoder is copied, or its Hub id or folder.
            heads: The settings of the heads, see `MultiHeadConfig`.
            kwargs: Of `AutoModel.from_pretrained`.
        """
        loaded = (
            base if isinstance(base, PreTrainedModel) else AutoModel.from_pretrained(base, **kwargs)
        )
        encoder = loaded.base_model
        model = cls(MultiHeadConfig(base_config=_dict_of(encoder.config), heads=dict(heads)))
        _load(model.base, encoder.state_dict(), "the encoder")
        move: Any = model.to
        moved: MultiHead = move(dtype=encoder.dtype, device=encoder.device)
        return moved.train(loaded.training)

    @classmethod
    def from_heads(
        cls, models: Mapping[str, PreTrainedModel], base: PreTrainedModel | None = None
    ) -> MultiHead:
        """Put the heads of several fine-tuned models on one encoder.

        Args:
            models: Plain models by name, all of one architecture and width.
            base: The model whose encoder it gets; default: the first.

        Raises:
            ValueError: models of several architectures, or of a task that no head can have.
        """
        first = next(iter(models.values())) if base is None else base
        heads: dict[str, dict[str, Any]] = {}
        for name, model in models.items():
            kinds = [kind for kind, auto in AUTO.items() if type(model) in _classes(auto)]
            if not kinds or model.config.model_type != first.config.model_type:
                raise ValueError(
                    f"Expected models of one architecture ({first.config.model_type}), each with "
                    f"one of the tasks {list(KINDS)}, got {type(model).__name__} for {name!r}. "
                    "Fine-tune all of them from one encoder."
                )
            own = model.config.to_diff_dict()
            shared = first.config.to_diff_dict()
            differ = {k: v for k, v in own.items() if k not in NOT_SETTINGS and shared.get(k) != v}
            named = {"id2label": model.config.id2label, "problem_type": model.config.problem_type}
            heads[name] = {"task": kinds[0], **differ, **named}
            heads[name] = {k: v for k, v in heads[name].items() if v is not None}
        built = cls.from_base(first, heads)
        for name, model in models.items():
            prefix = f"{model.base_model_prefix}."
            state = {k: v for k, v in model.state_dict().items() if not k.startswith(prefix)}
            _load(built.heads[name], state, f"the head {name!r}")
        return built

    def export_head(self, name: str) -> PreTrainedModel:
        """A plain model of `transformers` with a copy of the encoder and of one head.

        Its outputs are those of this model's head; it needs none of this library.

        Raises:
            ValueError: there is no such head.
        """
        self._keep_settings()
        config: Any = self.config
        plain = _plain(config, name)
        prefix = plain.base_model_prefix
        state = {f"{prefix}.{key}": value for key, value in self.base.state_dict().items()}
        state |= self.heads[name].state_dict()
        own = plain.state_dict()
        move: Any = plain.to
        move(dtype=self.dtype, device=self.device)
        _load(
            plain, {key: value for key, value in state.items() if key in own}, f"the head {name!r}"
        )
        return plain.eval()

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As `PreTrainedModel.save_pretrained`."""
        self._keep_settings()
        super().save_pretrained(save_directory, *args, **kwargs)

    def _keep_settings(self) -> None:
        """Take over what training has settled in the heads' own configurations."""
        for name, head in self.heads.items():
            settings = self.config.settings(name)
            for key in ("problem_type", "pad_token_id"):
                value = getattr(head.config, key, None)
                if value is not None and value != getattr(self.config.base_config, key, None):
                    settings[key] = value


NOT_SETTINGS = (
    *("architectures", "id2label", "label2id", "num_labels", "problem_type", "model_type", "dtype"),
    *("transformers_version", "_name_or_path", "torch_dtype"),
)
"""Fields of a configuration that are no settings of a head."""
NOT_SHARED = ("architectures", "id2label", "label2id", "problem_type", "_name_or_path")


def _classes(auto: Any) -> list[type]:
    """The classes of models that an auto class loads."""
    return list(auto._model_mapping.values())


def _dict_of(config: Any) -> dict[str, Any]:
    """Configuration of an encoder without what belongs to a head."""
    return {k: v for k, v in config.to_dict().items() if k not in NOT_SHARED}


def _plain(config: MultiHeadConfig, name: str) -> PreTrainedModel:
    """The plain model of one head, with new weights."""
    own, task = config.head_config(name), config.settings(name)["task"]
    known: Any = AUTO[task]._model_mapping
    if type(own) not in known:
        raise ValueError(
            f"Expected an encoder with a model for {task}, got {own.model_type!r}, for which "
            f"transformers has none. Choose another encoder for the head {name!r}."
        )
    base: Any = config.base_config
    own._attn_implementation = base._attn_implementation
    model: PreTrainedModel = AUTO[task].from_config(own)
    if model.base_model is model or model.config.is_encoder_decoder:
        raise ValueError(
            f"Expected a model for {task} around one encoder, got {type(model).__name__}, which is "
            f"built otherwise. Choose another encoder for the head {name!r}."
        )
    own.architectures = [type(model).__name__]
    return model


def _without_encoder(model: PreTrainedModel, shared: SharedEncoder) -> PreTrainedModel:
    """The modules of a head; its forward calls the shared encoder."""
    prefix = model.base_model_prefix
    del model._modules[prefix]
    model.__dict__[prefix] = shared
    model._tied_weights_keys = {}
    model.all_tied_weights_keys = {}
    return model


def _load(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load weights, of which a pooler may be left out."""
    result = module.load_state_dict(copy.copy(dict(state)), strict=False)
    missing = [key for key in result.missing_keys if "pooler" not in key]
    surplus = [key for key in result.unexpected_keys if "pooler" not in key]
    if missing or surplus:
        raise ValueError(
            f"Expected the weights of {what} to fit, got {missing[:4]} missing and {surplus[:4]} "
            "left over. Build it from models of one architecture and configuration."
        )


AutoModel.register(MultiHeadConfig, MultiHead)
