"""The ear of a socket that nobody has vouched for yet, or whose connection is being set up."""

from __future__ import annotations

import asyncio
from collections import deque
from sys import getsizeof

from service.realtime.connections.transport import Transport

MAX_WAITING = 16
"""Messages that may come before the first has been answered; then nothing more is read."""
MAX_BYTES = 65_536
"""Of all of them, as they lie in memory, however few: nobody has vouched for whoever sends them."""


class PreAuthBuffer:
    """Keeps what comes, until somebody takes it."""

    __slots__ = ("_come", "_size", "has_ended", "is_over", "transport", "waiting")

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.waiting: deque[str | bytes] | None = None
        self.is_over = False
        """Whether the socket is lost."""
        self.has_ended = False
        """Whether the peer has ended its sending side."""
        self._come: asyncio.Future[None] | None = None
        self._size = 0

    async def first(self) -> str | bytes | None:
        """The first message; None if none can come any more."""
        if not self.waiting and not self.is_over and not self.has_ended:
            self._come = asyncio.get_running_loop().create_future()
            await self._come
        if not self.waiting:
            return None
        message = self.waiting.popleft()
        self.transport.count_held(-getsizeof(message))
        return message

    def message_received(self, message: str | bytes) -> None:
        """See Ear."""
        if self.waiting is None:
            self.waiting = deque()
        self.waiting.append(message)
        size = getsizeof(message)
        self._size += size
        self.transport.count_held(size)
        if len(self.waiting) >= MAX_WAITING or self._size >= MAX_BYTES:
            self.transport.pause_reading()
        self._tell()

    def pause_writing(self) -> None:
        """See Ear."""

    def resume_writing(self) -> None:
        """See Ear."""

    def eof_received(self) -> bool:
        """See Ear. Unless the first message is being waited for, somebody is about to answer something."""
        self.has_ended = True
        return self._come is None or self._come.done()

    def connection_lost(self) -> None:
        """See Ear."""
        self.is_over = True
        self._tell()

    def _tell(self) -> None:
        if self._come is not None and not self._come.done():
            self._come.set_result(None)
