"""The evidence benchmark: ranks, intervals and places on hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest

import whence
from benchmarks import evidence
from benchmarks.evidence import Case, Figures, cases, markdown
from benchmarks.ranking import Interval, gold_rank, mean_reciprocal_rank, top_share
from tiny_models import tiny_model
from whence.models.bundled import Determined, Example, Span


@pytest.mark.parametrize(
    ("gold", "candidates", "rank"),
    [
        ([1], [0, 1, 2, 3], 1),
        ([0], [0, 1, 2, 3], 3),
        ([3], [0, 1, 2, 3], 4),
        ([0, 2], [0, 1, 2, 3], 2),  # the better of two
        ([2, 1], [0, 1, 2, 3], 1),
        ([0], [0, 3], 1),  # what is no candidate does not count
        ([0, 1], [0, 2, 3], 2),  # nor does gold that is none
    ],
)
def test_rank_of_the_best_gold_token(gold, candidates, rank):
    assert gold_rank([0.1, 0.9, 0.5, -2.0], gold, candidates) == rank


def test_ties_count_against_the_gold_token():
    assert gold_rank([1.0, 1.0, 1.0], [0], [0, 1, 2]) == 3
    assert gold_rank([1.0, 1.0, 1.0], [0, 1], [0, 1, 2]) == 2


def test_without_a_gold_candidate_there_is_no_rank():
    with pytest.raises(ValueError, match="none of the gold tokens"):
        gold_rank([1.0, 2.0], [1], [0])


def test_shares_count_steps_not_examples():
    ranks = [[1, 3], [2], [10]]
    assert top_share(ranks, 1).mean == 1 / 4
    assert top_share(ranks, 3).mean == 3 / 4
    assert mean_reciprocal_rank(ranks).mean == pytest.approx((1 + 1 / 3 + 1 / 2 + 1 / 10) / 4)


def test_interval_holds_the_mean_and_shrinks_with_examples():
    few, many = [[1], [4]] * 10, [[1], [4]] * 1000
    for ranks in (few, many):
        found = top_share(ranks, 3)
        assert found.low < found.mean < found.high
    assert top_share(many, 3).high - top_share(many, 3).low < 0.1 < top_share(few, 3).high - top_share(few, 3).low
    assert top_share([[1]] * 5, 3) == Interval(1.0, 1.0, 1.0)
    assert top_share(few, 3, seed=1) == top_share(few, 3, seed=1)


def test_examples_are_resampled_whole():
    one_big = [[1] * 100, [4] * 100]
    assert top_share(one_big, 3) == Interval(0.5, 0.0, 1.0)


def test_no_steps_no_mean():
    with pytest.raises(ValueError, match="no steps"):
        top_share([], 3)


WORDS = ["the", "cat", "sat", "a", "dog", "ran"]


def words_tokenizer(words, *, ends=False):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", "<unk>", *words]
    inner = Tokenizer(models.WordLevel({name: k for k, name in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if ends:
        inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


EXAMPLE = Example(
    "the cat sat",
    " a cat ran",
    (
        Determined("name", 3, 6, (Span("source", 4, 7),), ("dog",)),
        Determined("verb", 7, 10, (Span("source", 0, 3), Span("prefix", 3, 6)), ("sat",)),
    ),
)


@pytest.mark.parametrize(
    ("family", "places"),
    [("llama", [(1,), (0, 4)]), ("marian", [(1,), (0, 6)])],  # the end of the source, the start of the decoder
)
def test_evidence_is_found_on_the_token_axis(family, places):
    tokenizer = words_tokenizer(WORDS, ends=family == "marian")
    model = whence.load(tiny_model(family), tokenizer=tokenizer)
    found = cases(model, EXAMPLE)
    assert found == [Case("name", 1, places[0]), Case("verb", 2, places[1])]
    out = model.attribute(EXAMPLE.prompt, EXAMPLE.continuation)
    words = [[out.tokens[k].text.strip() for k in case.gold] for case in found]
    assert words == [["cat"], ["the", "cat"]]
    assert [out.steps[case.step].text.strip() for case in found] == ["cat", "ran"]


@pytest.mark.parametrize("method", ["input_x_gradient", "nearest", "random"])
def test_measure_ranks_every_determined_token(method):
    model = whence.load(tiny_model("llama"), tokenizer=words_tokenizer(WORDS))
    (found,) = evidence.measure(model, [method], [EXAMPLE] * 3, target="logit", seed=0)
    assert found.tokens == 6
    assert found.method == method
    assert set(found.kinds) == {"name", "verb"}
    assert 0 <= found.top1.mean <= found.top3.mean <= 1
    if method == "nearest":
        # "cat" is third from the end of "the cat sat a"; of "the cat sat a cat" the last word is evidence.
        assert found.mrr.mean == pytest.approx((1 / 3 + 1) / 2)


def figures(model, method, top3):
    share = Interval(top3, top3 - 0.05, top3 + 0.05)
    return Figures(model, method, 1234, share, share, share, {}, 1.0)


def test_table_ranks_methods_and_puts_baselines_last():
    made = [figures("whence/stories", name, top3) for name, top3 in [("random", 0.99), ("saliency", 0.5), ("x", 0.8)]]
    lines = markdown(made, examples=7, target="logit", seed=3).splitlines()
    assert [line.split(" |")[0] for line in lines[2:5]] == ["| `x`", "| `saliency`", "| *random*"]
    assert "80% [75, 85] | 80% | 0.80" in lines[2]
    assert "7 held-out examples" in lines[-1]
    assert "1,234" in lines[-1]


def test_options_have_defaults_that_exist():
    given = evidence.parser().parse_args([])
    assert set(given.methods) == {*whence.METHODS, "nearest", "random"} - {"none"}
    assert given.model == ["whence/stories", "whence/en-it"]
    assert given.target in whence.STEP_FUNCTIONS
    assert np.isfinite(given.examples)
