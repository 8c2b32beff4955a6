"""Models that a recipe names: which commit of the Hub they are, and what cannot be loaded."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from tiny_recipes import bert, recipe
from transformers import AutoConfig, AutoModelForSequenceClassification

from hf_distill.recipe import RecipeError, Run, load_recipe
from hf_distill.recipe.stages import Stage

OLD, NEW = "a" * 40, "b" * 40


def silent(line: str) -> None:
    """For lines that nobody needs to see."""


def model(folder: Path, seed: int, layers: int = 3) -> Path:
    """A tiny BERT in a folder, with a tokenizer that fits."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**bert(layers))
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache on this machine with two commits of one model, of which ``main`` is the
    older and ``v2`` the newer."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    for module in ("huggingface_hub.file_download", "transformers.utils.hub"):
        monkeypatch.setattr(f"{module}.constants.HF_HUB_CACHE", str(cache))
    repository = cache / "models--me--teacher"
    for seed, commit in enumerate((OLD, NEW)):
        model(repository / "snapshots" / commit, seed)
    (repository / "refs").mkdir()
    for name, commit in {"main": OLD, "v2": NEW}.items():
        (repository / "refs" / name).write_text(commit)
    return repository


def stages(path: Path, *overrides: tuple[str, str]) -> dict[str, Stage]:
    return Run(load_recipe(path, overrides), silent).stages


def test_a_model_of_the_hub_is_its_commit(tmp_path: Path, hub: Path) -> None:
    """The main branch moves, the teacher is another one, and finished stages stay as they were."""
    for role, changes in {
        "teacher": {"teacher": {"model": "me/teacher", "config": None}},
        "student": {"student": {"model": "me/teacher", "from_teacher_layers": None}},
    }.items():
        path = recipe(tmp_path / role, **changes)
        before = stages(path)
        newer = stages(path, (f"{role}.revision", "v2"))
        pinned = stages(path, (f"{role}.revision", OLD))
        (hub / "refs/main").write_text(NEW)
        moved = stages(path)
        (hub / "refs/main").write_text(OLD)
        assert (
            f'"commit": "{OLD}"' in json.dumps(before["student/seed-0"].inputs) or role != "student"
        )
        for name in ("student/seed-0", "evaluation"):
            prints = [made[name].fingerprint for made in (before, pinned, newer, moved)]
            assert prints[0] == prints[1], "the same commit by another name"
            assert prints[2] == prints[3] != prints[0], "another commit"


def test_the_revision_is_what_is_loaded(tmp_path: Path, hub: Path) -> None:
    """A pin in the fingerprint alone would train on the main branch."""
    path = recipe(
        tmp_path,
        teacher={"model": "me/teacher", "config": None, "fine_tuned": True, "training": {}},
        student={"model": "me/teacher", "from_teacher_layers": None},
    )
    for revision, commit in {"v2": NEW, "main": OLD, NEW: NEW}.items():
        overrides = [(f"{role}.revision", revision) for role in ("teacher", "student")]
        run = Run(load_recipe(path, overrides), silent)
        stock = AutoModelForSequenceClassification.from_pretrained("me/teacher", revision=commit)
        for found in (run.models.trained("me/teacher"), run.models.learner("student", 0)):
            theirs = stock.bert.encoder.state_dict()
            ours = found.bert.encoder.state_dict()
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_commit_that_is_not_there_is_refused(tmp_path: Path, hub: Path) -> None:
    """An hour of another stage would pass before."""
    path = recipe(tmp_path, teacher={"model": "me/teacher", "config": None})
    for revision in ("v3", "c" * 40):
        with pytest.raises(RecipeError, match=rf"`teacher.model`: me/teacher at {revision} cannot"):
            Run(load_recipe(path, [("teacher.revision", revision)]), silent)


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    """It would be ignored."""
    folder = model(tmp_path / "mine", 0)
    path = recipe(tmp_path, teacher={"model": str(folder), "config": None, "revision": "v2"})
    with pytest.raises(RecipeError, match=r"`teacher.revision` is for models of the Hub"):
        Run(load_recipe(path), silent)
    assert Run(load_recipe(path, [("teacher.revision", "null")]), silent).models.commits == {}


class Ran:
    """Makes a file where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("ran", "w")


@pytest.mark.parametrize("kind", ["pickle", "archive", "cut"])
@pytest.mark.parametrize("fine_tuned", [True, False])
def test_pickled_weights_are_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fine_tuned: bool
) -> None:
    """A traceback of torch, whose advice is to run the code; the remedy is followed."""
    monkeypatch.chdir(tmp_path)
    folder = model(tmp_path / "mine", 0)
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    weights = folder / "pytorch_model.bin"
    if kind == "pickle":
        weights.write_bytes(pickle.dumps(Ran(), protocol=2))
    elif kind == "archive":
        torch.save({"weight": Ran()}, weights)
    else:
        torch.save(loaded.state_dict(), weights)
        weights.write_bytes(weights.read_bytes()[:1000])
    (folder / "model.safetensors").unlink()
    teacher = {"model": str(folder), "config": None, "fine_tuned": fine_tuned, "training": {}}
    path = recipe(tmp_path, teacher=teacher)
    with pytest.raises(RecipeError, match=r"cannot be loaded.*safetensors") as caught:
        Run(load_recipe(path), silent).plan()
    assert "weights_only" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not (tmp_path / "ran").exists()
    loaded.save_pretrained(folder)  # as whoever trusts the file does in a script
    Run(load_recipe(path), silent).check()


CUSTOM = """
import pathlib
pathlib.Path("ran").touch()
from transformers import BertConfig, BertForSequenceClassification
class Own(BertConfig):
    model_type = "own"
class OwnModel(BertForSequenceClassification):
    config_class = Own
"""


def test_code_of_a_model_is_refused_with_advice_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe has no trust_remote_code, which transformers tells one to set."""
    monkeypatch.chdir(tmp_path)
    folder = model(tmp_path / "mine", 0)
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.OwnModel"}
    config |= {"model_type": "own", "auto_map": own}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(CUSTOM)
    path = recipe(tmp_path, teacher={"model": str(folder), "config": None})
    with pytest.raises(RecipeError, match=r"`teacher.model`.*auto_map.*in a script") as caught:
        Run(load_recipe(path), silent).check()
    assert "Please pass the argument" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
