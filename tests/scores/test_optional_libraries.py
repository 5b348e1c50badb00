"""A library that is not installed is named with the command that installs it."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import whence
from whence.scores import Axis, Scores


@pytest.mark.parametrize(("library", "call"), [("pandas", "to_pandas"), ("xarray", "to_xarray")])
def test_a_missing_library_names_the_extra(monkeypatch, library, call):
    scores = Scores(np.zeros((1, 2)), (Axis("step", ("a",)), Axis("token", ("b", "c"))))
    # None in sys.modules is how Python itself marks a module that cannot be imported.
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(whence.UnsupportedError, match=r"pip install 'whence\[data\]'"):
        getattr(scores, call)()
