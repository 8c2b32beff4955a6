"""A whole training step of a language model: ours, TRL's trainers, and fine-tuning, in turn.

    pip install --no-deps --target peers trl==1.16.0
    python tests/benchmarks/language_step.py --peers peers
    python tests/benchmarks/language_step.py --peers peers --tiny     # does it all work?

The teacher is SmolLM2-135M-Instruct, the student 10 of its 30 layers, in float32; all get the same
texts in the same order, the same optimizer and learning rate. Each round runs every variant once,
in a process of its own, forked from one that holds the teacher and the texts: a step that does not
count (it makes the optimizer's state), then the measured ones, by ``trainer.train()``.

Time is that of the processor, from the end of a step to the end of the next, so that other work on
the machine counts less; a variant's is its median in a round, ratios are of the same round, and the
table has the medians over the rounds. Memory is the largest resident set of the process in the
measured steps, and how much of that is beyond what stays between steps. The losses of the first
step are in the table too: within a block they should be the same. It prints a Markdown table.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers as tf
from language_models import blocks, sources
from language_trainers import DEAR, DRAWS, VARIANTS, Setting
from linear_divergence import status

import hf_distill as hd

SHAPES = ((4, 128), (2, 512))
"""(texts of a batch, tokens of a text)"""
FIGURES = ("seconds", "wall", "peak", "step")


class Meter(tf.TrainerCallback):
    """Times of the steps after the first, and the memory they take."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []
        self.before = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.ends:
            gc.collect()
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            self.before = status("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        self.ends.append((time.process_time(), time.perf_counter()))

    def figures(self) -> dict[str, float]:
        peak = status("VmHWM")
        pairs = list(zip(self.ends, self.ends[1:], strict=False))
        seconds, wall = (statistics.median(b[i] - a[i] for a, b in pairs) for i in (0, 1))
        return {"seconds": seconds, "wall": wall, "peak": peak, "step": peak - self.before}


def measure(name: str, setting: Setting) -> dict[str, float]:
    torch.manual_seed(0)
    trainer = VARIANTS[name].make(setting, VARIANTS[name].beta)
    meter = Meter()
    trainer.add_callback(meter)
    trainer.remove_callback(tf.PrinterCallback)
    trainer.train()
    return {**meter.figures(), "loss": trainer.state.log_history[0]["loss"]}


def forked(work: Callable[..., Any], *args: Any) -> Any:
    """What a process forked from this one finds."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        sender.send(work(*args))

    process = context.Process(target=run)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError as error:
        raise SystemExit(f"{work.__name__}{args[:1]} has failed, see above.") from error
    finally:
        process.join()


def write_cache(setting: Setting) -> None:
    hd.write_cache(
        setting.cache,
        hd.ModelTeacher(setting.teacher),
        setting.data,
        tf.default_data_collator,
        format={"kind": "sampled", "draws": DRAWS},
        say=lambda line: None,
    )


@dataclass
class Results:
    """Name of a variant -> what each round found."""

    rounds: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def add(self, name: str, found: dict[str, float]) -> None:
        self.rounds.setdefault(name, []).append(found)

    def median(self, name: str, figure: str) -> float:
        return statistics.median(found[figure] for found in self.rounds[name])

    def ratio(self, name: str, other: str, figure: str) -> float:
        pairs = zip(self.rounds[name], self.rounds[other], strict=True)
        return statistics.median(a[figure] / b[figure] for a, b in pairs)

    def line(self, name: str, batch: int, length: int) -> str:
        variant = VARIANTS[name]
        seconds, _, peak, step = (self.median(name, figure) for figure in FIGURES)
        ratios = "– | –"
        if variant.against in self.rounds:
            ratios = " | ".join(
                f"{self.ratio(variant.against, name, figure):.2f}" for figure in ("seconds", "step")
            )
        return (
            f"| {batch} x {length} | {variant.title} | {self.rounds[name][0]['loss']:.4f} | "
            f"{batch * length / seconds:.1f} | {peak / 2**20:,.0f} | {step / 2**20:,.0f} "
            f"| {ratios} |"
        )

    def compared(self) -> None:
        """Say which losses differ that should not."""
        for name in ("kl_whole", "kl_gkd", "jsd_gkd", "given_trl"):
            if name in self.rounds and VARIANTS[name].against in self.rounds:
                apart = self.ratio(name, VARIANTS[name].against, "loss") - 1
                if abs(apart) > 1e-4:
                    print(f"The loss of {name} is {apart:+.2%} from ours.", file=sys.stderr)


def table(setting: Setting, names: list[str], rounds: int) -> Results:
    forked(write_cache, setting)
    results = Results()
    for turn in range(rounds):
        for name in names:
            results.add(name, forked(measure, name, setting))
            print(turn, name, results.rounds[name][-1], file=sys.stderr, flush=True)
    results.compared()
    for name in names:
        print(results.line(name, setting.batch, setting.rows.shape[1]), flush=True)
    return results


def models(tiny: bool) -> tuple[Any, Any, Any, int]:
    """Teacher, tokenizer, texts, and how many layers the student has."""
    module = sources()
    name = module.smollm2_135m_instruct()
    tokenizer = tf.AutoTokenizer.from_pretrained(name)
    texts = module.language_data()["train"]
    if not tiny:
        teacher = tf.AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        return teacher.eval(), tokenizer, texts, 10
    config = tf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=2,
        initializer_range=0.5,  # else all it says is uniform
    )
    torch.manual_seed(0)
    return tf.LlamaForCausalLM(config).eval(), tokenizer, texts, 2


def options_given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", help="folder with trl; without it, ours alone")
    parser.add_argument("--tiny", action="store_true", help="a random model of width 32")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--shapes", type=int, nargs="+", default=[0, 1], help="which, by index")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.peers is None:
        options.only = [name for name in options.only if not name.endswith(("_gkd", "_trl"))]
    return options


def main() -> None:
    options = options_given()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
    torch.set_num_threads(options.threads)
    datasets.disable_progress_bars()
    tf.logging.set_verbosity_error()
    if options.peers is not None:
        sys.path.append(options.peers)
        import trl.experimental.gkd  # noqa: F401 (once, here, for all processes)
    teacher, tokenizer, texts, layers = models(options.tiny)
    print(
        "| batch | | loss, first step | tokens a second | peak, MiB | of it a step's, MiB "
        "| ours / it, time | ours / it, a step's memory |\n| :-- | :-- |" + " --: |" * 6
    )
    shares = []
    for index in options.shapes:
        batch, length = SHAPES[index]
        number = (1 + options.steps) * batch
        with tempfile.TemporaryDirectory() as folder:
            rows = blocks(texts, tokenizer, number, length)
            cache = Path(folder) / "cache"
            setting = Setting(teacher, tokenizer, rows, batch, layers, cache, folder)
            names = [name for name in options.only if index == 0 or name not in DEAR]
            results = table(setting, names, options.rounds)
        shares += [found["seconds"] / found["wall"] for r in results.rounds.values() for found in r]
    machine = platform.processor() or platform.machine()
    print(
        f"\n{machine}, {options.threads} thread(s), torch {torch.__version__}, {options.steps} "
        f"steps in each of {options.rounds} rounds; a step had {statistics.median(shares):.0%} of "
        "a processor"
    )


if __name__ == "__main__":
    main()
