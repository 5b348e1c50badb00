"""Prompts as text, chats and ids; every message is a segment; what is no prompt is refused in plain words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from text.small_tokenizers import BOS, EOS, KINDS, SlowTokenizer, few, texts, tokenizer_of
from tiny_models import tiny_tokenizer
from whence.core.errors import InputError, ModelError
from whence.text.encoded import encode_ids, encode_text
from whence.text.prompt import encode_prompt, first_character, is_batch

SIZE = 1000
CHAT = [{"role": "user", "content": "hi"}]
# Like most templates: a header with the role, the trimmed content, an end mark; refuses other roles.
TRIMMED = (
    "{% for m in messages %}{% if m['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('Only system, user and assistant roles, not ' + m['role']) }}{% endif %}"
    "<|{{ m['role'] }}|>\n{{ m['content'] | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
VERBATIM = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant]"
# As Llama 2: the system message stands inside the first user message.
NESTED = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if loop.first and system %}<<SYS>>{{ system }}<</SYS>>{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}{{ m['content'] }}</s>{% endif %}"
    "{% endfor %}"
)
# As reasoning models: what stands before a mark in an answer is left out.
SHORTENED = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'].split('</think>')[-1] }}</{{ m['role'] }}>{% endfor %}"
)


def chat_tokenizer(template, kind="bytes"):
    tokenizer = tokenizer_of.__wrapped__(kind)
    tokenizer.chat_template = template
    return tokenizer


_CHATS = {template: chat_tokenizer(template) for template in (TRIMMED, VERBATIM)}


def by_segment(encoded):
    """The text of each segment, special tokens left out."""
    found = {}
    for name, piece, special in zip(encoded.segments, encoded.pieces, encoded.special, strict=True):
        if not special:
            found[name] = found.get(name, "") + piece
    return found


def chat_of(*messages):
    return [{"role": role, "content": content} for role, content in messages]


# ---- text and ids


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_encoded_with_begin_and_end(kind):
    tokenizer = tokenizer_of(kind)
    assert encode_prompt(tokenizer, "the cat", SIZE) == encode_text(tokenizer, "the cat")


@pytest.mark.parametrize(
    "ids", [[5, 6, 7], (5, 6, 7), range(5, 8), np.array([5, 6, 7]), torch.tensor([5, 6, 7]), [np.int64(5), 6, 7]]
)
def test_ids_of_every_make_stay_as_they_are(ids):
    tokenizer = tokenizer_of("bytes")
    encoded = encode_prompt(tokenizer, ids, SIZE)
    assert encoded == encode_ids(tokenizer, [5, 6, 7])
    assert all(type(token_id) is int for token_id in encoded.ids)
    assert encode_prompt(None, ids, SIZE).text == " 5 6 7"


@pytest.mark.parametrize("tokenizer", [None, "bytes"])
@pytest.mark.parametrize("bad", [-1, 10, 10**12])
def test_ids_outside_the_vocabulary_are_refused_before_anything_reads_them(tokenizer, bad):
    tokenizer = tokenizer and tokenizer_of(tokenizer)
    with pytest.raises(InputError, match=f"prompt: id {bad} at place 1 "):
        encode_prompt(tokenizer, [5, bad], 10)


def test_a_tokenizer_larger_than_the_model_is_noticed():
    with pytest.raises(InputError, match="Is this the tokenizer that belongs to the model"):
        encode_prompt(tokenizer_of("bytes"), "the cat", 10)


@pytest.mark.parametrize("prompt", ["", "  ", "\n\t\u3000", [], (), np.array([], dtype=int)])
def test_empty_prompts_are_refused(prompt):
    with pytest.raises(InputError, match="the prompt is empty"):
        encode_prompt(tokenizer_of("bytes"), prompt, SIZE)
    assert not is_batch(prompt)


def test_a_text_without_tokens_is_empty():
    inner = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    inner.normalizer = normalizers.BertNormalizer()
    with pytest.raises(InputError, match="the prompt is empty"):
        encode_prompt(PreTrainedTokenizerFast(tokenizer_object=inner), "\x00", SIZE)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "not NoneType: None"),
        (5, "not int: 5"),
        (2.5, "not float: 2.5"),
        (True, "not bool: True"),
        (b"the cat", "not bytes"),
        (bytearray(b"the"), "not bytearray"),
        ({"role": "user", "content": "hi"}, r"One chat message stands in a list of its own"),
        ({"input_ids": [5, 6]}, r"give prompt\['input_ids'\]"),
        ([5, True], "place 1 holds bool: True"),
        ([5, 6.0], "place 1 holds float: 6.0"),
        (np.array([1.5]), "place 0 holds float: 1.5"),
        (np.array([True]), "place 0 holds bool: True"),
        ([5, None], "place 1 holds NoneType: None"),
        ([5, "cat"], "place 1 holds str: 'cat'"),
        ([None, None], "place 0 holds NoneType"),
        ([{"role": "user", "content": "hi"}, "cat"], "place 0 holds dict"),
        ([b"the"], "place 0 holds bytes"),
        ([[5, 6], [7]], "This is a list of prompts"),
        (["the", "cat"], "This is a list of prompts"),
        (torch.tensor(5), "not int: 5"),
        ({5, 6}, "not set"),
    ],
)
def test_what_is_no_prompt_is_refused_in_plain_words(prompt, message):
    with pytest.raises(InputError, match=f"a prompt.*{message}"):
        encode_prompt(tokenizer_of("bytes"), prompt, SIZE)


def test_text_needs_a_tokenizer():
    for prompt in ("the cat", CHAT):
        with pytest.raises(ModelError, match="no tokenizer, so it cannot read text"):
            encode_prompt(None, prompt, SIZE)


@pytest.mark.parametrize(
    "prompts",
    [["a", "b"], ["a"], [[5, 6], [7]], [[5]], ["a", [5]], [CHAT, "a"], [CHAT], np.array([[5, 6], [7, 8]]),
     torch.tensor([[5]]), [np.array([5, 6])], [torch.tensor([5])], np.array(["a", "b"]), [[]], ["", "a"]],
)  # fmt: skip
def test_several_prompts_are_a_batch(prompts):
    assert is_batch(prompts)


@pytest.mark.parametrize(
    "prompt",
    ["a", CHAT, CHAT[0], [5, 6], (5, 6), range(3), np.array([5, 6]), torch.tensor([5, 6]), torch.tensor(5), None, 5,
     b"ab", [], [5, "a"], ["a", None], ["a", 5], [True], [2.5], [b"a"], {"a", "b"}, {"input_ids": [[5]]},
     [np.int64(5)], [torch.tensor(5)]],
)  # fmt: skip
def test_anything_else_is_not(prompt):
    assert not is_batch(prompt)


def test_an_iterator_of_prompts_is_a_batch_and_not_consumed():
    prompts = (text for text in ["a", "b"])
    assert is_batch(prompts)
    assert list(prompts) == ["a", "b"]


# ---- chats


@pytest.mark.parametrize("template", [TRIMMED, VERBATIM, NESTED])
def test_ids_of_a_chat_are_those_of_its_template(template):
    tokenizer = chat_tokenizer(template)
    chat = chat_of(("system", "Be brief."), ("user", "Why? 日本"), ("assistant", "So."), ("user", " Why? "))
    expected = tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)
    encoded = encode_prompt(tokenizer, chat, SIZE)
    assert list(encoded.ids) == expected["input_ids"]
    names = by_segment(encoded)
    assert [names[k].strip() for k in ("system", "user", "assistant", "user 2")] == [
        "Be brief.", "Why? 日本", "So.", "Why?",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "contents",
    [
        ("user", "user", "user"),
        ("assistant", "a", "s"),
        ("same", "same", "same"),
        ("the cat sat", "cat", "the cat"),
        ("a", "the a cat a", "a a"),
        ("</s>\n<|user|>", "x", "|>\n"),
    ],
)
@pytest.mark.parametrize("template", [TRIMMED, VERBATIM])
def test_contents_that_repeat_or_look_like_the_template_are_found_in_their_place(template, contents):
    tokenizer = chat_tokenizer(template)
    roles = ("user", "assistant", "user")
    encoded = encode_prompt(tokenizer, chat_of(*zip(roles, contents, strict=True)), SIZE)
    scaffold = encoded.text
    for content in contents:
        before, found, after = scaffold.partition(content.strip() if template == TRIMMED else content)
        assert found
        scaffold = before + after
    # Each named segment's characters, counted where they stand: specials inside a content count with it.
    for name, content in zip(("user", "assistant", "user 2"), contents, strict=True):
        mine = [span for span, segment in zip(encoded.spans, encoded.segments, strict=True) if segment == name]
        text = encoded.text[mine[0][0] : mine[-1][1]]
        assert text.strip() == content.strip()


@few
@given(
    contents=st.lists(texts.filter(lambda text: text.strip() and "<" not in text), min_size=1, max_size=4),
    template=st.sampled_from([TRIMMED, VERBATIM]),
)
def test_every_message_has_its_own_text_and_nothing_else(contents, template):
    encoded = encode_prompt(_CHATS[template], chat_of(*(("user", content) for content in contents)), SIZE)
    names = by_segment(encoded)
    for number, content in enumerate(contents):
        name = "user" if number == 0 else f"user {number + 1}"
        assert names[name].strip() == content.strip()


def test_white_space_of_a_content_belongs_to_it_where_the_template_keeps_it():
    chat = chat_of(("user", "\n\n\nhi\n\n\n"))
    assert by_segment(encode_prompt(_CHATS[VERBATIM], chat, SIZE))["user"].strip(" ") == "\n\n\nhi\n\n\n"
    assert by_segment(encode_prompt(_CHATS[TRIMMED], chat, SIZE))["user"] == "hi"


def test_scaffolding_and_special_tokens_are_the_template():
    encoded = encode_prompt(_CHATS[TRIMMED], chat_of(("user", "hi")), SIZE)
    assert by_segment(encoded) == {"template": "<|user|>\n\n<|assistant|>\n", "user": "hi"}
    assert [s for s, special in zip(encoded.segments, encoded.special, strict=True) if special] == ["template"]


@pytest.mark.parametrize("kind", ["bytes", "fallback"])
def test_a_character_of_several_tokens_is_in_one_segment(kind):
    encoded = encode_prompt(chat_tokenizer(VERBATIM, kind), chat_of(("user", "☃"), ("assistant", "x☃")), SIZE)
    segments = [s for s in encoded.segments if s != "template"]
    assert segments.count("user") >= 3
    assert segments.count("assistant") == 4


def test_messages_are_named_by_their_number_even_if_some_are_empty():
    chat = chat_of(("user", " "), ("assistant", "yes"), ("user", "no"))
    names = by_segment(encode_prompt(_CHATS[VERBATIM], chat, SIZE))
    assert names["user 2"].strip() == "no"
    assert names["assistant"].strip() == "yes"


def test_no_two_messages_and_no_message_and_the_template_share_a_name():
    chat = chat_of(("user 2", "a"), ("user", "b"), ("user", "c"), ("template", "d"))
    names = by_segment(encode_prompt(_CHATS[VERBATIM], chat, SIZE))
    found = {name: text.strip() for name, text in names.items() if name != "template"}
    assert found == {"user 2": "a", "user": "b", "user 3": "c", "template 2": "d"}


def test_a_content_that_the_template_shortens_is_found():
    chat = chat_of(("user", "Why"), ("assistant", "<think>hm, hm</think>So"), ("user", "So"))
    names = by_segment(encode_prompt(chat_tokenizer(SHORTENED), chat, SIZE))
    assert (names["user"], names["assistant"], names["user 2"]) == ("Why", "So", "So")


def test_a_template_that_reads_the_content_falls_back_to_searching():
    picky = (
        "{% for m in messages %}{% if m['content'] | length < 2 %}{{ raise_exception('too short') }}{% endif %}"
        "({{ m['content'] }}){% endfor %}"
    )
    names = by_segment(encode_prompt(chat_tokenizer(picky), chat_of(("user", "the cat"), ("user", "cat")), SIZE))
    assert (names["user"], names["user 2"]) == ("the cat", "cat")


def test_slow_tokenizers_find_messages_in_the_text_they_decode():
    slow = SlowTokenizer(chat_tokenizer(TRIMMED))
    encoded = encode_prompt(slow, chat_of(("user", "the cat"), ("assistant", "sat")), SIZE)
    assert encoded.ids == encode_prompt(slow.fast, chat_of(("user", "the cat"), ("assistant", "sat")), SIZE).ids
    names = by_segment(encoded)
    assert (names["user"], names["assistant"]) == ("the cat", "sat")


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "user"}, "needs 'role' and 'content' as strings"),
        ({"content": "hi"}, "needs 'role' and 'content' as strings"),
        ({"role": 3, "content": "hi"}, "needs 'role' and 'content' as strings"),
        ({"role": "user", "content": None}, "needs 'role' and 'content' as strings"),
        ({"role": "user", "content": [{"type": "text", "text": "hi"}]}, "no lists of parts"),
        ({"role": "critic", "content": "hi"}, "cannot render these messages: Only system, user .* not critic"),
    ],
)
def test_messages_that_cannot_be_read_are_refused(message, error):
    with pytest.raises(InputError, match=error):
        encode_prompt(_CHATS[TRIMMED], [*CHAT, message], SIZE)


def test_a_chat_needs_a_template():
    with pytest.raises(ModelError, match="no chat template"):
        encode_prompt(tokenizer_of("bytes"), CHAT, SIZE)


def test_the_tiny_chat_template_works():
    encoded = encode_prompt(tiny_tokenizer("llama"), chat_of(("user", "the cat"), ("assistant", "sat")), 64)
    assert encoded.segments == ("template", "user", "user", "template", "template", "assistant", "template", "template")
    assert [encoded.ids[k] for k in (0, 3, 4)] == [BOS, EOS, BOS]


@few
@given(text=texts)
def test_the_first_character_of_a_span_is_visible_if_any_is(text):
    assume(text)
    place = first_character(text, (0, len(text)))
    assert not text[:place].strip()
    assert bool(text[place].strip()) == bool(text.strip())
    assert place < len(text)
