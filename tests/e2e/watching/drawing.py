"""Draws dashboards from what Prometheus answers, roughly as Grafana would: to be looked at, not to be measured."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from tests.e2e.watching.prometheus import Series
from tests.e2e.watching.units import FORMATS

COLUMN, LINE, GAP = 66, 36, 8
"""Pixels of a column and of a line of Grafana's grid, and between panels."""
_COLORS = ("#3274d9", "#e0752d", "#3f9e4d", "#a352cc", "#e02f44", "#1f9fb5", "#b5811f", "#6e7f91", "#8f3bb8", "#7eb26d")
_BOUNDS = {"green": "#3f9e4d", "yellow": "#d9a400", "red": "#e02f44"}
_LEFT, _BOTTOM, _TOP = 88, 22, 8
_LABEL = re.compile(r"\{\{(\w+)\}\}")
_STYLE = """
body { margin: 0; padding: 8px; background: #f4f5f5; font: 12px system-ui, sans-serif; color: #24292e; position: relative }
h2 { font-size: 16px; margin: 4px 4px 8px }
.grid { position: relative }
.panel { position: absolute; background: #fff; border: 1px solid #dce1e6; border-radius: 3px; overflow: hidden }
.panel h3 { font-size: 13px; font-weight: 600; margin: 6px 8px 2px }
.legend { padding: 0 8px 4px 8px; max-height: 48px; overflow: hidden; line-height: 16px }
.legend i { display: inline-block; width: 12px; height: 3px; vertical-align: middle; margin: 0 4px 0 0 }
.legend span { margin-right: 12px; white-space: nowrap }
.number { font-size: 25px; text-align: center; padding-top: 18px; white-space: nowrap; font-weight: 600 }
.hollow { color: #e02f44; text-align: center; padding-top: 40px; font-size: 15px }
svg text { font-size: 11px; fill: #5a6570 }
"""

Drawn = list[tuple[str, Series]]
"""The series of a panel, each with its name in the legend."""


def named(legend: str, series: Sequence[Series]) -> Drawn:
    """Series with their names, as `legendFormat` makes them."""
    return [(_name(legend, one), one) for one in series]


def _name(legend: str, series: Series) -> str:
    return _LABEL.sub(lambda found: series.labels.get(found[1], ""), legend)


def row(title: str, panels: Sequence[Mapping[str, Any]], shown: Mapping[int, Drawn], span: tuple[float, float]) -> str:
    """A row of a dashboard as a page; `shown` are the series by the panel's id."""
    top = min(panel["gridPos"]["y"] for panel in panels)
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) - top
    body = "".join(_panel(panel, shown[panel["id"]], top, span) for panel in panels)
    return (
        f"<!doctype html><meta charset=utf-8><style>{_STYLE}</style><h2>{escape(title)}</h2>"
        f'<div class=grid style="width:{24 * COLUMN}px;height:{height * LINE}px">{body}</div>'
    )


def _panel(panel: Mapping[str, Any], drawn: Drawn, top: int, span: tuple[float, float]) -> str:
    place = panel["gridPos"]
    left, width, height = place["x"] * COLUMN, place["w"] * COLUMN - GAP, place["h"] * LINE - GAP
    drawn = [(name, series) for name, series in drawn if series.finite]
    if not drawn:
        inside = "<div class=hollow>No data</div>"
    elif panel["type"] == "stat":
        inside = _number(panel, drawn)
    else:
        inside = _graph(panel, drawn, width, height - 76, span) + _legend(drawn)
    return (
        f'<div class=panel style="left:{left}px;top:{(place["y"] - top) * LINE}px;width:{width}px;height:{height}px">'
        f"<h3>{escape(panel['title'])}</h3>{inside}</div>"
    )


def _number(panel: Mapping[str, Any], drawn: Drawn) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    value = drawn[0][1].finite[-1][1]
    color = next(
        _BOUNDS[step["color"]]
        for step in reversed(defaults["thresholds"]["steps"])
        if step["value"] is None or value >= step["value"]
    )
    return f'<div class=number style="color:{color}">{escape(FORMATS[defaults["unit"]](value))}</div>'


def _legend(drawn: Drawn) -> str:
    names = "".join(
        f'<span><i style="background:{_COLORS[number % len(_COLORS)]}"></i>{escape(name)}</span>'
        for number, (name, _) in enumerate(drawn)
    )
    return f"<div class=legend>{names}</div>"


@dataclass(frozen=True, slots=True)
class _Field:
    """Where a graph's points lie."""

    width: int
    height: int
    span: tuple[float, float]
    least: float
    most: float

    def x(self, at: float) -> float:
        """Pixels from the left."""
        return _LEFT + (at - self.span[0]) / (self.span[1] - self.span[0]) * (self.width - _LEFT - 16)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        return _TOP + (1 - (value - self.least) / (self.most - self.least)) * (self.height - _TOP - _BOTTOM)

    def across(self, value: float, style: str) -> str:
        """A horizontal line."""
        y = self.y(value)
        return f'<line x1="{_LEFT}" x2="{self.width - 16}" y1="{y:.1f}" y2="{y:.1f}" {style}/>'


def _graph(panel: Mapping[str, Any], drawn: Drawn, width: int, height: int, span: tuple[float, float]) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    stacks = defaults["custom"]["stacking"]["mode"] == "normal"
    lines = _stacked(drawn) if stacks else [series.finite for _, series in drawn]
    most = max(value for line in lines for _, value in line)
    least = min(0.0, min(value for line in lines for _, value in line))
    field = _Field(width, height, span, least, defaults.get("max") or _round_up(most if most > least else least + 1))
    parts = [f'<svg width="{width}" height="{height}">', *_axes(field, FORMATS[defaults["unit"]])]
    if defaults["custom"]["thresholdsStyle"]["mode"] == "line":
        parts += [
            field.across(step["value"], f'stroke="{_BOUNDS[step["color"]]}" stroke-dasharray="5 4"')
            for step in defaults["thresholds"]["steps"]
            if step["value"] is not None and step["value"] <= field.most
        ]
    for number, line in reversed(list(enumerate(lines))):
        color = _COLORS[number % len(_COLORS)]
        for piece in _pieces(line):
            points = " ".join(f"{field.x(at):.1f},{field.y(value):.1f}" for at, value in piece)
            if stacks:
                first, last = field.x(piece[0][0]), field.x(piece[-1][0])
                floor = f"{last:.1f},{field.y(least):.1f} {first:.1f},{field.y(least):.1f}"
                parts.append(f'<polygon points="{points} {floor}" fill="{color}" fill-opacity="0.9"/>')
            parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>')
    parts.append("</svg>")
    return "".join(parts)


def _axes(field: _Field, shape: Callable[[float], str]) -> Iterator[str]:
    for part in range(5):
        value = field.least + (field.most - field.least) * part / 4
        yield field.across(value, 'stroke="#e4e7ea"')
        yield f'<text x="{_LEFT - 6}" y="{field.y(value) + 4:.1f}" text-anchor="end">{escape(shape(value))}</text>'
        at = field.span[0] + (field.span[1] - field.span[0]) * part / 4
        yield f'<text x="{field.x(at):.1f}" y="{field.height - 6}" text-anchor="middle">{at - field.span[0]:.0f} s</text>'


def _stacked(drawn: Drawn) -> list[list[tuple[float, float]]]:
    below: dict[float, float] = {}
    lines = []
    for _, series in drawn:
        line = []
        for at, value in series.finite:
            below[at] = below.get(at, 0.0) + value
            line.append((at, below[at]))
        lines.append(line)
    return lines


def _pieces(line: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """A line without its gaps."""
    pieces: list[list[tuple[float, float]]] = []
    for point in line:
        if pieces and point[0] - pieces[-1][-1][0] < 1.5:
            pieces[-1].append(point)
        else:
            pieces.append([point])
    return pieces


def _round_up(value: float) -> float:
    size = 10.0 ** len(str(int(value))) / 10 if value >= 1 else 1.0
    while value < size / 10 and size > 1e-9:
        size /= 10
    return next(size * step / 10 for step in (1, 2, 4, 5, 8, 10, 20, 40, 50, 80, 100) if size * step / 10 >= value)
