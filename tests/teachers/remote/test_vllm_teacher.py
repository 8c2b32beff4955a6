"""`VLLMTeacher` against real HTTP: our own server, and one that behaves badly on purpose."""

from __future__ import annotations

import copy
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_trainers
import torch
from tiny_models import VOCAB, collate
from tiny_trainers import log_softmax, same, trainer, weights
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_distill import ForwardKL, HardLabels, JensenShannon, LogitMSE
from hf_distill.models.signals import Needs, Signal
from hf_distill.models.task_model import TaskModel
from hf_distill.objectives import Objective
from hf_distill.teachers import ModelTeacher
from hf_distill.teachers.remote.prompts import Prompt, prompts_of, read_prompt
from hf_distill.teachers.remote.vllm_teacher import VLLMTeacher
from hf_distill.teachers.serving import TeacherServer

NEEDS = Needs(logits=True, unsampled=True)
LETTERS = 'Tokens: aïv東京🙂defxrtu*21_0"m?'


def tokenizer(shift: int = 0) -> Any:
    """One token per letter; with a shift the same letters have other ids."""
    letters = sorted(set(LETTERS))
    vocabulary = {"[UNK]": 0, "[PAD]": 1, "[MASK]": 2}
    vocabulary |= {c: 3 + (i + shift) % len(letters) for i, c in enumerate(letters)}
    vocabulary |= {f"<{i}>": i for i in range(len(vocabulary), VOCAB)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]")


class FakeVLLM:
    """Speaks vLLM's protocol, computed in float64 with numpy; ``script`` holds its next faults.

    A step of the script is a status, a ``(status, headers)``, a function that changes the answer,
    ``"drop"`` (closes the connection in the middle of the answer) or ``"garbage"``.
    """

    def __init__(self, model: Any, names: Any = None) -> None:
        self.model, self.names = copy.deepcopy(model).double(), names
        self.script: deque[Any] = deque()
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.slow, self.limit, self.longest = 0.0, 100, 33
        self.cards = ["fake"]
        self.lock, self.under_way, self.most = threading.Lock(), 0, 0
        fake = self

        class Handler(_FakeHandler):
            owner = fake

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> FakeVLLM:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def log_probs(self, ids: list[int]) -> np.ndarray:
        with torch.no_grad():
            return log_softmax(self.model(input_ids=torch.tensor([ids])).logits[0].numpy())

    def complete(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        k = request["prompt_logprobs"]
        if k > self.limit:
            message = (
                f"Requested prompt logprobs of {k}, which is greater than max allowed: {self.limit}"
            )
            return 400, {"error": {"message": message, "code": 400}}
        choices = []
        for index, ids in enumerate(request["prompt"]):
            rows = self.log_probs(ids)[:-1]
            entries: list[Any] = [None]
            for row, token in zip(rows, ids[1:], strict=True):
                order = np.argsort(-row)
                listed = list(dict.fromkeys([*order[:k].tolist(), token]))
                entries.append({str(t): self._entry(row, order, t) for t in listed})
            choices.append({"index": index, "text": "x", "prompt_logprobs": entries})
        return 200, {"choices": choices[::-1]}  # in any order

    def _entry(self, row: np.ndarray, order: np.ndarray, token: int) -> dict[str, Any]:
        name = None if self.names is None else self.names.decode([token])
        rank = int((order == token).argmax()) + 1
        return {"logprob": float(np.float32(row[token])), "rank": rank, "decoded_token": name}


class _FakeHandler(BaseHTTPRequestHandler):
    owner: FakeVLLM
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        cards = [
            {"id": name, "owned_by": "vllm", "max_model_len": self.owner.longest}
            for name in self.owner.cards
        ]
        self.reply(200, {"data": cards} if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        fake = self.owner
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            if fake.names is None:
                return self.reply(404, {"detail": "Not Found"})
            ids = fake.names(request["prompt"], add_special_tokens=False)["input_ids"]
            return self.reply(200, {"tokens": ids, "count": len(ids)})
        with fake.lock:
            fake.under_way += 1
            fake.most = max(fake.most, fake.under_way)
            fake.requests.append(request)
            fake.headers.append(dict(self.headers.items()))
            fake.times.append(time.monotonic())
            step = fake.script.popleft() if fake.script else None
        try:
            time.sleep(fake.slow)
            self.step(step, *fake.complete(request))
        finally:
            with fake.lock:
                fake.under_way -= 1

    def step(self, step: Any, status: int, answer: dict[str, Any]) -> None:
        if isinstance(step, int):
            self.reply(step, {"error": {"message": "scripted"}})
        elif isinstance(step, tuple):
            self.reply(step[0], {"error": {"message": "scripted"}}, step[1])
        elif step == "drop":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
        elif step == "garbage":
            self.reply(200, b"<html>not what you think</html>")
        else:
            self.reply(status, answer if step is None else step(answer))

    def reply(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def llama() -> Any:
    return tiny_trainers.models("causal_lm")[1].eval()


@pytest.fixture
def fake(llama: Any) -> Iterator[FakeVLLM]:
    with FakeVLLM(llama, tokenizer()) as server:
        yield server


def teacher_at(url: str, **options: Any) -> VLLMTeacher:
    defaults = {"tokenizer": tokenizer(), "top_k": 5, "backoff": 0.01, "timeout": 10.0}
    return VLLMTeacher(url, **{**defaults, **options})


def batch_of(rows: int = 4) -> dict[str, Any]:
    return collate(tiny_trainers.data("causal_lm", rows))


def ask(teacher: Any, batch: dict[str, Any], model: Any) -> Signal:
    found: Signal = teacher(batch, NEEDS, TaskModel(model).items(batch))
    return found


def expected(model: Any, batch: dict[str, Any]) -> np.ndarray:
    """log softmax of the whole padded batch in float64: (B, T, V)."""
    keys = ("input_ids", "attention_mask", "position_ids")
    with torch.no_grad():
        double = copy.deepcopy(model).double()
        logits = double(**{key: batch[key] for key in keys if key in batch}).logits
    return log_softmax(logits.numpy())


def check(signal: Signal, truth: np.ndarray, counted: Any, tokens: Any, k: int) -> None:
    """Each counted position lists the k likeliest and its own token; the rest is what remains."""
    sparse = signal.sparse
    assert sparse is not None
    assert sparse.unsampled
    assert sparse.ids.shape == (*truth.shape[:2], min(k + 1, VOCAB))
    for row, position in np.argwhere(np.asarray(counted)):
        used = sparse.log_probs[row, position] > -np.inf
        ids = sparse.ids[row, position][used].tolist()
        values = truth[row, position]
        likeliest = set(np.argsort(-values)[:k].tolist())
        assert len(ids) == len(set(ids))
        assert set(ids) == likeliest | {int(tokens[row, position + 1])}
        listed = sparse.log_probs[row, position][used].numpy()
        np.testing.assert_allclose(listed, values[ids], atol=2e-5)
        others = np.delete(np.exp(values), ids).sum()
        np.testing.assert_allclose(np.exp(float(sparse.log_rest[row, position])), others, atol=5e-7)


# ---- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 5, VOCAB - 1, VOCAB, 100])
def test_values_are_the_dense_models(fake: FakeVLLM, llama: Any, k: int) -> None:
    """A shift by one position, a lost tail or rows in another order train on the wrong targets, and
    the loss still falls."""
    batch = batch_of(6)
    signal = ask(teacher_at(fake.url, top_k=k), batch, llama)
    counted = TaskModel(llama).items(batch).masks["items"]
    check(signal, expected(llama, batch), counted, batch["input_ids"], min(k, VOCAB))
    assert signal.kind == "softmax"
    assert fake.requests[0]["max_tokens"] == 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(fake: FakeVLLM, llama: Any, side: str) -> None:
    """A server that is sent padding as text answers for another text."""
    short, long = [5, 9, 12, 7], [8, 3, 3, 30, 21, 17]
    ids = torch.tensor([[0, 0, *short] if side == "left" else [*short, 0, 0], long])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    signal = ask(teacher_at(fake.url), batch, llama)
    assert {tuple(p) for r in fake.requests for p in r["prompt"]} == {tuple(short), tuple(long)}
    start = 2 if side == "left" else 0
    for row, text in ((0, short), (1, long)):
        first = start if row == 0 else 0
        part = slice(first, first + len(text) - 1)
        truth = expected(llama, {"input_ids": torch.tensor([text])})[0, :-1]
        assert signal.sparse is not None
        got = signal.sparse.log_probs[row, part, 0].numpy()
        np.testing.assert_allclose(got, truth.max(-1), atol=2e-5)
    assert signal.sparse is not None
    padding = slice(4, 5) if side == "right" else slice(0, 2)
    assert (signal.sparse.log_rest[0, padding] == 0).all()  # all mass in the rest: a distribution


def test_packed_texts_are_sent_one_by_one(fake: FakeVLLM, llama: Any) -> None:
    """Sent as one text, every packed text would be read with the one before it as its beginning."""
    texts = [[5, 9, 12], [7, 8, 30, 21]]
    ids = torch.tensor([[*texts[0], *texts[1]]])
    labels = ids.clone()
    labels[0, [0, 3]] = -100
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    signal = ask(
        teacher_at(fake.url, top_k=VOCAB - 1),
        {"input_ids": ids, "labels": labels, "position_ids": positions},
        llama,
    )
    assert signal.sparse is not None
    for text, first in zip(texts, (0, 3), strict=True):
        truth = expected(llama, {"input_ids": torch.tensor([text])})[0, :-1]
        got = signal.sparse.log_probs[0, first : first + len(text) - 1, 0].numpy()
        np.testing.assert_allclose(got, truth.max(-1), atol=2e-5)


def test_what_a_server_cannot_say_is_refused(llama: Any) -> None:
    """Filled with anything, such a position would be trained on."""
    head, ids = TaskModel(llama), torch.tensor([[5, 9, 12, 7]])

    def prompts(**more: Any) -> Any:
        batch = {"input_ids": ids, **more}
        return prompts_of(batch, head.items(batch))

    with pytest.raises(ValueError, match="position 3 of row 0: a server says nothing"):
        prompts(shift_labels=ids)
    with pytest.raises(ValueError, match="padding before or after"):
        prompts(attention_mask=torch.tensor([[1, 0, 1, 1]]))
    with pytest.raises(ValueError, match="position 1 of row 0"):  # the end of the first of two
        prompts(position_ids=torch.tensor([[0, 1, 0, 1]]))
    with pytest.raises(ValueError, match="position_ids"):
        prompts(position_ids=torch.zeros(3, 1, 4))
    items = head.items({"input_ids": ids})
    with pytest.raises(ValueError, match="got the keys"):
        prompts_of({"inputs_embeds": torch.zeros(1, 4, 2)}, items)
    found, _ = prompts(labels=torch.full_like(ids, -100))
    assert found == []  # nothing counts: nothing is asked


# ---- faults ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [[500, 503], ["drop", 502], [(429, {"Retry-After": "0.2"})]],
    ids=["5xx", "drop", "429"],
)
def test_passing_faults_are_retried(fake: FakeVLLM, llama: Any, faults: list[Any]) -> None:
    """One hiccup of a server must not end a training of days, nor change what it learns."""
    batch = batch_of(1)
    want = ask(teacher_at(fake.url), batch, llama).sparse
    before = len(fake.requests)
    fake.script.extend(faults)
    got = ask(teacher_at(fake.url, retries=2), batch, llama).sparse
    assert got is not None
    assert want is not None
    assert torch.equal(got.log_probs, want.log_probs)
    assert len(fake.requests) - before == len(faults) + 1
    if isinstance(faults[0], tuple):
        assert fake.times[-1] - fake.times[-2] >= 0.2


def test_giving_up_says_where_and_why(fake: FakeVLLM, llama: Any) -> None:
    """Without the url, the attempts and the last answer nobody knows where to look."""
    fake.script.extend([500] * 3)
    with pytest.raises(
        ConnectionError, match=r"(?s)/v1/completions.*3 attempt.*status 500.*scripte"
    ):
        ask(teacher_at(fake.url, retries=2), batch_of(1), llama)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:\d+/v1/models.*1 attempt.*Refused"):
        ask(teacher_at(url, retries=0), batch_of(1), llama)
    fake.script.extend([(429, {"Retry-After": "3600"})] * 2)
    with pytest.raises(ConnectionError, match="asks for a break of 3600 s"):
        ask(teacher_at(fake.url, retries=2), batch_of(1), llama)


def test_a_slow_server_times_out(fake: FakeVLLM, llama: Any) -> None:
    """A training that waits for ever looks like one that works."""
    fake.slow = 3.0
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"(?s)2 attempt.*0\.2 s.*TimeoutError"):
        ask(teacher_at(fake.url, retries=1, timeout=0.2), batch_of(1), llama)
    assert time.monotonic() - began < 2.5
    fake.slow = 0.0


def test_a_drip_feeding_server_times_out(fake: FakeVLLM, llama: Any) -> None:
    """A timeout of each read alone is never reached by a server that sends a byte now and then."""

    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(20):
            handler.wfile.write(b" ")
            time.sleep(0.05)

    original = _FakeHandler.step
    _FakeHandler.step = lambda self, *_: drip(self)
    try:
        with pytest.raises(ConnectionError, match="TimeoutError"):
            ask(teacher_at(fake.url, retries=0, timeout=0.3), batch_of(1), llama)
    finally:
        _FakeHandler.step = original


def test_a_closed_idle_connection_is_no_failure(fake: FakeVLLM, llama: Any) -> None:
    """Servers close silent connections: after an evaluation the next step would lose an attempt."""
    teacher, batch = teacher_at(fake.url, retries=0), batch_of(1)
    ask(teacher, batch, llama)
    for connection in teacher._client._idle:
        connection.sock.sock.shutdown(2)
    ask(teacher, batch, llama)


def test_refusals_are_told_at_once(fake: FakeVLLM, llama: Any) -> None:
    """A request that can never succeed must not be repeated, and the remedy is in the message."""
    fake.limit = 4
    with pytest.raises(ValueError, match=r"(?s)greater than max allowed: 4.*--max-logprobs"):
        ask(teacher_at(fake.url), batch_of(1), llama)
    assert len(fake.requests) == 1
    fake.limit = 100
    fake.script.append(401)
    with pytest.raises(ValueError, match="token="):
        ask(teacher_at(fake.url), batch_of(1), llama)


def changed(change: Callable[[list[Any]], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A step that changes the entries of each text, in place or by what is returned."""

    def step(answer: dict[str, Any]) -> dict[str, Any]:
        for choice in answer["choices"]:
            new = change(choice["prompt_logprobs"])
            choice["prompt_logprobs"] = choice["prompt_logprobs"] if new is None else new
        return answer

    return step


def _set(entries: list[Any], value: Any) -> None:
    next(iter(entries[2].values()))["logprob"] = value


def _raw(entries: list[Any]) -> None:
    for entry in entries[1:]:
        for number, value in enumerate(entry.values()):
            value["logprob"] = 3.0 - number


def _other_tokens(entries: list[Any]) -> None:
    entries[2] = {str(int(t) % 3 + 100 * i): v for i, (t, v) in enumerate(entries[2].items())}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("garbage", "Expected a JSON object"),
        (lambda answer: {"choices": answer["choices"] * 2}, "Expected 1 choices"),
        (lambda answer: {}, "Expected 1 choices"),
        (changed(lambda e: e[:-1]), "prompt_logprobs of 9 tokens"),
        (changed(lambda e: [None, None, *e[2:]]), "no-enable-prefix-caching"),
        (changed(lambda e: _set(e, float("nan"))), "Expected log-probabilities at position 2"),
        (changed(lambda e: _set(e, None)), "logprob"),
        (changed(_raw), "raw_logprobs"),
        (changed(_other_tokens), r"Expected token \d+ at position 2 .* was sent"),
        (changed(lambda e: [None, *({k: d[k] for k in list(d)[-2:]} for d in e[1:])]), "likeliest"),
    ],
    ids=[
        "garbage", "twice", "empty", "short", "null", "nan", "none", "raw", "tokens", "capped"
    ],
)  # fmt: skip
def test_wrong_answers_are_refused(fake: FakeVLLM, llama: Any, step: Any, message: str) -> None:
    """Every one of these would be trained on without a word."""
    fake.script.append(step)
    with pytest.raises(ValueError, match=message):
        ask(teacher_at(fake.url), batch_of(1), llama)


def test_impossible_tokens(fake: FakeVLLM, llama: Any) -> None:
    """vLLM writes -9999 for -inf: taken for a number it would give student gradients of 1e4."""
    fake.script.append(changed(lambda entries: entries[2]["39"].update(logprob=-9999.0)))
    batch = {"input_ids": torch.tensor([[5, 9, 39]])}
    sparse = ask(teacher_at(fake.url), batch, llama).sparse
    assert sparse is not None
    used = sparse.log_probs[0, 1] > -np.inf
    assert 39 not in sparse.ids[0, 1][used]
    assert (sparse.log_probs[0, 1][used] > -100).all()
    assert int(used.sum()) == 5


def test_the_rest_is_not_rounding_noise() -> None:
    """Where little is left, 1 - sum of float32 numbers is noise: a student that is as sure as its
    teacher would be taught to doubt."""
    truth = np.full(VOCAB, 1e-10)
    truth[7] = 1 - truth.sum() + 1e-10
    listed = {str(t): {"logprob": float(np.float32(np.log(truth[t])))} for t in (7, 1, 2, 3, 4)}
    prompt = Prompt(0, 0, [5, 7])
    answer = read_prompt(prompt, [None, listed], 5, VOCAB)
    left = 35 * 1e-10
    assert 0 <= float(answer.log_rest.exp()) <= left * (1 + 1e-5)
    answer = read_prompt(prompt, [None, listed], 5, 5 + 3)  # 5, 6 and 7 are left
    assert float(answer.log_rest.exp()) <= 3e-10 * (1 + 1e-5)
    everything = {str(t): {"logprob": float(np.log(truth[t]))} for t in range(VOCAB)}
    answer = read_prompt(prompt, [None, everything], VOCAB, VOCAB)
    assert float(answer.log_rest) == -np.inf
    assert answer.ids.shape == (1, VOCAB)


def test_phantom_classes_go_to_the_rest(fake: FakeVLLM, llama: Any) -> None:
    """A padded vocabulary has classes that no token has: indices out of the student's range."""
    teacher = teacher_at(fake.url, top_k=VOCAB - 1)
    ask(teacher, batch_of(1), llama)  # compares the tokens' texts
    teacher._set_classes(30)
    ids = torch.tensor([[5, 9, 12, 7]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    sparse = ask(teacher, batch, llama).sparse
    assert sparse is not None
    assert sparse.classes == 30
    assert int(sparse.ids.max()) < 30


# ---- tokenizers and models -------------------------------------------------------------------


def test_another_tokenizer_is_refused(llama: Any) -> None:
    """The same sizes and other ids: the student would learn a permutation, silently."""
    with FakeVLLM(llama, tokenizer(shift=3)) as fake:
        with pytest.raises(ValueError, match=r"of a probe text, token 0 is \[\d+\] \('T'\) here"):
            teacher_at(fake.url).place(None)
        assert not fake.requests
    with FakeVLLM(llama, tokenizer(shift=3)) as fake:
        teacher = teacher_at(fake.url)
        teacher._compare_tokenizers = lambda: None
        with pytest.raises(ValueError, match=r"token \d+ is '.' there and '.' here"):
            ask(teacher, batch_of(1), llama)


def test_tokens_of_any_server_are_compared(llama: Any) -> None:
    """Some servers have no /tokenize, or give no texts: that is no reason to refuse them."""
    with FakeVLLM(llama) as fake:
        ask(teacher_at(fake.url), batch_of(1), llama)
        with pytest.raises(ValueError, match="Expected a tokenizer"):
            ask(teacher_at(fake.url, tokenizer=None), batch_of(1), llama)


def test_the_student_has_the_servers_tokenizer(fake: FakeVLLM, tmp_path: Path) -> None:
    """The trainer must compare what the server was compared with to the student's own."""
    with pytest.raises(ValueError, match="share one tokenizer"):
        trainer(
            tmp_path,
            "causal_lm",
            teacher_model=teacher_at(fake.url),
            objective=ForwardKL(),
            processing_class=tokenizer(shift=5),
        )


def test_models_and_lengths(fake: FakeVLLM, llama: Any) -> None:
    """A wrong name or a text that is cut off must be told before the first step."""
    with pytest.raises(ValueError, match=r"model 'other' .* which has \['fake'\]"):
        teacher_at(fake.url, model="other").place(None)
    fake.cards = ["fake", "adapter"]
    with pytest.raises(ValueError, match="Pass model="):
        teacher_at(fake.url).place(None)
    teacher = teacher_at(fake.url + "/v1/", model="adapter")
    ask(teacher, batch_of(1), llama)
    assert fake.requests[-1]["model"] == "adapter"
    fake.longest = 9
    with pytest.raises(ValueError, match="at most 8 tokens"):
        ask(teacher_at(fake.url, model="fake"), batch_of(1), llama)
    assert len(fake.requests) == 1


def test_bad_settings() -> None:
    """Told at construction, not after the data was prepared."""
    with pytest.raises(ValueError, match="Expected temperature 1"):
        VLLMTeacher("http://a", temperature=2.0)
    with pytest.raises(ValueError, match="top_k"):
        VLLMTeacher("http://a", top_k=0)
    with pytest.raises(ValueError, match="a url like"):
        VLLMTeacher("localhost:8000")
    with pytest.raises(ValueError) as told:
        VLLMTeacher("http://me:secret@a")
    assert "secret" not in str(told.value)
    with pytest.raises(ValueError, match="timeout > 0"):
        VLLMTeacher("http://a", timeout=0)


def test_the_key_is_sent_and_never_shown(fake: FakeVLLM, llama: Any) -> None:
    """An error message or a model card would publish it."""
    teacher = teacher_at(fake.url, token="hf-secret", retries=0)
    ask(teacher, batch_of(1), llama)
    assert fake.headers[-1]["Authorization"] == "Bearer hf-secret"
    fake.script.append(500)
    with pytest.raises(ConnectionError) as told:
        ask(teacher, batch_of(1), llama)
    for text in (str(told.value), repr(teacher), repr(teacher._client), str(teacher.describe())):
        assert "hf-secret" not in text
    assert teacher.describe()["name"] == "fake"


# ---- many requests ---------------------------------------------------------------------------


def test_requests_under_way_are_bounded(fake: FakeVLLM, llama: Any) -> None:
    """Without a bound a large batch floods the server, which then times out on all of it."""
    fake.slow = 0.03
    batch = batch_of(24)
    teacher = teacher_at(fake.url, concurrency=3)
    signal = ask(teacher, batch, llama)
    assert fake.most == 3  # and they do run at once
    assert sorted(len(r["prompt"]) for r in fake.requests) == [8, 8, 8]
    counted = TaskModel(llama).items(batch).masks["items"]
    check(signal, expected(llama, batch), counted, batch["input_ids"], 5)
    teacher.close()
    ask(teacher, batch_of(2), llama)  # opened anew


def test_one_failure_ends_the_batch(fake: FakeVLLM, llama: Any) -> None:
    """The others' answers without the failed one's would be a batch with a hole."""
    fake.script.extend([None, 400])
    with pytest.raises(ValueError, match="status 400"):
        ask(teacher_at(fake.url, concurrency=2), batch_of(24), llama)


# ---- training --------------------------------------------------------------------------------


def losses(run: Any) -> list[float]:
    recorder = tiny_trainers.Recorder()
    run.add_callback(recorder)
    run.train()
    return [logs["loss"] for logs in recorder.steps]


@pytest.mark.parametrize("objective", [ForwardKL(), JensenShannon(1.0, 0.3)], ids=["kl", "js"])
def test_training_is_that_with_the_model(tmp_path: Path, objective: Objective) -> None:
    """With all classes the server teaches what the model teaches: the losses and the weights."""
    _, live = tiny_trainers.models("causal_lm")
    goal = 0.5 * HardLabels() + 0.5 * objective
    with TeacherServer(ModelTeacher(copy.deepcopy(live)), tokenizer=tokenizer()) as server:
        remote = teacher_at(server.url, top_k=VOCAB - 1)
        one = trainer(tmp_path / "1", "causal_lm", teacher_model=remote, objective=goal)
        ours = losses(one)
        assert one.evaluate()["eval_loss"] > 0
    other = trainer(tmp_path / "2", "causal_lm", teacher_model=live, objective=goal)
    np.testing.assert_allclose(ours, losses(other), rtol=1e-5)
    got, want = weights(one.model), weights(other.model)
    assert not same(want, weights(tiny_trainers.models("causal_lm")[0]))
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-3, atol=2e-4)


def test_whole_logits_are_refused(fake: FakeVLLM, tmp_path: Path) -> None:
    """LogitMSE on the likeliest classes alone would be another loss under its name."""
    with pytest.raises(ValueError, match="the logits of every class"):
        trainer(tmp_path, "causal_lm", teacher_model=teacher_at(fake.url), objective=LogitMSE())
