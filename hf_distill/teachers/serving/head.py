"""Strict parsing of an HTTP/1.1 request head: what two parsers could read as two requests is
refused (RFC 9112)."""

from __future__ import annotations

import re
from typing import Any, BinaryIO

from hf_distill.teachers.serving.limits import BadRequest

REQUEST = re.compile(rb"[A-Z]{1,20} [!-~]+ HTTP/[0-9]\.[0-9]\r?\n")
FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*\r?\n")
LONGEST = 1 << 16
"""Bytes of all header fields together."""


def read_fields(file: BinaryIO) -> bytes:
    """Read the header fields, the empty line included.

    Raises:
        Refused: a line that is not a field (a blank before the colon, a continuation line, a
            control character), or too many bytes.
        ConnectionError: the request ends early.
    """
    fields: list[bytes] = []
    left = LONGEST
    while left > 0:
        line = file.readline(left + 1)
        left -= len(line)
        if line in (b"\r\n", b"\n"):
            return b"".join([*fields, line])
        if not line.endswith(b"\n") and left >= 0:
            raise ConnectionError("the request ended early")
        if left >= 0 and not FIELD.fullmatch(line):
            raise BadRequest(400, f"Expected a header field like 'Name: value', got {line[:80]!r}.")
        fields.append(line)
    raise BadRequest(431, f"Expected at most {LONGEST} bytes of header fields.")


def body_length(headers: Any) -> int:
    """The length of the body that follows.

    Args:
        headers: The parsed fields.

    Raises:
        Refused: it is given in two ways, twice, or not as a number; or is missing.
    """
    lengths = headers.get_all("Content-Length") or []
    coded = headers.get_all("Transfer-Encoding") or []
    if len(lengths) > 1 or (lengths and coded) or len(coded) > 1:
        raise BadRequest(400, "Expected one Content-Length and no Transfer-Encoding, got several.")
    if coded:
        raise BadRequest(411, "Expected a Content-Length, got a Transfer-Encoding.")
    if not lengths:
        return 0
    digits = lengths[0].strip(" \t")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
        raise BadRequest(400, f"Expected a Content-Length in digits, got {digits[:40]!r}.")
    return int(digits)
