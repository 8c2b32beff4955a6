"""The official scripts, each with the models and the data that it is run on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers as tf

from . import language, media

Make = Callable[[Path], list[str]]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        script: The script, below the folder of the scripts.
        note: The model and what is particular, as the table says it.
        make: Makes model and data in a folder; gives the script's own arguments.
        kind: How the first loss is computed in plain torch (`reference.KINDS`).
        repairs: Replacements in the script, plain and ours, for what breaks with these versions of
            transformers and datasets without us: ``(old, new, reason)``.
        helpers: Files beside the script that import the trainer's names.
        alone: More arguments of the run with ``alpha=0``.
        remark: What is known of the row's figures.
    """

    script: str
    note: str
    make: Make
    kind: str
    repairs: tuple[tuple[str, str, str], ...] = ()
    helpers: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    remark: str = ""

    @property
    def name(self) -> str:
        """The script and the model."""
        return f"{Path(self.script).stem} ({self.note})"


def _model(folder: Path) -> list[str]:
    return ["--model_name_or_path", str(folder)]


def _texts(make_model: Callable[[Path], None], make_row: Any, *more: str, field: str = "") -> Make:
    """A model, and rows of text in two JSON files."""

    def make(folder: Path) -> list[str]:
        make_model(folder / "model")
        files = language.write_rows(folder, make_row, field)
        return [*_model(folder / "model"), *files, *more]

    return make


def _saved(
    make_model: Callable[[Path], None], make_data: Callable[[Path], str], *more: str
) -> Make:
    """A model, and a data set on disk under the name of a data set of the Hub."""

    def make(folder: Path) -> list[str]:
        make_model(folder / "model")
        return [*_model(folder / "model"), "--dataset_name", make_data(folder), *more]

    return make


def _bert(head: str, **options: Any) -> Callable[[Path], None]:
    return lambda folder: language.bert(folder, head, **options)


def _streamed(folder: Path) -> list[str]:
    import datasets

    language.llama(folder / "model")
    parts = {
        name: datasets.Dataset.from_list(language.rows(count, seed, language.plain_text))
        for seed, (name, count) in enumerate({"train": 24, "validation": 10}.items())
    }
    datasets.DatasetDict(parts).save_to_disk(str(folder / "data"))
    data = ["--dataset_name", str(folder / "data"), "--streaming", "--block_size", "32"]
    counts = ["--max_train_samples", "24", "--max_eval_samples", "10"]
    return [*_model(folder / "model"), *data, *counts]


def _xnli(folder: Path) -> list[str]:
    import datasets

    language.bert(folder / "model")
    kinds = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
    text = datasets.Value("string")
    features = datasets.Features({"premise": text, "hypothesis": text, "label": kinds})

    def make_row(dice: Any, number: int) -> dict[str, Any]:
        return {
            "premise": language.sentence(dice),
            "hypothesis": language.sentence(dice),
            "label": number % 3,
        }

    parts = {
        name: datasets.Dataset.from_list(language.rows(count, seed, make_row), features=features)
        for seed, (name, count) in enumerate({"train": 24, "validation": 10}.items())
    }
    datasets.DatasetDict(parts).save_to_disk(str(folder / "xnli" / "en"))
    return [*_model(folder / "model"), "--language", "en", "--max_seq_length", "32"]


def _clip(make_model: Callable[[Path], None]) -> Make:
    def make(folder: Path) -> list[str]:
        make_model(folder / "model")
        files = media.captioned_pictures(folder)
        columns = ["--image_column", "image", "--caption_column", "caption"]
        more = ["--max_seq_length", "24", "--remove_unused_columns", "False"]
        return [*_model(folder / "model"), *files, *columns, *more]

    return make


GLUE = "text-classification/run_glue.py"
CLASSIFICATION = "text-classification/run_classification.py"
QA = "question-answering/run_qa.py"
CLM = "language-modeling/run_clm.py"
MLM = "language-modeling/run_mlm.py"
SUMMARIES = "summarization/run_summarization.py"
TRANSLATION = "translation/run_translation.py"
CLIP = "contrastive-image-text/run_clip.py"

EMBEDDING = (
    "original_embeddings = model.get_input_embeddings()",
    "original_embeddings = model.get_input_embeddings().weight.detach()",
    "uses an Embedding as a tensor",
)
LIST = (
    '.features["label"].dtype == "list"',
    '.features["label"].__class__.__name__ == "List"',
    "asks `.dtype` of a `List` feature",
)
LIST_TOO = (
    'raw_datasets["train"].features["label"].dtype in ["float32", "float64"]',
    'getattr(raw_datasets["train"].features["label"], "dtype", "list") in ["float32", "float64"]',
    "",
)
TYPO = ("processing_classtokenizer=", "processing_class=", "a misspelt argument")
NO_CHECKPOINT = (
    "if os.path.isdir(model_args.model_name_or_path):",
    "if False:",
    "takes a local model for a checkpoint",
)

IMAGES = ("--remove_unused_columns", "False")
WRITING = ("--predict_with_generate", "--num_beams", "1")
SHORT = ("--max_source_length", "32", "--max_target_length", "16")


def _ctc(note: str, words: int, remark: str, adapter: bool = False) -> Case:
    script = f"run_speech_recognition_ctc{'_adapter' if adapter else ''}.py"
    make = _saved(
        media.wav2vec2,
        lambda folder: media.recordings(folder, False, words),
        *("--train_split_name", "train", "--eval_split_name", "validation"),
        *("--mask_time_prob", "0", "--ctc_loss_reduction", "mean"),
        *(("--target_language", "xyz") if adapter else ()),
    )
    path = f"speech-recognition/{script}"
    return Case(path, note, make, "frames", (NO_CHECKPOINT,), remark=remark)


CASES: tuple[Case, ...] = (
    Case(
        GLUE,
        "BERT, classes",
        _texts(
            language.bert,
            language.pairs(lambda dice, n: ["no", "yes", "maybe"][n % 3]),
        ),
        "classes",
    ),
    Case(
        GLUE,
        "BERT, regression",
        _texts(language.bert, language.pairs(lambda dice, n: dice.uniform(0, 5))),
        "number",
    ),
    Case(
        CLASSIFICATION,
        "BERT, text labels",
        _texts(
            language.bert,
            language.texts(lambda dice, n: ["bad", "good"][n % 2]),
            *("--text_column_names", "sentence", "--label_column_name", "label"),
        ),
        "classes",
    ),
    Case(
        CLASSIFICATION,
        "BERT, regression",
        _texts(
            language.bert,
            language.texts(lambda dice, n: dice.uniform(0, 5)),
            *("--text_column_names", "sentence", "--do_regression", "True"),
        ),
        "number",
    ),
    Case(
        CLASSIFICATION,
        "BERT, several labels",
        _texts(
            language.bert,
            language.texts(lambda dice, n: dice.sample(["art", "law", "war"], 1 + n % 2)),
            *("--text_column_names", "sentence", "--max_grad_norm", "0", "--optim", "sgd"),
        ),
        "labels",
        (LIST, LIST_TOO),
        alone=("--learning_rate", str(1e-3 / 3)),
        remark="our loss is summed over three classes (README): SGD, with a third of the rate",
    ),
    Case(
        "text-classification/run_xnli.py",
        "BERT",
        _xnli,
        "classes",
    ),
    Case(
        "token-classification/run_ner.py",
        "BERT",
        _texts(language.bert, language.tagged),
        "tokens",
    ),
    Case(
        QA,
        "BERT",
        _texts(
            language.bert,
            language.question,
            *("--max_seq_length", "32", "--doc_stride", "8"),
            field="data",
        ),
        "spans",
        helpers=("trainer_qa.py", "utils_qa.py"),
    ),
    Case(
        QA,
        "BERT, --version_2_with_negative, not padded",
        _texts(
            language.bert,
            lambda dice, n: language.question(dice, n, True),
            *("--version_2_with_negative", "--pad_to_max_length", "False"),
            *("--max_seq_length", "32", "--doc_stride", "8"),
            field="data",
        ),
        "spans",
        helpers=("trainer_qa.py", "utils_qa.py"),
    ),
    Case(
        "question-answering/run_qa_beam_search.py",
        "XLNet",
        _texts(
            lambda folder: language.xlnet(folder, tf.XLNetForQuestionAnswering),
            language.question,
            *("--max_seq_length", "32", "--doc_stride", "8"),
            field="data",
        ),
        "own",
        helpers=("trainer_qa.py", "utils_qa.py"),
    ),
    Case(
        "question-answering/run_seq2seq_qa.py",
        "BART",
        _texts(
            language.bart,
            language.question,
            *("--max_seq_length", "48", "--max_answer_length", "8"),
            *("--predict_with_generate", "--num_beams", "1"),
            field="data",
        ),
        "tokens",
        helpers=("trainer_seq2seq_qa.py",),
    ),
    Case(
        "multiple-choice/run_swag.py",
        "BERT",
        _texts(language.bert, language.situation, "--max_seq_length", "32"),
        "classes",
    ),
    Case(
        CLM,
        "Llama",
        _texts(language.llama, language.plain_text, "--block_size", "32"),
        "next_tokens",
    ),
    Case(
        CLM,
        "GPT-2",
        _texts(language.gpt2, language.plain_text, "--block_size", "32"),
        "next_tokens",
        remark="plain divides by 32 tokens where 31 have a label; AdamW hides the factor",
    ),
    Case(CLM, "Llama, --streaming", _streamed, "next_tokens"),
    Case(
        "language-modeling/run_fim.py",
        "Llama",
        _texts(language.llama, language.plain_text, "--block_size", "32"),
        "next_tokens",
        (EMBEDDING,),
    ),
    Case(
        MLM,
        "BERT",
        _texts(_bert("ForMaskedLM"), language.plain_text, "--max_seq_length", "32"),
        "tokens",
    ),
    Case(
        MLM,
        "BERT, --line_by_line",
        _texts(
            _bert("ForMaskedLM"), language.plain_text, "--line_by_line", "--max_seq_length", "48"
        ),
        "tokens",
    ),
    Case(
        MLM,
        "XLM",
        _texts(language.xlm, language.plain_text, "--max_seq_length", "32"),
        "tokens",
    ),
    Case(
        "language-modeling/run_plm.py",
        "XLNet",
        _texts(
            lambda folder: language.xlnet(folder, tf.XLNetLMHeadModel),
            language.plain_text,
            *("--max_seq_length", "32"),
        ),
        "tokens",
        (TYPO,),
    ),
    Case(SUMMARIES, "BART", _texts(language.bart, language.summary, *SHORT, *WRITING), "tokens"),
    Case(SUMMARIES, "T5", _texts(language.t5, language.summary, *SHORT, *WRITING), "tokens"),
    Case(
        TRANSLATION,
        "T5",
        _texts(
            language.t5,
            language.translation,
            *("--source_lang", "en", "--target_lang", "ro"),
            *SHORT,
            *WRITING,
        ),
        "tokens",
    ),
    Case(
        TRANSLATION,
        "mBART, en_XX to ro_RO",
        _texts(
            language.mbart,
            language.translation,
            *("--source_lang", "en_XX", "--target_lang", "ro_RO"),
            *SHORT,
            *WRITING,
        ),
        "tokens",
    ),
    Case(
        "image-classification/run_image_classification.py",
        "ViT",
        _saved(media.vit, media.labelled_pictures, "--label_column_name", "label", *IMAGES),
        "classes",
    ),
    Case(
        "semantic-segmentation/run_semantic_segmentation.py",
        "SegFormer",
        _saved(media.segformer, media.segmented_pictures, "--optim", "sgd", *IMAGES),
        "pixels",
        remark="SGD: of biases before batch normalisation AdamW sees rounding alone",
    ),
    Case(
        "audio-classification/run_audio_classification.py",
        "wav2vec2",
        _saved(
            media.wav2vec2,
            lambda folder: media.recordings(folder, True),
            *("--eval_split_name", "validation", "--max_length_seconds", "1"),
            *("--attention_mask", "False", *IMAGES),
        ),
        "classes",
    ),
    _ctc("wav2vec2", 0, "our mean is over target tokens (README), plain over examples"),
    _ctc("wav2vec2, transcripts of one length", 2, "both means are one"),
    _ctc("wav2vec2, adapter of a language", 2, "", adapter=True),
    Case(
        "speech-recognition/run_speech_recognition_seq2seq.py",
        "Whisper",
        _saved(
            media.whisper,
            lambda folder: media.recordings(folder, False),
            *("--train_split_name", "train", "--eval_split_name", "validation"),
            *("--freeze_feature_encoder", "False", "--predict_with_generate"),
            *("--generation_max_length", "16"),
        ),
        "tokens",
    ),
    Case(CLIP, "CLIP", _clip(media.clip), "matches"),
    Case(CLIP, "VisionTextDualEncoder", _clip(media.text_and_picture), "matches"),
    Case(
        "image-pretraining/run_mae.py",
        "ViTMAE",
        _saved(
            media.mae,
            media.labelled_pictures,
            *("--base_learning_rate", "0.064", "--mask_ratio", "0.5", *IMAGES),
        ),
        "own",
    ),
    Case(
        "image-pretraining/run_mim.py",
        "ViT",
        _saved(media.mim, media.labelled_pictures, "--mask_patch_size", "8", *IMAGES),
        "own",
    ),
    Case(
        "object-detection/run_object_detection.py",
        "YOLOS",
        _saved(
            media.yolos,
            media.boxed_pictures,
            *("--image_square_size", "64", "--ignore_mismatched_sizes"),
            *("--eval_do_concat_batches", "False", *IMAGES),
        ),
        "own",
    ),
    Case(
        "instance-segmentation/run_instance_segmentation.py",
        "Mask2Former",
        _saved(
            media.mask2former,
            media.instance_pictures,
            *("--image_height", "64", "--image_width", "64"),
        ),
        "own",
    ),
)
