"""The body of the card: the templates of ``model_cards``, filled with facts already cleaned."""

import functools
import re
from pathlib import Path
from typing import Any

import jinja2

from hf_distill.hub import formula, licences, markup, samples

from .comparison import claim, comparison, explained, weight

TEXT, VISION, AUDIO, LANGUAGE_MODEL = "text.md", "vision.md", "audio.md", "language_model.md"
_TASKS: dict[str, tuple[str, str]] = {
    "text-classification": (TEXT, "SequenceClassification"),
    "token-classification": (TEXT, "TokenClassification"),
    "fill-mask": (TEXT, "MaskedLM"),
    "question-answering": (TEXT, "QuestionAnswering"),
    "multiple-choice": (TEXT, "MultipleChoice"),
    "text-ranking": (TEXT, "SequenceClassification"),
    "feature-extraction": (TEXT, ""),
    "sentence-similarity": (TEXT, ""),
    "text-generation": (LANGUAGE_MODEL, "CausalLM"),
    "text2text-generation": (LANGUAGE_MODEL, "Seq2SeqLM"),
    "translation": (LANGUAGE_MODEL, "Seq2SeqLM"),
    "summarization": (LANGUAGE_MODEL, "Seq2SeqLM"),
    "image-classification": (VISION, "ImageClassification"),
    "image-segmentation": (VISION, "SemanticSegmentation"),
    "zero-shot-image-classification": (VISION, "ZeroShotImageClassification"),
    "audio-classification": (AUDIO, "AudioClassification"),
    "automatic-speech-recognition": (AUDIO, "SpeechSeq2Seq"),
}
"""Pipeline tag -> the template, and the auto class of its quick start."""
_WITHOUT_PIPELINE = """
question-answering multiple-choice feature-extraction sentence-similarity text2text-generation
translation summarization text-ranking
"""  # tasks without a pipeline in transformers 5: their quick start uses the model
_ARXIV = re.compile(r"eprint\s*=\s*\{(\d{4}\.\d{4,5})\}")


def body(facts: dict[str, Any]) -> str:
    """The card's Markdown after the front matter."""
    task = facts.get("task", "")
    template, auto = _TASKS.get(task, (TEXT, "")) if task else ("model_card.md", "")
    if "CTC" in facts.get("student", {}).get("architecture", ""):
        auto = "CTC"
    objective = facts.get("objective", [])
    sources = _sources(facts)
    stated = {name: source.get("license") for name, source in sources.items()}
    text = (
        templates()
        .get_template(template)
        .render(
            facts,
            claim=claim(facts),
            comparison=comparison(facts),
            explained=explained(facts),
            written=samples.section(facts.get("samples", [])),
            citations=list(dict.fromkeys(t["citation"] for t in objective if "citation" in t)),
            auto=f"AutoModelFor{auto}" if auto else "AutoModel",
            piped=task in _TASKS and task not in _WITHOUT_PIPELINE.split(),
            latex=formula.latex(objective) if objective else "",
            legend=formula.legend(objective) if objective else "",
            sources=sources,
            warnings=licences.warnings(facts.get("license"), stated),
        )
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip()


@functools.cache
def templates() -> jinja2.Environment:
    """The templates of ``model_cards``, with the filters that they use."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_folder()), trim_blocks=True, lstrip_blocks=True
    )
    names = ("cell", "code", "fenced", "flat", "linked", "sentence", "show")
    environment.filters |= {name: getattr(markup, name) for name in names}
    environment.filters |= {"papers": _papers, "weight": weight}
    return environment


def _sources(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    teacher, base = facts.get("teacher", {}), facts.get("base", {})
    found = {"the teacher": teacher}
    if base.get("name") != teacher.get("name") or "how" in teacher:
        found["the base model"] = base
    found["the data"] = facts.get("data", {})
    return {key: source for key, source in found.items() if "name" in source}


def _papers(term: dict[str, Any]) -> str:
    """Links to the papers of a term that are on arXiv; the Hub makes tags of them."""
    ids = dict.fromkeys(_ARXIV.findall(term.get("citation", "")))
    return ", ".join(f"[arXiv:{number}](https://arxiv.org/abs/{number})" for number in ids) or "–"


def _folder() -> Path:
    """Folder ``model_cards``: inside the package in a wheel, next to it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "model_cards", package.parent / "model_cards"):
        if (folder / "model_card.md").is_file():
            return folder
    raise FileNotFoundError(
        f"expected model_cards/model_card.md in {package} or beside it: install hf_distill again"
    )
