"""A `TeacherServer` against strangers: requests as bytes, over sockets of the loopback."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import small
import torch
import transformers
from raw_http import answers, get, opened, post
from tally import Tally
from test_server_teacher import tokenizer
from zoo import VOCAB

from hf_distill.serving import TeacherServer, connections, handler
from hf_distill.signals import Items, Needs, Signal
from hf_distill.teachers import ModelTeacher
from hf_distill.teachers.wire import from_bytes, to_bytes

tf: Any = transformers
OWN = "Host: localhost\r\n"
TOKEN = "t0ken-of-16-chars"
GOOD = f"GET /health HTTP/1.1\r\n{OWN}\r\n".encode()


class Counted(ModelTeacher):
    """Counts its calls; takes its time where that is asked."""

    calls, seconds = 0, 0.0

    def __call__(self, batch: Any, needs: Needs, items: Items) -> Signal:
        self.calls += 1
        time.sleep(self.seconds)
        return super().__call__(batch, needs, items)


@pytest.fixture(scope="module")
def teacher() -> Counted:
    return Counted(small.models()[1])


@pytest.fixture(scope="module")
def url(teacher: Counted) -> Iterator[str]:
    with TeacherServer(teacher, max_bytes=1 << 20, max_tokens=256, max_elements=50_000) as server:
        yield server.url


@pytest.fixture(scope="module")
def writer() -> Counted:
    return Counted(small.models("causal_lm")[1])


@pytest.fixture(scope="module")
def texts(writer: Counted) -> Iterator[str]:
    with TeacherServer(writer, tokenizer=tokenizer(), name="tiny") as server:
        yield server.url


# ---- HTTP ----------------------------------------------------------------------------------------


def posted(fields: str, body: str = "xx", version: str = "1.1") -> bytes:
    return f"POST /signal HTTP/{version}\r\n{OWN}{fields}\r\n{body}".encode("latin-1")


MALFORMED: list[tuple[str, bytes, int]] = [
    ("two lengths", posted("Content-Length: 2\r\nContent-Length: 40\r\n"), 400),
    ("two equal lengths", posted("Content-Length: 2\r\nContent-Length: 2\r\n"), 400),
    ("two lengths of other case", posted("Content-Length: 2\r\ncontent-LENGTH: 3\r\n"), 400),
    ("a list of lengths", posted("Content-Length: 2, 2\r\n"), 400),
    ("a blank before the colon", posted("Content-Length : 2\r\n"), 400),
    ("a tab before the colon", posted("Content-Length\t: 2\r\n"), 400),
    ("a coding with a blank", posted("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"), 400),
    ("a coding and a length", posted("Transfer-Encoding: chunked\r\nContent-Length: 2\r\n"), 400),
    ("a length and a coding", posted("Content-Length: 2\r\nTransfer-Encoding: identity\r\n"), 400),
    ("two codings", posted("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"), 400),
    ("chunked", posted("Transfer-Encoding: chunked\r\n", "0\r\n\r\n"), 411),
    ("a folded line", posted("X: a\r\n Content-Length: 2\r\n"), 400),
    ("a folded length", posted("Content-Length:\r\n 2\r\n"), 400),
    ("a blank line with a blank", posted("Content-Length: 2\r\n \r\n"), 400),
    ("a first line that is folded", f"GET /health HTTP/1.1\r\n {OWN}\r\n".encode(), 400),
    ("a length of 10,000 digits", posted(f"Content-Length: {'9' * 10_000}\r\n"), 400),
    ("a length of 19 digits", posted(f"Content-Length: {'9' * 19}\r\n"), 400),
    ("a negative length", posted("Content-Length: -1\r\n"), 400),
    ("a length with a sign", posted("Content-Length: +2\r\n"), 400),
    ("a hexadecimal length", posted("Content-Length: 0x2\r\n"), 400),
    ("a length with a line", posted("Content-Length: 1_0\r\n"), 400),
    ("a length with another digit", posted("Content-Length: 2\xb2\r\n"), 400),
    ("no length", posted("Content-Length: \r\n"), 400),
    ("a carriage return in a field", posted("X: a\rContent-Length: 2\r\n"), 400),
    ("a zero byte in a field", posted("X: a\x00b\r\n"), 400),
    ("a field without a name", posted(": a\r\n"), 400),
    ("a field without a colon", posted("nothing\r\n"), 400),
    ("a name in brackets", posted("X[0]: a\r\n"), 400),
    ("no Host", b"GET /health HTTP/1.1\r\n\r\n", 400),
    ("two Hosts", f"GET /health HTTP/1.1\r\n{OWN}{OWN}\r\n".encode(), 400),
    ("nonsense", b"nonsense\r\n\r\n", 400),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n", 400),
    ("an SSH greeting", b"SSH-2.0-OpenSSH_9.6\r\n\r\n", 400),
    ("HTTP/0.9", b"GET /health\r\n", 400),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("a version with letters", f"GET /health HTTP/1.x\r\n{OWN}\r\n".encode(), 400),
    ("a blank in the path", f"GET /he alth HTTP/1.1\r\n{OWN}\r\n".encode(), 400),
    ("a tab in the line", f"GET\t/health HTTP/1.1\r\n{OWN}\r\n".encode(), 400),
    ("an unfinished address", f"GET http://[::1 HTTP/1.1\r\n{OWN}\r\n".encode(), 400),
    ("a path of 100 kB", f"GET /{'a' * 100_000} HTTP/1.1\r\n{OWN}\r\n".encode(), 400),
    ("a field of 100 kB", f"GET /health HTTP/1.1\r\n{OWN}X: {'a' * 100_000}\r\n\r\n".encode(), 431),
    ("10,000 fields", f"GET / HTTP/1.1\r\n{OWN}{'X: aaaaaaa' * 1}\r\n".encode()
     + b"Y: aaaaaa\r\n" * 10_000 + b"\r\n", 431),
    ("200 fields", f"GET /health HTTP/1.1\r\n{OWN}".encode() + b"Y: a\r\n" * 200 + b"\r\n", 431),
    ("a path upwards", f"GET /../../etc/passwd HTTP/1.1\r\n{OWN}\r\n".encode(), 404),
    ("escapes in the path", f"GET /%1b[31m HTTP/1.1\r\n{OWN}\r\n".encode(), 404),
    ("HEAD", f"HEAD /health HTTP/1.1\r\n{OWN}\r\n".encode(), 405),
    ("DELETE", f"DELETE /signal HTTP/1.1\r\n{OWN}\r\n".encode(), 405),
    ("CONNECT", f"CONNECT a:1 HTTP/1.1\r\n{OWN}\r\n".encode(), 404),
    ("a body too large", posted(f"Content-Length: {1 << 21}\r\n", ""), 413),
    ("a proxy's address", f"GET http://localhost/health HTTP/1.1\r\n{OWN}\r\n".encode(), 200),
    ("HTTP/1.0", b"GET /health HTTP/1.0\r\n\r\n", 200),
    ("a line feed alone", b"GET /health HTTP/1.1\nHost: localhost\n\n", 200),
]  # fmt: skip


def test_malformed_http(url: str, teacher: Counted, caplog: pytest.LogCaptureFixture) -> None:
    """What a proxy in front takes for one request and the server for two lets one client put
    requests into another's connection."""
    before = teacher.calls
    with Tally("server: malformed HTTP") as attacks:
        for what, request, expected in MALFORMED:
            with attacks.attack(what):
                found = answers(url, request)
                assert [status for status, _ in found] == [expected], found
        with attacks.attack("51 requests at once"):
            assert [status for status, _ in answers(url, GOOD * 51)] == [200] * 51
        with attacks.attack("a body that looks like a request"):
            inner = f"GET /nowhere HTTP/1.1\r\n{OWN}\r\n".encode()
            head = f"GET /health HTTP/1.1\r\n{OWN}Content-Length: {len(inner)}\r\n\r\n".encode()
            assert [status for status, _ in answers(url, head + inner)] == [200]
    assert teacher.calls == before
    assert not [r for r in caplog.records if r.levelname == "ERROR"], caplog.text


def test_requests_with_random_changes(url: str) -> None:
    """A form that nobody thought of must not end in a hanging connection or a dead thread."""
    drawn = random.Random(0)
    base = posted("Content-Length: 2\r\nAccept: */*\r\n")
    with Tally("server: malformed HTTP") as attacks:
        for index in range(60):
            changed = bytearray(base)
            for _ in range(drawn.randint(1, 3)):
                changed[drawn.randrange(len(changed) - 6)] = drawn.randrange(256)
            with attacks.attack(f"{index}: {bytes(changed)!r}"), opened(url, 5) as sock:
                sock.sendall(changed)
                sock.shutdown(1)
                found = sock.recv(1 << 16)
                assert found[:12] in (b"", b"HTTP/1.1 505") or found[9:10] == b"4", found
        with attacks.attack("health after all"):
            assert get(url, "/health")[0] == 200


def test_other_names_and_origins(teacher: Counted) -> None:
    """A page of another site, to whose name the loopback's address was bound, would read all that
    the teacher knows."""
    own = ["localhost", "LOCALHOST:80", "127.0.0.1", "127.8.8.8:1", "[::1]", "[::1]:9"]
    strange = ["evil.example", "localhost.evil.example", "evil.example:8300", "127.0.0.1.nip.io",
               "10.0.0.1", "0.0.0.0", "localhost@evil.example", "", "[::1", "localhost:x",
               "localhost/x", "evil.example#localhost", "[::2]"]  # fmt: skip
    with TeacherServer(teacher) as server, Tally("server: names and tokens") as attacks:
        for host in own:
            with attacks.attack(f"own {host}"):
                assert get(server.url, "/health", f"Host: {host}\r\n")[0] == 200
        for host in strange:
            with attacks.attack(f"Host: {host}"):
                status, told = get(server.url, "/health", f"Host: {host}\r\n")
                assert (status, "allow-host" in told["error"]["message"]) == (403, True)
        for origin in ["http://evil.example", "null", "https://localhost.evil.example"]:
            with attacks.attack(f"Origin: {origin}"):
                plain = f"Origin: {origin}\r\nContent-Type: text/plain\r\n"
                assert post(server.url, "/signal", b"", plain)[0] == 403
        with attacks.attack("the page of this machine"):
            fields = f"{OWN}Origin: http://localhost:3000\r\n"
            assert get(server.url, "/health", fields)[0] == 200
    with TeacherServer(teacher, allowed_hosts=["Teacher.example"]) as server:  # the remedy
        assert get(server.url, "/health", "Host: teacher.example\r\n")[0] == 200
        assert get(server.url, "/health", "Host: evil.example\r\n")[0] == 403


def test_tokens(teacher: Counted) -> None:
    """A server for other machines without a token is open to all of them."""
    with Tally("server: names and tokens") as attacks:
        for host in ["0.0.0.0", "", "::", "192.0.2.1", "no-such-host.invalid"]:
            refused = pytest.raises(ValueError, match="Give one")
            with attacks.attack(f"{host!r} without a token"), refused:
                TeacherServer(teacher, host)
        for empty in ["", " "]:
            refused = pytest.raises(ValueError, match="empty token")
            with attacks.attack("an empty token"), refused:
                TeacherServer(teacher, "0.0.0.0", token=empty)
        with TeacherServer(teacher, token=TOKEN) as server:
            fields = ["", TOKEN, "Bearer", f"Bearer {TOKEN[:-1]}", "Basic eDp5", f"Bearer  {TOKEN}",
                      f"bearer {TOKEN}", "Bearer \xff"]  # fmt: skip
            for path in ("/health", "/teacher", "/nowhere"):
                for value in fields:
                    with attacks.attack(f"{path} {value!r}"):
                        given = f"{OWN}Authorization: {value}\r\n"
                        assert get(server.url, path, given)[0] == 401
            with attacks.attack("100 kB without a token"):
                assert post(server.url, "/signal", b"x" * 100_000)[0] == 401
            assert (
                get(server.url, "/health", f"{OWN}Authorization: Bearer t0ken-of-16-chars\r\n")[0]
                == 200
            )
    with TeacherServer(teacher, "0.0.0.0", no_token=True) as server:  # the remedies
        assert get(server.url.replace("0.0.0.0", "127.0.0.1"), "/health")[0] == 200
    with TeacherServer(teacher, "0.0.0.0", token=TOKEN) as server:
        assert get(server.url.replace("0.0.0.0", "127.0.0.1"), "/health")[0] == 401


# ---- requests for signals ------------------------------------------------------------------------


def signal_body(batch: dict[str, Any], **changes: Any) -> bytes:
    rows = 2
    items = {"masks": {"samples": torch.ones(rows, dtype=torch.bool)}, "labels": None}
    needs = {"logits": True}
    return to_bytes({"batch": batch, "items": items, "needs": needs, "top_k": None, **changes})


IDS = torch.full((2, 5), 7)
WRONG: dict[str, dict[str, Any]] = {
    "positions too high": {"position_ids": torch.full((2, 5), 16)},
    "positions below 0": {"position_ids": torch.full((2, 5), -1)},
    "positions 2**40": {"position_ids": torch.full((2, 5), 1 << 40)},
    "positions of floats": {"position_ids": torch.zeros(2, 5)},
    "positions of another length": {"position_ids": torch.zeros(2, 4).long()},
    "types too high": {"token_type_ids": torch.full((2, 5), 2)},
    "types below 0": {"token_type_ids": torch.full((2, 5), -1)},
    "types of floats": {"token_type_ids": torch.ones(2, 5)},
    "types of another shape": {"token_type_ids": torch.zeros(2, 6).long()},
    "types as bytes": {"token_type_ids": torch.zeros(2, 5, dtype=torch.uint8)},
    "mask of one row": {"attention_mask": torch.ones(1, 5)},
    "mask of one column": {"attention_mask": torch.ones(2, 1)},
    "mask too long": {"attention_mask": torch.ones(2, 9)},
    "mask of 5 dimensions": {"attention_mask": torch.ones(2, 1, 1, 5, 5)},
    "mask of one number": {"attention_mask": torch.tensor(1)},
    "ids too high": {"input_ids": torch.full((2, 5), VOCAB)},
    "ids below 0": {"input_ids": torch.full((2, 5), -100)},
    "ids of floats": {"input_ids": torch.ones(2, 5)},
    "ids of booleans": {"input_ids": torch.ones(2, 5).bool()},
    "ids of 8 bits": {"input_ids": torch.ones(2, 5, dtype=torch.uint8)},
    "ids of 64 bits without a sign": {"input_ids": torch.ones(2, 5, dtype=torch.uint64)},
    "ids of complex numbers": {"input_ids": torch.ones(2, 5, dtype=torch.complex64)},
    "ids without rows": {"input_ids": torch.zeros(0, 5).long()},
    "ids of one dimension": {"input_ids": torch.tensor([7, 8])},
    "ids of three dimensions": {"input_ids": torch.full((2, 2, 5), 7)},
    "one id": {"input_ids": torch.tensor(7)},
    "ids as a text": {"input_ids": "7 8"},
    "ids as a list": {"input_ids": [7, 8]},
    "more texts than tokens allowed": {"input_ids": torch.full((60, 5), 7)},
    "texts longer than positions": {"input_ids": torch.full((1, 17), 7)},
    "12,000 tokens": {"input_ids": torch.full((1, 12_000), 7)},
    "12,000 tokens behind a mask": {"input_ids": torch.full((1, 250), 7),
                                    "attention_mask": torch.zeros(1, 250)},
    "states in place of ids, and ids": {"inputs_embeds": torch.ones(2, 5, 24)},
    "states of another width": {"input_ids": None, "inputs_embeds": torch.ones(2, 5, 3)},
    "an unknown column": {"no_such": IDS},
    "a control": {"output_attentions": True},
    "a control as a tensor": {"return_dict": torch.zeros(2)},
    "labels": {"labels": torch.zeros(2).long()},
    "nothing": {"input_ids": None},
}  # fmt: skip
JUDGED_BY_THE_MODEL = {
    "states in place of ids, and ids",
    "states of another width",
    "ids of three dimensions",
}
REQUESTS: dict[str, dict[str, Any]] = {
    "needs of a number": {"needs": {"logits": 1}},
    "needs as a list": {"needs": [1]},
    "needs of an unknown module": {"needs": {"modules": ["no.such"]}},
    "needs that are not provided": {"needs": {"foreign": True}},
    "top_k 0": {"top_k": 0},
    "top_k of a float": {"top_k": 2.0},
    "top_k true": {"top_k": True},
    "masks of floats": {"items": {"masks": {"samples": torch.ones(2)}, "labels": None}},
    "masks as a list": {"items": {"masks": [], "labels": None}},
    "items as a text": {"items": "x"},
    "masks of other items": {"items": {"masks": {"items": torch.ones(3).bool()}, "labels": None}},
    "labels as a text": {"items": {"masks": {}, "labels": "x"}},
}


def test_wrong_batches(url: str, teacher: Counted) -> None:
    """An index out of range ends the GPU of the server; any other error must say whose it is."""
    with Tally("server: requests") as attacks:
        for what, columns in WRONG.items():
            batch = {"input_ids": IDS, "attention_mask": torch.ones(2, 5).long()} | columns
            if "attention_mask" not in columns and batch["input_ids"] is not IDS:
                del batch["attention_mask"]
            batch = {key: value for key, value in batch.items() if value is not None}
            with attacks.attack(what):
                before, alone = teacher.calls, what in JUDGED_BY_THE_MODEL
                status, told = post(url, "/signal", signal_body(batch))
                assert (status, teacher.calls > before) == (400, alone), told
        for what, changes in REQUESTS.items():
            with attacks.attack(what):
                status, told = post(url, "/signal", signal_body({"input_ids": IDS}, **changes))
                assert status == 400, told
        for size in (0, 8, 1 << 20, 1 << 62):
            with attacks.attack(f"a header of {size} bytes"):
                body = size.to_bytes(8, "little") + b"[" * 5000
                assert post(url, "/signal", body)[0] == 400
        with attacks.attack("attention maps beyond the limit"):
            batch = {"input_ids": torch.full((16, 16), 7)}
            needs = {"attentions": True, "hidden_states": True, "logits": True}
            status, told = post(url, "/signal", signal_body(batch, needs=needs))
            assert (status, "--max-elements" in told["error"]["message"]) == (400, True), told
        with attacks.attack("an honest request after all"):
            status, answer = post(url, "/signal", signal_body({"input_ids": IDS}))
            assert status == 200
            with torch.no_grad():
                want = teacher.model(input_ids=IDS).logits
            assert torch.equal(from_bytes(answer)["signal"]["logits"], want)


def _tiny(kind: str, **sizes: Any) -> Any:
    own = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
           "intermediate_size": 24, "max_position_embeddings": 16}  # fmt: skip
    config = getattr(tf, f"{kind}Config")(**{**own, **sizes})
    return getattr(tf, f"{kind}ForSequenceClassification")(config)


def _xlm() -> Any:
    sizes = {"emb_dim": 16, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 16}
    config = tf.XLMConfig(vocab_size=VOCAB, n_langs=3, **sizes)
    return tf.XLMForSequenceClassification(config)


def _gpt2() -> Any:
    sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return tf.GPT2ForSequenceClassification(
        tf.GPT2Config(vocab_size=VOCAB, pad_token_id=1, bos_token_id=0, eos_token_id=0, **sizes)
    )


BOX = torch.tensor([1, 2, 3, 4]).expand(2, 5, 4)
LOOKUPS: list[tuple[str, Any, dict[str, Any]]] = [
    ("GPT-2, positions", _gpt2, {"position_ids": torch.full((2, 5), 16)}),
    ("GPT-2, positions below 0", _gpt2, {"position_ids": torch.full((2, 5), -3)}),
    ("GPT-2, types are tokens", _gpt2, {"token_type_ids": torch.full((2, 5), VOCAB)}),
    ("OPT, positions with an offset", lambda: _tiny(
        "OPT", ffn_dim=24, word_embed_proj_dim=16, pad_token_id=1, bos_token_id=0, eos_token_id=0,
    ), {"position_ids": torch.full((2, 5), 16)}),
    ("LayoutLM, boxes too high", lambda: _tiny("LayoutLM", max_2d_position_embeddings=32),
     {"bbox": BOX * 9}),
    ("LayoutLM, boxes turned over", lambda: _tiny("LayoutLM", max_2d_position_embeddings=32),
     {"bbox": BOX.flip(-1).contiguous()}),
    ("LayoutLM, boxes below 0", lambda: _tiny("LayoutLM", max_2d_position_embeddings=32),
     {"bbox": -BOX}),
    ("XLM, languages", _xlm, {"langs": torch.full((2, 5), 3)}),
    ("XLM, lengths", _xlm, {"lengths": torch.tensor([5, 6])}),
    ("XLM, positions", _xlm, {"position_ids": torch.full((2, 5), 99)}),
    ("ERNIE, tasks", lambda: _tiny("Ernie", task_type_vocab_size=3, use_task_id=True),
     {"task_type_ids": torch.full((2, 5), 3)}),
    ("TAPAS, types", lambda: _tiny("Tapas", type_vocab_sizes=[3, 4, 4, 2, 4, 4, 4]),
     {"token_type_ids": torch.full((2, 5, 7), 5)}),
    ("CANINE, positions", lambda: _tiny(
        "Canine", max_position_embeddings=512, num_hash_buckets=8, num_hash_functions=2,
        local_transformer_stride=4, downsampling_rate=4, upsampling_kernel_size=4,
    ), {"input_ids": torch.full((2, 8), 7), "position_ids": torch.full((2, 8), 512)}),
]  # fmt: skip


def test_no_table_is_read_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the first such look-up is the last thing the process does."""
    reached: list[str] = []
    lookup = torch.embedding

    def judged(weight: Any, ids: Any, *rest: Any, **options: Any) -> Any:
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= weight.shape[0]):
            reached.append(f"{int(ids.min())} to {int(ids.max())} of {weight.shape[0]}")
        return lookup(weight, ids, *rest, **options)

    monkeypatch.setattr(torch, "embedding", judged)
    with Tally("server: requests") as attacks:
        for what, make, columns in LOOKUPS:
            with attacks.attack(what), TeacherServer(ModelTeacher(make())) as server:
                batch = {"input_ids": IDS} | columns
                good = signal_body({"input_ids": batch["input_ids"]})
                status, told = post(server.url, "/signal", good)
                assert status == 200, told
                status, told = post(server.url, "/signal", signal_body(batch))
                assert (status, reached) == (400, []), told
                assert post(server.url, "/signal", good)[0] == 200
            reached.clear()


LOST = [
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("cuBLAS error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    RuntimeError("HIP error: unspecified launch failure"),
]
if hasattr(torch, "AcceleratorError"):
    LOST.append(torch.AcceleratorError("CUDA error: unknown error"))


def test_a_lost_device_is_told() -> None:
    """A server whose device is lost says ok to whoever watches it, and fails every training."""
    with Tally("server: lost devices") as attacks:
        for error in LOST:
            with attacks.attack(str(error)):
                model = small.models()[1]
                with TeacherServer(ModelTeacher(model)) as server:
                    assert post(server.url, "/signal", signal_body({"input_ids": IDS}))[0] == 200

                    def broken(*_: Any, error: Exception = error, **__: Any) -> Any:
                        raise error

                    model.forward = broken
                    assert post(server.url, "/signal", signal_body({"input_ids": IDS}))[0] == 500
                    status, told = get(server.url, "/health")
                    assert (status, "restart" in told["error"]["message"]) == (503, True)
                    assert post(server.url, "/signal", signal_body({"input_ids": IDS}))[0] == 503
        with attacks.attack("memory that ran out"):
            model = small.models()[1]
            with TeacherServer(ModelTeacher(model)) as server:
                own, full = model.forward, torch.OutOfMemoryError("CUDA out of memory. Tried")

                def once(*args: Any, **options: Any) -> Any:
                    model.forward = own
                    raise full

                model.forward = once
                assert post(server.url, "/signal", signal_body({"input_ids": IDS}))[0] == 500
                assert get(server.url, "/health")[0] == 200
                assert post(server.url, "/signal", signal_body({"input_ids": IDS}))[0] == 200


# ---- requests for completions --------------------------------------------------------------------

COMPLETIONS: list[tuple[str, Any, int]] = [
    ("an id of 10**30", {"prompt": [10**30]}, 400),
    ("an id of -10**30", {"prompt": [5, -(10**30)]}, 400),
    ("an id of 2**63", {"prompt": [2**63]}, 400),
    ("an id below 0", {"prompt": [-1]}, 400),
    ("a boolean", {"prompt": [True]}, 400),
    ("a float", {"prompt": [5.0]}, 400),
    ("a lone surrogate", {"prompt": "a\ud800"}, 400),
    ("a lone surrogate among texts", {"prompt": ["a", "\udfff"]}, 400),
    ("a mapping", {"prompt": {}}, 400),
    ("null", {"prompt": None}, 400),
    ("lists in lists", {"prompt": [[[5]]]}, 400),
    ("an empty text", {"prompt": ""}, 400),
    ("257 prompts", {"prompt": [[5, 6]] * 257}, 400),
    ("4,000 prompts", {"prompt": [[5, 6]] * 4000}, 400),
    ("a text of 2 MB", {"prompt": "a" * (2 << 20)}, 400),
    ("many long texts", {"prompt": ["a" * 9000] * 256}, 400),
    ("more log-probabilities than a list", {"prompt": [5], "prompt_logprobs": 10**9}, 400),
    ("prompt_logprobs true", {"prompt": [5], "prompt_logprobs": True}, 400),
    ("prompt_logprobs -2", {"prompt": [5], "prompt_logprobs": -2}, 400),
    ("max_tokens of a list", {"prompt": [5], "max_tokens": []}, 400),
    ("max_tokens 1e400", {"prompt": [5], "max_tokens": 1e9}, 400),
    ("a model of a list", {"prompt": [5], "model": []}, 404),
    ("a model with escapes", {"prompt": [5], "model": "\x1b[2J"}, 404),
    ("a stream", {"prompt": [5], "stream": True}, 400),
    ("an unknown option", {"prompt": [5, 6], "no_such": 1}, 200),
]


def test_wrong_completions(texts: str) -> None:
    """Each of these was an error of the server, or cost it minutes."""
    with Tally("server: requests") as attacks:
        for what, request, expected in COMPLETIONS:
            with attacks.attack(what):
                body = {"model": "tiny", "max_tokens": 1, "prompt_logprobs": 3, **request}
                status, told = post(texts, "/v1/completions", body)
                assert status == expected, told
        for what, prompt in [("surrogate", "\ud800"), ("2 MB", "a" * (2 << 20)), ("list", [1])]:
            with attacks.attack(f"tokens of a {what}"):
                assert post(texts, "/tokenize", {"prompt": prompt})[0] == 400
        bodies = [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"a":' * 100_000,
                  b'{"prompt": [' + b"9" * 5000 + b"]}", b'{"prompt": NaN}', b"null"]  # fmt: skip
        for body in bodies:
            with attacks.attack(f"{len(body)} bytes: {body[:12]!r}"):
                assert post(texts, "/v1/completions", body)[0] == 400
        with attacks.attack("JSON of 17 MB"):
            head = f"POST /v1/completions HTTP/1.1\r\n{OWN}Content-Length: {17 << 20}\r\n\r\n"
            assert [status for status, _ in answers(texts, head.encode())] == [413]


def test_a_long_request_lets_others_go_between(texts: str, writer: Counted) -> None:
    """One request of many prompts kept all others waiting until it was done: 24 s for 4,000."""
    writer.seconds = 0.02
    many = {"model": "tiny", "prompt": [[5, 6, 7]] * 100, "max_tokens": 1}
    done: list[float] = []
    thread = threading.Thread(
        target=lambda: (post(texts, "/v1/completions", many), done.append(time.monotonic()))
    )
    with Tally("server: floods") as attacks:
        try:
            thread.start()
            while writer.calls == 0 or get(texts, "/health")[1]["pending"] == 0:
                time.sleep(0.005)
            for index in range(3):
                with attacks.attack(f"beside 100 prompts, {index}"):
                    before = writer.calls
                    assert post(texts, "/v1/completions", many | {"prompt": [5]})[0] == 200
                    assert writer.calls - before <= 6  # its own, and few of the others
            with attacks.attack("before the long one is done"):
                assert not done
        finally:
            thread.join()
            writer.seconds = 0.0


# ---- floods --------------------------------------------------------------------------------------


@contextlib.contextmanager
def crowd(url: str, number: int, beginning: bytes) -> Iterator[list[Any]]:
    """So many connections that have begun a request and do not go on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(opened(url)) for _ in range(number)]
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.sendall(beginning)
        yield sockets


def test_connections_are_bounded(teacher: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection is a thread: thousands that only wait would fill the memory."""
    monkeypatch.setattr(connections, "MOST", 12)
    beginnings = {"nothing": b"", "half a head": GOOD[:20], "half a body": posted(
        "Content-Length: 50000\r\n", "x")}  # fmt: skip
    with Tally("server: floods") as attacks:
        for what, beginning in beginnings.items():
            with TeacherServer(teacher) as server, attacks.attack(f"60 connections with {what}"):
                before = threading.active_count()
                with crowd(server.url, 60, beginning):
                    began = time.monotonic()
                    assert get(server.url, "/health")[0] == 200
                    assert post(server.url, "/signal", signal_body({"input_ids": IDS}))[0] == 200
                    assert time.monotonic() - began < 5
                    time.sleep(0.2)  # the threads of those that gave way end
                    assert threading.active_count() - before <= 14
                assert get(server.url, "/health")[0] == 200


def test_requests_have_a_deadline(teacher: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timeout of each read alone is never reached by a client that sends a byte now and then."""
    monkeypatch.setattr(handler, "TIME", 0.4)
    heads = {"head": GOOD[:9], "fields": b"GET /health HTTP/1.1\r\n", "body": posted(
        "Content-Length: 999\r\n")}  # fmt: skip
    with TeacherServer(teacher) as server, Tally("server: floods") as attacks:
        for what, beginning in heads.items():
            with attacks.attack(f"a {what} that drips"), opened(server.url) as sock:
                began = time.monotonic()
                with contextlib.suppress(OSError):
                    sock.sendall(beginning)
                    while time.monotonic() - began < 8:
                        sock.sendall(b"a")
                        time.sleep(0.05)
                assert time.monotonic() - began < 4
        with attacks.attack("an answer that is not taken"), opened(server.url) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wanted = f"GET /teacher HTTP/1.1\r\n{OWN}\r\n".encode() * 2000
            began = time.monotonic()
            with contextlib.suppress(OSError):
                while time.monotonic() - began < 12:
                    sock.sendall(wanted)
            assert time.monotonic() - began < 8


def test_bodies_share_a_budget(teacher: Counted) -> None:
    """24 connections that each hold 150 MB took 4.1 GB; what is held must be bounded, and small
    requests must get through all the same."""
    with TeacherServer(teacher, max_bytes=1 << 20) as server, Tally("server: floods") as attacks:
        half = posted(f"Content-Length: {1 << 20}\r\n", "x" * (600 << 10))
        with (
            attacks.attack("12 bodies of 1 MiB, of which 0.6 have come"),
            crowd(server.url, 12, half) as sockets,
        ):
            time.sleep(0.3)
            assert 0 < server.bodies.held <= 1 << 20
            assert post(server.url, "/signal", signal_body({"input_ids": IDS}))[0] == 200
            told = 0
            for sock in sockets:
                sock.settimeout(0.2)
                with contextlib.suppress(OSError):
                    told += b" 503 " in sock.recv(100)
            assert told >= 10
        with attacks.attack("and all is given back"):
            began = time.monotonic()
            while server.bodies.held and time.monotonic() - began < 5:
                time.sleep(0.02)
            assert server.bodies.held == 0
        announced = posted(f"Content-Length: {1 << 20}\r\n", "")
        with attacks.attack("bodies that are only announced"), crowd(server.url, 12, announced):
            assert post(server.url, "/signal", signal_body({"input_ids": IDS}))[0] == 200
            assert server.bodies.held == 0
