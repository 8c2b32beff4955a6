"""The students whose cards stand in model_cards/examples, trained for real, each in minutes.

    python tests/benchmarks/cards.py text vision audio language_model --folder runs/cards

`text` and `vision` are recipes at a small size; `audio` tells four languages apart in spoken
prompts under noise, `language_model` continues film reviews. Every student has three seeds, and
its baseline the same training arguments. The finished student with its card is left in
FOLDER/NAME/final; the card, its pictures and its facts go to model_cards/examples/NAME.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from card_studies import Study, audio, language_model
from datasets import Dataset

from hf_distill import DistillationConfig, DistillationTrainer, HardLabels
from hf_distill.evaluation.curves import write_curves
from hf_distill.evaluation.latency import measure_speeds, size_on_disk
from hf_distill.export import export_onnx, quantize_int8
from hf_distill.hub import StudentCard, render
from hf_distill.hub import write as write_card
from hf_distill.recipe.claims import EQUAL, gain
from hf_distill.recipe.loading import load_recipe
from hf_distill.recipe.runner import Run
from hf_distill.recipe.stages import write_json
from hf_distill.robustness import Examples
from hf_distill.training.run_facts import accuracy_interval

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "model_cards" / "examples"
PROCESSOR = "preprocessor_config.json"
SEEDS = (0, 1, 2)
SMALL_RESNET = (
    "{model_type: resnet, layer_type: basic, embedding_size: 16, hidden_sizes: [16, 32, 64], "
    "depths: [1, 1, 1]}"
)
"""Smaller and faster than its teacher; the recipe's MobileNet is only smaller, on a CPU."""
RECIPES: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "text": (
        "recipes/text_classification/movie_reviews.yaml",
        [
            ("seeds", "[0, 1, 2]"),
            ("data.max_train_examples", "4000"),
            ("data.max_test_examples", "1000"),
            ("baseline", "null"),  # the same arguments as the student's
            ("training.num_train_epochs", "1"),
            ("training.per_device_train_batch_size", "16"),
            ("teacher.training.num_train_epochs", "2"),
            ("teacher.training.per_device_train_batch_size", "32"),
            ("teacher.cache", "{}"),
        ],
    ),
    "vision": (
        "recipes/image_classification/fashion_mnist.yaml",
        [
            ("name", "fashion-mnist-resnet-small"),
            ("seeds", "[0, 1, 2]"),
            ("data.max_train_examples", "6000"),
            ("data.max_test_examples", "4000"),
            ("student.config", SMALL_RESNET),
            ("training.learning_rate", "2e-3"),
            ("training.num_train_epochs", "8"),
            ("teacher.cache", "{}"),
            (
                "robustness",
                "{severities: [1, 3, 5], perturbations: [gaussian_noise, motion_blur, contrast], "
                "attacks: [pgd], steps: 10, perturbed_examples: 200, attacked_examples: 200, "
                "gate_examples: 0}",
            ),
        ],
    ),
}


# ---- training and card ---------------------------------------------------------------------------


def trainer_of(
    study: Study, model: tf.PreTrainedModel, teacher: Any, objective: Any, seed: int, smoke: bool
) -> DistillationTrainer:
    arguments = DistillationConfig(
        str(Path(tempfile.gettempdir()) / study.name),  # checkpoints, of which there are none
        use_cpu=True,
        seed=seed,
        learning_rate=study.rate,
        num_train_epochs=study.epochs,
        max_steps=2 if smoke else -1,
        warmup_steps=0.1,
        weight_decay=0.01,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        eval_strategy="epoch",
        logging_steps=10,
    )

    def compute(prediction: tf.EvalPrediction) -> dict[str, float]:
        classes, labels = prediction.predictions, prediction.label_ids
        if study.metric == "perplexity":
            classes, labels = classes[:, :-1], labels[:, 1:]
        return {"accuracy": float((classes == labels).mean())}

    def decided(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits.argmax(-1)

    return DistillationTrainer(
        model,
        arguments,
        study.collate,
        study.train,
        study.test[:256] if smoke else study.test,
        processing_class=study.processor,
        teacher_model=teacher,
        objective=objective,
        compute_metrics=compute,
        preprocess_logits_for_metrics=decided,
    )


def judged(study: Study, model: tf.PreTrainedModel, teacher: Any, smoke: bool) -> dict[str, float]:
    """The figures of a model on the test split."""
    figures = trainer_of(study, model, teacher, 1.0 * HardLabels(), 0, smoke).evaluate()
    found = {k: figures[f"eval_{k}"] for k in ("accuracy", "agreement") if f"eval_{k}" in figures}
    if study.metric != "perplexity":
        return found
    found["next_token_accuracy"] = found.pop("accuracy")
    return {"perplexity": math.exp(figures["eval_hard_labels"]), **found}


def script(study: Study, root: Path, smoke: bool) -> None:
    """Teacher, then a baseline and a student for each seed; the first student is published."""
    tf.set_seed(0)
    teacher = study.make(True)
    trainer_of(study, teacher, None, 1.0 * HardLabels(), 0, smoke).train()
    teacher.save_pretrained(root / "teacher")
    found: dict[str, list[dict[str, float]]] = {"student": [], "baseline": []}
    kept: dict[str, Any] = {}
    for seed in SEEDS[:1] if smoke else SEEDS:
        for role, objective in (("baseline", 1.0 * HardLabels()), ("student", study.objective)):
            tf.set_seed(seed)
            taught = teacher if role == "student" else None
            trainer = trainer_of(study, study.make(False), taught, objective, seed, smoke)
            trainer.train()
            kept.setdefault(role, trainer)
            found[role].append(judged(study, trainer.model, teacher, smoke))
            print(role, seed, found[role][-1], flush=True)
    final = root / "final"
    kept["student"].save_model(str(final))
    (final / "training_args.bin").unlink(missing_ok=True)
    kept["baseline"].save_model(str(root / "baseline"))
    write_curves(kept["student"].state.log_history, final)
    known = judged(study, teacher, None, smoke)
    card = _card(study, kept["student"], found, known)
    names = {"student": final, "baseline": root / "baseline", "teacher": root / "teacher"}
    batch = study.collate(study.test[:8])
    del batch["labels"]
    models_of = {"teacher": teacher, **{role: kept[role].model for role in kept}}
    speeds = measure_speeds({role: (models_of[role], batch) for role in names})
    card.measured = {
        role: {"size_bytes": size_on_disk(folder), **speeds[role].on_card()[0]}
        for role, folder in names.items()
    }
    card.measured_on = speeds["student"].on_card()[1] | {"input": study.shape}
    write_card(card, final)
    write_json(root / "card.json", vars(card))


def _card(
    study: Study,
    trainer: DistillationTrainer,
    found: dict[str, list[dict[str, float]]],
    teacher: dict[str, float],
) -> StudentCard:
    """The card of the trainer, with what only this script knows."""
    card, own, metric = trainer.student_card(), study.card, study.metric
    seeds = len(found["student"])
    card.model_name, card.plots = study.name, ["curves.png"]
    card.license, card.language = own["license"], own["language"]
    card.limitations, card.seeds, card.test_examples = own["limitations"], seeds, len(study.test)
    card.data = {**own["data"], **card.data, "splits": _splits(study)}
    card.preprocessing |= own["preprocessing"]
    card.teacher |= {"name": f"{type(trainer.model).__name__}", "how": "trained on the same data"}
    card.student["initialised"] = "random weights"
    card.results = {"teacher": teacher}
    for role, rows in found.items():
        card.results[role] = {key: _spread([row[key] for row in rows]) for key in rows[0]}
    ours, alone = ([row[metric] for row in found[role]] for role in ("student", "baseline"))
    card.claim = {"metric": metric, "gain": gain(metric, ours, alone, metric != "perplexity")}
    card.claim["arguments"] = EQUAL
    if metric == "accuracy":
        card.claim["interval"] = accuracy_interval(statistics.fmean(ours), len(study.test))
    card.reproduce = {"command": f"python tests/benchmarks/cards.py {study.key}"}
    return card


def _splits(study: Study) -> dict[str, int]:
    return {"train": len(study.train), "test": len(study.test)}


def _spread(values: list[float]) -> Any:
    if len(values) == 1:
        return values[0]
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values)}


# ---- what is kept --------------------------------------------------------------------------------


def keep(name: str, root: Path) -> None:
    """Put the card with its pictures, its facts and the student's config among the examples."""
    folder = EXAMPLES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in (root / "final").iterdir():
        if path.suffix == ".png" or path.name in ("README.md", "config.json", PROCESSOR):
            shutil.copy(path, folder / path.name)
    shutil.copy(root / "card.json", folder / "card.json")


def exported(final: Path, split: Dataset) -> None:
    """The student as ONNX and with int8 weights, compared on labelled examples."""
    examples = Examples.read(split, "text", "label")
    export_onnx(final, examples=examples)
    quantize_int8(final, examples=examples)


def render_again() -> None:
    """The cards anew from the kept facts, after a change of the templates."""
    for facts in EXAMPLES.glob("*/card.json"):
        card = StudentCard(**json.loads(facts.read_text(encoding="utf-8")))
        (facts.parent / "README.md").write_text(render(card), encoding="utf-8")


def sources() -> Any:
    """`recipes/sources.py`, which lies in no package."""
    spec = importlib.util.spec_from_file_location("card_sources", ROOT / "recipes" / "sources.py")
    assert spec is not None, "recipes/sources.py is Python"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    scripts = {"audio": audio, "language_model": language_model}
    known = [*RECIPES, *scripts]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--folder", type=Path, default=Path("runs/cards"))
    parser.add_argument("--smoke", action="store_true", help="two steps, and no example is changed")
    parser.add_argument("--render", action="store_true", help="render the examples again and stop")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {*known}:
        parser.error(f"expected names of {known}, got {sorted(unknown)}")
    if arguments.render:
        render_again()
        return
    for name in arguments.names:
        root = arguments.folder / name
        if name in RECIPES:
            path, overrides = RECIPES[name]
            run = Run(load_recipe(path, [*overrides, ("output_dir", str(root))]))
            final = run()
            if name == "text":
                exported(final, sources().movie_reviews()["test"].select(range(400)))
                run()  # the exported files come into the card
        else:
            script(scripts[name](sources()), root, arguments.smoke)
        if not arguments.smoke:
            keep(name, root)


if __name__ == "__main__":
    main()
