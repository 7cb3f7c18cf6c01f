"""What one scenario found: a row of the table, and why it failed if it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.faults.oracle import Counts
from tests.faults.slowdown import CpuTimes, cpu_times, slowdown

_HEAD = (
    *("fault", "store", "what happened", "notice", "recover"),
    *("lost", "dup", "inv", "x-tenant", "announced", "verdict"),
)
_WIDE = 100
"""Characters of `what happened` in the table; the JSON has it whole."""


@dataclass
class Report:
    """A row. A scenario writes what happened; whatever broke its promise stands in `failures`."""

    fault: str
    store: str
    seed: int
    happened: list[str] = field(default_factory=list)
    notice: float | None = None
    """Seconds until the service knew."""
    recover: float | None = None
    """Seconds until everything was as before."""
    counts: Counts = field(default_factory=Counts)
    figures: dict[str, Any] = field(default_factory=dict)
    """Whatever else was measured."""
    failures: list[str] = field(default_factory=list)
    skipped: str = ""
    """Why it did not run."""
    seconds: float = 0.0
    least_patience: float = 1.0
    """By what bounds on seconds are multiplied at least."""
    started: CpuTimes = field(default_factory=cpu_times)

    @property
    def slowdown(self) -> float:
        """By what other work of the machine has slowed the scenario down so far."""
        return slowdown(self.started, cpu_times())

    @property
    def patience(self) -> float:
        """By what bounds on seconds are multiplied now."""
        return max(self.least_patience, self.slowdown)

    @property
    def verdict(self) -> str:
        """One word."""
        if self.skipped:
            return "skipped"
        return "FAILED" if self.failures else "ok"

    def tell(self, sentence: str) -> None:
        """Adds to what happened."""
        self.happened.append(sentence)

    def expect(self, holds: bool, otherwise: str) -> None:
        """Notes a failure unless it holds."""
        if not holds:
            self.failures.append(otherwise)

    def noticed(self, seconds: float | None, within: float) -> None:
        """Takes the time until the service knew; None: it did not."""
        self.notice = seconds
        self._in_time("noticed", seconds, within)

    def recovered(self, seconds: float | None, within: float) -> None:
        """Takes the time until everything was as before; None: it never was."""
        self.recover = seconds
        self._in_time("recovered", seconds, within)

    def _in_time(self, what: str, seconds: float | None, within: float) -> None:
        within *= self.patience
        self.expect(
            seconds is not None and seconds <= within, f"{what} after {_time(seconds)} s, not within {within:g} s"
        )

    def judged(self, counts: Counts) -> None:
        """Takes the oracle's counts, of which all but the announced losses must be 0."""
        self.counts = counts
        wrong = {
            "lost": counts.lost,
            "duplicated": counts.duplicated,
            "inverted": counts.inverted,
            "cross-tenant": counts.foreign,
            "behind": counts.behind,
        }
        if not counts.clean:
            found = ", ".join(f"{count} {name}" for name, count in wrong.items() if count)
            self.failures.append(f"the promise was broken: {found}")

    def row(self) -> tuple[str, ...]:
        """For the table."""
        counts = self.counts
        figures = (counts.lost, counts.duplicated, counts.inverted, counts.foreign, counts.announced)
        what = self.skipped or "; ".join(self.happened)
        return (
            self.fault,
            self.store,
            what if len(what) <= _WIDE else what[: _WIDE - 1] + "…",
            _time(self.notice),
            _time(self.recover),
            *(("-",) * 5 if self.skipped else map(str, figures)),
            self.verdict,
        )

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        return {**asdict(self), "verdict": self.verdict}


def table(reports: Sequence[Report]) -> str:
    """The reports as a table, then each failure in words."""
    rows = [_HEAD, *(report.row() for report in reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-|-".join("-" * width for width in widths))
    for report in reports:
        if report.failures:
            lines.append(f"\n{report.fault} on {report.store} (seed {report.seed}):")
            lines += [f"  - {failure}" for failure in report.failures]
            lines += [f"      {example}" for example in report.counts.examples]
    return "\n".join(lines)


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f}"
