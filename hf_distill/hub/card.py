"""The student's model card: facts in, a README.md out that the Hub reads and a person believes."""

from __future__ import annotations

import math
import os
import re
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import yaml_dump

from .check import hub_id, is_local, scrub, validate
from .prose import ABOUT_THE_TEACHER, body, mean

BEGIN, END = "<!-- hf_distill:begin -->", "<!-- hf_distill:end -->"
TAGS = ("distillation", "knowledge-distillation", "hf_distill", "generated_from_trainer")

# The order of the front matter. Other keys, which a person added, are kept by `write`.
_KEYS = (
    *("language", "license", "license_name", "library_name", "pipeline_tag", "base_model"),
    *("base_model_relation", "teacher_model", "datasets", "metrics", "tags", "model-index"),
)
_STOCK = (  # what Trainer and push_to_hub write into the cards they generate
    "This model card has been generated automatically according to the information the Trainer",
    "This model card has been automatically generated.",
)


@dataclass
class StudentCard:
    """The facts of a student. Plain values, so that they can be kept as JSON; none is required
    but the name, and a section without facts is left out of the card.

    A model (``teacher``, ``student``) is a dict with any of ``name`` (Hub id or path),
    ``revision`` (commit), ``parameters``, ``layers``, ``hidden_size``, ``architecture``, and for a
    classifier ``num_labels``. A local path is never written: only its last name, in prose.
    ``results``: model ('student', 'baseline', 'control', 'teacher') -> metric -> a number, or
    ``{"mean": …, "std": …}`` over ``seeds`` runs; measured on ``test_examples`` examples.
    ``objective``: dicts of ``name``, ``weight``, ``settings`` (dict) and ``citation`` (BibTeX).
    ``data``: ``name``, ``revision``, ``config``, ``url``, ``license``, ``splits`` (name -> size),
    ``labels_used`` (bool), ``test_split``. ``training`` and ``environment``: name -> value, or one
    more dict of them. ``reproduce``: ``command`` and ``recipe`` (YAML). ``plots``: paths relative
    to the published folder. ``robustness``: Markdown (``verdicts``, ``sentences``, ``figures``,
    ``attacks``), ``notes``, ``plots``, and ``metrics``: rows of ``type``, a unique ``name``,
    ``value`` and ``args`` for the model-index.
    """

    model_name: str
    task: str | None = None
    library_name: str = "transformers"
    license: str | None = None
    license_name: str | None = None
    language: str | list[str] | None = None
    base_model: str | None = None
    base_model_revision: str | None = None
    base_model_relation: str | None = None
    teacher: dict[str, Any] = field(default_factory=dict)
    student: dict[str, Any] = field(default_factory=dict)
    objective: list[dict[str, Any]] = field(default_factory=list)
    formula: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    test_examples: int | None = None
    seeds: int | None = None
    training: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    reproduce: dict[str, str] = field(default_factory=dict)
    limitations: list[str] = field(default_factory=list)
    plots: list[str] = field(default_factory=list)
    robustness: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)


def render(card: StudentCard) -> str:
    """The card as Markdown: YAML front matter, then our part between the two markers.

    Raises:
        ValueError: when a plot's path is not relative to the published folder.
    """
    for plot in (*card.plots, *card.robustness.get("plots", [])):
        if Path(plot).is_absolute() or ".." in Path(plot).parts or "\\" in plot:
            raise ValueError(
                "expected a plot's path relative to the published folder (plots/loss.png), "
                f"got {plot!r}: copy the file into the folder and give its relative path"
            )
    facts = _facts(card)
    return f"---\n{_dump(_metadata(facts))}---\n\n{BEGIN}\n{body(facts)}\n{END}\n"


def write(card: StudentCard, folder: str | os.PathLike[str]) -> Path:
    """Write the card to ``folder/README.md`` and return that path.

    Of an earlier card of ours, what a person wrote outside the markers and the front matter's
    other keys are kept. A card that Trainer or PEFT generated is replaced. A card by hand without
    our markers is left alone, with a warning that says how to have ours in it.

    Raises:
        ValueError: when the card would not be valid, or an existing README.md has broken markers.
    """
    path = Path(folder) / "README.md"
    text = render(card)
    validate(text)
    if path.exists():
        old = path.read_text(encoding="utf-8")
        if BEGIN in old or END in old:
            text = _merge(text, old, path)
        elif not _is_stock(old):
            warnings.warn(
                f"{path} was written by hand and is left as it is. To have the generated card in "
                f"it, put the lines {BEGIN} and {END} where it should stand, or delete the file; "
                "then write the card again.",
                stacklevel=2,
            )
            return path
    replace_text(path, text)
    return path


def with_repo_id(text: str, repo_id: str) -> str:
    """The card with the quick start naming ``repo_id``; nothing outside our markers changes."""
    head, begin, rest = text.partition(BEGIN)
    ours, end, tail = rest.partition(END)
    ours = re.sub(r'^model_id = "[^"]*"$', f'model_id = "{repo_id}"', ours, flags=re.MULTILINE)
    return head + begin + ours + end + tail


def replace_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it: never half a file."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _dump(metadata: dict[str, Any]) -> str:
    return yaml_dump(metadata, sort_keys=False)


def _merge(new: str, old: str, path: Path) -> str:
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        raise ValueError(
            f"expected in {path} one line {BEGIN} and after it one line {END}, got "
            f"{old.count(BEGIN)} and {old.count(END)}: repair them, or delete the file"
        )
    match = REGEX_YAML_BLOCK.match(old)
    try:
        kept = yaml.safe_load(match.group(2)) if match else {}
    except yaml.YAMLError as error:
        raise ValueError(f"the front matter of {path} is no YAML: repair it ({error})") from error
    if not isinstance(kept, dict):
        raise ValueError(f"the front matter of {path} is no mapping: repair it, or delete it")
    block = REGEX_YAML_BLOCK.match(new)
    assert block is not None  # we have just rendered it
    metadata = yaml.safe_load(block.group(2))
    metadata |= {key: value for key, value in kept.items() if key not in _KEYS}
    before, after = old[match.end() if match else 0 : old.index(BEGIN)], old.split(END)[1]
    ours = new[new.index(BEGIN) : new.index(END)] + END
    return f"---\n{_dump(metadata)}---\n\n{before.lstrip()}{ours}{after}"


def _is_stock(text: str) -> bool:
    """Whether nobody wrote in this card: Trainer's, or the Hub's template as PEFT fills it."""
    if any(sign in text for sign in _STOCK):
        return True
    template = set(ModelCard.from_template(ModelCardData()).text.splitlines())
    body = REGEX_YAML_BLOCK.sub("", text, count=1).splitlines()
    return all(
        line in template or not line.strip() or line.startswith(("- PEFT ", "### Framework ver"))
        for line in body
    )


def _clean(value: Any) -> Any:
    """``value`` without what is missing (None, NaN, empty), local paths and tokens."""
    if isinstance(value, dict):
        if value.keys() == {"mean", "std"} and _clean(value["mean"]) is None:
            return None  # a spread around nothing
        items = {str(key): _clean(item) for key, item in value.items()}
        return {key: item for key, item in items.items() if item not in (None, "", {}, [])}
    if isinstance(value, list | tuple):
        return [item for item in map(_clean, value) if item not in (None, "", {}, [])]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return scrub(value).strip() if isinstance(value, str) else value


def _facts(card: StudentCard) -> dict[str, Any]:
    """The facts that may be written: cleaned, and each source with the name to show and its id."""
    facts: dict[str, Any] = _clean(asdict(card))
    facts["model_name"] = _shown(card.model_name)
    sources = {"teacher": card.teacher, "data": card.data}
    if card.base_model:
        sources["base"] = {"name": card.base_model, "revision": card.base_model_revision}
    for key, source in sources.items():
        if source.get("name"):
            named = {"name": _shown(source["name"])}
            facts[key] = _clean(source) | named
            facts[key]["id"] = hub_id(source["name"], source.get("revision"))
    return facts


def _shown(name: str) -> str:
    """A name for prose: of a path, its last part only."""
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1] if is_local(name) else name


def _metadata(facts: dict[str, Any]) -> dict[str, Any]:
    """The front matter. The model-index holds the student's results, never the teacher's."""
    base, data = facts.get("base", {}).get("id"), facts.get("data", {})
    relation = "adapter" if facts["library_name"] == "peft" else "finetune"
    student = facts.get("results", {}).get("student", {})
    metrics = [metric for metric in student if not ABOUT_THE_TEACHER.search(metric)]
    rows: list[dict[str, Any]] = [
        {"type": metric, "value": mean(student[metric])} for metric in metrics
    ]
    rows += facts.get("robustness", {}).get("metrics", [])
    results = [
        EvalResult(
            task_type=facts["task"],
            dataset_type=data["id"] or re.sub(r"\W+", "-", data["name"].lower()).strip("-"),
            dataset_name=data["name"],
            dataset_config=data.get("config"),
            dataset_split=data.get("test_split"),
            dataset_revision=data.get("revision"),
            metric_type=row["type"],
            metric_name=row.get("name"),
            metric_value=row["value"],
            metric_args=row.get("args"),
        )
        for row in rows
        if "task" in facts and "name" in data
    ]
    metadata = ModelCardData(
        language=facts.get("language"),
        license=facts.get("license"),
        license_name=facts.get("license_name"),
        library_name=facts["library_name"],
        pipeline_tag=facts.get("task"),
        base_model=base,
        base_model_relation=facts.get("base_model_relation", relation) if base else None,
        teacher_model=facts.get("teacher", {}).get("id"),
        datasets=[data["id"]] if data.get("id") else None,
        metrics=metrics,
        tags=[
            *TAGS,
            *(term["name"] for term in facts.get("objective", [])),
            *facts.get("tags", []),
        ],
        model_name=facts["model_name"].split("/")[-1],
        eval_results=results,
    ).to_dict()
    if not results:
        del metadata["model-index"]
    return {key: metadata[key] for key in _KEYS if metadata.get(key)}
