"""Two models, one order of classes: labels by name, vocabularies of one tokenizer family."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
import two_tokenizers
from tiny_models import CASES, Example, collate, quiet_arguments
from tokenizers import Tokenizer, models

from hf_distill import (
    CachedTeacher,
    DistillationTrainer,
    ForwardKL,
    HardLabels,
    LogitMSE,
    ModelTeacher,
    ReverseKL,
    write_cache,
)

NAMES = ["negative", "neutral", "positive"]
ORDER = [2, 0, 1]
CLASSIFIER = {
    "sequence_classification": "classifier",
    "token_classification": "classifier",
    "image_classification": "classifier",
    "semantic_segmentation": "decode_head.classifier",
}


def named(model: Any, names: Sequence[str]) -> Any:
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    return model


def permuted(model: Any, path: str) -> Any:
    """A copy whose class i is the model's class ORDER[i]."""
    twin = copy.deepcopy(model)
    layer: Any = twin.get_submodule(path)
    for parameter in (layer.weight, layer.bias):
        parameter.data = parameter.data[ORDER].clone()
    return twin


def accuracy(prediction: tf.EvalPrediction) -> dict[str, float]:
    logits, labels = (torch.as_tensor(x) for x in (prediction.predictions, prediction.label_ids))
    dim = 1 if logits.dim() == 4 else -1
    if logits.shape[2:] != labels.shape[1:] and dim == 1:
        logits = torch.nn.functional.interpolate(logits, size=labels.shape[1:], mode="bilinear")
    return {"accuracy": (logits.argmax(dim) == labels).double().mean().item()}


def evaluate(folder: Path, head: str, student: Any, teacher: Any) -> dict[str, float]:
    ours = DistillationTrainer(
        student,
        quiet_arguments(folder, label_names=["labels"]),
        teacher_model=teacher,
        objective=ForwardKL(),
        eval_dataset=CASES[head].data(),
        data_collator=collate,
        compute_metrics=accuracy,
    )
    return ours.evaluate()


@pytest.mark.parametrize("spelling", [str.lower, str.upper, lambda name: f" {name} "])
@pytest.mark.parametrize("head", CLASSIFIER)
def test_labels_in_another_order(head: str, spelling: Callable[[str], str], tmp_path: Path) -> None:
    """Matched by position, the best teacher teaches the wrong class, with full confidence."""
    student = named(CASES[head].models()[0], NAMES)
    teacher = named(permuted(student, CLASSIFIER[head]), [spelling(NAMES[i]) for i in ORDER])
    found = evaluate(tmp_path, head, student, teacher)
    assert found["eval_agreement"] == 1.0
    assert abs(found["eval_forward_kl"]) < 1e-14
    assert found["eval_teacher_accuracy"] == found["eval_accuracy"]


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_default_names_say_nothing(side: str, tmp_path: Path) -> None:
    """LABEL_0 is no name: matched by position, as nothing better is known."""
    head = "sequence_classification"
    student = CASES[head].models()[0]
    teacher = permuted(student, CLASSIFIER[head])
    named(student if side == "student" else teacher, [NAMES[i] for i in ORDER])
    found = evaluate(tmp_path, head, student, teacher)
    assert found["eval_agreement"] < 1.0
    assert found["eval_forward_kl"] > 1e-4


def test_names_that_occur_twice(tmp_path: Path) -> None:
    """Two classes of one name cannot be told apart."""
    head = "sequence_classification"
    student, teacher = CASES[head].models()
    named(student, ["good", "Good", "bad"])
    named(teacher, ["good", "bad", "Good"])
    with pytest.raises(ValueError, match="to have the same labels"):
        evaluate(tmp_path, head, student, teacher)


# ---- vocabularies ----------------------------------------------------------------------------

TOKENS = 37
TEACHER_ENTRIES = 48


def tokenizer(tokens: Sequence[str] | None = None) -> Any:
    """A tokenizer of 37 words, for models whose vocabularies are padded to 40 and 48."""
    words = ["[PAD]", "[UNK]", "[MASK]"] + [f"w{i}" for i in range(TOKENS - 3)]
    vocabulary = {w: i for i, w in enumerate(words if tokens is None else tokens)}
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
    )


def swapped() -> Any:
    """The same words, two of them in each other's place."""
    words = sorted(tokenizer().get_vocab(), key=tokenizer().get_vocab().get)
    words[10], words[11] = words[11], words[10]
    return tokenizer(words)


def family(head: str) -> tuple[Any, Any]:
    """Student and teacher of one tokenizer, with different padding."""
    case = CASES[head]
    student = case.models()[0]
    config = type(case.config())(
        **{**case.config().to_diff_dict(), **case.teacher, "vocab_size": TEACHER_ENTRIES}
    )
    torch.manual_seed(1)
    return student, case.model(config).double()


def rows(head: str) -> list[Example]:
    """Data of real tokens only."""
    return [
        {k: [i if i < TOKENS else i - 10 for i in ids] for k, ids in row.items()}
        if head != "sequence_classification"
        else {**row, "input_ids": [i % TOKENS for i in row["input_ids"]]}
        for row in CASES[head].data()
    ]


def trainer(folder: Path, head: str, student: Any, teacher: Any, **options: Any) -> Any:
    given = {
        "objective": HardLabels() + ForwardKL(2.0) + ReverseKL() + LogitMSE(),
        "processing_class": tokenizer(),
        "train_dataset": rows(head),
        "eval_dataset": rows(head),
        "data_collator": collate,
    }
    arguments = quiet_arguments(folder)
    return DistillationTrainer(student, arguments, teacher_model=teacher, **{**given, **options})


PHANTOM = {"causal_lm": ("lm_head.weight",), "masked_lm": ("cls.predictions.bias",)}


def parts(ours: Any, head: str) -> tuple[dict[str, float], list[Any]]:
    """Components, and the gradient of the parameters that make the student's logits."""
    ours.model.zero_grad()
    loss = ours.compute_loss(ours.model.train(), collate(rows(head)))
    loss.backward()
    named = dict(ours.model.named_parameters())
    return ours.component_log.figures(0), [named[n].grad for n in PHANTOM[head]]


@pytest.mark.filterwarnings("ignore:Student and teacher (end|pad)")
@pytest.mark.parametrize("head", PHANTOM)
def test_phantom_entries_carry_no_weight(head: str, tmp_path: Path) -> None:
    """A teacher's padding takes probability from real tokens; a student's learns to shrink."""
    student, teacher = family(head)
    tokenizer().save_pretrained(tmp_path / "teacher")
    teacher.save_pretrained(tmp_path / "teacher")
    ours = trainer(tmp_path / "out", head, student, str(tmp_path / "teacher"))
    before, gradients = parts(ours, head)
    assert all(torch.all(g[TOKENS:] == 0) and torch.any(g[:TOKENS] != 0) for g in gradients)

    for model in (ours.model, ours.teacher.model):
        for name in PHANTOM[head]:
            dict(model.named_parameters())[name].data[TOKENS:] += 7.0
    assert parts(ours, head)[0] == before

    batch = collate(rows(head))
    labels = batch.pop("labels")
    with torch.no_grad():
        z, t = (m.eval()(**batch).logits[..., :TOKENS] for m in (ours.model, ours.teacher.model))
    if head == "causal_lm":
        z, t, labels = z[:, :-1], t[:, :-1], labels[:, 1:]
    z, t = z[labels != -100], t[labels != -100]
    log_q, log_p = z.log_softmax(-1), t.log_softmax(-1)
    expected = {
        "hard_labels": -log_q.gather(1, labels[labels != -100][:, None]).mean().item(),
        "reverse_kl": (log_q.exp() * (log_q - log_p)).sum(-1).mean().item(),
        "logit_mse": (z - t).square().sum(-1).mean().item(),
    }
    found = {name: before[name] for name in expected}
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.filterwarnings("ignore:Student and teacher (end|pad)")
@pytest.mark.parametrize("head", PHANTOM)
def test_predictions_of_padded_vocabularies(head: str, tmp_path: Path) -> None:
    """A compute_metrics sees both models at one width, and no phantom entry can be the best."""
    seen: list[Any] = []

    def record(prediction: tf.EvalPrediction) -> dict[str, float]:
        seen.append(torch.as_tensor(prediction.predictions))
        return {"seen": 1.0}

    student, teacher = family(head)
    source = ModelTeacher(teacher, processor=tokenizer())
    trainer(tmp_path, head, student, source, compute_metrics=record).evaluate()
    theirs, ours = seen  # the student last
    assert ours.shape == theirs.shape == (8, 9, 40)
    inner = theirs[:, :-1] if head == "causal_lm" else theirs
    assert torch.all(inner[..., TOKENS:] < inner[..., :TOKENS].amin(-1, keepdim=True))


def test_classifiers_of_one_family(tmp_path: Path) -> None:
    """The same text is the same ids; how far the embedding tables are padded does not matter."""
    head = "sequence_classification"
    student, teacher = family(head)
    source = ModelTeacher(teacher, processor=tokenizer())
    ours = trainer(tmp_path, head, student, source, objective=ForwardKL())
    assert ours.evaluate()["eval_forward_kl"] > 0


@pytest.mark.filterwarnings("ignore:Student and teacher (end|pad)")
@pytest.mark.parametrize("head", ["causal_lm", "masked_lm", "sequence_classification"])
def test_another_tokenizer_is_refused(head: str, tmp_path: Path) -> None:
    """With two tokens swapped everything runs, and every sentence with them is another one."""
    student: Any
    teacher: Any
    student, teacher = CASES[head].models()
    swapped().save_pretrained(tmp_path / "teacher")
    teacher.save_pretrained(tmp_path / "teacher")
    with pytest.raises(
        ValueError, match=r"share one tokenizer, got .* 37 and 37 tokens that differ in 4 entries"
    ):
        trainer(tmp_path, head, student, str(tmp_path / "teacher"))
    with pytest.raises(ValueError, match="share one tokenizer"):
        trainer(tmp_path, head, student, ModelTeacher(teacher, processor=swapped()))
    trainer(tmp_path, head, student, ModelTeacher(teacher, processor=tokenizer()))


@pytest.mark.parametrize("known", ["student", "teacher", "none"])
def test_padding_cannot_be_told_from_tokens_without_both_tokenizers(
    known: str, tmp_path: Path
) -> None:
    """Vocabularies of two sizes may as well be two vocabularies."""
    student, teacher = family("causal_lm")
    source = ModelTeacher(teacher, processor=tokenizer() if known == "teacher" else None)
    ours = tokenizer() if known == "student" else None
    with pytest.raises(ValueError, match=r"40 entries for the student and 48 for the teacher"):
        trainer(tmp_path, "causal_lm", student, source, processing_class=ours)


def test_a_teacher_with_more_classes_is_read_at_the_students(tmp_path: Path) -> None:
    """A teacher of a larger task was of no use, though it names all the student's classes."""
    few, many = ("bad", "good", "mixed"), ("Mixed", "other", "good", "none", "bad")
    student = two_tokenizers.bert(
        "ForSequenceClassification", 1, id2label=dict(enumerate(few)), label2id={}
    )
    teacher = two_tokenizers.bert(
        "ForSequenceClassification", 2, id2label=dict(enumerate(many)), label2id={}
    )
    pieces, data = two_tokenizers.PIECES, two_tokenizers.tokenized(columns=())
    options: dict[str, Any] = {"objective": 1.0 * ForwardKL(2.0), "processing_class": pieces}
    live = ModelTeacher(teacher)
    found = two_tokenizers.made(tmp_path, student, live, data, **options).evaluate()
    expected = [
        two_tokenizers.kl(
            two_tokenizers.logits(student, pieces, text),
            two_tokenizers.logits(teacher, pieces, text)[[4, 2, 0]],
        )
        for text in two_tokenizers.TEXTS
    ]
    assert found["eval_forward_kl"] == pytest.approx(sum(expected) / len(expected), rel=1e-9)
    collate = tf.DataCollatorWithPadding(pieces)
    kept: dict[str, Any] = {"kind": "top_k", "k": 2, "temperature": 2.0}
    few_of_them = write_cache(tmp_path / "some", live, data, collate, format=kept, say=len)
    with pytest.raises(ValueError, match=r"all logits of a teacher with 5 classes.*'full'"):
        two_tokenizers.made(tmp_path, student, CachedTeacher(few_of_them), data, **options)
    everything = write_cache(tmp_path / "all", live, data, collate, say=len)  # the remedy
    cached = two_tokenizers.made(tmp_path, student, CachedTeacher(everything), data, **options)
    assert cached.evaluate()["eval_forward_kl"] == pytest.approx(found["eval_forward_kl"], rel=1e-5)
    teacher.config.id2label[2] = "fine"
    with pytest.raises(ValueError, match=r"read at those that the student's config names"):
        two_tokenizers.made(tmp_path, student, ModelTeacher(teacher), data, **options)


def test_other_ends_of_texts_are_reported(tmp_path: Path) -> None:
    """A student that has learned the teacher's end of a text never stops at its own."""
    student, teacher = CASES["causal_lm"].models()
    teacher.config.eos_token_id, student.config.eos_token_id = 5, 0
    for config in (student.config, teacher.config):
        config.pad_token_id = 1
    with pytest.warns(UserWarning, match=r"end a text by different tokens: .* is 0 for .*5"):
        trainer(tmp_path, "causal_lm", student, teacher, processing_class=None)
