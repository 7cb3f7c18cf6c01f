"""Bar charts with whiskers as SVG, for light and dark mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.figures import Spread, digits

_WIDTH, _LABEL, _VALUE, _ROW, _TOP = 720, 170, 110, 28, 44
_STYLE = """
    text { font: 13px system-ui, sans-serif; fill: #1f2933 } .title { font-weight: 600 }
    .bar { fill: #9aa5b1 } .ours { fill: #2563eb } .whisker { stroke: #1f2933; stroke-width: 1.5 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e4e7eb } .bar { fill: #616e7c } .ours { fill: #60a5fa } .whisker { stroke: #e4e7eb } }
""".strip()


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a chart."""

    label: str
    value: Spread
    ours: bool = False


def chart(title: str, bars: Sequence[Bar]) -> str:
    """Returns an SVG document. Whiskers show the lowest and the highest round."""
    height = _TOP + _ROW * len(bars) + 8
    longest = max((bar.value.high for bar in bars), default=0) or 1
    scale = (_WIDTH - _LABEL - _VALUE) / longest
    rows = "\n".join(_row(bar, _TOP + _ROW * number, scale) for number, bar in enumerate(bars))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">\n  <style>{_STYLE}</style>\n'
        f'  <text class="title" x="8" y="22">{escape(title)}</text>\n{rows}\n</svg>\n'
    )


def _row(bar: Bar, top: int, scale: float) -> str:
    middle, end = top + _ROW // 2, _LABEL + bar.value.median * scale
    low, high = _LABEL + bar.value.low * scale, _LABEL + bar.value.high * scale
    kind = "bar ours" if bar.ours else "bar"
    return (
        f'  <text x="{_LABEL - 8}" y="{middle + 4}" text-anchor="end">{escape(bar.label)}</text>\n'
        f'  <rect class="{kind}" x="{_LABEL}" y="{top + 4}" width="{max(end - _LABEL, 1):.1f}" height="{_ROW - 8}" rx="2"/>\n'
        f'  <line class="whisker" x1="{low:.1f}" y1="{middle}" x2="{high:.1f}" y2="{middle}"/>\n'
        f'  <text x="{high + 8:.1f}" y="{middle + 4}">{digits(bar.value.median):g}</text>'
    )
