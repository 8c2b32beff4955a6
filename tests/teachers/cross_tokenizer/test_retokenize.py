"""Two tokenizers and one text: the bytes of tokens, common spans, specials, shared tokens."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_families import CORPUS, FAMILIES, byte_level, fallback, family, word_level
from tokenizers import normalizers

from hf_distill.teachers.cross_tokenizer import (
    AligningCollator,
    ByteTokens,
    Retokenizer,
    shared_tokens,
)
from hf_distill.teachers.cross_tokenizer.retokenize import common_spans

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=24)
WORDS = st.lists(st.sampled_from(" ".join(CORPUS).split()), max_size=8).map(" ".join)
SPELLINGS = {name: ByteTokens(family(name)) for name in FAMILIES}
PAIRS = [(a, b) for a in FAMILIES for b in FAMILIES]


def read(name: str, text: str) -> str:
    """What the bytes of a text's tokens say."""
    spelling = SPELLINGS[name]
    return spelling.text(spelling.spell(spelling.cut(text, first=True)), first=True)


@pytest.mark.parametrize("name", ["byte_level", "byte_level_spaced", "fallback", "fallback_first"])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=TEXT)
def test_bytes_are_the_text(name: str, text: str) -> None:
    """Bytes that are not the text's put every later boundary at the wrong place."""
    spelling = SPELLINGS[name]
    ids = family(name)(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    whole = b"".join(spelling.spell(ids))
    spaced = name != "byte_level" and (text != "" or whole != b"")
    assert whole in ((b" " + text.encode(),) if spaced else ()) + (text.encode(),)
    assert spelling.cut(text, first=True) == ids


@pytest.mark.parametrize("name", ["unigram", "word_piece"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=WORDS)
def test_bytes_of_known_words(name: str, text: str) -> None:
    """A vocabulary without bytes spells what it knows; with its marks in it nothing would match."""
    assert read(name, text) == text


@pytest.mark.parametrize("name", FAMILIES)
def test_decodes_as_the_tokenizer_does(name: str) -> None:
    """The tokenizer's own decoder is the reference for what its tokens mean."""
    text = " ".join(CORPUS)
    decoded = family(name).decode(family(name)(text)["input_ids"], skip_special_tokens=True)
    assert read(name, text) == decoded.removeprefix(" ") == text


def test_byte_characters_are_those_of_tokenizers() -> None:
    """One character of the alphabet at another byte, and texts with that byte would be garbled."""
    spelling = ByteTokens(byte_level([]))
    singles = {spelling.bytes[i] for t, i in spelling.vocabulary.items() if len(t) == 1}
    assert singles == {bytes([b]) for b in range(256)}
    for character in ("é", "漢", "\u0000", "🙂", " "):
        assert b"".join(spelling.spell(spelling.cut(character, True))) == character.encode()


def test_what_cannot_be_spelt_is_refused() -> None:
    """Tokens read as if they were text would align what does not belong together."""
    with pytest.raises(ValueError, match="Expected a byte-level, SentencePiece or WordPiece"):
        ByteTokens(word_level())
    with pytest.raises(ValueError, match="Expected a fast tokenizer, got object"):
        ByteTokens(object())


# ---- spans ------------------------------------------------------------------------------------


def cuts(text: bytes, places: list[int]) -> list[bytes]:
    inner = sorted({p % len(text) for p in places} - {0}) if text else []
    return [text[a:b] for a, b in zip([0, *inner], [*inner, len(text)], strict=True)]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=st.binary(min_size=1, max_size=20),
    ours=st.lists(st.integers(0, 99), max_size=8),
    theirs=st.lists(st.integers(0, 99), max_size=8),
)
def test_spans_cover_all_bytes_once(text: bytes, ours: list[int], theirs: list[int]) -> None:
    """A span that ends elsewhere for one side compares probabilities of different texts."""
    one, other = cuts(text, ours), cuts(text, theirs)
    spans = common_spans(one, other)
    for a, b, c, d in spans:
        assert b"".join(one[a:b]) == b"".join(other[c:d]) != b""
    assert [s[0] for s in spans] == [0, *(s[1] for s in spans[:-1])]
    assert [s[2] for s in spans] == [0, *(s[3] for s in spans[:-1])]
    assert (spans[-1][1], spans[-1][3]) == (len(one), len(other))
    # as small as can be: every boundary that both have ends a span
    both = {len(b"".join(one[:i])) for i in range(1, len(one) + 1)} & {
        len(b"".join(other[:i])) for i in range(1, len(other) + 1)
    }
    assert len(spans) == len(both)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    parts=st.tuples(*[st.text("ab", max_size=5)] * 4),
    ours=st.lists(st.integers(0, 99), max_size=6),
    theirs=st.lists(st.integers(0, 99), max_size=6),
)
def test_texts_that_differ_share_their_ends(
    parts: tuple[str, ...], ours: list[int], theirs: list[int]
) -> None:
    """One character that a tokenizer normalises would shift all that follows, or lose it."""
    head, one, other, tail = (p.encode() for p in parts)
    left, right = head + b"<" + one + b">" + tail, head + b"[" + other + b"]" + tail
    one_cut, other_cut = cuts(left, ours), cuts(right, theirs)
    for a, b, c, d in common_spans(one_cut, other_cut):
        covered = b"".join(one_cut[a:b])
        assert covered == b"".join(other_cut[c:d]) != b""
        at, to = len(b"".join(one_cut[:a])), len(b"".join(one_cut[:b]))
        assert to <= len(head) or at >= len(left) - len(tail)


# ---- translation ------------------------------------------------------------------------------


def spelt(spelling: ByteTokens, ids: list[int]) -> list[Any]:
    """Bytes, and the name of a special token."""
    names = {i: name for name, i in spelling.special.items()}
    return [names.get(i, spelling.bytes[i]) for i in ids]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_rows_of_every_pair(ours: str, theirs: str) -> None:
    """A family that fails on one side only is found when a user trains that very pair."""
    text = " ".join(CORPUS)
    student, teacher = SPELLINGS[ours], SPELLINGS[theirs]
    ids = family(ours)(text, add_special_tokens=False)["input_ids"]
    row = Retokenizer(student, teacher)(ids)
    begin = len(teacher.prefix)
    assert row.ids[:begin] == teacher.prefix
    assert row.ids[begin:] == family(theirs)(text, add_special_tokens=False)["input_ids"]
    mine, other = student.spell(ids), [teacher.bytes[i] or b"" for i in row.ids]
    for a, b, c, d in row.spans:
        assert b"".join(mine[a:b]) == b"".join(other[c:d])
    assert row.spans[-1][1] == len(ids)
    assert row.spans[-1][3] == len(row.ids)
    assert sum(len(b"".join(mine[a:b])) for a, b, _, _ in row.spans) >= len(text) - 8


def test_beginning_and_end_are_matched_by_role() -> None:
    """The beginning that one side lacks would shift every position of the other by one."""
    student, teacher = SPELLINGS["byte_level"], SPELLINGS["fallback"]
    ids = [*family("byte_level")("the end")["input_ids"], student.roles["eos"]]
    row = Retokenizer(student, teacher)(ids)
    assert spelt(teacher, row.ids)[0] == "<s>"
    assert spelt(teacher, row.ids)[-1] == "</s>"
    assert row.spans[-1] == (len(ids) - 1, len(ids), len(row.ids) - 1, len(row.ids))

    back = Retokenizer(teacher, student)(row.ids)
    assert spelt(student, back.ids) == [b"the", b" end", "<|end|>"]
    # the beginning stands for nothing; "▁the" and "the" are not the same bytes
    assert [s[0] for s in back.spans][-1] == len(row.ids) - 1
    assert min(s[0] for s in back.spans) > 1


def test_names_of_specials_in_a_text_are_text() -> None:
    """``</s>`` in a page of HTML would end the teacher's text."""
    student, teacher = SPELLINGS["byte_level"], SPELLINGS["fallback"]
    row = Retokenizer(student, teacher)(student.cut("a </s> b", True))
    assert teacher.roles["eos"] not in row.ids
    assert b"".join(b for b in spelt(teacher, row.ids)[1:]) == b" a </s> b"


def test_specials_of_chat_templates() -> None:
    """A turn's mark read as text, or dropped in silence, and the teacher sees another talk."""
    student = ByteTokens(byte_level(CORPUS, ["<|end|>", "<|turn|>", "<|shared|>"]))
    teacher = ByteTokens(byte_level(CORPUS[:2], ["<eos>", "<start>", "<|shared|>"], eos="<eos>"))
    turn, shared = student.special["<|turn|>"], student.special["<|shared|>"]
    ids = [turn, *student.cut("the", True), shared, *student.cut("end", False), shared]
    with pytest.raises(ValueError, match=r"got '<\|turn\|>' of the student.*specials=\{'<\|turn"):
        Retokenizer(student, teacher)(ids)
    row = Retokenizer(student, teacher, {"<|turn|>": "<start>user"})(ids)
    found = spelt(teacher, row.ids)
    assert found[0] == "<start>"
    assert [i for i, token in enumerate(found) if token == "<|shared|>"][1] == len(found) - 1
    assert b"".join(t for t in found if isinstance(t, bytes)) == b"usertheend"
    assert all(a > 0 for a, _, _, _ in row.spans)
    nothing = Retokenizer(student, teacher, {"<|turn|>": ""})(ids)
    assert spelt(teacher, nothing.ids)[-1] == "<|shared|>"
    assert len(nothing.ids) < len(row.ids)
    with pytest.raises(ValueError, match="Expected special tokens of the student"):
        Retokenizer(student, teacher, {"<|turns|>": ""})


def test_text_that_the_teacher_normalises() -> None:
    """One accent in another form would shift the rest of the text against itself."""
    tokenizer = family("byte_level", fresh=True)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    student, teacher = SPELLINGS["byte_level"], ByteTokens(tokenizer)
    text = "the cafe\u0301 at the end"
    ids = student.cut(text, True)
    row = Retokenizer(student, teacher)(ids)
    assert b"".join(teacher.spell(row.ids)).decode() == "the caf\u00e9 at the end"
    covered = b"".join(b"".join(student.spell(ids[a:b])) for a, b, _, _ in row.spans).decode()
    assert covered.startswith("the")
    assert covered.endswith(" at the end")
    assert "\u0301" not in covered


def test_rows_that_begin_or_end_within_a_character() -> None:
    """Texts cut into blocks of tokens begin within a character, and the block would be lost."""
    student, teacher = SPELLINGS["byte_level"], SPELLINGS["fallback"]
    ids = student.cut("漢 the end 漢", True)
    ids = ids[1:-1]
    assert student.spell(ids)[0] == "漢".encode()[1:2]
    row = Retokenizer(student, teacher)(ids)
    covered = b"".join(b"".join(student.spell(ids[a:b])) for a, b, _, _ in row.spans)
    assert b" the end" in covered


def test_a_tokenizer_that_changes_every_text_is_refused() -> None:
    """One that swallows spaces gives back other texts: hardly a position would be left."""
    tokenizer = family("byte_level", fresh=True)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "")
    with pytest.raises(ValueError, match="gives back a text, got 'thea' for 'the a'"):
        ByteTokens(tokenizer)


def test_a_teacher_that_lowers_is_refused() -> None:
    """A teacher of another text than the student's: a position in three hundred would be left."""
    tokenizer = family("byte_level", fresh=True)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    lowers, keeps = ByteTokens(tokenizer), SPELLINGS["byte_level"]
    with pytest.raises(ValueError, match="Expected a teacher whose tokenizer keeps a text as it"):
        Retokenizer(keeps, lowers)
    row = Retokenizer(lowers, keeps)(lowers.cut("The END", True))  # its own text is lower
    assert b"".join(keeps.spell(row.ids)) == b"the end"
    assert row.spans[-1][1] == len(lowers.cut("The END", True))


# ---- collating --------------------------------------------------------------------------------


def batch(rows: list[list[int]], side: str = "right") -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    fill = [[0] * (width - len(r)) for r in rows]
    ids, mask = [], []
    for row, more in zip(rows, fill, strict=True):
        one = [1] * len(row)
        ids.append(row + more if side == "right" else more + row)
        mask.append(one + more if side == "right" else more + one)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("ours", "theirs"), [(a, b) for a, b in PAIRS if a != b])
def test_positions_predict_the_same_bytes(ours: str, theirs: str, side: str) -> None:
    """Logits one position late are of the token that is already there (GOLD's default)."""
    student, teacher = SPELLINGS[ours], SPELLINGS[theirs]
    texts = ["the end of the thing", "an end", "the thing there and there"]
    rows = [family(ours)(t)["input_ids"] for t in texts]
    found = AligningCollator(lambda b: b, Retokenizer(student, teacher))(batch(rows, side))
    seen = 0
    for r in range(len(texts)):
        mask, other = found["attention_mask"][r].bool(), found["teacher_attention_mask"][r].bool()
        assert (found["teacher_positions"][r][~mask] == -1).all()
        for t, u in enumerate(found["teacher_positions"][r].tolist()):
            if u < 0:
                continue
            seen += 1
            left = found["input_ids"][r, : t + 1][mask[: t + 1]].tolist()
            right = found["teacher_input_ids"][r, : u + 1][other[: u + 1]].tolist()
            said = [
                b"".join(b for b in spelt(s, ids) if isinstance(b, bytes)).strip()
                for s, ids in ((student, left), (teacher, right))
            ]
            assert said[0] == said[1]
            ours_next = found["input_ids"][r][found["student_spans"][r].roll(1) == t]
            theirs_next = found["teacher_input_ids"][r][found["teacher_spans"][r].roll(1) == t]
            assert b"".join(student.spell(ours_next.tolist())) == b"".join(
                teacher.spell(theirs_next.tolist())
            )
    assert seen > 5


def test_left_and_right_padding_give_the_same_items() -> None:
    """A model that pads on the left would learn from other positions."""
    student, teacher = SPELLINGS["byte_level"], SPELLINGS["unigram"]
    rows = [student.cut(t, True) for t in ("the end of the thing", "an end")]
    collator = AligningCollator(lambda b: b, Retokenizer(student, teacher))
    right, left = (collator(batch(rows, side)) for side in ("right", "left"))
    for r in range(2):
        own = [x["teacher_positions"][r][x["attention_mask"][r].bool()] for x in (right, left)]
        assert torch.equal(*own)


def test_a_teacher_that_reads_less() -> None:
    """Beyond its context a teacher fails, or says nonsense; what it can read is compared."""
    student, teacher = SPELLINGS["byte_level"], SPELLINGS["fallback"]
    rows = [student.cut("the end of the thing there", True)]
    whole, short = (
        AligningCollator(lambda b: b, Retokenizer(student, teacher), longest=n)(batch(rows))
        for n in (None, 4)
    )
    assert short["teacher_input_ids"].shape == (1, 4)
    kept = 0
    for t, u in enumerate(whole["teacher_positions"][0].tolist()):
        last = max([-1, *(whole["teacher_spans"][0] == t).nonzero().flatten().tolist()])
        assert short["teacher_positions"][0, t] == (u if last + 1 < 4 else -1)
        kept += -1 < last < 3
    assert kept


def test_packed_rows_are_refused() -> None:
    """The teacher would read several texts as one, the student would not."""
    collator = AligningCollator(lambda b: b, Retokenizer(*[SPELLINGS["byte_level"]] * 2))
    rows = batch([SPELLINGS["byte_level"].cut("the end of", True)])
    steps = torch.arange(rows["input_ids"].shape[1])[None]
    collator({**rows, "position_ids": steps})
    with pytest.raises(ValueError, match="Switch packing off"):
        collator({**rows, "position_ids": steps % 2})
    with pytest.raises(ValueError, match="Expected a batch with input_ids"):
        collator({"labels": steps})


def test_a_collator_survives_pickling() -> None:
    """Workers of a data loader are sent the collator; special names would be read as such again."""
    collator = AligningCollator(dict, Retokenizer(SPELLINGS["byte_level"], SPELLINGS["fallback"]))
    rows = batch([SPELLINGS["byte_level"].cut("a </s> b", True)])
    sent = pickle.loads(pickle.dumps(collator))
    assert all(torch.equal(sent(rows)[k], v) for k, v in collator(rows).items())


# ---- shared tokens ----------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_shared_tokens_have_identical_bytes(ours: str, theirs: str, tmp_path: Path) -> None:
    """Mass would flow to a token of other bytes, or be counted twice."""
    student, teacher = SPELLINGS[ours], SPELLINGS[theirs]
    shared = shared_tokens(Retokenizer(student, teacher), tmp_path)
    for pair in (shared.student, shared.teacher):
        assert len(set(pair.tolist())) == len(pair)
    for a, b in zip(shared.student.tolist(), shared.teacher.tolist(), strict=True):
        assert student.bytes[a] == teacher.bytes[b]
    have = [{b for b in s.bytes if b} for s in (student, teacher)]
    assert {student.bytes[i] for i in shared.student.tolist()} - {None} == have[0] & have[1]
    if ours == theirs:
        assert shared.student.tolist() == shared.teacher.tolist() == list(range(len(student)))
    for spelling, classes, ids in (
        (student, shared.student_classes, shared.student),
        (teacher, shared.teacher_classes, shared.teacher),
    ):
        assert classes[ids].tolist() == list(range(len(ids)))
        for index, found in enumerate(classes.tolist()):
            begins = [b for b in have[0] & have[1] if (spelling.bytes[index] or b"").startswith(b)]
            if found < len(ids) and spelling.bytes[index] is not None:
                assert spelling.bytes[ids[found].item()] == max(begins, key=len)
            elif spelling.bytes[index] is not None:
                assert not begins


def test_ends_are_shared(tmp_path: Path) -> None:
    """A student whose end is in the bucket of what is not compared would not learn to stop."""
    shared = shared_tokens(Retokenizer(SPELLINGS["byte_level"], SPELLINGS["fallback"]), tmp_path)
    pairs = list(zip(shared.student.tolist(), shared.teacher.tolist(), strict=True))
    ends = [SPELLINGS[name].roles["eos"] for name in ("byte_level", "fallback")]
    assert tuple(ends) in pairs


def test_a_token_that_begins_and_ends(tmp_path: Path) -> None:
    """As GPT-2's: its mass is the end's, and would go to the token that is never predicted."""
    tokenizer = family("byte_level", fresh=True)
    tokenizer.bos_token = "<|end|>"
    student, teacher = SPELLINGS["fallback"], ByteTokens(tokenizer)
    shared = shared_tokens(Retokenizer(student, teacher), tmp_path)
    pairs = dict(zip(shared.teacher.tolist(), shared.student.tolist(), strict=True))
    assert pairs[teacher.roles["eos"]] == student.roles["eos"]
    row = Retokenizer(student, teacher)(family("fallback")("the end")["input_ids"])
    assert spelt(teacher, row.ids)[0] == "<|end|>"


def test_shared_tokens_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two vocabularies of 150,000 tokens would be compared at every start; or those of others
    would be taken for them."""
    from hf_distill.teachers.cross_tokenizer import shared_vocabulary as module

    one = Retokenizer(SPELLINGS["byte_level"], SPELLINGS["fallback"])
    first = shared_tokens(one, tmp_path)
    other = shared_tokens(Retokenizer(SPELLINGS["byte_level"], SPELLINGS["unigram"]), tmp_path)
    assert len(other.student) != len(first.student)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) == 2
    assert all(name.endswith(".safetensors") for name in files)
    monkeypatch.setattr(module, "_compare", None)
    again = shared_tokens(one, tmp_path)
    assert all(torch.equal(vars(again)[k], v) for k, v in vars(first).items())


def test_nothing_shared_is_refused(tmp_path: Path) -> None:
    """Every position would compare one bucket with another, with a loss of 0."""
    one = ByteTokens(family("unigram", fresh=True, corpus=["abc abd acd bcd"] * 4))
    other = ByteTokens(family("word_piece", fresh=True, corpus=["xyz xyw yzw"] * 4))
    with pytest.raises(ValueError, match="Expected tokenizers that share tokens"):
        shared_tokens(Retokenizer(one, other), tmp_path)


def test_spare_bytes_are_not_taken_for_letters(tmp_path: Path) -> None:
    """``<0x61>`` is never used where there is an ``a``: its mass is not the teacher's ``a``."""
    student = ByteTokens(fallback())
    shared = shared_tokens(Retokenizer(student, SPELLINGS["byte_level"]), tmp_path)
    names = {i: t for t, i in student.vocabulary.items()}
    kept = {names[i] for i in shared.student.tolist()}
    assert "<0x61>" not in kept
    assert "a" in kept
    assert "<0x0A>" in kept
