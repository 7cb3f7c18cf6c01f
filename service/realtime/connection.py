"""A connection: a live Socket, its Session and its Outbox."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from service.core.clock import Clock, Timer
from service.core.limits import OutboxLimits, Rate, TokenBucket
from service.core.session import Session
from service.protocol import messages
from service.protocol.close import CloseCode
from service.protocol.messages import ServerMessage
from service.realtime.frame import MAX_BURST_BYTES, Burst, Frame, join
from service.realtime.outbox import Budget, Outbox
from service.realtime.socket import Socket
from service.telemetry.metrics import Metrics


class Seat(Protocol):
    """A connection's place under the caps (see admission.py)."""

    @property
    def network(self) -> str:
        """Where the connection comes from: what counts as one address."""

    def release(self) -> None:
        """Gives it back."""


class Connection:
    """An authenticated connection. Only the handshake makes one, so nothing unauthenticated can reach a command."""

    def __init__(
        self,
        id: str,
        socket: Socket,
        session: Session,
        seat: Seat,
        *,
        limits: OutboxLimits,
        rate: Rate,
        budget: Budget,
        most_batch: int,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self.id = id
        self.socket = socket
        self.session = session
        self.seat = seat
        self.timers: list[Timer] = []
        """What is due at this token's expiry."""
        self.writer: asyncio.Task[None] | None = None
        self.goodbye: asyncio.Task[None] | None = None
        """Set once this side closes; done when the peer has been told or cut."""
        self.outbox = Outbox(limits, budget, metrics)
        self.bucket = TokenBucket(rate, clock.monotonic())
        self.violations: list[float] = []
        """When it sent above a rate, lately."""
        self.closing: tuple[CloseCode, str] | None = None
        self.on_close: Callable[[Connection, CloseCode, str], None] | None = None
        """Called once, when this side decides to close: leaves the hub and says goodbye."""
        self.writing_since: float | None = None
        """Since when the current write waits for the peer; None between writes."""
        self._most_batch = most_batch
        self._clock = clock
        self._metrics = metrics
        self._burst: Burst | None = None
        self._measured = False
        self._stopped = False
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()

    @property
    def is_closing(self) -> bool:
        """Whether this side has decided to close."""
        return self.closing is not None

    def deliver(self, burst: Burst, *, measured: bool = False) -> bool:
        """Takes a burst. Never blocks; False if the peer is too slow for a frame that may not be dropped.

        A peer that keeps up gets the bytes that were joined for all; one that does not gets the frames by their classes.
        """
        if self.closing is not None:
            return True
        if self._burst is None and self.writing_since is None and not self.outbox:
            self._burst = burst
            self._measured = measured
            self._drained.clear()
            self._wake.set()
            return True
        for frame in burst.frames:
            if not self.outbox.put(frame):
                return False
        self._stir()
        return True

    def send(self, frames: list[Frame]) -> bool:
        """As `deliver`, for frames of this connection alone."""
        if self.closing is None:
            for frame in frames:
                if not self.outbox.put(frame):
                    return False
            self._stir()
        return True

    def reply(self, message: ServerMessage) -> None:
        """Sends a system message; it is never dropped."""
        if self.closing is None:
            payload = messages.encode(message)
            kind = message.__struct_config__.tag
            sent, size = self._metrics.out(str(kind))
            sent.inc()
            size.inc(len(payload))
            self.outbox.put(Frame(payload, str(kind)))
            self._stir()

    def _stir(self) -> None:
        if self.outbox:
            self._drained.clear()
            self._wake.set()

    async def room_to_reply(self) -> None:
        """Waits while the peer has not read its replies: whoever does not read is not served further. Never waits for a
        peer that is gone."""
        while self.outbox.is_full and self.closing is None and not self._stopped:
            self._drained.clear()
            await self._drained.wait()

    async def drained(self) -> None:
        """Waits until everything queued has been written."""
        await self._drained.wait()

    def close(self, code: CloseCode, reason: str) -> None:
        """Begins the end: no delivery from here on. Only the first call counts. `reason` goes to the client."""
        if self.closing is None:
            self.closing = (code, reason)
            if self.on_close is not None:
                self.on_close(self, code, reason)

    async def write(self) -> None:
        """Writes what is queued, for as long as the connection lives; ends when the peer is gone."""
        try:
            await self._write()
        finally:
            self.stop_writing()  # nobody must wait for a queue that nothing empties any more

    async def _write(self) -> None:
        while not self._stopped:
            payload, accepted = self._next()
            if payload is None:
                self._drained.set()
                self._wake.clear()
                await self._wake.wait()
                continue
            self.writing_since = self._clock.monotonic()
            try:
                await self.socket.send(payload)
            except ConnectionError:
                self.socket.abort()
                return
            except BaseException:
                self.socket.abort()  # without a writer the connection is dead: let the reader notice
                raise
            finally:
                self.writing_since = None
            if accepted is not None:
                self._metrics.delivery_seconds.observe(max(0.0, self._clock.monotonic() - accepted))

    def _next(self) -> tuple[bytes | None, float | None]:
        burst = self._burst
        if burst is not None:
            self._burst = None
            return burst.payload, burst.frames[0].accepted if self._measured else None
        frames = self.outbox.take(MAX_BURST_BYTES, self._most_batch)
        if not frames:
            return None, None
        if frames[0].delivery is None:
            return join(frames), None
        return join(frames), frames[0].accepted

    def stop_writing(self) -> None:
        """Lets the writer finish the write it is in, and no other."""
        self._stopped = True
        self._wake.set()
        self._drained.set()

    def forget(self) -> None:
        """Ends the writer and frees the queue and the timers; the connection is over, and what comes late goes nowhere."""
        if self.closing is None:
            self.closing = (CloseCode.ABNORMAL, "")
        if self.writer is not None:
            self.writer.cancel()
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()
        self._burst = None
        self.outbox.clear()
        self._drained.set()
