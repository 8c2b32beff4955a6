"""Bi-encoders: their scores and losses, a cross-encoder as their teacher, and their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel
from two_tokenizers import OTHERS, PAIRS, PIECES, TEXTS, bert, made, roberta

from hf_distill import (
    CachedTeacher,
    ColumnTeacher,
    ForwardKL,
    HardLabels,
    HiddenStates,
    MarginMSE,
    ModelTeacher,
    write_cache,
)
from hf_distill.data.candidates import CandidateCollator
from hf_distill.models.embedding import BiEncoder, SentenceModel, load_embedder
from hf_distill.models.task_model import TaskModel

COLLATE = CandidateCollator(PIECES)
CANDIDATES = [[OTHERS[i], OTHERS[(i + 1) % 6], TEXTS[(i + 2) % 6]] for i in range(6)]


def rows(labels: bool = False) -> Dataset:
    """A query, three candidates, and the student's tokens of both."""
    data = Dataset.from_dict({"query": TEXTS, "candidates": CANDIDATES})
    found = data.map(
        lambda row: {
            "input_ids": PIECES(row["query"])["input_ids"],
            "candidate_input_ids": PIECES(row["candidates"])["input_ids"],
        }
    )
    return found.add_column("labels", [0, 1, 2, 0, 1, 2]) if labels else found


def student(**settings: Any) -> BiEncoder:
    return BiEncoder(SentenceModel(bert("Model", 1)), **settings)


def vectors(texts: list[str]) -> Tensor:
    """The mean of the last states, of length 1, of one text at a time."""
    encoder = bert("Model", 1)
    with torch.no_grad():
        states = [
            encoder(**PIECES(text, return_tensors="pt")).last_hidden_state[0].mean(0)
            for text in texts
        ]
    return F.normalize(torch.stack(states), dim=-1)


def own_scores(scale: float = 20.0) -> Tensor:
    """``(6, 3)``, of each query with its own candidates."""
    queries = vectors(TEXTS)
    return torch.stack([scale * vectors(c) @ q for q, c in zip(queries, CANDIDATES, strict=True)])


def test_the_loss_has_each_candidate_of_the_batch_once() -> None:
    """A passage that is right for two queries of a batch would be learned as wrong for both."""
    batch = COLLATE([dict(row) for row in rows(labels=True)])
    outputs = student()(**batch)
    torch.testing.assert_close(outputs.logits, own_scores(), rtol=1e-9, atol=1e-9)
    queries, expected = vectors(TEXTS), []
    for number, label in enumerate(batch["labels"].tolist()):
        own = CANDIDATES[number]
        others = [t for i, each in enumerate(CANDIDATES) if i != number for t in each]
        everything = [*own, *(text for text in others if text not in own)]
        logits = 20.0 * vectors(everything) @ queries[number]
        expected.append(float(-logits.log_softmax(0)[label]))
    assert outputs.loss.item() == pytest.approx(np.mean(expected), rel=1e-9)
    assert len({text for each in CANDIDATES for text in each}) < 18  # some occur twice
    alone = student(in_batch_negatives=False, scale=3.0)(**batch)
    by_row = F.cross_entropy(own_scores(3.0), batch["labels"])
    assert alone.loss.item() == pytest.approx(float(by_row), rel=1e-9)


@pytest.mark.slow
def test_the_loss_is_that_of_sentence_transformers(tmp_path: Path) -> None:
    """Recipes of sentence-transformers must carry over, its scale and its negatives included."""
    package = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import losses

    ours = student().float()
    ours.save_pretrained(tmp_path)
    PIECES.save_pretrained(tmp_path)
    theirs = package.SentenceTransformer(str(tmp_path), device="cpu")
    distinct = [[OTHERS[i], f"{TEXTS[i]} {OTHERS[i]}"] for i in range(6)]
    columns = [TEXTS, *([row[k] for row in distinct] for k in range(2))]
    features = [PIECES(c, padding=True, return_tensors="pt") for c in columns]
    expected = losses.MultipleNegativesRankingLoss(theirs.eval(), scale=20.0)(
        [dict(f) for f in features], None
    )
    examples = [
        {"input_ids": PIECES(q)["input_ids"], "candidate_input_ids": PIECES(c)["input_ids"]}
        for q, c in zip(TEXTS, distinct, strict=True)
    ]
    found = ours(**COLLATE(examples)).loss.item()
    assert found == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(theirs.encode(OTHERS), ours.encode(OTHERS, PIECES), atol=1e-5)


def cross_encoder(**extra: Any) -> Any:
    return roberta("ForSequenceClassification", 2, **{"num_labels": 1, **extra})


def cross_scores() -> Tensor:
    model = cross_encoder()
    with torch.no_grad():
        return torch.stack(
            [
                torch.cat([model(**PAIRS(q, c, return_tensors="pt")).logits[0] for c in each])
                for q, each in zip(TEXTS, CANDIDATES, strict=True)
            ]
        )


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("cached", [False, True])
def test_a_cross_encoder_teaches(tmp_path: Path, batch: int, cached: bool) -> None:
    """Scores of another candidate, or read with the student's tokens, teach a wrong order."""
    teacher: Any = ModelTeacher(cross_encoder(), PAIRS, inputs=("query", "candidates"))
    model, data = student(in_batch_negatives=False), rows(labels=True)
    if cached:
        form = {"kind": "full", "dtype": "float32"}
        reads = TaskModel(model, role="student")
        folder = write_cache(
            tmp_path / "cache", teacher, data, COLLATE, format=form, task_model=reads, say=str
        )
        teacher = CachedTeacher(folder)
    ours = made(
        tmp_path,
        model,
        teacher,
        data,
        objective=HardLabels() + ForwardKL(2.0) + MarginMSE(),
        data_collator=COLLATE,
        processing_class=PIECES,
        per_device_eval_batch_size=batch,
    )
    found = ours.evaluate()
    s, t, labels = own_scores(), cross_scores(), torch.tensor([0, 1, 2, 0, 1, 2])
    kl = 4 * F.kl_div(
        (s / 2).log_softmax(-1), (t / 2).log_softmax(-1), log_target=True, reduction="none"
    )
    margins = ((s[:, :1] - s[:, 1:]) - (t[:, :1] - t[:, 1:])).square().mean(-1)
    near = {"rel": 1e-5 if cached else 1e-9}
    assert found["eval_forward_kl"] == pytest.approx(float(kl.sum(-1).mean()), **near)
    assert found["eval_margin_mse"] == pytest.approx(float(margins.mean()), **near)
    assert found["eval_hard_labels"] == pytest.approx(float(F.cross_entropy(s, labels)), rel=1e-9)
    assert found["eval_agreement"] == float((s.argmax(-1) == t.argmax(-1)).double().mean())


def test_a_larger_bi_encoder_teaches(tmp_path: Path) -> None:
    """Embeddings of queries and of candidates are two groups, each compared in its place."""
    teacher = BiEncoder(SentenceModel(bert("Model", 5, num_labels=2), ("first",)))
    ours = made(
        tmp_path,
        student(),
        teacher,
        rows(),
        objective=HiddenStates(groups=("query", "candidates")) + HardLabels(),
        data_collator=COLLATE,
        processing_class=PIECES,
    )
    found = ours.evaluate()
    batch = COLLATE([dict(row) for row in rows()])
    with torch.no_grad():
        s, t = student()(**batch), teacher(**batch)
    for name in ("query", "candidate"):
        expected = (s[f"{name}_embedding"] - t[f"{name}_embedding"]).square().mean()
        key = "eval_hidden_states_query" if name == "query" else "eval_hidden_states_candidates"
        assert found[key] == pytest.approx(float(expected), rel=1e-9)


def test_columns_hold_scores_and_embeddings_of_two_teachers(tmp_path: Path) -> None:
    """Stored vectors of queries and candidates would need a teacher of one's own, and one group in
    the place of the other goes unnoticed, for both have one width."""
    draw = torch.Generator().manual_seed(3)
    stored = {"query": torch.randn(6, 16, generator=draw).double()}
    stored["candidates"] = torch.randn(6, 3, 16, generator=draw).double()
    data = rows(labels=True).add_column("scores", cross_scores().tolist())
    for group, values in stored.items():
        data = data.add_column(f"{group}_vectors", values.tolist())
    groups = {group: f"{group}_vectors" for group in stored}
    ours = made(
        tmp_path,
        student(),
        ColumnTeacher(logits="scores", embedding=groups),
        data,
        objective=MarginMSE() + HiddenStates("last", distance="cosine", groups=tuple(groups)),
        data_collator=COLLATE,
        processing_class=PIECES,
        per_device_eval_batch_size=4,
    )
    found, s, t = ours.evaluate(), own_scores(), cross_scores()
    margins = ((s[:, :1] - s[:, 1:]) - (t[:, :1] - t[:, 1:])).square().mean(-1)
    assert found["eval_margin_mse"] == pytest.approx(float(margins.mean()), rel=1e-6)
    own = {"query": vectors(TEXTS), "candidates": torch.stack([vectors(c) for c in CANDIDATES])}
    for group, values in stored.items():
        expected = 1 - F.cosine_similarity(own[group], values, dim=-1).mean()
        assert found[f"eval_hidden_states_{group}"] == pytest.approx(float(expected), rel=1e-6)


def test_the_folder_is_that_of_the_embedder(tmp_path: Path) -> None:
    """A folder that needs this package to be read cannot be used by anybody's index."""
    model = BiEncoder(SentenceModel(bert("Model", 1), ("first",)), 7.5, in_batch_negatives=False)
    model.save_pretrained(tmp_path)
    again = BiEncoder.from_pretrained(tmp_path, dtype=torch.float64)
    assert (again.config.similarity_scale, again.config.in_batch_negatives) == (7.5, False)
    assert BiEncoder.from_pretrained(tmp_path, scale=1.0).config.similarity_scale == 1.0
    expected = model.encode(TEXTS, PIECES)
    assert np.array_equal(again.encode(TEXTS, PIECES), expected)
    embedder = load_embedder(tmp_path, dtype=torch.float64)
    assert type(embedder) is SentenceModel
    assert np.array_equal(embedder.encode(TEXTS, PIECES), expected)
    encoder = AutoModel.from_pretrained(tmp_path, dtype=torch.float64)
    inner = model.embedder.encoder.state_dict()
    assert all(torch.equal(value, inner[name]) for name, value in encoder.state_dict().items())


def test_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    """A checkpoint whose names are not those of the model would resume from nothing."""
    found = []
    for resume in (None, str(tmp_path / "0" / "checkpoint-1")):
        ours = made(
            tmp_path / str(len(found)),
            student().train(),
            ModelTeacher(cross_encoder(), PAIRS, inputs=("query", "candidates")),
            rows(),
            objective=HardLabels() + MarginMSE(),
            data_collator=COLLATE,
            processing_class=PIECES,
        )
        ours.args.learning_rate, ours.args.save_strategy, ours.args.save_steps = 1e-2, "steps", 1
        ours.train(resume_from_checkpoint=resume)
        found.append({name: p.detach().clone() for name, p in ours.model.named_parameters()})
    assert ours.state.global_step == 2
    first = dict(student().named_parameters())
    assert not all(torch.equal(first[name], value) for name, value in found[0].items())
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


def test_wrong_candidates_are_refused(tmp_path: Path) -> None:
    """Each of these would otherwise end in a shape that fits by accident."""
    few = [dict(row) for row in rows()]
    few[0] = {**few[0], "candidate_input_ids": few[0]["candidate_input_ids"][:2]}
    with pytest.raises(ValueError, match=r"one number of candidates .* \[2, 3\]"):
        COLLATE(few)
    with pytest.raises(ValueError, match="CandidateCollator"):
        student()(torch.tensor([[1, 2]]))
    with pytest.raises(ValueError, match="above 0"):
        student(scale=0.0)
    teacher = cross_encoder(num_labels=2)
    with pytest.raises(ValueError, match=r"one logit for each pair.*num_labels=1"):
        made(
            tmp_path,
            student(),
            ModelTeacher(teacher, PAIRS, inputs=("query", "candidates")),
            rows(),
            objective=MarginMSE() + HardLabels(),
            data_collator=COLLATE,
            processing_class=PIECES,
        )
