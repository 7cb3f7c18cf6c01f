"""Formats paths to values in JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def json_path(root: str, steps: Iterable[str | int]) -> str:
    """Returns a path to a value in JSON, such as `$.data.items[0].name`."""
    return root + "".join(map(_step, steps))


def _step(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if _PLAIN.fullmatch(step) else f"[{json.dumps(step[:64])}]"
