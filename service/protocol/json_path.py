"""Places in JSON as people write them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def json_path(root: str, steps: Iterable[str | int]) -> str:
    """A place in JSON: `$.data.items[0].name`."""
    return root + "".join(map(_step, steps))


def _step(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if _PLAIN.fullmatch(step) else f"[{json.dumps(step[:64])}]"
