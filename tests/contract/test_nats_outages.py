"""A NATS that is away is logged when it goes and when it is back, not with each try."""

from __future__ import annotations

import asyncio

from structlog.testing import capture_logs

from tests.contract.nats_stage import config, running
from tests.stores import NatsServer
from tests.stores.process import until
from tests.support.clock import FakeClock


async def test_a_server_that_is_away_is_logged_once() -> None:
    async with NatsServer() as server, running(config(server), FakeClock()) as (broker, _):
        with capture_logs() as logs:
            server.kill()
            link, tries = broker._link, 0
            connect = link._connect

            async def counted(place: str) -> object:
                nonlocal tries
                tries += 1
                return await connect(place)

            link._connect = counted  # type: ignore[assignment, method-assign]  # counts the tries
            async with asyncio.timeout(30):
                while tries < 5:  # noqa: ASYNC110  # nothing tells of a try
                    await asyncio.sleep(0.02)
            await server.restart()

            async def is_back() -> bool:
                return link.usable

            await until(is_back, "the connection is back", within=30)
        told = [entry["event"] for entry in logs]
        assert (told[0], told[-1]) == ("connection lost", "connected again")
        assert 1 <= told.count("cannot connect") <= 2, "each reason once"
        assert logs[-1]["seconds"] > 0
