"""Layer maps, and students made of some of a teacher's layers."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from zoo import CASES

from hf_distill import layer_map, take_layers

# ---- layer maps ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "student", "teacher", "expected"),
    [
        ("uniform", 2, 6, ((1, 3), (2, 6))),
        ("uniform", 4, 12, ((1, 3), (2, 6), (3, 9), (4, 12))),  # TinyBERT 4, 12: g(m) = 3m
        ("uniform", 3, 3, ((1, 1), (2, 2), (3, 3))),
        ("uniform", 1, 5, ((1, 5),)),
        ("uniform", 4, 2, ((1, 1), (2, 1), (3, 2), (4, 2))),
        ("skip", 3, 12, ((1, 4), (2, 8))),  # PKD-skip
        ("skip", 2, 4, ((1, 2),)),
        ("last", 2, 6, ((1, 5), (2, 6))),  # PKD-last
        ("last", 3, 3, ((1, 1), (2, 2), (3, 3))),
        (((0, 0), (1, 2)), 2, 6, ((0, 0), (1, 2))),
        ([[-1, -1], [-3, -7]], 2, 6, ((2, 6), (0, 0))),
        ("uniform", 0, 0, ((0, 0),)),  # a pooled embedding
    ],
)
def test_layer_map(spec: Any, student: int, teacher: int, expected: Any) -> None:
    """Off by one, every layer learns from its neighbour's teacher, and training looks normal."""
    assert layer_map(spec, student, teacher) == expected


@pytest.mark.parametrize(
    ("spec", "student", "teacher", "message"),
    [
        (
            "first",
            2,
            6,
            r"\['uniform', 'skip', 'last'\] or pairs \(.*\), got 'first'",
        ),
        ("skip", 1, 6, "student with 1 layer.*Use 'uniform' or explicit pairs"),
        ("last", 4, 2, "at least as many layers as the student, got 2 and 4.*Use 'uniform'"),
        ([(3, 1)], 2, 6, r"pair \(3, 1\): the student has layers 0 \(embeddings\) to 2, got 3"),
        ([(1, 7)], 2, 6, r"pair \(1, 7\): the teacher has layers 0 \(embeddings\) to 6, got 7"),
        ([(-4, 1)], 2, 6, "the student has layers .* to 2, got -4"),
        ([(1, 1), (1, -8)], 2, 6, "the teacher has layers .* to 6, got -8"),
    ],
)
def test_bad_layer_maps(spec: Any, student: int, teacher: int, message: str) -> None:
    """The papers count layers from 0, from 1, with and without embeddings."""
    with pytest.raises(ValueError, match=message):
        layer_map(spec, student, teacher)


@pytest.mark.parametrize("pair", [(1,), (1, 2, 3)])
def test_pairs_are_pairs(pair: tuple[int, ...]) -> None:
    """A triple read as a pair would leave a layer out."""
    with pytest.raises(ValueError, match="zip"):
        layer_map([pair], 2, 6)


# ---- students from layers --------------------------------------------------------------------

Options = dict[str, Any]
SIZES: Options = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
LANGUAGE: Options = {
    **SIZES,
    "vocab_size": 40,
    "max_position_embeddings": 32,
    "num_hidden_layers": 4,
}
QWEN: Options = {
    **LANGUAGE,
    "num_key_value_heads": 2,
    "use_sliding_window": True,
    "sliding_window": 3,
}
SMOL: Options = {
    **LANGUAGE,
    "num_key_value_heads": 2,
    "no_rope_layer_interval": 2,
    "pad_token_id": 0,
}
GPT2: Options = {"vocab_size": 40, "n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 32}
DISTIL: Options = {"vocab_size": 40, "dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 24}
T5: Options = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 4,
    "num_heads": 2,
}
IDS = torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(0))


def from_zoo(head: str, **changes: Any) -> Callable[[], Any]:
    """A model of the zoo with 4 layers."""
    return lambda: CASES[head].model(_changed(CASES[head].config(), **changes))


def _changed(config: Any, **changes: Any) -> Any:
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def whisper_encoder() -> Any:
    config = _changed(CASES["speech_seq2seq"].config(), encoder_layers=4, num_hidden_layers=4)
    return tf.WhisperForAudioClassification(config)


def ids() -> dict[str, Tensor]:
    return {"input_ids": IDS}


TAKEN: dict[str, tuple[Callable[[], Any], str, Callable[[], dict[str, Tensor]]]] = {
    "bert": (
        lambda: tf.BertForSequenceClassification(tf.BertConfig(**LANGUAGE)),
        "bert.encoder.layer",
        ids,
    ),
    "distilbert": (
        lambda: tf.DistilBertForMaskedLM(tf.DistilBertConfig(**DISTIL)),
        "distilbert.transformer.layer",
        ids,
    ),
    "vit": (
        from_zoo("image_classification", num_hidden_layers=4),
        "vit.layers",
        lambda: {"pixel_values": torch.randn(2, 3, 32, 32)},
    ),
    "gpt2": (lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2)), "transformer.h", ids),
    "llama": (from_zoo("causal_lm", num_hidden_layers=4), "model.layers", ids),
    "qwen2": (
        lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**QWEN, max_window_layers=2)),
        "model.layers",
        ids,
    ),
    "smollm3": (lambda: tf.SmolLM3ForCausalLM(tf.SmolLM3Config(**SMOL)), "model.layers", ids),
    "wav2vec2": (
        from_zoo("ctc", num_hidden_layers=4),
        "wav2vec2.encoder.layers",
        lambda: {"input_values": torch.randn(2, 400)},
    ),
    "whisper_encoder": (
        whisper_encoder,
        "encoder.layers",
        lambda: {"input_features": torch.randn(2, 8, 60)},
    ),
}


class Skip(nn.Module):
    """Passes on what comes in: what a model does without a layer, found without rebuilding it."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


@pytest.mark.parametrize("layers", [(0, 3), (1, 2), (3,)], ids=str)
@pytest.mark.parametrize("name", TAKEN)
def test_take_layers(name: str, layers: tuple[int, ...], tmp_path: Path) -> None:
    """A layer in the wrong place, or with the wrong kind of attention, still gives outputs."""
    make, path, make_inputs = TAKEN[name]
    torch.manual_seed(0)
    model, inputs = make().eval(), make_inputs()
    for parameter in model.parameters():  # away from the start, where every layer does little
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config_before = model.config.to_dict()

    student = take_layers(model, layers).eval()
    skipping = copy.deepcopy(model)
    stack: Any = skipping.get_submodule(path)
    for index in set(range(4)) - set(layers):
        stack[index] = Skip()
    with torch.no_grad():
        full, expected = model(**inputs)[0], skipping(**inputs, use_cache=False)[0]
        ours = student(**inputs)[0]
    torch.testing.assert_close(ours, expected)
    assert (full - ours).abs().max() > 1e-4

    assert type(student) is type(model)
    assert student.config.num_hidden_layers == len(layers)
    assert not {p.data_ptr() for p in student.parameters()} & {
        p.data_ptr() for p in model.parameters()
    }
    assert model.config.to_dict() == config_before
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    student.save_pretrained(tmp_path)
    loaded, told = type(student).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told.values()), told
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**inputs)[0], ours)


def test_a_student_of_layers_generates() -> None:
    """Layers that keep their old place write to cache entries that are not theirs."""
    torch.manual_seed(0)
    student: Any = take_layers(TAKEN["llama"][0](), (1, 3)).eval()
    options: Options = {
        "do_sample": False,
        "max_new_tokens": 5,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    with_cache = student.generate(IDS, use_cache=True, **options)
    without = student.generate(IDS, use_cache=False, **options)
    assert torch.equal(with_cache, without)


def test_an_encoder_of_an_encoder_decoder_may_shrink() -> None:
    """Where only one stack has that many layers there is nothing to confuse."""
    model = tf.T5ForConditionalGeneration(tf.T5Config(**T5, num_decoder_layers=2))
    student: Any = take_layers(model, (0, 2))
    assert (len(student.encoder.block), len(student.decoder.block)) == (2, 2)
    with pytest.raises(ValueError, match=r"relative_attention_bias.*Keep layer 0, or build"):
        take_layers(model, (1, 2))  # the position biases of all layers are in the first


@pytest.mark.parametrize(
    ("make", "layers", "message"),
    [
        (
            from_zoo("seq2seq_lm"),
            (0,),
            r"T5.* one list of 2 modules, found \['encoder.block",
        ),
        (from_zoo("speech_seq2seq"), (0,), r"found \['model.encoder.layers', 'model.decoder"),
        (from_zoo("semantic_segmentation"), (0,), "Segformer.*Build this student from a config"),
        (from_zoo("dual_encoder"), (0,), "CLIPModel to hold its layers in one list"),
        (
            lambda: tf.BeitForImageClassification(
                tf.BeitConfig(**SIZES, num_hidden_layers=4, image_size=32, patch_size=16)
            ),
            (0, 1),
            r"\[0, 1\] of BeitFor.*out_features.*build this student from a config",
        ),
        (from_zoo("causal_lm"), (), r"layers between 0 and 1, got \[\]"),
        (from_zoo("causal_lm"), (0, 2), r"layers between 0 and 1, got \[0, 2\]"),
        (from_zoo("causal_lm"), (-1,), r"layers between 0 and 1, got \[-1\]"),
        (from_zoo("causal_lm"), (1, 1), r"different layers between 0 and 1, got \[1, 1\]"),
    ],
)
def test_what_cannot_be_taken(
    make: Callable[[], Any], layers: tuple[int, ...], message: str
) -> None:
    """Half of a model that looks like a whole one, or one that does not load again."""
    with pytest.raises(ValueError, match=message):
        take_layers(make(), layers)
