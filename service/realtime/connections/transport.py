"""The ports between WebSockets and the realtime core: a transport sends messages, and its handler gets received ones.

Example:
    transport.handler = handler
    transport.write(framing.frame(framing.TEXT, payload))
    transport.close(1000, "bye")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from service.core.identity import Identity
from service.realtime.connections.byte_budget import Account

UNREAD_FD = -2
"""Stands for the `fd` of a transport until a batch sender first needs it."""


@runtime_checkable
class IdentityHolder(Protocol):
    """A handler whose connection can get a new identity without a command of its client."""

    def replace_identity(self, old: Identity, new: Identity) -> None:
        """Gives the connection a new identity, between the client's commands. Does nothing if it has another one than `old`."""


@runtime_checkable
class ServerSubscriber(Protocol):
    """A message handler whose client the backend can subscribe to channels."""

    def subscribe(self, channel: str, grant: Identity) -> bool:
        """Subscribes the client to a channel, between its own commands, with the rights of the grant. Never raises.

        Returns False, and does nothing, if the client keeps the node too busy.
        """

    def cancel_subscribe(self, channel: str) -> bool:
        """Drops a `subscribe` to the channel that still waits for the client's command. False if there is none."""


class MessageHandler(Protocol):
    """Handles what a transport receives, on the event loop. Its methods never raise. Their names follow asyncio.Protocol."""

    def message_received(self, message: str | bytes) -> None:
        """Called for each message: str for a text message, bytes for a binary one."""

    def pause_writing(self) -> None:
        """Called when the client does not take a write. Until `resume_writing`, this process holds later writes."""

    def resume_writing(self) -> None:
        """Called when the client has taken all writes."""

    def eof_received(self) -> bool:
        """Called when the client has closed its sending side: no more messages follow. May be called again.

        Returns True while a message is being handled. Then the handler calls `Transport.close_when_written` when it is done.
        """

    def connection_lost(self) -> None:
        """Called once, after all other calls."""


class Writer(Protocol):
    """Writes frames for a transport. A connection keeps it instead of a bound method, which would take 64 bytes."""

    def write(self, frames: bytes, /) -> None:
        """Does what `Transport.write` does."""


class Transport(Protocol):
    """Sends and receives messages. The realtime core knows nothing else of the network."""

    is_writing_paused: bool
    """True from `MessageHandler.pause_writing` to `resume_writing`."""
    has_received: bool
    """True once the client has sent anything since a caller last set this to False."""
    is_reading_paused: bool
    """True between `pause_reading` and `resume_reading`."""
    answers_pings: bool
    """True if the client answers pings. Else a ping only keeps a silent connection open at proxies."""
    has_receipts: bool
    """True if the client has a receipt, with which it also sends requests without this transport."""
    may_continue: bool
    """True if the client's session goes on after this transport, at any node. Then its user stays present for a while."""
    window_bits: int
    """The size of the client's inflate window; 0 if it takes no compressed frames."""
    handler: MessageHandler
    account: Account
    """The account that counts the bytes held for the client."""

    @property
    def writer(self) -> Writer:
        """Writes what `write` writes, with fewer calls. It may be the transport itself."""

    def write(self, frames: bytes, /) -> None:
        """Writes one or more WebSocket frames (protocol/framing.py). Never blocks and never raises. While `is_writing_paused`,
        this process holds the written bytes."""

    def set_account(self, account: Account) -> None:
        """Moves the held bytes to another account, which counts from now on."""

    def count_held(self, size: int) -> None:
        """Counts bytes that are held for the client, at most until the connection is lost. A negative size subtracts."""

    def count_unsent(self, at_least: int = 0) -> None:
        """Counts the written bytes that the client has not taken. `at_least`: the size of a write that is held until sent."""

    def pause_reading(self) -> None:
        """Passes no messages to the handler until `resume_reading`."""

    def resume_reading(self) -> None:
        """Passes messages again, the first one after this call returns. Does nothing if reading is not paused."""

    def ping(self) -> None:
        """Sends a ping."""

    def close(self, code: int, reason: str) -> None:
        """Sends a close frame and ignores later messages. Aborts if the client does not answer within `outbox.close_grace`. Only
        the first call has an effect."""

    def close_when_written(self) -> None:
        """Closes without a close frame once the client has taken all writes. Used after `eof_received`."""

    def abort(self) -> None:
        """Closes the connection at once without a close frame, and frees its buffers."""

    @property
    def fd(self) -> int:
        """The file descriptor for a batch sender; -1 without one, and while other bytes must be written first.

        It is valid while nothing is queued. After `MessageHandler.connection_lost` the number may belong to another connection.
        """

    @property
    def close_code(self) -> int:
        """The code of the first close frame, sent or received; 1006 without one."""


class BatchSender(Protocol):
    """Writes one frame to many sockets."""

    def __call__(self, fds: list[int], frame: bytes) -> Sequence[tuple[int, int]]:
        """Writes the frame to each file descriptor. Never blocks.

        Returns the index of each descriptor that did not take the whole frame, and the bytes that it took: 0 after an error.
        The caller passes the rest to the transport's `write`, which handles the error.
        """
