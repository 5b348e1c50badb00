"""Occlusion against closed forms, and against the untraced model with one window replaced at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from perturbed import GameProbe, mean_vectors, pairs, without
from slow_reference import outputs_replaced
from tiny_models import tiny_model
from whence.methods.perturbation.leave_out import windows

FAMILIES = ["gpt2", "llama", "gemma2", "bloom", "falcon", "mpt", "t5", "marian"]
PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40]


def test_a_feature_loses_its_own_effect_and_that_of_its_pairs():
    a, b, value = pairs(6)
    probe = GameProbe(value, 6, fixed=[2])
    found = whence.Occlusion()(probe)
    expected = a + b.sum(0) + b.sum(1)
    expected[2] = 0
    np.testing.assert_allclose(found.scores[0, 0], expected, rtol=1e-12)
    assert found.each["inert"] == [[2]]
    assert len(probe.asked) == 1
    assert len(probe.asked[0][1]) == 5 + 1


@pytest.mark.parametrize(
    ("features", "window", "stride", "expected"),
    [
        (5, 2, 1, [[0, 1], [1, 2], [2, 3], [3, 4]]),
        (5, 2, 2, [[0, 1], [2, 3], [4]]),
        (6, 3, 2, [[0, 1, 2], [2, 3, 4], [4, 5]]),
        (5, 3, 2, [[0, 1, 2], [2, 3, 4]]),
        (2, 3, 1, [[0, 1]]),
    ],
)
def test_windows_cover_every_feature(features, window, stride, expected):
    found = windows(np.zeros(features, dtype=int), window, stride)
    assert [np.flatnonzero(row).tolist() for row in found] == expected


def test_windows_stay_within_a_stream():
    found = windows(np.array([0, 0, 0, 1, 1, -1]), 2, 2)
    assert [np.flatnonzero(row).tolist() for row in found] == [[0, 1], [2], [3, 4]]


@pytest.mark.parametrize("share", ["mean", "split"])
@pytest.mark.parametrize(("window", "stride"), [(2, 1), (3, 2), (2, 2)])
def test_a_window_is_shared_out(share, window, stride):
    _, _, value = pairs(6, seed=4)
    # The first column sees four features: nothing is shared out to those that it does not see.
    probe = GameProbe(lambda kept: torch.cat([value(kept * (torch.arange(6) < 4)), value(kept)], 1), 6, seen=[4, 6])
    found = whence.Occlusion(window=window, stride=stride, window_share=share)(probe).scores[0]
    starts = {(2, 1): range(5), (3, 2): (0, 2, 4), (2, 2): (0, 2, 4)}[window, stride]
    for column, seen in enumerate((4, 6)):
        for feature in range(seen):
            shares = []
            for start in starts:
                members = [k for k in range(start, min(start + window, 6)) if k < seen]
                if feature in members:
                    kept = torch.ones(2, 6, dtype=torch.float64)
                    kept[1, start : start + window] = 0
                    lost = torch.diff(-probe.value(kept)[:, column]).item()
                    shares.append(lost / (len(members) if share == "split" else 1))
            assert found[column, feature] == pytest.approx(np.mean(shares), rel=1e-9)
        assert (found[column, seen:] == 0).all()


def expected_scores(hf, windows, vectors):
    """Scores by one run of the untraced model for each window and step."""
    clean = without(hf, PROMPT, CONTINUATION, set(), vectors)
    tokens = len(PROMPT) + len(CONTINUATION) - (0 if hf.config.is_encoder_decoder else 1)
    total, count = np.zeros((3, tokens)), np.zeros(tokens)
    for members in windows:
        lost = clean - without(hf, PROMPT, CONTINUATION, set(members), vectors)
        total[:, members] += lost[:, None]
        count[members] += 1
    scores = total / np.maximum(count, 1)
    first = len(PROMPT)
    for step in range(3):
        scores[step, first + step + (1 if hf.config.is_encoder_decoder else 0) :] = np.nan
    return scores


@pytest.mark.parametrize("family", FAMILIES)
def test_occlusion_is_one_run_without_each_token(family):
    hf = tiny_model(family, dtype=torch.float64)
    model = whence.load(hf)
    tokens = 8 if model.encoder_decoder else 7
    # What a decoder starts with is fixed.
    kept = [5] if model.encoder_decoder else []
    singles = [[k] for k in range(tokens) if k not in kept]
    out = model.attribute(PROMPT, CONTINUATION, method="occlusion", target="logprob", baseline="mean")
    expected = expected_scores(hf, singles, mean_vectors(model))
    np.testing.assert_allclose(out.scores.values, expected, rtol=1e-5, atol=1e-7)
    assert out.verified
    assert [k for k, token in enumerate(out.tokens) if token.fixed] == kept
    assert (expected[:, kept] == 0).all()


@pytest.mark.parametrize(
    ("family", "members"),
    [("gpt2", [[0, 1, 2], [2, 3, 4], [4, 5, 6]]), ("t5", [[0, 1, 2], [2, 3, 4], [6, 7]])],
)
def test_windows_are_one_run_each(family, members):
    hf = tiny_model(family, dtype=torch.float64)
    model = whence.load(hf)
    options = {"method": "occlusion", "window": 3, "stride": 2, "baseline": "mean", "target": "logprob"}
    out = model.attribute(PROMPT, CONTINUATION, **options)
    expected = expected_scores(hf, members, mean_vectors(model))
    if model.encoder_decoder:
        # The window over the decoder's tokens begins with the fixed one.
        expected[:, 5] = 0
    np.testing.assert_allclose(out.scores.values, expected, rtol=1e-5, atol=1e-7)


def test_segments_are_removed_as_a_whole():
    hf = tiny_model("llama", dtype=torch.float64)
    model = whence.load(hf)
    groups = [[0, 3], [1, 2], [4], [5, 6]]
    out = model.attribute(
        PROMPT, CONTINUATION, method="occlusion", segments=groups, baseline="mean", target="probability"
    )
    vectors = mean_vectors(model)
    clean = without(hf, PROMPT, CONTINUATION, set(), vectors, "probability")
    for number, members in enumerate(groups):
        lost = clean - without(hf, PROMPT, CONTINUATION, set(members), vectors, "probability")
        lost[[step for step in range(3) if members[0] >= 5 + step]] = np.nan
        np.testing.assert_allclose(out.scores.values[:, number], lost, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", ["gpt2", "bart"])
def test_at_a_layer_the_site_is_replaced(family):
    hf = tiny_model(family, dtype=torch.float64)
    model = whence.load(hf)
    stack = "decoder." if model.encoder_decoder else ""
    site = model.architecture.site(f"{stack}blocks.1.resid_post")
    block = hf.get_submodule(site.spec["path"])
    out = model.attribute(PROMPT, CONTINUATION, method="occlusion", layer=site.name, baseline="mean", target="logit")
    vectors = mean_vectors(model)
    first = len(PROMPT) if model.encoder_decoder else 0
    everything, kept = set(range(8)), {5} if model.encoder_decoder else set()
    runs = {}
    for name, gone in (("clean", set()), ("low", everything - kept)):
        seen = []
        hook = block.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output))
        runs[name] = without(hf, PROMPT, CONTINUATION, gone, vectors, "logit"), seen
        hook.remove()
    for step in range(3):
        low = runs["low"][1][step]
        low = low[0] if isinstance(low, tuple) else low
        for place in range(low.shape[1]):

            def put(value, place=place, low=low):
                if value.shape[1] != low.shape[1]:
                    return value
                return torch.where((torch.arange(value.shape[1]) == place)[:, None], low, value)

            with outputs_replaced([(block, put)]):
                value = without(hf, PROMPT, CONTINUATION, set(), vectors, "logit")[step]
            expected = runs["clean"][0][step] - value
            assert out.scores.values[step, first + place] == pytest.approx(expected, rel=1e-5, abs=1e-7)
    if model.encoder_decoder:
        assert np.isnan(out.scores.values[:, :5]).all()


def test_several_layers_have_an_axis():
    model = whence.load(tiny_model("gpt2"))
    options = {"method": "occlusion", "baseline": "mean", "target": "logprob"}
    both = model.attribute(PROMPT, CONTINUATION, layer=[1, 0], **options)
    assert both.scores.names == ("step", "token", "layer")
    assert both.scores.axes[2].labels == ("1", "0")
    for number, layer in enumerate((1, 0)):
        one = model.attribute(PROMPT, CONTINUATION, layer=layer, **options)
        np.testing.assert_allclose(both.scores.values[..., number], one.scores.values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("removal", ["delete", "knockout"])
def test_deleting_and_knocking_out_agree_with_the_probe(removal):
    # The rows themselves are held against the untraced model in tests/probe.
    model = whence.load(tiny_model("gpt2"))
    out = model.attribute(PROMPT, CONTINUATION, method="occlusion", removal=removal, target="logprob")
    assert out.info["baseline"] is None
    assert out.info["engine"]["removal"] == removal
    defined = ~np.isnan(out.scores.values)
    rows, columns = np.indices(defined.shape)
    # A step is read from position 4 + step, whose own stream cannot be cut.
    last = 4 + rows - (removal == "knockout")
    np.testing.assert_array_equal(defined, columns <= last)
    assert np.abs(out.scores.values[defined]).min() > 1e-6


def test_a_deleted_token_is_an_id_less():
    hf = tiny_model("gpt2", dtype=torch.float64)
    out = whence.load(hf).attribute(
        PROMPT, CONTINUATION[:1], method="occlusion", removal="delete", target="logit", batch_size=1
    )
    with torch.no_grad():
        for place in range(5):
            ids = [PROMPT, PROMPT[:place] + PROMPT[place + 1 :]]
            high, low = (float(hf(torch.tensor([one])).logits[0, -1, CONTINUATION[0]]) for one in ids)
            assert out.scores.values[0, place] == pytest.approx(high - low, rel=1e-5)


def test_a_token_at_the_baseline_scores_zero_and_is_named():
    model = whence.load(tiny_model("gpt2"))
    out = model.attribute(PROMPT, CONTINUATION, method="occlusion", baseline=PROMPT[3])
    assert (out.scores.values[:, 3] == 0).all()
    assert out.info["engine"]["inert"] == (3,)
    assert out.info["engine"]["variants"] == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"removal": "erase"}, "unknown way of removing a feature 'erase'"),
        ({"window": 0}, "window=0: a window has at least one feature"),
        ({"window": 2, "stride": 3}, "stride=3 and window=2"),
        ({"stride": 0}, "stride=0"),
        ({"window_share": "half"}, "unknown window_share of occlusion: 'half'"),
        ({"knockout_heads": [0]}, "belong to removal='knockout'"),
        ({"knockout_layers": [0], "removal": "delete"}, "belong to removal='knockout'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(whence.WhenceError, match=message):
        whence.Occlusion(**options)


def test_a_baseline_beside_deletion_would_be_ignored():
    model = whence.load(tiny_model("gpt2"))
    with pytest.raises(whence.InputError, match="occlusion replaces nothing with these options, so baseline='mean'"):
        model.attribute(PROMPT, CONTINUATION, method="occlusion", removal="delete", baseline="mean")
