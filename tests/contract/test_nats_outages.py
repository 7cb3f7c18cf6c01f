"""The logs of an outage of NATS: its start and its end, not each try."""

from __future__ import annotations

import asyncio

from structlog.testing import capture_logs

from tests.contract.nats_stage import config, running
from tests.stores import NatsServer
from tests.stores.process import until
from tests.support.clock import FakeClock


async def test_nats_outage_is_logged_at_start_and_end_only() -> None:
    async with NatsServer() as server, running(config(server), FakeClock()) as (broker, _):
        with capture_logs() as logs:
            server.kill()
            link, tries = broker._link, 0
            connect = link._connect

            async def counted() -> object:
                nonlocal tries
                tries += 1
                return await connect()

            link._connect = counted  # type: ignore[assignment, method-assign]  # counts the tries
            async with asyncio.timeout(30):
                while tries < 5:  # noqa: ASYNC110  # nothing tells of a try
                    await asyncio.sleep(0.02)
            await server.restart()

            async def is_back() -> bool:
                return link.is_ready

            await until(is_back, "the connection is back", within=30)
        events = [entry["event"] for entry in logs]
        assert (events[0], events[-1]) == ("nats_disconnected", "nats_connected")
        assert 1 <= events.count("nats_connect_failed") <= 2, "each reason once"
        assert logs[-1]["seconds"] > 0
