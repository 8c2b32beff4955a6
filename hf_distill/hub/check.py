"""Offline checks of names and model cards."""

import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id

from hf_distill.hub.leaks import leaks
from hf_distill.utils.suggest import nearest

# https://huggingface.co/docs/hub/repositories-licenses, identifiers for a repo card
_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0
cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl
ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 lgpl-lr isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr
mpl-2.0 odc-by odbl openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense
zlib pddl deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2
llama3.3 llama4 grok2-community gemma unknown other
"""
# the keys of PIPELINE_DATA in huggingface.js (packages/tasks/src/pipelines.ts)
_PIPELINE_TAGS = """
text-classification token-classification table-question-answering question-answering
zero-shot-classification translation summarization feature-extraction text-generation
text2text-generation fill-mask sentence-similarity text-to-speech text-to-audio
automatic-speech-recognition audio-to-audio audio-classification audio-text-to-text
voice-activity-detection depth-estimation image-classification object-detection image-segmentation
text-to-image image-to-text image-to-image image-to-video unconditional-image-generation
video-classification reinforcement-learning robotics tabular-classification tabular-regression
tabular-to-text table-to-text multiple-choice text-ranking text-retrieval time-series-forecasting
text-to-video image-text-to-text visual-question-answering document-question-answering
zero-shot-image-classification graph-ml mask-generation zero-shot-object-detection text-to-3d
image-to-3d image-feature-extraction video-text-to-text keypoint-detection
visual-document-retrieval any-to-any video-to-video image-text-to-image image-text-to-video
biology other
"""
LICENSES = frozenset(_LICENSES.split())
PIPELINE_TAGS = frozenset(_PIPELINE_TAGS.split())
# the Hub knows no "distilled" relation (hub-docs, model-cards.md)
RELATIONS = frozenset({"adapter", "merge", "quantized", "finetune"})

_STRINGS = ("license", "license_name", "library_name", "pipeline_tag", "base_model_relation")
_LISTS = ("language", "tags", "metrics", "datasets", "base_model", "teacher_model")
_ARRAYS = ("tags", "metrics", "widget")
_IDS = ("datasets", "base_model", "teacher_model")

_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
_DATASET_TYPE = re.compile(r"(?:[\w-]+/)?[\w.-]+", re.ASCII)
_EMPTY_LINK = re.compile(
    r"\]\(\s*(?:<>|#|None|null|nan)?\s*\)|(?<!!)\[\s*\]\(|\]\(https?://(?:www\.)?huggingface\.co/?\)"
)
_EMPTY_VALUE = re.compile(
    r"(?:^|[|:=(\[*,])\s*[+-]?(?:None|NaN|nan|null|inf)\s*(?:$|[|)\]*,;.])", re.MULTILINE
)
_FILLER = re.compile(r"more information needed", re.IGNORECASE)


def is_local(name: str) -> bool:
    rooted = name.startswith((".", "~", "/")) or "\\" in name or name.count("/") > 1
    return rooted or os.path.exists(name)


def hub_id(name: str | None, revision: str | None = None) -> str | None:
    """Name if it is a valid Hub id, otherwise None.

    ``namespace/name`` that is not a local folder is an id. A bare name (``gpt2``) is one only with
    the ``revision`` that the Hub gave: a local folder may have the same name.
    """
    if not name or is_local(name) or ("/" not in name and not revision):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def validate(text: str) -> None:
    """Raise a ValueError with all of `card_problems` of a model card."""
    if problems := card_problems(text):
        raise ValueError("The model card cannot be published:\n- " + "\n- ".join(problems))


def card_problems(text: str) -> list[str]:
    """Problems of a model card, found offline.

    Front matter that is not a mapping, wrong types, nulls, unknown licences, pipeline tags,
    relations and languages, a model-index that does not round-trip or has a row twice, local
    paths, tokens and passwords, empty links, missing values and fillers.
    """
    match = REGEX_YAML_BLOCK.match(text)
    problems = list(_metadata_problems(match.group(2) if match else ""))
    return problems + list(_line_problems(text, text[: match.end()].count("\n") if match else 0))


def _metadata_problems(front_matter: str) -> Iterator[str]:
    try:
        metadata = yaml.safe_load(front_matter)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-01
        yield f"the front matter is no YAML: {' '.join(str(error).split())}"
        return
    if not isinstance(metadata, dict):
        yield (
            "expected front matter (a YAML mapping between two lines `---` at the top), "
            f"got {type(metadata).__name__}"
        )
        return
    for path, value in _leaves(metadata):
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            yield f"`{path}` is {value}: leave it out"
    for key in _STRINGS:
        value = metadata.get(key)
        if value is not None and not isinstance(value, str):
            yield f"`{key}` must be a string, got {value!r}"
        elif value == "":
            yield f"`{key}` is empty: leave it out"
    for key in _ARRAYS:
        if metadata.get(key) is not None and not isinstance(metadata[key], list):
            yield f"`{key}` must be a list, got {metadata[key]!r}"
    for key in _LISTS:
        yield from _list_problems(key, metadata.get(key))
    yield from _known_problems(metadata)
    if "model-index" in metadata:
        yield from _index_problems(metadata["model-index"])


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, value


def _list_problems(key: str, value: Any) -> Iterator[str]:
    for item in value if isinstance(value, list) else [value]:
        if item is None:  # absent, or reported as a null
            continue
        if not isinstance(item, str):
            yield f"`{key}` must hold strings, got {item!r}: quote it"
        elif not item.strip():
            yield f"`{key}` holds an empty string: leave it out"
        elif key == "language" and not _LANGUAGE.fullmatch(item):
            yield (
                f"`language`: {item!r} is no ISO 639 code of two or three letters, `code` or "
                "`multilingual`; a code such as zh-Hans goes into `language_bcp47`"
            )
        elif key in _IDS:
            try:
                validate_repo_id(item)
            except HFValidationError:
                yield f"`{key}`: {item!r} is no Hub id (`namespace/name`); name it in the text only"


def _known_problems(metadata: dict[str, Any]) -> Iterator[str]:
    for key, known in (
        ("license", LICENSES),
        ("pipeline_tag", PIPELINE_TAGS),
        ("base_model_relation", RELATIONS),
    ):
        value = metadata.get(key)
        if isinstance(value, str) and value not in known:
            near = nearest(value.lower().replace(" ", "-"), sorted(known))
            hint = f"did you mean {near!r}?" if near else f"known: {', '.join(sorted(known))}"
            yield f"`{key}`: the Hub does not know {value!r}; {hint}"
    if metadata.get("license") == "other" and not metadata.get("license_name"):
        yield "`license: other` needs `license_name` (and the licence's text in a LICENSE file)"
    if "base_model_relation" in metadata and "base_model" not in metadata:
        yield "`base_model_relation` without `base_model`"


def _index_problems(model_index: Any) -> Iterator[str]:
    try:
        name, results = model_index_to_eval_results(model_index)
        same = eval_results_to_model_index(name, results) == model_index
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        yield f"`model-index` cannot be read back: {type(error).__name__} {error}"
        return
    if not (isinstance(name, str) and name.strip()):
        yield f"`model-index`: the model's name must be a string, got {name!r}"
    if not same:
        yield "`model-index` does not round-trip: one model, one entry a task and data set"
    for result in results:
        for key in ("task_type", "dataset_type", "dataset_name", "dataset_config", "metric_type"):
            value = getattr(result, key)
            if value is not None and not isinstance(value, str):
                yield f"`model-index`: {key.replace('_', '.')} must be a string, got {value!r}"
        if not str(result.dataset_name).strip():
            yield "`model-index`: dataset.name is empty: name the data set"
        if not _DATASET_TYPE.fullmatch(str(result.dataset_type)):
            yield (
                f"`model-index`: dataset.type {result.dataset_type!r} is neither a data set's Hub "
                "id nor a word of letters, digits, '-', '_' and '.'"
            )
    rows = Counter(
        (
            *(r.task_type, r.dataset_type, r.dataset_config, r.dataset_split, r.metric_type),
            None if r.metric_name is None else str(r.metric_name),
        )
        for r in results
    )
    for (*_, metric, row), count in rows.items():
        if count > 1:
            yield (
                f"`model-index` holds {count} rows of {metric!r} that nothing tells apart (name: "
                f"{row!r}): give each a `name` of its own"
            )


def _line_problems(text: str, body_from: int) -> Iterator[str]:
    fenced, leaking = False, bool(leaks(text))
    for number, line in enumerate(text.splitlines(), start=1):
        if leaking:
            yield from (f"line {number}: {leak}" for leak in leaks(line))
        if line.lstrip().startswith("```"):
            fenced = not fenced
        if fenced or number <= body_from:
            continue
        prose = re.sub(r"`[^`]*`", "", line)
        if _EMPTY_LINK.search(prose):
            yield f"line {number}: a link without text or target"
        if _EMPTY_VALUE.search(prose):
            yield f"line {number}: a missing value (None or NaN): leave the entry out"
        if _FILLER.search(prose):
            yield f"line {number}: 'More information needed': say it or leave the section out"
