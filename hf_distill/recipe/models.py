"""The models of a recipe: the teacher before and after its fine-tuning, and the student."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, PreTrainedModel, set_seed
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)
from transformers.utils import logging as transformers_logging

from hf_distill.models.batches import Batch
from hf_distill.models.embedding import BiEncoder
from hf_distill.models.initialise import (
    Importance,
    importance,
    static_from_teacher,
    student_from_teacher,
    with_dropout,
)
from hf_distill.models.sharding import loaded_unsharded
from hf_distill.models.task_model import describe_model
from hf_distill.recipe import resolve
from hf_distill.recipe.columns_section import FORMS
from hf_distill.recipe.errors import RecipeError, refusing, unknown
from hf_distill.recipe.labels import Labels
from hf_distill.recipe.schedule import AVERAGE
from hf_distill.recipe.schema import Recipe, key_of
from hf_distill.recipe.tasks import recipe_task
from hf_distill.teachers import Ensemble, ModelTeacher, Teacher
from hf_distill.utils.processes import process_state

MOST_LAYERS = 10_000
"""The most layers of a new model."""


class Models:
    """The models of a recipe, the same ones for the same seed, with these classes; a `RecipeError`
    if one is not there."""

    light = False
    """Initialise weights that would have to be downloaded randomly, for a dry run."""
    processor: Any = None
    """The processor of the data."""
    batches: Callable[[int], Iterable[Batch]]
    """Collated batches of this number of training examples."""

    def __init__(self, recipe: Recipe, labels: Labels):
        self.recipe = recipe
        self._auto: Any = recipe_task(recipe).loads
        self._head_settings = labels.head
        self.paths: dict[str, str] = {}
        self.commits: dict[str, str] = {}
        for role in ("teacher", *recipe.assistant_roles, "student"):
            section, key = recipe.section(role), key_of(role)
            if section.model is not None:
                path = resolve.locate(section.model, recipe.file.parent, f"{key}.model")
                self.paths[role] = path
                if commit := resolve.commit(path, section.revision, key):
                    self.commits[role] = commit

    def teacher(self, seed: int) -> PreTrainedModel:
        """Teacher before fine-tuning, with a new head."""
        return self._configured(self._new("teacher", seed))

    def _configured(self, model: PreTrainedModel) -> PreTrainedModel:
        """A model with the settings of the task that are saved with it."""
        if (configure := recipe_task(self.recipe).configure) is not None:
            configure(model, self.recipe.data, self.processor)
        return model

    def learner(self, role: str, seed: int) -> PreTrainedModel:
        """The model of a role before training: teacher, student or an assistant."""
        if role == "teacher":
            return self.teacher(seed)
        section, key = self.recipe.section(role), key_of(role)
        if section.static is not None:
            with refusing(f"`{key}.static`"):
                teacher: Any = self.teacher(seed)
                table = static_from_teacher(
                    teacher.embedder, self.processor, hidden_size=section.static
                )
                model: Any = BiEncoder(table)
        elif section.from_teacher_layers is None:
            model = self._new(role, seed)
            if section.layers is not None:
                with refusing(f"`{key}.layers`"):
                    model = student_from_teacher(model, _by_stack(model, section.layers))
        else:
            layers, width = section.from_teacher_layers, section.hidden_size
            teacher = self.teacher(seed)
            layers = _by_stack(teacher, layers)
            with refusing(f"`{key}.from_teacher_layers`"):
                measured = self._importance(teacher, section.importance)
                model = student_from_teacher(
                    teacher, layers, hidden_size=width, importance=measured
                )
        model = model.to(getattr(torch, section.dtype))
        with refusing(f"`{key}.dropout`"):
            model = model if section.dropout is None else with_dropout(model, section.dropout)
        return self._configured(model)

    def _importance(self, teacher: Any, count: int | None) -> Importance | None:
        """Importance of the teacher's parts on training examples."""
        if count is None or self.light:  # of weights that are drawn nothing can be said
            return None
        teacher.to(process_state().device)
        measured = importance(teacher, self.batches(count))
        teacher.to("cpu")
        return measured

    def trained(self, folder: str) -> PreTrainedModel:
        """A trained model: a finished stage's, or the teacher that the recipe names."""
        given = folder == self.paths.get("teacher")
        dtype = self.recipe.teacher.dtype if given else None
        with _quietly(), resolve.unread_weights(f"the model {folder} cannot be loaded"):
            return self._load(folder, self.commits.get("teacher") if given else None, dtype)

    def _load(
        self, path: str, commit: str | None, dtype: str | None = None, **head: Any
    ) -> PreTrainedModel:
        if self.light and not on_this_machine(path, commit):
            config = AutoConfig.from_pretrained(path, revision=commit or "main", **head)
            return self._drawn(config)
        kind = {} if dtype is None else {"dtype": getattr(torch, dtype)}
        options = {"revision": commit or "main", "ignore_mismatched_sizes": bool(head)}
        with loaded_unsharded():
            return self._auto.from_pretrained(path, **options, **kind, **head)

    def _drawn(self, config: Any) -> PreTrainedModel:
        """A model with random weights."""
        with loaded_unsharded():
            return self._auto.from_config(config)

    def identities(self) -> dict[str, Any]:
        """Sources of the models by role, for fingerprints."""
        teacher = {**self._identity("teacher"), **_given(self.recipe.teacher, "dtype", "prompt")}
        if self.recipe.teacher.api is not None:
            teacher = {"api": self.recipe.teacher.api.identity()}
        if self.recipe.teacher.columns is not None:
            teacher = {"columns": _given(self.recipe.teacher.columns, *FORMS)}
        found = {"teacher": teacher}
        for role in (*self.recipe.assistant_roles, "student"):
            section, own = self.recipe.section(role), self._identity(role)
            if section.from_teacher_layers is not None:
                own = {"layers": section.from_teacher_layers, "of": teacher}
                own |= _given(section, "hidden_size", "importance")
            own |= _given(section, "dropout", "layers", "static")
            if section.static is not None:
                own["of"] = teacher
            if section.dtype != "float32":
                own["dtype"] = section.dtype
            if section.lora is not None:
                own["lora"] = vars(section.lora)
            found[role] = own
        return found

    def _identity(self, role: str) -> dict[str, Any]:
        return {
            "config": self.recipe.section(role).config,
            **(resolve.identity(self.paths[role]) if role in self.paths else {}),
            **({"commit": self.commits[role]} if role in self.commits else {}),
        }

    def _new(self, role: str, seed: int) -> PreTrainedModel:
        set_seed(seed)  # the weights of the head, and of a new model
        config = self.recipe.section(role).config
        if config is not None:
            with refusing(f"`{key_of(role)}.config` makes no model"):
                return self._drawn(self._config(role, config))
        dtype, path = self.recipe.teacher.dtype if role == "teacher" else None, self.paths[role]
        what = f"`{key_of(role)}.model`: {path} cannot be loaded with {self._auto.__name__}"
        with _quietly(), resolve.unread_weights(what):
            return self._load(path, self.commits.get(role), dtype, **self._head_settings)

    def _config(self, role: str, settings: Mapping[str, Any]) -> Any:
        options, role = dict(settings), key_of(role)
        kind = options.pop("model_type", None)
        if kind is None:
            raise RecipeError(f"`{role}.config.model_type` is missing: bert, resnet, ….")
        known = transformers.CONFIG_MAPPING.keys()
        if not isinstance(kind, str) or kind not in known:
            raise RecipeError(f"`{role}.config.model_type`: {unknown(kind, known)}")
        plain = AutoConfig.for_model(kind)
        for key in options:
            if not isinstance(key, str) or not hasattr(plain, key):  # it would be kept and ignored
                raise unknown(key, plain.to_dict(), f"{role}.config.")
        with refusing(f"`{role}.config`"):
            config = AutoConfig.for_model(kind, **options, **self._head_settings)
        layers = getattr(config, "num_hidden_layers", 0)
        if isinstance(layers, int) and layers > MOST_LAYERS:
            raise RecipeError(
                f"`{role}.config`: expected at most {MOST_LAYERS:,} layers, got {layers:,}."
            )
        return config


def _by_stack(model: PreTrainedModel, layers: Any) -> Any:
    """Layers of an encoder-decoder without a stack's name are those of its decoder."""
    given = isinstance(layers, dict) or not getattr(model.config, "is_encoder_decoder", False)
    return layers if given else {"decoder": layers}


def teacher_of(models: Mapping[str, ModelTeacher]) -> Teacher:
    """A single teacher unchanged, several as the mean of their probabilities."""
    if len(models) == 1:
        return next(iter(models.values()))
    named = {key.split("/")[-1]: model for key, model in models.items()}
    ensemble: Any = Ensemble(named, average=AVERAGE)
    return ensemble


def describe_ensemble(models: Mapping[str, PreTrainedModel]) -> dict[str, Any]:
    """`describe_model` of several models used as an ensemble: their parameters add up."""
    facts = [describe_model(model) for model in models.values()]
    total = sum(fact["parameters"] for fact in facts)
    return {**facts[0], "parameters": total, "members": len(facts)}


def _given(section: Any, *keys: str) -> dict[str, Any]:
    """The values of these keys that are not None."""
    return {key: value for key in keys if (value := getattr(section, key)) is not None}


def on_this_machine(path: str, commit: str | None = None) -> bool:
    """True if a model's weights are on this machine: a folder, or in the Hub's cache."""
    files = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
    return Path(path).is_dir() or any(
        isinstance(try_to_load_from_cache(path, file, revision=commit), str) for file in files
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress the warning about a newly initialised head."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
