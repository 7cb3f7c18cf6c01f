"""The transport of a session of long polls: collects what is written until the response."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from service.core.broker import DeliveredHead
from service.core.last_event_id import Positioned, read_positions
from service.core.position import Position
from service.protocol import framing, messages
from service.protocol.close import CloseCode
from service.realtime.connections.byte_budget import Account
from service.realtime.connections.transport import MessageHandler

_UNKNOWN = -1
"""The state version of a channel that must be read again."""


class PollTransport:
    """Implements Transport. Between two polls, nothing is kept: the next poll reads it."""

    __slots__ = (
        "_held_bytes",
        "_on_end",
        "_ready",
        "account",
        "closed",
        "handler",
        "heads",
        "is_expiry_announced",
        "is_finished",
        "is_moved",
        "may_continue",
        "payloads",
    )

    answers_pings = True
    has_receipts = True
    is_reading_paused = False
    is_writing_paused = False
    window_bits = 0
    fd = -1
    handler: MessageHandler

    def __init__(self, account: Account, on_end: Callable[[], None]) -> None:
        """`on_end` is called when the session ends at this node, at most once."""
        self.account = account
        self._on_end = on_end
        self.may_continue = True
        self.payloads: list[bytes] = []
        """Messages, or arrays of messages, in order."""
        self.heads: dict[str, DeliveredHead] = {}
        """How far each live channel is served by `payloads`."""
        self.closed: tuple[int, str] | None = None
        self.is_finished = True
        """True between two polls."""
        self.is_moved = False
        """True if the session goes on at another node."""
        self.is_expiry_announced = False
        """True if the client has got `expiring` for its token, in this poll or before."""
        self._held_bytes = 0
        self._ready = asyncio.Event()

    def begin(self, *, is_expiry_announced: bool) -> None:
        """Starts to collect for a poll."""
        self.payloads, self.heads = [], {}
        self.is_finished = self.closed is not None or self.is_moved
        self.is_expiry_announced = is_expiry_announced
        self._ready.clear()
        if self.is_finished:
            self._ready.set()

    @property
    def size(self) -> int:
        """Bytes of the payloads."""
        return sum(map(len, self.payloads))

    @property
    def has_received(self) -> bool:
        """True: a client that does not poll again loses its session by the lease."""
        return True

    @has_received.setter
    def has_received(self, value: bool) -> None:
        """Does nothing."""

    @property
    def writer(self) -> PollTransport:
        """The transport itself."""
        return self

    def write(self, wire: bytes, /) -> None:
        """Keeps the messages for the response."""
        if self.is_finished:
            return
        self.count_held(len(wire))
        for payload in framing.payloads(wire):
            self.payloads.append(payload)
            for message in read_positions(payload):
                self._advance(message)
        self._ready.set()

    def _advance(self, message: Positioned) -> None:
        channel = message.channel
        head = self.heads.get(channel)
        if message.type == "expiring":
            self.is_expiry_announced = True
        elif message.type == "subscribed":
            position = Position(message.epoch or "", message.offset or 0, message.last)
            self.heads[channel] = DeliveredHead(position, _UNKNOWN)
        elif message.type == "unsubscribed":
            self.heads.pop(channel, None)
        elif head is not None and "." in message.type:
            position, version = head.position, head.state_version
            if message.offset is not None:
                position = Position(position.epoch, message.offset, message.id)
            self.heads[channel] = DeliveredHead(position, max(version, message.rev or _UNKNOWN))

    def record_version(self, channel: str, version: int) -> None:
        """Records the state version of the snapshot with which a channel has started."""
        head = self.heads.get(channel)
        if head is not None:
            self.heads[channel] = DeliveredHead(head.position, max(head.state_version, version))

    async def wait(self, seconds: float) -> None:
        """Waits until there is something to send, or until `finish`, but at most `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._ready.wait()
        except TimeoutError:
            pass  # the response has no message

    def finish(self) -> None:
        """Ends the wait. What is written later is not sent."""
        self.is_finished = True
        self._ready.set()

    def release(self) -> None:
        """Subtracts the held bytes: the response is made."""
        self.account.add(-self._held_bytes)
        self._held_bytes = 0

    def set_account(self, account: Account) -> None:
        """Does nothing: the account is known from the start."""

    def count_held(self, size: int) -> None:
        """Counts bytes until `release`."""
        self._held_bytes += size
        self.account.add(size)

    def count_unsent(self, at_least: int = 0) -> None:
        """Does nothing: the response is written after the poll."""

    def pause_reading(self) -> None:
        """Does nothing: the client sends no messages."""

    def resume_reading(self) -> None:
        """Does nothing."""

    def ping(self) -> None:
        """Does nothing: a poll is shorter than the timeouts of proxies."""

    def close(self, code: int, reason: str) -> None:
        """Ends the poll, and the session with it, unless the node asks the client to come back."""
        if self.closed is None and not self.is_moved:
            self.closed = (code, reason)
            if not self.is_finished:
                self.payloads.append(messages.encode(messages.Closed(code=code, reason=reason)))
            self.finish()
            self._on_end()

    def close_when_written(self) -> None:
        """Ends the poll."""
        self.finish()

    def abort(self) -> None:
        """Ends the session at this node. It goes on at another node."""
        if self.closed is None and not self.is_moved:
            self.is_moved = True
            self.finish()
            self._on_end()

    @property
    def close_code(self) -> int:
        """The code with which the node has ended the session; 1006 without one."""
        return CloseCode.ABNORMAL.code if self.closed is None else self.closed[0]
