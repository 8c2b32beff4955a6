"""The loss of the labels is the one of the model's own forward, whatever its config says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from task_values import components, value
from tiny_models import CASES, collate
from tiny_trainers import config, trainer, weights
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from hf_distill import (
    NKD,
    DecoupledKD,
    DistillationTrainer,
    ForwardKL,
    GeneralizedCrossEntropy,
    HardLabels,
    LabelAgreement,
    OnlineDistillationTrainer,
    OnPolicyConfig,
    OnPolicyDistillationTrainer,
    TrustedLabels,
)
from hf_distill.models.task_model import TaskModel

tf: Any = transformers


def stock(folder: Path, model: Any, rows: Any, collator: Any, **options: Any) -> Trainer:
    """The trainer that transformers has, with the arguments of `small.config`."""
    ours = config(folder, **options)
    names = ("max_steps", "learning_rate", "per_device_train_batch_size", "optim", "seed")
    args = TrainingArguments(
        str(folder),
        **{name: getattr(ours, name) for name in names},
        per_device_eval_batch_size=ours.per_device_eval_batch_size,
        **{"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no"},
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    data: dict[str, Any] = {"train_dataset": rows, "eval_dataset": rows, "data_collator": collator}
    return Trainer(model, args, **data)


def on_labels(folder: Path, model: Any, rows: Any, collator: Any, **options: Any) -> Any:
    """Ours with alpha=0, and no teacher."""
    args = config(folder, alpha=0.0, remove_unused_columns=False, **options)
    data: dict[str, Any] = {"train_dataset": rows, "eval_dataset": rows, "data_collator": collator}
    return DistillationTrainer(model, args, **data)


def on_policy_config(folder: Path, **options: Any) -> OnPolicyConfig:
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    return OnPolicyConfig(
        str(folder),
        max_steps=1,
        max_completion_length=4,
        remove_unused_columns=False,
        **quiet,
        **options,
    )


def as_it_is(rows: list[Any]) -> Any:
    """A collator for rows that are batches of one already, of one length."""
    return {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}


def trained_alike(
    folder: Path, make: Callable[[], Any], rows: list[Any], collator: Any = as_it_is
) -> tuple[float, float]:
    """Train both ways on one whole batch, compare the weights, and give both losses before it."""
    options = {"max_steps": 3, "per_device_train_batch_size": len(rows), "optim": "sgd"}
    options |= {"per_device_eval_batch_size": len(rows), "learning_rate": 0.1}
    theirs = stock(folder / "stock", make(), rows, collator, **options)
    ours = on_labels(folder / "ours", make(), rows, collator, **options)
    before = ours.evaluate()["eval_loss"], theirs.evaluate()["eval_loss"]
    theirs.train()
    ours.train()
    one, other = weights(ours.model), weights(theirs.model)
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in other)
    return before


# ---- the blank of a CTC head ---------------------------------------------------------------------


def speech(pad: int, **extra: Any) -> Any:
    base = CASES["ctc"].config()
    made = type(base)(**{**base.to_diff_dict(), "pad_token_id": pad, **extra})
    torch.manual_seed(0)
    model = tf.Wav2Vec2ForCTC(made)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(3)
    return model


def sounds(targets: list[list[int]]) -> list[Any]:
    generator = torch.Generator().manual_seed(3)
    return [
        {"input_values": torch.randn(420, generator=generator), "labels": target}
        for target in targets
    ]


@pytest.mark.parametrize("pad", [0, 5, 11])
def test_the_blank_is_the_token_that_the_config_names(tmp_path: Path, pad: int) -> None:
    """The guides for XLSR put [PAD] last: with 0 as the blank a letter is learned as silence."""
    letters = [i for i in range(12) if i != pad]
    rows = sounds([letters[:3], letters[4:7]])
    collator: Any = lambda r: {k: v for k, v in collate(r).items() if k != "attention_mask"}  # noqa: E731
    ours, theirs = trained_alike(
        tmp_path, lambda: speech(pad, ctc_loss_reduction="mean"), rows, collator
    )
    assert ours == pytest.approx(theirs, rel=1e-5)  # targets of one length: the means agree


def test_a_student_learns_to_write_with_its_own_blank(tmp_path: Path) -> None:
    """Greedy decoding with the model's own blank gives the targets after some training, as the
    stock trainer's student does; with class 0 as the blank it gave zeros."""
    rows = sounds([[1, 2, 3], [2, 2, 4]])
    student = speech(11)
    options: dict[str, Any] = {"max_steps": 200, "learning_rate": 1e-2, "save_strategy": "no"}
    ours = on_labels(tmp_path, student, rows, collate, logging_steps=1000, **options)
    ours.train()
    batch: Any = collate(rows)
    with torch.no_grad():
        frames = student.eval()(batch["input_values"]).logits.argmax(-1)
    written = [[int(t) for t in row.unique_consecutive() if t != 11] for row in frames]
    assert written == [[1, 2, 3], [2, 2, 4]]


@pytest.mark.parametrize("zero", [False, True])
def test_a_target_with_too_few_frames_counts_as_the_config_says(tmp_path: Path, zero: bool) -> None:
    """As 0 where the model itself gives infinity, it is left out and nobody knows. What the error
    advises works."""
    rows = sounds([[1, 2, 3], [1, 2] * 15])
    options: dict[str, Any] = {"per_device_eval_batch_size": 2}

    def make() -> Any:
        return speech(11, ctc_loss_reduction="sum", ctc_zero_infinity=zero)

    ours = on_labels(tmp_path, make(), rows, collate, **options)
    theirs = stock(tmp_path, make(), rows, collate, **options).evaluate()["eval_loss"]
    assert ours.evaluate()["eval_loss"] == pytest.approx(theirs / 33, rel=1e-5)
    if zero:
        ours.train()
    else:
        with pytest.raises(FloatingPointError, match="ctc_zero_infinity = True"):
            ours.train()


# ---- answers on padding --------------------------------------------------------------------------


def spans(*positions: tuple[int, int]) -> list[Any]:
    ids, mask = [2, 7, 3, 9, 8, 3] + [0] * 6, [1] * 6 + [0] * 6
    return [
        {"input_ids": ids, "attention_mask": mask, "start_positions": s, "end_positions": e}
        for s, e in positions
    ]


def answering() -> Any:
    torch.manual_seed(0)
    model = tf.BertForQuestionAnswering(CASES["question_answering"].config())
    return model.float()


def test_an_answer_on_padding_costs_what_it_costs_in_transformers(tmp_path: Path) -> None:
    """`run_qa` pads to one length and labels padding at times: that gave a loss of 1e36."""
    ours, theirs = trained_alike(tmp_path, answering, spans((3, 4), (11, 11)))
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert ours < 5


def test_positions_out_of_the_text_do_not_count(tmp_path: Path) -> None:
    """Answers that were cut off are no answers, in the loss of transformers too."""
    ours, theirs = trained_alike(tmp_path, answering, spans((3, 4), (12, 40)))
    assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("objective", [NKD(2.0), DecoupledKD(2.0), LabelAgreement()], ids=str)
def test_an_answer_on_padding_is_no_label_where_padding_has_no_share(objective: Any) -> None:
    """What divides the probability among real tokens alone would give such an answer 1e37."""
    student, teacher = answering().eval(), answering().eval()
    teacher.qa_outputs.weight.data.mul_(-2)
    both, first = (as_it_is(spans(*rows)) for rows in (((3, 4), (11, 11)), ((3, 4),)))
    one, other = (value(objective, student, batch, teacher) for batch in (both, first))
    assert one == pytest.approx(other, rel=1e-5)


def test_losses_made_of_the_label_loss_count_what_it_counts() -> None:
    """An answer on padding has a loss, and no trust: its teacher holds it for impossible."""
    student, teacher = answering().eval(), answering().eval()
    both, first = (as_it_is(spans(*rows)) for rows in (((3, 4), (11, 11)), ((3, 4),)))
    objective = TrustedLabels(0.5)
    one, other = (value(objective, student, batch, teacher) for batch in (both, first))
    assert one == pytest.approx(other / 2, rel=1e-5)
    asked = {k: v for k, v in both.items() if not k.endswith("positions")}
    with torch.no_grad():
        out = student(**asked)
    chances = [
        F.softmax(logits, -1)[torch.arange(2), both[f"{end}_positions"]]
        for end, logits in (("start", out.start_logits), ("end", out.end_logits))
    ]
    by_hand = ((1 - torch.stack(chances) ** 0.7) / 0.7).mean()
    found = value(GeneralizedCrossEntropy(0.7), student, both)
    assert found == pytest.approx(float(by_hand), rel=1e-5)


def test_a_teacher_gives_padding_no_share() -> None:
    """The divergence stays one over real tokens: longer padding does not change it."""
    student, teacher = answering().eval(), answering().eval()
    teacher.qa_outputs.weight.data.mul_(-2)
    short = as_it_is(spans((3, 4)))
    longer = {k: F.pad(v, (0, 3)) if v.dim() > 1 else v for k, v in short.items()}
    one, other = (value(ForwardKL(2.0), student, batch, teacher) for batch in (short, longer))
    assert one == pytest.approx(other, rel=1e-5)


# ---- causal classes that do not shift ------------------------------------------------------------

TINY: dict[str, Any] = {
    "vocab_size": 60,
    "d_model": 16,
    "decoder_layers": 1,
    "encoder_layers": 1,
    "decoder_attention_heads": 2,
    "encoder_attention_heads": 2,
    "decoder_ffn_dim": 24,
    "encoder_ffn_dim": 24,
    "max_position_embeddings": 32,
    "dropout": 0.0,
    "pad_token_id": 1,
}


def _made(name: str, config_name: str, **extra: Any) -> Callable[[], Any]:
    def make() -> Any:
        torch.manual_seed(0)
        settings = {k: v for k, v in {**TINY, **extra}.items() if v is not None}
        model = getattr(tf, name)(getattr(tf, config_name)(**settings))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(4)
        return model

    return make


_XLNET = {
    "max_position_embeddings": None,
    "n_layer": 1,
    "n_head": 2,
    "d_inner": 24,
    "summary_last_dropout": 0.0,
}
_XLM = {"emb_dim": 16, "n_layers": 1, "n_heads": 2, "attention_dropout": 0.0, "pad_index": 2}
_CPM = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "dim_head": 8}
_CPM |= {"dim_ff": 24, "dropout_p": 0.0, "prompt_types": 4, "prompt_length": 2, "segment_types": 4}
MADE = {
    "BartForCausalLM": _made("BartForCausalLM", "BartConfig"),
    "TrOCRForCausalLM": _made("TrOCRForCausalLM", "TrOCRConfig"),
    "WhisperForCausalLM": _made("WhisperForCausalLM", "WhisperConfig"),
    "XLNetLMHeadModel": _made("XLNetLMHeadModel", "XLNetConfig", **_XLNET),
    "CpmAntForCausalLM": _made("CpmAntForCausalLM", "CpmAntConfig", **_CPM),
    "XLMWithLMHeadModel": _made("XLMWithLMHeadModel", "XLMConfig", **_XLM),
    "XLM causal": _made("XLMWithLMHeadModel", "XLMConfig", **_XLM, causal=True),
}
LLAMA = _made(
    *("LlamaForCausalLM", "LlamaConfig"),
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
)


def texts(shifted: bool) -> list[Any]:
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(5, 60, (2, 8), generator=generator)
    labels = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], 1) if shifted else ids
    return [{"input_ids": i, "labels": own} for i, own in zip(ids, labels, strict=True)]


@pytest.mark.parametrize("name", MADE)
def test_labels_that_the_data_have_shifted_are_not_shifted_again(tmp_path: Path, name: str) -> None:
    """Silently the token after the next was learned."""
    make = MADE[name]
    ours, theirs = trained_alike(tmp_path, make, texts(shifted=True))
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_permutation_language_models_learn_what_their_mapping_asks(tmp_path: Path) -> None:
    """`run_plm`: the labels of XLNet belong to the positions of ``target_mapping``."""
    generator = torch.Generator().manual_seed(4)
    rows = []
    for row in texts(shifted=False):
        hidden = torch.zeros(8).bool()
        hidden[torch.randperm(8, generator=generator)[:3]] = True
        mask = hidden.float().expand(8, 8).clone()
        labels = row["labels"].masked_fill(~hidden, -100)
        extra = {"perm_mask": mask, "target_mapping": torch.eye(8)}
        rows.append(
            {"input_ids": row["input_ids"].masked_fill(hidden, 6), "labels": labels} | extra
        )
    ours, theirs = trained_alike(tmp_path, MADE["XLNetLMHeadModel"], rows)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_both_kinds_teach_each_other() -> None:
    """Whatever a class does with labels, position t of both models predicts token t + 1."""
    bart, llama = MADE["BartForCausalLM"]().eval(), LLAMA().eval()
    for student, teacher in ((bart, llama), (llama, bart)):
        batch = as_it_is(texts(shifted=student is bart))
        found = components(ForwardKL(), student, batch, teacher)["forward_kl"]
        with torch.no_grad():
            q, p = (m(input_ids=batch["input_ids"]).logits[:, :-1] for m in (student, teacher))
        p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
        assert found == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-5)


# ---- pairs of texts and pictures or sounds -------------------------------------------------------

_TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
_TOWER |= {"num_attention_heads": 2}
_TEXT = {**_TOWER, "vocab_size": 40, "max_position_embeddings": 16}
_VISION = {**_TOWER, "image_size": 32, "patch_size": 16}


def siglip(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 1, "projection_size": 16}
    model = tf.SiglipModel(tf.SiglipConfig(text_config={**_TEXT, **ends}, vision_config=_VISION))
    model.logit_bias.data.fill_(-1.0)
    model.logit_scale.data.fill_(1.0)
    return model


def two_models() -> Any:
    """As the README of `run_clip` builds it, of a text and a picture model."""
    torch.manual_seed(0)
    parts = tf.CLIPVisionConfig(**_VISION), tf.BertConfig(**_TEXT, hidden_dropout_prob=0.0)
    parts[1].attention_probs_dropout_prob = 0.0
    dual = tf.VisionTextDualEncoderConfig.from_vision_text_configs(*parts, projection_dim=8)
    return tf.VisionTextDualEncoderModel(dual)


def clip() -> Any:
    torch.manual_seed(0)
    return CASES["dual_encoder"].models(torch.float32)[0]


def captions(model: Any, count: int = 4) -> Any:
    generator = torch.Generator().manual_seed(5)
    return {
        "input_ids": torch.randint(3, 38, (count, 6), generator=generator),
        "attention_mask": torch.ones(count, 6, dtype=torch.long),
        "pixel_values": torch.randn(count, 3, 32, 32, generator=generator),
    }


@pytest.mark.parametrize("make", [siglip, two_models, clip])
def test_a_teacher_of_pairs_loads_by_name(tmp_path: Path, make: Any) -> None:
    """The auto class of its task does not list two models in one; their config names the class."""
    make().save_pretrained(tmp_path / "teacher")
    rows = [{k: v[i] for k, v in captions(make()).items()} for i in range(4)]
    ours = DistillationTrainer(
        make(),
        config(tmp_path, remove_unused_columns=False),
        as_it_is,
        rows,
        teacher_model=tmp_path / "teacher",
    )
    assert type(ours.teacher.model) is type(make())  # type: ignore[union-attr]


def test_a_teacher_of_another_task_is_refused_by_name(tmp_path: Path) -> None:
    """What its config names is loaded for the student's task alone."""
    two_models().save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match="AutoModelForSequenceClassification: Unrecognized"):
        trainer(tmp_path, teacher_model=str(tmp_path / "teacher"))


@pytest.mark.parametrize("make", [siglip, two_models, clip])
def test_pairs_are_judged_as_the_model_itself_does(make: Any) -> None:
    """With the softmax of CLIP, SigLIP never learns its bias; two models in one were no pair."""
    model = make().eval()
    batch = captions(model)
    with torch.no_grad():
        own = float(model(**batch, return_loss=True).loss)
    assert value(HardLabels(), model, batch) == pytest.approx(own, rel=1e-5)


def test_the_divergence_of_siglip_is_one_of_answers_yes_and_no() -> None:
    """A softmax over the texts is not what the model says: each pair is judged by itself."""
    student, teacher = siglip(0).eval(), siglip(1).eval()
    batch = captions(student)
    found = value(ForwardKL(1.0), student, batch, teacher)
    with torch.no_grad():
        q, p = (m(**batch).logits_per_text.double().sigmoid() for m in (student, teacher))
    by_hand = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert found == pytest.approx(float(by_hand.sum(-1).mean()), rel=1e-5)


def test_siglip_learns_its_bias(tmp_path: Path) -> None:
    """With the gradient of the stock trainer, whose weights are reached to 1e-6."""
    batch = captions(None)
    rows = [{key: value[i] for key, value in batch.items()} for i in range(4)]

    def collator(found: list[Any]) -> Any:
        return {**as_it_is(found), "return_loss": True}

    ours, theirs = trained_alike(tmp_path, siglip, rows, collator)
    assert ours == pytest.approx(theirs, rel=1e-6)


# ---- what reads labels elsewhere -----------------------------------------------------------------


def test_a_teacher_with_another_blank_is_refused(tmp_path: Path) -> None:
    """Its frames of silence would be taught as a letter. With one blank it teaches."""
    rows = sounds([[1, 2, 3], [2, 2, 4]])
    options: dict[str, Any] = {"train_dataset": rows, "data_collator": collate}
    with pytest.raises(
        ValueError, match=r"one blank, got pad_token_id 11 .* and 5 for the teacher"
    ):
        DistillationTrainer(speech(11), config(tmp_path), teacher_model=speech(5), **options)
    DistillationTrainer(speech(5), config(tmp_path), teacher_model=speech(5), **options).train()


def test_generated_text_is_refused_where_the_data_shift_the_labels(tmp_path: Path) -> None:
    """On its own text the student would learn to repeat each token."""
    make, rows = MADE["BartForCausalLM"], texts(shifted=True)
    data: dict[str, Any] = {"train_dataset": rows, "data_collator": as_it_is}
    args = on_policy_config(tmp_path, lmbda=1.0)
    with pytest.raises(ValueError, match=r"\(BartForCausalLM\) takes labels that its data have"):
        OnPolicyDistillationTrainer(make(), args, teacher_model=make(), **data)
    args = on_policy_config(tmp_path, lmbda=0.0)
    OnPolicyDistillationTrainer(make(), args, teacher_model=make(), **data).train()


def test_peers_are_judged_by_their_own_loss_too(tmp_path: Path) -> None:
    """A peer learns from the labels as the student does, and may read them otherwise."""

    class Doubled(tf.LlamaForCausalLM):  # type: ignore[misc]
        def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:
            outputs = super().forward(input_ids, attention_mask, labels=labels)
            outputs.loss = None if labels is None else 2 * outputs.loss
            return outputs

    peer = Doubled(LLAMA().config)
    data: dict[str, Any] = {"train_dataset": texts(shifted=False), "data_collator": as_it_is}
    with pytest.raises(ValueError, match="forward of Doubled gives"):
        OnlineDistillationTrainer(LLAMA(), config(tmp_path), peers=peer, **data)
    OnlineDistillationTrainer(LLAMA(), config(tmp_path), peers=LLAMA(), **data).train()


def test_perplexity_is_that_of_the_next_token_whatever_the_class(tmp_path: Path) -> None:
    """`hf-distill eval` shifts the text itself: BART as a language model predicts the next token,
    though its own loss wants shifted labels."""
    model = MADE["BartForCausalLM"]().eval()
    ids = texts(shifted=False)[0]["input_ids"]
    items = TaskModel(model).items({"input_ids": ids[None], "shift_labels": ids.roll(-1)[None]})
    assert items.labels is not None
    assert items.labels[0, :-1].tolist() == ids[1:].tolist()


# ---- dropout -------------------------------------------------------------------------------------


def test_dropout_is_drawn_as_the_stock_trainer_draws_it(tmp_path: Path) -> None:
    """What the constructor looks at, and a teacher that is asked in between, move no random state:
    with alpha=0 the same units are dropped in each step."""
    case = CASES["sequence_classification"]
    rows = case.data(8, torch.float32)

    def make() -> Any:
        torch.manual_seed(0)
        base = case.config()
        dropped = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
        return tf.BertForSequenceClassification(type(base)(**{**base.to_diff_dict(), **dropped}))

    options = {"max_steps": 3, "per_device_train_batch_size": 8, "optim": "sgd"}
    theirs = stock(tmp_path / "stock", make(), rows, collate, **options)
    theirs.train()
    args = config(tmp_path / "ours", alpha=0.0, remove_unused_columns=False, **options)
    teacher = make().train()
    data: dict[str, Any] = {"train_dataset": rows, "eval_dataset": rows, "data_collator": collate}
    ours = DistillationTrainer(make(), args, teacher_model=teacher, **data)
    ours.train()
    one, other = weights(ours.model), weights(theirs.model)
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in other)
