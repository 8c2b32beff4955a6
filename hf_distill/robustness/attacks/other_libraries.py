"""Attacks of other libraries in pixel space (grey levels from 0 to 1), with the processor inside
the model."""

from __future__ import annotations

import inspect
import random
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_distill.robustness.attacks.attack import FOOLBOX, Attack, ensemble
from hf_distill.robustness.attacks.state import AttackState
from hf_distill.utils.suggest import nearest


class PixelSpaceModel(nn.Module):
    """Image classifier from grey levels from 0 to 1 to logits ``(B, C)``, for other libraries."""

    def __init__(self, search: AttackState):
        super().__init__()
        self.model = search.model
        self._search = [search]  # in a list: no part of this module

    def forward(self, levels: Tensor) -> Tensor:
        return self._search[0].on_levels(levels)


def autoattack(search: AttackState, attack: Attack) -> None:
    """AutoAttack's standard ensemble, through ``pyautoattack``; below 4 classes see `ensemble`.

    Its random state is global (and restored), so results depend on the batch.

    Raises:
        ImportError: `pyautoattack` is not installed.
        ValueError: the input is not an image, or has no bounds.

    Reference: Croce and Hein, 2020, "Reliable evaluation of adversarial robustness with an ensemble
    of diverse parameter-free attacks", arXiv:2003.01690.
    """
    library = _library("pyautoattack")
    rows = search.standing()
    if not len(rows):
        return
    levels = search.space.to_unit(search.center[rows]).clamp(0, 1)
    runner = library.AutoAttack(
        PixelSpaceModel(search),
        norm={"linf": "Linf", "l2": "L2"}[attack.norm],
        eps=attack.epsilon,
        seed=search.seed,
        device=levels.device,
        version="standard",
    )
    runner.attacks_to_run = ensemble(search.classes)
    runner.verbose = False
    targets = min(9, search.classes - 1)
    runner.apgd_targeted.n_target_classes = runner.fab.n_target_classes = targets
    found, _ = runner.run_standard_evaluation(levels, search.labels[rows], batch_size=len(rows))
    _offer(search, rows, found)


def foolbox(search: AttackState, attack: Attack) -> None:
    """An attack of foolbox by its name there: ``foolbox-LinfPGD``, ``foolbox-L2DeepFoolAttack``.

    It gets the number and size of the steps if it takes them.

    Raises:
        ImportError: foolbox is not installed.
        ValueError: an unknown attack, or one of another norm; the input is not an image.
    """
    library = _library("foolbox")
    name = attack.name.removeprefix(FOOLBOX)
    kind: Any = getattr(library.attacks, name, None)
    base: type = library.attacks.Attack
    if not (inspect.isclass(kind) and issubclass(kind, base)):
        known = [n for n, v in vars(library.attacks).items() if inspect.isclass(v)]
        near = nearest(name, known)
        hint = f" Did you mean {FOOLBOX + near!r}?" if near else ""
        raise ValueError(f"Expected the name of an attack of foolbox, got {name!r}.{hint}")
    takes = inspect.signature(kind).parameters
    settings = {"steps": attack.steps, "abs_stepsize": attack.size}
    made: Any = kind(**{key: value for key, value in settings.items() if key in takes})
    distance = getattr(made, "distance", None)
    if distance is not None and distance is not getattr(library.distances, attack.norm):
        raise ValueError(
            f"Expected an attack in {attack.norm}, got {name}, which is in {distance}."
        )

    rows = search.standing()
    if not len(rows):
        return
    levels = search.space.to_unit(search.center[rows]).clamp(0, 1)
    torch.manual_seed(search.seed)
    np.random.seed(search.seed % 2**32)
    random.seed(search.seed)
    model = library.PyTorchModel(
        PixelSpaceModel(search).eval(), bounds=(0, 1), device=levels.device
    )
    _, found, _ = made(model, levels, search.labels[rows], epsilons=attack.epsilon)
    _offer(search, rows, found)


def _offer(search: AttackState, rows: Tensor, levels: Tensor) -> None:
    """Check the examples of another library: inside the norm ball, and misclassified."""
    x = search.ball.rows(rows).project(search.space.from_unit(levels.detach()))
    with torch.no_grad():
        search.offer(rows, x, search.logits(rows, x))


def _library(name: str) -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the library's own imports
            return __import__(name)
    except ImportError as error:
        raise ImportError(
            f"This attack needs {name} ({error}): pip install 'hf_distill[attacks]'"
        ) from error
