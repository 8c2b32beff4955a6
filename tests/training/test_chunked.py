"""Training and evaluation without logits of a whole batch give what whole logits give."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import PartialState
from launch import launch
from objective_table import ROWS
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tiny_models import CASES, VOCAB, collate
from tiny_trainers import Recorder, trainer
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

import hf_distill.losses.fused as fused
from hf_distill import (
    CachedTeacher,
    Ensemble,
    ForwardKL,
    FromTeacher,
    HardLabels,
    HiddenStates,
    LossShare,
    ModelTeacher,
    Needs,
    ReverseKL,
    WeightDecay,
    write_cache,
)
from hf_distill.losses.fused import LazyLogits
from hf_distill.models.redirect import redirected_forward
from hf_distill.models.task_model import TaskModel
from hf_distill.objectives.base.objective import Context
from hf_distill.objectives.base.temperature import LearnedTemperature
from hf_distill.training.chunked import StepInputs, reduce_chunked
from hf_distill.training.reduction import reduce

tf: Any = transformers
HEADS = ("causal_lm", "seq2seq_lm", "masked_lm", "speech_seq2seq")
BY_ITEM = [n for n, r in ROWS.items() if r.objective.is_itemwise and "causal_lm" in r.models]
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
MODELS: dict[str, Any] = {
    "gemma2": (
        tf.Gemma2ForCausalLM,
        lambda: tf.Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.5),
    ),
    "cohere": (tf.CohereForCausalLM, lambda: tf.CohereConfig(**SIZES, logit_scale=0.25)),
    "granite": (tf.GraniteForCausalLM, lambda: tf.GraniteConfig(**SIZES, logits_scaling=3.0)),
    "tied": (tf.LlamaForCausalLM, lambda: tf.LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "gpt2": (
        tf.GPT2LMHeadModel,
        lambda: tf.GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=16),
    ),
    "opt": (
        tf.OPTForCausalLM,
        lambda: tf.OPTConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            word_embed_proj_dim=12,
            ffn_dim=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
        ),
    ),
    "bart": (
        tf.BartForConditionalGeneration,
        lambda: tf.BartConfig(
            vocab_size=VOCAB,
            d_model=16,
            encoder_layers=1,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            max_position_embeddings=32,
        ),
    ),
    "distilbert": (
        tf.DistilBertForMaskedLM,
        lambda: tf.DistilBertConfig(vocab_size=VOCAB, dim=16, n_layers=2, n_heads=2, hidden_dim=24),
    ),
}
KIND = {"bart": "seq2seq_lm", "distilbert": "masked_lm"}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three items at a time, so that every batch here is several chunks of several blocks."""
    monkeypatch.setitem(fused.BUDGET, "cpu", 3 * 2 * VOCAB * 8)
    monkeypatch.setitem(fused.BLOCK, "cpu", 2 * VOCAB)


class Tokens:
    """A tokenizer as far as its vocabulary goes."""

    def get_vocab(self) -> dict[str, int]:
        return {str(index): index for index in range(VOCAB)}


def made(folder: Path, head: str, objective: Any, **options: Any) -> Any:
    case = CASES[head]
    student, teacher = case.models()
    given = {"model": student, "teacher_model": teacher, "train_dataset": case.data()}
    given["eval_dataset"] = case.data()
    return trainer(folder, head, objective=objective, **{**given, **options})


def step(ours: Any, batch: dict[str, Any]) -> tuple[float, dict[str, Tensor]]:
    """The loss and the gradients of one micro-batch, learned parts included."""
    ours.model.train()
    for part in (ours.model, ours.projections):
        part.zero_grad()
    torch.manual_seed(3)  # of dropout
    loss = ours.compute_loss(ours.model, batch)
    loss.backward()
    named = [*ours.model.named_parameters(), *ours.projections.named_parameters()]
    return float(loss.detach()), {n: p.grad.clone() for n, p in named if p.grad is not None}


def both(ours: Any, batch: dict[str, Any]) -> list[tuple[float, dict[str, Tensor]]]:
    """The same step without logits and with them."""
    assert ours.step.lazy_logits
    state = copy.deepcopy(ours.projections.state_dict())  # running means follow every step
    found = [step(ours, batch)]
    ours.projections.load_state_dict(state)
    ours.step.lazy_logits = False
    found.append(step(ours, batch))
    ours.step.lazy_logits = True
    return found


def same(found: Any, tolerance: float = 1e-9) -> None:
    (value, gradients), (wanted, expected) = found
    assert value == pytest.approx(wanted, rel=tolerance)
    assert gradients.keys() == expected.keys()
    largest = max(float(g.norm()) for g in expected.values())
    assert largest > 0
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).norm() <= tolerance * largest, name


@pytest.mark.parametrize(
    ("name", "head"),
    [
        *((name, "causal_lm") for name in BY_ITEM),
        *((name, head) for name in ("hard_labels", "forward_kl", "nkd") for head in HEADS[1:]),
    ],
)
def test_every_objective_is_the_same_in_pieces(tmp_path: Path, name: str, head: str) -> None:
    """An objective that looks at more than single items would silently be another one."""
    ours = made(tmp_path, head, ROWS[name].objective)
    same(both(ours, collate(CASES[head].data())), 1e-6 if "speech" in head else 1e-9)


def test_every_objective_of_logits_says_what_it_is() -> None:
    """One that forgets `is_itemwise` falls back to whole logits, and nobody sees the memory."""
    reads = {n for n, r in ROWS.items() if r.objective.student_needs == Needs(logits=True)}
    whole = {n for n in reads if ROWS[n].objective.compares_examples}
    whole |= {"early_exits", "group_dro", "group_weights", "smoothness"}  # these read the batch
    assert reads - {n for n, r in ROWS.items() if r.objective.is_itemwise} <= whole


def test_a_sum_of_many(tmp_path: Path) -> None:
    """Parts that read hidden states or weights stand beside those that read logits in pieces."""
    objective = (
        0.3 * HardLabels(label_smoothing=0.1)
        + 0.5 * ForwardKL(2.0)
        + LossShare(0.2) * ReverseKL()
        + 0.1 * HiddenStates()
        + WeightDecay(1e-3, target="init")
        + 0.2 * ForwardKL(3.0)
        + 0.1 * ROWS["on_perturbed"].objective
    )
    ours = made(tmp_path, "causal_lm", objective)
    found = both(ours, collate(CASES["causal_lm"].data()))
    same(found)


@pytest.mark.parametrize("name", MODELS)
def test_what_models_do_with_their_logits(tmp_path: Path, name: str) -> None:
    """A cap, a scale, a bias or a tied head that is overlooked is another model."""
    kind, config = MODELS[name]
    torch.manual_seed(0)
    student, teacher = (kind(config()).double() for _ in range(2))
    for model in (student, teacher):
        if name == "bart":
            model.final_logits_bias.normal_()
    head = KIND.get(name, "causal_lm")
    objective = 0.5 * HardLabels() + 0.5 * ForwardKL(2.0)
    ours = made(tmp_path, head, objective, model=student, teacher_model=teacher)
    same(both(ours, collate(CASES[head].data())), 1e-6)  # some compute a part in float32


def test_a_model_with_an_output_of_its_own_keeps_its_logits(tmp_path: Path) -> None:
    """A model that changes its logits after the head in a way that nobody knows."""

    class Own(tf.LlamaForCausalLM):
        def forward(self, input_ids: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
            found = super().forward(input_ids, attention_mask, **kwargs)
            found.logits = found.logits * 0.5
            return found

    student = Own(CASES["causal_lm"].config()).double()
    ours = made(tmp_path, "causal_lm", ForwardKL(), model=student, label_names=["labels"])
    assert not ours.step.lazy_logits
    ours.train()


@pytest.mark.parametrize(
    "objective",
    [
        ForwardKL(LearnedTemperature()),
        ROWS["dist"].objective,
    ],
    ids=["learned temperature", "across items"],
)
def test_what_needs_whole_logits_gets_them(tmp_path: Path, objective: Any) -> None:
    """In pieces a correlation across items would be one across three of them."""
    assert not made(tmp_path, "causal_lm", objective).step.lazy_logits


def test_a_subclass_that_reads_the_logits_gets_them(tmp_path: Path) -> None:
    """Somebody's compute_loss would find logits of no position."""
    ours = made(tmp_path, "causal_lm", None)
    loss, outputs = ours.compute_loss(ours.model, collate(CASES["causal_lm"].data()), True)
    assert outputs.logits.shape[-1] == VOCAB
    assert outputs.logits.shape[1] > 0
    assert math.isfinite(loss.detach())


@pytest.mark.parametrize("head", ["causal_lm", "seq2seq_lm", "masked_lm"])
def test_evaluation_is_the_same(tmp_path: Path, head: str) -> None:
    """Figures over pieces that were weighted by pieces would depend on the memory budget."""
    found = []
    for lean in (True, False):
        ours = made(tmp_path, head, 0.5 * HardLabels() + 0.5 * ForwardKL(2.0) + HiddenStates())
        ours.step.lazy_logits = lean
        found.append(ours.evaluate())
    assert found[0].keys() == found[1].keys()
    timed = ("_runtime", "_second", "_time")
    for key in (key for key in found[0] if not key.endswith(timed)):
        assert found[0][key] == pytest.approx(found[1][key], rel=1e-6), key
    assert "eval_reverse_kl_divergence" in found[0]


def test_no_logits_exist_in_a_step_or_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that falls back silently costs the memory it promises to save."""
    ours = made(tmp_path, "causal_lm", None)
    items = sum(len(row["input_ids"]) for row in CASES["causal_lm"].data(3))
    sizes = []
    inner = LazyLogits.finished

    def spying(self: LazyLogits, raw: Tensor) -> Tensor:
        sizes.append(len(raw))
        return inner(self, raw)

    monkeypatch.setattr(LazyLogits, "finished", spying)
    heads = [ours.model.lm_head, ours.teacher.model.lm_head]
    for head in heads:
        head.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[1]))
    ours.train()
    ours.evaluate()
    assert max(sizes) <= 3 < items


FORMATS: dict[str, dict[str, Any]] = {
    "cached": {"kind": "full"},
    "top-k": {"kind": "top_k", "k": 4},
    "draws": {"kind": "sampled", "draws": 6},
}


@pytest.mark.parametrize("kind", [*FORMATS, "ensemble", "members"])
def test_teachers_that_give_their_logits_themselves(tmp_path: Path, kind: str) -> None:
    """The rows of a cache must meet the student's items, and not their neighbours."""
    case = CASES["causal_lm"]
    student, teacher = case.models()
    objective: Any = 0.5 * HardLabels() + 0.5 * ForwardKL()
    if kind in FORMATS:
        write_cache(
            tmp_path / "cache", ModelTeacher(teacher), case.data(), collate, format=FORMATS[kind]
        )
        used: Any = CachedTeacher(tmp_path / "cache")
    else:
        other = case.models()[1]
        with torch.no_grad():
            other.lm_head.weight.mul_(1.5)
        used = Ensemble({"a": teacher, "b": other})
        if kind == "members":
            objective = (
                0.5 * FromTeacher("a", ForwardKL(2.0))
                + 0.5 * FromTeacher("b", ReverseKL())
                + HardLabels()
            )
    ours = made(tmp_path / "run", "causal_lm", objective, model=student, teacher_model=used)
    same(both(ours, collate(case.data())))


def test_weights_of_tokens(tmp_path: Path) -> None:
    """Token weights that count in the sum and not in its divisor scale the loss of a batch."""
    rows = [
        {**row, "token_weights": [0.1 * (i % 4) for i in range(len(row["input_ids"]))]}
        for row in CASES["causal_lm"].data()
    ]

    def padded(examples: list[Any]) -> dict[str, Any]:
        batch = collate([{k: v for k, v in e.items() if k != "token_weights"} for e in examples])
        weights = torch.zeros(batch["input_ids"].shape, dtype=torch.float64)
        for row, example in zip(weights, examples, strict=True):
            row[: len(example["token_weights"])] = torch.tensor(example["token_weights"])
        return {**batch, "token_weights": weights}

    ours = made(tmp_path, "causal_lm", HardLabels() + ForwardKL(2.0), train_dataset=rows)
    found = both(ours, padded(rows))
    same(found)
    batch = padded(rows)
    with torch.no_grad():
        logits = [
            model(batch["input_ids"], batch["attention_mask"]).logits[:, :-1]
            for model in (ours.model, ours.teacher.model)
        ]
    labels, weights = batch["labels"][:, 1:], batch["token_weights"][:, 1:]
    mask = labels != -100
    log_s, log_t = (x.log_softmax(-1) for x in logits)
    hard = -log_s.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    log_s, log_t = ((x / 2).log_softmax(-1) for x in logits)
    soft = 4 * (log_t.exp() * (log_t - log_s)).sum(-1)
    wanted = ((hard + soft) * weights)[mask].sum() / weights[mask].sum()
    assert found[0][0] == pytest.approx(float(wanted), rel=1e-6)


def test_a_batch_without_any_item(tmp_path: Path) -> None:
    """NaN, or a rank without gradients, when a batch happens to be all prompt."""
    ours = made(tmp_path, "causal_lm", 0.5 * HardLabels() + 0.5 * ForwardKL(2.0))
    batch = collate(CASES["causal_lm"].data())
    batch["labels"] = torch.full_like(batch["labels"], -100)
    value, gradients = step(ours, batch)
    assert value == 0
    assert len(gradients) == len(list(ours.model.parameters()))
    assert all(g.abs().sum() == 0 for g in gradients.values())


def test_padding_of_the_vocabulary_gets_no_mass_and_no_gradient(tmp_path: Path) -> None:
    """Phantom entries would take probability from real tokens."""
    student, teacher = CASES["causal_lm"].models()
    student.resize_token_embeddings(VOCAB + 8)
    teacher.resize_token_embeddings(VOCAB + 3)
    objective = 0.5 * HardLabels() + 0.5 * ForwardKL(2.0)
    taught = ModelTeacher(teacher, processor=Tokens())
    ours = made(
        tmp_path,
        "causal_lm",
        objective,
        model=student,
        teacher_model=taught,
        processing_class=Tokens(),
        data_collator=collate,
    )
    found = both(ours, collate(CASES["causal_lm"].data()))
    same(found)
    head = found[0][1]["lm_head.weight"]
    assert head.shape[0] == VOCAB + 8
    assert head[:VOCAB].abs().sum() > 0
    assert head[VOCAB:].abs().sum() == 0


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_adapters_on_the_head(tmp_path: Path, dropout: float) -> None:
    """An adapter of the head that is left out, or a frozen head that gets a gradient."""
    config = LoraConfig(
        r=2, lora_alpha=8, target_modules=["q_proj", "lm_head"], lora_dropout=dropout
    )
    ours = made(tmp_path, "causal_lm", None, peft_config=config)
    for name, parameter in ours.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    found = both(ours, collate(CASES["causal_lm"].data()))
    same(found)
    assert any("lm_head.lora_B" in name for name in found[0][1])
    assert not any("base_layer" in name for name in found[0][1])


def test_a_frozen_head(tmp_path: Path) -> None:
    """A gradient for weights that nobody trains costs a product and the memory of the head."""
    student = CASES["causal_lm"].models()[0]
    student.lm_head.requires_grad_(False)
    ours = made(tmp_path, "causal_lm", None, model=student)
    found = both(ours, collate(CASES["causal_lm"].data()))
    assert "lm_head.weight" not in found[0][1]
    same(found)


@pytest.mark.slow
def test_a_compiled_student(tmp_path: Path) -> None:
    """A graph compiled with the head would be used without it, or the other way round."""
    found = []
    for compiled in (True, False):
        recorder = Recorder()
        ours = made(
            tmp_path,
            "causal_lm",
            None,
            torch_compile=compiled,
            torch_compile_backend="aot_eager" if compiled else None,
            callbacks=[recorder],
            compute_metrics=lambda prediction: {"width": prediction.predictions[0].shape[-1]},
            preprocess_logits_for_metrics=lambda logits, labels: logits,
            eval_strategy="steps",
            eval_steps=1,
        )
        assert ours.step.lazy_logits
        ours.train()
        found.append(recorder.logs)
    timed = ("_runtime", "_second", "_time")
    for ours, wanted in zip(*found, strict=True):
        kept = {k: v for k, v in ours.items() if not k.endswith(timed)}
        assert kept == pytest.approx({k: wanted[k] for k in kept}, rel=1e-5)


def test_gradient_norms_are_logged(tmp_path: Path) -> None:
    """Each component's norm needs a graph of its own, which pieces do not keep."""
    logs = []
    for lean in (True, False):
        recorder = Recorder()
        ours = made(
            tmp_path, "causal_lm", None, log_gradient_norms=True, callbacks=[recorder], seed=1
        )
        ours.step.lazy_logits = lean
        ours.train()
        logs.append(recorder.steps)
    for ours, wanted in zip(*logs, strict=True):
        assert any(key.startswith("grad_norm_") for key in ours)
        assert ours == pytest.approx(wanted, rel=1e-6)


OBJECTIVE = 0.5 * HardLabels() + 0.5 * ForwardKL(2.0)


def figures(folder: str, lean: str) -> None:
    """Weights after three steps under DDP, in these processes."""
    case = CASES["causal_lm"]
    student, teacher = case.models()
    ours = made(
        Path(folder),
        "causal_lm",
        OBJECTIVE,
        model=student,
        teacher_model=teacher,
        per_device_train_batch_size=2,
        max_steps=3,
        optim="sgd",
    )
    ours.step.lazy_logits = ours.step.lazy_logits and lean == "yes"
    assert ours.step.lazy_logits == (lean == "yes")
    ours.train()
    found = {name: p.detach().contiguous() for name, p in student.named_parameters()}
    found["eval_loss"] = torch.tensor(ours.evaluate()["eval_loss"])
    if ours.is_world_process_zero():
        save_file(found, Path(folder) / "found.safetensors")


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """Gradients that DDP does not see: the weights of the processes drift apart silently."""
    found = []
    for lean in ("yes", "no"):
        folder = tmp_path / lean
        folder.mkdir()
        launch(figures, folder, lean, processes=2)
        found.append(load_file(folder / "found.safetensors"))
    assert found[0].keys() == found[1].keys()
    for name, value in found[1].items():
        assert torch.allclose(found[0][name], value, rtol=1e-9), name


def gradients(student: Any, teacher: Any, rows: list[Any], with_lazy_logits: bool) -> None:
    """Backward of the loss of some rows, inside the student's forward as the trainer does it."""
    batch = collate(rows)
    heads = TaskModel(student), TaskModel(teacher)
    items = heads[0].items(batch)
    needs = Needs(logits=True, unsampled=True, full_vocabulary=True)
    with torch.no_grad():
        said = heads[1].ask(teacher, batch, needs, items)[1].detach()

    def run() -> Tensor:
        if not with_lazy_logits:
            ours = heads[0].ask(student, batch, needs, items)[1]
            return reduce(OBJECTIVE.terms(ours, said, items, Context()), items.counts())[0]
        ours = heads[0].ask(student, batch, Needs(lazy_logits=True), items)[1]
        return reduce_chunked(OBJECTIVE, StepInputs(ours, said, items, Context()), items.counts())[
            1
        ]

    redirected_forward(student, student, run).backward()


def sharded(folder: str, kind: str) -> None:
    """Gradients of a student under FSDP2, one half of the rows on each of two processes."""
    rank = PartialState(cpu=True).process_index
    student, teacher = CASES["causal_lm"].models()
    mesh = init_device_mesh("cpu", (2,))
    head = [student.lm_head] if kind == "head" else []
    for module in (*student.model.layers, *head, student):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    assert isinstance(student.lm_head, FSDPModule) == (kind == "head")
    gradients(student, teacher, CASES["causal_lm"].data()[4 * rank : 4 * rank + 4], True)
    found = {}
    for name, parameter in student.named_parameters():
        assert isinstance(parameter.grad, DTensor)
        found[name] = parameter.grad.full_tensor()
    if rank == 0:
        save_file(found, Path(folder) / "found.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["root", "head"])
def test_a_sharded_head(tmp_path: Path, kind: str) -> None:
    """A shard in place of the head, or the storage of a head that is gone again."""
    launch(sharded, tmp_path, kind, processes=2)
    found = load_file(tmp_path / "found.safetensors")
    student, teacher = CASES["causal_lm"].models()
    for half in (CASES["causal_lm"].data()[:4], CASES["causal_lm"].data()[4:]):
        gradients(student, teacher, half, False)
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(found[name], parameter.grad / 2, rtol=1e-9, atol=1e-12), name
