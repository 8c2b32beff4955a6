"""Cache section of a recipe and the stage that writes the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from hf_distill.models.signals import Needs
from hf_distill.models.task_model import TaskModel
from hf_distill.objectives import HardLabels
from hf_distill.objectives.base.objective import WeightedSum
from hf_distill.recipe.errors import RecipeError, refusing
from hf_distill.recipe.sections import CacheSection, path_of
from hf_distill.recipe.stages import Stage
from hf_distill.teachers import CachedTeacher, Teacher
from hf_distill.teachers.cache import formats, write_cache
from hf_distill.teachers.cache.checked_json import MANIFEST, bindings, read_manifest
from hf_distill.teachers.cache.manifest import CARD, VOCABULARY, refuse_other_card
from hf_distill.training.config import DistillationConfig
from hf_distill.utils.folders import contents, refuse_foreign
from hf_distill.utils.processes import make_accelerator

CACHE = "cache"
STATES = "float16"
"""The type of hidden states and attention maps where the recipe names none."""


@dataclass(frozen=True)
class CacheStage(Stage):
    """The stage that writes a cache; the ``path`` of its section is not an input."""

    made: ClassVar[tuple[str, ...]] = (
        *Stage.made,
        *(MANIFEST, VOCABULARY, CARD, "views.jsonl", "data", ".*.partial"),
    )

    section: CacheSection

    @property
    def path(self) -> Path:
        """The folder of the cache."""
        own = self.section.path
        return self.folder if own is None else path_of(own)

    def check(self) -> None:
        """Raise ValueError if the folder may not be written; another path must be a cache or
        empty."""
        super().check()
        if self.section.path is None:
            return
        if not (self.path / MANIFEST).exists():
            begun = (CARD, VOCABULARY, ".*.partial")  # what is written before the manifest
            refuse_foreign(self.path, contents(self.path, begun), f"with a {MANIFEST}")
            refuse_other_card(self.path)
        elif super().results() is None:
            read_manifest(self.path)  # of a cache, and whole

    def results(self) -> dict[str, Any] | None:
        """The results, if the cache that this stage wrote is still there: in a folder that recipes
        share, another teacher's may have replaced it."""
        found = super().results()
        if found is None or found["path"] != self.section.path:
            return None
        return found if found.get("of") == _held(self.path) else None

    def teacher(self, processor: Any) -> CachedTeacher:
        """Teacher that reads the cache; a `RecipeError` if that is damaged, or of another run."""
        with refusing("`teacher.cache`", ValueError):
            return CachedTeacher(self.path, processing_class=processor)


def _held(path: Path) -> str | None:
    """The bindings of the cache in a folder; None: there is none, or its manifest is damaged."""
    try:
        return bindings(read_manifest(path))
    except (ValueError, OSError):
        return None


def write(
    stage: CacheStage,
    teacher: Teacher,
    model: nn.Module,
    data: list[Any],
    collator: Callable[[list[Any]], Mapping[str, Any]],
    processor: Any,
    args: DistillationConfig,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write the cache of a stage; gives its path, size and bindings. Every process calls this.

    ``model`` is the teacher's model, or one of them; ``args`` are the learner's, for batch size and
    device, and new ones, which reset accelerate's state.

    Raises:
        RecipeError: a cache of something else is there, or the outputs cannot be cached.
    """
    # The state that write_cache finds: what an earlier trainer left there would decide otherwise.
    make_accelerator(mixed_precision=stage.inputs["precision"], cpu=args.use_cpu)
    with refusing("`teacher.cache`", ValueError):
        write_cache(
            stage.path,
            teacher,
            data,
            collator,
            **stage.inputs["kept"],
            batch_size=args.per_device_eval_batch_size,
            task_model=TaskModel(model),
            processing_class=processor,
            say=say,
        )
    sizes = [path.stat().st_size for path in stage.path.rglob("*.arrow")]
    examples = sum(len(part) for part in data)
    own = _held(stage.path)
    return {"path": stage.section.path, "examples": examples, "bytes": sum(sizes), "of": own}


def cache_format(
    section: CacheSection, learners: Iterable[tuple[str, WeightedSum | HardLabels]]
) -> dict[str, Any]:
    """Format of a cache, for the trainings that read it and their objectives: ``format``,
    ``hidden_states``, ``attentions``, ``dtype`` (of the states).

    Raises:
        RecipeError: settings of another format, or an objective that needs more than is kept.
    """
    goals = [(key, goal) for key, goal in learners if isinstance(goal, WeightedSum)]
    for key in ("hidden_states", "attentions"):
        if getattr(section, key) is None:
            change: dict[str, Any] = {key: any(getattr(goal.needs, key) for _, goal in goals)}
            section = replace(section, **change)
    states = section.hidden_states or section.attentions
    for key, kind in (("k", "top_k"), ("draws", "sampled")):
        if getattr(section, key) is not None and section.format != kind:
            raise RecipeError(
                f"`teacher.cache.{key}` is a setting of `format: {kind}`, got `format: "
                f"{section.format}`."
            )
    if section.format == "sampled" and section.dtype is not None and not states:
        raise RecipeError(
            "`teacher.cache.dtype`: draws are counts and have none; it is the type of logits, of "
            "the log-probabilities of `top_k`, and of hidden states and attentions."
        )
    for learner, objective in goals:
        _check_kept(section, learner, objective)
    settings: dict[str, Any] = {"kind": section.format}
    if section.format == "sampled":
        settings["draws"] = 12 if section.draws is None else section.draws
    elif section.dtype is not None:
        settings["dtype"] = section.dtype
    if section.format == "top_k":
        settings["k"] = 32 if section.k is None else section.k
    if section.format != "full":
        settings["temperature"] = _temperature(section.format, goals)
    with refusing("`teacher.cache`", ValueError, TypeError):
        settings = formats.to_json(formats.from_json(settings))
    return {
        "format": settings,
        "hidden_states": section.hidden_states,
        "attentions": section.attentions,
        "dtype": section.dtype or STATES,
    }


def check_given(stage: CacheStage, provides: Needs) -> None:
    """Raise RecipeError if the teacher does not provide the cached outputs."""
    kept = stage.inputs["kept"]
    wanted = Needs(hidden_states=bool(kept["hidden_states"]), attentions=kept["attentions"])
    if missing := wanted.missing_from(provides):
        raise RecipeError(
            f"`teacher.cache`: expected a teacher that gives {missing}, and this one does not "
            "(several teachers, `teacher.seeds`, have only their mean of the logits)."
        )


def _check_kept(section: CacheSection, learner: str, objective: WeightedSum) -> None:
    kept = Needs(
        logits=True,
        unsampled=section.format != "sampled",
        full_vocabulary=section.format == "full",
        hidden_states=bool(section.hidden_states),
        attentions=bool(section.attentions),
    )
    for name, _, part in objective.named():
        missing = part.needs.missing_from(kept)
        if not missing:
            continue
        switch = next((key for key in ("hidden_states", "attentions") if key in missing), None)
        if switch is not None:
            remedy = f"Set `teacher.cache.{switch}: true`"
        elif (part.needs & Needs(unsampled=True, full_vocabulary=True)).missing_from(kept):
            remedy = "Set `teacher.cache.format: full`"
        else:
            remedy = "Take this objective away"
        raise RecipeError(
            f"`teacher.cache` (format {section.format}) does not keep {missing}, which {name} of "
            f"{learner} needs. {remedy}, or train with the live teacher (`teacher.cache: null`)."
        )


def _temperature(kind: str, learners: Iterable[tuple[str, WeightedSum]]) -> float:
    """The one temperature at which all learners compare probabilities with the teacher's."""
    found: dict[str, Any] = {}
    for learner, objective in learners:
        for name, _, part in objective.named():
            if part.needs.logits and hasattr(part, "temperature"):
                found[f"{name} of {learner}"] = part.temperature
    values = list(found.values())
    if all(isinstance(value, (int, float)) and value == values[0] for value in values):
        return float(values[0]) if values else 1.0
    told = ", ".join(f"{value} ({name})" for name, value in found.items())
    raise RecipeError(
        f"`teacher.cache.format: {kind}` keeps probabilities at one temperature, and those of some "
        f"classes alone cannot be softened later. Expected one number for all, got {told}. Give "
        "all the same temperature, or set `teacher.cache.format: full`."
    )
