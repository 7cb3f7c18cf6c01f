"""Writes the growth as Markdown, SVG and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.growth.figures import Curve, Part, grouped
from benchmarks.growth.plot import plot
from benchmarks.report import number, table


def write(parts: Sequence[Part], machine: Mapping[str, Any], folder: Path) -> Path:
    """Writes growth.json, growth.md and a chart for each part into `folder`; returns the Markdown file."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"machine": dict(machine), "parts": {part.name: part.json() for part in parts}}
    (folder / "growth.json").write_text(json.dumps(document, indent=1) + "\n")
    for part in parts:
        (folder / f"growth-{part.name}.svg").write_text(plot(part))
    written = folder / "growth.md"
    written.write_text("\n".join(section(part) for part in parts))
    return written


def section(part: Part) -> str:
    """Returns the Markdown of a part."""
    sizes = sorted({size for curve in part.curves for size in curve.points})
    head = ("cost of one", *(grouped(size) for size in sizes), "growth", "exponent", "verdict")
    rows = [_row(curve, sizes) for curve in part.curves]
    return (
        f"### {part.title}\n\n![{part.title}](growth-{part.name}.svg)\n\n"
        f"Columns: {part.size}. Held constant: {part.held}.\n\n{table(head, rows)}"
        + (f"\n{part.note}\n" if part.note else "")
    )


def _row(curve: Curve, sizes: Sequence[int]) -> Sequence[str]:
    cells = (number(curve.points[size].median) if size in curve.points else "–" for size in sizes)
    return (f"{curve.name}: {curve.unit}", *cells, f"{curve.ratio:.2f} ×", f"{curve.exponent:+.2f}", curve.verdict)
