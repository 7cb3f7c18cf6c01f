"""One connection to a Redis server, on the hiredis parser.

Commands that are sent in one iteration of the event loop travel in one write. Replies are matched with commands by their order.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol, cast

import hiredis

from service.adapters.store.silence_detector import SilenceDetector

Argument = str | bytes | int | float
ReplyError = hiredis.ReplyError

MAX_PUSHES = 400
"""Messages that are delivered in one iteration of the event loop."""
_INCOMPLETE = object()
"""What the parser returns before a whole reply has arrived."""


def pack(command: tuple[Argument, ...]) -> bytes:
    """Encodes a command. Raises ValueError for text that UTF-8 cannot encode."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub takes tuples of exactly one
    return packed


_PING = pack(("PING",))


class LinkLost(ConnectionError):  # noqa: N818  # says what happened, as asyncio's own do
    """The connection ended before the reply came. The server may have run the command."""


class ReplyReceiver(Protocol):
    """Waits for the reply to a command: an asyncio future, or something that is called at once."""

    def done(self) -> bool:
        """Whether nobody needs the reply any more."""

    def set_result(self, reply: Any, /) -> None:
        """Called with the reply, unless `done`. Must not raise."""

    def set_exception(self, error: Exception, /) -> None:
        """Called with ReplyError, LinkLost or TimeoutError, unless `done`. Must not raise."""


@dataclass(frozen=True, slots=True)
class LinkCallbacks:
    """What a link reports; all are called on the event loop and must not raise."""

    on_lost: Callable[[Link], None] | None = None
    """The connection has ended. Called before its commands fail."""
    on_push: Callable[[list[Any]], None] | None = None
    """A message of a subscribed channel, or the answer to a (un)subscribe command."""
    on_push_error: Callable[[str], bool] | None = None
    """An error that may answer a (un)subscribe command. Returns whether it does."""
    on_pong: Callable[[float], None] | None = None
    """Seconds from a ping to its answer, which arrives after everything that the server sent before."""


class Link(asyncio.Protocol):
    """Sends commands and returns their replies. Closes itself if the server does not answer pings."""

    def __init__(
        self,
        *,
        ping_interval: float,
        silence_timeout: float,
        call_timeout: float,
        callbacks: LinkCallbacks | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._ping_interval = ping_interval
        self._call_timeout = call_timeout
        self._callbacks = callbacks or LinkCallbacks()
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._transport: asyncio.Transport | None = None
        self._is_paused = False
        """Whether reading waits for the next iteration, which delivers further messages."""
        self._out: list[bytes] = []
        self._expected: deque[tuple[ReplyReceiver | None, float]] = deque()
        """The receiver of each reply that has not come, and the loop time at which its command was sent. None: of a ping."""
        now = self._loop.time()
        self._silence = SilenceDetector(ping_interval, silence_timeout, now)
        self._timer: asyncio.TimerHandle | None = None
        self.sent_at = now
        """Loop time of the newest command."""
        self.lost = asyncio.Event()
        """Set when the connection has ended."""
        self.generation = ""
        """The server's process, its life as a master, and its term (lua/channel.lua); only its Shard sets it."""
        self.close_reason: str | None = None
        """The error that the server answered to a ping or (un)subscribe command, or why TLS ended."""

    @property
    def pending(self) -> int:
        """Commands without a reply."""
        return len(self._expected)

    @property
    def last_data(self) -> float:
        """Loop time at which the server last sent something."""
        return self._silence.last_data

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent."""
        return self._transport is not None

    # --- called by asyncio --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Starts the pings."""
        # A cast and no check: uvloop's transports are no subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._silence.last_data = self._loop.time()
        self._timer = self._loop.call_later(self._ping_interval, self._tick)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fails all commands without a reply."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        if isinstance(exc, ssl.SSLError):  # with TLS 1.3 a certificate is refused only after the handshake
            self.close_reason = f"TLS: {exc.reason or type(exc).__name__}"
        if self._callbacks.on_lost is not None:
            self._callbacks.on_lost(self)
        expected, self._expected = self._expected, deque()
        for receiver, _ in expected:
            if receiver is not None and not receiver.done():
                receiver.set_exception(LinkLost(self.close_reason or "the connection to Redis was lost"))
        self.lost.set()

    def data_received(self, data: bytes) -> None:
        """Parses replies and messages."""
        self._silence.last_data = self._loop.time()
        self._reader.feed(data)
        if not self._is_paused:
            self._dispatch()

    def _dispatch(self) -> None:
        """Dispatches what has arrived, at most `MAX_PUSHES` messages an iteration of the event loop.

        Without that bound, a burst could overflow every outbox before any of it is written.
        """
        gets, expected, on_push = self._reader.gets, self._expected, self._callbacks.on_push
        remaining = MAX_PUSHES
        self._set_paused(False)
        try:
            while (reply := gets()) is not _INCOMPLETE:
                if isinstance(reply, ReplyError):
                    if not self._on_error(reply):
                        return
                # With subscriptions, the answer to PING is a list too; it answers a command.
                elif on_push is not None and type(reply) is list and reply and reply[0] != b"pong":
                    on_push(reply)
                    remaining -= 1
                    if not remaining:
                        self._set_paused(True)
                        self._loop.call_soon(self._dispatch)
                        return
                elif expected:
                    receiver, sent_at = expected.popleft()
                    if receiver is None:
                        self._on_pong(sent_at)
                    elif not receiver.done():
                        receiver.set_result(reply)
        except hiredis.ProtocolError:
            self.close_reason = "something answers there that does not speak Redis' protocol"
            self.abort()

    def _on_pong(self, sent_at: float) -> None:
        if self._callbacks.on_pong is not None:
            self._callbacks.on_pong(self._loop.time() - sent_at)

    def _on_error(self, error: ReplyError) -> bool:
        """Passes an error to the command that it answers. Returns False if there is none, which ends the link."""
        on_push_error = self._callbacks.on_push_error
        if on_push_error is not None and on_push_error(str(error)):
            return True
        receiver = self._expected.popleft()[0] if self._expected else None
        if receiver is not None:
            if not receiver.done():
                receiver.set_exception(error)
        elif not _answers_ping(error):
            self.close_reason = str(error)
            self.abort()
            return False
        return True

    def _set_paused(self, paused: bool) -> None:
        if paused != self._is_paused:
            self._is_paused = paused
            if self._transport is not None:
                (self._transport.pause_reading if paused else self._transport.resume_reading)()

    # --- called by the owner ------------------------------------------------------------------------------------------

    def call(self, *arguments: Argument) -> asyncio.Future[Any]:
        """Sends a command. The future gets its reply, ReplyError or LinkLost."""
        return self.send(pack(arguments))

    def send(self, packed: bytes) -> asyncio.Future[Any]:
        """Sends a command that `pack` has encoded. The future gets its reply, ReplyError or LinkLost."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self.send_for(future, packed)
        return future

    def send_for(self, receiver: ReplyReceiver, packed: bytes) -> None:
        """Sends a command that `pack` has encoded, for a receiver of its reply."""
        if self._transport is None:
            receiver.set_exception(LinkLost(self.close_reason or "the connection to Redis is closed"))
            return
        if self._out:
            self._out.append(packed)
        else:
            self._write(packed)
        self._expected.append((receiver, self.sent_at))

    def send_unanswered(self, *arguments: Argument) -> None:
        """Sends a (un)subscribe command, whose answers are pushes."""
        if self._transport is not None:
            self._write(pack(arguments))

    def abort(self) -> None:
        """Closes the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _write(self, packed: bytes) -> None:
        if not self._out:
            self.sent_at = self._loop.time()  # asked for once an iteration: it is a system call
            self._loop.call_soon(self.flush)
        self._out.append(packed)

    def flush(self) -> None:
        """Writes what was sent in this iteration of the event loop, which otherwise happens in the next one."""
        out, self._out = self._out, []
        if out and self._transport is not None:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def _tick(self) -> None:
        now = self._loop.time()
        if not self._silence.has_stalled(now):
            self._fail_overdue(now)
        if self._silence.is_silent(now):
            self.close_reason = "the server does not answer"
            self.abort()
            return
        if self._transport is not None:
            self._write(_PING)
            self._expected.append((None, now))
        self._timer = self._loop.call_later(self._ping_interval, self._tick)

    def _fail_overdue(self, now: float) -> None:
        """Fails commands that are older than the timeout. They keep their places in the order of replies."""
        # One pass a tick costs less than a timer for each command.
        # A copy: a receiver may send its next command at once.
        for receiver in [one for one, _ in takewhile(lambda sent: sent[1] + self._call_timeout <= now, self._expected)]:
            if receiver is not None and not receiver.done():
                receiver.set_exception(TimeoutError("Redis did not reply in time"))


def _answers_ping(error: hiredis.ReplyError) -> bool:
    """Whether the error is the answer to a ping by a server that cannot save its data. Its subscriptions work, so the
    link stays."""
    return str(error).startswith("MISCONF")
