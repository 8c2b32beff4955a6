"""What a recipe names: a function in a Python file, a folder beside it, or something on the Hub."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from hf_distill.recipe.casting import RecipeError, cast, unknown


def is_function(source: str) -> bool:
    """Whether a source is written ``path/of/file.py:function``."""
    return ".py:" in source


def call(source: str, folder: Path, arguments: Mapping[str, Any], key: str) -> Any:
    """Call the function that a source names.

    Args:
        source: ``file.py:function``; a relative path is read from ``folder``.
        folder: Where the recipe lies.
        arguments: Keyword arguments, checked against the function's signature.
        key: The recipe's key, for messages.

    Raises:
        RecipeError: no such file, function or argument, or the function failed.
    """
    function = _function(source, folder, key)
    try:
        return function(**_checked(function, arguments, f"{key.split('.')[0]}.arguments."))
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"`{key}`: {source} failed: {error}") from error


def facts(source: str, folder: Path, key: str) -> dict[str, Any]:
    """What the file's table ``CARDS`` says about a function: licence, Hub id, description."""
    if not is_function(source):
        return {}
    function = _function(source, folder, key)
    cards = getattr(sys.modules[function.__module__], "CARDS", {})
    return dict(cards.get(function.__name__, {}))


def locate(source: str, folder: Path, key: str) -> str:
    """The folder or Hub id of a model that a recipe names.

    Raises:
        RecipeError: see :func:`call`.
    """
    if is_function(source):
        return str(call(source, folder, {}, key))
    if source.startswith("."):
        path = (folder / source).resolve()
        if not path.is_dir():
            raise RecipeError(
                f"`{key}`: there is no folder {path}. A name that begins with a dot is read from "
                "the recipe's folder."
            )
        return str(path)
    return source


def identity(model: str) -> dict[str, str]:
    """What a model is, for fingerprints: the content of a folder's files, or the Hub id."""
    folder = Path(model)
    if not folder.is_dir():
        return {"hub": model}
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return {"files": digest.hexdigest()}


def _function(source: str, folder: Path, key: str) -> Callable[..., Any]:
    file, _, name = source.rpartition(":")
    path = (folder / file).resolve()
    if not path.is_file():
        raise RecipeError(
            f"`{key}`: there is no file {path}, which {source!r} names. Expected "
            "file.py:function, with a path relative to the recipe."
        )
    module = _module(path, key)
    function = getattr(module, name, None)
    if not callable(function):
        own = [n for n, f in vars(module).items() if inspect.isfunction(f) and n[0] != "_"]
        raise RecipeError(f"`{key}`: {unknown(name, own, f'{path.name}:')}")
    return typing.cast(Callable[..., Any], function)


def _module(path: Path, key: str) -> ModuleType:
    # One name per file, so that two recipes with a file `data.py` each do not share it.
    name = f"hf_distill_recipe_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, f"{path} is no Python file"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        del sys.modules[name]
        raise RecipeError(f"`{key}`: {path} cannot be imported: {error}") from error
    return module


def _checked(
    function: Callable[..., Any], arguments: Mapping[str, Any], prefix: str
) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    hints = typing.get_type_hints(function)
    for name in arguments:
        if name not in parameters:
            raise unknown(str(name), parameters, prefix)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise RecipeError(f"`{prefix}{name}` is missing: {function.__name__} needs it.")
    return {
        name: cast(value, hints.get(name, Any), prefix + name) for name, value in arguments.items()
    }
