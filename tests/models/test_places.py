"""Models that have more places than the batch has tokens, and padding that is no token's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import (
    IA3Config,
    MultitaskPromptTuningConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from tiny_models import CASES, collate
from tiny_trainers import Recorder, models, trainer
from torch import Tensor

from hf_distill import (
    RKD,
    AttentionMaps,
    DistillationTrainer,
    ForwardKL,
    HardLabels,
    HiddenStates,
    MiniLMv2,
    TinyBERT,
)
from hf_distill.teachers import CachedTeacher, ModelTeacher
from hf_distill.teachers.cache import write_cache
from hf_distill.teachers.remote.http_teacher import HTTPTeacher
from hf_distill.teachers.serving import TeacherServer
from hf_distill.training.joint import OnlineDistillationTrainer
from hf_distill.training.on_policy import OnPolicyConfig, OnPolicyDistillationTrainer
from hf_distill.training.on_policy.generating import ModelGenerator, Sampling, until_end
from hf_distill.training.setup import StepSetup

tf: Any = transformers

# peft 0.21 reads an attribute that transformers 5.23 has renamed
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning"),
]

VIRTUAL = 3
TASK_TYPES = {
    "causal_lm": "CAUSAL_LM",
    "seq2seq_lm": "SEQ_2_SEQ_LM",
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
}


def adapter(kind: str, head: str) -> Any:
    task = TASK_TYPES[head]
    if kind == "prompt":
        return PromptTuningConfig(task_type=task, num_virtual_tokens=VIRTUAL)
    if kind == "p_tuning":
        return PromptEncoderConfig(
            task_type=task, num_virtual_tokens=VIRTUAL, encoder_hidden_size=16
        )
    if kind == "multitask":
        return MultitaskPromptTuningConfig(
            task_type=task, num_virtual_tokens=VIRTUAL, num_tasks=2, num_transformer_submodules=1
        )
    if kind == "prefix":
        return PrefixTuningConfig(task_type=task, num_virtual_tokens=VIRTUAL)
    return IA3Config(task_type=task)


def adapted(model: Any, kind: str, head: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        found = get_peft_model(model, adapter(kind, head))
    return found.eval()


def first_rows(head: str, rows: int = 4) -> list[dict[str, Any]]:
    found = CASES[head].data(rows, torch.float32)
    return found


def by_hand(head: str, batch: dict[str, Tensor], student: Tensor, teacher: Tensor) -> float:
    """KL(teacher ‖ student) of each item, from whole logits, their last places if there are more.

    A loop in float64.
    """
    total, count = 0.0, 0
    labels = batch["labels"]
    for row in range(len(labels)):
        if head == "sequence_classification":
            places = [None]
        elif head == "causal_lm":
            places = [t for t in range(labels.shape[1] - 1) if labels[row, t + 1] != -100]
        else:
            places = [t for t in range(labels.shape[1]) if labels[row, t] != -100]
        for place in places:
            ours, theirs = student[row], teacher[row]
            if place is not None:
                ours = ours[len(ours) - labels.shape[1] + place]
                theirs = theirs[len(theirs) - labels.shape[1] + place]
            log_s, log_t = (x.double().log_softmax(-1) for x in (ours, theirs))
            total += float((log_t.exp() * (log_t - log_s)).sum())
            count += 1
    return total / count


def logits_of(model: Any, batch: dict[str, Tensor], **more: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(**batch, **more).logits
    return found


def first_step(folder: Path, head: str, **options: Any) -> tuple[dict[str, float], Any]:
    """What the first step logs, and the trainer."""
    record = Recorder()
    ours = trainer(
        folder,
        head,
        train_dataset=options.pop("train_dataset", first_rows(head)),
        eval_dataset=options.pop("eval_dataset", first_rows(head)),
        callbacks=[record],
        max_steps=1,
        per_device_eval_batch_size=4,
        **options,
    )
    ours.train()
    return record.steps[0], ours


@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize(
    "side", ["student", "teacher", pytest.param("compiled", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", ["prompt", "p_tuning"])
def test_a_soft_prompt_moves_no_position(tmp_path: Path, kind: str, side: str, lean: bool) -> None:
    """The states in front of the head have the prompt's places too: read by number, every token is
    taught what another one says, without a word."""
    student, teacher = models("causal_lm")
    if side == "student":
        student = adapted(student, kind, "causal_lm")
    else:
        teacher = adapted(teacher, kind, "causal_lm")
    batch = collate(first_rows("causal_lm"))
    kl = by_hand("causal_lm", batch, logits_of(student, batch), logits_of(teacher, batch))
    with torch.no_grad():
        own = float(student(**batch).loss)
    if side == "compiled":
        teacher = torch.compile(teacher, backend="eager")
    cls = DistillationTrainer
    if not lean:

        class WithLogits(StepSetup):
            def build(self, step: Any, *rest: Any) -> None:
                super().build(step, *rest)
                step.lazy_logits = False

        class Whole(DistillationTrainer):
            setup = WithLogits()

        cls = Whole
    objective = 0.5 * HardLabels() + 0.5 * ForwardKL(1.0)
    options: dict[str, Any] = {"model": student, "teacher_model": teacher, "cls": cls}
    step, ours = first_step(tmp_path, "causal_lm", objective=objective, **options)
    assert ours.step.lazy_logits is lean
    assert step["forward_kl"] == pytest.approx(kl, abs=1e-5)
    assert step["hard_labels"] == pytest.approx(own, abs=1e-5)


def test_a_soft_prompt_is_evaluated_as_it_is_trained(tmp_path: Path) -> None:
    """An evaluation that reads other positions than the training picks the wrong checkpoint."""
    student, teacher = models("causal_lm")
    student = adapted(student, "prompt", "causal_lm")
    batch = collate(first_rows("causal_lm"))
    ours, theirs = logits_of(student, batch), logits_of(teacher, batch)
    with torch.no_grad():
        own = float(student(**batch).loss)
    options: dict[str, Any] = {"train_dataset": first_rows("causal_lm")}
    found = trainer(
        tmp_path,
        "causal_lm",
        model=student,
        teacher_model=teacher,
        eval_dataset=first_rows("causal_lm"),
        objective=0.5 * HardLabels() + 0.5 * ForwardKL(1.0),
        **options,
    ).evaluate()
    kl = by_hand("causal_lm", batch, ours, theirs)
    assert found["eval_forward_kl"] == pytest.approx(kl, abs=1e-5)
    assert found["eval_perplexity"] == pytest.approx(float(torch.tensor(own).exp()), rel=1e-4)
    labelled = batch["labels"][:, 1:] != -100
    same = ours[:, VIRTUAL:-1].argmax(-1) == theirs[:, :-1].argmax(-1)
    assert found["eval_agreement"] == pytest.approx(float(same[labelled].float().mean()))


@pytest.mark.parametrize("kind", ["prompt", "p_tuning", "multitask"])
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("head", ["seq2seq_lm", "sequence_classification", "token_classification"])
def test_soft_prompts_of_other_heads(tmp_path: Path, head: str, kind: str, side: str) -> None:
    """The prompt is in front of an encoder, of a classifier's text, of the tokens to be tagged."""
    student, teacher = models(head)
    rows = first_rows(head)
    if kind == "multitask":
        rows = [{**row, "task_ids": n % 2} for n, row in enumerate(rows)]
    batch = collate(rows)
    if side == "student":
        student = adapted(student, kind, head)
    else:
        teacher = adapted(teacher, kind, head)

    def said(model: Any) -> Tensor:
        own = dict(batch)
        if kind != "multitask" or not hasattr(model, "peft_config"):
            own.pop("task_ids", None)
        return logits_of(model, own if head == "seq2seq_lm" else unlabelled(own))

    expected = by_hand(head, batch, said(student), said(teacher))
    step, ours = first_step(
        tmp_path,
        head,
        model=student,
        teacher_model=teacher,
        objective=ForwardKL(1.0) + HiddenStates() + RKD(),
        train_dataset=rows,
        eval_dataset=rows,
    )
    assert step["forward_kl"] == pytest.approx(expected, abs=1e-5)
    assert ours.evaluate()["eval_agreement"] <= 1


def unlabelled(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        k: v for k, v in batch.items() if k not in ("labels", "start_positions", "end_positions")
    }


@pytest.mark.parametrize("kind", ["prompt", "prefix", "ia3"])
def test_hidden_states_behind_a_prompt(tmp_path: Path, kind: str) -> None:
    """States are compared over the tokens alone: the prompt's own have no counterpart."""
    student, teacher = models("causal_lm")
    student = adapted(student, kind, "causal_lm")
    teacher = models("causal_lm")[0]  # of the student's width: no projection
    batch = unlabelled(collate(first_rows("causal_lm")))
    with torch.no_grad():
        ours = student(**batch, output_hidden_states=True).hidden_states[-1]
        theirs = teacher.eval()(**batch, output_hidden_states=True).hidden_states[-1]
    apart = (ours[:, -theirs.shape[1] :] - theirs).double().square().mean(-1)
    real = batch["attention_mask"].bool()
    expected = float(apart[real].mean())
    step, _ = first_step(
        tmp_path,
        "causal_lm",
        model=student,
        teacher_model=teacher,
        objective=HiddenStates("-1:-1") + MiniLMv2(relation_heads=2),
    )
    assert step["hidden_states"] == pytest.approx(expected, rel=1e-4)


def test_modules_behind_a_prompt(tmp_path: Path) -> None:
    """A module's output has the prompt's places too; without its mask padding would count."""
    student = adapted(models("causal_lm")[0], "prompt", "causal_lm")
    teacher = models("causal_lm")[0]
    path = "model.layers.1"
    step, _ = first_step(
        tmp_path,
        "causal_lm",
        model=student,
        teacher_model=teacher,
        objective=HiddenStates(((path, path),)) + HiddenStates("-1:-1"),
    )
    batch = unlabelled(collate(first_rows("causal_lm")))
    kept: list[Tensor] = []

    def keep(module: Any, arguments: Any, output: Any) -> None:
        kept.append((output if isinstance(output, Tensor) else output[0])[:, -9:].double())

    student = adapted(models("causal_lm")[0], "prompt", "causal_lm")
    for model in (student, teacher):
        model.get_submodule(
            path if model is teacher else f"base_model.{path}"
        ).register_forward_hook(keep)
        logits_of(model, batch)
    apart = (kept[0] - kept[1]).square().mean(-1)[batch["attention_mask"].bool()]
    assert step["hidden_states"] == pytest.approx(float(apart.mean()), rel=1e-4)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_attention_maps_of_a_prompt_are_refused(tmp_path: Path, kind: str) -> None:
    """A part of the attention goes to the prompt: what is left is no distribution."""
    head = "causal_lm" if kind == "prefix" else "sequence_classification"
    student = adapted(models(head)[0], kind, head)
    options: dict[str, Any] = {"model": student, "teacher_model": models(head)[0]}
    with pytest.raises(ValueError, match=r"the student \(\w+\).* 3 virtual tokens.*scores=True"):
        trainer(tmp_path, head, objective=AttentionMaps(), **options)
    for objective in (AttentionMaps(scores=True), MiniLMv2(), TinyBERT()):
        step, _ = first_step(tmp_path, head, objective=objective, **options)
        assert 0 < step["loss"] < float("inf")


def test_peers_with_prompts(tmp_path: Path) -> None:
    """A peer's positions are shifted as a student's are."""
    student, _ = models("causal_lm")
    peer = adapted(models("causal_lm")[0], "prompt", "causal_lm")
    batch = collate(first_rows("causal_lm"))
    expected = by_hand("causal_lm", batch, logits_of(student, batch), logits_of(peer, batch))
    ours = OnlineDistillationTrainer(
        student,
        trainer(tmp_path, "causal_lm").args,
        peers=peer,
        objective=ForwardKL(1.0),
        peer_objective=HardLabels(),
        train_dataset=first_rows("causal_lm"),
        eval_dataset=first_rows("causal_lm"),
        data_collator=collate,
    )
    assert ours.evaluate()["eval_forward_kl"] == pytest.approx(expected, abs=1e-5)
    ours.train()


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")
@pytest.mark.parametrize("head", ["causal_lm", "seq2seq_lm"])
def test_a_student_with_a_prompt_writes_texts(tmp_path: Path, head: str) -> None:
    """A completion that is cut at the wrong place teaches the prompt's tokens, or loses its own;
    and PEFT writes other texts where prompts of several lengths share a batch."""
    student, teacher = models(head)
    student = adapted(student, "prompt", head)
    prompts = [[5, 6, 7, 8], [9, 10]]
    generator = ModelGenerator(student, Sampling(4, temperature=0.0))
    found = generator(prompts, seed=0)
    for prompt, completion in zip(prompts, found, strict=True):
        begin = getattr(student.config, "decoder_start_token_id", None)
        written = [] if head == "causal_lm" else [begin]
        for _ in range(4):
            if head == "causal_lm":
                own = {"input_ids": torch.tensor([[*prompt, *written]])}
            else:
                own = {"input_ids": torch.tensor([prompt])}
                own["decoder_input_ids"] = torch.tensor([written])
            written.append(int(logits_of(student, own)[0, -1].argmax()))
        written = written if head == "causal_lm" else written[1:]
        assert completion == until_end(written, generator.ends)
    cls: Any = OnPolicyDistillationTrainer
    options: dict[str, Any] = {"args": on_policy(tmp_path), "cls": cls, "teacher_model": teacher}
    with pytest.raises(ValueError, match="texts would be written without it"):
        trainer(tmp_path, head, model=adapted(models(head)[0], "prefix", head), **options)
    step, _ = first_step(tmp_path, head, model=student, **options)
    assert 0 < step["loss"] < 50


def on_policy(folder: Path) -> OnPolicyConfig:
    """One step of the student's own text."""
    return OnPolicyConfig(
        str(folder),
        max_steps=1,
        logging_steps=1,
        per_device_train_batch_size=4,
        lmbda=1.0,
        max_completion_length=4,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )


def test_a_cache_of_a_teacher_with_a_prompt(tmp_path: Path) -> None:
    """A cache that is written with shifted positions teaches them ever after; one that is read
    for a student with a prompt must be put at its tokens."""
    student, teacher = models("causal_lm")
    rows = first_rows("causal_lm")
    batch = collate(rows)
    student, teacher = (adapted(model, "prompt", "causal_lm") for model in (student, teacher))
    kl = by_hand("causal_lm", batch, logits_of(student, batch), logits_of(teacher, batch))
    folder = write_cache(tmp_path / "cache", ModelTeacher(teacher), rows, collate, say=len)
    options: dict[str, Any] = {"model": student, "objective": ForwardKL(1.0)}
    step, _ = first_step(
        tmp_path / "out", "causal_lm", teacher_model=CachedTeacher(folder), **options
    )
    assert step["forward_kl"] == pytest.approx(kl, abs=1e-5)


def test_a_served_teacher_with_a_prompt(tmp_path: Path) -> None:
    """What a server reads of its model is what the model itself would say here."""
    student, teacher = models("causal_lm")
    batch = collate(first_rows("causal_lm"))
    teacher = adapted(teacher, "prompt", "causal_lm")
    kl = by_hand("causal_lm", batch, logits_of(student, batch), logits_of(teacher, batch))
    with TeacherServer(ModelTeacher(teacher)) as server:
        step, _ = first_step(
            tmp_path, "causal_lm", teacher_model=HTTPTeacher(server.url), objective=ForwardKL(1.0)
        )
    assert step["forward_kl"] == pytest.approx(kl, abs=1e-5)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_metrics_see_both_predictions_in_one_shape(tmp_path: Path, side: str) -> None:
    """The stock trainer gives `compute_metrics` the prompt's places too, and a metric that counts
    from the front would read other tokens of the teacher."""
    head = "token_classification"
    student, teacher = models(head)
    if side == "student":
        student = adapted(student, "prompt", head)
    else:
        teacher = adapted(teacher, "prompt", head)
    more = VIRTUAL if side == "student" else 0
    batch = unlabelled(collate(first_rows(head)))
    expected = [logits_of(model, batch)[:, -9:].argmax(-1) for model in (student, teacher)]
    seen: list[Any] = []

    def keep(prediction: Any) -> dict[str, float]:
        seen.append(torch.as_tensor(prediction.predictions)[:, more:].argmax(-1))
        assert prediction.label_ids.shape == (4, 9)
        return {"seen": 1.0}

    trainer(
        tmp_path,
        head,
        model=student,
        teacher_model=teacher,
        eval_dataset=first_rows(head),
        per_device_eval_batch_size=4,
        objective=ForwardKL(1.0),
        compute_metrics=keep,
    ).evaluate()
    theirs, ours = seen  # the student's call is the last
    real = batch["attention_mask"].bool()
    assert torch.equal(ours[real], expected[0][real])
    assert torch.equal(theirs[real], expected[1][real])


def test_packed_texts_behind_a_prompt_are_refused(tmp_path: Path) -> None:
    """PEFT ignores the positions by which packed texts are kept apart."""
    student = adapted(models("causal_lm")[0], "prompt", "causal_lm")
    rows = [
        {"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8], "position_ids": [0, 1, 0, 1]}
        for _ in range(4)
    ]

    def packed(some: Any) -> dict[str, Tensor]:
        return {key: torch.tensor([row[key] for row in some]) for key in some[0]}

    with pytest.raises(
        ValueError, match=r"the student \(LlamaFor.*position_ids.*one text to a row"
    ):
        trainer(tmp_path, "causal_lm", model=student, train_dataset=rows, data_collator=packed)
