"""How much longer our step takes than a bare PyTorch loop on the same batches, in turn.

Both do the same work: teacher forward, student forward and backward, optimizer step. Ours adds
the counting of items, the signals, the masks and the components. Run it on a quiet machine:

    python tests/benchmarks/step_overhead.py

It prints a Markdown table (medians over the rounds; the ratio is the median of the paired ratios).
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
import transformers as tf
from torch import Tensor, nn
from torch.nn import functional as F

from hf_distill import DistillationConfig, DistillationTrainer, ForwardKL, HiddenStates, WeightedSum

TEMPERATURE = 2.0
Batch = dict[str, Tensor]


def classifier(layers: int, hidden: int) -> nn.Module:
    config = tf.BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        intermediate_size=4 * hidden,
        num_labels=2,
        vocab_size=8192,
    )
    return tf.BertForSequenceClassification(config)


def language_model(layers: int, hidden: int) -> nn.Module:
    config = tf.LlamaConfig(
        vocab_size=8192,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
    )
    return tf.LlamaForCausalLM(config)


def batches(number: int, vocabulary: int, language: bool) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(number):
        ids = torch.randint(5, vocabulary, (32, 64), generator=generator)
        lengths = torch.randint(16, 65, (32, 1), generator=generator)
        mask = (torch.arange(64) < lengths).long()
        labels = ids.masked_fill(mask == 0, -100) if language else torch.randint(2, (32,))
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def bare_step(
    student: nn.Module, teacher: nn.Module, projection: nn.Module | None, language: bool
) -> Callable[[Batch], Tensor]:
    """The loop that somebody would write by hand for this very model."""

    def step(batch: Batch) -> Tensor:
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        options = {"output_hidden_states": True} if projection is not None else {}
        if language:
            options["use_cache"] = False
        with torch.no_grad():
            theirs = teacher(**inputs, **options)
        ours = student(**inputs, **options)
        s, t = ours.logits, theirs.logits
        if language:
            s, t = s[:, :-1], t[:, :-1]
        kl = F.kl_div(
            F.log_softmax(s / TEMPERATURE, -1),
            F.log_softmax(t / TEMPERATURE, -1),
            reduction="none",
            log_target=True,
        ).sum(-1) * (TEMPERATURE**2)
        if language:
            mask = batch["labels"][:, 1:] != -100
            loss = (kl * mask).sum() / mask.sum()
        else:
            loss = kl.mean()
        if projection is not None:
            mask = batch["attention_mask"].bool()
            distances = (projection(ours.hidden_states[-1]) - theirs.hidden_states[-1]).square()
            loss = loss + (distances.mean(-1) * mask).sum() / mask.sum()
        loss.backward()
        return loss.detach()

    return step


def measure(make: Callable[[int, int], nn.Module], language: bool, hidden: bool, rounds: int):
    torch.manual_seed(0)
    teacher, data = make(6, 384), batches(8, 8192, language)
    students = [make(2, 192) for _ in range(2)]
    students[1].load_state_dict(students[0].state_dict())
    objective: WeightedSum = 1.0 * ForwardKL(TEMPERATURE)
    if hidden:
        objective = objective + HiddenStates(layers=((2, 6),))
    with tempfile.TemporaryDirectory() as folder:
        arguments = DistillationConfig(folder, report_to="none", dataloader_pin_memory=False)
        trainer = DistillationTrainer(
            students[0],
            arguments,
            train_dataset=[{k: v[0] for k, v in data[0].items()}],
            teacher_model=teacher,
            objective=objective,
        )
    projection = nn.Linear(192, 384) if hidden else None
    parts = [p for m in (students[1], projection) if m is not None for p in m.parameters()]
    bare = bare_step(students[1].train(), teacher, projection, language)
    optimizers = [
        torch.optim.AdamW([*students[0].parameters(), *trainer.projections.parameters()], lr=1e-5),
        torch.optim.AdamW(parts, lr=1e-5),
    ]

    def ours(batch: Batch) -> Tensor:
        counts = trainer._get_num_items_in_batch([batch], arguments.device)
        return trainer.training_step(students[0], batch, counts)

    times: list[list[float]] = [[], []]
    for turn in range(rounds + 3):
        order = (0, 1) if turn % 2 else (1, 0)
        for which in order:
            start = time.perf_counter()
            (ours if which == 0 else bare)(data[turn % len(data)])
            optimizers[which].step()
            optimizers[which].zero_grad()
            if turn >= 3:
                times[which].append(time.perf_counter() - start)
    ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
    return [1000 * statistics.median(t) for t in times] + [ratio]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tf.logging.set_verbosity_error()
    print(
        f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch "
        f"{torch.__version__}, {arguments.rounds} rounds; teacher 6 layers of 384, student 2 of "
        "192, batch 32 x 64\n"
    )
    print(
        "| head | objective | ours, ms | bare loop, ms | ratio |\n| :-- | :-- | --: | --: | --: |"
    )
    for name, make, language in (
        ("sequence classification", classifier, False),
        ("causal LM, vocabulary 8,192", language_model, True),
    ):
        for hidden in (False, True):
            ours, bare, ratio = measure(make, language, hidden, arguments.rounds)
            objective = "ForwardKL + HiddenStates" if hidden else "ForwardKL"
            print(f"| {name} | {objective} | {ours:.1f} | {bare:.1f} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
