"""Which layer learns from which, and students made of some of a teacher's layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

Pairs = tuple[tuple[int, int], ...]
LAYER_MAPS = ("uniform", "skip", "last")


def layer_map(spec: str | Sequence[Sequence[int]], student: int, teacher: int) -> Pairs:
    """Pair the layers of a student with layers of a teacher.

    Index 0 is the output of the embeddings, index n that of layer n, as in `transformers`'
    ``hidden_states``. (There, a decoder's last entry is after its final norm, a ViT's before.)

    - ``uniform``: every student layer, evenly spaced, the last with the last (TinyBERT's
      g(m) = m * N / M, arXiv 1909.10351).
    - ``skip``: the same without the last layer, which the logits already teach (PKD-skip,
      arXiv 1908.09355).
    - ``last``: every student layer with the teacher's topmost ones (PKD-last).
    - explicit pairs ``[(student, teacher), ...]``; negative indices count from the end.

    Args:
        spec: One of the names above, or pairs.
        student: Number of layers of the student, without the embeddings.
        teacher: Number of layers of the teacher.

    Raises:
        ValueError: an unknown name, a pair out of range, or a map that pairs nothing.

    >>> layer_map("uniform", 2, 6)
    ((1, 3), (2, 6))
    >>> layer_map("last", 2, 6)
    ((1, 5), (2, 6))
    >>> layer_map([(0, 0), (-1, -1)], 2, 6)
    ((0, 0), (2, 6))
    """
    if student == 0 and teacher == 0:  # a pooled embedding: there is only one thing to pair
        return ((0, 0),)
    if not isinstance(spec, str):
        return tuple(_pair(pair, student, teacher) for pair in spec)
    uniform = tuple((i, max(1, round(i * teacher / student))) for i in range(1, student + 1))
    if spec == "uniform":
        return uniform
    if spec == "skip":
        if student < 2:
            raise ValueError(
                f"Layer map 'skip' leaves out the last layer, so a student with {student} layer(s) "
                "has none to pair. Use 'uniform' or explicit pairs."
            )
        return uniform[:-1]
    if spec == "last":
        if student > teacher:
            raise ValueError(
                f"Layer map 'last' needs a teacher with at least as many layers as the student, "
                f"got {teacher} and {student}. Use 'uniform' or explicit pairs."
            )
        return tuple((i, teacher - student + i) for i in range(1, student + 1))
    raise ValueError(
        f"Expected a layer map of {list(LAYER_MAPS)} or pairs (student, teacher), got {spec!r}."
    )


def _pair(pair: Sequence[int], student: int, teacher: int) -> tuple[int, int]:
    indices = []
    for index, count, who in zip(pair, (student, teacher), ("student", "teacher"), strict=True):
        if not -count - 1 <= index <= count:
            raise ValueError(
                f"Layer map pair {tuple(pair)}: the {who} has layers 0 (embeddings) to {count}, "
                f"got {index}. Pairs are written (student layer, teacher layer)."
            )
        indices.append(index % (count + 1))
    return indices[0], indices[1]


def take_layers(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """Make a smaller copy of a model out of some of its layers, the usual start of a student.

    Args:
        model: A model whose repeated layers are one `nn.ModuleList` of
            ``config.num_hidden_layers`` entries (BERT, ViT, Llama, wav2vec2, …).
        layers: Indices of the layers to keep, from 0, in order.

    Returns:
        A copy with its own weights; all other parts (embeddings, head) are kept.

    Raises:
        ValueError: no such list of layers, an index out of range or given twice, or layers that
            would not load again from a saved folder.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if count is None or len(names) != 1:
        raise ValueError(
            f"Expected {type(model).__name__} to hold its layers in one list of "
            f"{count} modules, found {names}. Build this student from a config instead."
        )
    once = set(layers)
    if not layers or len(once) < len(layers) or not once <= set(range(count)):
        raise ValueError(
            f"Expected different layers between 0 and {count - 1}, got {list(layers)}."
        )
    student = copy.deepcopy(model)
    parent, _, last = names[0].rpartition(".")
    kept = student.get_submodule(names[0])
    owner = student.get_submodule(parent)
    setattr(owner, last, nn.ModuleList(kept[index] for index in layers))  # type: ignore[index]
    student.config.num_hidden_layers = len(layers)
    for position, layer in enumerate(getattr(owner, last)):
        for module in layer.modules():  # decoder layers remember their place in the cache
            if hasattr(module, "layer_idx"):
                module.layer_idx = position
    for name, value in list(vars(student.config).items()):  # layer_types and the like
        if "layer" in name and isinstance(value, list) and len(value) == count:
            setattr(student.config, name, [value[index] for index in layers])
    _check_reload(student, layers)
    return student


def _check_reload(student: PreTrainedModel, layers: Sequence[int]) -> None:
    """A first layer may hold what the others lack; without it, a saved student loads as another."""
    config = student.config
    try:
        with torch.device("meta"):
            fresh = type(student)(type(config).from_dict(config.to_dict()))
        ours, theirs = ({(n, t.shape) for n, t in m.state_dict().items()} for m in (student, fresh))
        differing = sorted(name for name, _ in ours ^ theirs)
    except ValueError as error:  # a config that counts its layers in one more place
        differing = [str(error)]
    if differing:
        raise ValueError(
            f"Expected the layers {list(layers)} of {type(student).__name__} to make a model that "
            f"its config describes, but they differ in {differing}. Keep layer 0, or build this "
            "student from a config instead."
        )
