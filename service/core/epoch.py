"""Epochs of streams that outlive a node: `<8 characters><number>`, the number in hexadecimal digits.

The number is the microseconds since 1970 at which the epoch began, and greater than that of any epoch before it in the same
channel. So of two epochs one can tell which is older, and a store that shows the older one again has lost the newer.
"""

from __future__ import annotations

import secrets

MIN_EPOCH_AGE = 60.0
"""Seconds that an epoch must have lasted before a position that only a client knows may end it. A client can claim any position:
without this it could have all others of a channel start anew again and again."""

PREFIX = 8
"""Characters before the number; they tell apart what two nodes or two stores begin at the same time."""
_DIGITS = 13
"""Of a number: from 1978 to 2112, and what a double can hold, as Lua has them."""


def new_epoch(now: int, before: str = "") -> str:
    """An epoch that begins `now` (microseconds since 1970), after another."""
    return f"{secrets.token_hex(PREFIX // 2)}{max(now, number(before) + 1):x}"


def is_later(epoch: str, than: str) -> bool:
    """Whether an epoch is known to have begun after another in the same channel."""
    return 0 < number(than) < number(epoch)


def number(epoch: str) -> int:
    """The number in an epoch; 0 for one of another kind, of which nobody can tell when it began."""
    digits = epoch[PREFIX:]
    try:
        return int(digits, 16) if len(digits) == _DIGITS else 0
    except ValueError:
        return 0
