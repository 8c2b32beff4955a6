"""What the models of every head are fed, and what is read from them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from datasets import Dataset
from task_values import signal, trainer
from tiny_models import CASES, collate, quiet_arguments
from torch import nn

from hf_distill import ForwardKL, HiddenStates, Needs
from hf_distill.models.task_model import TaskModel

NO_CLASSES = ("dual_encoder", "encoder")


# ---- what models are fed ---------------------------------------------------------------------


@pytest.mark.parametrize("head", CASES)
def test_labels_reach_no_model(head: str, tmp_path: Path) -> None:
    """A teacher with labels computes a loss for nothing, or fails on labels that it has not."""
    objective = HiddenStates() if head == "encoder" else ForwardKL()
    ours = trainer(tmp_path, head, objective)
    fed: list[dict[str, Any]] = []

    def record(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        assert not args
        fed.append(kwargs)

    for model in (ours.model, ours.teacher.model):
        model.register_forward_pre_hook(record, with_kwargs=True)
    ours.train()
    ours.evaluate()
    labels = {"labels", "start_positions", "end_positions", "return_loss", "shift_labels"}
    assert len(fed) == 8  # two models: two steps, two batches
    assert not any(labels & set(kwargs) for kwargs in fed)
    assert not any(kwargs.get("use_cache") for kwargs in fed)
    assert all(fed[0].keys() == kwargs.keys() for kwargs in fed)


def test_columns_that_only_the_teacher_reads(tmp_path: Path) -> None:
    """DistilBERT has no segments: dropped with its unused columns, BERT reads both as one."""
    case = CASES["sequence_classification"]
    teacher: Any = case.models()[1].eval()
    sizes: Any = {"vocab_size": 40, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24}
    config = tf.DistilBertConfig(**sizes, id2label=teacher.config.id2label)
    student = tf.DistilBertForSequenceClassification(config)
    rows = case.data()
    for row in rows:
        length = len(row["input_ids"])
        row["token_type_ids"] = [0] * (length // 2) + [1] * (length - length // 2)
        row["comment"] = "no model reads this"
    ours = trainer(
        tmp_path,
        "sequence_classification",
        ForwardKL(),
        model=student.double(),
        teacher_model=teacher,
        args=quiet_arguments(tmp_path, remove_unused_columns=True, per_device_eval_batch_size=8),
        eval_dataset=Dataset.from_list(rows),
        train_dataset=None,
    )
    batch = collate([{k: v for k, v in row.items() if k != "comment"} for row in rows])
    types, _ = batch.pop("token_type_ids"), batch.pop("labels")
    with torch.no_grad():
        q = student.eval()(**batch).logits.log_softmax(-1)
        with_types = teacher(**batch, token_type_ids=types).logits.log_softmax(-1)
        without = teacher(**batch).logits.log_softmax(-1)
    expected, dropped = ((p.exp() * (p - q)).sum(-1).mean().item() for p in (with_types, without))
    assert ours.evaluate()["eval_forward_kl"] == pytest.approx(expected, rel=1e-9)
    assert abs(expected - dropped) > 1e-3 * expected


def bart() -> Any:
    sizes: Any = {f"{s}_{n}": 2 for s in ("encoder", "decoder") for n in ("layers", "ffn_dim")}
    heads: Any = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = tf.BartConfig(vocab_size=40, d_model=16, max_position_embeddings=32, **sizes, **heads)
    return tf.BartForConditionalGeneration(config).double()


@pytest.mark.parametrize("head", ["seq2seq_lm", "speech_seq2seq", "bart"])
def test_decoder_inputs_are_shared(head: str) -> None:
    """Each model would shift the labels with its own start token, and read other sentences."""
    case = CASES["seq2seq_lm" if head == "bart" else head]
    student, teacher = (bart(), bart()) if head == "bart" else case.models()
    first, second = TaskModel(student.eval()), TaskModel(teacher.eval())
    second.config.decoder_start_token_id = 7
    batch = collate(case.data())
    shared = first.task.share(batch, first.model)
    fed = [h.inputs(shared, Needs(logits=True))["decoder_input_ids"] for h in (first, second)]
    assert fed[0] is fed[1]
    logits = signal(student, batch).logits
    with torch.no_grad():
        own = student(**batch).logits  # makes its decoder inputs of the labels itself
    assert logits is not None
    real = batch["labels"] != -100
    torch.testing.assert_close(logits[real], own[real])
    given = {"decoder_input_ids": torch.ones(8, 2, dtype=torch.long)}
    kept = first.task.share({**batch, **given}, first.model)
    assert kept["decoder_input_ids"] is given["decoder_input_ids"]


# ---- what models say -------------------------------------------------------------------------


def shapes(found: Any) -> Any:
    """Nested tuples of shapes; ModelOutputs inside (the towers of CLIP) are left out."""
    if isinstance(found, tuple):
        return tuple(shapes(part) for part in found if not hasattr(part, "to_tuple"))
    return found.shape


class Recorder:
    """A compute_metrics that keeps what it was given: the student's predictions, the teacher's."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, prediction: tf.EvalPrediction) -> dict[str, float]:
        self.seen.append(prediction.predictions)
        return {"seen": 1.0}


@pytest.mark.parametrize("head", CASES)
def test_predictions_are_those_of_transformers(head: str, tmp_path: Path) -> None:
    """A compute_metrics that worked with Trainer unpacks what it knows: another order of fields,
    or hidden states among them, gives a figure of something else."""
    rows, record = CASES[head].data(4), Recorder()
    objective = HiddenStates() if head == "encoder" else ForwardKL() + HiddenStates()
    ours = trainer(tmp_path, head, objective, compute_metrics=record)
    plain = tf.TrainingArguments(
        str(tmp_path),
        per_device_eval_batch_size=2,
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    stock: Any = tf.Trainer(ours.model, plain, data_collator=collate)
    expected, found = stock.predict(rows).predictions, ours.predict(rows).predictions
    assert shapes(found) == shapes(expected)
    wanted = expected if isinstance(expected, tuple) else (expected,)
    for one, other in zip(found if isinstance(found, tuple) else (found,), wanted, strict=False):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other))
    if head in NO_CLASSES:
        assert not record.seen  # transformers does not call it without labels
    else:
        assert shapes(record.seen[-1]) == shapes(expected)


@pytest.mark.parametrize("head", [h for h in CASES if h not in NO_CLASSES])
def test_predictions_of_the_teacher_have_the_same_shapes(head: str, tmp_path: Path) -> None:
    """A compute_metrics that unpacks or reshapes would fail on the teacher, after an epoch."""
    record = Recorder()
    trainer(tmp_path, head, ForwardKL(), compute_metrics=record).evaluate()
    teacher, student = record.seen  # the student last
    if head == "semantic_segmentation":  # a Signal's maps are at the resolution of the labels
        assert (student.shape[2:], teacher.shape[2:]) == ((8, 8), (32, 32))
        student, teacher = student[..., 0, 0], teacher[..., 0, 0]
    assert shapes(student) == shapes(teacher)
    if "seq2seq" in head:  # what a teacher does not give must not look like something
        states = torch.as_tensor(teacher[1])
        assert torch.isnan(states[states != -100]).all()  # -100 pads the batches to one length


def test_the_teachers_predictions_are_its_own(tmp_path: Path) -> None:
    """The teacher's figure must be the teacher's: with the student's logits, 100% is retained."""
    record = Recorder()
    ours = trainer(tmp_path, "question_answering", ForwardKL(), compute_metrics=record)
    ours.evaluate()
    batch = collate(CASES["question_answering"].data(4)[:2])
    with torch.no_grad():
        expected = ours.teacher.model(batch["input_ids"], batch["attention_mask"])
    real = batch["attention_mask"].bool()
    for found, logits in zip(
        record.seen[0], (expected.start_logits, expected.end_logits), strict=True
    ):
        torch.testing.assert_close(torch.as_tensor(found[:2])[real], logits[real])


ATTENTIVE = {
    "sequence_classification": {"hidden": (2, 4)},
    "seq2seq_lm": {"encoder": (2, 3), "decoder": (2, 3)},
    "speech_seq2seq": {"encoder": (2, 3), "decoder": (2, 3)},
    "dual_encoder": {"text": (2, 2), "vision": (2, 3)},
    "causal_lm": {"hidden": (2, 3)},
}


@pytest.mark.parametrize("head", ATTENTIVE)
def test_attention_maps_under_any_attention(head: str) -> None:
    """The fast attention returns no maps and no error: a loss of nothing would be 0."""
    batch = collate(CASES[head].data(2))
    needs = Needs(attentions=True)
    for model, index in zip(CASES[head].models(torch.float32), (0, 1), strict=True):
        any_model: Any = model.eval()
        inputs = {k: v.float() if v.is_floating_point() else v for k, v in batch.items()}
        any_model.set_attn_implementation("sdpa")
        maps = signal(any_model, inputs, needs).attentions
        assert {g: len(m) for g, m in maps.items()} == {
            g: n[index] for g, n in ATTENTIVE[head].items()
        }
        for layer in (layer for group in maps.values() for layer in group):
            torch.testing.assert_close(layer.sum(-1), torch.ones(layer.shape[:-1]))


@pytest.mark.parametrize("head", NO_CLASSES)
def test_models_without_classes_train_on_their_states(head: str, tmp_path: Path) -> None:
    """A projection or a wrapper that stays on the student is published with it."""
    ours = trainer(tmp_path, head, HiddenStates())
    student = ours.model
    kind, keys = type(student), set(student.state_dict())
    before = ours.evaluate()["eval_loss"]
    ours.args.learning_rate = 1e-2
    ours.train()
    assert ours.evaluate()["eval_loss"] < before
    assert ours.projections.state_dict()
    assert type(ours.model) is kind
    assert set(student.state_dict()) == keys
    ours.save_model(str(tmp_path / "saved"))
    loaded, told = kind.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(told.values()), told
    assert loaded.config.architectures == [kind.__name__]
