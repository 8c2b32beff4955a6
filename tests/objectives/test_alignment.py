"""Layers named in one string, shapes of two models brought together, what is taken from a model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers as tf
from objective_table import MODELS
from tiny_models import CASES, collate
from torch.nn import functional as F

from hf_distill import HiddenStates, MiniLMv2, Needs, Signal, layer_map
from hf_distill.models.hooks import attention_projections, eager_attention
from hf_distill.models.pooling import pooled
from hf_distill.models.task_model import TaskModel
from hf_distill.objectives.base.alignment import (
    LayerPair,
    TransportPlan,
    align,
    as_map,
    build_projections,
    project,
    same_size,
)
from hf_distill.objectives.base.layers import module_pairs, parse_layers

# ---- layer maps in one string ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("0:0,4:2,8:4,12:6", ((0, 0), (2, 4), (4, 8), (6, 12))),
        (" 12:6 ", ((6, 12),)),
        ("-1:-1", ((-1, -1),)),
        ("1.0:0.5", ((0.5, 1.0),)),
        ("-1", ((-1, -1),)),
        ("a.b:c.d, e.1", (("c.d", "a.b"), ("e.1", "e.1"))),
        ([(1, 2), ("x.y", "z")], ((1, 2), ("x.y", "z"))),
        ("uniform", "uniform"),
    ],
)
def test_parse_layers(spec: Any, expected: Any) -> None:
    """In a string the teacher comes first; read the other way round, layers are out of range or,
    between models of one depth, silently swapped."""
    assert parse_layers(spec) == expected


def test_layer_maps_by_string_and_fraction() -> None:
    assert layer_map("0:0,4:2,8:4,12:6", 6, 12) == ((0, 0), (2, 4), (4, 8), (6, 12))
    assert layer_map("0.5:0.5,1.0:1.0", 6, 12) == ((3, 6), (6, 12))
    assert layer_map("emd", 2, 3) == ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3))
    assert module_pairs("t.1:s.0, 2:1") == (("s.0", "t.1"),)
    assert layer_map("t.1:s.0, 2:1", 2, 4) == ((1, 2),)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("unifrom", r"\['uniform', 'skip', 'last', 'emd'\], a string .* got 'unifrom'"),
        ("", "got ''"),
        ("1:2,,3:4", "got '1:2,,3:4'"),
        ([], r"got \[\]"),
        ([(1, 2, 3)], "pairs"),
        ("a.b:2", r"pair of layers or a pair of modules, got \(2, 'a.b'\)"),
        ("1.5:1.0", r"between 0.0 \(embeddings\) and 1.0 .*got 1.5"),
    ],
)
def test_bad_layer_strings(spec: Any, message: str) -> None:
    """A name with a typo would be looked for as a module, much later."""
    with pytest.raises(ValueError, match=message):
        parse_layers(spec)
    with pytest.raises(ValueError, match=message):
        HiddenStates(spec)


def test_a_layer_out_of_range_says_which_side() -> None:
    with pytest.raises(ValueError, match=r"the student has layers 0 .* to 6, got 12.*'teacher:stu"):
        layer_map("6:12", 6, 12)


# ---- shapes ------------------------------------------------------------------------------------


def test_as_map_drops_the_class_token_and_keeps_the_order() -> None:
    """Rows and columns swapped, or moved by the class token, compare other places."""
    patches = torch.arange(9.0).view(1, 9, 1).expand(2, 9, 4)
    for sequence in (patches, F.pad(patches, (0, 0, 1, 0), value=-5.0)):
        picture = as_map(sequence)
        assert picture.shape == (2, 4, 3, 3)
        assert torch.equal(picture[0, 0], torch.arange(9.0).view(3, 3))
    assert as_map(torch.zeros(2, 7, 4)).shape == (2, 4, 7)


def test_same_size_averages_areas() -> None:
    """Two resolutions meet at the smaller one: a 4x4 picture becomes means of 2x2 squares."""
    large, small = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)
    for ours, theirs in ((large, small), (small, large)):
        pair = same_size(LayerPair("k", "hidden", ours, theirs))
        assert pair.student.shape[2:] == pair.teacher.shape[2:] == (2, 2)
    means = large.view(2, 3, 2, 2, 2, 2).mean((3, 5))
    torch.testing.assert_close(same_size(LayerPair("k", "hidden", large, small)).student, means)
    with pytest.raises(ValueError, match=r"got \(2, 7, 3\) and \(2, 9, 3\) at k.*resized"):
        same_size(LayerPair("k", "hidden", torch.zeros(2, 7, 3), torch.zeros(2, 9, 3)))


def test_pooled_ignores_padding() -> None:
    """A mean over padding makes short texts alike; NaN in padding spreads."""
    states = torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    expected = torch.stack([states[0, :2].mean(0), states[1].mean(0)])
    states[0, 2:] = torch.nan
    torch.testing.assert_close(pooled(states, mask), expected)
    assert torch.equal(pooled(states, mask, "first"), states[:, 0])


def test_projections() -> None:
    """One per pair, one per pair of widths, an isometry, or none: and a 1x1 convolution on maps."""
    pairs = [
        LayerPair(f"hidden_{i}_{i}", "hidden", torch.randn(2, 5, 4), torch.randn(2, 5, 6))
        for i in (1, 2)
    ]
    assert set(build_projections(pairs, "linear")) == {"hidden_1_1", "hidden_2_2"}
    assert set(build_projections(pairs, "shared")) == {"shared_4_6"}
    assert not build_projections(
        [LayerPair("k", "h", torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))], "none"
    )
    with pytest.raises(ValueError, match=r"got 4 \(student\) and 6 .*projection='linear'"):
        build_projections(pairs, "none")
    orthogonal = build_projections(pairs, "orthogonal")
    mapped = project(pairs[0], orthogonal, "orthogonal").student
    torch.testing.assert_close(mapped.norm(dim=-1), pairs[0].student.norm(dim=-1))

    maps = LayerPair("k", "modules", torch.randn(2, 4, 3, 3), torch.randn(2, 6, 3, 3))
    built = build_projections([maps], "linear")
    weight, bias = built["k"].weight, built["k"].bias
    expected = F.conv2d(maps.student, weight[:, :, None, None], bias)
    torch.testing.assert_close(project(maps, built, "linear").student, expected)


def test_plan_is_a_transport_plan_and_learns_the_cheap_pairs() -> None:
    """Without the marginals all weight would go to the one pair that is cheapest."""
    plan = TransportPlan(2, 3)
    torch.testing.assert_close(plan(), torch.full((6,), 1 / 6))
    cost = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]]).flatten()
    optimizer = torch.optim.Adam(plan.parameters(), lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        (plan() * cost).sum().backward()
        optimizer.step()
    found = plan().view(2, 3).detach()
    assert found[0, 0] > 0.3
    assert found[1, 2] > 0.3
    torch.testing.assert_close(found.sum(1), torch.full((2,), 1 / 2))
    torch.testing.assert_close(found.sum(0), torch.full((3,), 1 / 3), rtol=0.02, atol=0.01)


def test_groups_that_are_not_there_are_named() -> None:
    signal = Signal(hidden_states={"hidden": (torch.zeros(1, 2, 3),) * 3})
    with pytest.raises(ValueError, match=r"groups of \['hidden'\] .* got 'encoder'"):
        align("uniform", signal, signal, ("encoder",))


# ---- what is taken from a model ------------------------------------------------------------------


def asked(model: Any, batch: Any, needs: Needs) -> Signal:
    task_model = TaskModel(model)
    batch = task_model.task.share(batch, task_model.model)
    return task_model.ask(model, batch, needs, task_model.items(batch))[1]


def test_attention_is_switched_to_eager_and_back() -> None:
    """SDPA returns no maps, silently; a switch that stays makes every later step slow."""
    config = CASES["sequence_classification"].config()
    model = tf.BertForSequenceClassification(config).eval()
    model.set_attn_implementation("sdpa")
    batch = collate(CASES["sequence_classification"].data(3, torch.float32))
    maps = asked(model, batch, Needs(attentions=True)).attentions["hidden"]
    assert len(maps) == 2
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(maps[0].sum(-1)[:, 0][real], torch.ones(int(real.sum())))
    inner = [m for m in model.modules() if isinstance(m, tf.PreTrainedModel)]
    assert {m.config._attn_implementation for m in inner} == {"sdpa"}
    seen = []

    def stop() -> None:
        with eager_attention(model):
            seen.append(model.config._attn_implementation)
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        stop()
    assert seen == ["eager"]
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("model", ["text", "vit", "causal_lm", "seq2seq"])
def test_queries_and_keys_give_the_attention_maps(model: str) -> None:
    """Heads cut at the wrong place, or keys of another layer, still have the right shape."""
    case = MODELS[model]
    student = case.models()[0].eval()
    batch = collate(case.data(3))
    signal = asked(student, batch, Needs(attentions=True, qkv=True))
    for group, layers in signal.qkv.items():
        for (q, k, v), maps in zip(layers, signal.attentions[group], strict=True):
            assert q.shape == k.shape == v.shape
            assert maps.shape == (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    if model in ("text", "vit"):  # no rotation, no position bias, and padding is masked
        mask = batch.get("attention_mask", torch.ones(3, signal.attentions["hidden"][0].shape[-1]))
        (q, k, _), maps = signal.qkv["hidden"][0], signal.attentions["hidden"][0]
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~mask.bool()[:, None, None], -torch.inf)
        torch.testing.assert_close(scores.softmax(-1), maps)


def test_fused_projections_are_found_and_cut() -> None:
    config = tf.GPT2Config(
        n_embd=12, n_layer=2, n_head=3, vocab_size=40, bos_token_id=1, eos_token_id=1
    )
    model = tf.GPT2LMHeadModel(config).eval()
    batch = {"input_ids": torch.randint(40, (2, 5)), "attention_mask": torch.ones(2, 5)}
    signal = asked(model, batch, Needs(attentions=True, qkv=True))
    (q, k, _), maps = signal.qkv["hidden"][1], signal.attentions["hidden"][1]
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(-1, -2) / 2).masked_fill(later, -torch.inf)
    torch.testing.assert_close(scores.softmax(-1), maps)


def test_cross_attention_is_not_self_attention() -> None:
    student = CASES["speech_seq2seq"].models()[0]
    found = attention_projections(student, ["encoder", "decoder"])
    assert {group: len(layers) for group, layers in found.items()} == {"encoder": 2, "decoder": 2}
    assert not any("encoder_attn" in path for layers in found["decoder"] for path in layers)


def test_grouped_queries() -> None:
    """Fewer key heads than query heads: keys have the size of a query head, not their own count."""
    config = CASES["causal_lm"].config()
    config.num_key_value_heads = 1
    model = tf.LlamaForCausalLM(config).eval()
    batch = collate(CASES["causal_lm"].data(2, torch.float32))
    q, k, _ = asked(model, batch, Needs(qkv=True)).qkv["hidden"][0]
    assert (q.shape[1], k.shape[1], q.shape[-1]) == (2, 1, k.shape[-1])


def test_modules_are_taken_by_path_and_hooks_removed() -> None:
    student = MODELS["cnn"].models()[0].eval()
    batch = collate(MODELS["cnn"].data(2))
    path = "resnet.encoder.stages.1"
    signal = asked(student, batch, Needs(hidden_states=True, modules=frozenset({path})))
    assert torch.equal(signal.modules[path], signal.hidden_states["hidden"][-1])
    assert not any(m._forward_hooks for m in student.modules())


def test_what_a_model_provides() -> None:
    cnn, text = (TaskModel(MODELS[name].models()[0]).provides for name in ("cnn", "text"))
    assert not cnn.attentions
    assert not cnn.qkv
    assert text.attentions
    assert text.qkv
    assert MiniLMv2().needs.missing_from(cnn) == ["qkv"]
    assert HiddenStates("layr.1:layer.1").needs.missing_from(text) == ["layr.1"]


def test_module_names_with_a_typo_are_refused_with_near_ones(tmp_path: Any) -> None:
    from task_values import trainer

    with pytest.raises(
        ValueError, match=r"needs \['bert.encoder.layers.1'\].*Near names are \['bert.enc"
    ):
        trainer(tmp_path, "sequence_classification", HiddenStates("bert.encoder.layers.1"))
    case = MODELS["cnn"]
    student, teacher = case.models()
    message = r"\['minilm_v2'\] needs \['qkv'\], which this teacher does not"
    with pytest.raises(ValueError, match=message):
        trainer(
            tmp_path,
            "image_classification",
            MiniLMv2(),
            model=student,
            teacher_model=teacher,
            train_dataset=case.data(4),
            eval_dataset=None,
        )
