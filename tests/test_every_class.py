"""Every class of transformers' auto mappings, judged by its own loss and by the stock `Trainer`."""

from __future__ import annotations

from pathlib import Path

import pytest
from class_verdicts import judge
from every_class import Listed, listed

CLASSES = {entry.name: entry for entry in listed()}
FEW = (
    "BertForSequenceClassification",
    "LlamaForTokenClassification",
    "RobertaForQuestionAnswering",
    "AlbertForMultipleChoice",
    "DistilBertForMaskedLM",
    "GPT2LMHeadModel",
    "Qwen3MoeForCausalLM",
    "BartForConditionalGeneration",
    "T5ForConditionalGeneration",
    "ViTForImageClassification",
    "ASTForAudioClassification",
    "SegformerForSemanticSegmentation",
    "CLIPModel",
    "WhisperForConditionalGeneration",
    "Qwen2AudioForConditionalGeneration",
    "VisionEncoderDecoderModel",
    "BertModel",
)
"""One or two for each way that classes are read."""


@pytest.mark.parametrize("name", FEW)
def test_a_few_classes_agree_with_themselves(name: str, tmp_path: Path) -> None:
    """A change of the label losses, or of the builder, would be seen in the slow sweep alone."""
    verdict = judge(CLASSES[name], tmp_path)
    assert verdict.verdict == "same", verdict


def test_a_class_that_cannot_be_built_is_told_by_its_reason(tmp_path: Path) -> None:
    """A rule that makes no configuration would count as a fault of the trainer, or as none."""
    missing = Listed("LayoutLMv2ForTokenClassification", "token_classification", "layoutlmv2")
    verdict = judge(missing, tmp_path)
    assert verdict.verdict == "not built"
    assert "detectron2" in verdict.detail
