"""A day in a minute: three real nodes on a real Redis, their clients and backends, and all that goes wrong in between, watched
by a real Prometheus."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import time

import aiohttp
from aiohttp import web

from tests.e2e.watching.guests import Guest
from tests.e2e.watching.prometheus import Prometheus, others
from tests.faults.node import Node
from tests.faults.tokens import token
from tests.stores.process import HOST, until
from tests.stores.redis_server import RedisServer
from tests.support.wire import connect

GUESTS, SLEEPERS = 90, 150
"""Clients in busy channels and in a quiet one: so many together that a lack of balance is no chance."""
SETTINGS = {
    "CONTRACT": str(Path(__file__).parent / "contract.yaml"),
    "DEADLINES__HEARTBEAT": "4",
    "DEADLINES__SHUTDOWN": "12",
    "DEADLINES__PRESENCE_LEAVE": "0.5",
    "OUTBOX__BYTES": "65536",
    "OUTBOX__SEND_BUFFER": "16384",
    "BROKER__PING": "0.2",
    "BROKER__SILENCE": "1",
    "LIMITS__CONNECTIONS": "320",
    "LIMITS__CONNECTION_RATE__PER_SECOND": "50",
    "LIMITS__CONNECTION_RATE__BURST": "100",
    "ROLLOUT__DRAIN_RATE": "20",
    "ROLLOUT__REBALANCE": "true",
    "ROLLOUT__REBALANCE_LEAST_AGE": "1",
    "PROBE__INTERVAL": "0.5",
}
BIG = "x" * 4_000
PATIENCE = 30.0
MOVED = 90.0
"""Seconds until connections move to a new node: it must have been there for a while, and nodes look only now and then."""


@dataclass
class Day:
    """Who is there."""

    nodes: list[Node]
    redis: RedisServer
    prometheus: Prometheus
    began: float = 0.0
    ended: float = 0.0
    random: Random = field(default_factory=lambda: Random(7))  # a day like the other

    async def play(self) -> None:
        """Everything, one after the other, while guests talk and backends publish all the time."""
        guests = [
            Guest(number, self.nodes, ["hall:1", f"hall:{2 + number % 4}"], self.random) for number in range(GUESTS)
        ]
        sleepers = [Guest(GUESTS + number, self.nodes, ["hall:9"], self.random) for number in range(SLEEPERS)]
        self.began = time()
        background = [asyncio.create_task(self._talk(guests)), asyncio.create_task(self._ask())]
        try:
            for guest in (*guests, *sleepers):
                guest.come()
            await self._see("sum(tidewire_connections)", GUESTS + SLEEPERS)
            await self._pass(5)
            await self._slow_ones()
            await self._refused_ones()
            await self._those_who_were_away(guests[:12])
            await self._hasty_one()
            await self._pass(3)
            await self._commands()
            await self._broker_faults()
            await self._pass(3)
            await self._rollout()
            await self._pass(6)
            self.ended = time()
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await asyncio.gather(*(guest.leave() for guest in (*guests, *sleepers)))

    async def _pass(self, seconds: float) -> None:
        await asyncio.sleep(seconds)  # the time itself is what is wanted: so many points of a graph

    async def _see(self, expr: str, least: float, within: float = PATIENCE) -> None:
        """Waits until Prometheus sees that much."""

        async def seen() -> bool:
            found = await self.prometheus.now(expr)
            return bool(found) and found[0].points[0][1] >= least

        await until(seen, f"Prometheus sees {expr} reach {least:g}", within=within)

    async def _publish(self, node: Node, channel: str, *events: Mapping[str, object]) -> None:
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            await node.api("red", "POST", f"channels/{channel}/events", list(events))

    async def _talk(self, guests: list[Guest]) -> None:
        round_ = 0
        while True:
            round_ += 1
            node = self.nodes[round_ % len(self.nodes)]
            if node.is_running:
                await self._publish(
                    node,
                    f"hall:{1 + round_ % 5}",
                    {"type": "talk.line", "data": {"n": round_}},
                    {"type": "talk.mood", "data": {"who": f"w{round_ % 3}", "n": round_}},
                    {"type": "talk.typing", "data": {"n": round_}},
                )
            guest = self.random.choice(guests)
            guest.say("talk.line", "hall:1", {"n": round_})
            if round_ % 20 == 0:
                guest.say("talk.unheard", "hall:1", {})  # no such type: an error
            await asyncio.sleep(0.05)  # a steady pace is what is wanted

    async def _ask(self) -> None:
        """Asks for readiness, as a kubelet does."""
        while True:
            await asyncio.gather(*(node.ready() for node in self.nodes if node.is_running))
            await asyncio.sleep(0.5)  # its period

    async def _slow_ones(self) -> None:
        """Some stop reading a busy channel: events are dropped and replaced for them, then they are closed."""
        wires = []
        for number in range(4):
            wire = await connect(
                self.nodes[number % 3].port,
                lambda text: None,
                bearer=token(f"slow-{number}", "red"),
                receive_buffer=4096,
            )
            wire.send({"type": "ready"})
            wire.send({"type": "subscribe", "id": "s", "channel": "flood:1"})
            wires.append(wire)
        await self._see('sum(tidewire_messages_in_total{type="subscribe"})', 4)
        for wire in wires:
            wire.read(on=False)
        types = ("talk.typing", "talk.mood", "talk.mood", "talk.typing", "talk.line")
        for round_ in range(40):
            await self._publish(
                self.nodes[0],
                "flood:1",
                *({"type": type_, "data": {"who": "w", "n": round_, "pad": BIG}} for type_ in types),
            )
            await asyncio.sleep(0.1)  # over some looks of the sweep and some scrapes
        await self._see("sum(tidewire_slow_consumers_total)", 1)
        for wire in wires:
            wire.abort()

    async def _refused_ones(self) -> None:
        async with aiohttp.ClientSession() as http:
            for number in range(30):
                node = self.nodes[number % 3]
                headers = (
                    {"Authorization": "Bearer none"} if number % 3 else {"Origin": "https://elsewhere.example.com"}
                )
                with suppress(aiohttp.WSServerHandshakeError):
                    await http.ws_connect(f"http://{HOST}:{node.port}/ws", protocols=("tidewire.v1",), headers=headers)
                await asyncio.sleep(0.05)  # over some scrapes
            silent = [
                await http.ws_connect(f"http://{HOST}:{node.port}/ws", protocols=("tidewire.v1",))
                for node in self.nodes
            ]
            await self._see("sum(tidewire_pending_connections)", 3)
            for ws in silent:
                await ws.close()

    async def _those_who_were_away(self, guests: list[Guest]) -> None:
        """Some vanish and resume at once; then some after more than the history holds."""
        for guest in guests:
            assert guest.wire is not None
            guest.wire.abort()
        await self._see('sum(tidewire_resumes_total{outcome="recovered"})', len(guests))
        lost = {"epoch": "0123456789abcdef", "offset": 1}
        wire = await connect(self.nodes[0].port, lambda text: None, bearer=token("late", "red"))
        wire.send({"type": "ready"})
        wire.send({"type": "subscribe", "id": "s", "channel": "hall:1", "since": lost})
        await self._see('sum(tidewire_resumes_total{outcome="gap"})', 1)
        wire.leave()
        wire.abort()

    async def _hasty_one(self) -> None:
        wire = await connect(self.nodes[1].port, lambda text: None, bearer=token("hasty", "red"))
        wire.send({"type": "ready"})
        for number in range(140):
            wire.send({"type": "ping", "id": f"{number}"})
        await self._see('sum(tidewire_rate_limited_total{scope="connection"})', 1)
        wire.abort()

    async def _commands(self) -> None:
        node = self.nodes[0]
        for user in range(3):
            status, _ = await node.api("red", "POST", f"users/user-{user}/disconnect", {"reason": "a test"})
            assert status == 200
        status, _ = await node.api("red", "POST", "users/nobody/revoke", {})
        assert status == 200
        await self._see("min(tidewire_revocations)", 1)

    async def _broker_faults(self) -> None:
        """Connections are cut until that makes a gap, memory runs out, and in the end everything is lost."""

        async def repaired() -> bool:
            await self.redis.command("CLIENT", "KILL", "TYPE", "pubsub")
            await self._pass(0.2)
            found = await self.prometheus.now("sum(tidewire_repaired_events_total)")
            return bool(found) and found[0].points[0][1] > 0

        await until(repaired, "a gap is repaired", within=PATIENCE)
        await self._pass(2)
        await self.redis.command("CONFIG", "SET", "maxmemory", "1mb")
        await self._see("sum(tidewire_broker_errors_total)", 1)
        await self._pass(1)
        await self.redis.command("CONFIG", "SET", "maxmemory", "128mb")
        await self._pass(2)
        self.redis.kill()
        await self._see("sum(tidewire_broker_up == bool 0)", 3)
        await self._pass(1)
        await self.redis.restart()
        await self._see("sum(tidewire_broker_up)", 3)
        await self._see('sum(tidewire_repairs_total{outcome="announced"})', 1)

    async def _rollout(self) -> None:
        node = self.nodes[2]
        node.signal(signal.SIGTERM)
        await self._see("max(tidewire_drain_left)", 1)
        await node.wait(PATIENCE)
        await self._pass(1)
        await node.start()
        await self._see("sum(tidewire_ready)", 3)
        await self._see('sum(tidewire_reconnects_asked_total{reason="rebalance"})', 1, within=MOVED)


@asynccontextmanager
async def watched() -> AsyncIterator[Day]:
    """A day that has been played, with everybody still there to be asked."""
    runner: web.AppRunner = await others()
    try:
        async with RedisServer() as redis:
            nodes = [Node(f"node-{number}", redis.url, dict(SETTINGS)) for number in range(3)]
            try:
                await asyncio.gather(*(node.start() for node in nodes))
                async with Prometheus(nodes, runner.addresses[0][1]) as prometheus:
                    day = Day(nodes, redis, prometheus)
                    await day._see("count(tidewire_max_connections)", 3)
                    await day.play()
                    yield day
            finally:
                await asyncio.gather(*(node.close() for node in nodes))
    finally:
        await runner.cleanup()
