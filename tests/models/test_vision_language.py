"""Vision-language models: pictures and text in one sequence, in the three layouts of pixels."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from objective_table import MODELS, ROWS
from task_values import components, value
from tiny_models import CASES, IMAGE, VOCAB, collate
from tiny_trainers import config, same, weights
from torch import Tensor
from transformers import (
    Florence2Config,
    Florence2ForConditionalGeneration,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
)

from hf_distill import (
    CachedTeacher,
    DistillationTrainer,
    ForwardKL,
    HardLabels,
    HiddenStates,
    ModelTeacher,
    student_from_teacher,
    write_cache,
)
from hf_distill.models.task_model import TaskModel
from hf_distill.models.tasks import TASKS, task_of
from tests.objectives.test_objective_contracts import gradient

TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
Rows = list[dict[str, Any]]


def llava(layers: int) -> Any:
    vision = CASES["image_text_to_text"].config().vision_config
    text = tf.LlamaConfig(**TEXT, num_hidden_layers=layers)
    return tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(text_config=text, vision_config=vision, image_token_id=IMAGE)
    )


def smolvlm(layers: int) -> Any:
    """Pictures in tiles: pixels are (B, tiles, 3, h, w)."""
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    text = {**TEXT, "num_hidden_layers": layers, "model_type": "llama"}
    return tf.SmolVLMForConditionalGeneration(
        tf.SmolVLMConfig(
            text_config=text, vision_config=vision, image_token_id=IMAGE, scale_factor=2
        )
    )


def qwen(layers: int) -> Any:
    """Patches of all pictures of a batch in one list: pixels are (patches, values)."""
    vision = {
        "depth": 2,
        "embed_dim": 16,
        "hidden_size": 16,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = {**TEXT, "num_hidden_layers": layers, "rope_parameters": rope}
    return tf.Qwen2VLForConditionalGeneration(
        tf.Qwen2VLConfig(
            text_config=text,
            vision_config=vision,
            image_token_id=IMAGE,
            video_token_id=0,
            vision_start_token_id=3,
            vision_end_token_id=4,
        )
    )


KINDS = {"llava": llava, "smolvlm": smolvlm, "qwen": qwen}


def models(kind: str) -> tuple[Any, Any]:
    """A student of 2 layers of text and a teacher of 3; away from the near-uniform start."""
    torch.manual_seed(0)
    made = KINDS[kind](2), KINDS[kind](3)
    for model in made:
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(3)
    return made


def rows(count: int = 8) -> Rows:
    """Texts of several lengths after a picture of 4 tokens."""
    return CASES["image_text_to_text"].data(count, torch.float32)


def collator(kind: str) -> Any:
    """What a processor of this kind makes of the rows."""

    def collated(examples: Rows) -> dict[str, Tensor]:
        given = [
            {
                **row,
                "input_ids": [3, *row["input_ids"][1:5], 4, *row["input_ids"][5:]],
                "labels": [-100, *row["labels"]],
            }
            for row in examples
        ]
        batch = collate(given)
        pixels = batch["pixel_values"]
        if kind == "smolvlm":
            batch["pixel_values"] = pixels[:, None]
        if kind == "qwen":  # 16 patches of 4 x 4 pixels, twice for the two frames
            small = pixels[:, :, :16, :16]
            patches = small.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5)
            patches = patches[:, :, :, :, None].expand(-1, -1, -1, -1, 2, -1, -1)
            batch["pixel_values"] = patches.reshape(len(examples) * 16, -1)
            batch["image_grid_thw"] = torch.tensor([[1, 4, 4]] * len(examples))
            batch["mm_token_type_ids"] = (batch["input_ids"] == IMAGE).long()
        return batch

    return collated


def trainer(folder: Path, kind: str, student: Any, teacher: Any, **options: Any) -> Any:
    objective = options.pop("objective", 0.5 * HardLabels() + ForwardKL(2.0) + HiddenStates())
    return DistillationTrainer(
        student,
        config(folder, **{"max_steps": 3, "remove_unused_columns": True, **options}),
        collator(kind),
        rows(),
        rows(6),
        teacher_model=teacher,
        objective=objective,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_labels_and_pictures(kind: str) -> None:
    """A picture that does not reach a model still gives logits; a loss at its places is noise."""
    student, teacher = (m.eval() for m in models(kind))
    batch = collator(kind)(rows())
    task_model = TaskModel(student)
    assert task_of(student).name == "image_text_to_text"
    unlabelled = {k: v for k, v in batch.items() if k != "labels"}
    items, bare = task_model.items(batch), task_model.items(unlabelled)
    assert items.counts()["samples"] == 8
    after = torch.nn.functional.pad(batch["input_ids"], (0, 1))[:, 1:]
    expected = (after != IMAGE) & torch.nn.functional.pad(batch["attention_mask"], (0, 1))[
        :, 1:
    ].bool()
    assert torch.equal(bare.masks["items"], expected)
    with torch.no_grad():
        loss = student(**batch).loss.item()
    assert value(HardLabels(), student, batch) == pytest.approx(loss, rel=1e-5)
    before = components(ForwardKL(), student, batch, teacher)["forward_kl"]
    other = {**batch, "pixel_values": batch["pixel_values"].flip(-1)}
    assert abs(components(ForwardKL(), student, other, teacher)["forward_kl"] - before) > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_trains_resumes_and_loads_plain(tmp_path: Path, kind: str) -> None:
    """Pictures dropped as unused columns, states that are lost, a teacher in the checkpoint."""
    student, teacher = models(kind)
    state = weights(teacher)
    start = copy.deepcopy(student)
    saves = {"save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4}
    whole = trainer(tmp_path / "whole", kind, student, teacher, **saves)
    before = whole.evaluate()
    whole.train()
    assert whole.evaluate()["eval_loss"] < before["eval_loss"]
    assert same(weights(teacher), state)
    resumed = trainer(tmp_path / "resumed", kind, start, teacher, **saves)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert same(weights(whole.model), weights(resumed.model))
    whole.save_model(str(tmp_path / "final"))
    loaded, told = tf.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "final", output_loading_info=True
    )
    assert not any(told.values()), told
    assert type(loaded) is type(student)
    assert same(weights(loaded), weights(whole.model))
    by_path = trainer(tmp_path / "other", kind, start, str(tmp_path / "final"))
    assert isinstance(by_path.teacher, ModelTeacher)


@pytest.mark.parametrize("kind", ["smolvlm", "qwen"])
def test_the_split_changes_nothing(tmp_path: Path, kind: str) -> None:
    """The number of a batch's patches is not the number of its examples. (Llava is in
    `test_invariance`.)"""
    figures = []
    for number, (batch, accumulation) in enumerate([(8, 1), (2, 4)]):
        student, teacher = models(kind)
        ours = trainer(
            tmp_path / str(number),
            kind,
            student.double(),
            teacher.double(),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            per_device_eval_batch_size=batch,
            max_steps=1,
            learning_rate=0.0,
            max_grad_norm=1e9,
            data_seed=1,
        )
        ours.data_collator = _double(collator(kind))
        ours.train()
        logged = ours.state.log_history[0]
        figures.append({**ours.evaluate(), "grad_norm": logged["grad_norm"]})
    for name, found in figures[0].items():
        if not name.endswith(("runtime", "per_second")):
            assert figures[1][name] == pytest.approx(found, rel=1e-6), name


def _double(collated: Any) -> Any:
    def in_float64(examples: Rows) -> dict[str, Tensor]:
        batch = collated(examples)
        return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}

    return in_float64


@pytest.mark.parametrize("name", ["forward_kl", "jensen_shannon", "hidden_states"])
def test_zero_at_equality(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student that is its teacher would still be moved."""
    monkeypatch.setitem(MODELS, "llava", CASES["image_text_to_text"])
    found, norm = gradient(ROWS[name], "llava")
    other, moving = gradient(ROWS[name], "llava", CASES["image_text_to_text"].models()[1])
    assert abs(found) < 1e-9
    assert norm < 1e-6 * max(1.0, moving)
    assert other > 0
    assert moving > 0


@pytest.mark.parametrize("kind", KINDS)
def test_students_of_their_teachers_layers(tmp_path: Path, kind: str) -> None:
    """The vision tower's layers taken for the language model's, or a picture's place lost."""
    teacher = models(kind)[1].eval()
    student = student_from_teacher(teacher, {"text": [0, 2]})
    assert student.config.get_text_config().num_hidden_layers == 2
    skipping = copy.deepcopy(teacher)
    language: Any = skipping.get_decoder()
    for key, parameter in language.layers[1].named_parameters():
        if key.startswith(("self_attn.o_proj", "mlp.down_proj")):
            parameter.data.zero_()
    batch = collator(kind)(rows())
    batch.pop("labels")
    with torch.no_grad():
        ours, expected = student(**batch).logits, skipping(**batch).logits
        torch.testing.assert_close(ours, expected)
        assert (teacher(**batch).logits - ours).abs().max() > 1e-4
    ours = trainer(tmp_path, kind, student, teacher)
    assert ours.evaluate()["eval_forward_kl"] > 0


def test_a_cache_knows_pictures(tmp_path: Path) -> None:
    """Two pictures with one question have two answers: a cache by text alone gives the first."""
    student, teacher = models("llava")
    data = rows(3)
    data[1] = {**data[0], "pixel_values": data[1]["pixel_values"]}
    path = write_cache(
        tmp_path / "cache", ModelTeacher(teacher), data, collator("llava"), say=lambda _: None
    )
    batch = collator("llava")(data)
    task_model = TaskModel(student)
    needs, items = ForwardKL().needs, task_model.items(batch)
    cached = CachedTeacher(path)(batch, needs, items)
    live = ModelTeacher(teacher)(batch, needs, items)
    assert cached.logits is not None
    assert live.logits is not None
    mask = items.masks["items"]
    # the cache was asked in the order of lengths: kernels may round by an example's place
    torch.testing.assert_close(cached.logits[mask], live.logits[mask], rtol=1e-5, atol=1e-6)
    first, second = (live.logits[i][mask[i]] for i in (0, 1))
    assert (first - second).abs().max() > 1e-4
    strange = {**batch, "pixel_values": batch["pixel_values"] + 1e-3}
    with pytest.raises(ValueError, match="got none of 3"):
        CachedTeacher(path)(strange, needs, items)


def test_a_cache_of_patches_is_refused(tmp_path: Path) -> None:
    """Row 1 of a list of patches is no picture of example 1: keys of a single patch would take
    pictures with one corner in common for the same."""
    teacher = models("qwen")[1]
    with pytest.raises(ValueError, match=r"row for each of 2.*pixel_values of shape \(32, 96\)"):
        write_cache(tmp_path / "cache", ModelTeacher(teacher), rows(2), collator("qwen"), say=print)


def test_an_encoder_decoder_is_read_as_one() -> None:
    """Its labels are not shifted: every token would be learned one place late."""
    config = Florence2Config(is_encoder_decoder=True)
    with torch.device("meta"):
        assert task_of(Florence2ForConditionalGeneration(config)).name == "image_seq2seq"


def test_an_audio_language_model_is_no_encoder_decoder() -> None:
    """The mappings list it as one: its labels, of the whole text, would be read as a decoder's."""
    with torch.device("meta"):
        task = task_of(Qwen2AudioForConditionalGeneration(Qwen2AudioConfig()))
    assert (task.name, task.items) == ("audio_text_to_text", TASKS["image_text_to_text"].items)
