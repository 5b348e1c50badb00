"""Samplers of other tokens: never a special one, never the same, as probable as they say, from given numbers only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import whence
from slow_reference import step_inputs
from tiny_models import tiny_model, tiny_tokenizer
from whence.core.contract import Vocabulary
from whence.core.errors import InputError
from whence.core.random import stream
from whence.methods.perturbation.next_token import inverse
from whence.methods.perturbation.replacements import proposed, tagged, within_classes
from whence.probe.probe import ModelProbe

PROMPTS, TEXTS = [[7, 21, 9, 33, 12], [5, 40]], [[17, 8, 11], [30, 4]]


def words_of(ids, classes, present=None, texts=(), starts=()):
    """A vocabulary with one feature per token."""
    ids = torch.tensor(ids)
    present = torch.ones_like(ids).bool() if present is None else torch.tensor(present)
    feature = torch.where(present, torch.arange(ids.shape[1]), -1)
    names = tuple(f"c{k}" for k in range(max(classes) + 1))
    return Vocabulary(ids, present, feature, torch.tensor(classes), names, tuple(texts), tuple(starts))


@settings(max_examples=150)
@given(
    classes=st.lists(st.integers(-1, 3), min_size=2, max_size=12).filter(lambda c: sum(k >= 0 for k in c) > 1),
    same=st.booleans(),
    data=st.data(),
)
def test_every_member_of_the_class_is_drawn_equally_often_and_nothing_else(classes, same, data):
    token = data.draw(st.integers(0, len(classes) - 1))
    everything = [k for k, one in enumerate(classes) if one >= 0]
    own = [k for k in everything if k == token or classes[k] == classes[token]]
    members = own if token in own and len(own) > 1 else everything
    expected = members if same else [k for k in members if k != token]
    draw = within_classes(words_of([[token]], classes), torch.tensor(classes), allow_same=same)
    # Numbers in the middle of as many equal parts as there are members, and both ends.
    count = len(expected)
    middles = torch.tensor([(k + 0.5) / count for k in range(count)], dtype=torch.float64)[:, None]
    assert sorted(draw(middles)[0, :, 0].tolist()) == expected
    ends = draw(torch.tensor([[0.0], [np.nextafter(1.0, 0.0)]], dtype=torch.float64))[0, :, 0].tolist()
    assert ends == [expected[0], expected[-1]]


def test_numbers_belong_to_tokens_and_not_to_places():
    classes = [-1, *[0] * 50]
    uniform = torch.tensor(stream(0, "test").random((20, 5)))
    alone = within_classes(words_of([[3, 7]], classes), torch.tensor(classes), allow_same=False)(uniform[:, :2])
    padded = words_of([[0, 0, 0, 3, 7], [9, 9, 9, 9, 9]], classes, [[False] * 3 + [True] * 2, [True] * 5])
    batch = within_classes(padded, torch.tensor(classes), allow_same=False)(uniform)
    assert torch.equal(batch[0, :, 3:], alone[0])


def test_an_id_that_only_one_stack_reads_is_replaced_too():
    classes = [0, 0, 0]
    draw = within_classes(words_of([[9]], classes), torch.tensor(classes), allow_same=False)
    found = draw(torch.tensor([[0.1], [0.5], [0.9]]).double())[0, :, 0].tolist()
    assert found == [0, 1, 2]


def test_a_sampler_needs_two_tokens():
    with pytest.raises(InputError, match="1 tokens to draw from"):
        within_classes(words_of([[0]], [-1, 0, -1]), torch.tensor([-1, 0, -1]), allow_same=True)


def test_tags_make_classes():
    words = words_of([[0]], [0, 0, -1, 1], texts=("cat", "ran", "</s>", "dog"), starts=(True,) * 4)
    tags = {"cat": "noun", "dog": "noun", "ran": "verb"}
    assert tagged(words, tags.get).tolist() == [0, 1, -1, 0]
    for table in (["n", "v", "-", "n"], np.array([5, 6, 7, 5]), torch.tensor([5, 6, 7, 5])):
        assert tagged(words, table).tolist() == [0, 1, -1, 0]
    with pytest.raises(InputError, match="each of the 4 ids of the model, not 3"):
        tagged(words, ["n", "v", "-"])
    with pytest.raises(InputError, match="no tokenizer"):
        tagged(words_of([[0]], [0, 0]), str.lower)


@given(
    weights=st.lists(st.sampled_from([0.0, 1e-300, 1e-9, 0.3, 1.0, 7.0]), min_size=1, max_size=8).filter(any),
    number=st.floats(0, 1, exclude_max=True),
)
def test_the_inverse_of_a_distribution_function(weights, number):
    found = int(inverse(torch.tensor(weights, dtype=torch.float64), torch.tensor([number], dtype=torch.float64))[0])
    reached = np.cumsum(weights)
    assert weights[found] > 0
    assert reached[found] >= min(number * reached[-1], reached[-1])
    assert found == 0 or reached[found - 1] <= number * reached[-1]


def words_with_texts(ids):
    texts = ("</s>", "the", "cat", "dog", "ing", "cat")
    starts = (True, True, True, True, False, False)
    return words_of([ids], [-1, 0, 0, 0, 1, 1], texts=texts, starts=starts)


def test_proposals_are_words_of_the_vocabulary_that_begin_where_the_gap_does():
    asked = []

    def propose(pieces, place):
        asked.append(("".join(pieces), place))
        return {"cat": 1.0, " dog": 3.0, "zebra": 9.0, "</s>": 9.0, "the": 0.0} if place < 2 else ["lion"]

    words = words_with_texts([1, 3, 4])
    otherwise = within_classes(words, words.classes, allow_same=False)
    draw = proposed(words, [3], propose, otherwise, allow_same=False)
    assert asked == [(" the doging", 0), (" the doging", 1), (" the doging", 2)]
    uniform = torch.tensor([[0.2, 0.2, 0.2], [0.3, 0.9, 0.9]]).double()
    # At 0 a cat for a quarter of the numbers, else a dog; at 1 the dog is there already; at 2 there is no proposal.
    assert draw(uniform)[0].tolist() == [[2, 2, 5], [3, 2, 5]]
    same = proposed(words, [3], propose, otherwise, allow_same=True)
    assert same(uniform)[0, :, 1].tolist() == [2, 3]


def test_proposals_see_one_stream_at_a_time():
    asked = []
    words = words_with_texts([1, 2, 3, 1])
    otherwise = within_classes(words, words.classes, allow_same=False)
    proposed(words, [3, 1], lambda pieces, place: asked.append(("".join(pieces), place)) or ["cat"], otherwise,
             allow_same=False)  # fmt: skip
    assert asked == [(" the cat dog", 0), (" the cat dog", 1), (" the cat dog", 2), (" the", 0)]


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_proposals_with_impossible_weights_are_refused(weight):
    words = words_with_texts([1])
    otherwise = within_classes(words, words.classes, allow_same=False)
    with pytest.raises(InputError, match="number of at least 0"):
        proposed(words, [1], lambda pieces, place: {"cat": weight}, otherwise, allow_same=False)


def rows_of(monkeypatch, model, prompts, texts, **options):
    """The ids of every row that reagent asks about, padding left out: one list per prompt, the clean row first."""
    seen = []
    ask = ModelProbe.resample

    def keep(self, examples, ids, **more):
        present = self.vocabulary.present
        rows = [[] for _ in present]
        for example, row in zip(examples.tolist(), ids, strict=True):
            rows[example].append(row[present[example]].tolist())
        seen.extend(rows)
        return ask(self, examples, ids, **more)

    with monkeypatch.context() as patch:
        patch.setattr(ModelProbe, "resample", keep)
        model.attribute(prompts, texts, method="reagent", keep="none", n_rounds=12, **options)
    return [np.array(rows) for rows in seen]


def expected_ids(hf, prompt, text, number, allowed, mode):
    """What the model expects at each place of the last stream, by one plain pass per place."""
    offset = 0
    tokens = [*prompt, *text[:-1]]
    if hf.config.is_encoder_decoder:
        offset, tokens = len(prompt), [hf.config.decoder_start_token_id, *text[:-1]]
    found = {}
    for place in range(1, len(tokens)):
        inputs = step_inputs(hf, tokens[:place], [], 0)
        if hf.config.is_encoder_decoder:
            inputs = step_inputs(hf, prompt, tokens[1:place], place - 1)
        with torch.no_grad():
            p = hf(**inputs, use_cache=False).logits[0, -1].double().softmax(-1).numpy()
        p = np.where(allowed & (np.arange(len(p)) != tokens[place]), p, 0)
        reached = np.cumsum(p / p.sum())
        choice = p.argmax() if mode == "argmax" else (reached > number[offset + place]).argmax()
        found[offset + place] = int(choice)
    return found


@pytest.mark.parametrize("mode", ["sample", "argmax"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "marian"])
def test_lm_draws_what_the_model_expects(family, mode, monkeypatch):
    hf = tiny_model(family)
    allowed = np.arange(64) > 2
    rows = rows_of(monkeypatch, whence.load(hf), PROMPTS, TEXTS, sampler="lm", lm_mode=mode)
    for prompt, text, found in zip(PROMPTS, TEXTS, rows, strict=True):
        clean = found[0]
        changed = 0
        for k, row in enumerate(found[1:]):
            number = stream(0, "reagent tokens", k).random(20)
            for place, token in expected_ids(hf, prompt, text, number, allowed, mode).items():
                if row[place] != clean[place]:
                    assert row[place] == token
                    changed += 1
        assert changed > 2
    alone = rows_of(monkeypatch, whence.load(hf), PROMPTS[1], TEXTS[1], sampler="lm", lm_mode=mode)
    np.testing.assert_array_equal(alone[0], rows[1])


@pytest.mark.parametrize("sampler", ["class", "uniform", "lm", "pos"])
def test_special_tokens_are_never_drawn(sampler, monkeypatch):
    model = whence.load(tiny_model("gpt2"), tokenizer=tiny_tokenizer("gpt2"))
    more = {"tagger": len} if sampler == "pos" else {}
    (rows,) = rows_of(monkeypatch, model, [*PROMPTS[0], 1], TEXTS[0], sampler=sampler, **more)
    drawn = rows[1:][rows[1:] != rows[0]]
    assert len(drawn) > 10
    assert drawn.min() > 3


def test_class_keeps_the_kind_of_token(monkeypatch):
    model = whence.load(tiny_model("gpt2"), tokenizer=tiny_tokenizer("gpt2"))
    text = "the cat ran . ? !"
    (rows,) = rows_of(monkeypatch, model, text, [7])
    marks = {model.tokenizer.convert_tokens_to_ids(mark) for mark in ",.?!"}
    assert {token in marks for token in rows[:, 3:].flatten()} == {True}
    assert {token in marks for token in rows[:, :3].flatten()} == {False}
    assert len({int(token) for token in rows[:, 0]}) > 2
