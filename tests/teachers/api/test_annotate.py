"""`annotate` against a chat endpoint on the loopback that fails as it is told."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import time
import traceback
from email.utils import formatdate
from pathlib import Path
from typing import Any

import language_models
import numpy as np
import pytest
from chat_server import ChatServer, Fault, chat_server, says, sentiment
from datasets import ClassLabel, Dataset, Features, Value

from hf_distill import tokenize
from hf_distill.teachers.api import (
    Annotation,
    Budget,
    BudgetError,
    ChatEndpoint,
    EndpointError,
    annotate,
)
from hf_distill.teachers.api.journal import ANSWERS, Journal

NAMES = ["negative", "positive"]
TEXTS = ["a good film", "a bad film", "good", "bad", "so good", "bad", "not bad", "good fun"]
ROWS = Dataset.from_dict(
    {"text": TEXTS, "label": [1, 0, 1, 0, 1, 0, 1, 0]},
    features=Features(text=Value("string"), label=ClassLabel(names=NAMES)),
)
FIELDS = {field.name for field in dataclasses.fields(ChatEndpoint)}
PROMPT = "Review: {{ text }}\nAnswer with one of: {{ labels | join(', ') }}"


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client sends nothing, not even to the loopback, where the Hub is not to be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def ask(server: ChatServer, folder: Path, rows: Dataset = ROWS, **options: Any) -> Annotation:
    """`annotate` with quick retries."""
    own: dict[str, Any] = {"labels": NAMES, "samples": 1}
    ours = {k: options.pop(k) for k in list(options) if k in FIELDS}
    endpoint = ChatEndpoint(**{"model": "m", "base_url": server.url, "backoff": 0.01, **ours})
    prompt = options.pop("prompt", PROMPT)
    return annotate(rows, endpoint, prompt, folder=folder, progress=False, **{**own, **options})


def sent(server: ChatServer) -> list[str]:
    """The last message of each request, with its seed."""
    return [f"{r['messages'][-1]['content']} {r.get('seed')}" for r in server.requests]


def lines(folder: Path) -> list[dict[str, Any]]:
    """The answers on disk."""
    return [json.loads(line) for line in (folder / ANSWERS).read_text().splitlines()]


def test_columns_hold_votes_in_the_order_of_the_class_names(tmp_path: Path) -> None:
    """The student learns the classes in another order than that of its labels."""
    words = {"positive": "good", "negative": "bad"}
    with chat_server(
        lambda r: says("good" if (r["seed"] + len(r["messages"][0]["content"])) % 3 else "bad")
    ) as server:
        found = ask(server, tmp_path, labels=words, samples=4, prompt="{{ text }}")
    data = found.dataset
    assert data.column_names == ["text", "label", "label_probabilities", "teacher_label"]
    assert data.features["teacher_label"].names == ["positive", "negative"]
    good = [np.mean([(s + len(text)) % 3 > 0 for s in range(4)]) for text in TEXTS]
    assert np.allclose(data["label_probabilities"][:], np.stack([good, 1 - np.array(good)], 1))
    assert len({json.dumps(r, sort_keys=True) for r in server.requests}) == 4 * len(set(TEXTS))
    assert {r["temperature"] for r in server.requests} == {1.0}


def test_no_request_is_sent_twice(tmp_path: Path) -> None:
    """A resumed run pays for everything again; so does a data set with equal rows."""
    with chat_server() as server:
        first = ask(server, tmp_path, ROWS.select(range(3)))
        again = ask(server, tmp_path)
        repeated = ask(server, tmp_path)
        assert sorted(sent(server)) == sorted(set(sent(server)))
        assert len(server.requests) == len(set(TEXTS))
        ask(server, tmp_path, parameters={"max_tokens": 9})  # another request
        assert len(server.requests) == 2 * len(set(TEXTS))
    assert again.dataset[:] == repeated.dataset[:]
    assert again.dataset[:3] == first.dataset[:]


def test_a_torn_last_line_is_asked_again_and_nothing_else(tmp_path: Path) -> None:
    """What a kill in the middle of a line leaves makes all of the file unreadable."""
    with chat_server() as server:
        whole = ask(server, tmp_path, concurrency=1).dataset[:]
        content = (tmp_path / ANSWERS).read_bytes()
        begin = content[:-1].rfind(b"\n") + 1
        for cut in range(begin, len(content)):
            (tmp_path / ANSWERS).write_bytes(content[:cut])
            with Journal(tmp_path) as journal:
                assert len(journal.answers) == len(set(TEXTS)) - 1
        (tmp_path / ANSWERS).write_bytes(content[: begin + 20])
        del server.requests[:]
        assert ask(server, tmp_path).dataset[:] == whole
        assert len(server.requests) == 1
    assert len(lines(tmp_path)) == len(set(TEXTS))


def test_a_damaged_line_is_named_and_its_removal_helps(tmp_path: Path) -> None:
    """A line that was edited by hand is dropped without a word, or ends in a traceback."""
    with chat_server() as server:
        ask(server, tmp_path)
        content = (tmp_path / ANSWERS).read_text().splitlines(keepends=True)
        (tmp_path / ANSWERS).write_text("".join([content[0], '{"key": \n', *content[2:]]))
        with pytest.raises(ValueError, match=r"line 2 of .*Remove this line"):
            ask(server, tmp_path)
        del server.requests[:]
        (tmp_path / ANSWERS).write_text("".join([content[0], *content[2:]]))
        ask(server, tmp_path)
        assert len(server.requests) == 1


def test_an_answer_is_on_the_disk_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power failure answers that were paid for would be gone, or asked for again."""
    synced: list[bytes] = []
    original = os.fsync

    def fsync(file: int) -> None:
        original(file)
        synced.append((tmp_path / ANSWERS).read_bytes())

    monkeypatch.setattr(os, "fsync", fsync)
    with Journal(tmp_path) as journal:
        for key in ("a", "b"):
            journal.append({"key": key})
            assert synced[-1].endswith(b'{"key": "%s"}\n' % key.encode())
        assert len(synced) == 2


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    """Two runs ask everything twice, and mix their lines."""
    with chat_server() as server, Journal(tmp_path), pytest.raises(ValueError, match="is in use"):
        ask(server, tmp_path)


FAULTS = {
    "429": Fault("status", status=429, headers={"Retry-After": "0"}),
    "503": Fault("status", status=503, body=b"<html>busy</html>"),
    "408": Fault("status", status=408),
    "hang": Fault("hang", seconds=9),
    "drip": Fault("drip", seconds=9),
    "cut": Fault("cut"),
    "html": Fault("body", body=b"<html>", headers={"Content-Type": "text/html"}),
    "empty": Fault("body", body=b""),
    "no UTF-8": Fault("body", body=b"\xff\xfe"),
    "a list": Fault("body", body=b"[1]"),
    "deep": Fault("body", body=b"[" * 100_000),
    "no choices": Fault("body", body=b'{"choices": []}'),
    "choices of numbers": Fault("body", body=b'{"choices": [1]}'),
    "no message": Fault("body", body=b'{"choices": [{"index": 0}]}'),
    "content of numbers": Fault("body", body=b'{"choices": [{"message": {"content": 3}}]}'),
}


def test_faults_are_survived(tmp_path: Path) -> None:
    """One bad answer among thousands loses the run; or is kept, and trained on."""
    with chat_server() as server:
        server.faults = [Fault(**vars(fault)) for fault in FAULTS.values()]
        found = ask(server, tmp_path, ROWS.select([0]), retries=40, timeout=0.6, backoff=0)
        assert not server.faults
    assert found.dataset["teacher_label"][:] == [1]
    assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize("name", ["503", "drip", "cut", "deep", "no choices"])
def test_faults_that_stay_are_reported(name: str, tmp_path: Path) -> None:
    """A run hangs, or ends with a traceback of the client and without what it had got."""
    with chat_server() as server:
        ask(server, tmp_path, ROWS.select([0]))
        server.faults = [Fault(**{**vars(FAULTS[name]), "times": 99})]
        quick: dict[str, Any] = {"retries": 1, "timeout": 0.3 if name == "drip" else 30}
        with pytest.raises(EndpointError, match=r"gave no answer in 2 attempts; the last one: \w+"):
            ask(server, tmp_path, ROWS.select([0, 1]), **quick)
        assert len(server.requests) == 3 or name == "drip"
    assert len(lines(tmp_path)) == 1


def test_retry_after_holds_all_requests_back(tmp_path: Path) -> None:
    """The other workers go on asking a server that asked for a pause, and are locked out."""
    with chat_server() as server:
        server.faults = [Fault("status", status=429, headers={"Retry-After": "0.3"})]
        ask(server, tmp_path, concurrency=3)
        at = sorted(server.times)
    gaps = np.diff(at)
    assert gaps.max() >= 0.25
    after = len(gaps) - int(gaps.argmax())
    assert after > 1, "one worker alone waited: only the repeated request comes after the pause"
    assert len(at) == len(set(TEXTS)) + 1


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_pause_of_a_day_ends_the_run(form: str, tmp_path: Path) -> None:
    """A job sleeps on a paid machine until tomorrow."""
    pause = {"seconds": "86400", "date": formatdate(time.time() + 86400, usegmt=True)}[form]
    with chat_server() as server:
        server.faults = [Fault("status", status=429, headers={"Retry-After": pause})]
        with pytest.raises(EndpointError, match=r"a pause of 86,\d+ s. Repeat the call then"):
            ask(server, tmp_path, ROWS.select([0]))
        ask(server, tmp_path, ROWS.select([0]))


def test_one_rejected_request_is_no_reason_to_stop(tmp_path: Path) -> None:
    """A content filter loses the run; or is asked, and paid, in every resumed run."""
    fault = Fault("status", status=400, body=b'{"error": {"code": "content_filter"}}')
    with chat_server() as server:
        server.faults = [fault]
        found = ask(server, tmp_path, concurrency=1)
        assert found.dataset["teacher_label"][:] == [None, 0, 1, 0, 1, 0, 0, 1]
        assert found.dataset["label_probabilities"][0] is None
        assert (found.report["rejected"], found.report["unreadable"]) == (1, 1)
        assert found.report["refused"] == 1
        count = len(server.requests)
        assert ask(server, tmp_path).dataset[:] == found.dataset[:]
        assert len(server.requests) == count


def test_wrong_parameters_stop_at_once_and_leave_nothing(tmp_path: Path) -> None:
    """A field that the server does not know makes a thousand rejected answers on disk."""
    with chat_server() as server:
        ask(server, tmp_path, ROWS.select([0]))
        server.faults = [Fault("status", 99, 422, body=b'{"detail": "no such field: seed"}')]
        more = Dataset.from_dict({"text": [f"good {n}" for n in range(50)]})
        with pytest.raises(EndpointError, match=r"rejects every request, status 422: .*'NAME'"):
            ask(server, tmp_path, more, concurrency=2)
        assert len(server.requests) <= 1 + 8 + 2
        assert len(lines(tmp_path)) == 1
        server.faults = []
        del server.requests[:]
        ask(server, tmp_path, more, parameters={"seed": None})
        assert not any("seed" in request for request in server.requests)


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_refused_access_stops_at_once(status: int, tmp_path: Path) -> None:
    """A wrong key is tried a thousand times, and the account is locked."""
    with chat_server() as server:
        server.faults = [Fault("status", 99, status)]
        with pytest.raises(EndpointError, match=f"refuses all requests, status {status}"):
            ask(server, tmp_path, concurrency=2)
        assert len(server.requests) <= 2


def test_the_key_is_sent_and_found_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key in a file, a message or a report is published with the student."""
    key = "sk-very-secret-key"
    monkeypatch.setenv("THE_KEY", key)
    with chat_server() as server:
        found = ask(server, tmp_path, api_key_env="THE_KEY")
        assert {h["authorization"] for h in server.headers} == {f"Bearer {key}"}
        body = f'{{"error": "Incorrect API key provided: {key}"}}'.encode()
        server.faults = [Fault("status", 99, 401, body=body)]
        with pytest.raises(EndpointError) as error:
            ask(server, tmp_path, model="other", api_key_env="THE_KEY")
    told = [*traceback.format_exception(error.value), str(found.report)]
    told += [path.read_text() for path in tmp_path.iterdir()]
    told += [repr(ChatEndpoint("m", "http://h/v1", "THE_KEY")), str(capsys.readouterr())]
    assert not [text for text in told if key in text]
    monkeypatch.delenv("THE_KEY")
    with pytest.raises(ValueError, match=r"variable THE_KEY, got none. Set it"):
        ask(server, tmp_path, model="third", api_key_env="THE_KEY")


def test_the_hugging_face_token_goes_to_no_other_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client sends the user's token to whatever address it is given, unless it gets a key."""
    monkeypatch.setenv("HF_TOKEN", "hf_thisIsTheTokenOfTheUser")
    with chat_server() as server:
        ask(server, tmp_path, ROWS.select([0]))
    assert "hf_this" not in str(server.headers)


def test_offline_mode_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster with a server of its own gets seven attempts, and no reason."""
    with chat_server() as server:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(EndpointError, match=r"HF_HUB_OFFLINE=1.*Unset it"):
            ask(server, tmp_path)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        ask(server, tmp_path)


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("kind", ["tokens", "money", "no usage"])
def test_a_budget_is_not_exceeded(kind: str, concurrency: int, tmp_path: Path) -> None:
    """A run costs more than was allowed, or stops and loses what it paid for."""
    rows = Dataset.from_dict({"text": [f"good {n}" for n in range(30)]})
    budget = Budget(money=0.0025) if kind == "money" else Budget(tokens=300)
    same: dict[str, Any] = {"rows": rows, "prices": (10.0, 20.0), "concurrency": concurrency}
    with chat_server(usage=kind != "no usage") as server:
        with pytest.raises(BudgetError, match="with a larger budget the same call goes on"):
            ask(server, tmp_path, **same, budget=budget)
        kept = lines(tmp_path)
        assert len(kept) == len(server.requests) > 2
        prompts, answers = (sum(one["tokens"][i] for one in kept) for i in (0, 1))
        assert prompts + answers <= 300 or kind == "money"
        assert (prompts * 10 + answers * 20) / 1e6 <= 0.0025 or kind != "money"
        if kind == "tokens":  # what is left is less than a request may cost
            assert prompts + answers > 300 - (prompts / len(kept) + 1) * 1.2 - 16
        found = ask(server, tmp_path, **same)
        assert len(server.requests) == len(rows)
    assert found.report["cost"] == pytest.approx(
        sum(one["tokens"][0] * 10 + one["tokens"][1] * 20 for one in lines(tmp_path)) / 1e6
    )


def test_requests_are_simultaneous_up_to_the_limit(tmp_path: Path) -> None:
    """Ten thousand texts one after another take a day; all at once are refused."""
    with chat_server(delay=0.05) as server:
        ask(server, tmp_path, concurrency=3)
    assert server.most == 3


def test_it_works_in_a_notebook(tmp_path: Path) -> None:
    """A notebook has a running event loop, in which asyncio.run raises."""

    async def cell(server: ChatServer) -> Annotation:
        return ask(server, tmp_path)

    with chat_server() as server:
        assert len(asyncio.run(cell(server)).dataset) == len(ROWS)


def test_the_report_counts_what_happened(tmp_path: Path) -> None:
    """A teacher that answers half of the examples, or wrongly, looks like a good one."""
    answers = {
        "a bad film": says("I'm sorry, but I can't rate films."),
        "not bad": says("hmm", "length"),
        "good": says(None, "content_filter"),
    }

    def reply(request: dict[str, Any]) -> dict[str, Any]:
        text = request["messages"][-1]["content"]
        return answers.get(text) or sentiment(request)

    with chat_server(reply) as server:
        found = ask(
            server, tmp_path, prompt="{{ text }}", gold="label", terms="https://x/terms",
            provider="P", prices=(1.0, 2.0),
        )  # fmt: skip
    report = found.report
    assert {k: report[k] for k in ("examples", "readable", "unreadable", "refused")} == {
        "examples": 8, "readable": 5, "unreadable": 3, "refused": 2,
    }  # fmt: skip
    assert (report["answers"], report["truncated"], report["rejected"]) == (7, 1, 0)
    labels, given = found.dataset["teacher_label"][:], ROWS["label"][:]
    right = [a == b for a, b in zip(labels, given, strict=True) if a is not None]
    assert report["agreement"] == np.mean(right) == 4 / 5
    assert report["agreement_of_all"] == 4 / 8
    assert report["labels"] == {"negative": 2, "positive": 3}
    assert (report["provider"], report["terms"]) == ("P", "https://x/terms")
    assert "I'm sorry, but I can't rate films." in report["unreadable_answers"]
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_log_probabilities_become_distributions(tmp_path: Path) -> None:
    """The labels are read from the text alone, and the doubts of the teacher are lost."""
    top = [{"token": t, "logprob": float(np.log(p))} for t, p in (("pos", 0.6), ("neg", 0.2))]
    position = {"token": "pos", "logprob": top[0]["logprob"], "top_logprobs": top}
    with chat_server(lambda r: says("pos", "length", logprobs={"content": [position]})) as server:
        found = ask(server, tmp_path, ROWS.select([0]), samples=None)
        assert server.requests[0]["logprobs"] is True
        assert server.requests[0]["top_logprobs"] == 20
        assert np.allclose(found.dataset["label_probabilities"][0], [0.25, 0.75])
        strict = ask(server, tmp_path, ROWS.select([0]), samples=None, min_mass=0.9)
        assert strict.dataset["label_probabilities"][0] is None
    with chat_server() as server, pytest.raises(ValueError, match=r"got none.*Pass samples=8"):
        ask(server, tmp_path / "votes", samples=None)
    with chat_server() as server:
        assert len(ask(server, tmp_path / "votes", samples=8).dataset) == len(ROWS)


def test_rationales_come_with_their_label(tmp_path: Path) -> None:
    """The student is taught a reason for one label together with the other."""

    def reply(request: dict[str, Any]) -> dict[str, Any]:
        label = NAMES[request["seed"] > 0]
        return says(f"It is {label} number {request['seed']}.\nAnswer: {label}")

    prompt = "{{ text }}? Give a reason, then a last line 'Answer: LABEL'."
    with chat_server(reply) as server:
        found = ask(server, tmp_path, rationale=True, samples=3, prompt=prompt)
        with pytest.raises(ValueError, match="asks for a last line 'Answer:'"):
            ask(server, tmp_path, rationale=True)
    assert set(found.dataset["rationale"][:]) == {"It is positive number 1."}
    assert np.allclose(found.dataset["label_probabilities"][:], [1 / 3, 2 / 3])


def test_completions_are_chats_to_train_on(tmp_path: Path) -> None:
    """The student learns the prompts too, or to continue texts that the teacher did not finish."""
    with chat_server(lambda r: says(r["messages"][-1]["content"].upper())) as server:
        prompt = [{"role": "system", "content": "Shout."}, {"role": "user", "content": "{{text}}"}]
        found = ask(server, tmp_path, labels=None, samples=None, prompt=prompt)
    assert found.dataset["completion"][:2] == ["A GOOD FILM", "A BAD FILM"]
    assert [turn["role"] for turn in found.dataset["messages"][0]] == [
        "system",
        "user",
        "assistant",
    ]
    tokenizer = language_models.tokenizer()
    rows = tokenize(found.dataset.select_columns(["messages"]), tokenizer, max_length=64)
    learnt = [i for i in rows[0]["labels"] if i != -100]
    assert "A GOOD FILM" in tokenizer.decode(learnt)
    assert "a good film" not in tokenizer.decode(learnt)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prompt": "{{ txt }}"}, r"got one with \['txt'\]"),
        ({"prompt": "no column"}, "got one with none"),
        ({"prompt": "{{ text"}, "Expected a Jinja template"),
        ({"prompt": "{{ text.x.y }}"}, "cannot be rendered"),
        ({"prompt": [{"role": "user"}]}, "'role' and 'content'"),
        ({"labels": ["one"]}, "at least two labels"),
        ({"labels": {"a": "yes", "b": "Yes"}}, "different answer words"),
        ({"labels": None}, "Expected labels with samples"),
        ({"samples": 0}, "samples >= 1"),
        ({"gold": "stars"}, "Expected gold as a column"),
        ({"budget": Budget(money=1.0)}, "Expected the prices of the endpoint"),
        ({"base_url": "https://user:password@host/v1"}, "without credentials"),
        ({"base_url": "https://host/v1?key=1"}, "without a query"),
        ({"base_url": "host:8000"}, "Expected base_url as http"),
        ({"rows": ROWS.rename_column("label", "teacher_label")}, r"without the columns \['teach"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_sent(
    options: dict[str, Any], told: str, tmp_path: Path
) -> None:
    """A mistake in the prompt costs money."""
    with chat_server() as server:
        with pytest.raises(ValueError, match=told):
            ask(server, tmp_path, **options)
        assert not server.requests


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://h:1/v1", "http://h:1/v1/chat/completions"),
        ("http://h", "http://h/v1/chat/completions"),
        ("https://h/api/v4/", "https://h/api/v4/chat/completions"),
        ("https://h/x/chat/completions", "https://h/x/chat/completions"),
    ],
)
def test_addresses(base: str, url: str) -> None:
    """A provider whose path has no v1 answers 404."""
    assert ChatEndpoint("m", base).url == url
