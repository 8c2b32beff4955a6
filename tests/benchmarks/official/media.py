"""Tiny processors, models and data of the official scripts for pictures and sound."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import transformers as tf
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as Pictures
from tokenizers.pre_tokenizers import ByteLevel

from .language import SIZE, WORDS, bart_config, rows, save, sentence, tokenizer

SIDE = 32
RATE = 16_000
SPLITS = {"train": 24, "validation": 8}


def picture(seed: int, side: int = SIDE) -> Pictures.Image:
    """Random colours in blocks, so that a crop still looks like its picture."""
    dice = np.random.default_rng(seed)
    blocks = dice.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Pictures.fromarray(blocks.repeat(side // 4, 0).repeat(side // 4, 1))


def saved(
    folder: Path, make: Any, features: Features, *, test: int = 0, cast: Features | None = None
) -> str:
    """A data set on disk, of rows ``make(number)``; returns its folder."""
    counts = {**SPLITS, "test": test} if test else SPLITS
    firsts = np.cumsum([0, *counts.values()])
    parts = {
        name: Dataset.from_list([make(int(first) + n) for n in range(count)], features=features)
        for first, (name, count) in zip(firsts, counts.items(), strict=False)
    }
    whole = DatasetDict(parts)
    whole = whole.cast(Features({**features, **cast})) if cast else whole
    whole.save_to_disk(str(folder / "data"))
    return str(folder / "data")


# ---- pictures --------------------------------------------------------------------------------


def image_processor(folder: Path, kind: str = "ViTImageProcessor", **options: Any) -> None:
    size = options.pop("size", {"height": SIDE, "width": SIDE})
    getattr(tf, kind)(size=size, **options).save_pretrained(folder)


def vit_sizes() -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": SIDE,
        "patch_size": 8,
    }


def vit(folder: Path) -> None:
    image_processor(folder)
    save(folder, tf.ViTModel, tf.ViTConfig(**vit_sizes()))


def mae(folder: Path) -> None:
    image_processor(folder)
    config = tf.ViTMAEConfig(
        **vit_sizes(),
        decoder_hidden_size=32,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
    )
    save(folder, tf.ViTMAEForPreTraining, config)


def mim(folder: Path) -> None:
    image_processor(folder)
    config = tf.ViTConfig(**vit_sizes(), encoder_stride=8)
    save(folder, tf.ViTForMaskedImageModeling, config)


def segformer(folder: Path) -> None:
    image_processor(folder, "SegformerImageProcessor")
    config = tf.SegformerConfig(
        hidden_sizes=[8, 16, 16, 32],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 2],
        decoder_hidden_size=32,
        num_labels=4,
        image_size=SIDE,
    )
    save(folder, tf.SegformerForSemanticSegmentation, config)


def yolos(folder: Path) -> None:
    tf.YolosImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    sizes = {**vit_sizes(), "image_size": [64, 64]}
    config = tf.YolosConfig(**sizes, num_detection_tokens=8, num_labels=3)
    save(folder, tf.YolosForObjectDetection, config)


def mask2former(folder: Path) -> None:
    tf.Mask2FormerImageProcessor(
        size={"height": 64, "width": 64}, ignore_index=255
    ).save_pretrained(folder)
    backbone = tf.SwinConfig(
        image_size=64,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = tf.Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=64,
        encoder_layers=2,
        decoder_layers=3,
        dim_feedforward=64,
        num_attention_heads=2,
        num_queries=8,
        train_num_points=64,
        num_labels=3,
    )
    save(folder, tf.Mask2FormerForUniversalSegmentation, config)


def text_tower(words: Any) -> dict[str, Any]:
    return {
        "vocab_size": SIZE,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "pad_token_id": words.pad_token_id,
        "eos_token_id": getattr(words, "eos_token_id", None) or words.sep_token_id,
    }


def clip(folder: Path) -> None:
    words = tokenizer("seq2seq")
    words.save_pretrained(folder)
    image_processor(folder, "CLIPImageProcessor", size={"shortest_edge": SIDE}, crop_size=SIDE)
    config = tf.CLIPConfig(
        text_config=text_tower(words), vision_config=vit_sizes(), projection_dim=16
    )
    save(folder, tf.CLIPModel, config)


def text_and_picture(folder: Path) -> None:
    """The model that the script's own README builds: a text and a picture model side by side."""
    words = tokenizer("bert")
    words.save_pretrained(folder)
    image_processor(folder)
    text = tf.BertConfig(**text_tower(words))
    config = tf.VisionTextDualEncoderConfig.from_vision_text_configs(
        tf.ViTConfig(**vit_sizes()), text, projection_dim=16
    )
    save(folder, tf.VisionTextDualEncoderModel, config)


def labelled_pictures(folder: Path) -> str:
    names = ClassLabel(names=["cat", "dog", "owl"])
    make = lambda n: {"image": picture(n), "label": n % 3}  # noqa: E731
    return saved(folder, make, Features({"image": Image(), "label": names}))


def segmented_pictures(folder: Path) -> str:
    """Classes by the picture's brightness; some pixels are of no class (255)."""

    def make(n: int) -> dict[str, Any]:
        image = picture(n, 40)
        grey = np.array(image.convert("L"))
        labels = (grey // 64).astype(np.uint8)
        labels[:4] = 255
        return {"image": image, "label": Pictures.fromarray(labels)}

    where = saved(folder, make, Features({"image": Image(), "label": Image()}))
    names = {str(n): name for n, name in enumerate(["sky", "road", "wall", "tree"])}
    (Path(where) / "id2label.json").write_text(json.dumps(names))
    return where


def boxed_pictures(folder: Path) -> str:
    def make(n: int) -> dict[str, Any]:
        dice = np.random.default_rng(n)
        count = 1 + n % 3
        corners = dice.integers(0, 32, (count, 2))
        sides = dice.integers(16, 32, (count, 2))
        boxes = np.concatenate([corners, sides], 1).astype(float)
        return {
            "image_id": n,
            "image": picture(n, 64),
            "objects": {
                "id": list(range(count)),
                "area": (boxes[:, 2] * boxes[:, 3]).tolist(),
                "bbox": boxes.tolist(),
                "category": dice.integers(0, 3, count).tolist(),
            },
        }

    objects = {
        "id": List(Value("int64")),
        "area": List(Value("float64")),
        "bbox": List(List(Value("float32"), length=4)),
        "category": List(ClassLabel(names=["coat", "mask", "glove"])),
    }
    features = Features({"image_id": Value("int64"), "image": Image(), "objects": objects})
    return saved(folder, make, features, test=8)


def instance_pictures(folder: Path) -> str:
    """Instances as rectangles: the first channel of the annotation is the class, the second the
    instance."""

    def make(n: int) -> dict[str, Any]:
        dice = np.random.default_rng(n)
        marks = np.zeros((64, 64, 3), dtype=np.uint8)
        for number in range(1, 2 + n % 3):
            top, left = dice.integers(0, 40, 2)
            marks[top : top + 24, left : left + 24, 0] = 1 + (n + number) % 2
            marks[top : top + 24, left : left + 24, 1] = number
        names = {"background": 0, "person": 1, "car": 2}
        return {
            "image": picture(n, 64),
            "annotation": Pictures.fromarray(marks),
            "semantic_class_to_id": names,
        }

    names = {name: Value("int64") for name in ("background", "person", "car")}
    features = Features({"image": Image(), "annotation": Image(), "semantic_class_to_id": names})
    return saved(folder, make, features)


def captioned_pictures(folder: Path) -> list[str]:
    """Picture files and JSON lines with their captions; returns the script's arguments."""
    (folder / "pictures").mkdir(parents=True)
    arguments = []
    for name, count in SPLITS.items():
        found = []
        for n, caption in enumerate(rows(count, count, lambda dice, _: sentence(dice))):
            path = folder / "pictures" / f"{name}{n}.png"
            picture(100 * count + n, 40).save(path)
            found.append(json.dumps({"image": str(path), "caption": caption}))
        (folder / f"{name}.json").write_text("\n".join(found))
        arguments += [f"--{name}_file", str(folder / f"{name}.json")]
    return arguments


# ---- sound -----------------------------------------------------------------------------------


def wav2vec2(folder: Path) -> None:
    tf.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    config = tf.Wav2Vec2Config(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=[16, 16, 16],
        conv_kernel=[10, 8, 4],
        conv_stride=[5, 8, 4],
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        classifier_proj_size=16,
        mask_time_prob=0.0,
        layerdrop=0.0,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )
    save(folder, tf.Wav2Vec2Model, config)


def whisper(folder: Path) -> None:
    """With a tokenizer of single bytes, and transformers' own classes."""
    marks = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    letters = sorted(ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*letters, *marks])}
    words = tf.WhisperTokenizer(vocab=vocabulary, merges=[], pad_token=marks[0])
    extractor = tf.WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    tf.WhisperProcessor(extractor, words).save_pretrained(folder)
    base = bart_config(tf.BartConfig, words).to_diff_dict()
    sizes = {k: v for k, v in base.items() if k.startswith(("d_model", "encoder", "decoder"))}
    config = tf.WhisperConfig(
        **{k: v for k, v in sizes.items() if k != "decoder_start_token_id"},
        vocab_size=len(words),
        num_mel_bins=16,
        max_source_positions=50,
        max_target_positions=64,
        pad_token_id=vocabulary[marks[0]],
        bos_token_id=vocabulary[marks[0]],
        eos_token_id=vocabulary[marks[0]],
        decoder_start_token_id=vocabulary[marks[1]],
        begin_suppress_tokens=None,
        suppress_tokens=None,
    )
    save(folder, tf.WhisperForConditionalGeneration, config)


def recordings(folder: Path, labelled: bool, words: int = 0) -> str:
    """Half a second to a second of a tone, with a class or a transcript of one to three words, or
    of a given number (all of three letters)."""

    def make(n: int) -> dict[str, Any]:
        dice = np.random.default_rng(n)
        length = RATE // 2 + 400 * (n % 20)
        tone = np.sin(np.arange(length) * (0.02 + 0.01 * (n % 3)))
        file = io.BytesIO()
        noise = 0.05 * dice.standard_normal(length)
        soundfile.write(file, 0.5 * tone + noise, RATE, format="WAV")
        audio = {"bytes": file.getvalue(), "path": f"{n}.wav"}
        short = [word for word in WORDS if len(word) == 3]
        text = " ".join(dice.choice(short if words else WORDS, words or 1 + n % 3))
        return {"audio": audio, **({"label": n % 3} if labelled else {"text": text})}

    names = ClassLabel(names=["yes", "no", "on"])
    rest = {"label": names} if labelled else {"text": Value("string")}
    file = {"bytes": Value("binary"), "path": Value("string")}  # as `Audio` keeps it
    features = Features({"audio": file, **rest})
    return saved(folder, make, features, cast={"audio": Audio(sampling_rate=RATE)})
