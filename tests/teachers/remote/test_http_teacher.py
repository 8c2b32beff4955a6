"""`TeacherServer` and `HTTPTeacher` over real HTTP on the loopback."""

from __future__ import annotations

import argparse
import copy
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import safetensors.torch
import tiny_trainers
import torch
from tiny_models import CASES, VOCAB, collate
from tiny_trainers import log_softmax, same, trainer, weights
from torch import Tensor, nn

from hf_distill import ForwardKL, HardLabels, HiddenStates
from hf_distill.cli.base import Parser
from hf_distill.cli.serve_teacher import add_arguments, run
from hf_distill.models.signals import BatchItems, Needs, Signal
from hf_distill.models.task_model import TaskModel
from hf_distill.teachers import ModelTeacher, Teacher
from hf_distill.teachers.cache.manifest import teacher_fingerprint
from hf_distill.teachers.remote.http_teacher import HTTPTeacher
from hf_distill.teachers.remote.wire import from_bytes, to_bytes
from hf_distill.teachers.serving import TeacherServer
from tests.teachers.remote.test_vllm_teacher import LETTERS, losses, tokenizer

ROOT = Path(__file__).resolve().parents[3]


class Slow(ModelTeacher):
    """Takes its time or waits for ``gate``, and counts how many are at it at once."""

    seconds, under_way, most, calls = 0.0, 0, 0, 0
    gate: threading.Event | None = None

    def __call__(self, batch: Any, needs: Needs, items: BatchItems) -> Signal:
        self.calls += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        time.sleep(self.seconds)
        if self.gate is not None:
            assert self.gate.wait(30)
        try:
            return super().__call__(batch, needs, items)
        finally:
            self.under_way -= 1


@pytest.fixture
def slow() -> Slow:
    return Slow(tiny_trainers.models()[1])


@pytest.fixture
def served(slow: Slow) -> Iterator[TeacherServer]:
    with TeacherServer(slow, max_pending=2, max_bytes=100_000) as server:
        yield server


def raw(
    server: TeacherServer,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
) -> tuple[int, Any, dict[str, str]]:
    """A request of the standard library: status, JSON or bytes, headers."""
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=10)
    try:
        connection.request(method, path, body or None, headers or {})
        response = connection.getresponse()
        content: Any = response.read()
        if response.headers["Content-Type"] == "application/json":
            content = json.loads(content)
        return response.status, content, dict(response.headers.items())
    finally:
        connection.close()


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = [part for _, part in sorted(value.items())]
    return (
        [t for part in value for t in tensors_of(part)] if isinstance(value, (list, tuple)) else []
    )


def batch_of(name: str) -> dict[str, Any]:
    student, _ = tiny_trainers.models(name)
    task_model = TaskModel(student)
    return dict(task_model.task.share(collate(tiny_trainers.data(name, 4)), task_model.model))


# ---- any head, bit for bit -------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_every_head_bit_for_bit(name: str) -> None:
    """A head whose outputs come back in another order, dtype or shape teaches something else."""
    student, model = tiny_trainers.models(name)
    live = ModelTeacher(model)
    batch = batch_of(name)
    items = TaskModel(student).items(batch)
    linear = [
        n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "classif" not in n
    ]
    needs = replace(live.provides, inputs=False, lazy_logits=False, modules=frozenset(linear[:2]))
    want = live(batch, needs, items)
    with TeacherServer(live) as server:
        remote = HTTPTeacher(server.url, timeout=20)
        assert isinstance(remote, Teacher)
        got = remote(batch, needs, items)
        remote.close()
    assert remote.columns() == live.columns()
    assert remote.provides == replace(live.provides, inputs=False, lazy_logits=False)
    assert type(remote.config) is type(model.config)
    assert got.kind == want.kind
    for part in ("logits", "hidden_states", "attentions", "qkv", "modules"):
        ours, theirs = (tensors_of(getattr(s, part)) for s in (got, want))
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
    assert got.hidden_states.keys() == want.hidden_states.keys()
    assert got.qkv.keys() == want.qkv.keys()


@pytest.mark.parametrize("k", [1, 4, VOCAB, 1000])
def test_the_likeliest_alone(k: int) -> None:
    """The mass of the rest is what keeps a student from forgetting every other class."""
    student, model = tiny_trainers.models("causal_lm")
    batch = batch_of("causal_lm")
    items = TaskModel(student).items(batch)
    with torch.no_grad():
        double = copy.deepcopy(model).double()
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        truth = log_softmax(double(**inputs).logits.numpy())
    with TeacherServer(ModelTeacher(model)) as server:
        remote = HTTPTeacher(server.url, top_k=k)
        assert not remote.provides.full_vocabulary
        signal = remote(batch, Needs(logits=True, unsampled=True), items)
        remote.close()
    sparse = signal.sparse
    assert signal.logits is None
    assert sparse is not None
    assert (sparse.classes, sparse.unsampled, sparse.temperature) == (VOCAB, True, 1.0)
    order = np.argsort(-truth, -1)[..., :k]
    mask = items.masks["items"].numpy()
    np.testing.assert_array_equal(np.sort(sparse.ids.numpy()[mask]), np.sort(order[mask]))
    listed = np.take_along_axis(truth, sparse.ids.numpy(), -1)
    np.testing.assert_allclose(sparse.log_probs.numpy(), listed, atol=2e-5)
    rest = np.clip(1 - np.exp(listed).sum(-1), 0, 1)
    np.testing.assert_allclose(sparse.log_rest.exp().numpy(), rest, atol=1e-6)
    if k >= VOCAB:
        assert (sparse.log_rest == -torch.inf).all()


def test_two_trainings_at_once_are_bit_equal(tmp_path: Path) -> None:
    """Batches of two trainings that meet at one teacher must not be mixed up: each training ends
    where it ends with a teacher of its own."""
    goal = 0.5 * HardLabels() + 0.5 * ForwardKL(2.0) + HiddenStates()
    options = {"objective": goal, "train_sampling_strategy": "sequential"}
    sizes = (4, 2)
    teacher = Slow(tiny_trainers.models()[1])
    with TeacherServer(teacher) as server:
        remotes = [HTTPTeacher(server.url) for _ in sizes]
        runs = [
            trainer(
                tmp_path / f"{size}",
                teacher_model=remote,
                per_device_train_batch_size=size,
                **options,
            )
            for size, remote in zip(sizes, remotes, strict=True)
        ]
        teacher.seconds, waited = 0.05, []
        found: dict[int, list[float]] = {}
        threads = [
            threading.Thread(target=lambda i=i: found.update({i: losses(runs[i])})) for i in (0, 1)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            waited.append(raw(server, "GET", "/health")[1]["pending"])
            time.sleep(0.005)
        for remote in remotes:
            remote.close()
    assert max(waited) == 2  # they did meet
    for i, size in enumerate(sizes):
        live = trainer(
            tmp_path / f"live{size}",
            teacher_model=tiny_trainers.models()[1],
            per_device_train_batch_size=size,
            **options,
        )
        assert losses(live) == found[i]
        assert same(weights(runs[i].model), weights(live.model))


def test_labels_are_matched_by_name(tmp_path: Path) -> None:
    """Without the config of the served model its classes would be taken in its own order."""
    student, model = tiny_trainers.models()
    student.config.id2label = {0: "a", 1: "b", 2: "c"}
    model.config.id2label = {0: "c", 1: "a", 2: "b"}
    with TeacherServer(ModelTeacher(model)) as server:
        remote = HTTPTeacher(server.url)
        run = trainer(tmp_path, model=student, teacher_model=remote, objective=ForwardKL())
        remote.close()
    assert run.step.teacher_order.tolist() == [1, 2, 0]


def test_vocabularies_are_compared(tmp_path: Path) -> None:
    """Equal sizes and other ids: the student would learn a permutation, silently."""
    _, model = tiny_trainers.models("causal_lm")
    with TeacherServer(ModelTeacher(model, tokenizer(shift=2))) as server:
        remote = HTTPTeacher(server.url)
        assert remote.tokens() == tokenizer(shift=2).get_vocab()
        with pytest.raises(ValueError, match="share one tokenizer"):
            trainer(tmp_path, "causal_lm", teacher_model=remote, processing_class=tokenizer())
        remote.close()


def test_another_teacher_behind_the_url() -> None:
    """A server restarted with other weights would change the teacher in the middle of a run."""
    batch, needs = batch_of("sequence_classification"), Needs(logits=True)
    student, model = tiny_trainers.models()
    items = TaskModel(student).items(batch)
    first = TeacherServer(ModelTeacher(copy.deepcopy(model))).start()
    port = urlsplit(first.url).port
    remote = HTTPTeacher(first.url, backoff=0.01)
    want = remote(batch, needs, items).logits
    assert remote.fingerprint == teacher_fingerprint(ModelTeacher(model))
    first.close()
    with TeacherServer(ModelTeacher(copy.deepcopy(model)), port=port or 0):
        assert torch.equal(remote(batch, needs, items).logits, want)
    model.classifier.bias.data.add_(1.0)
    changed = TeacherServer(ModelTeacher(model), port=port or 0)
    with changed, pytest.raises(ValueError, match="other weights are served"):
        remote(batch, needs, items)
    remote.close()


# ---- the server against its clients ------------------------------------------------------------


def test_only_what_is_needed_is_sent(served: TeacherServer) -> None:
    """The logits of a language model are megabytes a text: not for an objective on features."""
    batch = batch_of("sequence_classification")
    items = TaskModel(tiny_trainers.models()[0]).items(batch)
    remote = HTTPTeacher(served.url)
    signal = remote(batch, Needs(hidden_states=True), items)
    remote.close()
    assert signal.logits is None
    assert len(signal.hidden_states["hidden"]) == 5
    assert not signal.attentions


def test_the_queue_is_bounded(slow: Slow, served: TeacherServer) -> None:
    """An unbounded queue holds all batches in memory, and answers after its clients gave up."""
    slow.gate = threading.Event()
    remote = HTTPTeacher(served.url, retries=8, backoff=0.05)
    batch = batch_of("sequence_classification")
    items = TaskModel(tiny_trainers.models()[0]).items(batch)
    body = to_bytes({"batch": {}, "items": {}, "needs": {}, "top_k": None})
    answers: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(remote(batch, Needs(logits=True), items).logits)
        )
        for _ in range(3)
    ]
    for thread in threads[:2]:
        thread.start()
    while raw(served, "GET", "/health")[1]["pending"] < 2:
        time.sleep(0.01)
    status, content, headers = raw(served, "POST", "/signal", body)
    assert (status, headers["Retry-After"]) == (503, "1")
    assert "2 requests are waiting" in content["error"]["message"]
    threads[2].start()  # is told to come back, and does
    time.sleep(0.1)
    slow.gate.set()
    for thread in threads:
        thread.join()
    remote.close()
    assert len(answers) == 3
    assert slow.most == 1  # one batch at a time
    assert raw(served, "GET", "/health")[1]["pending"] == 0


def test_a_client_that_has_left_costs_nothing(slow: Slow, served: TeacherServer) -> None:
    """Batches nobody waits for any more would make the next ones late as well, and so on."""
    slow.gate = threading.Event()
    batch = batch_of("sequence_classification")
    items = TaskModel(tiny_trainers.models()[0]).items(batch)
    remote = HTTPTeacher(served.url)
    first = threading.Thread(target=lambda: remote(batch, Needs(logits=True), items))
    first.start()
    while raw(served, "GET", "/health")[1]["pending"] < 1:
        time.sleep(0.01)
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port)) as leaving:
        leaving.sendall(
            b"POST /signal HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody"
        )
        while raw(served, "GET", "/health")[1]["pending"] < 2:
            time.sleep(0.01)
    slow.gate.set()
    first.join()
    remote.close()
    while raw(served, "GET", "/health")[1]["pending"]:
        time.sleep(0.01)
    assert slow.calls == 1


def request_of(**changes: Any) -> bytes:
    batch = {k: v for k, v in batch_of("sequence_classification").items() if k != "labels"}
    items = {"masks": {"samples": torch.ones(4, dtype=torch.bool)}, "labels": None}
    return to_bytes(
        {"batch": batch, "items": items, "needs": {"logits": True}, "top_k": None, **changes}
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Expected safetensors"),
        (b"\xff" * 64, "Expected safetensors"),
        (safetensors.torch.save({"a": torch.ones(2)}), "Expected safetensors"),
        (request_of()[:-7], "Expected safetensors"),
        (request_of(batch={}), "a batch with tensors"),
        (request_of(batch={"labels": torch.ones(2)}), r"\['labels'\] too"),
        (request_of(batch={"input_ids": torch.tensor([[1, VOCAB]])}), f"got {VOCAB}: the token"),
        (request_of(batch={"input_ids": torch.ones(1, 2)}), "as int64"),
        (request_of(batch={"input_ids": torch.full((1, 99), 3)}), r"tokens, the positions of the"),
        (request_of(batch={"input_ids": torch.ones(1, 0).long()}), "all texts of the batch are e"),
        (
            request_of(batch=dict.fromkeys(("input_ids", "token_type_ids"), torch.tensor([[3]]))),
            "token_type_ids from 0 to 1",
        ),
        (request_of(needs={"logits": 1}), "Expected needs"),
        (request_of(needs={"inputs": True}), "does not provide"),
        (request_of(needs={"modules": ["no.such"]}), "no.such"),
        (request_of(items={"masks": {"samples": torch.ones(4)}}), "masks"),
        (request_of(top_k=0), "top_k"),
        (request_of(top_k=True), "top_k"),
    ],
)
def test_malformed_requests(served: TeacherServer, slow: Slow, body: bytes, message: str) -> None:
    """A bad request must be told what is wrong with it, and must not reach the model."""
    status, content, _ = raw(served, "POST", "/signal", body)
    assert status == 400
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(content["error"]["message"])
    assert slow.calls == 0
    assert raw(served, "GET", "/health")[0] == 200


def test_other_refusals(served: TeacherServer) -> None:
    """A request too large for the memory, of unknown length, or to nowhere."""
    big = b"x" * 100_001
    length = {"Content-Length": str(len(big))}
    status, content, _ = raw(served, "POST", "/signal", headers=length)
    assert (status, "at most 100000 bytes" in content["error"]["message"]) == (413, True)
    chunked = {"Transfer-Encoding": "chunked"}
    assert raw(served, "POST", "/signal", b"0\r\n\r\n", chunked)[0] == 411
    both = {**chunked, "Content-Length": "5"}  # of which one would read another request
    assert raw(served, "POST", "/signal", b"0\r\n\r\n", both)[0] == 400
    assert raw(served, "GET", "/nowhere", b"body")[0] == 404
    assert raw(served, "GET", "/signal")[0] == 405
    assert raw(served, "GET", "/teacher/vocabulary")[0] == 404  # no tokenizer
    assert raw(served, "GET", "/v1/models")[0] == 404  # no language model
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port)) as broken:
        broken.sendall(b"nonsense\r\n\r\n")
        assert b"400" in broken.recv(200)


def test_a_batch_that_is_too_large_is_told(served: TeacherServer) -> None:
    """The connection is closed while the batch is still being sent: repeated five times, that ends
    in a broken pipe, and nobody knows that fewer examples would do."""
    batch = {"input_ids": torch.full((4, 1_000_000), 7)}
    items = BatchItems({"samples": torch.ones(4, dtype=torch.bool)})
    remote = HTTPTeacher(served.url, retries=0)
    with pytest.raises(ValueError, match=r"(?s)413.*at most 100000 bytes.*fewer or shorter"):
        remote(batch, Needs(logits=True), items)
    remote.close()


def test_failures_are_told_and_logged(
    slow: Slow, served: TeacherServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure that only the server's screen shows leaves the training guessing."""
    batch = batch_of("sequence_classification")
    items = TaskModel(tiny_trainers.models()[0]).items(batch)
    remote = HTTPTeacher(served.url, retries=1, backoff=0.01)

    def fails(*_: Any) -> Any:
        raise OSError("no such disk")

    slow.task_model.ask = fails
    with pytest.raises(ConnectionError, match=r"(?s)2 attempt.*status 500: OSError: no such disk"):
        remote(batch, Needs(logits=True), items)
    remote.close()
    assert "POST /signal failed" in caplog.text


def test_the_token(slow: Slow) -> None:
    """Without it nothing may be served, not even what the teacher is; with it nothing shows it."""
    with TeacherServer(slow, token="s3cret-token") as server:
        for given in (None, "wrong", "s3cret-toke"):
            with pytest.raises(ValueError, match="status 401") as told:
                HTTPTeacher(server.url, token=given)
            assert "s3cret-token" not in str(told.value)
        status, _, headers = raw(server, "POST", "/signal", request_of())
        assert (status, headers["WWW-Authenticate"], slow.calls) == (401, "Bearer", 0)
        remote = HTTPTeacher(server.url, token="s3cret-token")
        assert "s3cret-token" not in repr(remote) + str(remote.describe())
        remote.close()
    with pytest.raises(ValueError, match="ModelTeacher to serve"):
        TeacherServer(remote)
    with pytest.raises(ValueError, match="max_pending"):
        TeacherServer(slow, max_pending=0)
    with pytest.raises(ValueError, match="printable"):
        HTTPTeacher(server.url, token="a\r\nX-Header: b")


def test_not_a_teacher_server() -> None:
    """Something else on that port must be named, not fail with a KeyError."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(ValueError, match="Expected a server of `hf-distill serve-teacher`"):
        HTTPTeacher(f"http://127.0.0.1:{listener.getsockname()[1]}")
    thread.join()
    listener.close()


# ---- bytes -----------------------------------------------------------------------------------


def test_bytes_keep_everything() -> None:
    """A flag that comes back as a number, or a half as a float, is another batch."""
    rows = torch.tensor([True, False])
    sent = {
        "a": {"nested": (torch.ones(2, 3, dtype=torch.bfloat16).t(), [torch.tensor(3), None])},
        "b": rows.expand(2, -1),
        "empty": torch.zeros(0, 4),
        "plain": (True, 1, 1.5, "x", None),
        "set": frozenset({"q", "p"}),
    }
    got = from_bytes(to_bytes(sent))
    assert got["plain"] == (True, 1, 1.5, "x", None)
    assert type(got["plain"][0]) is bool
    assert got["set"] == ("p", "q")
    assert torch.equal(got["b"], rows.expand(2, -1))
    assert got["empty"].shape == (0, 4)
    half = got["a"]["nested"][0]
    assert (half.dtype, half.shape) == (torch.bfloat16, (3, 2))
    assert int(got["a"]["nested"][1][0]) == 3
    with pytest.raises(ValueError, match="got a object"):
        to_bytes({"a": object()})


# ---- completions -------------------------------------------------------------------------------


@pytest.fixture
def completions() -> Iterator[TeacherServer]:
    names = tokenizer()
    teacher = ModelTeacher(tiny_trainers.models("causal_lm")[1], names)
    with TeacherServer(teacher, tokenizer=names, name="tiny") as server:
        yield server


def complete(server: TeacherServer, **request: Any) -> tuple[int, Any]:
    body = {"model": "tiny", "max_tokens": 1, "prompt_logprobs": 3, **request}
    return raw(server, "POST", "/v1/completions", json.dumps(body).encode())[:2]


def test_completions_in_vllms_format(completions: TeacherServer) -> None:
    """Clients written for vLLM count on its ranks, names, nulls and the order of the choices."""
    model = tiny_trainers.models("causal_lm")[1].double()
    prompts = [[5, 9, 12, 7], [8, 3]]
    status, answer = complete(completions, prompt=prompts)
    assert status == 200
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    for ids, choice in zip(prompts, answer["choices"], strict=True):
        with torch.no_grad():
            truth = log_softmax(model(torch.tensor([ids])).logits[0].numpy())
        assert choice["text"] == tokenizer().decode([int(truth[-1].argmax())])
        entries = choice["prompt_logprobs"]
        assert entries[0] is None
        for row, token, entry in zip(truth, ids[1:], entries[1:], strict=False):
            order = np.argsort(-row).tolist()
            assert {int(t) for t in entry} == {*order[:3], token}
            for name, value in entry.items():
                assert value["rank"] == order.index(int(name)) + 1
                assert value["decoded_token"] == tokenizer().decode([int(name)])
                assert value["logprob"] == pytest.approx(row[int(name)], abs=2e-5)
    assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": 2, "total_tokens": 8}
    text = LETTERS[:5]
    _, texts = complete(completions, prompt=text, prompt_logprobs=-1)
    ids = tokenizer()(text)["input_ids"]
    assert len(texts["choices"][0]["prompt_logprobs"]) == len(ids)
    assert len(texts["choices"][0]["prompt_logprobs"][1]) == VOCAB
    models = raw(completions, "GET", "/v1/models")[1]["data"]
    assert (models[0]["id"], models[0]["max_model_len"]) == ("tiny", 33)
    request = json.dumps({"prompt": text, "add_special_tokens": False}).encode()
    assert raw(completions, "POST", "/tokenize", request)[1]["tokens"] == ids


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"prompt": [[5, VOCAB]]}, 400, "from 0 to 39"),
        ({"prompt": []}, 400, "Expected prompt"),
        ({"prompt": [[5], []]}, 400, "Expected prompt"),
        ({"prompt": [[5, "a"]]}, 400, "Expected prompt"),
        ({"prompt": [[5] * 33]}, 400, "at most 32 tokens"),
        ({"prompt": [5, 6], "model": "other"}, 404, "'tiny' does"),
        ({"prompt": [5, 6], "max_tokens": 20}, 400, "max_tokens=1"),
        ({"prompt": [5, 6], "stream": True}, 400, "stream=False"),
        ({"prompt": [5, 6], "prompt_logprobs": VOCAB + 1}, 400, "prompt_logprobs from -1"),
        ({"prompt": [5, 6], "prompt_logprobs": "all"}, 400, "prompt_logprobs from -1"),
    ],
)
def test_bad_completions(
    completions: TeacherServer, request_: dict[str, Any], status: int, message: str
) -> None:
    """An option that is ignored gives an answer to another question."""
    got, answer = complete(completions, **request_)
    assert (got, message in answer["error"]["message"]) == (status, True), answer
    assert raw(completions, "POST", "/v1/completions", b"[1]")[0] == 400
    assert raw(completions, "POST", "/v1/completions", b"{")[0] == 400


# ---- the command ------------------------------------------------------------------------------


def arguments(*words: str) -> argparse.Namespace:
    parser = Parser()
    add_arguments(parser)
    return parser.parse_args(words)


SERVE = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.teachers.remote.test_http_teacher import arguments
from hf_distill.cli.base import say
from hf_distill.cli.serve_teacher import run
sys.exit(run(arguments(*sys.argv[2:]), say))
"""


@pytest.mark.slow
def test_the_command_serves_until_interrupted(tmp_path: Path) -> None:
    """A teacher that cannot be asked from another process, or is not ended by Ctrl-C."""
    _, model = tiny_trainers.models("causal_lm")
    model.save_pretrained(tmp_path / "teacher")
    tokenizer().save_pretrained(tmp_path / "teacher")
    words = [str(tmp_path / "teacher"), "--task", "causal_lm", "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(ROOT), *words, "--token-env", "KEY"],
        env={**os.environ, "KEY": "k", "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "serving" in line)
        url = next(word for word in line.replace(";", " ").split() if word.startswith("http://"))
        remote = HTTPTeacher(url, token="k")
        batch = batch_of("causal_lm")
        items = TaskModel(model).items(batch)
        want = ModelTeacher(model)(batch, Needs(logits=True), items).logits
        torch.testing.assert_close(remote(batch, Needs(logits=True), items).logits, want)
        assert remote.tokens() == tokenizer().get_vocab()
        assert str(tmp_path) not in str(remote.describe())
        remote.close()
        process.send_signal(signal.SIGINT)
        assert "ended" in process.communicate(timeout=20)[0]
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_the_command_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty token would open the server to everyone; a missing model must not look served."""
    monkeypatch.setenv("EMPTY", "")
    words = (str(tmp_path / "none"), "--task", "causal_lm")
    assert run(arguments(*words, "--token-env", "EMPTY"), print) == 2
    assert "EMPTY is empty" in capsys.readouterr().err
    assert run(arguments(*words, "--host", "0.0.0.0"), print) == 2
    assert "anyone who reaches 0.0.0.0" in capsys.readouterr().err
    refused = [*words, "--host", "0.0.0.0", "--no-token"]  # the remedy
    assert run(arguments(*refused), print) == 1
    assert "could not be loaded" in capsys.readouterr().err
