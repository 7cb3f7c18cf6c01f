"""Epochs of streams that outlive a node: `<8 random characters><start>`, the start in hexadecimal digits.

The start is the time at which the epoch began, in microseconds since the Unix epoch. It is greater than the start of any earlier
epoch of the channel, so two epochs can be ordered. A store that returns the older one again has lost the newer one.
"""

from __future__ import annotations

import secrets

MIN_EPOCH_AGE = 60.0
"""Minimum age of an epoch, in seconds, before the position of a client may end it. A client can send any position. Without this
limit it could make all members of a channel resync again and again."""

PREFIX_LENGTH = 8
"""Random characters before the start; they distinguish epochs that two nodes or stores begin at the same time."""
_START_DIGITS = 13
"""Digits of a start: enough from 1978 to 2112. Lua's numbers are doubles, which hold them exactly."""


def new_epoch(now: int, previous: str = "") -> str:
    """Returns an epoch that begins `now` (microseconds since the Unix epoch), after a previous one."""
    return f"{secrets.token_hex(PREFIX_LENGTH // 2)}{max(now, start_of(previous) + 1):x}"


def is_later(epoch: str, than: str) -> bool:
    """True if an epoch is known to have begun after another one of the same channel."""
    return 0 < start_of(than) < start_of(epoch)


def start_of(epoch: str) -> int:
    """Returns the time at which an epoch began, in microseconds since the Unix epoch; 0 if its text has no start."""
    digits = epoch[PREFIX_LENGTH:]
    try:
        return int(digits, 16) if len(digits) == _START_DIGITS else 0
    except ValueError:
        return 0
