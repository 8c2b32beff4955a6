"""``hf-distill eval``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from report_models import tokenizer
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score, log_loss
from tiny_recipes import WORDS
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from hf_distill.cli import main
from hf_distill.evaluation.example_scores import Ratio
from hf_distill.evaluation.scoring.classes import class_counts, macro_f1

pytestmark = pytest.mark.xdist_group("eval")
tf: Any = transformers
TEXTS = [
    " ".join(WORDS[(n * k) % len(WORDS)] for k in range(1, 3 + n % 7)) + (" good" if n % 3 else "")
    for n in range(30)
]
LABELS = [(n * n) % 3 % 2 for n in range(30)]
SOURCE = """
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL.Image import fromarray


def reviews() -> DatasetDict:
    label = ClassLabel(names=["negative", "positive"])
    features = Features(text=Value("string"), label=label)
    test = Dataset.from_dict({"text": TEXTS, "label": LABELS}, features=features)
    words = Dataset.from_dict({"sentence": ["film"] * 4})
    return DatasetDict(test=test, words=words)


def pictures() -> DatasetDict:
    noise = np.random.default_rng(0).integers(0, 256, (8, 9, 9, 3), "uint8")
    features = Features(image=Image(), label=ClassLabel(names=["a", "b", "c"]))
    rows = {"image": [fromarray(one) for one in noise], "label": [n % 3 for n in range(8)]}
    return DatasetDict(test=Dataset.from_dict(rows, features=features))


def sounds() -> DatasetDict:
    noise = np.random.default_rng(0).normal(size=(6, 800)).astype("float32")
    rows = {
        "audio": [{"array": one, "sampling_rate": 16000} for one in noise],
        "label": [n % 2 for n in range(6)],
    }
    return DatasetDict(test=Dataset.from_dict(rows))
"""


def classifier(folder: Path, seed: int, names: tuple[str, ...] = ("negative", "positive")) -> Path:
    torch.manual_seed(seed)
    config = tf.BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        initializer_range=0.5,
        id2label=dict(enumerate(names)),
        label2id={name: n for n, name in enumerate(names)},
    )
    tf.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def language_model(folder: Path, seed: int, vocabulary: int = 16) -> Path:
    """A tiny GPT-2; its tokenizer knows no padding, as GPT-2's does not."""
    torch.manual_seed(seed)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
    config = tf.GPT2Config(vocab_size=vocabulary, initializer_range=0.5, **sizes)
    tf.GPT2LMHeadModel(config).save_pretrained(folder)
    without = tokenizer()
    without.pad_token = None
    without.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of several kinds, and a file with data."""
    folder = tmp_path_factory.mktemp("eval")
    for seed in range(3):
        classifier(folder / f"text{seed}", seed)
        language_model(folder / f"lm{seed}", seed, vocabulary=16 if seed else 20)
    classifier(folder / "turned", 1, ("positive", "negative"))
    (folder / "data.py").write_text(f"TEXTS = {TEXTS!r}\nLABELS = {LABELS!r}\n{SOURCE}")
    return folder


def evaluated(folder: Path, model: str, *more: str, source: str = "reviews") -> dict[str, Any]:
    out = folder / "out"
    words = ["eval", str(folder / model), "--dataset", f"{folder / 'data.py'}:{source}"]
    assert main([*words, "--repeats", "2", "--output", str(out), *more]) == 0
    facts: dict[str, Any] = json.loads((out / "eval.json").read_text())
    return facts


def probabilities(model: Path) -> np.ndarray:
    """Plain transformers, one text at a time, in float64."""
    reads, loaded = (
        AutoTokenizer.from_pretrained(model),
        AutoModelForSequenceClassification.from_pretrained(model).double().eval(),
    )
    with torch.no_grad():
        logits = [loaded(**reads(text, return_tensors="pt")).logits for text in TEXTS]
    found: np.ndarray = torch.cat(logits).softmax(-1).numpy()
    return found


def test_figures_of_a_text_classifier(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A figure of another split, model or definition would be published as the student's."""
    more = ["--teacher", str(folder / "text1"), "--baseline", str(folder / "text2")]
    facts = evaluated(folder, "text0", *more)
    theirs = probabilities(folder / "text1")
    for role, name in (("model", "text0"), ("baseline", "text2"), ("teacher", "text1")):
        p = probabilities(folder / name)
        found = {k: v["value"] for k, v in facts["models"][role]["figures"].items()}
        hits = p.argmax(-1) == LABELS
        expected = {
            "accuracy": accuracy_score(LABELS, p.argmax(-1)),
            "f1_macro": f1_score(LABELS, p.argmax(-1), average="macro", zero_division=0),
            "nll": log_loss(LABELS, p),
        }
        if role != "teacher":
            expected["agreement"] = (p.argmax(-1) == theirs.argmax(-1)).mean()
            expected["forward_kl_divergence"] = (theirs * np.log(theirs / p)).sum(-1).mean()
            expected["retention"] = hits.mean() / (theirs.argmax(-1) == LABELS).mean()
        assert found == pytest.approx(expected, rel=1e-5)
        accuracy = facts["models"][role]["figures"]["accuracy"]
        wilson = binomtest(int(hits.sum()), 30).proportion_ci(method="wilson")
        assert (accuracy["low"], accuracy["high"]) == pytest.approx((wilson.low, wilson.high))
        kl = facts["models"][role]["figures"]["nll"]
        assert kl["low"] < kl["value"] < kl["high"]
    shown = capsys.readouterr().out
    assert "| Accuracy |" in shown
    assert "Model: text0" in shown
    assert "Model against baseline" in shown
    assert str(folder) not in (folder / "out/eval.json").read_text(), "no path of this machine"


def test_size_and_parameters(folder: Path) -> None:
    """A card that says the wrong size sends people to a model that does not fit their device."""
    facts = evaluated(folder, "text0")["models"]["model"]
    loaded = AutoModelForSequenceClassification.from_pretrained(folder / "text0")
    assert facts["parameters"] == sum(p.numel() for p in loaded.parameters())
    assert facts["size_bytes"] == (folder / "text0/model.safetensors").stat().st_size
    assert facts["speed"]["single"]["batch_size"] == 1
    assert facts["speed"]["batch"]["batch_size"] == 30, "there are no more examples"


def test_classes_in_another_order(folder: Path) -> None:
    """A baseline whose config numbers the classes otherwise would look worse than chance."""
    accuracy = evaluated(folder, "turned")["models"]["model"]["figures"]["accuracy"]["value"]
    hits = 1 - probabilities(folder / "turned").argmax(-1) == LABELS
    assert accuracy == pytest.approx(hits.mean())


def test_figures_of_a_language_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Padding that counts, or a shift by one, gives a perplexity that nobody else can reproduce."""
    more = ["--teacher", str(folder / "lm0"), "--baseline", str(folder / "lm2")]
    facts = evaluated(folder, "lm1", *more, "--batch-size", "7")
    said = {}
    reads = AutoTokenizer.from_pretrained(folder / "lm1")
    for name in ("lm0", "lm1", "lm2"):
        model = AutoModelForCausalLM.from_pretrained(folder / name).double().eval()
        with torch.no_grad():
            rows = [model(**reads(text, return_tensors="pt")).logits[0, :-1] for text in TEXTS]
        said[name] = torch.cat(rows)[:, :16].log_softmax(-1).numpy()
    wanted = np.concatenate([reads(text)["input_ids"][1:] for text in TEXTS])
    for role, name in (("model", "lm1"), ("baseline", "lm2"), ("teacher", "lm0")):
        logs, theirs = said[name], said["lm0"]
        nll = -logs[np.arange(len(wanted)), wanted].mean()
        hits, right = (rows.argmax(-1) == wanted for rows in (logs, theirs))
        expected = {"perplexity": math.exp(nll), "nll": nll, "next_token": hits.mean()}
        expected["entropy"] = -(np.exp(logs) * logs).sum(-1).mean()
        confidence = np.exp(logs).max(-1)
        bins = np.ceil(confidence * 15)
        parts = [bins == place for place in range(1, 16)]
        expected["ece"] = sum(abs((hits - confidence)[part].sum()) for part in parts) / len(hits)
        if role != "teacher":
            expected["reverse_kl_divergence"] = (np.exp(logs) * (logs - theirs)).sum(-1).mean()
            expected["acceptance_rate"] = np.minimum(np.exp(logs), np.exp(theirs)).sum(-1).mean()
            of_teacher = -(np.exp(theirs) * theirs).sum(-1).mean()
            expected["entropy_gap"] = expected["entropy"] - of_teacher
            expected["agreement"] = (logs.argmax(-1) == theirs.argmax(-1)).mean()
            expected["forward_kl_divergence"] = (np.exp(theirs) * (theirs - logs)).sum(-1).mean()
            expected["retention"] = hits.sum() / right.sum()
        found = {k: v["value"] for k, v in facts["models"][role]["figures"].items()}
        assert found == pytest.approx(expected, rel=1e-5)
    assert "log-likelihood per token" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_texts_of_a_file(folder: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever has their texts in a file would have to write Python first."""
    lines = TEXTS if suffix == "txt" else [json.dumps({"text": text}) for text in TEXTS]
    (folder / f"books.{suffix}").write_text("\n\n".join(lines) + "\r\n", encoding="utf-8")
    words = ["eval", str(folder / "lm1"), "--teacher", str(folder / "lm0"), "--repeats", "2"]
    words += ["--data", str(folder / f"books.{suffix}"), "--output", str(folder / "out")]
    assert main(words) == 0
    facts = json.loads((folder / "out/eval.json").read_text())
    wanted = evaluated(folder, "lm1", "--teacher", str(folder / "lm0"))
    assert facts["dataset"] == {"name": f"books.{suffix}"}
    for role in ("model", "teacher"):
        assert facts["models"][role]["figures"] == wanted["models"][role]["figures"]
    shown = capsys.readouterr().out
    for row in ("Perplexity", "Drafts that the teacher would accept", "KL(model‖teacher), nats"):
        assert f"| {row} |" in shown


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("boks.txt", None, "there is no file {}/boks.txt, did you mean 'boks2.txt'?"),
        ("books.csv", "text\n", "expected a .txt file"),
        ("books.jsonl", '{"text": "a b"}\n{"text": }\n', "line 2 of {}/books.jsonl is no JSON"),
        ("books.jsonl", '["a b"]\n', "line 1 of {}/books.jsonl is no JSON object"),
        ("books.jsonl", '{"txet": "a b"}\n', "got ['txet']. Name the column."),
        ("books.txt", "\n \n", "is empty"),
    ],
)
def test_a_file_that_is_no_data(
    folder: Path,
    tmp_path: Path,
    name: str,
    content: str | None,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A traceback from within a parser names neither the file nor the line."""
    (tmp_path / "boks2.txt").write_text("a b")
    if content is not None:
        (tmp_path / name).write_text(content)
    words = ["eval", str(folder / "lm1"), "--data", str(tmp_path / name)]
    assert main(words) == 2
    assert message.format(tmp_path) in capsys.readouterr().err
    assert main([*words, "--split", "validation"]) == 2
    assert "a --data file is read whole" in capsys.readouterr().err


def test_figures_of_pictures(folder: Path) -> None:
    """A processor that is left out, or pictures in another mode, would give other logits."""
    torch.manual_seed(0)
    config = tf.ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        initializer_range=0.5,
        id2label={0: "a", 1: "b", 2: "c"},
        label2id={"a": 0, "b": 1, "c": 2},
    )
    tf.ViTForImageClassification(config).save_pretrained(folder / "vit")
    size = {"height": 8, "width": 8}
    tf.ViTImageProcessor(size=size).save_pretrained(folder / "vit")
    facts = evaluated(folder, "vit", source="pictures")
    namespace: dict[str, Any] = {}
    exec((folder / "data.py").read_text(), namespace)
    rows = namespace["pictures"]()["test"]
    pipe: Any = pipeline("image-classification", model=str(folder / "vit"), device="cpu")
    chosen = ["abc".index(pipe(row["image"])[0]["label"]) for row in rows]
    found = facts["models"]["model"]["figures"]["accuracy"]["value"]
    assert found == pytest.approx(accuracy_score(rows["label"], chosen))


def test_figures_of_sounds(folder: Path) -> None:
    """Students that hear must have a command line as well."""
    torch.manual_seed(0)
    config = tf.ASTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_mel_bins=16,
        max_length=24,
        initializer_range=0.5,
        num_labels=2,
    )
    tf.ASTForAudioClassification(config).save_pretrained(folder / "ast")
    hears = tf.ASTFeatureExtractor(num_mel_bins=16, max_length=24)
    hears.save_pretrained(folder / "ast")
    facts = evaluated(folder, "ast", source="sounds")
    noise = np.random.default_rng(0).normal(size=(6, 800)).astype("float32")
    loaded = tf.ASTForAudioClassification.from_pretrained(folder / "ast").eval()
    with torch.no_grad():
        logits = loaded(**hears(list(noise), sampling_rate=16000, return_tensors="pt")).logits
    expected = accuracy_score([n % 2 for n in range(6)], logits.argmax(-1))
    assert facts["models"]["model"]["figures"]["accuracy"]["value"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{}/text0", "--device", "gpu"], "Expected a device of torch"),
        (["{}/nowhere"], "Expected a folder or Hub id of a transformers model"),
        (["{}/text0", "--split", "tset"], "has no split 'tset'"),
        (["{}/text0", "--text-column", "txt"], "'txt'"),
        (["{}/text0", "--teacher", "{}/lm0"], "Expected models with one kind of head"),
        (["{}/lm0", "--text-column", "label"], "Expected texts in the column 'label'"),
        (["{}/lm0", "--split", "words"], "Expected texts of at least two tokens"),
        (["{}/tagger"], "got token_classification (model: BertForTokenClassification)"),
        (["{}/scorer"], "got regression or several labels"),
        (["{}/text0", "--repeats", "0"], "Expected at least 1 repeat"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback hides the sentence that helps."""
    sizes = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = tf.BertConfig(**sizes, intermediate_size=8, num_labels=3)
    heads = {"tagger": tf.BertForTokenClassification, "scorer": tf.BertForSequenceClassification}
    for name, head in heads.items():
        config.num_labels = 1 if name == "scorer" else 3
        if any(name in word for word in words):
            head(config).save_pretrained(folder / name)
            tokenizer().save_pretrained(folder / name)
    given = [word.format(folder) for word in words]
    data = ["--dataset", f"{folder / 'data.py'}:reviews", "--output", str(folder / "wrong")]
    assert main(["eval", *given[:1], *data, *given[1:]]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.splitlines()[-1].startswith("hf-distill: ")
    assert "Traceback" not in shown
    assert not (folder / "wrong").exists()


def test_models_with_different_tokenizers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Perplexities over other tokens would stand side by side as if they were comparable."""
    language_model(folder / "other", 0)
    changed = tokenizer()
    changed.pad_token = None
    changed.add_tokens(["wonderful"])
    changed.save_pretrained(folder / "other")
    data = ["--dataset", f"{folder / 'data.py'}:reviews"]
    words = ["eval", str(folder / "lm1"), "--teacher", str(folder / "other"), *data]
    assert main(words) == 2
    assert "Expected models with one tokenizer" in capsys.readouterr().err


# ---- figures under resampling --------------------------------------------------------------------


def test_f1_of_repeated_examples() -> None:
    """An interval of another figure than the one in the table would be printed beside it."""
    rng = np.random.default_rng(0)
    predicted, true = rng.integers(0, 5, 40), rng.integers(0, 5, 40)
    times = np.bincount(rng.integers(40, size=40), minlength=40)
    rows = np.repeat(np.arange(40), times)
    expected = f1_score(true[rows], predicted[rows], average="macro")
    assert macro_f1(class_counts(predicted, true, times.astype(float))) == pytest.approx(expected)


def test_a_share_of_nothing_is_no_number() -> None:
    """A teacher that is never right would end a run in a division by zero."""
    assert math.isnan(Ratio(np.zeros(3), np.zeros(3))(np.ones(3)))
