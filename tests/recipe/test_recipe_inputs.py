"""Recipes whose teacher reads other inputs than the student, against plain loops on both models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_recipes
import torch
import transformers
from sklearn.metrics import accuracy_score, log_loss
from two_tokenizers import PAIRS, PIECES, kl
from two_tokenizers import logits as by

from hf_distill.recipe import RecipeError, Run, load_recipe
from hf_distill.recipe.training import arguments

pytestmark = pytest.mark.xdist_group("recipes")
tf: Any = transformers
CUT: dict[str, Any] = {"truncation": True, "max_length": 20}
STORED = """

def stored() -> DatasetDict:
    import numpy as np

    found, noise = lines(), np.random.default_rng(0)
    for split, rows in found.items():
        scores = noise.normal(size=(len(rows), 2))
        rows = rows.add_column("scores", scores.tolist())
        rows = rows.add_column("votes", noise.integers(1, 5, (len(rows), 2)).tolist())
        rows = rows.add_column("ids", [[1, 0]] * len(rows))
        logs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        rows = rows.add_column("logs", logs[:, ::-1].tolist())
        rows = rows.add_column("other", [text + " honestly" for text in rows["text"]])
        found[split] = rows.add_column("number", list(range(len(rows))))
    return found
"""


def silent(line: str) -> None:
    """For lines that nobody needs to see."""


def prepared(path: Path, *overrides: tuple[str, str]) -> Run:
    return Run(load_recipe(path, overrides), silent)


def roberta(layers: int = 1) -> dict[str, Any]:
    sizes = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 24, "initializer_range": 0.3, "pad_token_id": 1}
    sizes |= {"vocab_size": len(PAIRS), "max_position_embeddings": 60, "type_vocab_size": 1}
    return {"model_type": "roberta", **sizes}


def texts(folder: Path, teacher: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A recipe with byte pairs in the folder of its teacher, and word pieces for its student."""
    PAIRS.save_pretrained(folder / "expert")
    PIECES.save_pretrained(folder / "pieces")
    torch.manual_seed(7)
    names = {0: "negative", 1: "positive"}
    made = tf.AutoConfig.for_model(**roberta(2), id2label=names)
    tf.AutoModelForSequenceClassification.from_config(made).save_pretrained(folder / "expert")
    own = {"config": None, "model": "./expert", "fine_tuned": True, "training": {}}
    bert = tiny_recipes.bert(1, vocab_size=len(PIECES), max_position_embeddings=60)
    data = {"processor": "./pieces", "max_length": 20, "source": "lines.py:stored"}
    path = tiny_recipes.recipe(
        folder,
        teacher=own if teacher is None else teacher,
        data=data | changes.pop("data", {}),
        student={"from_teacher_layers": None, "config": bert} | changes.pop("student", {}),
        **changes,
    )
    source = folder / "lines.py"
    source.write_text(source.read_text(encoding="utf-8") + STORED, encoding="utf-8")
    return path


def learned(run: Run, folder: Path, rows: Any, teacher: Any = None) -> float:
    """The recipe's forward KL on some rows, of the student before its training."""
    args = arguments(run.recipe, "student", 0, folder / "evaluated")
    student = run.models.learner("student", 0)
    goal = run.lessons["student/seed-0"].objective
    teacher = run.given_teacher(run.teachers()) if teacher is None else teacher
    found = run.make_trainer(student, args, goal, teacher).evaluate(rows)
    return float(found["eval_forward_kl"])


def student_of(run: Run) -> Any:
    return run.models.learner("student", 0).eval()


def expert(folder: Path) -> Any:
    return tf.AutoModelForSequenceClassification.from_pretrained(folder / "expert").eval()


# ---- another tokenizer ---------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [None, "other", ["text", "other"]])
def test_the_teacher_reads_the_texts_with_its_tokenizer(tmp_path: Path, inputs: Any) -> None:
    """The student's ids are read as the teacher's: confident nonsense."""
    run = prepared(texts(tmp_path), ("teacher.inputs", json.dumps(inputs)))
    found = learned(run, tmp_path, run.data["test"])
    raw, model, student = run.examples.raw["test"], expert(tmp_path), student_of(run)
    columns = [inputs or "text"] if not isinstance(inputs, list) else inputs
    expected = [
        kl(
            by(student, PIECES, row["text"], **CUT),
            by(model, PAIRS, *(row[name] for name in columns), **CUT),
        )
        for row in raw
    ]
    assert found == pytest.approx(np.mean(expected), rel=1e-5)


def test_two_teachers_are_trained_cached_and_reported_with_their_tokenizer(tmp_path: Path) -> None:
    """A teacher trained, cached or measured on the student's ids, somewhere on the way."""
    own = {"config": roberta(), "processor": "./expert", "seeds": [0, 1], "cache": {}}
    path = texts(tmp_path, {**own, "training": {"learning_rate": 2e-3}})
    final = prepared(path)()
    out = tmp_path / "out"
    report = json.loads((out / "report.json").read_text())
    given, labels = tiny_recipes.held_out(tmp_path)
    folders = [out / f"teacher/seed-{seed}/model" for seed in (0, 1)]
    each = [tiny_recipes.probabilities(folder, given) for folder in folders]  # by its own tokenizer
    assert tf.AutoTokenizer.from_pretrained(folders[0]).get_vocab() == PAIRS.get_vocab()
    assert tf.AutoTokenizer.from_pretrained(final).get_vocab() == PIECES.get_vocab()
    p, q = np.mean(each, axis=0), tiny_recipes.probabilities(final, given)
    teacher, student = (report["models"][role]["test"] for role in ("teacher", "student"))
    assert teacher["nll"] == pytest.approx(log_loss(labels, p), rel=1e-5)
    assert teacher["accuracy"] == pytest.approx(accuracy_score(labels, p.argmax(-1)))
    member = report["runs"]["teacher/seed-1"]["test"]
    assert member["nll"] == pytest.approx(log_loss(labels, each[1]), rel=1e-5)
    kept = (p * np.log(p / q)).sum(-1).mean()
    assert student["forward_kl_divergence"] == pytest.approx(kept, rel=1e-4)
    run = prepared(path)
    rows = run.examples.raw["validation"]
    cached = learned(
        run, tmp_path, run.data["validation"], run._teacher_of(run.lessons["student/seed-0"])
    )
    ours = student_of(run)
    expected = []
    for text in rows["text"]:
        both = np.mean([softened(folder, text) for folder in folders], axis=0)
        expected.append(kl(by(ours, PIECES, text, **CUT), torch.tensor(both).log()))
    assert cached == pytest.approx(np.mean(expected), rel=1e-4)
    card = " ".join((final / "README.md").read_text().split())
    assert f"{len(PAIRS)} tokens" in card
    assert f"{len(PIECES)} tokens" in card


def softened(folder: Path, text: str) -> np.ndarray:
    model = tf.AutoModelForSequenceClassification.from_pretrained(folder).double().eval()
    found: np.ndarray = by(model, PAIRS, text, **CUT).softmax(-1).numpy()
    return found


# ---- which processor is whose --------------------------------------------------------------------


def test_two_models_bring_their_tokenizers(tmp_path: Path) -> None:
    """The default tokenizer is the teacher's, and the student reads its ids as its own."""
    bert = tiny_recipes.bert(2, vocab_size=len(PIECES), max_position_embeddings=60)
    made = tf.AutoModel.from_config(tf.AutoConfig.for_model(**bert))
    made.save_pretrained(tmp_path / "small")
    PIECES.save_pretrained(tmp_path / "small")
    own = {"config": None, "model": "./small", "layers": [1]}
    run = prepared(texts(tmp_path, data={"processor": None}, student=own))
    assert run.processor.get_vocab() == PIECES.get_vocab()
    assert run.own is not None
    assert run.own.processor.get_vocab() == PAIRS.get_vocab()
    student = student_of(run)
    kept = made.state_dict()["encoder.layer.1.output.dense.weight"]
    assert torch.equal(student.bert.encoder.layer[0].output.dense.weight, kept)
    assert "stage student/seed-0: to do" in run.plan()
    with pytest.raises(RecipeError, match=r"`student.layers` are those of `student.model`"):
        prepared(tmp_path / "recipe.yaml", ("student.model", "null"), ("student.config", "{}"))


def test_one_tokenizer_of_two_models_is_shared(tmp_path: Path) -> None:
    """Recipes that there are would keep raw texts, and train their students again."""
    run = prepared(texts(tmp_path, data={"processor": "./expert"}))
    assert run.own is None
    assert set(run.data["train"].column_names) == {"labels", "input_ids", "attention_mask"}


def test_stages_depend_on_what_the_teacher_reads(tmp_path: Path) -> None:
    """Another column of the teacher leaves yesterday's student; the baseline has no teacher."""
    path = texts(tmp_path)
    before, after = (prepared(path, *more).stages for more in ((), (("teacher.inputs", "other"),)))
    changed = {name for name in before if before[name].fingerprint != after[name].fingerprint}
    assert changed == {"student/seed-0", "evaluation"}


def test_images_of_two_sizes(tmp_path: Path) -> None:
    """A teacher of other means, deviations or sizes is fed the student's pixels."""
    path = tiny_recipes.pictures(tmp_path)
    sizes = {"size": {"height": 12, "width": 12}, "image_mean": [0.2] * 3, "image_std": [0.3] * 3}
    settings = {"image_processor_type": "ViTImageProcessor", **sizes}
    run = prepared(path, ("teacher.processor", json.dumps(settings)), ("teacher.cache", "{}"))
    assert run.own is not None
    model = run.models.teacher(0).eval()
    found = learned(run, tmp_path, run.data["test"], run.own.teacher(model))
    student, expected = student_of(run), []
    for row in run.examples.raw["test"]:
        image = row["image"].convert("RGB")
        sides = []
        for one, processor in ((student, run.processor), (model, run.own.processor)):
            with torch.no_grad():
                sides.append(one(**processor(image, return_tensors="pt")).logits[0])
        expected.append(kl(*sides))
    assert found == pytest.approx(np.mean(expected), rel=1e-4)
    assert run.trained_on("teacher")[0]["pixel_values"].shape == (3, 12, 12)
    assert run.data["train"][0]["pixel_values"].shape == (3, 8, 8)


@pytest.mark.slow
def test_images_of_two_sizes_end_in_a_card(tmp_path: Path) -> None:
    """The last stages read another processor than the first: speed, report, card."""
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 12, "width": 12}}
    path = tiny_recipes.pictures(tmp_path)
    final = prepared(path, ("teacher.processor", json.dumps(settings)), ("teacher.cache", "{}"))()
    card = (final / "README.md").read_text()
    assert "(12 x 12 pixels" in card
    assert "(8 x 8 pixels" in card


# ---- outputs that are columns --------------------------------------------------------------------

COLUMNS: dict[str, dict[str, Any]] = {
    "logits": {"logits": "scores", "labels": ["positive", "negative"]},
    "votes": {"votes": "votes", "name": "three readers"},
    "top_k": {"top_k": ["ids", "logs"]},
}


def stored_log_probs(row: dict[str, Any], form: str) -> torch.Tensor:
    """The column's log-probabilities in the order of the data's classes."""
    if form == "votes":
        return torch.tensor(row["votes"]).double().log()
    name = "logs" if form == "top_k" else "scores"
    return torch.tensor(row[name]).double().flip(0)  # the second class comes first


@pytest.mark.parametrize("form", sorted(COLUMNS))
def test_columns_of_the_data_are_the_teacher(tmp_path: Path, form: str) -> None:
    """Votes in another order of the classes teach the contrary."""
    path = texts(tmp_path, {"config": None, "training": {}, "columns": COLUMNS[form]})
    objective = "[{name: forward_kl, temperature: 1.0}]"
    run = prepared(path, ("objective", objective))
    run.check()
    found, student = learned(run, tmp_path, run.data["test"]), student_of(run)
    expected = [
        kl(by(student, PIECES, row["text"]), stored_log_probs(row, form), 1.0)
        for row in run.examples.raw["test"]
    ]
    assert found == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_student_of_columns_is_published_with_their_source(tmp_path: Path) -> None:
    """A report without the votes' accuracy, a card that conceals where the outputs are from."""
    path = texts(tmp_path, {"config": None, "training": {}, "columns": COLUMNS["votes"]})
    run = prepared(path)
    assert "stage student/seed-0: to do" in run.plan()
    final = run()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    rows = run.examples.raw["test"]
    votes = np.array(rows["votes"][:], float)
    shares = votes / votes.sum(-1, keepdims=True)
    teacher, student = (report["models"][role]["test"] for role in ("teacher", "student"))
    assert teacher["accuracy"] == pytest.approx(accuracy_score(rows["labels"], votes.argmax(-1)))
    assert teacher["nll"] == pytest.approx(log_loss(rows["labels"], shares), rel=1e-5)
    ours = tiny_recipes.probabilities(final, rows["text"]).argmax(-1)
    assert student["agreement"] == pytest.approx(accuracy_score(votes.argmax(-1), ours))
    card = " ".join((final / "README.md").read_text().replace("`", "").split())
    assert "three readers" in card
    assert "its outputs read from columns of the data: votes (votes)" in card


# ---- a longer prompt -----------------------------------------------------------------------------


def test_a_teacher_with_a_longer_prompt(tmp_path: Path) -> None:
    """The teacher's positions are compared with those of the student's shorter prompt."""
    template = "very bad {prompt}"
    path = tiny_recipes.language(
        tmp_path, data={"source": "prose.py:answers"}, teacher={"prompt": template}
    )
    run = prepared(path)
    run.check()
    teacher, student = (model.eval() for model in (run.teachers()["teacher"], student_of(run)))
    found = learned(run, tmp_path, run.data["test"])
    values = []
    rows, raw = run.data["test"], run.examples.raw["test"]
    for row, text in zip(rows, raw, strict=True):
        places = [n for n, label in enumerate(row["labels"]) if label != -100]
        completion = [row["input_ids"][n] for n in places]
        prompt = run.processor(template.format(prompt=text["prompt"]))["input_ids"]
        with torch.no_grad():
            s = student(torch.tensor([row["input_ids"]])).logits[0].double()
            t = teacher(torch.tensor([prompt + completion])).logits[0].double()
        values += [kl(s[p - 1], t[len(prompt) - 1 + n], 1.0) for n, p in enumerate(places)]
    assert found == pytest.approx(np.mean(values), rel=1e-5)
    measured = run._judged_teacher({"teacher": teacher}, run.given_teacher({"teacher": teacher}))
    losses = []
    for row, text in zip(rows, raw, strict=True):
        prompt = run.processor(template.format(prompt=text["prompt"]))["input_ids"]
        completion = [row["input_ids"][n] for n, x in enumerate(row["labels"]) if x != -100]
        labels = [-100] * len(prompt) + completion
        with torch.no_grad():
            out = teacher(torch.tensor([prompt + completion]), labels=torch.tensor([labels]))
        losses += [float(out.loss)] * len(completion)
    assert measured["perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)


@pytest.mark.slow
def test_a_longer_prompt_is_on_the_card(tmp_path: Path) -> None:
    """Nobody sees from the card that the teacher knew more than the student."""
    template = "very bad {prompt}"
    path = tiny_recipes.language(
        tmp_path, data={"source": "prose.py:answers"}, teacher={"prompt": template}
    )
    card = " ".join((prepared(path)() / "README.md").read_text().replace("`", "").split())
    assert "it read a prompt of its own, made of prompt" in card


# ---- what cannot work ----------------------------------------------------------------------------

WRONG = [
    ({"inputs": "txt"}, "split 'train'.*no column 'txt'.*Did you mean 'text'"),
    ({"inputs": "number"}, "`teacher.inputs`: expected a column of texts, got 'number'"),
    ({"inputs": "label"}, "which holds the labels"),
    ({"inputs": ["a", "b", "c"]}, "`teacher.inputs`: expected one column, or two"),
    ({"prompt": "{text}"}, "`teacher.prompt` is for `task: causal_lm`"),
    ({"columns": {"logits": "scores"}}, "expected one of `teacher.model`.*got `teacher.model` and"),
    ({"columns": {"logits": "scores"}, "cache": {}}, "`teacher.cache` is for teachers that are"),
    ({"model": None, "columns": {"logit": "scores"}}, "did you mean `teacher.columns.logits`"),
    ({"model": None, "columns": {"logits": "score"}}, "no column 'score'.*Did you mean 'scores'"),
    ({"model": None, "columns": {"top_k": ["ids"]}}, "`teacher.columns.top_k`: expected two"),
    ({"model": None, "columns": {"name": "x"}}, "`teacher.columns`: Expected the name of a column"),
    (
        {"model": None, "columns": {"logits": "scores", "labels": ["positive", "negativ"]}},
        r"`teacher.columns.labels`.*without 'negative'.*Did you mean 'negativ'",
    ),
]


@pytest.mark.parametrize(("changes", "told"), WRONG, ids=[told[:40] for _, told in WRONG])
def test_mistakes_are_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    """A typo is found by a collator, after the teacher was trained."""
    more = [(f"teacher.{key}", json.dumps(value)) for key, value in changes.items()]
    with pytest.raises(RecipeError, match=told):
        prepared(texts(tmp_path), *more)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"teacher.prompt": "{documnt} {prompt}"}, "no column 'documnt'"),
        (
            {
                "teacher.prompt": "{prompt",
            },
            "`teacher.prompt`: ",
        ),
        ({"teacher.prompt": "{prompt}", "data.packing": "first_fit"}, "without `data.packing`"),
        ({"teacher.prompt": "{prompt}", "teacher.fine_tuned": "false"}, "fine_tuned: true"),
        ({"teacher.inputs": "prompt"}, "`teacher.inputs` is for classifiers"),
    ],
)
def test_prompts_that_cannot_work_are_refused(
    tmp_path: Path, more: dict[str, str], told: str
) -> None:
    """A field of a template that is no column ends the run in its first batch."""
    path = tiny_recipes.language(tmp_path, data={"source": "prose.py:answers"})
    overrides = [
        (key, json.dumps(value) if "prompt" in key else value) for key, value in more.items()
    ]
    with pytest.raises(RecipeError, match=told):
        prepared(path, *overrides)
