"""Recipes of bi-encoders: metrics of a whole corpus, cut and static students, published folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_recipes import recipe
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from hf_distill.models.embedding import BiEncoder, Dense, SentenceModel, load_embedder
from hf_distill.models.initialise import student_from_teacher
from hf_distill.recipe import RecipeError, Run, load_recipe

pytestmark = pytest.mark.xdist_group("recipes")
SOURCE = """
from datasets import Dataset, DatasetDict

WORDS = ("good", "bad", "film", "plot", "the", "was", "a", "and", "very", "not")


def pairs(ragged: bool = False) -> DatasetDict:
    def part(first, count):
        rows = [(WORDS[n % 10], WORDS[n // 10 % 10]) for n in range(first, first + count)]
        answers = [f"{b} was {a}" for a, b in rows]
        answers[1] = answers[0]  # two queries with one document
        others = [[f"the {a}"] * (1 + (ragged and i % 2)) for i, (a, b) in enumerate(rows)]
        texts = [f"{a} {b}" for a, b in rows]
        return Dataset.from_dict({"text": texts, "answer": answers, "others": others})

    return DatasetDict(train=part(0, 32), validation=part(40, 12), test=part(57, 16))
"""


def silent(line: str) -> None:
    """For lines that nobody needs to see."""


def pairs(folder: Path, data: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write a tiny recipe on pairs of texts; return the YAML's path."""
    columns = {"source": "pairs.py:pairs", "text_pair_column": "answer"}
    options = {"task": "bi_encoder", "objective": None, **changes}
    path = recipe(folder, data={**columns, **(data or {})}, **options)
    (folder / "pairs.py").write_text(SOURCE, encoding="utf-8")
    return path


def first_ranks(folder: Path, pooled: Any) -> np.ndarray:
    """Rank of the right document of each test query among all different ones; by plain loops."""
    rows = [("was", n) for n in range(57, 73)]
    words = ("good", "bad", "film", "plot", "the", "was", "a", "and", "very", "not")
    queries = [f"{words[n % 10]} {words[n // 10 % 10]}" for _, n in rows]
    right = [f"{words[n // 10 % 10]} was {words[n % 10]}" for _, n in rows]
    right[1] = right[0]
    corpus = list(dict.fromkeys(right))
    theirs = torch.stack([pooled(text) for text in corpus]).double()
    ranks = []
    for query, document in zip(queries, right, strict=True):
        scores = (theirs @ pooled(query).double()).float()
        ranks.append(int((scores > scores[corpus.index(document)]).sum()) + 1)
    return np.array(ranks)


def mean_pooled(folder: Path) -> Any:
    """The embedding of a text by a plain encoder, mean pooling and length 1."""
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def embed(text: str) -> torch.Tensor:
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        return F.normalize(states.mean(0), dim=0)

    return embed


def test_metrics_are_those_of_the_published_folder(tmp_path: Path) -> None:
    """Figures of a batch's own candidates, or of a corpus with a document twice, would flatter."""
    final = Run(load_recipe(pairs(tmp_path)), silent)()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    for role, folder in (("student", final), ("teacher", tmp_path / "out/teacher/model")):
        ranks = first_ranks(tmp_path, mean_pooled(folder))
        test = report["models"][role]["test"]
        assert test["recall@1"] == pytest.approx((ranks == 1).mean())
        assert test["mrr@10"] == pytest.approx(np.where(ranks <= 10, 1 / ranks, 0).mean())
    card = (final / "README.md").read_text()
    assert "library_name: sentence-transformers" in card
    assert "SentenceTransformer(" in card
    assert report["models"]["student"]["intervals"]["recall@1"][0] >= 0
    assert "ece" not in report["models"]["student"]["test"], "of one candidate it is 0"


def test_a_static_student_is_published_as_such(tmp_path: Path) -> None:
    """A folder that nothing but this package reads would be of no use."""
    student = {"from_teacher_layers": None, "static": 8}
    final = Run(load_recipe(pairs(tmp_path, student=student)), silent)()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["models"]["student"]["hidden_size"] == 8
    embedder, tokenizer = load_embedder(final), AutoTokenizer.from_pretrained(final)
    ranks = first_ranks(tmp_path, lambda text: torch.tensor(embedder.encode([text], tokenizer)[0]))
    assert report["models"]["student"]["test"]["recall@1"] == pytest.approx((ranks == 1).mean())
    assert "8 principal components" in (final / "README.md").read_text()


def test_given_negatives_are_candidates(tmp_path: Path) -> None:
    """Without them the loss compares the documents of a batch alone."""
    run = Run(load_recipe(pairs(tmp_path, data={"negatives_column": "others"})), silent)
    batch = run.collator()([run.data["train"][i] for i in range(3)])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    texts = tokenizer.batch_decode(batch["candidate_input_ids"][2], skip_special_tokens=True)
    assert texts == ["good was film", "the film"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data": {"text_pair_column": None}}, "text_pair_column` is missing"),
        (
            {"data": {"negatives_column": "others", "arguments": {"ragged": True}}},
            "equally many texts",
        ),
        ({"training": {"alpha": 0.3}}, "`training.alpha` is for objectives on logits"),
        ({"data": {"unlabelled": {}}}, "no column of labels"),
        ({"teacher": {"inputs": "answer"}}, "`teacher.inputs` is for tasks with one row"),
        ({"metric": "accuracy"}, "metric"),
    ],
)
def test_settings_without_effect_are_refused(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    """Each would be ignored, and the result reported as that of the settings."""
    with pytest.raises(RecipeError, match=expected):
        Run(load_recipe(pairs(tmp_path, **changes)), silent)


def test_an_embedder_is_cut_inside(tmp_path: Path) -> None:
    """Pooling, dense layers and prompts are the embedder's, also of fewer layers."""
    from transformers import BertConfig, BertModel

    sizes = {"num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 20}
    torch.manual_seed(0)
    encoder = BertModel(BertConfig(hidden_size=16, num_hidden_layers=3, **sizes)).eval()
    whole = BiEncoder(
        SentenceModel(
            encoder, "first", [Dense(nn.Linear(16, 4))], prompts={"q": "a "}, max_length=9
        ),
        scale=3.0,
    )
    cut = student_from_teacher(whole, [0, 2])
    assert isinstance(cut, BiEncoder)
    assert cut.config.similarity_scale == 3.0
    inner: Any = cut.embedder
    assert (inner.pooling, inner.max_length, inner.prompts) == (("first",), 9, {"q": "a "})
    ids = torch.tensor([[2, 5, 7]])
    plain = student_from_teacher(encoder, [0, 2]).eval()
    states = plain(ids).last_hidden_state[:, 0]
    expected = F.normalize(whole.embedder.dense[0](states), dim=-1)
    torch.testing.assert_close(cut.embedder(input_ids=ids).sentence_embedding, expected)
    with pytest.raises(ValueError, match="which the dense layers read, got 8"):
        student_from_teacher(whole, [0], hidden_size=8)
