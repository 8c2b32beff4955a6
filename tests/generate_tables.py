"""Rewrites the generated tables of the manual pages: `python tests/generate_tables.py [--check]`.

A page holds a table between ``<!-- table: NAME -->`` and ``<!-- end -->``; `TABLES` maps each name
to the function that makes it. Sources are the tables of the package itself (`OBJECTIVES`, `TASKS`),
so that a page cannot list a name that the package does not have.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ("*.md", ".github/*.md", "hf_distill/**/*.md", "recipes/**/*.md", "tests/**/*.md")
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
ARXIV = re.compile(r"\b\d{4}\.\d{4,5}\b")
SOURCE = re.compile(r"\s*\((?=[^()]*\d{4})[^()]*\)")  # "(Hinton et al. 2015, 1503.02531)"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; ``|`` in cells is escaped."""
    lines = [list(header), [":--"] * len(header), *([_cell(c) for c in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def first_line(thing: object) -> str:
    """The first paragraph of a docstring on one line, without its final full stop."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split()).rstrip(".")


def arxiv(text: str) -> str:
    """Links to the papers whose arXiv ids a text contains."""
    found = dict.fromkeys(ARXIV.findall(text))
    return ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in found)


def objectives() -> str:
    """Every objective: name in a recipe, class, definition, formula of its loss, source."""
    from hf_distill.objectives import OBJECTIVES

    rows = []
    for name, objective in OBJECTIVES.items():
        line = first_line(objective)
        loss = getattr(objective, "loss", None)
        formula = f"`{first_line(loss)}`" if loss is not None else ""
        source = arxiv(line) or arxiv(objective.citation)
        rows.append((f"`{name}`", f"`{objective.__name__}`", SOURCE.sub("", line), formula, source))
    return table(("in a recipe", "class", "definition", "formula of one item", "source"), rows)


def methods() -> str:
    """Published methods that are sums of several objectives."""
    from hf_distill.objectives import METHODS

    lines = {name: first_line(method) for name, method in METHODS.items()}
    rows = [(f"`{name}`", SOURCE.sub("", line), arxiv(line)) for name, line in lines.items()]
    return table(("function, name in a recipe", "definition", "source"), rows)


def tasks() -> str:
    """Every task: the auto class that loads it, items, meaning of the last dimension, layers."""
    from hf_distill.models.tasks import TASKS

    rows = [
        (
            f"`{name}`",
            f"`{task.auto_class}`" if task.auto_class else "",
            first_line(task.items),
            task.classes if task.read is not None else "no logits",
            ", ".join(f"`{key}`" for key in task.label_keys),
            ", ".join(f"`{group}`" for group in task.hidden),
        )
        for name, task in TASKS.items()
    ]
    header = ("task", "loaded by", "items", "last dimension", "label keys", "groups of layers")
    return table(header, rows)


def teachers() -> str:
    """The teachers that the top of the package exports."""
    import hf_distill
    from hf_distill import Teacher

    exported = (getattr(hf_distill, name) for name in hf_distill.__all__)
    kinds = [e for e in exported if hasattr(e, "columns") and hasattr(e, "place")]
    rows = [(f"`{kind.__name__}`", first_line(kind)) for kind in kinds if kind is not Teacher]
    return table(("class", "definition"), rows)


def packages() -> str:
    """The packages by rank, lowest first, as the architecture test has them."""
    import importlib

    from test_architecture import RANKS

    rows = []
    for rank, names in enumerate(RANKS):
        for name in filter(str.isalpha, names.split()):  # without __main__
            line = first_line(importlib.import_module(f"hf_distill.{name}"))
            rows.append((str(rank), f"`{name}`", line))
    return table(("rank", "package", "contents"), rows)


def perturbations() -> str:
    """Perturbations by modality and family; those of a report's default set in bold."""
    from hf_distill.robustness import CORE, PERTURBATIONS

    families: dict[tuple[str, str], list[str]] = {}
    for name, one in PERTURBATIONS.items():
        mark = "**" if name in CORE[one.modality] else ""
        families.setdefault((one.modality, one.family), []).append(f"{mark}`{name}`{mark}")
    rows = [(modality, kind, ", ".join(names)) for (modality, kind), names in families.items()]
    return table(("modality", "family", "names"), rows)


def cli() -> str:
    """Commands of ``hf-distill``: positional and required arguments, purpose."""
    from hf_distill.cli.parser import parser

    (commands,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    helps = {action.dest: action.help or "" for action in commands._choices_actions}
    rows = [(f"`{_usage(sub)}`", helps[name]) for name, sub in commands.choices.items()]
    return table(("command", "purpose"), rows)


def _usage(command: argparse.ArgumentParser) -> str:
    """The name of a command with the arguments that it needs."""
    needed = [a for a in command._actions if a.required]
    shown = [
        f"{a.option_strings[-1]} {a.metavar}"
        if a.option_strings
        else "|".join(a.choices)
        if a.choices
        else str(a.metavar or a.dest)
        for a in needed
    ]
    return " ".join([command.prog.partition(" ")[2], *shown])


def arguments(kind: type) -> dict[str, str]:
    """Field -> its text in the ``Args`` part of a docstring, also of base classes."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        part = re.search(r"\nArgs:\n(.*?)(?=\n\S|\Z)", inspect.getdoc(base) or "", re.DOTALL)
        entries = re.findall(
            r"^    (\w+): (.*?)(?=^    \w+: |\Z)", part[1] if part else "", re.M | re.S
        )
        found |= {name: " ".join(text.split()) for name, text in entries}
    return found


def fields_of(kind: type, prefix: str = "", without: Iterable[str] = ()) -> list[tuple[str, ...]]:
    """A row for each field of a dataclass: key, meaning, default."""
    texts, rows = arguments(kind), []
    for item in dataclasses.fields(kind):
        if not item.init or item.name in without:
            continue
        default: object = item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        required = default is dataclasses.MISSING
        empty = default in (None, "", [], {}, ()) or dataclasses.is_dataclass(default)
        word = "required" if required else "" if empty else f"`{str(default).lower()}`"
        text = texts[item.name].rstrip(".").replace("``", "`")
        rows.append((f"`{prefix}{item.name}`", text, word))
    return rows


def recipe_tasks() -> str:
    """Tasks of recipes: columns, labels, metrics, the class that loads the models."""
    from hf_distill.recipe.tasks import RECIPE_TASKS

    rows = [
        (
            f"`{name}`",
            ", ".join(f"`{key}`" for key in task.columns) or "see language models",
            f"`{task.loads.__name__}`",
            kind.replace("_", " ") if kind != "none" else "",
            ", ".join(f"`{metric}`" for metric in metrics),
        )
        for name, task in RECIPE_TASKS.items()
        for kind, metrics in task.metrics.items()
    ]
    return table(("task", "columns", "models", "labels", "metrics"), rows)


def recipe_keys() -> str:
    """Keys of a recipe with meaning and default; short sections are in the row of their key."""
    from hf_distill.recipe import data_section, sections
    from hf_distill.recipe.schema import Recipe

    long = {
        "data": data_section.Data,
        "teacher": sections.TeacherSection,
        "student": sections.StudentSection,
        "card": sections.CardSection,
    }
    short = {
        "data.masking": data_section.MaskingSection,
        "data.unlabelled": data_section.UnlabelledSection,
        "data.split": data_section.SplitSection,
        "data.noisy": data_section.NoiseSection,
        "teacher.columns": sections.ColumnsSection,
        "student.lora": sections.LoraSection,
        "baseline": sections.BaselineSection,
        "control": sections.ControlSection,
    }
    rows = fields_of(Recipe, without=("data", "teacher", "student", "card"))
    for name, kind in long.items():
        rows += fields_of(kind, f"{name}.")
    inner = {f"`{key}`": fields_of(kind) for key, kind in short.items()}
    rows = [
        (key, f"{text}; keys: {', '.join(_with_default(*row) for row in inner[key])}", default)
        if key in inner
        else (key, text, default)
        for key, text, default in rows
    ]
    return table(("key", "meaning", "default"), rows)


def _with_default(key: str, text: str, default: str) -> str:
    return f"{key} ({default})" if default.startswith("`") else key


def tune_keys() -> str:
    """Keys of a recipe's section `tune`."""
    from hf_distill.recipe.tune_section import TuneDataSection, TuneSection

    rows = [*fields_of(TuneSection), *fields_of(TuneDataSection, "data.")]
    return table(("key", "meaning", "default"), rows)


def cache_keys() -> str:
    """Keys of a recipe's section `teacher.cache`."""
    from hf_distill.recipe.sections import CacheSection

    return table(("key", "meaning", "default"), fields_of(CacheSection))


def api_keys() -> str:
    """Keys of a recipe's section `teacher.api`."""
    from hf_distill.recipe.sections import ApiSection

    return table(("key", "meaning", "default"), fields_of(ApiSection))


def robustness_keys() -> str:
    """Fields of `RobustnessConfig`, which are keys of a recipe's section `robustness`."""
    from hf_distill.recipe.sections import RobustnessSection

    return table(("field", "meaning", "default"), fields_of(RobustnessSection))


def forms() -> str:
    """Every form of predictions and references."""
    from hf_distill.evaluation.scoring import FORMS

    return table(("form", "predictions and references"), [(f"`{n}`", t) for n, t in FORMS.items()])


def metrics() -> str:
    """Every metric; of those of rankings, one row for all depths."""
    from hf_distill.evaluation.scoring import METRICS

    rows = [
        (
            f"`{re.sub('@.*', '@k', metric.name)}`",
            re.sub("@.*", "@k", metric.title),
            f"`{metric.form}`",
            "higher" if metric.higher_is_better else "lower",
            metric.library,
        )
        for metric in METRICS.values()
    ]
    header = ("name", "title", "form", "better", "library")
    return table(header, dict.fromkeys(rows))


TABLES: dict[str, Callable[[], str]] = {
    "packages": packages,
    "objectives": objectives,
    "methods": methods,
    "tasks": tasks,
    "teachers": teachers,
    "perturbations": perturbations,
    "cli": cli,
    "recipe_keys": recipe_keys,
    "recipe_tasks": recipe_tasks,
    "forms": forms,
    "metrics": metrics,
    "api_keys": api_keys,
    "cache_keys": cache_keys,
    "tune_keys": tune_keys,
    "robustness_keys": robustness_keys,
}
"""Name in a page -> the function that makes the table."""


def pages() -> list[Path]:
    """All Markdown pages that may hold a table."""
    return sorted({page for pattern in PAGES for page in ROOT.glob(pattern)})


def rewritten(text: str) -> str:
    """The page with its tables made anew.

    Raises:
        ValueError: a table that `TABLES` does not have, or a mark without its end.
    """
    opened, found = text.count("<!-- table:"), list(MARKED.finditer(text))
    unknown = {match[2] for match in found} - set(TABLES)
    if unknown or opened != len(found):
        raise ValueError(
            f"Expected <!-- table: NAME --> … <!-- end --> with a NAME of {sorted(TABLES)}, got "
            f"{sorted(unknown)} and {opened - len(found)} marks without an end."
        )
    return MARKED.sub(lambda match: match[1] + TABLES[match[2]]() + match[4], text)


def stale() -> dict[Path, str]:
    """The pages whose tables are out of date, with the text that they should have."""
    texts = {page: page.read_text(encoding="utf-8") for page in pages()}
    marked = {page: text for page, text in texts.items() if "<!-- table:" in text}
    made = {page: rewritten(text) for page, text in marked.items()}
    return {page: text for page, text in made.items() if text != marked[page]}


def main() -> int:
    """Rewrite the pages, or with ``--check`` name those that are out of date (exit code 1)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if out of date")
    check = parser.parse_args().check
    found = stale()
    for page, text in found.items():
        print(page.relative_to(ROOT))
        if not check:
            page.write_text(text, encoding="utf-8")
    return int(check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
