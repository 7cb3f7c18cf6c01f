"""Rooms in which everybody talks: what a broker across the network costs a node, in one run with none."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.harness import token
from tests.load.server import CONFIG, PLENTY, Server, serving
from tests.load.swarm import ADDRESSES, PATIENCE, WAVE
from tests.stores import RedisServer
from tests.wire import Wire, connect

pytestmark = pytest.mark.load

ROOMS, EACH = 100, 10
ROUNDS = 7
TURNS = 10
"""Messages that everyone sends in one round, the next when the last one has come back."""
TEXT = "x" * 100
FLOOR = 0.8
"""Deliveries a processor second through Redis, against those without."""
CONTRACT = Path(__file__).parent / "rooms.yaml"


class Seen(msgspec.Struct, rename={"sender": "from"}):
    """As much of a message as a talker looks at."""

    type: str
    id: str | None = None
    sender: str | None = None
    offset: int | None = None


_one = msgspec.json.Decoder(Seen)
_batch = msgspec.json.Decoder(list[Seen])


class Talker:
    """Says something, and when it has come back the next thing."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        self._crowd = crowd
        self.name = f"user-{number}"
        self.room = f"room:{number % ROOMS}"
        self.wire: Wire | None = None
        self.left = 0
        self.position = -1
        self._said = 0

    def text(self, frame: bytes) -> None:
        for message in _batch.decode(frame) if frame[:1] == b"[" else (_one.decode(frame),):
            if message.type == "talk.line":
                assert message.offset == self.position + 1, (self.name, message.offset, self.position)
                self.position = message.offset
                self._crowd.delivered()
                if message.sender == self.name:
                    self.talk()
            elif message.type == "subscribed":
                self.position = message.offset or 0
                self._crowd.joined()
            else:
                assert message.type in ("welcome", "ack"), message

    def talk(self) -> None:
        if self.left and self.wire is not None:
            self.left -= 1
            self._said += 1
            line = {"type": "talk.line", "channel": self.room, "id": f"{self._said}", "data": {"text": TEXT}}
            self.wire.send(line)


class Crowd:
    """Everybody."""

    def __init__(self) -> None:
        self.talkers = [Talker(self, number) for number in range(ROOMS * EACH)]
        self._missing = len(self.talkers)
        self._done = asyncio.Event()

    def joined(self) -> None:
        self.delivered()

    def delivered(self) -> None:
        self._missing -= 1
        if not self._missing:
            self._done.set()

    async def come(self, port: int) -> None:
        async with asyncio.timeout(PATIENCE):
            for start in range(0, len(self.talkers), WAVE):
                await asyncio.gather(*(self._connect(port, one) for one in self.talkers[start : start + WAVE]))
            await self._done.wait()

    async def _connect(self, port: int, talker: Talker) -> None:
        source = ADDRESSES[int(talker.name.partition("-")[2]) % len(ADDRESSES)]
        talker.wire = await connect(port, talker.text, bearer=token(talker.name), source=source)
        talker.wire.send({"type": "ready"}, {"type": "subscribe", "id": "s", "channel": talker.room})

    async def talk(self) -> int:
        """Everyone says TURNS things; returns the deliveries that makes."""
        deliveries = len(self.talkers) * TURNS * EACH
        self._missing, self._done = deliveries, asyncio.Event()
        for talker in self.talkers:
            talker.left = TURNS
            talker.talk()
        async with asyncio.timeout(PATIENCE * 2):
            await self._done.wait()
        return deliveries

    def leave(self) -> None:
        for talker in self.talkers:
            if talker.wire is not None:
                talker.wire.abort()


def settings(broker: dict[str, Any]) -> dict[str, Any]:
    limits = CONFIG["limits"]
    assert isinstance(limits, dict)
    rates = dict.fromkeys(("connection_rate", "user_rate", "tenant_rate"), PLENTY)
    return {**CONFIG, "contract": str(CONTRACT), "limits": {**limits, **rates}, "broker": broker}


async def measure(server: Server, crowd: Crowd) -> tuple[float, float]:
    """Deliveries a processor second of the node, and a second."""
    loop = asyncio.get_running_loop()
    cpu, began = server.cpu_seconds(), loop.time()
    deliveries = await crowd.talk()
    return deliveries / (server.cpu_seconds() - cpu), deliveries / (loop.time() - began)


async def test_a_redis_between_the_nodes_costs_little(tmp_path: Path) -> None:
    asyncio.get_running_loop().set_debug(False)  # the debug mode makes these clients many times slower than the service
    cores = sorted(os.sched_getaffinity(0))
    rounds: dict[str, list[tuple[float, float]]] = {"memory": [], "redis": []}
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisServer("redis"))
        if len(cores) > 1:
            os.sched_setaffinity(redis.process.pid, cores[1:])
        crowds: dict[str, tuple[Server, Crowd]] = {}
        for name, broker in (("memory", {}), ("redis", {"url": redis.url})):
            folder = tmp_path / name
            folder.mkdir()
            server = await stack.enter_async_context(serving(folder, settings(broker)))
            crowd = Crowd()
            stack.callback(crowd.leave)
            await crowd.come(server.port)
            crowds[name] = (server, crowd)
        for number in range(ROUNDS):
            for name in ("memory", "redis") if number % 2 else ("redis", "memory"):
                rounds[name].append(await measure(*crowds[name]))
    # The machine has its faster and slower moments: a round is compared with its neighbour, not with the best of all.
    pairs = zip(rounds["redis"], rounds["memory"], strict=True)
    ratios = sorted(through / without for (through, _), (without, _) in pairs)
    ratio = ratios[ROUNDS // 2]
    print(
        f"\nrooms {ROOMS} × {EACH}, deliveries a CPU second of the node:",
        {name: [round(cpu) for cpu, _ in found] for name, found in rounds.items()},
        "deliveries a second:",
        {name: [round(wall) for _, wall in found] for name, found in rounds.items()},
        f"ratio={ratio:.2f} of {[round(one, 2) for one in ratios]}",
    )
    assert ratio >= FLOOR, rounds
