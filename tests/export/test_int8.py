"""int8 of a student, and the command that exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from exported_students import accuracy, labelled, onnx, onnxruntime, reloaded
from torch import nn

from hf_distill.cli import main
from hf_distill.evaluation.examples import Examples
from hf_distill.export import quantize_int8, read_exports
from hf_distill.hub import StudentCard, write

pytestmark = pytest.mark.xdist_group("export")  # the student is exported once


def test_int8_is_int8_and_measured(student: Path) -> None:
    """A file that is called int8 with float weights, or whose accuracy is the float one's, promises
    what it does not keep."""
    examples = labelled(40)
    row = quantize_int8(student, examples=examples)
    path, model = student / "onnx/model_int8.onnx", reloaded(student)
    graph = onnx.load(path).graph
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert sum(node.op_type == "MatMulInteger" for node in graph.node) == len(linear) == 14
    int8 = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and t.dims]
    assert sum(np.prod(t.dims) for t in int8) >= sum(m.weight.numel() for m in linear)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def answer(batch: dict[str, torch.Tensor]) -> Any:
        return session.run(None, {k: v.numpy() for k, v in batch.items()})[0][0]

    # activations get one scale per batch, so that alone an example may be rounded otherwise
    assert row.value == pytest.approx(accuracy(student, examples, answer), abs=2 / 40)
    with torch.no_grad():
        expected = accuracy(student, examples, lambda batch: model(**batch).logits[0].numpy())
    assert row.float_value == pytest.approx(expected)
    assert 1e-4 < row.max_difference < 0.5
    assert row.same_argmax is not None
    assert row.same_argmax > 0.8
    assert [found["format"] for found in read_exports(student)] == ["ONNX", "ONNX int8"]
    alone = quantize_int8(student, examples=examples.values[:1])
    batch = dict(transformers.AutoTokenizer.from_pretrained(student)([examples.values[0]]))
    batch = {key: torch.tensor(value) for key, value in batch.items()}
    with torch.no_grad():
        logits = model(**batch).logits[0].numpy()
    assert alone.max_difference == pytest.approx(np.abs(answer(batch) - logits).max(), abs=1e-5)
    assert alone.metric is None


def test_int8_of_embeddings(student: Path) -> None:
    """In a small model of text the embeddings are most of the file: int8 would save nothing."""
    sizes = [quantize_int8(student, embeddings=choice).size_bytes for choice in (False, True)]
    graph = onnx.load(student / "onnx/model_int8.onnx").graph
    kinds = {t.name: t.data_type for t in graph.initializer if "word_embeddings" in t.name}
    assert kinds.pop("model.bert.embeddings.word_embeddings.weight_scale") == onnx.TensorProto.FLOAT
    assert set(kinds.values()) == {onnx.TensorProto.UINT8}
    assert sizes[1] < sizes[0] < (student / "onnx/model.onnx").stat().st_size


def test_labels_are_matched_by_name(student: Path) -> None:
    """A data set that numbers the classes otherwise would give a good student a bad figure."""
    config = json.loads((student / "config.json").read_text())
    config["id2label"], config["label2id"] = {0: "a", 1: "b", 2: "c"}, {"a": 0, "b": 1, "c": 2}
    (student / "config.json").write_text(json.dumps(config))
    same = labelled(30, ("a", "b", "c"))
    turned = Examples(same.values, 2 - same.labels, None, ("c", "b", "a"))
    values = [quantize_int8(student, examples=given).value for given in (same, turned)]
    assert values[0] == values[1]
    with pytest.raises(ValueError, match=r"below 3, the number of classes of student, got 3"):
        quantize_int8(student, examples=Examples(same.values, same.labels + 1))


DATA = """
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

def lines():
    features = Features(text=Value("string"), label=ClassLabel(names=["x", "y", "z"]))
    texts = [f"w{n} w{n * 7 % 30} w3" for n in range(9)]
    rows = {"text": texts, "label": [n % 3 for n in range(9)]}
    return DatasetDict(test=Dataset.from_dict(rows, features=features))
"""


@pytest.mark.slow
def test_command_line(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The figures must be printed, and a script must see by the exit code that nothing is kept."""
    source = student.parent / "data.py"
    source.write_text(DATA, encoding="utf-8")
    words = ["export", str(student), "--dataset", f"{source}:lines", "--examples", "7"]
    card = write(StudentCard("tiny"), student)
    assert main([*words, "--int8"]) == 0
    assert "| ONNX int8 | `onnx/model_int8.onnx` |" in card.read_text(encoding="utf-8")
    first, second = capsys.readouterr().out.splitlines()
    rows = read_exports(student)
    assert first.startswith("onnx/model.onnx: ONNX, ")
    assert "on 7 examples; same decision 100.00%; accuracy " in first
    assert f"accuracy {rows[1]['value']:.4f} (student" in second
    assert main([*words, "--label-column", "none", "--atol", "0"]) == 1
    assert "nothing is kept" in capsys.readouterr().err
    assert [row["format"] for row in read_exports(student)] == ["ONNX", "ONNX int8"]
    assert main(["export", str(student.parent)]) == 2
    assert "config.json" in capsys.readouterr().err
