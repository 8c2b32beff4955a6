"""Layer maps: pairs of aligned layers of student and teacher."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

Place = int | float | str
"""A layer: its index, its depth as a fraction between 0.0 and 1.0, or the path of a module."""
LayerSpec = str | tuple[tuple[Place, Place], ...]
Pairs = tuple[tuple[int, int], ...]
LAYER_MAPS = ("uniform", "skip", "last", "emd")


def parse_layers(spec: str | Sequence[Sequence[Place]]) -> str | tuple[tuple[Place, Place], ...]:
    """Read a layer map: one of `LAYER_MAPS`, or pairs (student, teacher).

    In a string a pair is ``teacher:student`` (the notation of syntaxdot and of TextBrewer's
    ``layer_T``, ``layer_S``); in a list it is (student, teacher). A layer without a colon is the
    same layer in both models.

    Raises:
        ValueError: neither a name nor a list of pairs; a fraction outside [0, 1]; module paths
            mixed with indices within a pair.

    >>> parse_layers("0:0, 4:2, 8:4, 12:6")
    ((0, 0), (2, 4), (4, 8), (6, 12))
    >>> parse_layers("0.5:0.5, encoder.layer.3:encoder.layer.1")
    ((0.5, 0.5), ('encoder.layer.1', 'encoder.layer.3'))
    >>> parse_layers([(1, 2)])
    ((1, 2),)
    """
    if isinstance(spec, str):
        if spec in LAYER_MAPS:
            return spec
        entries = [entry.strip() for entry in spec.split(",")]
        if not all(entries) or (entries[0].isidentifier() and len(entries) == 1):
            raise ValueError(_unknown(spec))
        halves = [entry.partition(":") for entry in entries]
        pairs = tuple((_place(s or t), _place(t)) for t, _, s in halves)
    else:
        pairs = tuple((_checked(s), _checked(t)) for s, t in _twos(spec))
    for pair in pairs:
        if isinstance(pair[0], str) != isinstance(pair[1], str):
            raise ValueError(
                f"Expected a pair of layers or a pair of modules, got {pair} (student, teacher). "
                "Name both by index, both by fraction, or both by module path."
            )
    return pairs


def read_layers(objective: Any) -> None:
    """Read the layer map ``layers`` of an objective, and which stacks it compares, ``groups``.

    Raises:
        ValueError: see `parse_layers`; no group at all, or a text in place of a list.
    """
    parse_layers(objective.layers)
    if not isinstance(objective.layers, str):
        object.__setattr__(objective, "layers", tuple(tuple(pair) for pair in objective.layers))
    if objective.groups is not None:
        if isinstance(objective.groups, str) or not objective.groups:
            raise ValueError(
                "Expected names of stacks (['encoder']), or None for all, got "
                f"groups={objective.groups!r}."
            )
        object.__setattr__(objective, "groups", tuple(objective.groups))


def check_group(kind: str, group: str, student: Collection[str], teacher: Collection[str]) -> None:
    """Refuse a group of layers that one of the models does not have."""
    if group not in student or group not in teacher:
        raise ValueError(
            f"Expected {kind} groups of {sorted(student)} (student) and {sorted(teacher)} "
            f"(teacher), got {group!r}."
        )


def _unknown(spec: object) -> str:
    return (
        f"Expected a layer map of {list(LAYER_MAPS)}, a string 'teacher:student, …' or pairs "
        f"(student, teacher), got {spec!r}. Places are indices from 0 (embeddings), fractions of "
        "the depth (0.5) or module paths (encoder.layer.3)."
    )


def _twos(spec: Sequence[Sequence[Place]]) -> list[tuple[Place, Place]]:
    pairs = [(pair,) * 2 if isinstance(pair, (str, int, float)) else tuple(pair) for pair in spec]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError(_unknown(spec))
    return pairs  # type: ignore[return-value]


def _place(text: str) -> Place:
    text = text.strip()
    for kind in (int, float):
        try:
            return _checked(kind(text))
        except ValueError:
            if kind is float and text.replace(".", "", 1).lstrip("-").isdigit():
                raise
    return text


def _checked(place: Place) -> Place:
    if isinstance(place, float) and not 0 <= place <= 1:
        raise ValueError(
            f"Expected a depth between 0.0 (embeddings) and 1.0 (last layer), got {place}. Write "
            "the index of a layer without a decimal point."
        )
    return place


def module_pairs(spec: str | Sequence[Sequence[Place]]) -> tuple[tuple[str, str], ...]:
    """The pairs of a layer map that are module paths, (student, teacher)."""
    pairs = parse_layers(spec)
    if isinstance(pairs, str):
        return ()
    return tuple((s, t) for s, t in pairs if isinstance(s, str) and isinstance(t, str))


def layer_map(spec: str | Sequence[Sequence[Place]], student: int, teacher: int) -> Pairs:
    """Pair the layers of a student with layers of a teacher.

    Index 0 is the output of the embeddings, index n that of layer n, as in `transformers`'
    ``hidden_states``. (There, a decoder's last entry is after its final norm, a ViT's before.)

    - ``uniform``: every student layer, evenly spaced, the last with the last (TinyBERT's
      g(m) = m * N / M, arXiv 1909.10351).
    - ``skip``: the same without the last layer, which the logits already teach (PKD-skip,
      arXiv 1908.09355).
    - ``last``: every student layer with the teacher's topmost ones (PKD-last).
    - ``emd``: every layer with every layer; how much each pair counts is learned (see
      `hf_distill.objectives.base.alignment`).
    - pairs, as `parse_layers` reads them: by index (negative ones count from the end) or by
      fraction of the depth (rounded to the nearest layer). Module paths are left out here.

    ``student`` and ``teacher`` are the numbers of layers, without the embeddings.

    Raises:
        ValueError: an unknown name, a pair out of range, or a map that pairs nothing.

    >>> layer_map("uniform", 2, 6)
    ((1, 3), (2, 6))
    >>> layer_map("last", 2, 6)
    ((1, 5), (2, 6))
    >>> layer_map([(0, 0), (-1, -1)], 2, 6)
    ((0, 0), (2, 6))
    >>> layer_map("3:1, 1.0:1.0", 2, 6)
    ((1, 3), (2, 6))
    """
    name = parse_layers(spec)
    if not isinstance(name, str):
        numbers = [pair for pair in name if not isinstance(pair[0], str)]
        if student == 0 and teacher == 0 and numbers:  # a pooled embedding: nothing to choose
            return ((0, 0),)
        return tuple(_pair(pair, student, teacher) for pair in numbers)  # type: ignore[arg-type]
    if student == 0 and teacher == 0:
        return ((0, 0),)
    uniform = tuple((i, max(1, round(i * teacher / student))) for i in range(1, student + 1))
    if name == "uniform":
        return uniform
    if name == "emd":
        return tuple((s, t) for s in range(1, student + 1) for t in range(1, teacher + 1))
    if name == "skip":
        if student < 2:
            raise ValueError(
                f"Layer map 'skip' leaves out the last layer, so a student with {student} layer(s) "
                "has none to pair. Use 'uniform' or explicit pairs."
            )
        return uniform[:-1]
    if student > teacher:
        raise ValueError(
            f"Layer map 'last' needs a teacher with at least as many layers as the student, "
            f"got {teacher} and {student}. Use 'uniform' or explicit pairs."
        )
    return tuple((i, teacher - student + i) for i in range(1, student + 1))


def _pair(pair: Sequence[int | float], student: int, teacher: int) -> tuple[int, int]:
    indices = []
    for index, count, who in zip(pair, (student, teacher), ("student", "teacher"), strict=True):
        place = round(index * count) if isinstance(index, float) else index
        if not -count - 1 <= place <= count:
            raise ValueError(
                f"Layer map pair {tuple(pair)}: the {who} has layers 0 (embeddings) to {count}, "
                f"got {index}. Pairs are written (student layer, teacher layer) in a list, "
                "'teacher:student' in a string."
            )
        indices.append(place % (count + 1))
    return indices[0], indices[1]
