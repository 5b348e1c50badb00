"""`whence.explain`: all about a method, from its class."""

from __future__ import annotations

import pytest

import whence
from whence.views.explain import facts, places


@pytest.mark.parametrize("name", list(whence.METHODS))
def test_everything_about_a_method_is_printed(name, capsys):
    method = whence.METHODS[name]
    whence.explain(name)
    printed = capsys.readouterr().out
    assert printed.startswith(f"{name}: {method.title}\n")
    assert method.__doc__.splitlines()[0] in printed
    for _, value in facts(method):
        assert value in printed


def test_a_class_or_an_object_will_do(capsys):
    whence.explain(whence.Saliency)
    first = capsys.readouterr().out
    whence.explain(whence.Saliency())
    assert capsys.readouterr().out == first


def test_unknown_methods_are_refused_with_the_nearest():
    with pytest.raises(whence.UnknownNameError, match="saliency"):
        whence.explain("salience")


def test_places_follow_from_needs():
    assert list(places(whence.METHODS["none"])) == ["here", "ndif", "ndif without trust", "petals"]
    assert list(places(whence.METHODS["saliency"])) == ["here", "ndif", "petals"]


def test_a_method_without_a_target_names_none(capsys):
    out = whence.load("whence/stories").attribute("Once upon", " a time", method="attention_rollout")
    assert not out.explains
    assert repr(out).startswith("Attribution(attention_rollout: ")
    out.show()
    assert "attention_rollout · model" in capsys.readouterr().out
