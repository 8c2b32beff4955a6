"""Checks for content that must not be published: files outside a folder, secrets, local paths.

One check for all that is published: see `check_files`.
"""

from .checked import Checked, check_files, copy_inside
from .contents import decoded, leaks_of_bytes, read_text
from .links import OutsideError, lies_inside
from .secrets import leaks, scrub

__all__ = [
    "Checked",
    "OutsideError",
    "check_files",
    "copy_inside",
    "decoded",
    "leaks",
    "leaks_of_bytes",
    "lies_inside",
    "read_text",
    "scrub",
]
