"""Reads the first request of every accepted connection: upgrades are handled here, everything else goes to aiohttp.

Nearly every upgrade is the first request of its connection. Handling it here costs a fraction of aiohttp's routing.
Later upgrades on a connection pass the same checks in aiohttp's route (routes.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD

from service.realtime.admission.slots import network_of
from service.realtime.connections.byte_budget import Account, HeldBytes
from service.realtime.runtime import Runtime
from service.web.descriptors import DescriptorMonitor
from service.web.http.detach import DetachedConnection
from service.web.http.half_close import half_close
from service.web.http.http_connections import HttpConnections
from service.web.http.http_protocol import HttpProtocol, parse_upgrade_request
from service.web.http.plain_request import AnyRequest, ParsePlainUpgrade, parse_plain_upgrade
from service.web.problem import serialize_closing_response
from service.web.ws.upgrade import UpgradeHandler

MAX_UPGRADE_HEAD_BYTES = 16_384
"""Bytes of a request head that is parsed here; aiohttp handles larger ones."""
MAX_FRAME_HEAD_BYTES = 14
"""The longest head of a WebSocket frame (RFC 6455 §5.2)."""
MAX_DISCARDED_BYTES = 4_096
"""Bytes that the peer of a refused upgrade may send while the connection closes."""
MAX_UPGRADES_PER_ITERATION = 16
"""Upgrades that start in one loop iteration: less than 2 ms of work.

One iteration can read from a thousand connections, and a publish takes several iterations. So more upgrades in one iteration
would make events wait while many clients connect (docs/performance.md, What a connection consists of)."""
_UPGRADE_PREFIX = b"GET /ws"
_UPGRADE_STARTS = (_UPGRADE_PREFIX + b"?", _UPGRADE_PREFIX + b" ")


@dataclass(frozen=True, slots=True)
class FirstRequestContext:
    """Dependencies shared by all connections of the public listener."""

    upgrade_handler: UpgradeHandler
    make_http_protocol: Callable[[], HttpProtocol]
    connections: HttpConnections
    descriptors: DescriptorMonitor
    runtime: Runtime
    account: Account
    """Counts the bytes that connections have sent before their upgrade is answered."""
    max_message_bytes: int
    parse_plain_upgrade: ParsePlainUpgrade = parse_plain_upgrade


class UpgradeQueue:
    """Makes the first protocol of each connection, and starts a few upgrades per loop iteration."""

    def __init__(self, context: FirstRequestContext) -> None:
        self.context = context
        self.loop = asyncio.get_running_loop()
        self._queue: deque[FirstRequestProtocol] = deque()
        """Upgrades that have not started. While there is one, `start_next` is scheduled."""

    def __call__(self) -> FirstRequestProtocol:
        """The protocol of a new connection."""
        return FirstRequestProtocol(self.context, self)

    @property
    def waiting(self) -> list[FirstRequestProtocol]:
        """Connections without a whole first request, in the order of accept."""
        protocols = (transport.get_protocol() for transport in self.context.connections)
        return [
            protocol
            for protocol in protocols
            if isinstance(protocol, FirstRequestProtocol) and not protocol.has_upgrade_head
        ]

    def close(self) -> None:
        """Aborts the waiting and the queued connections; to be called when the listener is closed."""
        for protocol in (*self.waiting, *self._queue):
            protocol.abort()
        self._queue.clear()

    def schedule(self, protocol: FirstRequestProtocol) -> bool:
        """Starts an upgrade after the reads of this loop iteration. False if it has to wait for a later one."""
        if not self._queue:
            self.loop.call_soon(self.start_next)
        self._queue.append(protocol)
        return len(self._queue) <= MAX_UPGRADES_PER_ITERATION

    def start_next(self) -> None:
        """Starts the next upgrades; to be called at the end of the loop iteration, which `schedule` ensures."""
        queue, handler = self._queue, self.context.upgrade_handler
        batch = [queue.popleft() for _ in range(min(len(queue), MAX_UPGRADES_PER_ITERATION))]
        if queue:
            self.loop.call_soon(self.start_next)
        # Each step for all upgrades before the next step: the processor's caches then hold its code and data (ADR 40).
        requests = [(protocol, protocol.parse_request()) for protocol in batch]
        checked = [
            (protocol, request, handler.check(request, protocol))
            for protocol, request in requests
            if request is not None
        ]
        attached = [
            (protocol, request, handler.attach(request, response, protocol))
            for protocol, request, response in checked
            if response is not None
        ]
        for protocol, request, websocket in attached:
            if websocket is not None:
                handler.serve(request, websocket, protocol)


class FirstRequestProtocol(asyncio.Protocol):
    """The protocol of a connection until its first request is read, or until its upgrade is answered."""

    __slots__ = (
        "_context",
        "_data",
        "_discarded_bytes",
        "_head_end",
        "_holding",
        "_queue",
        "has_eof",
        "peername",
        "received_at",
        "transport",
    )

    ssl_context = None
    """aiohttp's request reads this, `peername`, `sockname` and `transport`. Always None: TLS ends at the proxy."""

    def __init__(self, context: FirstRequestContext, queue: UpgradeQueue) -> None:
        self._context = context
        self._queue = queue
        self.transport: asyncio.Transport | None = None
        self.peername: object = None
        self._data = b""
        """Received bytes: those of the request until its head is parsed, then only those after it."""
        self._holding: HeldBytes | None = None
        """Counts `_data` on the account; made only if bytes have to wait."""
        self._discarded_bytes = -1
        """Bytes received since the refusal; -1 before it."""
        self._head_end = 0
        """Where the head of the upgrade ends; 0 until it has arrived."""
        self.received_at = 0.0
        """Monotonic time at which the whole head had arrived."""
        self.has_eof = False
        """Whether the peer has closed its sending half."""

    @property
    def has_upgrade_head(self) -> bool:
        """Whether the whole head of an upgrade has arrived."""
        return self._head_end > 0

    @property
    def sockname(self) -> object:
        """Always None: no check needs it, and reading it costs a system call."""
        return None

    # --- called by asyncio --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Counts the connection; aborts it without a free descriptor or at a cap."""
        accepted: asyncio.Transport = transport  # type: ignore[assignment]  # uvloop's transports do not subclass asyncio's
        if not self._context.descriptors.accepts(accepted):
            accepted.abort()
            return
        self.peername = peer = accepted.get_extra_info("peername")
        # If the peer has already reset the connection, the system reports no peer name.
        if self._context.connections.add(accepted, network_of(peer[0]) if peer else ""):
            self.transport = accepted

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        self._release()
        if self.transport is not None:
            self._context.connections.remove(self.transport)
            self.transport = None

    def data_received(self, data: bytes) -> None:
        """Collects bytes until it is clear whether they are an upgrade."""
        if self.transport is None:  # aborted at a cap
            return
        if self._discarded_bytes >= 0:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > MAX_DISCARDED_BYTES:
                self.transport.abort()
            return
        self._data = data = self._data + data if self._data else data
        if self._head_end:
            if self._check_early_data(len(data)):
                self._hold(len(data))
            return
        head_end = _find_head_end(data)
        if head_end < 0:
            self._hold(len(data))
            return
        if head_end:
            self._head_end = head_end
            self.received_at = self._context.runtime.clock.monotonic()
            if len(data) == head_end or self._check_early_data(len(data) - head_end):
                self._context.connections.mark_busy(self.transport)
                # A few heads are not counted until the end of this iteration: that would cost as much as parsing them.
                if not self._queue.schedule(self) or len(data) > head_end:
                    self._hold(len(data))
        else:
            self._hand_to_aiohttp()

    def eof_received(self) -> bool:
        """Keeps the connection open while an upgrade has no response yet."""
        self.has_eof = True
        return self.has_upgrade_head and self._discarded_bytes < 0

    def _check_early_data(self, size: int) -> bool:
        """Aborts the connection if more than one message comes before the response.

        RFC 6455 §4.1 requires clients to wait for the response; one early message is tolerated.
        """
        if size <= self._context.max_message_bytes + MAX_FRAME_HEAD_BYTES:
            return True
        self._context.runtime.metrics.limits.limit_hits.labels(limit="message_bytes").inc()
        self.abort()
        return False

    def _hold(self, size: int) -> None:
        """Counts the waiting bytes on the account; aborts the connection if they do not fit."""
        if self.transport is None:
            return
        if self._holding is None:
            self._holding = HeldBytes(self._context.account)
        if not self._holding.set(size):
            self._context.runtime.metrics.limits.limit_hits.labels(limit="outbox_node").inc()
            self.abort()

    def _release(self) -> None:
        if self._holding is not None:
            self._holding.release()

    def parse_request(self) -> AnyRequest | None:
        """Parses the head of the upgrade; called once by the queue. None if there is nothing to check: the peer has left, or
        aiohttp gets the request."""
        if self.transport is None:
            return None
        data, head_end = self._data, self._head_end
        request = self._parse(data if len(data) == head_end else data[:head_end])
        if request is None:
            self._hand_to_aiohttp()
            return None
        self._data = data[head_end:]
        return request

    def _parse(self, head: bytes) -> AnyRequest | None:
        peer = self.peername
        plain = self._context.parse_plain_upgrade(head, str(peer[0]) if isinstance(peer, tuple) else None)
        if plain is not None:
            return plain
        message = parse_upgrade_request(self, self._queue.loop, head)
        if message is None:
            return None
        return web.BaseRequest(
            message,
            EMPTY_PAYLOAD,
            cast("web.RequestHandler", self),
            None,  # type: ignore[arg-type]  # the payload writer: aiohttp writes no response to this request
            None,  # type: ignore[arg-type]  # the task, which aiohttp would cancel with the response
            self._queue.loop,
        )

    def _hand_to_aiohttp(self) -> None:
        transport, data = self.transport, self._data
        if transport is None or transport.is_closing():  # aiohttp would log an error about a closing transport
            return
        if self._head_end:  # the head looked like an upgrade, so the connection was marked busy
            self._context.connections.mark_waiting(transport)
        self._release()
        protocol = self._context.make_http_protocol()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if data:
            protocol.data_received(data)
        if self.has_eof and not protocol.eof_received():
            transport.close()
        self.transport = None

    # --- called by UpgradeHandler -------------------------------------------------------------------------------------

    def detach(self) -> DetachedConnection:
        """Passes the connection to the caller, and releases it here."""
        transport, self.transport = self.transport, None
        early_data, self._data = self._data, b""
        if self._holding is not None:
            self._holding.release()
        if transport is not None:
            self._context.connections.remove(transport)
        return DetachedConnection(transport, early_data, self.has_eof)

    def abort(self) -> None:
        """Aborts the connection, unless it is detached."""
        if self.transport is not None:
            self.transport.abort()

    def respond(self, response: web.Response) -> None:
        """Sends a response and closes the connection, because a refused client should cost little.

        If bytes follow the request, only the sending half is closed at first. Closing a socket with unread bytes resets
        it, and the peer could lose the response (RFC 9112 §9.6).
        """
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        transport.write(serialize_closing_response(response))
        self._context.connections.mark_closing(transport)
        early_data, self._data = self._data, b""
        self._release()
        if early_data and not self.has_eof:
            self._discarded_bytes = 0
            half_close(transport)
        else:
            transport.close()


def _find_head_end(data: bytes) -> int:
    """Where the head of a request for `/ws` ends; -1 if more bytes are needed, 0 if it is another request."""
    if not data.startswith(_UPGRADE_STARTS):
        return -1 if _UPGRADE_PREFIX.startswith(data) else 0
    end = data.find(b"\r\n\r\n", 0, MAX_UPGRADE_HEAD_BYTES)
    if end >= 0:
        return end + 4
    # A head whose lines end with LF alone has no \r\n\r\n to wait for; aiohttp decides about it.
    return -1 if len(data) < MAX_UPGRADE_HEAD_BYTES and b"\n\n" not in data else 0
