"""Data of recipes from local files, against the standard library's readers of the same files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_recipes
from datasets import Audio, Dataset, DatasetDict, Image
from launch import launch
from local_files import write_csv, write_json, write_picture, write_sound
from sklearn.metrics import accuracy_score

from hf_distill.recipe import RecipeError, Run, load_recipe
from hf_distill.recipe.data_section import Data
from hf_distill.recipe.examples import fingerprints, load_source, split_of

pytestmark = pytest.mark.xdist_group("recipes")

ROWS = [
    {"text": "a, b", "label": "pos"},
    {"text": "NA", "label": "None"},
    {"text": "007", "label": "neg"},
    {"text": 'two\nlines "quoted"', "label": "pos"},
]


def load(folder: Path, source: Any, **keys: Any) -> DatasetDict:
    return load_source(Data(source, **keys), folder)[0]


# ---- formats -------------------------------------------------------------------------------------


def test_tables_hold_what_was_written(tmp_path: Path) -> None:
    """`NA` and `None` become missing values, `007` a 7, and rows break at commas and new lines."""
    write_csv(tmp_path / "a.csv", ROWS)
    write_csv(tmp_path / "german.csv", ROWS, ";")
    write_csv(tmp_path / "a.tsv", ROWS, "\t")
    write_json(tmp_path / "a.jsonl", ROWS)
    write_json(tmp_path / "a.json", ROWS, lines=False)
    Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    arrow = next((tmp_path / "saved").glob("*.arrow")).name
    for source in (
        *("a.csv", "german.csv", "a.tsv", "a.jsonl", "./a.json", "a.parquet", "saved"),
        *(f"saved/{arrow}", str(tmp_path / "a.csv")),
    ):
        assert load(tmp_path, source)["train"].to_list() == ROWS, source


def test_text_files_have_an_example_a_line(tmp_path: Path) -> None:
    """Blank lines would be texts without a token."""
    (tmp_path / "prose.txt").write_text("one\n\n  two words\n \n", encoding="utf-8")
    assert load(tmp_path, "prose.txt")["train"]["text"][:] == ["one", "  two words"]


def test_changed_files_are_read_again(tmp_path: Path) -> None:
    """The cache of datasets would train on the table of yesterday."""
    path, picture = tmp_path / "a.csv", tmp_path / "pictures" / "x" / "1.png"
    prints = []
    for value in ("old", "new"):
        write_csv(path, [{"text": value, "label": 1}])
        write_picture(picture, 10 if value == "old" else 200)
        for file in (path, picture):
            os.utime(file, ns=(0, 10**18 + len(prints) * 10**6))  # a millisecond later
        assert load(tmp_path, "a.csv")["train"]["text"][:] == [value]
        prints.append(fingerprints(load(tmp_path, "pictures"), None)["train"])
    assert prints[0] != prints[1], "the path of a picture is not its content"


# ---- splits --------------------------------------------------------------------------------------


BY_SPLIT = {"train": "d/a.csv", "test": ["d/b.csv", "d/c.csv"]}


@pytest.mark.parametrize(
    ("source", "files", "expected"),
    [
        ("d", {"train.csv": 3, "dev.csv": 2, "test.csv": 1}, (3, 2, 1)),
        ("d", {"my_train-0.csv": 3, "my_train-1.csv": 2, "my_test.csv": 1}, (5, None, 1)),
        ("d", {"train/a.csv": 3, "valid/a.csv": 2, "test/b.csv": 1, "README.txt": 0}, (3, 2, 1)),
        ("d/*.csv", {"a.csv": 3, "b.csv": 2, "c.jsonl": 0}, (5, None, None)),
        (
            {"train": "d/a.csv", "test": ["d/b.csv", "d/c.csv"]},
            {"a": 1, "b": 2, "c": 3},
            (1, None, 5),
        ),
    ],
)
def test_splits_of_names(
    tmp_path: Path, source: Any, files: dict[str, int], expected: tuple[int | None, ...]
) -> None:
    """Test rows under a name that is not recognised are trained on."""
    for name, count in files.items():
        path = tmp_path / "d" / (name if "." in name else f"{name}.csv")
        write_csv(path, [{"text": f"{name} {n}", "label": n} for n in range(count)] or [{"x": 1}])
    found = load(tmp_path, source)
    sizes = tuple(len(found[s]) if s in found else None for s in ("train", "validation", "test"))
    assert sizes == expected
    for split, dataset in found.items():
        if isinstance(source, str) and None not in expected:
            word = {"validation": "v"}.get(split, split[:4])
            assert all(word in text for text in dataset["text"][:]), (split, dataset["text"][:])


def test_saved_splits_and_the_command_lines_data(tmp_path: Path) -> None:
    """Other commands read a `--dataset` through the same function."""
    one, two = Dataset.from_list(ROWS), Dataset.from_list(ROWS[:2])
    DatasetDict(train=one, test=two).save_to_disk(tmp_path / "both")
    found = load(tmp_path, "both")
    assert {split: len(rows) for split, rows in found.items()} == {"train": 4, "test": 2}
    assert len(split_of(str(tmp_path / "both"), "test")) == 2


def test_folders_of_images_and_sounds(tmp_path: Path) -> None:
    """Classes in another order in each split would exchange the labels."""
    for split, classes in {"train": ("cat", "dog"), "test": ("dog",)}.items():
        for name in classes:
            write_picture(tmp_path / "images" / split / name / "deep" / "1.png", len(name) + 40)
            write_sound(tmp_path / "sounds" / split / name / "1.wav")
    found = load(tmp_path, "images")
    assert isinstance(found["train"].features["image"], Image)
    for split in found:
        assert found[split].features["label"].names == ["cat", "dog"]
    assert found["test"]["label"][:] == [1]
    sounds = load(tmp_path, "sounds")["train"]
    assert sounds.features["audio"] == Audio(decode=False), "torchcodec would be needed"
    assert Path(sounds[0]["audio"]["path"]).parts[-2:] == ("cat", "1.wav")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    """Pictures of trains are not the training split of cars."""
    for name in ("car", "train"):
        write_picture(tmp_path / "vehicles" / name / "1.png", 50)
    found = load(tmp_path, "vehicles")
    assert found["train"].features["label"].names == ["car", "train"]


@pytest.mark.parametrize("listed", ["metadata.csv", "metadata.jsonl", "table.csv"])
def test_files_with_columns(tmp_path: Path, listed: str) -> None:
    """A transcript beside another recording is a wrong label."""
    rows = []
    for n in range(3):
        write_sound(tmp_path / "speech" / f"{n}.wav", 10 + n)
        column = "audio" if listed == "table.csv" else "file_name"
        rows.append({column: f"{n}.wav", "sentence": f"number {n}"})
    rows.reverse()
    write = write_json if listed.endswith("jsonl") else write_csv
    write(tmp_path / "speech" / listed, rows)
    source = "speech/table.csv" if listed == "table.csv" else "speech"
    for row in load(tmp_path, source)["train"]:
        assert row["sentence"] == f"number {Path(row['audio']['path']).stem}"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("nothing.csv", "there is no file or folder .*nothing.csv"),
        ("none/*.csv", "expected files, got none"),
        ("mixed", r"formats \.csv.*got \.csv, \.jsonl.*folder/\*\.csv"),
        ("latin.csv", r"latin.csv cannot be read.*Save the file as UTF-8"),
        ("broken.parquet", r"broken.parquet cannot be read as \.parquet"),
        ("half", "a split .* in the name of every file of half, or of none, got 1 without, such"),
        ("loose", r"in a folder with the name of its class, got 1 outside of one, such as 2\.png"),
        ("unlisted", "expected a column 'file_name' in metadata.csv, got"),
        ({}, "expected a file for each split"),
        ({"train": 3}, "`data.source.train`: expected a path or a list of paths, got 3"),
    ],
)
def test_files_that_cannot_be_data_are_refused(tmp_path: Path, source: Any, told: str) -> None:
    """A traceback of pandas names neither the key nor the remedy."""
    row = [{"text": "a", "label": 1}]
    for name in ("mixed/a.csv", "half/train.csv", "half/rest.csv", "unlisted/metadata.csv"):
        write_csv(tmp_path / name, row)
    write_json(tmp_path / "mixed" / "b.jsonl", row)
    (tmp_path / "latin.csv").write_bytes("text,label\nf\xfcr,1\n".encode("latin-1"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    for name in ("loose/x/1.png", "loose/2.png", "unlisted/1.png"):
        write_picture(tmp_path / name, 9)
    with pytest.raises(RecipeError, match=told):
        load(tmp_path, source)


def test_options_of_the_hub_are_refused(tmp_path: Path) -> None:
    """A revision that has no effect looks like one that has."""
    write_csv(tmp_path / "a.csv", ROWS)
    with pytest.raises(RecipeError, match=r"`data.revision` is for data sets of the Hub"):
        load(tmp_path, "a.csv", revision="main")


# ---- whole recipes -------------------------------------------------------------------------------


def reviews(folder: Path) -> Path:
    """A recipe of texts whose source is one csv file; nothing else is set."""
    path = tiny_recipes.recipe(folder, data={"source": "reviews.csv"}, training={"max_steps": 2})
    words = np.array(tiny_recipes.WORDS)
    noise = np.random.default_rng(0)
    rows = [
        {"text": " ".join(noise.choice(words, 4)), "label": ("bad", "good")[n % 2]}
        for n in range(60)
    ]
    write_csv(folder / "reviews.csv", rows)
    return path


def test_a_recipe_of_one_csv_file(tmp_path: Path) -> None:
    """A newcomer's only file: its splits, its classes, and the figures of its test split."""
    lines: list[str] = []
    run = Run(load_recipe(reviews(tmp_path)), lines.append)
    final = run()
    raw = run.examples.raw
    total = sum(run.examples.sizes.values())
    assert total == len((tmp_path / "reviews.csv").read_text().splitlines()) - 1
    assert any("of 60 examples" in line and "for test" in line for line in lines)
    counts = np.bincount(raw["test"]["labels"][:])
    assert f"test: {len(raw['test'])} examples (bad {counts[0]}, good {counts[1]})" in lines
    report = json.loads((tmp_path / "out/report.json").read_text())
    found = tiny_recipes.probabilities(final, raw["test"]["text"][:]).argmax(-1)
    expected = accuracy_score(raw["test"]["labels"][:], found)
    assert report["models"]["student"]["test"]["accuracy"] == pytest.approx(expected)
    card = (final / "README.md").read_text()
    assert "fine-tuned" in card or "trained on reviews" in card
    assert str(tmp_path) not in card


@pytest.mark.slow
def test_a_recipe_of_an_image_folder(tmp_path: Path) -> None:
    """Pictures in folders need no function either."""
    path = tiny_recipes.pictures(tmp_path)
    for n in range(30):
        shade = ("dark", "light")[n % 2]
        write_picture(tmp_path / "shades" / shade / f"{n}.png", n + 100 * (n % 2))
    lines: list[str] = []
    Run(load_recipe(path, [("data.source", "shades")]), lines.append)()
    assert any(line.startswith("test: 6 examples (dark 3, light 3)") for line in lines)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["examples"]["test"] == 6


def _run(path: str) -> None:
    run = Run(load_recipe(path), print)
    rows = {split: data["text"][:] for split, data in run.examples.raw.items()}
    Path(path).with_name(f"rows-{run.state.process_index}.json").write_text(json.dumps(rows))
    run()


@pytest.mark.slow
def test_two_processes_split_one_file_alike(tmp_path: Path) -> None:
    """A test row on one process that is a training row on the other."""
    output = launch(_run, reviews(tmp_path), processes=2)
    assert output.count("teacher: begins") == 1
    first, second = (json.loads((tmp_path / f"rows-{n}.json").read_text()) for n in (0, 1))
    assert first == second
