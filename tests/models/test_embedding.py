"""Text embedders: static ones, those of sentence-transformers, and the folders of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn

from hf_distill import DistillationConfig, DistillationTrainer, ForwardKL, HiddenStates
from hf_distill.cli import main
from hf_distill.evaluation.predictor import Predictor
from hf_distill.hub import published_files
from hf_distill.models.embedding import (
    Dense,
    SentenceModel,
    StaticConfig,
    StaticForSequenceClassification,
    StaticModel,
    load_embedder,
)
from hf_distill.models.initialise.static import static_from_teacher, token_counts
from hf_distill.objectives import InBatchSimilarity

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*"abcdefghij", "cat", "dog", "##s", "runs", "the", "red", "[unused0]"]
TEXTS = ["the cat runs", "the red dogs", "a b c d e f g", "dog", "cats cats cats the"]
HARD = [*TEXTS, "", "xyz unknown words", "the [SEP] cat"]


def tokenizer() -> Any:
    """BERT's, with a few words."""
    vocabulary = {word: n for n, word in enumerate([*SPECIALS, *WORDS])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    around = [("[CLS]", 2), ("[SEP]", 3)]
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, around)
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIALS, strict=True))
    tokens = {f"{name}_token": token for name, token in names.items()}
    return tf.BertTokenizerFast(tokenizer_object=backend, model_max_length=12, **tokens)


def encoder(seed: int = 0, **sizes: Any) -> Any:
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(SPECIALS) + len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 16,
        **sizes,
    }
    return tf.BertModel(tf.BertConfig(**settings)).eval()


def static(normalize: bool = True, dimensions: int = 6) -> StaticModel:
    """A static model with random vectors and weights."""
    torch.manual_seed(1)
    count = len(SPECIALS) + len(WORDS)
    model = StaticModel(
        StaticConfig(
            vocab_size=count,
            hidden_size=dimensions,
            normalize=normalize,
            ignored_tokens=[0, 1, 2, 3, 4],
        )
    )
    with torch.no_grad():
        model.weights.uniform_(0.1, 1.0)
        model.weights[:5] = 0.0
    return model


def by_hand(model: StaticModel, text: str) -> np.ndarray:
    """The definition, in float64, one text at a time."""
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
    ids = [t for t in ids if t > 4]
    table, weights = model.embeddings.detach().double().numpy(), model.weights.detach().numpy()
    rows = [weights[t].astype(np.float64) * table[t] for t in ids]
    mean = np.mean(rows, 0) if rows else np.zeros(table.shape[1])
    length = np.linalg.norm(mean)
    return mean / length if model.config.normalize and length > 0 else mean


# ---- static models -------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
def test_a_static_embedding_is_the_weighted_mean(normalize: bool) -> None:
    """Padding, special tokens or an empty text that count would shorten every vector."""
    model, tok = static(normalize), tokenizer()
    expected = np.stack([by_hand(model, text) for text in HARD])
    batch = tok(HARD, padding=True, return_tensors="pt")
    forward = model(batch["input_ids"], batch["attention_mask"]).sentence_embedding
    np.testing.assert_allclose(forward.detach().numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(model.encode(HARD, tok, batch_size=3), expected, atol=1e-6)


def test_encode_reads_long_texts_whole() -> None:
    """A tokenizer that was last used with truncation would cut texts, and pad them."""
    model, tok = static(), tokenizer()
    tok(["a b c d e"], truncation=True, max_length=3, padding="max_length")
    long = " ".join(["cat", "dog"] * 20)
    np.testing.assert_allclose(model.encode([long], tok)[0], by_hand(model, long), atol=1e-6)


def test_a_static_folder_is_read_by_all_three(tmp_path: Path) -> None:
    """A folder whose vectors differ in another package makes an index useless without an error."""
    model, tok = static(), tokenizer()
    model.save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    again = tf.AutoModel.from_pretrained(tmp_path)
    assert type(again) is StaticModel
    assert torch.equal(again.embeddings, model.embeddings)
    assert torch.equal(again.weights, model.weights)
    ours = model.encode(HARD, tok)
    model2vec = pytest.importorskip("model2vec")
    theirs = model2vec.StaticModel.from_pretrained(tmp_path)
    np.testing.assert_allclose(theirs.encode(HARD), ours, atol=1e-6)
    package = pytest.importorskip("sentence_transformers")
    theirs = package.SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_allclose(theirs.encode(HARD), ours, atol=1e-6)


def test_a_folder_of_model2vec_is_read(tmp_path: Path) -> None:
    """Unknown tokens that count, or a mapping of shared rows left out, change every vector."""
    model2vec = pytest.importorskip("model2vec")
    rng, count = np.random.default_rng(0), len(SPECIALS) + len(WORDS)
    theirs = model2vec.StaticModel(
        rng.normal(size=(7, 5)).astype(np.float32),
        tokenizer().backend_tokenizer,
        weights=rng.uniform(size=count).astype(np.float32),
        token_mapping=rng.integers(7, size=count),
        config={"model_type": "model2vec", "architectures": ["StaticModel"]},
        normalize=True,
    )
    theirs.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = load_embedder(tmp_path)
    assert isinstance(model, StaticModel)
    plain = [text for text in HARD if "[SEP]" not in text]  # which model2vec counts as a word
    np.testing.assert_allclose(model.encode(plain, tokenizer()), theirs.encode(plain), atol=1e-6)


def test_a_static_student_of_a_teacher() -> None:
    """Tokens without special tokens around them, or axes in another order, give other vectors."""
    teacher, tok = SentenceModel(encoder(), ("first",)), tokenizer()
    student = static_from_teacher(teacher, tok, hidden_size=4, sif=1e-2, batch_size=7)
    states = []
    with torch.no_grad():
        for token in range(len(tok)):
            out = teacher.encoder(torch.tensor([[2, token, 3]])).last_hidden_state
            states.append(out[0, 0].double().numpy())
    vectors = np.stack(states)
    own = vectors[5:-1]  # neither special nor unused
    axes = np.linalg.svd(own - own.mean(0), full_matrices=False)[2]
    expected = (own - own.mean(0)) @ axes[:4].T
    found = student.embeddings.detach().numpy()[5:-1]
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-4)
    zipf = 1 / np.arange(2, len(tok) + 2 - 6)
    expected = 1e-2 / (1e-2 + zipf / zipf.sum())
    np.testing.assert_allclose(student.weights[5:-1].detach(), expected, rtol=1e-5)
    assert student.weights[:5].eq(0).all()
    assert student.config.ignored_tokens == [0, 1, 2, 3, 4]
    assert teacher.normalize


def test_whitened_components_and_random_dimensions() -> None:
    """Components of other sizes, or random vectors that change, are not the documented student."""
    settings = {"hidden_size": 4, "sif": 1e-2}
    plain = static_from_teacher(encoder(), tokenizer(), **settings)
    student = static_from_teacher(
        encoder(), tokenizer(), whitening=0.5, random_size=600, **settings
    )
    counted = slice(5, -1)  # neither special nor unused
    components = plain.embeddings.detach().double().numpy()
    expected = components / components[counted].std(0) ** 0.5
    found = student.embeddings.detach().numpy()
    np.testing.assert_allclose(found[:, :4], expected, rtol=1e-4, atol=1e-5)
    length = np.linalg.norm(found[counted, :4], axis=1).mean()
    drawn = found[:, 4:]
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), length, rtol=0.15)
    directions = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    assert np.abs(directions @ directions.T - np.eye(len(drawn))).max() < 0.2
    again = static_from_teacher(encoder(), tokenizer(), whitening=0.5, random_size=600, **settings)
    assert torch.equal(again.embeddings, student.embeddings)


def test_weights_by_counts() -> None:
    """Rare tokens weigh more, by the texts given and not by their ids."""
    tok = tokenizer()
    counts = token_counts(TEXTS, tok)
    assert counts[tok.convert_tokens_to_ids("cat")] == 4
    assert counts[tok.convert_tokens_to_ids("the")] == 3
    student = static_from_teacher(encoder(), tok, hidden_size=4, sif=1e-2, counts=counts)
    p = np.array([counts.get(t, 0) + 1 for t in range(len(tok))], dtype=np.float64)
    np.testing.assert_allclose(
        student.weights[5:].detach(), (1e-2 / (1e-2 + p / p.sum()))[5:], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 17}, "from 1 to 16"),
        ({"sif": 0.0}, "above 0"),
        ({"whitening": 1.5}, "from 0 to 1"),
        ({"random_size": -1}, "at least 0"),
    ],
)
def test_settings_of_a_static_student(settings: dict[str, Any], message: str) -> None:
    """A constant of 0 would make all weights 0, and the student silent."""
    with pytest.raises(ValueError, match=message):
        static_from_teacher(encoder(), tokenizer(), **{"hidden_size": 4, **settings})


def trained(student: Any, teacher: Any, objective: Any, folder: Path, **extra: Any) -> Any:
    tok = tokenizer()
    rows = [{"input_ids": tok(text)["input_ids"], **extra} for text in TEXTS * 4]
    args = DistillationConfig(
        str(folder),
        per_device_train_batch_size=5,
        max_steps=30,
        learning_rate=2e-2,
        save_strategy="no",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
    )
    trainer = DistillationTrainer(
        student,
        args,
        train_dataset=rows,
        teacher_model=teacher,
        objective=objective,
        processing_class=tok,
        data_collator=tf.DataCollatorWithPadding(tok),
    )
    trainer.train()
    losses = [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]
    assert losses[-1] < 0.6 * losses[0]
    return trainer


def test_training_a_static_student(tmp_path: Path) -> None:
    """A student whose vectors get no gradient, or whose saved folder is an older one."""
    teacher, student = SentenceModel(encoder()), static()
    objective = InBatchSimilarity(groups=("embedding",), temperature=0.2) + HiddenStates(
        "last", groups=("embedding",), distance="cosine"
    )
    trainer = trained(student, teacher, objective, tmp_path / "run")
    trainer.save_model(str(tmp_path / "final"))
    again = load_embedder(tmp_path / "final")
    assert np.array_equal(again.encode(HARD, tokenizer()), student.encode(HARD, tokenizer()))
    model2vec = pytest.importorskip("model2vec")
    theirs = model2vec.StaticModel.from_pretrained(tmp_path / "final")
    np.testing.assert_allclose(theirs.encode(TEXTS), student.encode(TEXTS, tokenizer()), atol=1e-6)


def test_a_static_classifier(tmp_path: Path) -> None:
    """Loaded from an embedder it must start from its vectors, and distil as any classifier does."""
    static().save_pretrained(tmp_path / "embedder")
    student = tf.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "embedder", num_labels=3, dense_size=8
    )
    assert isinstance(student, StaticForSequenceClassification)
    assert torch.equal(student.static.embeddings, static().embeddings)
    torch.manual_seed(0)
    teacher = tf.BertForSequenceClassification(
        tf.BertConfig(
            **{**encoder().config.to_diff_dict(), "num_labels": 3, "initializer_range": 0.5}
        )
    )
    trainer = trained(student, teacher, ForwardKL(), tmp_path / "run", labels=1)
    trainer.save_model(str(tmp_path / "final"))
    again = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "final")
    batch = tokenizer()(TEXTS, padding=True, return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(again(**inputs).logits, student.eval()(**inputs).logits)
    assert not (tmp_path / "final" / "modules.json").exists()
    assert type(Predictor.load(tmp_path / "final").model) is StaticForSequenceClassification


def test_init_student_static(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder that the command writes is complete, tokenizer included."""
    SentenceModel(encoder()).save_pretrained(tmp_path / "teacher")
    tokenizer().save_pretrained(tmp_path / "teacher")
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS))
    words = ["init-student", str(tmp_path / "teacher"), "--static", "--output"]
    beyond = ["--whitening", "0.5", "--random-size", "3"]
    options = ["--hidden-size", "4", "--importance", str(texts), *beyond]
    assert main([*words, str(tmp_path / "out"), *options]) == 0
    assert "static, 7 dimensions" in capsys.readouterr().out
    model = load_embedder(tmp_path / "out")
    tok = tf.AutoTokenizer.from_pretrained(tmp_path / "out")
    expected = static_from_teacher(
        SentenceModel(encoder()),
        tok,
        hidden_size=4,
        counts=token_counts(TEXTS, tok),
        whitening=0.5,
        random_size=3,
    )
    np.testing.assert_allclose(model.encode(HARD, tok), expected.encode(HARD, tok), atol=1e-6)
    assert main([*words, str(tmp_path / "other"), "--layers", "1"]) == 2
    assert "with --static, got --layers" in capsys.readouterr().err
    network = ["init-student", str(tmp_path / "teacher"), "--output", str(tmp_path / "other")]
    assert main([*network, "--layers", "1", "--random-size", "3"]) == 2
    assert "--random-size with --static alone" in capsys.readouterr().err


# ---- sentence-transformers -----------------------------------------------------------------------

POOLINGS = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


def their_folder(
    folder: Path,
    pooling: Any = "mean",
    dense: bool = False,
    normalize: bool = True,
    **settings: Any,
) -> Any:
    """A `SentenceTransformer`, saved by itself."""
    package = pytest.importorskip("sentence_transformers")
    from sentence_transformers import sentence_transformer

    kinds = sentence_transformer.modules
    encoder().save_pretrained(folder / "encoder")
    tokenizer().save_pretrained(folder / "encoder")
    body = kinds.Transformer(str(folder / "encoder"), max_seq_length=10)
    pool = kinds.Pooling(16, pooling, include_prompt=settings.pop("include_prompt", True))
    parts = [body, pool]
    torch.manual_seed(2)
    if dense:
        width = pool.get_embedding_dimension()
        parts += [kinds.Dense(width, 7), kinds.Dense(7, 5, False, nn.Identity(), use_residual=True)]
    parts += [kinds.Normalize()] if normalize else []
    model = package.SentenceTransformer(modules=parts, device="cpu", **settings).eval()
    model.save(str(folder / "theirs"), create_model_card=False)
    return model


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("pooling", "dense", "normalize", "side"),
    [
        ("cls", False, True, "left"),
        ("lasttoken", True, False, "left"),
        (("mean", "max"), False, False, "right"),
        *(
            pytest.param(name, name == "mean", True, side, marks=SLOW)
            for name in POOLINGS
            for side in ("left", "right")
        ),
    ],
)
def test_folders_of_sentence_transformers(
    tmp_path: Path, pooling: Any, dense: bool, normalize: bool, side: str
) -> None:
    """A teacher with another pooling than its own gives other vectors, without an error; so does a
    student that its users load elsewhere."""
    theirs = their_folder(tmp_path, pooling, dense, normalize)
    theirs.tokenizer.padding_side = side
    expected = theirs.encode(HARD)
    model = load_embedder(tmp_path / "theirs")
    assert isinstance(model, SentenceModel)
    tok = tf.AutoTokenizer.from_pretrained(tmp_path / "theirs", padding_side=side)
    np.testing.assert_allclose(model.encode(HARD, tok), expected, atol=2e-6)
    model.save_pretrained(tmp_path / "ours")
    tok.save_pretrained(tmp_path / "ours")
    package = pytest.importorskip("sentence_transformers")
    again = package.SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    np.testing.assert_allclose(again.encode(HARD), expected, atol=2e-6)
    assert again.max_seq_length == 10
    inner = tf.AutoModel.from_pretrained(tmp_path / "ours")
    assert type(inner) is tf.BertModel


@pytest.mark.parametrize("include", [True, False])
def test_prompts_of_sentence_transformers(tmp_path: Path, include: bool) -> None:
    """A query without its prompt, or with the prompt pooled, is another vector."""
    prompts = {"query": "the red ", "document": ""}
    theirs = their_folder(
        tmp_path, prompts=prompts, default_prompt_name="query", include_prompt=include
    )
    model = load_embedder(tmp_path / "theirs")
    tok = tf.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert isinstance(model, SentenceModel)
    assert model.prompts == prompts
    for own in ({}, {"prompt_name": "document"}, {"prompt": "a cat "}):
        found = model.encode(TEXTS, tok, **own)
        np.testing.assert_allclose(found, theirs.encode(TEXTS, **own), atol=2e-6)
    model.save_pretrained(tmp_path / "ours")
    tok.save_pretrained(tmp_path / "ours")
    package = pytest.importorskip("sentence_transformers")
    again = package.SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS), theirs.encode(TEXTS), atol=2e-6)
    with pytest.raises(ValueError, match=r"prompt of \['document', 'query'\], got 'title'"):
        model.encode(TEXTS, tok, prompt_name="title")


def test_training_and_resuming_a_sentence_model(tmp_path: Path) -> None:
    """Dense layers lie in folders of their own: a resume that misses them starts them anew."""
    teacher, tok = SentenceModel(encoder(), ("last",)), tokenizer()
    rows = [{"input_ids": tok(text)["input_ids"]} for text in TEXTS]

    def run(model: Any, folder: str, steps: int, resume: bool = False) -> Any:
        args = DistillationConfig(
            str(tmp_path / folder),
            per_device_train_batch_size=5,
            max_steps=steps,
            lr_scheduler_type="constant",
            learning_rate=1e-2,
            save_steps=2,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = DistillationTrainer(
            model,
            args,
            train_dataset=rows,
            teacher_model=teacher,
            objective=InBatchSimilarity(groups=("embedding",)),
            processing_class=tok,
            data_collator=tf.DataCollatorWithPadding(tok),
        )
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_model(str(tmp_path / f"{folder}-final"))
        return model

    def fresh() -> SentenceModel:
        return SentenceModel(encoder(seed=4), ("mean",), [Dense(nn.Linear(16, 6), "Tanh")])

    whole = run(fresh(), "whole", 4)
    run(fresh(), "parts", 2)
    resumed = run(fresh(), "parts", 4, resume=True)
    expected = dict(whole.named_parameters())
    for name, value in resumed.named_parameters():
        assert torch.equal(value, expected[name]), name
    assert not torch.equal(whole.dense[0].linear.weight, fresh().dense[0].linear.weight)
    final = load_embedder(tmp_path / "parts-final")
    parts = {"modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"}
    assert parts <= set(published_files(tmp_path / "parts-final"))
    assert np.array_equal(final.encode(TEXTS, tok), whole.eval().encode(TEXTS, tok))
    package = pytest.importorskip("sentence_transformers")
    theirs = package.SentenceTransformer(str(tmp_path / "parts-final"), device="cpu")
    np.testing.assert_allclose(theirs.encode(TEXTS), whole.encode(TEXTS, tok), atol=2e-6)


def test_a_teacher_by_name_keeps_its_pooling(tmp_path: Path) -> None:
    """By name it was loaded as a plain encoder, whose mean is not what a CLS embedder was trained
    with."""
    teacher = SentenceModel(encoder(), ("first",))
    teacher.save_pretrained(tmp_path)
    args = DistillationConfig(str(tmp_path / "run"), use_cpu=True, report_to="none")
    trainer = DistillationTrainer(
        static(),
        args,
        train_dataset=[{"input_ids": [2, 6, 3]}],
        teacher_model=str(tmp_path),
        objective=InBatchSimilarity(groups=("embedding",)),
    )
    loaded = trainer.teacher.model
    assert isinstance(loaded, SentenceModel)
    assert loaded.pooling == ("first",)


def write(folder: Path, kinds: list[str], **settings: Any) -> None:
    modules = [{"idx": n, "name": str(n), "path": f"{n}", "type": k} for n, k in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    for name, value in settings.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (["a.Transformer", "a.Pooling", "someone.Custom"], r"got \['Custom'\]"),
        (["a.Transformer", "a.Dense"], "in this order"),
        (["a.StaticEmbedding", "a.Dense"], "behind the static embeddings"),
        ([], "got none"),
    ],
)
def test_other_folders_are_refused(tmp_path: Path, kinds: list[str], message: str) -> None:
    """A module left out silently gives other vectors; one imported by its name runs its code."""
    write(tmp_path, kinds)
    with pytest.raises(ValueError, match=message):
        load_embedder(tmp_path)


def test_an_activation_from_elsewhere_is_refused(tmp_path: Path) -> None:
    """The name of an activation comes from a file: importing it would run what it names."""
    encoder().save_pretrained(tmp_path / "0")
    write(tmp_path, ["a.Transformer", "a.Pooling", "a.Dense"])
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "config.json").write_text(json.dumps({"pooling_mode": "mean"}))
    (tmp_path / "2").mkdir()
    settings = {"in_features": 16, "out_features": 4, "activation_function": "os.system"}
    (tmp_path / "2" / "config.json").write_text(json.dumps(settings))
    save_file({"linear.weight": torch.zeros(4, 16)}, tmp_path / "2" / "model.safetensors")
    with pytest.raises(ValueError, match=r"activation of torch.nn in 2, got 'os.system'"):
        load_embedder(tmp_path)
