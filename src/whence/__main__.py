"""``python -m whence`` is the command line."""

from __future__ import annotations

from whence.cli import app

app(prog_name="whence")
