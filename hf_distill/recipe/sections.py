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
from hf_distill.recipe.split_section import SplitSection
from hf_distill.recipe.yaml12 import to_yaml
from hf_distill.robustness.perturbations import perturbation
from hf_distill.robustness.plan import RobustnessConfig

Dtype = Literal["float32", "bfloat16", "float16"]


def path_of(text: str) -> Path:
    """The folder that a recipe names; ``~`` is the user's home."""
    return Path(os.path.expanduser(text))  # Path.expanduser raises where there is no such user


@dataclass(frozen=True)
class NoiseSection:
    """Perturbed versions of the training texts, for objectives with ``by: {name: columns}``.

    Args:
        perturbations: Names of text perturbations.
        severities: Severities to draw from.
        versions: Perturbed versions of each text.
        seed: Seed of the perturbations.
    """

    perturbations: list[str]
    severities: list[int] = field(default_factory=lambda: [1, 2, 3, 4])
    versions: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.perturbations or not self.severities or self.versions < 1:
            raise RecipeError(
                "`data.noisy`: expected at least one of `perturbations`, of `severities` and of "
                f"`versions`, got {self.perturbations}, {self.severities}, {self.versions}."
            )
        with refusing("`data.noisy.perturbations`", ValueError):
            for name in self.perturbations:
                perturbation(name, "text")


@dataclass(frozen=True)
class UnlabelledSection:
    """Examples without labels, from which the students learn the teacher's outputs.

    A student takes as many steps, and is evaluated as often, as without them.

    Args:
        source: As ``data.source``, with the same input columns; default: the training examples
            beyond ``data.max_train_examples``, whose labels are not read.
        config: Configuration of a Hub data set.
        revision: Revision of a Hub data set.
        arguments: Keyword arguments of the function.
        split: Its split.
        max_examples: Size of a random subset, the same for every seed.
        share: Share of the students' training examples that has no labels.
    """

    source: str | None = None
    config: str | None = None
    revision: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    split: str = "train"
    max_examples: int | None = None
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise RecipeError(
                "`data.unlabelled.share`: expected a share of the students' training examples "
                f"above 0 and below 1, got {self.share}. Of equally many of both it is 0.5."
            )


@dataclass(frozen=True)
class MaskingSection:
    """Masked tokens of ``masked_lm``: of 10, 8 become the mask, 1 a random token, 1 stays.

    Args:
        probability: Share of the tokens that are masked, or of the words.
        whole_word: True: all tokens of a word, which then become the mask.
        fixed: True: the masks of the training texts are drawn once; else at each reading, so that
            a resumed training has other masks than an uninterrupted one. Those of validation and
            test are always drawn once.
        seed: Seed of the masks that are drawn once.
    """

    probability: float = 0.15
    whole_word: bool = False
    fixed: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1:
            raise RecipeError(
                "`data.masking.probability`: expected a share above 0 and below 1, such as 0.15, "
                f"got {self.probability}."
            )


@dataclass(frozen=True)
class Data:
    """Source, columns and splits of the examples.

    Args:
        source: Data set of the Hub; ``file.py:function`` that returns a `DatasetDict`; or local
            files by path, folder or glob, of all splits or of each (``{train: a.csv, test:
            b.csv}``). Paths are relative to the recipe.
        config: Configuration of a Hub data set.
        revision: Revision of a Hub data set.
        arguments: Keyword arguments of the function.
        text_column: Column with the text.
        text_pair_column: Column with a second text.
        negatives_column: Of ``bi_encoder``: column with a list of texts that do not answer the
            query; default: the documents of the other queries of a batch alone.
        choices_column: Column with a list of texts: the choices of ``multiple_choice``, the
            candidates of ``reranker``.
        question_column: Of ``question_answering``: column with the question.
        context_column: Of ``question_answering``: column with the text that holds the answer.
        answers_column: Of ``question_answering``: column with the answers as in SQuAD, ``text`` and
            ``answer_start``; empty lists: no answer.
        stride: Of ``question_answering``: tokens that neighbouring windows of a long context share;
            default: a quarter of the maximum length.
        target_column: Of ``text_to_text``: column with the text that is to be generated.
        prefix: Of ``text_to_text``: text before every input, such as ``"summarize: "``.
        tokens_column: Column with the words of a text, a list.
        image_column: Column with the image.
        audio_column: Column with the sound.
        label_column: Column with the class, several classes, values, or a class for each word.
        problem: Meaning of the labels where the column has several: ``single_label``,
            ``multi_label`` or ``regression``.
        labels: Names of the classes in their order; whole numbers in the column count from 0 in it.
            Default: the names found.
        id_column: Column whose values must differ.
        split: Shares that are set aside for splits that the source lacks; local files have the
            default shares without it.
        skip_bad: True: leave examples out that have no label or text, a file that cannot be read,
            or the id of another one; else they are refused.
        train_split: Training split.
        validation_split: Validation split; None: 10 % of the training split.
        test_split: Test split; it is used by the final evaluation only.
        max_train_examples: Size of a random subset, the same for every seed.
        max_eval_examples: Size of a random subset of the validation split.
        max_test_examples: Size of a random subset of the test split.
        max_length: Tokens after which texts are cut; default: the tokenizer's.
        max_seconds: Seconds after which sounds are cut; default: they stay whole.
        max_target_length: Tokens after which targets are cut, and the longest generated text;
            default: 128.
        generation: Arguments of `GenerationConfig` by which texts are generated and measured
            (``num_beams: 4``); they are saved with the models. Default: greedy search.
        processor: Folder or Hub id of the tokenizer or image processor; for images also its
            settings, as in ``preprocessor_config.json``. Default: that of ``student.model`` if it
            differs from the teacher's, else the teacher's.
        unlabelled: Examples without labels, for the students that have a teacher.
        noisy: Perturbed versions of the training texts.
        masking: Masked tokens of ``masked_lm``.
        packing: Of ``causal_lm`` and ``masked_lm``: several texts in a sequence of ``max_length``
            tokens; ``first_fit`` keeps texts whole (``causal_lm``), ``wrapped`` fills every
            sequence. Default: one text per sequence.
        assistant_only: Of ``causal_lm``: learn only the assistant's turns of chats.
        completion_only: Of ``causal_lm``: learn only the completions of prompts.
        chat_template_kwargs: Of ``causal_lm``: further arguments of the chat template.
    """

    source: str | dict[str, str | list[str]]
    config: str | None = None
    revision: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    text_column: str = "text"
    text_pair_column: str | None = None
    negatives_column: str | None = None
    choices_column: str | None = None
    question_column: str = "question"
    context_column: str = "context"
    answers_column: str = "answers"
    stride: int | None = None
    target_column: str = "target"
    prefix: str = ""
    tokens_column: str = "tokens"
    image_column: str = "image"
    audio_column: str = "audio"
    label_column: str = "label"
    problem: Literal["single_label", "multi_label", "regression"] | None = None
    labels: list[str] | None = None
    id_column: str | None = None
    split: SplitSection | None = None
    skip_bad: bool = False
    train_split: str = "train"
    validation_split: str | None = "validation"
    test_split: str = "test"
    max_train_examples: int | None = None
    max_eval_examples: int | None = None
    max_test_examples: int | None = None
    max_length: int | None = None
    max_seconds: float | None = None
    max_target_length: int | None = None
    generation: dict[str, Any] = field(default_factory=dict)
    processor: str | dict[str, Any] | None = None
    unlabelled: UnlabelledSection | None = None
    noisy: NoiseSection | None = None
    masking: MaskingSection = field(default_factory=MaskingSection)
    packing: Literal["first_fit", "wrapped"] | None = None
    assistant_only: bool = True
    completion_only: bool = True
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)


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
