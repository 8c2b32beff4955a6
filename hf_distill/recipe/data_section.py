"""Section ``data`` of a recipe: source, columns and splits of the examples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from hf_distill.recipe.errors import RecipeError, refusing
from hf_distill.recipe.split_section import SplitSection
from hf_distill.robustness.perturbations import perturbation


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
