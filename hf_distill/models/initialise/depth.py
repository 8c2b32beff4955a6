"""Depth: selection of the teacher's layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_distill.models.initialise.weights import Weights, init_empty, most_important, weights_of

Layers = int | str | Sequence[int]
"""Number of layers, their indices, or a rule: 3, [0, 2, 5], "0,2,5", "uniform:3", "first:3"."""
DepthPlan = dict[str, list[int]]
"""The path of a list of layers -> the indices that stay, in order."""

RULES = ("uniform", "first", "last")
SIDES = {
    "encoder": ("encoder_layers", "num_encoder_layers", "num_layers", "num_hidden_layers"),
    "decoder": ("decoder_layers", "num_decoder_layers"),
}
ALIASES = {"text": ("text", "language"), "vision": ("vision", "visual")}


def pick_layers(layers: Layers, count: int, importance: Tensor | None = None) -> list[int]:
    """The indices of the layers to keep out of `count`.

    Evenly spaced layers include the first and the last; a single one is the first. With the
    `importance` of each layer, ``(count,)``, a number without a rule takes the most important.

    Raises:
        ValueError: not a number, list or rule; layers that do not exist or are named twice.

    >>> pick_layers(6, 12)  # DistilBERT's
    [0, 2, 4, 7, 9, 11]
    >>> pick_layers("uniform:2", 32), pick_layers("first:2", 32), pick_layers("0,3", 32)
    ([0, 31], [0, 1], [0, 3])
    """
    rule, wanted = _parse(layers) if isinstance(layers, str) else ("", layers)
    if isinstance(wanted, int):
        if not 1 <= wanted <= count:
            raise ValueError(f"Expected a number of layers between 1 and {count}, got {wanted}.")
        if not rule and importance is not None:
            return most_important(importance, wanted)
        if rule in ("", "uniform"):
            return [round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)]
        return list(range(wanted) if rule == "first" else range(count - wanted, count))
    once = set(wanted)
    if not once or len(once) < len(wanted) or not once <= set(range(count)):
        raise ValueError(
            f"Expected different layers between 0 and {count - 1}, got {list(wanted)}."
        )
    return list(wanted)


def _parse(text: str) -> tuple[str, int | list[int]]:
    rule, colon, numbers = text.rpartition(":")
    words = [word.strip() for word in numbers.split(",") if word.strip()]
    single = len(words) == 1 and "," not in numbers
    if (
        not words
        or not all(word.isdecimal() for word in words)
        or (colon and (rule not in RULES or not single))
    ):
        raise ValueError(
            f"Expected layers as a number ('3'), a list ('0,2,5') or one of "
            f"{[f'{rule}:3' for rule in RULES]}, got {text!r}."
        )
    return rule, int(words[0]) if single else [int(word) for word in words]


@dataclass(frozen=True)
class Stack:
    """A list of layers, and the config field with their number."""

    path: str
    count: int
    part: str
    """The sub-config (`text_config`), or nothing: the config itself."""
    fields: tuple[str, ...]


def kept_layers(
    teacher: PreTrainedModel,
    layers: Layers | Mapping[str, Layers],
    importance: Mapping[str, Tensor] | None = None,
) -> DepthPlan:
    """The layers that `student_from_teacher` keeps.

    Args:
        teacher: The model.
        layers: As `student_from_teacher` takes them.
        importance: `Importance.layers`, for numbers of layers without a rule.

    Raises:
        ValueError: as `student_from_teacher`.
    """
    depths = getattr(teacher.config, "depths", None)
    if isinstance(depths, (list, tuple)):
        return _kept_blocks(teacher, layers, list(depths))
    stacks = stacks_of(teacher)
    first = next(iter(stacks))
    if not isinstance(layers, Mapping):
        if len(stacks) != 1:
            raise ValueError(
                f"Expected the layers of {list(stacks)} of {type(teacher).__name__} by name, as "
                f"{{{first!r}: 2}}, got {layers!r}."
            )
        layers = {first: layers}
    if not layers or set(layers) - set(stacks):
        raise ValueError(
            f"Expected layers of {list(stacks)}, the stacks of {type(teacher).__name__}, "
            f"got {list(layers)}."
        )
    known = {} if importance is None else importance
    return {
        stacks[name].path: pick_layers(which, stacks[name].count, known.get(stacks[name].path))
        for name, which in layers.items()
    }


def stacks_of(model: PreTrainedModel) -> dict[str, Stack]:
    """Stacks of layers in a config, by name (a single one has none).

    Raises:
        ValueError: a stack that is not one list of modules.
    """
    config, found = model.config, {}
    for name, part, fields in _counted(config):
        count = getattr(getattr(config, part) if part else config, fields[0])
        found[name] = [
            Stack(path, count, part, fields)
            for path, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == count and _is_in(path, name)
        ]
        if not found[name] and name in SIDES:
            del found[name]  # an encoder without its decoder
    if not found or any(len(stacks) != 1 for stacks in found.values()):
        paths = [stack.path for stacks in found.values() for stack in stacks]
        raise ValueError(
            f"Expected {type(model).__name__} to hold each of the stacks of layers that its config "
            f"counts in one list of modules, found {paths}. Build this student from a config "
            "instead."
        )
    return {name: stacks[0] for name, stacks in found.items()}


def _counted(config: Any) -> Iterable[tuple[str, str, tuple[str, ...]]]:
    """Layer counts in a config: the name of a stack, its sub-config, the fields."""
    if config.is_encoder_decoder:
        for side, fields in SIDES.items():
            present = tuple(field for field in fields if hasattr(config, field))
            if present:
                yield side, "", present
    elif hasattr(config, "num_hidden_layers"):
        yield "", "", ("num_hidden_layers",)
    else:
        for part in config.sub_configs:
            if hasattr(getattr(config, part, None), "num_hidden_layers"):
                yield part.removesuffix("_config"), part, ("num_hidden_layers",)


def _is_in(path: str, name: str) -> bool:
    """True if a list belongs to a stack; lists within layers belong to none."""
    words = path.split(".")
    names = ALIASES.get(name, (name,))
    mine = any(word == n or word.startswith(f"{n}_") for word in words for n in names)
    return (mine or not name) and not any(word.isdecimal() for word in words)


def _kept_blocks(teacher: PreTrainedModel, layers: Any, depths: list[int]) -> DepthPlan:
    """The blocks of each stage; its first, which changes the resolution, always stays."""
    if isinstance(layers, str):
        _, layers = _parse(layers)
    if (
        isinstance(layers, (int, Mapping))
        or len(layers) != len(depths)
        or not all(1 <= wanted <= count for wanted, count in zip(layers, depths, strict=True))
    ):
        raise ValueError(
            f"Expected the number of blocks of each of the {len(depths)} stages of "
            f"{type(teacher).__name__}, at most {depths}, got {layers!r}."
        )
    groups: dict[str, list[str]] = {}
    for path, module in teacher.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            groups.setdefault(re.sub(r"\.\d+", ".*", path), []).append(path)
    fitting = [
        paths
        for pattern, paths in groups.items()
        if pattern.count("*") == 1
        and [len(teacher.get_submodule(path)) for path in paths] == depths  # type: ignore[arg-type]
    ]
    if len(fitting) != 1:
        raise ValueError(
            f"Expected {type(teacher).__name__} to hold its stages of {depths} blocks in one list "
            f"of lists, found {fitting}. Build this student from a config instead."
        )
    return {
        path: pick_layers(wanted, count)
        for path, wanted, count in zip(fitting[0], layers, depths, strict=True)
    }


def set_depth(config: Any, teacher: PreTrainedModel, plan: DepthPlan) -> None:
    """Write the number of layers, and the settings of single ones, into a config."""
    if plan and isinstance(getattr(config, "depths", None), (list, tuple)):
        config.depths = [len(kept) for kept in plan.values()]
    elif plan:
        for stack in stacks_of(teacher).values():
            kept = plan.get(stack.path, range(stack.count))
            part = getattr(config, stack.part) if stack.part else config
            for field in stack.fields:
                setattr(part, field, len(kept))
            for name, value in list(vars(part).items()):  # layer_types and the like
                if "layer" in name and isinstance(value, list) and len(value) == stack.count:
                    setattr(part, name, [value[index] for index in kept])


def take_layers(teacher: PreTrainedModel, config: Any, plan: DepthPlan) -> Weights:
    """The weights of the kept layers, under their new names.

    Weights that only the first layer has (T5's position biases, which all layers use) stay there.

    Raises:
        ValueError: a selection of layers that the config cannot describe.
    """
    weights, model = weights_of(teacher), init_empty(type(teacher), config)
    taken = {new: value for name, value in weights.items() if (new := _moved(name, plan))}
    moved = {new for name in teacher.state_dict() if (new := _moved(name, plan))}
    theirs, saved = weights_of(model), set(model.state_dict())
    taken |= {n: weights[n] for n in theirs if n in weights and n not in taken}
    wrong = (moved - saved) | (saved - taken.keys())
    wrong |= {n for n in saved & taken.keys() if theirs[n].shape != taken[n].shape}
    if wrong:
        raise ValueError(
            f"Expected the layers {[*plan.values()]} of {type(teacher).__name__} to make a model "
            f"that its config describes, but they differ in {sorted(wrong)}. Keep layer 0 first, "
            "or build this student from a config instead."
        )
    return taken


def _moved(name: str, plan: DepthPlan) -> str | None:
    for path, kept in plan.items():
        if name.startswith(f"{path}."):
            index, _, rest = name.removeprefix(f"{path}.").partition(".")
            place = int(index)
            return f"{path}.{kept.index(place)}.{rest}" if place in kept else None
    return name
