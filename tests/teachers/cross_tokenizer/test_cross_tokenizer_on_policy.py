"""Text that the student writes, judged by a teacher with another tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from launch import launch
from on_policy_runs import config, flat_gradient, processes
from safetensors.torch import load_file
from tiny_models import collate, quiet_arguments
from tiny_trainers import same, weights
from tokenizer_families import family, model
from torch import Tensor
from transformers import TrainerCallback

from hf_distill import (
    CrossTokenizerTeacher,
    DistillationTrainer,
    ForwardKL,
    HardLabels,
    LanguageCollator,
    ModelTeacher,
    OnPolicyDistillationTrainer,
    PrefixKL,
    Sampling,
    SpanKL,
    generate_dataset,
    tokenize,
)
from hf_distill.models.batches import GENERATED
from hf_distill.models.task_model import TaskModel
from hf_distill.training.on_policy.prompts import Prompts

STARTS = ["the end", "there", "an end and", "things", "the other", "then the", "of the", "another"]
ENDS = [" of the thing", " and then", " another thing ends there", " end", " thing", " and the end"]
EVERY = ForwardKL() + 0.5 * HardLabels() + 0.5 * PrefixKL() + SpanKL()
PAIRS = [("byte_level", "fallback"), ("fallback", "byte_level")]
PHANTOM = 3
"""Classes of the student that are no tokens."""


def tokens(name: str, start: str, end: str) -> tuple[list[int], list[int]]:
    """A prompt and its completion, as the tokenizer cuts the whole text."""
    prompt, whole = (family(name)(text)["input_ids"] for text in (start, start + end))
    assert whole[: len(prompt)] == prompt
    return prompt, whole[len(prompt) :]


def rows(name: str, shift: int = 0) -> list[dict[str, Any]]:
    """Prompts with completions, which end."""
    found = []
    for index, start in enumerate(STARTS):
        prompt, text = tokens(name, start, ENDS[(index + shift) % len(ENDS)])
        text = [*text, family(name).eos_token_id]
        found.append({"input_ids": prompt + text, "labels": [-100] * len(prompt) + text})
    return found


class Spoken:
    """Completes a prompt with the text of other rows, wherever it stands; half of them end."""

    def __init__(self, name: str):
        written = [(row["input_ids"], row["labels"].count(-100)) for row in rows(name, 3)]
        self.texts = {tuple(ids[:n]): ids[n : len(ids) - n % 2] for ids, n in written}
        self.asked: list[list[int]] = []

    def __call__(self, prompts: list[list[int]], seed: int) -> list[list[int]]:
        self.asked += prompts
        return [self.texts[tuple(prompt)] for prompt in prompts]


class Saying:
    """Completes every prompt with the same tokens."""

    def __init__(self, text: list[int]):
        self.text = text

    def __call__(self, prompts: list[list[int]], seed: int) -> list[list[int]]:
        return [self.text for _ in prompts]


class Watched(CrossTokenizerTeacher):
    """Keeps what it is asked about the student's own text."""

    seen: list[dict[str, Tensor]]

    def __call__(self, batch: Any, needs: Any, items: Any) -> Any:
        if GENERATED in batch:
            self.seen = [*getattr(self, "seen", []), dict(batch)]
        return super().__call__(batch, needs, items)


def pair(ours: str, theirs: str, folder: Path | str, **options: Any) -> tuple[Any, Watched]:
    student = model(len(family(ours)) + PHANTOM)
    other = model(len(family(theirs)) + 5, 1, width=24)
    made = Watched(other, family(theirs), family(ours), folder=Path(folder, "tokens"), **options)
    return student, made


def trainer(
    folder: Path | str,
    made: tuple[Any, Any],
    ours: str,
    cls: type[DistillationTrainer] = OnPolicyDistillationTrainer,
    generator: Any = None,
    objective: Any = EVERY,
    collator: Any = None,
    callbacks: Any = None,
    args: Any = None,
    data: Any = None,
    **arguments: Any,
) -> Any:
    student, teacher = made
    given = {} if cls is DistillationTrainer else {"generator": generator}
    settings = {"max_completion_length": 12, "max_steps": 1, **arguments}
    return cls(
        student,
        config(folder, **settings) if args is None else args,
        teacher.collator(collate) if collator is None else collator,
        rows(ours) if data is None else data,
        rows(ours, 1)[:5],
        teacher_model=teacher,
        objective=objective,
        processing_class=family(ours),
        callbacks=callbacks,
        **given,
    )


def steps(trained: Any) -> list[dict[str, float]]:
    return [entry for entry in trained.state.log_history if "loss" in entry]


# ---- what the teacher reads ----------------------------------------------------------------------


@pytest.mark.parametrize("replayed", [False, True], ids=["written", "replayed"])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_the_teacher_reads_what_was_written(
    ours: str, theirs: str, replayed: bool, tmp_path: Path
) -> None:
    """The teacher would judge the text of the data, or that of another row."""
    made = pair(ours, theirs, tmp_path)
    again: dict[str, Any] = {"replay_capacity": 4, "replay_ratio": 1.0} if replayed else {}
    run = trainer(tmp_path, made, ours, generator=Spoken(ours), max_steps=3, **again)
    run.train()
    assert ("replayed" in steps(run)[-1]) == replayed
    mine, other = family(ours), family(theirs)
    texts = set()
    assert len(made[1].seen) == 3
    for batch in made[1].seen:
        for row, mask, read, real in zip(
            *(batch[n] for n in ("input_ids", "attention_mask")),
            *(batch[f"teacher_{n}"] for n in ("input_ids", "attention_mask")),
            strict=True,
        ):
            ids = row[mask.bool()].tolist()
            text = mine.decode(ids, skip_special_tokens=True)
            ending = [other.eos_token_id] if ids[-1] == mine.eos_token_id else []
            assert read[real.bool()].tolist() == other(text)["input_ids"] + ending
            texts.add(text)
    assert texts <= {start + end for start in STARTS for end in ENDS}
    assert not texts & {mine.decode(r["input_ids"], skip_special_tokens=True) for r in rows(ours)}


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_prompts_do_not_depend_on_the_alignment(
    ours: str, theirs: str, labelled: bool, tmp_path: Path
) -> None:
    """Where the teacher has one token for the end of the prompt and the beginning of the answer, a
    part of the answer would be given away in the prompt."""
    student, teacher = pair(ours, theirs, tmp_path)
    ids = family(ours).convert_tokens_to_ids(list("then"))
    batch = teacher.collator(collate)([{"input_ids": ids, "labels": [-100, *ids[1:]]}])
    if not labelled:
        del batch["labels"]
    task_model = TaskModel(student)
    assert not task_model.items(batch).masks["items"][0, 0]
    assert Prompts(task_model).of(batch) == [ids[:1]]


# ---- the same tokenizer --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Student and teacher (end|pad)")
@pytest.mark.parametrize("objective", [ForwardKL(), PrefixKL()], ids=str)
@pytest.mark.parametrize("name", ["byte_level", "fallback"])
def test_the_same_tokenizer_is_plain_training(name: str, objective: Any, tmp_path: Path) -> None:
    """The way over bytes shows here if it changes a loss, a denominator or a window."""
    options: dict[str, Any] = {"max_steps": 4, "lmbda": 0.5, "optim": "sgd", "learning_rate": 0.1}
    size = len(family(name))
    student, teacher = model(size), ModelTeacher(model(size, 1, 24), family(name))
    plain = OnPolicyDistillationTrainer(
        student,
        config(tmp_path, max_completion_length=12, **options),
        collate,
        rows(name),
        teacher_model=teacher,
        objective=0.7 * ForwardKL() + 0.3 * HardLabels(),
        processing_class=family(name),
        generator=Spoken(name),
    )
    plain.train()
    own = CrossTokenizerTeacher(teacher, family(name), family(name), folder=tmp_path / "tokens")
    goal = 0.7 * objective + 0.3 * HardLabels()
    ours = trainer(
        tmp_path, (model(size), own), name, generator=Spoken(name), objective=goal, **options
    )
    ours.train()
    assert {entry["on_policy"] for entry in steps(ours)} == {0, 1}
    for one, other in zip(steps(ours), steps(plain), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert one["on_policy"] == other["on_policy"]
    before = weights(model(size))
    for key, found in weights(ours.model).items():
        expected = weights(plain.model)[key]
        assert (found - expected).abs().max() <= 1e-9 * (expected - before[key]).abs().max()


# ---- windows -------------------------------------------------------------------------------------


class Gradients(TrainerCallback):
    """Keeps the gradient of the last step."""

    found: Tensor

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        self.found = flat_gradient(model).clone()


def one_window(folder: str, ours: str, theirs: str, batch: str, accumulation: str) -> None:
    """Eight texts in one step; the first process writes down what came out."""
    watch = Gradients()
    run = trainer(
        folder,
        pair(ours, theirs, Path(folder, str(processes()))),
        ours,
        generator=Spoken(ours),
        callbacks=[watch],
        per_device_train_batch_size=int(batch),
        gradient_accumulation_steps=int(accumulation),
        learning_rate=0.0,
        optim="sgd",
        max_grad_norm=1e9,
    )
    run.train()
    if run.is_world_process_zero():
        names = ("loss", "grad_norm", "forward_kl", "prefix_kl", "span_kl", "completion_length")
        found = {"figures": {n: steps(run)[0][n] for n in names}, "gradient": watch.found.tolist()}
        name = f"{batch} {accumulation} {processes()}.json"
        Path(folder, name).write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("ours", "theirs", "split"),
    [
        *((*names, split) for names in PAIRS for split in ((4, 2, 1), (1, 8, 1))),
        pytest.param(*PAIRS[0], (2, 2, 2), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_split_changes_nothing(
    ours: str, theirs: str, split: tuple[int, int, int], tmp_path: Path
) -> None:
    """Each micro-batch of written text has another number of positions that are compared: divided
    by its own, accumulation and processes would change the gradient."""
    batch, accumulation, count = split
    one_window(str(tmp_path), ours, theirs, "8", "1")
    if count == 1:
        one_window(str(tmp_path), ours, theirs, str(batch), str(accumulation))
    else:
        arguments = (tmp_path, ours, theirs, str(batch), str(accumulation))
        launch(one_window, *arguments, processes=count)
    names = ("8 1 1", f"{batch} {accumulation} {count}")
    whole, parts = (json.loads((tmp_path / f"{name}.json").read_text()) for name in names)
    for name, expected in whole["figures"].items():
        close = 1e-6 if name == "loss" else 1e-9  # Trainer adds up the loss in float32
        assert parts["figures"][name] == pytest.approx(expected, rel=close), name
    np.testing.assert_allclose(parts["gradient"], whole["gradient"], rtol=1e-7, atol=1e-11)


def test_no_windows_of_its_own_are_the_plain_trainer(tmp_path: Path) -> None:
    """lmbda=0 would be another training than `DistillationTrainer`."""
    ours, theirs = PAIRS[0]
    options: dict[str, Any] = {"max_steps": 2, "learning_rate": 0.01}
    found = trainer(tmp_path, pair(ours, theirs, tmp_path), ours, lmbda=0.0, **options)
    args = quiet_arguments(tmp_path, per_device_train_batch_size=4, **options)
    made = pair(ours, theirs, tmp_path)
    plain = trainer(tmp_path, made, ours, DistillationTrainer, args=args)
    found.train()
    plain.train()
    assert same(weights(found.model), weights(plain.model))


def test_evaluation_is_on_the_data(tmp_path: Path) -> None:
    """eval_loss would be that of other texts at each evaluation."""
    ours, theirs = PAIRS[0]
    made = pair(ours, theirs, tmp_path)
    found = trainer(tmp_path, made, ours, generator=Saying([])).evaluate()
    args = quiet_arguments(tmp_path)
    expected = trainer(tmp_path, made, ours, DistillationTrainer, args=args).evaluate()
    names = ("eval_loss", "eval_hard_labels", "eval_forward_kl", "eval_prefix_kl", "eval_span_kl")
    assert [found[name] for name in names] == [expected[name] for name in names]


def test_resume_is_exact(tmp_path: Path) -> None:
    """A run that was stopped would have the teacher read other texts."""

    def run(folder: str) -> Any:
        ours, theirs = PAIRS[0]
        return trainer(
            tmp_path / folder,
            pair(ours, theirs, tmp_path),
            ours,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            train_sampling_strategy="random",
            learning_rate=0.01,
            lmbda=0.7,
            max_steps=8,
            max_completion_length=6,
            replay_capacity=6,
            replay_ratio=0.6,
            save_strategy="steps",
            save_steps=1,
        )

    run("whole").train()
    last = tmp_path / "whole" / "checkpoint-8"
    logs = json.loads((last / "trainer_state.json").read_text())["log_history"]
    shares = [(entry.get("on_policy"), entry.get("replayed")) for entry in logs]
    assert {(0.0, None), (1.0, None), (1.0, 1.0)} <= set(shares)
    for step in (1, 5):
        checkpoint = str(tmp_path / "whole" / f"checkpoint-{step}")
        run(f"from {step}").train(resume_from_checkpoint=checkpoint)
        other = tmp_path / f"from {step}" / "checkpoint-8"
        for name in ("model.safetensors", "replay-00000.safetensors"):
            assert same(load_file(other / name), load_file(last / name)), (step, name)
        state = json.loads((other / "trainer_state.json").read_text())
        assert state["log_history"] == logs


# ---- whatever a student writes -------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_a_character_that_is_cut(ours: str, theirs: str, tmp_path: Path) -> None:
    """The last bytes of a text that stopped at its greatest length would break the run, or be read
    by the teacher as a replacement character that nobody wrote."""
    prompt, text = tokens(ours, "the end", " of\u20ac")
    prompt, plain = tokens(ours, "the end", " of")
    assert text[: len(plain)] == plain
    assert len(text) - len(plain) == 3, "a byte a token"
    data = [{"input_ids": prompt + plain, "labels": [-100] * len(prompt) + plain}] * 4
    found = []
    for cut in (plain, text[:-1], text[:-2]):
        made = pair(ours, theirs, tmp_path)
        run = trainer(tmp_path, made, ours, generator=Saying(cut), data=data)
        run.train()
        (batch,) = made[1].seen
        assert batch["input_ids"][0].tolist() == prompt + cut
        assert batch["teacher_input_ids"][0].tolist() == family(theirs)("the end of")["input_ids"]
        found.append(steps(run)[0])
    for name in ("loss", "forward_kl", "prefix_kl", "span_kl"):
        assert np.isfinite(found[0][name])
        assert found[0][name] > 0
        for other in found[1:]:
            assert other[name] == pytest.approx(found[0][name], rel=1e-6), name


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_anything_may_be_written(ours: str, theirs: str, tmp_path: Path) -> None:
    """A student before its first lesson writes bytes in any order, marks that the teacher has not,
    and classes that are no tokens; after an hour's training that would end the run."""
    size = len(family(ours)) + PHANTOM

    class Babble:
        def __call__(self, prompts: list[list[int]], seed: int) -> list[list[int]]:
            random = np.random.default_rng(seed)
            return [[size - 1, *random.integers(0, size, 11).tolist()] for _ in prompts]

    run = trainer(
        tmp_path,
        pair(ours, theirs, tmp_path),
        ours,
        generator=Babble(),
        max_steps=6,
        learning_rate=0.01,
    )
    run.train()
    assert all(np.isfinite(entry["loss"]) for entry in steps(run))
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_an_unknown_mark_is_left_out_of_written_text_alone(
    ours: str, theirs: str, place: int, tmp_path: Path
) -> None:
    """The teacher would judge a text with other spaces, or teach to write the mark; in the data it
    is a mistake of the settings, and is told as before."""
    phantom = len(family(ours))
    made = pair(ours, theirs, tmp_path)
    prompt, text = tokens(ours, "the end", " of the")
    text.insert(place, phantom)
    data = [{"input_ids": prompt + text, "labels": [-100] * len(prompt) + text}] * 4
    collator = made[1].collator(collate)
    with pytest.raises(ValueError, match=f"got 'id {phantom}' of the student"):
        collator(data)
    written = {**collate(data), GENERATED: torch.ones(4, dtype=torch.bool)}
    batch = {**written, **collator.text_columns(written)}
    read = batch["teacher_input_ids"][0].tolist()
    assert read == family(theirs)("the end of the")["input_ids"]
    at = len(prompt) + place
    assert batch["teacher_positions"][0, at - 1] == -1
    assert batch["student_spans"][0, at - 1] == -1
    assert batch["teacher_positions"][0].max() > 0


def test_nothing_written_teaches_nothing(tmp_path: Path) -> None:
    """A window without a position to compare would be 0 / 0."""
    ours, theirs = PAIRS[0]
    watch = Gradients()
    made = pair(ours, theirs, tmp_path)
    run = trainer(tmp_path, made, ours, generator=Saying([]), callbacks=[watch])
    run.train()
    assert steps(run)[0]["loss"] == 0
    assert watch.found.abs().max() == 0


def test_a_text_of_which_the_teacher_reads_nothing(tmp_path: Path) -> None:
    """Attention over no token at all would make the whole batch NaN."""
    ours, theirs = PAIRS[1]
    tokenizer = family(ours)
    start, phantom = tokenizer.bos_token_id, len(tokenizer)

    class Some:
        def __call__(self, prompts: list[list[int]], seed: int) -> list[list[int]]:
            assert prompts == [[start]] * 4
            return [[phantom], *[tokenizer("of the end")["input_ids"][1:]] * 3]

    word = tokenizer("the")["input_ids"][1:]
    data = [{"input_ids": [start, *word], "labels": [-100, *word]}] * 4
    made = pair(ours, theirs, tmp_path)
    run = trainer(tmp_path, made, ours, generator=Some(), data=data)
    run.train()
    assert made[1].seen[0]["teacher_attention_mask"].any(-1).tolist() == [False, True, True, True]
    assert steps(run)[0]["loss"] > 0
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


# ---- what is refused -----------------------------------------------------------------------------


def test_a_collator_that_does_not_ask_the_teacher_is_refused(tmp_path: Path) -> None:
    """The first text of the student would end a run that trained well for an hour."""
    ours, theirs = PAIRS[0]
    made = pair(ours, theirs, tmp_path)
    with pytest.raises(ValueError, match=r"data_collator=teacher\.collator\(<your data"):
        trainer(tmp_path, made, ours, collator=collate)
    hidden = made[1].collator(collate)
    with pytest.raises(ValueError, match=r"hidden in another one: got function.*the outermost"):
        trainer(tmp_path, made, ours, collator=lambda examples: hidden(examples))


def test_seq_kd_names_a_way_that_works(tmp_path: Path) -> None:
    """The teacher's tokens would be taken for the student's; and the remedy must be one."""
    ours, theirs = PAIRS[0]
    made = pair(ours, theirs, tmp_path)
    with pytest.raises(ValueError, match=r"of another tokenizer.*generate_dataset\("):
        trainer(tmp_path, made, ours, seq_kd=True)

    mine, its_tokenizer = family(ours), family(theirs)
    dataset = Dataset.from_list([{"prompt": start, "completion": " end"} for start in STARTS])
    prompts, short = tokenize(dataset, its_tokenizer), Sampling(8)
    folder = tmp_path / "written"
    written = generate_dataset(made[1].teacher, prompts, its_tokenizer, folder, sampling=short)

    def text(row: dict[str, Any]) -> dict[str, str]:
        ids, length = row["input_ids"], row["labels"].count(-100)
        start, whole = (
            its_tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:length], ids)
        )
        return {"prompt": start, "completion": whole.removeprefix(start)}

    data = tokenize(written.map(text, remove_columns=written.column_names), mine)
    collator = made[1].collator(LanguageCollator(mine))
    run = trainer(tmp_path, made, ours, data=data, collator=collator, max_completion_length=4)
    run.train()
    assert steps(run)[0]["loss"] > 0
