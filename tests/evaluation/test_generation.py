"""What language models write side by side, and the evaluation harness around them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from report_models import tokenizer
from tiny_recipes import WORDS
from tiny_trainers import models, trainer

from hf_distill import lm_eval, side_by_side_samples
from hf_distill.hub import Sample, write_samples

tf: Any = transformers

# ---- what they write -----------------------------------------------------------------------------


def writer(seed: int, positions: int = 32) -> Any:
    """A tiny GPT-2 that writes words of `asked.tokenizer`; its settings say to sample."""
    torch.manual_seed(seed)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": positions}
    ids = {"bos_token_id": None, "eos_token_id": 3, "pad_token_id": None}
    config_ = tf.GPT2Config(vocab_size=16, initializer_range=0.5, **sizes, **ids)
    model = tf.GPT2LMHeadModel(config_)
    model.generation_config.update(do_sample=True, temperature=0.7, top_k=5)
    return model


def greedy(model: Any, ids: list[int], new: int) -> list[int]:
    """Token by token, without a cache."""
    model.eval()
    for _ in range(new):
        with torch.no_grad():
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
        if ids[-1] == model.config.eos_token_id:
            break
    return ids


def test_samples_are_what_the_models_write() -> None:
    """Sampled or padded texts, or ones of the wrong model, would be shown as the student's."""
    pair, reads = {"student": writer(0), "teacher": writer(1)}, tokenizer()
    pair["student"].train()
    pair["teacher"].eval()
    prompts = ["good film", "bad"]
    state = torch.get_rng_state()
    found = side_by_side_samples(pair, reads, prompts, max_new_tokens=9)
    assert (pair["student"].training, pair["teacher"].training) == (True, False)
    assert torch.equal(state, torch.get_rng_state())
    for prompt, sample in zip(prompts, found, strict=True):
        assert sample.prompt == prompt
        for role, model in pair.items():
            ids = reads(prompt)["input_ids"]
            wanted = greedy(model, ids, 9)[len(ids) :]
            text = reads.decode(wanted, skip_special_tokens=True)
            done = wanted[-1] == 3
            assert sample.texts[role] == text + ("" if done else " […]")
    assert len({text for sample in found for text in sample.texts.values()}) > 2


def test_samples_of_an_encoder_decoder() -> None:
    """The prompt's length cut off what a decoder wrote, which does not begin with the prompt."""
    student, _ = (model.float() for model in models("seq2seq_lm"))
    reads = tokenizer()
    (sample,) = side_by_side_samples({"student": student}, reads, ["good film"], max_new_tokens=5)
    ids = torch.tensor([reads("good film")["input_ids"]])
    written = [student.config.decoder_start_token_id]
    student.eval()
    for _ in range(5):
        with torch.no_grad():
            logits = student(ids, decoder_input_ids=torch.tensor([written])).logits
        written.append(int(logits[0, -1].argmax()))
        if written[-1] == student.config.eos_token_id:
            break
    text = reads.decode(written[1:], skip_special_tokens=True) or "(nothing)"
    assert sample.texts["student"].removesuffix(" […]") == text


def test_chat_prompts_go_through_the_template() -> None:
    """An instruct model that is given bare text answers worse than its users will ever see."""
    model, reads = writer(0), tokenizer()
    reads.chat_template = (
        "{% for m in messages %}{{ m.content }} film {% endfor %}"
        "{% if add_generation_prompt %}good{% endif %}"
    )
    messages = [{"role": "user", "content": "bad"}]
    (sample,) = side_by_side_samples({"student": model}, reads, [messages], max_new_tokens=4)
    (plain,) = side_by_side_samples({"student": model}, reads, ["bad film good"], max_new_tokens=4)
    assert sample.prompt == "bad"
    assert sample.texts == plain.texts


def test_prompts_that_cannot_be_continued() -> None:
    """An index error from within a model says nothing of the prompt that is too long."""
    model, reads = writer(0, positions=8), tokenizer()
    with pytest.raises(ValueError, match="at least one token"):
        side_by_side_samples({"student": model}, reads, [""])
    with pytest.raises(ValueError, match="fit into the 8 positions of student, got a prompt of 2"):
        side_by_side_samples({"student": model}, reads, ["good film"], max_new_tokens=7)
    with pytest.raises(ValueError, match="at least 1 new token"):
        side_by_side_samples({"student": model}, reads, ["good"], max_new_tokens=0)
    with pytest.raises(ValueError, match=r"got none for \['teacher'\]"):
        side_by_side_samples({"teacher": model}, {"student": reads}, ["good"])


def test_the_trainers_card_shows_them(tmp_path: Path) -> None:
    """Samples that lie beside the student and never come into its card were made for nothing."""
    ours = trainer(tmp_path, "causal_lm")
    ours.evaluate()
    write_samples([Sample("It was", {"student": "the best", "teacher": "the worst"})], tmp_path)
    ours.create_model_card()
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.index("the worst") < text.index("the best")
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    assert len(rows["perplexity"].split("|")) == 5
    assert "–" not in rows["perplexity"]
    assert "teacher_perplexity" not in text


# ---- the harness ---------------------------------------------------------------------------------


def test_without_the_harness_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`No module named lm_eval` does not say that the package is called otherwise."""
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'lm-eval\[hf\]"):
        lm_eval(writer(0), ["hellaswag"], tokenizer=tokenizer())


TASK = """
task: opinions
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: [good, bad]
doc_to_target: label
metric_list:
  - metric: acc
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what the harness warns about
def test_a_task_of_the_harness(tmp_path: Path) -> None:
    """A wrapper around another version's arguments would fail at the end of a long training."""
    pytest.importorskip("lm_eval", reason="needs pip install lm-eval")
    model, reads = writer(0).train(), tokenizer()
    reads.eos_token = "[SEP]"
    rows = [{"text": f"{word} film", "label": n % 2} for n, word in enumerate(WORDS)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "opinions.yaml").write_text(TASK.format(file=tmp_path / "test.jsonl"))
    with pytest.raises(ValueError, match="bos_token or eos_token"):
        lm_eval(model, ["opinions"], tokenizer=tokenizer(), tasks_folder=tmp_path)
    state = torch.get_rng_state()
    found = lm_eval(model, ["opinions"], tokenizer=reads, tasks_folder=tmp_path)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    good, bad = reads("good bad")["input_ids"]
    with torch.no_grad():
        asked = [torch.tensor([reads(row["text"])["input_ids"]]) for row in rows]
        logits = [model.eval()(ids).logits[0, -1] for ids in asked]
    right = [
        int(one[bad] > one[good]) == row["label"] for one, row in zip(logits, rows, strict=True)
    ]
    assert found == {"opinions/acc": pytest.approx(np.mean(right))}
    for one in (model, reads):
        one.save_pretrained(tmp_path / "model")
    assert lm_eval(tmp_path / "model", ["opinions"], tasks_folder=tmp_path) == found
    with pytest.raises(ValueError, match="Did you mean 'opinions'"):
        lm_eval(model, ["opinion"], tokenizer=reads, tasks_folder=tmp_path)
    with pytest.raises(ValueError, match="Expected the tokenizer"):
        lm_eval(model, ["opinions"], tasks_folder=tmp_path)
