"""What a model is given to read: streams, steps, and sequences of different lengths side by side."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from whence.core.errors import InputError, UnsupportedError
from whence.probe.batch import collate, force, select_steps
from whence.text.encoded import Encoded, encode_ids

PAD, START = 0, 1
EVERYTHING = frozenset({"input_ids", "attention_mask", "position_ids"})
BOTH = frozenset({"input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"})
PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40, 11]


def decoder(prompt=PROMPT, continuation=CONTINUATION, steps=None):
    text = None if continuation is None else encode_ids(None, continuation)
    return force(encode_ids(None, prompt), text, None, steps)


def both(prompt=PROMPT, continuation=CONTINUATION, steps=None):
    text = None if continuation is None else encode_ids(None, continuation)
    return force(encode_ids(None, prompt), text, START, steps)


# ---- one sequence


def test_a_decoder_reads_everything_but_the_last_token():
    one = decoder()
    assert one.streams == ((*PROMPT, *CONTINUATION[:-1]),)
    assert tuple(token.id for token in one.tokens) == one.streams[0]
    assert [token.side for token in one.tokens] == ["source"] * 5 + ["prefix"] * 3
    # The logits at the place before a token predict it.
    assert one.query == (4, 5, 6, 7)
    assert [token.id for token in one.targets] == CONTINUATION
    assert one.columns == ((0,), (1,), (2,), (3,))
    assert one.labels == one.targets
    assert not one.spans


def test_an_encoder_decoder_reads_two_streams():
    one = both()
    assert one.streams == (tuple(PROMPT), (START, *CONTINUATION[:-1]))
    assert [token.id for token in one.tokens] == [*PROMPT, START, *CONTINUATION[:-1]]
    assert [token.side for token in one.tokens] == ["source"] * 5 + ["prefix"] * 4
    assert [token.special for token in one.tokens] == [False] * 5 + [True] + [False] * 3
    assert one.query == (0, 1, 2, 3)
    assert [token.id for token in one.targets] == CONTINUATION


@given(
    st.lists(st.integers(2, 50), min_size=1, max_size=8),
    st.lists(st.integers(2, 50), min_size=1, max_size=8),
    st.data(),
)
def test_the_token_after_the_query_in_the_text_is_the_target(prompt, continuation, data):
    picked = data.draw(st.lists(st.integers(0, len(continuation) - 1), min_size=1, unique=True))
    alone, pair = decoder(prompt, continuation, picked), both(prompt, continuation, picked)
    for one, text in ((alone, [*prompt, *continuation]), (pair, [START, *continuation])):
        assert [text[k + 1] for k in one.query] == [token.id for token in one.targets]
        assert list(one.query) == sorted(set(one.query))
        # Columns come in the order asked for, whatever the order of the steps.
        assert [one.targets[column[0]].id for column in one.columns] == [continuation[k] for k in picked]
        assert [label.id for label in one.labels] == [continuation[k] for k in picked]


def test_a_span_is_one_column_of_several_steps():
    one = decoder(steps=[(1, 3), 0, (2, 4)])
    assert [token.id for token in one.targets] == CONTINUATION
    assert one.columns == ((1, 2), (0,), (2, 3))
    assert one.spans
    assert one.labels[0].ids == (8, 40)
    assert one.labels[0].text == " 8 40"
    assert (one.labels[0].start, one.labels[0].stop) == (3, 8)
    assert one.labels[1].ids == ()


def test_a_span_label_skips_tokens_without_characters():
    text = Encoded((5, 6, 7), "☃", ("", "☃", "</s>"), (None, (0, 1), None), ("",) * 3, (False, False, True))
    label = force(encode_ids(None, [3]), text, None, (0, 3)).labels[0]
    assert (label.text, label.start, label.stop, label.ids) == ("☃</s>", 0, 1, (5, 6, 7))


def test_a_prompt_alone_can_be_explained_by_a_decoder():
    one = decoder(continuation=None, steps="prompt")
    assert one.streams == (tuple(PROMPT[:-1]),)
    assert [token.id for token in one.targets] == PROMPT[1:]
    assert one.query == (0, 1, 2, 3)
    for make in (decoder, both):
        with pytest.raises(InputError, match="selects no token"):
            make(continuation=None)


# ---- steps: the text has 9 tokens, its continuation begins at 5


def places(steps, first=5, length=9, lowest=1):
    return select_steps(steps, first, length, lowest)


def singles(*numbers):
    return [(k, k + 1) for k in numbers]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (None, singles(5, 6, 7, 8)),
        ("generated", singles(5, 6, 7, 8)),
        ("whole", [(5, 9)]),
        ("prompt", singles(1, 2, 3, 4)),
        ("all", singles(*range(1, 9))),
        (0, singles(5)),
        (3, singles(8)),
        (-1, singles(8)),
        (-4, singles(5)),
        (np.int64(2), singles(7)),
        (torch.tensor(2), singles(7)),
        (slice(None), singles(5, 6, 7, 8)),
        (slice(1, 3), singles(6, 7)),
        (slice(-2, None), singles(7, 8)),
        (slice(None, None, 2), singles(5, 7)),
        (slice(None, None, -1), singles(8, 7, 6, 5)),
        (slice(2, 100), singles(7, 8)),
        (slice(np.int64(1), np.int64(2)), singles(6)),
        (range(1, 4, 2), singles(6, 8)),
        ((0, 4), [(5, 9)]),
        ((-3, -1), [(6, 8)]),
        ((1, 2), singles(6)),
        ((np.int64(1), np.int32(3)), [(6, 8)]),
        ([3, 0], singles(8, 5)),
        ([np.int64(3), -4], singles(8, 5)),
        (np.array([0, 2]), singles(5, 7)),
        ([slice(0, 2), (2, 4), 3], [(5, 6), (6, 7), (7, 9), (8, 9)]),
        ({"start": 3, "stop": 6}, singles(3, 4, 5)),
        ({"start": 7}, singles(7, 8)),
        ({"stop": 3}, singles(1, 2)),
        ({"start": np.int64(8), "stop": None}, singles(8)),
        ({}, singles(*range(1, 9))),
    ],
)
def test_steps_select_places(steps, expected):
    assert places(steps) == expected


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (4, "there is no step 4; the continuation has 4 tokens"),
        (-5, "there is no step -5"),
        ([0, 9], "there is no step 9"),
        ((0, 5), r"span \(0, 5\) lies outside the 4 tokens"),
        ((-5, 2), r"span \(-5, 2\) lies outside"),
        ((3, 1), r"span \(3, 1\) lies outside"),
        ((2, 2), r"span \(2, 2\) is empty"),
        ((1, 2, 3), r"a span is \(start, stop\)"),
        ((1,), r"a span is \(start, stop\)"),
        ((), r"a span is \(start, stop\)"),
        ((0, None), r"a span is \(start, stop\)"),
        ((0, True), r"a span is \(start, stop\)"),
        ((0, 2.0), r"a span is \(start, stop\)"),
        ([], "selects no token"),
        (slice(2, 2), "selects no token"),
        (slice(9, None), "selects no token"),
        (slice(None, None, 0), "is no slice of tokens"),
        (slice("a", None), "is no slice of tokens"),
        (range(0), "selects no token"),
        ([1, 1], "the same step is asked for twice, at 1"),
        ([1, -3], "the same step is asked for twice, at 1"),
        ([2, slice(None)], "asked for twice, at 2"),
        ([(0, 2), (0, 2)], "asked for twice, at 0"),
        ("everything", 'the words are "generated", "whole", "prompt" and "all", not \'everything\''),
        ({"start": 0}, "lies outside the text, whose places go from 1 to 9"),
        ({"start": -3}, "lies outside the text"),
        ({"stop": 10}, "lies outside the text"),
        ({"stop": 10**15}, "lies outside the text"),
        ({"start": 4, "stop": 4}, "selects no token"),
        ({"start": 4, "stop": 2}, "selects no token"),
        ({"start": True}, "'start' and 'stop' are whole numbers"),
        ({"start": 1.0}, "'start' and 'stop' are whole numbers"),
        ({"begin": 1}, "positions in the whole text are"),
        (True, "not True"),
        ([True], "not True"),
        (1.0, "not 1.0"),
        (np.array([True, False]), "not True"),
        (["prompt"], "not 'prompt'"),
        ([[0, 1]], r"not \[0, 1\]"),
        ([None], "not None"),
    ],
)
def test_steps_that_make_no_sense_are_refused(steps, message):
    with pytest.raises(InputError, match=f"steps.*{message}"):
        places(steps)


def test_only_what_something_precedes_can_be_explained():
    for steps in ("prompt", "all"):
        with pytest.raises(InputError, match="an encoder reads its source at once"):
            places(steps, first=0, length=4, lowest=0)
    with pytest.raises(InputError, match="a decoder needs at least two tokens"):
        places("prompt", first=1, length=1)
    # A prompt of one token has nothing to explain, but the text after it has.
    assert places("all", first=1, length=3) == singles(1, 2)
    assert places(None, first=0, length=3, lowest=0) == singles(0, 1, 2)
    assert places({}, first=0, length=3, lowest=0) == singles(0, 1, 2)
    with pytest.raises(InputError, match="nothing before it that could predict it"):
        places(0, first=0, length=3, lowest=1)


# ---- several sequences

lists = st.lists(st.integers(2, 50), min_size=1, max_size=7)


@given(st.lists(st.tuples(lists, lists), min_size=1, max_size=4), st.booleans(), st.data())
def test_slots_lead_every_token_to_its_place(pairs, encoder_decoder, data):
    make = both if encoder_decoder else decoder
    chosen = [data.draw(st.sampled_from([None, -1, 0, (0, len(text))])) for _, text in pairs]
    sequences = [make(prompt, text, steps) for (prompt, text), steps in zip(pairs, chosen, strict=True)]
    batch = collate(sequences, pad=PAD, accepts=EVERYTHING | BOTH, dtype=torch.float64)
    names = ("input_ids", "decoder_input_ids") if encoder_decoder else ("input_ids",)
    masks = ("attention_mask", "decoder_attention_mask") if encoder_decoder else ("attention_mask",)
    assert set(batch.inputs) == {*names, *masks} | (set() if encoder_decoder else {"position_ids"})
    ids = torch.cat([batch.inputs[name] for name in names], dim=1)
    mask = torch.cat([batch.inputs[name] for name in masks], dim=1)
    assert ids.shape == mask.shape == (len(pairs), batch.width)
    assert ids.dtype == torch.long
    for row, one in enumerate(sequences):
        assert ids[row, batch.slots[row]].tolist() == [token.id for token in one.tokens]
        assert mask[row].nonzero().flatten().tolist() == batch.slots[row].tolist()
        assert (ids[row][mask[row] == 0] == PAD).all()
        steps = len(one.query)
        last = batch.inputs[names[-1]][row]
        read = last[batch.query[row]]
        assert read[:steps].tolist() == [one.streams[-1][k] for k in one.query]
        assert batch.target_ids[row, :steps].tolist() == [token.id for token in one.targets]
        # Padded steps repeat one that exists, and weigh nothing.
        assert (batch.query[row, steps:] == batch.query[row, 0]).all()
        assert (batch.target_ids[row, steps:] == batch.target_ids[row, 0]).all()
        assert (batch.columns[row, :, steps:] == 0).all()
        assert batch.valid[row].tolist() == [k < len(one.columns) for k in range(batch.valid.shape[1])]
        for number, column in enumerate(one.columns):
            assert batch.columns[row, number].nonzero().flatten().tolist() == list(column)
            seen = batch.offsets[-1] + max(int(batch.query[row, k]) for k in column)
            assert int(batch.last_seen()[row, number]) == seen
        assert (batch.columns[row, len(one.columns) :] == 0).all()
    assert set(batch.columns.unique().tolist()) <= {0.0, 1.0}
    # The last `keep` positions hold every query, and no more than that.
    assert int(batch.query.min()) == batch.widths[-1] - batch.keep()
    assert int(batch.query.max()) < batch.widths[-1]


def test_a_decoder_is_padded_on_the_left_with_positions_from_the_mask():
    batch = collate([decoder([7, 8], [9]), decoder([5], [6])], pad=PAD, accepts=EVERYTHING, dtype=torch.float32)
    assert batch.inputs["input_ids"].tolist() == [[7, 8], [PAD, 5]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1], [0, 0]]
    assert batch.query.tolist() == [[1], [1]]
    assert (batch.widths, batch.offsets, batch.width, batch.keep()) == ((2,), (0,), 2, 1)
    assert batch.columns.dtype == torch.float32


def test_an_encoder_decoder_is_padded_on_the_right():
    batch = collate([both([7, 8], [9]), both([5], [6, 4])], pad=PAD, accepts=BOTH, dtype=torch.float64)
    assert batch.inputs["input_ids"].tolist() == [[7, 8], [5, PAD]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch.inputs["decoder_input_ids"].tolist() == [[START, PAD], [START, 6]]
    assert batch.inputs["decoder_attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert [slots.tolist() for slots in batch.slots] == [[0, 1, 2], [0, 2, 3]]
    assert batch.query.tolist() == [[0, 0], [0, 1]]
    assert batch.target_ids.tolist() == [[9, 9], [6, 4]]
    assert batch.columns.tolist() == [[[1, 0], [0, 0]], [[1, 0], [0, 1]]]
    assert (batch.widths, batch.offsets, batch.width, batch.keep()) == ((2, 2), (0, 2), 4, 2)
    # A column that a sequence does not have has seen nothing of its stream.
    assert batch.last_seen().tolist() == [[2, 1], [2, 3]]


def test_a_span_has_seen_what_its_last_step_sees():
    batch = collate([decoder(steps=[(0, 3), 0])], pad=PAD, accepts=EVERYTHING, dtype=torch.float64)
    assert batch.columns.tolist() == [[[1, 1, 1], [1, 0, 0]]]
    assert batch.last_seen().tolist() == [[6, 4]]
    assert batch.keep() == 4


def test_a_model_is_given_only_what_it_accepts():
    alone = collate([decoder()], pad=PAD, accepts=frozenset({"input_ids"}), dtype=torch.float64)
    assert set(alone.inputs) == {"input_ids"}
    pair = collate([both()], pad=PAD, accepts=BOTH - {"decoder_attention_mask"}, dtype=torch.float64)
    assert set(pair.inputs) == {"input_ids", "attention_mask", "decoder_input_ids"}
    assert "position_ids" not in pair.inputs


def test_without_an_attention_mask_lengths_must_be_equal():
    unmasked = frozenset({"input_ids"})
    same = collate([decoder(), decoder()], pad=PAD, accepts=unmasked, dtype=torch.float64)
    assert same.inputs["input_ids"].shape == (2, 8)
    with pytest.raises(UnsupportedError, match="takes no attention mask; attribute texts of different length one by"):
        collate([decoder(), decoder([7])], pad=PAD, accepts=unmasked, dtype=torch.float64)
    with pytest.raises(UnsupportedError, match="takes no attention mask"):
        collate([both(), both([7])], pad=PAD, accepts=BOTH - {"attention_mask"}, dtype=torch.float64)
    # What follows in a decoder is invisible anyway.
    collate([both(), both(PROMPT, [3])], pad=PAD, accepts=BOTH - {"decoder_attention_mask"}, dtype=torch.float64)
