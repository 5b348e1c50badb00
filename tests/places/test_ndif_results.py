"""What a server sends is read as tensors and plain data, and as nothing else."""

from __future__ import annotations

import io
from fractions import Fraction

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import whence
from whence.models.ndif.results import read_plain

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=10,
)


def packed(value):
    made = io.BytesIO()
    torch.save(value, made, pickle_protocol=4)
    return zstandard.ZstdCompressor().compress(made.getvalue())


@settings(deadline=None)
@given(plain)
def test_plain_data_comes_as_it_was(value):
    assert read_plain(packed(value), "http://server", compressed=True) == value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_tensors_come_as_they_were(dtype):
    value = {"a": torch.arange(6).view(2, 3).to(dtype), "b": [torch.zeros(0), {"c": torch.ones(())}], "d": dtype}
    found = read_plain(packed(value), "http://server", compressed=True)
    torch.testing.assert_close(found["a"], value["a"])
    assert found["b"][0].shape == (0,)
    assert found["d"] == dtype


class Trap:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("code of the server ran here",))


@pytest.mark.parametrize("value", [Trap(), Fraction(1, 3), {"deep": [Trap()]}])
def test_code_is_not_run(value):
    with pytest.raises(whence.RemoteError, match="save tensors and plain data"):
        read_plain(packed(value), "http://server", compressed=True)


@settings(deadline=None)
@given(st.data())
def test_a_damaged_answer_is_one_error(data):
    content = packed({"values": torch.arange(50.0), "note": "text"})
    cut = data.draw(st.integers(0, len(content) - 1))
    damaged = content[:cut] + data.draw(st.sampled_from([b"", b"\xff\x00", content[cut + 1 :]]))
    try:
        found = read_plain(damaged, "http://server", compressed=True)
    except whence.RemoteError:
        return
    # Losing a byte of the numbers themselves cannot be seen, but losing their frame can.
    assert found["values"].shape == (50,)


def test_without_compression():
    made = io.BytesIO()
    torch.save({"a": 1}, made, pickle_protocol=4)
    assert read_plain(made.getvalue(), "http://server") == {"a": 1}
