"""One connection to a Redis server, on the hiredis parser: what is asked in one turn of the event loop travels in one write,
and replies are matched in order."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis

Argument = str | bytes | int | float
ReplyError = hiredis.ReplyError

PORTION = 400
"""Messages handed over in one turn of the loop."""
_NOTHING = object()
"""What the parser gives when there is no whole reply yet."""


def pack(command: tuple[Argument, ...]) -> bytes:
    """A command as it travels. Raises ValueError for text that UTF-8 cannot say."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub takes tuples of exactly one
    return packed


_PING = pack(("PING",))


class LinkLost(ConnectionError):  # noqa: N818  # says what happened, as asyncio's own do
    """The connection ended before the reply came: whether the call was carried out is unknown."""


class Link(asyncio.Protocol):
    """A connection. Ends itself when the server has been silent for too long although it was asked.

    `on_push` gets what nobody asked for: messages of subscribed channels. `on_pong` gets the seconds that each ping took,
    behind all that the server had sent before its answer.
    """

    def __init__(
        self,
        *,
        ping: float,
        silence: float,
        timeout: float,
        on_push: Callable[[list[Any]], None] | None = None,
        on_pong: Callable[[float], None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._ping = ping
        self._silence = silence
        self._timeout = timeout
        self._on_push = on_push
        self._on_pong = on_pong
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._transport: asyncio.Transport | None = None
        self._busy = False
        """Whether there is more to hand over in the next turn; nothing is read until then."""
        self._out: list[bytes] = []
        # With the time of the turn in which it was sent. None for what nobody waits for.
        self._expected: deque[tuple[asyncio.Future[Any] | None, float]] = deque()
        self._heard = self._ticked = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self.turn = self._heard
        """Loop time of the turn in which something was sent last: what was sent in it need not ask for the time again."""
        self.lost = asyncio.Event()
        """Set at the end."""
        self.on_lost: Callable[[], None] | None = None
        """Called at the end, before anybody who waits for a reply learns of it."""
        self.on_refusal: Callable[[str], bool] | None = None
        """Gets errors that may answer what was told, not asked; gives whether that settles it."""
        self.clock_reading: tuple[float, float] | None = None
        """What the server's clock showed when it was asked last (seconds since the Unix epoch), and seconds that this took."""
        self.generation = ""
        """Which server this is, in which life and reign; see channel.lua."""
        self.fault: str | None = None
        """What the server said when it refused something that nobody waits for, or why TLS ended."""

    @property
    def waiting(self) -> int:
        """Calls without a reply."""
        return len(self._expected)

    @property
    def heard(self) -> float:
        """Loop time at which the server said something last."""
        return self._heard

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
        if isinstance(exc, ssl.SSLError):  # with TLS 1.3 a certificate is refused only after the handshake
            self.fault = f"TLS: {exc.reason or type(exc).__name__}"
        if self.on_lost is not None:
            self.on_lost()
        expected, self._expected = self._expected, deque()
        for future, _ in expected:
            if future is not None and not future.done():
                future.set_exception(LinkLost(self.fault or "the connection to Redis was lost"))
        self.lost.set()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._heard = self._loop.time()
        self._reader.feed(data)
        if not self._busy:
            self._take()

    def _take(self) -> None:
        """Hands over what has come: of messages a portion in each turn of the loop, or a burst of them would be more than
        any subscriber's outbox holds before its writer has had a turn."""
        gets, expected, on_push, portion = self._reader.gets, self._expected, self._on_push, PORTION
        self._set_busy(False)
        try:
            while (reply := gets()) is not _NOTHING:
                if isinstance(reply, ReplyError):
                    if not self._failed(reply):
                        return
                # The answer to PING is a list too, on a connection with subscriptions; it answers a call.
                elif on_push is not None and type(reply) is list and reply and reply[0] != b"pong":
                    on_push(reply)
                    portion -= 1
                    if not portion:
                        self._set_busy(True)
                        self._loop.call_soon(self._take)
                        return
                elif expected:
                    future, sent = expected.popleft()
                    if future is None:
                        self._ponged(sent)
                    elif not future.done():
                        future.set_result(reply)
        except hiredis.ProtocolError:
            self.fault = "something answers there that does not speak Redis' protocol"
            self.abort()

    def _ponged(self, sent: float) -> None:
        if self._on_pong is not None:
            self._on_pong(self._loop.time() - sent)

    def _failed(self, error: ReplyError) -> bool:
        """Gives an error to whoever waits for it; False if nobody does and the link ends for it."""
        if self.on_refusal is not None and self.on_refusal(str(error)):
            return True
        future = self._expected.popleft()[0] if self._expected else None
        if future is not None:
            if not future.done():
                future.set_exception(error)
        elif not _answers_ping(error):
            self.fault = str(error)
            self.abort()
            return False
        return True

    def _set_busy(self, busy: bool) -> None:
        if busy != self._busy:
            self._busy = busy
            if self._transport is not None:
                (self._transport.pause_reading if busy else self._transport.resume_reading)()

    # --- the caller's side --------------------------------------------------------------------------------------------

    def call(self, *arguments: Argument) -> asyncio.Future[Any]:
        """Sends a command; the future gets its reply, or raises ReplyError or LinkLost. A cancelled one keeps its turn."""
        return self.send(pack(arguments))

    def send(self, packed: bytes) -> asyncio.Future[Any]:
        """The same with a command as `pack` makes it."""
        future = self._loop.create_future()
        if self._transport is None:
            future.set_exception(LinkLost(self.fault or "the connection to Redis is closed"))
            return future
        self._send(packed)
        self._expected.append((future, self.turn))
        return future

    def tell(self, *arguments: Argument) -> None:
        """Sends a command whose answer comes as a push: subscribing and unsubscribing."""
        if self._transport is not None:
            self._send(pack(arguments))

    def _send(self, packed: bytes) -> None:
        if not self._out:
            self.turn = self._loop.time()
            self._loop.call_soon(self._flush)
        self._out.append(packed)

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
        stalled = now - self._ticked > 2 * self._ping
        self._ticked = now
        if stalled:
            self._heard = now  # it was this process that stood still: what came meanwhile may not have been read yet
        else:
            self._fail_overdue(now)
        if now - self._heard >= self._silence:
            self.fault = "the server does not answer"
            self.abort()
            return
        if self._transport is not None:
            self._send(_PING)
            self._expected.append((None, now))
        self._timer = self._loop.call_later(self._ping, self._tick)

    def _fail_overdue(self, now: float) -> None:
        """One sweep a tick is cheaper than a timer a call. A call that failed here keeps its turn in the order of replies."""
        for future, sent in self._expected:
            if sent + self._timeout > now:
                return
            if future is not None and not future.done():
                future.set_exception(TimeoutError("Redis did not reply in time"))


def _answers_ping(error: hiredis.ReplyError) -> bool:
    """Whether it is the answer of a server that cannot save its data: it is well otherwise, and subscriptions work."""
    return str(error).startswith("MISCONF")
