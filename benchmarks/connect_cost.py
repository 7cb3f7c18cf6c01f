"""Measures a connection inside the process, without sockets: from the bytes of its request until it is live, and its end.

`python -m benchmarks.connect_cost` prints the CPU time of a connection with a token and one channel in its address, with the
message `ready` and with `ready=1`. Then it prints a table of its parts that adds up. A network would hide the microseconds of a
change; `connect` and `storm` of `python -m benchmarks` measure the whole. All tokens have connected before, as in a storm, so
their signatures are remembered.

Each part of the table is timed inside of a connection, after the parts before it. A loop over one part alone shows a third of its
cost, because its code and data then stay in the processor's caches.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from typing import Any, cast

from msgspec import Struct

from benchmarks.in_process import SECRET, Sink, masked, running, settled
from benchmarks.peers.tidewire import tokens
from service.protocol.framing import accept_key
from service.realtime.connections.byte_budget import UNAUTHENTICATED_TENANT
from service.realtime.session.handler import SessionHandler
from service.realtime.session.handshake import AcceptedUpgrade, open_connection
from service.telemetry.runtime import freeze_gc
from service.web.client_info import check_origin, parse_credentials
from service.web.connect_checks import check_limits
from service.web.http.http_protocol import HttpProtocol
from service.web.http.peer_transport import NULL_HANDLER
from service.web.ws import upgrade as upgrade_module
from service.web.ws import upgrade_checks
from service.web.ws.upgrade_queue import MAX_UPGRADES_PER_ITERATION, FirstRequestContext, UpgradeQueue
from service.web.ws.websocket import WebSocket

CONNECTIONS = 2_000
"""Connections of one round, as in `connect`."""
ROOMS = 200
_READY = masked('{"type":"ready"}')


def request_head(token: str, room: int, query: str = "") -> bytes:
    """Returns an upgrade as the clients of `connect` send it."""
    return (
        f"GET /ws?channels=room:{room}{query} HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        f"Sec-WebSocket-Protocol: tidewire.v1\r\nAuthorization: Bearer {token}\r\n\r\n"
    ).encode()


class Cost(Struct, frozen=True):
    """CPU microseconds of one connection."""

    welcome: float
    """From the bytes of the request head to `welcome`."""
    live: float
    """From the bytes of `ready` to `subscribed`."""
    end: float
    """From the loss of the connection until nothing is left of it."""


class Clients:
    """Connects and disconnects clients, a few in each loop iteration."""

    def __init__(self, queue: UpgradeQueue, heads: Sequence[bytes]) -> None:
        self._queue = queue
        self._heads = heads
        self.sinks: list[Sink] = []

    async def connect(self) -> None:
        """Sends the request heads. Each client then has `welcome`."""
        self.sinks = [Sink() for _ in self._heads]
        await _in_groups(zip(self.sinks, self._heads, strict=True), self._connect)

    def _connect(self, client: tuple[Sink, bytes]) -> None:
        sink, head = client
        protocol = self._queue()
        sink.set_protocol(protocol)
        protocol.connection_made(sink)
        protocol.data_received(head)

    async def send_ready(self) -> None:
        """Sends `ready`. Each client then has `subscribed`."""
        await _in_groups(iter(self.sinks), lambda sink: _protocol(sink).data_received(_READY))

    async def disconnect(self) -> None:
        """Ends the connections."""
        await _in_groups(iter(self.sinks), lambda sink: _protocol(sink).connection_lost(None))

    async def cost(self, *, is_ready: bool = False) -> Cost:
        """Returns the cost of one round. `is_ready`: the clients' addresses already say that they are ready."""
        welcome = await self._timed(self.connect)
        live = 0.0 if is_ready else await self._timed(self.send_ready)
        if {sink.writes for sink in self.sinks} != {1 if is_ready else 2}:
            raise RuntimeError("a client has not got its 101 with welcome in one write, then subscribed")
        return Cost(welcome, live, await self._timed(self.disconnect))

    async def _timed(self, phase: Callable[[], Any]) -> float:
        began = time.process_time()
        await phase()
        return (time.process_time() - began) / len(self._heads) * 1e6


async def _in_groups(clients: Iterator[Any], act: Callable[[Any], None]) -> None:
    loop = asyncio.get_running_loop()
    while group := tuple(islice(clients, MAX_UPGRADES_PER_ITERATION)):
        for client in group:
            loop.call_soon(act, client)  # outside of any task, as the transports do
        await asyncio.sleep(0)
    await settled()


def _protocol(sink: Sink) -> asyncio.Protocol:
    return cast(asyncio.Protocol, sink.get_protocol())


@asynccontextmanager
async def upgrade_queue() -> AsyncIterator[UpgradeQueue]:
    """Runs a node, and yields the queue that makes the protocols of its connections."""
    async with running() as service:
        account = service.node.streams.budget.account(UNAUTHENTICATED_TENANT)
        yield UpgradeQueue(
            FirstRequestContext(
                service.upgrade_handler,
                cast(Callable[[], HttpProtocol], None),  # every request here is an upgrade
                service.http_connections,
                service.descriptors,
                service.node.runtime,
                account,
                service.settings.limits.message_bytes,
                service.parse_plain_upgrade,
            )
        )


async def measured(connections: int, rounds: int, query: str = "") -> Sequence[Cost]:
    """Returns the costs of some rounds, after one that only makes the tokens known."""
    heads = [request_head(token, number % ROOMS, query) for number, token in enumerate(tokens(SECRET, connections))]
    async with upgrade_queue() as queue:
        clients = Clients(queue, heads)
        run = partial(clients.cost, is_ready=bool(query))
        await run()
        freeze_gc()
        return [await run() for _ in range(rounds)]


class Laps:
    """Times the parts of many connections. The clock is the wall's, because reading the CPU time costs a microsecond."""

    def __init__(self) -> None:
        self._laps: dict[str, list[float]] = {}
        self._since = 0.0

    def begin(self) -> None:
        """Starts the time of the next part."""
        self._since = time.perf_counter()

    def end(self, name: str) -> None:
        """Ends a part. The next one begins."""
        now = time.perf_counter()
        self._laps.setdefault(name, []).append(now - self._since)
        self._since = time.perf_counter()

    def medians(self) -> dict[str, float]:
        """Returns the microseconds of each part: the median, which leaves out interruptions."""
        return {name: statistics.median(laps) * 1e6 for name, laps in self._laps.items()}


async def parts(connections: int) -> dict[str, float]:
    """Returns the microseconds of the parts of a connection, then those of the whole, and what no part holds."""
    heads = [request_head(token, number % ROOMS) for number, token in enumerate(tokens(SECRET, connections))]
    laps, whole = Laps(), Laps()
    async with upgrade_queue() as queue:
        clients = Clients(queue, heads)
        await clients.connect()
        await clients.send_ready()  # every room now has members, as it has for nearly all connections
        freeze_gc()
        for head in heads:
            _time_parts(laps, queue, head)
            await asyncio.sleep(0)
        for head in heads:
            sink = Sink()
            whole.begin()
            protocol = queue()
            sink.set_protocol(protocol)
            protocol.connection_made(sink)
            protocol.data_received(head)
            queue.start_next()
            whole.end("to welcome")
            websocket = _protocol(sink)
            await asyncio.sleep(0)
            whole.begin()
            websocket.data_received(_READY)
            await asyncio.sleep(0)
            whole.end("to subscribed")
            whole.begin()
            websocket.connection_lost(None)
            whole.end("end")
            await asyncio.sleep(0)
        await clients.disconnect()
    shown, total = laps.medians(), whole.medians()
    return shown | {"rest": total["to welcome"] - sum(shown.values())} | total


def _time_parts(laps: Laps, queue: UpgradeQueue, head: bytes) -> None:
    """Does what a connection does up to its subscription, part by part, and then ends it."""
    context = queue.context
    handler = context.upgrade_handler
    node, config, websockets = handler._node, handler._config, handler._context
    sink = Sink()

    laps.begin()
    protocol = queue()
    protocol.connection_made(sink)
    context.connections.mark_busy(sink)
    laps.end("accept and count the TCP connection")
    request = context.parse_plain_upgrade(head, "127.0.0.1")
    laps.end("parse the head")
    assert request is not None
    network = check_limits(request, node, config)
    slot = node.admission.slots.acquire(network)
    laps.end("check limits, acquire a slot")
    upgrade_checks.check_subprotocol(request, is_upgrade=True)
    check_origin(request, config)
    node.admission.upgrades.accept(is_upgrade=True, is_browser=False)
    laps.end("check subprotocol, origin, accept rate")

    identity = upgrade_checks.authenticate_now(parse_credentials(request, config), node)
    laps.end("authenticate")
    waiting = slot.identify(identity) if identity is not None else None
    assert identity is not None
    assert waiting is None
    laps.end("quota and rates")
    channels = upgrade_checks.authorise_channels(request, node, identity)
    upgrade = AcceptedUpgrade(slot, identity, "bearer", channels)
    upgrade_checks.charge_subscribes(node, upgrade, is_upgrade=True)
    laps.end("authorise and charge the channels")
    accept = request.accept or accept_key(upgrade_checks.check_handshake(request))
    response = upgrade_module._head(accept, None)
    laps.end("check the handshake, make the response")
    protocol.detach()
    account = node.streams.budget.account(identity.tenant)
    websocket = WebSocket(websockets, sink, account=account)
    websocket.handler = NULL_HANDLER
    sink.set_protocol(websocket)
    websocket.connection_made(sink)
    laps.end("make the WebSocket")
    connection = open_connection(node, websocket, upgrade, identity, "bearer", response)
    laps.end("make the connection, send welcome")
    node.lifecycle.add(connection)
    laps.end("register the connection")
    SessionHandler(node, connection).start(None, upgrade.joins(), ())
    laps.end("start the session, subscribe")
    websocket.connection_lost(None)


def main(words: Sequence[str] | None = None) -> None:
    """Prints the costs as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.connect_cost", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    asked = parser.parse_args(words)
    shown: dict[str, dict[str, float]] = {}
    for name, query in (("ready", ""), ("ready=1", "&ready=1")):
        costs = asyncio.run(measured(asked.connections, asked.rounds, query))
        shown[name] = {
            field: statistics.median(getattr(cost, field) for cost in costs) for field in Cost.__struct_fields__
        }
    shown["parts"] = asyncio.run(parts(asked.connections))
    rounded = {name: {part: round(value, 2) for part, value in values.items()} for name, values in shown.items()}
    sys.stdout.write(json.dumps(rounded, indent=2) + "\n")


if __name__ == "__main__":
    main()
