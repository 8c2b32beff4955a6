"""Leaks in the content of a file: values of JSON, metadata of weights and images, readable text in
binary files."""

import gzip
import html
import io
import json
import re
import shlex
import struct
import zlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, BinaryIO
from urllib.parse import unquote

import numpy as np

from .secrets import leaks, leaks_of_settings, leaks_of_vocabulary

VOCABULARIES = (
    *("tokenizer.json", "added_tokens.json", "special_tokens_map.json", "*vocab.json"),
    *("vocab-*.json", "vocab*.txt", "merges.txt", "bpe.codes", "dict.txt", "byte_maps.json"),
    *("emoji.json", "word_*.json", "normalizer.json", "*.tokenizer", "vocabulary.json.gz"),
)
"""Vocabulary files: only users' folders are reported among their pieces of words."""
PROSE = ("*.md", "*.jinja", "LICENSE*", "NOTICE*", "recipe.yaml")
"""Written by a person, for persons: an address is meant."""
TEXTS = (*PROSE, "*.json", "*.jsonl", "*.yaml", "*.txt", "*.csv", "*.py", "bpe.codes")
"""Files that must be UTF-8; of others only readable text is searched."""
_LARGEST = 2**28  # limit of decompressed bytes
_BLOCK, _OVERLAP, _SHORTEST = 2**24, 2**12, 7
_LISTED = 1000  # a list of more texts is of pieces of words, each without its key
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|U000([0-9a-fA-F]{5}))")
_PNG = b"\x89PNG\r\n\x1a\n"
_PIXELS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"fdAT", b"fcTL", b"acTL"})


def file_leaks(name: str, data: bytes | memoryview) -> list[str]:
    """Reasons against publishing a file, one phrase each that follows its name.

    ``name`` is the relative path with slashes, which determines the kind of file; of weights and
    shards the first bytes of ``data`` are enough (see `head`).
    """
    base = name.rpartition("/")[2]
    if not data:
        return ["is empty: write it again, or remove it"]
    if base.endswith(".safetensors"):
        return [f"holds in its metadata {leak}" for leak in leaks_of_settings(_header(data))]
    if base.endswith(".arrow"):
        return [f"holds {leak}" for leak in leaks_of_bytes(data[:_BLOCK])]
    if bytes(data[:8]) == _PNG:
        found = leaks_of_settings("\n".join(_png_texts(bytes(data)))) + leaks_of_bytes(data)
        return [f"holds {leak}" for leak in dict.fromkeys(found)]
    if base.endswith(".gz"):
        return _unpacked_leaks(base, bytes(data))
    if _is(base, TEXTS):
        return _text_leaks(base, bytes(data))
    return [f"holds {leak}" for leak in leaks_of_bytes(data)]


def head(name: str, file: BinaryIO) -> bytes:
    """Part of weights or of a shard that `file_leaks` reads."""
    if name.endswith(".safetensors"):
        start = file.read(8)
        return start + file.read(min(struct.unpack("<Q", start)[0], _LARGEST)) if start else b""
    return file.read(_BLOCK)


def read_text(name: str, data: bytes) -> str:
    """The text of a file; ValueError if it is not UTF-8, with the encoding and the remedy."""
    encoding = _encoding(data)
    try:
        if encoding is None:
            return data.decode("utf-8")
        what = f"in {encoding}"
    except UnicodeDecodeError as error:
        what = f"not in UTF-8 (byte {data[error.start]:#04x} at {error.start}), perhaps in Latin-1"
        encoding = "ISO-8859-1"
    old, new = shlex.quote(name), shlex.quote(f"{name}.utf8")
    raise ValueError(
        f"{name} is text {what}, and what is published is read as UTF-8. Convert it: iconv -f "
        f"{encoding} -t UTF-8 {old} > {new} && mv {new} {old}"
    )


def leaks_of_bytes(data: bytes | memoryview) -> list[str]:
    """Leaks in the readable text of binary data."""
    found = [leak for text in _legible(data) for leak in leaks_of_vocabulary(text)]
    if len(data) < _BLOCK and (wide := bytes(data).replace(b"\0", b"")) != data:  # UTF-16
        found += [leak for text in _legible(wide) for leak in leaks_of_vocabulary(text)]
    return list(dict.fromkeys(found))


def decoded(text: str) -> str:
    """The lines of a text that hold escapes of JSON, YAML, Markdown, HTML or URLs, without them."""
    lines = [line for line in text.split("\n") if "\\" in line or "&" in line or "%" in line]
    if not lines:
        return ""
    found = _ESCAPE.sub(
        lambda match: chr(int(match[1] or match[2] or match[3], 16)), "\n".join(lines)
    )
    return unquote(html.unescape(re.sub(r"\\(?=[_.:=@-])", "", found)))


def _is(base: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(base, pattern) for pattern in patterns)


def _encoding(data: bytes) -> str | None:
    for mark, name in ((b"\xff\xfe\0\0", "UTF-32"), (b"\0\0\xfe\xff", "UTF-32")):
        if data.startswith(mark):
            return name
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    if data.count(0) * 4 > len(data):  # ASCII in two bytes each
        return "UTF-16LE" if data[1:2] == b"\0" else "UTF-16BE"
    return None


def _text_leaks(base: str, data: bytes) -> list[str]:
    try:
        text = read_text(base, data)
    except ValueError as error:
        return [str(error).removeprefix(f"{base} ")]
    search = leaks_of_settings
    if _is(base, VOCABULARIES):
        search = leaks_of_vocabulary
    elif _is(base, PROSE):
        search = leaks
    if base.endswith(".json"):
        try:
            value = json.loads(text, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            return [f"is no JSON ({error}): save it again"]
        if base in ("config.json", "adapter_config.json") and not (
            isinstance(value, _Pairs) and value
        ):
            return ["is empty: expected the model's configuration (save_pretrained writes it)"]
        text = "\n".join(_strings(value))
    found = search(text) + search(decoded(text))
    return [f"holds {leak}" for leak in dict.fromkeys(found)]


class _Pairs(list[tuple[str, Any]]):
    """JSON object with all its entries, duplicate keys included."""


def _strings(value: Any, key: str = "") -> list[str]:
    """The texts of a value of JSON that are long enough to matter, each after its key: ``a: b``."""
    found = []
    if isinstance(value, _Pairs):
        found += [n for n, item in value if len(n) >= _SHORTEST and not isinstance(item, str)]
        for name, item in value:
            if isinstance(item, str | list):
                found += _strings(item, name)
    elif isinstance(value, list):
        key = key if len(value) <= _LISTED else ""
        if not key:
            found += [item for item in value if isinstance(item, str) and len(item) >= _SHORTEST]
        for item in value:
            if isinstance(item, list) or key:
                found += _strings(item, key)
    elif isinstance(value, str) and len(key) + len(value) >= _SHORTEST:
        found.append(f"{key}: {value}" if key else value)
    return found


def _header(data: bytes | memoryview) -> str:
    """The words in the header of a safetensors file; its form is safetensors' to check."""
    length = struct.unpack("<Q", bytes(data[:8]))[0] if len(data) >= 8 else 0
    try:
        value = json.loads(bytes(data[8 : 8 + length]), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return ""
    return "\n".join(_strings(value))


def _png_texts(data: bytes) -> Iterator[str]:
    """Text chunks of a PNG as ``keyword: text``, decompressed."""
    place = len(_PNG)
    while place + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        chunk = data[place + 8 : place + 8 + length]
        place += 12 + length
        if kind in _PIXELS:
            continue
        keyword, _, rest = chunk.partition(b"\0")
        packed = re.search(rb"\x78[\x01\x5e\x9c\xda]", rest) if kind != b"tEXt" else None
        if packed:
            try:
                rest = zlib.decompressobj().decompress(rest[packed.start() :], _LARGEST)
            except zlib.error:
                continue
        text = rest.replace(b"\0", b" ").decode("utf-8", "replace")
        yield f"{keyword.decode('latin-1')}: {text}"


def _unpacked_leaks(base: str, data: bytes) -> list[str]:
    try:
        with gzip.open(io.BytesIO(data)) as file:
            content = file.read(_LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        return [f"cannot be unpacked ({error}): write it again"]
    if len(content) > _LARGEST:
        return [f"unpacks to more than {_LARGEST:,} bytes, which cannot be searched"]
    outside = leaks_of_bytes(data[:1024])  # the name and comment in its header
    return [f"holds {leak}" for leak in outside] + _text_leaks(base.removesuffix(".gz"), content)


def _legible(data: bytes | memoryview) -> Iterator[str]:
    """Runs of eight or more letters of ASCII in a binary file, a line each, block after block."""
    for start in range(0, len(data), _BLOCK):
        block = data[start : start + _BLOCK + _OVERLAP]
        ok = (np.frombuffer(block, np.uint8) - np.uint8(0x20)) < 0x5F
        for step in (1, 2, 4):  # afterwards: where eight in a row begin
            ok = ok[:-step] & ok[step:]
        edges = np.flatnonzero(np.diff(ok, prepend=False, append=False)).reshape(-1, 2)
        yield "\n".join(str(block[a : b + 7], "ascii") for a, b in edges.tolist())
