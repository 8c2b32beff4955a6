"""Recipes of language models: what is measured, adapters, own text, packing, caches, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_recipes import language, llama, record
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hf_distill.hub import published_files, validate
from hf_distill.recipe import RecipeError, Run, load_recipe
from hf_distill.recipe.stages import Stage

pytestmark = [
    pytest.mark.xdist_group("recipes"),
    # peft 0.21 reads an attribute that transformers 5.23 has renamed
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning"),
]
ROOT = Path(__file__).resolve().parents[2]
ON_POLICY = {"lmbda": 1.0, "prompt_length": 3, "max_completion_length": 6}
LORA = {"r": 2, "target_modules": ["q_proj"]}


def silent(line: str) -> None:
    """For lines that nobody needs to see."""


def run(path: Path, *overrides: tuple[str, str]) -> Path:
    return Run(load_recipe(path, overrides), silent)()


def stages(path: Path, *overrides: tuple[str, str]) -> dict[str, Stage]:
    return Run(load_recipe(path, overrides), silent).stages


def weights(folder: Path) -> dict[str, Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def token_ids(folder: Path, rows: list[dict[str, Any]]) -> list[tuple[Tensor, Tensor]]:
    """Tokens of the test rows, and which of them are learned: by plain transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    found = []
    for row in rows:
        ids = tokenizer(row.get("text") or row["prompt"] + row["completion"])["input_ids"]
        ids = [*ids, tokenizer.eos_token_id][:12]
        first = len(tokenizer(row["prompt"])["input_ids"]) if "prompt" in row else 1
        found.append((torch.tensor([ids]), torch.arange(len(ids)) >= first))
    return found


def log_probabilities(model: Path, ids: Tensor) -> Tensor:
    loaded = AutoModelForCausalLM.from_pretrained(model).double().eval()
    with torch.no_grad():
        found: Tensor = loaded(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return found


@pytest.mark.parametrize("source", ["prose", "answers"])
def test_report_tells_what_the_saved_models_do(tmp_path: Path, source: str) -> None:
    """A report of prompts, padding or another shift of the labels would look just as good."""
    path = language(tmp_path, data={"source": f"prose.py:{source}"})
    final = run(path)
    rows: list[dict[str, Any]] = list(Run(load_recipe(path), silent).examples.raw["test"])
    facts = json.loads((tmp_path / "out/report.json").read_text())
    for key in ("baseline/seed-0", "student/seed-0"):
        nll, kl, same, accepted = [], [], [], []
        for ids, learned in token_ids(tmp_path, rows):
            ours = log_probabilities(tmp_path / "out" / key / "model", ids)[learned[1:]]
            theirs = log_probabilities(tmp_path / "expert", ids)[learned[1:]]
            nll.append(-ours.gather(-1, ids[0, 1:][learned[1:], None])[:, 0])
            kl.append((theirs.exp() * (theirs - ours)).sum(-1))
            same.append((ours.argmax(-1) == theirs.argmax(-1)).double())
            accepted.append(torch.minimum(ours.exp(), theirs.exp()).sum(-1))
        found = facts["runs"][key]["test"]
        for name, values in {
            "nll": nll,
            "forward_kl_divergence": kl,
            "agreement": same,
            "acceptance_rate": accepted,
        }.items():
            assert found[name] == pytest.approx(float(torch.cat(values).mean()), rel=1e-5), name
        assert found["perplexity"] == pytest.approx(math.exp(found["nll"]), rel=1e-5)
    card = (final / "README.md").read_text()
    assert "## Samples" in card
    assert "less is better" in (tmp_path / "out/report.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["pipeline_tag"] == "text-generation"


def test_published_student_is_the_one_of_least_perplexity(tmp_path: Path) -> None:
    """The worst of all seeds would be published, as the one of the greatest figure."""
    run(language(tmp_path, seeds=[0, 1, 2]))
    scores = [
        record(tmp_path, f"student/seed-{s}")["results"]["validation"]["perplexity"]
        for s in (0, 1, 2)
    ]
    facts = json.loads((tmp_path / "out/report.json").read_text())
    assert facts["published_seed"] == scores.index(min(scores))


def test_early_stopping_keeps_the_least_perplexity(tmp_path: Path) -> None:
    """It would keep the weights of the greatest perplexity, and publish them."""
    path = language(
        tmp_path,
        training={"early_stopping_patience": 2, "num_train_epochs": 6, "learning_rate": 0.01},
    )
    run(path)
    results = record(tmp_path, "baseline/seed-0")["results"]
    seen = [e["eval_perplexity"] for e in results["history"] if "eval_perplexity" in e]
    assert results["validation"]["perplexity"] == pytest.approx(min(seen))
    assert min(seen) < max(seen)
    assert len(seen) == 6, "it went on as long as it got better"


def test_adapter_is_merged_into_a_whole_student(tmp_path: Path) -> None:
    """Nobody could load an adapter whose base, layers of the teacher, was never saved."""
    path = language(tmp_path, student={"lora": LORA}, training={"learning_rate": 0.05})
    final = run(path)
    assert not [name for name in published_files(final) if name.startswith("adapter")]
    expert, ours = weights(tmp_path / "expert"), weights(final)
    moved = 0
    for name, value in ours.items():
        theirs = expert[name.replace("layers.1.", "layers.2.")]
        if "q_proj" in name:
            change = value - theirs
            assert torch.linalg.matrix_rank(change, rtol=1e-3) == 2, name
            moved += 1
        else:
            assert torch.equal(value, theirs), name
    assert moved == 2


def test_student_learns_from_its_own_text(tmp_path: Path) -> None:
    """The recipe would quietly train on the data alone."""
    path = language(tmp_path, on_policy=ON_POLICY)
    run(path)
    history = record(tmp_path, "student/seed-0")["results"]["history"]
    shares = [entry["on_policy"] for entry in history if "on_policy" in entry]
    assert shares
    assert set(shares) == {1.0}
    baseline = record(tmp_path, "baseline/seed-0")["results"]["history"]
    assert not any("on_policy" in entry for entry in baseline)


def test_stages_depend_on_adapter_and_own_text(tmp_path: Path) -> None:
    """A finished student of other settings would pass for the one that is asked for."""
    path = language(tmp_path)
    plain = {key: stage.fingerprint for key, stage in stages(path).items()}

    def changed(*overrides: tuple[str, str]) -> set[str]:
        now = stages(path, *overrides)
        return {key for key, stage in now.items() if stage.fingerprint != plain[key]}

    student, evaluation = "student/seed-0", "evaluation"
    assert changed(("on_policy", "{lmbda: 0.5}")) == {student, evaluation}
    everyone = {"baseline/seed-0", student, evaluation}
    assert changed(("student.lora", "{r: 2}")) == everyone
    assert changed(("student.dtype", "bfloat16")) == everyone
    assert changed(("data.packing", "wrapped")) == everyone


AT_REST = {"training": {"learning_rate": 1e-8, "max_steps": 1}}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a row for each text, which learns next to nothing."""
    folder = tmp_path_factory.mktemp("unpacked")
    run(language(folder, data={"max_length": 40}, **AT_REST))
    return folder


@pytest.mark.parametrize("strategy", ["first_fit", "wrapped"])
def test_packing_changes_no_figure(tmp_path: Path, unpacked: Path, strategy: str) -> None:
    """Packed texts that see one another, or lose tokens, would shift every figure a little."""
    packed = language(tmp_path, data={"max_length": 40, "packing": strategy}, **AT_REST)
    run(packed)
    rows = Run(load_recipe(packed), silent).data["test"]
    assert len(rows) < 8
    figures = [
        json.loads((folder / "out/report.json").read_text())["runs"]["student/seed-0"]
        for folder in (unpacked, tmp_path)
    ]
    if strategy == "first_fit":  # the other one cuts texts, whose pieces know less
        for name in ("perplexity", "forward_kl_divergence", "agreement"):
            assert figures[1]["test"][name] == pytest.approx(figures[0]["test"][name], rel=1e-5)
    else:
        whole = sum(len(ids) for ids in rows["input_ids"])
        texts = Run(load_recipe(unpacked / "recipe.yaml"), silent).data["test"]["input_ids"]
        assert whole >= sum(map(len, texts)) - 1  # a piece of one token teaches nothing


@pytest.mark.parametrize(
    "cache",
    [  # tests/teachers/cache compares what the formats hold
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"format": "top_k", "k": 8}, marks=pytest.mark.slow),
        {"format": "sampled", "draws": 12},
    ],
)
def test_cached_teacher(tmp_path: Path, cache: dict[str, Any]) -> None:
    """The teacher's outputs would not be found, or the student would learn nothing from them."""
    path = language(
        tmp_path,
        teacher={"cache": cache},
        data={"packing": "first_fit"},
        training={"num_train_epochs": 8, "learning_rate": 1e-2},
        objective=[{"name": "forward_kl", "temperature": 1.0}],
    )
    run(path)
    history = record(tmp_path, "student/seed-0")["results"]["history"]
    divergences = [entry["eval_forward_kl"] for entry in history if "eval_forward_kl" in entry]
    assert divergences[-1] < 0.8 * divergences[0]


def test_student_of_half_a_teacher_is_trained_in_float32(tmp_path: Path) -> None:
    """Steps smaller than half precision can tell would be lost, and nothing would say so."""
    path = language(tmp_path)
    expert = AutoModelForCausalLM.from_pretrained(tmp_path / "expert").to(torch.bfloat16)
    expert.save_pretrained(tmp_path / "expert")
    models = Run(load_recipe(path), silent).models
    assert models.learner("student", 0).dtype == torch.float32
    assert models.trained(models.paths["teacher"]).dtype == torch.bfloat16
    given = load_recipe(path, [("teacher.dtype", "float32"), ("student.dtype", "bfloat16")])
    models = Run(given, silent).models
    assert models.learner("student", 0).dtype == torch.bfloat16
    assert models.trained(models.paths["teacher"]).dtype == torch.float32


REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "typo in on_policy": ({"on_policy": "{lambda: 0.5}"}, "on_policy.lmbda"),
    "no share": ({"on_policy": "{lmbda: 2}"}, "Expected lmbda between 0 and 1"),
    "own text and a cache": (
        {"on_policy": "{lmbda: 1}", "teacher.cache": "{}"},
        "Take one of them away",
    ),
    "a classifier": (
        {"on_policy": "{lmbda: 1}", "task": "text_classification"},
        "writes no text",
    ),
    "typo in lora": ({"student.lora": "{rank: 4}"}, "unknown key `student.lora.rank`"),
    "no rank": ({"student.lora": "{r: 0}"}, "`r` of at least 1"),
    "typo in packing": ({"data.packing": "wrap"}, "`data.packing`"),
    "no such dtype": ({"student.dtype": "float8"}, "`student.dtype`"),
    "no length": ({"data.max_length": "null", "data.processor": "./endless"}, "max_length"),
    "context": ({"data.max_length": "65"}, "Expected texts of at most 64 tokens, the context of"),
    "column": ({"data.text_column": "texts"}, "Name the column of plain texts"),
    "robustness": ({"robustness": "{}"}, "measures classifiers"),
    "noise": ({"data.noisy": "{perturbations: [typos]}"}, "data.noisy"),
    "modules": ({"student.lora": "{target_modules: [query]}"}, "query"),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_is_refused_at_once(
    tmp_path: Path, overrides: dict[str, str], message: str
) -> None:
    """Found at the end of an hour, or never."""
    path = language(tmp_path)
    endless = AutoTokenizer.from_pretrained(tmp_path / "tokenizer", model_max_length=10**30)
    endless.save_pretrained(tmp_path / "endless")
    with pytest.raises(RecipeError) as caught:
        Run(load_recipe(path, list(overrides.items())), silent).check()
    assert message in str(caught.value)


def test_packing_is_refused_for_a_model_that_mixes_texts(tmp_path: Path) -> None:
    """Each text would be judged as the continuation of another one."""
    path = language(tmp_path, data={"packing": "first_fit"})
    bloom = {"model_type": "bloom", "vocab_size": 32, "hidden_size": 16, "n_layer": 3, "n_head": 2}
    config = AutoConfig.for_model(**bloom)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "expert")
    with pytest.raises(RecipeError, match="does not keep the texts of a packed row apart"):
        Run(load_recipe(path), silent).check()


def test_teacher_that_is_trained_first(tmp_path: Path) -> None:
    """A teacher of the recipe's own would be left as it is, or its student would know its tuning
    before it began."""
    config = llama(3)
    run(language(tmp_path, teacher={"model": None, "config": config, "fine_tuned": False}))
    assert record(tmp_path, "teacher")["results"]["steps"] == 8
    facts = json.loads((tmp_path / "out/report.json").read_text())
    assert "perplexity" in facts["models"]["teacher"]["test"]


@pytest.mark.slow
def test_smollm2_runs(tmp_path: Path) -> None:
    """The real text and models of the shipped recipe, cut to a minute."""
    short = {
        "output_dir": str(tmp_path),
        "seeds": "[0]",
        "data.max_train_examples": "8",
        "data.max_eval_examples": "2",
        "data.max_test_examples": "2",
        "data.max_length": "64",
        "training.max_steps": "2",
    }
    final = run(ROOT / "recipes/language_modeling/smollm2.yaml", *short.items())
    validate((final / "README.md").read_text())
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["models"]["student"]["layers"] == 10
    assert facts["models"]["teacher"]["test"]["perplexity"] < 150


CHAT = (
    "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' [SEP] ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
)
TALK = """
from datasets import Dataset, DatasetDict


def talk() -> DatasetDict:
    def part(count: int) -> Dataset:
        turns = [("the film", "very good"), ("a plot", "was bad and not good")]
        rows = [turns[n % 2] for n in range(count)]
        chats = [
            [{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in rows
        ]
        return Dataset.from_dict({"messages": chats, "prompt": [q for q, _ in rows]})

    return DatasetDict(train_sft=part(40), test_sft=part(8))
"""


def test_the_recipe_for_gpus_trains(tmp_path: Path) -> None:
    """A recipe that cannot be run here would be found broken on eight rented GPUs; with models and
    data as small as possible in place of the Hub's, all else of it is as shipped."""
    folder = tmp_path / "tiny"
    language(folder)
    (folder / "talk.py").write_text(TALK)
    expert = AutoModelForCausalLM.from_config(AutoConfig.for_model(**llama(2, vocab_size=40)))
    expert.to(torch.bfloat16).save_pretrained(folder / "expert")
    student = AutoModelForCausalLM.from_config(AutoConfig.for_model(**llama(1)))
    student.save_pretrained(folder / "student")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder / "expert")
    shipped = ROOT / "recipes/language_modeling/qwen2.5_7b_to_0.5b.yaml"
    small = {
        "data.source": f"{folder}/talk.py:talk",
        "teacher.model": str(folder / "expert"),
        "student.model": str(folder / "student"),
        "data.max_length": "32",
        "training.save_steps": "1",
        "training.disable_tqdm": "true",
    }
    overrides = [*small.items(), ("output_dir", str(tmp_path / "out"))]
    loaded = load_recipe(shipped, overrides)
    assert "stage student/seed-0: to do" in Run(loaded, silent).plan()
    final = Run(loaded, silent)()
    assert AutoModelForCausalLM.from_pretrained(final).config.vocab_size == 32
    learned = Run(loaded, silent).data["test"]["labels"]
    assert any(label == -100 for row in learned for label in row[1:]), "answers alone are learned"
