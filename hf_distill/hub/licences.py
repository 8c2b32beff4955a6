"""Licences of teacher, base model and data whose terms may apply to the student.

The card links the text of such a licence, without an interpretation.
"""

import re
from collections.abc import Mapping

_CC = "https://creativecommons.org/licenses"
NO_DERIVATIVES = r"cc-by(-nc)?-nd-.*"
SAME_ONLY = (
    r"cc-by(-nc)?-sa-.*|odbl|cdla-sharing-.*|gfdl",
    r"(a|l)?gpl(-.*)?|osl-.*|eupl-.*",
    r"llama\d.*",
)
"""Share-alike, copyleft and Llama: a student under the same licence passes."""
TERMS = {
    r"cc-by-nc(-.*)?|fair-noncommercial.*|apple-amlr|(h|intel)-research": f"{_CC}/by-nc/4.0/",
    NO_DERIVATIVES: f"{_CC}/by-nd/4.0/",
    SAME_ONLY[0]: f"{_CC}/by-sa/4.0/",
    SAME_ONLY[1]: "https://www.gnu.org/licenses/gpl-3.0.html",
    r".*openrail.*|bigscience-bloom-rail.*": "https://www.licenses.ai/",
    SAME_ONLY[2]: "https://www.llama.com/llama3_1/license/",
    r"gemma": "https://ai.google.dev/gemma/terms",
}
"""Identifiers of licences with conditions on derived or distilled works -> an example text."""
_OPAQUE = ("other", "unknown")


def warnings(student: str | None, sources: Mapping[str, str | None]) -> list[str]:
    """Licences to check before the student is published or used, one sentence each.

    ``student`` is the Hub's identifier of its licence, ``sources``: ``the teacher`` … -> licence.

    >>> warnings("mit", {"the data": "cc0-1.0"})
    []
    """
    found = []
    if student is None and any(sources.values()):
        found.append("No licence is stated for this student: check those of its sources.")
    for source, licence in sources.items():
        if licence in _OPAQUE:
            found.append(f"The licence of {source} is given as {licence}: check its terms.")
        elif licence is not None and (links := _unmet(licence, student)):
            ours = f"the student's licence, {student}," if student else "the student's licence"
            found.append(
                f"The licence of {source}, {licence}, may have conditions on derived models "
                f"({' '.join(f'<{link}>' for link in links)}): check that {ours} is compatible."
            )
    return found


def _unmet(licence: str, student: str | None) -> list[str]:
    """Links to the conditions that the student's licence does not obviously meet."""
    links = []
    for pattern, link in TERMS.items():
        if re.fullmatch(pattern, licence):
            wanted = re.escape(licence) if pattern in SAME_ONLY else pattern
            met = student is not None and pattern != NO_DERIVATIVES
            if not (met and re.fullmatch(wanted, str(student))):
                links.append(link)
    return links
