"""Normalisation of card values to those that the Hub accepts."""

import math
import re
from typing import Any

from .check import LICENSES, PIPELINE_TAGS

# ISO 639-1 codes with the English names of the languages (https://www.loc.gov/standards/iso639-2).
_NAMES = """
aa Afar, ab Abkhazian, ae Avestan, af Afrikaans, ak Akan, am Amharic, an Aragonese, ar Arabic,
as Assamese, av Avaric, ay Aymara, az Azerbaijani, ba Bashkir, be Belarusian, bg Bulgarian,
bi Bislama, bm Bambara, bn Bengali, bo Tibetan, br Breton, bs Bosnian, ca Catalan, ca Valencian,
ce Chechen, ch Chamorro, co Corsican, cr Cree, cs Czech, cu Church Slavonic, cv Chuvash, cy Welsh,
da Danish, de German, dv Divehi, dz Dzongkha, ee Ewe, el Greek, en English, eo Esperanto,
es Spanish, es Castilian, et Estonian, eu Basque, fa Persian, fa Farsi, ff Fulah, fi Finnish,
fj Fijian, fo Faroese, fr French, fy Frisian, ga Irish, gd Gaelic, gl Galician, gn Guarani,
gu Gujarati, gv Manx, ha Hausa, he Hebrew, hi Hindi, ho Hiri Motu, hr Croatian, ht Haitian,
hu Hungarian, hy Armenian, hz Herero, ia Interlingua, id Indonesian, ie Interlingue, ig Igbo,
ii Sichuan Yi, ik Inupiaq, io Ido, is Icelandic, it Italian, iu Inuktitut, ja Japanese,
jv Javanese, ka Georgian, kg Kongo, ki Kikuyu, kj Kuanyama, kk Kazakh, kl Kalaallisut, km Khmer,
kn Kannada, ko Korean, kr Kanuri, ks Kashmiri, ku Kurdish, kv Komi, kw Cornish, ky Kyrgyz,
la Latin, lb Luxembourgish, lg Ganda, li Limburgish, ln Lingala, lo Lao, lt Lithuanian,
lu Luba-Katanga, lv Latvian, mg Malagasy, mh Marshallese, mi Maori, mk Macedonian, ml Malayalam,
mn Mongolian, mr Marathi, ms Malay, mt Maltese, my Burmese, na Nauru, nb Bokmål, nd North Ndebele,
ne Nepali, ng Ndonga, nl Dutch, nl Flemish, nn Nynorsk, no Norwegian, nr South Ndebele, nv Navajo,
ny Chichewa, oc Occitan, oj Ojibwa, om Oromo, or Oriya, or Odia, os Ossetian, pa Punjabi, pi Pali,
pl Polish, ps Pashto, pt Portuguese, qu Quechua, rm Romansh, rn Rundi, ro Romanian, ru Russian,
rw Kinyarwanda, sa Sanskrit, sc Sardinian, sd Sindhi, se Northern Sami, sg Sango, si Sinhala,
sk Slovak, sl Slovenian, sl Slovene, sm Samoan, sn Shona, so Somali, sq Albanian, sr Serbian,
ss Swati, st Southern Sotho, su Sundanese, sv Swedish, sw Swahili, ta Tamil, te Telugu, tg Tajik,
th Thai, ti Tigrinya, tk Turkmen, tl Tagalog, tn Tswana, to Tonga, tr Turkish, ts Tsonga,
tt Tatar, tw Twi, ty Tahitian, ug Uyghur, uk Ukrainian, ur Urdu, uz Uzbek, ve Venda,
vi Vietnamese, vo Volapük, wa Walloon, wo Wolof, xh Xhosa, yi Yiddish, yo Yoruba, za Zhuang,
zh Chinese, zh Mandarin, zu Zulu
"""
_PAIRS = [entry.split(maxsplit=1) for entry in " ".join(_NAMES.split()).split(", ")]
_BY_NAME = {name.lower(): code for code, name in _PAIRS}
_FORMER = {"iw": "he", "in": "id", "ji": "yi", "jw": "jv", "mo": "ro"}
"""Codes that ISO 639-1 has withdrawn -> those that took their place."""
_LOCALE = re.compile(r"([a-z]{2,3})(?:[-_][a-z0-9]{2,8})*(?:\.[\w-]+)?(?:@\w+)?")

_IN_FULL = (
    (r"(?:gnu )?lesser general public", "lgpl"),
    (r"(?:gnu )?affero general public", "agpl"),
    (r"(?:gnu )?general public", "gpl"),
    (r"creative commons", "cc"),
    (r"attribution", "by"),
    (r"share ?alike", "sa"),
    (r"non ?commercial", "nc"),
    (r"no ?deriv(?:ative)?s?(?: works)?", "nd"),
    (r"mozilla public", "mpl"),
    (r"eclipse public", "epl"),
    (r"boost software", "bsl"),
    (r"cc ?0(?: 1\.0)?|cc zero", "cc0 1.0"),
)
_FILLERS = """
the a license licence licensed under version v only or later gnu software international unported
universal community agreement terms of use public dedication
"""


def _key(licence: str) -> tuple[str, ...]:
    """Identifying words of a licence, sorted: the same of ``Apache License, Version 2.0`` and
    ``apache-2.0``."""
    text = " ".join(re.sub(r"[^a-z0-9.+]+", " ", licence.lower()).split())
    for pattern, short in _IN_FULL:
        text = re.sub(rf"\b(?:{pattern})\b", short, text)
    text = re.sub(r"(?<=[a-z])v(?=\d)|\bv(?=\d)", " ", text)
    words, fillers = re.findall(r"[a-z+]+|\d+(?:\.\d+)*", text), _FILLERS.split()
    return tuple(sorted({word.removesuffix(".0") for word in words if word not in fillers}))


_BY_KEY = {_key(licence): licence for licence in LICENSES}


def _words(text: str) -> str:
    return " ".join(["", *re.findall(r"[^\W\d_]+", text), ""])


def languages(text: str) -> list[str]:
    """The ISO 639 codes of the languages that a text names; none where it names none.

    >>> languages("en_XX"), languages("zh-Hans, Brazilian Portuguese"), languages("Klingon?")
    (['en'], ['zh', 'pt'], [])
    """
    found: list[str] = []
    for part in re.split(r"[,;/|+]", text.lower()):
        part = part.strip()
        locale = _LOCALE.fullmatch(part)
        code = locale[1] if locale else ""
        code = _FORMER.get(code, code)
        if part in ("code", "multilingual"):
            found.append(part)
        elif part in _BY_NAME:  # three letters may be a name: Twi
            found.append(_BY_NAME[part])
        elif len(code) == 3 or code in _BY_NAME.values():
            found.append(code)
        else:
            words = _words(part)
            found += [code for name, code in _BY_NAME.items() if _words(name) in words]
    return list(dict.fromkeys(found))


def licence(text: str) -> str | None:
    """The Hub's identifier of a licence; None where it has none.

    >>> licence("Apache 2.0"), licence("CC BY-SA 4.0"), licence("GPLv3"), licence("ours")
    ('apache-2.0', 'cc-by-sa-4.0', 'gpl-3.0', None)
    """
    return _BY_KEY.get(_key(text))


def inherited(stated: str | None) -> str | None:
    """Licence of a base model for a student's card; ``other`` needs a name and a link."""
    known = licence(stated or "")
    return None if known == "other" else known


def pipeline_tag(text: str) -> str | None:
    """The Hub's pipeline tag; None where it has none such.

    >>> pipeline_tag("Text_Classification"), pipeline_tag("language-modeling")
    ('text-classification', None)
    """
    tag = re.sub(r"[\s_-]+", "-", text.strip().lower())
    return tag if tag in PIPELINE_TAGS else None


def texts(value: Any) -> list[str]:
    """The texts in a value, be it one or a collection; numbers are texts too, all else is not.

    >>> texts(["films", 2024, None, " "]), texts("films"), texts({"a": 1})
    (['films', '2024'], ['films'], [])
    """
    items = value if isinstance(value, list | tuple | set | frozenset) else [value]
    kept = [str(item).strip() for item in items if isinstance(item, str) or _is_number(item)]
    return [text for text in kept if text]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
