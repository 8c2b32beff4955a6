"""What trackers show of a distillation, and that they keep it on this machine."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import launch
from tiny_recipes import recipe
from tiny_trainers import accuracy, config, models, trainer

from hf_distill import (
    DistillationConfig,
    ForwardKL,
    HardLabels,
    Schedule,
)
from hf_distill.recipe import RecipeError, load_recipe
from hf_distill.recipe.training import arguments
from hf_distill.training.trackers import check_trackers, keep_trackers_offline

SECRET = "hf_" + "abcdefghij" * 3
PLANNED = HardLabels() + Schedule("linear", 1.0, 0.0) * ForwardKL(Schedule("linear", 4.0, 1.0))


def tracked(folder: Path, report_to: str, **options: Any) -> Any:
    """A finished run of four steps with a teacher from a folder, evaluated twice."""
    _, teacher = models()
    teacher.save_pretrained(folder / "teacher")
    ours = trainer(
        folder / "out",
        teacher_model=folder / "teacher",
        teacher_model_init_kwargs={"dtype": torch.float32, "token": SECRET},
        objective=PLANNED,
        report_to=[report_to],
        log_gradient_norms=True,
        eval_strategy="steps",
        eval_steps=2,
        max_steps=4,
        compute_metrics=accuracy,
        **options,
    )
    ours.train()
    return ours


def expected(history: list[dict[str, Any]]) -> dict[tuple[str, int], float]:
    """``(name, step)`` -> value of a log, with the names by which trackers group."""
    return {
        (f"eval/{key[5:]}" if key.startswith("eval_") else f"train/{key}", entry["step"]): value
        for entry in history
        if "train_runtime" not in entry
        for key, value in entry.items()
        if key != "step"
    }


NAMES = {
    *("train/loss", "train/hard_labels", "train/forward_kl", "train/learning_rate"),
    *("train/grad_norm", "train/grad_norm_hard_labels", "train/grad_norm_forward_kl"),
    *("train/forward_kl_weight", "train/forward_kl_temperature"),
    *(
        "eval/loss",
        "eval/hard_labels",
        "eval/forward_kl",
        "eval/agreement",
        "eval/forward_kl_divergence",
    ),
    *(
        "eval/reverse_kl_divergence",
        "eval/accuracy",
        "eval/teacher_accuracy",
        "eval/retention_accuracy",
    ),
}


def check_facts(facts: dict[str, Any]) -> None:
    assert facts["objective"] == str(PLANNED)
    assert facts["temperature"] == {"forward_kl": "linear(4 → 1 over the whole training)"}
    assert facts["teacher"]["name"] == "teacher"  # without its folder
    assert facts["teacher"]["parameters"] > facts["student"]["parameters"] > 0


def test_tensorboard_shows_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves of other values than the log's, or a run that does not say what it minimised."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    ours = tracked(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= NAMES
    wanted = expected(ours.state.log_history)
    shown = {(n, e.step): e.value for n in NAMES for e in events.Scalars(n)}
    assert shown == pytest.approx({key: wanted[key] for key in shown}, rel=1e-6)
    assert {key for key in wanted if key[0] in NAMES} == shown.keys()
    (text,) = events.Tensors("distillation/text_summary")
    check_facts(json.loads(text.tensor_proto.string_val[0]))
    assert not [p for p in (tmp_path / "events").iterdir() if SECRET.encode() in p.read_bytes()]


def no_network() -> None:
    """End the process where anything but this machine is asked for."""
    connect, resolve = socket.socket.connect, socket.getaddrinfo
    here = ("127.0.0.1", "::1", "localhost", None, "")

    def only_here(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in here:
            os._exit(77)
        connect(self, address)

    def resolve_here(host: Any, *rest: Any, **options: Any) -> Any:
        if host not in here:
            os._exit(78)
        return resolve(host, *rest, **options)

    socket.socket.connect = only_here
    socket.getaddrinfo = resolve_here


def run_tracked(folder: str, tracker: str) -> None:
    """In a process of its own, in the folder: train, and write down what was logged."""
    os.chdir(folder)
    no_network()
    ours = tracked(Path(folder), tracker)
    Path("history.json").write_text(json.dumps(ours.state.log_history))


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without any login, whose only way out is a dead port."""
    for name in [n for n in os.environ if n.startswith(("WANDB_", "TRACKIO_"))]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    for name, value in {
        "HOME": home,
        "NETRC": home / "none",
        "TRACKIO_DIR": tmp_path / "db",
    }.items():
        monkeypatch.setenv(name, str(value))
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return tmp_path


def test_wandb_is_offline_without_a_login(stranger: Path) -> None:
    """Without a login W&B asks a question that nobody answers in a batch job, or ends the run."""
    pytest.importorskip("wandb")
    output = launch(run_tracked, stranger, "wandb")
    assert "stays on this machine" in output
    (file,) = (stranger / "wandb").glob("offline-run-*/run-*.wandb")
    shown, configured = {}, {}
    for record in wandb_records(file):
        for item in record.config.update:
            configured[item.key] = json.loads(item.value_json)
        items = {
            "/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item
        }
        step = items.pop("train/global_step", None)
        shown.update({(name, step): value for name, value in items.items() if name in NAMES})
    history = json.loads((stranger / "history.json").read_text())
    wanted = {k: v for k, v in expected(history).items() if k[0] in NAMES}
    assert shown == pytest.approx(wanted)
    check_facts(configured["distillation"])
    assert SECRET.encode() not in file.read_bytes()


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of an offline run: protobuf messages in LevelDB's log format, after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = file.read_bytes(), 7, b""
    while place < len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


GIVEN = {
    "stranger": ({}, "offline"),
    "login": ({"WANDB_API_KEY": "0123456789" * 4}, "online"),
    "asked": ({"WANDB_MODE": "online"}, "online"),
    "off": ({"WANDB_MODE": "disabled"}, "disabled"),
}


def modes(folder: str) -> None:
    """Print what W&B would do after our look at it, case by case."""
    import wandb

    os.chdir(folder)
    no_network()
    args = DistillationConfig("out", report_to=["wandb"], use_cpu=True)
    for case, (variables, _) in GIVEN.items():
        os.environ.update(variables)
        keep_trackers_offline(args)
        print(f"{case}: {wandb.setup().settings.mode}.")
        wandb.teardown()
        for name in variables:
            del os.environ[name]


@pytest.mark.slow
def test_wandb_obeys_the_user(stranger: Path) -> None:
    """Who is logged in finds no run on the site, or who switched it off finds one."""
    pytest.importorskip("wandb")
    output = launch(modes, stranger)
    for case, (_, mode) in GIVEN.items():
        assert f"{case}: {mode}." in output


@pytest.mark.slow
def test_trackio_stays_here(stranger: Path) -> None:
    """A run that a user thinks local is sent, or its dashboard lacks the curves."""
    pytest.importorskip("trackio")
    launch(run_tracked, stranger, "trackio")
    (file,) = (stranger / "db").glob("*.db")
    with sqlite3.connect(file) as database:
        rows = [json.loads(row) for (row,) in database.execute("select metrics from metrics")]
        ((configured,),) = database.execute("select config from configs").fetchall()
    shown = {(n, row["train/global_step"]): v for row in rows for n, v in row.items() if n in NAMES}
    history = json.loads((stranger / "history.json").read_text())
    assert shown == pytest.approx({k: v for k, v in expected(history).items() if k[0] in NAMES})
    check_facts(json.loads(configured)["distillation"])
    assert SECRET not in str(configured)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, False),
        ({"trackio_static_space_id": "me/board"}, "me/board"),
        ({"trackio_space_id": "me/board"}, None),
    ],
)
def test_a_push_publishes_no_dashboard_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], kept: Any
) -> None:
    """transformers makes a public Space of every trackio project when a student is pushed."""
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    args = config(tmp_path, report_to=["trackio"], **given)
    keep_trackers_offline(args)
    assert args.trackio_static_space_id == kept


def test_a_tracker_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found out when the teacher of a recipe has been trained for an hour."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="names wandb, which is not installed: pip install wandb"):
        check_trackers(config(tmp_path, report_to=["wandb"]))
    with pytest.raises(RecipeError, match="names wandb, which is not installed"):
        arguments(load_recipe(recipe(tmp_path)), "teacher", 0, tmp_path, report_to="wandb")
