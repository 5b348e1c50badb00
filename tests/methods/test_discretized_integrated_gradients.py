"""discretized_integrated_gradients against a search by loops over the whole vocabulary, and its identity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from slow_draws import kept_start, placed, relative, slope, steps_of
from slow_reference import embedding_modules
from tiny_models import BOS, EOS, PAD, tiny_model
from whence.probe.words import along_words, stream_ways

PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40]
METHOD = "discretized_integrated_gradients"
SPECIAL = {PAD, BOS, EOS}


def moved(word, last, goal, count):
    """A word with the dimensions that are not on the way from ``last`` to ``goal`` put a step further on it."""
    made = word.clone()
    for k in range(len(word)):
        low, high = sorted([float(last[k]), float(goal[k])])
        if not low <= float(word[k]) <= high:
            made[k] = last[k] - (last[k] - goal[k]) / count
    return made


def chain_of(rows, start, goal, *, count, neighbors, strategy, special):
    """The words on the way from a word to its reference; None where no candidate is left."""
    chain = []
    last = start
    for _ in range(count):
        if last is None:
            chain.append(None)
            continue
        others = [k for k in range(len(rows)) if k != last]
        near = sorted(others, key=lambda k, last=last: float((rows[k] - rows[last]).norm()))[:neighbors]
        able = [
            k for k in near if k not in special and k != start and k not in chain and not bool((rows[k] == goal).all())
        ]
        best = []
        for k in able:
            shift = float((rows[k] - moved(rows[k], rows[last], goal, count)).norm())
            inside = sum(
                min(float(a), float(b)) <= float(c) <= max(float(a), float(b))
                for a, b, c in zip(rows[last], goal, rows[k], strict=True)
            )
            best.append((-inside if strategy == "maxcount" else 0, shift, k))
        last = min(best)[2] if best else None
        chain.append(last)
    return chain


def points_of(rows, start, goal, chain):
    """The points of the way, from the reference to the word."""
    points = [rows[start]]
    for word in chain:
        points.append(goal if word is None else moved(rows[word], points[-1], goal, len(chain)))
    return [goal, *points[::-1]]


def slow(hf, goals, *, count, neighbors, strategy, rule, target):
    """Scores one step and one point at a time."""
    tables = [module.weight.detach() * getattr(module, "embed_scale", 1.0) for module in embedding_modules(hf)]
    fixed = kept_start(hf)
    scores, known = [], {}
    for _, token, inputs, clean in steps_of(hf, PROMPT, CONTINUATION):
        ids = [inputs["input_ids"][0].tolist(), inputs.get("decoder_input_ids", torch.zeros(1, 0))[0].tolist()]
        ways = []
        for number, value in enumerate(clean):
            rows, goal = tables[number], goals[number].to(value)
            for place in range(value.shape[1]):
                word = int(ids[number][place])
                if fixed(number, place):
                    ways.append([value[0, place]] * (count + 2))
                    continue
                if (number, word) not in known:
                    chain = chain_of(
                        rows, word, goal, count=count, neighbors=neighbors, strategy=strategy, special=SPECIAL
                    )
                    known[number, word] = points_of(rows, word, goal, chain)
                ways.append(known[number, word])
        lengths = [value.shape[1] for value in clean]
        at = [torch.stack([way[k] for way in ways]) for k in range(count + 2)]
        grads = [slope(hf, inputs, [p[None] for p in points.split(lengths)], target, token) for points in at]
        total = torch.zeros(sum(lengths), dtype=torch.float64)
        for k in range(count + 1):
            grad = (grads[k] + grads[k + 1]) / 2 if rule == "trapezoid" else grads[k]
            total += (grad * (at[k + 1] - at[k])).sum(-1)
        scores.append(total)
    return placed(scores, len(scores[-1]))


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "bloom", "t5", "marian"])
@pytest.mark.parametrize(("strategy", "rule", "neighbors"), [("greedy", "trapezoid", 63), ("maxcount", "left", 9)])
def test_equals_a_search_by_loops(family, strategy, rule, neighbors):
    hf = tiny_model(family, dtype=torch.float64)
    model = whence.load(hf)
    rows = model.embedding_rows([])
    goals = [rows[stack]["mean"] for stack in rows]
    options = {"strategy": strategy, "rule": rule}
    expected = slow(hf, goals, count=4, neighbors=neighbors, target="logprob", **options)
    out = model.attribute(
        PROMPT, CONTINUATION, method=METHOD, target="logprob", baseline="mean", n_anchors=4, n_neighbors=neighbors,
        mode="reverse", **options,
    )  # fmt: skip
    assert relative(out.scores.values, expected) < 1e-5


def test_a_token_as_reference_is_no_stop_on_the_way():
    hf = tiny_model("gpt2", dtype=torch.float64)
    model = whence.load(hf)
    goals = [model.embedding_rows([11])["decoder"]["rows"][0]]
    expected = slow(hf, goals, count=5, neighbors=63, strategy="greedy", rule="trapezoid", target="logit")
    out = model.attribute(
        PROMPT, CONTINUATION, method=METHOD, target="logit", baseline=11, n_anchors=5, n_neighbors=500
    )
    assert relative(out.scores.values, expected) < 1e-5
    checks = {check.name: check for check in out.checks}
    assert checks["word distance"].tolerance is None
    assert checks["word distance"].value == pytest.approx(word_distance(hf, goals[0]), rel=1e-5)


def word_distance(hf, goal):
    """Mean distance of the inner points of the tokens that the model reads to the nearest word."""
    rows = hf.get_input_embeddings().weight.detach()
    found = []
    for word in [*PROMPT, *CONTINUATION[:-1]]:
        chain = chain_of(rows, word, goal, count=5, neighbors=63, strategy="greedy", special=SPECIAL)
        inner = torch.stack(points_of(rows, word, goal, chain)[1:-1])
        found.append((inner[:, None] - rows).norm(dim=-1).amin(1).mean())
    return float(torch.stack(found).mean())


@pytest.mark.parametrize(("family", "enough"), [("gpt2", 1e-4), ("marian", 1e-4), ("gemma2", 1e-3)])
def test_points_in_between_make_it_complete(family, enough):
    """The trapezoid rule's error falls with the square of the number of points."""
    model = whence.load(tiny_model(family, dtype=torch.float64))
    gaps = []
    for upscale in (0, 4, 6):
        out = model.attribute(
            PROMPT, CONTINUATION, method=METHOD, target="logit", baseline="mean", n_anchors=2, upscale=upscale
        )
        check = {one.name: one for one in out.checks}["completeness"]
        assert check.tolerance == 5e-2
        gaps.append(check.value)
    assert gaps[2] < enough < gaps[0]
    assert gaps[2] < gaps[1] / 8


class Rows:
    """An embedding module as a trace shows it."""

    def __init__(self, weight):
        self._module = torch.nn.Embedding.from_pretrained(weight)

    def __call__(self, ids):
        return self._module(ids)


def ways(weight, ids, goal, **options):
    asked = {"anchors": 6, "neighbors": 500, "strategy": "greedy", "vocabulary": [len(weight)], "special": []}
    ids = torch.tensor([ids])
    table, distance = stream_ways(Rows(weight), ids, goal, torch.ones_like(ids).bool(), {**asked, **options}, 0)
    return table["knots"][table["which"][0]], distance[table["which"][0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strategy", ["greedy", "maxcount"])
def test_every_dimension_goes_one_way_only(dtype, strategy):
    weight = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    goal = weight.float().mean(0)
    knots, _ = ways(weight, list(range(40)), goal, anchors=9, strategy=strategy)
    assert knots.shape == (40, 11, 12)
    torch.testing.assert_close(knots[:, 0], goal.expand(40, -1), rtol=0, atol=0)
    torch.testing.assert_close(knots[:, -1], weight[:40].float(), rtol=0, atol=0)
    direction = (knots[:, -1] - knots[:, 0]).sign()[:, None]
    assert bool(((knots[:, 1:] - knots[:, :-1]) * direction >= 0).all())


def test_of_equal_words_the_smaller_id_is_next_and_special_ones_never():
    weight = torch.tensor([[4.0], [2.0], [3.0], [3.0], [2.0], [-9.0]])
    goal = torch.tensor([1.0])
    # From 4 every word below needs no move: id 1. From 2 its equal: id 4. Then the two 3s, both too high.
    knots, _ = ways(weight, [0], goal, anchors=4)
    assert knots[0, :, 0].tolist() == [1.0, 1.5625, 1.75, 2.0, 2.0, 4.0]
    knots, _ = ways(weight, [0], goal, anchors=1, special=[1, 2])
    assert knots[0, :, 0].tolist() == [1.0, 3.0, 4.0]


def test_where_no_word_is_left_the_rest_is_the_reference():
    weight = torch.tensor([[4.0], [2.0], [1.0]])
    knots, distance = ways(weight, [0], torch.tensor([1.0]), anchors=3)
    # The reference is a word of its own and no stop; after the one other word nothing is left.
    assert knots[0, :, 0].tolist() == [1.0, 1.0, 1.0, 2.0, 4.0]
    assert distance.tolist() == [0.0]


def test_a_way_is_walked_in_straight_pieces():
    table = {"knots": torch.tensor([[[0.0], [4.0], [8.0]]]), "which": torch.tensor([[0, -1]])}
    clean = torch.tensor([[[8.0], [5.0]]])
    for at, expected in ((0.0, 0.0), (0.25, 2.0), (0.5, 4.0), (0.75, 6.0), (1.0, 8.0)):
        found = along_words(table, torch.tensor([0]), torch.tensor([at], dtype=torch.float64), clean)
        assert found[0, :, 0].tolist() == [expected, 5.0]


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_batches_units_and_modes(family):
    model = whence.load(tiny_model(family))
    options = {"method": METHOD, "target": "logprob", "n_anchors": 3, "n_neighbors": 12}
    prompts, texts = [[7, 21, 9, 33, 12, 50], [30, 12]], [[17, 8], [40, 11, 19]]
    for one, prompt, text in zip(model.attribute(prompts, texts, **options), prompts, texts, strict=True):
        alone = model.attribute(prompt, text, **options)
        assert relative(one.scores.values, alone.scores.values) < 1e-5
        found, expected = ({check.name: check.value for check in out.checks} for out in (one, alone))
        assert found["word distance"] == pytest.approx(expected["word distance"], rel=1e-4)
    plain = model.attribute(PROMPT, CONTINUATION, mode="reverse", **options).scores.values
    forward = model.attribute(PROMPT, CONTINUATION, mode="forward", **options)
    assert relative(forward.scores.values, plain) < 1e-4
    units = model.attribute(PROMPT, CONTINUATION, units=True, **options)
    assert relative(units.scores.values.sum(-1), plain) < 1e-4


def test_a_parallel_text_is_a_reference_for_each_place():
    model = whence.load(tiny_model("gpt2", dtype=torch.float64))
    other = [8, 22, 10, 34, 13]
    out = model.attribute(
        PROMPT, CONTINUATION, method=METHOD, target="logit", baseline=other, n_anchors=2, upscale=6, n_neighbors=30
    )
    assert {one.name: one.value for one in out.checks}["completeness"] < 1e-3
    assert np.nanmax(np.abs(out.scores.values[:, 5:])) == 0


def test_fixed_tokens_get_nothing():
    model = whence.load(tiny_model("gpt2"))
    out = model.attribute(PROMPT, CONTINUATION, method=METHOD, keep=[0, 3], n_anchors=2, upscale=5)
    assert np.nanmax(np.abs(out.scores.values[:, [0, 3]])) == 0
    nothing = model.attribute(PROMPT, CONTINUATION, method=METHOD, keep=list(range(7)), n_anchors=2)
    assert np.nanmax(np.abs(nothing.scores.values)) == 0


def test_cost():
    model = whence.load(tiny_model("gpt2"))
    out = model.attribute(PROMPT, CONTINUATION, method=METHOD, n_anchors=3, upscale=1, mode="reverse")
    assert out.info["engine"]["rows"] == 4 * 2 + 1 + 2
    assert out.info["engine"]["vjps"] == 9 * len(CONTINUATION)
    estimate = model.estimate(PROMPT, CONTINUATION, method=METHOD, n_anchors=3, upscale=1, mode="reverse")
    assert estimate.derivatives == 27


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_anchors": 0}, "n_anchors is a whole number, 1 to 200"),
        ({"n_anchors": 201}, "n_anchors is a whole number, 1 to 200"),
        ({"n_neighbors": 1}, "n_neighbors is a whole number, at least 2"),
        ({"upscale": -1}, "upscale is a whole number, 0 to 10"),
        ({"strategy": "best"}, "unknown strategy of discretized_integrated_gradients"),
        ({"rule": "right"}, "unknown rule of discretized_integrated_gradients"),
        ({"layer": 0}, "not asked at an intermediate site"),
        ({"baseline": ["mean", 11]}, "compares with one reference"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, message):
    model = whence.load(tiny_model("gpt2"))
    with pytest.raises(whence.WhenceError, match=message):
        model.attribute(PROMPT, CONTINUATION, method=METHOD, **options)
