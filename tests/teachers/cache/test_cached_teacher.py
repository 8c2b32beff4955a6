"""A cached teacher teaches what the live one teaches, whatever the order, batch or process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rounding import rounds_by_company
from tiny_models import CASES, collate
from tiny_trainers import config, data, finite, log_softmax, models, same, trainer, weights
from torch import Tensor
from transformers import DataCollatorWithFlattening, ViTImageProcessor
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_distill import ForwardKL, HardLabels, HiddenStates, ModelTeacher, ReverseKL
from hf_distill.models.signals import Needs, Signal
from hf_distill.models.task_model import TaskModel
from hf_distill.objectives import AttentionMaps, LogitMSE
from hf_distill.objectives.base.objective import Context
from hf_distill.objectives.base.schedules import Progress
from hf_distill.teachers import CachedTeacher
from hf_distill.teachers.cache import write_cache
from hf_distill.teachers.cache.checked_json import FORMAT_VERSION, read_sealed, write_sealed

CONTEXT = Context(torch.nn.ModuleDict(), {}, {}, Progress(0, 0.0, 1))
HEADS = sorted(set(CASES) - {"dual_encoder"})
NAME = "sequence_classification"
KEPT = Needs(logits=True, unsampled=True, full_vocabulary=True, hidden_states=True)


def quiet(line: str) -> None:
    """Nothing is printed."""


def written(folder: Path, name: str = NAME, examples: Any = None, **options: Any) -> Path:
    _, teacher = models(name)
    examples = data(name) if examples is None else examples
    options = {"batch_size": 3, "shard_size": 5, "say": quiet, **options}
    return write_cache(folder / "cache", ModelTeacher(teacher), examples, collate, **options)


def asked(
    teacher: Any, name: str, examples: list[Any], needs: Needs, task_model: TaskModel
) -> Signal:
    batch = task_model.task.share(collate(examples), task_model.model)
    found: Signal = teacher(batch, needs, task_model.items(batch))
    return found


def whole_length(examples: list[Any]) -> list[Any]:
    """The longest ones alone: no batch pads them, so that kernels see the same shapes."""
    return [{**e, "input_ids": (e["input_ids"] * 9)[:9]} for e in examples]


@pytest.mark.parametrize("name", HEADS)
def test_every_head_is_read_back(tmp_path: Path, name: str) -> None:
    """A head whose items or classes are laid out another way would be taught by garbage."""
    student, teacher = models(name)
    head, live = TaskModel(student), ModelTeacher(teacher)
    kept = name != "multiple_choice"  # which has several rows of states to an example
    attended = kept and live.provides.attentions
    options: dict[str, Any] = {"hidden_states": kept, "attentions": attended, "dtype": "float32"}
    if not live.provides.logits:
        options["format"] = {"kind": "none"}
    cached = CachedTeacher(written(tmp_path, name, **options))
    needs = live.provides & cached.provides
    examples = [data(name)[i] for i in (6, 1, 4, 0)]
    ours, theirs = (asked(t, name, examples, needs, head) for t in (cached, live))
    batch = head.task.share(collate(examples), head.model)
    items = head.items(batch)
    assert ours.kind == theirs.kind
    if theirs.logits is not None and ours.logits is not None:
        mask = items.masks["items"]
        torch.testing.assert_close(ours.logits[mask], theirs.logits[mask], rtol=1e-5, atol=1e-5)
        assert ours.logits.shape == theirs.logits.shape
    for group, layers in theirs.hidden_states.items() if kept else ():
        mask = items.masks.get(group, items.masks["samples"])
        assert len(ours.hidden_states[group]) == len(layers)
        for one, other in zip(ours.hidden_states[group], layers, strict=True):
            assert one.shape == other.shape
            own = mask if mask.shape == one.shape[: mask.dim()] else items.masks["samples"]
            torch.testing.assert_close(one[own], other[own], rtol=1e-4, atol=1e-5)
    for group, layers in theirs.attentions.items() if attended else ():
        for one, other in zip(ours.attentions[group], layers, strict=True):
            assert one.shape == other.shape
            mask = items.masks.get(group)
            both = torch.ones_like(one).bool()
            if mask is not None:
                both = (mask[:, None, :, None] & mask[:, None, None, :]).expand_as(one)
            torch.testing.assert_close(one[both], other[both], rtol=1e-4, atol=1e-5)


class Remembering(ModelTeacher):
    """Says of an example what it said the first time, whatever the batch."""

    def __init__(self, model: Any):
        super().__init__(model)
        self.said: dict[tuple[int, ...], list[Tensor]] = {}

    def __call__(self, batch: Any, needs: Needs, items: Any) -> Signal:
        signal = super().__call__(batch, needs | KEPT, items)
        assert signal.logits is not None
        found = [signal.logits, *signal.hidden_states["hidden"]]
        rows = [tuple(row) for row in batch["input_ids"].tolist()]
        for place, row in enumerate(rows):
            self.said.setdefault(row, [tensor[place].clone() for tensor in found])
        logits, *states = map(torch.stack, zip(*(self.said[row] for row in rows), strict=True))
        return Signal(logits, signal.kind, {"hidden": tuple(states)})


def figures(ours: Any) -> list[dict[str, Any]]:
    """What was logged, but for the times."""
    return [
        {k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k}
        for entry in ours.state.log_history
    ]


def shuffled(examples: Any, order: str = "random") -> dict[str, Any]:
    return {
        "train_dataset": examples,
        "eval_dataset": examples,
        "objective": 0.5 * HardLabels() + 0.5 * ForwardKL(2.0) + HiddenStates(),
        "max_steps": 5,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "train_sampling_strategy": order,
    }


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_training_is_that_of_what_the_teacher_said(tmp_path: Path, batch_size: int) -> None:
    """On every processor: what is stored, bit for bit, is what the teacher said when the cache was
    written, whichever batches it was asked in (shards of five end in a batch of one or two)."""
    examples = whole_length(data(NAME))
    teacher = Remembering(models(NAME)[1])
    form: dict[str, Any] = {"hidden_states": True, "dtype": "float32", "say": quiet}
    form |= {"batch_size": batch_size, "shard_size": 5}
    folder = write_cache(tmp_path / "cache", teacher, examples, collate, **form)
    runs = [
        trainer(tmp_path, teacher_model=one, **shuffled(examples))
        for one in (teacher, CachedTeacher(folder))
    ]
    for one in runs:
        one.train()
    live, cached = runs
    assert figures(live) == figures(cached)
    assert same(weights(live.model), weights(cached.model))


@pytest.mark.parametrize("order", ["random", "group_by_length"])
def test_cached_and_live_training_are_bit_equal(tmp_path: Path, order: str) -> None:
    """The same losses and weights over shuffled epochs, where no kernel rounds by an example's
    place: batches of one shape, of the cache as of the training. Elsewhere they agree closely."""
    examples = whole_length(data(NAME))
    options = {**shuffled(examples, order), "per_device_eval_batch_size": 4}
    live = trainer(tmp_path, teacher_model=ModelTeacher(models(NAME)[1]), **options)
    live.train()
    form: dict[str, Any] = {"hidden_states": True, "dtype": "float32"}
    folder = written(tmp_path, NAME, examples, **form, batch_size=4, shard_size=4)
    cached = trainer(tmp_path, teacher_model=CachedTeacher(folder), **options)
    cached.train()
    if not rounds_by_company(models(NAME)[1], examples, [4]):
        assert figures(live) == figures(cached)
        assert same(weights(live.model), weights(cached.model))
    for one, other in zip(figures(live), figures(cached), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


class Rounding(torch.nn.Module):
    """A model whose last bits depend on the batch, as those of some kernels do."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.by = by

    def forward(self, input_ids: Tensor, **others: Any) -> Any:
        logits = input_ids[:, :1].float() * self.weight
        row = torch.arange(len(logits))
        bit = {
            "nothing": torch.zeros(len(logits)),
            "place": row == 2,
            "single row": row + len(logits) == 1,
            "memory": row * 0 + (self.weight.data_ptr() % 64 > 0),
        }[self.by]
        return SequenceClassifierOutput(logits=logits * (1 + 2.0**-20 * bit[:, None]))


@pytest.mark.parametrize("by", ["nothing", "place", "single row", "memory"])
def test_rounding_by_company_is_seen(by: str) -> None:
    """A guard that misses one of them claims bit-equality where there is none."""
    examples = whole_length(data(NAME))
    assert rounds_by_company(Rounding(by), examples, [1, 3, 4]) == (by != "nothing")
    assert not rounds_by_company(Rounding("single row"), examples, [3, 4])


@pytest.mark.parametrize("form", [{"kind": "top_k", "k": 39}, {"kind": "top_k", "k": 5}])
def test_likeliest_tokens_give_the_bucketed_divergence(
    tmp_path: Path, form: dict[str, Any]
) -> None:
    """With all but one class it is the dense loss; with few a bound from below, in numpy."""
    name = "causal_lm"
    student, teacher = models(name)
    folder = written(tmp_path, name, format={**form, "dtype": "float32", "temperature": 2.0})
    cached, live = CachedTeacher(folder), ModelTeacher(teacher)
    head, examples = TaskModel(student), data(name)
    needs = Needs(logits=True, unsampled=True)
    sparse = asked(cached, name, examples, needs, head).sparse
    assert sparse is not None
    theirs = asked(live, name, examples, needs, head).logits
    batch = collate(examples)
    _, ours = head.ask(student, batch, needs, head.items(batch))
    mask = head.items(batch).masks["items"]
    assert ours.logits is not None
    assert theirs is not None
    p, q = (log_softmax((x / 2).detach()) for x in (theirs, ours.logits))
    ids = np.argsort(-p, axis=-1)[..., : form["k"]]
    tops = [np.take_along_axis(x, ids, -1) for x in (p, q)]
    rests = [np.log(np.maximum(-np.expm1(np.log(np.exp(t).sum(-1))), 1e-30)) for t in tops]
    expected = (np.exp(tops[0]) * (tops[0] - tops[1])).sum(-1)
    expected += np.exp(rests[0]) * (rests[0] - rests[1])
    objective = 1.0 * ForwardKL(2.0)
    (term,) = objective.terms(ours, Signal(sparse=sparse), head.items(batch), CONTEXT)
    torch.testing.assert_close(
        term.values[mask].double(), torch.from_numpy(4 * expected)[mask], rtol=1e-4, atol=1e-5
    )
    (dense,) = objective.terms(ours, Signal(theirs), head.items(batch), CONTEXT)
    assert (term.values <= dense.values + 1e-5)[mask].all()
    if form["k"] == 39:
        torch.testing.assert_close(term.values[mask], dense.values[mask], rtol=1e-4, atol=1e-5)


def test_sparse_caches_train_and_are_measured(tmp_path: Path) -> None:
    """A format that evaluation or a divergence cannot read ends after the first epoch."""
    name = "causal_lm"
    forms: list[tuple[dict[str, Any], Any]] = [
        ({"kind": "top_k", "k": 6}, ReverseKL()),
        ({"kind": "sampled", "draws": 12}, ForwardKL()),
    ]
    for form, objective in forms:
        folder = written(tmp_path / form["kind"], name, format=form)
        teacher = CachedTeacher(folder)
        ours = trainer(tmp_path / "out", name, teacher_model=teacher, objective=objective)
        ours.train()
        figures = ours.evaluate()
        assert finite({k: v for k, v in figures.items() if isinstance(v, float)})
        assert 0 <= figures["eval_agreement"] <= 1
        assert ("eval_forward_kl_divergence" in figures) == (form["kind"] == "top_k")


def test_what_a_format_cannot_give_is_refused(tmp_path: Path) -> None:
    """Reverse KL from draws is infinite; a temperature that was not kept, another distribution."""
    name = "causal_lm"
    drawn = CachedTeacher(written(tmp_path / "a", name, format={"kind": "sampled"}))
    with pytest.raises(ValueError, match=r"reverse_kl.*exact probabilities \(not draws\)"):
        trainer(tmp_path, name, teacher_model=drawn, objective=ReverseKL())
    top = CachedTeacher(written(tmp_path / "b", name, format={"kind": "top_k", "k": 4}))
    with pytest.raises(ValueError, match=r"logit_mse.*the logits of every class"):
        trainer(tmp_path, name, teacher_model=top, objective=LogitMSE())
    with pytest.raises(ValueError, match=r"ForwardKL\(temperature=1\).*got 2.0"):
        trainer(tmp_path, name, teacher_model=top, objective=ForwardKL(2.0))
    with pytest.raises(ValueError, match="hidden_states"):
        trainer(tmp_path, name, teacher_model=top, objective=HiddenStates())
    with pytest.raises(ValueError, match="attentions"):
        trainer(tmp_path, name, teacher_model=top, objective=AttentionMaps())
    with pytest.raises(ValueError, match="one softmax over fixed classes"):
        written(tmp_path / "c", "multi_label", format={"kind": "sampled"})
    with pytest.raises(ValueError, match=r"Pass ModelTeacher\(model\)"):
        write_cache(tmp_path / "f", models(NAME)[1], data(NAME), collate, say=quiet)
    with pytest.raises(ValueError, match="several choices"):
        written(tmp_path / "e", "multiple_choice", hidden_states=True)
    with pytest.raises(ValueError, match="judges examples one by one"):
        written(tmp_path / "d", "dual_encoder")


def test_layers_that_are_kept(tmp_path: Path) -> None:
    """A layer map onto a layer that was not kept must not read another one."""
    folder = written(tmp_path, hidden_states={"hidden": [0, -1]}, dtype="int8")
    options: dict[str, Any] = {"teacher_model": CachedTeacher(folder)}
    ours = trainer(tmp_path, objective=HiddenStates([[-1, -1]]), **options)
    ours.train()
    with pytest.raises(ValueError, match=r"layer 2 of hidden.hidden.*keeps \[0, 4\] of 5"):
        trainer(tmp_path, objective=HiddenStates([[1, 2]]), **options)


def test_missing_examples_are_named_or_asked_for(tmp_path: Path) -> None:
    """Silently skipping them, or teaching them with zeros, would look like training."""
    examples, name = data(NAME), NAME
    folder = written(tmp_path, name, examples[:5])
    task_model = TaskModel(models(name)[0])
    needs = Needs(logits=True, unsampled=True, full_vocabulary=True)
    cached = CachedTeacher(folder)
    with pytest.raises(ValueError, match=r"2 that are not there; the first is row 1 .*input_ids"):
        asked(cached, name, [examples[i] for i in (0, 6, 7)], needs, task_model)
    with pytest.raises(ValueError, match=r"got none of 2; .*changes the examples at random"):
        asked(cached, name, examples[6:], needs, task_model)
    live = ModelTeacher(models(name)[1])
    helped = CachedTeacher(folder, live=live)
    chosen = [examples[i] for i in (6, 0, 7)]
    one, other = (asked(t, name, chosen, needs, task_model).logits for t in (helped, live))
    assert one is not None
    assert other is not None
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    ours = trainer(tmp_path, teacher_model=helped, max_steps=4)
    ours.train()
    assert len(CachedTeacher(folder)._store) == 8  # they are added
    again = asked(CachedTeacher(folder), name, chosen, needs, task_model).logits
    assert again is not None
    assert torch.equal(again, one)


def test_evaluation_data_that_are_missing_are_told_first(tmp_path: Path) -> None:
    """Otherwise the first evaluation ends the training, after an epoch."""
    folder = written(tmp_path, NAME, data(NAME)[:5])
    with pytest.raises(ValueError, match=r"got none of 3"):
        trainer(
            tmp_path,
            teacher_model=CachedTeacher(folder),
            train_dataset=data(NAME)[:5],
            eval_dataset=data(NAME)[5:],
        )


def test_stale_and_foreign_caches_are_refused(tmp_path: Path) -> None:
    """The outputs of last week's teacher under this week's name."""
    folder = written(tmp_path)
    other = models(NAME)[1]
    for parameter in other.parameters():
        parameter.data.add_(1e-3)
        break
    with pytest.raises(ValueError, match="the teacher's weights"):
        CachedTeacher(folder, live=ModelTeacher(other))
    with pytest.raises(ValueError, match="the teacher's weights"):
        write_cache(folder, ModelTeacher(other), data(NAME), collate, say=quiet, shard_size=5)
    teacher = ModelTeacher(models(NAME)[1])
    form = {"kind": "top_k", "k": 2}
    with pytest.raises(ValueError, match=r"what is kept.*top_k"):
        write_cache(folder, teacher, data(NAME), collate, format=form, say=quiet, shard_size=5)
    turned = data(NAME)[5:] + data(NAME)[:5]
    with pytest.raises(ValueError, match=r"of other data: shard 0"):
        write_cache(folder, teacher, turned, collate, say=quiet, shard_size=5)
    with pytest.raises(ValueError, match=r"8 examples, 5 to a shard"):
        write_cache(folder, teacher, data(NAME), collate, say=quiet, shard_size=4)
    facts = read_sealed(folder / "cache.json")
    write_sealed(folder / "cache.json", {**facts, "format_version": 99})
    with pytest.raises(ValueError, match=f"format version {FORMAT_VERSION}"):
        CachedTeacher(folder)


class Words:
    """A tokenizer as far as a fingerprint reads it."""

    def __init__(self, *words: str):
        self.words = words

    def get_vocab(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}


def test_another_tokenizer_or_preprocessing_is_named(tmp_path: Path) -> None:
    """The same ids mean other words, the same pictures other pixels."""
    model, examples = models(NAME)[1], data(NAME)
    one, other = (ModelTeacher(model, processor=Words(*words)) for words in ("ab", "ba"))
    write_cache(tmp_path / "text", one, examples, collate, say=quiet)
    with pytest.raises(ValueError, match="of something else: the tokenizer"):
        write_cache(tmp_path / "text", other, examples, collate, say=quiet)
    assert CachedTeacher(tmp_path / "text").tokens() == {"a": 0, "b": 1}
    small, large = (ViTImageProcessor(size={"height": n, "width": n}) for n in (28, 32))
    options: dict[str, Any] = {"say": quiet, "processing_class": small}
    write_cache(tmp_path / "pictures", one, examples, collate, **options)
    CachedTeacher(tmp_path / "pictures", processing_class=small)
    with pytest.raises(ValueError, match="of something else: the preprocessing"):
        CachedTeacher(tmp_path / "pictures", processing_class=large)


def test_examples_that_change_are_refused(tmp_path: Path) -> None:
    """A cache of one augmentation would never be found again, after hours of writing it."""

    def masking(rows: list[Any]) -> dict[str, Tensor]:
        batch = collate(rows)
        return {**batch, "input_ids": torch.randint_like(batch["input_ids"], 3, 40)}

    with pytest.raises(ValueError, match="Record the views"):
        write_cache(tmp_path, ModelTeacher(models(NAME)[1]), data(NAME), masking, say=quiet)


def test_a_vocabulary_that_is_gone_or_another_is_refused(tmp_path: Path) -> None:
    """The student's tokens would be matched with another tokenizer's, or not at all; the command
    that wrote the cache mends it."""
    teacher = ModelTeacher(models(NAME)[1], processor=Words("a", "b"))
    options: dict[str, Any] = {"say": quiet, "shard_size": 3}
    path = write_cache(tmp_path / "cache", teacher, data(NAME), collate, **options)
    other = write_cache(
        tmp_path / "other",
        ModelTeacher(models(NAME)[1], processor=Words("b", "a")),
        data(NAME),
        collate,
        **options,
    )
    name = "vocabulary.json.gz"
    shards = {p: p.stat().st_mtime_ns for p in path.rglob("*.arrow")}
    whole = (path / name).read_bytes()
    (path / name).write_bytes((other / name).read_bytes())
    with pytest.raises(ValueError, match=r"another one\. Delete it, and run the command"):
        CachedTeacher(path)
    (path / name).unlink()
    with pytest.raises(ValueError, match=r"gone\. Run the command that wrote the cache again"):
        CachedTeacher(path)
    write_cache(path, teacher, data(NAME), collate, **options)
    assert CachedTeacher(path).tokens() == {"a": 0, "b": 1}
    assert (path / name).read_bytes() == whole
    assert shards == {p: p.stat().st_mtime_ns for p in path.rglob("*.arrow")}


def test_packed_rows_read_the_cache_of_single_texts(tmp_path: Path) -> None:
    """Each text gets its own outputs, as if the others were not in its row."""
    name = "causal_lm"
    examples = [{"input_ids": e["input_ids"], "labels": e["input_ids"]} for e in data(name)]
    student, teacher = models(name)
    head, live = TaskModel(student), ModelTeacher(teacher)
    cached = CachedTeacher(written(tmp_path, name, examples))
    packed = dict(DataCollatorWithFlattening(return_tensors="pt")(examples[:3]))
    needs = Needs(logits=True, unsampled=True, full_vocabulary=True)
    items = head.items(packed)
    found = cached(packed, needs, items).logits
    assert found is not None
    expected = []
    for example in examples[:3]:
        logits = asked(live, name, [example], needs, head).logits
        assert logits is not None
        expected.append(logits[0, :-1])
    mask = items.masks["items"]
    torch.testing.assert_close(found[mask], torch.cat(expected), rtol=1e-5, atol=1e-5)
    del packed["labels"]  # then the last token of a text predicts the first of the next
    with pytest.raises(ValueError, match="got 2 that are not there"):
        cached(packed, needs, head.items(packed))


def test_resume_is_exact(tmp_path: Path) -> None:
    """A cache is read by content, so a resumed run goes on with the same targets."""
    folder = written(tmp_path)
    options: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path / "whole", teacher_model=CachedTeacher(folder), **options)
    whole.train()
    again = trainer(tmp_path / "again", teacher_model=CachedTeacher(folder), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert same(weights(whole.model), weights(again.model))


def test_settings_of_the_trainer(tmp_path: Path) -> None:
    """The card names the teacher, and what of it was kept."""
    folder = written(tmp_path, format={"kind": "full", "dtype": "bfloat16"})
    ours = trainer(tmp_path, teacher_model=CachedTeacher(folder), args=config(tmp_path))
    told = ours.teacher.describe()
    assert told["architecture"] == "BertForSequenceClassification"
    assert told["cache"]["logits"]["dtype"] == "bfloat16"
    assert told["cache"]["examples"] == 8


def _gradient(student: Any, signal: Signal, batch: dict[str, Tensor]) -> Tensor:
    task_model = TaskModel(student)
    items = task_model.items(batch)
    _, ours = task_model.ask(student, batch, Needs(logits=True), items)
    (term,) = ForwardKL().terms(ours, signal, items, CONTEXT)
    assert term.mask is not None
    loss = torch.where(term.mask, term.values, 0.0).sum() / term.mask.sum()
    parameters = [p for p in student.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None]).double()


def test_draws_are_unbiased_and_a_cut_tail_is_not(tmp_path: Path) -> None:
    """The mean gradient over many caches is the dense one, within three standard errors of its
    length; the likeliest classes alone pull the student elsewhere, however often one writes."""
    name = "causal_lm"
    student, teacher = models(name)
    head, live, examples = TaskModel(student), ModelTeacher(teacher), data(name)
    batch = collate(examples)
    needs = Needs(logits=True, unsampled=True, full_vocabulary=True)
    dense = _gradient(student, live(batch, needs, head.items(batch)), batch)
    found = []
    for seed in range(100):
        form: dict[str, Any] = {"kind": "sampled", "draws": 12, "seed": seed}
        folder = write_cache(tmp_path / str(seed), live, examples, collate, format=form, say=quiet)
        cached = CachedTeacher(folder)(batch, Needs(logits=True), head.items(batch))
        found.append(_gradient(student, cached, batch))
    runs = torch.stack(found)
    error = runs.mean(0) - dense
    standard = (runs.var(0, unbiased=True) / len(runs)).sum().sqrt()
    assert error.norm() < 1.3 * standard  # its expectation is the standard error itself
    assert standard < 0.3 * dense.norm()
    form = {"kind": "top_k", "k": 4, "tail": False}
    cut = CachedTeacher(written(tmp_path / "cut", name, format=form))
    biased = _gradient(student, cut(batch, Needs(logits=True), head.items(batch)), batch)
    assert (biased - dense).norm() > 10 * standard
