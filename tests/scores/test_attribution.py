"""What an attribution promises about itself: it fits together, stays as it is, and says what it holds."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from scores.fakes import OUTPUT, SOURCE, make
from whence.core.errors import InputError, NonFiniteScore, UnknownNameError
from whence.scores import Attribution, Attributions, Axis, Check, Scores


def test_texts_sides_and_names() -> None:
    item = make()
    assert item.text == SOURCE.replace("|", "")
    assert item.generated == OUTPUT.replace("|", "")
    assert (item.method, item.target) == ("integrated_gradients", "probability")
    assert item.source.shape == (12, 25)
    assert item.prefix.shape == (12, 11)
    assert item.source.defined.all()
    np.testing.assert_array_equal(item.prefix.defined, np.tri(12, 11, -1, dtype=bool))


def test_view_reduces_extra_axes_as_info_says() -> None:
    item = make(extra={"layer": 2, "head": 3, "unit": 4}, default_view={"unit": "sum", "layer": "max"})
    assert dict(item.reductions) == {"unit": "sum", "head": "mean", "layer": "max"}
    expected = item.scores.values.sum(-1).mean(-1).max(-1)
    np.testing.assert_allclose(item.view().values, expected, rtol=1e-4, atol=1e-6)
    plain = make()
    assert plain.view() is plain.scores
    assert not plain.reductions


def test_top_gives_defined_tokens_highest_first() -> None:
    scores = Scores(np.array([[0.5, -1.0, 0.5, np.nan]]), (Axis("step", ("s",)), Axis("token", tuple("abcd"))))
    tokens = make(tuple("abc"), ("d", "e")).tokens
    item = Attribution(scores, tokens, tokens[:1])
    assert [(token.text, score) for token, score in item.top(9)[0]] == [("a", 0.5), ("c", 0.5), ("b", -1.0)]
    assert len(item.top(1)[0]) == 1
    with pytest.raises(InputError, match="at least one token"):
        item.top(0)


def test_verified_unless_a_check_failed() -> None:
    informative = Check("gap", 0.1)
    assert make(checks=(informative,)).verified
    failed = make(checks=(informative, Check("completeness", 1.0, 0.02, False)))
    assert not failed.verified
    assert "UNVERIFIED: completeness" in repr(failed)
    assert not Attributions((make(), failed)).verified


def test_repr_is_one_short_line() -> None:
    assert repr(make(extra={"layer": 2})) == (
        "Attribution(integrated_gradients of probability: 12 steps x 36 tokens x 2 layers, "
        "25 of the tokens source; no failed check)"
    )


def test_nothing_can_be_changed() -> None:
    item = make(options={"samples": [1, 2]})
    with pytest.raises(FrozenInstanceError):
        item.tokens = ()
    with pytest.raises(TypeError):
        item.info["method"] = "other"
    with pytest.raises(TypeError):
        item.info["options"]["samples"] = 3
    assert item.info["options"]["samples"] == (1, 2)
    with pytest.raises(TypeError):
        item.step_scores["probability"] = None
    with pytest.raises(ValueError, match="read-only"):
        item.step_scores["probability"][0] = 1


def test_copies_are_equal_and_still_read_only() -> None:
    item = make(options={"samples": [1, 2]})
    for twin in (pickle.loads(pickle.dumps(item)), copy.deepcopy(item), replace(item)):
        assert twin.equals(item)
        assert not twin.step_scores["probability"].flags.writeable
    assert not item.equals(replace(item, info={**item.info, "seed": 1}))
    assert not item.equals(make(seed=1))


def test_to_dict_is_json() -> None:
    item = make(checks=(Check("gap", float("inf")),), options={"ord": float("inf")})
    found = json.loads(json.dumps(item.to_dict(), allow_nan=False))
    assert found["scores"][0][-1] is None
    assert found["checks"][0]["value"] == "inf"
    assert found["info"]["options"]["ord"] == "inf"
    assert found["tokens"][1]["text"] == " The"


def test_parts_must_fit_together() -> None:
    item = make()
    cases = [
        ({"tokens": item.tokens[:-1]}, "35 tokens, but the token axis has 36"),
        ({"steps": item.steps[:-1]}, "11 steps, but the step axis has 12"),
        ({"step_scores": {"entropy": np.ones(1)}}, r"step score 'entropy' has shape \(1,\); there are 12 steps"),
        ({"scores": item.scores.select("step", 0)}, "needs the axes step and token"),
        ({"tokens": item.tokens[::-1]}, "source tokens come first"),
        ({"info": {"model": object()}}, r"info\['model'\] is a object; provenance holds plain data only"),
        ({"info": {"a": [{1: 2}]}}, r"info\['a'\]\[0\] has the key 1; keys must be texts"),
        ({"info": {"default_view": "mean"}}, "maps axes to reducers"),
    ]
    for change, message in cases:
        with pytest.raises(InputError, match=message):
            replace(item, **change)
    with pytest.raises(UnknownNameError, match="unknown reducer 'average'"):
        replace(item, info={"default_view": {"head": "average"}})


def test_infinite_scores_are_refused() -> None:
    item = make()
    values = item.scores.values.copy()
    values[3, 4] = np.inf
    with pytest.raises(NonFiniteScore, match=r"\{'step': 3, 'token': 4\} is infinite"):
        replace(item, scores=Scores(values, item.scores.axes))


def test_cells_are_defined_in_all_layers_or_none() -> None:
    item = make(extra={"layer": 2})
    values = item.scores.values.copy()
    values[2, 5, 1] = np.nan
    with pytest.raises(InputError, match="step 2 sees token 5 in some layers"):
        replace(item, scores=Scores(values, item.scores.axes))


def test_attributions_behave_like_a_list() -> None:
    items = Attributions(tuple(make(seed=k) for k in range(5)))
    assert len(items) == 5
    assert isinstance(items[1:3], Attributions)
    assert items[1:3][0] is items[1]
    assert [item is items[k] for k, item in enumerate(items)] == [True] * 5
    assert repr(items).count("Attribution(") == 3
    with pytest.raises(InputError, match="Attribution objects only"):
        Attributions((1,))


def test_importing_scores_is_light() -> None:
    code = (
        "import sys, whence.scores; "
        "heavy = {'torch', 'pandas', 'xarray', 'rich', 'transformers', 'pydantic', 'safetensors'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
