"""The cost of checking what is pushed: seconds of a push to a Hub on the loopback.

``python tests/benchmarks/push_cost.py [--against CHECKOUT]`` pushes students whose tokenizers have
30,522 and 49,152 pieces; with another checkout of this project, both in turn, and the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HELPERS = ROOT / "tests" / "helpers"
SIZES = (30_522, 49_152)


def vocabulary(size: int) -> dict[str, int]:
    """Made-up pieces of words, and the ids of each."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyzäéфшñ"
    words = {"[UNK]": 0, "[PAD]": 1}
    while len(words) < size:
        words.setdefault("".join(rng.choices(letters, k=rng.randint(2, 11))), len(words))
    return words


def write_student(folder: Path, size: int) -> None:
    """Write a student with its tokenizer and card, as a training does."""
    import torch
    from datasets import Dataset
    from tiny_models import quiet_arguments
    from tokenizers import Tokenizer, models
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    from hf_distill import DistillationTrainer

    torch.manual_seed(0)
    config, small = (
        BertConfig(
            vocab_size=size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=6,
            intermediate_size=4 * width,
        )
        for width, layers in ((384, 6), (12, 1))
    )
    made = Tokenizer(models.WordLevel(vocabulary(size), unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]")
    rows = Dataset.from_dict({"input_ids": [[2, 3, 4]] * 4, "labels": [0, 1] * 2})
    trainer = DistillationTrainer(
        BertForSequenceClassification(config),
        quiet_arguments(folder, max_steps=1),
        train_dataset=rows,
        teacher_model=BertForSequenceClassification(small),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()


def push(folder: Path, rounds: int) -> list[float]:
    """Push a student several times, each to a repository of its own; seconds of each."""
    from hf_distill.hub import push_folder

    found = []
    for turn in range(rounds):
        start = time.perf_counter()
        push_folder(folder, f"tester/student-{os.getpid()}-{turn}", token="dummy")
        found.append(time.perf_counter() - start)
    return found


def child(checkout: Path, hub: dict[str, str], *arguments: str) -> str:
    """Run this script in another process, with the package of a checkout."""
    paths = os.pathsep.join([str(checkout), str(HELPERS)])
    environment = {**os.environ, **hub, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, *arguments]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="another checkout, measured in turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--push", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        write_student(Path(args.write[0]), int(args.write[1]))
        return
    if args.push:
        print(json.dumps(push(Path(args.push), args.rounds)))
        return
    sys.path.insert(0, str(HELPERS))
    from hub_server import HubServer

    print("| pieces of the tokenizer | MB | a push, s | against, s | ratio |")
    print("| --: | --: | --: | --: | --: |")
    with tempfile.TemporaryDirectory() as place, HubServer() as server:
        hub = server.environment(Path(place, "home"))
        for size in SIZES:
            folder = Path(place, str(size))
            child(ROOT, hub, "--write", str(folder), str(size))
            checkouts = [ROOT, *([args.against.resolve()] if args.against else [])]
            seconds: dict[Path, list[float]] = {checkout: [] for checkout in checkouts}
            for _ in range(3):
                for checkout in checkouts:
                    told = child(checkout, hub, "--push", str(folder), "--rounds", str(args.rounds))
                    seconds[checkout] += json.loads(told.splitlines()[-1])[1:]  # the first imports
            medians = [statistics.median(seconds[checkout]) for checkout in checkouts]
            weight = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
            other = f"{medians[1]:.2f} | {medians[0] / medians[1]:.2f}" if args.against else "– | –"
            print(f"| {size:,} | {weight:.0f} | {medians[0]:.2f} | {other} |", flush=True)


if __name__ == "__main__":
    main()
