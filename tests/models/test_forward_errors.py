"""Errors of a model's forward, and remedies that are followed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from plain_modules import Writer
from tiny_models import CASES, LABELS, _bert, _vit, _wide, collate
from tiny_trainers import Recorder, config, data, models, trainer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

import hf_distill
from hf_distill import (
    IAD,
    AttentionMaps,
    CachedTeacher,
    Ensemble,
    ForwardKL,
    Gaussian,
    GeneralizedCrossEntropy,
    MiniLM,
    MiniLMv2,
    ModelTeacher,
    Objective,
    OnlineDistillationTrainer,
    OnPerturbed,
    OnPolicyConfig,
    OnPolicyDistillationTrainer,
    TinyBERT,
    register_task,
    write_cache,
)
from hf_distill.models.tasks import CUSTOM_TASKS

tf: Any = transformers
PICTURES = "image_classification"


def first_loss(ours: Any) -> dict[str, float]:
    recorder = Recorder()
    ours.add_callback(recorder)
    ours.train()
    return recorder.steps[0]


def kl(student: Tensor, teacher: Tensor) -> float:
    s, t = (x.detach().double().log_softmax(-1) for x in (student, teacher))
    return float((t.exp() * (t - s)).sum(-1).mean())


# ---- inputs that a model cannot read ---------------------------------------------------------


def vit(size: int = 32, **more: Any) -> Any:
    return tf.ViTForImageClassification(_wide(_vit(), image_size=size, **more))


CANNOT: dict[str, tuple[str, Any, str, str]] = {
    "another image size": (
        PICTURES,
        lambda: vit(64),
        r"the teacher \(ViTFor.*\) to read the batch \{'pixel_values': \(\d, 3, 32",
        r"\(32\*32\).*one image size.*ModelTeacher\(model, processor, inputs='image'\)",
    ),
    "another number of channels": (
        PICTURES,
        lambda: vit(num_channels=1),
        r"the teacher \(ViTForImageClassification\) to read the batch",
        "ValueError: Make sure that the channel dimension",
    ),
    "another number of mel bins": (
        "speech_seq2seq",
        lambda: tf.WhisperForConditionalGeneration(
            _wide(CASES["speech_seq2seq"].config(), num_mel_bins=16)
        ),
        r"the teacher \(WhisperFor.*'input_features': \(\d, 8, 60\)",
        "16 channels.*one number of features",
    ),
    "a column that is not there": (
        "audio_classification",
        lambda: tf.ASTForAudioClassification(
            tf.ASTConfig(
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=24,
                max_length=32,
                num_mel_bins=16,
                num_labels=LABELS,
            )
        ),
        r"the teacher \(ASTFor.*to read the batch \{'input_values': \(\d, \d+\)",
        "choose another teacher",
    ),
    "features for samples": (
        "audio_classification",
        lambda: tf.Wav2Vec2BertForSequenceClassification(
            tf.Wav2Vec2BertConfig(
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=24,
                feature_projection_input_dim=8,
                num_labels=LABELS,
            )
        ),
        r"the teacher \(Wav2Vec2BertFor.*'input_values'",
        r"It takes \[.*'input_features'",
    ),
}


@pytest.mark.parametrize("way", ["trainer", "ensemble", "cache"])
@pytest.mark.parametrize("name", CANNOT)
def test_a_teacher_that_cannot_read_the_batch(tmp_path: Path, name: str, way: str) -> None:
    """An error of a layer says neither whose it is nor what can be done."""
    head, make, *fragments = CANNOT[name]
    run: dict[str, Callable[[], Any]] = {
        "trainer": lambda: trainer(tmp_path, head, teacher_model=make()),
        "ensemble": lambda: trainer(
            tmp_path, head, teacher_model=Ensemble([make(), models(head)[1]])
        ),
        "cache": lambda: write_cache(tmp_path, ModelTeacher(make()), data(head), collate, say=len),
    }
    with pytest.raises(ValueError, match=fragments[0]) as raised:
        run[way]()
    assert raised.match(f"(?s){fragments[1]}")
    assert raised.value.__cause__ is not None


def test_a_student_or_peer_that_cannot_read_the_batch(tmp_path: Path) -> None:
    """The same of the others."""
    with pytest.raises(ValueError, match=r"the student \(ViTFor.*to read the batch.*\(32\*32\)"):
        trainer(tmp_path, PICTURES, model=vit(64))
    with pytest.raises(ValueError, match=r"the peer 'teacher' \(ViTFor.*to read the batch"):
        OnlineDistillationTrainer(
            vit(),
            config(tmp_path),
            peers=vit(64),
            train_dataset=data(PICTURES),
            data_collator=collate,
        )


def test_out_of_memory_is_no_unreadable_batch(tmp_path: Path) -> None:
    """`auto_find_batch_size` looks for that very error."""

    class Large(nn.Module):
        def forward(self, input_ids: Tensor) -> Tensor:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    large = Large()
    large.register_parameter("weight", nn.Parameter(torch.zeros(1)))
    with pytest.raises(RuntimeError, match=r"^CUDA out of memory"):
        trainer(tmp_path, teacher_model=large)


def test_a_teacher_with_a_column_of_its_own(tmp_path: Path) -> None:
    """The remedy that is named, followed: pictures of its own size; and written to a cache."""
    rows = data(PICTURES)
    for row in rows:
        row["teacher_pixel_values"] = F.interpolate(row["pixel_values"][None], size=(64, 64))[0]
    student, big = models(PICTURES)[0], vit(64, hidden_size=24)
    for parameter in big.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(3)
    batch = collate(rows[:4])
    with torch.no_grad():
        ours = student.eval()(pixel_values=batch["pixel_values"]).logits
        theirs = big.eval()(pixel_values=batch["teacher_pixel_values"]).logits
    teacher = ModelTeacher(big, inputs="teacher_pixel_values")
    folder = write_cache(tmp_path / "cache", teacher, rows, collate, say=len)
    for each in (teacher, CachedTeacher(folder)):
        found = trainer(
            tmp_path,
            PICTURES,
            teacher_model=each,
            objective=1.0 * ForwardKL(1.0),
            train_dataset=rows,
            eval_dataset=rows,
            train_sampling_strategy="sequential",
        )
        assert first_loss(found)["loss"] == pytest.approx(kl(ours, theirs), rel=1e-3)


# ---- another tokenizer -----------------------------------------------------------------------


def tokenizer(words: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *words.split()])}
    own = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    own.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=own, pad_token="[PAD]", unk_token="[UNK]")


def test_a_classifier_with_another_tokenizer(tmp_path: Path) -> None:
    """CrossTokenizerTeacher, which was recommended, is for causal language models alone."""
    one, other = tokenizer("a b c d e f"), tokenizer("f e d c b a x y")
    student = tf.BertForSequenceClassification(_wide(_bert(num_labels=LABELS), vocab_size=8))
    teacher = tf.BertForSequenceClassification(_wide(_bert(num_labels=LABELS), vocab_size=10))
    for parameter in (*student.parameters(), *teacher.parameters()):
        if parameter.dim() > 1:
            parameter.data.mul_(3)
    texts = ["a b c", "d e f a", "c c", "f d b e"]
    rows: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        found = {"input_ids": one(text)["input_ids"], "labels": number % LABELS}
        rows.append({**found, "teacher_input_ids": other(text)["input_ids"]})

    options: dict[str, Any] = {"train_dataset": rows, "eval_dataset": rows}
    options |= {"data_collator": collate, "processing_class": one}
    options |= {"model": student, "objective": 1.0 * ForwardKL(1.0)}
    bare = [{name: row[name] for name in ("input_ids", "labels")} for row in rows]
    own = {**options, "train_dataset": bare, "eval_dataset": bare}
    with pytest.raises(ValueError, match=r"differ in \d+ entries.*inputs='text'") as raised:
        trainer(tmp_path, teacher_model=ModelTeacher(teacher, processor=other), **own)
    assert "CrossTokenizerTeacher" not in str(raised.value)
    ours = trainer(
        tmp_path,
        teacher_model=ModelTeacher(teacher, processor=other),
        train_sampling_strategy="sequential",
        **options,
    )
    batch, theirs = collate(bare), other(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        s = student.eval()(batch["input_ids"], batch["attention_mask"]).logits
        t = teacher.eval()(theirs["input_ids"], theirs["attention_mask"]).logits
    assert first_loss(ours)["loss"] == pytest.approx(kl(s, t), rel=1e-3)


def test_only_causal_language_models_are_translated(tmp_path: Path) -> None:
    """The other heads with a vocabulary have no such remedy, and are promised none."""
    student, teacher = (
        tf.BertForMaskedLM(_bert()),
        tf.BertForMaskedLM(_wide(_bert(), vocab_size=50)),
    )
    with pytest.raises(ValueError, match=r"one vocabulary.*student's tokenizer\.$"):
        trainer(tmp_path, "masked_lm", model=student, teacher_model=teacher)
    case = CASES["causal_lm"]
    llama = tf.LlamaForCausalLM(_wide(case.config(), vocab_size=50))
    with pytest.raises(ValueError, match=r"one vocabulary.*CrossTokenizerTeacher"):
        trainer(tmp_path, "causal_lm", teacher_model=llama)


# ---- other numbers of attention heads --------------------------------------------------------


@pytest.mark.parametrize("objective", [AttentionMaps, TinyBERT])
def test_other_numbers_of_heads(tmp_path: Path, objective: Any) -> None:
    """The advice heads='mean' must be one that the objective takes."""
    teacher = tf.BertForSequenceClassification(
        _wide(_bert(num_labels=LABELS), num_attention_heads=4)
    )
    with pytest.raises(ValueError, match=r"heads differ use heads='mean'"):
        trainer(tmp_path, teacher_model=teacher, objective=1.0 * objective())
    ours = trainer(tmp_path, teacher_model=teacher, objective=1.0 * objective(heads="mean"))
    assert first_loss(ours)["loss"] > 0


def test_the_mean_of_the_heads(tmp_path: Path) -> None:
    """TinyBERT's maps with other numbers of heads are those of AttentionMaps."""
    teacher = tf.BertForSequenceClassification(
        _wide(_bert(num_labels=LABELS), num_attention_heads=4)
    )
    goal = TinyBERT(heads="mean") + AttentionMaps(heads="mean", scores=True)
    found = first_loss(trainer(tmp_path, teacher_model=teacher, objective=goal))
    assert found["tinybert_attention_maps"] == pytest.approx(found["attention_maps"], rel=1e-6)


def test_relations_of_other_numbers_of_heads(tmp_path: Path) -> None:
    """MiniLM has no `heads`; its successor is named, and works."""
    teacher = tf.BertForSequenceClassification(
        _wide(_bert(num_labels=LABELS), num_attention_heads=4)
    )
    with pytest.raises(ValueError, match=r"got 2 and 4: .*MiniLMv2\(\)"):
        trainer(tmp_path, teacher_model=teacher, objective=1.0 * MiniLM())
    assert (
        first_loss(trainer(tmp_path, teacher_model=teacher, objective=1.0 * MiniLMv2()))["loss"] > 0
    )


# ---- other refusals that name a way out ------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "objective"),
    [
        ("multi_label", IAD(Gaussian(0.1))),
        ("regression", IAD(Gaussian(0.1))),
        ("encoder", GeneralizedCrossEntropy()),
        ("multi_label", GeneralizedCrossEntropy()),
        ("regression", GeneralizedCrossEntropy()),
    ],
)
def test_what_is_named_instead_fits_the_head(
    tmp_path: Path, head: str, objective: Objective
) -> None:
    """An encoder has neither labels nor logits: ForwardKL and HardLabels are no help there."""
    with pytest.raises(ValueError, match=r"Use ") as raised:
        trainer(tmp_path, head, objective=1.0 * objective)
    name = re.findall(r"Use (?:OnPerturbed\()?(\w+)", str(raised.value))[-1]
    other: Objective = getattr(hf_distill, name)()
    if "OnPerturbed" in str(raised.value):
        other = OnPerturbed(other, Gaussian(0.1))
    rows = {"train_dataset": data(head), "eval_dataset": data(head)}
    assert first_loss(trainer(tmp_path, head, objective=1.0 * other, **rows))["loss"] >= 0


def test_a_module_writes_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `generate` an on-policy training ends in its first step; lmbda=0 is the way out."""
    monkeypatch.setattr("hf_distill.models.tasks.CUSTOM_TASKS", dict(CUSTOM_TASKS))
    register_task(Writer, "causal_lm")
    rows = data("causal_lm")

    def built(lmbda: float) -> Any:
        quiet = vars(config(tmp_path))
        names = ("per_device_train_batch_size", "max_steps", "use_cpu", "report_to")
        names += ("logging_steps",)
        arguments = {name: quiet[name] for name in names}
        return OnPolicyDistillationTrainer(
            Writer(),
            OnPolicyConfig(str(tmp_path), lmbda=lmbda, max_completion_length=4, **arguments),
            teacher_model=models("causal_lm")[1],
            train_dataset=rows,
            data_collator=collate,
            processing_class=tokenizer(" ".join(f"w{n}" for n in range(38))),
        )

    with pytest.raises(ValueError, match=r"Writer has no `generate`.*lmbda=0"):
        built(0.5)
    assert first_loss(built(0.0))["loss"] > 0
