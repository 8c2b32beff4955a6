"""Labels and counts of every head, and which head it is, against transformers and loops."""

import copy
import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf
from task_values import components, signal, trainer, value
from tiny_models import CASES, LABELS, OBJECTIVES, Example, collate
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import TokenClassifierOutput

from hf_distill import ForwardKL, HardLabels, HiddenStates, LogitMSE, Needs, ReverseKL, WeightedSum
from hf_distill.models.signals import BatchItems
from hf_distill.models.states import layers_of
from hf_distill.models.task_model import TaskModel
from hf_distill.models.tasks import CUSTOM_TASKS, TASKS, register_task, task_of

Batch = dict[str, Tensor]
PICTURES = ("image_classification", "semantic_segmentation")
LABELLED = [name for name, case in CASES.items() if "hard_labels" in case.objectives]


# ---- labels ----------------------------------------------------------------------------------


@torch.no_grad()
def own_loss(head: str, model: Any, rows: list[Example]) -> float:
    """The loss that transformers computes itself, brought to our scale."""
    batch: dict[str, Any] = collate(rows)
    if head == "dual_encoder":
        return model(**batch, return_loss=True).loss.item()
    model.config.ctc_loss_reduction = "sum"
    loss = model(**batch).loss.item()
    if head == "multi_label":
        return loss * LABELS
    return loss / (batch["labels"] != -100).sum().item() if head == "ctc" else loss


@pytest.mark.parametrize("head", LABELLED)
def test_hard_labels_are_the_loss_of_transformers(head: str) -> None:
    """A shift, an ignored index or a missing factor trains something near the right thing."""
    student: Any = CASES[head].models()[0].eval()
    rows = CASES[head].data()
    ours = value(HardLabels(), student, collate(rows))
    # transformers computes these losses in float32
    single = head in ("causal_lm", "image_text_to_text", "ctc")
    assert ours == pytest.approx(own_loss(head, student, rows), rel=1e-6 if single else 1e-12)


def bert(problem: str | None, **options: Any) -> Any:
    config = CASES["sequence_classification"].config()
    config = type(config)(**{**config.to_diff_dict(), "problem_type": problem, **options})
    torch.manual_seed(1)
    return tf.BertForSequenceClassification(config).double().eval()


@pytest.mark.parametrize(("problem", "outputs"), [("regression", 3), (None, 1), ("regression", 1)])
def test_regression(problem: str | None, outputs: int) -> None:
    """The wrong kind takes a softmax over one score: loss 0, forever."""
    student, teacher = bert(problem, num_labels=outputs), bert(problem, num_labels=outputs)
    teacher.classifier.weight.data.neg_()
    batch = collate(CASES["sequence_classification"].data())
    batch["labels"] = torch.randn(8, outputs, dtype=torch.float64)
    if outputs == 1:
        batch["labels"] = batch["labels"][:, 0]
    with torch.no_grad():
        loss = student(**batch).loss.item()  # the mean over the outputs too
        z, t = (m(batch["input_ids"], batch["attention_mask"]).logits for m in (student, teacher))
    squares = sum(((z - t) ** 2).flatten().tolist())
    assert value(HardLabels(), student, batch) == pytest.approx(loss * outputs, rel=1e-12)
    assert value(LogitMSE(), student, batch, teacher) == pytest.approx(squares / 8, rel=1e-12)
    for divergence in (ForwardKL(3.0), ReverseKL(3.0)):  # of N(z, 1) and N(t, 1)
        assert value(divergence, student, batch, teacher) == pytest.approx(squares / 16, rel=1e-12)


@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
@pytest.mark.parametrize("missing", [math.nan, -100.0])
def test_multi_label_with_missing_entries(problem: str | None, missing: float) -> None:
    """A missing label that is read as 0 teaches that nobody has the property."""
    student = bert(problem)
    batch = collate(CASES["multi_label"].data())
    batch["labels"][0, 1] = batch["labels"][3] = batch["labels"][5, :2] = missing
    with torch.no_grad():
        logits = student(batch["input_ids"], batch["attention_mask"]).logits
    total = 0.0
    for z, y in zip(logits.flatten().tolist(), batch["labels"].flatten().tolist(), strict=True):
        if y in (0, 1):
            total += math.log1p(math.exp(-z if y else z))
    items = TaskModel(student).items(batch)
    assert items.counts()["labels"] == 7  # row 3 has none
    assert items.counts()["items"] == 8  # and can still learn from the teacher
    assert value(HardLabels(), student, batch) == pytest.approx(total / 7, rel=1e-12)


def test_regression_with_missing_entries() -> None:
    """A missing score that is read as 0 pulls the prediction to 0."""
    student = bert("regression")
    batch = collate(CASES["multi_label"].data())
    batch["labels"] = torch.randn(8, 3, dtype=torch.float64)
    batch["labels"][0, 1] = batch["labels"][3] = math.nan
    with torch.no_grad():
        logits = student(batch["input_ids"], batch["attention_mask"]).logits
    difference = [
        (z - y) ** 2
        for z, y in zip(logits.flatten().tolist(), batch["labels"].flatten().tolist(), strict=True)
        if not math.isnan(y)
    ]
    assert value(HardLabels(), student, batch) == pytest.approx(sum(difference) / 7, rel=1e-12)


def test_partly_labelled_token_classification() -> None:
    """Unlabelled sentences that count no token waste the teacher; in HardLabels they are noise."""
    student, teacher = CASES["token_classification"].models()
    rows = CASES["token_classification"].data(4)
    rows[1]["labels"] = [-100] * len(rows[1]["labels"])
    batch = collate(rows)
    labels, real = batch["labels"], batch["attention_mask"].bool()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        ours, theirs = (m.eval()(**inputs).logits for m in (student, teacher))
    log_p, log_q = theirs.log_softmax(-1), ours.log_softmax(-1)
    hard, soft = [], []
    for row in range(4):
        for position in range(real.shape[1]):
            labelled = labels[row, position] != -100
            if labelled:
                hard.append(-log_q[row, position, labels[row, position]].item())
            if labelled or (row == 1 and real[row, position]):
                kl = log_p[row, position].exp() * (log_p[row, position] - log_q[row, position])
                soft.append(kl.sum().item())
    expected = {"hard_labels": sum(hard) / len(hard), "forward_kl": sum(soft) / len(soft)}
    found = components(HardLabels() + ForwardKL(), student, batch, teacher)
    assert found == pytest.approx(expected, rel=1e-12)


def test_labels_that_are_shifted_already() -> None:
    """Shifted twice, a language model learns to predict the token after the next."""
    student, teacher = (m.eval() for m in CASES["causal_lm"].models())
    batch = collate(CASES["causal_lm"].data())
    shifted = {k: v for k, v in batch.items() if k != "labels"}
    shifted["shift_labels"] = F.pad(batch["labels"], (0, 1), value=-100)[:, 1:]
    objective = HardLabels() + ForwardKL(2.0)
    expected = components(objective, student, batch, teacher)
    assert components(objective, student, shifted, teacher) == pytest.approx(expected, rel=1e-12)


def test_segmentation_ignores_the_index_of_its_config() -> None:
    """The border class of the usual data sets is 255, not -100."""
    student: Any
    student, teacher = (m.eval() for m in CASES["semantic_segmentation"].models())
    batch = collate(CASES["semantic_segmentation"].data(2))
    batch["labels"][0, 20:] = -100
    kept = (batch["labels"] != 255) & (batch["labels"] != -100)
    counts = TaskModel(student).items(batch).counts()
    assert counts["labels"] == counts["items"] == kept.sum()
    assert value(ForwardKL(), student, batch, teacher) > 0
    student.config.semantic_loss_ignore_index = 1
    batch = collate(CASES["semantic_segmentation"].data(2))
    batch["labels"][batch["labels"] == 255] = 2
    assert TaskModel(student).items(batch).counts()["labels"] == (batch["labels"] != 1).sum()
    unlabelled = {"pixel_values": batch["pixel_values"]}
    assert TaskModel(student).items(unlabelled).counts()["items"] == 2 * 32 * 32


def test_segmentation_of_one_class() -> None:
    """A softmax over the one class is always sure: loss 0 and no gradient."""
    case = CASES["semantic_segmentation"]
    student, teacher = (
        case.model(type(case.config())(**{**case.config().to_diff_dict(), "id2label": {0: "cell"}}))
        for _ in range(2)
    )
    batch = collate(case.data(2, torch.float32))
    batch["labels"] = torch.where(batch["labels"] == 255, 255, batch["labels"] % 2)
    with torch.no_grad():
        own = student.eval()(**batch).loss.item()  # the sum over known pixels, over all pixels
        p, q = (
            F.interpolate(m.eval()(batch["pixel_values"]).logits, (32, 32), mode="bilinear")
            for m in (teacher, student)
        )
    known = (batch["labels"] != 255)[:, None]
    expected = own * known.numel() / known.sum().item()
    assert value(HardLabels(), student, batch) == pytest.approx(expected, rel=1e-5)
    p, q = p.double()[known].sigmoid(), q.double()[known].sigmoid()
    kl = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean().item()
    assert value(ForwardKL(), student, batch, teacher) == pytest.approx(kl, rel=1e-4)


@pytest.mark.parametrize("head", ["ctc", "audio_classification"])
def test_audio_frames(head: str) -> None:
    """Counted in samples, the frames of a window would be divided by some 20 times their number."""
    student: Any = CASES[head].models()[0].eval()
    rows = CASES[head].data()
    batch = collate(rows)
    frames = [((len(r["input_values"]) - 10) // 5 + 1 - 8) // 4 + 1 for r in rows]
    mask = TaskModel(student).items(batch).masks["hidden"]
    assert mask.sum(1).tolist() == frames
    hidden = signal(student, batch, Needs(hidden_states=True)).hidden_states["hidden"]
    assert hidden[0].shape[:2] == mask.shape
    if head == "ctc":
        logits = signal(student, batch).logits
        assert logits is not None
        assert logits.shape[:2] == TaskModel(student).items(batch).masks["items"].shape


# ---- padding, and rows that do not count -----------------------------------------------------


def padded(batch: Batch) -> Batch:
    """The same batch with more padding."""
    sound = "input_values" in batch
    more = {"input_ids": 3, "input_values": 45, "attention_mask": 45 if sound else 3}
    longer = {k: F.pad(v, (0, more[k])) if k in more else v for k, v in batch.items()}
    if "labels" in batch and batch["labels"].dim() > 1 and not batch["labels"].is_floating_point():
        longer["labels"] = F.pad(batch["labels"], (0, 3), value=-100)
    return longer


@pytest.mark.parametrize("head", [h for h in CASES if h not in PICTURES])
def test_padding_changes_nothing(head: str) -> None:
    """Padding that counts makes the result depend on which examples share a batch."""
    case = CASES[head]
    student, teacher = (m.eval() for m in case.models())
    own = {"hard_labels"} if head == "question_answering" else set()  # transformers' own loss
    names = [n for n in case.objectives if n not in {"weight_decay", *own}]
    objective = WeightedSum(tuple((1.0, OBJECTIVES[n]) for n in names)) + HiddenStates(
        distance="cosine"
    )
    batch = collate(case.data())
    expected = components(objective, student, batch, teacher)
    assert len(expected) >= len(names)
    assert min(expected.values()) > 1e-9
    longer = padded(batch)
    assert any(longer[k].shape != batch[k].shape for k in batch)
    rel = 1e-6 if head == "ctc" else 1e-9
    assert components(objective, student, longer, teacher) == pytest.approx(expected, rel=rel)


@pytest.mark.parametrize("head", CASES)
def test_repeated_rows_do_not_count(head: str) -> None:
    """A distributed evaluation repeats examples to fill its last batch; they count only once."""
    student: Any = CASES[head].models()[0]
    head_of = TaskModel(student)
    batch = head_of.task.share(collate(CASES[head].data()), student)
    first = {k: v[:5] for k, v in batch.items()}
    counts = head_of.items(batch, torch.arange(8) < 5).counts()
    expected = head_of.items(first).counts()
    assert {k: int(v) for k, v in counts.items()} == {k: int(v) for k, v in expected.items()}
    assert counts["samples"] == 5


# ---- which head ------------------------------------------------------------------------------


class Mine(tf.BertForTokenClassification):
    """A user's own subclass of a known class."""


class OwnForTokenClassification(tf.BertPreTrainedModel):
    """A class whose name says what it is."""


class Odd(tf.BertPreTrainedModel):
    """A model of a user's own, whose name says nothing."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.bert = tf.BertModel(config, add_pooling_layer=False)
        self.tags = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> TokenClassifierOutput:
        out = self.bert(input_ids, attention_mask, output_hidden_states=output_hidden_states)
        logits: Any = self.tags(out.last_hidden_state)
        return TokenClassifierOutput(logits=logits, hidden_states=out.hidden_states)


def test_the_head_is_found_by_the_class() -> None:
    """The wrong row counts other items and reads other logits."""
    for name, case in CASES.items():
        expected = "sequence_classification" if name in ("multi_label", "regression") else name
        assert task_of(case.models()[0]).name == expected
    config = CASES["token_classification"].config()
    assert task_of(Mine(config)).name == "token_classification"
    assert task_of(OwnForTokenClassification(config)).name == "token_classification"
    small: Any = {"vocab_size": 40, "n_embd": 8, "n_layer": 1, "n_head": 2}
    assert task_of(tf.GPT2LMHeadModel(tf.GPT2Config(**small))).name == "causal_lm"


def test_an_unknown_head_is_named_with_its_outputs(tmp_path: Path) -> None:
    """BertForPreTraining has two kinds of logits, and none is called that."""
    pretraining = tf.BertForPreTraining(CASES["masked_lm"].config())
    assert task_of(pretraining).name == "other"
    with pytest.raises(
        ValueError, match=r"got BertForPreTraining.*'prediction_logits', 'seq_relationship_logits'"
    ):
        trainer(tmp_path, "masked_lm", ForwardKL(), model=pretraining)


def test_a_head_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy that the error names must work, from construction to a saved student."""
    config = CASES["token_classification"].config()
    student = Odd(config).double()
    with pytest.raises(ValueError, match=r"hf_distill\.register_task\('Odd', "):
        trainer(tmp_path, "token_classification", ForwardKL(), model=student)
    monkeypatch.setattr("hf_distill.models.tasks.CUSTOM_TASKS", dict(CUSTOM_TASKS))
    register_task("Odd", "token_classification")
    objective = 0.5 * HardLabels() + ForwardKL() + HiddenStates()
    ours = trainer(tmp_path, "token_classification", objective, model=student)
    ours.train()
    rows = CASES["token_classification"].data(4)
    batch = collate(rows)
    labels = batch.pop("labels")
    logits = student.eval()(**batch).logits.detach().flatten(0, 1)
    expected = F.cross_entropy(logits, labels.flatten()).item()
    assert ours.evaluate()["eval_hard_labels"] == pytest.approx(expected, rel=1e-9)


def test_every_task_is_in_the_zoo() -> None:
    """A row of the table that no test runs."""
    tested = {task_of(case.models()[0]).name for case in CASES.values()}
    pairs = {
        f"{k}_dual_encoder" for k in ("sigmoid", "audio", "video")
    }  # test_own_loss.py, test_model_loss.py
    pairs |= {"bi_encoder"}  # test_bi_encoder.py
    stacks = {"audio_text_to_text", "image_seq2seq"}  # test_every_class.py
    assert set(TASKS) - tested - pairs - stacks - {"other"} == {
        "video_classification"
    }  # read exactly as images are
    video, image = (copy.copy(vars(TASKS[f"{k}_classification"])) for k in ("video", "image"))
    for row in (video, image):
        for key in ("name", "auto_class", "mapping"):
            row.pop(key)
    assert video == image


def test_patches_of_all_images_in_one_sequence_are_no_embeddings() -> None:
    """The patches of a batch, ``(N, H)``, would be taken for one vector per example."""
    items = BatchItems({"samples": torch.ones(3, dtype=torch.bool)})
    for rows in (3, 6):
        outputs = SimpleNamespace(last_hidden_state=torch.arange(4.0 * rows).view(rows, 4))
        if rows == 3:
            (found,) = layers_of(outputs, "embedding", "last_hidden_state", items, "the student")
            assert torch.equal(found, outputs.last_hidden_state)
            continue
        with pytest.raises(ValueError, match=r"of 3 rows.*got one of shape \(6, 4\)"):
            layers_of(outputs, "embedding", "last_hidden_state", items, "the student")


def test_a_task_of_ones_own_with_spans_counts_them() -> None:
    """A registered task that marks spans would be divided by the labels within the text alone."""

    def items(batch: Any, model: nn.Module, rows: Tensor) -> BatchItems:
        return BatchItems({"samples": rows, "spans": rows, "labels": rows})

    task = dataclasses.replace(TASKS["question_answering"], items=items)
    model = CASES["question_answering"].models(torch.float32)[0]
    batch = collate(CASES["question_answering"].data(3, torch.float32))
    assert TaskModel(model, task).items(batch).own_labels == "spans"
    assert TaskModel(CASES["encoder"].models(torch.float32)[0]).items(batch).own_labels == "labels"
