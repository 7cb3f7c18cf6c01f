"""Measures what a client costs a node over a WebSocket, a stream of server-sent events, and long polls, in one run.

    python -m tests.load.transports --clients 5000

Each transport gets a service of its own. All clients are in one room. The backend publishes durable events one at a time, and
every client must get each of them once. The table has the processor time of the service for each delivery, with everything
that comes with it (for polls: the response and the next request), and the memory of each client while it waits.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import cast

import aiohttp

from tests.load.server import CONFIG, PLENTY, Server, serving
from tests.support.harness import API_KEY, token

CHANNEL = "desk:1"
MARK = b'"number":'
"""In every event, once."""
HANDSHAKE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: tidewire.v1\r\n"
)
AT_ONCE = 100
"""Clients that connect at the same time."""
TIMEOUT = 120.0
"""Seconds that one step may take."""
SETTINGS = CONFIG | {
    "limits": {**CONFIG["limits"], "user_rate": PLENTY, "tenant_rate": PLENTY, "http_connections": 20_000},
    "deadlines": {"heartbeat": 3600.0},
}


@dataclass(frozen=True)
class Row:
    """The result of one transport."""

    transport: str
    clients: int
    deliveries: int
    repeated: int
    microseconds: float
    """Processor time of the service for each delivery."""
    kib: float
    """Memory of each client."""


class Client(asyncio.Protocol):
    """Counts the events of one connection."""

    def __init__(self, user: str) -> None:
        self.token = token(user)
        self.events = 0
        self.is_live = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.send(self.request())

    def send(self, text: str) -> None:
        assert self._transport is not None
        self._transport.write(text.encode())

    def request(self) -> str:
        """The first request."""
        raise NotImplementedError

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        self._rest = data[-len(MARK) + 1 :]
        if not self.is_live.done() and b'"subscribed"' in data:
            self.is_live.set_result(None)
        self.events += data.count(MARK)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_live.done():
            self.is_live.set_exception(ConnectionError("refused"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class WebSocketClient(Client):
    def request(self) -> str:
        return (
            f"GET /ws?channels={CHANNEL}&ready=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.token}\r\n"
            f"{HANDSHAKE}\r\n"
        )


class StreamClient(Client):
    def request(self) -> str:
        return f"GET /sse?channels={CHANNEL} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.token}\r\n\r\n"


class PollClient(Client):
    """Polls again after each response, on the same connection."""

    def request(self) -> str:
        return self._post({"subscriptions": [{"channel": CHANNEL}]})

    def _post(self, body: dict[str, object]) -> str:
        text = json.dumps(body)
        return (
            f"POST /poll HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}"
        )

    def data_received(self, data: bytes) -> None:
        self._rest += data
        head, found, body = self._rest.partition(b"\r\n\r\n")
        if not found:
            return
        size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        if len(body) < size:
            return
        self._rest = b""
        if not head.startswith(b"HTTP/1.1 200"):
            raise AssertionError(body)
        self.events += body.count(MARK)
        self.send(self._post({"receipt": json.loads(body)["receipt"]}))
        if not self.is_live.done():
            self.is_live.set_result(None)


TRANSPORTS: dict[str, Callable[[str], Client]] = {
    "WebSocket": WebSocketClient,
    "stream": StreamClient,
    "long poll": PollClient,
}


async def measure(transport: str, clients: int, events: int) -> Row:
    """Measures one transport."""
    make = TRANSPORTS[transport]
    with tempfile.TemporaryDirectory() as folder:
        async with serving(Path(folder), SETTINGS) as server, aiohttp.ClientSession() as http, asyncio.timeout(TIMEOUT):
            await _publish(server, http, -1)  # loads what the first publish loads
            before = server.usage().rss
            connected: list[Client] = []
            for start in range(0, clients, AT_ONCE):
                connected += await _connect(server, make, range(start, min(start + AT_ONCE, clients)))
            await _wait(server, transport, clients)
            memory = (server.usage().rss - before) / clients
            first = sum(client.events for client in connected)
            started = processor_time(server)
            for number in range(events):
                await _publish(server, http, number)
                await _until(lambda wanted=first + clients * (number + 1): _count(connected) >= wanted)  # type: ignore[misc]  # a default binds the number
                await _wait(server, transport, clients)
            spent = processor_time(server) - started
            delivered = _count(connected) - first
            for client in connected:
                client.close()
    return Row(transport, clients, delivered, delivered - clients * events, spent / delivered * 1e6, memory)


async def _connect(server: Server, make: Callable[[str], Client], numbers: range) -> list[Client]:
    loop = asyncio.get_running_loop()
    made = [make(f"user-{number}") for number in numbers]
    await asyncio.gather(*(loop.create_connection(lambda one=one: one, "127.0.0.1", server.port) for one in made))  # type: ignore[misc]  # a default binds the client
    await asyncio.gather(*(one.is_live for one in made))
    return made


async def _wait(server: Server, transport: str, clients: int) -> None:
    """Waits until all clients wait for events at the service. A session of polls stays subscribed between two polls."""
    gauge = "polls" if transport == "long poll" else "subscriptions"
    while (await server.metrics())[gauge] < clients:  # noqa: ASYNC110  # another process has no event to wait for
        await asyncio.sleep(0.05)


async def _until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110  # what is counted comes over thousands of connections
        await asyncio.sleep(0.01)


async def _publish(server: Server, http: aiohttp.ClientSession, number: int) -> None:
    async with http.post(
        f"http://127.0.0.1:{server.port}/api/v1/channels/{CHANNEL}/events",
        json={"type": "desk.note", "data": {"number": number}},
        headers={"Authorization": f"Bearer {API_KEY}"},
    ) as response:
        assert response.status == 200, await response.text()


def _count(clients: list[Client]) -> int:
    return sum(client.events for client in clients)


def processor_time(server: Server) -> float:
    """Seconds that the process has run, in user space and in the kernel."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.transports", description=__doc__)
    parser.add_argument("--clients", type=int, default=5_000)
    parser.add_argument("--events", type=int, default=20)
    arguments = parser.parse_args()
    print("| transport | clients | CPU a delivery | memory each | repeated |\n|---|---|---|---|---|")
    for transport in TRANSPORTS:
        row = await measure(transport, arguments.clients, arguments.events)
        print(
            f"| {row.transport} | {row.clients} | {row.microseconds:.1f} µs | {row.kib:.1f} KiB | {row.repeated} |",
            flush=True,
        )


if __name__ == "__main__":
    begun = monotonic()
    asyncio.run(main())
    print(f"{monotonic() - begun:.0f} s")
