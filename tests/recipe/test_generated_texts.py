"""Recipes of text to text: what is measured is what ``model.generate`` of the folder writes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from launch import launch
from safetensors.torch import load_file
from text_pairs import spelling
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hf_distill.recipe import RecipeError, Run, load_recipe

pytestmark = pytest.mark.xdist_group("recipes")
MODELS = {"teacher": "teacher/model", "baseline": "baseline/seed-0/model", "student": "final"}


def silent(line: str) -> None:
    """For lines that nobody needs to see."""


def train(folder: Path, kind: str = "t5", **changes: Any) -> None:
    Run(load_recipe(spelling(folder, kind, **changes)), silent)()


def report_of(folder: Path) -> Any:
    return json.loads((folder / "out/report.json").read_text())["models"]


def pairs_of(folder: Path) -> tuple[list[str], list[str]]:
    """Texts and targets of the test split, by the function of the recipe's data."""
    spec = importlib.util.spec_from_file_location("spelled", folder / "spelled.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    test = module.spelled()["test"]
    return test["text"][:], test["target"][:]


@torch.no_grad()
def by_hand(model: Path, texts: list[str]) -> list[str]:
    """One text at a time, with the settings that were saved with the model."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(model).eval()
    rows = [tokenizer(f"say {text}", return_tensors="pt") for text in texts]
    ids = [loaded.generate(row.input_ids, attention_mask=row.attention_mask)[0] for row in rows]
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]


def check_figures(folder: Path) -> None:
    texts, targets = pairs_of(folder)
    report = report_of(folder)
    for role, place in MODELS.items():
        found = by_hand(folder / "out" / place, texts)
        test = report[role]["test"]
        assert any(found), "nothing was generated: there is nothing to compare"
        assert test["chrf"] == pytest.approx(sacrebleu.corpus_chrf(found, [targets]).score)
        hits = [a == b for a, b in zip(found, targets, strict=True)]
        assert test["exact_match"] == pytest.approx(sum(hits) / len(hits))


def test_figures_are_those_of_generated_texts(tmp_path: Path) -> None:
    """Texts of padded batches, cut ones, or the likeliest tokens behind the right ones."""
    train(tmp_path, data={"generation": {"min_new_tokens": 3}})  # little is learned in seconds
    check_figures(tmp_path)
    final = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out/final")
    assert (final.config.num_layers, final.config.num_decoder_layers) == (3, 2)
    card = (tmp_path / "out/final/README.md").read_text()
    assert "layers 2 of the decoder" in card
    assert "chrf" in card.lower()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bart", "marian"])
def test_beams_and_other_architectures(tmp_path: Path, kind: str) -> None:
    """Learned positions, other first tokens, and beams of one text mixed with another's."""
    train(
        tmp_path,
        kind,
        data={"generation": {"num_beams": 3, "min_new_tokens": 3}},
        teacher={"cache": {}},
    )
    check_figures(tmp_path)


def _run(folder: str) -> None:
    Run(load_recipe(Path(folder) / "recipe.yaml"), silent)()


@pytest.mark.slow
def test_two_processes_measure_the_same_texts(tmp_path: Path) -> None:
    """Texts that are counted twice, or beside the targets of others."""
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        sizes = {"per_device_train_batch_size": 8 // processes, "per_device_eval_batch_size": 5}
        data = {"generation": {"min_new_tokens": 3}}
        spelling(folder, training={**sizes, "eval_strategy": "no"}, teacher=_quiet(), data=data)
        launch(_run, str(folder), processes=processes)
        check_figures(folder)
        found.append(load_file(folder / "out/final/model.safetensors"))
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-4) for name in found[0])


def _quiet() -> dict[str, Any]:
    from text_pairs import SIZES

    sizes = {"model_type": "t5", "vocab_size": 24, "d_model": 16, "dropout_rate": 0.0}
    return {"config": {**sizes, **SIZES["t5"]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"generation": {"num_beam": 2}}}, "did you mean `data.generation.num_beams`"),
        ({"data": {"generation": {"do_sample": True}}}, "expected greedy or beam search"),
        ({"data": {"generation": {"num_return_sequences": 2}}}, "unknown key"),
        ({"data": {"target_column": "summary"}}, "no column 'summary'"),
        ({"metric": "accuracy"}, "metric"),
        ({"robustness": {}}, "text_to_text is none"),
        ({"student": {"from_teacher_layers": {"encoder": 1}}}, "use_cache: false"),
        ({"kind": "bart", "data": {"max_target_length": 17}}, "at most 16 tokens"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Each would fail after the teacher's training, or measure something else."""
    with pytest.raises(RecipeError, match=message):
        Run(load_recipe(spelling(tmp_path, **changes)), silent).check()


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    """Models that never stop: each text would run to its longest length."""
    path = spelling(tmp_path, data={"processor": "./endless"})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.save_pretrained(tmp_path / "endless")
    made = json.loads((tmp_path / "endless/tokenizer.json").read_text())
    assert made["post_processor"] is None
    with pytest.raises(RecipeError, match="would never stop"):
        Run(load_recipe(path), silent).check()


def test_more_decoder_layers_than_encoder_layers_generate_without_a_cache(tmp_path: Path) -> None:
    """The remedy that the refusal names: generation would fail with it after all trainings."""
    student = {"from_teacher_layers": {"encoder": 1}}
    path = spelling(tmp_path, student=student, data={"generation": {"use_cache": False}})
    run = Run(load_recipe(path), silent)
    run.check()
    model = run.models.learner("student", 0).eval()
    assert model.config.num_layers < model.config.num_decoder_layers
    assert run.task.configure is not None
    run.task.configure(model, run.recipe.data, run.processor)
    row = run.data["test"][0]
    ids = model.generate(torch.tensor([row["input_ids"]]))
    assert ids.shape[1] > 1
