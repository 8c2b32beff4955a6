"""A teacher with another tokenizer: what it says, the losses, and training with it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import collate, quiet_arguments
from tokenizer_families import CORPUS, byte_level, family, model
from torch import Tensor
from transformers import TrainerCallback

from hf_distill import (
    CrossTokenizerTeacher,
    DistillationTrainer,
    ForwardKL,
    HardLabels,
    JensenShannon,
    LanguageCollator,
    ModelTeacher,
    Objective,
    PrefixKL,
    ReverseKL,
    SpanKL,
    TotalVariation,
    UniversalLogitDistance,
    WeightedSum,
)
from hf_distill.losses.distribution.cross_tokenizer import (
    merged_kl,
    span_kl,
    universal_logit_distance,
)
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.models.task_model import TaskModel
from hf_distill.objectives.base.objective import Context
from hf_distill.teachers.cross_tokenizer import ByteTokens
from hf_distill.training.reduction import reduce

TEXTS = [
    "the end of the thing",
    "there and then",
    "an end and another thing ends there",
    "things end",
    "the other thing",
    "then the things there and another end",
    "of the end",
    "another and another",
]
CROSSING = Needs(logits=True, unsampled=True, cross_tokenizer=True)
PAIRS = [("byte_level", "fallback"), ("fallback", "byte_level"), ("unigram", "byte_level")]


def rows(name: str, texts: list[str] = TEXTS, prompt: int = 0) -> list[dict[str, Any]]:
    """Tokenized texts with an end; the first tokens carry no label."""
    tokenizer = family(name)
    found = []
    for text in texts:
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        found.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return found


def pair(
    ours: str, theirs: str, folder: Path, teacher_seed: int = 1, **options: Any
) -> tuple[Any, CrossTokenizerTeacher]:
    student = model(len(family(ours)))
    other = model(len(family(theirs)) + 5, teacher_seed, width=24)  # 5 phantom entries
    made = CrossTokenizerTeacher(other, family(theirs), family(ours), folder=folder, **options)
    return student, made


def both_signals(
    student: Any, teacher: CrossTokenizerTeacher, data: list[dict[str, Any]]
) -> tuple[Signal, Signal, BatchItems, dict[str, Tensor]]:
    batch = teacher.collator(collate)(data)
    task_model = TaskModel(student.eval())
    items = task_model.items(batch)
    _, ours = task_model.ask(student, batch, Needs(logits=True), items)
    return ours, teacher(batch, CROSSING, items), items, batch


def value(objective: Objective, ours: Signal, theirs: Signal, items: BatchItems) -> Tensor:
    return reduce((1.0 * objective).terms(ours, theirs, items, Context()), items.counts())[0]


# ---- brute force ------------------------------------------------------------------------------


def by_text(spelling: ByteTokens, ids: list[int], logits: Tensor) -> dict[Any, Tensor]:
    """What has been read (beginnings left out) -> the log-probabilities of what comes next."""
    found = {}
    for t in range(len(ids)):
        said = [
            "END" if i == spelling.roles["eos"] else spelling.bytes[i]
            for i in ids[: t + 1]
            if i != spelling.roles.get("bos")
        ]
        key = ("END" in said, b"".join(x for x in said if isinstance(x, bytes)))
        found[key] = logits[t].log_softmax(-1)
    return found


def classes_of(spelling: ByteTokens) -> list[Any]:
    ends = {spelling.roles["eos"]: "END"}
    return [ends.get(i, spelling.bytes[i]) for i in range(len(spelling))]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS[:2])
def test_divergences_by_brute_force(
    ours: str, theirs: str, temperature: float, tmp_path: Path
) -> None:
    """A position late, a bucket that holds the wrong tokens, a text read with another beginning:
    all train without an error."""
    student, teacher = pair(ours, theirs, tmp_path, temperature=temperature)
    data = rows(ours, TEXTS[:3])
    mine, other = teacher.translator.student, teacher.translator.teacher
    signal, said, items, batch = both_signals(student, teacher, data)
    expected, entries = torch.zeros(()).double(), 0
    for r, row in enumerate(data):
        ids = row["input_ids"]
        with torch.no_grad():
            z = student(input_ids=torch.tensor([ids])).logits[0] / temperature
            own = batch["teacher_input_ids"][r][batch["teacher_attention_mask"][r].bool()]
            w = teacher.teacher.model(input_ids=own[None]).logits[0][:, : len(other)] / temperature
        here, there = by_text(mine, ids, z), by_text(other, own.tolist(), w)
        texts, others = classes_of(mine), classes_of(other)
        spare = {i for t, i in (*mine.vocabulary.items(),) if t.startswith("<0x")}
        spare_there = {i for t, i in (*other.vocabulary.items(),) if t.startswith("<0x")}
        one = {}
        for i, x in enumerate(texts):
            if x is not None and (x not in one or i not in spare):
                one[x] = i
        two = {}
        for i, x in enumerate(others):
            if x is not None and (x not in two or i not in spare_there):
                two[x] = i
        common = [x for x in one if x in two]
        for t in range(len(ids) - 1):
            if batch["teacher_positions"][r, t] < 0:
                continue
            entries += 1
            read = mine.spell([i for i in ids[: t + 1] if not mine.is_special(i)])
            key = (False, b"".join(read))
            log_q = here[key]
            log_p = there.get(key, there.get((False, key[1].removeprefix(b" "))))
            log_p = there[(False, b" " + key[1])] if log_p is None else log_p
            q, p = (
                torch.stack([*x, 1 - sum(x)])
                for x in (
                    [log_q[one[x]].exp() for x in common],
                    [log_p[two[x]].exp() for x in common],
                )
            )
            expected = expected + (p * (p / q).log()).sum()
    assert entries == items.counts()["items"] > 8
    found = value(ForwardKL(temperature), signal, said, items)
    torch.testing.assert_close(found, temperature**2 * expected / entries, rtol=1e-9, atol=0)


def strings(tokens: list[str], length: int) -> list[tuple[int, ...]]:
    """All sequences of tokens that spell a string of some length."""
    found = []
    for n in range(1, length + 1):
        for ids in itertools.product(range(len(tokens)), repeat=n):
            if len("".join(tokens[i] for i in ids)) == length:
                found.append(ids)
    return found


def test_span_probabilities_are_of_the_text(tmp_path: Path) -> None:
    """A product that leaves a token out, or takes one of the next span, is no probability: over
    all ways to write a text of some length these add up to no more than 1."""
    student, teacher = pair("byte_level", "fallback", tmp_path)
    signal, said, items, batch = both_signals(student, teacher, rows("byte_level", TEXTS[:4]))
    assert said.cross_tokenizer is not None
    seen, several = 0, 0
    for r, t in items.masks["items"].nonzero().tolist():
        mine = (batch["student_spans"][r] == t).nonzero().flatten().tolist()
        other = (batch["teacher_spans"][r] == t).nonzero().flatten().tolist()
        ids = batch["teacher_input_ids"][r]
        with torch.no_grad():
            logits = teacher.teacher.model(input_ids=ids[None, : other[-1] + 2]).logits[0]
        log_p = logits[:, : len(teacher.translator.teacher)].log_softmax(-1)
        expected = sum(log_p[u, ids[u + 1]] for u in other)
        torch.testing.assert_close(said.cross_tokenizer.log_probs[r, t], expected)
        log_q = signal.logits[r].log_softmax(-1)
        ours = sum(log_q[u, batch["input_ids"][r, u + 1]] for u in mine).exp()
        p = expected.exp()
        one = p * (p / ours).log() + (1 - p) * ((1 - p) / (1 - ours)).log()
        (term,) = SpanKL().terms(signal, said, items, Context())
        torch.testing.assert_close(term.values[r, t], one)
        seen, several = seen + 1, several + (len(mine) > 1 or len(other) > 1)
    assert seen > 8
    assert several > 2


def test_span_kl_bounds_the_kl_of_all_strings() -> None:
    """Two ways of cutting strings: that of one span and all others is below that of all."""
    generator = torch.Generator().manual_seed(3)
    tokens = {"student": ["a", "b", "ab"], "teacher": ["a", "b", "ba", "bb"]}
    chances = {k: torch.rand(len(v), generator=generator).double() for k, v in tokens.items()}
    log = {k: (v / v.sum()).log() for k, v in chances.items()}
    texts = ["".join(x) for x in itertools.product("ab", repeat=3)]

    def mass(side: str) -> Tensor:
        found = dict.fromkeys(texts, torch.zeros(()).double())
        for ids in strings(tokens[side], 3):
            text = "".join(tokens[side][i] for i in ids)
            found[text] = found[text] + log[side][list(ids)].sum().exp()
        rest = 1 - sum(found.values())
        return torch.stack([*found.values(), rest])

    q, p = mass("student"), mass("teacher")
    whole = (p * (p / q).log()).sum()
    for index in range(len(texts)):
        assert span_kl(q[index].log(), p[index].log()) <= whole + 1e-12


def test_prefix_kl_by_brute_force(tmp_path: Path) -> None:
    """A student's own token (``1100``) must count as how it begins (``1``), not as a mistake."""
    student, teacher = pair("byte_level", "fallback", tmp_path)
    signal, said, items, _ = both_signals(student, teacher, rows("byte_level", TEXTS[:3]))
    mine, other = teacher.translator.student, teacher.translator.teacher
    shared = {b for b in mine.bytes if b} & {b for b in other.bytes if b} | {"END"}

    def merged(spelling: ByteTokens, log_probs: Tensor) -> dict[Any, Tensor]:
        found: dict[Any, Tensor] = {}
        texts = classes_of(spelling)
        for i, x in enumerate(texts):
            begins = [x[:n] for n in range(len(x), 0, -1)] if isinstance(x, bytes) else [x]
            key = next((b for b in begins if b in shared), None)
            found[key] = found.get(key, torch.zeros(()).double()) + log_probs[i].exp()
        return found

    expected = torch.zeros(()).double()
    assert said.cross_tokenizer is not None
    for r, t in items.masks["items"].nonzero().tolist():
        q = merged(mine, signal.logits[r, t].log_softmax(-1))
        p = merged(other, said.cross_tokenizer.logits[r, t].log_softmax(-1))
        both = [k for k in p if k in q]
        ours, theirs = (torch.stack([x[k] for k in both]) for x in (q, p))
        ours, theirs = ours / ours.sum(), theirs / theirs.sum()
        expected = expected + (theirs * (theirs / ours).log()).sum()
    count = items.counts()["items"]
    torch.testing.assert_close(
        value(PrefixKL(), signal, said, items), expected / count, rtol=1e-6, atol=0
    )


def test_sorted_distance_by_brute_force() -> None:
    """Sorted in one direction here and in the other there, or cut instead of filled up."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, n, generator=generator).double() for n in (5, 7))
    for s, t, found in zip(
        student, teacher, universal_logit_distance(student, teacher, 2.0), strict=True
    ):
        p, q = (sorted((x / 2).softmax(-1).tolist(), reverse=True) for x in (s, t))
        expected = sum(abs(a - b) for a, b in zip([*p, 0.0, 0.0], q, strict=True))
        assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["merged_kl", "span_kl", "universal_logit_distance"])
def test_gradients_match_finite_differences(name: str) -> None:
    """A wrong gradient trains towards something else."""
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(4, 5, generator=generator).double().requires_grad_()
    teacher = torch.randn(4, 6, generator=generator).double()
    classes = torch.tensor([0, 1, 1, 2, 3]), torch.tensor([1, 0, 2, 2, 3, 0])
    functions = {
        "merged_kl": lambda s: merged_kl(s, teacher, *classes, 4, 2.0),
        "span_kl": lambda s: span_kl(
            s.log_softmax(-1)[:, :2].sum(-1), teacher.log_softmax(-1)[:, :3].sum(-1)
        ),
        "universal_logit_distance": lambda s: universal_logit_distance(s, teacher, 2.0),
    }
    assert torch.autograd.gradcheck(functions[name], (student,))


@pytest.mark.parametrize("log_p", [0.0, -1e-9, -1e-3, -200.0])
@pytest.mark.parametrize("log_q", [0.0, -1e-9, -1e-3, -200.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_spans_that_are_certain(log_p: float, log_q: float, dtype: torch.dtype) -> None:
    """A text that one side is sure of would turn the loss, or its gradient, into inf or NaN."""
    student = torch.tensor([log_q], dtype=dtype, requires_grad=True)
    found = span_kl(student, torch.tensor([log_p], dtype=dtype))
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(student.grad).all()
    assert found.item() >= 0


# ---- the same tokenizer -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "plain"),
    [
        (ForwardKL(2.0), ForwardKL(2.0)),
        (ReverseKL(2.0), ReverseKL(2.0)),
        (JensenShannon(2.0, 0.3), JensenShannon(2.0, 0.3)),
        (TotalVariation(2.0), TotalVariation(2.0)),
        (PrefixKL(2.0), ForwardKL(2.0)),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["byte_level", "fallback"])
def test_the_same_tokenizer_gives_the_plain_loss(
    objective: Objective, plain: Objective, name: str, tmp_path: Path
) -> None:
    """Alignment that is off by anything shows here: the way over bytes must change nothing."""
    tokens = len(family(name))
    student, teacher = model(tokens), model(tokens, 1, 24)
    ours = CrossTokenizerTeacher(
        teacher, family(name), family(name), temperature=2.0, folder=tmp_path
    )
    data = rows(name, prompt=2)
    signal, said, items, batch = both_signals(student, ours, data)
    real = batch["attention_mask"].bool()
    assert torch.equal(batch["teacher_input_ids"][real], batch["input_ids"][real])
    plain_items = TaskModel(student).items(collate(data))
    assert torch.equal(items.masks["items"], plain_items.masks["items"])
    theirs = ModelTeacher(teacher)(collate(data), Needs(logits=True), plain_items)
    results = []
    for goal, source, counted in ((objective, said, items), (plain, theirs, plain_items)):
        loss = value(goal, signal, source, counted)
        gradients = torch.autograd.grad(loss, list(student.parameters()), retain_graph=True)
        results.append((loss, torch.cat([g.flatten() for g in gradients])))
    (one, grad), (other, expected) = results
    assert one.item() == pytest.approx(other.item(), rel=1e-10)
    assert (grad - expected).abs().max() < 1e-10


def test_equal_models_differ_by_nothing(tmp_path: Path) -> None:
    """A student that is the teacher would still be moved."""
    name = "fallback"
    student = model(len(family(name)))
    ours = CrossTokenizerTeacher(
        model(len(family(name))), family(name), family(name), folder=tmp_path
    )
    signal, said, items, _ = both_signals(student, ours, rows(name))
    for objective in (PrefixKL(), SpanKL(), UniversalLogitDistance(), ForwardKL()):
        assert abs(value(objective, signal, said, items).item()) < 1e-12


def test_coarser_is_less(tmp_path: Path) -> None:
    """A bucket, or the likeliest tokens alone, may lose a difference and must not add one."""
    losses = []
    for top in (1, 4, 16, None):
        student, teacher = pair("byte_level", "fallback", tmp_path, top=top)
        signal, said, items, _ = both_signals(student, teacher, rows("byte_level"))
        losses.append(value(ForwardKL(), signal, said, items).item())
        assert said.sparse is not None
        mass = said.sparse.log_probs.exp().sum(-1) + said.sparse.log_rest.exp()
        torch.testing.assert_close(mass, torch.ones_like(mass))
    assert losses == sorted(losses)
    assert losses[0] > 0


# ---- training ---------------------------------------------------------------------------------

EVERY = ForwardKL() + 0.5 * HardLabels() + PrefixKL() + SpanKL() + 1.5 * UniversalLogitDistance()


class Gradients(TrainerCallback):
    """Keeps the gradient of the first step."""

    def __init__(self) -> None:
        self.found: Tensor | None = None

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        if self.found is None:
            self.found = torch.cat([p.grad.flatten().clone() for p in model.parameters()])


def trainer(
    folder: Path,
    ours: str,
    theirs: str,
    objective: Objective | WeightedSum = EVERY,
    made: tuple[Any, CrossTokenizerTeacher] | None = None,
    **options: Any,
) -> tuple[DistillationTrainer, Gradients]:
    student, teacher = pair(ours, theirs, folder / "tokens") if made is None else made
    watch = Gradients()
    settings = {"per_device_train_batch_size": 8, "max_steps": 1, "learning_rate": 0.0}
    return DistillationTrainer(
        student,
        quiet_arguments(folder, **{**settings, **options}),
        teacher.collator(collate),
        rows(ours, prompt=2),
        rows(ours, TEXTS[:5]),
        teacher_model=teacher,
        objective=objective,
        processing_class=family(ours),
        callbacks=[watch],
    ), watch


@pytest.mark.parametrize("objective", [EVERY, ForwardKL() + 0.5 * HardLabels()], ids=["all", "kl"])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS[:2])
def test_the_split_changes_nothing(
    ours: str, theirs: str, objective: WeightedSum, tmp_path: Path
) -> None:
    """Only some positions are compared, and each micro-batch has another number of them."""
    results = []
    for batch, accumulation in ((8, 1), (2, 4), (4, 2), (1, 8)):
        run, watch = trainer(
            tmp_path,
            ours,
            theirs,
            objective,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            per_device_eval_batch_size=batch,
        )
        run.train()
        logs = {k: v for k, v in run.state.log_history[0].items() if "runtime" not in k}
        results.append((logs, watch.found, run.evaluate()))
    whole, gradient, evaluated = results[0]
    assert gradient.norm() > 0
    for logs, other, found in results[1:]:
        for name, expected in whole.items():
            assert logs[name] == pytest.approx(expected, rel=1e-6), name
        assert (other - gradient).norm() < 1e-9 * gradient.norm()
        for name, expected in evaluated.items():
            if not name.endswith(("runtime", "per_second")):
                assert found[name] == pytest.approx(expected, rel=1e-6), name


def test_labels_are_learned_everywhere(tmp_path: Path) -> None:
    """The words that the two cut differently would not be learned from the text either."""
    ours = "fallback"
    run, _ = trainer(tmp_path, ours, "byte_level", 1.0 * ForwardKL() + 1.0 * HardLabels())
    run.train()
    logs = run.state.log_history[0]
    data = collate(rows(ours, prompt=2))
    with torch.no_grad():
        expected = run.model(**data).loss.item()  # transformers' own mean over the labels
    assert logs["hard_labels"] == pytest.approx(expected, rel=1e-6)
    counts = run.step.task_model.items(run.data_collator(rows(ours, prompt=2))).counts()
    assert 0 < counts["items"] < counts["labels"]


def test_weights_of_tokens_count(tmp_path: Path) -> None:
    """Weights of the data that stop at the alignment would train on what was to be left out."""
    student, teacher = pair("fallback", "byte_level", tmp_path)
    data = [
        {**row, "token_weights": [float(i % 3) for i in range(len(row["input_ids"]))]}
        for row in rows("fallback", prompt=2)
    ]
    run = DistillationTrainer(
        student,
        quiet_arguments(tmp_path),
        teacher.collator(LanguageCollator(family("byte_level"))),
        data,
        teacher_model=teacher,
        objective=ForwardKL(),
    )
    batch = run.data_collator(data)
    found = run.compute_loss(run.model.eval(), batch).item()
    batch.pop("token_weights")
    items = run.step.task_model.items(batch)
    _, signal = run.step.task_model.ask(student, batch, Needs(logits=True), items)
    (term,) = ForwardKL().terms(signal, teacher(batch, CROSSING, items), items, Context())
    weights = torch.zeros_like(term.values)
    for r, row in enumerate(data):
        weights[r, : len(row["token_weights"]) - 1] = torch.tensor(row["token_weights"][1:])
    weights = weights * items.masks["items"]
    assert 0 < weights.sum() < items.masks["items"].sum() * 2
    expected = (weights * term.values).sum() / weights.sum()
    assert found == pytest.approx(expected.item(), rel=1e-9)


def next_bytes(spelling: ByteTokens, logits: Tensor) -> Tensor:
    """The probabilities of the next byte, and at 256 that of the end."""
    places = [x[0] if x else 256 for x in spelling.bytes]
    chances = logits[..., : len(places)].softmax(-1)
    found = chances.new_zeros(*chances.shape[:-1], 257)
    return found.index_add(-1, torch.tensor(places), chances)


def fit(teacher: Any, data: list[dict[str, Any]]) -> None:
    """Let a teacher know some texts, so that it has something to say about them."""
    teacher.requires_grad_(True)
    optimizer = torch.optim.AdamW(teacher.parameters(), 1e-2)
    for _ in range(25):
        optimizer.zero_grad()
        teacher(**collate(data)).loss.backward()
        optimizer.step()
    teacher.requires_grad_(False)


GOALS = [ForwardKL(), PrefixKL(), SpanKL(), ForwardKL() + SpanKL()]


@pytest.mark.parametrize(
    ("ours", "theirs", "objective"),
    [  # each objective one way, and each way with two of them; the other ways are slow
        pytest.param(*way, goal, marks=[] if number % 2 == place else pytest.mark.slow)
        for place, way in enumerate(PAIRS[:2])
        for number, goal in enumerate(GOALS)
    ],
    ids=str,
)
def test_training_brings_the_bytes_nearer(
    ours: str, theirs: str, objective: Objective, tmp_path: Path
) -> None:
    """The loss falls and the student writes other texts than the teacher: it learned the wrong
    tokens, or those of another place."""
    made = pair(ours, theirs, tmp_path)
    fit(made[1].teacher.model, rows(theirs))

    def distance() -> float:
        signal, said, items, _ = both_signals(*made, rows(ours))
        mask = items.masks["items"]
        if isinstance(objective, SpanKL):
            return value(objective, signal, said, items).item()
        q = next_bytes(made[1].translator.student, signal.logits[mask])
        p = next_bytes(made[1].translator.teacher, said.cross_tokenizer.logits[mask])
        return (p * (p / q).log()).sum(-1).mean().item()

    before = distance()
    run, _ = trainer(
        tmp_path,
        ours,
        theirs,
        objective,
        made,
        max_steps=30,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
    )
    run.train()
    assert distance() < 0.5 * before
    assert all(math.isfinite(row["loss"]) for row in run.state.log_history if "loss" in row)


# ---- what is refused --------------------------------------------------------------------------


def test_a_plain_collator_is_refused(tmp_path: Path) -> None:
    """Without the teacher's tokens there is nothing to ask it; said before training."""
    student, teacher = pair("byte_level", "fallback", tmp_path)
    with pytest.raises(ValueError, match=r"data_collator=teacher\.collator\("):
        DistillationTrainer(
            student,
            quiet_arguments(tmp_path),
            collate,
            rows("byte_level"),
            teacher_model=teacher,
            objective=ForwardKL(),
        )


def test_tokens_that_were_changed_later_are_refused(tmp_path: Path) -> None:
    """Text that replaces that of the batch would be judged by the teacher's view of the old one."""
    student, teacher = pair("byte_level", "fallback", tmp_path)
    batch = teacher.collator(collate)(rows("byte_level"))
    batch["input_ids"] = batch["input_ids"][:, :-1]
    with pytest.raises(ValueError, match="Something changed the tokens after the collator"):
        teacher(batch, CROSSING, TaskModel(student).items(collate(rows("byte_level"))))


def test_differing_tokenizers_name_the_remedy(tmp_path: Path) -> None:
    """A user with two models that do not fit would not find that there is a way."""
    student, teacher = pair("byte_level", "fallback", tmp_path)
    with pytest.raises(
        ValueError, match=r"share one tokenizer.*CrossTokenizerTeacher\(teacher_model"
    ):
        DistillationTrainer(
            student,
            quiet_arguments(tmp_path),
            collate,
            rows("byte_level"),
            teacher_model=ModelTeacher(teacher.teacher.model, family("fallback")),
            processing_class=family("byte_level"),
        )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"top": 0}, "at least 1 likeliest token"),
    ],
)
def test_bad_settings(options: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    """They would fail in the first step, or not at all."""
    with pytest.raises(ValueError, match=complaint):
        pair("byte_level", "fallback", tmp_path, **options)


def test_another_temperature_is_refused(tmp_path: Path) -> None:
    """Probabilities of two temperatures are no distillation of either."""
    with pytest.raises(ValueError, match=r"Expected ForwardKL\(temperature=1\)"):
        trainer(tmp_path, "byte_level", "fallback", ForwardKL(2.0))


def test_objectives_for_two_tokenizers_refuse_one(tmp_path: Path) -> None:
    """With an ordinary teacher there is nothing that they could compare."""
    student = model(len(family("byte_level")))
    with pytest.raises(ValueError, match=r"\['span_kl'\] needs \['a teacher with another tok"):
        DistillationTrainer(
            student,
            quiet_arguments(tmp_path),
            collate,
            rows("byte_level"),
            teacher_model=ModelTeacher(model(len(family("byte_level")), 1)),
            objective=SpanKL(),
        )


# ---- one tokenizer, two paddings --------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Student and teacher (end|pad)")
@pytest.mark.parametrize("theirs", ["same", "other"])
@pytest.mark.parametrize("objective", [ForwardKL(), ForwardKL() + HardLabels() + ReverseKL()])
def test_phantom_entries_get_no_mass(theirs: str, objective: Objective, tmp_path: Path) -> None:
    """As Qwen's 151,936 and 152,064 entries for one tokenizer: padding would take probability from
    tokens, and what no text has would be trained."""
    tokenizer = byte_level(CORPUS, size=290)
    tokens = len(tokenizer)
    student = model(tokens + 3)
    teacher: Any = ModelTeacher(model(tokens + 11, 1, 24), tokenizer)
    collator: Any = collate
    if theirs == "other":
        other = model(len(family("fallback")) + 11, 1, 24)
        teacher = CrossTokenizerTeacher(other, family("fallback"), tokenizer, folder=tmp_path)
        collator = teacher.collator(collate)
    data = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        data.append({"input_ids": ids, "labels": ids})
    watch = Rows(student.lm_head.weight)
    run = DistillationTrainer(
        student,
        quiet_arguments(tmp_path / "out", max_steps=12, learning_rate=1e-2, weight_decay=0.0),
        collator,
        data,
        teacher_model=teacher,
        objective=objective,
        processing_class=tokenizer,
        callbacks=[watch],
    )
    before = student.lm_head.weight.detach().clone()
    run.train()
    losses = [row["loss"] for row in run.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    assert watch.gradients
    for gradient in watch.gradients:
        assert (gradient[tokens:] == 0).all()
        assert (gradient[:tokens] != 0).any()
    after = student.lm_head.weight.detach()
    assert torch.equal(after[tokens:], before[tokens:])
    assert not torch.equal(after[:tokens], before[:tokens])


class Rows(TrainerCallback):
    """Keeps the gradients of a parameter."""

    def __init__(self, parameter: Any):
        self.parameter, self.gradients = parameter, []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.gradients.append(self.parameter.grad.clone())
