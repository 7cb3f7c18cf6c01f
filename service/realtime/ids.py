"""Random ids for events, connections and nodes."""

from __future__ import annotations

import os
from base64 import urlsafe_b64encode

_BLOCK = 256
"""Ids made at a time. Most of the cost is the system call, which one block needs once."""
_spare: list[str] = []
os.register_at_fork(after_in_child=_spare.clear)  # else parent and child would return the same ids


def new_id() -> str:
    """Returns a new id of 96 random bits."""
    if not _spare:
        text = urlsafe_b64encode(os.urandom(12 * _BLOCK)).decode()
        _spare.extend(text[start : start + 16] for start in range(0, len(text), 16))
    return _spare.pop()
