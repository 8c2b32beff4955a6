"""Every class of transformers' auto mappings, judged by its own loss and by the stock `Trainer`."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from class_verdicts import Case, judge
from every_class import Listed, build, listed

from hf_distill import HiddenStates

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
    "EsmForMaskedLM",  # a bias after the output layer, which is 0 at first
    "RecurrentGemmaForCausalLM",  # a cap that small logits do not come near
    "DeepseekV4ForCausalLM",  # several streams of hidden states
    "TextNetForImageClassification",  # a list of hidden states
    "PvtForImageClassification",  # no names of labels
    "DoryForCausalLM",  # an output layer with a scale of its own
    "Florence2ForConditionalGeneration",  # padding and first token in a part of the config
    "CohereAsrForConditionalGeneration",  # a method that counts samples, where there are frames
    "ViTMAEModel",  # noise that both models must share
    "BertModel",
)
"""One or two for each way that classes are read."""


@pytest.mark.parametrize("name", FEW)
def test_a_few_classes_agree_with_themselves(name: str, tmp_path: Path) -> None:
    """A change of the label losses, or of the builder, would be seen in the slow sweep alone."""
    verdict = judge(CLASSES[name], tmp_path)
    assert verdict.verdict == "same", verdict


@pytest.mark.parametrize(
    ("name", "lean"),
    [
        ("LlamaForCausalLM", True),
        ("Gemma2ForCausalLM", True),
        ("CohereForCausalLM", True),
        ("GraniteForCausalLM", True),
        ("T5ForConditionalGeneration", True),
        ("BertForMaskedLM", True),
        ("EsmForMaskedLM", False),
        ("RecurrentGemmaForCausalLM", False),
    ],
)
def test_what_follows_the_output_layer_is_seen(name: str, lean: bool, tmp_path: Path) -> None:
    """Logits computed without it would be others once the model is trained, and a bias would never
    be; without the shortcut whole logits fill the memory."""
    case = Case(CLASSES[name], *build(CLASSES[name]), tmp_path)
    assert case.ours(case.model, alpha=0.0)._lean is lean


def test_hidden_states_that_are_no_tensors_are_refused_by_name(tmp_path: Path) -> None:
    """PEGASUS-X gives two tensors a layer: an AttributeError would say nothing of it."""
    entry = CLASSES["PegasusXForConditionalGeneration"]
    case = Case(entry, *build(entry), tmp_path)
    with pytest.raises(ValueError, match=r"a tensor a layer, from the \w+ \(PegasusXFor.*tuple"):
        case.ours(case.model, copy.deepcopy(case.model), objective=HiddenStates())


def test_hidden_states_that_are_not_there_are_refused_by_name(tmp_path: Path) -> None:
    """The first evaluation would say that the objective has no term."""
    case = Case(CLASSES["FlavaModel"], *build(CLASSES["FlavaModel"]), tmp_path)
    with pytest.raises(ValueError, match=r"Expected hidden states from the \w+ \(FlavaModel\)"):
        case.ours(case.model, copy.deepcopy(case.model), objective=HiddenStates())


def test_a_class_that_cannot_be_built_is_told_by_its_reason(tmp_path: Path) -> None:
    """A rule that makes no configuration would count as a fault of the trainer, or as none."""
    missing = Listed("LayoutLMv2ForTokenClassification", "token_classification", "layoutlmv2")
    verdict = judge(missing, tmp_path)
    assert verdict.verdict == "not built"
    assert "detectron2" in verdict.detail
