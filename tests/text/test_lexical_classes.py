"""Lexical classes: what a reader would say of a token, for every way in which tokenizers mark words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from text.small_tokenizers import KINDS, few, tokenizer_of
from whence.text.lexical_classes import NEVER, lexical_classes

# Enough tokens with a mark that the mark is seen to be one.
MARKED = {"bytes": ["Ġa"] * 3, "blanks": ["▁a"] * 3, "pieces": ["##a"] * 3, "words": ["a"] * 3}
BYTES_OF_E = "Ã©"  # é, as byte-level tokenizers write it
CASES = [
    ("bytes", "Ġthe", "word lower latin", "the"),
    ("bytes", "the", "piece lower latin", "the"),
    ("bytes", "ĠThe", "word capitalised latin", "The"),
    ("bytes", "ĠI", "word capitalised latin", "I"),
    ("bytes", "ĠNASA", "word upper latin", "NASA"),
    ("bytes", "ĠiPhone", "word mixed latin", "iPhone"),
    ("bytes", f"Ġcaf{BYTES_OF_E}", "word lower latin", "café"),
    ("bytes", "ä½ł", "piece caseless cjk", "你"),
    ("bytes", "ä½", "bytes", "\ufffd"),
    ("bytes", "Ġ42", "digits", "42"),
    ("bytes", "),", "punctuation", "),"),
    ("bytes", "Ġ+", "symbol", "+"),
    ("bytes", "Ġ", "space", " "),
    ("bytes", "ĠĠĠ", "space", "   "),
    ("bytes", "Ċ", "newline", "\n"),
    ("bytes", "日本", "piece caseless cjk", "日本"),  # an added token is not written in bytes
    ("blanks", "▁the", "word lower latin", "the"),
    ("blanks", "ing", "piece lower latin", "ing"),
    ("blanks", "▁Москва", "word capitalised cyrillic", "Москва"),
    ("blanks", "<0x0A>", "newline", "\n"),
    ("blanks", "<0xE4>", "bytes", "\ufffd"),
    ("blanks", "▁", "space", " "),
    ("blanks", "नमस्ते", "piece caseless devanagari", "नमस्ते"),
    ("blanks", "ि", "piece caseless devanagari", "ि"),
    ("pieces", "the", "word lower latin", "the"),
    ("pieces", "##ing", "piece lower latin", "ing"),
    ("pieces", "?", "punctuation", "?"),
    ("words", "Paris", "word capitalised latin", "Paris"),
    ("words", "co2", "word lower latin", "co2"),
    ("words", "3.5", "digits", "3.5"),
    ("words", "", "bytes", ""),
]
strings = st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.sampled_from([case[1] for case in CASES])


@pytest.mark.parametrize(("style", "token", "name", "text"), CASES)
def test_token_is_what_a_reader_would_say(style, token, name, text):
    found = lexical_classes([*MARKED[style], token], frozenset())
    assert found.names[found.of[-1]] == name
    assert found.texts[-1] == text


def test_special_and_missing_tokens_have_no_class():
    found = lexical_classes(["Ġa", "<s>", None, "Ġb"], frozenset({1}))
    assert found.of == (0, NEVER, NEVER, 0)
    assert found.texts[2] == ""


@few
@given(tokens=st.lists(strings | st.none(), max_size=12), data=st.data())
def test_classes_are_a_function_of_the_string(tokens, data):
    special = frozenset(data.draw(st.sets(st.integers(0, 11))))
    found = lexical_classes(tokens, special)
    assert len(found.of) == len(found.texts) == len(found.starts) == len(tokens)
    assert list(found.names) == sorted(set(found.names))
    assert set(found.of) - {NEVER} == set(range(len(found.names)))
    by_string = {}
    for number, token in enumerate(tokens):
        assert (found.of[number] == NEVER) == (token is None or number in special)
        if found.of[number] != NEVER:
            assert by_string.setdefault(token, found.of[number]) == found.of[number]
    assert lexical_classes(tokens, special) == found


@few
@given(tokens=st.lists(strings, min_size=1, max_size=10), seed=st.randoms(use_true_random=False))
def test_order_of_the_vocabulary_makes_no_difference(tokens, seed):
    order = list(range(len(tokens)))
    seed.shuffle(order)
    one, other = lexical_classes(tokens, frozenset()), lexical_classes([tokens[k] for k in order], frozenset())
    assert one.names == other.names
    assert [one.of[k] for k in order] == list(other.of)


@pytest.mark.parametrize("kind", KINDS)
def test_words_of_a_text_begin_words(kind):
    tokenizer = tokenizer_of(kind)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    found = lexical_classes(tokens, frozenset(tokenizer.all_special_ids))
    assert {found.of[k] for k in tokenizer.all_special_ids} == {NEVER}
    ids = tokenizer(" the cat sat", add_special_tokens=False)["input_ids"]
    read = "".join(" " * found.starts[k] + found.texts[k] for k in ids)
    assert read.split() == ["the", "cat", "sat"]
