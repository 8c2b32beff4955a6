"""What must not leave this machine: tokens, passwords, local paths."""

from __future__ import annotations

import os
import re
import sys
from mmap import mmap
from pathlib import Path

_NAME = r"[^\s/\\\"'`()\[\]|,;<>]+"
# Two names after a slash that opens a word: the slashes of URLs, `and/or`, `</tag>` open none.
LOCAL_PATH = re.compile(
    rf"file://\S+"
    rf"|(?<![A-Za-z0-9])[A-Za-z]:(?:\\+|/(?!/)){_NAME}(?:[\\/]+{_NAME})*"
    rf"|(?:^|(?<=[\s\"'`(\[{{=,:;|>~_*!?+&]))(?:~/{_NAME}|/{_NAME}/{_NAME})(?:/{_NAME})*/?",
    re.MULTILINE,
)
# By the prefixes that the services give their tokens, so that no ordinary word is one.
TOKEN = re.compile(
    r"(?:hf|api_org)_[A-Za-z0-9]{20,}|(?:ghp|gho|ghs|github_pat)_[A-Za-z0-9_]{20,}"
    r"|glpat-[\w-]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}|\bsk-[\w-]{20,}|xox[abprs]-[\w-]{10,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_SECRET_NAME = r"(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIALS?)"
# NAME_TOKEN=value. In small letters only the names of arguments that hold a secret: `pad_token`
# and the like are no secrets.
_ASSIGNED = re.compile(
    rf"\b((?:[A-Z0-9]+_)*{_SECRET_NAME}(?:_[A-Z0-9]+)*|(?:hub|hf|access|auth)_token|password|api_key)"
    r"(\"?'?\s*[=:]\s*[\"']?)(?![<\[{*])([^\s\"'<>\[\]{},;|`*]{6,})"
)
_LOGIN = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/:@\"']+:[^\s/@\"']+@")
_VARIABLE = re.compile(rf"(?:^|_){_SECRET_NAME}(?:_ID)?$")
_NONE = frozenset({"null", "none", "false"})


def secret_values() -> list[str]:
    """The values of this process's environment variables that are secrets by their names."""
    return [
        value
        for name, value in os.environ.items()
        if _VARIABLE.search(name.upper()) and len(value) >= 10 and not re.search(r"[\s/]", value)
    ]


def own_folders() -> list[str]:
    """Folders that tell of this machine: the user's, the present one and Python's own."""
    folders = {str(Path.home()), os.getcwd(), sys.prefix, sys.base_prefix}
    return sorted(folder + os.sep for folder in folders if len(folder) > 1)


def scrub(text: str) -> str:
    """``text`` with every local path cut to its last name and every token and password masked."""

    def last_name(match: re.Match[str]) -> str:
        return re.split(r"[\\/]", match.group().rstrip("\\/"))[-1]

    def masked(match: re.Match[str]) -> str:
        known = match[3].lower() in _NONE
        return match[0] if known else f"{match[1]}{match[2]}***"

    text = _LOGIN.sub(r"\1***@", text)
    for value in secret_values():
        text = text.replace(value, "***")
    text = TOKEN.sub(lambda match: "hf_***" if match[0].startswith("hf_") else "***", text)
    return LOCAL_PATH.sub(last_name, _ASSIGNED.sub(masked, text))


def leaks(text: str) -> list[str]:
    """What of ``text`` must not be published, a phrase each, never with the secret itself."""
    found = [f"the local path {path}" for path in LOCAL_PATH.findall(text)]
    if TOKEN.search(text) or any(value in text for value in secret_values()):
        found.append("an access token: revoke it, and take it out")
    found += [
        f"a secret, {match[1]}: revoke it, and take it out"
        for match in _ASSIGNED.finditer(text)
        if match[3].lower() not in _NONE
    ]
    if _LOGIN.search(text):
        found.append("a URL with a password: change it, and take it out")
    return found


def leaks_of_bytes(data: bytes | mmap) -> list[str]:
    """The same for bytes that are no text, by what this machine knows literally."""
    found = [f"the local folder {name}" for name in own_folders() if data.find(name.encode()) >= 0]
    if any(data.find(value.encode()) >= 0 for value in secret_values()):
        found.append("an access token: revoke it, and take it out")
    return found
