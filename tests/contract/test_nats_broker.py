"""The Broker over NATS: the port's contract over a real server, and what is its own."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from service.adapters.nats.broker import NatsBroker
from service.adapters.nats.config import NatsConfig
from service.core.broker import Broker
from tests.clock import FakeClock
from tests.contract.broker_suite import WINDOW, BrokerSuite
from tests.stores.process import HOST, MissingProgramError, Server


class NatsServer(Server):
    """A nats-server with JetStream."""

    def __init__(self) -> None:
        super().__init__("nats")

    def _prepare(self) -> None:
        pass

    def _command_line(self) -> list[str]:
        found = shutil.which("nats-server", path=str(Path(sys.executable).parent))
        if found is None:
            raise MissingProgramError("these tests need nats-server: run scripts/setup.sh dev")
        return [found, "-a", HOST, "-p", str(self.port), "-js", "-sd", str(self.folder / "data")]

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(*self.address)
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return "Server is ready" in self.log

    @property
    def url(self) -> str:
        return f"nats://{HOST}:{self.port}"


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    server = NatsServer()
    asyncio.run(server.start())
    yield server
    server.end()


def config(server: NatsServer, **changes: object) -> NatsConfig:
    """For a broker with a stream of its own, unless told otherwise."""
    given: dict[str, object] = {
        "servers": (server.url,),
        "prefix": f"test-{secrets.token_hex(4)}",
        "idempotency_window": WINDOW,
    }
    return NatsConfig(**(given | changes))  # type: ignore[arg-type]  # spelled as changes


class TestNatsBroker(BrokerSuite):
    @pytest.fixture(autouse=True)
    def _server(self, server: NatsServer) -> None:
        self.server = server

    async def open(self, clock: FakeClock) -> Broker:
        return NatsBroker(config(self.server), clock)
