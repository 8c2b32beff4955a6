"""Sounds and documents: padding of what is no token, and places that stand for pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import CASES, collate
from tiny_trainers import Recorder, config
from torch import Tensor

from hf_distill import (
    CKA,
    PKD,
    RKD,
    AttentionMaps,
    DistillationTrainer,
    ForwardKL,
    HardLabels,
    HiddenStates,
    MiniLMv2,
    SimilarityPreserving,
    TokenGram,
)
from hf_distill.models.tasks import CUSTOM_TASKS, TASKS, register_task
from hf_distill.teachers import CachedTeacher, ModelTeacher
from hf_distill.teachers.cache import write_cache

tf: Any = transformers

FRAMES = (60, 20, 40, 28)
SPEECH = {"vocab_size": 24, "pad_token_id": 1, "decoder_start_token_id": 2, "eos_token_id": 2}


def speech_to_text() -> Any:
    return tf.Speech2TextForConditionalGeneration(
        tf.Speech2TextConfig(
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            input_feat_per_channel=8,
            conv_channels=8,
            max_source_positions=200,
            max_target_positions=32,
            dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            **SPEECH,
        )
    )


def moonshine() -> Any:
    return tf.MoonshineForConditionalGeneration(
        tf.MoonshineConfig(
            hidden_size=16,
            intermediate_size=24,
            encoder_num_hidden_layers=2,
            decoder_num_hidden_layers=2,
            encoder_num_attention_heads=2,
            decoder_num_attention_heads=2,
            bos_token_id=2,
            **SPEECH,
        )
    )


def speech_encoder_decoder() -> Any:
    encoder = CASES["audio_classification"].config()
    encoder.add_adapter, encoder.num_adapter_layers, encoder.output_hidden_size = True, 1, 16
    decoder = tf.BertConfig(
        vocab_size=24,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        is_decoder=True,
        add_cross_attention=True,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    both = tf.SpeechEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    both.pad_token_id, both.decoder_start_token_id = 1, 2
    return tf.SpeechEncoderDecoderModel(both)


def speecht5() -> Any:
    return tf.SpeechT5ForSpeechToText(
        tf.SpeechT5Config(
            vocab_size=24,
            hidden_size=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            conv_dim=(8, 8),
            conv_stride=(5, 4),
            conv_kernel=(10, 8),
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            feat_extract_norm="layer",
            encoder_layerdrop=0.0,
            decoder_layerdrop=0.0,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            positional_dropout=0.0,
            apply_spec_augment=False,
        )
    )


def ctc_with_adapter() -> Any:
    """Its logits have half as many frames as its states."""
    settings = CASES["ctc"].config()
    settings.add_adapter, settings.num_adapter_layers, settings.output_hidden_size = True, 1, 16
    return tf.Wav2Vec2ForCTC(settings)


def made(model: Any) -> tuple[Any, Any]:
    """Student and teacher of one size, with other weights."""
    found = []
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            one = model().float().eval()
            for parameter in one.parameters():
                if parameter.dim() > 1:
                    parameter.data.mul_(2)
        found.append(one)
    return found[0], found[1]


def sounds(main: str, unit: int, more: int = 0) -> list[dict[str, Any]]:
    """Sounds of several lengths, padded to the longest, or further."""
    generator = torch.Generator().manual_seed(3)
    width = (max(FRAMES) + more) * unit
    rows = []
    for n, length in enumerate(FRAMES):
        size = (length * unit, 8) if main == "input_features" else (length * unit,)
        sound = torch.randn(*size, generator=generator)
        padded = torch.zeros(width, *size[1:])
        padded[: len(sound)] = sound
        mask = (torch.arange(width) < len(sound)).long()
        labels = torch.randint(3, 24, (3 + n,), generator=generator)
        labels = torch.cat([labels, torch.full((8 - len(labels),), -100)])
        rows.append({main: padded, "attention_mask": mask, "labels": labels})
    return rows


def stacked(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}


def logged(folder: Path, student: Any, teacher: Any, rows: Any, objective: Any) -> dict[str, float]:
    """What the first step logs."""
    record = Recorder()
    options: dict[str, Any] = {"train_dataset": rows, "data_collator": stacked}
    DistillationTrainer(
        student,
        config(folder, max_steps=1, remove_unused_columns=False),
        teacher_model=teacher,
        objective=objective,
        callbacks=[record],
        **options,
    ).train()
    return record.steps[0]


def halved(length: int) -> int:
    """Two convolutions of stride 2, kernel 5 and padding 2."""
    return ((length - 1) // 2 + 1 - 1) // 2 + 1


def moonshine_frames(length: int) -> int:
    """Three convolutions: kernels 127, 7, 3; strides 64, 3, 2; no padding."""
    for kernel, stride in ((127, 64), (7, 3), (3, 2)):
        length = (length - kernel) // stride + 1
    return length


def wav2vec2_frames(length: int) -> int:
    """The two convolutions of the tests' Wav2Vec2, without its adapter."""
    for kernel, stride in ((10, 5), (8, 4)):
        length = (length - kernel) // stride + 1
    return length


SPEAKERS = {
    "speech_to_text": (speech_to_text, "input_features", 1, halved),
    "moonshine": (moonshine, "input_values", 100, moonshine_frames),
    "speech_encoder_decoder": (speech_encoder_decoder, "input_values", 20, wav2vec2_frames),
    "speecht5": (speecht5, "input_values", 20, wav2vec2_frames),
    "ctc_with_adapter": (ctc_with_adapter, "input_values", 20, wav2vec2_frames),
}


@pytest.mark.parametrize("name", SPEAKERS)
def test_padding_of_sounds_counts_in_no_encoder(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder's frames are fewer than those of the mask: counted all, most of the loss is
    padding, and another batch gives another loss."""
    monkeypatch.setitem(CUSTOM_TASKS, "SpeechEncoderDecoderModel", "speech_seq2seq")
    make, main, unit, frames = SPEAKERS[name]
    group = "hidden" if name == "ctc_with_adapter" else "encoder"
    field = "hidden_states" if group == "hidden" else "encoder_hidden_states"
    objective = HiddenStates("-1:-1", groups=(group,))
    found = {}
    for more in (20, 60):
        student, teacher = made(make)
        rows = sounds(main, unit, more)
        if group == "hidden":
            rows = [{**row, "labels": row["labels"][:3] % 11 + 1} for row in rows]
        batch = stacked(rows)
        with torch.no_grad():
            ours, theirs = (
                model(**batch, output_hidden_states=True)[field][-1].double()
                for model in (student, teacher)
            )
        total, count = 0.0, 0
        for row, length in enumerate(FRAMES):
            for place in range(frames(length * unit)):
                total += float((ours[row, place] - theirs[row, place]).square().mean())
                count += 1
        step = logged(tmp_path / f"{more}", student, teacher, rows, objective)
        assert step["loss"] == pytest.approx(total / count, rel=1e-4)
        found[more] = step["loss"]
    close = 1e-3 if name == "moonshine" else 1e-4  # which normalises over all frames
    assert found[60] == pytest.approx(found[20], rel=close)


@pytest.mark.parametrize("name", ["speech_to_text", "speech_encoder_decoder"])
def test_pooled_frames_have_no_padding(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mean over frames with padding moves with the longest sound of the batch."""
    monkeypatch.setitem(CUSTOM_TASKS, "SpeechEncoderDecoderModel", "speech_seq2seq")
    make, main, unit, _ = SPEAKERS[name]
    objective = RKD(groups=("encoder",)) + TokenGram("-1:-1", groups=("encoder",))
    steps = []
    for more in (20, 60):
        student, teacher = made(make)
        rows = sounds(main, unit, more)
        steps.append(logged(tmp_path / f"{more}", student, teacher, rows, objective))
    assert steps[0]["rkd"] == pytest.approx(steps[1]["rkd"], rel=1e-3)
    assert steps[0]["token_gram"] == pytest.approx(steps[1]["token_gram"], rel=1e-3)


# ---- documents -----------------------------------------------------------------------------------


def layoutlmv3(head: str = "TokenClassification") -> Any:
    return getattr(tf, f"LayoutLMv3For{head}")(
        tf.LayoutLMv3Config(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=32,
            max_2d_position_embeddings=64,
            coordinate_size=3,
            shape_size=2,
            input_size=8,
            patch_size=4,
            num_labels=2 if head == "QuestionAnswering" else 3,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def documents(tagged: bool = True) -> list[dict[str, Any]]:
    """Texts of 9, 6, 7 and 5 tokens with a picture of 2x2 patches: 14 places."""
    generator = torch.Generator().manual_seed(4)
    rows = []
    for length in (9, 6, 7, 5):
        ids, labels = torch.zeros(9, dtype=torch.long), torch.full((9,), -100)
        ids[:length] = torch.randint(3, 40, (length,), generator=generator)
        labels[:length] = torch.randint(3, (length,), generator=generator)
        rows.append(
            {
                "input_ids": ids,
                "attention_mask": (torch.arange(9) < length).long(),
                "bbox": torch.randint(20, (9, 2), generator=generator).repeat(1, 2).sort(-1)[0],
                "pixel_values": torch.randn(3, 8, 8, generator=generator),
                "labels": labels if tagged else labels[0],
            }
        )
    return rows


def deeper() -> tuple[Any, Any]:
    """A student of two layers, a teacher of four."""
    student, teacher = made(layoutlmv3)
    big = type(teacher.config)(**{**teacher.config.to_diff_dict(), "num_hidden_layers": 4})
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return student, type(teacher)(big).eval()


def test_the_mask_of_a_document_has_its_picture(tmp_path: Path) -> None:
    """Behind the tokens LayoutLMv3 has a place for each patch and one for the picture: all real."""
    student, teacher = deeper()
    batch = stacked(documents())
    with torch.no_grad():
        ours, theirs = (
            model(**batch, output_hidden_states=True).hidden_states for model in (student, teacher)
        )
    total, count = 0.0, 0
    for row in range(4):
        for place in range(14):
            if place < 9 and not batch["attention_mask"][row, place]:
                continue
            for s, t in ((0, 0), (1, 2), (2, 4)):
                apart = (ours[s][row, place] - theirs[t][row, place]).double()
                total += float(apart.square().mean()) / 3
            count += 1
    rows = documents()
    objective = HiddenStates(((0, 0), (1, 2), (2, 4))) + ForwardKL(1.0)
    step = logged(tmp_path, student, teacher, rows, objective)
    assert ours[0].shape[1] == 14
    assert step["hidden_states"] == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize(
    "objective",
    [CKA(), RKD(), SimilarityPreserving(), TokenGram(), PKD("-1:-1"), AttentionMaps(), MiniLMv2()],
    ids=str,
)
def test_documents_in_every_objective_on_layers(tmp_path: Path, objective: Any) -> None:
    """A mask of the tokens alone fails in the middle of the first step, or is asked to be of 14."""
    student, teacher = deeper()
    step = logged(tmp_path, student, teacher, documents(), objective)
    assert 0 < step["loss"] < float("inf")


def test_a_document_is_padded_as_any_text(tmp_path: Path) -> None:
    """The mask ends with the picture, so that the padding is in its middle: more of it must not
    change a pooled state."""
    rows = documents()
    longer = [
        {
            key: torch.cat([value, value.new_full((4, *value.shape[1:]), fill)])
            for key, fill in (
                ("input_ids", 0),
                ("attention_mask", 0),
                ("bbox", 0),
                ("labels", -100),
            )
            for value in (row[key],)
        }
        | {"pixel_values": row["pixel_values"]}
        for row in rows
    ]
    objective = RKD() + HiddenStates("-1:-1") + ForwardKL(1.0) + HardLabels()
    steps = []
    for name, data in (("short", rows), ("long", longer)):
        student, teacher = made(layoutlmv3)
        steps.append(logged(tmp_path / name, student, teacher, data, objective))
    for name in ("rkd", "hidden_states", "forward_kl", "hard_labels"):
        assert steps[0][name] == pytest.approx(steps[1][name], rel=1e-3), name


def test_states_of_documents_are_not_cached(tmp_path: Path) -> None:
    """Where the picture's places are in a batch depends on its padding: read back, they would be
    those of tokens."""
    teacher = ModelTeacher(layoutlmv3())
    with pytest.raises(ValueError, match=r"9 tokens.*14 places.*logits alone"):
        write_cache(tmp_path, teacher, documents(), stacked, hidden_states=True, say=len)
    write_cache(tmp_path, teacher, documents(), stacked, say=len)


# ---- layers of other lengths -------------------------------------------------------------------


def funnel() -> Any:
    return tf.FunnelForTokenClassification(
        tf.FunnelConfig(
            vocab_size=40,
            block_sizes=[1, 1],
            num_decoder_layers=1,
            d_model=16,
            n_head=2,
            d_head=8,
            d_inner=24,
            num_labels=3,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
        )
    )


def test_a_layer_with_fewer_places_is_refused_by_name(tmp_path: Path) -> None:
    """Funnel pools its tokens: half as many places in its second block, of which nobody says what
    is padding. The remedy, layers of the tokens' length, is followed."""
    student, teacher = made(funnel)
    rows = [
        {k: v for k, v in row.items() if k not in ("bbox", "pixel_values")} for row in documents()
    ]
    for objective in (HiddenStates("2:2"), RKD("2:2"), TokenGram("2:2")):
        message = (
            r"9 places from the student \(FunnelForTokenClassification\).*got 5.*\[0, 1, 3, 4\] do"
        )
        with pytest.raises(ValueError, match=message):
            logged(tmp_path, student, teacher, rows, objective)
    step = logged(tmp_path, student, teacher, rows, HiddenStates("-1:-1") + RKD("-1:-1"))
    assert 0 < step["loss"] < float("inf")


def test_pictures_in_front_of_a_text_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIT puts its picture before the text: the logits of the first token would be a patch's. The
    remedy, a row that reads the places of the text, is followed."""

    def git() -> Any:
        vision = {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 4,
        }
        return tf.GitForCausalLM(
            tf.GitConfig(
                vision_config=vision,
                vocab_size=40,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=24,
                max_position_embeddings=32,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )

    student, teacher = made(git)
    rows = [{k: v for k, v in row.items() if k != "bbox"} for row in documents()]
    for row in rows:
        row["labels"] = row["input_ids"].masked_fill(row["attention_mask"] == 0, -100)
    message = r"items \(4, 9\).*the (student|teacher) \(GitForCausalLM\).*5 places more.*TASKS"
    with pytest.raises(ValueError, match=message):
        logged(tmp_path, student, teacher, rows, ForwardKL(1.0))
    monkeypatch.setattr("hf_distill.models.tasks.CUSTOM_TASKS", dict(CUSTOM_TASKS))
    monkeypatch.setattr("hf_distill.models.tasks.TASKS", dict(TASKS))
    row = dataclasses.replace(  # as the message writes it
        TASKS["causal_lm"], name="behind", read=lambda outputs, batch: outputs.logits[:, 5:]
    )
    register_task("GitForCausalLM", row)
    batch = stacked(rows)
    with torch.no_grad():
        own = float(student(**batch).loss)
    step = logged(tmp_path, student, teacher, rows, 0.5 * ForwardKL(1.0) + 0.5 * HardLabels())
    assert step["hard_labels"] == pytest.approx(own, abs=1e-5)


def test_every_frame_counts_without_a_mask(tmp_path: Path) -> None:
    """Whisper pads to half a minute and attends to all of it."""
    student, _ = CASES["speech_seq2seq"].models(torch.float32)
    teacher, _ = CASES["speech_seq2seq"].models(torch.float32)
    for parameter in teacher.parameters():
        parameter.data.mul_(1.1)
    rows = CASES["speech_seq2seq"].data(4, torch.float32)
    batch = collate(rows)
    with torch.no_grad():
        ours, theirs = (
            model.eval()(**batch, output_hidden_states=True).encoder_hidden_states[-1]
            for model in (student, teacher)
        )
    record = Recorder()
    options: dict[str, Any] = {"train_dataset": rows, "data_collator": collate}
    DistillationTrainer(
        student,
        config(tmp_path, max_steps=1),
        teacher_model=teacher,
        objective=HiddenStates("-1:-1", groups=("encoder",)),
        callbacks=[record],
        **options,
    ).train()
    expected = float((ours - theirs).double().square().mean())
    assert record.steps[0]["loss"] == pytest.approx(expected, rel=1e-4)


def visual_bert() -> Any:
    return tf.VisualBertModel(
        tf.VisualBertConfig(
            vocab_size=40,
            hidden_size=16,
            visual_embedding_dim=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=32,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def test_pictures_that_are_given_as_embeddings(tmp_path: Path) -> None:
    """VisualBERT puts them behind the tokens, with a mask of their own."""
    generator = torch.Generator().manual_seed(6)
    rows = []
    for n, row in enumerate(documents()):
        mask = (torch.arange(4) < 4 - n % 2).long()
        visual = torch.randn(4, 8, generator=generator)
        kept = {key: row[key] for key in ("input_ids", "attention_mask")}
        rows.append({**kept, "visual_embeds": visual, "visual_attention_mask": mask})
    student, teacher = made(visual_bert)
    batch = stacked(rows)
    with torch.no_grad():
        ours, theirs = (
            model(**batch, output_hidden_states=True).hidden_states[-1].double()
            for model in (student, teacher)
        )
    real = torch.cat([batch["attention_mask"], batch["visual_attention_mask"]], 1).bool()
    apart = (ours - theirs).square().mean(-1)
    means = [(x * real[..., None]).sum(1) / real.sum(1, keepdim=True) for x in (ours, theirs)]
    objective = HiddenStates("-1:-1", groups=("hidden",))
    objective = objective + HiddenStates("-1:-1", groups=("embedding",))
    step = logged(tmp_path, student, teacher, rows, objective)
    assert step["hidden_states"] == pytest.approx(float(apart[real].mean()), rel=1e-4)
    embedding = float((means[0] - means[1]).square().mean())
    assert step["hidden_states_2"] == pytest.approx(embedding, rel=1e-4)


def test_answers_in_documents(tmp_path: Path) -> None:
    """The head of LayoutLMv3 that answers questions has logits for its picture's places too."""
    student, teacher = made(lambda: layoutlmv3("QuestionAnswering"))
    rows = [
        {
            **{k: v for k, v in row.items() if k != "labels"},
            "start_positions": 1,
            "end_positions": 3,
        }
        for row in documents()
    ]
    batch = stacked(rows)
    with torch.no_grad():
        own = float(student(**batch).loss)
    step = logged(tmp_path, student, teacher, rows, 0.5 * HardLabels() + 0.5 * ForwardKL(1.0))
    assert step["hard_labels"] == pytest.approx(own, abs=1e-4)


def test_frames_of_a_cache_are_those_of_its_teacher(tmp_path: Path) -> None:
    """What is kept of a sound is as long as the sound, wherever its batch is padded to."""
    student, teacher = made(speech_to_text)
    rows = sounds("input_features", 1, 20)
    objective = HiddenStates("-1:-1", groups=("encoder",))
    live = logged(tmp_path / "live", student, teacher, rows, objective)
    options: dict[str, Any] = {"hidden_states": {"encoder": [-1]}, "dtype": "float32"}
    folder = write_cache(
        tmp_path / "cache", ModelTeacher(teacher), rows, stacked, batch_size=2, say=len, **options
    )
    student, _ = made(speech_to_text)
    cached = logged(tmp_path / "read", student, CachedTeacher(folder), rows, objective)
    assert cached["loss"] == pytest.approx(live["loss"], rel=1e-5)
