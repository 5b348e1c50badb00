"""Lines on two logarithmic axes, as an SVG picture; and the exponent of a power law through points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_COLOURS = ("#1b6ca8", "#c1440e", "#2e7d32", "#7b3f9d", "#8a6d00", "#555555")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 420, 300, 70, 45, 30, 20
_LEGEND = 16

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """A picture of several lines.

    Attributes:
        title: What stands above it.
        across: What the horizontal axis is.
        up: What the vertical axis is, with its unit.
        lines: For each name, its points; all coordinates greater than 0.
    """

    title: str
    across: str
    up: str
    lines: Mapping[str, Points]


def exponent(points: Points) -> float:
    """The b of ``y = a x^b`` that fits best, by least squares of the logarithms.

    Raises:
        ValueError: There are fewer than two places, or a coordinate is not greater than 0.
    """
    if len({x for x, _ in points}) < 2 or any(x <= 0 or y <= 0 for x, y in points):
        raise ValueError("a power law needs points at two places or more, with coordinates greater than 0")
    logs = [(math.log(x), math.log(y)) for x, y in points]
    middle = sum(x for x, _ in logs) / len(logs)
    level = sum(y for _, y in logs) / len(logs)
    return sum((x - middle) * (y - level) for x, y in logs) / sum((x - middle) ** 2 for x, _ in logs)


def picture(panels: Sequence[Panel]) -> str:
    """Panels below one another.

    Raises:
        ValueError: There is nothing to draw, or a coordinate is not greater than 0.
    """
    if not panels or any(not panel.lines for panel in panels):
        raise ValueError("there is nothing to draw")
    parts, top = [], 0
    for panel in panels:
        height = _HEIGHT + _LEGEND * len(panel.lines)
        parts.append(f'<g transform="translate(0,{top})">{_panel(panel)}</g>')
        top += height
    size = f'width="{_WIDTH}" height="{top}" viewBox="0 0 {_WIDTH} {top}"'
    background = '<rect width="100%" height="100%" fill="white"/>'
    drawn = background + "".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">{drawn}</svg>\n'


def _panel(panel: Panel) -> str:
    points = [point for line in panel.lines.values() for point in line]
    if any(x <= 0 or y <= 0 for x, y in points):
        raise ValueError("a logarithmic axis has no place for 0 or less")
    xs, ys = sorted({x for x, _ in points}), [y for _, y in points]
    x_at = _scale(xs[0], xs[-1], _LEFT, _WIDTH - _RIGHT)
    y_at = _scale(min(ys), max(ys), _HEIGHT - _BOTTOM, _TOP)
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts = [
        _text(middle, _TOP - 12, panel.title, size=13, anchor="middle"),
        _text(middle, _HEIGHT - 8, panel.across, anchor="middle"),
        f'<g transform="rotate(-90)">{_text(-_HEIGHT / 2, 14, panel.up, anchor="middle")}</g>',
        _line([(_LEFT, _TOP), (_LEFT, _HEIGHT - _BOTTOM), (_WIDTH - _RIGHT, _HEIGHT - _BOTTOM)], "#999999"),
    ]
    parts += [_text(x_at(x), _HEIGHT - _BOTTOM + 15, f"{x:g}", size=10, anchor="middle") for x in xs]
    parts += [_text(_LEFT - 5, y_at(y) + 4, f"{y:.3g}", size=10, anchor="end") for y in _ticks(min(ys), max(ys))]
    for number, (name, line) in enumerate(panel.lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [(x_at(x), y_at(y)) for x, y in sorted(line)]
        parts.append(_line(places, colour))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in places]
        parts.append(_text(_LEFT, _HEIGHT + _LEGEND * (number + 0.5), name, colour=colour))
    return "".join(parts)


def _scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    span = math.log(high) - math.log(low)

    def at(value: float) -> float:
        share = (math.log(value) - math.log(low)) / span if span else 0.5
        return start + share * (stop - start)

    return at


def _ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two numbers, and the two."""
    inside = range(math.ceil(math.log10(low) + 0.1), math.floor(math.log10(high) - 0.1) + 1)
    return [low, *(10.0**power for power in inside), high]


def _line(places: Points, colour: str) -> str:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _text(x: float, y: float, words: str, *, size: int = 11, anchor: str = "start", colour: str = "#222222") -> str:
    safe = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">{safe}</text>'
