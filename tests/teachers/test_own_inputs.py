"""Teachers with inputs of their own, against plain loops in float64 over single examples."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
import transformers
import two_tokenizers
from datasets import Dataset
from launch import launch
from tiny_trainers import Recorder, config
from torch import nn
from transformers import (
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    default_data_collator,
)
from two_tokenizers import (
    OTHERS,
    PAIRS,
    PIECES,
    SIZES,
    TAGS,
    TEACHERS,
    TEXTS,
    UNIGRAMS,
    bert,
    deberta,
    kl,
    logits,
    made,
    randomised,
    roberta,
    squares,
    tokenized,
)

from hf_distill import (
    CachedTeacher,
    DistillationTrainer,
    Ensemble,
    ForwardKL,
    HiddenStates,
    HTTPTeacher,
    LogitMSE,
    ModelTeacher,
    write_cache,
)
from hf_distill.models.raw_inputs import resampled
from hf_distill.models.signals import LOGITS
from hf_distill.models.task_model import TaskModel
from hf_distill.teachers.collating import with_own_inputs
from hf_distill.teachers.serving import TeacherServer

tf: Any = transformers


@dataclass(frozen=True)
class Head:
    """A head with one row of logits per example, of both models."""

    kind: str
    options: dict[str, Any]
    objective: Any
    loss: Callable[[torch.Tensor, torch.Tensor], float]
    pairs: bool = False


HEADS = {
    "classes": Head("ForSequenceClassification", {"num_labels": 3}, ForwardKL(2.0), kl),
    "pairs": Head("ForSequenceClassification", {"num_labels": 3}, ForwardKL(2.0), kl, True),
    "regression": Head("ForSequenceClassification", {"num_labels": 1}, LogitMSE(), squares),
}


@pytest.mark.parametrize("name", sorted(TEACHERS))
@pytest.mark.parametrize("head", sorted(HEADS))
@pytest.mark.parametrize("batch", [1, 4])
def test_texts_are_read_by_the_teachers_tokenizer(
    tmp_path: Path, name: str, head: str, batch: int
) -> None:
    """A teacher that reads the student's ids gives confident nonsense."""
    at, (build, tokenizer) = HEADS[head], TEACHERS[name]
    student = bert(at.kind, 1, **at.options)
    teacher = build(at.kind, 2, **at.options)
    columns = ("text", "other") if at.pairs else ("text",)
    rows = tokenized(at.pairs, columns)
    if head == "regression":
        rows = rows.map(lambda row: {"labels": float(row["labels"])})
    taught = ModelTeacher(teacher, tokenizer, inputs=columns)
    ours = made(
        tmp_path,
        student,
        taught,
        rows,
        objective=1.0 * at.objective,
        data_collator=DataCollatorWithPadding(PIECES),
        processing_class=PIECES,
        per_device_eval_batch_size=batch,
    )
    found = ours.evaluate()[f"eval_{at.objective.name}"]
    texts = zip(TEXTS, OTHERS, strict=True) if at.pairs else ((text,) for text in TEXTS)
    expected = [
        at.loss(logits(student, PIECES, *each), logits(teacher, tokenizer, *each)) for each in texts
    ]
    assert found == pytest.approx(np.mean(expected), rel=1e-9)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_language_model_as_classifier(tmp_path: Path, side: str) -> None:
    """It finds the end of a text by its own padding; the student's marks another token."""
    sizes = {name: size for name, size in SIZES.items() if "dropout" not in name}
    sizes |= {"vocab_size": len(PAIRS), "num_key_value_heads": 2, "num_labels": 3}
    student = bert("ForSequenceClassification", 1, num_labels=3)
    teacher = randomised(tf.LlamaForSequenceClassification(tf.LlamaConfig(**sizes)), 2)
    tokenizer = copy.deepcopy(PAIRS)
    tokenizer.padding_side = side
    ours = made(
        tmp_path,
        student,
        ModelTeacher(teacher, tokenizer),
        tokenized(),
        objective=1.0 * ForwardKL(2.0),
        processing_class=PIECES,
        per_device_eval_batch_size=6,
    )
    expected = []
    for text in TEXTS:
        with torch.no_grad():  # without padding, the logits of the last token
            states = teacher.model(**PAIRS(text, return_tensors="pt")).last_hidden_state[0, -1]
            expected.append(kl(logits(student, PIECES, text), teacher.score(states)))
    # positions behind padding on the left are others, in the float32 of rotary embeddings
    assert ours.evaluate()["eval_forward_kl"] == pytest.approx(np.mean(expected), rel=1e-7)


def test_the_trainer_finds_the_tokenizer_and_the_column(tmp_path: Path) -> None:
    """Everybody would have to write a collator for the commonest pair of models."""
    teacher = roberta("ForSequenceClassification", 2, num_labels=3)
    teacher.save_pretrained(tmp_path / "teacher")
    PAIRS.save_pretrained(tmp_path / "teacher")
    student = bert("ForSequenceClassification", 1, num_labels=3)
    ours = made(
        tmp_path,
        student,
        str(tmp_path / "teacher"),
        tokenized(),
        objective=1.0 * ForwardKL(2.0),
        processing_class=PIECES,
    )
    batch = next(iter(ours.get_train_dataloader()))
    assert set(batch) >= {"input_ids", "teacher_input_ids", "labels"}
    recorder = Recorder()
    ours.add_callback(recorder)
    ours.train()
    expected = [kl(logits(student, PIECES, t), logits(teacher, PAIRS, t)) for t in TEXTS]
    losses = [(log["forward_kl"], n) for log, n in zip(recorder.steps, (4, 2), strict=True)]
    assert sum(value * n for value, n in losses) / 6 == pytest.approx(np.mean(expected), rel=1e-5)


def test_columns_of_the_data_are_used(tmp_path: Path) -> None:
    """Tokens made once, in ``dataset.map``, would be made anew in each epoch."""
    teacher = roberta("ForSequenceClassification", 2, num_labels=3)
    student = bert("ForSequenceClassification", 1, num_labels=3)

    def added(row: Any) -> dict[str, Any]:
        return {f"teacher_{name}": ids for name, ids in PAIRS(row["text"]).items()}

    rows = tokenized().map(added).remove_columns("text")
    ours = made(
        tmp_path,
        student,
        ModelTeacher(teacher, PAIRS),
        rows,
        objective=1.0 * ForwardKL(2.0),
        processing_class=PIECES,
    )
    expected = [kl(logits(student, PIECES, t), logits(teacher, PAIRS, t)) for t in TEXTS]
    assert ours.evaluate()["eval_forward_kl"] == pytest.approx(np.mean(expected), rel=1e-9)


def test_embeddings_are_pooled_over_the_teachers_tokens(tmp_path: Path) -> None:
    """The student's padding mask on the teacher's tokens would leave texts out."""
    student, teacher = bert("Model", 1), roberta("Model", 2)
    rows = tokenized().remove_columns("labels")
    ours = made(
        tmp_path,
        student,
        ModelTeacher(teacher, PAIRS, inputs="text"),
        rows,
        objective=1.0 * HiddenStates(groups=("embedding",)),
        data_collator=DataCollatorWithPadding(PIECES),
        processing_class=PIECES,
    )
    projection = next(m for m in ours.projections.modules() if isinstance(m, nn.Linear))
    values = []
    for text in TEXTS:
        with torch.no_grad():
            s = student(**PIECES(text, return_tensors="pt")).last_hidden_state[0].mean(0)
            t = teacher(**PAIRS(text, return_tensors="pt")).last_hidden_state[0].mean(0)
            values.append(float((projection(s) - t).square().mean()))
    assert ours.evaluate()["eval_hidden_states"] == pytest.approx(np.mean(values), rel=1e-9)


def test_hidden_states_of_other_tokens_are_refused(tmp_path: Path) -> None:
    """Two texts padded to one length would be compared token by token, of different texts."""
    student = bert("ForSequenceClassification", 1, num_labels=3)
    teacher = deberta("ForSequenceClassification", 2, num_labels=3)
    with pytest.raises(ValueError, match=r"another tokenizer.*groups=\('embedding',\)"):
        made(
            tmp_path,
            student,
            ModelTeacher(teacher, UNIGRAMS, inputs="text"),
            tokenized(),
            objective=ForwardKL(2.0) + HiddenStates(),
            processing_class=PIECES,
        )


@pytest.mark.parametrize("limit", [None, 7])
@pytest.mark.parametrize("name", sorted(TEACHERS))
def test_tokens_are_matched_by_words(tmp_path: Path, name: str, limit: int | None) -> None:
    """The n-th piece of one tokenizer is part of another word than that of the other, and words
    that the teacher cuts off have no outputs of its own."""
    build, tokenizer = TEACHERS[name]
    student = bert("ForTokenClassification", 1, num_labels=3)
    teacher = build("ForTokenClassification", 2, num_labels=3)
    rows = []
    for text, tags in zip(TEXTS, TAGS, strict=True):
        words = text.split()
        encoded = PIECES(words, is_split_into_words=True)
        seen: set[int | None] = {None}
        labels = []
        for word in encoded.word_ids():
            labels.append(-100 if word in seen else tags[word])
            seen.add(word)
        rows.append({"tokens": words, "labels": labels, **encoded})
    ours = made(
        tmp_path,
        student,
        ModelTeacher(teacher, tokenizer, inputs="tokens", max_length=limit),
        Dataset.from_list(rows),
        objective=1.0 * ForwardKL(2.0),
        data_collator=DataCollatorForTokenClassification(PIECES),
        processing_class=PIECES,
    )
    values = []
    for row in rows:
        sides: list[dict[int, torch.Tensor]] = []
        for model, processor, cut in ((student, PIECES, None), (teacher, tokenizer, limit)):
            options: dict[str, Any] = {"is_split_into_words": True}
            options |= {} if cut is None else {"truncation": True, "max_length": cut}
            every = logits(model, processor, row["tokens"], **options)
            places = processor(row["tokens"], **options).word_ids()
            words = {word for word in places if word is not None}
            sides.append({word: every[places.index(word)] for word in words})
        values += [kl(sides[0][word], sides[1][word]) for word in sides[0] if word in sides[1]]
    assert ours.evaluate()["eval_forward_kl"] == pytest.approx(np.mean(values), rel=1e-9)


def images() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (40, 52, 3), dtype=np.uint8) for _ in range(6)]


def test_images_of_another_size_and_other_means(tmp_path: Path) -> None:
    """A teacher of 48 pixels dies on images of 32, and other means are fed in silence."""
    sizes = {**SIZES, "patch_size": 16, "num_labels": 3}
    student, teacher = (
        randomised(tf.ViTForImageClassification(tf.ViTConfig(image_size=n, **sizes)), seed)
        for seed, n in enumerate((32, 48))
    )
    ours_by, theirs_by = (
        tf.ViTImageProcessorPil(size={"height": n, "width": n}, image_mean=[m] * 3)
        for n, m in ((32, 0.5), (48, 0.2))
    )
    values = images()
    rows = [
        {"image": value, "pixel_values": ours_by(value)["pixel_values"][0], "labels": n % 3}
        for n, value in enumerate(values)
    ]
    ours = made(
        tmp_path,
        student,
        ModelTeacher(teacher, theirs_by),
        rows,
        objective=1.0 * ForwardKL(2.0),
        data_collator=default_data_collator,
        processing_class=ours_by,
    )
    expected = [
        kl(
            student(ours_by(value, return_tensors="pt")["pixel_values"].double()).logits[0],
            teacher(theirs_by(value, return_tensors="pt")["pixel_values"].double()).logits[0],
        )
        for value in values
    ]
    assert ours.evaluate()["eval_forward_kl"] == pytest.approx(np.mean(expected), rel=1e-9)


def test_sounds_are_resampled_for_the_teacher(tmp_path: Path) -> None:
    """A teacher of 16 kHz hears a voice of 8 kHz at twice its speed."""
    sizes = {**SIZES, "conv_dim": (8, 8), "conv_stride": (4, 4), "conv_kernel": (8, 8)}
    sizes |= {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_labels": 3}
    sizes |= {"num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8, "hidden_dropout": 0.0}
    sizes |= {"attention_dropout": 0.0, "feat_proj_dropout": 0.0, "final_dropout": 0.0}
    student, teacher = (
        randomised(tf.Wav2Vec2ForSequenceClassification(tf.Wav2Vec2Config(**sizes)), seed)
        for seed in (1, 2)
    )
    slow, fast = (
        tf.Wav2Vec2FeatureExtractor(sampling_rate=rate, do_normalize=False)
        for rate in (8000, 16000)
    )
    generator = np.random.default_rng(1)
    sounds = [generator.normal(size=400).astype(np.float32) for _ in range(4)]
    rows = [
        {
            "audio": {"array": sound, "sampling_rate": 8000},
            "input_values": torch.from_numpy(sound),
            "labels": n % 3,
        }
        for n, sound in enumerate(sounds)
    ]
    ours = made(
        tmp_path,
        student,
        ModelTeacher(teacher, fast, inputs="audio"),
        rows,
        objective=1.0 * ForwardKL(2.0),
        data_collator=default_data_collator,
        processing_class=slow,
    )
    expected = []
    for sound in sounds:
        doubled = torch.from_numpy(scipy.signal.resample_poly(sound, 2, 1).astype(np.float32))
        with torch.no_grad():
            s = student(torch.from_numpy(sound)[None].double()).logits[0]
            expected.append(kl(s, teacher(doubled[None].double()).logits[0]))
    assert ours.evaluate()["eval_forward_kl"] == pytest.approx(np.mean(expected), rel=1e-9)
    assert len(resampled(sounds[0], 8000, 12000)) == 600


def test_a_cache_is_read_by_the_raw_texts(tmp_path: Path) -> None:
    """A cache keyed by the teacher's tokens could not be read without its tokenizer."""
    student = bert("ForSequenceClassification", 1, num_labels=3)
    teacher = roberta("ForSequenceClassification", 2, num_labels=3)
    rows, collate = tokenized(), DataCollatorWithPadding(PIECES)
    live = ModelTeacher(teacher, PAIRS, inputs="text")
    options: dict[str, Any] = {"objective": 1.0 * ForwardKL(2.0), "processing_class": PIECES}
    full = {"kind": "full", "dtype": "float32"}
    path = write_cache(
        tmp_path / "cache", live, rows, collate, format=full, processing_class=PIECES, say=len
    )
    cached = made(tmp_path, student, CachedTeacher(path), rows.shuffle(seed=3), **options)
    assert not any("teacher_input_ids" in batch for batch in cached.get_train_dataloader())
    expected = [kl(logits(student, PIECES, t), logits(teacher, PAIRS, t)) for t in TEXTS]
    assert cached.evaluate()["eval_forward_kl"] == pytest.approx(np.mean(expected), rel=1e-5)
    other = Dataset.from_dict({**rows.to_dict(), "text": [text + "!" for text in TEXTS]})
    with pytest.raises(ValueError, match="got none of"):
        made(tmp_path, student, CachedTeacher(path), other, **options)


def test_a_served_teacher_gets_its_own_inputs(tmp_path: Path) -> None:
    """A server knows no raw texts: the student's ids would be read as its own."""
    student = bert("ForSequenceClassification", 1, num_labels=3)
    teacher = roberta("ForSequenceClassification", 2, num_labels=3)
    with TeacherServer(ModelTeacher(teacher)) as server:
        taught = HTTPTeacher(server.url, processor=PAIRS, inputs="text")
        ours = made(
            tmp_path,
            student,
            taught,
            tokenized(),
            objective=1.0 * ForwardKL(2.0),
            processing_class=PIECES,
            per_device_eval_batch_size=4,
        )
        found = ours.evaluate()["eval_forward_kl"]
        taught.close()
    expected = [kl(logits(student, PIECES, t), logits(teacher, PAIRS, t)) for t in TEXTS]
    assert found == pytest.approx(np.mean(expected), rel=1e-9)


def test_members_of_an_ensemble_read_inputs_of_their_own(tmp_path: Path) -> None:
    """Two tokenizers' columns under one name: the last would be read by both."""
    student = bert("ForSequenceClassification", 1, num_labels=3)
    sides = {
        "alike": (bert("ForSequenceClassification", 4, num_labels=3), PIECES),
        "roberta": (roberta("ForSequenceClassification", 2, num_labels=3), PAIRS),
        "deberta": (deberta("ForSequenceClassification", 3, num_labels=3), UNIGRAMS),
    }
    members: dict[str, Any] = {
        name: ModelTeacher(model, tokenizer, inputs=None if name == "alike" else "text")
        for name, (model, tokenizer) in sides.items()
    }
    ours = made(
        tmp_path,
        student,
        Ensemble(members, average="logits"),
        tokenized(),
        objective=1.0 * ForwardKL(2.0),
        processing_class=PIECES,
    )
    expected = [
        kl(
            logits(student, PIECES, text),
            torch.stack([logits(model, by, text) for model, by in sides.values()]).mean(0),
        )
        for text in TEXTS
    ]
    assert ours.evaluate()["eval_forward_kl"] == pytest.approx(np.mean(expected), rel=1e-9)


def test_a_stream_has_raw_columns(tmp_path: Path) -> None:
    """Nothing is known of a stream's columns before it is read."""
    student = bert("ForSequenceClassification", 1, num_labels=3)
    teacher = roberta("ForSequenceClassification", 2, num_labels=3)
    arguments = {"learning_rate": 0.0, "per_device_train_batch_size": 3, "max_steps": 2}
    recorder = Recorder()
    DistillationTrainer(
        student,
        config(tmp_path, **arguments),
        train_dataset=tokenized().to_iterable_dataset(),
        teacher_model=ModelTeacher(teacher, PAIRS, inputs="text"),
        objective=1.0 * ForwardKL(2.0),
        processing_class=PIECES,
        callbacks=[recorder],
    ).train()
    expected = [kl(logits(student, PIECES, t), logits(teacher, PAIRS, t)) for t in TEXTS]
    found = [log["forward_kl"] for log in recorder.steps]
    assert found == pytest.approx([np.mean(expected[:3]), np.mean(expected[3:])], rel=1e-5)


class Drawn(torch.utils.data.Dataset):
    """Examples that draw from the global random states, and count how often they are read."""

    def __init__(self) -> None:
        self.rows, self.reads = tokenized().to_list(), 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.reads += 1
        torch.rand(3)
        return self.rows[index]


def test_reading_an_example_draws_nothing(tmp_path: Path) -> None:
    """The first example is read for its columns: the dropout masks of the run would change."""
    student = bert("ForSequenceClassification", 1, num_labels=3)
    options: dict[str, Any] = {"objective": 1.0 * ForwardKL(2.0), "processing_class": PIECES}
    plain = bert("ForSequenceClassification", 3, num_labels=3)
    other = ModelTeacher(roberta("ForSequenceClassification", 2, num_labels=3), PAIRS)
    states, reads = [], []
    for teacher in (ModelTeacher(plain), other):
        data = Drawn()
        options["data_collator"] = lambda rows: DataCollatorWithPadding(PIECES)(
            [{k: v for k, v in row.items() if k != "text"} for row in rows]
        )
        made(tmp_path, student, teacher, data, **options)
        states.append(torch.get_rng_state())
        reads.append(data.reads)
    assert torch.equal(*states)
    assert reads[1] == reads[0] + 1, "without own inputs no further example is read"


def test_data_without_a_raw_column(tmp_path: Path) -> None:
    """A run would begin, and end in an error of a collator."""
    student = bert("ForSequenceClassification", 1, num_labels=3)
    teacher = roberta("ForSequenceClassification", 2, num_labels=3)
    options: dict[str, Any] = {"objective": 1.0 * ForwardKL(2.0), "processing_class": PIECES}
    taught = ModelTeacher(teacher, PAIRS)
    with pytest.raises(ValueError, match=r"differ in \d+ entries.*inputs='text'"):
        made(tmp_path, student, taught, tokenized(columns=()), **options)
    with pytest.raises(ValueError, match=r"the raw column 'text'.*without remove_columns"):
        made(
            tmp_path,
            student,
            ModelTeacher(teacher, PAIRS, inputs="text"),
            tokenized(columns=()),
            **options,
        )
    rows = tokenized(columns=("other", "text"))
    with pytest.raises(ValueError, match=r"one raw column.*\['other', 'text'\].*inputs='other'"):
        made(
            tmp_path,
            student,
            ModelTeacher(teacher, PAIRS),
            rows,
            **options,
        )
    taught = ModelTeacher(teacher, PAIRS, inputs="other")  # the remedy
    made(tmp_path, student, taught, rows, **options).evaluate()


def test_a_teacher_outside_a_trainer(tmp_path: Path) -> None:
    """A batch of the student's collator alone has nothing that the teacher could read."""
    teacher = ModelTeacher(
        roberta("ForSequenceClassification", 2, num_labels=3), PAIRS, inputs="text"
    )
    task_model, rows = TaskModel(bert("ForSequenceClassification", 1, num_labels=3)), tokenized()
    plain = DataCollatorWithPadding(PIECES)
    student = list({"input_ids", "attention_mask", "labels"})
    batch = dict(plain([{name: row[name] for name in student} for row in rows]))
    with pytest.raises(ValueError, match=r"with_own_inputs\(data_collator, teacher\)"):
        teacher(batch, LOGITS, task_model.items(batch))
    batch = dict(with_own_inputs(plain, teacher, student)(list(rows)))  # the remedy
    found = teacher(batch, LOGITS, task_model.items(batch)).logits
    expected = torch.stack([logits(teacher.model, PAIRS, text) for text in TEXTS])
    assert torch.allclose(found, expected, atol=1e-12)


def test_positions_that_cannot_match_are_refused(tmp_path: Path) -> None:
    """Spans are positions of tokens: those of two tokenizers stand for other words."""
    student, teacher = bert("ForQuestionAnswering", 1), roberta("ForQuestionAnswering", 2)
    rows = tokenized().map(lambda row: {"start_positions": 1, "end_positions": 1})
    with pytest.raises(ValueError, match="its items are positions"):
        made(
            tmp_path,
            student,
            ModelTeacher(teacher, PAIRS, inputs="text"),
            rows.remove_columns("labels"),
            objective=1.0 * ForwardKL(2.0),
            processing_class=PIECES,
        )


def test_other_means_without_a_raw_column_are_reported(tmp_path: Path) -> None:
    """Other means and deviations are fed to the teacher in silence."""
    sizes = {**SIZES, "patch_size": 16, "num_labels": 3, "image_size": 32}
    student, teacher = (
        randomised(tf.ViTForImageClassification(tf.ViTConfig(**sizes)), seed) for seed in (1, 2)
    )
    ours_by, theirs_by = (
        tf.ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[m] * 3)
        for m in (0.5, 0.2)
    )
    rows = [{"pixel_values": torch.zeros(3, 32, 32), "labels": 0}] * 4
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        made(
            tmp_path,
            student,
            ModelTeacher(teacher, theirs_by),
            rows,
            objective=1.0 * ForwardKL(2.0),
            processing_class=ours_by,
            data_collator=default_data_collator,
        )
    assert any("has other settings than the student's" in str(each.message) for each in found)


def on_two_processes(folder: str) -> None:
    """Evaluate and train with a teacher that reads its own tokens, and write the figures."""
    pieces, pairs = (AutoTokenizer.from_pretrained(f"{folder}/{n}") for n in ("pieces", "pairs"))
    two_tokenizers.PIECES, two_tokenizers.PAIRS = pieces, pairs  # trained anew by each process
    student = bert("ForSequenceClassification", 1, num_labels=3)
    teacher = roberta("ForSequenceClassification", 2, num_labels=3)
    ours = made(
        Path(folder) / "run",
        student,
        ModelTeacher(teacher, pairs),
        tokenized().select(range(5)),
        objective=1.0 * ForwardKL(2.0),
        processing_class=pieces,
        per_device_eval_batch_size=2,
        per_device_train_batch_size=2,
    )
    both = [(logits(student, pieces, t), logits(teacher, pairs, t)) for t in TEXTS[:5]]
    expected = np.mean([kl(*each) for each in both])
    found = ours.evaluate()["eval_forward_kl"]
    ours.train()
    if ours.is_world_process_zero():
        (Path(folder) / "found.json").write_text(json.dumps([found, expected]))


@pytest.mark.slow
def test_two_processes_read_their_own_share(tmp_path: Path) -> None:
    """Five examples on two processes: the repeated one must not count."""
    PIECES.save_pretrained(tmp_path / "pieces")
    PAIRS.save_pretrained(tmp_path / "pairs")
    launch(on_two_processes, tmp_path, processes=2)
    found, expected = json.loads((tmp_path / "found.json").read_text())
    assert found == pytest.approx(expected, rel=1e-9)
