"""Importance measured on data, and students that keep what is important."""

from __future__ import annotations

import copy
import doctest
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from tiny_models import CASES, collate
from torch import Tensor
from torch.nn import functional as F

from hf_distill import student_from_teacher
from hf_distill.cli import main
from hf_distill.models.initialise import importance, kept_layers, kept_tokens, weights
from tests.models.test_initialise import check_reload, gpt2, outputs, saved, stirred, t5

VOCAB = 40
STACK = "model.layers"
SMALL: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 6}
WIDE = {name: 2 * value for name, value in SMALL.items()}
REST: dict[str, Any] = {
    "vocab_size": VOCAB,
    "num_hidden_layers": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-12,
    "tie_word_embeddings": False,
}
ENDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def batches(count: int = 3) -> list[dict[str, Tensor]]:
    """Ragged texts, with their padding."""
    rows = CASES["causal_lm"].data(4 * count)
    found = [collate(rows[4 * i : 4 * i + 4]) for i in range(count)]
    return [{k: v for k, v in batch.items() if k != "labels"} for batch in found]


def llama(layers: int = 4, **sizes: Any) -> Any:
    config = {**REST, **WIDE, "num_hidden_layers": layers, "num_key_value_heads": 2, **sizes}
    return tf.LlamaForCausalLM(tf.LlamaConfig(**config, **ENDS))


# ---- what is measured ------------------------------------------------------------------------


def captured(model: Any, path: str, batch: dict[str, Tensor]) -> Tensor:
    """What a module gives for one batch, ``(tokens, K)``, without padding."""
    kept: list[Tensor] = []

    def hook(module: Any, arguments: Any, output: Any) -> None:
        kept.append(output if isinstance(output, Tensor) else output[0])

    handle = model.get_submodule(path).register_forward_hook(hook)
    with torch.no_grad():
        model(**batch)
    handle.remove()
    return kept[0][batch["attention_mask"].bool()].double()


def without(model: Any, path: str, columns: slice) -> Any:
    """The model with a matrix that does not read some of its inputs."""
    other = copy.deepcopy(model)
    other.get_submodule(path).weight.data[:, columns] = 0
    return other


def test_heads_and_units_by_leaving_each_out() -> None:
    """Heads with large values that nothing reads would be kept, padding would be measured, and
    heads of other layers mixed up."""
    model = stirred(llama(2)).double()
    found = importance(model, batches())
    for layer in range(2):
        for part, count, values in (
            ("self_attn", 4, found.heads[STACK][layer]),
            ("mlp", 12, found.units[STACK][layer]),
        ):
            path = f"{STACK}.{layer}.{part}"
            matrix = f"{path}.{'o_proj' if part == 'self_attn' else 'down_proj'}"
            size = model.get_submodule(matrix).weight.shape[1] // count
            for index in range(count):
                cut = without(model, matrix, slice(index * size, (index + 1) * size))
                norms = [
                    (captured(model, path, b) - captured(cut, path, b)).norm(dim=-1)
                    for b in batches()
                ]
                assert values[index].item() == pytest.approx(torch.cat(norms).mean(), rel=1e-5)


def test_layers_channels_and_tokens_by_brute_force() -> None:
    """Block influence of the sum of two inputs, or of padding, ranks layers at random."""
    model = stirred(llama(3)).double()
    found = importance(model, batches())
    influence = []
    for layer in range(3):
        before = f"{STACK}.{layer - 1}" if layer else "model.embed_tokens"
        pairs = [
            (captured(model, before, b), captured(model, f"{STACK}.{layer}", b)) for b in batches()
        ]
        turned = [1 - (x * y).sum(-1) / x.norm(dim=-1) / y.norm(dim=-1) for x, y in pairs]
        influence.append(torch.cat(turned).mean().item())
    assert found.layers[STACK].tolist() == pytest.approx(influence, rel=1e-4)
    norms = [n for n, m in model.named_modules() if type(m).__name__ == "LlamaRMSNorm"]
    assert len(norms) == 7
    seen = torch.cat([captured(model, n, b) for n in norms for b in batches()])
    assert found.channels is not None
    assert found.channels.tolist() == pytest.approx(seen.abs().mean(0).tolist(), rel=1e-5)
    texts = [b["input_ids"][b["attention_mask"].bool()].tolist() for b in batches()]
    counts = Counter(itertools.chain(*texts))
    assert found.tokens is not None
    assert found.tokens.tolist() == [counts[token] for token in range(VOCAB)]


def test_the_model_is_left_alone() -> None:
    """Hooks that stay would measure, and slow, all of the training."""
    model = stirred(llama()).train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    first, second = importance(model, batches()), importance(model, batches())
    assert torch.equal(first.layers[STACK], second.layers[STACK])
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# ---- depth -----------------------------------------------------------------------------------


def idle(model: Any, *layers: int) -> Any:
    """The model with layers that do nothing."""
    for index in layers:
        layer = model.get_submodule(STACK)[index]
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    return model


def divergence(student: Any, teacher: Any) -> float:
    """KL(teacher || student) over the texts."""
    total = 0.0
    for batch in batches():
        mask = batch["attention_mask"].bool()
        q, p = (outputs(m, batch)[mask].double().log_softmax(-1) for m in (student, teacher))
        total += F.kl_div(q, p, reduction="sum", log_target=True).item()
    return total


def test_idle_layers_go(tmp_path: Path) -> None:
    """The first or evenly spaced layers lose what a choice on data keeps."""
    teacher = idle(stirred(llama(5)), 1, 3)
    found = importance(teacher, batches())
    assert kept_layers(teacher, 3, found.layers) == {STACK: [0, 2, 4]}
    assert kept_layers(teacher, "first:3", found.layers) == {STACK: [0, 1, 2]}
    student = student_from_teacher(teacher, "3", importance=found).eval()
    for batch in batches():
        torch.testing.assert_close(outputs(student, batch), outputs(teacher, batch))
    losses = {
        kept: divergence(student_from_teacher(teacher, kept).eval(), teacher)
        for kept in itertools.combinations(range(5), 3)
    }
    assert min(losses, key=lambda kept: losses[kept]) == (0, 2, 4)
    assert sorted(losses.values())[1] > 1e-3
    check_reload(student, tmp_path, batches()[0])


def test_layers_of_a_vision_language_model() -> None:
    """The text's layers ranked by what the pictures' layers do."""
    case = CASES["image_text_to_text"]
    teacher = stirred(case.models(torch.float32)[1])
    batch = collate(case.data(4, torch.float32))
    language: Any = teacher.get_decoder()
    language.layers[1].self_attn.o_proj.weight.data.zero_()
    language.layers[1].mlp.down_proj.weight.data.zero_()
    found = importance(teacher, [batch])
    assert {path: len(values) for path, values in found.layers.items()} == {
        "model.language_model.layers": 3,
        "model.vision_tower.encoder.layers": 3,
    }
    student = student_from_teacher(teacher, {"text": 2}, importance=found).eval()
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    torch.testing.assert_close(outputs(student, inputs), outputs(teacher, inputs))


def test_layers_of_two_stacks() -> None:
    """A decoder's layers ranked by its encoder's text and padding."""
    teacher = stirred(t5())
    for stack, index in (("encoder", 2), ("decoder", 1)):
        for name, value in teacher.get_submodule(f"{stack}.block.{index}").named_parameters():
            if name.endswith((".o.weight", ".wo.weight")):
                value.data.zero_()
    batch = collate(CASES["seq2seq_lm"].data(6))
    found = importance(teacher, [batch])
    student = student_from_teacher(teacher, {"encoder": 3, "decoder": 2}, importance=found).eval()
    inputs = {**batch, "decoder_input_ids": batch["labels"].clamp(min=0)}
    inputs.pop("labels")
    torch.testing.assert_close(outputs(student, inputs), outputs(teacher, inputs))


# ---- width -----------------------------------------------------------------------------------


class Planted:
    """A wide model in which half of everything is dead, at places of its own in each layer.

    A dead channel is a copy of a living one behind the weights that write, so that norms see the
    same mean square, and 0 behind the norms; a dead head or unit is computed and not written, or
    written and 0. So the small model is in the wide one, and computes the same.
    """

    def __init__(self, small: Any, wide: Any, dead: str):
        self.small, self.wide, self.dead = small, wide, dead
        self.channels = torch.randperm(16)[:8].sort().values
        self.others = torch.tensor([c for c in range(16) if c not in self.channels.tolist()])
        config = wide.config
        keys = config.num_key_value_heads
        self.dim = config.head_dim
        groups = 1 if keys == 1 else keys
        own = [torch.randperm(groups)[: groups // 2].sort().values for _ in range(2)]
        shared = config.num_attention_heads // keys
        self.keys = [torch.zeros(1, dtype=torch.long)] * 2 if keys == 1 else own
        self.queries = [
            torch.randperm(4)[:2].sort().values
            if keys == 1
            else (g[:, None] * shared + torch.arange(shared)).flatten()
            for g in own
        ]
        self.units = [torch.randperm(12)[:6].sort().values for _ in range(2)]
        source = small.state_dict()
        for name, value in wide.state_dict().items():
            value.copy_(self.grown(name, source[name], value.shape))

    def heads(self, kept: Tensor) -> Tensor:
        return (kept[:, None] * self.dim + torch.arange(self.dim)).flatten()

    def grown(self, name: str, value: Tensor, shape: torch.Size) -> Tensor:
        layer = int(name.split(".")[2]) if name.startswith(STACK) else 0
        queries, keys = self.heads(self.queries[layer]), self.heads(self.keys[layer])
        units = self.units[layer]
        if "embed_tokens" in name:
            return self.copied(value.T, torch.arange(VOCAB), VOCAB).T
        if name.endswith(("layernorm.weight", "model.norm.weight")):
            return torch.zeros(shape).index_copy(0, self.channels, value)
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            return value
        if "lm_head" in name:
            return self.read(value, torch.arange(VOCAB), VOCAB)
        if "qkv_proj" in name:
            count = (len(value) - 2 * self.dim) // 2
            q, k, v = value.split([2 * self.dim, count, count])
            parts = [
                self.read(q, queries, 4 * self.dim),
                self.read(k, keys, 2 * len(k)),
                self.read(v, keys, 2 * len(v), silent=True),
            ]
            return torch.cat(parts)
        if "gate_up_proj" in name:
            gate, up = value.chunk(2)
            return torch.cat([self.read(gate, units, 12, silent=True), self.read(up, units, 12)])
        if "o_proj" in name:
            return self.copied(value, queries, 4 * self.dim)
        if "down_proj" in name:
            return self.copied(value, units, 12)
        rows = {"q_proj": queries, "gate_proj": units, "up_proj": units}
        which = next((r for part, r in rows.items() if part in name), keys)
        return self.read(value, which, shape[0], silent="v_proj" in name or "gate_proj" in name)

    def read(self, value: Tensor, rows: Tensor, count: int, silent: bool = False) -> Tensor:
        """A matrix that reads channels: living rows read the living ones as before."""
        wide = torch.randn(count, 16)
        if silent and self.dead == "computed as 0":
            wide.zero_()
        full = torch.randn(len(rows), 16).index_copy(1, self.channels, value)
        return wide.index_copy(0, rows, full)

    def copied(self, value: Tensor, columns: Tensor, count: int) -> Tensor:
        """A matrix that writes channels: ``(16, count)``."""
        fill = torch.zeros if self.dead == "never written" else torch.randn
        wide = fill(8, count).index_copy(1, columns, value)
        return (
            torch.zeros(16, count)
            .index_copy(0, self.channels, wide)
            .index_copy(0, self.others, wide)
        )


KINDS: dict[str, tuple[Any, Any, int, tuple[int, int]]] = {
    "own keys": (tf.LlamaForCausalLM, tf.LlamaConfig, 4, (2, 4)),
    "shared keys": (tf.LlamaForCausalLM, tf.LlamaConfig, 4, (1, 2)),
    "one key head": (tf.LlamaForCausalLM, tf.LlamaConfig, 4, (1, 1)),
    "qwen3": (tf.Qwen3ForCausalLM, tf.Qwen3Config, 6, (1, 2)),
    "phi3": (tf.Phi3ForCausalLM, tf.Phi3Config, 4, (1, 2)),
}
"""Model, config, size of a head, key heads of the small and of the wide model."""


def planted(kind: str, dead: str) -> Planted:
    """A small model, and a wide one of which half is dead."""
    model, config, dim, keys = KINDS[kind]
    small, wide = (
        model(config(**REST, **ENDS, **sizes, num_key_value_heads=count, head_dim=dim))
        for sizes, count in zip((SMALL, WIDE), keys, strict=True)
    )
    return Planted(stirred(small), wide.eval(), dead)


@pytest.mark.parametrize("dead", ["never written", "computed as 0"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_dead_goes(kind: str, dead: str, tmp_path: Path) -> None:
    """Channels taken for heads, units of one layer for those of another, keys of other queries: all
    have the right shapes. A model that was hidden in a wide one must come out."""
    if (kind, dead) == ("one key head", "computed as 0"):
        dead = "never written"  # its values serve all heads
    made = planted(kind, dead)
    inputs = batches()[0]
    expected = outputs(made.small, inputs)
    torch.testing.assert_close(outputs(made.wide, inputs), expected, rtol=1e-3, atol=1e-4)
    found = importance(made.wide, batches())
    student = student_from_teacher(made.wide, hidden_size=8, importance=found).eval()
    own = student.state_dict()
    for name, value in made.small.state_dict().items():
        assert torch.equal(own[name], value), name
    assert torch.equal(outputs(student, inputs), expected)
    blind = student_from_teacher(made.wide, hidden_size=8).eval()
    assert (outputs(blind, inputs) - expected).abs().max() > 0.1
    check_reload(student, tmp_path, inputs)


def test_depth_and_width_together() -> None:
    """The first layer's heads for the only layer that is left."""
    made = planted("shared keys", "never written")
    found = importance(made.wide, batches())
    student = student_from_teacher(made.wide, [1], hidden_size=8, importance=found).eval()
    expected = student_from_teacher(made.small, [1]).eval()
    for name, value in expected.state_dict().items():
        assert torch.equal(student.state_dict()[name], value), name


@pytest.mark.parametrize("kind", ["gpt2", "bert", "vit"])
def test_units_of_any_model(kind: str) -> None:
    """The first units of a layer lose what the most active ones keep."""
    inputs: dict[str, Tensor] = batches()[0]
    if kind == "gpt2":
        teacher, matrix = stirred(gpt2()), "mlp.c_proj.weight"
    elif kind == "bert":
        teacher = stirred(CASES["sequence_classification"].models(torch.float32)[0])
        matrix = "output.dense.weight"
    else:
        teacher = stirred(CASES["image_classification"].models(torch.float32)[0])
        matrix, inputs = "mlp.fc2.weight", {"pixel_values": torch.randn(3, 3, 32, 32)}
    count = 0
    for name, value in teacher.named_parameters():
        if name.endswith(matrix) and "attention" not in name:
            units = value.data if kind == "gpt2" else value.data.T
            units[torch.randperm(len(units))[: len(units) // 2]] = 0
            size, count = len(units) // 2, count + 1
    assert count >= 2
    found = importance(teacher, [inputs])
    student = student_from_teacher(teacher, intermediate_size=size, importance=found).eval()
    expected = outputs(teacher, inputs)
    torch.testing.assert_close(outputs(student, inputs), expected)
    blind = student_from_teacher(teacher, intermediate_size=size).eval()
    assert (outputs(blind, inputs) - expected).abs().max() > 1e-3


# ---- vocabulary ------------------------------------------------------------------------------


def test_frequent_tokens_stay() -> None:
    """A rare token for a frequent one, or a lost end token, which is rare in every text."""
    teacher = stirred(llama(2))
    texts = [{"input_ids": torch.tensor([[7, 7, 7, 30, 30, 12], [39, 39, 12, 7, 30, 5]])}]
    found = importance(teacher, texts)
    assert kept_tokens(teacher, 6, found) == [0, 1, 2, 7, 12, 30]  # 12 and 39 occur twice
    student = student_from_teacher(teacher, vocabulary=6, importance=found).eval()
    ids = torch.tensor([[3, 4, 5, 3]])
    kept = torch.tensor([0, 1, 2, 7, 12, 30])
    expected = outputs(teacher, {"input_ids": kept[ids]})[..., kept]
    torch.testing.assert_close(outputs(student, {"input_ids": ids}), expected)
    assert student.config.eos_token_id == 2
    with pytest.raises(ValueError, match="the 3 special tokens at least, got 2"):
        kept_tokens(teacher, 2, found)


# ---- what cannot be done ---------------------------------------------------------------------


def test_what_cannot_be_chosen() -> None:
    """A guess at what an axis means gives a student of noise that trains."""
    teacher = llama()
    with pytest.raises(ValueError, match="Expected batches to measure"):
        importance(teacher, [])
    bert = CASES["sequence_classification"].models(torch.float32)[1]
    found = importance(bert, batches())
    with pytest.raises(ValueError, match=r"a decoder whose config has a head_dim.*got BertFor"):
        student_from_teacher(bert, hidden_size=12, intermediate_size=8, importance=found)
    with pytest.raises(ValueError, match="one list of modules"):
        importance(tf.ResNetModel(tf.ResNetConfig(depths=[1, 1], hidden_sizes=[8, 8])), [])
    config = {**REST, **WIDE, **ENDS, "num_key_value_heads": 2, "num_local_experts": 2}
    experts = tf.MixtralForCausalLM(tf.MixtralConfig(**config))
    found = importance(experts, batches())
    assert not found.units
    with pytest.raises(ValueError, match=r"has one of|not measured"):
        student_from_teacher(experts, intermediate_size=6, importance=found)
    assert student_from_teacher(experts, 1, importance=found).config.num_hidden_layers == 1


# ---- the command -----------------------------------------------------------------------------


def texts(folder: Path, kind: str) -> Path:
    lines = ["the film was wonderful", "the film was dull and long", "a wonderful cast"] * 4
    path = folder / f"texts.{kind}"
    if kind == "jsonl":
        lines = [json.dumps({"text": line}) for line in lines]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_the_command(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An importance that is measured and then ignored."""
    teacher = idle(stirred(llama(4)), 0, 2)
    source = saved(tmp_path / "teacher", teacher)
    command = ["init-student", source, "--output", str(tmp_path / "student"), "--layers", "2"]
    assert main([*command, "--importance", str(texts(tmp_path, kind))]) == 0
    told = capsys.readouterr().out
    assert "importance: measured on 12 texts" in told
    assert "kept: layers 1, 3 of 4 in model.layers" in told
    student = tf.LlamaForCausalLM.from_pretrained(tmp_path / "student")
    inputs = batches()[0]
    torch.testing.assert_close(outputs(student, inputs), outputs(teacher, inputs))


def test_wrong_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong file that is told after the teacher was loaded, or as a traceback."""
    source = saved(tmp_path / "teacher", llama())
    command = ["init-student", source, "--output", str(tmp_path / "student"), "--layers", "2"]
    empty, broken, other = (tmp_path / n for n in ("empty.txt", "broken.jsonl", "texts.csv"))
    empty.write_text("\n\n")
    broken.write_text('{"text": "fine"}\n{"text": ')
    other.write_text("text")
    for path, message in (
        (empty, "Expected texts in"),
        (broken, "line 2"),
        (other, ".txt or .jsonl"),
        (tmp_path / "missing.txt", "missing.txt"),
    ):
        assert main([*command, "--importance", str(path)]) in (1, 2)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "student").exists()


def test_doctests() -> None:
    """An example that no longer holds misleads."""
    assert doctest.testmod(weights).failed == 0
