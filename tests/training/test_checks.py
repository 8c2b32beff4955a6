"""Bad input is refused before a GPU hour is spent: what was expected, what came, what to do.

A new refusal is one row of the table it belongs to.
"""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf
from accelerate import ParallelismConfig
from objective_table import MODELS
from peft import LoraConfig, get_peft_model
from tiny_models import CASES, collate, quiet_arguments
from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput

from hf_distill import (
    AttentionMaps,
    DistillationConfig,
    DistillationTrainer,
    ForwardKL,
    HardLabels,
    HiddenStates,
    JensenShannon,
    LogitMSE,
    ModelTeacher,
    Schedule,
    Seq2SeqDistillationTrainer,
    WeightDecay,
)

HEAD = "sequence_classification"
BERT = CASES[HEAD]
PICTURES = MODELS["cnn"]


def without_labels(head: str) -> list[dict[str, Any]]:
    case = CASES[head]
    return [{k: v for k, v in row.items() if k not in case.label_keys} for row in case.data()]


def build(folder: Path, head: str = HEAD, arguments: Any = None, **options: Any) -> Any:
    """A trainer of one case of the zoo; options replace what it is given."""
    case = CASES[head]
    student, teacher = case.models(torch.float32)
    given = {
        "model": student,
        "teacher_model": teacher,
        "train_dataset": case.data(dtype=torch.float32),
        "data_collator": collate,
        "args": quiet_arguments(folder) if arguments is None else arguments,
    }
    return DistillationTrainer(**{**given, **options})


def changed(model: Any, **config: Any) -> Any:
    """A model whose config says something else."""
    for name, value in config.items():
        setattr(model.config, name, value)
    return model


def teacher(head: str = HEAD, **sizes: Any) -> Any:
    case = CASES[head]
    return case.model(type(case.config())(**{**case.config().to_diff_dict(), **sizes}))


class Tokenizer(SimpleNamespace):
    """As much of a tokenizer as is looked at."""

    def get_vocab(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens)}

    def save_pretrained(self, folder: str) -> None:
        raise AssertionError("not saved here")


class Odd(tf.PreTrainedModel):
    """A model with a head that nobody knows."""

    config_class = tf.BertConfig

    def forward(self, input_ids: Tensor) -> MaskedLMOutput:
        raise AssertionError("never run")


def two_devices(folder: Path) -> Any:
    arguments = quiet_arguments(folder)
    assert arguments.n_gpu <= 1  # looks for devices, once
    arguments._n_gpu = 2
    return arguments


def sharing() -> dict[str, Any]:
    student, _ = BERT.models()
    return {"model": student, "teacher_model": copy.copy(student)}


LORA = LoraConfig(target_modules=["query"], task_type="SEQ_CLS")
Make = Callable[[Path], Any]
Row = tuple[Make, type[Exception], str, str, str]

CONSTRUCTION: dict[str, Row] = {
    "unknown head": (
        lambda p: build(p, model=Odd(tf.BertConfig())),
        ValueError,
        r"one of the heads \['audio_classification', .*'token_classification'",
        r"got Odd, whose outputs are \['loss', 'logits', 'hidden_states', 'attentions'\]",
        r"register_task\('Odd', .*Task",
    ),
    "labels that are not there": (
        lambda p: build(p, train_dataset=without_labels(HEAD)),
        ValueError,
        r"HardLabels needs the label column\(s\) \['labels'\]",
        r"the data gives \['attention_mask', 'input_ids'\]",
        r"alpha=1\.0.*or add the labels",
    ),
    "no labels and no decoder inputs": (
        lambda p: build(p, "seq2seq_lm", train_dataset=without_labels("seq2seq_lm")),
        ValueError,
        "needs `labels` or `decoder_input_ids`",
        r"got \['attention_mask', 'input_ids'\]",
        "let the teacher generate",
    ),
    "no teacher": (
        lambda p: build(p, teacher_model=None),
        ValueError,
        r"Expected a teacher_model for \['forward_kl'\]",
        "got none",
        "Pass teacher_model=",
    ),
    "something else as teacher": (
        lambda p: build(p, teacher_model=3),
        ValueError,
        "a Hub id, a folder, a model or a Teacher",
        "got int",
        "Expected",
    ),
    "teacher path that does not exist": (
        lambda p: build(p, teacher_model=str(p / "nowhere")),
        OSError,
        "could not be loaded with AutoModelForSequenceClassification",
        "nowhere",
        "takes a Hub id, a folder, a model or a Teacher",
    ),
    "teacher folder without a model": (
        lambda p: build(p, teacher_model=p),
        ValueError,
        "could not be loaded with AutoModelForSequenceClassification",
        "Unrecognized model in",
        "takes a Hub id, a folder",
    ),
    "teacher on another tokenizer": (
        lambda p: build(
            p,
            processing_class=Tokenizer(tokens=["a", "b", "c"]),
            teacher_model=ModelTeacher(teacher(), processor=Tokenizer(tokens=["a", "c", "b", "d"])),
        ),
        ValueError,
        "to share one tokenizer",
        "vocabularies of 3 and 4 tokens that differ in 5 entries",
        "Choose a teacher that uses the student's tokenizer",
    ),
    "vocabularies of unknown tokenizers": (
        lambda p: build(p, "causal_lm", teacher_model=teacher("causal_lm", vocab_size=48)),
        ValueError,
        "to share one vocabulary",
        "40 entries for the student and 48 for the teacher",
        r"pass `processing_class`.*ModelTeacher\(model, tokenizer\)",
    ),
    "other labels": (
        lambda p: build(
            p,
            model=changed(BERT.models()[0], id2label={0: "bad", 1: "fair", 2: "good"}),
            teacher_model=changed(BERT.models()[1], id2label={0: "bad", 1: "so-so", 2: "good"}),
        ),
        ValueError,
        "to have the same labels",
        r"\['bad', 'fair', 'good'\] and \['bad', 'so-so', 'good'\]",
        "set the teacher's `config.id2label`",
    ),
    "another number of labels": (
        lambda p: build(p, teacher_model=teacher(num_labels=5)),
        ValueError,
        "the student's 3 labels",
        "got 5: .*'label_4'",
        "fine-tune the teacher on the student's labels",
    ),
    "another kind of problem": (
        lambda p: build(
            p,
            model=changed(BERT.models()[0], problem_type="single_label_classification"),
            teacher_model=changed(BERT.models()[1], problem_type="multi_label_classification"),
        ),
        ValueError,
        "one kind of problem",
        "'single_label_classification' for the student and 'multi_label_classification'",
        "Set the same one in both configs",
    ),
    "layer map with an unknown name": (
        lambda p: build(p, objective=HiddenStates("first")),
        ValueError,
        r"a layer map of \['uniform', 'skip', 'last', 'emd'\], a string 'teacher:student, …' or",
        "got 'first'",
        "Places are indices from 0",
    ),
    "layer map out of range": (
        lambda p: build(p, objective=HiddenStates(((1, 2), (2, 5)))),
        ValueError,
        r"the teacher has layers 0 \(embeddings\) to 4",
        r"pair \(2, 5\).*got 5",
        r"Pairs are written \(student layer, teacher layer\)",
    ),
    "layer map 'last' with a shallower teacher": (
        lambda p: build(
            p, teacher_model=teacher(num_hidden_layers=1), objective=HiddenStates("last")
        ),
        ValueError,
        "a teacher with at least as many layers",
        "got 1 and 2",
        "Use 'uniform' or explicit pairs",
    ),
    "layer map 'skip' with one layer": (
        lambda p: build(p, model=teacher(num_hidden_layers=1), objective=HiddenStates("skip")),
        ValueError,
        "'skip' leaves out the last layer",
        r"a student with 1 layer\(s\)",
        "Use 'uniform' or explicit pairs",
    ),
    "unknown group": (
        lambda p: build(p, objective=HiddenStates(groups=("decoder",))),
        ValueError,
        r"groups of \['hidden'\] \(student\)",
        "got 'decoder'",
        r"\['hidden'\] \(teacher\)",
    ),
    "hidden states without data": (
        lambda p: build(p, objective=HiddenStates(), train_dataset=None),
        ValueError,
        "size their projections on a few examples",
        "there is no data yet",
        "Pass train_dataset or eval_dataset",
    ),
    "hidden states of other lengths": (
        lambda p: build(
            p,
            "audio_classification",
            teacher_model=teacher("audio_classification", conv_stride=(5, 5)),
            objective=HiddenStates(),
        ),
        ValueError,
        "as many positions in the hidden states of the student",
        r"\(\d, 31, 16\) and \(\d, 25, 16\) at hidden_1_1",
        "Only images can be resized: choose layers of one length",
    ),
    "empty data": (
        lambda p: build(p, train_dataset=[]),
        ValueError,
        "a train_dataset with examples",
        "got an empty one",
        "Check the filters and the split",
    ),
    "data without tensors": (
        lambda p: build(p, data_collator=lambda rows: {"text": [r["labels"] for r in rows]}),
        ValueError,
        "a batch with at least one tensor",
        r"got the keys \['text'\]",
        "data collator",
    ),
    "DataParallel": (
        lambda p: build(p, arguments=two_devices(p)),
        ValueError,
        "one device per process",
        "got 2 in this one",
        "accelerate launch.*CUDA_VISIBLE_DEVICES",
    ),
    "attention maps of a model that has none": (
        lambda p: build(
            p,
            "image_classification",
            model=PICTURES.models()[0],
            teacher_model=PICTURES.models()[1],
            objective=AttentionMaps(distance="kl"),
        ),
        ValueError,
        r"The objective \['attention_maps'\] needs \['attentions'\]",
        "which this teacher does not provide",
        "Choose another objective",
    ),
    "logits of an encoder as teacher": (
        lambda p: build(p, teacher_model=CASES["encoder"].models()[1]),
        ValueError,
        r"\['forward_kl'\] needs \['logits'\]",
        "which this teacher does not provide",
        "Choose another objective or teacher",
    ),
    "logits of an encoder as student": (
        lambda p: build(p, "encoder", objective=LogitMSE()),
        ValueError,
        r"needs \['logits'\]",
        "does not provide",
        "Choose another objective",
    ),
    "labels of an encoder": (
        lambda p: build(p, "encoder", objective=HardLabels()),
        ValueError,
        "needs a head with labels",
        "a plain encoder has none",
        r"objective=HiddenStates\(\)",
    ),
    "teacher that shares the student's weights": (
        lambda p: build(p, **sharing()),
        ValueError,
        "shares weights with the student",
        "freezing it would freeze both",
        r"copy\.deepcopy\(model\)",
    ),
    "arguments of transformers": (
        lambda p: build(p, arguments=tf.TrainingArguments(str(p), use_cpu=True)),
        ValueError,
        "args to be a DistillationConfig",
        "got TrainingArguments",
        r"DistillationConfig\('out'",
    ),
    "arguments without generation": (
        lambda p: Seq2SeqDistillationTrainer(
            CASES["seq2seq_lm"].models()[0],
            quiet_arguments(p),
        ),
        ValueError,
        "args to be a Seq2SeqDistillationConfig",
        "got DistillationConfig",
        r"Seq2SeqDistillationConfig\('out'",
    ),
    "two losses": (
        lambda p: build(p, compute_loss_func=lambda *_: None),
        ValueError,
        "compute_loss_func and an objective",
        "would both be the loss",
        "Write an Objective.*override compute_loss",
    ),
    "from_pretrained arguments for a model": (
        lambda p: build(
            p, arguments=quiet_arguments(p, teacher_model_init_kwargs={"dtype": "float32"})
        ),
        ValueError,
        "for a teacher given by name or path",
        "a BertForSequenceClassification already",
        "Pass them to its from_pretrained",
    ),
    "two adapters": (
        lambda p: build(p, model=get_peft_model(BERT.models()[0], LORA), peft_config=LORA),
        ValueError,
        "peft_config would add another",
        "has an adapter already",
        "Leave peft_config out, or merge",
    ),
    "adapter of a plain module": (
        lambda p: build(p, model=nn.Linear(2, 2), peft_config=LORA),
        ValueError,
        "peft_config needs a transformers model",
        "got Linear",
        "needs",
    ),
    "Jensen-Shannon of regression": (
        lambda p: build(p, "regression", objective=JensenShannon()),
        ValueError,
        "has no closed form",
        "for a regression head",
        "use LogitMSE or ForwardKL",
    ),
    "label smoothing of regression": (
        lambda p: build(p, "regression", arguments=quiet_arguments(p, label_smoothing_factor=0.1)),
        ValueError,
        "do not apply",
        "a regression head",
        "Label smoothing",
    ),
    "class weights of the wrong length": (
        lambda p: build(p, objective=HardLabels(class_weights=(1.0, 2.0))),
        ValueError,
        "Expected 3 class_weights",
        "got 2",
        "one factor per class, in the order of the student's `config.id2label`",
    ),
}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft
@pytest.mark.parametrize("name", CONSTRUCTION)
def test_refused_at_construction(name: str, tmp_path: Path) -> None:
    """Found out in the first step, it costs a queue; never found out, it costs the result."""
    make, error, *fragments = CONSTRUCTION[name]
    with pytest.raises(error) as raised:
        make(tmp_path)
    for fragment in fragments:
        assert re.search(fragment, str(raised.value), re.DOTALL), (fragment, str(raised.value))


def test_the_table_refuses_for_its_own_reasons(tmp_path: Path) -> None:
    """If what the rows change were refused unchanged too, the table would say nothing."""
    for head in (HEAD, "causal_lm", "seq2seq_lm", "image_classification", "regression"):
        build(tmp_path, head)
    build(tmp_path, "encoder", objective=HiddenStates())
    build(tmp_path, objective=ForwardKL() + AttentionMaps(distance="kl"))


SETTINGS: dict[str, tuple[Callable[[], Any], str]] = {
    "negative weight": (lambda: -0.5 * ForwardKL(), "weight of at least 0, got -0.5. To push away"),
    "negative gamma": (lambda: DistillationConfig("o", use_cpu=True, gamma=-1.0), "got -1.0"),
    "temperature 0": (lambda: ForwardKL(0.0), "temperature above 0, got 0.0"),
    "temperature below 0": (lambda: JensenShannon(-1.0), "temperature above 0, got -1.0"),
    "temperature 0 by argument": (
        lambda: DistillationConfig("o", use_cpu=True, alpha=0.0, temperature=0.0),
        "temperature above 0, got 0.0",
    ),
    "alpha": (
        lambda: DistillationConfig("o", use_cpu=True, alpha=1.5),
        "Expected alpha between 0 and 1, got 1.5",
    ),
    "beta": (
        lambda: DistillationConfig("o", use_cpu=True, beta=-0.1),
        "Expected beta between 0 and 1, got -0.1",
    ),
    "beta of an objective": (lambda: JensenShannon(beta=2.0), "beta between 0 and 1, got 2.0"),
    "context parallelism": (
        lambda: DistillationConfig(
            "o", use_cpu=True, parallelism_config=ParallelismConfig(cp_size=2)
        ),
        r"whole sequences on every process, got .*\(cp_size=2, sp_size=1\).*Use data parallelism",
    ),
    "sequence parallelism": (
        lambda: DistillationConfig(
            "o", use_cpu=True, parallelism_config=ParallelismConfig(sp_size=2)
        ),
        r"whole sequences on every process, got .*\(cp_size=1, sp_size=2\).*Use data parallelism",
    ),
    "schedule shape": (lambda: Schedule("step"), "'linear' or 'cosine', got 'step'"),
    "schedule unit": (lambda: Schedule(by="day"), "by 'step' or 'epoch', got 'day'"),
    "schedule length": (lambda: Schedule(over=0), "more than 0 steps, got 0"),
    "label smoothing": (lambda: HardLabels(label_smoothing=1.0), r"in \[0, 1\), got 1.0"),
    "distance": (lambda: HiddenStates(distance="l1"), r"of \['cosine', 'mse'\], got 'l1'"),
    "target": (lambda: WeightDecay(target="one"), "'zero' or 'init', got 'one'"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_out_of_range(name: str) -> None:
    """A temperature of 0 is NaN in the first step; an alpha above 1 unlearns the labels."""
    make, message = SETTINGS[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_weights_pulled_twice_are_told(tmp_path: Path) -> None:
    """Both kinds of weight decay at once are hardly meant, and legal."""
    arguments = quiet_arguments(tmp_path, weight_decay=0.1)
    with pytest.warns(UserWarning, match=r"pulled twice. Set one of them to 0"):
        build(tmp_path, arguments=arguments, objective=ForwardKL() + WeightDecay(0.1))


# ---- what only a batch or a checkpoint can tell ----------------------------------------------


def test_resume_without_projections(tmp_path: Path) -> None:
    """New random projections in the middle of a training undo what the student had learned."""
    options = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    build(tmp_path, arguments=quiet_arguments(tmp_path, **options), objective=ForwardKL()).train()
    arguments = quiet_arguments(tmp_path, **{**options, "max_steps": 2})
    later = build(tmp_path, arguments=arguments, objective=HiddenStates())
    with pytest.raises(
        ValueError,
        match=r"Expected distillation.safetensors in .*checkpoint-1, found none.*Resume with the",
    ):
        later.train(resume_from_checkpoint=True)


def test_logits_of_other_shapes(tmp_path: Path) -> None:
    """Broadcast over each other, frames would be compared with frames of another time."""
    with pytest.raises(
        ValueError,
        match=r"for the items \(8, \d+\).*the teacher .*, got \(8, \d+, 12\).*frames",
    ):
        build(tmp_path, "ctc", teacher_model=teacher("ctc", conv_stride=(5, 5)))


def test_unlabelled_batch_after_labelled_ones(tmp_path: Path) -> None:
    """The first example is looked at, not all: the others are found in their step."""
    ours = build(tmp_path)
    batch = collate(without_labels(HEAD))
    with pytest.raises(ValueError, match=r"this batch has none.*alpha=1\.0"):
        ours.compute_loss(ours.model.train(), batch)
