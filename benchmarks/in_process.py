"""What `way_in` and `connect_cost` share: a service in this process, a TCP connection without a socket, and CPU times."""

from __future__ import annotations

import asyncio
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aiohttp._websocket.helpers import websocket_mask

from benchmarks.peers import tidewire
from benchmarks.processes import HOST, free_port
from service.app import Service
from service.contract.load import load
from service.protocol.framing import FIN, MASK, TEXT
from service.settings import Settings
from service.telemetry.fast_metrics import FastCounter

SECRET = "only for benchmarks, and long enough for HS256"  # guards nothing
_PLENTY = {"per_second": 10_000_000, "burst": 10_000_000}


class Sink(asyncio.Transport):
    """A TCP connection whose peer takes every write at once."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0
        self.size = 0
        self._protocol: asyncio.BaseProtocol | None = None

    def write(self, data: Any) -> None:
        """Counts the write."""
        self.writes += 1
        self.size += len(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Does nothing: there is no buffer."""

    def get_write_buffer_size(self) -> int:
        """Returns 0."""
        return 0

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Sets the protocol."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Returns the protocol."""
        assert self._protocol is not None  # set before
        return self._protocol

    def is_closing(self) -> bool:
        """Returns False."""
        return False

    def close(self) -> None:
        """Does nothing: the benchmark decides when the connection ends."""

    def abort(self) -> None:
        """Does nothing."""

    def pause_reading(self) -> None:
        """Does nothing: the benchmark decides what arrives."""

    def resume_reading(self) -> None:
        """Does nothing."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Returns the peer's address, and else the default: without a socket, the native sender leaves this connection alone."""
        return ("127.0.0.1", 40_000) if name == "peername" else default


def settings(redis: str | None = None) -> Settings:
    """Returns the settings of the benchmark, with rates that no round reaches. `redis`: the URL of the broker, if it is Redis."""
    rates = ("connection_rate", "user_rate", "ip_rate", "tenant_rate", "connect_rate_per_ip")
    counts = ("connections", "connections_per_ip", "pending", "http_connections", "http_connections_per_ip")
    return Settings.model_validate(
        {
            "contract": str(tidewire.CONTRACT),
            "auth": {"secret": SECRET},
            "limits": {
                **dict.fromkeys(rates, _PLENTY),
                **dict.fromkeys(counts, 20_000),
            },
            "rollout": {"accept_rate": _PLENTY},
            "log": {"level": "warning", "format": "json"},
            **({} if redis is None else {"broker": {"url": redis}}),
        }
    )


@asynccontextmanager
async def running(redis: str | None = None) -> AsyncIterator[Service]:
    """Runs a node that does not listen. `redis`: as for `settings`."""
    service = Service(settings(redis), load(Path(tidewire.CONTRACT)))
    await service.node.start()
    try:
        yield service
    finally:
        await service.node.close()
        await service.fetch.close()


@contextmanager
def started_redis() -> Iterator[str]:
    """Runs a Redis that keeps nothing on disk, and returns its URL."""
    port = free_port()
    with TemporaryDirectory() as folder:
        line = tidewire.redis_line(port, Path(folder))
        with subprocess.Popen(line, stdout=subprocess.DEVNULL) as redis:
            try:
                yield f"redis://{HOST}:{port}"
            finally:
                redis.terminate()


async def settled() -> None:
    """Waits for the reads of this loop iteration, the writes that follow, and what they have left over."""
    for _ in range(4):
        await asyncio.sleep(0)


async def reached(counter: FastCounter, value: float) -> None:
    """Waits until a counter has a value. Sleeps in between, because a node that waits for Redis does nothing either."""
    while counter.value < value:  # noqa: ASYNC110  # a counter of the hot path has no event to wait for
        await asyncio.sleep(0.0005)


def masked(text: str) -> bytes:
    """Returns a client's frame."""
    payload, mask = bytearray(text.encode()), b"\x11\x22\x33\x44"
    websocket_mask(mask, payload)
    size = len(payload)
    head = (
        struct.pack("!BB", FIN | TEXT, MASK | size) if size < 126 else struct.pack("!BBH", FIN | TEXT, MASK | 126, size)
    )
    return head + mask + bytes(payload)


def timed(work: Callable[[], object], count: int) -> float:
    """Returns the CPU microseconds of one call: the lowest of five rounds."""
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        for _ in range(count):
            work()
        best = min(best, time.process_time() - began)
    return best / count * 1e6
