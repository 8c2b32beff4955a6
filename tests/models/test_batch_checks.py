"""Numbers that no model can read, or learn from: each is refused by name, and what trains nothing
is not silent. What transformers itself takes is taken."""

from __future__ import annotations

import copy
import dataclasses
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from tiny_models import CASES, IMAGE, PAD, VOCAB, collate
from tiny_trainers import config, data, models, same, trainer, weights
from torch import Tensor
from torch.nn import functional as F

from hf_distill import (
    DistillationConfig,
    ForwardKL,
    HardLabels,
    HardTeacherLabels,
    ModelTeacher,
    OnlineDistillationTrainer,
    Seq2SeqDistillationConfig,
    Seq2SeqDistillationTrainer,
    Signal,
    write_cache,
)
from hf_distill.models.batch_checks import check_inputs, explained_errors
from hf_distill.training.on_policy import Sampling
from hf_distill.training.on_policy.generating import ModelGenerator

SEQUENCES = "sequence_classification"
LABELLED = sorted(set(CASES) - {"dual_encoder", "encoder", "multi_label", "regression"})
IGNORED = {("question_answering", 10_000), ("question_answering", -1), ("ctc", -1)}
"""Labels that transformers' own loss leaves out: spans out of the text, padding of CTC."""
TEXTS = ("token_classification", "masked_lm", "causal_lm", "seq2seq_lm", "multiple_choice")


def edited(name: str, key: str, change: Callable[[Any], Any], rows: Any = None) -> list[Any]:
    """The data of a head with another value in some rows."""
    found = copy.deepcopy(data(name))
    for index, row in enumerate(found):
        if rows is None or index in rows:
            row[key] = change(row[key])
    return found


def second(value: Any) -> Callable[[Any], Any]:
    """Puts a value in the second place of a text, label or map; a single label it replaces."""

    def change(old: Any) -> Any:
        if isinstance(old, list) and isinstance(old[0], list):
            return [second(value)(part) for part in old]
        if isinstance(old, Tensor):
            new = old.clone()
            new.view(-1)[min(1, new.numel() - 1)] = value
            return new
        return [old[0], value, *old[2:]] if isinstance(old, list) else value

    return change


# ---- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LABELLED)
def test_the_first_label_out_of_range(tmp_path: Path, name: str) -> None:
    """A range that ends one too late lets through the one label that data are off by."""
    key, classes = CASES[name].label_keys[0], {"ctc": 12}.get(name, 3)
    if "lm" in name or name.endswith("text") or name == "speech_seq2seq":
        classes = VOCAB
    if (name, 10_000) in IGNORED:
        return
    rows = edited(name, key, second(classes), [2])
    with pytest.raises(ValueError, match=rf"labels from 0 to {classes - 1} .*got {classes} in row"):
        trainer(tmp_path, name, train_dataset=rows)
    trainer(tmp_path, name, train_dataset=edited(name, key, second(classes - 1), [2]))


@pytest.mark.parametrize("value", [10_000, -1])
@pytest.mark.parametrize("name", LABELLED)
def test_labels_out_of_range(tmp_path: Path, name: str, value: int) -> None:
    """torch says "Target 3 is out of bounds", writes into foreign memory (CTC), or on a GPU ends
    the process: whether among the first examples or in the last batch."""
    key = CASES[name].label_keys[0]
    if (name, value) in IGNORED:
        trainer(tmp_path, name, train_dataset=edited(name, key, second(value), [5])).train()
        return
    model = models(name)[0]
    highest = VOCAB - 1 if "lm" in name or name.endswith("text") else 2
    highest = {"ctc": 11, "speech_seq2seq": VOCAB - 1}.get(name, highest)
    wanted = (
        rf"Expected labels from 0 to {highest} \(or -100, which stands for none\) for the student "
        rf"\({type(model).__name__}\), got {value} in row %d of the batch"
    )
    with pytest.raises(ValueError, match=wanted % 2):
        trainer(tmp_path, name, train_dataset=edited(name, key, second(value), [2]))
    ours = trainer(
        tmp_path,
        name,
        train_dataset=edited(name, key, second(value), [5]),
        dataloader_drop_last=True,
        train_sampling_strategy="sequential",
    )
    with pytest.raises(ValueError, match=wanted % 1):
        ours.train()
    with pytest.raises(ValueError, match=wanted % 2):
        ours.evaluate(edited(name, key, second(value), [2]))


def test_the_remedies_for_labels_work(tmp_path: Path) -> None:
    """More classes; or -100 for what has no label, as in the loss of the model itself."""
    rows = edited(SEQUENCES, "labels", lambda _: 6, [2])
    with pytest.raises(ValueError, match=r"num_labels=…"):
        trainer(tmp_path, train_dataset=rows)
    student = CASES[SEQUENCES].model(type(models()[0].config)(**{**_sizes(), "num_labels": 7}))
    options: dict[str, Any] = {"objective": HardLabels(), "train_dataset": rows}
    options["teacher_model"] = copy.deepcopy(student)
    ours = trainer(tmp_path, model=student, eval_dataset=rows, **options)
    logits = student.eval()(**_without_labels(rows)).logits
    expected = F.cross_entropy(logits.detach().double(), collate(rows)["labels"])
    assert ours.evaluate()["eval_loss"] == pytest.approx(float(expected), rel=1e-5)
    ours.train()

    marked = edited(SEQUENCES, "labels", lambda _: -100, [2])
    ours = trainer(tmp_path, objective=HardLabels(), train_dataset=marked, eval_dataset=marked)
    logits = ours.model.eval()(**_without_labels(marked)).logits
    expected = F.cross_entropy(
        logits.detach().double(), torch.tensor([r["labels"] for r in marked])
    )
    assert ours.evaluate()["eval_loss"] == pytest.approx(float(expected), rel=1e-5)
    ours.train()


def _sizes() -> dict[str, Any]:
    found: dict[str, Any] = models()[0].config.to_diff_dict()
    found = {k: v for k, v in found.items() if k not in ("id2label", "label2id")}
    return {**found, "num_labels": 3}


def _without_labels(rows: list[Any]) -> dict[str, Tensor]:
    return {k: v for k, v in collate(rows).items() if k != "labels"}


@pytest.mark.parametrize("value", [1.5, float("nan")])
def test_a_number_is_no_class(tmp_path: Path, value: float) -> None:
    """Taken for several labels at once, one float would be compared with three logits."""
    rows = edited(SEQUENCES, "labels", lambda _: value)
    with pytest.raises(ValueError, match=r"the student .*: \(4, 3\); got torch.float32 \(4,\)"):
        trainer(tmp_path, train_dataset=rows)
    late = edited(SEQUENCES, "labels", lambda _: value, range(4, 8))  # floats in that batch alone
    ours = trainer(tmp_path, train_dataset=late, train_sampling_strategy="sequential")
    wanted = r"whole numbers as labels, one class of 3 .* the student .*torch.float32 of shape \(4,"
    with pytest.raises(ValueError, match=wanted) as raised:
        ours.train()
    assert "dataset.cast_column('label'" in str(raised.value)
    trainer(tmp_path, train_dataset=edited(SEQUENCES, "labels", lambda _: 1)).train()  # remedies
    several = edited(SEQUENCES, "labels", lambda label: [float(i == label) for i in range(3)])
    trainer(tmp_path, train_dataset=several, eval_dataset=several).train()
    pair = [
        CASES["regression"].model(
            type(m.config)(**{**m.config.to_diff_dict(), "problem_type": "regression"})
        )
        for m in models("regression")
    ]
    trainer(tmp_path, "regression", model=pair[0], teacher_model=pair[1]).train()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("multi_label", lambda old: [2.0, *old[1:]], "labels from 0 to 1 for each class .* got 2 "),
        ("regression", lambda _: float("inf"), r"finite labels \(or NaN.*got inf in row 0"),
        ("regression", lambda _: -float("inf"), r"finite labels \(or NaN.*got -inf in row 0"),
    ],
)
def test_numbers_out_of_range(tmp_path: Path, name: str, change: Any, message: str) -> None:
    """A loss without a lower bound, or an infinite one."""
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, name, train_dataset=edited(name, "labels", change))
    soft = {"multi_label": lambda old: [0.5, *old[1:]], "regression": lambda _: 0.5}[name]
    trainer(tmp_path, name, train_dataset=edited(name, "labels", soft)).train()


def test_labels_that_are_not_learned_are_not_looked_at(tmp_path: Path) -> None:
    """The test split of GLUE has the label -1 everywhere: the teacher alone teaches it."""
    rows = edited(SEQUENCES, "labels", lambda _: -1)
    ours = trainer(tmp_path, train_dataset=rows, eval_dataset=rows, alpha=1.0)
    ours.train()
    assert ours.evaluate()["eval_loss"] > 0


def test_single_batches_without_labels_are_trained_on(tmp_path: Path) -> None:
    """Half of the data unlabelled is usual; stock Trainer leaves such rows out of the mean."""
    rows = edited(SEQUENCES, "labels", lambda _: -100, range(4))
    options: dict[str, Any] = {"max_steps": 2, "train_sampling_strategy": "sequential"}
    ours = trainer(tmp_path, objective=HardLabels(), train_dataset=rows, **options)
    ours.train()
    losses = [entry["loss"] for entry in ours.state.log_history if "loss" in entry]
    assert losses[0] == 0 < losses[1]


def test_peers_learn_from_labels_too(tmp_path: Path) -> None:
    """The student of a joint training may have no label loss, and its peers have one."""
    student, peer = models()
    rows = edited(SEQUENCES, "labels", lambda _: 9, [5])
    ours = OnlineDistillationTrainer(
        student,
        config(tmp_path, alpha=1.0, train_sampling_strategy="sequential"),
        peers=peer,
        train_dataset=rows,
        data_collator=collate,
    )
    with pytest.raises(ValueError, match=r"labels from 0 to 2 .* got 9 in row 1"):
        ours.train()


# ---- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [VOCAB, -3])
@pytest.mark.parametrize("name", [SEQUENCES, "question_answering", *TEXTS])
def test_tokens_without_an_embedding(tmp_path: Path, name: str, value: int) -> None:
    """torch says "index out of range in self", of whichever model; on a GPU the process ends."""
    options: dict[str, Any] = {"train_sampling_strategy": "sequential"}
    wanted = rf"Expected input_ids from 0 to {VOCAB - 1}, as many as the %s \(.*\) has embeddings"
    for alpha in (0.0, 1.0):
        rows = edited(name, "input_ids", second(value), [0])
        with pytest.raises(ValueError, match=wanted % "student" + f", got {value} in row 0"):
            trainer(tmp_path, name, train_dataset=rows, alpha=alpha)
    late = edited(name, "input_ids", second(value), [6])
    for alpha, who in ((0.0, "student"), (1.0, "teacher")):
        ours = trainer(tmp_path, name, train_dataset=late, alpha=alpha, **options)
        with pytest.raises(ValueError, match=wanted % who + f", got {value} in row 2"):
            ours.train()


class Apart(ModelTeacher):
    """A teacher that says nothing of its config."""

    def __init__(self, model: Any):
        super().__init__(model)
        self.config = None


def test_the_remedy_for_tokens_works(tmp_path: Path) -> None:
    """Two models that have the new tokens read them; one of them alone is told which."""
    rows = edited(SEQUENCES, "input_ids", second(VOCAB), [0])
    student, teacher = models()
    student.resize_token_embeddings(VOCAB + 1, mean_resizing=False)
    apart = Apart(teacher)  # one whose vocabulary is not compared with the student's
    with pytest.raises(ValueError, match=r"the teacher .*has embeddings.*resize_token_embeddings"):
        trainer(tmp_path, model=student, teacher_model=apart, train_dataset=rows)
    teacher.resize_token_embeddings(VOCAB + 1, mean_resizing=False)
    trainer(tmp_path, model=student, teacher_model=teacher, train_dataset=rows).train()


@pytest.mark.parametrize("name", ["seq2seq_lm", "speech_seq2seq"])
def test_tokens_of_a_decoder(tmp_path: Path, name: str) -> None:
    """Its inputs may be given, and are not the labels then."""
    rows = [{**row, "decoder_input_ids": [0, VOCAB + 5]} for row in data(name)]
    for row in rows:
        row["labels"] = [3, 4]
    with pytest.raises(ValueError, match=rf"Expected decoder_input_ids .* got {VOCAB + 5} in row"):
        trainer(tmp_path, name, train_dataset=rows)
    right = [{**row, "decoder_input_ids": [0, 5]} for row in rows]
    trainer(tmp_path, name, train_dataset=right).train()


def test_token_types_that_one_model_has_not(tmp_path: Path) -> None:
    """RoBERTa has one type, and BERT's tokenizer gives two."""
    rows = [{**row, "token_type_ids": [1] * len(row["input_ids"])} for row in data()]
    small = {**_sizes(), "type_vocab_size": 1}
    teacher = CASES[SEQUENCES].model(type(models()[1].config)(**small))
    with pytest.raises(ValueError, match=r"token_type_ids from 0 to 0, as many as the teacher"):
        trainer(tmp_path, teacher_model=teacher, train_dataset=rows)
    trainer(tmp_path, teacher_model=teacher).train()  # they are left out


def test_a_place_holder_needs_no_embedding() -> None:
    """Some models replace it before they look tokens up (PaliGemma)."""
    model = models("image_text_to_text")[0]
    model.config.image_token_id = VOCAB + 9
    ids = torch.tensor([[3, VOCAB + 9, 4]])
    check_inputs("the student", model, {"input_ids": ids})
    model.config.image_token_id = IMAGE
    with pytest.raises(ValueError, match=rf"got {VOCAB + 9}"):
        check_inputs("the student", model, {"input_ids": ids})


SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "pad_token_id": PAD,
}
STACKS: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 16,
    "pad_token_id": PAD,
    "eos_token_id": 2,
}
LIMITED: dict[str, Callable[[], Any]] = {
    "bert": lambda: tf.BertModel(tf.BertConfig(**SIZES, max_position_embeddings=16)),
    "two more for padding": lambda: tf.RobertaModel(
        tf.RobertaConfig(**SIZES, max_position_embeddings=18)
    ),
    "positions of real tokens": lambda: tf.OPTModel(
        tf.OPTConfig(
            **{**SIZES, "ffn_dim": 16, "word_embed_proj_dim": 16}, max_position_embeddings=16
        )
    ),
    "relative besides": lambda: tf.DebertaV2Model(
        tf.DebertaV2Config(**SIZES, max_position_embeddings=16)
    ),
    "rotary": lambda: tf.ModernBertModel(tf.ModernBertConfig(**SIZES, max_position_embeddings=16)),
    "two stacks": lambda: tf.BartForConditionalGeneration(tf.BartConfig(**STACKS)),
    "a fixed table": lambda: tf.MarianMTModel(
        tf.MarianConfig(**STACKS, decoder_start_token_id=PAD)
    ),
    "a table that grows": lambda: tf.FSMTForConditionalGeneration(
        tf.FSMTConfig(
            langs=["en", "de"],
            src_vocab_size=VOCAB,
            tgt_vocab_size=VOCAB,
            **{k: v for k, v in STACKS.items() if k != "vocab_size"},
        )
    ),
}


@pytest.mark.parametrize("name", LIMITED)
def test_a_text_is_refused_where_the_model_itself_fails(name: str) -> None:
    """By its size alone it is refused where it would be read (padding without positions, rotary
    positions, tables that grow), or not told where it fails. The judge is the forward."""
    model = LIMITED[name]().eval()
    for real, width in ((16, 16), (17, 17), (14, 20), (30, 30)):
        mask = (torch.arange(width) < real).long().expand(2, -1)
        ids = torch.where(mask.bool(), 5, PAD)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if model.config.is_encoder_decoder:
            inputs |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        try:
            with torch.no_grad():
                model(**inputs)
        except (IndexError, RuntimeError, ValueError):
            told = r"Expected input_ids of at most 16 tokens, the positions of the teacher, got"
            with (
                pytest.raises(ValueError, match=told),
                explained_errors("the teacher", model, inputs),
            ):
                model(**inputs)
        else:
            check_inputs("the teacher", model, inputs)


def test_a_text_that_is_too_long_for_one_of_both(tmp_path: Path) -> None:
    """The message of torch is about tensor a and tensor b."""
    rows = edited(SEQUENCES, "input_ids", lambda ids: (ids * 9)[:14], [0, 6])
    teacher = CASES[SEQUENCES].model(
        type(models()[1].config)(**{**_sizes(), "max_position_embeddings": 12})
    )
    wanted = r"at most 12 tokens, the positions of the %s \(BertFor.*\), got 14.*max_length=12"
    with pytest.raises(ValueError, match=wanted % "teacher"):
        trainer(tmp_path, teacher_model=teacher, train_dataset=rows)
    with pytest.raises(ValueError, match=wanted % "student"):
        trainer(tmp_path, model=copy.deepcopy(teacher), train_dataset=rows, alpha=0.0)
    late = edited(SEQUENCES, "input_ids", lambda ids: (ids * 9)[:14], [6])
    ours = trainer(
        tmp_path, teacher_model=teacher, train_dataset=late, train_sampling_strategy="sequential"
    )
    with pytest.raises(ValueError, match=wanted % "teacher"):
        ours.train()
    cut = edited(SEQUENCES, "input_ids", lambda ids: ids[:12])
    trainer(tmp_path, teacher_model=teacher, train_dataset=cut).train()


def test_tokens_of_what_is_to_be_completed(tmp_path: Path) -> None:
    """Generation runs the model without a loss."""
    student = models("causal_lm")[0].eval()
    wanted = (
        rf"Expected input_ids .* the %s \({type(student).__name__}\) has .*got {VOCAB} in row 1"
    )
    with pytest.raises(ValueError, match=wanted % "model that writes"):
        ModelGenerator(student, Sampling(3, 0.0))([[5, 6], [VOCAB, 6]], 0)
    student, teacher = models("seq2seq_lm")
    args = Seq2SeqDistillationConfig(
        str(tmp_path), predict_with_generate=True, use_cpu=True, report_to="none", disable_tqdm=True
    )
    rows: Any = data("seq2seq_lm")
    ours = Seq2SeqDistillationTrainer(student, args, collate, rows, teacher_model=teacher)
    late = edited("seq2seq_lm", "input_ids", second(VOCAB), [1])
    wanted = wanted.replace("LlamaForCausalLM", type(student).__name__) % "student"
    with pytest.raises(ValueError, match=wanted):
        ours.predict([{k: v for k, v in row.items() if k != "labels"} for row in late])  # type: ignore[arg-type]


def test_empty_texts(tmp_path: Path) -> None:
    """A row of a text file without words; the collator's error names no row."""
    rows = edited(SEQUENCES, "input_ids", lambda _: [], [2])
    with pytest.raises(ValueError, match=r"an empty one \(example 2\), .*dataset.filter\(lambda"):
        trainer(tmp_path, train_dataset=rows)
    trainer(tmp_path, train_dataset=[r for r in rows if len(r["input_ids"]) > 0]).train()

    def padding(rows: list[Any]) -> dict[str, Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        ids = [row["input_ids"] + [PAD] * (width - len(row["input_ids"])) for row in rows]
        mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
        found = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        return {**found, "labels": torch.tensor([row["labels"] for row in rows])}

    trainer(tmp_path, train_dataset=rows, data_collator=padding).train()  # as stock Trainer does
    for alpha in (0.0, 1.0):
        empty = edited(SEQUENCES, "input_ids", lambda _: [])
        with pytest.raises(ValueError, match=r"for the student .*all texts .* are empty"):
            trainer(tmp_path, train_dataset=empty, data_collator=padding, alpha=alpha)


# ---- the teacher ---------------------------------------------------------------------------------


class Odd(ModelTeacher):
    """Says something else than its model."""

    def __init__(self, change: Callable[[Tensor], Any], late: bool = False):
        super().__init__(models()[1])
        self.change, self.late, self.calls = change, late, 0

    def __call__(self, batch: Any, needs: Any, items: Any) -> Signal:
        signal = super().__call__(batch, needs, items)
        self.calls += 1
        if self.late and self.calls < 4:
            return signal
        return dataclasses.replace(signal, logits=self.change(signal.logits))  # type: ignore[arg-type]


SAID: dict[str, tuple[Callable[[Tensor], Any], str, Callable[[Any], Any]]] = {
    "int64": (
        lambda x: x.argmax(-1, keepdim=True).expand(x.shape),
        r"logits of the teacher \(Odd\) as floating numbers, got torch.int64.*values.float\(\)",
        lambda values: values.float(),
    ),
    "bool": (
        lambda x: x > 0,
        r"floating numbers, got torch.bool.*values.float\(\)",
        lambda values: values.float(),
    ),
    "complex": (
        lambda x: x.to(torch.complex64),
        r"floating numbers, got torch.complex64.*values.real",
        lambda values: values.real,
    ),
    "numpy": (
        lambda x: x.numpy(),
        r"as a tensor, got a ndarray.*torch.as_tensor\(values\)",
        torch.as_tensor,
    ),
    "a row too few": (
        lambda x: x[:-1],
        r"logits \(4, 'classes'\) of the teacher \(Odd\), one row for each item .*got \(3, 3\)",
        lambda values: torch.cat([values, values[:1]]),
    ),
    "one row for all": (
        lambda x: x.mean(0, keepdim=True),
        r"one row for each item .*got \(1, 3\)",
        lambda values: values.expand(4, -1),
    ),
}


@pytest.mark.filterwarnings("ignore:The teacher's outputs")  # of some of them after the remedy
@pytest.mark.parametrize("name", SAID)
def test_what_a_teacher_says(tmp_path: Path, name: str) -> None:
    """Broadcast, or cast without a word, it would be another teacher; else torch's error names an
    operation and no one's fault. In a cache it would be kept."""
    change, message, remedy = SAID[name]
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, teacher_model=Odd(change))
    ours = trainer(tmp_path, teacher_model=Odd(change, late=True), max_steps=4)
    with pytest.raises(ValueError, match=message):
        ours.train()
    message = message.replace("(4,", "(2,").replace("3, 3", "1, 3")
    with pytest.raises(ValueError, match=message):
        write_cache(tmp_path / "cache", Odd(change), data(), collate, say=lambda _: None)
    mended = trainer(tmp_path, teacher_model=Odd(lambda x: remedy(change(x))))
    mended.train()


def test_a_teacher_that_gives_no_signal(tmp_path: Path) -> None:
    """The most likely slip in a teacher of one's own."""

    class Plain(ModelTeacher):
        def __call__(self, batch: Any, needs: Any, items: Any) -> Any:
            return super().__call__(batch, needs, items).logits

    class Signals(Plain):
        def __call__(self, batch: Any, needs: Any, items: Any) -> Any:
            return Signal(super().__call__(batch, needs, items))

    with pytest.raises(ValueError, match=r"a Signal from the teacher \(Plain\), got a Tensor"):
        trainer(tmp_path, teacher_model=Plain(models()[1]))
    trainer(tmp_path, teacher_model=Signals(models()[1])).train()


# ---- examples that make no batch -----------------------------------------------------------------

UNREADABLE: dict[str, tuple[Any, str]] = {
    "a text": ({"labels": "positive"}, r"'positive' in 'labels' of example 0 \(TypeError"),
    "no value": ({"labels": None}, r"None in 'labels' of example 0 \(RuntimeError"),
    "words": ({"input_ids": ["a", "b"]}, r"'a' in 'input_ids' of example 0"),
    "several labels": ({"labels": [0, 1]}, r"'labels': \[1, 2\]"),
    "not in all rows": ({"token_type_ids": [0] * 9}, r"'token_type_ids': \[9\]"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_examples_that_make_no_batch(tmp_path: Path, kind: str) -> None:
    """torch says "new(): invalid data type 'str'", of no column and of no row."""
    change, message = UNREADABLE[kind]
    rows = data(SEQUENCES)
    rows[0] = {**rows[0], **change}
    with pytest.raises(ValueError, match=f"Expected.*{message}"):
        trainer(tmp_path, SEQUENCES, train_dataset=rows)


@pytest.mark.parametrize("rows", ["abcdefgh", [None] * 4, [[1, 2]] * 4], ids=str)
def test_data_without_columns(tmp_path: Path, rows: Any) -> None:
    """A list of texts in place of a tokenized data set."""
    with pytest.raises(ValueError, match=r"Expected examples of which .*and not columns by name"):
        trainer(tmp_path, SEQUENCES, train_dataset=rows)


def test_a_mask_of_another_text(tmp_path: Path) -> None:
    """torch says "size of tensor a (8) must match" in some layer of the teacher."""

    def cut(rows: list[Any]) -> dict[str, Any]:
        batch = collate(rows)
        return {**batch, "attention_mask": batch["attention_mask"][:, :-1]}

    with pytest.raises(ValueError, match=r"attention_mask of the shape of input_ids .*one call of"):
        trainer(tmp_path, SEQUENCES, data_collator=cut)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_weights_of_tokens(tmp_path: Path, value: float) -> None:
    """Below 0 the loss grows with what is learned; else it is NaN, and the learning rate blamed."""
    rows = data("causal_lm")
    for row in rows:
        row["token_weights"] = [1.0] * len(row["input_ids"])
    trainer(tmp_path, "causal_lm", train_dataset=rows).train()
    for place in (0, 7):  # among the first examples, and in the last batch
        changed = [dict(row) for row in rows]
        changed[place]["token_weights"] = [value] * len(changed[place]["input_ids"])

        def run(changed: Any = changed) -> None:
            order = {"train_sampling_strategy": "sequential"}
            trainer(tmp_path, "causal_lm", train_dataset=changed, **order).train()

        with pytest.raises(ValueError, match=rf"of 0 or more, got {value:g} in row"):
            run()


# ---- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"],
)
def test_sizes_of_0(tmp_path: Path, name: str) -> None:
    """A collator without examples, a window without batches."""
    with pytest.raises(ValueError, match=rf"Expected {name} of at least 1, got 0"):
        config(tmp_path, **{name: 0})
    assert getattr(config(tmp_path, **{name: 1}), name) == 1


def test_epochs_that_are_no_number(tmp_path: Path) -> None:
    """Rounded up by transformers: "cannot convert float NaN to integer"."""
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"num_train_epochs to be a number, got {value}"):
            config(tmp_path, num_train_epochs=value)


def test_arguments_that_are_no_number(tmp_path: Path) -> None:
    """Of a norm that is NaN transformers makes no clipping, silently."""
    for name in ("max_grad_norm", "learning_rate", "weight_decay", "warmup_steps", "adam_epsilon"):
        with pytest.raises(ValueError, match=rf"Expected {name} to be a number, got nan"):
            config(tmp_path, **{name: float("nan")})


def test_a_batch_that_is_larger_than_the_data(tmp_path: Path) -> None:
    """Left out as incomplete, it was all there was: no step, and a warning of something else."""
    options = {"per_device_train_batch_size": 100}
    ours = trainer(tmp_path, dataloader_drop_last=True, **options)
    with pytest.raises(ValueError, match=r"at least 100 training .*got 8\. Set it to"):
        ours.train()
    trainer(tmp_path, **options).train()


@pytest.mark.parametrize("value", [1e-30, 1e25])
def test_a_temperature_whose_square_is_0_or_infinite(tmp_path: Path, value: float) -> None:
    """Multiplied by the square, the loss is 0 for all students, or NaN."""
    message = rf"temperature between 1e-18 and 1e\+18, got {re.escape(str(value))}.*2 to 4 is usual"
    for make in (
        lambda: ForwardKL(value),
        lambda: DistillationConfig(str(tmp_path), use_cpu=True, temperature=value),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    for objective in (ForwardKL(2.0), HardTeacherLabels(), ForwardKL(1e-3)):
        ours = trainer(tmp_path, objective=objective)
        before = weights(ours.model)
        ours.train()
        assert not same(before, weights(ours.model))


def test_nothing_is_said_of_what_is_right(tmp_path: Path) -> None:
    """Checks that warn of good data are switched off, and with them the others."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in LABELLED:
            trainer(tmp_path, name)
