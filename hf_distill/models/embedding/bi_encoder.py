"""Bi-encoder: one text embedder for queries and candidates, trained by their similarities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers.utils import ModelOutput

from hf_distill.models.embedding.folders import is_embedder, load_embedder
from hf_distill.models.embedding.sentence import SentenceModel, finish_init
from hf_distill.models.embedding.static import StaticModel

IGNORE = -100


@dataclass
class BiEncoderOutput(ModelOutput):
    """Outputs of a bi-encoder.

    Attributes:
        loss: Cross-entropy of the right candidate among those of ``in_batch_logits``.
        logits: ``(B, C)``, similarities of each query with its own candidates.
        in_batch_logits: ``(B, B * C)``, with the candidates of all queries, its own first; of
            another query's candidate that equals one of its own the lowest number.
        query_embedding: ``(B, D)``.
        candidate_embedding: ``(B, C, D)``.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    in_batch_logits: Tensor | None = None
    query_embedding: Tensor | None = None
    candidate_embedding: Tensor | None = None


class BiEncoder(PreTrainedModel):
    """A text embedder that scores candidates for a query by ``scale`` times their dot product.

    The label loss is that of in-batch and given negatives (InfoNCE, arXiv 1807.03748; van den Oord
    et al.): a query's right candidate against its other ones and those of the other queries of the
    batch. Divergences from a teacher compare a query's own candidates (`ForwardKL` is the list-wise
    KL, `MarginMSE` arXiv 2010.02666). `save_pretrained` writes the folder of the embedder alone, a
    `SentenceTransformer`, whose ``config.json`` also has the two settings.

    Args:
        embedder: A `SentenceModel` or `StaticModel`; an encoder is pooled by the mean, and its
            embeddings are scaled to length 1.
        scale: Factor of the dot products: the inverse of a temperature.
        in_batch_negatives: Learn labels against the candidates of the other queries too.

    Raises:
        ValueError: a scale that is not above 0.
    """

    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self,
        embedder: PreTrainedModel,
        scale: float = 20.0,
        in_batch_negatives: bool = True,
    ):
        if not scale > 0:
            raise ValueError(f"Expected a scale above 0, got {scale}.")
        if not isinstance(embedder, SentenceModel | StaticModel):
            embedder = SentenceModel(embedder)
        super().__init__(embedder.config)
        self.embedder = embedder
        self.config.similarity_scale = float(scale)
        self.config.in_batch_negatives = bool(in_batch_negatives)
        finish_init(self, embedder)

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> BiEncoder:  # type: ignore[override]
        """Load a folder that this class, sentence-transformers or model2vec wrote, or an encoder.

        Args:
            name: Hub id or folder.
            kwargs: ``scale`` and ``in_batch_negatives``, default: those of the folder; others as
                `AutoModel.from_pretrained` takes them.
        """
        kwargs.pop("config", None)  # a resumed run's: the folder has the same
        names = ("scale", "in_batch_negatives")
        own: dict[str, Any] = {key: kwargs.pop(key) for key in names if key in kwargs}
        where = {key: kwargs[key] for key in ("revision", "token") if key in kwargs}
        load: Any = load_embedder if is_embedder(name, **where) else AutoModel.from_pretrained
        embedder = load(name, *args, **kwargs)
        settings: dict[str, Any] = {
            "scale": getattr(embedder.config, "similarity_scale", 20.0),
            "in_batch_negatives": getattr(embedder.config, "in_batch_negatives", True),
        }
        return cls(embedder, **(settings | own)).eval()

    @property
    def encoder(self) -> PreTrainedModel:
        """The encoder of the embedder.

        Raises:
            ValueError: a static embedder has none.
        """
        if not isinstance(self.embedder, SentenceModel):
            raise ValueError(f"Expected layers, got a {type(self.embedder).__name__} without any.")
        return self.embedder.encoder

    def with_encoder(self, encoder: PreTrainedModel) -> BiEncoder:
        """A bi-encoder of this kind around another encoder, see `SentenceModel.with_encoder`."""
        embedder = cast(SentenceModel, self.embedder).with_encoder(encoder)
        return type(self)(embedder, self.config.similarity_scale, self.config.in_batch_negatives)

    def get_input_embeddings(self) -> nn.Module:
        """The embedder's token embeddings."""
        found: nn.Module = self.embedder.get_input_embeddings()
        return found

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        candidate_input_ids: Tensor | None = None,
        candidate_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BiEncoderOutput:
        """Score candidates.

        Args:
            input_ids: ``(B, T)``, queries.
            attention_mask: ``(B, T)``, 0 for padding.
            candidate_input_ids: ``(B, C, T')``.
            candidate_attention_mask: ``(B, C, T')``.
            labels: ``(B,)``, places of the right candidates, -100 for none; default: the first.
            output_hidden_states: Has no effect: both embeddings are always returned.
            return_dict: Has no effect.

        Raises:
            ValueError: no candidates, or not a list for each query.
        """
        ids, mask = candidate_input_ids, candidate_attention_mask
        if ids is None or ids.dim() != 3 or len(ids) != len(input_ids):
            raise ValueError(
                f"Expected candidates of {len(input_ids)} queries, candidate_input_ids (B, C, T), "
                f"got {None if ids is None else tuple(ids.shape)}. Collate them with "
                "hf_distill.data.candidates.CandidateCollator(tokenizer)."
            )
        queries = self.embedder(input_ids=input_ids, attention_mask=attention_mask)
        flat = self.embedder(
            input_ids=ids.flatten(0, 1), attention_mask=None if mask is None else mask.flatten(0, 1)
        )
        query = queries.sentence_embedding
        candidates = flat.sentence_embedding.unflatten(0, ids.shape[:2])
        logits = self.config.similarity_scale * torch.einsum("bd,bcd->bc", query, candidates)
        everything = logits
        if self.config.in_batch_negatives and len(query) > 1:
            others = self.config.similarity_scale * other_candidates(query, candidates)
            _, text = torch.unique(ids.flatten(0, 1), dim=0, return_inverse=True)
            texts = text.view(ids.shape[:2])
            known = (_others(texts)[:, :, None] == texts[:, None]).any(-1)
            others = others.masked_fill(known, torch.finfo(others.dtype).min)
            everything = torch.cat([logits, others], 1)
        labels = logits.new_zeros(len(logits), dtype=torch.long) if labels is None else labels
        scores = everything.to(torch.promote_types(everything.dtype, torch.float32))
        return BiEncoderOutput(
            loss=F.cross_entropy(scores, labels, ignore_index=IGNORE),
            logits=logits,
            in_batch_logits=everything,
            query_embedding=query,
            candidate_embedding=candidates,
        )

    def encode(
        self, texts: Sequence[str], tokenizer: Any, batch_size: int = 32, **options: Any
    ) -> np.ndarray:
        """Embed texts, as the embedder does."""
        found: np.ndarray = self.embedder.encode(texts, tokenizer, batch_size, **options)
        return found

    def save_pretrained(  # type: ignore[override]  # of the arguments only these are read here
        self, save_directory: Any, is_main_process: bool = True, state_dict: Any = None, **rest: Any
    ) -> None:
        """Write the folder of the embedder, as `SentenceModel.save_pretrained`; a ``state_dict``
        has the names of this model."""
        inner = {n.removeprefix("embedder."): t for n, t in (state_dict or {}).items()} or None
        rest |= {"is_main_process": is_main_process, "state_dict": inner}
        self.embedder.save_pretrained(save_directory, **rest)


def other_candidates(query: Tensor, candidates: Tensor) -> Tensor:
    """``(B, (B - 1) * C)``, dot products of each query with the candidates of the next queries, in
    turn; of ``(B, D)`` and ``(B, C, D)``."""
    every = (query @ candidates.flatten(0, 1).T).view(len(query), *candidates.shape[:2])
    return every[_places(query)[:, :1], _places(query)[:, 1:]].flatten(1)


def _others(values: Tensor) -> Tensor:
    """``(B, C) -> (B, (B - 1) * C)``: the values of the next rows, in turn."""
    return values[_places(values)[:, 1:]].flatten(1)


def _places(values: Tensor) -> Tensor:
    """``(B, B)``: in each row the rows from this one on, in turn."""
    rows = torch.arange(len(values), device=values.device)
    return (rows[:, None] + rows) % len(values)
