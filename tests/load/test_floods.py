"""Two thousand honest clients beside somebody who floods the node over WebSockets, streams or requests, with credentials or
without: they notice nothing."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.load.flood import FLOODS
from tests.load.server import CHECKOUT, CONFIG, Server, serving
from tests.load.swarm import Swarm
from tests.support.files import as_many_as_may_be
from tests.support.harness import token
from tests.support.wire import Wire, connect

pytestmark = pytest.mark.load

ROOMS = [f"room:{number}" for number in range(50)]
EACH = 40
FLOODERS = 100
SECONDS = 1.5
"""Of each flood; it is measured for that long, and a third as long before it."""
HONEST = 6
"""Clients whose answers are timed, each below the rate that clients have."""
PAUSE = 0.06
RISE = 0.05
"""Seconds by which the p99 of an honest client may rise."""
OPS = 1.0
"""Seconds within which the ops listener answers, always."""
LIMITS: dict[str, Any] = CONFIG["limits"] | {
    "connect_rate_per_ip": {"per_second": 50, "burst": 300},
    "connections_per_ip": 1_000,
}


@pytest.fixture(autouse=True)
def enough_files() -> Iterator[None]:
    with as_many_as_may_be():
        yield


class Honest:
    """A client that asks, waits for the answer, and asks again."""

    def __init__(self, user: str) -> None:
        self._user = user
        self._answered = asyncio.Event()
        self._wire: Wire | None = None

    async def connect(self, port: int) -> None:
        self._wire = await connect(port, self._take, bearer=token(self._user), source="127.0.0.10")
        await self.asks()

    def _take(self, frame: bytes) -> None:
        if b'"pong"' in frame:
            self._answered.set()

    async def asks(self) -> float:
        """Seconds from a question to its answer."""
        assert self._wire is not None
        self._answered.clear()
        began = time.perf_counter()
        self._wire.send({"type": "ping", "id": "p"})
        async with asyncio.timeout(60):
            await self._answered.wait()
        return time.perf_counter() - began

    async def times(self, seconds: float) -> list[float]:
        """Of all answers in so many seconds."""
        times = []
        over = time.perf_counter() + seconds
        while time.perf_counter() < over:
            times.append(await self.asks())
            await asyncio.sleep(PAUSE)
        return times

    def close(self) -> None:
        if self._wire is not None:
            self._wire.abort()


async def p99(clients: Sequence[Honest], seconds: float) -> float:
    """Of the answers to all of them."""
    times = await asyncio.gather(*(client.times(seconds) for client in clients))
    return statistics.quantiles((one for some in times for one in some), n=100, method="inclusive")[98]


async def slowest_of_ops(server: Server, seconds: float) -> float:
    """The longest that the ops listener took for a request, on a connection of its own each."""
    slowest = 0.0
    over = time.perf_counter() + seconds
    while time.perf_counter() < over:
        for path in ("healthz", "metrics"):
            began = time.perf_counter()
            async with (
                aiohttp.ClientSession() as http,
                http.get(f"http://127.0.0.1:{server.ops_port}/{path}") as response,
            ):
                await response.read()
                assert response.status == 200
            slowest = max(slowest, time.perf_counter() - began)
        await asyncio.sleep(0.2)
    return slowest


async def flood(server: Server, kind: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.load.flood", str(server.port), kind, str(FLOODERS), str(SECONDS)),
        cwd=CHECKOUT,
        stdout=asyncio.subprocess.PIPE,
    )


async def test_floods_cost_the_flooder_its_connections_and_others_nothing(tmp_path: Path) -> None:
    asyncio.get_running_loop().set_debug(False)  # it would spend the clients' core on tracebacks
    async with serving(tmp_path, CONFIG | {"limits": LIMITS}) as server:
        swarm, honest = Swarm(server.port, ROOMS, EACH), [Honest(f"honest-{number}") for number in range(HONEST)]
        try:
            await swarm.come()
            for client in honest:
                await client.connect(server.port)
            slow: dict[str, str] = {}
            for kind in FLOODS:
                quiet = await p99(honest, SECONDS / 3)
                before = server.usage().rss
                process = await flood(server, kind)
                assert process.stdout is not None
                try:
                    async with asyncio.timeout(30):
                        assert await process.stdout.readline() == b"flooding\n"
                    flooded, ops = await asyncio.gather(p99(honest, SECONDS), slowest_of_ops(server, SECONDS))
                    output, _ = await asyncio.wait_for(process.communicate(), 30)
                finally:
                    if process.returncode is None:
                        process.kill()
                        await process.wait()
                done = json.loads(output)
                told = (
                    f"p99 {quiet * 1000:.1f} -> {flooded * 1000:.1f} ms, ops {ops * 1000:.0f} ms, "
                    f"rss +{(server.usage().rss - before) / 1024:.0f} MiB, {done}"
                )
                print(f"{kind}: {told}")
                if flooded - quiet > RISE or ops > OPS or not done["ended"]:
                    slow[kind] = told
            assert not slow
            assert {member.code for member in swarm.members} == {None}, "nobody else was cut"
        finally:
            for client in honest:
                client.close()
            swarm.cut()
        assert await server.deaths() == 0
