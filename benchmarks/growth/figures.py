"""What a growth is: a cost of one unit, measured at several sizes. No I/O."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.figures import Spread, digits

FLAT = 0.05
"""Largest exponent of a cost that counts as constant: over a factor of 50 it is a factor of 1.2."""
NOISE = 1.1
"""Largest ratio that counts as constant, whatever its exponent."""


@dataclass(slots=True)
class Curve:
    """The cost of one unit by size. A constant cost means that the total grows linearly."""

    name: str
    unit: str
    target: float | None = None
    """Largest allowed ratio of the cost at the largest size to that at the smallest."""
    bound: str | None = None
    """The setting that bounds the growth, if it is bounded."""
    is_total: bool = False
    """True if the values are of all units together: then they may grow as the size does."""
    points: dict[int, Spread] = field(default_factory=dict)

    def add(self, size: int, values: Sequence[float]) -> None:
        """Adds the measured rounds of a size."""
        spread = Spread.of(values)
        if spread is None:
            raise ValueError(f"{self.name} has no values at {size}")
        self.points[size] = spread

    @property
    def ratio(self) -> float:
        """The cost at the largest size ÷ the cost at the smallest."""
        return self.points[max(self.points)].median / self.points[min(self.points)].median

    @property
    def exponent(self) -> float:
        """The exponent b of the fitted cost = a × size^b: 0 is constant, 1 grows as the size does; 0 with one size."""
        if len(self.points) < 2:
            return 0.0
        sizes = [math.log(size) for size in self.points]
        return statistics.linear_regression(sizes, [math.log(spread.median) for spread in self.points.values()]).slope

    @property
    def is_linear(self) -> bool:
        """Whether the total grows linearly or slower, and the target is met."""
        if self.target is not None:
            return self.ratio <= self.target
        return self.ratio <= NOISE or self.exponent <= FLAT + self.is_total

    @property
    def verdict(self) -> str:
        """The verdict for the table."""
        said = "linear or better" if self.is_linear else "worse than linear"
        if self.target is not None:
            said += f" (target ≤ {self.target:g} ×)"
        return said if self.bound is None else f"{said}, bounded by `{self.bound}`"

    def json(self) -> dict[str, Any]:
        """Returns all figures."""
        return {
            "name": self.name,
            "unit": self.unit,
            "points": {str(size): spread.json() for size, spread in self.points.items()},
            "ratio": digits(self.ratio),
            "exponent": round(self.exponent, 3),
            "linear": self.is_linear,
            **({} if self.target is None else {"target": self.target}),
            **({} if self.bound is None else {"bound": self.bound}),
        }


@dataclass(frozen=True, slots=True)
class Part:
    """The result of one part."""

    name: str
    title: str
    size: str
    """What the sizes count."""
    held: str
    """What is the same at all sizes."""
    curves: Sequence[Curve]
    plotted: Sequence[str]
    """The names of the curves in the plot."""
    note: str = ""
    """A sentence for the report."""

    def json(self) -> Mapping[str, Any]:
        """Returns all figures."""
        return {
            "title": self.title,
            "size": self.size,
            "held": self.held,
            "note": self.note,
            "curves": [curve.json() for curve in self.curves],
        }


def grouped(number: int) -> str:
    """Formats a whole number with spaces between groups of three digits."""
    return f"{number:,}".replace(",", " ")
