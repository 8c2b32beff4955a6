"""Publishing against a Hub on the loopback: what goes up, what comes down, what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from hf_distill.hub import PUBLISHED, StudentCard, published_files, push_folder, write

pytestmark = pytest.mark.xdist_group("hub")  # fixtures that are expensive are made once

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "write", "a", "sentence", "here", "."]
PRIVATE = [
    "optimizer.pt",
    "pytorch_model.bin",
    "training_args.bin",
    "trainer_state.json",
    "teacher.safetensors",
    "_notes.txt",
    "_loss.png",
    "notes.md",
    ".env",
    "checkpoint-2/model.safetensors",
    "runs/events.out.tfevents.1",
    "_hf_distill/recipe.yaml",
    "plots/_draft.png",
    "plots/raw.csv",
    "curves.html",
    "onnx/model.pt",
    "onnx/inner/model.onnx",
    "quantized/pytorch_model.bin",
    ".eval_results/notes.md",
]
PUBLIC = [
    ".eval_results/reviews.yaml",
    "README.md",
    "config.json",
    "model.safetensors",
    "onnx/export.json",
    "onnx/model.onnx",
    "plots/curves.png",
    "quantized/model.safetensors",
    "recipe.yaml",
    "report.json",
    "tokenizer.json",
    "tokenizer_config.json",
]

FACTS: dict[str, Any] = {
    "task": "text-classification",
    "license": "apache-2.0",
    "base_model": "tester/base",
    "teacher": {"name": "tester/teacher", "parameters": 1000},
    "data": {"name": "some reviews", "test_split": "test"},
    "results": {"student": {"accuracy": 0.75, "f1": 0.5}, "teacher": {"accuracy": 0.875}},
    "plots": ["plots/curves.png"],
}

PUBLISHER = """
import json, os, sys
from pathlib import Path
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from hf_distill.hub import StudentCard, push_folder, write

student, sharded, adapter = sys.argv[1:]
out = {}
out["first"] = push_folder(student, "student", private=True).oid
out["second"] = push_folder(student, "tester/student").oid
out["branch"] = push_folder(student, "tester/student", revision="v1").oid
request = push_folder(student, "tester/request", create_pr=True)
out["request"] = request.pr_url
push_folder(student, "tester/sharded")
push_folder(sharded, "tester/sharded")
base = AutoModelForSequenceClassification.from_pretrained("tester/student")
base.config.num_labels = 3
config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["query"])
get_peft_model(base, config).save_pretrained(adapter)
AutoTokenizer.from_pretrained("tester/student").save_pretrained(adapter)
card = StudentCard("adapter", task="text-classification", library_name="peft",
                   base_model="tester/student", student={"num_labels": 3})
write(card, adapter)
push_folder(adapter, "tester/adapter")
def refusal(**options):
    try:
        push_folder(student, "tester/student", **options)
    except PermissionError as error:
        return str(error)
out["readonly"] = refusal(token="readonly")
out["unknown"] = refusal(token="stranger")
del os.environ["HF_TOKEN"]
out["anonymous"] = refusal()
print(json.dumps(out))
"""

READER = """
import json, os, re, sys
sys.modules["hf_distill"] = None  # as where it is not installed
import torch
from huggingface_hub import ModelCard, hf_hub_download, model_info, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, pipeline

out = {}
for repo, revision in (("student", "main"), ("student", "v1"), ("sharded", "main")):
    model, info = AutoModelForSequenceClassification.from_pretrained(
        f"tester/{repo}", revision=revision, output_loading_info=True)
    assert not any(info.values()), info
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        state["logits"] = model.eval()(torch.arange(10).reshape(2, 5)).logits
    save_file(state, f"{repo}-{revision}.safetensors")
for repo in ("student", "adapter"):
    card = open(hf_hub_download(f"tester/{repo}", "README.md"), encoding="utf-8").read()
    code = re.search(r"```python\\n(.*?)```", card, re.DOTALL).group(1)
    assert f'model_id = "tester/{repo}"' in code, code
    exec(code, {})
out["snapshot"] = sorted(os.listdir(snapshot_download("tester/student")))
out["said"] = pipeline("text-classification", "tester/student")("write a sentence")[0]["label"]
info = model_info("tester/student")
out["private"], out["tags"], out["pipeline"] = info.private, info.tags, info.pipeline_tag
out["relation"] = info.card_data.base_model_relation
out["results"] = [(r.metric_type, r.metric_value) for r in info.card_data.eval_results]
data = ModelCard.load("tester/student").data
out["license"], out["teacher"] = data.license, data.teacher_model
try:
    model_info("tester/student", token=False)
except RepositoryNotFoundError as error:
    out["anonymous"] = error.response.status_code
print(json.dumps(out))
"""


def _student(folder: Path) -> BertForSequenceClassification:
    """A finished student of a few thousand parameters, with its card, and with private files."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    config.num_labels = 3
    model = BertForSequenceClassification(config)
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
    ).save_pretrained(folder)
    for name in ("plots/curves.png", "onnx/model.onnx", *PRIVATE):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(b"private or a picture")
    (folder / ".eval_results/reviews.yaml").write_text("- value: 0.75\n")
    (folder / "onnx/export.json").write_text("{}")
    save_file({"w": torch.zeros(2)}, folder / "quantized/model.safetensors")
    (folder / "report.json").write_text('{"accuracy": 0.5}')
    (folder / "recipe.yaml").write_text("student: tester/base\n")
    write(StudentCard("student", **FACTS), folder)
    return model


def _run(script: str, *arguments: Path, cwd: Path, environment: dict[str, str]) -> str:
    """Run a script as another process; gives the last line that it printed."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=cwd,
        env=variables | environment | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().rpartition("\n")[2]


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the publishing process said, the Hub after it, and the student that was pushed."""
    root = tmp_path_factory.mktemp("hub")
    model = _student(root / "out")
    shutil.copytree(root / "out", root / "sharded")
    (root / "sharded/model.safetensors").unlink()
    shutil.rmtree(root / "sharded/onnx")
    model.save_pretrained(root / "sharded", max_shard_size="5KB")
    folders = [root / name for name in ("out", "sharded", "adapter")]
    with HubServer() as hub:
        environment = hub.environment(root / "home")
        said = json.loads(_run(PUBLISHER, *folders, cwd=root, environment=environment))
        facts = {"said": said, "hub": hub, "folder": root / "out", "root": root, "model": model}
        environment = hub.environment(root / "reader")
        facts["read"] = json.loads(_run(READER, cwd=root, environment=environment))
        yield facts


def test_only_the_allowed_files_are_published(pushed: dict[str, Any]) -> None:
    """Pickles, optimizer state, notes, event files or a teacher would go public unnoticed."""
    assert sorted(pushed["hub"].files("tester/student")) == PUBLIC
    assert published_files(pushed["folder"]) == PUBLIC
    assert pushed["hub"].repos["tester/student"].private


def test_student_comes_back_bit_equal_in_plain_transformers(pushed: dict[str, Any]) -> None:
    """A student that needs hf_distill, or whose weights changed on the way, would still push.

    The reader cannot import hf_distill; it also runs the quick start of both published cards, the
    adapter's included, and `transformers.pipeline`.
    """
    root: Path = pushed["root"]
    expected = load_file(root / "out/model.safetensors")
    with torch.no_grad():
        expected["logits"] = pushed["model"].eval()(torch.arange(10).reshape(2, 5)).logits
    for name in ("student-main", "student-v1", "sharded-main"):
        loaded = load_file(root / f"{name}.safetensors")
        assert loaded.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(loaded[key], value), f"{name}: {key}"
    assert pushed["read"]["said"] in ("LABEL_0", "LABEL_1")
    assert set(pushed["read"]["snapshot"]) >= {"config.json", "model.safetensors", "plots"}


def test_the_metadata_can_be_read_back(pushed: dict[str, Any]) -> None:
    """The Hub finds a student by its metadata: what it does not understand is not found."""
    read = pushed["read"]
    assert {"distillation", "hf_distill"} <= set(read["tags"])
    assert read["pipeline"] == "text-classification"
    assert (read["license"], read["teacher"]) == ("apache-2.0", "tester/teacher")
    assert read["relation"] == "finetune"
    assert sorted(read["results"]) == [["accuracy", 0.75], ["f1", 0.5]]


def test_a_private_student_is_private(pushed: dict[str, Any]) -> None:
    """What was meant for few would be open to all."""
    assert pushed["read"]["private"]
    assert pushed["read"]["anonymous"] == 401


QUANTISER = """
import sys, torch
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TorchAoConfig
from hf_distill.hub import StudentCard, push_folder, write

plain, folder = sys.argv[1:]
int8 = TorchAoConfig(Int8WeightOnlyConfig())
model = AutoModelForSequenceClassification.from_pretrained(plain, quantization_config=int8).eval()
model.save_pretrained(folder)
card = StudentCard("int8", task="text-classification", base_model="tester/student",
                   base_model_relation="quantized")
write(card, folder)
push_folder(folder, "tester/int8")
back = AutoModelForSequenceClassification.from_pretrained("tester/int8").eval()
ids = torch.arange(10).reshape(2, 5)
assert torch.equal(back(ids).logits, model(ids).logits)
assert back.classifier.weight.dequantize().unique().numel() <= 3 * 255
print(type(back.classifier.weight).__name__)
"""


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
def test_a_quantised_student_goes_up_and_comes_back(pushed: dict[str, Any]) -> None:
    """Weights of another kind could be left behind, or come back as floats."""
    root: Path = pushed["root"]
    environment = pushed["hub"].environment(root / "home")
    kind = _run(QUANTISER, root / "out", root / "int8", cwd=root, environment=environment)
    assert kind == "Int8Tensor"
    files = pushed["hub"].files("tester/int8")
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert b"base_model_relation: quantized" in files["README.md"]


def test_an_unchanged_push_makes_no_commit(pushed: dict[str, Any]) -> None:
    """Every run of a finished recipe would otherwise add an empty commit to the history."""
    said = pushed["said"]
    assert said["first"] == said["second"]


def test_a_missing_branch_is_created(pushed: dict[str, Any]) -> None:
    """transformers' own push fails with RevisionNotFound after hours of training."""
    repo = pushed["hub"].repos["tester/student"]
    assert repo.branches["v1"] == pushed["said"]["branch"]
    assert sorted(pushed["hub"].files("tester/student", "v1")) == PUBLIC


def test_a_pull_request_leaves_main_alone(pushed: dict[str, Any]) -> None:
    """create_pr that pushed to main would publish what was to be reviewed."""
    assert pushed["said"]["request"].endswith("/tester/request/discussions/1")
    assert pushed["hub"].files("tester/request") == {}
    assert sorted(pushed["hub"].files("tester/request", "refs/pr/1")) == PUBLIC


def test_stale_weights_are_deleted(pushed: dict[str, Any]) -> None:
    """from_pretrained prefers model.safetensors to shards: it would load the earlier push."""
    names = pushed["hub"].files("tester/sharded")
    assert "model.safetensors" not in names
    assert "model.safetensors.index.json" in names
    assert "quantized/model.safetensors" in names
    assert not [name for name in names if name.startswith("onnx/")]


@pytest.mark.parametrize(
    ("who", "words"),
    [
        ("readonly", "403.*write access"),
        ("unknown", "401.*hf auth login"),
        ("anonymous", "hf auth login.*HF_TOKEN.*token="),
    ],
)
def test_refused_tokens_say_what_to_do(pushed: dict[str, Any], who: str, words: str) -> None:
    """A bare 401 says neither that a token is missing nor how to give one."""
    assert re.search(words, pushed["said"][who], re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good student, and no way to any Hub."""

    def no_network(**_: object) -> None:
        raise AssertionError("the Hub was asked before the folder was checked")

    monkeypatch.setattr("hf_distill.hub.push.HfApi", no_network)
    _student(tmp_path / "out")
    return tmp_path / "out"


def _edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _make_adapter(folder: Path, base: str) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    shutil.move(folder / "model.safetensors", folder / "adapter_model.safetensors")


def _add_shard(folder: Path) -> None:
    name = "model-00001-of-00001.safetensors"
    shutil.copy(folder / "model.safetensors", folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))


BROKEN: dict[str, tuple[Any, str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "missing: model.safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), "missing: config.json.*save_model"),
    "no card": (lambda f: (f / "README.md").unlink(), r"missing: README.md.*write\(card"),
    "cut short": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:-9]
        ),
        "cut short.*save it again",
    ),
    "a shard gone": (
        lambda f: (f / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
        ),
        "missing: model-00001-of-00002",
    ),
    "card invalid": (
        lambda f: (f / "README.md").write_text("# No front matter\n"),
        "README.md: .*expected front matter",
    ),
    "picture gone": (lambda f: (f / "plots/curves.png").unlink(), "shows plots/curves.png"),
    "old beside new": (_add_shard, "transformers reads only the first: delete the older"),
    "path in a graph": (
        lambda f: (f / "onnx/model.onnx").write_bytes(os.fsencode(Path.home()) + b"/model.py"),
        "onnx/model.onnx holds the local folder",
    ),
    "path in a header": (
        lambda f: save_file(
            {"w": torch.zeros(2)}, f / "quantized/model.safetensors", {"from": "/home/me/x"}
        ),
        "quantized/model.safetensors holds in its metadata the local path /home/me/x",
    ),
    "token beside a graph": (
        lambda f: (f / "onnx/export.json").write_text('{"hub_token": "secret-of-mine"}'),
        "onnx/export.json holds a secret, hub_token: revoke it",
    ),
    "path in the report": (
        lambda f: _edit_json(f / "report.json", data="/home/me/data.tsv"),
        "report.json holds the local path /home/me/data.tsv",
    ),
    "token in the recipe": (
        lambda f: (f / "recipe.yaml").write_text("hub_token: hf_" + "a1B2" * 9),
        "recipe.yaml holds an access token",
    ),
    "adapter of a folder": (lambda f: _make_adapter(f, "./base"), "base model './base'.*merge"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_unfinished_folder_is_refused_before_any_network(folder: Path, case: str) -> None:
    """Half a student, or one that names a folder of this machine, would be public first."""
    breaks, words = BROKEN[case]
    breaks(folder)
    with pytest.raises((FileNotFoundError, ValueError), match=f"(?s){words}"):
        push_folder(folder, "tester/student", token="dummy")


@pytest.mark.parametrize("repo_id", ["a/b/c", "me/white space", "-me/x", "me/x--y", "me/x.git", ""])
def test_a_malformed_id_is_refused(folder: Path, repo_id: str) -> None:
    """The Hub would answer with a bare 400 after the whole training."""
    with pytest.raises(ValueError, match="expected a Hub id `namespace/name`"):
        push_folder(folder, repo_id, token="dummy")


def test_a_pull_request_of_a_branch_is_refused(folder: Path) -> None:
    """One of the two options would be ignored."""
    with pytest.raises(ValueError, match="pull request is opened against main"):
        push_folder(folder, "tester/student", token="dummy", revision="v1", create_pr=True)


def test_no_published_pattern_matches_a_pickle() -> None:
    """A wide pattern (`*.model`, `vocab.*`) would let a pickle through."""
    assert not [p for p in PUBLISHED if p.endswith((".bin", ".pt", ".pth", ".pkl", "*", "*.model"))]
