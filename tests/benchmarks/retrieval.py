"""A cross-encoder as the teacher of a bi-encoder with two layers, on the passages of BoolQ.

all-MiniLM-L6-v2 is fine-tuned as a cross-encoder on training questions, each with its passage and
negatives that resemble the question by TF-IDF. The student has two of its layers. Both arms start
from the same weights, see the same questions and candidates in the same order and learn the labels
against given and in-batch negatives; one also learns the cross-encoder's scores, kept in a cache.

Passages 0 to 2,999 are the test pool, with 1,500 questions, 3,000 to 5,999 the validation pool; the
rest is for training. The learning rate is that which is best without a teacher; it and the
objective are chosen on the validation pool, with a seed that is not counted; the test pool is read
once for each seed and arm. all-MiniLM-L6-v2 was trained on a billion pairs that may hold some of
these passages, in both arms alike.

    python tests/benchmarks/retrieval.py FOLDER            # resumable: one line for a finished seed
    python tests/benchmarks/retrieval.py FOLDER --table
"""

from __future__ import annotations

import argparse
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
    CachedTeacher,
    DistillationConfig,
    DistillationTrainer,
    ForwardKL,
    HardLabels,
    MarginMSE,
    ModelTeacher,
    write_cache,
)
from hf_distill.data.candidates import CandidateCollator
from hf_distill.evaluation.retrieval import evaluate_retrieval
from hf_distill.evaluation.statistics import paired_t
from hf_distill.models.embedding import BiEncoder, SentenceModel
from hf_distill.models.initialise import student_from_teacher
from hf_distill.models.task_model import TaskModel

POOL, ASKED, SEARCH_SEED = 3_000, 1_500, 100
ARMS = ("labels alone", "cross-encoder")
OBJECTIVES: dict[str, Any] = {
    "forward_kl, T 1": HardLabels() + ForwardKL(1.0),
    "forward_kl, T 2": HardLabels() + ForwardKL(2.0),
    "margin_mse": HardLabels() + 0.05 * MarginMSE(),
}
RATES = (1e-4, 2e-4)
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
        names = ("questions", "candidates", "length", "epochs", "teacher_epochs", "batch_size")
        return {name: getattr(self.options, name) for name in (*names, "asked")}

    def data(self) -> Dataset:
        """Training questions with their passage and negatives, by TF-IDF, and the tokens."""
        first, options = 2 * POOL, self.options
        rows = np.flatnonzero(self.passage >= first)[: options.questions]
        asked, pool = [self.questions[row] for row in rows], self.passages[first:]
        vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit(pool)
        near = vectorizer.transform(asked) @ vectorizer.transform(pool).T
        draw, lists = np.random.default_rng(0), []
        for number, row in enumerate(rows):
            own = int(self.passage[row]) - first
            likely = np.argsort(-near[number].toarray()[0], kind="stable")[:30]
            wrong = draw.choice(likely[likely != own], options.candidates - 1, replace=False)
            lists.append([pool[own], *(pool[place] for place in wrong)])
        data = Dataset.from_dict({"question": asked, "passages": lists})
        cut = {"truncation": True, "max_length": options.length}
        return data.map(
            lambda row: {
                "input_ids": self.tokenizer(row["question"], **cut)["input_ids"],
                "candidate_input_ids": self.tokenizer(row["passages"], **cut)["input_ids"],
            }
        )

    def cross_encoder(self, data: Dataset) -> Any:
        """all-MiniLM-L6-v2, fine-tuned to choose the right passage; made once."""
        path = self.folder / "teacher"
        if path.exists():
            return AutoModelForSequenceClassification.from_pretrained(path).eval()
        set_seed(0)
        start = time.process_time()
        model = AutoModelForSequenceClassification.from_pretrained(self.origin, num_labels=1)
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=5e-5)
        size, total = 8, self.options.teacher_epochs * (len(data) // 8)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / (0.1 * total), 1 - step / total)
        )
        for epoch in range(self.options.teacher_epochs):
            order = np.random.default_rng(epoch).permutation(len(data))
            for begin in range(0, len(order) - size + 1, size):
                rows = data.select(order[begin : begin + size])
                scores = self.scores(model, rows["question"][:], rows["passages"][:])
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
        """The student before training: layers 0 and 5."""
        whole = AutoModel.from_pretrained(self.origin)
        return BiEncoder(
            SentenceModel(student_from_teacher(whole, 2), max_length=self.options.length)
        )

    def teacher(self, data: Dataset) -> CachedTeacher:
        """The cross-encoder's scores of all candidates; computed once."""
        folder = self.folder / "scores"
        reads = TaskModel(self.start(), role="student")
        if not (self.folder / "scored").exists():
            taught = ModelTeacher(
                self.cross_encoder(data),
                self.tokenizer,
                inputs=("question", "passages"),
                max_length=self.options.length + 16,
            )
            form = {"kind": "full", "dtype": "float32"}
            write_cache(folder, taught, data, self.collate, format=form, task_model=reads)
            (self.folder / "scored").touch()
        return CachedTeacher(folder)

    def train(self, seed: int, data: Dataset, teacher: Any, objective: Any, rate: float) -> Any:
        """A trained student, and the seconds of its training."""
        set_seed(seed)
        args = DistillationConfig(
            str(self.folder / "run"),
            seed=seed,
            per_device_train_batch_size=self.options.batch_size,
            num_train_epochs=self.options.epochs,
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
            train_dataset=data,
            teacher_model=teacher,
            objective=1.0 * objective,
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

    def search(self, data: Dataset, teacher: Any) -> dict[str, Any]:
        """The learning rate of the arm without a teacher, for both arms, and at this rate the
        objective of the other one, by recall@1 on the validation pool."""

        def tried(name: str, rate: float) -> float:
            objective = OBJECTIVES.get(name, HardLabels())
            found = self.once(
                {"kind": "search", "objective": name, "rate": rate},
                lambda: self.run(SEARCH_SEED, data, teacher, objective, rate, POOL),
            )
            return float(found["recall@1"])

        rate = max(RATES, key=lambda each: tried("hard_labels", each))
        best = max(OBJECTIVES, key=lambda name: tried(name, rate))
        return {ARMS[0]: ("hard_labels", rate), ARMS[1]: (best, rate)}

    def run(
        self, seed: int, data: Dataset, teacher: Any, objective: Any, rate: float, first: int
    ) -> dict[str, float]:
        needs_teacher = bool((1.0 * objective).needs)
        model, seconds = self.train(seed, data, teacher if needs_teacher else None, objective, rate)
        return {**self.figures(model, first), "seconds": seconds}

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
        teacher = self.teacher(data)
        self.once({"kind": "start"}, lambda: self.figures(self.start(), 0))
        best = self.search(data, teacher)
        for seed in range(self.options.seeds):

            def both(seed: int = seed) -> dict[str, Any]:
                found = {}
                for arm, (name, rate) in best.items():
                    objective = OBJECTIVES.get(name, HardLabels())
                    found[arm] = self.run(seed, data, teacher, objective, rate, 0)
                return found

            self.once({"kind": "seed", "seed": seed}, both)

    def table(self) -> str:
        """The results as Markdown."""
        lines = self.lines()
        seeds = [line for line in lines if line["kind"] == "seed"]
        rows = [
            f"| | {' | '.join(FIGURES)} | seconds of a core |",
            "| :-- | --: | --: | --: | --: |",
        ]
        for line in lines:
            if line["kind"] == "start":
                figures = " | ".join(f"{line[name]:.3f}" for name in FIGURES)
                rows.append(f"| student before training | {figures} | – |")
        for arm in ARMS if seeds else ():
            cells = [_spread([seed[arm][name] for seed in seeds]) for name in FIGURES]
            seconds = np.mean([seed[arm]["seconds"] for seed in seeds])
            rows.append(f"| {arm} | {' | '.join(cells)} | {seconds:.0f} |")
        if len(seeds) > 1:
            gains = [seed[ARMS[1]]["recall@1"] - seed[ARMS[0]]["recall@1"] for seed in seeds]
            estimate = paired_t(gains)
            rows.append(
                f"\nrecall@1, {ARMS[1]} less {ARMS[0]}: {100 * estimate.mean:.1f} points "
                f"({100 * estimate.low:.1f} to {100 * estimate.high:.1f}), {len(gains)} pairs."
            )
        sizes = ", ".join(f"{name} {value}" for name, value in self.settings().items())
        return "\n".join([*rows, f"\n{len(seeds)} seeds; {sizes}; {machine()}."])


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
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--length", type=int, default=64, help="tokens of a passage")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--teacher-epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--asked", type=int, default=ASKED, help="questions of a pool")
    study = Study(parser.parse_args())
    if not study.options.table:
        study.everything()
    print(study.table())


if __name__ == "__main__":
    main()
