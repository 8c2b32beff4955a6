"""Recipes with several teachers, assistants, generations, and teachers that are read from disk."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, log_loss
from tiny_recipes import bert, held_out, probabilities, recipe, record
from torch import Tensor
from transformers import PreTrainedModel

from hf_distill import DistillationTrainer
from hf_distill.hub import validate
from hf_distill.recipe import RecipeError, Run, load_recipe
from hf_distill.recipe.stages import Stage
from hf_distill.teachers import CachedTeacher, Ensemble, ModelTeacher

pytestmark = pytest.mark.xdist_group("recipe_chains")  # fixtures that are expensive are made once

CHAIN: dict[str, Any] = {
    "teacher": {"seeds": [0, 1]},
    "assistants": [
        {"from_teacher_layers": [0, 1], "objective": [{"name": "reverse_kl"}]},
    ],
    "generations": 2,
    "student": {"from_teacher_layers": [0]},
}


def silent(line: str) -> None:
    """For lines that nobody needs to see."""


def stages(path: Path, *overrides: tuple[str, str]) -> dict[str, Stage]:
    return Run(load_recipe(path, overrides), silent).stages


def weights(folder: Path, stage: str) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = load_file(folder / "out" / stage / "model/model.safetensors")
    return loaded


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class Spy:
    """What each training began with: its student's weights, its teacher, and who was in memory."""

    def __init__(self) -> None:
        self.initial: dict[str, dict[str, Tensor]] = {}
        self.teachers: dict[str, Any] = {}
        self.objectives: dict[str, str] = {}
        self.layers: dict[str, list[int]] = {}
        """The number of layers of every model that is alive."""

    def see(self, trainer: DistillationTrainer) -> None:
        parts = Path(str(trainer.args.output_dir)).parts
        stage = "/".join(parts[parts.index("out") + 1 : -1])
        model: Any = trainer.model
        self.initial[stage] = {k: v.clone() for k, v in model.state_dict().items()}
        self.objectives[stage] = str(trainer.training_objective)
        taught = trainer.teacher
        members = taught.teachers.values() if isinstance(taught, Ensemble) else [taught]
        self.teachers[stage] = (
            type(taught).__name__,
            [
                {k: v.clone() for k, v in member.model.state_dict().items()}
                for member in members
                if isinstance(member, ModelTeacher)
            ],
        )
        gc.collect()
        alive = [o for o in gc.get_objects() if isinstance(o, PreTrainedModel)]
        heads = [m for m in alive if hasattr(m, "classifier")]
        self.layers[stage] = sorted(m.config.num_hidden_layers for m in heads)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return _spy(monkeypatch)


def _spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    seen, train = Spy(), DistillationTrainer.train

    def watched(self: DistillationTrainer, *args: Any, **kwargs: Any) -> Any:
        seen.see(self)
        return train(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "train", watched)
    return seen


@pytest.fixture(scope="module")
def chained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Spy]:
    """A recipe with two teachers, an assistant and two generations, and what was seen of it."""
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        spy = _spy(patch)
        Run(load_recipe(recipe(folder, **CHAIN)), silent)()
    return folder, spy


# ---- who learns from whom ------------------------------------------------------------------------


def test_each_learns_from_the_one_before(chained: tuple[Path, Spy]) -> None:
    """A student that learns from the teacher under an assistant's name makes the chain a label."""
    folder, spy = chained
    order = ["teacher/seed-0", "teacher/seed-1", "assistant-1", "baseline/seed-0"]
    assert list(spy.initial) == [*order, "generation-1/seed-0", "student/seed-0"]
    first = {"assistant-1": ("Ensemble", order[:2]), "generation-1/seed-0": ("", ["assistant-1"])}
    for stage, (kind, expected) in {
        **first,
        "student/seed-0": ("", ["generation-1/seed-0"]),
        "teacher/seed-0": ("NoneType", []),
        "baseline/seed-0": ("NoneType", []),
    }.items():
        found, members = spy.teachers[stage]
        assert found == (kind or "ModelTeacher"), stage
        assert len(members) == len(expected), stage
        for member, name in zip(members, expected, strict=True):
            assert same(member, weights(folder, name)), (stage, name)
    assert spy.objectives["assistant-1"] == "ReverseKL()"
    assert spy.objectives["student/seed-0"] == spy.objectives["generation-1/seed-0"]
    assert "ForwardKL(temperature=2.0)" in spy.objectives["student/seed-0"]


def test_teachers_differ_and_students_begin_alike(chained: tuple[Path, Spy]) -> None:
    """Two equal teachers are one; another initial head makes a generation's gain luck."""
    folder, spy = chained
    assert not same(weights(folder, "teacher/seed-0"), weights(folder, "teacher/seed-1"))
    for stage in ("generation-1/seed-0", "student/seed-0"):
        assert same(spy.initial[stage], spy.initial["baseline/seed-0"]), stage
    assert not same(weights(folder, "generation-1/seed-0"), weights(folder, "student/seed-0"))


def test_report_of_a_chain_tells_what_the_saved_models_do(chained: tuple[Path, Spy]) -> None:
    """Agreement with the assistant, or with one teacher of two, shown as that with the teacher."""
    folder, _ = chained
    texts, labels = held_out(folder)
    out = folder / "out"
    facts = json.loads((out / "report.json").read_text())
    names = [f"teacher/seed-{seed}" for seed in (0, 1)]
    each = [probabilities(out / name / "model", texts) for name in names]
    mean = np.mean(each, axis=0)
    teacher = facts["models"]["teacher"]
    assert teacher["test"]["accuracy"] == pytest.approx(accuracy_score(labels, mean.argmax(-1)))
    assert teacher["test"]["nll"] == pytest.approx(log_loss(labels, mean), rel=1e-5)
    assert teacher["test"]["ece"] == pytest.approx(_calibration(mean, labels), abs=1e-6)
    assert teacher["members"] == 2
    assert teacher["parameters"] == 2 * sum(w.numel() for w in weights(folder, names[0]).values())
    seconds = [record(folder, name)["results"]["seconds"] for name in names]
    assert teacher["train_seconds"] == pytest.approx(sum(seconds))
    last = ["assistant-1", "baseline/seed-0", "generation-1/seed-0", "student/seed-0"]
    assert list(facts["runs"]) == ["teacher", *names, *last]
    for key in [*names, *last]:
        p, row = probabilities(out / key / "model", texts), facts["runs"][key]["test"]
        assert row["accuracy"] == pytest.approx(accuracy_score(labels, p.argmax(-1))), key
        assert row["agreement"] == pytest.approx(np.mean(p.argmax(-1) == mean.argmax(-1))), key
        kl = (mean * np.log(mean / p)).sum(-1).mean()
        assert row["forward_kl_divergence"] == pytest.approx(kl, rel=1e-4, abs=1e-6), key


def _calibration(p: np.ndarray, labels: list[int]) -> float:
    """Expected calibration error in 15 bins, one example after the other."""
    bins: dict[int, list[float]] = {}
    for row, label in zip(p, labels, strict=True):
        gap = float(row.argmax() == label) - row.max()
        bins.setdefault(int(np.ceil(row.max() * 15)), []).append(gap)
    return sum(abs(sum(gaps)) for gaps in bins.values()) / len(p)


def test_table_picture_and_card_of_a_chain(chained: tuple[Path, Spy]) -> None:
    """A model that is left out of the table was trained for nothing."""
    folder, _ = chained
    table = (folder / "out/report.md").read_text()
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    models = ["Assistant 1", "Baseline (no teacher)", "Student, generation 1"]
    assert rows == ["", ":--", "Teacher (mean of 2)", *models, "Distilled student"]
    assert "against the same student without a teacher" in table
    card = (folder / "out/final/README.md").read_text()
    validate(card)
    metadata = yaml.safe_load(card.split("---")[1])
    facts = json.loads((folder / "out/report.json").read_text())
    found = metadata["model-index"][0]["results"][0]["metrics"][0]["value"]
    assert found == facts["models"]["student"]["test"]["accuracy"]
    for role, name in (("assistant-1", "Assistant 1"), ("generation-1", "Student, generation 1")):
        test = facts["models"][role]["test"]
        line = next(line for line in card.splitlines() if line.startswith(f"| {name} |"))
        assert f"test accuracy {test['accuracy']:.4f}" in line
        assert f"agreement with the teacher {test['agreement']:.4f}" in line
    assert "with 2 seeds, their mean" in card
    final = load_file(folder / "out/final/model.safetensors")
    assert same(final, weights(folder, "student/seed-0"))


def test_resolved_chain_is_the_same_recipe(tmp_path: Path) -> None:
    """The recipe on the card must give the run that the card describes."""
    changes = {**CHAIN, "teacher": {"seeds": [0, 1], "cache": {"format": "top_k", "k": 1}}}
    first = load_recipe(recipe(tmp_path, **changes), [("teacher.cache.k", "2")])
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(first.to_yaml())
    second = load_recipe(resolved)
    assert second.to_yaml() == first.to_yaml()
    assert second.assistants == first.assistants
    assert second.teacher == first.teacher
    assert second.training_of("assistant-1") == first.training_of("assistant-1")
    empty = load_recipe(recipe(tmp_path), [("teacher.cache", "{}")])
    resolved.write_text(empty.to_yaml())
    assert load_recipe(resolved).teacher.cache is not None, "an empty section is a section"


# ---- what is done again --------------------------------------------------------------------------

A1, A2, G1 = {"assistant-1"}, {"assistant-2"}, {"generation-1/seed-0"}
T0, T1, B = {"teacher/seed-0"}, {"teacher/seed-1"}, {"baseline/seed-0"}
S, TEST, CACHE = {"student/seed-0"}, {"evaluation"}, {"cache"}
REST = A1 | A2 | G1 | S | TEST
AGAIN: list[tuple[str, str, set[str]]] = [
    ("assistants.1.from_teacher_layers", "[0]", A2 | G1 | S | TEST),
    ("assistants.0.from_teacher_layers", "[0]", REST),
    ("assistants.1.objective", "[{name: forward_kl}]", A2 | G1 | S | TEST),
    ("assistants.1.training", "{learning_rate: 5e-4}", A2 | G1 | S | TEST),
    ("assistants.0.training", "{bf16: true}", CACHE | REST),  # the teacher's precision, too
    ("assistants.0.hub_id", "someone/middle", set()),
    ("objective", "[{name: forward_kl, temperature: 3}]", A2 | G1 | S | TEST),
    ("teacher.seeds", "[0, 2]", {"teacher/seed-2"} | CACHE | REST),
    ("teacher.training.learning_rate", "5e-4", T0 | T1 | CACHE | REST),
    ("generations", "3", {"generation-2/seed-0"} | S | TEST),
    ("student.training.learning_rate", "5e-4", G1 | S | TEST),
    ("teacher.cache.dtype", "float16", CACHE | REST),
    ("teacher.cache.path", "elsewhere", set()),
    ("data.max_eval_examples", "4", T0 | T1 | CACHE | B | REST),
    ("data.max_test_examples", "4", TEST),
    ("seed", "1", REST),  # of the assistants; the students have seeds of their own
]


def test_each_stage_of_a_chain_depends_on_its_inputs_only(tmp_path: Path) -> None:
    """One input forgotten leaves stale models; one too many trains again for nothing."""
    chain = {
        **CHAIN,
        "teacher": {"seeds": [0, 1], "cache": {}},
        "assistants": [*CHAIN["assistants"], {"config": bert(2)}],
        "seeds": [0],
    }
    path = recipe(tmp_path, **chain)
    values = yaml.safe_load(path.read_text())
    before = {name: stage.fingerprint for name, stage in stages(path).items()}
    for key, value, again in AGAIN:
        changed = json.loads(json.dumps(values))
        inner: Any = changed
        *parents, last = key.split(".")
        for parent in parents:
            inner = inner[int(parent)] if parent.isdigit() else inner.setdefault(parent, {})
        inner[last] = yaml.safe_load(value)
        if last == "from_teacher_layers":
            inner.pop("config", None)
        path.write_text(yaml.safe_dump(changed, sort_keys=False))
        after = {name: stage.fingerprint for name, stage in stages(path).items()}
        assert {name for name in after if after[name] != before.get(name)} == again, key


def test_a_changed_assistant_leaves_what_is_before_it(
    chained: tuple[Path, Spy], tmp_path: Path, spy: Spy
) -> None:
    """An hour of training thrown away, or a student of the old assistant kept."""
    folder, _ = chained
    shutil.copytree(folder / "out", tmp_path / "out")
    changed = [{**CHAIN["assistants"][0], "training": {"learning_rate": 5e-3}}]
    overrides = [("output_dir", str(tmp_path / "out")), ("assistants", json.dumps(changed))]
    loaded = load_recipe(folder / "recipe.yaml", overrides)
    Run(loaded, silent)()
    assert list(spy.initial) == ["assistant-1", "generation-1/seed-0", "student/seed-0"]
    for stage in spy.initial:
        assert not same(weights(folder, stage), weights(tmp_path, stage)), stage
    left = [run for run in Run(loaded, silent).stages.values() if run.results() is None]
    assert not left


# ---- a teacher that is read from disk ------------------------------------------------------------


def test_cached_teacher_teaches_the_same_and_is_not_in_memory(tmp_path: Path, spy: Spy) -> None:
    """A cache that saves nothing, or that makes another student."""
    live, cached = tmp_path / "live", tmp_path / "cached"
    rows: list[dict[str, Any]] = [
        {"name": "forward_kl", "temperature": 2.0},
        {"name": "hidden_states", "layers": [[-1, -1]]},
    ]
    Run(load_recipe(recipe(live, objective=rows)), silent)()
    assert spy.teachers["student/seed-0"][0] == "ModelTeacher"
    assert 3 in spy.layers["student/seed-0"], "the live teacher has three layers"
    section = {"hidden_states": True, "dtype": "float32"}
    path = recipe(cached, objective=rows, teacher={"cache": section})
    Run(load_recipe(path), silent)()
    assert spy.teachers["student/seed-0"][0] == "CachedTeacher"
    assert 3 not in spy.layers["student/seed-0"]
    for stage in ("teacher", "student/seed-0"):
        trained = weights(live, stage), weights(cached, stage)
        # A key's bias shifts all scores of a query alike: its gradient is rounding alone, which
        # Adam scales to the size of a step.
        for key in (k for k in trained[0] if not k.endswith("key.bias")):
            torch.testing.assert_close(trained[0][key], trained[1][key], rtol=0, atol=1e-5)
    histories = [record(f, "student/seed-0")["results"]["history"] for f in (live, cached)]
    for name in ("forward_kl", "hidden_states", "eval_agreement", "eval_teacher_accuracy"):
        one, other = ([e[name] for e in history if name in e] for history in histories)
        assert one == pytest.approx(other, rel=1e-4), name
        assert one, name
    results = record(cached, "cache")["results"]
    assert results["examples"] == 40 + 12
    shards = list((cached / "out/cache").rglob("*.arrow"))
    assert results["bytes"] == sum(path.stat().st_size for path in shards)
    assert len(CachedTeacher(cached / "out/cache").columns()) > 1
    # another objective: the students alone, from the same cache
    spy.initial.clear()
    before = {p: p.stat().st_mtime_ns for p in shards}
    reverse = load_recipe(path, [("objective", "[{name: reverse_kl}]")])
    Run(reverse, silent)()
    assert list(spy.initial) == ["student/seed-0"]
    assert before == {p: p.stat().st_mtime_ns for p in before}
    # a cache that was deleted is not missed until somebody must learn from it
    shutil.rmtree(cached / "out/cache")
    Run(reverse, silent)()
    assert not (cached / "out/cache").exists()
    assert Run(reverse, silent).stages["cache"].results() is None


def test_writing_the_cache_alone_and_training_from_it(tmp_path: Path, spy: Spy) -> None:
    """`hf-distill cache` that trains a student, or `train` that asks the teacher once more."""
    own = tmp_path / "kept"
    section = {"format": "top_k", "k": 1, "path": str(own)}
    rows, short = [{"name": "forward_kl", "temperature": 2.0}], {"max_steps": 2}
    path = recipe(tmp_path, teacher={"cache": section}, objective=rows, training=short)
    assert Run(load_recipe(path), silent).write_cache() == own
    assert list(spy.initial) == ["teacher"]
    shards = {p: p.stat().st_mtime_ns for p in own.rglob("*.arrow")}
    assert shards
    kept = CachedTeacher(own).content.logits
    assert (kept.k, kept.temperature) == (1, 2.0)
    (damaged,) = shards
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:])
    with pytest.raises(RecipeError, match=r"`teacher\.cache`: .*shard"):
        Run(load_recipe(path), silent)()
    assert Run(load_recipe(path), silent).write_cache() == own
    assert damaged.read_bytes() == whole, "only the damaged shard is made again"
    spy.initial.clear()
    shards = {p: p.stat().st_mtime_ns for p in shards}
    Run(load_recipe(path), silent)()
    assert list(spy.initial) == ["student/seed-0"], "the baseline is done before the cache is read"
    assert shards == {p: p.stat().st_mtime_ns for p in shards}


def test_writing_the_cache_of_a_recipe_without_the_section(tmp_path: Path, spy: Spy) -> None:
    """What `hf-distill cache` wrote must be what `train` looks for once the section is there."""
    path = recipe(tmp_path, teacher={"seeds": [0, 1], "training": {"max_steps": 1}})
    folder = Run(load_recipe(path), silent).write_cache()
    assert folder == tmp_path / "out/cache"
    assert list(spy.initial) == ["teacher/seed-0", "teacher/seed-1"]
    run = Run(load_recipe(path, [("teacher.cache", "{}")]), silent)
    assert run.stages["cache"].results() is not None
    assert "cache" not in Run(load_recipe(path), silent).stages


# ---- what a recipe may say -----------------------------------------------------------------------

ROWS = "[{name: forward_kl, temperature: 2}, {name: forward_kl, temperature: 4}]"
PLAN = "[{name: forward_kl, temperature: {schedule: linear, start: 4, end: 1}}]"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"assistants": "[{from_teacher_layer: [0]}]"}, "did you mean `assistants[0].from_teacher"),
        ({"assistants": "[{}]"}, "`assistants[0]`: expected one of `assistants[0].from_teacher_la"),
        (
            {"assistants": "[{config: {model_type: brt}}]"},
            "`assistants[0].config.model_type`",
        ),
        ({"assistants": "[{from_teacher_layers: [9]}]"}, "`assistants[0].from_teacher_layers`"),
        (
            {"assistants": "[{from_teacher_layers: 2, training: {learning_rat: 1}}]"},
            "did you mean `assistants[0].training.learning_rate`?",
        ),
        (
            {"assistants": "[{from_teacher_layers: 2, objective: [{name: forward_lk}]}]"},
            "did you mean `forward_kl`?",
        ),
        (
            {"assistants": "[{from_teacher_layers: 2, objective: [{name: rkd, poling: first}]}]"},
            "did you mean `assistants[0].objective[0].pooling`?",
        ),
        (
            {
                "assistants": "[{from_teacher_layers: 2, hidden_size: 8, objective: [{name: "
                "hidden_states, layers: '9:1'}]}]"
            },
            "`assistants[0]`, taught by teacher: ",
        ),
        (
            {"generations": "2", "objective": "[{name: hidden_states, layers: '3:2'}]"},
            "`student`, taught by generation-1/seed-0: ",
        ),
        ({"generations": "0"}, "`generations`: expected at least 1, got 0"),
        ({"generation": "2"}, "did you mean `generations`?"),
        ({"teacher.seeds": "[1, 1]"}, "`teacher.seeds`: expected different whole numbers"),
        (
            {
                "teacher.seeds": "[1]",
                "teacher.fine_tuned": "true",
                "teacher.config": "null",
                "teacher.model": "x",
            },
            "`teacher.seeds` is for teachers that are trained",
        ),
        ({"teacher.cache": "{fromat: full}"}, "did you mean `teacher.cache.format`?"),
        ({"teacher.cache": "{format: topk}"}, "`teacher.cache.format`: expected 'full' or 'top_k'"),
        ({"teacher.cache": "{k: 3}"}, "`teacher.cache.k` is a setting of `format: top_k`"),
        ({"teacher.cache": "{format: top_k, k: 0}"}, "`teacher.cache`: "),
        ({"teacher.cache": "{format: top_k, dtype: int8}"}, "`teacher.cache`: "),
        ({"teacher.cache": "{format: sampled, dtype: int8}"}, "draws are counts and have none"),
        ({"teacher.cache": "{format: sampled}", "objective": ROWS}, "got 2.0 (forward_kl of stude"),
        ({"teacher.cache": "{format: top_k}", "objective": PLAN}, "Expected one number for all"),
        (
            {"teacher.cache": "{format: sampled}", "objective": "[{name: reverse_kl}]"},
            "Set `teacher.cache.format: full`",
        ),
        (
            {"teacher.cache": "{hidden_states: false}", "objective": "[{name: hidden_states}]"},
            "Set `teacher.cache.hidden_states: true`",
        ),
        (
            {"teacher.cache": "{hidden_states: true}", "teacher.seeds": "[0, 1]"},
            "expected a teacher that gives ['hidden_states']",
        ),
    ],
)
def test_chains_and_caches_that_cannot_work_are_refused_at_once(
    tmp_path: Path, overrides: dict[str, str], message: str
) -> None:
    """A typo that is ignored trains for an hour with the default instead."""
    path = recipe(tmp_path)
    with pytest.raises(RecipeError) as caught:
        Run(load_recipe(path, list(overrides.items())), silent).plan()
    assert message in str(caught.value)


def test_an_override_of_all_stages_is_stronger_than_an_assistants_own(tmp_path: Path) -> None:
    """`--training.num_train_epochs 1` would leave the assistant its ten."""
    own = [{"from_teacher_layers": 2, "training": {"learning_rate": 0.3}}]
    path = recipe(tmp_path, assistants=own)
    assert load_recipe(path).training_of("assistant-1")["learning_rate"] == 0.3
    loaded = load_recipe(path, [("training.learning_rate", "0.1")])
    assert loaded.training_of("assistant-1")["learning_rate"] == 0.1
    assert load_recipe(path, [("assistants", "null")]).assistants == []
