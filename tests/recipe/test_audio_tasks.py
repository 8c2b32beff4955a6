"""Recipes of every task on sounds: figures against stock transformers on the saved models."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_audio_tasks
from datasets import Audio
from recipe_contracts import (
    MODELS,
    Make,
    check_cache,
    check_interruption,
    check_processes,
    check_published,
    facts_of,
    prepared,
)
from tiny_audio_tasks import EXTRACTOR, RATE, ROWS

from hf_distill.recipe import RecipeError

pytestmark = pytest.mark.xdist_group("recipes")


@pytest.mark.parametrize("name", ROWS)
def test_figures_are_those_of_stock_transformers(tmp_path: Path, name: str) -> None:
    """A figure of sounds at another rate, or of padded places, would look just as good."""
    row = ROWS[name]
    path = tiny_audio_tasks.recipe(row, tmp_path)
    assert "stage student/seed-0: to do" in prepared(path).plan()
    assert not (tmp_path / "out/teacher").exists()
    run = prepared(path)
    final = run()
    facts, test = facts_of(tmp_path), run.examples.raw["test"]
    test = test if "labels" not in test.column_names else test.rename_column("labels", "label")
    for role, folder in MODELS.items():
        expected = row.judge(tmp_path / "out" / folder / "model", test)
        found = facts["models"][role]
        for metric in row.metrics:
            assert found["test"][metric] == pytest.approx(expected[metric], rel=1e-4), role
            low, high = found["intervals"][metric]
            assert low <= found["test"][metric] <= high, (role, metric)
    check_published(final, facts, row.tag, row.metrics[0], row.auto)
    assert row.judge(final, test) == row.judge(tmp_path / "out/student/seed-0/model", test)


def maker(name: str) -> Make:
    """Write the recipe of a row."""
    return lambda folder, **changes: tiny_audio_tasks.recipe(ROWS[name], folder, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_an_interrupted_run_ends_with_the_same_weights(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the sounds drawn anew after an interruption."""
    check_interruption(maker(name), tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_two_processes_give_the_same_figures(tmp_path: Path, name: str) -> None:
    """Sounds counted twice, or paired with the labels of others, after a gathering."""
    check_processes(maker(name), tmp_path, ROWS[name].metrics, eval_batch=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_cached_teacher_gives_the_same_student(tmp_path: Path, name: str) -> None:
    """Cached outputs of other sounds than the student's."""
    check_cache(maker(name), tmp_path)


@pytest.mark.slow
def test_a_teacher_reads_sounds_with_its_own_extractor(tmp_path: Path) -> None:
    """A teacher that is given sounds at the student's rate and scale."""
    own = {**EXTRACTOR, "sampling_rate": RATE // 2, "do_normalize": False}
    path = tiny_audio_tasks.recipe(ROWS["tones"], tmp_path, teacher={"processor": own})
    run = prepared(path)
    run()
    assert run.own is not None
    assert run.own.processor.sampling_rate == RATE // 2
    row = run.data["test"][0]
    assert row["audio"]["sampling_rate"] == tiny_audio_tasks.STORED
    lengths = [len(found["test"][0]["input_values"]) for found in (run.data, run.own.splits)]
    assert lengths[0] == 2 * lengths[1]


def test_a_folder_of_sounds_is_read(tmp_path: Path) -> None:
    """Files that are found, but decoded with torchcodec, or not cut."""
    path = tiny_audio_tasks.recipe(ROWS["tones"], tmp_path)
    whole = prepared(path)
    for split, rows in whole.examples.raw.items():
        for number, row in enumerate(rows):
            folder = tmp_path / "files" / str(split) / tiny_audio_tasks.CLASSES[row["labels"]]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:02}.wav").write_bytes(row["audio"]["bytes"])
    run = prepared(path, ("data.source", "files"))
    assert isinstance(run.examples.raw["train"].features["audio"], Audio)
    assert sorted(run.examples.names) == sorted(tiny_audio_tasks.CLASSES)
    for split, rows in run.data.items():
        ours = sorted(tuple(row["input_values"].tolist()) for row in rows)
        assert ours == sorted(tuple(row["input_values"].tolist()) for row in whole.data[split])


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("tones", {"data.max_seconds": "0"}, "a positive number of seconds, got 0"),
        ("tones", {"data.audio_column": "sound"}, "no column 'sound'.*audio_column"),
        ("tones", {"data.audio_column": "label"}, "different columns, got 'label'"),
        ("tones", {"robustness": "{}"}, "audio_classification"),
        ("tones", {"data.processor": "{feature_extractor_type: X}"}, "data.processor"),
        (
            "tones",
            {"data.processor": "{feature_extractor_type: Wav2Vec2FeatureExtractor, rate: 1}"},
            "rate",
        ),
    ],
)
def test_what_cannot_work_is_refused(
    tmp_path: Path, name: str, overrides: dict[str, str], message: str
) -> None:
    """A recipe that fails after the teacher's training, or measures something else."""
    path = tiny_audio_tasks.recipe(ROWS[name], tmp_path)
    with pytest.raises(RecipeError, match=message):
        prepared(path, *overrides.items())
