"""What the transports of WebSockets and event streams share: they count the bytes that are held for the peer."""

from __future__ import annotations

import asyncio

from service.realtime.connections.byte_budget import Account
from service.realtime.connections.transport import MessageHandler


class PeerTransport(asyncio.Protocol):
    """Counts held bytes on an account, unsent ones included, at most until the connection is lost."""

    __slots__ = ("_held_bytes", "_transport", "_unsent_bytes", "account", "handler", "is_writing_paused")

    handler: MessageHandler
    """Must be set before any other use."""

    def __init__(self, transport: asyncio.Transport, account: Account) -> None:
        self.account = account
        self._transport = transport
        self.is_writing_paused = False
        self._held_bytes = 0
        """Bytes counted on the account, unsent ones included."""
        self._unsent_bytes = 0

    @property
    def is_lost(self) -> bool:
        """True once the TCP connection has ended, and no bytes are counted for the peer."""
        raise NotImplementedError

    def set_account(self, account: Account) -> None:
        """Moves the held bytes to another account."""
        self.account.add(-self._held_bytes)
        account.add(self._held_bytes)
        self.account = account

    def count_held(self, size: int) -> None:
        """Changes the number of held bytes."""
        if size and not self.is_lost:
            self._held_bytes += size
            self.account.add(size)

    def count_unsent(self, at_least: int = 0) -> None:
        """Counts the unsent bytes. While writing is paused, the count never falls: the transport frees a write only
        when all of it is sent."""
        unsent = (
            max(self._unsent_bytes, at_least, self._transport.get_write_buffer_size()) if self.is_writing_paused else 0
        )
        change, self._unsent_bytes = unsent - self._unsent_bytes, unsent
        self.count_held(change)

    def pause_writing(self) -> None:
        """Reports to the handler that bytes wait in this process."""
        self.is_writing_paused = True
        self.count_unsent()
        self.handler.pause_writing()

    def _release_held(self) -> None:
        """Subtracts all held bytes. Call it when the connection is lost."""
        self.account.add(-self._held_bytes)
        self._held_bytes = 0


class _NullHandler:
    """The handler of a finished connection: ignores everything."""

    def message_received(self, message: str | bytes) -> None:
        """Ignores the message."""

    def pause_writing(self) -> None:
        """Ignores the event."""

    def resume_writing(self) -> None:
        """Ignores the event."""

    def eof_received(self) -> bool:
        """Reports that nothing is in progress."""
        return False

    def connection_lost(self) -> None:
        """Ignores the event."""


NULL_HANDLER = _NullHandler()
"""Takes the place of the handler of a finished connection. This breaks a reference cycle, so that everything is freed at once."""
