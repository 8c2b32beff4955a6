"""Recipes of every task on texts: figures against stock transformers on the saved models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_text_tasks
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
from tiny_text_tasks import ROWS, splits

from hf_distill.recipe import RecipeError, Run

pytestmark = pytest.mark.xdist_group("recipes")
SAME_EXAMPLES = [
    name for name in ROWS if name != "masked_lm"
]  # its masks are drawn at each reading


def some_by_default(*names: str) -> list[Any]:
    """All rows, of which only these are in the default suite."""
    return [pytest.param(name, marks=[] if name in names else pytest.mark.slow) for name in ROWS]


@pytest.mark.parametrize("name", some_by_default("entities", "masked_lm", "reranker"))
def test_figures_are_those_of_stock_transformers(tmp_path: Path, name: str) -> None:
    """A figure of another split, of other labels or of padded places would look just as good."""
    row = ROWS[name]
    path = tiny_text_tasks.recipe(row, tmp_path)
    run = prepared(path)
    final = run()
    facts, test, rows = facts_of(tmp_path), splits(row, tmp_path)["test"], run.data["test"]
    for role, folder in MODELS.items():
        expected = row.judge(tmp_path / "out" / folder / "model", test, rows)
        found = facts["models"][role]
        for metric in row.metrics:
            assert found["test"][metric] == pytest.approx(expected[metric], rel=1e-4), role
            low, high = found["intervals"][metric]
            assert low <= found["test"][metric] <= high, (role, metric)
    check_published(final, facts, row.tag, row.metrics[0], row.auto)
    text = (final / "README.md").read_text()
    for note in facts["notes"]:
        assert note in (tmp_path / "out/report.md").read_text()
        assert note in " ".join(text.split())


@pytest.mark.parametrize("name", some_by_default("multiple_choice"))
def test_a_dry_run_trains_nothing(tmp_path: Path, name: str) -> None:
    """A plan that cannot be made, or a recipe that is refused only after the teacher's training."""
    plan = prepared(tiny_text_tasks.recipe(ROWS[name], tmp_path)).plan()
    assert "stage student/seed-0: to do" in plan
    assert not (tmp_path / "out/teacher").exists()


def maker(name: str, **options: Any) -> Make:
    """Write the recipe of a row."""
    return lambda folder, **changes: tiny_text_tasks.recipe(
        ROWS[name], folder, **options, **changes
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME_EXAMPLES)
def test_an_interrupted_run_ends_with_the_same_weights(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the data, drawn anew after an interruption."""
    check_interruption(maker(name), tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME_EXAMPLES)
def test_two_processes_give_the_same_figures(tmp_path: Path, name: str) -> None:
    """Examples counted twice, or texts paired with the labels of others, after a gathering."""
    check_processes(maker(name, quiet=True), tmp_path, ROWS[name].metrics, eval_batch=5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME_EXAMPLES)
def test_a_cached_teacher_gives_the_same_student(tmp_path: Path, name: str) -> None:
    """Cached outputs of other examples, or of other masks, than the student's."""
    check_cache(maker(name, quiet=True), tmp_path)


# ---- token classification ------------------------------------------------------------------------

CHANGED = """

def changed() -> DatasetDict:
    found = DatasetDict({name: part.map(change) for name, part in entities().items()})
    return found.cast_column("label", List(ClassLabel(names=CLASSES)))
"""
SAME = "def change(row):\n    return {}"
PARTS_OF_SPEECH = ["DET", "NN", "VB", "JJ"]


def changed(tmp_path: Path, change: str, *overrides: tuple[str, str], names: Any = "NAMES") -> Run:
    """The recipe on entities, with rows changed by Python, and other names of the classes."""
    path = tiny_text_tasks.recipe(ROWS["entities"], tmp_path)
    source = tmp_path / "data.py"
    more = f"{CHANGED}\n{change}\n\nCLASSES = {names}\n"
    source.write_text(f"{source.read_text()}{more}", encoding="utf-8")
    return prepared(path, ("data.source", "data.py:changed"), *overrides)


def test_words_that_are_cut_off_are_reported(tmp_path: Path) -> None:
    """An F1 over the words within the maximum length only, without a word about the others."""
    row = ROWS["entities"]
    run = prepared(tiny_text_tasks.recipe(row, tmp_path))
    test, tokenizer = splits(row, tmp_path)["test"], run.processor
    options: Any = {"truncation": True, "is_split_into_words": True}
    kept = [set(tokenizer(words, **options).word_ids()) - {None} for words in test["tokens"]]
    total = sum(map(len, test["tokens"]))
    cut = total - sum(map(len, kept))
    assert cut > 0
    assert f"Split test: {cut} of {total} labelled words are beyond" in " ".join(run.notes)


@pytest.mark.parametrize(
    ("change", "names", "message"),
    [
        (
            "def change(row):\n    return {'tokens': row['tokens'][:-1]}",
            "NAMES",
            "expected a label for each word, got 3 words",
        ),
        (
            "def change(row):\n    return {'label': [0] * len(row['label'])}",
            "NAMES",
            "entity_f1 needs entities, but split 'validation' has none in its 12 texts",
        ),
        (
            SAME,
            PARTS_OF_SPEECH,
            "entity_f1 is for classes such as B-PER, I-PER and O, got .'DET', 'NN', 'VB', 'JJ'",
        ),
    ],
)
def test_tags_that_cannot_be_scored_are_refused(
    tmp_path: Path, change: str, names: Any, message: str
) -> None:
    """A metric that has no value, found after the teacher's training."""
    with pytest.raises(RecipeError, match=message):
        changed(tmp_path, change, ("metric", "entity_f1"), names=names)


def test_parts_of_speech_are_scored_by_word(tmp_path: Path) -> None:
    """Runs of nouns counted as entities."""
    run = changed(tmp_path, SAME, names=PARTS_OF_SPEECH)
    assert run.metrics == ("token_accuracy",)


def test_entities_without_a_beginning_are_counted(tmp_path: Path) -> None:
    """IOB1 tags taken for IOB2: each I- counts as an entity that the data did not mean."""
    drop = "def change(row):\n    return {'label': [2 * (t == 2) for t in row['label']]}"
    run = changed(tmp_path, drop)
    inside = sum(row.count(2) for row in splits(ROWS["entities"], tmp_path)["test"]["label"])
    assert f"Split test: {inside} entities begin with I-" in " ".join(run.notes)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("masked_lm", {"data.packing": "first_fit"}, "expected wrapped, or nothing, for masked_lm"),
        ("masked_lm", {"data.masking.probability": "1.5"}, "a share above 0 and below 1"),
        ("masked_lm", {"robustness": "{}"}, "masked_lm is none"),
        ("entities", {"robustness": "{}"}, "token_classification is none"),
        ("regression", {"robustness": "{}"}, "measures classifiers .* labels are value"),
        ("multiple_choice", {"robustness": "{}"}, "multiple_choice is none"),
        ("multiple_choice", {"data.choices_column": "null"}, "`data.choices_column` is missing"),
        ("multiple_choice", {"data.problem": "regression"}, "regression is not for this task"),
        ("reranker", {"data.choices_column": "null"}, "got neither"),
        ("reranker_of_pairs", {"data.choices_column": "text"}, "got 'text' for .*text_column"),
        ("reranker", {"metric": "accuracy"}, "metric"),
        ("regression", {"data.label_column": "text"}, "for `data.text_column` and `data.label"),
    ],
)
def test_what_cannot_work_is_refused(
    tmp_path: Path, name: str, overrides: dict[str, str], message: str
) -> None:
    """A recipe that fails after the teacher's training, or measures something else."""
    path = tiny_text_tasks.recipe(ROWS[name], tmp_path)
    with pytest.raises(RecipeError, match=message):
        prepared(path, *overrides.items())


def test_grouping_by_length_is_refused_where_the_order_counts(tmp_path: Path) -> None:
    """Scores of one query's candidates given to those of another."""
    path = tiny_text_tasks.recipe(
        ROWS["reranker"], tmp_path, training={"train_sampling_strategy": "group_by_length"}
    )
    with pytest.raises(RecipeError, match="group_by_length changes the order"):
        prepared(path).check()


def test_examples_must_not_be_left_out_of_an_evaluation(tmp_path: Path) -> None:
    """Trainer drops the last batch of evaluations too: metrics would pair rows with others."""
    path = tiny_text_tasks.recipe(ROWS["entities"], tmp_path)
    with pytest.raises(RecipeError, match="`dataloader_drop_last`: the metrics of token_classif"):
        prepared(path, ("training.dataloader_drop_last", "true"))()
