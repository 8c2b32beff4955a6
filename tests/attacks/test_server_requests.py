"""A `TeacherServer` against requests that its model cannot read, or that would take too much."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_trainers
import torch
import transformers
from raw_http import answers, get, post
from strangers import IDS, OWN, Counted, signal_body
from tally import Tally
from tiny_models import VOCAB

from hf_distill.teachers import ModelTeacher
from hf_distill.teachers.remote.wire import from_bytes
from hf_distill.teachers.serving import TeacherServer

tf: Any = transformers


# ---- requests for signals ------------------------------------------------------------------------


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
    "needs that are not provided": {"needs": {"cross_tokenizer": True}},
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
                model = tiny_trainers.models()[1]
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
            model = tiny_trainers.models()[1]
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
        for what, more in {"": {}, ", packed": {"position_ids": torch.arange(33)[None]}}.items():
            with attacks.attack(f"a signal for 33 tokens of 32{what}"):
                batch = {"input_ids": torch.full((1, 33), 7), **more}
                status, told = post(texts, "/signal", signal_body(batch))
                assert (status, "at most 32 tokens" in told["error"]["message"]) == (400, True)
        with attacks.attack("JSON of 17 MB"):
            head = f"POST /v1/completions HTTP/1.1\r\n{OWN}Content-Length: {17 << 20}\r\n\r\n"
            assert [status for status, _ in answers(texts, head.encode())] == [413]
