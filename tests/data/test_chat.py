"""What is learned of conversations: the answers, to their end, no more."""

from __future__ import annotations

import pytest
from datasets import Dataset
from language_models import CHAT, CHATML, FORGETFUL, MARKED, learned, rows, tokenizer

from hf_distill.data.language import one_answer_each, tokenize

END = "<|im_end|>"
FINAL = f"\n\nThe answer: 4. {END}"


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_no_token_is_prompt_and_answer(template: str) -> None:
    """Such a token is never written after the prompt, and its learning is learning the prompt."""
    tok = tokenizer(template)
    tok.add_tokens(["\n\n\n"])
    (row,) = rows([{"messages": CHAT}], tok)
    whole = tok.apply_chat_template(CHAT)["input_ids"]
    assert len(tok) - 1 in whole, "the prompt's last line does not merge with the answer's first"
    assert len(tok) - 1 not in row["input_ids"]
    assert learned(row, tok) == [f"It is 2.{END}", FINAL]


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_answers_and_their_ends_are_learned(template: str) -> None:
    """Learning the question teaches to ask; without the end the student never stops."""
    tok = tokenizer(template)
    (row,) = rows([{"messages": CHAT}], tok)
    assert row["input_ids"] == tok.apply_chat_template(CHAT)["input_ids"]
    assert learned(row, tok) == [f"It is 2.{END}", FINAL]
    assert "token_weights" not in row


def test_templates_of_all_kinds_agree() -> None:
    """The same data would be learned otherwise with the template of another model."""
    closed, end, line = "<|im_end|>{% endgeneration %}", "{% endgeneration %}", "{{ '\n' }}"
    without_end = MARKED.replace(closed, f"{end}<|im_end|>")
    with_line = MARKED.replace(end, f"{line}{end}").replace("{% endif %}{{ '\n' }}", "{% endif %}")
    with_line = with_line.replace("<|im_end|>{% endif %}", f"<|im_end|>{line}{{% endif %}}")
    assert len({MARKED, without_end, with_line}) == 3
    expected = rows([{"messages": CHAT}], tokenizer(CHATML))
    for template in (MARKED, without_end, with_line):
        tok = tokenizer(template)
        assert rows([{"messages": CHAT}], tok) == expected, template


def test_turns_that_end_with_a_line_keep_it() -> None:
    """Where the line break is the end of the turn, a student without it never stops."""
    plain = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    (row,) = rows([{"messages": CHAT[:3]}], tokenizer(plain))
    assert learned(row) == ["It is 2.\n"]


def test_marks_that_are_not_one_to_an_answer() -> None:
    """Weights handed out in turn would fall on the wrong answers."""
    one = "{{ m.content }}<|im_end|>{% endgeneration %}"
    two = "{{ m.content }}{% endgeneration %}{% generation %}<|im_end|>{% endgeneration %}"
    twice = MARKED.replace(one, two)
    assert twice != MARKED
    chat = [{**m, "weight": 0.0 if i == 2 else 1.0} for i, m in enumerate(CHAT)]
    (row,) = rows([{"messages": chat}], tokenizer(twice))
    assert learned(row) == [FINAL]


def test_what_is_written_behind_the_last_answer() -> None:
    """Phi-3 ends whole conversations with a second end token; its earlier answers have none."""
    behind = CHATML.replace("{% endif %}", "{% else %}<|im_end|>{% endif %}")
    (row,) = rows([{"messages": CHAT}], tokenizer(behind))
    assert learned(row) == [f"It is 2.{END}", f"{FINAL}\n{END}"]


def test_thoughts_begun_in_the_prompt_are_refused() -> None:
    """Where a template opens the thoughts and writes none, the answer would begin within them."""
    thinking = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    with pytest.raises(ValueError, match=r"message 2 of 3 .*generation prompt.*enable_thinking"):
        rows([{"messages": CHAT[:3]}], tokenizer(thinking))


def test_weights_of_messages() -> None:
    """A bad answer within a good conversation would be taught."""
    chat = [{**m, "weight": w} for m, w in zip(CHAT, (None, None, 0, None, 0.5), strict=True)]
    for template in (CHATML, MARKED):
        (row,) = rows([{"messages": chat}], tokenizer(template))
        assert learned(row) == [FINAL]
        expected = [0.0 if label == -100 else 0.5 for label in row["labels"]]
        assert row["token_weights"] == expected
    both = rows([{"messages": chat}, {"messages": CHAT}])
    assert set(both[1]["token_weights"]) == {0.0, 1.0}
    assert learned(both[1]) == [f"It is 2.{END}", FINAL]


def test_all_of_a_conversation() -> None:
    """`assistant_only=False` is for further pretraining, which learns the questions too."""
    (row,) = rows([{"messages": CHAT}], assistant_only=False)
    assert row["labels"] == [-100, *row["input_ids"][1:]]


def test_an_answer_to_nothing_is_not_learned() -> None:
    """Nothing asks for an opening; for its sake the rest of the conversation would be lost."""
    chat = [{"role": "assistant", "content": "It is 2."}, *CHAT[1:3]]
    for template in (CHATML, MARKED):
        (row,) = rows([{"messages": chat}], tokenizer(template))
        assert learned(row) == [f"It is 2.{END}"]
        assert row["labels"][8] == -100 != row["labels"][-2]


def test_template_options_and_tools_are_passed() -> None:
    """A student would be trained on another prompt than it is asked with."""
    template = "{% if tools %}{{ tools[0]['name'] }} {% endif %}{{ tone }} " + CHATML
    data = [{"messages": CHAT[1:3], "tools": [{"name": "calculator"}]}]
    (row,) = rows(data, tokenizer(template), chat_template_kwargs={"tone": "kind"})
    assert tokenizer().decode(row["input_ids"]).startswith("calculator kind <|im_start|>user")
    (row,) = rows(data, tokenizer(None), chat_template_kwargs={"chat_template": CHATML})
    assert learned(row) == [f"It is 2.{END}"]


def test_templates_that_rewrite_are_refused_and_split() -> None:
    """Boundaries taken from another text would put the mask on the wrong tokens."""
    tok = tokenizer(FORGETFUL)
    with pytest.raises(ValueError, match=r"message 2 of 5 .*one_answer_each.*generation"):
        rows([{"messages": CHAT}], tok)
    split = one_answer_each(Dataset.from_list([{"messages": CHAT, "id": 3}]))
    found = rows(list(split), tok)
    assert [learned(row, tok) for row in found] == [
        [f"<think>\n</think>\nIt is 2.{END}"],
        [f"<think>\n</think>\n{FINAL}"],
    ]
    texts = [tok.decode(row["input_ids"]) for row in found]
    assert texts == [tok.apply_chat_template(CHAT[:n], tokenize=False) for n in (3, 5)]
    stream = one_answer_each(Dataset.from_list([{"messages": CHAT}]).to_iterable_dataset())
    assert [learned(row, tok) for row in tokenize(stream, tok)] == [learned(r, tok) for r in found]
