"""What an edge hands to the realtime core: a transport's two ends."""

from __future__ import annotations

from typing import Protocol


class Socket(Protocol):
    """A message transport. The realtime core knows no more of it than this."""

    async def receive(self) -> str | bytes | None:
        """The next message: text, or bytes for a binary one, or None once the peer is gone (then for ever)."""

    async def send(self, payload: bytes) -> None:
        """Sends one text message; waits while the peer's unread bytes are over the transport's limit.

        Raises ConnectionError if the peer is gone.
        """

    async def close(self, code: int, reason: str) -> None:
        """Says goodbye and waits for the peer's answer, without a deadline of its own."""

    def abort(self) -> None:
        """Cuts the connection at once and frees its buffers."""

    @property
    def close_code(self) -> int:
        """The code with which the peer ended the connection; 1006 if it did so without one."""
