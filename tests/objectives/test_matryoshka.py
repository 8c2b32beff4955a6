"""Objectives on the first dimensions of embeddings: plain loops, sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import DataCollatorWithPadding
from two_tokenizers import OTHERS, PIECES, TEXTS, bert, made, tokenized

from hf_distill import ForwardKL, HardLabels, HiddenStates, InBatchSimilarity, Matryoshka
from hf_distill.data.candidates import CandidateCollator
from hf_distill.models.embedding import BiEncoder, SentenceModel

COLLATE = CandidateCollator(PIECES)


def embeddings(model: Any, texts: list[str]) -> Tensor:
    return torch.from_numpy(SentenceModel(model, normalize=False).double().encode(texts, PIECES))


def neighbours(vectors: Tensor) -> Tensor:
    """Log-probabilities of the others, by cosine."""
    unit = F.normalize(vectors.double(), dim=-1)
    cosines = (unit @ unit.T / 0.2).fill_diagonal_(-torch.inf)
    return cosines.log_softmax(-1)


def test_relations_of_a_whole_teacher(tmp_path: Path) -> None:
    """Other dimensions than the first, or a teacher cut as well, would be another method."""
    student, teacher = bert("Model", 1), bert("Model", 2)
    width = student.config.hidden_size
    objective = Matryoshka(
        InBatchSimilarity(temperature=0.2, groups=("embedding",)), (4, width), (1.0, 0.5)
    )
    ours = made(
        tmp_path,
        student,
        teacher,
        tokenized().remove_columns("labels"),
        objective=1.0 * objective,
        data_collator=DataCollatorWithPadding(PIECES),
        processing_class=PIECES,
        per_device_eval_batch_size=6,
    )
    found = ours.evaluate()
    s, log_t = embeddings(student, TEXTS), neighbours(embeddings(teacher, TEXTS))
    total = 0.0
    for dim, weight in ((4, 1.0), (width, 0.5)):
        log_s = neighbours(s[:, :dim])
        pairs = (log_t.exp() * (log_t - log_s)).nan_to_num(0.0)  # an example is not its own
        expected = float(pairs.sum(-1).mean())
        key = f"eval_in_batch_similarity_matryoshka_{dim}"
        assert found[key] == pytest.approx(expected, rel=1e-5)  # `encode` gives float32
        total += weight * expected
    assert found["eval_loss"] == pytest.approx(total, rel=1e-5)


def test_a_projection_for_each_number(tmp_path: Path) -> None:
    """One projection for all numbers has no width that fits."""
    ours = made(
        tmp_path,
        bert("Model", 1),
        bert("Model", 2),
        tokenized().remove_columns("labels"),
        objective=1.0 * Matryoshka(HiddenStates(groups=("embedding",)), (2, 4)),
        data_collator=DataCollatorWithPadding(PIECES),
        processing_class=PIECES,
    )
    linear = [m for m in ours.projections.modules() if isinstance(m, torch.nn.Linear)]
    assert [m.in_features for m in linear] == [2, 4]
    ours.train()


def rows() -> Dataset:
    lists = [[OTHERS[i], f"{TEXTS[i]} {OTHERS[i]}"] for i in range(6)]
    return Dataset.from_dict(
        {
            "input_ids": [PIECES(text)["input_ids"] for text in TEXTS],
            "candidate_input_ids": [PIECES(each)["input_ids"] for each in lists],
        }
    )


def bi_encoder(seed: int) -> BiEncoder:
    return BiEncoder(SentenceModel(bert("Model", seed)))


def test_labels_and_scores_of_a_bi_encoder(tmp_path: Path) -> None:
    """Logits of the whole embeddings under a shorter one's name would train nothing shorter."""
    objective = Matryoshka(HardLabels(), (4,)) + Matryoshka(ForwardKL(), (4,))
    ours = made(
        tmp_path,
        bi_encoder(1),
        bi_encoder(2),
        rows(),
        objective=objective,
        data_collator=COLLATE,
        processing_class=PIECES,
        per_device_eval_batch_size=6,
    )
    found = ours.evaluate()
    batch = COLLATE([dict(row) for row in rows()])
    with torch.no_grad():
        s, t = bi_encoder(1)(**batch), bi_encoder(2)(**batch)
    query, candidates = (
        F.normalize(x[..., :4], dim=-1) for x in (s.query_embedding, s.candidate_embedding)
    )
    every = 20.0 * query @ candidates.flatten(0, 1).T
    expected = F.cross_entropy(every, torch.arange(6) * 2)
    assert found["eval_hard_labels_matryoshka_4"] == pytest.approx(float(expected), rel=1e-9)
    own = 20.0 * torch.einsum("bd,bcd->bc", query, candidates)
    log_s, log_t = own.log_softmax(-1), t.logits.log_softmax(-1)
    kl = (log_t.exp() * (log_t - log_s)).sum(-1).mean()
    assert found["eval_forward_kl_matryoshka_4"] == pytest.approx(float(kl), rel=1e-9)


@pytest.mark.slow
def test_the_loss_is_that_of_sentence_transformers(tmp_path: Path) -> None:
    """Embedders that are trained here and there must be cut alike."""
    package = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import losses

    student = bi_encoder(1).float().eval()
    student.save_pretrained(tmp_path / "student")
    PIECES.save_pretrained(tmp_path / "student")
    theirs = package.SentenceTransformer(str(tmp_path / "student"), device="cpu").eval()
    inner = losses.MultipleNegativesRankingLoss(theirs, scale=20.0)
    loss = losses.MatryoshkaLoss(theirs, inner, [8, 4], [1.0, 0.5])
    lists = [[OTHERS[i], f"{TEXTS[i]} {OTHERS[i]}"] for i in range(6)]
    columns = [TEXTS, *([row[k] for row in lists] for k in range(2))]
    features = [dict(PIECES(c, padding=True, return_tensors="pt")) for c in columns]
    expected = loss(features, None).item()
    ours = made(
        tmp_path,
        student,
        None,
        rows(),
        objective=1.0 * Matryoshka(HardLabels(), (8, 4), (1.0, 0.5)),
        data_collator=COLLATE,
        processing_class=PIECES,
        per_device_eval_batch_size=6,
    )
    assert ours.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_wrong_dimensions_are_refused(tmp_path: Path) -> None:
    """More dimensions than there are would silently be the whole embedding."""
    with pytest.raises(ValueError, match="as many weights"):
        Matryoshka(HiddenStates(), (4, 8), (1.0,))
    with pytest.raises(ValueError, match="from 1 on"):
        Matryoshka(HiddenStates(), (0, 8))
    for kind, message in (("Model", "at least 900"), ("ForSequenceClassification", "embeddings")):
        with pytest.raises(ValueError, match=message):
            made(
                tmp_path,
                bert(kind, 1),
                bert(kind, 2),
                tokenized().remove_columns("labels"),
                objective=1.0 * Matryoshka(InBatchSimilarity(), (900,)),
                data_collator=DataCollatorWithPadding(PIECES),
                processing_class=PIECES,
            )
