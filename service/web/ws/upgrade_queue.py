"""The first protocol of every accepted connection: upgrades to WebSockets go one way, everything else goes to aiohttp.

An upgrade that is the first request of its connection, as nearly all are, is answered here, at a fraction of the cost of
aiohttp's routing. Any other finds the same checks behind aiohttp's route (upgrade.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD

from service.core.clock import Clock
from service.realtime.admission.slots import network_of
from service.realtime.connections.byte_budget import Account, HeldBytes
from service.telemetry.metrics import Metrics
from service.web.descriptors import Descriptors
from service.web.http.half_close import end_sending
from service.web.http.http_connections import HttpConnections
from service.web.http.http_protocol import HttpProtocol, upgrade_request
from service.web.problem import serialized
from service.web.ws.upgrade import Taken, Upgrades

MAX_HEAD = 16_384
"""Bytes of a request head that is looked at here; what is larger is for aiohttp to judge."""
FRAME_HEAD = 14
"""Bytes of the longest head of a frame (RFC 6455 §5.2)."""
MAX_DISCARDED = 4_096
"""Bytes that a refused upgrade may still send while it is being closed."""
MAX_IN_TURN = 4
"""Upgrades that are looked at in one turn of the loop: about a millisecond of work. A turn reads from a thousand connections;
when so many come at once, those that are served already would wait for all of them, and a publish takes several turns. While
5 000 came at once, its p99 was 13 to 23 ms with 32 a turn and 5 to 9 with 4, and connecting cost the same
(tests/e2e/test_storm.py)."""
_START = b"GET /ws"


class UpgradeQueue:
    """What all fronts share, and whose turn it is."""

    def __init__(
        self,
        upgrades: Upgrades,
        server: Callable[[], HttpProtocol],
        connections: HttpConnections,
        descriptors: Descriptors,
        clock: Clock,
        metrics: Metrics,
        message_bytes: int,
        account: Account,
    ) -> None:
        self.upgrades = upgrades
        self.server = server
        self.connections = connections
        self.descriptors = descriptors
        self.clock = clock
        self.metrics = metrics
        self.account = account
        self.max_early = message_bytes + FRAME_HEAD
        """Bytes that may come before the upgrade has been answered: one message, though RFC 6455 §4.1 has clients wait."""
        self.loop = asyncio.get_running_loop()
        self._queue: deque[FirstRequestProtocol] = deque()
        self._looked_at = 0
        """Upgrades of this turn."""

    def __call__(self) -> FirstRequestProtocol:
        """The protocol of a connection."""
        return FirstRequestProtocol(self)

    @property
    def waiting(self) -> list[FirstRequestProtocol]:
        """Connections that have not sent a whole request yet, as they came."""
        protocols = (transport.get_protocol() for transport in self.connections)
        return [front for front in protocols if isinstance(front, FirstRequestProtocol) and not front.is_whole]

    def close(self) -> None:
        """Cuts those that still wait: nobody is left to serve them."""
        for front in (*self.waiting, *self._queue):
            front.abort()
        self._queue.clear()

    def take(self, front: FirstRequestProtocol) -> None:
        """Has an upgrade looked at, now or in one of the next turns."""
        if not self._looked_at:
            self.loop.call_soon(self._next_turn)
        if self._looked_at < MAX_IN_TURN:
            self._looked_at += 1
            front.look()
        else:
            self._queue.append(front)

    def _next_turn(self) -> None:
        self._looked_at = min(len(self._queue), MAX_IN_TURN)
        if self._looked_at:
            self.loop.call_soon(self._next_turn)
            for _ in range(self._looked_at):
                self._queue.popleft().look()


class FirstRequestProtocol(asyncio.Protocol):
    """Lives until it is clear what a connection wants, or as long as an upgrade is being checked."""

    __slots__ = (
        "_counted",
        "_data",
        "_discarded",
        "_door",
        "_end",
        "asked_at",
        "has_ended",
        "peername",
        "transport",
    )

    ssl_context = None
    """As the other three for aiohttp's request, which asks its protocol: TLS ends before this service."""

    def __init__(self, door: UpgradeQueue) -> None:
        self._door = door
        self.transport: asyncio.Transport | None = None
        self.peername: object = None
        """Who has connected."""
        self._data = b""
        """What has come: part of a request, then what is behind it while it waits and is checked."""
        self._counted: HeldBytes | None = None
        """Counts that, while it waits; most never do."""
        self._discarded = -1
        """Bytes that have come since a refusal; below 0 there was none."""
        self._end = 0
        """Where the head of the upgrade ends; 0 while there is none."""
        self.asked_at = 0.0
        """See Fresh."""
        self.has_ended = False
        """Whether the peer has ended its sending side: nothing more can come."""

    @property
    def is_whole(self) -> bool:
        """Whether the whole head of an upgrade is there."""
        return self._end > 0

    @property
    def sockname(self) -> object:
        """Where to; nobody here asks a request, and the kernel would have to be asked for it."""
        return None

    # --- asyncio's side -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        accepted = cast(asyncio.Transport, transport)  # told, not asked: uvloop's are no subclasses of asyncio's
        if not self._door.descriptors.take(accepted):
            accepted.abort()
            return
        self.peername = peer = accepted.get_extra_info("peername")
        # A reset may have come before: then the system knows no peer any more.
        if self._door.connections.add(accepted, network_of(peer[0]) if peer else ""):
            self.transport = accepted

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._release()
        if self.transport is not None:
            self._door.connections.remove(self.transport)
            self.transport = None

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self.transport is None:  # it found no place
            return
        if self._discarded >= 0:
            self._discarded += len(data)
            if self._discarded > MAX_DISCARDED:
                self.transport.abort()
            return
        self._data = data = self._data + data if self._data else data
        if self._end:
            if self._check_early(len(data)):
                self._count(len(data))
            return
        end = _end_of_head(data)
        if end < 0:
            self._count(len(data))
            return
        if end:
            self._end = end
            self._door.connections.asked(self.transport)
            self.asked_at = self._door.clock.monotonic()
            if self._check_early(len(data) - end):
                self._door.take(self)
                if self._data:
                    self._count(len(self._data))
        else:
            self._hand_over()

    def eof_received(self) -> bool:
        """See asyncio.Protocol. True, which keeps the connection, while an upgrade is in hand."""
        self.has_ended = True
        return self.is_whole and self._discarded < 0

    def _check_early(self, size: int) -> bool:
        """Cuts the connection if so many bytes are more than may come before the answer."""
        if size <= self._door.max_early:
            return True
        self._door.metrics.limits.limit_hits.labels(limit="message_bytes").inc()
        self.abort()
        return False

    def _count(self, size: int) -> None:
        """Counts the bytes that wait; cuts the connection if they do not fit."""
        if self.transport is None:
            return
        if self._counted is None:
            self._counted = HeldBytes(self._door.account)
        if not self._counted.set(size):
            self._door.metrics.limits.limit_hits.labels(limit="outbox_node").inc()
            self.abort()

    def _release(self) -> None:
        if self._counted is not None:
            self._counted.release()

    def look(self) -> None:
        """Begins an upgrade. To be called once, when the whole request is there."""
        if self.transport is None:
            return
        data, end = self._data, self._end
        message = upgrade_request(self, self._door.loop, data[:end])
        if message is None:
            self._hand_over()
            return
        self._data = data[end:]
        request = web.BaseRequest(
            message,
            EMPTY_PAYLOAD,
            cast("web.RequestHandler", self),
            None,  # type: ignore[arg-type]  # what writes responses: this request gets none of aiohttp's
            None,  # type: ignore[arg-type]  # the task that a response would be cancelled with
            self._door.loop,
        )
        self._door.upgrades.accept(request, self)

    def _hand_over(self) -> None:
        transport, data = self.transport, self._data
        if transport is None or transport.is_closing():  # aiohttp would complain of one that ends before it has begun
            return
        if self._end:  # it was taken for an upgrade that can be answered here
            self._door.connections.waits(transport)
        self._release()
        handler = self._door.server()
        transport.set_protocol(handler)
        handler.connection_made(transport)
        if data:
            handler.data_received(data)
        if self.has_ended and not handler.eof_received():
            transport.close()
        self.transport = None

    # --- what becomes of it -------------------------------------------------------------------------------------------

    def give(self) -> Taken:
        """See Fresh."""
        transport, self.transport = self.transport, None
        early, self._data = self._data, b""
        self._release()
        if transport is not None:
            self._door.connections.remove(transport)
        return Taken(transport, early, self.has_ended)

    def abort(self) -> None:
        """Cuts the connection, if it has not been taken over."""
        if self.transport is not None:
            self.transport.abort()

    def answer(self, response: web.Response) -> None:
        """Sends a response and ends the connection: who is refused should cost little.

        Where more has come behind the request, only the sending half is closed at first: a socket that is closed with unread
        bytes resets, and the peer might lose the answer (RFC 9112 §9.6).
        """
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        transport.write(serialized(response))
        self._door.connections.ending(transport)
        early, self._data = self._data, b""
        self._release()
        if early and not self.has_ended:
            self._discarded = 0
            end_sending(transport)
        else:
            transport.close()


def _end_of_head(data: bytes) -> int:
    """Where the head of a request to become a WebSocket ends; -1 if more must come to tell, 0 if it is another request."""
    if not data.startswith(_START):
        return -1 if _START.startswith(data) else 0
    if len(data) > len(_START) and data[len(_START)] not in b"? ":
        return 0
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD)
    if end >= 0:
        return end + 4
    # What ends its lines with LF alone would never end here; aiohttp has its own opinion of it.
    return -1 if len(data) < MAX_HEAD and b"\n\n" not in data else 0
