"""Thousands who come at once to one node, which lets them in at its own pace: those who are there notice little of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from statistics import quantiles
from time import monotonic

import pytest

from tests.faults.clients.apart import CrowdApart
from tests.faults.clients.crowd import Cast
from tests.faults.clients.follow import Message
from tests.faults.node import Node
from tests.faults.tokens import TENANTS, token
from tests.support.wire import Wire, connect, reader

pytestmark = pytest.mark.e2e

STORM = 5000
ACCEPTS = 250
"""Upgrades a second that the node is set to take in."""
LONGEST = 1.5
"""How much longer than at that rate without a pause the last one may wait: clients come back at whole seconds and a part."""
CALM = 8.0
"""Seconds of traffic before a storm, to compare with."""
EVERY = 0.02
"""Seconds between two events whose way is timed."""
NOISE = 0.005
"""A p99 below this is the machine's own, and twice of it says nothing."""

_read = reader(Message)


class Listeners:
    """Some who are connected, and what they wait between a publish and its delivery."""

    def __init__(self, node: Node, count: int) -> None:
        self.node = node
        self.count = count
        self.waits: list[float] = []
        self._wires: list[Wire] = []
        self._publishing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Listeners:
        for number in range(self.count):
            wire = await connect(self.node.port, self._text, bearer=token(f"listener-{number}", "red"))
            self._wires.append(wire)
            wire.send({"type": "ready"})
            wire.send({"type": "subscribe", "id": "s", "channel": "hall:0"})
        self._publishing = asyncio.create_task(self._publish())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._publishing is not None
        self._publishing.cancel()
        await asyncio.gather(self._publishing, return_exceptions=True)
        for wire in self._wires:
            wire.abort()

    async def _publish(self) -> None:
        number = 0
        while True:
            due = monotonic() + EVERY
            data = {"t": "red", "c": "hall:0", "line": number, "at": monotonic()}
            event = {"type": "talk.line", "id": f"l{number}", "data": data}
            status, body = await self.node.api("red", "POST", "channels/hall:0/events", event)
            assert status == 200, body
            number += 1
            await asyncio.sleep(max(0.0, due - monotonic()))

    def _text(self, frame: bytes) -> None:
        now = monotonic()
        for message in _read(frame):
            if message.type == "talk.line" and message.data is not None:
                self.waits.append(now - message.data.at)

    async def p99(self, during: Awaitable[object]) -> float:
        """Of the deliveries in that time, in seconds."""
        self.waits.clear()
        await during
        assert len(self.waits) >= 100, "hardly anything was delivered"
        return quantiles(self.waits, n=100)[98]


async def test_reconnect_storm_against_one_pod() -> None:
    asyncio.get_running_loop().set_debug(False)
    rate = {"ROLLOUT__ACCEPT_RATE__PER_SECOND": str(ACCEPTS), "ROLLOUT__ACCEPT_RATE__BURST": str(ACCEPTS)}
    node = Node("node", "memory://", rate)
    crowd = CrowdApart(Cast(3, STORM, list(TENANTS), [f"hall:{n}" for n in range(1, 51)], [node.port], wave=STORM))
    try:
        await node.start()
        async with Listeners(node, 20) as listeners:
            calm = await listeners.p99(asyncio.sleep(CALM))
            came = asyncio.create_task(_come(crowd))
            storm = await listeners.p99(came)
            metrics = await node.metrics()
        refused = metrics['upgrade_refusals_total{cause="service",door="upgrade",reason="overloaded"}']
        tries = len((await crowd.seen()).tries)
        print(
            f"\n{STORM} clients at once, {ACCEPTS} a second let in: all were in after {came.result():.1f} s, with {tries} tries;"
            f" p99 of those who were there {1000 * calm:.1f} ms before, {1000 * storm:.1f} ms meanwhile"
        )
        assert metrics["connections"] == STORM + 20
        assert refused == tries - STORM, "somebody was refused for another reason, or cut"
        assert came.result() <= LONGEST * STORM / ACCEPTS, "the crowd took longer than the rate asks for"
        assert storm <= 2 * max(calm, NOISE)
    finally:
        await crowd.leave()
        await node.close()


async def _come(crowd: CrowdApart) -> float:
    began = monotonic()
    await crowd.come(60, nice=10)  # the clients' own work must not look like the service's
    return monotonic() - began
