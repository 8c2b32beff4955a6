"""Task table: how each kind of head is fed, counted and read.

Item masks, labels and counts are read from the batch before any model runs, so that a whole
accumulation window can be counted first. Logits are brought to one form, ``(..., C)`` with the
classes last, so that every objective works with every head.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.utils import ModelOutput

from hf_distill.models import batches, outputs
from hf_distill.models.batches import Batch
from hf_distill.models.embedding import SentenceModel, StaticModel
from hf_distill.models.modules import config_of, held, unwrapped
from hf_distill.models.signals import BatchItems

HIDDEN = {"hidden": "hidden_states"}
ENCODER_DECODER = {"encoder": "encoder_hidden_states", "decoder": "decoder_hidden_states"}
PLACEHOLDERS = (
    *("image_token_id", "image_token_index", "video_token_id"),
    *("audio_token_id", "audio_token_index"),
)
"""Config fields with the placeholder tokens of images and audio."""


@dataclass(frozen=True)
class Task:
    """Definition of one kind of head: inputs, items, logits, layers.

    Attributes:
        name: The task's name, as in ``TASKS``.
        auto_class: The `transformers` auto class that loads such a model.
        mapping: The part of `transformers`' ``MODEL_FOR_…_MAPPING_NAMES`` that lists its classes.
        items: ``(batch, model, rows) -> Items``; rows are the counted examples.
        read: ``(outputs, batch) -> (..., C)``, or None where there are no logits.
        predictions: the inverse of ``read``, for `compute_metrics`.
        kind: form of the logits; None: decided by the model's ``problem_type``.
        classes: meaning of the last dimension: the config's ``labels``, its ``vocabulary``, or
            ``positions`` (nothing to align between two models).
        hidden: hidden-state group -> path in the outputs.
        attentions: attention group -> path in the outputs.
        label_keys: the batch keys that hold labels; they are never fed to a model.
        share: adds inputs that both models must have in common.
        axis: which dimension of the items is the batch; None where the items are pairs of examples.
        label_read: as ``read``, for the logits of the label loss, if they differ.
        fields: the names of the outputs that it reads; tuples and tensors are read as these, in
            this order.
        heads: of a model with several heads these, by name: models without their encoder.
    """

    name: str
    auto_class: str
    mapping: str
    items: Callable[[Batch, nn.Module, Tensor], BatchItems]
    read: Callable[[Any, Batch], Tensor] | None = outputs.plain
    predictions: Callable[[Tensor, Batch], tuple[Tensor, ...]] = outputs.as_is
    kind: str | None = "softmax"
    classes: str = "labels"
    hidden: Mapping[str, str] = field(default_factory=lambda: HIDDEN)
    attentions: Mapping[str, str] = field(default_factory=lambda: {"hidden": "attentions"})
    label_keys: tuple[str, ...] = ("labels",)
    share: Callable[[Batch, PreTrainedModel], Batch] = batches.same
    axis: int | None = 0
    label_read: Callable[[Any, Batch], Tensor] | None = None
    fields: tuple[str, ...] = ("logits",)
    heads: Mapping[str, nn.Module] = field(default_factory=dict)


def _seq2seq(name: str, auto_class: str = "", mapping: str = "") -> Task:
    return Task(
        name,
        auto_class,
        mapping,
        batches.decoder_tokens,
        classes="vocabulary",
        hidden=ENCODER_DECODER,
        attentions={"encoder": "encoder_attentions", "decoder": "decoder_attentions"},
        share=batches.decoder_inputs,
    )


UNSHIFTED = {
    *("BartForCausalLM", "BigBirdPegasusForCausalLM", "BlenderbotForCausalLM"),
    *("BlenderbotSmallForCausalLM", "CpmAntForCausalLM", "MBartForCausalLM", "MarianForCausalLM"),
    *("MvpForCausalLM", "PLBartForCausalLM", "PegasusForCausalLM", "TrOCRForCausalLM"),
    *("WhisperForCausalLM", "XLNetLMHeadModel"),
}
"""Causal classes whose own loss does not shift the labels: their data contain shifted labels."""


def shifts_labels(model: nn.Module) -> bool:
    """True if a causal language model's own loss shifts the labels."""
    return not {cls.__name__ for cls in type(model).__mro__} & UNSHIFTED


def _language_tokens(batch: Batch, model: nn.Module, rows: Tensor) -> BatchItems:
    read = batches.next_tokens if shifts_labels(model) else batches.aligned_tokens
    return read(batch, model, rows)


def _dual(other: str, mapping: str = "", sigmoid: bool = False) -> Task:
    """Dual encoder of texts and another modality: one softmax each way, or a binary label per
    pair."""
    tower = "vision" if other == "image" else other
    return Task(
        ("sigmoid_" if sigmoid else "" if other == "image" else f"{other}_") + "dual_encoder",
        "AutoModelForZeroShotImageClassification" if other == "image" else "AutoModel",
        mapping,
        batches.matches if sigmoid else batches.pairs,
        outputs.text_similarities if sigmoid else outputs.similarities,
        outputs.both_ways if sigmoid else outputs.unstacked,
        kind="sigmoid" if sigmoid else "softmax",
        classes="positions",
        hidden={
            "text": "text_model_output.hidden_states",
            tower: f"{tower}_model_output.hidden_states",
            "text_embedding": "text_embeds",
            f"{other}_embedding": f"{other}_embeds",
        },
        attentions={n: f"{n}_model_output.attentions" for n in ("text", tower)},
        label_keys=("return_loss",),
        axis=None,
        fields=(f"logits_per_{other}", "logits_per_text"),
    )


def _next_words(batch: Batch, model: nn.Module, rows: Tensor) -> BatchItems:
    """`next_tokens`, without placeholder tokens of images and audio where there are no labels."""
    config: Any = config_of(model)
    items = batches.next_tokens(batch, model, rows)
    if items.labels is not None or "input_ids" not in batch:
        return items
    found = (getattr(config, name, None) for name in PLACEHOLDERS)
    places = [token for token in found if token is not None]
    following = batch["input_ids"].roll(-1, 1)
    words = ~torch.isin(following, following.new_tensor(places))
    return dataclasses.replace(items, masks={**items.masks, "items": items.masks["items"] & words})


def _beside_text(what: str, auto_class: str = "", mapping: str = "") -> Task:
    """Decoder that reads images (or audio) and text as one sequence."""
    return Task(
        f"{what}_text_to_text",
        auto_class,
        mapping,
        _next_words,
        classes="vocabulary",
        label_keys=("labels", "shift_labels"),
    )


def _classifier(what: str) -> Task:
    name = f"{what}_classification"
    auto_class = f"AutoModelFor{what.title()}Classification"
    return Task(name, auto_class, name.upper(), batches.samples, kind=None)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _classifier("sequence"),
        _classifier("image"),
        _classifier("audio"),
        _classifier("video"),
        Task(
            "token_classification",
            "AutoModelForTokenClassification",
            "TOKEN_CLASSIFICATION",
            batches.tokens,
        ),
        Task(
            "question_answering",
            "AutoModelForQuestionAnswering",
            "QUESTION_ANSWERING",
            batches.spans,
            outputs.start_end,
            outputs.unstacked,
            classes="positions",
            label_keys=("start_positions", "end_positions"),
            axis=1,
            label_read=outputs.spans_over_padding,
            fields=("start_logits", "end_logits"),
        ),
        Task(
            "multiple_choice",
            "AutoModelForMultipleChoice",
            "MULTIPLE_CHOICE",
            batches.choices,
            classes="positions",
        ),
        _seq2seq("seq2seq_lm", "AutoModelForSeq2SeqLM", "SEQ_TO_SEQ_CAUSAL_LM"),
        _seq2seq("speech_seq2seq", "AutoModelForSpeechSeq2Seq", "SPEECH_SEQ_2_SEQ"),
        _seq2seq("image_seq2seq"),
        Task(
            "causal_lm",
            "AutoModelForCausalLM",
            "CAUSAL_LM",
            _language_tokens,
            classes="vocabulary",
            label_keys=("labels", "shift_labels"),
        ),
        _beside_text("image", "AutoModelForImageTextToText", "IMAGE_TEXT_TO_TEXT"),
        _beside_text("audio"),
        Task(
            "masked_lm",
            "AutoModelForMaskedLM",
            "MASKED_LM",
            batches.masked_tokens,
            classes="vocabulary",
        ),
        Task(
            "semantic_segmentation",
            "AutoModelForSemanticSegmentation",
            "SEMANTIC_SEGMENTATION",
            batches.pixels,
            outputs.at_pixels,
            outputs.channels_first,
        ),
        Task("ctc", "AutoModelForCTC", "CTC", batches.frames, kind="ctc", classes="vocabulary"),
        _dual("image", "ZERO_SHOT_IMAGE_CLASSIFICATION"),
        _dual("image", sigmoid=True),
        dataclasses.replace(
            _dual("audio"), read=outputs.sound_similarities, label_read=outputs.sound_captions
        ),
        _dual("video"),
        Task(
            "bi_encoder",
            "",
            "",
            batches.candidates,
            classes="positions",
            hidden={"query": "query_embedding", "candidates": "candidate_embedding"},
            attentions={},
            label_read=outputs.in_batch,
        ),
        Task(
            "encoder",
            "AutoModel",
            "",
            batches.no_items,
            None,
            kind="none",
            hidden={**HIDDEN, "embedding": "last_hidden_state"},
            share=batches.same_noise,
            fields=("last_hidden_state",),
        ),
        Task(
            "other",
            "",
            "",
            batches.own_labels,
            None,
            kind="none",
            hidden={},
            attentions={},
            share=batches.same_noise,
        ),
    )
}
"""Task name -> `Task`."""

CUSTOM_TASKS: dict[str, str | Task | Callable[[Any], Task]] = {
    "XLMWithLMHeadModel": "masked_lm",  # its loss never shifts labels
    "BiEncoder": "bi_encoder",
    "VisionTextDualEncoderModel": "dual_encoder",
    "VitsModel": "other",  # speech synthesis
    "DecisionTransformerModel": "other",  # actions
    "SiglipModel": "sigmoid_dual_encoder",
    "Siglip2Model": "sigmoid_dual_encoder",
    "ClapModel": "audio_dual_encoder",
    "XCLIPModel": "video_dual_encoder",
    "VideoPrismClipModel": "video_dual_encoder",
}
for _kind, _layers in ((SentenceModel, HIDDEN), (StaticModel, {})):
    CUSTOM_TASKS[_kind.__name__] = dataclasses.replace(
        TASKS["encoder"],
        hidden={**_layers, "embedding": "sentence_embedding"},
        fields=("sentence_embedding",),
    )
"""Model class name -> task, for classes that transformers' auto mappings do not list; filled by
`register_task`."""


def register_task(model: type[nn.Module] | str, task: str | Task) -> None:
    """Register the task of a class of models.

    Args:
        model: The class, or its name.
        task: The name of a task in `TASKS`, or a `Task`.

    Raises:
        ValueError: not a class or its name, or an unknown task.
    """
    name = model if isinstance(model, str) else getattr(model, "__name__", "")
    if not name.isidentifier() or isinstance(model, nn.Module):
        raise ValueError(
            f"Expected the class of a model or its name, got {model!r}. Of a model: type(model)."
        )
    CUSTOM_TASKS[name] = task if isinstance(task, Task) else named_task(task)
    if isinstance(task, Task):
        TASKS.setdefault(task.name, task)  # caches refer to it by name


def named_task(name: str) -> Task:
    """Return the task with this name.

    Raises:
        ValueError: there is none.
    """
    if name not in TASKS:
        raise ValueError(f"Expected one of the tasks {sorted(TASKS)}, got {name!r}.")
    return TASKS[name]


def inner_model(model: nn.Module) -> nn.Module:
    """The model whose config and layers are read: inside wrappers that pass everything on, and
    inside custom modules without own weights and task."""
    model = unwrapped(model)
    inner = None if _registered(model) else held(model)
    row = None if inner is None else _row(inner)
    return model if inner is None or row is None or row.read is None else inner


def task_of(model: nn.Module) -> Task:
    """Find the task of a model by the names of its class and its bases.

    A transformers model without a task is ``other``: only its own loss and its hidden states are
    used.

    Raises:
        ValueError: no task is registered; the message lists the model's output fields and the
            remedy.
    """
    row = _row(model)
    if row is not None:
        return row
    if isinstance(model, PreTrainedModel):
        return TASKS["other"]
    raise ValueError(unknown_head(model))


def unknown_head(model: nn.Module) -> str:
    """Describe a model whose logits cannot be read."""
    name, keys = type(model).__name__, output_fields(model)
    parts = (p for p, m in model.named_modules() if p and isinstance(m, PreTrainedModel))
    inner = None if isinstance(model, PreTrainedModel) else next(parts, None)
    inside = f" If it only passes its inputs on to `.{inner}`, pass that model." if inner else ""
    own = " Or learn its own loss and the teacher's hidden states: "
    own += "objective=0.5 * ModelLoss() + 0.5 * HiddenStates()."
    own = own if isinstance(model, PreTrainedModel) else ""
    return (
        f"Expected a model with one of the heads {sorted(set(TASKS) - {'other'})}, got {name}, "
        f"whose outputs are {keys or 'not declared'}. Say how it is read: "
        f"`hf_distill.register_task({name!r}, '<one of these heads>')`, or with a "
        f"`hf_distill.models.tasks.Task` of your own.{inside}{own}"
    )


def has_task(model: nn.Module) -> bool:
    """True if a model, or the one inside it, has a task."""
    return _row(inner_model(model)) is not None


def _registered(model: nn.Module) -> bool:
    return any(cls.__name__ in CUSTOM_TASKS for cls in type(model).__mro__)


def _row(model: nn.Module) -> Task | None:
    """Task of a model's class, restricted to the outputs that the class declares."""
    declared = _declared(model)
    for name in (cls.__name__ for cls in type(model).__mro__):
        registered = CUSTOM_TASKS.get(name)
        if registered is not None:
            if callable(registered):
                return registered(model)
            row = registered if isinstance(registered, Task) else named_task(registered)
            return _grouped(row, next((own for own in declared if _fits(row, own)), ()))
        found = _by_stacks(_row_by_name(name), model)
        if found is not None and not declared:
            return found
        for own in declared:
            if found is not None and _fits(found, own):
                return _grouped(found, own)
    return None


def _fits(row: Task, declared: Sequence[str]) -> bool:
    if row.read is not None:
        return set(row.fields) <= set(declared)
    return any(path in declared for path in (*row.hidden.values(), *ENCODER_DECODER.values()))


def _row_by_name(name: str) -> Task | None:
    for task in TASKS.values():
        if task.mapping and name in _class_names(task.mapping):
            return task
    for task in TASKS.values():
        ending = task.auto_class.removeprefix("AutoModel")
        if ending and name.endswith(ending):
            return task
    return TASKS["encoder"] if name in modeling_auto.MODEL_MAPPING_NAMES.values() else None


def _by_stacks(row: Task | None, model: nn.Module) -> Task | None:
    """Task by the config's stacks: the auto mappings list audio language models, which read audio
    and text as one sequence, among those with an encoder, and the reverse (Florence-2)."""
    both = getattr(getattr(model, "config", None), "is_encoder_decoder", None)
    if row is None or both is None or row.classes != "vocabulary":
        return row
    if row.name in ("seq2seq_lm", "speech_seq2seq") and not both:
        return TASKS["audio_text_to_text"]
    return TASKS["image_seq2seq"] if row.name == "image_text_to_text" and both else row


def _grouped(row: Task, declared: Sequence[str]) -> Task:
    """Task with the groups of layers that a class declares: those of an encoder and a decoder,
    where others have one stack (BART's classifiers)."""
    if "hidden" not in row.hidden or not declared:
        return row
    groups = {name: path for name, path in row.hidden.items() if path in declared}
    if "hidden" in groups or not set(ENCODER_DECODER.values()) <= set(declared):
        whole = not groups or groups == row.hidden
        return row if whole else dataclasses.replace(row, hidden=groups)
    maps = {name: f"{name}_attentions" for name in ENCODER_DECODER}
    items = batches.of_both_stacks(row.items)
    return dataclasses.replace(
        row, items=items, hidden={**ENCODER_DECODER, **groups}, attentions=maps
    )


def _class_names(mapping: str) -> set[str]:
    names: set[str] = set()
    for value in getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES").values():
        names.update([value] if isinstance(value, str) else value)
    return names


def output_fields(model: nn.Module) -> list[str]:
    """Fields of the output class that a model's ``forward`` declares."""
    return next(iter(_declared(model)), [])


def _declared(model: nn.Module) -> list[list[str]]:
    """Fields of the output class that a ``forward`` declares, and of those that it makes: some
    declare another one (ALBERT's classes)."""
    forward: Any = inspect.unwrap(model.forward)
    try:
        returned = typing.get_type_hints(model.forward).get("return")
    except (NameError, TypeError):
        returned = None
    code, known = getattr(forward, "__code__", None), getattr(forward, "__globals__", {})
    made = [known.get(name) for name in getattr(code, "co_names", ())]
    kinds = [*(typing.get_args(returned) or (returned,)), *made]
    declared: list[Any] = [k for k in kinds if isinstance(k, type) and issubclass(k, ModelOutput)]
    found = (k for k in declared if dataclasses.is_dataclass(k))
    return [[f.name for f in dataclasses.fields(k)] for k in found]
