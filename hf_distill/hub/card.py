"""The student's model card: facts in, a README.md out that the Hub reads and a person believes."""

import os
import re
import sys
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import yaml_dump

from hf_distill.hub.leaks import read_text, scrub
from hf_distill.utils.files import write_text

from .check import hub_id, is_local, validate
from .metadata import KEYS, eval_entries, metadata
from .prose import body

BEGIN, END = "<!-- hf_distill:begin -->", "<!-- hf_distill:end -->"
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
BY_HAND = (
    "{path} was written by hand and is left as it is. To have the generated card in it, put the "
    f"lines {BEGIN} and {END} where it should stand, or delete the file; then write the card again."
)
_STOCK = (  # what Trainer and push_to_hub write into the cards they generate
    "This model card has been generated automatically according to the information the Trainer",
    "This model card has been automatically generated.",
)


@dataclass
class StudentCard:
    """The facts of a student. Plain values, so that they can be kept as JSON; none is required
    but the name, and a section without facts is left out of the card.

    A model (``teacher``, ``student``) is a dict with any of ``name`` (Hub id or path; only the last
    name of a path is written), ``revision`` (commit), ``parameters``, ``layers``, ``hidden_size``,
    ``architecture``, ``num_labels``. Of a teacher also ``how`` ("fine-tuned on …"), ``license``,
    ``quote`` (limitations in its own card), and ``cache`` (a dict) or ``outputs`` (a few words):
    the origin of its outputs; ``inputs`` (a few words) that are not the student's; of a student
    ``initialised`` (the end of a sentence) and ``labels``.

    - ``results``: model ('student', 'baseline', 'control', 'teacher') -> metric -> a number, or
      ``{"mean": …, "std": …}`` over ``seeds`` runs; measured on ``test_examples`` examples.
    - ``claim``: the evidence of the first sentence: ``metric``; ``interval`` of the student's
      result; ``gain`` over the baseline: dicts of ``value``, ``low``, ``high``, ``level``,
      ``method``, and for the gain ``p`` of the same test (``p_adjusted``: after Holm) and ``word``
      (better, worse, not distinguishable, …; ``why`` there is none yet; without it: not tested).
      ``arguments``: those of the baseline's training, against the student's.
    - ``measured``: model -> ``size_bytes``, ``latency_ms`` a batch (the median; ``p10_ms`` and
      ``p90_ms``: its spread), ``throughput`` in examples a second; ``measured_on``: ``hardware``,
      ``threads``, ``batch_size``, ``dtype``, ``input``, ``repeats``.
    - ``objective``: dicts of ``name``, ``weight``, ``settings`` (dict) and ``citation`` (BibTeX).
    - ``components``: term -> the last value of the loss; ``history``: rows of the training log,
      dicts with the same keys. ``training``, ``environment``: name -> value, or a dict of them.
    - ``data``: ``name``, ``revision``, ``config``, ``url``, ``license``, ``splits`` (name ->
      size), ``labels_used`` (bool), ``test_split``, and ``task_id`` for ``.eval_results``.
    - ``preprocessing``: ``max_length`` (tokens), ``image_size`` (height, width),
      ``sampling_rate`` (Hz), ``max_seconds``, and others.
    - ``samples``: dicts of ``prompt`` and ``texts`` (model -> continuation), see `hub.samples`.
    - ``exports``: see `Exported`.
    - ``carbon``, only if measured: ``kg`` (of CO2-equivalents), ``tool``, ``kwh``, ``country``,
      ``hardware``.
    - ``reproduce``: ``command`` and ``recipe`` (YAML). ``plots``: paths relative to the folder.
    - ``robustness``: Markdown (``verdicts``, ``sentences``, ``figures``, ``attacks``),
      ``notes``, ``plots``; ``metrics``: rows of ``type``, a unique ``name``, ``value`` and
      ``args`` for the model-index; ``rows``: label -> model -> number, for the table.
    """

    model_name: str
    task: str | None = None
    library_name: str = "transformers"
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: str | list[str] | None = None
    base_model: str | None = None
    base_model_revision: str | None = None
    base_model_relation: str | None = None
    base_model_license: str | None = None
    teacher: dict[str, Any] = field(default_factory=dict)
    student: dict[str, Any] = field(default_factory=dict)
    objective: list[dict[str, Any]] = field(default_factory=list)
    formula: str | None = None
    components: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    claim: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, dict[str, float]] = field(default_factory=dict)
    measured_on: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    exports: list[dict[str, Any]] = field(default_factory=list)
    test_examples: int | None = None
    seeds: int | None = None
    training: dict[str, Any] = field(default_factory=dict)
    carbon: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    reproduce: dict[str, str] = field(default_factory=dict)
    limitations: list[str] = field(default_factory=list)
    plots: list[str] = field(default_factory=list)
    robustness: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)


def render(card: StudentCard) -> str:
    """The card as Markdown: YAML front matter, then our part between the two markers.

    Raises:
        ValueError: a plot's path is not relative to the published folder, or a term of the
            objective has no name.
    """
    for plot in (*card.plots, *card.robustness.get("plots", [])):
        if Path(plot).is_absolute() or ".." in Path(plot).parts or "\\" in plot:
            raise ValueError(
                "expected a plot's path relative to the published folder (plots/loss.png), "
                f"got {plot!r}: copy the file into the folder and give its relative path"
            )
    facts = _facts(card)
    return f"---\n{_dump(metadata(facts))}---\n\n{BEGIN}\n{body(facts)}\n{END}\n"


def write(card: StudentCard, folder: str | os.PathLike[str], *, eval_results: bool = False) -> Path:
    """Write the card to ``folder/README.md`` and return that path.

    Of an earlier card of ours, text outside the markers and the front matter's other keys are kept.
    A card that Trainer or PEFT generated is replaced. A card by hand without our markers is left
    alone, with a warning. ``eval_results``: write ``.eval_results/<data set>.yaml`` as well, the
    student's main result, with which the Hub ranks it on a registered benchmark.

    Raises:
        ValueError: the card would not be valid, an existing README.md has broken markers, or there
            is no result on a data set of the Hub for ``.eval_results``.
    """
    path = Path(folder) / "README.md"
    text = render(card)
    validate(text)
    if eval_results:
        facts = _facts(card)
        entries = eval_entries(facts)
        file = path.parent / ".eval_results" / f"{facts['data']['id'].split('/')[-1]}.yaml"
        file.parent.mkdir(exist_ok=True)
        write_text(file, _dump(entries))
    joined = join(text, path)
    if joined is None:
        warnings.warn(BY_HAND.format(path=path), stacklevel=2)
    else:
        write_text(path, joined)
    return path


def join(text: str, path: Path) -> str | None:
    """Card with the user's text around an earlier generated card at ``path``; None where a card by
    hand stands, without our markers. ValueError if its markers or front matter are broken."""
    old = read_text(str(path), path.read_bytes()) if path.exists() else ""
    if BEGIN in old or END in old:
        return _merge(text, old, path)
    return text if not old or _is_stock(old) else None


def with_repo_id(text: str, repo_id: str) -> str:
    """The card with the quick start naming ``repo_id``; nothing outside our markers changes."""
    head, begin, rest = text.partition(BEGIN)
    ours, end, tail = rest.partition(END)
    ours = re.sub(r'^model_id = "[^"]*"$', f'model_id = "{repo_id}"', ours, flags=re.MULTILINE)
    return head + begin + ours + end + tail


def _dump(value: Any) -> str:
    return yaml_dump(value, sort_keys=False)


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
    front_matter = yaml.safe_load(block.group(2))
    front_matter |= {key: value for key, value in kept.items() if key not in KEYS}
    before, after = old[match.end() if match else 0 : old.index(BEGIN)], old.split(END)[1]
    ours = new[new.index(BEGIN) : new.index(END)] + END
    return f"---\n{_dump(front_matter)}---\n\n{before.lstrip()}{ours}{after}"


def _is_stock(text: str) -> bool:
    """True for a card without user text: Trainer's, or the Hub's template as filled in by PEFT."""
    if any(sign in text for sign in _STOCK):
        return True
    template = set(ModelCard.from_template(ModelCardData()).text.splitlines())
    body = REGEX_YAML_BLOCK.sub("", text, count=1).splitlines()
    return all(
        line in template or not line.strip() or line.startswith(("- PEFT ", "### Framework ver"))
        for line in body
    )


def _clean(value: Any) -> Any:
    """Copy of ``value`` without missing values (None, NaN, empty), local paths and tokens."""
    if isinstance(value, dict):
        if value.keys() == {"mean", "std"} and _clean(value["mean"]) is None:
            return None  # a spread around nothing
        items = {_clean(str(key)): _clean(item) for key, item in value.items()}
        return {k: item for k, item in items.items() if k and item not in (None, "", {}, [])}
    if isinstance(value, list | tuple):
        return [item for item in map(_clean, value) if item not in (None, "", {}, [])]
    if isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
        return None  # NaN, inf, or an integer that is no float
    return _printable(scrub(value)).strip() if isinstance(value, str) else value


def _printable(text: str) -> str:
    """``text`` without control characters, halves of surrogate pairs and markers like ours."""
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\r\n", "\n")
    return re.sub("hf_distill:(?=begin|end)", "hf_distill ", _UNPRINTABLE.sub(" ", text))


def _facts(card: StudentCard) -> dict[str, Any]:
    """The facts that may be written: cleaned, and each source with the name to show and its id."""
    facts: dict[str, Any] = _clean(asdict(card))
    if any("name" not in term for term in facts.get("objective", [])):
        raise ValueError(
            f"expected each term of the objective to have a name, got {card.objective}"
        )
    facts["model_name"] = shown(card.model_name)
    sources = {"teacher": card.teacher, "data": card.data}
    if card.base_model:
        sources["base"] = {
            "name": card.base_model,
            "revision": card.base_model_revision,
            "license": card.base_model_license,
        }
    for key, source in sources.items():
        facts.get(key, {}).pop("name", None)  # as it was typed
        if name := shown(source.get("name") or ""):
            facts[key] = _clean(source) | {"name": name}
            facts[key]["id"] = hub_id(source["name"], source.get("revision"))
            facts[key]["kind"] = "datasets/" if key == "data" else ""
    return facts


def shown(name: str) -> str:
    """A name for prose: of a path, its last part only; empty where nothing of it can be shown."""
    name = " ".join(_printable(name).split())
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1] if is_local(name) else scrub(name)
