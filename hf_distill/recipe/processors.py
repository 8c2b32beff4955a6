"""Tokenizers, image processors, feature extractors and processors that a recipe names."""

from __future__ import annotations

import contextlib
import inspect
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers.utils import has_file

from hf_distill.recipe import resolve
from hf_distill.recipe.errors import RecipeError, refusing, unknown
from hf_distill.recipe.schema import Recipe
from hf_distill.recipe.tasks import recipe_task

_SETTINGS = ("preprocessor_config.json", "processor_config.json")
FILES = {
    "AutoTokenizer": ("tokenizer.json", "tokenizer_config.json", "vocab.txt"),
    "AutoImageProcessor": _SETTINGS,
    "AutoFeatureExtractor": _SETTINGS,
    "AutoProcessor": _SETTINGS,
}
"""Auto class -> the files of which a model's folder holds one, if it has such a processor."""
TYPES = {
    "AutoImageProcessor": "image_processor_type",
    "AutoFeatureExtractor": "feature_extractor_type",
}
"""Auto class of a processor that settings describe -> the setting with its class."""


def load_processor(recipe: Recipe, model: str | None, commit: str | None = None) -> Any:
    """The tokenizer or image processor that the recipe names, or that of the teacher ``model``.

    Raises:
        RecipeError: there is none.
    """
    wanted, kind = recipe.data.processor, recipe_task(recipe).processor
    if wanted is None and model is None:
        raise RecipeError(
            f"`data.processor` is missing: a new teacher brings no {kind.removeprefix('Auto')}. "
            "Give a folder or Hub id that has one"
            + (", or its settings." if kind in TYPES else ".")
        )
    if wanted is not None:
        return named_processor(recipe, wanted, "data.processor")
    return _read_processor(kind, str(model), commit, "data.processor")


def named_processor(recipe: Recipe, wanted: str | dict[str, Any], key: str) -> Any:
    """The tokenizer or image processor under a key of a recipe: a folder, Hub id, or settings.

    Raises:
        RecipeError: there is none.
    """
    kind = recipe_task(recipe).processor
    if isinstance(wanted, dict):
        return _configured(wanted, kind, key)
    return _read_processor(kind, resolve.locate(wanted, recipe.file.parent, key), None, key)


def own_processor(recipe: Recipe, model: str, commit: str | None = None) -> Any:
    """The tokenizer or image processor beside a model's weights; None: there is none."""
    kind = recipe_task(recipe).processor
    with contextlib.suppress(OSError):
        if any(has_file(model, name, revision=commit or "main") for name in FILES[kind]):
            return _read_processor(kind, model, commit, "data.processor")
    return None


def _read_processor(kind: str, name: str, commit: str | None, key: str) -> Any:
    with resolve.unread_weights(f"`{key}`: {kind} cannot be loaded from {name}"):
        return getattr(transformers, kind).from_pretrained(name, revision=commit or "main")


def _configured(settings: Mapping[str, Any], kind: str, key: str) -> Any:
    """An image processor or feature extractor from settings, as in preprocessor_config.json."""
    named = TYPES.get(kind)
    if named is None or named not in settings:
        raise RecipeError(
            f"`{key}`: expected a folder or Hub id, or, for pictures and sounds, settings with "
            f"`image_processor_type` (ViTImageProcessor, say) or `feature_extractor_type` "
            f"(Wav2Vec2FeatureExtractor), got {dict(settings)}."
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "preprocessor_config.json"
        path.write_text(json.dumps(dict(settings)), encoding="utf-8")
        with refusing(f"`{key}`"):
            processor: Any = getattr(transformers, kind).from_pretrained(folder)
    kwargs = getattr(processor, "valid_kwargs", None)
    options = inspect.signature(type(processor).__init__).parameters
    known = {*(options if kwargs is None else kwargs.__annotations__), named}
    for name in settings:
        if name not in known:
            raise unknown(name, known, f"{key}.")
    return processor
