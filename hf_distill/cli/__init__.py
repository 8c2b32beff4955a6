"""The command line: ``hf-distill`` and ``python -m hf_distill``."""

from hf_distill.cli.parser import main

__all__ = ["main"]
