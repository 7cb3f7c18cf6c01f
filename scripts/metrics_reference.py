"""Writes the table in docs/reference/metrics.md from the metrics. `--check` writes nothing and fails if it differs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from service.telemetry.fast_metrics import FastCounterFamily, FastGauge, FastHistogram, Mirror
from service.telemetry.metrics import Metrics

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "metrics.md"
BEGIN, END = "<!-- generated: metrics -->\n", "<!-- /generated -->"
_SUFFIX = {"counter": "_total", "info": "_info"}


def table() -> str:
    """One row a metric, by name."""
    rows = []
    metrics = Metrics()
    groups = (vars(group).values() for group in vars(metrics).values() if type(group).__name__.endswith("Metrics"))
    for metric in (metrics.metric_errors, *chain.from_iterable(groups)):
        if isinstance(metric, MetricWrapperBase):
            rows.append(_row(metric._name, metric._type or "", metric._labelnames, metric._documentation))
        elif isinstance(metric, FastCounterFamily | FastGauge | Mirror | FastHistogram):
            rows.append(_row(metric.name, metric.kind, metric.label_names, metric.text))
    rows.sort()
    return "\n".join(["| metric | kind | labels | meaning |", "|---|---|---|---|", *rows]) + "\n"


def _row(name: str, kind: str, labels: Sequence[str], text: str) -> str:
    return f"| `{name}{_SUFFIX.get(kind, '')}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {text} |"


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
