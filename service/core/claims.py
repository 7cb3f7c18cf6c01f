"""Bounds of what a token, or the backend's answer to a hook, says of a user. Pure.

Each function returns the value, or raises ValueError with a sentence that begins with a verb and does not quote the value.
"""

from __future__ import annotations

import json
from typing import Any

MAX_USER = 128
"""Characters."""
MAX_INFO = 1024
"""Bytes of JSON."""
MAX_CHANNELS = 32
"""Channels to which a token subscribes each connection."""

_encode_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def check_user(user: Any) -> str:
    """Returns the id of a user."""
    # Invisible characters would make two names look the same in logs, lists and messages.
    if not isinstance(user, str) or not 1 <= len(user) <= MAX_USER or not user.isprintable() or user != user.strip():
        raise ValueError(f"is not 1 to {MAX_USER} printable characters without spaces around them")
    return user


def encode_info(value: Any) -> bytes:
    """Returns what presence shows of a user, as JSON."""
    if not isinstance(value, dict):
        raise ValueError("is not an object")  # noqa: TRY004  # one kind of failure for every malformed claim
    try:
        info = _encode_json(value).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError("cannot be written as JSON") from error
    if len(info) > MAX_INFO:
        raise ValueError(f"is larger than {MAX_INFO} bytes")
    return info


def check_channels(channels: Any) -> tuple[str, ...]:
    """Returns the channels to which each connection is subscribed, each once."""
    if not isinstance(channels, list) or len(channels) > MAX_CHANNELS:
        raise ValueError(f"is not a list of at most {MAX_CHANNELS} channels")
    if not all(isinstance(channel, str) for channel in channels):
        raise ValueError("has something that is no text")
    return tuple(dict.fromkeys(channels))
