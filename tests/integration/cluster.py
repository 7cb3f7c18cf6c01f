"""Several nodes that share a broker, each with a line of its own to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp
import pytest

from service.core.clock import Clock
from service.errors import ErrorCode, ServiceError
from service.realtime.cluster import requests
from tests.support.harness import Client, Running, eventually, serving, token
from tests.support.shared_broker import Bus, Line, NatsBus, RedisBus, SharedBroker

SOON = 6.0
"""Seconds within which every node has done what one was asked; below the beat of these tests, which would help it."""

BUSES: dict[str, Callable[[], Bus]] = {"memory": SharedBroker, "redis": partial(RedisBus, "redis"), "nats": NatsBus}


@dataclass(frozen=True, slots=True)
class Member:
    """One node of a cluster."""

    server: Running
    line: Line

    @property
    def commands(self) -> Any:
        """How often a kind of command was carried out here."""
        counter = self.server.service.metrics.cluster.control_commands
        return lambda kind: counter.labels(kind=kind).value


class Cluster:
    """Nodes that share a bus."""

    def __init__(self, bus: Bus, stack: AsyncExitStack) -> None:
        self.bus = bus
        self._stack = stack
        self.members: list[Member] = []

    async def join(self, clock: Clock | None = None, **groups: Any) -> Member:
        """Starts one more node, and waits until all know of it."""
        line = self.bus.line(clock)
        server = await self._stack.enter_async_context(serving(broker=line, clock=clock, **groups))
        member = Member(server, line)
        self.members.append(member)
        wanted = len(self.members) - 1
        await eventually(
            lambda: all(len(one.server.service.node.cluster.membership.states()) >= wanted for one in self.members)
        )
        return member


@asynccontextmanager
async def cluster(make_bus: Callable[[], Bus], nodes: int = 2, **groups: Any) -> AsyncIterator[Cluster]:
    bus = make_bus()
    async with AsyncExitStack() as stack:
        await bus.start()
        stack.push_async_callback(bus.close)
        made = Cluster(bus, stack)
        for _ in range(nodes):
            await made.join(**groups)
        yield made


async def refused(server: Running, offered: str) -> None:
    """Fails the test if the token still opens a connection."""
    with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
        await Client.open(server, hello=False, headers={"Authorization": f"Bearer {offered}"})


@contextmanager
def unheard() -> Iterator[None]:
    """For questions to a node that does not hear them: there is no point in waiting for its answer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "RESPONSE_TIMEOUT", 0.1)
        yield


def ends(*clients: Client) -> asyncio.Future[list[int]]:
    """The close codes, awaited from now on: aiohttp's client forgets the code that it has not read when the line goes."""
    return asyncio.gather(*(client.closed() for client in clients))


def old(user: str = "ann", **claims: Any) -> str:
    """A token from a minute ago."""
    return token(user, iat=int(time.time()) - 60, **claims)


def away() -> ServiceError:
    """What a line that is down says."""
    return ServiceError(ErrorCode.BROKER_UNAVAILABLE, "the broker does not answer")
