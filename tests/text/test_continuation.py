"""Continuations follow the prompt's ids, as text or as ids; targets of encoder-decoders stand alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given

from text.small_tokenizers import EOS, KINDS, LOSSLESS, PAD, SlowTokenizer, few, texts, tokenizer_of
from whence.core.errors import InputError, ModelError
from whence.text.continuation import encode_continuation, encode_generated
from whence.text.encoded import encode_ids
from whence.text.prompt import encode_prompt

SIZE = 1000


def follow(tokenizer, continuation, prompt="the cat", *, encoder_decoder=False, size=SIZE):
    """The continuation of a prompt without an end token in between."""
    before = encode_ids(tokenizer, [5, 6]) if tokenizer is None else encode_ids(
        tokenizer, tokenizer(prompt, add_special_tokens=False)["input_ids"]
    )  # fmt: skip
    return encode_continuation(tokenizer, continuation, prompt=before, vocab_size=size, encoder_decoder=encoder_decoder)


@pytest.mark.parametrize("kind", ["bytes", "unigram", "wordpiece", "words"])
@few
@given(text=texts)
def test_ids_of_a_text_are_the_tokenizers_own_without_special_tokens(kind, text):
    tokenizer = tokenizer_of(kind)
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not expected:
        with pytest.raises(InputError, match="the continuation is empty"):
            follow(tokenizer, text)
        return
    encoded = follow(tokenizer, text)
    assert list(encoded.ids) == expected
    assert set(encoded.segments) == {"prefix"}


@pytest.mark.parametrize("kind", LOSSLESS)
@few
@given(text=texts.filter(lambda text: text.strip() and "\ufffd" not in text))
def test_a_text_that_begins_with_its_space_is_the_text_that_follows(kind, text):
    assert follow(tokenizer_of(kind), f" {text}").text == f" {text}"


def test_a_tokenizer_that_adds_a_space_does_not_add_a_second_one():
    tokenizer = tokenizer_of("fallback")
    assert tokenizer.tokenize(" he sat")[:2] == ["▁", "▁he"]
    encoded = follow(tokenizer, " he sat")
    assert tokenizer.convert_ids_to_tokens(encoded.ids)[0] == "▁he"
    # Two spaces are meant, and one that was not given is the tokenizer's own doing.
    assert follow(tokenizer, "  he").text == "  he"
    assert follow(tokenizer, "he").text == " he"


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_decides_about_the_space_in_front(kind):
    tokenizer = tokenizer_of(kind)
    ids = tokenizer("the", add_special_tokens=False)["input_ids"]
    prompt = encode_prompt(tokenizer, tokenizer("cat", add_special_tokens=False)["input_ids"], SIZE)
    after = encode_generated(tokenizer, ids, prompt=prompt, encoder_decoder=False)
    alone = encode_generated(tokenizer, ids, prompt=prompt, encoder_decoder=True)
    assert after.ids == alone.ids == tuple(ids)
    assert alone.text == "the"
    assert after.text == ("the" if kind in ("bytes", "trimmed") else " the")


def test_a_continuation_completes_a_character_that_the_prompt_began():
    tokenizer = tokenizer_of("bytes")
    first, second, third = tokenizer("☃", add_special_tokens=False)["input_ids"]
    encoded = encode_generated(tokenizer, [third], prompt=encode_ids(tokenizer, [first, second]), encoder_decoder=False)
    assert encoded.pieces == ("☃",)


def test_a_target_has_the_tokens_of_a_target():
    slow = SlowTokenizer(tokenizer_of("unigram"))
    encoded = follow(slow, "the cat", encoder_decoder=True)
    assert (encoded.ids[0], encoded.ids[-1]) == (PAD, EOS)
    assert (encoded.special[0], encoded.special[1], encoded.special[-1]) == (True, False, True)
    assert encoded.text == "the cat"
    fast = tokenizer_of("unigram")
    assert list(follow(fast, "the cat", encoder_decoder=True).ids) == fast(text_target="the cat")["input_ids"]


@pytest.mark.parametrize("ids", [[5, 6], (5, 6), np.array([5, 6]), torch.tensor([5, 6]), [np.int32(5), 6]])
@pytest.mark.parametrize("tokenizer", [None, "bytes"])
@pytest.mark.parametrize("encoder_decoder", [False, True])
def test_ids_stay_as_they_are(ids, tokenizer, encoder_decoder):
    encoded = follow(tokenizer and tokenizer_of(tokenizer), ids, encoder_decoder=encoder_decoder)
    assert encoded.ids == (5, 6)
    assert all(type(token_id) is int for token_id in encoded.ids)


@pytest.mark.parametrize("encoder_decoder", [False, True])
@pytest.mark.parametrize("empty", ["", [], (), np.array([], dtype=int), torch.tensor([], dtype=torch.long)])
def test_an_empty_continuation_is_refused(empty, encoder_decoder):
    with pytest.raises(InputError, match=r'nothing to explain.*steps="prompt"'):
        follow(tokenizer_of("bytes"), empty, encoder_decoder=encoder_decoder)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, "not NoneType: None"),
        (5, "not int: 5"),
        ([5, True], r"not list: \[5, True\]"),
        ([5, 6.0], r"not list: \[5, 6.0\]"),
        ([[5, 6]], r"not list: \[\[5, 6\]\]"),
        (["the"], "not list"),
        (b"the", "not bytes"),
        ({"input_ids": [5]}, "not dict"),
        (np.array([True]), "not ndarray"),
        (torch.tensor([0.5]), "not Tensor"),
    ],
)
def test_what_is_no_continuation_is_refused(bad, message):
    with pytest.raises(InputError, match=f"a continuation is a string or a list of ids.*{message}"):
        follow(tokenizer_of("bytes"), bad)


@pytest.mark.parametrize("bad", [-1, 10])
def test_ids_outside_the_vocabulary_are_named(bad):
    with pytest.raises(InputError, match=f"continuation: id {bad} at place 1 "):
        follow(tokenizer_of("bytes"), [5, bad], size=10)


def test_text_needs_a_tokenizer_and_whole_characters():
    with pytest.raises(ModelError, match="no tokenizer"):
        follow(None, " the")
    with pytest.raises(InputError, match=r"continuation: place 0 .* half of a character"):
        follow(tokenizer_of("bytes"), "\ud83e")
