"""How data is shown in complaints: never much of it."""

from __future__ import annotations


def shorten(message: str, most: int = 200) -> str:
    """Cuts the middle out of a message that repeats a long value: what is wrong with it stands at the end."""
    if len(message) <= most:
        return message
    head = most // 3
    return f"{message[:head]} … {message[head + 3 - most :]}"
