"""Ending the sending half of a connection."""

from __future__ import annotations

import asyncio
from contextlib import suppress


def end_sending(transport: asyncio.Transport | None) -> None:
    """Ends this side, so that the peer sees the last of it whatever it still sends; harmless if the connection is over."""
    if transport is not None and not transport.is_closing() and transport.can_write_eof():
        with suppress(OSError):  # a reset that nobody has read yet
            transport.write_eof()
