"""Line charts of growth as SVG, for light and dark mode. Both axes are logarithmic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from benchmarks.figures import digits
from benchmarks.growth.figures import Curve, Part, grouped

_WIDTH, _LEFT, _RIGHT, _TOP, _HEIGHT = 720, 64, 84, 66, 240
_AXIS, _ROW = 46, 22
_COLOURS = ("#2563eb", "#c2410c", "#15803d", "#7e22ce", "#b91c1c", "#0f766e")
_DARK = ("#60a5fa", "#fb923c", "#4ade80", "#c084fc", "#f87171", "#2dd4bf")
_TICKS = tuple(step * 10.0**power for power in range(-3, 5) for step in (1, 2, 5))


def _style() -> str:
    light = " ".join(f".c{number} {{ stroke: {colour}; fill: {colour} }}" for number, colour in enumerate(_COLOURS))
    dark = " ".join(f".c{number} {{ stroke: {colour}; fill: {colour} }}" for number, colour in enumerate(_DARK))
    return (
        "text { font: 13px system-ui, sans-serif; fill: #1f2933; stroke: none } .title { font-weight: 600 } "
        ".grid { stroke: #d5dae0 } .one { stroke: #1f2933; stroke-dasharray: 5 4 } polyline { fill: none !important; "
        f"stroke-width: 2 }} {light}\n    @media (prefers-color-scheme: dark) {{ text {{ fill: #e4e7eb }} "
        f".grid {{ stroke: #3e4c59 }} .one {{ stroke: #e4e7eb }} {dark} }}"
    )


def plot(part: Part) -> str:
    """Returns an SVG document: each plotted curve, divided by its first value."""
    curves = [curve for curve in part.curves if curve.name in part.plotted and len(curve.points) > 1]
    sizes = sorted({size for curve in curves for size in curve.points})
    lines = [[(size, spread.median / _first(curve)) for size, spread in curve.points.items()] for curve in curves]
    scale = _Scale(sizes, [value for line in lines for _, value in line])
    height = _TOP + _HEIGHT + _AXIS + _ROW * len(curves) + 8
    shapes = [*scale.grid(), *(shape for number, line in enumerate(lines) for shape in _line(scale, number, line))]
    legend = [_legend(number, curve) for number, curve in enumerate(curves)]
    axis = (
        f'  <text x="{_LEFT + _across() / 2}" y="{_TOP + _HEIGHT + 38}" text-anchor="middle">{escape(part.size)}</text>'
    )
    drawn = "\n".join((*shapes, *_values(scale, lines), axis, *legend))
    title = f"{part.title}: cost of one, relative to the smallest size"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">\n  <style>{_style()}</style>\n'
        f'  <text class="title" x="8" y="22">{escape(title)}</text>\n'
        f'  <text x="8" y="44">Dashed: constant, so the total grows linearly. Above it: worse.</text>\n{drawn}\n</svg>\n'
    )


def _first(curve: Curve) -> float:
    return curve.points[min(curve.points)].median


def _across() -> int:
    return _WIDTH - _LEFT - _RIGHT


class _Scale:
    """Places of sizes and ratios."""

    def __init__(self, sizes: Sequence[int], values: Sequence[float]) -> None:
        self._sizes = sizes
        low, high = min(0.5, *values), max(2.0, *values)
        self._ticks = [
            tick
            for tick in _TICKS
            if tick >= max(t for t in _TICKS if t <= low * 1.001)
            and tick <= min(t for t in _TICKS if t >= high * 0.999)
        ]

    def x(self, size: int) -> float:
        """Returns the place of a size."""
        first, last = math.log(self._sizes[0]), math.log(self._sizes[-1])
        return _LEFT + (math.log(size) - first) / (last - first) * _across()

    def y(self, ratio: float) -> float:
        """Returns the place of a ratio."""
        low, high = math.log(self._ticks[0]), math.log(self._ticks[-1])
        return _TOP + (high - math.log(ratio)) / (high - low) * _HEIGHT

    def grid(self) -> list[str]:
        """Returns the lines of both axes with their numbers."""
        drawn = []
        for tick in self._ticks:
            y, kind = self.y(tick), "one" if tick == 1 else "grid"
            drawn.append(f'  <line class="{kind}" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>')
            drawn.append(f'  <text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g} ×</text>')
        for size in self._sizes:
            x, y = self.x(size), _TOP + _HEIGHT + 19
            drawn.append(f'  <text x="{x:.1f}" y="{y}" text-anchor="middle">{grouped(size)}</text>')
        return drawn


def _line(scale: _Scale, number: int, line: Sequence[tuple[int, float]]) -> list[str]:
    places = [(scale.x(size), scale.y(value)) for size, value in line]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    kind = f"c{number % len(_COLOURS)}"
    return [
        f'  <polyline class="{kind}" points="{path}"/>',
        *(f'  <g class="{kind}">{_mark(number, x, y)}</g>' for x, y in places),
    ]


def _mark(number: int, x: float, y: float) -> str:
    """Returns the mark of a curve. Its shape says which curve it is, without its colour."""
    corners = (
        None,
        ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        ((0, -5), (5, 4), (-5, 4)),
        ((0, -5.5), (5.5, 0), (0, 5.5), (-5.5, 0)),
        ((0, 5), (5, -4), (-5, -4)),
        ((-5, -2), (5, -2), (5, 2), (-5, 2)),
    )[number % len(_COLOURS)]
    if corners is None:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    return f'<polygon points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)}"/>'


def _values(scale: _Scale, lines: Sequence[Sequence[tuple[int, float]]]) -> list[str]:
    """Returns the last value of each curve, none over another."""
    drawn: list[str] = []
    free = _TOP - 12.0
    for value in sorted((line[-1][1] for line in lines), reverse=True):
        free = max(scale.y(value) + 4, free + 15)
        drawn.append(f'  <text x="{_WIDTH - _RIGHT + 12}" y="{free:.1f}">{digits(round(value, 2)):g} ×</text>')
    return drawn


def _legend(number: int, curve: Curve) -> str:
    y = _TOP + _HEIGHT + _AXIS + _ROW * number + 8
    kind, first = f"c{number % len(_COLOURS)}", digits(_first(curve))
    said = escape(f"{curve.name.replace('`', '')} (first: {first:g} {curve.unit})")
    return f'  <g class="{kind}">{_mark(number, _LEFT, y)}</g>\n  <text x="{_LEFT + 14}" y="{y + 4}">{said}</text>'
