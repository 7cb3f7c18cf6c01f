"""One connection to a Redis server, on the hiredis parser: what is asked in one turn of the event loop travels in one write,
and replies are matched in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis

Argument = str | bytes | int | float
ReplyError = hiredis.ReplyError

_NOTHING = object()
"""What the parser gives when there is no whole reply yet."""


class LinkLost(ConnectionError):  # noqa: N818  # says what happened, as asyncio's own do
    """The connection ended before the reply came: whether the call was carried out is unknown."""


class Link(asyncio.Protocol):
    """A connection. Ends itself when the server has been silent for too long although it was asked.

    `on_push` gets what nobody asked for: messages of subscribed channels.
    """

    def __init__(
        self,
        *,
        ping: float,
        silence: float,
        timeout: float,
        on_push: Callable[[list[Any]], None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._ping = ping
        self._silence = silence
        self._timeout = timeout
        self._on_push = on_push
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        # With the time of the tick before it was sent. None for what nobody waits for.
        self._expected: deque[tuple[asyncio.Future[Any] | None, float]] = deque()
        self._heard = self._ticked = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self.lost = asyncio.Event()
        """Set at the end."""
        self.generation = ""
        """Which life of the server this is; see channel.lua."""
        self.confirmed = 0.0
        """When (loop time) the server was asked for it."""
        self.fault: str | None = None
        """What the server said when it refused something that nobody waits for."""

    @property
    def waiting(self) -> int:
        """Calls without a reply."""
        return len(self._expected)

    @property
    def is_open(self) -> bool:
        """Whether calls can be made."""
        return self._transport is not None

    # --- asyncio's side -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        # Told, not asked: uvloop's transports are no subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._heard = self._ticked = self._loop.time()
        self._timer = self._loop.call_later(self._ping, self._tick)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        expected, self._expected = self._expected, deque()
        for future, _ in expected:
            if future is not None and not future.done():
                future.set_exception(LinkLost("the connection to Redis was lost"))
        self.lost.set()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._heard = self._loop.time()
        reader = self._reader
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not _NOTHING:
                if self._on_push is not None and type(reply) is list and self._is_push(reply):
                    self._on_push(reply)
                    continue
                future, _ = self._expected.popleft() if self._expected else (None, 0.0)
                if future is None and isinstance(reply, ReplyError):
                    self.fault = str(reply)
                    self.abort()
                    return
                if future is None or future.done():
                    continue
                if isinstance(reply, ReplyError):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)
        except hiredis.ProtocolError:
            self.abort()

    @staticmethod
    def _is_push(reply: list[Any]) -> bool:
        # The answer to PING has this form too, on a connection with subscriptions; it answers a call.
        return bool(reply) and reply[0] != b"pong"

    # --- the caller's side --------------------------------------------------------------------------------------------

    def call(self, *arguments: Argument) -> asyncio.Future[Any]:
        """Sends a command; the future gets its reply, or raises ReplyError or LinkLost. A cancelled one keeps its turn."""
        future = self._loop.create_future()
        if self._transport is None:
            future.set_exception(LinkLost("the connection to Redis is closed"))
            return future
        self._expected.append((future, self._ticked))
        self._send(arguments)
        return future

    def tell(self, *arguments: Argument) -> None:
        """Sends a command whose answer comes as a push: subscribing and unsubscribing."""
        if self._transport is not None:
            self._send(arguments)

    def _send(self, arguments: tuple[Argument, ...]) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(hiredis.pack_command(arguments))  # type: ignore[arg-type]  # its stub takes tuples of exactly one

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def abort(self) -> None:
        """Ends the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _tick(self) -> None:
        now = self._loop.time()
        if now - self._ticked > 2 * self._ping:
            self._heard = now  # it was this process that stood still: what came meanwhile has not been read yet
        self._ticked = now
        if now - self._heard >= self._silence:
            self.abort()
            return
        self._fail_overdue(now)
        if self._transport is not None:
            self._expected.append((None, now))
            self._send(("PING",))
        self._timer = self._loop.call_later(self._ping, self._tick)

    def _fail_overdue(self, now: float) -> None:
        """One sweep a tick is cheaper than a timer a call. A call that failed here keeps its turn in the order of replies."""
        for future, sent in self._expected:
            if sent + self._timeout > now:
                return
            if future is not None and not future.done():
                future.set_exception(TimeoutError("Redis did not reply in time"))
