"""ReAGent against enumeration of all subsets, and against its paper's algorithm written out one walk at a time."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

import whence
from benchmarks.evidence import measure
from slow_reference import target_value
from tiny_models import VOCABULARY, tiny_model, tiny_tokenizer
from whence.core.random import stream
from whence.methods.perturbation.reagent import balanced_masks
from whence.models import bundled
from whence.probe import variants
from whence.probe.probe import ModelProbe

PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40]
PROMPTS, TEXTS = [PROMPT, [8, 40, 9]], [CONTINUATION, [5, 6]]
# Pairs of ids: a token has one other of its tag, so the sampler has no choice.
PAIRS = {"sampler": "pos", "tagger": [k // 2 for k in range(VOCABULARY)]}


def values_of(hf, prompt, continuation, ids, target):
    """The target of every step when the model reads these ids, and the rank of the step's token."""
    inputs, first = {"input_ids": torch.tensor([ids])}, len(prompt) - 1
    if hf.config.is_encoder_decoder:
        inputs = {
            "input_ids": torch.tensor([ids[: len(prompt)]]),
            "decoder_input_ids": torch.tensor([ids[len(prompt) :]]),
        }
        first = 0
    with torch.no_grad():
        logits = hf(**inputs, use_cache=False).logits[0, first:]
    found = [float(target_value(target, z, token)) for z, token in zip(logits, continuation, strict=False)]
    ranks = [int((z > z[token]).sum()) for z, token in zip(logits, continuation, strict=False)]
    return np.array(found), np.array(ranks)


def tokens_of(hf, prompt, continuation):
    """All tokens that are read."""
    start = [hf.config.decoder_start_token_id] if hf.config.is_encoder_decoder else []
    return [*prompt, *start, *continuation[:-1]]


def enumerated(hf, prompt, continuation, *, groups, ratio, target, link):
    """E[g | i replaced] - E[g | i not replaced] over all subsets of features, [step, feature]."""
    ids = tokens_of(hf, prompt, continuation)
    clean, _ = values_of(hf, prompt, continuation, ids, target)
    sums = np.zeros((2, len(continuation), len(groups)))
    weights = np.zeros((2, len(groups)))
    for mask in product((0, 1), repeat=len(groups)):
        row = list(ids)
        for group, replaced in zip(groups, mask, strict=True):
            for place in group:
                row[place] ^= replaced
        change = clean - values_of(hf, prompt, continuation, row, target)[0]
        gain = 2 * np.arctanh(change) if link == "logit" else change
        weight = np.prod([ratio if one else 1 - ratio for one in mask])
        for feature, one in enumerate(mask):
            sums[one, :, feature] += weight * gain
            weights[one, feature] += weight
    return sums[1] / weights[1] - sums[0] / weights[0]


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gpt2", {}),
        ("llama", {"target": "logprob", "replacing_ratio": 0.5}),
        ("t5", {"replacing_ratio": 0.7}),
        ("gpt2", {"segments": [[0, 2], [3, 4]], "link": "identity"}),
    ],
)
def test_means_come_within_their_errors_of_all_subsets(family, options):
    hf = tiny_model(family, dtype=torch.float64)
    model = whence.load(hf)
    # The decoder's first token has no pair: its partner is another special token.
    keep = [len(PROMPT)] if model.encoder_decoder else "none"
    out = model.attribute(PROMPT, CONTINUATION, method="reagent", keep=keep, n_rounds=2048, **PAIRS, **options)
    groups = [[k] for k in range(len(out.tokens)) if not out.tokens[k].fixed]
    if "segments" in options:
        groups = [[0, 2], [1], [3, 4], [5], [6]]
    target = options.get("target", "probability")
    link = options.get("link", "logit" if target == "probability" else "identity")
    expected = enumerated(
        hf, PROMPT, CONTINUATION, groups=groups, ratio=options.get("replacing_ratio", 0.3), target=target, link=link
    )
    free = [not token.fixed for token in out.tokens]
    scores, error = out.scores.values[:, free], out.extras["standard_error"].values[:, free]
    seen = ~np.isnan(scores)
    assert (error[seen] > 0).all()
    distance = np.abs(scores - expected)[seen] / error[seen]
    assert distance.max() < 4
    # The errors are no excuse: they are small beside the scores, and not far too large.
    assert np.abs(expected[seen]).max() > 10 * error[seen].max()
    assert distance.max() > 0.2
    assert out.info["engine"]["link"] == link


def put_in(ids, mask, numbers):
    """Ids with some replaced by any other id that is not special; a number for each says by which."""
    row = []
    for token, replaced, number in zip(ids, mask, numbers, strict=True):
        others = [k for k in range(3, VOCABULARY) if k != token]
        row.append(others[int(number * len(others))] if replaced else token)
    return row


def walked(hf, prompt, continuation, column, *, walks, rounds, every, top, keep, ratio, target, invert=False):
    """Algorithm 1 of the paper for one step: one walk, one round, one row at a time."""
    ids = tokens_of(hf, prompt, continuation)
    clean, _ = values_of(hf, prompt, continuation, ids, target)
    able = len(ids) - len(continuation) + 1 + column
    shares, ended, taken = [], [], []
    for one in range(walks):
        score = stream(3, f"reagent start {one}").random(len(ids))
        stop = False
        for number in range(rounds):
            mask = stream(3, f"reagent masks {one}", number).random(len(ids)) < ratio
            row = put_in(ids, mask, stream(3, f"reagent tokens {one}", number).random(len(ids)))
            change = clean[column] - values_of(hf, prompt, continuation, row, target)[0][column]
            gain = np.log((1 + change) / (1 - change)) if target == "probability" else change
            score = score + np.where(mask, 1, -1) * gain
            if (number + 1) % every:
                continue
            best = set(np.argsort(-score[:able])[: keep if isinstance(keep, int) else int(np.ceil(keep * able))])
            mask = [k < able and (k in best) == invert for k in range(len(ids))]
            row = put_in(ids, mask, stream(3, f"reagent checks {one}", number).random(len(ids)))
            if values_of(hf, prompt, continuation, row, target)[1][column] < top:
                stop = True
                break
        share = np.exp(score[:able] - score[:able].max())
        shares.append(share / share.sum())
        ended.append(stop)
        taken.append(number + 1)
    chosen = [share for share, stop in zip(shares, ended, strict=True) if stop] or shares
    return np.mean(chosen, axis=0), ended, taken


@pytest.mark.parametrize(
    "options",
    [
        {"stop_top_k": 3, "keep_top_n": 2},
        {"stop_top_k": 4, "keep_ratio": 0.3, "check_every": 3, "target": "logprob"},
        {"stop_top_k": 3, "keep_top_n": 1, "invert_keep": True, "target": "logprob"},
        {"stop_top_k": 1, "keep_top_n": 1},
    ],
)
def test_walks_are_those_of_the_paper(options):
    hf = tiny_model("gpt2", dtype=torch.float64)
    out = whence.load(hf).attribute(
        PROMPT, CONTINUATION, method="reagent", estimator="paper", sampler="uniform", keep="none", seed=3,
        n_probes=5, max_rounds=18, replacing_ratio=0.4, **options,
    )  # fmt: skip
    missing, lengths = [], set()
    for column in range(len(CONTINUATION)):
        expected, ended, taken = walked(
            hf, PROMPT, CONTINUATION, column, walks=5, rounds=18, ratio=0.4, every=options.get("check_every", 1),
            top=options["stop_top_k"], keep=options.get("keep_ratio", options.get("keep_top_n")),
            invert=options.get("invert_keep", False), target=options.get("target", "probability"),
        )  # fmt: skip
        able = len(PROMPT) + column
        np.testing.assert_allclose(out.scores.values[column, :able], expected, rtol=1e-5)
        assert np.isnan(out.scores.values[column, able:]).all()
        missing.append(1 - np.mean(ended))
        lengths |= set(taken)
    check = {one.name: one for one in out.checks}["convergence"]
    assert check.value == pytest.approx(max(missing))
    assert check.passed == (max(missing) < 1)
    assert options["stop_top_k"] == 1 or len(lengths) > 3, "walks must end in different blocks, or they show nothing"


def test_walks_lead_where_the_means_do():
    hf = tiny_model("llama", dtype=torch.float64)
    model = whence.load(hf)
    walk = model.attribute(
        PROMPT, CONTINUATION, method="reagent", estimator="paper", keep="none", stop_top_k=1, n_probes=1,
        max_rounds=2000, check_every=2000, **PAIRS,
    )  # fmt: skip
    beta = enumerated(
        hf, PROMPT, CONTINUATION, groups=[[k] for k in range(7)], ratio=0.3, target="probability", link="logit"
    )
    assert {one.name: one.passed for one in walk.checks} == {"convergence": False}
    for step in range(2):
        able = len(PROMPT) + step
        # The drift of a walk is 2 r (1 - r) beta a round, beside a constant that all features share.
        drift = np.log(walk.scores.values[step, :able])
        slope = np.polyfit(beta[step, :able], drift, 1)[0]
        assert slope == pytest.approx(2000 * 2 * 0.3 * 0.7, rel=0.25)
        assert np.corrcoef(beta[step, :able], drift)[0, 1] > 0.95


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom", "t5", "marian"])
@pytest.mark.parametrize(
    "options",
    [{}, {"sampler": "lm"}, {"estimator": "paper", "n_probes": 3, "max_rounds": 5, "keep_top_n": 2, "stop_top_k": 20}],
    ids=["mean", "lm", "paper"],
)
def test_a_batch_gives_what_each_gives_alone(family, options):
    model = whence.load(tiny_model(family), tokenizer=tiny_tokenizer(family))
    asked = (
        {"method": "reagent", "n_rounds": 32, **options}
        if "estimator" not in options
        else {"method": "reagent", **options}
    )
    batch = model.attribute(PROMPTS, TEXTS, **asked)
    for prompt, text, found in zip(PROMPTS, TEXTS, batch, strict=True):
        alone = model.attribute(prompt, text, **asked)
        np.testing.assert_allclose(found.scores.values, alone.scores.values, rtol=1e-4, atol=1e-5)
        errors = [one.extras["standard_error"].values for one in (found, alone)]
        np.testing.assert_allclose(*errors, rtol=1e-3, atol=1e-5)
        defined = ~np.isnan(alone.scores.values)
        assert defined.sum() == sum(len(prompt) + k + model.encoder_decoder for k in range(len(text)))


@pytest.mark.parametrize(
    "options", [{"n_rounds": 24}, {"estimator": "paper", "n_probes": 2, "max_rounds": 9, "keep_top_n": 2}]
)
def test_the_same_seed_gives_the_same_bits_however_rows_are_chunked(options, monkeypatch):
    model = whence.load(tiny_model("gpt2", dtype=torch.float64))
    found = []
    for rows in (1000, 7, 1):
        monkeypatch.setattr(variants, "make_rows", lambda *args, rows=rows, **more: rows)
        found.append(model.attribute(PROMPT, CONTINUATION, method="reagent", seed=4, **options).scores.values)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    other = model.attribute(PROMPT, CONTINUATION, method="reagent", seed=5, **options).scores.values
    assert np.nanmax(np.abs(other - found[0])) > 0


def test_more_steps_change_no_step():
    model = whence.load(tiny_model("gpt2", dtype=torch.float64))
    long = model.attribute(PROMPT, [*CONTINUATION, 4, 9], method="reagent", sampler="uniform")
    short = model.attribute(PROMPT, CONTINUATION, method="reagent", sampler="uniform")
    np.testing.assert_allclose(long.scores.values[:3, :7], short.scores.values, rtol=1e-6, atol=1e-12)


@pytest.fixture
def asked_ids(monkeypatch):
    """All ids that are put into the model, one tensor per request, on the padded token axis."""
    seen = []
    ask = ModelProbe.resample

    def keep(self, examples, ids, **more):
        seen.append(ids)
        return ask(self, examples, ids, **more)

    monkeypatch.setattr(ModelProbe, "resample", keep)
    return seen


@pytest.mark.parametrize(("side", "changed"), [("source", range(5)), ("prefix", range(6, 8))])
def test_one_side_of_an_encoder_decoder(side, changed, asked_ids):
    model = whence.load(tiny_model("marian"))
    both = model.attribute(PROMPT, CONTINUATION, method="reagent")
    out = model.attribute(PROMPT, CONTINUATION, method="reagent", sides=side)
    moved = (asked_ids[1] != asked_ids[1][0]).any(0)
    assert moved.nonzero().flatten().tolist() == list(changed)
    np.testing.assert_array_equal(~np.isnan(out.scores.values[2]), [token.side == side for token in out.tokens])
    assert np.nanmax(np.abs(both.scores.values - out.scores.values)) > 0


def test_a_segment_is_replaced_as_a_whole(asked_ids):
    model = whence.load(tiny_model("gpt2"))
    groups = [[0, 3], [1, 2, 4]]
    model.attribute(PROMPT, CONTINUATION, method="reagent", segments=groups, **PAIRS)
    (ids,) = asked_ids
    changed = ids != ids[0]
    assert 0.1 < changed.float().mean() < 0.5
    for group in groups:
        assert (changed[:, group] == changed[:, group[:1]]).all()
    assert (changed[:, 0] != changed[:, 1]).any()


@pytest.mark.parametrize("estimator", ["mean", "paper"])
def test_fixed_tokens_stay_and_score_nothing(estimator, asked_ids):
    model = whence.load(tiny_model("gpt2"), tokenizer=tiny_tokenizer("gpt2"))
    short = {"n_probes": 2, "max_rounds": 3} if estimator == "paper" else {}
    out = model.attribute([1, 7, 21, 9], CONTINUATION, method="reagent", estimator=estimator, keep=[0, 2], **short)
    for ids in asked_ids:
        assert (ids[:, [0, 2]] == torch.tensor([1, 21])).all()
    assert [token.fixed for token in out.tokens] == [True, False, True, False, False, False]
    assert (out.scores.values[:, [0, 2]] == 0).all()
    if estimator == "paper":
        np.testing.assert_allclose(np.nansum(out.scores.values, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("estimator", ["mean", "paper"])
def test_a_step_that_sees_nothing_that_can_change_scores_nothing(estimator):
    model = whence.load(tiny_model("gpt2"), tokenizer=tiny_tokenizer("gpt2"))
    short = {"n_probes": 1, "max_rounds": 2} if estimator == "paper" else {}
    out = model.attribute([1], [7, 9], method="reagent", estimator=estimator, **short)
    assert out.scores.values[0, 0] == 0
    assert np.isfinite(out.scores.values[1]).all()


def test_a_span_is_one_number():
    model = whence.load(tiny_model("llama", dtype=torch.float64))
    asked = {"method": "reagent", "target": "logprob", "keep": "none"}
    steps = model.attribute(PROMPT, CONTINUATION, **asked)
    span = model.attribute(PROMPT, CONTINUATION, steps=[(0, 3)], **asked)
    # The identity link keeps sums: what all steps see has the sum of their scores.
    np.testing.assert_allclose(span.scores.values[0, :5], steps.scores.values[:, :5].sum(0), rtol=1e-5)
    paper = model.attribute(
        PROMPT, CONTINUATION, steps=[(0, 3)], estimator="paper", n_probes=2, max_rounds=4, keep_top_n=1, stop_top_k=64,
        **asked,
    )  # fmt: skip
    assert paper.verified, "with every token among the most probable, each walk ends at its first check"


def test_the_text_itself_changes_nothing():
    model = whence.load(tiny_model("gpt2"))
    out = model.attribute(PROMPT, CONTINUATION, method="reagent")
    (check,) = out.checks
    assert check.name == "no-op"
    assert check.passed
    assert check.value < 1e-5


def test_one_row_per_round_serves_all_steps(asked_ids):
    model = whence.load(tiny_model("gpt2"))
    out = model.attribute(PROMPTS, TEXTS, method="reagent", n_rounds=20)
    assert [len(ids) for ids in asked_ids] == [2 * 21]
    assert out[0].info["engine"]["rows"] == 42
    assert model.estimate(PROMPT, CONTINUATION, method="reagent", n_rounds=20).forwards == 1 + 21
    # Without an answer no walk ends: this is the most that it can take.
    walks = {"estimator": "paper", "n_probes": 2, "max_rounds": 4, "check_every": 2}
    assert model.estimate(PROMPT, CONTINUATION, method="reagent", **walks).forwards == 1 + 2 * 4 + 2 * 2 * 3


def test_without_a_tokenizer_the_whole_vocabulary_is_drawn_from_and_the_result_says_so():
    model = whence.load(tiny_model("gpt2"))
    out = model.attribute(PROMPT, CONTINUATION, method="reagent")
    same = model.attribute(PROMPT, CONTINUATION, method="reagent", sampler="uniform")
    np.testing.assert_array_equal(out.scores.values, same.scores.values)
    assert out.info["engine"]["sampler"] == "uniform"
    assert "no tokenizer" in out.info["engine"]["sampler_note"]
    named = whence.load(tiny_model("gpt2"), tokenizer=tiny_tokenizer("gpt2"))
    assert named.attribute(PROMPT, CONTINUATION, method="reagent").info["engine"]["sampler"] == "class"


def test_a_result_with_functions_among_its_options_is_saved(tmp_path):
    model = whence.load(tiny_model("gpt2"), tokenizer=tiny_tokenizer("gpt2"))
    out = model.attribute(PROMPT, CONTINUATION, method="reagent", sampler="pos", tagger=str.lower)
    out.save(tmp_path / "out.json")
    found = whence.load_attribution(tmp_path / "out.json")
    assert found.info["method_options"]["tagger"] == "str.lower"


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.9])
def test_masks_are_balanced_and_otherwise_independent(ratio):
    rounds = 20
    masks = torch.stack([balanced_masks(seed, rounds, 5, ratio) for seed in range(200)]).double()
    counts = masks.sum(1)
    assert set(counts.flatten().tolist()) <= {np.floor(rounds * ratio), np.ceil(rounds * ratio)}
    together = torch.einsum("srk,srl->kl", masks, masks) / (200 * rounds)
    expected = torch.full((5, 5), ratio**2).fill_diagonal_(ratio)
    assert (together - expected).abs().max() < 0.02
    assert torch.equal(balanced_masks(1, rounds, 3, ratio), balanced_masks(1, rounds, 5, ratio)[:, :3])


@pytest.mark.parametrize("name", bundled.NAMES)
def test_evidence_ranks_well_above_chance(name):
    model = whence.load(f"whence/{name}")
    examples = list(bundled.examples(name, 3, seed=11))
    found, chance = measure(model, ["reagent", "random"], examples, target="probability", seed=0)
    assert found.top3.mean > chance.top3.mean + 0.2
    assert found.mrr.mean > chance.mrr.mean + 0.15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "median"}, "unknown estimator of reagent: 'median'"),
        ({"sampler": "nltk"}, "unknown sampler of reagent: 'nltk'"),
        ({"link": "log"}, "unknown link of reagent: 'log'"),
        ({"sampler": "lm", "lm_mode": "max"}, "unknown lm_mode"),
        ({"n_rounds": 0}, "n_rounds is a whole number of at least 1, not 0"),
        ({"n_rounds": True}, "n_rounds is a whole number"),
        ({"n_rounds": 6}, "take at least n_rounds=7"),
        ({"n_rounds": 19, "replacing_ratio": 0.9}, "take at least n_rounds=20"),
        ({"replacing_ratio": 1.0}, "replacing_ratio is between 0 and 1, not 1.0"),
        ({"max_rounds": 2000}, "max_rounds belongs to estimator='paper'"),
        ({"n_probes": 4}, "n_probes belongs to estimator='paper'"),
        ({"estimator": "paper", "n_rounds": 9}, "n_rounds belongs to estimator='mean'"),
        ({"estimator": "paper", "keep_ratio": 0.0}, "keep_ratio is a share"),
        ({"estimator": "paper", "keep_ratio": 0.5, "keep_top_n": 2}, "keep_ratio stands in place of keep_top_n"),
        ({"tagger": len}, "tagger belongs to sampler='pos'"),
        ({"mlm": len}, "mlm belongs to sampler='mlm'"),
        ({"lm_mode": "argmax"}, "lm_mode belongs to sampler='lm'"),
        ({"sampler": "pos"}, "sampler='pos' needs tagger="),
        ({"sampler": "mlm"}, "sampler='mlm' needs mlm="),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(whence.WhenceError, match=message):
        whence.ReAGent(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "logit", "link": "logit"}, "Take link='identity'"),
        ({"baseline": "pad"}, "baseline='pad' would be ignored"),
        ({"sampler": "pos", "tagger": [0, 1]}, f"each of the {VOCABULARY} ids"),
        ({"sampler": "pos", "tagger": str.lower}, "no tokenizer"),
        ({"sampler": "mlm", "mlm": lambda pieces, place: []}, "no tokenizer"),
    ],
)
def test_what_a_model_cannot_do_is_refused(options, message):
    model = whence.load(tiny_model("gpt2"))
    with pytest.raises(whence.WhenceError, match=message):
        model.attribute(PROMPT, CONTINUATION, method="reagent", **options)


def test_options_that_say_what_is_the_case_anyway_are_no_mistake():
    whence.ReAGent(max_rounds=int("3000"), lm_mode="sample", keep_ratio=None)
    with pytest.raises(whence.InputError, match="tagger belongs to sampler='pos'"):
        whence.ReAGent(tagger=np.zeros(4))
