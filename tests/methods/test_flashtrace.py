"""FlashTrace against loops over heads and tokens with the weights as they are; spans, hops, options."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import whence
from slow_parts import Terms, decomposed, step_rows, widths_of
from slow_routes import block_terms, flow_maps, span_shares
from tiny_models import tiny_model, tiny_tokenizer

PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40, 5, 30]
SLOW = ("gpt2", "gemma2", "t5", "marian")


def slow_trace(found, widths, weights, threshold=0.0):
    """The edges into a weighted sum of rows, over all blocks; weights by row of the decoder."""
    encoder = flow_maps(found, widths, threshold)["encoder"]
    layers = sorted({one.layer for one in found if one.stack == "decoder"})
    scores = torch.zeros(sum(widths)).double()
    for layer in layers:
        modules = [one for one in found if (one.stack, one.layer) == ("decoder", layer)]
        rows = {i: block_terms(modules, i) for i in weights}
        sums = [
            Terms(
                *(
                    sum(weights[i] * getattr(rows[i][k], name) for i in weights)
                    for name in ("parts", "residual", "bias", "total")
                )
            )
            for k in range(len(modules))
        ]
        keys, _ = span_shares(sums, threshold)
        scores[-widths[-1] :] += keys[0]
        if len(keys) > 1:
            scores += keys[1] @ encoder
    return scores


def slow_flashtrace(hf, span, hops, reasoning=None, ignored=(), observed=None):
    """Scores of one span, and the trace of every hop; rows and places counted one by one.

    Args:
        hf: The untraced model.
        span: First step and the one after the last.
        hops: How often the reasoning is traced again.
        reasoning: The same of the steps that are passed on.
        ignored: Places that get nothing.
        observed: Places that have scores; None is all but reasoning and span.
    """
    found, _, _ = decomposed(hf, PROMPT, CONTINUATION)
    widths = widths_of(hf, PROMPT, CONTINUATION)
    rows = step_rows(hf, PROMPT, CONTINUATION)
    start = sum(widths) - widths[-1]
    place = {step: start + rows[step] + 1 for step in range(len(CONTINUATION))}
    before = [step for step in range(span[0]) if hops and (reasoning is None or step in range(*reasoning))]
    hidden = {place[step] for step in [*before, *range(*span)]}
    if observed is not None:
        hidden = set(range(sum(widths))) - set(observed)
    weights = {rows[step]: 1 / (span[1] - span[0]) for step in range(*span)}
    scores, share, traces = torch.zeros(sum(widths)).double(), 1.0, []
    for _ in range(hops + 1):
        trace = slow_trace(found, widths, weights)
        trace[list(ignored)] = 0
        traces.append(trace)
        for k in range(sum(widths)):
            scores[k] += share * trace[k] * (k not in hidden)
        mass = sum(float(trace[place[step]]) for step in before)
        if not mass:
            break
        share *= mass / float(trace.sum())
        weights = {rows[step]: float(trace[place[step]]) / mass for step in before}
    return scores, traces


@pytest.mark.parametrize("hops", [0, 1, 3])
@pytest.mark.parametrize("family", SLOW)
def test_a_span_equals_loops_over_heads_and_tokens(family, hops):
    hf = tiny_model(family, dtype=torch.float64)
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method="flashtrace", hops=hops, steps=(3, 5))
    expected, traces = slow_flashtrace(hf, (3, 5), hops)
    np.testing.assert_allclose(np.nan_to_num(out.scores.values[0]), expected, atol=1e-6)
    assert list(out.extras) == [f"hop_{hop}" for hop in range(hops + 1)]
    for values, trace in zip(out.extras.values(), traces, strict=True):
        np.testing.assert_allclose(np.nan_to_num(values.values[0]), trace, atol=1e-6)
    assert out.verified


def test_every_step_has_its_own_reasoning():
    hf = tiny_model("gpt2", dtype=torch.float64)
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method="flashtrace")
    for step in range(len(CONTINUATION)):
        expected, _ = slow_flashtrace(hf, (step, step + 1), 1)
        np.testing.assert_allclose(np.nan_to_num(out.scores.values[step]), expected, atol=1e-6)
    # All that was generated before a step is passed on; only the prompt has scores.
    assert np.nanmax(out.prefix.values) == 0


@pytest.mark.parametrize("steps", [None, (1, 2), -1])
@pytest.mark.parametrize("family", ["gpt2", "llama", "falcon", "t5", "marian"])
def test_a_span_of_one_step_without_hops_is_the_direct_flow(family, steps):
    model = whence.load(tiny_model(family))
    trace = model.attribute(PROMPT, CONTINUATION, method="flashtrace", hops=0, steps=steps)
    flow = model.attribute(PROMPT, CONTINUATION, method="information_flow", compose="direct", steps=steps)
    np.testing.assert_allclose(trace.scores.values, flow.scores.values, atol=1e-6)


def test_a_span_is_not_the_sum_of_its_steps():
    model = whence.load(tiny_model("gpt2"))
    span = model.attribute(PROMPT, CONTINUATION, method="flashtrace", hops=0, steps=(0, 3)).scores.values
    steps = model.attribute(PROMPT, CONTINUATION, method="flashtrace", hops=0, steps=slice(0, 3)).scores.values
    assert np.abs(span[0, :5] - np.nan_to_num(steps).mean(0)[:5]).max() > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_part_of_the_text_can_be_the_reasoning(family):
    hf = tiny_model(family, dtype=torch.float64)
    options = {"reasoning": (1, 3), "hops": 2}
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method="flashtrace", steps=-1, **options)
    expected, _ = slow_flashtrace(hf, (4, 5), 2, reasoning=(1, 3))
    np.testing.assert_allclose(np.nan_to_num(out.scores.values[0]), expected, atol=1e-6)
    places = np.arange(len(out.tokens))[-len(CONTINUATION) :] if family == "t5" else None
    passed = out.scores.values[0][places[2:4]] if places is not None else out.scores.values[0][6:8]
    np.testing.assert_array_equal(passed, 0)


@pytest.mark.parametrize(
    ("observe", "places"),
    [
        ("all", lambda sources, count: range(count)),
        ("source", lambda sources, count: range(sources)),
        ("prefix", lambda sources, count: range(sources, count)),
        ((1, 4), lambda sources, count: range(1, 4)),
        # Over the end of the prompt, into the reasoning and the span, and over the end of the text.
        ((3, 90), lambda sources, count: range(3, count)),
    ],
)
@pytest.mark.parametrize("family", ["gpt2", "marian"])
def test_a_region_has_the_scores(family, observe, places):
    hf = tiny_model(family, dtype=torch.float64)
    out = whence.load(hf).attribute(
        PROMPT, CONTINUATION, method="flashtrace", hops=2, reasoning=(0, 2), observe=observe, steps=(3, 5)
    )
    chosen = places(len(PROMPT), len(out.tokens))
    expected, traces = slow_flashtrace(hf, (3, 5), 2, reasoning=(0, 2), observed=chosen)
    np.testing.assert_allclose(np.nan_to_num(out.scores.values[0]), expected, atol=1e-6)
    np.testing.assert_allclose(np.nan_to_num(out.extras["hop_1"].values[0]), traces[1], atol=1e-6)
    outside = [k for k in range(len(out.tokens)) if k not in chosen]
    assert np.nan_to_num(out.scores.values[0][outside]).max(initial=0) == 0
    assert out.verified


@settings(deadline=None, max_examples=25)
@given(
    ends=st.tuples(st.integers(0, 8), st.integers(1, 12)).filter(lambda ends: ends[0] < ends[1]), hops=st.integers(0, 2)
)
def test_scores_of_a_region_are_those_of_all_tokens_there(model, ends, hops):
    ask = {"method": "flashtrace", "hops": hops}
    everywhere = model.attribute(PROMPT, CONTINUATION, observe="all", **ask).scores.values
    out = model.attribute(PROMPT, CONTINUATION, observe=ends, **ask).scores.values
    inside = (np.arange(9) >= ends[0]) & (np.arange(9) < ends[1])
    np.testing.assert_allclose(out, np.where(np.isnan(everywhere) | inside, everywhere, 0), atol=1e-6)


@pytest.fixture(scope="module")
def model():
    return whence.load(tiny_model("llama"))


@pytest.mark.parametrize("observe", ["all", "source", (2, 6)])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_region_is_counted_in_every_text_of_a_batch(family, observe):
    model = whence.load(tiny_model(family))
    prompts, texts = [PROMPT, [30, 8]], [CONTINUATION, [11, 9, 4]]
    ask = {"method": "flashtrace", "observe": observe}
    for one, prompt, text in zip(model.attribute(prompts, texts, **ask), prompts, texts, strict=True):
        alone = model.attribute(prompt, text, **ask)
        np.testing.assert_allclose(one.scores.values, alone.scores.values, atol=1e-5)


def test_a_region_without_tokens_is_refused():
    model = whence.load(tiny_model("gpt2"))
    with pytest.raises(whence.InputError, match=r"holds no token of a text of 4 tokens"):
        model.attribute([PROMPT, [30, 8]], [CONTINUATION, [11, 9, 4]], method="flashtrace", observe=(5, 9))


def test_tokens_that_are_ignored_get_and_pass_on_nothing():
    hf = tiny_model("gpt2", dtype=torch.float64)
    tokenizer = tiny_tokenizer("gpt2")
    words = tokenizer.convert_ids_to_tokens([PROMPT[1], CONTINUATION[0]])
    out = whence.load(hf, tokenizer=tokenizer).attribute(
        PROMPT, CONTINUATION, method="flashtrace", steps=-1, ignore_tokens=[f" {words[0]}", words[1]]
    )
    expected, _ = slow_flashtrace(hf, (4, 5), 1, ignored=(1, 5))
    np.testing.assert_allclose(np.nan_to_num(out.scores.values[0]), expected, atol=1e-6)
    assert out.scores.values[0, 1] == out.extras["hop_0"].values[0, 5] == 0


def test_scores_can_be_shares():
    model = whence.load(tiny_model("llama"))
    plain = model.attribute(PROMPT, CONTINUATION, method="flashtrace").scores.values
    shares = model.attribute(PROMPT, CONTINUATION, method="flashtrace", normalize=True).scores.values
    np.testing.assert_allclose(shares, plain / np.nansum(plain, axis=1, keepdims=True), atol=1e-6)


def test_a_threshold_drops_edges():
    model = whence.load(tiny_model("gpt2"))
    trace = model.attribute(PROMPT, CONTINUATION, method="flashtrace", hops=0, threshold=0.03)
    flow = model.attribute(PROMPT, CONTINUATION, method="information_flow", compose="direct", threshold=0.03)
    np.testing.assert_allclose(trace.scores.values, flow.scores.values, atol=1e-6)


@pytest.mark.parametrize("steps", [None, "whole", [(1, 3), 0]])
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "t5", "marian"])
def test_a_batch_is_each_alone(family, steps):
    model = whence.load(tiny_model(family))
    prompts, texts = [PROMPT, [30, 8]], [CONTINUATION, [11, 9, 4]]
    ask = {"method": "flashtrace", "hops": 2, "steps": steps}
    for one, prompt, text in zip(model.attribute(prompts, texts, **ask), prompts, texts, strict=True):
        alone = model.attribute(prompt, text, **ask)
        np.testing.assert_allclose(one.scores.values, alone.scores.values, atol=1e-5)
        for name, scores in alone.extras.items():
            np.testing.assert_allclose(one.extras[name].values, scores.values, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hops": 6}, "from 0 to 5"),
        ({"hops": 1.0}, "whole number"),
        ({"threshold": -0.1}, "from 0 to below 1"),
        ({"hops": 0, "reasoning": (0, 1)}, "nothing is passed on"),
        ({"reasoning": (2, 1)}, r"\(start, stop\)"),
        ({"reasoning": 3}, r"\(start, stop\)"),
        ({"observe": (2, 2)}, r"observe is \(start, stop\) among all tokens"),
        ({"observe": 4}, r"observe is \(start, stop\) among all tokens"),
        ({"ignore_tokens": ","}, "list of texts"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(whence.InputError, match=message):
        whence.load(tiny_model("gpt2")).attribute(PROMPT, CONTINUATION, method="flashtrace", **options)


def test_a_region_that_does_not_exist_is_refused():
    with pytest.raises(whence.UnknownNameError, match=r"region to observe: 'sources'\. Did you mean 'source'"):
        whence.FlashTrace(observe="sources")
