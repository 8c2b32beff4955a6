"""``hf-distill new``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from hf_distill.cli.base import EXIT_CODES, Parser, Say, UsageError

HELP = "write a first recipe for a task"
DESCRIPTION = "Write a commented recipe. What is not given is asked for, in a terminal."
EPILOG = f"""examples:
  hf-distill new recipe.yaml
  hf-distill new ner.yaml --task token_classification --teacher dslim/bert-base-NER --layers 6 \\
    --data train.jsonl --column tokens=words --column label=tags
  hf-distill new sst2.yaml --task text_classification --teacher google-bert/bert-base-uncased \\
    --student prajjwal1/bert-tiny --data stanfordnlp/sst2 --column text=sentence

{EXIT_CODES}"""


def add_arguments(command: Parser) -> None:
    """Add the arguments."""
    add = command.add_argument
    add("file", metavar="FILE", help="the recipe to write; it must not exist")
    add("--task", metavar="TASK", help="see recipes/tasks.md")
    add("--teacher", metavar="MODEL", help="Hub id or folder")
    add("--student", metavar="MODEL", help="Hub id or folder")
    add("--layers", type=int, metavar="N", help="in place of --student: layers of the teacher")
    add("--data", metavar="SOURCE", help="Hub id, file, pattern, or file.py:function")
    told = "name of a column: text=sentence, label=class, …"
    add("--column", action="append", default=[], metavar="KEY=NAME", help=told)
    add("--fine-tuned", action="store_true", help="the teacher was trained for the task already")


def run(args: argparse.Namespace, say: Say) -> int:
    """Write a recipe."""
    from hf_distill.recipe.errors import RecipeError

    file = Path(args.file)
    try:
        _write(file, args)
    except RecipeError as error:
        raise UsageError(str(error)) from error
    say(f"written: {file}")
    say(f"next: hf-distill train {file} --dry-run")
    return 0


def _write(file: Path, args: argparse.Namespace) -> None:
    from hf_distill.recipe.errors import RecipeError
    from hf_distill.recipe.loading import load_recipe
    from hf_distill.recipe.new_recipe import NewRecipe, columns_of
    from hf_distill.recipe.tasks import RECIPE_TASKS
    from hf_distill.utils.files import write_text

    if file.suffix not in (".yaml", ".yml"):
        raise UsageError(f"expected a file that ends with .yaml, got {file}")
    if file.exists():
        raise UsageError(f"{file} is there already: choose another name, or remove it")
    task = _given(args.task, "--task", f"Task ({', '.join(RECIPE_TASKS)})")
    if task not in RECIPE_TASKS:
        NewRecipe("x", task, "", "", layers=1)  # raises, with the nearest name
    teacher = _given(args.teacher, "--teacher", "Teacher (Hub id or folder)")
    student, layers = args.student, args.layers
    if student is None and layers is None:
        answer = _given(None, "--student or --layers", "Student (a model, or a number of layers)")
        student, layers = (None, int(answer)) if answer.isdigit() else (answer, None)
    data = _given(args.data, "--data", "Data (Hub id, file, or file.py:function)")
    columns = dict(_pair(text) for text in args.column)
    if not args.column and sys.stdin.isatty():
        for key in columns_of(RECIPE_TASKS[task]):
            if name := input(f"Column with the {key} (empty: the default, see recipes/keys.md): "):
                columns[key] = name
    recipe = NewRecipe(
        name=file.stem,
        task=task,
        teacher=_place(teacher, file.parent),
        student=None if student is None else _place(student, file.parent),
        layers=layers,
        data=_place(data, file.parent),
        columns=columns,
        fine_tuned=True if args.fine_tuned else None,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, recipe.text())
    try:
        load_recipe(file)
    except RecipeError:
        file.unlink()
        raise


def _given(value: str | None, flag: str, question: str) -> str:
    """A value of the command line, or an answer."""
    if value is not None:
        return value
    if not sys.stdin.isatty():
        raise UsageError(f"expected {flag}, got none, and there is no terminal to ask in")
    while not (answer := input(f"{question}: ").strip()):
        pass
    return answer


def _pair(text: str) -> tuple[str, str]:
    key, equals, name = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--column: expected KEY=NAME (text=sentence), got {text!r}")
    return key.removesuffix("_column"), name


def _place(source: str, folder: Path) -> Any:
    """A path relative to the recipe's folder, of what lies on this machine; else the source."""
    path, function, name = source.partition(".py:")
    local = Path(path + ".py" if function else path)
    if not local.exists() and not any(mark in path for mark in "*?["):
        return source
    relative = os.path.relpath(local, folder).replace(os.sep, "/")
    return f"./{relative}{f':{name}' if function else ''}".replace("./../", "../")
