"""Tables of names: own entries are found without looking at what else is installed."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from whence.core import registry
from whence.core.errors import UnknownNameError
from whence.core.registry import Registry

OWN = {"ordered": "collections:OrderedDict"}


def test_own_entries_are_found_without_reading_metadata(monkeypatch):
    def fails(**_):
        raise AssertionError("the metadata of every installed package was read")

    monkeypatch.setattr(registry, "entry_points", fails)
    table = Registry("thing", "some.group", OWN)
    assert table["ordered"].__name__ == "OrderedDict"
    assert "ordered" in table


def test_plug_ins_are_found_and_replace_nothing(monkeypatch):
    found = [EntryPoint(name, "collections:Counter", "some.group") for name in ("ordered", "other")]
    monkeypatch.setattr(registry, "entry_points", lambda group: found)
    table = Registry("thing", "some.group", OWN)
    assert table["other"].__name__ == "Counter"
    assert table["ordered"].__name__ == "OrderedDict"
    assert set(table) == {"ordered", "other"}
    with pytest.raises(UnknownNameError, match="othr"):
        table["othr"]
