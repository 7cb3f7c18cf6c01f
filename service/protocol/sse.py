r"""Encodes messages as server-sent events (HTML Living Standard, section 9.2).

Example:
    event(b'{"type": "pong"}')  # b'data: {"type": "pong"}\n\n'

JSON text has line breaks only between tokens, never inside a string (RFC 8259, section 7). So replacing each of them by a
space keeps the message, and the client gets it in one line.
"""

from __future__ import annotations

COMMENT = b":\n\n"
"""An event that clients ignore. It keeps a silent stream open at proxies."""

_SPACE_FOR_BREAK = bytes.maketrans(b"\r\n", b"  ")


def event(payload: bytes, id: bytes = b"") -> bytes:
    """Encodes a message of JSON text. With an `id`, a client that reconnects sends it as Last-Event-ID."""
    if b"\n" in payload or b"\r" in payload:
        payload = payload.translate(_SPACE_FOR_BREAK)
    return b"id: %b\ndata: %b\n\n" % (id, payload) if id else b"data: %b\n\n" % payload


def retry(seconds: float) -> bytes:
    """Sets how long a client waits before it reconnects."""
    return b"retry: %d\n\n" % round(seconds * 1000)
