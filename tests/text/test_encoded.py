"""Ids are the tokenizer's, and every character of the text stands with exactly one of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from text.small_tokenizers import BOS, EOS, KINDS, LOSSLESS, UNK, SlowTokenizer, few, texts, tokenizer_of
from whence.core.errors import InputError
from whence.text.encoded import (
    check_ids,
    decode_pieces,
    encode_ids,
    encode_text,
    whole_number,
    whole_numbers,
)

BROKEN = "\ufffd"
kinds = pytest.mark.parametrize("kind", KINDS)
lossless = pytest.mark.parametrize("kind", LOSSLESS)


def ids_of(kind, text):
    return tokenizer_of(kind)(text, add_special_tokens=False)["input_ids"]


def plain_pieces(encoded):
    return [piece for piece, special in zip(encoded.pieces, encoded.special, strict=True) if not special]


# ---- text to ids


@kinds
@few
@given(text=texts)
def test_ids_are_the_tokenizers_own(kind, text):
    tokenizer = tokenizer_of(kind)
    assert list(encode_text(tokenizer, text).ids) == tokenizer(text)["input_ids"]
    bare = encode_text(tokenizer, text, special_tokens=False)
    assert list(bare.ids) == tokenizer(text, add_special_tokens=False)["input_ids"]


@kinds
@few
@given(text=texts)
def test_every_character_stands_with_one_token(kind, text):
    encoded = encode_text(tokenizer_of(kind), text)
    shown = [span for span in encoded.spans if span is not None]
    assume(shown)
    # Spans that follow each other without gap or overlap are a partition of the text.
    assert [start for start, _ in shown] == [0, *(stop for _, stop in shown[:-1])]
    assert shown[-1][1] == len(text)
    assert all(start < stop for start, stop in shown)
    for piece, span, special in zip(encoded.pieces, encoded.spans, encoded.special, strict=True):
        if not special:
            assert piece == ("" if span is None else text[slice(*span)])


@lossless
@few
@given(text=texts)
def test_pieces_join_to_the_text(kind, text):
    encoded = encode_text(tokenizer_of(kind), text)
    assert "".join(plain_pieces(encoded)) == encoded.text == text


@kinds
@few
@given(text=texts)
def test_special_tokens_are_flagged_named_and_without_span(kind, text):
    encoded = encode_text(tokenizer_of(kind), text)
    assert (encoded.ids[0], encoded.ids[-1]) == (BOS, EOS)
    assert (encoded.pieces[0], encoded.pieces[-1]) == ("<s>", "</s>")
    assert (encoded.spans[0], encoded.spans[-1]) == (None, None)
    assert list(encoded.special) == [i in (BOS, EOS, UNK) for i in encoded.ids]


@pytest.mark.parametrize("kind", ["bytes", "fallback"])
def test_the_token_that_completes_a_character_carries_it(kind):
    encoded = encode_text(tokenizer_of(kind), "a☃b", special_tokens=False)
    lead = [""] if kind == "fallback" else []
    assert list(encoded.pieces) == [*lead, "a", "", "", "☃", "b"]
    assert encoded.spans[-4:] == (None, None, (1, 2), (2, 3))
    assert encode_ids(tokenizer_of(kind), encoded.ids).pieces == encoded.pieces


def test_a_token_that_ends_inside_a_character_leaves_the_character_to_the_next():
    # "Ġð" is a space with the first byte of an emoji, "að" a letter with it; real vocabularies have such.
    names = ["Ġ", "ð", "Ł", "¤", "Ĺ", "a", "Ġð", "að"]
    inner = Tokenizer(models.BPE({name: k for k, name in enumerate(names)}, [("Ġ", "ð"), ("a", "ð")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    encoded = encode_text(tokenizer, "a 🤗a🤗a")
    assert tokenizer.convert_ids_to_tokens(encoded.ids) == [*"a Ġð Ł ¤ Ĺ að Ł ¤ Ĺ a".split()]
    assert encoded.pieces == ("a", "", "", "", " 🤗", "a", "", "", "🤗", "a")
    assert encoded.spans[4:7] == ((1, 3), (3, 4), None)
    assert encode_ids(tokenizer, encoded.ids) == encoded


def test_a_special_token_written_in_the_text_has_its_name_and_place():
    encoded = encode_text(tokenizer_of("bytes"), "a</s>b")
    assert encoded.pieces == ("<s>", "a", "</s>", "b", "</s>")
    assert encoded.spans == (None, (0, 1), (1, 5), (5, 6), None)
    assert encoded.special == (True, False, True, False, True)


def test_added_special_tokens_are_special_without_a_role_of_their_own():
    tokenizer = tokenizer_of.__wrapped__("bytes")
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken("<|turn|>", special=True)])
    assert tokenizer.convert_tokens_to_ids("<|turn|>") not in tokenizer.all_special_ids
    ids = tokenizer("a<|turn|>b", add_special_tokens=False)["input_ids"]
    for encoded in (encode_text(tokenizer, "a<|turn|>b", special_tokens=False), encode_ids(tokenizer, ids)):
        assert encoded.pieces == ("a", "<|turn|>", "b")
        assert encoded.special == (False, True, False)
    assert encode_ids(tokenizer, ids).text == "ab"


def test_white_space_belongs_to_the_token_after_it_and_what_is_dropped_to_the_one_before():
    encoded = encode_text(tokenizer_of("wordpiece"), "  the \x00 cat \n")
    assert plain_pieces(encoded) == ["  the \x00", " cat \n"]
    assert encoded.spans == (None, (0, 7), (7, 13), None)


def test_an_unknown_word_is_special_but_has_its_place():
    encoded = encode_text(tokenizer_of("words"), "the zebra sat")
    assert encoded.pieces == ("<s>", "the", "<unk>", " sat", "</s>")
    assert encoded.spans[2] == (3, 9)


def test_slow_tokenizers_give_the_decoded_text():
    fast = tokenizer_of("wordpiece")
    encoded = encode_text(SlowTokenizer(fast), "The CAT  sat")
    assert list(encoded.ids) == fast("The CAT  sat")["input_ids"]
    assert encoded.text == "the cat sat"
    assert encoded.pieces == ("<s>", "the", " cat", " sat", "</s>")
    assert encoded.spans == (None, (0, 3), (3, 7), (7, 11), None)


def test_half_a_character_is_refused():
    with pytest.raises(InputError, match=r"place 1 holds '\\ud800', half of a character"):
        encode_text(tokenizer_of("bytes"), "a\ud800")


def test_tokens_have_side_segment_and_flags():
    begin, word, unfinished, *_ = encode_text(tokenizer_of("bytes"), "x☃").tokens("source")
    assert (begin.text, begin.start, begin.stop, begin.special, begin.segment) == ("<s>", None, None, True, "source")
    assert (word.text, word.start, word.stop, word.special, word.side) == ("x", 0, 1, False, "source")
    assert (unfinished.text, unfinished.start) == ("", None)
    named = encode_ids(None, [5], segment="document").tokens("prefix")[0]
    assert (named.side, named.segment) == ("prefix", "document")


# ---- ids to text


@kinds
@few
@given(text=texts)
def test_ids_of_a_text_have_the_text_that_the_tokenizer_decodes(kind, text):
    tokenizer = tokenizer_of(kind)
    ids = tokenizer(text)["input_ids"]
    encoded = encode_ids(tokenizer, ids)
    assert list(encoded.ids) == ids
    expected = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert encoded.text == "".join(plain_pieces(encoded)) == expected
    shown = [span for span in encoded.spans if span is not None]
    assert "".join(encoded.text[slice(*span)] for span in shown) == expected
    assert all(span is None for span, special in zip(encoded.spans, encoded.special, strict=True) if special)


@lossless
@few
@given(text=texts.filter(lambda text: BROKEN not in text))
def test_decoding_and_offsets_agree_on_every_piece(kind, text):
    by_offsets = encode_text(tokenizer_of(kind), text)
    by_decoding = encode_ids(tokenizer_of(kind), by_offsets.ids)
    assert by_decoding.pieces == by_offsets.pieces
    assert by_decoding.spans == by_offsets.spans
    assert not any(BROKEN in piece for piece in by_decoding.pieces)


@kinds
@few
@given(text=texts, data=st.data())
def test_pieces_do_not_depend_on_where_the_context_is_cut(kind, text, data):
    tokenizer = tokenizer_of(kind)
    ids = [i for i in ids_of(kind, text) if i != UNK] * 3
    cut = data.draw(st.integers(0, len(ids)))
    whole = decode_pieces(tokenizer, ids)
    if cut == 0 or "".join(whole[:cut]):
        assert decode_pieces(tokenizer, ids[cut:], ids[:cut]) == whole[cut:]


@few
@given(ids=st.lists(st.integers(4, len(tokenizer_of("bytes")) - 1), min_size=1, max_size=120))
def test_bytes_that_are_no_characters_are_not_lost(ids):
    tokenizer = tokenizer_of("bytes")
    pieces = decode_pieces(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids)


@few
@given(ids=st.lists(st.integers(4, len(tokenizer_of("fallback")) - 1), min_size=1, max_size=120))
def test_byte_tokens_that_are_no_characters_are_not_lost(ids):
    tokenizer = tokenizer_of("fallback")
    pieces = decode_pieces(tokenizer, ids)
    assert len(pieces) == len(ids)
    for token_id, piece, name in zip(ids, pieces, tokenizer.convert_ids_to_tokens(ids), strict=True):
        if token_id >= 260:
            assert piece.endswith(name.removeprefix("▁")), (token_id, piece)


def test_a_broken_byte_is_shown_where_it_stands():
    tokenizer = tokenizer_of("fallback")
    byte = {k: tokenizer.convert_tokens_to_ids(f"<0x{k:02X}>") for k in range(256)}
    a = tokenizer.convert_tokens_to_ids("a")
    emoji = [byte[k] for k in "🤗".encode()]
    assert decode_pieces(tokenizer, [a, byte[0xE4], a]) == ["a", BROKEN, "a"]
    # One decoding of the whole run would show nothing but broken bytes.
    assert decode_pieces(tokenizer, [a, *emoji, byte[0xE4], a]) == ["a", "", "", "", "🤗", BROKEN, "a"]
    assert decode_pieces(tokenizer, [a, *emoji[:2]]) == ["a", BROKEN, BROKEN]


def test_a_text_that_ends_inside_a_character_keeps_the_broken_end():
    tokenizer = tokenizer_of("bytes")
    first, second, third = ids_of("bytes", "☃")
    assert decode_pieces(tokenizer, [first, second]) == ["", BROKEN]
    assert decode_pieces(tokenizer, [third], before=[first, second]) == ["☃"]


@pytest.mark.parametrize(
    ("kind", "ids"),
    [
        ("bytes", lambda: ids_of("bytes", "Hello world, 日本 ☃ the cat. ")),
        ("bytes", lambda: [tokenizer_of("bytes").convert_tokens_to_ids("Ĺ")]),
        ("fallback", lambda: ids_of("fallback", "🤗")[1:]),
        ("fallback", lambda: [4 + 0xE4]),
        ("wordpiece", lambda: ids_of("wordpiece", "the cat sat on the mat")),
        ("bytes", lambda: [4 + 0x97, 5000]),
    ],
)
def test_decoding_is_linear_in_the_number_of_ids(kind, ids):
    some = ids()
    work = {}
    for length in (500, 2000):
        counter = SlowTokenizer(tokenizer_of(kind))
        assert len(decode_pieces(counter, (some * length)[:length], before=[*some])) == length
        work[length] = counter.decoded
    assert work[2000] <= 4.5 * work[500]
    assert work[2000] <= 150 * 2000


def test_context_decides_about_leading_spaces():
    for kind in ("fallback", "unigram"):
        tokenizer = tokenizer_of(kind)
        ids = ids_of(kind, "the")
        assert "".join(decode_pieces(tokenizer, ids)) == "the"
        assert "".join(decode_pieces(tokenizer, ids, before=ids_of(kind, "cat"))) == " the"
    assert decode_pieces(tokenizer_of("wordpiece"), ids_of("wordpiece", "the"), before=[BOS]) == ["the"]


def test_without_a_tokenizer_ids_are_shown_as_numbers():
    encoded = encode_ids(None, np.array([5, 17]))
    assert (encoded.ids, encoded.text, encoded.pieces) == ((5, 17), " 5 17", (" 5", " 17"))
    assert encoded.spans == ((0, 2), (2, 5))
    assert encoded.special == (False, False)
    assert all(type(token_id) is int for token_id in encoded.ids)


# ---- what counts as ids


def test_ids_outside_the_vocabulary_are_named_with_their_place():
    check_ids([0, 9], 10, "prompt")
    for bad in (10, -1):
        with pytest.raises(InputError, match=rf"prompt: id {bad} at place 2 is outside .* of 10 \(0 to 9\)"):
            check_ids([0, 9, bad], 10, "prompt")


@pytest.mark.parametrize(
    "values",
    [[3, 4], (3, 4), range(3, 5), np.array([3, 4]), torch.tensor([3, 4]), [np.int64(3), np.uint8(4)],
     [torch.tensor(3), 4]],
)  # fmt: skip
def test_whole_numbers_of_every_make_are_ids(values):
    assert whole_numbers(values) == [3, 4]
    assert [type(number) for number in whole_numbers(values)] == [int, int]


@pytest.mark.parametrize(
    "values",
    [None, 3, "34", b"34", bytearray(b"34"), memoryview(b"34"), [3, True], [np.bool_(True)], [torch.tensor(True)],
     [3.0], np.array([3.0]), [[3]], [None], ["3"], {3: 4}, {3, 4}, torch.tensor(3), torch.tensor([[3]])],
)  # fmt: skip
def test_nothing_else_is_ids(values):
    assert whole_numbers(values) is None


def test_a_whole_number_is_an_integer_but_no_truth_value():
    assert [whole_number(v) for v in (3, np.int32(3), torch.tensor(3), -3)] == [3, 3, 3, -3]
    assert {whole_number(v) for v in (True, 3.0, "3", None, np.float32(3), [3])} == {None}
