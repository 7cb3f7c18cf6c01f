"""Buffers the messages of a connection until it is authenticated and its session handler takes over."""

from __future__ import annotations

import asyncio
from collections import deque
from sys import getsizeof

from service.realtime.connections.transport import Transport

MAX_QUEUED = 16
"""Messages that may be buffered. At this number, reading is paused."""
MAX_QUEUED_BYTES = 65_536
"""Bytes of buffered messages in memory. At this number, reading is paused."""


class PreAuthBuffer:
    """The message handler of a transport from its upgrade until its session handler replaces it."""

    __slots__ = ("_arrived", "_size", "has_ended", "is_lost", "queued", "transport")

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.queued: deque[str | bytes] | None = None
        self.is_lost = False
        """True once the connection is lost."""
        self.has_ended = False
        """True once the client has closed its sending side."""
        self._arrived: asyncio.Future[None] | None = None
        self._size = 0

    async def receive(self) -> str | bytes | None:
        """Waits for the next message and returns it. None if no message can follow."""
        if not self.queued and not self.is_lost and not self.has_ended:
            self._arrived = asyncio.get_running_loop().create_future()
            await self._arrived
        if not self.queued:
            return None
        message = self.queued.popleft()
        self.transport.count_held(-getsizeof(message))
        return message

    def message_received(self, message: str | bytes) -> None:
        """Queues a message, and pauses reading at the limits."""
        if self.queued is None:
            self.queued = deque()
        self.queued.append(message)
        size = getsizeof(message)
        self._size += size
        self.transport.count_held(size)
        if len(self.queued) >= MAX_QUEUED or self._size >= MAX_QUEUED_BYTES:
            self.transport.pause_reading()
        self._wake()

    def pause_writing(self) -> None:
        """Does nothing: before authentication, nothing is written that could be delayed."""

    def resume_writing(self) -> None:
        """Does nothing."""

    def eof_received(self) -> bool:
        """Returns True if `receive` does not wait: then a message is being handled, or will be next."""
        self.has_ended = True
        return self._arrived is None or self._arrived.done()

    def connection_lost(self) -> None:
        """Ends the wait for a message."""
        self.is_lost = True
        self._wake()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)
