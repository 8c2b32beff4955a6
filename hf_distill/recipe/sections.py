"""Sections of a recipe; recipes/README.md is generated from their ``Args``."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hf_distill.hub.check import card_problems
from hf_distill.recipe.api_section import ApiSection
from hf_distill.recipe.columns_section import ColumnsSection
from hf_distill.recipe.errors import RecipeError, refusing, shown
from hf_distill.recipe.yaml12 import to_yaml
from hf_distill.robustness.plan import RobustnessConfig

Dtype = Literal["float32", "bfloat16", "float16"]


def path_of(text: str) -> Path:
    """The folder that a recipe names; ``~`` is the user's home."""
    return Path(os.path.expanduser(text))  # Path.expanduser raises where there is no such user


@dataclass(frozen=True)
class CacheSection:
    """Teacher outputs on disk.

    Args:
        format: ``full``: all logits; ``top_k``: the likeliest classes and the mass of the others;
            ``sampled``: draws from the teacher's distribution, unbiased, for ``forward_kl`` only.
        k: Classes of ``top_k``; default: 32.
        draws: Draws of ``sampled``; default: 12.
        dtype: Of full logits (default ``float32``), of the log-probabilities of ``top_k`` (not
            ``int8``), hidden states and attention maps (default ``float16``).
        hidden_states: Keep them too; ``{hidden: [-1]}`` for some layers. Default: what the
            objectives need.
        attentions: Keep attention maps too. Default: what the objectives need.
        path: Folder, relative to the working directory; default: ``OUTPUT_DIR/cache``.
    """

    format: Literal["full", "top_k", "sampled"] = "full"
    k: int | None = None
    draws: int | None = None
    dtype: Literal["float32", "float16", "bfloat16", "int8"] | None = None
    hidden_states: bool | dict[str, Any] | None = None
    attentions: bool | None = None
    path: str | None = None


@dataclass(frozen=True)
class LoraSection:
    """Low-rank adapter (Hu et al. 2021, arXiv 2106.09685).

    Args:
        r: Rank.
        lora_alpha: Scale.
        lora_dropout: Dropout probability.
        target_modules: Names of the adapted modules; default: PEFT's for the architecture.
    """

    r: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    target_modules: str | list[str] | None = None

    def __post_init__(self) -> None:
        if self.r < 1 or not 0 <= self.lora_dropout < 1:
            raise RecipeError(
                "`lora`: expected `r` of at least 1 and `lora_dropout` from 0 to below 1, got "
                f"{self.r} and {self.lora_dropout}."
            )


@dataclass(frozen=True)
class TeacherSection:
    """The teacher: one of ``model``, ``config``, ``api`` and ``columns``.

    Args:
        model: Hub id, folder (with a leading dot: relative to the recipe) or ``file.py:function``
            that returns one.
        revision: Branch, tag or commit of a Hub model; default: the main branch.
        config: A new model: ``model_type`` and fields of its config.
        api: A language model behind a chat endpoint, which labels the examples.
        columns: Outputs in columns of the data.
        processor: Its tokenizer or image processor, as ``data.processor``; default: that of
            ``model``. If it differs from the data's, the teacher reads the raw examples with it.
        inputs: Raw column that the teacher reads, or two; default: those of the data.
        prompt: Of ``causal_lm``: its longer prompt, a text (``"{document} {prompt}"``) or messages
            that precede those of the row, with columns of the data in braces.
        fine_tuned: True: the model is not trained.
        max_train_examples: Training examples of the teacher, including the student's; default: the
            student's.
        seeds: One teacher per seed; the students learn from their mean probabilities.
        cache: Keep the teacher's outputs on disk and train from there.
        objective: Objective without a teacher, in place of the labels alone, for example
            ``adversarial_training``.
        dtype: Of a teacher that is not trained; default: as saved.
        hub_id: Hub id for the card, if ``model`` is not one.
        license: Licence for the card, if it is not found on the Hub.
        training: Training arguments of the teacher.
    """

    model: str | None = None
    revision: str | None = None
    config: dict[str, Any] | None = None
    api: ApiSection | None = None
    columns: ColumnsSection | None = None
    processor: str | dict[str, Any] | None = None
    inputs: str | list[str] | None = None
    prompt: str | list[dict[str, str]] | None = None
    fine_tuned: bool = False
    max_train_examples: int | None = None
    seeds: list[int] | None = None
    cache: CacheSection | None = None
    objective: list[dict[str, Any]] | None = None
    dtype: Dtype | None = None
    hub_id: str | None = None
    license: str | None = None
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kind = next((key for key in ("api", "columns") if getattr(self, key) is not None), None)
        if kind is not None:
            object.__setattr__(self, "fine_tuned", True)
            models_alone = ("cache", "objective", "dtype", "training", "processor", "inputs")
            for key in (*models_alone, "prompt"):
                if getattr(self, key):
                    raise RecipeError(
                        f"`teacher.{key}` is for teachers that are models, and `teacher.{kind}` is "
                        "none. Take one of them away."
                    )
        if isinstance(self.inputs, list) and len(self.inputs) not in (1, 2):
            raise RecipeError(
                f"`teacher.inputs`: expected one column, or two, got {shown(self.inputs)}."
            )

    @property
    def is_model(self) -> bool:
        """True if it is a model that is run here."""
        return self.api is None and self.columns is None

    @property
    def raw_columns(self) -> list[str]:
        """The raw columns named in ``inputs``."""
        return [self.inputs] if isinstance(self.inputs, str) else list(self.inputs or ())


@dataclass(frozen=True)
class StudentSection:
    """A student: one of ``from_teacher_layers``, ``model`` and ``config``.

    Args:
        from_teacher_layers: Layers of the teacher before fine-tuning, with a new head: indices
            (``[0, 3, 5]``), a number (evenly spaced, first and last included), ``first:3`` or
            ``last:3``; of a ResNet the blocks of each stage; of an encoder-decoder those of its
            decoder, or by stack (``{encoder: 3, decoder: 2}``); a stack that is not named is kept.
        hidden_size: Width of these layers, in whole attention heads.
        importance: Number of training examples on which the importance of layers, channels and
            heads is measured; the most important ones are kept.
        model: Another model, by Hub id, folder or ``file.py:function``.
        revision: Branch, tag or commit of ``model``.
        layers: The layers of ``model`` that are kept, as in ``from_teacher_layers``.
        static: Of ``bi_encoder``: a static student, one vector for each token, of this width, made
            of the teacher before its fine-tuning.
        config: A new model: ``model_type`` and fields of its config.
        dropout: Dropout probability, everywhere the model has one.
        dtype: Dtype of the trained weights; ``training.bf16`` computes in bfloat16 in any case.
        lora: Of ``causal_lm``: train an adapter of student and baseline; it is merged before
            publishing.
        hub_id: Hub id for the card, if ``model`` is not one.
        training: Training arguments of this model.
    """

    from_teacher_layers: int | str | list[int] | dict[str, Any] | None = None
    hidden_size: int | None = None
    importance: int | None = None
    model: str | None = None
    revision: str | None = None
    layers: int | str | list[int] | dict[str, Any] | None = None
    static: int | None = None
    config: dict[str, Any] | None = None
    dropout: float | None = None
    dtype: Dtype = "float32"
    lora: LoraSection | None = None
    hub_id: str | None = None
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AssistantSection(StudentSection):
    """A model between teacher and student, with the keys of `StudentSection`.

    Args:
        objective: Its objective; default: the recipe's.
    """

    objective: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class BaselineSection:
    """Student without a teacher, trained on the labels alone.

    Args:
        training: Training arguments of the baseline.
    """

    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ControlSection:
    """The baseline trained on the same noise or attack as the student.

    Args:
        objective: Objective without a teacher.
        training: Training arguments of the control.
    """

    objective: list[dict[str, Any]]
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RobustnessSection(RobustnessConfig):
    """Settings of the robustness report, with test sets and requirements.

    Args:
        shifted: Test sets of other origins: name -> a source, like ``data.source``.
        require: Requirements such as ``noise>=0``; the run fails if one is not met.
    """

    shifted: dict[str, str] = field(default_factory=dict)
    require: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        with refusing("`robustness`", ValueError):
            super().__post_init__()
        for name, source in self.shifted.items():
            if not isinstance(source, str):
                raise RecipeError(
                    f"`robustness.shifted.{name}`: expected a data set of the Hub or "
                    f"file.py:function, got {source!r}."
                )


@dataclass(frozen=True)
class CardSection:
    """Facts for the model card that cannot be derived from the run.

    Args:
        license: Licence of the student; default: the teacher's, for a student made of its layers.
        language: Language code, or several.
        limitations: Sentences for the card.
        eval_results: True: write ``.eval_results/*.yaml`` as well, for data sets of the Hub.
    """

    license: str | None = None
    language: str | list[str] | None = None
    limitations: list[str] = field(default_factory=list)
    eval_results: bool = False

    def __post_init__(self) -> None:
        stated = {key: value for key in ("license", "language") if (value := getattr(self, key))}
        if problems := card_problems(f"---\n{to_yaml(stated)}---\n"):
            raise RecipeError(f"`card`: {'; '.join(problems)}")
