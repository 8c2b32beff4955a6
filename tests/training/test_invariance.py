"""The figures do not depend on how the same examples are split.

(batch, accumulation, processes) is a matter of memory. Nothing that is trained, logged or evaluated
may change with it: with padding, with labels of any number per example, with none at all.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from batch_splits import TABLE, WHOLE, Measured, Split, alone, measure, objectives_of
from launch import launch
from safetensors.torch import load_file, save_file
from tiny_models import CASES, collate, quiet_arguments
from transformers import Trainer

pytestmark = pytest.mark.xdist_group("invariance")  # fixtures that are expensive are made once

ALONE: tuple[Split, ...] = ((2, 4, 1), (1, 8, 1))
TOGETHER: tuple[Split, ...] = ((4, 1, 2), (2, 2, 2))
FIGURES = 1e-6  # relative, in float64; transformers' own loss passes through a float32
GRADIENTS = 1e-10


def same(found: Measured, expected: Measured, only: tuple[str, ...] = ("",)) -> None:
    """Compare what starts with one of the given names, of all that was found."""
    assert "all" in found[1]
    assert {name for name in expected[0] if name.startswith(("all", "eval"))} <= set(found[0])
    assert set(found[0]) <= set(expected[0])
    for name, value in found[0].items():
        if name.removeprefix("eval_").startswith(only):
            assert value == pytest.approx(expected[0][name], rel=FIGURES, abs=1e-14), name
    for name, gradient in expected[1].items():
        if name.startswith(only):
            assert gradient.norm() > 0, f"{name} gives no gradient: nothing was compared"
        if name in found[1] and name.startswith(only):
            difference = (found[1][name] - gradient).norm() / gradient.norm()
            assert difference < GRADIENTS, f"gradient of {name} differs by {difference} of its norm"


# ---- two processes ---------------------------------------------------------------------------


def stock(batch: int, accumulation: int) -> tuple[float, float]:
    """transformers' own Trainer on BERT: the first gradient norm, and eval_loss on eight rows."""
    case = CASES["sequence_classification"]
    with tempfile.TemporaryDirectory() as folder:
        args = quiet_arguments(
            folder,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            per_device_eval_batch_size=batch,
            max_steps=1,
            learning_rate=0.0,
            optim="sgd",
            max_grad_norm=1e9,
        )
        trainer = Trainer(case.models()[0], args, collate, case.data(), case.data())
        trainer.train()
        return trainer.state.log_history[0]["grad_norm"], trainer.evaluate()["eval_loss"]


def measure_together(folder: str) -> None:
    """In each of two processes: measure everything and write it down."""
    rank = os.environ["RANK"]
    figures, gradients = {}, {}
    for split in TOGETHER:
        for head, case in TABLE.items():
            figures[f"{head} {split}"], found = measure(case, split)
            gradients.update({f"{head} {split} {name}": g for name, g in found.items()})
    figures["stock"] = dict(zip(("grad_norm", "eval_loss"), stock(4, 1), strict=True))
    Path(folder, f"figures_{rank}.json").write_text(json.dumps(figures))
    save_file(gradients, Path(folder, f"gradients_{rank}.safetensors"))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    launch(measure_together, folder, processes=2)
    return folder


def read(folder: Path, head: str, split: Split) -> Measured:
    figures = json.loads((folder / "figures_0.json").read_text())[f"{head} {split}"]
    gradients = load_file(folder / "gradients_0.safetensors")
    return figures, {
        name: gradients[f"{head} {split} {name}"] for name in objectives_of(TABLE[head], split)
    }


# ---- tests -----------------------------------------------------------------------------------

EVERYWHERE = [head for head, case in TABLE.items() if not case.compares_examples]
# At (2, 4, 1) the variants have micro-batches without any label already.
ACCUMULATED = [(head, split) for head in EVERYWHERE for split in ALONE[: 2 if head in CASES else 1]]


@pytest.mark.parametrize(("head", "split"), ACCUMULATED, ids=str)
def test_accumulation_changes_nothing(head: str, split: Split) -> None:
    """A mean per micro-batch weighs a short text like a long one; a sum forgets the window."""
    same(alone(head, split), alone(head, WHOLE))


@pytest.mark.parametrize("split", TOGETHER, ids=str)
@pytest.mark.parametrize("head", EVERYWHERE)
def test_processes_change_nothing(together: Path, head: str, split: Split) -> None:
    """Local counts weigh ranks wrongly; the rows that fill the last batch would count twice."""
    same(read(together, head, split), alone(head, WHOLE))


@pytest.mark.parametrize("split", TOGETHER, ids=str)
def test_dual_encoder(together: Path, split: Split) -> None:
    """The same for CLIP, as far as it can be.

    The other examples of a micro-batch are the classes of its logits, by definition. So figures of
    the logits are compared for equal micro-batches only, and evaluated on rows that fill the last
    batch; hidden states, embeddings and weights do not look at other examples.
    """
    found = read(together, "dual_encoder", split)
    same(found, alone("dual_encoder", (split[0], split[1] * split[2], 1)))
    by_row = ("hidden_states", "weight_decay")
    same(found, alone("dual_encoder", WHOLE), by_row)
    same(alone("dual_encoder", (1, 8, 1)), alone("dual_encoder", WHOLE), by_row)


def test_both_processes_say_the_same(together: Path) -> None:
    """A decision on a figure (early stopping, best model) that differs by rank hangs the job."""
    ours, theirs = (json.loads((together / f"figures_{r}.json").read_text()) for r in (0, 1))
    ours.pop("stock")
    assert ours == {head: figures for head, figures in theirs.items() if head != "stock"}


def test_where_transformers_own_trainer_fails(together: Path) -> None:
    """BERT's own loss ignores the window's count, and `Trainer` believes that it does not.

    If this fails because transformers was mended, drop it; ours must hold all the same.
    """
    norm, loss = stock(8, 1)
    assert stock(2, 4)[0] == pytest.approx(4 * norm, rel=FIGURES)
    shared = json.loads((together / "figures_0.json").read_text())["stock"]
    assert shared["eval_loss"] == pytest.approx(2 * loss, rel=FIGURES)
    head = "sequence_classification"
    for figures, _ in (alone(head, (2, 4, 1)), read(together, head, (2, 2, 2))):
        assert figures["hard_labels: grad_norm"] == pytest.approx(norm, rel=FIGURES)
