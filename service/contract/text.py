"""Shortens data in error messages."""

from __future__ import annotations


def shorten(message: str, max_length: int = 200) -> str:
    """Cuts the middle out of a long message: it repeats a value, and the reason is at its end."""
    if len(message) <= max_length:
        return message
    head = max_length // 3
    return f"{message[:head]} … {message[head + 3 - max_length :]}"
