"""Text embedders of sentence-transformers: an encoder, pooling, dense layers, normalisation."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_distill.models.embedding.outputs import SentenceOutput
from hf_distill.models.embedding.parts import (
    POOLING_KEYS,
    Dense,
    read_parts,
    write_json,
    write_modules,
)
from hf_distill.models.pooling import POOLINGS, pooled


def finish_init(model: PreTrainedModel, part: nn.Module) -> None:
    """End the constructor of a model around others: their weights are kept, and the mode of
    ``part``."""
    for module in model.modules():
        # the mark by which `post_init` tells loaded weights from those to initialise
        module._is_hf_initialized = True  # type: ignore[assignment]
    model.post_init()
    model.train(part.training)


class SentenceModel(PreTrainedModel):
    """A text embedder as sentence-transformers has it: encoder, pooling, dense layers, length 1.

    `load_embedder` reads it from the folder of a `SentenceTransformer`; `save_pretrained` writes
    such a folder, in which ``config.json`` and ``model.safetensors`` are those of the encoder, so
    that `AutoModel` loads the encoder. Its task is ``encoder``: the group ``embedding`` is
    ``sentence_embedding``, the group ``hidden`` the encoder's layers.

    Args:
        encoder: A model with ``last_hidden_state``.
        pooling: Ways to pool (`hf_distill.models.pooling.pooled`); several are concatenated.
        dense: Layers behind the pooling.
        normalize: Scale each embedding to length 1.
        prompts: Texts to put in front of a text, by name.
        default_prompt: The name of the prompt that `encode` uses if none is named.
        include_prompt: Pool the tokens of the prompt too.
        max_length: Number of tokens after which a text is cut; None: the tokenizer's.

    Raises:
        ValueError: another way to pool, a default prompt that is not there.
    """

    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self,
        encoder: PreTrainedModel,
        pooling: Sequence[str] = ("mean",),
        dense: Sequence[Dense] = (),
        normalize: bool = True,
        *,
        prompts: Mapping[str, str] | None = None,
        default_prompt: str | None = None,
        include_prompt: bool = True,
        max_length: int | None = None,
    ):
        super().__init__(encoder.config)
        self.pooling = (pooling,) if isinstance(pooling, str) else tuple(pooling)
        self.prompts, self.default_prompt = dict(prompts or {}), default_prompt
        if not self.pooling or set(self.pooling) - set(POOLINGS):
            raise ValueError(f"Expected poolings of {list(POOLINGS)}, got {self.pooling}.")
        if default_prompt is not None and default_prompt not in self.prompts:
            raise ValueError(
                f"Expected a default prompt of {sorted(self.prompts)}, got {default_prompt!r}."
            )
        self.encoder, self.dense = encoder, nn.ModuleList(dense)
        self.normalize, self.include_prompt, self.max_length = normalize, include_prompt, max_length
        self._takes = frozenset(inspect.signature(encoder.forward).parameters)
        finish_init(self, encoder)

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> SentenceModel:  # type: ignore[override]
        """Load the folder of a `SentenceTransformer`, see `load_embedder`."""
        kwargs.pop("config", None)  # a resumed run's: the folder has the same
        return cls(**read_parts(name, *args, **kwargs)).eval()

    def with_encoder(self, encoder: PreTrainedModel) -> SentenceModel:
        """An embedder of this kind around another encoder, with copies of the dense layers.

        Raises:
            ValueError: an encoder of another width behind which dense layers do not fit.
        """
        sizes = [one.config.get_text_config().hidden_size for one in (self, encoder)]
        if len(self.dense) and sizes[0] != sizes[1]:
            raise ValueError(
                f"Expected an encoder of width {sizes[0]}, which the dense layers read, got "
                f"{sizes[1]}. Keep the width (hidden_size=None)."
            )
        return type(self)(
            encoder,
            self.pooling,
            [*copy.deepcopy(self.dense)],
            self.normalize,
            prompts=self.prompts,
            default_prompt=self.default_prompt,
            include_prompt=self.include_prompt,
            max_length=self.max_length,
        )

    @property
    def width(self) -> int:
        """Number of dimensions of the embeddings."""
        if len(self.dense):
            return int(cast(Any, self.dense[-1]).linear.out_features)
        return int(self.config.get_text_config().hidden_size) * len(self.pooling)

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's token embeddings."""
        return self.encoder.get_input_embeddings()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pooling_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> SentenceOutput:
        """Embed tokenised texts.

        Args:
            input_ids: ``(B, T)``.
            attention_mask: ``(B, T)``, 0 for padding; None: all tokens are real.
            token_type_ids: ``(B, T)``; not passed to an encoder without, like the other inputs.
            position_ids: ``(B, T)``.
            inputs_embeds: ``(B, T, H)`` in place of the ids.
            pooling_mask: ``(B, T)``, 0 for tokens that are not pooled; None: as attention_mask.
            output_hidden_states: Return the outputs of all layers.
            output_attentions: Return the attention maps.
            return_dict: Has no effect.
        """
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        own = {k: v for k, v in inputs.items() if v is not None and k in self._takes}
        switches = {
            "output_hidden_states": output_hidden_states,
            "output_attentions": output_attentions,
        }
        own |= {name: True for name, wanted in switches.items() if wanted}
        outputs = self.encoder(**own, return_dict=True)
        states = outputs.last_hidden_state
        mask = attention_mask if pooling_mask is None else pooling_mask
        found = torch.cat([pooled(states, mask, how) for how in self.pooling], -1)
        for layer in self.dense:
            found = layer(found)
        return SentenceOutput(
            sentence_embedding=F.normalize(found, dim=-1) if self.normalize else found,
            last_hidden_state=states,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    @torch.no_grad()
    def encode(
        self,
        texts: Sequence[str],
        tokenizer: Any,
        batch_size: int = 32,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> np.ndarray:
        """Embed texts, longest first.

        Args:
            texts: The texts.
            tokenizer: The model's tokenizer.
            batch_size: Number of texts at a time.
            prompt: Text to put in front of each.
            prompt_name: The name of one of ``prompts`` instead; default: ``default_prompt``.

        Returns:
            ``(N, D)``, float32.

        Raises:
            ValueError: an unknown name of a prompt.
        """
        prompt = self._prompt(prompt, prompt_name)
        found = np.zeros((len(texts), self.width), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        training = self.training
        self.eval()
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = self.tokenize([texts[i] for i in rows], tokenizer, prompt).to(self.device)
            known = set(inspect.signature(self.forward).parameters)
            outputs = self(**{name: value for name, value in batch.items() if name in known})
            found[rows] = outputs.sentence_embedding.float().cpu().numpy()
        self.train(training)
        return found

    def tokenize(self, texts: Sequence[str], tokenizer: Any, prompt: str | None = None) -> Any:
        """Inputs of the model for texts, padded, with a ``pooling_mask`` where the prompt is not
        pooled."""
        cut = {"truncation": True, "max_length": self.max_length or longest(tokenizer, self.config)}
        whole = [f"{prompt or ''}{text}" for text in texts]
        batch = tokenizer(whole, padding=True, return_tensors="pt", **cut)
        if prompt and not self.include_prompt:
            mask = batch["attention_mask"]
            ids = tokenizer([prompt], **cut)["input_ids"][0]
            size = len(ids) - (len(ids) > 0 and ids[-1] in _closing(tokenizer))
            place = mask.cumsum(1) - 1
            batch["pooling_mask"] = mask * (place >= size)
        return batch

    def _prompt(self, prompt: str | None, name: str | None) -> str | None:
        name = self.default_prompt if name is None else name
        if prompt is not None or name is None:
            return prompt
        if name not in self.prompts:
            raise ValueError(f"Expected a prompt of {sorted(self.prompts)}, got {name!r}.")
        return self.prompts[name]

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the folder of a `SentenceTransformer`; save the tokenizer into the same folder.

        Args:
            save_directory: The folder.
            is_main_process: False on processes that write nothing.
            state_dict: Weights to write in place of the model's own, by this model's names.
            kwargs: As `PreTrainedModel.save_pretrained` takes them.
        """
        folder, state = Path(save_directory), dict(state_dict or {})
        encoder = {n.removeprefix("encoder."): t for n, t in state.items() if n[:8] == "encoder."}
        self.encoder.save_pretrained(
            folder, is_main_process=is_main_process, state_dict=encoder or None, **kwargs
        )
        if not is_main_process:
            return
        modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
        pooling = {**self._pooling_settings(), "include_prompt": self.include_prompt}
        write_json(folder / "1_Pooling" / "config.json", pooling)
        write_json(
            folder / "sentence_bert_config.json",
            {"max_seq_length": self.max_length, "do_lower_case": False},
        )
        for number, layer in enumerate(self.dense, len(modules)):
            modules.append(("Dense", f"{number}_Dense"))
            write_json(folder / modules[-1][1] / "config.json", cast(Dense, layer).settings())
            prefix = f"dense.{number - 2}."
            own = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
            weights = {n: t.detach().contiguous() for n, t in (own or layer.state_dict()).items()}
            save_file(weights, folder / modules[-1][1] / "model.safetensors")
        if self.normalize:
            modules.append(("Normalize", f"{len(modules)}_Normalize"))
        write_modules(folder, modules, self.prompts, self.default_prompt)

    def _pooling_settings(self) -> dict[str, Any]:
        """In the older keys, which all releases read, unless several are in an order of their
        own."""
        width = int(self.config.get_text_config().hidden_size)
        names = [
            name for how in self.pooling for name, (own, _) in POOLING_KEYS.items() if own == how
        ]
        if names == [name for name in POOLING_KEYS if name in names]:
            keys = {key: own in self.pooling for own, key in POOLING_KEYS.values()}
            return {"word_embedding_dimension": width, **keys}
        return {"embedding_dimension": width, "pooling_mode": names}


def longest(tokenizer: Any, config: Any) -> int:
    """Number of tokens to which texts are cut: the smaller limit of tokenizer and model."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min(int(tokenizer.model_max_length), limit or 2**20)


def _closing(tokenizer: Any) -> set[int | None]:
    return {tokenizer.sep_token_id, tokenizer.eos_token_id} - {None}
