"""Every class of transformers' auto mappings, judged by its own loss and by the stock `Trainer`."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import transformers
from class_verdicts import Case, judge, one_step, read_table, row, several
from every_class import Listed, build, listed
from torch import nn

from hf_distill import HiddenStates

PARTS = 24
"""Of the sweep, for several processes."""
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
    "VideoLlavaForConditionalGeneration",  # the positions of its films are not those of its texts
    "HieraModel",  # the same, for units of patches
    "BertModel",
)
"""One or two for each way that classes are read."""


@pytest.mark.parametrize("name", FEW)
def test_a_few_classes_agree_with_themselves(name: str, tmp_path: Path) -> None:
    """A change of the label losses, or of the builder, would be seen in the slow sweep alone."""
    verdict = judge(CLASSES[name], tmp_path)
    assert verdict.verdict == "same", verdict


@pytest.mark.parametrize("name", ["BertForQuestionAnswering", "GPT2LMHeadModel"])
def test_dropout_is_the_stock_trainers(name: str, tmp_path: Path) -> None:
    """A random number drawn between seed and first step would make every comparison of two
    trainers one of two seeds."""
    case = Case(CLASSES[name], *build(CLASSES[name]), tmp_path)
    for module in case.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    one_step(case, 1.0, alpha=0.0)


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
        ("MobileBertForMaskedLM", False),
    ],
)
def test_what_follows_the_output_layer_is_seen(name: str, lean: bool, tmp_path: Path) -> None:
    """Logits computed without it would be others once the model is trained, and a bias would never
    be; without the shortcut whole logits fill the memory."""
    case = Case(CLASSES[name], *build(CLASSES[name]), tmp_path)
    assert case.ours(case.model, alpha=0.0).step.lazy_logits is lean


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


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_class_is_as_the_table_says(part: int, tmp_path: Path) -> None:
    """A new version of transformers brings classes, and changes what others compute: this says
    which, and whether the trainer is right for them (`python tests/class_verdicts.py` makes the
    table anew)."""
    table, changed = read_table(), []
    for verdict in several(list(CLASSES.values())[part::PARTS], tmp_path):
        found, known = row(verdict), table.get(verdict.name)
        if known is None:
            changed.append(f"{verdict.name} is new: {found}")
        elif (known["head"], known["verdict"]) != (found["head"], found["verdict"]):
            changed.append(f"{verdict.name} was {known['head']}, {known['verdict']}; now {found}")
    assert not changed, "\n".join(changed)


def test_no_class_of_the_table_is_silently_wrong() -> None:
    """A table made anew would make a fault the expected value."""
    table = read_table()
    wrong = {name: each for name, each in table.items() if each["verdict"] in ("DIFFERS", "CRASH")}
    assert not wrong
    heads = [each["verdict"] for each in table.values() if each["head"] != "encoder"]
    assert len(heads) > 800
    assert heads.count("not built") <= 0.05 * len(heads)
    assert all(each["detail"] for each in table.values() if each["verdict"] != "same")


def test_the_table_holds_what_the_auto_mappings_list() -> None:
    """A class that is gone would be listed as right for ever."""
    if transformers.__version__ == "5.24.0":
        assert list(read_table()) == list(CLASSES)
