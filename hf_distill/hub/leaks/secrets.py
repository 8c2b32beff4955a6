"""Secrets and private places in text: tokens, keys, passwords, local paths, addresses."""

import base64
import binascii
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_NAME = r"[^\s/\\\"'`()\[\]|,;<>]+"
# Two names after a slash that opens a word: the slashes of URLs, `and/or`, `</tag>` open none.
LOCAL_PATH = re.compile(
    rf"file://\S+"
    rf"|(?<![A-Za-z0-9])[A-Za-z]:(?:\\+|/(?!/)){_NAME}(?:[\\/]+{_NAME})*"
    rf"|(?:^|(?<=[\s\"'`(\[{{=,:;|>~_*!?+&]))(?:~/{_NAME}|/{_NAME}/{_NAME})(?:/{_NAME})*/?"
    rf"|(?<![\w.\\/-])/(?:home|Users)/{_NAME}(?:/{_NAME})*/?",  # whatever it stands behind
    re.MULTILINE,
)
HOME = re.compile(
    r"(?:/home|/Users|/var/folders|/root)/[A-Za-z][\w.-]+|[A-Za-z]:\\{1,2}Users\\{1,2}[A-Za-z][\w.-]+"
)
"""A user's folder, so certain that even a vocabulary is searched for it."""
_HOMES = ("/home/", "/Users/", "/var/folders/", "/root/", ":\\")
_SHORTEST = 10  # letters of the shortest secret with its name; most pieces of words are shorter

# Forms of the tokens of services -> their openings. The opening is searched first: regular
# expressions alone take seconds for a large tokenizer.json.
_FORMS = {
    r"[A-Za-z0-9]{20,}": "hf_ api_org_ npm_",
    r"[A-Za-z0-9_]{20,}": "ghp_ gho_ ghs_ ghu_ ghr_ github_pat_",
    r"[\w-]{10,}": "xoxa- xoxb- xoxe- xoxp- xoxr- xoxs- xapp-",
    r"[\w-]{20,}": "glpat- gldt- glrt- gloas- glsa_ GOCSPX- ya29. sk- dckr_pat_ hvs. nvapi-",
    r"[\w-]{30,}": "AIza gsk_ r8_ tgp_v1_ pcsk_",
    r"[\w/-]{20,}": "hooks.slack.com/services/ discord.com/api/webhooks/",
    r"\w{20,}": "wandb_v1_ lsv2_pt_ lsv2_sk_",
    r"[A-Za-z0-9]{16,}": "sk_live_ rk_live_ sk_test_ whsec_",
    r"[A-Z0-9]{16}": "AKIA ASIA",
    r"[A-Z0-9]{20,}": "AGE-SECRET-KEY-1",
    r"[0-9a-f]{32}": "dapi shpat_",
    r"[0-9a-f]{40,}": "dop_v1_",
    r"(?![a-z]+(?:-[a-z]+){2})[\w-]{30,}": "pypi-",
    r"[\w-]{16,}\.[\w-]{16,}": "SG.",
    r"[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}": "eyJ",  # a JSON Web Token
    r"\d": "PuTTY-User-Key-File-",
}
_TOKENS = {opening: rest for rest, openings in _FORMS.items() for opening in openings.split()}
_TOKENS["-----BEGIN "] = r"[A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
_ENDS_WORDS = frozenset({"dapi", "SG.", "r8_", "sk-"})  # as in task-
_BY_OPENING = {
    opening: re.compile((r"(?<!\w)" if opening in _ENDS_WORDS else "") + re.escape(opening) + rest)
    for opening, rest in _TOKENS.items()
}
TOKEN = re.compile("|".join(form.pattern for form in _BY_OPENING.values()))
"""Tokens by the prefixes of their services, so that ordinary words do not match."""
_AZURE = re.compile(r"(?<![A-Za-z0-9+/=])[A-Za-z0-9+/]{86}==(?![A-Za-z0-9+/=])")
_SECRET_NAME = r"(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIALS?)"
# NAME_TOKEN=value. In small letters only the names of arguments that hold a secret: `pad_token`
# and the like are no secrets.
_ASSIGNED = re.compile(
    rf"\b((?:[A-Z0-9]+_)*{_SECRET_NAME}(?:_[A-Z0-9]+)*|AccountKey|SharedAccessKey|AuthToken"
    r"|(?:[a-z0-9]+_)*(?:(?:hub|hf|access|auth|api|bearer|refresh)_token|password|passwd|api_?key"
    r"|(?:secret|access|private|account)_key|client_secret))"
    r"(\"?'?[^\S\n]*[=:][^\S\n]*[\"']?)(?![<\[{*])([^\s\"'<>\[\]{},;|`*]{6,})"
)
_QUERY = re.compile(
    r"([?&](?:[\w-]*(?:token|secret|passw(?:or)?d|signature|api_?key|credential)|sig|auth)=)"
    r"(?![<\[{*])([^\s&#\"'`<>|)*]{6,})",
    re.IGNORECASE,
)
_BEARER = re.compile(
    r"(\bBearer |\bAuthorization[\"']?: ?[\"']?(?:Basic|Token) )(?=\S*\d)([A-Za-z0-9._~+/-]{20,}=*)"
)
_LOGIN = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/:@\"']*:[^\s/@\"']+@")
_VARIABLE = re.compile(rf"(?:^|_){_SECRET_NAME}(?:_ID)?$")
_NONE = frozenset({"null", "none", "false"})

_ADDRESSES: dict[str, re.Pattern[str]] = {
    "the network path": re.compile(
        r"(?:^|(?<=[\s\"'=(:,]))\\{2,4}[A-Za-z0-9][\w.-]+\\{1,2}[\w$.-]{2,}", re.M
    ),
    "the storage address": re.compile(
        r"\b(?:s3a?|s3n|gs|gcs|az|abfss?|wasbs?|adl|oss|cos|hdfs|swift|b2|r2)://[^\s\"'<>]+"
    ),
    "the address of a private network": re.compile(
        r"\b(?:[a-z][a-z0-9+.-]*://(?:[^\s/@\"']+@)?)"
        r"(?:10(?:\.\d{1,3}){3}|192\.168(?:\.\d{1,3}){2}|172\.(?:1[6-9]|2\d|3[01])(?:\.\d{1,3}){2}"
        r"|169\.254(?:\.\d{1,3}){2}|[\w.-]+\.(?:internal|intranet|corp|lan|local|localdomain))"
        r"(?![\w.])[^\s\"'<>]*"
    ),
    "the e-mail address": re.compile(
        r"(?<![\w.+@-])[A-Za-z0-9][\w.+-]*@(?!(?:[\w-]+\.)*example\.(?:com|org|net)\b)"
        r"(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}(?![\w-])"
    ),
    "the SSH address": re.compile(r"(?<![\w.+-])(?:ssh://|git@)[\w.-]+[:/][^\s\"'<>]+"),
}
"""Addresses that are ignored in prose, but not in settings."""
_HEX40 = re.compile(
    r"(?<![\w/@.-])(?=[0-9]*[A-Fa-f])(?=[A-Fa-f]*[0-9])(?:[0-9a-f]{40}|[0-9A-F]{40})(?![\w-])"
)
_HASHED = re.compile(
    r"commit|revision|sha|hash|checksum|digest|fingerprint|etag|oid|version|\bref|uuid|\bid$|_id$",
    re.IGNORECASE,
)


def secret_values() -> list[str]:
    """The values of this process's environment variables that are secrets by their names."""
    named = [os.environ.get(name, "") for name in os.environ if _VARIABLE.search(name.upper())]
    return [value for value in named if len(value) >= 10 and not re.search(r"[\s/]", value)]


def own_folders() -> list[str]:
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
    text = _AZURE.sub(lambda match: "***" if _is_random(match[0]) else match[0], text)
    text = _BEARER.sub(r"\1***", _QUERY.sub(r"\1***", text))
    return LOCAL_PATH.sub(last_name, _ASSIGNED.sub(masked, text))


def leaks(text: str) -> list[str]:
    """Parts of ``text`` that must not be published, a phrase each, never with the secret itself."""
    return [f"the local path {path}" for path in LOCAL_PATH.findall(text)] + secrets_in(text)


def leaks_of_settings(text: str) -> list[str]:
    """Leaks in generated ``key: value`` lines: also personal and private-network addresses, and 40
    hexadecimal digits whose key is not a hash."""
    found = leaks(text)
    for what, address in _ADDRESSES.items():
        found += [f"{what} {match[0]}" for match in address.finditer(text)]
    for match in _HEX40.finditer(text):
        key = text[max(text.rfind("\n", 0, match.start()) + 1, match.start() - 80) : match.start()]
        key = key.rstrip(" :=\"'")
        if not _HASHED.search(key):
            found.append(
                f"40 hexadecimal digits, as an access key has them, in {key[-40:]!r}: revoke it, "
                "and take it out"
            )
    return list(dict.fromkeys(found))


def leaks_of_vocabulary(text: str) -> list[str]:
    """Leaks in vocabularies or in readable text of binary files: no addresses, and only paths of
    users' folders and of this machine."""
    found = []
    if any(opening in text for opening in _HOMES):  # far faster than the pattern, in which most end
        found = [f"the local folder {match[0]}" for match in HOME.finditer(text)]
    # a single name may be a piece of a word
    own = [f for f in own_folders() if len(Path(f).parts) > 2 or Path(f) == Path.home()]
    found += [f"the local folder {folder}" for folder in own if folder in text]
    lines = (line for line in text.split("\n") if len(line) >= _SHORTEST or "://" in line)
    return list(dict.fromkeys(found)) + secrets_in("\n".join(lines))


def secrets_in(text: str) -> list[str]:
    """The tokens, keys and passwords in ``text``, a phrase each, without the secret."""
    found = []
    if any(_has_token(text)):
        found.append("an access token: revoke it, and take it out")
    found += [
        f"a secret, {match[1]}: revoke it, and take it out"
        for match in _ASSIGNED.finditer(text)
        if match[3].lower() not in _NONE
    ]
    if "://" in text and _LOGIN.search(text):
        found.append("a URL with a password: change it, and take it out")
    if "=" in text and (query := _QUERY.search(text)):
        found.append(f"a URL with a secret, {query[1]}: revoke it, and take it out")
    return found


def _has_token(text: str) -> Iterator[bool]:
    yield from (
        form.search(text) is not None for start, form in _BY_OPENING.items() if start in text
    )
    yield any(value in text for value in secret_values())
    yield "==" in text and any(_is_random(match[0]) for match in _AZURE.finditer(text))
    yield _BEARER.search(text) is not None


def _is_random(encoded: str) -> bool:
    """Tell whether 64 bytes in base64 are a key: those of a token of some vocabulary are text."""
    try:
        base64.b64decode(encoded).decode("utf-8")
    except (UnicodeDecodeError, binascii.Error):
        return True
    return False
