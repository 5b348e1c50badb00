"""An attribution as a person reads it in a terminal: with or without colour, in any width and encoding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import TextIOBase
from typing import IO, Any, Literal, cast

import numpy as np
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.rule import Rule
from rich.style import Style
from rich.text import Text

from whence.core.errors import InputError
from whence.scores import Attribution, Attributions, Check
from whence.scores.aggregation.pipeline import described
from whence.views.grid import BOLD, DIM, PLAIN, Grid
from whence.views.visible import Scale, glyphs_for, visible

Layout = Literal["auto", "table", "list"]

# Reversed, not red: it stands out in every terminal and for every eye.
ALARM = Style(bold=True, reverse=True)
LONGEST = 400
MARKED = 5


def show(
    attribution: Attribution | Attributions,
    *,
    file: IO[str] | TextIOBase | None = None,
    width: int | None = None,
    color: bool | None = None,
    layout: Layout = "auto",
    values: bool = True,
    top: int = 5,
    max_tokens: int = 200,
    max_steps: int | None = 100,
) -> None:
    """Print one attribution, or several one after the other.

    Args:
        attribution: What to print.
        file: Where to; standard output by default.
        width: Characters per line; by default what the terminal has, or 80.
        color: True and False force colours on and off; by default the terminal and ``NO_COLOR`` decide.
        layout: ``"table"`` has a row per token and a column per step, ``"list"`` a line per step with its
            strongest tokens; ``"auto"`` takes the table while it stays small.
        values: Write numbers in the table; else signs (``+++`` strong, ``-`` weak), which take less room.
        top: Tokens per step in the list.
        max_tokens: Most rows of the table, and most tokens of the running text.
        max_steps: Most steps; None for all.
    """
    colours: dict[str, Any] = {}
    if color is not None:
        colours = {"color_system": "truecolor" if color else None, "no_color": not color}
        colours |= {"force_terminal": True} if color else {}
    notebook = None if file is None else False
    console = Console(
        file=cast("IO[str] | None", file), width=width, force_jupyter=notebook, highlight=False, **colours
    )
    several = isinstance(attribution, Attributions)
    items = attribution.items if isinstance(attribution, Attributions) else (attribution,)
    for k, item in enumerate(items):
        if several:
            console.print(Rule(Text(f"{k + 1} of {len(items)}"), style=DIM))
        view = render(item, layout=layout, values=values, top=top, max_tokens=max_tokens, max_steps=max_steps)
        console.print(view)


def render(
    attribution: Attribution,
    *,
    layout: Layout = "auto",
    values: bool = True,
    top: int = 5,
    max_tokens: int = 200,
    max_steps: int | None = 100,
) -> RenderableType:
    """What `show` prints, as something rich can place anywhere; the options are those of `show`.

    Raises:
        InputError: An option is out of its range.
    """
    if layout not in ("auto", "table", "list"):
        raise InputError(f"layout is 'auto', 'table' or 'list', not {layout!r}.")
    for name, number in {"top": top, "max_tokens": max_tokens, "max_steps": max_steps}.items():
        if number is not None and number < 1:
            raise InputError(f"{name} must be at least 1, not {number}.")
    return _View(attribution, layout, values, top, max_tokens, max_steps)


@dataclass(frozen=True)
class _View:
    """One rendering; width, symbols and colours are known only when it is printed."""

    attribution: Attribution
    layout: Layout
    values: bool
    top: int
    max_tokens: int
    max_steps: int | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        glyphs = glyphs_for(options.encoding)
        limits = self.values, self.top, self.max_tokens, self.max_steps
        grid = Grid(self.attribution, options.max_width, glyphs, *limits)
        coloured = console.color_system is not None and not console.no_color
        page = _Page(self.attribution, grid, console, coloured and self.values)
        for text in self._texts(grid, page):
            yield from _wrapped(text, console, options.max_width)

    def _texts(self, grid: Grid, page: _Page) -> Iterator[Text]:
        yield from page.head()
        if not grid.numbers.size:
            yield Text("no steps or no tokens to show", DIM)
        else:
            table = self.layout == "table" or (self.layout == "auto" and grid.is_small)
            yield from page.texts(self.max_tokens)
            yield Text()
            yield from grid.table() if table else grid.steps()
            yield Text()
            yield from page.legend(table)
        yield from page.checks()


@dataclass(frozen=True)
class _Page:
    """What stands around the scores: the question, the texts, how to read it, whether to believe it."""

    item: Attribution
    grid: Grid
    console: Console
    swatches: bool

    def head(self) -> Iterator[Text]:
        """What was asked, and what went wrong."""
        model = self.item.info.get("model")
        name = model.get("name") if isinstance(model, Mapping) else model
        asked = self.item.method or "attribution"
        if self.item.explains:
            asked += f" of {self.item.target or 'the target'}"
        title = Text(self.grid.say(asked), BOLD)
        if name:
            title.append(self.grid.glyphs.dot + self.grid.say(f"model {name}"), PLAIN)
        title.append(f"{self.grid.glyphs.dot}{len(self.item.tokens)} tokens, {len(self.item.steps)} steps", DIM)
        yield title
        failed = [check for check in self.item.checks if check.passed is False]
        if failed:
            said = "; ".join(self._check(check, noted=True) for check in failed)
            yield Text(f"! unverified: {said}", ALARM)
        if (hidden := len(self.item.steps) - len(self.grid.numbers)) > 0:
            yield Text(f"the last {hidden} steps are not shown (max_steps)", DIM)

    def texts(self, most: int) -> Iterator[Text]:
        """The input, coloured by what every token did to all steps together, and the output."""
        sources = [k for k, token in enumerate(self.item.tokens) if token.side == "source"]
        columns = self.grid.numbers[:, sources]
        totals = np.where(np.isnan(columns).all(axis=0), np.nan, np.nansum(columns, axis=0))
        scale = Scale.of(totals)
        order = np.argsort(-np.nan_to_num(np.abs(totals), nan=-1.0), kind="stable")
        marked = {int(k) for k in order[: min(MARKED, -(-len(order) // 3))] if abs(totals[k]) > 0}
        unit = f", in units of {scale.unit:g}" if scale.unit != 1 else ""
        yield Text(f"input, by total over the steps; the strongest tokens with their total{unit}:", DIM)
        text = Text()
        shown = _near(len(sources), marked, most)
        for k in shown:
            if k - 1 not in shown and k:
                text.append(f" {self.grid.glyphs.ellipsis} ", DIM)
            token = self.item.tokens[sources[k]]
            said = visible(token.text, self.grid.glyphs, running=True)
            core = said.strip(" \n")
            if k in marked and core:
                before, _, after = said.partition(core)
                mark = f"[{core}:{scale.write(totals[k])}]"
                text.append(before).append(mark, scale.style(totals[k])).append(after)
            else:
                text.append(said, DIM if np.isnan(totals[k]) or token.fixed else scale.style(totals[k]))
        yield from self._indented(text)
        yield Text("output:", DIM)
        steps = self.item.steps[: len(self.grid.numbers)]
        output = visible("".join(token.text for token in steps), self.grid.glyphs, running=True)
        yield from self._indented(Text(output.lstrip(" ")))
        yield from self._contrast()

    def _contrast(self) -> Iterator[Text]:
        """What the target was compared with, and which of the runs the scores are about."""
        contrast = self.item.info.get("contrast")
        if not contrast:
            return
        parts = [(name, contrast.get(name)) for name in ("source", "continuation")]
        said = [(name, text) for name, text in parts if text]
        names = " and ".join(f"another {name}" for name, _ in said) or "the unchanged run"
        yield Text(f"compared with {names}; the scores are about {contrast.get('attributed', 'this run')}:", DIM)
        for _, text in said:
            # The end is where it differs, or what comes before the answer.
            cut = f"{self.grid.glyphs.ellipsis} " if len(text) > LONGEST else ""
            yield from self._indented(Text(cut + visible(text[-LONGEST:], self.grid.glyphs, running=True).lstrip(" ")))

    def _indented(self, text: Text) -> Iterator[Text]:
        text.rstrip()
        for line in _wrapped(text, self.console, max(self.grid.width - 2, 1)):
            yield Text("  ", no_wrap=True, overflow="crop").append_text(line)

    def legend(self, table: bool) -> Iterator[Text]:
        """How to read the scores."""
        yield self._scale_line()
        marks = []
        if table:
            marks.append("* strongest of its step")
            if not self.grid.values:
                marks.append("+++ at least a half, ++ a quarter, + a twentieth of the largest")
            if np.isnan(self.grid.numbers).any():
                marks.append(f"{self.grid.glyphs.undefined} not seen by that step, or not asked about")
        else:
            if any(token.side == "prefix" for token in self.item.tokens):
                marks.append(f"{self.grid.glyphs.earlier} generated earlier")
            if any("#" in name for name in self.grid.places):
                marks.append("#n the n-th token")
        if any(token.special for token in self.item.tokens):
            marks.append("^ special token")
        if any(token.fixed for token in self.item.tokens):
            marks.append("= kept fixed, not replaced")
        yield from self._flow(marks)
        if ops := self.item.info.get("ops", ()):
            yield Text(self.grid.say(f"aggregated: {', '.join(described(op) for op in ops)}"), DIM)
        how = [f"{axis}s by {name}" for axis, name in self.item.reductions.items()]
        if how:
            yield Text(f"reduced for this view: {', then '.join(how)}", DIM)
        if baseline := self.item.info.get("baseline"):
            yield Text(f"baseline: {self.grid.say(_listing(baseline))}", DIM)

    def _flow(self, items: Iterable[str]) -> Iterator[Text]:
        """Short remarks, as many on a line as fit."""
        line = ""
        for item in items:
            if line and cell_len(line) + 3 + cell_len(item) > self.grid.width:
                yield Text(line, DIM)
                line = ""
            line += ("   " if line else "") + item
        if line:
            yield Text(line, DIM)

    def _scale_line(self) -> Text:
        scale = self.grid.scale
        line = Text("scale: ", PLAIN)
        if self.swatches and scale.peak:
            shares = (-1.0, -0.35, -0.15, 0.0, 0.15, 0.35, 1.0) if scale.signed else (0.0, 0.15, 0.35, 1.0)
            for share in shares:
                line.append(f" {scale.write(share * scale.peak)} ", scale.style(share * scale.peak)).append(" ")
        else:
            line.append(f"largest magnitude {scale.peak / scale.unit:.{scale.decimals}f}   ", DIM)
        if scale.unit != 1:
            line.append(f"all scores in units of {scale.unit:g}   ", DIM)
        target = self.grid.say(self.item.target) or "the target"
        meaning = f"+ raises {target}, - lowers it" if scale.signed else "more is more influence"
        return line.append(meaning, DIM)

    def checks(self) -> Iterator[Text]:
        """Which identities held."""
        if not self.item.checks:
            return
        line = Text("checks: ", DIM)
        for k, check in enumerate(self.item.checks):
            line.append("; " if k else "", DIM)
            line.append(self._check(check), ALARM if check.passed is False else DIM)
        yield line

    def _check(self, check: Check, *, noted: bool = False) -> str:
        verdict = {True: " ok", False: " FAILED", None: ""}[check.passed]
        limit = "" if check.tolerance is None else f" (limit {check.tolerance:.2g})"
        note = f", {check.note}" if noted and check.note else ""
        return self.grid.say(f"{check.name}{verdict} {check.value:.2g}{limit}{note}")


def _wrapped(text: Text, console: Console, width: int) -> Iterator[Text]:
    """The lines of a text, without white space at their ends."""
    for line in text.wrap(console, width, overflow="crop" if text.no_wrap else "fold"):
        line.rstrip()
        yield line


def _near(count: int, marked: Iterable[int], most: int) -> list[int]:
    """Positions of a running text to show: all, or those around the marked ones."""
    if count <= most:
        return list(range(count))
    reach = max(most // (2 * MARKED) - 1, 0)
    return sorted({k for m in marked for k in range(max(m - reach, 0), min(m + reach + 1, count))})


def _listing(value: Any) -> str:
    """Plain data in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_listing(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, tuple | list):
        return ", ".join(map(_listing, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
