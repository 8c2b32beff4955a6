"""ONNX of a student: the file answers as the student does, or there is none."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from exported_students import (
    AUDIO,
    IMAGE,
    TEXT,
    accuracy,
    difference,
    labelled,
    onnx,
    onnxruntime,
    reloaded,
    saved,
    tokenizer,
)

from hf_distill.export import ExportError, export_onnx, quantize_int8, read_exports
from hf_distill.export import onnx as exporting

pytestmark = pytest.mark.xdist_group("export")  # the student is exported once
QUICK = ("question_answering", "causal_lm", "image_classification")
"""The others take as long and add little."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in (*TEXT, *IMAGE, *AUDIO)
    ],
)
def test_onnx_answers_as_the_student(tmp_path: Path, name: str) -> None:
    """A graph with a fixed batch size, a fixed length or without its mask answers otherwise in
    production than the student that was measured."""
    folder = saved(tmp_path, name)
    row = export_onnx(folder)
    assert difference(folder, name, "onnx/model.onnx") < 1e-5
    assert row.max_difference < 1e-5
    assert row.same_argmax == (None if name in ("regression", "encoder") else 1.0)
    assert row.examples == 8
    onnx.checker.check_model(folder / row.file, full_check=True)
    assert read_exports(folder) == [row.describe()]


SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
WHISPER = {**tiny_models.CASES["speech_seq2seq"].config().to_diff_dict(), "num_labels": 3}
OTHERS: dict[str, tuple[str, Any, Any]] = {
    "SwinForImageClassification": (
        "image_classification",
        transformers.SwinConfig(**SWIN, window_size=4, num_labels=3),
        None,
    ),
    "WhisperForAudioClassification": (
        "audio_classification",
        transformers.WhisperConfig(**WHISPER),
        transformers.WhisperFeatureExtractor(8, 16000, hop_length=266, chunk_length=1),
    ),
    "GPT2LMHeadModel": (
        "causal_lm",
        transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, eos_token_id=3),
        tokenizer("left", pad_token=None, eos_token="[SEP]"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures(tmp_path: Path, name: str) -> None:
    """Windowed attention, sounds of one fixed length and tokenizers without padding could not be
    exported."""
    task, config, processor = OTHERS[name]
    torch.manual_seed(0)
    folder = saved(tmp_path, task, getattr(transformers, name)(config), processor)
    row = export_onnx(folder)
    assert row.max_difference < 1e-5
    assert all(dimensions[0] == "batch_size" for dimensions in row.inputs.values())
    if processor is None:
        assert difference(folder, task, row.file) < 1e-5


def test_facts_are_of_the_file(exported: Path) -> None:
    """A card would give figures of another file, another opset or another student."""
    (row,) = read_exports(exported)
    path, model = exported / row["file"], reloaded(exported)
    assert (row["format"], row["file"]) == ("ONNX", "onnx/model.onnx")
    assert row["size_bytes"] == path.stat().st_size
    assert [o.version for o in onnx.load(path).opset_import if o.domain == ""] == [18]
    assert row["opset"] == 18
    varying = ["batch_size", "sequence_length"]
    assert row["inputs"] == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), varying
    )
    assert row["versions"]["onnxruntime"] == onnxruntime.__version__
    examples = labelled(12)
    with torch.no_grad():
        expected = accuracy(exported, examples, lambda batch: model(**batch).logits[0].numpy())
    assert (row["metric"], row["examples"], row["generated"]) == ("accuracy", 12, False)
    assert row["value"] == row["float_value"] == pytest.approx(expected)
    assert not list(exported.glob(".*"))


def test_file_holds_nothing_of_this_machine(exported: Path) -> None:
    """Traces of the exporter name the files, and with them the user, of the one who published."""
    for path in (exported / "onnx").iterdir():
        content = path.read_bytes()
        for secret in (str(Path.home()), str(exported), "site-packages", "hf_distill", "/tmp"):
            assert secret.encode() not in content, secret


ALONE = """
import json, sys
sys.modules["hf_distill"] = sys.modules["torch"] = sys.modules["transformers"] = None
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("onnx/model.onnx", providers=["CPUExecutionProvider"])
ids = np.array([[2, 9, 11, 3], [2, 30, 3, 0]])
feed = {"input_ids": ids, "attention_mask": (ids > 0) * 1, "token_type_ids": ids * 0}
print(json.dumps(session.run(["logits"], feed)[0].tolist()))
"""


def test_file_needs_nothing_of_us(exported: Path) -> None:
    """Where the file runs there is no hf_distill, transformers or torch."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=exported, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ids = torch.tensor([[2, 9, 11, 3], [2, 30, 3, 0]])
    with torch.no_grad():
        expected = reloaded(exported)(input_ids=ids, attention_mask=(ids > 0) * 1).logits
    np.testing.assert_allclose(json.loads(done.stdout), expected.numpy(), atol=1e-5)


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_wrong_graph_is_not_kept(
    exported: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A faulty export would be published under the student's figures."""

    def broken(student: Any, path: Path, opset: int) -> None:
        model = onnx.load(exported / "onnx/model.onnx")
        weight = next(t for t in model.graph.initializer if t.name.endswith("classifier.weight"))
        values = onnx.numpy_helper.to_array(weight) * np.float32(1.1)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(model, path)

    before = files(student)
    monkeypatch.setattr(exporting, "write_graph", broken)
    with pytest.raises(ExportError, match=r"within 0\.0001, got a difference of 0\.\d+ on 8 exam"):
        export_onnx(student)
    assert files(student) == before


def test_fixed_length_is_not_kept(
    exported: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file would refuse every text but those as long as the one it was traced with."""
    before = files(student)

    def fixed(student: Any, path: Path, opset: int) -> None:
        model = onnx.load(exported / "onnx/model.onnx")
        for given in model.graph.input:
            given.type.tensor_type.shape.dim[1].dim_value = 5
        onnx.save(model, path)

    monkeypatch.setattr(exporting, "write_graph", fixed)
    with pytest.raises(ExportError, match=r"does not run on a batch of shapes {'input_ids'"):
        export_onnx(student)
    assert files(student) == before


def test_interrupted_export_leaves_nothing(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half an export would be pushed with the student, or be taken for a compared one."""
    shutil.rmtree(student / "onnx")
    before = files(student)

    def interrupted(student: Any, path: Path, opset: int) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "write_graph", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(student)
    assert files(student) == before
    assert not list(student.glob("*onnx*"))


def test_facts_of_another_student_are_refused(student: Path) -> None:
    """Trained on and saved again, the student would be published with an ONNX file of before,
    or an int8 file of before would stay beside a new one."""
    quantize_int8(student)
    model = reloaded(student)
    model.classifier.bias.data += 1
    model.save_pretrained(student)
    with pytest.raises(ValueError, match=r"weights .* have changed since .* hf-distill export"):
        read_exports(student)
    with pytest.raises(ValueError, match="have changed since"):
        quantize_int8(student)
    export_onnx(student)
    assert difference(student, "sequence_classification", "onnx/model.onnx") < 1e-5
    found = sorted(path.name for path in (student / "onnx").iterdir())
    assert found == ["export.json", "model.onnx"]
    (student / "onnx/model.onnx").write_bytes(b"other")
    with pytest.raises(ValueError, match="as it was exported, got none or another"):
        read_exports(student)


def test_large_weights_lie_beside_the_graph(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A protobuf holds 2 GiB: a larger student would have no file, or one without weights."""
    monkeypatch.setattr(exporting.exported, "SINGLE_FILE", 0)
    rows = [export_onnx(student), quantize_int8(student)]
    for row in rows:
        parts = sorted((student / "onnx").glob(f"{Path(row.file).name}*"))
        assert [part.suffix for part in parts] == [".onnx", ".data"]
        assert row.size_bytes == sum(part.stat().st_size for part in parts)
    assert difference(student, "sequence_classification", rows[0].file) < 1e-5
    assert read_exports(student) == [row.describe() for row in rows]
    parts[1].write_bytes(parts[1].read_bytes()[::-1])
    with pytest.raises(ValueError, match="as it was exported"):
        read_exports(student)


def test_refusals(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be exported must say so and what to do, before minutes of tracing."""
    t5 = saved(tmp_path / "t5", "seq2seq_lm")
    with pytest.raises(
        ValueError, match=r"one of sequence_classification, .*, got seq2seq_lm \(T5"
    ):
        export_onnx(t5)
    with pytest.raises(ValueError, match="at least 18, got 17"):
        export_onnx(student, opset=17)
    with pytest.raises(ValueError, match=r"finished student with config\.json"):
        export_onnx(tmp_path)
    tagger = saved(tmp_path / "tagger", "token_classification")
    with pytest.raises(ValueError, match=r"one class per example .* got them for token_class"):
        export_onnx(tagger, examples=labelled(3))
    with pytest.raises(ValueError, match="at least one example, got none"):
        export_onnx(tagger, examples=[])
    with pytest.raises(FileNotFoundError, match="Export it first"):
        quantize_int8(tagger)
    with pytest.raises(ValueError, match="model of text, got image"):
        export_onnx(student, examples=[np.zeros((4, 4, 3), "uint8")])
    (tagger / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="Merge it into its base"):
        export_onnx(tagger)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        ImportError, match=r"onnxscript cannot .* pip install 'hf_distill\[export\]'"
    ):
        export_onnx(student)
