"""Nodes as a cluster runs them: behind a real proxy that leads to those that are ready, one more before one goes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

from tests.e2e.front import Front, rendered
from tests.e2e.haproxy import HAProxy
from tests.faults.node import LOOK, Node
from tests.faults.report import Report
from tests.faults.stage import Stage, seconds_until

PRESET = "ingress haproxytech"
"""Whose words the proxy is given: it sends newcomers to the pod with the fewest connections."""
READY = 30.0
"""Seconds until what is ready has to have been noticed."""
EXIT = 60.0
"""Seconds that a node may take to drain, whatever is asked of it in a test."""


class Cluster(Stage):
    """A stage whose clients come through the proxy; publishers speak to pods that are ready, as backends inside a cluster do.

    `up` of the nodes run from the beginning, the others when they are started.
    """

    def __init__(self, report: Report, broker: str, *, size: int, up: int, **options: Any) -> None:
        super().__init__(report, [broker] * size, **options)
        self.backends = []
        self._up = up
        self._leaving: set[str] = set()
        self._watching: asyncio.Task[None] | None = None

    @property
    def running(self) -> Sequence[Node]:
        """Those that have been started and have not ended."""
        return [node for node in self.nodes if node.is_running]

    async def _start(self) -> None:
        await asyncio.gather(*(node.start() for node in self.nodes[: self._up]))

    async def _open_fronts(self) -> None:
        documents = rendered(PRESET, 3600, 25.0)
        # Slots for all: a controller has empty ones too, so that endpoints come and go without a reload.
        self._front = Front(PRESET, documents, [node.port for node in self.nodes])
        self._engine = HAProxy([self._front])
        self._stack.callback(self._engine.end)
        await self._engine.start()
        self.ports[:] = [self._front.port]
        await self._lead()
        self._watching = asyncio.create_task(self._watch())
        self._stack.push_async_callback(self._unwatch)

    async def _unwatch(self) -> None:
        assert self._watching is not None
        self._watching.cancel()
        with suppress(asyncio.CancelledError):
            await self._watching

    async def _watch(self) -> None:
        """What the kubelet and the endpoints controller do."""
        while True:
            await asyncio.sleep(LOOK)  # another process has no event to wait for
            await self._lead()

    async def _lead(self) -> None:
        candidates = [node for node in self.running if node.name not in self._leaving]
        looks = await asyncio.gather(*(node.ready() for node in candidates))
        ready = [node.port for node, (status, _) in zip(candidates, looks, strict=True) if status == 200]
        if ready != self.backends:
            self.backends[:] = ready
            await self._engine.lead(self._front, ready)

    async def led_to(self, *nodes: Node) -> None:
        """Waits until newcomers are sent to these nodes."""
        wanted = {node.port for node in nodes}

        async def led() -> bool:
            return wanted <= set(self._front.nodes)

        assert await seconds_until(led, monotonic(), READY) is not None, f"{wanted} were not ready in time"

    async def add(self, node: Node) -> None:
        """Starts one that is not there, and waits until it is led to."""
        await node.start()
        self._fds.setdefault(node.name, node.fds())
        await self.led_to(node)

    async def go(self, node: Node) -> tuple[float, float]:
        """Takes a pod away: no newcomers are led to it, then it gets SIGTERM. Returns the moments of both ends."""
        self._leaving.add(node.name)
        await self._lead()
        began = monotonic()
        node.signal(signal.SIGTERM)
        status = await node.wait(EXIT)
        self._leaving.discard(node.name)
        self.report.expect(status == 0, f"{node.name} exited with {status}")
        return began, monotonic()

    async def counts(self) -> list[int]:
        """Connections of each node that runs."""
        return [int((await node.metrics()).get("connections", 0)) for node in self.running]
