"""What a classifier solves, by its config, its teacher's and its labels; and padding of texts."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import CASES, collate
from tiny_trainers import Recorder, config, models, trainer
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as kinds
from torch import Tensor
from torch.nn import functional as F

from hf_distill import (
    DecoupledKD,
    DistillationTrainer,
    ForwardKL,
    GeneralizedCrossEntropy,
    HardLabels,
    HiddenStates,
    Jacobian,
    TrustedLabels,
)
from hf_distill.models.tasks import CUSTOM_TASKS
from hf_distill.robustness import Predictor
from hf_distill.teachers import CachedTeacher, Ensemble, ModelTeacher
from hf_distill.teachers.cache import write_cache
from hf_distill.teachers.remote.http_teacher import HTTPTeacher
from hf_distill.teachers.serving import TeacherServer
from hf_distill.training.joint import OnlineDistillationTrainer

tf: Any = transformers

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
LABELS = 3


def texts(labels: Any = None, rows: int = 8) -> list[dict[str, Any]]:
    """Sentences with these labels, or with none."""
    found = CASES["sequence_classification"].data(rows, torch.float32)
    plain = [{"input_ids": row["input_ids"]} for row in found]
    if labels is None:
        return plain
    return [{**row, "labels": label} for row, label in zip(plain, labels, strict=True)]


def multi_hot(rows: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(2, (rows, LABELS), generator=generator).float()


def mixed(rows: int = 8) -> Tensor:
    """Soft labels, as mixup makes them."""
    generator = torch.Generator().manual_seed(2)
    one, other = torch.randint(LABELS, (2, rows), generator=generator)
    share = torch.rand(rows, 1, generator=generator) * 0.5 + 0.2
    return share * F.one_hot(one, LABELS) + (1 - share) * F.one_hot(other, LABELS)


def said(student: str | None = None, teacher: str | None = None) -> tuple[Any, Any]:
    """Student and teacher whose configs say this of their problem."""
    both = models()
    for model, problem in zip(both, (student, teacher), strict=True):
        model.config.problem_type = problem
    return both


def logits_of(model: Any, rows: Any) -> Tensor:
    batch = {k: v for k, v in collate(rows).items() if k != "labels"}
    with torch.no_grad():
        found: Tensor = model.eval()(**batch).logits
    return found.double()


def bernoulli_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> float:
    """Of yes and no for each class, summed over the classes, times T²; by a loop in float64."""
    total = 0.0
    for s, t in zip(student.flatten() / temperature, teacher.flatten() / temperature, strict=True):
        p, q = torch.sigmoid(t), torch.sigmoid(s)
        total += float(p * (p.log() - q.log()) + (1 - p) * ((1 - p).log() - (1 - q).log()))
    return total / len(student) * temperature**2


def softmax_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> float:
    log_s, log_t = ((x / temperature).log_softmax(-1) for x in (student, teacher))
    return float((log_t.exp() * (log_t - log_s)).sum(-1).mean()) * temperature**2


def first_step(folder: Path, rows: Any, **options: Any) -> tuple[dict[str, float], Any]:
    """What the first step logs on all rows, and the trainer."""
    record = Recorder()
    ours = trainer(
        folder,
        train_dataset=rows,
        eval_dataset=options.pop("eval_dataset", rows),
        callbacks=[record],
        max_steps=1,
        per_device_train_batch_size=len(rows),
        **options,
    )
    ours.train()
    return record.steps[0], ours


# ---- what is solved ------------------------------------------------------------------------------


CONFIGS = {
    "floats": ("sequence_classification", MULTI),
    "integers": ("sequence_classification", SINGLE),
    "pictures": ("image_classification", SINGLE),
    "scores": ("regression", "regression"),
    "sounds": ("audio_classification", None),  # whose own forward does not look at it
}


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("labels", CONFIGS)
def test_the_saved_config_is_that_of_the_stock_trainer(
    tmp_path: Path, labels: str, alpha: float
) -> None:
    """Labels are never given to the student, whose config then does not say what it solves: a
    pipeline takes the softmax of a model that was trained with sigmoids."""
    head, problem = CONFIGS[labels]
    rows = texts(multi_hot()) if labels == "floats" else CASES[head].data(8, torch.float32)
    student, teacher = models(head)
    teacher.config.problem_type = MULTI if labels == "floats" else None
    stock = copy.deepcopy(student)
    ours = trainer(
        tmp_path / "ours",
        head,
        model=student,
        teacher_model=teacher,
        train_dataset=rows,
        eval_dataset=rows,
        alpha=alpha,
    )
    ours.train()
    arguments = tf.TrainingArguments(str(tmp_path / "stock"), max_steps=2, use_cpu=True)
    theirs = tf.Trainer(stock, arguments, train_dataset=rows, data_collator=collate)
    theirs.train()
    files = []
    for one, name in ((ours, "ours"), (theirs, "stock")):
        one.save_model(str(tmp_path / name))
        files.append(json.loads((tmp_path / name / "config.json").read_text()))
    assert files[0] == files[1]
    assert files[0].get("problem_type") == problem


def test_a_pipeline_of_a_student_with_several_labels(tmp_path: Path) -> None:
    """Scores that add up to 1, of a model whose classes are independent, are another model's."""
    student, teacher = said(teacher=MULTI)
    first_step(tmp_path, texts(multi_hot()), model=student, teacher_model=teacher)
    student.save_pretrained(tmp_path / "saved")
    back = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    words = {"[PAD]": 0, "[UNK]": 1, **{f"w{n}": n for n in range(2, 40)}}

    backend = Tokenizer(kinds.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")
    pipe = tf.pipeline("text-classification", model=back, tokenizer=tokenizer, top_k=None)
    (found,) = pipe(["w5 w9 w11"])
    scores = {entry["label"]: entry["score"] for entry in found}
    with torch.no_grad():
        logits = back.eval()(torch.tensor([[5, 9, 11]])).logits[0]
    for place, name in back.config.id2label.items():
        assert scores[name] == pytest.approx(float(torch.sigmoid(logits[place])), abs=1e-5)


@pytest.mark.parametrize("kind", ["model", "ensemble", "cache", "server", "peer"])
@pytest.mark.parametrize("decided", ["teacher", "student"])
def test_one_config_decides_for_both(tmp_path: Path, decided: str, kind: str) -> None:
    """Without labels a student (a teacher) that does not say what it solves is one softmax."""
    student, teacher = said(**{decided: MULTI})
    rows = texts()
    expected = bernoulli_kl(logits_of(student, rows), logits_of(teacher, rows), 2.0)
    options: dict[str, Any] = {"model": student, "objective": ForwardKL(2.0)}
    if decided == "student" and kind in ("cache", "server"):
        teacher.config.problem_type = MULTI  # the remedy; the refusal is tested below
    if kind == "peer":
        ours = OnlineDistillationTrainer(
            student,
            config(tmp_path, per_device_eval_batch_size=8),
            peers=teacher,
            objective=ForwardKL(2.0),
            peer_objective=ForwardKL(2.0),
            train_dataset=rows,
            eval_dataset=rows,
            data_collator=collate,
        )
        assert ours.evaluate()["eval_forward_kl"] == pytest.approx(expected, abs=1e-5)
        assert teacher.config.problem_type == student.config.problem_type == MULTI
        return
    made: Any = ModelTeacher(teacher)
    if kind == "ensemble":
        made = Ensemble([teacher, copy.deepcopy(teacher)], temperature=2.0)
    elif kind == "cache":
        made = CachedTeacher(write_cache(tmp_path / "cache", made, rows, collate, say=len))
    elif kind == "server":
        with TeacherServer(made) as server:
            step, _ = first_step(tmp_path, rows, teacher_model=HTTPTeacher(server.url), **options)
        assert step["forward_kl"] == pytest.approx(expected, abs=1e-5)
        return
    step, _ = first_step(tmp_path, rows, teacher_model=made, **options)
    assert step["forward_kl"] == pytest.approx(expected, abs=1e-5)
    assert student.config.problem_type == MULTI


def test_integer_labels_of_several_classes_follow_the_teacher(tmp_path: Path) -> None:
    """Integers of 0 and 1 for each class are no class ids."""
    student, teacher = said(teacher=MULTI)
    labels = multi_hot()
    rows = texts(labels.long())
    objective = 0.5 * HardLabels() + 0.5 * ForwardKL(2.0)
    options: dict[str, Any] = {"model": student, "teacher_model": teacher}
    logits = logits_of(student, rows)
    kl = bernoulli_kl(logits, logits_of(teacher, rows), 2.0)
    step, _ = first_step(tmp_path, rows, objective=objective, **options)
    summed = F.binary_cross_entropy_with_logits(logits, labels.double(), reduction="sum")
    assert step["forward_kl"] == pytest.approx(kl, abs=1e-5)
    assert step["hard_labels"] == pytest.approx(float(summed) / 8, abs=1e-5)


def test_a_teacher_that_is_read_otherwise_is_refused(tmp_path: Path) -> None:
    """What a cache keeps, or a server says, was read when nobody knew what is solved."""
    student, teacher = said(student=MULTI)
    rows, options = texts(), {"model": student, "objective": ForwardKL(2.0)}
    cache = write_cache(tmp_path / "cache", ModelTeacher(teacher), rows, collate, say=len)
    with pytest.raises(ValueError, match=r"read as softmax.*teacher\.config\.problem_type"):
        first_step(tmp_path, rows, teacher_model=CachedTeacher(cache), **options)
    with (
        TeacherServer(ModelTeacher(teacher)) as server,
        pytest.raises(ValueError, match=r"read as softmax.*before it is served"),
    ):
        first_step(tmp_path, rows, teacher_model=HTTPTeacher(server.url), **options)


@pytest.mark.parametrize(
    ("student", "teacher", "labels", "message"),
    [
        (SINGLE, MULTI, None, r"'single_label_\w+' for the student.*'multi_label_\w+' for"),
        (None, SINGLE, multi_hot(), r"the config of the teacher \(BertFor.*got floats \(8, 3\)"),
        (None, SINGLE, F.one_hot(torch.arange(8) % 3).float(), r"0 and 1.*if each row has a sing"),
        (SINGLE, None, multi_hot(), r"the config of the student.*got floats \(8, 3\)"),
        (None, None, mixed(), r"labels \(8, 3\).*soft labels.*problem_type"),
        (None, None, multi_hot().long(), r"integers \(8,\); got torch.int64 \(8, 3\)"),
        (None, None, torch.arange(8.0), r"\(8, 3\); got torch.float32 \(8,\)"),
        (MULTI, None, torch.arange(8) % 3, r"\(8, 3\); got torch.int64 \(8,\)"),
        (SINGLE, None, torch.rand(8, 4), r"got floats \(8, 4\)"),
        ("regression", None, torch.rand(8), r"\(8, 3\); got torch.float32 \(8,\)"),
        (None, None, multi_hot()[:, :2], r"\(8, 3\); got torch.float32 \(8, 2\)"),
    ],
)
def test_labels_and_configs_that_disagree_are_refused(
    tmp_path: Path, student: Any, teacher: Any, labels: Any, message: str
) -> None:
    """Whichever of the two is believed, the other one's user trains something else."""
    ours, theirs = said(student, teacher)
    for objective in (ForwardKL(1.0), 0.5 * HardLabels() + 0.5 * ForwardKL(1.0)):
        with pytest.raises(ValueError, match=message):
            first_step(
                tmp_path, texts(labels), model=ours, teacher_model=theirs, objective=objective
            )
        assert ours.config.problem_type == student


def test_the_remedies_of_labels_that_disagree(tmp_path: Path) -> None:
    """A remedy that nobody has followed may lead to the next refusal."""
    for labels, problem in (
        (F.one_hot(torch.arange(8) % 3).float(), SINGLE),
        (mixed(), SINGLE),
        (mixed(), MULTI),
        (multi_hot(), MULTI),
    ):
        student, teacher = said(problem, problem)
        rows = texts(labels)
        step, _ = first_step(tmp_path, rows, model=student, teacher_model=teacher, alpha=0.5)
        kl = softmax_kl if problem == SINGLE else bernoulli_kl
        student, teacher = said(problem, problem)
        expected = kl(logits_of(student, rows), logits_of(teacher, rows), 2.0)
        assert step["forward_kl"] == pytest.approx(expected, abs=1e-5)


def test_labels_of_lists_and_of_other_lengths_are_refused(tmp_path: Path) -> None:
    """Boxes, and tags that are not as many as the tokens, end in a line of torch."""
    student, teacher = said()

    def boxes(rows: Any) -> dict[str, Any]:
        batch: dict[str, Any] = collate([{"input_ids": r["input_ids"]} for r in rows])
        return {**batch, "labels": [{"class_labels": torch.tensor([1])} for _ in rows]}

    with pytest.raises(ValueError, match=r"one tensor.*BertForSequenceCl.*CUSTOM_TASKS"):
        first_step(tmp_path, texts(), model=student, teacher_model=teacher, data_collator=boxes)
    tags = [{**row, "labels": [0] * 11} for row in texts()]
    with pytest.raises(
        ValueError, match=r"integers\) of shape \(8, 9\).*got torch.int64 \(8, 11\)"
    ):
        first_step(tmp_path, tags, name="token_classification")


def test_labels_of_the_evaluation_are_looked_at_too(tmp_path: Path) -> None:
    """An hour later the first evaluation ends the training."""
    student, teacher = said(teacher=MULTI)
    with pytest.raises(ValueError, match=r"\(8, 3\); got torch.int64 \(8,\)"):
        first_step(
            tmp_path,
            texts(multi_hot()),
            eval_dataset=texts(torch.arange(8) % 3),
            model=student,
            teacher_model=teacher,
        )


# ---- soft labels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("head", ["sequence_classification", "image_classification"])
def test_soft_labels_of_one_class_per_example(tmp_path: Path, head: str, who: str) -> None:
    """Taken for several labels, the teacher is compared class by class, and not as a softmax."""
    student, teacher = models(head)
    (student if who == "student" else teacher).config.problem_type = SINGLE
    labels = mixed()
    rows = CASES[head].data(8, torch.float32)
    rows = [{**row, "labels": label} for row, label in zip(rows, labels, strict=True)]
    ours, theirs = logits_of(student, rows), logits_of(teacher, rows)
    step, made = first_step(
        tmp_path,
        rows,
        name=head,
        model=student,
        teacher_model=teacher,
        objective=HardLabels()
        + HardLabels(0.1)
        + HardLabels(0.0, (1.0, 2.0, 0.5))
        + ForwardKL(1.0),
    )
    probabilities = labels.double()
    plain = F.cross_entropy(ours, probabilities)
    smooth = F.cross_entropy(ours, probabilities, label_smoothing=0.1)
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    weighted = -(weights * probabilities * ours.log_softmax(-1)).sum(-1).mean()
    assert step["hard_labels"] == pytest.approx(float(plain), abs=1e-5)
    assert step["hard_labels_2"] == pytest.approx(float(smooth), abs=1e-5)
    assert step["hard_labels_3"] == pytest.approx(float(weighted), abs=1e-5)
    assert step["forward_kl"] == pytest.approx(softmax_kl(ours, theirs), abs=1e-5)
    found = made.evaluate()
    assert student.config.problem_type == SINGLE
    chances = logits_of(student, rows).softmax(-1)
    right = (chances.argmax(-1) == labels.argmax(-1)).double()
    sums = torch.zeros(15, dtype=torch.float64)
    for confidence, hit in zip(chances.amax(-1), right, strict=True):
        sums[min(int(float(confidence) * 15), 14)] += hit - confidence
    assert found["eval_ece"] == pytest.approx(float(sums.abs().sum()) / 8, abs=1e-4)


def test_soft_labels_beside_hard_ones(tmp_path: Path) -> None:
    """Mixed in training, plain in the evaluation: the usual way; a row without labels counts for
    the teacher alone."""
    student, teacher = said(SINGLE)
    labels = mixed()
    labels[3] = torch.nan
    rows, plain = texts(labels), texts(torch.arange(8) % 3)
    logits = logits_of(student, rows)
    there = ~labels.isnan().any(-1)
    options: dict[str, Any] = {"model": student, "teacher_model": teacher, "eval_dataset": plain}
    step, ours = first_step(tmp_path, rows, objective=HardLabels() + ForwardKL(1.0), **options)
    expected = F.cross_entropy(logits[there], labels[there].double())
    assert step["hard_labels"] == pytest.approx(float(expected), abs=1e-5)
    found = ours.evaluate()
    expected = F.cross_entropy(logits_of(student, plain), torch.arange(8) % 3)
    assert found["eval_hard_labels"] == pytest.approx(float(expected), abs=1e-5)


def test_objectives_that_read_one_class_refuse_soft_labels(tmp_path: Path) -> None:
    """The likeliest class of a mixture is not its label."""
    student, teacher = said(SINGLE)
    for objective in (
        GeneralizedCrossEntropy(),
        DecoupledKD(),
        TrustedLabels(),
        Jacobian(direction="label"),
    ):
        with pytest.raises(ValueError, match=r"one class.*soft labels \(8, 3\)"):
            first_step(
                tmp_path, texts(mixed()), model=student, teacher_model=teacher, objective=objective
            )


# ---- padding -------------------------------------------------------------------------------------


def llama(seed: int, pad: int | None, width: int = 16) -> Any:
    options = CASES["causal_lm"].config().to_diff_dict() | {"hidden_size": width}
    made = tf.LlamaConfig(**options, num_labels=LABELS)
    made.pad_token_id, made.eos_token_id = pad, 2
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = tf.LlamaForSequenceClassification(made)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(3)
    return model.eval()


def sentences(end: bool = False, rows: int = 8) -> list[dict[str, Any]]:
    """Padded with 0; ``end``: the last real token is 2."""
    found = texts([n % LABELS for n in range(rows)], rows)
    return [{**row, "input_ids": row["input_ids"] + [2] * end} for row in found]


def at_the_end(model: Any, rows: Any) -> Tensor:
    """The logits at the last place of each mask, one text at a time: there is no padding."""
    found = []
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            states = model.eval().model(ids).last_hidden_state[:, -1]
            found.append(model.score(states)[0])
    return torch.stack(found).double()


def zeros(rows: Any) -> dict[str, Tensor]:
    """A batch that is padded with 0, the tokenizer's padding."""
    batch = collate(rows)
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 0)
    return batch


def tokenizer() -> Any:
    words = {"[PAD]": 0, "[UNK]": 1, "</s>": 2, **{f"w{n}": n for n in range(3, 40)}}
    backend = Tokenizer(kinds.WordLevel(words, unk_token="[UNK]"))
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>"
    )


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("pads", [(0, 2), (2, 0), (0, None), (None, 2), (2, 2), (0, 5)])
def test_both_read_the_last_real_token(
    tmp_path: Path, pads: tuple[Any, Any], known: bool, end: bool
) -> None:
    """A classifier on a decoder finds the end of a text by its config's padding token: with another
    one in the data it reads the logits of padding."""
    student, teacher = llama(0, pads[0]), llama(1, pads[1], 24)
    rows = sentences(end)
    if pads[0] is None and not known:
        with pytest.raises(ValueError, match=r"student \(LlamaFor.*processing_class"):
            first_step(tmp_path, rows, model=student, teacher_model=teacher, data_collator=zeros)
        return
    if pads[0] == 2 and end and not known:
        return  # its own padding is its own end: what it was always trained to read
    ours, theirs = at_the_end(student, rows), at_the_end(teacher, rows)
    step, _ = first_step(
        tmp_path,
        rows,
        model=student,
        teacher_model=teacher,
        objective=0.5 * HardLabels() + 0.5 * ForwardKL(1.0),
        processing_class=tokenizer() if known else None,
        data_collator=zeros,
    )
    assert step["forward_kl"] == pytest.approx(softmax_kl(ours, theirs), abs=1e-5)
    labels = torch.tensor([row["labels"] for row in rows])
    assert step["hard_labels"] == pytest.approx(float(F.cross_entropy(ours, labels)), abs=1e-5)
    assert teacher.config.pad_token_id == pads[1]
    assert student.config.pad_token_id == (0 if known else pads[0])


def test_an_evaluation_before_the_training_reads_as_one_after(tmp_path: Path) -> None:
    """`Trainer` brings the config into line with the tokenizer when it trains, and not before."""
    student, teacher = llama(0, 2), llama(1, 2, 24)
    rows = sentences()
    options: dict[str, Any] = {"train_dataset": rows, "eval_dataset": rows}
    ours = trainer(
        tmp_path,
        data_collator=zeros,
        model=student,
        teacher_model=teacher,
        objective=ForwardKL(1.0),
        processing_class=tokenizer(),
        learning_rate=0.0,
        **options,
    )
    expected = softmax_kl(at_the_end(student, rows), at_the_end(teacher, rows))
    assert ours.evaluate()["eval_forward_kl"] == pytest.approx(expected, abs=1e-5)
    ours.train()
    assert ours.evaluate()["eval_forward_kl"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["ensemble", "cache", "server", "peer"])
def test_every_kind_of_teacher_reads_the_last_real_token(tmp_path: Path, kind: str) -> None:
    """Members, peers, a written cache and a server have configs of their own."""
    student, teacher = llama(0, 0), llama(1, 2)
    rows = sentences()
    expected = softmax_kl(at_the_end(student, rows), at_the_end(teacher, rows))
    options: dict[str, Any] = {"model": student, "objective": ForwardKL(1.0)}
    options["data_collator"] = zeros
    if kind == "peer":
        ours = OnlineDistillationTrainer(
            student,
            config(tmp_path, per_device_eval_batch_size=8),
            peers=teacher,
            objective=ForwardKL(1.0),
            peer_objective=HardLabels(),
            train_dataset=rows,
            eval_dataset=rows,
            data_collator=zeros,
            processing_class=tokenizer(),
        )
        assert ours.evaluate()["eval_forward_kl"] == pytest.approx(expected, abs=1e-5)
        assert teacher.config.pad_token_id == 0  # it is trained and saved, as the student is
        return
    made: Any = ModelTeacher(teacher)
    if kind == "ensemble":
        made = Ensemble([teacher, copy.deepcopy(teacher)])
    elif kind == "cache":
        made = CachedTeacher(write_cache(tmp_path / "cache", made, rows, zeros, say=len))
    else:
        with TeacherServer(made) as server:
            step, _ = first_step(tmp_path, rows, teacher_model=HTTPTeacher(server.url), **options)
        assert step["forward_kl"] == pytest.approx(expected, abs=1e-5)
        return
    step, _ = first_step(tmp_path, rows, teacher_model=made, **options)
    assert step["forward_kl"] == pytest.approx(expected, abs=1e-5)


def test_eval_and_robustness_read_the_last_real_token() -> None:
    """A folder's config and its tokenizer may disagree; texts of other lengths then change what is
    said of a text."""
    for pad in (2, None, 0):
        model, words = llama(0, pad), tokenizer()
        words.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        subject = Predictor("student", model, words)
        rows = [row["input_ids"] for row in sentences()]
        said = subject.logits([" ".join(f"w{n}" for n in ids) for ids in rows], batch_size=8)
        expected = at_the_end(model, [{"input_ids": ids} for ids in rows])
        assert torch.allclose(torch.as_tensor(said), expected, atol=1e-4)
        assert model.config.pad_token_id == pad


def test_hidden_states_do_not_read_padding(tmp_path: Path) -> None:
    """The token at a masked place is exchanged: no state that counts may see it."""
    student, teacher = llama(0, 0), llama(1, 2)
    rows = sentences()
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            ours, theirs = (
                m.model(ids, output_hidden_states=True).hidden_states[-1]
                for m in (student, teacher)
            )
        total += float((ours - theirs).double().square().mean(-1).sum())
        count += ids.shape[1]
    step, _ = first_step(
        tmp_path,
        rows,
        model=student,
        teacher_model=teacher,
        objective=HiddenStates("-1:-1"),
        data_collator=zeros,
    )
    assert step["hidden_states"] == pytest.approx(total / count, rel=1e-4)


def test_the_stock_trainer_trains_the_same_student(tmp_path: Path) -> None:
    """A student without a padding token and a tokenizer with one: what trains with `Trainer` must
    train here, and to the same weights."""
    student, teacher = llama(0, None), llama(1, 0)
    stock = copy.deepcopy(student)
    rows = sentences()
    options: dict[str, Any] = {"max_steps": 2, "learning_rate": 1e-3, "use_cpu": True, "seed": 1}
    options |= {"per_device_train_batch_size": 4, "report_to": "none"}
    arguments = tf.TrainingArguments(str(tmp_path / "stock"), **options)
    data: dict[str, Any] = {"train_dataset": rows, "data_collator": zeros}
    tf.Trainer(stock, arguments, processing_class=tokenizer(), **data).train()
    ours = DistillationTrainer(
        student,
        config(tmp_path / "ours", alpha=0.0, **options),
        teacher_model=teacher,
        processing_class=tokenizer(),
        **data,
    )
    ours.train()
    for name, value in stock.state_dict().items():
        assert torch.allclose(value, student.state_dict()[name], atol=1e-6), name


def test_texts_without_a_mask(tmp_path: Path) -> None:
    """Then only the config says what is padding: the student's, also to a teacher whose own config
    says another token."""

    def bare(rows: Any) -> dict[str, Tensor]:
        return {k: v for k, v in zeros(rows).items() if k != "attention_mask"}

    student, teacher = llama(0, 0), llama(1, 2)
    rows = sentences()
    options: dict[str, Any] = {"model": student, "objective": ForwardKL(1.0)}
    options |= {"data_collator": bare}
    with TeacherServer(ModelTeacher(teacher)) as server:
        far = HTTPTeacher(server.url)
        with pytest.raises(ValueError, match=r"attention_mask.*pad_token_id 0 and 2"):
            first_step(tmp_path, rows, teacher_model=far, **options)
    expected = softmax_kl(at_the_end(student, rows), at_the_end(teacher, rows))
    step, _ = first_step(tmp_path, rows, teacher_model=teacher, **options)
    assert step["forward_kl"] == pytest.approx(expected, abs=1e-5)


def test_logits_of_another_shape_than_the_items_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that is named wrongly gives a row for each token, or each box: divided by examples,
    its agreement is 2.0. The remedy is followed."""
    student, teacher = models("token_classification")
    monkeypatch.setitem(CUSTOM_TASKS, "BertForTokenClassification", "sequence_classification")
    options: dict[str, Any] = {"model": student, "teacher_model": teacher, "alpha": 1.0}
    message = r"items \(8,\).*the (student|teacher) \(BertForTokenCl.*got \(8, 9, 3\).*CUSTOM_TASKS"
    with pytest.raises(ValueError, match=message):
        first_step(tmp_path, texts(), **options)
    monkeypatch.setitem(CUSTOM_TASKS, "BertForTokenClassification", "token_classification")
    first_step(tmp_path, texts(), **options)


def test_a_teacher_finds_the_end_of_a_text_by_the_tokens_of_the_data(tmp_path: Path) -> None:
    """BART's classifier reads the place of the last end token, which its config names."""

    def bart(seed: int, end: int) -> Any:
        settings = tf.BartConfig(
            vocab_size=40,
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            max_position_embeddings=64,
            num_labels=LABELS,
            dropout=0.0,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=end,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return tf.BartForSequenceClassification(settings)

    student, teacher, right = bart(0, 2), bart(1, 5), bart(1, 2)
    rows = sentences(end=True)
    expected = softmax_kl(logits_of(student, rows), logits_of(right, rows))
    step, _ = first_step(
        tmp_path, rows, model=student, teacher_model=teacher, objective=ForwardKL(1.0)
    )
    assert step["forward_kl"] == pytest.approx(expected, abs=1e-5)
    assert teacher.config.eos_token_id == 5


@pytest.mark.parametrize("kind", [torch.int32, torch.bool])
def test_class_ids_of_other_integer_types(tmp_path: Path, kind: torch.dtype) -> None:
    """torch takes int64 alone."""
    student, teacher = said()
    labels = torch.arange(8) % 2
    rows = texts(labels.to(kind))
    expected = F.cross_entropy(logits_of(student, rows), labels)
    step, _ = first_step(
        tmp_path, rows, model=student, teacher_model=teacher, objective=1.0 * HardLabels()
    )
    assert step["hard_labels"] == pytest.approx(float(expected), abs=1e-5)
