"""Leave-one-out of segments: one run of the untraced model on the ids that are left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import whence
from perturbed import GameProbe
from tiny_models import tiny_model

PROMPT, CONTINUATION = [7, 21, 9, 33, 12, 5, 30, 14], [17, 8, 40]
SEGMENTS = [[0, 1], [2, 3], [4, 5, 6]]
SPAN = {"steps": [(0, 3)], "segments": SEGMENTS, "sides": ("source",), "target": "logprob"}


def plain_logprob(hf, ids):
    """The log-probability of the continuation by one run of the untraced model on the ids of a prompt."""
    if hf.config.is_encoder_decoder:
        start = hf.config.decoder_start_token_id
        given = {"input_ids": [ids], "decoder_input_ids": [[start, *CONTINUATION[:-1]]]}
    else:
        given = {"input_ids": [[*ids, *CONTINUATION[:-1]]]}
    with torch.no_grad():
        logits = hf(**{name: torch.tensor(value) for name, value in given.items()}).logits[0, -3:].double()
    return float(logits.log_softmax(-1)[torch.arange(3), CONTINUATION].sum())


@pytest.mark.parametrize("family", ["gpt2", "marian"])
def test_a_segment_is_what_the_answer_loses_without_its_ids(family):
    hf = tiny_model(family)
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method="loo_segments", **SPAN)

    for number, group in enumerate([*SEGMENTS, [7]]):
        rest = [token for k, token in enumerate(PROMPT) if k not in group]
        assert out.scores.values[0, number] == pytest.approx(
            plain_logprob(hf, PROMPT) - plain_logprob(hf, rest), rel=1e-4, abs=1e-5
        )
    assert np.isnan(out.scores.values[0, 4:]).all()
    assert out.verified


def test_it_is_occlusion_with_other_defaults():
    model = whence.load(tiny_model("llama"))
    for removal in ("delete", "replace", "knockout"):
        one, other = (
            model.attribute(PROMPT, CONTINUATION, method=method, removal=removal, **SPAN).scores.values
            for method in ("loo_segments", "occlusion")
        )
        np.testing.assert_array_equal(one, other)
    assert whence.LooSegments().removal == "delete"
    assert whence.LooSegments.defaults == whence.ContextCite.defaults


def test_a_way_of_removing_that_does_not_exist_is_refused():
    with pytest.raises(whence.UnknownNameError, match="unknown way of removing a feature 'erase'"):
        whence.LooSegments(removal="erase")


def slow_refinement(lost, players, levels, keep):
    """The features that are asked about and what is lost without each, one set after the other.

    Args:
        lost: From a set of removed features to a number.
        players: The features that count.
        levels: For each level, the part of each feature.
        keep: How many parts of each level are refined.
    """
    left = set(players)
    for part_of in levels:
        losses = {part: lost({k for k in left if part_of[k] == part}) for part in {part_of[k] for k in left}}
        best = sorted(losses, key=lambda part: -losses[part])[:keep]
        left = {k for k in left if part_of[k] in best}
    return {k: lost({k}) for k in left}


def causal_game(features, seen, seed):
    """Columns of single effects and pairs, each among the features that it sees."""
    numbers = np.random.default_rng(seed)
    single = numbers.normal(size=(len(seen), features))
    pair = numbers.normal(size=(len(seen), features, features))

    def value(kept):
        kept = kept.double().numpy()
        columns = [
            kept[:, :n] @ a[:n] + np.einsum("ri,ij,rj->r", kept[:, :n], b[:n, :n], kept[:, :n])
            for n, a, b in zip(seen, single, pair, strict=True)
        ]
        return torch.from_numpy(np.stack(columns, axis=1))

    return value


@settings(deadline=None, max_examples=60)
@given(data=st.data(), seed=st.integers(0, 10_000))
def test_every_column_refines_as_if_it_were_alone(data, seed):
    features = data.draw(st.integers(1, 7))
    seen = data.draw(st.lists(st.integers(1, features), min_size=1, max_size=3))
    fixed = data.draw(st.sets(st.integers(0, features - 1), max_size=2))
    # The levels need not be nested in each other.
    part = st.lists(st.integers(0, 3), min_size=features, max_size=features)
    levels = data.draw(st.lists(part, min_size=1, max_size=3))
    keep = data.draw(st.integers(1, 3))
    value = causal_game(features, seen, seed)
    probe = GameProbe(value, features, seen, fixed)
    answer = whence.LooSegments(hierarchical={"levels": levels, "keep": keep})(probe)
    for column, n in enumerate(seen):

        def lost(gone, column=column):
            kept = torch.tensor([[k not in gone for k in range(features)]])
            return float((value(torch.ones(1, features)) - value(kept))[0, column])

        players = [k for k in range(n) if k not in fixed]
        expected = slow_refinement(lost, players, levels, keep)
        skipped = [k for k in players if k not in expected]
        assert answer.each["skipped"][0][column] == skipped
        assert np.flatnonzero(~answer.defined[0, column].numpy()).tolist() == skipped
        scores = [expected.get(k, 0.0) for k in range(features)]
        np.testing.assert_allclose(answer.scores[0, column].numpy(), scores, atol=1e-9)
        assert len(answer.each["levels"][0][column]) == len(levels)
        for level in answer.each["levels"][0][column]:
            assert sum(part["kept"] for part in level) == min(keep, len(level))
            for one in level:
                assert one["score"] == pytest.approx(lost(set(one["features"])), abs=1e-9)
    rows = [row.tobytes() for _, masks in probe.asked for row in masks.numpy()]
    assert len(rows) == len(set(rows)) == answer.each["variants"][0] + 1
    assert len(probe.asked) <= len(levels) + 1


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("family", ["gpt2", "marian"])
def test_only_what_lies_in_the_top_coarse_segments_is_asked_about(family, keep):
    hf = tiny_model(family)
    coarse = [[0, 1, 2, 3], [4, 5, 6], [7]]
    fine = [[0, 1], [2, 3], [4], [5, 6], [7]]
    inside = [0, 0, 1, 1, 2]
    clean = plain_logprob(hf, PROMPT)

    def lost(gone):
        return clean - plain_logprob(hf, [token for k, token in enumerate(PROMPT) if k not in gone])

    expected = slow_refinement(
        lambda gone: lost({place for k in gone for place in fine[k]}), range(len(fine)), [inside], keep
    )
    out = whence.load(hf).attribute(
        PROMPT,
        CONTINUATION,
        method="loo_segments",
        hierarchical={"levels": [coarse], "keep": keep},
        **{**SPAN, "segments": fine},
    )
    for number in range(len(fine)):
        if number in expected:
            assert out.scores.values[0, number] == pytest.approx(expected[number], rel=1e-4, abs=1e-5)
        else:
            assert np.isnan(out.scores.values[0, number])
    (level,) = out.info["engine"]["levels"][0]
    for part, members in zip(level, coarse, strict=True):
        assert part["score"] == pytest.approx(lost(set(members)), rel=1e-4, abs=1e-5)
    skipped = {check.name: check.value for check in out.checks}["skipped"]
    assert skipped == pytest.approx(1 - len(expected) / len(fine))
    assert out.verified


@pytest.mark.parametrize("removal", ["delete", "replace", "knockout"])
def test_where_all_segments_are_kept_nothing_is_different(removal):
    model = whence.load(tiny_model("llama"))
    ask = {"method": "loo_segments", "removal": removal, **SPAN, "steps": "generated"}
    plain = model.attribute(PROMPT, CONTINUATION, **ask)
    out = model.attribute(PROMPT, CONTINUATION, hierarchical={"levels": [[[0, 1, 2, 3]]], "keep": 9}, **ask)
    np.testing.assert_allclose(out.scores.values, plain.scores.values, atol=1e-5)
    assert out.info["engine"]["skipped"] == ((),) * 3


def test_levels_have_the_names_of_segments(tmp_path):
    model = whence.load("whence/stories")
    text = "Tom had a red ball. He liked it.\n\nLily had a blue box. It was big.\n\nThe sun was hot. Tom saw"
    ask = {"method": "loo_segments", "segments": "sentence"}
    plain = model.attribute(text, " Lily.", **ask)
    out = model.attribute(text, " Lily.", hierarchical={"levels": "paragraph", "keep": 1}, **ask)
    (level,) = out.info["engine"]["levels"][0]
    kept = [k for part in level if part["kept"] for k in part["features"]]
    assert len(level) == 3
    assert len(kept) == 2
    assert np.flatnonzero(out.scores.defined[0] & (out.scores.values[0] != 0)).tolist() == kept
    np.testing.assert_allclose(out.scores.values[0, kept], plain.scores.values[0, kept], atol=1e-5)
    out.save(tmp_path / "one.json")
    again = whence.load_attribution(tmp_path / "one.json")
    assert again.info["engine"] == out.info["engine"]
    assert again.info["method_options"]["hierarchical"] == {"levels": "paragraph", "keep": 1}


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_batch_refines_each_text_as_alone(family):
    model = whence.load(tiny_model(family))
    prompts, texts = [PROMPT, [30, 8, 19, 4, 26]], [CONTINUATION, [11, 9]]
    ask = {
        "method": "loo_segments",
        "segments": "token",
        "steps": "generated",
        "sides": ("source", "prefix"),
        "hierarchical": {"levels": [[[0, 1, 2], [3, 4]], [[0, 1], [2, 3]]], "keep": 1},
    }
    for one, prompt, text in zip(model.attribute(prompts, texts, **ask), prompts, texts, strict=True):
        alone = model.attribute(prompt, text, **ask)
        np.testing.assert_allclose(one.scores.values, alone.scores.values, atol=1e-5)
        assert one.info["engine"]["skipped"] == alone.info["engine"]["skipped"]


def test_what_a_refinement_costs_is_known_before():
    model = whence.load(tiny_model("gpt2"))
    levels = {"levels": [[[0], [1, 2, 3, 4], [5, 6, 7]]], "keep": 1}
    found = model.estimate(PROMPT, CONTINUATION, method="loo_segments", segments="token", hierarchical=levels)
    # Measuring; nothing removed; three segments, of which the largest is refined.
    assert found.forwards == 1 + 1 + 3 + 4
    out = model.attribute(PROMPT, CONTINUATION, method="loo_segments", segments="token", hierarchical=levels)
    assert out.info["engine"]["variants"] + 2 <= found.forwards


def test_a_layer_is_refined_but_not_several_at_once():
    model = whence.load(tiny_model("gpt2"))
    ask = {"method": "loo_segments", "removal": "replace", "hierarchical": {"levels": [[[0, 1]]], "keep": 1}, **SPAN}
    assert model.attribute(PROMPT, CONTINUATION, layer=0, **ask).verified
    with pytest.raises(whence.InputError, match="one layer at a time"):
        model.attribute(PROMPT, CONTINUATION, layer="all", **ask)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("paragraph", whence.InputError, "is a mapping such as"),
        ({"levels": "paragraph"}, whence.InputError, "the keys levels and keep"),
        ({"levels": "paragraph", "top": 3}, whence.UnknownNameError, "unknown key of hierarchical: 'top'"),
        ({"levels": "paragraf", "keep": 3}, whence.UnknownNameError, "unknown kind of segment 'paragraf'"),
        ({"levels": [], "keep": 3}, whence.InputError, "from coarse to fine"),
        ({"levels": "paragraph", "keep": 0}, whence.InputError, "at least 1"),
        ({"levels": "paragraph", "keep": True}, whence.InputError, "at least 1"),
    ],
)
def test_refinements_that_make_no_sense(given, error, message):
    with pytest.raises(error, match=message):
        whence.LooSegments(hierarchical=given)


def plain_distributions(hf, ids):
    """The next-token distributions of the continuation's steps, by one run of the untraced model."""
    with torch.no_grad():
        if hf.config.is_encoder_decoder:
            read = torch.tensor([[hf.config.decoder_start_token_id, *CONTINUATION[:-1]]])
            logits = hf(input_ids=torch.tensor([ids]), decoder_input_ids=read).logits
        else:
            logits = hf(input_ids=torch.tensor([[*ids, *CONTINUATION[:-1]]])).logits
    return logits[0, -3:].double().softmax(-1).numpy()


@pytest.mark.parametrize("family", ["gpt2", "marian"])
@pytest.mark.parametrize("target", ["jsd", "kl_divergence"])
def test_a_divergence_is_how_far_the_distributions_move_without_the_segment(family, target):
    hf = tiny_model(family)
    model = whence.load(hf)
    given = {**SPAN, "target": target, "steps": [(0, 3), 0, 1, 2]}
    out = model.attribute(PROMPT, CONTINUATION, method="loo_segments", **given)
    full = plain_distributions(hf, PROMPT)
    for number, group in enumerate([*SEGMENTS, [7]]):
        q = plain_distributions(hf, [token for k, token in enumerate(PROMPT) if k not in group])
        # What the target sees first is the run without the segment.
        steps = (q * np.log(q / full)).sum(-1)
        if target == "jsd":
            middle = (full + q) / 2
            steps = ((full * np.log(full / middle)).sum(-1) + (q * np.log(q / middle)).sum(-1)) / 2
            assert (steps <= np.log(2)).all()
        np.testing.assert_allclose(out.scores.values[:, number], [steps.sum(), *steps], rtol=1e-3, atol=1e-6)
    assert (out.source.values[:, :4] >= 0).all()
    assert out.verified
    kept = model.attribute(
        PROMPT,
        CONTINUATION,
        method="loo_segments",
        hierarchical={"levels": [[[0, 1, 2, 3], [4, 5, 6, 7]]], "keep": 1},
        **{**given, "steps": [(0, 3)]},
    )
    known = ~np.isnan(kept.scores.values)
    assert 0 < known.sum() < 4
    np.testing.assert_allclose(kept.scores.values[known], out.scores.values[:1][known], rtol=1e-5, atol=1e-7)


def test_other_methods_need_a_contrast_for_a_divergence():
    model = whence.load(tiny_model("gpt2"))
    with pytest.raises(whence.InputError, match="jsd compares with something"):
        model.attribute(PROMPT, CONTINUATION, method="lime", target="jsd")
