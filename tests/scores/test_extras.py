"""Scores beside the scores: they are kept, compared, pickled and saved with the others."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from fakes import make

import whence
from whence.core.errors import FileFormatError
from whence.scores import Axis, Scores


@pytest.fixture
def item():
    plain = make(["<s>", " a", " b"], [" c", " d"])
    inside = Axis("step", (" a", " b")), Axis("token", (" a", " b")), Axis("head", ("0", "1", "2"))
    encoder = Scores(np.arange(12, dtype=np.float32).reshape(2, 2, 3), inside)
    return replace(plain, extras={"standard_error": plain.scores, "encoder": encoder})


def test_saved_and_read(item, tmp_path):
    item.save(tmp_path / "one.json")
    again = whence.load_attribution(tmp_path / "one.json")
    assert again.equals(item)
    assert list(again.extras) == ["standard_error", "encoder"]
    assert again.extras["encoder"].names == ("step", "token", "head")
    np.testing.assert_array_equal(again.extras["encoder"].values, item.extras["encoder"].values)


def test_pickled_and_read_only(item):
    again = pickle.loads(pickle.dumps(item))
    assert again.equals(item)
    with pytest.raises(TypeError):
        again.extras["more"] = item.scores


def test_what_differs_is_not_equal(item):
    less = replace(item, extras={"standard_error": item.scores})
    other = replace(
        item, extras={**item.extras, "encoder": Scores(item.extras["encoder"].values + 1, item.extras["encoder"].axes)}
    )
    assert not item.equals(less)
    assert not item.equals(other)


def test_in_plain_data(item):
    found = item.to_dict()["extras"]
    assert found["encoder"]["axes"]["head"] == ["0", "1", "2"]
    assert found["encoder"]["scores"][1][1] == [9.0, 10.0, 11.0]
    assert found["standard_error"]["scores"][0][-1] is None


def test_two_of_one_name_are_refused(item, tmp_path):
    from whence.scores import serialization

    header = serialization._header(item)
    with pytest.raises(FileFormatError, match="same name"):
        serialization._attribution(
            serialization._Attribution.model_validate({**header, "extras": header["extras"][:1] * 2}),
            item.scores.values,
            serialization._stacked(item),
            item.scores.values,
            item.scores.values,
        )
