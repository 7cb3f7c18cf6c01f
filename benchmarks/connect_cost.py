"""Measures a connection inside the process, without sockets: from the bytes of its request until it is live, and its end.

`python -m benchmarks.connect_cost` prints the CPU time of a connection with a token and one channel in its address. A network
would hide the microseconds of a change; `connect` and `storm` of `python -m benchmarks` measure the whole. All tokens have
connected before, as in a storm, so their signatures are remembered.
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
from service.realtime.connections.byte_budget import UNAUTHENTICATED_TENANT
from service.telemetry.runtime import freeze_gc
from service.web.http.http_protocol import HttpProtocol
from service.web.ws.upgrade_queue import MAX_UPGRADES_PER_ITERATION, FirstRequestContext, UpgradeQueue

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
    while group := tuple(islice(clients, MAX_UPGRADES_PER_ITERATION)):
        for client in group:
            act(client)
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


def main(words: Sequence[str] | None = None) -> None:
    """Prints the costs as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.connect_cost", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    asked = parser.parse_args(words)
    costs = asyncio.run(measured(asked.connections, asked.rounds))
    shown = {
        name: round(statistics.median(getattr(cost, name) for cost in costs), 2) for name in Cost.__struct_fields__
    }
    sys.stdout.write(json.dumps(shown, indent=2) + "\n")


if __name__ == "__main__":
    main()
