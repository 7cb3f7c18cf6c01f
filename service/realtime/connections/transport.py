"""What an edge hands to the realtime core, a transport's two ends, and what it tells the core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from service.realtime.connections.byte_budget import Account


class MessageHandler(Protocol):
    """Whom a socket tells. Called on the event loop; never raises."""

    def received(self, message: str | bytes) -> None:
        """A message came: text, or bytes for a binary one."""

    def paused(self) -> None:
        """The peer does not take what it was sent: what is written from here on waits in this process."""

    def resumed(self) -> None:
        """It has taken everything."""

    def ended(self) -> bool:
        """The peer has ended its sending side: nothing more comes. Whether something that has come is still in hand: then
        `Transport.hang_up` is called when that is done. May come again."""

    def lost(self) -> None:
        """The connection is over. Comes once, last."""


class Transport(Protocol):
    """A message transport. The realtime core knows no more of it than this."""

    write: Callable[[bytes], None]
    """Sends WebSocket frames (protocol/framing.py), as many as there are in the bytes. Never blocks and never raises;
    whoever writes although `is_paused` makes this process keep it."""
    is_paused: bool
    """Whether something that was written has not gone out yet."""
    heard: bool
    """Set whenever the peer sends anything; whoever wants to know clears it first."""
    is_held: bool
    """Whether reading is paused: what the peer says meanwhile, nobody hears."""
    window_bits: int
    """Of the deflated frames that the peer takes; 0 if it takes none."""
    handler: MessageHandler
    account: Account
    """What counts the bytes that are held for the peer."""

    def charge(self, account: Account) -> None:
        """Counts on another account from here on, what is held already too."""

    def hold(self, size: int) -> None:
        """Counts bytes that are kept for the peer until it is lost, or that no longer are (negative)."""

    def count_unsent(self, at_least: int = 0) -> None:
        """Counts what has been written and has not gone out: `at_least` of a write that is kept whole until it has."""

    def pause_reading(self) -> None:
        """Nothing more is received until `resume_reading`."""

    def resume_reading(self) -> None:
        """Ends that; what comes then comes later, never before this returns. Harmless if reading is not paused."""

    def ping(self) -> None:
        """Asks the peer for a sign of life."""

    def close(self, code: int, reason: str) -> None:
        """Says goodbye; what comes from the peer after is dropped. Cuts it if it has not answered after
        `outbox.close_grace`. Only the first call counts."""

    def hang_up(self) -> None:
        """Ends the connection of a peer that has `ended`, once all that was written has gone out."""

    def abort(self) -> None:
        """Cuts the connection at once and frees its buffers."""

    @property
    def fd(self) -> int:
        """The descriptor that a Sender may write frames to; -1 if there is none, or something else must go there before.
        Once got, it is good for as long as nothing waits to be written and the ear has not been told that all is `lost`:
        after that the number may be another connection's."""

    @property
    def close_code(self) -> int:
        """The code with which it ended, whoever said it first; 1006 if nobody has."""


class BatchSender(Protocol):
    """Writes one frame to many sockets at once."""

    def __call__(self, fds: list[int], frame: bytes) -> Sequence[tuple[int, int]]:
        """Gives the frame to each descriptor. Never blocks. Returns the index of each that did not take all of it, and how many
        bytes it took, 0 if it has failed: the rest is for the socket's `write`, which finds out why."""
