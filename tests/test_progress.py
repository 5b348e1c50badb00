"""The progress bar shows only when something takes long, and only where someone looks."""

from __future__ import annotations

import sys

from whence.core import progress
from whence.core.progress import Progress, Waiting, progress_wanted


def test_silent_where_standard_error_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    with Progress("work", 3) as bar:
        for _ in range(3):
            bar.advance()
    assert bar.done == 3
    assert capsys.readouterr().err == ""


def test_shown_in_a_terminal_once_patience_ends(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    opened = []
    original = Progress._open
    monkeypatch.setattr(Progress, "_open", lambda self: (opened.append(self.label), original(self))[1])
    with Progress("quick", 3) as bar:
        bar.advance(2)
    assert opened == []
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    with Progress("long", 4) as bar:
        bar.advance()
        bar.advance(2)
    assert opened == ["long"]
    capsys.readouterr()
    with Progress("hidden", 4, show=False) as bar:
        bar.advance()
    assert opened == ["long"]


def test_the_bar_closes_after_an_error(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    closed = []

    class Bar:
        def update(self, task, completed):
            raise RuntimeError("broken")

        def stop(self):
            closed.append(True)

    monkeypatch.setattr(Progress, "_open", lambda self: (Bar(), None))
    try:
        with Progress("work", 3) as bar:
            bar.advance()
    except RuntimeError:
        pass
    assert closed == [True]


def test_waiting_says_for_whom_and_for_what_once_it_takes_long(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Waiting("http://server") as waiting:
        waiting.note("in the queue")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    with Waiting("http://server") as waiting:
        waiting.note("in the queue. 2 jobs before yours.")
        waiting.note()
        assert waiting.text == "in the queue. 2 jobs before yours."
    assert "http://server: in the queue" in capsys.readouterr().err


def test_nothing_shows_where_it_is_not_wanted(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    with progress_wanted(False):
        with Waiting("http://server") as waiting:
            waiting.note("running")
        # Once silenced, silent further in.
        with progress_wanted(True), Progress("work", 4) as bar:
            bar.advance()
    assert capsys.readouterr().err == ""
