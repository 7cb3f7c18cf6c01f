"""Parses durations: `100ms`, `5s`, `15m`, `24h`, `7d`."""

from __future__ import annotations

import re

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?P<number>[0-9]{1,9}(?:\.[0-9]{1,6})?)(?P<unit>ms|s|m|h|d)")


def seconds(text: object) -> float:
    """Parses a duration. Only 0 needs no unit.

    Raises ValueError with a sentence.
    """
    if text == 0 and not isinstance(text, bool):
        return 0.0
    if not isinstance(text, str) or not (found := _DURATION.fullmatch(text)):
        raise ValueError(f"{str(text)[:40]!r} is not a duration such as 100ms, 5s, 15m, 24h or 7d")
    return float(found["number"]) * _UNITS[found["unit"]]
