"""Shortens data in error messages."""

from __future__ import annotations


def shorten(message: str, max_length: int = 200) -> str:
    """Removes the middle of a long message. The message starts with a copy of the value and ends with the reason."""
    if len(message) <= max_length:
        return message
    head = max_length // 3
    return f"{message[:head]} … {message[head + 3 - max_length :]}"
