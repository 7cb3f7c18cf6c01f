"""Brokers at NATS for the tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from service.adapters.nats.broker import NatsBroker
from service.adapters.nats.config import NatsConfig
from service.telemetry.metrics import Metrics
from tests.contract.broker_suite import WINDOW, RecordingSink
from tests.stores import NatsServer
from tests.support.clock import FakeClock

_prefixes = (f"suite-{number}" for number in count())


class ListeningSink(RecordingSink):
    """A sink that a test can wait for."""

    def __init__(self) -> None:
        super().__init__()
        self._heard = asyncio.Event()

    def deliver(self, event: Any) -> None:
        super().deliver(event)
        self._heard.set()

    def interrupted(self, channels: Any = None) -> None:
        super().interrupted(channels)
        self._heard.set()

    async def until(self, holds: Callable[[], bool], within: float = 20.0) -> None:
        async with asyncio.timeout(within):
            while not holds():
                self._heard.clear()
                await self._heard.wait()


def config(server: NatsServer, **changes: object) -> NatsConfig:
    """Returns the settings of a broker, by default with its own stream."""
    given: dict[str, object] = {
        "servers": (server.url,),
        "prefix": next(_prefixes),
        "idempotency_window": WINDOW,
        "start_timeout": 5.0,
    }
    return NatsConfig(**(given | changes))  # type: ignore[arg-type]  # spelled as changes


@asynccontextmanager
async def running(config: NatsConfig, clock: FakeClock) -> AsyncIterator[tuple[NatsBroker, ListeningSink]]:
    """Runs a broker, and records what it delivers."""
    broker, sink = NatsBroker(config, clock, Metrics()), ListeningSink()
    await broker.start(sink)
    try:
        yield broker, sink
    finally:
        await broker.close()
