"""Every segmentation is a partition of the token axis, and cuts where a reader would."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from text.small_tokenizers import BOS, EOS, KINDS, texts, tokenizer_of
from whence.core.errors import InputError, UnknownNameError
from whence.core.tokens import Token
from whence.text.encoded import encode_ids, encode_text
from whence.text.segments import NAMES, segment_tokens

# The texts are drawn for every kind of tokenizer and every way to cut.
fewer = settings(max_examples=8, deadline=None)
HOWS = (*NAMES, {"split": r"[.,;]\s*"}, {"split": "a*"}, {"split": re.compile("e|\n")})


def axis(source, prefix="", kind="bytes"):
    """The token axis of a prompt and a continuation."""
    tokenizer = tokenizer_of(kind)
    first = encode_text(tokenizer, source)
    ids = tokenizer(prefix, add_special_tokens=False)["input_ids"] if prefix else []
    return (*first.tokens("source"), *encode_ids(tokenizer, ids, before=first.ids).tokens("prefix"))


def characters(source, prefix=""):
    """A token axis of single characters, so that cuts can fall anywhere."""
    made = [Token(1, c, k, k + 1, "source") for k, c in enumerate(source)]
    return (*made, *(Token(1, c, k, k + 1, "prefix") for k, c in enumerate(prefix)))


def shown(tokens, how):
    """The text of every group."""
    return ["".join(tokens[k].text for k in group) for group in segment_tokens(tokens, how)]


def parts(text, how):
    """The groups of a text that are more than white space, without the white space around them."""
    return [group.strip() for group in shown(characters(text), how) if group.strip()]


def assert_partition(groups, count):
    assert sorted(k for group in groups for k in group) == list(range(count))
    assert all(group and group == sorted(group) for group in groups)
    assert groups == sorted(groups)


# ---- what holds for every kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", HOWS, ids=repr)
@fewer
@given(source=texts, prefix=texts)
def test_every_segmentation_is_a_partition(kind, how, source, prefix):
    tokens = axis(source, prefix, kind)
    groups = segment_tokens(tokens, how)
    assert_partition(groups, len(tokens))
    for group in groups:
        members = [tokens[k] for k in group]
        assert len({token.side for token in members}) == 1
        assert len(group) == 1 or not any(token.special for token in members)


@pytest.mark.parametrize("kind", ["bytes", "fallback"])
@pytest.mark.parametrize("how", [how for how in HOWS if how != "token"], ids=repr)
@fewer
@given(source=texts, prefix=texts)
def test_tokens_of_one_character_stay_together(kind, how, source, prefix):
    tokens = axis(source, prefix, kind)
    group_of = {k: number for number, group in enumerate(segment_tokens(tokens, how)) for k in group}
    for k, token in enumerate(tokens[:-1]):
        if not token.text:
            completing = next(j for j in range(k + 1, len(tokens)) if tokens[j].text and not tokens[j].special)
            assert tokens[completing].side == token.side
            assert group_of[k] == group_of[completing]


@pytest.mark.parametrize("how", ["word", "sentence", "line", "paragraph", {"split": r"[ .]"}], ids=repr)
@given(text=st.text("ab .\n!。日-'3", max_size=30))
def test_groups_of_text_are_stretches_that_end_where_the_next_begins(how, text):
    assume(text)
    groups = segment_tokens(characters(text), how)
    assert [k for group in groups for k in group] == list(range(len(text)))


def test_unfinished_tokens_do_not_join_another_side_or_a_special_token():
    tokens = (
        Token(1, "a", 0, 1, "source"),
        Token(2, "", None, None, "source"),
        Token(3, "<s>", None, None, "source", special=True),
        Token(4, "☃", 1, 2, "source"),
        Token(5, "", None, None, "source"),
        Token(6, "b", 0, 1, "prefix"),
    )
    assert segment_tokens(tokens, "word") == [[0], [1, 3], [2], [4], [5]]
    assert segment_tokens(tokens, "line") == [[0, 1, 3], [2], [4], [5]]
    assert segment_tokens(tokens, [(0, 1)]) == [[0], [1, 3], [2], [4], [5]]


def test_tokens_are_single_and_messages_have_names():
    names = ["template", "user", "user", "template", "assistant", "user 2"]
    tokens = [Token(k, "x", k, k + 1, "source", name) for k, name in enumerate(names)]
    tokens += [Token(7, "y", 0, 1, "prefix", "prefix"), Token(8, "z", 1, 2, "prefix", "prefix")]
    assert segment_tokens(tokens) == [[k] for k in range(8)]
    assert segment_tokens(tokens, "message") == [[0, 3], [1, 2], [4], [5], [6], [7]]


# ---- words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't panic, it’s well-known.", ["Don't", "panic", ",", "it’s", "well-known", "."]),
        ("a--b -c- 'tis dogs'", ["a", "--", "b", "-", "c", "-", "'", "tis", "dogs", "'"]),
        ("3.5 1,000 v2.0 1. x,y", ["3.5", "1,000", "v2.0", "1", ".", "x", ",", "y"]),
        ("snake_case (really?!)", ["snake_case", "(", "really", "?!)"]),
        ("你好世界。abc日本", ["你", "好", "世", "界", "。", "abc", "日", "本"]),
        ("カタカナ𠀀々", ["カ", "タ", "カ", "ナ", "𠀀", "々"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("cafe\u0301 naïve", ["cafe\u0301", "naïve"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("👩‍👩‍👧 ❤️", ["👩‍👩‍👧", "❤️"]),
        ("한국어 слово λόγος", ["한국어", "слово", "λόγος"]),
        ("the last", ["the", "last"]),
        ("x", ["x"]),
    ],
)
def test_words(text, expected):
    assert parts(text, "word") == expected


def test_blanks_belong_to_the_word_after_them_and_newlines_to_none():
    assert shown(characters("a  b\t(\n  c \n"), "word") == ["a", "  b", "\t(", "\n", "  c", " ", "\n"]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_a_word_are_one_feature_and_the_last_word_is_whole(kind):
    tokens = axis("the cat don't", " because", kind)
    groups = [group for group in segment_tokens(tokens, "word") if not tokens[group[0]].special]
    assert {tokens[k].side for k in groups[-1]} == {"prefix"}
    assert "".join(tokens[k].text for k in groups[-1]).strip() in ("because", "<unk>")
    if kind in ("bytes", "trimmed", "fallback"):
        assert [text.strip() for text in shown(tokens, "word")] == ["<s>", "the", "cat", "don't", "</s>", "because"]


def test_special_tokens_are_features_of_their_own():
    tokens = axis("the cat", " sat")
    assert tokens[0].id == BOS
    for how in ("word", "sentence", "line", "paragraph", {"split": " "}):
        groups = segment_tokens(tokens, how)
        assert [0] in groups
        assert [next(k for k, token in enumerate(tokens) if token.id == EOS)] in groups


# ---- sentences, lines, paragraphs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("It costs 3.5 or 1.000.000. Next", ["It costs 3.5 or 1.000.000.", "Next"]),
        ("See example.org/a?b=c!d now. Yes", ["See example.org/a?b=c!d now.", "Yes"]),
        ("Wait... what?! Yes", ["Wait...", "what?!", "Yes"]),
        ("He said “no.” Then (left.) Done", ["He said “no.”", "Then (left.)", "Done"]),
        ("你好。再见！真的？「好。」完", ["你好。", "再见！", "真的？", "「好。」", "完"]),
        ("नमस्ते। कैसे हो", ["नमस्ते।", "कैसे हो"]),
        ("Title\nOne. Two\n\nThree", ["Title", "One.", "Two", "Three"]),
        ("End.", ["End."]),
        ("no end", ["no end"]),
        (".hidden files", [".hidden files"]),
        ("a.b", ["a.b"]),
    ],
)
def test_sentences(text, expected):
    assert parts(text, "sentence") == expected


def test_newlines_and_closing_space_belong_to_the_sentence_they_end():
    assert shown(characters("One. \n\n Two.  \nThree.  "), "sentence") == ["One. \n\n", " Two.  \n", "Three.  "]


def test_a_long_run_of_stops_is_one_end():
    assert parts("a" + "." * 20000 + "b. c", "sentence") == ["a" + "." * 20000 + "b.", "c"]


def test_lines_end_with_their_newlines():
    text = "a b\nc\r\nd\n \n\n  e\rf"
    assert shown(characters(text), "line") == ["a b\n", "c\r\n", "d\n \n\n", "  e\r", "f"]


def test_paragraphs_end_with_their_blank_lines():
    text = "a\nb\n\nc\r\nd\r\n\r\ne\n \n\nf\n"
    assert shown(characters(text), "paragraph") == ["a\nb\n\n", "c\r\nd\r\n\r\n", "e\n \n\n", "f\n"]


def test_a_token_belongs_where_its_first_visible_character_stands():
    tokens = [Token(1, text, None, None, "source") for text in ("One", ". Tw", "o", " ", ".", "\n", " x")]
    assert segment_tokens(tokens, "sentence") == [[0, 1], [2, 3, 4, 5], [6]]
    assert segment_tokens(tokens, "word") == [[0], [1], [2], [3, 4], [5], [6]]


def test_sides_are_cut_apart():
    tokens = characters("one tw", "o three")
    assert shown(tokens, "sentence") == ["one tw", "o three"]
    assert [text for text in shown(tokens, "word") if text.strip()] == ["one", " tw", "o", " three"]


# ---- splits


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (";", ["a;", "b;", "c"]),
        (r"(?<=;)", ["a;b;c"]),
        ("x", ["a;b;c"]),
        ("[;c]", ["a;", "b;", "c"]),
        ("z*|;", ["a;", "b;", "c"]),
        (re.compile("B", re.IGNORECASE), ["a;b", ";c"]),
    ],
)
def test_matches_end_their_segment_and_empty_ones_end_nothing(pattern, expected):
    assert shown(characters("a;b;c"), {"split": pattern}) == expected


@pytest.mark.parametrize("pattern", ["(", "[a", 5, None, b"a", re.compile(b"a"), ["a"]])
def test_what_is_no_regular_expression_is_refused(pattern):
    with pytest.raises(InputError, match="is not a regular expression"):
        segment_tokens(characters("a"), {"split": pattern})


# ---- spans and positions


def test_spans_of_the_source_hold_tokens_by_their_first_character():
    tokens = axis("the cat sat", " the end")
    spans = [(8, 11), (np.int64(0), np.int64(7))]
    assert_partition(segment_tokens(tokens, spans), len(tokens))
    assert shown(tokens, spans)[:4] == ["<s>", "the cat", " sat", "</s>"]
    assert shown(characters("the cat sat", "ab"), [(4, 7)])[4:] == ["cat", " ", "s", "a", "t", "a", "b"]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(0, 5), (4, 8)], r"\(0, 5\) and \(4, 8\) overlap"),
        ([(0, 5), (0, 5)], "overlap"),
        ([(0, 100)], r"span \(0, 100\) leaves the source text of 11 characters"),
        ([(11, 12)], "leaves the source text"),
        ([(3, 3)], "0 <= start < stop"),
        ([(-1, 3)], "0 <= start < stop"),
        ([(1, 2, 3)], r"a span is \(start, stop\)"),
        ([(1,)], r"a span is \(start, stop\)"),
        ([(0, 2.0)], r"a span is \(start, stop\)"),
        ([(False, True)], r"a span is \(start, stop\)"),
        ([(3, 4)], r"no token begins in the span \(3, 4\)"),
    ],
)
def test_bad_spans_are_refused(spans, message):
    with pytest.raises(InputError, match=message):
        segment_tokens(axis("the cat sat"), spans)


def test_positions_may_be_any_disjoint_groups():
    tokens = characters("abcdef")
    assert segment_tokens(tokens, [[4, 1], [2]]) == [[0], [1, 4], [2], [3], [5]]
    assert segment_tokens(tokens, [[np.int64(5), 0]]) == [[0, 5], [1], [2], [3], [4]]
    assert segment_tokens(tokens, np.array([[0, 1], [2, 3]])) == [[0, 1], [2, 3], [4], [5]]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[0, 1], [1]], "position 1 is given twice"),
        ([[0, 0]], "position 0 is given twice"),
        ([[0], []], "a group of positions is empty"),
        ([[6]], "from 0 to 5, not 6"),
        ([[-1]], "from 0 to 5, not -1"),
        ([[True]], "not True"),
        ([[1.0]], "not 1.0"),
    ],
)
def test_bad_positions_are_refused(groups, message):
    with pytest.raises(InputError, match=message):
        segment_tokens(characters("abcdef"), groups)


def test_an_unknown_kind_lists_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown kind of segment 'words'\. Did you mean 'word'"):
        segment_tokens(characters("a"), "words")


@pytest.mark.parametrize("how", [None, 5, [], (), [(0, 1), [1]], [0, 1], {"split": "a", 3: 4}, {}, {"cut": "a"}])
def test_anything_else_is_refused(how):
    with pytest.raises(InputError, match="segments"):
        segment_tokens(characters("ab"), how)
