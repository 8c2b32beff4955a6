"""One encoder with several heads, judged by the plain models of transformers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from multi_task_models import AUTO, HEADS, SEQUENCES, TOKENS, bert, plain, student
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModel,
    BartConfig,
    BertForMaskedLM,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedModel,
    RobertaConfig,
)

from hf_distill import MultiHead, MultiHeadConfig

IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 0, 0], [4, 4, 5, 6, 0]])
BATCH = {"input_ids": IDS, "attention_mask": (IDS > 0).long()}
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
ARCHITECTURES: dict[str, Any] = {
    "distilbert": DistilBertConfig(
        vocab_size=40, dim=16, hidden_dim=24, n_layers=2, n_heads=2, seq_classif_dropout=0.3
    ),
    "roberta": RobertaConfig(**SIZES, max_position_embeddings=20),
    "electra": ElectraConfig(**SIZES, embedding_size=8),
    "albert": AlbertConfig(**SIZES, embedding_size=8),
    "modernbert": ModernBertConfig(**{**SIZES, **SPECIAL}),
    "gpt2": GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, pad_token_id=0),
    "llama": LlamaConfig(**SIZES),
}


def pair(config: Any) -> dict[str, PreTrainedModel]:
    """A plain classifier of examples and one of tokens with the same encoder."""
    torch.manual_seed(0)
    settings = {"examples": (SEQUENCES, 2), "tokens": (TOKENS, 3)}
    found: dict[str, PreTrainedModel] = {}
    for name, (task, classes) in settings.items():
        own = copy.deepcopy(config)
        own.num_labels = classes
        found[name] = AUTO[task].from_config(own).eval()
    state = found["examples"].base_model.state_dict()
    found["tokens"].base_model.load_state_dict(state, strict=False)
    return found


def check(models: dict[str, PreTrainedModel], folder: Path) -> None:
    """Compare with plain models: outputs, one run of the encoder, and saved folders."""
    model, runs = MultiHead.from_heads(models).eval(), []
    hook = model.base.register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        outputs = model(**BATCH, output_hidden_states=True)
        hook.remove()
        assert len(runs) == 1
        model.save_pretrained(folder / "whole")
        again = AutoModel.from_pretrained(folder / "whole")
        assert type(again) is MultiHead
        assert list(again.state_dict()) == list(model.state_dict())
        for name, own in models.items():
            expected = own(**BATCH, output_hidden_states=True)
            assert torch.equal(outputs[f"{name}_logits"], expected.logits)
            states = zip(outputs.hidden_states, expected.hidden_states, strict=True)
            assert all(torch.equal(ours, theirs) for ours, theirs in states)
            assert torch.equal(again(**BATCH)[f"{name}_logits"], expected.logits)
            assert torch.equal(model.heads[name](**BATCH).logits, expected.logits)
            model.export_head(name).save_pretrained(folder / name)
            auto = AUTO[model.config.heads[name]["task"]]
            alone, info = auto.from_pretrained(folder / name, output_loading_info=True)
            assert type(alone) is type(own)
            assert not info["missing_keys"]
            assert not info["unexpected_keys"]
            assert alone.state_dict().keys() == own.state_dict().keys()
            assert torch.equal(alone(**BATCH).logits, expected.logits)
            assert "hf_distill" not in (folder / name / "config.json").read_text()


def test_heads_are_plain_models(tmp_path: Path) -> None:
    """A head would differ from the class of transformers, or be lost in its folder."""
    check(pair(ARCHITECTURES["distilbert"]), tmp_path)
    saved = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert saved["heads"]["tokens"]["task"] == TOKENS
    assert saved["model_type"] == "multi_head"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - {"distilbert"}))
def test_heads_of_every_architecture_are_plain_models(name: str, tmp_path: Path) -> None:
    """An architecture whose heads call the encoder in another way would give other outputs."""
    check(pair(ARCHITECTURES[name]), tmp_path)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_plain_models(checkpointing: bool) -> None:
    """Dropout, a frozen encoder or gradient checkpointing would change what a head learns."""
    torch.manual_seed(0)
    config = bert(dropout=0.2, num_labels=3)
    own = AUTO[SEQUENCES].from_config(config)
    model = MultiHead.from_heads({"topic": own, "tags": AUTO[TOKENS].from_config(config)})
    grads = []
    for each in (own, model):
        each.train()
        each.base_model.embeddings.requires_grad_(False)
        if checkpointing:
            each.activation_checkpointing_enable()
        torch.manual_seed(1)
        outputs = each(**BATCH)
        (outputs.logits if each is own else outputs.topic_logits).square().sum().backward()
        grads.append({n: p.grad for n, p in each.named_parameters() if p.grad is not None})
    ours = {n.replace("base.", "bert.").replace("heads.topic.", ""): g for n, g in grads[1].items()}
    assert ours.keys() == grads[0].keys()
    assert len(ours) > 10
    assert all(torch.equal(ours[name], grad) for name, grad in grads[0].items())


def test_settings_of_heads_are_kept(tmp_path: Path) -> None:
    """Names of labels or the kind of a problem would be lost, and a loss be another."""
    model = student(torch.float32)
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    kinds = {name: config.head_config(name).problem_type for name in HEADS}
    assert kinds["stars"] == "regression"
    assert kinds["topic"] == "single_label_classification"
    assert kinds["themes"] == "multi_label_classification"
    heads = {"mood": {"task": SEQUENCES, "id2label": {0: "bad", 1: "good"}}}
    named = MultiHeadConfig(base_config=bert().to_dict(), heads=heads)
    alone = MultiHead(named).export_head("mood")
    assert alone.config.id2label == {0: "bad", 1: "good"}
    assert alone.config.label2id == {"bad": 0, "good": 1}
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.base.embeddings.word_embeddings.weight.zero_()
        changed, before = (m(**BATCH).topic_logits for m in (copied, model))
    assert not torch.equal(changed, before)


def test_what_cannot_be_a_head_is_refused() -> None:
    """A head of an unknown kind would be built as another."""
    head = {"task": SEQUENCES, "num_labels": 2}
    for heads, message in (
        ({"a": {"task": "causal_lm", "num_labels": 2}}, "to be one of .* got 'causal_lm'"),
        ({"a": {"task": SEQUENCES}}, "Expected num_labels or id2label of the head 'a'"),
        ({"no name": head}, "Expected the name of a head"),
        ({"items": head}, "Expected the name of a head"),
        ({}, "Expected at least one head"),
    ):
        with pytest.raises(ValueError, match=message):
            MultiHead.from_base(plain("topic", 1), heads)
    with pytest.raises(ValueError, match=r"one of the heads .* got 'genre'"):
        student().export_head("genre")
    with pytest.raises(ValueError, match="Expected models of one architecture"):
        MultiHead.from_heads({"a": plain("topic", 1), "b": BertForMaskedLM(bert())})
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 8, "vocab_size": 40}
    bart = BartConfig(**sizes, encoder_attention_heads=2, decoder_attention_heads=2)
    with pytest.raises(ValueError, match="around one encoder, got BartFor"):
        MultiHead(MultiHeadConfig(base_config=bart.to_dict(), heads={"a": head}))
