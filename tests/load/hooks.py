"""Measures what a hook costs: processor time of the service for each publish, and how late `ack` comes, without one and with one.

    python -m tests.load.hooks --rate 2000 --answer-after 2

Clients publish at a fixed rate, each into a channel of its own, alternately to an event type without a hook, and to one with a
hook whose backend answers after some milliseconds. Each pair gives a ratio. At last the backend hangs, while the other type is
measured again: others must not wait for it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any, cast

import aiohttp
import yaml

from tests.load.server import CONFIG, PLENTY, Server, serving
from tests.load.transports import processor_time
from tests.support.backend import SECRET
from tests.support.harness import token

CONTRACT = {
    "channels": {
        "desk:{desk}": {
            "subscribe": "authenticated",
            "events": {
                "desk.plain": {"publish": "authenticated", "delivery": "ephemeral"},
                "desk.asked": {"publish": "authenticated", "delivery": "ephemeral", "hook": {"endpoint": "backend"}},
            },
        }
    }
}
CLIENTS = 100
TIMEOUT = 120.0
"""Seconds that one measurement may take."""


@dataclass(frozen=True)
class Row:
    """The result of one measurement."""

    microseconds: float
    """Processor time of the service for each publish."""
    p50: float
    """Milliseconds from the publish to its `ack`."""
    p99: float


class QuickBackend(asyncio.Protocol):
    """Answers each request on its connection after `wait` seconds, or never.

    It does as little as it can, to leave the core to the clients. tests/support/backend.py checks what is asked.
    """

    wait: float | None = 0.0
    _ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{"allow":true}'

    def __init__(self) -> None:
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._rest += data
        head, found, body = self._rest.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]):
            return
        self._rest = b""
        if self.wait is not None:
            asyncio.get_running_loop().call_later(self.wait, self._transport.write, self._ANSWER)


class Client:
    """Publishes over one WebSocket, and times the replies."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse, number: int, *, may_fail: bool = False) -> None:
        """`may_fail`: publishes may be refused."""
        self._ws = ws
        self._may_fail = may_fail
        self._channel = f"desk:{number}"
        self._sent: dict[str, float] = {}
        self._serial = 0
        self.waits: list[float] = []

    async def publish(self, type_: str) -> None:
        self._serial += 1
        id_ = f"m{self._serial}"
        self._sent[id_] = monotonic()
        await self._ws.send_str(json.dumps({"type": type_, "id": id_, "channel": self._channel, "data": 1}))

    async def read(self) -> None:
        async for message in self._ws:
            content = json.loads(message.data)
            for one in content if isinstance(content, list) else [content]:
                if one["type"] == "ack":
                    self.waits.append(monotonic() - self._sent.pop(one["id"]))
                elif one["type"] == "error" and self._may_fail:
                    self._sent.pop(one["id"])
                elif one["type"] == "error":
                    raise AssertionError(one)

    @property
    def waiting(self) -> int:
        """Publishes without a reply."""
        return len(self._sent)


@asynccontextmanager
async def connected(server: Server, *, may_fail: bool = False) -> AsyncIterator[list[Client]]:
    """Clients that read until the block ends. `may_fail`: their publishes may be refused."""
    async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
        clients, readers, sockets = [], [], []
        for number in range(CLIENTS):
            ws = await http.ws_connect(f"http://127.0.0.1:{server.port}/ws", protocols=("tidewire.v1",))
            await ws.send_str(json.dumps([{"type": "hello", "token": token(f"user-{number}")}, {"type": "ready"}]))
            await ws.receive()
            clients.append(Client(ws, number, may_fail=may_fail))
            readers.append(group.create_task(clients[-1].read()))
            sockets.append(ws)
        yield clients
        for ws in sockets:
            await ws.close()


async def measure(server: Server, clients: list[Client], type_: str, rate: int, seconds: float) -> Row:
    """Publishes for so many seconds."""
    for client in clients:
        client.waits.clear()
    started, spent, sent = monotonic(), processor_time(server), 0
    async with asyncio.timeout(TIMEOUT):
        while (now := monotonic() - started) < seconds:
            while sent < now * rate:
                await clients[sent % len(clients)].publish(type_)
                sent += 1
            await asyncio.sleep(0.002)
        while any(client.waiting for client in clients):  # noqa: ASYNC110  # replies come over many connections
            await asyncio.sleep(0.005)
    waits = sorted(wait for client in clients for wait in client.waits)
    assert len(waits) == sent, f"{sent - len(waits)} of {sent} have no ack"
    microseconds = (processor_time(server) - spent) / sent * 1e6
    return Row(microseconds, median(waits) * 1e3, waits[int(len(waits) * 0.99)] * 1e3)


def _settings(contract: Path, port: int) -> dict[str, Any]:
    endpoint = {
        "name": "backend",
        "url": f"http://127.0.0.1:{port}/hooks",
        "tenants": ["default"],
        "secrets": [SECRET],
        "timeout": 5.0,
        "concurrency": 512,
        "tenant_concurrency": 512,
    }
    limits = {**CONFIG["limits"], "connection_rate": PLENTY, "user_rate": PLENTY, "tenant_rate": PLENTY}
    return CONFIG | {"contract": str(contract), "limits": limits, "hooks": {"endpoints": [endpoint]}}


async def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.hooks", description=__doc__)
    parser.add_argument("--rate", type=int, default=2_000, help="publishes a second")
    parser.add_argument("--answer-after", type=float, default=2.0, help="milliseconds")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    arguments = parser.parse_args()
    QuickBackend.wait = arguments.answer_after / 1e3
    backend = await asyncio.get_running_loop().create_server(QuickBackend, "127.0.0.1", 0)
    port = backend.sockets[0].getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        contract = Path(folder) / "contract.yaml"
        contract.write_text(yaml.safe_dump(CONTRACT))
        async with serving(Path(folder), _settings(contract, port)) as server, connected(server) as clients:
            rows: dict[str, list[Row]] = {"desk.plain": [], "desk.asked": []}
            for _ in range(arguments.pairs):
                for type_, found in rows.items():
                    found.append(await measure(server, clients, type_, arguments.rate, arguments.seconds))
            QuickBackend.wait = None
            for client in clients[: CLIENTS // 2]:
                await client.publish("desk.asked")
            others = clients[CLIENTS // 2 :]
            beside = await measure(server, others, "desk.plain", arguments.rate, arguments.seconds)
    backend.close()
    print("| publishes | CPU a publish | p50 | p99 |\n|---|---|---|---|")
    for name, found in (("without a hook", rows["desk.plain"]), ("with a hook", rows["desk.asked"])):
        _print(name, found)
    _print("without a hook, while 50 others wait for a backend that hangs", [beside])
    ratios = sorted(b.microseconds / a.microseconds for a, b in zip(*rows.values(), strict=True))
    print(f"ratio of CPU in {len(ratios)} pairs: {median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})")


def _print(name: str, rows: list[Row]) -> None:
    columns = [median(getattr(row, field) for row in rows) for field in ("microseconds", "p50", "p99")]
    print(f"| {name} | {columns[0]:.0f} µs | {columns[1]:.1f} ms | {columns[2]:.1f} ms |", flush=True)


if __name__ == "__main__":
    begun = monotonic()
    asyncio.run(main())
    print(f"{monotonic() - begun:.0f} s")
