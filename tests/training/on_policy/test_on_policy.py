"""Training on the student's own text: what is counted, what is drawn, what is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from launch import launch
from on_policy_runs import END, LONGEST, Fixed, Given, config, flat_gradient, processes, trainer
from peft import LoraConfig, TaskType
from safetensors.torch import load_file
from tiny_models import CASES, VOCAB, collate, quiet_arguments
from tiny_trainers import log_softmax, same, weights
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from hf_distill import (
    CachedTeacher,
    DistillationConfig,
    DistillationTrainer,
    Ensemble,
    ForwardKL,
    HardLabels,
    JensenShannon,
    LanguageCollator,
    ModelGenerator,
    ModelTeacher,
    OnPolicyConfig,
    Sampling,
    pack,
    write_cache,
)
from hf_distill.training.on_policy.config import raised

DATA = Path(__file__).resolve().parents[2] / "data"
EVERYTHING = 0.3 * HardLabels() + 0.7 * JensenShannon(1.0, beta=0.3) + 0.5 * ForwardKL(2.0)
FIGURES = ("loss", "grad_norm", "jensen_shannon", "forward_kl")


class Gradients(TrainerCallback):
    """Keeps the gradient of every step."""

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        self.found.append(flat_gradient(model).clone())


def steps(trained: Any) -> list[dict[str, float]]:
    return [entry for entry in trained.state.log_history if "loss" in entry]


def prompt_of(row: dict[str, Any]) -> list[int]:
    """What stands before the first label."""
    first = next(i for i, label in enumerate(row["labels"]) if label != -100)
    return list(row["input_ids"][:first])


# ---- exactness -----------------------------------------------------------------------------------


def one_window(folder: str, batch: str, accumulation: str, head: str = "causal_lm") -> None:
    """Eight texts in one step; the first process writes down what came out."""
    gradients = Gradients()
    trained = trainer(
        folder,
        head,
        generator=Fixed(),
        objective=EVERYTHING,
        callbacks=[gradients],
        per_device_train_batch_size=int(batch),
        gradient_accumulation_steps=int(accumulation),
        max_steps=1,
        learning_rate=0.0,
        optim="sgd",
        max_grad_norm=1e9,
    )
    trained.train()
    if trained.is_world_process_zero():
        (entry,) = steps(trained)
        found = {"figures": entry, "gradient": gradients.found[0].tolist()}
        Path(folder, f"{head} {batch} {accumulation} {processes()}.json").write_text(
            json.dumps(found)
        )


def outcome(folder: Path, batch: int, accumulation: int, count: int, head: str) -> dict[str, Any]:
    path = folder / f"{head} {batch} {accumulation} {count}.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("head", ["causal_lm", "seq2seq_lm"])
@pytest.mark.parametrize(
    "split",
    [(4, 2, 1), (2, 4, 1), (1, 8, 1), pytest.param((2, 2, 2), marks=pytest.mark.slow)],
    ids=str,
)
def test_a_window_of_written_text_is_one_batch(
    tmp_path: Path, split: tuple[int, int, int], head: str
) -> None:
    """The loss would be divided by the tokens of the data, or micro-batch by micro-batch, so that
    accumulation and processes changed the gradient."""
    batch, accumulation, count = split
    one_window(str(tmp_path), "8", "1", head)
    if count == 1:
        one_window(str(tmp_path), str(batch), str(accumulation), head)
    else:
        arguments = (str(tmp_path), str(batch), str(accumulation), head)
        launch(one_window, *arguments, processes=count)
    whole = outcome(tmp_path, 8, 1, 1, head)
    parts = outcome(tmp_path, batch, accumulation, count, head)
    names = [*FIGURES, "on_policy", "completion_length", "completions_finished"]
    for name in names:
        close = 1e-6 if name == "loss" else 1e-9  # Trainer adds up the loss in float32
        assert parts["figures"][name] == pytest.approx(whole["figures"][name], rel=close), name
    np.testing.assert_allclose(parts["gradient"], whole["gradient"], rtol=1e-7, atol=1e-11)


def jensen_shannon(student: np.ndarray, teacher: np.ndarray, beta: float) -> np.ndarray:
    """Each token's generalised Jensen-Shannon divergence, from its definition in float64."""
    s, t = np.exp(log_softmax(student)), np.exp(log_softmax(teacher))
    m = beta * t + (1 - beta) * s
    kl = lambda p: (p * (np.log(p) - np.log(m))).sum(-1)  # noqa: E731 (as in the paper)
    return np.asarray(beta * kl(t) + (1 - beta) * kl(s))


def test_the_loss_is_that_of_gkd_on_the_written_tokens(tmp_path: Path) -> None:
    """A loss on the prompts, on what follows an end token, or of a neighbouring token.

    The divergence by hand is first held against a value of the original implementation.
    """
    index = json.loads((DATA / "reference_index.json").read_text())
    case = next(c for c in index if c["id"] == "distribution.jensen_shannon-gkd_trainer-0-10")
    arrays = np.load(DATA / "reference_cases.npz")
    names = ("student", "teacher", "labels")
    student, teacher, labels = (arrays[f"{case['id']}/{name}"] for name in names)
    beta = case["parameters"]["beta"]
    values = jensen_shannon(student, teacher, beta)[labels != -100]
    assert values.mean() == pytest.approx(case["value"], rel=1e-9)

    models = CASES["causal_lm"].models()
    rows = CASES["causal_lm"].data(4)
    expected: list[float] = []
    for row in rows:
        prompt = prompt_of(row)
        text = Fixed.of(prompt)
        ids = torch.tensor([prompt + text])
        where = slice(len(prompt) - 1, -1)
        ours, theirs = (m.eval()(ids).logits[0, where].detach().numpy() for m in models)
        expected += jensen_shannon(ours, theirs, beta).tolist()
    trained = trainer(
        tmp_path,
        generator=Fixed(),
        objective=1.0 * JensenShannon(1.0, beta=beta),
        train_dataset=rows,
        max_steps=1,
    )
    trained.train()
    assert steps(trained)[0]["jensen_shannon"] == pytest.approx(np.mean(expected), rel=1e-9)
    assert steps(trained)[0]["completion_length"] == pytest.approx(len(expected) / 4)


@pytest.mark.parametrize("plain", [False, True], ids=["in pieces", "with logits"])
def test_labels_count_on_the_data_alone(tmp_path: Path, plain: bool) -> None:
    """The student would learn its own text as if it were right, at weight 1 - alpha."""
    options: dict[str, Any] = {"log_gradient_norms": plain, "max_steps": 6, "learning_rate": 0.0}
    objective = 0.3 * HardLabels() + 0.7 * ForwardKL()
    mixed = trainer(tmp_path, objective=objective, generator=Fixed(), lmbda=0.5, **options)
    mixed.train()
    entries = steps(mixed)
    own = [entry for entry in entries if entry["on_policy"] == 1]
    data = [entry for entry in entries if entry["on_policy"] == 0]
    assert own
    assert data
    for entry in own:
        assert "hard_labels" not in entry
        assert entry["loss"] == pytest.approx(0.7 * entry["forward_kl"], rel=1e-6)
        assert not plain or entry["grad_norm_hard_labels"] == 0
    for entry in data:
        total = 0.3 * entry["hard_labels"] + 0.7 * entry["forward_kl"]
        assert entry["loss"] == pytest.approx(total, rel=1e-6)


def test_the_mean_of_the_labels_is_over_the_windows_that_have_some(tmp_path: Path) -> None:
    """With half of the windows on-policy, the label loss would be logged at half of what it is."""
    options: dict[str, Any] = {"generator": Fixed(), "lmbda": 0.5, "learning_rate": 0.0}
    single = trainer(tmp_path, max_steps=6, **options)
    single.train()
    expected = [entry["hard_labels"] for entry in steps(single) if "hard_labels" in entry]
    assert 0 < len(expected) < 6
    together = trainer(tmp_path, max_steps=6, logging_steps=6, **options)
    together.train()
    assert steps(together)[0]["hard_labels"] == pytest.approx(np.mean(expected), rel=1e-9)


# ---- what is drawn, and from where ---------------------------------------------------------------


def test_no_windows_of_its_own_are_the_plain_trainer(tmp_path: Path) -> None:
    """lmbda=0 would be another training than `DistillationTrainer`, by a random number drawn."""
    options: dict[str, Any] = {"max_steps": 3, "learning_rate": 0.01}
    ours = trainer(tmp_path, dropout=0.3, lmbda=0.0, **options)
    ours.train()
    plain = trainer(
        tmp_path,
        cls=DistillationTrainer,
        dropout=0.3,
        args=quiet_arguments(tmp_path, per_device_train_batch_size=4, **options),
    )
    plain.train()
    assert same(weights(ours.model), weights(plain.model))
    assert "on_policy" not in steps(ours)[0]


class Recording:
    """Generates as the trainer does by itself, and keeps the texts."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.texts: list[list[int]] = []

    def __call__(self, prompts: list[list[int]], seed: int) -> list[list[int]]:
        found = self.trainer._model_generator()(prompts, seed)
        self.texts += found
        return list(found)


@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "gradient checkpointing"])
def test_generating_leaves_the_training_alone(tmp_path: Path, checkpointed: bool) -> None:
    """Sampling in the training's random state would change its dropout, and a student left in eval
    mode would train without any."""
    options: dict[str, Any] = {
        "dropout": 0.3,
        "max_steps": 3,
        "learning_rate": 0.01,
        "activation_checkpointing": checkpointed,
    }
    recording = Recording()
    writing = recording.trainer = trainer(tmp_path, generator=recording, **options)
    writing.train()
    alone = trainer(tmp_path, **options)
    alone.train()
    reading = trainer(tmp_path, generator=Given(recording.texts), **options)
    reading.train()
    assert len({tuple(text) for text in recording.texts}) > 6
    assert same(weights(writing.model), weights(alone.model))
    assert same(weights(writing.model), weights(reading.model))


def run_for_resume(folder: Path, **options: Any) -> Any:
    random_order = {"train_sampling_strategy": "random", "num_train_epochs": 4, "max_steps": -1}
    return trainer(
        folder,
        dropout=0.3,
        train_dataset=CASES["causal_lm"].data(10),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2 // processes(),
        learning_rate=0.01,
        lmbda=0.7,
        replay_capacity=6 // processes(),
        replay_ratio=0.6,
        save_strategy="steps",
        save_steps=1,
        **random_order,
        **options,
    )


def stop_and_resume(folder: str, *stops: str) -> None:
    """Train once without a stop, then on from some of the checkpoints."""
    whole = Path(folder, "whole")
    run_for_resume(whole).train()
    for step in stops:
        resumed = run_for_resume(Path(folder, f"from {step}"))
        resumed.train(resume_from_checkpoint=str(whole / f"checkpoint-{step}"))


def test_figures_go_on_within_an_interval(tmp_path: Path) -> None:
    """The share of own text, and all else in the first entry, would be of a part of its steps."""
    whole = run_for_resume(tmp_path / "whole", logging_steps=5)
    whole.train()
    resumed = run_for_resume(tmp_path / "resumed", logging_steps=5)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert steps(resumed) == steps(whole)


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_resume_is_exact(tmp_path: Path, count: int) -> None:
    """A run that was stopped would go on with other windows, other texts, or an empty buffer."""
    stops = ("1", "6", "11")
    if count == 1:
        stop_and_resume(str(tmp_path), *stops)
    else:
        launch(stop_and_resume, tmp_path, *stops, processes=count)
    last = tmp_path / "whole" / "checkpoint-12"
    logs = json.loads((last / "trainer_state.json").read_text())["log_history"]
    own = [entry for entry in logs if entry.get("on_policy") == 1]
    drawn = [entry for entry in own if entry.get("replayed") == 1]
    assert 0 < len(drawn) < len(own) < len(logs)
    for step in stops:
        other = tmp_path / f"from {step}" / "checkpoint-12"
        names = ["model.safetensors", *(f"replay-{rank:05d}.safetensors" for rank in range(count))]
        for name in names:
            found, expected = load_file(other / name), load_file(last / name)
            assert same(found, expected), (step, name)
        state = json.loads((other / "trainer_state.json").read_text())
        assert state["log_history"] == logs


def test_a_lost_buffer_starts_empty(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint from the Hub, which holds no text of the student, could not be resumed."""
    run_for_resume(tmp_path / "whole").train()
    checkpoint = tmp_path / "whole" / "checkpoint-11"
    (checkpoint / "replay-00000.safetensors").unlink()
    resumed = run_for_resume(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 12
    assert "the replay buffer starts empty" in caplog.text


def test_the_share_of_windows_is_lmbda(tmp_path: Path) -> None:
    """A quarter of the windows on-policy where half was asked for."""
    drawing = trainer(tmp_path, generator=Fixed(), lmbda=0.3)
    own = 0
    for drawing.state.global_step in range(4000):
        own += drawing._random(0).random() < drawing.lmbda
    assert own == pytest.approx(1200, abs=4 * (4000 * 0.3 * 0.7) ** 0.5)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], 0.2),
        ([1.0], 0.2),
        ([1.0, 0.5, 0.7, 1.05], 0.2),  # above the one before, not above the first by 0.1
        ([1.0, 1.1], 0.3),
        ([1.0, 1.2, 1.25, 1.3, 1.0], 0.4),  # 1.25 is not 0.1 above 1.2, 1.3 is
        ([float(n) for n in range(20)], 1.0),
    ],
)
def test_lmbda_follows_the_evaluations(losses: list[float], expected: float) -> None:
    """The share would rise with noise, or fall, or pass 1."""
    assert raised(0.2, losses) == pytest.approx(expected)


def test_adaptive_windows_begin_when_the_loss_has_risen(tmp_path: Path) -> None:
    """adaptive_lmbda would be a setting without an effect: lmbda stays 0."""
    adaptive = trainer(
        tmp_path,
        lmbda=0.0,
        adaptive_lmbda=True,
        eval_strategy="steps",
        eval_steps=1,
        eval_dataset=CASES["causal_lm"].data(4),
        learning_rate=0.5,
        max_steps=12,
        generator=Fixed(),
    )
    adaptive.train()
    losses = [e["eval_loss"] for e in adaptive.state.log_history if "eval_loss" in e]
    assert max(losses) > losses[0] + 0.1
    assert adaptive.lmbda == pytest.approx(raised(0.0, losses))
    assert adaptive.lmbda > 0


# ---- texts at the edge ---------------------------------------------------------------------------


def test_empty_completions_teach_nothing_and_break_nothing(tmp_path: Path) -> None:
    """A window without a single token would be 0 / 0."""
    gradients = Gradients()
    trained = trainer(
        tmp_path,
        generator=Given([[]] * 4),
        callbacks=[gradients],
        objective=EVERYTHING,
        max_steps=1,
    )
    trained.train()
    assert steps(trained)[0]["loss"] == 0
    assert gradients.found[0].abs().max() == 0


def test_a_completion_may_be_the_end_token_alone(tmp_path: Path) -> None:
    """That the text should have gone on is what the teacher has to say there."""
    student, teacher = CASES["causal_lm"].models()
    row = CASES["causal_lm"].data(1)[0]
    ids = torch.tensor([prompt_of(row)])
    ours, theirs = (log_softmax(m.eval()(ids).logits[0, -1].detach()) for m in (student, teacher))
    expected = (np.exp(theirs) * (theirs - ours)).sum()
    trained = trainer(
        tmp_path,
        generator=Given([[END, 5, 6]]),
        objective=1.0 * ForwardKL(),
        train_dataset=[row],
        max_steps=1,
    )
    trained.train()
    (entry,) = steps(trained)
    assert entry["forward_kl"] == pytest.approx(expected, rel=1e-9)
    assert entry["completion_length"] == 1
    assert entry["completions_finished"] == 1


def test_packed_rows_become_the_texts_that_they_hold(tmp_path: Path) -> None:
    """A packed row would be completed at its end, as if its texts were one."""
    rows = CASES["causal_lm"].data(6)
    import datasets

    packed = pack(datasets.Dataset.from_list(rows), 20)
    assert len(packed) < 6
    seen: list[list[int]] = []

    class Watch(Fixed):
        def __call__(self, prompts: list[list[int]], seed: int) -> list[list[int]]:
            seen.extend(prompts)
            return super().__call__(prompts, seed)

    class Tokenizer:
        pad_token_id, eos_token_id = 0, END

    trained = trainer(
        tmp_path,
        generator=Watch(),
        train_dataset=packed,
        data_collator=LanguageCollator(Tokenizer()),
        max_steps=1,
    )
    trained.train()
    assert sorted(seen) == sorted(prompt_of(row) for row in rows)


def test_evaluation_is_on_the_data(tmp_path: Path) -> None:
    """eval_loss would be that of other texts at each evaluation."""
    data = CASES["causal_lm"].data(4)
    ours = trainer(tmp_path, generator=Given([]), eval_dataset=data)
    plain = trainer(
        tmp_path, cls=DistillationTrainer, args=quiet_arguments(tmp_path), eval_dataset=data
    )
    found, expected = ours.evaluate(), plain.evaluate()
    names = ("eval_loss", "eval_hard_labels", "eval_forward_kl")
    assert [found[name] for name in names] == [expected[name] for name in names]


# peft 0.21 reads an attribute that transformers 5.23 has renamed
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_writes_too(tmp_path: Path) -> None:
    """Generation would go by the base model, or train more than the adapter."""
    trained = trainer(
        tmp_path,
        peft_config=LoraConfig(task_type=TaskType.CAUSAL_LM, r=4, init_lora_weights=False),
        learning_rate=0.01,
        generation_temperature=0.0,
    )
    prompts = [prompt_of(row) for row in CASES["causal_lm"].data(4)]
    before = trained._model_generator()(prompts, 0)
    with trained.model.disable_adapter():
        base = trained._model_generator()(prompts, 0)
    assert before != base
    trained.train()
    assert all(np.isfinite(entry["loss"]) for entry in steps(trained))


def test_completions_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """log_completions would show prompts that were not asked, or nothing."""
    rows = CASES["causal_lm"].data(4)
    trainer(tmp_path, generator=Fixed(), train_dataset=rows, log_completions=2, max_steps=1).train()
    expected = [f"{prompt_of(row)} -> {Fixed.of(prompt_of(row))}" for row in rows[2:]]
    assert all(line in capsys.readouterr().out for line in expected[:1])


# ---- teachers ------------------------------------------------------------------------------------


def test_a_cache_needs_its_teacher_beside_it(tmp_path: Path) -> None:
    """The first text of the student would end a run that trained well for an hour."""
    teacher = ModelTeacher(CASES["causal_lm"].models()[1])
    data = CASES["causal_lm"].data(4)
    path = write_cache(tmp_path / "cache", teacher, data, collate, say=lambda line: None)
    options: dict[str, Any] = {"train_dataset": data, "generator": Fixed(), "max_steps": 3}
    with pytest.raises(ValueError, match="live="):
        trainer(tmp_path, teacher_model=CachedTeacher(path), **options)
    both = Ensemble([teacher, CachedTeacher(path, live=teacher)])
    with pytest.raises(ValueError, match="ensemble is a cache"):
        trainer(tmp_path, teacher_model=both, **options)
    trainer(tmp_path, teacher_model=CachedTeacher(path), lmbda=0.0, **options).train()

    cached = CachedTeacher(path, live=teacher)
    mixed = trainer(tmp_path, teacher_model=cached, lmbda=0.5, **options)
    live = trainer(tmp_path, teacher_model=teacher, lmbda=0.5, **options)
    mixed.train()
    live.train()
    for one, other in zip(steps(mixed), steps(live), strict=True):
        assert one["forward_kl"] == pytest.approx(other["forward_kl"], rel=1e-5)
    assert len(CachedTeacher(path)._store) == 4, "answers about the student's text were kept"


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lmbda": 1.5}, "lmbda between 0 and 1, got 1.5"),
        ({"lmbda": "half"}, "lmbda between 0 and 1, got 'half'"),
        ({"lmbda": None}, "lmbda"),
        ({"seq_kd": "no"}, "seq_kd as True or False, got 'no'"),
        ({"continuous_batching": "no"}, "continuous_batching as True or False"),
        ({"replay_capacity": 1.5}, "replay_capacity of at least 0 as a whole number"),
        ({"log_completions": "2"}, "log_completions"),
        ({"generation_batch_size": 0}, "generation_batch_size"),
        ({"replay_ratio": 0.5}, "replay_capacity"),
        ({"max_completion_length": 0}, "max_completion_length"),
        ({"max_completion_length": 2.5}, "max_completion_length of at least 1 as a whole number"),
        ({"max_completion_length": True}, "max_completion_length"),
        ({"generation_temperature": float("inf")}, "generation_temperature"),
        ({"generation_temperature": "hot"}, "generation_temperature of at least 0, got 'hot'"),
        ({"top_k": 1.5}, "top_k of at least 0 as a whole number"),
        ({"min_p": float("nan")}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty above 0"),
        ({"generation_temperature": -1.0}, "generation_temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"prompt_length": 0}, "prompt_length"),
        ({"adaptive_lmbda": True}, "eval_strategy"),
        ({"generation_kwargs": {"temperature": 2.0}}, "generation_temperature"),
        ({"generation_kwargs": {"num_return_sequences": 2}}, "one completion per prompt"),
        ({"generation_kwargs": {"max_new_token": 3}}, r"\['max_new_token'\].*max_new_tokens"),
        ({"generation_kwargs": {"eos_token_id": [2, "</s>"]}}, "eos_token_id .* got '</s>'"),
        ({"generation_kwargs": "no_repeat_ngram_size=2"}, "generation_kwargs as a dict"),
        ({"generation_kwargs": [2]}, "generation_kwargs as a dict"),
    ],
)
def test_arguments_are_checked(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    """A setting out of its range would be found at the first generation, or never."""
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "token_classification"}, "token_classification"),
        ({"objective": 1.0 * HardLabels()}, "judges the student's own text"),
        ({"max_completion_length": 32}, "below the context of 32"),
        ({"head": "seq2seq_lm", "prompt_length": 3}, "causal language models"),
    ],
    ids=str,
)
def test_what_cannot_be_on_policy_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    """It would fail at the first window of the student's own, if at all."""
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **options)


def test_arguments_of_another_trainer_are_refused(tmp_path: Path) -> None:
    """The arguments of `DistillationTrainer` have no lmbda: the run would stay off-policy."""
    with pytest.raises(ValueError, match="OnPolicyConfig"):
        trainer(tmp_path, args=DistillationConfig(str(tmp_path), use_cpu=True, report_to="none"))


@pytest.mark.parametrize(
    ("texts", "message"),
    [([[3]] * 3, "a completion for each of 4"), ([[3, VOCAB]] * 4, "vocabulary of 40")],
)
def test_a_generator_that_errs_is_told(
    tmp_path: Path, texts: list[list[int]], message: str
) -> None:
    """Prompts and completions would be paired wrongly, or the embedding fail with an index."""

    class Wrong:
        def __call__(self, prompts: list[list[int]], seed: int) -> list[list[int]]:
            return texts

    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, generator=Wrong()).train()


def test_the_arguments_come_back_from_json(tmp_path: Path) -> None:
    """A recipe or a command line gives generation_kwargs as text."""
    given = config(tmp_path, generation_kwargs='{"no_repeat_ngram_size": 2}', top_k=5)
    assert given.sampling() == Sampling(LONGEST, top_k=5, others={"no_repeat_ngram_size": 2})
    assert isinstance(given, OnPolicyConfig)


# ---- students on several processes ---------------------------------------------------------------


def sharded(folder: str) -> None:
    """Under FSDP2 each of two processes writes texts, of different lengths, after its prompts."""
    rank = PartialState(cpu=True).process_index
    student = CASES["causal_lm"].models()[0]
    mesh = init_device_mesh("cpu", (2,))
    for module in (*student.model.layers, student):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    assert isinstance(next(student.parameters()), DTensor)
    prompts = [prompt_of(row) for row in CASES["causal_lm"].data(8)][4 * rank : 4 * rank + 4]
    texts = ModelGenerator(student, Sampling(20 if rank else 6))(prompts, rank)
    Path(folder, f"{rank}.json").write_text(json.dumps(texts))


@pytest.mark.slow
def test_a_sharded_student_writes(tmp_path: Path) -> None:
    """Processes whose texts end earlier would leave the others waiting for their shards."""
    launch(sharded, tmp_path, processes=2)
    student = CASES["causal_lm"].models()[0]
    prompts = [prompt_of(row) for row in CASES["causal_lm"].data(8)]
    for rank, longest in ((0, 6), (1, 20)):
        own = prompts[4 * rank : 4 * rank + 4]
        wanted = ModelGenerator(student, Sampling(longest))(own, rank)
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == wanted
