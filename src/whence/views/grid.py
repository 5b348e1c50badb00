"""The two ways to lay out many scores: a table of tokens x steps, and a list of steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

from whence.core.tokens import Token
from whence.scores import Attribution
from whence.views.visible import Glyphs, Scale, fit, visible

DIM, BOLD, PLAIN = Style(dim=True), Style(bold=True), Style()
WIDEST_STEP, WIDEST_PLACE = 10, 20
MOST_BLOCKS, MOST_LINES = 3, 110

Block = list[tuple[int, int]]


@dataclass(frozen=True)
class Grid:
    """The scores of one attribution, laid out for one width and one set of symbols.

    Attributes:
        item: The attribution.
        width: Characters per line.
        glyphs: Symbols to use.
        values: Write numbers in the table, else signs.
        top: Tokens per step in the list.
        max_tokens: Most rows of the table.
        max_steps: Most steps; None for all.
    """

    item: Attribution
    width: int
    glyphs: Glyphs
    values: bool
    top: int
    max_tokens: int
    max_steps: int | None

    @cached_property
    def numbers(self) -> np.ndarray:
        """Scores of the steps that are shown, steps x tokens."""
        return self.item.view().values[: self.max_steps].astype(np.float64)

    @cached_property
    def _step_scores(self) -> dict[str, list[float]]:
        return {name: row.tolist() for name, row in self.item.step_scores.items()}

    @cached_property
    def scale(self) -> Scale:
        """The scale that all scores share."""
        return Scale.of(self.numbers)

    @cached_property
    def strongest(self) -> np.ndarray:
        """Per step, the token whose score has the largest magnitude; -1 where all are 0 or undefined."""
        size = np.nan_to_num(np.abs(self.numbers), nan=0.0)
        return np.where(size.max(axis=1, initial=0.0) > 0, size.argmax(axis=1), -1)

    @cached_property
    def labels(self) -> list[str]:
        """What stands for each token: its text, and marks for special and fixed ones."""
        return [self.label(token) + _flags(token) for token in self.item.tokens]

    def say(self, text: str) -> str:
        """Text from outside, made safe and visible."""
        return visible(text, self.glyphs)

    def label(self, token: Token) -> str:
        """A token's text, or its id where it has none."""
        return self.say(token.text) or f"<id {token.id}>"

    # The table: a row per token, a column per step, in blocks that fit the width.

    @cached_property
    def label_width(self) -> int:
        """Width of the table's first column: the longest label, up to a third of the line."""
        names = [*self.labels, *map(self.say, self.item.step_scores)]
        return min(max(map(cell_len, names), default=0), max(self.width // 3, 8))

    @cached_property
    def cells(self) -> list[list[str]]:
        """The table's numbers as text, steps x tokens; each ends in the place for a mark."""
        write = self.scale.write if self.values else self.scale.signs
        return [
            [
                (self.glyphs.undefined if np.isnan(v) else write(v)) + ("*" if k == best else " ")
                for k, v in enumerate(row)
            ]
            for row, best in zip(self.numbers, self.strongest, strict=True)
        ]

    @cached_property
    def _column_widths(self) -> list[int]:
        return [self._column_width(step) for step in range(len(self.numbers))]

    def _column_width(self, step: int) -> int:
        numbers = [*self.cells[step], *(_number(row[step]) + " " for row in self._step_scores.values())]
        head = min(cell_len(self.label(self.item.steps[step])), WIDEST_STEP) + 1
        return min(max(head, *map(cell_len, numbers)), max(self.width - self.label_width - 1, 1))

    @cached_property
    def blocks(self) -> list[Block]:
        """Steps and the widths of their columns, in as few blocks as fit the width, of about equal size."""
        few = self._filled(len(self.numbers))
        even = self._filled(-(-len(self.numbers) // len(few)))
        return even if len(even) == len(few) else few

    def _filled(self, most: int) -> list[Block]:
        """Blocks filled one after the other, with at most so many steps each."""
        blocks: list[Block] = [[]]
        used = self.label_width
        for step, column in enumerate(self._column_widths):
            if blocks[-1] and (used + 1 + column > self.width or len(blocks[-1]) == most):
                blocks.append([])
                used = self.label_width
            blocks[-1].append((step, column))
            used += 1 + column
        return blocks

    @property
    def is_small(self) -> bool:
        """The table can be taken in at a look or two."""
        rows = len(self.item.tokens) + len(self.item.step_scores) + 3
        # Cheap bounds come first: they spare writing the cells of a table that is never shown.
        if rows > MOST_LINES or 4 * len(self.numbers) > MOST_BLOCKS * self.width:
            return False
        return len(self.blocks) <= MOST_BLOCKS and rows * len(self.blocks) <= MOST_LINES

    def table(self) -> Iterator[Text]:
        """The lines of all blocks, with an empty line between them."""
        for k, block in enumerate(self.blocks):
            if k:
                yield Text()
            if len(block) < len(self.item.steps):
                of = f"of {len(self.item.steps)}"
                yield Text(f"steps {block[0][0] + 1} to {block[-1][0] + 1} {of}", style=DIM)
            heads = [(self.label(self.item.steps[step]) + " ", BOLD) for step, _ in block]
            yield self._row("", PLAIN, heads, block)
            for name, row in self._step_scores.items():
                cells = [(_number(row[step]) + " ", DIM) for step, _ in block]
                yield self._row(self.say(name), DIM, cells, block)
            yield from self._token_rows(block)

    def _token_rows(self, block: Block) -> Iterator[Text]:
        """A row for every token that some step of the block can see, under the name of its section."""
        part = self.numbers[block[0][0] : block[-1][0] + 1]
        seen = np.flatnonzero(~np.isnan(part).all(axis=0))
        strength = np.nan_to_num(np.abs(part[:, seen]), nan=0.0).max(axis=0, initial=0.0)
        kept = np.sort(seen[np.argsort(-strength, kind="stable")[: self.max_tokens]])
        section = ""
        for k in kept:
            token = self.item.tokens[k]
            if (named := self._section(token)) != section:
                section = named
                yield Text(fit(section, self.width, self.glyphs).rstrip(), style=DIM)
            cells = [(self.cells[step][k], self.style(self.numbers[step, k])) for step, _ in block]
            yield self._row(self.labels[k], DIM if token.special or token.fixed else PLAIN, cells, block)
        if len(kept) < len(seen):
            hidden = f"{len(seen) - len(kept)} weaker tokens are not shown (max_tokens)"
            yield Text(fit(hidden, self.width, self.glyphs).rstrip(), style=DIM)

    def _section(self, token: Token) -> str:
        side = "source" if token.side == "source" else "generated so far"
        named = f" ({self.say(token.segment)})" if token.segment not in ("", token.side) else ""
        return f"{side}{named}:"

    def _row(self, label: str, style: Style, cells: list[tuple[str, Style]], block: Block) -> Text:
        line = Text(no_wrap=True, overflow="crop")
        line.append(fit(label, self.label_width, self.glyphs), style)
        for (text, cell_style), (_, width) in zip(cells, block, strict=True):
            core = fit(text[:-1], width - 1, self.glyphs, right=True)
            bare = core.lstrip(" ")
            line.append(" " * (1 + len(core) - len(bare))).append(bare, cell_style).append(text[-1], BOLD)
        line.rstrip()
        return line

    def style(self, value: float) -> Style:
        """How a score is coloured."""
        return DIM if np.isnan(value) else self.scale.style(value)

    def steps(self) -> Iterator[Text]:
        """A line per step: its token, its step scores, and the tokens with the strongest scores."""
        steps = [self.label(token) for token in self.item.steps[: len(self.numbers)]]
        number_width = len(str(len(steps)))
        step_width = max(min(max(map(cell_len, steps)), self.width // 5), 5)
        named = list(self._step_scores.items())[: 0 if self.width < 50 else 1 if self.width < 100 else 3]
        columns = [(name, [_number(v) for v in row[: len(steps)]]) for name, row in named]
        widths = [max(map(cell_len, texts)) if not k else 11 for k, (_, texts) in enumerate(columns)]
        # The heading of the first number reaches back over the step's column, which needs little of its own.
        if columns and self.width >= 60:
            step_width = max(step_width, min(cell_len(self.say(columns[0][0])) - widths[0] + 5, 16))
        head = Text(" " * number_width + " step", DIM, no_wrap=True, overflow="crop")
        head.append(" " * (0 if columns else step_width - 4))
        for k, ((name, _), width) in enumerate(zip(columns, widths, strict=True)):
            spare = 0 if k else step_width - 4
            head.append(" " + fit(self.say(name), width + spare, self.glyphs, right=True))
        room = self.width - cell_len(head.plain)
        head.append(fit("  strongest tokens", max(room, 0), self.glyphs).rstrip())
        yield head
        for k, step in enumerate(steps):
            line = Text(no_wrap=True, overflow="crop")
            line.append(f"{k + 1:{number_width}} ", DIM).append(fit(step, step_width, self.glyphs), BOLD)
            for (_, texts), width in zip(columns, widths, strict=True):
                line.append(" " + fit(texts[k], width, self.glyphs, right=True), DIM)
            self._append_strongest(line, self.numbers[k], room)
            yield line

    def _append_strongest(self, line: Text, row: np.ndarray, room: int) -> None:
        """The tokens of largest magnitude, as many as asked for and as fit."""
        order = np.argsort(-np.nan_to_num(np.abs(row), nan=-1.0), kind="stable")[: self.top]
        for k in order.tolist():
            value = float(row[k])
            if np.isnan(value) or value == 0:
                break
            score = self.scale.write(value)
            wide = min(cell_len(self.places[k]), WIDEST_PLACE)
            if k == order[0]:
                wide = max(min(wide, room - cell_len(score) - 3), 0)
            used = 2 + wide + 1 + cell_len(score)
            if used > room:
                break
            line.append("  ").append(fit(self.places[k], wide, self.glyphs) + " ")
            line.append(score, self.style(value))
            room -= used

    @cached_property
    def places(self) -> list[str]:
        """Labels that tell tokens apart: generated ones marked, repeated ones with their position."""
        names = [
            (self.glyphs.earlier if token.side == "prefix" else "") + label
            for token, label in zip(self.item.tokens, self.labels, strict=True)
        ]
        repeated = {name for name, count in Counter(names).items() if count > 1}
        return [f"{name}#{k + 1}" if name in repeated else name for k, name in enumerate(names)]


def _flags(token: Token) -> str:
    return " " * (token.special or token.fixed) + "^" * token.special + "=" * token.fixed


def _number(value: float) -> str:
    """A step score in at most eight characters."""
    if np.isnan(value):
        return "-"
    return f"{value:.2f}" if value == 0 or 0.01 <= abs(value) < 1000 else f"{value:.1e}"
