"""`HTTPTeacher` and `VLLMTeacher` against servers that are hostile, broken or others."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import random
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import tiny_trainers
import torch
from raw_http import drip, reply, serving
from tally import Tally
from tiny_models import collate

from hf_distill.models.signals import Needs
from hf_distill.models.task_model import TaskModel
from hf_distill.teachers import ModelTeacher
from hf_distill.teachers.cache.manifest import tokenizer_fingerprint
from hf_distill.teachers.remote.http import Client
from hf_distill.teachers.remote.http_teacher import HTTPTeacher
from hf_distill.teachers.remote.wire import from_bytes, signal_to_tree, to_bytes
from hf_distill.teachers.serving.limits import Limits
from hf_distill.teachers.serving.server import RequestHandler
from tests.teachers.remote.test_vllm_teacher import FakeVLLM, ask, batch_of, teacher_at, tokenizer

TOLD = (ValueError, ConnectionError)
SECONDS = 0.3
HEAD = b"HTTP/1.1 200 OK\r\n"


def path_of(request: bytes) -> str:
    return request.split()[1].decode()


# ---- the transport -------------------------------------------------------------------------------


def _endless(sock: socket.socket, content: bytes) -> None:
    began = time.monotonic()
    while time.monotonic() - began < 4:  # an end, for a client that has none
        sock.sendall(content)
    sock.shutdown(socket.SHUT_RDWR)


def _close(sock: socket.socket, content: bytes) -> None:
    sock.sendall(content)
    sock.shutdown(socket.SHUT_RDWR)


BIG = b"a" * (1 << 16)
SERVERS: dict[str, Callable[[socket.socket], Any]] = {
    "silence": lambda s: time.sleep(2),
    "a status line that drips": lambda s: drip(s, b"HTTP/1.1 200 " + b"a" * 999),
    "fields that drip": lambda s: drip(s, HEAD + b"X: " + b"a" * 999),
    "100 Continue that drips": lambda s: drip(s, b"HTTP/1.1 100 Continue\r\n\r\n" * 99, 0.005),
    "100 Continue at full speed": lambda s: _endless(s, b"HTTP/1.1 100 Continue\r\n\r\n" * 500),
    "103 Early Hints at full speed": lambda s: _endless(s, b"HTTP/1.1 103 Early\r\n\r\n" * 500),
    "a body that drips": lambda s: drip(s, HEAD + b"Content-Length: 999\r\n\r\n" + b" " * 999),
    "chunks that drip": lambda s: drip(
        s, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 99),
    "a chunk's size that does not end": lambda s: _endless(
        s, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * (1 << 17)),
    "chunks of one byte": lambda s: (
        s.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n"), _endless(s, b"1\r\n \r\n" * 5000)),
    "trailers without end": lambda s: (
        s.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"),
        _endless(s, b"X: a\r\n" * 999)),
    "6 GB that are announced": lambda s: (
        s.sendall(HEAD + b"Content-Length: 6000000000\r\n\r\n"), _endless(s, BIG)),
    "a body without a length or end": lambda s: (s.sendall(HEAD + b"\r\n"), _endless(s, BIG)),
    "a length of 10,000 digits": lambda s: (
        s.sendall(HEAD + b"Content-Length: " + b"9" * 10_000 + b"\r\n\r\n"), _endless(s, BIG)),
    "fields without end": lambda s: (s.sendall(HEAD), _endless(s, b"X: a\r\n" * 999)),
    "a field without end": lambda s: (s.sendall(HEAD + b"X: "), _endless(s, BIG)),
    "a cut head": lambda s: _close(s, b"HTTP/1.1 20"),
    "a cut body": lambda s: _close(s, HEAD + b"Content-Length: 99\r\n\r\n{}"),
    "nothing": lambda s: _close(s, b""),
    "garbage": lambda s: _close(s, bytes(range(256)) * 4),
    "another protocol": lambda s: _close(s, b"SSH-2.0-OpenSSH_9.6\r\n"),
    "a redirect": lambda s: reply(
        s, b"", "302 Found", "Location: http://127.0.0.1:9/teacher\r\n"),
    "a permanent redirect": lambda s: reply(
        s, b"", "308 Moved", "Location: http://127.0.0.1:9/teacher\r\n"),
    "a break of 1e9 seconds": lambda s: reply(
        s, b"", "503 Busy", "Retry-After: 1e9\r\n"),
    "a break of inf seconds": lambda s: reply(s, b"", "503 Busy", "Retry-After: inf\r\n"),
    "a break until a date": lambda s: reply(
        s, b"", "429 Slow", "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT\r\n"),
    "a break until no date": lambda s: reply(
        s, b"", "503 Busy", "Retry-After: Fri, 99 Zzz 99999999999999999999\r\n"),
    "JSON that is deep": lambda s: reply(s, b"[" * 200_000),
    "mappings that are deep": lambda s: reply(s, b'{"a":' * 200_000),
    "an error that is deep": lambda s: reply(s, b'{"error":' * 200_000, "400 Bad"),
    "a number of 5,000 digits": lambda s: reply(s, b'{"a": ' + b"9" * 5000 + b"}"),
    "no JSON": lambda s: reply(s, b"<html>"),
    "no UTF-8": lambda s: reply(s, b"\xff\xfe"),
    "no object": lambda s: reply(s, b"[1]"),
}  # fmt: skip


def test_hostile_transport() -> None:
    """A server that drips, floods or never ends must not hang a training or fill its memory."""
    with Tally("clients: transport") as attacks:
        for what, serve in SERVERS.items():
            with attacks.attack(what), serving(lambda sock, _, s=serve: s(sock)) as url:
                client = Client(url, timeout=SECONDS, retries=1, backoff=0.01)
                began = time.monotonic()
                with pytest.raises(TOLD) as told:
                    client.json("GET", "/teacher", most=1 << 20)
                assert type(told.value) in TOLD  # no UnicodeDecodeError, no JSONDecodeError
                assert url in str(told.value)
                assert "\x1b" not in str(told.value)
                assert time.monotonic() - began < 6 * SECONDS
                client.close()


def test_answers_are_bounded() -> None:
    """6 GB were kept where some kB were asked for."""
    endless = (
        "6 GB that are announced",
        "a body without a length or end",
        "a length of 10,000 digits",
    )
    with Tally("clients: transport") as attacks:
        for what in endless:
            send = lambda sock, _, s=SERVERS[what]: s(sock)  # noqa: E731
            with attacks.attack(f"{what}, with time"), serving(send) as url:
                tracemalloc.start()
                try:
                    with pytest.raises(ValueError, match="at most 1048576 bytes"):
                        Client(url, timeout=20, retries=0).json("GET", "/teacher", most=1 << 20)
                    assert tracemalloc.get_traced_memory()[1] < 8 << 20
                finally:
                    tracemalloc.stop()


def test_a_refusal_before_the_end_of_a_request_is_read() -> None:
    """Most servers close at once where a request is too large: a broken pipe, tried five times,
    does not tell to send fewer examples."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(1000)
                reply(sock, b"too large", "413 Too Large", "Connection: close\r\n")

        thread = threading.Thread(target=refuse)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with (
            Tally("clients: transport") as attacks,
            attacks.attack("a refusal in the middle"),
            pytest.raises(ValueError, match=r"(?s)413: too large.*fewer or shorter"),
        ):
            Client(url, timeout=10, retries=0).request("POST", "/signal", bytes(50_000_000))
        thread.join()


def test_messages_of_strangers_are_printable(caplog: pytest.LogCaptureFixture) -> None:
    """Escapes of a terminal in a server's message clear the screen, or write what is not so."""
    strange = "\x1b[2J\x1b]0;title\x07\u202etxt\u200b\x00\x9b31m\r\n"
    bodies = {
        "an error in JSON": json.dumps({"error": {"message": strange}}).encode(),
        "a detail": json.dumps({"detail": strange}).encode(),
        "plain text": strange.encode(),
    }
    with Tally("clients: transport") as attacks:
        for status in ("400 Bad", "500 Bad", "404 None"):
            for what, body in bodies.items():
                send = lambda sock, _, b=body, s=status: reply(sock, b, s)  # noqa: E731
                with attacks.attack(f"{what}, {status}"), serving(send) as url:
                    with pytest.raises(TOLD) as told:
                        Client(url, SECONDS, 0).json("GET", "/teacher")
                    assert str(told.value).replace("\n", "").isprintable()
        lines = {
            "a status line": b"HTTP/1.1 \x1b[2J\r\n\r\n",
            "a version": b"HTTP/\x1b[2J 200 OK\r\n\r\n",
            "no HTTP": b"\x1b[2J\r\n\r\n",
        }
        for what, line in lines.items():
            with (
                attacks.attack(what),
                serving(lambda sock, _, b=line: _close(sock, b)) as url,
            ):
                with pytest.raises(TOLD) as told:
                    Client(url, SECONDS, 0).json("GET", "/teacher")
                assert str(told.value).replace("\n", "").isprintable()
        pause = lambda sock, _: reply(sock, b"", "503 Busy", "Retry-After: 500\r\n")  # noqa: E731
        with (
            attacks.attack("a long break is told"),
            serving(pause) as url,
            pytest.MonkeyPatch.context() as patch,
            caplog.at_level(logging.WARNING),
        ):
            patch.setattr("hf_distill.teachers.remote.http.time.sleep", lambda _: None)
            with pytest.raises(ConnectionError):
                Client(url, SECONDS, 1).json("GET", "/teacher")
            assert "a break of 500 s" in caplog.text


# ---- HTTPTeacher -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def honest() -> tuple[Any, Any, Any]:
    """Facts of a real server, as JSON would bring them, its vocabulary, and its signal's tree."""
    teacher = ModelTeacher(tiny_trainers.models()[1], tokenizer())
    answers = RequestHandler(teacher, Limits())
    batch = collate(tiny_trainers.data(rows=4))
    signal = teacher(batch, NEEDS, teacher.task_model.items(batch))
    return json.loads(json.dumps(answers.facts())), answers.vocabulary(), signal_to_tree(signal)


NEEDS = Needs(logits=True, hidden_states=True, attentions=True)


def _with(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(facts: dict[str, Any]) -> None:
        *way, last = path.split(".")
        for name in way:
            facts = facts[name]
        facts[last] = value

    return change


def _nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"text_config": value}
    return value


FACTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "describe a text": _with("describe", "x"),
    "describe a list": _with("describe", [1]),
    "describe with a mapping": _with("describe", {"name": {"a": 1}}),
    "describe with escapes": _with("describe", {"name": "\x1b[2J"}),
    "columns a number": _with("columns", 5),
    "columns of numbers": _with("columns", [5]),
    "columns a text": _with("columns", "input_ids"),
    "vocabulary a number": _with("vocabulary", 5),
    "vocabulary a list": _with("vocabulary", []),
    "fingerprint a number": _with("fingerprint", 5),
    "provides a list": _with("provides", [1]),
    "provides of texts": _with("provides", {"logits": "yes"}),
    "provides modules of numbers": _with("provides", {"modules": [1]}),
    "config a list": _with("config", [1]),
    "config a text": _with("config", "bert"),
    "a model type of a list": _with("config.model_type", []),
    "a width of a text": _with("config.hidden_size", "x"),
    "a width of a list": _with("config.hidden_size", [1]),
    "labels of a text": _with("config.id2label", "x"),
    "labels of a list": _with("config.id2label", [1, 2]),
    "labels of no numbers": _with("config.id2label", {"a": "b"}),
    "3,000,000 labels": _with("config.num_labels", 3_000_000),
    "10**12 labels": _with("config.num_labels", 10**12),
    "-1 labels": _with("config.num_labels", -1),
    "labels of floats": _with("config.num_labels", 2.5),
    "a vocabulary of 10**12": _with("config.vocab_size", 10**12),
    "a vocabulary of a text": _with("config.vocab_size", "40"),
    "10**7 layers": _with("config.num_hidden_layers", 10**7),
    "a dtype with escapes": _with("config.torch_dtype", "\x1b[2J"),
    "labels deep in it": _with("config.inner", [{"text_config": {"num_labels": 10**9}}]),
    "a protocol of a text": _with("protocol", "\x1b[2J"),
    "another protocol": _with("protocol", 99),
    "no config": lambda facts: facts.pop("config"),
    "no columns": lambda facts: facts.pop("columns"),
}


def served(facts: Any, vocabulary: bytes = b"", signal: bytes = b"") -> Any:
    """What a hostile server sends for each path."""
    parts = {
        "/teacher": json.dumps(facts).encode(),
        "/teacher/vocabulary": vocabulary,
        "/signal": signal,
    }
    return serving(lambda sock, request: reply(sock, parts[path_of(request)]))


def test_hostile_facts(honest: Any) -> None:
    """What a server tells decides over memory, labels and columns before the first batch."""
    facts, _, _ = honest
    with Tally("clients: facts") as attacks:
        for what, change in FACTS.items():
            changed = json.loads(json.dumps(facts))
            change(changed)
            began = time.monotonic()
            with attacks.attack(what), served(changed) as url:
                with pytest.raises(ValueError, match=r"Expected") as told:
                    HTTPTeacher(url, timeout=5, retries=0)
                assert url in str(told.value)
                assert str(told.value).replace("\n", "").isprintable()
                assert time.monotonic() - began < 3
        with attacks.attack("the honest ones"), served(facts) as url:
            HTTPTeacher(url, timeout=5, retries=0).close()


def test_hostile_vocabularies(honest: Any) -> None:
    """1.5 MB of gzip made 6.4 GB."""
    facts, right, _ = honest
    bomb = gzip.compress(b" " * (64 << 20), 1)
    strange = {
        "a bomb": bomb,
        "a bomb in a bomb": gzip.compress(bomb),
        "cut": right[:-9],
        "no gzip": b"{}",
        "nothing": b"",
        "a list": gzip.compress(b"[1]"),
        "deep": gzip.compress(b"[" * 100_000),
        "deep mappings": gzip.compress(b'{"a":' * 100_000),
        "texts for numbers": gzip.compress(b'{"a": "b"}'),
        "floats for numbers": gzip.compress(b'{"a": 1.5}'),
        "no UTF-8": gzip.compress(b'{"\xff": 1}'),
        "another one": gzip.compress(b'{"a": 1}'),
        "more than was asked": bytes(1 << 22),
    }
    with Tally("clients: facts") as attacks:
        for what, body in strange.items():
            began = time.monotonic()
            with attacks.attack(what), served(facts, body) as url:
                teacher = HTTPTeacher(url, timeout=5, retries=0)
                tracemalloc.start()
                try:
                    with pytest.raises(ValueError, match="Expected") as told:
                        teacher.tokens()
                    assert tracemalloc.get_traced_memory()[1] < 16 << 20
                finally:
                    tracemalloc.stop()
                assert url in str(told.value)
                assert time.monotonic() - began < 3
        with attacks.attack("the honest one"), served(facts, right) as url:
            tokens = HTTPTeacher(url, timeout=5, retries=0).tokens()
            assert tokenizer_fingerprint(tokens) == facts["vocabulary"]


ROWS = torch.zeros(4, 3)
STATES = tuple(torch.ones(4, 9, 24) for _ in range(5))
MAPS = tuple(torch.ones(4, 2, 9, 9) for _ in range(4))
SPARSE = {
    "ids": torch.zeros(4, 1).long(),
    "log_probs": torch.full((4, 1), -1.0),
    "log_rest": torch.full((4,), -1.0),
    "classes": 3,
    "temperature": 1.0,
    "exact": True,
}
SIGNALS: dict[str, dict[str, Any]] = {
    "logits of one row": {"logits": ROWS[:1]},
    "logits of more rows": {"logits": torch.zeros(5, 3)},
    "logits of one class": {"logits": ROWS[:, :1]},
    "logits of more classes": {"logits": torch.zeros(4, 4)},
    "logits of one dimension": {"logits": torch.zeros(4)},
    "logits of three": {"logits": torch.zeros(4, 1, 3)},
    "one logit": {"logits": torch.zeros(())},
    "no logits": {"logits": None},
    "logits of integers": {"logits": ROWS.long()},
    "logits of booleans": {"logits": ROWS.bool()},
    "complex logits": {"logits": ROWS.to(torch.complex64)},
    "logits as a text": {"logits": "x"},
    "logits as a list": {"logits": [1.0, 2.0]},
    "logits as a mapping": {"logits": {"a": ROWS}},
    "another kind": {"kind": "softmux"},
    "a kind of a number": {"kind": 5},
    "a kind of a list": {"kind": []},
    "an unknown field": {"surprise": 1},
    "states of width 1": {"hidden_states": {"hidden": tuple(s[..., :1] for s in STATES)}},
    "states of width 7": {"hidden_states": {"hidden": tuple(s[..., :7] for s in STATES)}},
    "states of integers": {"hidden_states": {"hidden": tuple(s.long() for s in STATES)}},
    "states of other rows": {"hidden_states": {"hidden": tuple(s[:1] for s in STATES)}},
    "states without layers": {"hidden_states": {"hidden": ()}},
    "no states": {"hidden_states": {}},
    "states as a list": {"hidden_states": [STATES]},
    "states as a tensor": {"hidden_states": STATES[0]},
    "states of texts": {"hidden_states": {"hidden": ("x",)}},
    "states of one dimension": {"hidden_states": {"hidden": (torch.zeros(4),)}},
    "no maps": {"attentions": {}},
    "maps of integers": {"attentions": {"hidden": tuple(m.long() for m in MAPS)}},
    "maps of three dimensions": {"attentions": {"hidden": tuple(m[0] for m in MAPS)}},
    "maps of null": {"attentions": None},
    "queries of one": {"qkv": {"hidden": ((ROWS,),)}},
    "queries of texts": {"qkv": {"hidden": ("abc",)}},
    "modules that were not asked for": {"modules": {"x": ROWS}},
    "modules as a list": {"modules": [ROWS]},
    "members": {"members": {"a": {"logits": ROWS}}},
    "members as a list": {"members": [1]},
    "a linear": {"linear": {"hidden": ROWS}},
    "foreign": {"foreign": [1]},
    "a router's loss as a text": {"router_loss": "x"},
    "an own loss of integers": {"own_loss": torch.tensor(1)},
    "label logits as a list": {"label_logits": [1]},
    "a blank of a text": {"blank": "x"},
    "zero_infinity of a number": {"zero_infinity": 1},
    "a name with escapes": {"who": "\x1b[2J"},
    "a name of a number": {"who": 5},
    "sparse as a text": {"sparse": "x"},
    "sparse as a list": {"sparse": [1]},
    "sparse with another field": {"sparse": SPARSE | {"more": 1}},
    "sparse without its rest": {"sparse": {k: v for k, v in SPARSE.items() if k != "log_rest"}},
    "sparse ids of floats": {"sparse": SPARSE | {"ids": torch.zeros(4, 1)}},
    "sparse ids too high": {"sparse": SPARSE | {"ids": torch.full((4, 1), 3)}},
    "sparse ids below 0": {"sparse": SPARSE | {"ids": torch.full((4, 1), -1)}},
    "sparse ids of other rows": {"sparse": SPARSE | {"ids": torch.zeros(1, 1).long()}},
    "sparse without slots": {"sparse": SPARSE | {
        "ids": torch.zeros(4, 0).long(), "log_probs": torch.zeros(4, 0)}},
    "sparse of 10**12 classes": {"sparse": SPARSE | {"classes": 10**12}},
    "sparse of 4 classes": {"sparse": SPARSE | {"classes": 4}},
    "sparse of no classes": {"sparse": SPARSE | {"classes": None}},
    "sparse of draws": {"sparse": SPARSE | {"exact": False}},
    "sparse at temperature 2": {"sparse": SPARSE | {"temperature": 2.0}},
    "sparse of too much mass": {"sparse": SPARSE | {"log_probs": torch.full((4, 1), 1.0)}},
    "sparse of NaN": {"sparse": SPARSE | {"log_probs": torch.full((4, 1), torch.nan)}},
    "sparse of two rests": {"sparse": SPARSE | {"log_rest": torch.zeros(4, 2)}},
}  # fmt: skip


def test_hostile_signals(honest: Any) -> None:
    """A shape that broadcasts is trained on without a word; what cannot be read must say whose it
    is."""
    facts, _, tree = honest
    batch = collate(tiny_trainers.data(rows=4))
    items = TaskModel(tiny_trainers.models()[0]).items(batch)
    bodies = {
        what: to_bytes({"signal": {**tree, **change}, "fingerprint": facts["fingerprint"]})
        for what, change in SIGNALS.items()
    }
    right = to_bytes({"signal": tree, "fingerprint": facts["fingerprint"]})
    bodies |= {
        "nothing": b"",
        "garbage": bytes(range(256)),
        "a cut answer": right[:-5],
        "a header of 2**62 bytes": (1 << 62).to_bytes(8, "little") + right[8:],
        "no signal": to_bytes({"fingerprint": facts["fingerprint"]}),
        "a signal of a list": to_bytes({"signal": [1], "fingerprint": facts["fingerprint"]}),
        "no fingerprint": to_bytes({"signal": tree}),
        "another fingerprint": to_bytes({"signal": tree, "fingerprint": "x"}),
        "a tree that is none": _header(b'{"__metadata__": {"hf_distill": "[1, 2"}}'),
        "a mapping of a list": _header(b'{"__metadata__": {"hf_distill": "{\\"mapping\\": [1]}"}}'),
        "a tensor that is not there": _header(
            b'{"__metadata__": {"hf_distill": "{\\"tensor\\": \\"7\\"}"}}'),
        "a tree of another key": _header(b'{"__metadata__": {"hf_distill": "{\\"a\\": 1}"}}'),
        "a deep tree": _header(
            b'{"__metadata__": {"hf_distill": "' + b"[" * 100_000 + b'"}}'),
        "64 MiB for 4 rows": right + bytes(64 << 20),
    }  # fmt: skip
    with Tally("clients: signals") as attacks:
        for what, body in bodies.items():
            with attacks.attack(what), served(facts, signal=body) as url:
                teacher = HTTPTeacher(url, timeout=5, retries=0)
                with pytest.raises(ValueError) as told:
                    teacher(batch, NEEDS, items)
                assert url in str(told.value)
                assert str(told.value).replace("\n", "").isprintable()
                teacher.close()
        with attacks.attack("the honest one"), served(facts, signal=right) as url:
            got = HTTPTeacher(url, timeout=5, retries=0)(batch, NEEDS, items)
            assert torch.equal(got.logits, from_bytes(right)["signal"]["logits"])


def _header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def test_signals_with_random_changes(honest: Any) -> None:
    """A changed byte in front of the numbers ends in a clear error, or changes nothing that counts:
    never in a broadcast shape."""
    facts, _, tree = honest
    batch = collate(tiny_trainers.data(rows=4))
    items = TaskModel(tiny_trainers.models()[0]).items(batch)
    right = to_bytes({"signal": tree, "fingerprint": facts["fingerprint"]})
    size, drawn = 8 + int.from_bytes(right[:8], "little"), random.Random(0)
    now = [right]
    send = {"/teacher": json.dumps(facts).encode()}
    with (
        serving(lambda sock, request: reply(sock, send.get(path_of(request), now[0]))) as url,
        Tally("clients: signals") as attacks,
    ):
        teacher = HTTPTeacher(url, timeout=5, retries=0)
        for index in range(60):
            changed = bytearray(right)
            place = drawn.randrange(size)
            changed[place] = drawn.randrange(256)
            now[0] = bytes(changed)
            what = f"{index}: byte {place} is {changed[place]}"
            with attacks.attack(what), contextlib.suppress(ValueError):
                got = teacher(batch, NEEDS, items)
                assert got.logits is not None
                assert got.logits.shape == (4, 3)
        teacher.close()


# ---- VLLMTeacher -------------------------------------------------------------------------------


def _entry(value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(answer: dict[str, Any]) -> Any:
        answer["choices"][0]["prompt_logprobs"][2] = value
        return answer

    return change


def _choice(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda answer: {"choices": [answer["choices"][0] | changes]}


ONE = {"logprob": -1.0, "rank": 1, "decoded_token": "x"}
ANSWERED: dict[str, Any] = {
    "choices null": lambda answer: {"choices": None},
    "choices of texts": lambda answer: {"choices": ["x"]},
    "choices of null": lambda answer: {"choices": [None]},
    "choices a mapping": lambda answer: {"choices": {"0": 1}},
    "an index of a text": _choice(index="x"),
    "an index of a list": _choice(index=[]),
    "an index of 7": _choice(index=7),
    "no log-probabilities": _choice(prompt_logprobs=None),
    "log-probabilities of a text": _choice(prompt_logprobs="x" * 9),
    "log-probabilities of mappings": _choice(prompt_logprobs={}),
    "an entry of a list": _entry([1]),
    "an entry of a number": _entry(5),
    "an entry of a text": _entry("x"),
    "an empty entry": _entry({}),
    "a token of a name": _entry({"a": ONE}),
    "a token of 10**30": _entry({str(10**30): ONE}),
    "a token of 5,000 digits": _entry({"9" * 5000: ONE}),
    "a token below 0": _entry({"-5": ONE}),
    "a token with a line": _entry({"1_0": ONE}),
    "a token of another digit": _entry({"\u0665": ONE}),
    "a value of a number": _entry({"5": -1.0}),
    "a value of a list": _entry({"5": [1]}),
    "a value of null": _entry({"5": None}),
    "a log-probability of a text": _entry({"5": {"logprob": "-1"}}),
    "a log-probability of a list": _entry({"5": {"logprob": [1]}}),
    "a log-probability of 10**400": _entry({"5": {"logprob": 10**400}}),
    "a log-probability of true": _entry({"5": {"logprob": True}}),
    "a log-probability of infinity": _entry({"5": {"logprob": float("inf")}}),
    "a log-probability of NaN": _entry({"5": {"logprob": float("nan")}}),
}
CARDS: dict[str, Any] = {
    "data null": {"data": None},
    "data a number": {"data": 5},
    "data of texts": {"data": ["x"]},
    "data a mapping": {"data": {"id": "x"}},
    "two models": {"data": [{"id": "a"}, {"id": "b"}]},
    "a length of a text": {"data": [{"id": "x", "max_model_len": "long"}]},
    "a length of a list": {"data": [{"id": "x", "max_model_len": [1]}]},
    "a length below 0": {"data": [{"id": "x", "max_model_len": -1}]},
    "a length of infinity": {"data": [{"id": "x", "max_model_len": float("inf")}]},
    "a vocabulary of 10**12": {"data": [{"id": "x", "vocab_size": 10**12}]},
    "a vocabulary of 10**6": {"data": [{"id": "x", "vocab_size": 10**6}]},
    "a vocabulary of a text": {"data": [{"id": "x", "vocab_size": "40"}]},
    "a vocabulary of 0": {"data": [{"id": "x", "vocab_size": 0}]},
}
PROBES: dict[str, Any] = {
    "tokens of texts": {"tokens": ["a", "b"]},
    "tokens of 10**30": {"tokens": [10**30]},
    "tokens below 0": {"tokens": [-1]},
    "tokens of lists": {"tokens": [[1]]},
    "tokens of null": {"tokens": [None]},
    "no tokens of a text": {"tokens": []},
}


def test_hostile_completions() -> None:
    """What a completion server answers is trained on: a mass, a token or a number of classes that
    cannot be right must end the batch with the server's name, not with a TypeError."""
    llama = tiny_trainers.models("causal_lm")[1].eval()
    with FakeVLLM(llama, tokenizer()) as fake, Tally("clients: completions") as attacks:
        for what, step in ANSWERED.items():
            with attacks.attack(what):
                teacher = teacher_at(fake.url, retries=0)
                teacher.place(None)
                fake.script.append(step)
                with pytest.raises(ValueError, match="Expected") as told:
                    ask(teacher, batch_of(1), llama)
                assert (type(told.value), fake.url in str(told.value)) == (ValueError, True)
                teacher.close()
        with attacks.attack("the honest answer"):
            ask(teacher_at(fake.url), batch_of(1), llama)
    for name, answered in {"models": CARDS, "probes": PROBES}.items():
        with Tally("clients: completions") as attacks:
            for what, content in answered.items():
                parts = {
                    "/v1/models": json.dumps(
                        content if name == "models" else {"data": [{"id": "x"}]}
                    ).encode(),
                    "/tokenize": json.dumps(content).encode(),
                }
                send = lambda sock, request, p=parts: reply(sock, p[path_of(request)])  # noqa: E731
                with attacks.attack(what), serving(send) as url:
                    with pytest.raises(ValueError, match=r"Expected|is another one") as told:
                        teacher_at(url, retries=0).place(None)
                    assert url in str(told.value)
                    assert type(told.value) is ValueError
