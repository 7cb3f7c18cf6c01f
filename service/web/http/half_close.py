"""Closing the sending half of a connection."""

from __future__ import annotations

import asyncio
from contextlib import suppress


def half_close(transport: asyncio.Transport | None) -> None:
    """Closes the sending half, so that the peer reads everything that was written; harmless on a closed transport.

    A full close with unread bytes in the kernel would reset the connection, and the peer could lose the response.
    """
    if transport is not None and not transport.is_closing() and transport.can_write_eof():
        with suppress(OSError):  # the peer has reset the connection, and asyncio has not noticed yet
            transport.write_eof()
