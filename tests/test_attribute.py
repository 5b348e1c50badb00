"""The call itself: inputs, steps, spans, sides, segments, layers, what a result carries, and every refusal."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

import whence
from benchmarks.parity import CALLS
from tiny_models import tiny_model, tiny_tokenizer
from whence.core.contract import Need

PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40, 11]
METHODS = sorted(whence.METHODS)
GRADIENTS = ("input_x_gradient", "integrated_gradients", "saliency")


@pytest.fixture(scope="module")
def llama():
    return whence.load(tiny_model("llama"), tokenizer=tiny_tokenizer("llama"))


@pytest.fixture(scope="module")
def t5():
    return whence.load(tiny_model("t5"), tokenizer=tiny_tokenizer("t5"))


def text_of(model, count=6):
    """Some words of the tiny vocabulary."""
    words = [w for w in model.tokenizer.get_vocab() if w not in model.tokenizer.all_special_tokens]
    return " ".join(sorted(words)[:count])


def directional(method):
    """Whether forward mode can serve a method."""
    made = whence.METHODS[method](**own_options(method))
    return Need.GRADIENTS in made.required and made.directional


def own_options(method):
    """The options of the table's call that belong to the method itself."""
    names = {field.name for field in fields(whence.METHODS[method])}
    return {name: value for name, value in CALLS[method].items() if name in names}


def target_of(method):
    """A target that adds up over steps."""
    targets = whence.METHODS[method].targets
    return "logprob" if targets is None or "logprob" in targets else "logit" if "logit" in targets else None


def summed(scores):
    """The scores without the axes beyond step and token."""
    for axis in scores.names[2:]:
        scores = scores.reduce(axis, "sum")
    return scores


def test_the_call_on_the_model_has_the_arguments_of_the_function():
    from whence.attribute import attribute

    on_model = list(inspect.signature(whence.Model.attribute).parameters.values())[1:]
    function = list(inspect.signature(attribute).parameters.values())[1:]
    assert [(p.name, p.kind, p.default) for p in on_model] == [(p.name, p.kind, p.default) for p in function]


@pytest.mark.parametrize("method", METHODS)
def test_generated_text_is_explained_token_by_token(llama, method):
    options = {} if Need.GRADIENTS in whence.METHODS[method].needs else CALLS[method]
    options = {**options, "steps": "generated", "segments": "token", "sides": ("source", "prefix")}
    options |= {"step_scores": ["probability"], "generate": {"max_new_tokens": 5}}
    out = llama.attribute(text_of(llama), method=method, **options)
    ids = llama.encode(text_of(llama)).ids
    with torch.no_grad():
        made = llama.nn._module.generate(
            input_ids=torch.tensor([ids]), max_new_tokens=5, do_sample=False, pad_token_id=0
        )
    expected = made[0, len(ids) :].tolist()
    assert [token.id for token in out.steps] == expected
    assert [token.id for token in out.tokens] == [*ids, *expected[:-1]]
    assert [token.side for token in out.tokens] == ["source"] * len(ids) + ["prefix"] * (len(expected) - 1)
    assert out.scores.shape[:2] == (len(expected), len(out.tokens))
    assert (out.step_scores["probability"] > 0).all()
    # A path over the words of a random vocabulary has long steps, and says so.
    assert out.verified or method == "discretized_integrated_gradients"
    assert out.info["method"] == method


def test_a_step_cannot_look_at_itself_or_later(llama):
    out = llama.attribute(PROMPT, CONTINUATION)
    expected = np.array([[i >= len(PROMPT) + t for i in range(8)] for t in range(4)])
    np.testing.assert_array_equal(np.isnan(out.scores.values), expected)
    assert np.isfinite(out.scores.values[~expected]).all()


def test_encoder_decoder_has_one_token_axis_with_two_sides(t5):
    out = t5.attribute(PROMPT, CONTINUATION)
    assert [t.id for t in out.tokens] == [*PROMPT, t5.decoder_start, *CONTINUATION[:-1]]
    assert [t.side for t in out.tokens] == ["source"] * 5 + ["prefix"] * 4
    seen = ~np.isnan(out.scores.values)
    assert seen[:, :5].all()
    np.testing.assert_array_equal(seen[:, 5:], np.tril(np.ones((4, 4), dtype=bool)))


def test_steps_select_rows_of_the_whole(llama):
    whole = llama.attribute(PROMPT, CONTINUATION, target="logprob")
    for steps, rows in (
        (2, [2]),
        (-1, [3]),
        (slice(1, 3), [1, 2]),
        ([0, 3], [0, 3]),
        ({"start": 6, "stop": 8}, [1, 2]),
        (range(1, 4), [1, 2, 3]),
    ):
        part = llama.attribute(PROMPT, CONTINUATION, steps=steps, target="logprob")
        np.testing.assert_allclose(part.scores.values, whole.scores.values[rows], rtol=1e-4, atol=1e-6)
        assert [t.id for t in part.steps] == [CONTINUATION[r] for r in rows]


def test_prompt_positions_can_be_explained(llama):
    whole = llama.attribute(PROMPT[:1], [*PROMPT[1:], *CONTINUATION])
    everything = llama.attribute(PROMPT, CONTINUATION, steps="all")
    alone = llama.attribute(PROMPT, steps="prompt")
    np.testing.assert_allclose(everything.scores.values, whole.scores.values, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(alone.scores.values, whole.scores.values[:4, :4], rtol=1e-4, atol=1e-6)
    assert [t.id for t in alone.steps] == PROMPT[1:]


@pytest.mark.parametrize(
    ("method", "mode"),
    [(m, mode) for m in METHODS if whence.METHODS[m].additive for mode in ("reverse", "forward")[: 1 + directional(m)]],
)
def test_a_span_is_the_sum_of_its_steps(llama, t5, method, mode):
    for model in (llama, t5):
        options = {**CALLS[method], "method": method, "target": target_of(method), "segments": "token"}
        options |= {"sides": ("source", "prefix")}
        # Regression on a sample shares a span out otherwise than its steps; on all subsets it does not.
        options |= {"n_samples": 512} if method == "kernel_shap" else {}
        options |= {"mode": mode} if directional(method) else {}
        each = model.attribute(PROMPT, CONTINUATION, steps="generated", **options).scores.values
        span = model.attribute(PROMPT, CONTINUATION, steps=[(0, 3), 3], step_scores=["logprob"], **options)
        each = each.sum(axis=tuple(range(2, each.ndim)))
        span = replace(span, scores=summed(span.scores))
        np.testing.assert_allclose(
            span.scores.values[0],
            np.nansum(each[:3], 0)[: span.scores.shape[1]] + np.where(np.isnan(span.scores.values[0]), np.nan, 0),
            rtol=1e-4,
            atol=1e-5,
        )
        np.testing.assert_allclose(span.scores.values[1], each[3], rtol=1e-4, atol=1e-5)
        assert span.steps[0].ids == tuple(CONTINUATION[:3])


def test_a_span_is_one_backward_pass(llama):
    out = llama.attribute(PROMPT, CONTINUATION, steps=(0, 4), target="logprob", mode="reverse")
    assert out.info["engine"]["vjps"] == 1
    assert out.info["engine"]["rows"] == 1


@pytest.mark.parametrize("method", GRADIENTS)
def test_segments_merge_the_tokens_of_a_feature(llama, method):
    groups = [[0, 1], [2, 4], [3], [5, 6]]
    options = {"method": method, "target": "logprob"}
    tokens = llama.attribute(PROMPT, CONTINUATION, **options).scores.values[3]
    merged = llama.attribute(PROMPT, CONTINUATION, segments=groups, **options)
    assert merged.scores.shape == (4, 5)
    for k, group in enumerate([*groups[:3], groups[3], [7]]):
        part = tokens[group]
        expected = np.sqrt((part**2).sum()) if method == "saliency" else part.sum()
        assert merged.scores.values[3, k] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert merged.tokens[1].ids == (PROMPT[2], PROMPT[4])


def test_forward_mode_is_chosen_when_features_are_fewer_than_steps(llama):
    long = [17, 8, 40, 11, 30, 31, 32]
    auto = llama.attribute(
        PROMPT, long, segments=[[0, 1, 2, 3, 4]], sides="source", method="integrated_gradients", n_steps=4
    )
    assert auto.info["engine"]["mode"] == "forward"
    assert auto.info["engine"]["jvps"] == 4
    reverse = llama.attribute(
        PROMPT,
        long,
        segments=[[0, 1, 2, 3, 4]],
        sides="source",
        mode="reverse",
        method="integrated_gradients",
        n_steps=4,
    )
    np.testing.assert_allclose(auto.scores.values, reverse.scores.values, rtol=1e-4, atol=1e-7)


def test_features_of_a_side_left_out_do_not_count_for_the_mode(llama):
    options = {"segments": [[0, 1], [2, 3, 4]], "sides": "source", "target": "logprob"}
    auto = llama.attribute(PROMPT, CONTINUATION, **options)
    assert auto.info["engine"]["mode"] == "forward"
    assert auto.info["engine"]["jvps"] == 2
    assert auto.verified
    reverse = llama.attribute(PROMPT, CONTINUATION, mode="reverse", strict=True, **options)
    assert "adjoint" in {check.name for check in reverse.checks}
    np.testing.assert_allclose(auto.scores.values, reverse.scores.values, rtol=1e-4, atol=1e-6)


def test_a_side_left_out_keeps_its_true_value_and_is_nan(t5, llama):
    for model in (t5, llama):
        out = model.attribute(PROMPT, CONTINUATION, sides="source", method="integrated_gradients", n_steps=64)
        prefix = [k for k, t in enumerate(out.tokens) if t.side == "prefix"]
        assert np.isnan(out.scores.values[:, prefix]).all()
        assert np.isfinite(out.scores.values[:, :5]).all()
        assert out.verified


def test_special_tokens_keep_their_value_and_score_zero(llama):
    bos = llama.tokenizer.bos_token_id
    out = llama.attribute([bos, *PROMPT], CONTINUATION, method="integrated_gradients", n_steps=4)
    assert out.tokens[0].special
    assert out.tokens[0].fixed
    assert (out.scores.values[:, 0] == 0).all()
    free = llama.attribute([bos, *PROMPT], CONTINUATION, method="integrated_gradients", n_steps=4, keep="none")
    assert not free.tokens[0].fixed
    assert (free.scores.values[:, 0] != 0).any()
    chosen = llama.attribute([bos, *PROMPT], CONTINUATION, method="integrated_gradients", n_steps=4, keep=[2, -1])
    assert [k for k, t in enumerate(chosen.tokens) if t.fixed] == [2, 8]


def test_layers_can_be_numbers_names_lists_and_all(llama):
    by_number = llama.attribute(PROMPT, CONTINUATION, layer=1)
    by_name = llama.attribute(PROMPT, CONTINUATION, layer="blocks.1.resid_post")
    negative = llama.attribute(PROMPT, CONTINUATION, layer=-1)
    both = llama.attribute(PROMPT, CONTINUATION, layer=[0, "blocks.1.resid_post"])
    np.testing.assert_array_equal(by_number.scores.values, by_name.scores.values)
    np.testing.assert_array_equal(by_number.scores.values, negative.scores.values)
    np.testing.assert_allclose(both.scores.values[..., 1], by_name.scores.values, rtol=1e-4, atol=1e-7)
    assert both.scores.axis("layer").labels == ("0", "blocks.1.resid_post")


def test_encoder_layer_covers_the_source_and_decoder_layer_the_prefix(t5):
    encoder = t5.attribute(PROMPT, CONTINUATION, layer="encoder.blocks.0.resid_post")
    decoder = t5.attribute(PROMPT, CONTINUATION, layer="decoder.blocks.0.resid_post")
    assert np.isnan(encoder.scores.values[:, 5:]).all()
    assert np.isfinite(encoder.scores.values[:, :5]).all()
    assert np.isnan(decoder.scores.values[:, :5]).all()


def test_same_call_gives_the_same_numbers_whatever_ran_before(llama):
    first = llama.attribute(PROMPT, CONTINUATION, method="integrated_gradients", n_steps=3)
    for method in METHODS:
        layer = {"layer": 0} if whence.METHODS[method].layer else {}
        layer |= {"removal": "replace"} if layer and method == "loo_segments" else {}
        llama.attribute(PROMPT[::-1], CONTINUATION, method=method, **CALLS[method], **layer)
    again = llama.attribute(PROMPT, CONTINUATION, method="integrated_gradients", n_steps=3)
    assert first.scores.equals(again.scores)


def test_a_list_gives_a_list_and_one_prompt_gives_one(llama):
    text = text_of(llama)
    both = llama.attribute([text, PROMPT], generate={"max_new_tokens": 3}, batch_size=1)
    assert isinstance(both, whence.Attributions)
    assert len(both) == 2
    assert isinstance(llama.attribute(text, generate={"max_new_tokens": 3}), whence.Attribution)
    together = llama.attribute([text, PROMPT], generate={"max_new_tokens": 3}, batch_size=2)
    for a, b in zip(both, together, strict=True):
        assert [t.id for t in a.steps] == [t.id for t in b.steps]
        np.testing.assert_allclose(a.scores.values, b.scores.values, rtol=1e-4, atol=1e-6)


def test_one_list_may_mix_given_and_generated_continuations(llama):
    out = llama.attribute([PROMPT, PROMPT], [CONTINUATION, None], generate={"max_new_tokens": 2})
    assert [t.id for t in out[0].steps] == CONTINUATION
    assert len(out[1].steps) == 2


def test_chat_messages_are_segments_and_their_template_is_kept(llama):
    words = text_of(llama, 4).split()
    chat = [
        {"role": "user", "content": " ".join(words[:2])},
        {"role": "assistant", "content": words[2]},
        {"role": "user", "content": words[3]},
    ]
    out = llama.attribute(chat, CONTINUATION, method="integrated_gradients", n_steps=2)
    named = {t.segment for t in out.tokens}
    assert {"user", "assistant", "user 2"} <= named
    assert all(t.fixed for t in out.tokens if t.segment == "template" and t.side == "source")
    assert not any(t.fixed for t in out.tokens if t.segment == "user")
    messages = llama.attribute(chat, CONTINUATION, segments="message")
    assert " ".join(words[:2]) in [t.text.strip() for t in messages.tokens]


def test_baselines_are_resolved_and_recorded(llama):
    options = {"method": "integrated_gradients", "n_steps": 2}
    records = {}
    for baseline in ("auto", "mean", "zero", "unk", 9, "text:" + text_of(llama, 5)):
        prompt = text_of(llama, 5)
        out = llama.attribute(prompt, CONTINUATION, baseline=baseline, **options)
        records[baseline] = out.info["baseline"][0]
    assert records["auto"]["why"] == "unk token, dedicated"
    assert records["mean"]["kind"] == "mean"
    assert records["zero"]["norm"] == 0
    assert records[9]["id"] == 9
    assert records["unk"]["id"] == llama.tokenizer.unk_token_id
    assert records["text:" + text_of(llama, 5)]["kind"] == "text"


def test_a_parallel_text_that_equals_the_prompt_scores_nothing(llama):
    out = llama.attribute(PROMPT, CONTINUATION, baseline=PROMPT, method="integrated_gradients", n_steps=2)
    assert np.nanmax(np.abs(out.scores.values)) == 0


def test_a_vector_baseline_equals_the_token_it_belongs_to(llama):
    vector = llama.embedding_rows([9])["decoder"]["rows"][0]
    options = {"method": "integrated_gradients", "n_steps": 3}
    by_id = llama.attribute(PROMPT, CONTINUATION, baseline=9, **options)
    by_vector = llama.attribute(PROMPT, CONTINUATION, baseline=vector, **options)
    np.testing.assert_allclose(by_id.scores.values, by_vector.scores.values, rtol=1e-5, atol=1e-8)


def test_attribution_patching_is_exact_to_first_order(llama):
    """With a baseline next to the input, the sum of scores tends to the difference."""
    rows = llama.embedding_rows(PROMPT + CONTINUATION[:-1])["decoder"]["rows"]
    near = rows * (1 - 1e-3)
    out = llama.attribute(PROMPT, CONTINUATION, baseline=near, target="logit", keep="none")
    check = {one.name: one for one in out.checks}["first-order"]
    assert check.passed is None
    assert check.value < 1e-4


def test_hints_name_flat_probabilities(llama):
    assert llama.attribute(PROMPT, CONTINUATION).info["hints"] == ()
    hf = tiny_model("llama")
    hf.lm_head.weight.data.mul_(40)
    certain = whence.load(hf).attribute(PROMPT, CONTINUATION)
    assert "logprob" in certain.info["hints"][0]


def test_estimate_counts_what_the_run_then_does(llama):
    options = {"method": "integrated_gradients", "n_steps": 5, "mode": "reverse"}
    predicted = llama.estimate(PROMPT, CONTINUATION, **options)
    engine = llama.attribute(PROMPT, CONTINUATION, **options).info["engine"]
    assert predicted.derivatives == engine["vjps"]
    assert predicted.mode == engine["mode"]
    assert predicted.peak_bytes > 0
    assert str(predicted).startswith(f"{predicted.forwards} forward rows")
    open_ended = llama.estimate(PROMPT, generate={"max_new_tokens": 7}, mode="reverse")
    assert open_ended.derivatives == 7


@pytest.mark.parametrize(
    ("prompt", "continuation", "options", "error", "message"),
    [
        ("", None, {}, "InputError", "prompt is empty"),
        ("   ", None, {}, "InputError", "prompt is empty"),
        ([], None, {}, "InputError", "prompt is empty"),
        (PROMPT, "", {}, "InputError", "continuation is empty"),
        (PROMPT, [], {}, "InputError", "continuation is empty"),
        (PROMPT, None, {"method": "salience"}, "UnknownNameError", "Did you mean 'saliency'"),
        (PROMPT, None, {"target": "probabilty"}, "UnknownNameError", "Did you mean 'probability'"),
        (PROMPT, None, {"step_scores": ["entropi"]}, "UnknownNameError", "Did you mean 'entropy'"),
        (PROMPT, None, {"layer": "blocks.1.resid_pots"}, "UnknownNameError", "blocks.1.resid_post"),
        (PROMPT, None, {"layer": 7}, "InputError", "there is no block 7"),
        (PROMPT, None, {"layer": "blocks.0.attn.pattern"}, "UnsupportedError", "one vector per position"),
        (PROMPT, None, {"layer": "unembed"}, "UnsupportedError", "is the output itself"),
        (PROMPT, None, {"method": "integrated_gradients", "steps_n": 3}, "UnknownNameError", "n_steps"),
        ([[5], [6]], [[7]], {}, "InputError", "2 prompts but 1 continuations"),
        ([[5], [6]], "text", {}, "InputError", "one for each"),
        ([5, 64], None, {}, "InputError", "id 64 at place 1"),
        ([5, -1], None, {}, "InputError", "id -1 at place 1"),
        (PROMPT, [999], {}, "InputError", "continuation: id 999"),
        (PROMPT, CONTINUATION, {"generate": {"max_new_tokens": 3}}, "InputError", "continuation is given"),
        (PROMPT, CONTINUATION, {"steps": 9}, "InputError", "no step 9"),
        (PROMPT, CONTINUATION, {"steps": []}, "InputError", "selects no token"),
        (PROMPT, CONTINUATION, {"steps": (0, 2), "target": "probability"}, "InputError", "target='logprob'"),
        (PROMPT, CONTINUATION, {"steps": [1, 1], "target": "logit"}, "InputError", "twice"),
        (PROMPT, CONTINUATION, {"sides": ("left",)}, "InputError", "sides is"),
        (PROMPT, CONTINUATION, {"mode": "sideways"}, "InputError", "mode is one of"),
        (PROMPT, CONTINUATION, {"segments": "syllable"}, "UnknownNameError", "kind of segment"),
        (PROMPT, CONTINUATION, {"method": "saliency", "baseline": "mean"}, "InputError", "would be ignored"),
        (PROMPT, CONTINUATION, {"method": "saliency", "mode": "forward"}, "UnsupportedError", "whole gradient"),
        (PROMPT, CONTINUATION, {"method": "saliency", "norm": "l3"}, "UnknownNameError", "norm of saliency"),
        (PROMPT, CONTINUATION, {"method": "integrated_gradients", "baseline": "mask"}, "InputError", "no mask token"),
        (PROMPT, CONTINUATION, {"method": "integrated_gradients", "baseline": [4, 5]}, "InputError", "2 tokens"),
        (PROMPT, CONTINUATION, {"method": "integrated_gradients", "baseline": 400}, "InputError", "id 400"),
        (PROMPT, CONTINUATION, {"method": whence.Saliency(), "norm": "l1"}, "InputError", "beside a method object"),
        (PROMPT, CONTINUATION, {"batch_size": 0}, "InputError", "batch_size"),
        (
            PROMPT,
            CONTINUATION,
            {"contrast": {"continuation": [5]}},
            "InputError",
            "nothing that was asked for compares",
        ),
        (PROMPT, CONTINUATION, {"target": "contrast_prob"}, "InputError", "there is no contrast"),
        (PROMPT, CONTINUATION, {"target": "jsd", "contrast": [5]}, "InputError", "evaluate='own'"),
        (PROMPT, CONTINUATION, {"target": "entropy:bass=2"}, "UnknownNameError", "base"),
        (PROMPT, CONTINUATION, {"target": "entropy", "bass": 2}, "UnknownNameError", "base"),
        (PROMPT, CONTINUATION, {"step_scores": ["logit", "logit"]}, "InputError", "asked for twice"),
        (3.5, None, {}, "InputError", "a prompt is"),
        (PROMPT, 3.5, {}, "InputError", "a continuation is"),
        (PROMPT, None, {"generate": {"num_return_sequences": 2, "num_beams": 2}}, "InputError", "one continuation"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(llama, prompt, continuation, options, error, message):
    with pytest.raises(getattr(whence, error), match=message):
        llama.attribute(prompt, continuation, **options)


def test_a_model_without_a_tokenizer_takes_ids_and_says_so_for_text():
    bare = whence.load(tiny_model("llama"))
    assert bare.attribute(PROMPT, CONTINUATION).scores.shape == (4, 8)
    with pytest.raises(whence.ModelError, match=r"whence\.load\(model, tokenizer=\.\.\.\)"):
        bare.attribute("some text")


def test_weights_that_are_not_numbers_are_named():
    hf = tiny_model("llama")
    hf.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(whence.ModelError, match=r"model\.layers\.1\.mlp\.down_proj\.weight"):
        whence.load(hf).attribute(PROMPT, CONTINUATION)


def test_prompt_steps_of_an_encoder_decoder_are_refused(t5):
    with pytest.raises(whence.InputError, match="encoder reads its source at once"):
        t5.attribute(PROMPT, CONTINUATION, steps="prompt")


def test_a_place_that_lacks_what_a_method_needs_is_named(llama):
    from dataclasses import replace

    closed = replace(llama, provides=frozenset({Need.LOGITS, Need.EMBEDDINGS}), place="closed")
    with pytest.raises(whence.UnsupportedError, match=r"saliency needs gradients, which .* at place 'closed'"):
        closed.attribute(PROMPT, CONTINUATION, method="saliency")
