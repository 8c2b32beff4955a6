"""The quick start of the model card runs as it stands, for each task."""

from __future__ import annotations

import re
import wave
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from hf_distill.hub import StudentCard, render

SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT = transformers.BertConfig(vocab_size=12, intermediate_size=16, **SMALL)
BART = transformers.BartConfig(
    vocab_size=12,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=16,
    decoder_ffn_dim=16,
)
GPT2 = transformers.GPT2Config(vocab_size=12, n_embd=16, n_layer=1, n_head=2, n_positions=64)
VIT = transformers.ViTConfig(image_size=8, patch_size=4, intermediate_size=16, **SMALL)
CTC = transformers.Wav2Vec2Config(
    vocab_size=12, intermediate_size=16, conv_dim=(16,), conv_stride=(320,), conv_kernel=(400,),
    num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, **SMALL
)  # fmt: skip
MODELS: dict[str, tuple[str, Any]] = {
    "text-classification": ("BertForSequenceClassification", BERT),
    "token-classification": ("BertForTokenClassification", BERT),
    "fill-mask": ("BertForMaskedLM", BERT),
    "question-answering": ("BertForQuestionAnswering", BERT),
    "multiple-choice": ("BertForMultipleChoice", BERT),
    "feature-extraction": ("BertModel", BERT),
    "sentence-similarity": ("BertModel", BERT),
    "text-generation": ("GPT2LMHeadModel", GPT2),
    "text2text-generation": ("BartForConditionalGeneration", BART),
    "image-classification": ("ViTForImageClassification", VIT),
    "audio-classification": ("Wav2Vec2ForSequenceClassification", CTC),
    "automatic-speech-recognition": ("Wav2Vec2ForCTC", CTC),
}


def tokenizer_of(folder: Path) -> None:
    """Save a tokenizer of a few words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ada", "once", "upon", "a", "time", "|"]
    model = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    model.pre_tokenizer = Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=model, **special).save_pretrained(folder)


@pytest.mark.filterwarnings("default")  # what the pipelines of transformers warn about
@pytest.mark.parametrize("task", MODELS)
def test_the_quick_start_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    """The first lines anybody copies; transformers 5 removed several of the pipelines."""
    if task == "sentence-similarity":
        pytest.importorskip("sentence_transformers")
    architecture, config = MODELS[task]
    torch.manual_seed(0)
    getattr(transformers, architecture)(config).save_pretrained(tmp_path / "student")
    tokenizer_of(tmp_path / "student")
    if task.startswith("image"):
        from PIL import Image

        Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
        transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(
            tmp_path / "student"
        )
    if config is CTC:
        pytest.importorskip("soundfile")
        with wave.open(str(tmp_path / "speech.wav"), "wb") as sound:
            sound.setparams((1, 2, 16000, 0, "NONE", ""))
            sound.writeframes(b"\0\1" * 4000)
        transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "student")
    monkeypatch.chdir(tmp_path)
    card = render(StudentCard("student", task=task, student={"architecture": architecture}))
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    exec(code.group(1), {})
