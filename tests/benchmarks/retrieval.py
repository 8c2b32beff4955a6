"""Two teachers of a bi-encoder with two layers, on the passages of BoolQ.

all-MiniLM-L6-v2 is one teacher as it is: a bi-encoder with six layers. The other is a cross-encoder
fine-tuned from it on questions with labels, each with its passage and negatives that resemble it by
TF-IDF. The student has two of its layers. All arms start from the same weights and take equally
many steps of as many texts: ``labels alone`` on the questions with labels, the others on these and
on questions without, whose candidates the bi-encoder finds. Labels are learned against given and
in-batch negatives; scores and embeddings of the teachers are columns of the data.

Passages 0 to 2,999 are the test pool, with 1,500 questions, 3,000 to 5,999 the validation pool; the
rest is for training. Each arm's settings are chosen on the validation pool with a seed that is not
counted: three rates of ``labels alone``; those of the other arms are what was best in trials
before, on the same pool. The test pool was not untouched: its figure of the teacher, and of one
seed, were seen before the last setting was tried (tests/benchmarks/README.md). all-MiniLM-L6-v2
was trained on a billion pairs that may hold some of these passages, in all arms alike.

    python tests/benchmarks/retrieval.py FOLDER            # resumable: one line for a finished run
    python tests/benchmarks/retrieval.py FOLDER --table
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from datasets import Dataset
from headline import sources
from sklearn.feature_extraction.text import TfidfVectorizer
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, set_seed

from hf_distill import (
    ColumnTeacher,
    DistillationConfig,
    DistillationTrainer,
    HardLabels,
    HiddenStates,
    MarginMSE,
    ModelTeacher,
)
from hf_distill.data.candidates import CandidateCollator
from hf_distill.evaluation.retrieval import evaluate_retrieval
from hf_distill.evaluation.statistics import paired_t
from hf_distill.models.embedding import BiEncoder, SentenceModel
from hf_distill.models.initialise import student_from_teacher
from hf_distill.models.task_model import TaskModel
from hf_distill.teachers import add_teacher_columns

POOL, ASKED, SEARCH_SEED = 3_000, 1_500, 100
SCORES = MarginMSE()
EMBEDDINGS = HiddenStates("last", distance="cosine", groups=("query", "candidates"))
ARMS: dict[str, dict[str, tuple[Any, float]]] = {
    "labels alone": {
        "rate 2e-4": (HardLabels(), 2e-4),
        "rate 4e-4": (HardLabels(), 4e-4),
        "rate 8e-4": (HardLabels(), 8e-4),
    },
    "cross-encoder and embeddings": {
        "margin_mse 0.05, cosine 30, rate 8e-4": (
            HardLabels() + 0.05 * SCORES + 30 * EMBEDDINGS,
            8e-4,
        ),
        "margin_mse 0.01, cosine 60, rate 1.2e-3": (
            HardLabels() + 0.01 * SCORES + 60 * EMBEDDINGS,
            1.2e-3,
        ),
    },
    "cross-encoder": {"margin_mse 0.05, rate 2e-4": (HardLabels() + 0.05 * SCORES, 2e-4)},
}
"""The settings of each arm, of which the best on the validation pool is kept. The first two are the
comparison, and the third is run after these."""
GROUPS = {"query": "question_embedding", "candidates": "passage_embeddings"}
UNTRAINED = {"start": "student before training", "bi-encoder": "all-MiniLM-L6-v2, 6 layers"}
FIGURES = ("recall@1", "mrr@10", "ndcg@10")


class Study:
    """Texts, candidates, the teacher and its scores, in one folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, Path(options.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = self.folder / "settings.json"
        if not kept.exists():
            kept.write_text(json.dumps(self.settings()))
        if json.loads(kept.read_text()) != self.settings():
            raise SystemExit(f"{kept} has other settings: choose another folder.")
        found = sources()
        self.origin = found.all_minilm_l6_v2()
        self.tokenizer = AutoTokenizer.from_pretrained(self.origin)
        boolq = found.boolq_passages()
        self.passages: list[str] = boolq["passages"]["text"][:]
        self.questions: list[str] = boolq["questions"]["text"][:]
        self.passage = np.array(boolq["questions"]["passage"])
        self.collate = CandidateCollator(self.tokenizer)

    def settings(self) -> dict[str, int]:
        """The sizes of the study, on which its files depend."""
        names = ("questions", "unlabelled", "candidates", "length", "steps", "batch_size")
        names += ("teacher_epochs", "teacher_candidates", "asked")
        return {name: getattr(self.options, name) for name in names}

    def teacher(self) -> SentenceModel:
        """The bi-encoder with six layers."""
        whole = AutoModel.from_pretrained(self.origin)
        return SentenceModel(whole, max_length=self.options.length).eval()

    def embeddings(self) -> tuple[np.ndarray, np.ndarray]:
        """``(N, D)`` each, by all-MiniLM-L6-v2, of the questions and of the passages that are not
        in the test pool; computed once."""
        path = self.folder / "embeddings.npz"
        if not path.exists():
            model = self.teacher()
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                found = [model.encode(texts, self.tokenizer, 64)
                         for texts in (self.questions, self.passages[POOL:])]  # fmt: skip
            np.savez(path, questions=found[0], passages=found[1])
        kept = np.load(path)
        return kept["questions"], kept["passages"]

    def candidates(self, count: int, unlabelled: int) -> tuple[np.ndarray, list[list[int]]]:
        """Training questions, and the places of each one's candidates in the training pool.

        The first questions have labels: the right passage, then negatives of the 30 passages that
        are nearest by TF-IDF. The others have none: the passage nearest to the
        embedding of the question, then some of the next 29.
        """
        first, labelled = 2 * POOL, self.options.questions
        rows = np.flatnonzero(self.passage >= first)[: labelled + unlabelled]
        pool = self.passages[first:]
        questions, passages = self.embeddings()
        vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit(pool)
        terms = vectorizer.transform(pool).T
        draw, lists = np.random.default_rng(0), []
        for number, row in enumerate(rows):
            if number < labelled:
                near = (vectorizer.transform([self.questions[row]]) @ terms).toarray()[0]
            else:
                near = questions[row] @ passages[POOL:].T
            likely = np.argsort(-near, kind="stable")[:30]
            right = int(self.passage[row]) - first if number < labelled else int(likely[0])
            wrong = draw.choice(likely[likely != right], count - 1, replace=False)
            lists.append([right, *map(int, wrong)])
        return rows, lists

    def data(self) -> Dataset:
        """Questions with candidates, labels (-100: none), the tokens, the teachers' outputs."""
        options = self.options
        rows, lists = self.candidates(options.candidates, options.unlabelled)
        questions, passages = self.embeddings()
        cut = {"truncation": True, "max_length": options.length}
        asked = [self.questions[row] for row in rows]
        texts = [[self.passages[2 * POOL + place] for place in each] for each in lists]
        data = Dataset.from_dict(
            {
                "question": asked,
                "passages": texts,
                "labels": [0 if n < options.questions else -100 for n in range(len(rows))],
                "input_ids": self.tokenizer(asked, **cut)["input_ids"],
                "candidate_input_ids": [self.tokenizer(each, **cut)["input_ids"] for each in texts],
            }
        )
        scores = self.scored(data)["cross_logits"][:]
        return Dataset.from_dict(
            {
                **data.to_dict(),
                "cross_logits": scores,
                "question_embedding": list(questions[rows]),
                "passage_embeddings": [passages[POOL + np.array(each)] for each in lists],
            }
        )

    def cross_encoder(self) -> Any:
        """all-MiniLM-L6-v2, fine-tuned to choose the right passage; made once."""
        path = self.folder / "teacher"
        if path.exists():
            return AutoModelForSequenceClassification.from_pretrained(path).eval()
        rows, lists = self.candidates(self.options.teacher_candidates, 0)
        set_seed(0)
        start = time.process_time()
        model = AutoModelForSequenceClassification.from_pretrained(self.origin, num_labels=1)
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=5e-5)
        size, total = 8, self.options.teacher_epochs * (len(rows) // 8)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / (0.1 * total), 1 - step / total)
        )
        for epoch in range(self.options.teacher_epochs):
            order = np.random.default_rng(epoch).permutation(len(rows))
            for begin in range(0, len(order) - size + 1, size):
                chosen = order[begin : begin + size]
                asked = [self.questions[rows[i]] for i in chosen]
                texts = [[self.passages[2 * POOL + place] for place in lists[i]] for i in chosen]
                scores = self.scores(model, asked, texts)
                loss = F.cross_entropy(scores, torch.zeros(size, dtype=torch.long))
                loss.backward()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                if begin % (25 * size) == 0:
                    print(f"teacher, epoch {epoch}, {begin}: {loss.item():.3f}", flush=True)
        model.save_pretrained(path)
        self.tokenizer.save_pretrained(path)
        (path / "seconds.json").write_text(json.dumps(time.process_time() - start))
        return model.eval()

    def scores(self, model: Any, questions: list[str], lists: list[list[str]]) -> torch.Tensor:
        """``(B, C)``, the scores of a cross-encoder."""
        pairs = [(q, p) for q, each in zip(questions, lists, strict=True) for p in each]
        batch = self.tokenizer(
            *map(list, zip(*pairs, strict=True)),
            truncation="only_second",
            max_length=self.options.length + 16,
            padding=True,
            return_tensors="pt",
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(**batch).logits
        return logits.float().view(len(lists), -1)

    def start(self) -> BiEncoder:
        """The student before training: layers 0 and 5, without dropout. On a CPU the backward pass
        of plain attention is faster than that of PyTorch's kernel."""
        whole = AutoModel.from_pretrained(
            self.origin,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="eager",
        )
        return BiEncoder(
            SentenceModel(student_from_teacher(whole, 2), max_length=self.options.length)
        )

    def scored(self, data: Dataset) -> Dataset:
        """The data with the cross-encoder's scores of the candidates; computed once."""
        taught = ModelTeacher(
            self.cross_encoder(),
            self.tokenizer,
            inputs=("question", "passages"),
            max_length=self.options.length + 16,
        )
        reads, folder = TaskModel(self.start(), role="student"), self.folder / "scores"
        return add_teacher_columns(
            data, taught, self.collate, folder, prefix="cross_", task_model=reads
        )

    def train(self, seed: int, data: Dataset, objective: Any, rate: float) -> tuple[Any, float]:
        """A trained student, and the seconds of its training."""
        objective = 1.0 * objective
        needs = objective.needs
        teacher = (
            ColumnTeacher(
                logits="cross_logits" if needs.logits else None,
                embedding=GROUPS if needs.hidden_states else None,
            )
            if needs
            else None
        )
        set_seed(seed)
        args = DistillationConfig(
            str(self.folder / "run"),
            seed=seed,
            per_device_train_batch_size=self.options.batch_size,
            max_steps=self.options.steps,
            learning_rate=rate,
            warmup_steps=0.1,
            bf16=True,
            save_strategy="no",
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            dataloader_drop_last=True,
        )
        trainer = DistillationTrainer(
            self.start(),
            args,
            train_dataset=data if teacher else data.select(range(self.options.questions)),
            teacher_model=teacher,
            objective=objective,
            processing_class=self.tokenizer,
            data_collator=self.collate,
        )
        start = time.process_time()
        trainer.train()
        return trainer.model.eval(), time.process_time() - start

    def figures(self, model: Any, first: int) -> dict[str, float]:
        """Retrieval of a pool that begins at a passage."""
        known = (self.passage >= first) & (self.passage < first + POOL)
        rows = np.flatnonzero(known)[: self.options.asked]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return evaluate_retrieval(
                model,
                self.tokenizer,
                [self.questions[row] for row in rows],
                self.passages[first : first + POOL],
                [[int(self.passage[row]) - first] for row in rows],
                at=(1, 10),
                batch_size=64,
            )

    # ---- runs --------------------------------------------------------------------------------

    def search(self, data: Dataset, arm: str) -> str:
        """The setting of an arm with the highest recall@1 on the validation pool."""
        tried = {}
        for name, setting in ARMS[arm].items():
            run = functools.partial(self.run, SEARCH_SEED, data, *setting, POOL)
            found = self.once({"kind": "search", "arm": arm, "setting": name}, run)
            tried[name] = found["recall@1"]
        return max(tried, key=tried.__getitem__)

    def run(
        self, seed: int, data: Dataset, objective: Any, rate: float, first: int
    ) -> dict[str, float]:
        """The figures of a student on the pool that begins at a passage."""
        model, seconds = self.train(seed, data, objective, rate)
        return {**self.figures(model, first), "seconds": seconds}

    def reranked(self, asked: int = 300, top: int = 20) -> dict[str, float]:
        """Recall@1 of both teachers on the validation pool: of the bi-encoder's search, and of the
        cross-encoder's order of its first passages."""
        questions, passages = self.embeddings()
        rows = np.flatnonzero((self.passage >= POOL) & (self.passage < 2 * POOL))[:asked]
        likely = np.argsort(-questions[rows] @ passages[:POOL].T, axis=1)[:, :top] + POOL
        model, best = self.cross_encoder(), []
        for row, places in zip(rows, likely, strict=True):
            with torch.no_grad():
                texts = [self.passages[place] for place in places]
                scores = self.scores(model, [self.questions[row]], [texts])
            best.append(int(places[int(scores.argmax())]))
        right = self.passage[rows]
        return {
            "bi-encoder": float((likely[:, 0] == right).mean()),
            f"in its first {top}": float((likely == right[:, None]).any(1).mean()),
            "cross-encoder": float((np.array(best) == right).mean()),
        }

    def once(self, key: dict[str, Any], compute: Any) -> dict[str, Any]:
        """A line of the results, computed if it is not there."""
        for line in self.lines():
            if key.items() <= line.items():
                return line
        found = {**key, **compute(), "machine": machine()}
        with (self.folder / "results.jsonl").open("a") as results:
            results.write(json.dumps(found) + "\n")
        print(found, flush=True)
        return found

    def lines(self) -> list[dict[str, Any]]:
        """The results so far."""
        path = self.folder / "results.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def everything(self) -> None:
        """All seeds; what is in the results already is left out."""
        data = self.data()
        self.once({"kind": "start"}, lambda: self.figures(self.start(), 0))
        self.once({"kind": "teachers"}, self.reranked)
        self.once({"kind": "bi-encoder"}, lambda: self.figures(self.teacher(), 0))
        best = {arm: self.search(data, arm) for arm in ARMS}
        first, seeds = list(ARMS)[:2], range(self.options.seeds)
        runs = itertools.product(seeds, first), itertools.product(seeds, list(ARMS)[2:])
        for seed, arm in itertools.chain(*runs):
            run = functools.partial(self.run, seed, data, *ARMS[arm][best[arm]], 0)
            self.once({"kind": "seed", "seed": seed, "arm": arm}, run)

    def table(self) -> str:
        """The results as Markdown."""
        lines = self.lines()
        rows = [
            f"| | {' | '.join(FIGURES)} | seeds | seconds of a core |",
            "| :-- | --: | --: | --: | --: | --: |",
        ]
        for line in lines:
            if title := UNTRAINED.get(line["kind"]):
                figures = " | ".join(f"{line[name]:.3f}" for name in FIGURES)
                rows.append(f"| {title} | {figures} | – | – |")
        seeds = {
            arm: [line for line in lines if line["kind"] == "seed" and line["arm"] == arm]
            for arm in ARMS
        }
        for arm, runs in seeds.items():
            if runs:
                cells = [_spread([run[name] for run in runs]) for name in FIGURES]
                seconds = np.mean([run["seconds"] for run in runs])
                rows.append(f"| {arm} | {' | '.join(cells)} | {len(runs)} | {seconds:.0f} |")
        alone, *others = seeds
        for arm in others:
            pairs = zip(seeds[arm], seeds[alone], strict=False)
            gains = [run["recall@1"] - base["recall@1"] for run, base in pairs]
            if len(gains) > 1:
                gain = paired_t(gains)
                rows.append(
                    f"\nrecall@1, {arm} less {alone}: {100 * gain.mean:.1f} points "
                    f"({100 * gain.low:.1f} to {100 * gain.high:.1f}), {len(gains)} pairs."
                )
        sizes = ", ".join(f"{name} {value}" for name, value in self.settings().items())
        return "\n".join([*rows, f"\n{sizes}; {machine()}."])


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.3f}"


def machine() -> str:
    """The machine, for the table."""
    kind = platform.processor() or platform.machine()
    return f"{kind}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def main() -> None:
    """Run the study, or print its table."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--questions", type=int, default=1500)
    parser.add_argument("--unlabelled", type=int, default=4500)
    parser.add_argument("--candidates", type=int, default=2)
    parser.add_argument("--length", type=int, default=64, help="tokens of a passage")
    parser.add_argument("--steps", type=int, default=92)
    parser.add_argument("--teacher-epochs", type=int, default=1)
    parser.add_argument("--teacher-candidates", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--asked", type=int, default=ASKED, help="questions of a pool")
    study = Study(parser.parse_args())
    if not study.options.table:
        study.everything()
    print(study.table())


if __name__ == "__main__":
    main()
