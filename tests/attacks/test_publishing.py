"""Attacks on a push: what must not leave this machine lies in a student, a checkpoint or a cache.

The judge is the Hub on the loopback: nothing at all was asked of it, or nothing of it arrived.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import random
import re
import shutil
import socket
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import HubServer
from huggingface_hub import HfApi
from leaking import BODY, FORMS, HOMES, PLACES, TOKENS, loopback, png, push, put, refused, student
from safetensors.numpy import save_file
from tally import Tally

from hf_distill.hub import PUBLISHED, folder_problems, published_files
from hf_distill.hub.leaks import OutsideError, check_files, leaks, scrub
from hf_distill.hub.push import push_checkpoint
from hf_distill.recipe import publish
from hf_distill.training.publishing import stage_student
from tests.training import test_publishing as training

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
KEY = "-----BEGIN " + "OPENSSH PRIVATE KEY-----\n" + BODY


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with loopback(tmp_path_factory.mktemp("home")) as found:
        yield found


@pytest.fixture
def made(tmp_path: Path) -> Callable[[], Path]:
    """Makes copies of a student, each in a folder of its own."""
    first, count = student(tmp_path / "student"), iter(range(10**6))
    return lambda: shutil.copytree(first, tmp_path / f"copy-{next(count)}", symlinks=True)


# ---- links ---------------------------------------------------------------------------------------


def _linked(name: str, target: str | Path) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(target)

    return make


def _special(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return put


def _socket(path: Path) -> None:
    there = os.getcwd()
    os.chdir(path.parent)  # the names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(there)


def _links(outside: Path) -> dict[str, tuple[str, Callable[[Path], None]]]:
    """For each attack, what is named in the refusal, and what puts it into a student's folder."""
    outside.mkdir()
    (outside / "id_ed25519").write_text(KEY)
    (outside / "plain.txt").write_text("nothing in it tells that it is private")
    (outside / "x.png").write_bytes(png())
    (outside / "model.onnx").write_bytes(b"\0" * 64)
    save_file({"w": np.ones(4, np.float32)}, outside / "model.safetensors")
    (outside / "chain").symlink_to("plain.txt")
    found: dict[str, tuple[str, Callable[[Path], None]]] = {}
    for name, target in {
        "vocab.txt": "/etc/passwd",
        "spiece.model": "/etc/shadow",
        "merges.txt": outside / "plain.txt",
        "x.png": outside / "x.png",
        "vocab.json": outside / "plain.txt",
        "plots": outside,
        "onnx": outside,
        "quantized": outside,
        ".eval_results": outside,
        "LICENSE": "/etc/hostname",
        "NOTICE": outside / "id_ed25519",
        "dict.txt": "/dev/zero",
        "LICENSE.md": "../nothing-is-there",
        "model.safetensors": outside / "model.safetensors",
        "config.json": outside / "plain.txt",
        "README.md": outside / "plain.txt",
        "tokenizer.json": outside / "chain",
        "emoji.json": "/proc/self/environ",
        "bpe.codes": "vocab.txt",
        "dict2.png": outside / "id_ed25519",
        "plots/a.png": outside / "x.png",
        "onnx/model.onnx": outside / "model.onnx",
    }.items():
        found[f"{name} -> {target}"] = (name, _linked(name, target))
    found["vocab.txt -> a private key"] = (
        "vocab.txt",
        _linked("vocab.txt", outside / "id_ed25519"),
    )
    found["a hard link"] = (
        "NOTICE.txt",
        _special("NOTICE.txt", lambda path: os.link(outside / "plain.txt", path)),
    )
    found["a pipe"] = ("vocab.txt", _special("vocab.txt", os.mkfifo))
    found["a socket"] = ("vocab.txt", _special("vocab.txt", _socket))
    found["a folder"] = ("vocab.txt", _special("vocab.txt", Path.mkdir))
    return found


def test_no_link_is_followed(hub: HubServer, made: Callable[[], Path], tmp_path: Path) -> None:
    """`ln -s ~/.ssh/id_rsa final/vocab.txt` and a push: the key would be public."""
    with Tally("publishing: links") as attacks:
        for what, (name, put) in _links(tmp_path / "outside").items():
            with attacks.attack(what):
                folder = made()
                put(folder)
                assert name not in published_files(folder)
                with refused(hub, re.escape(name)):
                    push(folder)


def test_the_remedy_for_a_link_works(hub: HubServer, made: Callable[[], Path]) -> None:
    """A command that is named and does not work leaves the user with a student on one disk."""
    folder = made()
    outside = folder.parent / "it's outside"
    outside.mkdir()
    shutil.move(folder / "model.safetensors", outside / "weights")
    (folder / "model.safetensors").symlink_to(outside / "weights")
    shutil.move(folder / "plots", outside / "plots")
    (folder / "plots").symlink_to(outside / "plots")
    os.link(folder / "vocab.txt", outside / "vocab.txt")
    problems = folder_problems(folder)
    said = "\n".join(problems)
    commands = re.findall(r"(cp -RL .*?)(?:\), or remove it)?$", said, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        subprocess.run(command, shell=True, check=True)
    push(folder, "tester/copied")
    assert "plots/curves.png" in hub.files("tester/copied")
    assert "model.safetensors" in hub.files("tester/copied")


@pytest.mark.parametrize("shared", [False, True])
def test_the_cache_of_the_hub_is_published(hub: HubServer, tmp_path: Path, shared: bool) -> None:
    """A snapshot is made of links to blobs: to refuse them is to refuse `hf download` and push.

    ``shared``: huggingface_hub 2 keeps what several repositories have once, beside them.
    """
    original = student(tmp_path / "student")
    repo = tmp_path / "hub/models--me--x"
    snapshot, blobs = repo / "snapshots" / ("ab" * 20), repo / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in original.rglob("*") if p.is_file())):
        blob, link = blobs / f"{number:064x}", snapshot / path.relative_to(original)
        link.parent.mkdir(parents=True, exist_ok=True)
        if shared and path.suffix == ".safetensors":
            store = tmp_path / "hub/blobs/cd" / ("cd" * 32)
            store.parent.mkdir(parents=True)
            shutil.copy(path, store)
            blob.symlink_to(os.path.relpath(store, blobs))
        else:
            shutil.copy(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert folder_problems(snapshot) == []
    push(snapshot, f"tester/snapshot{shared}")
    assert set(hub.files(f"tester/snapshot{shared}")) == set(published_files(original))
    (snapshot / "vocab.txt").unlink()
    for outside in (tmp_path / "secret", blobs / "secret", blobs / ("ee" * 32)):
        if outside.name == "ee" * 32:  # named as a blob, but a link
            outside.symlink_to(tmp_path / "secret")
        else:
            outside.write_text("mine")
        (snapshot / "vocab.txt").symlink_to(outside)
        with refused(hub, "vocab.txt is a link"):
            push(snapshot)
        (snapshot / "vocab.txt").unlink()


def test_a_file_that_is_replaced_meanwhile(
    hub: HubServer, made: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the check and the upload somebody else puts a link where a file was checked."""
    folder = made()
    secret = folder.parent / "secret"
    secret.write_text(KEY)
    original = HfApi.create_repo
    name = "vocab.txt"

    def create(self: HfApi, *arguments: Any, **options: Any) -> Any:
        _linked(name, secret)(folder)
        return original(self, *arguments, **options)

    monkeypatch.setattr(HfApi, "create_repo", create)
    push(folder, "tester/raced")
    assert hub.files("tester/raced")["vocab.txt"] == b"[PAD]\n[UNK]\nfilm\n"
    folder, name = made(), "model.safetensors"
    with pytest.raises(ValueError, match=r"model\.safetensors changed while it was published"):
        push(folder, "tester/raced-weights")
    assert hub.files("tester/raced-weights") == {}


def test_a_file_that_flickers(made: Callable[[], Path]) -> None:
    """The moment between looking at a name and opening it is enough for a link."""
    folder = made()
    secret, good = folder.parent / "secret", folder.parent / "good"
    secret.write_text("private")
    good.write_text("public")
    stop = threading.Event()

    def flicker() -> None:
        while not stop.is_set():
            for make in (lambda p: p.symlink_to(secret), lambda p: shutil.copy(good, p)):
                make(folder / ".next")
                os.replace(folder / ".next", folder / "vocab.txt")

    with Tally("publishing: links put there during the check") as attacks:
        thread = threading.Thread(target=flicker)
        thread.start()
        try:
            for _ in range(500):
                with attacks.attack("vocab.txt"):
                    files, problems = check_files(folder, ["vocab.txt"])
                    assert bool(files) != bool(problems)
                    assert not files or b"private" not in bytes(files[0].content)
        finally:
            stop.set()
            thread.join()


def test_a_link_on_the_way_is_refused(made: Callable[[], Path]) -> None:
    """Of a name with folders in it, each of them may be the link; and `..` leads out as well."""
    folder = made()
    (folder / "real").mkdir()
    shutil.move(folder / "plots", folder / "real/plots")
    (folder / "plots").symlink_to("real/plots")
    (folder / "inner").symlink_to(".")
    names = ["plots/curves.png", "inner/vocab.txt", f"../{folder.name}/vocab.txt", "/etc/passwd"]
    names += ["vocab.txt/x", "real/../vocab.txt"]
    with Tally("publishing: links on the way") as attacks:
        for name in names:
            with attacks.attack(name):
                files, problems = check_files(folder, [name])
                assert len(problems) == 1
                assert not files


# ---- secrets -------------------------------------------------------------------------------------


def _places() -> Iterator[tuple[str, Callable[[str], bytes]]]:
    """Every file that may be published, and how a text gets into it."""
    for pattern in PUBLISHED:
        name = pattern.replace("*", "00001")
        if name == "README.md":
            yield name, lambda text: b"---\nlicense: mit\n---\n# x\n\n" + text.encode()
        elif name.endswith(".json"):
            yield name, lambda text: json.dumps({"model_type": "bert", "a": [{"b": text}]}).encode()
            yield name, lambda text: json.dumps({text: 7, "weight_map": {}}).encode()
        elif name.endswith(".png"):
            yield name, lambda text: png((b"tEXt", b"Comment\0" + text.encode()))
            yield name, lambda text: png((b"zTXt", b"Comment\0\0" + zlib.compress(text.encode())))
            yield (
                name,
                lambda text: png((b"iTXt", b"XML\0\1\0en\0\0" + zlib.compress(text.encode()))),
            )
            yield name, lambda text: png((b"eXIf", b"II*\0\x08\0" + text.encode() + b"\0"))
            yield name, lambda text: png((b"eXIf", b"II*\0" + text.encode("utf-16-le")))
            yield name, lambda text: png((b"prVt", text.encode()))
            yield name, lambda text: png(after=text.encode())
            yield name, lambda text: b"\xff\xd8\xff\xfe\0\x40" + text.encode() + b"\xff\xd9"
            yield name, lambda text: b"GIF89a\1\0\1\0\0\0\0!\xfe\x40" + text.encode() + b"\0;"
            yield name, lambda text: b"RIFF\x40\0\0\0WEBPEXIF\x40\0\0\0" + text.encode()
        elif name.endswith(".safetensors"):
            yield name, lambda text: _weights({"note": text})
            yield name, lambda text: _weights({text: "note"})
        elif name.endswith((".txt", ".md", ".jinja", ".codes", ".yaml")) or "." not in name:
            yield name, lambda text: f"one line\nnote: {text}\n".encode()
        else:  # protocol buffers and the like
            yield name, lambda text: b"\x0a\x0e\0\xff" + text.encode() + b"\x15\0\0\xc8\xc1"


def _weights(notes: dict[str, str]) -> bytes:
    header = json.dumps({"__metadata__": notes, "w": {"dtype": "U8", "shape": [1]}})
    header = header.replace("[1]", '[1], "data_offsets": [0, 1]')
    return len(header).to_bytes(8, "little") + header.encode() + b"\0"


def _carried(hub: HubServer, folder: Path, name: str, content: bytes, what: str) -> None:
    """Refused by the file's name, and by what was found there, which is not repeated."""
    with put(folder / name, content):
        found = [problem for problem in folder_problems(folder) if problem.startswith(name)]
        assert any(what in problem for problem in found), found
        assert BODY[:20] not in "".join(found)
        with refused(hub, re.escape(name)):
            push(folder)


def test_no_file_carries_a_token_away(hub: HubServer, made: Callable[[], Path]) -> None:
    """A push makes public for ever what lies in a file that nobody looks into."""
    folder, token = made(), TOKENS["Hub token"]
    (folder / "adapter_model.safetensors").write_bytes(_weights({}))
    with Tally("publishing: places of a token") as attacks:
        for name, wrap in _places():
            with attacks.attack(f"{name}: {wrap('…')[:40]!r}"):
                _carried(hub, folder, name, wrap(token), "token")


def test_homes_of_others_are_found(hub: HubServer, made: Callable[[], Path]) -> None:
    """A picture, a graph, a vocabulary tells the name of the person who made it."""
    folder, homes = made(), list(HOMES.values())
    (folder / "adapter_model.safetensors").write_bytes(_weights({}))
    with Tally("publishing: places of a home folder") as attacks:
        for number, (name, wrap) in enumerate(dict(_places()).items()):
            with attacks.attack(f"{name}: {homes[number % 3]}"):
                _carried(hub, folder, name, wrap(homes[number % 3]), "local")


@pytest.mark.slow
def test_no_file_carries_any_form_away(tmp_path: Path) -> None:
    """The long form: each token in each place."""
    with Tally("publishing: forms in places") as attacks:
        for what, text in TOKENS.items():
            for name, wrap in _places():
                with attacks.attack(f"{what} in {name}: {wrap('…')[:40]!r}"):
                    with put(tmp_path / name, wrap(text)):
                        _, problems = check_files(tmp_path, [name])
                    assert any(problem.startswith(name) for problem in problems), problems


def _spellings(text: str) -> dict[str, str]:
    """The JSON text of a value, as itself and escaped."""
    return {
        "plain": json.dumps(text),
        "in a sentence": json.dumps(f"see {text} there"),
        "escaped": '"' + "".join(f"\\u{ord(letter):04x}" for letter in text) + '"',
        "one escaped": json.dumps(text).replace("_", "\\u005f").replace("/", "\\u002f"),
        "slashes escaped": json.dumps(text).replace("/", "\\/"),
        "JSON in JSON": json.dumps(json.dumps({"x": text}).replace("_", "\\u005f")),
    }


def test_no_form_of_a_secret_goes_up(hub: HubServer, made: Callable[[], Path]) -> None:
    """What the services call a token, and what settings tell of a person or a network."""
    with Tally("publishing: forms of secrets") as attacks:
        folder, name = made(), "config.json"
        for what, text in FORMS.items():
            for how, value in _spellings(text).items():
                if how == "JSON in JSON" and "\\" in text:
                    continue
                with attacks.attack(f"{what}, {how}"):
                    (folder / name).write_text(f'{{"model_type": "bert", "note": {value}}}')
                    with refused(hub, re.escape(name)):
                        push(folder)
        (folder / name).write_text(f'{{"a": "{TOKENS["Hub token"]}", "a": 1}}')
        with attacks.attack("hidden by a second key of the same name"), refused(hub, "token"):
            push(folder)


def test_scrubbed_text_holds_none_of_them() -> None:
    """What goes into cards and recipes by itself is masked, not refused at the end of a run."""
    with Tally("publishing: secrets masked in generated text") as attacks:
        for what, text in {**TOKENS, **HOMES}.items():
            for line in (text, f"Made with {text}, and more.", f"key: {text}\nmore"):
                with attacks.attack(f"{what}: {line[:20]}"):
                    assert leaks(line)
                    clean = scrub(line)
                    assert leaks(clean) == []
                    assert scrub(clean) == clean
                    assert BODY[:20] not in clean


def test_prose_may_name_addresses(hub: HubServer, made: Callable[[], Path]) -> None:
    """A licence with an author's e-mail, or a revision of 40 digits, is no leak."""
    folder = made()
    meant = [text for what, text in PLACES.items() if what not in ("file URL",)]
    (folder / "LICENSE").write_text("Copyright (c) 2026 Agent <a@b.org>\n" + "\n".join(meant))
    settings = {"model_type": "bert", "_commit_hash": PLACES["40 digits"], "pad_token": "[PAD]"}
    settings |= {"id2label": {"0": "task-oriented-dialogue-systems"}, "url": "https://x.org/a?b=c"}
    (folder / "config.json").write_text(json.dumps(settings))
    assert folder_problems(folder) == []


def test_no_spelling_of_a_token_goes_up(hub: HubServer, made: Callable[[], Path]) -> None:
    """What a reader of YAML, Markdown, HTML or an address sees is not what the bytes are."""
    folder, token = made(), TOKENS["Hub token"]
    card = (folder / "README.md").read_text()
    with Tally("publishing: spellings of a token") as attacks:
        for sign in ("\\u005f", "\\x5f", "\\_", "&#95;", "&#x5F;", "&lowbar;", "%5F", "%5f"):
            for name, text in (
                ("README.md", card),
                ("LICENSE", "mine\n"),
                ("recipe.yaml", "a: 1\n"),
            ):
                with attacks.attack(f"{sign} in {name}"):
                    content = f'{text}\nb: "{token.replace("_", sign)}"\n'.encode()
                    _carried(hub, folder, name, content, "token")


def _vocabulary(size: int) -> dict[str, int]:
    """Pieces of words as a tokenizer of code has them."""
    draw = random.Random(0)
    letters = "etaoinshrdlu_-/.:=ABCDEF0123456789Ġ▁#"
    known = [
        *("/home", "/Users", "/tmp", "hf_", "sk-", "npm_", "AKIA", "eyJ", "password", "token=")
    ]
    known += ["=" * 64, "-" * 64, " " * 80, "0" * 40, "<|endoftext|>", "://", "C:\\", "@gmail.com"]
    known.append(base64.b64encode(b" " * 64).decode())  # as tiktoken writes its pieces
    found = {piece: index for index, piece in enumerate(known)}
    while len(found) < size:
        piece = "".join(draw.choice(letters) for _ in range(draw.randint(1, 12)))
        found.setdefault(piece, len(found))
    return found


def test_vocabularies_are_not_refused_nor_slow(made: Callable[[], Path]) -> None:
    """A check that cries wolf gets switched off; one that takes a minute as well."""
    folder = made()
    vocabulary = _vocabulary(49_152)
    merges = [f"{piece[:1]} {piece[1:]}" for piece in vocabulary if len(piece) > 1]
    text = json.dumps({"model": {"type": "BPE", "vocab": vocabulary, "merges": merges}})
    (folder / "tokenizer.json").write_text(text)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(merges))
    (folder / "spiece.model").write_bytes(b"\x0a\x05".join(p.encode() for p in vocabulary))
    start = time.process_time()
    assert folder_problems(folder) == []
    assert time.process_time() - start < 5  # 0.5 s on an idle core


# ---- encodings, empty files ----------------------------------------------------------------------

PAPERS = ("README.md", "LICENSE", "NOTICE", "recipe.yaml", "vocab.txt", "config.json")


def test_papers_in_other_encodings(hub: HubServer, made: Callable[[], Path]) -> None:
    """`'utf-8' codec can't decode byte 0xff` names neither the file nor what to do; and a secret in
    UTF-16 is none for a search in UTF-8."""
    with Tally("publishing: encodings") as attacks:
        for name in PAPERS:
            for encoding in ("utf-16", "utf-16-le", "utf-16-be", "latin-1", "utf-32"):
                with attacks.attack(f"{name} in {encoding}"):
                    folder = made()
                    path = folder / name
                    text = path.read_text() if path.exists() else "Für alle, größer"
                    path.write_bytes((text + "\n# é").encode(encoding))
                    word = "Latin-1" if encoding == "latin-1" else encoding[:6].upper()
                    with refused(hub, rf"{re.escape(name)} is text .*{word}.*iconv"):
                        push(folder)
                    command = re.findall(r"iconv .*", "\n".join(folder_problems(folder)))[0]
                    subprocess.run(command, shell=True, check=True, cwd=folder)
                    assert path.read_text().endswith("\n# é")


def test_empty_and_broken_files(hub: HubServer, made: Callable[[], Path]) -> None:
    """A student that nobody can load, published without a word."""
    broken: dict[str, list[bytes]] = {
        "config.json": [b"", b"{}", b"[]", b"null", b"7", b"{", b"\xef\xbb\xbf{}", b"[" * 200_000],
        "tokenizer.json": [b"", b"{", b"not JSON"],
        "vocab.txt": [b""],
        "plots/curves.png": [b""],
        "model.safetensors": [b"", b"\0" * 8, b"\xff" * 64],
        "model.safetensors.index.json": [b"", b"[]", b"{}"],
        "README.md": [b""],
    }
    with Tally("publishing: empty and broken files") as attacks:
        for name, contents in broken.items():
            for content in contents:
                with attacks.attack(f"{name}: {content[:9]!r}"):
                    folder = made()
                    (folder / name).write_bytes(content)
                    with refused(hub, re.escape(name)):
                        push(folder)


# ---- checkpoints ---------------------------------------------------------------------------------


def test_checkpoints_are_checked_alike(hub: HubServer, made: Callable[[], Path]) -> None:
    """`hub_strategy="checkpoint"` publishes in the background, where nobody reads along."""
    files = ["config.json", "model.safetensors", "trainer_state.json"]
    with Tally("publishing: checkpoints") as attacks:
        for what, text in FORMS.items():
            with attacks.attack(what):
                folder = made()
                (folder / "trainer_state.json").write_text(json.dumps({"run": {"note": text}}))
                with refused(hub, "trainer_state.json"):
                    push_checkpoint(folder, files, "tester/x", "last-checkpoint", token="dummy")
        for name in files:
            with attacks.attack(f"link {name}"):
                folder = made()
                (folder / "trainer_state.json").write_text("{}")
                _linked(name, "/etc/hostname")(folder)
                with refused(hub, re.escape(name)):
                    push_checkpoint(folder, files, "tester/x", "last-checkpoint", token="dummy")
        for name in ("LICENSE", "plots", "model.safetensors", "config.json"):
            with attacks.attack(f"staged {name}"):
                folder = made()
                _linked(name, "/etc/hostname")(folder)
                with pytest.raises(OutsideError, match=name):
                    stage_student(folder, folder, folder / "_pushing")


def test_what_is_unpacked_is_bounded(
    made: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a megabyte that unpacks to gigabytes would fill the memory of the check."""
    folder = made()
    monkeypatch.setattr("hf_distill.hub.leaks.contents._LARGEST", 2**20)
    (folder / "vocabulary.json.gz").write_bytes(gzip.compress(bytes(2**21)))
    _, problems = check_files(folder, ["vocabulary.json.gz"])
    assert "unpacks to more than" in problems[0]


@pytest.mark.slow
def test_a_training_pushes_nothing_through_a_link(tmp_path: Path) -> None:
    """A push in the background must neither follow a link, nor end the training, nor be silent."""
    out, name = tmp_path / "out", "LICENSE"
    out.mkdir()
    (tmp_path / "secret").write_text(KEY)
    (out / name).symlink_to(tmp_path / "secret")
    with HubServer() as hub:
        done = training.train(out, hub, "checkpoint", "no")
        files = hub.files("tester/student")
        assert not [body for body in hub.bodies if BODY.encode() in body]
    assert name not in files
    assert f"this push was left out: {name} is a link" in done.stderr
    assert (out / "checkpoint-4/model.safetensors").is_file()
    assert (out / name).is_symlink()


def test_links_in_a_finished_folder_stay_links(tmp_path: Path) -> None:
    """A recipe that copies the earlier exports must not make a file of what a link leads to."""
    final, staging = tmp_path / "final", tmp_path / "staging"
    (final / "onnx").mkdir(parents=True)
    staging.mkdir()
    (tmp_path / "secret").write_text(KEY)
    (final / "onnx/model.onnx").symlink_to(tmp_path / "secret")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_distill.recipe.publish.exports_of", lambda folder: [{"file": "x"}])
        assert publish._exports(final, staging)
    assert (staging / "onnx/model.onnx").is_symlink()
    assert published_files(staging) == []
