"""The folder of the finished student: weights, processor, card, report, picture and recipe."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_distill.hub.card import StudentCard
from hf_distill.hub.card import write as write_card
from hf_distill.hub.inherit import local_card
from hf_distill.hub.leaks import scrub
from hf_distill.hub.values import inherited
from hf_distill.recipe import claims, kept, labelling, resolve
from hf_distill.recipe.examples import RecipeExamples
from hf_distill.recipe.report import NAMES, SIZES, between, name_of, show, verdict
from hf_distill.recipe.robustness import ROBUSTNESS, on_card
from hf_distill.recipe.schema import Recipe
from hf_distill.recipe.stages import RECORD, remove
from hf_distill.recipe.tasks import RecipeTask
from hf_distill.recipe.teacher_inputs import TeacherInputs
from hf_distill.training.config import DistillationConfig
from hf_distill.training.model_card import PIPELINES
from hf_distill.training.run_facts import ALWAYS, describe_processor, exports_of, is_on_card, plain
from hf_distill.utils.files import write_json, write_text


def publish(
    recipe: Recipe,
    task: RecipeTask,
    examples: RecipeExamples,
    facts: Mapping[str, Any],
    root: Path,
    more: Mapping[str, Any],
) -> Path:
    """Put the published student together, all of it or nothing, in the folder ``final``.

    ``facts`` is the report; ``more`` holds ``measured``, ``measured_on`` and ``samples`` of
    `StudentCard`, ``processor``, ``own`` (the `TeacherInputs`, or None), and ``teacher``, the
    folder or Hub id of its weights.
    """
    final, staging, old = root / kept.FINAL, root / kept.STAGED, root / kept.REPLACED
    kept.check_places(root, recipe.file)
    if old.exists() and not final.exists():  # a kill came between the renames below
        old.replace(final)
    if staging.exists():
        remove(staging)
    staging.mkdir()
    write_json(staging / RECORD, {})  # the sign that we made it, if a kill leaves it there
    model = root / f"student/seed-{facts['published_seed']}" / "model"
    shutil.copytree(model, staging, symlinks=True, dirs_exist_ok=True)
    if (final / "README.md").is_file():  # what a person wrote into the card is kept
        shutil.copy2(final / "README.md", staging / "README.md")
    pictures = on_card(facts[ROBUSTNESS])["plots"] if ROBUSTNESS in facts else []
    for name in (kept.REPORT, "curves.png", *pictures):
        shutil.copy2(root / name, staging / name)
    resolved = scrub(recipe.to_yaml())
    write_text(staging / kept.RECIPE, resolved)
    if not kept.is_file_of(root / kept.RECIPE, recipe.file):
        write_text(root / kept.RECIPE, recipe.to_yaml())
    card = student_card(recipe, task, examples, facts, resolved)
    log = claims.training_log(facts, root)
    card.components, card.history = log["components"], log["history"]
    card.training["effective batch size"] *= log["processes"]
    card.measured, card.measured_on = dict(more["measured"]), dict(more["measured_on"])
    card.samples = list(more["samples"])
    card.preprocessing = describe_processor(more["processor"])
    if recipe.data.max_length is not None:
        card.preprocessing["max_length"] = recipe.data.max_length
    card.exports = _exports(final, staging)
    if told := _inputs(recipe, more):
        card.teacher["inputs"] = told
    quote = local_card(more["teacher"]).get("quote")
    card.teacher |= {"quote": quote} if quote else {}
    write_json(root / "card.json", vars(card))
    write_card(card, staging, eval_results=recipe.card.eval_results)
    kept.keep_additions(final, staging)
    (staging / RECORD).unlink()
    if old.exists():
        remove(old)
    if final.exists():
        final.replace(old)
    staging.replace(final)
    if old.exists():
        remove(old)
    return final


def student_card(
    recipe: Recipe,
    task: RecipeTask,
    examples: RecipeExamples,
    facts: Mapping[str, Any],
    resolved: str,
) -> StudentCard:
    """Metadata of the card, from this run and the cards of its sources."""
    teacher, base = _origins(recipe)
    data = _data(recipe, examples, facts)
    how = []
    if not recipe.teacher.fine_tuned:
        how.append(f"{'fine-tuned' if recipe.teacher.model else 'trained'} on {data['name']}")
    models, robust = facts["models"], facts.get(ROBUSTNESS)
    if "members" in models["teacher"]:
        how.append(f"with {models['teacher']['members']} seeds, their mean")
    return StudentCard(
        model_name=recipe.hub_model_id or recipe.name,
        task=task.tag or PIPELINES[task.task.name],
        library_name=task.library,
        license=recipe.card.license or inherited(base["license"]),
        language=recipe.card.language,
        base_model=base["name"],
        base_model_license=base["license"],
        teacher={
            "name": teacher["name"],
            "how": ", ".join(how),
            "license": teacher["license"],
            **_size(models["teacher"]),
            **_outputs(recipe),
        },
        student={
            **_size(models["student"]),
            "labels": examples.names if len(examples.names) <= 20 else [],
            "initialised": _beginning(recipe),
        },
        objective=list(facts["objective"]),
        formula=facts["formula"],
        data=data,
        results={
            role: {k: v for k, v in models[role]["test"].items() if not k.startswith("retention_")}
            for role in NAMES
            if role in models
        },
        claim=claims.claim(facts),
        test_examples=facts["examples"]["test"],
        seeds=len(facts["student_seeds"]),
        training=_training(recipe, facts),
        environment=dict(facts["environment"]),
        reproduce={"command": _command(recipe), "recipe": resolved},
        limitations=_limitations(recipe, examples, facts),
        plots=["curves.png"],
        robustness={**on_card(robust), "rows": claims.robustness_rows(robust)} if robust else {},
    )


def _origins(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """Name and licence of the teacher, and of the student's initial model."""
    folder, section = recipe.file.parent, recipe.teacher
    known = resolve.facts(section.model or "", folder, "teacher.model")
    if section.api is not None:
        name = section.hub_id or section.api.endpoint().describe()["model"]
    elif section.columns is not None:
        name = section.hub_id or section.columns.name or "columns of the data"
    elif section.model is None:
        name = str((section.config or {})["model_type"])
    else:
        name = section.hub_id or known.get("hub_id") or section.model
    teacher = {"name": name, "license": section.license or known.get("license")}
    student = recipe.student
    if student.from_teacher_layers is not None or student.static is not None:
        return teacher, {**teacher, "name": name if section.model is not None else None}
    known = resolve.facts(student.model or "", folder, "student.model")
    base = student.hub_id or known.get("hub_id") or student.model
    return teacher, {"name": base, "license": known.get("license")}


def _exports(final: Path, staging: Path) -> list[dict[str, Any]]:
    """Keep earlier exports of the same weights."""
    if (final / kept.EXPORTS).is_dir():
        shutil.copytree(final / kept.EXPORTS, staging / kept.EXPORTS, symlinks=True)
        if rows := exports_of(staging):
            return rows
        shutil.rmtree(staging / kept.EXPORTS)
    return []


def _outputs(recipe: Recipe) -> dict[str, Any]:
    """Source of the teacher's outputs."""
    if recipe.teacher.api is not None:
        provider = recipe.teacher.api.endpoint().describe()["provider"]
        return {"outputs": f"obtained from the chat endpoint of {provider}"}
    if recipe.teacher.columns is not None:
        return {"outputs": str(recipe.teacher.columns)}
    if recipe.teacher.cache is None:
        return {"outputs": "computed in every step"}
    settings = vars(recipe.teacher.cache).items()
    return {"cache": {k: v for k, v in settings if v is not None and k != "path"}}


def _inputs(recipe: Recipe, more: Mapping[str, Any]) -> str | None:
    """Inputs of the teacher that are not the student's."""
    own: TeacherInputs | None = more["own"]
    if own is None or own.processor is None:
        return None
    columns = " and ".join(own.columns)
    if own.prompt is not None:
        return f"it read a prompt of its own, made of {columns}"
    ours, theirs = (_processor(one) for one in (more["processor"], own.processor))
    return f"it read the column {columns} by {theirs}, the student by {ours}"


def _processor(processor: Any) -> str:
    """A tokenizer with its vocabulary, an image processor with its size and means."""
    found, name = describe_processor(processor), type(processor).__name__
    if hasattr(processor, "get_vocab"):
        return f"{name} ({len(processor.get_vocab()):,} tokens)"
    parts = [f"{' x '.join(map(str, found['image_size']))} pixels"] if "image_size" in found else []
    for key in ("image_mean", "image_std"):
        if key in found:
            parts.append(f"{key[6:]} {'/'.join(f'{value:g}' for value in found[key])}")
    return f"{name} ({', '.join(parts)})" if parts else name


def _beginning(recipe: Recipe) -> str | None:
    """Initialisation of the student, as the end of a sentence."""
    student = recipe.student
    adapter = "" if student.lora is None else f"; a LoRA adapter of rank {student.lora.r} on it"
    if student.static is not None:
        return f"{student.static} principal components of the teacher's vector of each token alone"
    if student.from_teacher_layers is None:
        given = student.hub_id or student.model
        began = given if student.config is None else "a new model with random weights"
        if student.layers is not None:
            known = resolve.facts(student.model or "", recipe.file.parent, "student.model")
            began = f"{_layers(student.layers)} of {known.get('hub_id') or began}"
        told = adapter or student.config is not None or student.layers is not None
        return f"{began}{adapter}" if told else None
    layers = student.from_teacher_layers
    which = _layers(layers)
    if student.importance is not None and isinstance(layers, int):
        on = f"measured on {student.importance} training examples"
        which = f"the {layers} layers that matter most ({on})"
    width = "" if student.hidden_size is None else f", cut to a width of {student.hidden_size}"
    trained = "" if recipe.teacher.fine_tuned else " before its fine-tuning"
    return f"{which} of the teacher{trained}{width}{adapter}"


def _layers(layers: int | str | list[int] | dict[str, Any]) -> str:
    if isinstance(layers, dict):
        return " and ".join(f"{_layers(kept)} of the {stack}" for stack, kept in layers.items())
    return f"layers {', '.join(map(str, layers)) if isinstance(layers, list) else layers}"


def _data(recipe: Recipe, examples: RecipeExamples, facts: Mapping[str, Any]) -> dict[str, Any]:
    known, data = examples.facts, recipe.data
    function = str(data.source).rpartition(":")[2]
    return {
        "name": known.get("hub_id") or known.get("name") or function.replace("_", " "),
        "config": data.config,
        "revision": data.revision,
        "license": known.get("license"),
        "splits": dict(facts["examples"]),
        "test_split": data.test_split,
        "labels_used": any(row["name"] == "hard_labels" for row in facts["objective"]),
    }


def _size(model: Mapping[str, Any]) -> dict[str, Any]:
    return {key: model[key] for key in SIZES if model[key] is not None}


def _training(recipe: Recipe, facts: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {f.name: f.default for f in dataclasses.fields(DistillationConfig)}
    given = {name: plain(defaults[name]) for name in ALWAYS} | recipe.training_of("student")
    own = {key: plain(value) for key, value in given.items() if is_on_card(key, value)}
    model, seed = facts["models"]["student"], facts["published_seed"]
    batch = given["per_device_train_batch_size"]
    rows: dict[str, Any] = {
        **own,
        "effective batch size": batch * given.get("gradient_accumulation_steps", 1),
        "optimizer steps": model["train_steps"],
        "training seconds": show(model.get("train_seconds"), 0),
        "seed of these weights": seed,
    }
    if len(facts["student_seeds"]) > 1:
        metric = facts["metric"]
        value = facts["runs"][f"student/seed-{seed}"]["test"][metric]
        rows["seed of these weights"] = (
            f"{seed}, the best of {facts['student_seeds']} on the validation split; "
            f"its own test {metric} is {value:.4f}"
        )
    for role in between(facts):
        model, metric = facts["models"][role], facts["metric"]
        rows[name_of(role, model)] = (
            f"{model['parameters']:,} parameters, test {metric} {show(model['test'][metric])}, "
            f"agreement with the teacher {show(model['test'].get('agreement'))}, trained for "
            f"{show(model['train_seconds'], 0)} s"
        )
    return rows


def _limitations(recipe: Recipe, examples: RecipeExamples, facts: Mapping[str, Any]) -> list[str]:
    about = examples.facts.get("description")
    biases = "The student learned from its teacher's outputs, mistakes and biases included."
    return [
        *recipe.card.limitations,
        *facts["notes"],
        *examples.findings.limitations,
        *(labelling.sentences(facts[labelling.ANNOTATIONS]) if recipe.teacher.api else []),
        *([] if about is None else [f"All figures are for one data set: {about}"]),
        f"{biases} {verdict(facts)}",
    ]


def _command(recipe: Recipe) -> str:
    """Command of this run, without a path of this machine."""
    file, here = recipe.file.resolve(), Path.cwd()
    known = file.is_relative_to(here)
    shown = file.relative_to(here).as_posix() if known else recipe.file.name
    given = [
        f"--{key} {shlex.quote(value)}" for key, value in recipe.overrides if key != "output_dir"
    ]
    return " \\\n  ".join([f"hf-distill train {shown}", *given])
