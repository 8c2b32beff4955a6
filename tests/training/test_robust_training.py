"""Robust objectives in a training: splits, resume, processes, adapters, data with noisy columns."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from batch_splits import measure
from launch import launch
from peft import LoraConfig
from safetensors.torch import load_file
from tiny_models import CASES, collate, quiet_arguments
from tiny_trainers import config, data, finite, models, same, trainer, weights
from torch import Tensor, nn
from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast

import hf_distill as hd
from hf_distill.data.perturbed_pairs import PairedCollator, PairedPerturbation
from hf_distill.training.checkpoints import EXTRAS

CE, KL = hd.HardLabels(), hd.ForwardKL()
PICTURES = "image_classification"
STILL = (
    0.5 * hd.OnPerturbed(CE, hd.PGD(0.1, 2, start="none"))
    + hd.OnPerturbed(KL, hd.PGD(0.1, 2, start="none", maximise="teacher"))
    + hd.OnPerturbed(KL, hd.PGD(0.1, 2, start="none", maximise="adaptive"), "perturbed")
    + hd.GroupDRO(CE, 3, "labels")
)
"""Nothing in it is drawn."""


@pytest.mark.parametrize("split", [(4, 2), (2, 4)], ids=str)
def test_the_split_changes_nothing(split: tuple[int, int]) -> None:
    """An adversary that depends on the size of the batch, as with a mean in the inner loss and an
    l2 step that is not normalised."""
    case = CASES[PICTURES]
    whole, parts = (measure(case, (*s, 1), {"all": STILL}) for s in ((8, 1), split))
    for name, value in whole[0].items():
        assert parts[0][name] == pytest.approx(value, rel=1e-6, abs=1e-12), name
    gradient = whole[1]["all"]
    assert gradient.norm() > 0
    assert (parts[1]["all"] - gradient).norm() <= 1e-6 * gradient.norm()


def group_run(folder: Path | str, batch: int, accumulation: int) -> hd.DistillationTrainer:
    """Four steps of eight pictures in float64, in the order of the data."""
    case = CASES[PICTURES]
    student, teacher = case.models()
    arguments = quiet_arguments(
        folder,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=4,
        learning_rate=0.01,
        train_sampling_strategy="sequential",
    )
    goal = hd.GroupDRO(KL, 3, "labels", step=5.0)
    made = hd.DistillationTrainer(
        student, arguments, collate, case.data(16), teacher_model=teacher, objective=goal
    )
    made.train()
    return made


def risks(made: hd.DistillationTrainer) -> tuple[Tensor, Tensor]:
    (built,) = (m for m in made.projections.modules() if type(m).__name__ == "GroupDROState")
    return built.q, built.seen


def test_group_weights_do_not_depend_on_the_split(tmp_path: Path) -> None:
    """q updated once per micro-batch moves four times as fast with four of them."""
    whole = group_run(tmp_path / "whole", 8, 1)
    q, seen = risks(whole)
    labels = torch.tensor([example["labels"] for example in CASES[PICTURES].data(16)])
    assert torch.equal(seen, 2 * torch.bincount(labels, minlength=3).double())
    assert (q - 1 / 3).abs().max() > 1e-3
    for batch, accumulation in ((4, 2), (2, 4)):
        parts = group_run(tmp_path / f"{batch}", batch, accumulation)
        torch.testing.assert_close(risks(parts)[0], q, rtol=1e-9, atol=0)
        torch.testing.assert_close(weights(parts.model), weights(whole.model), rtol=0, atol=1e-9)


def group_worker(folder: str) -> None:
    made = group_run(folder, 4, 1)
    torch.save(risks(made), Path(folder, f"{os.environ['RANK']}.pt"))


@pytest.mark.slow
def test_group_weights_are_of_all_processes(tmp_path: Path) -> None:
    """A q for each process trains each towards other groups, and the checkpoint holds one."""
    launch(group_worker, tmp_path, processes=2)
    whole = risks(group_run(tmp_path / "whole", 8, 1))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, whole, rtol=1e-9, atol=0)


EVERYTHING = (
    hd.OnPerturbed(CE, hd.PGD(0.1, 1))
    + hd.Smoothness(hd.PGD(0.1, 1, start="gaussian", maximise="itself"))
    + hd.FreeLB(KL, 0.1, 2)
    + hd.GroupDRO(KL, 3, "labels", step=1.0)
    + hd.Smoothness(hd.SecondDropout(), symmetric=True)
)


def drawn_run(folder: Path, **options: Any) -> hd.DistillationTrainer:
    case = CASES[PICTURES]
    dropping = case.config()
    dropping.hidden_dropout_prob = 0.3
    torch.manual_seed(0)
    student = case.model(dropping)
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.01}
    return hd.DistillationTrainer(
        student,
        quiet_arguments(folder, per_device_train_batch_size=4, **{**settings, **options}),
        collate,
        data(PICTURES),
        data(PICTURES)[:4],
        teacher_model=models(PICTURES)[1],
        objective=EVERYTHING,
    )


def test_resume_is_exact(tmp_path: Path) -> None:
    """Random starts from a generator of one's own, or q that begins anew, make another run."""
    whole = drawn_run(tmp_path / "whole")
    whole.train()
    last = tmp_path / "whole" / "checkpoint-3"
    saved = load_file(last / EXTRAS)
    (name,) = (n for n in saved if n.endswith(".q"))
    assert (saved[name] - 1 / 3).abs().max() > 1e-6
    resumed = drawn_run(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    other = tmp_path / "resumed" / "checkpoint-3"
    for file in ("model.safetensors", EXTRAS):
        torch.testing.assert_close(load_file(other / file), load_file(last / file), rtol=0, atol=0)

    one, two = ({k: v for k, v in resumed.evaluate().items() if "hard" in k} for _ in range(2))
    assert one == two
    assert finite(one)


def test_the_published_student_is_plain(tmp_path: Path) -> None:
    """The weights of groups, or a teacher, in what is loaded without this library."""
    made = drawn_run(tmp_path)
    made.model.save_pretrained(tmp_path / "before")
    taught = weights(made.teacher.model)
    made.train()
    made.save_model(str(tmp_path / "after"))
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("before", "after"))
    assert set(after) == set(before)
    assert same(weights(made.teacher.model), taught)
    assert all(p.grad is None for p in made.teacher.model.parameters())


def counted(model: nn.Module) -> list[bool]:
    """Whether each forward of a model, in turn, was in training mode."""
    seen: list[bool] = []
    model.register_forward_pre_hook(lambda module, *_: seen.append(module.training))
    return seen


def test_adversarial_training_costs_what_it_says(tmp_path: Path) -> None:
    """A forward of the plain batch that nothing reads is a quarter of the cost of FGSM."""
    goal = hd.adversarial_training(0.1, steps=3)
    made = trainer(tmp_path, PICTURES, objective=goal, max_steps=1)
    seen, asked = counted(made.model), counted(made.teacher.model)
    made.train()
    assert seen == [False] * 3 + [True]
    assert asked == []
    made = trainer(tmp_path, PICTURES, objective=hd.rslad(0.1, steps=3), max_steps=1)
    seen, asked = counted(made.model), counted(made.teacher.model)
    made.train()
    assert seen == [True] + [False] * 3 + [True]
    assert asked == [False]


def test_batch_statistics_are_of_what_is_trained_on(tmp_path: Path) -> None:
    """The search in training mode would move the running statistics K times more."""
    torch.manual_seed(0)
    small = tf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    student = tf.ResNetForImageClassification(small)
    made = trainer(tmp_path, PICTURES, model=student, objective=hd.rslad(0.1, steps=3), max_steps=2)
    made.train()
    counts = [v for n, v in student.state_dict().items() if n.endswith("num_batches_tracked")]
    assert counts
    assert all(int(count) == 4 for count in counts)  # plain and perturbed, at each of two steps


# peft 0.21 reads an attribute that transformers 5.23 has renamed
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", [PICTURES, "sequence_classification"])
def test_adapters_are_trained_alone(tmp_path: Path, name: str) -> None:
    """The search goes through the adapter, and leaves the weights below it."""
    adapter = LoraConfig(target_modules=["query", "q_proj"], lora_dropout=0.1)
    goal = hd.rslad(0.1, steps=2) + hd.adversarial_training(0.1, steps=2)
    made = trainer(tmp_path, name, objective=goal, peft_config=adapter)
    before = weights(made.model)
    made.train()
    changed = {key for key, value in weights(made.model).items() if not value.equal(before[key])}
    assert changed
    assert all("lora" in key or "modules_to_save" in key for key in changed)
    assert finite({k: v for k, v in made.evaluate().items() if isinstance(v, float)})


def test_bf16_autocast_trains_all_weights(tmp_path: Path) -> None:
    """Autocast keeps casts of the weights: one that was made without a graph gets no gradient."""
    goal = hd.trades(0.1, steps=1)
    made = trainer(tmp_path, PICTURES, objective=goal, max_steps=1, bf16=True, optim="sgd")
    before = weights(made.model)
    made.train()
    named = dict(made.model.named_parameters())
    still = [key for key in named if "weight" in key and torch.equal(before[key], named[key])]
    assert still == []


def test_what_cannot_work_is_told_at_once(tmp_path: Path) -> None:
    """A teacher that cannot be asked about x' must be refused before the first step."""
    adaptive = hd.OnPerturbed(KL, hd.PGD(0.1, 1, maximise="adaptive"), "perturbed")
    with pytest.raises(ValueError, match="embeddings, which mean nothing"):
        trainer(tmp_path, "sequence_classification", objective=adaptive)
    cache = tmp_path / "cache"
    student, teacher = models(PICTURES)
    hd.write_cache(cache, hd.ModelTeacher(teacher), data(PICTURES), collate)
    cached = hd.CachedTeacher(cache)
    for goal in (hd.adaad(0.1), hd.OnPerturbed(KL, hd.Gaussian(0.1), "perturbed")):
        with pytest.raises(ValueError, match="teacher='clean'"):
            trainer(tmp_path, PICTURES, model=student, objective=goal, teacher_model=cached)
    made = trainer(
        tmp_path, PICTURES, model=student, objective=hd.rslad(0.1, steps=1), teacher_model=cached
    )
    made.train()
    alone = {"args": config(tmp_path), "train_dataset": data(PICTURES), "data_collator": collate}
    with pytest.raises(ValueError, match="teacher_model"):
        hd.DistillationTrainer(student, objective=hd.rslad(0.1), **alone)


# ---- data with noisy columns -----------------------------------------------------------------


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "plot", "goood", "baad"]
TEXTS = ["good film", "bad film", "good plot good film", "bad plot", "good good", "bad"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    made = Tokenizer(words)
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
    )


def typos(text: str, rng: np.random.Generator) -> str:
    """Doubles letters of some words, and says some twice."""
    words = [w.replace("oo", "ooo") if rng.random() < 0.5 else f"{w} {w}" for w in text.split()]
    return " ".join(words)


ROWS = [{"text": text, "labels": index % 2} for index, text in enumerate(TEXTS)]


def test_noisy_data_holds_both_versions(tokenizer: PreTrainedTokenizerFast) -> None:
    """Noise in the clean columns too, or another one for another order of reading."""
    made = PairedPerturbation(ROWS, tokenizer, typos, seed=3)
    state = torch.get_rng_state()
    for index, row in enumerate(ROWS):
        found = made[index]
        noisy = typos(row["text"], np.random.default_rng([3, index]))
        assert found["input_ids"] == tokenizer(row["text"])["input_ids"]
        assert found["noisy_input_ids"] == tokenizer(noisy)["input_ids"]
        assert found["labels"] == row["labels"]
        assert "text" not in found
        assert made[index] == found
    assert torch.equal(torch.get_rng_state(), state)
    fresh = PairedPerturbation(ROWS, tokenizer, typos)
    several = {str(fresh[2]["noisy_input_ids"]) for _ in range(20)}
    assert len(several) > 1

    batch = PairedCollator(DataCollatorWithPadding(tokenizer))([made[i] for i in range(3)])
    for prefix in ("", "noisy_"):
        ids, mask = batch[f"{prefix}input_ids"], batch[f"{prefix}attention_mask"]
        longest = max(len(made[i][f"{prefix}input_ids"]) for i in range(3))
        assert ids.shape == mask.shape == (3, longest)
        assert (ids[mask == 0] == 0).all()
    with pytest.raises(ValueError, match="column"):
        PairedPerturbation([{"sentence": "good"}], tokenizer, typos)[0]
    with pytest.raises(ValueError, match="length"):
        PairedPerturbation(iter(ROWS), tokenizer, typos)


def test_a_noisy_student_of_a_clean_teacher(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Columns that the trainer drops, and a teacher that is shown the noise."""
    sets = PairedPerturbation(ROWS, tokenizer, typos, seed=0)
    options: dict[str, Any] = {
        "train_dataset": sets,
        "eval_dataset": sets,
        "data_collator": PairedCollator(DataCollatorWithPadding(tokenizer)),
        "processing_class": tokenizer,
    }
    goal = KL + hd.OnPerturbed(KL, hd.PerturbedColumns())
    made = trainer(tmp_path, objective=goal, max_steps=1, **options)
    shown: list[Tensor] = []
    made.teacher.model.register_forward_pre_hook(
        lambda module, _, given: shown.append(given["input_ids"]), with_kwargs=True
    )
    made.train()
    assert len(shown) == 1
    doubled = WORDS.index("goood")
    assert not (shown[0] == doubled).any()
    logged = made.state.log_history[0]
    assert logged["forward_kl_columns"] > 0
    assert finite({k: v for k, v in made.evaluate().items() if isinstance(v, float)})
    alone = trainer(tmp_path, objective=1.0 * CE, max_steps=1, **options)  # the control
    alone.train()
