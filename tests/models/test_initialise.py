"""Students made of parts of their teacher: its layers, its width, its vocabulary."""

import copy
import doctest
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from tiny_models import CASES
from tiny_recipes import bert, recipe
from torch import Tensor, nn

from hf_distill import student_from_teacher
from hf_distill.cli import main
from hf_distill.models.initialise import depth, importance
from hf_distill.recipe import RecipeError, load_recipe
from hf_distill.recipe.labels import CLASS, Labels
from hf_distill.recipe.models import Models
from hf_distill.recipe.planning import PreparedRecipe

Options = dict[str, Any]
Make = Callable[[], Any]
Inputs = dict[str, Tensor]

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
ENDS: Options = {"bos_token_id": 1, "eos_token_id": 2}
GPT2: Options = {
    **ENDS,
    **{"vocab_size": 40, "n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 32},
}
DISTIL: Options = {"vocab_size": 40, "dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 24}
T5: Options = {
    **{"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 4, "num_heads": 2},
    **{"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
}
BART: Options = {
    **{"vocab_size": 40, "d_model": 16, "max_position_embeddings": 32},
    **{"encoder_layers": 4, "encoder_attention_heads": 2, "encoder_ffn_dim": 24},
    **{"decoder_layers": 4, "decoder_attention_heads": 2, "decoder_ffn_dim": 24},
    **{"pad_token_id": 0, "forced_eos_token_id": 2, "decoder_start_token_id": 2, **ENDS},
}
VIT: Options = {**SIZES, "num_hidden_layers": 4, "image_size": 32, "patch_size": 16}
RESNET: Options = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [3, 4]}
IDS = torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(0))


def from_zoo(head: str, **changes: Any) -> Make:
    """A model of the zoo with 4 layers."""
    return lambda: CASES[head].model(_changed(CASES[head].config(), **changes))


def _changed(config: Any, **changes: Any) -> Any:
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def whisper_encoder() -> Any:
    config = _changed(CASES["speech_seq2seq"].config(), encoder_layers=4, num_hidden_layers=4)
    return tf.WhisperForAudioClassification(config)


def clip() -> Any:
    config = CASES["dual_encoder"].config()
    config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers = 4, 3
    return tf.CLIPModel(config)


def resnet() -> Any:
    model = tf.ResNetForImageClassification(tf.ResNetConfig(**RESNET, layer_type="basic"))
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return model


def ids() -> Inputs:
    return {"input_ids": IDS}


def both() -> Inputs:
    return {"input_ids": IDS, "decoder_input_ids": IDS.flip(1)}


def features() -> Inputs:
    return {"input_features": torch.randn(2, 8, 60)}


def pixels() -> Inputs:
    return {"pixel_values": torch.randn(2, 3, 32, 32)}


def t5() -> Any:
    return tf.T5ForConditionalGeneration(tf.T5Config(**T5, num_decoder_layers=3))


def bart() -> Any:
    return tf.BartForConditionalGeneration(tf.BartConfig(**BART))


def gpt2() -> Any:
    return tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2))


TAKEN: dict[str, tuple[Make, str, Callable[[], Inputs]]] = {
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
        pixels,
    ),
    "gpt2": (gpt2, "transformer.h", ids),
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
    "whisper_encoder": (whisper_encoder, "encoder.layers", features),
}
STACKED: dict[str, tuple[Make, Any, dict[str, list[int]], Callable[[], Inputs], str]] = {
    "t5": (
        t5,
        {"encoder": [1, 3], "decoder": 2},
        {"encoder.block": [0, 2], "decoder.block": [1]},
        both,
        r"\.(o|wo)\.",
    ),
    "t5_decoder": (t5, {"decoder": "last:1"}, {"decoder.block": [0, 1]}, both, r"\.(o|wo)\."),
    "whisper": (
        from_zoo("speech_seq2seq", encoder_layers=4, decoder_layers=4),
        {"encoder": 3, "decoder": 2},
        {"model.encoder.layers": [1], "model.decoder.layers": [1, 2]},
        lambda: {**features(), "decoder_input_ids": IDS},
        r"out_proj|fc2",
    ),
    "clip": (
        clip,
        {"text": "first:2", "vision": [0, 2]},
        {"text_model.encoder.layers": [2, 3], "vision_model.encoder.layers": [1]},
        lambda: {**pixels(), "input_ids": IDS},
        r"out_proj|fc2",
    ),
    "resnet": (
        resnet,
        [2, 3],
        {"resnet.encoder.stages.0.layers": [1], "resnet.encoder.stages.1.layers": [1]},
        pixels,
        r"layer\.1\.normalization\.(weight|bias)",
    ),
}
"""Model, layers, what that leaves out, inputs, what a residual block adds its result by."""


def stirred(model: Any) -> Any:
    """Away from the start, where every layer does little."""
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def outputs(model: Any, inputs: Inputs, **options: Any) -> Tensor:
    with torch.no_grad():
        result = model(**inputs, **options)
    return result.logits_per_text if "logits_per_text" in result else result[0]


def check_own(student: Any, teacher: Any, before: dict[str, Tensor], config: Options) -> None:
    """The student shares nothing with its teacher, which is as it was."""
    assert type(student) is type(teacher)
    theirs = {p.data_ptr() for p in teacher.parameters()}
    assert not {p.data_ptr() for p in student.parameters()} & theirs
    assert teacher.config.to_dict() == config
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def check_reload(student: Any, folder: Path, inputs: Inputs) -> None:
    """A saved student is the same one after it is loaded."""
    student.save_pretrained(folder)
    loaded, told = type(student).from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    assert torch.equal(outputs(loaded.eval(), inputs), outputs(student, inputs))


def snapshot(model: Any) -> tuple[dict[str, Tensor], Options]:
    return {k: v.clone() for k, v in model.state_dict().items()}, model.config.to_dict()


# ---- depth -----------------------------------------------------------------------------------


class Skip(nn.Module):
    """Passes on what comes in: what a model does without a layer, found without rebuilding it."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


@pytest.mark.parametrize("layers", [(0, 3), (2,)], ids=str)
@pytest.mark.parametrize("name", TAKEN)
def test_depth(name: str, layers: tuple[int, ...], tmp_path: Path) -> None:
    """A layer in the wrong place, or with the wrong kind of attention, still gives outputs."""
    make, path, make_inputs = TAKEN[name]
    model, inputs = stirred(make()), make_inputs()
    state = snapshot(model)
    student = student_from_teacher(model, layers).eval()
    skipping = copy.deepcopy(model)
    stack: Any = skipping.get_submodule(path)
    for index in set(range(4)) - set(layers):
        stack[index] = Skip()
    ours = outputs(student, inputs)
    torch.testing.assert_close(ours, outputs(skipping, inputs, use_cache=False))
    assert (outputs(model, inputs) - ours).abs().max() > 1e-4
    assert student.config.num_hidden_layers == len(layers)
    check_own(student, model, *state)
    check_reload(student, tmp_path, inputs)


@pytest.mark.parametrize("name", STACKED)
def test_depth_of_several_stacks(name: str, tmp_path: Path) -> None:
    """The decoder's layers for the encoder's, or a stage cut at the wrong end. What is left out is
    found by blocks that add nothing. T5's biases of the first layer serve all of them."""
    make, layers, left_out, make_inputs, adds = STACKED[name]
    model, inputs = stirred(make()), make_inputs()
    state = snapshot(model)
    student = student_from_teacher(model, layers).eval()
    skipping = copy.deepcopy(model)
    for path, indices in left_out.items():
        for index in indices:
            for key, value in skipping.get_submodule(f"{path}.{index}").named_parameters():
                if re.search(adds, f".{key}"):
                    value.data.zero_()
    ours = outputs(student, inputs)
    torch.testing.assert_close(ours, outputs(skipping, inputs))
    assert (outputs(model, inputs) - ours).abs().max() > 1e-4
    for path, indices in left_out.items():
        old: Any = model.get_submodule(path)
        new: Any = student.get_submodule(path)
        assert len(new) == len(old) - len(indices)
    check_own(student, model, *state)
    check_reload(student, tmp_path, inputs)


@pytest.mark.parametrize(
    ("make", "layers", "make_inputs"),
    [(make, 4, inputs) for make, _, inputs in TAKEN.values()]
    + [
        (t5, {"encoder": 4, "decoder": 3}, both),
        (bart, None, both),
        (clip, {"text": 4}, STACKED["clip"][3]),
        (resnet, [3, 4], pixels),
    ],
    ids=[*TAKEN, "t5", "bart", "clip", "resnet"],
)
def test_all_layers_are_the_teacher(
    make: Make, layers: Any, make_inputs: Callable[[], Inputs]
) -> None:
    """A weight left at its random start, or rounded twice, is a worse student and no error."""
    dtype = torch.bfloat16
    teacher, inputs = stirred(make()).to(dtype), make_inputs()
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    teacher.requires_grad_(False)
    state = torch.get_rng_state()
    student = student_from_teacher(teacher, layers)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(outputs(student, inputs), outputs(teacher, inputs))
    assert student.config.to_dict() == teacher.config.to_dict()
    assert not student.training
    assert {p.dtype for p in student.parameters()} == {dtype}
    frozen = [name for name, p in student.named_parameters() if not p.requires_grad]
    fixed = [n for n, p in type(teacher)(teacher.config).named_parameters() if not p.requires_grad]
    assert frozen == fixed  # Whisper's sinusoids alone


@pytest.mark.parametrize(
    ("layers", "count", "expected"),
    [
        (6, 12, [0, 2, 4, 7, 9, 11]),  # DistilBERT
        (2, 32, [0, 31]),  # distil-whisper
        (3, 12, [0, 6, 11]),
        (1, 12, [0]),
        (4, 4, [0, 1, 2, 3]),
        ("2", 4, [0, 3]),
        ("uniform:3", 5, [0, 2, 4]),
        ("first:3", 12, [0, 1, 2]),  # BERT-PKD
        ("last:2", 12, [10, 11]),
        ("0, 3,5", 6, [0, 3, 5]),
        ("3,", 6, [3]),
        ([4, 1], 6, [4, 1]),
    ],
)
def test_picked_layers(layers: Any, count: int, expected: list[int]) -> None:
    """The one number that is a count and the one that is an index look the same."""
    assert depth.pick_layers(layers, count) == expected


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (0, "between 1 and 4, got 0"),
        (5, "between 1 and 4, got 5"),
        ("first:9", "between 1 and 4, got 9"),
        ("skip:2", r"one of \['uniform:3', 'first:3', 'last:3'\], got 'skip:2'"),
        ("first:0,1", "got 'first:0,1'"),
        ("0,x", "got '0,x'"),
        ("", "got ''"),
        ("-1", "got '-1'"),
        ([], r"layers between 0 and 3, got \[\]"),
        ("0,4", r"layers between 0 and 3, got \[0, 4\]"),
        ((-1,), r"layers between 0 and 3, got \[-1\]"),
        ((1, 1), r"different layers between 0 and 3, got \[1, 1\]"),
    ],
)
def test_layers_that_are_not_there(layers: Any, message: str) -> None:
    """A negative index would count from the end, a repeated one would double a layer."""
    with pytest.raises(ValueError, match=message):
        depth.pick_layers(layers, 4)


def test_a_student_of_layers_generates() -> None:
    """Layers that keep their old place write to cache entries that are not theirs."""
    student: Any = student_from_teacher(TAKEN["llama"][0](), (1, 3)).eval()
    options: Options = {
        "do_sample": False,
        "max_new_tokens": 5,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    with_cache = student.generate(IDS, use_cache=True, **options)
    without = student.generate(IDS, use_cache=False, **options)
    assert torch.equal(with_cache, without)


def test_generation_settings_follow() -> None:
    """Whisper's word times come from heads of layers that have moved, or are gone."""
    teacher = STACKED["whisper"][0]()
    teacher.generation_config.alignment_heads = [[1, 0], [3, 1], [0, 1]]
    teacher.generation_config.max_new_tokens = 7
    student = student_from_teacher(teacher, {"decoder": [0, 3]})
    assert student.generation_config.alignment_heads == [[1, 1], [0, 1]]
    assert student.generation_config.max_new_tokens == 7
    assert teacher.generation_config.alignment_heads == [[1, 0], [3, 1], [0, 1]]


@pytest.mark.parametrize(
    ("make", "layers", "message"),
    [
        (t5, 2, r"layers of \['encoder', 'decoder'\] of T5.* by name, as \{'encoder': 2\}, got 2"),
        (t5, {"coder": 2}, r"of \['encoder', 'decoder'\].*, got \['coder'\]"),
        (clip, 2, r"\['vision', 'text'\] of CLIPModel by name"),
        (from_zoo("causal_lm"), {"decoder": 1}, r"got \['decoder'\]"),
        (resnet, 3, r"blocks of each of the 2 stages of ResNet.* at most \[3, 4\], got 3"),
        (resnet, [3, 5], r"at most \[3, 4\], got \[3, 5\]"),
        (from_zoo("semantic_segmentation"), [1, 1], "GroupNorm|differ in .*batch_norm"),
        (
            lambda: tf.BeitForImageClassification(tf.BeitConfig(**VIT)),
            (0, 1),
            "config of BeitFor.*out_features.*Build this student from a config",
        ),
        (
            lambda: tf.DeepseekV3ForCausalLM(
                tf.DeepseekV3Config(
                    **LANGUAGE,
                    **{"num_key_value_heads": 2, "first_k_dense_replace": 1, "n_group": 1},
                    **{"n_routed_experts": 2, "num_experts_per_tok": 1, "topk_group": 1},
                    **{"q_lora_rank": 8, "kv_lora_rank": 8, "moe_intermediate_size": 8},
                    **{"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4},
                )
            ),
            (1, 2),
            r"\[\[1, 2\]\] of Deepseek.*differ in .*experts.*Keep layer 0 first",
        ),
    ],
)
def test_layers_that_cannot_be_taken(make: Make, layers: Any, message: str) -> None:
    """Half of a model that looks like a whole one, or one that does not load again."""
    with pytest.raises(ValueError, match=message):
        student_from_teacher(make(), layers)


# ---- width -----------------------------------------------------------------------------------


@dataclass
class Family:
    """A model that can be grown: its class, its config's small and large sizes."""

    kind: Any
    config: Any
    small: Options
    large: Options
    inputs: Callable[[], Inputs] = ids
    gain: float = 1.0
    """How much larger the logits become where the head shares the grown embeddings."""
    parts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Fused module -> lengths of its parts in the small model."""
    hidden: int = 8


def sizes(hidden: str, heads: str, units: str, *more: str) -> tuple[Options, Options]:
    """The same names with the small and with the large sizes: twice as many heads of 4."""
    rest = dict.fromkeys(more, 1)
    small = {hidden: 8, heads: 2, units: 6, **rest}
    return small, {name: 2 * value for name, value in small.items()}


def _pair(*tables: tuple[Options, Options]) -> tuple[Options, Options]:
    small, large = zip(*tables, strict=True)
    return {k: v for t in small for k, v in t.items()}, {k: v for t in large for k, v in t.items()}


PLAIN = sizes("hidden_size", "num_attention_heads", "intermediate_size")
GROUPED = sizes("hidden_size", "num_attention_heads", "intermediate_size", "num_key_value_heads")
SIDES = _pair(
    sizes("d_model", "encoder_attention_heads", "encoder_ffn_dim"),
    sizes("d_model", "decoder_attention_heads", "decoder_ffn_dim"),
)
WORDS: Options = {"vocab_size": 40, "num_hidden_layers": 2, "max_position_embeddings": 32}
FAMILIES: dict[str, Family] = {
    "bert": Family(
        tf.BertForSequenceClassification, lambda **s: tf.BertConfig(**WORDS, **s), *PLAIN
    ),
    "distilbert": Family(
        tf.DistilBertForSequenceClassification,
        lambda **s: tf.DistilBertConfig(**{**DISTIL, "n_layers": 2, **s}),
        *sizes("dim", "n_heads", "hidden_dim"),
    ),
    "vit": Family(
        tf.ViTForImageClassification,
        lambda **s: tf.ViTConfig(image_size=32, patch_size=16, num_hidden_layers=2, **s),
        *PLAIN,
        inputs=pixels,
    ),
    "llama": Family(
        tf.LlamaForCausalLM,
        lambda **s: tf.LlamaConfig(**WORDS, **s, rms_norm_eps=1e-12, mlp_bias=True),
        *GROUPED,
    ),
    "qwen3": Family(
        tf.Qwen3ForCausalLM,
        lambda **s: tf.Qwen3Config(**WORDS, **s, rms_norm_eps=1e-12, head_dim=6),
        *GROUPED,
    ),
    "one_key_head": Family(
        tf.LlamaForCausalLM,
        lambda **s: tf.LlamaConfig(**WORDS, **s, rms_norm_eps=1e-12, num_key_value_heads=1),
        *PLAIN,
    ),
    "phi3": Family(
        tf.Phi3ForCausalLM,
        lambda **s: tf.Phi3Config(**WORDS, **s, **ENDS, rms_norm_eps=1e-12, pad_token_id=0),
        *GROUPED,
        parts={"qkv_proj": (8, 4, 4), "gate_up_proj": (6, 6)},
    ),
    "gpt2": Family(
        tf.GPT2LMHeadModel,
        lambda **s: tf.GPT2Config(**{**GPT2, "n_layer": 2, **s}, tie_word_embeddings=False),
        *sizes("n_embd", "n_head", "n_inner"),
        parts={"c_attn": (8, 8, 8)},
    ),
    "gpt_neox": Family(
        tf.GPTNeoXForCausalLM, lambda **s: tf.GPTNeoXConfig(**WORDS, **s, **ENDS), *PLAIN
    ),
    "t5": Family(
        tf.T5ForConditionalGeneration,
        lambda **s: tf.T5Config(
            **{**T5, "num_layers": 2, "d_kv": 4, "layer_norm_epsilon": 1e-12, **s}
        ),
        *sizes("d_model", "num_heads", "d_ff"),
        inputs=both,
        gain=2**0.5,  # T5 divides by the square root of the width
    ),
    "bart": Family(
        tf.BartForConditionalGeneration,
        lambda **s: tf.BartConfig(**{**BART, "encoder_layers": 2, "decoder_layers": 1, **s}),
        *SIDES,
        inputs=both,
        gain=2,
    ),
    "whisper": Family(
        tf.WhisperForConditionalGeneration,
        lambda **s: _changed(CASES["speech_seq2seq"].config(), **s),
        *SIDES,
        inputs=STACKED["whisper"][3],
        gain=2,
    ),
}
READS = (
    r"\.(query|key|value|q|k|v|[qkv]_(proj|lin)|wi|lin1|fc1|(gate|up|gate_up|qkv)_proj|c_attn|c_fc"
    r"|query_key_value|dense_h_to_4h)\.|intermediate\.dense|pooler\.dense|pre_classifier"
)
WRITES = (
    r"\.(o|wo|o_proj|out_proj|out_lin|lin2|fc2|down_proj|c_proj|dense_4h_to_h|conv2)\."
    r"|output\.dense|attention\.dense"
)
HEADS = r"^(classifier|lm_head|proj_out|embed_out)\."


def grow(
    name: str, value: Tensor, shape: torch.Size, parts: tuple[int, ...], conv1d: bool
) -> Tensor:
    """What a weight is in a model twice as wide that computes the same.

    Each new channel between the layers is a copy of an old one, so that every norm sees the same
    mean and the same square; nothing reads it. New heads and units compute anything, and nothing
    reads them. So the old model is the first half of every axis, by construction.
    """
    if re.search(HEADS, name):
        ways = ("", "0")
    elif re.search(READS, name):
        ways = ("?", "0")
    elif re.search(WRITES, name):
        ways = ("=", "0")
    elif name.endswith("relative_attention_bias.weight"):
        ways = ("", "?")
    else:  # embeddings, norms, the first convolution
        ways = ("=", "=", "=")
    if value.dim() == 2 and conv1d:  # GPT-2 keeps its matrices the other way round
        ways = ways[::-1]
    for axis, (old, new) in enumerate(zip(value.shape, shape, strict=True)):
        if old == new:
            continue
        way = ways[axis] if axis < len(ways) else ""
        pieces = []
        for piece in value.split(parts if sum(parts) == old else [old], axis):
            more = {"=": piece, "0": torch.zeros_like(piece), "?": torch.randn_like(piece)}[way]
            pieces += [piece, more]
        value = torch.cat(pieces, axis)
    return value


def grown(family: Family) -> tuple[Any, Any]:
    """A small model, and a wide one that computes the same."""
    small = stirred(family.kind(family.config(**family.small)))
    wide = family.kind(family.config(**family.large)).eval()
    own = small.state_dict()
    for name, value in wide.named_parameters():
        module = name.split(".")[-2] if "." in name else ""
        conv1d = type(wide.get_submodule(name.rpartition(".")[0])).__name__ == "Conv1D"
        parts = family.parts.get(module, ())
        value.data = grow(name, own[name], value.shape, parts, conv1d)
        assert value.shape == wide.state_dict()[name].shape
    return small, wide


@pytest.mark.parametrize("name", FAMILIES)
def test_width(name: str, tmp_path: Path) -> None:
    """Heads cut in half, keys of other queries, a fused matrix cut as if it were one: all of them
    have the right shapes. A model that was grown from a small one must give that one back."""
    family = FAMILIES[name]
    small, wide = grown(family)
    inputs = family.inputs()
    torch.testing.assert_close(
        outputs(wide, inputs), family.gain * outputs(small, inputs), rtol=1e-3, atol=1e-4
    )  # the layout of this test is the model's
    state = snapshot(wide)
    student = student_from_teacher(wide, hidden_size=family.hidden)
    ours, expected = student.state_dict(), small.state_dict()
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(ours[key], value), key
    assert torch.equal(outputs(student, inputs), outputs(small, inputs))
    dropped = {"_name_or_path", "architectures"}
    theirs = small.config.to_dict()
    assert {k: v for k, v in student.config.to_dict().items() if k not in dropped} == {
        k: v for k, v in theirs.items() if k not in dropped
    }
    check_own(student, wide, *state)
    check_reload(student, tmp_path, inputs)


def test_units_alone() -> None:
    """The first units of each layer; the output of the others is what is lost, and no more."""
    teacher = stirred(gpt2())
    student = student_from_teacher(teacher, 2, intermediate_size=10)
    assert student.config.n_inner == 10
    assert student.config.n_embd == 16
    layer, old = student.transformer.h[1].mlp, teacher.transformer.h[3].mlp
    assert torch.equal(layer.c_fc.weight, old.c_fc.weight[:, :10])
    assert torch.equal(layer.c_fc.bias, old.c_fc.bias[:10])
    assert torch.equal(layer.c_proj.weight, old.c_proj.weight[:10])


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            gpt2,
            {"hidden_size": 12},
            r"whole heads.* 2 \(in groups of 1\): one of \[8, 16\], got 12",
        ),
        (gpt2, {"hidden_size": 32}, r"one of \[8, 16\], got 32"),
        (
            lambda: FAMILIES["llama"].kind(FAMILIES["llama"].config(**FAMILIES["llama"].large)),
            {"hidden_size": 4},
            r"\(in groups of 2\): one of \[8, 16\], got 4",
        ),
        (gpt2, {"intermediate_size": 65}, r"between 1 and the teacher's \(64,\), got 65"),
        (
            lambda: tf.BertModel(tf.BertConfig(**{**LANGUAGE, "intermediate_size": 25})),
            {"hidden_size": 8},
            "got none, and the proportion to hidden_size is no whole number",
        ),
        (from_zoo("ctc"), {"hidden_size": 8}, "grouped or repar.*pos_conv_embed.*depth"),
        (clip, {"hidden_size": 8}, "CLIPModel to have one hidden_size .* got None and"),
        (resnet, {"hidden_size": 8}, "ResNet.* to have one hidden_size"),
        (
            lambda: tf.BloomForCausalLM(
                tf.BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=2)
            ),
            {"hidden_size": 8},
            r"query_key_value.* has one of 48 that becomes 24",
        ),
    ],
)
def test_widths_that_cannot_be_cut(make: Make, options: Options, message: str) -> None:
    """A guess at what an axis means gives a student of noise that trains."""
    with pytest.raises(ValueError, match=message):
        student_from_teacher(make(), **options)


def test_depth_width_and_vocabulary_together(tmp_path: Path) -> None:
    """Each was right alone, in a model whose names and sizes the others had not changed."""
    family = FAMILIES["qwen3"]
    _, wide = grown(family)
    student = student_from_teacher(wide, [1], hidden_size=8, vocabulary=30)
    layer, old = student.model.layers[0], wide.model.layers[1]
    assert torch.equal(student.lm_head.weight, wide.lm_head.weight[:30, :8])
    assert torch.equal(layer.self_attn.k_proj.weight, old.self_attn.k_proj.weight[:6, :8])
    check_reload(student, tmp_path, {"input_ids": IDS % 30})


# ---- vocabulary ------------------------------------------------------------------------------

KEPT = [*range(3), *range(39, 9, -1)]
"""Special tokens first, the others in another order."""


@pytest.mark.parametrize(
    ("make", "make_inputs"),
    [
        (lambda: tf.BertForMaskedLM(tf.BertConfig(**LANGUAGE)), ids),
        (TAKEN["distilbert"][0], ids),
        (gpt2, ids),
        (TAKEN["llama"][0], ids),
        (t5, both),
        (bart, both),
        (STACKED["whisper"][0], STACKED["whisper"][3]),
    ],
    ids=["bert", "distilbert", "gpt2", "llama", "t5", "bart", "whisper"],
)
def test_vocabulary(make: Make, make_inputs: Callable[[], Inputs], tmp_path: Path) -> None:
    """A bias of the head in the old order speaks for other tokens than its weights."""
    teacher = stirred(make())
    if hasattr(teacher, "final_logits_bias"):
        teacher.final_logits_bias.normal_()
    state = snapshot(teacher)
    student = student_from_teacher(teacher, vocabulary=KEPT)
    new = {k: v % len(KEPT) if "ids" in k else v for k, v in make_inputs().items()}
    kept = torch.tensor(KEPT)
    old = {k: kept[v] if "ids" in k else v for k, v in new.items()}
    torch.testing.assert_close(outputs(student, new), outputs(teacher, old)[..., KEPT])
    assert student.config.vocab_size == student.get_input_embeddings().num_embeddings == len(KEPT)
    check_own(student, teacher, *state)
    check_reload(student, tmp_path, new)


def test_special_tokens_follow() -> None:
    """A student that ends at the old id never ends."""
    teacher = bart()
    teacher.generation_config.suppress_tokens = [5, 7, 9]
    kept = [7, 2, 0, 1, 9]
    student = student_from_teacher(teacher, vocabulary=kept)
    for settings in (student.config, student.generation_config):
        assert (settings.pad_token_id, settings.eos_token_id, settings.bos_token_id) == (2, 1, 3)
        assert settings.decoder_start_token_id == 1
    assert student.generation_config.suppress_tokens == [0, 4]
    assert student.model.shared.padding_idx == 2
    assert teacher.config.eos_token_id == 2


@pytest.mark.parametrize(
    ("make", "vocabulary", "message"),
    [
        (bart, [3, 4], r"special tokens, but \[.\] of \w+_token_id are not in it"),
        (gpt2, 41, "between 0 and 39, or a number of them up to 40, got 41"),
        (gpt2, 0, "got 0"),
        (gpt2, [1, 2, 2], r"different ids .* got \[1, 2, 2\]"),
        (gpt2, [1, 2, -3], r"got \[1, 2, -3\]"),
        (resnet, 3, "with a vocabulary, got a resnet without"),
    ],
)
def test_vocabularies_that_cannot_be_cut(make: Make, vocabulary: Any, message: str) -> None:
    """A negative id would take the last row; a lost end token is found at the first generation."""
    with pytest.raises(ValueError, match=message):
        student_from_teacher(make(), vocabulary=vocabulary)


def test_tokens_that_cannot_be_translated() -> None:
    """Whisper would begin with the old id of its language, some other word."""
    teacher = STACKED["whisper"][0]()
    teacher.generation_config.lang_to_id = {"<|en|>": 7}
    with pytest.raises(ValueError, match=r"can be translated, got .'lang_to_id'.*Set them to None"):
        student_from_teacher(teacher, vocabulary=KEPT)


# ---- recipes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [[0, 2], 2, "first:2"], ids=str)
def test_a_recipe(tmp_path: Path, layers: Any) -> None:
    """The key that was forgotten would leave the student as wide as its teacher."""
    student = {"from_teacher_layers": layers, "hidden_size": 8}
    labels = Labels(CLASS, ["bad", "good"])
    models = Models(load_recipe(recipe(tmp_path, student=student)), labels)
    made, teacher = models.learner("student", 0), models.teacher(0)
    assert (made.config.num_hidden_layers, made.config.hidden_size) == (2, 8)
    layer, old = (
        made.bert.encoder.layer[1],
        teacher.bert.encoder.layer[1 if layers == "first:2" else 2],
    )
    assert torch.equal(layer.output.dense.weight, old.output.dense.weight[:8, :12])
    wide = recipe(tmp_path, student={"from_teacher_layers": layers})
    assert models.identities() != Models(load_recipe(wide), labels).identities()


def test_a_recipe_measures_what_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would keep evenly spaced layers, or measure on the first examples, which may be alike."""
    student = {"from_teacher_layers": 1, "importance": 4}
    plan = PreparedRecipe(load_recipe(recipe(tmp_path, student=student)), say=lambda line: None)
    teacher = plan.models.teacher(0)
    with torch.no_grad():
        for parameter in teacher.bert.encoder.layer[0].parameters():
            parameter *= 0.01  # a layer that hardly does anything
    monkeypatch.setattr(plan.models, "teacher", lambda seed: copy.deepcopy(teacher))
    data, collate = plan.data["train"], plan.task.collator(plan.processor)
    rows = [data[i * (len(data) // 4)] for i in range(4)]
    expected = importance(teacher, [collate(rows)]).layers["bert.encoder.layer"]
    assert int(expected.argmax()) > 0
    made = plan.models.learner("student", 0)
    kept = teacher.bert.encoder.layer[int(expected.argmax())]
    assert torch.equal(made.bert.encoder.layer[0].output.dense.weight, kept.output.dense.weight)
    (measured,) = list(plan.models.batches(4))
    assert torch.equal(measured["input_ids"], collate(rows)["input_ids"])
    most = list(plan.models.batches(len(data) - 8))  # evenly, and not the first ones
    last = torch.tensor(data[len(data) - 2]["input_ids"])
    assert torch.equal(most[-1]["input_ids"][-1][: len(last)], last)
    plain = load_recipe(recipe(tmp_path, student={"from_teacher_layers": 1}))
    assert plan.models.identities() != Models(plain, plan.examples.labels).identities()


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"from_teacher_layers": "uniform:1", "importance": 4}, "is a number, got 'uniform:1'"),
        ({"from_teacher_layers": 1, "importance": 0}, "32 say, got 0"),
        (
            {"from_teacher_layers": None, "config": bert(1), "importance": 4},
            "is a number, got None",
        ),
    ],
)
def test_a_recipe_whose_importance_decides_nothing(
    tmp_path: Path, student: dict[str, Any], message: str
) -> None:
    """The key would be ignored, and the student another one than its author believes."""
    with pytest.raises(RecipeError, match=f"`student.importance`.*{message}"):
        load_recipe(recipe(tmp_path, student=student))


def test_a_recipe_with_a_width_of_nothing(tmp_path: Path) -> None:
    """The width of another model stands in its config; here it would do nothing."""
    student = {"from_teacher_layers": None, "config": bert(1), "hidden_size": 8}
    with pytest.raises(RecipeError, match=r"`student\.hidden_size` cuts the width of"):
        load_recipe(recipe(tmp_path, student=student))


# ---- the command -----------------------------------------------------------------------------


def saved(folder: Path, model: Any, with_tokenizer: bool = True) -> str:
    recipe(folder)  # for its tokenizer
    teacher = folder / "teacher"
    model.save_pretrained(teacher)
    if with_tokenizer:
        tf.AutoTokenizer.from_pretrained(folder / "tokenizer").save_pretrained(teacher)
    return str(teacher)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A student without its tokenizer, or one that says of itself that it is the teacher."""
    teacher = stirred(tf.BertForMaskedLM(tf.BertConfig(**LANGUAGE))).bfloat16()
    source, output = saved(tmp_path, teacher), tmp_path / "new" / "student"
    words = ["init-student", source, "--layers", "0,2", "--hidden-size", "8", "--output"]
    assert main([*words, str(output)]) == 0
    told = capsys.readouterr().out
    for line in (
        f"teacher: {source}, BertForMaskedLM, {teacher.num_parameters():,} parameters",
        "kept: layers 0, 2 of 4 in bert.encoder.layer",
        "config: hidden_size 16 → 8",
        "config: num_attention_heads 2 → 1",
        "config: num_hidden_layers 4 → 2",
    ):
        assert line in told.splitlines()
    student = tf.AutoModelForMaskedLM.from_pretrained(output)
    assert f"student: {output}, {student.num_parameters():,} parameters (" in told
    assert student.dtype == torch.bfloat16
    weight = teacher.bert.encoder.layer[2].intermediate.dense.weight
    assert torch.equal(student.bert.encoder.layer[1].intermediate.dense.weight, weight[:12, :8])
    assert tf.AutoTokenizer.from_pretrained(output).tokenize("good film") == ["good", "film"]
    assert [path.name for path in output.parent.iterdir()] == ["student"]


def test_the_command_with_several_stacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty folder is no obstacle; a teacher without a tokenizer is no error, but is told."""
    source, output = saved(tmp_path, t5(), with_tokenizer=False), tmp_path / "student"
    output.mkdir()
    words = ["init-student", source, "--layers", "encoder=2", "decoder=first:1", "--output"]
    assert main([*words, str(output)]) == 0
    assert "no tokenizer or processor: " in capsys.readouterr().out
    student = tf.T5ForConditionalGeneration.from_pretrained(output)
    assert (len(student.encoder.block), len(student.decoder.block)) == (2, 1)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "Expected --layers, --hidden-size, --intermediate-size or --vocabulary-size"),
        (["--layers", "9"], 2, "between 1 and 4, got 9"),
        (["--layers", "2", "3"], 2, "by the name of each stack ('encoder=6 decoder=2'), got '2 3'"),
        (["--layers", "encoder=1"], 2, "got ['encoder']"),
        (["--hidden-size", "9"], 2, "one of [8, 16], got 9"),
        (["--vocabulary-size", "8"], 2, "for all 14 tokens of the teacher's tokenizer, got 8"),
    ],
)
def test_a_wrong_command_writes_nothing(
    tmp_path: Path, words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script that goes on would train whatever stood in the folder."""
    source, output = saved(tmp_path, gpt2()), tmp_path / "out" / "student"
    assert main(["init-student", source, *words, "--output", str(output)]) == code
    assert message in capsys.readouterr().err
    assert not output.parent.exists()


def test_the_command_keeps_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trained student of last week lies under the same name."""
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "model.safetensors").write_text("last week")
    words = ["init-student", "nothing", "--layers", "1", "--output", str(tmp_path / "student")]
    assert main(words) == 2
    assert "new or empty folder" in capsys.readouterr().err
    assert (tmp_path / "student" / "model.safetensors").read_text() == "last week"


def test_the_command_without_a_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stack trace of the Hub's client for a mistyped folder."""
    words = ["init-student", str(tmp_path / "no"), "--layers", "1", "--output"]
    assert main([*words, str(tmp_path / "student")]) in (1, 2)
    assert str(tmp_path / "no") in capsys.readouterr().err


def test_a_write_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a folder loads, with random weights for what is missing."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    source, output = saved(tmp_path, gpt2()), tmp_path / "out" / "student"
    monkeypatch.setattr(tf.PreTrainedTokenizerFast, "save_pretrained", full)
    assert main(["init-student", source, "--layers", "1", "--output", str(output)]) == 1
    assert "no space left" in capsys.readouterr().err
    assert list(output.parent.iterdir()) == []


def test_the_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """argparse formats help when it is asked for: a stray % crashes only then."""
    with pytest.raises(SystemExit):
        main(["init-student", "--help"])
    assert "--layers encoder=12 decoder=2" in capsys.readouterr().out


def test_doctests() -> None:
    """An example in the documentation that is no longer true."""
    results = doctest.testmod(depth)
    assert results.attempted
    assert not results.failed
