"""Docstrings in the HTML site: examples are code, references are paragraphs."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1\S.*|\n\1 +.*)*", re.MULTILINE)
"""Lines from a prompt to the next empty line; in Markdown they would be a quotation."""
REFERENCE = re.compile(r"^( *)References?: .*(?:\n\1 +\S.*)+", re.MULTILINE)
"""A reference whose next lines are indented; the parser would take the first line for a title."""


class Docstrings(griffe.Extension):
    """Changes docstrings before they are parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object."""
        if obj.docstring is not None:
            text = EXAMPLE.sub(r"\1```pycon\n\g<0>\n\1```", obj.docstring.value)
            obj.docstring.value = REFERENCE.sub(lambda m: re.sub(r"\n +", "\n", m[0]), text)
