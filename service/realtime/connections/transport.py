"""The ports between an edge and the realtime core: a transport for messages, and the handler of what it receives.

Example:
    transport.handler = handler
    transport.write(framing.frame(framing.TEXT, payload))
    transport.close(1000, "bye")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from service.realtime.connections.byte_budget import Account


class MessageHandler(Protocol):
    """Handles what a transport receives. Called on the event loop; never raises. The names are those of asyncio.Protocol."""

    def message_received(self, message: str | bytes) -> None:
        """Called for each message: str for a text message, bytes for a binary one."""

    def pause_writing(self) -> None:
        """Called when the peer does not take a write: later writes are kept in this process."""

    def resume_writing(self) -> None:
        """Called when the peer has taken all writes."""

    def eof_received(self) -> bool:
        """Called when the peer has ended its sending side, so that no more messages come. May be called again.

        Returns True while a message is being handled: then call `Transport.close_when_written` afterwards.
        """

    def connection_lost(self) -> None:
        """Called once, as the last call."""


class Transport(Protocol):
    """Sends and receives messages. It is all that the realtime core knows of a connection."""

    write: Callable[[bytes], None]
    """Writes WebSocket frames (protocol/framing.py), one or several. Never blocks and never raises. While `is_writing_paused`,
    this process keeps what is written."""
    is_writing_paused: bool
    """True while the peer has not taken a write."""
    has_received: bool
    """Set to True whenever the peer sends anything. Set it to False to wait for that."""
    is_reading_paused: bool
    """True between `pause_reading` and `resume_reading`."""
    window_bits: int
    """The size of the peer's inflate window; 0 if it takes no compressed frames."""
    handler: MessageHandler
    account: Account
    """Counts the bytes that are held for the peer."""

    def set_account(self, account: Account) -> None:
        """Counts on another account from now on, bytes that are held already included."""

    def count_held(self, size: int) -> None:
        """Counts bytes that are kept for the peer until the connection is lost. Negative: bytes no longer kept."""

    def count_unsent(self, at_least: int = 0) -> None:
        """Counts the written bytes that the peer has not taken. `at_least`: the size of a write that is kept whole until then."""

    def pause_reading(self) -> None:
        """Receives no messages until `resume_reading`."""

    def resume_reading(self) -> None:
        """Receives messages again, never before this call returns. Does nothing if reading is not paused."""

    def ping(self) -> None:
        """Sends a ping."""

    def close(self, code: int, reason: str) -> None:
        """Sends a close frame and ignores later messages. Cuts the connection if the peer does not answer within
        `outbox.close_grace`. Only the first call counts."""

    def close_when_written(self) -> None:
        """Ends the connection without a close frame, once the peer has taken all writes; for a peer after `eof_received`."""

    def abort(self) -> None:
        """Cuts the connection at once, and frees its buffers."""

    @property
    def fd(self) -> int:
        """The file descriptor for a batch sender; -1 without one, and while something else must be written before.

        It is valid while nothing is queued, and until `MessageHandler.connection_lost`: after that, the number may belong to
        another connection.
        """

    @property
    def close_code(self) -> int:
        """The code of the first close frame, whoever sent it; 1006 without one."""


class BatchSender(Protocol):
    """Writes one frame to many sockets."""

    def __call__(self, fds: list[int], frame: bytes) -> Sequence[tuple[int, int]]:
        """Writes the frame to each file descriptor. Never blocks.

        Returns the index of each descriptor that did not take the whole frame, and how many bytes it took; 0 after an error.
        Pass the rest to the transport's `write`, which handles the error.
        """
