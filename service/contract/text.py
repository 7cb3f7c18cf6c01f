"""How data is shown in complaints: never much of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def shorten(message: str, most: int = 200) -> str:
    """Cuts the middle out of a message that repeats a long value: what is wrong with it stands at the end."""
    if len(message) <= most:
        return message
    head = most // 3
    return f"{message[:head]} … {message[head + 3 - most :]}"


def json_path(root: str, steps: Iterable[str | int]) -> str:
    """A place in JSON as people write it: `$.data.items[0].name`."""
    return root + "".join(map(_step, steps))


def _step(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if _PLAIN.fullmatch(step) else f"[{json.dumps(step[:64])}]"
