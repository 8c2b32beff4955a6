"""Static embedders: the mean of one learned vector per token, without a network behind it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_distill.models.embedding.outputs import SentenceOutput
from hf_distill.models.embedding.parts import write_modules
from hf_distill.models.embedding.tokens import PlainTokenizer


class StaticConfig(PreTrainedConfig):
    """Settings of a static embedder.

    Attributes:
        vocab_size: Number of tokens V.
        hidden_size: Number of dimensions D of a vector.
        normalize: Scale each embedding to length 1.
        ignored_tokens: Ids of tokens that do not count: special and unknown ones.
        dense_size: Units of a hidden layer of the classifier; None: there is none.
        max_length: Number of tokens after which model2vec cuts a text; None: it does not.
    """

    model_type = "static_embedding"

    vocab_size: int = 30522
    hidden_size: int = 256
    normalize: bool = True
    ignored_tokens: list[int] | None = None
    dense_size: int | None = None
    max_length: int | None = None


class _StaticPreTrained(PreTrainedModel):
    config_class = StaticConfig
    base_model_prefix = "static"
    main_input_name = "input_ids"

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, StaticModel):
            init.normal_(module.embeddings)
            init.ones_(module.weights)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5)
            init.zeros_(module.bias)


class StaticModel(_StaticPreTrained):
    """A static text embedder: the weighted mean of the vectors of a text's tokens.

    For the ids ``t_1 … t_n`` of a text, without the ignored ones, the embedding is ``1/n Σ_i
    weights[t_i] · embeddings[t_i]``, scaled to length 1 if the config has ``normalize``, and 0 for
    a text without tokens. A student of this kind starts from its teacher's vectors of single tokens
    (`hf_distill.models.initialise.static_from_teacher`, after model2vec: Tulkens and van Dongen,
    2024, https://github.com/MinishLab/model2vec).

    `save_pretrained`, with a fast tokenizer saved into the same folder, makes a folder that
    transformers (after ``import hf_distill``), model2vec (0.10) and sentence-transformers (5.3 and
    later) load with equal embeddings; without ``normalize``, embeddings of texts with unknown or
    special tokens differ there by a factor.

    Attributes:
        embeddings: ``(V, D)``.
        weights: ``(V,)``.
    """

    config: StaticConfig

    def __init__(self, config: StaticConfig):
        super().__init__(config)
        self.embeddings = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.weights = nn.Parameter(torch.empty(config.vocab_size))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SentenceOutput:
        """Embed tokenised texts.

        Args:
            input_ids: ``(B, T)``.
            attention_mask: ``(B, T)``, 0 for padding; None: all tokens are real.
            output_hidden_states: Has no effect: there are no layers.
            return_dict: Has no effect.
        """
        counted = self._counted(input_ids)
        if attention_mask is not None:
            counted = counted & attention_mask.bool()
        kept = counted.to(self.weights.dtype)
        weights = self.weights[input_ids] * kept
        total = F.embedding_bag(input_ids, self.embeddings, per_sample_weights=weights, mode="sum")
        return SentenceOutput(sentence_embedding=self._scaled(total, kept.sum(1)))

    @torch.no_grad()
    def encode(self, texts: Sequence[str], tokenizer: Any, batch_size: int = 1024) -> np.ndarray:
        """Embed texts of any length, without padding.

        Args:
            texts: The texts.
            tokenizer: Its fast tokenizer; cuts and pads nothing here.
            batch_size: Number of texts at a time.

        Returns:
            ``(N, D)``, float32.
        """
        plain = PlainTokenizer(tokenizer)
        found = np.zeros((len(texts), self.config.hidden_size), dtype=np.float32)
        for start in range(0, len(texts), batch_size):
            ids, lengths = (
                torch.from_numpy(own).to(self.device)
                for own in plain(texts[start : start + batch_size])
            )
            kept = self._counted(ids).to(self.weights.dtype)
            total = F.embedding_bag(
                ids,
                self.embeddings,
                lengths.cumsum(0) - lengths,
                per_sample_weights=self.weights[ids] * kept,
                mode="sum",
            )
            rows = torch.arange(len(lengths), device=self.device).repeat_interleave(lengths)
            count = kept.new_zeros(len(lengths)).index_add(0, rows, kept)
            found[start : start + batch_size] = self._scaled(total, count).float().cpu().numpy()
        return found

    def _counted(self, ids: Tensor) -> Tensor:
        ignored = self.config.ignored_tokens or []
        return ~torch.isin(ids, torch.tensor(ignored, dtype=ids.dtype, device=ids.device))

    def _scaled(self, total: Tensor, count: Tensor) -> Tensor:
        mean = total / count.clamp(min=1)[:, None]
        return F.normalize(mean, dim=-1) if self.config.normalize else mean

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], **kwargs: Any
    ) -> None:
        """Write the model, and the list of modules that sentence-transformers reads."""
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            modules = [("StaticEmbedding", ""), ("Normalize", "1_Normalize")]
            write_modules(Path(save_directory), modules[: 1 + self.config.normalize])


class StaticForSequenceClassification(_StaticPreTrained):
    """A static classifier of texts: a linear layer, or two, on a static embedding.

    Loaded from the folder of a `StaticModel` it has the model's vectors and a new head.
    """

    config: StaticConfig

    def __init__(self, config: StaticConfig):
        super().__init__(config)
        self.num_labels = int(config.num_labels or 0)
        self.static = StaticModel(config)
        width = config.dense_size or config.hidden_size
        self.dense = nn.Linear(config.hidden_size, width) if config.dense_size else nn.Identity()
        self.classifier = nn.Linear(width, self.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Classify tokenised texts; arguments as in `StaticModel.forward`, ``labels`` as usual."""
        features = self.static(input_ids, attention_mask).sentence_embedding
        if self.config.dense_size:
            features = F.gelu(self.dense(features))
        logits = self.classifier(features)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)


AutoConfig.register(StaticConfig.model_type, StaticConfig)
AutoModel.register(StaticConfig, StaticModel)
AutoModelForSequenceClassification.register(StaticConfig, StaticForSequenceClassification)
