"""Code blocks of a Markdown page, and whether they are meant to run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(r"(?P<mark><!-- not run: [^\n]*-->\n)?```(?P<language>\w+)\n(?P<code>.*?)\n```", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: What stands after the fence.
        code: What is in it.
        runs: Not marked as an illustration.
    """

    language: str
    code: str
    runs: bool


def blocks(page: Path) -> Iterator[Block]:
    """All fenced blocks of a page, in order."""
    for found in BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield Block(found["language"], found["code"], found["mark"] is None)


def python_code(page: Path) -> str:
    """The Python of a page as one program, with the line numbers of the page."""
    lines: list[str] = []
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        if found["language"] == "python" and found["mark"] is None:
            start = text[: found.start("code")].count("\n")
            lines += [""] * (start - len(lines))
            lines += found["code"].splitlines()
    return "\n".join(lines)


def whence_commands(page: Path) -> list[list[str]]:
    """The arguments of every ``$ whence ...`` line of a page."""
    found = []
    for block in blocks(page):
        if block.language == "console" and block.runs:
            lines = [line.removeprefix("$ ") for line in block.code.splitlines() if line.startswith("$ whence ")]
            found += [shlex.split(line, comments=True)[1:] for line in lines]
    return found
