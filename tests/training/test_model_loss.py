"""A model's own loss as an objective, and as the judge of ours."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import CASES, collate
from tiny_trainers import config, trainer, weights
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput
from unknown_heads import UNKNOWN, rows_for, stacked, unknown

from hf_distill import (
    DistillationTrainer,
    ForwardKL,
    HardLabels,
    HiddenStates,
    ModelLoss,
    ModelTeacher,
    objective_from,
)
from hf_distill.models.tasks import UNSHIFTED, task_of
from hf_distill.training.setup import compare_label_losses
from tests.training.test_own_loss import LLAMA, as_it_is, stock, texts

tf: Any = transformers

# ---- heads that the table does not know ----------------------------------------------------------

_VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 8,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1}
_DECODER |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 24}


def detector(seed: int = 0, **wide: Any) -> Any:
    torch.manual_seed(seed)
    sizes = {**_VIT, "image_size": [32, 32], **wide}
    return tf.YolosForObjectDetection(tf.YolosConfig(**sizes, num_detection_tokens=5, num_labels=3))


def masked_autoencoder(seed: int = 0, **wide: Any) -> Any:
    torch.manual_seed(seed)
    return tf.ViTMAEForPreTraining(tf.ViTMAEConfig(**{**_VIT, **wide}, **_DECODER))


def masked_images(seed: int = 0, **wide: Any) -> Any:
    torch.manual_seed(seed)
    return tf.ViTForMaskedImageModeling(tf.ViTConfig(**{**_VIT, **wide}, encoder_stride=8))


def next_sentences(seed: int = 0, **wide: Any) -> Any:
    torch.manual_seed(seed)
    own = CASES["sequence_classification"].config()
    return tf.BertForNextSentencePrediction(type(own)(**{**own.to_diff_dict(), **wide}))


def pictures(count: int = 4) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [{"pixel_values": torch.randn(3, 32, 32, generator=generator)} for _ in range(count)]


def boxes() -> list[dict[str, Any]]:
    """Pictures with one or two boxes: their labels are a dict each."""
    generator = torch.Generator().manual_seed(2)
    rows = pictures()
    for index, row in enumerate(rows):
        number = 1 + index % 2
        row["labels"] = {
            "class_labels": torch.randint(3, (number,), generator=generator),
            "boxes": 0.25 + 0.5 * torch.rand(number, 4, generator=generator) / 2,
        }
    return rows


def with_masks() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(2)
    return [
        {**row, "bool_masked_pos": torch.rand(16, generator=generator) < 0.5} for row in pictures()
    ]


def sentences() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(2)
    return [
        {
            "input_ids": torch.randint(3, 40, (6,), generator=generator),
            "labels": torch.tensor(i % 2),
        }
        for i in range(4)
    ]


OFFICIAL = {
    "detection": (detector, boxes),
    "masked autoencoder": (masked_autoencoder, pictures),
    "masked images": (masked_images, with_masks),
    "next sentence": (next_sentences, sentences),
}
WIDE = {"hidden_size": 24, "num_hidden_layers": 4}


@pytest.mark.parametrize("name", OFFICIAL)
def test_two_names_are_enough_for_a_head_that_is_not_known(tmp_path: Path, name: str) -> None:
    """With the default objective its own loss and hidden states are learned, and that is said; with
    alpha=0 the weights go where the stock trainer takes them."""
    make, rows = OFFICIAL[name]
    assert task_of(make()).name == "other"
    options = {"max_steps": 3, "optim": "sgd", "learning_rate": 0.05, "report_to": "none"}
    kept = {"remove_unused_columns": False}
    theirs = stock(tmp_path / "stock", make(), rows(), stacked, **options)
    data: dict[str, Any] = {"train_dataset": rows(), "eval_dataset": rows()}
    ours = []
    for alpha in (0.0, 0.5):
        args = config(tmp_path / str(alpha), alpha=alpha, **options, **kept)
        with pytest.warns(UserWarning, match="objective=…, for example"):
            one = DistillationTrainer(
                *(make(), args, stacked), teacher_model=make(1, **WIDE), **data
            )
        ours.append(one)
    for each in (theirs, *ours):
        torch.manual_seed(0)
        each.train()
    one, other = weights(ours[0].model), weights(theirs.model)
    assert all(torch.allclose(one[key], other[key], atol=1e-6) for key in other)
    taught = weights(ours[1].model)
    assert any((taught[key] - other[key]).abs().max() > 1e-5 for key in other)
    found = ours[1].evaluate()
    assert {"eval_model_loss", "eval_hidden_states"} <= {
        k.replace("_hidden_hidden", "").removesuffix("_hidden") for k in found
    } | set(found)
    assert not any("agreement" in key or "kl_" in key or "ece" in key for key in found)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_look_at_the_data_draws_nothing(tmp_path: Path, alpha: float) -> None:
    """Noise drawn while the trainer is made would show a masked autoencoder other patches than the
    stock trainer shows it."""
    stock(tmp_path / "stock", masked_autoencoder(), pictures(), stacked, seed=5)
    states = [torch.random.get_rng_state()]
    args = config(tmp_path, alpha=alpha, seed=5, remove_unused_columns=False)
    with pytest.warns(UserWarning, match="objective=…, for example"):
        DistillationTrainer(
            *(masked_autoencoder(), args, stacked, pictures(), pictures()),
            teacher_model=masked_autoencoder(1, **WIDE),
        )
    states.append(torch.random.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("name", UNKNOWN)
def test_every_head_learns_its_own_loss(tmp_path: Path, name: str) -> None:
    """Whatever its labels are: dicts, lists of masks, two kinds at once, the future."""
    student, rows = unknown(name), rows_for(name)
    assert task_of(student).name == "other"
    # ViLT shuffles the patches of a picture in every forward: its pooled vector alone is compared
    pooled = HiddenStates("vilt.pooler:vilt.pooler")
    features = pooled if name == "visual answers" else HiddenStates()
    args = config(tmp_path, remove_unused_columns=False, per_device_eval_batch_size=4)
    options: dict[str, Any] = {"teacher_model": unknown(name, 1)}
    options["objective"] = 0.5 * ModelLoss() + 0.5 * features
    ours = DistillationTrainer(student, args, stacked, rows, rows, **options)
    ours.train()
    assert all(key in ours.state.log_history[0] for key in ("loss", "model_loss"))
    found = ours.evaluate()["eval_model_loss"]
    with torch.no_grad():
        own = float(student.eval()(**stacked(rows)).loss)
    drawn = name == "universal segmentation"  # at other points of the masks each time
    assert found == pytest.approx(own, rel=0.1 if drawn else 1e-5)
    ours.predict(rows)


def test_both_models_see_the_same_patches(tmp_path: Path) -> None:
    """A masked autoencoder draws what it sees: a teacher that is the student must agree."""
    student = masked_autoencoder()
    ours = DistillationTrainer(
        student,
        config(tmp_path, remove_unused_columns=False),
        stacked,
        pictures(),
        pictures(),
        teacher_model=copy.deepcopy(student),
        objective=HiddenStates(),
    )
    assert ours.evaluate()["eval_hidden_states"] == 0


def test_the_loss_of_detection_is_its_own(tmp_path: Path) -> None:
    """Evaluated batch by batch it is the mean over examples of what the model gives."""
    student = detector().eval()
    ours = DistillationTrainer(
        student,
        config(tmp_path, remove_unused_columns=False, per_device_eval_batch_size=2),
        stacked,
        boxes(),
        boxes(),
        objective=ModelLoss(),
    )
    with torch.no_grad():
        batches = [stacked(boxes()[i : i + 2]) for i in (0, 2)]
        own = [float(student(**batch).loss) for batch in batches]
    assert ours.evaluate()["eval_loss"] == pytest.approx(sum(own) / 2, rel=1e-5)
    found = ours.predict(boxes())
    with torch.no_grad():
        outputs = student(**stacked(boxes()[:2]))
    logits, coordinates = found.predictions[1][:2], found.predictions[2][:2]
    assert torch.allclose(torch.from_numpy(logits), outputs.logits, atol=1e-5)
    assert torch.allclose(torch.from_numpy(coordinates), outputs.pred_boxes, atol=1e-5)


def test_features_of_detectors_by_named_modules(tmp_path: Path) -> None:
    """Hooks on modules serve a head that gives nothing else."""
    layers = "vit.encoder.layer.3:vit.encoder.layer.1"
    names = [n for n, _ in detector().named_modules()]
    if "vit.encoder.layer.1" not in names:
        layers = "vit.layers.3:vit.layers.1"
    ours = DistillationTrainer(
        detector(),
        config(tmp_path, remove_unused_columns=False),
        stacked,
        boxes(),
        teacher_model=detector(1, **WIDE),
        objective=0.5 * ModelLoss() + 0.5 * HiddenStates(layers),
    )
    ours.train()
    assert {"model_loss", "hidden_states"} <= set(ours.state.log_history[0])


def test_the_card_of_a_detector_has_its_pipeline(tmp_path: Path) -> None:
    """The Hub sorts models by it; a masked autoencoder has none."""
    for make, rows, tag in (
        (detector, boxes, "object-detection"),
        (masked_autoencoder, pictures, None),
    ):
        args = config(tmp_path, remove_unused_columns=False)
        ours = DistillationTrainer(make(), args, stacked, rows(), objective=ModelLoss())
        assert ours.student_card().task == tag


def test_a_teacher_of_an_unknown_head_loads_by_name(tmp_path: Path) -> None:
    """No auto class is known for it: its config names the class."""
    detector(1, **WIDE).save_pretrained(tmp_path / "teacher")
    ours = DistillationTrainer(
        detector(),
        config(tmp_path, remove_unused_columns=False),
        stacked,
        boxes(),
        teacher_model=str(tmp_path / "teacher"),
        objective=ModelLoss() + HiddenStates(),
    )
    teacher: Any = ours.teacher
    assert isinstance(teacher, ModelTeacher)
    assert type(teacher.model) is tf.YolosForObjectDetection


# ---- heads that it knows -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if n not in ("encoder",)])
def test_the_own_loss_of_every_head(tmp_path: Path, name: str) -> None:
    """One forward gives it beside everything else, and what it gives is what transformers gives."""
    student = CASES[name].models(torch.float32)[0]
    ours = trainer(tmp_path, name, objective=ModelLoss() + ForwardKL(), model=student)
    ours.args.per_device_eval_batch_size = 8
    asked = {"return_loss": True} if name == "dual_encoder" else {}
    with torch.no_grad():
        own = float(student.eval()(**collate(CASES[name].data(8, torch.float32)), **asked).loss)
    assert ours.evaluate()["eval_model_loss"] == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize("name", ["token_classification", "masked_lm", "causal_lm"])
def test_the_own_losses_of_batches_are_averaged_by_their_labels(tmp_path: Path, name: str) -> None:
    """A mean of batch means gives a short text the weight of a long one."""
    student, rows = CASES[name].models(torch.float32)[0], CASES[name].data(8, torch.float32)
    ours = trainer(tmp_path, name, objective=ModelLoss(), model=student)
    ours.args.per_device_eval_batch_size = 2
    batches = [collate(rows[start : start + 2]) for start in range(0, 8, 2)]
    shift = 1 if name == "causal_lm" else 0
    counts = [int((batch["labels"][:, shift:] != -100).sum()) for batch in batches]
    with torch.no_grad():
        own = [float(student.eval()(**batch).loss) for batch in batches]
    expected = sum(n * loss for n, loss in zip(counts, own, strict=True)) / sum(counts)
    assert ours.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert len(set(counts)) > 1


def test_it_is_an_objective_of_recipes() -> None:
    """The remedy of the refusals names it."""
    made = objective_from([{"name": "model_loss", "weight": 0.5}, {"name": "forward_kl"}])
    assert str(made) == "0.5 * ModelLoss() + ForwardKL()"


def test_a_model_without_a_loss_is_refused(tmp_path: Path) -> None:
    """An encoder has no loss of its own, and would train on nothing."""
    with pytest.raises(ValueError, match="a loss of its own forward"):
        trainer(tmp_path, "encoder", objective=ModelLoss() + HiddenStates())


# ---- the judge -----------------------------------------------------------------------------------


class Sure(tf.BertForSequenceClassification):
    """A classifier with a loss of its own making: twice the usual one."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> SequenceClassifierOutput:
        outputs = super().forward(input_ids, attention_mask=attention_mask, labels=labels)
        if outputs.loss is not None:
            outputs.loss = 2 * outputs.loss
        return outputs


class Shifted(tf.LlamaForCausalLM):
    """A language model whose labels the data have shifted."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Any = None
    ) -> Any:
        outputs = super().forward(input_ids, attention_mask=attention_mask)
        if labels is not None:
            flat = outputs.logits.flatten(0, 1)
            outputs.loss = nn.functional.cross_entropy(flat, labels.flatten())
        return outputs


def sure() -> Any:
    torch.manual_seed(0)
    return Sure(CASES["sequence_classification"].config())


def test_another_loss_than_ours_is_refused_with_both_numbers(tmp_path: Path) -> None:
    """A head that is read wrongly trains well enough to be believed."""
    student = sure()
    batch = collate(CASES["sequence_classification"].data(2, torch.float32))
    with torch.no_grad():
        logits = student.eval()(**{k: v for k, v in batch.items() if k != "labels"}).logits
    right = float(nn.functional.cross_entropy(logits, batch["labels"]))
    with pytest.raises(ValueError, match=r"forward of Sure gives .*ModelLoss\(\)") as told:
        trainer(tmp_path, model=student)
    assert f"got {right:.3f}"[:-1] in str(told.value)
    assert f"gives {2 * right:.3f}"[:-1] in str(told.value)


def test_another_loss_is_refused_in_half_precision_too(tmp_path: Path) -> None:
    """A tolerance as wide as the loss would let everything through."""
    with pytest.raises(ValueError, match="forward of Sure gives"):
        trainer(tmp_path, model=sure().bfloat16(), objective=HardLabels())


class Drawing(tf.BertForSequenceClassification):
    """A classifier whose forward draws a number, in evaluation too."""

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:
        torch.rand(())
        return super().forward(input_ids, attention_mask=attention_mask, labels=labels)


def test_the_comparison_moves_no_random_state(tmp_path: Path) -> None:
    """Whatever the forward draws: the training would drop other units than the stock trainer's."""
    student = Drawing(CASES["sequence_classification"].config())
    ours = trainer(tmp_path, model=student, alpha=0.0)
    sample = next(iter(ours.get_eval_dataloader()))
    before = torch.random.get_rng_state()
    compare_label_losses(ours.step, sample)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_remedies_of_that_refusal_work(tmp_path: Path) -> None:
    """They are all that a user has in that moment."""
    objective = 0.5 * ModelLoss() + 0.5 * ForwardKL(2.0)
    own = trainer(tmp_path, model=sure(), objective=objective)
    own.train()
    kept = trainer(tmp_path, model=sure(), check_label_loss=False)
    one, other = own.evaluate()["eval_model_loss"], kept.evaluate()["eval_hard_labels"]
    assert one > 1.5 * other


def test_a_class_that_does_not_shift_is_told_how_to_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the token after the next is learned."""
    torch.manual_seed(0)
    student = Shifted(LLAMA().config)
    for parameter in student.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4)
    rows = texts(shifted=True)

    def build() -> Any:
        args = config(tmp_path, alpha=0.0)
        return DistillationTrainer(student, args, as_it_is, rows, rows)

    with pytest.raises(ValueError, match=r"tasks\.UNSHIFTED\.add\('Shifted'\)"):
        build()
    assert "Shifted" not in UNSHIFTED
    monkeypatch.setattr("hf_distill.models.tasks.UNSHIFTED", UNSHIFTED | {"Shifted"})
    with torch.no_grad():
        own = float(student.eval()(**as_it_is(rows)).loss)
    assert build().evaluate()["eval_loss"] == pytest.approx(own, rel=1e-5)


def switch() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2}
    sizes |= {"num_decoder_layers": 2, "num_heads": 2, "num_experts": 3, "expert_capacity": 8}
    sizes |= {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "pad_token_id": 0}
    routed = {"output_router_logits": True, "router_aux_loss_coef": 0.5, "dropout_rate": 0.0}
    made = tf.SwitchTransformersConfig(**sizes, **routed, decoder_start_token_id=0)
    return tf.SwitchTransformersForConditionalGeneration(made)


@pytest.mark.filterwarnings("ignore:Student and teacher (end|pad)")
def test_router_losses_that_we_do_not_compute_are_refused(tmp_path: Path) -> None:
    """The balancing loss of Switch was left out, and nothing said so. Both remedies work."""
    for objective in (HardLabels(), ForwardKL()):
        with pytest.raises(ValueError, match=r"SwitchTransformers.*ModelLoss\(\) in place"):
            trainer(tmp_path, "seq2seq_lm", model=switch(), objective=objective)
    ours = trainer(tmp_path, "seq2seq_lm", model=switch(), objective=ModelLoss())
    ours.args.per_device_eval_batch_size = 8
    batch = collate(CASES["seq2seq_lm"].data(8, torch.float32))
    with torch.no_grad():
        student = ours.model.eval()
        own, bare = (student(**batch, output_router_logits=on).loss for on in (True, False))
    assert float(own - bare) > 0.1
    assert ours.evaluate()["eval_loss"] == pytest.approx(float(own), rel=1e-5)
    ours.train()
    student = switch()
    student.config.output_router_logits = False
    without = trainer(tmp_path, "seq2seq_lm", model=student, objective=HardLabels())
    without.args.per_device_eval_batch_size = 8
    assert without.evaluate()["eval_loss"] == pytest.approx(float(bare), rel=1e-5)


def test_router_losses_of_both_stacks_are_in_the_own_loss(tmp_path: Path) -> None:
    """NLLB's experts: another class with the same parts, whose forward reads its config."""
    sizes = {"vocab_size": 40, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2}
    sizes |= {f"{part}_ffn_dim": 24 for part in ("encoder", "decoder")}
    sizes |= {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    sizes |= {f"{part}_sparse_step": 2 for part in ("encoder", "decoder")}
    still = {"dropout": 0.0, "attention_dropout": 0.0, "encoder_layerdrop": 0.0}
    still |= {"decoder_layerdrop": 0.0, "moe_eval_capacity_token_fraction": 1.0}
    routed = {"num_experts": 3, "output_router_logits": True, "router_aux_loss_coef": 0.5}
    tokens = {"pad_token_id": 1, "decoder_start_token_id": 2, "eos_token_id": 0, "bos_token_id": 0}
    torch.manual_seed(0)
    made = tf.NllbMoeConfig(**sizes, **still, **routed, **tokens, max_position_embeddings=32)
    student = tf.NllbMoeForConditionalGeneration(made)
    with pytest.raises(ValueError, match="NllbMoeForConditionalGeneration"):
        trainer(tmp_path, "seq2seq_lm", model=student, objective=HardLabels())
    ours = trainer(tmp_path, "seq2seq_lm", model=student, objective=ModelLoss())
    ours.args.per_device_eval_batch_size = 8
    batch = collate(CASES["seq2seq_lm"].data(8, torch.float32))
    with torch.no_grad():
        own = float(student.eval()(**batch, output_router_logits=True).loss)
    assert ours.evaluate()["eval_loss"] == pytest.approx(own, rel=1e-5)
    ours.train()


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if "hard_labels" in c.objectives])
def test_what_agrees_is_not_refused(tmp_path: Path, name: str) -> None:
    """Of every head, with labels that are missing here and there."""
    trainer(tmp_path, name)


class Watched(tf.LlamaForCausalLM):
    """Remembers how long the texts with labels were."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Any = None
    ) -> Any:
        if labels is not None:
            self.seen = labels.shape[-1]
        return super().forward(input_ids, attention_mask=attention_mask, labels=labels)


class Refusing(tf.BertForSequenceClassification):
    """A classifier whose forward takes no labels, though its signature has them."""

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:
        if labels is not None:
            raise RuntimeError("no loss here")
        return super().forward(input_ids, attention_mask=attention_mask)


def test_a_forward_without_a_loss_is_not_compared_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A comparison that fails would pass for one that agrees; training needs no such loss."""
    student = Refusing(CASES["sequence_classification"].config())
    with caplog.at_level("WARNING", "hf_distill.training.own_loss"):
        ours = trainer(tmp_path, model=student)
    assert "the student (Refusing) gives no loss to compare" in caplog.text
    assert "no loss here" in caplog.text
    ours.train()


def test_long_texts_are_compared_by_their_end(tmp_path: Path) -> None:
    """Whole logits of one long text would not fit where the training itself does."""
    own = LLAMA().config
    own.max_position_embeddings = 512
    student = Watched(own)
    ids = torch.randint(5, 60, (300,))
    labels = torch.cat([torch.full((200,), -100), ids[200:260], torch.full((40,), -100)])
    rows = [{"input_ids": ids, "labels": labels}] * 2
    DistillationTrainer(student, config(tmp_path, alpha=0.0), as_it_is, rows)
    assert student.seen == 128
