"""Writes the table of metrics in docs/operations.md from the metrics themselves; with --check only says if it differs."""

from __future__ import annotations

import sys
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from service.telemetry.metrics import Metrics

PAGE = Path(__file__).resolve().parent.parent / "docs" / "operations.md"
BEGIN, END = "<!-- generated: metrics -->\n", "<!-- /generated -->"
_SUFFIX = {"counter": "_total", "info": "_info"}


def table() -> str:
    """One row a metric, by name."""
    metrics = [value for value in vars(Metrics()).values() if isinstance(value, MetricWrapperBase)]
    rows = sorted(
        f"| `{metric._name}{_SUFFIX.get(metric._type or '', '')}` | {metric._type} | "
        f"{', '.join(f'`{label}`' for label in metric._labelnames)} | {metric._documentation} |"
        for metric in metrics
    )
    return "\n".join(["| metric | kind | labels | meaning |", "|---|---|---|---|", *rows]) + "\n"


def page_with_table(text: str) -> str:
    """The page with the table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table() + END + after


def main() -> int:
    """Writes, or with --check compares; 1 if the page differs."""
    old = PAGE.read_text()
    new = page_with_table(old)
    if "--check" in sys.argv[1:]:
        if old != new:
            print(f"{PAGE.name} differs from the metrics: run python scripts/metrics_reference.py", file=sys.stderr)
        return int(old != new)
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
