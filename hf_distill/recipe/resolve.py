"""Sources named in a recipe: a function in a Python file, a folder, or a Hub repository."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import pickle
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from huggingface_hub import hf_hub_download
from transformers.utils import CONFIG_NAME

from hf_distill.recipe.errors import RecipeError, check_keys, refusing, shown, told, unknown
from hf_distill.recipe.yaml_types import cast

_LOADED = (
    *(".json", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"),
    *(".gguf", ".model", ".txt", ".jinja", ".py", ".spm", ".bpe", ".codes", ".vocab", ".tokenizer"),
    *(".tiktoken", ".npz"),
)
"""Suffixes of files loaded by `from_pretrained`."""
_BESIDE = ("runs", "logs", "onnx")
_RESUMING = ("optimizer.", "scheduler.", "scaler.", "rng_state", "training_args.")


def is_function(source: str) -> bool:
    """True if a source has the form ``path/of/file.py:function``."""
    return ".py:" in source


def call(source: str, folder: Path, arguments: Mapping[str, Any], key: str) -> Any:
    """Call the function ``file.py:function`` with keyword arguments, checked against its
    signature; a relative path is read from the recipe's folder. Messages name the recipe's key.

    Raises:
        RecipeError: no such file, function or argument, or the function failed.
    """
    function = _function(source, folder, key)
    with refusing(f"`{key}`: {source} cannot be called"):
        checked = _checked(function, arguments, f"{key.split('.')[0]}.arguments.")
    with _own_code(f"`{key}`: {source} failed", _file_of(source, folder, key)):
        return function(**checked)


@contextmanager
def _own_code(what: str, file: Path) -> Iterator[None]:
    """Convert errors of a recipe's own code to `RecipeError` with the last line of that code."""
    try:
        yield
    except RecipeError:
        raise
    except (Exception, SystemExit) as error:  # an exit in there is no success of the run
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file)]
        where = f" (line {lines[-1]})" if lines else ""
        raise RecipeError(f"{what}: {told(error)}{where}") from error


def facts(source: str, folder: Path, key: str) -> dict[str, Any]:
    """Metadata of a function from the file's table ``CARDS``: licence, Hub id, description."""
    if not is_function(source):
        return {}
    function = _function(source, folder, key)
    with refusing(f"`{key}`: the table CARDS beside {source} cannot be read"):
        cards = getattr(sys.modules[function.__module__], "CARDS", {})
        return dict(cards.get(function.__name__, {}))


def locate(source: str, folder: Path, key: str) -> str:
    """The folder or Hub id of a model that a recipe names.

    Raises:
        RecipeError: see :func:`call`.
    """
    if is_function(source):
        given = call(source, folder, {}, key)
        if not isinstance(given, (str, Path)):
            raise RecipeError(
                f"`{key}`: expected {source} to give a folder or Hub id, got {shown(given)}."
            )
        return str(given)
    if source.startswith("."):
        with refusing(f"`{key}`: {shown(source)} is no path"):
            path = (folder / source).resolve()
        if not path.is_dir():
            raise RecipeError(
                f"`{key}`: there is no folder {path}. A name that begins with a dot is read from "
                "the recipe's folder."
            )
        return str(path)
    return source


def identity(model: str) -> dict[str, str]:
    """The identity of a model, for fingerprints: the content of a folder's files, or the Hub id.

    All files that `from_pretrained` of any library may load are read, also in folders below, but
    not what a training leaves there (checkpoints, optimizer, logs).
    """
    folder = Path(model)
    if not folder.is_dir():
        return {"hub": model}
    digest, found = hashlib.sha256(), dict(_loaded(folder, folder, set()))
    plain = [
        name
        for suffix in (".json", ".safetensors")  # in the order of fingerprints that there are
        for name in sorted(found)
        if len(name.parts) == 1 and name.suffix == suffix
    ]
    for name in [*plain, *sorted(found.keys() - set(plain))]:
        digest.update(name.as_posix().encode())
        with found[name].open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return {"files": digest.hexdigest()}


def commit(model: str, revision: str | None, key: str) -> str | None:
    """Commit of a model's revision on the Hub; None for a folder.

    Without network it is the one that was downloaded last.

    Raises:
        RecipeError: there is none, or the revision is of a folder.
    """
    if Path(model).is_dir():
        if revision is not None:
            raise RecipeError(
                f"`{key}.revision` is for models of the Hub, and {model} is a folder. Leave it out."
            )
        return None
    at = "" if revision is None else f" at {revision}"
    with refusing(f"`{key}.model`: {model}{at} cannot be loaded from the Hub"):
        return Path(hf_hub_download(model, CONFIG_NAME, revision=revision)).parent.name


@contextmanager
def unread_weights(what: str) -> Iterator[None]:
    """Convert errors of transformers and torch about unreadable weights, as `refusing`."""
    try:
        with refusing(what):
            yield
    except RecipeError as error:
        damaged = "PytorchStreamReader" in str(error)  # torch's word for an archive that is cut
        if damaged or isinstance(error.__cause__, pickle.UnpicklingError | EOFError):
            raise RecipeError(
                f"{what}: its weights are a pickle that is damaged or would run code. Get them as "
                "safetensors: whoever trusts the file loads it in a script and calls "
                "model.save_pretrained(folder), and the recipe names that folder."
            ) from error
        if "trust_remote_code" in str(error):
            raise RecipeError(
                f"{what}: its config names code of its own (auto_map), which a recipe does not "
                "run. Name a model of an architecture that transformers has; or load it in a "
                "script, with from_pretrained(…, trust_remote_code=True) if you trust its author, "
                "and give the model to DistillationTrainer."
            ) from error
        raise


def _loaded(folder: Path, root: Path, seen: set[Path]) -> Iterator[tuple[Path, Path]]:
    """The loaded files of a model's folder by their names; links are followed."""
    if folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    for path in folder.iterdir():
        name = path.name
        if path.is_dir():
            if not name.startswith((".", "_", "checkpoint-")) and name not in _BESIDE:
                yield from _loaded(path, root, seen)
        elif path.is_file() and path.suffix in _LOADED and not name.startswith((".", *_RESUMING)):
            yield path.relative_to(root), path


def _function(source: str, folder: Path, key: str) -> Callable[..., Any]:
    path, name = _file_of(source, folder, key), source.rpartition(":")[2]
    module = _module(path, key)
    function = getattr(module, name, None)
    if not callable(function):
        own = [n for n, f in vars(module).items() if inspect.isfunction(f) and n[0] != "_"]
        raise RecipeError(f"`{key}`: {unknown(name, own, f'{path.name}:')}")
    return typing.cast(Callable[..., Any], function)


def _file_of(source: str, folder: Path, key: str) -> Path:
    with refusing(f"`{key}`: {shown(source)} is no path"):
        path = (folder / source.rpartition(":")[0]).resolve()
        if path.is_file():
            return path
    raise RecipeError(
        f"`{key}`: there is no file {path}, which {shown(source)} names. Expected "
        "file.py:function, with a path relative to the recipe."
    )


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
        with _own_code(f"`{key}`: {path} cannot be imported", path):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _checked(
    function: Callable[..., Any], arguments: Mapping[str, Any], prefix: str
) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    hints = typing.get_type_hints(function)
    check_keys(arguments, parameters, prefix)
    for name, parameter in parameters.items():
        starred = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not starred and name not in arguments:
            raise RecipeError(f"`{prefix}{name}` is missing: {function.__name__} needs it.")
    return {n: cast(value, hints.get(n, Any), prefix + n) for n, value in arguments.items()}
