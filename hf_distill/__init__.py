"""Knowledge distillation as a Hugging Face Trainer.

The names are those of `hf_distill.api`, which is imported when the first of them is asked for: so
``hf-distill --help``, or one module of the package, does not wait for all of it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what editors and type checkers see
    from hf_distill.api import *  # noqa: F403 (every name)
    from hf_distill.api import __all__ as __all__
    from hf_distill.objectives import *  # noqa: F403 (every objective)
else:
    import importlib
    import importlib.util

    def __getattr__(name: str) -> object:
        """A module of the package, or a name that `hf_distill.api` exports."""
        if name == "__all__":
            return importlib.import_module("hf_distill.api").__all__
        if not name.startswith("_"):
            if importlib.util.find_spec(f"hf_distill.{name}") is not None:
                return importlib.import_module(f"hf_distill.{name}")
            api = importlib.import_module("hf_distill.api")
            if name in api.__all__:
                return getattr(api, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})


__version__ = "0.1.0"
