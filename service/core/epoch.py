"""Epochs of streams that outlive a node: `<8 random characters><start>`, the start in hexadecimal digits.

The start is the time at which the epoch began, in microseconds since the Unix epoch. It is greater than the start of any
earlier epoch of the channel. So two epochs can be ordered, and a store that shows the older one again has lost the newer.
"""

from __future__ import annotations

import secrets

MIN_EPOCH_AGE = 60.0
"""Seconds that an epoch must have lasted before the position of a client may end it. A client can claim any position: without
this bound it could make everyone in a channel resync again and again."""

PREFIX_LENGTH = 8
"""Random characters before the start; they distinguish epochs that two nodes or stores begin at the same time."""
_START_DIGITS = 13
"""Digits of a start: enough from 1978 to 2112, and exact as a double, which is all that Lua has."""


def new_epoch(now: int, previous: str = "") -> str:
    """Returns an epoch that begins `now` (microseconds since the Unix epoch), after a previous one."""
    return f"{secrets.token_hex(PREFIX_LENGTH // 2)}{max(now, start_of(previous) + 1):x}"


def is_later(epoch: str, than: str) -> bool:
    """Whether an epoch is known to have begun after another one of the same channel."""
    return 0 < start_of(than) < start_of(epoch)


def start_of(epoch: str) -> int:
    """When an epoch began, in microseconds since the Unix epoch; 0 if its text does not say."""
    digits = epoch[PREFIX_LENGTH:]
    try:
        return int(digits, 16) if len(digits) == _START_DIGITS else 0
    except ValueError:
        return 0
