"""What teaches a small language model most from the same tokens, on real text.

    python tests/benchmarks/language_models.py --folder runs/language_models

The teacher is SmolLM2-135M-Instruct, the student 10 of its 30 layers (recipes/sources.py brings
both the model and the texts). Every method trains the same student on the same blocks of text in
the same order; a seed is another set of blocks and another order. Measured is what a student says
of held-out text of the same kind, and of Wikipedia (BoolQ's passages), and how far it is from the
teacher on text that it writes itself, in float32. It prints a Markdown table and draws the curves.
Each finished run is a file in the folder: a second call goes on.

Whether the layers are spread evenly or are those that matter most (`hf_distill.importance`, on the
first blocks of the training text), and what teaches a student most that can write already:

    python tests/benchmarks/language_models.py --folder runs/important --start importance:10 \
        --only fine_tuning forward_kl --keep
    python tests/benchmarks/language_models.py --folder runs/later \
        --start 'runs/important/forward_kl-{seed}' --skip 270 --steps 60 --rate 2e-4
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers as tf
from torch import Tensor

import hf_distill as hd
from hf_distill.models.initialise import importance

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ("perplexity", "kl", "agreement", "acceptance")
PARTS = ("test", "shifted", "own")
COLUMNS = {
    ("test", "perplexity"): ("perplexity", 1),
    ("test", "kl"): ("KL(teacher ‖ student)", 3),
    ("test", "agreement"): ("agreement", 3),
    ("shifted", "perplexity"): ("perplexity, Wikipedia", 1),
    ("shifted", "kl"): ("KL, Wikipedia", 3),
    ("shifted", "agreement"): ("agreement, Wikipedia", 3),
    ("own", "kl"): ("KL(student ‖ teacher), its own text", 3),
}
"""Held-out part and figure -> heading of the table, digits."""
METHODS: dict[str, tuple[str, str, Any]] = {
    "fine_tuning": ("fine-tuning on the text alone", "#555555", hd.HardLabels()),
    "forward_kl": ("forward KL", "#2166ac", hd.ForwardKL(1.0)),
    "reverse_kl": ("reverse KL", "#b2182b", hd.ReverseKL(1.0)),
    "jsd": ("Jensen-Shannon, β = 0.5", "#1b7837", hd.JensenShannon(1.0, 0.5)),
    "sampled": ("forward KL, cache of 12 draws a token", "#67a9cf", hd.ForwardKL(1.0)),
    "on_policy": ("Jensen-Shannon, half on its own text", "#762a83", hd.JensenShannon(1.0, 0.5)),
}
"""Name -> how the table calls it, its colour, what is minimised."""
ALONE = ("fine_tuning",)


def sources() -> Any:
    """The loaders of recipes/sources.py."""
    spec = importlib.util.spec_from_file_location("sources", ROOT / "recipes" / "sources.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(texts: Any, tokenizer: Any, number: int, length: int) -> Tensor:
    """The first blocks of the shuffled texts in a row, (number, length)."""
    ids: list[int] = []
    for text in texts.shuffle(seed=0)["text"]:
        ids += [*tokenizer(text)["input_ids"], tokenizer.unk_token_id]  # <|endoftext|>
        if len(ids) >= number * length:
            return torch.tensor(ids[: number * length]).view(number, length)
    raise ValueError(f"Expected {number * length:,} tokens of text, got {len(ids):,}.")


class HeldOut:
    """Blocks of text, and what the teacher says of them, kept in float16."""

    def __init__(self, rows: Tensor, teacher: Any):
        self.rows = rows
        with torch.no_grad():
            self.expert = [
                teacher(input_ids=part).logits[:, :-1].log_softmax(-1).half()
                for part in rows.split(4)
            ]

    def __call__(self, model: Any) -> dict[str, float]:
        """The figures of `FIGURES`, means over all tokens but the first of each block."""
        training, total, count = model.training, torch.zeros(4, dtype=torch.float64), 0
        model.eval()
        with torch.no_grad():
            for rows, expert in zip(self.rows.split(4), self.expert, strict=True):
                own = model(input_ids=rows).logits[:, :-1].float().log_softmax(-1)
                theirs = expert.float()
                p, q = theirs.exp(), own.exp()
                values = (
                    -own.gather(-1, rows[:, 1:, None])[..., 0],
                    (p * (theirs - own)).sum(-1),
                    (own.argmax(-1) == theirs.argmax(-1)).float(),
                    torch.minimum(p, q).sum(-1),
                )
                total += torch.stack([value.double().sum() for value in values])
                count += rows[:, 1:].numel()
        model.train(training)
        means = (total / count).tolist()
        means[:2] = math.exp(means[0]), max(0.0, means[1])  # the teacher's own is -1e-8
        return dict(zip(FIGURES, means, strict=True))


class OwnText:
    """What a student writes after the beginnings of blocks, and what the teacher thinks of it."""

    def __init__(self, rows: Tensor, teacher: Any):
        self.prompts, self.teacher = rows[:, : rows.shape[1] // 4], teacher

    def __call__(self, model: Any) -> dict[str, float]:
        """The mean of KL(student ‖ teacher) over the tokens that the student draws."""
        torch.manual_seed(0)
        model.eval()
        given = self.prompts.shape[1]
        with torch.no_grad():
            text = model.generate(
                self.prompts,
                attention_mask=torch.ones_like(self.prompts),
                generation_config=tf.GenerationConfig(
                    do_sample=True,
                    top_k=0,
                    min_new_tokens=2 * given,
                    max_new_tokens=2 * given,
                    pad_token_id=0,
                ),
            )
            own, theirs = (
                teller(input_ids=text).logits[:, given - 1 : -1].float().log_softmax(-1)
                for teller in (model, self.teacher)
            )
        return {"kl": float((own.exp() * (own - theirs)).sum(-1).mean())}


class Curve(tf.TrainerCallback):
    """Figures on the validation blocks every so many steps."""

    def __init__(self, held_out: HeldOut, every: int, seen: int):
        self.held_out, self.every, self.seen = held_out, every, seen
        self.points: list[dict[str, float]] = []
        self.seconds = 0.0

    def measure(self, model: Any, step: int) -> None:
        start = time.perf_counter()
        self.points.append({"tokens": step * self.seen, **self.held_out(model)})
        self.seconds += time.perf_counter() - start

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.measure(kwargs["model"], 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self.measure(kwargs["model"], state.global_step)


def as_dataset(rows: Tensor) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"input_ids": rows.tolist(), "labels": rows.tolist()})


def first_student(teacher: Any, rows: Tensor, seed: int, options: argparse.Namespace) -> Any:
    """What training starts from: a folder, or layers of the teacher."""
    kind, _, count = options.start.partition(":")
    if kind == "importance":
        batches = [{"input_ids": part} for part in rows[:32].split(8)]
        measured = importance(teacher, batches)
        return hd.student_from_teacher(teacher, int(count), importance=measured)
    if kind == "uniform":
        return hd.student_from_teacher(teacher, options.start)
    folder = options.start.format(seed=seed)
    return tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def train(
    method: str, rows: Tensor, seed: int, teacher: Any, curve: Curve, options: argparse.Namespace
) -> Any:
    """The student of a method, trained on these blocks."""
    student = first_student(teacher, rows, seed, options).train()
    settings: dict[str, Any] = {
        "max_steps": options.steps,
        "per_device_train_batch_size": options.batch,
        "learning_rate": options.rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "bf16": True,
        "use_cpu": True,
        "seed": seed,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": options.every,
    }
    kind, arguments = hd.DistillationTrainer, hd.DistillationConfig
    if method == "on_policy":
        kind, arguments = hd.OnPolicyDistillationTrainer, hd.OnPolicyConfig
        prompt = options.length // 4
        settings |= {
            "lmbda": 0.5,
            "prompt_length": prompt,
            "max_completion_length": options.length - prompt,
        }
    data = as_dataset(rows)
    with tempfile.TemporaryDirectory() as folder:
        speaks: Any = None if method in ALONE else teacher
        if method == "sampled":
            form = {"kind": "sampled", "draws": options.draws}
            path = Path(folder) / "cache"
            collator = tf.default_data_collator
            hd.write_cache(path, hd.ModelTeacher(teacher), data, collator, format=form)
            speaks = hd.CachedTeacher(path)
        trainer = kind(
            student,
            arguments(folder, **settings),
            train_dataset=data,
            data_collator=tf.default_data_collator,
            teacher_model=speaks,
            objective=METHODS[method][2],
            callbacks=[curve],
        )
        trainer.remove_callback(tf.PrinterCallback)
        trainer.train()
    return student


def run(method: str, seed: int, options: argparse.Namespace, setting: Any) -> dict[str, Any]:
    """One run: the curve of its training, and its figures at the end."""
    train_rows, held_out, teacher = setting
    number = options.steps * options.batch
    first = options.skip * options.batch + seed * number
    rows = train_rows[first : first + number]
    curve = Curve(held_out["validation"], options.every, options.batch * options.length)
    start = time.perf_counter()
    student = train(method, rows, seed, teacher, curve, options)
    seconds = time.perf_counter() - start - curve.seconds
    found = {name: held_out[name](student) for name in PARTS}
    if options.keep:
        student.save_pretrained(options.folder / f"{method}-{seed}")
    return {"method": method, "seed": seed, "seconds": seconds, **found, "curve": curve.points}


def write(path: Path, value: Mapping[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1), encoding="utf-8")
    part.replace(path)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What two runs must have in common to be in one table."""
    names = ("start", "skip", "steps", "batch", "length", "held_out", "rate", "draws", "every")
    return {name: getattr(options, name) for name in names}


def load(folder: Path, options: argparse.Namespace) -> dict[tuple[str, int], dict[str, Any]]:
    """The finished runs of a folder."""
    found = {}
    for path in sorted(folder.glob("*-*.json")):
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["settings"] != settings_of(options):
            raise SystemExit(
                f"{path} was made with {value['settings']}, and this is {settings_of(options)}. "
                "Give another --folder."
            )
        found[value["method"], value["seed"]] = value
    return found


def spread(values: list[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def table(bounds: Mapping[str, Any], results: Mapping[tuple[str, int], dict[str, Any]]) -> str:
    lines = [
        f"| | {' | '.join(title for title, _ in COLUMNS.values())} | seconds a run |",
        "| :-- |" + " --: |" * (len(COLUMNS) + 1),
    ]

    def cells(runs: list[Mapping[str, Any]]) -> str:
        found = [
            spread([run[part][name] for run in runs], digits)
            for (part, name), (_, digits) in COLUMNS.items()
        ]
        return " | ".join(found)

    for who, own in bounds.items():
        lines.append(f"| {who} | {cells([own])} | – |")
    for method, (title, _, _) in METHODS.items():
        runs = [value for (name, _), value in results.items() if name == method]
        if runs:
            lines.append(f"| {title} | {cells(runs)} | {spread([r['seconds'] for r in runs], 0)} |")
    return "\n".join(lines)


def draw(results: Mapping[tuple[str, int], dict[str, Any]], teacher: float, path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    figure = Figure(figsize=(10, 4.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, name in zip(panels, ("perplexity", "kl"), strict=True):
        for method, (title, colour, _) in METHODS.items():
            runs = [value["curve"] for (own, _), value in results.items() if own == method]
            if runs:
                x = [point["tokens"] for point in runs[0]][1:]
                ys = [[point[name] for point in curve][1:] for curve in runs]
                mean = [statistics.mean(y) for y in zip(*ys, strict=True)]
                panel.plot(x, mean, color=colour, label=title)
                low = [min(y) for y in zip(*ys, strict=True)]
                high = [max(y) for y in zip(*ys, strict=True)]
                panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.set(xlabel="tokens read", yscale="log")
        panel.grid(alpha=0.3, which="both")
        panel.spines[["top", "right"]].set_visible(False)
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0)))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter("{x:g}")
    panels[0].axhline(teacher, color="black", linestyle="--", linewidth=1, label="teacher")
    panels[0].set_title("perplexity on held-out text")
    panels[1].set_title("KL(teacher ‖ student), nats a token")
    panels[1].yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=130)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/language_models"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--start", default="uniform:10", help="or importance:10, or a folder with {seed} in it"
    )
    parser.add_argument("--keep", action="store_true", help="keep the students in the folder")
    parser.add_argument("--skip", type=int, default=0, help="steps whose text is not to be read")
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=128, help="tokens of a block")
    parser.add_argument("--held-out", type=int, default=24, help="blocks of each kind of text")
    parser.add_argument("--every", type=int, default=15, help="steps between points of the curve")
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--picture", type=Path, help="by default in the folder")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    datasets.disable_progress_bars()
    tf.logging.set_verbosity_error()
    options.folder.mkdir(parents=True, exist_ok=True)
    results = load(options.folder, options)
    module = sources()
    name = module.smollm2_135m_instruct()
    tokenizer = tf.AutoTokenizer.from_pretrained(name)
    teacher = tf.AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    texts, length = module.language_data(), options.length
    number = (max(options.seeds) + 1) * options.steps * options.batch
    number += options.skip * options.batch
    train_rows = blocks(texts["train"], tokenizer, number, length)
    counts = {"test": options.held_out, "shifted": options.held_out}
    counts["validation"] = max(4, options.held_out // 3)
    held_out: dict[str, Any] = {
        part: HeldOut(blocks(texts[part], tokenizer, count, length), teacher)
        for part, count in counts.items()
    }
    held_out["own"] = OwnText(held_out["test"].rows, teacher)
    start = first_student(teacher, train_rows, options.seeds[0], options)
    bounds = {
        who: {part: held_out[part](model) for part in PARTS}
        for who, model in (("teacher", teacher), ("student, before training", start))
    }
    for seed in options.seeds:
        for method in options.only:
            if (method, seed) in results:
                continue
            found = run(method, seed, options, (train_rows, held_out, teacher))
            results[method, seed] = found
            path = options.folder / f"{method}-{seed}.json"
            write(path, {**found, "settings": settings_of(options)})
            shown = {part: found[part] for part in PARTS}
            print(method, seed, f"{found['seconds']:.0f} s", shown, flush=True)
    picture = options.picture or options.folder / "curves.png"
    draw(results, bounds["teacher"]["test"]["perplexity"], picture)
    print(f"\n{table(bounds, results)}\n")
    machine = platform.processor() or platform.machine()
    print(
        f"{machine}, {options.threads} thread(s), torch {torch.__version__}; {settings_of(options)}"
    )


if __name__ == "__main__":
    main()
