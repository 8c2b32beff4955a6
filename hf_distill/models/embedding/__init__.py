"""Text embedders: static ones and those of sentence-transformers, as models of transformers."""

from hf_distill.models.embedding.bi_encoder import BiEncoder
from hf_distill.models.embedding.folders import is_embedder, load_embedder, own_class
from hf_distill.models.embedding.outputs import SentenceOutput
from hf_distill.models.embedding.parts import Dense
from hf_distill.models.embedding.sentence import SentenceModel
from hf_distill.models.embedding.static import (
    StaticConfig,
    StaticForSequenceClassification,
    StaticModel,
)

__all__ = [
    "BiEncoder",
    "Dense",
    "SentenceModel",
    "SentenceOutput",
    "StaticConfig",
    "StaticForSequenceClassification",
    "StaticModel",
    "is_embedder",
    "load_embedder",
    "own_class",
]
